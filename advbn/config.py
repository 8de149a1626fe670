"""`params.yaml` says everything about a run, and a slip in it stops the run before it starts."""

import difflib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import ParameterError
from .files import project_root


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
]  # of a profile, row or table: part of file names and of a shell's words
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256, as `sha256sum` prints it
OnBadImage = Literal["error", "skip"]
Policy = Literal["none", "augmix", "trivialaugment", "mixup", "cutmix"]


class Layer(_Strict):
    "Options of `AdvBN`."

    eps: NotNegative = 1.1
    step_size: NotNegative = 0.2
    steps: Annotated[int, Field(ge=0)] = 6
    start: Literal["clean", "random"] = "clean"
    perturb: Literal["both", "mean", "std"] = "both"
    batch_statistics: bool = False
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    sync_statistics: bool = False


class Method(_Strict):
    """A row of a table: how a pretrained network is trained further; `after` cuts elsewhere than the profile
    does."""

    label: str
    train: Literal["nothing", "clean", "adversarial"]
    layer: Layer | None = None
    recipe: Literal["faithful", "fast"] = "faithful"  # what `prepare` knows under this name
    unpaired: bool = False  # half of a batch for each branch
    after: str | None = None

    @model_validator(mode="after")
    def _layer_only_where_it_acts(self):
        if self.recipe == "fast" and self.train != "adversarial":
            raise ValueError(f"train: {self.train} attacks nothing; recipe: fast is for adversarial training")
        if self.recipe == "fast" and (self.layer is not None or self.unpaired):
            raise ValueError(
                "recipe: fast stands for all that is said of an adversarial training; it takes no layer and "
                "no unpaired"
            )
        if (self.layer is not None or self.recipe == "fast") != (self.train == "adversarial"):
            raise ValueError(
                f"train: {self.train} {'needs a' if self.layer is None else 'takes no'} layer"
                + (" or recipe: fast" if self.layer is None else "")
            )
        if self.unpaired and self.train != "adversarial":
            raise ValueError(f"train: {self.train} has one branch; unpaired is for adversarial training")
        return self

    @property
    def options(self) -> dict | None:
        "What `prepare` is told, or `None` where nothing is attacked."
        if self.train != "adversarial":
            return None
        return (
            {"recipe": "fast"}
            if self.recipe == "fast"
            else {**self.layer.model_dump(), "unpaired": self.unpaired}
        )


class Augment(_Strict):
    "Random affine map and flip of images in memory; degrees, fractions of the width, and factors."

    degrees: NotNegative = 0.0
    translate: NotNegative = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    flip: bool = True


class Training(_Strict):
    "One run of SGD."

    epochs: Count
    batch_size: Count
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NotNegative = 0.0001
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    schedule: Literal["onecycle", "step", "constant"] = "constant"
    milestones: list[Count] = []
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.3
    precision: Literal["no", "bf16", "fp16"] = "no"

    @model_validator(mode="after")
    def _milestones_only_for_steps(self):
        if bool(self.milestones) != (self.schedule == "step"):
            raise ValueError(
                f"schedule: {self.schedule} {'needs' if self.schedule == 'step' else 'takes no'} milestones"
            )
        if any(m >= self.epochs for m in self.milestones):
            raise ValueError(
                f"milestones are {self.milestones} and epochs {self.epochs}; allowed are milestones before "
                f"the last epoch"
            )
        return self


class _Weights(_Strict):
    """What a network starts from: published weights by name, or a file with a state dict, of which the digest
    is said, too."""

    weights: str | None = None
    weights_sha256: Digest | None = None  # of a file
    head: Literal["new"] | None = None  # puts a new classifier on the weights, to be trained

    @model_validator(mode="after")
    def _new_head_on_weights(self):
        if self.head and not self.weights:
            raise ValueError("head: new needs weights; a network without any has a new classifier anyway")
        return self


class Network(_Weights):
    "The classifier and where it is cut."

    name: str
    after: str


def _either(section, training, key):
    if section.head and not training:
        raise ValueError(f"head: new is given and {key} is missing; a new classifier has to be trained")
    if not section.head and bool(section.weights) == bool(training):
        given = "given" if training else "missing"
        raise ValueError(
            f"weights and {key} are both {given}; a network is either published or trained here, or "
            f"published with head: new and trained further"
        )


class Decoder(_Strict):
    "Training of the decoder, with Adam."

    epochs: Count
    batch_size: Count
    lr: Positive


class Pictures(_Weights):
    "The autoencoder behind Stylized and the adversarial images, and the attack that makes the latter."

    network: str
    after: str
    classifier: Training | None = None  # null takes the published `weights`
    decoder: Decoder
    attack: Layer = Layer()
    styles: str | None = None  # a folder of paintings; null takes scikit-image's pictures
    styles_sha256: Digest | None = None  # of `LC_ALL=C sha256sum * | sha256sum` in that folder

    @model_validator(mode="after")
    def _trained_or_published(self):
        _either(self, self.classifier, "classifier")
        return self


class Sets(_Strict):
    "Folders of shifts that are published as sets of their own; null generates them from the test images."

    corruptions: str | None = None
    instagram: str | None = None
    sketch: str | None = None
    stylized: str | None = None


class Data(_Strict):
    """An image set. Paths are relative to the project's root; environment variables such as `$IMAGENET` are
    filled in."""

    name: Literal["openmoji", "cifar10", "imagenet"]
    root: str
    classes: Annotated[int, Field(ge=2)]
    augment: Augment = Augment()  # of images in memory; streamed ones get RandomResizedCrop and a flip
    sets: Sets = Sets()
    test_images: Count | None = None  # test on so many of them; null takes all
    size: Count | None = None  # of streamed images; null is the network's own
    resize: Count | None = (
        None  # of their shorter side, before the middle is cut out for testing; null is the network's own
    )
    workers: Annotated[int, Field(ge=0)] = 2  # decoding processes
    on_bad_image: OnBadImage = "error"  # of one that cannot be read; "skip" leaves it out, and lists it

    @model_validator(mode="after")
    def _sets_that_can_be_read(self):
        if self.size and self.resize and self.resize < self.size:
            raise ValueError(
                f"resize is {self.resize} and size {self.size}; what is cut out cannot be larger than what "
                f"it is cut from"
            )
        if self.test_images and self.name == "openmoji":
            raise ValueError("openmoji takes no test_images; a quarter of the images is held out per seed")
        if self.on_bad_image == "skip" and self.name == "openmoji":
            raise ValueError(
                "openmoji takes no on_bad_image: skip; its images are pinned in data.dvc, so build them "
                "again with 'advbn data'"
            )
        given, readable = (
            {k for k, v in self.sets.model_dump().items() if v},
            {"openmoji": set(), "cifar10": {"corruptions"}},
        )
        if unknown := given - readable.get(self.name, given):
            raise ValueError(
                f"{self.name} has no published set for {', '.join(sorted(unknown))}; allowed are "
                f"{sorted(readable[self.name]) or 'none'}"
            )
        if self.test_images and self.name == "cifar10" and "corruptions" in given:
            raise ValueError(
                "test_images and sets.corruptions are both given; CIFAR-10-C's arrays hold all test images, "
                "so take all of them"
            )
        if self.name == "imagenet" and "sketch" not in given:
            raise ValueError("imagenet needs sets.sketch, the folder of ImageNet-Sketch")
        return self

    @property
    def streamed(self) -> bool:
        "Are the images read from the disk when they are needed?"
        return self.name == "imagenet"


class Short(_Strict):
    "What the studies' runs take of the profile's: fewer epochs, seeds and test images under fewer shifts."

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    pretrain_epochs: Count
    finetune_epochs: Count
    severities: Annotated[list[Annotated[int, Field(ge=1, le=5)]], Field(min_length=1)]
    corruptions: Annotated[int, Field(ge=1, le=15)]  # so many of the fifteen, evenly spaced
    filters: Annotated[int, Field(ge=1, le=20)]  # so many of the photo filters, evenly spaced

    @model_validator(mode="after")
    def _each_once(self):
        for key in ("seeds", "severities"):
            if len(set(getattr(self, key))) != len(getattr(self, key)):
                raise ValueError(f"{key} are {getattr(self, key)}; each may stand there once")
        return self


class Base(_Strict):
    "What a study's networks are pretrained as, where it differs from the profile."

    label: str
    network: Network | None = None
    augmentation: Policy = "none"
    lr: Positive | None = None
    remark: str = ""  # what the layer does to this network, where it differs; stands in its rows
    note: str = ""  # the same at length, below the table


class Study(_Strict):
    "A table of its own: bases, each with the `base_methods` that all studies share and with further methods."

    title: str
    bases: Annotated[list[Name], Field(min_length=1)]
    methods: dict[Name, Method] = {}


class Profile(_Strict):
    "Everything that changes with the scale."

    data: Data
    network: Network
    pretrain: Training | None = (
        None  # null takes the network's published weights; with head: new they are trained further
    )
    finetune: Training
    pictures: Pictures
    short: Short | None = None  # null: this profile has the main table alone
    threads: Annotated[int, Field(ge=1, le=1024)] | None = (
        None  # CPU threads; null leaves the choice to torch
    )
    note: str | None = None  # what a reader of the results should know

    @model_validator(mode="after")
    def _trained_or_published(self):
        _either(self.network, self.pretrain, "pretrain")
        if self.short and self.data.name == "imagenet":
            raise ValueError(
                "imagenet takes no section 'short'; studies pretrain and test on images in memory"
            )
        return self


@dataclass(frozen=True)
class Run:
    "A row of the table of runs, for every seed: a pretrained network, and how it is trained further."

    name: str
    base: str | None  # of a study; the main table has the profile's own network
    method: Method
    network: Network
    augmentation: str
    pretrain: Training | None
    finetune: Training

    @property
    def after(self) -> str:
        "Where the network is cut."
        return self.method.after or self.network.after


class Params(_Strict):
    "The whole of `params.yaml`."

    profile: Name
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    methods: Annotated[dict[Name, Method], Field(min_length=1)]
    checkpoint_steps: Count = 200  # between two writes of a training run's progress
    timeout: Annotated[int, Field(ge=1, le=1_000_000)] = (
        600  # seconds that the processes of a run wait for each other
    )
    bases: dict[Name, Base] = {}
    base_methods: dict[Name, Method] = {}  # what every base is tested after
    studies: dict[Name, Study] = {}
    profiles: dict[Name, Profile]

    @model_validator(mode="after")
    def _names_agree(self):
        if self.profile not in self.profiles:
            near = difflib.get_close_matches(self.profile, self.profiles, 1, 0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"profile is {self.profile!r}; allowed are {', '.join(map(repr, self.profiles))}{hint}"
            )
        for name in ("standard", "finetune", "advbn"):
            if name not in self.methods:
                raise ValueError(
                    f"methods has no {name!r}; tables and figures compare standard, finetune and advbn, and "
                    f"others may stand beside them"
                )
        for name, train in (("standard", "nothing"), ("finetune", "clean"), ("advbn", "adversarial")):
            if self.methods[name].train != train:
                raise ValueError(
                    f"methods.{name}.train is {self.methods[name].train!r}; allowed is {train!r}, other rows "
                    f"may train as they like"
                )
        if self.methods["finetune"].after:
            raise ValueError(
                "methods.finetune is the control and is cut where the profile says; it takes no 'after'"
            )
        for name in ("pretrained", "autoencoder", "bases"):
            if name in self.methods:
                raise ValueError(
                    f"methods has {name!r}, which is the name of another folder of checkpoints; choose "
                    f"another"
                )
        for name in ("bench", "figures", "tables"):
            if name in self.profiles:
                raise ValueError(
                    f"profiles has {name!r}, which is the name of another folder of results; choose another"
                )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; each may stand there once")
        for study, section in self.studies.items():
            for base in section.bases:
                if base not in self.bases:
                    near = difflib.get_close_matches(base, self.bases, 1, 0.4)
                    raise ValueError(
                        f"studies.{study}.bases has {base!r}; allowed are {', '.join(self.bases)}"
                        + (f"; did you mean {near[0]!r}?" if near else "")
                    )
            if len(set(section.bases)) != len(section.bases):
                raise ValueError(
                    f"studies.{study}.bases are {', '.join(section.bases)}; each may stand there once"
                )
            twice = [name for name in section.methods if name in self.base_methods]
            if twice:
                raise ValueError(
                    f"studies.{study}.methods.{twice[0]} is the name of one of base_methods, which stand in "
                    f"every study; choose another"
                )
            methods = self.methods_of(study)
            controls = [method.after for method in methods.values() if method.train == "clean"]
            for name, method in methods.items():
                if controls.count(method.after) != 1:
                    raise ValueError(
                        f"studies.{study}.methods.{name} is cut after "
                        f"{method.after or 'the place of its network'!r}, where "
                        f"{controls.count(method.after)} "
                        "methods train clean; there must be one to compare with"
                    )
        if self.studies and (
            "finetune" not in self.base_methods
            or self.base_methods["finetune"].train != "clean"
            or self.base_methods["finetune"].after
        ):
            raise ValueError(
                "base_methods has no 'finetune' that trains clean, cut where its network says; the others "
                "are compared with it"
            )
        for base in self.bases:
            if not any(base in section.bases for section in self.studies.values()):
                raise ValueError(f"bases.{base} is in no study; name it in one, or remove it")
        short = self.current.short
        if short and not set(short.seeds) <= set(self.seeds):
            raise ValueError(
                f"profiles.{self.profile}.short.seeds are {short.seeds}; allowed are those of seeds, "
                f"{self.seeds}"
            )
        return self

    @property
    def current(self) -> Profile:
        "The profile that `profile` names."
        return self.profiles[self.profile]

    def runs(self, study: str | None = None) -> dict:
        """The table of runs, name to `Run`: of the main table, or of a study, every base with every method,
        none without a section `short`."""
        profile = self.current
        if study is None:
            return {
                name: Run(name, None, method, profile.network, "none", profile.pretrain, profile.finetune)
                for name, method in self.methods.items()
            }
        return {
            name: run
            for base in self.studies[study].bases
            for name, run in self._short_runs(base, self.methods_of(study))
        }

    def methods_of(self, study: str) -> dict:
        "All methods of a study: those of every base, and its own."
        return self.base_methods | self.studies[study].methods

    def base_runs(self, base: str) -> dict:
        "The runs of a base that all studies share, those of `base_methods`."
        return dict(self._short_runs(base, self.base_methods))

    def _short_runs(self, base, methods):
        profile, short, start = self.current, self.current.short, self.bases[base]
        if short:
            lr = {"lr": start.lr} if start.lr else {}
            pretrain = profile.pretrain.model_copy(update={"epochs": short.pretrain_epochs, **lr})
            finetune = profile.finetune.model_copy(update={"epochs": short.finetune_epochs})
            for name, method in methods.items():
                yield (
                    f"{base}/{name}",
                    Run(
                        name,
                        base,
                        method,
                        start.network or profile.network,
                        start.augmentation,
                        pretrain,
                        finetune,
                    ),
                )


def _known_keys(model, path):
    "The keys that are allowed beside the last key of `path`."
    for key in path:
        if isinstance(model, type) and issubclass(model, BaseModel) and key in model.model_fields:
            model = model.model_fields[key].annotation
            inner = [a for a in get_args(model) if isinstance(a, type) and issubclass(a, BaseModel)]
            model = inner[0] if inner else model
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def explain(error: ValidationError, source: str = "params.yaml", model: type = Params) -> str:
    "The first problem: key, value and what is allowed; of several the next as well, and how many there are."
    lines = []
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            name, allowed = str(problem["loc"][-1]), _known_keys(model, problem["loc"][:-1])
            near = difflib.get_close_matches(name, allowed, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(allowed)}"
            lines.append(f"{source}: unknown key {key!r}; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"{source}: {key!r} is missing")
        elif problem["type"] == "value_error":
            lines.append(f"{source}: {key + ': ' if key else ''}{problem['ctx']['error']}")
        elif problem["type"] == "string_pattern_mismatch":
            where = problem["loc"][:-2] if problem["loc"][-1] == "[key]" else problem["loc"]
            allowed = (
                "64 hexadecimal digits"
                if "{64}" in problem["ctx"]["pattern"]
                else "letters, digits, - and _, the first a letter or a digit"
            )
            lines.append(
                f"{source}: {'.'.join(map(str, where))} has {problem['input']!r}; allowed are {allowed}"
            )
        else:
            lines.append(
                f"{source}: {key} is {problem['input']!r}; {problem['msg'][0].lower()}{problem['msg'][1:]}"
            )
    return "\n".join(lines if len(lines) < 3 else [lines[0], f"{lines[1]} (and {len(lines) - 2} more)"])


class _Once(yaml.SafeLoader):
    "YAML in which a key stands once."

    def construct_mapping(self, node, deep=False):
        keys = [k.value for k, _ in node.value if isinstance(k, yaml.ScalarNode) and k.value != "<<"]
        if twice := [k for k in keys if keys.count(k) > 1]:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {twice[0]!r} stands twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


def parse_params(content: dict, source: str = "params.yaml") -> Params:
    "Checked parameters from a nested dictionary; raises `ParameterError`, a line or two, for slips."
    if not isinstance(content, dict):
        raise ParameterError(f"{source}: holds {type(content).__name__}, not keys and values")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise ParameterError(explain(error, source)) from None


def load_params(path: str | Path | None = None, **network) -> Params:
    """The project's `params.yaml`, or the file at `path`, checked; `network` is said of the network of its
    profile, in place of what stands there.

    Raises `ParameterError`, a line or two, for slips."""
    path = Path(path) if path else project_root() / "params.yaml"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Once)
    except FileNotFoundError:
        raise ParameterError(f"{path}: no such file") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ParameterError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except yaml.YAMLError as error:
        raise ParameterError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    with suppress(LookupError, TypeError, AttributeError):  # what is not there is said by the check
        content["profiles"][content["profile"]]["network"].update(network)
    return parse_params(content, path.name)
