"""For `torch.hub.load(REPOSITORY, "advbn", WEIGHTS)`, with `source="local"` for a clone."""

dependencies = ["torch", "torchvision", "huggingface_hub", "numpy", "PIL", "pydantic", "safetensors", "tqdm"]


def advbn(weights, branch=None, sha256=None, **options):
    """A trained network, in eval mode: with both branches, or with `branch="clean"` or `"adversarial"` the
    plain network of torchvision or timm.

    `weights` is a folder that `AdvBNNet.save_pretrained` has written, a release's archive of one, or an id
    on the hub; `sha256` and other options are those of `AdvBNNet.from_pretrained`, and so are the errors."""
    from advbn import AdvBNNet
    from advbn.adapters.pretrained import plain_network

    net = AdvBNNet.from_pretrained(weights, sha256=sha256, **options)
    return net if branch is None else plain_network(net, branch)
