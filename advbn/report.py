"""What a reproducibility report says beside its tables: scope, differences of protocol, data, settings, what
was easy and what was difficult, and the checklist of the ML reproducibility programme."""

import json
from pathlib import Path

import pandas as pd
import yaml

from .base.config import Params
from .base.files import project_root
from .base.sections import Base, Layer, Method
from .bench.record import Bench, Ratio, newest
from .evidence.claims import CLAIMS
from .evidence.tables import Table, augmentation_words, told
from .shifts.cells import SHIFTS, columns, title

OFFICIAL_NETWORK = ("torchvision/resnet50", "IMAGENET1K_V1")
SAME = "the same"


def is_the_papers_scale(params: Params) -> bool:
    "Are network and images those of the paper?"
    network = params.current.network
    return params.current.data.name == "imagenet" and (network.name, network.weights) == OFFICIAL_NETWORK


def scope(params: Params) -> list:
    "Whether this is the paper's experiment or a smaller one, and what is and is not in it; sentences."
    if is_the_papers_scale(params):
        kind = "This is a replication on the paper's own network and images, ResNet-50 on ImageNet."
    else:
        kind = (
            f"This is a replication at reduced scale: the layer, the training and the evaluation are those "
            f"of the official code, but the images are {params.current.data.name} and the network is "
            f"{params.current.network.name}, in place of ImageNet and ResNet-50. It can show whether an "
            f"effect is there at this scale; it cannot confirm or refute the paper's numbers."
        )
    studies = ", ".join(study.title for study in params.run_studies.values())
    return [
        kind,
        f"Tested are {len(CLAIMS)} claims, from the abstract and the README of the official code.",
        f"Further tables: {studies}."
        if studies
        else "This profile runs the main table alone, without studies.",
        "Not reproduced: semantic segmentation, of which the paper's first version reports.",
    ]


def claims_tested() -> Table:
    "Where each claim is stated, and the experiment that tests it here."
    rows = [[f"{n}. {c.says}", c.stated, c.tested] for n, c in enumerate(CLAIMS, 1)]
    return Table(["claim", "stated in", "tested here by"], rows)


def _difference(what: str, paper: str, here: str, why: str = "") -> list:
    "A row of the table of differences; without a reason where there is no difference."
    return [what, paper, SAME if here == paper else here, "" if here == paper else why]


def _of_images(params: Params) -> list:
    "Differences in network, images and shifts."
    profile = params.current
    data, network, pictures = profile.data, profile.network, profile.pictures
    known, reduced = data.known, "reduced scale"
    weights = network.weights or f"trained here for {profile.pretrain.epochs} epochs"
    tested = data.test_images or known["test"]
    rows = [
        _difference(
            "Network",
            "ResNet-50, IMAGENET1K_V1",
            _network(network.name, weights),
            f"{reduced}: runs without a GPU",
        ),
        _difference(
            "Images",
            "imagenet: 1,281,167 training, 50,000 test, 1,000 classes",
            f"{data.name}: {known['training']:,} training, {tested:,} test, {data.classes:,} classes"
            f"{_others(data)}",
            reduced,
        ),
        _difference(
            "Resolution", "224 pixels", f"{data.size or known['pixels']} pixels", "that of the images"
        ),
        _difference("Cut", "after layer1", f"after {network.after}", "another network"),
        _difference(
            "Augmentation of the fine-tune",
            "RandomResizedCrop and flip",
            "RandomResizedCrop and flip" if data.streamed else augmentation_words(data),
            "small images lose their object in a random crop"
            if not data.augment or data.augment.crop == 1
            else "a crop keeps most of the object",
        ),
    ]
    return rows + (_of_pictures(pictures) if pictures else [])


def _others(data) -> str:
    "The test images of other domains, in words."
    more = data.known.get("others")
    return f"; {more:,} more test images of other domains" if more else ""


def _of_pictures(pictures) -> list:
    "Differences in decoded images."
    return [
        _difference(
            "Encoder of decoded images",
            "VGG-19 up to relu4_1, published weights",
            _encoder(pictures),
            "an encoder for images of this size",
        ),
        _difference(
            "Styles of Stylized",
            "paintings",
            pictures.styles or "photographs and textures of scikit-image",
            "pictures that come with a package; a folder of paintings can be named",
        ),
    ]


def _network(name: str, weights: str) -> str:
    return "ResNet-50, IMAGENET1K_V1" if (name, weights) == OFFICIAL_NETWORK else f"{name}, {weights}"


def _encoder(pictures) -> str:
    "The encoder behind the decoded images, as the table of differences names it."
    if (pictures.network, pictures.after) == ("torchvision/vgg19", "features.20") and not pictures.classifier:
        return "VGG-19 up to relu4_1, published weights"
    trained = (
        f"trained here for {pictures.classifier.epochs} epochs" if pictures.classifier else pictures.weights
    )
    return f"{pictures.network} up to {pictures.after}, {trained}"


def _of_training(params: Params) -> list:
    "Differences in the training."
    fine, layer = params.current.finetune, params.main_methods["advbn"].layer or Layer()
    rate = f"{fine.lr}, {fine.schedule}"
    if fine.schedule == "step":
        rate = f"{fine.lr}, x 0.1 after epoch {', '.join(map(str, fine.milestones))}"
    reduced = "reduced scale"
    return [
        _difference(
            "Attack",
            "eps 1.1, step 0.2, 6 steps, factors start at 1",
            f"eps {layer.eps}, step {layer.step_size}, {layer.steps} steps, factors start "
            f"{'at 1' if layer.start == 'clean' else 'at random'}",
            "chosen on training images, see nbs/choices",
        ),
        _difference("Epochs of the fine-tune", "20", f"{fine.epochs}", "reduced scale"),
        _difference("Learning rate", "0.001, x 0.1 after epoch 10", rate, reduced),
        _difference("Weight decay", "0.0001", f"{fine.weight_decay}", reduced),
        _difference(
            "Batch",
            "256 over 4 GPUs",
            f"{fine.batch_size}, in one process or shared by several",
            "as many processes as there are GPUs",
        ),
        _difference(
            "Statistics and factors of the layer",
            "of each GPU's 64 images",
            f"of each process's share of {fine.batch_size} images",
            "a factor belongs to the images that share it, so this is part of the method",
        ),
    ]


def _of_evaluation(params: Params, runs: pd.DataFrame) -> list:
    "Differences in the evaluation; `runs` say how many seeds there are and where the shifts come from."
    generated = [title(s) for s in columns()[1:] if s in set(runs[runs.source == "generated"]["shift"])]
    seeds = runs.seed.nunique()
    clean, adversarial = (
        ", ".join(title(s) for s in columns() if SHIFTS[s].branch == branch)
        for branch in ("clean", "adversarial")
    )
    return [
        _difference(
            "Checkpoint",
            "the official code keeps the best on the set that it reports",
            "the last step's",
            "a test set that chooses is no test set",
        ),
        _difference(
            "Shifted images",
            "published sets",
            f"generated from the test images: {', '.join(generated)}" if generated else "published sets",
            "params.yaml names no published set",
        ),
        _difference(
            "Branch at test time",
            f"clean for {clean}; adversarial for {adversarial}",
            "both are shown, the paper's choice is marked *",
            "a row that is made of two networks hides it",
        ),
        _difference(
            "Controls",
            "standard training",
            "also a clean fine-tune of equal length, random statistics, one cheap recipe",
            "what is due to the fine-tune alone, and to noise alone",
        ),
        _difference(
            "Repetitions",
            "one number each in the README",
            f"{seeds} seeds, 95 % intervals, paired differences" if seeds > 1 else "one seed",
            "a difference without an interval decides nothing",
        ),
    ]


def protocol(params: Params, runs: pd.DataFrame) -> Table:
    "The differences between the paper's protocol and this one: what, paper, here, why."
    rows = [*_of_images(params), *_of_training(params), *_of_evaluation(params, runs)]
    return Table(["", "paper and official code", "here", "why"], rows)


def data_table(folder: Path, params: Params) -> Table:
    "The digests of all data that are known here: images, the embedded folder, pinned weights and styles."
    rows, path, root = [], Path(folder) / "tables" / "data.csv", project_root()
    if path.exists():
        rows = [[r.what, f"{r.images:,}", f"SHA-256 {r.sha256}"] for r in pd.read_csv(path).itertuples()]
    profile = params.current
    if profile.data.name == "openmoji" and (root / "data.dvc").exists():
        (pin,) = yaml.safe_load((root / "data.dvc").read_text(encoding="utf-8"))["outs"]
        rows.append(["the folder data/, as DVC names it", f"{pin['nfiles']:,} files", f"MD5 {pin['md5']}"])
    pins = {f"weights {profile.network.weights}": profile.network.weights_sha256}
    if pictures := profile.pictures:
        pins[f"weights {pictures.weights}"] = pictures.weights_sha256
        pins[f"styles {pictures.styles}"] = pictures.styles_sha256
    rows += [[what, "", f"SHA-256 {digest}"] for what, digest in pins.items() if digest]
    return Table(["data", "images", "digest"], rows)


def _trained(method: Method) -> str:
    "How a method trains, and its layer."
    layer = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in (method.options or {}).items())
    return f"train {method.train}" + (f"; layer: {layer}" if layer else "")


def _base(base: Base) -> str:
    "What a base of the studies is pretrained as, where it differs from the profile."
    network = f"{base.network.name}, cut after {base.network.after}; " if base.network else ""
    augment = f", {base.augment.words}" if base.augment else ""
    return f"{network}augmentation {base.augmentation}{augment}" + (f", lr {base.lr}" if base.lr else "")


def settings_table(params: Params) -> Table:
    "Every hyperparameter, a row for each part of the experiment."
    profile = params.current
    rows = [
        ["pretraining", told(profile.pretrain)],
        ["fine-tuning", told(profile.finetune)],
        *([method.label, _trained(method)] for method in params.methods.values()),
        ["studies", told(profile.short if params.run_studies else None)],
    ]
    if pictures := profile.pictures:
        rows += [
            ["classifier behind decoded images", told(pictures.classifier)],
            ["decoder", told(pictures.decoder)],
            ["attack on decoded images", told(pictures.attack)],
        ]
    rows += [[f"base {base.label}", _base(base)] for base in params.run_bases.values()]
    return Table(["part", "settings"], rows)


def training_runs(params: Params, seeds: int) -> str:
    "How many networks were trained, a sentence."
    trained = sum(method.trains for method in params.methods.values())
    words = [f"{trained} fine-tunes for each of {seeds} seeds in the main table"]
    if params.current.pretrain:
        words.insert(0, f"one pretraining for each of {seeds} seeds")
    if params.run_studies:
        short = params.current.short
        rows = {name for study in params.run_studies for name in params.rows(study)}
        words.append(f"{len(rows)} rows in the studies for each of {len(short.seeds)} seeds")
    return f"Runs: {'; '.join(words)}."


def compute(folder: Path) -> list:
    "On which processors the results were made and how long that took, from the stages' records; sentences."
    runs = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((Path(folder) / "made").glob("*.json"))]
    if not runs:
        return ["Not recorded."]
    machines = {}
    for run in runs:
        machine = run["Processor"] + (f", {run['GPU']}" if run["GPU"] != "none" else ", no GPU")
        machines[machine] = machines.get(machine, 0) + run["seconds"]
    total = sum(machines.values()) / 60
    parts = [f"{seconds / 60:.0f} minutes on {machine}" for machine, seconds in machines.items()]
    return [
        f"{total:.0f} minutes in {len(runs)} stages, the times of the stages added up: {'; '.join(parts)}.",
        "Energy was not measured.",
    ]


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}), {ratio.verdict}"


def _sizes(bench: Bench) -> str:
    return f"{bench.settings.network or ''} {bench.settings.batch} x {bench.settings.size} px".strip()


def _corruptions(bench: Bench) -> str:
    "Corrupted images a second, which corruptions are slower than the reference's, and kornia's blurs."

    def named(ratio):
        return ratio.side.removesuffix(", ours").replace("_", " ")

    slower = [named(ratio) for ratio in bench.slower() if ratio.to.endswith(", reference")]
    kornia = [f"{named(ratio)} {_ratio(ratio)}" for ratio in bench.ratios if ratio.to.endswith(", kornia")]
    return (
        f"{_sizes(bench)}: {bench.numbers['images a second']:.0f}; imagecorruptions-imaug = 1: "
        f"{_ratio(bench.ratio('all, ours', 'all, reference'))}; slower: {', '.join(slower) or 'none'}"
        + "".join(["; kornia = 1: ", "; ".join(kornia)] if kornia else "")
    )


SPEED_COLUMNS = {  # of each: the kind of benchmark, and what is told of it
    "training step, speed: plain loop = 1": (
        "step",
        lambda bench: f"{_sizes(bench)}: {_ratio(bench.ratio('ours', 'reference'))}",
    ),
    "fast recipe, time: faithful step = 1": (
        "step",
        lambda bench: f"{_sizes(bench)}: {_ratio(bench.ratio('ours, fast recipe', 'ours'))}",
    ),
    "corrupted images a second": ("corrupt", _corruptions),
    "75 cells, time: forward passes = 1": (
        "evaluate",
        lambda bench: f"{_sizes(bench)}: {_ratio(bench.ratio('all cells', 'forward passes'))}",
    ),
}
SPEED = (
    "Of the ratios within a turn the median, in brackets the quartiles; slower or faster is what both "
    "quartiles say. Sides take turns, and the first turns do not count. The plain loop is "
    "benchmarks/reference.py, written straight from the formula. advbn bench --contribute adds a machine."
)


def _measured_on(benches: list) -> str:
    "On what the benchmarks of a row were measured; each thing that differs among them is told of all."
    told = {}
    for bench in benches:
        on, versions = bench.measured_on, bench.measured_on.packages
        for what, value in (
            ("processor", on.processor),
            ("GPU", on.gpu),
            ("driver", on.driver),
            ("CUDA", on.cuda),
            ("Python", on.python),
            *((package, versions.get(package)) for package in ("torch", "torchvision")),
            ("threads", None if on.threads is None else str(on.threads)),
            ("vector flags", None if on.flags is None else " ".join(on.flags) or "none"),
            ("commit", on.commit),
            ("date", on.date),
        ):
            told.setdefault(what, {})[value or "not recorded"] = None
    return "; ".join(f"{what} {', '.join(values)}" for what, values in told.items())


def speed_table(records) -> Table:
    "Machine by machine what its benchmarks say, and on what they were measured."
    rows = []
    for (_, device), benches in newest(records).items():
        on = benches[0].measured_on
        row = [on.processor if device == "cpu" else f"{on.gpu}, {on.processor}"]
        for kind, says in SPEED_COLUMNS.values():
            row.append("; ".join(says(b) for b in benches if b.kind == kind) or "not measured")
        rows.append([*row, _measured_on(benches)])
    return Table(["machine", *SPEED_COLUMNS, "measured on"], rows)


def commands(params: Params) -> list:
    "The commands that make these results anew, in their order, with what each does."
    found = [
        (f"advbn plan --profile {params.profile}", "what it does, how long it takes here, what is missing"),
        (
            f"dvc repro  # with profile: {params.profile} in params.yaml",
            "every table and figure, and this page",
        ),
        ("advbn status", "whether the results that are kept still hold"),
    ]
    if params.profile == "openmoji":
        found.insert(1, ("make reproduce-all", "environment, embedded images, every table and figure"))
    return found


EASY = (
    "The method is one layer and its attack a few lines; the official code gives every default: the clamp, "
    "the start at one, the branch of each test set.",
    "It needs no data of its own and no change of the network but the cut, so many networks could be tried.",
    "The corruptions are published as scripts, against which those here are tested.",
)

DIFFICULT = (
    "The paper's own tables could not be read for this report. The published numbers are those of the "
    "official README; where it has none, the page says so.",
    "The abstract of the first version claims larger gains than the README's table shows; why is not known.",
    "One published row mixes two networks: some test sets use the clean branch, others the adversarial one.",
    "The official code chooses its checkpoint on the images that it reports, so its numbers are not those of "
    "a last step.",
    "The published effects are as large as the differences between seeds and the binomial noise of a small "
    "test set, so that a single run says little.",
)

COMMUNICATION = "None. The authors were not asked, neither about the paper nor about this report."

CHECKLIST = (  # after the ML Reproducibility Checklist 2.0 and the ML Code Completeness Checklist
    ("Models and algorithms", "Clear description of the algorithm", "yes", "notebooks of the part method"),
    ("Models and algorithms", "Assumptions explained", "yes", "notebooks; differences of protocol above"),
    (
        "Models and algorithms",
        "Complexity",
        "yes",
        "operations of a training step, column cost of the studies",
    ),
    (
        "Theory",
        "Statement of theoretical claims, proofs",
        "n. a.",
        "no theoretical claim is tested here",
    ),
    ("Data sets", "Numbers of examples", "yes", "differences of protocol, table of data"),
    ("Data sets", "Splits", "yes", "a seed draws the split, or the set has one; never chosen on test images"),
    ("Data sets", "Excluded data and preprocessing", "yes", "notebooks of the part images"),
    (
        "Data sets",
        "Link to a version that can be downloaded",
        "yes",
        "embedded images are built by advbn data",
    ),
    ("Data sets", "Collection of new data", "n. a.", "no data were collected"),
    ("Code", "Dependencies", "yes", "pyproject.toml, exact versions in constraints.txt"),
    ("Code", "Training code", "yes", "advbn train, nbs/stages"),
    ("Code", "Evaluation code", "yes", "advbn evaluate, nbs/stages"),
    ("Code", "Trained models", "no", "not published; the commands above train them anew"),
    ("Code", "README with results and the commands behind them", "yes", "README.md"),
    (
        "Results",
        "Range of hyperparameters and how they were chosen",
        "yes",
        "nbs/choices: rates, recipe, decoder; on training images",
    ),
    ("Results", "Every hyperparameter of the results", "yes", "table of settings above"),
    ("Results", "Exact number of runs", "yes", "methodology"),
    ("Results", "Definition of the measures", "yes", "notes below each table"),
    ("Results", "Central tendency and variation", "yes", "mean and 95 % interval; none with a single seed"),
    ("Results", "Run time or energy", "yes", "minutes of every stage; energy was not measured"),
    ("Results", "Computing infrastructure", "yes", "compute; how it was made"),
)


def checklist() -> Table:
    "The filled checklist."
    return Table(["", "item", "answer", "where"], [list(row) for row in CHECKLIST])
