"""The commands for networks: test them, and take their weights along."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from .app import ANYWHERE, IN_A_CLONE, app
from .complete import complete_methods, complete_models, complete_shifts
from .options import (
    METHOD,
    OF_METHOD,
    OF_MODEL,
    check_given,
    kept_table,
    on_bad_option,
    project_params,
    save_option,
    seed_option,
    tell_left_out,
    told,
)


@app.command(rich_help_panel=ANYWHERE)
def evaluate(
    context: typer.Context,
    method: Annotated[
        Optional[str],
        typer.Argument(
            help="A method of params.yaml, in a clone; or name a --model.", autocompletion=complete_methods
        ),
    ] = None,
    seed: seed_option(OF_METHOD) = 0,
    model: Annotated[
        Optional[str],
        typer.Option(help="Any torchvision network, or timm/NAME.", autocompletion=complete_models),
    ] = None,
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
        typer.Option(
            help="all, or some of clean,corruptions,instagram,sketch.",
            rich_help_panel=OF_MODEL,
            autocompletion=complete_shifts,
        ),
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
    on_bad_image: on_bad_option(OF_MODEL) = "error",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    save: save_option(OF_METHOD) = False,
):
    """Accuracy on every shift: of a method that was trained here, or of any network on any folder of images.

    Example: advbn evaluate advbn --seed 0, or: advbn evaluate --model resnet50 --weights weights.pt --data
    val --shifts all"""
    from ..base.config import load_params
    from ..base.errors import ParameterError
    from ..base.names import check_evaluation

    if (method is None) == (model is None):
        raise ParameterError(
            "evaluate takes a method of params.yaml or a --model; exactly one of them"
            + (f", not {method!r} and {model!r}" if method else "")
        )
    if method:
        check_given(
            context, OF_METHOD, "--model; a method of params.yaml is tested on the images of its profile"
        )
        from ..base.rows import CELLS
        from ..evidence.testing import evaluate, keep_right
        from ..training.run import resolve

        params = load_params()
        run = resolve(params, method, seed)
        path = kept_table(params, CELLS, "runs", f"{run.name}.csv") if save else None
        found, predictions = evaluate(run)
        table = found.groupby(["branch", "shift"], sort=False).accuracy.mean().unstack(sort=False)
        if told(found, table.to_json(indent=1) if json else table.round(2).to_string(), path) and path:
            keep_right(run.setting.results / "right" / f"{run.name}.npz", {seed: predictions})
    else:
        check_given(
            context, OF_MODEL, "a method of params.yaml; what is printed of a --model is kept by --json"
        )
        check_evaluation(model, filter(None, (weights, adversarial_weights)), data, shifts)
        if missing := [
            option for option, value in (("--weights", weights), ("--data", data)) if value is None
        ]:
            raise ParameterError(f"--model {model} needs {' and '.join(missing)}")
        import torch

        from ..adapters.evaluate import (
            FolderReading,
            chosen_shifts,
            class_names,
            evaluate_networks,
            load_network,
            summary,
        )
        from ..images.decoding import BadImages
        from ..images.preprocessing import preprocessing_of

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
        tell_left_out(bad)
        table = summary(found, imagenet=len(names) == 1000)
        print(table.to_json(indent=1) if json else table.round(2).to_string())


@app.command(rich_help_panel=IN_A_CLONE)
def export(
    method: METHOD,
    out: Annotated[Path, typer.Argument(help="File to write.")],
    branch: Annotated[str, typer.Option(help="clean or adversarial.")] = "clean",
    seed: seed_option() = 0,
):
    """Write a trained network's plain weights, as torchvision or timm load them.

    Example: advbn export advbn robust.pt --branch adversarial"""
    params = project_params(method=method)
    from ..base.errors import ParameterError
    from ..networks.weights import save_state
    from ..training.run import load_network, resolve

    run = resolve(params, method, seed)
    if branch not in run.method.branches:
        raise ParameterError(f"--branch is {branch!r}; {method} has {' and '.join(run.method.branches)}")
    save_state(load_network(run, branch=branch).state_dict(), out)
    print(f"{out}: {run.network.name}, {run.setting.data.classes} classes")


@app.command("import-official", rich_help_panel=ANYWHERE)
def import_official(
    file: Path,
    out: Annotated[Path, typer.Option(help="Folder for the weights.")] = Path("."),
    arch: Annotated[
        Optional[str], typer.Option(help="Architecture, where the file does not name it.")
    ] = None,
):
    """Turn a checkpoint of the official code into plain torchvision weights.

    Example: advbn import-official checkpoint.pth.tar --out weights"""
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {file}")
    from ..networks.official import read_official
    from ..networks.weights import save_state

    found = read_official(file, arch)
    for branch in ("clean", "adversarial"):
        save_state(getattr(found, branch), out / f"{found.arch}-{branch}.pt")
        print(out / f"{found.arch}-{branch}.pt")
    print(
        f"{found.arch}, cut after {found.after}"
        + (f", epoch {found.epoch}" if found.epoch is not None else "")
    )
