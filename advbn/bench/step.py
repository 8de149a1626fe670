"""How fast is AdvBN's training step, against one that is written straight from the formula?"""

import copy
import importlib.util
import sys

import torch
from tqdm import tqdm

from ..base.files import project_root
from ..method.network import prepare
from ..training.cost import step_flops
from ..training.loop import finetuning_net
from .memory import peak_memory
from .record import Bench
from .timing import WARMUP, alternate, bench_of
from .work import one_batch, stepper

CLEAN, GRAPHS = "clean fine-tune", "ours, CUDA graphs"
COMPARED = [  # with what each side is, and by what
    *((f"reference{tail}", "reference", "speed") for tail in (", anomaly detection",)),
    *((f"ours{tail}", "reference", "speed") for tail in (", contiguous", "", ", bf16", ", fast recipe")),
    *((f"{CLEAN}{tail}", "reference", "speed") for tail in ("", ", bf16")),
    *((f"ours{tail}", f"{CLEAN}{tail}", "time") for tail in ("", ", bf16")),
    ("ours, fast recipe", "ours", "time"),
    (GRAPHS, "reference", "speed"),  # on a GPU
    (GRAPHS, "ours", "time"),
]


def load_reference():
    "The module `benchmarks/reference.py` of the project's clone."
    path = project_root() / "benchmarks/reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def difference_of_losses(model, images, targets, steps: int = 3) -> float:
    """By how much the losses of some steps differ from the reference's at most, in double precision: in
    single precision a gradient near zero may have another sign, and a factor goes the other way."""
    wide = copy.deepcopy(model).double()
    images, known = images.double(), load_reference().Reference(copy.deepcopy(wide))
    step = stepper(prepare(wide), images, targets)
    return max(abs(a - b) for _ in range(steps) for a, b in zip(known.step(images, targets), step()))


def graphed(model, images, targets) -> dict:
    """`{GRAPHS: step}` with the head compiled so that on a GPU its kernels, those of the attack's equal steps
    among them, are replayed as CUDA graphs; empty, and a line says why, where that cannot be done."""
    net = prepare(model).to(memory_format=torch.channels_last)
    net.head.convolutions_and_norms = lambda: []  # folding would change weights that a graph has recorded
    net.head.forward = torch.compile(net.head.forward, mode="reduce-overhead")
    step = stepper(net, images, targets)
    try:
        step()
    except Exception as error:  # in many ways
        tqdm.write(f"no {GRAPHS}: {' '.join(str(error).split())[:200]}", file=sys.stderr)
        return {}
    return {GRAPHS: step}


def _sides(model, images, targets) -> dict:
    "The steps that are timed, by name."
    last = images.contiguous(memory_format=torch.channels_last)
    reference = load_reference().Reference
    first, second = reference(copy.deepcopy(model)), reference(copy.deepcopy(model))

    def anomalous():
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            second.step(images, targets)

    def mode(net, precision="no"):
        return stepper(net.to(memory_format=torch.channels_last), last, targets, precision)

    def clean():
        return finetuning_net(copy.deepcopy(model), "layer1", None)

    return {
        "reference": lambda: first.step(images, targets),
        "reference, anomaly detection": anomalous,
        "ours, contiguous": stepper(prepare(model), images, targets),
        "ours": mode(prepare(model)),
        "ours, bf16": mode(prepare(model), "bf16"),
        "ours, fast recipe": mode(prepare(model, recipe="fast")),
        CLEAN: mode(clean()),
        f"{CLEAN}, bf16": mode(clean(), "bf16"),
        **(graphed(model, last, targets) if images.is_cuda else {}),
    }


def bench_step(
    network: str = "resnet18", batch: int = 16, size: int = 112, device: str = "cpu", repetitions: int = 9
) -> Bench:
    """Time AdvBN's step on a torchvision ResNet cut after layer1: the speed of each side against the
    reference, the time against a clean fine-tune of the head in the same mode, and that of the fast recipe
    against a faithful step; on a GPU also a step by CUDA graphs. `numbers` has the ratios of operations and
    of peak memory to those of a clean step, and how far losses are from the reference's."""
    model, images, targets = one_batch(network, batch, size, device)
    difference = difference_of_losses(model, images, targets)
    times = alternate(_sides(model, images, targets), repetitions, device=device)
    nets = prepare(model), finetuning_net(copy.deepcopy(model), "layer1", None)
    flops = [step_flops(net.to(device), images, targets) for net in nets]
    peak, clean = [peak_memory(options, network, batch, size, device) for options in ({}, None)]
    numbers = {
        "largest difference of losses, double precision": difference,
        "operations, relative": flops[0] / flops[1],
        "peak memory, relative": peak / clean,
        "peak memory, bytes": peak,
        "peak memory of a clean step, bytes": clean,
    }
    settings = dict(network=network, batch=batch, size=size, device=device, warmup=WARMUP)
    return bench_of("step", settings, times, [pair for pair in COMPARED if pair[0] in times], numbers)
