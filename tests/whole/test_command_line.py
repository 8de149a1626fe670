"""The command line in a process of its own: what it prints, one line for a slip, and its exit status."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, call
from miniature_imagenet import picture

from advbn.base.config import load_params
from advbn import evaluate
from advbn.adapters.evaluate import FolderReading
from advbn.cli.app import ANYWHERE, app
from advbn.training.cost import missing_sets, set_sizes
from advbn.networks.models import build_model
from advbn.networks.weights import save_state


def evaluated(*words):
    "`advbn evaluate` with these words, in a process of its own."
    return subprocess.run(
        [sys.executable, "-m", "advbn", "evaluate", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_command_line_prints_the_table(emoji_folder, emoji_network, tmp_path, run):
    save_state(emoji_network.state_dict(), tmp_path / "net.pt")
    words = ["--model", "small_resnet", "--weights", tmp_path / "net.pt", "--data", emoji_folder]
    words += ["--size", 40, "--resize", 40, "--shifts", "clean,sketch"]
    both = ["--adversarial-weights", tmp_path / "net.pt"]
    done = evaluated(*words, *both, "--json")
    assert done.returncode == 0, done.stderr
    reading = FolderReading(40, 40, workers=0)
    networks = {"clean": emoji_network, "adversarial": emoji_network}
    direct = evaluate(networks, emoji_folder, "clean,sketch", reading=reading, control="clean")
    assert json.loads(done.stdout) == json.loads(direct.to_json())
    assert "clean: images resized to 40 (bilinear), cut to 40 pixels" in done.stderr
    for more, found in (
        (both, direct),
        ([], evaluate({"small_resnet": emoji_network}, emoji_folder, "clean,sketch", reading=reading)),
    ):
        status, out, _ = run("evaluate", *words, *more)
        assert status == 0 and out == f"{found}\n" and "12 images of" in out


@pytest.mark.parametrize("given", ["torchvision/resnet18", "resnet18"])
def test_a_folder_with_some_of_imagenets_classes_is_tested_in_all_thousand(given, tmp_path, run, refused):
    torch.manual_seed(0)
    model = build_model("torchvision/resnet18", 1000)
    save_state(model.state_dict(), tmp_path / "all.pt")
    for c, name in enumerate(("n01440764", "n03126707")):
        picture(tmp_path / "val" / name / "0.JPEG", (70, 60), seed=c)
    words = ["evaluate", "--model", given, "--weights", tmp_path / "all.pt", "--data", tmp_path / "val"]
    words += ["--size", 32, "--shifts", "clean,sketch"]
    outputs = [run(*words, *more)[1] for more in ([], ["--classes", "imagenet"])]
    assert outputs[0] == outputs[1] and "2 images of" in outputs[0] and "cut to 32 pixels" in outputs[0]
    (tmp_path / "val/n01440764").rename(tmp_path / "val/trout")
    refused(
        words, "'fc.weight' is (1000, 512) and has to be (2, 512)", "--classes FILE", "--classes imagenet"
    )
    refused([*words, "--classes", "imagenet"], "has the class 'trout'; the network knows 1000 classes")


def test_published_weights_are_tested_in_all_thousand_classes(tmp_path, run, refused):
    for c, name in enumerate(("tench", "crane bird")):
        picture(tmp_path / name / "0.JPEG", (70, 60), seed=c)
    words = ["evaluate", "--model", "efficientnet_lite0", "--weights", "package", "--data", tmp_path]
    status, out, _ = run(*words, "--size", 64, "--shifts", "clean")
    assert status == 0 and "images resized to 73 (bicubic), cut to 64 pixels, mean (0.5" in out
    (tmp_path / "crane bird").rename(tmp_path / "trout")
    refused(
        words, "have 1000 classes and the data 2", "list its classes", "--classes imagenet", "advbn finetune"
    )


def test_wrong_words_are_one_line():
    done = evaluated()
    assert (
        done.returncode == 2
        and "exactly one of them" in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )


def test_command_line_errors_are_one_line_and_status_2(refused, monkeypatch):
    done = call(
        sys.executable,
        "-m",
        "advbn",
        "run",
        "nbs/stages/method.ipynb",
        "-p",
        "methd=advbn",
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2 and "did you mean 'method'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    monkeypatch.chdir(ROOT)
    for arguments, words in (
        (["run", "nbs/none.ipynb"], "no notebook"),
        (["train", "advbm"], "did you mean 'advbn'"),
    ):
        assert len(refused(arguments, words)) == 1


@pytest.fixture(scope="module")
def params():
    return load_params()


def test_a_plan_has_the_studies_that_its_profile_has(run, monkeypatch):
    monkeypatch.delenv("TINY_IMAGENET", raising=False)
    status, out, _ = run("plan", "--profile", "imagenet200", "--json")
    stages = {row["stage"]: row["runs"] for row in json.loads(out)["stages"]}
    assert status == 0 and stages["bases plain"] == 12 and "bases mixup" not in stages
    assert stages["study ablations"] == 3 * len(load_params("imagenet200").studies["ablations"].methods)


def test_the_plan_names_stages_and_missing_sets(params, monkeypatch, tmp_path):
    for name in ("IMAGENET", "IMAGENET_SKETCH"):
        monkeypatch.delenv(name, raising=False)
    missing = missing_sets(params.model_copy(update={"profile": "imagenet"}))
    assert len(missing) == 2 and "IMAGENET_SKETCH" in missing[1] and missing_sets(params) == []
    monkeypatch.setenv("CIFAR10", str(tmp_path / "cifar"))
    cifar = params.model_copy(update={"profile": "cifar10"})
    assert (
        "no images at" in missing_sets(cifar)[0]
        and set_sizes(cifar) == (50_000, cifar.current.data.test_images, 32)
        and not (tmp_path / "cifar").exists()
    )  # nothing is downloaded
    (tmp_path / "cifar/tran").mkdir(parents=True)
    assert "has not train/ and test/ nor cifar-10-batches-py/" in missing_sets(cifar)[0]
    done = subprocess.run(
        [sys.executable, "-m", "advbn", "plan", "--json"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    stages = {row["stage"]: row for row in planned["stages"]}
    assert {
        "pretrain",
        "shifts",
        *(f"method {m}" for m in params.methods),
        *(f"study {s}" for s in params.studies),
    } <= set(stages)
    recipe = params.current.pretrain
    assert stages["pretrain"]["images"] == len(params.seeds) * recipe.epochs * 1424

    def size(name):
        return 4 * sum(p.numel() for p in build_model(name, 9).parameters())

    networks = (
        len(params.seeds)
        * (1 + sum(1 + (m.train == "adversarial") for m in params.methods.values()))
        * size(params.current.network.name)
    )
    bases = sum(
        len(params.current.short.seeds) * size((b.network or params.current.network).name)
        for b in params.run_bases.values()
    )
    assert planned["disk"]["checkpoints"] == 2 * (
        networks + bases + 2 * size(params.current.pictures.network)
    )
    assert all(row["minutes"] >= 0 for row in planned["stages"]) and planned["missing"] == []


def test_the_package_is_a_program():
    from advbn import __version__

    assert (
        subprocess.run(
            [sys.executable, "-m", "advbn", "--version"], capture_output=True, text=True
        ).stdout.strip()
        == __version__
    )


@pytest.mark.parametrize("command, status", [("verify", 0), ("status", 2)])
def test_results_are_compared_where_neither_dvc_nor_torch_nor_images_are(tmp_path, command, status):
    "And a command that needs DVC says so in a line."
    for name in ("dvc.yaml", "dvc.lock", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "results/openmoji", tmp_path / "results/openmoji")
    words = ["advbn", command] + (["--against", str(ROOT / "results")] if command == "verify" else [])
    code = (
        "import sys\n"
        "for name in ('dvc', 'torch', 'torchvision', 'accelerate', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = {words}\n"
        "from advbn.cli import main\n"
        "main()"
    )
    done = call(sys.executable, "-c", code, cwd=tmp_path, check=False)
    assert done.returncode == status, done.stderr
    said = done.stdout if command == "verify" else done.stderr
    assert said.splitlines()[-1].startswith(
        "Good news: " if command == "verify" else "advbn: status asks DVC"
    )


def without_torch(*words, cwd, **environment):
    "A command in a process in which torch cannot be loaded."
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['pandas'] = None\n"
        f"sys.argv = {['advbn', *map(str, words)]}\n"
        "from advbn.cli import main\n"
        "main()"
    )
    return call(sys.executable, "-c", code, cwd=cwd, check=False, PYTHONPATH=str(ROOT), **environment)


@pytest.mark.parametrize(
    "words, said",
    [
        ("corrupt photos out --name fogg", "fog"),
        ("corrupt photos out --name fog --severity 9", "allowed are some of 1,2,3,4,5"),
        ("corrupt photos photos --name fog", "the folder of the pictures themselves"),
        ("corrupt nowhere out --name fog", "no images at nowhere"),
        ("restyle photos out --name sutra", "sutro"),
        ("evaluate --model resnet50 --weights nope.pt --data photos", "no weights at nope.pt"),
        ("evaluate --model resnet50 --weights IMAGENET1K_V9 --data photos", "did you mean 'IMAGENET1K_V2'"),
        ("evaluate --model resnet50 --weights photos.csv --data photos", "no file of weights"),
        ("evaluate --model resnet50 --weights DEFAULT --data photos --shifts cleen", "clean"),
        ("evaluate --model resnett50", "'torchvision/resnet50'"),
        ("evaluate --model resnet50 --weights DEFAULT --data nowhere", "no images at nowhere"),
        ("evaluate --model timm/resnet500", "no network 'timm/resnet500'; the nearest are 'timm/resnet50"),
        ("evaluate --model resnet18 --classes nope.txt", "no list of classes at nope.txt"),
        ("evaluate --model timm/resnet50.a1_in1k", "needs --weights and --data"),
        ("evaluate advbn --shifts clean", "--shifts goes with"),
    ],
)
def test_a_slip_is_told_before_torch_is_loaded(emoji_folder, tmp_path, words, said):
    (tmp_path / "photos").symlink_to(emoji_folder)
    (tmp_path / "photos.csv").write_text("class,share\n")
    done = without_torch(*words.split(), cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_commands_that_look_and_tell_need_no_torch(emoji_folder, tmp_path):
    done = without_torch("check", emoji_folder, "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["images"] == 12, done.stderr
    done = without_torch("doctor", cwd=tmp_path)
    assert done.returncode == 0 and "--  project" in done.stdout, done.stderr
    done = without_torch("--help", cwd=tmp_path)
    assert done.returncode == 0 and "In a clone of the project" in done.stdout


@pytest.mark.parametrize(
    "words, offered",
    [
        ("advbn corrupt a b --name fo", ["fog"]),
        ("advbn evaluate --model resnet15", ["resnet152"]),
        ("advbn evaluate --shifts clean,sk", ["clean,sketch"]),
        ("advbn plan --profile cif", ["cifar10"]),
        ("advbn train fine", ["finetune"]),
        ("advbn train advbn --log t", ["tensorboard"]),
    ],
)
def test_a_shell_completes_words_without_torch(words, offered):
    count = str(len(words.split()) - 1)
    done = without_torch(cwd=ROOT, _ADVBN_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    assert done.stdout.split() == offered, done.stderr


EXAMPLES = [  # of commands that run anywhere, as their help shows them
    example
    for command in app.registered_commands
    if command.rich_help_panel == ANYWHERE
    for example in re.findall(
        r"(?:Example|or): (advbn [^.]+?)(?:, or|$|\n\n)", " ".join(command.callback.__doc__.split())
    )
]


def test_each_command_that_runs_anywhere_shows_an_example():
    assert {example.split()[1] for example in EXAMPLES} >= {"corrupt", "restyle", "check", "doctor"}


@pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if re.match("advbn (corrupt .*fog |restyle|check|doctor)", e)]
)
def test_an_example_of_the_help_runs_as_it_is_written(emoji_folder, tmp_path, run, monkeypatch, example):
    shutil.copytree(emoji_folder, tmp_path / "photographs/train")
    shutil.copytree(emoji_folder, tmp_path / "photographs/test")
    monkeypatch.chdir(tmp_path)
    status, said, err = run(*example.split()[1:])
    assert status == (1 if "check" in example else 0), err  # these images stand on both sides
    assert said.strip()


def test_the_plan_ends_in_a_duration_and_a_machine(run, monkeypatch, params):
    from advbn.training import cost

    monkeypatch.chdir(ROOT)
    table = cost.pd.DataFrame(
        [{"stage": "pretrain", "runs": 1, "images": 2, "TFLOP": 3.0, "minutes": 9448000.0}]
    )
    monkeypatch.setattr(cost, "plan", lambda params: table)
    status, said, _ = run("plan")
    assert status == 0 and "expected: 18.0 years at least, on this machine (" in said and "cores" in said


def test_a_report_of_committed_numbers_says_so(clone, run, monkeypatch):
    from advbn import page

    monkeypatch.setattr(page, "build_page", lambda params: "a page")
    monkeypatch.chdir(clone)
    monkeypatch.delenv("ADVBN_ROOT", raising=False)
    assert "its numbers are the committed ones" in run("report")[1]
    (clone / "results/openmoji/tables/robustness.md").write_text("one's own")
    assert "committed" not in run("report")[1]
