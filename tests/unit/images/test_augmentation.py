"""Augmentation: of each image by itself, repeatable, nothing where its strength is nothing."""

import pytest
import torch

from advbn.base.sections import Augment
from advbn.images.augmentation import POLICIES, apply_policy, augment_batch, recolour_batch
from advbn.images.batches import MemoryBatches, read_images


def test_augmentation_without_strength_is_the_identity_and_flip_flips():
    x = torch.randn(64, 3, 9, 9)
    generator = torch.Generator().manual_seed(0)
    assert torch.allclose(augment_batch(x, Augment(flip=False), generator), x, atol=1e-5)
    flipped = augment_batch(x, Augment(flip=True), generator)
    kinds = [
        torch.allclose(a, b, atol=1e-5) or (torch.allclose(a, b.flip(-1), atol=1e-5) and -1)
        for a, b in zip(flipped, x)
    ]
    assert all(kinds) and 10 < kinds.count(-1) < 54


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_repeat_and_keep_the_labels_weight(root, policy):
    images = read_images(root / "data/openmoji")[range(0, 1898, 60)]
    loader = MemoryBatches(images, 16, seed=3, policy=policy)
    (first, targets), (again, same) = next(loader.batches(1)), next(loader.batches(1))
    assert torch.equal(first, again) and torch.equal(targets, same)
    plain = next(MemoryBatches(images, 16, seed=3).batches(1))
    assert torch.equal(first, plain[0]) == (policy == "none")
    if policy in ("mixup", "cutmix"):
        assert targets.shape == (16, 9) and torch.allclose(targets.sum(1), torch.ones(16))
    else:
        assert torch.equal(targets, plain[1])


def test_each_image_has_augmentation_of_its_own(root):
    one = read_images(root / "data/openmoji").images[:1].expand(12, -1, -1, -1)
    for policy in ("augmix", "trivialaugment"):
        assert len({image.numpy().tobytes() for image in apply_policy(policy, one, None, 9, seed=1)[0]}) > 6
    with pytest.raises(ValueError, match="allowed are none, augmix"):
        apply_policy("augmx", one, None, 9, seed=1)


def test_a_crop_shows_a_part_as_it_is_and_repeats():
    ramp = torch.linspace(-1, 1, 32).expand(64, 3, 32, 32)  # brighter from left to right
    options = Augment(crop=0.5, flip=False)
    one, again = (augment_batch(ramp, options, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, again) and one.shape == ramp.shape
    width = (one[:, 0, 0, -2] - one[:, 0, 0, 1]) / (ramp[0, 0, 0, -2] - ramp[0, 0, 0, 1])
    assert width.min() > (0.5 * 0.75) ** 0.5 - 0.05 and width.max() < 1.01 and width.std() > 0.05


def test_colours_change_where_it_is_said_and_only_there():
    x = torch.randint(256, (32, 3, 8, 8), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    assert recolour_batch(x, Augment(), generator) is x
    grey = recolour_batch(x, Augment(grayscale=1.0), generator)
    assert torch.allclose(grey[:, 0], grey[:, 2]) and not torch.allclose(grey[0], grey[1])
    changed = recolour_batch(x, Augment(colour_jitter=0.3), generator)
    assert 0 <= changed.min() and changed.max() <= 255 and (changed - x).abs().mean() > 5
    even = torch.full((4, 3, 2, 2), 128.0)  # no hue, no saturation, no contrast: only brightness is left
    lit = recolour_batch(even, Augment(colour_jitter=0.3), generator)
    assert torch.allclose(lit, lit[:, :1, :1, :1].expand_as(lit), atol=1e-3)
