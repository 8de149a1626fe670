"""What is chosen for a network and a machine: cut, precision, batch."""

import pytest
import torch
from torch import nn

from advbn.base.errors import ParameterError
from advbn.images.augmentation import augment_batch
from advbn.networks.models import build_model
from advbn.training.choices import (
    augmentation_for,
    batch_for,
    cuts,
    finetuning_recipe,
    kept_bytes,
    precision_for,
    pretraining_recipe,
    seconds_per_image,
    spatial,
    strength_for,
)
from advbn.training.train import check_precision
from advbn.training.loop import finetuning_net, pretraining_net


@pytest.mark.parametrize(
    "name, size, cut",
    [
        ("small_resnet", 40, "layer1"),
        ("resnet20", 32, "layer1"),
        ("torchvision/resnet18", 224, "layer1"),
        ("efficientnet_lite0", 128, "blocks.1"),
        ("small_convnext", 64, "features.1"),
        ("small_vgg", 40, "features"),
    ],
)
def test_the_first_stage_with_coarse_features_is_taken(name, size, cut):
    first, *_ = cuts(build_model(name, 5), size)
    assert first.path.startswith(cut) and (first.stride >= 4 or first.side <= 32)
    finetuning_net(build_model(name, 5), first.path, {})


def test_the_network_is_left_as_it_is_and_a_transformer_has_no_stage():
    model = build_model("small_resnet", 5).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stages = {stage.path: stage for stage in spatial(model, 40)}
    assert stages["layer2"][1:4] == (64, 10, 4.0) and stages["layer2"].blocks and not stages["conv1"].blocks
    assert model.training and not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match="VisionTransformer has no stage with features"):
        cuts(build_model("torchvision/vit_b_16", 5), 224)


def test_features_that_are_not_rectified_are_moved_less():
    assert strength_for(build_model("small_resnet", 5), "layer1")[0] == 1.1
    assert strength_for(build_model("small_convnext", 5), "features.1")[0] == 0.5


AMX, AVX512, OLD = frozenset({"avx512_bf16", "amx_bf16"}), frozenset({"avx512_bf16"}), frozenset({"avx2"})


@pytest.mark.parametrize(
    "asked, flags, taken",
    [
        ("auto", AMX, "bf16"),
        ("auto", AVX512, "no"),
        ("auto", OLD, "no"),
        ("bf16", AVX512, "bf16"),
        ("bf16", OLD, "no"),
        ("fp16", AMX, "no"),
        ("no", AMX, "no"),
    ],
)
def test_bf16_is_taken_where_the_processor_has_it(asked, flags, taken):
    precision, why = precision_for("cpu", asked, flags)
    assert precision == taken and why
    if asked == "bf16" and taken == "no":
        assert "no instructions for bf16" in why


def test_a_profile_that_asks_for_what_the_processor_lacks_is_refused():
    for precision, flags in (("bf16", AVX512), ("bf16", frozenset()), ("no", OLD)):
        check_precision("cpu", precision, flags)
    check_precision("cuda", "bf16", OLD)
    with pytest.raises(ParameterError, match="no instructions for it: a step took eleven times as long"):
        check_precision("cpu", "bf16", OLD)


def test_what_a_step_keeps_grows_with_the_image_and_leaves_no_trace():
    net = finetuning_net(build_model("small_resnet", 5), "layer1", None).train()
    small, large = kept_bytes(net, 32), kept_bytes(net, 64)
    whole = kept_bytes(pretraining_net(build_model("small_resnet", 5)).train(), 32)
    assert 3.8 < large / small < 4.2 and whole > small > 4 * 64 * 8 * 8


def test_a_batch_fits_into_memory_and_into_an_epoch():
    assert batch_for(1e6, 10**9, 5000) == 64 and batch_for(20e6, 10**9, 5000) == 16
    assert batch_for(1e6, 10**9, 100) == 16 and batch_for(1e12, 10**9, 5000) == 2
    assert batch_for(1e6, 10**9, 5000, world=2) == 128
    with pytest.raises(ValueError, match="there are 3 images"):
        batch_for(1, 1, 3)


def test_rates_go_with_the_batch_and_what_is_given_is_taken():
    assert pretraining_recipe(32, False, None, None).lr == 0.05
    assert finetuning_recipe(64, True, 7, 0.5).model_dump(include={"epochs", "lr"}) == {
        "epochs": 7,
        "lr": 0.5,
    }
    assert pretraining_recipe(64, True, None, None).epochs < pretraining_recipe(64, False, None, None).epochs
    images = torch.rand(2, 3, 16, 16)
    for size, asked in ((40, None), (224, None), (40, "none")):
        changed = augment_batch(images, augmentation_for(size, asked), torch.Generator())
        assert torch.allclose(changed, images, atol=1e-5) is (asked == "none")


def test_a_step_is_timed_on_a_copy():
    net = pretraining_net(build_model("small_resnet", 5))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert seconds_per_image(net, 32) > 0
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_a_single_layer_can_be_a_cut_where_there_is_no_stage():
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.Flatten(), nn.Linear(512, 5)
    )
    assert [stage.path for stage in cuts(plain, 32)] == ["0", "1", "2"]
