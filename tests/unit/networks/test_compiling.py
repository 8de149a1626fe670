"""Networks that are compiled where a measurement says that this is faster, and otherwise never."""

import pytest
import torch
from torch import nn

from advbn.images.preprocessing import Preprocessing, preprocessing_of
from advbn.method.folding import for_inference
from advbn.networks import compiling
from advbn.networks.compiling import FEW, Compiled, compiled_where_faster
from advbn.networks.models import build_model

LONG = 10**9  # batches that take years


class Chained(nn.Module):
    "A network of many small operations, which is what compiling is for."

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        for _ in range(40):
            x = (x * self.weight + 0.1).sin().relu()
        return x.mean((2, 3))


@pytest.fixture
def batch():
    return torch.linspace(-1, 1, 8 * 3 * 64 * 64).view(8, 3, 64, 64)


@pytest.fixture(autouse=True)
def forgotten():
    yield
    torch._dynamo.reset()


def test_short_work_is_not_even_measured(batch):
    asked = []
    network = nn.Identity()
    network.register_forward_hook(lambda *call: asked.append(1))
    assert compiled_where_faster(network, batch, FEW - 1, worth=0) is network and not asked
    assert compiled_where_faster(network, batch, FEW) is network and len(asked) == 4


@pytest.fixture
def takes(monkeypatch):
    "Whatever is timed is done once, and takes as long as is said, whatever else the machine does."

    def say(*seconds):
        times = iter(seconds)
        monkeypatch.setattr(compiling, "seconds_of", lambda work, **options: (work(), next(times))[1])

    return say


def test_what_is_faster_compiled_is_compiled_and_says_so(batch, capsys, takes):
    takes(1.0, 0.5)
    network = Chained().eval()
    network.preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3))
    found = compiled_where_faster(network, batch, LONG)
    assert isinstance(found, Compiled)
    said = capsys.readouterr().err
    assert "compiled by torch.compile: 1000 ms for a batch of 8, compiled 500 ms" in said
    assert preprocessing_of(found) is network.preprocessing
    assert [id(p) for p in found.parameters()] == [id(p) for p in network.parameters()]
    with torch.inference_mode():
        torch.testing.assert_close(found(batch), network(batch), rtol=1e-5, atol=1e-5)


def test_a_batch_of_another_shape_goes_through_the_network_as_it_is(batch):
    network, seen = for_inference(build_model("small_resnet", 9)), []
    compiled = Compiled(network, lambda x: seen.append(x.shape) or network(x), batch.shape)
    with torch.inference_mode():
        for x in (batch, batch[:3], batch[..., :32]):
            assert torch.equal(compiled(x), network(x))
    assert seen == [batch.shape]


def test_where_nothing_can_be_compiled_the_network_is_used_and_the_reason_told(batch, capsys, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    network = Chained().eval()
    assert compiled_where_faster(network, batch, LONG) is network
    assert "not compiled, torch.compile says: " in capsys.readouterr().err


def test_what_is_not_faster_stays_as_it_is(batch, capsys, monkeypatch, takes):
    monkeypatch.setattr(torch._dynamo.config, "disable", True)  # as TORCH_COMPILE_DISABLE=1 does
    takes(1.0, 0.99)
    network = for_inference(build_model("small_resnet", 9))
    assert compiled_where_faster(network, batch, LONG) is network
    assert (
        "not compiled, it is not faster: 1000 ms for a batch of 8, compiled 990 ms" in capsys.readouterr().err
    )
