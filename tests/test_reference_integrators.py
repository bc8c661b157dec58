"""The integrators of reference_gmm_sde.py, where the exact trajectory is known."""

import reference_gmm_sde as ref
from common.numerics import last, watched

import numpy as np
import pytest

VP = ref.VP


def one_gaussian(D):
    """Mean [D] and covariance [D, D] at random, as a mixture of one."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((1, D, D))
    covs = 0.3 * A @ A.transpose(0, 2, 1) + 0.05 * np.eye(D)
    return ref.GaussianMixture([1.0], 2 * rng.standard_normal((1, D)), covs)


def sources(steps):
    """Starts [steps + 1, 1] and noises [steps, steps + 1, 1] that give each random number a particle of its own.

    After a linear scheme, the sum of squares over particles is the variance, exactly.
    """
    return np.eye(1, steps + 1).T, np.eye(steps, steps + 1, 1)[:, :, None]


SOLVERS = [
    (ref.euler, 800, 2e-2),
    (ref.heun, 400, 1e-3),
    (ref.rk4, 400, 1e-7),
    (ref.dpmpp_2m, 400, 1e-3),
]


@pytest.mark.parametrize("D", [1, 2, 16])
@pytest.mark.parametrize("solver, steps, tolerance", SOLVERS)
def test_the_flow_of_one_gaussian_stretches_each_of_its_axes(D, solver, steps, tolerance):
    gmm = one_gaussian(D)
    x = np.random.default_rng(2).standard_normal((20, D))
    values, Q = np.linalg.eigh(gmm.covs[0])

    def exact(t):
        a1, s1 = VP.alpha_sigma(1.0)
        a, s = VP.alpha_sigma(t)
        stretch = np.sqrt((a**2 * values + s**2) / (a1**2 * values + s1**2))
        return a * gmm.means[0] + ((x - a1 * gmm.means[0]) @ Q * stretch) @ Q.T

    t_end, kind = (0.01, "logsnr") if solver is ref.dpmpp_2m else (0.0, "quadratic")
    trajectory = list(solver(gmm.score, x, ref.time_grid(steps, t_end=t_end, kind=kind), VP))
    assert len(trajectory) == steps + 1 and trajectory[0][0] == 1 and trajectory[-1][0] == t_end
    assert np.array_equal(trajectory[0][1], x)
    for t, y in trajectory[:: steps // 4]:
        assert np.abs(y - exact(t)).max() < tolerance * np.abs(exact(t)).max()


def test_rk4_runs_forwards_as_well():
    gmm = ref.mixture("S")
    times = ref.time_grid(400)
    x = gmm.sample(50, np.random.default_rng(0))
    noise = last(ref.rk4(gmm.score, x, times[::-1], VP))
    back = last(ref.rk4(gmm.score, noise, times, VP))
    assert np.median(np.abs(back - x)) < 1e-7


def test_a_predicted_x0_that_stands_still_makes_dpm_solver_exact():
    gmm = ref.GaussianMixture([1.0], [[1.0, -2.0]], [1e-20 * np.eye(2)])
    x = np.random.default_rng(0).standard_normal((5, 2))
    for steps in (1, 3):
        end = last(ref.dpmpp_2m(gmm.score, x, ref.time_grid(steps), VP))
        assert end == pytest.approx(np.tile([[1, -2]], (5, 1)))


@pytest.mark.parametrize("kind, low, high", [("uniform", 1.3, 1.4), ("quadratic", 1.0, 1.05), ("logsnr", 1.0, 1.05)])
def test_how_much_noise_euler_maruyama_leaves(kind, low, high):
    """Data in one point: what is left at t_end should be noise of standard deviation sigma(t_end)."""
    schedule = ref.VPSchedule(0.1, 30.0)
    point = ref.GaussianMixture([1.0], [[0.0]], [[[1e-12]]], schedule)
    start, noise = sources(300)
    times = ref.time_grid(300, 1.0, 0.005, kind, schedule)
    end = last(ref.euler_maruyama(point.score, start, times, schedule, noise))
    assert low < np.sqrt((end**2).sum()) / schedule.alpha_sigma(0.005)[1] < high


@pytest.mark.parametrize("steps", [1, 7])
def test_forward_sde_is_exact_at_any_step(steps):
    start, noise = sources(steps)
    for t, x in ref.forward_sde(start, ref.time_grid(steps, 0.8)[::-1], VP, noise):
        alpha, sigma = VP.alpha_sigma(t)
        assert x[0, 0] == pytest.approx(alpha)
        assert (x[1:] ** 2).sum() == pytest.approx(sigma**2)


def test_a_noise_too_few_is_refused():
    gmm = ref.mixture("two")
    with pytest.raises(ValueError):
        last(ref.euler_maruyama(gmm.score, np.zeros((3, 2)), ref.time_grid(5), VP, np.zeros((4, 3, 2))))


def test_a_state_that_blows_up_names_the_step():
    def turns_bad(x, t):
        return x * (1 if t > 0.9 else np.nan)

    trajectory = ref.euler(turns_bad, np.ones((3, 2)), ref.time_grid(5), VP)
    with pytest.raises(FloatingPointError, match="step 2 of 5, at t = 0.36"):
        for _ in watched(trajectory, 5):
            pass

    wild = ref.VPSchedule(0.1, 1e6)
    gmm = ref.mixture("S", wild)
    with pytest.raises(FloatingPointError, match="more steps"):
        last(ref.euler_maruyama(gmm.score, np.eye(2), ref.time_grid(10), wild, np.zeros((10, 2, 2))))


@pytest.mark.parametrize("D", [1, 16])
def test_likelihood_by_the_flow_in_other_dimensions(D):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((4, D, D))
    covs = 0.3 * A @ A.transpose(0, 2, 1) + 0.05 * np.eye(D)
    gmm = ref.GaussianMixture(rng.dirichlet(np.ones(4)), rng.standard_normal((4, D)), covs)
    x = gmm.sample(20, np.random.default_rng(0))
    assert ref.log_likelihood(gmm, x, 300) == pytest.approx(gmm.log_prob(x), abs=1e-5)
