"""The runner's refusals, and the whole pipeline in miniature in a clone of its own."""

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from conftest import IN_TWO, ROOT, call, notebook, would_run

from advbn.evidence.testing import read_right
from advbn.base.errors import ParameterError
from advbn.notebooks import run_notebook


def test_a_failing_notebook_fails_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    path = notebook(tmp_path / "a.ipynb", ("x = 1", ["parameters"]), ("print(x / 0)", []))
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run_notebook(path, {"x": "2"})
    assert "ZeroDivisionError" in (tmp_path / "executed/openmoji/a-2.ipynb").read_text()
    path = notebook(tmp_path / "b.ipynb", ("profile = 'openmoji'", ["parameters"]))
    assert run_notebook(path, {"profile": "imagenet"}) == tmp_path / "executed/imagenet/b.ipynb"
    with pytest.raises(ParameterError, match="profile is 'imagnet'; allowed are .*did you mean 'imagenet'"):
        run_notebook(path, {"profile": "imagnet"})


def test_the_executed_notebook_stays_in_its_folder_and_knows_the_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with pytest.raises(ParameterError, match="no parameter may have a / in it"):
        run_notebook(notebook(tmp_path / "a.ipynb", ("x = 'a'", ["parameters"])), {"x": "/../../../b"})
    notebook(
        tmp_path / "a.ipynb",
        ("profile = 'imagenet'; x = 'a'", ["parameters"]),
        ("print(f'for {profile}, {x}')", []),
    )
    done = subprocess.run(
        [sys.executable, "-m", "advbn", "run", str(tmp_path / "a.ipynb"), "--x", "b c"],
        capture_output=True,
        text=True,
        check=True,
    )
    made = tmp_path / "executed/openmoji/a-b c.ipynb"
    assert (
        done.stdout.strip() == str(made)
        and "for openmoji, b c" in made.read_text()
        and sorted(p.name for p in tmp_path.iterdir()) == ["a.ipynb", "executed", "params.yaml"]
    )


def test_a_fresh_clone_is_up_to_date(clone):
    assert would_run(clone) == []


def test_the_whole_pipeline_in_miniature(reproduced):
    clone, path = reproduced, reproduced / "params.yaml"
    content = yaml.safe_load(path.read_text())
    table = pd.read_csv(clone / "results/openmoji/tables/robustness.csv")
    assert list(table.columns) == [
        "profile",
        "method",
        "branch",
        "shift",
        "accuracy",
        "ci95",
        "difference",
        "difference_ci95",
        "standard_error",
        "df",
        "p",
        "p_holm",
        "seeds",
    ]
    assert set(table.method) == {"standard", "finetune", "advbn", "gentle"} and (table.seeds == 2).all()
    assert set(table[table.method == "gentle"].branch) == {"clean", "adversarial"}
    assert "Gentle AdvBN" in (clone / "results/openmoji/tables/robustness.md").read_text()
    metrics = json.loads((clone / "results/openmoji/metrics.json").read_text())["openmoji"]
    assert metrics["gentle-clean"]["clean"] == round(
        table.query("method == 'gentle' and branch == 'clean' and shift == 'clean'").accuracy.item(), 2
    )
    stages = 6 + len(content["methods"]) + len(content["bases"]) + 2 * len(content["studies"])
    assert len(list((clone / "executed/openmoji").glob("*.ipynb"))) == stages
    assert (
        call("git", "status", "--porcelain", "--untracked-files=all", cwd=clone).stdout.count("checkpoints/")
        == 0
    )

    for name in ("robustness", "corruptions", "adversarial_images", "predictions"):
        assert (clone / f"results/openmoji/figures/{name}.png").stat().st_size > 10_000
    for study in content["studies"]:
        made = pd.read_csv(clone / f"results/openmoji/tables/{study}.csv")
        assert (
            set(made.method) == {"finetune", "advbn", *content["studies"][study]["methods"]}
            and (made.seeds == 1).all()
            and made.query("method == 'advbn'").cost.min() > 3
        )
    page = (clone / "results/openmoji/report.html").read_text(encoding="utf-8")
    assert page.count("<table") == 8 + 7 and "Gentle AdvBN" in page and "method-gentle" in page
    done = json.loads((clone / "results/openmoji/made/method-gentle.json").read_text())
    assert done["seconds"] > 0 and "torch" in done["Packages"]
    again = call(sys.executable, "-m", "dvc", "repro", cwd=clone)
    assert "Running stage" not in again.stdout + again.stderr
    for command in (["metrics", "show"], ["plots", "show", "-o", "dvc_plots"], ["dag"]):
        call(sys.executable, "-m", "dvc", *command, cwd=clone)

    before = path.read_text()
    content["methods"]["gentle"]["layer"]["eps"] = 0.2
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    touched = would_run(clone)
    assert touched and {s.partition("@")[2].partition("-")[2] for s in touched} == {"gentle", ""}
    path.write_text(before)


def test_status_says_of_every_profile_whether_its_results_hold(reproduced):
    def status():
        done = call(sys.executable, "-m", "advbn", "status", "--json", cwd=reproduced, check=False)
        return done.returncode, json.loads(done.stdout)

    params, results = reproduced / "params.yaml", reproduced / "results"
    before, content = params.read_text(), yaml.safe_load(params.read_text())
    content["methods"]["gentle"]["layer"]["eps"] = 0.45
    params.write_text(yaml.safe_dump(content, sort_keys=False))
    code, found = status()
    assert code == 1 and found.keys() == {p.parent.name for p in results.glob("*/metrics.json")}
    assert {"method@openmoji-gentle", "report@openmoji"} <= found["openmoji"].keys()
    assert "method@openmoji-advbn" not in found["openmoji"] and "method@cifar10-advbn" in found["cifar10"]
    content["profile"] = "cifar10"  # and of a profile that params.yaml does not name
    params.write_text(yaml.safe_dump(content, sort_keys=False))
    assert status()[1] == found
    params.write_text(before)
    done = call(sys.executable, "-m", "advbn", "status", "--record", "cifar10", cwd=reproduced, check=False)
    assert "cifar10: holds" in done.stdout and "openmoji: holds" in done.stdout
    for other in found.keys() - {"openmoji"}:
        shutil.rmtree(results / other)
    assert status() == (0, {"openmoji": {}}) and not list(reproduced.glob("status-*"))


def imported(clone, stage):
    "The modules of the package that the processes of a stage have imported, as paths in the clone."
    names = set((clone / "executed/imports" / stage).read_text().split())
    files = [name.replace(".", "/") for name in names]
    return {f"{f}.py" if (clone / f"{f}.py").exists() else f"{f}/__init__.py" for f in files}


def test_stages_depend_on_what_they_import_and_on_nothing_else(reproduced):
    stages = yaml.safe_load((reproduced / "dvc.yaml").read_text())["stages"]
    executed = {p.stem for p in (reproduced / "executed/openmoji").glob("*.ipynb")}
    for name in sorted(executed):
        ours = [d for d in stages[name.partition("-")[0]]["deps"] if d.startswith("advbn/")]
        found = {
            m for m in imported(reproduced, name) if (reproduced / m).read_text().strip()
        }  # no mere mark
        assert [m for m in sorted(found) if not any(m == d or m.startswith(f"{d}/") for d in ours)] == [], (
            name
        )
        code = [d for d in ours if not d.endswith(".html")]
        assert [d for d in code if not any(m == d or m.startswith(f"{d}/") for m in found)] == [], name


def test_two_processes_train_a_method(reproduced):
    """In the clone of the test before: accelerate's launcher, two processes on the CPU, one checkpoint per
    branch that evaluates."""
    clone = reproduced
    done = call(
        sys.executable,
        *IN_TWO,
        "-m",
        "advbn",
        "train",
        "gentle",
        "--seed",
        "1",
        cwd=clone,
    )
    assert "clean_loss" in done.stdout
    done = call(sys.executable, "-m", "advbn", "evaluate", "gentle", "--seed", "1", cwd=clone)
    assert "sketch" in done.stdout and "adversarial" in done.stdout


def test_one_seed_at_a_time_is_what_the_stages_give(reproduced):
    folder, words = reproduced / "results/openmoji", ("-m", "advbn", "seed", "1")
    kept = {name: (folder / name).read_bytes() for name in ("runs/gentle.csv", "training/gentle.csv")}
    right = read_right(folder / "right/gentle.npz")
    said = call(sys.executable, *words, cwd=reproduced).stdout
    assert said.splitlines() == ["seed 1 of openmoji is kept"]
    for name in kept:
        rows = pd.read_csv(folder / name)
        rows[rows.seed != 1].to_csv(folder / name, index=False)
    said = call(sys.executable, *words, cwd=reproduced).stdout
    assert re.fullmatch(r"gentle, seed 1: [0-9.]+ minutes\nseed 1 of openmoji is kept\n", said)
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    again = read_right(folder / "right/gentle.npz")
    assert again.keys() == right.keys() and all(again[key].equals(right[key]) for key in right)
    assert json.loads((folder / "made/seed1.json").read_text())["seconds"] > 0


def test_sets_are_written_from_the_command_line(reproduced, refused, monkeypatch):
    for arguments in (
        ["make-set", "sets/advbn"],
        ["corrupt", "sets/advbn", "sets/foggy", "--name", "fog", "--severity", "4"],
    ):
        assert "119 images written" in call(sys.executable, "-m", "advbn", *arguments, cwd=reproduced).stdout
    monkeypatch.chdir(reproduced)
    for arguments, words in (
        (["make-set", "sets/advbn", "--kind", "stylized"], "other settings"),
        (["make-set", "x", "--kind", "style"], "allowed are"),
        (["make-set", "x", "--seed", "77"], "allowed are the seeds"),
        (["corrupt", "sets/advbn", "x", "--name", "fogg"], "fog"),
        (["data", "--root", "tests"], "holds something else"),
    ):
        assert len(refused(arguments, words)) == 1
