"""The embedded images: drawn alike each time, known by their fingerprint, nothing of others removed."""

import numpy as np
import pytest
from PIL import Image

from advbn.base.errors import DataError
from advbn.images.openmoji import build_openmoji, fingerprint, write_png


def test_two_builds_are_the_same_bytes_and_a_wrong_pin_stops(tmp_path):
    a, b = build_openmoji(tmp_path / "a", limit=3), build_openmoji(tmp_path / "b", limit=3)
    assert a == b and a["nfiles"] == 2 * 27 + 1
    build_openmoji(tmp_path / "c", pinned=a["md5"], limit=3)
    with pytest.raises(DataError, match="pins 0123.dir.*constraints.txt"):
        build_openmoji(tmp_path / "d", pinned="0123.dir", limit=3)
    assert not (tmp_path / "d").exists()


def test_a_link_in_the_place_of_unfinished_images_is_left(tmp_path):
    (tmp_path / "elsewhere/openmoji").mkdir(parents=True)
    (tmp_path / "photos.partial").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="photos.partial is a link"):
        build_openmoji(tmp_path / "photos", limit=1)
    assert (tmp_path / "elsewhere/openmoji").exists()


def test_a_changed_image_is_noticed(root, tmp_path):
    build_openmoji(tmp_path / "data", limit=1)
    before = fingerprint(tmp_path / "data")
    image = next((tmp_path / "data").rglob("*.png"))
    write_png(image, np.zeros((40, 40, 3), np.uint8))
    assert fingerprint(tmp_path / "data") != before


@pytest.mark.parametrize("shape", [(1, 1, 3), (40, 40, 3), (200, 300, 3)])
def test_png_round_trip(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_png(tmp_path / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
