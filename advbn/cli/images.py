"""The commands for folders of images: look at them, change them."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from .app import ANYWHERE, IN_A_CLONE, app
from .complete import complete_corruptions, complete_formats, complete_models, complete_styles
from .options import on_bad_option, project_params, tell_left_out

OF_SEARCH = "With stylized and advbn"


SOURCE = Annotated[
    Path, typer.Argument(help="A folder of pictures of any size, with or without folders in it.")
]
OUT = Annotated[Path, typer.Argument(help="Folder to write; one for each change, if there are several.")]
FORMAT = Annotated[
    str,
    typer.Option(
        "--format",
        help="png, jpeg (quality 85, as ImageNet-C), webp (lossless), or source: as each picture is.",
        autocompletion=complete_formats,
    ),
]


def _size(count):
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _say_changed(out, found):
    "Print what `change_pictures` has done."
    folders = found["folders"]
    what = f"{found['images']} images" + (f" in {len(folders)} folders" if len(folders) > 1 else "")
    sizes = f"{_size(found['bytes'])}, the source has {_size(found['source'])}"
    if found["written"]:
        print(f"{out}: {what}, {sizes}; {found['written']} images written")
    else:
        print(f"{out}: {what} are all there already; 0 images written")


@app.command(rich_help_panel=ANYWHERE)
def corrupt(
    source: SOURCE,
    out: OUT,
    name: Annotated[
        str,
        typer.Option(
            help="A corruption, such as fog; several, such as fog,frost; all: ImageNet-C's fifteen; extra: "
            "four more.",
            autocompletion=complete_corruptions,
        ),
    ],
    severity: Annotated[str, typer.Option(help="1 to 5, or several: 1,3 or 1-5.")] = "3",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    form: FORMAT = "source",
    on_bad_image: on_bad_option() = "error",
):
    """Corrupt the pictures of a folder into another.

    One corruption at one severity goes into OUT, several into OUT/NAME/SEVERITY, as ImageNet-C is laid out.
    The same command goes on where it was interrupted.

    Example: advbn corrupt photographs foggy --name fog --severity 3, or: advbn corrupt photographs
    photographs-c --name all --severity 1-5"""
    from ..base.files import check_writable
    from ..base.names import chosen_corruptions, chosen_format, chosen_severities
    from ..base.sets import corruption_sets, placed
    from ..images.decoding import BadImages

    names, severities = chosen_corruptions(name), chosen_severities(severity)
    bad, form = BadImages(on_bad_image), chosen_format(form)
    placed(out, corruption_sets(names, severities, seed), form, source), _check_source(source)
    check_writable(out)

    from ..changing import change_pictures, corruption_changes
    from ..adapters.evaluate import Pictures
    from ..shifts.corruptions import SMALLEST

    pictures = Pictures(source, bad, SMALLEST)
    tell_left_out(bad)
    _say_changed(out, change_pictures(pictures, out, corruption_changes(names, severities, seed), form))


def _check_source(source):
    "Raise `DataError` for a folder without pictures; what is left out is told when they are read."
    import warnings

    from ..images.decoding import Tree

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Tree(source, loose=True)


def _check_like(names, like):
    "Raise what is wrong with the pictures that others are to be like, as far as it can be told."
    from ..base.errors import DataError
    from ..base.extras import missing_modules

    if like is not None and not like.exists():
        raise DataError(f"--like: no picture and no folder of pictures at {like}")
    alike = [name for name in names if name in ("colours", "stylized")]
    if alike and like is None and "skimage" in missing_modules("figures"):
        raise ImportError(
            f"{alike[0]} needs other pictures: name one, or a folder, with --like; scikit-image's come with "
            f"pip install 'advbn[figures]'"
        )


@app.command(rich_help_panel=ANYWHERE)
def restyle(
    source: SOURCE,
    out: OUT,
    name: Annotated[
        str,
        typer.Option(
            help="A photo filter, such as sutro, or edges, colours, stylized, advbn; several, such as "
            "sutro,edges; filters: all twenty.",
            autocompletion=complete_styles,
        ),
    ],
    like: Annotated[
        Optional[Path],
        typer.Option(
            help="For colours and stylized: a picture, or a folder of them; by default scikit-image's."
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="For stylized and advbn: whose features get other statistics.",
            autocompletion=complete_models,
            rich_help_panel=OF_SEARCH,
        ),
    ] = "efficientnet_lite0",
    weights: Annotated[
        str,
        typer.Option(help="Its state dict, or the name of published weights.", rich_help_panel=OF_SEARCH),
    ] = "DEFAULT",
    after: Annotated[
        str, typer.Option(help="The layer behind which they are.", rich_help_panel=OF_SEARCH)
    ] = "blocks.1",
    eps: Annotated[float, typer.Option(help="How far advbn goes.", min=0.0, rich_help_panel=OF_SEARCH)] = 1.1,
    form: FORMAT = "source",
    on_bad_image: on_bad_option() = "error",
):
    """Write the pictures of a folder in another style, with the same content.

    Photo filters, edges, the colours of other pictures; the feature statistics of other pictures (stylized),
    or those that hurt a network most (advbn), for which a picture is searched in some seconds. One style goes
    into OUT, several into OUT/NAME.

    Example: advbn restyle photographs filtered --name sutro,edges"""
    from ..base.files import check_writable
    from ..base.names import SEARCHED, check_evaluation, chosen_format, chosen_styles
    from ..base.sets import placed, restyled_sets
    from ..images.decoding import BadImages

    names, bad = chosen_styles(name), BadImages(on_bad_image)
    searches, form = {*SEARCHED} & {*names}, chosen_format(form)
    sets = restyled_sets(names, like, f"{model}, {weights}", after, eps)
    placed(out, sets, form, source), _check_source(source)
    check_writable(out)
    _check_like(names, like)
    if searches:
        check_evaluation(model, [weights])

    from ..changing import change_pictures, restyling_changes, search_with
    from ..adapters.evaluate import Pictures

    network = search_with(model, weights, after) if searches else None
    pictures = Pictures(source, bad)
    tell_left_out(bad)
    _say_changed(out, change_pictures(pictures, out, restyling_changes(names, like, network, eps), form))


@app.command(rich_help_panel=ANYWHERE)
def check(
    folder: Path,
    against: Annotated[
        Optional[Path], typer.Option(help="Another folder, such as the training images, to compare with.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Read every image of a folder, and say what is wrong.

    The folder has a folder for each class; exit status 1 if something is wrong.

    Example: advbn check photographs/test --against photographs/train"""
    from json import dumps

    from ..images.decoding import inspect_folder

    found = inspect_folder(folder, against)
    if json:
        print(dumps(found, indent=1))
    else:
        print(f"{folder}: {found['images']} images in {found['classes']} classes")
        for name, lines in found["problems"].items():
            kind = name if len(lines) != 1 else name.replace("images", "image", 1).replace("files", "file", 1)
            print(
                f"{len(lines)} {kind}" + (":" if lines else ""),
                *lines[:20],
                *([f"and {len(lines) - 20} more"] if len(lines) > 20 else []),
                sep="\n  ",
            )
        print(*found["remarks"], sep="\n", end="\n" if found["remarks"] else "")
    raise typer.Exit(1 if any(found["problems"].values()) else 0)


@app.command("make-set", rich_help_panel=IN_A_CLONE)
def make_set(
    out: Path,
    kind: Annotated[str, typer.Option(help="advbn, reconstructed or stylized.")] = "advbn",
    seed: Annotated[int, typer.Option(help="Whose test images to take.")] = 0,
):
    """Write the profile's test images, perturbed and decoded, as an ImageFolder tree.

    Example: advbn make-set sets/advbn"""
    from ..base.errors import ParameterError

    if kind not in ("advbn", "reconstructed", "stylized"):
        raise ParameterError(f"--kind is {kind!r}; allowed are advbn, reconstructed and stylized")
    params = project_params()
    from ..evidence.testing import made_from
    from ..images.writing import make_set
    from ..shifts.styles import adversarial, reconstructed, style_images, stylized
    from ..training.distributed import build_accelerator
    from ..training.run import check_seed, load_data, setting_of, styles_folder
    from ..training.train import load_autoencoder, picture_attack

    setting = setting_of(params)
    check_seed(setting, seed)
    data = load_data(setting)
    device = build_accelerator().device
    autoencoder = load_autoencoder(setting).to(device)
    layer, styles = picture_attack(setting, autoencoder), styles_folder(setting)
    settings = {"kind": kind, **made_from(setting, data, seed)}
    test = data.test(seed, wide=True)
    number = dict(zip(test.names, data.test_indices(seed).tolist()))
    makers = {
        "advbn": lambda b: adversarial(autoencoder, b.images, b.targets, layer),
        "reconstructed": lambda b: reconstructed(autoencoder, b.images),
        "stylized": lambda b: stylized(
            autoencoder, b.images, [number[n] for n in b.names], style_images(b.images.shape[-1], styles)
        ),
    }
    print(f"{out}: {make_set(test, out, lambda b: makers[kind](b.to(device)), settings)} images written")
