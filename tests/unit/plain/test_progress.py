"""Progress on disk: the file before the last where the last is cut short, one run at a time."""

import os
import signal

import pytest
import torch
from torch import nn

from advbn.base.errors import Busy, Interrupted
from advbn.base.progress import SILENT, Countdown, Progress, fingerprint, read_checked, write_checked


def test_a_file_that_is_cut_short_is_passed_over_with_its_name(tmp_path):
    for step in (100, 200):
        write_checked({"step": step}, tmp_path / "run.pt")
    whole = (tmp_path / "run.pt").read_bytes()
    (tmp_path / "run.pt").write_bytes(whole[:-20])
    with pytest.warns(UserWarning) as said:
        assert read_checked(tmp_path / "run.pt") == {"step": 100}
    assert [str(w.message).rpartition("/")[2] for w in said] == [
        "run.pt is truncated or altered and is passed over"
    ]


def test_a_second_run_is_told_who_trains(tmp_path):
    with Progress(tmp_path / "advbn-seed0.pt", every=100):
        with pytest.raises(Busy) as caught, Progress(tmp_path / "advbn-seed0.pt", every=100):
            pass
    said = str(caught.value).rpartition("/")[2]
    assert said.startswith(f"advbn-seed0 is being trained by process {os.getpid()} on ")
    assert said.endswith("; wait for it or stop it")


def test_a_run_is_kept_every_so_many_steps_and_after_the_last(tmp_path):
    progress = Progress(tmp_path / "run.pt", every=10)
    assert [step for step in range(1, 26) if progress.due(step, 25)] == [10, 20, 25]


def test_a_run_that_is_asked_to_stop_keeps_its_parts_and_says_after_which_step(tmp_path):
    net, before = nn.Linear(2, 2), signal.getsignal(signal.SIGTERM)
    with Progress(tmp_path / "run.pt", every=10) as progress:
        assert progress.resume({"seed": 0}, {"net": net}) is None and progress.last_good() == ""
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM: stopped after step 3; the same command goes on"):
            progress.keep(3, stop=progress.asked is not None)
    assert signal.getsignal(signal.SIGTERM) is before
    again = nn.Linear(2, 2)
    with Progress(tmp_path / "run.pt", every=10) as progress:
        assert progress.resume({"seed": 0}, {"net": again})["step"] == 3
        assert progress.last_good() == f"; the last good progress is {tmp_path / 'run.pt'}"
    assert torch.equal(again.weight, net.weight)


def test_a_fingerprint_knows_names_types_and_values():
    state = {"a": torch.arange(3.0)}
    others = [
        {"b": torch.arange(3.0)},
        {"a": torch.arange(3)},
        {"a": torch.zeros(3)},
        {"a": torch.arange(3.0)[None]},
    ]
    assert fingerprint(state) == fingerprint({"a": torch.arange(3.0)})
    assert len({fingerprint(s) for s in [state, *others]}) == 5


def test_what_is_left_is_told_at_each_stage_by_the_pace_so_far():
    clock, told, ended = iter([0.0, 30.0, 70.0]), [], []
    expected = {"control": 10, "AdvBN": 40, "evaluation": 50}
    countdown = Countdown(expected, told.append, keep=ended.append, now=lambda: next(clock))
    for stage in expected:
        countdown.starts(stage)
    assert told == [
        "control (1 of 3), about 100 seconds left of all",
        "AdvBN (2 of 3), about 4 minutes left of all",
        "evaluation (3 of 3), about 70 seconds left of all",
    ]
    assert ended == [[], ["control"], ["control", "AdvBN"]]


def test_stages_that_an_earlier_call_has_ended_are_passed_over():
    clock, told = iter([0.0, 1.0, 2.0]), []
    expected = {"control": 10, "AdvBN": 40, "evaluation": 50}
    countdown = Countdown(expected, told.append, ["control"], now=lambda: next(clock))
    for stage in expected:
        countdown.starts(stage)
    assert told == [
        "AdvBN (2 of 3), about 90 seconds left of all",
        "evaluation (3 of 3), about 25 seconds left of all",  # much of AdvBN was kept
    ]
    SILENT.starts("anything")
