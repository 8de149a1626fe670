"""What is there, and what a lack costs."""

import json
import sys

import pytest

from advbn.base.extras import EXTRAS
from advbn.doctor import Finding, _bf16, as_text, findings


def test_each_thing_is_found_or_its_cost_is_said(root, monkeypatch):
    monkeypatch.chdir(root)
    found = {finding.what: finding for finding in findings()}
    assert {"torch", "CUDA", "bf16", "disk", "memory", "project", "Chromium", "data openmoji"} <= {*found}
    assert {f"extra {name}" for name in EXTRAS} <= {*found}
    assert found["torch"].fine and found["project"].found == str(root) and found["data openmoji"].fine
    assert all(finding.fine or finding.cost for finding in found.values())


@pytest.mark.parametrize("flags", [{"avx512_bf16", "amx_bf16"}, {"avx512_bf16"}, {"bf16"}, {"avx2"}, set()])
def test_bf16_is_told_as_training_takes_it(flags):
    "The doctor does not load torch, and says what `precision_for` does."
    from advbn.training.choices import precision_for

    said, flags = _bf16(frozenset(flags)).found, frozenset(flags)
    assert ("auto takes it" in said) is (precision_for("cpu", "auto", flags)[0] == "bf16")
    assert ("has it" in said or "in tiles" in said) is (precision_for("cpu", "bf16", flags)[0] == "bf16")


def test_outside_of_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVBN_ROOT", raising=False)
    found = {finding.what: finding for finding in findings()}
    assert not found["project"].fine and "In a clone" in found["project"].cost
    assert not any(what.startswith("data ") for what in found)


def test_a_missing_package_is_told_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("advbn.base.extras.find_spec", lambda name: None if name == "timm" else object())
    found = {finding.what: finding for finding in findings()}
    assert found["extra timm"].found == "without timm"
    assert "no networks of timm's" in found["extra timm"].cost and "advbn[timm]" in found["extra timm"].cost
    assert found["extra figures"].fine


def test_params_that_cannot_be_read_are_told(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    (tmp_path / "params.yaml").write_text("seeds: [0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADVBN_ROOT", raising=False)
    (finding,) = (f for f in findings() if f.what == "params.yaml")
    assert "not YAML" in finding.found and not finding.fine


def test_the_text_counts_the_lacks():
    text = as_text([Finding("a", "there"), Finding("bb", "none", False, "slow")])
    assert text.splitlines() == [
        "ok  a   there",
        "--  bb  none",
        "        slow",
        "1 lacks; nothing in the way of the rest",
    ]


def test_the_command_prints_text_and_json(run, root, monkeypatch):
    monkeypatch.chdir(root)
    status, said, _ = run("doctor")
    assert status == 0 and "ok  torch" in said
    status, said, _ = run("doctor", "--json")
    assert status == 0 and {"what", "found", "fine", "cost"} == {*json.loads(said)[0]}
    assert (
        "torch" in sys.modules
    )  # of this test; that the command itself loads none is seen in test_command_line
