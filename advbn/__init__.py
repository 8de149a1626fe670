"""What `import advbn` offers: the public names, loaded when they are used."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # for editors and type checkers; nothing of it is imported when a program runs
    from .adapters.evaluate import evaluate as evaluate
    from .adapters.finetune import finetune as finetune
    from .evidence.evaluation import mean_corruption_error as mean_corruption_error
    from .method.dual_batchnorm import DualBatchNorm2d as DualBatchNorm2d
    from .method.dual_batchnorm import convert_dual_batchnorm as convert_dual_batchnorm
    from .method.dual_batchnorm import use_branch as use_branch
    from .method.layer import AdvBN as AdvBN
    from .method.network import AdvBNNet as AdvBNNet
    from .method.network import prepare as prepare
    from .method.splitting import split as split
    from .method.statistics import renormalize as renormalize
    from .shifts.corruptions import CORRUPTIONS as CORRUPTIONS
    from .shifts.corruptions import EXTRA_CORRUPTIONS as EXTRA_CORRUPTIONS
    from .shifts.corruptions import corrupt as corrupt

_PUBLIC = {  # and where each is, for those who run it
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
    "evaluate": "adapters.evaluate",
    "finetune": "adapters.finetune",
}


def __getattr__(name):
    from importlib import import_module

    if name not in _PUBLIC:
        raise AttributeError(f"module 'advbn' has no attribute {name!r}")
    return getattr(import_module(f"advbn.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])
