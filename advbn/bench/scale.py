"""How does the time of a training epoch grow, with images, classes, batch, attack steps and processes?"""

import tempfile
import time

import pandas as pd
import torch

from ..method.network import prepare
from ..networks.models import build_model
from .record import Bench
from .timing import SEED, alternate, bench_of, in_processes
from .work import stepper

NETWORK, SIZE = "small_resnet", 40
GROWTH = {  # what grows, and the options of an epoch for each of its values
    "images": {n: dict(n=n) for n in (64, 128, 256)},
    "classes": {c: dict(n=64, classes=c) for c in (10, 100, 1000)},
    "batch": {b: dict(n=128, batch=b) for b in (16, 32, 64, 128)},
    "steps": {s: dict(n=64, steps=s) for s in (0, 1, 2, 4, 6)},
}
QUICK = {
    "images": {n: dict(n=n, batch=8) for n in (8, 16)},
    "classes": {c: dict(n=8, batch=8, classes=c) for c in (10, 100)},
    "batch": {b: dict(n=16, batch=b) for b in (8, 16)},
    "steps": {s: dict(n=8, batch=8, steps=s) for s in (0, 1)},
}
ALONE, TOGETHER = "one process", "{} processes"  # which does its work alone; which do as much each


def _epoch(n, classes=9, batch=32, steps=6):
    "A function that trains the embedded network for one epoch on `n` random images."
    torch.manual_seed(SEED)
    net = prepare(build_model(NETWORK, classes), "layer1", steps=steps).to(memory_format=torch.channels_last)
    step = stepper(
        net,
        torch.randn(batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last),
        torch.randint(classes, (batch,)),
    )
    return lambda: [step() for _ in range(n // batch)]


def _together(number, count, repetitions, batch, folder):
    """In one of `count` processes: seconds of four training steps on `batch` images, alone if it is the
    first, and with all others, in turns."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=count)
    torch.manual_seed(SEED)
    net = prepare(build_model(NETWORK, 9), "layer1").to(memory_format=torch.channels_last).train()
    images, targets = (
        torch.randn(batch, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last),
        torch.randint(9, (batch,)),
    )

    def worker(run):
        optimizer = torch.optim.SGD(net.trainable_parameters(), lr=0.01, momentum=0.9)

        def work():
            for _ in range(4):
                sum(run(images, targets)).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return work

    together = TOGETHER.format(count)
    sides, rows = {ALONE: worker(net), together: worker(DistributedDataParallel(net))}, []
    for turn in range(repetitions + 1):
        row = {}
        for name, work in sides.items():
            dist.barrier()
            began = time.perf_counter()
            if name == together or number == 0:
                work()
            dist.barrier()
            row[name] = time.perf_counter() - began
        if turn:
            rows.append(row)
    dist.destroy_process_group()
    return rows


def _grown(growth, repetitions) -> pd.DataFrame:
    "Seconds of an epoch for each value of what grows; the values of each take turns."
    found = []
    for kind, values in growth.items():
        sides = {f"{kind} {value}": _epoch(**options) for value, options in values.items()}
        found.append(alternate(sides, repetitions, warmup=1))
    return pd.concat(found, axis=1)


def bench_scale(repetitions: int = 7, processes: int = 2, quick: bool = False) -> Bench:
    """Growth of a training epoch of the embedded network on this CPU: the time of each value against that of
    the smallest, and the speed of processes that do as much each as one does alone, one is perfect. `quick`
    takes few images and two values of each."""
    growth, batch = (QUICK, 8) if quick else (GROWTH, 64)
    grown, together = _grown(growth, repetitions), TOGETHER.format(processes)
    with tempfile.TemporaryDirectory() as folder:
        calls = [(number, processes, repetitions, batch, folder) for number in range(processes)]
        shared = pd.DataFrame(in_processes(_together, calls)[0])
    compared = [
        (f"{kind} {value}", f"{kind} {min(values)}", "time")
        for kind, values in growth.items()
        for value in values
        if value != min(values)
    ]
    compared.append((together, ALONE, "speed"))
    settings = dict(network=NETWORK, size=SIZE, device="cpu", processes={together: processes}, warmup=1)
    return bench_of("scale", settings, pd.concat([grown, shared], axis=1), compared)
