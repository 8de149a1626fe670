"""The command that measures."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from .app import IN_A_CLONE, app
from .complete import complete_models
from .options import check_given

OF_SPEED, OF_FIDELITY = "With step, corrupt, evaluate and scale", "With fidelity"


def _bench_fidelity(model, weights, data, classes, images, severities, device) -> tuple:
    "Compare what a network recognises under both kinds of corruptions; `(table, what it says)`, kept."
    from ..base.errors import ParameterError
    from ..base.names import chosen_severities

    options = {"--model": model, "--weights": weights, "--data": data}
    if missing := [option for option, value in options.items() if value is None]:
        raise ParameterError(f"bench fidelity needs {' and '.join(missing)}")
    severities = chosen_severities(severities, "--severities")

    from .. import fidelity as room
    from ..images.preprocessing import preprocessing_of

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


@app.command(rich_help_panel=IN_A_CLONE)
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
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Ratios of speed, or how far corruptions are those of ImageNet-C.

    Measured in turns, and kept under results/bench/.

    Example: advbn bench step --network resnet50 --batch 8, or: advbn bench fidelity --model
    efficientnet_lite0 --weights package --data val"""
    from ..base.errors import ParameterError, did_you_mean

    kinds = ("step", "corrupt", "evaluate", "scale", "fidelity")
    if what not in kinds:
        allowed = ", ".join(map(repr, kinds))
        raise ParameterError(f"bench takes {allowed}, not {what!r}{did_you_mean(what, kinds)}")
    if what == "fidelity":
        check_given(context, OF_FIDELITY, "step, corrupt, evaluate and scale")
    else:
        check_given(context, OF_SPEED, "fidelity")
    if not network.startswith("resnet"):
        raise ParameterError(
            f"--network is {network!r}; the reference is written for torchvision's ResNets, such as "
            f"'resnet18'"
        )
    from ..base.files import project_root

    project_root()  # where what is measured is kept
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

    from .. import bench as rooms

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
