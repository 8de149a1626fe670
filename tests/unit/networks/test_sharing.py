"""Networks with the same stem give their own logits, and the stem runs once for all of them."""

import copy

import pytest
import torch
from torch import nn

from advbn.adapters.evaluate import evaluate
from advbn.evidence.evaluation import predict_each
from advbn.evidence.testing import score
from advbn.images.batches import Images
from advbn.method.folding import for_inference
from advbn.method.network import prepare
from advbn.networks.models import build_model
from advbn.networks.sharing import Sharing, behind_one_stem, sharing_stem


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (70, 3, 40, 40), dtype=torch.uint8, generator=generator)


def trained_on(network, seed, *layers):
    "A copy of a network with other weights in some layers."
    torch.manual_seed(seed)
    other = copy.deepcopy(network)
    for layer in layers:
        nn.init.normal_(other.get_submodule(layer).weight)
    return other.eval()


@pytest.fixture
def networks():
    network = build_model("small_resnet", 9).eval()
    return {name: trained_on(network, seed, "fc") for seed, name in enumerate(("a", "b", "c"))}


def runs_of(shared):
    "A list that grows by the images of each run of the stem."
    seen = []
    shared.stem.part.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    return seen


@torch.inference_mode()
def test_every_network_gives_its_own_logits_and_the_stem_runs_once_a_batch(networks, images):
    shared = sharing_stem(networks, "layer1")
    assert all(isinstance(one, Sharing) for one in shared.values())
    ran = runs_of(shared["a"])
    for batch in (images[:8] / 255.0, images[8:11] / 255.0):
        for name, network in networks.items():
            assert torch.equal(shared[name](batch), for_inference(network)(batch))
    assert ran == [8, 3] and [one.alike for one in shared.values()] == [
        {False: True},
        {True: True},
        {True: True},
    ]
    alone = {name: for_inference(network) for name, network in networks.items()}
    one, other = predict_each(shared, images), predict_each(alone, images)
    assert all(torch.equal(one[name], other[name]) for name in networks) and ran == [8, 3, 64, 6]


def test_only_networks_with_the_same_stem_share_it(networks):
    first = trained_on(networks["a"], 4, "conv1")
    both = {**networks, "d": trained_on(first, 5, "fc"), "e": trained_on(first, 6, "fc")}
    both["f"] = trained_on(first, 7, "layer1.0.conv1")
    shared = sharing_stem(both, "layer1")
    stems = {name: getattr(one, "stem", None) for name, one in shared.items()}
    assert stems["a"] is stems["b"] is stems["c"] is not stems["d"]
    assert stems["d"] is stems["e"] and stems["e"] is not None and stems["f"] is None


@pytest.mark.parametrize("after", [None, "layer7", "layer1.0.conv2"])
def test_where_nothing_can_be_shared_networks_are_as_they_are(networks, images, after):
    shared = sharing_stem(networks, after)
    assert not any(isinstance(one, Sharing) for one in shared.values())
    one, other = predict_each(shared, images), predict_each(networks, images)
    assert all(torch.equal(one[name], other[name]) for name in networks)


class InPlace(nn.Module):
    "Adds to what it is given, where it stands."

    def __init__(self, number):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(float(number)), requires_grad=False)

    def forward(self, x):
        return x.add_(self.number).flatten(1)[:, :9]


@torch.inference_mode()
def test_parts_that_work_in_place_disturb_nobody(images):
    heads = {"a": InPlace(1), "b": InPlace(2)}
    for stem in (nn.Identity(), InPlace(3)):
        parts = {name: (copy.deepcopy(stem), head) for name, head in heads.items()}
        whole = {name: nn.Sequential(*pair).eval() for name, pair in parts.items()}
        shared = behind_one_stem(whole, parts)
        batch = images[:5] / 255.0
        before, expected = batch.clone(), {n: one(batch.clone()) for n, one in whole.items()}
        for _ in range(3):
            assert all(torch.equal(one(batch), expected[name]) for name, one in shared.items())
            assert torch.equal(batch, before)
            batch = batch.clone()


def test_a_score_is_the_same_with_one_stem(networks, images):
    shown = Images(images, torch.arange(70) % 9, tuple(map(str, range(70))), tuple("abcdefghi"))
    made = [("clean", "clean", shown), ("corruptions", "fog/1", shown)]
    (one, predicted), (other, alone) = (score(networks, made, "", after=after) for after in ("layer1", None))
    assert one.equals(other)
    assert all((predicted.classes[name] == alone.classes[name]).all() for name in networks)


def test_both_branches_of_a_network_are_tested_with_one_stem(images):
    net = prepare(build_model("small_resnet", 9), "layer1")
    torch.manual_seed(0)
    net.train()
    for _ in range(3):
        net.losses(torch.randn(16, 3, 40, 40), torch.arange(16) % 9, backward=torch.Tensor.backward)
    net.eval()
    plain = {}
    for branch in ("clean", "adversarial"):
        plain[branch] = build_model("small_resnet", 9).eval()
        plain[branch].load_state_dict(net.export(branch))
    shown = Images(images, torch.arange(70) % 9, tuple(map(str, range(70))), tuple("abcdefghi"))
    found = evaluate(net, shown, ["clean"])
    expected = evaluate(plain, shown, ["clean"])
    for branch in plain:
        assert found.values(branch).equals(expected.values(branch))
