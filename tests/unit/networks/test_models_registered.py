"Networks are registered by name, from this package and from outside of it."

import pytest
import torch
from torch import nn

from advbn.images.batches import Share
from advbn.networks import models
from advbn.networks.models import build_model, check_weights, register_network, wanted_by


@pytest.fixture
def toy(monkeypatch):
    "A network that is registered for one test."
    monkeypatch.setattr(models, "NETWORKS", dict(models.NETWORKS))
    register_network("toy_net", lambda classes: nn.Sequential(nn.Flatten(), nn.Linear(12, classes)))


def test_a_network_from_outside_is_one_entry(toy, tmp_path):
    assert build_model("toy_net", 5)(torch.zeros(1, 3, 2, 2)).shape == (1, 5)
    assert wanted_by("toy_net") == models.IMAGENET
    with pytest.raises(ValueError, match="no network 'toi_net'; the nearest are 'toy_net'"):
        build_model("toi_net", 5)
    with pytest.raises(ValueError, match="network 'toy_net' has no published weights; weights is 'DEFAULT'"):
        check_weights("toy_net", 5, "DEFAULT")
    with pytest.raises(ValueError, match=r"'efficientnet_lite0', 'toy_net' \(timm"):
        build_model("qqqq", 5)


def test_a_network_of_its_own_takes_a_new_head(toy, tmp_path):
    torch.save(build_model("toy_net", 5).state_dict(), tmp_path / "five.pt")
    assert build_model("toy_net", 7, str(tmp_path / "five.pt"), head="new")[1].out_features == 7


@pytest.mark.parametrize("name", ["small_vgg", "torchvision/mine", "timm/mine"])
def test_a_name_that_is_taken_or_somebody_elses_is_refused(name):
    with pytest.raises(ValueError, match=f"name is '{name}'; allowed is a new one without '/'"):
        register_network(name, nn.Linear)


def test_shares_together_are_everything_once():
    assert sorted(i for rank in range(3) for i in Share(rank, 3).of(list(range(10)))) == list(range(10))
    assert Share().of([1, 2]) == [1, 2]
