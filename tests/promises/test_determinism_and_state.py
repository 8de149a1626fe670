"""Nothing is left changed, whatever happens; and the same seed gives the same numbers in any order, with any
number of workers."""

import copy
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from splitting_checks import assert_same, complete_state
from torch import nn

from advbn import (
    AdvBN,
    DualBatchNorm2d,
    corrupt,
    mean_corruption_error,
    prepare,
    renormalize,
    split,
    use_branch,
)
from advbn.base.config import parse_params
from advbn.base.errors import DataError
from advbn.base.sections import Training
from advbn.evidence.evaluation import mean_error, predict, predict_each
from advbn.method.folding import for_inference
from advbn.evidence.testing import evaluate, kept_tests, make_tests
from advbn.images.batches import FolderBatches, Reading
from advbn.images.openmoji import build_openmoji, write_png
from advbn.networks.autoencoder import Autoencoder
from advbn.networks.models import build_model
from advbn.networks.weights import load_state, save_state
from advbn.shifts.corruptions import CORRUPTIONS
from advbn.training.loop import finetuning_net, fit
from advbn.training.run import load_data, resolve, setting_of
from advbn.training.train import pretrain, train, train_autoencoder


class Fails(RuntimeError):
    "What a user's module or loss may raise."


def network():
    torch.manual_seed(0)
    net = prepare(build_model("small_resnet", 9), "layer1", steps=3)
    sum(net(torch.randn(4, 3, 40, 40), torch.arange(4))).backward()  # there are gradients already
    return net


def failing(after):
    "A loss that fails when it has been asked `after` times."
    asked = iter(range(100))

    def loss(logits, targets):
        if next(asked) >= after:
            raise Fails
        return F.cross_entropy(logits, targets)

    return loss


IMAGES, BYTES, TARGETS = (
    torch.randn(4, 3, 40, 40),
    torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8),
    torch.arange(4),
)


def inside(net, branch="adversarial", fails=False):
    with use_branch(net.head, branch):
        net.head(net.features(IMAGES))
        if fails:
            raise Fails


def broken(net, after):
    "The network with a head that fails at its forward pass number `after`; taken away again at the end."
    asked = iter(range(100))

    def fail(module, inputs):
        if next(asked) >= after:
            raise Fails

    return net.head.register_forward_pre_hook(fail)


DOINGS = {
    "attack": lambda net: net.layer(net.features(IMAGES), TARGETS, net.head),
    "attack on batch statistics": lambda net: AdvBN(steps=2, batch_statistics=True)(
        net.features(IMAGES), TARGETS, net.head
    ),
    "attack that fails at once": lambda net: net.layer(net.features(IMAGES), TARGETS, net.head, failing(0)),
    "attack that fails in its second step": lambda net: net.layer(
        net.features(IMAGES), TARGETS, net.head, failing(1)
    ),
    "attack on NaN": lambda net: net.layer(net.features(IMAGES) * float("nan"), TARGETS, net.head),
    "attack with a loss of NaN": lambda net: net.layer(
        net.features(IMAGES), TARGETS, net.head, lambda x, y: x.sum() * float("nan")
    ),
    "attack with a loss without gradient": lambda net: net.layer(
        net.features(IMAGES), TARGETS, net.head, lambda x, y: torch.tensor(1.0)
    ),
    "attack with wrong targets": lambda net: net.layer(net.features(IMAGES), TARGETS[:2], net.head),
    "a branch": inside,
    "a branch, and a failure inside": lambda net: inside(net, fails=True),
    "a branch of another name": lambda net: inside(net, "dirty"),
    "prediction": lambda net: predict(net, BYTES),
    "prediction of each": lambda net: predict_each({"a": net.eval()}, BYTES) and net.train(),
    "prediction on wrong images": lambda net: predict(net, BYTES[:, :2]),
    "a copy for inference": lambda net: for_inference(net.head),
    "export": lambda net: net.export("adversarial"),
    "export of another branch": lambda net: net.export("dirty"),
    "preparing once more": lambda net: prepare(net.stem, "bn1"),
    "splitting at a wrong place": lambda net: split(net.stem, "layer9"),
}


@pytest.mark.promise(
    "Determinism and state",
    "the layer, use_branch and evaluation never leave a model changed, whatever fails",
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("what", DOINGS)
def test_nothing_is_left_changed(what, training):
    net = network().train(training)
    before, generator = complete_state(net), torch.random.get_rng_state()
    try:
        DOINGS[what](net)
        failed = False
    except (ValueError, Fails, RuntimeError):
        failed = True
    net.train(training)
    assert failed == any(word in what for word in ("fail", "NaN", "wrong", "without", "another"))
    after = complete_state(net)
    if (
        what in ("a branch", "a branch, and a failure inside") and training
    ):  # in train mode a forward pass keeps running statistics, as it should
        before, after = ({k: v for k, v in s.items() if not k.startswith("buffer")} for s in (before, after))
    assert_same(before, after)
    assert torch.equal(generator, torch.random.get_rng_state())


@pytest.mark.promise(
    "Determinism and state",
    "the layer, use_branch and evaluation never leave a model changed, whatever fails",
)
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_head_that_fails_leaves_nothing_changed(after):
    net = network().eval()
    hook = broken(net, after)
    before = complete_state(net)
    with pytest.raises(Fails):
        net.layer(net.features(IMAGES), TARGETS, net.head)
    assert_same(before, complete_state(net))
    hook.remove()
    net.layer(net.features(IMAGES), TARGETS, net.head)  # and it works afterwards


FORMATS = st.sampled_from([torch.contiguous_format, torch.channels_last])


TYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@pytest.mark.promise(
    "Determinism and state", "properties hold for any shape, type, memory format and setting"
)
@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    dtype=TYPES,
    form=FORMATS,
    eps=st.floats(0, 2),
    step=st.floats(0, 1),
    steps=st.integers(0, 3),
    rectify=st.booleans(),
    start=st.sampled_from(["clean", "random"]),
    perturb=st.sampled_from(["both", "mean", "std"]),
    seed=st.integers(0, 999),
)
def test_the_layer(shape, dtype, form, eps, step, steps, rectify, start, perturb, seed):
    torch.manual_seed(seed)
    features = torch.randn(shape).relu().to(dtype).contiguous(memory_format=form)
    head = nn.Sequential(nn.Flatten(), nn.Linear(features[0].numel(), 3)).to(dtype)
    targets, given_ = torch.randint(3, shape[:1]), features.clone()
    layer, before = AdvBN(eps, step, steps, rectify, start, perturb), complete_state(head)
    torch.manual_seed(seed)
    factors = layer.attack(features, targets, head)
    torch.manual_seed(seed)
    out = layer(features, targets, head)
    assert (
        out.shape == features.shape
        and out.dtype == dtype
        and out.stride() == features.stride()
        and not out.requires_grad
    )
    assert all(
        f.shape == (1, shape[1], 1, 1) and f.min() >= 1 - eps - 1e-5 and f.max() <= 1 + eps + 1e-5
        for f in factors
    )
    assert torch.equal(out, renormalize(features, *factors, rectify=rectify)) and torch.equal(
        features, given_
    )
    if perturb != "both":
        assert torch.equal(factors[perturb == "mean"], torch.ones_like(factors[0]))
    if eps == 0 or (start == "clean" and steps == 0):
        assert torch.equal(out, features)  # which are rectified
    if start == "clean":
        assert all(((f - 1).abs() <= steps * step + 1e-5).all() for f in factors)
    assert_same(before, complete_state(head))


@pytest.mark.promise(
    "Determinism and state", "properties hold for any shape, type, memory format and setting"
)
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 5), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    form=FORMATS,
    momentum=st.sampled_from([None, 0.1, 0.9]),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_branch_is_a_batch_norm(shape, dtype, form, momentum, training, seed):
    torch.manual_seed(seed)
    dual, plain = (
        DualBatchNorm2d(shape[1], momentum=momentum).to(dtype).train(training),
        nn.BatchNorm2d(shape[1], momentum=momentum).to(dtype).train(training),
    )
    for branch in ("adversarial", "clean"):
        x = torch.randn(shape, dtype=dtype).contiguous(memory_format=form)
        with use_branch(dual, branch):
            ours, theirs = dual(x), copy.deepcopy(plain)(x)
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
    assert dual.branch == "clean" and torch.equal(dual.running_mean, dual.adversarial.running_mean) == (
        not training
    )


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.bn, self.relu = (
            nn.Conv2d(c, c, 3, padding=1),
            nn.BatchNorm2d(c),
            nn.ReLU(inplace=True),
        )

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)) + x)


class Dense(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.mix = nn.Conv2d(c, 2, 1), nn.Conv2d(c + 2, c, 1)

    def forward(self, x):
        return self.mix(torch.cat([x, F.silu(self.conv(x))], 1))


class Squeeze(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc = nn.Linear(c, c)

    def forward(self, x):
        return x * self.fc(x.mean((2, 3))).sigmoid()[:, :, None, None]


BLOCKS = [
    Residual,
    Dense,
    Squeeze,
    lambda c: nn.Sequential(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c), nn.Hardswish(inplace=True)),
    lambda c: nn.MaxPool2d(2, 1, 1),
    lambda c: nn.Dropout(0.5),
]


@pytest.mark.promise(
    "Determinism and state", "properties hold for any shape, type, memory format and setting"
)
@settings(max_examples=40, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(range(len(BLOCKS))), min_size=2, max_size=6),
    data=st.data(),
    n=st.integers(1, 3),
    size=st.integers(3, 9),
    form=FORMATS,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_split_gives_the_network_back(kinds, data, n, size, form, dtype, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        *(BLOCKS[k](4) for k in kinds),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).to(dtype)
    for name, buffer in model.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 2)
    model.eval()
    cut = data.draw(st.integers(0, len(kinds)))
    before = complete_state(model)
    stem, head = split(model, str(cut))
    x = torch.randn(n, 3, size, size, dtype=dtype).contiguous(memory_format=form)
    with torch.no_grad():
        assert torch.equal(head(stem(x)), model(x))
    assert_same(before, complete_state(model))
    net = prepare(model, str(cut), steps=1)
    for branch in ("clean", "adversarial"):
        plain = copy.deepcopy(model)
        plain.load_state_dict(net.export(branch))
        with torch.no_grad():
            assert torch.equal(plain(x), model(x))


@pytest.mark.promise(
    "Determinism and state", "properties hold for any shape, type, memory format and setting"
)
@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(CORRUPTIONS),
    severity=st.integers(1, 5),
    n=st.integers(2, 4),
    h=st.integers(32, 70),
    w=st.integers(32, 70),
    form=FORMATS,
    seed=st.integers(0, 9),
)
def test_corrupted_images_do_not_depend_on_their_batch(name, severity, n, h, w, form, seed):
    images = torch.randint(
        256, (n, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    whole = corrupt(images.contiguous(memory_format=form), name, severity, seed=seed, indices=range(5, 5 + n))
    last = corrupt(images[-1:], name, severity, seed=seed, indices=[4 + n])
    assert (
        whole.shape == images.shape
        and whole.dtype == torch.uint8
        and (whole[-1:].int() - last.int()).abs().max() <= 1
    )


@pytest.mark.promise(
    "Determinism and state", "properties hold for any shape, type, memory format and setting"
)
@settings(max_examples=40, deadline=None)
@given(
    errors=st.lists(st.lists(st.floats(0.001, 1), min_size=5, max_size=5), min_size=15, max_size=15),
    kind=st.sampled_from(["list", "tuple", "mapping", "numpy", "torch"]),
    order=st.randoms(),
)
def test_mce(errors, kind, order):
    as_given = {
        "list": list,
        "tuple": tuple,
        "mapping": lambda v: dict(enumerate(v, 1)),
        "numpy": np.array,
        "torch": lambda v: torch.tensor(v, dtype=torch.float64),
    }[kind]
    names = list(CORRUPTIONS)
    table = {name: as_given(values) for name, values in zip(names, errors)}
    order.shuffle(names)
    assert mean_corruption_error({n: table[n] for n in names}) == pytest.approx(
        mean_corruption_error(dict(zip(CORRUPTIONS, errors)))
    )
    assert mean_corruption_error(table, table) == pytest.approx(100) and mean_error(table) == pytest.approx(
        100 * np.mean(errors)
    )


# ---- the same numbers


def same_files(one, other, pattern):
    left, right = (sorted(p.relative_to(f) for p in f.rglob(pattern)) for f in (one, other))
    assert left == right and left
    return [(one / name, other / name) for name in left]


@pytest.fixture
def small(tmp_path, monkeypatch):
    "Two folders with the same small set and one epoch of everything."
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    profile = content["profiles"]["openmoji"]
    for section in (
        profile["pretrain"],
        profile["finetune"],
        profile["pictures"]["classifier"],
        profile["pictures"]["decoder"],
    ):
        section["epochs"] = 1
    content.update(
        seeds=[0],
        studies={},
        bases={},
        base_methods={},
        methods={k: content["methods"][k] for k in ("standard", "finetune", "random", "advbn")},
    )
    profile["short"] = None
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    build_openmoji(tmp_path / "one/data", limit=16)
    shutil.copytree(tmp_path / "one/data", tmp_path / "other/data")

    def at(name):
        monkeypatch.setenv("ADVBN_ROOT", str(tmp_path / name))
        return parse_params(content)

    return at


@pytest.mark.promise(
    "Determinism and state",
    "the same seed gives the same numbers, for every stage and in any order of stages",
)
def test_the_order_of_stages_does_not_matter(small, tmp_path):
    params, tables = small("one"), {}
    (
        pretrain(resolve(params, "standard", 0)),
        train_autoencoder(setting_of(params)),
        make_tests(setting_of(params), 0),
    )
    for method in params.methods:
        train(resolve(params, method, 0))
    tables["one"] = [evaluate(resolve(params, m, 0))[0] for m in params.methods]
    params = small("other")
    torch.manual_seed(123), np.random.seed(123)
    train_autoencoder(setting_of(params)), torch.rand(7), pretrain(resolve(params, "standard", 0))
    for method in reversed(params.methods):
        train(resolve(params, method, 0))
    torch.manual_seed(321), make_tests(setting_of(params), 0)
    tables["other"] = [evaluate(resolve(params, m, 0))[0] for m in reversed(params.methods)][::-1]
    for a, b in zip(tables["one"], tables["other"]):
        pd.testing.assert_frame_equal(a, b, check_exact=True)
    for a, b in same_files(tmp_path / "one", tmp_path / "other", "*.pt"):
        if "checkpoints" in a.parts:
            assert all(torch.equal(v, load_state(b)[k]) for k, v in load_state(a).items())
    for a, b in same_files(tmp_path / "one", tmp_path / "other", "*.npz"):
        with np.load(a) as left, np.load(b) as right:
            assert all(np.array_equal(left[k], right[k]) for k in left.files)
    assert setting_of(params).checkpoint("advbn", 0, "adversarial").exists()


def other_decoder(params, folder):
    save_state(
        Autoencoder(build_model("small_vgg", 9), "features.relu2_2").decoder.state_dict(),
        setting_of(params).checkpoint("autoencoder", 0, "decoder"),
    )
    return params


def stronger(params, folder):
    pictures = params.current.pictures
    attack = pictures.attack.model_copy(update={"eps": 2.0})
    return params.model_copy(
        update={
            "profiles": {
                "openmoji": params.current.model_copy(
                    update={"pictures": pictures.model_copy(update={"attack": attack})}
                )
            }
        }
    )


def other_image(params, folder):
    for path in (folder / "data/openmoji").rglob("*.png"):
        write_png(path, np.zeros((40, 40, 3), np.uint8))
    return params


def another_seeds(params, folder):
    kept = folder / "shifted/openmoji"
    (kept / "seed0").rename(kept / "seed1")
    make_tests(setting_of(params), 0)
    shutil.rmtree(kept / "seed0")
    (kept / "seed1").rename(kept / "seed0")
    stamp = kept / "seed0/settings.json"
    stamp.write_text(stamp.read_text().replace('"seed": 0', '"seed": 1'))
    return params


def unknown(params, folder):
    (folder / "shifted/openmoji/seed0/settings.json").unlink()
    return params


@pytest.mark.promise(
    "Determinism and state", "kept shifts are tested on only if they are those of the parameters"
)
@pytest.mark.parametrize(
    "change, words",
    [
        (stronger, "attack"),
        (other_decoder, "decoder"),
        (other_image, "images"),
        (another_seeds, "seed"),
        (unknown, "attack, "),
    ],
    ids=["the attack", "the decoder", "the images", "the seed", "no record"],
)
def test_shifts_of_other_settings_are_refused(small, tmp_path, change, words):
    params, one = small("one"), lambda shift, cell: shift == "clean"
    torch.manual_seed(0)
    save_state(
        build_model("small_vgg", 9).state_dict(),
        setting_of(params).checkpoint("autoencoder", 0, "classifier"),
    )
    other_decoder(params, tmp_path)
    make_tests(setting_of(params), 0)
    assert len(list(kept_tests(setting_of(params), load_data(setting_of(params)), 0, one))) == 1
    again = change(params, tmp_path / "one")
    with pytest.raises(
        DataError, match=f"seed0 was made with other settings \\(.*{words}.*dvc repro --force shifts"
    ):
        list(kept_tests(setting_of(again), load_data(setting_of(again)), 0, one))
    make_tests(setting_of(again), 0)
    assert len(list(kept_tests(setting_of(again), load_data(setting_of(again)), 0, one))) == 1


@pytest.mark.promise("Determinism and state", "the same numbers with 0 or 2 data workers")
def test_workers_do_not_matter(root):
    found = []
    for workers in (0, 2):
        torch.manual_seed(0)
        net = finetuning_net(build_model("small_resnet", 9), "layer1", {"steps": 1, "start": "random"})
        loader = FolderBatches(
            root / "data/openmoji", 32, 256, seed=2, policy="trivialaugment", reading=Reading(workers)
        )
        found.append(
            (fit(net, loader, Training(epochs=1, batch_size=256, lr=0.01), seed=2), net.state_dict())
        )
    assert found[0][0] == found[1][0] and all(torch.equal(v, found[1][1][k]) for k, v in found[0][1].items())
