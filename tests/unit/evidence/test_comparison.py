"""Of one training run: intervals over the images, and the sentence that says which network to take."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from advbn.evidence.comparison import (
    ADVERSARIAL,
    CLEAN,
    CONTROL,
    MEAN,
    at_chance,
    compared,
    over_images,
    over_pairs,
    verdict_of,
)


def table_of(right, cells=1):
    "A table of images that are right or not in all of so many cells."
    columns = pd.MultiIndex.from_product([["corruptions"], [f"fog/{c}" for c in range(cells)]])
    return pd.DataFrame(np.repeat(np.array(right, float)[:, None], cells, 1), columns=columns)


def test_an_image_counts_once_however_many_cells_show_it():
    right = [1, 1, 0, 1, 1, 0, 1, 1, 1, 0]
    one, many = over_images(table_of(right)), over_images(table_of(right, 75))
    assert (one.mean, one.seeds) == (70, 10) and many.half_width == pytest.approx(one.half_width)
    added = np.array([*right, 1, 1, 0, 0])
    assert one.standard_error == pytest.approx(100 * added.std(ddof=1) / 14**0.5)
    assert over_images(table_of(right * 100)).half_width == pytest.approx(
        100 * 1.962 * (0.21 / 1000) ** 0.5, rel=0.01
    )


def test_few_images_that_are_all_right_have_an_interval():
    for n in (1, 16):
        assert over_images(table_of([1] * n)).half_width > 60 / (n + 3)
        same = over_pairs(table_of([1] * n), table_of([1] * n))
        assert same.mean == 0 and same.half_width > 60 / (n + 3)


def test_differences_are_of_the_images_that_both_have_seen():
    own, other = table_of([1, 1, 0, 1]), table_of([0, 1, 0, 0])
    assert over_pairs(own.iloc[:3], other.iloc[1:]).mean == 0 and over_pairs(own, other).mean == 50


def test_several_networks_are_more_than_intervals_of_their_own():
    "Paired: what both find easy cancels."
    random = np.random.default_rng(0)
    easy = random.random(200) < 0.5
    own, other = table_of(easy), table_of(easy ^ (random.random(200) < 0.02))
    assert over_pairs(own, other).half_width < 0.5 * over_images(own).half_width


def answers(gain, n=400, seed=0):
    "Right answers of three networks, the adversarial branch with a `gain` on the shifts."
    rng = np.random.default_rng(seed)
    columns = pd.MultiIndex.from_tuples([("clean", "clean"), ("corruptions", "fog/1"), ("sketch", "edges")])
    ease = rng.random((n, 1))

    def network(bonus):
        return pd.DataFrame(
            (ease + 0.1 * rng.random((n, 3)) < 0.6 + np.array([0, bonus, bonus])) * 1.0, columns=columns
        )

    return {CONTROL: network(0), CLEAN: network(0), ADVERSARIAL: network(gain)}


def test_intervals_are_those_over_images():
    right = answers(0.05)
    table = compared(right).set_index(["network", "shift"])
    fog, sketch = (
        right[ADVERSARIAL][c] - right[CONTROL][c] for c in (("corruptions", "fog/1"), ("sketch", "edges"))
    )
    for row, gains in (("corruptions", fog), (MEAN, (fog + sketch) / 2)):
        added = np.array([*gains, 1, -1])  # the two images more
        found = table.loc[ADVERSARIAL, row]
        assert found.difference == pytest.approx(100 * gains.mean())
        half = t.ppf(0.975, 401) * 100 * added.std(ddof=1) / 402**0.5
        assert found.difference_ci95 == pytest.approx(half, rel=1e-3)
    assert table.loc[CONTROL, "clean"].difference == 0 and np.isnan(table.loc[CONTROL, "clean"].p)


@pytest.mark.parametrize(
    "gain, start",
    [
        (0.1, "Take AdvBN's adversarial branch: +"),
        (0.0, "AdvBN bought nothing that 400 test images show on the mean of the shifts: "),
    ],
)
def test_the_verdict_says_which_branch_or_that_nothing_was_bought(gain, start):
    said = verdict_of(compared(answers(gain)))
    assert said.startswith(start) and said.endswith(".") and len(re.findall(r"±", said)) == 2


def test_a_control_that_guesses_is_told():
    table = compared({CONTROL: table_of([1, 0, 0, 0] * 30), CLEAN: table_of([1, 0, 0, 0] * 30)})
    assert "not shown to beat guessing among 4 classes (25 ± 8 %, guessing 25 %)" in at_chance(table, 4)
    assert at_chance(table, 10) == ""


def test_the_verdict_can_be_against_both():
    right = answers(-0.1)
    right[CLEAN] = right[ADVERSARIAL]
    assert verdict_of(compared(right)).startswith(
        "Keep the clean fine-tune: AdvBN lost on the mean of the shifts, -"
    )


def test_without_a_difference_nobody_wins_by_chance_too_often():
    "Two branches, no difference: a verdict for one of them in at most 1 of 40, with room for the draw."
    won = sum(verdict_of(compared(answers(0.0, 120, seed))).startswith("Take") for seed in range(50))
    assert won <= 6
