"""`split` on networks drawn at random, of the pieces in which networks are hard to cut: the parts keep all
that `check_cut` asks for, or are refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from splitting_checks import assert_same, check_cut, check_network, complete_state, lived_in
from torch import nn

from advbn import DualBatchNorm2d, convert_dual_batchnorm, prepare
from advbn.networks.models import build_model

WIDTH = 4  # channels, of every piece's input and output


def conv(inputs=WIDTH, bias=True):
    return nn.Conv2d(inputs, WIDTH, 3, padding=1, bias=bias)


class ConvNormReLU(nn.Sequential):
    def __init__(self, in_place=False):
        super().__init__(conv(bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(in_place))


class Piece(nn.Module):
    "A convolution, and what a subclass makes of it."

    def __init__(self):
        super().__init__()
        self.conv = conv()


class Residual(Piece):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(WIDTH)

    def forward(self, x):
        return F.relu(x + self.norm(self.conv(x)))


class Concatenation(Piece):
    def __init__(self):
        super().__init__()
        self.join = conv(2 * WIDTH)

    def forward(self, x):
        return self.join(torch.cat([self.conv(x), F.max_pool2d(x, 3, 1, 1)], 1))


class OneConvolutionTwoNorms(Piece):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)

    def forward(self, x):
        return self.other(self.conv(self.one(self.conv(x)).relu()))


class Twice(nn.Module):
    "One block, called twice."

    def __init__(self):
        super().__init__()
        self.block = ConvNormReLU()

    def forward(self, x):
        return self.block(self.block(x))


class Alias(Piece):
    "A convolution and a batch norm of two names each."

    def __init__(self):
        super().__init__()
        self.norm, self.again = nn.BatchNorm2d(WIDTH), self.conv
        self.both = nn.Sequential(self.conv, self.norm)

    def forward(self, x):
        return F.relu(self.both(x))


class AdditionInPlace(Piece):
    "The old value is kept in a list, and is the new one."

    def forward(self, x):
        y = self.conv(x)
        kept = [y]
        y += x
        return y + kept[0]


class MultiplicationInPlace(Piece):
    "Through an index and as a statement."

    def forward(self, x):
        y = self.conv(x)
        first = y[:, :2]
        first *= 0.5
        y.mul_(2)
        return y - first.mean()


class ViewsInPlace(Piece):
    "What changes a view changes what it shows: a cast that has nothing to do, axes to and fro."

    def forward(self, x):
        y = self.conv(x)
        y.float().relu_()
        y.permute(0, 2, 3, 1).flatten(1, 2).sub_(0.1)
        return y.movedim(1, 3).contiguous().movedim(3, 1)


class RunningMean(nn.Module):
    "Buffers of its own, kept in train mode, and no children."

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, WIDTH, 1, 1))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.seen += 1
            self.mean.lerp_(x.detach().mean((0, 2, 3), keepdim=True), 0.5)
        return x - self.mean.clone()


class FixedScale(Piece):
    "A buffer of a module with children."

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.rand(1, WIDTH, 1, 1) + 0.5)

    def forward(self, x):
        return self.conv(x) * self.scale.sqrt()


class Gate(Piece):
    "A parameter of its own, functions, and sizes."

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH, 1, 1))

    def forward(self, x):
        n, c, h, w = x.shape
        gate = self.conv(x).reshape(n, c, h * w).mean(2).view(n, c, 1, 1).sigmoid()
        return x * gate * self.scale


class DroppedOut(Piece):
    "Dropout as a function."

    def forward(self, x):
        return F.dropout(self.conv(x), 0.3, self.training)


SIMPLE = [
    ConvNormReLU,
    lambda: ConvNormReLU(in_place=True),
    Residual,
    Concatenation,
    OneConvolutionTwoNorms,
    Twice,
    Alias,
    AdditionInPlace,
    MultiplicationInPlace,
    ViewsInPlace,
    RunningMean,
    FixedScale,
    Gate,
    DroppedOut,
    lambda: nn.Dropout(0.3),
    lambda: nn.ReLU(True),
    nn.Identity,
]


PIECES = st.recursive(
    st.sampled_from(SIMPLE).map(lambda make: lambda: make()),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(
        lambda makers: lambda: nn.Sequential(*(make() for make in makers))
    ),
    max_leaves=3,
)


NEW, USED = st.tuples(PIECES, st.integers(0, 9)), st.tuples(st.none(), st.integers(0, 9))


class Network(nn.Module):
    """Pieces on a graph: each takes the sum of the value before and an earlier one, and the output shows all
    values that no piece has taken.

    A piece that is `None` stands for the piece before it, once more."""

    def __init__(self, plan):
        super().__init__()
        self.enter, self.classify = conv(3), nn.Linear(WIDTH, 3)
        self.pieces = nn.ModuleList()
        self.earlier = [number % (place + 1) for place, (_, number) in enumerate(plan)]
        for make, _ in plan:
            self.pieces.append(make() if make else self.pieces[-1])

    def forward(self, x):
        values = [self.enter(x)]
        for piece, earlier in zip(self.pieces, self.earlier):
            values.append(piece(values[-1] if earlier == len(values) - 1 else values[-1] + values[earlier]))
        return self.classify(values[-1].mean((2, 3)))


def trains(model, x):
    """Does the network itself survive a backward pass? PyTorch refuses changes in place of what a gradient
    needs."""
    try:
        model(x).sum().backward()
    except RuntimeError:
        return False
    model.zero_grad()
    return True


PLANS = {
    "plan": st.lists(NEW, min_size=1, max_size=1).flatmap(
        lambda first: st.lists(NEW | USED, max_size=4).map(lambda rest: first + rest)
    ),
    "place": st.integers(0, 99),
    "seed": st.integers(0, 99),
}


def works_or_is_refused(plan, place, seed):
    torch.manual_seed(seed)
    model, x = Network(plan), torch.randn(3, 3, 6, 6)
    assume(trains(model, x))
    lived_in(model, x)
    paths = [path for path, _ in model.named_modules() if path]
    check_network(model, x)
    check_cut(model, paths[place % len(paths)], x, torch.tensor([0, 1, 2]))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(**PLANS)
def test_some_cuts_of_networks_work_or_are_refused(plan, place, seed):
    works_or_is_refused(plan, place, seed)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, derandomize=True)
@given(**PLANS)
def test_any_cut_of_any_network_works_or_is_refused(plan, place, seed):
    works_or_is_refused(plan, place, seed)


def network():
    torch.manual_seed(0)
    net = prepare(build_model("small_resnet", 9), "layer1", steps=3)
    sum(net(torch.randn(4, 3, 40, 40), torch.arange(4))).backward()  # there are gradients already
    return net


def test_dual_norms_are_compared_too():
    "The comparison above notices what it is there for."
    net = network().eval()
    before = complete_state(net)
    for change in (
        lambda: setattr(next(net.modules()), "extra", 1),
        lambda: next(net.head.parameters()).requires_grad_(False),
        lambda: net.head.train(),
        lambda: next(
            m for m in net.modules() if isinstance(m, DualBatchNorm2d)
        ).adversarial.running_mean.add_(1),
    ):
        change()
        with pytest.raises(AssertionError):
            assert_same(before, complete_state(net))
        before = complete_state(net)
    assert isinstance(convert_dual_batchnorm(nn.BatchNorm2d(2)), DualBatchNorm2d)
