"""Sets of changed images on disk, what a chart marks, and which images are shown."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from miniature_imagenet import picture
from PIL import Image

from advbn import AdvBN
from advbn.base.config import load_params, parse_params
from advbn.base.errors import DataError, ParameterError
from advbn.base.sections import DOMAINS
from advbn.evidence.figures import (
    PHOTOGRAPHS,
    adversarial_figure,
    differences,
    disagreements,
    examples,
    examples_figure,
    opened,
    photographs,
    predictions_figure,
    read_predictions,
    readable,
    robustness_chart,
    searched,
)
from advbn.evidence.testing import kept_tests, make_tests, gathered, write_predictions
from advbn.images.batches import read_images
from advbn.images.writing import make_set
from advbn.networks.models import build_model
from advbn.networks.weights import save_state
from advbn.shifts.cells import columns
from advbn.shifts.styles import adversarial
from advbn.training.run import load_data, resolve, setting_of


def test_a_set_on_disk_is_continued_and_complete(tmp_path, images, autoencoder):
    calls = []

    def make(batch, fail_at=None):
        calls.append(len(batch))
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return adversarial(autoencoder, batch.images, batch.targets, AdvBN(steps=1))

    with pytest.raises(KeyboardInterrupt):
        make_set(images, tmp_path / "set", lambda b: make(b, 3), {"steps": 1})
    assert not (tmp_path / "set").exists()
    assert make_set(images, tmp_path / "set", make, {"steps": 1}) == len(images) - 64
    assert make_set(images, tmp_path / "set", make, {"steps": 1}) == 0
    straight = tmp_path / "straight"
    make_set(images, straight, make, {"steps": 1})
    a, b = read_images(tmp_path / "set"), read_images(straight)
    assert a.names == b.names and torch.equal(a.images, b.images) and not list((tmp_path / "set").rglob(".*"))
    with pytest.raises(FileExistsError, match="made with other settings"):
        make_set(images, tmp_path / "set", make, {"steps": 2})
    next((tmp_path / "set").rglob("*.png")).unlink()
    with pytest.raises(FileExistsError, match="lacks 1 of 100"):
        make_set(images, tmp_path / "set", make, {"steps": 1})


def test_names_that_differ_only_in_their_suffix_are_refused(tmp_path):
    tree(tmp_path / "source", "c/a.jpg", "c/a.png", "c/b.png")
    with pytest.raises(ValueError, match="c/a.jpg and c/a.png would both be written as c/a.png"):
        make_set(read_images(tmp_path / "source"), tmp_path / "made", lambda b: b.images, {})
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def tree(root, *files):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)


def test_the_chart_shows_what_was_named_and_what_is_left_after_correction():
    params, rows = load_params(), []
    for method, branch in (("finetune", "clean"), ("advbn", "clean"), ("advbn", "adversarial")):
        for place, shift in enumerate(columns("openmoji")):
            p = 0.01 if (branch, place) == ("adversarial", 2) else 0.4
            gained = {"difference": 1.0, "difference_ci95": 0.5, "p_holm": p}
            if method == "finetune":
                gained = dict.fromkeys(gained, float("nan"))
            rows.append({"method": method, "branch": branch, "shift": shift, "accuracy": 50.0, **gained})
    pair = {"method": "advbn", "against": "finetune", "difference": 1.0, "difference_ci95": 0.4}
    outcomes = pd.DataFrame([{"outcome": "primary", "named": "2026-11-28", **pair}])
    fig = robustness_chart(pd.DataFrame(rows), outcomes, params)
    named, *panels = fig.axes
    assert named.get_title(loc="left").startswith("named in advance") and len(panels) == len(
        columns("openmoji")
    )
    assert [t.get_text() for t in named.get_yticklabels()] == ["primary: AdvBN against clean fine-tune"]
    strong = [[bars.lines[0].get_alpha() == 1 for bars in ax.containers] for ax in panels]
    assert strong == [[False, shift == columns("openmoji")[2]] for shift in columns("openmoji")]
    assert len(robustness_chart(pd.DataFrame(rows), outcomes.iloc[:0], params).axes) == len(
        columns("openmoji")
    )
    plt.close("all")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_photographs_are_scikit_images_or_those_of_a_folder(tmp_path):
    assert photographs(48).shape == (len(PHOTOGRAPHS), 3, 48, 48)
    picture(tmp_path / "mine.jpg", (90, 60))
    assert photographs(32, str(tmp_path)).shape == (1, 3, 32, 32)
    with pytest.raises(DataError, match="no photographs .* in .*nowhere"):
        photographs(32, str(tmp_path / "nowhere"))


def test_words_stand_for_wordnets_ids_alone():
    assert readable(("n02123045", "n07920052")) == ("tabby", "espresso")
    assert readable(["dog", "n02123045"]) == ("dog", "n02123045")


def test_the_picture_that_is_searched_has_nearly_the_features_and_the_start_its_own():
    torch.manual_seed(0)
    encode, head, rectified = opened(build_model("small_resnet", 5).eval(), "layer1")
    start, other = (photographs(32) / 255).split(1)[:2]
    with torch.no_grad():
        own, wanted = encode(start), encode(other)
        found = searched(encode, wanted, start)
        assert rectified and head(own).shape == (1, 5)
        assert (encode(found) - wanted).norm() < 0.5 * (own - wanted).norm()
    assert torch.equal(searched(encode, own, start), start) and 0 <= found.min() and found.max() <= 1


def answers(truth, *seeds):
    names = [f"image{i}" for i in range(len(truth))]
    return pd.DataFrame(dict(enumerate(seeds)), names).assign(truth=truth)


def test_methods_differ_about_an_image_by_most_of_their_seeds():
    nan = float("nan")
    truth = [0, 0, 0, 1, 1]
    ours = answers(truth, [0, 0, 2, 1, nan], [0, 0, 2, 2, nan], [0, 1, 0, 1, 1])
    theirs = answers(truth, [0, 2, 0, 2, nan], [1, 2, 0, 1, nan], [0, 1, 0, 0, 0])
    found = differences(ours, theirs)
    assert list(found.index) == ["image1", "image2", "image3", "image4"]
    assert list(found.ours) == [True, False, True, True] and list(found.truth) == [0, 0, 1, 1]
    assert list(found.taken) == [2, 2, 0, 0]
    assert differences(ours, ours).empty


@pytest.fixture
def pacs(root, tmp_path, monkeypatch):
    "PACS in miniature, its images under every shift, and the params of a project that has them."
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    for d, domain in enumerate(DOMAINS):
        for c, word in enumerate(("dog", "person")):
            for i in range(10):
                path = tmp_path / "pacs" / domain / word / f"pic_{i:03d}.jpg"
                picture(path, (40, 40), seed=1000 * d + 100 * c + i)
    content = yaml.safe_load((root / "params.yaml").read_text())
    section = content["profiles"]["pacs"]
    section["data"].update(root=str(tmp_path / "pacs"), classes=2, size=32)
    section["network"] = {"name": "small_resnet", "after": "layer1"}
    section["short"]["seeds"] = [0]
    content.update(profile="pacs", seeds=[0, 1])
    params = parse_params(content)
    make_tests(setting_of(params), 0)
    return params


def answered(params, tmp_path, method, wrong):
    "Keep predictions of a method that is wrong about so many images of each cell, the first ones."
    setting = setting_of(params)
    seen, targets = {}, {}
    for shift, cell, images in kept_tests(setting, load_data(setting), 0):
        labels = images.targets.tolist()
        targets |= dict(zip(images.names, labels))
        classes = [1 - t if i < wrong else t for i, t in enumerate(labels)]
        seen[f"{shift}/{cell}"] = dict(zip(images.names, classes))
    branches = ("clean", "adversarial") if method == "advbn" else ("clean",)
    kept = gathered({branch: seen for branch in branches}, targets)
    (tmp_path / "predictions/pacs").mkdir(parents=True, exist_ok=True)
    path = tmp_path / f"predictions/pacs/{method}.npz"
    write_predictions(path, {0: kept, 1: kept})
    return kept, read_predictions(path)


def headings(figure):
    "What is written above the parts of a figure of figures, from top to bottom."
    parts = [part for top in figure.subfigs for part in (top, *top.subfigs)]
    return [part.get_suptitle() for part in parts]


def test_predictions_are_read_as_they_were_written(pacs, tmp_path):
    kept, found = answered(pacs, tmp_path, "advbn", 3)
    assert list(found) == ["0", "1"]
    for one in found.values():
        assert one.cells == kept.cells and one.names == kept.names
        assert np.array_equal(one.targets, kept.targets) and one.classes.keys() == kept.classes.keys()
        assert all(np.array_equal(one.classes[branch], kept.classes[branch]) for branch in kept.classes)


def test_images_are_shown_that_one_of_two_methods_alone_is_right_about(pacs, tmp_path):
    answered(pacs, tmp_path, "advbn", 0), answered(pacs, tmp_path, "finetune", 3)
    figure = disagreements(pacs, "advbn", "finetune", most=4)
    one = ["right by AdvBN, adversarial alone: 3", "right by Clean fine-tune alone: 0"]
    assert headings(figure) == [
        line for name in ("Art", "Cartoon", "Sketch drawings") for line in (f"{name}, 20 images", *one)
    ]
    row, empty = (line.axes for line in figure.subfigs[1].subfigs)
    setting = setting_of(pacs)
    _, _, cartoons = next(kept_tests(setting, load_data(setting), 0, lambda s, c: s == "cartoon"))
    own = {pixels.permute(1, 2, 0).numpy().tobytes() for pixels in cartoons.images[:3]}
    assert {ax.images[0].get_array().tobytes() for ax in row[:3]} == own and not row[3].images
    assert {ax.get_xlabel() for ax in row[:3]} == {"dog\nnot person"}
    assert not any(ax.images for ax in empty) and not (tmp_path / "results").exists()
    alone = headings(disagreements(pacs, "finetune", "advbn/clean", "cartoon/all"))
    assert alone == ["Cartoon, 20 images", one[1], "right by AdvBN, clean alone: 3"]


@pytest.mark.parametrize(
    "words, error, said",
    [
        (("advnb", "finetune"), ParameterError, "no method 'advnb'.*mean 'advbn'"),
        (("advbn", "random"), DataError, "no predictions at .*dvc repro method@pacs-random"),
        (("advbn/adverserial", "advbn"), ParameterError, "no branch 'adverserial'.*mean 'adversarial'"),
        (("advbn", "advbn", "cartoons"), ValueError, "nothing was tested under 'cartoons'.*mean 'cartoon'"),
    ],
)
def test_what_cannot_be_compared_is_said(pacs, tmp_path, words, error, said):
    answered(pacs, tmp_path, "advbn", 0)
    with pytest.raises(error, match=said):
        disagreements(pacs, *words)


def shown(figure):
    return [ax.images[0].get_array() for ax in figure.axes if ax.images]


def test_figures_of_sets_that_are_not_passed_on_show_photographs(pacs, tmp_path):
    runs = [resolve(pacs, method, 0) for method in ("standard", "finetune", "advbn")]
    for seed, run in enumerate(runs):
        torch.manual_seed(seed)
        state = build_model("small_resnet", 2).state_dict()
        for name in ("pretrained", run.name):
            for branch in run.method.branches:
                run.setting.checkpoint(name, 0, branch).parent.mkdir(parents=True, exist_ok=True)
                save_state(state, run.setting.checkpoint(name, 0, branch))
    free = {pixels.permute(1, 2, 0).numpy().tobytes() for pixels in photographs(32)}
    first = [image.tobytes() for image in shown(adversarial_figure(runs[0], strengths=(0.5,)))]
    assert (
        set(first[: len(free)]) == free and len(first) == 2 * len(free) and not set(first[len(free) :]) & free
    )
    under = shown(predictions_figure(runs[1], runs[2]))
    assert under[0].tobytes() in free and len(under) == 7
    own = shown(predictions_figure(runs[1], runs[2], own=True))
    assert len(own) == 4 and not {image.tobytes() for image in own} & free


def test_an_image_is_shown_once_for_each_shift(images, autoencoder):
    made = [("clean", "clean", images), *(("instagram", str(i), images) for i in range(3))]
    assert [cell for _, cell, _ in examples(made)] == ["clean", "1"]
    figure = examples_figure(
        {"one": autoencoder.classifier, "other": autoencoder.classifier}, examples(made), 7
    )
    assert len(figure.axes) == 6 and len(shown(figure)) == 2
    assert np.array_equal(shown(figure)[0], images.images[7].permute(1, 2, 0))
