"""Each benchmark, small: its numbers are there, its chart is drawn, its result can be kept; and all of them
in the record of a machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT, call

from advbn.base.machine import gpus
from advbn.bench.charts import chart
from advbn.bench.corrupt import bench_corrupt
from advbn.bench.evaluate import bench_evaluate
from advbn.bench.folders import bench_folders
from advbn.bench.record import read_record, record_of, write_record
from advbn.bench.scale import bench_scale
from advbn.bench.step import bench_step
from advbn.shifts.corruptions import CORRUPTIONS


def test_a_step_has_the_losses_of_the_reference_and_five_times_the_operations_of_a_clean_one():
    found = bench_step(batch=2, size=64, repetitions=3)
    assert found.numbers["largest difference of losses, double precision"] < 1e-6
    assert round(found.numbers["operations, relative"], 2) == 5.37
    assert list(found.sides)[:4] == ["reference", "reference, anomaly detection", "ours, contiguous", "ours"]
    assert len(chart(found).axes[0].patches) == 6


@pytest.mark.slow
def test_corruptions_are_timed_against_the_reference():
    found = bench_corrupt(batch=8, size=64, repetitions=3)
    assert list(found.sides) == [
        f"{n}, {side}" for n in (*CORRUPTIONS, "all") for side in ("ours", "reference")
    ]
    assert len(found.ratios) == 16 and len(chart(found).axes[0].patches) == 16


@pytest.mark.slow
def test_an_evaluation_is_timed_against_its_forward_passes():
    found = bench_evaluate(batch=2, size=64, repetitions=3)
    assert all(ratio.median > 0.5 for ratio in found.ratios) and len(found.ratios) == 2
    assert len(chart(found).axes[0].patches) == 4


@pytest.mark.slow
def test_growth_is_measured_and_kept(tmp_path):
    found = bench_scale(repetitions=3)
    assert len(found.ratios) == 2 + 2 + 3 + 4 + 1 and len(chart(found).axes) == 4
    assert read_record(write_record(record_of(found), tmp_path / "scale.json")) == record_of(found)


def test_folders_grow_and_are_removed(tmp_path):
    found = bench_folders(repetitions=3, quick=True)
    assert len(found.ratios) == 1 + 2 + 1 and len(chart(found).axes[0].patches) == 2 + 4
    assert all(number > 1e8 for number in found.numbers.values())
    assert not list(Path(tempfile.gettempdir()).glob("advbn-folders-*"))
    assert read_record(write_record(record_of(found), tmp_path / "folders.json")) == record_of(found)


@pytest.fixture
def bare(tmp_path):
    "What the benchmarks take of a clone."
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks")
    (tmp_path / "dvc.yaml").touch()
    return tmp_path


QUICK = ("bench", "--contribute", "--quick", "--device", "cpu")


def test_a_machines_record_is_made_and_goes_on_with_what_is_missing(bare, run, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(bare))
    status, said, told = run(*QUICK)
    (path,) = (bare / "results/bench/machines").iterdir()
    found = read_record(path)
    assert (status, said.strip()) == (0, str(path)) and "5 of 5 benchmarks, about" in told
    assert found.quick and path.name == f"{found.machine}-quick.json"
    assert [b.kind for b in found.benches] == ["step", "corrupt", "evaluate", "scale", "folders"]
    assert {b.contract for b in found.benches} == {1}

    write_record(record_of(*found.benches[1:], quick=True), path)
    assert "1 of 5 benchmarks, about" in run(*QUICK, "--estimate")[2]
    status, _, told = run(*QUICK)
    again = read_record(path)
    assert status == 0 and again.benches[:4] == found.benches[1:]  # not measured again
    assert again.benches[4].key() == found.benches[0].key() and again.benches[4] != found.benches[0]
    assert "is complete" in run(*QUICK)[2] and read_record(path) == again


@pytest.mark.slow
def test_a_machines_record_that_is_stopped_is_kept(bare):
    command = [sys.executable, "-m", "advbn", *QUICK]
    environment = {**os.environ, "ADVBN_ROOT": str(bare), "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(command, cwd=bare, env=environment, stderr=subprocess.PIPE, text=True)
    folder, deadline = bare / "results/bench/machines", time.time() + 300
    while not list(folder.glob("*.json")) and time.time() < deadline:
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    said = started.communicate(timeout=300)[1]
    assert started.returncode == 75 and "the same command measures those that are missing" in said
    (path,) = folder.iterdir()
    before = json.loads(path.read_text())["benches"]
    assert 1 <= len(before) < 4 and len(read_record(path).benches) == len(before)
    done = call(*command, "--estimate", cwd=bare, **environment)
    assert f"{5 - len(before)} of 5 benchmarks" in done.stderr


def test_without_a_cuda_device_make_says_so_before_anything_else():
    if gpus():
        pytest.skip("there is a GPU")
    done = call("make", "cuda", cwd=ROOT, check=False)
    assert done.returncode == 2 and "there is no CUDA device" in done.stderr and done.stdout == ""


@pytest.mark.cuda
def test_a_gpu_has_its_benchmarks_in_the_record(cuda, bare, run, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(bare))
    assert run("bench", "--contribute", "--quick", "--device", "cuda")[0] == 0
    (path,) = (bare / "results/bench/machines").iterdir()
    found = read_record(path).benches
    assert [b.kind for b in found] == ["step", "corrupt", "evaluate"]
    assert "none" not in (found[0].measured_on.driver, found[0].measured_on.cuda)
