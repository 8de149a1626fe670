"""What can be said of a fine-tuning on images of one's own; what is not said is chosen, see
`advbn.training.choices`."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from .config import explain
from .errors import ParameterError
from .sections import Count, NotNegative, OnBadImage, Positive, Section


class Options(Section):
    "Of a fine-tuning; `None` is chosen by a rule, and said."

    weights: str | None = (
        None  # a file with a state dict, or the name of published ones; None: random numbers
    )
    head: Literal["new"] | None = None  # a new classifier although the one of the weights would fit
    after: str | None = None  # where the network is cut
    eps: NotNegative | Literal["auto"] | None = None  # how far statistics may go
    recipe: Literal["faithful", "fast"] = "faithful"
    size: Annotated[int, Field(ge=8, le=4096)] | None = None  # pixels that the network is given
    resize: Annotated[int, Field(ge=8, le=8192)] | None = (
        None  # the shorter side before the middle is cut out
    )
    augment: Literal["photographs", "drawings", "none"] | None = None  # see `advbn.training.choices`
    batch_size: Annotated[int, Field(ge=2)] | None = None  # of all processes together
    epochs: Count | None = None
    lr: Positive | None = None
    pretrain_epochs: Count | None = None  # of a network that starts from random numbers or a new classifier
    pretrain_lr: Positive | None = None
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.25  # of each class, where there is no test folder
    shifts: str = "all"  # or some, such as "clean,corruptions"
    test_images: Count | None = None  # test on so many; None: 500 on a CPU, all on a GPU
    on_bad_image: OnBadImage = "error"
    log: Literal["tensorboard", "dvclive"] | None = None  # to whom losses and accuracy are told, too
    workers: Annotated[int, Field(ge=0)] = 2  # that read images
    seed: Annotated[int, Field(ge=0)] = 0


def as_option(field: str) -> str:
    "What a field of `Options` is called on the command line."
    return f"--{field.replace('_', '-')}"


def checked_options(given: dict, called=str) -> Options:
    """`Options` from what is given; raises `ParameterError` with the nearest spelling for slips, in which a
    field is `called` so."""
    try:
        return Options.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        raise ParameterError(explain(error, "finetune", Options, called=called)) from None


def wishes(model: str, images, test, options: Options) -> dict:
    """What a fine-tuning was asked for, as `choices.json` keeps it; `images` are a folder or a digest. Who is
    told of it and how many read images are left out: with others it is the same fine-tuning."""
    data, apart = (str(Path(p).resolve()) if p and Path(p).is_dir() else p for p in (images, test))
    return {"model": model, "images": data, "test": apart, **options.model_dump(exclude={"log", "workers"})}


def kept_choices(out: Path, given: dict) -> dict:
    """What an earlier call with the same wishes has left in `choices.json` of the folder `out`: `given`,
    what was `taken` where these leave it open, and why, the seconds that are `expected` of each stage, those
    that have `ended`, and whether it is `complete`; empty for the first one.

    Raises `ParameterError` if `out` holds what was trained with other wishes, or something else."""
    file = out / "choices.json"
    if not file.exists():
        if out.exists() and any(not p.name.startswith(("finetune.", ".")) for p in out.iterdir()):
            raise ParameterError(f"{out} holds other files; name a folder that is new or empty")
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        before = kept["given"]
        other = [f"{k} {before.get(k)!r}, now {given[k]!r}" for k in given if before.get(k) != given[k]]
    except (ValueError, KeyError, AttributeError):
        raise ParameterError(f"{file} is damaged; remove {out}, or name another folder") from None
    if other and not kept.get("ended") and not any((out / "progress").glob("*.pt*")):
        return {}  # nothing has been trained yet
    if other:
        raise ParameterError(
            f"{out} was begun with other wishes ({'; '.join(other)}); the same go on there, others need "
            f"another folder"
        )
    return kept
