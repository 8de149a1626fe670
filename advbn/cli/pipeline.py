"""The commands of a clone: images, stages, runs, what they made, and whether it holds."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from ..base.extras import check_logger
from .app import IN_A_CLONE, app
from .complete import complete_profiles, complete_seeds
from .options import METHOD, kept_table, log_option, project_params, save_option, seed_option, told


def _data_pin(root: Path) -> Optional[str]:
    "The hash that `data.dvc` pins, if `root` is the folder it stands beside."
    import yaml

    pin = root.parent / f"{root.name}.dvc"
    return yaml.safe_load(pin.read_text())["outs"][0]["md5"] if pin.exists() else None


@app.command(rich_help_panel=IN_A_CLONE)
def data(
    root: Annotated[
        Optional[Path], typer.Option(help="Folder to build; by default the project's data/.")
    ] = None,
):
    """Draw the embedded images.

    Example: advbn data"""
    from ..base.files import held, project_root
    from ..images.openmoji import build_openmoji, fingerprint

    root = (root or project_root() / "data").resolve()
    pinned = _data_pin(root)
    if pinned and root.is_dir() and fingerprint(root)["md5"] == pinned:
        print(f"{root} is complete")
        return
    with held(root, "drawn"):
        found = build_openmoji(root, pinned)
    print(f"{root}: {found['nfiles']} files, hash {found['md5']}{' as pinned' if pinned else ''}")


def _said(pairs, words) -> dict:
    "Names and values of NAME=VALUE `pairs` and of `words`, --NAME and VALUE in turn."
    from ..base.errors import ParameterError

    if bad := [pair for pair in pairs if "=" not in pair]:
        raise ParameterError(f"-p {bad[0]} has no value; allowed is NAME=VALUE")
    if bad := [word for word in words[::2] if not word.startswith("--")]:
        raise ParameterError(
            f"{bad[0]!r} stands where a --NAME is expected; allowed are -p NAME=VALUE and --NAME VALUE"
        )
    if len(words) % 2:
        raise ParameterError(f"{words[-1]} has no value; allowed is {words[-1]} VALUE")
    return dict(pair.split("=", 1) for pair in pairs) | {
        name[2:]: value for name, value in zip(words[::2], words[1::2])
    }


@app.command(
    rich_help_panel=IN_A_CLONE,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def run(
    context: typer.Context,
    notebook: Path,
    parameter: Annotated[
        Optional[list[str]],
        typer.Option("-p", help="NAME=VALUE, once for each parameter; --NAME VALUE says the same."),
    ] = None,
):
    """Execute a notebook with parameters.

    Example: advbn run nbs/stages/method.ipynb -p method=advbn"""
    from ..base.config import load_params
    from ..notebooks import run_notebook

    load_params()
    print(run_notebook(notebook, _said(parameter or [], context.args)))


@app.command(rich_help_panel=IN_A_CLONE)
def pretrain(
    seed: seed_option() = 0,
    save: save_option() = False,
    head: Annotated[
        Optional[str],
        typer.Option(
            help="new: put a new classifier on the weights of the profile's network, as head: new there."
        ),
    ] = None,
    log: log_option() = None,
):
    """Train the profile's network.

    Example: accelerate launch -m advbn pretrain --seed 0"""
    check_logger(log)
    params = project_params(**({"head": head} if head else {}))
    from ..base.rows import EPOCHS
    from ..training.run import check_networks, resolve
    from ..training.train import clear_progress, pretrain

    path = kept_table(params, EPOCHS, "training", "pretrained.csv") if save else None
    check_networks(params)
    run = resolve(params, "standard", seed)
    found = pretrain(run, log)
    if told(found, found.tail(1).to_string(index=False), path):
        clear_progress(run.setting, run.start, seed)


@app.command(rich_help_panel=IN_A_CLONE)
def train(
    method: METHOD,
    seed: seed_option() = 0,
    save: save_option() = False,
    log: log_option() = None,
):
    """Train a method of params.yaml.

    Example: accelerate launch -m advbn train advbn --seed 0 --save"""
    check_logger(log)
    params = project_params(method=method)
    from ..base.rows import EPOCHS
    from ..training.run import resolve
    from ..training.train import clear_progress, train

    run = resolve(params, method, seed)
    path = kept_table(params, EPOCHS, "training", f"{run.name}.csv") if save else None
    found = train(run, log)
    if told(found, found.tail(1).to_string(index=False), path):
        clear_progress(run.setting, run.name, seed)


@app.command(rich_help_panel=IN_A_CLONE)
def seed(
    number: Annotated[
        int, typer.Argument(help="One of the seeds of params.yaml.", autocompletion=complete_seeds)
    ],
    profile: Annotated[
        Optional[str],
        typer.Option(help="By default the one that params.yaml names.", autocompletion=complete_profiles),
    ] = None,
    log: log_option() = None,
):
    """All of the main table for one seed.

    Pretrain, train and test every method, and keep the rows. What is kept is not done again; several seeds
    can run side by side.

    Example: advbn seed 0 --profile pacs"""
    check_logger(log)
    import time

    params, began = project_params(profile), time.perf_counter()
    from ..notebooks import record_stage
    from ..seeds import run_seed
    from ..training.run import check_networks, check_seed, resolve

    runs = [resolve(params, name, number) for name in params.methods]
    check_seed(runs[0].setting, number)
    check_networks(params)
    for step in run_seed(runs, log):
        seconds, began = time.perf_counter() - began, time.perf_counter()
        print(f"{step}: {seconds / 60:.1f} minutes", flush=True)
        record_stage(params, f"seed{number}", seconds, more=True)
    print(f"seed {number} of {params.profile} is kept")


@app.command(rich_help_panel=IN_A_CLONE)
def plan(
    profile: Annotated[
        Optional[str],
        typer.Option(
            help="A profile of params.yaml; by default the one it names.", autocompletion=complete_profiles
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """What a profile will do, how long it takes on this machine, and what is missing.

    Example: advbn plan --profile imagenet"""
    from ..base.config import load_params
    from ..base.errors import ParameterError, did_you_mean
    from ..base.machine import duration

    params = load_params()
    if profile and profile not in params.profiles:
        hint = did_you_mean(profile, params.profiles)
        raise ParameterError(f"--profile is {profile!r}; allowed are {', '.join(params.profiles)}{hint}")

    from ..training.cost import device_in_words, disk_bytes, missing_sets, plan

    params = load_params(profile) if profile else params  # with what the profile says of the studies
    stages, disk, missing = plan(params), disk_bytes(params), missing_sets(params)
    if json:
        from json import dumps

        print(
            dumps(
                {
                    "profile": params.profile,
                    "stages": stages.to_dict("records"),
                    "disk": disk,
                    "missing": missing,
                },
                indent=1,
            )
        )
        return
    print(stages.to_string(index=False, float_format="{:.1f}".format))
    print(
        f"\nexpected: {duration(60 * stages.minutes.sum())} at least, on this machine ({device_in_words()}); "
        f"reading, augmentation and start-up are left out"
    )
    print("disk: " + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in disk.items()))
    print("missing: " + ("nothing" if not missing else "\n         ".join(missing)))


@app.command(rich_help_panel=IN_A_CLONE)
def status(
    record: Annotated[
        Optional[str],
        typer.Option(
            help="First say in dvc.lock that this profile's results are those of today's code, as after "
            "advbn seed, which does not say it.",
            autocompletion=complete_profiles,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Whether the results that are kept still are what code, parameters and images give.

    For every profile; exit status 1 if some are not.

    Example: advbn status"""
    from .. import status as room

    if record:
        room.record(record)
    found = room.status()
    if json:
        from json import dumps

        print(dumps(found, indent=1))
    for profile, stages in found.items() if not json else ():
        print(f"{profile}: {f'{len(stages)} stages would run again' if stages else 'holds'}")
        for stage, changes in stages.items():
            more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
            print(f"  {stage}: {', '.join(changes[:4])}{more}")
    raise typer.Exit(1 if any(found.values()) else 0)


@app.command(rich_help_panel=IN_A_CLONE)
def verify(
    profile: Annotated[
        Optional[str],
        typer.Option(
            help="Whose results; by default the profile that params.yaml names.",
            autocompletion=complete_profiles,
        ),
    ] = None,
    against: Annotated[
        Optional[str],
        typer.Option(help="A Git revision, or a folder with somebody's results; by default HEAD."),
    ] = None,
):
    """Whether the results of a run of one's own agree with the committed ones.

    Exit status 1 if they do not, or something is missing. Another kind of CPU rounds otherwise, and its digits are others. A difference is within its bound if two
    independent runs with the intervals of both tables differ by less in 95 of 100 cases. Of the hundreds of
    numbers in the tables some leave it by chance, so Holm's correction, at 4 %, says which are beyond chance;
    the primary outcome is decided by itself, at 1 %, and a changed verdict on it is always told. Neither
    images nor DVC are needed.

    Example: advbn verify, or: advbn verify --against ../other/results"""
    from ..verify import report_text, verify

    found = verify(profile, against)
    print(report_text(found))
    raise typer.Exit(0 if found.good else 1)


@app.command(rich_help_panel=IN_A_CLONE)
def report():
    """Write the page of results anew from the tables and figures under results/.

    Example: advbn report"""
    from ..base.config import load_params
    from ..base.files import project_root

    params = load_params()
    from ..page import build_page
    from ..verify import as_committed

    out = project_root() / "results" / params.profile / "report.html"
    out.write_text(build_page(params), encoding="utf-8")
    print(out)
    if as_committed(out.parent):
        print(
            "its numbers are the committed ones, which this clone came with; for your own: dvc repro, and "
            "advbn verify compares them"
        )


def _size(paths) -> int:
    "Bytes of the files among `paths`, links not followed."
    return sum(p.lstat().st_size for p in paths if p.is_file() and not p.is_symlink())


@app.command(rich_help_panel=IN_A_CLONE)
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove them.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Say what can be made again and how much disk it takes; remove it with --yes. Images and results stay.

    Example: advbn clean"""
    import os
    import shutil
    from contextlib import suppress

    from ..base.files import cache_folder, project_root
    from ..images.decoding import kept_listings

    root, freed, left = project_root(), {}, {}
    made = ("checkpoints", "progress", "shifted", "predictions", "executed", "logs", ".dvc/cache", ".dvc/tmp")
    for name in made:
        folder = root / name
        if not folder.is_dir():
            continue
        if folder.resolve() != root.resolve() / name:
            left[name] = f"it is a link, or inside of one, to {folder.resolve()}"
            continue
        size = _size(folder.rglob("*"))
        if yes:
            shutil.rmtree(folder, ignore_errors=True)
        if yes and folder.exists():
            left[name] = "not all of it could be removed"
            size -= _size(folder.rglob("*"))
        freed[name] = size
    if lists := kept_listings():
        freed[os.path.relpath(cache_folder(), root)] = _size(lists)
        for path in lists if yes else ():
            with suppress(OSError):
                path.unlink()
    if json:
        from json import dumps

        print(dumps({"freed": yes, "bytes": freed, "left": left}, indent=1))
        return
    for name, size in freed.items():
        print(f"{size / 1e6:9.1f} MB  {name}")
    for name, reason in left.items():
        print(f"{name} is left: {reason}")
    print(
        f"{sum(freed.values()) / 1e6:9.1f} MB  "
        f"{'freed' if yes else 'would be freed; remove with: advbn clean --yes'}"
    )
