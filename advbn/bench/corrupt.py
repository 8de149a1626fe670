"""How fast are the corruptions, against imagecorruptions-imaug and kornia's blurs on the same photographs?"""

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pandas as pd
import torch
from tqdm import tqdm

from ..shifts.blur import disk
from ..shifts.corruptions import CORRUPTIONS, corrupt, corruption_settings
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


BLURS = ("defocus_blur", "motion_blur")  # that kornia has, batched as ours are


def _kornias(images, name, severity):
    "A blur of uint8 images by kornia, by a kernel as large as ours."
    from kornia import filters

    images = torch.as_tensor(images)
    numbers = corruption_settings(name, severity, *images.shape[-2:])
    if name == "defocus_blur":
        blur = partial(filters.filter2d, kernel=disk(*numbers)[None].to(images.device))
    else:
        along = {"angle": torch.linspace(-45, 45, len(images)), "direction": torch.ones(len(images))}
        along = {key: value.to(images.device) for key, value in along.items()}
        blur = partial(filters.motion_blur, kernel_size=2 * numbers[0] + 1, **along)
    return blur(images / 255).mul(255).clamp(0, 255).byte()


def bench_corrupt(
    batch: int = 64, size: int = 224, severity: int = 3, device: str = "cpu", repetitions: int = 7
) -> Bench:
    """Time each of the fifteen corruptions on a batch of photographs, and all fifteen one after the other,
    against the reference in two processes; on a CPU ours is in two, too, and so are kornia's blurs, where it
    is installed. Raises `ImportError` without the reference."""
    check_reference()
    blurs = BLURS if importlib.util.find_spec("kornia") else ()
    images = photographs(batch, size)
    on_device = images.to(device)
    parts = [part.numpy() for part in images.chunk(2)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), _single_thread) as pool:

        def both(work, name):
            return lambda: [c.result() for c in [pool.submit(work, part, name, severity) for part in parts]]

        found = {}
        for name in tqdm(CORRUPTIONS, desc="corruptions"):
            works = {"ours": _ours, "reference": _theirs, **({"kornia": _kornias} if name in blurs else {})}
            there = {}
            if device == "cuda":
                there["ours"] = partial(corrupt, on_device, name, severity, seed=SEED)
                there["kornia"] = partial(_kornias, on_device, name, severity)
            sides = {side: there.get(side) or both(work, name) for side, work in works.items()}
            found[name] = alternate(sides, repetitions, warmup=1, device=device)
    found["all"] = sum(table[["ours", "reference"]] for table in found.values())
    times = pd.DataFrame({f"{name}, {side}": table[side] for name, table in found.items() for side in table})
    own = 2 if device == "cpu" else 1
    processes = {"ours": own, "reference": 2, **({"kornia": own} if blurs else {})}
    return bench_of(
        "corrupt",
        dict(batch=batch, size=size, severity=severity, device=device, processes=processes, warmup=1),
        times * 1000 / batch,
        [(f"{name}, ours", f"{name}, reference", "speed") for name in found]
        + [(f"{name}, ours", f"{name}, kornia", "speed") for name in blurs],
        {"images a second": float(len(CORRUPTIONS) * batch / found["all"].ours.median())},
        "milliseconds an image",
    )
