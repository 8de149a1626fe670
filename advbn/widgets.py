"""Move a slider and see the image re-styled, the classifier's mind changed, and the factors that did it."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from .base.errors import DataError
from .base.files import project_root
from .evidence.evaluation import predict
from .evidence.figures import as_seen, disagreements, kept_predictions, opened, photographs, searched
from .evidence.testing import kept_tests
from .images.batches import Images, sized
from .images.decoding import read_picture
from .images.preprocessing import preprocessing_of
from .method.layer import AdvBN
from .method.splitting import split
from .method.statistics import renormalize
from .images.classes import imagenet_ids
from .networks.models import build_model
from .shifts.cells import SHIFTS
from .training.run import load_data, setting_of

GROUPS = ("all channels", "first quarter", "second quarter", "third quarter", "last quarter")


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _top(logits, classes) -> tuple:
    "The names of the three likeliest classes of logits `[1, K]`, and their probabilities."
    best = logits.softmax(1)[0].topk(min(3, logits.shape[1]))
    return [classes[c] for c in best.indices.tolist()], best.values.numpy()


class StyleView:
    """An image, its adversarial version, three likeliest classes and the factors, for settings that sliders
    give.

    `autoencoder` is an `Autoencoder`; `model` the classifier asked, by default the autoencoder's own."""

    first = {"eps": 1.1, "steps": 6}  # where the sliders stand

    def __init__(self, images: Images, autoencoder, model=None):
        self.images, self.autoencoder = images, autoencoder.eval()
        self.model = model or autoencoder.classifier
        self.encode, self.rectify = autoencoder.encode, autoencoder.encoder.rectified
        self.head = split(autoencoder.classifier, autoencoder.after)[1].eval()

    def pixels(self, image: int) -> torch.Tensor:
        "One image, floats `[1, 3, H, W]` from 0 to 1."
        return self.images.images[image : image + 1].float() / 255

    def factors(
        self, image: int, eps: float, steps: int, group: str, mean: float = 1.0, deviation: float = 1.0
    ) -> torch.Tensor:
        """The factors `[2, C]` of mean and deviation that the attack, on the channels of `group` alone, finds
        for one image; those that are given by hand, on the same channels, times those."""
        with torch.no_grad():
            features = self.encode(self.pixels(image))
        moved = torch.zeros(features.shape[1], dtype=torch.bool)
        (moved if group == GROUPS[0] else moved.tensor_split(4)[GROUPS.index(group) - 1])[:] = True

        def head(changed):
            return self.head(torch.where(moved[:, None, None], changed, features))

        attack = AdvBN(eps=eps, steps=steps, rectify=self.rectify).attack
        found = torch.stack(attack(features, self.images.targets[image : image + 1], head)).flatten(1)
        return torch.where(moved, torch.tensor([[mean], [deviation]]), 1.0) * found

    def features(self, image: int, factors: torch.Tensor) -> tuple:
        "`(as they are, moved)`: the features of one image, without and with `factors`."
        with torch.no_grad():
            features = self.encode(self.pixels(image))
            return features, renormalize(features, *factors[:, None, :, None, None], rectify=self.rectify)

    def restyled(self, image: int, factors: torch.Tensor) -> tuple:
        "`(reconstructed, adversarial)` uint8 `[3, H, W]` of one image under `factors`."
        with torch.no_grad():
            decoded = self.autoencoder.decode(torch.cat(self.features(image, factors)))
        return tuple((255 * decoded).round().byte())

    def panels(self, image: int, factors: torch.Tensor) -> list:
        "What is drawn of an image: `(title, picture, names of classes, probabilities, what of)` each."
        pictures = (self.images.images[image], *self.restyled(image, factors))
        found, probability = predict(self.model, torch.stack(pictures), top=min(3, len(self.images.classes)))
        names = [[self.images.classes[c] for c in row] for row in found.tolist()]
        titles = (f"original: {self.images.classes[self.images.targets[image]]}", "decoded", "adversarial")
        return list(zip(titles, pictures, names, probability.numpy(), [""] * 3))

    def draw(self, image: int = 0, group: str = GROUPS[0], **settings) -> bytes:
        "The view as a PNG; `settings` are those of `factors`."
        from matplotlib.figure import Figure

        factors = self.factors(image, group=group, **{**self.first, **settings})
        truth = self.images.classes[self.images.targets[image]]
        figure = Figure(figsize=(9.5, 3.6), dpi=80)
        widths = {"height_ratios": [1.5, 1], "width_ratios": [1, 1, 1, 0.1, 2.2], "hspace": 0.15}
        grid = figure.add_gridspec(2, 5, left=0.01, right=0.99, top=0.9, bottom=0.12, **widths)
        for column, (title, picture, names, probability, of) in enumerate(self.panels(image, factors)):
            ax = figure.add_subplot(grid[0, column])
            ax.imshow(picture.permute(1, 2, 0).numpy())
            ax.set_title(title, fontsize=9)
            ax.axis("off")
            ax = figure.add_subplot(grid[1, column])
            ax.barh(
                range(len(names)), probability, color=["tab:green" if n == truth else "0.8" for n in names]
            )
            for y, n in enumerate(names):
                ax.text(0.02, y, n, va="center", fontsize=8)
            ax.set(xlim=(0, 1), xticks=[], yticks=[], ylim=(2.5, -0.5))
            ax.set_xlabel(of, fontsize=8)
        ax, channels = figure.add_subplot(grid[:, 4]), np.arange(factors.shape[1])
        ax.bar(channels - 0.2, factors[0].numpy() - 1, 0.4, bottom=1, label="mean", color="tab:blue")
        ax.bar(channels + 0.2, factors[1].numpy() - 1, 0.4, bottom=1, label="deviation", color="tab:orange")
        ax.axhline(1, color="0.3", lw=0.8)
        low, high = min(-0.7, factors.min().item() - 0.2), max(2.7, factors.max().item() + 0.5)
        ax.set(ylim=(low, high), xlabel="channel", title="factors")
        ax.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
        return _png(figure)

    def widget(self):
        "The view with its sliders."
        import ipywidgets as widgets

        shown = widgets.Image(value=self.draw(), format="png")
        eps, steps = self.first.values()
        by_hand = {"min": 0, "max": 2, "step": 0.05}
        sliders = {
            "image": widgets.IntSlider(0, 0, len(self.images) - 1, description="image"),
            "eps": widgets.FloatSlider(eps, min=0, max=1.5, step=0.05, description="strength"),
            "steps": widgets.IntSlider(steps, 0, 10, description="steps"),
            "group": widgets.Dropdown(options=GROUPS, description="channels"),
            "mean": widgets.FloatSlider(1, description="mean ×", **by_hand),
            "deviation": widgets.FloatSlider(1, description="deviation ×", **by_hand),
        }

        def update(_):
            shown.value = self.draw(**{name: slider.value for name, slider in sliders.items()})

        for slider in sliders.values():
            slider.observe(update, "value")
        rows = list(sliders.values())
        return widgets.VBox([*(widgets.HBox(rows[i : i + 2]) for i in (0, 2, 4)), shown])


class PhotographView(StyleView):
    """The same for a network without a decoder, cut after one of its layers: the picture is searched whose
    features are the moved ones, see `searched`, in so many `search` steps.

    The likeliest classes are those of the photograph, of the picture found, and of the moved features
    themselves; green is what the network says of the photograph. Of the way from its features to the moved
    ones a share is left to the picture's, which is said above it."""

    first = {"eps": 0.25, "steps": 3}

    def __init__(self, images: Images, model, after: str, search: int = 30):
        self.images, self.model, self.search = images, model, search
        self.encode, self.head, self.rectify = opened(model, after)

    @classmethod
    def of_package(cls, size: int = 128, folder: str | None = None):
        """scikit-image's photographs, or those of a `folder`, and the EfficientNet-Lite0 with ImageNet's
        weights that comes with pip. Raises `ImportError`, which says how to get it, if it is not there."""
        model = build_model("efficientnet_lite0", 1000, "package").eval()
        return cls(as_seen(model, photographs(size, folder), imagenet_ids()), model, "blocks.1")

    def panels(self, image, factors):
        start = self.pixels(image)
        features, moved = self.features(image, factors)
        found = searched(self.encode, moved, start, self.search)
        pictures = start, found, (0.5 + 4 * (found - start)).clamp(0, 1)
        with torch.no_grad():
            reached = self.encode(found)
            logits = self.head(features), self.head(reached), self.head(moved)
            left = (reached - moved).norm() / (features - moved).norm().clamp_min(1e-12)
        titles = "photograph", f"picture found, {left:.0%} left", "its change, four times"
        said = "said of the photograph", "said of the picture", "said of the features"
        tops = [_top(one, self.images.classes) for one in logits]
        return [(t, p[0], *top, of) for t, p, top, of in zip(titles, pictures, tops, said)]


class RobustnessView:
    """Accuracy of the pipeline's networks per shift, filter and severity, as charts to choose from, and the
    images that a network gets wrong."""

    def __init__(self, params):
        self.params, self.data = params, None
        self.setting = setting_of(params)
        self.runs = pd.concat(
            [
                pd.read_csv(project_root() / "results" / params.profile / "runs" / f"{method}.csv")
                for method in params.methods
            ]
        )
        labels = {method: section.label for method, section in params.methods.items()}
        two = self.runs.groupby("method").branch.transform("nunique") > 1
        self.runs["network"] = self.runs.method.map(labels) + (", " + self.runs.branch).where(two, "")
        self.networks = {
            name: (group.method.iloc[0], group.branch.iloc[0])
            for name, group in self.runs.groupby("network", sort=False)
        }

    def chosen(self, networks) -> pd.DataFrame:
        """The rows of some networks, with the cell's name and severity apart. Raises `ValueError` for an
        unknown network."""
        if unknown := [n for n in networks if n not in self.networks]:
            raise ValueError(f"no network {unknown[0]!r}; there are {', '.join(self.networks)}")
        rows = self.runs[self.runs.network.isin(networks)].copy()
        parts = rows.cell.str.split("/", expand=True)
        return rows.assign(name=parts[0], severity=pd.to_numeric(parts[1], errors="coerce"))

    def by_shift(self, networks) -> bytes:
        "A chart of accuracy per shift as a PNG; the whisker spans the seeds."
        from matplotlib.figure import Figure

        rows = (
            self.chosen(networks)
            .groupby(["network", "shift", "seed"], sort=False)
            .accuracy.mean()
            .reset_index()
        )
        shifts, figure = (
            list(rows["shift"].unique()),
            Figure(
                figsize=(6.4, 1.3 + 0.11 * rows["shift"].nunique() * (len(networks) + 1)),
                dpi=90,
                layout="constrained",
            ),
        )
        ax = figure.add_subplot()
        for i, network in enumerate(networks):
            found = (
                rows[rows.network == network]
                .groupby("shift", sort=False)
                .accuracy.agg(["mean", "min", "max"])
                .reindex(shifts)
            )
            y = np.arange(len(shifts)) * (len(networks) + 1) + i
            ax.barh(
                y,
                found["mean"],
                xerr=[found["mean"] - found["min"], found["max"] - found["mean"]],
                color=f"C{list(self.networks).index(network)}",
                label=network,
                error_kw={"lw": 0.8},
            )
        ax.set(
            yticks=np.arange(len(shifts)) * (len(networks) + 1) + (len(networks) - 1) / 2,
            yticklabels=[SHIFTS[s].title if s in SHIFTS else s for s in shifts],
            xlabel="accuracy, %",
        )
        ax.invert_yaxis()
        figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
        return _png(figure)

    def by_severity(self, networks, corruption: str) -> bytes:
        "A chart of accuracy against severity for one corruption as a PNG."
        from matplotlib.figure import Figure

        rows = self.chosen(networks).query("shift == 'corruptions' and name == @corruption")
        figure = Figure(figsize=(4.6, 3.4), dpi=90, layout="constrained")
        ax = figure.add_subplot(title=corruption.replace("_", " "))
        for network in networks:
            found = rows[rows.network == network].groupby("severity").accuracy.mean()
            ax.plot(found.index, found, "o-", ms=4, color=f"C{list(self.networks).index(network)}")
        ax.set(xticks=range(1, 6), xlabel="severity", ylabel="accuracy, %")
        return _png(figure)

    def corruptions(self) -> list:
        "Names for `by_severity`."
        return list(self.runs[self.runs["shift"] == "corruptions"].cell.str.partition("/")[0].unique())

    def mistakes(self, network: str, cell: str, most: int = 20) -> bytes:
        """The images of a cell, such as `corruptions/fog/3`, that a network of the first seed gets wrong, as
        a PNG.

        Raises `DataError` if the pipeline has not kept the images or the predictions."""
        from matplotlib.figure import Figure

        method, branch = self.networks[network]
        seed = self.params.seeds[0]
        kept = kept_predictions(self.params, method)[str(seed)]
        self.data = self.data or load_data(self.setting)
        tests = kept_tests(self.setting, self.data, seed, lambda s, c: f"{s}/{c}" == cell)
        images = next(images for _, _, images in tests)
        of_name = dict(zip(kept.names, kept.classes[branch][kept.cells.index(cell)]))
        found = np.array([of_name[name] for name in images.names])
        wrong = np.flatnonzero(found != images.targets.numpy())
        figure = Figure(figsize=(11, 0.5 + 1.4 * -(-min(most, max(len(wrong), 1)) // 10)), dpi=90)
        figure.suptitle(f"{network}, {cell}: {len(wrong)} of {len(found)} wrong", fontsize=10)
        for n, ax in zip(
            wrong[:most], figure.subplots(-(-min(most, max(len(wrong), 1)) // 10), 10, squeeze=False).flat
        ):
            ax.imshow(images.images[n].permute(1, 2, 0))
            ax.set_title(
                f"{self.data.classes[images.targets[n]]}\nas {self.data.classes[found[n]]}", fontsize=6
            )
        for ax in figure.axes:
            ax.axis("off")
        figure.tight_layout()
        return _png(figure)

    def differences(self, network: str, other: str, cell: str, most: int = 8) -> bytes:
        """Images of a cell that one of two networks alone is right about, as a PNG. Raises `DataError` as
        `mistakes` does."""
        import matplotlib.pyplot as plt

        methods = ["/".join(self.networks[name]) for name in (network, other)]
        figure = disagreements(self.params, *methods, cell, most)
        plt.close(figure)  # a widget shows it, and not the notebook
        return _png(figure)

    def widget(self):
        "Both charts, the mistakes, and where another network differs, with what to choose."
        import ipywidgets as widgets

        names, cells = list(self.networks), self.runs["shift"].str.cat(self.runs.cell, "/").drop_duplicates()
        networks = widgets.SelectMultiple(options=names, value=names, rows=len(names), description="networks")
        corruption = widgets.Dropdown(options=self.corruptions(), description="corruption")
        network, cell = (
            widgets.Dropdown(options=names, value=names[-1], description="mistakes of"),
            widgets.Dropdown(options=list(cells), description="under"),
        )
        other = widgets.Dropdown(options=["nobody", *names], description="against")
        charts, wrong, said = (
            (widgets.Image(format="png"), widgets.Image(format="png")),
            widgets.Image(format="png"),
            widgets.Label(),
        )

        def redraw(_):
            if networks.value:
                charts[0].value, charts[1].value = (
                    self.by_shift(networks.value),
                    self.by_severity(networks.value, corruption.value),
                )

        def look(_):
            try:
                if other.value in ("nobody", network.value):
                    wrong.value, said.value = self.mistakes(network.value, cell.value), ""
                else:
                    wrong.value, said.value = self.differences(network.value, other.value, cell.value), ""
            except DataError as error:
                said.value = str(error)

        for chooser in (networks, corruption):
            chooser.observe(redraw, "value")
        for chooser in (network, cell, other):
            chooser.observe(look, "value")
        redraw(None), look(None)
        return widgets.VBox(
            [
                widgets.HBox([networks, corruption]),
                widgets.HBox(charts),
                widgets.HBox([network, cell, other]),
                said,
                wrong,
            ]
        )


def classify(
    model, picture, classes, size: int | None = None, resize: int | None = None, top: int = 3
) -> pd.DataFrame:
    """The likeliest classes of a picture, a path or the bytes of a file; probabilities in percent.

    `size` and `resize` are the network's own, where they are not given, as for `evaluate`."""
    if isinstance(picture, (bytes, memoryview)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture"
            path.write_bytes(picture)
            image = read_picture(path)
    else:
        image = read_picture(picture)
    wanted = preprocessing_of(model).at(size, resize)
    pixels = sized(wanted.size, wanted.resize, wanted.interpolation)(pil_to_tensor(image))
    found, probability = predict(model, pixels[None], top=min(top, len(classes)))
    return pd.DataFrame(
        {
            "class": [classes[c] for c in found[0].tolist()],
            "probability, %": [round(100 * p, 1) for p in probability[0].tolist()],
        }
    )
