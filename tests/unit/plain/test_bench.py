"""Benchmarks: sides in turns, ratios within a turn, what is kept."""

import json

import pandas as pd
import pytest

from advbn import bench


@pytest.fixture
def clock(monkeypatch):
    "A clock that only work moves on: `clock(2)` takes two seconds."
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def work(seconds):
        now[0] += seconds

    return work


def test_sides_take_turns_and_ratios_are_those_within_a_turn(clock):
    order = []
    sides = {
        "once": lambda: order.append("once") or clock(2),
        "twice": lambda: order.append("twice") or clock(4),
    }
    times = bench.alternate(sides, repetitions=5)
    assert order == ["once", "twice"] * 7 and len(times) == 5  # two turns warm up
    table = bench.ratios(times, "once")
    assert list(table.columns) == ["median", "low", "high", "seconds"]
    assert table.loc["once"].tolist() == [1, 1, 1, 2] and table.loc["twice"].tolist() == [0.5, 0.5, 0.5, 4]


def test_what_was_measured_is_kept_as_json(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    kept = bench.write_bench({"ratios": {"a": 1.5}}, "scale-cpu")
    assert kept.relative_to(tmp_path).as_posix() == "results/bench/scale-cpu.json"
    assert json.loads(kept.read_text()) == {"ratios": {"a": 1.5}}


def test_a_chart_has_a_bar_for_each_side_but_the_clean_ones():
    row = {"median": 1.0, "low": 0.9, "high": 1.1}
    names = ("reference", "ours", "clean fine-tune")
    found = {"ratios": {name: row for name in names}, "network": "a", "batch": 2, "size": 64, "device": "cpu"}
    ax = bench.step_chart(found | {"threads": 1}).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["reference", "ours"]
    assert pd.Series([bar.get_width() for bar in ax.patches]).tolist() == [1.0, 1.0]
