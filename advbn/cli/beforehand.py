"""What is wrong with the words of an evaluation, as far as names and files tell: said before PyTorch is
loaded."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

from ..base.errors import DataError, ParameterError, did_you_mean, nearest

SHIFTS = ("clean", "corruptions", "instagram", "sketch")  # those that need nothing but the images
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")  # of files of weights
SOURCES = {  # of each library: its package, the folder whose files define networks, and how they do it
    "": ("advbn", "networks", r'register_network\(\s*"(\w+)"'),
    "torchvision": ("torchvision", "models", r"@register_model\(.*\)\n(?:[@ )].*\n)*def (\w+)"),
    "timm": ("timm", "models", r"@register_model\n(?:[@ )].*\n)*def (\w+)|^    '(\w+)': (?:'|None)"),
}


def networks_of(library: str) -> list:
    "The networks that a library of `SOURCES` defines, read in its files; none if it is not installed."
    package, folder, pattern = SOURCES[library]
    spec = find_spec(package)
    files = Path(spec.origin).with_name(folder).glob("*.py") if spec and spec.origin else ()
    found = (m for file in files for m in re.finditer(pattern, file.read_text(encoding="utf-8"), re.M))
    return [next(filter(None, match.groups())) for match in found]


def check_network(name: str):
    "Raise a `ValueError` with the nearest names for a network that nobody offers."
    library, _, model = name.rpartition("/")
    if library in SOURCES:
        own, there = networks_of(""), networks_of(library)
        known = there if library else [*own, *networks_of("torchvision")]
        if there and model.partition(".")[0] not in known:
            near = ", ".join(repr(f"{library}/{n}".lstrip("/")) for n in nearest(model, known, 4, 0.5) or own)
            raise ValueError(f"no network {name!r}; the nearest are {near} (timm networks are 'timm/NAME')")


def check_weights_file(weights: str):
    "Raise a `FileNotFoundError` for what looks like a file of weights and is not there."
    is_path = os.sep in weights or Path(weights).suffix.lower() in SUFFIXES
    if is_path and not Path(weights).is_file():
        raise FileNotFoundError(f"no weights at {weights}")


def check_evaluation(
    model: str, weights=(), data: Path | None = None, shifts: str = "all", classes: Path | None = None
):
    "Raise what is wrong with the network's name, with files and folders that are given, and with the shifts."
    check_network(model)
    for file in weights:
        check_weights_file(file)
    if data is not None and not data.is_dir():
        raise DataError(f"no images at {data}; expected is a folder with a folder for each class")
    if classes is not None and str(classes) != "imagenet" and not classes.is_file():
        raise DataError(f"no list of classes at {classes}; expected is a file, a name per line, or imagenet")
    allowed = ("all", *SHIFTS)
    for word in filter(None, map(str.strip, shifts.split(","))):
        if word not in allowed:
            near = did_you_mean(word, allowed)
            raise ParameterError(f"--shifts has {word!r}; allowed are {', '.join(allowed)}{near}")
