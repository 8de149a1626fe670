"""Parameters of notebooks: names, types, exactly one cell."""

import pytest
from advbn.errors import ParameterError
from advbn.notebooks import check_parameters, notebook_parameters
from conftest import notebook, ROOT


TRAIN = ROOT / "nbs/stages/train.ipynb"


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
        check_parameters(TRAIN, given)


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
