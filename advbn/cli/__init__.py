"""`advbn COMMAND`: build the images, run a stage, train and evaluate."""

from . import pipeline, networks, finetune, images, bench  # isort: skip  # in the order of the help
from .app import app, main

__all__ = ["app", "main", "pipeline", "networks", "finetune", "images", "bench"]
