"""Any network on any folder: the numbers are those of a direct computation, and wrong words are refused
before work begins."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from advbn import CORRUPTIONS, corrupt
from advbn.errors import DataError
from advbn.evidence.assess import class_names, evaluate_networks, summary
from advbn.evidence.evaluation import predict
from advbn.images.batches import read_images
from advbn.images.openmoji import write_png
from advbn.networks.models import build_model
from advbn.networks.weights import save_state
from advbn.shifts.filters import edges
from advbn.widgets import classify
from conftest import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Twelve emoji of three classes as a folder of test images."
    images = read_images(ROOT / "data/openmoji")
    root = tmp_path_factory.mktemp("images")
    for c in range(3):
        for i in (images.targets == c).nonzero().flatten()[:4].tolist():
            path = root / images.names[i]
            path.parent.mkdir(exist_ok=True)
            write_png(path, images.images[i].permute(1, 2, 0).numpy())
    return root


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model("small_resnet", 3).eval()


def test_the_numbers_are_those_of_a_direct_computation(folder, network):
    classes = class_names(folder)
    other = build_model("small_resnet", 3).eval()
    table = evaluate_networks(
        {"clean": network, "adversarial": other}, folder, classes, size=40, resize=None, workers=0
    )
    assert len(table) == 2 * (1 + 75 + 20 + 1) and (table.images == 12).all()
    images = read_images(folder)
    for name, model in (("clean", network), ("adversarial", other)):
        for shift, cell, changed in (
            ("clean", "clean", images.images),
            ("sketch", "edges", edges(images.images)),
            ("corruptions", "fog/3", corrupt(images.images, "fog", 3)),
        ):
            correct = (predict(model, changed)[0][:, 0] == images.targets).sum().item()
            assert (
                table.query("branch == @name and shift == @shift and cell == @cell").correct.item() == correct
            )
    found = summary(table)
    assert list(found) == ["clean", "adversarial"]
    corrupted = table.query("branch == 'clean' and shift == 'corruptions'")
    assert (
        found.clean["corruptions"]
        == pytest.approx(corrupted.accuracy.mean())
        == pytest.approx(100 - found.clean["  mean error, unnormalised"])
    )
    assert sum(name.strip() in CORRUPTIONS for name in found.index) == 15 and not any(
        "mCE" in name for name in found.index
    )
    assert any("mCE against AlexNet" in name for name in summary(table, imagenet=True).index)


def test_a_folder_with_some_of_the_classes_is_matched_by_name(folder, network, tmp_path):
    listed = tmp_path / "classes.txt"
    names = class_names(folder)
    listed.write_text("\n".join(["zebra", *reversed(names)]) + "\n")
    classes = class_names(folder, listed)
    wide = nn.Sequential(network, nn.Linear(3, 4)).eval()
    with torch.no_grad():  # the same answers, in the order of the list
        wide[1].weight.copy_(torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]))
        wide[1].bias.copy_(torch.tensor([-1e4, 0, 0, 0]))
    plain = evaluate_networks({"a": network}, folder, names, ("clean",), 40, None, workers=0)
    matched = evaluate_networks({"a": wide}, folder, classes, ("clean",), 40, None, workers=0)
    assert len(plain) == 1 and plain.correct.item() == matched.correct.item()
    with pytest.raises(DataError, match="the network knows 2 classes"):
        evaluate_networks({"a": network}, folder, names[:2], ("clean",), 40, None, workers=0)


def call(*words):
    return subprocess.run(
        [sys.executable, "-m", "advbn", "evaluate", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_command_line_prints_the_table(folder, network, tmp_path):
    save_state(network.state_dict(), tmp_path / "net.pt")
    done = call(
        "--model",
        "small_resnet",
        "--weights",
        tmp_path / "net.pt",
        "--adversarial-weights",
        tmp_path / "net.pt",
        "--data",
        folder,
        "--size",
        40,
        "--resize",
        40,
        "--shifts",
        "clean,sketch",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    direct = (
        evaluate_networks(
            {"a": network}, folder, class_names(folder), ("clean", "sketch"), 40, None, workers=0
        )
        .set_index("shift")
        .accuracy
    )
    assert found == {
        name: {s: pytest.approx(direct[s]) for s in ("clean", "sketch")} for name in ("clean", "adversarial")
    }


def test_wrong_words_are_one_line():
    done = call()
    assert (
        done.returncode == 2
        and "exactly one of them" in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "exactly one of them"),
        (["advbn", "--model", "resnet18"], "exactly one of them"),
        (["--model", "resnet18"], "needs --weights and --data"),
        (["--model", "resnet18", "--weights", "x", "--data", "/nowhere"], "no images at /nowhere"),
        (
            ["--model", "small_resnet", "--weights", "{file}", "--data", "{folder}", "--shifts", "sketches"],
            "did you mean 'sketch'",
        ),
        (
            ["--model", "resnet81", "--weights", "{file}", "--data", "{folder}"],
            "no network 'torchvision/resnet81'",
        ),
        (
            ["--model", "resnet18", "--weights", "{file}", "--data", "{folder}"],
            "does not hold this network's weights",
        ),
    ],
)
def test_wrong_words_are_refused(folder, network, tmp_path, refused, words, said):
    save_state(network.state_dict(), tmp_path / "net.pt")
    assert (
        len(refused(["evaluate", *(w.format(file=tmp_path / "net.pt", folder=folder) for w in words)], said))
        == 1
    )


@pytest.mark.promise(
    "Bad input",
    "an image that is smaller than what is cut out of it gets no black border: it stops with its name, or is "
    "left out and listed",
)
@pytest.mark.parametrize("workers", [0, 2])
def test_images_smaller_than_the_cut_are_refused(folder, network, workers):
    with pytest.raises(
        DataError,
        match=r"png: 40 x 40 pixels are fewer than the 64 that are cut out of the middle; resize to 64 or "
        r"more, or .*skip leaves",
    ):
        evaluate_networks({"a": network}, folder, class_names(folder), ("clean",), size=64, workers=workers)
    assert (
        evaluate_networks(
            {"a": network}, folder, class_names(folder), ("clean",), size=64, resize=64, workers=workers
        ).images.item()
        == 12
    )
    with pytest.raises(DataError, match="40 x 40 pixels are fewer"):
        classify(network, next(folder.rglob("*.png")), "abc", size=64)


def test_a_size_that_a_network_cannot_take_is_said_before_the_first_image(folder, tmp_path, refused):
    save_state(build_model("torchvision/vgg11", 3).state_dict(), tmp_path / "vgg.pt")
    refused(
        ["evaluate", "--model", "vgg11", "--weights", tmp_path / "vgg.pt", "--data", folder, "--size", "16"],
        "vgg11 cannot take images of 16 x 16 pixels",
        "Output size is too small",
        "say another size",
    )


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_pictures_too_small_to_corrupt_are_named_before_any_is_written(
    folder, tmp_path, run, refused, policy
):
    for number, size in enumerate((40, 20)):
        path = tmp_path / f"images/{'ab'[number]}/{number}.png"
        path.parent.mkdir(parents=True)
        write_png(path, np.full((size, 50, 3), 99, dtype=np.uint8))
    words = ["corrupt", tmp_path / "images", tmp_path / "out", "--name", "fog", "--on-bad-image", policy]
    if policy == "error":
        refused(words, "b/1.png is 50 x 20 pixels; allowed are at least 32 on a side")
        assert not list(tmp_path.glob("out*"))
    else:
        status, out, err = run(*words)
        assert status == 0 and "1 images written" in out and "b/1.png is 50 x 20 pixels" in err


def test_a_set_of_another_folder_of_the_same_name_is_not_continued(tmp_path, run, refused, monkeypatch):
    for place, shade in (("one", 50), ("two", 200)):
        (tmp_path / place / "images/a").mkdir(parents=True)
        write_png(tmp_path / place / "images/a/0.png", np.full((32, 32, 3), shade, dtype=np.uint8))
        monkeypatch.chdir(tmp_path / place)
        words = ["corrupt", "images", tmp_path / "out", "--name", "fog"]
        if place == "one":
            assert run(*words)[0] == 0 and run(*words)[1].strip().endswith("0 images written")
        else:
            refused(words, "made with other settings")
