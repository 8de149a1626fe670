"""Long runs: memory, open files and the disk do not grow, and nothing is freed without being asked for."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, call

from advbn.networks.models import build_model

PROGRAM = """
import gc, json, os, resource, sys, warnings
from pathlib import Path
import torch
torch.set_num_threads(1)
from advbn.base.sections import Augment, Training
from advbn.evidence.evaluation import top1_accuracy
from advbn.images.batches import Images, MemoryBatches
from advbn.networks.models import SmallResNet
from advbn.base.progress import Progress
from advbn.training.loop import finetuning_net, fit
from advbn.evidence.testing import score

folder = Path(sys.argv[1])
torch.manual_seed(0)
pixels, names = torch.randint(256, (160, 3, 16, 16), dtype=torch.uint8), tuple(map(str, range(160)))
images = Images(pixels, torch.arange(160) % 5, names, tuple("abcde"))
marks = []

def mark(done):
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    disk = sum(p.stat().st_size for p in folder.rglob("*"))
    memory, files = pages * resource.getpagesize() / 2**20, len(os.listdir("/proc/self/fd"))
    marks.append({"done": done, "memory": memory, "files": files, "disk": disk / 2**20})

steps = 0
plain_step = torch.optim.SGD.step

def counted(self, *args, **kwargs):
    global steps
    steps += 1
    return plain_step(self, *args, **kwargs)

torch.optim.SGD.step = counted

def train(n, seed):
    net = finetuning_net(SmallResNet(5, (4, 8, 8), blocks=1), "layer1", {"steps": 2, "start": "random"})
    with Progress(folder / "run.pt", 50) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each turn passes over the progress of the one before
        loader = MemoryBatches(images, 16, seed, Augment(degrees=10.0), "mixup")
        recipe = Training(epochs=n // 10, batch_size=16, lr=0.01)
        fit(net, loader, recipe, seed, progress=progress)
    return net

def evaluate(net, times):
    for _ in range(times):
        score({"clean": net}, [("clean", "clean", images)], "soak")
        top1_accuracy(net, images.images, images.targets, 64)

for turn in range(5):
    net = train(400, turn)
    evaluate(net, 40)
    mark(steps)
print(json.dumps(marks))
"""


@pytest.mark.slow
@pytest.mark.promise(
    "Long runs", "2,000 steps and 200 evaluations without growth of memory, open files or the disk"
)
def test_nothing_grows(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TQDM_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    marks = json.loads(done.stdout.splitlines()[-1])
    first, last = marks[1], marks[-1]  # what is made once is made in the first turn
    assert last["done"] == 2000 and last["files"] == first["files"], marks
    assert last["memory"] - first["memory"] < 12, (
        marks
    )  # MiB, in 1,200 steps and 120 evaluations; a tensor kept per step would be 30
    assert last["disk"] == pytest.approx(first["disk"], rel=0.1) and last["disk"] < 1, marks


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
