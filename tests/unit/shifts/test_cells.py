"""Every cell of the table, kept and read again."""

import resource

import pytest
import torch
import torchvision
from conftest import ROOT
from miniature_imagenet import folder_data
from PIL import Image
from torchvision.transforms.v2.functional import center_crop

from advbn import CORRUPTIONS, AdvBN
from advbn.base.errors import DataError
from advbn.images.batches import read_images
from advbn.images.datasets import EmbeddedData
from advbn.shifts.cells import Painter, cells, meets, store_cells, stored_cells
from advbn.shifts.published import open_published, published_cells


def test_the_cells_are_all_there(root, autoencoder):
    data = EmbeddedData(root / "data")
    numbers = range(0, 1898, 38)
    images, drawn, painter = (
        data.images[numbers],
        data.line_art(numbers),
        Painter(autoencoder, AdvBN(steps=1)),
    )
    found = [(shift, cell) for shift, cell, _ in cells(images, numbers, line_art=drawn, painter=painter)]
    assert len(found) == 1 + 75 + 20 + 1 + 1 + 2
    assert [c for s, c in found if s == "corruptions"] == [
        f"{n}/{s}" for n in CORRUPTIONS for s in range(1, 6)
    ]


def test_a_disk_that_is_full_of_kept_cells_is_said_by_name(tmp_path, monkeypatch):
    images = read_images(ROOT / "data/openmoji")[range(20)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match=f"{tmp_path}/clean/clean.npz could not be written: "):
            store_cells([("clean", "clean", images)], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["settings.json"]
    store_cells([("clean", "clean", images)], tmp_path)
    ((_, _, kept),) = stored_cells(tmp_path, images.classes)
    assert torch.equal(kept.images, images.images)


def test_streamed_and_stored_images_are_prepared_as_the_paper_says(imagenet):
    data = folder_data(imagenet / "imagenet", 64, 72)
    seen = {
        name: image for indices, piece in data.pieces(0) for name, image in zip(piece.names, piece.images)
    }
    assert len(seen) == 6
    preset = torchvision.transforms.v2.Compose(
        [torchvision.transforms.v2.Resize(72, antialias=True), torchvision.transforms.v2.CenterCrop(64)]
    )
    for name, image in seen.items():
        expected = preset(
            torchvision.transforms.v2.functional.pil_to_tensor(
                Image.open(imagenet / "imagenet/val" / name).convert("RGB")
            )
        )
        assert torch.equal(image, expected)
    for (_, piece), (_, wide) in zip(
        data.pieces(0), data.pieces(0, wide=True)
    ):  # what adversarial images are made from, and cropped to
        assert (
            wide.names == piece.names
            and wide.images.shape[-2:] == (72, 72)
            and torch.equal(center_crop(wide.images, [64, 64]), piece.images)
        )
    sketches = list(published_cells(data, open_published(data, {"sketch": imagenet / "sketches"})))
    assert [(s, c, images.targets.sort().values.tolist()) for s, c, images in sketches] == [
        ("sketch", "ImageNet-Sketch", [0, 2])
    ]


def test_a_list_of_cells_with_other_columns(tmp_path):
    store_cells([], tmp_path)
    (tmp_path / "cells.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="cells.csv has the columns a, b; make it again with"):
        list(stored_cells(tmp_path, "ab"))


def test_each_cell_shows_its_share_and_each_image_meets_as_many_cells():
    numbers = torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:474]
    shown = torch.stack([meets(numbers, place, 0.2) for place in range(75)])
    assert shown.sum(0).min() >= 12 and shown.sum(0).max() <= 18
    assert 474 * 0.2 * 0.7 < shown.sum(1).min() and shown.sum(1).max() < 474 * 0.2 * 1.3
    severity = torch.arange(75) % 5  # no image meets mostly mild or mostly severe cells
    means = torch.stack([severity[row].double().mean() for row in shown.T])
    assert (means - 2).abs().max() < 0.5
    fewer = torch.stack([meets(numbers, place, 0.06) for place in range(75)])
    assert not (fewer & ~shown).any() and meets(numbers, 3, 1.0).all()


def test_a_share_of_the_images_looks_as_it_does_among_all():
    images, numbers = read_images(ROOT / "data/openmoji")[range(12)], torch.arange(40, 52)
    every = {(s, c): i for s, c, i in cells(images, numbers, ("corruptions",))}
    for shift, cell, part in cells(images, numbers, ("corruptions",), shares={"corruptions": 0.2}):
        places = [images.names.index(name) for name in part.names]
        assert 0 < len(places) < len(images)
        assert torch.equal(part.images, every[shift, cell].images[places])
        assert torch.equal(part.targets, images.targets[places])
