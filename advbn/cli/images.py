"""The commands for folders of images: look at them, change them."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from .app import app
from .options import on_bad_option, tell_left_out

@app.command("make-set")
def make_set(
    out: Path,
    kind: Annotated[str, typer.Option(help="advbn, reconstructed or stylized.")] = "advbn",
    seed: Annotated[int, typer.Option(help="Whose test images to take.")] = 0,
):
    """Write the profile's test images, perturbed and decoded, as an ImageFolder tree. Example: advbn make-set
    sets/advbn"""
    from ..base.config import load_params
    from ..base.errors import ParameterError
    from ..evidence.testing import made_from
    from ..images.writing import make_set
    from ..shifts.styles import adversarial, reconstructed, style_images, stylized
    from ..training.distributed import build_accelerator
    from ..training.run import check_seed, load_data, setting_of, styles_folder
    from ..training.train import load_autoencoder, picture_attack

    if kind not in ("advbn", "reconstructed", "stylized"):
        raise ParameterError(f"--kind is {kind!r}; allowed are advbn, reconstructed and stylized")
    setting = setting_of(load_params())
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


@app.command()
def corrupt(
    source: Path,
    out: Path,
    name: Annotated[str, typer.Option(help="A corruption, such as fog.")],
    severity: Annotated[int, typer.Option(help="1 to 5.")] = 3,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    on_bad_image: on_bad_option() = "error",
):
    """Corrupt the pictures of a tree, of any size, into another tree. Example: advbn corrupt data/openmoji
    out --name fog --severity 3"""
    from ..base.errors import ParameterError
    from ..adapters.evaluate import Pictures
    from ..images.decoding import BadImages
    from ..images.writing import make_set
    from ..shifts.corruptions import SMALLEST, check_corruption, corrupt

    bad = BadImages(on_bad_image)
    check_corruption(name, severity)
    if source.resolve() in out.resolve().parents:
        raise ParameterError(
            f"{out} lies in {source} and would become one of its classes; name a folder beside it"
        )
    images = Pictures(source, bad, SMALLEST)
    tell_left_out(bad)
    number = dict(zip(images.names, range(len(images))))
    made = make_set(
        images,
        out,
        lambda b: corrupt(b.images, name, severity, seed=seed, indices=[number[n] for n in b.names]),
        {"corruption": name, "severity": severity, "seed": seed, "source": str(source.resolve())},
        32 if images.one_size else 1,
    )
    print(f"{out}: {made} images written")


@app.command()
def check(
    folder: Path,
    against: Annotated[
        Optional[Path], typer.Option(help="Another folder, such as the training images, to compare with.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Read every image of a folder with a folder for each class, and say what is wrong; exit status 1 if
    something is.

    Example: advbn check photographs/test --against photographs/train"""
    from json import dumps

    from ..images.decoding import inspect_folder

    found = inspect_folder(folder, against)
    if json:
        print(dumps(found, indent=1))
    else:
        print(f"{folder}: {found['images']} images in {found['classes']} classes")
        for name, lines in found["problems"].items():
            print(
                f"{len(lines)} {name}" + (":" if lines else ""),
                *lines[:20],
                *([f"and {len(lines) - 20} more"] if len(lines) > 20 else []),
                sep="\n  ",
            )
    raise typer.Exit(1 if any(found["problems"].values()) else 0)

