"""Sides timed in turns, warm-up left out, the device synchronised around each piece; what is kept of it."""

import multiprocessing
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date

import pandas as pd
import torch
from tqdm import tqdm

from ..base.machine import gpu_driver, gpus, processor, processor_flags, wait_for
from ..notebooks import commit, versions
from .record import Bench, Circumstances, Ratio, Settings, Spread, spread_of, vector_flags, verdict_of

SEED, WARMUP = 0, 2  # of weights and images; turns that do not count


def alternate(sides: dict, repetitions: int = 9, warmup: int = WARMUP, device: str = "cpu") -> pd.DataFrame:
    """Seconds of each of `sides`, functions by name, called in turn: a row per repetition, a column per side,
    warm-up left out. A CUDA `device` is synchronised before and after each call."""
    rows = []
    for turn in tqdm(range(warmup + repetitions), desc="turns", unit="turn"):
        row = {}
        for name, work in sides.items():
            wait_for(device)
            began = time.perf_counter()
            work()
            wait_for(device)
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


def in_processes(work, calls: list) -> list:
    """`work(*arguments)` for each of `calls`, a list of arguments, in a new process each and at the same
    time; the results."""
    with ProcessPoolExecutor(len(calls), multiprocessing.get_context("spawn")) as pool:
        return [done.result() for done in [pool.submit(work, *arguments) for arguments in calls]]


def circumstances() -> Circumstances:
    "What this process measures on."
    return Circumstances(
        processor=processor(),
        flags=vector_flags(processor_flags()),
        gpu=", ".join(gpus()) or "none",
        driver=gpu_driver() or "none",
        python=platform.python_version(),
        packages=versions(),
        cuda=torch.version.cuda or "none",
        threads=torch.get_num_threads(),
        commit=commit(),
        date=date.today().isoformat(),
    )


def ratio_of(times: pd.DataFrame, side: str, to: str, of: str) -> Ratio:
    "Of the `speed` or the `time` of a side the ratios to another's within each turn, in short."
    pair = (to, side) if of == "speed" else (side, to)
    found = spread_of(times[pair[0]] / times[pair[1]])
    return Ratio(side=side, to=to, of=of, **found, verdict=verdict_of(of, found["low"], found["high"]))


def bench_of(
    kind: str,
    settings: dict,
    times: pd.DataFrame,
    compared: list,
    numbers: dict | None = None,
    unit: str = "seconds",
) -> Bench:
    """What is kept of a benchmark: a column of `times` per side, a row per turn, in the `unit`; `compared`
    are `(side, to, "speed" or "time")`."""
    times = times.round(7)
    return Bench(
        contract=1,
        kind=kind,
        settings=Settings(repetitions=len(times), seed=SEED, **settings),
        measured_on=circumstances(),
        unit=unit,
        sides={name: Spread(**spread_of(times[name])) for name in times},
        ratios=tuple(ratio_of(times, *pair) for pair in compared),
        numbers=numbers or {},
        times={name: tuple(times[name].tolist()) for name in times},
    )
