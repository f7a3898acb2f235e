"""Augmentations: one draw a stack, determinism, and each against slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from manyheads.core.errors import ArgumentError
from manyheads.rl.pretraining import augment
from manyheads.rl.pretraining.augment import PUBLISHED_SECOND, PUBLISHED_STRONG, Augmentation


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, dtype=torch.float64):
    return torch.rand(*shape, generator=generator(9), dtype=dtype)


@pytest.mark.parametrize("strength", [PUBLISHED_STRONG, PUBLISHED_SECOND], ids=["strong", "second"])
def test_the_same_generator_gives_the_same_views_and_another_gives_others(strength):
    x = images(6, 3, 12, 12)
    assert torch.equal(strength.views(x, generator(1)), strength.views(x, generator(1)))
    assert not torch.equal(strength.views(x, generator(1)), strength.views(x, generator(2)))


def test_frames_of_a_stack_that_are_equal_stay_equal():
    x = images(5, 1, 12, 12).expand(-1, 3, -1, -1).contiguous()
    seen = PUBLISHED_SECOND.views(x, generator())
    assert torch.equal(seen[:, 0], seen[:, 1])
    assert torch.equal(seen[:, 0], seen[:, 2])


def test_a_triple_has_one_crop_and_one_jitter():
    x = images(4, 1, 3, 12, 12).expand(-1, 3, -1, -1, -1).contiguous()
    seen = PUBLISHED_STRONG.shared_views(x, generator())
    torch.testing.assert_close(seen[:, 0], seen[:, 1])
    torch.testing.assert_close(seen[:, 0], seen[:, 2])
    assert not torch.allclose(seen, x)


def test_the_defaults_change_nothing():
    x = images(2, 3, 8, 8)
    assert torch.equal(Augmentation().views(x), x)


def test_crops_have_area_and_ratio_in_range_and_lie_inside():
    maps = augment.random_crops(images(4000, 1, 2, 2), (0.2, 0.5), (3 / 4, 4 / 3), generator())
    width, height = maps[:, 0, 0], maps[:, 1, 1]
    area, ratio = width * height, width / height
    assert 0.2 - 1e-9 <= area.min() < 0.21
    assert 0.49 < area.max() <= 0.5 + 1e-9
    assert 3 / 4 - 1e-9 <= ratio.min() < 0.77
    assert 1.30 < ratio.max() <= 4 / 3 + 1e-9
    assert bool((maps[:, :, 2].abs() <= 1 - torch.stack([width, height], 1) + 1e-12).all())


def test_the_map_of_the_whole_image_is_the_identity_and_a_quarter_is_enlarged():
    x = images(1, 2, 8, 8)
    whole = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]], dtype=torch.float64)
    torch.testing.assert_close(augment.warp(x, whole), x)
    # the lower left quarter, whose pixels lie between those of the result
    quarter = torch.tensor([[[0.5, 0, -0.5], [0, 0.5, 0.5]]], dtype=torch.float64)
    found = augment.warp(x, quarter)[0, 0]
    for row, column in ((1, 1), (4, 2), (5, 6)):
        y, z = 4 + (row + 0.5) / 2 - 0.5, (column + 0.5) / 2 - 0.5
        top, left = math.floor(y), math.floor(z)
        expected = sum(
            (1 - abs(y - r)) * (1 - abs(z - c)) * x[0, 0, r, c] for r in (top, top + 1) for c in (left, left + 1)
        )
        torch.testing.assert_close(found[row, column], expected)


def test_blur_is_the_gaussian_of_slow_loops():
    x, sigma = images(1, 1, 9, 9), 0.8
    found = augment.blur(x, (sigma, sigma), 1.0)[0, 0]
    taps = [math.exp(-(t**2) / (2 * sigma**2)) for t in range(-3, 4)]
    for row, column in ((4, 4), (0, 0), (8, 2)):
        expected = 0.0
        for i, a in enumerate(taps):
            for j, b in enumerate(taps):
                r, c = min(max(row + i - 3, 0), 8), min(max(column + j - 3, 0), 8)
                expected += a * b / sum(taps) ** 2 * float(x[0, 0, r, c])
        assert float(found[row, column]) == pytest.approx(expected, rel=1e-6)


def test_jitter_is_linear_around_the_mean_of_the_observation():
    x = 0.4 + 0.2 * images(200, 3, 4, 4)
    found = augment.jitter(x, 0.2, 1.0, generator())
    mean = x.mean((1, 2, 3), keepdim=True)
    brightness = found.mean((1, 2, 3), keepdim=True) / mean
    contrast = ((found / brightness - mean) * (x - mean)).sum((1, 2, 3)) / (x - mean).square().sum((1, 2, 3))
    torch.testing.assert_close(found, brightness * (mean + contrast[:, None, None, None] * (x - mean)))
    for factor in (brightness, contrast):
        assert 0.8 - 1e-9 <= factor.min() < 0.82
        assert 1.18 < factor.max() <= 1.2 + 1e-9


def test_solarise_inverts_bright_pixels_of_the_chosen_share():
    x = images(2000, 1, 2, 2)
    found = augment.solarise(x, 0.5, 0.2, generator())
    changed = (found != x).flatten(1).any(1)
    assert 0.15 < changed.double().mean() < 0.25
    expected = torch.where(x >= 0.5, 1 - x, x)
    assert torch.equal(found[changed], expected[changed])


def test_a_share_of_images_is_left_as_it_is():
    x = images(2000, 1, 5, 5)
    for change in (
        lambda: augment.jitter(x, 0.4, 0.8, generator()),
        lambda: augment.blur(x, (0.5, 1.0), 0.8, generator()),
    ):
        assert np.isclose(float((change() != x).flatten(1).any(1).double().mean()), 0.8, atol=0.04)


@pytest.mark.parametrize("wrong", [{"scale": (0.0, 1.0)}, {"scale": (0.5, 1.5)}, {"blur": (2, 1)}, {"jitter": 2}])
def test_wrong_strengths_are_refused(wrong):
    with pytest.raises(ArgumentError, match="augmentation"):
        Augmentation(**wrong)
