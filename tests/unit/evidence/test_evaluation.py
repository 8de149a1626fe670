import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t
from torchvision.models import resnet18

from advbn import AdvBN, CORRUPTIONS, corrupt, mean_corruption_error
from advbn.config import load_params, Method, Profile
from advbn.evidence.evaluation import (
    ALEXNET,
    for_inference,
    mean_error,
    mean_interval,
    predict,
    predict_each,
    summarize,
    top1_accuracy,
)
from advbn.evidence.tables import mce_table, PUBLISHED, robustness_table, signed
from advbn.method.splitting import split
from advbn.networks.autoencoder import Autoencoder
from advbn.networks.models import build_model
from advbn.shifts.filters import edges, instagram
from advbn.shifts.styles import adversarial, reconstructed, stylized
from conftest import RECORDED

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


def test_the_interval_is_students():
    values = np.array([1.0, 2.0, 4.0, 7.0])
    mean, half = mean_interval(values)
    low, high = t.interval(0.95, 3, loc=values.mean(), scale=values.std(ddof=1) / 2)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert np.isnan(mean_interval([3.0])[1])


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


def test_paired_differences_and_a_missing_seed():
    runs = pd.DataFrame(
        [
            {"method": m, "branch": "clean", "shift": "clean", "seed": s, "accuracy": 50 + 10 * s + d}
            for m, d in (("finetune", 0), ("new", 2))
            for s in range(3)
        ]
    )
    row = summarize(runs, "finetune").set_index("method").loc["new"]
    assert (row.difference, row.difference_ci95) == (
        pytest.approx(2),
        pytest.approx(0, abs=1e-9),
    ) and row.ci95 > 20
    with pytest.raises(ValueError, match=r"has the seeds \[0, 1\]"):
        summarize(runs[~((runs.method == "new") & (runs.seed == 2))], "finetune")


def test_bold_means_that_the_interval_excludes_zero():
    assert (
        signed(2.0, 1.0) == "(**+2.0 ± 1.0**)"
        and signed(-0.5, 1.0) == "(-0.5 ± 1.0)"
        and signed(float("nan"), 1.0) == ""
    )


@pytest.mark.parametrize(
    "profile, images", [p for p in (("openmoji", 474), ("cifar10", 1000)) if p[0] in RECORDED]
)
def test_the_committed_tables_follow_from_the_committed_runs(root, profile, images):
    results, params = root / "results" / profile, load_params()
    used = json.loads((results / "parameters.json").read_text())
    runs = pd.concat([pd.read_csv(results / f"runs/{m}.csv") for m in used["methods"]])
    for name, made in (("robustness", robustness_table(runs, profile)), ("mce", mce_table(runs, profile))):
        pd.testing.assert_frame_equal(pd.read_csv(results / f"tables/{name}.csv"), made, check_dtype=False)
    today = params.model_copy(
        update={"profile": profile, "seeds": params.seeds if profile == params.profile else used["seeds"]}
    )
    settings = today.current.model_dump() | {"note": used["settings"]["note"]}
    assert (used["profile"], used["seeds"]) == (
        today.profile,
        today.seeds,
    )  # the tables hold what params.yaml says today; keys that are new since have their defaults
    assert {name: Method.model_validate(method) for name, method in used["methods"].items()} == today.methods
    assert Profile.model_validate(used["settings"]) == Profile.model_validate(settings)
    assert set(runs.seed) == set(used["seeds"]) and len(used["seeds"]) >= 3 and (runs.images == images).all()
    assert PUBLISHED["AdvBN"]["corruptions"] == 72.7


def test_reconstruction_costs_the_standard_network_at_most_ten_points(root):
    table = (
        pd.read_csv(root / "results/tables/advbn_set.csv")
        .query("method == 'standard'")
        .set_index("shift")
        .accuracy
    )
    assert table["clean"] - table["reconstructed"] <= 10
    assert table["advbn"] < table["reconstructed"]


@pytest.mark.promise(
    "Bad input",
    "images that are no bytes, and targets that do not fit them, are refused wherever images are taken",
)
@pytest.mark.parametrize(
    "change, found",
    [
        (lambda x: x / 255, r"torch.float32 \(4, 3, 32, 32\)"),
        (lambda x: x[:, :1], r"torch.uint8 \(4, 1, 32, 32\)"),
        (lambda x: x.permute(0, 2, 3, 1), r"torch.uint8 \(4, 32, 32, 3\)"),
        (lambda x: x[0], r"torch.uint8 \(3, 32, 32\)"),
    ],
    ids=["floats", "grey", "channels last", "one image"],
)
def test_images_that_are_no_bytes_are_refused(change, found):
    images, targets, model = (
        torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8),
        torch.tensor([0, 1, 0, 1]),
        build_model("small_resnet", 2).eval(),
    )
    painter = Autoencoder(build_model("small_vgg", 2), "features.relu2_2").eval()
    styles = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    takers = (
        lambda x: predict(model, x),
        lambda x: predict_each({"a": model}, x),
        lambda x: top1_accuracy(model, x, targets),
        edges,
        lambda x: instagram(x, "rise"),
        lambda x: corrupt(x, "fog", 1),
        lambda x: reconstructed(painter, x),
        lambda x: stylized(painter, x, range(4), styles),
        lambda x: stylized(painter, images, range(4), x),
        lambda x: adversarial(painter, x, targets, AdvBN(steps=1)),
    )
    for taker in takers:
        taker(images)
        with pytest.raises(ValueError, match=f"images are {found}; allowed is a uint8 tensor"):
            taker(change(images))


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
