"""A data set, a shift, a way of training and a network from outside the package, as CONTRIBUTING says."""

import json
import re
import sys

import pandas as pd
import pytest
import yaml
from conftest import ROOT, call, copied_project


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    "A clone with CONTRIBUTING's extension, its profile and a method that trains so."
    folder = copied_project(tmp_path_factory.mktemp("extended") / "advbn")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (folder / "stripes.py").write_text(re.search(r"## Add from outside.*?```python\n(.*?)```", text, re.S)[1])
    content = yaml.safe_load((folder / "params.yaml").read_text())
    profile = content["profiles"]["openmoji"]
    profile["data"] = {"name": "stripes", "root": ".", "classes": 3}
    profile["network"] = {"name": "tiny_resnet", "after": "layer1"}
    profile.update(short=None, threads=None)
    for section in (
        profile["pretrain"],
        profile["finetune"],
        *(profile["pictures"][k] for k in ("classifier", "decoder")),
    ):
        section.update(epochs=1, batch_size=16)
    methods = {name: content["methods"][name] for name in ("standard", "finetune", "advbn")}
    methods["strong"] = {"label": "Strong AdvBN", "train": "strong", "eps": 1.5}
    content.update(profile="stripes", profiles={"stripes": profile}, methods=methods, seeds=[0, 1])
    content["outcomes"].pop("second")
    content.update(extensions=["stripes.py"], bases={}, base_methods={}, studies={})
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder


def test_they_take_few_lines():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.search(r"## Add from outside.*?```python\n(.*?)```", text, re.S)[1]
    parts = [part.strip() for part in re.split(r"\n\n\n|\n\n(?=#|register|DATASETS|METHODS)", code)[1:]]
    assert len(parts) >= 4 and all(part.count("\n") + 1 < 20 for part in parts)


def test_the_plan_has_them(extended):
    found = json.loads(call(sys.executable, "-m", "advbn", "plan", "--json", cwd=extended).stdout)
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert found["profile"] == "stripes" and "method strong" in stages
    assert stages["method standard"]["images"] == 2 * 30 * (1 + 75 + 20 + 2 + 1 + 2 + 1)


@pytest.mark.slow
def test_tables_and_page_have_them(extended, make):
    make(extended, "reproduce")
    results = extended / "results/stripes"
    table = pd.read_csv(results / "tables/robustness.csv")
    assert set(table.query("method == 'strong'").branch) == {"clean", "adversarial"}
    assert "negative" in set(table["shift"]) and table.accuracy.between(0, 100).all()
    for text in ((results / "tables/robustness.md").read_text(), (results / "report.html").read_text()):
        assert "Negative" in text and "Strong AdvBN, adversarial branch" in text
