"""The list of commands and of exit statuses."""

import re

from typer.testing import CliRunner

from advbn.cli import app

COMMANDS = (
    "data",
    "run",
    "pretrain",
    "train",
    "evaluate",
    "seed",
    "make-set",
    "export",
    "finetune",
    "clean",
    "corrupt",
    "check",
    "plan",
    "status",
    "verify",
    "bench",
    "report",
    "import-official",
)


def test_help_lists_every_command_and_every_exit_status():
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
    text = re.sub(r"\x1b\[[\d;]*m", "", done.output)
    assert done.exit_code == 0
    assert "AdvBN: image models robust to style, from adversarial feature statistics." in text
    assert [name for name in COMMANDS if not re.search(rf"(?m)^\W*{name} ", text)] == []
    words = " ".join(text.split())
    for said in (
        "Exit status: 0 done",
        "1 check, status or verify found something wrong",
        "2 an error that a person can mend",
        "75 asked to stop, progress kept, the same command goes on",
        "130 stopped by Ctrl-C with nothing to keep.",
    ):
        assert said in words


def test_the_version_is_the_packages():
    from advbn import __version__

    assert CliRunner().invoke(app, ["--version"]).output.strip() == __version__
