"""Networks as somebody may have written them, and what must be as it was."""

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    "A stem, a block that a case gives, and a classifier; `step` says how the block is used."

    def __init__(self, block, step=lambda self, x: self.block(x), width=4, **further):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.block, self.step = block, step
        for name, module in further.items():
            setattr(self, name, module)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        return self.fc(self.step(self, x).mean((2, 3)))


def used(model, steps=5):
    "The model after a few batches, so that its running statistics are no longer 0 and 1."
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(steps):
            model.train()(3 * torch.randn(8, 3, 12, 12) + 1)
            for m in model.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.weight.add_(0.3 * torch.randn_like(m.weight))
    return model.eval()


def snapshot(model):
    "All that must be as it was: values, flags, hooks, and the names of plain attributes."
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [sorted(vars(m)) for m in model.modules()],
        [len(m._forward_hooks) for m in model.modules()],
    )


def same(one, other):
    return one[1:] == other[1:] and all(torch.equal(value, other[0][name]) for name, value in one[0].items())


IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def conv_bn(width=4):
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


def norm_per_use(self, x):
    return self.first(self.block(x)) + self.second(self.block(x))


def weighted(model):
    torch.nn.utils.parametrizations.weight_norm(model.block[0])
    return model


def scaled_output(model):
    model.block[1].register_forward_hook(lambda m, inputs, out: 2 * out)
    return model


def own_forward(model):
    model.block[1].forward = lambda x: 3 * x
    return model


class OptionalLabels(Net):
    def forward(self, x, labels=None):
        logits = super().forward(x)
        return logits if labels is None else F.cross_entropy(logits, labels)


class ReadsWeights(Net):
    "A convolution whose weights are used a second time, by hand."

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        return self.fc((self.block(x) + F.conv2d(x, self.block[0].weight, padding=1)).mean((2, 3)))


def in_a_list(self, x):
    outs = [x]
    y = self.block(x)
    x += y
    outs.append(x)
    return outs[0] + 2 * outs[1]


EVALUATED = {
    "a norm for each use of a convolution": lambda: Net(
        nn.Conv2d(4, 4, 1), norm_per_use, first=nn.BatchNorm2d(4), second=nn.BatchNorm2d(4)
    ),
    "optional labels": lambda: OptionalLabels(conv_bn()),
    "a hook": lambda: scaled_output(Net(conv_bn())),
    "a forward of its own": lambda: own_forward(Net(conv_bn())),
    "weight norm": lambda: weighted(Net(conv_bn())),
    "a list of what is changed in place": lambda: Net(conv_bn(), in_a_list),
    "weights read by hand": lambda: ReadsWeights(conv_bn()),
    "sync batch norm": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(Net(conv_bn())),
    "half a network": lambda: Net(conv_bn()).conv,
    "a batch norm of its own class": lambda: Net(nn.Sequential(nn.Conv2d(4, 4, 1), Shifted(4))),
    "volumes": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 1)), nn.Conv3d(3, 4, 1), nn.Flatten(1, 2), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    ),
}


class Shifted(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


class Aliased(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.mid, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.pair, self.classifier = nn.Sequential(self.mid, self.norm), self.fc

    def forward(self, x):
        return self.classifier(F.relu(self.pair(F.relu(self.bn(self.conv(x))))).mean((2, 3)))


def one_step(net, images=IMAGES, targets=torch.arange(4)):
    net.train()
    optimizer = torch.optim.SGD(net.trainable_parameters(), lr=0.5)
    sum(net.losses(images, targets)).backward()
    optimizer.step()
    return net.eval()
