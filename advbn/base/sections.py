"""The sections of `params.yaml`: what can be said of images, networks, training and methods."""

from contextlib import suppress
from datetime import date
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from .errors import did_you_mean
from .registry import Registry


class Section(BaseModel):
    "Part of `params.yaml`: its keys are known, their types are checked, and nothing in it changes."

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
]  # of a profile, row or table: part of file names and of a shell's words
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256, as `sha256sum` prints it
OnBadImage = Literal["error", "skip"]
Policy = Literal["none", "augmix", "trivialaugment", "mixup", "cutmix"]


class Layer(Section):
    "Options of `AdvBN`."

    eps: NotNegative = 1.1
    step_size: NotNegative = 0.2
    steps: Annotated[int, Field(ge=0)] = 6
    start: Literal["clean", "random"] = "clean"
    perturb: Literal["both", "mean", "std"] = "both"
    batch_statistics: bool = False
    share: Share = 1.0
    sync_statistics: bool = False


METHODS = Registry("way of training")  # what `train` of a method can be, and the class of its section


class Method(Section):
    """A row of a table: how a pretrained network is trained further.

    `after` cuts elsewhere than the profile does. A way of training of one's own is a subclass with a method
    `network(model, after)`, the `AdvBNNet` that is trained, added to `METHODS` under the word that stands
    behind `train`."""

    label: str
    train: str  # a name of `METHODS`
    layer: Layer | None = None
    recipe: Literal["faithful", "fast"] = "faithful"  # what `prepare` knows under this name
    unpaired: bool = False  # half of a batch for each branch
    after: str | None = None

    @model_validator(mode="after")
    def _is_known(self):
        METHODS.find(self.train)
        return self

    @model_validator(mode="after")
    def _layer_only_where_it_acts(self):
        attacks = self.attacks or self.train not in ("nothing", "clean")
        if self.recipe == "fast" and not attacks:
            raise ValueError(f"train: {self.train} attacks nothing; recipe: fast is for adversarial training")
        if self.recipe == "fast" and (self.layer is not None or self.unpaired):
            raise ValueError(
                "recipe: fast stands for all that is said of an adversarial training; it takes no layer and "
                "no unpaired"
            )
        if self.attacks and self.layer is None and self.recipe != "fast":
            raise ValueError(f"train: {self.train} needs a layer or recipe: fast")
        if self.layer is not None and not attacks:
            raise ValueError(f"train: {self.train} takes no layer")
        if self.unpaired and not attacks:
            raise ValueError(f"train: {self.train} has one branch; unpaired is for adversarial training")
        return self

    @property
    def trains(self) -> bool:
        "Is the network trained at all?"
        return self.train != "nothing"

    @property
    def attacks(self) -> bool:
        "Is it trained on adversarial feature statistics?"
        return self.train == "adversarial"

    @property
    def branches(self) -> tuple:
        "The branches that its network has."
        return ("clean", "adversarial") if self.attacks else ("clean",)

    @property
    def options(self) -> dict | None:
        "What `prepare` is told, or `None` where nothing is attacked."
        if not self.attacks:
            return None
        if self.recipe == "fast":
            return {"recipe": "fast"}
        return {**self.layer.model_dump(), "unpaired": self.unpaired}


for _word in ("nothing", "clean", "adversarial"):
    METHODS.add(_word, Method)


class Augment(Section):
    "Random crop, affine map, flip and colours of images in memory."

    degrees: NotNegative = 0.0
    translate: NotNegative = 0.0  # a fraction of the width
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0  # the largest change of size, a fraction
    flip: bool = True
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0  # the smallest part of the area that a crop keeps
    colour_jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # of brightness, contrast, saturation and hue
    grayscale: Annotated[float, Field(ge=0, le=1)] = 0.0  # the probability of a grey image

    @property
    def words(self) -> str:
        "What is changed, without what is left as it is."
        nothing = Augment(flip=False).model_dump()
        changes = {k: v for k, v in self.model_dump().items() if v != nothing[k]}
        words = [k.replace("_", " ") + ("" if v is True else f" {v}") for k, v in changes.items()]
        return ", ".join(words) or "none"


class Training(Section):
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


class Weights(Section):
    """What a network starts from: published weights by name, or a file with a state dict, of which the digest
    is said, too."""

    weights: str | None = None
    weights_sha256: Digest | None = None  # of a file
    # new puts a new classifier on the weights, to be trained; classes keeps the rows of ImageNet's classifier
    # for the data's classes, which are WordNet ids
    head: Literal["new", "classes"] | None = None

    @model_validator(mode="after")
    def _head_on_weights(self):
        if self.head and not self.weights:
            raise ValueError(
                f"head: {self.head} needs weights; a network without any has a new classifier anyway"
            )
        return self


class Network(Weights):
    "The classifier and where it is cut."

    name: str
    after: str


def _either(section, training, key):
    if section.head == "new" and not training:
        raise ValueError(f"head: new is given and {key} is missing; a new classifier has to be trained")
    if not section.head and bool(section.weights) == bool(training):
        given = "given" if training else "missing"
        raise ValueError(
            f"weights and {key} are both {given}; a network is either published or trained here, or "
            f"published with head: new and trained further"
        )


class Decoder(Section):
    "Training of the decoder, with Adam."

    epochs: Count
    batch_size: Count
    lr: Positive


class Pictures(Weights):
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


class Sets(Section):
    "Folders of shifts that are published as sets of their own; null generates them from the test images."

    corruptions: str | None = None
    instagram: str | None = None
    sketch: str | None = None
    stylized: str | None = None


DATASETS = Registry("data set")  # what `name` of `data` can be, and the class of its section


class Data(Section):
    """An image set. Paths are relative to the project's root; environment variables such as `$IMAGENET` are
    filled in.

    A data set is a subclass, added to `DATASETS` under its `name`: it says what is known of the set before
    it is read. One of one's own also has a method `open(root, wanted, share)` that reads it, see
    `advbn.images.datasets.open_set`."""

    name: str  # a name of `DATASETS`
    root: str
    classes: Annotated[int, Field(ge=2)]
    augment: Augment = Augment()  # of images in memory; streamed ones get RandomResizedCrop and a flip
    sets: Sets = Sets()
    shifts: Annotated[list[str], Field(min_length=1)] | None = None  # names; null: all that can be made
    test_images: Count | None = None  # test on so many of them; null takes all
    shares: dict[str, Share] = {}  # of shifts: what share of the test images each of its cells shows
    # pixels on a side that the network is given; null is the network's own size of streamed images, and of
    # others, which are shifted as they are and resized for the network, their own
    size: Count | None = None
    resize: Count | None = None  # of their shorter side, before the middle is cut out; null likewise
    workers: Annotated[int, Field(ge=0)] = 2  # decoding processes
    on_bad_image: OnBadImage = "error"  # of one that cannot be read; "skip" leaves it out, and lists it

    streamed: ClassVar[bool] = False  # read from the disk when they are needed, not kept in memory
    known: ClassVar[dict] = {"training": 0, "test": 0, "pixels": 32}  # before anything is read
    layouts: ClassVar[tuple] = ()  # the folders under `root`, one tuple for each way to lay it out
    published: ClassVar[tuple] = ()  # the keys of `sets` that can be read for it
    alexnet: ClassVar[bool] = False  # can its corruption errors be divided by those of AlexNet?
    title: ClassVar[str] = ""  # what the set is called where it is offered

    @property
    def scaled(self) -> int | None:
        "To how many pixels images in memory are resized for the network, if they are."
        return None if self.streamed else self.size

    @model_validator(mode="after")
    def _is_known(self):
        DATASETS.find(self.name)
        return self

    @model_validator(mode="after")
    def _cut_fits(self):
        if self.size and self.resize and self.resize < self.size:
            raise ValueError(
                f"resize is {self.resize} and size {self.size}; what is cut out cannot be larger than what "
                f"it is cut from"
            )
        return self

    @model_validator(mode="after")
    def _sets_that_can_be_read(self):
        given = {key for key, folder in self.sets.model_dump().items() if folder}
        if unknown := given - set(self.published):
            raise ValueError(
                f"{self.name} has no published set for {', '.join(sorted(unknown))}; allowed are "
                f"{sorted(self.published) or 'none'}"
            )
        return self


class OpenMoji(Data):
    "The embedded emoji."

    known: ClassVar[dict] = {"training": 1424, "test": 474, "pixels": 40}
    title: ClassVar[str] = "OpenMoji"
    layouts: ClassVar[tuple] = (("openmoji", "sketch"),)

    @model_validator(mode="after")
    def _as_it_is(self):
        if self.test_images:
            raise ValueError("openmoji takes no test_images; a quarter of the images is held out per seed")
        if self.on_bad_image == "skip":
            raise ValueError(
                "openmoji takes no on_bad_image: skip; its images are pinned in data.dvc, so build them "
                "again with 'advbn data'"
            )
        return self


class Cifar10(Data):
    "CIFAR-10, as folders of images or as the original batches."

    known: ClassVar[dict] = {"training": 50_000, "test": 10_000, "pixels": 32}
    title: ClassVar[str] = "CIFAR-10"
    layouts: ClassVar[tuple] = (("train", "test"), ("cifar-10-batches-py",))
    published: ClassVar[tuple] = ("corruptions",)

    @model_validator(mode="after")
    def _all_or_generated(self):
        if self.test_images and self.sets.corruptions:
            raise ValueError(
                "test_images and sets.corruptions are both given; CIFAR-10-C's arrays hold all test images, "
                "so take all of them"
            )
        return self


class ImageNet(Data):
    "ImageNet, or another set with `train/` and `val/` in ImageFolder layout, streamed."

    streamed: ClassVar[bool] = True
    known: ClassVar[dict] = {"training": 1_281_167, "test": 50_000, "pixels": 224}
    layouts: ClassVar[tuple] = (("train", "val"),)
    published: ClassVar[tuple] = ("corruptions", "instagram", "sketch", "stylized")
    alexnet: ClassVar[bool] = True
    title: ClassVar[str] = "ImageNet"

    @model_validator(mode="after")
    def _has_sketches(self):
        if not self.sets.sketch:
            raise ValueError("imagenet needs sets.sketch, the folder of ImageNet-Sketch")
        return self


class TinyImageNet(Data):
    "Tiny-ImageNet: photographs of 200 of ImageNet's classes, as folders of classes or as it is offered."

    train_images_per_class: Count | None = None  # the seed draws which; null takes all

    known: ClassVar[dict] = {"training": 100_000, "test": 10_000, "pixels": 64}
    layouts: ClassVar[tuple] = (("train", "val"),)
    title: ClassVar[str] = "Tiny-ImageNet"


DOMAINS = {  # folder to the name of its shift
    "photo": "photo",
    "art_painting": "art_painting",
    "cartoon": "cartoon",
    "sketch": "sketch_domain",
}


class Pacs(Data):
    "PACS: photographs, paintings, cartoons and sketches of seven classes."

    source: str = "photo"  # the domain that is trained on, or "all but" one
    size: Count | None = 128  # to which images are resized when they are read
    shifts: Annotated[list[str], Field(min_length=1)] | None = ["clean", *DOMAINS.values()]

    known: ClassVar[dict] = {"training": 1503, "test": 167, "pixels": 128, "others": 8321}
    layouts: ClassVar[tuple] = (tuple(DOMAINS),)
    title: ClassVar[str] = "PACS"

    @property
    def sources(self) -> tuple:
        "The domains that are trained on."
        one = self.source.removeprefix("all but ")
        return (one,) if one == self.source else tuple(name for name in DOMAINS if name != one)

    @model_validator(mode="after")
    def _source_is_a_domain(self):
        if (one := self.source.removeprefix("all but ")) not in DOMAINS:
            raise ValueError(
                f"source is {self.source!r}; allowed are {', '.join(DOMAINS)}, and 'all but' one of them"
                f"{did_you_mean(one, DOMAINS)}"
            )
        if self.test_images:
            raise ValueError("pacs takes no test_images; a tenth of the source is held out")
        return self


DATASETS.add("openmoji", OpenMoji)
DATASETS.add("cifar10", Cifar10)
DATASETS.add("imagenet", ImageNet)
DATASETS.add("tiny-imagenet", TinyImageNet)
DATASETS.add("pacs", Pacs)


class Short(Section):
    """What the studies' runs take of the profile's, fewer epochs, seeds and test images in a shift's cells,
    and what of the studies is otherwise here."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    pretrain_epochs: Count
    finetune_epochs: Count
    shares: dict[str, Share] = {}  # of shifts: what share of the test images each of its cells shows
    bases: dict[Name, dict[str, Any]] = {}  # what this profile says of `bases`, over what they say there
    base_methods: dict[Name, dict[str, Any]] = {}  # likewise
    studies: dict[Name, dict[str, Any] | None] = {}  # likewise; null leaves a study, or a method of one, out

    @model_validator(mode="after")
    def _each_once(self):
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; each may stand there once")
        return self


class Base(Section):
    "What a study's networks are pretrained as, where it differs from the profile."

    label: str
    network: Network | None = None
    augmentation: Policy = "none"
    augment: Augment | None = None  # in place of that of the profile's images in memory
    lr: Positive | None = None
    remark: str = ""  # what the layer does to this network, where it differs; stands in its rows
    note: str = ""  # the same at length, below the table


class Study(Section):
    "A table of its own: bases, each with the `base_methods` that all studies share and with further methods."

    title: str
    bases: Annotated[list[Name], Field(min_length=1)]
    methods: dict[Name, SerializeAsAny[Method]] = {}
    left_out: bool = False  # in the current profile, whose section `short` says so


class Comparison(Section):
    "Two rows of the main table, on the mean of the shifts, each on the branch that the paper uses for it."

    method: Name
    against: Name


class Outcomes(Section):
    "What the main table was made to decide, named before the runs; every other comparison is secondary."

    named: str  # a date; in quotes, since DVC keeps none
    primary: Comparison
    second: Comparison | None = None

    @field_validator("named", mode="before")
    @classmethod
    def _is_a_date(cls, given):
        with suppress(ValueError, TypeError):
            if date.fromisoformat(given).isoformat() == given:
                return given
        raise ValueError(f'{str(given)!r} is no date in quotes; allowed is such as "2026-11-28"')

    @property
    def each(self) -> dict:
        "The comparisons by their rank."
        ranks = {"primary": self.primary, "second": self.second}
        return {rank: compared for rank, compared in ranks.items() if compared}


class Profile(Section):
    "Everything that changes with the scale."

    data: SerializeAsAny[Data]
    network: Network
    pretrain: Training | None = (
        None  # null takes the network's published weights; with head: new they are trained further
    )
    finetune: Training
    pictures: Pictures | None  # null: no shift is painted
    methods: dict[Name, dict[str, Any]] = {}  # what this profile says of `methods`, over what they say there
    short: Short | None = None  # null: this profile has the main table alone
    threads: Annotated[int, Field(ge=1, le=1024)] | None = (
        None  # CPU threads; null leaves the choice to torch
    )
    note: str | None = None  # what a reader of the results should know

    @property
    def bases_of_studies(self) -> list:
        "The names of those that its section `short` gives to studies."
        said = (self.short.studies if self.short else {}).values()
        return [base for study in said if study for base in study.get("bases", ())]

    @model_validator(mode="after")
    def _shares_of_what_is_made(self):
        for shift, share in (self.short.shares if self.short else {}).items():
            most = self.data.shares.get(shift, 1.0)
            if share > most:
                raise ValueError(
                    f"short.shares has {shift}: {share}; allowed is at most {most}, what data.shares makes"
                )
        return self

    @model_validator(mode="after")
    def _trained_or_published(self):
        _either(self.network, self.pretrain, "pretrain")
        if self.short and self.data.streamed:
            raise ValueError(
                f"{self.data.name} takes no section 'short'; studies pretrain and test on images in memory"
            )
        return self
