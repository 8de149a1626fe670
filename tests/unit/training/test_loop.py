import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy
import pytest
import torch
from torch import nn
from torchvision.models import mnasnet0_5

from advbn.config import load_params, Training
from advbn.errors import WeightsError
from advbn.images.batches import FolderBatches, MemoryBatches, read_images
from advbn.networks.models import build_model
from advbn.networks.weights import load_state, save_state
from advbn.training.distributed import synchronized
from advbn.training.loop import build_optimizer, finetuning_net, fit, pretraining_net
from conftest import ROOT

RECIPE = Training(epochs=2, batch_size=16, lr=0.02)


@pytest.fixture(scope="module")
def images(root):
    return read_images(root / "data/openmoji")[range(0, 1898, 30)]


def model(name="small_resnet"):
    torch.manual_seed(0)
    return build_model(name, 9)


@pytest.mark.parametrize("layer", [None, {"steps": 1}, {"steps": 0, "start": "random"}, {"recipe": "fast"}])
def test_the_loop_is_plain_sgd_on_the_sum_of_the_losses(images, layer):
    "The same steps written by hand give the same weights."
    loader = MemoryBatches(images, 16, seed=3)
    net, hand = finetuning_net(model(), "layer1", layer), finetuning_net(model(), "layer1", layer)
    history = fit(net, loader, RECIPE, seed=3)
    hand.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(hand.trainable_parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    from advbn.images.batches import step_seed

    step = 0
    for epoch in range(2):
        for x, y in loader.batches(epoch):
            torch.manual_seed(step_seed(3, "step", step, 0))
            optimizer.zero_grad()
            sum(hand.losses(x, y)).backward()
            optimizer.step()
            step += 1
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(net.state_dict().values(), hand.state_dict().values())
    )
    assert [h["epoch"] for h in history] == [1, 2] and all(
        math.isfinite(h["clean_loss"]) and 0 <= h["accuracy"] <= 100 for h in history
    )


def test_learning_happens(images):
    net = pretraining_net(model())
    history = fit(net, MemoryBatches(images, 16, seed=0), RECIPE.model_copy(update={"epochs": 8}), seed=0)
    assert history[-1]["clean_loss"] < 0.7 * history[0]["clean_loss"]


def test_a_big_set_streams(root):
    loader = FolderBatches(root / "data/openmoji", 32, 400, seed=0, workers=2)
    history = fit(pretraining_net(model("resnet20")), loader, RECIPE.model_copy(update={"epochs": 1}), seed=0)
    assert len(loader) == 4 and math.isfinite(history[0]["clean_loss"])


def test_bfloat16_trains(images):
    net = finetuning_net(model(), "layer1", {"steps": 1})
    history = fit(
        net, MemoryBatches(images, 16, seed=0), RECIPE.model_copy(update={"precision": "bf16"}), seed=0
    )
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in net.parameters()) and math.isfinite(
        history[-1]["adversarial_loss"]
    )
    with torch.no_grad():
        assert net(torch.randn(2, 3, 40, 40)).dtype == torch.float32


def test_schedules():
    for recipe, expected in (
        (Training(epochs=4, batch_size=1, lr=1.0, schedule="step", milestones=[2, 3]), [1, 1, 0.1, 0.01]),
        (Training(epochs=4, batch_size=1, lr=1.0), [1, 1, 1, 1]),
    ):
        optimizer, scheduler = build_optimizer([nn.Parameter(torch.zeros(1))], recipe, 5)
        rates = []
        for _ in range(20):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        assert rates[::5] == pytest.approx(expected)


def test_a_diverging_run_stops_and_says_where(images):
    net = pretraining_net(model())
    with torch.no_grad():
        net.head.fc.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"at step \d+ \(learning rate 0.02\)"):
        fit(net, MemoryBatches(images, 16, seed=0), RECIPE, seed=0)


def test_a_loader_for_other_processes_is_refused(images):
    with pytest.raises(ValueError, match="divides batches among 2 processes and there are 1"):
        fit(pretraining_net(model()), MemoryBatches(images, 16, seed=0, world=2), RECIPE, seed=0)


def test_checkpoints(tmp_path):
    net = mnasnet0_5(num_classes=2)
    save_state(net.state_dict(), tmp_path / "a" / "net.pt")
    mnasnet0_5(num_classes=2).load_state_dict(load_state(tmp_path / "a" / "net.pt"))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["net.pt"]
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_state(tmp_path / "b.pt")


def test_a_payload_is_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"weight": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match="was not executed"):
        load_state(tmp_path / "bad.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["small_resnet", "timm/efficientnet_b0"])
@pytest.mark.parametrize("layer", [None, {"steps": 1}])
def test_synchronised_heads_compute_the_same(name, layer):
    net = finetuning_net(model(name), "layer1" if name == "small_resnet" else "blocks.1", layer).eval()
    x = torch.randn(2, 3, 64, 64)
    before, keys = net(x), net.state_dict().keys()
    net.head = synchronized(net.head)
    assert torch.allclose(net.eval()(x), before, atol=1e-6) and net.state_dict().keys() == keys


def _trained_alone():
    """A fine-tune from nothing but seeds, as a process of the pipeline makes it: one thread, augmentation,
    attack."""
    torch.set_num_threads(1)
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 30)]
    net = finetuning_net(model(), "layer1", {"steps": 2, "start": "random"})
    fit(
        net,
        MemoryBatches(
            images, 16, seed=3, augment=load_params().current.data.augment, policy="trivialaugment"
        ),
        RECIPE,
        seed=3,
    )
    return {key: value.numpy() for key, value in net.state_dict().items()}


def test_two_processes_train_the_same_network_to_the_last_digit():
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other,
    ):
        first, second = one.submit(_trained_alone), other.submit(_trained_alone)
        assert all(numpy.array_equal(a, b) for a, b in zip(first.result().values(), second.result().values()))
