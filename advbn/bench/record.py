"""A record of speed: what was timed, turn by turn, how the sides compare within a turn, and on what. Every
benchmark is kept in this one form, which is checked when it is written and when it is read."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..base.errors import DataError
from ..base.files import project_root, write_text
from ..base.sections import Count, Positive

Device = Literal["cpu", "cuda"]
Kind = Literal["step", "corrupt", "evaluate", "scale", "folders"]
Verdict = Literal["faster", "slower", "no difference shown"]

APPLY = {  # the settings that a kind has beside those that all have
    "step": {"network", "batch"},
    "corrupt": {"batch", "severity", "processes"},
    "evaluate": {"network", "batch"},
    "scale": {"network", "processes"},
    "folders": {"batch", "processes"},
}
SMALLEST, LARGEST = "resident memory, smallest folder, bytes", "resident memory, largest folder, bytes"
NUMBERS = {  # what a kind finds beside times
    "step": {
        "largest difference of losses, double precision",
        "operations, relative",
        "peak memory, relative",
        "peak memory, bytes",
        "peak memory of a clean step, bytes",
    },
    "corrupt": {"images a second"},
    "evaluate": {"images a second"},
    "scale": set(),
    "folders": {SMALLEST, LARGEST},
}
ROUNDED = 2e-3  # how far a median may be from that of the rounded times, relative
VECTORS = re.compile(r"(mmx|s?sse|avx|amx|fma|f16c|neon|asimd|sve|i8mm)")


class Part(BaseModel):
    "Part of a record: its keys are known, their types are checked, and nothing in it changes."

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Spread(Part):
    "Median and quartiles over the turns; the quartiles are null where they were not recorded."

    median: Positive
    low: Positive | None
    high: Positive | None

    @model_validator(mode="after")
    def _in_order(self):
        low, high = self.low or self.median, self.high or self.median
        if not low <= self.median <= high:
            raise ValueError(f"the median {self.median} is not between the quartiles {low} and {high}")
        return self


def spread_of(values) -> dict:
    "The median and the quartiles of some numbers, as `Spread` takes them."
    low, median, high = np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75)).tolist()
    return {"median": round(median, 9), "low": round(low, 9), "high": round(high, 9)}


def verdict_of(of: str, low: float, high: float) -> Verdict:
    "Faster or slower, where both quartiles of the ratio say so."
    if low <= 1 <= high:
        return "no difference shown"
    return "faster" if (low > 1) == (of == "speed") else "slower"


class Ratio(Part):
    """Of the ratios of one side to another within each turn, the median and the quartiles: of their `speed`,
    above one is faster, or of their `time`, above one is slower."""

    side: str
    to: str
    of: Literal["speed", "time"]
    median: Positive
    low: Positive
    high: Positive
    verdict: Verdict

    @model_validator(mode="after")
    def _holds(self):
        Spread(median=self.median, low=self.low, high=self.high)
        if self.verdict != (word := verdict_of(self.of, self.low, self.high)):
            raise ValueError(
                f"{self.side} against {self.to} is {word!r} by its quartiles, not {self.verdict!r}"
            )
        return self

    def within(self, times: dict) -> list:
        "The ratios, turn by turn."
        pairs = zip(times[self.side], times[self.to], strict=True)
        return [b / a if self.of == "speed" else a / b for a, b in pairs]


class Settings(Part):
    "What was timed. What does not apply to a kind is null; so are `warmup` and `seed` where not recorded."

    device: Device
    network: str | None = None
    batch: Count | None = None
    size: Count
    severity: Annotated[int, Field(ge=1, le=5)] | None = None
    processes: dict[str, Count] | None = None  # of each side
    repetitions: Count  # turns that count
    warmup: Count | None  # turns before them
    seed: int | None


class Circumstances(Part):
    "On what it was measured; null is what was not recorded."

    processor: str
    flags: tuple[str, ...] | None  # of its vectors
    gpu: str  # or none
    driver: str | None
    python: str
    packages: dict[str, str]
    cuda: str | None  # that torch is built for, or none
    threads: Count | None
    commit: str
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")] | None


def vector_flags(flags) -> tuple:
    "Those of a processor's flags that name vectors and matrices, sorted."
    return tuple(sorted(flag for flag in flags if VECTORS.match(flag) or "bf16" in flag))


class Bench(Part):
    """What a benchmark has found: `sides` in the `unit`, their `ratios`, other `numbers`, and the `times` of
    all turns.

    Under `contract` 1 the warm-up is left out, the device is synchronised before and after each piece, seeds
    are pinned, sides take turns, and nothing is null. 0 is a record from before it, put into this form: what
    was not recorded is null, and no number is another."""

    contract: Literal[0, 1]
    kind: Kind
    settings: Settings
    measured_on: Circumstances
    unit: Literal["seconds", "milliseconds an image"]
    sides: dict[str, Spread | None]
    ratios: tuple[Ratio, ...]
    numbers: dict[str, Annotated[float, Field(ge=0)]]
    times: dict[str, tuple[Positive, ...]] | None

    @model_validator(mode="after")
    def _holds(self):
        for problem in self.problems():
            raise ValueError(problem)
        return self

    def problems(self) -> Iterator[str]:
        "What does not go together, each a clause."
        given = {name for name in ("network", "batch", "severity", "processes") if self._setting(name)}
        if given != APPLY[self.kind]:
            yield f"settings of {self.kind} are {sorted(given)}; they should be {sorted(APPLY[self.kind])}"
        if self.numbers.keys() != NUMBERS[self.kind]:
            yield f"numbers are {sorted(self.numbers)}; they should be {sorted(NUMBERS[self.kind])}"
        compared = {name for ratio in self.ratios for name in (ratio.side, ratio.to)}
        if unknown := compared ^ self.sides.keys():
            yield f"timed and compared are not the same sides: {sorted(unknown)}"
        elif self.times is not None:
            yield from self._other_than_timed()
        if self.contract and (missing := self._not_recorded()):
            yield f"not recorded: {', '.join(missing)}"

    def _setting(self, name):
        return getattr(self.settings, name) is not None

    def _not_recorded(self) -> list:
        "What is null and must not be, under contract 1."
        found = [f"settings.{name}" for name in ("warmup", "seed") if not self._setting(name)]
        found += [f"measured_on.{name}" for name, value in self.measured_on if value is None]
        found += [f"sides.{n}" for n, side in self.sides.items() if side is None or side.low is None]
        return found + (["times"] if self.times is None else [])

    def _other_than_timed(self):
        "Clauses on what is not what the times of the turns give."
        if apart := self.times.keys() ^ self.sides.keys():
            yield f"sides without times, or times without sides: {sorted(apart)}"
            return
        if wrong := [n for n, values in self.times.items() if len(values) != self.settings.repetitions]:
            yield f"{wrong[0]} has not the times of {self.settings.repetitions} turns"
            return
        told = [(name, side, self.times[name]) for name, side in self.sides.items() if side]
        told += [(f"{r.side} against {r.to}", r, r.within(self.times)) for r in self.ratios]
        for name, spread, values in told:
            for key, value in spread_of(values).items():
                if (kept := getattr(spread, key)) is not None and abs(kept / value - 1) > ROUNDED:
                    yield f"{name}: {key} is {kept:.4g}, the times give {value:.4g}"

    def ratio(self, side: str, to: str) -> Ratio:
        "The ratio of one side to another; raises `KeyError` where they were not compared."
        for ratio in self.ratios:
            if (ratio.side, ratio.to) == (side, to):
                return ratio
        raise KeyError(f"{side} was not compared with {to}")

    def slower(self) -> list:
        "The ratios of sides that are slower than what they are compared with."
        return [ratio for ratio in self.ratios if ratio.verdict == "slower"]

    def key(self) -> tuple:
        "Which benchmark this is, of those of a machine."
        s = self.settings
        return self.kind, s.device, s.network, s.batch, s.size, s.severity


def machine_name(circumstances: Circumstances) -> str:
    """A name for files, from processor and GPU; where the vector flags are known, it ends in six digits of
    their digest, so that machines of one name and different hardware have different ones."""
    parts = [circumstances.processor, circumstances.gpu if circumstances.gpu != "none" else ""]
    words = re.sub(r"\((?:r|tm|c)\)|\bcpu\b|\bprocessor\b|@.*?hz", " ", " ".join(parts).lower())
    name = "-".join(re.findall(r"[a-z0-9]+", words))
    if circumstances.flags is None:
        return name
    told = json.dumps([*parts, *circumstances.flags])
    return f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"


class Record(Part):
    """Benchmarks of one machine, each once. `quick` are those with few repetitions of small sizes, which show
    that it works and are compared with nothing."""

    machine: str
    quick: bool = False
    benches: Annotated[tuple[Bench, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _of_one_machine(self):
        for bench in self.benches:
            if self.machine != (name := machine_name(bench.measured_on)):
                raise ValueError(f"a {bench.kind} of {name} stands in the record of {self.machine}")
        if len({bench.key() for bench in self.benches}) < len(self.benches):
            raise ValueError("a benchmark stands there twice")
        return self


def record_of(*benches: Bench, quick: bool = False) -> Record:
    "A record with these benchmarks."
    return Record(machine=machine_name(benches[0].measured_on), quick=quick, benches=benches)


def read_record(path: Path) -> Record:
    "The record in a file; raises `DataError` with what is wrong with it."
    try:
        return Record.model_validate_json(Path(path).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is no record of speed: {place}: {first['msg']}") from None


def write_record(record: Record, path: Path) -> Path:
    "Keep a record, checked once more, at `path`, whole or not at all; returns the path."
    content = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False)
    Record.model_validate_json(content)
    write_text(f"{content}\n", path)
    return path


def bench_folder() -> Path:
    "Where records are kept in a clone; those of whole machines in its folder `machines`."
    return project_root() / "results/bench"


def bench_path(bench: Bench) -> Path:
    "Where a benchmark that was made by itself is kept."
    parts = [bench.kind, bench.settings.network if bench.kind != "scale" else None, bench.settings.device]
    return bench_folder() / f"{'-'.join(filter(None, parts))}.json"


def machine_path(machine: str, quick: bool = False) -> Path:
    "Where the record of a whole machine of this name is kept."
    return bench_folder() / "machines" / f"{machine}{'-quick' if quick else ''}.json"


def kept_records() -> list:
    "Every record of speed that is kept, but for quick ones; those of single benchmarks first."
    paths = [*sorted(bench_folder().glob("*.json")), *sorted(bench_folder().glob("machines/*.json"))]
    found = [read_record(path) for path in paths if not path.name.startswith("fidelity-")]
    return [record for record in found if not record.quick]


def newest(records) -> dict:
    """`{(machine, device): benchmarks}` of all records; of two of the same settings the one that was measured
    last, and of those without a date any other."""
    found = {}
    for bench in (bench for record in records for bench in record.benches):
        place = machine_name(bench.measured_on), bench.settings.device
        known = found.setdefault(place, {})
        before = known.get(bench.key())
        if before is None or (bench.measured_on.date or "") >= (before.measured_on.date or ""):
            known[bench.key()] = bench
    return {place: list(known.values()) for place, known in found.items()}
