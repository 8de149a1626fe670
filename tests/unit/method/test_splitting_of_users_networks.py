"""Networks that users bring: shared blocks, aliases, buffers, arithmetic in place, random draws, hooks,
replicas. Right, or refused by name."""

import copy
import json
import pickle
import random
import re
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

from advbn import AdvBN, AdvBNNet, prepare, split, use_branch
from advbn.evidence.evaluation import for_inference, predict, predict_each, top1_accuracy
from advbn.images.batches import normalize
from advbn.training.loop import finetuning_net, pretraining_net
from conftest import ROOT


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


# ---- evaluation: the network's own forward


def test_a_block_that_is_used_three_times_is_evaluated_as_it_is():
    def thrice(self, x):
        for _ in range(3):
            x = self.block(x)
        return x

    torch.manual_seed(0)
    model = used(Net(conv_bn(), thrice))
    images = torch.randint(256, (60, 3, 1, 1), dtype=torch.uint8).expand(-1, -1, 12, 12)
    with torch.no_grad():
        model.fc.bias -= model(normalize(images)).mean(0)  # so that not one class is named alone
    labels = predict(model, images)[0][:, 0]
    assert top1_accuracy(for_inference(model), images, labels) == 100 and len(labels.unique()) > 1
    with torch.no_grad():
        assert torch.allclose(for_inference(model)(IMAGES), model(IMAGES), atol=1e-5)


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


@pytest.mark.parametrize("case", EVALUATED)
def test_a_folded_copy_agrees_with_the_network(case):
    model = EVALUATED[case]()
    model = (
        used(model)
        if isinstance(model, Net) and not isinstance(model.block, nn.SyncBatchNorm) and "sync" not in case
        else model.eval()
    )
    before = snapshot(model)
    with torch.no_grad():
        expected, found = model(IMAGES), for_inference(model)(IMAGES)
    assert (
        torch.allclose(found, expected, atol=1e-5)
        and found.argmax(1).equal(expected.argmax(1))
        and same(snapshot(model), before)
    )


def test_what_cannot_be_copied_is_evaluated_itself_and_left_as_found():
    class Locked(Net):
        def __deepcopy__(self, memo):
            raise TypeError("cannot copy")

    model = used(Locked(conv_bn())).train()
    before = snapshot(model)
    found = for_inference(model)(IMAGES)
    assert same(snapshot(model), before) and torch.equal(found, model.eval()(IMAGES))


def test_batch_norms_that_fold_are_folded():
    model = used(Net(conv_bn()))
    assert (
        sum(
            m.forward(IMAGES) is IMAGES
            for m in for_inference(model).modules()
            if isinstance(m, nn.BatchNorm2d)
        )
        == 2
    )


# ---- aliases


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


@pytest.mark.parametrize(
    "make, after",
    [
        (Aliased, "bn"),
        (lambda: timm.create_model("coat_lite_tiny", num_classes=5, img_size=32), "patch_embed4.proj"),
    ],
    ids=["classifier and batch norm", "coat"],
)
@pytest.mark.parametrize("kept", [True, False])
def test_a_tensor_with_two_names_is_exported_under_both(make, after, kept):
    torch.manual_seed(0)
    model = make().eval()
    stem, head = split(model, after)
    net = one_step(
        AdvBNNet(stem, head, AdvBN(steps=1, rectify=False), model.state_dict(keep_vars=kept)),
        torch.randn(4, 3, 32, 32),
    )
    for branch in ("clean", "adversarial"):
        plain = make().eval()
        plain.load_state_dict(net.export(branch), strict=True)
        with torch.no_grad(), use_branch(net, branch):
            assert torch.equal(plain(x := torch.randn(2, 3, 32, 32)), net(x))


def test_prepare_exports_aliases():
    torch.manual_seed(0)
    net = one_step(prepare(Aliased(), "bn"))
    plain = Aliased().eval()
    plain.load_state_dict(net.export("adversarial"))
    with torch.no_grad(), use_branch(net, "adversarial"):
        assert torch.equal(plain(IMAGES), net(IMAGES))


def test_a_batch_norm_of_two_names_in_parts_written_by_hand():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.block, self.fc = nn.Sequential(nn.Conv2d(4, 4, 1), self.norm), nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(self.block(x).mean((2, 3)))

    net = one_step(AdvBNNet(nn.Conv2d(3, 4, 3), Head(), AdvBN(steps=1)))
    assert not [key for key in net.export("clean") if "adversarial" in key]
    plain = Head().eval()
    plain.load_state_dict({k: v for k, v in net.export("adversarial").items() if not k in ("weight", "bias")})
    features = torch.randn(2, 4, 5, 5)
    with torch.no_grad(), use_branch(net.head, "adversarial"):
        assert torch.equal(plain(features), net.head(features))


# ---- replicas and shards


def test_the_attack_on_a_replica_is_that_on_the_network():
    "As `nn.DataParallel` makes it: parameters are attributes, `_parameters` is empty."
    torch.manual_seed(0)
    net = prepare(used(Net(conv_bn())), "bn", steps=3)
    features, targets = net.features(IMAGES), torch.arange(4)

    def loss_fn(logits, targets, seen):
        seen.append(F.cross_entropy(logits, targets))
        return seen[-1]

    replica = net.head._replicate_for_data_parallel()
    modules = {name: m for name, m in net.head.named_modules()}
    copies = {"": replica}
    for name, m in modules.items():
        if name:
            parent, _, child = name.rpartition(".")
            copies[name] = m._replicate_for_data_parallel()
            copies[parent]._modules[child] = copies[name]
    for name, m in modules.items():
        for key, value in [*m._parameters.items(), *m._buffers.items()]:
            copies[name]._parameters.pop(key, None)
            copies[name]._buffers.pop(key, None)
            setattr(
                copies[name],
                key,
                None if value is None else value.detach().clone().requires_grad_(value.requires_grad),
            )
    for head, seen in ((net.head, own := []), (replica, theirs := [])):
        net.layer.attack(features, targets, head, partial(loss_fn, seen=seen))
    assert torch.allclose(torch.stack(own), torch.stack(theirs), atol=1e-5) and len(own) == 3


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
    from advbn.method.splitting import _VIEWS

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
    assert methods - _VIEWS == set() and len(methods) > 30


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


# ---- checkpointing


class Recomputed(nn.Module):
    def __init__(self, recompute):
        super().__init__()
        self.block, self.fc, self.recompute = conv_bn(), nn.Linear(4, 5), recompute

    def forward(self, x):
        x = checkpoint(self.block, x, use_reentrant=False) if self.recompute else self.block(x)
        return self.fc(x.mean((2, 3)))


def recomputed(recompute):
    torch.manual_seed(0)
    net = AdvBNNet(nn.Conv2d(3, 4, 3), Recomputed(recompute), AdvBN(steps=2, rectify=False)).train()
    with torch.no_grad():
        net.head.block[1].adversarial.weight.fill_(2)
    return net


def test_a_head_that_recomputes_gets_the_gradients_of_its_branch():
    gradients = []
    for recompute in (False, True):
        net = recomputed(recompute)
        net.losses(IMAGES, torch.arange(4), backward=lambda loss: loss.backward())
        gradients.append([p.grad for p in net.trainable_parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients))


def test_where_a_recomputed_branch_is_not_known_it_is_refused():
    net = recomputed(True)
    with pytest.raises(RuntimeError, match="recomput.*backward="):
        sum(net.losses(IMAGES, torch.arange(4))).backward()
    plain = recomputed(False)
    sum(plain.losses(IMAGES, torch.arange(4))).backward()


# ---- weights that are no images


def test_training_takes_weights_of_five_axes():
    from advbn.images.batches import to_channels_last

    net = pretraining_net(EVALUATED["volumes"]())
    moved = to_channels_last(net)
    assert (
        moved is net
        and net.head[3].weight.is_contiguous(memory_format=torch.channels_last)
        and net.head[1].weight.ndim == 5
    )


# ---- shards


def sharded(kind):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        str(ROOT / "tests/sharded_losses.py"),
        kind,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_sharded_network_has_the_losses_and_gradients_of_the_whole():
    whole, found = (json.loads(sharded(kind).stdout) for kind in ("whole", "sharded"))
    for name in ("losses", "gradients"):
        assert found[name] == pytest.approx(whole[name], rel=1e-5)
    assert len(whole["losses"]) == 5


@pytest.mark.parametrize(
    "kind, words", [("block", "runs its layers one by one"), ("flat", "computed from others.*fully_shard")]
)
def test_a_block_that_is_wrapped_and_flat_parameters_are_refused(kind, words):
    done = sharded(kind)
    assert done.returncode and re.search(f"ValueError: .*{words}", done.stderr)


# ---- names


@pytest.mark.parametrize("kept", [True, False])
def test_parts_written_by_hand_are_exported_under_the_names_of_the_network(kept):
    torch.manual_seed(0)
    model = Aliased()
    stem = nn.Sequential(model.conv, model.bn, nn.ReLU())
    head = nn.Sequential(model.pair, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc)
    net = one_step(
        AdvBNNet(
            stem, nn.ModuleDict({"head": head})["head"], AdvBN(steps=1), model.state_dict(keep_vars=kept)
        )
    )
    plain = Aliased().eval()
    plain.load_state_dict(net.export("adversarial"), strict=True)
    with torch.no_grad(), use_branch(net, "adversarial"):
        assert torch.equal(plain(IMAGES), net(IMAGES))


class Renamed(Aliased):
    "Writes its weights under other names, and reads them back; keeps a number beside them."

    def __init__(self):
        super().__init__()
        self.register_state_dict_post_hook(
            lambda m, state, prefix, metadata: (
                [state.update({f"old.{k}": state.pop(k)}) for k in list(state) if k.startswith("mid.")]
                and None
            )
        )
        self.register_load_state_dict_pre_hook(
            lambda m, state, *_: (
                [
                    state.update({k.removeprefix("old."): state.pop(k)})
                    for k in list(state)
                    if k.startswith("old.")
                ]
                and None
            )
        )

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        assert state == {"version": 3}


def test_what_hooks_make_of_a_state_dict_is_what_is_exported():
    torch.manual_seed(0)
    net = one_step(prepare(Renamed(), "bn"))
    state = net.export("clean")
    assert state.keys() == Renamed().state_dict().keys() and any(k.startswith("old.") for k in state)
    plain = Renamed().eval()
    plain.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert torch.equal(plain(IMAGES), net(IMAGES))


def test_a_compiled_network_is_refused_and_its_parts_can_be_compiled():
    model = used(Net(conv_bn()))
    with pytest.raises(ValueError, match="torch.compile makes of a network.*hand over the network itself"):
        prepare(torch.compile(model, backend="eager"), "bn")
    net = prepare(model, "bn", steps=1)
    expected = net.losses(IMAGES, torch.arange(4))
    net.head = torch.compile(net.head, backend="eager")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(net.losses(IMAGES, torch.arange(4)), expected))


# ---- what a state dict holds


class Scaled(Net):
    """Writes a weight otherwise than it has it, and turns it back when it reads it; under another name, if
    there is one."""

    def __init__(self, name="0.weight"):
        super().__init__(conv_bn())
        self.block.register_state_dict_post_hook(
            lambda m, state, prefix, metadata: state.update(
                {prefix + name: 2 * state.pop(f"{prefix}0.weight")}
            )
        )
        self.block.register_load_state_dict_pre_hook(
            lambda m, state, prefix, *_: state.update({f"{prefix}0.weight": state.pop(prefix + name) / 2})
        )


@pytest.mark.parametrize("name", ["0.weight", "doubled"])
@pytest.mark.parametrize("layer", [True, False])
def test_a_state_dict_that_is_computed_is_refused(name, layer):
    with pytest.raises(ValueError, match=f"computes 'block.{name}'.*AdvBNNet"):
        prepare(Scaled(name), "bn") if layer else finetuning_net(Scaled(name), "bn", None)


def test_a_tensor_is_known_by_its_memory_before_its_name():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(576, 5)
    )
    head = nn.Sequential(nn.ReLU(), model[2], model[3], model[4], nn.Identity(), model[5])
    net = one_step(
        AdvBNNet(
            nn.ModuleDict({"first": model[0]})["first"],
            head,
            AdvBN(steps=1),
            model.state_dict(keep_vars=True),
        )
    )
    state = net.export()
    assert (
        state["2.weight"] is not state["3.weight"]
        and torch.equal(state["2.weight"], head[1].weight)
        and torch.equal(state["3.weight"], head[2].weight)
    )


def test_a_part_that_renames_its_weights_after_prepare_says_so_in_export():
    net = prepare(used(Net(conv_bn())), "bn", steps=1)
    torch.nn.utils.parametrizations.weight_norm(net.head.get_submodule("block.0"))
    with pytest.raises(
        ValueError, match="no longer hold 'block.0.weight'.*remove_parametrizations.*before prepare"
    ):
        one_step(net).export()
    torch.nn.utils.parametrize.remove_parametrizations(net.head.get_submodule("block.0"), "weight")
    plain = Net(conv_bn()).eval()
    plain.load_state_dict(net.export())
    with torch.no_grad():
        assert torch.allclose(plain(IMAGES), net(IMAGES), atol=1e-6)


def test_a_network_with_a_compiled_head_is_exported():
    net = prepare(used(Net(conv_bn())), "bn", steps=1)
    net.head = torch.compile(net.head, backend="eager")
    plain = Net(conv_bn()).eval()
    plain.load_state_dict(one_step(net).export("adversarial"), strict=True)
    with torch.no_grad(), use_branch(net, "adversarial"):
        assert torch.equal(plain(IMAGES), net(IMAGES))


class Split(Net):
    "Half of a batch goes through a batch norm inside the batch norm, in train mode."

    def __init__(self):
        super().__init__(
            nn.Sequential(
                nn.Conv2d(4, 4, 3, padding=1), timm.layers.SplitBatchNorm2d(4, num_splits=2), nn.ReLU()
            )
        )


def test_a_batch_norm_with_batch_norms_in_it_is_exported_as_it_was_trained():
    torch.manual_seed(0)
    net = one_step(prepare(used(Split()), "bn", steps=1))
    inner = net.head.get_submodule("block.1.adversarial.aux_bn.0")
    state = net.export("adversarial")
    assert torch.equal(state["block.1.aux_bn.0.running_mean"], inner.running_mean)
    assert torch.equal(state["block.1.aux_bn.0.weight"], inner.weight)
    Split().load_state_dict(state, strict=True)


# ---- what must stay frozen, and what must not


def test_the_stem_stays_frozen_when_the_network_is_unfrozen():
    net = prepare(used(Net(conv_bn())), "bn", steps=1)
    net.requires_grad_(False)
    assert net.requires_grad_(True) is net
    assert not any(p.requires_grad for p in net.stem.parameters()) and all(
        p.requires_grad for p in net.head.parameters()
    )


def test_statistics_of_the_stem_that_have_been_reset_are_noticed():
    averaged = torch.optim.swa_utils.AveragedModel(prepare(used(Net(conv_bn())), "bn", steps=1))
    with pytest.raises(ValueError, match="stem.*'bn'.*update_bn.*export"):
        torch.optim.swa_utils.update_bn([IMAGES], averaged)


def test_weights_that_are_cached_during_a_step_get_their_gradients():
    torch.manual_seed(0)
    net, gradients = prepare(weighted(Net(conv_bn())), "bn", steps=1).train(), []
    for cached in (torch.nn.utils.parametrize.cached, nullcontext):
        net.zero_grad()
        with cached():
            loss = sum(net.losses(IMAGES, torch.arange(4)))
        loss.backward()
        gradients.append([p.grad.clone() for p in net.trainable_parameters()])
    assert all(map(torch.allclose, *gradients))


# ---- losses and targets

MIXED = (torch.arange(4), torch.arange(4).flip(0), 0.3)


@pytest.mark.parametrize("recipe", ["faithful", "fast"])
@pytest.mark.parametrize(
    "images, targets, words",
    [
        (4, MIXED, "several.*each for the whole batch.*one tensor"),
        (
            3,
            tuple(t[:3] if isinstance(t, torch.Tensor) else t for t in MIXED),
            "several.*whole batch.*one tensor",
        ),
        (4, {"y": torch.arange(4)}, "several.*whole batch.*one tensor"),
        (4, {"a": 1, "b": 2, "c": 3, "y": torch.arange(4)}, "several.*whole batch.*one tensor"),
        (2, [torch.arange(2), torch.arange(2)], "several.*whole batch.*one tensor"),
        (4, torch.tensor(1), "4 images and targets a single number"),
        (4, torch.arange(3), "4 images and targets 3"),
        (4, 7, "4 images and targets a single number"),
        (4, object(), "4 images and targets are"),
    ],
)
def test_targets_that_cannot_be_divided_are_refused_before_they_are(recipe, images, targets, words):
    with pytest.raises(ValueError, match=words):
        prepare(Net(conv_bn()), "bn", recipe).losses(IMAGES[:images], targets)


@pytest.mark.parametrize("options", [{}, {"recipe": "fast"}, {"share": 0.25}])
def test_a_batch_whose_targets_are_all_ignored_says_so(options):
    with pytest.raises(ValueError, match=f"{1 if options else 4} images.*targets.*ignore"):
        prepare(used(Net(conv_bn())), "bn", **options).losses(IMAGES, torch.tensor([-100] * 4))


# ---- what is handed over


@pytest.mark.parametrize(
    "stem, head, what",
    [
        (nn.Identity(), lambda f: f, "head is a function"),
        (nn.Identity(), partial(nn.Flatten()), "head is a partial"),
        (torch.relu, nn.Flatten(), "stem is a builtin_function_or_method"),
    ],
)
def test_parts_are_modules(stem, head, what):
    with pytest.raises(ValueError, match=f"{what}.*nn.Module"):
        AdvBNNet(stem, head, AdvBN())


def test_a_wrapped_network_is_refused_by_name():
    with pytest.raises(ValueError, match="DataParallel.*hand over its module"):
        prepare(nn.DataParallel(Net(conv_bn())), "module.bn")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_of_any_precision_predicts(dtype):
    torch.manual_seed(0)
    model, images = used(Net(conv_bn())), torch.randint(256, (3, 3, 12, 12), dtype=torch.uint8)
    expected = predict(model, images)[1]
    model = model.to(dtype)
    assert torch.allclose(predict(model, images)[1], expected, atol=0.01)
    assert predict_each({"plain": model}, images)["plain"].equal(predict(model, images)[0][:, 0])


def test_a_network_without_parameters_predicts():
    model, images = (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    )
    assert predict(model, images)[0][:, 0].equal(predict_each({"plain": model}, images)["plain"])


def test_a_network_that_predicts_no_tensor_is_refused():
    class Dictionary(Net):
        def forward(self, x):
            return {"logits": super().forward(x)}

    model, images = Dictionary(conv_bn()), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for call in (lambda: predict(model, images), lambda: predict_each({"plain": model}, images)):
        with pytest.raises(ValueError, match="returns a dict; needed are logits"):
            call()


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
