"""The samplers against closed forms and against the reference, and how many samples are drawn."""

import weakref
from functools import partial
from types import SimpleNamespace

import data
import reference_gmm_sde as reference
import vp_sde
from common.nearest_crystal import crystal_error
from common.sampling import sample_images
from common.seeds import generator
from common.times import time_grid
from small import lively_unet, oracle_config, run_of
from vp_sde import VP

import numpy as np
import pytest
import torch

# --------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("grid", ["uniform", "logsnr"])
@pytest.mark.parametrize("sampler", vp_sde.SAMPLERS)
def test_with_the_exact_denoiser_every_sampler_reaches_a_true_crystal(sampler, grid):
    drawn = vp_sde.sample(None, run_of(oracle_config(sampler=sampler, grid=grid)))
    condition = data.default_conditions(4)
    fit = crystal_error(data.unit(drawn.x), condition.kind, condition.cont[:, 1])
    assert fit.error.max() < 1e-4

    (first, x_1, _), *_, (last, x_0, _) = drawn.film
    assert first == 1.0 and abs(x_1.std() - 1) < 0.05  # it starts in pure noise
    assert last == 0.0 and torch.equal(x_0, drawn.x)


def noise_at_the_end(sampler, grid, steps=300, t_end=0.005):
    """Standard deviation at t_end in units of sigma(t_end), where the data are one point, 0.

    Everything is linear then, so nothing need be drawn: one particle for each source of randomness, the start and the
    noise of each step, and the squares of where they end add up.
    """
    schedule = VP()
    start = torch.zeros(steps, 1, dtype=torch.float64)
    start[0] = 1.0
    noise = iter(torch.eye(steps, dtype=torch.float64)[1:, :, None])
    times = time_grid(schedule, steps, t_end, grid)

    def eps(x, t):
        return x / schedule.at(t)[2]

    *_, (t, x, x0_hat), (zero, final, _) = sampler(eps, start, times, schedule, noise)
    assert t == t_end and zero == 0.0 and final.abs().max() < 1e-12 and x0_hat.abs().max() < 1e-12
    return float(x.square().sum().sqrt()) / schedule.at(t_end)[2]


def test_the_noise_level_that_a_sampler_ends_with():
    assert 1.01 < noise_at_the_end(vp_sde.reverse_sde, "logsnr") < 1.035
    assert 1.01 < noise_at_the_end(vp_sde.reverse_sde, "quadratic") < 1.045
    assert 1.3 < noise_at_the_end(vp_sde.reverse_sde, "uniform") < 1.36  # a third too noisy
    assert vp_sde.Config().grid in ("logsnr", "quadratic")
    assert abs(noise_at_the_end(vp_sde.probability_flow, "logsnr") - 1) < 0.002
    assert abs(noise_at_the_end(vp_sde.dpmpp_2m, "logsnr", steps=10) - 1) < 1e-6  # exact for one point


@pytest.mark.parametrize("grid", ["quadratic", "logsnr"])
def test_the_samplers_agree_with_the_reference_step_by_step(grid):
    """On a mixture, in float64, from the same start with the same noise."""
    known = reference.VPSchedule(0.1, 20.0)
    gmm = reference.mixture("two", known)
    times = time_grid(VP(0.1, 20.0), 31, 0.01, grid)
    rng = np.random.default_rng(0)
    start = rng.standard_normal((50, 2))
    z = rng.standard_normal((30, 50, 2))

    def eps(x, t):
        return torch.from_numpy(gmm.eps(x.numpy(), t))

    pairs = [
        (vp_sde.reverse_sde, partial(reference.euler_maruyama, noise=z)),
        (vp_sde.probability_flow, reference.heun),
        (vp_sde.dpmpp_2m, reference.dpmpp_2m),
    ]
    for sampler, integrator in pairs:
        noise = iter(torch.from_numpy(z))
        *ours, (_, final, _) = sampler(eps, torch.from_numpy(start), times, VP(0.1, 20.0), noise)
        path = integrator(gmm.score, start, times, known)
        for (t, x, x0_hat), (t_ref, x_ref) in zip(ours, path, strict=True):
            assert t == t_ref
            np.testing.assert_allclose(x, x_ref, rtol=0, atol=1e-8 * max(1, np.abs(x_ref).max()))
            np.testing.assert_allclose(x0_hat, gmm.posterior_mean(x_ref, t_ref), atol=1e-6)
        assert torch.equal(final, x0_hat)


@pytest.mark.parametrize("sampler, calls", [("sde", 5), ("ode", 9), ("dpmpp", 5)])
def test_a_sampler_calls_the_network_as_often_as_its_help_says(sampler, calls):
    seen = []

    def eps(x, t):
        seen.append(t)
        return x

    times = time_grid(VP(), 5, 0.005, "logsnr")
    noise = iter(torch.zeros(5, 3))
    states = list(vp_sde.SAMPLERS[sampler](eps, torch.ones(3), times, VP(), noise))
    assert len(seen) == calls and min(seen) == 0.005
    assert [t for t, _, _ in states] == [*times, 0.0]


# --------------------------------------------------------------------------------- the numbers of a sample


def test_sample_i_depends_on_neither_the_batch_nor_the_number():
    """Start and condition bit for bit, images to 1e-3."""
    net = lively_unet()
    images = {}
    seen = {}
    for n, batch in ((8, 36), (8, 3), (5, 36), (5, 1)):
        calls = []
        net.register_forward_pre_hook(lambda module, inputs, calls=calls: calls.append(inputs))
        config = vp_sde.Config(n=n, sample_batch=batch, steps=4, t_end=0.3, cfg=1.0, img_size=16)
        images[n, batch] = vp_sde.sample(net, run_of(config)).x
        starts = [(x, condition) for x, t, condition in calls if t[0] == 1]
        x = torch.cat([x for x, _ in starts])
        kind, cont, _ = (torch.cat(column) for column in zip(*(c for _, c in starts), strict=True))
        seen[n, batch] = x[:5], kind[:5], cont[:5]

    for key, parts in seen.items():
        assert all(torch.equal(a, b) for a, b in zip(parts, seen[8, 36], strict=True))
        scale = images[8, 36].abs().max()  # an untrained network: its images are of any size
        assert (images[key][:5] - images[8, 36][:5]).abs().max() < 1e-3 * scale
    own = torch.randn(1, 16, 16, generator=generator(0, 4, 2))  # image 4 of seed 0, in every edition
    assert torch.equal(seen[5, 1][0][4], own) and not torch.equal(seen[5, 1][0][3], own)


def test_the_samples_of_the_sde_keep_their_noise_in_any_batch():
    def draw(batch):
        config = oracle_config(n=6, sample_batch=batch, steps=5, t_end=0.3, img_size=16)
        return vp_sde.sample(None, run_of(config)).film

    whole, few = draw(36), draw(2)
    for (t, x, _), (t_few, x_few, _) in zip(whole, few, strict=True):
        assert t == t_few
        np.testing.assert_allclose(x[:2], x_few, atol=1e-4)


def test_memory_grows_by_the_results_only():
    most = {}
    for n in (8, 80):
        alive = []

        def eps(x, t, n=n, alive=alive):
            alive.append(weakref.ref(x))
            most[n] = max(most.get(n, 0), sum(ref() is not None for ref in alive))
            return 0 * x

        drawn = draw_with(eps, n=n, sample_batch=4, steps=10)
        assert len(drawn.x) == n and len(drawn.film) <= 34
        assert all(len(x_t) == 4 for _, x_t, _ in drawn.film)  # the film is of the first batch
        assert all(x_t.untyped_storage().nbytes() == x_t.nbytes for _, x_t, _ in drawn.film)
    assert most[80] <= most[8] <= 4


def draw_with(eps, **settings):
    """Samples of 16 pixels by the reverse SDE with this eps(x, t)."""
    config = SimpleNamespace(seed=0, **settings)
    times = time_grid(VP(), config.steps, 0.005, "logsnr")

    def trajectory(rows, noise):
        return vp_sde.reverse_sde(eps, next(noise), times, VP(), noise)

    return sample_images(trajectory, (1, 16, 16), config, times, VP())
