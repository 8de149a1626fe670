"""Hugging Face's trainer does what a loop written by hand does, and its networks are taken as they are."""

import pytest
import torch
import torch.nn.functional as F
from by_hand import IMAGES, OPTIONS, TARGETS, alike, by_hand, plain, sgd_of
from torch import nn

from advbn.networks.weights import load_state


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


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if i % 4 == 0 else pytest.mark.slow) for i, n in enumerate(SMALL)]
)
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
