"""Every family of torchvision's and timm's classifiers, each cut at three places that are others in each
release.

The networks are those of the installed libraries: of each of their files the smallest, and the smallest of
another name. `make zoo` writes what came of each cut into results/zoo.csv."""

import csv
import ctypes
import random
import re
from collections import defaultdict
from functools import lru_cache
from unittest import mock

import pytest
import timm
import torch
from conftest import ROOT
from splitting_checks import check_cut, check_network, lived_in, outputs
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torchvision import models as torchvision

from advbn.method import splitting

TABLE = ROOT / "results/zoo.csv"
RELEASE = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[
    1
]  # version and date
MOST = 100_000_000  # parameters; a check of as many takes 3 GB
CLASSES = 7
MAKE = {"torchvision": torchvision.get_model, "timm": timm.create_model}
SIZED = {  # how a network can be told the size of its images, if it has to be
    "torchvision": [{}, {"image_size": int}, {"input_size": lambda size: (size, size)}],
    "timm": [{}, {"img_size": int}],
}


def families():
    "Names by library and file; timm's own `test_...` networks are no family of classifiers."
    found = defaultdict(list)
    for name in torchvision.list_models(torchvision):
        found["torchvision", torchvision.get_model_builder(name).__module__.rpartition(".")[2]].append(name)
    for module in timm.list_modules():
        found["timm", module] = [
            name for name in timm.list_models(module=module) if not name.startswith("test_")
        ]
    return {family: sorted(names) for family, names in found.items() if names}


def first_word(name):
    return re.match("[a-z]+", name)[0]


FAMILIES = families()
PLACES = [
    (*family, place)
    for family, names in FAMILIES.items()
    for place in range(min(2, len(set(map(first_word, names)))))
]
FEW = (  # `make test` cuts these, `make test-slow` all
    ("torchvision", "resnet", 0),  # worked
    ("timm", "efficientnet", 0),
    ("timm", "swin_transformer", 0),
)


class TooLarge(Exception):
    "Raised while a network is being made."


def parameters_of(library, name, limit):
    """How many parameters a network has, or `limit` if it has as many or more; nothing is allocated for
    timm's."""
    if library == "torchvision":
        return min(limit, torchvision.get_model_weights(name).DEFAULT.meta["num_params"])
    count = 0

    def add(module, name, parameter):
        nonlocal count
        count += 0 if parameter is None else parameter.numel()
        if count >= limit:
            raise TooLarge

    hook = register_module_parameter_registration_hook(add)
    try:
        with torch.device("meta"):
            timm.create_model(name)
    except TooLarge:
        return limit
    finally:
        hook.remove()
    return count


def smallest(library, names):
    "The network with the fewest parameters, the first of its size; an empty text if all have `MOST` or more."
    found, limit = "", 5_000_000
    while not found:
        count = limit  # of the smallest so far; of others no more are counted
        for name in names:
            if (own := parameters_of(library, name, count)) < count:
                found, count = name, own
        if limit == MOST:
            break
        limit = min(4 * limit, MOST)
    return found


@lru_cache(maxsize=None)
def chosen(library, family, place):
    "The smallest network of a family, or at place 1 the smallest with another first word."
    names = FAMILIES[library, family]
    if place:
        taken = first_word(chosen(library, family, 0) or names[0])
        names = [name for name in names if first_word(name) != taken]
    return smallest(library, names)


def network(library, name):
    """`(network, images)`: the network in eval mode, with random weights, and images as small as it takes, if
    possible of 64 or 96 pixels."""
    for size in (64, 96, 128, 224, 256, 299):
        for options in SIZED[library]:
            torch.manual_seed(0)
            try:
                model = MAKE[library](
                    name, num_classes=CLASSES, **{option: value(size) for option, value in options.items()}
                )
                images = torch.randn(2, 3, size, size)
                lived_in(model, images)
                outputs(model, images)
            except (TypeError, ValueError, RuntimeError, AssertionError) as error:
                failure = error
            else:
                return model, images
    raise failure


def cuts(model, name):
    """A child and a grandchild with convolutions, and any module further down, drawn at random; where there
    is none, another one."""
    draw, modules = random.Random(f"{RELEASE} {name}"), {path: m for path, m in model.named_modules() if path}
    spatial = [
        path for path, m in modules.items() if any(isinstance(part, nn.Conv2d) for part in m.modules())
    ]
    found = []
    for depth, wanted in ((0, spatial), (1, spatial), (2, list(modules))):
        left = [path for path in wanted if path not in found] or [
            path for path in modules if path not in found
        ]
        found.append(draw.choice([path for path in left if min(path.count("."), 2) == depth] or left))
    return found


def came_of(library, family, place):
    "The rows of a network: `[library, family, network, cut, outcome]` for each of its cuts."
    name = chosen(library, family, place)
    if not name:
        return [[library, family, "", "", f"not tried, every network has {MOST:,} parameters or more"]]
    model, images = network(library, name)
    before = check_network(model, images)
    targets = torch.arange(len(images))
    with mock.patch.object(splitting, "_advice", once_in_a_network(splitting._advice)):
        return [
            [library, family, name, cut, check_cut(model, cut, images, targets, before) or "worked"]
            for cut in cuts(model, name)
        ]


def once_in_a_network(advice):
    "Advice takes longer than a refusal, tries the same cuts for each, and is no part of the table."
    given = []

    def advise(*words):
        if not given:
            given.append(advice(*words))
        return given[0]

    return advise


def recorded():
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


@pytest.fixture
def kept_memory():
    """The C library keeps what copies of networks have taken and gives it to the next copy, instead of asking
    the system for fresh pages each time; that takes a fourth less time. Nothing happens without glibc."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        options = {-4: (0, 65_536), -1: (2**31 - 1, 131_072)}  # M_MMAP_MAX and M_TRIM_THRESHOLD
        for option, (ours, _) in options.items():
            libc.mallopt(option, ours)
    except (OSError, AttributeError):
        yield
        return
    yield
    for option, (_, default) in options.items():
        libc.mallopt(option, default)
    libc.malloc_trim(0)


@pytest.mark.usefixtures("kept_memory")
@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize(
    "library, family, place",
    [pytest.param(*place, marks=[] if place in FEW else pytest.mark.slow) for place in PLACES],
)
def test_every_cut_works_or_is_refused(library, family, place, record_property, request):
    rows = came_of(library, family, place)
    for row in rows:
        record_property("zoo", row)
    if not request.config.getoption("--zoo"):
        assert rows == [row for row in recorded() if row[:3] == rows[0][:3]], (
            "results/zoo.csv has other cuts or outcomes; `make zoo` writes it anew"
        )


def test_the_table_has_every_family_and_most_networks_work():
    rows = recorded()
    networks = {tuple(row[:3]) for row in rows}  # and a family whose networks are all too large
    assert sorted(network[:2] for network in networks) == sorted(place[:2] for place in PLACES), (
        "results/zoo.csv has other families; `make zoo` writes it anew"
    )
    assert (
        len([network for _, _, network in networks if network]) >= 120
        and len({tuple(row[:3]) for row in rows if row[4] == "worked"}) >= 100
    )
