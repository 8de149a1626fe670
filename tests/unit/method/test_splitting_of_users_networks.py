"""Splitting of networks that draw, cache, hook or write in place."""

import copy
import pickle
import random
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from users_networks import IMAGES, Net, conv_bn, same, snapshot, used

from advbn import prepare, split

# ---- random draws and values of the host


def coin(self, x):
    return x if self.training and torch.rand(1).item() < 0.5 else self.block(x)


def noise(self, x):
    return self.block(x) + (torch.randn(4, 1, 1) if self.training else 0)


def python_coin(self, x):
    return x if random.random() < 0.5 else self.block(x)


def numpy_noise(self, x):
    return self.block(x) * float(np.random.rand())


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(4, 4, 1), 0

    def forward(self, x):
        self.calls += 1
        return self.conv(x) * (0.5 if self.calls < 100 else 1.0)


class Coin(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    forward = lambda self, x: x if torch.rand(1).item() < 0.5 else self.conv(x)  # noqa: E731


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Net(conv_bn(), coin), "draws random numbers"),
        (lambda: Net(conv_bn(), noise), "draws random numbers"),
        (lambda: Net(conv_bn(), python_coin), "draws random numbers"),
        (lambda: Net(conv_bn(), numpy_noise), "draws random numbers"),
        (lambda: Net(nn.Sequential(Coin(), nn.ReLU())), "'block.0'.*draws random numbers"),
        (lambda: Net(Counting()), "'block.calls'"),
    ],
    ids=["coin", "noise", "python", "numpy", "in a module", "counter"],
)
def test_what_a_trace_would_freeze_is_refused_by_name(make, words):
    model = make()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"{words}.*AdvBNNet"):
        split(model, "bn")
    assert same(snapshot(model), before)
    assert (
        torch.equal(states[0], torch.get_rng_state())
        and states[1] == random.getstate()
        and states[2] == np.random.get_state()[1].tolist()
    )


@pytest.mark.parametrize("where", ["block", "block.0", ""])
def test_hooks_that_a_trace_would_swallow_are_refused(where):
    model, seen = Net(nn.Sequential(conv_bn())), []
    model.get_submodule(where).register_forward_hook(lambda m, inputs, out: seen.append(type(out)))
    with pytest.raises(ValueError, match="hook.*AdvBNNet"):
        split(model, "bn")
    assert seen == []


def test_hooks_of_single_layers_go_on():
    model, seen = Net(conv_bn()), Counter()
    model.block[0].register_forward_hook(lambda m, inputs, out: seen.update(["conv"]))
    stem, head = split(model.eval(), "bn")
    head(stem(IMAGES))
    assert seen == {"conv": 1}


# ---- buffers


class HandNorm(nn.Module):
    "A batch norm written by hand."

    def __init__(self, width):
        super().__init__()
        self.register_buffer("running_mean", torch.ones(width))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.seen += 1
            self.running_mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3)))
        return x - self.running_mean[:, None, None]


def test_a_norm_written_by_hand_keeps_its_statistics_and_the_model_is_left_alone():
    torch.manual_seed(0)
    model = Net(nn.Sequential(nn.Conv2d(4, 4, 1), HandNorm(4))).train()
    before = snapshot(model)
    stem, head = split(model, "bn")
    assert same(snapshot(model), before)
    twin = copy.deepcopy(model)
    assert torch.equal(head.train()(stem.train()(IMAGES)), twin(IMAGES))
    assert torch.equal(model.block[1].running_mean, twin.block[1].running_mean) and model.block[1].seen == 1


def test_frozen_batch_norms_move_with_their_part():
    model = torchvision.models.resnet18(num_classes=5, norm_layer=torchvision.ops.FrozenBatchNorm2d).eval()
    parts = split(model, "layer1")
    for part in parts:
        assert not [name for name in vars(part) if name.startswith("_tensor")]
        part = copy.deepcopy(part).to("meta")
        part(
            torch.empty(
                2, 3 if part.state_dict().get("conv1.weight") is not None else 64, 32, 32, device="meta"
            )
        )
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(parts[1](parts[0](images)), model(images))


class Positions(nn.Module):
    "What is computed from buffers alone, and a constant made on the way."

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]), persistent=False)

    def forward(self, x):
        return self.conv(x) * (self.scale.sqrt() + 1)[:, None, None] + torch.arange(4.0)[:, None, None]


def test_what_is_computed_from_buffers_follows_them():
    model = Net(Positions()).eval()
    stem, head = split(model, "bn")
    assert torch.equal(head(stem(IMAGES)), model(IMAGES))
    assert head.state_dict().keys() <= model.state_dict().keys()
    model.block.scale.mul_(3)
    assert torch.equal(head(stem(IMAGES)), model(IMAGES))
    assert torch.equal(pickle.loads(pickle.dumps(head))(stem(IMAGES)), model(IMAGES))
    copy.deepcopy(head).to("meta")(torch.empty(2, 4, 6, 6, device="meta"))


def test_a_buffer_that_is_changed_among_other_layers_is_refused():
    class Moving(Positions):
        def forward(self, x):
            self.scale.mul_(0.9)
            return super().forward(x)

    model = Net(Moving())
    before = snapshot(model)
    with pytest.raises(ValueError, match="'block.scale'.*in place.*AdvBNNet"):
        split(model, "bn")
    assert same(snapshot(model), before)


# ---- arithmetic in place


def plus(self, x):
    outs = [x]
    x += self.block(x)
    outs.append(x)
    return torch.cat(outs, 1)[:, :4]


def minus(self, x):
    old = x
    x -= self.block(x)
    return x * old


def times(self, x):
    old = x
    x *= self.block(x)
    x /= 2
    return x + old


def sizes(self, x):
    height = width = x.shape[2]
    height += 1
    return F.pad(self.block(x), (0, height - width, 0, 0))


def through_a_view(self, x):
    y = self.block[0](x)
    y.float().relu_()
    y.movedim(1, 3).mul_(2)
    y.T.add_(1)
    y.swapaxes(1, 2)[:, :1].zero_()
    return y


@pytest.mark.parametrize("step", [plus, minus, times, sizes, through_a_view], ids=lambda f: f.__name__)
@pytest.mark.parametrize("after", ["bn", "conv", "block.0"])
@pytest.mark.parametrize("training", [True, False])
def test_arithmetic_in_place_stays_in_place(step, after, training):
    torch.manual_seed(0)
    model = Net(conv_bn(), step).train(training)
    try:
        stem, head = split(model, after)
    except ValueError as refused:
        assert "crosses this cut" in str(refused) or "does not depend" in str(refused)
        assert after == "block.0"
        return
    twin, features = copy.deepcopy(model), stem(IMAGES).detach()
    before = features.clone()
    assert torch.equal(head(features), twin(IMAGES)) and torch.equal(features, before)


def test_every_view_of_torch_is_known():
    "By the schemas of its operators: what returns its input's memory without changing it."
    from advbn.method.tracing import VIEWS

    views = {
        s.name.removeprefix("aten::")
        for s in torch._C._jit_get_all_schemas()
        if s.name.startswith("aten::")
        and s.arguments
        and s.returns
        and s.returns[0].alias_info
        and not s.returns[0].alias_info.is_write
        and s.arguments[0].alias_info
        and not s.arguments[0].alias_info.is_write
    }
    methods = {name for name in views if hasattr(torch.Tensor, name) and not name.startswith("_")}
    assert methods - VIEWS == set() and len(methods) > 30


# ---- what is traced is a copy


def test_a_second_split_of_a_network_that_caches():
    model = timm.create_model("levit_128s", num_classes=5).eval()
    before = snapshot(model)
    for _ in range(2):
        with torch.no_grad():
            stem, head = split(model, "stem.conv1")
    assert same(snapshot(model), before)
    assert not any(
        "Proxy" in repr(type(v))
        for m in model.modules()
        for value in vars(m).values()
        for v in (value.values() if isinstance(value, dict) else [value])
    )
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(head(stem(images)), model(images))


@pytest.mark.parametrize("name, after", [("googlenet", "inception3b"), ("inception_v3", "Mixed_5d")])
def test_auxiliary_heads_are_left_out_of_training(name, after):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=5, aux_logits=True, init_weights=False)
    net = prepare(model, after, steps=1).train()
    clean, adversarial = net.losses(torch.randn(2, 3, 96, 96), torch.tensor([0, 1]))
    assert clean.isfinite() and adversarial.isfinite()
    plain = torchvision.models.get_model(name, num_classes=5, aux_logits=True, init_weights=False)
    plain.load_state_dict(net.export("adversarial"), strict=True)


def test_several_outputs_are_refused():
    class Two(Net):
        def forward(self, x):
            return super().forward(x), x.mean()

    with pytest.raises(ValueError, match="returns a tuple.*logits.*AdvBNNet"):
        prepare(Two(conv_bn()), "bn")


# ---- modes that a forward sets


class Gated(Net):
    "A gate, and where the strongest channel is, that no gradient passes through."

    def __init__(self, stop):
        super().__init__(conv_bn())
        self.stop = stop

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        with torch.no_grad() if self.stop else nullcontext():
            gate, size = self.block(x).mean((2, 3), keepdim=True).sigmoid(), x.shape[0]
            largest, place = x.max(1, keepdim=True)
            if not self.stop:
                gate, largest = gate.detach(), largest.detach()
        return self.fc((self.block(x) * gate + largest + place / 4).reshape(size, 4, -1).mean(2))


@pytest.mark.parametrize("outside", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("after", ["bn", "conv"])
def test_no_gradient_passes_through_what_a_forward_computes_without_one(outside, after):
    torch.manual_seed(0)
    plain, gradients = used(Gated(False)), []
    model = Gated(True).eval()
    model.load_state_dict(plain.state_dict())
    with outside():
        stem, head = split(model, after)
    for function in (plain, lambda x: head(stem(x))):
        images = IMAGES.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(images).square().sum(), images)[0])
    assert torch.allclose(*gradients, atol=1e-7) and gradients[0].abs().max() > 1e-4
    assert torch.equal(head(stem(IMAGES)), model(IMAGES)) and torch.equal(
        pickle.loads(pickle.dumps(head))(stem(IMAGES)), model(IMAGES)
    )


def test_an_autocast_inside_a_network_is_refused():
    def step(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.block(x)

    with pytest.raises(ValueError, match="autocast of its own.*AdvBNNet"):
        split(Net(conv_bn(), step), "bn")
    with torch.autocast("cpu", torch.bfloat16):
        split(Net(conv_bn()), "bn")


class Remembering(nn.Module):
    """Keeps what it computes in a dictionary, in train mode and in eval mode, as some position biases do;
    makes another constant in each."""

    def __init__(self):
        super().__init__()
        self.conv, self.kept = nn.Conv2d(4, 4, 1), {}

    def forward(self, x):
        key = str(x.device) if not isinstance(x, torch.fx.Proxy) else "traced"
        if key not in self.kept:
            self.kept[key] = self.conv.weight.sum() + torch.arange(3.0)[1 if self.training else 2]
        return self.conv(x) * self.kept[key]


def test_what_a_forward_keeps_in_one_trace_is_not_there_in_the_next():
    model = Net(nn.Sequential(Remembering(), nn.ReLU()))
    stem, head = split(model, "bn")
    for training in (True, False):
        fresh = copy.deepcopy(model).train(training)
        stem.train(training), head.train(training)
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(head)(stem(IMAGES)), fresh(IMAGES))
    assert model.block[0].kept == {}
    with pytest.raises(ValueError, match="crosses this cut.*such as"):  # advice is tried, too
        split(Net(nn.Sequential(Remembering(), nn.ReLU()), lambda self, x: x + self.block(x)), "block.0")
