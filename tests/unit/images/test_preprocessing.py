"""How a network wants its images."""

import pytest
from torch import nn

from advbn import prepare
from advbn.images.preprocessing import IMAGENET, Preprocessing, preprocessing_of, recorded, remember


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))],
)
def test_nothing_is_recorded_of_a_network_that_says_nothing(model):
    net = prepare(model, "1")
    assert net.preprocessing == IMAGENET and recorded(net.export()) is None
    model.preprocessing = nn.Identity()  # a module of somebody's, who means something else
    assert preprocessing_of(model) == IMAGENET and isinstance(remember(model).preprocessing, nn.Identity)


@pytest.mark.parametrize(
    "said",
    [
        {"size": -5},
        {"size": 2.5},
        {"size": "224"},
        {"resize": True},
        {"size": 64, "resize": 32},
        {"mean": (float("nan"), 0, 0)},
        {"std": (float("inf"), 1, 1)},
    ],
)
def test_sizes_are_whole_numbers_and_means_are_finite(said):
    with pytest.raises(
        ValueError,
        match=f"{'resize' if len(said) == 2 else next(iter(said))} is .*(allowed|cannot be larger)",
    ):
        Preprocessing(**said)
