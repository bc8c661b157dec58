"""The latent prior: chain and samplers against closed forms and a second implementation, loss and network."""

import math

import latent_prior as lp
from common import runs
from common.checkpoints import SHIPPED
from common.crystal_job import conditions
from common.latents import Latents
from common.seeds import generator
from data import Condition
from small import run_of

import numpy as np
import pytest
import torch


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def config_of(**settings):
    return lp.Config(**(dict(width=32, z_dim=8) | settings))


def small_net(**settings):
    config = config_of(**settings)
    return runs.seeded(lambda: lp.build(config), config.seed).eval().requires_grad_(False)


def lively_net():
    """A network that says something: a fresh one is zero at its end."""
    net = small_net()
    torch.manual_seed(1)
    torch.nn.init.normal_(net.out.weight)
    for block in net.blocks:
        torch.nn.init.normal_(block.linear.weight, std=0.1)
    return net


def some_conditions(n):
    cont = torch.zeros(n, 4)
    cont[:, 1] = torch.linspace(0, 1, n)
    return Condition(torch.arange(n) % 4, cont, torch.ones(n, dtype=torch.bool))


def gaussian_eps(schedule, mean, cov):
    """eps(z, t) in closed form for z_0 ~ N(mean, cov): eps = sigma (abar cov + (1 - abar) I)^-1 (z_t - alpha mean)."""

    def eps(z, t):
        _, alpha, sigma = schedule.at(t)
        S = alpha**2 * cov + sigma**2 * torch.eye(len(mean)).double()
        return sigma * torch.linalg.solve(S, (z - alpha * mean).T).T

    return eps


def last(trajectory):
    *_, (t, z, _) = trajectory
    assert t == 0
    return z


MEAN = torch.tensor([0.5, -1.0, 2.0]).double()
FACTOR = torch.tensor([[1.0, 0, 0], [0.6, 0.5, 0], [-0.3, 0.2, 0.1]]).double()
COV = FACTOR @ FACTOR.T

# --------------------------------------------------------------------------------------------------- the schedule


def test_the_chain_is_a_product_of_one_minus_beta():
    schedule = lp.DDPM(1000, 1e-4, 0.05)
    abar = 1.0
    for t, beta in enumerate(np.linspace(1e-4, 0.05, 1000), 1):
        abar *= 1 - beta
        found, alpha, sigma = schedule.at(t)
        assert found == beta and alpha**2 == pytest.approx(abar, rel=1e-10)
        assert sigma**2 == pytest.approx(1 - abar, rel=1e-9)
    assert schedule.at(0) == (0.0, 1.0, 0.0) and abar == pytest.approx(9e-12, rel=0.1)


def test_tensors_of_steps_have_the_same_schedule_as_numbers():
    schedule = lp.DDPM(1000, 1e-4, 0.05)
    t = torch.tensor([1, 7, 500, 1000])
    alpha, sigma = schedule.alpha_sigma(t)
    numbers = [schedule.at(int(i)) for i in t]
    assert alpha.tolist() == pytest.approx([a for _, a, _ in numbers], rel=1e-6)
    assert sigma.tolist() == pytest.approx([s for _, _, s in numbers], rel=1e-6)
    log_snr = [2 * math.log(a / s) for _, a, s in numbers]
    assert schedule.log_snr(t).tolist() == pytest.approx(log_snr, abs=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50, 400, 700, 999, 1000])
def test_indices_are_as_many_as_wanted_and_even_in_log_snr(steps):
    schedule = lp.DDPM()
    indices = schedule.indices(steps)
    assert len(indices) == steps and indices == sorted(set(indices), reverse=True)
    assert indices[-1] >= 1 and indices[0] <= 1000
    if 1 < steps <= 20:
        _, alpha, _ = schedule.at(indices[0])
        assert alpha**2 == pytest.approx(1e-4, rel=0.1) and indices[-1] == 1
        log_snr = np.array([2 * math.log(a / s) for _, a, s in map(schedule.at, indices)])
        assert np.abs(log_snr - np.linspace(log_snr[0], log_snr[-1], steps)).max() < 0.6  # of 18.4


def test_few_steps_start_where_z_0_begins_to_show_and_many_take_every_step_near_the_data():
    schedule = lp.DDPM(1000, 1e-4, 0.05)
    informative = [t for t in range(1, 1001) if np.exp(schedule.log_abar[t]) >= 1e-4]
    for steps in (1, 2, 10, 20):
        assert schedule.indices(steps)[0] == informative[-1]
    assert set(range(1, 51)) <= set(schedule.indices(400))


# --------------------------------------------------------------------------------------------------- the samplers


def test_ddim_with_eta_one_is_ddpm():
    """Against the ancestral sampler as Ho et al. write it, with the posterior variance."""
    schedule = lp.DDPM(60, 1e-3, 0.2)
    eps = gaussian_eps(schedule, MEAN, COV)
    z = normals(50, 3)
    noise = [normals(50, 3, seed=k) for k in range(1, 61)]
    got = last(lp.ddim(eps, z, schedule.indices(60), schedule, 1.0, iter(noise)))

    beta = np.concatenate([[0.0], np.linspace(1e-3, 0.2, 60)])
    abar = np.cumprod(1 - beta)
    for t, n in zip(range(60, 0, -1), noise, strict=True):
        z = (z - beta[t] / math.sqrt(1 - abar[t]) * eps(z, t)) / math.sqrt(1 - beta[t])
        z = z + math.sqrt(beta[t] * (1 - abar[t - 1]) / (1 - abar[t])) * n
    torch.testing.assert_close(got, z, atol=1e-9, rtol=0)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_noise_grows_linearly_with_eta(eta):
    """The std of a step is eta sqrt((1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s))."""
    schedule = lp.DDPM(40, 1e-3, 0.2)
    eps = gaussian_eps(schedule, MEAN, COV)
    z = normals(5, 3)
    one = torch.ones(5, 3).double()
    ends = []
    for n in (0 * one, one):
        _, (_, after, _), _ = lp.ddim(eps, z, [30, 20], schedule, eta, iter([n, one]))
        ends.append(after)
    _, alpha, sigma = schedule.at(30)
    _, alpha_s, sigma_s = schedule.at(20)
    expected = eta * math.sqrt((sigma_s / sigma) ** 2 * (1 - (alpha / alpha_s) ** 2))
    torch.testing.assert_close(ends[1] - ends[0], expected * one)


@pytest.mark.parametrize("eta, steps", [(0.0, 400), (0.5, 400), (1.0, 1000)])
def test_exact_eps_of_a_gaussian_latent_recovers_mean_and_covariance(eta, steps):
    schedule = lp.DDPM()
    n = 20_000
    g = torch.Generator().manual_seed(5)
    noise = (torch.randn(n, 3, generator=g, dtype=torch.float64) for _ in range(1000))
    eps = gaussian_eps(schedule, MEAN, COV)
    z = last(lp.ddim(eps, normals(n, 3, seed=9), schedule.indices(steps), schedule, eta, noise))
    assert (z.mean(0) - MEAN).abs().max() < 0.034
    assert (torch.cov(z.T) - COV).abs().max() < 0.04


def test_more_steps_are_closer_and_the_error_is_of_first_order():
    """DDIM against the exact flow of a Gaussian, z_0 = mean + (cov / S_T)^1/2 (z_T - alpha mean): slope one."""
    schedule = lp.DDPM(20_000, 1e-4 / 20, 0.05 / 20)
    z = normals(100, 1)
    mean = torch.tensor([0.3]).double()
    eps = gaussian_eps(schedule, mean, torch.tensor([[0.25]]).double())
    errors = []
    for steps in (25, 50, 100, 200):
        indices = schedule.indices(steps)
        _, alpha, sigma = schedule.at(indices[0])
        exact = mean + (0.25 / (alpha**2 * 0.25 + sigma**2)) ** 0.5 * (z - alpha * mean)
        errors.append((last(lp.ddim(eps, z, indices, schedule)) - exact).abs().mean().item())
    slope = np.polyfit(np.log([25, 50, 100, 200]), np.log(errors), 1)[0]
    assert -1.3 < slope < -0.8


def ddim_encode(eps, z, indices, schedule):
    """DDIM with eta = 0 backwards: from z_0 up through increasing indices.  The inverse as steps become many."""
    s = 0
    for t in indices:
        _, alpha, sigma = schedule.at(t)
        _, alpha_s, sigma_s = schedule.at(s)
        e = eps(z, max(s, 1))
        z = alpha * (z - sigma_s * e) / alpha_s + sigma * e
        s = t
    return z


def test_eta_zero_inverts():
    """Encode to noise and come back: exact as the steps become many."""
    z0 = MEAN + normals(40, 3, seed=2) @ FACTOR.T
    errors = []
    for T in (500, 2000):
        schedule = lp.DDPM(T, 0.1 / T, 20 / T)
        eps = gaussian_eps(schedule, MEAN, COV)
        noise = ddim_encode(eps, z0, range(1, T + 1), schedule)
        back = last(lp.ddim(eps, noise, schedule.indices(T), schedule))
        errors.append((back - z0).abs().max().item())
    assert errors[1] < 0.05 and errors[1] < 0.4 * errors[0]
    assert noise.mean(0).abs().max() < 0.5 and 0.6 < noise.std() < 1.4


def test_noise_of_a_sample_depends_on_seed_and_index_only():
    net = lively_net()
    run = run_of(config_of(steps=5, eta=0.7, n=7))
    condition = some_conditions(7)
    whole = lp.draw(net, run, condition)
    parts = lp.draw(net, run.with_settings(sample_batch=3), condition)
    torch.testing.assert_close(whole.x, parts.x, atol=1e-5, rtol=0)
    assert (whole.x - lp.draw(net, run.with_settings(seed=1), condition).x).abs().max() > 0.1
    assert [t for t, _ in whole.film] == [*net.schedule.indices(5), 0]
    torch.testing.assert_close(whole.film[-1][1], whole.x)


def test_drawn_latents_are_on_the_scale_of_the_vae():
    net = small_net()
    run = run_of(config_of(steps=5, n=7))
    plain = lp.draw(net, run, some_conditions(7)).x
    net.mean.fill_(10.0)
    net.std.fill_(3.0)
    torch.testing.assert_close(lp.draw(net, run, some_conditions(7)).x, 3 * plain + 10)


# ------------------------------------------------------------------------------------------------------- the loss


class Knows(torch.nn.Module):
    """A network that is wrong by `off` where z_t is what it should be."""

    def __init__(self, z_t, v, off):
        super().__init__()
        self.z_t = z_t
        self.v = v + off

    def forward(self, z, t, condition):
        torch.testing.assert_close(z, self.z_t)
        return self.v


@pytest.mark.parametrize("off", [0.0, 2.0])
def test_the_loss_is_zero_where_v_is_right_and_the_square_of_the_error_else(off):
    schedule = lp.DDPM()
    z0 = normals(3, 8).float()
    eps = normals(3, 8, seed=1).float()
    t = torch.tensor([1, 300, 900])
    alpha, sigma = (a[:, None] for a in schedule.alpha_sigma(t))
    net = Knows(alpha * z0 + sigma * eps, alpha * eps - sigma * z0, off)
    each = lp.loss_of(net, schedule, z0, some_conditions(3), t, eps)
    torch.testing.assert_close(each, torch.full((3,), off**2))


def test_a_fresh_network_predicts_v_zero_and_the_loss_is_that_of_its_eps():
    net = small_net()
    z0 = normals(6, 8).float()
    eps = normals(6, 8, seed=1).float()
    t = torch.tensor([1, 10, 100, 300, 700, 1000])
    alpha, sigma = (a[:, None] for a in net.schedule.alpha_sigma(t))
    z_t = alpha * z0 + sigma * eps
    assert (net(z_t, t, some_conditions(6)) == 0).all()
    expected = ((sigma * z_t - eps) / alpha).square().mean(1)  # |eps_theta - eps|^2 / abar
    got = lp.loss_of(net, net.schedule, z0, some_conditions(6), t, eps)
    torch.testing.assert_close(got[:4], expected[:4], rtol=1e-3, atol=0)
    torch.testing.assert_close(got[4:], z0[4:].square().mean(1), rtol=1e-2, atol=0)  # alpha is nothing there


def test_the_loss_by_time_is_that_of_the_middle_of_eight_ranges():
    net = small_net(T=80)
    z0 = normals(200, 8).float()
    losses = lp.loss_by_time(net, z0, some_conditions(200), seed=0)
    assert list(losses) == ["0.06", "0.19", "0.31", "0.44", "0.56", "0.69", "0.81", "0.94"]
    for share, loss in losses.items():
        t = torch.tensor([1 + int(float(share) * 80)])
        alpha, sigma = net.schedule.alpha_sigma(t)  # v_theta is 0, so the loss is the variance of v
        assert loss == pytest.approx(float(alpha**2 + sigma**2 * z0.square().mean()), rel=0.1)
    assert losses == lp.loss_by_time(net, z0, some_conditions(200), seed=0)
    assert len(lp.loss_by_time(small_net(T=2), z0, some_conditions(200), seed=0)) == 8  # the shortest chain


# --------------------------------------------------------------------------------------------------- the network


def test_standardisation_there_and_back():
    net = small_net()
    z = normals(500, 8).float() * 3 + 7
    net.mean.copy_(z.mean(0))
    net.std.copy_(z.std(0))
    torch.testing.assert_close(net.restore(net.standardise(z)), z, atol=1e-5, rtol=0)
    assert net.standardise(z).mean(0).abs().max() < 1e-5 and (net.standardise(z).std(0) - 1).abs().max() < 1e-5
    again = small_net()
    again.load_state_dict(net.state_dict())  # the statistics travel with the weights
    assert torch.equal(again.mean, net.mean) and torch.equal(again.std, net.std)


def test_the_network_sees_time_and_condition_unless_dropped():
    net = lively_net()
    z = torch.ones(2, 8)
    t = torch.tensor([300, 300])
    same = some_conditions(2)._replace(kind=torch.zeros(2, dtype=torch.long), cont=torch.zeros(2, 4))
    turned = torch.tensor([[0.0] * 4, [0, 0.3, 0, 0]])
    for changed in (same._replace(kind=torch.tensor([0, 1])), same._replace(cont=turned)):
        a, b = net(z, t, changed)
        assert not torch.allclose(a, b, atol=1e-4)
        a, b = net(z, t, changed.dropped())
        assert torch.allclose(a, b, atol=1e-6)
    a, b = net(z, torch.tensor([300, 400]), same)
    assert not torch.allclose(a, b, atol=1e-4)


# ---------------------------------------------------------------------------------------------- the training batch


def test_the_draws_of_a_training_step_are_what_they_were():
    """A run of the first edition would go on with the same batches."""
    n = 1000
    encoded = Latents(torch.arange(float(n))[:, None], torch.zeros(n, 1), some_conditions(n))
    z, condition = lp.latent_batch(config_of(batch_size=6), encoded, 5)
    rows = torch.randint(n, (6,), generator=generator(0, 5, 1))
    assert torch.equal(z[:, 0], rows.float()) and torch.equal(condition.kind, rows % 4)


def test_z_target_is_the_mean_or_a_draw():
    n = 40
    mu = torch.arange(n).float()[:, None].repeat(1, 8)
    encoded = Latents(mu, torch.full((n, 8), math.log(0.04)), some_conditions(n))
    mean, condition = lp.latent_batch(config_of(batch_size=4000), encoded, 3)
    drawn, _ = lp.latent_batch(config_of(batch_size=4000, z_target="sample"), encoded, 3)
    assert torch.equal(mean[:, 0] % 4, condition.kind.float())
    assert (drawn - mean).std().item() == pytest.approx(0.2, rel=0.03) and abs((drawn - mean).mean()) < 0.01


def test_conditions_are_those_of_the_crystals_of_the_vae():
    """It knows mode and number of types; the prior has no such flags."""
    config = config_of(n=3, kind=2, theta=0.2, vae=str(SHIPPED / "vae_uncond.pt"))
    of_vae = lp.run_of_vae(config).config
    assert (of_vae.mode, of_vae.n_types, of_vae.z_dim) == ("rot-only", 4, 32)
    kind, cont, _ = conditions(of_vae)
    assert kind.tolist() == [2] * 3 and cont[:, 1].tolist() == pytest.approx([0.2] * 3)
