"""What a shell can complete."""

import pytest

from advbn.cli import complete


@pytest.mark.parametrize(
    "function, given, found",
    [
        ("corruptions", "fo", ["fog"]),
        ("corruptions", "fog,fr", ["fog,frost"]),
        ("corruptions", "fog,fo", []),
        ("corruptions", "al", ["all"]),
        ("styles", "sutro,ed", ["sutro,edges"]),
        ("styles", "fil", ["filters"]),
        ("shifts", "clean,sk", ["clean,sketch"]),
        ("formats", "j", ["jpeg"]),
        ("loggers", "t", ["tensorboard"]),
        ("profiles", "openm", ["openmoji"]),
        ("methods", "adv", ["advbn"]),
        ("seeds", "0", ["0"]),
        ("models", "resnet10", ["resnet101"]),
        ("models", "torchvision/resnet5", ["torchvision/resnet50"]),
        ("models", "timm/tf_efficientnet_lite0", ["timm/tf_efficientnet_lite0"]),
        ("models", "tim", ["timm/"]),
        ("models", "nobody/r", []),
    ],
)
def test_what_is_begun_is_completed(function, given, found, root, monkeypatch):
    monkeypatch.chdir(root)
    offered = getattr(complete, f"complete_{function}")(given)
    assert offered == found or (function == "methods" and found[0] in offered)


def test_outside_of_a_clone_there_are_no_profiles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVBN_ROOT", raising=False)
    assert complete.complete_profiles("") == complete.complete_methods("") == []
