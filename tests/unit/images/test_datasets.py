"""CIFAR-10 and ImageNet behind the same interface: formats, refusals, and ImageNet's protocol in miniature up
to the tables."""

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from advbn.config import Data, parse_params
from advbn.errors import DataError, ParameterError
from advbn.evidence.tables import (
    decoded_markdown,
    decoded_table,
    mce_table,
    robustness_markdown,
    robustness_table,
)
from advbn.files import file_digest, filled_path
from advbn.images.augmentation import POLICIES
from advbn.images.batches import FolderBatches, read_images
from advbn.images.datasets import Cifar10Data, FolderData, open_set
from advbn.networks.models import build_model
from advbn.shifts.cells import cropped
from advbn.shifts.corruptions import CORRUPTIONS
from advbn.shifts.filters import edges
from advbn.training.runs import evaluate, load_data, pretrain, shift, train, train_autoencoder

CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def picture(path, size, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(
        0, 256, (size[1], size[0], {"L": 1, "RGB": 3, "CMYK": 4}[mode]), dtype=np.uint8
    )
    Image.fromarray(pixels.squeeze(), mode).save(path, format="JPEG", quality=90)


def imagenet_tree(root, wnids=("n01440764", "n01443537", "n01484850"), train=8, val=2):
    "ImageNet's layout: synset folders, JPEGs of odd sizes, one of them grey and one CMYK."
    number = 0
    for part, count in (("train", train), ("val", val)):
        for wnid in wnids:
            for i in range(count):
                number += 1
                mode = {1: "L", 2: "CMYK"}.get(number % 9, "RGB")
                name = f"{wnid}_{i}" if part == "train" else f"ILSVRC2012_val_{number:08d}"
                picture(root / part / wnid / f"{name}.JPEG", (40 + 7 * i, 90 - 5 * i), mode, number)
    return root


@pytest.fixture
def imagenet(tmp_path):
    """A folder that is a project of its own: ImageNet in miniature, two classes of sketches, weights, and
    params.yaml."""
    imagenet_tree(tmp_path / "imagenet")
    for wnid in ("n01484850", "n01440764"):
        picture(tmp_path / "sketches" / wnid / "sketch_0.JPEG", (70, 50), "L", 5)
    torch.manual_seed(0)
    torch.save(build_model("torchvision/resnet50", 3).state_dict(), tmp_path / "resnet50.pth")
    torch.save(build_model("small_vgg", 3).state_dict(), tmp_path / "vgg.pth")
    return tmp_path


def parameters(folder, root):
    content = yaml.safe_load((root / "params.yaml").read_text())
    profile = content["profiles"]["imagenet"]
    profile["data"].update(root=str(folder / "imagenet"), classes=3, size=64, resize=72, workers=0)
    profile["data"]["sets"]["sketch"] = str(folder / "sketches")
    profile["network"].update(
        weights=str(folder / "resnet50.pth"), weights_sha256=file_digest(folder / "resnet50.pth")
    )
    profile["finetune"].update(epochs=2, batch_size=8, milestones=[1])
    profile["pictures"].update(
        network="small_vgg",
        after="features.relu2_2",
        weights=str(folder / "vgg.pth"),
        weights_sha256=file_digest(folder / "vgg.pth"),
    )
    profile["pictures"]["decoder"].update(batch_size=8)
    content.update(
        profile="imagenet",
        seeds=[0],
        methods={k: content["methods"][k] for k in ("standard", "finetune", "advbn")},
    )
    return content


def test_imagenets_protocol_in_miniature_up_to_the_tables(imagenet, root, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(imagenet))
    params = parse_params(parameters(imagenet, root))
    assert pretrain(params, None, 0).empty  # published weights
    network = torch.load(imagenet / "checkpoints/imagenet/pretrained/seed0-clean.pt", weights_only=True)
    assert torch.equal(
        network["conv1.weight"], torch.load(imagenet / "resnet50.pth", weights_only=True)["conv1.weight"]
    )
    histories = {m: train(params, m, 0) for m in params.methods}
    assert (
        histories["advbn"].lr.tolist() == pytest.approx([0.001, 0.0001])
        and (histories["advbn"].adversarial_loss > 0).all()
    )
    plain = torchvision.models.resnet50(num_classes=3)
    for branch in ("clean", "adversarial"):
        plain.load_state_dict(
            torch.load(imagenet / f"checkpoints/imagenet/advbn/seed0-{branch}.pt", weights_only=True)
        )
        assert torch.equal(plain.layer1[0].conv1.weight, network["layer1.0.conv1.weight"])
        assert not torch.equal(plain.layer2[0].conv1.weight, network["layer2.0.conv1.weight"])
    assert len(train_autoencoder(params)[1]) == 1
    listed = shift(params, 0)
    assert set(listed["shift"]) == {
        "clean",
        "corruptions",
        "instagram",
        "sketch",
        "stylized",
        "reconstructed",
        "advbn",
    }
    runs = pd.concat([evaluate(params, m, 0)[0] for m in params.methods])
    assert (runs[runs["shift"] != "sketch"].images == 6).all() and (
        runs[runs["shift"] == "sketch"].images == 2
    ).all()
    assert set(runs[runs["shift"] == "sketch"].source) == {"published"} and set(
        runs[runs["shift"] == "corruptions"].source
    ) == {"generated"}
    table, mce = robustness_table(runs, "imagenet"), mce_table(runs, "imagenet", "alexnet")
    text = robustness_markdown(table, mce, params, runs)
    for words in (
        "mCE against AlexNet",
        "One seed, hence no intervals",
        "Sketch: published as a set",
        "-C, Instagram, Stylized: generated",
    ):
        assert words in text
    assert "nan" not in text + decoded_markdown(decoded_table(runs, "imagenet"), params)


@pytest.mark.promise("Several processes", "evaluation counts every image once, as one process does")
def test_two_processes_evaluate_as_one_does_and_a_streamed_set_is_written(imagenet, root, monkeypatch):
    "The second process has no piece of so small a set, and must not be waited for in vain."
    monkeypatch.setenv("ADVBN_ROOT", str(imagenet))
    content = parameters(imagenet, root)
    (imagenet / "params.yaml").write_text(yaml.safe_dump(content))
    params = parse_params(content)
    pretrain(params, None, 0)
    train(params, "standard", 0)
    train_autoencoder(params)
    alone, _ = evaluate(params, "standard", 0)
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "advbn", "evaluate", "standard", "--seed", "0", "--save"],
        cwd=imagenet,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (
        alone.groupby(["branch", "shift"], sort=False)
        .accuracy.mean()
        .unstack(sort=False)
        .round(2)
        .to_string()
        in done.stdout
    )
    kept = pd.read_csv(imagenet / "results/imagenet/runs/standard.csv").set_index(["branch", "shift", "cell"])
    assert (kept.correct == alone.set_index(["branch", "shift", "cell"]).correct).all() and (
        kept.images == alone.set_index(["branch", "shift", "cell"]).images
    ).all()
    for command, words in (
        (["make-set", "made"], "6 images written"),
        (["make-set", "made"], "0 images written"),
    ):
        assert (
            words
            in subprocess.run(
                [sys.executable, "-m", "advbn", *command],
                cwd=imagenet,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    made = read_images(imagenet / "made")
    assert made.images.shape == (6, 3, 72, 72) and made.classes == ("n01440764", "n01443537", "n01484850")


@pytest.mark.parametrize("name", ["resnet50.pth", "vgg.pth", "paintings"])
def test_a_file_that_params_name_is_the_one_that_is_meant(imagenet, root, monkeypatch, name):
    "DVC follows params.yaml, not the files that it names; so their digests stand there."
    monkeypatch.setenv("ADVBN_ROOT", str(imagenet))
    picture(imagenet / "paintings/a.png", (64, 64))
    content = parameters(imagenet, root)
    section = content["profiles"]["imagenet"]["network" if name == "resnet50.pth" else "pictures"]
    key = "styles_sha256" if name == "paintings" else "weights_sha256"
    if name == "paintings":
        section.update(styles="paintings", styles_sha256=file_digest(imagenet / name))
        printed = subprocess.run(
            "LC_ALL=C sha256sum * | sha256sum",
            shell=True,
            cwd=imagenet / name,
            capture_output=True,
            text=True,
        ).stdout
        assert printed.split()[0] == section[key]
    verb = (lambda params: pretrain(params, None, 0)) if name == "resnet50.pth" else train_autoencoder
    with open(imagenet / name if name != "paintings" else imagenet / name / "a.png", "ab") as file:
        file.write(b"another")
    found = file_digest(imagenet / name)
    for said, words in (
        (section[key], f"says that of another, {section[key]}; if this one is meant"),
        (None, "does not say it"),
    ):
        section[key] = said
        with pytest.raises(
            ParameterError,
            match=f"{name} has the SHA-256 {found}, and params.yaml {words}.*: {key}: {found}$",
        ):
            verb(parse_params(content))
    assert not (imagenet / "checkpoints").exists()


def test_streamed_images_take_every_policy(imagenet):
    batches = {
        policy: next(
            FolderBatches(imagenet / "imagenet/train", 64, 8, seed=0, policy=policy, workers=0).batches(0)
        )
        for policy in POLICIES
    }
    for policy, (images, targets) in batches.items():
        assert images.shape == (8, 3, 64, 64) and images.isfinite().all()
        assert torch.equal(images, batches["none"][0]) == (policy == "none")
        assert targets.shape == ((8, 3) if policy in ("mixup", "cutmix") else (8,))
    again = next(
        FolderBatches(imagenet / "imagenet/train", 64, 8, seed=0, policy="augmix", workers=2).batches(0)
    )
    assert torch.equal(again[0], batches["augmix"][0])  # the same in worker processes
    with pytest.raises(ValueError, match="augmentation is 'augmax'; allowed are none, augmix"):
        FolderBatches(imagenet / "imagenet/train", 64, 8, seed=0, policy="augmax")


def test_streamed_and_stored_images_are_prepared_as_the_paper_says(imagenet):
    data = FolderData(imagenet / "imagenet", {"sketch": imagenet / "sketches"}, size=64, resize=72, workers=0)
    seen = {
        name: image for indices, piece in data.pieces(0) for name, image in zip(piece.names, piece.images)
    }
    assert len(seen) == 6
    preset = torchvision.transforms.v2.Compose(
        [torchvision.transforms.v2.Resize(72, antialias=True), torchvision.transforms.v2.CenterCrop(64)]
    )
    for name, image in seen.items():
        expected = preset(
            torchvision.transforms.v2.functional.pil_to_tensor(
                Image.open(imagenet / "imagenet/val" / name).convert("RGB")
            )
        )
        assert torch.equal(image, expected)
    for (_, piece), (_, wide) in zip(
        data.pieces(0), data.pieces(0, wide=True)
    ):  # what adversarial images are made from, and cropped to
        assert (
            wide.names == piece.names
            and wide.images.shape[-2:] == (72, 72)
            and torch.equal(cropped(data, wide.images), piece.images)
        )
    sketches = list(data.published_cells())
    assert [(s, c, images.targets.sort().values.tolist()) for s, c, images in sketches] == [
        ("sketch", "ImageNet-Sketch", [0, 2])
    ]


@pytest.mark.promise("Several processes", "evaluation counts every image once, as one process does")
def test_processes_share_the_images_and_count_none_twice(imagenet):
    names = [
        [
            n
            for _, piece in FolderData(
                imagenet / "imagenet", size=64, resize=72, workers=0, rank=r, world=2
            ).pieces(0)
            for n in piece.names
        ]
        for r in (0, 1)
    ]
    assert len(sum(names, [])) == len(set(sum(names, []))) == 6


def test_published_corruptions_stand_in_for_generated_ones(imagenet):
    for name in CORRUPTIONS:
        for severity in range(1, 6):
            picture(imagenet / "C" / name / str(severity) / "n01443537" / "x.JPEG", (64, 64))
    data = FolderData(
        imagenet / "imagenet", {"corruptions": imagenet / "C", "sketch": None}, size=64, workers=0
    )
    assert data.published == ("corruptions",)
    assert [(s, c) for s, c, _ in data.published_cells()] == [
        ("corruptions", f"{n}/{s}") for n in CORRUPTIONS for s in range(1, 6)
    ]
    (imagenet / "C/fog/3/n01443537/x.JPEG").unlink()
    with pytest.raises(DataError, match="fog/3"):
        FolderData(imagenet / "imagenet", {"corruptions": imagenet / "C"}, size=64, workers=0)


def test_what_is_wrong_with_a_folder_is_said(imagenet):
    data = imagenet / "imagenet"
    for picture_ in (data / "val/n01484850").iterdir():
        picture_.rename(picture_.with_suffix(".txt"))
    with pytest.raises(
        DataError,
        match=f"the validation set is incomplete: {data}/val: Found no valid file for the classes n01484850",
    ):
        FolderData(data)
    (data / "val").rename(data / "validation")
    with pytest.raises(
        DataError,
        match=f"no images at {data}/val; expected are train/ and val/.*; ImageNet is offered at "
        f"https://www.image-net.org",
    ):
        FolderData(data)
    for part in ("train", "val"):
        (imagenet / "flat" / part).mkdir(parents=True)
    picture(imagenet / "flat/train/a.JPEG", (40, 40))
    with pytest.raises(
        DataError, match="flat/train has no class folders; expected is a folder with pictures for each class"
    ):
        FolderData(imagenet / "flat")


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda p: p["data"].update(root="$NO_SUCH_PLACE"),
            "environment variable NO_SUCH_PLACE, which is not set",
        ),
        (lambda p: p["data"].update(root="/nowhere"), "no images at /nowhere/train"),
        (lambda p: p["data"].update(classes=4), "classes is 4 and .* has 3 classes"),
        (
            lambda p: p["data"]["sets"].update(stylized="/nowhere"),
            "Stylized-ImageNet is missing: no /nowhere; it is offered at https",
        ),
    ],
)
def test_missing_folders_are_named_before_work_begins(imagenet, root, monkeypatch, change, words):
    monkeypatch.setenv("ADVBN_ROOT", str(imagenet))
    content = parameters(imagenet, root)
    change(content["profiles"]["imagenet"])
    with pytest.raises(DataError, match=words):
        load_data(parse_params(content))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda p: p["data"]["sets"].pop("sketch"), "needs sets.sketch"),
        (lambda p: p.pop("finetune"), "'profiles.imagenet.finetune' is missing"),
        (lambda p: p["network"].pop("weights"), "weights and pretrain are both missing"),
        (
            lambda p: p["pictures"].update(classifier={"epochs": 1, "batch_size": 8, "lr": 0.1}),
            "weights and classifier are both given",
        ),
        (lambda p: p["data"].update(name="imagnet"), "profiles.imagenet.data.name is 'imagnet'"),
        (lambda p: p["data"].update(name="openmoji"), "openmoji has no published set for sketch"),
    ],
)
def test_profiles_that_cannot_work_are_refused(imagenet, root, change, words):
    content = parameters(imagenet, root)
    change(content["profiles"]["imagenet"])
    with pytest.raises(ParameterError) as caught:
        parse_params(content)
    assert words in str(caught.value)


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
    import advbn.sets

    with made.trusted():
        b = advbn.sets.Cifar10Data(tmp_path / "original")
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


def test_edges_are_dark_where_the_image_changes():
    image = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    image[0, :, :, 16:] = 200
    drawn = edges(image)
    assert drawn.shape == image.shape and drawn.dtype == torch.uint8
    assert (
        (drawn[1] == 255).all()
        and (drawn[0, :, :, :15] == 255).all()
        and (drawn[0, :, 1:-1, 15:17] == 0).all()
    )
    assert torch.equal(drawn[0, 0], drawn[0, 2]) and torch.equal(
        edges(image.flip(3))[0, 0, :, :], drawn[0, 0].flip(1)
    )


def test_paths_fill_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGES", str(tmp_path))
    assert (
        filled_path("$IMAGES/x", tmp_path / "y") == tmp_path / "x"
        and filled_path("data", tmp_path) == tmp_path / "data"
    )
    with pytest.raises(DataError, match="NOTHERE"):
        filled_path("${NOTHERE}/x", tmp_path)
    with pytest.raises(DataError, match="classes is 10"):
        open_set(Data(name="cifar10", root="tree", classes=10), imagenet_like(tmp_path))


def imagenet_like(folder):
    for part in ("train", "test"):
        for c in ("cat", "dog"):
            picture(folder / "tree" / part / c / "0.JPEG", (32, 32))
    return folder
