"""Tables: what is bold, and that the committed ones follow from the committed runs."""

import json

import pandas as pd
import pytest
from conftest import RECORDED

from advbn.base.config import load_params
from advbn.base.sections import Method, Profile
from advbn.evidence.tables import PUBLISHED, Entry, mce_table, robustness_table


def test_bold_means_that_the_interval_excludes_zero():
    def written(difference, interval):
        return str(Entry(61.4, 1.3, difference, interval))

    assert written(2.0, 1.0) == "61.4 ± 1.3 (**+2.0 ± 1.0**)"
    assert written(-0.5, 1.0) == "61.4 ± 1.3 (-0.5 ± 1.0)"
    assert written(2.0, float("nan")) == "61.4 ± 1.3 (+2.0)"
    assert written(float("nan"), 1.0) == "61.4 ± 1.3"
    assert str(Entry(61.4, float("nan"), -2.0, 1.0, starred=True)) == "61.4\\* (**-2.0 ± 1.0**)"


@pytest.mark.parametrize(
    "profile, images", [p for p in (("openmoji", 474), ("cifar10", 1000)) if p[0] in RECORDED]
)
def test_the_committed_tables_follow_from_the_committed_runs(root, profile, images):
    results, params = root / "results" / profile, load_params()
    used = json.loads((results / "parameters.json").read_text())
    runs = pd.concat([pd.read_csv(results / f"runs/{m}.csv") for m in used["methods"]])
    for name, made in (("robustness", robustness_table(runs, profile)), ("mce", mce_table(runs, profile))):
        pd.testing.assert_frame_equal(pd.read_csv(results / f"tables/{name}.csv"), made, check_dtype=False)
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
    assert set(runs.seed) == set(used["seeds"]) and len(used["seeds"]) >= 3 and (runs.images == images).all()
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
