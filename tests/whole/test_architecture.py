"""What `ls` shows is how it is built: parts that import one way, rooms and lines of readable size."""

import ast
import re
import subprocess

import nbformat
import pytest
from conftest import ROOT

from advbn.base.registry import above

PARTS = (
    "images",
    "method",
    "networks",
    "shifts",
    "training",
    "evidence",
    "adapters",
)  # each imports those before it
MAY_IMPORT = {part: PARTS[:place] for place, part in enumerate(PARTS)}
BELOW = ("base",)  # the machinery, plain modules that all parts may import
ABOVE = ("cli", "bench")  # what may import everything
BESIDE = ("explore", "recipes", "stages", "choices")  # notebooks that are no rooms
MODULES = sorted(p for p in (ROOT / "advbn").rglob("*.py") if p.name != "_modidx.py")
ROOMS = sorted((ROOT / "nbs").glob("*/[0-9]*.ipynb"))
NUMBERS = {(p.parent.name, p.stem[3:]): int(p.stem[:2]) for p in ROOMS}


def name_of(path):
    "The parts of a module's name without the package's: `('method', 'layer')`, `('config',)`, `()`."
    names = path.relative_to(ROOT / "advbn").with_suffix("").parts
    return names[:-1] if names[-1] == "__init__" else names


def imported(path):
    """The modules of the package that a module imports, at any place in it, as `name_of` has them. Of what is
    imported from a part, such as `from .method import layer`, the room is in the name, too."""
    package = ("advbn", *path.relative_to(ROOT / "advbn").parts[:-1])
    known, found = {name_of(p) for p in MODULES}, set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) + 1 - node.level]) if node.level else []
            whole = base + (node.module or "").split(".") if node.module else base
            names = [[*whole, alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "advbn":
                inner = tuple(name[1:])
                found.add(inner if inner in known else inner[:-1])
    return found - {()}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: ".".join(name_of(p)) or "advbn")
def test_imports_run_one_way(path):
    own = name_of(path)
    if own and own[0] in BELOW:
        assert {name for name in imported(path) if name[0] not in BELOW} == set()
    elif len(own) == 2 and own[0] not in ABOVE:
        part, room = own
        for name in imported(path):
            if name[0] in BELOW:
                continue
            if name[0] == part and len(name) == 2:
                assert NUMBERS[name] < NUMBERS[own], f"{part}: {room} imports {name[1]}, a later room"
            else:
                assert name[0] in MAY_IMPORT[part], f"{'.'.join(own)} imports {'.'.join(name)}"


CALLED_ABOVE = {  # methods of a class below whose work is done above; see `above` in base/registry.py
    ("method", "network"): {"adapters.pretrained.save_folder", "adapters.pretrained.load_folder"},
}


def test_what_is_called_above_is_listed_and_there():
    found = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "above":
                found.setdefault(name_of(path), set()).add(node.args[0].value)
    assert found == CALLED_ABOVE
    assert all(callable(above(name)) for names in found.values() for name in names)


def test_the_book_and_the_package_show_the_same_parts():
    shown = {p.name for p in (ROOT / "nbs").iterdir() if p.is_dir() and not p.name.startswith(".")}
    built = {p.parent.name for p in (ROOT / "advbn").glob("*/__init__.py")}
    assert shown - {*BESIDE} == built - {*BELOW, *ABOVE} == {*MAY_IMPORT} and len(MAY_IMPORT) <= 7
    assert not list((ROOT / "nbs").glob("[0-9]*.ipynb")), "rooms outside the parts"


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_has_an_index_and_at_most_nine_rooms_each_with_its_module(part):
    rooms = [p for p in ROOMS if p.parent.name == part]
    assert 1 <= len(rooms) <= 9 and (ROOT / "nbs" / part / "index.ipynb").exists()
    assert len({p.stem[:2] for p in rooms}) == len(rooms), "two rooms of one number"
    defined = set()
    for path in rooms:
        text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        exported = re.findall(r"(?m)^#\| default_exp (\S+)", text)
        assert exported in ([], [f"{part}.{path.stem[3:]}"]), path.name
        defined |= {name.partition(".")[2] for name in exported}
    assert defined == {p.stem for p in (ROOT / "advbn" / part).glob("*.py")} - {"__init__"}


def exported_cells():
    "Every exported cell of the book: `(notebook and number of the cell, lines)`."
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
                if cell.cell_type == "code" and cell.source.startswith("#| export"):
                    yield f"{path.relative_to(ROOT / 'nbs')}, cell {number}", cell.source.count("\n") + 1


def test_at_most_five_exported_cells_are_longer_than_30_lines_and_none_than_60():
    long = {name: lines for name, lines in exported_cells() if lines > 30}
    assert len(long) <= 5 and max(long.values(), default=0) <= 60, long


def is_a_command(function):
    "Of a command of the command line each parameter is an option, as typer has it."
    return any("app.command" in ast.unparse(d) for d in function.decorator_list)


def test_no_function_has_more_than_seven_parameters():
    found = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not is_a_command(node):
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                count = len([a for a in arguments if a.arg not in ("self", "cls")])
                if count > 7:
                    found[f"{'.'.join(name_of(path))}.{node.name}"] = count
    assert found == {}


SEE_PARAMS = {  # what resolves a run, and what reports on runs
    ("base", "config"),
    ("training", "run"),
    ("training", "strength"),
    ("training", "cost"),
    *((part, room) for part in ("evidence",) for room in ("studies", "tables", "figures", "claims")),
    *((name,) for name in ("page", "report", "widgets", "notebooks", "release")),
    ("cli", "options"),
}


def test_the_whole_of_params_is_seen_where_runs_are_resolved_and_reported_alone():
    found = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "params" in {a.arg for a in node.args.args}:
                found.add(name_of(path))
    assert found <= SEE_PARAMS


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_has_nothing_to_say(words):
    "Lines of at most 110 characters among the rest; package, tests, notebooks, as pyproject.toml lists them."
    done = subprocess.run(["ruff", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


UNITS = sorted((ROOT / "tests/unit").rglob("*.py"))


def test_units_start_no_process_no_browser_and_do_not_sleep():
    words = r"\b(subprocess|multiprocessing|playwright|torchrun|ProcessPoolExecutor)\b|\bsleep\("
    found = {p.name: re.findall(words, p.read_text(encoding="utf-8")) for p in UNITS}
    assert {name: said for name, said in found.items() if said} == {}


def test_tests_lie_where_they_belong():
    "Units by part, and named by the module that they guard; what keeps a promise in the file of its section."
    parts = {p.name for p in (ROOT / "tests/unit").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert parts == {*MAY_IMPORT, "plain"} and not list((ROOT / "tests").glob("test_*.py"))
    known = {
        (p[0] if len(p) == 2 and p[0] not in BELOW else "plain", p[-1]) for p in map(name_of, MODULES) if p
    } | {("plain", "api")}
    known |= {(p.parent.name, p.stem[3:]) for p in ROOMS}
    for path in UNITS:
        guarded = path.stem.removeprefix("test_")
        names = [name for part, name in known if part == path.parent.name]
        assert any(guarded == name or guarded.startswith(f"{name}_") for name in names), path.name
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for section in re.findall(r'mark\.promise\(\s*"([^"]+)"', path.read_text(encoding="utf-8")):
            assert path.parent.name == "promises" and path.stem == f"test_{section.lower().replace(' ', '_')}"
    stems = [p.stem for p in (ROOT / "tests").rglob("test_*.py")]
    assert len(stems) == len(set(stems)), "pytest needs names that differ"
