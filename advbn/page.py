"""Every table and figure of a profile on one self-contained page, with what was published, what was measured,
and what follows."""

import base64
import json
import math
from pathlib import Path

import pandas as pd

from .base.config import Params
from .evidence.evaluation import mean_interval
from .evidence.tables import (
    CONTROL,
    measured,
    origin,
    PAPER_BRANCH,
    PUBLISHED,
    read_runs,
    row_label,
    rows_of,
    shift_means,
    signed,
    STUDY_COLUMNS,
    study_label,
    study_notes,
    study_rows,
    TITLES,
)
from .base.files import project_root
from .shifts.cells import DECODED, SHIFTS


def verdict(difference: float, interval: float) -> str:
    """What a paired difference and its 95 % interval say: `higher`, `lower`, `no difference shown`, or `one
    seed, no interval`."""
    if math.isnan(interval):
        return "one seed, no interval"
    if not abs(difference) > interval:
        return "no difference shown"
    return "higher" if difference > 0 else "lower"


def _sentences(rows, whose, names) -> list:
    """A sentence for each verdict on rows with `difference` and `difference_ci95`: higher, lower, no
    difference shown."""
    said = {}
    for r, name in zip(rows.itertuples(), names):
        said.setdefault(verdict(r.difference, r.difference_ci95), []).append(
            f"{name} ({signed(r.difference, r.difference_ci95).strip('()*')})"
        )
    return [f"{whose}: {word} {', '.join(found)}." for word, found in sorted(said.items())]


def conclusions(table: pd.DataFrame, params: Params, method: str = "advbn") -> list:
    "A sentence for each verdict about `method`, branch by branch, on the columns of the robustness table."
    sentences = []
    for branch, rows in table[(table.method == method) & table["shift"].isin(SHIFTS)].groupby(
        "branch", sort=False
    ):
        whose = (
            f"{params.methods[method].label}, {branch} branch, against "
            f"{params.methods[CONTROL].label.lower()}"
        )
        sentences += _sentences(rows, whose, [f"on {TITLES[s]}" for s in rows["shift"]])
    return sentences


def _inside(label):
    "A label in the middle of a sentence: small, unless it is a name such as AdvBN."
    return label if any(c.isupper() for c in label[1:]) else label.lower()


def comparison(runs: pd.DataFrame, params: Params, method: str = "advbn", rival: str = "random") -> list:
    """Sentences about `method` against `rival` on the same branch, paired by seed; none if one of them is
    missing.

    AdvBN against random factors is what the adversary adds, the fast recipe against AdvBN what it costs."""
    if not {method, rival} <= set(params.methods) & set(runs.method):
        return []
    means, sentences = shift_means(runs[runs["shift"].isin(SHIFTS)]), []
    for branch in ("clean", "adversarial"):
        own, other = (
            means[(means.method == m) & (means.branch == branch)].set_index(["shift", "seed"]).accuracy
            for m in (method, rival)
        )
        found = [mean_interval((own - other)[shift]) for shift in SHIFTS]
        rows = pd.DataFrame(found, columns=["difference", "difference_ci95"])
        sentences += _sentences(
            rows,
            f"{params.methods[method].label} against {_inside(params.methods[rival].label)}, {branch} branch",
            [f"on {TITLES[s]}" for s in SHIFTS],
        )
    return sentences


def study_conclusions(table: pd.DataFrame, params: Params) -> list:
    """The same about a study's rows, on the mean of their shifts, against the clean fine-tune of the same
    base and cut."""
    rows = table[(table["shift"] == "mean") & table.difference.notna()]
    names = [
        study_label(params, r.study, r.base, r.method, remark=False)
        + (f", {r.branch} branch" if r.branch == "adversarial" else "")
        for r in rows.itertuples()
    ]
    return _sentences(
        rows,
        "Mean of the shifts, against the clean fine-tune of the same base and cut",
        [f"for {n}" for n in names],
    )


_PUBLISHED_AS = {
    "standard": "Standard training",
    "advbn": "AdvBN",
}  # the methods of which the official README gives numbers


def side_by_side_rows(table: pd.DataFrame, mce: pd.DataFrame, params: Params) -> list:
    """Rows `(label, column, published, ours, difference)` of every method on the branch that the paper's
    evaluation uses, as text; `not available` where nothing was published that can be cited."""
    rows = []
    for method in params.methods:
        if method not in set(table.method):
            continue
        two = params.methods[method].train == "adversarial"
        for shift in SHIFTS:
            branch = PAPER_BRANCH[shift] if two else "clean"
            if shift == "corruptions":
                r = mce[(mce.method == method) & (mce.branch == branch)].iloc[0]
                baseline = "AlexNet" if r.baseline == "alexnet" else params.methods[r.baseline].label.lower()
                column, ours, interval, comparable = (
                    f"-C: mCE against {baseline}",
                    r.mce,
                    r.mce_ci95,
                    r.baseline == "alexnet",
                )
            else:
                r = table[
                    (table.method == method) & (table.branch == branch) & (table["shift"] == shift)
                ].iloc[0]
                column, ours, interval, comparable = TITLES[shift], r.accuracy, r.ci95, True
            published = PUBLISHED.get(_PUBLISHED_AS.get(method), {}).get(shift)
            difference = (
                "not available"
                if published is None
                else f"{ours - published:+.1f}"
                if comparable
                else "not comparable"
            )
            rows.append(
                (
                    row_label(params, method, branch, two),
                    column,
                    "not available" if published is None else f"{published:.1f}",
                    measured(ours, interval),
                    difference,
                )
            )
    return rows


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


_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #157f3b; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --good: #6fdc8c; --bad: #ff8389 } }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 78rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; line-height: 1.25 } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas } tr:hover td { background: var(--soft) }
td b.higher { color: var(--good) } td b.lower { color: var(--bad) } td small { opacity: .75 }
figure { margin: 1.2rem 0; overflow-x: auto } img { width: 100%; min-width: 34rem; max-width: 62rem; height: auto; background: #fff; border-radius: 4px } figcaption, .note { font-size: .86rem; opacity: .8 } dt { font-weight: 600 } dd { margin: 0 0 .4rem }
@media (max-width: 40rem) { th:first-child, td:first-child { white-space: normal; min-width: 7.5rem; max-width: 7.5rem; overflow-wrap: break-word } th, td { padding: .3rem .45rem } }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
<p>Seeds {{ seeds }}; the further tables say how many of them they take.</p>
<h2>What the numbers say</h2><ul>{% for s in conclusions %}<li>{{ s }}</li>{% endfor %}</ul>
{% for section in sections %}<h2 id="{{ section.id }}">{{ section.title }}</h2>
{% if section.table %}<div class="wide"><table id="table-{{ section.id }}"><thead><tr>{% for h in section.table.head %}<th>{{ h }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in section.table.rows %}<tr>{% for cell in row %}<td>{% if cell is mapping %}{{ cell.value }}{% if cell.difference %} <small>
{% if cell.verdict == "no difference shown" %}{{ cell.difference }}{% else %}<b class="{{ cell.verdict }}">{{ cell.difference }}</b>{% endif %}</small>{% endif %}{% else %}{{ cell }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if section.conclusions %}<ul>{% for s in section.conclusions %}<li>{{ s }}</li>{% endfor %}</ul>{% endif %}
{% if section.note %}<p class="note">{{ section.note }}</p>{% endif %}
{% for f in section.figures %}<figure><img alt="{{ f.caption }}" src="data:image/png;base64,{{ f.data }}"><figcaption>{{ f.caption }}</figcaption></figure>{% endfor %}
{% endfor %}
<h2 id="made">How it was made</h2>{% for part in made %}<dl>{% for k, v in part.items() %}<dt>{{ k }}</dt><dd>{{ v }}</dd>{% endfor %}</dl>{% endfor %}
</body></html>
"""


def _cells(rows, shifts, marked=()):
    found = []
    for shift in shifts:
        r = rows.loc[shift]
        found.append(
            {
                "value": measured(r.accuracy, r.ci95) + ("*" if shift in marked else ""),
                "difference": signed(r.difference, r.difference_ci95).replace("*", ""),
                "verdict": verdict(r.difference, r.difference_ci95),
            }
        )
    return found


def _figures(folder, captions):
    return [
        {"data": base64.b64encode((folder / f"{name}.png").read_bytes()).decode(), "caption": caption}
        for name, caption in captions.items()
        if (folder / f"{name}.png").exists()
    ]


def _accuracy(table, params, shifts, *more):
    "`more` are the titles and texts of further columns."
    rows = []
    for method, branch, two, found in rows_of(table):
        marked = [s for s in shifts if two and PAPER_BRANCH.get(s) == branch]
        rows.append(
            [
                row_label(params, method, branch, two),
                *_cells(found, shifts, marked),
                *(text for _, text in more),
            ]
        )
    return {
        "head": ["accuracy in %", *(TITLES[s] for s in shifts), *(title for title, _ in more)],
        "rows": rows,
    }


def _how(seeds):
    "A sentence on seeds and intervals."
    return (
        f"{seeds} seeds, 95 % Student intervals; in brackets the paired difference to the clean fine-tune, "
        f"coloured where the interval excludes zero."
        if seeds > 1
        else "One seed, hence no intervals; in brackets the difference to the clean fine-tune."
    )


_NONE = ("published", "not available")


def _study(results, params, name):
    "A study's section, or `None` if it has not been run."
    path = results / "tables" / f"{name}.csv"
    table = pd.read_csv(path) if path.exists() else pd.DataFrame()
    if table.empty:
        return None
    return {
        "id": name,
        "title": params.studies[name].title,
        "note": " ".join(study_notes(table, params)),
        "conclusions": study_conclusions(table, params),
        "table": {
            "head": [
                "accuracy in %",
                "cost",
                *(TITLES.get(s, "Mean of shifts") for s in STUDY_COLUMNS),
                _NONE[0],
            ],
            "rows": [
                [label, f"{cost:.2f}", *_cells(rows, STUDY_COLUMNS), _NONE[1]]
                for label, cost, rows in study_rows(table, params)
            ],
        },
        "figures": _figures(
            results / "figures",
            {
                name: "What each row gains on the mean of the shifts, adversarial branch, against what its "
                "step costs."
            },
        ),
    }


def build_page(params: Params) -> str:
    """The HTML of the profile's page, from its tables, its figures and how they were made. Raises
    `FileNotFoundError` if a main table, or the record of its parameters, is missing."""
    from jinja2 import Environment

    results = project_root() / "results" / params.profile
    table, mce, decoded = (
        pd.read_csv(results / "tables" / f"{name}.csv") for name in ("robustness", "mce", "advbn_set")
    )
    used = json.loads((results / "parameters.json").read_text(encoding="utf-8"))
    runs, seeds = read_runs(results.parent, params.profile, table.method.unique()), table.seeds.iloc[0]
    baseline = (
        "AlexNet" if mce.baseline.iloc[0] == "alexnet" else params.methods[mce.baseline.iloc[0]].label.lower()
    )
    sections = [
        {
            "id": "robustness",
            "title": "Robustness",
            "table": _accuracy(table, params, SHIFTS),
            "note": f"{_how(seeds)} * marks the branch that the paper's evaluation uses for the column. "
            f"{origin(runs)}",
            "figures": _figures(
                results / "figures",
                {
                    "robustness": "Differences to the clean fine-tune.",
                    "corruptions": "Differences on each corruption.",
                },
            ),
        },
        {
            "id": "mce",
            "title": "Corruption errors",
            "note": f"Lower is better; 100 % is {baseline}'s error. {origin(runs, ('corruptions',))} "
            "Published numbers are beside ours in the next table.",
            "table": {
                "head": ["in %", "mCE", "unnormalised mean error", "baseline"],
                "rows": [
                    [
                        row_label(params, r.method, r.branch, (mce.method == r.method).sum() > 1),
                        measured(r.mce, r.mce_ci95),
                        measured(r.mean_error, r.mean_error_ci95),
                        baseline,
                    ]
                    for r in mce.itertuples()
                ],
            },
        },
        {
            "id": "published",
            "title": "Published and ours",
            "note": "Published: ImageNet, ResNet-50, the official code's README. "
            + (
                ""
                if params.current.data.name == "imagenet"
                else f"Ours: {params.profile}, {params.current.network.name}; other images and another "
                f"network, so the differences are no measure of fidelity."
            )
            + " AdvBN and random statistics: on the branch that the paper's evaluation uses.",
            "table": {
                "head": ["", "column", "published", "ours", "difference"],
                "rows": side_by_side_rows(table, mce, params),
            },
        },
        *filter(None, (_study(results, params, name) for name in params.studies)),
        {
            "id": "advbn_set",
            "title": "Adversarial images",
            "table": _accuracy(decoded, params, DECODED, _NONE),
            "note": f"{_how(seeds)} * marks the branch that the paper's evaluation uses.",
            "figures": _figures(
                results / "figures",
                {
                    "adversarial_images": "Originals, reconstructions and adversarial images.",
                    "predictions": "One image under every shift, with the likeliest classes.",
                },
            ),
        },
    ]
    lead = (
        f"Image classifiers that stay right when the style changes: AdvBN (Shu, Wu, Goldblum, Goldstein, "
        f"NeurIPS 2021), computed anew on the profile "
        f"{params.profile}: {params.current.network.name}, cut after {params.current.network.after}. "
        f"{used['settings']['note'] or ''}"
    )
    return (
        Environment(autoescape=True)
        .from_string(_TEMPLATE)
        .render(
            title=f"AdvBN, {params.profile}: every table and figure",
            lead=lead,
            sections=sections,
            made=made(results),
            conclusions=conclusions(table, params)
            + comparison(runs, params)
            + comparison(runs, params, "fast", "advbn"),
            seeds=", ".join(map(str, sorted(runs.seed.unique()))),
        )
    )
