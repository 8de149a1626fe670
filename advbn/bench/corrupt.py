"""How fast are the corruptions, against imagecorruptions-imaug on the same photographs?"""

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pandas as pd
import torch
from tqdm import tqdm

from ..shifts.corruptions import CORRUPTIONS, corrupt
from .record import Bench
from .timing import SEED, alternate, bench_of
from .work import photographs


def check_reference(what: str = "bench corrupt"):
    "Raise an `ImportError` if the reference is not installed."
    if importlib.util.find_spec("imagecorruptions") is None:
        raise ImportError(f"{what} needs the reference: pip install imagecorruptions-imaug")


def _single_thread():
    torch.set_num_threads(1)
    try:
        import cv2

        cv2.setNumThreads(1)
    except ImportError:
        pass


def _ours(images, name, severity):
    corrupt(torch.from_numpy(images), name, severity, seed=SEED)


OWN_SEED = ("impulse_noise", "glass_blur")  # which NumPy's global seed does not reach


def _theirs(images, name, severity):
    import imagecorruptions
    import numpy as np

    np.random.seed(SEED)
    seed = {"seed": SEED} if name in OWN_SEED else {}
    for image in images.transpose(0, 2, 3, 1):
        imagecorruptions.corrupt(image, severity, name, **seed)


def bench_corrupt(
    batch: int = 64, size: int = 224, severity: int = 3, device: str = "cpu", repetitions: int = 7
) -> Bench:
    """Time each of the fifteen corruptions on a batch of photographs, and all fifteen one after the other,
    against the reference in two processes; on a CPU ours is in two, too. Raises `ImportError` without the
    reference."""
    check_reference()
    images = photographs(batch, size)
    on_device = images.to(device)
    parts = [part.numpy() for part in images.chunk(2)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), _single_thread) as pool:

        def both(work, name):
            return lambda: [c.result() for c in [pool.submit(work, part, name, severity) for part in parts]]

        found = {}
        for name in tqdm(CORRUPTIONS, desc="corruptions"):
            on_gpu = partial(corrupt, on_device, name, severity, seed=SEED)
            ours = both(_ours, name) if device == "cpu" else on_gpu
            sides = {"ours": ours, "reference": both(_theirs, name)}
            found[name] = alternate(sides, repetitions, warmup=1, device=device)
    found["all"] = sum(found.values())
    times = pd.DataFrame({f"{name}, {side}": table[side] for name, table in found.items() for side in table})
    processes = {"ours": 2 if device == "cpu" else 1, "reference": 2}
    return bench_of(
        "corrupt",
        dict(batch=batch, size=size, severity=severity, device=device, processes=processes, warmup=1),
        times * 1000 / batch,
        [(f"{name}, ours", f"{name}, reference", "speed") for name in found],
        {"images a second": float(len(CORRUPTIONS) * batch / found["all"].ours.median())},
        "milliseconds an image",
    )
