"""A chart of each kind of benchmark."""

import pandas as pd

from .record import LARGEST, SMALLEST, Bench, Ratio
from .scale import ALONE, GROWTH

GREY, BLUE = "0.75", "tab:blue"


def _bars(rows, height, number, colors):
    """`(figure, axes)` with a bar for each of `rows`, from the top, its spread from the columns low and high,
    its median beside it."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7, height), layout="constrained")
    rows = rows.assign(low=rows.low.fillna(rows["median"]), high=rows.high.fillna(rows["median"]))
    spread = [rows["median"] - rows.low, rows.high - rows["median"]]
    ax.barh(rows.index, rows["median"], xerr=spread, color=colors, capsize=2)
    for y, (value, end) in enumerate(zip(rows["median"], rows.high)):
        ax.annotate(
            number.format(value),
            (end, y),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    return fig, ax


def _table(named: dict) -> pd.DataFrame:
    "A row per name, with median, low and high of a spread or a ratio."
    columns = ("median", "low", "high")
    rows = {name: [getattr(found, column) for column in columns] for name, found in named.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns), dtype=float)


def _speeds(bench: Bench) -> dict:
    "The ratios of speed by their side."
    return {ratio.side: ratio for ratio in bench.ratios if ratio.of == "speed"}


def _threads(bench: Bench) -> str:
    threads = bench.measured_on.threads
    return "" if threads is None else f", {threads} threads"


def step_chart(bench: Bench):
    "A figure: how many times as fast as the reference each side is."
    found = {name: ratio for name, ratio in _speeds(bench).items() if not name.startswith("clean")}
    one = Ratio(
        side="reference",
        to="reference",
        of="speed",
        median=1.0,
        low=1.0,
        high=1.0,
        verdict="no difference shown",
    )
    rows, s = _table({"reference": one, **found}), bench.settings
    colors = [BLUE if name.startswith("ours") else GREY for name in rows.index]
    fig, ax = _bars(rows, 0.6 + 0.4 * len(rows), "{:.2f}", colors)
    ax.axvline(1, color="0.4", lw=0.8)
    label = f"{s.network}, {s.batch} x {s.size} px, {s.device}{_threads(bench)}"
    ax.set_xlabel(f"speed, reference = 1 ({label})", fontsize=8)
    return fig


def corrupt_chart(bench: Bench):
    "A figure: how many times as fast as the reference each corruption is."
    against = [ratio for ratio in bench.ratios if ratio.to.endswith(", reference")]
    rows = _table({ratio.side.removesuffix(", ours"): ratio for ratio in against})
    s = bench.settings
    fig, ax = _bars(rows, 4.5, "{:.1f}", [GREY] * (len(rows) - 1) + [BLUE])
    ax.axvline(1, color="0.4", lw=0.8)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel(
        f"speed, imagecorruptions-imaug = 1 ({s.batch} x {s.size} px, severity {s.severity}, {s.device}, "
        f"processes: {s.processes['ours']} and {s.processes['reference']})",
        fontsize=8,
    )
    return fig


def evaluate_chart(bench: Bench):
    "A figure: seconds of the forward passes alone and of all cells, with one branch and with two."
    s, (one, two) = bench.settings, bench.ratios
    fig, ax = _bars(_table(bench.sides), 2.2, "{:.1f}", [GREY, BLUE] * 2)
    ax.set_title(
        f"all cells over forward passes: {one.median:.2f}, with two branches {two.median:.2f}",
        fontsize=8,
        loc="left",
    )
    label = f"{s.network}, {s.size} px, {s.device}{_threads(bench)}"
    ax.set_xlabel(f"seconds for 75 cells of {s.batch} images ({label})", fontsize=8)
    return fig


LABELS = {
    "images": "images",
    "classes": "classes",
    "batch": "images in a batch (same epoch)",
    "steps": "attack steps",
}


def _growth(bench, kind):
    "Median, low and high of the time by the value of what grows, the smallest as one."
    found = {
        float(ratio.side.removeprefix(kind)): ratio
        for ratio in bench.ratios
        if ratio.side.startswith(f"{kind} ")
    }
    rows = _table(found)
    rows.loc[float(min(GROWTH[kind]))] = 1.0
    return rows.sort_index()


def scale_chart(bench: Bench):
    """A figure: for each kind of growth the measured ratio to the smallest; dashed, proportional growth
    (images), a straight line from end to end (steps), none (classes, batch)."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(GROWTH), figsize=(11, 2.8))
    for ax, kind in zip(axes, GROWTH):
        rows = _growth(bench, kind)
        x, y = rows.index.to_numpy(), rows["median"].to_numpy()
        ax.errorbar(x, y, [y - rows.low, rows.high - y], marker="o", ms=4, capsize=2)
        slopes = {"images": 1 / min(GROWTH["images"]), "steps": (y[-1] - 1) / (x[-1] - x[0])}
        ax.plot(x, 1 + slopes.get(kind, 0.0) * (x - x[0]), color="0.6", lw=0.8, ls="--")
        if kind in ("classes", "batch"):
            ax.set_xscale("log")
            ax.set_xticks(x, [f"{value:g}" for value in x], minor=False)
            ax.set_xticks([], minor=True)
        ax.set_ylim(0, 1.08 * y.max())
        ax.set_xlabel(LABELS[kind], fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("time, smallest = 1", fontsize=8)
    ((together, count),) = bench.settings.processes.items()
    efficiency = bench.ratio(together, ALONE).median
    fig.suptitle(f"{together}: {efficiency:.2f} of {count} times one", fontsize=9)
    fig.tight_layout()
    return fig


def folders_chart(bench: Bench):
    "A figure: seconds until the pictures of a folder are found, and to read a thousand of them."
    colors = [BLUE if name.startswith("start") else GREY for name in bench.sides]
    fig, ax = _bars(_table(bench.sides), 3.4, "{:.2g}", colors)
    grown, s = bench.numbers[LARGEST] / bench.numbers[SMALLEST], bench.settings
    ax.set_title(f"memory, that of the smallest folder = 1: {grown:.2f}", fontsize=8, loc="left")
    ax.set_xscale("log")
    ax.set_xlabel(f"seconds (JPEGs of {s.size} px, batches of {s.batch})", fontsize=8)
    return fig


def chart(bench: Bench):
    "The figure of a benchmark's kind."
    made = {
        "step": step_chart,
        "corrupt": corrupt_chart,
        "evaluate": evaluate_chart,
        "scale": scale_chart,
        "folders": folders_chart,
    }
    return made[bench.kind](bench)
