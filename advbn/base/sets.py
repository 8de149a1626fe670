"""Folders of changed pictures: what is kept of each, and what must not stand in its place; told before any
picture is read."""

from pathlib import Path

from .errors import ParameterError
from .files import check_apart, check_settings
from .names import SEARCHED


def corruption_sets(names, severities, seed: int = 0) -> dict:
    "Folder to settings of each of the corruptions `names` at each of the `severities`."
    return {
        f"{name}/{severity}": {"corruption": name, "severity": severity, "seed": seed}
        for name in names
        for severity in severities
    }


def restyled_sets(names, like: Path | None = None, network="", after="", eps: float = 1.1) -> dict:
    """Folder to settings of each of the restylings `names`; what they are like, the `network` whose features
    are searched, where it is cut, and how far `advbn` goes."""
    sets = {}
    for name in names:
        sets[name] = settings = {"style": name}
        if name in ("colours", "stylized"):
            settings["like"] = str(Path(like).resolve()) if like else "scikit-image"
        if name in SEARCHED:
            settings |= {"network": network, "after": after}
        if name == "advbn":
            settings["eps"] = eps
    return sets


def placed(out: Path, sets: dict, form: str, source: Path) -> dict:
    """Path to all settings of `sets`, folder to settings, of the pictures in `source`: one set lies at `out`,
    several lie in folders of it.

    Raises `ParameterError` if `out` is, holds or lies in `source`, or is a set where it is to hold several,
    and `FileExistsError` for what was made otherwise."""
    source, out = Path(source), Path(out)
    check_apart(source, out)
    if len(sets) > 1 and (out / "settings.json").exists():
        raise ParameterError(
            f"{out} holds the pictures of one change; several get folders of their own: name another folder"
        )
    more = {"format": form, "source": str(source.resolve())}
    found = {
        (out / folder if len(sets) > 1 else out): {**settings, **more} for folder, settings in sets.items()
    }
    for folder, settings in found.items():
        check_settings(folder, settings)
    return found
