"""Accuracies, intervals, mCE, and predictions of the network's own forward."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet18
from users_networks import EVALUATED, IMAGES, Net, conv_bn, same, snapshot, used

from advbn import CORRUPTIONS, AdvBN, mean_corruption_error
from advbn.method.folding import for_inference
from advbn.evidence.evaluation import ALEXNET, mean_error, predict, predict_each, top1_accuracy
from advbn.images.batches import normalize
from advbn.method.splitting import split
from advbn.networks.autoencoder import Autoencoder
from advbn.networks.models import build_model
from advbn.shifts.styles import adversarial, stylized

FULL = {name: [0.1, 0.2, 0.3, 0.4, 0.5] for name in CORRUPTIONS}


def test_alexnet_is_the_published_baseline():
    assert mean_corruption_error({n: [e] * 5 for n, e in ALEXNET.items()}) == pytest.approx(100)
    assert np.mean(list(ALEXNET.values())) == pytest.approx(0.788, abs=0.002)
    assert mean_corruption_error(FULL) == pytest.approx(np.mean([30 / ALEXNET[n] for n in CORRUPTIONS]))
    assert mean_error(FULL) == pytest.approx(30)
    assert mean_corruption_error(FULL, baseline=FULL) == pytest.approx(100)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 0.5), min_size=15, max_size=15), st.floats(0.1, 2))
def test_mce_is_homogeneous_in_the_errors(levels, factor):
    errors = {n: [v] * 5 for n, v in zip(CORRUPTIONS, levels)}
    scaled = {n: [v * factor for v in values] for n, values in errors.items()}
    assert mean_corruption_error(scaled) == pytest.approx(factor * mean_corruption_error(errors))
    assert mean_corruption_error(scaled, baseline=errors) == pytest.approx(100 * factor)


@pytest.mark.parametrize(
    "change, baseline, words",
    [
        ({"fog": None}, "alexnet", "errors of fog are missing"),
        ({"fog": [0.1] * 4}, "alexnet", "fog has 4 errors"),
        ({"fogg": [0.1] * 5}, "alexnet", "did you mean 'fog'"),
        ({"fog": [10.0] * 5}, "alexnet", "fractions from 0 to 1"),
        ({"fog": [float("nan")] * 5}, "alexnet", "fractions"),
        ({}, "resnet", "'alexnet' and another network's"),
        ({}, {"fog": [0.1] * 5}, "are missing"),
        ({}, {**FULL, "fog": [0.0] * 5}, "no error on fog"),
        ({"fog": 0.3}, "alexnet", "fog is 0.3; needed are five fractions"),
        ({"fog": torch.tensor(0.3)}, "alexnet", "fog is 0.3"),
        ({"fog": np.array(0.3)}, "alexnet", r"fog is array\(0.3\)"),
        ({"fog": "12345"}, "alexnet", "fog is '12345'"),
        ({"fog": [None] * 5}, "alexnet", "fog has the errors .*None.*fractions"),
        ({"fog": [True] * 5}, "alexnet", "fog has the errors .*True"),
        ({"fog": ["0.1"] * 5}, "alexnet", "fog has the errors"),
        ({"fog": torch.rand(5, 2)}, "alexnet", "fog has the errors"),
        (
            {"fog": dict.fromkeys((1, 2, 3, 4), 0.1)},
            "alexnet",
            "severities 1, 2, 3, 4; needed are 1, 2, 3, 4 and 5",
        ),
        ({"fog": dict.fromkeys(range(5), 0.1)}, "alexnet", "severities 0, 1, 2, 3, 4; needed"),
        (
            {"speckle_noise": [0.1] * 5},
            "alexnet",
            "'speckle_noise' is an extra corruption; mCE and the mean error take the fifteen",
        ),
        ({}, {**FULL, "saturate": [0.1] * 5}, "baseline: 'saturate' is an extra corruption"),
        ({}, ALEXNET, "baseline: gaussian_noise is 0.886428; needed are five"),
        ({}, None, "baseline: the errors are None; needed is a mapping"),
        ({}, [1.0] * 15, r"baseline: the errors are \[1.0, .*; needed is a mapping"),
    ],
)
def test_mce_errors(change, baseline, words):
    errors = {k: v for k, v in {**FULL, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=words) as caught:
        mean_corruption_error(errors, baseline)
    assert "\n" not in str(caught.value)
    if change:
        with pytest.raises(ValueError, match=words):
            mean_error(errors)


@pytest.mark.parametrize("wrong", [None, "alexnet", [[0.1] * 5] * 15, 0.3])
def test_errors_are_a_mapping(wrong):
    for function in (mean_corruption_error, mean_error):
        with pytest.raises(
            ValueError, match="the errors are .*; needed is a mapping from each of the fifteen"
        ):
            function(wrong)


@pytest.mark.parametrize(
    "form",
    [
        tuple,
        np.array,
        pd.Series,
        lambda v: torch.tensor(v, dtype=torch.float64),
        lambda v: [torch.tensor(x).double() for x in v],
        lambda v: dict(zip((5, 4, 3, 2, 1), reversed(v))),
    ],
)
def test_every_form_of_errors_gives_the_same_float(form):
    errors = {name: form(values) for name, values in FULL.items()}
    for found, expected in (
        (mean_corruption_error(errors), mean_corruption_error(FULL)),
        (mean_error(errors), mean_error(FULL)),
        (mean_corruption_error(FULL, errors), 100),
    ):
        assert type(found) is float and found == pytest.approx(expected, rel=1e-6)


def test_accuracy_counts_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model = resnet18(num_classes=3).train()
    images = torch.randint(256, (11, 3, 40, 40), dtype=torch.uint8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = predict(model, images, batch_size=4)[0][:, 0]
    assert torch.equal(found, predict(model, images, batch_size=11)[0][:, 0])
    assert top1_accuracy(model, images, found) == 100
    assert top1_accuracy(model, images, (found + 1) % 3) == 0
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "name, after",
    [
        ("resnet18", "layer1"),
        ("densenet121", "features.transition1"),
        ("efficientnet_b0", "features.2"),
        ("convnext_tiny", "features.1"),
        ("timm/resnet18", "layer1"),
    ],
)
def test_folded_parts_predict_the_same(name, after):
    torch.manual_seed(0)
    model = build_model(name if "/" in name else f"torchvision/{name}", 10)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))  # running statistics that are not those of the start
    stem, head = split(model.eval(), after)
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        plain, folded = head(stem(images)), for_inference(head)(for_inference(stem)(images))
    assert torch.allclose(plain, folded, atol=1e-4 * plain.abs().max()) and torch.equal(
        head(stem(images)), plain
    )


def test_what_belongs_to_each_image_is_there_for_each():
    images, model, painter = (
        torch.zeros(40, 3, 16, 16, dtype=torch.uint8),
        build_model("small_resnet", 2).eval(),
        Autoencoder(build_model("small_vgg", 2), "features.relu2_2").eval(),
    )
    for targets in (torch.zeros(40, 1), torch.zeros(1), torch.tensor(0), torch.zeros(40, 2)):
        with pytest.raises(
            ValueError, match=r"targets are .*; needed is one class index for each of 40 images"
        ):
            top1_accuracy(model, images, targets)
    with pytest.raises(ValueError, match="there are 40 images and 32 indices"):
        stylized(painter, images, range(32), images[:2])
    with pytest.raises(ValueError, match="there are 40 images and 32 targets"):
        adversarial(painter, images, torch.zeros(32, dtype=torch.long), AdvBN(steps=1))


def test_a_block_that_is_used_three_times_is_evaluated_as_it_is():
    def thrice(self, x):
        for _ in range(3):
            x = self.block(x)
        return x

    torch.manual_seed(0)
    model = used(Net(conv_bn(), thrice))
    images = torch.randint(256, (60, 3, 1, 1), dtype=torch.uint8).expand(-1, -1, 12, 12)
    with torch.no_grad():
        model.fc.bias -= model(normalize(images)).mean(0)  # so that not one class is named alone
    labels = predict(model, images)[0][:, 0]
    assert top1_accuracy(for_inference(model), images, labels) == 100 and len(labels.unique()) > 1
    with torch.no_grad():
        assert torch.allclose(for_inference(model)(IMAGES), model(IMAGES), atol=1e-5)


@pytest.mark.parametrize("case", EVALUATED)
def test_a_folded_copy_agrees_with_the_network(case):
    model = EVALUATED[case]()
    model = (
        used(model)
        if isinstance(model, Net) and not isinstance(model.block, nn.SyncBatchNorm) and "sync" not in case
        else model.eval()
    )
    before = snapshot(model)
    with torch.no_grad():
        expected, found = model(IMAGES), for_inference(model)(IMAGES)
    assert (
        torch.allclose(found, expected, atol=1e-5)
        and found.argmax(1).equal(expected.argmax(1))
        and same(snapshot(model), before)
    )


def test_what_cannot_be_copied_is_evaluated_itself_and_left_as_found():
    class Locked(Net):
        def __deepcopy__(self, memo):
            raise TypeError("cannot copy")

    model = used(Locked(conv_bn())).train()
    before = snapshot(model)
    found = for_inference(model)(IMAGES)
    assert same(snapshot(model), before) and torch.equal(found, model.eval()(IMAGES))


def test_batch_norms_that_fold_are_folded():
    model = used(Net(conv_bn()))
    assert (
        sum(
            m.forward(IMAGES) is IMAGES
            for m in for_inference(model).modules()
            if isinstance(m, nn.BatchNorm2d)
        )
        == 2
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_of_any_precision_predicts(dtype):
    torch.manual_seed(0)
    model, images = used(Net(conv_bn())), torch.randint(256, (3, 3, 12, 12), dtype=torch.uint8)
    expected = predict(model, images)[1]
    model = model.to(dtype)
    assert torch.allclose(predict(model, images)[1], expected, atol=0.01)
    assert predict_each({"plain": model}, images)["plain"].equal(predict(model, images)[0][:, 0])


def test_a_network_without_parameters_predicts():
    model, images = (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    )
    assert predict(model, images)[0][:, 0].equal(predict_each({"plain": model}, images)["plain"])


def test_a_network_that_predicts_no_tensor_is_refused():
    class Dictionary(Net):
        def forward(self, x):
            return {"logits": super().forward(x)}

    model, images = Dictionary(conv_bn()), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for call in (lambda: predict(model, images), lambda: predict_each({"plain": model}, images)):
        with pytest.raises(ValueError, match="returns a dict; needed are logits"):
            call()
