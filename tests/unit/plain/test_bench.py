"""Benchmarks: sides in turns, ratios within a turn, what is said of them, charts."""

import pandas as pd
import pytest
from conftest import ROOT

from advbn.base.machine import processor_flags
from advbn.bench import charts, timing
from advbn.bench.record import read_record, spread_of, vector_flags


@pytest.fixture
def clock(monkeypatch):
    "A clock that only work moves on: `clock(2)` takes two seconds."
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def work(seconds):
        now[0] += seconds

    return work


def test_sides_take_turns_and_ratios_are_those_within_a_turn(clock):
    order = []
    sides = {
        "once": lambda: order.append("once") or clock(2),
        "twice": lambda: order.append("twice") or clock(4),
    }
    times = timing.alternate(sides, repetitions=5)
    assert order == ["once", "twice"] * 7 and len(times) == 5  # two turns warm up
    table = timing.ratios(times, "once")
    assert list(table.columns) == ["median", "low", "high", "seconds"]
    assert table.loc["once"].tolist() == [1, 1, 1, 2] and table.loc["twice"].tolist() == [0.5, 0.5, 0.5, 4]


@pytest.mark.parametrize(
    "times, of, verdict",
    [
        ([4, 5, 4, 5, 4], "speed", "slower"),
        ([4, 5, 4, 5, 4], "time", "slower"),
        ([1, 2, 1, 2, 1], "speed", "faster"),
        ([1, 2, 1, 2, 1], "time", "faster"),
        ([2, 4, 3, 2, 4], "speed", "no difference shown"),
    ],
)
def test_a_side_is_slower_or_faster_where_both_quartiles_say_so(times, of, verdict):
    found = timing.ratio_of(pd.DataFrame({"ours": times, "theirs": [3.0] * 5}), "ours", "theirs", of)
    within = [3 / t if of == "speed" else t / 3 for t in times]
    assert found.verdict == verdict and found.model_dump().items() >= spread_of(within).items()


def test_what_is_kept_says_on_what_it_was_measured():
    found = timing.circumstances()
    assert found.processor and found.threads >= 1
    assert found.flags == vector_flags(processor_flags()) and not {"fpu", "smep"} & {*found.flags}
    assert {"torch", "torchvision"} <= found.packages.keys() and found.date[:2] == "20"


def drawn(name):
    (bench,) = read_record(ROOT / f"results/bench/{name}.json").benches
    return bench, charts.chart(bench)


def test_a_chart_of_steps_has_a_bar_for_each_side_but_the_clean_ones():
    bench, fig = drawn("step-resnet18-cpu")
    labels = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    widths = dict(zip(labels, (bar.get_width() for bar in fig.axes[0].patches), strict=True))
    sides = [name for name in bench.sides if not name.startswith("clean")]
    assert list(widths) == sides and widths["reference"] == 1
    assert all(widths[n] == bench.ratio(n, "reference").median for n in sides[1:])


@pytest.mark.parametrize("name, bars", [("corrupt-cpu", 16), ("evaluate-resnet18-cpu", 4)])
def test_other_charts_have_all_their_sides(name, bars):
    assert len(drawn(name)[1].axes[0].patches) == bars


def test_the_chart_of_growth_begins_at_one():
    lines = [ax.lines[0].get_ydata() for ax in drawn("scale-cpu")[1].axes]
    assert [len(y) for y in lines] == [3, 3, 4, 5] and {y[0] for y in lines} == {1.0}
