"""How fast is a training step, a corruption, an evaluation, and how does time grow? Ratios alone, measured in
one run."""

import copy
import importlib.util
import json
import multiprocessing
import time
import weakref
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from .base.files import project_root
from .evidence.evaluation import predict_each
from .evidence.testing import score
from .method.folding import for_inference
from .method.network import prepare
from .networks.models import build_model
from .notebooks import surroundings
from .training.cost import step_flops
from .shifts.corruptions import CORRUPTIONS, corrupt
from .shifts.styles import style_images
from .training.loop import finetuning_net


def alternate(sides: dict, repetitions: int = 9, warmup: int = 2, device: str = "cpu") -> pd.DataFrame:
    """Seconds of each of `sides`, functions by name, called in turn: a row per repetition, a column per side,
    warm-up left out."""
    rows = []
    for turn in tqdm(range(warmup + repetitions), desc="turns", unit="turn"):
        row = {}
        for name, work in sides.items():
            began = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            row[name] = time.perf_counter() - began
        if turn >= warmup:
            rows.append(row)
    return pd.DataFrame(rows)


def ratios(times: pd.DataFrame, base: str) -> pd.DataFrame:
    """How many times as fast as `base` each side is: median, lower and upper quartile of the ratios within a
    turn."""
    found = times.rdiv(times[base], axis=0)
    return pd.DataFrame(
        {
            "median": found.median(),
            "low": found.quantile(0.25),
            "high": found.quantile(0.75),
            "seconds": times.median(),
        }
    )


def load_reference():
    "The module `benchmarks/reference.py` of the project's clone."
    path = project_root() / "benchmarks/reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _stepper(net, images, targets, precision="no", lr=0.01):
    "A training step of `net` on one batch, as `fit` makes it."
    optimizer = torch.optim.SGD(net.trainable_parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    device = images.device.type
    net.train()

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            clean, adversarial = net.losses(images, targets, backward=torch.Tensor.backward)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return clean.item(), adversarial.item()

    return step


def _one_batch(network, batch, size, device):
    torch.manual_seed(0)
    model = build_model(f"torchvision/{network}", 100).to(device)
    return (
        model,
        torch.randn(batch, 3, size, size, device=device),
        torch.randint(100, (batch,), device=device),
    )


def in_processes(work, calls: list) -> list:
    """`work(*arguments)` for each of `calls`, a list of arguments, in a new process each and at the same
    time; the results."""
    with ProcessPoolExecutor(len(calls), multiprocessing.get_context("spawn")) as pool:
        return [done.result() for done in [pool.submit(work, *arguments) for arguments in calls]]


class _Alive(TorchDispatchMode):
    """Bytes of the tensors that are alive, now and at the peak, of those it was shown and those made while it
    is on."""

    def __init__(self, tensors):
        super().__init__()
        self.known, self.now, self.peak = set(), 0, 0
        for tensor in tensors:
            self._see(tensor)

    def _see(self, tensor):
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor)
        return made


def peak_memory(
    options, network: str = "resnet18", batch: int = 16, size: int = 112, device: str = "cpu"
) -> int:
    """Bytes of all tensors at the peak of a training step: weights, momentum, images, activations, gradients.

    `options` are those of `finetuning_net`: `None` is the clean fine-tune of the head."""
    model, images, targets = _one_batch(network, batch, size, device)
    net = finetuning_net(model, "layer1", options).to(device, memory_format=torch.channels_last)
    images, momentum = (
        images.contiguous(memory_format=torch.channels_last),
        [torch.zeros_like(p) for p in net.trainable_parameters()],
    )
    net.train()
    with _Alive([*net.parameters(), *net.buffers(), *momentum, images, targets]) as alive:
        net.losses(images, targets, backward=torch.Tensor.backward)
    return alive.peak


def bench_step(
    network: str = "resnet18", batch: int = 16, size: int = 112, device: str = "cpu", repetitions: int = 9
) -> dict:
    """Time AdvBN's step on a torchvision ResNet cut after layer1: `times`, `ratios` to the reference, `costs`
    above a clean fine-tune of the head in the same mode beside the ratio of their operations, the ratio of
    their peak memory, the share that a step of the fast recipe takes of a faithful one, and by how much the
    losses of three steps differ from the reference's in double precision: in single precision a gradient near
    zero may have another sign, and a factor goes the other way."""
    model, images, targets = _one_batch(network, batch, size, device)
    last = images.contiguous(memory_format=torch.channels_last)
    reference = load_reference().Reference
    first, ours = reference(copy.deepcopy(model)), _stepper(prepare(model), images, targets)
    wide = copy.deepcopy(model).double()
    known, step = reference(copy.deepcopy(wide)), _stepper(prepare(wide), images.double(), targets)
    difference = max(
        abs(a - b) for _ in range(3) for a, b in zip(known.step(images.double(), targets), step())
    )

    def anomalous(known=reference(copy.deepcopy(model))):
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            known.step(images, targets)

    def mode(net, precision="no"):
        return _stepper(net.to(memory_format=torch.channels_last), last, targets, precision)

    def clean():
        return finetuning_net(copy.deepcopy(model), "layer1", None)

    sides = {
        "reference": lambda: first.step(images, targets),
        "reference, anomaly detection": anomalous,
        "ours, contiguous": ours,
        "ours": mode(prepare(model)),
        "ours, bf16": mode(prepare(model), "bf16"),
        "ours, fast recipe": mode(prepare(model, recipe="fast")),
        "clean fine-tune": mode(clean()),
        "clean fine-tune, bf16": mode(clean(), "bf16"),
    }
    times = alternate(sides, repetitions, device=device)
    flops = [step_flops(net.to(device), images, targets) for net in (prepare(model), clean())]
    costs = {
        name: (times[name] / times[f"clean fine-tune{tail}"]).median()
        for name, tail in (("ours", ""), ("ours, bf16", ", bf16"))
    }
    peaks = [peak_memory(options, network, batch, size, device) for options in ({}, None)]
    return {
        "network": network,
        "batch": batch,
        "size": size,
        "device": device,
        "threads": torch.get_num_threads(),
        "repetitions": repetitions,
        "largest difference of losses, double precision": difference,
        "operations, relative": flops[0] / flops[1],
        "costs, relative": costs,
        "fast recipe, share of a faithful step": (times["ours, fast recipe"] / times["ours"]).median(),
        "peak memory, relative": peaks[0] / peaks[1],
        "peak memory, bytes": peaks,
        "ratios": ratios(times, "reference").round(4).to_dict("index"),
        "times": times.round(5).to_dict("list"),
        **surroundings(),
    }


def step_chart(found: dict):
    """A figure: how many times as fast as the reference each side is, and what a step costs against what its
    operations say."""
    rows = pd.DataFrame(found["ratios"]).T
    rows = rows[~rows.index.str.startswith("clean")]
    fig, ax = _bars(
        rows,
        "median",
        0.6 + 0.4 * len(rows),
        "{:.2f}",
        ["tab:blue" if name.startswith("ours") else "0.75" for name in rows.index],
    )
    ax.axvline(1, color="0.4", lw=0.8)
    ax.set_xlabel(
        f"speed, reference = 1 ({found['network']}, {found['batch']} x {found['size']} px, "
        f"{found['device']}, {found['threads']} threads)",
        fontsize=8,
    )
    return fig


def _bars(rows, column, height, number, colors):
    """`(figure, axes)` with a bar for each of `rows`, from the top, its spread from the columns low and high
    if they are there, its value beside it."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, height), layout="constrained")
    spread = [rows[column] - rows.low, rows.high - rows[column]] if "high" in rows else None
    ax.barh(rows.index, rows[column], xerr=spread, color=colors, capsize=2)
    for y, (value, end) in enumerate(zip(rows[column], rows.high if "high" in rows else rows[column])):
        ax.annotate(
            number.format(value),
            (end, y),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    return fig, ax


def _photographs(batch, size):
    images = style_images(size)
    return images.repeat(batch // len(images) + 1, 1, 1, 1)[:batch]


def _single_thread():
    torch.set_num_threads(1)
    try:
        import cv2

        cv2.setNumThreads(1)
    except ImportError:
        pass


def _ours(images, name, severity):
    corrupt(torch.from_numpy(images), name, severity)


def _theirs(images, name, severity):
    import imagecorruptions

    for image in images.transpose(0, 2, 3, 1):
        imagecorruptions.corrupt(image, corruption_name=name, severity=severity)


def bench_corrupt(
    batch: int = 64, size: int = 224, severity: int = 3, device: str = "cpu", repetitions: int = 7
) -> dict:
    """Time each of the fifteen corruptions on a batch of photographs: `corruptions`, for each how many times
    as fast as the reference (median, quartiles) and milliseconds per image of both, and the same of all
    fifteen, one after the other. Without `imagecorruptions` ours alone is timed."""
    images = _photographs(batch, size)
    on_device = images.to(device)
    parts = [part.numpy() for part in images.chunk(2)]
    known = importlib.util.find_spec("imagecorruptions") is not None
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), _single_thread) as pool:

        def both(work, name):
            return lambda: [c.result() for c in [pool.submit(work, part, name, severity) for part in parts]]

        times = {}
        for name in tqdm(CORRUPTIONS, desc="corruptions"):
            sides = {
                "ours": both(_ours, name)
                if device == "cpu"
                else lambda name=name: corrupt(on_device, name, severity)
            }
            if known:
                sides["reference"] = both(_theirs, name)
            times[name] = alternate(sides, repetitions, warmup=1, device=device)
    times["all"] = sum(times.values())
    rows = {
        name: {
            **{f"{side}, ms": 1000 * found[side].median() / batch for side in found},
            **(ratios(found, "reference").loc["ours", ["median", "low", "high"]].to_dict() if known else {}),
        }
        for name, found in times.items()
    }
    return {
        "batch": batch,
        "size": size,
        "severity": severity,
        "device": device,
        "processes": {"ours": 2 if device == "cpu" else 1, "reference": 2},
        "repetitions": repetitions,
        "images a second": 15 * batch / times["all"]["ours"].median(),
        "corruptions": pd.DataFrame(rows).T.round(4).to_dict("index"),
        **surroundings(),
    }


def corrupt_chart(found: dict):
    "A figure: how many times as fast as the reference each corruption is."
    rows = pd.DataFrame(found["corruptions"]).T
    column, label = (
        ("median", "speed, imagecorruptions-imaug = 1")
        if "median" in rows
        else ("ours, ms", "milliseconds per image")
    )
    fig, ax = _bars(rows, column, 4.5, "{:.1f}", ["0.75"] * (len(rows) - 1) + ["tab:blue"])
    ax.axvline(1, color="0.4", lw=0.8)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel(
        f"{label} ({found['batch']} x {found['size']} px, severity {found['severity']}, {found['device']}, "
        f"processes: {found['processes']['ours']} and {found['processes']['reference']})",
        fontsize=8,
    )
    return fig


def bench_evaluate(
    network: str = "resnet18", batch: int = 8, size: int = 224, device: str = "cpu", repetitions: int = 7
) -> dict:
    """Time one batch under all 75 corruption cells: as `score` does it, against the forward passes alone, and
    with two branches against two networks. `all cells, relative` and `two branches, relative` are medians of
    the ratios within a turn; `spread` has their quartiles."""
    from .images.batches import Images
    from .shifts.cells import cells

    torch.manual_seed(0)
    model = build_model(f"torchvision/{network}", 100).eval().to(device)
    images = Images(
        _photographs(batch, size).to(device),
        torch.zeros(batch, dtype=torch.long, device=device),
        tuple(map(str, range(batch))),
        ("",) * 100,
    )

    whole = for_inference(model)

    def forward(branches=1):
        for _ in range(75):
            for _ in range(branches):
                predict_each({"clean": whole}, images.images)

    def all_cells(branches=("clean",)):
        score({b: model for b in branches}, cells(images, shifts=("corruptions",)), "cells")

    times = alternate(
        {
            "forward passes": forward,
            "all cells": all_cells,
            "forward passes, two branches": lambda: forward(2),
            "all cells, two branches": lambda: all_cells(("clean", "adversarial")),
        },
        repetitions,
        warmup=1,
        device=device,
    )
    one, two = (
        times["all cells"] / times["forward passes"],
        times["all cells, two branches"] / times["forward passes, two branches"],
    )
    return {
        "network": network,
        "batch": batch,
        "size": size,
        "device": device,
        "threads": torch.get_num_threads(),
        "repetitions": repetitions,
        "all cells, relative": one.median(),
        "two branches, relative": two.median(),
        "spread": {
            "all cells": [one.quantile(q) for q in (0.25, 0.75)],
            "two branches": [two.quantile(q) for q in (0.25, 0.75)],
        },
        "images a second": 75 * batch / times["all cells"].median(),
        "times": times.round(4).to_dict("list"),
        **surroundings(),
    }


def evaluate_chart(found: dict):
    "A figure: seconds of the forward passes alone and of all cells, with one branch and with two."
    times = pd.DataFrame(found["times"])
    rows = pd.DataFrame(
        {"seconds": times.median(), "low": times.quantile(0.25), "high": times.quantile(0.75)}
    )
    fig, ax = _bars(rows, "seconds", 2.2, "{:.1f}", ["0.75", "tab:blue"] * 2)
    ax.set_title(
        f"all cells over forward passes: {found['all cells, relative']:.2f}, with two branches "
        f"{found['two branches, relative']:.2f}",
        fontsize=8,
        loc="left",
    )
    ax.set_xlabel(
        f"seconds for 75 cells of {found['batch']} images ({found['network']}, {found['size']} px, "
        f"{found['device']}, {found['threads']} threads)",
        fontsize=8,
    )
    return fig


def _epoch(n, classes=9, batch=32, steps=6, size=40):
    "A function that trains the embedded network for one epoch on `n` random images."
    torch.manual_seed(0)
    net = prepare(build_model("small_resnet", classes), "layer1", steps=steps).to(
        memory_format=torch.channels_last
    )
    step = _stepper(
        net,
        torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last),
        torch.randint(classes, (batch,)),
    )
    return lambda: [step() for _ in range(n // batch)]


def _together(number, count, repetitions, folder):
    """In one of `count` processes: seconds of four training steps, alone if it is the first, and with all
    others, in turns."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=count)
    torch.manual_seed(0)
    net = prepare(build_model("small_resnet", 9), "layer1").to(memory_format=torch.channels_last).train()
    images, targets = (
        torch.randn(64, 3, 40, 40).contiguous(memory_format=torch.channels_last),
        torch.randint(9, (64,)),
    )

    def stepper(run):
        optimizer = torch.optim.SGD(net.trainable_parameters(), lr=0.01, momentum=0.9)

        def work():
            for _ in range(4):
                sum(run(images, targets)).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return work

    alone, shared, rows = stepper(net), stepper(DistributedDataParallel(net)), []
    for turn in range(repetitions + 1):
        row = {}
        for name, work in (("alone", alone), ("together", shared)):
            dist.barrier()
            began = time.perf_counter()
            if name == "together" or number == 0:
                work()
            dist.barrier()
            row[name] = time.perf_counter() - began
        if turn:
            rows.append(row)
    dist.destroy_process_group()
    return rows


def bench_scale(repetitions: int = 7, processes: int = 2) -> dict:
    """Growth of a training epoch of the embedded network on this CPU: `growth`, kind to value to median and
    quartiles of the ratio to the smallest, and `efficiency` of processes."""
    import tempfile

    kinds = {
        "images": {n: dict(n=n) for n in (64, 128, 256)},
        "classes": {c: dict(n=64, classes=c) for c in (10, 100, 1000)},
        "batch": {b: dict(n=128, batch=b) for b in (16, 32, 64, 128)},
        "steps": {s: dict(n=64, steps=s) for s in (0, 1, 2, 4, 6)},
    }
    growth = {}
    for kind, values in kinds.items():
        times = alternate({v: _epoch(**options) for v, options in values.items()}, repetitions, warmup=1)
        found = times.div(times[min(values)], axis=0)
        growth[kind] = {
            str(v): {
                "median": found[v].median(),
                "low": found[v].quantile(0.25),
                "high": found[v].quantile(0.75),
            }
            for v in values
        }
    with tempfile.TemporaryDirectory() as folder:
        rows = pd.DataFrame(
            in_processes(
                _together, [(number, processes, repetitions, folder) for number in range(processes)]
            )[0]
        )
    efficiency = rows.alone / rows.together
    return {
        "network": "small_resnet",
        "size": 40,
        "threads": torch.get_num_threads(),
        "repetitions": repetitions,
        "growth": growth,
        "processes": processes,
        "efficiency": {
            "median": efficiency.median(),
            "low": efficiency.quantile(0.25),
            "high": efficiency.quantile(0.75),
        },
        **surroundings(),
    }


def scale_chart(found: dict):
    """A figure: for each kind of growth the measured ratio to the smallest; dashed, proportional growth
    (images), a straight line from end to end (steps), none (classes, batch)."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(found["growth"]), figsize=(11, 2.8))
    labels = {
        "images": "images",
        "classes": "classes",
        "batch": "images in a batch (same epoch)",
        "steps": "attack steps",
    }
    for ax, (kind, values) in zip(axes, found["growth"].items()):
        x = [float(v) for v in values]
        rows = pd.DataFrame(values).T
        ax.errorbar(
            x,
            rows["median"],
            [rows["median"] - rows.low, rows.high - rows["median"]],
            marker="o",
            ms=4,
            capsize=2,
        )
        if kind == "images":
            ax.plot(x, [v / x[0] for v in x], color="0.6", lw=0.8, ls="--")
        if kind == "steps":
            slope = (rows["median"].iloc[-1] - rows["median"].iloc[0]) / (x[-1] - x[0])
            ax.plot(x, [rows["median"].iloc[0] + slope * (v - x[0]) for v in x], color="0.6", lw=0.8, ls="--")
        if kind in ("classes", "batch"):
            ax.axhline(1, color="0.6", lw=0.8, ls="--")
            ax.set_xscale("log")
            ax.set_xticks(x, values, minor=False)
            ax.set_xticks([], minor=True)
        ax.set_ylim(0, 1.08 * rows["median"].max())
        ax.set_xlabel(labels[kind], fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("time, smallest = 1", fontsize=8)
    fig.suptitle(
        f"{found['processes']} processes: {found['efficiency']['median']:.2f} of {found['processes']} times "
        f"one",
        fontsize=9,
    )
    fig.tight_layout()
    return fig


def write_bench(found: dict, name: str) -> Path:
    "Keep `found` as `results/bench/NAME.json`."
    path = project_root() / "results/bench" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path
