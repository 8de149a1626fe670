"""Every benchmark that fits a machine, in one record of it; what is there already is not measured again."""

import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..base.errors import Interrupted
from ..base.files import held
from ..base.machine import duration
from ..base.progress import on_stop
from ..method.network import prepare
from . import folders, scale
from .corrupt import bench_corrupt, check_reference
from .evaluate import bench_evaluate
from .record import Bench, machine_name, machine_path, read_record, record_of, write_record
from .folders import bench_folders
from .scale import bench_scale
from .step import bench_step, load_reference
from .timing import circumstances
from .work import one_batch, stepper


class Cost(NamedTuple):
    "How long a benchmark takes: so many steps of the probe, in float32 and in bfloat16, and seconds beside."

    steps: float
    halves: float
    seconds: float


PROBES = {"cpu": (4, 112), "cuda": (64, 224)}  # images and pixels of the probe, a step of ResNet-18


OWN = {  # of the kinds that make networks and images of their own the function and the settings
    "scale": (bench_scale, {"network": scale.NETWORK, "size": scale.SIZE}),
    "folders": (bench_folders, {"batch": folders.BATCH, "size": folders.SIZE}),
}


@dataclass(frozen=True)
class Piece:
    "A benchmark that a machine's record has: its options, and what it costs."

    kind: str
    device: str
    options: dict
    cost: Cost

    def key(self) -> tuple:
        "That of the `Bench` that it makes."
        told = OWN[self.kind][1] if self.kind in OWN else self.options
        return self.kind, self.device, *(told.get(n) for n in ("network", "batch", "size", "severity"))

    def measure(self) -> Bench:
        made = {"step": bench_step, "corrupt": bench_corrupt, "evaluate": bench_evaluate}
        if self.kind in OWN:
            return OWN[self.kind][0](**self.options)
        return made[self.kind](device=self.device, **self.options)

    def __str__(self):
        return " ".join(str(word) for word in self.key() if word is not None)


def _sized(network, batch, size, repetitions=7):
    return dict(network=network, batch=batch, size=size, repetitions=repetitions)


def _corruptions(batch, size, repetitions=7):
    return dict(batch=batch, size=size, severity=3, repetitions=repetitions)


PLAN = (  # costs on a CPU from the records of two cores of a Xeon; on a GPU from operations, see CONTRIBUTING
    Piece("step", "cpu", _sized("resnet18", 16, 112), Cost(205, 38, 5)),
    Piece("step", "cpu", _sized("resnet50", 8, 112), Cost(346, 61, 5)),
    Piece("corrupt", "cpu", _corruptions(64, 224), Cost(253, 0, 15)),
    Piece("evaluate", "cpu", _sized("resnet18", 4, 224), Cost(780, 0, 5)),
    Piece("scale", "cpu", dict(repetitions=7), Cost(300, 0, 15)),
    Piece("folders", "cpu", dict(repetitions=7), Cost(0, 0, 120)),
    Piece("step", "cuda", _sized("resnet18", 64, 224), Cost(70, 11, 15)),
    Piece("step", "cuda", _sized("resnet50", 32, 224), Cost(80, 11, 15)),
    Piece("corrupt", "cuda", _corruptions(64, 224), Cost(0, 0, 90)),
    Piece("evaluate", "cuda", _sized("resnet18", 32, 224), Cost(100, 0, 30)),
)
SECONDS = Cost(0, 0, 8)
QUICK = (
    *(Piece("step", device, _sized("resnet18", 2, 64, 2), SECONDS) for device in PROBES),
    *(Piece("corrupt", device, _corruptions(4, 64, 2), SECONDS) for device in PROBES),
    *(Piece("evaluate", device, _sized("resnet18", 2, 64, 2), SECONDS) for device in PROBES),
    Piece("scale", "cpu", dict(repetitions=2, quick=True), SECONDS),
    Piece("folders", "cpu", dict(repetitions=2, quick=True), SECONDS),
)


def plan(devices, quick: bool = False) -> list:
    "The `Piece`s of a machine's record on these devices."
    return [piece for piece in (QUICK if quick else PLAN) if piece.device in devices]


def probe(device: str) -> tuple:
    "Seconds of a training step of ResNet-18 here, in float32 and in bfloat16."
    model, images, targets = one_batch("resnet18", *PROBES[device], device)
    half = stepper(prepare(model), images, targets, "bf16")
    reference = load_reference().Reference(model)
    found = []
    for step, times in ((lambda: reference.step(images, targets), 2), (half, 1 + (device == "cuda"))):
        for _ in range(times):  # the last one counts; a step on a CPU without bfloat16 takes seconds
            began = time.perf_counter()
            step()  # which ends in numbers, and so waits for the device
        found.append(time.perf_counter() - began)
    return tuple(found)


def about(pieces) -> float:
    "Seconds that these pieces take on this machine, about."
    seconds = sum(piece.cost.seconds for piece in pieces)
    for device in {piece.device for piece in pieces if piece.cost.steps}:
        step, half = probe(device)
        own = [piece.cost for piece in pieces if piece.device == device]
        seconds += sum(cost.steps * step + cost.halves * half for cost in own)
    return seconds


@contextmanager
def _stopping():
    """SIGTERM is taken as Ctrl-C is; yields an event that tells of it, for libraries that are being imported
    may catch what is raised there."""
    asked = threading.Event()

    def stop(number, frame):
        asked.set()
        raise KeyboardInterrupt

    with on_stop(stop):
        yield asked


class Contribution:
    "The record of this machine, as far as it is kept, and what is missing in it."

    def __init__(self, devices, quick: bool = False):
        check_reference("bench --contribute")
        self.quick, self.pieces = quick, plan(devices, quick)
        self.path = machine_path(machine_name(circumstances()), quick)
        self.kept = list(read_record(self.path).benches) if self.path.exists() else []

    def missing(self) -> list:
        "The `Piece`s that are not in the record."
        there = {bench.key() for bench in self.kept}
        return [piece for piece in self.pieces if piece.key() not in there]

    def announcement(self) -> str:
        "What will be measured, and how long it takes, about."
        missing = self.missing()
        if not missing:
            return f"{self.path} is complete; to measure anew, move it away"
        how_long, named = duration(about(missing)), "; ".join(map(str, missing))
        return f"{len(missing)} of {len(self.pieces)} benchmarks, about {how_long}: {named}"

    def measure(self) -> Path:
        """Measure what is missing, and keep it benchmark by benchmark; returns the path of the record.

        Raises `Interrupted` after Ctrl-C or SIGTERM, if anything is kept, and `Busy` if another process
        measures."""
        with held(self.path, "measured"), _stopping() as asked:
            try:
                for piece in self.missing():
                    print(piece, file=sys.stderr, flush=True)
                    self.kept.append(piece.measure())
                    write_record(record_of(*self.kept, quick=self.quick), self.path)
                    if asked.is_set() and self.missing():
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                if not self.kept:
                    raise
                raise Interrupted(
                    f"stopped; {self.path} has {len(self.kept)} benchmarks, and the same command measures "
                    f"those that are missing"
                ) from None
        return self.path
