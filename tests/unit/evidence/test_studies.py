"""Tables of runs: what is in them, what each row is compared with, what a step costs, and what a profile will
cost."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT

from advbn.base.config import load_params, parse_params
from advbn.base.errors import ParameterError
from advbn.evidence.figures import cost_chart
from advbn.evidence.intervals import differences, holm, on_branch, two_way
from advbn.evidence.studies import run_bases, run_study, shortened, table_of_runs
from advbn.evidence.tables import control_of, read_study, study_conclusions, study_markdown, study_table
from advbn.shifts.cells import SHIFTS, cells, columns, meets
from advbn.training.run import base_runs, load_data, study_runs


@pytest.fixture(scope="module")
def params():
    return load_params()


@pytest.fixture(scope="module", params=["openmoji", "imagenet200"])
def with_studies(request):
    "A profile that has studies."
    return load_params(request.param)


def test_a_study_is_every_base_with_every_method(with_studies):
    params = with_studies
    for study, section in params.run_studies.items():
        runs = params.rows(study)
        assert list(runs) == [
            f"{b}/{m}" for b in section.bases for m in (*params.base_methods, *section.methods)
        ]
        assert len(table_of_runs(params, study)) == len(runs)
        for run in runs.values():
            assert (
                run.finetune.epochs == params.current.short.finetune_epochs
                and run.pretrain.epochs == params.current.short.pretrain_epochs
            )
            assert run.network == (params.bases[run.base].network or params.current.network)


def test_an_ablation_changes_one_setting(with_studies):
    """Every row of the ablations differs from the reference in one setting alone, but for the recipe, which
    is a set of them."""
    methods = with_studies.methods_of("ablations")
    reference = {**methods["advbn"].layer.model_dump(), "after": methods["advbn"].after}
    for name, method in methods.items():
        if method.train == "adversarial" and method.recipe == "faithful" and name != "advbn":
            other = {**method.layer.model_dump(), "after": method.after}
            changed = {k for k in other if other[k] != reference[k]}
            changed -= {"steps"} if other["eps"] == 0 else set()  # there is nothing to search in
            changed -= {"step_size"} if "eps" in changed else set()  # a step is a share of it
            assert len(changed - ({"start"} if changed & {"steps"} else set())) == 1, (name, changed)


def test_the_control_has_the_same_base_and_cut(with_studies):
    for study in with_studies.run_studies:
        runs = with_studies.rows(study)
        for name, run in runs.items():
            control = runs[control_of(run, runs)]
            assert (control.base, control.after, control.method.train) == (run.base, run.after, "clean")


def test_differences_are_paired_by_seed_and_image(params):
    rng, answers = np.random.default_rng(0), {}
    cells = pd.MultiIndex.from_tuples([(shift, cell) for shift in columns("openmoji") for cell in ("a", "b")])
    draws = {(base, seed): rng.random((80, len(cells))) for base in params.bases for seed in range(3)}
    for name, run in params.rows("complementarity").items():
        for seed in range(3):
            for branch in run.method.branches:
                better = name == "mixup/advbn" and branch == "adversarial"
                right = draws[run.base, seed] < (0.7 if better else 0.4)
                table = pd.DataFrame(right.astype(float), [f"{seed}-{i}" for i in range(80)], cells)
                answers.setdefault(name, {})[seed, branch] = table
    table = study_table(answers, params, "complementarity")
    gained = table.query("base == 'mixup' and method == 'advbn' and branch == 'adversarial'")
    of_seeds = differences(
        *(on_branch(answers[f"mixup/{m}"], b) for m, b in (("advbn", "adversarial"), ("finetune", "clean")))
    )
    found = two_way({seed: values[list(columns("openmoji")[1:])] for seed, values in of_seeds.items()})
    mean = gained.set_index("shift").loc["mean"]
    assert len(gained) == len(columns("openmoji")) + 1 and mean.seeds == 3
    assert (mean.difference, mean.difference_ci95, mean.p) == pytest.approx(
        (found.mean, found.half_width, found.p)
    )
    shifts = gained[~gained["shift"].isin(["mean", "clean"])]
    assert mean.difference == pytest.approx(shifts.difference.mean())
    assert mean.accuracy == pytest.approx(shifts.accuracy.mean())
    assert table.query("method == 'finetune'").difference.isna().all()
    assert (table.query("base == 'plain' and method == 'advbn'").difference == 0).all()
    for means in (True, False):
        rows = table[(table["shift"] == "mean") == means]
        assert np.allclose(rows.p_holm, holm(rows.p), equal_nan=True)
    said = study_conclusions(table, params)
    higher = [sentence for sentence in said if ": higher " in sentence]
    assert len(higher) == (mean.p_holm < 0.05) and "for MixUp: AdvBN, adversarial branch" in "".join(said)


def test_the_committed_tables_follow_from_what_the_runs_got_right(params):
    for study in params.studies:
        made = study_table(read_study(ROOT / "results/openmoji", params, study), params, study)
        kept = pd.read_csv(ROOT / f"results/openmoji/tables/{study}.csv")
        pd.testing.assert_frame_equal(kept.drop(columns="cost"), made, check_dtype=False)
        counts = pd.read_csv(ROOT / f"results/openmoji/studies/{study}.csv")
        counts = counts.groupby(["run", "branch", "shift", "seed"]).accuracy.mean()
        counts = counts.groupby(["run", "branch", "shift"]).mean()
        shifts = made[made["shift"] != "mean"]
        keys = list(zip(shifts.base + "/" + shifts.method, shifts.branch, shifts["shift"]))
        assert np.allclose(counts[keys], shifts.accuracy)
        used = json.loads((ROOT / f"results/openmoji/studies/{study}.json").read_text())
        assert as_today(params.studies[study], used["study"])  # the parameters that the table was made with
        assert used["base_methods"].keys() == params.base_methods.keys() and all(
            as_today(m, used["base_methods"][name]) for name, m in params.base_methods.items()
        )
        assert as_today(params.current, used["settings"])


def as_today(section, used):
    """Whether what was `used` is this section of today's parameters; one that did not exist then had its
    default."""
    return type(section).model_validate(used).model_dump() == section.model_dump()


def test_what_studies_share_was_measured_once(params):
    for study, section in params.studies.items():
        found = pd.read_csv(ROOT / f"results/openmoji/studies/{study}.csv")
        for base in section.bases:
            shared = pd.read_csv(ROOT / f"results/openmoji/studies/bases/{base}.csv")
            assert (
                set(shared.run) == set(params.base_rows(base))
                and (shared.groupby("run").seed.nunique() == len(params.current.short.seeds)).all()
            )
            keys = ["run", "branch", "shift", "cell", "seed"]
            pd.testing.assert_frame_equal(
                found[found.run.isin(shared.run)].set_index(keys).sort_index(),
                shared.set_index(keys).sort_index(),
            )


def test_a_short_run_tests_on_a_share_of_what_was_made(params):
    (run,) = (run for run in study_runs(params, "ablations") if run.name == "mean" and run.seed == 0)
    data, shares = load_data(run.setting), run.setting.data.shares
    numbers = data.test_indices(0)
    made = list(cells(data.images[numbers], numbers, ("clean", "instagram"), shares=shares))
    shown = {(shift, cell): images for shift, cell, images in shortened(run, data, made)}
    assert set(shown) == {(shift, cell) for shift, cell, _ in made}
    assert shown["clean", "clean"].names == made[0][2].names
    share, place = run.short.shares["instagram"], SHIFTS["instagram"].cells.index("hefe")
    assert len(shown["instagram", "hefe"]) == int(meets(numbers, place, share).sum()) < 0.2 * len(numbers)
    meeting = sum(len(images) for (shift, _), images in shown.items() if shift == "instagram")
    assert meeting == pytest.approx(20 * share * len(numbers), rel=0.05)


def test_a_profile_says_what_is_otherwise_in_its_studies():
    here, there = load_params("imagenet200"), load_params()
    assert [*here.run_studies] == ["complementarity", "ablations"] and [*there.run_studies] == [
        *there.studies
    ]
    assert not here.rows("architectures") and not here.base_rows("mixup") and not here.base_rows("densenet")
    assert [*here.run_bases] == ["plain", "augmix", "trivialaugment"]
    assert [*there.run_bases] == [base for base in there.bases if base != "jitter"]  # of photographs
    assert here.bases["augmix"].lr == 0.02 and here.bases["augmix"].label == there.bases["augmix"].label
    (stem,) = [row for row in here.rows("ablations").values() if row.name == "stem"]
    assert (stem.after, stem.method.layer.eps, stem.network) == ("blocks.0", 0.5, here.current.network)
    assert "mean" in there.studies["ablations"].methods and "mean" not in here.studies["ablations"].methods
    assert [*load_params("pacs").run_bases] == ["plain", "jitter"]
    assert load_params("cifar10").run_studies == load_params("cifar10").run_bases == {}


def test_a_base_may_be_augmented_in_its_own_way():
    params = load_params("pacs")
    rows, runs = params.base_rows("jitter"), base_runs(params, "jitter")[0]
    changes = params.bases["jitter"].augment
    assert changes.colour_jitter and all(run.setting.data.augment == changes for run in runs)
    assert base_runs(params, "plain")[0][0].setting.data.augment == params.current.data.augment
    assert "colour jitter 0.3" in rows["jitter/advbn"].augmented and "colour_jitter 0.3" in str(runs[0])
    said = table_of_runs(params, "complementarity").augmentation
    assert said.str.contains("crop 0.5, colour jitter 0.3").tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["studies"]["ablations"].update(bases=["plane"]), "'plane'; allowed are plain"),
        (lambda c: c["base_methods"].pop("finetune"), "where 0 methods train clean"),
        (
            lambda c: c.update(
                base_methods={"finetune": c["base_methods"]["advbn"], "clean": c["base_methods"]["finetune"]}
            ),
            "base_methods has no 'finetune' that trains clean",
        ),
        (
            lambda c: c["studies"]["ablations"]["methods"].update(advbn=c["base_methods"]["advbn"]),
            "studies.ablations.methods.advbn is the name of one of base_methods",
        ),
        (lambda c: c["bases"]["augmix"].update(augmentation="augmx"), "bases.augmix.augmentation is 'augmx'"),
        (
            lambda c: c["studies"]["ablations"]["methods"]["mean"]["layer"].update(perturb="average"),
            "perturb is 'average'",
        ),
        (
            lambda c: c["profiles"]["openmoji"]["short"].update(seeds=[9]),
            "short.seeds are [9]; allowed are those of seeds",
        ),
        (
            lambda c: c["profiles"]["openmoji"]["short"]["shares"].update(corruptions=0.5),
            "short.shares has corruptions: 0.5; allowed is at most 0.2",
        ),
        (lambda c: c["profiles"]["openmoji"]["short"].update(seeds=[1, 1]), "each may stand there once"),
        (lambda c: c["studies"]["ablations"].update(bases=["plain", "plain"]), "each may stand there once"),
        (
            lambda c: c["studies"]["ablations"]["methods"].pop("finetune-layer2"),
            "studies.ablations.methods.layer2 is cut after 'layer2', where 0 methods train clean",
        ),
        (
            lambda c: c["studies"]["ablations"]["methods"]["finetune-stem"].pop("after"),
            "where 2 methods train clean",
        ),
        (lambda c: c["bases"].update(spare={"label": "x"}), "bases.spare is in no study"),
        (
            lambda c: c["profiles"]["openmoji"]["short"].update(bases={"plane": {"lr": 0.1}}),
            "profiles.openmoji.short.bases.plane: bases has no 'plane'; did you mean 'plain'",
        ),
        (
            lambda c: c["profiles"]["openmoji"]["short"].update(
                studies={"ablations": {"methods": {"mean": {"epz": 1}}}}
            ),
            "unknown key 'profiles.openmoji.short.studies.ablations.methods.mean.epz'; allowed are",
        ),
        (
            lambda c: c["profiles"]["openmoji"]["short"].update(
                base_methods={"advbn": {"train": "advrsarial"}}
            ),
            "short.base_methods.advbn",
        ),
        (
            lambda c: c["profiles"]["openmoji"]["short"].update(
                studies={"ablations": {"methods": {"stem": {"after": "layer3"}}}}
            ),
            "studies.ablations.methods.stem is cut after 'layer3', where 0 methods train clean",
        ),
        (
            lambda c: c["profiles"]["imagenet"].update(short=c["profiles"]["openmoji"]["short"]),
            "imagenet takes no section 'short'",
        ),
    ],
)
def test_wrong_studies_are_refused(change, words):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    change(content)
    with pytest.raises(ParameterError) as caught:
        parse_params(content)
    assert words in str(caught.value)


def test_unknown_studies_and_profiles_without_them(params, tmp_path):
    with pytest.raises(ParameterError, match="no study 'ablation'"):
        study_runs(params, "ablation")
    without = params.model_copy(update={"profile": "cifar10"})
    history, shared, _ = run_bases(base_runs(without, "plain"))
    assert history.empty and shared.empty
    found, _ = run_study(study_runs(without, "ablations"), shared, without.rows("ablations"))
    table = study_table(read_study(tmp_path, without, "ablations"), without, "ablations")
    assert found.empty and table.empty and table_of_runs(without, "ablations").empty
    assert study_markdown(table, without) == "The profile cifar10 does not run this study.\n"
    table.to_csv(tmp_path / "empty.csv", index=False)
    assert pd.read_csv(tmp_path / "empty.csv").empty and len(cost_chart(table, without).axes) == 1
