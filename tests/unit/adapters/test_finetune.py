"""From images of one's own to a robust network, its control, a table, a verdict and a folder of files."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from PIL import Image

import advbn
from advbn.adapters.finetune import (
    FILES,
    finetune,
    layer_options,
    run_of,
)
from advbn.base.errors import DataError, ParameterError
from advbn.base.finetuning import Options, kept_choices
from advbn.evidence.comparison import ADVERSARIAL, CLEAN, CONTROL, MEAN, at_chance, verdict_of
from advbn.evidence.evaluation import predict, top1_accuracy
from advbn.images.batches import read_images
from advbn.images.openmoji import write_png
from advbn.images.preprocessing import preprocessing_of
from advbn.networks.models import build_model
from advbn.networks.weights import load_into
from advbn.shifts.filters import edges

SHORT = {"pretrain_epochs": 1, "epochs": 1, "shifts": "clean,sketch", "workers": 0, "batch_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A hundred emoji in nine classes."
    images, root = read_images(ROOT / "data/openmoji"), tmp_path_factory.mktemp("own") / "images"
    for i in range(0, 1898, 19):
        path = root / images.names[i]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, images.images[i].permute(1, 2, 0).numpy())
    return root


@pytest.fixture(scope="module")
def done(folder):
    "A fine-tuning that is kept beside the images, and what it told."
    told = []
    made = finetune("small_resnet", folder, out=folder.parent / "robust", tell=told.append, **SHORT)
    return made, folder.parent / "robust", told


def test_it_gives_three_networks_a_table_and_a_verdict(done, folder):
    made, _, told = done
    assert advbn.finetune is finetune and list(made.networks) == [CONTROL, CLEAN, ADVERSARIAL]
    assert all(not network.training for network in made.networks.values())
    images = read_images(folder)
    held = set(made.job.division.listed.query("part == 'test'").file)
    test = images[[i for i, name in enumerate(images.names) if name in held]]
    assert len(test) == len(held) == made.table.images.iloc[0]
    rows = made.table.set_index(["network", "shift"])
    for name, network in made.networks.items():
        assert rows.accuracy[name, "clean"] == pytest.approx(
            top1_accuracy(network, test.images, test.targets)
        )
        assert rows.accuracy[name, "sketch"] == rows.accuracy[name, MEAN]
        assert rows.accuracy[name, "sketch"] == pytest.approx(
            top1_accuracy(network, edges(test.images), test.targets)
        )
    assert made.verdict == verdict_of(made.table) + at_chance(made.table, 9)
    assert re.match(r"Take|Keep|AdvBN bought nothing", made.verdict)
    said = "\n".join(told)
    for word in ("cut            layer1", "layer2, layer3", "--after", "float32", "about ", "--batch-size"):
        assert word in said, said


def test_both_branches_are_those_of_the_one_network(done, folder):
    made, _, _ = done
    images = read_images(folder).images[:8]
    for name, branch in ((CLEAN, "clean"), (ADVERSARIAL, "adversarial")):
        plain = build_model("small_resnet", 9)
        plain.load_state_dict(made.net.export(branch))
        assert torch.equal(predict(plain, images)[1], predict(made.networks[name], images)[1])
    stem = [key for key in made.networks[CONTROL].state_dict() if key.startswith(("conv1", "layer1"))]
    states = [network.state_dict() for network in made.networks.values()]
    assert all(torch.equal(states[0][key], state[key]) for key in stem for state in states)
    assert not torch.equal(states[0]["fc.weight"], states[1]["fc.weight"])


def test_what_is_saved_is_what_was_made(done, folder):
    made, out, _ = done
    images = read_images(folder).images[:8]
    for name, file in FILES.items():
        network = load_into(build_model("small_resnet", 9), out / f"{file}.safetensors").eval()
        assert torch.equal(predict(network, images)[1], predict(made.networks[name], images)[1])
        assert preprocessing_of(network) == made.job.wanted
    card, page = (out / "card.md").read_text(), (out / "report.html").read_text()
    for said in (
        made.verdict,
        f"{made.table.images.iloc[0]} images",
        "layer1",
        'build_model("small_resnet", 9)',
    ):
        assert said in card
    assert (
        made.verdict in page.replace("&#39;", "'") and page.count("data:image/png") == len(made.mistakes) > 3
    )
    assert (out / "classes.txt").read_text().split("\n")[:-1] == list(made.job.division.classes)
    assert pd.read_csv(out / "split.csv").part.value_counts()["test"] == made.table.images.iloc[0]
    assert pd.read_csv(out / "table.csv").shape == made.table.shape
    assert made.save(folder.parent / "again") and (folder.parent / "again/card.md").read_text() == card


def test_mistakes_are_mistakes(done):
    made, _, _ = done
    assert {m.network for m in made.mistakes} == {*made.networks} and {m.cell for m in made.mistakes} <= {
        "clean/clean",
        "sketch/edges",
    }
    for m in made.mistakes:
        answer = predict(made.networks[m.network], m.pixels[None])[0][0, 0].item()
        assert made.job.division.classes[answer] == m.answer != m.truth


def test_the_same_call_takes_the_networks_from_there_and_another_is_refused(done, folder):
    made, out, _ = done
    told = []
    again = finetune("small_resnet", folder, out=out, tell=told.append, **SHORT)
    assert again.choices == made.choices and not any("left of all" in line for line in told)
    for name, network in again.networks.items():
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), made.networks[name].parameters()))
    pd.testing.assert_frame_equal(again.table, made.table)
    with pytest.raises(ParameterError, match=r"with other wishes \(epochs 1, now 2; seed 0, now 1\)"):
        finetune("small_resnet", folder, out=out, **{**SHORT, "epochs": 2, "seed": 1})
    with pytest.raises(ParameterError, match="holds other files"):
        finetune("small_resnet", folder, out=folder, **SHORT)


def test_test_images_are_resized_and_cut_once(folder, tmp_path):
    "As `evaluate` does it, which reads them anew."
    other = shutil.copytree(folder, tmp_path / "other")
    for picture in other.rglob("*.png"):
        flipped = Image.open(picture).transpose(Image.Transpose.ROTATE_90)
        flipped.save(picture)
    made = finetune(
        "small_resnet", folder, test=other, size=32, resize=40, **{**SHORT, "shifts": "clean", "epochs": 3}
    )
    again = advbn.evaluate(made.networks, other, "clean")
    rows = made.table.set_index(["network", "shift"]).accuracy
    for name in made.networks:
        assert rows[name, "clean"] == pytest.approx(100 * again.values(name).to_numpy().mean(), abs=1e-4)
    assert made.mistakes and all(mistake.answer != mistake.truth for mistake in made.mistakes)


def test_a_batch_of_too_many_images_is_refused_and_nothing_is_kept(folder, tmp_path):
    with pytest.raises(
        ParameterError, match=r"batch_size \(--batch-size\) is 1000; allowed are at most 7\d, of"
    ):
        finetune("small_resnet", folder, out=tmp_path / "out", **{**SHORT, "batch_size": 1000})
    assert not (tmp_path / "out").exists()


def test_what_was_begun_and_not_trained_may_be_changed(tmp_path):
    (tmp_path / "choices.json").write_text(json.dumps({"given": {"epochs": 1}, "ended": []}))
    assert kept_choices(tmp_path, {"epochs": 2}) == {}
    (tmp_path / "choices.json").write_text(json.dumps({"given": {"epochs": 1}, "ended": ["pretraining"]}))
    with pytest.raises(ParameterError, match="epochs 1, now 2"):
        kept_choices(tmp_path, {"epochs": 2})


def test_pictures_that_cannot_be_read_are_told(folder, tmp_path):
    images, told = shutil.copytree(folder, tmp_path / "images"), []
    spoilt = sorted(images.rglob("*.png"))[0]
    spoilt.write_bytes(b"no picture")
    finetune("small_resnet", images, tell=told.append, on_bad_image="skip", **SHORT)
    (said,) = [line for line in told if "could not be read and were left out" in line]
    assert spoilt.name in said


def test_training_and_test_images_are_not_taken_for_classes(folder, tmp_path):
    for part in ("train", "val"):
        shutil.copytree(folder, tmp_path / "set" / part)
    with pytest.raises(DataError, match="set has train, val in place of classes; give .*train"):
        finetune("small_resnet", tmp_path / "set", **SHORT)


def test_both_branches_are_evaluated_from_their_folder(done, folder, run, refused):
    made, out, _ = done
    found = advbn.evaluate(str(out / "advbn"), folder, "clean")
    assert list(found.right) == ["clean", "adversarial"]
    status, said, _ = run("evaluate", "--model", out / "advbn", "--data", folder, "--shifts", "clean")
    assert status == 0 and found.table.to_string() in said or str(found).splitlines()[-1] in said
    near = f"did you mean '{out / 'advbn'}'?"
    refused(["evaluate", "--model", out, "--data", folder], f"no config.json in {out}", near)
    refused(["evaluate", "--model", out / "advbm", "--data", folder], f"no folder {out / 'advbm'}", near)
    refused(["evaluate", "--model", out / "advbn"], f"--model {out / 'advbn'} needs --data")
    refused(["export", out / "advbm", "x.pt"], f"no folder {out / 'advbm'}", near)
    refused(["export", out / "advbn", "x.onnx"], "x.onnx is ONNX by its name; say --onnx")
    words = ["evaluate", "--model", "small_resnet", "--data", folder, "--shifts", "clean"]
    status, said, _ = run(*words, "--weights", out / "clean-finetune.safetensors")  # classes.txt is beside
    assert status == 0 and "small_resnet" in said


def test_the_command_makes_the_same_and_says_when_it_is_complete(done, folder, run, refused, tmp_path):
    made, _, _ = done
    words = ["finetune", "--data", folder, "--model", "small_resnet", "--out", tmp_path / "robust"]
    words += ["--pretrain-epochs", 1, "--epochs", 1, "--shifts", "clean,sketch", "--batch-size", 16]
    status, said, _ = run(*words)
    assert status == 0 and made.verdict in said and made.table_text() in said
    assert json.loads((tmp_path / "robust/choices.json").read_text())["complete"]
    status, said, _ = run(*words)
    assert status == 0 and made.verdict in said and "was complete" in said
    refused([*words, "--epochs", 2], "was begun with other wishes (epochs 1, now 2)")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--data", "nowhere"], "--data: no folder nowhere"),
        (["--weights", "nope.pt"], "no weights at nope.pt"),
        (["--eps", "much"], "--eps is 'much'; allowed are auto and a number"),
        (["--eps", "-1"], "--eps is '-1'; allowed are auto and a number from 0"),
        (
            ["--recipe", "fats"],
            "--recipe is 'fats'; input should be 'faithful' or 'fast'; did you mean 'fast'?",
        ),
        (
            ["--on-bad-image", "skp"],
            "--on-bad-image is 'skp'; input should be 'error' or 'skip'; did you mean 'skip'?",
        ),
        (["--log", "tensorbord"], "did you mean 'tensorboard'?"),
        (["--resize", "8"], "--resize is 8 and --size 40"),
        (["--out", "{data}/../file"], "file cannot be a folder: "),
        (["--out", "{data}/robust"], "lies in"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--test", "{data}"], "--test is the folder of --data"),
        (["--model", "hub:resnet"], "allowed is hub:OWNER/NAME"),
        (["--shifts", "sketchy"], "did you mean 'sketch'"),
        (["--model", "small_resnett"], "no network 'small_resnett'; the nearest are 'small_resnet'"),
        (["--after", "layer9"], "has no module 'layer9'; the nearest are 'layer"),
        (["--test", "{other}"], "has the class 'zebra'; the network knows 9 classes"),
    ],
)
def test_slips_are_told_before_anything_is_trained(folder, tmp_path, refused, words, said):
    (tmp_path / "other/zebra").mkdir(parents=True)
    write_png(tmp_path / "other/zebra/z.png", np.zeros((40, 40, 3), np.uint8))
    (folder / "../file").write_text("a file")
    given = {
        "--data": str(folder),
        "--model": "small_resnet",
        "--out": str(tmp_path / "robust"),
        "--size": "40",
    }
    given |= {words[0]: words[1].format(data=folder, other=tmp_path / "other")}
    refused(["finetune", *(word for pair in given.items() for word in pair)], said)
    assert not list(tmp_path.rglob("*.pt")) and not (tmp_path / "robust").exists()


def test_an_unknown_option_has_its_nearest_spelling(folder):
    with pytest.raises(ParameterError, match="unknown key 'epoch'; did you mean 'epochs'"):
        finetune("small_resnet", folder, epoch=3)


def test_another_domain_is_tested_as_it_is(folder, tmp_path):
    drawn = read_images(ROOT / "data/sketch")
    for i in range(0, 1898, 31):
        path = tmp_path / "drawn" / drawn.names[i]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, drawn.images[i].permute(1, 2, 0).numpy())
    told = []
    made = finetune(
        "small_resnet",
        folder,
        tmp_path / "drawn",
        tell=told.append,
        recipe="fast",
        **{**SHORT, "shifts": "clean"},
    )
    assert made.table.images.iloc[0] == 62 and set(made.table["shift"]) == {"clean"}
    assert f"the images of {tmp_path / 'drawn'} as they are" in made.verdict
    assert "As they are" in made.table_text() and made.net.unpaired and made.net.layer.steps == 1


def test_the_strength_is_chosen_on_training_images(folder, tmp_path):
    made = finetune(
        build_model("small_resnet", 9),
        read_images(folder),
        out=tmp_path / "robust",
        eps="auto",
        tell=lambda line: None,
        **{**SHORT, "shifts": "clean"},
    )
    tried = pd.read_csv(tmp_path / "robust/strength.csv")
    best = tried.sort_values("eps").sort_values("gain", ascending=False, kind="stable").eps.iloc[0]
    assert tried.eps.tolist() == [0.25, 0.5, 1.1] and made.net.layer.eps == best and made.net.layer.steps == 3
    assert made.choices["strength"].value == f"eps {best:g}" and "pretraining" not in {*made.history.run}


def test_a_precision_that_the_device_lacks_is_said_and_not_taken(folder):
    options = {**SHORT, "shifts": "clean", "device": "cpu", "precision": "fp16"}
    with pytest.warns(
        UserWarning, match="precision is 'fp16', and training stays with float32: fp16 needs a GPU"
    ):
        made = finetune("small_resnet", folder, tell=lambda line: None, **options)
    assert made.choices["precision"].value == "float32"


def test_streamed_images_are_trained_on_as_well(folder, monkeypatch):
    from advbn.adapters import holdout as room

    monkeypatch.setattr(room, "MEMORY", 1000)
    made = finetune("small_resnet", folder, tell=lambda line: None, **{**SHORT, "shifts": "clean"})
    assert len(made.history) == 3 and made.history.clean_loss.notna().all()
    with pytest.raises(ParameterError, match="so many images are streamed, cropped and flipped"):
        finetune("small_resnet", folder, tell=lambda line: None, augment="none", **SHORT)


def test_what_is_left_is_told_at_each_stage(done):
    stages = [re.match(r"(\w+) \((\d) of 4\), about \d+ ", line) for line in done[2]]
    assert [m[1] for m in stages if m] == ["pretraining", "control", "AdvBN", "evaluation"]
    assert json.loads((done[1] / "choices.json").read_text())["expected"].keys() == {
        m[1] for m in stages if m
    }


def test_the_layer_and_the_run_are_what_was_chosen(done):
    job = done[0].job
    assert layer_options(Options(), 1.1) == {
        **layer_options(Options(), 1.1),
        "eps": 1.1,
        "step_size": 0.2,
        "steps": 6,
        "start": "clean",
    }
    fast = layer_options(Options(recipe="fast"), 0.5)
    assert (fast["steps"], fast["start"], fast["share"], fast["unpaired"]) == (1, "random", 0.25, True)
    run = run_of(job, "AdvBN", fast)
    assert run.method.branches == ("clean", "adversarial") and run.method.unpaired and run.after == "layer1"
    assert run_of(job, CONTROL).method.options is None and run.finetune.epochs == 1


def test_a_folder_for_which_there_is_nothing_is_refused(tmp_path):
    with pytest.raises(DataError):
        finetune("small_resnet", tmp_path / "nowhere")
