"""The adapters compute what `AdvBNNet` does, leave plain weights behind, and are loaded by nobody who did not ask."""
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advbn import prepare
from advbn.models import build_model
from advbn.weights import load_state
from conftest import ROOT

IMAGES, TARGETS = torch.randn(24, 3, 40, 40, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 9
OPTIONS = {"eps": 1.1, "steps": 2}


def plain(name="small_resnet"):
    torch.manual_seed(0)
    return build_model(name, 9)


def by_hand(optimizer_of, batch=8):
    "The same three steps without an adapter."
    net = prepare(plain(), "layer1", **OPTIONS).train()
    optimizer = optimizer_of(net)
    for images, targets in zip(IMAGES.split(batch), TARGETS.split(batch)):
        optimizer.zero_grad()
        sum(net.losses(images, targets)).backward()
        optimizer.step()
    return net


def alike(one, other):
    return one.keys() == other.keys() and all(torch.allclose(v.float(), other[k].float(), atol=1e-5) for k, v in one.items())


def test_nothing_is_loaded_that_was_not_asked_for():
    code = "import sys, advbn, advbn.training, advbn.runs, advbn.cli\nprint([m for m in ('lightning', 'transformers', 'timm', 'ipywidgets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"


def test_lightning():
    L = pytest.importorskip("lightning.pytorch")
    from advbn.adapters.lightning import AdvBNCallback

    class Classifier(L.LightningModule):
        def __init__(self, as_dictionary):
            super().__init__()
            self.model, self.as_dictionary = plain(), as_dictionary

        def training_step(self, batch, index):
            loss = F.cross_entropy(self.model(batch[0]), batch[1])
            return {"loss": loss, "index": index} if self.as_dictionary else loss

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05)

    def fit(module, callback):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = L.Trainer(max_epochs=1, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
            trainer.fit(module, DataLoader(TensorDataset(IMAGES, TARGETS), batch_size=8))
        return trainer

    expected = by_hand(lambda net: torch.optim.SGD(net.trainable_parameters(), lr=0.05))
    for as_dictionary in (False, True):
        module, callback = Classifier(as_dictionary), AdvBNCallback("layer1", **OPTIONS)
        trainer = fit(module, callback)
        assert trainer.callback_metrics["adversarial_loss"] > 0 and "training_step" not in vars(module)
        for branch in ("clean", "adversarial"):
            assert alike(callback.export(branch), expected.export(branch))
        assert type(module.model) is type(plain()) and alike(module.model.state_dict(), expected.export("adversarial"))
    with pytest.raises(ValueError, match="has no 'network'; attribute is the name"):
        fit(Classifier(False), AdvBNCallback("layer1", attribute="network"))
    with pytest.raises(ValueError, match="nothing has been trained"):
        AdvBNCallback().export()
    with pytest.raises(ValueError, match="branch is 'both'"):
        AdvBNCallback(branch="both")


def trained(model, tmp_path, **options):
    from transformers import Trainer, TrainingArguments

    from advbn.adapters.huggingface import AdvBNCallback
    arguments = TrainingArguments(str(tmp_path), num_train_epochs=1, per_device_train_batch_size=8, learning_rate=0.05, logging_steps=1, save_strategy="no", report_to=[],
                                  use_cpu=True, lr_scheduler_type="constant", disable_tqdm=True, **options)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    trainer = Trainer(model, arguments, train_dataset=[{"pixel_values": x, "labels": y} for x, y in zip(IMAGES, TARGETS)], callbacks=[AdvBNCallback()],
                      optimizers=(sgd, None))
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(TARGETS)
    trainer.train()
    return trainer


def test_hugging_faces_trainer_on_any_network(tmp_path):
    pytest.importorskip("transformers")
    from advbn.adapters.huggingface import AdvBNForImageClassification
    model = AdvBNForImageClassification(plain(), "layer1", **OPTIONS)
    trainer = trained(model, tmp_path, max_grad_norm=0.0)
    expected = by_hand(lambda net: torch.optim.SGD(net.trainable_parameters(), lr=0.05))
    for branch in ("clean", "adversarial"):
        assert alike(load_state(tmp_path / f"{branch}.safetensors"), expected.export(branch)) and alike(model.export(branch), expected.export(branch))
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 3 and all(0 < row["adversarial_loss"] < row["loss"] for row in logs)
    model.eval()
    with torch.no_grad():
        found = model(IMAGES[:4], TARGETS[:4])
        assert torch.allclose(found["loss"], F.cross_entropy(found["logits"], TARGETS[:4])) and set(model(IMAGES[:4])) == {"logits"}


def test_hugging_faces_own_network(tmp_path):
    pytest.importorskip("transformers")
    from transformers import ResNetConfig, ResNetForImageClassification

    from advbn.adapters.huggingface import AdvBNForImageClassification
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=9)
    torch.manual_seed(0)
    own = ResNetForImageClassification(config).eval()
    model = AdvBNForImageClassification(own, after="resnet.encoder.stages.0", **OPTIONS).eval()
    with torch.no_grad():
        assert torch.allclose(model(IMAGES)["logits"], own(IMAGES).logits, atol=1e-6)
    trained(model, tmp_path)
    again = ResNetForImageClassification(config)
    again.load_state_dict(load_state(tmp_path / "adversarial.safetensors"))
    assert not torch.equal(again.classifier[1].weight, own.classifier[1].weight)
    with pytest.raises(ValueError, match="has no module 'layer9'"):
        AdvBNForImageClassification(own, after="layer9")


def test_timms_loop():
    timm = pytest.importorskip("timm")
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=9)
    net = prepare(model, after="layer1", **OPTIONS).train()
    optimizer, ema, loss_fn = create_optimizer_v2(net.head, opt="adamw", lr=1e-3), ModelEmaV3(net, decay=0.5), LabelSmoothingCrossEntropy()
    for images, targets in zip(IMAGES.split(8), TARGETS.split(8)):
        sum(net.losses(images, targets, loss_fn)).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(net)
    for trained_ in (net, ema.module):
        robust = timm.create_model("resnet10t", num_classes=9)
        robust.load_state_dict(trained_.export("adversarial"))
        assert torch.isfinite(robust.eval()(IMAGES[:2])).all()
    assert isinstance(net.stem, nn.Module) and all(p.grad is None for p in net.stem.parameters())
