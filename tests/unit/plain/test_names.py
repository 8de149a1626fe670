"""Names that commands are given, known before anything heavy is loaded."""

import pytest
import timm
import torchvision

from advbn.base.errors import ParameterError
from advbn.base.names import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    FILTERS,
    MADE_ALONE,
    RESTYLED,
    check_network,
    chosen_corruptions,
    chosen_format,
    chosen_severities,
    chosen_styles,
    networks_of,
)
from advbn.networks.models import NETWORKS
from advbn.shifts.cells import made_alone
from advbn.shifts.corruptions import ENTRIES


def test_the_names_are_those_of_what_there_is():
    assert {*ENTRIES} == {*CORRUPTIONS, *EXTRA_CORRUPTIONS} and len(CORRUPTIONS) == 15
    assert [n for n in ENTRIES if n in CORRUPTIONS] == list(CORRUPTIONS)  # in the order of the rooms
    assert made_alone()[: len(MADE_ALONE)] == MADE_ALONE
    assert len(RESTYLED) == len(FILTERS) + 4


def test_networks_are_found_in_the_sources_of_their_libraries():
    assert {*torchvision.models.list_models(torchvision.models)} == {*networks_of("torchvision")}
    assert {*timm.list_models()} <= {*networks_of("timm")}
    assert {*networks_of("")} <= {*NETWORKS} and "small_resnet" in networks_of("")


@pytest.mark.parametrize(
    "name", ["resnet50", "torchvision/resnet50", "small_resnet", "timm/resnet18.a1_in1k"]
)
def test_a_network_that_there_is(name):
    check_network(name)


@pytest.mark.parametrize("name", ["hub:somebody/something", "somebody/something", "tests"])
def test_what_may_be_a_network_elsewhere_is_left_alone(name, root, monkeypatch):
    monkeypatch.chdir(root)
    check_network(name)


@pytest.mark.parametrize(
    "name, near",
    [
        ("resnet5", "'torchvision/resnet50'"),
        ("timm/resnett18", "'timm/resnet18'"),
        ("smal_resnet", "'small_resnet'"),
    ],
)
def test_a_misspelt_network_is_answered_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"no network '{name}'; the nearest are .*{near}"):
        check_network(name)


@pytest.mark.parametrize(
    "words, found",
    [("3", (3,)), ("1-5", (1, 2, 3, 4, 5)), ("1,3", (1, 3)), ("5, 1-2,1", (5, 1, 2))],
)
def test_severities(words, found):
    assert chosen_severities(words) == found


@pytest.mark.parametrize("words", ["9", "0", "", "3-1", "1-9", "two", "1.0", "1;2"])
def test_wrong_severities(words):
    with pytest.raises(ParameterError, match="--severity has .*; allowed are some of 1,2,3,4,5"):
        chosen_severities(words)


def test_lists_of_names():
    assert chosen_corruptions("fog, frost,fog") == ("fog", "frost")
    assert chosen_corruptions("all") == CORRUPTIONS and chosen_corruptions("extra") == EXTRA_CORRUPTIONS
    assert chosen_corruptions("saturate,all") == ("saturate", *CORRUPTIONS)
    assert chosen_styles("filters,edges") == (*(name.lstrip("_") for name in FILTERS), "edges")
    for words, near in (("fogg", "fog"), ("fog,snwo", "snow"), (" ,", "is empty")):
        with pytest.raises(ParameterError, match=near):
            chosen_corruptions(words)
    with pytest.raises(ParameterError, match="--format is 'jpg'; allowed are source, png, jpeg, webp"):
        chosen_format("jpg")
