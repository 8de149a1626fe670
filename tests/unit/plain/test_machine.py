"""The machine in words."""

import pytest
import torch

from advbn.base.machine import (
    cuda_of_torch,
    duration,
    gpu_driver,
    gpus,
    lack_of_cuda,
    memory,
    processor,
    processor_flags,
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
