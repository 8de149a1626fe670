"""Pages of the site that are not notebooks: README, the API, the promises, the networks, the report; and the
order of everything."""

import csv
import json
import re
import tempfile
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PARTS = {
    "The method": [*range(0, 5), 46],
    "Networks and parameters": range(5, 9),
    "Images and shifts": [*range(9, 20), *range(22, 26)],
    "Training and evaluation": [20, 21, 26, 27, 28, 29, 30, 31],
    "Costs, tables, figures": range(32, 36),
    "Using it": range(36, 46),
}


def numbered():
    return sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


def title(path):
    "The first heading of a notebook."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if found := re.match(r"# (.+)", "".join(cell["source"])):
            return found[1].strip()
    return path.stem


def module(path):
    "The module that a notebook defines, such as `adapters.lightning`."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if found := re.match(r"#\| default_exp (\S+)", "".join(cell["source"])):
            return found[1]


def on_config(config):
    "The order of the pages."
    by_number = {int(p.name[:2]): p for p in numbered()}
    book = [
        {part: [{title(by_number[n]): by_number[n].name} for n in numbers if n in by_number]}
        for part, numbers in PARTS.items()
    ]
    explore = [{title(p): f"explore/{p.name}"} for p in sorted((ROOT / "nbs/explore").glob("*.ipynb"))]
    api = [
        {"advbn" if m == "__init__" else f"advbn.{m}": f"api/{m}.md"}
        for m in map(module, numbered())
        if m and m != "__main__"
    ]
    config.nav = [
        {"advbn": "index.md"},
        *book,
        {"Explore": explore},
        {"Results": "report.md"},
        {"Promises": "promises.md"},
        {"Networks": "networks.md"},
        {"Contributing": "CONTRIBUTING.md"},
        {"Changes": "CHANGELOG.md"},
        {"API": api},
    ]
    return config


def with_formulas(text):
    "TeX between dollars as MathML, which browsers draw without help from elsewhere."
    text = re.sub(
        r"\$\$(.+?)\$\$", lambda m: convert(" ".join(m[1].split()), display="block"), text, flags=re.S
    )
    return re.sub(r"(?<![\\$`])\$([^$`\n]+?)\$(?!\w)", lambda m: convert(m[1]), text)


def for_readers(path, copy):
    """A copy of a notebook without what is meant for nbdev and for machines: directives, and cells that are
    hidden."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    shown = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            if re.match(r"#\| (hide|default_exp)\b", source):
                continue
            cell["source"] = re.sub(r"(?m)^#\| .*\n?", "", source)
        elif cell["cell_type"] == "markdown":
            cell["source"] = re.sub(r"\]\(([\w/.]+)\.ipynb\)", r"](\1.html)", with_formulas(source))
        shown.append(cell)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(json.dumps(notebook | {"cells": shown}), encoding="utf-8")


def linked(text):
    "Links to files of the repository lead to their pages, or to copies of them."
    text = re.sub(r"\]\(nbs/index\.ipynb\)", "](index.md)", text)
    text = re.sub(r"\]\(nbs/?\)", "](00_statistics.ipynb)", text)
    text = re.sub(r"\]\(nbs/([^)]+\.ipynb)\)", r"](\1)", text)
    text = re.sub(
        r"\]\((advbn|results|tests)/?\)",
        lambda m: (
            "](" + {"advbn": "api/__init__.md", "results": "report.md", "tests": "promises.md"}[m[1]] + ")"
        ),
        text,
    )
    return re.sub(r"\]\((LICENSE|[a-z]+\.yaml|data\.dvc)\)", r"](files/\1)", text)


def rows(name):
    "The rows of a table of `results/`, none if it is not there."
    path = ROOT / f"results/{name}.csv"
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def grouped(rows, *columns):
    "The rows by their values in `columns`, in the order in which these come."
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[c] for c in columns), []).append(row)
    return groups


def promises():
    "The table of promises, faults and outcomes."
    lines = [
        "# Promises",
        "",
        "What the software promises, what was tried to break it, and what happened; written by `make "
        "promises` from the tests' outcomes.",
        "",
        "| | promise | faults tried | kept |",
        "|---|---|---|---|",
    ]
    kinds = grouped(rows("promises"), "section", "promise")
    for (section, promise), tried in kinds.items():
        lines.append(
            f"| {section} | {promise} | {len(tried)} | {sum(r['outcome'] == 'kept' for r in tried)} |"
        )
    for section in dict.fromkeys(s for s, _ in kinds):
        lines += ["", f"## {section}"]
        for (s, promise), tried in kinds.items():
            if s == section:
                lines += [
                    "",
                    f"**{promise[0].upper()}{promise[1:]}.**",
                    "",
                    *(f"* {r['fault'].replace('|', '/')}: {r['outcome']}" for r in tried),
                ]
    return "\n".join(lines) + "\n"


def networks():
    "The table of networks, the places at which they were cut, and what came of it."
    found = grouped(rows("zoo"), "library", "family", "network")
    tried, left = (
        {key: cuts for key, cuts in found.items() if bool(key[2]) == named} for named in (True, False)
    )
    working = sum(any(r["outcome"] == "worked" for r in cuts) for cuts in tried.values())
    lines = [
        "# Networks",
        "",
        "From each family of torchvision's and timm's classifiers the smallest network, and the smallest of "
        "another name, cut after three modules that "
        "are drawn anew for each release; written by `make zoo`. A cut that worked has kept all that "
        "`tests/splitting_checks.py` asks of it; every other was refused with "
        f"the reason that is given. Of {len(tried)} networks {working} worked at one place or more.",
        "",
        "| library | family | network | cuts | worked |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {library} | {family} | {network} | {len(cuts)} | {sum(r['outcome'] == 'worked' for r in cuts)} |"
        for (library, family, network), cuts in tried.items()
    ]
    for (library, family, network), cuts in tried.items():
        lines += ["", f"**{network}** ({library})", "", *(f"* `{r['cut']}`: {r['outcome']}" for r in cuts)]
    lines += [
        "",
        *(f"{library}, {family}: {cuts[0]['outcome']}.  " for (library, family, _), cuts in left.items()),
    ]
    return "\n".join(lines) + "\n"


def on_files(files, config):
    "Add the pages that are not notebooks, and the files that they show."

    def add(uri, content):
        files.append(File.generated(config, uri, content=content))

    readable = Path(tempfile.mkdtemp())
    for stage in [f for f in files if f.src_uri.startswith("stages/")]:
        files.remove(stage)  # they have nothing to show before they are run
    for notebook in [f for f in files if f.src_uri.endswith(".ipynb")]:
        for_readers(ROOT / "nbs" / notebook.src_uri, readable / notebook.src_uri)
        notebook.file = File(
            notebook.src_uri, str(readable), config.site_dir, False
        )  # what the plugin that renders notebooks has wrapped
    if index := files.get_file_from_path("index.ipynb"):
        files.remove(index)
    add("index.md", linked((ROOT / "README.md").read_text(encoding="utf-8")))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        add(name, linked((ROOT / name).read_text(encoding="utf-8")))
    add("promises.md", promises())
    add("networks.md", networks())
    add("book.css", (ROOT / "docs/book.css").read_text(encoding="utf-8"))
    pages = sorted((ROOT / "results").glob("*/report.html"))
    add(
        "report.md",
        "# Results\n\nEvery table and figure on one page, for each scale:\n\n"
        + "".join(f"* [{p.parent.name}](results/{p.parent.name}/report.html)\n" for p in pages),
    )
    for path in sorted((ROOT / "results").rglob("*")):
        if path.is_file() and path.suffix in (".png", ".html", ".csv", ".md", ".json"):
            uri = path.relative_to(ROOT).as_posix()
            add(uri, path.read_bytes() if path.suffix != ".md" else path.read_text(encoding="utf-8"))
    for name in ("LICENSE", "params.yaml", "dvc.yaml", "data.dvc"):
        add(f"files/{name}", (ROOT / name).read_bytes())
    for path in numbered():
        name = module(path)
        if name and name != "__main__":
            source = f"{name.replace('.', '/')}.py"
            full = "advbn" if name == "__init__" else f"advbn.{name}"
            up = "../"
            add(
                f"api/{name}.md",
                f"# {full}\n\nDefined and explained in [{title(path)}]({up}{path.name}); "
                f"[source]({up}source/{source}).\n\n::: {full}\n    options:\n      show_root_heading: "
                f"false\n",
            )
            add(f"source/{source}", (ROOT / "advbn" / source).read_bytes())
    return files
