"""A run that is killed at any moment goes on where it was, with the same numbers as without that."""

import hashlib
import io
import json
import signal
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

from .errors import Interrupted
from .files import held
from .machine import duration
from .registry import loaded_extensions


def _spare(path):
    return path.with_name(f"{path.name}.previous")


def write_checked(state, path: Path):
    """Write `state`, what `torch.load(weights_only=True)` can read, under its checksum; what `path` held
    stays as `PATH.previous`.

    Raises `OSError` with the name of the last good file if the disk is full or cannot be written."""
    import torch

    from .files import whole_file

    path, buffer = Path(path), io.BytesIO()
    torch.save(state, buffer)

    def put_aside():
        if path.exists() and (
            _checked(path) or not _spare(path).exists()
        ):  # a damaged file must not push the good one out
            path.replace(_spare(path))

    try:
        with whole_file(path, put_aside) as file:
            file.write(hashlib.sha256(buffer.getbuffer()).hexdigest().encode() + b"\n")
            file.write(buffer.getbuffer())
    except OSError as error:
        last = next((p for p in (path, _spare(path)) if p.exists()), "none")
        raise OSError(error.errno, f"{error.strerror}; the last good progress is {last}") from None


def _checked(path):
    "The bytes of a file that stand under their checksum; `None` if they are not those."
    head, _, body = path.read_bytes().partition(b"\n")
    return body if hashlib.sha256(body).hexdigest().encode() == head else None


def read_checked(path: Path):
    """What `write_checked` has written last, from the spare where the file is truncated or altered, which a
    warning says; `None` where there is neither. Nothing in the file is executed."""
    import torch

    for file in (Path(path), _spare(Path(path))):
        if not file.exists():
            continue
        if body := _checked(file):
            return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        warnings.warn(f"{file} is truncated or altered and is passed over", stacklevel=2)
    return None


def fingerprint(state: dict) -> str:
    "SHA-256 of the names, types, shapes and values of a state dict."
    import torch

    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def made_by() -> str:
    "SHA-256 of the package's source and torch's version: whether a run that goes on would be the same run."
    import torch

    digest = hashlib.sha256(torch.__version__.encode())
    ours = sorted(Path(__file__).parent.parent.rglob("*.py"))
    for file in (*ours, *map(Path, loaded_extensions())):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@contextmanager
def on_stop(handle):
    """Inside the `with` block Ctrl-C and SIGTERM call `handle(number, frame)`; yields their handlers before,
    signal to handler. In another thread than the main one, which gets no signals, nothing changes."""
    main = threading.current_thread() is threading.main_thread()
    caught = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """The progress of one run, at `path`, kept every `every` steps, at its end, and when Ctrl-C or SIGTERM
    asks the run to stop.

    Used as a context: holds the lock of `path`, raises `Busy` with the owner's name if another process
    does."""

    def __init__(self, path: Path, every: int, writes: bool = True):
        self.path, self.every, self.writes, self.asked, self.identity = Path(path), every, writes, None, None
        self.hold, self.caught = held(self.path.with_suffix(""), "trained"), on_stop(self._ask)

    def __enter__(self):
        if self.writes:
            self.hold.__enter__()
        self.before = self.caught.__enter__()
        return self

    def __exit__(self, *error):
        self.caught.__exit__(None, None, None)
        if self.writes:
            self.hold.__exit__(*error)

    def _ask(self, number, frame):
        if self.asked and number == signal.SIGINT:  # a second Ctrl-C does not wait for the step to end
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
        outer = getattr(self.before.get(number), "__self__", None)
        if isinstance(outer, Progress):  # of two held at a time, both are asked
            outer.asked = self.asked

    def resume(self, identity: dict, parts: dict):
        """Bring `parts`, name to module, optimiser or schedule, to where a run with this `identity` was kept;
        returns what was kept, or `None`.

        Progress of another run at the same place is passed over, with a warning."""
        self.parts, self.identity = parts, json.dumps({**identity, "made by": made_by()}, sort_keys=True)
        kept = read_checked(self.path)
        if kept is None:
            return None
        if kept["identity"] != self.identity:
            warnings.warn(
                f"{self.path} is the progress of a run with other settings, weights, images or code; this "
                f"run begins anew",
                stacklevel=2,
            )
            return None
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        return kept

    def due(self, step: int, last: int) -> bool:
        "Whether the run is to be kept after this `step` of `last`."
        return step % self.every == 0 or step == last

    def last_good(self) -> str:
        "What a message about a failure says of what was kept; nothing if nothing was."
        return f"; the last good progress is {self.path}" if self.path.exists() else ""

    def keep(self, step: int, stop: bool, **state):
        "Write the parts and `state`, and raise `Interrupted` if the run is to stop."
        if self.writes:
            write_checked(
                {
                    **{name: part.state_dict() for name, part in self.parts.items()},
                    **state,
                    "step": step,
                    "identity": self.identity,
                },
                self.path,
            )
        if stop:
            raise Interrupted(
                f"{self.asked or 'another process was asked to stop'}: stopped after step {step}; the same "
                f"command goes on from there"
            )


class Countdown:
    """Tells at the start of each stage of a long call how much is left of all of it: the `expected` seconds
    of what is still to come, `{stage: seconds}` in their order, times how much longer than expected took what
    is done. Stages that an earlier call has `ended` are passed over in silence; `keep` is given the list of
    all that have ended."""

    def __init__(self, expected: dict, tell, ended=(), keep=lambda ended: None, now=time.monotonic):
        self.expected, self.tell, self.ended, self.keep = expected, tell, tuple(ended), keep
        self.now, self.began = now, now()

    def starts(self, stage: str):
        "The `stage` begins, and those before it are done."
        names = [*self.expected]
        place = names.index(stage)
        if stage in self.ended:
            return
        self.keep(names[:place])
        done = sum(self.expected[name] for name in names[:place] if name not in self.ended)
        pace = max((self.now() - self.began) / done, 0.5) if done else 1.0  # a part may have been kept
        left = pace * sum(self.expected[name] for name in names[place:] if name not in self.ended)
        self.tell(f"{stage} ({place + 1} of {len(names)}), about {duration(left)} left of all")


class _Silent(Countdown):
    "Tells nothing."

    def starts(self, stage: str):
        pass


SILENT = _Silent({}, print)
