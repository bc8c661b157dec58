"""The bridge, the loss and the samplers against exact algebra; the networks; several processes; the command line."""

import argparse
import importlib.machinery
import json
import math
import os
import subprocess
import sys
import types
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import dddm
import reference_gmm_sde as reference
import training
import vp_sde

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
    assert ours == pytest.approx(mean, abs=1e-12)
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


LOSSES = list(product((0.1, 1.0, 2.0), (0.0, 0.4, 1.0), (2, 5), ("none", "sigmoid")))


@pytest.mark.parametrize("beta, lam, m, kind", LOSSES)
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
    g, n, log_s = torch.Generator().manual_seed(0), 4096, torch.tensor(0.5, requires_grad=True)
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


def test_the_network_draws_with_one_fresh_xi_a_call():
    config, asked = tiny("mixture"), []
    net, g, x = lively(config), torch.Generator().manual_seed(0), torch.randn(5, 2)

    def normal(shape):
        asked.append(torch.randn(5, *shape, generator=g))
        return asked[-1]

    condition = torch.zeros(5, dtype=torch.long), torch.zeros(5)
    denoise = dddm.drawer(net, condition, normal, torch.device("cpu"), "float32", config["xi_dim"])
    for call in range(2):
        x_0 = denoise(x, 0.5)
        assert len(asked) == call + 1 and asked[call].shape == (5, 1, config["xi_dim"])
        with torch.no_grad():
            torch.testing.assert_close(x_0, net(x, torch.full((5,), 0.5), condition, asked[call])[:, 0])


def test_what_is_asked_for():
    usual = data.asked_for(40)
    kind, theta = dddm.asked_for(tiny("crystals"), 40)
    assert torch.equal(kind, usual.kind) and torch.equal(theta, usual.cont[:, 1]) and theta.max() > 1
    kind, theta = dddm.asked_for(tiny("crystals"), 3, kind=2, theta=0.5)
    assert kind.tolist() == [2, 2, 2] and theta.tolist() == [0.5] * 3
    assert dddm.asked_for(tiny("mnist"), 12)[0].tolist() == [*range(10), 0, 1]


def test_an_exam_reports_a_mean(tmp_path):
    config = tiny("crystals")
    numbers = dddm.exam(dddm.build(config), config, None, torch.device("cpu"), tmp_path, step=0)
    assert 0 < numbers["crystal_error"] < 1 and (tmp_path / "training_samples.png").exists()  # a sum of 36 is above


def test_posteriors_are_drawn_at_draws_of_p_t():
    net, gmm, cpu = dddm.build(tiny("mixture")), mixture(), torch.device("cpu")
    found, rng = dddm.posteriors(net, tiny("mixture"), gmm, cpu, "float32", draws=500), np.random.default_rng([0, 7])
    assert [t for t, *_ in found] == pytest.approx(np.arange(10) / 10 + 0.05)
    t, x_t, learned, exact, std, true = found[0]
    assert x_t == pytest.approx(((1 - t) * gmm.sample(1, rng) + t * rng.standard_normal((1, 2)))[0])
    assert std == pytest.approx(np.sqrt(learned.var(0).mean())) and learned.shape == exact.shape == (500, 2)
    for _, _, _, exact, _, true in found:
        assert np.sqrt(exact.var(0).mean()) == pytest.approx(true, rel=0.2)


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
        return dddm.gradient_of(net, optimizer, c, 0, source, device, slice(0, 4))[0]

    losses = [loss(), loss(beta=0.5), loss(lam=0.5), loss(m=2), loss(weight="sigmoid"),
              loss(weight="sigmoid", w_bias=-1.0), loss(seed=1)]
    assert len(set(losses)) == 7 and loss() == losses[0]


# ---------------------------------------------------------------------------------------------------- several processes

WORKER = """
import sys
import torch
import dddm, training, vp_sde

def gradients_of_dddm(config):
    net, source = dddm.build(config).double(), dddm.load_source(config)
    draw = dddm.training_batch
    dddm.training_batch = lambda *a: tuple(v.double() if torch.is_tensor(v) else v for v in draw(*a))
    wrapped, sgd = training.share_gradients(net), torch.optim.SGD(net.parameters(), lr=0.0)
    rows = training.my_share(config["batch_size"])
    loss, _ = dddm.gradient_of(wrapped, sgd, config, 3, source, torch.device("cpu"), rows)
    dddm.training_batch = draw
    return [training.mean_over_processes(loss), *(p.grad for p in net.parameters())]

def gradients_of_vp_sde():
    config = dict(data="S", beta_min=0.1, beta_max=20.0, seed=0, batch_size=6, p_uncond=0.1, lr=1e-3, train_steps=10,
                  precision="float32")
    net, source, draw = vp_sde.build(config).double(), vp_sde.load_source(config), vp_sde.training_batch
    vp_sde.training_batch = lambda *a: (lambda x, condition: (x.double(), condition))(*draw(*a))
    wrapped, sgd = training.share_gradients(net), torch.optim.SGD(net.parameters(), lr=0.0)
    rows = training.my_share(config["batch_size"])
    loss, _ = vp_sde.gradient_of(wrapped, net.schedule, sgd, config, 3, source, torch.device("cpu"), rows)
    vp_sde.training_batch = draw
    return [training.mean_over_processes(loss), *(p.grad for p in net.parameters())]

def gradients(configs):
    torch.set_default_dtype(torch.float64)
    try:
        return [*map(gradients_of_dddm, configs), gradients_of_vp_sde()]
    finally:
        torch.set_default_dtype(torch.float32)

if __name__ == "__main__":
    torch.set_num_threads(1)
    with training.process_group(torch.device("cpu")):
        found = gradients(torch.load("configs.pt"))
        assert training.processes() == 2
        assert training.anywhere(training.rank() == 1) and not training.anywhere([])
        if training.rank() == 0:
            torch.save(found, "found.pt")
"""


def together(folder, *command):
    """Run a command in two processes, as torchrun does."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *map(str, command)]
    return subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def test_two_processes_with_half_the_batch_have_the_gradients_of_one(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(WORKER)
    configs = [tiny("mixture", clip=1e9), tiny("crystals", clip=1e9)]
    torch.save(configs, tmp_path / "configs.pt")
    monkeypatch.syspath_prepend(str(tmp_path))
    import worker

    one, done = worker.gradients(configs), together(tmp_path, "worker.py")
    assert done.returncode == 0, done.stderr
    for alone, both in zip(one, torch.load(tmp_path / "found.pt", weights_only=True), strict=True):
        assert alone[0] == pytest.approx(both[0], rel=1e-13)  # the loss
        assert max(float(g.abs().max()) for g in alone[1:]) > 1e-3
        assert max(float((a - b).abs().max()) for a, b in zip(alone[1:], both[1:], strict=True)) < 1e-12


@pytest.mark.parametrize("script, flags", [
    ("dddm.py", ["--data", "crystals", "--img-size", 16, "--patch", 4, "--width", 16, "--heads", 2, "--depth", 2,
                 "--shared", 1, "--steps", 2]),
    ("vp_sde.py", ["--data", "S", "--steps", 2])])
def test_the_command_under_torchrun_takes_the_step_of_one_process(tmp_path, script, flags):
    flags = ["--train", "--train-steps", 1, "--batch-size", 16, "--n-samples", 8, "--precision", "float32", *flags]
    done = together(tmp_path, ROOT / script, *flags, "--out", "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("output in") == 1  # one of them talks
    main = dddm.main if script == "dddm.py" else vp_sde.main
    main([*map(str, flags), "--out", str(tmp_path / "one")])
    states = [training.load_checkpoint(tmp_path / name)["optimizer"]["state"] for name in ("one", "two")]
    for k, state in states[0].items():  # the first moment is a tenth of the gradient
        assert torch.allclose(state["exp_avg"], states[1][k]["exp_avg"], rtol=1e-4, atol=1e-7)
    log = [json.loads((tmp_path / name / "log.jsonl").read_text())["loss"] for name in ("one", "two")]
    assert log[0] == pytest.approx(log[1], rel=1e-5)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "two").iterdir()}


def test_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(training, "processes", lambda: 3)
    monkeypatch.setenv("RANK", "2")
    assert training.my_share(12) == slice(8, 12)
    with pytest.raises(ValueError, match="--batch-size 16"):
        training.my_share(16)


# ----------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def quick(monkeypatch):
    """The same files for less: two numbers of steps to compare, a film of two frames."""
    draw = reference.draw
    monkeypatch.setattr(dddm, "STEPS", (1, 2))
    monkeypatch.setattr(reference, "draw", lambda film, *more: draw([film[0], film[-1]], *more))


def test_train_sample_resume_and_sample_again_in_the_plane(tmp_path, capsys, quick, monkeypatch):
    monkeypatch.setattr(training, "SHIPPED", tmp_path / "nothing ships")
    flags = ["--train", "--batch-size", "8", "--n", "64", "--width", "16", "--depth", "2", "--eval-every", "2",
             "--device", "cpu"]
    dddm.main([*flags, "--train-steps", "4", "--out", str(tmp_path / "whole")])
    printed = capsys.readouterr().out
    assert "exact posterior draws" in printed and "ordinary diffusion, exact mean" in printed and "worst" in printed
    files = {"comparison.png", "config.json", "last.pt", "log.jsonl", "loss.png", "metrics.json", "posterior.png",
             "samples.npz", "samples.png", "sampling.gif"}
    assert {p.name for p in (tmp_path / "whole").iterdir()} == files
    assert np.load(tmp_path / "whole" / "samples.npz")["x"].shape == (64, 2)
    assert len((tmp_path / "whole" / "log.jsonl").read_text().splitlines()) == 2

    save, saved = training.save_run, []

    def stop_at_two(out, script, config, step, *parts):
        save(out, script, config, step, *parts)
        saved.append(step)
        if step == 2:
            raise KeyboardInterrupt("stopped")

    monkeypatch.setattr(training, "save_run", stop_at_two)
    with pytest.raises(SystemExit):
        dddm.main([*flags, "--train-steps", "4", "--save-every", "2", "--out", str(tmp_path / "halves")])
    dddm.main(["--resume", "--out", str(tmp_path / "halves")])
    assert saved == [2, 4]
    whole, halves = (training.load_checkpoint(tmp_path / name) for name in ("whole", "halves"))
    assert all(torch.equal(whole["ema"][k], halves["ema"][k]) for k in whole["ema"])

    dddm.main(["--ckpt", str(tmp_path / "whole"), "--out", str(tmp_path / "again"), "--n", "64"])
    first, again = (np.load(tmp_path / name / "samples.npz")["x"] for name in ("whole", "again"))
    assert np.array_equal(first, again)  # the model's flags came from the checkpoint
    for more in (dict(steps=3), dict(churn=0.5), dict(seed=1)):
        how = argparse.Namespace(**dict(steps=4, churn=1.0, seed=0, precision="float32") | more)
        net = training.load_weights(dddm.build(whole["config"]), whole["ema"], "")
        x, _ = dddm.draw(net, (torch.zeros(64, dtype=torch.long), torch.zeros(64)), whole["config"], how,
                         torch.device("cpu"), (2,))
        assert not np.allclose(first, x.numpy(), atol=1e-2)


def test_crystals(tmp_path, capsys):
    out = tmp_path / "run"
    dddm.main([*TINY, "--data", "crystals", "--steps", "2", "--out", str(out)])
    files = {"config.json", "last.pt", "log.jsonl", "loss.png", "metrics.json", "samples.npz", "samples.png",
             "sampling.gif", "training_samples.png"}
    assert {p.name for p in out.iterdir()} == files
    found = np.load(out / "samples.npz")
    assert found["x"].shape == (4, 1, 64, 64) and found["x"].min() >= 0 and found["x"].max() <= 1
    assert found["kind"].tolist() == [0, 1, 2, 3] and found["theta"].dtype == np.float32
    assert json.loads((out / "metrics.json").read_text())["crystal_error_mean"] > 0.2
    dddm.main(["--data", "crystals", "--ckpt", str(out), "--kind", "2", "--theta", "0.5", "--n", "2", "--steps", "1",
               "--out", str(tmp_path / "other")])
    assert np.load(tmp_path / "other" / "samples.npz")["kind"].tolist() == [2, 2]


@pytest.fixture
def images(monkeypatch):
    """Small random sets in the place of MNIST and CIFAR-10."""
    g = torch.Generator().manual_seed(0)

    def load(name, shape):
        x_u8 = torch.randint(256, (40, *shape), generator=g, dtype=torch.uint8)
        monkeypatch.setattr(dddm.data, name, lambda folder, train: (x_u8, torch.arange(40) % 10), raising=False)
        return x_u8

    return {"mnist": load("load_mnist", (1, 28, 28)), "cifar10": load("load_cifar10", (3, 32, 32))}


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_real_images(tmp_path, capsys, images, name):
    flags = [*TINY, "--data", name, "--m", "2", "--epochs", "1", "--eval-every", "1"]
    dddm.main([*flags, "--steps", "2", "--out", str(tmp_path / "run")])
    found, log = np.load(tmp_path / "run" / "samples.npz"), (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert found["x"].shape == (4, *images[name].shape[1:]) and found["kind"].tolist() == [0, 1, 2, 3]
    assert len(log) == 3 and "mmd2_pixels" in json.loads(log[-1])  # --train-steps wins over --epochs
    assert ("frechet" in json.loads(log[-1])) == (name == "mnist")
    x_0, (kind, _) = dddm.training_batch(tiny(name), 0, (images[name], torch.arange(40) % 10), slice(1, 3))
    rows = [int((images[name].float() / 127.5 - 1 - x).flatten(1).abs().sum(1).argmin()) for x in x_0]
    assert [row % 10 for row in rows] == kind.tolist()  # an image keeps its label
    torch.testing.assert_close((x_0 + 1) * 127.5, images[name][rows].float(), atol=1e-4, rtol=0)  # 0 .. 255


def test_images_that_cannot_be_had(tmp_path, mistake, monkeypatch):
    address = "http://127.0.0.1:9/"  # nobody listens there
    monkeypatch.setattr(dddm.data, "MNIST_MIRRORS", (address,))
    folder, out = tmp_path / "d", tmp_path / "out"
    line = mistake(dddm.main, "--train", "--data", "mnist", "--data-dir", folder, "--out", out)
    assert all(word in line for word in ("train-images-idx3-ubyte", str(folder), address))


def test_wandb_gets_numbers_and_pictures_under_their_names(tmp_path, capsys, monkeypatch, quick):
    """A stand-in for the package, which is optional."""
    logged = []

    def init(**how):
        logged.append(how)
        return types.SimpleNamespace(log=lambda values, step: logged.append((step, values)))

    package = types.ModuleType("wandb")
    package.init, package.Image, package.__spec__ = init, str, importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.setitem(dddm.TRAINING_SET, "mixture", 24)  # three steps an epoch
    dddm.main(["--train", "--train-steps", "4", "--batch-size", "8", "--eval-every", "2", "--width", "16", "--n", "64",
               "--wandb", "--wandb-project", "toy", "--wandb-name", "first", "--out", str(tmp_path)])
    (how, *lines), names = logged, set()
    assert (how["project"], how["name"]) == ("toy", "first") and how["config"]["m"] == 8
    for _, values in lines:
        names |= set(values)
    assert {"train/loss", "eval/mmd2", "epoch/loss", "epoch/number", "plots/loss"} <= names
    assert [step for step, values in lines if "train/loss" in values] == [2, 4]


# --------------------------------------------------------------------------------------------------------- what ships


@pytest.mark.parametrize("name", ["mixture", "S", "circle"])
def test_four_steps_of_what_ships(name):
    net, config = dddm.shipped(name, torch.device("cpu"))
    gmm, n, mmd2 = dddm.load_source(config), 1024, []
    for seed in range(4):
        denoise = dddm.points_drawer(net, config, n, seed, "float32", torch.device("cpu"))
        mmd2.append(reference.mmd2_to_mixture(dddm.cloud(denoise, n, 4, 1.0, seed), gmm))
    assert np.mean(mmd2) < 2e-3  # exact samples: 0, and 3e-4 for the mean of four


def test_eight_steps_of_what_ships(tmp_path, capsys):
    dddm.main(["--data", "crystals", "--device", "cpu", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "metrics.json").read_text())["crystal_error_mean"] < 0.025


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.fixture
def bad(tmp_path, mistake):
    """bad(*flags): the one line of complaint, and nothing written."""

    def line_of(*flags):
        line = mistake(dddm.main, *flags, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return line

    return line_of


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("flags, words", [
    (["--m", 1], "--lam 0"), (["--beta", 0], "(0, 2]"), (["--beta", 2.1], "(0, 2]"), (["--beta", "nan"], "(0, 2]"),
    (["--lam", -0.1], "[0, 1]"), (["--lam", 1.1], "[0, 1]"), (["--churn", -1], "[0, 1]"), (["--churn", 2], "[0, 1]"),
    (["--steps", 0], "--steps"), (["--m", 0], "--m"), (["--w-bias", "inf"], "--w-bias"), (["--kind", 4], "type"),
    (["--theta", 2], "--theta"), (["--clip", 0], "--clip"), (["--data", "moons"], "moons"), (["--n", 1], "--n")])
def test_bad_flags_whether_or_not_it_trains(tmp_path, bad, monkeypatch, train, flags, words):
    config = tiny("crystals", img_size=64)
    torch.save(dict(script="dddm", config=config, step=0, ema=dddm.build(config).state_dict()), tmp_path / "a.pt")
    start = ["--train"] if train else ["--ckpt", tmp_path / "a.pt"]
    assert words in bad("--data", "crystals", *start, *flags)


@pytest.mark.parametrize("flags, words", [
    (["--width", 100, "--heads", 3], "not divisible by --heads 3"), (["--patch", 7], "--patch 7"),
    (["--img-size", 60], "--patch 8"), (["--shared", 7], "--depth 6")])
def test_networks_that_cannot_be(bad, flags, words):
    assert words in bad("--data", "crystals", "--train", *flags)


@pytest.mark.parametrize("flag, package", [("--fid", "torchmetrics[image]"), ("--wandb", "wandb")])
def test_optional_packages(bad, monkeypatch, flag, package):
    find = training.importlib.util.find_spec
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None if name in package else find(name))
    line = bad("--data", "cifar10", "--train", flag)
    assert flag in line and package in line


def test_files_that_are_missing_or_of_another_make(tmp_path, bad):
    assert "gone.pt" in bad("--ckpt", tmp_path / "gone.pt")
    assert "nothing to resume" in bad("--resume", "--ckpt", tmp_path / "nowhere")
    shipped = training.SHIPPED / "vp_sde.pt"
    assert "vp_sde.py" in bad("--ckpt", shipped)
    config = tiny("crystals")
    torch.save(dict(script="dddm", config=config, step=0, ema=dddm.build(config).state_dict()), tmp_path / "a.pt")
    assert "contradicts" in bad("--ckpt", tmp_path / "a.pt", "--width", 32)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("dddm_*.json")), ids=lambda p: p.name)
def test_presets(path):
    args, given = training.parse(dddm.make_parser(), ["--config", str(path), "--train"])
    preset = json.loads(path.read_text())
    dddm.settle(args, given, None)
    assert {key: getattr(args, key) for key in preset} == preset
