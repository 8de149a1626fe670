"""The commands for networks: test them, and take their weights along."""

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from .app import ANYWHERE, app
from .complete import complete_methods, complete_models, complete_shifts
from .options import (
    OF_METHOD,
    OF_MODEL,
    check_given,
    kept_table,
    look_for_hub,
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
        Optional[str],
        typer.Option(
            help="Test images, a folder for each class, or PACS's four; or published sets, such as "
            "clean=val,corruptions=imagenet-c: folders as ImageNet-C's or the arrays of CIFAR-10-C, "
            "instagram, sketch, stylized.",
            rich_help_panel=OF_MODEL,
        ),
    ] = None,
    classes: Annotated[
        Optional[Path],
        typer.Option(
            help="The network's classes, a name per line, if the folder has only some; or imagenet.",
            rich_help_panel=OF_MODEL,
        ),
    ] = None,
    shifts: Annotated[
        str,
        typer.Option(
            help="all, or some of clean, corruptions (75 cells), instagram (20 filters), sketch (edges); of "
            "published sets and domains, some of these.",
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
    """Accuracy on every shift: of a method that was trained here, or of any network on any folder of images,
    with its 95 % interval over these.

    Example: advbn evaluate --model resnet50 --weights weights.pt --data val --shifts all, or, of both branches
    of a folder: advbn evaluate --model robust/advbn --data val, or, in a clone: advbn evaluate advbn --seed 0"""
    from ..base.errors import DataError, ParameterError
    from ..base.files import no_saved_network, saved_network
    from ..base.names import check_evaluation, named_sets

    if (method is None) == (model is None):
        raise ParameterError(
            "evaluate takes a method of params.yaml or a --model; exactly one of them"
            + (f", not {method!r} and {model!r}" if method else "")
        )
    if method:
        check_given(
            context, OF_METHOD, "--model; a method of params.yaml is tested on the images of its profile"
        )
        from ..adapters.evaluate import evaluation_of
        from ..base.config import load_params
        from ..base.rows import CELLS
        from ..evidence.testing import evaluate, keep_right
        from ..training.run import resolve

        params = load_params()
        run = resolve(params, method, seed)
        path = kept_table(params, CELLS, "runs", f"{run.name}.csv") if save else None
        found, predictions = evaluate(run)
        shown = evaluation_of(predictions, f"{run.title}, the test images of {params.profile}", "clean")
        if told(found, shown.to_json() if json else shown, path) and path:
            keep_right(run.setting.results / "right" / f"{run.name}.npz", {seed: predictions})
    else:
        check_given(
            context, OF_MODEL, "a method of params.yaml; what is printed of a --model is kept by --json"
        )
        saved = saved_network(model)
        if saved and (weights or adversarial_weights):
            raise ParameterError("--weights goes with a --model by name; a folder has its own")
        if not saved and not weights and _like_a_folder(model):
            raise DataError(no_saved_network(model))
        files = {"clean": weights, "adversarial": adversarial_weights}
        files = {} if saved else files if adversarial_weights else {model: weights}
        sets = None if data is None else named_sets(data)
        check_evaluation(model, filter(None, files.values()), shifts, classes, sets)
        if missing := [
            option for option, value in (("--weights", saved or weights), ("--data", data)) if not value
        ]:
            raise ParameterError(f"--model {model} needs {' and '.join(missing)}")
        look_for_hub(model, files.values())
        from ..adapters.evaluate import FolderReading, evaluate
        from ..images.decoding import BadImages
        from ..images.preprocessing import preprocessing_of

        networks, listed = _saved_in(model, classes) if saved else _by_name(model, files, sets, classes)
        for name, network in networks.items() if json and not saved else ():
            print(f"{name}: images {preprocessing_of(network).at(size, resize)}", file=sys.stderr)
        bad = BadImages(on_bad_image)
        reading = FolderReading(size, resize, images, bad=bad)
        control = "clean" if adversarial_weights else None
        found = evaluate(networks, sets, shifts, classes=listed, reading=reading, control=control)
        tell_left_out(bad)
        print(found.to_json() if json else found)


def _like_a_folder(model):
    "Does a word name a file or folder, and no network of a library?"
    of_library = model.startswith(("torchvision/", "timm/", "hub:"))
    return Path(model).is_dir() or (os.sep in model and not of_library)


def _by_name(model, files, sets, classes):
    "`({name: network}, their classes)` of a network by name, with the weights in `files`, name to file."
    from ..adapters.evaluate import network_for

    loaded = {name: network_for(model, file, sets, classes) for name, file in files.items()}
    return {name: of[0] for name, of in loaded.items()}, [of[1] for of in loaded.values()][0]


def _saved_in(folder, classes):
    """`({"": AdvBNNet}, its classes)` of what `save_pretrained` wrote, evaluated as its two branches."""
    from ..method.network import AdvBNNet

    net = AdvBNNet.from_pretrained(folder)
    return {"": net}, classes or (net.about.classes if net.about else None)


@app.command(rich_help_panel=ANYWHERE)
def export(
    method: Annotated[
        str,
        typer.Argument(
            help="A folder or archive of save_pretrained, or, in a clone, a method of params.yaml.",
            autocompletion=complete_methods,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="File to write, or with --pretrained a folder.")],
    branch: Annotated[str, typer.Option(help="clean or adversarial.")] = "clean",
    seed: seed_option() = 0,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write ONNX, and compare its logits with PyTorch's first.")
    ] = False,
    size: Annotated[
        Optional[int],
        typer.Option(
            help="With --onnx: pixels of its images; by default the network's own.", min=8, max=4096
        ),
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option("--pretrained", help="Write the folder for AdvBNNet.from_pretrained, with both branches."),
    ] = False,
):
    """Write a trained network's plain weights, as torchvision or timm load them, ONNX, or a folder with both
    branches.

    Example: advbn export robust/advbn robust.pt --branch adversarial, or, in a clone: advbn export advbn
    robust.pt"""
    from ..base.errors import DataError, ParameterError
    from ..base.files import in_a_project, no_saved_network, saved_network

    if onnx and pretrained:
        raise ParameterError("export writes --onnx or --pretrained; exactly one of them")
    if size and not onnx:
        raise ParameterError("--size goes with --onnx")
    if (out.suffix == ".onnx") != onnx:
        allowed = f"--onnx writes NAME.onnx, not {out}" if onnx else f"{out} is ONNX by its name; say --onnx"
        raise ParameterError(allowed)
    kind = "onnx" if onnx else "pretrained" if pretrained else "plain"
    if not saved_network(method) and (os.sep in method or (Path(method).is_dir() and not in_a_project())):
        raise DataError(no_saved_network(method))
    said = export_folder(method, out, branch, kind, size) if saved_network(method) else None
    print(f"{out}: {said or export_method(method, out, branch, seed, kind, size)}")


def _has_branch(branch, branches, what):
    "Raise `ParameterError` unless a network has a branch."
    from ..base.errors import ParameterError

    if branch not in branches:
        raise ParameterError(f"--branch is {branch!r}; {what} has {' and '.join(branches)}")


def export_folder(folder, out, branch, kind, size) -> str:
    "What `export` does with a folder of weights, or an archive of one, in words."
    from ..adapters.pretrained import opened, read_config
    from ..base.errors import ParameterError

    if kind == "pretrained":
        raise ParameterError(f"{folder} is what --pretrained writes; copy it")
    with opened(folder) as found:
        _has_branch(branch, read_config(found).branches, folder)
    from ..method.network import AdvBNNet
    from ..networks.weights import save_state

    net = AdvBNNet.from_pretrained(folder)
    if kind == "onnx":
        from ..adapters.onnx import write_onnx

        return str(write_onnx(net, out, branch, size))
    save_state(net.export(branch), out)
    return f"{net.made.name or net.made.kind}, {branch} branch"


def export_method(method, out, branch, seed, kind, size) -> str:
    "What `export` does with a method of `params.yaml`, in words."
    params = project_params(method=method)
    from ..training.run import load_network, resolve

    run = resolve(params, method, seed)
    _has_branch(branch, run.method.branches, method)
    if kind == "pretrained":
        from ..adapters.pretrained import trained_network
        from ..release import about_run

        net = trained_network(run)
        net.save_pretrained(out, **about_run(run, params))
        return f"{net.made.name} with {' and '.join(run.method.branches)}; AdvBNNet.from_pretrained reads it"
    network = load_network(run, branch=branch)
    if kind == "onnx":
        from ..adapters.onnx import write_onnx
        from ..base.errors import DataError
        from ..training.run import load_data

        try:
            classes = load_data(run.setting).classes
        except DataError:  # the images are not here, and nobody else knows their classes' names
            classes = None
        return str(write_onnx(network, out, branch, size, classes))
    from ..networks.weights import save_state

    save_state(network.state_dict(), out)
    return f"{run.network.name}, {run.setting.data.classes} classes"


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
