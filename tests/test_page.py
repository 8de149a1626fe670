"""The page of results in a real browser, and its sentences against its numbers."""
import json
import re
import shutil
import subprocess

import pandas as pd
import pytest

from advbn.page import build_page, conclusions, verdict
from advbn.parameters import load_params
from advbn.shifts import DECODED, SHIFTS
from conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>window.addEventListener('load', () => { const r = {images: [...document.images].map(i => i.complete && i.naturalWidth),
tables: Object.fromEntries([...document.querySelectorAll('table')].map(t => [t.id, [t.tHead.rows.length, t.tBodies[0].rows.length, t.tHead.rows[0].cells.length]])),
wide: document.documentElement.scrollWidth, window: window.innerWidth, outside: performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length};
document.body.innerHTML = '<pre id="probe">' + JSON.stringify(r) + '</pre>'; })</script>"""


def look(page, folder, width):
    "What a headless browser makes of a page at a window's width."
    (folder / "page.html").write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--virtual-time-budget=10000",
                           f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "page.html").as_uri()], capture_output=True, text=True, timeout=120)
    return json.loads(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)[1])


@pytest.fixture(scope="module")
def committed():
    return (ROOT / "results/openmoji/report.html").read_text(encoding="utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1200, 500])
def test_every_picture_loads_and_every_table_has_its_rows(committed, tmp_path, width):
    params = load_params()
    seen = look(committed, tmp_path, width)
    assert len(seen["images"]) == 4 + len(params.studies) and all(w > 300 for w in seen["images"])
    assert seen["outside"] == 0 and seen["wide"] <= seen["window"]
    rows = sum(2 if m.train == "adversarial" else 1 for m in params.methods.values())
    assert seen["tables"]["table-robustness"] == [1, rows, 1 + len(SHIFTS)] and seen["tables"]["table-advbn_set"] == [1, rows, 1 + len(DECODED)]
    assert seen["tables"]["table-mce"][1] == rows and seen["tables"]["table-published"][1] == 2 * len(SHIFTS)
    for study, section in params.studies.items():
        expected = len(section.bases) * sum(2 if m.train == "adversarial" else 1 for m in section.methods.values())
        assert seen["tables"][f"table-{study}"] == [1, expected, 2 + len(SHIFTS) + 1]


@pytest.mark.parametrize("profile", ["openmoji", "cifar10"])
def test_the_committed_page_is_what_the_committed_files_give(profile):
    page = (ROOT / "results" / profile / "report.html").read_text(encoding="utf-8")
    assert build_page(load_params().model_copy(update={"profile": profile})) == page
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)


@pytest.mark.parametrize("difference, interval, word", [(1.0, 0.9, "higher"), (-1.0, 0.9, "lower"), (1.0, 1.0, "no difference shown"),
                                                         (0.5, float("nan"), "no difference shown"), (float("nan"), float("nan"), "no difference shown")])
def test_verdicts(difference, interval, word):
    assert verdict(difference, interval) == word


def test_conclusions_follow_the_numbers():
    params = load_params()
    rows = [{"method": "advbn", "branch": "clean", "shift": s, "difference": d, "difference_ci95": 1.0} for s, d in zip(SHIFTS, (2, -2, 0.5, 3, 0.2))]
    said = conclusions(pd.DataFrame(rows), params)
    assert said == ["AdvBN, clean branch, against clean fine-tune: higher on Clean (+2.0 ± 1.0), Sketch (+3.0 ± 1.0).",
                    "AdvBN, clean branch, against clean fine-tune: lower on -C (-2.0 ± 1.0).",
                    "AdvBN, clean branch, against clean fine-tune: no difference shown on Instagram (+0.5 ± 1.0), Stylized (+0.2 ± 1.0)."]
