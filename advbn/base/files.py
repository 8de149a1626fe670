"""Files of the project: where they are, whole or not there, held by one process at a time, their digests."""

import errno
import glob
import hashlib
import json
import os
import re
import socket
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import Busy, DataError, ParameterError, WeightsError, did_you_mean


def project_root(start: str | Path = ".") -> Path:
    """The folder at or above `start` that holds `dvc.yaml`; `ADVBN_ROOT` overrides it. Raises
    `FileNotFoundError` if there is none."""
    if os.environ.get("ADVBN_ROOT"):
        return Path(os.environ["ADVBN_ROOT"])
    here = Path(start).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").exists():
            return folder
    raise FileNotFoundError(
        f"this needs a clone of the project, and {here} is in none (no dvc.yaml there or above); change into "
        f"one, or set ADVBN_ROOT"
    )


def in_a_project() -> bool:
    "Is there a project here or above?"
    with suppress(FileNotFoundError):
        return bool(project_root())
    return False


def cache_folder() -> Path:
    "Where the user's cache keeps lists of large folders of images; nothing is lost with it."
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "advbn"


def filled_path(path: str, base: Path) -> Path:
    """A path of `params.yaml`, relative to `base`, with environment variables such as `$IMAGENET` filled in;
    raises `DataError` for one that is not set."""
    filled = os.path.expanduser(os.path.expandvars(path))
    if missing := re.search(r"\$\{?(\w+)", filled):
        raise DataError(
            f"{path!r} needs the environment variable {missing[1]}, which is not set; set it, or write the "
            f"folder into params.yaml"
        )
    return Path(base) / filled


def _unfinished(path):
    """This process's name for a file that is to be `path`; removes those of this machine's processes that
    have ended."""
    import psutil

    start = f".{path.name}.{socket.gethostname()}-"
    for left in path.parent.glob(f"{glob.escape(start)}*.partial"):
        owner = left.name.removeprefix(start).removesuffix(".partial")
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            left.unlink(missing_ok=True)
    return path.with_name(f"{start}{os.getpid()}.partial")


@contextmanager
def whole_file(path: Path, put_aside=lambda: None):
    """An open binary file inside the `with` block, which is at `path` when the block has ended and the disk
    has all of it, and not before.

    `put_aside()` is called right before that. Raises `OSError` with the path if the disk is full; what
    stood there before is then still there."""
    path, unfinished = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = _unfinished(path)
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put_aside()
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise OSError(getattr(error, "errno", None) or 0, f"{path} could not be written: {reason}") from None
    finally:
        if unfinished:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
    with suppress(OSError):  # the new name, too, where the system lets a folder be handed to the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(text: str, path: Path):
    "Write `text` to the file at `path`, in UTF-8, whole or not at all."
    with whole_file(path) as file:
        file.write(text.encode())


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it; of a folder that of the lines it prints about the files in
    it, sorted by name."""
    path, digest = Path(path), hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")):
            digest.update(f"{file_digest(file)}  {file.name}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def check_apart(source: Path, out: Path):
    """Raise a `ParameterError` if what is made of the pictures in the folder `source` could not go to the
    folder `out`: it is the same one, lies in it, or holds it."""
    source, out = Path(source), Path(out)
    here, there = source.resolve(), out.resolve()
    name = f"name a folder beside it, such as {source.with_name(f'{here.name}-changed')}"
    if here == there:
        raise ParameterError(f"{out} is the folder of the pictures themselves; {name}")
    if here in there.parents:
        raise ParameterError(f"{out} lies in {source} and would become one of its classes; {name}")
    if there in here.parents:
        raise ParameterError(f"{out} holds {source}, the pictures themselves; {name}")


def check_settings(folder: Path, settings: dict):
    """Raise a `FileExistsError` if there is something at `folder` that was not made with these settings; an
    empty folder may be filled."""
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return
    stamp = folder / "settings.json"
    if not stamp.is_file():
        raise FileExistsError(
            f"{folder} exists and was not made so: it has no {stamp.name}. Nothing in it was touched; name "
            f"another folder"
        )
    kept = json.loads(stamp.read_text(encoding="utf-8"))
    if kept != json.loads(json.dumps(settings)):
        other = [k for k in {**kept, **settings} if kept.get(k) != settings.get(k)]
        said = ", ".join(f"{k} {kept.get(k)!r} and not {settings.get(k)!r}" for k in other)
        raise FileExistsError(
            f"{folder} exists and was made with other settings: {said}; name another folder"
        )


_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".safetensors")


def is_weights_file(weights: str | None) -> bool:
    """Is this a file of weights? Raises `FileNotFoundError` if it looks like one that is not there, and not
    like the name of published weights."""
    if not weights or Path(weights).is_file():
        return bool(weights)
    if os.sep in str(weights) or Path(weights).suffix.lower() in _WEIGHTS:
        raise FileNotFoundError(f"no weights at {weights}")
    return False


def saved_network(where: str | Path) -> bool:
    "Does a folder or an archive hold what `save_pretrained` writes?"
    path = Path(where)
    return (path / "config.json").is_file() or (path.suffix == ".zip" and path.is_file())


def no_saved_network(where: str | Path) -> str:
    "That a folder does not hold what `save_pretrained` writes, and which one near it does."
    path, near = Path(where), []
    for around in (path, path.parent):
        if around.is_dir():
            near += [str(p) for p in sorted(around.iterdir()) if saved_network(p)]
    hint = did_you_mean(str(where), near, f"; there is {near[0]}" if near else "")
    what = f"no config.json in {where}" if path.is_dir() else f"no folder {where}"
    return f"{what}; expected is what save_pretrained writes{hint}"


def check_writable(folder: Path, option: str = "OUT"):
    "Raise a `ParameterError` for a folder that cannot be made or written to; nothing is left of the trial."
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (os.access(folder, os.W_OK) and os.access(folder.parent, os.W_OK)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ParameterError(f"{option}: {folder} cannot be a folder: {error.strerror.lower()}") from None
    finally:
        for place in missing:
            if place.is_dir():
                place.rmdir()


def check_holds_weights(path: Path):
    "Raise a `WeightsError` for a file that begins like none of torch.save's or safetensors'."
    with open(path, "rb") as file:
        begin = file.read(262)
    if not (begin[:2] == b"PK" or begin[:1] == b"\x80" or begin[8:9] == b"{" or begin[257:] == b"ustar"):
        raise WeightsError(
            f"{path} is damaged or no file of weights ({path.stat().st_size} bytes): neither torch.save nor "
            f"safetensors has written it"
        )


@contextmanager
def held(path: Path, doing: str = "made", wait: float = 0):
    """Hold what is at `path` inside the `with` block, against other processes; raises `Busy` with the owner's
    name if another one holds it and does not let go within `wait` seconds."""
    from filelock import FileLock, Timeout

    lock, owner = FileLock(path.with_name(f"{path.name}.lock")), path.with_name(f"{path.name}.owner")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise Busy(
            f"{path} is being {doing} by {owner.read_text() if owner.exists() else 'another process'}; wait "
            f"for it or stop it"
        ) from None
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        for left in (owner, Path(lock.lock_file)):
            left.unlink(missing_ok=True)
        lock.release()
