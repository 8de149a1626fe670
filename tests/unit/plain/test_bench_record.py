"""Records of speed: those that are committed hold to the schema, and what cannot be believed is refused."""

import copy
import json

import pytest
from conftest import ROOT

from advbn.base.errors import DataError
from advbn.bench import record
from advbn.bench.record import kept_records, machine_name, newest, read_record, record_of, write_record

FOLDER = ROOT / "results/bench"
COMMITTED = sorted(p for p in FOLDER.rglob("*.json") if not p.name.startswith("fidelity-"))
STEP = json.loads((FOLDER / "step-resnet18-cpu.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_a_committed_record_holds_to_the_schema_and_is_as_it_would_be_written(path, tmp_path):
    found = read_record(path)
    assert write_record(found, tmp_path / path.name).read_bytes() == path.read_bytes()
    if path.parent == FOLDER:
        assert record.bench_path(found.benches[0]) == path and len(found.benches) == 1
    else:
        assert record.machine_path(found.machine) == path and not found.quick


def test_every_kind_is_on_record_and_slower_sides_are_too():
    benches = [bench for found in kept_records() for bench in found.benches]
    assert {bench.kind for bench in benches} == {"step", "corrupt", "evaluate", "scale", "folders"}
    slower = {(bench.key()[2], ratio.side) for bench in benches for ratio in bench.slower()}
    assert ("resnet18", "ours, bf16") in slower and (None, "pixelate, ours") in slower


def changed(change):
    "A record of a step after `change` of its benchmark."
    found = copy.deepcopy(STEP)
    change(found["benches"][0])
    return found


def without(bench, side):
    bench["ratios"] = [ratio for ratio in bench["ratios"] if ratio["side"] != side]


def of_today(bench):
    "All that was not recorded, but for the date."
    bench["contract"] = 1
    bench["settings"] |= {"warmup": 2, "seed": 0}
    bench["measured_on"] |= {"flags": [], "driver": "none", "cuda": "none"}


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda b: without(b, "ours, bf16"), "timed and compared are not the same sides: ['ours, bf16']"),
        (lambda b: b["sides"].pop("ours, bf16"), "timed and compared are not the same sides"),
        (
            lambda b: b["times"].pop("ours, bf16"),
            "sides without times, or times without sides: ['ours, bf16']",
        ),
        (lambda b: b["times"]["ours"].pop(), "ours has not the times of 7 turns"),
        (
            lambda b: b["sides"]["ours"].update(median=0.966, high=0.98),
            "ours: high is 0.98, the times give 0.96",
        ),
        (lambda b: b["ratios"][2].update(verdict="faster"), "is 'slower' by its quartiles, not 'faster'"),
        (lambda b: b["ratios"][2].update(median=1.2), "the median 1.2 is not between the quartiles"),
        (
            lambda b: b["ratios"][2].update(median=1.2, low=1.1, high=1.3, verdict="faster"),
            "ours against reference: median is 1.2, the times give 0.92",
        ),
        (lambda b: b["settings"].update(network=None), "settings of step are ['batch']"),
        (lambda b: b["numbers"].pop("operations, relative"), "numbers are"),
        (lambda b: b["measured_on"].pop("threads"), "measured_on.threads: Field required"),
        (lambda b: b["measured_on"].update(host="a"), "measured_on.host: Extra inputs"),
        (lambda b: b["measured_on"].update(date="today"), "measured_on.date"),
        (lambda b: b["measured_on"].update(gpu="NVIDIA H100"), "of intel-xeon-2-cores-nvidia-h100 stands in"),
        (lambda b: b.update(contract=1), "not recorded: settings.warmup, settings.seed, measured_on.flags"),
        (of_today, "not recorded: measured_on.date"),
    ],
)
def test_what_cannot_be_believed_is_refused(tmp_path, change, said):
    path = tmp_path / "step.json"
    path.write_text(json.dumps(changed(change)))
    with pytest.raises(DataError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path} is no record of speed: ") and said in str(caught.value)


def test_a_benchmark_stands_there_once(tmp_path):
    path = tmp_path / "twice.json"
    path.write_text(json.dumps({**STEP, "benches": STEP["benches"] * 2}))
    with pytest.raises(DataError, match="a benchmark stands there twice"):
        read_record(path)


def test_writing_checks_what_was_put_together_by_hand(tmp_path):
    (bench,) = read_record(FOLDER / "step-resnet18-cpu.json").benches
    wrong = record_of(bench).model_copy(update={"machine": "mine"})
    with pytest.raises(ValueError, match="stands in the record of mine"):
        write_record(wrong, tmp_path / "mine.json")
    assert list(tmp_path.iterdir()) == []


def another(bench, **on):
    return bench.model_copy(update={"measured_on": bench.measured_on.model_copy(update=on)})


def test_names_of_machines_are_readable_and_tell_hardware_apart():
    (bench,) = read_record(FOLDER / "step-resnet18-cpu.json").benches
    on = {
        "processor": "AMD EPYC 9V74 80-Core Processor @ 2.60GHz, 16 cores, AVX-512",
        "gpu": "NVIDIA H100 80GB",
    }
    names = [
        machine_name(another(bench, **on, flags=flags).measured_on)
        for flags in (None, ("avx2",), ("avx512f",))
    ]
    assert names[0].startswith("amd-epyc-9v74-80-core-") and names[0].endswith("nvidia-h100-80gb")
    assert len({*names}) == 3 and all(name.startswith(names[0]) for name in names)


def test_of_two_measurements_the_newer_is_shown():
    (old,) = read_record(FOLDER / "step-resnet18-cpu.json").benches
    new, newer = another(old, date="2026-11-30"), another(old, date="2026-12-01")
    place = machine_name(old.measured_on), "cpu"
    records = [record_of(bench) for bench in (newer, old, new)]
    assert newest(records) == {place: [newer]}
    other = another(old, processor="Other, 4 cores")
    assert newest([*records, record_of(other)]) == {place: [newer], ("other-4-cores", "cpu"): [other]}
