"""Tables: what is bold, and that the committed ones follow from the committed runs."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import RECORDED

from advbn import CORRUPTIONS, mean_corruption_error
from advbn.base.config import load_params
from advbn.base.sections import Method, Profile
from advbn.evidence.evaluation import ALEXNET, corruption_errors
from advbn.evidence.figures import corruption_chart
from advbn.evidence.intervals import holm, student, two_way
from advbn.evidence.tables import (
    PUBLISHED,
    Entry,
    accuracy_note,
    answers_of,
    decoded_markdown,
    decoded_table,
    mce_table,
    outcome_notes,
    outcome_sentences,
    outcomes_table,
    outcomes_text,
    paper_branches,
    power_note,
    read_answers,
    robustness_markdown,
    robustness_table,
)
from advbn.shifts.cells import SHIFTS, columns


@pytest.fixture(scope="module")
def params():
    return load_params()


@pytest.fixture(scope="module")
def answers():
    """What five methods got right in four seeds on 60 images of 150, each seed its own: AdvBN's adversarial
    branch is better by far, its clean branch is the control's."""
    rng, found = np.random.default_rng(0), {}
    cells = [("clean", "clean"), *(("corruptions", f"{c}/{s}") for c in CORRUPTIONS for s in range(1, 6))]
    cells += [("instagram", "hefe"), ("sketch", "line art"), ("sketch", "edges"), ("stylized", "adain")]
    cells = pd.MultiIndex.from_tuples(cells + [("reconstructed", "decoded"), ("advbn", "decoded")])
    for seed in range(4):
        names = [f"{i:03}" for i in rng.permutation(150)[:60]]
        draw = rng.random((60, len(cells)))
        draw[rng.random(draw.shape) < 0.3] = np.nan  # a cell tests a part of the images
        for method in ("standard", "finetune", "random", "advbn", "fast"):
            for branch in ("clean", "adversarial")[: 1 if method in ("standard", "finetune") else 2]:
                level = 0.8 if (method, branch) == ("advbn", "adversarial") else 0.5
                right = np.where(np.isnan(draw), np.nan, draw < level)
                found.setdefault(method, {})[seed, branch] = pd.DataFrame(right, names, cells)
    return found


def test_bold_means_that_p_is_small():
    def written(difference, p, interval=1.0):
        return str(Entry(61.4, 1.3, difference, interval, p))

    assert written(2.0, 0.01) == "61.4 ± 1.3 (**+2.0 ± 1.0**)"
    assert written(2.0, 0.2) == "61.4 ± 1.3 (+2.0 ± 1.0)"  # of many comparisons
    assert written(-0.5, 0.3) == "61.4 ± 1.3 (-0.5 ± 1.0)"
    assert written(2.0, float("nan"), float("nan")) == "61.4 ± 1.3 (+2.0)"
    assert written(float("nan"), float("nan")) == "61.4 ± 1.3"
    assert str(Entry(61.4, float("nan"), -2.0, 1.0, 0.01, starred=True)) == "61.4\\* (**-2.0 ± 1.0**)"


def test_an_outcome_is_the_mean_of_the_shifts_on_the_papers_branches(answers, params):
    shifts = ("corruptions", "instagram", "sketch", "stylized")
    own = paper_branches(answers["advbn"], shifts)
    means = []
    for seed, values in own.items():
        of_shifts = []
        for shift in shifts:
            branch = SHIFTS[shift].branch
            there, control = answers["advbn"][seed, branch][shift], answers["finetune"][seed, "clean"][shift]
            of_shifts.append((there.mean() - control.mean()).mean())
            assert values[shift].equals(there)
        means.append(100 * np.mean(of_shifts))
    table = outcomes_table(answers, params).set_index("outcome")
    assert table.difference["primary"] == pytest.approx(np.mean(means)) and table.seeds["primary"] == 4
    assert table.difference["primary"] == pytest.approx(table.difference["second"])  # random is the control
    assert table.p["primary"] < 0.01 and table.power_2["primary"] >= table.power_1["primary"] > 0.05
    control = paper_branches(answers["finetune"], shifts)
    assert all(control[s].equals(answers["finetune"][s, "clean"][list(shifts)]) for s in control)


def test_a_profile_that_names_nothing_has_no_outcomes(answers, params):
    without = params.model_copy(update={"outcomes": None})
    table = outcomes_table(answers, without)
    assert table.empty and outcome_notes(table) == outcome_sentences(table, without) == []


def test_outcomes_in_words(answers, params):
    table = outcomes_table(answers, params)
    rows = outcomes_text(table, params).rows
    assert [row[0] for row in rows] == [
        "◆ Primary: AdvBN against clean fine-tune",
        "◇ Second: AdvBN against random statistics",
    ]
    assert rows[0][-1] == "higher" and rows[0][1].startswith(f"{table.difference[0]:+.1f} ± ")
    said = outcome_sentences(table.assign(p=0.0123, difference=-1.26, difference_ci95=0.3), params)
    assert said[0] == (
        "◆ Primary outcome, named 2026-11-28: AdvBN against clean fine-tune, mean of the shifts, each on the "
        "paper's branch: lower (-1.3 ± 0.3, p = 0.012)."
    )
    power = f"{table.power_1[0]:.2f}, of 2 points with {table.power_2[0]:.2f}."
    assert outcome_notes(table)[1] == (
        "With these 4 seeds, on the primary outcome, an effect of 1 point would be shown with probability "
        + power
    )


def test_runs_of_which_nothing_was_kept_per_image_have_intervals_over_seeds_alone(answers, params):
    older = {}
    for method, found in answers.items():
        rows = [
            {"seed": s, "branch": b, "shift": shift, "cell": cell, "accuracy": 100 * accuracy}
            for (s, b), values in found.items()
            for (shift, cell), accuracy in values.mean().items()
        ]
        older[method] = answers_of(pd.DataFrame(rows))
    table, whole = (
        robustness_table(a, "x").set_index(["method", "branch", "shift"]) for a in (older, answers)
    )
    assert np.allclose(table.accuracy, whole.accuracy) and (table.df.dropna() == 3).all()
    values = [100 * of["clean"].iloc[0, 0] for (_, b), of in older["advbn"].items() if b == "adversarial"]
    expected = student(values)
    row = table.loc["advbn", "adversarial", "clean"]
    assert (row.accuracy, row.ci95) == pytest.approx((expected.mean, expected.half_width))
    assert "over seeds alone, for of these runs nothing was kept" in accuracy_note(table.reset_index())
    named = outcomes_table(older, params)
    assert set(named.named) == {"after the runs"} and "named after the runs:" in outcome_notes(named)[0]
    assert "named in advance, 2026-11-28:" in outcome_notes(outcomes_table(answers, params))[0]


def test_secondary_comparisons_are_corrected_for_each_other(answers):
    table = robustness_table(answers, "made-up")
    single = table["shift"].str.contains("/")
    for rows in (table[~single], table[single]):
        assert np.allclose(rows.p_holm, holm(rows.p), equal_nan=True)
    shown = table[~single & (table.p_holm < 0.05)]
    assert set(zip(shown.method, shown.branch)) == {("advbn", "adversarial")}
    assert table[table.method == "finetune"][["p", "p_holm"]].isna().all(axis=None)
    assert "correction for the 35 comparisons of the table" in accuracy_note(table)
    assert power_note(table, "in a row").startswith("With these 4 seeds, in a row of median error, an effect")
    decoded = decoded_table(answers, "made-up")
    assert list(dict.fromkeys(decoded["shift"])) == ["clean", "reconstructed", "advbn"]
    assert np.allclose(decoded.p_holm, holm(decoded.p), equal_nan=True)


def test_accuracies_and_mce_are_those_of_the_counts(answers):
    table = robustness_table(answers, "made-up").set_index(["method", "branch", "shift"]).accuracy
    for method, branch in (("finetune", "clean"), ("advbn", "adversarial")):
        cells = {seed: 100 * v.mean() for (seed, b), v in answers[method].items() if b == branch}
        of_shifts = np.mean([c.groupby(level=0).mean() for c in cells.values()], axis=0)
        names = cells[0].groupby(level=0).mean().index
        for shift, accuracy in zip(names, of_shifts):
            assert shift not in columns() or table[method, branch, shift] == pytest.approx(accuracy)
    errors = {
        (method, branch, seed): corruption_errors(
            (100 * v["corruptions"].mean())
            .rename_axis("cell")
            .reset_index(name="accuracy")
            .assign(shift="corruptions")
        )
        for method, found in answers.items()
        for (seed, branch), v in found.items()
    }
    for baseline in ("standard", "alexnet"):
        mce = mce_table(answers, "made-up", baseline).set_index(["method", "branch"])
        for method, branch in mce.index:
            ours = [
                mean_corruption_error(
                    errors[method, branch, s],
                    "alexnet" if baseline == "alexnet" else errors["standard", "clean", s],
                )
                for s in range(4)
            ]
            assert mce.mce[method, branch] == pytest.approx(np.mean(ours))
        assert (mce.mce_ci95["finetune", "clean"] < 1e-9) == (baseline == "standard")  # the same network
    alone = two_way({s: 100 * (1 - v[["corruptions"]]) for (s, b), v in answers["standard"].items()})
    assert mce.mean_error["standard", "clean"] == pytest.approx(alone.mean)
    assert mce.mean_error_ci95["standard", "clean"] == pytest.approx(alone.half_width)
    assert len(ALEXNET) == 15


def test_a_profile_of_other_shifts_has_a_table_of_them(answers, params):
    """Domains in place of corruptions and decoded images: the outcome is the mean of those, what there is
    none of is left out."""
    names = {"clean": "clean", "instagram": "art_painting", "sketch": "cartoon"}
    renamed = {
        method: {key: values[list(names)].rename(columns=names, level=0) for key, values in found.items()}
        for method, found in answers.items()
    }
    runs = pd.DataFrame({"shift": ["art_painting", "cartoon"], "source": "published"})
    tables = {
        "outcomes": outcomes_table(renamed, params),
        "robustness": robustness_table(renamed, "domains"),
        "mce": mce_table(renamed, "domains"),
    }
    text = robustness_markdown(tables, params, runs)
    assert "◆ Primary" in text and "| Clean | Art | Cartoon |" in text and "mCE" not in text
    values = paper_branches(renamed["advbn"], ["art_painting", "cartoon"])
    assert values[0].equals(renamed["advbn"][0, "adversarial"][["art_painting", "cartoon"]])
    decoded = decoded_table(renamed, "domains")
    assert decoded.empty and decoded_markdown(decoded, params).endswith("decodes no images.\n")
    assert len(corruption_chart(tables["robustness"], params).axes) == 1


def test_a_method_without_runs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no runs of 'advbn': .*runs/advbn.csv is missing"):
        read_answers(tmp_path, "openmoji", ["advbn"])


@pytest.mark.parametrize(
    "profile, images", [p for p in (("openmoji", 474), ("cifar10", 1000)) if p[0] in RECORDED]
)
def test_the_committed_tables_follow_from_the_committed_runs(root, profile, images):
    results, params = root / "results" / profile, load_params()
    used = json.loads((results / "parameters.json").read_text())
    runs = pd.concat([pd.read_csv(results / f"runs/{m}.csv") for m in used["methods"]])
    answers = read_answers(results.parent, profile, used["methods"])
    today = params.model_copy(update={"profile": profile})
    for name, made in (
        ("outcomes", outcomes_table(answers, today)),
        ("robustness", robustness_table(answers, profile)),
        ("mce", mce_table(answers, profile)),
        ("advbn_set", decoded_table(answers, profile)),
    ):
        pd.testing.assert_frame_equal(pd.read_csv(results / f"tables/{name}.csv"), made, check_dtype=False)
    counts = runs.groupby(["method", "branch", "shift", "seed"]).accuracy.mean()
    counts = counts.groupby(["method", "branch", "shift"]).mean()
    made = robustness_table(answers, profile).set_index(["method", "branch", "shift"]).accuracy
    shifts = [key for key in made.index if "/" not in key[2]]
    assert np.allclose(counts[shifts], made[shifts])
    today = params.model_copy(
        update={"profile": profile, "seeds": params.seeds if profile == params.profile else used["seeds"]}
    )
    settings = today.current.model_dump() | {"note": used["settings"]["note"]}
    assert (used["profile"], used["seeds"]) == (
        today.profile,
        today.seeds,
    )  # the tables hold what params.yaml says today; keys that are new since have their defaults
    assert {name: Method.model_validate(method) for name, method in used["methods"].items()} == today.methods
    assert Profile.model_validate(used["settings"]) == Profile.model_validate(settings)
    assert (
        set(runs.seed) == set(used["seeds"])
        and len(used["seeds"]) >= 3
        and (runs[runs["shift"] == "clean"].images == images).all()
    )
    assert PUBLISHED["AdvBN"]["corruptions"] == 72.7


def test_reconstruction_costs_the_standard_network_at_most_ten_points(root):
    table = (
        pd.read_csv(root / "results/openmoji/tables/advbn_set.csv")
        .query("method == 'standard'")
        .set_index("shift")
        .accuracy
    )
    assert table["clean"] - table["reconstructed"] <= 10
    assert table["advbn"] < table["reconstructed"]
