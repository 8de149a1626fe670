"""The page of results: verdicts, conclusions, and that it is what the committed files give."""

import html
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import RECORDED, ROOT

from advbn.base.config import load_params
from advbn.evidence.claims import CLAIMS, VERDICTS, claims_table, comparisons
from advbn.evidence.claims import differences as went
from advbn.evidence.claims import number
from advbn.evidence.intervals import differences, holm, on_branch, two_way
from advbn.evidence.tables import columns_in, comparison, conclusions, side_by_side_rows
from advbn.bench.record import kept_records, machine_path, record_of, write_record
from advbn.page import _images, _speed, build_page, made, read_evidence
from advbn.shifts.cells import columns, title


@pytest.mark.parametrize("profile", RECORDED)
def test_the_committed_page_is_what_the_committed_files_give(profile):
    page = (ROOT / "results" / profile / "report.html").read_text(encoding="utf-8")
    assert build_page(load_params(profile)) == page
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", page)


def test_photographs_stand_for_images_that_are_not_passed_on():
    found = read_evidence(load_params())
    images = _images(replace(found, params=load_params("pacs")))
    assert images["note"].startswith("The images of PACS are not passed on") and len(images["figures"]) == 2
    assert _images(found)["note"] is None


def test_conclusions_follow_the_numbers():
    params = load_params()
    rows = [
        {
            "method": "advbn",
            "branch": "clean",
            "shift": s,
            "difference": d,
            "difference_ci95": 1.0,
            "p_holm": p,
        }
        for s, d, p in zip(columns("openmoji"), (2, -2, 0.5, 3, 1.2), (0.01, 0.02, 0.5, 0.001, 0.06))
    ]
    said = conclusions(pd.DataFrame(rows), params)
    assert said == [
        "AdvBN, clean branch, against clean fine-tune: higher on Clean (+2.0 ± 1.0), on Sketch (+3.0 ± 1.0).",
        "AdvBN, clean branch, against clean fine-tune: lower on -C (-2.0 ± 1.0).",
        "AdvBN, clean branch, against clean fine-tune: no difference shown on Instagram (+0.5 ± 1.0), on "
        "Stylized (+1.2 ± 1.0).",
    ]


def test_what_the_attack_adds_is_paired_and_corrected():
    params, rng, answers = load_params(), np.random.default_rng(0), {}
    cells = pd.MultiIndex.from_tuples([(shift, "c") for shift in columns("openmoji")])
    for seed in range(3):
        draw = rng.random((50, len(cells)))
        for method in ("random", "advbn", "fast"):
            for branch in ("clean", "adversarial"):
                right = draw < (0.8 if (method, branch) == ("advbn", "adversarial") else 0.4)
                table = pd.DataFrame(right.astype(float), [f"{seed}-{i}" for i in range(50)], cells)
                answers.setdefault(method, {})[seed, branch] = table
    pairs = differences(*(on_branch(answers[m], "adversarial") for m in ("advbn", "random")))
    found = [
        two_way({seed: values[[shift]] for seed, values in pairs.items()}) for shift in columns("openmoji")
    ]
    corrected = holm([1.0] * len(found) + [f.p for f in found])[len(found) :]
    said = comparison(answers, params)
    assert said[0].startswith(
        "AdvBN against random statistics, clean branch: no difference shown on Clean (+0.0 ± 0.0)"
    )
    for shift, estimate, p in zip(columns("openmoji"), found, corrected):
        words = f"on {title(shift)} ({estimate.mean:+.1f} ± {estimate.half_width:.1f})"
        sentence = next(s for s in said[1:] if words in s)
        start = "AdvBN against random statistics, adversarial branch: "
        assert sentence.startswith(start + ("higher" if p < 0.05 else "no difference shown"))
    assert min(corrected) < 0.05
    said = comparison(answers, params, "fast", "advbn")
    assert said[1].startswith("AdvBN, fast recipe against AdvBN, adversarial branch: lower on ")
    assert comparison(answers, params, "fast", "nothing") == []


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


def tables():
    return ROOT / "results" / load_params().profile / "tables"


def test_the_conclusions_name_every_shift_once_for_each_branch():
    table = pd.read_csv(tables() / "robustness.csv")
    said = conclusions(table, load_params())
    for branch in ("clean", "adversarial"):
        own = [s for s in said if s.startswith(f"AdvBN, {branch} branch, against clean fine-tune: ")]
        words = "".join(own)
        assert own and all(words.count(f"on {title(shift)} (") == 1 for shift in columns_in(table))
    assert re.search(r"on Sketch \([+-]\d+\.\d ± \d+\.\d\)", "".join(said))


def test_published_numbers_stand_beside_ours_and_what_cannot_be_compared_is_said():
    table, mce = (pd.read_csv(tables() / f"{name}.csv") for name in ("robustness", "mce"))
    rows = {row[:2]: row[2:] for row in side_by_side_rows(table, mce, load_params())}
    assert len(rows) == 25
    published, ours, difference = rows["AdvBN, clean branch", "Clean"]
    assert published == "77.0" and re.fullmatch(r"\d+\.\d ± \d+\.\d", ours)
    assert float(difference) == pytest.approx(float(ours.split()[0]) - 77.0, abs=0.11)
    published, _, difference = rows["AdvBN, clean branch", "-C: mCE against standard training"]
    assert (published, difference) == ("72.7", "not comparable")
    assert {rows["AdvBN, adversarial branch", column][0] for column in ("Sketch", "Stylized")} == {
        "27.9",
        "11.9",
    }
    for whose in ("Clean fine-tune", "Random statistics, clean branch", "AdvBN, fast recipe, clean branch"):
        assert rows[whose, "Clean"][::2] == ("not available", "not available")


def test_how_the_results_came_about_is_said_by_machine_and_commit():
    groups = [list(group) for group in made(ROOT / "results/openmoji")]
    assert groups
    for names in groups:
        assert names == ["Processor", "GPU", "Python", "Packages", "Commit", "Stages", "Duration"]


def test_the_page_has_every_table_and_figure():
    page = build_page(load_params())
    assert (page.count("<table"), page.count("<img")) == (8 + 6 + 1, 7) and len(page) > 500_000


def test_the_page_marks_what_was_named_in_advance_and_says_what_could_be_shown():
    page = build_page(load_params())
    named, table = page.index('id="table-robustness-named"'), page.index('id="table-robustness"')
    assert named < page.index("◆ Primary: AdvBN against clean fine-tune") < table
    assert page.index("◆ Primary outcome") < page.index("AdvBN, clean branch, against clean fine-tune")
    assert page.count("an effect of 1 point would be shown with probability") == 3 + len(
        load_params().studies
    )


def plain(markup):
    "What a reader sees of some HTML, its spaces as one."
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


@pytest.mark.parametrize("profile", RECORDED)
def test_the_first_screen_has_the_verdicts_in_words_with_their_numbers(profile):
    params = load_params(profile)
    page = build_page(params)
    first = page.split('<ol class="claims">')[1].split("</ol>")[0]
    assert page.index('<ol class="claims">') < page.index('<div class="both">') < page.index("<h2")
    lines = [plain(item) for item in re.findall(r"<li>(.*?)</li>", first, re.S)]
    table = claims_table(params, ROOT / "results", [profile])
    for place, (claim, line) in enumerate(zip(CLAIMS, lines, strict=True), 1):
        rows = table[table.claim == claim.name]
        word = rows.verdict.iloc[0]
        expected = f"{VERDICTS[word]} {word} {place}. {claim.says} {number(rows)}"
        assert line == expected.strip()


def test_what_went_down_stands_beside_what_went_up():
    params = load_params()
    page = build_page(params)
    compared = comparisons(ROOT / "results" / params.profile, params)
    for side in ("lower", "higher"):
        section = page.split(f'<section id="{side}">')[1].split("</section>")[0]
        said = [plain(item) for item in re.findall(r"<li>(.*?)</li>", section, re.S)]
        assert said and said == [" ".join(s.split()) for s in went(compared, side)]


def test_the_report_has_the_order_of_reproducibility_reports():
    page = build_page(load_params())
    names = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert names == [
        "Scope of reproducibility",
        "Methodology",
        "Results",
        "What was easy, what was difficult",
        "Compute",
        "Checklist",
        "How it was made",
    ]
    targets = re.findall(r'href="#(\w+)"', page)
    assert len(targets) == len(names) and all(f'id="{target}"' in page for target in targets)


def test_the_report_names_its_data_and_calls_itself_what_it_is():
    params = load_params()
    page = plain(build_page(params))
    assert "This is a replication at reduced scale" in page
    for digest in pd.read_csv(ROOT / "results/openmoji/tables/data.csv").sha256:
        assert re.fullmatch("[0-9a-f]{64}", digest) and f"SHA-256 {digest}" in page
    assert yaml.safe_load((ROOT / "data.dvc").read_text())["outs"][0]["md5"] in page


def test_machines_stand_side_by_side(tmp_path, monkeypatch):
    (first, *_) = kept_records()
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    assert _speed() is None
    for processor in ("Some, 2 cores", "Other, 4 cores"):
        on = first.benches[0].measured_on.model_copy(update={"processor": processor})
        record = record_of(first.benches[0].model_copy(update={"measured_on": on}))
        write_record(record, machine_path(record.machine))
    write_record(record.model_copy(update={"quick": True}), machine_path(record.machine, quick=True))
    assert [row[0] for row in _speed()["table"].rows] == ["Other, 4 cores", "Some, 2 cores"]


def test_the_page_tells_the_speed_of_each_machine_on_record():
    page = build_page(load_params())
    table = page.split('<table id="table-speed"')[1].split("</table>")[0]
    rows = [plain(row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)]
    machines = {(r.machine, b.settings.device) for r in kept_records() for b in r.benches}
    assert len(rows) == 1 + len(machines) and page.index('id="compute"') < page.index('id="speed"')
