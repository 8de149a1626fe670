"""What is built and given away: a wheel and a source archive that install, import and do what README says."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def built(released):
    "Wheel and source archive."
    return sorted((released / "dist").iterdir())


def test_the_archives_are_in_order(built):
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout
    wheel = zipfile.ZipFile(next(p for p in built if p.suffix == ".whl"))
    names, metadata = (
        wheel.namelist(),
        next(wheel.read(n).decode() for n in wheel.namelist() if n.endswith("METADATA")),
    )
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / "advbn").rglob("*.py")} | {
        "advbn/page.html",
        "advbn/finetune.html",
        "advbn/py.typed",
        "advbn/images/imagenet_classes.txt",
    }
    assert {n for n in names if n.startswith("advbn/")} == ours and any(
        n.endswith("licenses/LICENSE") for n in names
    )
    assert "License-Expression: Apache-2.0" in metadata and re.search(r"^Version: \d+\.\d+", metadata, re.M)
    assert "## Use it on your network" in metadata and "](results/" in (ROOT / "README.md").read_text()
    assert not re.findall(r"\]\((?!https?:)|<img ", metadata), (
        "an index cannot follow links into the repository"
    )
    with tarfile.open(next(p for p in built if p.name.endswith(".tar.gz"))) as archive:
        assert any(n.endswith("/LICENSE") for n in archive.getnames())


def test_the_version_is_in_one_place():
    found = subprocess.run(
        ["git", "grep", "-lE", r"(version|VERSION)\s*=\s*\"?[0-9]+\.[0-9]+\.[0-9]+"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert {name for name in found if not name.startswith(("results/", "executed/"))} <= {
        "advbn/__init__.py",
        "settings.ini",
        "CITATION.cff",
    }
    from advbn import __version__

    assert (
        f"version = {__version__}" in (ROOT / "settings.ini").read_text()
        and f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
    )


def test_the_wheel_does_what_the_readme_says(built, tmp_path):
    "In a folder of its own, far from the sources; also on a network of timm's."
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--target",
            str(tmp_path / "site"),
            str(next(p for p in built if p.suffix == ".whl")),
        ],
        check=True,
    )
    code = max(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S), key=len)
    assert "resnet18" in code
    for own in (
        code,
        code.replace(
            "from torchvision.models import resnet18",
            "import timm\nresnet18 = lambda num_classes: timm.create_model('resnet18', "
            "num_classes=num_classes)",
        ),
    ):
        program = (
            f"{own}\nimport advbn\nassert advbn.__file__.startswith({str(tmp_path / 'site')!r}), "
            f"advbn.__file__\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        )
        assert done.returncode == 0, done.stderr[-2000:]


TYPED = """
from torchvision.models import resnet18
from advbn import AdvBN, corrupt, prepare, renormalize

reveal_type(prepare(resnet18(), "layer1"))
reveal_type(AdvBN(eps=0.5).attack)
reveal_type(corrupt)
reveal_type(renormalize)
AdvBN(epz=1)
"""


def test_a_type_checker_knows_the_public_names(tmp_path):
    (tmp_path / "user.py").write_text(TYPED)
    options = ["--follow-imports=silent", "--ignore-missing-imports", f"--cache-dir={tmp_path / 'cache'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(tmp_path / "user.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert 'Revealed type is "advbn.method.network.AdvBNNet"' in done.stdout
    assert done.stdout.count("torch._tensor.Tensor") >= 4
    assert done.stdout.count("error:") == 1 and 'Unexpected keyword argument "epz" for "AdvBN"' in done.stdout
