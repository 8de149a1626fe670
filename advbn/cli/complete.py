"""What a shell can complete: names, found without loading anything heavy."""

from contextlib import suppress

from ..base.names import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    FORMATS,
    MADE_ALONE,
    RESTYLED,
    networks_of,
)


def listed(incomplete: str, known) -> list:
    "The `known` words that could end a list such as `fog,fr`."
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [f"{before}{comma}{name}" for name in known if name.startswith(last) and name not in given]


def complete_corruptions(incomplete: str) -> list:
    return listed(incomplete, ("all", *CORRUPTIONS, "extra", *EXTRA_CORRUPTIONS))


def complete_styles(incomplete: str) -> list:
    return listed(incomplete, ("filters", *RESTYLED))


def complete_shifts(incomplete: str) -> list:
    return listed(incomplete, ("all", *MADE_ALONE))


def complete_formats(incomplete: str) -> list:
    return [word for word in FORMATS if word.startswith(incomplete)]


def complete_models(incomplete: str) -> list:
    "The package's own networks and torchvision's; those of timm's behind `timm/`."
    library, slash, start = incomplete.rpartition("/")
    places = [library] if slash else ["", "torchvision"]
    found = [name for place in places if place in ("", "torchvision", "timm") for name in networks_of(place)]
    found += [] if slash else ["timm/"]
    return [f"{library}{slash}{name}" for name in found if name.startswith(start)]


def _said(*keys) -> list:
    "The names under these keys of the project's `params.yaml`; none outside of a clone."
    import yaml

    from ..base.files import project_root

    with suppress(Exception):  # a shell that completes has no place for an error
        content = yaml.safe_load((project_root() / "params.yaml").read_text(encoding="utf-8"))
        return [str(name) for key in keys for name in content[key]]
    return []


def complete_profiles(incomplete: str) -> list:
    return [name for name in _said("profiles") if name.startswith(incomplete)]


def complete_methods(incomplete: str) -> list:
    return [name for name in _said("methods") if name.startswith(incomplete)]


def complete_seeds(incomplete: str) -> list:
    return [name for name in _said("seeds") if name.startswith(incomplete)]


def complete_loggers(incomplete: str) -> list:
    from ..base.extras import LOGGERS

    return [name for name in LOGGERS if name.startswith(incomplete)]
