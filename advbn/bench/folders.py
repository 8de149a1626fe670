"""How do start, reading and memory grow with a folder of pictures, up to a thousand classes?"""

import io
import os
import tempfile
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from ..images.batches import FolderBatches, Reading
from ..images.decoding import LARGE_TREE, Tree, kept_listings
from .record import LARGEST, SMALLEST, Bench
from .timing import SEED, alternate, bench_of, in_processes

SIZE, BATCH = 64, 64  # pixels; images of a batch
IMAGES, QUICK = (1_000, 10_000, 100_000), (200, 400)  # a hundredth of them are classes, ten at least
WORKERS = {1: "1 process", 2: "2 processes"}  # that decode


def write_pictures(root: Path, images: int):
    "Write so many JPEGs, copies of 64 different ones, into a folder with a folder for each class."
    generator, classes, made = np.random.default_rng(SEED), max(10, images // 100), []
    for _ in range(64):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        held = io.BytesIO()
        coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(held, "JPEG", quality=90)
        made.append(held.getvalue())
    for number in range(classes):
        (root / f"class{number:04d}").mkdir(parents=True)
    for number in range(images):
        (root / f"class{number % classes:04d}" / f"{number:06d}.jpg").write_bytes(made[number % len(made)])


@contextmanager
def _folders(sizes):
    "Folders of pictures, `{images: path}`, and a cache of their own for lists of them; removed afterwards."
    with tempfile.TemporaryDirectory(prefix="advbn-folders-") as place:
        before, folders = os.environ.get("XDG_CACHE_HOME"), {n: Path(place) / f"{n}" for n in sizes}
        os.environ["XDG_CACHE_HOME"] = str(Path(place) / "cache")
        try:
            for images, root in folders.items():
                write_pictures(root, images)
            yield folders
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before


def _forget_lists():
    for path in kept_listings():
        path.unlink()


def _start(root, anew):
    "Find the pictures of a folder, from the disk where its list is not to be used."
    if anew:
        _forget_lists()
    return Tree(root)


def _read(tree, workers, batches):
    "Read so many batches of a tree, each image decoded, cropped, flipped and normalised."
    loader = FolderBatches(tree, SIZE, BATCH, SEED, reading=Reading(workers))
    return sum(len(targets) for _, targets in islice(loader.batches(0), batches))


def _resident(root, batches):
    "Bytes of memory that a new process has when it has found the pictures of a folder and read some."
    import psutil

    _read(_start(root, anew=True), 0, batches)
    return psutil.Process().memory_info().rss


def _name(what, images, more=""):
    return f"{what}, {images:,} images{more and ', '}{more}"


def _sides(folders, batches):
    "What is timed, functions by name."
    sides = {}
    for images, root in folders.items():
        sides[_name("start", images)] = partial(_start, root, True)
        if images >= LARGE_TREE:
            sides[_name("start", images, "list kept")] = partial(_start, root, False)  # by the one before
    for images in (min(folders), max(folders)):
        tree = Tree(folders[images])
        for workers, words in WORKERS.items():
            sides[_name("read", images, words)] = partial(_read, tree, workers, batches)
    return sides


def bench_folders(repetitions: int = 7, quick: bool = False) -> Bench:
    """How long it takes to find the pictures of a folder, for each size and with a kept list; to read a
    thousand of them out of the smallest and the largest, in one process and in two; and what memory a process
    takes that does it. The pictures are written for it, and removed."""
    sizes, batches = (QUICK, 2) if quick else (IMAGES, 16)
    with _folders(sizes) as folders:
        sides = _sides(folders, batches)
        times = alternate(sides, repetitions, warmup=1)
        smallest, largest = (
            in_processes(_resident, [(folders[n], batches)])[0] for n in (min(sizes), max(sizes))
        )
    few = _name("start", min(sizes))
    compared = [(name, few, "time") for name in sides if name.startswith("start") and name != few]
    for words in WORKERS.values():
        compared.append((_name("read", max(sizes), words), _name("read", min(sizes), words), "time"))
    alone, both = (_name("read", max(sizes), words) for words in WORKERS.values())
    compared.append((both, alone, "speed"))
    settings = dict(size=SIZE, batch=BATCH, device="cpu", processes={both: 2}, warmup=1)
    numbers = {SMALLEST: float(smallest), LARGEST: float(largest)}
    return bench_of("folders", settings, times, compared, numbers)
