"""What is timed: a batch, a training step as `fit` makes it, photographs."""

import torch

from ..networks.models import build_model
from ..shifts.styles import style_images
from .timing import SEED


def one_batch(network: str, batch: int, size: int, device: str) -> tuple:
    "A torchvision network for a hundred classes, `batch` random images of `size` pixels, their classes."
    torch.manual_seed(SEED)
    model = build_model(f"torchvision/{network}", 100).to(device)
    return (
        model,
        torch.randn(batch, 3, size, size, device=device),
        torch.randint(100, (batch,), device=device),
    )


def stepper(net, images, targets, precision="no", lr=0.01):
    "A training step of `net` on one batch, as `fit` makes it: a function that returns both losses."
    optimizer = torch.optim.SGD(net.trainable_parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    device = images.device.type
    net.train()

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            clean, adversarial = net.losses(images, targets, backward=torch.Tensor.backward)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return clean.item(), adversarial.item()

    return step


def photographs(batch: int, size: int) -> torch.Tensor:
    "So many photographs, uint8 `[batch, 3, size, size]`; the few that there are come again."
    images = style_images(size)
    return images.repeat(batch // len(images) + 1, 1, 1, 1)[:batch]
