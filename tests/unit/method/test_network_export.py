"""Exports: every name of the user's network, with the value that was trained."""

import pytest
import timm
import torch
from torch import nn
from users_networks import IMAGES, Aliased, Net, conv_bn, one_step, used

from advbn import AdvBN, AdvBNNet, prepare, split, use_branch
from advbn.training.loop import finetuning_net


@pytest.mark.parametrize(
    "make, after",
    [
        (Aliased, "bn"),
        (lambda: timm.create_model("coat_lite_tiny", num_classes=5, img_size=32), "patch_embed4.proj"),
    ],
    ids=["classifier and batch norm", "coat"],
)
@pytest.mark.parametrize("kept", [True, False])
def test_a_tensor_with_two_names_is_exported_under_both(make, after, kept):
    torch.manual_seed(0)
    model = make().eval()
    stem, head = split(model, after)
    net = one_step(
        AdvBNNet(stem, head, AdvBN(steps=1, rectify=False), model.state_dict(keep_vars=kept)),
        torch.randn(4, 3, 32, 32),
    )
    for branch in ("clean", "adversarial"):
        plain = make().eval()
        plain.load_state_dict(net.export(branch), strict=True)
        with torch.no_grad(), use_branch(net, branch):
            assert torch.equal(plain(x := torch.randn(2, 3, 32, 32)), net(x))


def test_prepare_exports_aliases():
    torch.manual_seed(0)
    net = one_step(prepare(Aliased(), "bn"))
    plain = Aliased().eval()
    plain.load_state_dict(net.export("adversarial"))
    with torch.no_grad(), use_branch(net, "adversarial"):
        assert torch.equal(plain(IMAGES), net(IMAGES))


def test_a_batch_norm_of_two_names_in_parts_written_by_hand():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.block, self.fc = nn.Sequential(nn.Conv2d(4, 4, 1), self.norm), nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(self.block(x).mean((2, 3)))

    net = one_step(AdvBNNet(nn.Conv2d(3, 4, 3), Head(), AdvBN(steps=1)))
    assert not [key for key in net.export("clean") if "adversarial" in key]
    plain = Head().eval()
    plain.load_state_dict({k: v for k, v in net.export("adversarial").items() if k not in ("weight", "bias")})
    features = torch.randn(2, 4, 5, 5)
    with torch.no_grad(), use_branch(net.head, "adversarial"):
        assert torch.equal(plain(features), net.head(features))


@pytest.mark.parametrize("kept", [True, False])
def test_parts_written_by_hand_are_exported_under_the_names_of_the_network(kept):
    torch.manual_seed(0)
    model = Aliased()
    stem = nn.Sequential(model.conv, model.bn, nn.ReLU())
    head = nn.Sequential(model.pair, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc)
    net = one_step(
        AdvBNNet(
            stem, nn.ModuleDict({"head": head})["head"], AdvBN(steps=1), model.state_dict(keep_vars=kept)
        )
    )
    plain = Aliased().eval()
    plain.load_state_dict(net.export("adversarial"), strict=True)
    with torch.no_grad(), use_branch(net, "adversarial"):
        assert torch.equal(plain(IMAGES), net(IMAGES))


class Renamed(Aliased):
    "Writes its weights under other names, and reads them back; keeps a number beside them."

    def __init__(self):
        super().__init__()
        self.register_state_dict_post_hook(
            lambda m, state, prefix, metadata: (
                [state.update({f"old.{k}": state.pop(k)}) for k in list(state) if k.startswith("mid.")]
                and None
            )
        )
        self.register_load_state_dict_pre_hook(
            lambda m, state, *_: (
                [
                    state.update({k.removeprefix("old."): state.pop(k)})
                    for k in list(state)
                    if k.startswith("old.")
                ]
                and None
            )
        )

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        assert state == {"version": 3}


def test_what_hooks_make_of_a_state_dict_is_what_is_exported():
    torch.manual_seed(0)
    net = one_step(prepare(Renamed(), "bn"))
    state = net.export("clean")
    assert state.keys() == Renamed().state_dict().keys() and any(k.startswith("old.") for k in state)
    plain = Renamed().eval()
    plain.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert torch.equal(plain(IMAGES), net(IMAGES))


def test_a_compiled_network_is_refused_and_its_parts_can_be_compiled():
    model = used(Net(conv_bn()))
    with pytest.raises(ValueError, match="torch.compile makes of a network.*hand over the network itself"):
        prepare(torch.compile(model, backend="eager"), "bn")
    net = prepare(model, "bn", steps=1)
    expected = net.losses(IMAGES, torch.arange(4))
    net.head = torch.compile(net.head, backend="eager")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(net.losses(IMAGES, torch.arange(4)), expected))


class Scaled(Net):
    """Writes a weight otherwise than it has it, and turns it back when it reads it; under another name, if
    there is one."""

    def __init__(self, name="0.weight"):
        super().__init__(conv_bn())
        self.block.register_state_dict_post_hook(
            lambda m, state, prefix, metadata: state.update(
                {prefix + name: 2 * state.pop(f"{prefix}0.weight")}
            )
        )
        self.block.register_load_state_dict_pre_hook(
            lambda m, state, prefix, *_: state.update({f"{prefix}0.weight": state.pop(prefix + name) / 2})
        )


@pytest.mark.parametrize("name", ["0.weight", "doubled"])
@pytest.mark.parametrize("layer", [True, False])
def test_a_state_dict_that_is_computed_is_refused(name, layer):
    with pytest.raises(ValueError, match=f"computes 'block.{name}'.*AdvBNNet"):
        prepare(Scaled(name), "bn") if layer else finetuning_net(Scaled(name), "bn", None)


def test_a_tensor_is_known_by_its_memory_before_its_name():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(576, 5)
    )
    head = nn.Sequential(nn.ReLU(), model[2], model[3], model[4], nn.Identity(), model[5])
    net = one_step(
        AdvBNNet(
            nn.ModuleDict({"first": model[0]})["first"],
            head,
            AdvBN(steps=1),
            model.state_dict(keep_vars=True),
        )
    )
    state = net.export()
    assert (
        state["2.weight"] is not state["3.weight"]
        and torch.equal(state["2.weight"], head[1].weight)
        and torch.equal(state["3.weight"], head[2].weight)
    )


def test_a_part_that_renames_its_weights_after_prepare_says_so_in_export():
    net = prepare(used(Net(conv_bn())), "bn", steps=1)
    torch.nn.utils.parametrizations.weight_norm(net.head.get_submodule("block.0"))
    with pytest.raises(
        ValueError, match="no longer hold 'block.0.weight'.*remove_parametrizations.*before prepare"
    ):
        one_step(net).export()
    torch.nn.utils.parametrize.remove_parametrizations(net.head.get_submodule("block.0"), "weight")
    plain = Net(conv_bn()).eval()
    plain.load_state_dict(net.export())
    with torch.no_grad():
        assert torch.allclose(plain(IMAGES), net(IMAGES), atol=1e-6)


def test_a_network_with_a_compiled_head_is_exported():
    net = prepare(used(Net(conv_bn())), "bn", steps=1)
    net.head = torch.compile(net.head, backend="eager")
    plain = Net(conv_bn()).eval()
    plain.load_state_dict(one_step(net).export("adversarial"), strict=True)
    with torch.no_grad(), use_branch(net, "adversarial"):
        assert torch.equal(plain(IMAGES), net(IMAGES))


class Split(Net):
    "Half of a batch goes through a batch norm inside the batch norm, in train mode."

    def __init__(self):
        super().__init__(
            nn.Sequential(
                nn.Conv2d(4, 4, 3, padding=1), timm.layers.SplitBatchNorm2d(4, num_splits=2), nn.ReLU()
            )
        )


def test_a_batch_norm_with_batch_norms_in_it_is_exported_as_it_was_trained():
    torch.manual_seed(0)
    net = one_step(prepare(used(Split()), "bn", steps=1))
    inner = net.head.get_submodule("block.1.adversarial.aux_bn.0")
    state = net.export("adversarial")
    assert torch.equal(state["block.1.aux_bn.0.running_mean"], inner.running_mean)
    assert torch.equal(state["block.1.aux_bn.0.weight"], inner.weight)
    Split().load_state_dict(state, strict=True)
