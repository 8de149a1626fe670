"""The nearest right spelling of a wrong word."""

import pytest

from advbn.base.errors import did_you_mean


@pytest.mark.parametrize(
    "given, otherwise, said",
    [
        ("advbm", "", "; did you mean 'advbn'?"),
        ("zzz", "", ""),
        ("zzz", "; it takes a name", "; it takes a name"),
        (7, "", ""),
    ],
)
def test_a_near_word_is_proposed(given, otherwise, said):
    assert did_you_mean(given, ["advbn", "finetune"], otherwise) == said
