"""Sets of changed images on disk, and what a chart marks."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from PIL import Image

from advbn import AdvBN
from advbn.base.config import load_params
from advbn.evidence.figures import robustness_chart
from advbn.images.batches import read_images
from advbn.images.writing import make_set
from advbn.shifts.cells import columns
from advbn.shifts.styles import adversarial


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
