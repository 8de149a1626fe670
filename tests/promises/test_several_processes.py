"""Two processes on one batch, on the CPU: what they compute, what they count, and what happens when one of
them fails."""

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from conftest import IN_TWO, ROOT
from miniature_imagenet import folder_data, parameters
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from advbn.base.config import parse_params
from advbn.base.sections import Training
from advbn.evidence.testing import evaluate
from advbn.images.batches import MemoryBatches, Share, read_images
from advbn.networks.models import build_model
from advbn.networks.weights import load_state, save_state
from advbn.training.distributed import build_accelerator, synchronized
from advbn.training.loop import finetuning_net, fit
from advbn.training.run import resolve, setting_of
from advbn.training.train import pretrain, train, train_autoencoder

RECIPE = Training(epochs=2, batch_size=16, lr=0.02)


LAYERS = {
    "clean start": {"steps": 3},
    "random start": {"steps": 2, "start": "random"},
    "random": {"steps": 0, "start": "random"},
    "batch statistics": {"steps": 2, "batch_statistics": True},
}


def batch(n=12):
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 1898 // n)]
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 40, 40, generator=generator, dtype=torch.float64), images.targets[:n]


def network(options, dtype=torch.float64):
    "In double precision, in which a sum's order does not decide on which side of zero an activation lies."
    torch.manual_seed(0)
    return finetuning_net(build_model("small_resnet", 9), "layer1", options).train().to(dtype)


def connected(rank, world, port):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=60))


def gradients(net, images, targets, seed):
    torch.manual_seed(seed)
    sum(net(images, targets)).backward()


def share(rank, world, port, options, sizes, folder):
    """One process's part of a batch: gradients averaged over processes as training does, features, running
    statistics."""
    connected(rank, world, port)
    images, targets = batch(sum(sizes))
    images, targets = images.split(sizes)[rank], targets.split(sizes)[rank]
    net = network(options)
    if net.layer.sync_statistics:
        net.head = synchronized(net.head, "cpu")
    features = net.features(images)
    torch.manual_seed(5 + rank)
    torch.save({"features": net.layer(features, targets, net.head)}, folder / f"features{rank}.pt")
    net.head.zero_grad()
    wrapped = DistributedDataParallel(net)
    torch.manual_seed(5 + rank)
    clean, adversarial = wrapped(images, targets, F.cross_entropy)
    ((clean + adversarial) * (sizes[rank] * world / sum(sizes))).backward()
    state = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    torch.save(
        {"gradients": state, "statistics": {k: v for k, v in net.state_dict().items() if "running" in k}},
        folder / f"rank{rank}.pt",
    )
    dist.destroy_process_group()


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def in_processes(function, *args, world=2):
    context = torch.multiprocessing.get_context("spawn")
    port = free_port()
    running = [context.Process(target=function, args=(rank, world, port, *args)) for rank in range(world)]
    for process in running:
        process.start()
    for process in running:
        process.join(180)
        assert process.exitcode == 0


def nearly(found, expected):
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5, rtol=1e-5), (
            f"{name}: {(found[name] - value).abs().max()}"
        )


@pytest.mark.promise(
    "Several processes",
    "with sync_statistics two processes of half a batch give the gradients of one, to 1e-5",
)
@pytest.mark.parametrize(
    "kind, sizes",
    [
        *(
            pytest.param(kind, [6, 6], marks=[] if kind == "random start" else pytest.mark.slow)
            for kind in LAYERS
        ),
        ("clean start", [7, 4]),
    ],
)
def test_synchronised_statistics(tmp_path, kind, sizes):
    "Also where the shares differ, as those of an odd number of images do."
    options = {**LAYERS[kind], "sync_statistics": True}
    in_processes(share, options, sizes, tmp_path)
    alone = network(options)
    images, targets = batch(sum(sizes))
    torch.manual_seed(5)
    features = alone.layer(alone.features(images), targets, alone.head)
    assert torch.allclose(
        torch.cat([torch.load(tmp_path / f"features{r}.pt")["features"] for r in (0, 1)]), features, atol=1e-5
    )
    gradients(alone, images, targets, 5)
    found = torch.load(tmp_path / "rank0.pt")
    nearly(found["gradients"], {name: p.grad for name, p in alone.named_parameters() if p.grad is not None})
    nearly(found["statistics"], {k: v for k, v in alone.state_dict().items() if "running" in k})


@pytest.mark.promise(
    "Several processes",
    "without it each process attacks with the statistics of its own images, as the official code does",
)
def test_statistics_of_ones_own(tmp_path):
    options = LAYERS["clean start"]
    in_processes(share, options, [6, 6], tmp_path)
    images, targets = batch(12)
    for rank in (0, 1):
        alone = network(options)
        own = slice(6 * rank, 6 * rank + 6)
        features = alone.layer(alone.features(images[own]), targets[own], alone.head)
        found = torch.load(tmp_path / f"features{rank}.pt")["features"]
        assert torch.allclose(found, features, atol=1e-6)
        whole = network(options)
        assert not torch.allclose(
            found, whole.layer(whole.features(images), targets, whole.head)[own], atol=1e-3
        )


def train_share(rank, world, port, folder, synchronise, n, precision="no"):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    torch.set_num_threads(1)
    accelerator = build_accelerator(precision, timeout=60)
    net = network({"steps": 2, "sync_statistics": synchronise}, torch.float32)
    images = read_images(ROOT / "data/openmoji")[range(n)]
    history = fit(
        net,
        MemoryBatches(images, 16, 3, share=Share(accelerator.process_index, accelerator.num_processes)),
        RECIPE,
        3,
        accelerator=accelerator,
    )
    save_state(net.state_dict(), folder / f"weights{rank}.pt")
    (folder / f"history{rank}.json").write_text(json.dumps(history))
    dist.destroy_process_group()


@pytest.mark.promise(
    "Several processes", "training with an odd number of images takes equal steps everywhere and ends"
)
@pytest.mark.parametrize("synchronise", [True, False])
def test_training_in_two_processes(tmp_path, synchronise):
    """35 images: the last, smaller batch is left out by both; with synchronised statistics the weights are
    those of one process."""
    in_processes(train_share, tmp_path, synchronise, 35)
    one, other = (load_state(tmp_path / f"weights{rank}.pt") for rank in (0, 1))
    assert all(
        torch.equal(v, other[k]) for k, v in one.items() if "running" not in k
    )  # the same network everywhere
    histories = [json.loads((tmp_path / f"history{rank}.json").read_text()) for rank in (0, 1)]
    assert histories[0] == histories[1] and len(histories[0]) == 2
    alone = network({"steps": 2}, torch.float32)
    expected = fit(alone, MemoryBatches(read_images(ROOT / "data/openmoji")[range(35)], 16, 3), RECIPE, 3)
    assert (abs(expected[-1]["clean_loss"] - histories[0][-1]["clean_loss"]) < 1e-4) == synchronise
    assert all(torch.allclose(v, one[k], atol=1e-4) for k, v in alone.state_dict().items()) == synchronise


def test_synchronised_training_in_bf16(tmp_path):
    in_processes(train_share, tmp_path, True, 35, "bf16")
    one, other = (load_state(tmp_path / f"weights{rank}.pt") for rank in (0, 1))
    assert one and all(torch.equal(v, other[k]) and v.isfinite().all() for k, v in one.items())
    history = json.loads((tmp_path / "history0.json").read_text())
    assert history == json.loads((tmp_path / "history1.json").read_text())
    alone = fit(
        network({"steps": 2}, torch.float32),
        MemoryBatches(read_images(ROOT / "data/openmoji")[range(35)], 16, 3),
        RECIPE,
        3,
    )
    assert all(
        abs(row[k] - alone[i][k]) < 0.1
        for i, row in enumerate(history)
        for k in ("clean_loss", "adversarial_loss")
    )


@pytest.fixture
def project(tmp_path):
    "A small run of several minutes, in a folder of its own."
    (tmp_path / "data").symlink_to(ROOT / "data")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["profiles"]["openmoji"]["pretrain"]["epochs"] = 300
    content["timeout"] = 8
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def launch(project, *arguments):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
        "-m",
        "advbn",
        *arguments,
    ]
    environment = {
        **os.environ,
        "ADVBN_ROOT": str(project),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks(launcher):
    "The process numbers of the two processes, once both train."
    deadline = time.time() + 120
    while time.time() < deadline:
        found = subprocess.run(
            ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True
        ).stdout.split()
        if len(found) == 2:
            return {int(open(f"/proc/{p}/environ").read().split("\0RANK=")[1][0]): int(p) for p in found}
        time.sleep(0.1)
    raise AssertionError("no two processes")


@pytest.mark.promise(
    "Several processes",
    "a process that fails or is silent ends the run, with an error of the others and without hanging",
)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGSTOP, id="silent", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_fails(project, fault):
    launcher = launch(project, "pretrain", "--seed", "0")
    try:
        lost = ranks(launcher)[1]
        while not (project / "progress/openmoji/pretrained-seed0.owner").exists():
            assert launcher.poll() is None
            time.sleep(0.1)
        time.sleep(4)
        os.kill(lost, fault)
        began = time.time()
        _, said = launcher.communicate(timeout=100)
        assert launcher.returncode != 0 and time.time() - began < 90
        if (
            fault == signal.SIGSTOP
        ):  # here the launcher does not know, and the other process must find out by itself
            assert "process 0 of 2: another process failed or is silent" in said
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(launcher.pid)])


@pytest.mark.promise(
    "Several processes",
    "a process that fails or is silent ends the run, with an error of the others and without hanging",
)
def test_a_process_that_never_comes(project):
    environment = {
        **os.environ,
        "ADVBN_ROOT": str(project),
        "ACCELERATE_USE_CPU": "true",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    done = subprocess.run(
        [sys.executable, "-m", "advbn", "pretrain"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (
        done.returncode == 2 and "another process failed or is silent" in done.stderr.strip().splitlines()[-1]
    )


def norm_share(rank, world, port, dtype, folder):
    """One process's half of a batch through a synchronised norm in a module of type `dtype`: what comes out,
    both gradients, and the running statistics."""
    connected(rank, world, port)
    norm = synchronized(nn.BatchNorm2d(3).to(dtype), "cpu")
    x = wide_batch()[4 * rank : 4 * rank + 4].to(dtype).requires_grad_()
    out = norm(x)
    out.double().relu().square().sum().backward()
    dist.all_reduce(norm.weight.grad)
    torch.save(
        {
            "out": out.detach(),
            "x": x.grad,
            "weight": norm.weight.grad,
            "mean": norm.running_mean,
            "var": norm.running_var,
        },
        folder / f"norm{rank}.pt",
    )
    dist.destroy_process_group()


def wide_batch():
    "Eight images whose sums over the batch are beyond float16, and counts beyond what bfloat16 tells apart."
    return 40 + torch.randn(8, 3, 33, 31, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "dtype, tolerance",
    [
        (torch.bfloat16, 2e-2),
        pytest.param(torch.float16, 4e-3, marks=pytest.mark.slow),
        pytest.param(torch.float32, 1e-5, marks=pytest.mark.slow),
        pytest.param(torch.float64, 1e-10, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_synchronised_norms_in_any_precision(tmp_path, dtype, tolerance):
    in_processes(norm_share, dtype, tmp_path)
    alone = nn.BatchNorm2d(3).double()
    x = wide_batch().to(dtype).double().requires_grad_()
    out = alone(x)
    out.relu().square().sum().backward()
    expected = {
        "out": out.detach(),
        "x": x.grad,
        "weight": alone.weight.grad,
        "mean": alone.running_mean,
        "var": alone.running_var,
    }
    one, other = (torch.load(tmp_path / f"norm{rank}.pt") for rank in (0, 1))
    for name, value in expected.items():
        found = torch.cat([one[name], other[name]]) if name in ("out", "x") else one[name]
        assert found.dtype == dtype, name
        assert (found - value).abs().max() <= tolerance * value.abs().max(), name


@pytest.mark.promise("Several processes", "evaluation counts every image once, as one process does")
def test_two_processes_evaluate_as_one_does_and_a_streamed_set_is_written(imagenet, root, monkeypatch):
    "The second process has no piece of so small a set, and must not be waited for in vain."
    monkeypatch.setenv("ADVBN_ROOT", str(imagenet))
    content = parameters(imagenet, root)
    (imagenet / "params.yaml").write_text(yaml.safe_dump(content))
    params = parse_params(content)
    pretrain(resolve(params, "standard", 0))
    train(resolve(params, "standard", 0))
    train_autoencoder(setting_of(params))
    alone, _ = evaluate(resolve(params, "standard", 0))
    done = subprocess.run(
        [sys.executable, *IN_TWO, "-m", "advbn", "evaluate", "standard", "--seed", "0", "--save"],
        cwd=imagenet,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for shift, accuracy in alone.groupby("shift").accuracy.mean().items():
        assert re.search(rf"^{shift} +{accuracy:.1f} ± ", done.stdout, re.M), (shift, done.stdout)
    kept = pd.read_csv(imagenet / "results/imagenet/runs/standard.csv").set_index(["branch", "shift", "cell"])
    assert (kept.correct == alone.set_index(["branch", "shift", "cell"]).correct).all() and (
        kept.images == alone.set_index(["branch", "shift", "cell"]).images
    ).all()
    for command, words in (
        (["make-set", "made"], "6 images written"),
        (["make-set", "made"], "0 images written"),
    ):
        assert (
            words
            in subprocess.run(
                [sys.executable, "-m", "advbn", *command],
                cwd=imagenet,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    made = read_images(imagenet / "made")
    assert made.images.shape == (6, 3, 72, 72) and made.classes == ("n01440764", "n01443537", "n01484850")


@pytest.mark.promise("Several processes", "evaluation counts every image once, as one process does")
def test_processes_share_the_images_and_count_none_twice(imagenet):
    names = [
        [
            n
            for _, piece in folder_data(imagenet / "imagenet", 64, 72, Share(r, 2)).pieces(0)
            for n in piece.names
        ]
        for r in (0, 1)
    ]
    assert len(sum(names, [])) == len(set(sum(names, []))) == 6


@pytest.mark.promise(
    "Several processes", "a fine-tuning of one's own runs on several, and one of them writes"
)
@pytest.mark.slow
def test_a_finetuning_of_ones_own_in_two_processes(tmp_path):
    words = ["--data", ROOT / "data/openmoji", "--model", "small_resnet", "--out", tmp_path / "robust"]
    words += [
        "--pretrain-epochs",
        1,
        "--epochs",
        1,
        "--eps",
        "auto",
        "--shifts",
        "clean",
        "--test-images",
        100,
    ]
    done = subprocess.run(
        [sys.executable, *IN_TWO, "-m", "advbn", "finetune", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report.html") == 1 and done.stdout.count("| 100 images |") == 1
    assert len(pd.read_csv(tmp_path / "robust/strength.csv")) == 3 and (tmp_path / "robust/card.md").exists()
