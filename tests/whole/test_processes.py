"""Networks in several processes: sharded by torch, and trained side by side."""

import json
import multiprocessing
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy
import pytest
import torch
from conftest import ROOT

from advbn.base.config import load_params
from advbn.base.sections import Training
from advbn.images.batches import MemoryBatches, read_images
from advbn.networks.models import build_model
from advbn.training.loop import finetuning_net, fit

RECIPE = Training(epochs=2, batch_size=16, lr=0.02)


def model(name="small_resnet"):
    torch.manual_seed(0)
    return build_model(name, 9)


def _trained_alone():
    """A fine-tune from nothing but seeds, as a process of the pipeline makes it: one thread, augmentation,
    attack."""
    torch.set_num_threads(1)
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 30)]
    net = finetuning_net(model(), "layer1", {"steps": 2, "start": "random"})
    fit(
        net,
        MemoryBatches(
            images, 16, seed=3, augment=load_params().current.data.augment, policy="trivialaugment"
        ),
        RECIPE,
        seed=3,
    )
    return {key: value.numpy() for key, value in net.state_dict().items()}


def test_two_processes_train_the_same_network_to_the_last_digit():
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other,
    ):
        first, second = one.submit(_trained_alone), other.submit(_trained_alone)
        assert all(numpy.array_equal(a, b) for a, b in zip(first.result().values(), second.result().values()))


def sharded(kind):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        str(ROOT / "tests/sharded_losses.py"),
        kind,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_sharded_network_has_the_losses_and_gradients_of_the_whole():
    whole, found = (json.loads(sharded(kind).stdout) for kind in ("whole", "sharded"))
    for name in ("losses", "gradients"):
        assert found[name] == pytest.approx(whole[name], rel=1e-5)
    assert len(whole["losses"]) == 5


@pytest.mark.parametrize(
    "kind, words", [("block", "runs its layers one by one"), ("flat", "computed from others.*fully_shard")]
)
def test_a_block_that_is_wrapped_and_flat_parameters_are_refused(kind, words):
    done = sharded(kind)
    assert done.returncode and re.search(f"ValueError: .*{words}", done.stderr)
