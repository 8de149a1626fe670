"""Are corruptions that are made on the fly ImageNet-C's? What a network recognises under ours and under the
reference's, imagecorruptions-imaug, cell by cell, on the same pixels."""

import hashlib
import json
import math
from importlib import resources
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image as Picture
from torch import nn
from tqdm import tqdm

from .base.errors import DataError
from .base.files import write_text
from .base.rows import write_rows
from .bench.record import bench_folder
from .adapters.evaluate import class_names, load_network
from .evidence.evaluation import predict_each
from .evidence.intervals import Estimate, holm, student, verdict
from .images.augmentation import step_seed
from .images.batches import FolderImages, Images
from .images.folders import NamedFolder
from .images.preprocessing import preprocessing_of
from .method.folding import for_inference
from .notebooks import surroundings
from .shifts.corruptions import CORRUPTIONS, corrupt, corruption_settings
from .shifts.noise import SWITCH, is_small

SIDES = ("first", "again", "reference")  # two draws of our corruptions, one of the reference's


def _frost_as_published(image: np.ndarray, severity: int) -> np.ndarray:
    """A uint8 image `[H, W, 3]` under a crop of a photograph of frost as it is, which is what ImageNet-C's
    script does; imagecorruptions-imaug enlarges the photographs by a tenth first, which smooths them."""
    height, width = image.shape[:2]
    files = sorted(resources.files("imagecorruptions").joinpath("frost").iterdir(), key=str)
    with files[np.random.randint(len(files))].open("rb") as file:
        frost = Picture.open(file).convert("RGB")
    scale = max(1, width / frost.width, height / frost.height)  # images larger than ImageNet-C's
    frost = np.asarray(frost.resize([math.ceil(scale * side) for side in frost.size], Picture.BICUBIC))
    top, left = (np.random.randint(have - need + 1) for have, need in zip(frost.shape, (height, width)))
    crop = frost[top : top + height, left : left + width]
    keep, amount = corruption_settings("frost", severity, height, width)
    return np.clip(keep * image + amount * crop, 0, 255).astype(np.uint8)


def reference_corrupt(images: torch.Tensor, name: str, severity: int, indices) -> torch.Tensor:
    """uint8 `images`, `[N, 3, H, W]`, as imagecorruptions-imaug corrupts them; frost is its photographs' and
    as ImageNet-C's script lays it on. The random numbers of an image depend on its index, `name` and
    `severity` alone; NumPy's global state is left as it was."""
    import imagecorruptions

    own = name in ("impulse_noise", "glass_blur")  # which NumPy's global seed does not reach
    before, made = np.random.get_state(), []
    for image, index in zip(images.permute(0, 2, 3, 1).numpy(), indices):
        seed = step_seed("reference", name, severity, int(index)) % 2**32
        np.random.seed(seed)
        if name == "frost":
            made.append(_frost_as_published(image, severity))
        else:
            made.append(imagecorruptions.corrupt(image, severity, name, **({"seed": seed} if own else {})))
    np.random.set_state(before)
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()


def _seen(network, images: Images, indices, name, severity) -> pd.DataFrame:
    """A row per image: is the corruption `random`, is the image recognised on each of `SIDES`, are the
    predictions for `first` and `reference` the `same`, and what is the largest difference of their bytes,
    `pixels`?"""
    indices, device = indices.tolist(), next(network.parameters()).device
    first, again = (
        corrupt(images.images.to(device), name, severity, seed=seed, indices=indices) for seed in (0, 1)
    )
    reference, random = reference_corrupt(images.images, name, severity, indices), not first.equal(again)
    made = {"first": first, "reference": reference} | ({"again": again} if random else {})
    classes = {side: predict_each({side: network}, pixels)[side] for side, pixels in made.items()}
    classes.setdefault("again", classes["first"])
    return pd.DataFrame(
        {
            "corruption": name,
            "severity": severity,
            "random": random,
            "image": indices,
            **{side: (classes[side] == images.targets).numpy() for side in SIDES},
            "same": (classes["first"] == classes["reference"]).numpy(),
            "pixels": (first.cpu().int() - reference.int()).abs().amax((1, 2, 3)).numpy(),
        }
    )


def seen(network: nn.Module, images: FolderImages, severities=(1, 3, 5), names=CORRUPTIONS) -> pd.DataFrame:
    """What `network` recognises of each of the `images` in each cell: a row per cell and image, as `compared`
    takes them.

    Raises `DataError` for images of 120 pixels and fewer: the reference has ImageNet-C's numbers alone."""
    cells = [(name, severity) for name in names for severity in severities]
    whole, parts = for_inference(network), []
    with tqdm(total=len(cells) * len(images), desc="fidelity", unit="image") as bar:
        for indices, piece in images.pieces():
            if is_small(*piece.images.shape[-2:]):
                size = " x ".join(map(str, piece.images.shape[:1:-1]))
                raise DataError(
                    f"the network is given images of {size} pixels; needed are more than {SWITCH}, since the "
                    f"reference knows the numbers of large images alone"
                )
            for name, severity in cells:
                parts.append(_seen(whole, piece, indices, name, severity))
                bar.update(len(piece))
    return pd.concat(parts, ignore_index=True)


def _row(rows: pd.DataFrame) -> dict:
    """The comparison on the mean of the cells in `rows`, in points.

    Under the same distribution a mean of two draws and a third differ with 3/2 of a draw's variance, and two
    draws by twice of it: `explained` is the 95 % bound for images whose results differ by random numbers
    alone."""
    images = rows.groupby("image")[list(SIDES)].mean() * 100
    ours, n = (images["first"] + images["again"]) / 2, len(images)
    difference = student(ours - images.reference)
    apart = math.sqrt(0.75 * ((images["first"] - images["again"]) ** 2).mean() / n)
    return {
        "random": bool(rows.random.any()),
        "images": n,
        "ours": ours.mean(),
        "reference": images.reference.mean(),
        "difference": difference.mean,
        "difference_ci95": difference.half_width,
        "explained": Estimate(0.0, apart, n - 1, n).half_width,
        "p": difference.p,
        "same": 100 * rows.same.mean(),
        "pixels": math.nan if rows.random.any() else rows.pixels.max(),
    }


def _family(groups) -> pd.DataFrame:
    "Rows of `((corruption, severity), rows)`, with Holm's correction over all of them and verdicts."
    table = pd.DataFrame([{"corruption": c, "severity": str(s), **_row(rows)} for (c, s), rows in groups])
    table.insert(table.columns.get_loc("p") + 1, "p_holm", holm(table.p))
    verdicts = [verdict(*pair) for pair in zip(table.difference, table.p_holm)]
    table.insert(table.columns.get_loc("p_holm") + 1, "verdict", verdicts)
    return table


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of ours and of the reference in percent, their paired `difference` with half its 95 % interval
    over images, and what random numbers alone `explained`: for each cell, for the mean of each corruption's
    severities (`mean`), and for the mean of all cells.

    `rows` has a row per image and cell: corruption, severity, random, image, `SIDES` (right or wrong), same,
    pixels. Ours is the mean of two draws. Holm's correction is over the cells, and over the corruptions;
    `same` is the percentage of equal predictions, `pixels` the largest difference of bytes where nothing is
    random."""
    cells = rows.groupby(["corruption", "severity"], sort=False)
    corruptions = (((name, "mean"), part) for name, part in rows.groupby("corruption", sort=False))
    return pd.concat([_family(g) for g in (cells, corruptions, [(("all", "mean"), rows)])], ignore_index=True)


def cells_of(table: pd.DataFrame) -> pd.DataFrame:
    "The rows of `compared` that are one cell each."
    return table[table.severity != "mean"]


def in_words(table: pd.DataFrame) -> str:
    "What `compared` has found, in a sentence of some lines."
    cells, whole = cells_of(table), table.iloc[-1]
    random, fixed = cells[cells.random], cells[~cells.random]
    differ = cells[cells.verdict != "no difference shown"]
    within = (random.difference.abs() <= random.explained).sum()
    named = ", ".join(f"{c}/{s}" for c, s in zip(differ.corruption, differ.severity)) or "none"
    said = [
        f"{len(cells)} cells, {whole.images} images: ours {whole.ours:.2f} %, reference "
        f"{whole.reference:.2f} %, difference {whole.difference:+.2f} ± {whole.difference_ci95:.2f} points "
        f"(random numbers alone: ± {whole.explained:.2f})",
        f"cells that differ after Holm's correction: {named}",
    ]
    if len(random):
        said.append(
            f"{within} of {len(random)} random cells are within the 95 % bound of what random numbers explain"
        )
    if len(fixed):
        said.append(
            f"in {len(fixed)} cells without random numbers {fixed.same.mean():.2f} % of the predictions are "
            f"the same, and bytes differ by at most {fixed.pixels.max():.0f}"
        )
    return ";\n".join(said) + "."


def fidelity_chart(table: pd.DataFrame, title: str = ""):
    "A figure: each cell's difference with its interval, on a bar of what random numbers explain."
    import matplotlib.pyplot as plt

    cells = cells_of(table)
    names = [f"{c.replace('_', ' ')} {s}" for c, s in zip(cells.corruption, cells.severity)]
    fig, ax = plt.subplots(figsize=(7, 0.8 + 0.16 * len(cells)), layout="constrained")
    ax.barh(names, 2 * cells.explained, left=-cells.explained, color="0.85", label="random numbers explain")
    ax.errorbar(
        cells.difference, names, xerr=cells.difference_ci95, fmt="o", ms=3, lw=1, label="ours - reference"
    )
    ax.axvline(0, color="0.4", lw=0.8)
    ax.invert_yaxis()
    ax.margins(y=0.01)
    ax.tick_params(labelsize=7)
    ax.set_xlabel("difference of top-1 accuracy, points, with 95 % intervals", fontsize=8)
    ax.set_title(title, fontsize=8, loc="left")
    ax.legend(fontsize=7, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
    return fig


def load_classifier(model: str, weights: str, folder: Path, listed: Path | None = None) -> tuple:
    """`(network, its classes)`: those of the file `listed`, else the folders. Where all of these are WordNet
    ids and `weights` are published, ImageNet's classifier is cut down to them."""
    names = class_names(folder, listed)
    wordnet = all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in names)
    cut_down = names if listed is None and wordnet and not Path(weights).is_file() else ()
    return load_network(model, weights, len(names), cut_down), names


def network_images(network: nn.Module, folder: Path, classes, most: int | None = None) -> FolderImages:
    "The images of `folder`, at most so many of a mixed order, as `network` wants them."
    wanted, tree = preprocessing_of(network), NamedFolder(folder, classes, "the test set")
    return FolderImages(tree, classes, wanted.size, wanted.resize, most, interpolation=wanted.interpolation)


def which_images(images: FolderImages) -> dict:
    "Which images these are: the end of their folder's path, how many, how large, a digest of their names."
    folder = images.decoded.folder
    sides = [min(folder.loader(folder.samples[i][0]).size) for i in images.indices.tolist()]
    return {
        "folder": "/".join(Path(folder.root).resolve().parts[-2:]),
        "images": len(images),
        "images of the folder": len(folder),
        "classes": len({Path(name).parent for name in images.names}),
        "shorter side, pixels": [min(sides), max(sides)],
        "names, SHA-256": hashlib.sha256("\n".join(sorted(images.names)).encode()).hexdigest(),
    }


def keep(table: pd.DataFrame, record: dict, name: str) -> Path:
    """Keep `table` as `results/bench/fidelity-NAME.csv`, its record and its chart beside it; returns the path
    of the table. A `/` in `name` becomes a `-`."""
    name = f"fidelity-{name.replace('/', '-')}"
    circumstances = {**record, "reference": f"imagecorruptions-imaug {version('imagecorruptions-imaug')}"}
    kept, found = bench_folder() / f"{name}.json", {"found": in_words(table), **surroundings()}
    write_text(json.dumps({**circumstances, **found}, indent=1) + "\n", kept)
    title = f"{record['network']}, {record['images']['images']} images of {record['images']['folder']}"
    fidelity_chart(table, title).savefig(kept.with_suffix(".png"), dpi=160)
    path = kept.with_suffix(".csv")
    write_rows(table.round(4), path)
    return path
