"""ONNX files: PyTorch's logits on either branch, for any size of batch, or no file."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from advbn import prepare
from advbn.adapters.pretrained import both_logits
from advbn.images.preprocessing import Preprocessing, remember
from advbn.networks.models import build_model

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

from advbn.adapters.onnx import TOLERANCE, compared, onnx_bytes, write_onnx  # noqa: E402


@pytest.fixture(scope="module")
def net():
    "A network after a step on both losses."
    torch.manual_seed(0)
    wanted = Preprocessing((0.5,) * 3, (0.25,) * 3, 32, 36)
    net = prepare(remember(build_model("small_resnet", 5), wanted), steps=1).train()
    optimizer = torch.optim.SGD(net.trainable_parameters(), lr=0.1)
    sum(net.losses(torch.randn(8, 3, 32, 32), torch.arange(8) % 5)).backward()
    optimizer.step()
    return net.eval()


@pytest.mark.parametrize("branch", ["clean", "adversarial"])
def test_the_runtime_gives_pytorchs_logits(net, branch, tmp_path):
    agreement = write_onnx(net, tmp_path / "net.onnx", branch, classes=list("abcde"))
    assert 0 <= agreement.largest < TOLERANCE and agreement.images == 8 and "8 images" in str(agreement)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for batch in (1, 7):
        images = torch.randn(batch, 3, 32, 32)
        theirs = session.run(["logits"], {"images": images.numpy()})[0]
        ours = both_logits(net, images)
        assert np.allclose(theirs, ours[branch], atol=1e-4)
        other = ours["clean" if branch == "adversarial" else "adversarial"]
        assert not np.allclose(theirs, other, atol=1e-4)
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["classes"]) == list("abcde") and json.loads(known["branch"]) == branch
    assert json.loads(known["preprocessing"])["std"] == [0.25] * 3
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_a_plain_network(tmp_path):
    agreement = write_onnx(build_model("small_convnext", 5), tmp_path / "net.onnx", size=40)
    assert agreement.largest < TOLERANCE


def test_a_file_of_other_logits_is_noticed(net):
    one, other = (build_model("small_resnet", 5).eval() for _ in range(2))
    content = onnx_bytes(one, 32, {})
    assert compared(content, one, 32).largest < TOLERANCE
    with pytest.raises(ValueError, match="onnxruntime gives other logits than PyTorch"):
        compared(content, other, 32)
    with pytest.raises(ValueError, match="onnxruntime cannot run it"):
        compared(content[:1000], one, 32)


class Undecided(nn.Module):
    "A network whose way depends on its images."

    def forward(self, x):
        return x.flatten(1)[:, :5] if x.sum() > 0 else x.flatten(1)[:, 5:10]


def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path, net):
    with pytest.raises(ValueError, match="Undecided cannot be written as ONNX"):
        write_onnx(Undecided(), tmp_path / "net.onnx", size=32)
    with pytest.raises(ValueError, match="takes images of any size; .* size=224"):
        write_onnx(build_model("small_resnet", 5), tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="branch is 'noisy'"):
        write_onnx(net, tmp_path / "net.onnx", "noisy")
    assert list(tmp_path.iterdir()) == []


def test_the_extra_is_named_where_it_is_missing(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"ONNX needs onnxruntime: pip install 'advbn\[onnx\]'"):
        write_onnx(net, tmp_path / "net.onnx")
