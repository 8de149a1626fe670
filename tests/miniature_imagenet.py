"""ImageNet in miniature: folders, pictures, weights, and parameters that name them."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from advbn.base.files import file_digest
from advbn.base.sections import ImageNet
from advbn.images.batches import Share
from advbn.images.datasets import FolderData
from advbn.images.preprocessing import Preprocessing
from advbn.networks.models import build_model


def picture(path, size, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(
        0, 256, (size[1], size[0], {"L": 1, "RGB": 3, "CMYK": 4}[mode]), dtype=np.uint8
    )
    Image.fromarray(pixels.squeeze(), mode).save(path, format="JPEG", quality=90)


def imagenet_tree(root, wnids=("n01440764", "n01443537", "n01484850"), train=8, val=2):
    "ImageNet's layout: synset folders, JPEGs of odd sizes, one of them grey and one CMYK."
    number = 0
    for part, count in (("train", train), ("val", val)):
        for wnid in wnids:
            for i in range(count):
                number += 1
                mode = {1: "L", 2: "CMYK"}.get(number % 9, "RGB")
                name = f"{wnid}_{i}" if part == "train" else f"ILSVRC2012_val_{number:08d}"
                picture(root / part / wnid / f"{name}.JPEG", (40 + 7 * i, 90 - 5 * i), mode, number)
    return root


@pytest.fixture(scope="session")
def drawn_imagenet(tmp_path_factory):
    "ImageNet in miniature, two classes of sketches, and weights; to be copied."
    folder = tmp_path_factory.mktemp("imagenet")
    imagenet_tree(folder / "imagenet")
    for wnid in ("n01484850", "n01440764"):
        picture(folder / "sketches" / wnid / "sketch_0.JPEG", (70, 50), "L", 5)
    torch.manual_seed(0)
    torch.save(build_model("torchvision/resnet50", 3).state_dict(), folder / "resnet50.pth")
    torch.save(build_model("small_vgg", 3).state_dict(), folder / "vgg.pth")
    return folder


@pytest.fixture
def imagenet(drawn_imagenet, tmp_path):
    """A folder that is a project of its own: ImageNet in miniature, two classes of sketches, weights, and
    params.yaml."""
    return shutil.copytree(drawn_imagenet, tmp_path, dirs_exist_ok=True)


def parameters(folder, root):
    content = yaml.safe_load((root / "params.yaml").read_text())
    profile = content["profiles"]["imagenet"]
    profile["data"].update(root=str(folder / "imagenet"), classes=3, size=64, resize=72, workers=0)
    profile["data"]["sets"]["sketch"] = str(folder / "sketches")
    profile["network"].update(
        weights=str(folder / "resnet50.pth"), weights_sha256=file_digest(folder / "resnet50.pth")
    )
    profile["finetune"].update(epochs=2, batch_size=8, milestones=[1])
    profile["pictures"].update(
        network="small_vgg",
        after="features.relu2_2",
        weights=str(folder / "vgg.pth"),
        weights_sha256=file_digest(folder / "vgg.pth"),
    )
    profile["pictures"]["decoder"].update(batch_size=8)
    content["outcomes"].pop("second")
    content.update(
        profile="imagenet",
        seeds=[0],
        methods={k: content["methods"][k] for k in ("standard", "finetune", "advbn")},
    )
    return content


def folder_data(root, size=64, resize=None, share=Share()):
    "The set under `root`, streamed in this process."
    section = ImageNet(name="imagenet", root=str(root), classes=3, sets={"sketch": "nowhere"}, workers=0)
    return FolderData(root, section, Preprocessing(size=size, resize=resize), share)
