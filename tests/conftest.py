import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
RECORDED = [p for p in ("openmoji", "cifar10", "imagenet") if (ROOT / "results" / p).exists()]  # the profiles with results in Git


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def embedded_images():
    "The embedded images, drawn once if they are not there."
    subprocess.run([sys.executable, "-m", "advbn", "data"], cwd=ROOT, check=True)


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")
