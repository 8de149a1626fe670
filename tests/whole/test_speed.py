"""Each benchmark, small: its numbers are there, its chart is drawn, its result can be kept."""

import pytest

from advbn.bench import (
    bench_corrupt,
    bench_evaluate,
    bench_scale,
    bench_step,
    corrupt_chart,
    evaluate_chart,
    scale_chart,
    step_chart,
    write_bench,
)
from advbn.shifts.corruptions import CORRUPTIONS


def test_a_step_has_the_losses_of_the_reference_and_five_times_the_operations_of_a_clean_one():
    found = bench_step(batch=2, size=64, repetitions=3)
    assert found["largest difference of losses, double precision"] < 1e-6
    assert round(found["operations, relative"], 2) == 5.37
    assert list(found["ratios"])[:4] == [
        "reference",
        "reference, anomaly detection",
        "ours, contiguous",
        "ours",
    ]
    assert len(step_chart(found).axes[0].patches) == 6


@pytest.mark.slow
def test_corruptions_are_timed_against_the_reference():
    found = bench_corrupt(batch=8, size=64, repetitions=3)
    assert list(found["corruptions"]) == [*CORRUPTIONS, "all"]
    assert set(found["corruptions"]["fog"]) == {"ours, ms", "reference, ms", "median", "low", "high"}
    assert len(corrupt_chart(found).axes[0].patches) == 16


@pytest.mark.slow
def test_an_evaluation_is_timed_against_its_forward_passes():
    found = bench_evaluate(batch=2, size=64, repetitions=3)
    assert found["all cells, relative"] > 0.5 and found["two branches, relative"] > 0.5
    assert len(evaluate_chart(found).axes[0].patches) == 4


@pytest.mark.slow
def test_growth_is_measured_and_kept(tmp_path, monkeypatch):
    found = bench_scale(repetitions=3)
    assert (
        set(found["growth"]) == {"images", "classes", "batch", "steps"} and found["efficiency"]["median"] > 0
    )
    assert len(scale_chart(found).axes) == 4
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    kept = write_bench(found, "scale-cpu")
    assert kept == tmp_path / "results/bench/scale-cpu.json" and kept.stat().st_size > 1000
