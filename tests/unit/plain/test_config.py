"""params.yaml: slips are named with the nearest right word."""

import copy
import re
from datetime import date

import pytest
import yaml
from miniature_imagenet import parameters

from advbn.base.config import load_params, parse_params
from advbn.base.errors import ParameterError


@pytest.fixture
def content(root):
    return yaml.safe_load((root / "params.yaml").read_text())


def change(content, path, value):
    content = copy.deepcopy(content)
    *parents, last = path.split(".")
    inner = content
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return content


def test_the_projects_file_is_fine(content):
    assert parse_params(content).current == parse_params(content).profiles[content["profile"]]


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("profile", "openmojy", r"profile is 'openmojy'; allowed are .*did you mean 'openmoji'"),
        ("sedes", [1], "unknown key 'sedes'; did you mean 'seeds'"),
        ("seeds", [], "seeds is"),
        ("seeds", [1, 1], "each may stand there once"),
        ("seeds", [-1], "greater than or equal to 0"),
        ("methods", {}, "methods is"),
        ("methods.pretrained", {"label": "x", "train": "clean"}, "another folder of checkpoints"),
        ("methods", {"standard": {"label": "x", "train": "nothing"}}, "methods has no 'finetune'"),
        ("profiles.openmoji.finetune.lr", float("inf"), "finite number"),
        ("profiles.openmoji.finetune.momentum", 7.0, "less than 1"),
        ("profiles.openmoji.data.augment.scale", 1.5, "less than 1"),
        ("outcomes.primary.against", "finetun", "outcomes.primary.against is 'finetun'.*mean 'finetune'"),
        ("outcomes.second.method", "random", "outcomes.second compares 'random' with itself"),
        ("outcomes.secnd", {}, "unknown key 'outcomes.secnd'; did you mean 'second'"),
        ("outcomes.named", "soon", "outcomes.named: 'soon' is no date in quotes"),
        ("outcomes.named", date(2026, 11, 28), "'2026-11-28' is no date in quotes"),
        ("methods.advbn.layer.epz", 1.0, "unknown key 'methods.advbn.layer.epz'; did you mean 'eps'"),
        ("methods.advbn.layer.eps", -1.0, "methods.advbn.layer.eps is -1.0; input should be greater"),
        ("methods.advbn.layer.steps", 2.5, "steps is 2.5"),
        ("methods.advbn.layer.start", "warm", "'clean' or 'random'"),
        ("methods.advbn.layer", None, "adversarial needs a layer"),
        ("methods.finetune.layer", {}, "clean takes no layer"),
        (
            "methods.advbn.train",
            "advbn",
            "no way of training 'advbn'; allowed are nothing, clean, adversarial",
        ),
        ("methods.advbn.layer.share", 0.0, "greater than 0"),
        ("methods.advbn.recipe", "fast", "it takes no layer"),
        ("methods.finetune.recipe", "fast", "train: clean attacks nothing"),
        ("methods.advbn.recipe", "quick", "'faithful' or 'fast'"),
        ("methods.finetune.unpaired", True, "unpaired is for adversarial training"),
        ("profiles.openmoji.finetune.lr", "1e-3", "finetune.lr is '1e-3'; input should be a valid number"),
        ("profiles.openmoji.finetune.lr", 0, "greater than 0"),
        ("profiles.openmoji.finetune.epochs", True, "epochs is True"),
        ("profiles.openmoji.finetune.milestones", [3], "takes no milestones"),
        ("profiles.openmoji.pretrain.schedule", "step", "needs milestones"),
        ("profiles.openmoji.pretrain.precision", "fp8", "'no', 'bf16' or 'fp16'"),
        ("methods.finetune.train", "nothing", "methods.finetune.train is 'nothing'; allowed is 'clean'"),
        ("methods.finetune.after", "layer2", "is the control"),
        *(
            (
                f"{section}.{name}",
                {"label": "x", "train": "clean"},
                re.escape(f"{name!r}; allowed are letters, digits, - and _, the first a letter or a digit"),
            )
            for section in (
                "methods",
                "base_methods",
                "studies.ablations.methods",
                "bases",
                "studies",
                "profiles",
            )
            for name in ("my row", "x;y", "-x", "a\nb", "ä", "a'b")
        ),
        ("profiles.openmoji.network.weights_sha256", "abc", "'abc'; allowed are 64 hexadecimal digits"),
        ("profile", "x; touch pwned;", "'x; touch pwned;'; allowed are letters"),
        ("profile", "../../outside", "'../../outside'; allowed are letters"),
        ("profiles.imagenet.finetune.milestones", [20], "allowed are milestones before the last epoch"),
        ("profiles.openmoji.data.test_images", 5, "openmoji takes no test_images"),
        ("profiles.cifar10.data.sets.corruptions", "C", "test_images and sets.corruptions are both given"),
        ("profiles.openmoji.network.nam", "x", "did you mean 'name'"),
        ("profiles.openmoji.data.augment.flip", 1, "flip is 1"),
    ],
)
def test_slips(content, path, value, words):
    with pytest.raises(ParameterError, match=words) as error:
        parse_params(change(content, path, value))
    assert all(line.startswith("params.yaml: ") for line in str(error.value).splitlines())


def test_a_profile_is_no_other_folder_of_results(content):
    content["profiles"]["tables"] = content["profiles"]["openmoji"]
    with pytest.raises(ParameterError, match="profiles has 'tables', which is the name of another folder"):
        parse_params(content)


def test_missing_and_unreadable(content, tmp_path):
    del content["profiles"]["openmoji"]["network"]
    with pytest.raises(ParameterError, match="'profiles.openmoji.network' is missing"):
        parse_params(content)
    with pytest.raises(ParameterError, match="no such file"):
        load_params(path=tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1,\nb: }")
    with pytest.raises(ParameterError, match="not YAML"):
        load_params(path=tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("just words")
    with pytest.raises(ParameterError, match="holds str"):
        load_params(path=tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda p: p["data"]["sets"].pop("sketch"), "needs sets.sketch"),
        (lambda p: p.pop("finetune"), "'profiles.imagenet.finetune' is missing"),
        (lambda p: p["network"].pop("weights"), "weights and pretrain are both missing"),
        (
            lambda p: p["pictures"].update(classifier={"epochs": 1, "batch_size": 8, "lr": 0.1}),
            "weights and classifier are both given",
        ),
        (
            lambda p: p["data"].update(name="imagnet"),
            "profiles.imagenet.data: no data set 'imagnet'; allowed are openmoji, cifar10, imagenet, "
            "tiny-imagenet, pacs; did you mean 'imagenet'?",
        ),
        (lambda p: p["data"].update(name="openmoji"), "openmoji has no published set for sketch"),
    ],
)
def test_profiles_that_cannot_work_are_refused(imagenet, root, change, words):
    content = parameters(imagenet, root)
    change(content["profiles"]["imagenet"])
    with pytest.raises(ParameterError) as caught:
        parse_params(content)
    assert words in str(caught.value)


def test_methods_are_read_with_their_defaults():
    params = load_params()
    assert (params.profile, params.seeds) == ("openmoji", [*range(8)])
    assert list(params.methods) == ["standard", "finetune", "random", "advbn", "fast"]
    method = params.methods["advbn"]
    assert (method.label, method.train, method.recipe) == ("AdvBN", "adversarial", "faithful")
    assert (method.unpaired, method.after) == (False, None)
    layer = method.layer
    assert (layer.eps, layer.step_size, layer.steps, layer.start) == (1.1, 0.2, 6, "clean")
    assert (layer.perturb, layer.share) == ("both", 1.0)
    assert not layer.batch_statistics and not layer.sync_statistics


def test_runs_of_a_study_are_every_base_with_every_method():
    params = load_params()
    runs = [f"{study}: {run}" for study in params.studies for run in params.rows(study)]
    assert runs[:6] == [
        "complementarity: plain/standard",
        "complementarity: plain/finetune",
        "complementarity: plain/advbn",
        "complementarity: augmix/standard",
        "complementarity: augmix/finetune",
        "complementarity: augmix/advbn",
    ]


def test_the_first_two_of_three_slips_are_said_and_the_rest_is_counted(content):
    content["methods"]["advbn"]["layer"]["step"] = 3
    content["profiles"]["openmoji"]["finetune"].update(lr=yaml.safe_load("1e-3"), epochs=-1)
    with pytest.raises(ParameterError) as caught:
        parse_params(content)
    assert str(caught.value).splitlines() == [
        "params.yaml: unknown key 'methods.advbn.layer.step'; did you mean 'steps'?",
        "params.yaml: profiles.openmoji.finetune.epochs is -1; input should be greater than or equal to 1 "
        "(and 1 more)",
    ]


def test_a_profile_says_over_a_method_what_differs_there():
    params = load_params("imagenet200")
    ours, plain = params.rows()["advbn"].method, params.methods["advbn"]
    assert (ours.layer.eps, ours.layer.steps, ours.label) == (0.5, 3, plain.label)
    assert (plain.layer.eps, plain.layer.steps) == (1.1, 6)
    assert params.rows()["random"].method.layer.start == "random"
    assert load_params("openmoji").rows()["advbn"].method == plain


@pytest.mark.parametrize(
    "over, words",
    [
        ({"advbm": {}}, r"profiles.openmoji.methods.advbm: methods has no 'advbm'; did you mean 'advbn'\?"),
        (
            {"advbn": {"layer": {"epz": 1.0}}},
            "unknown key 'profiles.openmoji.methods.advbn.layer.epz'; did you",
        ),
        ({"advbn": {"layer": {"eps": -1.0}}}, "profiles.openmoji.methods.advbn.layer.eps is -1.0"),
        (
            {"finetune": {"layer": {"eps": 1.0}}},
            "profiles.openmoji.methods.finetune: train: clean takes no layer",
        ),
        ({"advbn": {"train": "clean"}}, "methods.advbn.train is the same in every profile"),
        ({"finetune": {"after": "layer2"}}, "methods.finetune.after is the same in every profile"),
    ],
)
def test_slips_in_what_a_profile_says_over_a_method(content, over, words):
    content["profiles"]["openmoji"]["methods"] = over
    with pytest.raises(ParameterError, match=words):
        parse_params(content)


@pytest.mark.parametrize(
    "path, value, words",
    [
        (
            "profiles.pacs.data.source",
            "foto",
            "source is 'foto'; allowed are photo, .*did you mean 'photo'",
        ),
        (
            "profiles.pacs.data.source",
            "all but sketches",
            "source is 'all but sketches'.*did you mean 'sketch'",
        ),
        ("profiles.pacs.data.test_images", 10, "pacs takes no test_images"),
        ("profiles.pacs.pretrain", None, "head: new is given and pretrain is missing"),
        ("profiles.imagenet200.network.weights", None, "head: classes needs weights"),
        ("profiles.imagenet200.data.augment.crop", 0.0, "crop is 0.0; input should be greater than 0"),
    ],
)
def test_slips_in_profiles_of_photographs(content, path, value, words):
    with pytest.raises(ParameterError, match=words):
        parse_params(change(content, path, value))
