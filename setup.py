"""What an index of packages shows: README, without links that lead into the repository."""

import re
from pathlib import Path

from setuptools import setup

text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
found, use, rest = (text.index(words) for words in ("**What was found**", "## Use it", "## What it shows"))
text = text[:found] + text[use:rest] + text[found:use] + text[rest:]  # first what a user of the wheel does
text = re.sub(r"^\| <img .*?\n\n", "", text, flags=re.M | re.S)  # figures with their captions
text = re.sub(r"\[([^\]]+)\]\((?!https?:)([^)]+)\)", r"\1 (`\2`)", text)  # other links to the names of files
setup(
    long_description=text + "\nNames of files are those of the source archive.\n",
    long_description_content_type="text/markdown",
)
