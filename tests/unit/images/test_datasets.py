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
from advbn.base.sections import DOMAINS, Cifar10, Pacs, TinyImageNet
from advbn.images.batches import split_indices
from advbn.images.datasets import Cifar10Data, EmbeddedData, PacsData, TinyImageNetData, open_set
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


def tiny_imagenet(root, wnids=("n01443537", "n01629819"), train=6, val=4):
    "Tiny-ImageNet in miniature, as folders of classes."
    for number, wnid in enumerate(wnids):
        for part, count in (("train", train), ("val", val)):
            for i in range(count):
                picture(
                    root / part / wnid / f"{part}_{number}_{i}.JPEG",
                    (64, 64),
                    seed=100 * number + 10 * i + count,
                )
    return root


def as_offered(root, folder):
    "The same, laid out as it is offered."
    lines = []
    for path in sorted((root / "train").rglob("*.JPEG")):
        place = folder / "train" / path.parent.name / "images" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    for path in sorted((root / "val").rglob("*.JPEG")):
        place = folder / "val" / "images" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
        lines.append(f"{path.name}\t{path.parent.name}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def tiny_section(root, **options):
    return TinyImageNet(name="tiny-imagenet", root=str(root), classes=2, **options)


def test_tiny_imagenet_is_the_same_in_both_layouts(tmp_path):
    section = tiny_section("x")
    one = open_set(section.model_copy(update={"root": str(tiny_imagenet(tmp_path / "a"))}), tmp_path)
    other = TinyImageNetData(as_offered(tmp_path / "a", tmp_path / "b"), section)
    assert one.classes == other.classes == ("n01443537", "n01629819")
    assert torch.equal(one.train(0).images, other.train(5).images) and len(one.train(0)) == 12
    assert torch.equal(one.test(0).images, other.test(0).images) and len(one.test(0)) == 8
    assert torch.equal(one.test(0).targets, other.test(0).targets)
    (tmp_path / "b/val/val_annotations.txt").write_text("val_0_0.JPEG\tn01443538\t0\t0\t62\t62\n")
    with pytest.raises(DataError, match="says 'val_0_0.JPEG.*one of 2 classes"):
        TinyImageNetData(tmp_path / "b", section)


def test_the_seed_draws_which_training_images_are_taken_and_the_test_images_are_fixed(tmp_path):
    data = TinyImageNetData(
        tiny_imagenet(tmp_path), tiny_section("x", train_images_per_class=3, test_images=5)
    )
    assert data.train(0).names == data.train(0).names != data.train(1).names
    assert all(data.train(seed).targets.bincount().tolist() == [3, 3] for seed in (0, 1))
    assert len(data.test(0)) == 5 and data.test(0).names == data.test(1).names
    assert data.common_train([1, 0]).names == data.train(1).names


def pacs(root, size=(40, 40)):
    "PACS in miniature: four domains of two classes with ten pictures each."
    for d, domain in enumerate(DOMAINS):
        for c, word in enumerate(("dog", "elephant")):
            for i in range(10):
                picture(root / domain / word / f"pic_{i:03d}.jpg", size, seed=1000 * d + 100 * c + i)
    return root


@pytest.mark.parametrize(
    "source, trained, others",
    [
        ("photo", 18, {"art_painting": 20, "cartoon": 20, "sketch_domain": 20}),
        ("sketch", 18, {"photo": 20, "art_painting": 20, "cartoon": 20}),
        ("all but sketch", 54, {"sketch_domain": 20}),
    ],
)
def test_domains_that_are_not_trained_on_are_shifts(tmp_path, source, trained, others):
    section = Pacs(name="pacs", root=str(pacs(tmp_path)), classes=2, source=source, size=32)
    data = open_set(section, tmp_path)
    train, test = data.train(0), data.test(0)
    assert len(train) == trained and len(test) == trained // 9 and not set(train.names) & set(test.names)
    assert train.images.shape[1:] == (3, 32, 32)
    opened = open_published(data, {})
    assert {s: len(images) for s, _, images in published_cells(data, opened)} == others
    assert {tuple(images.images.shape[1:]) for _, _, images in published_cells(data, opened)} == {(3, 32, 32)}


def test_official_lists_divide_pacs_where_they_are(tmp_path):
    pacs(tmp_path)
    (tmp_path / "splits").mkdir()
    lines = [
        f"photo/{w}/pic_{i:03d}.jpg {c}" for c, w in enumerate(("dog", "elephant"), 1) for i in range(10)
    ]
    (tmp_path / "splits/photo_train_kfold.txt").write_text("\n".join(lines[2:]) + "\n")
    (tmp_path / "splits/photo_crossval_kfold.txt").write_text("\n".join(lines[:2]) + "\n")
    section = Pacs(name="pacs", root="x", classes=2)
    data = PacsData(tmp_path, section)
    assert (
        data.test(0).names == ("photo/dog/pic_000.jpg", "photo/dog/pic_001.jpg") and len(data.train(0)) == 18
    )
    (tmp_path / "splits/photo_train_kfold.txt").write_text("photo/dog/pic_003.jpg 2")
    with pytest.raises(
        DataError, match="pic_003.jpg 2'; expected is a picture .* number of its class, from 1"
    ):
        PacsData(tmp_path, section)


def test_domains_of_other_classes_and_missing_ones_are_said(tmp_path):
    section = Pacs(name="pacs", root="x", classes=2)
    (pacs(tmp_path) / "cartoon/dog").rename(tmp_path / "cartoon/cat")
    with pytest.raises(DataError, match="cartoon and photo have different classes, cat, dog"):
        PacsData(tmp_path, section)
    (tmp_path / "cartoon").rename(tmp_path / "comics")
    with pytest.raises(DataError, match="no images at .*cartoon; it is offered at"):
        PacsData(tmp_path, section)
