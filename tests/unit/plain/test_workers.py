"""Tasks side by side: one runs here, results come in the order of the tasks."""

from advbn.base.workers import side_by_side
from advbn.images.augmentation import step_seed


def number(kind, seed):
    return kind, seed, step_seed(seed, kind) % 1000


def test_the_verb_is_given_the_task():
    assert side_by_side(number, [("order", 0)], threads=1) == [("order", 0, 999)]


def test_results_come_in_the_order_of_the_tasks():
    tasks = [("order", 5), ("order", 3)]
    alone = side_by_side(number, tasks)  # all cores for one task, so no other process
    assert [row[:2] for row in alone] == tasks and side_by_side(number, []) == []
    assert side_by_side(number, tasks, threads=999) == alone  # more than there are cores
