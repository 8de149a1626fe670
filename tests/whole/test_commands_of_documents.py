"""Every command of the documents, as it is written, in the clone that has run the pipeline."""

import re
import shutil

import pytest
from conftest import ROOT, call

DOCUMENTS = ("README.md", "CONTRIBUTING.md")


ELSEWHERE = {
    "make test": "it would run this test",
    "make test-slow": "it would run this test",
    "make quick": "a part of `make test`",
    "make check": "a part of `make test`",
    "make lint": "see test_repository",
    "make reproduce": "a part of `make reproduce-all`",
    "make reproduce-all": "the clone is what it left",
    "make lab": "see test_lab",
    "make promises": "it would run this test",
    "make zoo": "see test_zoo",
    "make cuda": "it needs a GPU; see test_speed",
    "make export": "see test_repository",
    "make docs": "see test_docs",
    "make release": "see test_release",
    "pip install .": "see test_package",
    "dvc repro": "what `make reproduce-all` calls",
    "twine upload": "that publishes",
    "advbn import-official checkpoint.pth.tar": "see test_official",
    "advbn bench --contribute": "see test_speed",
    "advbn status": "see test_pipeline",
    "advbn verify": "see test_verify",
    "advbn seed 0 --profile pacs": "it needs PACS; see test_pipeline",
    "advbn evaluate --model resnet50 --weights weights.pt --data val --shifts all": "see test_command_line",
    "advbn finetune --data data/openmoji --model small_resnet --out robust": "see test_recipes and test_lab",
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


FOUND = list(dict.fromkeys(command for document in DOCUMENTS for command in commands(document)))
FIRST = (
    "advbn plan --profile imagenet",
    "advbn run nbs/stages/report.ipynb -p profile=imagenet",
    "nbdev_bump_version",
)  # `make test` runs these, `make test-slow` the others


def test_the_documents_name_commands():
    assert len(FOUND) > 12 and {*ELSEWHERE, *FIRST} <= set(FOUND)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[] if command in FIRST else pytest.mark.slow)
        for command in FOUND
        if command not in ELSEWHERE
    ],
)
def test_a_command_of_the_documents_runs(reproduced, make, command):
    """As it is written, in the clone that has run the pipeline; names in capitals stand for something that is
    there, and the embedded images for ImageNet."""
    command = (
        command.replace("--profile NAME", "--profile cifar10")
        .replace("study@PROFILE-NAME", "study@openmoji-ablations")
        .replace("imagenet", "openmoji")
    )
    if command.startswith("make "):
        make(reproduced, *command.split()[1:])
    else:
        call(*command.split(), cwd=reproduced)
    if command == "nbdev_bump_version":
        said = (reproduced / "settings.ini").read_text() + (reproduced / "advbn/__init__.py").read_text()
        assert "0.1.1" in said


@pytest.mark.parametrize("tier", ["test", pytest.param("test-slow", marks=pytest.mark.slow)])
def test_no_target_leaves_files_that_git_does_not_ignore(reproduced, released, make, tmp_path, tier):
    "After the pipeline and this tier's commands of the documents, and where the other targets were made."
    listed = make(reproduced, "help").stdout
    assert {line.split()[0] for line in listed.splitlines()} >= {
        "reproduce",
        "test",
        "quick",
        "test-slow",
        "check",
        "lint",
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
