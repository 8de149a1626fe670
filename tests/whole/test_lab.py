"""The notebooks of nbs/explore in a real JupyterLab and a real browser: they run, a slider moves, and the
picture changes."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request

import nbformat
import pytest
from conftest import CHROMIUM, ROOT, borrowed_venv

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def project(miniature, tmp_path_factory):
    "A copy of the pipeline in miniature, and one epoch in the notebook for one's own images."
    folder = shutil.copytree(miniature, tmp_path_factory.mktemp("lab") / "advbn", symlinks=True)
    path = folder / "nbs/explore/your_data.ipynb"
    short = '{\\"pretrain_epochs\\": 1, \\"epochs\\": 1, \\"test_images\\": 60}'  # as JSON holds it
    assert "settings = {}" in path.read_text()
    path.write_text(path.read_text().replace("settings = {}", f"settings = {short}"))
    return folder


@pytest.fixture(scope="module")
def lab(project, once):
    "`make lab` in the copy; its address."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--expose-app-in-browser",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    command = ["make", "lab", f"VENV={once('venv', borrowed_venv)}", f"LAB={' '.join(options)}"]
    with open(project / "lab.log", "w") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "JUPYTER_CONFIG_DIR": str(project / "config"),
                "JUPYTER_DATA_DIR": str(project / "jupyter"),
                "DVC_NO_ANALYTICS": "1",
            },
            cwd=project,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    deadline = time.time() + 180
    while time.time() < deadline:
        try:
            urllib.request.urlopen(f"{address}/api", timeout=1)
            break
        except OSError:
            assert server.poll() is None, (project / "lab.log").read_text()[-3000:]
            time.sleep(0.3)
    yield address
    os.killpg(server.pid, 15)
    server.wait(60)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def notebook(lab, browser, tmp_path_factory):
    "Open a notebook, run all its cells and wait for the last; the page."
    pages = []

    def run(name, timeout=600):
        page = browser.new_page(viewport={"width": 1300, "height": 1500})
        pages.append((name, page))
        page.goto(f"{lab}/lab/tree/explore/{name}.ipynb?reset", wait_until="domcontentloaded")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        page.wait_for_function(
            "window.jupyterapp && window.jupyterapp.shell.currentWidget && "
            "window.jupyterapp.shell.currentWidget.sessionContext"
            " && window.jupyterapp.shell.currentWidget.sessionContext.session"
            " && window.jupyterapp.shell.currentWidget.sessionContext.session.kernel",
            timeout=120_000,
        )
        page.evaluate(
            "() => { window.finished = false; "
            "window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.finished = "
            "true }) }"
        )
        page.wait_for_function("window.finished", timeout=1000 * timeout)
        errors = page.evaluate("""() => {
            const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells;
            const outputs = cells.filter(c => c.cell_type == 'code').flatMap(c => c.getOutputs());
            return outputs.filter(o => o.output_type == 'error').map(o => o.evalue || o.ename) }""")
        assert errors == []
        return page

    yield run
    for name, page in pages:
        if os.environ.get("ADVBN_SCREENS"):
            page.screenshot(path=f"{os.environ['ADVBN_SCREENS']}/{name}.png")
        page.close()


def changes(page, selector, act, timeout=60):
    "`act` changes the picture at `selector`: its source before and after."
    before = page.get_attribute(selector, "src")
    act()
    deadline = time.time() + timeout
    while time.time() < deadline and page.get_attribute(selector, "src") == before:
        time.sleep(0.05)
    return page.get_attribute(selector, "src") != before


def test_the_style_view_follows_its_sliders(notebook):
    page = notebook("styles")
    picture = ".jp-OutputArea-output .widget-image"
    page.wait_for_selector(picture, timeout=120_000)
    page.locator(picture).first.scroll_into_view_if_needed()
    assert page.evaluate("s => document.querySelector(s).naturalWidth", picture) > 300
    for index, key in ((0, "ArrowRight"), (1, "ArrowLeft"), (2, "ArrowLeft")):  # image, strength, steps
        handle = page.locator(".widget-slider .noUi-handle").nth(index)
        handle.focus()
        assert changes(page, picture, lambda: [handle.press(key) for _ in range(5)]), index
    assert changes(
        page, picture, lambda: page.locator(".widget-dropdown select").first.select_option("first quarter")
    )


def test_the_robustness_view_draws_charts_and_mistakes(notebook):
    page = notebook("robustness")
    pictures = ".jp-OutputArea-output .widget-image"
    page.wait_for_selector(pictures, timeout=120_000)
    assert page.locator(pictures).count() == 3 and page.evaluate(
        "s => [...document.querySelectorAll(s)].every(i => i.naturalWidth > 300)", pictures
    )
    charts, mistakes = (f":nth-match({pictures}, {n})" for n in (2, 3))
    assert changes(page, charts, lambda: page.locator(".widget-dropdown select").first.select_option("snow"))
    assert changes(
        page,
        charts,
        lambda: page.locator(".widget-select-multiple select").first.select_option("Clean fine-tune"),
    )
    assert changes(
        page,
        mistakes,
        lambda: page.locator(".widget-dropdown select").nth(2).select_option("corruptions/fog/5"),
    )
    assert changes(
        page,
        mistakes,
        lambda: page.locator(".widget-dropdown select").nth(3).select_option("Clean fine-tune"),
    )


def test_ones_own_network_and_picture(notebook, project):
    page = notebook("robustness")
    page.locator("input[placeholder^='file with a state dict']").fill(
        str(project / "checkpoints/openmoji/advbn/seed0-adversarial.pt")
    )
    page.keyboard.press("Tab")
    picture = next((project / "data/openmoji/flags").glob("*.png"))
    with page.expect_file_chooser() as chooser:
        page.locator(".widget-upload").click()
    chooser.value.set_files(str(picture))
    page.wait_for_function("document.body.innerText.includes('probability, %')", timeout=120_000)


def shown(page):
    "The text of all outputs of a notebook, also of cells that are not in view."
    return page.evaluate("""() => {
        const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells;
        const outputs = cells.filter(c => c.cell_type == 'code').flatMap(c => c.getOutputs());
        return outputs.map(o => o.text || JSON.stringify(o.data)).join('\\n') }""")


def test_ones_own_images_become_a_robust_network(notebook, project, browser):
    said = shown(notebook("your_data"))
    out = project / "sets/robust"
    verdict = next(line for line in (out / "card.md").read_text().splitlines()[2:] if line)
    assert verdict in said and "60 images" in said and said.count("image/png") == 2
    assert "cut            layer1" in said and "advbn-adversarial.safetensors" in said
    page = browser.new_page()
    page.goto((out / "report.html").as_uri())
    assert page.inner_text(".verdict") == verdict and page.locator("table").first.locator("tr").count() == 6
    assert page.locator("figure img").count() >= 12 and page.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth > 50)"
    )
    page.close()


def test_the_numbered_notebooks_are_there_too(lab):
    with urllib.request.urlopen(f"{lab}/api/contents") as answer:
        assert {"method", "explore"} <= {entry["name"] for entry in json.load(answer)["content"]}


def test_the_notebooks_say_what_their_settings_do():
    cells = nbformat.read(ROOT / "nbs/explore/your_data.ipynb", as_version=4).cells
    settings = next(c.source for c in cells if "settings = {}" in c.source).splitlines()
    assert all("#" in line for line in settings if " = " in line)
    assert json.loads((ROOT / "nbs/explore/styles.ipynb").read_text())["cells"][0]["cell_type"] == "markdown"
