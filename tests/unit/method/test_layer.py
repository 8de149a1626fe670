"""The layer against the formula, and everything it must leave alone."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet18

from advbn import AdvBN, convert_dual_batchnorm, prepare, renormalize, use_branch
from advbn.method.folding import folded
from advbn.networks.models import build_model


def small_head(channels=4, classes=3):
    torch.manual_seed(1)
    head = convert_dual_batchnorm(
        nn.Sequential(
            nn.Conv2d(channels, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, classes),
        )
    )
    with torch.no_grad():  # two different branches
        head[1].adversarial.weight.uniform_(0.5, 1.5)
        head[1].adversarial.running_mean.normal_()
    return head


def batch(n=6, channels=4, size=5, classes=3):
    torch.manual_seed(0)
    return torch.randn(n, channels, size, size).relu(), torch.randint(classes, (n,))


def slow_attack(features, targets, head, eps, step, steps, rectify):
    """The attack written from the formula, in float64, a channel and an image at a time, gradients by
    autograd on plain tensors."""
    features = features.double()
    n, channels = features.shape[:2]
    mu = [sum(features[i, c].sum() for i in range(n)) / features[:, c].numel() for c in range(channels)]
    mean_scale, std_scale = [1.0] * channels, [1.0] * channels
    for _ in range(steps):
        m = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in mean_scale]
        s = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in std_scale]
        changed = torch.stack(
            [
                torch.stack([(features[i, c] - mu[c]) * s[c] + mu[c] * m[c] for c in range(channels)])
                for i in range(n)
            ]
        )
        loss = F.cross_entropy(head(changed * (changed > 0) if rectify else changed), targets)
        gradients = torch.autograd.grad(loss, m + s)
        moved = [
            min(max(v + step * torch.sign(g).item(), 1 - eps), 1 + eps)
            for v, g in zip(mean_scale + std_scale, gradients)
        ]
        mean_scale, std_scale = moved[:channels], moved[channels:]
    return torch.tensor(mean_scale), torch.tensor(std_scale)


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("eps, step, steps", [(1.1, 0.2, 6), (0.5, 0.2, 6), (1.1, 0.3, 1), (0.0, 0.2, 3)])
def test_attack_equals_the_formula(eps, step, steps, rectify):
    features, targets = batch()
    head = small_head()
    fast = AdvBN(eps, step, steps, rectify).attack(features, targets, head)
    reference = small_head().double().eval()
    with use_branch(reference, "adversarial"):
        slow = slow_attack(features, targets, reference, eps, step, steps, rectify)
    for a, b in zip(fast, slow):
        assert a.shape == (1, 4, 1, 1)
        assert torch.allclose(a.flatten(), b.float(), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 4),
    c=st.integers(1, 5),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    rectify=st.booleans(),
    seed=st.integers(0, 99),
)
def test_renormalize_equals_the_formula(n, c, h, w, rectify, seed):
    torch.manual_seed(seed)
    f, m, s = torch.randn(n, c, h, w), torch.randn(1, c, 1, 1), torch.randn(1, c, 1, 1)
    mu = f.double().mean((0, 2, 3), keepdim=True)
    expected = (f.double() - mu) * s + mu * m
    found = renormalize(f, m, s, rectify=rectify)
    assert torch.allclose(found.double(), expected.clamp(min=0) if rectify else expected, atol=1e-5)


def test_renormalize_sets_the_statistics_and_its_mean_has_no_gradient():
    f = torch.randn(8, 3, 16, 16, requires_grad=True)
    out = renormalize(f, torch.tensor(2.0), torch.tensor(0.5), rectify=False)
    assert torch.allclose(out.mean((0, 2, 3)), 2 * f.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(out.std((0, 2, 3)), 0.5 * f.std((0, 2, 3)), atol=1e-5)
    (gradient,) = torch.autograd.grad(out.sum(), f)
    assert torch.equal(gradient, torch.full_like(f, 0.5))  # d/df of (f - mu) * s with mu a constant


@pytest.mark.parametrize("seed", range(5))
def test_ascent_and_projection(seed):
    torch.manual_seed(seed)
    model = convert_dual_batchnorm(resnet18(num_classes=5).eval())
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool, model.layer1)
    head = nn.Sequential(model.layer2, model.layer3, model.layer4, model.avgpool, nn.Flatten(), model.fc)
    features, targets = stem(torch.randn(8, 3, 32, 32)).detach(), torch.randint(5, (8,))
    m, s = AdvBN().attack(features, targets, head)
    with torch.no_grad():
        assert F.cross_entropy(head(renormalize(features, m, s)), targets) >= F.cross_entropy(
            head(features), targets
        )
    for factor in (m, s):
        assert factor.min() >= 1 - 1.1 - 1e-6 and factor.max() <= 1 + 1.1 + 1e-6
        assert ((factor - 1).abs() > 0).any()


def state_of(module):
    return {
        "flags": [m.training for m in module.modules()],
        "asks": [p.requires_grad for p in module.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        "branch": [getattr(m, "branch", None) for m in module.modules()],
        "values": {k: v.clone() for k, v in module.state_dict().items()},
    }


def same(a, b):
    return (
        a["flags"] == b["flags"]
        and a["asks"] == b["asks"]
        and a["branch"] == b["branch"]
        and all((x is None and y is None) or torch.equal(x, y) for x, y in zip(a["grads"], b["grads"]))
        and all(torch.equal(a["values"][k], b["values"][k]) for k in a["values"])
    )


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("fail", [False, True])
def test_the_head_is_left_exactly_as_found(mode, fail):
    features, targets = batch()
    head = small_head().train(mode != "eval")
    if mode == "mixed":
        head[1].eval()
        head[0].weight.requires_grad_(False)
        head[1].branch = "adversarial"
    F.cross_entropy(head.eval()(features), targets).backward()
    head.train(mode != "eval")
    before, seen = state_of(head), []

    def loss_fn(logits, y):
        seen.append((head.training, head[1].branch))
        if fail and len(seen) == 2:
            raise KeyError("stop")
        return F.cross_entropy(logits, y)

    if fail:
        with pytest.raises(KeyError):
            AdvBN()(features, targets, head, loss_fn)
    else:
        AdvBN()(features, targets, head, loss_fn)
    assert set(seen) == {(False, "adversarial")}
    assert same(before, state_of(head))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_output_has_the_form_of_the_input(dtype, memory_format, context):
    features, targets = batch()
    features = features.to(dtype).to(memory_format=memory_format)
    head = small_head().to(dtype)
    with context():
        out = AdvBN()(features, targets, head)
    assert (out.shape, out.dtype, out.device) == (features.shape, dtype, features.device)
    assert out.stride() == features.stride() and not out.requires_grad


def test_random_start_is_uniform_in_the_ball_and_follows_the_seed():
    features, targets = batch(channels=4000, size=1)
    layer = AdvBN(eps=0.5, steps=0, start="random")
    torch.manual_seed(3)
    m, s = layer.attack(features, targets, nn.Identity())
    values = torch.cat([m, s]).flatten()
    assert values.min() >= 0.5 and values.max() <= 1.5
    assert abs(values.mean() - 1) < 0.02 and abs(values.std() - 1 / 12**0.5) < 0.02
    torch.manual_seed(3)
    assert torch.equal(layer.attack(features, targets, nn.Identity())[0], m)


@pytest.mark.parametrize("share, seen", [(0.5, 3), (0.34, 3), (1 / 6, 1), (0.01, 1), (1.0, 6), (1 / 3, 2)])
def test_a_share_of_the_batch_finds_the_factors_for_all_of_it(share, seen):
    "The first images are attacked with the mean of the whole batch, and every image is changed."
    features, targets = batch()
    head, looked = small_head().eval(), []

    def watched(x):
        looked.append(len(x))
        return head(x)

    made = AdvBN(steps=2, share=share)(features, targets, watched)
    assert set(looked) == {seen} and made.shape == features.shape
    mu, factors = features.mean((0, 2, 3), keepdim=True), torch.ones(2, 1, 4, 1, 1)
    for _ in range(2):
        factors.requires_grad_()
        loss = F.cross_entropy(
            head(((features[:seen] - mu) * factors[1] + mu * factors[0]).relu()), targets[:seen]
        )
        (gradient,) = torch.autograd.grad(loss, factors)
        factors = (factors.detach() + 0.2 * gradient.sign()).clamp(-0.1, 2.1)
    assert torch.allclose(made, ((features - mu) * factors[1] + mu * factors[0]).relu(), atol=1e-5)


def test_no_steps_from_the_clean_start_change_nothing():
    features, targets = batch()
    assert torch.equal(AdvBN(steps=0)(features, targets, small_head()), features)


def test_any_differentiable_head_and_soft_targets_serve():
    features, targets = batch()
    weight = torch.randn(4, 3)
    m, s = AdvBN(steps=2).attack(features, F.one_hot(targets, 3).float(), lambda f: f.mean((2, 3)) @ weight)
    assert m.isfinite().all() and s.isfinite().all()


def test_autocast_and_half_precision_find_the_same_signs():
    features, targets = batch(n=16)
    plain = AdvBN(steps=1).attack(features, targets, small_head())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = AdvBN(steps=1).attack(features, targets, small_head())
    agree = torch.cat([(a == b).flatten() for a, b in zip(plain, mixed)]).float().mean()
    assert agree >= 0.75


@pytest.mark.parametrize(
    "options, words",
    [
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"eps": "1"}, "eps is '1'"),
        ({"step_size": float("inf")}, "step_size is inf"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"steps": True}, "steps is True"),
        ({"start": "warm"}, "'clean' and 'random'"),
        ({"rectify": 1}, "rectify is 1"),
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"share": True}, "share is True"),
        ({"share": "half"}, "share is 'half'"),
        ({"perturb": "variance"}, "'both' and 'mean' and 'std'"),
        ({"batch_statistics": None}, "batch_statistics is None"),
    ],
)
def test_bad_settings(options, words):
    with pytest.raises(ValueError, match=words):
        AdvBN(**options)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f, t: (f[0], t), r"\[N, C, H, W\], got \(4, 5, 5\)"),
        (lambda f, t: (f.flatten(1), t), "spatial"),
        (lambda f, t: (f.long(), t), "floating point, got torch.int64"),
        (lambda f, t: (f, t[:-1]), "6 images and targets 5"),
        (lambda f, t: (f / 0, t), "NaN and"),
        (lambda f, t: (f.index_fill(0, torch.tensor([2]), float("inf")), t), "infinite values among 600"),
        (lambda f, t: (f[:0], t[:0]), "empty"),
        (lambda f, t: ([1], t), "got list"),
        (lambda f, t: (f, t[0]), "targets a single number"),
        (lambda f, t: (f, 3), "6 images and targets a single number; .*N class indices"),
        (lambda f, t: (f, None), "targets are None; .*N class indices"),
    ],
)
def test_bad_input(change, words):
    features, targets = change(*batch())
    with pytest.raises(ValueError, match=words):
        AdvBN().attack(features, targets, small_head())


def test_a_loss_that_is_not_a_number_is_reported():
    features, targets = batch()
    with pytest.raises(ValueError, match="became NaN or infinite during the attack"):
        AdvBN().attack(
            features, targets, small_head(), lambda logits, y: F.cross_entropy(logits, y) * float("nan")
        )


@pytest.mark.parametrize(
    "head, loss_fn, words",
    [
        (
            small_head(),
            partial(F.cross_entropy, reduction="none"),
            r"one scalar tensor.*a tensor \(6,\); take the mean",
        ),
        (small_head(), lambda logits, y: 1.0, "got float"),
        (lambda f: torch.zeros(6, 3), F.cross_entropy, "no gradient flows"),
        (
            lambda f: torch.zeros(6, 3, requires_grad=True),
            F.cross_entropy,
            "no gradient flows.*does not use them",
        ),
        (torch.no_grad()(lambda f: f.mean((2, 3))), F.cross_entropy, "no gradient flows.*without gradient"),
    ],
)
def test_a_loss_that_cannot_be_climbed_is_reported(head, loss_fn, words):
    with pytest.raises(ValueError, match=words):
        AdvBN()(*batch(), head, loss_fn)


@pytest.mark.parametrize(
    "wrap",
    [lambda h: h.forward, lambda h: partial(h), lambda h: partial(partial(h.forward)), lambda h: h.__call__],
)
def test_a_callable_around_a_module_is_run_as_the_module(wrap):
    features, targets = batch()
    head = small_head().train()
    before = state_of(head)
    found = AdvBN(steps=3).attack(features, targets, wrap(head))
    assert same(before, state_of(head))
    assert all(torch.equal(a, b) for a, b in zip(found, AdvBN(steps=3).attack(features, targets, head)))


def test_parameters_from_inference_mode_are_refused_before_anything_is_touched():
    with torch.inference_mode():
        head = small_head().train()
    before = state_of(head)
    with pytest.raises(ValueError, match="made under torch.inference_mode.*outside it"):
        AdvBN()(*batch(), head)
    assert same(before, state_of(head))


def test_renormalize_takes_numbers_and_refuses_other_features():
    f = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    factor = torch.tensor(1.1, dtype=torch.float64)
    assert torch.equal(renormalize(f, 1.1, 2), renormalize(f, factor, 2 * torch.ones_like(factor)))
    for bad, words in (
        (f[0], r"\[N, C, H, W\], got \(3, 4, 4\)"),
        (f.long(), "floating point, got torch.int64"),
        ([1], "got list"),
    ):
        with pytest.raises(ValueError, match=words):
            renormalize(bad, 1.0, 1.0)
    with pytest.raises(
        ValueError,
        match=r"std_scale has the shape \(2, 3, 1, 1\); allowed are a number and what broadcasts to \(1, 3, "
        r"1, 1\)",
    ):
        renormalize(f, 1.0, torch.ones(2, 3, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_renormalize_keeps_dtype_and_memory_and_its_gradients_are_those_of_the_formula(dtype, memory):
    torch.manual_seed(0)
    f = torch.randn(4, 3, 5, 6).to(dtype).contiguous(memory_format=memory)
    mu = f.double().mean((0, 2, 3), keepdim=True)
    factors = (1 + 0.3 * torch.randn(2, 1, 3, 1, 1)).requires_grad_()
    exact = factors.detach().double().requires_grad_()
    found, expected = renormalize(f, *factors), ((f.double() - mu) * exact[1] + mu * exact[0]).relu()
    assert found.dtype == dtype and found.is_contiguous(memory_format=memory)
    tolerance = max(1e-5, 4 * torch.finfo(dtype).eps)
    assert torch.allclose(found.double(), expected, atol=2 * tolerance, rtol=tolerance)
    weight = torch.randn(f.shape).to(dtype)
    (ours,) = torch.autograd.grad((found * weight).float().sum(), factors)
    (theirs,) = torch.autograd.grad((expected * weight.double()).sum(), exact)
    assert torch.allclose(ours.double(), theirs, atol=40 * tolerance, rtol=tolerance)


def test_half_precision_attacks_and_a_gradient_that_is_not_a_number_is_reported():
    features, targets = batch()
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    plain, half = (
        AdvBN(steps=2).attack(features, targets, head),
        AdvBN(steps=2).attack(features.half(), targets, head.half()),
    )
    assert all((a == b).float().mean() >= 0.75 for a, b in zip(plain, half)) and (half[0] != 1).any()
    with pytest.raises(ValueError, match="gradient became NaN"):
        AdvBN().attack(
            features, targets, head.float(), lambda z, y: F.cross_entropy(z, y) + 0 * (z - z).sqrt().sum()
        )


def test_everything_may_come_from_inference_mode():
    features, targets = batch()
    with torch.inference_mode():
        out = AdvBN()(features * 1, targets * 1, small_head_outside)
    assert torch.equal(out, AdvBN()(features, targets, small_head_outside))


small_head_outside = small_head()


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_agrees_with_the_cpu(cuda, dtype):
    features, targets = batch(n=32)
    expected = AdvBN(steps=1).attack(features, targets, small_head())
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        found = AdvBN(steps=1).attack(features.to(cuda), targets.to(cuda), small_head().to(cuda))
    agree = torch.cat([(a == b.cpu()).flatten() for a, b in zip(expected, found)]).float().mean()
    assert agree >= (1 if dtype == torch.float32 else 0.75)


@pytest.mark.parametrize(
    "perturb, moves", [("mean", (True, False)), ("std", (False, True)), ("both", (True, True))]
)
@pytest.mark.parametrize("start", ["clean", "random"])
def test_only_the_chosen_factors_move(perturb, moves, start):
    torch.manual_seed(0)
    features, targets = torch.randn(6, 4, 5, 5), torch.randint(3, (6,))
    head = nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    found = AdvBN(perturb=perturb, start=start).attack(features, targets, head)
    assert tuple(bool((f != 1).any()) for f in found) == moves
    assert all((f >= -0.1001).all() and (f <= 2.1001).all() for f in found)


def test_the_attack_on_the_batchs_statistics_forgets_them():
    "Batch statistics make the head see something else than running ones do, and leave no trace in it."
    torch.manual_seed(0)
    features, targets = torch.randn(6, 4, 5, 5).relu(), torch.randint(3, (6,))
    head = convert_dual_batchnorm(
        nn.Sequential(
            nn.Conv2d(4, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
    )
    for mode in (True, False):
        head.train(mode)
        before = {k: v.clone() for k, v in head.state_dict().items()}
        seen = []
        handle = head[-1].register_forward_hook(lambda m, i, o: seen.append(o.detach()))
        AdvBN(batch_statistics=True, steps=1).attack(features, targets, head)
        AdvBN(batch_statistics=False, steps=1).attack(features, targets, head)
        handle.remove()
        assert not torch.allclose(*seen, atol=1e-3)
        assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
        assert all(m.training == mode for m in head.modules()) and all(
            m.track_running_stats for m in head.modules() if isinstance(m, nn.BatchNorm2d)
        )


@pytest.mark.parametrize(
    "name, after, folds",
    [
        ("small_resnet", "layer1", 10),
        ("small_densenet", "features.transition1", 3),
        ("small_convnext", "features.1", 0),
    ],
)
def test_batch_norms_inside_the_convolutions_change_no_attack(name, after, folds):
    """The same factors to the last rounding, all batch norms of a ResNet's head at work in its convolutions,
    nothing left behind."""
    torch.manual_seed(0)
    model = build_model(name, 5)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        (
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5),
            torch.nn.init.normal_(norm.bias),
            norm.running_mean.normal_(),
            norm.running_var.uniform_(0.5, 2),
        )
    net = prepare(model, after).double()
    pairs = net.head.convolutions_and_norms()
    assert len(pairs) >= folds and (folds or not pairs)
    features, targets = net.features(torch.randn(6, 3, 40, 40).double()), torch.arange(6) % 5
    before = copy.deepcopy(net.state_dict())
    ids = {name: id(p) for name, p in net.named_parameters()}
    fast = net.layer.attack(features, targets, net.head)
    assert ids == {name: id(p) for name, p in net.named_parameters()} and all(
        torch.equal(v, before[k]) for k, v in net.state_dict().items()
    )
    net.head._pairs = []
    for a, b in zip(fast, net.layer.attack(features, targets, net.head)):
        assert torch.equal(a, b)


def test_pairs_that_are_not_fit_are_left_alone():
    conv, norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4).eval()
    x = torch.randn(2, 3, 8, 8)
    expected, weight = norm(conv(x)), conv.weight
    seen = []
    hook = conv.register_forward_hook(lambda *a: seen.append(a))
    with folded([(conv, norm)]):
        assert conv.weight is weight and torch.equal(norm(conv(x)), expected)
    hook.remove()
    with folded([(conv, norm.train())]):
        assert conv.weight is weight
    for other in (
        torch.nn.BatchNorm2d(4, affine=False).eval(),
        torch.nn.BatchNorm2d(4, track_running_stats=False).eval(),
    ):
        plain = other(conv(x))
        with folded([(conv, other)]):
            assert torch.allclose(other(conv(x)), plain, atol=1e-5)
    with pytest.raises(KeyError), folded([(conv, norm.eval())]):
        assert conv.weight is not weight
        raise KeyError
    assert conv.weight is weight and "forward" not in vars(norm) and torch.equal(norm(conv(x)), expected)


def test_forward_calls_the_public_attack_and_takes_the_mean_once(monkeypatch):
    from advbn.method import attack

    means = []
    mean = attack.channel_mean
    monkeypatch.setattr(attack, "channel_mean", lambda f: means.append(f) or mean(f))

    class Still(AdvBN):
        def attack(self, features, targets, head, loss_fn=F.cross_entropy):
            mean_scale, std_scale = super().attack(features, targets, head, loss_fn)
            return torch.ones_like(mean_scale), torch.ones_like(std_scale)

    features, targets = batch()
    assert torch.equal(Still()(features, targets, small_head()), features) and len(means) == 1
    assert not torch.equal(AdvBN()(features, targets, small_head()), features) and len(means) == 2
    assert not hasattr(features, "carried_mean")  # what somebody else may change is computed anew


def test_the_layer_is_a_module_like_any_other():
    "Settings by place and by name, a copy, pickle, a hash of its own, and no equality by settings."
    layer = AdvBN(0.5, 0.1, 2, False, "random", "std", True, 0.5, True)
    same = AdvBN(
        eps=0.5,
        step_size=0.1,
        steps=2,
        rectify=False,
        start="random",
        perturb="std",
        batch_statistics=True,
        share=0.5,
        sync_statistics=True,
    )
    assert repr(layer) == repr(same) == repr(copy.deepcopy(layer)) == repr(pickle.loads(pickle.dumps(layer)))
    assert layer != same and len({layer, same}) == 2 and list(layer.modules()) == [layer]
