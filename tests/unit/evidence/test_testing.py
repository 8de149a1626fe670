"""What is kept of each image: who was right on which cell."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from advbn.base.config import load_params
from advbn.base.errors import DataError
from advbn.evidence.testing import (
    all_cells,
    cell_count,
    gathered,
    keep_right,
    read_right,
    score,
    write_right,
)
from advbn.images.batches import Images
from advbn.training.run import load_data, setting_of

CLASSES = ("a", "b", "c")


class Constant(torch.nn.Module):
    "A network that takes everything for one class."

    def __init__(self, answer):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.eye(3)[answer])

    def forward(self, x):
        return self.bias.expand(len(x), 3)


def some(names, targets):
    return Images(torch.zeros(len(names), 3, 8, 8, dtype=torch.uint8), torch.tensor(targets), names, CLASSES)


def made():
    "Two cells that show other images, one of them in two pieces."
    yield "clean", "clean", some(("x", "y"), [0, 1])
    yield "clean", "clean", some(("z",), [2])
    yield "corruptions", "fog/3", some(("z", "x"), [2, 0])


def test_predictions_are_kept_by_image_and_cell_however_they_come():
    table, found = score({"clean": Constant(0), "adversarial": Constant(2)}, made(), "constants")
    assert found.cells == ("clean/clean", "corruptions/fog/3") and found.names == ("x", "y", "z")
    assert found.classes["clean"].tolist() == [[0, 0, 0], [0, -1, 0]]
    assert found.right("clean").tolist() == [[1, 0, 0], [1, 255, 0]]
    assert found.right("adversarial").tolist() == [[0, 0, 1], [0, 255, 1]]
    for row in table.itertuples():
        of_cell = found.right(row.branch)[found.cells.index(f"{row.shift}/{row.cell}")]
        assert (row.correct, row.images) == ((of_cell == 1).sum(), (of_cell != 255).sum())


def test_what_is_right_is_read_as_it_was_written_of_seeds_and_of_runs(tmp_path):
    _, found = score({"clean": Constant(0)}, made(), "constant")
    write_right(tmp_path / "main.npz", {0: found, 1: found})
    write_right(tmp_path / "study.npz", {"plain/advbn/3": found})
    main, study = read_right(tmp_path / "main.npz"), read_right(tmp_path / "study.npz")
    assert list(main) == [(0, "clean"), (1, "clean")] and list(study) == [("plain/advbn", 3, "clean")]
    for table in (*main.values(), *study.values()):
        assert list(table.index) == ["x", "y", "z"]
        assert list(table.columns) == [("clean", "clean"), ("corruptions", "fog/3")]
        np.testing.assert_array_equal(table, [[1, 1], [0, np.nan], [0, 0]])
    before = (tmp_path / "main.npz").read_bytes()
    write_right(tmp_path / "main.npz", {0: found, 1: found})
    assert (tmp_path / "main.npz").read_bytes() == before


def test_a_seed_is_kept_beside_others(tmp_path):
    path = tmp_path / "advbn.npz"
    _, one = score({"clean": Constant(0)}, made(), "constant")
    _, other = score({"clean": Constant(1)}, made(), "constant")
    keep_right(path, {0: one})
    keep_right(path, {1: one})
    keep_right(path, {0: other})
    kept = read_right(path)
    assert set(kept) == {(0, "clean"), (1, "clean")}
    assert kept[0, "clean"].sum().sum() == 1 and kept[1, "clean"].sum().sum() == 2
    cells = gathered({"clean": {"clean/clean": {"x": 0}}}, {"x": 0})
    with pytest.raises(DataError, match="holds other cells; move it away"):
        keep_right(path, {2: cells})


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        read_right(tmp_path / "none.npz")


def test_the_cells_of_a_bar_are_counted_beforehand():
    setting = replace(setting_of(load_params()), pictures=None)
    data = load_data(setting)
    made = list(all_cells(setting, data, 0, most=24))
    assert len(made) == cell_count(setting, data) > 90
