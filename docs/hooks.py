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
    "images": "Images",
    "method": "Method",
    "networks": "Networks",
    "shifts": "Shifts",
    "training": "Training",
    "evidence": "Evidence",
    "adapters": "Adapters",
}
HIDDEN = {"_modidx", "__main__"}  # modules that are nobody's to call


def rooms(folder):
    "The notebooks of a folder of `nbs/`: its index, then the others by their numbers or names."
    return sorted((ROOT / "nbs" / folder).glob("*.ipynb"), key=lambda p: (p.stem != "index", p.stem))


def title(path):
    "The first heading of a notebook."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if found := re.match(r"# (.+)", "".join(cell["source"])):
            return found[1].strip()
    return path.stem


def module(path):
    "The module that a notebook defines, such as `adapters.lightning`, or `None`."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if found := re.match(r"#\| default_exp (\S+)", "".join(cell["source"])):
            return found[1]


def modules():
    "Names of modules by part, plain ones under an empty name first; with each the notebook that defines it."
    plain = sorted(p.stem for p in (ROOT / "advbn").glob("*.py") if p.stem not in {"__init__", *HIDDEN})
    inner = sorted(
        f"{folder}.{p.stem}"
        for folder in ("base", "bench")
        for p in (ROOT / "advbn" / folder).glob("*.py")
        if p.stem != "__init__"
    )
    found = {"": dict.fromkeys(["__init__", *inner, *plain])}
    for part in PARTS:
        defined = {module(path): path for path in rooms(part)}
        found[part] = {name: path for name, path in defined.items() if name}
    return found


def full_name(name):
    return "advbn" if name == "__init__" else f"advbn.{name}"


def on_config(config):
    "The order of the pages."

    def pages(folder):
        return [{title(path): f"{folder}/{path.name}"} for path in rooms(folder)]

    api = [
        {PARTS.get(part, "Package"): [{full_name(name): f"api/{name}.md"} for name in names]}
        for part, names in modules().items()
    ]
    config.nav = [
        {"advbn": "index.md"},
        {"Recipes": pages("recipes")},
        *({heading: pages(part)} for part, heading in PARTS.items()),
        {"Explore": pages("explore")},
        {"Choices": pages("choices")},
        {"Results": "report.md"},
        {"Promises": "promises.md"},
        {"Tried networks": "networks.md"},
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
            cell["source"] = re.sub(
                r"\]\(([\w/.]+)\.ipynb(#[^)\s]*)?\)", r"](\1.html\2)", with_formulas(source)
            )
        shown.append(cell)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(json.dumps(notebook | {"cells": shown}), encoding="utf-8")


def linked(text):
    "Links to files of the repository lead to their pages, or to copies of them."
    text = re.sub(r"\]\(nbs/index\.ipynb\)", "](index.md)", text)
    text = re.sub(r"\]\(nbs/?\)", "](method/index.ipynb)", text)
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
    for names in modules().values():
        for name, path in names.items():
            source = f"{name.replace('.', '/')}.py"
            known = (
                f"Defined and explained in [{title(path)}](../{path.parent.name}/{path.name}); "
                if path
                else ""
            )
            add(
                f"api/{name}.md",
                f"# {full_name(name)}\n\n{known}[source](../source/{source}).\n\n::: {full_name(name)}\n"
                f"    options:\n      show_root_heading: false\n",
            )
            add(f"source/{source}", (ROOT / "advbn" / source).read_bytes())
    return files
