"""Any network on any folder of images."""

import json
import re
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from lite_profile import HALF, pixels, seen_by_first_convolutions
from miniature_imagenet import picture
from torch import nn
from torchvision.datasets import ImageFolder

import advbn
from advbn import CORRUPTIONS, DualBatchNorm2d, corrupt, evaluate, mean_corruption_error, prepare
from advbn.images.classes import class_names
from advbn.adapters.evaluate import (
    FolderReading,
    evaluation_of,
    load_network,
    own_preprocessing,
)
from advbn.base.errors import DataError
from advbn.evidence.comparison import MEAN, over_images
from advbn.evidence.evaluation import predict
from advbn.evidence.testing import Predictions
from advbn.images.batches import read_images
from advbn.images.openmoji import write_png
from advbn.images.preprocessing import IMAGENET, Preprocessing, recorded, remember
from advbn.networks.compiling import Compiled
from advbn.networks.models import build_model, wanted_by
from advbn.networks.weights import load_state, save_state
from advbn.shifts.filters import edges
from advbn.widgets import classify


HERE = FolderReading(40, workers=0)


@pytest.fixture(scope="module")
def found(emoji_folder, emoji_network):
    "Two networks, on everything."
    other = build_model("small_resnet", 3).eval()
    return evaluate({"one": emoji_network, "other": other}, emoji_folder, reading=HERE, control="one"), other


@pytest.mark.slow
def test_a_compiled_network_answers_as_it_does_uncompiled(found, emoji_folder, emoji_network, monkeypatch):
    asked = []

    def compiled(network, batch, batches):
        asked.append((len(batch), batches))
        return Compiled(network, torch.compile(network, dynamic=False), batch.shape)

    monkeypatch.setattr("advbn.adapters.evaluate.usual_batch", lambda device: 12)
    monkeypatch.setattr("advbn.adapters.evaluate.compiled_where_faster", compiled)
    again = evaluate({"one": emoji_network}, emoji_folder, reading=HERE)
    assert asked == [(12, 1 + 75 + 20 + 1)]
    for cell, right in found[0].right["one"].items():
        assert right.tolist() == again.right["one"][cell].tolist(), cell
    torch._dynamo.reset()


def test_the_numbers_are_those_of_a_direct_computation(found, emoji_folder, emoji_network):
    found, other = found
    assert len(found.cells) == 2 * (1 + 75 + 20 + 1) and (found.cells.images == 12).all()
    images = read_images(emoji_folder)
    for name, model in (("one", emoji_network), ("other", other)):
        for shift, cell, changed in (
            ("clean", "clean", images.images),
            ("sketch", "edges", edges(images.images)),
            ("corruptions", "fog/3", corrupt(images.images, "fog", 3)),
        ):
            right = dict(zip(images.names, (predict(model, changed)[0][:, 0] == images.targets).tolist()))
            names = found.names[name][shift, cell]
            assert found.right[name][shift, cell].tolist() == [right[n] for n in names] and len(names) == 12
            row = found.cells.query("network == @name and shift == @shift and cell == @cell")
            assert row.correct.item() == sum(right.values())
            assert row.accuracy.item() == pytest.approx(row.correct.item() / 0.12)
    rows = found.numbers.set_index(["network", "row"])
    corrupted = found.cells.query("network == 'one' and shift == 'corruptions'")
    of_one = rows.loc["one"].value
    assert of_one["corruptions"] == pytest.approx(corrupted.accuracy.mean())
    assert of_one["corruptions"] == pytest.approx(100 - of_one["  mean error, unnormalised"])
    assert of_one["mean of the shifts"] == pytest.approx(
        of_one[["corruptions", "instagram", "sketch"]].mean()
    )
    assert sum(name.strip() in CORRUPTIONS for name in of_one.index) == 15 and (rows.images == 12).all()
    assert not any("mCE" in name for name in of_one.index)
    of_each = {name: corrupted[corrupted.cell.str.startswith(f"{name}/")].accuracy for name in CORRUPTIONS}
    values = found.values("one")
    mce = over_images(values[[column for column in values if column[0] == "corruptions"]], "mCE")
    assert mce.mean == pytest.approx(
        mean_corruption_error({name: (1 - found / 100).tolist() for name, found in of_each.items()})
    )


def test_what_a_method_got_right_prints_as_the_same_table():
    targets = np.array([0, 1, 0], np.int16)
    kept = Predictions(
        ("clean/clean", "sketch/edges"),
        ("a", "b", "c"),
        targets,
        {
            "clean": np.array([[0, 1, 1], [0, -1, 1]], np.int16),  # the second cell does not show b
            "adversarial": np.array([[0, 1, 0], [1, -1, 0]], np.int16),
        },
    )
    found = evaluation_of(kept, "three images", "clean")
    assert found.cells.images.tolist() == [3, 2, 3, 2] and found.cells.correct.tolist() == [2, 1, 3, 1]
    gained = found.difference("adversarial", "clean").estimate
    assert gained["clean"] == pytest.approx(100 / 3) and gained["sketch"] == pytest.approx(0)
    assert found.names["clean"]["sketch", "edges"].tolist() == ["a", "c"] and "three images" in str(found)


def test_differences_are_paired_by_image(found):
    found, _ = found
    gained = found.difference("other", "one")
    assert [*gained.index] == ["clean", "corruptions", "instagram", "sketch", "mean of the shifts"]
    rows = found.numbers.set_index(["network", "row"])
    for row in gained.index:
        direct = rows.value["other", row] - rows.value["one", row]
        assert gained.estimate[row] == pytest.approx(direct) == pytest.approx(rows.difference["other", row])
        assert gained.low[row] < gained.estimate[row] < gained.high[row]
    assert rows.difference["one"].isna().all()
    back = found.difference("one", "other")
    assert back.estimate.tolist() == pytest.approx((-gained.estimate).tolist())
    assert (found.difference("one", "one").estimate == 0).all()
    with pytest.raises(ValueError, match="no network 'othr'; there are one, other; did you mean 'other'"):
        found.difference("othr", "one")


def test_the_table_says_how_many_images_and_how_they_were_given(found):
    found, _ = found
    assert [*found.table] == ["one", "other", "other - one", "images"]
    text = str(found)
    assert "one: images cut to 40 pixels, mean (0.485" in text and "12 images of " in text
    assert "± half of its 95 % interval over images" in text and "mean error, unnormalised" in text
    number = r"-?\d+\.\d+ ± \d+\.\d+"
    assert all(re.fullmatch(number, entry) for entry in found.table.one)
    assert all(
        re.fullmatch(r"[+-]" + number.removeprefix("-?"), entry) for entry in found.table["other - one"]
    )
    assert "<table" in found._repr_html_() and repr(found) == text


def test_json_has_robustbenchs_fields(found):
    found, _ = found
    said = json.loads(found.to_json())
    one, cells = said["networks"]["one"], found.cells.query("network == 'one'").set_index(["shift", "cell"])
    assert (
        said["advbn"] == advbn.__version__
        and said["control"] == "one"
        and "12 images of" in said["tested_on"]
    )
    assert one["clean_acc"] == f"{cells.accuracy['clean', 'clean']:.2f}" and "corruptions_mce" not in one
    assert float(one["corruptions_acc"]) == pytest.approx(100 - one["corruptions_error"], abs=0.006)
    assert [*one["corruptions"]] == [*CORRUPTIONS] and [*one["corruptions"]["fog"]] == [*"12345"]
    assert one["corruptions"]["fog"]["3"] == pytest.approx(
        cells.accuracy["corruptions", "fog/3"] / 100, abs=1e-6
    )
    assert one["preprocessing"]["size"] == 40 and one["rows"]["clean"]["images"] == 12
    assert (
        "difference" in said["networks"]["other"]["rows"]["clean"]
        and "difference" not in one["rows"]["clean"]
    )


def test_the_chart_has_a_point_for_each_row_and_network(found):
    found, _ = found
    figure = found.plot()
    accuracy, difference = figure.axes
    labels = [label.get_text().strip() for label in accuracy.get_yticklabels()]
    assert labels[:3] == ["clean", "corruptions", "gaussian noise"] and "mean of the shifts" in labels
    assert len(accuracy.containers) == 2 and len(difference.containers) == 1
    numbers = found.numbers.set_index(["network", "row"])
    x, _ = accuracy.containers[0][0].get_data()
    assert len(x) == len(labels) and x[1] == numbers.value["one", "corruptions"]
    plt.close(figure)


def test_a_prepared_network_is_its_two_branches(emoji_folder, emoji_network):
    net = prepare(emoji_network, "layer1", eps=0.5)
    torch.manual_seed(1)
    for m in net.modules():
        if isinstance(m, DualBatchNorm2d):
            torch.nn.init.uniform_(m.adversarial.weight, 0.2, 3)
            torch.nn.init.uniform_(m.adversarial.bias, -1, 1)
    plain = {branch: build_model("small_resnet", 3) for branch in ("clean", "adversarial")}
    for branch, model in plain.items():
        model.load_state_dict(net.export(branch))
    found, direct = (evaluate(n, emoji_folder, ["clean", "instagram"], reading=HERE) for n in (net, plain))
    assert [*found.right] == ["clean", "adversarial"]
    for branch in plain:
        assert all((found.right[branch][cell] == right).all() for cell, right in direct.right[branch].items())
    assert any((found.right["clean"][c] != r).any() for c, r in found.right["adversarial"].items())
    assert [*evaluate({"net": net}, emoji_folder, "clean", reading=HERE).right] == [
        "net clean",
        "net adversarial",
    ]
    assert [*evaluate(emoji_network, emoji_folder, "clean", reading=HERE).right] == ["SmallResNet"]
    assert {m.branch for m in net.modules() if isinstance(m, DualBatchNorm2d)} == {"clean"}


def test_a_network_is_left_as_it_is(emoji_folder, emoji_network):
    before = {k: v.clone() for k, v in emoji_network.state_dict().items()}
    emoji_network.train()
    evaluate(emoji_network, emoji_folder, "clean", reading=HERE)
    assert emoji_network.training and all(m.training for m in emoji_network.modules())
    assert all(before[k].equal(v) for k, v in emoji_network.state_dict().items())
    assert not emoji_network._forward_hooks
    emoji_network.eval()


def shade_of(grey, path, size):
    path.parent.mkdir(exist_ok=True)
    write_png(path, np.full((size, size, 3), grey, np.uint8))


class Thousand(nn.Module):
    "Takes images of one shade for the classes of ImageNet that stand in this order."

    def __init__(self, numbers):
        super().__init__()
        self.numbers, self.scale = numbers, nn.Parameter(torch.ones(()))
        self.preprocessing = Preprocessing((0.0,) * 3, (1.0,) * 3, 32, 32)

    def forward(self, images):
        logits = torch.zeros(len(images), 1000)
        shade = (
            (255 * self.scale * images.mean((1, 2, 3)) / 60).round().long().clamp(0, len(self.numbers) - 1)
        )
        logits[range(len(images)), torch.tensor(self.numbers)[shade]] = 1
        return logits


@pytest.mark.parametrize("names", [("n01440764", "n01443537", "n03126707"), ("tench", "goldfish", "crane")])
def test_a_folder_with_some_of_imagenets_classes_is_recognised(tmp_path, names):
    for shade, name in enumerate(names):
        shade_of(60 * shade, tmp_path / name / "0.png", 32)
    model = Thousand((0, 1, 517))
    for images in (tmp_path, ImageFolder(tmp_path)):
        found = evaluate(model, images, "clean")
        assert found.imagenet and found.right["Thousand"]["clean", "clean"].all()
    assert not evaluate(Thousand((0, 1, 2)), tmp_path, "clean").right["Thousand"]["clean", "clean"].all()
    both = evaluate({"all": model, "three": build_model("small_resnet", 3)}, tmp_path, "clean")
    assert both.right["all"]["clean", "clean"].all() and not both.imagenet
    (tmp_path / names[0]).rename(tmp_path / "trout")
    with pytest.raises(
        DataError, match="3 classes, of which 2 are ImageNet's and 'trout' is not.*--classes imagenet"
    ):
        evaluate(model, tmp_path, "clean")


def test_mce_comes_with_its_interval_and_number_of_images(tmp_path):
    for shade, name in enumerate(("tench", "goldfish")):
        for i in range(2):
            shade_of(60 * shade + 3 * i, tmp_path / name / f"{i}.png", 40)
    found = evaluate(Thousand((0, 1)), tmp_path, ["clean", "corruptions"])
    row = found.numbers.set_index("row").loc["  mCE against AlexNet"]
    errors = {
        c: [1 - found.right["Thousand"]["corruptions", f"{c}/{s}"].mean() for s in range(1, 6)]
        for c in CORRUPTIONS
    }
    assert row.value == pytest.approx(mean_corruption_error(errors)) and row.ci95 > 10 and row.images == 4
    assert "± " in found.table.Thousand["  mCE against AlexNet"] and "mCE is that of these images" in str(
        found
    )
    assert json.loads(found.to_json())["networks"]["Thousand"]["corruptions_mce"] == f"{row.value:.2f}"


def test_a_label_beyond_the_networks_classes_is_told_plainly(emoji_network):
    images = [(torch.zeros(3, 40, 40, dtype=torch.uint8), label) for label in (0, 2, 7)]
    with pytest.raises(DataError, match="list has the label 7; SmallResNet tells 3 classes apart.* 0 to 2"):
        evaluate(emoji_network, images, "clean")
    images[2] = (images[2][0], -1)
    with pytest.raises(DataError, match="has the label -1"):
        evaluate(emoji_network, images, "clean")


def test_published_sets_are_a_shift_each(emoji_folder, emoji_network, tmp_path):
    for name in ("Mayfair", "Rise"):
        shutil.copytree(emoji_folder, tmp_path / "instagram" / name)
    sets = {
        "clean": emoji_folder,
        "instagram": str(tmp_path / "instagram"),
        "faces": ImageFolder(emoji_folder),
    }
    found = evaluate(emoji_network, sets, reading=HERE)
    assert [*found.right["SmallResNet"]] == [
        *(("clean", "clean"), ("instagram", "Mayfair"), ("instagram", "Rise"), ("faces", "all")),
    ]
    assert len({right.sum() for right in found.right["SmallResNet"].values()}) == 1
    images = found.numbers.set_index("row").images
    assert images["instagram"] == 12 and images["mean of the shifts"] == 24  # faces are images of their own
    assert {*evaluate(emoji_network, sets, "faces,clean", reading=HERE).table.index} == {"clean", "faces"}
    some = shutil.copytree(emoji_folder, tmp_path / "some")
    shutil.rmtree(next(some.iterdir()))
    fewer = evaluate(emoji_network, sets | {"some": some}, reading=HERE)
    names = fewer.names["SmallResNet"]["some", "all"]
    first = dict(
        zip(fewer.names["SmallResNet"]["clean", "clean"], fewer.right["SmallResNet"]["clean", "clean"])
    )
    known = [first[name.removeprefix("some/").removesuffix(".png")] for name in names]
    assert len(names) == 8 and fewer.right["SmallResNet"]["some", "all"].tolist() == known
    (some / "zebra").mkdir()
    shutil.copy(next(some.rglob("*.png")), some / "zebra")
    with pytest.raises(DataError, match="has the class 'zebra'; the network knows 3 classes"):
        evaluate(emoji_network, sets | {"some": some}, reading=HERE)
    with pytest.raises(ValueError, match="shifts has 'sketch'; allowed are all, clean, instagram, faces"):
        evaluate(emoji_network, sets, "sketch", reading=HERE)


def test_what_cannot_be_meant_is_refused_before_any_image_is_read(emoji_folder, emoji_network, tmp_path):
    for model, said in ((3, "model is a int"), ({"a": 3}, "a is a int"), ({}, "needed is a name for each")):
        with pytest.raises(ValueError, match=said):
            evaluate(model, emoji_folder)
    with pytest.raises(ValueError, match="control is 'two'; allowed are one"):
        evaluate({"one": emoji_network}, emoji_folder, control="two")

    class Two(nn.Module):
        def forward(self, images):
            return images, images

    with pytest.raises(ValueError, match="the network returns a tuple"):
        evaluate(Two(), emoji_folder)
    half = remember(build_model("small_resnet", 3), Preprocessing(size=32)).eval()
    pairs = [(torch.zeros(3, 40, 40, dtype=torch.uint8), 0)]
    both = {"a": half, "b": emoji_network}
    with pytest.raises(ValueError, match="can be read only once"):
        evaluate(both, iter(pairs), "clean")
    assert evaluate(both, pairs, "clean").cells.images.tolist() == [1, 1]
    assert evaluate(both, iter(pairs), "clean", reading=HERE).cells.images.tolist() == [1, 1]


def test_torchvisions_networks_are_known_by_their_parameters():
    assert own_preprocessing(torchvision.models.resnet50()) == wanted_by("torchvision/resnet50")
    assert own_preprocessing(torchvision.models.efficientnet_b1()) == wanted_by("torchvision/efficientnet_b1")
    assert own_preprocessing(torchvision.models.resnet18(num_classes=3)) == IMAGENET
    own = Preprocessing(size=99)
    assert own_preprocessing(remember(torchvision.models.resnet18(), own)) == own


def test_a_folder_with_some_of_the_classes_is_matched_by_name(emoji_folder, emoji_network, tmp_path):
    listed = tmp_path / "classes.txt"
    names = class_names(emoji_folder)
    listed.write_text("\n".join(["zebra", *reversed(names)]) + "\n")
    wide = nn.Sequential(emoji_network, nn.Linear(3, 4)).eval()
    with torch.no_grad():  # the same answers, in the order of the list
        wide[1].weight.copy_(torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]))
        wide[1].bias.copy_(torch.tensor([-1e4, 0, 0, 0]))
    plain = evaluate({"a": emoji_network}, emoji_folder, "clean", reading=HERE)
    for classes in (listed, str(listed), ("zebra", *reversed(names))):
        matched = evaluate({"a": wide}, emoji_folder, "clean", classes=classes, reading=HERE)
        assert len(plain.cells) == 1 and plain.cells.correct.item() == matched.cells.correct.item()
    both = evaluate({"a": emoji_network, "b": emoji_network}, emoji_folder, "clean", reading=HERE)
    assert both.cells.correct.nunique() == 1
    with pytest.raises(DataError, match="2 classes are listed, and the network tells 3 apart"):
        evaluate({"a": emoji_network}, emoji_folder, "clean", classes=names[:2], reading=HERE)
    with pytest.raises(DataError, match="3 classes, and the network tells 4 apart; list its classes"):
        evaluate({"a": wide}, emoji_folder, "clean", reading=HERE)


def test_the_command_takes_published_sets_and_domains(emoji_folder, emoji_network, tmp_path, run, refused):
    save_state(emoji_network.state_dict(), tmp_path / "net.pt")
    for folder in ("photo", "cartoon"):
        (tmp_path / "domains").mkdir(exist_ok=True)
        (tmp_path / "domains" / folder).symlink_to(emoji_folder)
    words = ["evaluate", "--model", "small_resnet", "--weights", tmp_path / "net.pt", "--json"]
    for data, shifts, found in (
        (f"clean={emoji_folder},sketch={emoji_folder}", "all", {"clean", "sketch"}),
        (f"clean={emoji_folder},art={emoji_folder}", "art", {"art"}),
        (tmp_path / "domains", "all", {"photo", "cartoon"}),
        (tmp_path / "domains", "cartoon", {"cartoon"}),
    ):
        status, out, _ = run(*words, "--data", data, "--shifts", shifts)
        assert status == 0
        assert found <= {*json.loads(out)["networks"]["small_resnet"]["rows"]} <= {*found, MEAN}
    refused([*words, "--data", f"claen={emoji_folder}"], "--data has 'claen'; did you mean 'clean'?")
    refused([*words, "--data", "clean=/nowhere"], "no images at /nowhere")
    refused(
        [*words, "--data", f"clean={emoji_folder}", "--shifts", "sketch"],
        "--shifts has 'sketch'; allowed are all, clean",
    )


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "exactly one of them"),
        (["advbn", "--model", "resnet18"], "exactly one of them"),
        (["--model", "resnet18"], "needs --weights and --data"),
        (["--model", "resnet18", "--classes", "nope.txt"], "no list of classes at nope.txt"),
        (["--model", "resnet18", "--weights", "x", "--data", "/nowhere"], "no images at /nowhere"),
        (
            ["--model", "small_resnet", "--weights", "{file}", "--data", "{folder}", "--shifts", "sketches"],
            "did you mean 'sketch'",
        ),
        (
            ["--model", "small_resnet", "--weights", "{file}", "--data", "corruption={folder}"],
            "--data has 'corruption'; did you mean 'corruptions'?",
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
    found, seen = seen_by_first_convolutions(
        lambda: evaluate(
            {"a": half, "b": usual, "c": half}, tmp_path, "clean", reading=FolderReading(workers=0)
        )
    )
    seen = [
        found for found in seen if len(found[1]) == 2
    ]  # one black image before is to see whether a network takes the size
    assert [*found.right] == ["a", "b", "c"]
    assert [tuple(b.shape) for _, b in seen] == [(2, 3, 32, 32)] * 2 + [(2, 3, 224, 224)]
    assert pixels(seen[0][1], HALF, HALF) and pixels(seen[2][1], IMAGENET.mean, IMAGENET.std)
    _, seen = seen_by_first_convolutions(lambda: classify(half, tmp_path / "a/0.JPEG", "ab"))
    assert seen[0][1].shape[-2:] == (32, 32) and pixels(seen[0][1], HALF, HALF)
    for size in ({"size": 64, "resize": 60}, {"resize": 20}):
        with pytest.raises(ValueError, match="what is cut out cannot be larger"):
            evaluate({"a": half}, tmp_path, "clean", reading=FolderReading(workers=0, **size))
    for workers in (0, 2):
        with pytest.raises(DataError, match="images differ in size, such as 50 x 60 and 59 x 60 pixels"):
            evaluate(
                build_model("small_resnet", 2), tmp_path, "clean", reading=FolderReading(workers=workers)
            )
