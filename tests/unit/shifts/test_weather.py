"""Frost, whose pictures are drawn."""

import torch

from advbn.shifts.weather import frost_textures


def test_small_frost_keeps_the_contrast():
    assert torch.allclose(frost_textures(True).std((2, 3)), frost_textures().std((2, 3)), rtol=0.05)
