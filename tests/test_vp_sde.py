"""The main job against closed forms: schedule, samplers, guidance, network, training, and what its command does."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import pictures
import reference_gmm_sde as reference
import training
import vp_sde
from data import Condition
from vp_sde import VP, UNet

CPU, SCRIPT = torch.device("cpu"), Path(vp_sde.__file__)
SAMPLES = {"config.json", "metrics.json", "reverse_diffusion.gif", "samples.npz", "samples.png"}  # what a run writes
TINY = ["--train", "--img-size=16", "--batch-size=2", "--train-steps=6", "--save-every=2", "--steps=3", "--n=5"]


def run(*argv):
    """Exit status of the command line, in this process."""
    try:
        vp_sde.main([str(a) for a in argv])
    except SystemExit as stop:
        return stop.code
    return 0


def config(**settings):
    """The settings of a tiny training of squares, four pixels a side of the network's own grid."""
    tiny = dict(beta_max=30.0, img_size=16, batch_size=2, train_steps=3, n_types=1, precision="float32")
    return vars(vp_sde.make_parser().parse_args([])) | tiny | settings


def sampling(**settings):
    usual = dict(sampler="sde", steps=20, grid="logsnr", t_end=0.005, cfg=1.0, seed=0, sample_batch=36)
    return argparse.Namespace(**(usual | settings))


def last(samples):
    *_, (_, x, _) = samples
    return x


def same(a, b):
    """Bit for bit, through dicts and lists of tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


@pytest.fixture(scope="module", autouse=True)
def small_network():
    """The network of this file's trainings: the same, with fewer channels, too small to be worth a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vp_sde, "UNet", partial(UNet, widths=(16, 16, 16), d_emb=64))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny training that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "never_stopped"
    assert run(*TINY, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def lively():
    """A small network of which every weight matters (a fresh one is zero at its end)."""
    torch.manual_seed(0)
    net = UNet(VP(), widths=(8, 8, 8), d_emb=32).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net


@pytest.fixture
def quick(monkeypatch):
    """Training without its pictures and its held-out exam, where only the weights are of interest."""
    monkeypatch.setattr(pictures, "loss_curve", lambda *args: None)
    monkeypatch.setattr(vp_sde, "score_error", lambda *args: {"bins": {"0.5": 1.0}})


# --------------------------------------------------------------------------------------------------------- the schedule


@pytest.mark.parametrize("vp", [VP(), VP(0.5, 7.0), VP(2.0, 2.0)])
def test_schedule_against_quadrature_and_its_identities(vp):
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    node, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(5))
    integral = t / 2 * (weight[:, None] * vp.beta(t / 2 * (node[:, None] + 1))).sum(0)
    torch.testing.assert_close(vp.B(t), integral, rtol=1e-13, atol=1e-15)
    alpha, sigma = vp.alpha_sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14, atol=0)
    torch.testing.assert_close(alpha[1:], torch.exp(-integral / 2)[1:], rtol=1e-12, atol=0)
    torch.testing.assert_close(vp.log_snr(t[1:]), 2 * torch.log(alpha / sigma)[1:], rtol=1e-9, atol=1e-12)
    assert (alpha[0], sigma[0]) == (1, 0)
    assert (float(vp.beta(t)[0]), float(vp.beta(t)[-1])) == (vp.beta_min, vp.beta_max)
    judge = reference.VPSchedule(vp.beta_min, vp.beta_max)
    np.testing.assert_allclose(vp.log_snr(t[1:]), judge.log_snr(t[1:].numpy()), rtol=1e-12)
    np.testing.assert_allclose(vp.at(0.3), [judge.beta(0.3), *judge.alpha_sigma(0.3)], rtol=1e-14)


def test_sigma_keeps_its_digits_near_the_data():
    t = 1e-12  # where B(t) is 0.1 t
    assert abs(VP().at(t)[2] / np.sqrt(0.1 * t) - 1) < 1e-6  # sqrt(1 - alpha^2) would be off by 4e-4


@pytest.mark.parametrize("kind", ["uniform", "quadratic", "logsnr"])
def test_grids(kind):
    times = vp_sde.time_grid(21, 0.005, kind, VP())
    assert len(times) == 21 and (times[0], times[-1]) == (1.0, 0.005)  # the last network call is at t_end
    assert all(t > s for t, s in pairwise(times))
    even = {"uniform": lambda t: t, "quadratic": torch.sqrt, "logsnr": VP().log_snr}[kind]
    steps = even(torch.tensor(times, dtype=torch.float64)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(20), rtol=1e-6, atol=0)
    assert vp_sde.time_grid(1, 0.005, kind, VP()) == [1.0]


# ------------------------------------------------------------------------------------------------- eps, score, v and x0


def test_eps_score_v_and_x0_are_one_thing():
    """A network that knows x0: from its v, the public eps, then score and x0, come back exactly."""
    vp, g = VP(), torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, 1, 16, 16, generator=g, dtype=torch.float64) for _ in range(2))
    for t in (0.005, 0.2, 0.6, 1.0):
        _, alpha, sigma = vp.at(t)
        x = alpha * x0 + sigma * eps

        def net(x_t, times, condition, t=t, alpha=alpha, sigma=sigma):
            assert bool((times == torch.tensor(t)).all())
            return alpha * (x_t - alpha * x0) / sigma - sigma * x0

        net.schedule = vp
        got = vp_sde.eps_of(net, CPU, "float32")(x, t, data.asked_for(4))
        torch.testing.assert_close(got, eps, rtol=0, atol=1e-12)
        score = (alpha * x0 - x) / sigma**2  # the gradient of log N(x; alpha x0, sigma^2)
        torch.testing.assert_close(-got / sigma, score, rtol=1e-9, atol=1e-9)
        if alpha > 0.01:
            torch.testing.assert_close((x - sigma * got) / alpha, x0, rtol=0, atol=1e-10)
        loss = vp_sde.loss_of(net, VP(), x0, None, torch.full((4,), t), eps)
        assert loss < 1e-12 and vp_sde.loss_of(net, VP(), x0 + 1, None, torch.full((4,), t), eps) > 1e-3


# --------------------------------------------------------------------------------------------------------- the samplers


@pytest.mark.parametrize("sampler", vp_sde.SAMPLERS)
def test_with_the_exact_denoiser_every_sampler_reaches_the_true_crystal(sampler):
    condition = Condition(torch.tensor([0, 2, 3]), torch.tensor([[0, 0.1, 0, 0], [0, 0.6, 0, 0], [0, 1.0, 0, 0.0]]),
                          torch.ones(3, dtype=torch.bool))
    truth = data.render([0, 2, 3], condition.cont[:, 1], img_size=32)
    for grid in ("uniform", "logsnr"):
        args = sampling(sampler=sampler, grid=grid)
        x, film = vp_sde.draw(vp_sde.exact_eps(config(img_size=32)), condition, (1, 32, 32), args, VP())
        assert ((x + 1) / 2 - truth).abs().max() < 1e-5
        assert film[0][0] == 1.0 and film[-1][0] == 0.0 and torch.equal(film[-1][1], x)
        assert (film[0][1].std() - 1).abs() < 0.05  # it starts in pure noise


def noise_at_the_end(sampler, grid, steps=300, t_end=0.005):
    """Standard deviation at t_end in units of sigma(t_end), where the data are one point, 0.

    Everything is linear then, so nothing need be drawn: one particle per source of randomness, the start and the noise
    of each step, and their final squares add up.
    """
    vp, start, noise = VP(), torch.zeros(steps, 1, dtype=torch.float64), torch.eye(steps, dtype=torch.float64)
    start[0] = 1.0
    times = vp_sde.time_grid(steps, t_end, grid, vp)
    *_, (t, x, x0_hat), (zero, final, _) = sampler(lambda x, t: x / vp.at(t)[2], start, times, vp, noise[1:, :, None])
    assert t == t_end and zero == 0.0 and final.abs().max() < 1e-12 and x0_hat.abs().max() < 1e-12
    return float(x.square().sum().sqrt()) / vp.at(t_end)[2]


def test_the_noise_level_a_sampler_ends_with():
    assert 1.01 < noise_at_the_end(vp_sde.reverse_sde, "logsnr") < 1.035
    assert 1.01 < noise_at_the_end(vp_sde.reverse_sde, "quadratic") < 1.045
    assert 1.3 < noise_at_the_end(vp_sde.reverse_sde, "uniform") < 1.36  # a third too noisy: not the default
    assert vp_sde.make_parser().parse_args([]).grid in ("logsnr", "quadratic")
    assert abs(noise_at_the_end(vp_sde.probability_flow, "logsnr") - 1) < 0.002
    assert abs(noise_at_the_end(vp_sde.dpmpp_2m, "logsnr", steps=10) - 1) < 1e-6  # exact for one point


@pytest.mark.parametrize("grid", ["quadratic", "logsnr"])
def test_samplers_agree_with_the_judge_step_by_step(grid):
    """On a mixture, in float64, with the same start and the same noise."""
    vp, rng = VP(0.1, 20.0), np.random.default_rng(0)
    judge = reference.VPSchedule(0.1, 20.0)
    gmm, start = reference.mixture("two", judge), rng.standard_normal((50, 2))
    times, z = vp_sde.time_grid(31, 0.01, grid, vp), rng.standard_normal((30, 50, 2))

    def eps(x, t):
        return torch.from_numpy(gmm.eps(x.numpy(), t))

    pairs = [(vp_sde.reverse_sde, reference.euler_maruyama(gmm.score, start, times, judge, z)),
             (vp_sde.probability_flow, reference.heun(gmm.score, start, times, judge)),
             (vp_sde.dpmpp_2m, reference.dpmpp_2m(gmm.score, start, times, judge))]
    for sampler, path in pairs:
        *ours, (_, final, _) = sampler(eps, torch.from_numpy(start), times, vp, torch.from_numpy(z))
        for (t, x, x0_hat), (t_ref, x_ref) in zip(ours, path, strict=True):
            assert t == t_ref
            np.testing.assert_allclose(x, x_ref, rtol=0, atol=1e-8 * max(1, np.abs(x_ref).max()))
            np.testing.assert_allclose(x0_hat, gmm.posterior_mean(x_ref, t_ref), atol=1e-6)
        assert torch.equal(final, x0_hat)


# -------------------------------------------------------------------------------------------------- guidance, condition


def test_guidance():
    def eps(x, t, condition):
        known = condition.known[:, None]
        return torch.where(known, 3.0, 1.0) * x + t + 10 * condition.cont[:, 1:2] * known

    x, condition = torch.randn(4, 2, dtype=torch.float64), data.asked_for(4)
    eps_u, eps_c = eps(x, 0.5, condition.dropped()), eps(x, 0.5, condition)
    assert not torch.equal(eps_u, eps_c)
    for w, expected in ((0, eps_u), (1, eps_c), (1.5, eps_u + 1.5 * (eps_c - eps_u)), (1e-9, eps_u), (1 + 1e-9, eps_c)):
        torch.testing.assert_close(vp_sde.guided(eps, condition, w)(x, 0.5), expected, rtol=0, atol=1e-6)


def test_what_is_not_told_is_hidden_and_what_is_told_is_heard(lively):
    x, t = torch.randn(4, 1, 32, 32), torch.full((4,), 0.4)
    told = data.asked_for(4)
    other_kind = told._replace(kind=(told.kind + 1) % 4)
    other_cont = told._replace(cont=told.cont + torch.tensor([9.0, 0.4, 0.1, 0.2]))
    with torch.no_grad():
        v, hidden = lively(x, t, told), lively(x, t, told.dropped())
        for other in (other_kind, other_cont):
            assert torch.equal(lively(x, t, other.dropped()), hidden)
            assert (lively(x, t, other) - v).flatten(1).abs().amax(1).min() > 1e-3
    upright = told._replace(cont=torch.zeros(4, 4))
    assert torch.equal(lively.position(8, told.dropped()), lively.position(8, upright))  # the turn is undone
    assert (lively.position(8, told) - lively.position(8, upright))[1:].abs().max() > 0.01
    mixed = told._replace(known=torch.tensor([True, False, True, False]))
    with torch.no_grad():
        torch.testing.assert_close(lively(x, t, mixed)[1::2], hidden[1::2], rtol=1e-4, atol=1e-4)


def test_positions_turn_with_the_crystal():
    """A cell's coordinates, turned by theta, run along the lattice's own axes: waves of its spacing peak on atoms."""
    net = UNet(VP(), widths=(8, 8, 8), d_emb=32)
    for theta in (0.0, 0.3, 1.0):
        u, v = 32 * net.position(16, data.asked_for(1, 0, theta))[0, :2]
        assert u[8, 9] - u[8, 8] == pytest.approx(4 * np.cos(theta), abs=1e-4)  # pixels
        wave = torch.cos(2 * np.pi * u / data.SPACING) + torch.cos(2 * np.pi * v / data.SPACING)
        image = torch.nn.functional.avg_pool2d(data.render([0], [theta]), 4)[0, 0]
        assert np.corrcoef(wave.flatten(), image.flatten())[0, 1] > 0.8


def test_default_conditions():
    kind, cont, known = data.asked_for(40)
    assert kind.tolist() == [i % 4 for i in range(40)] and bool(known.all())
    assert cont[:, 1].tolist() == pytest.approx([i % 36 / 35 * np.pi / 3 for i in range(40)], abs=1e-6)
    kind, cont, _ = data.asked_for(3, kind=2, theta=0.5)
    assert kind.tolist() == [2, 2, 2] and cont[:, 1].tolist() == [0.5] * 3
    assert data.asked_for(5, n_types=2).kind.tolist() == [0, 1, 0, 1, 0]


# -------------------------------------------------------------------------------------------------------------- drawing


def test_sample_i_depends_on_neither_batch_nor_number(lively):
    """Start, noise and condition bit for bit, images to 1e-3."""
    seen, plain = {}, vp_sde.eps_of(lively, CPU, "float32")

    def eps(x, t, condition):
        if t == 1.0:
            seen.setdefault(key, []).append((x.clone(), condition))
        return plain(x, t, condition)

    images = {}
    for key in ((8, 36), (8, 3), (5, 36), (5, 1)):
        n, batch = key
        args = sampling(sample_batch=batch, steps=4, t_end=0.3)
        images[key], _ = vp_sde.draw(eps, data.asked_for(n), (1, 16, 16), args, VP())
        start = torch.cat([x for x, _ in seen[key]])
        kinds, thetas = (torch.cat([c[i] for _, c in seen[key]]) for i in (0, 1))
        assert torch.equal(start[:5], seen[8, 36][0][0][:5])
        assert torch.equal(kinds[:5], torch.arange(5) % 4) and torch.equal(thetas[:5], data.asked_for(36).cont[:5])
        scale = images[8, 36].abs().max()  # an untrained network: its images are of any size
        assert (images[key][:5] - images[8, 36][:5]).abs().max() < 1e-3 * scale
    later = next(vp_sde.endless_noise(0, [4], (1, 16, 16)))
    assert torch.equal(later[0], torch.randn(1, 16, 16, generator=training.generator(0, 4, 2)))  # as it always was
    assert torch.equal(later[0], seen[8, 36][0][0][4]) and not torch.equal(later[0], start[3])


def test_the_film_is_even_in_log_snr():
    schedule = vp_sde.VP()
    times = vp_sde.time_grid(3000, 0.005, "uniform", schedule)
    shown = sorted(vp_sde.moments(times, schedule))
    assert shown[0] == 0 and shown[-1] == len(times) and len(shown) <= 34
    spacing = np.diff(schedule.log_snr(torch.tensor(times, dtype=torch.float64))[shown[1:-1]])
    assert np.abs(spacing / spacing.mean() - 1).max() < 0.5
    log_snr = schedule.log_snr(torch.tensor(times, dtype=torch.float64))
    assert log_snr[shown[1]] == pytest.approx(-5, abs=0.05) and shown[-2] == len(times) - 1  # from there to the end
    late = [t for t in times if t < 0.5]  # where something is to be seen from the first moment on
    assert sorted(vp_sde.moments(late, schedule))[1] > 1


def test_noise_is_fresh_at_every_step():
    stream = vp_sde.endless_noise(0, [0, 1], (1, 16, 16))
    draws = torch.stack([next(stream) for _ in range(6)]).flatten(0, 1).flatten(1)
    assert (torch.corrcoef(draws) - torch.eye(12)).abs().max() < 0.35


def test_memory_grows_by_the_results_only():
    alive, most = [], {}
    for n in (8, 80):
        alive.clear()

        def eps(x, t, condition, n=n):
            alive.append(weakref.ref(x))
            most[n] = max(most.get(n, 0), sum(ref() is not None for ref in alive))
            return 0 * x

        x, film = vp_sde.draw(eps, data.asked_for(n), (1, 16, 16), sampling(sample_batch=4, steps=10), VP())
        assert len(x) == n and len(film) <= 34
        assert sum(len(x_t) for _, x_t, _ in film) <= 34 * 4  # the film is of the first batch
        assert all(x_t.untyped_storage().nbytes() == x_t.nbytes for _, x_t, _ in film)
    assert most[80] <= most[8] <= 4


def test_a_state_that_blows_up_is_reported():
    with pytest.raises(FloatingPointError, match="blew up before t = 0.9"):
        vp_sde.draw(lambda x, t, c: x / 0, data.asked_for(2), (1, 16, 16), sampling(), VP())


# ------------------------------------------------------------------------------------------------------------- training


def test_the_average_takes_parameters_with_a_warm_up_and_copies_buffers():
    net, ema = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2).requires_grad_(False)
    for step, decay in ((0, 0.1), (90, 0.91), (10**6, 0.999)):
        ema.weight.data.fill_(1.0)
        net.weight.data.fill_(3.0)
        net.running_mean.fill_(7.0 + step)
        net.num_batches_tracked.fill_(step)
        vp_sde.update_ema(ema, net, 0.999, step)
        torch.testing.assert_close(ema.weight.data, torch.full((2,), 3.0 - 2.0 * decay))
        assert torch.equal(ema.running_mean, net.running_mean) and ema.num_batches_tracked == step


def test_draws_of_a_step_depend_on_seed_and_step():
    def batch(seed, step, **more):
        return vp_sde.training_batch(config(seed=seed, n_types=4), step, None, 6, **more)

    (x, condition), again = batch(0, 3), batch(0, 3)
    assert torch.equal(x, again[0]) and same(list(condition), list(again[1]))
    for other in (batch(1, 3), batch(0, 4), batch(0, 3, held_out=True)):
        assert not torch.equal(other[0], x)
    exact = data.render(condition.kind, condition.cont[:, 1].double(), img_size=16)
    squares = condition.kind != 1
    assert ((x + 1) / 2 - exact)[squares].abs().max() < 0.003  # in [-1, 1], under the right condition


def test_score_error_is_zero_for_the_truth_and_right_for_an_offset():
    x0, condition = vp_sde.training_batch(config(n_types=4), 0, None, 8, held_out=True)
    exact = vp_sde.exact_eps(config())
    report = vp_sde.score_error(exact, exact, x0, condition, VP(), 0, bins=3)
    assert list(report["bins"].values()) == [0, 0, 0] and list(report["bins"]) == ["0.17", "0.50", "0.83"]
    assert report["loss_rectangular"] == report["best_rectangular"]
    off = vp_sde.score_error(lambda *a: exact(*a) + 0.1, exact, x0, condition, VP(), 0, bins=3)
    assert list(off["bins"].values()) == pytest.approx([0.01] * 3, rel=1e-3)


def test_only_crystals_of_unknown_aspect_have_a_best_loss_above_zero():
    x0, condition = vp_sde.training_batch(config(n_types=4), 0, None, 16, held_out=True)
    exact = vp_sde.exact_eps(config())
    report = vp_sde.score_error(exact, exact, x0, condition, VP(), 0, bins=3)
    eps = torch.randn(x0.shape, generator=training.generator(0, 2**40))
    _, alpha, sigma = VP().at(0.5)
    each = (exact(alpha * x0 + sigma * eps, 0.5, condition) - eps).square().mean((1, 2, 3))
    rectangular = condition.kind == 1
    assert rectangular.any() and each[rectangular].min() > 10 * each[~rectangular].max()  # which is their rounding
    assert report["best_rectangular"]["0.50"] == pytest.approx(each[rectangular].mean().item(), rel=1e-4)
    x0, condition = vp_sde.training_batch(config(n_types=1), 0, None, 4, held_out=True)
    assert vp_sde.score_error(exact, exact, x0, condition, VP(), 0, bins=3)["best_rectangular"] == {}


class Spy(torch.nn.Module):
    """A network that remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, t, condition):
        self.seen = x, t, condition
        return self.w * x


def test_a_step_draws_a_time_in_each_nth_drops_some_conditions_and_knows_its_share():
    settings, shown = config(batch_size=400, p_uncond=0.25, lr=0.5, train_steps=1000), []
    for rows in (slice(0, 400), slice(100, 200)):
        spy = Spy()
        optimizer = torch.optim.SGD(spy.parameters(), lr=0.0)
        loss, norm = vp_sde.gradient_of(spy, VP(), optimizer, settings, 3, None, CPU, rows)
        shown.append(spy.seen)
        assert optimizer.param_groups[0]["lr"] == training.learning_rate(3, 1000, 0.5)
        assert loss > 0 and spy.w.grad.abs() == pytest.approx(min(norm, 1.0), rel=1e-4)
    (x, t, condition), part = shown
    assert torch.equal((t * 400).floor(), torch.arange(400.0))
    g = training.generator(settings["seed"], 3, 0)  # a run that an older version started goes on with the same draws
    assert torch.equal(t, (torch.arange(400) + torch.rand(400, generator=g)) / 400)
    assert (~condition.known).float().mean() == pytest.approx(0.25, abs=0.07)
    x0, _ = vp_sde.training_batch(settings, 3, None, 400)
    alpha, sigma = (vp_sde.like(a, x) for a in VP().alpha_sigma(t))
    eps = (x - alpha * x0) / sigma
    assert abs(eps.mean()) < 0.01 and eps.std() == pytest.approx(1, abs=0.01)
    assert torch.equal(part[0], x[100:200]) and torch.equal(part[1], t[100:200])
    assert all(torch.equal(a, b[100:200]) for a, b in zip(part[2], condition, strict=True))


def test_a_little_training_learns_what_no_network_without_the_condition_can(tmp_path):
    """At t = 0.94 x_0 is invisible.  Without the angle the best guess is the mean, whose error is the variance."""
    settings = config(train_steps=180, batch_size=8, lr=2e-2, ema_decay=0.9)
    x, _ = vp_sde.training_batch(settings, 10**6, None, 400)
    net = vp_sde.train(settings, tmp_path, CPU)
    _, alpha, sigma = VP().at(0.9375)
    line = training.Log(tmp_path / "log.jsonl", step=10**9).lines[-1]
    x0_error = line["bins"]["0.94"] * (sigma / alpha) ** 2
    assert x0_error < 0.5 * x.var(0).mean()
    x0, told = vp_sde.training_batch(settings, 0, None, 32, held_out=True)
    eps, exact, x_1 = vp_sde.eps_of(net, CPU, "float32"), vp_sde.exact_eps(settings), torch.randn(x0.shape)
    wrong = told._replace(cont=told.cont.roll(7, 0))
    truth = exact(x_1, 0.9375, told)
    errors = [(eps(x_1, 0.9375, c) - truth).square().mean() for c in (told, wrong, told.dropped())]
    assert errors[1] > 2 * errors[0]  # it listens to the angle
    assert errors[2] > 0.5 * x.var(0).mean() * (alpha / sigma) ** 2  # and cannot know it when it is not told


KNOBS = [dict(seed=1), dict(lr=1e-3), dict(batch_size=3), dict(train_steps=4), dict(beta_min=0.5), dict(beta_max=20.0),
         dict(p_uncond=0.9), dict(mode="simple"), dict(n_types=4), dict(img_size=32), dict(precision="bf16")]


def test_every_knob_of_the_training_changes_the_weights(tmp_path, quick):
    def weights(**settings):
        ema = vp_sde.train(config(**settings), tmp_path, CPU)
        checkpoint = training.load_checkpoint(tmp_path, "vp_sde")
        return checkpoint["model"], ema.state_dict()

    usual = weights()
    assert same(usual, weights())
    for knob in KNOBS:
        assert not same(usual[0], weights(**knob)[0]), knob
    model, ema = weights(ema_decay=0.01)
    assert same(usual[0], model) and not same(usual[1], ema)
    data.build(8, tmp_path / "built.pt", seed=9, n_types=1, img_size=16)
    assert not same(usual[0], weights(data_path=str(tmp_path / "built.pt"))[0])


def test_a_built_file_trains_on_its_own_rows(tmp_path):
    data.build(8, tmp_path / "built.pt", seed=9, img_size=16)
    settings = config(data_path=str(tmp_path / "built.pt"))
    source = vp_sde.load_source(settings)
    x, condition = vp_sde.training_batch(settings, 0, source, 30)
    for image, kind, cont in zip(x, condition.kind, condition.cont, strict=True):
        row = (source["x_u8"] == ((image + 1) * 127.5).round().to(torch.uint8)).flatten(1).all(1).nonzero()[0, 0]
        assert source["y_cat"][row] == kind and torch.equal(source["y_cont"][row], cont)


def test_a_loss_that_is_not_finite_keeps_the_last_good_file(tmp_path, capsys, quick, monkeypatch):
    plain, calls = vp_sde.loss_of, []

    def loss_of(*args):
        calls.append(1)
        return plain(*args) * (float("nan") if len(calls) == 4 else 1)

    steps, plain_step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: steps.append(1) or plain_step(self))
    monkeypatch.setattr(vp_sde, "loss_of", loss_of)
    assert run(*TINY, "--out", tmp_path) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "nan at step 4" in error and "last.pt" in error
    assert len(calls) == 4 and len(steps) == 3  # it never touched the weights
    good = training.load_checkpoint(tmp_path, "vp_sde")
    assert good["step"] == 2 and all(bool(w.isfinite().all()) for w in good["model"].values())


# -------------------------------------------------------------------------------------------------- stopped and resumed


def state(out):
    checkpoint = training.load_checkpoint(out, "vp_sde")
    return [checkpoint[key] for key in ("step", "model", "ema", "optimizer")]


def test_ctrl_c_finishes_the_step_saves_and_resumes_bit_for_bit(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "loss_curve", lambda *args: None)
    plain_rate, plain_save = training.learning_rate, training.save_checkpoint

    def rate(step, *args):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return plain_rate(step, *args)

    def save(*args):
        if args[1]["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)  # an impatient user
        plain_save(*args)

    monkeypatch.setattr(training, "learning_rate", rate)
    monkeypatch.setattr(training, "save_checkpoint", save)
    assert run(*TINY, "--out", tmp_path) == 130
    monkeypatch.undo()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "stopped at step 3" in error and f"--resume --out {tmp_path}" in error
    assert state(tmp_path)[0] == 3
    assert run("--resume", "--out", tmp_path) == 0
    assert same(state(tmp_path), state(trained))
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    with np.load(tmp_path / "samples.npz") as a, np.load(trained / "samples.npz") as b:
        assert np.array_equal(a["x"], b["x"])


def test_kill_9_loses_no_more_than_the_interval(tmp_path, capfd):
    """A real process, killed without warning after its first checkpoint."""
    argv = ["--train", "--data=S", "--train-steps=8", "--save-every=2", "--batch-size=32", "--n=9", "--steps=3"]
    assert run(*argv, "--out", tmp_path / "never_stopped") == 0
    threads, out = {"OMP_NUM_THREADS": str(torch.get_num_threads())}, tmp_path / "killed"
    process = subprocess.Popen([sys.executable, SCRIPT, *argv, "--out", out], env=os.environ | threads)
    deadline = time.monotonic() + 60
    while not (out / "last.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 2 <= state(out)[0] < 8
    assert run("--resume", "--out", out) == 0
    assert same(state(out), state(tmp_path / "never_stopped"))


def test_a_longer_run_goes_on_from_a_finished_one(trained, tmp_path, capsys, quick):
    for name in ("last.pt", "log.jsonl"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert run("--resume", "--out", tmp_path, "--train-steps", 8, "--save-every", 5) == 0
    assert state(tmp_path)[0] == 8
    stored = training.load_checkpoint(tmp_path, "vp_sde")["config"]
    assert (stored["train_steps"], stored["save_every"], stored["batch_size"], stored["img_size"]) == (8, 5, 2, 16)


def test_epochs_are_passes_over_the_file_and_a_longer_run_stays_longer(tmp_path, capsys, quick):
    data.build(8, tmp_path / "built.pt", n_types=1, img_size=16)
    start = [flag for flag in TINY if "train-steps" not in flag] + ["--data-path", tmp_path / "built.pt", "--epochs=1"]
    assert run(*start, "--n-types=1", "--out", tmp_path / "out") == 0
    assert state(tmp_path / "out")[0] == 4  # 8 crystals, 2 a step
    for more in (["--train-steps=5"], []):
        assert run("--resume", "--out", tmp_path / "out", *more) == 0
        assert training.load_checkpoint(tmp_path / "out", "vp_sde")["config"]["train_steps"] == 5
        assert json.loads((tmp_path / "out" / "config.json").read_text())["train_steps"] == 5


# ---------------------------------------------------------------------------------------------------------- the command


def sampled(out, *argv):
    assert run(*argv, "--out", out) == 0
    with np.load(out / "samples.npz") as arrays:
        return {name: arrays[name] for name in arrays}


def test_the_same_command_gives_the_same_bits_and_every_flag_has_an_effect(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "captioned_grid", lambda *args: None)
    usual = ["--ckpt", trained, "--steps", 4, "--n", 4]
    first = sampled(tmp_path, *usual)
    assert first["x"].shape == (4, 1, 16, 16) and first["x"].dtype == np.float32
    assert first["kind"].dtype == np.int64 and first["theta"].dtype == np.float32
    assert first["x"].min() >= 0 and first["x"].max() <= 1
    again = sampled(tmp_path, *usual)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    for flag in ("--seed 1", "--steps 5", "--grid uniform", "--grid quadratic", "--t-end 0.1", "--sampler ode",
                 "--sampler dpmpp", "--kind 2", "--theta 0.5", "--use-ema 0", "--cfg 0", "--cfg 1"):
        other = sampled(tmp_path, *usual, *flag.split())
        assert not np.array_equal(first["x"], other["x"]), flag
    few = sampled(tmp_path, *usual, "--n", 2, "--sample-batch", 1)
    assert np.abs(few["x"] - first["x"][:2]).max() < 1e-3


def test_the_files_of_a_run_and_its_film(tmp_path, capsys):
    assert run("--oracle", "--kind", 0, "--steps", 40, "--out", tmp_path) == 0
    names = sorted(SAMPLES)
    assert sorted(os.listdir(tmp_path)) == names
    told = capsys.readouterr()
    assert all(word in told.out for word in ("device cpu", "crystal error", "n = 36", "8 bits", *names, str(tmp_path)))
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["n"] == 36 and result["crystal_error_mean"] < 1e-4
    gif = tmp_path / "reverse_diffusion.gif"
    with Image.open(gif) as movie:
        delays = []
        for i in range(movie.n_frames):
            movie.seek(i)
            delays.append(movie.info["duration"])
        assert movie.info["loop"] == 0 and movie.size == (6 * 66, 6 * 66)
    assert 20 <= len(delays) <= 40 and set(delays[:-1]) == {80} and delays[-1] == 1500
    assert gif.stat().st_size <= 4e6
    again = json.loads((tmp_path / "config.json").read_text())
    assert again["steps"] == 40 and again["cfg"] == 1.0 and again["precision"] in ("bf16", "float32")


def test_sampling_again_replaces_its_own_files_only(trained, tmp_path, capsys):
    sampled(tmp_path, "--ckpt", trained, "--steps", 2, "--n", 2)
    usual = set(os.listdir(tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    os.link(tmp_path / "samples.npz", tmp_path / "linked.npz")  # a file moved into place leaves the old one as it was
    old = (tmp_path / "samples.npz").read_bytes()
    sampled(tmp_path, "--ckpt", trained, "--steps", 2, "--n", 3)
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "linked.npz").read_bytes() == old
    assert (tmp_path / "samples.npz").read_bytes() != old
    assert set(os.listdir(tmp_path)) == usual | {"notes.txt", "linked.npz"}


def test_without_out_samples_go_below_their_run(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = {p.name: p.read_bytes() for p in trained.iterdir() if p.is_file()}
    for ckpt in (trained, trained / "last.pt"):
        assert run("--ckpt", ckpt, "--steps", 2, "--n", 2) == 0
        assert {p.name for p in (trained / "crystals_sde_seed0").iterdir()} == SAMPLES
        shutil.rmtree(trained / "crystals_sde_seed0")
    assert old == {p.name: p.read_bytes() for p in trained.iterdir()} and not os.listdir(tmp_path)


def test_a_config_repeats_its_run(trained, tmp_path, capsys):
    first = sampled(tmp_path / "a", "--ckpt", trained, "--steps", 2, "--n", 3, "--cfg", 0.5, "--seed", 7)
    again = sampled(tmp_path / "b", "--config", tmp_path / "a" / "config.json")
    assert np.array_equal(first["x"], again["x"])
    points = ["--train", "--data", "S", "--train-steps", 2, "--batch-size", 8, "--n", 50, "--steps", 3]
    first = sampled(tmp_path / "c", *points)
    again = sampled(tmp_path / "d", "--train", "--config", tmp_path / "c" / "config.json")
    assert np.array_equal(first["x"], again["x"]) and first["x"].shape == (50, 2)


def test_without_a_condition_the_nearest_crystal_of_any_kind_is_reported(trained, tmp_path, capsys):
    sampled(tmp_path, "--ckpt", trained, "--steps", 2, "--n", 2, "--cfg", 0)
    assert json.loads((tmp_path / "metrics.json").read_text())["condition"] == "none"


def test_modes_other_than_the_default_run(tmp_path, capsys, quick):
    for i, (mode, cfg, shown) in enumerate((("full", 1, True), ("full", 0, False), ("simple", 1, True))):
        out = tmp_path / str(i)
        assert run(*TINY, "--mode", mode, "--cfg", cfg, "--out", out) == 0
        assert ("crystal_error_mean" in json.loads((out / "metrics.json").read_text())) == shown
    with np.load(out / "samples.npz") as arrays:
        assert not arrays["theta"].any()  # simple crystals are not turned


def test_the_shipped_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(vp_sde, "UNet", UNet)  # the whole of it
    assert run("--sampler", "dpmpp", "--steps", 10, "--out", tmp_path) == 0
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["n"] == 36 and result["crystal_error_mean"] < 0.016
    assert run("--use-ema", 0, "--steps", 2, "--out", tmp_path) == 2
    assert "averaged weights" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_seed_is_the_same_crystal_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(vp_sde, "UNet", UNet)
    few = ["--sampler", "dpmpp", "--steps", 10, "--n", 4, "--precision", "float32"]
    on = [sampled(tmp_path / device, *few, "--device", device)["x"] for device in ("cpu", "cuda")]
    assert np.abs(on[0] - on[1]).max() < 0.02


# ------------------------------------------------------------------------------------------------------------- mistakes


def text(path, content="not a checkpoint\n"):
    path.write_text(content)
    return path


def shipped(source, path):
    training.ship(source / "last.pt", path)
    return path


def edited(source, path, **changes):
    checkpoint = training.load_checkpoint(source) | changes
    training.save_checkpoint(path, checkpoint)
    return path


def built(path, **changes):
    data.build(6, path, img_size=16)
    torch.save(data.load_built(path) | changes, path)
    return path


FLAGS = ["--stpes 3", "--steps 0", "--steps -1", "--steps 2.5", "--steps x", "--steps", "--n 0", "--n -3", "--kind 7",
         "--kind -1", "--theta 1.05", "--theta -0.1", "--theta nan", "--t-end 0", "--t-end 1", "--t-end -1",
         "--t-end nan", "--cfg -1", "--cfg inf", "--cfg nan", "--use-ema 2", "--sample-batch 0", "--seed -1",
         "--grid cosine", "--sampler rk45", "--device tpu", "--device cuda:77", "--img-size 40", "--img-size 8",
         "--n-types 5", "--n-types 0", "--beta-min 0", "--beta-min nan", "--beta-min 50", "--beta-max -2",
         "--beta-max 1e9", "--beta-max 1e-3", "--p-uncond 2", "--lr 0", "--ema-decay 1", "--epochs 0",
         "--train-steps 0", "--batch-size -5", "--save-every 0", "--mode cubic", "--data moons", "--data S --cfg 2",
         "--data S --kind 1", "--oracle --cfg 2", "--oracle --mode full", "--resume", "extra", "--step 3",
         "--kind cubic", "--theta 45"]
FILES = {
    "a checkpoint that is missing": (lambda t, d: ["--ckpt", d / "no.pt"], "there is no checkpoint"),
    "an empty run folder": (lambda t, d: ["--ckpt", d], "there is no checkpoint"),
    "a text file": (lambda t, d: ["--ckpt", text(d / "a.pt")], "no checkpoint of this project"),
    "a checkpoint cut short": (lambda t, d: ["--ckpt", cut(t / "last.pt", d / "a.pt")], "cut short"),
    "another script's": (lambda t, d: ["--ckpt", edited(t, d / "a.pt", script="vae")], "made by vae.py"),
    "another network's": (lambda t, d: ["--ckpt", edited(t, d / "a.pt", ema={"w": torch.ones(1)})], "do not fit"),
    "a config without its keys": (lambda t, d: ["--ckpt", edited(t, d / "a.pt", config={"data": "S"})], "mode"),
    "a model flag that contradicts": (lambda t, d: ["--ckpt", t, "--img-size", 32], "--img-size 32 contradicts"),
    "raw weights of a shipped file": (lambda t, d: ["--ckpt", shipped(t, d / "s.pt"), "--use-ema", 0], "averaged"),
    "training into the folder of a run": (lambda t, d: ["--train", "--out", t], "by --resume"),
    "samples of another network": (lambda t, d: ["--oracle", "--out", t], "another folder"),
    "training from a checkpoint": (lambda t, d: ["--train", "--ckpt", t], "leave --ckpt out"),
    "nothing to resume": (lambda t, d: ["--resume", "--out", d / "no"], "nothing to resume"),
    "resume without a folder": (lambda t, d: ["--resume"], "--out DIR"),
    "resume that contradicts": (lambda t, d: ["--resume", "--out", t, "--lr", 0.5], "--lr 0.5 contradicts"),
    "resume that is shorter": (lambda t, d: ["--resume", "--out", t, "--train-steps", 5], "less than the 6"),
    "an output folder that is a file": (lambda t, d: ["--ckpt", t, "--out", text(d / "f")], "cannot write"),
    "an output folder under a file": (lambda t, d: ["--ckpt", t, "--out", text(d / "f") / "x"], "cannot write"),
    "a config that is missing": (lambda t, d: ["--config", d / "no.json"], "cannot read the config"),
    "a config with an unknown key": (lambda t, d: ["--config", text(d / "c.json", '{"stpes": 3}')], "'stpes'"),
    "data that are missing": (lambda t, d: ["--train", "--data-path", d / "no.pt"], "no data file"),
    "data that are text": (lambda t, d: ["--train", "--data-path", text(d / "a.pt")], "no data file"),
    "data cut short": (lambda t, d: ["--train", "--data-path", cut(built(d / "b.pt"), d / "a.pt")], "damaged"),
    "data with wrong keys": (lambda t, d: ["--train", "--data-path", edited(t, d / "a.pt")], "x_u8"),
    "data of another shape": (lambda t, d: ["--train", "--data-path", built(d / "a.pt", y_cat=torch.ones(2))], "y_cat"),
    "data of another size": (lambda t, d: ["--train", "--data-path", built(d / "a.pt")], "say --img-size 16"),
    "CUDA where there is none": (lambda t, d: ["--ckpt", t, "--device", "cuda"], "--device cuda"),
}


def cut(source, path):
    path.write_bytes(source.read_bytes()[:-1000])
    return path


def refused(mistake, folder, argv):
    """The line of a refusal, which must not change a byte of the folders."""
    before = {p: p.read_bytes() for f in folder for p in f.rglob("*") if p.is_file()}
    line = mistake(vp_sde.main, *argv)
    assert before == {p: p.read_bytes() for f in folder for p in f.rglob("*") if p.is_file()}
    return line


@pytest.mark.parametrize("flags", FLAGS)
def test_bad_flags(tmp_path, mistake, flags):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    argv = flags.split() if flags == "--resume" else [*flags.split(), "--out", out]
    argv = argv if any(flag in flags for flag in ("--resume", "--data", "--oracle")) else ["--oracle", *argv]
    assert re.search(rf"{flags.split()[-2 if ' ' in flags else 0]}\b", refused(mistake, [tmp_path], argv))


@pytest.mark.parametrize("case", FILES)
def test_bad_files(trained, tmp_path, mistake, case):
    if case.startswith("CUDA") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    make, complaint = FILES[case]
    argv = make(trained, tmp_path)
    if not {"--out", "--resume"} & set(argv):
        argv += ["--out", tmp_path]
    assert complaint in refused(mistake, [trained, tmp_path], argv)
