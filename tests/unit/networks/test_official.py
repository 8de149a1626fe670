"""Checkpoints of the paper's code: networks in its structure, with its names, run here, and their checkpoints
imported."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advbn.method.dual_batchnorm import use_branch
from advbn.networks.official import read_official


def norms(width):
    return nn.BatchNorm2d(width), nn.BatchNorm2d(width)


class Block(nn.Module):
    "A residual block with every batch norm twice; `kernels` as in torchvision's BasicBlock or Bottleneck."

    def __init__(self, before, width, stride, kernels, expansion):
        super().__init__()
        channels = [before, *[width] * (len(kernels) - 1), width * expansion]
        self.depth = len(kernels)
        for i, kernel in enumerate(kernels, 1):
            strided = i == (1 if len(kernels) == 2 else 2)
            setattr(
                self,
                f"conv{i}",
                nn.Conv2d(
                    channels[i - 1], channels[i], kernel, stride if strided else 1, kernel // 2, bias=False
                ),
            )
            clean, adv = norms(channels[i])
            setattr(self, f"clean_bn{i}", clean)
            setattr(self, f"adv_bn{i}", adv)
        self.downsample = None
        if stride != 1 or before != channels[-1]:
            self.downsample = nn.Module()
            self.downsample.conv = nn.Conv2d(before, channels[-1], 1, stride, bias=False)
            self.downsample.clean_bn, self.downsample.adv_bn = norms(channels[-1])

    def forward(self, x, tag):
        out = x
        for i in range(1, self.depth + 1):
            out = getattr(self, f"{tag}_bn{i}")(getattr(self, f"conv{i}")(out))
            out = out.relu() if i < self.depth else out
        if self.downsample is not None:
            x = getattr(self.downsample, f"{tag}_bn")(self.downsample.conv(x))
        return (out + x).relu()


class OfficialResNet(nn.Module):
    def __init__(self, kernels, expansion, blocks, cut, classes=1000):
        super().__init__()
        stages, before = [], 64
        for i, (width, count) in enumerate(zip((64, 128, 256, 512), blocks)):
            made = []
            for j in range(count):
                made.append(Block(before, width, 2 if i and not j else 1, kernels, expansion))
                before = width * expansion
            stages.append(made)
        self.feature_x = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            *(nn.Sequential(*s) for s in stages[:cut]),
        )
        self.head, self.order = nn.Module(), []
        for i, stage in enumerate(stages[cut:], cut + 1):
            for j, block in enumerate(stage):
                setattr(self.head, f"layer{i}_{j}", block)
                self.order.append(f"layer{i}_{j}")
        self.head.fc = nn.Linear(before, classes)

    def forward(self, x, tag):
        for m in self.feature_x[:4]:
            x = m(x)
        for stage in self.feature_x[4:]:
            for block in stage:
                x = block(x, "clean")
        for name in self.order:
            x = getattr(self.head, name)(x, tag)
        return self.head.fc(x.mean((2, 3)))


class DenseLayer(nn.Module):
    def __init__(self, before, growth, first):
        super().__init__()
        self.first = first
        if not first:
            self.clean_norm1, self.adv_norm1 = norms(before)
        self.conv1 = nn.Conv2d(before, 4 * growth, 1, bias=False)
        self.clean_norm2, self.adv_norm2 = norms(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x, tag):
        out = x if self.first else getattr(self, f"{tag}_norm1")(x)
        out = self.conv1(out.relu())
        return torch.cat([x, self.conv2(getattr(self, f"{tag}_norm2")(out).relu())], 1)


class OfficialDenseNet121(nn.Module):
    "The head's first layer has no first batch norm, and the head counts its blocks from one."

    def __init__(self, cut, growth=32, config=(6, 12, 24, 16), classes=1000):
        super().__init__()
        self.feature_x, self.head, self.config, self.cut, width = nn.Module(), nn.Module(), config, cut, 64
        self.feature_x.conv0, self.feature_x.norm0 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        for i, layers in enumerate(config):
            place, number = (self.feature_x, i + 1) if i < cut else (self.head, i - cut + 1)
            block = nn.Module()
            for j in range(layers):
                setattr(
                    block, f"denselayer{j + 1}", DenseLayer(width + j * growth, growth, i == cut and j == 0)
                )
            setattr(place, f"denseblock{number}", block)
            width += layers * growth
            if i + 1 < len(config):
                transition = nn.Module()
                transition.clean_norm, transition.adv_norm = norms(width)
                transition.conv = nn.Conv2d(width, width // 2, 1, bias=False)
                setattr(place, f"transition{number}", transition)
                width //= 2
        self.head.clean_norm5, self.head.adv_norm5 = norms(width)
        self.head.classifier = nn.Linear(width, classes)

    def forward(self, x, tag):
        x = F.max_pool2d(self.feature_x.norm0(self.feature_x.conv0(x)).relu(), 3, 2, 1)
        for i in range(len(self.config)):
            place, number, which = (
                (self.feature_x, i + 1, "clean") if i < self.cut else (self.head, i - self.cut + 1, tag)
            )
            for layer in getattr(place, f"denseblock{number}").children():
                x = layer(x, which)
            if i + 1 < len(self.config):
                transition = getattr(place, f"transition{number}")
                x = F.avg_pool2d(transition.conv(getattr(transition, f"{which}_norm")(x).relu()), 2)
        return self.head.classifier(getattr(self.head, f"{tag}_norm5")(x).relu().mean((2, 3)))


CASES = {
    "resnet18": lambda: OfficialResNet((3, 3), 1, (2, 2, 2, 2), cut=2),
    "resnet50": lambda: OfficialResNet((1, 3, 1), 4, (3, 4, 6, 3), cut=1),
    "densenet121": lambda: OfficialDenseNet121(cut=1),
}


@pytest.fixture(
    params=[
        "resnet18",
        *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "resnet18"),
    ],
    scope="module",
)
def case(request, tmp_path_factory):
    torch.manual_seed(0)
    network = CASES[request.param]().eval()
    with torch.no_grad():
        for name, value in network.named_buffers():
            if "running" in name:
                value.uniform_(0.5, 1.5)
        for name, value in network.named_parameters():
            if "bn" in name or "norm" in name:
                value.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("official") / "checkpoint.pth.tar"
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    torch.save({"epoch": 20, "arch": request.param, "state_dict": state, "best_acc1": 77.0}, path)
    return request.param, network, path, state


def test_the_format_is_the_one_described(case):
    arch, _, _, state = case
    known = {
        "resnet18": "module.head.layer3_0.downsample.adv_bn.bias",
        "resnet50": "module.head.layer2_0.clean_bn1.weight",
        "densenet121": "module.head.denseblock1.denselayer2.adv_norm1.weight",
    }
    assert known[arch] in state
    assert arch == "densenet121" or "module.feature_x.0.weight" in state


def test_both_branches_compute_the_same(case):
    arch, network, path, _ = case
    made = read_official(path)
    assert (made.arch, made.epoch, made.after) == (
        arch,
        20,
        {"resnet18": "layer2", "resnet50": "layer1", "densenet121": "features.transition1"}[arch],
    )
    images, both = torch.randn(2, 3, 64, 64), made.network()
    with torch.no_grad():
        for branch, tag in (("clean", "clean"), ("adversarial", "adv")):
            expected = network(images, tag)
            assert torch.allclose(
                made.model(branch)(images), expected, atol=1e-4 * expected.abs().max().item()
            )
            with use_branch(both, branch):
                assert torch.allclose(both(images), expected, atol=1e-4 * expected.abs().max().item())
        assert not torch.allclose(network(images, "clean"), network(images, "adv"), rtol=0.01)


def test_order_of_keys_does_not_matter(case, tmp_path):
    arch, _, path, state = case
    shuffled = dict(reversed(state.items()))
    torch.save({"arch": arch, "state_dict": shuffled}, tmp_path / "reversed.pt")
    one, other = read_official(path), read_official(tmp_path / "reversed.pt")
    assert list(one.clean) == list(other.clean)
    assert all(torch.equal(one.adversarial[k], other.adversarial[k]) for k in one.adversarial)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.update(arch="resnet49"), "'resnet49'; allowed are torchvision's ResNets"),
        (lambda c: c.pop("arch"), "allowed are torchvision's"),
        (lambda c: c.update(state_dict={}), "no stage of the network lies in"),
        (lambda c: c.update(state_dict=[1]), "holds list"),
        (lambda c: c["state_dict"].pop("module.head.fc.weight"), "1 keys are missing (such as fc.weight)"),
        (
            lambda c: c["state_dict"].update({"module.head.extra": torch.zeros(1)}),
            "1 are left over (such as head.extra)",
        ),
        (lambda c: c.update(arch="resnet34"), "keys are missing"),
        (lambda c: c.update(arch="resnet50x"), "the nearest is 'resnet50'"),
        (
            lambda c: c.pop("arch"),
            "does not name its architecture: give it as arch, on the command line with --arch",
        ),
        (lambda c: c.update(arch=torch.zeros(2)), "does not name its architecture"),
        (lambda c: c.update(arch="densenet121"), "no stage of the network"),
        (
            lambda c: [c["state_dict"].pop(f"module.head.fc.{leaf}") for leaf in ("weight", "bias")],
            "has no classifier; expected are the keys 'head.fc.weight'",
        ),
        (lambda c: c["state_dict"].update({"module.head.fc.bias": torch.tensor(1.0)}), "has no classifier"),
        (
            lambda c: c.update(state_dict={3: torch.zeros(1)}),
            "holds dict with Tensor under 3; expected is a dictionary from names to tensors",
        ),
        (lambda c: c.update(state_dict={"a": 1}), "holds dict with int under 'a'"),
        (lambda c: c.pop("state_dict"), "holds dict with str under 'arch'"),
    ],
)
def test_other_files_are_refused(tmp_path, change, words):
    content = {
        "arch": "resnet18",
        "state_dict": {f"module.{k}": v for k, v in CASES["resnet18"]().state_dict().items()},
    }
    change(content)
    torch.save(content, tmp_path / "wrong.pt")
    with pytest.raises(ValueError) as caught:
        read_official(tmp_path / "wrong.pt")
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "it is empty, cut short or was not written by torch.save"),
        (b"101", "Unsupported operand 49"),
        (b"hello world\n", "it is empty, cut short or was not written by torch.save"),
        (b"PK\x03\x04zzz", "not a ZIP archive"),
    ],
)
def test_a_file_that_is_no_checkpoint_gives_the_reason(tmp_path, content, words):
    (tmp_path / "wrong.pt").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors: ") as caught:
        read_official(tmp_path / "wrong.pt")
    assert str(caught.value).endswith(words)


def test_a_wrong_architecture_of_the_caller_is_called_so(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="arch is 'resnet5'; allowed are .*; the nearest is 'resnet50'"):
        read_official(tmp_path / "bare.pt", "resnet5")


def test_a_payload_is_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"arch": "resnet18", "state_dict": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors: Unsupported global"):
        read_official(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_from_the_command_line(case, tmp_path, run):
    arch, network, path, _ = case
    status, _, said = run("import-official", path, "--out", tmp_path)
    assert status == 0, said
    import torchvision

    model = torchvision.models.get_model(arch)
    model.load_state_dict(torch.load(tmp_path / f"{arch}-adversarial.pt", weights_only=True))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images, "adv")
        assert torch.allclose(model.eval()(images), expected, atol=1e-4 * expected.abs().max().item())
