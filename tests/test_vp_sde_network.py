"""The network of the main job: what it sees, what is made of it, and guidance."""

from types import SimpleNamespace

import data
import vp_sde
from small import lively_unet, run_of
from vp_sde import VP, Learned, UNet, guided_eps, x0_loss

import numpy as np
import pytest
import torch


def perfect_net(x0, schedule):
    """A network that knows x_0."""

    def net(x, times, condition):
        return x0

    net.schedule = schedule
    return net


@pytest.mark.parametrize("t", [0.005, 0.2, 0.6, 1.0])
def test_eps_score_and_x0_are_one_thing(t):
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 1, 16, 16, generator=g, dtype=torch.float64)
    t = float(torch.tensor(t))  # the network sees float32
    _, alpha, sigma = VP().at(t)
    x = alpha * x0 + sigma * eps
    net = perfect_net(x0, VP())

    condition = data.default_conditions(4)
    got = Learned(net, run_of(vp_sde.Config())).eps(x, t, condition)
    np.testing.assert_allclose(got, eps, atol=1e-12)
    score = (alpha * x0 - x) / sigma**2  # the gradient of log N(x; alpha x_0, sigma^2)
    np.testing.assert_allclose(-got / sigma, score, rtol=1e-9, atol=1e-9)
    if alpha > 0.01:
        np.testing.assert_allclose(vp_sde.x0_of(x, got, alpha, sigma), x0, atol=1e-10)

    times = torch.full((4,), t)
    assert x0_loss(net, VP(), x0, times, eps, condition) == 0
    off_by_one = x0_loss(net, VP(), x0 + 1, times, eps, condition)
    np.testing.assert_allclose(off_by_one, 1 / max(sigma, 0.2) ** 2, rtol=1e-5)


def test_near_the_noise_the_loss_is_that_of_v():
    g = torch.Generator().manual_seed(0)
    x0, x0_hat, eps = torch.randn(3, 4, 1, 16, 16, generator=g, dtype=torch.float64)
    t = torch.tensor([0.1, 0.3, 0.6, 1.0])
    alpha, sigma = (a.view(4, 1, 1, 1).double() for a in VP().alpha_sigma(t))
    assert sigma.min() > 0.2
    x_t = alpha * x0 + sigma * eps
    v_hat = (alpha * x_t - x0_hat) / sigma
    loss = x0_loss(perfect_net(x0_hat, VP()), VP(), x0, t, eps, data.default_conditions(4))
    np.testing.assert_allclose(loss, (v_hat - alpha * eps + sigma * x0).square().mean(), rtol=1e-5)


# ---------------------------------------------------------------------------------------------- the network


def test_a_fresh_network_predicts_nothing_and_has_the_size_that_it_says():
    net = UNet(VP())
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == 2.7 and "2.7 M" in UNet.__doc__
    v = net(torch.randn(2, 1, 32, 32), torch.full((2,), 0.4), data.default_conditions(2))
    assert v.shape == (2, 1, 32, 32) and not v.any()


def test_the_unconditional_network_sees_nothing_and_the_conditional_one_all_of_the_condition():
    net = lively_unet()
    x = torch.randn(4, 1, 32, 32)
    t = torch.full((4,), 0.4)
    condition = data.default_conditions(4)
    v = net(x, t, condition)
    unconditional = net(x, t, condition.dropped())

    other_kind = condition._replace(kind=(condition.kind + 1) % 4)
    other_cont = condition._replace(cont=condition.cont + torch.tensor([9.0, 0.4, 0.1, 0.2]))
    for other in (other_kind, other_cont):
        assert torch.equal(net(x, t, other.dropped()), unconditional)
        assert (net(x, t, other) - v).flatten(1).abs().amax(1).min() > 1e-3

    mixed = condition._replace(known=torch.tensor([True, False, True, False]))
    scale = float(unconditional.abs().max())
    np.testing.assert_allclose(net(x, t, mixed)[1::2], unconditional[1::2], rtol=1e-4, atol=1e-4 * scale)


def test_positions_are_turned_by_the_angle_of_the_condition_only():
    net = lively_unet()
    condition = data.default_conditions(4)
    upright = condition._replace(cont=torch.zeros(4, 4))
    assert torch.equal(net.position(8, condition.dropped()), net.position(8, upright))
    assert (net.position(8, condition) - net.position(8, upright))[1:].abs().max() > 0.01


@pytest.mark.parametrize("theta, spacing", [(0.0, None), (0.3, None), (1.0, None), (0.3, 8.0), (0.7, 14.0)])
def test_positions_turn_and_grow_with_the_crystal(theta, spacing):
    """Coordinates run along the axes of the lattice and count its spacings: waves of its length peak on atoms."""
    condition = data.default_conditions(1, 0, theta)
    if spacing:
        condition = data.default_conditions(1, 0, theta, mode="full", spacing=spacing)
    u, v = 3.2 * lively_unet().position(16, condition)[0, :2]  # spacings
    a = spacing or data.SPACING
    assert u[8, 9] - u[8, 8] == pytest.approx(4 * np.cos(theta) / a, abs=1e-5)
    wave = torch.cos(2 * np.pi * u) + torch.cos(2 * np.pi * v)
    image = torch.nn.functional.avg_pool2d(data.render([0], [theta], spacing=a), 4)[0, 0]
    assert np.corrcoef(wave.flatten(), image.flatten())[0, 1] > 0.8


def test_the_waves_of_a_position_are_as_long_as_the_comment_says():
    position = UNet(VP()).position(64, data.default_conditions(1, 0, 0.0))
    u = 32 * position[0, 0, 0]  # pixels
    for i, wavelength in ((2, 128), (7, 8)):
        np.testing.assert_allclose(position[0, i, 0], torch.sin(2 * np.pi * u / wavelength), atol=1e-3)


# ------------------------------------------------------------------------------------------------- guidance


def test_guidance_is_the_line_through_both_predictions():
    halves = []

    def eps(x, t, condition):
        halves.append(len(x))
        known = condition.known[:, None]
        return torch.where(known, 3.0, 1.0) * x + t + 10 * condition.cont[:, 1:2] * known

    model = SimpleNamespace(eps=eps)
    x = torch.randn(4, 2, dtype=torch.float64)
    condition = data.default_conditions(4)
    eps_u = eps(x, 0.5, condition.dropped())
    eps_c = eps(x, 0.5, condition)
    assert not torch.equal(eps_u, eps_c)

    for w in (0, 1, 1.5, 1e-9, 1 + 1e-9):
        guided = guided_eps(model, condition, w, x, 0.5)
        np.testing.assert_allclose(guided, eps_u + w * (eps_c - eps_u), atol=1e-12)
    assert halves[2:] == [4, 4, 8, 8, 8]  # at w = 0 and 1 half the work
