"""The adapters compute what `AdvBNNet` does, leave plain weights behind, and are loaded by nobody who did not
ask."""

import signal
import subprocess
import sys
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advbn import prepare
from advbn.networks.models import build_model
from advbn.networks.weights import load_state
from conftest import ROOT

IMAGES, TARGETS = torch.randn(24, 3, 40, 40, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 9
OPTIONS = {"eps": 1.1, "steps": 2}


def plain(name="small_resnet"):
    torch.manual_seed(0)
    return build_model(name, 9)


def by_hand(optimizer_of, batch=8, skip=None):
    "The same three steps without an adapter, or those but the one at `skip`."
    net = prepare(plain(), "layer1", **OPTIONS).train()
    optimizer = optimizer_of(net)
    for i, (images, targets) in enumerate(zip(IMAGES.split(batch), TARGETS.split(batch))):
        if i == skip:
            continue
        optimizer.zero_grad()
        sum(net.losses(images, targets)).backward()
        optimizer.step()
    return net


def alike(one, other):
    return one.keys() == other.keys() and all(
        torch.allclose(v.float(), other[k].float(), atol=1e-5) for k, v in one.items()
    )


def test_nothing_is_loaded_that_was_not_asked_for():
    code = (
        "import sys, advbn, advbn.training, advbn.runs, advbn.cli\nprint([m for m in ('lightning', "
        "'transformers', 'timm', 'ipywidgets') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        == "[]"
    )


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


def sgd_of(net):
    return torch.optim.SGD(net.trainable_parameters(), lr=0.05)


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
    rows = lambda batch: (batch["image"], batch["label"])
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


def trained(model, tmp_path, trainer_class=None, examples=None, trainer_options={}, **options):
    from transformers import Trainer, TrainingArguments

    from advbn.adapters.huggingface import AdvBNCallback

    arguments = TrainingArguments(
        str(tmp_path),
        **{
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.05,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "lr_scheduler_type": "constant",
            "disable_tqdm": True,
            **options,
        },
    )
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    examples = examples or [{"pixel_values": x, "labels": y} for x, y in zip(IMAGES, TARGETS)]
    trainer = (trainer_class or Trainer)(
        model,
        arguments,
        train_dataset=examples,
        callbacks=[AdvBNCallback()],
        optimizers=(sgd, None),
        **trainer_options,
    )
    trainer._get_train_sampler = lambda *args: torch.utils.data.SequentialSampler(TARGETS)
    trainer.train()
    return trainer


def test_hugging_faces_trainer_on_any_network(tmp_path):
    pytest.importorskip("transformers")
    from advbn.adapters.huggingface import AdvBNForImageClassification

    model = AdvBNForImageClassification(plain(), "layer1", **OPTIONS)
    trainer = trained(model, tmp_path, max_grad_norm=0.0)
    expected = by_hand(sgd_of)
    for branch in ("clean", "adversarial"):
        assert alike(load_state(tmp_path / f"{branch}.safetensors"), expected.export(branch)) and alike(
            model.export(branch), expected.export(branch)
        )
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 3 and all(0 < row["adversarial_loss"] < row["loss"] for row in logs)
    model.eval()
    with torch.no_grad():
        found = model(IMAGES[:4], TARGETS[:4])
        assert torch.allclose(found["loss"], F.cross_entropy(found["logits"], TARGETS[:4])) and set(
            model(IMAGES[:4])
        ) == {"logits"}


def test_hugging_faces_own_network(tmp_path):
    pytest.importorskip("transformers")
    from transformers import ResNetConfig, ResNetForImageClassification

    from advbn.adapters.huggingface import AdvBNForImageClassification

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=9
    )
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


def adapted(model=None, after="layer1", **options):
    pytest.importorskip("transformers")
    from advbn.adapters.huggingface import AdvBNForImageClassification

    return AdvBNForImageClassification(plain() if model is None else model, after, **OPTIONS, **options)


def own_loss(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs["logits"], labels)


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing_factor": 0.1},
        {"trainer_options": {"compute_loss_func": own_loss}},
        {"examples": [{"pixel_values": x} for x in IMAGES]},
    ],
    ids=["smoothing", "loss of its own", "no labels"],
)
def test_hugging_faces_trainer_that_takes_the_labels_away(tmp_path, options):
    with pytest.raises(
        ValueError,
        match=r"training batch came without labels.*loss_fn=partial\(F.cross_entropy, label_smoothing=0.1\)",
    ):
        trained(adapted(), tmp_path, **options)


def test_hugging_faces_trainer_that_leaves_the_loss_alone(tmp_path):
    pytest.importorskip("transformers")
    from transformers import Trainer

    class Own(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return F.cross_entropy(model(**inputs)["logits"], inputs["labels"])

    with pytest.raises(
        ValueError, match="no adversarial loss is in this step's gradient; train on the `loss`"
    ):
        trained(adapted(), tmp_path, Own)
    for model in (plain(), torch.compile(adapted(), backend="eager")):
        with pytest.raises(
            ValueError, match=f"Trainer got a {type(model).__name__}; give it AdvBNForImageClassification"
        ):
            trained(model, tmp_path)


def test_hugging_faces_trainer_that_compiles(tmp_path):
    model = adapted()
    trained(model, tmp_path, max_grad_norm=0.0, torch_compile=True, torch_compile_backend="eager")
    assert alike(model.export("adversarial"), by_hand(sgd_of).export("adversarial"))


def test_hugging_faces_log_is_the_mean_since_the_last_one(tmp_path):
    each = [
        row["adversarial_loss"]
        for row in trained(adapted(), tmp_path, max_grad_norm=0.0).state.log_history
        if "loss" in row
    ]
    once = [
        row["adversarial_loss"]
        for row in trained(adapted(), tmp_path, max_grad_norm=0.0, logging_steps=3).state.log_history
        if "loss" in row
    ]
    assert len(each) == 3 and once == [pytest.approx(sum(each) / 3, abs=2e-4)]


def test_the_copies_that_data_parallel_makes_are_in_the_log():
    model = adapted().train()
    losses = []
    for images, targets in zip(IMAGES.split(8), TARGETS.split(8)):
        copy_ = model._replicate_for_data_parallel()
        found = copy_(images, targets)["loss"]
        losses.append((found - F.cross_entropy(copy_.net(images), targets)).item())
        found.backward()
    assert model.mean_adversarial_loss() == pytest.approx(sum(losses) / 3, abs=1e-5) and not model.seen


SMALL = {
    "Bit": (
        "bit.encoder.stages.0",
        {
            "embedding_size": 8,
            "hidden_sizes": [32, 32],
            "depths": [1, 1],
            "drop_path_rate": 0.3,
            "num_groups": 8,
        },
    ),
    "ConvNext": (
        "convnext.encoder.stages.0",
        {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "drop_path_rate": 0.3},
    ),
    "ConvNextV2": (
        "convnextv2.encoder.stages.0",
        {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "drop_path_rate": 0.3},
    ),
    "Cvt": (
        "cvt.encoder.stages.0.embedding.convolution_embeddings",
        {"embed_dim": [16, 16, 32], "depth": [1, 2, 3], "num_heads": [1, 1, 1]},
    ),
    "EfficientNet": (
        "efficientnet.encoder.blocks.1",
        {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
    ),
    "HGNetV2": ("embedder", {}),
    "Levit": ("levit.patch_embeddings.activation_layer_1", {"image_size": 64}),
    "MobileNetV1": ("mobilenet_v1.layer.1", {"depth_multiplier": 0.25, "tf_padding": False, "min_depth": 4}),
    "MobileNetV2": ("mobilenet_v2.layer.1", {"depth_multiplier": 0.25, "tf_padding": False}),
    "MobileViTV2": ("mobilevitv2.conv_stem", {"width_multiplier": 0.25}),
    "PoolFormer": (
        "poolformer.encoder.patch_embeddings.0",
        {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "drop_path_rate": 0.3},
    ),
    "RegNet": (
        "regnet.encoder.stages.0",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
    ),
    "ResNet": (
        "resnet.encoder.stages.0",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "SwiftFormer": (
        "swiftformer.patch_embed",
        {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "drop_path_rate": 0.3},
    ),
    "TextNet": ("textnet.stem", {}),
}


def hugging_face(name, **more):
    transformers = pytest.importorskip("transformers")
    config, model = (
        getattr(transformers, f"{name}{kind}", None) for kind in ("Config", "ForImageClassification")
    )
    if model is None:
        pytest.skip(f"this transformers has no {name}")
    torch.manual_seed(0)
    made = model(config(**{**SMALL[name][1], "num_labels": 9, **more}))
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_normal_(parameter)  # what some begin with makes logits of almost zero
    return made


@pytest.mark.parametrize("name", SMALL)
def test_what_is_between_hugging_faces_backbone_and_classifier(name):
    """A prepared network is the model in eval mode and, its stem in eval mode, also in train mode: dropout,
    norms and pooling of its own."""
    own = hugging_face(name)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    net = adapted(own, SMALL[name][0]).net
    with torch.no_grad():
        assert torch.equal(net.eval()(images), own.eval()(images).logits)
        net.train(), own.train()
        trained_, stem = {n for n, _ in net.head.named_modules()}, {n for n, _ in net.stem.named_modules()}
        for path, module in own.named_modules():
            module.training = not path or path in trained_ or path not in stem
        torch.manual_seed(1)
        expected = own(images).logits
        torch.manual_seed(1)
        assert torch.equal(net(images), expected) and expected.std() > 1e-30
    assert net.export("clean").keys() == own.state_dict().keys()


def test_hugging_faces_models_that_are_refused():
    with pytest.raises(
        ValueError,
        match="problem_type is 'multi_label_classification'.*loss_fn=F.binary_cross_entropy_with_logits",
    ):
        adapted(hugging_face("ResNet", problem_type="multi_label_classification"), "resnet.encoder.stages.0")
    with pytest.raises(ValueError, match="problem_type is 'regression'.*squeeze"):
        adapted(hugging_face("ResNet", num_labels=1), "resnet.encoder.stages.0")
    with pytest.raises(ValueError, match="MobileNetV1ForImageClassification cannot be traced"):
        adapted(hugging_face("MobileNetV1", tf_padding=True), "mobilenet_v1.layer.1")


def test_timms_loop():
    timm = pytest.importorskip("timm")
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=9)
    net = prepare(model, after="layer1", **OPTIONS).train()
    optimizer, ema, loss_fn = (
        create_optimizer_v2(net.head, opt="adamw", lr=1e-3),
        ModelEmaV3(net, decay=0.5),
        LabelSmoothingCrossEntropy(),
    )
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
