"""Some emoji and an autoencoder trained a little, as fixtures."""

import pytest
import torch

from advbn.images.batches import MemoryBatches, read_images
from advbn.networks.autoencoder import Autoencoder
from advbn.networks.models import build_model
from advbn.training.loop import fit_decoder


@pytest.fixture(scope="module")
def images(root):
    return read_images(root / "data/openmoji")[range(0, 1898, 19)]


@pytest.fixture(scope="module")
def autoencoder(images):
    torch.manual_seed(0)
    made = Autoencoder(build_model("small_vgg", 9), "features.relu2_2")
    errors = fit_decoder(made, MemoryBatches(images, 10, seed=0), epochs=4, lr=2e-3)
    assert errors[-1] < 0.7 * errors[0]
    return made
