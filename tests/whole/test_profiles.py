"""ImageNet's protocol in miniature up to the tables, and the files that a profile names."""

import subprocess

import pandas as pd
import pytest
import torch
import torchvision
from miniature_imagenet import parameters, picture

from advbn.base.config import parse_params
from advbn.base.errors import ParameterError
from advbn.base.files import file_digest
from advbn.evidence.tables import (
    decoded_markdown,
    decoded_table,
    mce_table,
    outcomes_table,
    robustness_markdown,
    robustness_table,
)
from advbn.evidence.testing import evaluate, make_tests, read_right, write_right
from advbn.training.run import resolve, setting_of
from advbn.training.train import pretrain, train, train_autoencoder


def test_imagenets_protocol_in_miniature_up_to_the_tables(imagenet, root, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(imagenet))
    params = parse_params(parameters(imagenet, root))
    assert pretrain(resolve(params, "standard", 0)).empty  # published weights
    network = torch.load(imagenet / "checkpoints/imagenet/pretrained/seed0-clean.pt", weights_only=True)
    assert torch.equal(
        network["conv1.weight"], torch.load(imagenet / "resnet50.pth", weights_only=True)["conv1.weight"]
    )
    histories = {m: train(resolve(params, m, 0)) for m in params.methods}
    assert (
        histories["advbn"].lr.tolist() == pytest.approx([0.001, 0.0001])
        and (histories["advbn"].adversarial_loss > 0).all()
    )
    plain = torchvision.models.resnet50(num_classes=3)
    for branch in ("clean", "adversarial"):
        plain.load_state_dict(
            torch.load(imagenet / f"checkpoints/imagenet/advbn/seed0-{branch}.pt", weights_only=True)
        )
        assert torch.equal(plain.layer1[0].conv1.weight, network["layer1.0.conv1.weight"])
        assert not torch.equal(plain.layer2[0].conv1.weight, network["layer2.0.conv1.weight"])
    assert len(train_autoencoder(setting_of(params))[1]) == 1
    listed = make_tests(setting_of(params), 0)
    assert set(listed["shift"]) == {
        "clean",
        "corruptions",
        "instagram",
        "sketch",
        "stylized",
        "reconstructed",
        "advbn",
    }
    found, answers = {m: evaluate(resolve(params, m, 0)) for m in params.methods}, {}
    runs = pd.concat([table for table, _ in found.values()])
    for method, (_, predictions) in found.items():
        write_right(imagenet / "right.npz", {0: predictions})
        answers[method] = read_right(imagenet / "right.npz")
    assert (runs[runs["shift"] != "sketch"].images == 6).all() and (
        runs[runs["shift"] == "sketch"].images == 2
    ).all()
    assert set(runs[runs["shift"] == "sketch"].source) == {"published"} and set(
        runs[runs["shift"] == "corruptions"].source
    ) == {"generated"}
    tables = {
        "outcomes": outcomes_table(answers, params),
        "robustness": robustness_table(answers, "imagenet"),
        "mce": mce_table(answers, "imagenet", "alexnet"),
    }
    text = robustness_markdown(tables, params, runs)
    for words in (
        "mCE against AlexNet",
        "One seed, hence no intervals",
        "◆ Primary: AdvBN against clean fine-tune",
        "Sketch: published as a set",
        "-C, Instagram, Stylized: generated",
    ):
        assert words in text
    assert "nan" not in text + decoded_markdown(decoded_table(answers, "imagenet"), params)


@pytest.mark.parametrize("name", ["resnet50.pth", "vgg.pth", "paintings"])
def test_a_file_that_params_name_is_the_one_that_is_meant(imagenet, root, monkeypatch, name):
    "DVC follows params.yaml, not the files that it names; so their digests stand there."
    monkeypatch.setenv("ADVBN_ROOT", str(imagenet))
    picture(imagenet / "paintings/a.png", (64, 64))
    content = parameters(imagenet, root)
    section = content["profiles"]["imagenet"]["network" if name == "resnet50.pth" else "pictures"]
    key = "styles_sha256" if name == "paintings" else "weights_sha256"
    if name == "paintings":
        section.update(styles="paintings", styles_sha256=file_digest(imagenet / name))
        printed = subprocess.run(
            "LC_ALL=C sha256sum * | sha256sum",
            shell=True,
            cwd=imagenet / name,
            capture_output=True,
            text=True,
        ).stdout
        assert printed.split()[0] == section[key]
    verb = (
        (lambda params: pretrain(resolve(params, "standard", 0)))
        if name == "resnet50.pth"
        else lambda params: train_autoencoder(setting_of(params))
    )
    with open(imagenet / name if name != "paintings" else imagenet / name / "a.png", "ab") as file:
        file.write(b"another")
    found = file_digest(imagenet / name)
    for said, words in (
        (section[key], f"says that of another, {section[key]}; if this one is meant"),
        (None, "does not say it"),
    ):
        section[key] = said
        with pytest.raises(
            ParameterError,
            match=f"{name} has the SHA-256 {found}, and params.yaml {words}.*: {key}: {found}$",
        ):
            verb(parse_params(content))
    assert not (imagenet / "checkpoints").exists()
