"""Runs of a profile: what is refused before anything is trained, and what is kept."""

import pytest
import timm
import torch
import yaml
from conftest import ROOT
from lite_profile import HALF, LITE, pixels, seen_by_first_convolutions
from miniature_imagenet import parameters

from advbn.base.config import load_params, parse_params
from advbn.base.errors import DataError, ParameterError
from advbn.base.files import file_digest
from advbn.images.preprocessing import Preprocessing
from advbn.networks.models import wanted_by
from advbn.training.run import base_runs, check_networks, load_data, load_network, resolve, setting_of
from advbn.training.train import clear_progress, pretrain


def test_streamed_images_are_as_large_as_the_network_wants_them_where_the_profile_says_nothing(lite_project):
    content = yaml.safe_load((lite_project / "params.yaml").read_text())
    data, network = content["profiles"]["imagenet"]["data"], content["profiles"]["imagenet"]["network"]
    for key in ("size", "resize"):
        data.pop(key)
    assert (
        setting_of(parse_params(content)).images
        == wanted_by(LITE)
        == Preprocessing(HALF, HALF, 224, 256, "bicubic")
    )
    streamed = load_data(setting_of(parse_params(content)))
    assert (streamed.size, streamed.resize, streamed.interpolation) == (224, 256, "bicubic")
    data["size"] = 112
    assert setting_of(parse_params(content)).images.resize == 128
    network.update(name="torchvision/resnet50", weights="IMAGENET1K_V1")
    assert setting_of(parse_params(content)).images == Preprocessing(size=112, resize=128)
    data["size"] = None
    assert setting_of(parse_params(content)).images == Preprocessing(size=224, resize=256)  # the paper's
    data["resize"] = 200
    with pytest.raises(DataError, match="profiles.imagenet.data: resize is 200 and size 224"):
        load_data(setting_of(parse_params(content)))
    data["resize"] = None
    network.update(name="small_resnet", weights=str(lite_project / "resnet50.pth"))
    with pytest.raises(DataError, match="profiles.imagenet.data: small_resnet takes images of any size"):
        load_data(setting_of(parse_params(content)))


def test_a_new_head_is_trained(lite_project, run, refused):
    content = yaml.safe_load((lite_project / "params.yaml").read_text())
    profile = content["profiles"]["imagenet"]
    profile["network"]["head"] = "new"
    with pytest.raises(ParameterError, match="head: new is given and pretrain is missing"):
        parse_params(content)
    profile["pretrain"] = {"epochs": 1, "batch_size": 8, "lr": 1e-7}
    wide = timm.create_model("tf_efficientnet_lite0", num_classes=7)
    torch.save(wide.state_dict(), lite_project / "resnet50.pth")
    profile["network"]["weights_sha256"] = file_digest(lite_project / "resnet50.pth")
    history, seen = seen_by_first_convolutions(
        lambda: pretrain(resolve(parse_params(content), "standard", 0))
    )
    assert len(history) == 1 and all(pixels(batch, HALF, HALF) for _, batch in seen if len(batch) == 8)
    found = torch.load(lite_project / "checkpoints/imagenet/pretrained/seed0-clean.pt", weights_only=True)
    assert (
        found["classifier.weight"].shape[0] == 3
        and (found["conv_stem.weight"] - wide.conv_stem.weight).abs().max() < 1e-3
    )
    profile["network"].update(head=None)
    with pytest.raises(ParameterError, match="weights and pretrain are both given"):
        parse_params(content)
    (lite_project / "params.yaml").write_text(yaml.safe_dump(content))
    refused(["pretrain"], "weights and pretrain are both given", "published with head: new")
    refused(["pretrain", "--head", "old"], "network.head is 'old'", "'new'")
    assert run("pretrain", "--head", "new")[0] == 0
    assert torch.equal(
        torch.load(lite_project / "checkpoints/imagenet/pretrained/seed0-clean.pt", weights_only=True)[
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
def test_weights_of_other_classes_stop_a_profile_before_anything_is_trained(
    lite_project, offline, section, words
):
    content = yaml.safe_load((lite_project / "params.yaml").read_text())
    change = {
        "network": {"name": "timm/resnet10t", "after": "layer1", "weights": "DEFAULT"},
        "pictures": {"network": "torchvision/vgg11", "after": "features.5", "weights": "IMAGENET1K_V1"},
    }
    content["profiles"]["imagenet"][section].update(change[section])
    with pytest.raises(ParameterError, match=words):
        check_networks(parse_params(content))


@pytest.mark.parametrize("profile", ["openmoji", "cifar10", "imagenet"])
def test_the_networks_of_every_profile_are_accepted(profile):
    check_networks(load_params().model_copy(update={"profile": profile}))


def test_only_a_runs_own_progress_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    params, folder = load_params(path=ROOT / "params.yaml"), tmp_path / "progress/openmoji"
    names = ["x-seed0.pt", "x-seed0.pt.previous", "x-seed1.pt", "x-seed0-seed1.pt", "xx-seed0.pt"]
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    clear_progress(setting_of(params), "x", 0)
    assert {p.name for p in folder.iterdir()} == {*names[2:]}
    clear_progress(setting_of(params), "x")
    assert {p.name for p in folder.iterdir()} == {*names[3:]}


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda p: p["data"].update(root="$NO_SUCH_PLACE"),
            "environment variable NO_SUCH_PLACE, which is not set",
        ),
        (lambda p: p["data"].update(root="/nowhere"), "no images at /nowhere/train"),
        (lambda p: p["data"].update(classes=4), "classes is 4 and .* has 3 classes"),
        (
            lambda p: p["data"]["sets"].update(stylized="/nowhere"),
            "Stylized-ImageNet is missing: no /nowhere; it is offered at https",
        ),
    ],
)
def test_missing_folders_are_named_before_work_begins(imagenet, root, monkeypatch, change, words):
    monkeypatch.setenv("ADVBN_ROOT", str(imagenet))
    content = parameters(imagenet, root)
    change(content["profiles"]["imagenet"])
    with pytest.raises(DataError, match=words):
        load_data(setting_of(parse_params(content)))


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda c: (
                c["studies"]["ablations"]["methods"]["layer2"].update(after="layr2")
                or c["studies"]["ablations"]["methods"]["finetune-layer2"].update(after="layr2")
            ),
            "studies.ablations.methods.*after: .*'layr2'; the nearest are 'layer2'",
        ),
        (
            lambda c: c["bases"]["densenet"]["network"].update(name="small_densnet"),
            "bases.densenet.network: no network 'small_densnet'; the nearest are 'small_densenet'",
        ),
        (
            lambda c: c["bases"]["densenet"]["network"].update(after="features.transitoin1"),
            "bases.densenet.network: .*'features.transitoin1'; the nearest are 'features.transition1'",
        ),
    ],
)
def test_wrong_networks_and_cuts_of_any_table_are_found_before_training(change, words):
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    change(content)
    with pytest.raises(ParameterError, match=words):
        check_networks(parse_params(content))


def test_a_checkpoint_that_is_missing_says_which_commands_train_it(tmp_path, monkeypatch):
    run = resolve(load_params(), "advbn", 2)
    base = base_runs(load_params(), "plain")[0][0]
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    for method, words in (
        (None, "advbn pretrain --seed 2 && advbn train advbn --seed 2"),
        (run.start, "advbn pretrain --seed 2"),
    ):
        with pytest.raises(FileNotFoundError, match=f"no checkpoint at .*; it is made by: {words}$"):
            load_network(run, method)
    run.setting.checkpoint(run.start, 2).parent.mkdir(parents=True)
    run.setting.checkpoint(run.start, 2).touch()
    with pytest.raises(FileNotFoundError, match="it is made by: advbn train advbn --seed 2$"):
        load_network(run)
    with pytest.raises(FileNotFoundError, match="it is made by: dvc repro bases@openmoji-plain"):
        load_network(base, base.start)
