import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from advbn import AdvBN, CORRUPTIONS
from advbn.errors import DataError
from advbn.evidence.figures import make_set
from advbn.images.batches import MemoryBatches, read_images
from advbn.images.datasets import EmbeddedData
from advbn.method.splitting import split
from advbn.networks.autoencoder import Autoencoder, fit_decoder, mirrored_decoder
from advbn.networks.models import build_model
from advbn.shifts.cells import cells
from advbn.shifts.published import CIFAR10, cifar10_c, imagenet_c, instagram_filters, NamedFolder
from advbn.shifts.styles import adain, adversarial, reconstructed, style_images, stylized


@pytest.fixture(scope="module")
def images(root):
    return read_images(root / "data/openmoji")[range(0, 1898, 19)]


@pytest.fixture(scope="module")
def autoencoder(images):
    torch.manual_seed(0)
    made = Autoencoder(build_model("small_vgg", 9), "features.relu2_2")
    errors = fit_decoder(made, MemoryBatches(images, 10, seed=0), epochs=4, lr=2e-3)
    assert errors[-1] < 0.7 * errors[0]
    return made


def test_the_decoder_mirrors_vgg19():
    encoder, _ = split(build_model("torchvision/vgg19", 10), "features.20")
    x = torch.randn(1, 3, 64, 64)
    features = encoder(x)
    assert features.shape == (1, 512, 8, 8)  # relu4_1
    assert mirrored_decoder(encoder)(features).shape == x.shape


def test_training_the_decoder_leaves_the_classifier_alone(images):
    torch.manual_seed(0)
    made = Autoencoder(build_model("small_vgg", 9), "features.relu2_2")
    before = {k: v.clone() for k, v in made.classifier.state_dict().items()}
    fit_decoder(made, MemoryBatches(images[range(20)], 10, seed=0), epochs=1, lr=1e-3)
    assert all(torch.equal(v, before[k]) for k, v in made.classifier.state_dict().items())


def test_adain_gives_the_styles_statistics():
    content, style = torch.randn(3, 5, 8, 8), 2 + 3 * torch.randn(3, 5, 6, 6)
    out = adain(content, style)
    assert torch.allclose(out.mean((2, 3)), style.mean((2, 3)), atol=1e-4)
    assert torch.allclose(out.std((2, 3)), style.std((2, 3)), rtol=1e-3)


def test_the_attack_raises_the_classifiers_loss_on_the_picture(autoencoder, images):
    plain = reconstructed(autoencoder, images.images)
    attacked = adversarial(autoencoder, images.images, images.targets, AdvBN())
    loss = [F.cross_entropy(autoencoder.logits(x.float() / 255), images.targets) for x in (plain, attacked)]
    assert loss[1] > loss[0] and attacked.shape == images.images.shape and attacked.dtype == torch.uint8
    unchanged = adversarial(autoencoder, images.images, images.targets, AdvBN(eps=0.0))
    assert torch.equal(unchanged, plain)


def test_a_style_belongs_to_the_index(autoencoder, images):
    styles = style_images(40)
    whole = stylized(autoencoder, images.images[:6], [3, 4, 5, 13, 14, 15], styles)
    part = stylized(autoencoder, images.images[[4, 0]], [14, 3], styles, batch_size=1)
    assert (whole[[4, 0]].int() - part.int()).abs().max() <= 1
    assert not torch.equal(whole[0], stylized(autoencoder, images.images[:1], [4], styles)[0])


def test_styles_may_come_from_a_folder(tmp_path):
    with pytest.raises(DataError, match="no style images"):
        style_images(40, str(tmp_path))
    Image.new("L", (30, 50), 77).save(tmp_path / "a.png")
    assert style_images(16, str(tmp_path)).unique().tolist() == [77]
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=f"the style image {tmp_path}/b.png cannot be read"):
        style_images(17, str(tmp_path))


def test_styles_are_the_callers_own():
    style_images(40).zero_()
    assert style_images(40).any()


def test_a_set_on_disk_is_continued_and_complete(tmp_path, images, autoencoder):
    calls = []

    def make(batch, fail_at=None):
        calls.append(len(batch))
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return adversarial(autoencoder, batch.images, batch.targets, AdvBN(steps=1))

    with pytest.raises(KeyboardInterrupt):
        make_set(images, tmp_path / "set", lambda b: make(b, 3), {"steps": 1})
    assert not (tmp_path / "set").exists()
    assert make_set(images, tmp_path / "set", make, {"steps": 1}) == len(images) - 64
    assert make_set(images, tmp_path / "set", make, {"steps": 1}) == 0
    straight = tmp_path / "straight"
    make_set(images, straight, make, {"steps": 1})
    a, b = read_images(tmp_path / "set"), read_images(straight)
    assert a.names == b.names and torch.equal(a.images, b.images) and not list((tmp_path / "set").rglob(".*"))
    with pytest.raises(FileExistsError, match="made with other settings"):
        make_set(images, tmp_path / "set", make, {"steps": 2})
    next((tmp_path / "set").rglob("*.png")).unlink()
    with pytest.raises(FileExistsError, match="lacks 1 of 100"):
        make_set(images, tmp_path / "set", make, {"steps": 1})


def test_names_that_differ_only_in_their_suffix_are_refused(tmp_path):
    tree(tmp_path / "source", "c/a.jpg", "c/a.png", "c/b.png")
    with pytest.raises(ValueError, match="c/a.jpg and c/a.png would both be written as c/a.png"):
        make_set(read_images(tmp_path / "source"), tmp_path / "made", lambda b: b.images, {})
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_no_image_behind_the_pictures_is_ever_tested(root):
    data = EmbeddedData(root / "data")
    common = set(data.common_train([0, 1, 2, 3]).names)
    assert common and not any(common & set(data.test(s).names) for s in range(4))


def tree(root, *files):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)


def test_imagenet_c_folders_and_partial_classes(tmp_path):
    tree(
        tmp_path, "noise/gaussian_noise/1/n02/x.JPEG", "noise/gaussian_noise/1/n01/y.JPEG", "fog/2/n01/z.JPEG"
    )
    (tmp_path / "noise/gaussian_noise/1/n00").mkdir()  # an empty class is no class
    classes = ["n03", "n01", "n00", "n02"]
    found = imagenet_c(tmp_path, "gaussian_noise", 1, classes)
    assert sorted((p.split("/")[-2], t) for p, t in found.samples) == [("n01", 1), ("n02", 3)]
    assert imagenet_c(tmp_path, "fog", 2, classes).targets == [1]
    for arguments, words in (
        (("snow", 1), "no .*weather/snow/1; it is offered at https"),
        (("gaussian_noise", 2), "gaussian_noise/2; it is offered"),
    ):
        with pytest.raises(DataError, match=words):
            imagenet_c(tmp_path, *arguments, classes)
    with pytest.raises(DataError, match="the class 'n01'; the network knows 1 classes"):
        imagenet_c(tmp_path, "fog", 2, ["n011"])
    with pytest.raises(DataError, match="the class 'n01'; the network knows 0 classes$"):
        imagenet_c(tmp_path, "fog", 2, [])
    with pytest.raises(ValueError, match="no corruption 'fogg'; the nearest are fog"):
        imagenet_c(tmp_path, "fogg", 1, classes)
    with pytest.raises(ValueError, match="severity is 6"):
        imagenet_c(tmp_path, "fog", 6, classes)
    with pytest.raises(DataError, match="ImageNet-C is missing: no .*nowhere"):
        imagenet_c(tmp_path / "nowhere", "fog", 1, classes)


@pytest.mark.parametrize("name", ["ImageNet-Sketch", "Stylized-ImageNet"])
def test_folder_sets(tmp_path, name):
    tree(tmp_path, "n02/a.JPEG", "n02/b.JPEG")
    assert NamedFolder(tmp_path, ["n01", "n02"], name).targets == [1, 1]
    with pytest.raises(DataError, match=f"{name} is missing"):
        NamedFolder(tmp_path / "no", ["n01"], name)
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01/notes.txt").write_text("no picture")
    with pytest.raises(
        DataError, match=f"{name} is incomplete: {tmp_path}: .* the classes n01. .*; it is offered at https"
    ):
        NamedFolder(tmp_path, ["n01", "n02"], name)
    with pytest.raises(
        DataError,
        match=f"{name} is damaged: {tmp_path}/n01/notes.txt is a file, expected is a folder; it is offered "
        f"at https",
    ):
        NamedFolder(tmp_path / "n01/notes.txt", ["n01"], name)
    for classes in (["n01"], []):
        with pytest.raises(DataError, match="n01 has no class; .*; it is offered at https"):
            NamedFolder(tmp_path / "n01", classes, name)
    with pytest.raises(DataError, match="the test set is missing: no .*/no$"):
        NamedFolder(tmp_path / "no", ["n01"], "the test set")


def test_instagram_folders(tmp_path):
    tree(tmp_path, "Hefe/n01/a.jpg", "1977/n01/a.jpg")
    assert instagram_filters(tmp_path) == ["1977", "Hefe"]
    with pytest.raises(DataError, match="ImageNet-Instagram is missing"):
        instagram_filters(tmp_path / "no")
    with pytest.raises(DataError, match="a.jpg is a file, expected is a folder"):
        instagram_filters(tmp_path / "Hefe/n01/a.jpg")


def test_cifar10_c_arrays(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "snow.npy", images)
    with pytest.raises(DataError, match="labels.npy; it is offered"):
        cifar10_c(tmp_path, "snow", 1)
    np.save(tmp_path / "labels.npy", np.arange(20) % 10)
    cell = cifar10_c(tmp_path, "snow", 3)
    assert np.array_equal(
        cell.images.permute(0, 2, 3, 1).numpy(), images[8:12]
    ) and cell.targets.tolist() == [8, 9, 0, 1]
    backwards = cifar10_c(tmp_path, "snow", 3, CIFAR10[::-1])
    assert backwards.targets.tolist() == [1, 0, 9, 8]
    for severity in (0, 6):
        with pytest.raises(ValueError, match=f"severity is {severity}"):
            cifar10_c(tmp_path, "snow", severity)
    with pytest.raises(DataError, match="classes are a, b"):
        cifar10_c(tmp_path, "snow", 1, ["a", "b"])
    np.save(tmp_path / "labels.npy", np.arange(19))
    with pytest.raises(DataError, match="expected are uint8"):
        cifar10_c(tmp_path, "snow", 1)
    with pytest.raises(DataError, match="fog.npy; it is offered"):
        cifar10_c(tmp_path, "fog", 1)
    with pytest.raises(ValueError, match="no corruption 'snwo'; the nearest are snow"):
        cifar10_c(tmp_path, "snwo", 1)
    for labels in (np.arange(20) % 11, np.full(20, 0.5)):
        np.save(tmp_path / "labels.npy", labels)
        with pytest.raises(DataError, match="labels.npy holds .*; expected are whole numbers from 0 to 9"):
            cifar10_c(tmp_path, "snow", 1)
    good = (tmp_path / "snow.npy").read_bytes()
    for damaged in (b"", b"no", b"PK\x03\x04", good[:60], good[:-1]):
        for name in ("snow", "labels"):
            np.save(tmp_path / "snow.npy", images)
            (tmp_path / f"{name}.npy").write_bytes(damaged)
            with pytest.raises(
                DataError,
                match=f"{tmp_path}/{name}.npy cannot be read as an array: .*; it is offered at https",
            ):
                cifar10_c(tmp_path, "snow", 1)
            np.save(tmp_path / "labels.npy", np.arange(20) % 10)
    with pytest.raises(DataError, match="labels.npy is a file, expected is a folder"):
        cifar10_c(tmp_path / "labels.npy", "snow", 1)


def test_the_cells_are_all_there(root, autoencoder):
    data = EmbeddedData(root / "data")
    data.images, data.line_art = data.images[range(0, 1898, 38)], data.line_art[range(0, 1898, 38)]
    found = [(shift, cell) for shift, cell, _ in cells(data, 0, autoencoder, AdvBN(steps=1))]
    assert len(found) == 1 + 75 + 20 + 1 + 1 + 2
    assert [c for s, c in found if s == "corruptions"] == [
        f"{n}/{s}" for n in CORRUPTIONS for s in range(1, 6)
    ]
