"""The numbers of a set of images, against cases whose answer is known; and the report."""

import json
import math

from common import metrics
from common.nearest_crystal import crystal_error
from data import ASPECT, THETA_MAX, render, to_u8

import numpy as np
import pytest
import torch

TILE = torch.arange(36)
KIND = TILE % 4  # the default conditions
THETA = TILE.double() / 35 * THETA_MAX


# ------------------------------------------------------------------------------ Wasserstein-1


def test_aspect_w1_is_a_fine_sum():
    x = np.random.default_rng(0).uniform(0.8, 1.3, 37)
    u = (np.arange(370_000) + 0.5) / 370_000
    brute = np.abs(np.sort(x)[(u * 37).astype(int)] - (0.75 + 0.6 * u)).mean()
    assert metrics.aspect_w1(x) == pytest.approx(brute, abs=1e-9)


def test_aspect_w1_by_hand():
    assert metrics.aspect_w1([1.05]) == pytest.approx(0.15)
    assert metrics.aspect_w1([0.75]) == pytest.approx(0.3)
    middle = 0.75 + 0.6 * (np.arange(10) + 0.5) / 10  # as evenly spread as ten can be
    assert metrics.aspect_w1(torch.tensor(middle)) == pytest.approx(0.6 / 40)


@pytest.mark.parametrize("nothing", [[], [math.nan]])
def test_aspect_w1_of_nothing_is_refused(nothing):
    with pytest.raises(ValueError, match="aspect"):
        metrics.aspect_w1(nothing)


def test_band_of_aspect_w1_holds_fresh_draws():
    assert metrics.aspect_w1_band(512) == pytest.approx(0.0155, abs=3e-4)
    assert metrics.aspect_w1_band(128) == pytest.approx(2 * metrics.aspect_w1_band(512), rel=0.05)  # like 1 / sqrt(n)
    rng = np.random.default_rng(9)
    distances = [metrics.aspect_w1(rng.uniform(*ASPECT, 128)) for _ in range(200)]
    assert 180 <= sum(d < metrics.aspect_w1_band(128) for d in distances) < 200


def test_mass_w1_by_hand():
    x = torch.tensor([0.1, 0.5, 0.3]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    assert metrics.mass_w1(x, x.flip(0)) == 0
    assert metrics.mass_w1(x, x + 0.2) == pytest.approx(0.2)
    assert metrics.mass_w1(x, x[:1]) == pytest.approx((0 + 0.4 + 0.2) / 3)  # sets of different size
    with pytest.raises(ValueError, match="at least one"):
        metrics.mass_w1(x, x[:0])


def test_mass_w1_is_the_distance_of_the_quantiles():
    torch.manual_seed(0)
    a = torch.rand(6, 1, 2, 2)
    b = torch.rand(4, 1, 2, 2) + 0.1
    u = (np.arange(12) + 0.5) / 12  # 6 and 4 both divide 12
    quantiles = [np.sort(v.mean((1, 2, 3)).numpy())[(u * len(v)).astype(int)] for v in (a, b)]
    assert metrics.mass_w1(a, b) == pytest.approx(np.abs(quantiles[0] - quantiles[1]).mean(), abs=1e-6)


# ------------------------------------------------------------------------------ spectra, blur, pixels


def spectrum(x):
    """The definition of radial_power, one frequency at a time."""
    H = x.shape[-1]
    total = np.zeros(H // 2 + 1)
    count = np.zeros(H // 2 + 1)
    images = np.round(x[:, 0].numpy() * 255)
    pixel = np.arange(H)
    for ky in range(-(H // 2), H - H // 2):
        for kx in range(-(H // 2), H - H // 2):
            r = int(math.sqrt(kx**2 + ky**2))
            if r <= H // 2:
                wave = np.exp(-2j * np.pi * (ky * pixel[:, None] + kx * pixel) / H)
                total[r] += (np.abs((images * wave).sum((1, 2))) ** 2).mean()
                count[r] += 1
    return total / count / (total / count).sum()


def test_fft_radial_l2_is_that_of_loops():
    torch.manual_seed(0)
    x = torch.rand(3, 1, 16, 16)
    y = torch.rand(2, 1, 16, 16) ** 2
    brute = np.sqrt(((spectrum(x) - spectrum(y)) ** 2).mean())
    assert metrics.fft_radial_l2(x, y) == pytest.approx(brute, rel=1e-9)


def test_fft_radial_l2_is_blind_to_shifts_to_numbers_and_below_8_bits():
    torch.manual_seed(0)
    x = torch.rand(3, 1, 16, 16)
    assert metrics.fft_radial_l2(x, x.roll(3, 2).repeat(50, 1, 1, 1)) < 1e-12
    assert metrics.fft_radial_l2(x, (x + 1e-5).clamp(0, 1)) < 1e-3
    assert len(metrics.radial_power(torch.rand(1, 1, 64, 64))) == 33
    with pytest.raises(ValueError, match="N, 1, H, H"):
        metrics.fft_radial_l2(x, x[:0])


def test_gradient_energy_falls_with_blur():
    x = torch.zeros(2, 1, 3, 4)
    x[0, 0, 1, 1] = 2.0  # four neighbours: 4 * 2^2
    x[1] = 0.5  # flat
    assert metrics.gradient_energy(x) == pytest.approx(8.0)
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    assert metrics.gradient_energy(blurred) < 1


def test_pixel_mmd2_tells_images_apart_and_needs_two():
    torch.manual_seed(0)
    x, y, other = torch.rand(3, 40, 1, 4, 4)
    same = metrics.pixel_mmd2(x, y)
    assert abs(same) < 0.02 < metrics.pixel_mmd2(other * 0.5, y)
    for few in (x[:1], y), (x, y[:1]):
        with pytest.raises(ValueError, match="two images"):
            metrics.pixel_mmd2(*few)


# ------------------------------------------------------------------------------ Frechet distance


def standardised(x):
    """Numbers [n, d] moved and stretched until their mean is 0 and their covariance I, to the digit."""
    x = x - x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_frechet_of_covariances_that_commute_is_the_closed_form():
    rng = np.random.default_rng(0)
    white = standardised(rng.standard_normal((400, 3)))
    s = np.array([1.0, 2.0, 0.5])
    t = np.array([3.0, 0.1, 0.5])
    m = np.array([0.3, -1.0, 2.0])
    Q = np.linalg.qr(rng.standard_normal((3, 3)))[0]

    by_hand = (m**2).sum() + ((s - t) ** 2).sum()  # tr(S^2 + T^2 - 2 S T) where S and T commute
    got = metrics.frechet(torch.from_numpy((white * s + m) @ Q.T), np.zeros(3), Q @ np.diag(t**2) @ Q.T)
    assert got == pytest.approx(by_hand, rel=1e-9)
    assert metrics.frechet(white * s, np.zeros(3), np.diag(s**2)) == pytest.approx(0, abs=1e-9)
    flat = white * [1, 1, 0]  # a singular covariance
    assert metrics.frechet(flat, np.zeros(3), np.diag([4.0, 1, 0])) == pytest.approx(1, rel=1e-9)


def test_frechet_does_not_need_covariances_that_commute():
    """Two covariances in two dimensions: tr (A B)^1/2 = (tr A B + 2 (det A B)^1/2)^1/2."""
    A = np.array([[2.0, 0.7], [0.7, 1.0]])
    B = np.array([[1.0, -0.4], [-0.4, 3.0]])
    x = standardised(np.random.default_rng(1).standard_normal((500, 2))) @ np.linalg.cholesky(A).T
    cross = math.sqrt(np.trace(A @ B) + 2 * math.sqrt(np.linalg.det(A @ B)))
    assert metrics.frechet(x, [0, 0], B) == pytest.approx(np.trace(A) + np.trace(B) - 2 * cross, rel=1e-9)
    assert metrics.frechet(x, [0, 0], A) == pytest.approx(0, abs=1e-9)


def test_what_frechet_refuses():
    x = np.random.default_rng(1).standard_normal((5, 2))
    for bad in (x[:1], x[:, 0], x * np.nan):
        with pytest.raises(ValueError, match="features"):
            metrics.frechet(bad, [0, 0], np.eye(2))
    with pytest.raises(ValueError, match="cannot be compared"):
        metrics.frechet(x, [0, 0, 0], np.eye(3))


# ------------------------------------------------------------------------------ floors and the report


def test_real_crystals_are_8_bit_crystals_with_fresh_aspects():
    kind = KIND.repeat(3)
    theta = THETA.repeat(3)
    real = metrics.real_crystals(kind, theta, seed=1)
    assert real.dtype == torch.float32
    assert torch.equal(real, to_u8(real).float() / 255)
    assert torch.equal(real, metrics.real_crystals(kind, theta, seed=1))

    fit = crystal_error(real, kind, theta)
    assert fit.error.max() < 2e-3
    assert len(fit.aspect[kind == 1].unique()) == 27


@pytest.mark.parametrize("metric", [metrics.mass_w1, metrics.fft_radial_l2])
def test_a_floor_is_that_of_fresh_aspects_at_the_same_conditions(metric):
    real = metrics.real_crystals(KIND, THETA, seed=1)
    floor = metrics.floor(metric, KIND, THETA)
    assert 0 < floor < 5e-3
    assert 10 * floor < metric(real, real * 0.5 + 0.1)
    assert floor == metrics.floor(metric, KIND, THETA) != metrics.floor(metric, KIND, THETA, seed=1)
    assert metrics.floor(metric, KIND[KIND != 1], THETA[KIND != 1]) == 0  # nothing else is random


def test_the_report_of_true_crystals_says_that_they_are():
    kind = torch.ones(110, dtype=torch.long)
    theta = THETA[:10].repeat(11)
    x = metrics.real_crystals(kind, theta, seed=8)
    numbers, fit, truth = metrics.crystal_report(x, kind, theta)

    assert numbers["n"] == numbers["n_rectangular"] == 110
    assert numbers["crystal_error_mean"] == pytest.approx(numbers["crystal_error_floor"], rel=0.05)
    assert numbers["crystal_error_mean"] == numbers["crystal_error_rectangular"] == float(fit.error.mean())
    assert numbers["share_below_0.05"] == 1
    assert numbers["aspect_w1"] < numbers["aspect_w1_band"]
    assert 0 < numbers["mass_w1"] < 5 * numbers["mass_w1_floor"]
    assert (truth - x).abs().max() < 0.01
    words = metrics.describe(numbers)
    assert "n = 110" in words and "95 % of 110 fresh draws" in words


def test_without_a_condition_the_report_is_about_the_nearest_of_any():
    x = render(KIND[:4], THETA[:4], 1.2).float()
    numbers, fit, _ = metrics.crystal_report(x)
    assert numbers["condition"] == "none"
    assert torch.equal(fit.kind, KIND[:4])
    assert not numbers.keys() & {"mass_w1", "fft_radial_l2", "aspect_w1"}
    assert "nearest of any type" in metrics.describe(numbers)


@pytest.mark.parametrize("kind", [0, 1])
def test_the_report_of_one_image_has_finite_numbers_only(kind):
    x = render([kind], 0.2, 1.1).float()
    for condition in ((), ([kind], [0.2])):
        numbers, _, truth = metrics.crystal_report(x, *map(torch.tensor, condition))
        json.dumps(numbers, allow_nan=False)
        assert truth.shape == x.shape
        assert "n = 1\n" in metrics.describe(numbers)


def test_captions_name_at_most_36_crystals():
    assert metrics.caption(1, math.radians(12), 0.93) == "rectangular 12°, b/a 0.93"
    assert metrics.captions([0, 1], [0.0, math.pi / 6]) == ["square 0°", "rectangular 30°"]
    aspect = torch.full((40,), 1.25)
    words = metrics.captions(torch.arange(40) % 4, torch.zeros(40), aspect)
    assert len(words) == 36
    assert words[:2] == ["square 0°", "rectangular 0°, b/a 1.25"]
