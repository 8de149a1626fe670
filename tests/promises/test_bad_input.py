"""Bad input, case by case: one or two lines that name it, status 2 before work begins; or images that are
left out, counted and listed."""

import json
import os
import struct
import sys
import zlib
from itertools import count

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, call, copied_project
from lite_profile import LITE
from miniature_imagenet import folder_data
from PIL import Image
from torch import nn

from advbn import AdvBN, corrupt
from advbn.base.config import parse_params
from advbn.base.errors import DataError, WeightsError
from advbn.base.progress import Progress, read_checked
from advbn.base.sections import Training
from advbn.adapters.evaluate import FolderReading, evaluate
from advbn.evidence.evaluation import predict, predict_each, top1_accuracy
from advbn.evidence.testing import made_from
from advbn.images.batches import MemoryBatches, duplicates, read_images
from advbn.images.datasets import Cifar10Data
from advbn.images.decoding import BadImages, Tree, read_picture
from advbn.images.openmoji import build_openmoji
from advbn.method.network import AdvBNNet
from advbn.networks.autoencoder import Autoencoder
from advbn.networks.models import build_model
from advbn.networks.weights import load_into, load_state, save_state
from advbn.shifts.filters import edges, instagram
from advbn.shifts.published import open_published
from advbn.shifts.styles import adversarial, reconstructed, stylized
from advbn.training.loop import finetuning_net, fit, fit_decoder
from advbn.training.run import load_data, setting_of
from advbn.widgets import classify

pytestmark = pytest.mark.filterwarnings("ignore:.*do not end in")


# ---- images


def bomb(path):
    "20,000 x 20,000 pixels in 50 kB."
    rows = zlib.compress(bytes(20_000 * 2_501), 9)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)),
        (b"IDAT", rows),
        (b"IEND", b""),
    )
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
        )
    )


def photo(size=(40, 40), mode="RGB", seed=0):
    bands = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode)


def postscript(path):
    Image.new("RGB", (40, 40)).save(path, "EPS")


def cut(path, keep):
    "A picture of which only a part is there."
    photo().save(path)
    path.write_bytes(path.read_bytes()[:keep])


def altered(path):
    photo().save(path)
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)


BAD = {
    "truncated PNG": ("x.png", lambda p: cut(p, 2000), "x.png cannot be read"),
    "truncated JPEG": ("x.jpg", lambda p: cut(p, 700), "x.jpg cannot be read"),
    "truncated in its header": ("x.png", lambda p: cut(p, 20), "x.png"),
    "truncated WebP": ("x.webp", lambda p: cut(p, 300), "x.webp"),
    "altered PNG": ("x.png", altered, "x.png cannot be read"),
    "empty": ("x.png", lambda p: p.write_bytes(b""), "x.png is empty"),
    "text": (
        "x.jpg",
        lambda p: p.write_text("not a picture\n" * 50),
        "x.jpg is no picture in a known format",
    ),
    "a page of HTML": (
        "x.jpeg",
        lambda p: p.write_text("<html>404</html>"),
        "x.jpeg is no picture in a known format",
    ),
    "1 x 1": (
        "x.png",
        lambda p: photo((1, 1)).save(p),
        "x.png is 1 x 1 pixels; allowed are at least 8 on a side",
    ),
    "3 x 40": ("x.png", lambda p: photo((3, 40)).save(p), "x.png is 3 x 40 pixels"),
    "decompression bomb": (
        "x.png",
        bomb,
        "x.png has more than 89,478,485 pixels, which may be a decompression bomb",
    ),
    "link to nowhere": ("x.png", lambda p: p.symlink_to("nowhere.png"), "x.png cannot be read: No such file"),
    "PostScript": ("x.png", postscript, "x.png is no picture in a known format; allowed are JPEG, PNG"),
    "32 bits": (
        "x.tiff",
        lambda p: Image.fromarray(np.full((40, 40), 200, dtype="int32")).save(p),
        "x.tiff cannot be read: its pixels are whole numbers of 32 bits and unknown range",
    ),
    "floating point": (
        "x.tiff",
        lambda p: Image.fromarray(np.random.rand(40, 40).astype("float32")).save(p),
        "floating point numbers of unknown range",
    ),
}


@pytest.fixture
def folder(tmp_path):
    "Six good pictures in two classes, a network for them, and the arguments that evaluate it."
    for name in ("cats", "dogs"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            photo(seed=i).save(tmp_path / "images" / name / f"{i}.png")
    torch.manual_seed(0)
    save_state(build_model("small_resnet", 2).state_dict(), tmp_path / "net.pt")
    return tmp_path


def evaluation(folder, *more):
    return [
        "evaluate",
        "--model",
        "small_resnet",
        "--weights",
        folder / "net.pt",
        "--data",
        folder / "images",
        "--size",
        "40",
        "--resize",
        "40",
        "--shifts",
        "clean",
        *more,
    ]


@pytest.mark.promise(
    "Bad input", "an image that cannot be read stops with its name, or is left out and listed"
)
@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("case", BAD)
def test_an_image_that_cannot_be_read(folder, refused, run, case, policy):
    name, make, words = BAD[case]
    make(folder / "images/dogs" / name)
    if policy == "error":
        refused(evaluation(folder), words, "on_bad_image: skip")
        refused(["corrupt", folder / "images", folder / "out", "--name", "fog"], words)
        assert not (folder / "out").exists()
    else:
        status, out, err = run(*evaluation(folder, "--on-bad-image", "skip", "--json"))
        assert status == 0 and "1 images could not be read and were left out" in err and words in err
        said = json.loads(out)
        assert said["left_out"] == 1 and said["networks"]["small_resnet"]["rows"]["clean"]["value"] >= 0
        assert (
            run("corrupt", folder / "images", folder / "out", "--name", "fog", "--on-bad-image", "skip")[1]
            .strip()
            .endswith("6 images written")
        )


def test_no_interpreter_is_started_for_a_picture(folder, refused, monkeypatch):
    "Pillow hands PostScript to Ghostscript, whatever the file is called."
    from PIL import EpsImagePlugin

    from advbn.shifts.styles import style_images

    started = folder / "started"
    (folder / "bin").mkdir()
    (folder / "bin/gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (folder / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(Exception):
        Image.open(postscript(folder / "a.eps") or folder / "a.eps").load()  # here it is
    started.unlink()
    postscript(folder / "images/dogs/x.png")
    refused(evaluation(folder), "x.png is no picture in a known format")
    with pytest.raises(DataError, match="the style image .*x.png cannot be read"):
        style_images(40, str(folder / "images/dogs"))
    assert not started.exists()


def test_images_left_out_are_not_counted(folder, tmp_path):
    from advbn.adapters.evaluate import load_network

    cut(folder / "images/dogs/x.png", 2000)
    cut(folder / "images/cats/y.png", 2000)
    bad = BadImages("skip")
    network = load_network("small_resnet", folder / "net.pt", 2)
    for workers in (0, 2):
        reading = FolderReading(40, 40, workers=workers, bad=bad)
        found = evaluate(network, folder / "images", ("clean", "sketch"), reading=reading)
        assert (found.cells.images == 6).all() and found.left_out == len(bad.found) == 2
        assert "2 images could not be read and were left out" in str(found)
    assert "2 images could not be read and were left out" in bad.report() and "truncated" in bad.report()


def quadrants(*colours):
    picture = Image.new("RGB", (40, 40))
    for i, colour in enumerate(colours):
        picture.paste(colour, (20 * (i % 2), 20 * (i // 2), 20 * (i % 2) + 20, 20 * (i // 2) + 20))
    return picture


FOUR = quadrants("red", "green", "blue", "white")


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    FOUR.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=100, subsampling=0)


def transparent(path):
    picture = FOUR.convert("RGBA")
    picture.putalpha(Image.fromarray(np.kron([[255, 255], [255, 0]], np.ones((20, 20))).astype("uint8")))
    picture.paste((9, 9, 9, 0), (20, 20, 40, 40))
    picture.save(path)


GOOD = {  # all of them show four fields, red, green, blue and white, or their greys
    "palette": ("x.png", lambda p: FOUR.convert("P", palette=Image.Palette.ADAPTIVE).save(p), False),
    "RGBA, transparent where it is white": ("x.png", transparent, False),
    "greyscale": ("x.png", lambda p: FOUR.convert("L").save(p), True),
    "CMYK": ("x.tif", lambda p: FOUR.convert("CMYK").save(p), False),
    "16 bits": (
        "x.png",
        lambda p: Image.fromarray(np.asarray(FOUR.convert("L")).astype("uint16") * 257).save(p),
        True,
    ),
    "turned by EXIF": ("x.jpg", turned, False),
    "wrong suffix": ("x.jpg", lambda p: FOUR.save(p, format="PNG"), False),
    "animated": (
        "x.webp",
        lambda p: FOUR.save(p, save_all=True, append_images=[quadrants(*["black"] * 4)], lossless=True),
        False,
    ),
    "unicode name": ("ネコ – кот é.png", lambda p: FOUR.save(p), False),
    "long name": ("n" * 250 + ".png", lambda p: FOUR.save(p), False),
    "one bit": (
        "x.png",
        lambda p: FOUR.convert("L").point(lambda v: 255 * (v > 100)).convert("1").save(p),
        None,
    ),
}


@pytest.mark.promise("Bad input", "unusual images are read as a person would see them")
@pytest.mark.parametrize("case", GOOD)
def test_unusual_images_are_read(tmp_path, case):
    name, make, grey = GOOD[case]
    (tmp_path / "a").mkdir()
    make(tmp_path / "a" / name)
    found = read_images(tmp_path)
    assert found.names == (f"a/{name}",) and found.images.shape == (1, 3, 40, 40)
    expected = np.asarray(FOUR.convert("L").convert("RGB") if grey else FOUR).astype(int)
    if grey is None:
        expected = 255 * (np.asarray(FOUR.convert("L").convert("RGB")) > 100)
    difference = np.abs(found.images[0].permute(1, 2, 0).numpy() - expected)
    assert np.median(difference) <= 2 and np.mean(difference > 40) < 0.02


# ---- sets


def no_images(folder):
    for path in (folder / "images/dogs").iterdir():
        path.rename(path.with_suffix(".txt"))


def a_loop(folder):
    (folder / "images/dogs/again").symlink_to(folder / "images")


@pytest.mark.promise("Bad input", "a set of images that is not what it should be is refused")
@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f: (f / "images").rename(f / "moved"), "no images at"),
        (lambda f: [(f / "images").rename(f / "moved"), (f / "images").touch()], "no images at"),
        (
            lambda f: (f / "images/birds").mkdir() or photo().save(f / "images/birds/0.png"),
            "does not hold this network's weights",
        ),
        (no_images, "Found no valid file for the classes dogs"),
        (a_loop, "is a link that leads back to"),
    ],
    ids=[
        "missing",
        "a file",
        "one class more than the network has",
        "a class without images",
        "a link that leads back",
    ],
)
def test_a_folder_that_is_not_a_set(folder, refused, change, words):
    change(folder)
    refused(evaluation(folder), words, str(folder))


@pytest.mark.promise("Bad input", "a set of images that is not what it should be is refused")
@pytest.mark.parametrize(
    "listed, words",
    [
        ("cats\n", "does not hold this network's weights"),
        ("cats\nbirds\n", "has the class 'dogs'; the network knows 2 classes"),
        ("\n\n", "names no class"),
        ("cats\ndogs\ncrane\nowl\ncrane\n", "the name 'crane' for 2 of its 5 classes, numbers 3 and 5"),
    ],
    ids=["fewer classes", "other classes", "no class", "a name twice"],
)
def test_a_list_of_classes_that_does_not_fit(folder, refused, listed, words):
    (folder / "classes.txt").write_text(listed)
    refused(evaluation(folder, "--classes", folder / "classes.txt"), words)


@pytest.mark.promise("Bad input", "a set of images that is not what it should be is refused")
def test_images_of_several_sizes_and_names_that_clash(folder, refused):
    photo((50, 40)).save(folder / "images/cats/x.png")
    with pytest.raises(DataError, match="1 images under .* differ in size from .*x.png"):
        read_images(folder / "images")
    (folder / "images/cats/x.png").unlink()
    photo().save(folder / "images/cats/0.bmp")
    refused(
        ["corrupt", folder / "images", folder / "out", "--name", "fog"], "would both be written as cats/0.png"
    )


@pytest.mark.promise("Bad input", "a folder that this user may not read is named")
def test_a_folder_that_may_not_be_read(folder):
    "As another user, since the administrator may read everything."
    locked = folder / "images/dogs"
    locked.chmod(0)
    for parent in (folder, *folder.parents):
        if str(parent).startswith("/tmp/") or "pytest" in str(parent):
            parent.chmod(0o755)
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            Tree(folder / "images")
            os._exit(1)
        except DataError as error:
            os._exit(0 if f"{locked} cannot be read: Permission denied" in str(error) else 2)
        except BaseException:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    locked.chmod(0o755)


@pytest.mark.promise("Bad input", "images on both sides, and classes on one side only, are reported")
def test_two_sides_that_do_not_fit(folder, run):
    other = folder / "training"
    for name in ("cats", "birds"):
        (other / name).mkdir(parents=True)
        photo(seed=77 + len(name)).save(other / name / "0.png")
    photo(seed=1).save(other / "cats/same.bmp")
    (folder / "images/dogs/x.png").write_bytes(b"")
    status, out, _ = run("check", folder / "images", "--against", other, "--json")
    found = json.loads(out)
    assert status == 1 and found["images"] == 7 and len(found["problems"]["images that cannot be read"]) == 1
    assert [line.split(",")[0] for line in found["problems"]["classes on one side only"]] == ["birds", "dogs"]
    assert any("same.bmp" in line for line in found["problems"]["images on both sides"])
    assert run("check", other)[0] == 0 and "1 image that cannot be read" in run("check", folder / "images")[1]
    with pytest.raises(DataError, match="train and test have different classes.*birds.*dogs"):
        layout(folder, other, "cifar")
        (folder / "images/dogs/x.png").unlink()
        Cifar10Data(folder / "cifar")


def layout(folder, train, name):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "train").symlink_to(train)
    (folder / name / "test").symlink_to(folder / "images")
    (folder / name / "val").symlink_to(folder / "images")


@pytest.mark.promise("Bad input", "images on both sides, and classes on one side only, are reported")
def test_test_images_that_are_trained_on_are_reported(folder):
    layout(folder, folder / "images", "same")
    with pytest.warns(UserWarning, match="6 test images of .* are training images, too, such as"):
        Cifar10Data(folder / "same")
    images = read_images(folder / "images")
    assert len(duplicates(images, images)) == 6 and not duplicates(images[[0, 1]], images[[2]])
    train = folder / "wide"
    for name in ("cats", "dogs", "birds"):
        (train / name).mkdir(parents=True)
        photo().save(train / name / "0.png")
    layout(folder, train, "imagenet")
    with pytest.raises(DataError, match="val lacks 1 of the 3 classes of .*train, such as 'birds'"):
        folder_data(folder / "imagenet")
    (folder / "sketches/zebra").mkdir(parents=True)
    photo().save(folder / "sketches/zebra/0.png")
    (train / "birds/0.png").unlink(), (train / "birds").rmdir()
    with pytest.raises(DataError, match="sketches has the class 'zebra'; the network knows 2 classes"):
        open_published(folder_data(folder / "imagenet"), {"sketch": folder / "sketches"})


def test_pictures_of_any_size_are_corrupted(folder, run):
    photo((60, 50), seed=5).save(folder / "images/cats/wide.jpg")
    assert (
        "7 images written"
        in run(
            "corrupt",
            folder / "images",
            folder / "out",
            *["--name", "fog", "--severity", "2", "--format", "png"],
        )[1]
    )
    wide = read_picture(folder / "out/cats/wide.png")
    names = [name for name, _ in Tree(folder / "images").samples]
    number = names.index(str(folder / "images/cats/wide.jpg"))
    original = torch.from_numpy(np.asarray(read_picture(folder / "images/cats/wide.jpg"))).permute(2, 0, 1)[
        None
    ]
    assert wide.size == (60, 50) and np.array_equal(
        np.asarray(wide), corrupt(original, "fog", 2, indices=[number])[0].permute(1, 2, 0)
    )


def test_files_that_are_no_images_are_said(folder):
    (folder / "images/cats/notes.txt").write_text("x")
    (folder / "images/cats/.hidden").write_text("x")
    with pytest.warns(UserWarning, match="1 files under .*notes.txt"):
        assert len(Tree(folder / "images")) == 6


# ---- parameters


def put(path, value):
    def change(content):
        *keys, last = path.split("/")
        for key in keys:
            content = content[key]
        content[last] = value

    return change


OWN = "profiles/openmoji/"


PARAMETERS = [
    ("unknown key", put("sede", [0]), "unknown key 'sede'; did you mean 'seeds'"),
    ("unknown key below", put(OWN + "finetune/epoch", 3), "did you mean 'epochs'"),
    ("unknown key of the layer", put("methods/advbn/layer/step", 3), "did you mean 'steps'"),
    ("text for a number", put(OWN + "finetune/lr", "fast"), "finetune.lr is 'fast'"),
    ("1e-3, which YAML reads as text", put(OWN + "finetune/lr", "1e-3"), "finetune.lr is '1e-3'"),
    ("number for a list", put("seeds", 3), "seeds is 3"),
    ("bool for a count", put(OWN + "finetune/epochs", True), "epochs is True"),
    ("negative eps", put("methods/advbn/layer/eps", -1.0), "eps is -1.0"),
    ("eps without end", put("methods/advbn/layer/eps", float("inf")), "eps is inf"),
    ("NaN", put(OWN + "finetune/lr", float("nan")), "lr is nan"),
    ("no seeds", put("seeds", []), "seeds is []"),
    ("a seed twice", put("seeds", [1, 1]), "each may stand there once"),
    ("negative seed", put("seeds", [-1]), "seeds.0 is -1"),
    ("no epochs", put(OWN + "finetune/epochs", 0), "epochs is 0"),
    ("unknown profile", put("profile", "openmojo"), "did you mean 'openmoji'"),
    ("a cut that is not there", put(OWN + "network/after", "layer9"), "layer9"),
    ("a network that is not there", put(OWN + "network/name", "small_resnett"), "small_resnet"),
    ("more classes than there are", put(OWN + "data/classes", 12), "classes is 12"),
    ("one class", put(OWN + "data/classes", 1), "classes is 1"),
    (
        "published and trained",
        put(OWN + "network/weights", "IMAGENET1K_V1"),
        "weights and pretrain are both given",
    ),
    ("neither published nor trained", put(OWN + "pretrain", None), "weights and pretrain are both missing"),
    ("milestones without steps", put(OWN + "finetune/milestones", [2]), "takes no milestones"),
    ("steps without milestones", put(OWN + "finetune/schedule", "step"), "needs milestones"),
    ("a layer on clean training", put("methods/finetune/layer", {"eps": 1.0}), "train: clean takes no layer"),
    ("an attack without a layer", put("methods/advbn/layer", None), "needs a layer"),
    ("half a test set", put(OWN + "data/test_images", 100), "openmoji takes no test_images"),
    ("pinned images left out", put(OWN + "data/on_bad_image", "skip"), "takes no on_bad_image: skip"),
    ("unknown policy for images", put(OWN + "data/on_bad_image", "ignore"), "on_bad_image is 'ignore'"),
    ("unknown start", put("methods/advbn/layer/start", "rnd"), "start is 'rnd'"),
    ("unknown precision", put(OWN + "finetune/precision", "fp8"), "precision is 'fp8'"),
    ("unknown augmentation", put("bases/augmix/augmentation", "augmx"), "augmentation is 'augmx'"),
    ("no control", lambda c: c["methods"].pop("finetune"), "methods has no 'finetune'"),
    ("the control trains adversarially", put("methods/finetune/train", "nothing"), "allowed is 'clean'"),
    ("a name for a folder", lambda c: c["methods"].update({"../x": c["methods"]["standard"]}), "../x"),
    ("a base that is not there", put("studies/ablations/bases", ["plane"]), "did you mean 'plain'"),
    ("a share above one", put(OWN + "short/shares", {"corruptions": 2.0}), "corruptions is 2.0"),
    ("a seed that is not trained", put(OWN + "short/seeds", [9]), "allowed are those of seeds"),
    (
        "cut out of something smaller",
        lambda content: content["profiles"]["openmoji"]["data"].update(size=224, resize=100),
        "resize is 100 and size 224",
    ),
    ("too many threads", put(OWN + "threads", 10**12), "threads is 1000000000000"),
    (
        "an encoder that cannot be mirrored",
        lambda c: c["profiles"]["openmoji"]["pictures"].update(network="small_resnet", after="layer1"),
        "can be mirrored",
    ),
    (
        "four slips at once",
        lambda c: [
            put("seeds", 3)(c),
            put("timeout", 0)(c),
            put("profile", 5)(c),
            put("checkpoint_steps", "x")(c),
        ],
        "(and 2 more)",
    ),
    ("no data", lambda c: c["profiles"]["openmoji"].pop("data"), "'profiles.openmoji.data' is missing"),
    ("no time to wait", put("timeout", 0), "timeout is 0"),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A folder that is a project of its own, with the embedded images."
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    return tmp_path


@pytest.mark.promise(
    "Bad input", "a slip in params.yaml stops before work begins, with key, value and what is allowed"
)
@pytest.mark.parametrize(
    "change, words", [case[1:] for case in PARAMETERS], ids=[case[0] for case in PARAMETERS]
)
def test_a_slip_in_params(project, refused, change, words):
    content = yaml.safe_load((project / "params.yaml").read_text())
    change(content)
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    refused(["pretrain", "--seed", "0"], words)
    assert not (project / "checkpoints").exists()


@pytest.mark.promise(
    "Bad input", "a slip in params.yaml stops before work begins, with key, value and what is allowed"
)
@pytest.mark.parametrize(
    "text, words",
    [
        ("", "holds NoneType, not keys and values"),
        ("- a\n- b\n", "holds list"),
        ("a: [1, 2\nb: 3", "not YAML"),
        (None, "no such file"),
        ("seeds: [0]\nseeds: [1]\n", "the key 'seeds' stands twice"),
        (b"\xff\xfe\x00", "not YAML"),
    ],
    ids=["empty", "a list", "not YAML", "missing", "a key twice", "not text"],
)
def test_a_file_of_parameters_that_is_none(project, refused, text, words):
    if text is None:
        (project / "params.yaml").unlink()
    else:
        (project / "params.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(["train", "advbn"], "params.yaml", words)


@pytest.mark.promise("Bad input", "a slip on the command line is one line")
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["trian"], "trian"),
        (["train"], "Missing argument"),
        (["train", "advbm"], "did you mean 'advbn'"),
        (["train", "advbn", "--sed", "0"], "--sed"),
        (["train", "advbn", "--seed", "one"], "one"),
        (["train", "advbn", "--seed", "0"], "no checkpoint at"),
        (["evaluate", "advbn", "--seed", "0"], "no checkpoint at"),
        (["run", "nbs/stages/method.ipynb"], "no notebook at"),
        (["plan", "--profile", "openmojo"], "allowed are openmoji"),
        (["make-set", "out", "--kind", "sketch"], "allowed are advbn"),
        (["make-set", "out", "--seed", "99"], "allowed are the seeds"),
        (["corrupt", "data/openmoji", "out", "--name", "frog"], "frog"),
        (["corrupt", "nowhere", "out", "--name", "fog"], "no images at nowhere"),
        (
            ["corrupt", "data/openmoji", "data/../data/openmoji/out", "--name", "fog"],
            "would become one of its classes",
        ),
        (["run", "x.ipynb", "method", "advbn"], "'method' stands where a --NAME is expected"),
        (["run", "x.ipynb", "--method"], "--method has no value"),
        (["corrupt", "data/openmoji", "out", "--name", "fog", "--severity", "9"], "9"),
        (
            ["corrupt", "data/openmoji", "out", "--name", "fog", "--on-bad-image", "ignore"],
            "allowed are 'error' and 'skip'",
        ),
        (
            ["bench", "stepp"],
            "'step', 'corrupt', 'evaluate', 'scale', 'folders', 'fidelity', not 'stepp'; did you mean 'step'",
        ),
        (["bench", "scale", "--batch", "4"], "bench scale takes no --batch; it has images of its own"),
        (["bench", "step", "--device", "tpu"], "--device is 'tpu'"),
        (["bench", "--quick"], "--quick goes with --contribute"),
        (["bench", "step", "--contribute"], "leave 'step' out"),
        (["bench", "--contribute", "--batch", "4"], "--batch goes with a benchmark by itself"),
        (["evaluate", "advbn", "--data", "data/openmoji"], "--data goes with --model"),
        *(
            (["evaluate", "advbn", *words], f"{words[0]} goes with --model")
            for words in (
                ["--shifts", "all"],
                ["--size", "224"],
                ["--resize", "64"],
                ["--on-bad-image", "skip"],
                ["--images", "5"],
                ["--classes", "x"],
            )
        ),
        (
            [
                "evaluate",
                "--model",
                "small_resnet",
                "--weights",
                "x.pt",
                "--data",
                "data/openmoji",
                "--seed",
                "0",
            ],
            "--seed goes with a method",
        ),
        (
            ["evaluate", "--model", "resnet18", "--weights", "typo.pt", "--data", "data/openmoji"],
            "no weights at typo.pt",
        ),
        (["run", "params.yaml"], "params.yaml is no notebook"),
        (
            ["evaluate", "--model", "timm/resnet18", "--weights", "typo.pt", "--data", "data/openmoji"],
            "no weights at typo.pt",
        ),
        (
            ["evaluate", "--model", "resnet18", "--weights", "IMAGENET1K_V9", "--data", "data/openmoji"],
            "did you mean 'IMAGENET1K_V1'",
        ),
        (
            ["evaluate", "--model", "small_resnet", "--weights", "x.pt", "--data", "data/openmoji", "--save"],
            "--save goes with a method",
        ),
        (["export", "advbn", "x.pt", "--branch", "dirty"], "dirty"),
        (["import-official", "nowhere.pth"], "no checkpoint at nowhere.pth"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_slip_on_the_command_line(project, refused, monkeypatch, arguments, words):
    monkeypatch.chdir(project)
    refused(arguments, words)
    assert not (project / "out").exists() and not (project / "x.pt").exists()


@pytest.mark.promise("Bad input", "a slip on the command line is one line")
@pytest.mark.parametrize(
    "kept, words",
    [
        ("seed,cell\n0,1\n", "has the columns seed, cell, and what is to be kept there"),
        ("a,b\n", "has no column 'seed'"),
        ("", "cannot be read as a table"),
        (b"\xff\xfe\x00", "cannot be read as a table"),
        (None, "cannot be read as a table"),
    ],
    ids=["other columns", "no rows", "empty", "no text", "a folder"],
)
@pytest.mark.parametrize("command, file", [("evaluate", "runs/advbn.csv"), ("train", "training/advbn.csv")])
def test_rows_that_cannot_be_kept_are_refused_before_work(project, refused, command, file, kept, words):
    path = project / "results/openmoji" / file
    path.parent.mkdir(parents=True)
    path.mkdir() if kept is None else path.write_bytes(kept if isinstance(kept, bytes) else kept.encode())
    refused([command, "advbn", "--save"], file, words, "move it away")


def test_a_place_where_nothing_can_be_written_is_said_before_work(project, refused, monkeypatch):
    monkeypatch.chdir(project)
    (project / "results").touch()
    refused(["train", "advbn", "--save"], "results")
    refused(
        ["corrupt", project / "data/openmoji", "data", "--name", "fog"],
        "the pictures themselves; name a folder beside it",
    )


def linked(project, name, target):
    (project / target).mkdir(parents=True)
    (project / target / "mine.txt").write_text("mine")
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).symlink_to(project / target)


@pytest.mark.promise("Bad input", "no command removes what it has not made")
def test_clean_removes_nothing_through_a_link_and_no_file_of_others(project, run, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    linked(project, "checkpoints", "disk/checkpoints")
    linked(project, ".dvc", "disk/dvc")
    (project / ".dvc/cache").mkdir()
    (project / ".dvc/cache/kept").write_text("kept")
    linked(project, "executed/openmoji", "disk/executed")
    for name in ("shifted/openmoji/seed0/a.npz", "cache/advbn/notes.txt", f"cache/advbn/{'0' * 32}.jsonl"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    status, out, _ = run("clean", "--yes", "--json")
    found = json.loads(out)
    assert (
        status == 0
        and set(found["left"]) == {"checkpoints", ".dvc/cache"}
        and "a link" in found["left"]["checkpoints"]
    )
    assert {p.name for p in (project / "disk").rglob("*") if p.is_file()} == {"mine.txt", "kept"} and len(
        list((project / "disk").rglob("mine.txt"))
    ) == 3
    assert (
        not (project / "shifted").exists()
        and not (project / "executed").exists()
        and [p.name for p in (project / "cache/advbn").iterdir()] == ["notes.txt"]
    )
    status, out, _ = run("clean", "--yes")
    assert status == 0 and "checkpoints is left: it is a link" in out


# ---- files of weights


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def spoiled(folder, how):
    "A file of weights for `small_resnet` with two classes, spoiled."
    path, state = folder / "bad.pt", build_model("small_resnet", 2).state_dict()
    if how == "another architecture":
        save_state(build_model("small_vgg", 2).state_dict(), path)
    elif how == "other classes":
        save_state(build_model("small_resnet", 5).state_dict(), path)
    elif how == "a weight is missing":
        save_state({k: v for k, v in state.items() if k != "fc.bias"}, path)
    elif how == "NaN":
        save_state({k: v * float("nan") if k == "fc.bias" else v for k, v in state.items()}, path)
    elif how == "a payload":
        torch.save({"state_dict": {"fc.bias": Payload(folder / "harm")}}, path)
    elif how == "not a state dict":
        torch.save([1, 2, 3], path)
    elif how == "text in the state dict":
        torch.save({"fc.bias": "zero"}, path)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "garbage":
        path.write_bytes(bytes(range(256)) * 40)
    elif how == "truncated":
        save_state(state, path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif how == "truncated safetensors":
        path = folder / "bad.safetensors"
        save_state(state, path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif how == "a folder":
        path.mkdir()
    return path


@pytest.mark.promise(
    "Bad input",
    "a file of weights that is damaged, another network's or holds a program is refused, and nothing in it "
    "is executed",
)
@pytest.mark.parametrize(
    "how, words",
    [
        ("another architecture", "such as 'features.conv1_1.weight'"),
        ("other classes", "'fc.weight' is (5, 128) and has to be (2, 128)"),
        ("a weight is missing", "1 of its weights are not there, such as 'fc.bias'"),
        ("NaN", "NaN or infinite values, first in 'fc.bias'"),
        ("a payload", "holds more than tensors, which was not executed"),
        ("not a state dict", "list and not a state dict"),
        ("text in the state dict", "not a state dict"),
        ("empty", "(0 bytes)"),
        ("garbage", "is damaged or no file of weights"),
        ("truncated", "is damaged or no file of weights"),
        ("truncated safetensors", "is damaged or no file of weights"),
        ("missing", ""),
        ("a folder", ""),
    ],
)
def test_a_file_of_weights_that_cannot_be_used(folder, refused, how, words):
    path = spoiled(folder, how)
    refused(
        [*evaluation(folder)[:4], path, *evaluation(folder)[5:]],
        *([str(path), words] if words else [str(path)]),
    )
    network = build_model("small_resnet", 2)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises((WeightsError, FileNotFoundError)):
        load_into(network, path)
    assert not (folder / "harm").exists() and all(
        torch.equal(v, before[k]) for k, v in network.state_dict().items()
    )


def test_wrappings_and_safetensors_are_read(folder):
    state = load_state(folder / "net.pt")
    for name, content in (
        ("a.pt", {"state_dict": dict(state), "epoch": 3}),
        ("b.pt", {f"module.{k}": v for k, v in state.items()}),
        ("c.pt", {"model": {f"module.{k}": v for k, v in state.items()}}),
    ):
        torch.save(content, folder / name)
    save_state(state, folder / "d.safetensors")
    for name in ("a.pt", "b.pt", "c.pt", "d.safetensors"):
        network = load_into(build_model("small_resnet", 2), folder / name)
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


@pytest.mark.promise(
    "Bad input", "progress of another version of the libraries or of the code is passed over, with a warning"
)
def test_progress_of_another_version(tmp_path, monkeypatch):
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 60)]
    for version in (torch.__version__, "1.0"):
        monkeypatch.setattr(torch, "__version__", version)
        torch.manual_seed(0)
        net = finetuning_net(build_model("small_resnet", 9), "layer1", None)
        with Progress(tmp_path / "run.pt", 1) as progress:
            if version == "1.0":
                with pytest.warns(UserWarning, match="run with other settings, weights, images or code"):
                    assert len(fit(net, MemoryBatches(images, 16, 0), ONE_EPOCH, 0, progress=progress)) == 1
            else:
                fit(net, MemoryBatches(images, 16, 0), ONE_EPOCH, 0, progress=progress)


# ---- numbers


ONE_EPOCH = Training(epochs=1, batch_size=16, lr=0.02)


class Spoiling:
    "Batches whose third is spoiled by `change`."

    def __init__(self, loader, change):
        self.loader, self.change = loader, change

    def __len__(self):
        return len(self.loader)

    def identity(self):
        return self.loader.identity()

    def batches(self, epoch, start=0):
        for step, (images, targets) in enumerate(self.loader.batches(epoch, start), start):
            yield (self.change(images), targets) if step == 2 else (images, targets)


def spoil(value):
    def change(images):
        images = images.clone()
        images[0, 0, 3, 3] = value
        return images

    return change


class Odd(nn.Module):
    "A head whose loss or gradient is not finite from the third training step on."

    def __init__(self, head, kind):
        super().__init__()
        self.head, self.kind, self.seen = head, kind, 0

    def forward(self, x):
        out = self.head(x)
        if self.training:
            self.seen += 1
            if self.seen > 2 and self.kind == "loss":
                out = out * float("nan")
            if self.seen > 2 and self.kind == "gradient":
                out.register_hook(lambda gradient: gradient * float("inf"))
        return out


@pytest.mark.promise(
    "Bad input", "NaN and infinity stop training with step, learning rate and the last good progress"
)
@pytest.mark.parametrize(
    "what", ["image NaN", "image infinite", "features NaN", "loss", "gradient", "weight"]
)
@pytest.mark.parametrize("layer", [None, {"steps": 1}], ids=["clean", "AdvBN"])
def test_numbers_that_are_none_stop_training(tmp_path, what, layer):
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 20)]
    torch.manual_seed(0)
    net = finetuning_net(build_model("small_resnet", 9), "layer1", layer)
    loader = MemoryBatches(images, 16, 0)
    if what.startswith("image"):
        loader = Spoiling(loader, spoil(float("nan") if "NaN" in what else float("inf")))
    elif what == "features NaN":
        turns = count()
        net.stem.register_forward_hook(lambda m, i, out: out * float("nan") if next(turns) > 1 else out)
    elif what in ("loss", "gradient"):
        net = AdvBNNet(net.stem, Odd(net.head, what), net.layer)
    with pytest.raises(FloatingPointError) as stopped, Progress(tmp_path / "run.pt", 1) as progress:
        if what == "weight":
            turns = count()
            next(p for p in net.trainable_parameters() if p.ndim == 4).register_hook(
                lambda g: g * (float("inf") if next(turns) > 3 else 1)
            )
        fit(net, loader, ONE_EPOCH.model_copy(update={"epochs": 5}), 0, "this run", progress=progress)
    said = str(stopped.value)
    assert (
        "this run: " in said
        and " at step " in said
        and "(learning rate 0.02)" in said
        and f"the last good progress is {tmp_path / 'run.pt'}" in said
    )
    assert all(
        v.isfinite().all() for v in read_checked(tmp_path / "run.pt")["net"].values() if v.is_floating_point()
    )


@pytest.mark.promise(
    "Bad input",
    "a file of weights that is damaged, another network's or holds a program is refused, and nothing in it "
    "is executed",
)
def test_weights_of_another_kind_of_number_and_files_with_two_networks(folder, refused, run):
    state = load_state(folder / "net.pt")
    weights = folder / "other.pt"
    arguments = [*evaluation(folder)[:4], weights, *evaluation(folder)[5:]]
    for change, words in (
        (lambda v: v.int(), "torch.int32"),
        (lambda v: v > 0, "torch.bool"),
        (lambda v: v.to(torch.complex64), "torch.complex64"),
        (lambda v: v.to_sparse(), "torch.sparse_coo"),
    ):
        torch.save({k: change(v) if k == "fc.weight" else v for k, v in state.items()}, weights)
        refused(arguments, "other.pt", "'fc.weight' is", words, "needed are dense floating point numbers")
    for wrapping, average in (("state_dict", "state_dict_ema"), ("model", "model_ema")):
        torch.save({wrapping: dict(state), average: {k: 2 * v for k, v in state.items()}}, weights)
        with pytest.warns(
            UserWarning,
            match=f"holds two networks; {wrapping!r} is read, and {average!r}, the moving average, is not",
        ):
            assert all(torch.equal(v, state[k]) for k, v in load_state(weights).items())
    for change in (lambda v: v.half(), lambda v: v.double()):
        torch.save({k: change(v) if v.is_floating_point() else v.float() for k, v in state.items()}, weights)
        assert run(*arguments)[0] == 0


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_names_of_compiled_and_parallel_networks_are_read(folder, prefix):
    state = load_state(folder / "net.pt")
    torch.save({prefix + k: v for k, v in state.items()}, folder / "wrapped.pt")
    assert list(load_state(folder / "wrapped.pt")) == list(state)


def test_a_list_of_classes_may_begin_with_a_byte_order_mark(folder, run):
    (folder / "classes.txt").write_text("cats\ndogs\n", encoding="utf-8-sig")
    assert run(*evaluation(folder, "--classes", folder / "classes.txt"))[0] == 0


@pytest.mark.promise(
    "Bad input",
    "an image that is smaller than what is cut out of it gets no black border: it stops with its name, or is "
    "left out and listed",
)
@pytest.mark.parametrize("workers", [0, 2])
def test_images_smaller_than_the_cut_are_refused(emoji_folder, emoji_network, workers):
    with pytest.raises(
        DataError,
        match=r"png: 40 x 40 pixels are fewer than the 64 that are cut out of the middle; resize to 64 or "
        r"more, or .*skip.* leaves such files out",
    ):
        evaluate(emoji_network, emoji_folder, "clean", reading=FolderReading(64, workers=workers))
    found = evaluate(emoji_network, emoji_folder, "clean", reading=FolderReading(64, 64, workers=workers))
    assert found.cells.images.item() == 12
    with pytest.raises(DataError, match="40 x 40 pixels are fewer"):
        classify(emoji_network, next(emoji_folder.rglob("*.png")), "abc", size=64)


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


@pytest.mark.promise(
    "Bad input",
    "images that are no bytes, and targets that do not fit them, are refused wherever images are taken",
)
@pytest.mark.parametrize(
    "change, found",
    [
        (lambda x: x / 255, r"torch.float32 \(4, 3, 32, 32\)"),
        (lambda x: x[:, :1], r"torch.uint8 \(4, 1, 32, 32\)"),
        (lambda x: x.permute(0, 2, 3, 1), r"torch.uint8 \(4, 32, 32, 3\)"),
        (lambda x: x[0], r"torch.uint8 \(3, 32, 32\)"),
    ],
    ids=["floats", "grey", "channels last", "one image"],
)
def test_images_that_are_no_bytes_are_refused(change, found):
    images, targets, model = (
        torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8),
        torch.tensor([0, 1, 0, 1]),
        build_model("small_resnet", 2).eval(),
    )
    painter = Autoencoder(build_model("small_vgg", 2), "features.relu2_2").eval()
    styles = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    takers = (
        lambda x: predict(model, x),
        lambda x: predict_each({"a": model}, x),
        lambda x: top1_accuracy(model, x, targets),
        edges,
        lambda x: instagram(x, "rise"),
        lambda x: corrupt(x, "fog", 1),
        lambda x: reconstructed(painter, x),
        lambda x: stylized(painter, x, range(4), styles),
        lambda x: stylized(painter, images, range(4), x),
        lambda x: adversarial(painter, x, targets, AdvBN(steps=1)),
    )
    for taker in takers:
        taker(images)
        with pytest.raises(ValueError, match=f"images are {found}; allowed is a uint8 tensor"):
            taker(change(images))


@pytest.mark.promise("Bad input", "a name in params.yaml is no command")
@pytest.mark.parametrize(
    "stage, change",
    [
        pytest.param(
            "pretrain",
            lambda c, name: c.update(profile=name, profiles={name: c["profiles"]["openmoji"]}),
            id="a profile",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "method@openmoji-{}",
            lambda c, name: c["methods"].update({name: c["methods"]["finetune"]}),
            id="a method",
        ),
    ],
)
def test_no_name_reaches_a_shell(tmp_path, stage, change):
    copied_project(tmp_path)
    content = yaml.safe_load((tmp_path / "params.yaml").read_text())
    for made in ("checkpoints/openmoji/pretrained", "shifted/openmoji"):
        (tmp_path / made).mkdir(parents=True)
    name = "x$(touch pwned)'$(touch pwned)'"  # also where it stands in quotes
    change(content, name)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    done = call(
        sys.executable, "-m", "dvc", "repro", "--single-item", stage.format(name), cwd=tmp_path, check=False
    )
    assert (
        not (tmp_path / "pwned").exists()
        and done.returncode != 0
        and "allowed are letters, digits" in done.stderr
    )


@pytest.mark.promise(
    "Bad input", "kept images that were made in another way are not taken for those that are asked for"
)
def test_images_made_for_another_network_are_made_with_other_settings(lite_project):
    content = yaml.safe_load((lite_project / "params.yaml").read_text())
    content["profiles"]["imagenet"]["data"].update(size=None, resize=None)
    settings = []
    for name in (LITE, "torchvision/resnet18"):
        content["profiles"]["imagenet"]["network"].update(name=name, weights=None, weights_sha256=None)
        content["profiles"]["imagenet"].update(pretrain={"epochs": 1, "batch_size": 8, "lr": 0.1})
        params = parse_params(content)
        settings.append(made_from(setting_of(params), load_data(setting_of(params)), 0))
    assert (
        settings[0].pop("interpolation") == "bicubic"
        and settings[1].pop("interpolation") == "bilinear"
        and settings[0] == settings[1]
    )
    assert (settings[0]["size"], settings[0]["resize"]) == (224, 256)


@pytest.mark.promise(
    "Bad input", "NaN and infinity stop training with step, learning rate and the last good progress"
)
def test_a_decoder_that_diverges_stops(tmp_path):
    autoencoder = Autoencoder(build_model("small_vgg", 9), "features.relu2_2")
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 60)]
    with (
        pytest.raises(
            FloatingPointError, match=r"decoder: a weight is NaN or infinite at step \d+ \(learning rate"
        ),
        Progress(tmp_path / "run.pt", 1) as progress,
    ):
        fit_decoder(autoencoder, MemoryBatches(images, 8, 0), 3, 1e30, progress)
