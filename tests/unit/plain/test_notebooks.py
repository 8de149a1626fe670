"""Parameters of notebooks: names, types, exactly one cell."""

import re

import pytest
import torch
from conftest import ROOT, notebook

from advbn.base.errors import ParameterError
from advbn.notebooks import check_parameters, notebook_parameters, surroundings

METHOD = ROOT / "nbs/stages/method.ipynb"


@pytest.mark.parametrize(
    "given, words",
    [
        ({"methd": "advbn"}, "no parameter 'methd'; did you mean 'method'"),
        ({}, "needs the parameter 'method'"),
        ({"method": "advbn", "eps": "1"}, "no parameter 'eps'; it takes method"),
    ],
)
def test_wrong_names(given, words):
    with pytest.raises(ParameterError, match=words):
        check_parameters(METHOD, given)


@pytest.mark.parametrize(
    "default, text, value",
    [
        ("3", "5", 5),
        ("3", "five", None),
        ("3", "1.5", None),
        ("0.5", "0.001", 0.001),
        ("True", "false", False),
        ("True", "yes", None),
        ("'a'", "7", "7"),
        ("[1]", "[1, 2]", [1, 2]),
    ],
)
def test_types(tmp_path, default, text, value):
    path = notebook(tmp_path / "a.ipynb", (f"x = {default}", ["parameters"]))
    if value is None:
        with pytest.raises(ParameterError, match="parameter x is"):
            check_parameters(path, {"x": text})
    else:
        found = check_parameters(path, {"x": text})["x"]
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("cells", [[("x = 1", [])], [("x = 1", ["parameters"]), ("y = 1", ["parameters"])]])
def test_exactly_one_parameters_cell(tmp_path, cells):
    with pytest.raises(ParameterError, match="exactly one"):
        notebook_parameters(notebook(tmp_path / "a.ipynb", *cells))


def test_the_parameters_of_a_stage_are_names_with_example_values():
    assert notebook_parameters(METHOD) == {"method": "advbn", "profile": "openmoji"}


@pytest.mark.parametrize(
    "given, said",
    [
        ({"methods": "advbn"}, "method.ipynb has no parameter 'methods'; did you mean 'method'?"),
        ({}, "method.ipynb needs the parameter 'method'"),
    ],
)
def test_a_wrong_name_is_said_in_one_line(given, said):
    with pytest.raises(ParameterError) as caught:
        check_parameters(METHOD, given)
    assert str(caught.value) == said


def test_the_surroundings_are_hardware_versions_and_commit():
    found = surroundings()
    assert list(found) == ["Processor", "GPU", "Python", "Packages", "Commit"]
    assert re.fullmatch(r"3\.\d+\.\d+", found["Python"])
    capability = torch.backends.cpu.get_cpu_capability()
    vectors = {"AVX512": ", AVX-512", "AVX2": ", AVX2"}.get(capability, "")
    assert re.fullmatch(rf".+, \d+ cores{vectors}", found["Processor"])
    names = ["advbn", "torch", "torchvision", "accelerate", "numpy", "pandas"]
    assert [package.split()[0] for package in found["Packages"].split(", ")] == names
    assert f"torch {torch.__version__.split('+')[0]}" in found["Packages"]
    assert re.match(r"[0-9a-f]{12}|not known", found["Commit"])
