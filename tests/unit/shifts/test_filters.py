"""Instagram's filters and edges."""

import torch

from advbn.images.batches import read_images
from advbn.shifts.filters import FILTERS, edges, instagram


def test_every_filter_changes_an_image_and_keeps_its_form(root):
    images = read_images(root / "data/openmoji").images[:2]
    for name in FILTERS:
        out = instagram(images, name)
        assert out.shape == images.shape and out.dtype == torch.uint8 and not torch.equal(out, images)


def test_edges_are_dark_where_the_image_changes():
    image = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    image[0, :, :, 16:] = 200
    drawn = edges(image)
    assert drawn.shape == image.shape and drawn.dtype == torch.uint8
    assert (
        (drawn[1] == 255).all()
        and (drawn[0, :, :, :15] == 255).all()
        and (drawn[0, :, 1:-1, 15:17] == 0).all()
    )
    assert torch.equal(drawn[0, 0], drawn[0, 2]) and torch.equal(
        edges(image.flip(3))[0, 0, :, :], drawn[0, 0].flip(1)
    )
