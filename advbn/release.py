"""What a release's page gets, in `dist/`: `make release` writes it. Nothing is uploaded."""

import json
import re
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from . import __version__
from .adapters.pretrained import packed, trained_network
from .base.config import load_params
from .base.errors import DataError, ParameterError, did_you_mean
from .base.files import file_digest, project_root, write_text
from .evidence.figures import WITHHELD
from .evidence.tables import paper_text
from .training.run import load_data, resolve

SUMS, NOTES = "SHA256SUMS", "RELEASE_NOTES.md"
TERMS = "ImageNet's terms of access: research and teaching that are not commercial"
IMAGES = {  # the terms of the images that recorded networks were trained on
    "openmoji": "OpenMoji, CC BY-SA 4.0",
    "imagenet": TERMS,
    "tiny-imagenet": TERMS,
    "pacs": "PACS; its authors state no licence and offer it for research",
}


def about_run(run, params) -> dict:
    """What the project knows of a run, in the words of `adapters.pretrained.About`; classes only where its
    images are."""
    import pandas as pd

    setting = run.setting
    table, made = setting.results / "tables/robustness.csv", setting.results / f"made/method-{run.name}.json"
    said = {
        "data": f"{setting.data.name}, profile {setting.profile}, seed {run.seed}, method {run.method.label}",
        "licence": "apache-2.0",
        "images_licence": IMAGES.get(setting.data.name, "that of their owners"),
    }
    if made.exists():
        said["commit"] = json.loads(made.read_text(encoding="utf-8")).get("Commit")
    if table.exists():
        note = f"Means over all seeds; these weights are those of seed {run.seed}, {run.method.label}."
        said["table"] = f"{paper_text(pd.read_csv(table), params).markdown()}\n\n{note}"
    with suppress(DataError):
        said["classes"] = tuple(load_data(setting).classes)
    return said


def notes(version: str = __version__) -> str:
    """What CHANGELOG says of a version, in Markdown, under its heading; raises `DataError` if it says
    nothing."""
    text = (project_root() / "CHANGELOG.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(version)}(?=[\s,]).*?(?=^## |\Z)", text, re.M | re.S)
    if not found:
        raise DataError(f"CHANGELOG.md has no heading '## {version}'; write down what changed")
    return found[0].strip() + "\n"


def photograph_profiles() -> list:
    "The profiles of `params.yaml` whose networks see photographs."
    params = load_params()
    return [name for name, profile in params.profiles.items() if profile.data.name in WITHHELD]


def _archived(run, params, folder) -> Path:
    "The network of a run as an archive of the folder that `from_pretrained` reads."
    name = f"advbn-{__version__}-{run.setting.profile}-{run.name}-seed{run.seed}"
    with tempfile.TemporaryDirectory() as work:
        own = trained_network(run).save_pretrained(Path(work) / name, **about_run(run, params))
        return packed(own, folder / f"{name}.zip")


def weights(profile: str, folder: Path) -> tuple[list, list]:
    """`(archives, what is missing)`: the trained networks of a recorded profile's main table, of its first
    seed, each with its card, written into `folder`."""
    if not (project_root() / "results" / profile / "metrics.json").exists():
        return [], [f"{profile}: nothing is recorded under results/{profile}"]
    params, archives, missing = load_params(profile), [], []
    for row in params.rows().values():
        run = resolve(params, row, params.seeds[0])
        if not run.method.trains:
            continue
        files = [run.setting.checkpoint(run.name, run.seed, branch) for branch in run.method.branches]
        lost = [file.relative_to(project_root()) for file in files if not file.exists()]
        if lost:
            missing.append(f"{profile}: no {lost[0]}; dvc repro trains it, with that profile in params.yaml")
        else:
            archives.append(_archived(run, params, folder))
    return archives, missing


def built(folder: Path) -> list:
    "Wheel and source archive of this version. Raises `DataError` if they have not been built."
    files = [folder / f"advbn-{__version__}-py3-none-any.whl", folder / f"advbn-{__version__}.tar.gz"]
    for file in files:
        if not file.exists():
            raise DataError(f"no {file}; make dist builds it, and make release calls that first")
    return files


def release(folder: Path, profiles: list | None = None) -> tuple[list, list]:
    """`(files, what is missing)`: wheel, source archive and site, which have to be built, results, notes,
    weights of the `profiles`, by default those of photographs, and `SHA256SUMS` of all of it, in `folder`.

    Archives of the same content are the same files. Raises `DataError` for what has not been built, before
    anything is written."""
    root, files, text = project_root(), built(folder), notes()
    known = load_params().profiles
    profiles = photograph_profiles() if profiles is None else profiles
    if unknown := [name for name in profiles if name not in known]:
        near = did_you_mean(unknown[0], known)
        raise ParameterError(f"no profile {unknown[0]!r} in params.yaml; there are {', '.join(known)}{near}")
    if not (root / "_docs" / "index.html").exists():
        raise DataError("no site in _docs/; make docs builds it, and make release calls that first")
    files.append(packed(root / "_docs", folder / f"advbn-{__version__}-site.zip"))
    files.append(packed(root / "results", folder / f"advbn-{__version__}-results.zip"))
    missing = []
    for profile in profiles:
        archives, lost = weights(profile, folder)
        files, missing = files + archives, missing + lost
    listed = "\n".join(f"{file_digest(file)}  {file.name}" for file in files)
    write_text(f"{text}\n## Files\n\n```\n{listed}\n```\n", folder / NOTES)
    files.append(folder / NOTES)
    write_text("".join(f"{file_digest(file)}  {file.name}\n" for file in files), folder / SUMS)
    return [*files, folder / SUMS], missing


def main():
    "`python -m advbn.release [PROFILE ...]`: write the release and say what is in it, and what is not."
    try:
        files, missing = release(project_root() / "dist", sys.argv[1:] or None)
    except (ValueError, OSError) as error:
        sys.exit(f"release: {error}")
    for file in files:
        print(f"{file.relative_to(project_root())}: {file.stat().st_size / 1e6:,.1f} MB")
    for line in missing:
        print(f"not in it: weights of {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
