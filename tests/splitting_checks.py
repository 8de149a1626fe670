"""What `split`, and what is made of its parts, owe to any network and any cut.

`check_cut` is the specification: a cut keeps all that is asked here, or `split` or `prepare` refuses it by
a `ValueError`, whose reason it returns."""

import copy
import re

import torch
from torch import nn

from advbn import prepare, split, use_branch
from advbn.method.folding import for_inference
from advbn.method.dual_batchnorm import BRANCHES

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
)


def complete_state(module):
    """All that a module is: classes, flags, hooks, attributes of its own, the bits of parameters, gradients
    and buffers; and torch's modes."""
    state = {
        "modes": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
        )
    }
    for name, m in module.named_modules():
        plain = {
            k: v
            for k, v in vars(m).items()
            if isinstance(v, (bool, int, float, str, tuple, type(None))) and not k.startswith("_")
        }
        state[name] = (type(m), plain, sorted(vars(m)), [len(getattr(m, hooks)) for hooks in HOOKS])
    for name, p in module.named_parameters():
        state[f"parameter {name}"] = (
            id(p),
            p.requires_grad,
            Bits(p),
            None if p.grad is None else Bits(p.grad),
            p.stride(),
        )
    for name, b in module.named_buffers():
        state[f"buffer {name}"] = (id(b), Bits(b), b.stride())
    return state


class Bits:
    "The bits of a tensor at one moment, kept as a copy, which takes a tenth of the time of a digest."

    def __init__(self, tensor):
        self.kept = tensor.detach().clone()

    def __eq__(self, other):
        one, two = self.kept, other.kept
        if (one.dtype, one.shape) != (two.dtype, two.shape):
            return False
        return torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (one, two)))


def assert_same(before, after):
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


def logits(output):
    "A network's output, or the logits of a named tuple that has those of auxiliary heads, too."
    return output if isinstance(output, torch.Tensor) else output.logits


def lived_in(model, x):
    """The network in eval mode, its batch norms with affine maps and statistics that do something; `x` has
    been seen in train mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.5
        if m.affine:
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.1)
    with torch.no_grad():
        model.train()(x)
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum
    return model.eval()


def outputs(module, x):
    with torch.no_grad():
        torch.manual_seed(0)
        return module(x)


def assert_close(found, expected, what, tolerance=1e-4):
    "The same but for rounding, in parts of the largest output."
    assert (found - expected).abs().max() <= tolerance * expected.abs().max(), (
        f"{what} is another network: {found.flatten()[:3].tolist()}, not {expected.flatten()[:3].tolist()}"
    )


def check_network(model, x):
    """A copy for inference says the same, and the network, in eval mode, is left as it was. Returns what that
    is, as `complete_state` has it."""
    expected, before = outputs(model, x), complete_state(model)
    assert_close(outputs(for_inference(model), x), expected, "the copy for inference")
    assert_same(before, complete_state(model))
    return before


def check_cut(model, after, x, targets, before=None):
    """Cut a network in eval mode after the module at the path `after`, train it and export it; an empty text,
    or the reason why that is refused.

    Whatever comes of it, the network is left as it was, and works. `before` is what it was, as
    `complete_state` has it, where that is known."""
    expected, before = outputs(model, x), before or complete_state(model)
    try:
        stem, head = refused_or(split, model, after)
        assert_parts_are_the_model(stem, head, model, x, expected)
        assert_parts_train_as_the_model(stem, head, model, x)
        assert_close(
            outputs(for_inference(head), outputs(for_inference(stem), x)),
            expected,
            "the parts' copies for inference",
        )
        net = refused_or(prepare, model, after, steps=1)
        if outputs(net.stem, x).ndim != 4:
            refused_or(net.losses, x, targets)
        assert_a_step_changes_the_head_alone(net, model, x, targets)
        assert_exports_are_the_network(net, model, x)
    except Refused as refusal:
        return str(refusal)
    finally:
        assert_same(before, complete_state(model))
        assert torch.equal(outputs(model, x), expected), "the network says something else afterwards"
        copy.deepcopy(model)
    return ""


class Refused(Exception):
    "The reason for a refusal, without what it names and advises."


def refused_or(function, *args, **options):
    "What the function returns; `Refused` for a `ValueError` of one line."
    try:
        return function(*args, **options)
    except ValueError as error:
        said = str(error)
        assert said and len(said.splitlines()) == 1, f"a refusal of several lines, or of none: {said!r}"
        raise Refused(re.sub(r"^cannot split \w+ after '.*?': ", "", said.partition("; ")[0])) from None


def assert_parts_are_the_model(stem, head, model, x, expected):
    "Its output to the last bit, the features left as they are, its parameters under their own names."
    features = outputs(stem, x)
    given = features.clone()
    assert torch.equal(outputs(head, features), expected), "the parts are another network"
    assert torch.equal(features, given), "the head changes the features"
    own = dict(model.named_parameters(remove_duplicate=False))
    assert all(own[name] is p for part in (stem, head) for name, p in part.named_parameters())


def assert_parts_train_as_the_model(stem, head, model, x):
    """In train mode: its output for the same seed, its running statistics, the features left as they are; on
    copies that share what the originals share."""
    model, stem, head = (part.train() for part in copy.deepcopy((model, stem, head)))
    auxiliary = {name for name, _ in model.named_children() if name.lower().startswith("aux")}
    if (
        auxiliary
    ):  # the parts leave these heads out, and with them the random numbers that their dropout draws
        for m in (m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)):
            m.eval()
    buffers = dict(model.named_buffers())
    before = copy.deepcopy(buffers)
    expected, after = logits(outputs(model, x)), copy.deepcopy(buffers)
    for name, b in buffers.items():
        b.copy_(before[name])
    with torch.no_grad():
        torch.manual_seed(0)
        features = stem(x)
        given = features.clone()
        assert torch.equal(head(features), expected), "the parts are another network in train mode"
    assert torch.equal(features, given), "the head changes the features in train mode"
    lost = {
        name
        for name in buffers
        if name.partition(".")[0] not in auxiliary and not torch.equal(buffers[name], after[name])
    }
    assert lost == set(), "buffers that the parts do not keep as the model does"


def assert_a_step_changes_the_head_alone(net, model, x, targets):
    """Every parameter of the head gets a gradient, some of each branch move with it, and both branches keep
    running statistics."""
    trainable = {name: p for name, p in net.train().head.named_parameters() if p.requires_grad}
    loss = sum(net.losses(x, targets))
    if trainable:  # nothing is, after the last layer
        loss.backward()
        assert [name for name, p in trainable.items() if p.grad is None] == [], (
            "parameters without a gradient"
        )
        nn.utils.clip_grad_norm_(trainable.values(), 1.0)  # random weights may have gradients of any size
        torch.optim.SGD(trainable.values(), lr=0.01).step()
        net.zero_grad()
    assert changed(net.stem, model) == set(), "the stem is trained"
    moved = changed(net.head, model)
    for branch in ("clean", "adversarial"):
        ours = {
            name for name in net.head.state_dict() if ("adversarial." in name) == (branch == "adversarial")
        }
        means = {name for name in ours if name.endswith("running_mean")}
        assert means <= moved, f"the {branch} branch does not keep {sorted(means - moved)}"
        assert not ours & trainable.keys() or moved & ours & trainable.keys(), (
            f"nothing of the {branch} branch is trained"
        )


def changed(part, model):
    "The names in a part, those of both branches, whose values are not the network's."
    state = model.state_dict()
    return {
        name
        for name, value in part.state_dict().items()
        if not torch.equal(value, state[name.replace("adversarial.", "")])
    }


def assert_exports_are_the_network(net, model, x):
    """Both branches load strictly into the plain network, every name with the value that it was exported
    with, and give the outputs of that branch."""
    net.eval()
    plain = copy.deepcopy(model)
    for branch in BRANCHES:
        state = net.export(branch)
        plain.load_state_dict(state, strict=True)
        assert [
            name for name, value in plain.state_dict().items() if not torch.equal(value, state[name])
        ] == [], "two values for one tensor"
        with use_branch(net, branch):  # where a tensor lies in memory can change the last digits
            assert_close(outputs(plain, x), outputs(net, x), f"the export of the {branch} branch", 1e-5)
