"""The command line's frame: its name, its help, and what becomes of errors."""

import os
import sys
import warnings
from typing import Annotated

import typer

from .. import __version__
from ..base.errors import INTERRUPTED, Busy, Interrupted, ProcessLost
from ..base.extras import extra_of, lacking

ANYWHERE, IN_A_CLONE = "Anywhere", "In a clone of the project"  # the groups of the help

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="AdvBN: image models robust to style, from adversarial feature statistics.\n\n"
    "Examples that run anywhere: advbn doctor, and, on a folder of your pictures: advbn corrupt photographs "
    "foggy --name fog",
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


def _plain(before):
    "Warnings of the package as one line, as its errors are; those of others as they were."

    def said(message, category, filename, lineno, line=None):
        own = f"{os.sep}advbn{os.sep}" in filename
        return f"advbn: {message}\n" if own else before(message, category, filename, lineno, line)

    return said


def main():
    """Run the command line; errors that a person can mend are one line and exit status 2, a run that was
    asked to stop and can go on is 75."""
    warnings.formatwarning = _plain(warnings.formatwarning)
    try:
        sys.exit(app(args=sys.argv[1:] or ["--help"], prog_name="advbn", standalone_mode=False) or 0)
    except Interrupted as stopped:
        print(f"advbn: {stopped}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ImportError as error:
        known = error.name and extra_of(error.name) and "pip install" not in str(error)
        print(f"advbn: {lacking(error.name, 'this command') if known else error}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError, FloatingPointError, Busy, ProcessLost) as error:
        print(f"advbn: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if type(error).__name__ == "Abort":  # Ctrl-C
            print("advbn: stopped, with nothing to keep", file=sys.stderr)
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
