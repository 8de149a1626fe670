"""Named things that can be added from outside the package: data sets, shifts, methods, networks."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

from .errors import ParameterError, did_you_mean


class Registry(dict):
    """Names and what they stand for, in the order in which they were added.

    `kind` says in messages what the names are names of, such as "data set"."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def add(self, name: str, entry):
        "Add `entry` under a new `name` and return it. Raises `ValueError` if the name is taken by another."
        if self.get(name, entry) is not entry:
            raise ValueError(f"there is a {self.kind} {name!r} already; choose another name")
        self[name] = entry
        return entry

    def find(self, name: str):
        "The entry under `name`. Raises `ValueError` with the nearest name, or with all of them."
        if name not in self:
            allowed = ", ".join(self)
            raise ValueError(f"no {self.kind} {name!r}; allowed are {allowed}{did_you_mean(name, self)}")
        return self[name]


EXTENSIONS = "advbn_extensions"  # what the modules of extensions are called in every process


def load_extensions(paths, base: Path):
    """Import each of the Python files at `paths`, relative to `base`; what they add to registries is there.

    A file is imported once in a process. Raises `ParameterError` for a missing one and for one that fails."""
    for path in (Path(base) / path for path in paths):
        name = f"{EXTENSIONS}_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}"
        loaded = sys.modules.get(name)
        if loaded is not None and Path(loaded.__file__) == path.resolve():
            continue
        if not path.is_file():
            raise ParameterError(f"extensions: no file {path}")
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ParameterError(f"extensions: {path} fails with {type(error).__name__}: {error}") from error


def loaded_extensions() -> list:
    "The files of the extensions that this process has loaded."
    ours = [name for name in sys.modules if name.startswith(f"{EXTENSIONS}_")]
    return [sys.modules[name].__file__ for name in ours]


def above(name: str):
    """What stands above its caller in the package, such as `adapters.pretrained.load_folder`, imported when
    it is called for and not before.

    For a method that people look for on a class below and whose work needs what is above; nothing else is
    reached so."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(f"advbn.{module}"), attribute)
