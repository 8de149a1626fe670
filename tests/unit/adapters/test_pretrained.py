"""Folders of weights: the same network to the last bit, or a plain refusal."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18
from users_networks import Net, conv_bn, one_step

from advbn import AdvBN, AdvBNNet, prepare, split
from advbn.adapters.pretrained import (
    BRANCHES,
    both_branches,
    both_logits,
    digest_of,
    of_torchvision,
    packed,
    plain_network,
    read_config,
)
from advbn.base.errors import WeightsError
from advbn.base.files import file_digest
from advbn.images.preprocessing import Preprocessing, remember
from advbn.networks import models
from advbn.networks.models import build_model, register_network
from advbn.networks.weights import load_state
from advbn.training.loop import finetuning_net

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def trained(net, images=IMAGES, classes=5):
    "The network after a step on both losses, so that branches, statistics and weights have moved."
    optimizer = torch.optim.SGD(net.train().trainable_parameters(), lr=0.1)
    optimizer.zero_grad()
    sum(net.losses(images, torch.arange(len(images)) % classes)).backward()
    optimizer.step()
    return net.eval()


def same(one, other, images=IMAGES):
    "Do two networks have the same logits on both branches, to the last bit?"
    ours, theirs = both_logits(one, images), both_logits(other, images)
    return all(torch.equal(ours[branch], theirs[branch]) for branch in BRANCHES)


def of_timm():
    pytest.importorskip("timm")
    import timm

    return timm.create_model("resnet10t", num_classes=5)


NETWORKS = {
    "small_resnet": (lambda: build_model("small_resnet", 5), "layer1", "small_resnet"),
    "small_convnext": (lambda: build_model("small_convnext", 5), "features.1", "small_convnext"),
    "torchvision/resnet18": (lambda: resnet18(num_classes=5), "layer1", None),
    "torchvision/mobilenet_v3_small": (lambda: mobilenet_v3_small(num_classes=5), "features.1", None),
    "timm/resnet10t": (of_timm, "layer1", "timm/resnet10t"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_equal_to_the_last_bit(name, tmp_path):
    build, after, remembered = NETWORKS[name]
    torch.manual_seed(0)
    net = trained(prepare(build(), after, eps=0.4, steps=2, unpaired=True))
    assert net.made.name == remembered and net.made.after == after
    net.save_pretrained(tmp_path / "net")
    again = AdvBNNet.from_pretrained(tmp_path / "net")
    assert same(net, again) and not again.training
    assert again.made.name == name and again.layer.eps == 0.4 and again.layer.steps == 2 and again.unpaired
    assert again.layer.rectify == net.layer.rectify and again.preprocessing == net.preprocessing
    for branch in BRANCHES:
        ours, theirs = net.export(branch), again.export(branch)
        assert list(ours) == list(theirs) and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_the_branches_differ_and_both_are_kept(tmp_path):
    net = trained(prepare(build_model("small_resnet", 5), eps=1.0, steps=1))
    net.save_pretrained(tmp_path)
    found = both_logits(AdvBNNet.from_pretrained(tmp_path), IMAGES)
    assert not torch.equal(found["clean"], found["adversarial"])


def test_a_network_that_is_read_can_be_trained_on_as_the_one_that_was_written(tmp_path):
    net = trained(prepare(build_model("small_resnet", 5), steps=1))
    net.save_pretrained(tmp_path)
    again = AdvBNNet.from_pretrained(tmp_path)
    assert same(trained(again), trained(net))


def test_a_network_without_a_layer_has_one_branch(tmp_path):
    net = trained(finetuning_net(build_model("small_resnet", 5), "layer1", None))
    net.save_pretrained(tmp_path)
    again = AdvBNNet.from_pretrained(tmp_path)
    assert again.layer is None and same(net, again)
    assert not (tmp_path / "adversarial.safetensors").exists()
    assert read_config(tmp_path).branches == ("clean",)


def test_both_branches_are_kept_without_the_layer(tmp_path):
    net = trained(prepare(build_model("small_resnet", 5), steps=1))
    net.layer = None
    net.save_pretrained(tmp_path)
    assert same(net, AdvBNNet.from_pretrained(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype, tmp_path):
    net = trained(prepare(build_model("small_resnet", 5), steps=1)).to(dtype)
    net.save_pretrained(tmp_path)
    again = AdvBNNet.from_pretrained(tmp_path)
    assert again.head.fc.weight.dtype == dtype and same(net, again, IMAGES.to(dtype))


def test_weights_in_another_memory_format(tmp_path):
    net = trained(prepare(build_model("small_resnet", 5), steps=1))
    plain = copy.deepcopy(net)
    net.to(memory_format=torch.channels_last).save_pretrained(tmp_path)
    assert same(plain, AdvBNNet.from_pretrained(tmp_path))


def test_the_caller_notices_nothing(tmp_path):
    "Neither its random numbers nor its network are touched, nor a file but those of the folder."
    net = trained(prepare(build_model("small_resnet", 5), steps=1)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    net.save_pretrained(tmp_path / "net")
    AdvBNNet.from_pretrained(tmp_path / "net")
    assert torch.equal(torch.rand(3), expected) and net.training and not net.stem.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert {p.name for p in (tmp_path / "net").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "clean.safetensors",
        "adversarial.safetensors",
    }


def test_the_same_network_gives_the_same_files(tmp_path):
    net = trained(prepare(build_model("small_resnet", 5), steps=1))
    for place in ("one", "two"):
        net.save_pretrained(tmp_path / place / "net", data="noise")
    digests = [file_digest(tmp_path / place / "net") for place in ("one", "two")]
    assert digests[0] == digests[1]
    zips = [packed(tmp_path / place / "net", tmp_path / f"{place}.zip") for place in ("one", "two")]
    assert zips[0].read_bytes() == zips[1].read_bytes()
    assert same(net, AdvBNNet.from_pretrained(zips[0]))


def test_plain_files_load_strictly_into_the_plain_network(tmp_path):
    wanted = Preprocessing((0.5,) * 3, (0.25,) * 3, 64, 72)
    net = trained(prepare(remember(mobilenet_v3_small(num_classes=5), wanted), "features.1", steps=1))
    net.save_pretrained(tmp_path)
    again, plain = AdvBNNet.from_pretrained(tmp_path), mobilenet_v3_small(num_classes=5).eval()
    assert again.preprocessing == wanted
    for branch, expected in both_logits(net, IMAGES).items():
        plain.load_state_dict(load_file(tmp_path / f"{branch}.safetensors"), strict=True)
        with torch.no_grad():
            assert torch.equal(plain(IMAGES), expected)
            assert torch.equal(plain_network(again, branch)(IMAGES), expected)
        assert load_state(tmp_path / f"{branch}.safetensors")._metadata[""]["preprocessing"]["size"] == 64


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "A folder of a trained network, to be copied."
    torch.manual_seed(0)
    net = trained(prepare(build_model("small_resnet", 5), steps=1))
    return net.save_pretrained(
        tmp_path_factory.mktemp("written") / "net", classes=list("abcde"), data="noise"
    )


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "net")


def rewritten(folder, change, update_config=True):
    "Other tensors in the folder, by somebody who knows of the digests and writes them anew."
    state = load_file(folder / "model.safetensors")
    change(state)
    content = json.loads((folder / "config.json").read_text())
    save_file(state, folder / "model.safetensors", {"config_sha256": digest_of(read_config(folder))})
    if update_config:
        content["sha256"] = {"model.safetensors": file_digest(folder / "model.safetensors")}
        for branch in BRANCHES:
            (folder / f"{branch}.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(content))


def one_byte(folder, name="model.safetensors", place=-100):
    content = bytearray((folder / name).read_bytes())
    content[place] ^= 1
    (folder / name).write_bytes(content)


def edited(folder, change):
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


def swapped(folder):
    "The weights of another network of the same shape, which was saved with the same config."
    other = trained(prepare(build_model("small_resnet", 5), steps=1))
    other.save_pretrained(folder.with_name("other"), classes=list("abcde"), data="noise")
    shutil.copy(folder.with_name("other") / "model.safetensors", folder)


def config_of_another(folder):
    net = trained(prepare(build_model("small_resnet", 5), steps=2))
    net.save_pretrained(folder.with_name("other"))
    content = json.loads((folder.with_name("other") / "config.json").read_text())
    content["sha256"] = json.loads((folder / "config.json").read_text())["sha256"]
    (folder / "config.json").write_text(json.dumps(content))


TAMPERED = {
    "a byte of the weights": (one_byte, "model.safetensors was changed since it was written"),
    "a byte of a plain file": (
        lambda f: one_byte(f, "adversarial.safetensors"),
        "adversarial.safetensors was changed since it was written",
    ),
    "weights cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-50]),
        "model.safetensors was changed",
    ),
    "other weights": (swapped, "model.safetensors was changed"),
    "another config": (config_of_another, "config.json was changed.* or belongs to other weights"),
    "classes in another order": (
        lambda f: edited(f, lambda c: c["about"].update(classes=list("bacde"))),
        "config.json was changed",
    ),
    "another normalisation": (
        lambda f: edited(f, lambda c: c["preprocessing"].update(mean=[0.5] * 3)),
        "config.json was changed",
    ),
    "another cut": (
        lambda f: edited(f, lambda c: c["network"].update(after="layer2")),
        "config.json was cha",
    ),
    "another network": (
        lambda f: edited(f, lambda c: c["network"].update(name="timm/resnet18")),
        "config.json was changed",
    ),
    "no digest": (lambda f: edited(f, lambda c: c.update(sha256={})), "config.json says None"),
    "a word too many": (lambda f: edited(f, lambda c: c.update(code="x.py")), "code: Extra inputs"),
    "a word too few": (lambda f: edited(f, lambda c: c.pop("layer")), "layer: Field required"),
    "a later format": (lambda f: edited(f, lambda c: c.update(format=2)), "format: Input should be 1"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "is not what save_pretrained writes: Invalid"),
    "a tensor that is missing": (
        lambda f: rewritten(f, lambda s: s.pop("fc.bias")),
        "1 of its weights are not there, such as 'fc.bias'",
    ),
    "a tensor of the second branch that is missing": (
        lambda f: rewritten(f, lambda s: s.pop("adversarial/layer2.0.bn1.weight")),
        "1 of its weights are not there, such as 'adversarial/layer2.0.bn1.weight'",
    ),
    "a tensor too many": (
        lambda f: rewritten(f, lambda s: s.update(more=torch.ones(2))),
        "1 are not its own, such as 'more'",
    ),
    "a tensor of the second branch too many": (
        lambda f: rewritten(f, lambda s: s.update({"adversarial/fc.bias": torch.ones(5)})),
        "1 are not its own, such as 'adversarial/fc.bias'",
    ),
    "another shape": (
        lambda f: rewritten(f, lambda s: s.update({"fc.bias": torch.ones(6)})),
        r"'fc.bias' is \(6,\) and has to be \(5,\)",
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_folder_that_was_changed_is_refused(folder, case):
    change, words = TAMPERED[case]
    change(folder)
    with pytest.raises(WeightsError, match=words) as refused:
        AdvBNNet.from_pretrained(folder)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_spaces_in_the_config_do_not_count(folder):
    edited(folder, lambda content: None)  # written in one line
    assert AdvBNNet.from_pretrained(folder).about.classes == tuple("abcde")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_one_of_its_files(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} in"):
        AdvBNNet.from_pretrained(folder)


class Bomb:
    "An object that makes a file where it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_is_unpickled(folder, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    for name in ("pytorch_model.bin", "model.pt"):
        (folder / name).write_bytes(bomb)
    AdvBNNet.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(bomb)
    digest = file_digest(folder / "model.safetensors")
    edited(folder, lambda content: content.update(sha256={"model.safetensors": digest}))
    with pytest.raises(WeightsError, match="model.safetensors is damaged"):
        AdvBNNet.from_pretrained(folder)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb).close()
    assert (tmp_path / "exploded").exists(), "the bomb is none"


def test_the_digest_that_came_another_way(folder, written):
    known = file_digest(written / "model.safetensors")
    assert AdvBNNet.from_pretrained(folder, sha256=known.upper()).about.data == "noise"
    rewritten(folder, lambda state: state["fc.bias"].add_(1e-6))
    AdvBNNet.from_pretrained(folder)  # all digests of the folder were written anew
    with pytest.raises(WeightsError, match=f"have the SHA-256 [0-9a-f]{{64}}, and {known} is wanted"):
        AdvBNNet.from_pretrained(folder, sha256=known)


def test_other_weights_with_new_digests_have_other_logits(folder):
    rewritten(folder, lambda state: state["adversarial/layer2.0.bn1.bias"].add_(1))
    with pytest.raises(
        ValueError, match="other logits than the saved one, .* on the adversarial branch; .*torch"
    ):
        AdvBNNet.from_pretrained(folder)


def test_the_digest_stands_for_the_config_too(folder, written):
    edited(folder, lambda content: content["about"].update(data="photographs"))
    with pytest.raises(WeightsError, match="config.json was changed"):
        AdvBNNet.from_pretrained(folder, sha256=file_digest(written / "model.safetensors"))
    with safe_open(written / "model.safetensors", "pt") as file:
        assert file.metadata() == {"config_sha256": digest_of(read_config(written))}


# which network it is


class Mine(Net):
    def __init__(self):
        super().__init__(conv_bn())


def test_a_network_that_nobody_knows_is_refused_with_what_to_do(tmp_path):
    net = trained(prepare(Mine(), "block", steps=1))
    with pytest.raises(
        ValueError, match=r"not known: test_pretrained.Mine; .*register_network.*name='own'.*model="
    ):
        net.save_pretrained(tmp_path / "net")
    assert not (tmp_path / "net").exists()
    net.save_pretrained(tmp_path / "net", name="own")
    with pytest.raises(ValueError, match=r"makers' own, test_pretrained.Mine; .*model=\.\.\."):
        AdvBNNet.from_pretrained(tmp_path / "net")
    model = Mine()
    before = copy.deepcopy(model.state_dict())
    again = AdvBNNet.from_pretrained(tmp_path / "net", model=model)
    assert same(net, again) and again.layer.steps == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.conv.stride = (2, 2)  # of which neither names nor shapes know
    with pytest.raises(ValueError, match="other logits than the saved one.*model= has to be built as it was"):
        AdvBNNet.from_pretrained(tmp_path / "net", model=model)
    with pytest.raises(WeightsError, match="not this network's: 12 of its weights are not there"):
        AdvBNNet.from_pretrained(
            tmp_path / "net", model=Net(nn.Sequential(conv_bn(), nn.Conv2d(4, 4, 1), conv_bn()))
        )


def test_a_network_that_is_registered_has_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "NETWORKS", dict(models.NETWORKS))
    register_network("mine", lambda classes: Mine())
    net = trained(prepare(Mine(), "block", steps=1))
    net.save_pretrained(tmp_path, name="mine")
    assert same(net, AdvBNNet.from_pretrained(tmp_path))
    models.NETWORKS.pop("mine")
    with pytest.raises(ValueError, match="no network 'mine'; .*import that first, or say from_pretrained"):
        AdvBNNet.from_pretrained(tmp_path)


def test_parts_that_were_written_by_hand(tmp_path):
    def parts():
        stem, head = split(Mine(), "block")
        return AdvBNNet(stem, head, AdvBN(steps=1))

    net = trained(parts())
    with pytest.raises(ValueError, match="parts written by hand"):
        net.save_pretrained(tmp_path / "net")
    net.save_pretrained(tmp_path / "net", name="own")
    assert same(net, AdvBNNet.from_pretrained(tmp_path / "net", model=parts()))


@pytest.mark.parametrize("given", [None, "small_resnet"])
def test_a_network_that_was_changed_after_it_was_built_is_not_given_its_name(given, tmp_path):
    model = build_model("small_resnet", 5)
    model.relu = nn.ReLU6()
    net = trained(prepare(model, steps=1))
    with torch.no_grad():
        net.head.fc.weight.mul_(30)
    net.stem.conv1.weight.data.mul_(30)
    with pytest.raises(ValueError, match="'small_resnet' cut after 'layer1' has other logits .*name='own'"):
        net.save_pretrained(tmp_path / "net", name=given)
    assert not (tmp_path / "net").exists()


def test_another_name_is_refused(tmp_path):
    net = trained(prepare(build_model("small_resnet", 5), steps=1))
    with pytest.raises(ValueError, match="no network 'small_resnt'; the nearest are 'small_resnet'"):
        net.save_pretrained(tmp_path, name="small_resnt")
    with pytest.raises(WeightsError, match="not this network's: .* such as"):
        net.save_pretrained(tmp_path, name="torchvision/resnet18")
    assert list(tmp_path.iterdir()) == []


class Stronger(AdvBN):
    "A layer of one's own."


def test_what_cannot_be_kept_is_refused_before_anything_is_written(tmp_path):
    net = trained(prepare(build_model("small_resnet", 5), steps=1))
    net.layer = Stronger()
    with pytest.raises(ValueError, match="layer is a Stronger, .* net.layer = None"):
        net.save_pretrained(tmp_path)
    net.layer = AdvBN()
    net.head.fc.half()
    with pytest.raises(ValueError, match="weights are of the types float16, float32"):
        net.save_pretrained(tmp_path)
    net.head.fc.float().bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="'fc.bias' holds NaN"):
        net.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


# what is said of it


def test_what_is_said_stands_in_the_config_and_on_the_card(tmp_path):
    net = trained(prepare(build_model("small_resnet", 2), steps=1), classes=2)
    table = pd.DataFrame({"Clean": [59.1], "-C": [55.1]}, index=pd.Index(["AdvBN"], name="accuracy in %"))
    net.save_pretrained(
        tmp_path / "robust",
        classes=("cat", "dog"),
        data="emoji",
        commit="abc123",
        table=table,
        limits="Only cats and dogs.",
        licence="cc-by-4.0",
        images_licence="CC BY-SA 4.0",
    )
    card = (tmp_path / "robust/README.md").read_text()
    for words in (
        "license: cc-by-4.0",
        "library_name: advbn",
        "pipeline_tag: image-classification",
        "AdvBNNet.from_pretrained('robust')",
        "| AdvBN | 59.1 | 55.1 |",
        "Only cats and dogs.",
        "images: CC BY-SA 4.0",
        "commit: abc123",
        "small_resnet, cut after layer1",
        "cat, dog",
        file_digest(tmp_path / "robust/model.safetensors"),
    ):
        assert words in card, words
    again = AdvBNNet.from_pretrained(tmp_path / "robust")
    assert again.about.classes == ("cat", "dog") and again.about.limits == "Only cats and dogs."
    again.save_pretrained(tmp_path / "second", data="other emoji")
    kept = read_config(tmp_path / "second").about
    assert kept.data == "other emoji" and kept.commit == "abc123"


def test_what_nobody_has_said_is_said_to_be_unknown(written):
    card = (written / "README.md").read_text()
    assert "weights: not said" in card and "## Results\n\nNot said." in card and "license" not in card


@pytest.mark.parametrize(
    "said, words",
    [
        ({"license": "mit"}, "is told 'license'; allowed are name, classes.*did you mean 'licence'"),
        ({"classes": ["cat"]}, "classes are 1 names, and the network has 5 outputs"),
        ({"data": 5}, "data: Input should be a valid string"),
        ({"config": {}}, "config.json is made of the network"),
    ],
    ids=lambda case: str(case)[:20],
)
def test_a_slip_in_what_is_said(said, words, tmp_path):
    net = prepare(build_model("small_resnet", 5), steps=1)
    with pytest.raises(ValueError, match=words):
        net.save_pretrained(tmp_path / "net", **said)
    assert not (tmp_path / "net").exists()


# the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "The hub's cache, and what `push_to_hub` uploads laid into it as its client lays what it has fetched."
    from huggingface_hub import HfApi

    commit = "0" * 40

    def upload_folder(self, *, repo_id, folder_path, **_):
        place = tmp_path / "cache" / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder_path, place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs/main").write_text(commit)
        return f"https://example.org/{repo_id}"

    class Created:
        repo_id = "me/robust"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: Created)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return tmp_path / "cache"


def test_to_the_hub_and_back(hub):
    net = trained(prepare(build_model("small_resnet", 5), steps=1))
    net.push_to_hub("me/robust", model_card_kwargs={"data": "noise"})
    again = AdvBNNet.from_pretrained("me/robust", cache_dir=hub, local_files_only=True)
    assert same(net, again) and again.about.data == "noise"
    with pytest.raises(OSError, match="no folder me/other, and the hub does not give it"):
        AdvBNNet.from_pretrained("me/other", cache_dir=hub, local_files_only=True)


def test_neither_a_folder_nor_an_id(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no folder .*missing; nor is it an id on the hub, OWNER/NAME"
    ):
        AdvBNNet.from_pretrained(tmp_path / "missing")
    with pytest.raises(ValueError, match="is told 'revison'; .*did you mean 'revision'"):
        AdvBNNet.from_pretrained("me/robust", revison="main")


# a branch alone


def test_a_branch_is_loaded_as_it_is_exported():
    net, other = (one_step(prepare(Mine(), "block", steps=1)) for _ in range(2))
    for branch in BRANCHES:
        other.load_branch(branch, net.export(branch))
    assert all(torch.equal(v, both_branches(other)[k]) for k, v in both_branches(net).items())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("fc.bias"), r"'fc.bias' is not there and has to be \(5,\)"),
        (lambda s: s.update(more=torch.ones(1)), r"'more' is \(1,\) and has to be not there"),
        (lambda s: s.update({"fc.bias": torch.ones(6)}), r"'fc.bias' is \(6,\) and has to be \(5,\)"),
    ],
    ids=["missing", "more", "shape"],
)
def test_another_networks_branch_is_refused_and_changes_nothing(change, words):
    net = one_step(prepare(Mine(), "block", steps=1))
    before, state = both_branches(net), {k: v + 1 for k, v in net.export("clean").items()}
    change(state)
    with pytest.raises(ValueError, match=words):
        net.load_branch("clean", state)
    assert all(torch.equal(v, before[k]) for k, v in both_branches(net).items())
    with pytest.raises(ValueError, match="branch is 'noisy'"):
        net.load_branch("noisy", net.export())


def test_timm_takes_a_branch_as_a_checkpoint(tmp_path):
    timm = pytest.importorskip("timm")
    net = trained(prepare(of_timm(), steps=1))
    net.save_pretrained(tmp_path)
    file = str(tmp_path / "adversarial.safetensors")
    plain = timm.create_model("resnet10t", num_classes=5, checkpoint_path=file).eval()
    with torch.no_grad():
        assert torch.equal(plain(IMAGES), both_logits(net, IMAGES)["adversarial"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_torchvisions_networks_are_recognised_and_no_other():
    "Every third; the largest, which would take long to build, are of the same classes."
    large = ("128gf", "32gf", "16gf", "vit_", "vgg1", "wide", "_l", "b7", "swin_b", "swin_v2_b")
    names = torchvision.models.list_models(torchvision.models)
    tried = [name for name in names if not any(word in name for word in large)][::3]
    for name in tried:
        model = torchvision.models.get_model(name, num_classes=5)
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        assert of_torchvision(kind, model.state_dict(), 5) == [f"torchvision/{name}"]
        assert of_torchvision(kind, {**model.state_dict(), "more": torch.ones(1)}, 5) == []
    assert len(tried) > 15


@pytest.mark.slow
def test_auxiliary_heads_travel_along(tmp_path):
    net = trained(prepare(build_model("torchvision/googlenet", 5), "inception3b", steps=1))
    net.save_pretrained(tmp_path)
    again = AdvBNNet.from_pretrained(tmp_path)
    assert same(net, again) and any(k.startswith("aux1.") for k in again.export())
    assert Path(tmp_path / "model.safetensors").stat().st_size > 1e7
