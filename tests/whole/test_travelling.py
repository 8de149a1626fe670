"""Weights in a process that knows nothing of them: by the package, by torch.hub, on the command line."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torchvision.models import resnet18

from advbn import prepare
from advbn.adapters.pretrained import both_logits, packed

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "`(folder, logits on both branches)` of a network after a step."
    torch.manual_seed(0)
    net = prepare(resnet18(num_classes=3), steps=1).train()
    optimizer = torch.optim.SGD(net.trainable_parameters(), lr=0.1)
    sum(net.losses(torch.randn(6, 3, 64, 64), torch.arange(6) % 3)).backward()
    optimizer.step()
    folder = net.save_pretrained(tmp_path_factory.mktemp("weights") / "net")
    return folder, {k: v.tolist() for k, v in both_logits(net, IMAGES).items()}


BEGINNING = """
import json, torch
images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
"""


def said(code, folder):
    "What a program prints, as JSON, in a process of its own that is started in `folder`."
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


BY_PACKAGE = """
import sys
from advbn import AdvBNNet, use_branch
assert "advbn.networks.models" not in sys.modules
net, found = AdvBNNet.from_pretrained("net"), {}
for branch in ("clean", "adversarial"):
    with torch.no_grad(), use_branch(net, branch):
        found[branch] = net(images).tolist()
print(json.dumps(found))
"""


def test_one_line_in_a_fresh_process(written):
    folder, expected = written
    assert said(BY_PACKAGE, folder.parent) == expected


BY_HUB = """
import sys
for name in ("accelerate", "jinja2", "pandas", "pilgram", "psutil", "scipy", "timm", "typer"):
    sys.modules[name] = None  # as if it were not installed
found = {}
for branch, weights in (("clean", FOLDER), ("adversarial", ARCHIVE)):
    net = torch.hub.load(REPOSITORY, "advbn", weights, branch, source="local")
    assert type(net).__module__.startswith("torchvision.")
    with torch.no_grad():
        found[branch] = net(images).tolist()
both = torch.hub.load(REPOSITORY, "advbn", FOLDER, source="local")
assert type(both).__name__ == "AdvBNNet" and both.made.name == "torchvision/resnet18"
print(json.dumps(found))
"""


def test_torch_hub(written, tmp_path):
    "From a folder, and from an archive of one; of the package's requirements only those named are there."
    folder, expected = written
    places = {"REPOSITORY": ROOT, "FOLDER": folder, "ARCHIVE": packed(folder, tmp_path / "net.zip")}
    code = BY_HUB
    for word, path in places.items():
        code = code.replace(word, repr(str(path)))
    assert said(code, tmp_path) == expected


def test_the_command_line_exports_a_folder(written, run, refused, tmp_path):
    folder, expected = written
    status, out, _ = run("export", folder, tmp_path / "plain.pt", "--branch", "adversarial")
    assert status == 0 and "torchvision/resnet18, adversarial branch" in out
    net = resnet18(num_classes=3).eval()
    net.load_state_dict(torch.load(tmp_path / "plain.pt", weights_only=True))
    with torch.no_grad():
        assert net(IMAGES).tolist() == expected["adversarial"]
    refused(
        ["export", folder, tmp_path / "x", "--branch", "noisy"],
        "--branch is 'noisy'",
        "clean and adversarial",
    )
    refused(["export", folder, tmp_path / "x", "--pretrained"], "is what --pretrained writes")
    refused(["export", folder, tmp_path / "x", "--pretrained", "--onnx"], "exactly one of them")
    refused(["export", folder, tmp_path / "x", "--size", "64"], "--size goes with --onnx")
    assert not (tmp_path / "x").exists()


def test_the_command_line_writes_onnx(written, run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    folder, expected = written
    status, out, _ = run(
        "export", folder, tmp_path / "net.onnx", "--onnx", "--size", 64, "--branch", "adversarial"
    )
    assert status == 0 and "logits as PyTorch's" in out
    found = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"images": IMAGES.numpy()})[0]
    assert torch.allclose(torch.from_numpy(found), torch.tensor(expected["adversarial"]), atol=1e-4)
