"""`split` on a wide list of torchvision and timm classifiers: exact in eval mode, alive in train mode, honest
about what it cannot do."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from advbn import prepare, split
from advbn.method.splitting import first_stages

# one cut each, at the end of a stage: (maker, path, input size)
TORCHVISION = {
    "alexnet": ("features.2", 64),
    "vgg11_bn": ("features.7", 64),
    "resnet18": ("layer1", 64),
    "resnet50": ("layer2", 64),
    "resnext50_32x4d": ("layer1", 64),
    "wide_resnet50_2": ("layer1", 64),
    "densenet121": ("features.transition1", 64),
    "googlenet": ("inception3b", 96),
    "inception_v3": ("Mixed_5d", 128),
    "squeezenet1_1": ("features.5", 64),
    "mobilenet_v2": ("features.3", 64),
    "mobilenet_v3_small": ("features.3", 64),
    "efficientnet_b0": ("features.2", 64),
    "efficientnet_v2_s": ("features.2", 64),
    "convnext_tiny": ("features.1", 64),
    "regnet_y_400mf": ("trunk_output.block1", 64),
    "shufflenet_v2_x0_5": ("stage2", 64),
    "mnasnet0_5": ("layers.8", 64),
    "swin_t": ("features.1", 64),
    "vit_b_16": ("encoder.layers.encoder_layer_1", 224),
    "maxvit_t": ("stem", 224),
}
TIMM = {
    "resnet18": ("layer1", 64),
    "resnet26d": ("layer1", 64),
    "seresnet50": ("layer1", 64),
    "resnetv2_50": ("stages.0", 64),
    "densenet121": ("features.transition1", 64),
    "efficientnet_b0": ("blocks.1", 64),
    "mobilenetv3_small_100": ("blocks.1", 64),
    "convnext_atto": ("stages.0", 64),
    "regnety_002": ("s1", 64),
    "vit_tiny_patch16_224": ("patch_embed.proj", 224),
    "mixer_s16_224": ("stem.proj", 224),
    "repvgg_a0": ("stages.0", 64),
    "ghostnet_100": ("blocks.1", 64),
    "dla34": ("level2", 64),
}
# just before an activation that works in place
BEFORE_IN_PLACE = {
    "efficientnet_b0": "features.0.1",
    "resnet18": "bn1",
    "densenet121": "features",
    "vgg11": "features.0",
    "mobilenet_v3_small": "features.0.1",
}
MODELS = [("torchvision", n, *v) for n, v in TORCHVISION.items()] + [("timm", n, *v) for n, v in TIMM.items()]
MODELS += [("torchvision", n, after, 64) for n, after in BEFORE_IN_PLACE.items()]
QUICK = {  # one of each kind; `make test-slow` takes the others
    ("torchvision", "resnet18", "layer1"),
    ("torchvision", "mobilenet_v3_small", "features.3"),
    ("torchvision", "googlenet", "inception3b"),
    ("torchvision", "swin_t", "features.1"),
    ("torchvision", "resnet18", "bn1"),
    ("torchvision", "efficientnet_b0", "features.0.1"),
    ("timm", "efficientnet_b0", "blocks.1"),
    ("timm", "vit_tiny_patch16_224", "patch_embed.proj"),
}
CHANNELS_LAST = ("swin_t", "vit_b_16")


def make(library, name, **options):
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(name, num_classes=5, **options)
    extra = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=5, **extra)


@pytest.mark.parametrize(
    "library, name, after, size",
    [
        pytest.param(*m, id=f"{m[0]}-{m[1]}-{m[2]}", marks=[] if m[:3] in QUICK else pytest.mark.slow)
        for m in MODELS
    ],
)
def test_parts_are_the_model(library, name, after, size):
    model = make(library, name).eval()
    stem, head = split(model, after)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        features = stem(x)
        before = features.clone()
        assert torch.equal(head(features), model(x))
    assert torch.equal(features, before)
    assert stem.rectified == (before.min() >= 0).item()
    own = {k: id(p) for k, p in model.named_parameters()}
    assert all(own[k] == id(p) for part in (stem, head) for k, p in part.named_parameters())
    assert bool(stem.last_axis) == (name in CHANNELS_LAST)
    if stem.last_axis:
        return
    net = prepare(model, after, eps=0.0, steps=1).eval()
    assert torch.equal(*net.losses(x, torch.tensor([0, 1])))
    for branch in ("clean", "adversarial"):
        plain = make(library, name)
        plain.load_state_dict(net.export(branch))
        with torch.no_grad():
            assert torch.equal(plain.eval()(x), model(x))


@pytest.mark.parametrize(
    "library, name, after",
    [
        ("torchvision", "convnext_tiny", "features.1"),
        ("torchvision", "alexnet", "features.2"),
        ("torchvision", "efficientnet_b0", "features.2"),
    ],
)
def test_randomness_of_train_mode_survives(library, name, after):
    model = make(library, name)
    stem, head = split(model, after)
    features = stem.eval()(torch.randn(4, 3, 64, 64))

    def spread():
        return (head(features) - head(features)).abs().max().item()

    head.train()
    for m in head.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    assert spread() > 0
    head.eval()
    assert spread() == 0


def test_train_mode_equals_the_model_with_the_same_seed():
    model = make("torchvision", "efficientnet_b0").train()
    stem, head = split(model, "features.2")
    x = torch.randn(4, 3, 64, 64)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.allclose(head(stem(x)), expected, atol=1e-6)


@pytest.mark.parametrize(
    "name, after, size",
    [("efficientnet_b0", "blocks.1", 64), ("vit_tiny_patch16_224", "patch_embed.proj", 224)],
)
def test_train_mode_keeps_statements_in_place(name, after, size):
    "timm's stochastic depth divides its mask in place, in a statement of its own."
    model = make("timm", name, drop_path_rate=0.5).train()
    stem, head = split(model, after)
    x = torch.randn(4, 3, size, size)

    def seeded(run, seed):
        torch.manual_seed(seed)
        return run(x)

    expected = seeded(model, 0)
    assert torch.allclose(seeded(lambda x: head(stem(x)), 0), expected, atol=1e-6)
    assert not torch.allclose(seeded(model, 1), expected, atol=1e-3)


class InPlace(nn.Module):
    "Statements in place, whole and through a view, before and after each cut."

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.act, self.block = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 2, 1),
            nn.SiLU(True),
            Rectified(),
        )

    def forward(self, x):
        x = self.a(x)
        F.leaky_relu_(x)
        x = self.b(x)
        x.mul_(2)
        x[:, 1:3].sub_(1)
        x = self.block(x)
        y = x.flatten(2)
        self.act(y)
        return self.c(x).mean((2, 3))


class Rectified(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        F.relu_(x)
        return x


@pytest.mark.parametrize(
    "after, rectified", [("a", False), ("b", False), ("block.conv", False), ("block", True)]
)
@pytest.mark.parametrize("training", [True, False])
def test_statements_in_place_are_part_of_the_parts(after, rectified, training):
    torch.manual_seed(0)
    model = InPlace().train(training)
    stem, head = split(model, after)
    x = torch.randn(2, 3, 4, 4)
    features = stem(x).detach()
    before = features.clone()
    assert torch.equal(head(features), model(x)) and torch.equal(features, before)
    assert stem.rectified == rectified == (features.min() >= 0).item()


def test_signs_through_arithmetic():
    class Net(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.a, self.mix, self.c, self.change = (
                nn.Conv2d(3, 4, 1),
                nn.Identity(),
                nn.Conv2d(4, 2, 1),
                change,
            )

        def forward(self, x):
            return self.c(self.mix(self.change(self.a(x))))

    for change, rectified in [
        (lambda x: x.relu() + F.relu(x), True),
        (lambda x: x.relu() + x, False),
        (lambda x: x.relu() * 2 + 1, True),
        (lambda x: x.relu() * -2, False),
        (lambda x: x.relu() - 1, False),
        (lambda x: x.relu() * x.sigmoid(), True),
        (lambda x: torch.cat([x[:, :2].relu(), x[:, 2:]], 1), False),
        (lambda x: torch.cat([x.relu()[:, :2], x[:, 2:].relu()], 1), True),
        (lambda x: F.dropout(F.max_pool2d(x.relu(), 2, 1), 0.5).transpose(2, 3), True),
    ]:
        assert split(Net(change), "mix")[0].rectified == rectified


@pytest.mark.parametrize(
    "library, name, after",
    [
        ("torchvision", "mobilenet_v3_small", "features.3"),
        ("torchvision", "convnext_tiny", "features.1"),
        ("timm", "efficientnet_b0", "blocks.1"),
    ],
)
def test_parts_can_be_pickled_and_copied(library, name, after):
    x = torch.randn(1, 3, 64, 64)
    net = prepare(make(library, name), after).eval()
    with torch.no_grad():
        for twin in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
            assert (
                torch.equal(twin(x), net(x))
                and twin.export("adversarial").keys() == net.export("clean").keys()
            )


@pytest.mark.parametrize(
    "library, name, after, found",
    [
        ("torchvision", "swin_t", "features.1", "features.1.1.mlp.3"),
        ("torchvision", "swin_t", "features.0", "features.0.2"),
        ("torchvision", "vit_b_16", "encoder.layers.encoder_layer_1", ""),
        ("timm", "swin_tiny_patch4_window7_224", "layers.0", ""),
    ],
)
def test_channels_in_the_last_axis_are_refused(library, name, after, found):
    with pytest.raises(
        ValueError,
        match=rf"{after!r} have their channels in the last axis.*{found}.*\[N, C, H, W\].*AdvBNNet",
    ):
        prepare(make(library, name), after)


@pytest.mark.parametrize(
    "library, name, after",
    [
        ("torchvision", "convnext_tiny", "features.3"),
        ("torchvision", "swin_t", "features.0.0"),
        ("timm", "convnext_tiny", "stages.1"),
        ("torchvision", "regnet_y_400mf", "trunk_output.block2"),
        ("timm", "maxvit_tiny_tf_224", "stages.0"),
        ("timm", "edgenext_xx_small", "stages.1"),
    ],
)
def test_channels_in_the_second_axis_are_accepted(library, name, after):
    assert not split(make(library, name), after)[0].last_axis


def test_advice_is_tried_before_it_is_given():
    with pytest.raises(ValueError, match="none of its children works either; .*AdvBNNet"):
        split(make("torchvision", "vit_b_16"), "conv_proj")
    with pytest.raises(ValueError) as error:
        split(make("torchvision", "resnet18"), "layer2.0.conv1")
    assert str(error.value).endswith("such as 'layer1', 'layer2', 'layer3', 'layer4'")
    for child in ("layer1", "layer2", "layer3", "layer4"):
        split(make("torchvision", "resnet18"), child)


@pytest.mark.parametrize(
    "after, words",
    [
        ("layer_1", ["no module 'layer_1'", "'layer1'"]),
        ("layer1.0.conv1", ["crosses this cut", "'layer1'"]),
        ("layer1.0.relu", ["2 times"]),
        ("", ["no module ''"]),
    ],
)
def test_a_cut_that_does_not_work_says_what_does(after, words):
    with pytest.raises(ValueError) as error:
        split(make("torchvision", "resnet18"), after)
    assert all(w in str(error.value) for w in words)


def test_an_untraceable_model_says_so():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.a(x) if x.mean() > 0 else x

    with pytest.raises(ValueError, match="cannot be traced.*AdvBNNet"):
        split(Moody(), "a")


def test_flags_of_the_model_are_left_alone():
    model = make("torchvision", "resnet18").train()
    model.bn1.eval()
    before = [m.training for m in model.modules()]
    split(model, "layer1")
    assert [m.training for m in model.modules()] == before


@pytest.mark.parametrize(
    "make, stages",
    [
        ("resnet18", ["layer1", "layer2", "layer3"]),
        ("efficientnet_b0", ["features.0", "features.1", "features.2"]),
        ("convnext_tiny", ["features.0", "features.1", "features.2"]),
    ],
)
def test_the_first_stages_are_proposed_where_no_name_is_near(make, stages):
    model = getattr(torchvision.models, make)(num_classes=3)
    assert first_stages(model) == stages
    with pytest.raises(
        ValueError, match=f"no module 'stage_one'; the first stages .* {', '.join(map(repr, stages))}"
    ):
        split(model, "stage_one")


def test_another_networks_name_of_a_stage_is_answered_with_the_stages_of_this_one():
    model = torchvision.models.efficientnet_b0(num_classes=3)
    with pytest.raises(ValueError) as refused:
        split(model, "layer1")
    assert "'features.1'" in str(refused.value) and "'classifier'" not in str(refused.value)
