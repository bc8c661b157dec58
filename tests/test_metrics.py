"""The numbers against cases whose answer is known, and against brute force."""

import math

import numpy as np
import pytest
import torch

import metrics
from data import ASPECT, THETA_MAX, crystal_labels, render, to_u8
from metrics import ExactDenoiser, aspect_w1, aspect_w1_band, crystal_error, fft_radial_l2, mass_w1

TILE = torch.arange(36)
KIND, THETA = TILE % 4, (TILE % 36).double() / 35 * THETA_MAX  # the default conditions


def in_8_bits(x):
    return to_u8(x).double() / 255


def held_out(n, start=0):
    labels = crystal_labels(start, n, stream=1)
    return render(**labels), labels


# ------------------------------------------------------------------------------------- crystal error, given a condition


def test_true_crystals_have_no_error_and_tell_their_aspect():
    x, truth = held_out(80)
    fit, rect = crystal_error(x, truth["kind"], truth["theta"]), truth["kind"] == 1
    assert fit.error.max() < 1e-7
    assert (fit.aspect - truth["aspect"])[rect].abs().max() < 1e-6 and (fit.aspect[~rect] == 1).all()
    assert torch.equal(fit.kind, truth["kind"]) and torch.equal(fit.theta, truth["theta"])
    fit = crystal_error(in_8_bits(x).float(), truth["kind"], truth["theta"])
    assert fit.error.max() < 2e-3 and (fit.aspect - truth["aspect"])[rect].abs().max() < 1e-3


def test_aspects_at_the_ends_of_their_range():
    b = torch.tensor([0.75, 0.7501, 1.3499, 1.35], dtype=torch.float64)
    fit = crystal_error(render([1] * 4, 0.5, b), [1] * 4, [0.5] * 4)
    torch.testing.assert_close(fit.aspect, b, rtol=0, atol=1e-6)


def test_what_the_scale_is():
    """A black image 0.238 on average over the default conditions, a tenth of a pixel 0.014, 8 bits 0.001."""
    black = crystal_error(torch.zeros(36, 1, 64, 64), KIND, THETA).error
    assert black.mean() == pytest.approx(0.2375, abs=5e-4)
    assert black.square().mean().sqrt() == pytest.approx(0.2433, abs=5e-4)
    x = render(KIND, THETA, 1.05)
    assert crystal_error(in_8_bits(x), KIND, THETA).error.mean() == pytest.approx(0.001, abs=1e-4)
    # The squared slope of one atom, summed over pixels, is pi / 2, whatever its width: that times the atoms per pixel.
    per_pixel = np.array([1, 1 / 1.05, 2 / math.sqrt(3), 4 / math.sqrt(3)]) / 100
    for axis in (0, 1):
        shift = torch.zeros(36, 300, 2)  # for more atoms than there are
        shift[:, :, axis] = 0.1
        moved = crystal_error(render(KIND, THETA, 1.05, shift=shift), KIND, THETA).error
        assert float(moved.mean()) == pytest.approx(0.0143, abs=2e-4)
        by_kind = [moved[k::4].mean() for k in range(4)]
        np.testing.assert_allclose(by_kind, 0.1 * np.sqrt(np.pi / 2 * per_pixel), rtol=0.05)


def test_types_0_2_3_are_one_image():
    x, other = held_out(40)[0], [k for k in range(36) if KIND[k] != 1]
    truth = render(KIND[other], THETA[other])
    rmse = (x[: len(other)] - truth).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(crystal_error(x[: len(other)], KIND[other], THETA[other]).error, rmse)


def test_type_1_is_the_minimum_over_aspect():
    """Against 2,000 aspects, on images that no crystal fits: noisy, random, black, and of another angle."""
    torch.manual_seed(0)
    theta = 0.4
    true, other = render([1, 1], [theta, theta + 0.02], [0.9, 1.2])
    unclear = (true + 0.3 * torch.randn(1, 64, 64)).clamp(0, 1)
    x = torch.stack([unclear, torch.rand(1, 64, 64).double(), torch.zeros_like(true), other])
    aspects = torch.linspace(*ASPECT, 2001, dtype=torch.float64)
    curve = torch.cat([render([1] * len(b), theta, b) for b in aspects.split(64)]).flatten(1)
    brute = torch.stack([(x[i].flatten() - curve).square().mean(1).sqrt().min() for i in range(len(x))])
    fit = crystal_error(x, [1] * 4, [theta] * 4)
    assert (fit.error <= brute + 1e-9).all()
    torch.testing.assert_close(fit.error, brute, rtol=0, atol=1e-5)


def test_wrong_conditions_show():
    x = render([3, 0, 2, 1], 0.0, 1.1)
    assert crystal_error(x, [3, 0, 2, 1], [THETA_MAX] * 4).error[[0, 1, 3]].min() > 0.2  # not the same image,
    assert crystal_error(x, [3, 0, 2, 1], [THETA_MAX] * 4).error[2] < 1e-9  # but for a triangular lattice
    assert crystal_error(x, [2, 3, 0, 3], [0.0] * 4).error.min() > 0.15


# ---------------------------------------------------------------------------------------- crystal error, of any crystal


def test_any_true_crystal_is_found():
    x, truth = held_out(96, start=1000)
    fit = crystal_error(in_8_bits(x).float())
    assert fit.error.max() < 2e-3
    assert torch.equal(fit.kind, truth["kind"])
    found = render(fit.kind, fit.theta, fit.aspect)  # images, not angles: 0 and pi/3 may be the same
    assert (found - x).square().mean((1, 2, 3)).sqrt().max() < 1e-3
    rect = truth["kind"] == 1
    for name in ("theta", "aspect"):
        assert (getattr(fit, name) - truth[name])[rect].abs().max() < 1e-3


def test_corners_of_the_range_are_found():
    theta = torch.tensor([0.0, THETA_MAX], dtype=torch.float64).repeat(5)
    kind, aspect = torch.tensor([0, 1, 1, 2, 3]).repeat_interleave(2), torch.ones(10, dtype=torch.float64)
    aspect[2:4], aspect[4:6] = ASPECT
    x = render(kind, theta, aspect)
    fit = crystal_error(x)
    assert fit.error.max() < 1e-4 and torch.equal(fit.kind, kind)
    assert (render(fit.kind, fit.theta, fit.aspect) - x).abs().max() < 1e-3


def test_the_error_is_the_distance_to_the_crystal_that_was_found():
    noise = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    x = (render([0, 1, 2, 3], [0.1, 0.5, 0.9, 0.3], 1.2) + 0.1 * noise).clamp(0, 1)
    for told in ((), ([0, 1, 2, 3], [0.1, 0.5, 0.9, 0.3])):
        fit = crystal_error(x, *told)
        distance = (x - render(fit.kind, fit.theta, fit.aspect)).square().mean((1, 2, 3)).sqrt()
        torch.testing.assert_close(fit.error, distance)


def test_any_crystal_is_at_least_as_near_as_the_one_asked_for():
    torch.manual_seed(1)
    truth = render(KIND[:12], THETA[:12], 1.2)
    x = (truth + 0.2 * torch.randn_like(truth)).clamp(0, 1)
    free, asked = crystal_error(x), crystal_error(x, KIND[:12], THETA[:12])
    assert (free.error < 1.01 * asked.error).all()  # 1 %: what a rectangular crystal must win by to be one
    assert torch.equal(free.kind, KIND[:12]) and (free.theta - THETA[:12])[KIND[:12] != 2].abs().max() < 0.02


def test_memory_and_order_do_not_depend_on_n(monkeypatch):
    x, truth = held_out(11)
    once = crystal_error(x, truth["kind"], truth["theta"])
    monkeypatch.setattr(metrics, "CHUNK", 4)
    for a, b in zip(once, crystal_error(x, truth["kind"], truth["theta"]), strict=True):
        torch.testing.assert_close(a, b)
    assert [len(column) for column in crystal_error(x[:0])] == [0] * 4


@pytest.mark.parametrize("x, condition, says", [
    (torch.zeros(2, 64, 64), (), "N, 1, H, H"), (torch.zeros(2, 1, 64, 32), (), "N, 1, H, H"),
    (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), (), "float"), (torch.full((2, 1, 8, 8), -1.0), (), r"\[0, 1\]"),
    (torch.full((2, 1, 8, 8), math.nan), (), r"\[0, 1\]"), (torch.zeros(2, 1, 64, 64), ([0, 1], None), "neither"),
    (torch.zeros(2, 1, 64, 64), ([0, 4], [0.0, 0.0]), "0 to 3"), (torch.zeros(2, 1, 64, 64), ([0], [0.0]), r"\[2\]"),
    (torch.zeros(2, 1, 64, 64), ([0, 1], [0.0, 1.2]), "pi/3"),
    (torch.zeros(2, 1, 64, 64), ([0, 1], [0.0, math.nan]), "pi/3"),
])
def test_what_crystal_error_refuses(x, condition, says):
    with pytest.raises(ValueError, match=says):
        crystal_error(x, *condition)


# ------------------------------------------------------------------------------------------------------- sets of images


def test_aspect_w1_against_a_fine_sum():
    x = np.random.default_rng(0).uniform(0.8, 1.3, 37)
    u = (np.arange(370_000) + 0.5) / 370_000
    brute = np.abs(np.sort(x)[(u * 37).astype(int)] - (0.75 + 0.6 * u)).mean()
    assert aspect_w1(x) == pytest.approx(brute, abs=1e-9)
    assert aspect_w1([1.05]) == pytest.approx(0.15) and aspect_w1([0.75]) == pytest.approx(0.3)
    middle = 0.75 + 0.6 * (np.arange(10) + 0.5) / 10  # as evenly spread as ten can be
    assert aspect_w1(torch.tensor(middle)) == pytest.approx(0.6 / 40)
    for nothing in ([], [math.nan]):
        with pytest.raises(ValueError, match="aspect"):
            aspect_w1(nothing)


def test_band_of_aspect_w1():
    assert aspect_w1_band(512) == pytest.approx(0.0155, abs=3e-4)
    assert aspect_w1_band(128) == pytest.approx(2 * aspect_w1_band(512), rel=0.05)  # it goes like 1 / sqrt(n)
    aspect = [crystal_labels(512 * i, 512, seed=9, stream=1)["aspect"] for i in range(40)]
    assert sum(aspect_w1(a) < aspect_w1_band(512) for a in aspect) >= 34


def test_mass_w1():
    x = torch.tensor([0.1, 0.5, 0.3]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    assert mass_w1(x, x.flip(0)) == 0
    assert mass_w1(x, x + 0.2) == pytest.approx(0.2)
    assert mass_w1(x, x[:1]) == pytest.approx((0 + 0.4 + 0.2) / 3)  # sets of different size
    torch.manual_seed(0)
    a, b = torch.rand(6, 1, 2, 2), torch.rand(4, 1, 2, 2) + 0.1
    u = (np.arange(12) + 0.5) / 12  # 6 and 4 both divide 12
    quantiles = [np.sort(v.mean((1, 2, 3)).numpy())[(u * len(v)).astype(int)] for v in (a, b)]
    assert mass_w1(a, b) == pytest.approx(np.abs(quantiles[0] - quantiles[1]).mean(), abs=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        mass_w1(a, b[:0])


def test_fft_radial_l2_against_loops():
    def spectrum(x):  # the definition, one frequency at a time
        H, total, count = x.shape[-1], np.zeros(x.shape[-1] // 2 + 1), np.zeros(x.shape[-1] // 2 + 1)
        images = np.round(x[:, 0].numpy() * 255)
        for ky in range(-(H // 2), H - H // 2):
            for kx in range(-(H // 2), H - H // 2):
                r = int(math.sqrt(kx**2 + ky**2))
                if r <= H // 2:
                    wave = np.exp(-2j * np.pi * (ky * np.arange(H)[:, None] + kx * np.arange(H)) / H)
                    total[r] += (np.abs((images * wave).sum((1, 2))) ** 2).mean()
                    count[r] += 1
        return total / count / (total / count).sum()

    torch.manual_seed(0)
    x, y = torch.rand(3, 1, 16, 16), torch.rand(2, 1, 16, 16) ** 2
    brute = np.sqrt(((spectrum(x) - spectrum(y)) ** 2).mean())
    assert fft_radial_l2(x, y) == pytest.approx(brute, rel=1e-9)
    assert fft_radial_l2(x, x.roll(3, 2).repeat(50, 1, 1, 1)) < 1e-12  # blind to shifts, and to the number of images
    assert fft_radial_l2(x, (x + 1e-5).clamp(0, 1)) < 1e-3  # in 8 bits
    assert len(metrics._radial_power(torch.rand(1, 1, 64, 64))) == 33
    with pytest.raises(ValueError, match="N, 1, H, H"):
        fft_radial_l2(x, y[:0])


def test_frechet_of_gaussians_is_the_closed_form():
    """Features with exactly the mean and covariance asked for; commuting covariances have roots known by hand."""
    rng = np.random.default_rng(0)
    white = rng.standard_normal((400, 3))
    white -= white.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T  # covariance I to the digit
    s, t, m = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.1, 0.5]), np.array([0.3, -1.0, 2.0])
    Q = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    by_hand = (m**2).sum() + ((s - t) ** 2).sum()  # tr(S^2 + T^2 - 2 S T) where S and T commute
    got = metrics.frechet(torch.from_numpy((white * s + m) @ Q.T), np.zeros(3), Q @ np.diag(t**2) @ Q.T)
    assert got == pytest.approx(by_hand, rel=1e-9)
    assert metrics.frechet(white * s, np.zeros(3), np.diag(s**2)) == pytest.approx(0, abs=1e-9)
    flat = white * [1, 1, 0]  # a singular covariance
    assert metrics.frechet(flat, np.zeros(3), np.diag([4.0, 1, 0])) == pytest.approx(1, rel=1e-9)


def test_frechet_does_not_need_covariances_that_commute():
    """Two covariances in two dimensions: tr (A B)^1/2 = (tr A B + 2 (det A B)^1/2)^1/2."""
    A, B = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    x = np.random.default_rng(1).standard_normal((500, 2))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T @ np.linalg.cholesky(A).T
    cross = math.sqrt(np.trace(A @ B) + 2 * math.sqrt(np.linalg.det(A @ B)))
    assert metrics.frechet(x, [0, 0], B) == pytest.approx(np.trace(A) + np.trace(B) - 2 * cross, rel=1e-9)
    assert metrics.frechet(x, [0, 0], A) == pytest.approx(0, abs=1e-9)
    for bad in (x[:1], x[:, 0], x * np.nan):
        with pytest.raises(ValueError, match="features"):
            metrics.frechet(bad, [0, 0], A)
    with pytest.raises(ValueError, match="cannot be compared"):
        metrics.frechet(x, [0, 0, 0], np.eye(3))


def test_gradient_energy():
    x = torch.zeros(2, 1, 3, 4)
    x[0, 0, 1, 1] = 2.0  # four neighbours: 4 * 2^2
    x[1] = 0.5  # flat
    assert metrics.gradient_energy(x) == pytest.approx(8.0)
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    assert metrics.gradient_energy(blurred) < 1


def test_floors_are_fresh_aspects_at_the_same_conditions():
    kind, theta = KIND.repeat(3), THETA.repeat(3)
    real = metrics.real_crystals(kind, theta, seed=1)
    assert real.dtype == torch.float32 and torch.equal(real, in_8_bits(real).float())
    fit = crystal_error(real, kind, theta)
    assert fit.error.max() < 2e-3 and len(fit.aspect[kind == 1].unique()) == 27
    assert torch.equal(real, metrics.real_crystals(kind, theta, seed=1))
    for metric in (mass_w1, fft_radial_l2):
        floor = metrics.floor(metric, kind, theta)
        assert 0 < floor < 3e-3 and 10 * floor < metric(real, real * 0.5 + 0.1)
        assert floor == metrics.floor(metric, kind, theta) != metrics.floor(metric, kind, theta, seed=1)
        assert metrics.floor(metric, kind[kind != 1], theta[kind != 1]) == 0  # nothing else is random


# --------------------------------------------------------------------------------------------------- the exact denoiser


def noisy(x_0, ratio, seed=0):
    """x_t on the variance-preserving kernel with sigma / alpha = ratio."""
    alpha = 1 / math.sqrt(1 + ratio**2)
    noise = torch.randn(x_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return alpha * x_0 + ratio * alpha * noise, alpha, ratio * alpha


def brute_mean(x_t, alpha, sigma, theta, b, n=1201):
    """Posterior mean by Simpson's rule: over the whole range, or round the true aspect b, where the posterior is."""
    width = 12 * sigma / alpha / 250
    low, high = (max(ASPECT[0], b - width), min(ASPECT[1], b + width)) if width < 0.08 else ASPECT
    nodes = torch.linspace(low, high, n, dtype=torch.float64)
    X = torch.cat([2 * render([1] * len(c), theta, c) - 1 for c in nodes.split(64)]).flatten(1)
    log_w = -(x_t.flatten() - alpha * X).square().sum(1) / (2 * sigma**2)
    w = torch.softmax(log_w, 0) * torch.tensor([1.0] + [4.0, 2.0] * (n // 2 - 1) + [4.0, 1.0])
    return ((w / w.sum()) @ X).view_as(x_t)


@pytest.mark.parametrize("ratio, tolerance", [
    (1e-3, 1e-8), (0.03, 1e-8), (0.3, 1e-7), (1.5, 1e-6), (2.2, 1e-5), (3.5, 1e-5), (6.0, 1e-5), (30.0, 1e-5),
])
def test_rectangular_posterior_mean_is_the_integral(ratio, tolerance):
    b = torch.tensor([0.7502, 1.3498], dtype=torch.float64)
    theta = [0.1, 0.8]
    x_t, alpha, sigma = noisy(2 * render([1, 1], theta, b) - 1, ratio)
    mean = ExactDenoiser().posterior_mean(x_t, alpha, sigma, [1, 1], theta)
    for i in range(2):
        brute = brute_mean(x_t[i], alpha, sigma, theta[i], float(b[i]))
        assert (mean[i] - brute).abs().max() < tolerance


def test_pure_noise_gives_the_prior_mean():
    x_t = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    mean = ExactDenoiser().posterior_mean(x_t, 0.0, 1.0, [1], [0.3])
    nodes = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    prior = torch.cat([2 * render([1] * 50, 0.3, b) - 1 for b in nodes.split(50)]).mean(0, keepdim=True)
    torch.testing.assert_close(mean, prior, rtol=0, atol=1e-5)


def test_types_0_2_3_are_one_point_whatever_the_noise():
    x_t = torch.randn(4, 1, 64, 64).double()
    alpha, sigma = torch.tensor([1, 0.5, 0.1, 0.0]), torch.tensor([0.1, 0.9, 1, 1])
    kind, theta = [0, 2, 3, 0], [0.0, 0.3, 1.0, 0.5]
    point = 2 * render(kind, theta) - 1
    denoiser = ExactDenoiser()
    assert torch.equal(denoiser.posterior_mean(x_t, alpha, sigma, kind, theta), point)
    a, s = (v.double().view(4, 1, 1, 1) for v in (alpha, sigma))
    torch.testing.assert_close(denoiser.eps(x_t, alpha, sigma, kind, theta), (x_t - a * point) / s)


def test_a_mixed_batch_with_its_own_noise_levels_and_float32():
    denoiser, kind, theta = ExactDenoiser(), KIND[:20], THETA[:20]
    x_0 = 2 * render(kind, theta, 0.9) - 1
    ratio = torch.logspace(-2, 1.5, 20, dtype=torch.float64)
    alpha = 1 / (1 + ratio**2).sqrt()
    sigma = ratio * alpha
    torch.manual_seed(0)
    x_t = alpha.view(-1, 1, 1, 1) * x_0 + sigma.view(-1, 1, 1, 1) * torch.randn_like(x_0)
    together = denoiser.posterior_mean(x_t, alpha, sigma, kind, theta)
    for i in range(20):
        one = denoiser.posterior_mean(x_t[i : i + 1], alpha[i], sigma[i], kind[i : i + 1], theta[i : i + 1])
        torch.testing.assert_close(one, together[i : i + 1], rtol=0, atol=1e-9)
    single = denoiser.posterior_mean(x_t.float(), alpha.float(), sigma.float(), kind, theta.float())
    assert single.dtype == torch.float32 and (single - together).abs().max() < 1e-4
    eps = denoiser.eps(x_t, alpha, sigma, kind, theta)
    torch.testing.assert_close(alpha.view(-1, 1, 1, 1) * together + sigma.view(-1, 1, 1, 1) * eps, x_t)


def test_what_is_remembered_belongs_to_its_condition():
    denoiser, x_t = ExactDenoiser(), torch.randn(2, 1, 64, 64).double()
    for k in range(12):  # more conditions than are kept
        kind, theta = [1, k % 4], [0.08 * k, 0.5]
        again = [denoiser.posterior_mean(x_t, 0.1, 0.99, kind, theta) for _ in range(2)]
        fresh = ExactDenoiser().posterior_mean(x_t, 0.1, 0.99, kind, theta) if k % 4 == 3 else again[1]
        assert torch.equal(again[0], again[1]) and torch.equal(again[0], fresh)
    assert len(denoiser._kept) <= 8
    denoiser = ExactDenoiser()
    for k in range(6):
        denoiser.posterior_mean(x_t, 0.1, 0.99, [0, 2], [0.1 * k, 0.5])
    kept = [thetas for name, *_, thetas in denoiser._kept if name == "point"]
    assert [theta for theta, _ in kept] == pytest.approx([0.2, 0.3, 0.4, 0.5])  # the last four


def test_small_images():
    x_t, alpha, sigma = noisy(2 * render([1, 3], [0.2, 0.4], 1.2, img_size=33) - 1, 0.1)
    mean = ExactDenoiser(33).posterior_mean(x_t, alpha, sigma, [1, 3], [0.2, 0.4])
    assert (mean - (2 * render([1, 3], [0.2, 0.4], 1.2, img_size=33) - 1)).abs().max() < 0.02


@pytest.mark.parametrize("change, says", [
    (dict(x_t=torch.zeros(1, 1, 32, 32)), "64, 64"), (dict(sigma=0.0), "sigma"), (dict(alpha=-0.1), "alpha"),
    (dict(alpha=math.nan), "finite"), (dict(sigma=math.inf), "finite"), (dict(kind=[5]), "0 to 3"),
    (dict(theta=[2.0]), "pi/3"), (dict(theta=[0.0, 0.0]), r"\[1\]"),
])
def test_what_the_denoiser_refuses(change, says):
    good = dict(x_t=torch.zeros(1, 1, 64, 64), alpha=0.5, sigma=0.5, kind=[1], theta=[0.1])
    with pytest.raises(ValueError, match=says):
        ExactDenoiser().posterior_mean(**good | change)
