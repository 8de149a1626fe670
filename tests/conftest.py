import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # of this worker and what it starts; another worker has the other core

import nbformat
import pytest
import torch
import yaml
from filelock import FileLock

from advbn import cli
from advbn.images.openmoji import fingerprint

pytest_plugins = ["miniature_imagenet", "lite_profile", "some_emoji", "some_pictures"]  # their fixtures
ROOT = Path(__file__).resolve().parent.parent
RECORDED = [
    p
    for p in ("openmoji", "cifar10", "pacs", "imagenet200", "imagenet")
    if (ROOT / "results" / p / "metrics.json").exists()
]  # the profiles with results in Git


for _name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"):
    os.environ.pop(_name, None)  # of the make that may have started these tests; some start one of their own

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def call(*command, cwd, check=True, **environment):
    "Run a program of this environment; without an error, unless `check` is `False`."
    environment = {
        **os.environ,
        "DVC_NO_ANALYTICS": "1",
        "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
        **environment,
    }
    environment.pop("ADVBN_ROOT", None)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def copied_project(folder):
    """The tracked and new files of the working tree, as a clone at `folder`, with the images; returns
    `folder`."""
    for name in call(
        "git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT
    ).stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    shutil.copytree(ROOT / "data", folder / "data")
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "as it is"],
    ):
        call("git", *words, cwd=folder)
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


def notebook(path, *cells):
    "Write a notebook of code cells, pairs of source and tags; returns its path."
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, metadata={"tags": tags}) for source, tags in cells]
    )
    nbformat.write(made, path)
    return path


def would_run(folder):
    "The stages that `dvc repro` would run in a clone."
    done = call(sys.executable, "-m", "dvc", "repro", "--dry", "--allow-missing", cwd=folder)
    return re.findall(r"Running stage '(\S+)'", done.stdout + done.stderr)


FIRST = (
    "test_pipeline",  # makes the miniature
    "test_docs",  # exports, and builds the site and the wheel
    "test_several_processes",
    "test_interrupted_work",
    "test_lab",
    "test_corruptions",
    "test_commands_of_documents",
    "test_long_runs",
)


def pytest_collection_modifyitems(items):
    "Files that take minutes come first, and the zoo, whose tests are handed out one by one, last."
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: (item.path.stem == "test_zoo", order.get(item.path.stem, len(FIRST))))


def pytest_xdist_make_scheduler(config, log):
    """The tests of a file stay together in one process, in their order; those of the zoo do not, so that no
    process ends long before another."""
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::", 1)[0]
            return nodeid if file.endswith("test_zoo.py") else file

    return Files(config, log)


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """The folder of this session's workers, or one for several sessions on the same working tree, which
    `.ci/run` asks for: what takes minutes to make is made once for both of its steps."""
    if named := os.environ.get("ADVBN_TESTS_SHARED"):
        folder = Path(named) / hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def once(shared):
    "Call `make` with a folder of that name, in the first worker that asks for it; the folder."

    def made(name, make):
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.made").exists():
                shutil.rmtree(shared / name, ignore_errors=True)
                (shared / name).mkdir()
                make(shared / name)
                (shared / f"{name}.made").touch()
        return shared / name

    return made


@pytest.fixture(scope="session", autouse=True)
def embedded_images(once):
    "The embedded images, drawn once if they are not there."
    once("images", lambda _: subprocess.run([sys.executable, "-m", "advbn", "data"], cwd=ROOT, check=True))


@pytest.fixture(scope="session")
def make(once):
    "Run a target of the Makefile in a clone, with this environment in place of one that it would install."
    venv = once("venv", borrowed_venv)
    return lambda clone, *words, **environment: call("make", *words, f"VENV={venv}", cwd=clone, **environment)


@pytest.fixture(scope="session")
def released(once, make):
    """A clone in which the package was exported, and site, wheel and source archive were built, without
    network; to be left as it is."""

    def build(folder):
        for module in (copied_project(folder) / "advbn").rglob("*.py"):
            if "AUTOGENERATED" in module.read_text(encoding="utf-8"):
                module.unlink()
        for target in ("export", "docs", "dist"):
            make(
                folder,
                target,
                PIP_NO_INDEX="1",
                http_proxy="http://127.0.0.1:9",
                https_proxy="http://127.0.0.1:9",
            )

    return once("released", build)


IN_TWO = (
    "-m accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no"
).split()  # what makes two processes of a command on the CPU

WATCH = """
import os, sys

class Watch:
    "Writes down, at each import of a module of the package in a process of a stage, its name."

    def find_spec(self, name, path=None, target=None):
        if name.startswith("advbn.") and "ADVBN_STAGE" in os.environ:
            with open(os.path.join(os.environ["ADVBN_WATCH"], os.environ["ADVBN_STAGE"]), "a") as file:
                print(name, file=file)

sys.meta_path.insert(0, Watch())
"""


@contextmanager
def watched(folder):
    "Processes that are started inside write down which modules of the package they have imported."
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(WATCH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        )
        patch.setenv("ADVBN_WATCH", str(folder))
        yield


@pytest.fixture(scope="session")
def miniature(once, make):
    """A clone after `make reproduce-all`, with a fourth of the images, one epoch, two seeds, and a method row
    that somebody added as CONTRIBUTING says; to be copied."""

    def reproduce(folder):
        keep_a_fourth(copied_project(folder))
        path = folder / "params.yaml"
        content = yaml.safe_load(path.read_text())
        content["seeds"] = [0, 1]
        content["methods"] = {k: content["methods"][k] for k in ("standard", "finetune", "advbn")}
        content["outcomes"].pop("second")
        content["methods"] |= yaml.safe_load(
            re.search(r"## Add a method.*?```yaml\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]
        )
        content["methods"]["gentle"]["layer"]["steps"] = 1
        for profile in content["profiles"].values():  # none says something of a method that is gone
            changed = profile.get("methods") or {}
            profile["methods"] = {k: v for k, v in changed.items() if k in content["methods"]}
            if profile["short"] and "bases" in profile["short"]:  # nor of bases and studies
                profile["short"] = None
        for section in ("pretrain", "finetune"):
            content["profiles"]["openmoji"][section]["epochs"] = 1
        for section in ("classifier", "decoder"):
            content["profiles"]["openmoji"]["pictures"][section]["epochs"] = 1
        content["profiles"]["openmoji"]["short"].update(seeds=[0], pretrain_epochs=1, finetune_epochs=1)
        content["bases"] = {"plain": content["bases"]["plain"]}
        content["base_methods"] = {k: content["base_methods"][k] for k in ("finetune", "advbn")}
        for study in content["studies"].values():
            study.update(
                bases=["plain"],
                methods={k: study["methods"][k] for k in study.get("methods", {}) if k == "steps1"},
            )
        content["profiles"]["openmoji"]["threads"] = None  # one process, which starts faster than two
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        with watched(folder / "executed" / "imports"):
            done = make(folder, "reproduce-all", check=False)
        said = done.stdout
        assert "No verdict: parameters differ" in said, said[-3000:] + done.stderr[-3000:]
        assert "about" in said.splitlines()[0] and "Gentle AdvBN" in said and "is complete" in said

    return once("miniature", reproduce)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "A clone in which nothing was run, for the tests of a file."
    return copied_project(tmp_path_factory.mktemp("clone") / "advbn")


@pytest.fixture(scope="module")
def reproduced(miniature, tmp_path_factory):
    "A copy of the clone that has run the pipeline, for the tests of a file."
    return shutil.copytree(miniature, tmp_path_factory.mktemp("reproduced") / "advbn", symlinks=True)


@pytest.fixture
def run(monkeypatch, capsys):
    "Run the command line in this process: `(status, standard output, standard error)`."

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["advbn", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return (stopped.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(run):
    """Run the command line in this process; it must say one or two lines with all of `words`, and exit with
    status 2."""

    def call(arguments, *words):
        status, _, said = run(*arguments)
        said = [
            line for line in said.strip().splitlines() if not re.search(r"\[\d\d:\d\d|%\|", line)
        ]  # but for progress bars
        assert status == 2 and 1 <= len(said) <= 2, said
        for word in words:
            assert word in "\n".join(said), said
        return said

    return call


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


# A test marked `promise("Section", "promise")` keeps that promise; `--promises FILE` writes the table of
# them, a row per fault that was tried.
# A test that records a property `zoo` has cut a network; `--zoo FILE` writes the table of those rows.


def pytest_addoption(parser):
    parser.addoption(
        "--promises",
        metavar="FILE",
        help="write the table of promises, from the tests that keep one (`-m promise` runs those alone)",
    )
    parser.addoption(
        "--zoo", metavar="FILE", help="write the table of networks and cuts, from tests/whole/test_zoo.py"
    )


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
        write_table(
            path, ["section", "promise", "fault", "outcome"], outcomes_of_promises(terminalreporter.stats)
        )
    if path := config.getoption("--zoo"):
        rows = [
            row
            for report in terminalreporter.stats.get("passed", [])
            for name, row in report.user_properties
            if name == "zoo"
        ]
        write_table(
            path, ["library", "family", "network", "cut", "outcome"], sorted(rows, key=lambda row: row[:3])
        )


def outcomes_of_promises(stats):
    outcomes = {}
    for outcome, word in (
        ("passed", "kept"),
        ("skipped", "not tried here"),
        ("failed", "broken"),
        ("error", "broken"),
    ):
        for report in stats.get(outcome, []):
            if getattr(report, "promise", None):
                outcomes[report.promise] = word
    return [[*promise, outcome] for promise, outcome in sorted(outcomes.items())]


def write_table(path, columns, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
