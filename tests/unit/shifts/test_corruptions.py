"""The corruptions against the maintained reference on real photographs, and their own promises."""

import math
import re
from pathlib import Path

import imagecorruptions
import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from advbn.images.batches import read_images
from advbn.shifts.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt, corruption_settings
from advbn.shifts.noise import Randomness

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
    "camera.png",
    "coins.png",
    "clock_motion.png",
)


DETERMINISTIC = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
)


LOOSE = {"motion_blur": (1.0, 0.08), "fog": (1.0, 0.08), "spatter": (1.0, 0.08), "frost": (1.5, 0.12)}


UNORDERED = ("glass_blur", "frost", "saturate")


SEEDS = 6  # of each random corruption; frost, which draws among six pictures, gets twice as many


ALL = CORRUPTIONS + EXTRA_CORRUPTIONS


@pytest.fixture(scope="module")
def photographs():
    folder = Path(skimage.data.__file__).parent
    images = [v2.functional.pil_to_tensor(Image.open(folder / name).convert("RGB")) for name in PHOTOGRAPHS]
    return torch.stack(
        [v2.functional.center_crop(v2.functional.resize(i, 224, antialias=True), 224) for i in images]
    )


def reference(images, name, severity, seed=0):
    np.random.seed(seed)
    own = name in ("impulse_noise", "glass_blur")  # which NumPy's global seed does not reach
    made = [
        imagecorruptions.corrupt(
            i.permute(1, 2, 0).numpy(), severity, name, **({"seed": seed * 1000 + n} if own else {})
        )
        for n, i in enumerate(images)
    ]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def psnr(a, b):
    errors = (a.double() - b.double()).square().mean((1, 2, 3)).clamp(min=1e-6)
    return (10 * torch.log10(255**2 / errors)).mean().item()


@pytest.mark.parametrize(
    "severity", [pytest.param(s, marks=[] if s == 3 else pytest.mark.slow) for s in range(1, 6)]
)
@pytest.mark.parametrize("name", ALL)
def test_parity_at_224_pixels(photographs, name, severity):
    if name in DETERMINISTIC:
        ours, theirs = corrupt(photographs, name, severity), reference(photographs, name, severity)
        assert (ours.double() - theirs.double()).abs().mean() < 2
        return
    seeds = SEEDS * (2 if name == "frost" else 1)
    decibel, fraction = LOOSE.get(name, (0.5, 0.03))
    ours = [corrupt(photographs, name, severity, seed=s) for s in range(seeds)]
    theirs = [reference(photographs, name, severity, seed=s) for s in range(seeds)]
    assert (
        abs(np.mean([psnr(photographs, o) for o in ours]) - np.mean([psnr(photographs, t) for t in theirs]))
        < decibel
    )
    ours, theirs = torch.cat(ours).double(), torch.cat(theirs).double()
    assert torch.allclose(ours.mean((0, 2, 3)), theirs.mean((0, 2, 3)), rtol=fraction)
    assert torch.allclose(ours.std((0, 2, 3)), theirs.std((0, 2, 3)), rtol=fraction)


@pytest.mark.parametrize("severity", range(1, 6))
def test_snow_of_the_same_random_numbers_is_the_references(photographs, severity, monkeypatch):
    "But for the border: the reference blows an enlarged layer of 225 pixels and cuts it then."
    random = Randomness(0, range(4), "snow", severity)
    noise, degrees = random.normal(1, 224, 224)[:, 0].double().numpy(), random.uniform(-135, -45).tolist()
    ours = corrupt(photographs[:4], "snow", severity)
    for image, numbers, angle, made in zip(photographs, noise, degrees, ours):
        monkeypatch.setattr(np.random, "normal", lambda size, loc, scale: loc + scale * numbers)
        monkeypatch.setattr(np.random, "uniform", lambda low, high: angle)
        theirs = imagecorruptions.corrupt(image.permute(1, 2, 0).numpy(), severity, "snow")
        apart = np.abs(made.permute(1, 2, 0).numpy().astype(int) - theirs)
        assert apart[30:-30, 30:-30].max() <= 1


def texture_statistics(crops):
    """Deviations of the brightness of `[N, 3, H, W]` in the octaves around 2^-5 to 2^-1 cycles a pixel, and
    how much 9 x 9 pixels agree on a direction, 0 to 1."""
    light = (crops.double() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    h, w = light.shape[-2:]
    window = torch.outer(torch.hann_window(h, dtype=torch.float64), torch.hann_window(w, dtype=torch.float64))
    power = torch.fft.fft2((light - light.mean((2, 3), keepdim=True)) * window).abs().square().mean(
        (0, 1)
    ) / (window.square().sum() * h * w)
    octave = torch.log2(torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.fftfreq(w)))
    deviations = torch.stack(
        [power[(octave >= k - 0.5) & (octave < k + 0.5)].sum() for k in range(-5, 0)]
    ).sqrt()
    across, down = (light - light.roll(1, axis) for axis in (3, 2))
    xx, yy, xy = (torch.nn.functional.avg_pool2d(p, 9, 1) for p in (across**2, down**2, across * down))
    return deviations, (((xx - yy) ** 2 + 4 * xy**2).sqrt().sum() / (xx + yy).sum()).item()


def test_frost_has_the_contrasts_and_the_directions_of_the_photographs():
    black = torch.zeros(120, 3, 224, 224, dtype=torch.uint8)
    (ours, along), (theirs, along_theirs) = (
        texture_statistics(f(black, "frost", 5)) for f in (corrupt, reference)
    )
    assert torch.allclose(ours, theirs, rtol=0.2)
    assert abs(along - along_theirs) < 0.1, (
        "smooth noise is easier for a network, a weave of parallel needles harder"
    )


@pytest.mark.parametrize("size", [pytest.param(224, marks=pytest.mark.slow), 40])
@pytest.mark.parametrize("name", ALL)
def test_severities_are_distinct_and_ordered(photographs, root, name, size):
    images = photographs if size == 224 else read_images(root / "data/openmoji").images[::60]
    made = [corrupt(images, name, s) for s in range(1, 6)]
    assert all(not torch.equal(made[i], made[j]) for i in range(5) for j in range(i))
    small_and_mixed = size == 40 and name in (
        "elastic_transform",
        "spatter",
        "motion_blur",
    )  # whose settings do not grow together
    if name not in UNORDERED and not small_and_mixed:
        seeds = range(
            1 if name in DETERMINISTIC else 24 if name == "fog" else 4
        )  # clouds differ most from seed to seed
        values = [
            np.mean([psnr(images, corrupt(images, name, s, seed=k)) for k in seeds]) for s in range(1, 6)
        ]
        assert all(a > b for a, b in zip(values, values[1:])), values


@pytest.mark.parametrize("name", ALL)
def test_an_image_does_not_know_its_batch(photographs, name):
    images = photographs[:5, :, :64, :80].contiguous()
    whole = corrupt(images, name, 4, seed=3, indices=[10, 20, 30, 40, 50])
    order = [3, 0, 4]
    part = corrupt(images[order], name, 4, seed=3, indices=[40, 10, 50], batch_size=2)
    assert torch.equal(whole[order], part)
    assert whole.dtype == torch.uint8 and whole.shape == images.shape


@pytest.mark.parametrize("name", [n for n in ALL if n not in DETERMINISTIC])
def test_seed_and_index_matter(photographs, name):
    image = photographs[:1]
    made = [corrupt(image, name, 3, seed=s, indices=[i]) for s, i in ((0, 0), (1, 0), (0, 1))]
    assert not torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert torch.equal(made[0], corrupt(image, name, 3, seed=0, indices=[0]))


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(ALL),
    severity=st.integers(1, 5),
    h=st.integers(32, 150),
    w=st.integers(32, 150),
    n=st.integers(0, 3),
)
def test_any_size_works(name, severity, h, w, n):
    images = torch.randint(256, (n, 3, h, w), dtype=torch.uint8)
    before = images.clone()
    out = corrupt(images, name, severity)
    assert out.shape == images.shape and out.dtype == torch.uint8 and torch.equal(images, before)


def test_scales():
    assert corruption_settings("contrast", 1, 32, 32) == corruption_settings("contrast", 1, 120, 300) == 0.75
    assert corruption_settings("contrast", 1, 121, 300) == corruption_settings("contrast", 1, 500, 400) == 0.4


def test_global_random_state_is_not_touched(photographs):
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    for name in ALL:
        corrupt(photographs[:1], name, 1)
    assert torch.equal(torch_state, torch.random.get_rng_state()) and np.array_equal(
        numpy_state, np.random.get_state()[1]
    )


GOOD = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)


@pytest.mark.parametrize(
    "arguments, keywords, words",
    [
        ((GOOD.float(), "fog", 1), {}, "uint8 tensor"),
        ((GOOD[0], "fog", 1), {}, "uint8 tensor"),
        ((GOOD[:, :1], "fog", 1), {}, "uint8 tensor"),
        ((GOOD.numpy(), "fog", 1), {}, "ndarray; allowed is"),
        ((GOOD, "fogg", 1), {}, "nearest are fog"),
        ((GOOD, "", 1), {}, "no corruption ''"),
        ((GOOD, "fog", 0), {}, "severity is 0"),
        ((GOOD, "fog", 6), {}, "severity is 6"),
        ((GOOD, "fog", 1.5), {}, "severity is 1.5"),
        ((GOOD, "fog", 1.0), {}, "severity is 1.0"),
        ((GOOD, "fog", True), {}, "severity is True"),
        ((GOOD[..., :20], "fog", 1), {}, "20 x 40 pixels; allowed are 32"),
        ((GOOD, "fog", 1), {"indices": [1]}, "2 images and 1 indices"),
        ((GOOD, "fog", 1), {"indices": 5}, "indices are 5; allowed are"),
        ((GOOD, "fog", 1), {"indices": torch.tensor(5)}, r"indices are tensor\(5\)"),
        ((GOOD, "fog", 1), {"indices": [2, 1.5]}, r"indices\[1\] is 1.5; allowed is a whole number"),
        ((GOOD, "fog", 1), {"indices": torch.tensor([1.0, 2.0])}, r"indices\[0\] is tensor\(1.\)"),
        ((GOOD, "fog", 1), {"indices": "ab"}, r"indices\[0\] is 'a'"),
        ((GOOD, ["fog"], 1), {}, r"name is \['fog'\]; allowed is a string, one of gaussian_noise"),
        ((GOOD, None, 1), {}, "name is None"),
        *(
            ((GOOD, "fog", 1), {"batch_size": b}, f"batch_size is {b}; allowed is a whole number from 1")
            for b in (-1, 0, 1.5, True, None)
        ),
        *(
            ((GOOD, "fog", 1), {"seed": s}, "seed is .*; allowed is a whole number")
            for s in (1.0, True, None, "x", torch.tensor(1.0), torch.tensor([1, 2]))
        ),
    ],
)
def test_bad_input(arguments, keywords, words):
    with pytest.raises(ValueError, match=words) as caught:
        corrupt(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def test_whole_numbers_of_every_kind_are_the_same(photographs):
    images = photographs[:2, :, :40, :40]
    plain = corrupt(images, "shot_noise", 2, seed=3, indices=[5, 7], batch_size=1)
    for kind in (np.int64, np.uint8, torch.tensor):
        assert torch.equal(
            corrupt(images, "shot_noise", 2, seed=kind(3), indices=[kind(5), kind(7)], batch_size=kind(1)),
            plain,
        )
    for indices in (np.array([5, 7]), torch.tensor([5, 7]), (5, 7), range(5, 8, 2)):
        assert torch.equal(corrupt(images, "shot_noise", 2, seed=3, indices=indices), plain)


def test_the_docstring_has_every_number_and_its_source():
    rows = re.findall(r"^\| (\w+) +\| (large|small) \| (.*) \|$", corrupt.__doc__, re.M)
    assert [r[:2] for r in rows] == [(name, scale) for name in ALL for scale in ("large", "small")]
    for name, scale, numbers in rows:
        for severity, cell in enumerate(numbers.split(" | "), 1):
            found = corruption_settings(name, severity, *{"large": (121, 300), "small": (300, 120)}[scale])
            found = found[:2] if name == "frost" else found if isinstance(found, tuple) else (found,)
            assert tuple(map(float, cell.split(", "))) == found
    for words in (
        "up to 120 pixels take the row `small`",
        "whatever the longer one",
        "Hendrycks and Dietterich 2019",
        "github.com/hendrycks/robustness",
    ):
        assert words in corrupt.__doc__


@pytest.mark.cuda
@pytest.mark.parametrize("name", ALL)
def test_cuda_agrees_with_the_cpu(cuda, photographs, name):
    ours, theirs = corrupt(photographs.to(cuda), name, 3).cpu(), corrupt(photographs, name, 3)
    if name in DETERMINISTIC:
        assert (ours.double() - theirs.double()).abs().mean() < 0.1
    else:
        assert math.isclose(psnr(photographs, ours), psnr(photographs, theirs), abs_tol=1.0)
