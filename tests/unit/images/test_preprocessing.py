"""How a network wants its images is said once: training, evaluation and the command line give it the same
numbers, and its file keeps them."""

import copy
import json
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
import yaml
from torch import nn

from advbn import prepare
from advbn.config import load_params, parse_params, Training
from advbn.errors import DataError, ParameterError, WeightsError
from advbn.evidence.assess import class_names, evaluate_networks, load_network
from advbn.evidence.evaluation import predict
from advbn.files import file_digest
from advbn.images.batches import MemoryBatches, normalize, read_images, to_pixels
from advbn.images.preprocessing import IMAGENET, Preprocessing, preprocessing_of, recorded, remember
from advbn.networks.models import build_model, wanted_by
from advbn.networks.weights import load_into, load_state, save_state
from advbn.training.loop import fit, pretraining_net
from advbn.training.runs import (
    check_networks,
    evaluate,
    load_data,
    made_from,
    pretrain,
    train,
    train_autoencoder,
    wanted_images,
)
from advbn.widgets import classify
from conftest import ROOT
from test_sets import imagenet_tree, parameters, picture

LITE, HALF = "timm/tf_efficientnet_lite0", (0.5, 0.5, 0.5)


def seen_by_first_convolutions(work):
    "Every batch of images that a convolution of three channels is given during `work()`."
    seen = []

    def look(module, inputs):
        if (
            isinstance(module, nn.Conv2d) and module.in_channels == 3 and type(inputs[0]) is torch.Tensor
        ):  # and no stand-in while it is traced
            seen.append((module.out_channels, inputs[0].detach().cpu().clone()))

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        return work(), seen
    finally:
        handle.remove()


def pixels(batch, mean, std):
    "Is this a batch of whole numbers from 0 to 255, once its normalisation is undone?"
    found = 255 * (batch * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1))
    return (found - found.round()).abs().max() < 1e-3 and -0.01 < found.min() and found.max() < 255.01


@pytest.fixture(scope="module")
def lite():
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()


@pytest.fixture
def project(tmp_path, lite, root, monkeypatch):
    """A project with ImageNet in miniature and a file of weights of a network that is not normalised as
    ImageNet's are."""
    imagenet_tree(tmp_path / "imagenet")
    for wnid in ("n01484850", "n01440764"):
        picture(tmp_path / "sketches" / wnid / "sketch_0.JPEG", (70, 50), "L", 5)
    torch.save(lite.state_dict(), tmp_path / "resnet50.pth")
    torch.save(build_model("small_vgg", 3).state_dict(), tmp_path / "vgg.pth")
    content = parameters(tmp_path, root)
    content["profiles"]["imagenet"]["network"].update(name=LITE, after="blocks.1")
    content["profiles"]["imagenet"]["finetune"].update(epochs=1, schedule="constant", milestones=[])
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    return tmp_path


def test_a_network_gets_the_same_images_in_prepare_in_the_pipeline_and_on_the_command_line(
    project, lite, tmp_path
):
    params = parse_params(yaml.safe_load((project / "params.yaml").read_text()))
    pretrain(params, None, 0)
    history, seen = seen_by_first_convolutions(lambda: train(params, "finetune", 0))
    assert len(history) == 1 and seen and all(pixels(batch, HALF, HALF) for _, batch in seen)
    train_autoencoder(params)
    for method in (
        "pretrained",
        "finetune",
        "autoencoder",
    ):  # as the profile makes them, not as the architecture's published weights want them
        said = [
            recorded(load_state(file))
            for file in (project / f"checkpoints/imagenet/{method}").glob("*.pt")
            if "decoder" not in file.name
        ]
        assert {(one.size, one.resize, one.interpolation) for one in said} == {(64, 72, "bicubic")}
    (table, found), seen = seen_by_first_convolutions(lambda: evaluate(params, "finetune", 0))
    of_lite = [batch for out, batch in seen if out == 32]
    assert of_lite and all(pixels(batch, HALF, HALF) for batch in of_lite)
    of_vgg = [batch for out, batch in seen if out == 16]
    assert pixels(of_vgg[0], IMAGENET.mean, IMAGENET.std)  # the autoencoder has another
    file = project / "checkpoints/imagenet/finetune/seed0-clean.pt"
    plain = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()
    plain.load_state_dict(torch.load(file, weights_only=True))
    test = load_data(params).test(0)
    images = test[range(len(test))].images
    with torch.no_grad():
        logits = plain((images / 255 - 0.5) / 0.5)
        loaded = load_network(LITE, str(file), 3)
        assert torch.allclose(loaded(normalize(images, preprocessing_of(loaded))), logits, atol=1e-4)
        net = prepare(plain, "blocks.1").eval()
        assert torch.allclose(net(normalize(images, net.preprocessing)), logits, atol=1e-4)
    assert (
        torch.equal(predict(net, images)[0][:, 0], logits.argmax(1))
        and (found["clean/clean/clean"] == logits.argmax(1).numpy()).all()
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "advbn",
            "evaluate",
            "--model",
            LITE,
            "--weights",
            file,
            "--data",
            project / "imagenet/val",
            "--shifts",
            "clean",
            "--json",
        ],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 0
        and f"{LITE}: images resized to 72 (bicubic), cut to 64 pixels, mean {HALF}, deviation {HALF}"
        in done.stderr
    ), done.stderr
    assert json.loads(done.stdout)[LITE]["clean"] == pytest.approx(
        table[table["shift"] == "clean"].accuracy.item()
    )


@pytest.mark.promise(
    "Bad input", "kept images that were made in another way are not taken for those that are asked for"
)
def test_images_made_for_another_network_are_made_with_other_settings(project):
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["profiles"]["imagenet"]["data"].update(size=None, resize=None)
    settings = []
    for name in (LITE, "torchvision/resnet18"):
        content["profiles"]["imagenet"]["network"].update(name=name, weights=None, weights_sha256=None)
        content["profiles"]["imagenet"].update(pretrain={"epochs": 1, "batch_size": 8, "lr": 0.1})
        params = parse_params(content)
        settings.append(made_from(params, load_data(params), 0))
    assert (
        settings[0].pop("interpolation") == "bicubic"
        and settings[1].pop("interpolation") == "bilinear"
        and settings[0] == settings[1]
    )
    assert (settings[0]["size"], settings[0]["resize"]) == (224, 256)


def test_streamed_images_are_as_large_as_the_network_wants_them_where_the_profile_says_nothing(project):
    content = yaml.safe_load((project / "params.yaml").read_text())
    data, network = content["profiles"]["imagenet"]["data"], content["profiles"]["imagenet"]["network"]
    for key in ("size", "resize"):
        data.pop(key)
    assert (
        wanted_images(parse_params(content))
        == wanted_by(LITE)
        == Preprocessing(HALF, HALF, 224, 256, "bicubic")
    )
    streamed = load_data(parse_params(content))
    assert (streamed.size, streamed.resize, streamed.interpolation) == (224, 256, "bicubic")
    data["size"] = 112
    assert wanted_images(parse_params(content)).resize == 128
    network.update(name="torchvision/resnet50", weights="IMAGENET1K_V1")
    assert wanted_images(parse_params(content)) == Preprocessing(size=112, resize=128)
    data["size"] = None
    assert wanted_images(parse_params(content)) == Preprocessing(size=224, resize=256)  # the paper's
    data["resize"] = 200
    with pytest.raises(DataError, match="profiles.imagenet.data: resize is 200 and size 224"):
        load_data(parse_params(content))
    data["resize"] = None
    network.update(name="small_resnet", weights=str(project / "resnet50.pth"))
    with pytest.raises(DataError, match="profiles.imagenet.data: small_resnet takes images of any size"):
        load_data(parse_params(content))


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


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("branch", ["clean", "adversarial"])
def test_exported_weights_say_what_images_they_are_for(tmp_path, branch, suffix):
    own = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 96, 100, "bicubic")
    model, file = torchvision.models.resnet18(num_classes=3), tmp_path / f"net.{suffix}"
    model.preprocessing = own
    net = prepare(model, "layer1")
    assert net.preprocessing == own
    save_state(net.export(branch), file)
    assert recorded(load_state(file)) == wanted_by("torchvision/resnet18", str(file)) == own
    again = load_network("resnet18", str(file), 3)
    assert again.preprocessing == own  # before the architecture's own
    torchvision.models.resnet18(num_classes=3).load_state_dict(
        torch.load(file, weights_only=True) if suffix == "pt" else load_state(file), strict=True
    )
    save_state(again.state_dict(), file)
    assert recorded(load_state(file)) == own
    save_state(dict(again.state_dict()), file)  # by somebody who knows nothing of it
    assert (
        load_network("resnet18", str(file), 3).preprocessing == wanted_by("torchvision/resnet18")
        and recorded(load_state(file)) is None
    )


def test_a_file_that_says_nonsense_of_its_images_is_refused(tmp_path):
    for said, words in (
        ({"mean": (1, 2), "std": (1, 1, 1)}, "mean is .*three numbers"),
        ({"std": (1, 0, 1)}, "std is .*above 0"),
        ({"size": 3, "height": 4}, "preprocessing is"),
    ):
        state = build_model("small_resnet", 2).state_dict()
        state._metadata[""]["preprocessing"] = said
        torch.save(state, tmp_path / "net.pt")
        with pytest.raises(WeightsError, match=f"net.pt: {words}"):
            load_into(build_model("small_resnet", 2), tmp_path / "net.pt")


def test_version_marks_stay_beside_what_is_recorded(tmp_path):
    "MNASNet reads its weights by the version in their metadata, which safetensors have no place for."
    model = build_model("torchvision/mnasnet0_5", 2)
    for name in ("net.pt", "net.safetensors"):
        save_state(model.state_dict(), tmp_path / name)
        again = build_model("torchvision/mnasnet0_5", 2, str(tmp_path / name))
        assert torch.equal(again.classifier[1].weight, model.classifier[1].weight)


@pytest.fixture
def offline(monkeypatch):
    "No weights come from anywhere."

    def refuse(*args, **kwargs):
        raise AssertionError("a download was begun")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)


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


def test_a_new_head_is_trained(project, run, refused):
    content = yaml.safe_load((project / "params.yaml").read_text())
    profile = content["profiles"]["imagenet"]
    profile["network"]["head"] = "new"
    with pytest.raises(ParameterError, match="head: new is given and pretrain is missing"):
        parse_params(content)
    profile["pretrain"] = {"epochs": 1, "batch_size": 8, "lr": 1e-7}
    wide = timm.create_model("tf_efficientnet_lite0", num_classes=7)
    torch.save(wide.state_dict(), project / "resnet50.pth")
    profile["network"]["weights_sha256"] = file_digest(project / "resnet50.pth")
    history, seen = seen_by_first_convolutions(lambda: pretrain(parse_params(content), None, 0))
    assert len(history) == 1 and all(pixels(batch, HALF, HALF) for _, batch in seen if len(batch) == 8)
    found = torch.load(project / "checkpoints/imagenet/pretrained/seed0-clean.pt", weights_only=True)
    assert (
        found["classifier.weight"].shape[0] == 3
        and (found["conv_stem.weight"] - wide.conv_stem.weight).abs().max() < 1e-3
    )
    profile["network"].update(head=None)
    with pytest.raises(ParameterError, match="weights and pretrain are both given"):
        parse_params(content)
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    refused(["pretrain"], "weights and pretrain are both given", "published with head: new")
    refused(["pretrain", "--head", "old"], "network.head is 'old'", "'new'")
    assert run("pretrain", "--head", "new")[0] == 0
    assert torch.equal(
        torch.load(project / "checkpoints/imagenet/pretrained/seed0-clean.pt", weights_only=True)[
            "classifier.weight"
        ],
        found["classifier.weight"],
    )
    profile["network"].update(head="new", weights=None)
    with pytest.raises(ParameterError, match="head: new needs weights"):
        parse_params(content)


@pytest.mark.parametrize(
    "section, words",
    [
        (
            "network",
            "profiles.imagenet.network: weights 'DEFAULT' of 'timm/resnet10t' have 1000 classes and the data "
            "3",
        ),
        (
            "pictures",
            "profiles.imagenet.pictures: weights 'IMAGENET1K_V1' of 'torchvision/vgg11' have 1000 classes "
            "and the data 3",
        ),
    ],
)
def test_weights_of_other_classes_stop_a_profile_before_anything_is_trained(project, offline, section, words):
    content = yaml.safe_load((project / "params.yaml").read_text())
    change = {
        "network": {"name": "timm/resnet10t", "after": "layer1", "weights": "DEFAULT"},
        "pictures": {"network": "torchvision/vgg11", "after": "features.5", "weights": "IMAGENET1K_V1"},
    }
    content["profiles"]["imagenet"][section].update(change[section])
    with pytest.raises(ParameterError, match=words):
        pretrain(parse_params(content), None, 0)


def test_networks_that_want_other_images_are_tested_on_other_images(tmp_path):
    for c, name in enumerate("ab"):
        picture(tmp_path / name / "0.JPEG", (50 + 9 * c, 60), seed=c)
    half = remember(torchvision.models.resnet18(num_classes=2), Preprocessing(HALF, HALF, 32, 40)).eval()
    usual = build_model("torchvision/resnet18", 2).eval()
    (table, seen) = seen_by_first_convolutions(
        lambda: evaluate_networks(
            {"a": half, "b": usual, "c": half}, tmp_path, class_names(tmp_path), ("clean",), workers=0
        )
    )
    seen = [
        found for found in seen if len(found[1]) == 2
    ]  # one black image before is to see whether a network takes the size
    assert table.branch.tolist() == ["a", "c", "b"] and [tuple(b.shape) for _, b in seen] == [
        (2, 3, 32, 32)
    ] * 2 + [(2, 3, 224, 224)]
    assert pixels(seen[0][1], HALF, HALF) and pixels(seen[2][1], IMAGENET.mean, IMAGENET.std)
    _, seen = seen_by_first_convolutions(lambda: classify(half, tmp_path / "a/0.JPEG", "ab"))
    assert seen[0][1].shape[-2:] == (32, 32) and pixels(seen[0][1], HALF, HALF)
    for size in ({"size": 64, "resize": 60}, {"resize": 20}):
        with pytest.raises(ValueError, match="what is cut out cannot be larger"):
            evaluate_networks({"a": half}, tmp_path, class_names(tmp_path), ("clean",), workers=0, **size)
    for workers in (0, 2):
        with pytest.raises(DataError, match="images differ in size, such as 50 x 60 and 59 x 60 pixels"):
            evaluate_networks(
                {"a": build_model("small_resnet", 2)},
                tmp_path,
                class_names(tmp_path),
                ("clean",),
                workers=workers,
            )


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


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))],
)
def test_nothing_is_recorded_of_a_network_that_says_nothing(model):
    net = prepare(model, "1")
    assert net.preprocessing == IMAGENET and recorded(net.export()) is None
    model.preprocessing = nn.Identity()  # a module of somebody's, who means something else
    assert preprocessing_of(model) == IMAGENET and isinstance(remember(model).preprocessing, nn.Identity)


@pytest.mark.parametrize("profile", ["openmoji", "cifar10", "imagenet"])
def test_the_networks_of_every_profile_are_accepted(profile):
    check_networks(load_params().model_copy(update={"profile": profile}))


@pytest.mark.parametrize(
    "said",
    [
        {"size": -5},
        {"size": 2.5},
        {"size": "224"},
        {"resize": True},
        {"size": 64, "resize": 32},
        {"mean": (float("nan"), 0, 0)},
        {"std": (float("inf"), 1, 1)},
    ],
)
def test_sizes_are_whole_numbers_and_means_are_finite(said):
    with pytest.raises(
        ValueError,
        match=f"{'resize' if len(said) == 2 else next(iter(said))} is .*(allowed|cannot be larger)",
    ):
        Preprocessing(**said)
