"""Folders of pictures, listed once."""

import numpy as np
import pytest

from advbn.base.errors import DataError
from advbn.images.decoding import Tree
from advbn.images.openmoji import write_png


def test_the_list_of_a_large_tree_is_kept_until_a_folder_changes(tmp_path, monkeypatch):
    import os

    from advbn.images import decoding

    monkeypatch.setattr(decoding, "LARGE_TREE", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, walks = tmp_path / "images", []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: walks.append(a) or walk(*a, **k))
    for c in "ab":
        for i in range(3):
            (root / c).mkdir(parents=True, exist_ok=True)
            write_png(root / c / f"{i}.png", np.zeros((8, 8, 3), np.uint8))

    def age(*folders):
        for folder in folders:
            os.utime(folder, (1e9, 1e9))

    first = decoding.Tree(root)
    assert (
        walks and not (tmp_path / "cache").exists()
    )  # what has just changed may change again within the clock's grain
    age(root, root / "a", root / "b")
    decoding.Tree(root)
    walks.clear()
    again = decoding.Tree(root)
    assert (
        walks == []
        and again.samples == first.samples
        and again.classes == first.classes
        and again.class_to_idx == first.class_to_idx
        and again.targets == first.targets
    )
    from advbn.images.folders import NamedFolder

    named = NamedFolder(
        root, ("c", "b", "a"), "the set"
    )  # the list of files is the same, the classes' numbers are this network's
    assert (
        walks == []
        and named.targets == [2, 2, 2, 1, 1, 1]
        and [p for p, _ in named.samples] == [p for p, _ in first.samples]
    )
    monkeypatch.chdir(tmp_path)
    assert decoding.Tree("images").samples[0][0] == "images/a/0.png" and walks == []
    write_png(root / "b/3.png", np.zeros((8, 8, 3), np.uint8))
    assert len(decoding.Tree(root)) == 7 and walks
    age(root / "b")
    decoding.Tree(root)
    (listing,) = (tmp_path / "cache/advbn").glob("*.jsonl")
    listing.write_bytes(listing.read_bytes()[:-10])  # cut short
    walks.clear()
    assert len(decoding.Tree(root)) == 7 and walks


def test_pictures_beside_the_folders_are_a_class_for_who_asks(tmp_path):
    from advbn.base.errors import DataError
    from advbn.images.decoding import Tree

    for name in ("b.png", "a.PNG", "dogs/0.png", "dogs/puppies/1.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "text").mkdir()
    tree = Tree(tmp_path, loose=True)
    assert tree.classes == ["", "dogs"] and tree.targets == [0, 0, 1, 1]
    assert [p.removeprefix(f"{tmp_path}/") for p, _ in tree.samples] == [
        "a.PNG",
        "b.png",
        "dogs/0.png",
        "dogs/puppies/1.png",
    ]
    with pytest.raises(DataError, match="Found no valid file for the classes text"):
        Tree(tmp_path)
    (tmp_path / "flat").mkdir()
    with pytest.raises(DataError, match="no class folder in .*expected is a folder for each class"):
        Tree(tmp_path / "flat")


def test_a_tree_has_the_order_of_torchvisions(tmp_path):
    from torchvision.datasets import ImageFolder

    from advbn.images.decoding import Tree

    for name in ("b/x/1.png", "b/2.png", "b-c/3.png", "b/x-y/4.JPG", "a/5.webp", "B/6.bmp", "b/.7.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    ours, theirs = Tree(tmp_path), ImageFolder(tmp_path)
    assert (ours.samples, ours.classes, ours.class_to_idx, ours.targets) == (
        theirs.samples,
        theirs.classes,
        theirs.class_to_idx,
        theirs.targets,
    )


def test_a_set_of_domains_is_remarked_upon(tmp_path, run):
    from advbn.images.decoding import inspect_folder

    for domain in ("photo", "sketch"):
        for name in ("dog", "cat"):
            (tmp_path / domain / name).mkdir(parents=True)
            write_png(tmp_path / domain / name / "0.png", np.full((8, 8, 3), len(domain + name), np.uint8))
    (remark,) = inspect_folder(tmp_path)["remarks"]
    assert "looks like a set of domains: photo, sketch" in remark and f"{tmp_path}/photo" in remark
    assert inspect_folder(tmp_path / "photo")["remarks"] == []
    status, said, _ = run("check", tmp_path)
    assert status == 0 and remark in said


def test_hidden_folders_are_no_classes_and_one_picture_in_two_classes_is_told(tmp_path, run):
    for name in ("cat", "dog", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
    for number in range(4):
        shade = np.full((16, 16, 3), 40 * number, np.uint8)
        write_png(tmp_path / ("cat", "dog")[number % 2] / f"{number}.png", shade)
    assert Tree(tmp_path).classes == ["cat", "dog"] and run("check", tmp_path)[0] == 0
    write_png(tmp_path / "dog" / "copy.png", np.zeros((16, 16, 3), np.uint8))
    status, said, _ = run("check", tmp_path)
    both = f"{tmp_path / 'cat/0.png'} and {tmp_path / 'dog/copy.png'}"
    assert status == 1 and "1 image in two classes:" in said and both in said
    (tmp_path / "zebra").mkdir()
    with pytest.raises(DataError, match="classes zebra; .*a folder that is no class has to go"):
        Tree(tmp_path)
