"""A folder of a few emoji and a network for them, as fixtures."""

import pytest
import torch
from conftest import ROOT

from advbn.images.batches import read_images
from advbn.images.openmoji import write_png
from advbn.networks.models import build_model


@pytest.fixture(scope="module")
def emoji_folder(tmp_path_factory):
    "Twelve emoji of three classes as a folder of test images."
    images = read_images(ROOT / "data/openmoji")
    root = tmp_path_factory.mktemp("images")
    for c in range(3):
        for i in (images.targets == c).nonzero().flatten()[:4].tolist():
            path = root / images.names[i]
            path.parent.mkdir(exist_ok=True)
            write_png(path, images.images[i].permute(1, 2, 0).numpy())
    return root


@pytest.fixture(scope="module")
def emoji_network():
    torch.manual_seed(0)
    return build_model("small_resnet", 3).eval()
