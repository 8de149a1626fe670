"""Folders, data sets, pictures in memory and published sets as one kind of source."""

import numpy as np
import pytest
import torch
from miniature_imagenet import picture
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2.functional import pil_to_tensor

from advbn.adapters.sources import (
    FolderReading,
    as_pixels,
    chosen_shifts,
    classes_under,
    domains_of,
    opened,
    shown,
    source_of,
)
from advbn.base.errors import DataError
from advbn.images.batches import read_images
from advbn.images.decoding import read_picture
from advbn.images.preprocessing import Preprocessing
from advbn.shifts.cells import made_alone
from advbn.shifts.corruptions import CORRUPTIONS
from advbn.shifts.published import CIFAR10

HERE = FolderReading(workers=0)


def by_number(source, wanted=Preprocessing(), reading=HERE):
    "`{number: (target, bytes)}` of all that a source gives, and the largest piece."
    found, most = {}, 0
    for numbers, images in source.read(wanted, reading):
        most = max(most, len(images))
        for number, target, pixels in zip(numbers.tolist(), images.targets.tolist(), images.images):
            found[number] = (target, pixels.numpy().tobytes())
    return found, most


@pytest.mark.parametrize(
    "wanted", [Preprocessing(), Preprocessing(size=24, resize=30, interpolation="bicubic")]
)
def test_one_set_is_the_same_images_in_every_form(emoji_folder, wanted):
    tree = ImageFolder(emoji_folder)
    pairs = [(pil_to_tensor(image), target) for image, target in tree]
    forms = [tree, read_images(emoji_folder), pairs, iter(pairs), DataLoader(pairs, batch_size=5)]
    forms.append([(np.asarray(image), torch.tensor(target)) for image, target in tree])
    expected, _ = by_number(source_of(emoji_folder), wanted)
    assert len(expected) == 12
    for form in forms:
        assert by_number(source_of(form), wanted)[0] == expected, type(form)
    assert (
        source_of(DataLoader(Subset(tree, [3, 4]))).classes
        == source_of(emoji_folder).classes
        == tuple(tree.classes)
    )
    few, _ = by_number(source_of(emoji_folder), wanted, FolderReading(most=5, workers=0))
    assert few == by_number(source_of(tree), wanted, FolderReading(most=5))[0] and len(few) == 5
    assert (
        next(source_of(tree).read(wanted, HERE))[1].names
        == next(source_of(emoji_folder).read(wanted, HERE))[1].names
    )


def test_a_data_set_is_read_a_piece_at_a_time():
    class Counted(torch.utils.data.Dataset):
        asked = 0

        def __len__(self):
            return 1000

        def __getitem__(self, i):
            Counted.asked += 1
            return Image.new("L", (9, 9), i % 256), i % 3

    pieces = source_of(Counted()).read(Preprocessing(), HERE)
    _, first = next(pieces)
    assert len(first) == 64 and Counted.asked == 64 and first.images.shape == (64, 3, 9, 9)
    assert by_number(source_of(Counted()))[1] == 64


@pytest.mark.parametrize(
    "pairs, said",
    [
        ([(torch.zeros(3, 8, 8), 0)], "torch.float32 .* as they are before any transform"),
        ([("a.png", 0)], "an image is str"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], "needed are pairs of an image and its target"),
        ([(Image.new("RGB", (9, 9)), 0), (Image.new("RGB", (8, 9)), 0)], "differ in size, such as .* x 9"),
    ],
)
def test_what_is_no_image_is_refused(pairs, said):
    with pytest.raises(DataError, match=said):
        list(source_of(pairs).read(Preprocessing(), HERE))


def test_what_is_no_set_of_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="images is a int; allowed are a folder"):
        source_of(3)
    with pytest.raises(DataError, match="no images at"):
        source_of(tmp_path / "nothing")
    with pytest.raises(ValueError, match="shifts has 'cleen'.*did you mean 'clean'"):
        opened(tmp_path, "cleen")
    grey = as_pixels(torch.arange(64, dtype=torch.uint8).view(1, 8, 8))
    assert grey.shape == (3, 8, 8) and grey[0].equal(grey[2])


def test_shifts_are_chosen_by_name():
    assert chosen_shifts() == chosen_shifts(["all"]) == made_alone()
    assert chosen_shifts("sketch, clean") == chosen_shifts(("clean", "sketch")) == ("clean", "sketch")
    with pytest.raises(ValueError, match="shifts is empty"):
        chosen_shifts("")


def test_the_domains_of_a_folder_are_shifts(tmp_path):
    for domain, classes in (("photo", "ab"), ("sketch", "ab"), ("cartoon", "b")):
        for name in classes:
            picture(tmp_path / domain / name / "0.JPEG", (40, 40))
    (tmp_path / "notes.txt").touch()
    assert [*domains_of(tmp_path)] == ["photo", "cartoon", "sketch_domain"]
    parts = opened(tmp_path)
    assert [part.cell for part in parts] == [(s, "all") for s in ("photo", "cartoon", "sketch_domain")]
    names = [images.names for part in parts for _, _, images in shown(part, Preprocessing(), HERE)]
    assert sorted(sum(names, ())) == [
        *(
            "cartoon/b/0.JPEG",
            "photo/a/0.JPEG",
            "photo/b/0.JPEG",
            "sketch_domain/a/0.JPEG",
            "sketch_domain/b/0.JPEG",
        ),
    ]
    assert [part.shifts for part in opened(tmp_path, "photo")] == [("photo",)]
    picture(tmp_path / "dogs/a/0.JPEG", (40, 40))
    assert domains_of(tmp_path) == {} and domains_of(tmp_path / "photo") == {}


def imagenet_c_tree(root, classes=("n01440764", "n01443537"), size=(48, 48), groups=False):
    from advbn.shifts.published import GROUPS

    for number, name in enumerate(CORRUPTIONS):
        group = next(g for g, names in GROUPS.items() if name in names) if groups else ""
        for severity in range(1, 6):
            for c in classes:
                picture(root / group / name / str(severity) / c / "0.JPEG", size, seed=number)
    return root


@pytest.mark.parametrize("groups", [False, True])
def test_a_set_of_the_form_of_imagenet_c_is_shown_whole(tmp_path, groups):
    root = imagenet_c_tree(tmp_path / "c", groups=groups)
    parts = opened({"corruptions": root})
    assert classes_under({"corruptions": root, "sketch": tmp_path}) == ("n01440764", "n01443537")
    assert len(parts) == 75 and {part.source.classes for part in parts} == {("n01440764", "n01443537")}
    ((shift, cell, images),) = shown(parts[0], Preprocessing(size=32, resize=40), HERE)
    assert (shift, cell) == ("corruptions", "gaussian_noise/1") and images.images.shape[-2:] == (32, 32)
    whole = read_picture(next((root / "noise" if groups else root).glob("gaussian_noise/1/*01440764/0.JPEG")))
    pixels = images.images[images.names.index("n01440764/0")]
    assert (
        pixels.float() - pil_to_tensor(whole.resize((32, 32), Image.Resampling.BILINEAR)).float()
    ).abs().max() <= 1
    (root / ("noise/gaussian_noise/3" if groups else "gaussian_noise/3")).rename(tmp_path / "away")
    with pytest.raises(DataError, match="ImageNet-C is missing"):
        opened({"corruptions": root})


def test_arrays_of_cifar_10_c_are_read_when_they_are_asked_for(tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10), 5))
    for name in CORRUPTIONS:
        np.save(tmp_path / f"{name}.npy", random.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8))
    parts = opened({"corruptions": str(tmp_path)})
    assert classes_under({"corruptions": str(tmp_path)}) == CIFAR10
    assert len(parts) == 75 and parts[0].source.classes == CIFAR10
    ((shift, cell, images),) = shown(parts[7], Preprocessing(), HERE)
    expected = np.load(tmp_path / "shot_noise.npy")[20:30].transpose(0, 3, 1, 2)
    order = [int(name) for name in images.names]
    assert cell == "shot_noise/3" and (images.images.numpy() == expected[order]).all()
    assert images.targets.tolist() == order
    (tmp_path / "fog.npy").unlink()
    with pytest.raises(DataError, match="CIFAR-10-C is missing: no .*fog.npy"):
        opened({"corruptions": str(tmp_path)})
