"""`split` on a wide list of torchvision and timm classifiers: exact in eval mode, alive in train mode, honest about what it cannot do."""
import pytest
import timm
import torch
import torchvision
from torch import nn

from advbn import prepare, split

# one cut each, at the end of a stage: (maker, path, input size)
TORCHVISION = {
    "alexnet": ("features.2", 64), "vgg11_bn": ("features.7", 64), "resnet18": ("layer1", 64), "resnet50": ("layer2", 64),
    "resnext50_32x4d": ("layer1", 64), "wide_resnet50_2": ("layer1", 64), "densenet121": ("features.transition1", 64),
    "googlenet": ("inception3b", 96), "inception_v3": ("Mixed_5d", 128), "squeezenet1_1": ("features.5", 64),
    "mobilenet_v2": ("features.3", 64), "mobilenet_v3_small": ("features.3", 64), "efficientnet_b0": ("features.2", 64),
    "efficientnet_v2_s": ("features.2", 64), "convnext_tiny": ("features.1", 64), "regnet_y_400mf": ("trunk_output.block1", 64),
    "shufflenet_v2_x0_5": ("stage2", 64), "mnasnet0_5": ("layers.8", 64), "swin_t": ("features.1", 64),
    "vit_b_16": ("encoder.layers.encoder_layer_1", 224), "maxvit_t": ("stem", 224),
}
TIMM = {
    "resnet18": ("layer1", 64), "resnet26d": ("layer1", 64), "seresnet50": ("layer1", 64), "resnetv2_50": ("stages.0", 64),
    "densenet121": ("features.transition1", 64), "efficientnet_b0": ("blocks.1", 64), "mobilenetv3_small_100": ("blocks.1", 64),
    "convnext_atto": ("stages.0", 64), "regnety_002": ("s1", 64), "vit_tiny_patch16_224": ("patch_embed.proj", 224),
    "mixer_s16_224": ("stem.proj", 224), "repvgg_a0": ("stages.0", 64), "ghostnet_100": ("blocks.1", 64), "dla34": ("level2", 64),
}
MODELS = [("torchvision", n, *v) for n, v in TORCHVISION.items()] + [("timm", n, *v) for n, v in TIMM.items()]


def make(library, name):
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(name, num_classes=5)
    extra = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=5, **extra)


@pytest.mark.parametrize("library, name, after, size", MODELS, ids=[f"{m[0]}-{m[1]}" for m in MODELS])
def test_parts_are_the_model(library, name, after, size):
    model = make(library, name).eval()
    stem, head = split(model, after)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(head(stem(x)), model(x))
    own = {k: id(p) for k, p in model.named_parameters()}
    assert all(own[k] == id(p) for part in (stem, head) for k, p in part.named_parameters())
    net = prepare(model, after)
    for branch in ("clean", "adversarial"):
        plain = make(library, name)
        plain.load_state_dict(net.export(branch))
        with torch.no_grad():
            assert torch.equal(plain.eval()(x), model(x))


@pytest.mark.parametrize("library, name, after", [
    ("torchvision", "convnext_tiny", "features.1"), ("torchvision", "alexnet", "features.2"), ("torchvision", "efficientnet_b0", "features.2")])
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


@pytest.mark.parametrize("after, words", [
    ("layer_1", ["no module 'layer_1'", "'layer1'"]),
    ("layer1.0.conv1", ["crosses this cut", "'layer1'"]),
    ("layer1.0.relu", ["2 times"]),
    ("", ["no module ''"]),
])
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
