"""The views: an image under factors, robustness in charts, a picture's likeliest classes."""

import io

import pytest
import torch
from PIL import Image

from advbn.base.config import load_params
from advbn.widgets import GROUPS, RobustnessView, StyleView, classify


@pytest.fixture(scope="module")
def view(images, autoencoder):
    return StyleView(images, autoencoder)


@pytest.fixture(scope="module")
def robustness():
    return RobustnessView(load_params())


def size_of(png):
    return Image.open(io.BytesIO(png)).size


@pytest.mark.parametrize(
    "image", [pytest.param(i, marks=[] if i in (0, 3) else pytest.mark.slow) for i in range(8)]
)
def test_the_style_view_is_a_picture_for_every_image_and_strength(view, image):
    assert size_of(view.draw(image=image, eps=0.1 * image)) == (760, 288)


def test_without_strength_the_image_is_only_decoded(view):
    reconstructed, adversarial = view.restyled(3, view.factors(3, 0.0, 6, GROUPS[0]))
    assert torch.equal(reconstructed, adversarial)


@pytest.mark.parametrize("group", GROUPS)
def test_only_the_channels_of_the_group_move(view, group):
    moved = (view.factors(3, 1.1, 6, group) != 1).any(0)
    parts = [part.any().item() for part in moved.tensor_split(4)]
    wanted = [group in (GROUPS[0], name) for name in GROUPS[1:]]
    assert len(moved) == 32 and parts == wanted


def test_charts_of_robustness_show_every_network(robustness):
    names = list(robustness.networks)
    assert "AdvBN, adversarial" in names and "fog" in robustness.corruptions()
    for png in (robustness.by_shift(names), robustness.by_severity(names, "fog")):
        assert min(size_of(png)) > 100
    with pytest.raises(ValueError, match="no network 'x'; there are "):
        robustness.chosen(["x"])


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_pictures_likeliest_classes_come_with_probabilities(root, images, autoencoder, as_bytes):
    path = root / "data/openmoji" / images.names[3]
    table = classify(
        autoencoder.classifier, path.read_bytes() if as_bytes else path, images.classes, 40, None
    )
    assert list(table.columns) == ["class", "probability, %"] and len(table) == 3
    assert set(table["class"]) <= set(images.classes) and table["probability, %"].is_monotonic_decreasing
