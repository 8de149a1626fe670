import copy
import pickle

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import convnext_tiny, resnet18, vit_b_16

from advbn import DualBatchNorm2d, convert_dual_batchnorm, use_branch
from advbn.method.dual_batchnorm import branch_state_dict


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(2, 4),
    c=st.integers(1, 6),
    size=st.integers(1, 5),
    training=st.booleans(),
    affine=st.booleans(),
    track=st.booleans(),
)
def test_each_branch_is_a_plain_batch_norm(n, c, size, training, affine, track):
    torch.manual_seed(0)
    dual = DualBatchNorm2d(c, affine=affine, track_running_stats=track).train(training)
    plain = {
        b: nn.BatchNorm2d(c, affine=affine, track_running_stats=track).train(training)
        for b in ("clean", "adversarial")
    }
    if affine:
        nn.init.normal_(dual.adversarial.weight)
        plain["adversarial"].weight = dual.adversarial.weight
    for branch in ("clean", "adversarial", "clean"):
        x = torch.randn(n, c, size + 1, size)
        with use_branch(dual, branch):
            assert torch.equal(dual(x), plain[branch](x))
    if track:
        assert torch.equal(dual.running_mean, plain["clean"].running_mean)
        assert torch.equal(dual.adversarial.running_var, plain["adversarial"].running_var)


def test_names_and_copies():
    plain = resnet18(num_classes=4)
    nn.init.normal_(plain.bn1.weight)
    dual = convert_dual_batchnorm(copy.deepcopy(plain))
    own = dict(dual.named_parameters())
    assert all(torch.equal(own[k], p) for k, p in plain.named_parameters())
    assert torch.equal(own["bn1.adversarial.weight"], plain.bn1.weight)
    assert own["bn1.adversarial.weight"] is not own["bn1.weight"]
    again = convert_dual_batchnorm(resnet18(num_classes=4))
    again.load_state_dict(plain.state_dict())
    assert torch.equal(again.bn1.adversarial.weight, plain.bn1.weight)
    with torch.no_grad():
        dual.bn1.adversarial.bias.add_(1)
    again.load_state_dict(dual.state_dict())
    assert torch.equal(again.bn1.adversarial.bias, dual.bn1.adversarial.bias)
    assert len(list(convert_dual_batchnorm(dual).parameters())) == len(own)


def test_deepcopy_is_independent():
    dual = convert_dual_batchnorm(resnet18(num_classes=4)).train()
    twin = copy.deepcopy(dual)
    with use_branch(twin, "adversarial"):
        twin(torch.randn(4, 3, 32, 32))
        assert dual.bn1.branch == "clean"
    assert twin.bn1.adversarial.num_batches_tracked == 1 and dual.bn1.adversarial.num_batches_tracked == 0


def test_branches_nest_and_survive_exceptions():
    dual = convert_dual_batchnorm(nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2)))
    dual[1].branch = "adversarial"
    with pytest.raises(KeyError):
        with use_branch(dual, "adversarial"):
            with use_branch(dual, "clean"):
                assert dual[0].branch == dual[1].branch == "clean"
            assert dual[0].branch == "adversarial"
            raise KeyError
    assert (dual[0].branch, dual[1].branch) == ("clean", "adversarial")


@pytest.mark.parametrize("make", [lambda: vit_b_16(num_classes=2), lambda: convnext_tiny(num_classes=2)])
def test_networks_without_batch_norm(make):
    net = make()
    keys = net.state_dict().keys()
    with use_branch(convert_dual_batchnorm(net), "adversarial"):
        assert net.state_dict().keys() == keys


def test_synchronised_batch_norm():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    first = convert_dual_batchnorm(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))).eval()
    assert isinstance(first[1], nn.SyncBatchNorm) and isinstance(first[1].adversarial, nn.SyncBatchNorm)
    with use_branch(first, "adversarial"):
        first(torch.randn(2, 3, 4, 4))
    dual = convert_dual_batchnorm(net)
    nn.init.normal_(dual[1].adversarial.weight)
    weight = dual[1].adversarial.weight.clone()
    stripped = nn.SyncBatchNorm.convert_sync_batchnorm(dual)
    with pytest.raises(ValueError, match="lost its adversarial branch"):
        with use_branch(stripped, "clean"):
            pass
    with use_branch(convert_dual_batchnorm(stripped).eval(), "adversarial"):
        stripped(torch.randn(2, 3, 4, 4))
    assert torch.equal(stripped[1].adversarial.weight, weight)


def test_batch_norms_that_do_more():
    net = convert_dual_batchnorm(timm.create_model("efficientnet_b0", num_classes=2)).eval()
    plain = timm.create_model("efficientnet_b0", num_classes=2).eval()
    net.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    for branch in ("clean", "adversarial"):
        with use_branch(net, branch):
            assert torch.equal(net(x), plain(x))


def test_doubles_of_any_class_can_be_pickled_and_copied():
    net = convert_dual_batchnorm(
        nn.Sequential(nn.SyncBatchNorm(2), nn.BatchNorm2d(2), timm.layers.BatchNormAct2d(2))
    ).eval()
    nn.init.normal_(net[0].adversarial.weight)
    for twin in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert [type(m) for m in twin] == [type(m) for m in net]
        with use_branch(twin, "adversarial"), use_branch(net, "adversarial"):
            x = torch.randn(2, 2, 3, 3)
            assert torch.equal(twin(x), net(x))


@pytest.mark.parametrize("branch", ["Clean", "adv", "", None])
def test_unknown_branches(branch):
    for act in (
        lambda: use_branch(nn.BatchNorm2d(2), branch).__enter__(),
        lambda: branch_state_dict(nn.BatchNorm2d(2), branch),
    ):
        with pytest.raises(ValueError, match="allowed are 'clean' and 'adversarial'"):
            act()
