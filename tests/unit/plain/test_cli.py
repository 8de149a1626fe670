"""The list of commands and of exit statuses."""

import os
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
    "restyle",
    "check",
    "doctor",
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


def test_the_help_says_where_a_command_runs_and_what_runs_anywhere():
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"})
    text = re.sub(r"\x1b\[[\d;]*m", "", done.output)
    anywhere, clone = text.split("In a clone of the project")
    anywhere, clone = (
        {name for name in COMMANDS if re.search(rf"(?m)^\W*{name} ", part)}
        for part in (anywhere.split("Anywhere")[1], clone)
    )
    assert {"corrupt", "restyle", "check", "evaluate", "export", "doctor", "import-official"} <= anywhere
    assert {"data", "train", "plan", "report", "verify", "bench"} <= clone
    assert anywhere | clone == {*COMMANDS} and not anywhere & clone
    assert "advbn corrupt photographs foggy --name fog" in " ".join(text.split())


def test_the_version_is_the_packages():
    from advbn import __version__

    assert CliRunner().invoke(app, ["--version"]).output.strip() == __version__


def test_a_logger_is_checked_before_work(refused, root, monkeypatch):
    monkeypatch.chdir(root)
    for command in (["pretrain"], ["train", "advbn"], ["seed", "0"]):
        refused([*command, "--log", "tensorbord"], "did you mean 'tensorboard'")


def test_the_hub_is_looked_for_where_it_is_needed_and_nothing_else_is_said_of_it(monkeypatch, capsys):
    from advbn.cli.options import _OTHERWISE, HUB, look_for_hub

    for name in _OTHERWISE:
        monkeypatch.setenv(name, "")  # put back at the end
        monkeypatch.delenv(name)
    for model, weights in (("resnet18", "DEFAULT"), ("timm/resnet18", __file__), ("timm/resnet18", None)):
        look_for_hub(model, [weights])
    assert "HF_HUB_OFFLINE" not in os.environ and capsys.readouterr().err == ""
    look_for_hub("hub:timm/resnet18.a1_in1k")
    away = f"{HUB} cannot be reached" in capsys.readouterr().err
    assert (os.environ.get("HF_HUB_OFFLINE") == "1") is away
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    look_for_hub("timm/resnet18", ["DEFAULT"])
    assert os.environ["HF_HUB_OFFLINE"] == "0"
