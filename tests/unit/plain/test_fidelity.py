"""Ours and the reference side by side: what differs, what random numbers explain, what is kept."""

import json
from pathlib import Path

import imagecorruptions
import numpy as np
import pandas as pd
import pytest
import skimage.data
import torch
from PIL import Image

from advbn import fidelity
from advbn.networks.models import build_model
from advbn.networks.weights import save_state
from advbn.shifts.corruptions import CORRUPTIONS, corrupt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Six crops of 128 pixels of two photographs, the photographs as classes."
    made = tmp_path_factory.mktemp("photographs")
    for name, photograph in (("cat", skimage.data.cat()), ("coffee", skimage.data.coffee())):
        (made / name).mkdir()
        for i in range(3):
            Image.fromarray(photograph[20 * i : 20 * i + 128, 100 : 100 + 128]).save(made / name / f"{i}.png")
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    save_state(build_model("small_resnet", 2).state_dict(), path)
    return path


def rows(first, again, reference, corruption="snow", severity=3, random=True):
    count = len(first)
    sides = {"first": first, "again": again, "reference": reference}
    frame = pd.DataFrame({side: np.asarray(right, dtype=bool) for side, right in sides.items()})
    return frame.assign(
        corruption=corruption, severity=severity, random=random, image=range(count), same=True, pixels=1
    )


def test_a_cell_by_hand():
    table = fidelity.compared(rows([1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]))
    cell = table.iloc[0]
    assert (cell.ours, cell.reference, cell.difference) == (50, 25, 25)
    apart = np.array([0, 50, 50, 0])  # points, image by image
    error = apart.std(ddof=1) / 2
    assert np.isclose(cell.difference_ci95, 3.182 * error, rtol=1e-3)
    assert np.isclose(cell.explained, 3.182 * 100 * np.sqrt(0.75 * 2 / 4 / 4), rtol=1e-3)
    assert list(table.severity) == ["3", "mean", "mean"] and list(table.corruption) == ["snow", "snow", "all"]
    assert np.isnan(cell.pixels)


def test_random_numbers_explain_what_they_should_and_no_more():
    generator, found = np.random.default_rng(0), []
    chances = generator.beta(0.5, 0.5, 200)  # of each image to be recognised, often near 0 or 1
    for _ in range(400):
        draws = generator.random((3, 200)) < chances
        cell = fidelity.compared(rows(*draws)).iloc[0]
        found.append((abs(cell.difference) <= cell.explained, abs(cell.difference) <= cell.difference_ci95))
    assert np.all(np.abs(np.mean(found, axis=0) - 0.95) < 0.03)


def test_a_corruption_that_is_harder_is_found_among_cells_that_agree():
    generator, parts = np.random.default_rng(0), []
    for name in CORRUPTIONS:
        chances = generator.beta(0.5, 0.5, 300)
        draws = generator.random((3, 300)) < chances
        if name == "frost":
            draws[2] = generator.random(300) < 0.6 * chances
        parts.append(rows(*draws, corruption=name))
    table = fidelity.compared(pd.concat(parts))
    cells = fidelity.cells_of(table).set_index("corruption")
    assert list(cells.index) == list(CORRUPTIONS)
    assert list(cells.index[cells.verdict != "no difference shown"]) == ["frost"]
    assert cells.loc["frost", "verdict"] == "higher" and cells.loc["frost", "p_holm"] < 0.05
    assert cells.loc["frost", "difference"] > cells.loc["frost", "explained"]
    assert "cells that differ after Holm's correction: frost/3;" in fidelity.in_words(table)


def test_the_reference_does_not_know_its_batch_and_leaves_numpy_alone():
    images = torch.from_numpy(skimage.data.cat()[:128, :256].copy()).permute(2, 0, 1)
    images = torch.stack([images[..., :128], images[..., 128:]])
    state = np.random.get_state()[1].copy()
    for name in CORRUPTIONS:
        both = fidelity.reference_corrupt(images, name, 3, [4, 9])
        assert torch.equal(both[1:], fidelity.reference_corrupt(images[1:], name, 3, [9])), name
    assert np.array_equal(state, np.random.get_state()[1])
    assert both.shape == images.shape and both.dtype == torch.uint8


def test_frost_is_a_photograph_as_it_is():
    "ImageNet-C's script takes crops of the photographs; imagecorruptions-imaug enlarges them, which smooths."
    black = torch.zeros(12, 3, 224, 224, dtype=torch.uint8)
    published = fidelity.reference_corrupt(black, "frost", 1, range(12))
    files = Path(imagecorruptions.__file__).parent.glob("frost/*")
    photographs = [0.4 * np.asarray(Image.open(file).convert("RGB"), dtype=float) for file in files]
    for made in published.permute(0, 2, 3, 1).numpy():
        corners = [np.argwhere((p[:-223, :-223].astype(np.uint8) == made[0, 0]).all(-1)) for p in photographs]
        found = [
            np.array_equal(p[top : top + 224, left : left + 224].astype(np.uint8), made)
            for p, places in zip(photographs, corners)
            for top, left in places
        ]
        assert any(found)
    large = fidelity.reference_corrupt(torch.zeros(2, 3, 700, 400, dtype=torch.uint8), "frost", 5, range(2))
    assert large.shape == (2, 3, 700, 400) and large.float().std() > 10


def test_pixels_are_the_same_for_both_and_the_second_draw_is_another(folder, weights):
    network, classes = fidelity.load_classifier("small_resnet", str(weights), folder)
    images = fidelity.network_images(network, folder, classes)
    found = fidelity.seen(network, images, (1, 5), ("contrast", "gaussian_noise"))
    assert len(found) == 2 * 2 * 6 and set(found.image) == set(range(6))
    fixed, random = (found[found.random == r] for r in (False, True))
    assert set(fixed.corruption) == {"contrast"} and set(random.corruption) == {"gaussian_noise"}
    assert fixed.pixels.max() <= 1 < random.pixels.min() and fixed["first"].equals(fixed["again"])
    for (name, severity), part in fixed.groupby(["corruption", "severity"]):
        piece = images[range(6)]
        theirs = fidelity.reference_corrupt(piece.images, name, severity, images.indices)
        apart = corrupt(piece.images, name, severity).int() - theirs.int()
        assert apart.abs().amax((1, 2, 3)).tolist() == part.pixels.tolist()


def test_the_command_keeps_table_record_and_chart_but_no_image(folder, weights, run, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    words = ["--model", "small_resnet", "--weights", weights, "--data", folder, "--images", 4]
    status, out, _ = run("bench", "fidelity", *words, "--severities", "3")
    kept = tmp_path / "results/bench"
    assert status == 0 and "15 cells, 4 images: ours" in out
    assert sorted(p.name for p in kept.iterdir()) == [
        f"fidelity-small_resnet.{e}" for e in ("csv", "json", "png")
    ]
    table = pd.read_csv(kept / "fidelity-small_resnet.csv")
    assert len(table) == 15 + 15 + 1 and set(table[table.severity == "3"].corruption) == set(CORRUPTIONS)
    record = json.loads((kept / "fidelity-small_resnet.json").read_text())
    assert record["images"]["images"] == 4 and record["images"]["shorter side, pixels"] == [128, 128]
    assert record["images"]["folder"].endswith(folder.name) and "Processor" in record
    assert record["reference"].startswith("imagecorruptions-imaug ")


def test_the_chart_has_each_cell_once():
    table = fidelity.compared(pd.concat([rows([1, 0], [1, 0], [1, 1], severity=s) for s in (1, 3)]))
    ax = fidelity.fidelity_chart(table, "some").axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["snow 1", "snow 3"]


def test_what_cannot_be_compared_is_said_before_the_work(folder, weights, refused, tmp_path):
    words = ["bench", "fidelity", "--model", "small_resnet"]
    refused(words, "bench fidelity needs --weights and --data")
    given = [*words, "--weights", weights, "--data", folder]
    refused([*given, "--severities", "1,6"], "--severities has '6'; allowed are some of 1,2,3,4,5")
    refused([*given, "--batch", "4"], "--batch goes with step, corrupt, evaluate, scale")
    refused(["bench", "step", "--data", folder], "--data goes with fidelity")
    for name in ("cat", "coffee"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / name / "0.png")
    small = [*words, "--weights", weights, "--data", tmp_path]
    refused(small, "the network is given images of 64 x 64 pixels; needed are more than 120")
