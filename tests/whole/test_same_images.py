"""A network gets the same images in `prepare`, in the pipeline and on the command line."""

import json
import subprocess
import sys

import pytest
import timm
import torch
import yaml
from lite_profile import HALF, LITE, pixels, seen_by_first_convolutions

from advbn import prepare
from advbn.base.config import parse_params
from advbn.adapters.evaluate import load_network
from advbn.evidence.evaluation import predict
from advbn.evidence.testing import evaluate
from advbn.images.batches import normalize
from advbn.images.preprocessing import IMAGENET, preprocessing_of, recorded
from advbn.networks.weights import load_state
from advbn.training.run import load_data, resolve, setting_of
from advbn.training.train import pretrain, train, train_autoencoder


def test_a_network_gets_the_same_images_in_prepare_in_the_pipeline_and_on_the_command_line(
    lite_project, lite, tmp_path
):
    params = parse_params(yaml.safe_load((lite_project / "params.yaml").read_text()))
    pretrain(resolve(params, "standard", 0))
    history, seen = seen_by_first_convolutions(lambda: train(resolve(params, "finetune", 0)))
    assert len(history) == 1 and seen and all(pixels(batch, HALF, HALF) for _, batch in seen)
    train_autoencoder(setting_of(params))
    for method in (
        "pretrained",
        "finetune",
        "autoencoder",
    ):  # as the profile makes them, not as the architecture's published weights want them
        said = [
            recorded(load_state(file))
            for file in (lite_project / f"checkpoints/imagenet/{method}").glob("*.pt")
            if "decoder" not in file.name
        ]
        assert {(one.size, one.resize, one.interpolation) for one in said} == {(64, 72, "bicubic")}
    (table, found), seen = seen_by_first_convolutions(lambda: evaluate(resolve(params, "finetune", 0)))
    of_lite = [batch for out, batch in seen if out == 32]
    assert of_lite and all(pixels(batch, HALF, HALF) for batch in of_lite)
    of_vgg = [batch for out, batch in seen if out == 16]
    assert pixels(of_vgg[0], IMAGENET.mean, IMAGENET.std)  # the autoencoder has another
    file = lite_project / "checkpoints/imagenet/finetune/seed0-clean.pt"
    plain = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()
    plain.load_state_dict(torch.load(file, weights_only=True))
    test = load_data(setting_of(params)).test(0)
    images = test[range(len(test))].images
    with torch.no_grad():
        logits = plain((images / 255 - 0.5) / 0.5)
        loaded = load_network(LITE, str(file), 3)
        assert torch.allclose(loaded(normalize(images, preprocessing_of(loaded))), logits, atol=1e-4)
        net = prepare(plain, "blocks.1").eval()
        assert torch.allclose(net(normalize(images, net.preprocessing)), logits, atol=1e-4)
    clean = found.classes["clean"][found.cells.index("clean/clean")]
    assert (
        torch.equal(predict(net, images)[0][:, 0], logits.argmax(1))
        and (clean[clean >= 0] == logits.argmax(1).numpy()).all()
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
            lite_project / "imagenet/val",
            "--shifts",
            "clean",
            "--json",
        ],
        cwd=lite_project,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 0
        and f"{LITE}: images resized to 72 (bicubic), cut to 64 pixels, mean {HALF}, deviation {HALF}"
        in done.stderr
    ), done.stderr
    said = json.loads(done.stdout)["networks"][LITE]
    assert said["rows"]["clean"]["value"] == pytest.approx(table[table["shift"] == "clean"].accuracy.item())
    assert said["rows"]["clean"]["images"] == 6 and said["preprocessing"]["size"] == 64
