"""Sets of changed images on disk."""

import pytest
import torch
from PIL import Image

from advbn import AdvBN
from advbn.images.batches import read_images
from advbn.images.writing import make_set
from advbn.shifts.styles import adversarial


def test_a_set_on_disk_is_continued_and_complete(tmp_path, images, autoencoder):
    calls = []

    def make(batch, fail_at=None):
        calls.append(len(batch))
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return adversarial(autoencoder, batch.images, batch.targets, AdvBN(steps=1))

    with pytest.raises(KeyboardInterrupt):
        make_set(images, tmp_path / "set", lambda b: make(b, 3), {"steps": 1})
    assert not (tmp_path / "set").exists()
    assert make_set(images, tmp_path / "set", make, {"steps": 1}) == len(images) - 64
    assert make_set(images, tmp_path / "set", make, {"steps": 1}) == 0
    straight = tmp_path / "straight"
    make_set(images, straight, make, {"steps": 1})
    a, b = read_images(tmp_path / "set"), read_images(straight)
    assert a.names == b.names and torch.equal(a.images, b.images) and not list((tmp_path / "set").rglob(".*"))
    with pytest.raises(FileExistsError, match="made with other settings"):
        make_set(images, tmp_path / "set", make, {"steps": 2})
    next((tmp_path / "set").rglob("*.png")).unlink()
    with pytest.raises(FileExistsError, match="lacks 1 of 100"):
        make_set(images, tmp_path / "set", make, {"steps": 1})


def test_names_that_differ_only_in_their_suffix_are_refused(tmp_path):
    tree(tmp_path / "source", "c/a.jpg", "c/a.png", "c/b.png")
    with pytest.raises(ValueError, match="c/a.jpg and c/a.png would both be written as c/a.png"):
        make_set(read_images(tmp_path / "source"), tmp_path / "made", lambda b: b.images, {})
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def tree(root, *files):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
