"""How much memory a training step takes at its peak."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..training.loop import finetuning_net
from .work import one_batch


class _Alive(TorchDispatchMode):
    """Bytes of the tensors that are alive, now and at the peak, of those it was shown and those made while it
    is on."""

    def __init__(self, tensors):
        super().__init__()
        self.known, self.now, self.peak = set(), 0, 0
        for tensor in tensors:
            self._see(tensor)

    def _see(self, tensor):
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor)
        return made


def peak_memory(
    options, network: str = "resnet18", batch: int = 16, size: int = 112, device: str = "cpu"
) -> int:
    """Bytes of all tensors at the peak of a training step: weights, momentum, images, activations, gradients.

    `options` are those of `finetuning_net`: `None` is the clean fine-tune of the head."""
    model, images, targets = one_batch(network, batch, size, device)
    net = finetuning_net(model, "layer1", options).to(device, memory_format=torch.channels_last)
    images, momentum = (
        images.contiguous(memory_format=torch.channels_last),
        [torch.zeros_like(p) for p in net.trainable_parameters()],
    )
    net.train()
    with _Alive([*net.parameters(), *net.buffers(), *momentum, images, targets]) as alive:
        net.losses(images, targets, backward=torch.Tensor.backward)
    return alive.peak
