"""The machine in words."""

import pytest
import torch

from advbn.base import machine
from advbn.base.machine import (
    cuda_of_torch,
    duration,
    gpu_driver,
    gpus,
    lack_of_cuda,
    memory,
    processor,
    processor_flags,
    seconds_of,
)


@pytest.mark.parametrize(
    "seconds, words",
    [
        (5, "5 seconds"),
        (150, "2 minutes"),
        (7100, "118 minutes"),
        (3 * 3600, "3.0 hours"),
        (157466.1 * 3600, "18.0 years"),
        (30 * 3600, "30.0 hours"),
        (9 * 86400, "9.0 days"),
        (400 * 86400, "400 days"),
    ],
)
def test_how_long_it_takes_is_said_in_the_unit_that_one_would_say(seconds, words):
    assert duration(seconds) == words


def test_the_build_of_torch_is_read_in_its_files():
    assert cuda_of_torch() == (torch.version.cuda or "")


def test_what_is_there():
    assert "cores" in processor() and memory() > 1e8


def test_flags_and_name_of_the_processor_go_together():
    assert len(processor_flags()) != 1 and ("AVX" in processor()) == ("avx2" in processor_flags())


def test_a_lack_of_cuda_is_told_as_torch_finds_it():
    assert bool(gpu_driver()) == bool(gpus())
    if lack := lack_of_cuda():
        assert not torch.cuda.is_available() and lack.startswith("there is no CUDA device")


def ticking(monkeypatch, *moments):
    "A clock that shows these moments, one after the other."
    times = iter(moments)
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(times))


def test_a_first_turn_that_is_slow_is_not_repeated(monkeypatch):
    calls = []
    ticking(monkeypatch, 0, 5)
    assert seconds_of(lambda: calls.append(1), most=2.0) == 5 and len(calls) == 1


def test_the_median_of_the_turns_after_the_first_is_taken(monkeypatch):
    calls = []
    ticking(monkeypatch, 0, 9, 10, 11, 12, 15, 16, 18)
    assert seconds_of(lambda: calls.append(1)) == 2 and len(calls) == 4  # of 9, 1, 3 and 2
    ticking(monkeypatch, 0, 1, 10, 11.5)
    assert seconds_of(lambda: calls.append(1), most=2.0) == 1.5 and len(calls) == 6  # 1 and 1.5 are more
    ticking(monkeypatch, 0, 4)
    assert seconds_of(lambda: calls.append(1), repeats=0) == 4 and len(calls) == 7


@pytest.mark.cuda
def test_work_on_a_gpu_is_timed_to_its_end(cuda):
    square = torch.randn(8192, 8192, device=cuda)
    asked = seconds_of(lambda: square @ square)
    assert seconds_of(lambda: square @ square, device=cuda) > 2 * asked
