"""Adversarial images and stylised ones."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from advbn import AdvBN
from advbn.base.errors import DataError
from advbn.shifts.styles import adain, adversarial, reconstructed, style_images, stylized


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
