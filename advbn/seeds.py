"""The main table one seed at a time, for profiles of many hours: what is kept is not done again."""

import pandas as pd

from .base.errors import DataError
from .base.files import held, project_root
from .base.rows import CELLS, keep_rows, kept_rows, write_rows
from .evidence.testing import keep_right, kept_tests, make_tests, tested_seeds, train_and_evaluate
from .training.run import load_data
from .training.train import clear_progress, pretrain, train_autoencoder


def _test_images(setting, seed: int):
    """Make the test images of a seed under every shift, and before them the autoencoder, unless they are
    kept; of several processes one makes them, and the others wait."""
    data = load_data(setting)
    own = seed if seed in tested_seeds(setting, data) else setting.seeds[0]
    with held(project_root() / "shifted" / f"{setting.profile}.made", "made", wait=24 * 3600):
        if setting.pictures and not setting.checkpoint("autoencoder", 0, "decoder").exists():
            _, errors = train_autoencoder(setting)
            rows = pd.DataFrame({"epoch": range(1, len(errors) + 1), "squared_error": errors})
            write_rows(rows, setting.results / "training" / "autoencoder.csv")
            clear_progress(setting, "autoencoder/*")
        try:
            next(kept_tests(setting, data, own))
        except DataError:
            make_tests(setting, own)


def run_seed(runs: list, log: str | None = None):
    """Pretrain, then train and test every one of `runs`, the methods of one seed; yields the name of each
    step that was done. `log` is a logger of `build_accelerator`.

    Rows, what is right, and checkpoints are kept after each step, and what is kept is not done again: so a
    table of many hours can be stopped at any time, and divided over days, cores and machines."""
    setting, seed, results = runs[0].setting, runs[0].seed, runs[0].setting.results
    if not setting.checkpoint(runs[0].start, seed).exists():
        keep_rows(pretrain(runs[0], log), results / "training" / "pretrained.csv")
        clear_progress(setting, runs[0].start, seed)
        yield f"pretraining, seed {seed}"
    paths = {run.name: results / "runs" / f"{run.name}.csv" for run in runs}
    wanted = [run for run in runs if seed not in set(kept_rows(paths[run.name], CELLS).seed)]
    if wanted:
        _test_images(setting, seed)
    for run in wanted:
        history, table, predictions = train_and_evaluate(run, log)
        keep_rows(history, results / "training" / f"{run.name}.csv")
        keep_right(results / "right" / f"{run.name}.npz", {seed: predictions})
        keep_rows(table, paths[run.name])  # the last: it says that all of it is there
        clear_progress(setting, run.name, seed)
        yield run.title
