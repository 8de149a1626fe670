"""Folders of pictures, damaged and in other styles."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from advbn import corrupt
from advbn.changing import (
    Searched,
    attacked,
    change_pictures,
    colours_of,
    corruption_changes,
    restyling_changes,
    style_pictures,
    stylized,
)
from advbn.adapters.evaluate import Pictures
from advbn.base.errors import ParameterError
from advbn.images.decoding import read_picture
from advbn.images.preprocessing import Preprocessing, remember
from advbn.networks.models import build_model
from advbn.networks.weights import save_state
from advbn.shifts.filters import edges, instagram


def photo(path, seed, size=(48, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    smooth = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC).save(path)


def pixels(path):
    return torch.from_numpy(np.asarray(read_picture(path))).permute(2, 0, 1)[None]


@pytest.fixture
def flat(tmp_path):
    "Three pictures without classes, of two sizes and two formats."
    for seed, (name, size) in enumerate((("a.jpg", (48, 40)), ("b.png", (48, 40)), ("c.png", (60, 33)))):
        photo(tmp_path / "photos" / name, seed, size)
    return tmp_path / "photos"


def test_a_flat_folder_gets_a_folder_for_each_corruption_and_severity(flat, tmp_path):
    out, changes = tmp_path / "out", corruption_changes(["fog", "frost"], [1, 4])
    found = change_pictures(Pictures(flat), out, changes, "png")
    assert found["written"] == found["images"] == 12 and len(found["folders"]) == 4
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.png")} == {
        f"{name}/{severity}/{file}.png" for name in ("fog", "frost") for severity in (1, 4) for file in "abc"
    }
    for number, (file, suffix) in enumerate((("a", "jpg"), ("b", "png"), ("c", "png"))):
        source = pixels(flat / f"{file}.{suffix}")
        made = pixels(out / f"frost/4/{file}.png")
        assert torch.equal(made, corrupt(source, "frost", 4, indices=[number]))
    assert found["bytes"] == sum(p.stat().st_size for p in out.rglob("*.png"))
    assert found["source"] == sum(p.stat().st_size for p in flat.iterdir())
    again = change_pictures(Pictures(flat), out, changes, "png")
    assert again["written"] == 0 and again["images"] == 12


def test_what_was_interrupted_goes_on(flat, tmp_path, monkeypatch):
    changes = corruption_changes(["fog"], [1, 2, 3])
    whole = tmp_path / "whole"
    change_pictures(Pictures(flat), whole, changes)
    from advbn import changing

    calls, make = [], changing.corrupt

    def stops(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return make(*arguments, **options)

    monkeypatch.setattr(changing, "corrupt", stops)
    with pytest.raises(KeyboardInterrupt):
        change_pictures(Pictures(flat), tmp_path / "out", changes)
    assert (tmp_path / "out/fog/1").is_dir() and not (tmp_path / "out/fog/2").exists()
    assert change_pictures(Pictures(flat), tmp_path / "out", changes)["written"] == 9 - 4
    for path in whole.rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(whole)).read_bytes()


@pytest.mark.parametrize(
    "form, names",
    [("source", "a.jpg b.png c.png"), ("jpeg", "a.jpg b.jpg c.jpg"), ("webp", "a.webp b.webp c.webp")],
)
def test_pictures_keep_their_format_or_get_another(flat, tmp_path, form, names):
    change_pictures(Pictures(flat), tmp_path / "out", corruption_changes(["brightness"], [2]), form)
    made = {p.name: p for p in (tmp_path / "out").iterdir() if p.suffix != ".json"}
    assert sorted(made) == names.split()
    kinds = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
    assert all(Image.open(p).format == kinds[name.split(".")[1]] for name, p in made.items())
    exact = corrupt(pixels(flat / "b.png"), "brightness", 2, indices=[1])
    kept = pixels(made[names.split()[1]])
    assert torch.equal(kept, exact) == (form != "jpeg") and (kept.float() - exact.float()).abs().mean() < 4


def test_folders_that_would_mix_are_refused_before_anything_is_written(flat, tmp_path):
    pictures, fog = Pictures(flat), corruption_changes(["fog"], [3])
    for out in (flat, flat / "new", tmp_path):
        with pytest.raises(ParameterError, match="name a folder beside it, such as .*photos-changed"):
            change_pictures(pictures, out, fog)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="was not made so.*Nothing in it was touched"):
        change_pictures(pictures, tmp_path / "mine", fog)
    change_pictures(pictures, tmp_path / "out", fog)
    with pytest.raises(FileExistsError, match="made with other settings: severity 3 and not 4; name another"):
        change_pictures(pictures, tmp_path / "out", corruption_changes(["fog"], [4]))
    with pytest.raises(ParameterError, match="holds the pictures of one change"):
        change_pictures(pictures, tmp_path / "out", corruption_changes(["fog"], [3, 4]))
    (tmp_path / "empty").mkdir()
    assert change_pictures(pictures, tmp_path / "empty", fog)["written"] == 3
    assert sorted(p.name for p in flat.iterdir()) == ["a.jpg", "b.png", "c.png"]


def test_filters_edges_and_colours(flat, tmp_path):
    photo(tmp_path / "like.png", 9)
    changes = restyling_changes(["1977", "edges", "colours"], tmp_path / "like.png")
    change_pictures(Pictures(flat), tmp_path / "out", changes, "png")
    source = pixels(flat / "b.png")
    assert torch.equal(pixels(tmp_path / "out/1977/b.png"), instagram(source, "_1977"))
    assert torch.equal(pixels(tmp_path / "out/edges/b.png"), edges(source))
    made, wanted = (
        pixels(tmp_path / "out/colours/b.png").float(),
        style_pictures(tmp_path / "like.png").float(),
    )
    plain = source.float()
    for measure in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3))):
        assert (measure(made) - measure(wanted)).abs().max() < 0.5 * (
            measure(plain) - measure(wanted)
        ).abs().max()
    kept = json.loads((tmp_path / "out/colours/settings.json").read_text())
    assert kept["style"] == "colours" and kept["like"] == str(tmp_path / "like.png")


def test_styles_are_given_by_the_pictures_number():
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    styles = torch.randint(100, 140, (2, 3, 8, 8), dtype=torch.uint8)
    together = colours_of(images, styles, [0, 1, 2])
    assert torch.equal(together[2], colours_of(images[2:], styles[:1], [0])[0])
    assert torch.equal(together[1:2], colours_of(images[1:2], styles, [7]))


@pytest.fixture(scope="module")
def search():
    "A small network whose first layer is spatial."
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return Searched(remember(model.eval(), Preprocessing(size=32, resize=36)), "2", "small")


def test_a_picture_is_searched_whose_features_have_other_statistics(search):
    torch.manual_seed(1)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5), (50, 60), mode="bicubic").clamp(0, 1)
    image, styles = (255 * image).byte(), torch.randint(80, 256, (1, 3, 40, 40), dtype=torch.uint8)
    encode, head, _ = search.network
    plain = search.fitted(image)
    painted, hurt = stylized(search, image, styles, [0]), attacked(search, image, 1.1)
    assert painted.shape == hurt.shape == plain.shape == (1, 3, 32, 32)

    def mean(x):
        return encode(x.float() / 255).mean((2, 3))

    wanted = mean(search.fitted(styles))
    assert (mean(painted) - wanted).norm() < 0.6 * (mean(plain) - wanted).norm()
    logits = head(encode(plain.float() / 255))
    target = logits.argmax(1)
    loss = torch.nn.functional.cross_entropy
    assert loss(head(encode(hurt.float() / 255)), target) > loss(logits, target)


def test_a_search_needs_a_network():
    with pytest.raises(ParameterError, match="advbn needs a network"):
        restyling_changes(["advbn"])


# ---- the commands


def test_corrupt_and_restyle_say_what_they_have_done(flat, tmp_path, run):
    words = ["corrupt", flat, tmp_path / "out", "--name", "fog,frost", "--severity", "1-2"]
    status, said, _ = run(*words)
    assert status == 0 and "12 images in 4 folders" in said and "kB, the source has" in said
    assert "12 images are written" in said.replace("12 images written", "12 images are written")
    assert "are all there already; 0 images written" in run(*words)[1]
    status, said, _ = run("restyle", flat, tmp_path / "styles", "--name", "sutro,edges")
    assert status == 0 and {p.name for p in (tmp_path / "styles").iterdir()} == {"sutro", "edges"}


@pytest.mark.parametrize(
    "words, said",
    [
        (["restyle", "photos", "out", "--name", "sutra"], "sutro"),
        (["restyle", "photos", "out", "--name", "colours", "--like", "nowhere"], "no picture and no folder"),
        (["restyle", "photos", "out", "--name", "advbn", "--model", "resnet5"], "no network 'resnet5'"),
        (["restyle", "photos", "photos", "--name", "edges"], "the folder of the pictures themselves"),
        (["corrupt", "photos", ".", "--name", "fog"], "holds photos, the pictures themselves"),
        (["corrupt", "photos", "photos/new", "--name", "fog"], "lies in photos"),
        (["corrupt", "photos", "out", "--name", "fog", "--format", "gif"], "allowed are source, png"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_slips(flat, refused, monkeypatch, words, said):
    monkeypatch.chdir(flat.parent)
    refused(words, said)
    assert not (flat.parent / "out").exists()


def test_the_command_searches_with_the_network_that_is_named_and_goes_on(
    flat, tmp_path, run, refused, monkeypatch
):
    torch.manual_seed(0)
    save_state(build_model("small_resnet", 3).state_dict(), tmp_path / "net.pt")
    from advbn import changing

    monkeypatch.setattr(
        changing, "searched", lambda encode, features, start: start
    )  # 100 steps are many here
    words = ["restyle", flat, tmp_path / "out", "--name", "advbn", "--model", "small_resnet"]
    words += ["--weights", tmp_path / "net.pt", "--after", "layer1"]
    assert "3 images written" in run(*words)[1] and "0 images written" in run(*words)[1]
    kept = json.loads((tmp_path / "out/settings.json").read_text())
    assert kept["network"] == f"small_resnet, {tmp_path / 'net.pt'}" and kept["after"] == "layer1"
    refused([*words, "--eps", "0.3"], "made with other settings: eps 1.1 and not 0.3")
    words[2] = tmp_path / "other"
    refused([*words[:-1], "layr1"], "no module 'layr1'; the nearest are 'layer1'")
    assert not list(tmp_path.glob("other*"))
