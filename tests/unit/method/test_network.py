"""A prepared network: losses, gradients, export, and what it refuses."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import densenet121, resnet18
from users_networks import IMAGES, Net, conv_bn, used, weighted

import advbn
from advbn import AdvBN, AdvBNNet, prepare, use_branch
from advbn.bench.memory import peak_memory
from advbn.method.network import RECIPES


@pytest.fixture
def trained():
    "A prepared network after two steps, the plain one it came from, and a batch."
    torch.manual_seed(0)
    model = resnet18(num_classes=5)
    net = prepare(model, "layer1", steps=2).train()
    images, targets = torch.randn(8, 3, 64, 64), torch.randint(5, (8,))
    optimizer = torch.optim.SGD(net.trainable_parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        sum(net.losses(images, targets)).backward()
        optimizer.step()
    return model, net, images, targets


def test_export_round_trip(trained):
    model, net, images, _ = trained
    net.eval()
    outputs = {}
    for branch in ("clean", "adversarial"):
        plain = resnet18(num_classes=5)
        plain.load_state_dict(net.export(branch), strict=True)
        with use_branch(net, branch), torch.no_grad():
            outputs[branch] = net(images)
            assert torch.equal(plain.eval()(images), outputs[branch])
    assert not torch.equal(outputs["clean"], outputs["adversarial"])
    with pytest.raises(ValueError, match="allowed are"):
        net.export("both")


def test_export_to_timm():
    model = timm.create_model("resnet26d", num_classes=3).eval()
    net = prepare(model, "layer1")
    plain = timm.create_model("resnet26d", num_classes=3).eval()
    plain.load_state_dict(net.export("adversarial"), strict=True)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(plain(x), model(x))


def test_the_stem_stays_as_it_was_and_so_does_the_model(trained):
    model, net, images, targets = trained
    torch.manual_seed(0)
    fresh = resnet18(num_classes=5)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values()))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in net.stem.state_dict().items())
    net.train()
    assert net.head.training and not any(m.training for m in net.stem.modules())
    assert not any(p.requires_grad for p in net.stem.parameters())
    assert len(net.trainable_parameters()) == len(list(net.head.parameters()))


def test_losses_are_those_of_the_two_branches(trained):
    _, net, images, targets = trained
    net.eval()
    net.layer.steps = 0
    clean, adversarial = net.losses(images, targets)
    for branch, loss in (("clean", clean), ("adversarial", adversarial)):
        with use_branch(net, branch), torch.no_grad():
            assert torch.allclose(F.cross_entropy(net(images), targets), loss, atol=1e-6)


def test_the_two_gradients_are_those_of_two_separate_passes(trained):
    "The loop written out by hand, with its own attack, gives the same gradients."
    _, net, images, targets = trained
    net.zero_grad()
    other = copy.deepcopy(net)
    sum(net.losses(images, targets)).backward()
    features = other.stem(images)
    adversarial = other.layer(features, targets, other.head)
    F.cross_entropy(other.head(features), targets).backward()
    # the clean pass moved the clean statistics only, which the adversarial pass does not use
    with use_branch(other.head, "adversarial"):
        F.cross_entropy(other.head(adversarial), targets).backward()
    for a, b in zip(net.trainable_parameters(), other.trainable_parameters()):
        assert torch.allclose(a.grad, b.grad, atol=1e-5)


def test_losses_propagated_in_turn_give_the_gradients_of_the_sum(trained):
    _, net, images, targets = trained
    net.zero_grad()
    other = copy.deepcopy(net)
    losses = net.losses(images, targets)
    sum(losses).backward()
    seen, standing = [], []

    def backward(loss):
        seen.append(loss.item())
        loss.backward()

    def loss_fn(logits, targets):
        standing.append(any(p.grad is not None for p in other.trainable_parameters()))
        return F.cross_entropy(logits, targets)

    found = other.losses(images, targets, loss_fn, backward)
    assert standing == [False] * (net.layer.steps + 1) + [True]  # the attack comes before any gradient
    assert seen == [loss.item() for loss in losses] == [loss.item() for loss in found] and not any(
        loss.requires_grad for loss in found
    )
    assert all(
        torch.equal(a.grad, b.grad) for a, b in zip(net.trainable_parameters(), other.trainable_parameters())
    )


def test_a_step_needs_little_more_memory_than_a_clean_one():
    assert peak_memory({}, "resnet18", 16, 112) <= 1.2 * peak_memory(None, "resnet18", 16, 112)


def test_an_unpaired_batch_has_a_half_for_each_branch(trained):
    _, net, images, targets = trained
    net = copy.deepcopy(net).eval()
    net.layer.steps, net.unpaired, half = 0, True, (len(images) + 1) // 2
    clean, adversarial = net.losses(images, targets)
    for branch, loss, part in (
        ("clean", clean, slice(half)),
        ("adversarial", adversarial, slice(half, None)),
    ):
        with use_branch(net, branch), torch.no_grad():
            assert torch.allclose(F.cross_entropy(net(images[part]), targets[part]), loss, atol=1e-6)
    assert torch.equal(net.adversarial_loss(images, targets), adversarial)
    one = net.losses(images[:1], targets[:1])  # nothing to divide
    net.unpaired = False
    assert [a.item() for a in one] == [a.item() for a in net.losses(images[:1], targets[:1])]
    with pytest.raises(ValueError, match="unpaired is 'no'; allowed are True and False"):
        prepare(resnet18(), unpaired="no")


def test_recipes_are_sets_of_options_that_may_be_changed():
    net = prepare(resnet18(), recipe="fast")
    options = RECIPES["fast"]
    assert net.unpaired == options.get("unpaired", False) and all(
        getattr(net.layer, k) == v for k, v in options.items() if k != "unpaired"
    )
    other = prepare(resnet18(), recipe="fast", steps=3)
    assert other.layer.steps == 3 and other.layer.start == net.layer.start
    assert (
        str(prepare(resnet18(), recipe="faithful").layer) == str(prepare(resnet18()).layer)
        and prepare(resnet18()).layer.steps == 6
    )
    with pytest.raises(
        ValueError, match="recipe is 'fats'; allowed are 'faithful' and 'fast'; did you mean 'fast'"
    ):
        prepare(resnet18(), recipe="fats")


def test_rectification_is_read_off_the_network():
    assert prepare(resnet18(), "layer1").layer.rectify
    assert prepare(resnet18(), "maxpool").layer.rectify
    assert not prepare(densenet121(), "features.transition1").layer.rectify
    assert not prepare(timm.create_model("efficientnet_b0"), "blocks.1").layer.rectify
    assert prepare(densenet121(), "features.transition1", rectify=True).layer.rectify


def test_parts_written_by_hand_serve_as_well():
    model = resnet18(num_classes=3)
    stem = torch.nn.Sequential(model.conv1, model.bn1, model.relu)
    head = torch.nn.Sequential(
        model.maxpool,
        model.layer1,
        model.layer2,
        model.layer3,
        model.layer4,
        model.avgpool,
        torch.nn.Flatten(),
        model.fc,
    )
    net = AdvBNNet(stem, head, AdvBN(steps=1)).train()
    clean, adversarial = net.losses(torch.randn(4, 3, 32, 32), torch.randint(3, (4,)))
    assert clean.requires_grad and adversarial.requires_grad


def test_parts_that_share_names_cannot_be_exported():
    nn = torch.nn
    stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    head = nn.Sequential(
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    net = AdvBNNet(stem, head, AdvBN(steps=1)).train()
    sum(net.losses(torch.randn(4, 3, 8, 8), torch.randint(3, (4,)))).backward()
    with pytest.raises(ValueError, match=r"both hold '0.weight' .*\(7 such names\).*as split does"):
        net.export()


def test_a_name_for_one_shared_tensor_is_no_clash():
    conv = torch.nn.Conv2d(3, 3, 1)
    net = AdvBNNet(
        torch.nn.Sequential(conv),
        torch.nn.Sequential(conv, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()),
        None,
    )
    assert list(net.export()) == ["0.weight", "0.bias"]


def test_a_network_that_lost_its_branches_is_not_exported():
    net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(prepare(resnet18(num_classes=3), "layer1"))
    for branch in ("clean", "adversarial"):
        with pytest.raises(ValueError, match="lost its adversarial branch"):
            net.export(branch)
    assert (
        advbn.convert_dual_batchnorm(net.head) is net.head
        and net.export("adversarial").keys() == resnet18(num_classes=3).state_dict().keys()
    )


def test_bad_options_name_what_is_allowed():
    with pytest.raises(ValueError, match="eps is -1"):
        prepare(resnet18(), "layer1", eps=-1)
    with pytest.raises(ValueError, match="no module 'layer9'"):
        prepare(resnet18(), "layer9")


def test_the_public_names_are_there():
    for name in (
        "renormalize",
        "AdvBN",
        "split",
        "DualBatchNorm2d",
        "convert_dual_batchnorm",
        "use_branch",
        "prepare",
        "AdvBNNet",
    ):
        assert name in dir(advbn) and getattr(advbn, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'AdvBM'"):
        advbn.AdvBM


@pytest.mark.cuda
def test_training_on_cuda(cuda):
    net = prepare(resnet18(num_classes=5), "layer1").to(cuda, memory_format=torch.channels_last).train()
    images, targets = (
        torch.randn(16, 3, 64, 64, device=cuda).to(memory_format=torch.channels_last),
        torch.randint(5, (16,), device=cuda),
    )
    with torch.autocast("cuda", torch.bfloat16):
        clean, adversarial = net.losses(images, targets)
    (clean + adversarial).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.trainable_parameters())


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


@pytest.mark.parametrize("layer", [{"steps": 1}, {"steps": 1, "recipe": "fast"}])
def test_a_label_beyond_the_networks_classes_says_what_to_do(layer):
    net = prepare(resnet18(num_classes=3), "layer1", **layer).train()
    images = torch.randn(4, 3, 32, 32)
    with pytest.raises(
        ValueError, match="labels go up to 7, and the network tells fewer classes .* head='new'"
    ):
        net.losses(images, torch.tensor([0, 7, 1, 7]))


def test_slips_in_options_and_images_are_told():
    with pytest.raises(TypeError, match="AdvBN has no option 'step'; did you mean 'steps'"):
        prepare(resnet18(num_classes=4), step=3)
    net = prepare(resnet18(num_classes=4))
    with pytest.raises(ValueError, match="images are torch.uint8; needed are floats"):
        net.losses(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]))
