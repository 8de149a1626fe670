"""What `make release` writes: each file is there, is what its digest says, and works."""

import hashlib
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import ROOT, call, copied_project

from advbn import AdvBNNet, __version__
from advbn.base.errors import DataError
from advbn.release import NOTES, SUMS, built, notes, photograph_profiles, weights


def sums(folder):
    "`{file: SHA-256}` as the release lists it."
    lines = (folder / SUMS).read_text().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


@pytest.fixture(scope="module")
def made(reproduced, released):
    "The clone that has run the pipeline, with wheel, source archive and site, after the release's command."
    for name in ("dist", "_docs"):
        shutil.copytree(released / name, reproduced / name)
    done = call(sys.executable, "-m", "advbn.release", "openmoji", "pacs", cwd=reproduced)
    return reproduced, done


def test_everything_is_listed_and_is_what_its_digest_says(made):
    clone, done = made
    listed, dist = sums(clone / "dist"), clone / "dist"
    start = f"advbn-{__version__}"
    assert {
        f"{start}-py3-none-any.whl",
        f"{start}.tar.gz",
        f"{start}-site.zip",
        f"{start}-results.zip",
        f"{start}-openmoji-advbn-seed0.zip",
        f"{start}-openmoji-finetune-seed0.zip",
        NOTES,
    } <= {*listed}
    assert {p.name for p in dist.iterdir()} == {*listed, SUMS}
    for name, digest in listed.items():
        assert hashlib.sha256((dist / name).read_bytes()).hexdigest() == digest
        assert name in done.stdout
    assert "not in it: weights of pacs: no checkpoints/pacs/finetune/seed0-clean.pt; dvc" in done.stderr


def test_weights_of_a_release_are_the_networks_of_the_pipeline(made):
    clone, _ = made
    name = f"advbn-{__version__}-openmoji-advbn-seed0.zip"
    net = AdvBNNet.from_pretrained(clone / "dist" / name)
    for branch in ("clean", "adversarial"):
        kept = torch.load(clone / f"checkpoints/openmoji/advbn/seed0-{branch}.pt", weights_only=True)
        assert all(torch.equal(v, kept[k]) for k, v in net.export(branch).items())
    assert len(net.about.classes) == 9 and net.made.name == "small_resnet"
    card = zipfile.ZipFile(clone / "dist" / name).read(f"{name[:-4]}/README.md").decode()
    for words in ("license: apache-2.0", "OpenMoji, CC BY-SA 4.0", "| AdvBN |", "profile openmoji, seed 0"):
        assert words in card


def test_site_and_results_are_whole(made):
    clone, _ = made
    start = clone / f"dist/advbn-{__version__}"
    site, results = (zipfile.ZipFile(f"{start}-{word}.zip") for word in ("site", "results"))
    assert site.testzip() is results.testzip() is None and "_docs/index.html" in site.namelist()
    report = results.read("results/openmoji/report.html")
    assert report == (clone / "results/openmoji/report.html").read_bytes()


def test_notes_are_what_the_changelog_says_of_this_version(made):
    clone, _ = made
    said = (clone / "dist" / NOTES).read_text()
    assert said.startswith(f"## {__version__}") and "The layer: `AdvBN`" in said
    assert f"{sums(clone / 'dist')[f'advbn-{__version__}.tar.gz']}  advbn-{__version__}.tar.gz" in said


@pytest.mark.slow
def test_a_second_time_gives_the_same_files(made):
    clone, _ = made
    before = sums(clone / "dist")
    call(sys.executable, "-m", "advbn.release", "openmoji", cwd=clone)
    assert sums(clone / "dist") == before


def test_a_trained_method_as_a_folder(made, tmp_path):
    clone, _ = made
    out = tmp_path / "robust"
    done = call(sys.executable, "-m", "advbn", "export", "advbn", out, "--pretrained", cwd=clone)
    assert "small_resnet with clean and adversarial" in done.stdout
    net = AdvBNNet.from_pretrained(out)
    kept = torch.load(clone / "checkpoints/openmoji/advbn/seed0-adversarial.pt", weights_only=True)
    assert all(torch.equal(v, kept[k]) for k, v in net.export("adversarial").items())
    assert "| AdvBN |" in net.about.table and len(net.about.classes) == 9


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    with pytest.raises(DataError, match="no .*whl; make dist builds it"):
        built(tmp_path / "dist")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "results/openmoji").mkdir(parents=True)
    (tmp_path / "results/openmoji/metrics.json").touch()
    archives, missing = weights("openmoji", tmp_path / "dist")
    assert archives == [] and "no checkpoints/openmoji/advbn/seed0-clean.pt; dvc repro" in " ".join(missing)
    assert weights("pacs", tmp_path / "dist") == ([], ["pacs: nothing is recorded under results/pacs"])
    assert {"imagenet200", "pacs"} <= {*photograph_profiles()} and "openmoji" not in photograph_profiles()
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changes\n\n## 9.9.9, 2030-01-01\n\n* New.\n\n## 9.9.8\n\n* Old.\n"
    )
    assert notes("9.9.9") == "## 9.9.9, 2030-01-01\n\n* New.\n"
    with pytest.raises(DataError, match="no heading '## 9.9'"):
        notes("9.9")


@pytest.mark.slow
def test_the_target_of_make(make, tmp_path):
    "From a fresh clone: it builds what the release needs first."
    clone = copied_project(tmp_path / "advbn")
    done = make(clone, "release", PIP_NO_INDEX="1")
    assert "not in it: weights of" in done.stderr
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=clone / "dist", check=True)
    assert f"advbn-{__version__}-site.zip" in sums(clone / "dist")
