"""Every picture of a folder, damaged or in another style, written beside it: what `advbn corrupt` and
`advbn restyle` do."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from .adapters.evaluate import Pictures, load_network
from .base.errors import ParameterError
from .base.names import FILTERS, SEARCHED
from .base.sets import corruption_sets, placed, restyled_sets
from .evidence.figures import opened, searched
from .images.batches import Images, sized
from .images.decoding import read_picture
from .images.preprocessing import preprocessing_of
from .images.writing import make_set, written_as
from .method.layer import AdvBN
from .networks.models import NETWORKS, outputs_of
from .shifts.corruptions import corrupt
from .shifts.filters import edges, instagram
from .shifts.styles import adain, style_images


@dataclass(frozen=True)
class Change:
    "One way to change pictures."

    folder: str  # where they are written, if there are several changes
    make: Callable  # `make(images, numbers)`: uint8 `[N, 3, H, W]` of such, and of N whole numbers
    settings: dict  # what is kept of it
    alone: bool = False  # one picture at a time


def corruption_changes(names, severities, seed: int = 0) -> list:
    "The corruptions `names`, each at the `severities`."

    def make(settings, images, numbers):
        name, severity, seed = settings.values()
        return corrupt(images, name, severity, seed=seed, indices=numbers)

    sets = corruption_sets(names, severities, seed)
    return [Change(folder, partial(make, settings), settings) for folder, settings in sets.items()]


def style_pictures(like: Path | None, size: int = 224) -> torch.Tensor:
    """The styles, uint8 `[S, 3, size, size]`: one picture, those of a folder, or scikit-image's; see
    `style_images`."""
    if like is None or not Path(like).is_file():
        return style_images(size, like and str(like))
    picture = pil_to_tensor(read_picture(like))
    return resize(center_crop(picture, [min(picture.shape[1:])] * 2), [size, size])[None]


def colours_of(images: torch.Tensor, styles: torch.Tensor, numbers) -> torch.Tensor:
    """uint8 `images` with the mean and the deviation of each colour channel of uint8
    `styles[number % len(styles)]`; values beyond the range are cut off."""
    chosen = styles[[int(number) % len(styles) for number in numbers]]
    return adain(images.float(), chosen.float()).clamp(0, 255).round().byte()


@dataclass
class Searched:
    "Pictures searched for the features of a network after the layer `after`, with other statistics."

    model: torch.nn.Module
    after: str
    name: str = ""  # of the network and its weights, for what is kept

    @cached_property
    def network(self) -> tuple:
        return opened(self.model, self.after)

    def fitted(self, images: torch.Tensor) -> torch.Tensor:
        "uint8 images as large as the network takes them."
        wanted = preprocessing_of(self.model)
        return sized(wanted.size or 224, wanted.resize or 256, wanted.interpolation)(images)

    def moved(self, images: torch.Tensor, move: Callable) -> torch.Tensor:
        "The uint8 picture nearest to one of `images` `[1, 3, H, W]` whose features are `move(features)`."
        start, encode = self.fitted(images).float() / 255, self.network[0]
        with torch.no_grad():
            features = encode(start)
        return (255 * searched(encode, move(features), start)).round().byte()


def stylized(search: Searched, images: torch.Tensor, styles: torch.Tensor, numbers) -> torch.Tensor:
    "uint8 `images` `[1, 3, H, W]` in the feature statistics of `styles[number % len(styles)]`."
    with torch.no_grad():
        style = search.network[0](search.fitted(styles[[int(numbers[0]) % len(styles)]]).float() / 255)
    return search.moved(images, lambda features: adain(features, style))


def attacked(search: Searched, images: torch.Tensor, eps: float) -> torch.Tensor:
    "uint8 `images` in the statistics within `eps` that hurt most what the network says of them."
    _, head, rectified = search.network
    layer = AdvBN(eps=eps, rectify=rectified)
    return search.moved(images, lambda f: layer(f, head(f).argmax(1).detach(), head))


def search_with(name: str, weights: str, after: str) -> Searched:
    "A `Searched` of the network `name`, see `load_network`, with its `weights`, whatever its classes are."
    full = name if "/" in name or name in NETWORKS else f"torchvision/{name}"
    model = load_network(name, weights, outputs_of(full, weights))
    search = Searched(model, after, f"{name}, {weights}")
    search.network  # a wrong place is told now, before pictures are read
    return search


def _change(name, styles, search, eps):
    "How pictures are restyled as `name` says."
    if name == "edges":
        return lambda images, numbers: edges(images)
    if name == "colours":
        return lambda images, numbers: colours_of(images, styles, numbers)
    if name == "stylized":
        return lambda images, numbers: stylized(search, images, styles, numbers)
    if name == "advbn":
        return lambda images, numbers: attacked(search, images, eps)
    filter_ = next(known for known in FILTERS if known.lstrip("_") == name)
    return lambda images, numbers: instagram(images, filter_)


def restyling_changes(
    names, like: Path | None = None, search: Searched | None = None, eps: float = 1.1
) -> list:
    """The restylings `names`, some of `advbn.base.names.RESTYLED`: photo filters and edges; `colours` and
    `stylized` after the pictures `like`, and `stylized` and `advbn` by a `search`, which takes a network.

    Raises `ParameterError` for one that lacks its network."""
    if missing := [name for name in names if name in SEARCHED and search is None]:
        raise ParameterError(f"{missing[0]} needs a network whose features are searched")
    styles = style_pictures(like) if {"colours", "stylized"} & {*names} else None
    sets = restyled_sets(names, like, *((search.name, search.after) if search else ()), eps=eps)
    return [
        Change(name, _change(name, styles, search, eps), settings, name in SEARCHED)
        for name, settings in sets.items()
    ]


def _changed(change: Change, number: dict, batch: Images) -> torch.Tensor:
    return change.make(batch.images, [number[name] for name in batch.names])


def change_pictures(pictures: Pictures, out: Path, changes: list, form: str = "source") -> dict:
    """Write `pictures` under each of `changes`: one into the folder `out`, several into folders of `out`, in
    the format `form`, see `make_set`. What is there already is not made again.

    Returns `written`, `images` (in all), `folders` and `bytes`, and `source` (bytes). Raises the errors of
    `placed`, before the first picture is made, and those of `make_set`."""
    folders = placed(out, {change.folder: change.settings for change in changes}, form, pictures.tree.root)
    number, written = dict(zip(pictures.names, range(len(pictures)))), 0
    for place, (change, (folder, settings)) in enumerate(zip(changes, folders.items()), 1):
        title = change.folder + (f" ({place} of {len(changes)})" if len(changes) > 1 else "")
        together = 32 if pictures.one_size and not change.alone else 1
        make = partial(_changed, change, number)
        written += make_set(pictures, folder, make, settings, together, title, form)
    files = [folder / written_as(name, form) for folder in folders for name in pictures.names]
    return {
        "written": written,
        "images": len(files),
        "folders": [str(folder) for folder in folders],
        "bytes": sum(file.stat().st_size for file in files),
        "source": sum(Path(path).stat().st_size for path, _ in pictures.samples),
    }
