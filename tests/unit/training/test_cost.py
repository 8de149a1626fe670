"""Costs: operations worked out by hand, times relative to a clean fine-tune."""

import dataclasses

import pytest
import torch

from advbn.base.config import load_params
from advbn.networks.models import build_model
from advbn.training import cost
from advbn.training.cost import relative_costs, run_flops, step_flops
from advbn.training.loop import finetuning_net, trained_net


@pytest.fixture(scope="module")
def params():
    return load_params()


def test_flops_are_those_worked_out_by_hand():
    """One 3 x 3 convolution in the head, one linear layer; the input's gradient is asked for by the attack
    alone."""
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1),
        torch.nn.Conv2d(4, 8, 3, padding=1, bias=False),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    )
    images, targets = torch.randn(2, 3, 10, 10), torch.tensor([0, 1])
    stem, conv, linear = 2 * 100 * 3 * 4, 2 * 100 * 4 * 8 * 9, 2 * 8 * 5
    clean = stem + 2 * conv + 3 * linear  # forward; the weights' gradients; the linear layer's input's
    assert step_flops(finetuning_net(model, "0", None), images, targets) == clean
    attacked = (
        clean + 2 * conv + 3 * linear + 3 * (2 * conv + 2 * linear)
    )  # a second loss, and three attacks: forward and the input's gradient
    assert step_flops(finetuning_net(model, "0", {"steps": 3}), images, targets) == attacked


def test_costs_are_relative_to_the_bases_clean_finetune(params):
    costs = relative_costs(params, None, 40)
    assert costs["finetune"] == 1 and costs["standard"] == 0 and 1.8 < costs["random"] < 2 < costs["advbn"]
    assert run_flops(params.rows()["standard"], 9, 40) == 0


def test_what_differs_in_strength_alone_is_counted_once(params, monkeypatch):
    row, counted = params.rows()["advbn"], []
    monkeypatch.setattr(cost, "_COUNTED", {})
    monkeypatch.setattr(cost, "step_flops", lambda *a: counted.append(a) or 7.0)

    def changed(**layer):
        method = row.method.model_copy(update={"layer": row.method.layer.model_copy(update=layer)})
        return dataclasses.replace(row, method=method, name="other")

    assert run_flops(row, 9, 40) == run_flops(changed(eps=0.3, step_size=0.1), 9, 40) == 7.0
    assert len(counted) == 2  # with one step of the attack and with two
    run_flops(changed(steps=2), 9, 40)
    assert len(counted) == 2
    run_flops(changed(eps=0.0), 9, 40), run_flops(row, 9, 48), run_flops(changed(perturb="mean"), 9, 40)
    assert len(counted) == 8


def test_operations_do_not_depend_on_how_many_images_are_counted(params, monkeypatch):
    for name in ("advbn", "fast"):
        row = params.rows()[name]
        monkeypatch.setattr(cost, "_COUNTED", {})
        net = trained_net(row.method, build_model(row.network.name, 9), row.after)
        images = torch.rand(16, 3, 40, 40) - 0.5
        assert run_flops(row, 9, 40) == pytest.approx(step_flops(net, images, torch.arange(16) % 9), rel=1e-6)
