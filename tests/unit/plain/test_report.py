"""What the report says beside its tables: its scale, how it differs from the paper, what it took."""

import json

import pandas as pd
import pytest
from conftest import RECORDED, ROOT

from advbn import report
from advbn.base.config import load_params
from advbn.bench.record import kept_records, record_of
from advbn.evidence.tables import read_runs


def runs(seeds=4, source="generated"):
    "Runs of a method: so many seeds, and where the images of each shift come from."
    shifts = {"clean": "published", "corruptions": source, "sketch": source}
    rows = [(seed, shift, where) for seed in range(seeds) for shift, where in shifts.items()]
    return pd.DataFrame(rows, columns=["seed", "shift", "source"])


@pytest.mark.parametrize("profile", ["openmoji", "cifar10"])
def test_every_scale_but_the_papers_calls_itself_reduced(profile):
    params = load_params(profile)
    said = report.scope(params)[0]
    assert "replication at reduced scale" in said
    assert params.current.data.name in said and params.current.network.name in said


def test_the_papers_own_scale_does_not_and_another_network_does():
    assert "on the paper's own network and images" in report.scope(load_params("imagenet"))[0]
    other = load_params("imagenet", name="torchvision/resnet18")
    assert "reduced scale" in report.scope(other)[0] and "torchvision/resnet18" in report.scope(other)[0]


def test_at_the_papers_scale_only_choices_of_evaluation_differ():
    table = report.protocol(load_params("imagenet"), runs(source="published"))
    differing = [row[0] for row in table.rows if row[2] != report.SAME]
    assert differing == [
        "Styles of Stylized",
        "Batch",
        "Statistics and factors of the layer",
        "Checkpoint",
        "Branch at test time",
        "Controls",
        "Repetitions",
    ]


def test_every_difference_has_its_reason_and_what_is_the_same_has_none():
    for profile in ("openmoji", "cifar10", "pacs", "imagenet200", "imagenet"):
        for what, paper, here, why in report.protocol(load_params(profile), runs()).rows:
            assert paper and here and bool(why) == (here != report.SAME), (profile, what)


def test_the_differences_follow_the_parameters():
    params = load_params("openmoji")
    rows = {row[0]: row[2] for row in report.protocol(params, runs(seeds=1)).rows}
    assert rows["Epochs of the fine-tune"] == str(params.current.finetune.epochs)
    assert rows["Images"] == "openmoji: 1,424 training, 474 test, 9 classes"
    assert rows["Repetitions"] == "one seed" and rows["Cut"] == report.SAME
    assert rows["Shifted images"] == "generated from the test images: -C, Sketch"
    photographs = {row[0]: row[2] for row in report.protocol(load_params("pacs"), runs()).rows}
    assert photographs["Attack"] == "eps 1.1, step 0.3667, 3 steps, factors start at 1"
    assert photographs["Images"].endswith("7 classes; 8,321 more test images of other domains")
    assert photographs["Augmentation of the fine-tune"] == "flip, crop 0.5"
    layer = params.methods["advbn"].layer.model_copy(update={"steps": 3})
    methods = params.methods | {"advbn": params.methods["advbn"].model_copy(update={"layer": layer})}
    changed = params.model_copy(update={"methods": methods})
    assert "3 steps" in {row[0]: row[2] for row in report.protocol(changed, runs()).rows}["Attack"]


def test_every_setting_of_every_method_and_base_is_told():
    params = load_params("openmoji")
    told = dict(report.settings_table(params).rows)
    assert {method.label for method in params.methods.values()} <= set(told)
    assert {f"base {base.label}" for base in params.run_bases.values()} <= set(told)
    assert "eps 1.1" in told["AdvBN"] and "steps 6" in told["AdvBN"] and "{" not in "".join(told.values())
    assert not any(name.startswith("base ") for name, _ in report.settings_table(load_params("cifar10")).rows)


def test_compute_adds_the_stages_of_each_machine(tmp_path):
    assert report.compute(tmp_path) == ["Not recorded."]
    (tmp_path / "made").mkdir()
    for name, processor, gpu, seconds in (
        ("a", "X", "none", 60),
        ("b", "X", "none", 120),
        ("c", "Y", "G", 240),
    ):
        record = {"seconds": seconds, "Processor": processor, "GPU": gpu}
        (tmp_path / "made" / f"{name}.json").write_text(json.dumps(record))
    assert report.compute(tmp_path)[0] == (
        "7 minutes in 3 stages, the times of the stages added up: 3 minutes on X, no GPU; 4 minutes on Y, G."
    )


@pytest.mark.parametrize("profile", RECORDED)
def test_the_runs_that_are_told_are_those_that_there_are(profile):
    params, folder = load_params(profile), ROOT / "results" / profile
    seeds = read_runs(folder.parent, profile, ["advbn"]).seed.nunique()
    trained = [p for p in params.methods if len(pd.read_csv(folder / f"training/{p}.csv"))]
    said = report.training_runs(params, seeds)
    assert f"{len(trained)} fine-tunes for each of {seeds} seeds" in said


def test_the_checklist_is_answered():
    rows = report.checklist().rows
    assert len({(part, item) for part, item, *_ in rows}) == len(rows) >= 20
    assert {answer for _, _, answer, _ in rows} == {"yes", "no", "n. a."} and all(row[3] for row in rows)
    assert {part for part, *_ in rows} == {"Models and algorithms", "Theory", "Data sets", "Code", "Results"}


def test_speed_is_told_machine_by_machine_with_what_is_slower():
    kept = [record for record in kept_records() if record.machine.startswith("intel")]  # of two kinds alone
    benches = [bench for record in kept for bench in record.benches if bench.kind in ("step", "corrupt")]
    on = {"processor": "Other, 8 cores", "gpu": "NVIDIA T4", "date": "2026-12-24"}
    other = [b.model_copy(update={"measured_on": b.measured_on.model_copy(update=on)}) for b in benches]
    table = report.speed_table([record_of(*benches[:1]), record_of(*other)])
    assert table.head == ["machine", *report.SPEED_COLUMNS, "measured on"]
    (first, second), place = table.rows, table.head.index("75 cells, time: forward passes = 1")
    assert first[0] == benches[0].measured_on.processor and second[0] == "Other, 8 cores"
    assert first[place] == second[place] == "not measured"
    assert "resnet18 16 x 112 px: 0.93 (0.92 to 0.94), slower" in second[1] and "resnet50" in second[1]
    assert "slower: pixelate, jpeg compression" in second[3] and "562;" in second[3]
    assert "date not recorded" in first[-1] and "date 2026-12-24" in second[-1] and "NVIDIA T4" in second[-1]
