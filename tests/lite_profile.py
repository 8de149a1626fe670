"""A project whose network wants images normalised in its own way, and what that network is given."""

import pytest
import timm
import torch
import yaml
from miniature_imagenet import imagenet_tree, parameters, picture
from torch import nn

from advbn.networks.models import build_model

LITE, HALF = "timm/tf_efficientnet_lite0", (0.5, 0.5, 0.5)


def seen_by_first_convolutions(work):
    "Every batch of images that a convolution of three channels is given during `work()`."
    seen = []

    def look(module, inputs):
        if (
            isinstance(module, nn.Conv2d) and module.in_channels == 3 and type(inputs[0]) is torch.Tensor
        ):  # and no stand-in while it is traced
            seen.append((module.out_channels, inputs[0].detach().cpu().clone()))

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        return work(), seen
    finally:
        handle.remove()


def pixels(batch, mean, std):
    "Is this a batch of whole numbers from 0 to 255, once its normalisation is undone?"
    found = 255 * (batch * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1))
    return (found - found.round()).abs().max() < 1e-3 and -0.01 < found.min() and found.max() < 255.01


@pytest.fixture(scope="module")
def lite():
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()


@pytest.fixture
def lite_project(tmp_path, lite, root, monkeypatch):
    """A project with ImageNet in miniature and a file of weights of a network that is not normalised as
    ImageNet's are."""
    imagenet_tree(tmp_path / "imagenet")
    for wnid in ("n01484850", "n01440764"):
        picture(tmp_path / "sketches" / wnid / "sketch_0.JPEG", (70, 50), "L", 5)
    torch.save(lite.state_dict(), tmp_path / "resnet50.pth")
    torch.save(build_model("small_vgg", 3).state_dict(), tmp_path / "vgg.pth")
    content = parameters(tmp_path, root)
    content["profiles"]["imagenet"]["network"].update(name=LITE, after="blocks.1")
    content["profiles"]["imagenet"]["finetune"].update(epochs=1, schedule="constant", milestones=[])
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def offline(monkeypatch):
    "No weights come from anywhere."

    def refuse(*args, **kwargs):
        raise AssertionError("a download was begun")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
