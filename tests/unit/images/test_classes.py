"""Which output of a network is meant by a folder's name."""

import pytest
import torchvision
from timm.data import ImageNetInfo

from advbn.images.classes import (
    class_names,
    imagenet_classes,
    imagenet_ids,
    imagenet_number,
    in_imagenet,
    matched,
)
from advbn.base.errors import DataError


def test_the_list_of_the_package_is_the_libraries():
    wnids, names = zip(*imagenet_classes())
    assert list(wnids) == ImageNetInfo().label_names() == list(imagenet_ids())
    assert list(names) == torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    assert in_imagenet(wnids) == in_imagenet(names) == list(range(1000))


@pytest.mark.parametrize(
    "name, number",
    [
        ("n01440764", 0),
        ("n01440764_tench", 0),
        ("tench", 0),
        ("Great_White-Shark", 2),
        ("crane bird", 134),
        ("Cardigan", 264),
        ("cardigan", 474),
        ("crane", 517),
        ("jack-o'-lantern", 607),
        ("trout", None),
        ("n014407640", None),
        ("n00000000", None),
    ],
)
def test_a_class_of_imagenet_has_a_number_however_it_is_written(name, number):
    assert imagenet_number(name) == number


def test_names_of_which_one_is_not_imagenets_are_not():
    assert in_imagenet(["tench", "trout"]) is None and in_imagenet([]) is None
    assert in_imagenet(["tench", "n01440764"]) is None  # one class twice


def test_a_thousand_names_are_not_taken_in_the_order_of_the_alphabet():
    names = sorted(one.name for one in imagenet_classes())
    numbers, imagenet = matched(names, 1000)
    assert imagenet and [imagenet_classes()[n].name for n in numbers] == names != [
        n for _, n in imagenet_classes()
    ]


def test_a_list_is_matched_by_name_or_as_imagenets():
    assert matched(("b", "c"), 3, ("c", "a", "b")) == ([2, 0], False)
    wnids = class_names("any", "imagenet")
    assert matched(("goldfish", "n01440764_tench"), 1000, wnids) == ([1, 0], True)
    assert matched(("goldfish", "tench"), 2, ("n01440764", "n01443537")) == ([1, 0], False)
    assert matched(None, 1000, wnids) == (list(range(1000)), True) and matched(None, 4) == (
        [0, 1, 2, 3],
        False,
    )
    assert matched([str(i) for i in range(1000)], 1000) == (list(range(1000)), False)


@pytest.mark.parametrize(
    "own, outputs, listed, said",
    [
        (
            ("a", "b"),
            3,
            None,
            ["photos has 2 classes, and the network tells 3 apart", "--classes FILE"],
        ),
        (("tench", "trout"), 1000, None, ["of which 1 are ImageNet's and 'trout' is not"]),
        (("a", "bb"), 2, ("a", "b"), ["has the class 'bb'; the network knows 2 classes, such as 'b'"]),
        (("a", "b"), 3, ("a", "b"), ["2 classes are listed, and the network tells 3 apart"]),
    ],
)
def test_classes_that_are_not_the_networks_are_told_with_what_helps(own, outputs, listed, said):
    with pytest.raises(DataError) as error:
        matched(own, outputs, listed, "photos")
    assert all(words in str(error.value) for words in said), error.value


def test_a_list_that_is_none_is_refused(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    for listed, said in ((tmp_path / "list.txt", "no text in UTF-8"), (tmp_path, "is a folder")):
        with pytest.raises(DataError, match=said):
            class_names(tmp_path, listed)
