"""The repository is what it says: package and notebooks agree, notebooks are clean, the README is the index
notebook and works."""

import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import RECORDED, ROOT, fault

from advbn.base.config import load_params
from advbn.evidence.claims import claims_table, claims_text, recorded
from advbn.evidence.tables import finding, overview_text, paper_text, protocol_line
from advbn.images.openmoji import fingerprint

NUMBERED = sorted((ROOT / "nbs").glob("*/[0-9]*.ipynb"))


STAGES = sorted((ROOT / "nbs/stages").glob("*.ipynb"))


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_exporting_leaves_no_difference(released):
    ours, exported = (
        {p.relative_to(root): p.read_text() for p in (root / "advbn").rglob("*.py")}
        for root in (ROOT, released)
    )
    assert ours.keys() == exported.keys()
    assert [name for name in ours if ours[name] != exported[name]] == []


def test_notebooks_are_clean(released):
    dirty = [
        p.name
        for p in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
        and p.read_text() != (released / p.relative_to(ROOT)).read_text()
    ]
    assert dirty == []


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_a_stage_has_one_parameters_cell_and_no_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert sum("parameters" in c.metadata.get("tags", []) for c in cells) == 1
    assert not any(c.get("outputs") for c in cells)


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_notebook_opens_with_title_and_subtitle_and_was_run(path):
    cells = nbformat.read(path, as_version=4).cells
    assert re.match(r"# \S.*\n\n> \S", cells[0].source)
    assert any(c.get("outputs") for c in cells if c.cell_type == "code")


def test_every_stage_of_the_pipeline_names_its_notebook():
    pipeline = (ROOT / "dvc.yaml").read_text()
    assert {p.name for p in STAGES} == set(re.findall(r"advbn run nbs/stages/(\S+\.ipynb)", pipeline))


def test_readme_is_the_index_notebook():
    assert run("sh", "nbs/render.sh", cwd=ROOT) == (ROOT / "README.md").read_text()


def main_table(profile):
    "The robustness table of a profile, and the parameters that name it."
    table = pd.read_csv(ROOT / "results" / profile / "tables/robustness.csv")
    return table, load_params(profile)


def claims_in_short():
    "The verdicts on the paper's claims at every scale, without numbers."
    return claims_text(claims_table(load_params("openmoji"), ROOT / "results"), numbers=False).markdown()


def scales():
    "The parameters of every scale with results, that of the largest images first."
    return {profile: load_params(profile) for profile in recorded(load_params(), ROOT / "results")}


def overview():
    "What was found at every scale."
    return overview_text(ROOT / "results", scales()).markdown()


def test_readme_is_one_screen_after_the_other():
    "At most a hundred lines, and tables of at most six rows: the claims, before all else, and the results."
    readme = (ROOT / "README.md").read_text()
    first, params = next(iter(scales().items()))
    short = paper_text(*main_table(first)).markdown()
    assert f"{short}\n\n{protocol_line(params)}" in readme
    assert len(readme.splitlines()) <= 100 and short in readme and len(short.splitlines()) <= 2 + 6
    assert claims_in_short() in readme.partition("\n## ")[0] and len(claims_in_short().splitlines()) == 2 + 6
    for profile in RECORDED:
        assert f"(results/{profile}/report.html)" in readme
    above = readme.partition("\n## ")[0]
    assert overview() in above and finding(*main_table("openmoji"))[:-1] in above
    for picture in re.findall(r'!\[.*?\]\((\S+?)\)|<img src="(\S+?)"', readme):
        assert (ROOT / "".join(picture)).exists()


def test_the_report_has_every_table_of_results():
    for profile in RECORDED:
        page = (ROOT / "results" / profile / "report.html").read_text(encoding="utf-8")
        for table in sorted((ROOT / "results" / profile / "tables").glob("*.md")):
            ours = table.read_text().partition("\nPublished")[0]
            rows = "".join(line for line in ours.splitlines() if line.startswith("| "))
            cells = re.findall(r"\d+\.\d ± \d+\.\d", rows)
            assert cells or "decodes no images" in ours, table
            assert [c for c in cells if c not in page] == [], table


def test_every_measured_number_of_the_readme_comes_from_results():
    """What is left without the table, the computed sentences and code has no number with a decimal but
    versions, licences and a library's."""
    text = re.sub(r"```.*?```|`[^`]*`", "", (ROOT / "README.md").read_text(), flags=re.S)
    for table in (overview(), *(paper_text(*main_table(profile)).markdown() for profile in RECORDED)):
        text = text.replace(table, "")
    for profile, params in scales().items():
        text = text.replace(finding(*main_table(profile))[:-1], "").replace(protocol_line(params), "")
    assert set(re.findall(r"\d+\.\d+|±|(?<!\w)[+-]\d+ |\d+ ?%", text)) <= {
        "3.11",
        "4.0",
        "2.0",
        "0.05",
        "±",
        "95 %",
    }


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_readme_python_runs():
    assert blocks("python")
    for code in blocks("python"):
        run(sys.executable, "-c", code, cwd=ROOT)


def test_readme_commands_exist():
    commands = [
        line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.strip()
    ]
    assert len(commands) >= 3
    for command in commands:
        if command.startswith("make "):
            run("make", "-n", *command.split()[1:], cwd=ROOT)
        elif command.startswith("advbn "):
            _, name, *options = command.split()
            known = run(sys.executable, "-m", "advbn", name, "--help", cwd=ROOT)
            assert [option for option in options[::2] if option not in known] == []
        else:
            assert command in ("pip install .", "pip install '.[finetune]'")
            run(
                sys.executable,
                "-m",
                "pip",
                "install",
                "--dry-run",
                "--no-deps",
                "--no-build-isolation",
                "-q",
                ".",
                cwd=ROOT,
            )


def test_links_of_readme_lead_somewhere():
    for target in re.findall(r"\]\((?!http)(\S+?)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_the_package_needs_nothing_of_the_workshop():
    code = (
        "import sys, pkgutil, importlib, advbn\n"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(advbn.__path__, 'advbn.') "
        "if m.name != 'advbn._modidx' and not m.name.startswith('advbn.adapters')]\n"
        "print([m for m in ('fastcore', 'nbdev', 'execnb', 'papermill', 'dvc', 'jupyterlab', 'IPython', "
        "'matplotlib', 'timm') if m in sys.modules])"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "[]"


def test_help_does_not_load_torch():
    code = "import sys\nfrom advbn.cli import app\nprint('torch' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=ROOT).strip() == "False"


def test_the_table_of_promises_is_that_of_the_tests():
    "`make promises` writes it; a test that is new, renamed or gone is noticed here."
    listed = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-o",
            "addopts=",
            "-m",
            "promise",
            "-p",
            "no:cacheprovider",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    names = [line.partition("::")[2] for line in listed.splitlines() if "::" in line]
    table = pd.read_csv(ROOT / "results/promises.csv")
    assert sorted(table.fault) == sorted(fault(name) for name in names) and len(table) > 100
    assert set(table.outcome) <= {"kept", "not tried here"} and set(table.section) == {
        "Interrupted work",
        "Several processes",
        "Bad input",
        "Determinism and state",
        "Long runs",
    }


def test_the_map_names_every_part_and_room():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [
        p for p in NUMBERED if f"`{p.parent.name}/`" not in text or not re.search(rf"\b{p.stem[3:]}\b", text)
    ]
    assert [f"{p.parent.name}/{p.stem}" for p in rooms] == []


def test_the_notebooks_checks_find_every_numbered_notebook():
    "`make check` says nothing when it finds none."
    from nbdev.doclinks import nbglob

    checks = re.search(r"nbdev_test --path (\S+) --file_glob '(\S+)'", (ROOT / "Makefile").read_text())
    found = nbglob(ROOT / checks[1], file_glob=checks[2])
    assert sorted(found) == sorted(map(str, NUMBERED)) and len(found) > 30


def test_every_shown_cell_ends_in_something_to_see():
    """But for those that are exported or hidden, and the stages, which are run by the pipeline; widgets are
    drawn by a browser."""
    bare = []
    for path in [
        *NUMBERED,
        *sorted((ROOT / "nbs").glob("explore/*.ipynb")),
        *sorted((ROOT / "nbs").glob("choices/*.ipynb")),
        *sorted((ROOT / "nbs").glob("recipes/*.ipynb")),
    ]:
        for i, cell in enumerate(nbformat.read(path, as_version=4).cells):
            if (
                cell.cell_type == "code"
                and not cell.source.startswith(("#| export", "#| hide", "#| default_exp", "#| cuda"))
                and not cell.outputs
            ):
                if not re.search(r"widget\(\)$|widgets\.VBox\(.*\)$", cell.source.strip()):
                    bare.append(f"{path.parent.name}/{path.name}, cell {i}")
    assert bare == []


def test_every_command_has_an_example_and_shells_can_complete():
    import os

    from advbn.cli import app

    names = [c.name or c.callback.__name__ for c in app.registered_commands]
    assert {
        "data",
        "train",
        "evaluate",
        "corrupt",
        "make-set",
        "export",
        "plan",
        "bench",
        "import-official",
        "status",
        "verify",
        "report",
        "run",
        "clean",
        "check",
    } <= set(names)
    for command in app.registered_commands:
        assert (
            f"Example: advbn {command.name or command.callback.__name__}"
            in command.callback.__doc__.replace("accelerate launch -m advbn", "advbn")
        ), command.callback
    done = subprocess.run(
        [sys.executable, "-m", "advbn"],
        capture_output=True,
        text=True,
        env={**os.environ, "_ADVBN_COMPLETE": "complete_bash", "COMP_WORDS": "advbn eva", "COMP_CWORD": "1"},
    )
    assert done.stdout.strip() == "evaluate"


def test_nothing_is_loaded_that_was_not_asked_for():
    code = (
        "import sys, advbn, advbn.training.loop, advbn.training.train, advbn.cli\n"
        "print([m for m in ('lightning', 'transformers', 'timm', 'ipywidgets') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        == "[]"
    )


def test_the_fingerprint_is_dvcs(root):
    pin = yaml.safe_load((root / "data.dvc").read_text())["outs"][0]
    assert fingerprint(root / "data") == {k: pin[k] for k in ("md5", "size", "nfiles")}
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "data.dvc"], cwd=root, capture_output=True, text=True
    )
    assert "up to date" in status.stdout


@pytest.mark.parametrize("profile", ["openmoji", "cifar10", "imagenet"])
def test_every_parameter_that_a_stage_watches_is_there(profile):
    "DVC stops at one that is not; so a word in params.yaml changes the scale."
    stages, content = (
        yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"],
        yaml.safe_load((ROOT / "params.yaml").read_text()),
    )
    for stage in stages.values():
        assert stage["matrix"].pop("profile") == ["${profile}"]
        ((key, names),) = (stage["matrix"] or {"": "${}"}).items()
        for item in content[names[2:-1]] if key else [""]:
            for name in stage["params"]:
                place = content
                named = name.replace("${item.profile}", profile).replace(f"${{item.{key}}}", item)
                for part in named.split("."):
                    assert part in place, f"{name} with profile {profile}"
                    place = place[part]


def test_links_between_notebooks_lead_somewhere():
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        links = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text)
        assert [link for link in links if not (path.parent / link).exists()] == [], path
