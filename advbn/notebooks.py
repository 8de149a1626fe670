"""A stage of the pipeline is a notebook with parameters; a misspelt one must not run on its defaults."""

import ast
import json
import os
import platform
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .base.config import Params, load_params
from .base.errors import Interrupted, ParameterError, did_you_mean
from .base.files import project_root
from .base.machine import gpus, processor
from .base.progress import on_stop
from .warm import use_forked_kernel


def notebook_parameters(path: Path) -> dict:
    """Names and example values in the notebook's `parameters` cell. Raises `ParameterError` unless there is
    exactly one such cell."""
    import nbformat

    if not Path(path).exists():
        raise ParameterError(f"no notebook at {path}")
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat says in many ways that a file is no notebook
        raise ParameterError(f"{path} is no notebook: {' '.join(str(error).split())[:100]}") from None
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ParameterError(f"{path} has {len(cells)} cells tagged 'parameters'; it must have exactly one")
    return {
        target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(cells[0].source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
    }


def _convert(name, text, default):
    "Text from a command line as a value of the type of `default`."
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if isinstance(default, bool) else text)
    except (ValueError, SyntaxError):
        value = text
    if type(value) is not type(default):
        raise ParameterError(
            f"parameter {name} is {text!r}; allowed is a value of type {type(default).__name__}, such as "
            f"{default!r}"
        )
    return value


def check_parameters(path: Path, given: dict) -> dict:
    """The values for the notebook at `path`, from the texts `given`; raises `ParameterError` for an unknown
    or missing name and a wrong type."""
    known = notebook_parameters(path)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known, f"; it takes {', '.join(known) or 'none'}")
            raise ParameterError(f"{Path(path).name} has no parameter {name!r}{hint}")
    missing = [name for name in known if name not in given]
    if missing:
        raise ParameterError(f"{Path(path).name} needs the parameter {missing[0]!r}")
    return {name: _convert(name, text, known[name]) for name, text in given.items()}


def versions() -> dict:
    "The versions of the packages on which numbers depend."
    found = {}
    for package in ("advbn", "torch", "torchvision", "accelerate", "numpy", "pandas"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    "The commit of the clone; what lies under results/ does not make a commit another one."
    changed = _said(
        "git",
        "-C",
        str(project_root()),
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":!results",
        ":!dvc.lock",
        ":!README.md",
    )
    known = _said("git", "-C", str(project_root()), "rev-parse", "--short=12", "HEAD") or "not known"
    return known + (" and changes" if changed else "")


def surroundings() -> dict:
    "Hardware, versions and commit."
    return {
        "Processor": processor(),
        "GPU": ", ".join(gpus()) or "none",
        "Python": platform.python_version(),
        "Packages": ", ".join(f"{k} {v}" for k, v in versions().items()),
        "Commit": commit(),
    }


def _said(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def record_stage(params: Params, stage: str, seconds: float, more: bool = False):
    """Write how a stage was run, and how long it took, to `results/PROFILE/made/STAGE.json`; with `more`, the
    seconds are added to those that are there."""
    path = project_root() / "results" / params.profile / "made" / f"{stage}.json"
    if more and path.exists():
        seconds += json.loads(path.read_text(encoding="utf-8"))["seconds"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"seconds": round(seconds, 1), **surroundings()}, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )


@contextmanager
def _at_work_on(stage):
    "Let processes that are started inside know, by `ADVBN_STAGE`, what they are at work on."
    before = os.environ.get("ADVBN_STAGE")
    os.environ["ADVBN_STAGE"] = stage
    try:
        yield
    finally:
        os.environ.pop("ADVBN_STAGE")
        if before is not None:
            os.environ["ADVBN_STAGE"] = before


@contextmanager
def _stopping(progress):
    "Pass Ctrl-C and SIGTERM on to the notebook's processes, and wait until they have kept what they train."
    import psutil

    asked = []

    def stop(number, frame):
        asked.append(signal.Signals(number).name)
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGTERM)

    with on_stop(stop):
        try:
            yield
        except BaseException:
            if not asked:
                raise
            deadline = time.time() + 60
            while time.time() < deadline and any(progress.rglob("*.owner")):
                time.sleep(0.2)
            said = f"{asked[0]}: stopped; the same command goes on from the progress kept"
            raise Interrupted(said) from None


def run_notebook(path: Path, given: dict | None = None) -> Path:
    """Execute a notebook with papermill from the project's root; returns the executed copy under `executed/`.
    A failing cell raises. A parameter `profile` that is not given is that of `params.yaml`.

    Raises `ParameterError` for wrong parameters, and `Interrupted` after Ctrl-C or SIGTERM, once the
    notebook's processes have kept their progress."""
    try:
        import papermill
    except ImportError:
        raise ImportError("running notebooks needs papermill: pip install 'advbn[notebooks]'") from None
    path, given = Path(path), dict(given or {})
    params = load_params(given.get("profile"))
    if "profile" in notebook_parameters(path):
        given.setdefault("profile", params.profile)
    values = check_parameters(path, given)
    name = "-".join([path.stem, *(str(v) for k, v in values.items() if k != "profile")])
    if Path(name).name != name:
        raise ParameterError(
            f"{name!r} would be the name of the executed notebook; no parameter may have a / in it"
        )
    output = project_root() / "executed" / params.profile / f"{name}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    use_forked_kernel()
    began = time.perf_counter()
    with _stopping(project_root() / "progress"), _at_work_on(name):
        papermill.execute_notebook(
            str(path),
            str(output),
            parameters=values,
            kernel_name="python3",
            language="python",
            cwd=str(project_root()),
            progress_bar={"desc": output.stem, "unit": "cell"},
        )
    if path.parent.name == "stages":
        record_stage(params, name, time.perf_counter() - began)
    return output
