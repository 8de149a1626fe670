"""Files of weights: what they say, and that nothing in them is executed."""

import os

import pytest
import torch
from torchvision.models import mnasnet0_5

from advbn.base.errors import WeightsError
from advbn.networks.models import build_model
from advbn.networks.weights import load_into, load_state, save_state


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


def test_checkpoints(tmp_path):
    net = mnasnet0_5(num_classes=2)
    save_state(net.state_dict(), tmp_path / "a" / "net.pt")
    mnasnet0_5(num_classes=2).load_state_dict(load_state(tmp_path / "a" / "net.pt"))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["net.pt"]
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_state(tmp_path / "b.pt")


def test_a_payload_is_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"weight": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match="was not executed"):
        load_state(tmp_path / "bad.pt")
    assert not (tmp_path / "harm").exists()
