"""Any network on any folder of images."""

import numpy as np
import pytest
import torch
import torchvision
from lite_profile import HALF, pixels, seen_by_first_convolutions
from miniature_imagenet import picture
from torch import nn

from advbn import CORRUPTIONS, corrupt, prepare
from advbn.base.errors import DataError
from advbn.adapters.evaluate import FolderReading, class_names, evaluate_networks, load_network, summary
from advbn.evidence.evaluation import predict
from advbn.images.batches import read_images
from advbn.images.openmoji import write_png
from advbn.images.preprocessing import IMAGENET, Preprocessing, recorded, remember
from advbn.networks.models import build_model, wanted_by
from advbn.networks.weights import load_state, save_state
from advbn.shifts.filters import edges
from advbn.widgets import classify


def test_the_numbers_are_those_of_a_direct_computation(emoji_folder, emoji_network):
    classes = class_names(emoji_folder)
    other = build_model("small_resnet", 3).eval()
    table = evaluate_networks(
        {"clean": emoji_network, "adversarial": other},
        emoji_folder,
        classes,
        reading=FolderReading(40, workers=0),
    )
    assert len(table) == 2 * (1 + 75 + 20 + 1) and (table.images == 12).all()
    images = read_images(emoji_folder)
    for name, model in (("clean", emoji_network), ("adversarial", other)):
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


def test_a_folder_with_some_of_the_classes_is_matched_by_name(emoji_folder, emoji_network, tmp_path):
    listed = tmp_path / "classes.txt"
    names = class_names(emoji_folder)
    listed.write_text("\n".join(["zebra", *reversed(names)]) + "\n")
    classes = class_names(emoji_folder, listed)
    wide = nn.Sequential(emoji_network, nn.Linear(3, 4)).eval()
    with torch.no_grad():  # the same answers, in the order of the list
        wide[1].weight.copy_(torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]))
        wide[1].bias.copy_(torch.tensor([-1e4, 0, 0, 0]))
    plain = evaluate_networks(
        {"a": emoji_network}, emoji_folder, names, ("clean",), FolderReading(40, workers=0)
    )
    matched = evaluate_networks({"a": wide}, emoji_folder, classes, ("clean",), FolderReading(40, workers=0))
    assert len(plain) == 1 and plain.correct.item() == matched.correct.item()
    with pytest.raises(DataError, match="the network knows 2 classes"):
        evaluate_networks(
            {"a": emoji_network}, emoji_folder, names[:2], ("clean",), FolderReading(40, workers=0)
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
            "no network 'resnet81'; the nearest are",
        ),
        (
            ["--model", "resnet18", "--weights", "{file}", "--data", "{folder}"],
            "does not hold this network's weights",
        ),
    ],
)
def test_wrong_words_are_refused(emoji_folder, emoji_network, tmp_path, refused, words, said):
    save_state(emoji_network.state_dict(), tmp_path / "net.pt")
    assert (
        len(
            refused(
                ["evaluate", *(w.format(file=tmp_path / "net.pt", folder=emoji_folder) for w in words)], said
            )
        )
        == 1
    )


def test_a_size_that_a_network_cannot_take_is_said_before_the_first_image(emoji_folder, tmp_path, refused):
    save_state(build_model("torchvision/vgg11", 3).state_dict(), tmp_path / "vgg.pt")
    refused(
        [
            "evaluate",
            "--model",
            "vgg11",
            "--weights",
            tmp_path / "vgg.pt",
            "--data",
            emoji_folder,
            "--size",
            "16",
        ],
        "vgg11 cannot take images of 16 x 16 pixels",
        "Output size is too small",
        "say another size",
    )


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_pictures_too_small_to_corrupt_are_named_before_any_is_written(
    emoji_folder, tmp_path, run, refused, policy
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


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("branch", ["clean", "adversarial"])
def test_exported_weights_say_what_images_they_are_for(tmp_path, branch, suffix):
    own = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 96, 100, "bicubic")
    model, file = torchvision.models.resnet18(num_classes=3), tmp_path / f"net.{suffix}"
    model.preprocessing = own
    net = prepare(model, "layer1")
    assert net.preprocessing == own
    save_state(net.export(branch), file)
    assert recorded(load_state(file)) == wanted_by("torchvision/resnet18", str(file)) == own
    again = load_network("resnet18", str(file), 3)
    assert again.preprocessing == own  # before the architecture's own
    torchvision.models.resnet18(num_classes=3).load_state_dict(
        torch.load(file, weights_only=True) if suffix == "pt" else load_state(file), strict=True
    )
    save_state(again.state_dict(), file)
    assert recorded(load_state(file)) == own
    save_state(dict(again.state_dict()), file)  # by somebody who knows nothing of it
    assert (
        load_network("resnet18", str(file), 3).preprocessing == wanted_by("torchvision/resnet18")
        and recorded(load_state(file)) is None
    )


def test_networks_that_want_other_images_are_tested_on_other_images(tmp_path):
    for c, name in enumerate("ab"):
        picture(tmp_path / name / "0.JPEG", (50 + 9 * c, 60), seed=c)
    half = remember(torchvision.models.resnet18(num_classes=2), Preprocessing(HALF, HALF, 32, 40)).eval()
    usual = build_model("torchvision/resnet18", 2).eval()
    (table, seen) = seen_by_first_convolutions(
        lambda: evaluate_networks(
            {"a": half, "b": usual, "c": half},
            tmp_path,
            class_names(tmp_path),
            ("clean",),
            FolderReading(workers=0),
        )
    )
    seen = [
        found for found in seen if len(found[1]) == 2
    ]  # one black image before is to see whether a network takes the size
    assert table.branch.tolist() == ["a", "c", "b"] and [tuple(b.shape) for _, b in seen] == [
        (2, 3, 32, 32)
    ] * 2 + [(2, 3, 224, 224)]
    assert pixels(seen[0][1], HALF, HALF) and pixels(seen[2][1], IMAGENET.mean, IMAGENET.std)
    _, seen = seen_by_first_convolutions(lambda: classify(half, tmp_path / "a/0.JPEG", "ab"))
    assert seen[0][1].shape[-2:] == (32, 32) and pixels(seen[0][1], HALF, HALF)
    for size in ({"size": 64, "resize": 60}, {"resize": 20}):
        with pytest.raises(ValueError, match="what is cut out cannot be larger"):
            evaluate_networks(
                {"a": half}, tmp_path, class_names(tmp_path), ("clean",), FolderReading(workers=0, **size)
            )
    for workers in (0, 2):
        with pytest.raises(DataError, match="images differ in size, such as 50 x 60 and 59 x 60 pixels"):
            evaluate_networks(
                {"a": build_model("small_resnet", 2)},
                tmp_path,
                class_names(tmp_path),
                ("clean",),
                FolderReading(workers=workers),
            )
