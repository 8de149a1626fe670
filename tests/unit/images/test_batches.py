"""Sets of images and their batches: division, order, normalisation, streaming."""

import pytest
import torch

from advbn.base.sections import Augment
from advbn.images.augmentation import POLICIES
from advbn.images.batches import (
    FolderBatches,
    MemoryBatches,
    Reading,
    Share,
    normalize,
    read_images,
    split_indices,
)
from advbn.images.preprocessing import Preprocessing
from advbn.shifts.filters import instagram


def test_split_is_stratified_disjoint_and_independent_of_order(root):
    images = read_images(root / "data/openmoji")
    train, test = split_indices(images.targets, images.names, 5)
    assert not set(train.tolist()) & set(test.tolist()) and len(train) + len(test) == len(images) == 1898
    for c in range(9):
        n = (images.targets == c).sum().item()
        assert (images.targets[test] == c).sum().item() == round(n / 4)
    order = torch.randperm(len(images))
    shuffled = images[order]
    _, other = split_indices(shuffled.targets, shuffled.names, 5)
    assert {shuffled.names[i] for i in other} == {images.names[i] for i in test}


def test_batches_repeat_cover_and_differ(root):
    images = read_images(root / "data/openmoji")[range(100)]
    loader = MemoryBatches(images, 16, seed=1, augment=Augment(degrees=10.0, translate=0.1, scale=0.1))
    first, again, later = (list(loader.batches(e)) for e in (0, 0, 1))
    assert len(first) == len(loader) == 6
    assert all(torch.equal(a, b) and torch.equal(y, z) for (a, y), (b, z) in zip(first, again))
    assert not torch.equal(first[0][0], later[0][0])
    resumed = list(loader.batches(0, start=4))
    assert torch.equal(resumed[0][0], first[4][0]) and len(resumed) == 2


def test_normalize_is_torchvisions():
    from torchvision.transforms import v2

    x = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(x / 255)
    assert torch.allclose(normalize(x), expected, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_do_not_depend_on_the_workers(root, workers):
    torch.manual_seed(0)
    loader = FolderBatches(root / "data/openmoji", 32, 8, seed=0, reading=Reading(workers))
    before = torch.random.get_rng_state()
    x, y = next(loader.batches(0))
    reference, targets = next(
        FolderBatches(root / "data/openmoji", 32, 8, seed=0, reading=Reading(0)).batches(0)
    )
    assert torch.equal(x, reference) and torch.equal(y, targets)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda r: read_images(r / "data/nothing"), "no images at .*advbn data"),
        (
            lambda r: MemoryBatches(read_images(r / "data/sketch")[range(5)], 8, 0),
            "batch_size is 8 and the set has 5",
        ),
        (
            lambda r: MemoryBatches(read_images(r / "data/sketch")[range(9)], 9, 0, share=Share(0, 2)),
            "must be a multiple",
        ),
        (lambda r: FolderBatches(r / "nowhere", 32, 8, 0), "no images at"),
        (lambda r: instagram(torch.zeros(1, 3, 4, 4), "hefe"), "uint8 tensor"),
        (lambda r: instagram(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "heffe"), "nearest are hefe"),
    ],
)
def test_errors(root, make, words):
    with pytest.raises(ValueError, match=words):
        make(root)


def test_streamed_images_take_every_policy(imagenet):
    batches = {
        policy: next(
            FolderBatches(
                imagenet / "imagenet/train", 64, 8, seed=0, policy=policy, reading=Reading(0)
            ).batches(0)
        )
        for policy in POLICIES
    }
    for policy, (images, targets) in batches.items():
        assert images.shape == (8, 3, 64, 64) and images.isfinite().all()
        assert torch.equal(images, batches["none"][0]) == (policy == "none")
        assert targets.shape == ((8, 3) if policy in ("mixup", "cutmix") else (8,))
    again = next(
        FolderBatches(
            imagenet / "imagenet/train", 64, 8, seed=0, policy="augmix", reading=Reading(2)
        ).batches(0)
    )
    assert torch.equal(again[0], batches["augmix"][0])  # the same in worker processes
    with pytest.raises(ValueError, match="augmentation is 'augmax'; allowed are none, augmix"):
        FolderBatches(imagenet / "imagenet/train", 64, 8, seed=0, policy="augmax")


def test_images_in_memory_are_scaled_for_the_network_where_it_says_so():
    x = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    scaled = normalize(x, Preprocessing(scaled=96, interpolation="bicubic"))
    assert scaled.shape == (2, 3, 96, 96) and scaled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(normalize(x, Preprocessing(scaled=64)), normalize(x))
    even = normalize(torch.full_like(x, 77), Preprocessing(scaled=48))
    assert torch.allclose(even, normalize(torch.full((2, 3, 48, 48), 77, dtype=torch.uint8)), atol=1e-5)
