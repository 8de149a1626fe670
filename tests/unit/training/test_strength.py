"""The choice of cut and strength: what is held out, and which candidate is taken."""

import pandas as pd
import pytest
import torch

from advbn.base.config import load_params
from advbn.images.batches import Images
from advbn.training.strength import HeldOut, choose_strength, held_out_cells, strongest


def test_a_tenth_of_each_class_is_held_out_and_none_of_it_is_trained_on():
    targets = torch.arange(40) % 2
    pixels = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8)
    images = Images(pixels, targets, tuple(f"{i:02d}" for i in range(40)), ("a", "b"))
    data = HeldOut(images)
    assert data.test(5).targets.bincount().tolist() == [2, 2] and len(data.train(5)) == 36
    assert not set(data.test(5).names) & set(data.train(5).names)
    assert len(HeldOut(images, 20).images) == 20
    cells = held_out_cells(data.test(5), filters=4)
    assert len(cells) == 19 and all(cell.shape == (4, 3, 32, 32) for cell in cells)


def test_of_equal_gains_the_smaller_eps_wins_and_then_the_earlier_cut():
    rows = [("blocks.0", 0.5, 1.0), ("blocks.0", 1.1, 2.0), ("blocks.1", 0.25, 2.0), ("blocks.2", 0.25, 2.0)]
    best = strongest(pd.DataFrame(rows, columns=["cut", "eps", "gain"]))
    assert (best.cut, best.eps) == ("blocks.1", 0.25)


def test_a_seed_that_is_tested_with_is_refused():
    with pytest.raises(ValueError, match="seed is 2; allowed is one that params.yaml does not test with"):
        choose_strength(load_params(), seed=2)
