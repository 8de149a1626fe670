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

from conftest import ROOT, call, copied_project
from advbn.errors import ParameterError
from advbn.networks.models import build_model
from advbn.notebooks import check_parameters, notebook_parameters, run_notebook

TRAIN = ROOT / "nbs/stages/train.ipynb"


def notebook(path, *cells):
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, metadata={"tags": tags}) for source, tags in cells]
    )
    nbformat.write(made, path)
    return path


@pytest.mark.parametrize(
    "given, words",
    [
        ({"methd": "advbn"}, "no parameter 'methd'; did you mean 'method'"),
        ({}, "needs the parameter 'method'"),
        ({"method": "advbn", "eps": "1"}, "no parameter 'eps'; it takes method"),
    ],
)
def test_wrong_names(given, words):
    with pytest.raises(ParameterError, match=words):
        check_parameters(TRAIN, given)


@pytest.mark.parametrize(
    "default, text, value",
    [
        ("3", "5", 5),
        ("3", "five", None),
        ("3", "1.5", None),
        ("0.5", "0.001", 0.001),
        ("True", "false", False),
        ("True", "yes", None),
        ("'a'", "7", "7"),
        ("[1]", "[1, 2]", [1, 2]),
    ],
)
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


@pytest.mark.parametrize("profile", ["openmoji", "cifar10", "imagenet"])
def test_every_parameter_that_a_stage_watches_is_there(profile):
    "DVC stops at one that is not; so a word in params.yaml changes the scale."
    stages, content = (
        yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"],
        yaml.safe_load((ROOT / "params.yaml").read_text()),
    )
    for stage in stages.values():
        ((key, names),) = stage.get("matrix", {"": [""]}).items()
        for item in content[names[2:-1]] if key else [""]:
            for name in stage["params"]:
                place = content
                for part in name.replace("${profile}", profile).replace(f"${{item.{key}}}", item).split("."):
                    assert part in place, f"{name} with profile {profile}"
                    place = place[part]


def test_command_line_errors_are_one_line_and_status_2(refused, monkeypatch):
    done = call(
        sys.executable,
        "-m",
        "advbn",
        "run",
        "nbs/stages/train.ipynb",
        "-p",
        "methd=advbn",
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2 and "did you mean 'method'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    monkeypatch.chdir(ROOT)
    for arguments, words in (
        (["run", "nbs/none.ipynb"], "no notebook"),
        (["train", "advbm"], "did you mean 'advbn'"),
    ):
        assert len(refused(arguments, words)) == 1


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return copied_project(tmp_path_factory.mktemp("clone") / "advbn")


def would_run(folder):
    done = call(sys.executable, "-m", "dvc", "repro", "--dry", "--allow-missing", cwd=folder)
    return re.findall(r"Running stage '(\S+)'", done.stdout + done.stderr)


def test_a_fresh_clone_is_up_to_date(clone):
    assert would_run(clone) == []


@pytest.mark.promise("Bad input", "a name in params.yaml is no command")
@pytest.mark.parametrize(
    "stage, change",
    [
        ("pretrain", lambda c, name: c.update(profile=name, profiles={name: c["profiles"]["openmoji"]})),
        ("train@{}", lambda c, name: c["methods"].update({name: c["methods"]["finetune"]})),
    ],
    ids=["a profile", "a method"],
)
def test_no_name_reaches_a_shell(tmp_path, stage, change):
    copied_project(tmp_path)
    content = yaml.safe_load((tmp_path / "params.yaml").read_text())
    (tmp_path / "checkpoints/openmoji/pretrained").mkdir(parents=True)
    name = "x$(touch pwned)'$(touch pwned)'"  # also where it stands in quotes
    change(content, name)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    done = call(
        sys.executable, "-m", "dvc", "repro", "--single-item", stage.format(name), cwd=tmp_path, check=False
    )
    assert (
        not (tmp_path / "pwned").exists()
        and done.returncode != 0
        and "allowed are letters, digits" in done.stderr
    )


def test_stages_depend_on_what_opens_the_images():
    "Of every stage that opens a set: the modules whose code runs then, for published sets, too."
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    opening = {name for name, stage in stages.items() if "advbn/images/datasets.py" in stage["deps"]}
    assert (
        len(opening) == 8
        and [name for name in opening if "advbn/shifts/published.py" not in stages[name]["deps"]] == []
    )


@pytest.fixture(scope="module")
def reproduced(miniature, tmp_path_factory):
    return shutil.copytree(miniature, tmp_path_factory.mktemp("reproduced") / "advbn", symlinks=True)


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
        "seeds",
    ]
    assert set(table.method) == {"standard", "finetune", "advbn", "gentle"} and (table.seeds == 2).all()
    assert set(table[table.method == "gentle"].branch) == {"clean", "adversarial"}
    assert "Gentle AdvBN" in (clone / "results/openmoji/tables/robustness.md").read_text()
    metrics = json.loads((clone / "results/openmoji/metrics.json").read_text())["openmoji"]
    assert metrics["gentle-clean"]["clean"] == round(
        table.query("method == 'gentle' and branch == 'clean' and shift == 'clean'").accuracy.item(), 2
    )
    stages = 6 + 2 * len(content["methods"]) + len(content["bases"]) + len(content["studies"])
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
    assert page.count("<table") == 7 and "Gentle AdvBN" in page and "train-gentle" in page
    done = json.loads((clone / "results/openmoji/made/train-gentle.json").read_text())
    assert done["seconds"] > 0 and "torch" in done["Packages"]
    again = call(sys.executable, "-m", "dvc", "repro", cwd=clone)
    assert "Running stage" not in again.stdout + again.stderr
    for command in (["metrics", "show"], ["plots", "show", "-o", "dvc_plots"], ["dag"]):
        call(sys.executable, "-m", "dvc", *command, cwd=clone)

    content["methods"]["gentle"]["layer"]["eps"] = 0.2
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    touched = would_run(clone)
    assert touched and {s.partition("@")[2] for s in touched if "@" in s} == {"gentle"}


@pytest.mark.promise("Interrupted work", "dvc repro after a failed stage goes on from that stage")
def test_a_failed_stage_is_where_the_next_run_begins(reproduced):
    "A method gets new settings; the report fails, is mended, and nothing before it is run again."
    clone, params = reproduced, reproduced / "params.yaml"
    content = yaml.safe_load(params.read_text())
    content["methods"]["gentle"]["layer"]["eps"] = 0.1  # less than a step
    params.write_text(yaml.safe_dump(content, sort_keys=False))
    path = clone / "nbs/stages/report.ipynb"
    before = path.read_text()
    broken = nbformat.reads(before, as_version=4)
    broken.cells.append(nbformat.v4.new_code_cell("raise ValueError('this stage fails')"))
    nbformat.write(broken, path)
    done = call(sys.executable, "-m", "dvc", "repro", "report", cwd=clone, check=False)
    assert done.returncode != 0 and "this stage fails" in done.stdout + done.stderr
    ran = re.findall(r"Running stage '(\S+)'", done.stdout + done.stderr)
    assert ran == ["train@gentle", "evaluate@gentle", "report"]
    path.write_text(before)
    done = call(sys.executable, "-m", "dvc", "repro", cwd=clone)
    again = re.findall(r"Running stage '(\S+)'", done.stdout + done.stderr)
    assert (
        "report" in again and not {"train@gentle", "evaluate@gentle"} & set(again) and would_run(clone) == []
    )


def test_two_processes_train_a_method(reproduced):
    """In the clone of the test before: accelerate's launcher, two processes on the CPU, one checkpoint per
    branch that evaluates."""
    clone = reproduced
    done = call(
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
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


@pytest.mark.promise("Interrupted work", "Ctrl-C and SIGTERM keep the progress and exit with status 75")
def test_a_run_asked_to_stop_says_so_by_its_exit_status(reproduced):
    """In the same clone: a second run on the same files is refused while the first is at work; the first
    keeps its progress and goes on from it."""
    clone, path = reproduced, reproduced / "params.yaml"
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
    assert (
        first.returncode == 75
        and "SIGTERM: stopped after step" in said
        and (clone / "progress/openmoji/pretrained-seed0.pt").exists()
    )
    again = subprocess.Popen(command, cwd=clone, stderr=subprocess.PIPE, text=True)
    while not (clone / "progress/openmoji/pretrained-seed0.owner").exists() and again.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    again.send_signal(signal.SIGINT)
    later = again.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert again.returncode == 75 and int(later.split("step ")[1].split(";")[0]) > int(
        said.split("step ")[1].split(";")[0]
    )
    path.write_text(before)


@pytest.mark.promise("Interrupted work", "Ctrl-C and SIGTERM keep the progress and exit with status 75")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stage_asked_to_stop_takes_its_workers_along(clone, number):
    "Two seeds side by side, each in a process of its own: both keep their progress, and none is left."
    path = clone / "params.yaml"
    before = path.read_text()
    content = yaml.safe_load(before)
    content.update(seeds=[7, 8])
    content["profiles"]["openmoji"]["short"] = None
    content["profiles"]["openmoji"]["threads"] = 1
    content["profiles"]["openmoji"]["pretrain"]["epochs"] = 200
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    kept = [clone / f"progress/openmoji/pretrained-seed{seed}" for seed in (7, 8)]
    stage = subprocess.Popen(
        [sys.executable, "-m", "advbn", "run", "nbs/stages/pretrain.ipynb", "-p", "profile=openmoji"],
        cwd=clone,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 120
    while (
        not all(k.with_suffix(".owner").exists() for k in kept)
        and time.time() < deadline
        and stage.poll() is None
    ):
        time.sleep(0.1)
    workers = [int(k.with_suffix(".owner").read_text().split()[1]) for k in kept]
    time.sleep(2)
    stage.send_signal(number)
    said = stage.communicate(timeout=90)[1]
    assert stage.returncode == 75 and f"{number.name}: stopped" in said
    assert all(k.with_suffix(".pt").exists() and not k.with_suffix(".owner").exists() for k in kept)
    deadline = time.time() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.time() < deadline:
        time.sleep(0.2)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    path.write_text(before)
    for k in kept:
        for file in clone.glob(f"progress/openmoji/{k.name}*"):
            file.unlink()


DOCUMENTS = ("README.md", "CONTRIBUTING.md")
ELSEWHERE = {
    "make test": "it would run this test",
    "make reproduce": "a part of `make reproduce-all`",
    "make reproduce-all": "the clone is what it left",
    "make lab": "see test_lab",
    "make promises": "it would run this test",
    "make zoo": "see test_zoo",
    "make export": "see test_repository",
    "make docs": "see test_docs",
    "make dist": "see test_package",
    "pip install .": "see test_package",
    "dvc repro": "what `make reproduce-all` calls",
    "twine upload": "that publishes",
    "advbn import-official checkpoint.pth.tar": "see test_official",
    "advbn evaluate --model resnet50 --weights weights.pt --data val --shifts all": "see test_anyone",
}


def commands(document):
    """What a document tells its reader to type: lines of its shell blocks, and words in backquotes that begin
    with a program's name."""
    text = (ROOT / document).read_text()
    lines = [
        line.split("#")[0].strip()
        for block in re.findall(r"```bash\n(.*?)```", text, re.S)
        for line in block.splitlines()
    ]
    words = re.findall(
        r"`((?:make|advbn|dvc|pip|pre-commit|accelerate|nbdev_\w+|twine)(?: [^`]+)?)`",
        re.sub(r"```.*?```", "", text, flags=re.S),
    )
    return [c for c in dict.fromkeys(lines + words) if " " in c or c.startswith("nbdev_")]


def test_the_documents_commands_run(reproduced, make):
    """Every one, as it is written, in the clone that has run the pipeline; names in capitals stand for
    something that is there, and the embedded images for ImageNet."""
    found = list(dict.fromkeys(c for document in DOCUMENTS for c in commands(document)))
    assert len(found) > 12 and set(ELSEWHERE) <= set(found)
    for command in found:
        command = (
            command.replace("--profile NAME", "--profile cifar10")
            .replace("study@NAME", "study@ablations")
            .replace("imagenet", "openmoji")
        )
        if command in ELSEWHERE:
            continue
        if command.startswith("make "):
            make(reproduced, *command.split()[1:])
        else:
            call(*command.split(), cwd=reproduced)
        if command == "nbdev_bump_version":
            assert (
                "0.1.1"
                in (reproduced / "settings.ini").read_text() + (reproduced / "advbn/__init__.py").read_text()
            )


@pytest.mark.promise(
    "Long runs",
    "advbn clean says what it would free before it frees it, and the disk that a run takes is bounded",
)
def test_weights_are_exported_and_disk_is_freed_only_when_asked(reproduced):
    "In the same clone."
    clone = reproduced
    done = call(
        sys.executable,
        "-m",
        "advbn",
        "export",
        "gentle",
        "sets/robust.pt",
        "--branch",
        "adversarial",
        "--seed",
        "1",
        cwd=clone,
    )
    assert "small_resnet, 9 classes" in done.stdout
    build_model("small_resnet", 9).load_state_dict(torch.load(clone / "sets/robust.pt", weights_only=True))
    done = call(
        sys.executable,
        "-m",
        "advbn",
        "export",
        "finetune",
        "x.pt",
        "--branch",
        "adversarial",
        cwd=clone,
        check=False,
    )
    assert done.returncode == 2 and "finetune has clean" in done.stderr and not (clone / "x.pt").exists()
    left = {
        p.name for p in (clone / "progress").rglob("*.pt*")
    }  # finished runs leave no progress, and one that was stopped a file and a spare
    assert (
        left <= {"pretrained-seed0.pt", "pretrained-seed0.pt.previous"}
        and sum(p.stat().st_size for p in (clone / "executed").rglob("*.ipynb")) < 20e6
    )
    done = call(sys.executable, "-m", "advbn", "clean", cwd=clone)
    assert (
        "checkpoints" in done.stdout and "would be freed" in done.stdout and (clone / "checkpoints").exists()
    )
    done = call(sys.executable, "-m", "advbn", "clean", "--yes", cwd=clone)
    assert (
        "freed" in done.stdout
        and not (clone / "checkpoints").exists()
        and (clone / "data").exists()
        and (clone / "results").exists()
    )


def test_no_target_leaves_files_that_git_does_not_ignore(reproduced, released, make, tmp_path):
    "After the pipeline and the documents' commands, and where the other targets were made."
    listed = make(reproduced, "help").stdout
    assert {line.split()[0] for line in listed.splitlines()} >= {
        "reproduce",
        "test",
        "lab",
        "docs",
        "dist",
        "export",
        "readme",
        "promises",
        "zoo",
        "clean",
    }
    made = shutil.copytree(released, tmp_path / "advbn", symlinks=True)
    assert (made / "_docs/index.html").exists() and list((made / "dist").glob("*.whl"))
    for clone in (reproduced, made):
        for target in ("env", "workshop", "data"):
            make(clone, target)
        left = [
            line
            for line in call(
                "git", "status", "--porcelain", "--untracked-files=all", cwd=clone
            ).stdout.splitlines()
            if line.startswith("??")
        ]
        assert [
            line for line in left if not line[3:].startswith("results/openmoji/")
        ] == []  # those of the added method
        make(clone, "clean")
        assert not any(
            (clone / name).exists() for name in ("executed", "checkpoints", "_docs", "dist", "data")
        )
