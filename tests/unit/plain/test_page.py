"""The page of results: verdicts, conclusions, and that it is what the committed files give."""

import html
import re

import pandas as pd
import pytest
import yaml
from conftest import RECORDED, ROOT

from advbn.base.config import load_params
from advbn.evidence.claims import CLAIMS, VERDICTS, claims_table, comparisons, differences, number
from advbn.evidence.intervals import mean_interval, verdict
from advbn.evidence.tables import comparison, conclusions, side_by_side_rows
from advbn.page import build_page, made
from advbn.shifts.cells import columns, title


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
        for s, d in zip(columns(), (2, -2, 0.5, 3, 0.2))
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
        for s in columns()
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


def tables():
    return ROOT / "results" / load_params().profile / "tables"


def test_the_conclusions_name_every_shift_once_for_each_branch():
    said = conclusions(pd.read_csv(tables() / "robustness.csv"), load_params())
    for branch in ("clean", "adversarial"):
        own = [s for s in said if s.startswith(f"AdvBN, {branch} branch, against clean fine-tune: ")]
        words = "".join(own)
        assert own and all(words.count(f"on {title(shift)} (") == 1 for shift in columns())
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
    assert (page.count("<table"), page.count("<img")) == (7 + 6, 7) and len(page) > 500_000


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
        assert said and said == [" ".join(s.split()) for s in differences(compared, side)]


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
