"""`python -m advbn` is `advbn`."""

from .cli import main

if __name__ == "__main__":
    main()
