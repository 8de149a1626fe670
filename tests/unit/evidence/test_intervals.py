"""Intervals over seeds and images: by hand, by simulation, and what is refused."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import nct, t

from advbn.evidence.intervals import (
    Estimate,
    components,
    contributions,
    differences,
    holm,
    power,
    student,
    summarize,
    two_way,
    verdict,
)


def values(columns, names=None):
    "Values by `(shift, cell)`, a list each, of images called a, b, c and so on."
    table = pd.DataFrame({key: pd.Series(column, dtype=float) for key, column in columns.items()})
    return table.set_axis(names or list("abcdefghij")[: len(table)], axis=0)


def clean(**images):
    return pd.DataFrame({("clean", "clean"): images}, dtype=float)


def test_a_mean_of_shifts_is_one_of_cells_and_of_the_images_of_a_cell():
    nan = math.nan
    table = values(
        {
            ("fog", "1"): [1, 0, 1, nan],
            ("fog", "2"): [nan, nan, 0, 1],
            ("sketch", "edges"): [1, 1, 1, 0],
        }
    )
    mean, parts = contributions(table)
    assert mean == pytest.approx(((2 / 3 + 1 / 2) / 2 + 3 / 4) / 2)
    root = np.sqrt
    of_a = (1 / 3) / 4 / root(6) + (1 / 4) / 2 / root(12)  # the weight of a cell is 1/4, of Sketch 1/2
    of_d = (1 / 2) / 4 / root(2) + (-3 / 4) / 2 / root(12)
    assert parts["a"] == pytest.approx(of_a) and parts["d"] == pytest.approx(of_d)
    assert parts.sum() == pytest.approx(0)
    empty = table.join(values({("fog", "3"): [nan] * 4}))  # a cell that shows none of a seed's images
    assert contributions(empty)[0] == pytest.approx(mean)
    single = contributions(table.join(values({("fog", "4"): [0, nan, nan, nan]})))
    assert single[0] == pytest.approx(((2 / 3 + 1 / 2 + 0) / 3 + 3 / 4) / 2)
    with pytest.raises(ValueError, match="rain has no tested images"):
        contributions(table.join(values({("rain", "1"): [nan] * 4})))


def test_shifts_of_other_images_add_their_variances():
    "One seed's mean of two shifts on images of their own: a fourth of the sum of both variances."
    first, second = [1, 0, 1, 1], [0, 0, 1]
    table = pd.concat(
        [values({("a", "x"): first}, list("pqrs")), values({("b", "x"): second}, list("tuv"))], axis=1
    )
    mean, parts = contributions(table)
    assert mean == pytest.approx((3 / 4 + 1 / 3) / 2)
    expected = (np.var(first, ddof=1) / 4 + np.var(second, ddof=1) / 3) / 4
    assert (parts**2).sum() == pytest.approx(expected)


def test_two_seeds_that_share_an_image_by_hand():
    found = two_way({0: clean(a=1, b=0, c=0), 1: clean(c=0, d=0, e=1)})
    assert found.mean == pytest.approx(1 / 3) and found.seeds == 2
    # the means are equal, so nothing is between seeds; image c adds -1/3 / sqrt(6) to both
    assert found.standard_error**2 == pytest.approx(1 / 9 / 6)
    found = two_way({0: clean(a=1, b=0, c=1), 1: clean(c=0, d=0, e=1)})
    # the product of what c adds is negative, 1/3 * -1/3 / 6; what remains is the variance of 2/3 and 1/3
    assert found.standard_error**2 == pytest.approx(np.var([2 / 3, 1 / 3], ddof=1) / 2)


def test_without_shared_images_it_is_students_interval():
    tables = {
        seed: clean(**{f"{seed}-{i}": x for i, x in enumerate(row)})
        for seed, row in enumerate([[1, 0, 0, 1], [1, 1, 1, 0], [0, 0, 1, 0]])
    }
    found, plain = two_way(tables), student([0.5, 0.75, 0.25])
    assert (found.mean, found.standard_error, found.df) == pytest.approx((0.5, plain.standard_error, 2))
    low, high = t.interval(0.95, 2, loc=0.5, scale=0.25 / 3**0.5)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert found.p == pytest.approx(2 * t.sf(0.5 / (0.25 / 3**0.5), 2))


def test_where_all_seeds_agree_the_images_remain():
    row = {f"i{n}": n % 3 == 0 for n in range(300)}
    found = two_way({seed: clean(**row) for seed in range(8)})
    assert found.standard_error**2 == pytest.approx(np.var([*row.values()], ddof=1) / 300)
    assert student([found.mean] * 8).half_width == 0 and found.df > 100


def test_the_names_of_images_count_and_not_their_places():
    tables = {0: clean(a=1, b=0, c=1), 1: clean(a=1, b=1, c=0), 2: clean(c=1, d=0)}
    turned = {seed: table.iloc[::-1] for seed, table in tables.items()}
    assert two_way(tables).standard_error == pytest.approx(two_way(turned).standard_error)


def test_one_seed_has_no_interval():
    found = two_way({3: clean(a=1, b=0)})
    assert found.mean == 0.5 and all(
        map(math.isnan, (found.standard_error, found.df, found.half_width, found.p))
    )
    assert math.isnan(student([3.0]).half_width)


def test_p_without_any_spread():
    assert Estimate(0.0, 0.0, 3, 4).p == 1 and Estimate(0.5, 0.0, 3, 4).p == 0


@pytest.mark.parametrize("seeds, overlap", [(4, 1.0), (8, 1.0), (4, 0.25), (8, 0.25)])
def test_intervals_cover_what_they_should(seeds, overlap):
    """Of 1,500 experiments 92.5 to 97.5 % of the intervals hold the truth, with parts of seed, image and
    both, whether all seeds have the same images or each its own."""
    rng, count, images = np.random.default_rng(seeds), 1500, 120
    everything = round(images / overlap)
    of_image = rng.standard_normal((count, 1, everything))
    of_seed = 0.05 * rng.standard_normal((count, seeds, 1))
    d = of_image + of_seed + rng.standard_normal((count, seeds, everything))
    order = rng.random(d.shape).argsort(-1).argsort(-1)
    tested = order < images
    means = (d * tested).sum(-1) / images
    parts = np.where(tested, d - means[..., None], 0) / np.sqrt(images * (images - 1))
    error, df = components(means, parts)
    covered = np.mean(abs(means.mean(-1)) <= t.ppf(0.975, df) * error)
    assert 0.925 < covered < 0.975
    by_seeds = means.std(-1, ddof=1) / seeds**0.5
    forgetful = np.mean(abs(means.mean(-1)) <= t.ppf(0.975, seeds - 1) * by_seeds)
    assert forgetful < (0.85 if overlap == 1 else 0.94)  # Student over seeds forgets the shared images


def test_holms_correction():
    # Holm 1979's rule on five: 0.01 * 5, 0.013 * 4, 0.014 * 3, 0.19 * 2, 0.35
    assert holm([0.01, 0.013, 0.014, 0.19, 0.35]) == pytest.approx([0.05, 0.052, 0.052, 0.38, 0.38])
    assert holm([0.8, 0.9]) == pytest.approx([1, 1])
    assert holm([0.04, math.nan, 0.01]) == pytest.approx([0.04, math.nan, 0.02], nan_ok=True)
    assert holm([]).size == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_between_no_correction_and_bonferronis(ps):
    found = holm(ps)
    assert (found >= np.array(ps)).all() and (found <= np.minimum(np.array(ps) * len(ps), 1) + 1e-12).all()
    order = np.argsort(ps, kind="stable")
    assert (np.diff(found[order]) >= 0).all()


@pytest.mark.parametrize("df, effect", [(3, 1.0), (7, 2.5), (7.5, 0.5), (40, 3.0)])
def test_power_is_that_of_the_noncentral_distribution(df, effect):
    bound = t.ppf(0.975, df)
    expected = nct.sf(bound, df, effect) + nct.cdf(-bound, df, effect)
    assert power(1.0, df, effect) == pytest.approx(expected, abs=1e-3)
    assert power(2.0, df, 2 * effect) == pytest.approx(power(1.0, df, effect))


def test_power_at_its_ends():
    assert power(1.0, 5, 0) == pytest.approx(0.05, abs=1e-3) and power(1.0, 5, 50) == pytest.approx(1)
    assert power(1.0, 5, 1, level=0.01) < power(1.0, 5, 1)
    assert power(0.0, 5, 1) == 1 and math.isnan(power(math.nan, math.nan, 1))


@pytest.mark.parametrize(
    "difference, p, word",
    [
        (1.0, 0.04, "higher"),
        (-1.0, 0.04, "lower"),
        (1.0, 0.05, "no difference shown"),
        (0.5, math.nan, "one seed, no interval"),
        (math.nan, math.nan, "one seed, no interval"),
    ],
)
def test_verdicts(difference, p, word):
    assert verdict(difference, p) == word


def test_differences_are_of_the_same_seeds_images_and_cells():
    own, other = {0: clean(a=1, b=0), 1: clean(a=1, b=1)}, {0: clean(b=1, a=0), 1: clean(a=1, b=0)}
    found = differences(own, other)
    assert found[0].iloc[:, 0].to_dict() == {"a": 100, "b": -100}
    with pytest.raises(ValueError, match=r"the seeds \[0, 1\] cannot be paired with \[0\]"):
        differences(own, {0: other[0]})
    with pytest.raises(ValueError, match="seed 1 has not tested both on the same images"):
        differences(own, other | {1: clean(a=1, c=1)})


def test_a_tables_rows_are_paired_with_the_controls_clean_branch():
    right = {
        "finetune": {(s, "clean"): clean(a=1, b=0, c=s, d=0) for s in (0, 1)},
        "new": {
            (s, branch): clean(a=1, b=1, c=s, d=0) for s in (0, 1) for branch in ("clean", "adversarial")
        },
    }
    table = summarize(right, "finetune").set_index(["method", "branch"])
    assert table.accuracy.tolist() == pytest.approx([37.5, 62.5, 62.5])
    assert table.difference.isna().tolist() == [True, False, False]
    assert table.difference["new", "clean"] == pytest.approx(25) and (table.seeds == 2).all()
    assert table.standard_error["new", "clean"] == pytest.approx(
        100 * np.sqrt(np.var([0, 1, 0, 0], ddof=1) / 4)
    )
    del right["new"][1, "clean"]
    with pytest.raises(ValueError, match=r"the seeds \[0\] cannot be paired with \[0, 1\]"):
        summarize(right, "finetune")
