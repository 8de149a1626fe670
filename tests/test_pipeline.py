"""The runner's refusals, and the whole pipeline in miniature in a clone of its own."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest
import torch
import yaml

from conftest import ROOT
from advbn.models import build_model
from advbn.parameters import ParameterError
from advbn.pipeline import check_parameters, notebook_parameters, run_notebook

TRAIN = ROOT / "nbs/stages/train.ipynb"


def call(*command, cwd, check=True):
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
    environment.pop("ADVBN_ROOT", None)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def notebook(path, *cells):
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, metadata={"tags": tags}) for source, tags in cells])
    nbformat.write(made, path)
    return path


@pytest.mark.parametrize("given, words", [
    ({"methd": "advbn"}, "no parameter 'methd'; did you mean 'method'"), ({}, "needs the parameter 'method'"),
    ({"method": "advbn", "eps": "1"}, "no parameter 'eps'; it takes method")])
def test_wrong_names(given, words):
    with pytest.raises(ParameterError, match=words):
        check_parameters(TRAIN, given)


@pytest.mark.parametrize("default, text, value", [
    ("3", "5", 5), ("3", "five", None), ("3", "1.5", None), ("0.5", "0.001", 0.001), ("True", "false", False), ("True", "yes", None),
    ("'a'", "7", "7"), ("[1]", "[1, 2]", [1, 2])])
def test_types(tmp_path, default, text, value):
    path = notebook(tmp_path / "a.ipynb", (f"x = {default}", ["parameters"]))
    if value is None:
        with pytest.raises(ParameterError, match="parameter x is"):
            check_parameters(path, {"x": text})
    else:
        found = check_parameters(path, {"x": text})["x"]
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("cells", [[("x = 1", [])], [("x = 1", ["parameters"]), ("y = 1", ["parameters"])]])
def test_exactly_one_parameters_cell(tmp_path, cells):
    with pytest.raises(ParameterError, match="exactly one"):
        notebook_parameters(notebook(tmp_path / "a.ipynb", *cells))


def test_a_failing_notebook_fails_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    path = notebook(tmp_path / "a.ipynb", ("x = 1", ["parameters"]), ("print(x / 0)", []))
    with pytest.raises(Exception, match="ZeroDivisionError"):
        run_notebook(path, {"x": "2"})
    assert "ZeroDivisionError" in (tmp_path / "executed/openmoji/a-2.ipynb").read_text()
    path = notebook(tmp_path / "b.ipynb", ("profile = 'openmoji'", ["parameters"]))
    with pytest.raises(ParameterError, match="profile is 'imagenet' and params.yaml names 'openmoji'"):
        run_notebook(path, {"profile": "imagenet"})


@pytest.mark.parametrize("profile", ["openmoji", "cifar10", "imagenet"])
def test_every_parameter_that_a_stage_watches_is_there(profile):
    "DVC stops at one that is not; so a word in params.yaml changes the scale."
    stages, content = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"], yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in stages.values():
        (key, names), = stage.get("matrix", {"": [""]}).items()
        for item in content[names[2:-1]] if key else [""]:
            for name in stage["params"]:
                place = content
                for part in name.replace("${profile}", profile).replace(f"${{item.{key}}}", item).split("."):
                    assert part in place, f"{name} with profile {profile}"
                    place = place[part]


def test_command_line_errors_are_one_line_and_status_2():
    for arguments, words in ((["run", "nbs/stages/train.ipynb", "-p", "methd=advbn"], "did you mean 'method'"),
                             (["run", "nbs/none.ipynb"], "no notebook"), (["train", "advbm"], "did you mean 'advbn'")):
        done = call(sys.executable, "-m", "advbn", *arguments, cwd=ROOT, check=False)
        assert done.returncode == 2 and words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "The tracked and new files of the working tree, as a clone with its data built."
    folder = tmp_path_factory.mktemp("clone") / "advbn"
    names = call("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    for name in names:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    shutil.copytree(ROOT / "data", folder / "data")
    call("git", "init", "-q", cwd=folder)
    return folder


def would_run(folder):
    done = call(sys.executable, "-m", "dvc", "repro", "--dry", "--allow-missing", cwd=folder)
    return re.findall(r"Running stage '(\S+)'", done.stdout + done.stderr)


def test_a_fresh_clone_is_up_to_date(clone):
    assert would_run(clone) == []


def test_the_whole_pipeline_in_miniature(clone):
    "A fourth of the images, one epoch, two seeds, and a method row that somebody added by one entry."
    for kind in ("openmoji", "sketch"):
        for number, image in enumerate(sorted((clone / "data" / kind).rglob("*.png"))):
            if number % 4:
                image.unlink()
    path = clone / "params.yaml"
    content = yaml.safe_load(path.read_text())
    content["seeds"] = [0, 1]
    content["methods"] = {k: content["methods"][k] for k in ("standard", "finetune", "advbn")}
    content["methods"]["gentle"] = {"label": "Gentle AdvBN", "train": "adversarial", "layer": {"eps": 0.3, "steps": 1}}
    for section in ("pretrain", "finetune"):
        content["profiles"]["openmoji"][section]["epochs"] = 1
    for section in ("classifier", "decoder"):
        content["profiles"]["openmoji"]["pictures"][section]["epochs"] = 1
    content["profiles"]["openmoji"]["short"].update(seeds=[0], pretrain_epochs=1, finetune_epochs=1)
    content["bases"] = {"plain": content["bases"]["plain"]}
    content["base_methods"] = {k: content["base_methods"][k] for k in ("finetune", "advbn")}
    for study in content["studies"].values():
        study.update(bases=["plain"], methods={k: study["methods"][k] for k in study.get("methods", {}) if k == "steps1"})
    content["profiles"]["openmoji"]["threads"] = None  # one process, which starts faster than two
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    call(sys.executable, "-m", "dvc", "repro", cwd=clone)

    table = pd.read_csv(clone / "results/openmoji/tables/robustness.csv")
    assert list(table.columns) == ["profile", "method", "branch", "shift", "accuracy", "ci95", "difference", "difference_ci95", "seeds"]
    assert set(table.method) == {"standard", "finetune", "advbn", "gentle"} and (table.seeds == 2).all()
    assert set(table[table.method == "gentle"].branch) == {"clean", "adversarial"}
    assert "Gentle AdvBN" in (clone / "results/openmoji/tables/robustness.md").read_text()
    metrics = json.loads((clone / "results/openmoji/metrics.json").read_text())["openmoji"]
    assert metrics["gentle-clean"]["clean"] == round(table.query("method == 'gentle' and branch == 'clean' and shift == 'clean'").accuracy.item(), 2)
    stages = 6 + 2 * len(content["methods"]) + len(content["bases"]) + len(content["studies"])
    assert len(list((clone / "executed/openmoji").glob("*.ipynb"))) == stages
    assert call("git", "status", "--porcelain", "--untracked-files=all", cwd=clone).stdout.count("checkpoints/") == 0

    for name in ("robustness", "corruptions", "adversarial_images", "predictions"):
        assert (clone / f"results/openmoji/figures/{name}.png").stat().st_size > 10_000
    for study in content["studies"]:
        made = pd.read_csv(clone / f"results/openmoji/tables/{study}.csv")
        assert set(made.method) == {"finetune", "advbn", *content["studies"][study]["methods"]} and (made.seeds == 1).all() and made.query("method == 'advbn'").cost.min() > 3
    page = (clone / "results/openmoji/report.html").read_text(encoding="utf-8")
    assert page.count("<table") == 7 and "Gentle AdvBN" in page and "train-gentle" in page
    done = json.loads((clone / "results/openmoji/made/train-gentle.json").read_text())
    assert done["seconds"] > 0 and "torch" in done["Packages"]
    again = call(sys.executable, "-m", "dvc", "repro", cwd=clone)
    assert "Running stage" not in again.stdout + again.stderr
    for command in (["metrics", "show"], ["plots", "show", "-o", "plots"], ["dag"]):
        call(sys.executable, "-m", "dvc", *command, cwd=clone)

    content["methods"]["gentle"]["layer"]["eps"] = 0.2
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    touched = would_run(clone)
    assert touched and {s.partition("@")[2] for s in touched if "@" in s} == {"gentle"}


def test_two_processes_train_a_method(clone):
    "In the clone of the test before: accelerate's launcher, two processes on the CPU, one checkpoint per branch that evaluates."
    done = call(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                "--dynamo_backend", "no", "-m", "advbn", "train", "gentle", "--seed", "1", cwd=clone)
    assert "clean_loss" in done.stdout
    done = call(sys.executable, "-m", "advbn", "evaluate", "gentle", "--seed", "1", cwd=clone)
    assert "sketch" in done.stdout and "adversarial" in done.stdout


def test_sets_are_written_from_the_command_line(clone):
    for arguments in (["make-set", "sets/advbn"], ["corrupt", "sets/advbn", "sets/foggy", "--name", "fog", "--severity", "4"]):
        assert "119 images written" in call(sys.executable, "-m", "advbn", *arguments, cwd=clone).stdout
    for arguments, words in ((["make-set", "sets/advbn", "--kind", "stylized"], "other settings"), (["make-set", "x", "--kind", "style"], "allowed are"),
                             (["make-set", "x", "--seed", "77"], "allowed are the seeds"), (["corrupt", "sets/advbn", "x", "--name", "fogg"], "fog"),
                             (["data", "--root", "tests"], "holds something else")):
        done = call(sys.executable, "-m", "advbn", *arguments, cwd=clone, check=False)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_run_asked_to_stop_says_so_by_its_exit_status(clone):
    "In the same clone: a second run on the same files is refused while the first is at work; the first keeps its progress and goes on from it."
    path = clone / "params.yaml"
    before = path.read_text()
    content = yaml.safe_load(before)
    content["profiles"]["openmoji"]["pretrain"]["epochs"] = 100
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    command = [sys.executable, "-m", "advbn", "pretrain", "--seed", "0"]
    first = subprocess.Popen(command, cwd=clone, stderr=subprocess.PIPE, text=True)
    while not (clone / "progress/openmoji/pretrained-seed0.owner").exists() and first.poll() is None:
        time.sleep(0.1)
    second = call(*command, cwd=clone, check=False)
    assert second.returncode == 2 and f"being trained by process {first.pid}" in second.stderr
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert first.returncode == 75 and "SIGTERM: stopped after step" in said and (clone / "progress/openmoji/pretrained-seed0.pt").exists()
    again = subprocess.Popen(command, cwd=clone, stderr=subprocess.PIPE, text=True)
    while not (clone / "progress/openmoji/pretrained-seed0.owner").exists() and again.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    again.send_signal(signal.SIGINT)
    later = again.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert again.returncode == 75 and int(later.split("step ")[1].split(";")[0]) > int(said.split("step ")[1].split(";")[0])
    path.write_text(before)


def test_weights_are_exported_and_disk_is_freed_only_when_asked(clone):
    "In the same clone."
    done = call(sys.executable, "-m", "advbn", "export", "gentle", "robust.pt", "--branch", "adversarial", "--seed", "1", cwd=clone)
    assert "small_resnet, 9 classes" in done.stdout
    build_model("small_resnet", 9).load_state_dict(torch.load(clone / "robust.pt", weights_only=True))
    done = call(sys.executable, "-m", "advbn", "export", "finetune", "x.pt", "--branch", "adversarial", cwd=clone, check=False)
    assert done.returncode == 2 and "finetune has clean" in done.stderr and not (clone / "x.pt").exists()
    done = call(sys.executable, "-m", "advbn", "clean", cwd=clone)
    assert "checkpoints" in done.stdout and "would be freed" in done.stdout and (clone / "checkpoints").exists()
    done = call(sys.executable, "-m", "advbn", "clean", "--yes", cwd=clone)
    assert "freed" in done.stdout and not (clone / "checkpoints").exists() and (clone / "data").exists() and (clone / "results").exists()
