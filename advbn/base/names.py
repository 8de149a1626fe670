"""What commands can be given, by name alone: checked and completed before anything heavy is loaded."""

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from .errors import DataError, ParameterError, did_you_mean, nearest
from .extras import lacking, missing_modules
from .files import check_holds_weights, is_weights_file

CORRUPTIONS = (  # the fifteen of the benchmark, in its order
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # the four for validation
SEVERITIES = (1, 2, 3, 4, 5)
FILTERS = (
    "_1977",
    "amaro",
    "brannan",
    "clarendon",
    "gingham",
    "hefe",
    "hudson",
    "lofi",
    "mayfair",
    "nashville",
    "perpetua",
    "sutro",
    "toaster",
    "valencia",
    "willow",
    "xpro2",
    # the sixteen above are known from the literature, the four below are fixed here
    "earlybird",
    "inkwell",
    "kelvin",
    "rise",
)
RESTYLED = (*(name.lstrip("_") for name in FILTERS), "edges", "colours", "stylized", "advbn")
SEARCHED = ("stylized", "advbn")  # those that need a network
MADE_ALONE = ("clean", "corruptions", "instagram", "sketch")  # shifts that need nothing but the images
FORMATS = ("source", "png", "jpeg", "webp")  # that pictures are written in


def chosen(words: str, known, option: str, groups: dict | None = None) -> tuple:
    """The `known` names in a list such as `fog,frost`, each once, in the order given; `groups` are words that
    stand for several names. Raises `ParameterError` with the nearest name."""
    groups, found = groups or {}, []
    allowed = [*groups, *known]
    for word in filter(None, (w.strip() for w in words.split(","))):
        if word not in allowed:
            near = did_you_mean(word, allowed, f"; allowed are {', '.join(allowed)}")
            raise ParameterError(f"{option} has {word!r}{near}")
        found += groups.get(word, [word])
    if not found:
        raise ParameterError(f"{option} is empty; allowed are {', '.join(allowed)}")
    return tuple(dict.fromkeys(found))


def chosen_corruptions(words: str, option: str = "--name") -> tuple:
    "The corruptions in a list such as `fog,frost`, `all` (fifteen) or `extra` (four)."
    groups = {"all": CORRUPTIONS, "extra": EXTRA_CORRUPTIONS}
    return chosen(words, CORRUPTIONS + EXTRA_CORRUPTIONS, option, groups)


def chosen_severities(words: str, option: str = "--severity") -> tuple:
    """The severities in a list such as `3`, `1,3` or `1-5`, each once. Raises `ParameterError` for anything
    else."""
    found = []
    for word in (w.strip() for w in str(words).split(",")):
        if not (ends := re.fullmatch(r"([1-5])(?:-([1-5]))?", word)) or int(ends[1]) > int(ends[2] or 5):
            raise ParameterError(f"{option} has {word!r}; allowed are some of 1,2,3,4,5, such as 1,3 or 1-5")
        found += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return tuple(dict.fromkeys(found))


def chosen_styles(words: str, option: str = "--name") -> tuple:
    "The restylings in a list such as `sutro,edges`; `filters` are the twenty photo filters."
    filters = tuple(name.lstrip("_") for name in FILTERS)
    return chosen(words, RESTYLED, option, {"filters": filters})


def chosen_format(word: str, option: str = "--format") -> str:
    "One of `FORMATS`. Raises `ParameterError` for anything else."
    if word not in FORMATS:
        hint = did_you_mean(word, FORMATS)
        raise ParameterError(f"{option} is {word!r}; allowed are {', '.join(FORMATS)}{hint}")
    return word


_FUNCTION = r"\n(?:[@ )].*\n)*def (\w+)"  # behind decorators
_SOURCES = {  # of each library: its package, the folder whose files define networks, and how they do it
    "": ("advbn", "networks", r'register_network\(\s*"(\w+)"'),
    "torchvision": ("torchvision", "models", r'@register_model\((?:name="(\w+)")?\)' + _FUNCTION),
    "timm": ("timm", "models", "@register_model" + _FUNCTION + r"|^    '(\w+)': (?:'|None)"),
}


@lru_cache
def networks_of(library: str) -> tuple:
    """The networks that `torchvision`, `timm` or, under an empty name, this package offers, sorted; read in
    their sources, so that nothing is loaded. None where the library is not installed."""
    package, folder, pattern = _SOURCES[library]
    spec = find_spec(package)
    files = Path(spec.origin).with_name(folder).glob("*.py") if spec and spec.origin else ()
    texts = (file.read_text(encoding="utf-8") for file in files)
    found = (match for text in texts for match in re.finditer(pattern, text, re.M))
    return tuple(sorted({next(filter(None, match.groups())) for match in found}))


def no_network(name: str, known) -> ValueError:
    "The error for the name of a network that is none of those `known`, with the nearest."
    own = [other for other in known if "/" not in other]
    near = ", ".join(map(repr, nearest(name, known, 4, 0.5) or own))
    return ValueError(f"no network {name!r}; the nearest are {near} (timm networks are 'timm/NAME')")


def check_network(name: str):
    """Raise a `ValueError` with the nearest names for a network that neither this package nor torchvision nor
    timm has. Other sources, such as `hub:OWNER/NAME` and files, are left to whoever opens them."""
    library, _, model = name.rpartition("/")
    if library not in _SOURCES or ":" in name or Path(name).exists():
        return
    own = [f"torchvision/{known}" for known in networks_of("torchvision")]
    if library == "timm" and not networks_of("timm"):
        raise lacking("timm", name)
    if name == "efficientnet_lite0" and (missing := missing_modules("photographs")):
        raise lacking(missing[0], name, "photographs")
    there = {*networks_of(library), *(networks_of("torchvision") if not library else ())}
    if networks_of("torchvision") and model.partition(".")[0] not in there:
        also = [f"timm/{known}" for known in networks_of("timm")] if library == "timm" else []
        raise no_network(name, [*networks_of(""), *own, *also])


_TORCHVISIONS = {  # in the source of a network, the class of its weights; and in that their names
    "class": r"def {}\(.*?Optional\[(?:Union\[)?(\w+)",
    "names": r"^class {}\(WeightsEnum\):\n(.*?)^(?=\S)",
}


@lru_cache
def weights_of(name: str) -> tuple:
    """What published weights of a network of torchvision's or timm's are called, read in the sources, so that
    nothing is loaded; nothing where they do not tell."""
    library, _, model = name.rpartition("/")
    library, model = library or "torchvision", model.partition(".")[0]
    if library not in ("torchvision", "timm") or not (spec := find_spec(library)) or not spec.origin:
        return ()
    for file in sorted(Path(spec.origin).with_name("models").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if library == "timm":
            found = re.findall(rf"""['"]{re.escape(model)}\.(\w+)['"] *:""", text)
        elif own := re.search(_TORCHVISIONS["class"].format(re.escape(model)), text, re.S):
            body = re.search(_TORCHVISIONS["names"].format(own[1]), text + "\nend", re.S | re.M)
            found = re.findall(r"^    (\w+) = ", body[1], re.M) if body else ()
        else:
            continue
        if found:
            return tuple(dict.fromkeys([*found, "DEFAULT"]))
    return ()


def no_weights(name: str, word: str, known) -> ValueError:
    "The error for weights that are none of those `known`, which the library of a network publishes."
    known = list(known)
    first = f"; did you mean {known[0]!r}?" if known else ""
    near = did_you_mean(word, known, did_you_mean(word.upper(), known, first))
    there = f"there are {', '.join(known)}" if known else "there are none"
    return ValueError(
        f"{name!r} has no published weights {word!r}; {there}, and files with a state dict{near}"
    )


def check_weights_word(name: str, weights: str | None):
    """Raise what can be told of the words for a network's weights before anything is loaded: a file that is
    not there (`FileNotFoundError`) or holds none (`WeightsError`), weights that are not published
    (`ValueError`)."""
    if is_weights_file(weights):
        check_holds_weights(Path(weights))
    elif weights and (known := weights_of(name)) and weights not in known:
        raise no_weights(name, weights, known)


SETS = ("clean", "corruptions", "instagram", "sketch", "stylized")  # what is published as images of its own


def named_sets(words: str, option: str = "--data"):
    """A folder, or the `{shift: folder}` of such words as `clean=val,corruptions=imagenet-c`. Raises
    `ParameterError` for an unknown shift, and `DataError` for a folder that is not there."""
    if "=" not in words or Path(words).exists():
        sets = {"": Path(words)}
    else:
        pairs = [word.partition("=") for word in words.split(",")]
        for shift, *_ in pairs:  # others than those that are published are domains
            if shift.strip() not in SETS and (near := did_you_mean(shift.strip(), SETS, cutoff=0.8)):
                raise ParameterError(f"{option} has {shift.strip()!r}{near}")
        sets = {shift.strip(): Path(folder) for shift, _, folder in pairs}
    for folder in sets.values():
        if not folder.is_dir():
            raise DataError(f"no images at {folder}; expected is a folder with a folder for each class")
    return sets.get("", sets)


def _shifts_of(sets) -> tuple:
    "The shifts that can be chosen of a folder, or of `{shift: folder}`."
    if isinstance(sets, dict):
        return tuple(sets)
    from .sections import DOMAINS  # which brings pydantic along

    there = (shift for folder, shift in DOMAINS.items() if sets and (sets / folder).is_dir())
    return (*MADE_ALONE, *there)


def check_evaluation(model: str, weights=(), shifts: str = "all", classes: Path | None = None, sets=None):
    """Raise what is wrong with the words of an evaluation of `sets`, see `named_sets`, as far as names and
    files can tell: an unknown network, missing files, an unknown shift."""
    check_network(model)
    for word in weights:
        check_weights_word(model, word)
    if classes is not None and str(classes) != "imagenet" and not Path(classes).is_file():
        raise DataError(f"no list of classes at {classes}; expected is a file, a name per line, or imagenet")
    if shifts != "all":
        known = _shifts_of(sets)
        chosen(shifts, known, "--shifts", {"all": known})
