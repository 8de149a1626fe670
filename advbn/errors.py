"""Every exception that the package raises on purpose, and the nearest right spelling of a wrong word."""

import difflib
from collections.abc import Iterable

INTERRUPTED = (
    75  # the exit status of a run that was asked to stop and has kept its progress: EX_TEMPFAIL, "try again"
)


class DataError(ValueError):
    "Images that are missing, incomplete or not those that were expected."


class ParameterError(ValueError):
    "A slip in `params.yaml` or in a command line's parameters."


class WeightsError(ValueError):
    "A file that is damaged, holds something else than weights, or another network's."


class Busy(RuntimeError):
    "Another process is at work on the same files."


class ProcessLost(RuntimeError):
    "Another process of the same run has failed or is silent."


class Interrupted(BaseException):
    """The run was asked to stop, by Ctrl-C or SIGTERM, and has kept its progress. Not an `Exception`, like
    `KeyboardInterrupt`."""


def nearest(given, allowed: Iterable, count: int = 1, cutoff: float = 0.4) -> list:
    "At most `count` of the `allowed` words, the nearest to `given` first; `cutoff` from 0, all, to 1, itself."
    return difflib.get_close_matches(str(given), [str(word) for word in allowed], count, cutoff)


def did_you_mean(given, allowed: Iterable, otherwise: str = "", cutoff: float = 0.4) -> str:
    """The end of a message about the word `given`: `"; did you mean 'advbn'?"` with the nearest of the
    `allowed` words.

    Where none is near, it is `otherwise`."""
    near = nearest(given, allowed, 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else otherwise
