"""Runs that are killed, stopped, started twice, or find a full disk: what was promised of them, with real
processes and signals."""

import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, call, would_run

from advbn.base.errors import Busy, DataError, Interrupted
from advbn.base.files import whole_file
from advbn.base.progress import Progress, read_checked, write_checked
from advbn.base.rows import keep_rows
from advbn.base.sections import Training
from advbn.images.batches import MemoryBatches, read_images
from advbn.images.datasets import EmbeddedData
from advbn.images.openmoji import build_openmoji, fingerprint
from advbn.images.writing import make_set
from advbn.networks.autoencoder import Autoencoder
from advbn.networks.models import build_model
from advbn.networks.weights import load_state, save_state
from advbn.shifts.cells import cells, store_cells, stored_cells
from advbn.training.loop import finetuning_net, fit, fit_decoder

THREE_EPOCHS = Training(epochs=3, batch_size=16, lr=0.02, schedule="onecycle")


AUGMENT = dict(degrees=10.0, translate=0.1, scale=0.1, flip=True)


@pytest.fixture(scope="module")
def context():
    "Processes forked from one that has imported everything, so that each start takes a tenth of a second."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["advbn.training.train", "accelerate", __name__])
    return context


def train(folder, every=1, seed=0, epochs=20):
    """A run as the pipeline's: random start, augmentation, a policy that mixes images; its weights and
    history end in `folder`."""
    from advbn.base.sections import Augment

    torch.set_num_threads(1)
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 20)]
    torch.manual_seed(0)
    net = finetuning_net(build_model("small_resnet", 9), "layer1", {"steps": 1, "start": "random"})
    loader = MemoryBatches(images, 16, seed, Augment(**AUGMENT), "mixup")
    try:
        with Progress(folder / "run.pt", every) as progress:
            history = fit(
                net, loader, THREE_EPOCHS.model_copy(update={"epochs": epochs}), seed, progress=progress
            )
    except Interrupted:
        os._exit(75)
    else:
        save_state(net.state_dict(), folder / "weights.pt")
        torch.save(history, folder / "history.pt")


def start(context, folder, *args):
    process = context.Process(target=train, args=(folder, *args))
    process.start()
    return process


def written(path):
    "When the file was written, or 0: it is missing for a moment between two renamings."
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


def same(a, b):
    "Weights, statistics and every number of the history, to the last bit."
    left, right = load_state(a / "weights.pt"), load_state(b / "weights.pt")
    assert list(left) == list(right) and all(torch.equal(left[k], right[k]) for k in left)
    assert torch.load(a / "history.pt") == torch.load(b / "history.pt")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, context):
    folder = tmp_path_factory.mktemp("whole")
    process = start(context, folder, 1000)
    process.join()
    assert process.exitcode == 0 and len(torch.load(folder / "history.pt")) == 20
    return folder


@pytest.mark.promise(
    "Interrupted work",
    "training killed at any moment ends, after the same command, with the same weights and metrics to the "
    "last bit",
)
@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_many_times_ends_as_if_it_had_not_been(uninterrupted, context, tmp_path, times):
    "SIGKILL at random moments, a file written after every step, so that many of them fall into the writing."
    path, moments, kills, steps = tmp_path / "run.pt", random.Random(0), 0, []
    while kills < times:
        process = start(context, tmp_path, 1)
        before = written(path)
        deadline = time.time() + 60
        while (
            kills % 2 and time.time() < deadline and written(path) <= before
        ):  # every other time it comes a step further
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.8))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"the run is too short for {times} kills"
        kills += 1
        steps.append((read_checked(path) or {"step": 0})["step"])
    assert steps == sorted(steps) and 0 < steps[-1] < 100  # what was kept is never lost again
    process = start(context, tmp_path, 1)
    process.join()
    assert process.exitcode == 0
    same(tmp_path, uninterrupted)


@pytest.mark.promise("Interrupted work", "Ctrl-C and SIGTERM keep the progress and exit with status 75")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_asked_to_stop_keeps_its_progress_and_goes_on(uninterrupted, context, tmp_path, number):
    process = start(context, tmp_path, 1000)
    while not (tmp_path / "run.owner").exists():
        time.sleep(0.01)
    time.sleep(1.0)
    os.kill(process.pid, number)
    process.join()
    kept = read_checked(tmp_path / "run.pt")
    assert process.exitcode == 75 and kept["step"] > 0 and not (tmp_path / "run.owner").exists()
    process = start(context, tmp_path, 1000)
    process.join()
    assert process.exitcode == 0
    same(tmp_path, uninterrupted)


@pytest.mark.promise(
    "Interrupted work", "a truncated or altered checkpoint is noticed, and the one before is used"
)
def test_an_altered_file_is_noticed_and_the_one_before_is_used(tmp_path):
    path = tmp_path / "run.pt"
    assert read_checked(path) is None
    for step in (1, 2):
        write_checked({"step": step, "weights": torch.arange(1000.0)}, path)
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:40], b"", whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]):
        path.write_bytes(broken)
        with pytest.warns(UserWarning, match="run.pt is truncated or altered"):
            assert read_checked(path)["step"] == 1
    path.unlink()  # killed between the two renamings
    assert read_checked(path)["step"] == 1


@pytest.mark.promise("Interrupted work", "nothing in a checkpoint is executed")
def test_nothing_in_the_file_is_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    write_checked({"step": Payload()}, tmp_path / "run.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        read_checked(tmp_path / "run.pt")
    assert not (tmp_path / "executed").exists()


def fill(folder, sizes):
    "Write twice; before the second time the system allows no more than `sizes` bytes in a file."
    write_checked({"step": 1}, folder / "run.pt")
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes, sizes))
    try:
        write_checked({"step": 2, "weights": torch.zeros(100_000)}, folder / "run.pt")
    except OSError as error:
        os._exit(
            3 if str(folder / "run.pt") in str(error) and "the last good progress is" in str(error) else 4
        )


@pytest.mark.promise("Interrupted work", "a full disk stops with a clear error and leaves the last good file")
def test_a_disk_that_takes_no_more_leaves_the_last_good_file(context, tmp_path):
    process = context.Process(target=fill, args=(tmp_path, 50_000))
    process.start()
    process.join()
    assert (
        process.exitcode == 3
        and read_checked(tmp_path / "run.pt") == {"step": 1}
        and [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    )


@pytest.mark.promise(
    "Interrupted work", "a second run on the same files stops at once and says who holds them"
)
def test_a_second_run_stops_at_once_and_says_who_is_at_work(context, tmp_path):
    process = start(context, tmp_path, 1000, 0, 30)
    while not (tmp_path / "run.owner").exists() or not (tmp_path / "run.owner").read_text():
        time.sleep(0.01)
    with (
        pytest.raises(Busy, match=f"run is being trained by process {process.pid} on "),
        Progress(tmp_path / "run.pt", 1),
    ):
        pass
    process.kill()  # the lock goes with its owner, however it ends
    process.join()
    with Progress(tmp_path / "run.pt", 1):
        pass


@pytest.mark.promise("Interrupted work", "progress of another run is passed over, with a warning")
def test_progress_of_another_run_is_passed_over(tmp_path):
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 60)]
    finished = []
    for seed in (0, 1):
        torch.manual_seed(0)
        net = finetuning_net(build_model("small_resnet", 9), "layer1", None)
        with Progress(tmp_path / "run.pt", 1) as progress:
            if seed:
                with pytest.warns(UserWarning, match="run with other settings"):
                    finished.append(
                        fit(net, MemoryBatches(images, 16, seed), THREE_EPOCHS, seed, progress=progress)
                    )
            else:
                finished.append(
                    fit(net, MemoryBatches(images, 16, seed), THREE_EPOCHS, seed, progress=progress)
                )
    assert len(finished[1]) == 3 and finished[0] != finished[1]


def train_decoder(folder, every):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    autoencoder = Autoencoder(build_model("small_vgg", 9), "features.relu2_2")
    images = read_images(ROOT / "data/openmoji")[range(0, 1898, 60)]
    with Progress(folder / "run.pt", every) as progress:
        errors = fit_decoder(autoencoder, MemoryBatches(images, 8, 0), 100, 0.004, progress)
    save_state(autoencoder.state_dict(), folder / "weights.pt")
    torch.save(errors, folder / "history.pt")


def killed_until_done(context, target, *args, pause, at_least=3):
    """Start it and kill it after a random time, `at_least` times, then let it end. Returns how often it was
    killed before it was done."""
    moments, kills = random.Random(1), 0
    for _ in range(at_least):
        process = context.Process(target=target, args=args)
        process.start()
        process.join(moments.uniform(*pause))
        kills += process.is_alive()
        process.kill()
        process.join()
        yield kills
    process = context.Process(target=target, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0
    yield kills


@pytest.mark.promise(
    "Interrupted work",
    "training killed at any moment ends, after the same command, with the same weights and metrics to the "
    "last bit",
)
@pytest.mark.slow
def test_the_decoder_killed_and_started_again(context, tmp_path):
    (tmp_path / "killed").mkdir(), (tmp_path / "whole").mkdir()
    *_, kills = killed_until_done(
        context, train_decoder, tmp_path / "killed", 1, pause=(0.5, 1.5), at_least=4
    )
    process = context.Process(target=train_decoder, args=(tmp_path / "whole", 1000))
    process.start()
    process.join()
    assert kills >= 2
    same(tmp_path / "killed", tmp_path / "whole")


def draw(folder):
    build_openmoji(folder / "data", limit=60)


@pytest.mark.promise(
    "Interrupted work",
    "a half-written set of images or of shifts is redone or continued, never taken for complete",
)
def test_half_drawn_images(context, tmp_path):
    (tmp_path / "whole").mkdir(), (tmp_path / "killed").mkdir()
    draw(tmp_path / "whole")
    whole = fingerprint(tmp_path / "whole/data")
    for kills in killed_until_done(context, draw, tmp_path / "killed", pause=(0.2, 1.2)):
        if (tmp_path / "killed/data").exists():
            assert fingerprint(tmp_path / "killed/data") == whole
    assert (
        kills >= 2
        and [p.name for p in (tmp_path / "killed").iterdir()] == ["data"]
        and fingerprint(tmp_path / "killed/data") == whole
    )


def keep_shifts(folder):
    torch.set_num_threads(1)
    data = EmbeddedData(ROOT / "data")
    numbers = data.test_indices(0)
    store_cells(cells(data.test(0), numbers, line_art=data.line_art(numbers)), folder / "shifts")


@pytest.mark.promise(
    "Interrupted work",
    "a half-written set of images or of shifts is redone or continued, never taken for complete",
)
@pytest.mark.slow
def test_half_made_shifts(context, tmp_path):
    kept = tmp_path / "shifts"
    for kills in killed_until_done(context, keep_shifts, tmp_path, pause=(0.5, 4.0)):
        if not (kept / "cells.csv").exists():
            with pytest.raises(DataError, match="no shifted images at .*, or not all"):
                list(stored_cells(kept, "abcdefghi"))
    assert kills >= 2 and len(list(stored_cells(kept, "abcdefghi"))) == 97 and not list(kept.rglob(".*"))
    path = kept / "corruptions/fog/3.npz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="fog/3.npz is missing or damaged .*dvc repro --force shifts"):
        list(stored_cells(kept, "abcdefghi"))


def slowly(batch):
    time.sleep(0.1)
    return 255 - batch.images


def write_set(folder):
    make_set(
        read_images(ROOT / "data/sketch")[range(0, 1898, 4)],
        folder / "set",
        slowly,
        {"kind": "negative"},
        batch_size=16,
    )


@pytest.mark.promise(
    "Interrupted work",
    "a half-written set of images or of shifts is redone or continued, never taken for complete",
)
def test_half_written_sets(context, tmp_path):
    written_, begun = [], False
    for kills in killed_until_done(context, write_set, tmp_path, pause=(0.8, 1.6)):
        there = [(tmp_path / name).exists() for name in ("set", "set.partial")]
        begun = begun or any(there)  # a busy machine may kill it before it has read what it is made from
        assert sum(there) == begun
        written_.append(len(list(tmp_path.rglob("[!.]*.png"))))
    assert kills >= 2 and written_ == sorted(written_) and written_[-1] == 475  # what was there is kept
    made, images = read_images(tmp_path / "set"), read_images(ROOT / "data/sketch")[range(0, 1898, 4)]
    assert (
        made.names == images.names
        and torch.equal(made.images, 255 - images.images)
        and not list((tmp_path / "set").rglob(".*.png"))
    )


def save_on_a_full_disk(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        save_state({"weights": torch.zeros(100_000)}, path)
    except OSError as error:
        os._exit(3 if str(path) in str(error) else 4)


@pytest.mark.promise("Interrupted work", "a full disk stops with a clear error and leaves the last good file")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_disk_that_takes_no_more_leaves_the_last_weights(context, tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    save_state({"weights": torch.ones(3)}, path)
    process = context.Process(target=save_on_a_full_disk, args=(path,))
    process.start()
    process.join()
    assert (
        process.exitcode == 3
        and torch.equal(load_state(path)["weights"], torch.ones(3))
        and [p.name for p in tmp_path.iterdir()] == [path.name]
    )


@pytest.mark.promise(
    "Interrupted work", "a truncated or altered checkpoint is noticed, and the one before is used"
)
def test_a_damaged_file_does_not_push_the_good_one_out(tmp_path):
    path = tmp_path / "run.pt"
    for step in (1, 2):
        write_checked({"step": step}, path)
    path.write_bytes(b"damaged")
    write_checked({"step": 3}, path)
    path.unlink()  # as if killed between the two renamings
    assert read_checked(path)["step"] == 1


@pytest.mark.promise(
    "Interrupted work", "a second run on the same files stops at once and says who holds them"
)
def test_two_writers_of_a_set(context, tmp_path):
    images = read_images(ROOT / "data/sketch")[range(16)]
    process = context.Process(target=write_set, args=(tmp_path,))
    process.start()
    while not (tmp_path / "set.owner").exists() or not (tmp_path / "set.owner").read_text():
        time.sleep(0.01)
    with pytest.raises(Busy, match=f"set is being written by process {process.pid} on "):
        make_set(images, tmp_path / "set", slowly, {"kind": "negative"})
    process.join()
    assert process.exitcode == 0 and [p.name for p in tmp_path.iterdir()] == ["set"]


FULL_DISK = """
import os, resource, sys, time
from advbn import cli
from advbn.training import train
first, save_state, clear_progress = os.environ["RANK"] == "0", train.save_state, train.clear_progress

def late_and_full(*arguments):  # the other process is done by now, and the disk takes no more
    time.sleep(4)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    save_state(*arguments)

def late(*arguments):
    time.sleep(1)
    clear_progress(*arguments)

if first:
    train.save_state = late_and_full
else:
    train.clear_progress = late
sys.argv[0] = "advbn"
cli.main()
"""


@pytest.mark.promise("Interrupted work", "a full disk stops with a clear error and leaves the last good file")
def test_two_processes_keep_their_progress_until_the_weights_are_written(tmp_path):
    "The second process is done while the first, which writes, still waits for a disk that is full."
    (tmp_path / "data").symlink_to(ROOT / "data")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["profiles"]["openmoji"]["pretrain"]["epochs"] = 1
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "full.py").write_text(FULL_DISK)
    environment = {
        **os.environ,
        "ADVBN_ROOT": str(tmp_path),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "full.py"), "pretrain"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0 and "seed0-clean.pt could not be written" in done.stderr
    kept = read_checked(tmp_path / "progress/openmoji/pretrained-seed0.pt")
    assert kept["history"][0]["epoch"] == 1
    done = subprocess.run(
        [*launch, "-m", "advbn", "pretrain"], env=environment, capture_output=True, text=True, timeout=200
    )
    assert (
        done.returncode == 0
        and not list((tmp_path / "progress").rglob("*.pt*"))
        and (tmp_path / "checkpoints/openmoji/pretrained/seed0-clean.pt").exists()
    )


def keep_seed(path, seed, ready):
    ready.wait()
    keep_rows(pd.DataFrame({"seed": [seed] * 2000, "cell": range(2000)}), path)


@pytest.mark.promise("Interrupted work", "what several processes save at once is all kept")
def test_rows_of_several_seeds_saved_at_once(context, tmp_path):
    for turn in range(2):
        path, ready = tmp_path / f"runs{turn}.csv", context.Barrier(4)
        running = [context.Process(target=keep_seed, args=(path, seed, ready)) for seed in range(4)]
        for process in running:
            process.start()
        for process in running:
            process.join()
            assert process.exitcode == 0
        assert pd.read_csv(path).seed.value_counts().to_dict() == {seed: 2000 for seed in range(4)}
    assert len(list(tmp_path.iterdir())) == 2


def save_many(path, ready, number):
    ready.wait()
    for _ in range(30):
        save_state({"weights": torch.full((50_000,), float(number))}, path)


def write_half(path, half):
    with whole_file(path) as file:
        file.write(b"half")
        half.set()
        time.sleep(600)


def test_weights_written_by_two_at_once_are_those_of_one(context, tmp_path):
    "And what a writer that was killed has left is removed by the next."
    path, ready = tmp_path / "net.pt", context.Barrier(2)
    running = [context.Process(target=save_many, args=(path, ready, number)) for number in (1, 2)]
    for process in running:
        process.start()
    for process in running:
        process.join()
        assert process.exitcode == 0
    assert load_state(path)["weights"].unique().tolist() in ([1.0], [2.0])
    half = context.Event()
    process = context.Process(target=write_half, args=(path, half))
    process.start()
    assert half.wait(120) and list(tmp_path.glob(".*.partial"))
    process.kill()
    process.join()
    save_state({"weights": torch.zeros(3)}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]


@pytest.mark.promise("Interrupted work", "dvc repro after a failed stage goes on from that stage")
def test_a_failed_stage_is_where_the_next_run_begins(reproduced):
    "A method gets new settings; the report fails, is mended, and nothing before it is run again."
    clone, params = reproduced, reproduced / "params.yaml"
    content = yaml.safe_load(params.read_text())
    content["methods"]["gentle"]["layer"]["eps"] = 0.1  # less than a step
    params.write_text(yaml.safe_dump(content, sort_keys=False))
    path = clone / "nbs/stages/report.ipynb"
    before = path.read_text()
    broken = nbformat.reads(before, as_version=4)
    broken.cells.append(nbformat.v4.new_code_cell("raise ValueError('this stage fails')"))
    nbformat.write(broken, path)
    done = call(sys.executable, "-m", "dvc", "repro", "report", cwd=clone, check=False)
    assert done.returncode != 0 and "this stage fails" in done.stdout + done.stderr
    ran = re.findall(r"Running stage '(\S+)'", done.stdout + done.stderr)
    assert ran == ["method@openmoji-gentle", "report@openmoji"]
    path.write_text(before)
    done = call(sys.executable, "-m", "dvc", "repro", cwd=clone)
    again = re.findall(r"Running stage '(\S+)'", done.stdout + done.stderr)
    assert "report@openmoji" in again and "method@openmoji-gentle" not in again and would_run(clone) == []


@pytest.mark.promise("Interrupted work", "Ctrl-C and SIGTERM keep the progress and exit with status 75")
def test_a_run_asked_to_stop_says_so_by_its_exit_status(reproduced):
    """In the same clone: a second run on the same files is refused while the first is at work; the first
    keeps its progress and goes on from it."""
    clone, path = reproduced, reproduced / "params.yaml"
    before = path.read_text()
    content = yaml.safe_load(before)
    content["profiles"]["openmoji"]["pretrain"]["epochs"] = 100
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    command = [sys.executable, "-m", "advbn", "pretrain", "--seed", "0"]
    first = subprocess.Popen(command, cwd=clone, stderr=subprocess.PIPE, text=True)
    while not (clone / "progress/openmoji/pretrained-seed0.owner").exists() and first.poll() is None:
        time.sleep(0.1)
    second = call(*command, cwd=clone, check=False)
    assert second.returncode == 2 and f"being trained by process {first.pid}" in second.stderr
    first.send_signal(signal.SIGTERM)
    said = first.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert (
        first.returncode == 75
        and "SIGTERM: stopped after step" in said
        and (clone / "progress/openmoji/pretrained-seed0.pt").exists()
    )
    again = subprocess.Popen(command, cwd=clone, stderr=subprocess.PIPE, text=True)
    while not (clone / "progress/openmoji/pretrained-seed0.owner").exists() and again.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    again.send_signal(signal.SIGINT)
    later = again.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert again.returncode == 75 and int(later.split("step ")[1].split(";")[0]) > int(
        said.split("step ")[1].split(";")[0]
    )
    path.write_text(before)


@pytest.mark.promise("Interrupted work", "Ctrl-C and SIGTERM keep the progress and exit with status 75")
@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_stage_asked_to_stop_takes_its_workers_along(clone, number):
    "Two seeds side by side, each in a process of its own: both keep their progress, and none is left."
    path = clone / "params.yaml"
    before = path.read_text()
    content = yaml.safe_load(before)
    content.update(seeds=[7, 8])
    content["profiles"]["openmoji"]["short"] = None
    content["profiles"]["openmoji"]["threads"] = 1
    content["profiles"]["openmoji"]["pretrain"]["epochs"] = 200
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    kept = [clone / f"progress/openmoji/pretrained-seed{seed}" for seed in (7, 8)]
    stage = subprocess.Popen(
        [sys.executable, "-m", "advbn", "run", "nbs/stages/pretrain.ipynb", "-p", "profile=openmoji"],
        cwd=clone,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 120
    while (
        not all(k.with_suffix(".owner").exists() for k in kept)
        and time.time() < deadline
        and stage.poll() is None
    ):
        time.sleep(0.1)
    workers = [int(k.with_suffix(".owner").read_text().split()[1]) for k in kept]
    time.sleep(2)
    stage.send_signal(number)
    said = stage.communicate(timeout=90)[1]
    assert stage.returncode == 75 and f"{number.name}: stopped" in said
    assert all(k.with_suffix(".pt").exists() and not k.with_suffix(".owner").exists() for k in kept)
    deadline = time.time() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.time() < deadline:
        time.sleep(0.2)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    path.write_text(before)
    for k in kept:
        for file in clone.glob(f"progress/openmoji/{k.name}*"):
            file.unlink()


def finetune_some(folder):
    "A fine-tuning of one's own from a folder of emoji; its table ends in `folder`."
    from advbn.adapters.finetune import finetune

    torch.set_num_threads(1)
    options = {"pretrain_epochs": 2, "epochs": 1, "batch_size": 16, "shifts": "clean", "workers": 1}
    try:
        finetune("small_resnet", folder / "images", out=folder / "robust", **options)
    except Interrupted:
        os._exit(75)


def few_emoji(folder):
    "Every twentieth emoji, as a folder of one's own."
    for number, path in enumerate(sorted((ROOT / "data/openmoji").rglob("*.png"))):
        if not number % 20:
            (folder / "images" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "images" / path.parent.name)
    return folder


@pytest.mark.promise(
    "Interrupted work",
    "a fine-tuning of one's own that is stopped by Ctrl-C goes on, by the same command, to the same last bit",
)
@pytest.mark.parametrize(
    "stages", ["advbn", pytest.param("pretraining control advbn", marks=pytest.mark.slow)], ids=str
)
def test_a_finetuning_of_ones_own_goes_on_to_the_last_bit(context, tmp_path, stages):
    "Asked to stop in these of its stages in turn, then let end; beside it one that nobody asks."
    folders = [few_emoji(tmp_path / name) for name in ("whole", "stopped")]
    whole = context.Process(target=finetune_some, args=folders[:1])
    whole.start()
    stops = 0
    for stage in stages.split():
        process = context.Process(target=finetune_some, args=folders[1:])
        process.start()
        owner = folders[1] / "robust/progress" / f"{stage}.owner"
        while process.is_alive() and not owner.exists():
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGINT)
        process.join()
        stops += process.exitcode == 75
        assert process.exitcode in (0, 75)
    last = context.Process(target=finetune_some, args=folders[1:])
    last.start()
    for process in (whole, last):
        process.join()
        assert process.exitcode == 0
    assert stops == len(stages.split())
    files = [sorted((folder / "robust").glob("*.safetensors")) for folder in folders]
    assert len(files[0]) == 3
    for one, other in zip(*files):
        assert one.read_bytes() == other.read_bytes()
    assert (folders[0] / "robust/table.csv").read_text() == (folders[1] / "robust/table.csv").read_text()
