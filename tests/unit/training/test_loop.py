"""The training loop against plain SGD, its schedules, and what stops it."""

import math

import numpy as np
import pytest
import torch
from conftest import ROOT
from lite_profile import HALF
from torch import nn
from users_networks import EVALUATED

from advbn import AdvBN
from advbn.base.progress import Progress
from advbn.base.sections import Training
from advbn.images.batches import (
    FolderBatches,
    MemoryBatches,
    Reading,
    Share,
    normalize,
    read_images,
    to_pixels,
)
from advbn.images.preprocessing import Preprocessing, remember
from advbn.networks.models import build_model
from advbn.training.distributed import build_accelerator
from advbn.training.loop import build_optimizer, finetuning_net, fit, pretraining_net

RECIPE = Training(epochs=2, batch_size=16, lr=0.02)


@pytest.fixture(scope="module")
def images(root):
    return read_images(root / "data/openmoji")[range(0, 1898, 30)]


def model(name="small_resnet"):
    torch.manual_seed(0)
    return build_model(name, 9)


@pytest.mark.parametrize(
    "layer",
    [
        None,
        {"steps": 1},
        pytest.param({"steps": 0, "start": "random"}, marks=pytest.mark.slow),
        pytest.param({"recipe": "fast"}, marks=pytest.mark.slow),
    ],
)
def test_the_loop_is_plain_sgd_on_the_sum_of_the_losses(images, layer):
    "The same steps written by hand give the same weights."
    loader = MemoryBatches(images, 16, seed=3)
    net, hand = finetuning_net(model(), "layer1", layer), finetuning_net(model(), "layer1", layer)
    history = fit(net, loader, RECIPE, seed=3)
    hand.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(hand.trainable_parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    from advbn.images.augmentation import step_seed

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


@pytest.mark.slow
def test_a_big_set_streams(root):
    loader = FolderBatches(root / "data/openmoji", 32, 400, seed=0, reading=Reading(2))
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
        fit(pretraining_net(model()), MemoryBatches(images, 16, seed=0, share=Share(0, 2)), RECIPE, seed=0)


ONE_EPOCH = Training(epochs=1, batch_size=16, lr=0.02)


def test_constant_channels_batches_of_one_and_one_class():
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 200)]
    torch.manual_seed(0)
    net = finetuning_net(build_model("small_resnet", 9), "layer1", {"steps": 2})
    with torch.no_grad():
        net.stem.state_dict()["bn1.weight"][:4] = 0  # four channels are constant
    history = fit(net, MemoryBatches(images, 1, 0), ONE_EPOCH, 0)
    assert np.isfinite(history[0]["clean_loss"]) and all(
        v.isfinite().all() for v in net.state_dict().values()
    )
    features, targets = torch.ones(1, 4, 3, 3), torch.tensor([0])
    out = AdvBN()(
        features, targets, nn.Sequential(nn.Flatten(), nn.Linear(36, 1))
    )  # one class: no loss, no gradient, and nothing moves
    assert torch.equal(out, features)


def test_pixels_come_back_and_a_loader_of_another_normalisation_is_refused():
    images = read_images(ROOT / "data/openmoji")[range(16)]
    own = Preprocessing(HALF, (0.25, 0.25, 0.25))
    assert torch.allclose(normalize(images.images, own), (images.images / 255 - 0.5) / 0.25, atol=1e-5)
    assert torch.allclose(to_pixels(normalize(images.images, own), own), images.images / 255, atol=1e-6)
    net, recipe = (
        pretraining_net(remember(build_model("small_resnet", 9), own)),
        Training(epochs=1, batch_size=16, lr=0.01),
    )
    with pytest.raises(ValueError, match="make it with preprocessing=net.preprocessing"):
        fit(net, MemoryBatches(images, 16, 0), recipe, 0)
    loader = MemoryBatches(images, 16, 0, preprocessing=net.preprocessing)
    assert (
        len(fit(net, loader, recipe, 0)) == 1 and loader.identity() != MemoryBatches(images, 16, 0).identity()
    )


THREE_EPOCHS = Training(epochs=3, batch_size=16, lr=0.02, schedule="onecycle")


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 60)]
    torch.manual_seed(0)
    net = finetuning_net(build_model("small_resnet", 9), "layer1", None)
    next(p for p in net.trainable_parameters() if p.ndim == 4).register_hook(
        lambda gradient: gradient * float("inf")
    )
    with (
        pytest.raises(FloatingPointError, match="learning rate"),
        Progress(tmp_path / "run.pt", 1) as progress,
    ):
        fit(net, MemoryBatches(images, 16, 0), THREE_EPOCHS, 0, progress=progress)
    assert not (tmp_path / "run.pt").exists()


def test_training_takes_weights_of_five_axes():
    from advbn.images.batches import to_channels_last

    net = pretraining_net(EVALUATED["volumes"]())
    moved = to_channels_last(net)
    assert (
        moved is net
        and net.head[3].weight.is_contiguous(memory_format=torch.channels_last)
        and net.head[1].weight.ndim == 5
    )


@pytest.mark.parametrize("log", ["tensorboard", "dvclive"])
def test_losses_are_told_to_a_logger_too_and_change_nothing(images, tmp_path, monkeypatch, log):
    pytest.importorskip(log)
    monkeypatch.chdir(tmp_path)
    accelerator = build_accelerator(log=log, folder=tmp_path / "logs")
    told, alone = (finetuning_net(model(), "layer1", {"steps": 1}) for _ in range(2))
    loader = MemoryBatches(images, 16, seed=3)
    history = fit(told, loader, RECIPE, 3, "advbn, seed 3", accelerator)
    assert history == fit(alone, loader, RECIPE, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(told.state_dict().values(), alone.state_dict().values()))
    assert accelerator.trackers == [] and sorted(p.name for p in tmp_path.iterdir()) == ["logs"]
    (run,) = (tmp_path / "logs").iterdir()
    assert run.name == "advbn-seed-3"
    if log == "dvclive":
        rows = (run / "plots/metrics/clean_loss.tsv").read_text().split()[2:]
        steps, losses = map(int, rows[::2]), [float(x) for x in rows[1::2]]
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(run))
        events.Reload()
        steps, losses = zip(*((e.step, e.value) for e in events.Scalars("clean_loss")))
    per_epoch = len(loader)
    assert list(steps) == [per_epoch, 2 * per_epoch]
    assert losses == pytest.approx([epoch["clean_loss"] for epoch in history], rel=1e-5)
