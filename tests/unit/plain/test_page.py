"""The page of results in a real browser, and its sentences against its numbers."""

import html
import json
import re
import subprocess

import pandas as pd
import pytest

from advbn.config import load_params
from advbn.evidence.evaluation import mean_interval
from advbn.page import build_page, comparison, conclusions, side_by_side_rows, verdict
from advbn.shifts.cells import DECODED, SHIFTS
from conftest import CHROMIUM, RECORDED, ROOT

PROBE = """<script>window.addEventListener('load', () => { const first = document.querySelector('#table-ablations tbody td:first-child'); const r = {images: [...document.images].map(i => i.complete && i.naturalWidth),
tables: Object.fromEntries([...document.querySelectorAll('table')].map(t => [t.id, [t.tHead.rows.length, t.tBodies[0].rows.length, t.tHead.rows[0].cells.length]])),
wide: document.documentElement.scrollWidth, window: window.innerWidth, outside: performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length,
label: first.getBoundingClientRect().width};
document.body.innerHTML = '<pre id="probe">' + JSON.stringify(r) + '</pre>'; })</script>"""


PROBE_IN_FRAME = """<!doctype html><body><iframe width="{width}" height="800" style="border:0" srcdoc="{page}"></iframe><pre id="probe"></pre>
<script>window.addEventListener('message', e => {{ document.getElementById('probe').textContent = e.data; }});</script></body>"""


def look(page, folder, width):
    "What a headless browser makes of a page at a window's width."
    page = page.replace("</body>", PROBE + "</body>")
    if width < 500:  # no window is narrower; a frame may be
        told = PROBE_IN_FRAME.format(
            width=width,
            page=html.escape(
                page.replace(
                    "document.body.innerHTML = '<pre id=\"probe\">' + JSON.stringify(r) + '</pre>'",
                    "parent.postMessage(JSON.stringify(r), '*')",
                ),
                quote=True,
            ),
        )
    (folder / "page.html").write_text(told if width < 500 else page, encoding="utf-8")
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--window-size={max(width, 500)},900",
            "--virtual-time-budget=10000",
            f"--user-data-dir={folder / 'profile'}",
            "--dump-dom",
            (folder / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return json.loads(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)[1])


@pytest.fixture(scope="module")
def committed():
    return (ROOT / "results/openmoji/report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1200, 375])
def test_every_picture_loads_and_every_table_has_its_rows(committed, tmp_path, width):
    params = load_params()
    seen = look(committed, tmp_path, width)
    assert len(seen["images"]) == 4 + len(params.studies) and all(w > 300 for w in seen["images"])
    assert seen["outside"] == 0 and seen["wide"] <= seen["window"] and seen["window"] in (width, width - 15)
    assert width > 500 or seen["label"] < width / 2  # a long label leaves room for numbers
    rows = sum(2 if m.train == "adversarial" else 1 for m in params.methods.values())
    assert seen["tables"]["table-robustness"] == [1, rows, 1 + len(SHIFTS)] and seen["tables"][
        "table-advbn_set"
    ] == [1, rows, 2 + len(DECODED)]
    assert seen["tables"]["table-mce"][1] == rows and seen["tables"]["table-published"][1] == len(
        params.methods
    ) * len(SHIFTS)
    for study, section in params.studies.items():
        expected = len(section.bases) * sum(
            2 if m.train == "adversarial" else 1 for m in (params.base_methods | section.methods).values()
        )
        assert seen["tables"][f"table-{study}"] == [1, expected, 2 + len(SHIFTS) + 2]


@pytest.mark.parametrize("profile", RECORDED)
def test_the_committed_page_is_what_the_committed_files_give(profile):
    page = (ROOT / "results" / profile / "report.html").read_text(encoding="utf-8")
    assert build_page(load_params().model_copy(update={"profile": profile})) == page
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)


@pytest.mark.parametrize(
    "difference, interval, word",
    [
        (1.0, 0.9, "higher"),
        (-1.0, 0.9, "lower"),
        (1.0, 1.0, "no difference shown"),
        (0.5, float("nan"), "one seed, no interval"),
        (float("nan"), float("nan"), "one seed, no interval"),
    ],
)
def test_verdicts(difference, interval, word):
    assert verdict(difference, interval) == word


def test_conclusions_follow_the_numbers():
    params = load_params()
    rows = [
        {"method": "advbn", "branch": "clean", "shift": s, "difference": d, "difference_ci95": 1.0}
        for s, d in zip(SHIFTS, (2, -2, 0.5, 3, 0.2))
    ]
    said = conclusions(pd.DataFrame(rows), params)
    assert said == [
        "AdvBN, clean branch, against clean fine-tune: higher on Clean (+2.0 ± 1.0), on Sketch (+3.0 ± 1.0).",
        "AdvBN, clean branch, against clean fine-tune: lower on -C (-2.0 ± 1.0).",
        "AdvBN, clean branch, against clean fine-tune: no difference shown on Instagram (+0.5 ± 1.0), on "
        "Stylized (+0.2 ± 1.0).",
    ]


def test_what_the_attack_adds_is_paired_by_seed_and_branch():
    params = load_params()
    rows = [
        {
            "method": m,
            "branch": b,
            "shift": s,
            "cell": "c",
            "seed": seed,
            "accuracy": 50 + 5 * seed + (3 + seed) * (m == "advbn" and b == "adversarial"),
        }
        for m in ("random", "advbn", "fast")
        for b in ("clean", "adversarial")
        for s in SHIFTS
        for seed in (0, 1, 2)
    ]
    said = comparison(pd.DataFrame(rows), params)
    mean, interval = mean_interval([3, 4, 5])
    assert (
        said[0].startswith(
            "AdvBN against random statistics, clean branch: no difference shown on Clean (+0.0 ± 0.0)"
        )
        and len(said) == 2
    )
    assert said[1].startswith(
        f"AdvBN against random statistics, adversarial branch: higher on Clean ({mean:+.1f} ± {interval:.1f})"
    )
    said = comparison(pd.DataFrame(rows), params, "fast", "advbn")
    assert said[1].startswith(
        f"AdvBN, fast recipe against AdvBN, adversarial branch: lower on Clean ({-mean:+.1f} ± "
        f"{interval:.1f})"
    )
    assert comparison(pd.DataFrame(rows), params, "fast", "nothing") == []


def test_nothing_published_is_said_so():
    params = load_params()
    table, mce = (pd.read_csv(ROOT / f"results/openmoji/tables/{name}.csv") for name in ("robustness", "mce"))
    rows = side_by_side_rows(table, mce, params)
    assert (
        {r[2] for r in rows if r[0].startswith("Random")}
        == {r[4] for r in rows if r[0] == "Clean fine-tune"}
        == {"not available"}
    )
    assert ("AdvBN, adversarial branch", "Sketch", "27.9") in [r[:3] for r in rows]
