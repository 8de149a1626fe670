"""`advbn COMMAND`: build the images, run a stage, train and evaluate."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from . import __version__
from .base.errors import INTERRUPTED, Busy, Interrupted, ProcessLost

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="AdvBN: image models robust to style, from adversarial feature statistics.",
    epilog="Exit status: 0 done; 1 check, status or verify found something wrong; 2 an error that a person "
    "can mend; 75 asked to stop, progress kept, the same command goes on; "
    "130 stopped by Ctrl-C with nothing to keep.",
)


def _version(wanted: bool):
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
):
    pass


def _data_pin(root: Path) -> Optional[str]:
    "The hash that `data.dvc` pins, if `root` is the folder it stands beside."
    import yaml

    pin = root.parent / f"{root.name}.dvc"
    return yaml.safe_load(pin.read_text())["outs"][0]["md5"] if pin.exists() else None


@app.command()
def data(
    root: Annotated[
        Optional[Path], typer.Option(help="Folder to build; by default the project's data/.")
    ] = None,
):
    "Draw the embedded images. Example: advbn data"
    from .base.files import held, project_root
    from .images.openmoji import build_openmoji, fingerprint

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
    from .base.errors import ParameterError

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


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    notebook: Path,
    parameter: Annotated[
        Optional[list[str]],
        typer.Option("-p", help="NAME=VALUE, once for each parameter; --NAME VALUE says the same."),
    ] = None,
):
    "Execute a notebook with parameters. Example: advbn run nbs/stages/method.ipynb -p method=advbn"
    from .base.config import load_params
    from .notebooks import run_notebook

    load_params()
    print(run_notebook(notebook, _said(parameter or [], context.args)))


OF_METHOD, OF_MODEL = (
    "With a method of params.yaml",
    "With --model",
)  # what an option of evaluate goes with, and its place in the help


def _seed(panel=None):
    return Annotated[int, typer.Option(help="Seed of the network.", rich_help_panel=panel)]


def _on_bad(panel=None):
    return Annotated[
        str,
        typer.Option(
            help="error, or skip: leave out what cannot be read, and list it.", rich_help_panel=panel
        ),
    ]


def _save(panel=None):
    return Annotated[
        bool,
        typer.Option(
            "--save",
            help="Write the rows to results/, where the report looks for them.",
            rich_help_panel=panel,
        ),
    ]


def _left_out(bad):
    "List what could not be read."
    if bad.found:
        print(
            f"{len(bad.found)} images could not be read and were left out:",
            *bad.found.values(),
            sep="\n  ",
            file=sys.stderr,
        )


def _table(params, columns, *parts) -> Path:
    """Where rows are kept under results/; raises `DataError` before any work if there are others, and
    `OSError` if nothing can be written there."""
    from .base.files import held, project_root
    from .base.rows import kept_rows

    path = project_root().joinpath("results", params.profile, *parts)
    with held(path, "written", wait=60):
        kept_rows(path, columns)
    return path


def _told(found, rows, path) -> bool:
    """Print `rows` and keep `found` at `path`, if there is one, in the first process alone, which writes all
    files; returns whether this is it."""
    from accelerate import PartialState

    from .base.rows import keep_rows

    if first := PartialState().is_main_process:
        if path:
            keep_rows(found, path)
        print(rows)
    return first


@app.command()
def pretrain(
    seed: _seed() = 0,
    save: _save() = False,
    head: Annotated[
        Optional[str],
        typer.Option(
            help="new: put a new classifier on the weights of the profile's network, as head: new there."
        ),
    ] = None,
):
    "Train the profile's network. Example: accelerate launch -m advbn pretrain --seed 0"
    from .base.config import load_params
    from .base.rows import EPOCHS
    from .training.run import check_networks, resolve
    from .training.train import clear_progress, pretrain

    params = load_params(**({"head": head} if head else {}))
    path = _table(params, EPOCHS, "training", "pretrained.csv") if save else None
    check_networks(params)
    run = resolve(params, "standard", seed)
    found = pretrain(run)
    if _told(found, found.tail(1).to_string(index=False), path):
        clear_progress(run.setting, run.start, seed)


@app.command()
def train(method: str, seed: _seed() = 0, save: _save() = False):
    "Train a method of params.yaml. Example: accelerate launch -m advbn train advbn --seed 0 --save"
    from .base.config import load_params
    from .base.rows import EPOCHS
    from .training.run import resolve
    from .training.train import clear_progress, train

    params = load_params()
    run = resolve(params, method, seed)
    path = _table(params, EPOCHS, "training", f"{run.name}.csv") if save else None
    found = train(run)
    if _told(found, found.tail(1).to_string(index=False), path):
        clear_progress(run.setting, run.name, seed)


@app.command()
def seed(
    number: Annotated[int, typer.Argument(help="One of the seeds of params.yaml.")],
    profile: Annotated[Optional[str], typer.Option(help="By default the one that params.yaml names.")] = None,
):
    """All of the main table for one seed: pretrain, train and test every method, and keep the rows. What is
    kept is not done again; several seeds can run side by side. Example: advbn seed 0 --profile pacs"""
    import time

    from .base.config import load_params
    from .notebooks import record_stage
    from .seeds import run_seed
    from .training.run import check_networks, check_seed, resolve

    params, began = load_params(profile), time.perf_counter()
    runs = [resolve(params, name, number) for name in params.methods]
    check_seed(runs[0].setting, number)
    check_networks(params)
    for step in run_seed(runs):
        seconds, began = time.perf_counter() - began, time.perf_counter()
        print(f"{step}: {seconds / 60:.1f} minutes", flush=True)
        record_stage(params, f"seed{number}", seconds, more=True)
    print(f"seed {number} of {params.profile} is kept")


def _check_given(context, panel, instead):
    """Raise `ParameterError` if an option is given that is listed under another `panel`; `instead` says what
    it goes with."""
    from .base.errors import ParameterError

    for option in context.command.params:
        if (
            getattr(option, "rich_help_panel", None) not in (None, panel)
            and context.get_parameter_source(option.name).name != "DEFAULT"
        ):
            raise ParameterError(f"{option.opts[0]} goes with {instead}")


@app.command()
def evaluate(
    context: typer.Context,
    method: Annotated[
        Optional[str], typer.Argument(help="A method of params.yaml; or name a --model.")
    ] = None,
    seed: _seed(OF_METHOD) = 0,
    model: Annotated[Optional[str], typer.Option(help="Any torchvision network, or timm/NAME.")] = None,
    weights: Annotated[
        Optional[str],
        typer.Option(help="Its state dict, or the name of published weights.", rich_help_panel=OF_MODEL),
    ] = None,
    adversarial_weights: Annotated[
        Optional[str],
        typer.Option(help="Those of its other branch, if there are two.", rich_help_panel=OF_MODEL),
    ] = None,
    data: Annotated[
        Optional[Path], typer.Option(help="Test images, a folder for each class.", rich_help_panel=OF_MODEL)
    ] = None,
    classes: Annotated[
        Optional[Path],
        typer.Option(
            help="The network's classes, a name per line, if the folder has only some.",
            rich_help_panel=OF_MODEL,
        ),
    ] = None,
    shifts: Annotated[
        str,
        typer.Option(help="all, or some of clean,corruptions,instagram,sketch.", rich_help_panel=OF_MODEL),
    ] = "all",
    images: Annotated[
        Optional[int], typer.Option(help="Test on so many, drawn at random.", min=1, rich_help_panel=OF_MODEL)
    ] = None,
    size: Annotated[
        Optional[int],
        typer.Option(
            help="Pixels that the network is given; by default its own.",
            min=8,
            max=4096,
            rich_help_panel=OF_MODEL,
        ),
    ] = None,
    resize: Annotated[
        Optional[int],
        typer.Option(
            help="The shorter side before the middle is cut out; by default the network's own, in proportion "
            "to the size.",
            min=8,
            max=8192,
            rich_help_panel=OF_MODEL,
        ),
    ] = None,
    on_bad_image: _on_bad(OF_MODEL) = "error",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    save: _save(OF_METHOD) = False,
):
    """Accuracy on every shift: of a method that was trained here, or of any network on any folder of images.

    Example: advbn evaluate advbn --seed 0, or: advbn evaluate --model resnet50 --weights weights.pt --data
    val --shifts all"""
    from .base.config import load_params
    from .base.errors import ParameterError

    if (method is None) == (model is None):
        raise ParameterError(
            "evaluate takes a method of params.yaml or a --model; exactly one of them"
            + (f", not {method!r} and {model!r}" if method else "")
        )
    if method:
        _check_given(
            context, OF_METHOD, "--model; a method of params.yaml is tested on the images of its profile"
        )
        from .base.rows import CELLS
        from .evidence.testing import evaluate, keep_right
        from .training.run import resolve

        params = load_params()
        run = resolve(params, method, seed)
        path = _table(params, CELLS, "runs", f"{run.name}.csv") if save else None
        found, predictions = evaluate(run)
        table = found.groupby(["branch", "shift"], sort=False).accuracy.mean().unstack(sort=False)
        if _told(found, table.to_json(indent=1) if json else table.round(2).to_string(), path) and path:
            keep_right(run.setting.results / "right" / f"{run.name}.npz", {seed: predictions})
    else:
        _check_given(
            context, OF_MODEL, "a method of params.yaml; what is printed of a --model is kept by --json"
        )
        if missing := [
            option for option, value in (("--weights", weights), ("--data", data)) if value is None
        ]:
            raise ParameterError(f"--model {model} needs {' and '.join(missing)}")
        import torch

        from .evidence.assess import (
            FolderReading,
            chosen_shifts,
            class_names,
            evaluate_networks,
            load_network,
            summary,
        )
        from .images.decoding import BadImages
        from .images.preprocessing import preprocessing_of

        wanted, names = chosen_shifts(shifts), class_names(data, classes)
        files = (
            {"clean": weights, "adversarial": adversarial_weights}
            if adversarial_weights
            else {model: weights}
        )
        networks = {name: load_network(model, file, len(names)) for name, file in files.items()}
        for name, network in networks.items():
            print(
                f"{name}: images {preprocessing_of(network).at(size, resize)}",
                file=sys.stderr if json else sys.stdout,
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        bad = BadImages(on_bad_image)
        reading = FolderReading(size, resize, images, bad=bad)
        found = evaluate_networks(networks, data, names, wanted, reading, device)
        _left_out(bad)
        table = summary(found, imagenet=len(names) == 1000)
        print(table.to_json(indent=1) if json else table.round(2).to_string())


@app.command("make-set")
def make_set(
    out: Path,
    kind: Annotated[str, typer.Option(help="advbn, reconstructed or stylized.")] = "advbn",
    seed: Annotated[int, typer.Option(help="Whose test images to take.")] = 0,
):
    """Write the profile's test images, perturbed and decoded, as an ImageFolder tree. Example: advbn make-set
    sets/advbn"""
    from .base.config import load_params
    from .base.errors import ParameterError
    from .evidence.testing import made_from
    from .images.writing import make_set
    from .shifts.styles import adversarial, reconstructed, style_images, stylized
    from .training.distributed import build_accelerator
    from .training.run import check_seed, load_data, setting_of, styles_folder
    from .training.train import load_autoencoder, picture_attack

    if kind not in ("advbn", "reconstructed", "stylized"):
        raise ParameterError(f"--kind is {kind!r}; allowed are advbn, reconstructed and stylized")
    setting = setting_of(load_params())
    check_seed(setting, seed)
    data = load_data(setting)
    device = build_accelerator().device
    autoencoder = load_autoencoder(setting).to(device)
    layer, styles = picture_attack(setting, autoencoder), styles_folder(setting)
    settings = {"kind": kind, **made_from(setting, data, seed)}
    test = data.test(seed, wide=True)
    number = dict(zip(test.names, data.test_indices(seed).tolist()))
    makers = {
        "advbn": lambda b: adversarial(autoencoder, b.images, b.targets, layer),
        "reconstructed": lambda b: reconstructed(autoencoder, b.images),
        "stylized": lambda b: stylized(
            autoencoder, b.images, [number[n] for n in b.names], style_images(b.images.shape[-1], styles)
        ),
    }
    print(f"{out}: {make_set(test, out, lambda b: makers[kind](b.to(device)), settings)} images written")


@app.command()
def export(
    method: str,
    out: Annotated[Path, typer.Argument(help="File to write.")],
    branch: Annotated[str, typer.Option(help="clean or adversarial.")] = "clean",
    seed: _seed() = 0,
):
    """Write a trained network's plain weights, as torchvision or timm load them. Example: advbn export advbn
    robust.pt --branch adversarial"""
    from .base.config import load_params
    from .base.errors import ParameterError
    from .networks.weights import save_state
    from .training.run import load_network, resolve

    run = resolve(load_params(), method, seed)
    if branch not in run.method.branches:
        raise ParameterError(f"--branch is {branch!r}; {method} has {' and '.join(run.method.branches)}")
    save_state(load_network(run, branch=branch).state_dict(), out)
    print(f"{out}: {run.network.name}, {run.setting.data.classes} classes")


def _size(paths) -> int:
    "Bytes of the files among `paths`, links not followed."
    return sum(p.lstat().st_size for p in paths if p.is_file() and not p.is_symlink())


@app.command()
def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove them.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Say what can be made again and how much disk it takes; remove it with --yes. Images and results stay.

    Example: advbn clean"""
    import os
    import shutil
    from contextlib import suppress

    from .base.files import cache_folder, project_root
    from .images.decoding import kept_listings

    root, freed, left = project_root(), {}, {}
    for name in ("checkpoints", "progress", "shifted", "predictions", "executed", ".dvc/cache", ".dvc/tmp"):
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


@app.command()
def corrupt(
    source: Path,
    out: Path,
    name: Annotated[str, typer.Option(help="A corruption, such as fog.")],
    severity: Annotated[int, typer.Option(help="1 to 5.")] = 3,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    on_bad_image: _on_bad() = "error",
):
    """Corrupt the pictures of a tree, of any size, into another tree. Example: advbn corrupt data/openmoji
    out --name fog --severity 3"""
    from .base.errors import ParameterError
    from .evidence.assess import Pictures
    from .images.decoding import BadImages
    from .images.writing import make_set
    from .shifts.corruptions import SMALLEST, check_corruption, corrupt

    bad = BadImages(on_bad_image)
    check_corruption(name, severity)
    if source.resolve() in out.resolve().parents:
        raise ParameterError(
            f"{out} lies in {source} and would become one of its classes; name a folder beside it"
        )
    images = Pictures(source, bad, SMALLEST)
    _left_out(bad)
    number = dict(zip(images.names, range(len(images))))
    made = make_set(
        images,
        out,
        lambda b: corrupt(b.images, name, severity, seed=seed, indices=[number[n] for n in b.names]),
        {"corruption": name, "severity": severity, "seed": seed, "source": str(source.resolve())},
        32 if images.one_size else 1,
    )
    print(f"{out}: {made} images written")


@app.command()
def check(
    folder: Path,
    against: Annotated[
        Optional[Path], typer.Option(help="Another folder, such as the training images, to compare with.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Read every image of a folder with a folder for each class, and say what is wrong; exit status 1 if
    something is.

    Example: advbn check photographs/test --against photographs/train"""
    from json import dumps

    from .images.decoding import inspect_folder

    found = inspect_folder(folder, against)
    if json:
        print(dumps(found, indent=1))
    else:
        print(f"{folder}: {found['images']} images in {found['classes']} classes")
        for name, lines in found["problems"].items():
            print(
                f"{len(lines)} {name}" + (":" if lines else ""),
                *lines[:20],
                *([f"and {len(lines) - 20} more"] if len(lines) > 20 else []),
                sep="\n  ",
            )
    raise typer.Exit(1 if any(found["problems"].values()) else 0)


@app.command()
def plan(
    profile: Annotated[
        Optional[str], typer.Option(help="A profile of params.yaml; by default the one it names.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """What a profile will do, how long it takes on this machine, and what is missing. Example: advbn plan
    --profile imagenet"""
    from .base.config import load_params
    from .base.errors import ParameterError
    from .training.cost import disk_bytes, missing_sets, plan

    params = load_params()
    if profile and profile not in params.profiles:
        raise ParameterError(f"--profile is {profile!r}; allowed are {', '.join(params.profiles)}")
    params = params.model_copy(update={"profile": profile or params.profile})
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
    hours = stages.minutes.sum() / 60
    print(
        f"\nexpected: {f'{hours:.1f} hours' if hours > 2 else f'{60 * hours:.0f} minutes'} on this machine "
        f"at least; reading, augmentation and start-up are left out"
    )
    print("disk: " + ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in disk.items()))
    print("missing: " + ("nothing" if not missing else "\n         ".join(missing)))


@app.command()
def status(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False):
    """Whether the results that are kept still are what code, parameters and images give, for every profile;
    exit status 1 if some are not. Example: advbn status"""
    from .status import status

    found = status()
    if json:
        from json import dumps

        print(dumps(found, indent=1))
    for profile, stages in found.items() if not json else ():
        print(f"{profile}: {f'{len(stages)} stages would run again' if stages else 'holds'}")
        for stage, changes in stages.items():
            more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
            print(f"  {stage}: {', '.join(changes[:4])}{more}")
    raise typer.Exit(1 if any(found.values()) else 0)


@app.command()
def verify(
    profile: Annotated[
        Optional[str], typer.Option(help="Whose results; by default the profile that params.yaml names.")
    ] = None,
    against: Annotated[
        Optional[str],
        typer.Option(help="A Git revision, or a folder with somebody's results; by default HEAD."),
    ] = None,
):
    """Whether the results of a run of one's own agree with the committed ones; exit status 1 if they do not,
    or something is missing.

    Another kind of CPU rounds otherwise, and its digits are others. A difference is within its bound if two
    independent runs with the intervals of both tables differ by less in 95 of 100 cases. Of the hundreds of
    numbers in the tables some leave it by chance, so Holm's correction, at 4 %, says which are beyond chance;
    the primary outcome is decided by itself, at 1 %, and a changed verdict on it is always told. Neither
    images nor DVC are needed.

    Example: advbn verify, or: advbn verify --against ../other/results"""
    from .verify import report_text, verify

    found = verify(profile, against)
    print(report_text(found))
    raise typer.Exit(0 if found.good else 1)


OF_SPEED, OF_FIDELITY = "With step, corrupt, evaluate and scale", "With fidelity"


def _severities(words: str) -> tuple:
    "The severities of a list such as `1,3,5`, each once; raises `ParameterError` for anything else."
    from .base.errors import ParameterError

    found = tuple(dict.fromkeys(word.strip() for word in words.split(",")))
    if bad := [word for word in found if word not in ("1", "2", "3", "4", "5")]:
        raise ParameterError(f"--severities has {bad[0]!r}; allowed are some of 1,2,3,4,5")
    return tuple(map(int, found))


def _bench_fidelity(model, weights, data, classes, images, severities, device) -> tuple:
    "Compare what a network recognises under both kinds of corruptions; `(table, what it says)`, kept."
    from .base.errors import ParameterError

    options = {"--model": model, "--weights": weights, "--data": data}
    if missing := [option for option, value in options.items() if value is None]:
        raise ParameterError(f"bench fidelity needs {' and '.join(missing)}")
    severities = _severities(severities)

    from . import fidelity as room
    from .images.preprocessing import preprocessing_of

    room.check_reference()
    network, names = room.load_classifier(model, weights, data, classes)
    network.to(device)
    chosen = room.network_images(network, data, names, images)
    table = room.compared(room.seen(network, chosen, severities))
    record = {
        "network": model,
        "weights": Path(weights).name,
        "outputs": len(names),
        "device": device,
        "preprocessing": str(preprocessing_of(network)),
        "images": room.which_images(chosen),
    }
    path = room.keep(table, record, model)
    return table, f"{room.in_words(table)}\n{path}"


@app.command()
def bench(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            help="step: AdvBN's training step against one written straight from the formula; corrupt: the "
            "corruptions against imagecorruptions-imaug; "
            "evaluate: all 75 cells against the forward passes alone; scale: growth with images, classes, "
            "batch, steps and processes; fidelity: what a network recognises under our corruptions and under "
            "imagecorruptions-imaug's."
        ),
    ] = "step",
    network: Annotated[
        str, typer.Option(help="A torchvision ResNet, for step and evaluate.", rich_help_panel=OF_SPEED)
    ] = "resnet18",
    batch: Annotated[
        Optional[int],
        typer.Option(
            help="Images; 16 for step, 64 for corrupt, 8 for evaluate.", min=2, rich_help_panel=OF_SPEED
        ),
    ] = None,
    size: Annotated[
        Optional[int],
        typer.Option(help="Pixels; 112 for step, else 224.", min=32, rich_help_panel=OF_SPEED),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    repetitions: Annotated[int, typer.Option(help="Turns that count.", min=3, rich_help_panel=OF_SPEED)] = 7,
    model: Annotated[
        Optional[str],
        typer.Option(help="Any torchvision network, or timm/NAME.", rich_help_panel=OF_FIDELITY),
    ] = None,
    weights: Annotated[
        Optional[str],
        typer.Option(help="Its state dict, or the name of published weights.", rich_help_panel=OF_FIDELITY),
    ] = None,
    data: Annotated[
        Optional[Path],
        typer.Option(
            help="Photographs, a folder for each class, such as ImageNet's by WordNet ids.",
            rich_help_panel=OF_FIDELITY,
        ),
    ] = None,
    classes: Annotated[
        Optional[Path],
        typer.Option(
            help="The network's classes, a name per line, if folders are called otherwise.",
            rich_help_panel=OF_FIDELITY,
        ),
    ] = None,
    images: Annotated[
        Optional[int], typer.Option(help="So many, drawn at random.", min=2, rich_help_panel=OF_FIDELITY)
    ] = None,
    severities: Annotated[
        str, typer.Option(help="Some of 1,2,3,4,5.", rich_help_panel=OF_FIDELITY)
    ] = "1,3,5",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Ratios of speed, measured in turns, or how far corruptions are those of ImageNet-C; kept under
    results/bench/.

    Example: advbn bench step --network resnet50 --batch 8, or: advbn bench fidelity --model
    efficientnet_lite0 --weights package --data val"""
    from .base.errors import ParameterError, did_you_mean

    kinds = ("step", "corrupt", "evaluate", "scale", "fidelity")
    if what not in kinds:
        allowed = ", ".join(map(repr, kinds))
        raise ParameterError(f"bench takes {allowed}, not {what!r}{did_you_mean(what, kinds)}")
    if what == "fidelity":
        _check_given(context, OF_FIDELITY, "step, corrupt, evaluate and scale")
    else:
        _check_given(context, OF_SPEED, "fidelity")
    if not network.startswith("resnet"):
        raise ParameterError(
            f"--network is {network!r}; the reference is written for torchvision's ResNets, such as "
            f"'resnet18'"
        )
    import torch

    if device not in ("cpu", "cuda") or (
        device == "cuda" and (what == "scale" or not torch.cuda.is_available())
    ):
        raise ParameterError(
            f"--device is {device!r}; allowed is cpu"
            + (
                ""
                if what == "scale"
                else " and cuda"
                if torch.cuda.is_available()
                else ", there is no CUDA device"
            )
        )
    if what == "fidelity":
        table, said = _bench_fidelity(model, weights, data, classes, images, severities, device)
        print(table.to_json(orient="records", indent=1) if json else f"{table.round(2).to_string()}\n{said}")
        return
    import pandas as pd

    from advbn import bench as rooms

    given = {k: v for k, v in (("batch", batch), ("size", size)) if v is not None}
    if what == "scale":
        if given:
            raise ParameterError(
                f"bench scale takes no --{next(iter(given))}; it grows a network and images of its own"
            )
        found, name = rooms.bench_scale(repetitions), "scale-cpu"
        table = (
            pd.DataFrame(
                [
                    {"what": kind, "value": v, **numbers}
                    for kind, values in found["growth"].items()
                    for v, numbers in values.items()
                ]
            )
            .round(2)
            .to_string(index=False)
        )
        said = (
            f"{found['processes']} processes reach {found['efficiency']['median']:.2f} of "
            f"{found['processes']} times one"
        )
    elif what == "corrupt":
        found, name = (
            rooms.bench_corrupt(device=device, repetitions=repetitions, **given),
            f"corrupt-{device}",
        )
        table, said = (
            pd.DataFrame(found["corruptions"]).T.round(2).to_string(),
            f"{found['images a second']:.0f} images a second over the fifteen",
        )
    elif what == "evaluate":
        found, name = (
            rooms.bench_evaluate(network, device=device, repetitions=repetitions, **given),
            f"evaluate-{network}-{device}",
        )
        table = pd.DataFrame(found["times"]).median().round(2).to_string()
        said = (
            f"all cells take {found['all cells, relative']:.2f} times the forward passes, with two "
            f"branches {found['two branches, relative']:.2f} times those of both"
        )
    else:
        found, name = (
            rooms.bench_step(network, device=device, repetitions=repetitions, **given),
            f"step-{network}-{device}",
        )
        table = pd.DataFrame(found["ratios"]).T.round(2).to_string()
        said = (
            f"cost of a step, clean fine-tune of the head = 1: operations "
            f"{found['operations, relative']:.2f}, "
            + ", ".join(f"{mode} {cost:.2f}" for mode, cost in found["costs, relative"].items())
            + f"\nfast recipe: {found['fast recipe, share of a faithful step']:.2f} of a faithful step"
            + f"; peak memory {found['peak memory, relative']:.2f} times a clean step's"
            + f"; largest difference of losses over three steps, in double precision: "
            f"{found['largest difference of losses, double precision']:.1e}"
        )
    path = rooms.write_bench(found, name)
    getattr(rooms, f"{what}_chart")(found).savefig(path.with_suffix(".png"), dpi=160)
    print(path.read_text() if json else f"{table}\n{said}\n{path}")


@app.command()
def report():
    "Write the page of results anew from the tables and figures under results/. Example: advbn report"
    from .base.config import load_params
    from .base.files import project_root
    from .page import build_page

    params = load_params()
    out = project_root() / "results" / params.profile / "report.html"
    out.write_text(build_page(params), encoding="utf-8")
    print(out)


@app.command("import-official")
def import_official(
    file: Path,
    out: Annotated[Path, typer.Option(help="Folder for the weights.")] = Path("."),
    arch: Annotated[
        Optional[str], typer.Option(help="Architecture, where the file does not name it.")
    ] = None,
):
    """Turn a checkpoint of the official code into plain torchvision weights. Example: advbn import-official
    checkpoint.pth.tar --out weights"""
    from .networks.official import read_official
    from .networks.weights import save_state

    found = read_official(file, arch)
    for branch in ("clean", "adversarial"):
        save_state(getattr(found, branch), out / f"{found.arch}-{branch}.pt")
        print(out / f"{found.arch}-{branch}.pt")
    print(
        f"{found.arch}, cut after {found.after}"
        + (f", epoch {found.epoch}" if found.epoch is not None else "")
    )


def main():
    """Run the command line; errors that a person can mend are one line and exit status 2, a run that was
    asked to stop and can go on is 75."""
    try:
        sys.exit(app(args=sys.argv[1:] or ["--help"], prog_name="advbn", standalone_mode=False) or 0)
    except Interrupted as stopped:
        print(f"advbn: {stopped}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, ImportError, FloatingPointError, Busy, ProcessLost) as error:
        print(f"advbn: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if type(error).__name__ == "Abort":  # Ctrl-C where there is nothing to keep
            sys.exit(130)
        if not hasattr(error, "format_message"):
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "advbn")
        names = getattr(getattr(error, "param", None), "opts", [])
        given = next(
            (f" Given: {value!r}." for name, value in zip(sys.argv, sys.argv[1:]) if name in names), ""
        )
        print(
            f"advbn: {' '.join(error.format_message().split())}{given} See: {command} --help", file=sys.stderr
        )
        sys.exit(2)
