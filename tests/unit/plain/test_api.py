"""The public names."""

import advbn


def test_every_public_name_says_what_it_is():
    first = {
        name: (getattr(advbn, name).__doc__ or "").split("\n")[0]
        for name in advbn._PUBLIC
        if callable(getattr(advbn, name))
    }
    assert list(first) == [
        "renormalize",
        "AdvBN",
        "split",
        "DualBatchNorm2d",
        "convert_dual_batchnorm",
        "use_branch",
        "AdvBNNet",
        "prepare",
        "corrupt",
        "mean_corruption_error",
        "evaluate",
        "finetune",
    ]
    assert all(len(line) > 30 for line in first.values())
