"""What `import advbn` offers: the public names, loaded when they are used."""

__version__ = "0.1.0"

_PUBLIC = {
    "renormalize": "method.statistics",
    "AdvBN": "method.layer",
    "split": "method.splitting",
    "DualBatchNorm2d": "method.dual_batchnorm",
    "convert_dual_batchnorm": "method.dual_batchnorm",
    "use_branch": "method.dual_batchnorm",
    "AdvBNNet": "method.network",
    "prepare": "method.network",
    "corrupt": "shifts.corruptions",
    "CORRUPTIONS": "shifts.corruptions",
    "EXTRA_CORRUPTIONS": "shifts.corruptions",
    "mean_corruption_error": "evidence.evaluation",
}


def __getattr__(name):
    from importlib import import_module

    if name not in _PUBLIC:
        raise AttributeError(f"module 'advbn' has no attribute {name!r}")
    return getattr(import_module(f"advbn.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
