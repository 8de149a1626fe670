"""Losses and gradients of a prepared network, whole and sharded by `fully_shard`, in two CPU processes; run
by torchrun, prints a line of JSON."""

import copy
import json
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor

from advbn import prepare
from advbn.networks.models import build_model

WRAPPERS = {
    "whole": lambda net: net,
    "sharded": lambda net: fully_shard(net, mesh=init_device_mesh("cpu", (2,))),
    "block": lambda net: fully_shard(net.head.layer2),
    "flat": lambda net: FullyShardedDataParallel(net, use_orig_params=True, device_id=torch.device("cpu")),
}


def main(kind):
    torch.manual_seed(0)
    model = build_model("small_resnet", 5)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-1, 1)
            m.running_var.uniform_(0.5, 2)
    net = copy.deepcopy(prepare(model, "layer1", steps=3).train())
    images, targets, seen = torch.randn(4, 3, 16, 16), torch.arange(4), []

    def loss_fn(logits, labels):
        seen.append(F.cross_entropy(logits, labels))
        return seen[-1]

    sum(WRAPPERS[kind](net)(images, targets, loss_fn)).backward()
    gradients = [
        p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in net.trainable_parameters()
    ]
    if dist.get_rank() == 0:
        print(
            json.dumps(
                {"losses": [loss.item() for loss in seen], "gradients": [g.norm().item() for g in gradients]}
            )
        )


dist.init_process_group("gloo")
try:
    main(sys.argv[1])
finally:
    dist.destroy_process_group()
