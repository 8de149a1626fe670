"""Tables of rows on disk: whole or not there, checked when read, added to by several processes in turn."""

from pathlib import Path

import pandas as pd

from .errors import DataError
from .files import held, whole_file

EPOCHS = ("epoch", "lr", "clean_loss", "adversarial_loss", "accuracy", "seed")  # of training
CELLS = (  # of tests
    "branch",
    "shift",
    "cell",
    "correct",
    "images",
    "method",
    "seed",
    "source",
    "accuracy",
)


def write_rows(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    "Write `rows` to the CSV at `path`, whole or not at all, and return them."
    with whole_file(path) as file:
        file.write(rows.to_csv(index=False).encode())
    return rows


def kept_rows(path: Path, columns) -> pd.DataFrame:
    """The rows at `path`, none if nothing is there. Raises `DataError` for a file that is no table, and for
    rows with other `columns`."""
    try:
        kept = pd.read_csv(path)
    except FileNotFoundError:
        return pd.DataFrame(columns=columns)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:80]
        raise DataError(f"{path} cannot be read as a table ({reason}); move it away") from None
    if "seed" not in kept:
        raise DataError(f"{path} has no column 'seed'; move it away")
    if len(kept) and set(kept) != set(columns):
        raise DataError(
            f"{path} has the columns {', '.join(kept)}, and what is to be kept there {', '.join(columns)}; "
            f"move it away"
        )
    return kept


def keep_rows(found: pd.DataFrame, path: Path):
    """Write `found`, rows of some seeds, to the CSV at `path`, in place of the rows that it has of these
    seeds; several processes take turns."""
    with held(path, "written", wait=60):
        kept = kept_rows(path, found.columns)
        others = kept[~kept.seed.isin(found.seed.unique())]
        if len(others):
            found = pd.concat([others, found]).sort_values("seed", kind="stable") if len(found) else others
        write_rows(found, path)
