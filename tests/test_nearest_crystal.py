"""crystal_error against cases whose answer is known, and against brute force."""

import math

from common import nearest_crystal
from common.nearest_crystal import crystal_error
from data import ASPECT, THETA_MAX, render, to_u8

import numpy as np
import pytest
import torch

TILE = torch.arange(36)
KIND = TILE % 4  # the default conditions
THETA = TILE.double() / 35 * THETA_MAX


def in_8_bits(x):
    return to_u8(x).double() / 255


def some_crystals(n, seed):
    """n true crystals, and what they are: type, angle, aspect."""
    rng = np.random.default_rng(seed)
    kind = torch.from_numpy(rng.integers(0, 4, n))
    theta = torch.from_numpy(rng.uniform(0, THETA_MAX, n))
    aspect = torch.from_numpy(rng.uniform(*ASPECT, n))
    return render(kind, theta, aspect), kind, theta, aspect


# ------------------------------------------------------------------------------ given a condition


def test_true_crystals_have_no_error_and_tell_their_aspect():
    x, kind, theta, aspect = some_crystals(80, seed=0)
    rect = kind == 1

    fit = crystal_error(x, kind, theta)
    assert fit.error.max() < 1e-7
    assert (fit.aspect - aspect)[rect].abs().max() < 1e-6
    assert (fit.aspect[~rect] == 1).all()
    assert torch.equal(fit.kind, kind)
    assert torch.equal(fit.theta, theta)

    rounded = crystal_error(in_8_bits(x).float(), kind, theta)
    assert rounded.error.max() < 2e-3
    assert (rounded.aspect - aspect)[rect].abs().max() < 1e-3


def test_aspects_at_the_ends_of_their_range_are_found():
    b = torch.tensor([0.75, 0.7501, 1.3499, 1.35], dtype=torch.float64)
    fit = crystal_error(render([1] * 4, 0.5, b), [1] * 4, [0.5] * 4)
    torch.testing.assert_close(fit.aspect, b, rtol=0, atol=1e-6)


def test_scale_black_images_and_8_bits():
    black = crystal_error(torch.zeros(36, 1, 64, 64), KIND, THETA).error
    assert black.mean() == pytest.approx(0.2375, abs=5e-4)
    assert black.square().mean().sqrt() == pytest.approx(0.2433, abs=5e-4)
    rounded = crystal_error(in_8_bits(render(KIND, THETA, 1.05)), KIND, THETA).error
    assert rounded.mean() == pytest.approx(0.001, abs=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_scale_a_tenth_of_a_pixel(axis):
    """The squared slope of one atom, summed over pixels, is pi / 2 whatever its width: that times atoms per pixel."""
    per_pixel = np.array([1, 1 / 1.05, 2 / math.sqrt(3), 4 / math.sqrt(3)]) / 100
    shift = torch.zeros(36, 300, 2)  # for more atoms than there are
    shift[:, :, axis] = 0.1
    moved = crystal_error(render(KIND, THETA, 1.05, shift=shift), KIND, THETA).error
    assert float(moved.mean()) == pytest.approx(0.0143, abs=2e-4)
    by_kind = [moved[k::4].mean() for k in range(4)]
    np.testing.assert_allclose(by_kind, 0.1 * np.sqrt(np.pi / 2 * per_pixel), rtol=0.05)


def test_types_0_2_3_are_one_image():
    other = KIND != 1
    x = some_crystals(int(other.sum()), seed=1)[0]
    rmse = (x - render(KIND[other], THETA[other])).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(crystal_error(x, KIND[other], THETA[other]).error, rmse)


def test_type_1_is_the_minimum_over_aspect():
    """Against 2,000 aspects, on images that no crystal fits: noisy, random, black, and of another angle."""
    torch.manual_seed(0)
    theta = 0.4
    true, other = render([1, 1], [theta, theta + 0.02], [0.9, 1.2])
    unclear = (true + 0.3 * torch.randn(1, 64, 64)).clamp(0, 1)
    x = torch.stack([unclear, torch.rand(1, 64, 64).double(), torch.zeros_like(true), other])

    aspects = torch.linspace(*ASPECT, 2001, dtype=torch.float64)
    curve = torch.cat([render([1] * len(b), theta, b) for b in aspects.split(64)]).flatten(1)
    brute = torch.stack([(image.flatten() - curve).square().mean(1).sqrt().min() for image in x])

    error = crystal_error(x, [1] * 4, [theta] * 4).error
    assert (error <= brute + 1e-9).all()
    torch.testing.assert_close(error, brute, rtol=0, atol=1e-5)


def test_wrong_conditions_show():
    kind = [3, 0, 2, 1]
    x = render(kind, 0.0, 1.1)
    turned = crystal_error(x, kind, [THETA_MAX] * 4).error
    assert turned[[0, 1, 3]].min() > 0.2  # not the same image,
    assert turned[2] < 1e-9  # but for a triangular lattice
    assert crystal_error(x, [2, 3, 0, 3], [0.0] * 4).error.min() > 0.15


# ------------------------------------------------------------------------------ of any crystal


def test_any_true_crystal_is_found():
    x, kind, theta, aspect = some_crystals(96, seed=2)
    fit = crystal_error(in_8_bits(x).float())
    assert fit.error.max() < 2e-3
    assert torch.equal(fit.kind, kind)

    found = render(fit.kind, fit.theta, fit.aspect)  # images, not angles: 0 and pi/3 may be the same
    assert (found - x).square().mean((1, 2, 3)).sqrt().max() < 1e-3
    rect = kind == 1
    assert (fit.theta - theta)[rect].abs().max() < 1e-3
    assert (fit.aspect - aspect)[rect].abs().max() < 1e-3


def test_corners_of_the_range_are_found():
    theta = torch.tensor([0.0, THETA_MAX], dtype=torch.float64).repeat(5)
    kind = torch.tensor([0, 1, 1, 2, 3]).repeat_interleave(2)
    aspect = torch.ones(10, dtype=torch.float64)
    aspect[2:4], aspect[4:6] = ASPECT
    x = render(kind, theta, aspect)

    fit = crystal_error(x)
    assert fit.error.max() < 1e-4
    assert torch.equal(fit.kind, kind)
    assert (render(fit.kind, fit.theta, fit.aspect) - x).abs().max() < 1e-3


@pytest.mark.parametrize("condition", [(), ([0, 1, 2, 3], [0.1, 0.5, 0.9, 0.3])])
def test_the_error_is_the_distance_to_the_crystal_that_was_found(condition):
    noise = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    x = (render([0, 1, 2, 3], [0.1, 0.5, 0.9, 0.3], 1.2) + 0.1 * noise).clamp(0, 1)
    fit = crystal_error(x, *condition)
    distance = (x - render(fit.kind, fit.theta, fit.aspect)).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(fit.error, distance)


def test_the_nearest_of_any_is_at_least_as_near_as_that_of_the_condition():
    torch.manual_seed(1)
    kind, theta = KIND[:12], THETA[:12]
    truth = render(kind, theta, 1.2)
    x = (truth + 0.2 * torch.randn_like(truth)).clamp(0, 1)
    free = crystal_error(x)
    conditional = crystal_error(x, kind, theta)
    assert (free.error < 1.01 * conditional.error).all()  # 1 %: what a rectangular crystal must win by to be one
    assert torch.equal(free.kind, kind)
    assert (free.theta - theta)[kind != 2].abs().max() < 0.02


# ------------------------------------------------------------------------------ sizes and mistakes


def test_the_result_does_not_depend_on_the_chunks(monkeypatch):
    x, kind, theta, _ = some_crystals(11, seed=3)
    at_once = crystal_error(x, kind, theta)
    monkeypatch.setattr(nearest_crystal, "CHUNK", 4)
    for a, b in zip(at_once, crystal_error(x, kind, theta), strict=True):
        torch.testing.assert_close(a, b)


def test_one_image_and_none():
    x, kind, theta, _ = some_crystals(1, seed=4)
    assert [len(column) for column in crystal_error(x, kind, theta)] == [1] * 4
    assert [len(column) for column in crystal_error(x[:0])] == [0] * 4


@pytest.mark.parametrize("x, condition, says", [
    (torch.zeros(2, 64, 64), (), "N, 1, H, H"),
    (torch.zeros(2, 1, 64, 32), (), "N, 1, H, H"),
    (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), (), "float"),
    (torch.full((2, 1, 8, 8), -1.0), (), r"\[0, 1\]"),
    (torch.full((2, 1, 8, 8), math.nan), (), r"\[0, 1\]"),
    (torch.zeros(2, 1, 64, 64), ([0, 1], None), "neither"),
    (torch.zeros(2, 1, 64, 64), ([0, 4], [0.0, 0.0]), "0 to 3"),
    (torch.zeros(2, 1, 64, 64), ([0], [0.0]), r"\[2\]"),
    (torch.zeros(2, 1, 64, 64), ([0, 1], [0.0, 1.2]), "pi/3"),
    (torch.zeros(2, 1, 64, 64), ([0, 1], [0.0, math.nan]), "pi/3"),
])
def test_what_crystal_error_refuses(x, condition, says):
    with pytest.raises(ValueError, match=says):
        crystal_error(x, *condition)
