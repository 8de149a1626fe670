"""Options and checks that several commands share."""

import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from .complete import complete_loggers, complete_methods, complete_seeds

OF_METHOD, OF_MODEL = (
    "With a method of params.yaml",
    "With --model",
)  # what an option of evaluate goes with, and its place in the help


def seed_option(panel=None):
    return Annotated[
        int,
        typer.Option(help="Seed of the network.", rich_help_panel=panel, autocompletion=complete_seeds),
    ]


def on_bad_option(panel=None):
    return Annotated[
        str,
        typer.Option(
            help="error, or skip: leave out what cannot be read, and list it.", rich_help_panel=panel
        ),
    ]


def save_option(panel=None):
    return Annotated[
        bool,
        typer.Option(
            "--save",
            help="Write the rows to results/, where the report looks for them.",
            rich_help_panel=panel,
        ),
    ]


METHOD = Annotated[str, typer.Argument(help="A method of params.yaml.", autocompletion=complete_methods)]


def log_option(panel=None):
    return Annotated[
        Optional[str],
        typer.Option(
            help="Tell losses and accuracy to tensorboard or dvclive, too, under logs/.",
            rich_help_panel=panel,
            autocompletion=complete_loggers,
        ),
    ]


def tell_left_out(bad):
    "List what could not be read."
    if bad.found:
        print(
            f"{len(bad.found)} images could not be read and were left out:",
            *bad.found.values(),
            sep="\n  ",
            file=sys.stderr,
        )


HUB = "huggingface.co"
_OTHERWISE = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def look_for_hub(model: str, weights=()):
    """Where the hub of `model` cannot be reached, let its library look at earlier downloads alone, which it
    would find out by itself in a minute; what the environment says of hub and proxies goes before."""
    from ..base.files import is_weights_file

    needed = model.startswith("hub:") or (
        model.startswith("timm/") and any(w and not is_weights_file(w) for w in weights)
    )
    if not needed or any(os.environ.get(name) for name in _OTHERWISE):
        return
    try:
        socket.create_connection((HUB, 443), timeout=3).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        print(f"advbn: {HUB} cannot be reached; only earlier downloads are looked at", file=sys.stderr)


def project_params(profile=None, method=None, **network):
    """`params.yaml` of the clone, checked, and that it has a `method`: before anything heavy is loaded, as
    `load_params` and `Params.row` do it."""
    from ..base.config import load_params

    found = load_params(profile, **network)
    if method is not None:
        found.row(method)
    return found


def kept_table(params, columns, *parts) -> Path:
    """Where rows are kept under results/; raises `DataError` before any work if there are others, and
    `OSError` if nothing can be written there."""
    from ..base.files import held, project_root
    from ..base.rows import kept_rows

    path = project_root().joinpath("results", params.profile, *parts)
    with held(path, "written", wait=60):
        kept_rows(path, columns)
    return path


def told(found, rows, path) -> bool:
    """Print `rows` and keep `found` at `path`, if there is one, in the first process alone, which writes all
    files; returns whether this is it."""
    from accelerate import PartialState

    from ..base.rows import keep_rows

    if first := PartialState().is_main_process:
        if path:
            keep_rows(found, path)
        print(rows)
    return first


def check_given(context, panel, instead):
    """Raise `ParameterError` if an option is given that is listed under another `panel`; `instead` says what
    it goes with."""
    from ..base.errors import ParameterError

    for option in context.command.params:
        if (
            getattr(option, "rich_help_panel", None) not in (None, panel)
            and context.get_parameter_source(option.name).name != "DEFAULT"
        ):
            raise ParameterError(f"{option.opts[0]} goes with {instead}")
