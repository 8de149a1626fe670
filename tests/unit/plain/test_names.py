"""Names that commands are given, known before anything heavy is loaded."""

from functools import partial

import pytest
import safetensors.torch
import timm
import torch
import torchvision

from advbn.base.errors import ParameterError, WeightsError
from advbn.base.names import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    FILTERS,
    MADE_ALONE,
    RESTYLED,
    check_network,
    check_weights_word,
    chosen_corruptions,
    chosen_format,
    chosen_severities,
    chosen_styles,
    networks_of,
    weights_of,
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


def test_published_weights_are_found_there_too():
    for name in torchvision.models.list_models(torchvision.models):
        there = torchvision.models.get_model_weights(name).__members__
        assert {*there} == {*weights_of(f"torchvision/{name}")}, name
    for name in timm.list_models("*resnet*"):
        tags = {full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")}
        assert not weights_of(f"timm/{name}") or tags <= {*weights_of(f"timm/{name}")}, name
    assert weights_of("small_resnet") == weights_of("timm/resnet500") == ()


@pytest.mark.parametrize(
    "name, word, said",
    [
        ("resnet50", "IMAGENET1K_V3", "did you mean 'IMAGENET1K_V2'"),
        ("timm/resnet50", "a9_in1k", "no published weights 'a9_in1k'; there are a1_in1k, "),
    ],
)
def test_weights_that_are_not_published(name, word, said):
    with pytest.raises(ValueError, match=said):
        check_weights_word(name, word)


def test_what_begins_like_no_file_of_weights_and_what_does(tmp_path):
    weights, path = torch.nn.Linear(2, 2).state_dict(), tmp_path / "weights"
    for write in (
        torch.save,
        partial(torch.save, _use_new_zipfile_serialization=False),
        safetensors.torch.save_file,
    ):
        write(weights, path)
        check_weights_word("resnet50", str(path))
    path.write_text("class,share\n")
    with pytest.raises(WeightsError, match=r"no file of weights \(12 bytes\): neither torch.save nor"):
        check_weights_word("resnet50", str(path))


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
