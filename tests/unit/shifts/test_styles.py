"""Adversarial images and stylised ones."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from advbn import AdvBN
from advbn.base.errors import DataError
from advbn.shifts.filters import instagram
from advbn.shifts.styles import (
    adain,
    adversarial,
    gram_matrices,
    reconstructed,
    shape_distance,
    shuffled,
    style_and_shape,
    style_distance,
    style_images,
    stylized,
)


def test_adain_gives_the_styles_statistics():
    content, style = torch.randn(3, 5, 8, 8), 2 + 3 * torch.randn(3, 5, 6, 6)
    out = adain(content, style)
    assert torch.allclose(out.mean((2, 3)), style.mean((2, 3)), atol=1e-4)
    assert torch.allclose(out.std((2, 3)), style.std((2, 3)), rtol=1e-3)


def test_the_attack_raises_the_classifiers_loss_on_the_picture(autoencoder, images):
    plain = reconstructed(autoencoder, images.images)
    attacked = adversarial(autoencoder, images.images, images.targets, AdvBN())
    loss = [F.cross_entropy(autoencoder.logits(x.float() / 255), images.targets) for x in (plain, attacked)]
    assert loss[1] > loss[0] and attacked.shape == images.images.shape and attacked.dtype == torch.uint8
    unchanged = adversarial(autoencoder, images.images, images.targets, AdvBN(eps=0.0))
    assert torch.equal(unchanged, plain)


def test_a_style_belongs_to_the_index(autoencoder, images):
    styles = style_images(40)
    whole = stylized(autoencoder, images.images[:6], [3, 4, 5, 13, 14, 15], styles)
    part = stylized(autoencoder, images.images[[4, 0]], [14, 3], styles, batch_size=1)
    assert (whole[[4, 0]].int() - part.int()).abs().max() <= 1
    assert not torch.equal(whole[0], stylized(autoencoder, images.images[:1], [4], styles)[0])


def test_styles_may_come_from_a_folder(tmp_path):
    with pytest.raises(DataError, match="no style images"):
        style_images(40, str(tmp_path))
    Image.new("L", (30, 50), 77).save(tmp_path / "a.png")
    assert style_images(16, str(tmp_path)).unique().tolist() == [77]
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"the style image {tmp_path}/b.png cannot be read"):
        style_images(17, str(tmp_path))


def test_styles_are_the_callers_own():
    style_images(40).zero_()
    assert style_images(40).any()


def test_a_gram_matrix_is_what_its_definition_says():
    images = torch.randint(256, (2, 3, 9, 7), dtype=torch.uint8)
    found = gram_matrices(images, scales=1).view(2, 10, 10)
    pixels = images.double() / 255
    places = [(i, j) for i in range(1, 9) for j in range(1, 7)]
    for image, matrix in zip(pixels, found):
        expected = torch.zeros(10, 10, dtype=torch.double)
        for i, j in places:
            here = image[:, i, j]
            steps = (here - image[:, i, j - 1]).abs(), (here - image[:, i - 1, j]).abs()
            responses = torch.cat([torch.ones(1, dtype=torch.double), here, *steps])
            expected += responses.outer(responses) / len(places)
        assert torch.allclose(matrix.double(), expected, atol=1e-5)


def test_nothing_is_lost_by_the_same_image_and_the_distance_is_the_same_both_ways(images):
    own, other = images.images, images.images.roll(1, 0)
    for distance in (style_distance, shape_distance):
        assert distance(own, own).abs().max() < 1e-5
        assert torch.allclose(distance(own, other), distance(other, own))
        assert distance(own, other).mean() > 0.1


def test_shape_does_not_see_contrast_brightness_or_colour(images):
    dim = (images.images * 0.5 + 40).byte()
    assert shape_distance(images.images, dim).max() < 0.02 < style_distance(images.images, dim).min()
    swapped = images.images.float().mean(1, keepdim=True).expand(-1, 3, -1, -1).byte()
    assert shape_distance(images.images, swapped).mean() < 0.2 * style_distance(images.images, swapped).mean()


def test_filters_are_style_and_disorder_is_shape(images):
    for name in ("inkwell", "toaster", "nashville"):
        style, shape = style_and_shape(images.images, instagram(images.images, name))
        assert style.mean() > 5 * shape.mean()
    style, shape = style_and_shape(images.images, shuffled(images.images))
    assert shape.mean() > 3 * style.mean()


def test_one_is_how_far_two_images_are_from_each_other(images):
    for distance in style_and_shape(images.images, images.images.roll(len(images) // 2, 0)):
        assert distance.mean().item() == pytest.approx(1, abs=1e-4)


def test_disorder_keeps_every_pixel():
    images = torch.randint(256, (2, 3, 13, 17), dtype=torch.uint8)
    mixed = shuffled(images)
    assert not torch.equal(mixed, images)
    assert torch.equal(mixed.flatten(2).sort().values, images.flatten(2).sort().values)


def test_an_image_without_edges_has_no_shape_in_common():
    blank = torch.full((1, 3, 12, 12), 90, dtype=torch.uint8)
    drawn = blank.clone()
    drawn[..., 6:] = 200
    assert shape_distance(blank, drawn).item() == 1
    with pytest.raises(ValueError, match="there are 1 images and 2 others; the two must agree"):
        style_distance(blank, torch.cat([drawn, drawn]))
