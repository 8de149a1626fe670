"""A profile's report on one self-contained page: the verdicts on the paper's claims first, then the order of
reproducibility reports, with every table and figure, what was published and what was measured."""

import base64
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pandas as pd

from . import report
from .base.config import Params
from .base.files import project_root
from .bench.record import kept_records
from .evidence.claims import (
    CLAIMS,
    DAGGER,
    PERTURBATIONS_NOTE,
    RULES,
    VERDICTS,
    claims_table,
    comparisons,
    differences,
    number,
    perturbations_text,
)
from .evidence.figures import WITHHELD
from .evidence.tables import (
    ORIENTATION_NOTE,
    Table,
    accuracy_note,
    accuracy_text,
    baseline_label,
    columns_in,
    comparison,
    conclusions,
    errors_text,
    origin,
    outcome_notes,
    outcome_sentences,
    orientation_text,
    outcomes_text,
    power_note,
    protocol_line,
    read_answers,
    read_runs,
    side_by_side_rows,
    study_conclusions,
    study_notes,
    study_text,
)
from .shifts.cells import decoded_columns


@dataclass(frozen=True)
class Evidence:
    "What the pipeline has left of a profile: main tables, runs, answers, and the `folder` with the rest."

    folder: Path
    params: Params
    outcomes: pd.DataFrame
    robustness: pd.DataFrame
    mce: pd.DataFrame
    decoded: pd.DataFrame
    runs: pd.DataFrame
    answers: dict


def read_evidence(params: Params) -> Evidence:
    "The evidence of the profile of `params`; raises `FileNotFoundError` if a main table or runs are missing."
    folder = project_root() / "results" / params.profile
    tables = [
        pd.read_csv(folder / "tables" / f"{name}.csv")
        for name in ("outcomes", "robustness", "mce", "advbn_set")
    ]
    methods = tables[1].method.unique()
    runs, answers = (read(folder.parent, params.profile, methods) for read in (read_runs, read_answers))
    return Evidence(folder, _of_what_was_run(folder, params), *tables, runs, answers)


def _of_what_was_run(folder, params):
    "`params` without the studies of which there is no table (yet)."
    lacking = [name for name in params.run_studies if not _has_rows(folder / "tables" / f"{name}.csv")]
    left_out = {name: params.studies[name].model_copy(update={"left_out": True}) for name in lacking}
    return params.model_copy(update={"studies": params.studies | left_out})


def _has_rows(path):
    return path.exists() and len(pd.read_csv(path)) > 0


def made(results: Path) -> list:
    """How a profile's results came about: a dictionary for each combination of machine, versions and commit,
    with the stages that ran there."""
    groups = {}
    for path in sorted((Path(results) / "made").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if path.stem != "page":  # which cannot tell of itself
            seconds = run.pop("seconds")
            groups.setdefault(tuple(run.items()), {})[path.stem] = seconds
    return [
        {
            **dict(key),
            "Stages": ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in stages.items()),
            "Duration": f"{sum(stages.values()) / 60:.0f} minutes, these stages together",
        }
        for key, stages in groups.items()
    ]


def _figures(folder: Path, captions: dict) -> list:
    "The figures that there are, as text that a page can hold; `captions` maps their names to captions."
    return [
        {"data": base64.b64encode((folder / f"{name}.png").read_bytes()).decode(), "caption": caption}
        for name, caption in captions.items()
        if (folder / f"{name}.png").exists()
    ]


def _with_unpublished(table: Table) -> Table:
    "A table of which no number was published, with a column that says so."
    return table.with_column("published", ["not available"] * len(table.rows))


def _notes(table: pd.DataFrame) -> str:
    "How a table of accuracies is read, and what it could have shown."
    star = "* marks the branch that the paper's evaluation uses for the column."
    return " ".join(
        filter(None, [accuracy_note(table, "coloured"), star, power_note(table, "in a secondary comparison")])
    )


def _robustness(found: Evidence) -> dict:
    "The section of Table 1."
    captions = {
        "robustness": "The outcomes named in advance, and every difference to the clean fine-tune.",
        "corruptions": "Differences to the clean fine-tune on each corruption, all secondary.",
    }
    return {
        "id": "robustness",
        "title": "Robustness",
        "first": outcomes_text(found.outcomes, found.params) if len(found.outcomes) else None,
        "about_first": " ".join(outcome_notes(found.outcomes)),
        "table": accuracy_text(found.robustness, found.params, columns_in(found.robustness)),
        "note": f"{protocol_line(found.params)} {_notes(found.robustness)} {origin(found.runs)}",
        "figures": _figures(found.folder / "figures", captions),
    }


def _corruption_errors(found: Evidence) -> dict:
    "The section of mCE."
    baseline = baseline_label(found.params, found.mce.baseline.iloc[0])
    return {
        "id": "mce",
        "title": "Corruption errors",
        "table": errors_text(found.mce, found.params),
        "note": f"Lower is better; 100 % is {baseline}'s error. {origin(found.runs, ('corruptions',))} "
        "Published numbers are beside ours in the next table.",
    }


def _published(found: Evidence) -> dict:
    "The section of the published numbers beside ours."
    params, other = found.params, ""
    if not params.current.data.alexnet:
        other = (
            f"Ours: {params.profile}, {params.current.network.name}; other images and another network, so "
            f"the differences are no measure of fidelity."
        )
    head = ["", "column", "published", "ours", "difference"]
    return {
        "id": "published",
        "title": "Published and ours",
        "table": Table(head, side_by_side_rows(found.robustness, found.mce, params)),
        "note": f"Published: ImageNet, ResNet-50, the official code's README. {other} AdvBN and random "
        "statistics: on the branch that the paper's evaluation uses.",
    }


def _elsewhere(found: Evidence) -> dict | None:
    "The section of what others published on the same images, or `None`."
    table = orientation_text(found.robustness, found.params)
    if not table:
        return None
    return {"id": "published", "title": "Published elsewhere", "table": table, "note": ORIENTATION_NOTE}


def _study(found: Evidence, name: str) -> dict | None:
    "The section of a study, or `None` if it has not been run."
    path = found.folder / "tables" / f"{name}.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    if table.empty:
        return None
    caption = (
        "What each row gains on the mean of the shifts, adversarial branch, against what its step costs; "
        "open where nothing is shown after Holm's correction."
    )
    return {
        "id": name,
        "title": found.params.studies[name].title,
        "table": _with_unpublished(study_text(table, found.params)),
        "conclusions": study_conclusions(table, found.params),
        "note": " ".join(study_notes(table, found.params, "coloured")),
        "figures": _figures(found.folder / "figures", {name: caption}),
    }


PICTURES = {
    "adversarial_images": "Originals, reconstructions and adversarial images.",
    "predictions": "One image under every shift, with the likeliest classes.",
}


def _adversarial_images(found: Evidence) -> dict:
    "The section of Table 5."
    return {
        "id": "advbn_set",
        "title": "Adversarial images",
        "table": _with_unpublished(accuracy_text(found.decoded, found.params, decoded_columns())),
        "note": _notes(found.decoded),
        "figures": _figures(found.folder / "figures", PICTURES),
    }


def _images(found: Evidence) -> dict:
    "The section of images to look at, where there is no table of adversarial ones."
    data = found.params.current.data
    instead = f"The images of {data.title} are not passed on; free photographs take their place."
    return {
        "id": "images",
        "title": "Images",
        "note": instead if data.name in WITHHELD else None,
        "figures": _figures(found.folder / "figures", PICTURES),
    }


def _lead(params: Params, note: str | None) -> str:
    "The sentences at the top of the page."
    network = params.current.network
    return (
        f"Image classifiers that stay right when the style changes: AdvBN (Shu, Wu, Goldblum, Goldstein, "
        f"NeurIPS 2021), computed anew on the profile {params.profile}: {network.name}, cut after "
        f"{network.after}. {note or ''}"
    )


def _perturbations(found: Evidence) -> dict | None:
    "The section of what the attack takes of an image, or `None` if it was not measured."
    path = found.folder / "tables" / "perturbations.csv"
    if not path.exists():
        return None
    return {
        "id": "perturbations",
        "title": "Style or shape",
        "table": perturbations_text(pd.read_csv(path)),
        "note": PERTURBATIONS_NOTE,
    }


def _results(found: Evidence) -> list:
    "The sections of results, in their order; those of shifts that the profile has not are left out."
    studies = (_study(found, name) for name in found.params.studies)
    corrupted = [_elsewhere(found)] if found.mce.empty else [_corruption_errors(found), _published(found)]
    decoded = [_images(found)]
    if not found.decoded.empty:
        decoded = [_adversarial_images(found), _perturbations(found)]
    return [section for section in (_robustness(found), *corrupted, *studies, *decoded) if section]


def _verdicts(found: Evidence) -> list:
    "The claims with their verdicts, marks and numbers, as the first screen shows them."
    table = claims_table(found.params, found.folder.parent, [found.params.profile])
    told = []
    for claim in CLAIMS:
        rows = table[table.claim == claim.name]
        word = rows.verdict.iloc[0]
        told.append({"says": claim.says, "verdict": word, "mark": VERDICTS[word], "number": number(rows)})
    return told


def _methodology(found: Evidence) -> list:
    "The sections on protocol, data and settings."
    params = found.params
    return [
        {
            "id": "protocol",
            "title": "Differences of protocol",
            "table": report.protocol(params, found.runs),
        },
        {"id": "data", "title": "Data", "table": report.data_table(found.folder, params)},
        {
            "id": "settings",
            "title": "Settings",
            "table": report.settings_table(params),
            "note": report.training_runs(params, found.runs.seed.nunique()),
        },
    ]


def _speed() -> dict | None:
    "The section of speed, machine by machine, or `None` where no machine is on record."
    records = kept_records()
    if not records:
        return None
    table, title = report.speed_table(records), "Speed, machine by machine"
    return {"id": "speed", "title": title, "table": table, "note": report.SPEED}


def build_page(params: Params) -> str:
    """The HTML of the profile's page, from its tables, its figures and how they were made.

    Raises `FileNotFoundError` if a main table, runs, or the record of its parameters are missing."""
    from jinja2 import Environment

    found = read_evidence(params)
    used = json.loads((found.folder / "parameters.json").read_text(encoding="utf-8"))
    source = resources.files("advbn").joinpath("page.html").read_text(encoding="utf-8")
    compared = comparisons(found.folder, params)
    template = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True).from_string(source)
    return template.render(
        title=f"AdvBN, {params.profile}: six claims, and every table and figure",
        lead=_lead(params, used["settings"]["note"]),
        seeds=", ".join(map(str, sorted(found.runs.seed.unique()))),
        verdicts=_verdicts(found),
        rules=RULES,
        lower=differences(compared, "lower"),
        higher=differences(compared, "higher"),
        dagger=DAGGER,
        scope=report.scope(found.params),
        claims={"id": "claims", "table": report.claims_tested()},
        methodology=_methodology(found),
        commands=report.commands(params),
        conclusions=[
            *outcome_sentences(found.outcomes, params),
            *conclusions(found.robustness, params),
            *comparison(found.answers, params),
            *comparison(found.answers, params, "fast", "advbn"),
        ],
        results=_results(found),
        easy=report.EASY,
        difficult=report.DIFFICULT,
        communication=report.COMMUNICATION,
        compute=report.compute(found.folder),
        speed=_speed(),
        checklist={"id": "checklist", "table": report.checklist()},
        made=made(found.folder),
    )
