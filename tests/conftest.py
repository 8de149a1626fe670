import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from advbn.openmoji import fingerprint

ROOT = Path(__file__).resolve().parent.parent
RECORDED = [p for p in ("openmoji", "cifar10", "imagenet") if (ROOT / "results" / p).exists()]  # the profiles with results in Git


for _name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
    os.environ.pop(_name, None)  # of the make that may have started these tests; some start one of their own

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def copied_project(folder):
    "The tracked and new files of the working tree, as a repository of its own at `folder`, with the images; returns `folder`."
    names = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    shutil.copytree(ROOT / "data", folder / "data")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def borrowed_venv(folder):
    "This environment under another name, with the marks by which the Makefile knows one that is complete."
    for entry in os.scandir(sys.prefix):
        if entry.name not in ("ready", "workshop"):
            (folder / entry.name).symlink_to(entry.path)
    for name in ("ready", "workshop"):
        (folder / name).touch()
    return folder


def keep_a_fourth(folder):
    "Leave every fourth image of the project at `folder`, and pin those."
    for kind in ("openmoji", "sketch"):
        for number, image in enumerate(sorted((folder / "data" / kind).rglob("*.png"))):
            if number % 4:
                image.unlink()
    pin = yaml.safe_load((folder / "data.dvc").read_text())
    pin["outs"][0].update(fingerprint(folder / "data"))
    (folder / "data.dvc").write_text(yaml.safe_dump(pin))


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def embedded_images():
    "The embedded images, drawn once if they are not there."
    subprocess.run([sys.executable, "-m", "advbn", "data"], cwd=ROOT, check=True)


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


# A test marked `promise("Section", "promise")` keeps that promise; `--promises FILE` writes the table of them, a row per fault that was tried.
# A test that records a property `zoo` has cut a network; `--zoo FILE` writes the table of those rows.


def pytest_addoption(parser):
    parser.addoption("--promises", metavar="FILE", help="write the table of promises, from the tests that keep one (`-m promise` runs those alone)")
    parser.addoption("--zoo", metavar="FILE", help="write the table of networks and cuts, from tests/test_zoo.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("promise")
    report.promise = (*mark.args, fault(item.name)) if mark else None
    return report


def fault(test):
    "What a test tries: its name, and which of its cases."
    name, _, case = test.partition("[")
    return name.removeprefix("test_").replace("_", " ") + (f": {case.rstrip(']')}" if case else "")


def pytest_terminal_summary(terminalreporter, config):
    if path := config.getoption("--promises"):
        write_table(path, ["section", "promise", "fault", "outcome"], outcomes_of_promises(terminalreporter.stats))
    if path := config.getoption("--zoo"):
        rows = [row for report in terminalreporter.stats.get("passed", []) for name, row in report.user_properties if name == "zoo"]
        write_table(path, ["library", "family", "network", "cut", "outcome"], sorted(rows, key=lambda row: row[:3]))


def outcomes_of_promises(stats):
    outcomes = {}
    for outcome, word in (("passed", "kept"), ("skipped", "not tried here"), ("failed", "broken"), ("error", "broken")):
        for report in stats.get(outcome, []):
            if getattr(report, "promise", None):
                outcomes[report.promise] = word
    return [[*promise, outcome] for promise, outcome in outcomes.items()]


def write_table(path, columns, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
