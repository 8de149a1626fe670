"""Verdicts on made-up tables: each of the four, for each claim, by the rules alone."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT

from advbn.base.config import load_params
from advbn.evidence.claims import (
    CLAIMS,
    MARGIN,
    VERDICTS,
    claims_markdown,
    claims_table,
    claims_text,
    comparisons,
    differences,
    digests,
    number,
    perturbations,
    perturbations_table,
    recorded,
)
from advbn.evidence.intervals import student
from advbn.evidence.testing import made_from
from advbn.shifts.cells import Painter, cells, columns, store_cells
from advbn.training.run import load_data, setting_of


def p_of(difference, half, seeds=4):
    "The p that belongs to a 95 % interval of Student's over `seeds`; NaN without one."
    from scipy.stats import t

    error = np.asarray(half, float) / t.ppf(0.975, seeds - 1)
    return 2 * t.sf(abs(np.asarray(difference, float)) / error, seeds - 1)


def profile(results, difference, half=1.0, seeds=4, name="made"):
    "The tables of a profile in which every comparison of AdvBN has the same difference and interval."
    params, tables = load_params(), results / name / "tables"
    tables.mkdir(parents=True)
    measured = {"difference": difference, "difference_ci95": half, "seeds": seeds}
    measured["p"] = p_of(difference, half, seeds)
    outcomes = [("primary", "finetune"), ("second", "random")]
    rows = [{"outcome": o, "method": "advbn", "against": a, **measured} for o, a in outcomes]
    pd.DataFrame(rows).to_csv(tables / "outcomes.csv", index=False)
    rows = [{"method": "finetune", "branch": "clean", "shift": shift} for shift in columns("openmoji")]
    rows += [
        {"method": "advbn", "branch": branch, "shift": shift, **measured}
        for branch in ("clean", "adversarial")
        for shift in columns("openmoji")
    ]
    pd.DataFrame(rows).to_csv(tables / "robustness.csv", index=False)
    for study in ("complementarity", "architectures"):
        rows = [
            {
                "study": study,
                "base": b,
                "method": "advbn",
                "branch": "adversarial",
                "shift": "mean",
                **measured,
            }
            for b in params.studies[study].bases
        ]
        pd.DataFrame(rows).to_csv(tables / f"{study}.csv", index=False)
    known = {"Instagram": 40, "Stylized": 70, "tiles in disorder": -90, "-AdvBN": difference}
    rows = [{**measured, "images": k, "difference": d} for k, d in known.items()]
    pd.DataFrame(rows).to_csv(tables / "perturbations.csv", index=False)
    return tables


def verdicts(results, name="made"):
    table = claims_table(load_params(), results, [name])
    return {claim: rows.verdict.iloc[0] for claim, rows in table.groupby("claim")}


NAMES = {claim.name for claim in CLAIMS}


@pytest.mark.parametrize(
    "difference, word", [(3.0, "supported"), (-3.0, "contradicted"), (0.3, "not decided")]
)
def test_every_claim_can_be_decided_either_way_or_left_open(tmp_path, difference, word):
    profile(tmp_path, difference, half=1.5)
    assert verdicts(tmp_path) == dict.fromkeys(NAMES, word)


def test_one_seed_decides_nothing(tmp_path):
    profile(tmp_path, 30.0, half=math.nan, seeds=1)
    assert verdicts(tmp_path) == dict.fromkeys(NAMES, "not decided")


def test_what_was_not_run_is_not_tested(tmp_path):
    tables = profile(tmp_path, 3.0)
    for name in ("outcomes", "complementarity", "architectures", "perturbations"):
        (tables / f"{name}.csv").unlink()
    robustness = pd.read_csv(tables / "robustness.csv")
    robustness[robustness["shift"] != "clean"].to_csv(tables / "robustness.csv", index=False)
    assert verdicts(tmp_path) == dict.fromkeys(NAMES, "not tested")
    table = claims_table(load_params(), tmp_path, ["made"])
    assert len(table) == len(CLAIMS) and table.difference.isna().all()


def test_a_study_without_rows_is_not_tested(tmp_path):
    tables = profile(tmp_path, 3.0)
    pd.read_csv(tables / "architectures.csv").head(0).to_csv(tables / "architectures.csv", index=False)
    assert verdicts(tmp_path)["architectures"] == "not tested"


@pytest.mark.parametrize(
    "difference, half, word",
    [
        (0.0, 0.9 * MARGIN, "supported"),  # no gain, and no loss that matters
        (-0.5, 0.4, "supported"),  # a sure loss, and surely less than the margin
        (-0.5, 0.6, "not decided"),  # may be a loss beyond the margin, may be none
        (-1.5, 1.0, "contradicted"),  # a sure loss, perhaps beyond the margin
        (0.0, MARGIN, "not decided"),  # the interval touches the margin
    ],
)
def test_accuracy_without_shift_needs_a_margin(tmp_path, difference, half, word):
    profile(tmp_path, difference, half)
    assert verdicts(tmp_path)["clean"] == word


def changed(tables, name, where, **values):
    "Other values in the compared rows of a table whose column says something."
    table = pd.read_csv(tables / f"{name}.csv")
    ((column, found),) = where.items()
    rows = (table[column] == found) & table.difference.notna()
    for key, value in values.items():
        table.loc[rows, key] = value
    if "p" not in values:
        table.loc[rows, "p"] = p_of(table.loc[rows, "difference"], table.loc[rows, "difference_ci95"])
    table.to_csv(tables / f"{name}.csv", index=False)


def test_one_network_that_is_worse_contradicts_a_claim_about_any(tmp_path):
    tables = profile(tmp_path, 3.0)
    changed(tables, "architectures", {"base": "densenet"}, difference=-3.0, difference_ci95=0.5)
    changed(tables, "complementarity", {"base": "augmix"}, difference=0.5)
    found = verdicts(tmp_path)
    assert (found["architectures"], found["complementarity"]) == ("contradicted", "not decided")


def test_the_base_without_augmentation_says_nothing_about_augmentation(tmp_path):
    tables = profile(tmp_path, 3.0)
    changed(tables, "complementarity", {"base": "plain"}, difference=-3.0, difference_ci95=0.5)
    assert verdicts(tmp_path)["complementarity"] == "supported"
    table = claims_table(load_params(), tmp_path, ["made"])
    assert "plain" not in load_params().bases["plain"].label and set(
        table[table.claim == "complementarity"].row
    ) == {"AugMix", "TrivialAugment", "MixUp"}


def test_several_rows_are_corrected_for_their_number(tmp_path):
    tables = profile(tmp_path, 1.05, half=1.0)  # each alone is above zero, p = 0.045
    found = verdicts(tmp_path)
    assert (found["robustness"], found["architectures"]) == ("supported", "not decided")
    table = claims_table(load_params(), tmp_path, ["made"])
    rows = table[table.claim == "architectures"]
    assert (rows.p < 0.05).all() and (rows.p_holm > 0.15).all()
    changed(tables, "architectures", {"method": "advbn"}, difference_ci95=0.1)
    assert verdicts(tmp_path)["architectures"] == "supported"


def test_a_tables_own_p_values_are_taken(tmp_path):
    tables = profile(tmp_path, 3.0)
    changed(tables, "outcomes", {"outcome": "primary"}, p=0.2)
    changed(tables, "outcomes", {"outcome": "second"}, p=0.01)
    found = verdicts(tmp_path)
    assert (found["robustness"], found["adversary"]) == ("not decided", "supported")


@pytest.mark.parametrize("kind, value", [("Instagram", -5), ("Stylized", 0.5), ("tiles in disorder", 20)])
def test_a_measure_of_style_that_fails_its_checks_decides_nothing(tmp_path, kind, value):
    tables = profile(tmp_path, 30.0)
    assert verdicts(tmp_path)["style"] == "supported"
    changed(tables, "perturbations", {"images": kind}, difference=value)
    assert verdicts(tmp_path)["style"] == "not decided"


def test_profiles_that_nobody_knows_have_their_column(tmp_path):
    for name, difference in (("openmoji", 0.1), ("pacs", 4.0)):
        profile(tmp_path, difference, name=name)
    assert recorded(load_params(), tmp_path) == ["pacs", "openmoji"]  # the largest images first
    text = claims_text(claims_table(load_params(), tmp_path))
    assert text.head == ["claim", "pacs", "openmoji"] and len(text.rows) == len(CLAIMS) == 6
    assert text.rows[0][1:] == ["✓ **supported**: +4.0 ± 1.0", "? **not decided**: +0.1 ± 1.0"]
    short = claims_text(claims_table(load_params(), tmp_path), numbers=False)
    assert short.rows[0][1:] == ["✓ **supported**", "? **not decided**"]


def test_a_verdict_has_a_mark_and_its_numbers():
    assert set(VERDICTS) == {"supported", "not decided", "contradicted", "not tested"}
    assert len(set(VERDICTS.values())) == 4
    rows = pd.DataFrame({"row": ["A", "B"], "difference": [1.0, -2.0], "difference_ci95": [0.5, math.nan]})
    assert number(rows) == "A +1.0 ± 0.5; B -2.0" and number(rows.head(1)) == "+1.0 ± 0.5"
    assert number(pd.DataFrame([{"row": None, "difference": math.nan, "difference_ci95": math.nan}])) == ""


def test_what_goes_down_is_said_and_what_remains_after_correction_is_marked(tmp_path):
    tables = profile(tmp_path, 0.0)
    changed(tables, "robustness", {"shift": "sketch"}, difference=-2.0)
    found = comparisons(tmp_path / "made", load_params())
    assert differences(found, "lower") == [
        f"Main table, AdvBN, {branch} branch: lower than its clean fine-tune on Sketch (-2.0 ± 1.0)."
        for branch in ("clean", "adversarial")
    ]
    assert differences(found, "higher") == [
        "No row of any table lies above its control by more than its interval."
    ]
    changed(tables, "robustness", {"shift": "sketch"}, difference_ci95=0.05)
    found = comparisons(tmp_path / "made", load_params())
    assert all("(-2.0 ± 0.1 †)" in sentence for sentence in differences(found, "lower"))
    assert "†" in claims_markdown(load_params(), tmp_path, "made")


def test_rows_that_studies_share_are_said_once(root):
    found = comparisons(root / "results/openmoji", load_params())
    own = found[found.row.str.startswith("AugMix: AdvBN")]
    assert (
        len(own) == 2 * (len(columns("openmoji")) + 1)
        and not found.duplicated(["table", "row", "shift"]).any()
    )
    plain = found[found.row.str.contains("Small ResNet|^AdvBN, ") & (found.table != "Main table")]
    assert len(plain) == 2 * (len(columns("openmoji")) + 1)


def test_what_the_committed_tables_say_is_committed(root):
    for name in recorded(load_params(), root / "results"):
        text = (root / "results" / name / "claims.md").read_text(encoding="utf-8")
        assert claims_markdown(load_params(name), root / "results", name) == text
        kept = pd.read_csv(root / "results" / name / "claims.csv")
        made = claims_table(load_params(name), root / "results", [name])
        assert kept.verdict.tolist() == made.verdict.tolist() and kept.claim.tolist() == made.claim.tolist()


def test_perturbations_are_style_less_shape_over_seeds():
    rows = [
        ("-AdvBN", 0, 50.0, 20.0),
        ("-AdvBN", 1, 60.0, 26.0),
        ("Stylized", 0, 9.0, 1.0),
        ("Stylized", 1, 7.0, 1.0),
    ]
    found = pd.DataFrame(rows, columns=["images", "seed", "style", "shape"])
    table = perturbations_table(found, "made").set_index("images")
    for kind, values in (("-AdvBN", [30.0, 34.0]), ("Stylized", [8.0, 6.0])):
        row, found = table.loc[kind], student(values)
        expected = (found.mean, found.half_width, found.p)
        assert (row.difference, row.difference_ci95, row.p) == pytest.approx(expected)
    assert table.loc["-AdvBN", "style"] == 55 and set(table.seeds) == {2} and set(table.profile) == {"made"}


@pytest.fixture
def painted(tmp_path, root, autoencoder, monkeypatch):
    "The setting of a project whose test images are kept as a few shifts have made them."
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    (tmp_path / "data").symlink_to(root / "data")
    setting = setting_of(load_params("openmoji", root / "params.yaml"))
    for part in ("classifier", "decoder"):
        path = setting.checkpoint("autoencoder", 0, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(getattr(autoencoder, part).state_dict(), path)
    data = load_data(setting)
    ((numbers, images),) = data.pieces(0, most=64)
    shifts = ["clean", "instagram", "stylized", "reconstructed", "advbn"]
    made = cells(images, numbers, shifts, painter=Painter(autoencoder))
    store_cells(made, tmp_path / "shifted/openmoji/seed0", made_from(setting, data, 0))
    return setting


def test_what_is_decoded_is_measured_beyond_its_reconstruction(painted):
    found = perturbations(painted, 0).set_index("images")
    assert set(found.index) == {
        *("tiles in disorder", "random factors", "Instagram", "Stylized", "Reconstructed", "-AdvBN")
    }
    assert found.loc["Instagram", "style"] > 10 * found.loc["Instagram", "shape"] > 0
    assert found.loc["tiles in disorder", "shape"] > 3 * found.loc["tiles in disorder", "style"]
    assert found.loc["-AdvBN", "style"] > found.loc["random factors", "style"]
    assert found.equals(perturbations(painted, 0).set_index("images"))  # and the factors are the seed's


def test_data_are_named_by_their_pixels(painted):
    found = digests(painted, [0, 1]).set_index("what")
    assert found.images.to_dict() == {
        "all images": 1898,
        "test images of seed 0": 474,
        "test images of seed 1": 474,
    }
    assert found.sha256.is_unique and found.sha256.str.fullmatch("[0-9a-f]{64}").all()
    assert found.sha256["test images of seed 0"] == made_from(painted, load_data(painted), 0)["images"]


def test_a_study_is_told_with_the_bases_that_its_runs_had():
    "Whatever the current parameters are: the page of one profile shows the verdicts of all."
    params = load_params()
    few = params.model_copy(update={"bases": {"plain": params.bases["plain"]}})
    for given in (params, few):
        table = claims_table(given, ROOT / "results", ["imagenet200"])
        assert list(table[table.claim == "complementarity"].row) == ["AugMix", "TrivialAugment"]
