"""How much longer than the forward passes alone do all 75 corruption cells take, and two branches?"""

import torch

from ..evidence.evaluation import predict_each
from ..evidence.testing import score
from ..images.batches import Images
from ..method.folding import for_inference
from ..networks.models import build_model
from ..shifts.cells import cells
from .record import Bench
from .timing import SEED, alternate, bench_of
from .work import photographs

CELLS, CUT = 75, "layer1"
ONE, TWO = "all cells", "all cells, two branches"
FORWARD, FORWARD_TWO = "forward passes", "forward passes, two branches"


def bench_evaluate(
    network: str = "resnet18", batch: int = 8, size: int = 224, device: str = "cpu", repetitions: int = 7
) -> Bench:
    """Time one batch under all 75 corruption cells: as `score` does it, against the forward passes alone, and
    with two branches, which have the stem in common, against two networks."""
    torch.manual_seed(SEED)
    model = build_model(f"torchvision/{network}", 100).eval().to(device)
    images = Images(
        photographs(batch, size).to(device),
        torch.zeros(batch, dtype=torch.long, device=device),
        tuple(map(str, range(batch))),
        ("",) * 100,
    )
    whole = for_inference(model)

    def forward(branches=1):
        for _ in range(CELLS * branches):
            predict_each({"clean": whole}, images.images)

    def all_cells(branches=("clean",)):
        score({b: model for b in branches}, cells(images, shifts=("corruptions",)), "cells", after=CUT)

    sides = {
        FORWARD: forward,
        ONE: all_cells,
        FORWARD_TWO: lambda: forward(2),
        TWO: lambda: all_cells(("clean", "adversarial")),
    }
    times = alternate(sides, repetitions, warmup=1, device=device)
    return bench_of(
        "evaluate",
        dict(network=network, batch=batch, size=size, device=device, warmup=1),
        times,
        [(ONE, FORWARD, "time"), (TWO, FORWARD_TWO, "time")],
        {"images a second": float(CELLS * batch / times[ONE].median())},
    )
