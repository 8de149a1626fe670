"""Photographs in miniature up to the cells: domains that are shifts, no pictures, a size for the network."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from advbn.base.config import parse_params
from advbn.base.errors import ParameterError
from advbn.base.sections import DOMAINS
from advbn.evidence.studies import run_bases, run_study
from advbn.evidence.testing import evaluate, make_tests
from advbn.images.preprocessing import recorded
from advbn.networks.weights import load_state
from advbn.training.cost import missing_sets
from advbn.training.run import base_runs, check_networks, load_network, resolve, setting_of, study_runs
from advbn.training.train import pretrain, train, train_autoencoder


def photographs(root, words, count, size):
    "So many JPEGs of a brightness that tells the class, in a folder for each of `words`."
    for number, word in enumerate(words):
        (root / word).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(60 * number, 60 * number + 120, (size, size, 3))
            Image.fromarray(pixels.astype("uint8")).save(root / word / f"{root.name}_{i}.jpg")


def small(content, profile, root, classes, studies=False):
    "The profile in miniature: a small network from random numbers, one epoch of everything."
    section = content["profiles"][profile]
    section["data"].update(root=str(root), classes=classes)
    section["network"] = {"name": "small_resnet", "after": "layer1"}
    for part in ("pretrain", "finetune"):
        section[part].update(epochs=1, batch_size=8)
    content.update(profile=profile, seeds=[0, 1])
    if studies:
        section["short"].update(seeds=[0], pretrain_epochs=1, finetune_epochs=1)
    else:
        section["short"] = None
        content["bases"].pop("jitter", None)  # which is in no other study
    return section


@pytest.fixture
def content(root, tmp_path, monkeypatch):
    monkeypatch.setenv("ADVBN_ROOT", str(tmp_path))
    return yaml.safe_load((root / "params.yaml").read_text())


def trained_and_tested(params, seed=0):
    "The cells of two methods of a seed."
    pretrain(resolve(params, "standard", seed))
    listed, tables = make_tests(setting_of(params), seed), []
    for method in ("advbn", "fast"):
        train(resolve(params, method, seed))
        tables.append(evaluate(resolve(params, method, seed))[0])
    return listed, pd.concat(tables)


def test_pacs_is_tested_on_the_domains_that_it_is_not_trained_on(content, tmp_path):
    for domain in DOMAINS:
        photographs(tmp_path / "pacs" / domain, ("dog", "guitar"), 10, 40)
    small(content, "pacs", tmp_path / "pacs", 2)["data"].update(size=32)
    params = parse_params(content)
    check_networks(params)
    assert train_autoencoder(setting_of(params))[1] == []
    listed, runs = trained_and_tested(params)
    cells = {"clean": 2, "art_painting": 20, "cartoon": 20, "sketch_domain": 20}
    assert dict(zip(listed["shift"], listed.images)) == cells
    assert len(runs) == 2 * 2 * 4 and runs.images.sum() == 4 * sum(cells.values())
    assert set(runs[runs["shift"] == "cartoon"].source) == {"published"}
    content["profiles"]["pacs"]["data"]["shifts"] = ["clean", "cartoons"]
    with pytest.raises(
        ParameterError, match="profiles.pacs.data.shifts: no shift 'cartoons'.*mean 'cartoon'"
    ):
        setting_of(parse_params(content))


def test_a_study_of_domains_is_tested_on_all_of_their_images(content, tmp_path):
    for domain in DOMAINS:
        photographs(tmp_path / "pacs" / domain, ("dog", "guitar"), 10, 40)
    small(content, "pacs", tmp_path / "pacs", 2, studies=True)["data"].update(size=32)
    params, found, augments = parse_params(content), [], []
    make_tests(setting_of(params), 0)
    for base in ("plain", "jitter"):
        runs = base_runs(params, base)
        augments += {run.setting.data.augment.colour_jitter for run in runs[0]}
        history, table, _ = run_bases(runs, base)
        assert len(history) == 1
        found.append(table)
    assert augments == [0, 0.3]
    runs = study_runs(params, "complementarity")
    table, _ = run_study(runs, pd.concat(found), [*params.rows("complementarity")])
    tested = table.groupby(["run", "branch"]).images.sum()
    assert len(tested) == 8 and (tested == 2 + 3 * 20).all(), (
        tested
    )  # three methods and a second branch a base


def test_tiny_imagenet_is_shifted_as_it_is_and_scaled_for_the_network(content, tmp_path):
    for part, count in (("train", 12), ("val", 4)):
        photographs(tmp_path / "tiny" / part, ("n01443537", "n01629819"), count, 64)
    section = small(content, "imagenet200", tmp_path / "tiny", 2)
    section["data"].update(
        size=48, train_images_per_class=8, test_images=6, shifts=["clean", "corruptions"], shares={}
    )
    section["pictures"] = None
    params = parse_params(content)
    listed, runs = trained_and_tested(params, seed=1)
    assert set(listed["shift"]) == {"clean", "corruptions"} and len(listed) == 76
    assert (listed.images == 6).all() and len(runs) == 2 * 2 * 76
    with np.load(tmp_path / "shifted/imagenet200/all/clean/clean.npz") as kept:
        assert kept["images"].shape == (6, 3, 64, 64)
    run = resolve(params, "advbn", 1)
    file = run.setting.checkpoint("advbn", 1, "adversarial")
    assert recorded(load_state(file)).scaled == load_network(run).preprocessing.scaled == 48
    assert "48 pixels" in str(run) and torch.load(file, weights_only=True)


def test_what_is_missing_is_said_with_the_page_where_it_is_offered(content, monkeypatch):
    monkeypatch.delenv("TINY_IMAGENET", raising=False)
    lines = missing_sets(parse_params(content | {"profile": "imagenet200"}))
    assert (
        len(lines) == 1 and "TINY_IMAGENET, which is not set" in lines[0] and "tiny-imagenet-200" in lines[0]
    )
