"""A network, some images, and training written as a plain loop, with which the adapters are compared."""

import torch

from advbn import prepare
from advbn.networks.models import build_model

IMAGES, TARGETS = torch.randn(24, 3, 40, 40, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 9


OPTIONS = {"eps": 1.1, "steps": 2}


def plain(name="small_resnet"):
    torch.manual_seed(0)
    return build_model(name, 9)


def by_hand(optimizer_of, batch=8, skip=None):
    "The same three steps without an adapter, or those but the one at `skip`."
    net = prepare(plain(), "layer1", **OPTIONS).train()
    optimizer = optimizer_of(net)
    for i, (images, targets) in enumerate(zip(IMAGES.split(batch), TARGETS.split(batch))):
        if i == skip:
            continue
        optimizer.zero_grad()
        sum(net.losses(images, targets)).backward()
        optimizer.step()
    return net


def alike(one, other):
    return one.keys() == other.keys() and all(
        torch.allclose(v.float(), other[k].float(), atol=1e-5) for k, v in one.items()
    )


def sgd_of(net):
    return torch.optim.SGD(net.trainable_parameters(), lr=0.05)
