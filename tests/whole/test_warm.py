"""The stages of one DVC are forked from a process that has done its imports, and behave as ever."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
from conftest import notebook

pytestmark = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="processes are forked under Linux alone"
)

# in place of DVC: a process of its name, which runs a command at each line that it reads
DVC = """
import os, subprocess, sys
for line in sys.stdin:
    name, _, command = line.strip().partition(" ")
    environment = {**os.environ, "DVC_STAGE": name}
    process = subprocess.Popen(command.split(), env=environment, stderr=subprocess.STDOUT)
    print("process", process.pid, flush=True)
    print("status", process.wait(), flush=True)
"""
TOLD = """
import os, sys
warm = "torch" in sys.modules
from advbn.base import names
import numpy as np
import torch
print("seen", warm, getattr(names, "ADDED", None), os.environ["ADVBN_STAGE"], word, end=" ")
print(torch.initial_seed(), np.random.rand())
"""


WORKERS = """
import os, pathlib
from advbn.base.workers import side_by_side, start_workers
start_workers()
parents = set(side_by_side(os.getppid, [(), ()], threads=word))
print("forked from", *(pathlib.Path(f"/proc/{p}/cmdline").read_text().split("\\0")[1:3] for p in parents))
"""


# what a kernel does that shuts down: it asks its children to end, and waits until it sees none
LEAVING = """
import psutil, time
asked, until = psutil.Process().children(), time.time() + 30
for child in asked:
    child.terminate()
while psutil.Process().children() and time.time() < until:
    time.sleep(0.01)
print("of", len(asked), "left", len(psutil.Process().children()), word)
"""


@pytest.fixture(scope="module")
def project(clone):
    "A clone with notebooks in place of stages."
    stages = clone / "nbs" / "stages"
    notebook(stages / "told.ipynb", ('word = "a"', ["parameters"]), (TOLD, []))
    notebook(stages / "workers.ipynb", ("word = 1", ["parameters"]), (WORKERS, []))
    notebook(stages / "leaving.ipynb", ("word = 1", ["parameters"]), (LEAVING, []))
    notebook(stages / "wrong.ipynb", ("word = 1", ["parameters"]), ("word / 0", []))
    long = "import os, pathlib, time\npathlib.Path('at_work').write_text(str(os.getpid()))\ntime.sleep(60)"
    notebook(stages / "long.ipynb", ("word = 1", ["parameters"]), (long, []))
    return clone


class Driver:
    "What stands in for DVC, and the commands it is told to run."

    def __init__(self, project, environment):
        (project.parent / "dvc").write_text(DVC)
        self.process = subprocess.Popen(
            [sys.executable, str(project.parent / "dvc")],
            cwd=project,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.folder = os.path.join(environment["TMPDIR"], f"advbn-{os.getuid()}-{self.process.pid}")

    def begin(self, name, word, stage="a"):
        "Start a stage; the number of its process."
        print(
            stage,
            sys.executable,
            "-m advbn run",
            f"nbs/stages/{name}.ipynb --word {word}",
            file=self.process.stdin,
        )
        self.process.stdin.flush()
        return int(self.until("process ").split()[1])

    def until(self, start):
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(start):
                return line
        raise AssertionError("".join(self.lines))

    def run(self, name, word, stage="a"):
        "Run a stage: its exit status, and what it printed."
        self.begin(name, word, stage)
        return int(self.until("status ").split()[1]), "".join(self.lines)

    def wait_for_server(self):
        until = time.time() + 120
        while not os.path.exists(os.path.join(self.folder, "stages")) and time.time() < until:
            time.sleep(0.1)

    def end(self):
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture
def driver(project):
    with tempfile.TemporaryDirectory() as folder:  # of a short name: a socket has one of at most 107 bytes
        driver = Driver(project, {**os.environ, "TMPDIR": folder, "ADVBN_ROOT": str(project)})
        yield driver
        driver.end()


def seen(project, word):
    text = (project / "executed" / "openmoji" / f"told-{word}.ipynb").read_text()
    return re.search(r"seen (.*?)\\n", text)[1].split()


def test_the_second_stage_begins_warm_with_code_as_it_is_then(driver, project):
    assert driver.run("told", "first", "pretrain@openmoji")[0] == 0
    assert seen(project, "first")[:4] == ["False", "None", "told-first", "first"]
    driver.wait_for_server()
    (project / "advbn" / "base" / "names.py").open("a").write("\nADDED = 'now'\n")
    assert driver.run("told", "second", "method@openmoji-advbn")[0] == 0
    warm = seen(project, "second")
    assert warm[:4] == ["True", "now", "told-second", "second"]
    assert driver.run("told", "third", "method@openmoji-fast")[0] == 0
    assert not set(warm[4:]) & set(seen(project, "third")), "two stages would draw the same numbers"
    assert driver.run("workers", "1")[0] == 0
    told = (project / "executed" / "openmoji" / "workers-1.ipynb").read_text()
    assert "forked from ['-m', 'advbn.warm']" in told or os.cpu_count() == 1
    assert driver.run("leaving", "1")[0] == 0
    assert "of 1 left 0 1" in (project / "executed" / "openmoji" / "leaving-1.ipynb").read_text()
    status, said = driver.run("wrong", "2")
    assert status != 0 and "ZeroDivisionError" in said
    status, said = driver.run("told", "fourth --wrod x")
    assert status == 2 and "no parameter 'wrod'; did you mean 'word'?" in said
    with open(os.path.join(driver.folder, "lock")) as lock:
        server = psutil.Process(int(lock.read()))
    assert len(server.children(recursive=True)) == 0, "a process was left"
    driver.end()
    server.wait(30)
    assert not os.path.exists(driver.folder)


@pytest.mark.parametrize(
    "number, status",
    [
        (signal.SIGTERM, "75"),
        pytest.param(signal.SIGINT, "75", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, "-9", marks=pytest.mark.slow),
    ],
)
def test_a_warm_stage_stops_when_it_is_asked_to(driver, project, number, status):
    driver.run("told", "first")
    driver.wait_for_server()
    process = driver.begin("long", "3")
    told, until = project / "at_work", time.time() + 60
    while not (told.exists() and told.read_text()) and time.time() < until:
        time.sleep(0.1)
    kernel = psutil.Process(int(told.read_text()))
    told.unlink()
    os.kill(process, number)
    assert driver.until("status ").split()[1] == status
    kernel.wait(30)


@pytest.mark.slow
def test_a_server_of_another_environment_is_not_asked(driver, project):
    driver.run("told", "first")
    driver.wait_for_server()
    command = f"env OMP_NUM_THREADS=3 {sys.executable} -m advbn run nbs/stages/told.ipynb --word other"
    print("a", command, file=driver.process.stdin, flush=True)
    assert driver.until("status ").split()[1] == "0"
    assert seen(project, "other")[0] == "False"
