"""The schedule of the main job, and one in which somebody replaced B: everything follows."""

import math

import data
import reference_gmm_sde as reference
import vp_sde
import vp_sde_2d
from common.evaluation import score_errors
from common.exact_denoiser import ExactModel
from common.nearest_crystal import crystal_error
from common.times import t_of_log_snr
from small import Cosine, lively_unet, oracle_config, run_of
from vp_sde import VP, Learned

import numpy as np
import pytest
import torch

SCHEDULES = [VP(), VP(0.5, 7.0), VP(2.0, 2.0), Cosine()]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_b_is_the_integral_of_beta_and_the_rest_follows(schedule):
    t = torch.linspace(0, 0.95, 41, dtype=torch.float64)
    node, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(30))
    rates = schedule.beta(t / 2 * (node[:, None] + 1))
    integral = t / 2 * (weight[:, None] * rates).sum(0)
    np.testing.assert_allclose(schedule.B(t), integral, rtol=1e-9, atol=1e-15)

    alpha, sigma = schedule.alpha_sigma(t)
    assert (alpha[0], sigma[0]) == (1, 0)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)
    np.testing.assert_allclose(alpha, torch.exp(-integral / 2), rtol=1e-9)
    np.testing.assert_allclose(schedule.log_snr(t[1:]), 2 * torch.log(alpha / sigma)[1:], rtol=1e-9, atol=1e-12)


def test_the_linear_schedule_is_that_of_the_reference_to_the_last_digits():
    schedule = VP(0.1, 30.0)
    known = reference.VPSchedule(0.1, 30.0)
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    np.testing.assert_array_equal(schedule.beta(t), known.beta(t.numpy()))
    np.testing.assert_allclose(schedule.log_snr(t[1:]), known.log_snr(t[1:].numpy()), rtol=1e-12)
    np.testing.assert_allclose(schedule.at(0.3), [known.beta(0.3), *known.alpha_sigma(0.3)], rtol=1e-14)


def test_beta_is_the_derivative_of_whatever_b_is():
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    with torch.no_grad():  # as everywhere while samples are drawn
        beta = Cosine().beta(t)
    np.testing.assert_allclose(beta, 0.99 * math.pi * torch.tan(0.495 * math.pi * t), rtol=1e-12)
    assert not beta.requires_grad and not t.requires_grad


def test_sigma_keeps_its_digits_near_the_data():
    t = 1e-12  # where B(t) is 0.1 t
    assert abs(VP().at(t)[2] / np.sqrt(0.1 * t) - 1) < 1e-6  # sqrt(1 - alpha^2) would be off by 4e-4


# ------------------------------------------------------------------------------------------------ another B


def test_the_exact_score_of_crystals_belongs_to_another_b():
    condition = data.default_conditions(3, kind=0)
    x0 = 2 * data.render(condition.kind, condition.cont[:, 1], img_size=16) - 1
    x = torch.randn(x0.shape, dtype=torch.float64)
    for t in (0.1, 0.5, 1.0):
        _, alpha, sigma = Cosine().at(t)
        score = -(x - alpha * x0) / sigma**2  # the gradient of log N(x; alpha x_0, sigma^2)
        eps = ExactModel(Cosine(), 16).eps(x, t, condition)
        np.testing.assert_allclose(-eps / sigma, score, rtol=1e-6, atol=1e-6)


def test_the_exact_score_of_points_belongs_to_another_b():
    gmm = vp_sde_2d.mixture(vp_sde_2d.Config(), Cosine())
    x = gmm.sample(50, np.random.default_rng(0))
    t = 0.2
    _, alpha, sigma = Cosine().at(t)
    by_hand = reference.GaussianMixture(gmm.weights, alpha * gmm.means, alpha**2 * gmm.covs + sigma**2 * np.eye(2))
    eps = vp_sde_2d.Exact(gmm, Cosine()).eps(torch.from_numpy(x), t)
    np.testing.assert_allclose(-eps / sigma, by_hand.score(x, 0.0), rtol=1e-8, atol=1e-8)


def perfect(schedule, size=16):
    """What Learned makes of a network whose x_0 is that of the closed form under a schedule."""
    exact = ExactModel(schedule, size)

    def net(x, times, condition):
        t = times[0].item()
        _, alpha, sigma = schedule.at(t)
        eps = exact.eps(x, t, condition)
        return (x - sigma * eps) / alpha

    net.schedule = schedule
    return Learned(net, run_of(vp_sde.Config()))


def test_the_score_error_of_a_network_belongs_to_its_schedule():
    x_u8, kind, cont = data.crystal_batch(0, 8, img_size=16)
    held_out = x_u8.float() / 127.5 - 1, data.known_condition(kind, cont)
    for schedule in (VP(), Cosine()):
        right = score_errors(perfect(schedule), ExactModel(schedule, 16), *held_out, seed=0)
        assert right["score_error"] < 1e-8
    wrong = score_errors(perfect(Cosine()), ExactModel(VP(), 16), *held_out, seed=0)
    assert wrong["score_error"] > 0.01


def test_the_network_sees_the_log_snr_of_its_own_schedule():
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    same_noise = t_of_log_snr(VP(), Cosine().log_snr(t).numpy())
    condition = data.default_conditions(3)
    cosine = lively_unet(Cosine()).embedding(t, condition)
    linear = lively_unet(VP()).embedding(torch.from_numpy(same_noise), condition)
    np.testing.assert_allclose(cosine, linear, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sampler", vp_sde.SAMPLERS)
def test_with_another_b_every_sampler_ends_on_the_crystal(sampler, monkeypatch):
    monkeypatch.setattr(vp_sde, "VP", Cosine)
    config = oracle_config(sampler=sampler)
    drawn = vp_sde.sample(None, run_of(config))
    condition = data.default_conditions(4)
    fit = crystal_error(data.unit(drawn.x), condition.kind, condition.cont[:, 1])
    assert fit.error.max() < 1e-4
    times = torch.tensor([t for t, _, _ in drawn.film[:-1]], dtype=torch.float64)
    steps = Cosine().log_snr(times).diff()[1:]  # the film shows all of so few, once it is past the noise
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
