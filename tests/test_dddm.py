"""The bridge, the loss and the samplers against exact algebra; the networks; several processes; the command line."""

import argparse
import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dddm
import reference_gmm_sde as reference
import training

ROOT = Path(dddm.__file__).parent
TINY = ["--train", "--train-steps", "3", "--n", "4", "--batch-size", "4", "--width", "16", "--depth", "2", "--shared",
        "1", "--heads", "2", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(data="crystals", **more):
    sizes = {"crystals": 16, "mnist": 28, "cifar10": 32, "mixture": 1}
    config = dict(data=data, img_size=sizes[data], patch=4, width=16, depth=2, heads=2, shared=1, xi_dim=3, seed=0, m=3,
                  beta=1.0, lam=1.0, weight="none", w_bias=0.0, clip=1.0, batch_size=4, train_steps=10, lr=1e-2,
                  precision="float32", churn=1.0)
    return config | more


def lively(config, seed=0):
    """A network whose zero-initialised layers are not zero."""
    net, g = dddm.build(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return net


# ----------------------------------------------------------------------------------------------------------- the bridge

TIMES = st.tuples(st.floats(0, 1), st.floats(0.001, 1)).filter(lambda st_: st_[0] < st_[1])
CHURN = st.floats(0, 1)


def paper(x_t, x_0, t, s, e):
    """Mean and variance of the bridge as the paper writes it."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (1 - t, t), (1 - s, s)

    def r(i, j):
        return (alpha_t / alpha_s) ** i * (sigma_s / sigma_t) ** j

    mean = (e**2 * r(1, 2) + (1 - e**2) * r(0, 1)) * x_t
    mean = mean + alpha_s * (1 - e**2 * r(2, 2) - (1 - e**2) * r(1, 1)) * x_0
    return mean, sigma_s**2 * (1 - (e**2 * r(1, 1) + 1 - e**2) ** 2)


@settings(deadline=None, max_examples=200)
@given(TIMES, CHURN, st.floats(-5, 5), st.floats(-5, 5))
def test_both_forms_of_the_bridge_agree(times, e, x_t, x_0):
    s, t = times
    mean, variance = paper(x_t, x_0, t, s, e)
    ours = dddm.bridge(x_t, x_0, t, s, e, 0.0)
    assert ours == pytest.approx(mean, abs=1e-10)
    assert (dddm.bridge(x_t, x_0, t, s, e, 1.0) - ours) ** 2 == pytest.approx(variance, abs=1e-12)


@settings(deadline=None, max_examples=200)
@given(TIMES, CHURN, st.floats(-5, 5))
def test_the_bridge_keeps_the_forward_marginals_exactly(times, e, x_0):
    """x_s is linear in eps and z: its mean is alpha_s x_0 and the squares of both coefficients sum to sigma_s^2."""
    s, t = times

    def x_s(eps, z):
        return dddm.bridge((1 - t) * x_0 + t * eps, x_0, t, s, e, z)

    mean = x_s(0.0, 0.0)
    assert mean == pytest.approx((1 - s) * x_0, abs=1e-11)
    assert math.hypot(x_s(1.0, 0.0) - mean, x_s(0.0, 1.0) - mean) == pytest.approx(s, abs=1e-11)


@pytest.mark.parametrize("s, t, e", [(0.3, 0.7, 1.0), (0.1, 1.0, 0.5), (0.6, 0.61, 0.2), (0.0, 0.4, 0.9)])
def test_the_bridge_keeps_the_forward_marginals_on_the_average(s, t, e):
    g, n, x_0 = torch.Generator().manual_seed(1), 200_000, 1.7
    eps, z = (torch.randn(n, generator=g, dtype=torch.float64) for _ in range(2))
    x_s = dddm.bridge((1 - t) * x_0 + t * eps, torch.full((n,), x_0, dtype=torch.float64), t, s, e, z)
    assert abs(float(x_s.mean()) - (1 - s) * x_0) < 5 * s / n**0.5 + 1e-12
    assert abs(float(x_s.std()) - s) < 5 * s / (2 * n) ** 0.5 + 1e-12


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


# ------------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("beta, lam, m, kind", product((0.1, 1.0, 2.0), (0.0, 0.4, 1.0), (2, 5), ("none", "sigmoid")))
def test_the_loss_is_the_double_loop(beta, lam, m, kind):
    """Weights inside the mean, datum by datum; a network that returns given particles."""
    g = torch.Generator().manual_seed(m)
    x_0, xhat = torch.randn(6, 2, 3, generator=g).double(), torch.randn(6, m, 2, 3, generator=g).double()
    t = torch.linspace(0.05, 0.95, 6, dtype=torch.float64)
    config = dict(beta=beta, lam=lam, weight=kind, w_bias=-0.7)
    ours = dddm.loss_of(lambda *_: xhat, x_0, None, t, torch.zeros_like(x_0), None, config)
    total = 0.0
    for i in range(6):
        a = sum(float((x_0[i] - xhat[i, j]).norm()) ** beta for j in range(m)) / m
        b = sum(float((xhat[i, j] - xhat[i, k]).norm()) ** beta for j in range(m) for k in range(m) if j != k)
        log_snr = math.log((1 - t[i]) ** 2 / t[i] ** 2)
        w = 1 / (1 + math.exp(-(log_snr + 0.7))) if kind == "sigmoid" else 1.0
        total += w * (a - lam / (2 * m * (m - 1)) * b) / 6
    assert float(ours) == pytest.approx(total / 6 ** (beta / 2), rel=1e-12)


def test_without_interaction_at_beta_two_it_is_the_mean_square():
    x_0, xhat = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 1, 4, 4)
    config = dict(beta=2.0, lam=0.0, weight="none", w_bias=0.0)
    ours = dddm.loss_of(lambda *_: xhat, x_0, None, torch.full((5,), 0.5), torch.zeros_like(x_0), None, config)
    assert float(ours) == pytest.approx(float((x_0 - xhat[:, 0]).square().mean()), rel=1e-6)


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
    g, n, log_s = torch.Generator().manual_seed(0), 8192, torch.tensor(0.5, requires_grad=True)
    optimizer, tail = torch.optim.Adam([log_s], lr=0.05), []
    for k in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 if k < 100 else 0.005
        x_0, xi = torch.randn(n // 2, d, generator=g), torch.randn(n // 2, 2, d, generator=g)
        optimizer.zero_grad()
        dddm.energy_score(x_0, log_s.exp() * xi, beta, lam).mean().backward()
        optimizer.step()
        if k >= 200:
            tail.append(float(log_s.detach().exp()))
    q = lam ** (2 / (2 - beta)) / 2
    assert np.mean(tail) == pytest.approx(math.sqrt(q / (1 - q)), rel=0.03)


# --------------------------------------------------------------------------------------------------------- the samplers


def mixture():
    return dddm.load_source(dict(data="mixture"))


@pytest.mark.parametrize("steps, churn", [(1, 1.0), (2, 0.0), (3, 0.5), (8, 1.0)])
def test_exact_posterior_draws_are_exact_at_any_number_of_steps(steps, churn):
    gmm, rng = mixture(), np.random.default_rng(0)
    mmd2 = [reference.mmd2_to_mixture(dddm.cloud(dddm.exact_drawer(gmm, rng), 1024, steps, churn, seed), gmm)
            for seed in range(8)]
    assert abs(np.mean(mmd2)) < 4 * np.std(mmd2, ddof=1) / 8**0.5
    assert np.std(mmd2) < 2e-3


def test_the_exact_mean_is_not():
    """What ordinary diffusion would do with a perfect network: 2.4e-2 at 4 steps, and one blob at 1."""
    gmm = mixture()
    mmd2 = {k: min(reference.mmd2_to_mixture(dddm.cloud(dddm.mean_of(gmm), 2048, k, e, 0), gmm) for e in (0, 1))
            for k in (1, 4, 64)}
    assert mmd2[1] > 0.1 and 0.015 < mmd2[4] < 0.04 and mmd2[64] < 2e-3


def test_posterior_std_against_draws():
    gmm, rng = mixture(), np.random.default_rng(0)
    for t in (0.05, 0.5, 0.95):
        x = (1 - t) * gmm.sample(3, rng) + t * rng.standard_normal((3, 2))
        for point in x:
            draws = gmm.posterior_sample(np.repeat(point[None], 20_000, 0), t, rng)
            std = float(dddm.posterior_std(gmm, point[None], t)[0])
            assert np.sqrt(draws.var(0).mean()) == pytest.approx(std, rel=0.03)


def test_unbiased_mmd_is_its_sum_and_zero_on_the_average():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 2)), rng.standard_normal((4, 2))

    def k(a, b):
        return math.exp(-float(((a - b) ** 2).sum()) / 2)

    xx = np.mean([k(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert reference.mmd2_unbiased(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)
    many = [reference.mmd2_to_mixture(mixture().sample(200, rng), mixture()) for _ in range(200)]
    assert abs(np.mean(many)) < 4 * np.std(many) / 200**0.5


def test_a_sample_depends_on_its_own_noise_only():
    config = tiny()
    net, args = lively(config), argparse.Namespace(seed=3, steps=2, churn=0.7, precision="float32", sample_batch=4)
    shape, condition = (1, 16, 16), dddm.asked_for(config, 6)
    whole, film = dddm.draw(net, condition, config, args, torch.device("cpu"), shape)
    args.sample_batch = 5
    other, _ = dddm.draw(net, [c[2:] for c in condition], config, args, torch.device("cpu"), shape, keys=range(2, 6))
    assert torch.allclose(whole[2:], other, atol=1e-4) and whole.std() > 0.1
    assert [t for t, _ in film] == [1.0, 0.5, 0.0]


# --------------------------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("data", ["crystals", "cifar10"])
def test_patches_round_trip(data):
    net = dddm.build(tiny(data))
    x = torch.randn(2, *dddm.shape_of(tiny(data)))
    assert torch.equal(net.image(net.tokens(x)), x)
    first = net.tokens(x)[0, 0].reshape(x.shape[1], -1)  # the upper left patch
    assert torch.equal(first, x[0, :, :4, :4].flatten(1))


def test_the_network_hears_everything_and_is_equivariant_to_nothing():
    config = tiny()
    net = lively(config)
    g = torch.Generator().manual_seed(0)
    x, t, xi = torch.randn(2, 1, 16, 16, generator=g), torch.full((2,), 0.6), torch.randn(2, 3, 3, generator=g)
    kind, theta = torch.tensor([1, 3]), torch.tensor([0.2, 0.9])

    def out(x=x, t=t, kind=kind, theta=theta, xi=xi):
        with torch.no_grad():
            return net(x, t, (kind, theta), xi)

    here = out()
    assert here.shape == (2, 3, 1, 16, 16)
    changed = [out(t=t + 0.1), out(kind=kind - 1), out(theta=theta + 0.1), out(xi=xi + 0.1)]
    assert all((there - here).abs().amax() > 1e-4 for there in changed)
    assert (here[:, 0] - here[:, 1]).abs().amax() > 1e-4  # particles differ
    for move in (lambda v: v.roll(4, -1), lambda v: v.flip(-1), lambda v: v.transpose(-1, -2)):
        assert (out(x=move(x)) - move(here)).abs().amax() > 1e-3
    swapped = out(xi=xi[:, [1, 0, 2]])
    assert torch.allclose(swapped[:, [1, 0, 2]], here, atol=1e-5)  # but to the order of its particles
    alone = out(x=x[:1], t=t[:1], kind=kind[:1], theta=theta[:1], xi=xi[:1])
    assert torch.allclose(alone, here[:1], atol=1e-5)


def test_attention_is_torchs():
    q, k, v = torch.randn(3, 2, 4, 9, 8, dtype=torch.float64)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(dddm.attention(q, k, v), theirs, atol=1e-12)


@pytest.mark.parametrize("data", ["mixture", "crystals"])
def test_particles_share_the_trunk_and_t_zero_returns_the_data(data):
    config = tiny(data)
    net, shape = lively(config), dddm.shape_of(config)
    x, condition = torch.randn(2, *shape), dddm.asked_for(config, 2)
    xhat = net(x, torch.zeros(2), condition, torch.randn(2, 3, 3))
    assert torch.allclose(xhat, x[:, None].expand_as(xhat), atol=1e-5)
    together = net(x, torch.full((2,), 0.7), condition, xi := torch.randn(2, 3, 3))
    single = [net(x, torch.full((2,), 0.7), condition, xi[:, j : j + 1]) for j in range(3)]
    assert torch.allclose(together, torch.cat(single, 1), atol=1e-5)


def test_every_knob_changes_the_loss():
    config = tiny("mixture", m=4)
    net, source, device = lively(config), dddm.load_source(config), torch.device("cpu")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)

    def loss(**more):
        c = config | more
        return dddm.train_step(net, optimizer, c, 0, source, device, slice(0, 4))[0]

    losses = [loss(), loss(beta=0.5), loss(lam=0.5), loss(m=2), loss(weight="sigmoid"),
              loss(weight="sigmoid", w_bias=-1.0), loss(seed=1)]
    assert len(set(losses)) == 7 and loss() == losses[0]


# ---------------------------------------------------------------------------------------------------- several processes

WORKER = """
import sys
import torch
import training
{setup}
folder, device = sys.argv[1], torch.device("cpu")
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
with training.process_group(device):
    rows = training.my_share(config["batch_size"])
    net = build(config)
    wrapped = training.share_gradients(net)
    loss = step(wrapped, rows)
    loss = training.mean_over_processes(loss)
    assert training.anywhere(training.rank() == training.processes() - 1) and not training.anywhere(False)
    if training.rank() == 0:
        grads = [p.grad for p in net.parameters()]
        torch.save([training.processes(), loss, grads], folder + f"/{{training.processes()}}.pt")
"""
SETUPS = {
    "dddm": """
import dddm
config = {config}
build = dddm.build
sgd = lambda net: torch.optim.SGD(net.parameters(), lr=0.0)
source = dddm.load_source(config)
def step(net, rows):
    real = dddm.training_batch
    dddm.training_batch = lambda *a: (real(*a)[0].double(), real(*a)[1])
    return dddm.train_step(net, sgd(net), config, 0, source, device, rows)[0]
""",
}


@pytest.mark.parametrize("data", ["mixture", "crystals"])
def test_two_processes_with_half_the_batch_have_the_gradients_of_one(tmp_path, data):
    setup = SETUPS["dddm"].format(config=tiny(data, clip=1e9))
    (tmp_path / "worker.py").write_text(WORKER.format(setup=setup))
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    one = [sys.executable, "worker.py", str(tmp_path)]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *one[1:]]
    for command in (one, two):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    (n, loss, grads), (n2, loss2, grads2) = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert (n, n2) == (1, 2) and loss == pytest.approx(loss2, rel=1e-13)
    assert max(float(g.abs().max()) for g in grads) > 1e-3
    assert max(float((a - b).abs().max()) for a, b in zip(grads, grads2, strict=True)) < 1e-12
