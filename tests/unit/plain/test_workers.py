"""Work for each seed: one task runs here, results come in the order of the tasks."""

from advbn.base.config import load_params
from advbn.images.augmentation import step_seed
from advbn.base.workers import side_by_side
from advbn.workers import each_seed


def number(params, kind, seed):
    return kind, seed, step_seed(seed, kind) % 1000


def test_the_verb_is_given_parameters_arguments_and_seed():
    params = load_params().model_copy(update={"seeds": [0]})
    assert each_seed(number, params, "order") == [("order", 0, 999)]


def test_seeds_may_be_others_than_those_of_the_parameters():
    params = load_params()
    alone = params.current.model_copy(update={"threads": None})  # all cores for one run, so no other process
    params = params.model_copy(update={"profiles": {**params.profiles, params.profile: alone}})
    assert [row[:2] for row in each_seed(number, params, "order", seeds=[5, 3])] == [
        ("order", 5),
        ("order", 3),
    ]
    assert side_by_side(number, params, []) == []
