"""The decoder mirrors its encoder and is trained without touching it."""

import torch

from advbn.images.batches import MemoryBatches
from advbn.method.splitting import split
from advbn.networks.autoencoder import Autoencoder, mirrored_decoder
from advbn.networks.models import build_model
from advbn.training.loop import fit_decoder


def test_the_decoder_mirrors_vgg19():
    encoder, _ = split(build_model("torchvision/vgg19", 10), "features.20")
    x = torch.randn(1, 3, 64, 64)
    features = encoder(x)
    assert features.shape == (1, 512, 8, 8)  # relu4_1
    assert mirrored_decoder(encoder)(features).shape == x.shape


def test_training_the_decoder_leaves_the_classifier_alone(images):
    torch.manual_seed(0)
    made = Autoencoder(build_model("small_vgg", 9), "features.relu2_2")
    before = {k: v.clone() for k, v in made.classifier.state_dict().items()}
    fit_decoder(made, MemoryBatches(images[range(20)], 10, seed=0), epochs=1, lr=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in made.classifier.state_dict().items())
