"""The exact denoiser against quadrature by brute force, and against what is known by hand."""

import math

from common.exact_denoiser import ExactDenoiser
from data import ASPECT, THETA_MAX, render

import pytest
import torch

TILE = torch.arange(20)
KIND = TILE % 4
THETA = TILE.double() / 35 * THETA_MAX


def crystals(kind, theta, aspect=1.0, **size):
    """x_0 in [-1, 1]."""
    return 2 * render(kind, theta, aspect, **size) - 1


def noisy(x_0, ratio):
    """x_t, alpha and sigma on the variance-preserving kernel with sigma / alpha = ratio."""
    alpha = 1 / math.sqrt(1 + ratio**2)
    noise = torch.randn(x_0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return alpha * x_0 + ratio * alpha * noise, alpha, ratio * alpha


def brute_mean(x_t, alpha, sigma, theta, b, n=1201):
    """Posterior mean by Simpson's rule: over the whole range, or round the true aspect b, where the posterior is."""
    width = 12 * sigma / alpha / 250
    low, high = ASPECT
    if width < 0.08:
        low = max(low, b - width)
        high = min(high, b + width)
    nodes = torch.linspace(low, high, n, dtype=torch.float64)
    X = torch.cat([crystals([1] * len(part), theta, part) for part in nodes.split(64)]).flatten(1)
    log_w = -(x_t.flatten() - alpha * X).square().sum(1) / (2 * sigma**2)
    w = torch.softmax(log_w, 0) * torch.tensor([1.0] + [4.0, 2.0] * (n // 2 - 1) + [4.0, 1.0])
    return ((w / w.sum()) @ X).view_as(x_t)


@pytest.mark.parametrize("ratio, tolerance", [
    (1e-3, 1e-8), (0.03, 1e-8), (0.3, 1e-7), (1.5, 1e-6), (2.2, 1e-5), (3.5, 1e-5), (6.0, 1e-5), (30.0, 1e-5),
])
def test_the_rectangular_posterior_mean_is_the_integral(ratio, tolerance):
    b = torch.tensor([0.7502, 1.3498], dtype=torch.float64)
    theta = [0.1, 0.8]
    x_t, alpha, sigma = noisy(crystals([1, 1], theta, b), ratio)
    mean = ExactDenoiser().posterior_mean(x_t, alpha, sigma, [1, 1], theta)
    for i in range(2):
        brute = brute_mean(x_t[i], alpha, sigma, theta[i], float(b[i]))
        assert (mean[i] - brute).abs().max() < tolerance


def test_pure_noise_gives_the_prior_mean():
    x_t = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    mean = ExactDenoiser().posterior_mean(x_t, 0.0, 1.0, [1], [0.3])
    nodes = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    prior = torch.cat([crystals([1] * 50, 0.3, b) for b in nodes.split(50)]).mean(0, keepdim=True)
    torch.testing.assert_close(mean, prior, rtol=0, atol=1e-5)


def test_types_0_2_3_are_one_point_whatever_the_noise():
    x_t = torch.randn(4, 1, 64, 64).double()
    alpha = torch.tensor([1, 0.5, 0.1, 0.0])
    sigma = torch.tensor([0.1, 0.9, 1, 1])
    condition = [0, 2, 3, 0], [0.0, 0.3, 1.0, 0.5]
    point = crystals(*condition)
    denoiser = ExactDenoiser()
    assert torch.equal(denoiser.posterior_mean(x_t, alpha, sigma, *condition), point)

    a, s = (level.double().view(4, 1, 1, 1) for level in (alpha, sigma))
    torch.testing.assert_close(denoiser.eps(x_t, alpha, sigma, *condition), (x_t - a * point) / s)


@pytest.fixture(scope="module")
def mixed():
    """A batch of all types at noise levels of its own: x_t, alpha, sigma."""
    ratio = torch.logspace(-2, 1.5, 20, dtype=torch.float64)
    alpha = 1 / (1 + ratio**2).sqrt()
    sigma = ratio * alpha
    x_0 = crystals(KIND, THETA, 0.9)
    torch.manual_seed(0)
    x_t = alpha.view(-1, 1, 1, 1) * x_0 + sigma.view(-1, 1, 1, 1) * torch.randn_like(x_0)
    return x_t, alpha, sigma


def test_a_mixed_batch_is_that_of_its_images_one_by_one(mixed):
    denoiser = ExactDenoiser()
    together = denoiser.posterior_mean(*mixed, KIND, THETA)
    for i in range(20):
        x_t, alpha, sigma = (column[i : i + 1] for column in mixed)
        one = denoiser.posterior_mean(x_t, alpha, sigma, KIND[i : i + 1], THETA[i : i + 1])
        torch.testing.assert_close(one, together[i : i + 1], rtol=0, atol=1e-9)


def test_float32_stays_float32_and_is_as_good(mixed):
    denoiser = ExactDenoiser()
    double = denoiser.posterior_mean(*mixed, KIND, THETA)
    single = denoiser.posterior_mean(*(column.float() for column in mixed), KIND, THETA.float())
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < 1e-4


def test_x_0_and_eps_make_x_t(mixed):
    denoiser = ExactDenoiser()
    x_t, alpha, sigma = mixed
    x_0 = denoiser.posterior_mean(*mixed, KIND, THETA)
    eps = denoiser.eps(*mixed, KIND, THETA)
    torch.testing.assert_close(alpha.view(-1, 1, 1, 1) * x_0 + sigma.view(-1, 1, 1, 1) * eps, x_t)


def test_what_is_remembered_belongs_to_its_condition():
    denoiser = ExactDenoiser()
    x_t = torch.randn(2, 1, 64, 64).double()
    for k in range(12):  # more conditions than are kept
        condition = [1, k % 4], [0.08 * k, 0.5]
        first, again = (denoiser.posterior_mean(x_t, 0.1, 0.99, *condition) for _ in range(2))
        assert torch.equal(first, again)
        if k % 4 == 3:
            assert torch.equal(first, ExactDenoiser().posterior_mean(x_t, 0.1, 0.99, *condition))
    assert len(denoiser.kept) <= 8


def test_the_last_four_batches_of_points_are_remembered():
    denoiser = ExactDenoiser()
    x_t = torch.randn(2, 1, 64, 64).double()
    for k in range(6):
        denoiser.posterior_mean(x_t, 0.1, 0.99, [0, 2], [0.1 * k, 0.5])
    kept = [thetas[0] for name, *_, thetas in denoiser.kept if name == "point"]
    assert kept == pytest.approx([0.2, 0.3, 0.4, 0.5])


def test_images_of_another_size():
    x_0 = crystals([1, 3], [0.2, 0.4], 1.2, img_size=33)
    x_t, alpha, sigma = noisy(x_0, 0.1)
    mean = ExactDenoiser(33).posterior_mean(x_t, alpha, sigma, [1, 3], [0.2, 0.4])
    assert (mean - x_0).abs().max() < 0.02


@pytest.mark.parametrize("change, says", [
    (dict(x_t=torch.zeros(1, 1, 32, 32)), "64, 64"),
    (dict(sigma=0.0), "sigma"),
    (dict(alpha=-0.1), "alpha"),
    (dict(alpha=math.nan), "finite"),
    (dict(sigma=math.inf), "finite"),
    (dict(kind=[5]), "0 to 3"),
    (dict(theta=[2.0]), "pi/3"),
    (dict(theta=[0.0, 0.0]), r"\[1\]"),
])
def test_what_the_denoiser_refuses(change, says):
    good = dict(x_t=torch.zeros(1, 1, 64, 64), alpha=0.5, sigma=0.5, kind=[1], theta=[0.1])
    with pytest.raises(ValueError, match=says):
        ExactDenoiser().posterior_mean(**good | change)
