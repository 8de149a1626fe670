"""The command that measures."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from .app import IN_A_CLONE, app
from .complete import complete_models
from .options import check_given

OF_SPEED, OF_FIDELITY = "With all but fidelity", "With fidelity"
OF_MACHINE = "All of them, for the record of this machine"
KINDS = ("step", "corrupt", "evaluate", "scale", "folders", "fidelity")
OWN = ("scale", "folders")  # those that have images of their own


def _bench_fidelity(model, weights, data, classes, images, severities, device) -> tuple:
    "Compare what a network recognises under both kinds of corruptions; `(table, what it says)`, kept."
    from ..base.errors import ParameterError
    from ..base.names import chosen_severities

    options = {"--model": model, "--weights": weights, "--data": data}
    if missing := [option for option, value in options.items() if value is None]:
        raise ParameterError(f"bench fidelity needs {' and '.join(missing)}")
    severities = chosen_severities(severities, "--severities")

    from .. import fidelity as room
    from ..bench.corrupt import check_reference
    from ..images.preprocessing import preprocessing_of

    check_reference("bench fidelity")
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


def _check_device(device, kind):
    """Raise `ParameterError` for a device that a kind of benchmark is not for, or that is not there; told
    before torch is loaded."""
    from ..base.errors import ParameterError
    from ..base.machine import lack_of_cuda

    if device == "cpu" or (device == "cuda" and kind not in OWN and not lack_of_cuda()):
        return
    allowed = "cpu" if kind in OWN else f"cpu, {lack}" if (lack := lack_of_cuda()) else "cpu and cuda"
    raise ParameterError(f"--device is {device!r}; allowed is {allowed}")


def _check_words(context, what, network):
    "Raise `ParameterError` for words that do not go together."
    from ..base.errors import ParameterError, did_you_mean

    given = {name for name in context.params if context.get_parameter_source(name).name != "DEFAULT"}
    if what not in KINDS:
        allowed = ", ".join(map(repr, KINDS))
        raise ParameterError(f"bench takes {allowed}, not {what!r}{did_you_mean(what, KINDS)}")
    if "contribute" in given:
        if "what" in given:
            raise ParameterError(f"--contribute runs every benchmark; leave {what!r} out")
        check_given(context, OF_MACHINE, "a benchmark by itself, without --contribute")
        return
    if alone := given & {"quick", "estimate"}:
        raise ParameterError(f"--{min(alone)} goes with --contribute")
    fidelity = what == "fidelity"
    check_given(context, *((OF_FIDELITY, ", ".join(KINDS[:-1])) if fidelity else (OF_SPEED, "fidelity")))
    if what in OWN and (sized := given & {"batch", "size"}):
        raise ParameterError(
            f"bench {what} takes no --{min(sized)}; it has images of its own, of several sizes"
        )
    if not network.startswith("resnet"):
        raise ParameterError(
            f"--network is {network!r}; the reference is written for torchvision's ResNets, such as "
            f"'resnet18'"
        )


def _contribute(device, quick, estimate) -> Path:
    """Measure what the record of this machine lacks, unless an `estimate` is all that is asked for; where the
    record is."""
    from ..base.machine import lack_of_cuda

    devices = [device] if device else ["cpu"] if lack_of_cuda() else ["cpu", "cuda"]
    from ..bench.contribute import Contribution

    mine = Contribution(devices, quick)
    print(mine.announcement(), file=sys.stderr, flush=True)
    return mine.path if estimate or not mine.missing() else mine.measure()


def _measured(what, device, options):
    """A benchmark by itself, kept with its chart; the path of its record, and what it says."""
    from importlib import import_module

    import pandas as pd

    from ..bench import charts, record

    room = import_module(f"advbn.bench.{what}")
    options = options if what in OWN else {"device": device, **options}
    found = getattr(room, f"bench_{what}")(**options)
    path = record.write_record(record.record_of(found), record.bench_path(found))
    charts.chart(found).savefig(path.with_suffix(".png"), dpi=160)
    table = pd.DataFrame([ratio.model_dump() for ratio in found.ratios]).round(3).to_string(index=False)
    numbers = "".join(f"\n{name}: {number:.4g}" for name, number in found.numbers.items())
    return path, f"{table}{numbers}\n{path}"


@app.command(rich_help_panel=IN_A_CLONE)
def bench(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            help="step: AdvBN's training step against one written straight from the formula; corrupt: the "
            "corruptions against imagecorruptions-imaug and kornia; "
            "evaluate: all 75 cells against the forward passes alone; scale: growth with images, classes, "
            "batch, steps and processes; folders: start, reading and memory with up to 100,000 pictures; "
            "fidelity: what a network recognises under our corruptions and under "
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
    device: Annotated[
        Optional[str],
        typer.Option(help="cpu or cuda; cpu if left out, and with --contribute every one that there is."),
    ] = None,
    repetitions: Annotated[int, typer.Option(help="Turns that count.", min=3, rich_help_panel=OF_SPEED)] = 7,
    model: Annotated[
        Optional[str],
        typer.Option(
            help="Any torchvision network, or timm/NAME.",
            rich_help_panel=OF_FIDELITY,
            autocompletion=complete_models,
        ),
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
    contribute: Annotated[
        bool,
        typer.Option(
            "--contribute",
            help="Run every benchmark that fits this machine, into results/bench/machines/NAME.json; what is "
            "there already is not measured again.",
            rich_help_panel=OF_MACHINE,
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Few repetitions and small sizes: whether it works here; compared with nothing.",
            rich_help_panel=OF_MACHINE,
        ),
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Say what is missing and how long it takes, no more.", rich_help_panel=OF_MACHINE
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Ratios of speed, or how far corruptions are those of ImageNet-C.

    Measured in turns, and kept under results/bench/. With --contribute all of this machine's, in one record.

    Example: advbn bench step --network resnet50 --batch 8, or: advbn bench --contribute, or: advbn bench
    fidelity --model efficientnet_lite0 --weights package --data val"""
    from ..base.files import project_root

    _check_words(context, what, network)
    project_root()  # where what is measured is kept
    if device or not contribute:
        device = device or "cpu"
        _check_device(device, what if not contribute else "all")
    if contribute:
        path = _contribute(device, quick, estimate)
        print(path.read_text(encoding="utf-8") if json and path.exists() else path)
    elif what == "fidelity":
        table, said = _bench_fidelity(model, weights, data, classes, images, severities, device)
        print(table.to_json(orient="records", indent=1) if json else f"{table.round(2).to_string()}\n{said}")
    else:
        named = {"network": network} if what in ("step", "evaluate") else {}
        sizes = {k: v for k, v in (("batch", batch), ("size", size)) if v is not None}
        path, said = _measured(what, device, {**named, **sizes, "repetitions": repetitions})
        print(path.read_text(encoding="utf-8") if json else said)
