"""A network for one's own classes: which classifier it keeps, and which it gets anew."""

import pytest
import torch
from torch import nn

from advbn.base.finetuning import Options
from advbn.images.preprocessing import preprocessing_of
from advbn.networks.models import build_model, imagenet_numbers
from advbn.networks.start import start_network, with_new_classifier
from advbn.networks.weights import save_state

PETS = ("cat", "dog", "hamster")


def test_without_weights_it_is_random_and_trained_first():
    first, again = (start_network("small_resnet", PETS, Options()) for _ in range(2))
    assert first.pretrain and first.rebuilt and not first.taught and first.words == "random numbers"
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters()))


@pytest.mark.parametrize("classes, new", [(3, False), (9, True)])
def test_weights_keep_a_classifier_that_fits_and_get_another_where_it_does_not(tmp_path, classes, new):
    torch.manual_seed(1)
    model = build_model("small_resnet", classes)
    save_state(model.state_dict(), tmp_path / "net.pt")
    start = start_network("small_resnet", PETS, Options(weights=str(tmp_path / "net.pt")))
    assert start.pretrain is new and start.model.fc.out_features == 3 and start.taught
    assert torch.equal(start.model.layer3[1].conv2.weight, model.layer3[1].conv2.weight)
    assert torch.equal(start.model.fc.weight, model.fc.weight) is not new
    asked = start_network("small_resnet", PETS, Options(weights=str(tmp_path / "net.pt"), head="new"))
    assert asked.pretrain and not torch.equal(asked.model.fc.weight, model.fc.weight[:3])


def test_imagenet_weights_go_to_other_classes_and_to_some_of_its_own():
    whole = build_model("efficientnet_lite0", 1000, "package")
    pets = start_network("efficientnet_lite0", PETS, Options(weights="package"))
    assert pets.pretrain and pets.words == "weights package, with a new classifier"
    assert tuple(pets.model.classifier.weight.shape) == (3, 1280) and preprocessing_of(pets.model).size == 224
    wnids = ("n02123045", "n02085620")
    some = start_network("efficientnet_lite0", wnids, Options(weights="package"))
    assert not some.pretrain and some.words == "weights package, with their rows of ImageNet's classifier"
    assert torch.equal(some.model.classifier.weight, whole.classifier.weight[imagenet_numbers(wnids)])


class Named(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.body, self.last = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1)), last

    def forward(self, x):
        x = self.body(x)
        return self.last(x).flatten(1) if isinstance(self.last, nn.Conv2d) else self.last(x.flatten(1))


@pytest.mark.parametrize("last", [nn.Linear(5, 7), nn.Linear(5, 7, bias=False), nn.Conv2d(5, 7, 1)])
def test_a_module_is_left_as_it_is_and_its_copy_fits(last):
    model = Named(last)
    start = start_network(model, PETS, Options())
    assert start.pretrain and not start.rebuilt and start.name == "Named"
    assert start.model(torch.zeros(2, 3, 16, 16)).shape == (2, 3) and model(
        torch.zeros(2, 3, 16, 16)
    ).shape == (2, 7)
    assert torch.equal(start.model.body[0].weight, model.body[0].weight)
    fitting = start_network(model, tuple("abcdefg"), Options())
    assert not fitting.pretrain and torch.equal(fitting.model.last.weight, model.last.weight)


def test_a_network_without_a_last_layer_is_refused():
    with pytest.raises(
        ValueError, match="has 5 outputs, the images 3 classes.*give a network with 3 outputs"
    ):
        with_new_classifier(nn.Sequential(nn.Flatten(), nn.Softmax(1)), 3, 5)
    with pytest.raises(ValueError, match="returns no logits"):
        start_network(nn.Conv2d(3, 3, 1), PETS, Options())


@pytest.mark.parametrize(
    "name, weights, said",
    [
        ("small_resnett", None, "no network 'torchvision/small_resnett'; the nearest are"),
        ("torchvision/resnet18", "DEFALT", "did you mean 'DEFAULT'"),
        ("small_resnet", "DEFAULT", "has no published weights"),
    ],
)
def test_slips_are_said(name, weights, said):
    with pytest.raises(ValueError, match=said):
        start_network(name, PETS, Options(weights=weights))


def test_weights_that_cannot_be_downloaded_say_what_is_needed(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(
        OSError, match=r"^the weights IMAGENET1K_V1 of resnet18 could not be downloaded .*that holds them$"
    ):
        start_network("resnet18", PETS, Options(weights="DEFAULT"))
    with pytest.raises(FileNotFoundError, match="no weights at nowhere.pt"):
        start_network("resnet18", PETS, Options(weights="nowhere.pt"))


def test_the_hub_without_a_network_says_what_is_needed(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        OSError, match="hub:nobody/nothing could not be loaded; needed is a repository of timm's"
    ):
        start_network("hub:nobody/nothing", PETS, Options())


def test_default_weights_are_those_of_the_package_and_their_lack_is_told():
    start = start_network("efficientnet_lite0", PETS, Options(weights="DEFAULT"))
    package = build_model("efficientnet_lite0", 1000, "package")
    assert torch.equal(start.model.conv_stem.weight, package.conv_stem.weight)
    words = "random numbers; weights DEFAULT are published"
    assert start_network("efficientnet_lite0", PETS, Options()).words == words
    assert start_network("small_resnet", PETS, Options()).words == "random numbers"
