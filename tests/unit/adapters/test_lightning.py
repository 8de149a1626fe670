"""Lightning's trainer does what a loop written by hand does, and leaves the module as it was."""

import signal
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from by_hand import IMAGES, OPTIONS, TARGETS, alike, by_hand, plain, sgd_of
from torch.utils.data import DataLoader, TensorDataset


def classifier(step=None, network=plain, **attributes):
    """A LightningModule as anybody would write it; `step(module, batch, index)` in place of its own training
    step."""
    L = pytest.importorskip("lightning.pytorch")

    class Classifier(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network()
            for name, value in attributes.items():
                setattr(self, name, value)

        def loss(self, batch):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def training_step(self, batch, index):
            return step(self, batch, index) if step else self.loss(batch)

        def validation_step(self, batch, index):
            self.log("val_loss", self.loss(batch))

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05)

    return Classifier()


def trainer_of(*callbacks, **options):
    L = pytest.importorskip("lightning.pytorch")
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(
        **{"max_epochs": 1, "callbacks": list(callbacks), "accelerator": "cpu", **quiet, **options}
    )


def fit(module, *callbacks, data=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_of(*callbacks, **options)
        trainer.fit(module, DataLoader(data or TensorDataset(IMAGES, TARGETS), batch_size=8))
    return trainer


def callback_of(**options):
    pytest.importorskip("lightning.pytorch")
    from advbn.adapters.lightning import AdvBNCallback

    return AdvBNCallback("layer1", **OPTIONS, **options)


def test_lightning():
    from_step = {
        False: lambda module, batch, index: module.loss(batch),
        True: lambda module, batch, index: {"loss": module.loss(batch), "index": index},
    }
    expected = by_hand(sgd_of)
    for step in from_step.values():
        module, callback = classifier(step), callback_of()
        trainer = fit(module, callback)
        assert trainer.callback_metrics["adversarial_loss"] > 0 and "training_step" not in vars(module)
        for branch in ("clean", "adversarial"):
            assert alike(callback.export(branch), expected.export(branch))
        assert type(module.model) is type(plain()) and alike(
            module.model.state_dict(), expected.export("adversarial")
        )
    with pytest.raises(ValueError, match="has no 'network'; attribute is the name"):
        fit(classifier(), callback_of(attribute="network"))
    with pytest.raises(ValueError, match="has no 'model'; attribute is the name"):
        fit(classifier(network=lambda: None), callback_of())
    with pytest.raises(ValueError, match="nothing has been trained"):
        callback_of().export()
    with pytest.raises(ValueError, match="branch is 'both'"):
        callback_of(branch="both")


def test_a_batch_that_lightning_skips_is_not_attacked():
    callback = callback_of()
    fit(classifier(lambda module, batch, index: None if index == 1 else module.loss(batch)), callback)
    assert alike(callback.export(), by_hand(sgd_of, skip=1).export("adversarial"))


def test_lightning_says_what_a_step_lacks():
    with pytest.raises(Exception, match="the 'loss' key needs to be present"):
        fit(classifier(lambda module, batch, index: {"value": module.loss(batch)}), callback_of())
    module = classifier(automatic_optimization=False)
    with pytest.raises(ValueError, match="optimises by hand .automatic_optimization = False."):
        fit(module, callback_of())
    assert type(module.model) is type(plain())


@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["failed", "interrupted"]
)
def test_a_fit_that_ends_early_leaves_the_module_as_it_was(error):
    def step(module, batch, index):
        if errors and index == 1:
            raise errors.pop()
        return module.loss(batch)

    errors, callback = [error], callback_of()
    module = classifier(step)
    before, handler = {k: v.clone() for k, v in module.state_dict().items()}, signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(type(error) if isinstance(error, RuntimeError) else SystemExit):
            fit(module, callback)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert "training_step" not in vars(module) and not alike(callback.export(), plain().state_dict())
    assert module.state_dict().keys() == before.keys() and all(
        torch.equal(v, before[k]) for k, v in module.state_dict().items()
    )
    fit(module, callback)
    assert alike(callback.export(), by_hand(sgd_of).export("adversarial"))


def test_a_tuner_leaves_the_module_as_it_was(tmp_path):
    L = pytest.importorskip("lightning.pytorch")
    callback, module = callback_of(), classifier(lr=0.05)
    trainer = trainer_of(callback, default_root_dir=tmp_path)
    L.tuner.Tuner(trainer).lr_find(
        module, DataLoader(TensorDataset(IMAGES, TARGETS), batch_size=8), num_training=2, update_attr=False
    )
    assert type(module.model) is type(plain()) and "training_step" not in vars(module)
    fit(module, callback)
    assert alike(callback.export(), by_hand(sgd_of).export("adversarial"))


class Rows(torch.utils.data.Dataset):
    "Examples that make dictionaries of batches."

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, i):
        return {"image": IMAGES[i], "label": TARGETS[i]}


def test_lightnings_batches_of_any_kind():
    def rows(batch):
        return batch["image"], batch["label"]

    module = classifier(lambda module, batch, index: module.loss(rows(batch)))
    with pytest.raises(
        ValueError,
        match="unpack makes str, str of a batch, a dict; it is to make images and targets, as unpack=lambda",
    ):
        fit(module, callback_of(), data=Rows())
    callback = callback_of(unpack=rows)
    fit(module, callback, data=Rows())
    assert alike(callback.export(), by_hand(sgd_of).export("adversarial"))
    three = TensorDataset(IMAGES, TARGETS, TARGETS)
    with pytest.raises(ValueError, match="unpack makes Tensor, Tensor, Tensor of a batch"):
        fit(classifier(), callback_of(), data=three)


def test_a_step_of_one_argument():
    module, callback = classifier(), callback_of()
    vars(module)["training_step"] = types.MethodType(lambda self, batch: self.loss(batch), module)
    own = module.training_step
    fit(module, callback)
    assert module.training_step is own and alike(callback.export(), by_hand(sgd_of).export("adversarial"))


def test_lightnings_checkpoints(tmp_path):
    "A checkpoint of the fit goes on training, and gives plain weights."
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    callback, saving = callback_of(), callbacks.ModelCheckpoint(tmp_path, save_top_k=-1)
    fit(classifier(), callback, saving, enable_checkpointing=True, max_epochs=2)
    first, last = tmp_path / "epoch=0-step=3.ckpt", tmp_path / "epoch=1-step=6.ckpt"
    assert alike(callback.export("adversarial", first), by_hand(sgd_of).export("adversarial"))
    assert alike(callback.export("clean", last), callback.export("clean"))
    module, again = classifier(), callback_of()
    trainer_of(again, max_epochs=2).fit(
        module, DataLoader(TensorDataset(IMAGES, TARGETS), batch_size=8), ckpt_path=first
    )
    assert alike(again.export(), callback.export()) and not alike(
        again.export(), callback.export("adversarial", first)
    )


def test_averaging_comes_after_the_cut():
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("this Lightning has no averaging callback")
    callback = callback_of()
    with pytest.raises(ValueError, match="EMAWeightAveraging comes before AdvBNCallback"):
        fit(classifier(), callbacks.EMAWeightAveraging(decay=0.5), callback)
    module = classifier()
    fit(module, callback, callbacks.EMAWeightAveraging(decay=0.5))
    assert alike(module.model.state_dict(), callback.export()) and not alike(
        callback.export(), by_hand(sgd_of).export("adversarial")
    )


def test_a_network_that_lightning_makes_anew_is_not_trained_unattacked():
    module = classifier()
    type(module).configure_model = lambda self: setattr(self, "model", plain())
    with pytest.raises(ValueError, match="makes 'model' anew in setup or configure_model"):
        fit(module, callback_of())
    type(module).configure_model = lambda self: setattr(
        self, "model", torch.compile(self.model, backend="eager")
    )
    callback = callback_of()
    fit(module, callback)
    assert type(module.model) is type(plain()) and alike(
        callback.export(), by_hand(sgd_of).export("adversarial")
    )
