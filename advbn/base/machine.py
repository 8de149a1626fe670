"""The machine, as far as it can be told without loading anything."""

import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from statistics import median


def _first(key):
    "What `/proc/cpuinfo` says of the first processor under a key; an empty text where it says nothing."
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return ""


def processor() -> str:
    """The CPU's name, its cores, and where it tells the widest vectors it computes with; on those depends how
    sums are rounded, and names in the cloud do not say it."""
    name = _first("model name") or platform.processor() or platform.machine()
    flags = processor_flags()
    vectors = [words for flag, words in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags]
    return ", ".join([name, f"{os.cpu_count()} cores", *vectors[:1]])


BF16, TILES = frozenset({"avx512_bf16", "amx_bf16", "bf16"}), "amx_bf16"  # as Linux calls what has bfloat16


def processor_flags() -> frozenset:
    "What the CPU says that it can do; empty where it does not say it."
    return frozenset((_first("flags") or _first("Features")).split())


def _of_gpus(field):
    "What NVIDIA's driver tells of each GPU under a field's name."
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return done.stdout.strip().splitlines() if done.returncode == 0 else []
    return []


def gpus() -> list:
    "The names of NVIDIA's GPUs, as their driver tells them."
    return _of_gpus("name")


def gpu_driver() -> str:
    "The version of NVIDIA's driver; an empty text where there is none."
    return next(iter(_of_gpus("driver_version")), "")


def cuda_of_torch() -> str:
    "The version of CUDA that torch is built for, read in its files; an empty text for none."
    spec = find_spec("torch")
    with suppress(OSError):
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8") if spec else ""
        if found := re.search(r"^cuda\b.*= *'([^']+)'", text, re.M):
            return found[1]
    return ""


def lack_of_cuda() -> str:
    "Why there is no CUDA device to work with, told without loading torch; an empty text where there may be."
    if not gpus() and not Path("/proc/driver/nvidia/version").exists():
        return "there is no CUDA device: no driver of NVIDIA's tells of a GPU (nvidia-smi)"
    if not cuda_of_torch():
        return "there is no CUDA device for torch: it is built without CUDA, see https://pytorch.org"
    return ""


def memory() -> int:
    "Bytes of memory, or 0 where the system does not say."
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def duration(seconds: float) -> str:
    "Seconds in the unit that one would say: minutes, hours, days or years."
    units = (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60))
    unit, length = next(((u, n) for u, n in units if seconds >= 2 * n), ("seconds", 1))
    number = seconds / length
    digits = 0 if unit in ("minutes", "seconds") or number >= 100 else 1
    text = f"{number:.{digits}f} {unit}"
    return "1 second" if text == "1 seconds" else text


def wait_for(device):
    "A GPU works on after it was asked to; wait until it has done."
    if str(device).startswith("cuda"):
        sys.modules["torch"].cuda.synchronize(device)


def seconds_of(work, repeats: int = 3, most: float = math.inf, device="cpu") -> float:
    """Seconds that `work()` takes, on a GPU to its end: the median of so many turns after one that does not
    count, of fewer where they would take more than `most` seconds. Without repeats, or where the first turn
    takes longer than that, it is the first turn's."""
    times = []
    while len(times) <= repeats and (len(times) < 2 or sum(times) < most):
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - began)
        if times[0] > most:
            return times[0]  # so long that what is prepared in the first turn does not matter
    return median(times[1:] or times)
