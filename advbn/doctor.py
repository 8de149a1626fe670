"""What is there to work with, and what each lack costs: told at once, without loading anything heavy."""

import os
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .base.extras import EXTRAS, missing_modules
from .base.files import project_root
from .base.machine import BF16, TILES, cuda_of_torch, gpus, memory, processor, processor_flags

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
LITTLE_DISK = 5e9  # bytes; the 75 folders of all corruptions of a thousand photographs take about as much
LITTLE_MEMORY = 4e9


@dataclass(frozen=True)
class Finding:
    "A thing that was looked for: what was found, whether that will do, and what it costs where it will not."

    what: str
    found: str
    fine: bool = True
    cost: str = ""  # empty where all is as it should be


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _torch():
    found = {package: _version(package) for package in ("torch", "torchvision", "accelerate")}
    said = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
    missing = [name for name, number in found.items() if not number]
    cost = f"nothing is trained or tested: pip install {' '.join(missing)}" if missing else ""
    return Finding("torch", said, not missing, cost)


def _cuda():
    names, built = gpus(), cuda_of_torch()
    if names and built:
        return Finding("CUDA", f"{', '.join(names)}; torch is built for CUDA {built}")
    if names:
        cost = (
            f"{', '.join(names)} lies idle: install a torch that is built for CUDA, see https://pytorch.org"
        )
        return Finding("CUDA", "torch is built without CUDA", False, cost)
    cost = "the processor does all: minutes for small images, hours to days for a training on photographs"
    return Finding("CUDA", "no GPU of NVIDIA's", False, cost)


def _bf16(flags=None):
    "What `training.choices.precision_for` will say, without loading torch."
    flags = processor_flags() if flags is None else flags
    if TILES in flags:
        return Finding("bf16", "the processor multiplies it in tiles: precision auto takes it")
    if BF16 & flags:
        return Finding("bf16", "the processor has it, without tiles: precision auto stays with float32")
    found = "the processor does not have it" if flags else "the processor does not say"
    cost = "precision bf16 is for GPUs here; on the processor it was eleven times slower than float32"
    return Finding("bf16", found, not flags, cost)


def _sizes(folder):
    free, whole = shutil.disk_usage(folder).free, memory()
    cost = "corrupted folders and checkpoints may not fit" if free < LITTLE_DISK else ""
    yield Finding("disk", f"{free / 1e9:.1f} GB free at {folder}", not cost, cost)
    small = 0 < whole < LITTLE_MEMORY
    cost = "take small batches; a set that is kept in memory may not fit" if small else ""
    yield Finding("memory", f"{whole / 1e9:.1f} GB" if whole else "not known", not cost, cost)


def _extra(name):
    missing = missing_modules(name)
    cost = f"{EXTRAS[name].lack}; pip install 'advbn[{name}]'" if missing else ""
    found = f"without {', '.join(missing)}" if missing else "installed"
    return Finding(f"extra {name}", found, not missing, cost)


def _chromium():
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    cost = "" if found else "the tests that open pages in a browser are skipped"
    return Finding("Chromium", found or "none", bool(found), cost)


def _project():
    try:
        root = project_root()
    except FileNotFoundError:
        cost = "commands under 'In a clone of the project' need one; the others run here"
        return None, Finding("project", "no clone of it at or above this folder", False, cost)
    return root, Finding("project", str(root))


def _data_sets(root):
    "A finding for each data set of the profiles in `params.yaml`."
    from .base.config import load_params
    from .images.folders import folders_of, missing_folder, offered

    try:
        profiles = load_params().profiles
    except (ValueError, OSError) as error:
        yield Finding(
            "params.yaml", " ".join(str(error).split())[:200], False, "no command of the clone runs"
        )
        return
    told = set()
    for name, profile in profiles.items():
        section = profile.data
        reasons = [missing_folder(section, key, path) for key, path in folders_of(section)]
        reason = "; ".join(filter(None, reasons))
        if (section.name, reason) in told:
            continue
        told.add((section.name, reason))
        get = "make it with: advbn data" if section.name == "openmoji" else f"see profiles.{name}.data"
        cost = f"profile {name} cannot run; {get}{offered(section.title)}" if reason else ""
        yield Finding(f"data {section.name}", reason or "there", not reason, cost)


def findings() -> list:
    "All `Finding`s, in the order in which one meets the things."
    root, project = _project()
    found = [Finding("processor", processor()), _torch(), _cuda(), _bf16(), *_sizes(Path(os.getcwd()))]
    found += [_extra(name) for name in EXTRAS]
    found.append(project)
    found += _data_sets(root) if root else []
    return [*found, _chromium()]


def as_dicts(found: list) -> list:
    return [asdict(finding) for finding in found]


def as_text(found: list) -> str:
    "A line for each finding, and below it what a lack costs."
    width = max(len(finding.what) for finding in found)
    lines = []
    for finding in found:
        lines.append(f"{'ok' if finding.fine else '--'}  {finding.what:<{width}}  {finding.found}")
        if finding.cost:
            lines.append(f"{'':<{width + 6}}{finding.cost}")
    lacks = sum(not finding.fine for finding in found)
    lines.append(f"{lacks} lacks; nothing in the way of the rest" if lacks else "nothing is missing")
    return "\n".join(lines)
