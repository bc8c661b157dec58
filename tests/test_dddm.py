"""The bridge and the loss against exact algebra, the sampler against the exact posterior, and the command line."""

import json
import math
from functools import partial
from itertools import product
from pathlib import Path

import dddm
import reference_gmm_sde
from common import clouds, distances, loop, posteriors, runs
from common.files import write_npz
from common.seeds import point_noise
from conftest import arrays, run, same, state
from small import CPU, run_of
from test_processes import close, together

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

TINY = ["--width", 16, "--depth", 2, "--batch-size", 8, "--n", 64, "--device", "cpu"]
TRAIN = ["--train", "--train-steps", 4, "--eval-every", 2, *TINY]


def config_of(**more):
    usual = dict(width=16, depth=2, xi_dim=3, m=4, batch_size=4, n=64)
    return dddm.Config(**(usual | more))


def lively(config, module=dddm, seed=0):
    """A network whose zero-initialised layers are not zero."""
    net = runs.seeded(partial(module.build, config), seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return net.eval().requires_grad_(False)


@pytest.fixture
def quick(here, monkeypatch):
    """The same job with less to do: two numbers of steps to compare, a film of two frames."""
    frames = clouds.cloud_frames
    monkeypatch.setattr(posteriors, "STEPS", (1, 2))
    monkeypatch.setattr(clouds, "cloud_frames", lambda film, *more: frames([film[0], film[-1]], *more))
    return here


# ----------------------------------------------------------------------------------------------------- the bridge

TIMES = st.tuples(st.floats(0, 1), st.floats(0.001, 1)).filter(lambda pair: pair[0] < pair[1])
CHURN = st.floats(0, 1)


def bridge_of_the_paper(x_t, x_0, t, s, e):
    """Mean and variance as the paper writes them."""

    def r(i, j):
        return ((1 - t) / (1 - s)) ** i * (s / t) ** j

    mean = (e**2 * r(1, 2) + (1 - e**2) * r(0, 1)) * x_t
    mean = mean + (1 - s) * (1 - e**2 * r(2, 2) - (1 - e**2) * r(1, 1)) * x_0
    return mean, s**2 * (1 - (e**2 * r(1, 1) + 1 - e**2) ** 2)


@settings(deadline=None, max_examples=200)
@given(TIMES, CHURN, st.floats(-5, 5), st.floats(-5, 5))
def test_the_bridge_is_that_of_the_paper(times, e, x_t, x_0):
    s, t = times
    mean, variance = bridge_of_the_paper(x_t, x_0, t, s, e)
    ours = dddm.bridge(x_t, x_0, t, s, e, 0.0)
    assert ours == pytest.approx(mean, abs=1e-12)
    assert (dddm.bridge(x_t, x_0, t, s, e, 1.0) - ours) ** 2 == pytest.approx(variance, abs=1e-12)


@settings(deadline=None, max_examples=200)
@given(TIMES, CHURN, st.floats(-5, 5))
def test_the_bridge_keeps_the_forward_marginals_exactly(times, e, x_0):
    """x_s is linear in eps and z: its mean is alpha_s x_0, and the squares of both factors sum to sigma_s^2."""
    s, t = times

    def x_s(eps, z):
        return dddm.bridge((1 - t) * x_0 + t * eps, x_0, t, s, e, z)

    mean = x_s(0.0, 0.0)
    assert mean == pytest.approx((1 - s) * x_0, abs=1e-11)
    assert math.hypot(x_s(1.0, 0.0) - mean, x_s(0.0, 1.0) - mean) == pytest.approx(s, abs=1e-11)


@pytest.mark.parametrize("s, t", [(0.25, 0.75), (0.1, 0.2), (0.0, 1.0), (0.9, 1.0)])
def test_churn_one_is_ddpm_and_churn_zero_is_ddim(s, t):
    x_t, x_0, alpha, sigma = 0.4, -1.3, 1 - t, t
    ratio = alpha / (1 - s)  # alpha_t|s, and the variance that the step from s to t adds
    added = sigma**2 - ratio**2 * s**2
    mean = (ratio * s**2 * x_t + (1 - s) * added * x_0) / sigma**2
    variance = added * s**2 / sigma**2  # the Gaussian p(x_s | x_0) p(x_t | x_s), completed to a square
    ours = dddm.bridge(x_t, x_0, t, s, 1.0, 0.0)
    assert ours == pytest.approx(mean, abs=1e-12)
    assert dddm.bridge(x_t, x_0, t, s, 1.0, 1.0) - ours == pytest.approx(math.sqrt(variance), abs=1e-12)

    ddim = (1 - s) * x_0 + s * (x_t - alpha * x_0) / sigma
    for z in (0.0, 3.0):
        assert dddm.bridge(x_t, x_0, t, s, 0.0, z) == pytest.approx(ddim, abs=1e-12)
    assert dddm.bridge(x_t, x_0, t, 0.0, 0.3, 5.0) == pytest.approx(x_0, abs=1e-12)


# ------------------------------------------------------------------------------------------------------- the loss

LOSSES = list(product((0.1, 1.0, 2.0), (0.0, 0.4, 1.0), (2, 5), ("none", "sigmoid")))


def loss_of_particles(x_0, xhat, t, **more):
    """The loss of a network that returns these particles, whatever its input."""
    config = config_of(**more)
    return float(dddm.loss_of(lambda *_: xhat, x_0, t, torch.zeros_like(x_0), None, config))


@pytest.mark.parametrize("beta, lam, m, kind", LOSSES)
def test_the_loss_is_the_double_loop(beta, lam, m, kind):
    """With the weights inside the mean, datum by datum."""
    g = torch.Generator().manual_seed(m)
    x_0 = torch.randn(6, 2, 3, generator=g).double()
    xhat = torch.randn(6, m, 2, 3, generator=g).double()
    t = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    total = 0.0
    for i in range(6):
        to_data = [float((x_0[i] - xhat[i, j]).norm()) ** beta for j in range(m)]
        pairs = [(j, k) for j in range(m) for k in range(m) if j != k]
        among = [float((xhat[i, j] - xhat[i, k]).norm()) ** beta for j, k in pairs]
        score = sum(to_data) / m - lam / (2 * m * (m - 1)) * sum(among)
        log_snr = math.log((1 - t[i]) ** 2 / t[i] ** 2)
        w = 1 / (1 + math.exp(-(log_snr + 0.7))) if kind == "sigmoid" else 1.0
        total += w * score / 6
    ours = loss_of_particles(x_0, xhat, t, beta=beta, lam=lam, weight=kind, w_bias=-0.7)
    assert ours == pytest.approx(total / 6 ** (beta / 2), rel=1e-12)


def test_without_interaction_at_beta_two_it_is_the_mean_square():
    x_0 = torch.randn(5, 1, 4, 4)
    xhat = torch.randn(5, 1, 1, 4, 4)
    ours = loss_of_particles(x_0, xhat, torch.full((5,), 0.5), beta=2.0, lam=0.0)
    assert ours == pytest.approx(float((x_0 - xhat[:, 0]).square().mean()), rel=1e-6)


def test_the_weight_at_the_ends():
    t = torch.tensor([1e-6, 0.5, 0.9, 1.0])
    assert dddm.weight(t, "sigmoid", 0.0).tolist() == pytest.approx([1, 0.5, 1 / 82, 0], abs=1e-5)
    assert dddm.weight(t, "sigmoid", -2.0)[1] == pytest.approx(1 / (1 + math.exp(-2)))
    assert dddm.weight(t, "none", 3.0).tolist() == [1] * 4


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_gradients_are_finite_where_particles_meet(beta):
    xhat = torch.zeros(2, 3, 4, requires_grad=True)
    dddm.energy_score(torch.zeros(2, 4), xhat, beta, 1.0).sum().backward()
    assert xhat.grad.isfinite().all()


@pytest.mark.parametrize("beta, lam, d", [(1.0, 1.0, 1), (1.0, 1.0, 3), (1.0, 0.5, 2), (0.5, 1.0, 2), (0.1, 1 / 7, 2)])
def test_a_generator_of_one_parameter_learns_the_closed_form(beta, lam, d):
    """Data N(0, I_d), generator s xi: the score is least at s^2 = q / (1 - q), q = lam^(2 / (2 - beta)) / 2."""
    g = torch.Generator().manual_seed(0)
    log_s = torch.tensor(0.5, requires_grad=True)
    optimizer = torch.optim.Adam([log_s])
    tail = []
    for k in range(300):
        optimizer.param_groups[0]["lr"] = 0.05 if k < 100 else 0.005
        x_0 = torch.randn(2048, d, generator=g)
        xi = torch.randn(2048, 2, d, generator=g)
        optimizer.zero_grad()
        dddm.energy_score(x_0, log_s.exp() * xi, beta, lam).mean().backward()
        optimizer.step()
        tail.append(float(log_s.detach().exp()))
    q = lam ** (2 / (2 - beta)) / 2
    assert np.mean(tail[200:]) == pytest.approx(math.sqrt(q / (1 - q)), rel=0.03)


# ---------------------------------------------------------------------------------------------------- the network


def test_particles_share_the_trunk_and_t_zero_returns_the_data():
    net = lively(config_of())
    x = torch.randn(2, 2)
    xi = torch.randn(2, 3, 3)
    xhat = net(x, torch.zeros(2), xi)
    assert torch.allclose(xhat, x[:, None].expand_as(xhat), atol=1e-5)

    t = torch.full((2,), 0.7)
    whole = net(x, t, xi)
    single = [net(x, t, xi[:, j : j + 1]) for j in range(3)]
    assert torch.allclose(whole, torch.cat(single, 1), atol=1e-5)
    assert (whole[:, 0] - whole[:, 1]).abs().amax() > 1e-4  # they differ


def test_every_setting_of_the_loss_changes_it():
    net = lively(config_of())
    g = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 4, 2, generator=g)
    xi = torch.randn(4, 4, 3, generator=g)
    t = torch.linspace(0.1, 0.9, 4)

    def loss(m=4, **more):
        return float(dddm.loss_of(net, x_0, t, eps, xi[:, :m], config_of(**more)))

    losses = [loss(), loss(beta=0.5), loss(lam=0.5), loss(m=2), loss(weight="sigmoid")]
    losses.append(loss(weight="sigmoid", w_bias=-1.0))
    assert len(set(losses)) == 6 and loss() == losses[0]


# ---------------------------------------------------------------------------------------------------- the sampler


def exact_mmd2(gmm, steps, churn, seeds=8):
    """MMD^2 of clouds that are sampled with exact draws from the posterior."""
    rng = np.random.default_rng(0)
    draw = partial(posteriors.exact_draw, gmm, rng)
    found = [dddm.cloud(1024, seed, draw, steps, churn) for seed in range(seeds)]
    return [distances.mmd2_to_mixture(x, gmm) for x in found]


@pytest.mark.parametrize("steps, churn", [(1, 1.0), (2, 0.0), (3, 0.5), (8, 1.0)])
def test_exact_posterior_draws_are_exact_at_any_number_of_steps(steps, churn):
    mmd2 = exact_mmd2(dddm.mixture(config_of()), steps, churn)
    assert abs(np.mean(mmd2)) < 4 * np.std(mmd2, ddof=1) / 8**0.5
    assert np.std(mmd2) < 2e-3


def test_another_path_needs_to_be_written_in_one_place_only(monkeypatch):
    """As in a copy of the script: exact posteriors, bridge and weight belong to the new path."""

    def quarter_circle(t):
        angle = torch.as_tensor(t) * math.pi / 2
        alpha, sigma = angle.cos(), angle.sin()
        return (alpha, sigma) if torch.is_tensor(t) else (float(alpha), float(sigma))

    monkeypatch.setattr(dddm.Linear, "alpha_sigma", staticmethod(quarter_circle))
    monkeypatch.setattr(dddm, "alpha_sigma", quarter_circle)
    mmd2 = exact_mmd2(dddm.mixture(config_of()), steps=3, churn=0.7)
    assert abs(np.mean(mmd2)) < 4 * np.std(mmd2, ddof=1) / 8**0.5
    t = torch.tensor([0.3])
    snr = (torch.cos(t * math.pi / 2) / torch.sin(t * math.pi / 2)) ** 2
    assert torch.allclose(dddm.weight(t, "sigmoid", 0.0), snr / (1 + snr))


def test_the_network_draws_with_one_fresh_xi_a_call():
    net = lively(config_of())
    x = torch.randn(5, 2)
    given_out = point_noise(3, 5)
    again = point_noise(3, 5)
    for _ in range(2):
        x_0 = dddm.learned_draw(net, run_of(config_of()), given_out, x, 0.5)
        xi = again.draw((1, 3))
        torch.testing.assert_close(x_0, net(x, torch.full((5,), 0.5), xi)[:, 0])


def test_the_exact_mean_is_no_draw():
    """What ordinary diffusion would do with a perfect network: 2.4e-2 at 4 steps, and one blob at 1."""
    gmm = dddm.mixture(config_of())
    mean = partial(posteriors.exact_mean, gmm)
    mmd2 = {}
    for k in (1, 4, 64):
        found = [dddm.cloud(2048, 0, mean, k, churn) for churn in (0, 1)]
        mmd2[k] = min(distances.mmd2_to_mixture(x, gmm) for x in found)
    assert mmd2[1] > 0.1 and 0.015 < mmd2[4] < 0.04 and mmd2[64] < 2e-3


def test_posteriors_are_compared_at_draws_of_p_t():
    gmm = dddm.mixture(config_of())
    fresh = partial(dddm.learned, lively(config_of()), run_of(config_of()), seed=0)
    found = posteriors.posterior_pairs(fresh, gmm, n=500)
    assert [t for t, *_ in found] == pytest.approx(np.arange(10) / 10 + 0.05)
    rng = np.random.default_rng([0, 7])
    t, x_t, learned, exact, std, _ = found[0]
    assert x_t == pytest.approx(((1 - t) * gmm.sample(1, rng) + t * rng.standard_normal((1, 2)))[0])
    assert std == pytest.approx(np.sqrt(learned.var(0).mean())) and learned.shape == exact.shape == (500, 2)
    for _, _, _, exact, _, exact_std in found:
        assert np.sqrt(exact.var(0).mean()) == pytest.approx(exact_std, rel=0.2)


def test_what_is_far_from_every_component_lies_between_them():
    gmm = reference_gmm_sde.GaussianMixture([0.5, 0.5], [[0, 0], [10, 0]], [[[1, 0], [0, 4]], [[1, 0], [0, 1]]])
    x = np.array([[0, 0], [5, 0], [3.9, 0], [4.1, 0], [0, 7.9], [0, 8.1], [10, 4.1]])
    each = [posteriors.share_between(gmm, point[None]) for point in x]
    assert each == [0, 1, 0, 1, 0, 1, 1] and posteriors.share_between(gmm, x) == pytest.approx(4 / 7)
    assert posteriors.share_between(gmm, gmm.sample(20_000, np.random.default_rng(0))) < 1e-3


def test_the_exact_standard_deviation_is_that_of_exact_draws():
    gmm = dddm.mixture(config_of())
    rng = np.random.default_rng(0)
    for t in (0.05, 0.5, 0.95):
        x = (1 - t) * gmm.sample(3, rng) + t * rng.standard_normal((3, 2))
        for point in x:
            draws = gmm.posterior_sample(np.repeat(point[None], 20_000, 0), t, rng)
            std = float(posteriors.posterior_std(gmm, point[None], t)[0])
            assert np.sqrt(draws.var(0).mean()) == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("name", ["mixture", "S", "circle"])
def test_four_steps_of_what_ships(name):
    run = run_of(config_of(data=name))
    net = runs.shipped_net(dddm.Config, dddm.build, f"dddm_{name}.pt", CPU)
    gmm = dddm.mixture(run.config)
    mmd2 = []
    for seed in range(4):
        x = dddm.cloud(1024, seed, dddm.learned(net, run, 1024, seed), 4, 1.0)
        mmd2.append(distances.mmd2_to_mixture(x, gmm))
    assert np.mean(mmd2) < 2e-3  # exact samples: 0, and 3e-4 for the mean of four


# ----------------------------------------------------------------------------------------------- the command line

FILES = {"comparison.png", "config.json", "metrics.json", "posterior.png", "samples.npz", "samples.png", "sampling.gif"}


def dddm_run(*words):
    return run(*words, main=dddm.main)


def sampled(*words):
    """The points that a command draws, without its report."""
    run = runs.start(dddm.Config, list(map(str, words)))
    run.device = CPU
    run.config.precision = "float32"
    return dddm.sample(runs.load_net(dddm.build(run.trained), run), run).x.numpy()


def only_samples(drawn, net, run):
    write_npz(run.out / "samples.npz", x=drawn.x)
    return {}, ""


@pytest.fixture
def no_report(here, monkeypatch):
    monkeypatch.setattr(dddm, "report", only_samples)
    return here


def test_train_and_sample_again(quick, capsys):
    assert dddm_run(*TRAIN, "--out", "run") == 0
    printed = capsys.readouterr().out
    assert "exact posterior draws" in printed and "ordinary diffusion, exact mean" in printed and "worst" in printed
    assert {p.name for p in Path("run").iterdir()} == FILES | {"last.pt", "log.jsonl"}
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and all("mmd2" in line for line in lines)

    first = arrays(Path("run"))["x"]
    assert np.array_equal(first, sampled("--ckpt", "run", "--n", 64))  # the checkpoint knows its network
    for words in (["--steps", 3], ["--churn", 0.5], ["--seed", 1], ["--use-ema", 0]):
        assert np.abs(first - sampled("--ckpt", "run", "--n", 64, *words)).max() > 1e-3


def test_a_single_sample_has_no_mmd(quick):
    assert dddm_run(*TRAIN, "--n", 1, "--out", "run") == 0
    numbers = json.loads(Path("run/metrics.json").read_text())
    assert arrays(Path("run"))["x"].shape == (1, 2) and "posterior_std_off" in numbers
    assert not {"mmd2", "comparison"} & numbers.keys() and "NaN" not in Path("run/metrics.json").read_text()


def test_a_stopped_training_continues_bit_for_bit(no_report, monkeypatch):
    assert dddm_run(*TRAIN, "--out", "whole") == 0
    save = loop.Trainer.save

    def save_and_stop(self):
        save(self)
        if self.done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "save", save_and_stop)
    assert dddm_run(*TRAIN, "--save-every", 2, "--out", "halves") == 130
    assert dddm_run("--resume", "--out", "halves") == 0
    assert same(state("whole"), state("halves"))


def test_two_processes_take_the_step_of_one_and_share_the_samples(no_report):
    flags = [*TRAIN, "--n", 65, "--precision", "float32"]  # 33 points for one, 32 for the other
    said, statuses = together(lambda: dddm_run(*flags, "--out", "two"), no_report)
    assert statuses == [0, 0], said
    assert said[1] == "" and said[0].count("output in") == 1  # one of them talks
    assert dddm_run(*flags, "--out", "one") == 0
    assert close(state("one")["ema"], state("two")["ema"])
    assert np.abs(arrays(Path("one"))["x"] - arrays(Path("two"))["x"]).max() < 1e-4
