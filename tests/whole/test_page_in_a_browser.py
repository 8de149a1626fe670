"""The committed page of results in a browser."""

import html
import json
import re
import subprocess

import pandas as pd
import pytest
from conftest import CHROMIUM, ROOT

from advbn.base.config import load_params
from advbn.evidence.tables import columns_in
from advbn.shifts.cells import decoded_columns

PROBE = """<script>window.addEventListener('load', () => {
const first = document.querySelector('#table-ablations tbody td:first-child');
const size = t => [t.tHead.rows.length, t.tBodies[0].rows.length, t.tHead.rows[0].cells.length];
const from = performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'));
const r = {images: [...document.images].map(i => i.complete && i.naturalWidth),
tables: Object.fromEntries([...document.querySelectorAll('table')].map(t => [t.id, size(t)])),
wide: document.documentElement.scrollWidth, window: window.innerWidth, outside: from.length,
label: first.getBoundingClientRect().width};
document.body.innerHTML = '<pre id="probe">' + JSON.stringify(r) + '</pre>'; })</script>"""


PROBE_IN_FRAME = """<!doctype html><body>
<iframe width="{width}" height="800" style="border:0" srcdoc="{page}"></iframe><pre id="probe"></pre><script>
window.addEventListener('message', e => {{ document.getElementById('probe').textContent = e.data; }});
</script></body>"""


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
    shifts = columns_in(pd.read_csv(ROOT / "results/openmoji/tables/robustness.csv"))
    rows = sum(2 if m.train == "adversarial" else 1 for m in params.methods.values())
    assert seen["tables"]["table-robustness"] == [1, rows, 1 + len(shifts)] and seen["tables"][
        "table-advbn_set"
    ] == [1, rows, 2 + len(decoded_columns())]
    assert seen["tables"]["table-robustness-named"] == [1, 2, 4]
    assert seen["tables"]["table-mce"][1] == rows and seen["tables"]["table-published"][1] == len(
        params.methods
    ) * len(shifts)
    for study, section in params.studies.items():
        expected = len(section.bases) * sum(
            2 if m.train == "adversarial" else 1 for m in (params.base_methods | section.methods).values()
        )
        assert seen["tables"][f"table-{study}"] == [1, expected, 2 + len(shifts) + 2]
