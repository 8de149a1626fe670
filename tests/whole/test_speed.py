"""Each benchmark, small: its numbers are there, its chart is drawn, its result can be kept; and all of them
in the record of a machine."""

import contextlib
import copy
import io
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
import torch
from conftest import ROOT, call

from advbn import cli
from advbn.base.errors import Interrupted
from advbn.base.machine import gpus
from advbn.bench.charts import chart
from advbn.bench.contribute import Contribution, Piece
from advbn.bench.record import read_record, record_of, write_record
from advbn.bench.scale import bench_scale
from advbn.bench.step import GRAPHS, graphed
from advbn.bench.work import stepper
from advbn.method.network import prepare
from advbn.networks.models import build_model
from advbn.shifts.corruptions import CORRUPTIONS


@pytest.fixture
def bare(tmp_path):
    "What the benchmarks take of a clone."
    return bare_clone(tmp_path)


def bare_clone(folder):
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks")
    (folder / "dvc.yaml").touch()
    return folder


QUICK = ("bench", "--contribute", "--quick", "--device", "cpu")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    "A clone with the small record of this machine: `(folder, path of the record, what was said)`."
    folder = bare_clone(tmp_path_factory.mktemp("recorded"))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as told:
        patch.setenv("ADVBN_ROOT", str(folder))
        patch.setattr(sys, "argv", ["advbn", *QUICK])
        with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code == 0
    (path,) = (folder / "results/bench/machines").iterdir()
    assert said.getvalue().strip() == str(path)
    return folder, path, told.getvalue()


@pytest.fixture
def measured(recorded):
    "The benchmarks of that record by their kind."
    return {bench.kind: bench for bench in read_record(recorded[1]).benches}


def test_a_step_has_the_losses_of_the_reference_and_five_times_the_operations_of_a_clean_one(measured):
    found = measured["step"]
    assert found.numbers["largest difference of losses, double precision"] < 1e-6
    assert round(found.numbers["operations, relative"], 2) == 5.37
    assert list(found.sides)[:4] == ["reference", "reference, anomaly detection", "ours, contiguous", "ours"]
    assert len(chart(found).axes[0].patches) == 6


@pytest.mark.slow
def test_a_step_by_graphs_has_the_same_losses_and_a_lack_of_them_is_told(capsys, monkeypatch):
    model = build_model("small_resnet", 9)
    images, targets = torch.randn(4, 3, 40, 40), torch.arange(4)
    found = graphed(copy.deepcopy(model), images, targets)  # which on a CPU is the compiled step alone
    plain = stepper(prepare(model), images, targets)
    plain()
    assert found[GRAPHS]() == pytest.approx(plain(), rel=1e-3)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    torch._dynamo.reset()
    assert graphed(model, images[:1], targets[:1]) == {}
    assert f"no {GRAPHS}: " in capsys.readouterr().err


def test_corruptions_are_timed_against_the_reference(measured):
    found = measured["corrupt"]
    also = {"defocus_blur": ["kornia"], "motion_blur": ["kornia"]}
    assert list(found.sides) == [
        f"{n}, {side}" for n in (*CORRUPTIONS, "all") for side in ("ours", "reference", *also.get(n, []))
    ]
    assert [ratio.to for ratio in found.ratios[16:]] == ["defocus_blur, kornia", "motion_blur, kornia"]
    assert len(found.ratios) == 18 and len(chart(found).axes[0].patches) == 16


def test_an_evaluation_is_timed_against_its_forward_passes(measured):
    found = measured["evaluate"]
    assert all(ratio.median > 0.5 for ratio in found.ratios) and len(found.ratios) == 2
    assert len(chart(found).axes[0].patches) == 4


def test_folders_grow_and_are_removed(measured, tmp_path):
    found = measured["folders"]
    assert len(found.ratios) == 1 + 2 + 1 and len(chart(found).axes[0].patches) == 2 + 4
    assert all(number > 1e8 for number in found.numbers.values())
    assert not list(Path(tempfile.gettempdir()).glob("advbn-folders-*"))
    assert read_record(write_record(record_of(found), tmp_path / "folders.json")) == record_of(found)


@pytest.mark.slow
def test_growth_is_measured_and_kept(tmp_path):
    found = bench_scale(repetitions=2)
    assert len(found.ratios) == 2 + 2 + 3 + 4 + 1 and len(chart(found).axes) == 4
    assert read_record(write_record(record_of(found), tmp_path / "scale.json")) == record_of(found)


def test_a_machines_record_is_made_and_goes_on_with_what_is_missing(recorded, run, monkeypatch):
    folder, path, told = recorded
    monkeypatch.setenv("ADVBN_ROOT", str(folder))
    found = read_record(path)
    assert "5 of 5 benchmarks, about" in told
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


def test_a_request_to_stop_that_a_library_catches_counts_when_a_benchmark_ends(bare, measured, monkeypatch):
    def measure(piece):
        with contextlib.suppress(KeyboardInterrupt):  # as an import does whose errors are caught
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        return measured[piece.kind]

    monkeypatch.setenv("ADVBN_ROOT", str(bare))
    monkeypatch.setattr(Piece, "measure", measure)
    record = Contribution(["cpu"], quick=True)
    with pytest.raises(Interrupted, match="has 1 benchmarks"):
        record.measure()
    assert len(record.missing()) == 4


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
