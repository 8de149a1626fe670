"""Sets behind one interface: embedded images, CIFAR-10 and folders such as ImageNet's."""

import pickle

import numpy as np
import pytest
import torch
import torchvision
from miniature_imagenet import folder_data, picture
from PIL import Image

from advbn.base.errors import DataError
from advbn.base.files import filled_path
from advbn.base.sections import Cifar10
from advbn.images.batches import split_indices
from advbn.images.datasets import Cifar10Data, EmbeddedData, open_set
from advbn.images.openmoji import build_openmoji
from advbn.shifts.cells import cells
from advbn.shifts.corruptions import CORRUPTIONS
from advbn.shifts.published import open_published, published_cells

CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_published_corruptions_stand_in_for_generated_ones(imagenet):
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            picture(imagenet / "C" / name / str(severity) / "n01443537" / "x.JPEG", (64, 64))
    data = folder_data(imagenet / "imagenet")
    opened = open_published(data, {"corruptions": imagenet / "C", "sketch": None})
    assert [(s, c) for s, c, _ in published_cells(data, opened)] == [
        ("corruptions", f"{n}/{s}") for n in CORRUPTIONS for s in range(1, 6)
    ]
    (imagenet / "C/fog/3/n01443537/x.JPEG").unlink()
    with pytest.raises(DataError, match="fog/3"):
        open_published(data, {"corruptions": imagenet / "C"})


def test_what_is_wrong_with_a_folder_is_said(imagenet):
    data = imagenet / "imagenet"
    for picture_ in (data / "val/n01484850").iterdir():
        picture_.rename(picture_.with_suffix(".txt"))
    with pytest.raises(
        DataError,
        match=f"the validation set is incomplete: {data}/val: Found no valid file for the classes n01484850",
    ):
        folder_data(data)
    (data / "val").rename(data / "validation")
    with pytest.raises(
        DataError,
        match=f"no images at {data}/val; expected are train/ and val/.*; ImageNet is offered at "
        f"https://www.image-net.org",
    ):
        folder_data(data)
    for part in ("train", "val"):
        (imagenet / "flat" / part).mkdir(parents=True)
    picture(imagenet / "flat/train/a.JPEG", (40, 40))
    with pytest.raises(
        DataError, match="flat/train has no class folders; expected is a folder with pictures for each class"
    ):
        folder_data(imagenet / "flat")


def test_cifar10_in_both_layouts_is_the_same_set(tmp_path):
    pixels = {
        name: np.random.default_rng(i).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
        for i, name in enumerate(("train", "test"))
    }
    labels = list(range(10)) * 2
    batches = tmp_path / "original/cifar-10-batches-py"
    batches.mkdir(parents=True)
    made = Cifar10Batches(batches, pixels, labels)
    made.write()
    for part, images in pixels.items():
        for i, (image, label) in enumerate(zip(images, labels)):
            path = tmp_path / "folders" / part / CIFAR_NAMES[label] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    a = Cifar10Data(tmp_path / "folders")

    with made.trusted():
        b = Cifar10Data(tmp_path / "original")
    assert a.classes == b.classes == tuple(CIFAR_NAMES)
    for one, other in ((a.train(0), b.train(0)), (a.test(0), b.test(0))):
        assert sorted((t, x.tobytes()) for t, x in zip(one.targets.tolist(), one.images.numpy())) == sorted(
            (t, x.tobytes()) for t, x in zip(other.targets.tolist(), other.images.numpy())
        )
    assert len(Cifar10Data(tmp_path / "folders", test_images=5).test(1)) == 5


class Cifar10Batches:
    "The original format, with its own checksums in place of the published files'."

    def __init__(self, folder, pixels, labels):
        self.folder, self.pixels, self.labels = folder, pixels, labels

    def write(self):
        rows = self.pixels["train"].reshape(20, -1)
        parts = {
            f"data_batch_{i + 1}": (rows[4 * i : 4 * i + 4], self.labels[4 * i : 4 * i + 4]) for i in range(5)
        }
        parts["test_batch"] = (self.pixels["test"].reshape(20, -1), self.labels)
        for name, (data, labels) in parts.items():
            (self.folder / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
        (self.folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR_NAMES}))

    def trusted(self):
        from hashlib import md5
        from unittest.mock import patch

        sums = {p.name: md5(p.read_bytes()).hexdigest() for p in self.folder.iterdir()}
        cls = torchvision.datasets.CIFAR10
        return patch.multiple(
            cls,
            train_list=[[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)],
            test_list=[["test_batch", sums["test_batch"]]],
            meta={**cls.meta, "md5": sums["batches.meta"]},
        )


def test_a_damaged_cifar10_is_refused(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="no CIFAR-10 at .*neither train/ and test/"):
        Cifar10Data(tmp_path)


def test_paths_fill_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGES", str(tmp_path))
    assert (
        filled_path("$IMAGES/x", tmp_path / "y") == tmp_path / "x"
        and filled_path("data", tmp_path) == tmp_path / "data"
    )
    with pytest.raises(DataError, match="NOTHERE"):
        filled_path("${NOTHERE}/x", tmp_path)
    with pytest.raises(DataError, match="classes is 10"):
        open_set(Cifar10(name="cifar10", root="tree", classes=10), imagenet_like(tmp_path))


def imagenet_like(folder):
    for part in ("train", "test"):
        for c in ("cat", "dog"):
            picture(folder / "tree" / part / c / "0.JPEG", (32, 32))
    return folder


@pytest.mark.slow
def test_no_test_image_is_trained_on_and_line_art_matches(root):
    data = EmbeddedData(root / "data")
    for seed in range(3):
        assert not set(data.train(seed).names) & set(data.test(seed).names)
        numbers = data.test_indices(seed)
        made = list(cells(data.test(seed), numbers, line_art=data.line_art(numbers)))
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


def test_what_the_first_four_seeds_leave_is_never_tested(root):
    data = EmbeddedData(root / "data")
    common, images = set(data.common_train(range(4)).names), data.images
    assert set(data.common_train(range(40)).names) == common and len(common) > 500
    for seed in range(12):
        train, test = data.train(seed), data.test(seed)
        assert not common & set(test.names) and set(train.names) | set(test.names) == set(images.names)
        assert [(test.targets == c).sum().item() for c in range(9)] == [
            round((images.targets == c).sum().item() / 4) for c in range(9)
        ]
        if seed < 4:
            assert torch.equal(data.test_indices(seed), split_indices(images.targets, images.names, seed)[1])
    assert len({tuple(data.test_indices(seed).tolist()) for seed in range(12)}) == 12
