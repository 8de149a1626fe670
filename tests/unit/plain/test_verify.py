"""Do results agree? Committed tables, perturbed; and the rule, on reruns that are drawn."""

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, call

from advbn.base.errors import DataError, ParameterError
from advbn.evidence.intervals import Estimate, student
from advbn.verify import (
    PRIMARY,
    compare,
    compare_numbers,
    numbers,
    read_folder,
    read_other,
    report_text,
)

RESULTS = ROOT / "results" / "openmoji"


@pytest.fixture(scope="module")
def results():
    return read_folder(RESULTS)


def changed(results, name, change):
    "The same results with another table or JSON at `name`."
    if name.endswith(".json"):
        content = json.loads(results[name])
        change(content)
        return results | {name: json.dumps(content).encode()}
    table = pd.read_csv(io.BytesIO(results[name]))
    kept = change(table)
    return results | {name: (table if kept is None else kept).to_csv(index=False).encode()}


def shifted(method, points, branch="adversarial"):
    def change(table):
        rows = (table.method == method) & (table.branch == branch)
        table.loc[rows, ["accuracy", "difference"]] += points

    return change


def last(found):
    return report_text(found).splitlines()[-1]


def test_the_same_results_are_identical(results):
    found = compare(results, results)
    assert found.good and set(found.files.values()) == {"identical"} and not found.machines
    assert not found.numbers.differs.any() and len(found.numbers) > 500
    assert last(found).startswith("Good news: every number is the same; but no stage was run anew")


def test_arrays_that_are_packed_otherwise_are_identical(results):
    name = "right/advbn.npz"
    packed, changed = io.BytesIO(), io.BytesIO()
    with np.load(io.BytesIO(results[name])) as kept:
        arrays = {key: kept[key] for key in kept.files}
    np.savez(packed, **arrays)
    key = next(key for key in arrays if key.endswith("/clean"))
    np.savez(changed, **arrays | {key: 1 - arrays[key]})
    assert packed.getvalue() != results[name]
    for content, state in ((packed, "identical"), (changed, "different")):
        assert compare(results | {name: content.getvalue()}, results).files[name] == state


def test_a_stage_that_was_run_anew_names_its_machine(results):
    def elsewhere(made):
        made["Processor"] = "Another kind of CPU, 8 cores"

    found = compare(changed(results, "made/method-advbn.json", elsewhere), results)
    text = report_text(found)
    assert found.good and found.machines["Processor"][0] == "Another kind of CPU, 8 cores"
    assert "Processor: Another kind of CPU, 8 cores\n    there: " in text
    assert text.endswith("\n\nGood news: every number is the same.")


def test_small_differences_are_within_and_large_ones_are_not(results):
    within = compare(changed(results, "tables/robustness.csv", shifted("advbn", 0.3)), results)
    assert within.good and within.numbers.differs.sum() >= 40
    assert within.files["tables/robustness.csv"] == "different"
    assert last(within) == "Good news: numbers differ, and none by more than another machine may give."
    beyond = compare(changed(results, "tables/robustness.csv", shifted("advbn", 5)), results)
    assert not beyond.good and set(beyond.beyond.method) == {"advbn"}
    assert last(beyond).startswith("Not good news: ") and "by 5.0 points" in last(beyond)


def test_accuracies_on_images_of_the_machines_own_autoencoder_do_not_decide(results):
    def harder(table):
        table.loc[table["shift"].isin(["stylized", "advbn"]), "accuracy"] -= 30

    def other_gains(table):
        table.loc[table["shift"] == "stylized", "difference"] -= 30

    for name in ("robustness", "advbn_set"):
        assert compare(changed(results, f"tables/{name}.csv", harder), results).good
    assert not compare(changed(results, "tables/robustness.csv", other_gains), results).good


def test_the_bound_is_the_interval_of_a_difference_of_two_runs():
    draws, runs = np.random.default_rng(0).normal(60, 2, (2, 4000, 4)), []
    for run in draws:
        table = pd.DataFrame(map(mean_interval, run), columns=["accuracy", "ci95"])
        table = table.assign(method="advbn", branch="clean", shift=table.index.astype(str), seeds=4)
        runs.append(numbers({"tables/robustness.csv": table.to_csv(index=False).encode()}))
    found = compare_numbers(*runs)
    assert len(found) == 4000
    assert (found.difference.abs() <= found.bound).mean() == pytest.approx(0.95, abs=0.012)


def mean_interval(values):
    "The mean of one value per seed, and half the width of its interval."
    found = student(values)
    return found.mean, found.half_width


KEY, MEASURED = ["method", "branch", "shift"], ["accuracy", "ci95", "difference", "difference_ci95"]


def rerun(table, rng, seeds, images=474):
    """A run like that of a committed `table`: its numbers are the truth, and its intervals say how far seeds
    lie apart, in what a split has in common and in what a method has alone. Images are counted whole."""
    measured = np.arange(table.seeds.iloc[0])
    spread = np.std(measured, ddof=1) / mean_interval(measured)[1]
    control = table[table.method == "finetune"].set_index("shift").ci95
    split = {shift: rng.normal(0, half * spread, seeds) for shift, half in control.items()}
    drawn, rows = {}, []
    for r in table.itertuples():
        own = rng.normal(0, np.nan_to_num(r.difference_ci95) * spread, seeds)
        correct = np.round((r.accuracy + split[r.shift] + own) * images / 100)
        drawn[r.method, r.branch, r.shift] = 100 * correct / images
    for r in table.itertuples():
        mine, base = drawn[r.method, r.branch, r.shift], drawn["finetune", "clean", r.shift]
        difference = (np.nan, np.nan) if r.method == "finetune" else mean_interval(mine - base)
        rows.append([*mean_interval(mine), *difference])
    return table[KEY].assign(**pd.DataFrame(rows, columns=MEASURED, index=table.index), seeds=seeds)


@pytest.mark.parametrize("seeds", [4, 8])
def test_a_rerun_passes_and_one_with_a_method_five_points_off_fails(results, seeds):
    rng = np.random.default_rng(seeds)
    truth = pd.read_csv(io.BytesIO(results["tables/robustness.csv"]))
    off = truth.copy()
    shifted("advbn", -5)(off)

    def passes(table):
        first, second = (
            numbers(
                {
                    "tables/robustness.csv": rerun(t, rng, seeds).to_csv().encode(),
                    "runs/a.csv": b"images\n474",
                }
            )
            for t in (truth, table)
        )
        return compare_numbers(second, first).within.all()

    assert np.mean([passes(truth) for _ in range(60)]) >= 0.93
    assert np.mean([passes(off) for _ in range(20)]) <= (0.05 if seeds == 8 else 0.4)


def outcomes(difference):
    "A table with a primary outcome of this difference, eight seeds and a standard error of 0.2 points."
    found = Estimate(difference, standard_error=0.2, df=7, seeds=8)
    row = {"outcome": "primary", "method": "advbn", "against": "finetune", "difference": difference}
    row |= {"difference_ci95": found.half_width, "standard_error": 0.2, "df": 7.0, "p": found.p, "seeds": 8}
    return {"tables/outcomes.csv": pd.DataFrame([row]).to_csv(index=False).encode()}


def test_the_primary_outcome_has_a_bound_of_its_own(results):
    found = compare(results | outcomes(1.0), results | outcomes(1.7))
    (row,) = found.numbers[found.numbers.primary].itertuples()
    assert found.good and row.within and row.p > PRIMARY and 0.7 < row.bound < 1.0
    assert "the verdict is the same, higher" in report_text(found)
    found = compare(results | outcomes(1.0), results | outcomes(2.0))
    assert not found.good and "BEYOND" in report_text(found) and "difference of primary" in last(found)


def test_a_changed_verdict_is_told_where_the_numbers_agree(results):
    found = compare(results | outcomes(0.6), results | outcomes(0.4))
    assert found.good and "VERDICT CHANGED, higher here, no difference shown there" in report_text(found)


def test_other_parameters_are_said_first_and_their_rows_are_not_compared(results):
    def one_seed_more(parameters):
        parameters["seeds"].append(99)

    def weaker(parameters):
        parameters["methods"]["advbn"]["layer"]["eps"] = 0.5

    seeds = json.loads(results["parameters.json"])["seeds"]
    found = compare(changed(results, "parameters.json", one_seed_more), results)
    assert not found.good and not len(found.numbers)
    said = f"  seeds: {[*seeds, 99]} here, {seeds} there (parameters.json)"
    assert report_text(found).splitlines()[2] == said
    found = compare(changed(results, "parameters.json", weaker), results)
    main = found.numbers[found.numbers.table == "robustness"]
    assert not found.good and "advbn" not in set(main.method) and "fast" in set(main.method)
    assert "advbn" in set(found.numbers[found.numbers.table == "complementarity"].method)
    assert last(found).startswith("No verdict: parameters differ") and "the others agree" in last(found)


def test_a_changed_study_leaves_the_other_tables(results):
    def longer(parameters):
        parameters["study"]["bases"].append("convnext")

    found = compare(changed(results, "studies/ablations.json", longer), results)
    assert not found.good and "ablations" not in set(found.numbers.table)
    assert {"robustness", "architectures"} <= set(found.numbers.table)


def test_words_and_a_machines_own_parameters_are_no_other_experiment(results):
    def reworded(parameters):
        parameters["methods"]["advbn"]["label"] = "Ours"
        parameters["settings"]["threads"], parameters["settings"]["data"]["workers"] = 2, 8

    def with_one_more(parameters):
        parameters["methods"]["gentle"] = parameters["methods"]["advbn"]

    def with_a_key_that_is_null(parameters):
        parameters["settings"]["data"]["new_key"] = None

    for change in (reworded, with_one_more, with_a_key_that_is_null):
        assert compare(changed(results, "parameters.json", change), results).good


def test_another_outcome_leaves_the_tables(results):
    def named(parameters):
        parameters["outcomes"] = {"primary": {"method": "fast", "against": "random"}}

    found = compare(changed(results, "parameters.json", named) | outcomes(1), results | outcomes(3))
    assert not found.good and set(found.parameters["parameters.json"]) >= {"outcomes.primary.method"}
    assert len(found.numbers) > 500 and "outcomes" not in set(found.numbers.table)


def test_what_is_missing_is_named(results):
    without = {name: content for name, content in results.items() if name != "runs/fast.csv"}
    found = compare(without, results)
    assert not found.good and last(found) == "Not good news: 1 missing here, first runs/fast.csv."
    assert compare(results, without).good
    found = compare(changed(results, "tables/robustness.csv", lambda t: t[t["shift"] != "sketch"]), results)
    assert not found.good and "robustness, accuracy of standard, clean, sketch" in found.missing
    found = compare(changed(results, "runs/advbn.csv", lambda t: t[2:]), results)
    assert not found.good and last(found).startswith("Not good news: 1 missing here, first 2 of ")


def test_counts_of_runs_and_metrics_are_told(results):
    def one_image(table):
        table["correct"] += np.arange(len(table)) == 3

    def metric(content):
        content["openmoji"]["advbn-clean"]["clean"] += 2

    found = compare(changed(changed(results, "runs/advbn.csv", one_image), "metrics.json", metric), results)
    cells = len(pd.read_csv(io.BytesIO(results["runs/advbn.csv"])))
    assert (
        f"runs/advbn.csv: 1 of {cells:,} cells differ, by 0.0 images on average and 1.0 at most"
        in found.values
    )
    assert found.values[0].startswith("metrics.json: 1 of ") and "2.0 at most" in found.values[0]


def test_one_seed_has_no_interval_and_gets_no_verdict(results):
    def one_seed(table):
        table[["ci95", "difference_ci95"]], table["seeds"] = np.nan, 1

    alone = changed(results, "tables/robustness.csv", one_seed)
    assert compare(alone, alone).good
    found = compare(changed(alone, "tables/robustness.csv", shifted("advbn", 0.1)), alone)
    assert not found.good and "of one seed" in last(found)


def test_a_damaged_table_is_named(results):
    with pytest.raises(DataError, match="tables/robustness.csv cannot be read"):
        compare(results | {"tables/robustness.csv": b""}, results)


def test_results_of_a_clone_its_results_or_a_profile_are_found():
    for folder in (ROOT, ROOT / "results", RESULTS):
        found, name = read_other(ROOT, "openmoji", str(folder))
        assert name == str(RESULTS) and found == read_folder(RESULTS)
    with pytest.raises(ParameterError, match="no results of 'openmoji'"):
        read_other(ROOT, "openmoji", str(ROOT / "nbs"))


@pytest.fixture
def project(tmp_path):
    "A clone with the results alone: no images, no package, no notebooks."
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(RESULTS, tmp_path / "results" / "openmoji")
    for words in (["init", "-q", "-b", "main"], ["add", "-A"]):
        call("git", *words, cwd=tmp_path)
    call("git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "results", cwd=tmp_path)
    return tmp_path


def test_the_command_compares_with_git_and_says_it_by_its_exit_status(project, run, refused, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.delenv("ADVBN_ROOT", raising=False)
    status, said, _ = run("verify")
    assert status == 0 and said.startswith("openmoji: results here, and those of HEAD (commit ")
    path = project / "results/openmoji/tables/robustness.csv"
    table = pd.read_csv(path)
    shifted("advbn", 5)(table)
    table.to_csv(path, index=False)
    status, said, _ = run("verify", "--against", "main")
    assert status == 1 and said.splitlines()[-1].startswith("Not good news: ")
    assert "difference of advbn, adversarial" in said and "1 different" in said
    assert run("verify", "--against", ROOT)[0] == 1 and run("verify", "--against", project)[0] == 0
    refused(
        ["verify", "--against", "mian"], "'mian' is neither a folder nor a revision", "did you mean 'main'"
    )
    refused(["verify", "--profile", "openmoij"], "no results of 'openmoij'", "did you mean 'openmoji'")
    shutil.copytree(project / "results/openmoji", project / "results/cifar10")
    refused(["verify", "--profile", "cifar10"], "HEAD has no results of 'cifar10'")
    shutil.rmtree(project / ".git")
    refused(["verify"], "not a git repository", "--against a folder")
