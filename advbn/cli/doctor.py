"""The command that says what is there."""

from typing import Annotated

import typer

from .app import ANYWHERE, app


@app.command(rich_help_panel=ANYWHERE)
def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False):
    """What is there to work with, and what each lack costs.

    torch, CUDA, bf16, disk, extras, clone, data sets, browser; it answers at once, and changes nothing.

    Example: advbn doctor"""
    from ..doctor import as_dicts, as_text, findings

    found = findings()
    if json:
        from json import dumps

        print(dumps(as_dicts(found), indent=1, ensure_ascii=False))
    else:
        print(as_text(found))
