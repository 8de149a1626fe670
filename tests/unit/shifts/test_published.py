"""Published sets in the layouts in which they are published."""

import numpy as np
import pytest
from PIL import Image

from advbn.base.errors import DataError
from advbn.images.folders import NamedFolder
from advbn.shifts.published import CIFAR10, cifar10_c, imagenet_c, instagram_filters


def tree(root, *files):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)


def test_imagenet_c_folders_and_partial_classes(tmp_path):
    tree(
        tmp_path, "noise/gaussian_noise/1/n02/x.JPEG", "noise/gaussian_noise/1/n01/y.JPEG", "fog/2/n01/z.JPEG"
    )
    (tmp_path / "noise/gaussian_noise/1/n00").mkdir()  # an empty class is no class
    classes = ["n03", "n01", "n00", "n02"]
    found = imagenet_c(tmp_path, "gaussian_noise", 1, classes)
    assert sorted((p.split("/")[-2], t) for p, t in found.samples) == [("n01", 1), ("n02", 3)]
    assert imagenet_c(tmp_path, "fog", 2, classes).targets == [1]
    for arguments, words in (
        (("snow", 1), "no .*weather/snow/1; it is offered at https"),
        (("gaussian_noise", 2), "gaussian_noise/2; it is offered"),
    ):
        with pytest.raises(DataError, match=words):
            imagenet_c(tmp_path, *arguments, classes)
    with pytest.raises(DataError, match="the class 'n01'; the network knows 1 classes"):
        imagenet_c(tmp_path, "fog", 2, ["n011"])
    with pytest.raises(DataError, match="the class 'n01'; the network knows 0 classes$"):
        imagenet_c(tmp_path, "fog", 2, [])
    with pytest.raises(ValueError, match="no corruption 'fogg'; the nearest are fog"):
        imagenet_c(tmp_path, "fogg", 1, classes)
    with pytest.raises(ValueError, match="severity is 6"):
        imagenet_c(tmp_path, "fog", 6, classes)
    with pytest.raises(DataError, match="ImageNet-C is missing: no .*nowhere"):
        imagenet_c(tmp_path / "nowhere", "fog", 1, classes)


@pytest.mark.parametrize("name", ["ImageNet-Sketch", "Stylized-ImageNet"])
def test_folder_sets(tmp_path, name):
    tree(tmp_path, "n02/a.JPEG", "n02/b.JPEG")
    assert NamedFolder(tmp_path, ["n01", "n02"], name).targets == [1, 1]
    with pytest.raises(DataError, match=f"{name} is missing"):
        NamedFolder(tmp_path / "no", ["n01"], name)
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01/notes.txt").write_text("no picture")
    with pytest.raises(
        DataError, match=f"{name} is incomplete: {tmp_path}: .* the classes n01. .*; it is offered at https"
    ):
        NamedFolder(tmp_path, ["n01", "n02"], name)
    with pytest.raises(
        DataError,
        match=f"{name} is damaged: {tmp_path}/n01/notes.txt is a file, expected is a folder; it is offered "
        f"at https",
    ):
        NamedFolder(tmp_path / "n01/notes.txt", ["n01"], name)
    for classes in (["n01"], []):
        with pytest.raises(DataError, match="n01 has no class; .*; it is offered at https"):
            NamedFolder(tmp_path / "n01", classes, name)
    with pytest.raises(DataError, match="the test set is missing: no .*/no$"):
        NamedFolder(tmp_path / "no", ["n01"], "the test set")


def test_instagram_folders(tmp_path):
    tree(tmp_path, "Hefe/n01/a.jpg", "1977/n01/a.jpg")
    assert instagram_filters(tmp_path) == ["1977", "Hefe"]
    with pytest.raises(DataError, match="ImageNet-Instagram is missing"):
        instagram_filters(tmp_path / "no")
    with pytest.raises(DataError, match="a.jpg is a file, expected is a folder"):
        instagram_filters(tmp_path / "Hefe/n01/a.jpg")


def test_cifar10_c_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "snow.npy", images)
    with pytest.raises(DataError, match="labels.npy; it is offered"):
        cifar10_c(tmp_path, "snow", 1)
    np.save(tmp_path / "labels.npy", np.arange(20) % 10)
    cell = cifar10_c(tmp_path, "snow", 3)
    assert np.array_equal(
        cell.images.permute(0, 2, 3, 1).numpy(), images[8:12]
    ) and cell.targets.tolist() == [8, 9, 0, 1]
    backwards = cifar10_c(tmp_path, "snow", 3, CIFAR10[::-1])
    assert backwards.targets.tolist() == [1, 0, 9, 8]
    for severity in (0, 6):
        with pytest.raises(ValueError, match=f"severity is {severity}"):
            cifar10_c(tmp_path, "snow", severity)
    with pytest.raises(DataError, match="classes are a, b"):
        cifar10_c(tmp_path, "snow", 1, ["a", "b"])
    np.save(tmp_path / "labels.npy", np.arange(19))
    with pytest.raises(DataError, match="expected are uint8"):
        cifar10_c(tmp_path, "snow", 1)
    with pytest.raises(DataError, match="fog.npy; it is offered"):
        cifar10_c(tmp_path, "fog", 1)
    with pytest.raises(ValueError, match="no corruption 'snwo'; the nearest are snow"):
        cifar10_c(tmp_path, "snwo", 1)
    for labels in (np.arange(20) % 11, np.full(20, 0.5)):
        np.save(tmp_path / "labels.npy", labels)
        with pytest.raises(DataError, match="labels.npy holds .*; expected are whole numbers from 0 to 9"):
            cifar10_c(tmp_path, "snow", 1)
    good = (tmp_path / "snow.npy").read_bytes()
    for damaged in (b"", b"no", b"PK\x03\x04", good[:60], good[:-1]):
        for name in ("snow", "labels"):
            np.save(tmp_path / "snow.npy", images)
            (tmp_path / f"{name}.npy").write_bytes(damaged)
            with pytest.raises(
                DataError,
                match=f"{tmp_path}/{name}.npy cannot be read as an array: .*; it is offered at https",
            ):
                cifar10_c(tmp_path, "snow", 1)
            np.save(tmp_path / "labels.npy", np.arange(20) % 10)
    with pytest.raises(DataError, match="labels.npy is a file, expected is a folder"):
        cifar10_c(tmp_path / "labels.npy", "snow", 1)
