"""`advbn COMMAND`: build the images, run a stage, train and evaluate."""

from . import images, networks, finetune, doctor, pipeline, bench  # isort: skip  # in the order of the help
from .app import app, main

__all__ = ["app", "main", "images", "networks", "finetune", "doctor", "pipeline", "bench"]
