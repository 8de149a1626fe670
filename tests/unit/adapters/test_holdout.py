"""A test split of one's own: near-duplicates on one side, about the share of each class, all of it listed."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from advbn.adapters.holdout import (
    divide,
    groups_of,
    hashes_of,
    hold_out,
    near_pairs,
    part_of,
    perceptual_hash,
)
from advbn.base.errors import DataError
from advbn.base.finetuning import Options
from advbn.evidence.figures import photographs
from advbn.images.batches import read_images, split_indices
from advbn.images.decoding import BadImages, Tree


PHOTOGRAPHS = photographs(240)[[0, 1, 3]]  # the other one is all texture, whose pieces are noise to the hash


def piece(number):
    "One of many pictures of 60 pixels that do not equal each other: a piece of a photograph."
    which, place = number % len(PHOTOGRAPHS), number // len(PHOTOGRAPHS)
    y, x = 60 * (place // 4), 60 * (place % 4)
    return Image.fromarray(PHOTOGRAPHS[which, :, y : y + 60, x : x + 60].permute(1, 2, 0).numpy())


def apart(one, other):
    return int((perceptual_hash(one) != perceptual_hash(other)).sum())


def test_a_photograph_and_its_copies_share_their_bits_and_others_do_not(tmp_path):
    pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in photographs(160)]
    assert len(pictures) > 3
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / "copy.jpg", quality=60)
        copies = (
            picture.resize((90, 90), Image.Resampling.BICUBIC),
            ImageEnhance.Brightness(picture).enhance(0.8),
            Image.open(tmp_path / "copy.jpg"),
        )
        assert max(apart(picture, copy) for copy in copies) <= 10
        assert 32 < min(apart(picture, other) for other in pictures[:number] + pictures[number + 1 :])


def test_pairs_are_those_of_a_comparison_one_by_one():
    bits = np.random.default_rng(0).integers(0, 2, (60, 256)).astype(bool)
    bits[7], bits[50] = bits[3] ^ (np.arange(256) < 9), bits[3] ^ (np.arange(256) >= 246)
    expected = [(i, j) for i in range(60) for j in range(i + 1, 60) if (bits[i] != bits[j]).sum() <= 19]
    assert (
        [tuple(pair) for pair in near_pairs(bits, most=19)] == sorted(expected) == [(3, 7), (3, 50), (7, 50)]
    )
    assert near_pairs(bits, bits[[50]], most=10).tolist() == [[3, 0], [50, 0]]
    assert np.bincount(groups_of(60, near_pairs(bits, most=10))).max() == 3  # a chain of two pairs


def test_without_groups_it_is_the_split_of_the_pipeline():
    images = read_images(ROOT / "data/openmoji")
    for seed in (0, 5):
        ours = hold_out(images.targets, images.names, np.arange(len(images)), seed)
        for one, other in zip(ours, split_indices(images.targets, images.names, seed)):
            assert torch.equal(one, other)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_groups_stay_together_and_no_class_gives_more_than_its_share(data):
    n = data.draw(st.integers(2, 60))
    targets = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    groups = np.array(data.draw(st.lists(st.integers(0, n), min_size=n, max_size=n)))
    share = data.draw(st.sampled_from([0.1, 0.25, 0.5]))
    train, test = hold_out(targets, [f"{i}.png" for i in range(n)], groups, 3, share)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(n))
    train, test = train.numpy(), test.numpy()
    assert not {*groups[train]} & {*groups[test]}
    held, counts = np.bincount(targets[test], minlength=4), np.bincount(targets, minlength=4)
    assert (held <= np.maximum(1, np.round(share * counts))).all() and (held[counts < 2] == 0).all()


@pytest.fixture
def folder(tmp_path):
    "Sixteen pictures in two classes; those of the first in two sizes, and one of them in both classes."
    for number in range(8):
        for name, picture in (("a", piece(number)), ("b", piece(number + 8))):
            (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "own" / name / f"{number}.png")
            if name == "a":
                picture.resize((100, 100)).save(tmp_path / "own" / name / f"{number}-large.jpg")
    piece(0).save(tmp_path / "own/b/0-too.png")
    return tmp_path / "own"


def test_copies_are_on_one_side_and_listed(folder):
    division = divide(folder, None, Options(held_out=0.25, workers=1))
    listed = division.listed.set_index("file")
    pairs = [listed.loc[[f"a/{i}.png", f"a/{i}-large.jpg"]] for i in range(8)]
    assert all(pair.alike.nunique() == 1 and pair.part.nunique() == 1 for pair in pairs)
    assert listed.loc["a/0.png", "alike"] == listed.loc["b/0-too.png", "alike"]
    assert listed[listed.part == "test"]["class"].value_counts().to_dict() == {"a": 4, "b": 2}
    assert division.remarks[0] == "17 pictures in 8 groups nearly equal each other"
    assert division.remarks[1].startswith("1 of these groups are in two classes, such as a/0")
    assert {*division.test.targets} == {0, 1} and len(division.train.samples) == 19


def test_beside_a_folder_of_tests_what_equals_a_test_is_not_trained_on(folder, tmp_path):
    (tmp_path / "other/b").mkdir(parents=True)
    piece(9).resize((50, 50)).save(tmp_path / "other/b/seen.png")
    piece(20).save(tmp_path / "other/b/new.png")
    division = divide(folder, tmp_path / "other", Options(workers=1))
    assert [target for _, target in division.test.samples] == [1, 1] and division.classes == ("a", "b")
    left = division.listed[division.listed.part == "left out"]
    assert left.file.tolist() == ["b/1.png"] and len(division.train.samples) == 24
    assert division.remarks[-1] == "1 training pictures nearly equal a test picture and are left out"
    (tmp_path / "other/c").mkdir()
    piece(21).save(tmp_path / "other/c/x.png")
    with pytest.raises(DataError, match="has the class 'c'; the network knows 2 classes"):
        divide(folder, tmp_path / "other", Options(workers=1))


def test_images_in_memory_are_divided_alike():
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 19)]
    division = divide(images, None, Options())
    assert len(division.train) + len(division.test) == 100 and not {*division.train.names} & {
        *division.test.names
    }


def test_what_cannot_be_read_is_named_or_left_out(folder):
    (folder / "b/broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="b/broken.png is no picture in a known format"):
        divide(folder, None, Options(workers=1))
    division = divide(folder, None, Options(workers=1, on_bad_image="skip"))
    assert list(division.bad.found) == [str(folder / "b/broken.png")] and len(division.listed) == 25


def test_one_class_is_too_few(tmp_path):
    (tmp_path / "one").mkdir()
    piece(3).save(tmp_path / "one/a.png")
    with pytest.raises(DataError, match="there is one class, 'one'"):
        divide(tmp_path, None, Options(workers=1))


def test_a_part_keeps_the_classes_of_its_tree(folder):
    tree, bits = hashes_of(Tree(folder), BadImages(), 1)
    part = part_of(tree, [20, 3])
    assert (
        len(bits) == 25
        and part.classes == tree.classes
        and part.targets == [tree.targets[20], tree.targets[3]]
    )
