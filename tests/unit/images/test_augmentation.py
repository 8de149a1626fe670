"""Augmentation: of each image by itself, repeatable, nothing where its strength is nothing."""

import pytest
import torch

from advbn.base.sections import Augment
from advbn.images.augmentation import POLICIES, apply_policy, augment_batch
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
