"""`python -m advbn` is `advbn`; a stage of `dvc repro` begins warm."""

import os
import sys


def _main():
    if sys.argv[1:2] == ["run"] and "DVC_STAGE" in os.environ:
        from .warm import run_warm

        if (status := run_warm(sys.argv[1:])) is not None:
            sys.exit(status)
    from .cli import main

    main()


if __name__ == "__main__":
    _main()
