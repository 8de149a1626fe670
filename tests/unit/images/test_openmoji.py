import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from advbn.config import Augment
from advbn.errors import DataError
from advbn.images.augmentation import apply_policy, augment_batch, POLICIES
from advbn.images.batches import FolderBatches, MemoryBatches, normalize, read_images, split_indices
from advbn.images.datasets import EmbeddedData
from advbn.images.openmoji import build_openmoji, fingerprint, write_png
from advbn.shifts.cells import cells
from advbn.shifts.filters import FILTERS, instagram


def test_two_builds_are_the_same_bytes_and_a_wrong_pin_stops(tmp_path):
    a, b = build_openmoji(tmp_path / "a", limit=3), build_openmoji(tmp_path / "b", limit=3)
    assert a == b and a["nfiles"] == 2 * 27 + 1
    build_openmoji(tmp_path / "c", pinned=a["md5"], limit=3)
    with pytest.raises(DataError, match="pins 0123.dir.*constraints.txt"):
        build_openmoji(tmp_path / "d", pinned="0123.dir", limit=3)
    assert not (tmp_path / "d").exists()


@pytest.mark.promise("Bad input", "no command removes what it has not made")
@pytest.mark.parametrize("name", ["photos.before", "photos.partial", "photos"])
def test_no_folder_of_others_is_removed(tmp_path, name):
    """Also one that has our name for what is unfinished, and one in which somebody keeps a file beside the
    images."""
    build_openmoji(tmp_path / "photos", limit=1)
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=f"{name} holds something else than these images, mine.txt"):
        build_openmoji(tmp_path / "photos", limit=1)
    assert (tmp_path / name / "mine.txt").read_text() == "mine"
    (tmp_path / name / "mine.txt").unlink()
    build_openmoji(tmp_path / "photos", limit=1)
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]


def test_a_link_in_the_place_of_unfinished_images_is_left(tmp_path):
    (tmp_path / "elsewhere/openmoji").mkdir(parents=True)
    (tmp_path / "photos.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="photos.partial is a link"):
        build_openmoji(tmp_path / "photos", limit=1)
    assert (tmp_path / "elsewhere/openmoji").exists()


def test_the_fingerprint_is_dvcs(root):
    pin = yaml.safe_load((root / "data.dvc").read_text())["outs"][0]
    assert fingerprint(root / "data") == {k: pin[k] for k in ("md5", "size", "nfiles")}
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "data.dvc"], cwd=root, capture_output=True, text=True
    )
    assert "up to date" in status.stdout


def test_a_changed_image_is_noticed(root, tmp_path):
    build_openmoji(tmp_path / "data", limit=1)
    before = fingerprint(tmp_path / "data")
    image = next((tmp_path / "data").rglob("*.png"))
    write_png(image, np.zeros((40, 40, 3), np.uint8))
    assert fingerprint(tmp_path / "data") != before


@pytest.mark.parametrize("shape", [(1, 1, 3), (40, 40, 3), (200, 300, 3)])
def test_png_round_trip(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)


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


def test_no_test_image_is_trained_on_and_line_art_matches(root):
    data = EmbeddedData(root / "data")
    for seed in range(3):
        assert not set(data.train(seed).names) & set(data.test(seed).names)
        made = list(cells(data, seed))
        assert all(images.names == data.test(seed).names for _, _, images in made)
        assert [s for s, _, _ in made] == ["clean", *["corruptions"] * 75, *["instagram"] * 20, "sketch"]


def test_embedded_images_are_read_when_asked_for_and_missing_ones_are_noticed_before(tmp_path):
    build_openmoji(tmp_path, limit=2)
    damaged = sorted((tmp_path / "openmoji").rglob("*.png"))[3]
    damaged.write_bytes(b"")
    data = EmbeddedData(tmp_path)
    assert len(data.classes) == 9
    with pytest.raises(DataError, match=f"{damaged.name} is empty"):
        data.train(0)
    damaged.unlink()
    with pytest.raises(DataError, match="openmoji and sketch hold different emoji; build them again"):
        EmbeddedData(tmp_path)
    for image in (tmp_path / "sketch").rglob("*.png"):
        image.unlink()
    with pytest.raises(DataError, match="sketch: Found no valid file.*advbn data"):
        EmbeddedData(tmp_path)


def test_batches_repeat_cover_and_differ(root):
    images = read_images(root / "data/openmoji")[range(100)]
    loader = MemoryBatches(images, 16, seed=1, augment=Augment(degrees=10.0, translate=0.1, scale=0.1))
    first, again, later = (list(loader.batches(e)) for e in (0, 0, 1))
    assert len(first) == len(loader) == 6
    assert all(torch.equal(a, b) and torch.equal(y, z) for (a, y), (b, z) in zip(first, again))
    assert not torch.equal(first[0][0], later[0][0])
    resumed = list(loader.batches(0, start=4))
    assert torch.equal(resumed[0][0], first[4][0]) and len(resumed) == 2


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


def test_normalize_is_torchvisions():
    from torchvision.transforms import v2

    x = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(x / 255)
    assert torch.allclose(normalize(x), expected, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_do_not_depend_on_the_workers(root, workers):
    torch.manual_seed(0)
    loader = FolderBatches(root / "data/openmoji", 32, 8, seed=0, workers=workers)
    before = torch.random.get_rng_state()
    x, y = next(loader.batches(0))
    reference, targets = next(FolderBatches(root / "data/openmoji", 32, 8, seed=0, workers=0).batches(0))
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
            lambda r: MemoryBatches(read_images(r / "data/sketch")[range(9)], 9, 0, world=2),
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


def test_every_filter_changes_an_image_and_keeps_its_form(root):
    images = read_images(root / "data/openmoji").images[:2]
    for name in FILTERS:
        out = instagram(images, name)
        assert out.shape == images.shape and out.dtype == torch.uint8 and not torch.equal(out, images)


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


def test_the_list_of_a_large_tree_is_kept_until_a_folder_changes(tmp_path, monkeypatch):
    import os
    from advbn import decoding

    monkeypatch.setattr(decoding, "LARGE_TREE", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, walks = tmp_path / "images", []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: walks.append(a) or walk(*a, **k))
    for c in "ab":
        for i in range(3):
            (root / c).mkdir(parents=True, exist_ok=True)
            write_png(root / c / f"{i}.png", np.zeros((8, 8, 3), np.uint8))

    def age(*folders):
        for folder in folders:
            os.utime(folder, (1e9, 1e9))

    first = decoding.Tree(root)
    assert (
        walks and not (tmp_path / "cache").exists()
    )  # what has just changed may change again within the clock's grain
    age(root, root / "a", root / "b")
    decoding.Tree(root)
    walks.clear()
    again = decoding.Tree(root)
    assert (
        walks == []
        and again.samples == first.samples
        and again.classes == first.classes
        and again.class_to_idx == first.class_to_idx
        and again.targets == first.targets
    )
    from advbn.shifts.published import NamedFolder

    named = NamedFolder(
        root, ("c", "b", "a"), "the set"
    )  # the list of files is the same, the classes' numbers are this network's
    assert (
        walks == []
        and named.targets == [2, 2, 2, 1, 1, 1]
        and [p for p, _ in named.samples] == [p for p, _ in first.samples]
    )
    monkeypatch.chdir(tmp_path)
    assert decoding.Tree("images").samples[0][0] == "images/a/0.png" and walks == []
    write_png(root / "b/3.png", np.zeros((8, 8, 3), np.uint8))
    assert len(decoding.Tree(root)) == 7 and walks
    age(root / "b")
    decoding.Tree(root)
    (listing,) = (tmp_path / "cache/advbn").glob("*.jsonl")
    listing.write_bytes(listing.read_bytes()[:-10])  # cut short
    walks.clear()
    assert len(decoding.Tree(root)) == 7 and walks
