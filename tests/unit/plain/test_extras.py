"""Optional packages: which extra brings which."""

import re
import sys
import tomllib

import pytest

from advbn.base.errors import ParameterError
from advbn.base.extras import EXTRAS, check_logger, extra_of, lacking, missing_modules, optional, require

CALLED = {"skimage": "scikit-image"}  # modules that are not called as their packages


def test_the_extras_are_those_that_can_be_installed(root):
    offered = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, extra in EXTRAS.items():
        packages = {re.split(r"[=<>\[]", package)[0] for package in offered[name]}
        for module in extra.modules:
            called = CALLED.get(module, module.replace("_", "-"))
            assert called in packages or name == "notebooks", (name, module)


def test_the_smallest_extra_is_proposed():
    assert extra_of("timm.data") == "timm" and extra_of("skimage") == "figures" and extra_of("torch") is None
    said = str(lacking("timm", "it"))
    assert said == "it needs timm, which is not installed: pip install 'advbn[timm]'"
    assert "pip install 'advbn[photographs]'" in str(lacking("timm", "it", "photographs"))
    assert str(lacking("imagecorruptions", "it")).endswith("pip install imagecorruptions")


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"this needs transformers.*advbn\[huggingface\]"):
        optional("transformers", "this")
    assert optional("json", "this").dumps([]) == "[]"


def test_the_adapters_and_networks_name_their_extras(monkeypatch):
    from advbn.networks.models import build_model

    for module, extra, call in (
        ("lightning.pytorch", "lightning", lambda: __import__("advbn.adapters.lightning")),
        ("transformers", "huggingface", lambda: __import__("advbn.adapters.huggingface")),
        ("timm", "timm", lambda: build_model("timm/resnet18", 3)),
        ("timm", "photographs", lambda: build_model("efficientnet_lite0", 3)),
    ):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            for adapter in ("lightning", "huggingface"):
                without.delitem(sys.modules, f"advbn.adapters.{adapter}", raising=False)
            with pytest.raises(ImportError, match=rf"not installed: pip install 'advbn\[{extra}\]'"):
                call()


def test_a_command_names_the_extra_that_it_lacks(monkeypatch, refused, root):
    monkeypatch.chdir(root)
    for module, words in (
        ("papermill", "needs papermill: pip install 'advbn[notebooks]'"),
        ("matplotlib", "this command needs matplotlib, which is not installed: pip install 'advbn[figures]'"),
    ):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            if module == "matplotlib":  # as a chart would
                without.setattr("advbn.doctor.findings", lambda: __import__("matplotlib.pyplot"))
            refused(["doctor"] if module == "matplotlib" else ["run", "nbs/stages/method.ipynb"], words)


def test_loggers():
    check_logger(None)
    with pytest.raises(ParameterError, match="allowed are tensorboard, dvclive; did you mean 'tensorboard'"):
        check_logger("tensorbord")
    assert all(name in EXTRAS for name in ("tensorboard", "dvclive"))


def test_what_an_extra_lacks(monkeypatch):
    monkeypatch.setitem(EXTRAS, "made up", EXTRAS["timm"]._replace(modules=("json", "no_such_module")))
    assert missing_modules("made up") == ["no_such_module"]


def test_all_that_is_lacking_is_told_at_once(monkeypatch):
    require("it", "figures")
    monkeypatch.setattr("advbn.base.extras.find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"^it needs imagehash, timm, which are .*'advbn\[finetune,timm\]'$"
    ):
        require("it", "finetune", "timm")
    with pytest.raises(ImportError, match=r"^it needs imagehash, which is not installed"):
        require("it", "finetune")
