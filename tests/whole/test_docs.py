"""The site: built without warnings, every link leads somewhere, search answers, light and dark, in a real
browser."""

import functools
import http.server
import os
import threading
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pandas as pd
import pytest
from conftest import CHROMIUM, ROOT

LAYER = next((ROOT / "nbs/method").glob("*_layer.ipynb")).stem  # its number may change


@pytest.fixture(scope="module")
def site(released):
    return released / "_docs"


class Links(HTMLParser):
    "What a page links to and shows, and its anchors."

    def __init__(self):
        super().__init__()
        self.links, self.anchors = [], set()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[k] for k in ("id", "name") if found.get(k)}
        self.links += [found[k] for k in ("href", "src") if found.get(k)]


def test_every_link_leads_somewhere(site):
    pages = {p.relative_to(site).as_posix(): p for p in site.rglob("*.html")}
    read = {}
    for name, path in pages.items():
        read[name] = Links()
        read[name].feed(path.read_text(encoding="utf-8"))
    broken = []
    for name, page in read.items():
        for link in page.links:
            if urlparse(link).scheme or link.startswith("//"):
                continue
            target, anchor = urldefrag(urljoin(f"/{name}", link))
            target = unquote(target).lstrip("/") or "index.html"
            if not (site / target).exists():
                broken.append((name, link))
            elif (
                anchor
                and target in read
                and not anchor.startswith("__")
                and unquote(anchor) not in read[target].anchors
            ):
                broken.append((name, link))
    assert broken == [] and len(pages) > 60
    assert {
        "index.html",
        "method/index.html",
        f"method/{LAYER}.html",
        "api/method.layer.html",
        "api/base.config.html",
        "promises.html",
        "networks.html",
        "explore/styles.html",
        *(f"recipes/{name}.html" for name in ("index", "finetune", "evaluate", "corrupt", "restyle")),
        "results/openmoji/report.html",
        "source/method/layer.py",
    } <= {*pages, "source/method/layer.py"}


def test_every_network_of_the_table_has_its_cuts(site):
    page = (site / "networks.html").read_text(encoding="utf-8")
    table = pd.read_csv(ROOT / "results/zoo.csv").dropna()
    assert (
        all(f"<strong>{name}</strong>" in page for name in table.network)
        and page.count(": worked</li>") == sum(table.outcome == "worked") > 100
    )


def test_api_pages_have_signatures_and_sources(site):
    page = (site / "api/method.layer.html").read_text(encoding="utf-8")
    assert (
        "AdvBN" in page
        and "step_size" in page
        and "Source code" in page
        and "../source/method/layer.py" in page
        and f"../method/{LAYER}.html" in page
    )
    for name in (
        "shifts.corruptions",
        "method.network",
        "method.splitting",
        "evidence.evaluation",
        "adapters.lightning",
    ):
        assert "doc-heading" in (site / f"api/{name}.html").read_text(encoding="utf-8"), name


@pytest.mark.parametrize("name", ["corrupt", "restyle", "evaluate"])
def test_a_recipe_shows_its_pictures_and_its_commands(site, name):
    page = (site / f"recipes/{name}.html").read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in page and f"advbn</span> {name}" in page or f"advbn {name}" in page


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
def test_the_site_in_a_browser(site):
    from playwright.sync_api import sync_playwright

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, failed = browser.new_page(viewport={"width": 1200, "height": 1000}), []
        page.on(
            "requestfailed",
            lambda request: failed.append(request.url) if request.failure != "net::ERR_ABORTED" else None,
        )  # by the next page
        page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
        outside = []
        page.on(
            "request",
            lambda request: (
                outside.append(request.url)
                if not request.url.startswith((address, "data:", "blob:"))
                else None
            ),
        )
        for name in ("index", f"method/{LAYER}", "api/method.layer", "promises", "networks"):
            page.goto(f"{address}/{name}.html", wait_until="load")
            assert (
                page.evaluate(
                    "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
                )
                == []
            )
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            if os.environ.get("ADVBN_SCREENS"):
                page.screenshot(path=f"{os.environ['ADVBN_SCREENS']}/site-{name.replace('/', '-')}.png")
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("label[for^='__palette']:visible").first.click()
        page.wait_for_function(
            "before => getComputedStyle(document.body).backgroundColor != before", arg=light
        )
        page.goto(f"{address}/index.html")
        page.locator("input.md-search__input").click()
        page.locator("input.md-search__input").fill("statistics")
        page.wait_for_selector(".md-search-result__item", timeout=60_000)
        assert failed == [] and outside == []
        browser.close()
    server.shutdown()
