"""Synchronised norms in one process."""

import pytest
import torch
from conftest import ROOT

from advbn.images.batches import read_images
from advbn.networks.models import build_model
from advbn.training.distributed import synchronized
from advbn.training.loop import finetuning_net, pretraining_net


def batch(n=12):
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 1898 // n)]
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 40, 40, generator=generator, dtype=torch.float64), images.targets[:n]


def test_norms_that_act_alone_are_ordinary_ones():
    net = pretraining_net(build_model("small_resnet", 9)).train().double()
    images, _ = batch(8)
    other = pretraining_net(build_model("small_resnet", 9)).train().double()
    other.load_state_dict(net.state_dict())
    other.head = synchronized(other.head, "cpu")
    assert torch.equal(net(images), other(images)) and all(
        torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items()
    )


def model(name="small_resnet"):
    torch.manual_seed(0)
    return build_model(name, 9)


@pytest.mark.parametrize("name", ["small_resnet", "timm/efficientnet_b0"])
@pytest.mark.parametrize("layer", [None, {"steps": 1}])
def test_synchronised_heads_compute_the_same(name, layer):
    net = finetuning_net(model(name), "layer1" if name == "small_resnet" else "blocks.1", layer).eval()
    x = torch.randn(2, 3, 64, 64)
    before, keys = net(x), net.state_dict().keys()
    net.head = synchronized(net.head)
    assert torch.allclose(net.eval()(x), before, atol=1e-6) and net.state_dict().keys() == keys
