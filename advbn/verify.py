"""Whether results of one's own agree with the committed ones, number by number, from the files alone.

The same kind of CPU gives the same digits. Another kind rounds otherwise, and a training run that has rounded
otherwise once is another run of the same experiment: its numbers are others, and nothing is wrong. How far
apart two such runs may lie is in their tables: a number with standard error `s` and the same number of the
other run with standard error `r` differ by less than `t * sqrt(s**2 + r**2)` in 95 of 100 cases, `t` from
Student's distribution with the degrees of freedom of both. That is the bound of a number. It takes the two
runs as independent; they share seeds, hence test images, so that it is rather too wide than too narrow.

Tables have hundreds of numbers, of which some leave their bound by chance, and they depend on each other. So
the rule is: of all numbers that differ, none may be significant at 4 % after Holm's correction, which holds
whatever their dependence. The primary outcome, where one is named, is not lost among them: it is tested by
itself at 1 %, so its bound is that of 99 of 100 cases. Together, a good run is called bad in at most 5 of 100
cases. A changed verdict on the primary outcome is always told; where the numbers agree it does not make a run
a bad one, since it is what happens when an interval ends near zero. Opposite verdicts never agree.

One autoencoder, trained once, makes the Stylized, reconstructed and -AdvBN images of all seeds. Another
machine trains another one, and no interval over seeds knows how hard its images are. So accuracies on these
are told and not decided; paired differences, of methods that saw the same images, are decided like others.
"""

import io
import json
import subprocess
import tarfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .base.errors import DataError, ParameterError, did_you_mean
from .base.files import project_root
from .evidence.intervals import holm, verdict

PRIMARY, OTHERS = (
    0.01,
    0.04,
)  # how often a good run may be called bad: by the primary outcome, by any other number
SAME = 1e-6  # points; what is nearer is one number
INTERVALS = {  # the numbers of a table, and the half-widths of their 95 % intervals
    "accuracy": "ci95",
    "difference": "difference_ci95",
    "mce": "mce_ci95",
    "mean_error": "mean_error_ci95",
}
ROW = ("outcome", "base", "method", "against", "branch", "shift", "images")  # what names a row of a table
CELL = ("method", "run", "branch", "shift", "cell", "seed")  # and a row of runs
MADE = ("stylized", "reconstructed", "advbn")  # shifts whose images come from a machine's own autoencoder
CONTROL = ("standard", "finetune")  # the methods that the numbers of all others are relative to
OWN = ("label", "title", "remark", "note", "root", "workers", "threads")  # words, and parameters of a machine
STATES = ("identical", "different", "missing", "only here")
MACHINE = ("Processor", "GPU", "Python", "Packages", "Commit")


# Results as files: {name below results/PROFILE: bytes}


def read_folder(folder: Path) -> dict:
    "The files below `folder`, by their names relative to it, without hidden ones."
    paths = (p for p in sorted(Path(folder).rglob("*")) if p.is_file() and not p.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _git(root, *words) -> bytes:
    "What git prints, run in `root`; raises `ParameterError`, which says what to give instead."
    instead = "give --against a folder with results"
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True)
    except FileNotFoundError:
        raise ParameterError(
            f"git is not installed, so there is nothing to compare with; {instead}"
        ) from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ParameterError(f"git {words[0]} failed in {root} ({(said or ['no reason'])[-1]}); {instead}")
    return done.stdout


def as_committed(folder: Path) -> bool:
    """Whether what lies in a folder of results, but for its page, is what is committed; not where there is no
    git to ask."""
    try:
        changed = _git(folder, "status", "--porcelain", "--", ".").decode().splitlines()
    except ParameterError:
        return False
    return all(line.endswith("report.html") for line in changed)


def read_revision(root: Path, profile: str, revision: str = "HEAD") -> tuple:
    """The files of a profile's results as Git has them in a `revision`, and the commit's short name.

    Raises `ParameterError` where there is no such revision, and where it has no results of the profile."""
    _git(root, "rev-parse", "--git-dir")
    try:
        commit = (
            _git(root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
        )
    except ParameterError:
        names = _git(root, "for-each-ref", "--format=%(refname:short)").decode().split()
        near = did_you_mean(
            revision, ["HEAD", *names], "; give a folder with results, or a commit, branch or tag"
        )
        raise ParameterError(
            f"--against {revision!r} is neither a folder nor a revision here{near}"
        ) from None
    there = [
        Path(name).name for name in _git(root, "ls-tree", "--name-only", commit, "results/").decode().split()
    ]
    if profile not in there:
        raise ParameterError(f"{revision} has no results of {profile!r}{did_you_mean(profile, there)}")
    archive = _git(root, "archive", "--format=tar", commit, f"results/{profile}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        start = f"results/{profile}/"
        found = {m.name.removeprefix(start): files.extractfile(m).read() for m in files if m.isfile()}
    return found, commit[:12]


def read_other(root: Path, profile: str, against: str | None) -> tuple:
    """The results to compare with, and a name for them: of the folder `against`, which is a clone, its
    results/ or one profile's, or else of the revision of that name, by default HEAD."""
    if against is None or not Path(against).is_dir():
        found, commit = read_revision(root, profile, against or "HEAD")
        return found, f"{against or 'HEAD'} (commit {commit})"
    for folder in (Path(against, "results", profile), Path(against, profile), Path(against)):
        if (folder / "tables").is_dir():
            return read_folder(folder), str(folder)
    raise ParameterError(
        f"{against} has no results of {profile!r}; give a clone, its results/, or a profile's folder"
    )


def _read(name, content, reader):
    try:
        return reader(io.BytesIO(content))
    except ValueError as error:
        reason = " ".join(str(error).split())[:80]
        raise DataError(f"{name} cannot be read ({reason}); take it from Git again") from None


def _json(name, files):
    return _read(name, files[name], json.load)


def _tables(files, *folders):
    "`(name, table)` of the CSV files in `folders`, and below them."
    for name, content in files.items():
        if name.startswith(folders) and name.endswith(".csv"):
            yield name, _read(name, content, pd.read_csv)


# Parameters


def _leaves(value, name="") -> dict:
    "The parameters of a nested dictionary by their dotted names, but for words and those of a machine."
    if not isinstance(value, dict):
        return {name: value}
    inner = (_leaves(part, f"{name}.{key}".lstrip(".")) for key, part in value.items() if key not in OWN)
    return {key: leaf for leaves in inner for key, leaf in leaves.items()}


def _concerns_both(key, theirs) -> bool:
    "Is a parameter one of a method that both results have, or none of a method's?"
    start = ".".join(key.split(".")[:2])
    return not key.startswith("methods.") or any(f"{other}.".startswith(f"{start}.") for other in theirs)


def other_parameters(here: dict, there: dict) -> dict:
    """`{file: {parameter: (here, there)}}` of what the two results were made with, where it differs; what is
    not given is null, and a method that was added here changes nothing of the others."""
    found, files = {}, [n for n in there if n.endswith(".json") and n in here]
    for name in (n for n in files if n == "parameters.json" or n.startswith("studies/")):
        mine, theirs = _leaves(_json(name, here)), _leaves(_json(name, there))
        both = {key: (mine.get(key), theirs.get(key)) for key in {**theirs, **mine}}
        found[name] = {k: v for k, v in both.items() if v[0] != v[1] and _concerns_both(k, theirs)}
    return {name: changes for name, changes in found.items() if changes}


def comparable(numbers: pd.DataFrame, changes: dict, studies: set) -> pd.Series:
    """Which rows of `numbers` both results have made with the same parameters: none if `changes` in
    parameters.json concern all methods, else all but those of changed methods, `studies` and outcomes."""
    main = [name.split(".") for name in changes.get("parameters.json", ())]
    kinds, methods = {words[0] for words in main}, {words[1] for words in main if words[0] == "methods"}
    if kinds - {"methods", "outcomes"} or methods & set(CONTROL):
        return pd.Series(False, numbers.index)
    changed = {Path(name).stem for name in changes} | (kinds & {"outcomes"})
    return ~numbers.table.isin(changed) & (numbers.table.isin(studies) | ~numbers.method.isin(methods))


# Numbers and their bounds


def _decides(name: str, quantity: str, table: pd.DataFrame):
    "Which numbers of a table are more than told: not what one autoencoder, trained once, has painted."
    if name == "perturbations":
        return False
    return ~table["shift"].isin(MADE) if quantity == "accuracy" else True


def numbers(files: dict) -> pd.DataFrame:
    """Every number of the tables that has an interval, percent or points: the columns table, row, method,
    quantity, value, half (of the 95 % interval), zero (the p of a value of zero), error (standard), df, and
    decided (is it more than told?).

    No error is taken as smaller than that of rounding an accuracy to whole test images."""
    from scipy.special import stdtrit

    images = [table.images.max() for _, table in _tables(files, "runs/", "studies/") if "images" in table]
    rounding = 100 / min(images, default=np.inf) / np.sqrt(12)
    parts = []
    for name, table in _tables(files, "tables/"):
        rows = table[[column for column in ROW if column in table]].astype(str).agg(", ".join, axis=1)
        for quantity, half in INTERVALS.items():
            if half not in table:
                continue
            df, error = table.seeds - 1.0, None
            if quantity == "difference" and "standard_error" in table:
                df, error = table.df, table.standard_error
            found = {
                "row": rows,
                "method": table.get("method", ""),
                "decided": _decides(Path(name).stem, quantity, table),
                "value": table[quantity],
                "half": table[half],
                "zero": table.get("p", np.nan),
                "df": df,
            }
            found["error"] = table[half] / stdtrit(df.where(df > 0), 0.975) if error is None else error
            found["error"] = np.hypot(found["error"], rounding / np.sqrt(table.seeds))
            parts.append(pd.DataFrame(found).assign(table=Path(name).stem, quantity=quantity))
    if not parts:
        raise DataError("there are no tables among these results; run dvc repro, or take them from Git again")
    return pd.concat(parts, ignore_index=True).dropna(subset="value")


def compare_numbers(here: pd.DataFrame, there: pd.DataFrame) -> pd.DataFrame:
    """What `numbers` gave of two results, side by side: difference (here minus there), bound, p, and within.

    `within` is true for what is equal and what two runs of one experiment may give, by the rule of this
    module; where both differ and one has no interval, it is false and the bound NaN."""
    from scipy.special import stdtr, stdtrit

    key = ["table", "row", "method", "quantity", "decided"]
    both = here.merge(there, on=key, suffixes=("_here", "_there"))
    error, df = np.hypot(both.error_here, both.error_there), both.df_here + both.df_there
    primary = (both.table == "outcomes") & both.row.str.startswith("primary")
    both["difference"] = both.value_here - both.value_there
    both["bound"] = stdtrit(df, 1 - np.where(primary, PRIMARY, 0.05) / 2) * error
    both["p"] = 2 * stdtr(df, -both.difference.abs() / error)
    both["differs"], both["primary"] = both.difference.abs() > SAME, primary
    both["within"] = ~both.differs | (primary & (both.p > PRIMARY))
    both.loc[~both.decided, "within"] = True
    tested = both.differs & both.decided & ~primary & both.p.notna()
    both.loc[tested, "within"] = holm(both.p[tested]) > OTHERS
    return both


def _spread(name, differences, of, unit) -> str:
    "How many values of a file differ, and by how much."
    return (
        f"{name}: {(differences != 0).sum():,} of {len(differences):,} {of} differ, by "
        f"{differences.abs().mean():.1f} {unit} on average and {differences.abs().max():.1f} at most"
    )


def compare_values(here: dict, there: dict) -> tuple:
    """A sentence for metrics.json and each file of runs that both results have and that differs; and a phrase
    for each of these files that lacks cells here."""
    shared = {name: there[name] for name in there if name in here and here[name] != there[name]}
    said, missing = [], []
    if "metrics.json" in shared:
        mine, theirs = (
            pd.to_numeric(pd.Series(_leaves(_json("metrics.json", files))), errors="coerce")
            for files in (here, there)
        )
        said.append(_spread("metrics.json", (mine - theirs).dropna(), "values", "points"))
    for name, theirs in _tables(shared, "runs/", "studies/"):
        mine = _read(name, here[name], pd.read_csv)
        key = [column for column in CELL if column in theirs]
        both = mine.merge(theirs, on=key, suffixes=("_here", "_there"))
        said.append(_spread(name, both.correct_here - both.correct_there, "cells", "images"))
        if len(theirs) > len(both):
            missing.append(f"{len(theirs) - len(both):,} of {len(theirs):,} cells of {name}")
    return said, missing


# The report


@dataclass(frozen=True)
class Comparison:
    "Two results of a profile, compared: files by bytes, parameters, and the numbers of all tables."

    profile: str
    against: str
    files: dict  # {name: one of STATES}
    parameters: dict
    numbers: pd.DataFrame  # those that were made with the same parameters
    missing: list  # rows of tables, and cells of runs, that are there and not here
    values: list  # a sentence for each file of runs that differs
    machines: dict  # {fact: (here, there)} of the stages that were run anew

    @property
    def beyond(self) -> pd.DataFrame:
        "The numbers whose difference is more than another machine may give, or has no bound."
        return self.numbers[~self.numbers.within]

    @property
    def absent(self) -> list:
        "What is there and not here: files, and rows of tables."
        return [name for name, state in self.files.items() if state == "missing"] + self.missing

    @property
    def good(self) -> bool:
        return not (self.parameters or self.absent or len(self.beyond))


def _facts(here, there) -> dict:
    "Machine, versions and commits of the stages that were not run in one and the same way."
    names = [n for n in here.keys() & there.keys() if n.startswith("made/") and here[n] != there[n]]
    runs = [[_json(name, files) for name in sorted(names)] for files in (here, there)]
    return {
        fact: tuple("; ".join(dict.fromkeys(run.get(fact, "not told") for run in side)) for side in runs)
        for fact in MACHINE
        if names
    }


def _same(name, one, other) -> bool:
    "Do two files say the same? Of arrays what they hold: how they are packed is the library's matter."
    if one == other or not name.endswith(".npz"):
        return one == other
    with np.load(io.BytesIO(one)) as first, np.load(io.BytesIO(other)) as second:
        return first.files == second.files and all(np.array_equal(first[k], second[k]) for k in first.files)


def file_states(here: dict, there: dict) -> dict:
    "Which of `STATES` each file is in, but for those that say how a stage was run."
    states = {}
    for name in sorted(n for n in here.keys() | there.keys() if not n.startswith("made/")):
        if name in here and name in there:
            states[name] = "identical" if _same(name, here[name], there[name]) else "different"
        else:
            states[name] = "only here" if name in here else "missing"
    return states


def compare(here: dict, there: dict, profile: str = "", against: str = "") -> Comparison:
    "Compare two results, each as `{name: bytes}`."
    changes = other_parameters(here, there)
    mine, theirs = numbers(here), numbers(there)
    studies = {Path(name).stem for name in there if name.startswith("studies/") and name.endswith(".json")}
    theirs = theirs[comparable(theirs, changes, studies)]
    names = set(zip(mine.table, mine.row, mine.quantity))
    lost = [r for r in theirs.itertuples() if (r.table, r.row, r.quantity) not in names]
    missing = [f"{r.table}, {r.quantity} of {r.row}" for r in lost if f"tables/{r.table}.csv" in here]
    values, cells = compare_values(here, there)
    return Comparison(
        profile=profile,
        against=against,
        files=file_states(here, there),
        parameters=changes,
        numbers=compare_numbers(mine, theirs),
        missing=missing + cells,
        values=values,
        machines=_facts(here, there),
    )


def verify(profile: str | None = None, against: str | None = None) -> Comparison:
    """Compare the results of a `profile`, by default the one that `params.yaml` names, with those of a Git
    revision or of a folder.

    Raises `ParameterError` for a profile without results and for nothing to compare with."""
    from .status import named_profile, recorded_profiles

    root = project_root()
    profile = profile or named_profile(root)
    if profile not in recorded_profiles():
        near = did_you_mean(
            profile, recorded_profiles(), f"; there are {', '.join(recorded_profiles()) or 'none'}"
        )
        raise ParameterError(f"there are no results of {profile!r} under {root / 'results'}{near}")
    other, name = read_other(root, profile, against)
    return compare(read_folder(root / "results" / profile), other, profile, name)


# What is printed


def _folded(title, words) -> str:
    "`title: a, b, ...`, in as many lines as it takes."
    return textwrap.fill(f"{title}: {', '.join(words)}", 108, subsequent_indent="    ")


def _parameter_lines(found):
    lines = {}
    for name, changes in found.parameters.items():
        for key, (here, there) in changes.items():
            lines.setdefault(f"  {key}: {here} here, {there} there", name)
    if not lines:
        return ["parameters: the same"]
    lines = [f"{line} ({name})" for line, name in lines.items()]
    more = [f"  and {len(lines) - 12} more"] if len(lines) > 12 else []
    return ["parameters: DIFFERENT, so that what they concern cannot be compared", *lines[:12], *more]


def _file_lines(found):
    names = {state: [n for n, s in found.files.items() if s == state] for state in STATES}
    counts = [f"{len(of)} {state}" for state, of in names.items() if of]
    told = [_folded(f"  {state}", of) for state, of in names.items() if of and state != "identical"]
    return [f"files: {', '.join(counts)}", *told, *(f"  {line}" for line in found.values)]


def _largest(numbers, most) -> list:
    "The rows of `numbers` that differ most for their bounds, as lines."
    order = (numbers.difference.abs() / numbers.bound).sort_values(ascending=False).index[:most]
    shown = numbers.loc[order].assign(number=numbers.quantity + " of " + numbers.row)
    shown = shown.rename(columns={"value_here": "here", "value_there": "there"})
    columns = ["table", "number", "here", "there", "difference", "bound"]
    text = shown[columns].to_string(index=False, float_format="{:.2f}".format, justify="left")
    return [f"  {line}" for line in text.splitlines()]


def _number_lines(found, most=10):
    differ = found.numbers[found.numbers.differs]
    told, decided = differ[~differ.decided], differ[differ.decided]
    others = decided[~decided.primary]
    lines = [f"numbers in tables: {len(found.numbers):,} compared, {len(differ):,} differ"]
    if len(told):
        lines.append(
            f"  {len(told)} are accuracies on images of a machine's own autoencoder, which decide nothing: "
            f"by {told.difference.abs().max():.1f} points at most"
        )
    if len(decided):
        lines += [
            f"  {(others.difference.abs() > others.bound).sum()} of the {len(others):,} others by more than "
            f"their bound, where chance alone gives up to {0.05 * len(others):.0f}; {len(found.beyond)} "
            f"beyond chance",
            f"  the largest for their bounds, in points ({min(most, len(decided))} of {len(decided):,}):",
            *_largest(decided, most),
        ]
    return lines + [f"missing here: {name}" for name in found.missing[:most]]


def _outcome_lines(found):
    lines = []
    for row in found.numbers[found.numbers.table == "outcomes"].itertuples():
        here, there = verdict(row.value_here, row.zero_here), verdict(row.value_there, row.zero_there)
        state = "within" if row.within else "BEYOND"
        same = f"the verdict is the same, {here}"
        lines += [
            f"outcome {row.row}: {row.value_here:+.2f} ± {row.half_here:.2f} here, {row.value_there:+.2f} ± "
            f"{row.half_there:.2f} there,",
            f"  {abs(row.difference):.2f} apart, bound {row.bound:.2f}: {state}; "
            + (same if here == there else f"VERDICT CHANGED, {here} here, {there} there"),
        ]
    return lines


def _machine_lines(found):
    if not found.machines:
        return []
    told = [
        f"  {fact}: {here}" + ("" if here == there else f"\n    there: {there}")
        for fact, (here, there) in found.machines.items()
    ]
    return ["machines of the stages that were run anew:", *told]


def _last_line(found):
    beyond = found.beyond
    if found.parameters:
        rest = f"{len(beyond)} of the other numbers are beyond chance" if len(beyond) else "the others agree"
        rest = rest if len(found.numbers) else "there are no others"
        return f"No verdict: parameters differ, and what they concern cannot be compared; {rest}."
    if found.absent:
        return f"Not good news: {len(found.absent)} missing here, first {found.absent[0]}."
    if unbounded := beyond.bound.isna().sum():
        return f"No verdict: {unbounded} numbers differ that have no interval, because they are of one seed."
    if len(beyond):
        worst = beyond.sort_values("p").iloc[0]
        return (
            f"Not good news: {len(beyond)} numbers are further apart than another machine explains, first "
            f"the {worst.quantity} of {worst.row} ({worst.table}), by {abs(worst.difference):.1f} points; "
            f"versions, code and images would be the next to compare."
        )
    if found.numbers.differs.any():
        return "Good news: numbers differ, and none by more than another machine may give."
    if not found.machines:
        return "Good news: every number is the same; but no stage was run anew, these are the same results."
    return "Good news: every number is the same."


def report_text(found: Comparison) -> str:
    "What `advbn verify` prints, the verdict as its last sentence."
    parts = (_parameter_lines, _file_lines, _number_lines, _outcome_lines, _machine_lines)
    lines = [line for part in parts for line in part(found)]
    return "\n".join(
        [f"{found.profile}: results here, and those of {found.against}", *lines, "", _last_line(found)]
    )
