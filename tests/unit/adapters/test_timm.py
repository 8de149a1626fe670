"""timm's own training loop with a prepared network."""

import pytest
import torch
from by_hand import IMAGES, OPTIONS, TARGETS
from torch import nn

from advbn import prepare


def test_timms_loop():
    timm = pytest.importorskip("timm")
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=9)
    net = prepare(model, after="layer1", **OPTIONS).train()
    optimizer, ema, loss_fn = (
        create_optimizer_v2(net.head, opt="adamw", lr=1e-3),
        ModelEmaV3(net, decay=0.5),
        LabelSmoothingCrossEntropy(),
    )
    for images, targets in zip(IMAGES.split(8), TARGETS.split(8)):
        sum(net.losses(images, targets, loss_fn)).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(net)
    for trained_ in (net, ema.module):
        robust = timm.create_model("resnet10t", num_classes=9)
        robust.load_state_dict(trained_.export("adversarial"))
        assert torch.isfinite(robust.eval()(IMAGES[:2])).all()
    assert isinstance(net.stem, nn.Module) and all(p.grad is None for p in net.stem.parameters())
