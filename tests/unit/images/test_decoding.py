"""Folders of pictures, listed once."""

import numpy as np

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
