"""Seeds and runs do not depend on each other: each takes a core."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor

from tqdm import tqdm

from .registry import load_extensions, loaded_extensions

_preloaded = ["advbn.training.train", "accelerate"]  # what workers know when they are forked


def _context():
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_preloaded)
    return context


def start_workers(module: str = "advbn.training.train"):
    """Let the process that workers are forked from begin its imports, those of `module`; does nothing where
    there is none, or where it runs already."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        _preloaded[0] = module
        _context()
        from multiprocessing import forkserver

        forkserver.ensure_running()


def _end_with(owner):
    "In a worker: when the process that asked for it has gone, keep what is being trained and end."

    def watch():
        while True:
            time.sleep(0.5)
            try:
                os.kill(owner, 0)
            except ProcessLookupError:
                os.kill(
                    os.getpid(), signal.SIGTERM
                )  # once to have progress kept, and again when there is none to keep

    threading.Thread(target=watch, daemon=True).start()


def _begin(owner, extensions):
    "In a worker: end with the process that asked for it, and know what was added to registries there."
    _end_with(owner)
    load_extensions(extensions, ".")


def side_by_side(verb, tasks: list, threads: int | None = None, title: str = "") -> list:
    """`verb(*task)` for every one of `tasks`, in processes of their own where cores are free; results in the
    order of `tasks`.

    `threads` says how many CPU threads a task uses; `None` is all. A few tasks more than cores, which they
    cannot be shared out to evenly, all run at once, so that no core waits: five on two cores take the time of
    two and a half."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = max(1, cores // (threads or cores))
    uneven = len(tasks) % free and len(tasks) < 3 * free
    workers = len(tasks) if uneven else min(len(tasks), free)
    if workers <= 1 or free == 1 or torch.cuda.is_available():
        return [verb(*task) for task in tasks]
    known = (os.getpid(), loaded_extensions())
    with ProcessPoolExecutor(workers, _context(), _begin, known) as pool:
        running = [pool.submit(verb, *task) for task in tasks]
        return [r.result() for r in tqdm(running, desc=title or verb.__name__, unit="run")]
