"""The command for one's own images: from a folder and a network to a robust one."""

import math
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from .app import ANYWHERE, app
from .options import log_option, look_for_hub, on_bad_option

CHOSEN, TESTED = "In place of what is chosen", "How it is tested"


def _check_folders(data, test, out):
    "Raise `DataError` or `ParameterError` for folders that are missing, empty, or lie in each other."
    from ..base.errors import DataError, ParameterError
    from ..base.files import check_writable

    for option, folder in (("--data", data), ("--test", test)):
        if folder is None:
            continue
        if not folder.is_dir():
            raise DataError(f"{option}: no folder {folder}; expected is one with a folder for each class")
        if not any(p.is_dir() for p in folder.iterdir()):
            raise DataError(f"{option}: {folder} has no folders; expected is one for each class")
        inside, around = folder.resolve(), out.resolve()
        if inside == around or inside in around.parents:
            raise ParameterError(f"--out: {out} lies in {folder}; name a folder beside it")
    if test is not None and test.resolve() == data.resolve():
        raise ParameterError("--test is the folder of --data; leave it out, and a part is held out")
    check_writable(out, "--out")


def _check_network(model, weights):
    "Raise what is wrong with the words for a network and its weights, before anything is imported."
    from ..base.errors import ParameterError
    from ..base.extras import require
    from ..base.names import check_network, check_weights_word

    if model.startswith("hub:") and (weights or model.count("/") != 1):
        raise ParameterError(
            f"--model is {model!r}; allowed is hub:OWNER/NAME, which brings its weights along"
        )
    needed = {"efficientnet_lite0": ["photographs"]}.get(model, [])
    needed += ["timm"] if model.startswith(("timm/", "hub:")) else []
    require("finetune with this network" if needed else "finetune", "finetune", *needed)
    check_network(model)
    check_weights_word(model, weights)


def _strength(eps):
    "`--eps` as a number, `auto` or nothing."
    from ..base.errors import ParameterError

    with suppress(ValueError):
        found = eps if eps in (None, "auto") else float(eps)
        if found in (None, "auto") or 0 <= found < math.inf:
            return found
    raise ParameterError(f"--eps is {eps!r}; allowed are auto and a number from 0, such as 1.1")


@app.command(rich_help_panel=ANYWHERE)
def finetune(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Your images: a folder with a folder for each class.")],
    model: Annotated[
        str, typer.Option(help="timm/NAME, torchvision/NAME, hub:OWNER/NAME, or a network of the package.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for networks, report and card; kept, to go on there.")],
    weights: Annotated[
        Optional[str],
        typer.Option(help="A file with a state dict, or the name of published ones, such as DEFAULT."),
    ] = None,
    test: Annotated[
        Optional[Path],
        typer.Option(help="Other images to test on, such as another domain; else a part is held out."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="faithful, or fast: a cheaper attack.")] = "faithful",
    eps: Annotated[
        Optional[str], typer.Option(help="How far statistics may go; auto tries three on training images.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, no, bf16 or fp16.")] = "auto",
    after: Annotated[
        Optional[str], typer.Option(help="Where the network is cut.", rich_help_panel=CHOSEN)
    ] = None,
    head: Annotated[
        Optional[str], typer.Option(help="new: another classifier all the same.", rich_help_panel=CHOSEN)
    ] = None,
    size: Annotated[
        Optional[int], typer.Option(help="Pixels that the network is given.", rich_help_panel=CHOSEN)
    ] = None,
    resize: Annotated[
        Optional[int],
        typer.Option(help="The shorter side before the middle is cut out.", rich_help_panel=CHOSEN),
    ] = None,
    augment: Annotated[
        Optional[str],
        typer.Option(help="photographs, drawings or none: how images are changed.", rich_help_panel=CHOSEN),
    ] = None,
    batch_size: Annotated[
        Optional[int], typer.Option(help="Images of a step, of all processes.", rich_help_panel=CHOSEN)
    ] = None,
    epochs: Annotated[
        Optional[int], typer.Option(help="Of control and AdvBN.", rich_help_panel=CHOSEN)
    ] = None,
    lr: Annotated[Optional[float], typer.Option(help="Their learning rate.", rich_help_panel=CHOSEN)] = None,
    pretrain_epochs: Annotated[
        Optional[int],
        typer.Option(help="From scratch, or with a new classifier.", rich_help_panel=CHOSEN),
    ] = None,
    pretrain_lr: Annotated[
        Optional[float], typer.Option(help="The learning rate of that.", rich_help_panel=CHOSEN)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.", rich_help_panel=CHOSEN)] = 0,
    held_out: Annotated[
        float, typer.Option(help="Of each class, without --test.", rich_help_panel=TESTED)
    ] = 0.25,
    shifts: Annotated[
        str,
        typer.Option(help="all, or some of clean,corruptions,instagram,sketch.", rich_help_panel=TESTED),
    ] = "all",
    test_images: Annotated[
        Optional[int],
        typer.Option(help="Test on so many; 500 on a CPU, all on a GPU.", rich_help_panel=TESTED),
    ] = None,
    log: log_option() = None,
    on_bad_image: on_bad_option() = "error",
):
    """Make a network robust on your images: a clean control and AdvBN, compared on every shift, with a verdict,
    a report and a card. Ctrl-C, and the same command goes on. Published weights are downloaded once.

    Example: advbn finetune --data photos --model torchvision/resnet50 --weights DEFAULT --out robust"""
    from ..base.errors import ParameterError
    from ..base.extras import check_logger
    from ..base.finetuning import as_option, checked_options, kept_choices, wishes
    from ..base.machine import lack_of_cuda
    from ..base.names import MADE_ALONE, chosen

    options = {k: v for k, v in context.params.items() if k not in ("data", "model", "out", "test")}
    options["eps"] = _strength(eps)
    given = wishes(model, data, test, checked_options(options, as_option))
    chosen(shifts, MADE_ALONE, "--shifts", {"all": MADE_ALONE})
    if size and resize and resize < size:
        raise ParameterError(f"--resize is {resize} and --size {size}; the shorter side cannot be shorter")
    check_logger(log)
    if device == "cuda" and (lack := lack_of_cuda()):
        raise ParameterError(f"--device is 'cuda'; {lack}")
    _check_folders(data, test, out)
    _check_network(model, weights)
    if kept_choices(out, given).get("complete"):
        print((out / "card.md").read_text(encoding="utf-8"))
        print(f"{out} was complete; another one needs another folder")
        return

    look_for_hub(model, [weights])
    from ..adapters.finetune import finetune as run

    done = run(model, data, test, out, partial(print, flush=True), **options)
    if done is not None:
        print(f"\n{done}\n\n{out / 'report.html'}\n{out / 'card.md'}")
