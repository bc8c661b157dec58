"""The judge is judged: by hand-made cases (one Gaussian, one dimension), by brute force, and by its own audit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import make_gif
import reference_audit
import reference_gmm_sde as ref

VP = ref.VP


class Straight:
    """Another kernel: alpha = 1 - t, sigma = t, both ends included."""

    def alpha_sigma(self, t):
        return 1.0 - t, t


def random_mixture(D, K, seed=0, schedule=VP, spread=2.0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((K, D, D))
    covs = 0.3 * A @ A.transpose(0, 2, 1) + 0.05 * np.eye(D)
    return ref.GaussianMixture(rng.dirichlet(np.ones(K)), spread * rng.standard_normal((K, D)), covs, schedule)


def sources(steps):
    """Starts [steps + 1, 1] and noises [steps, steps + 1, 1] that give each random number a particle of its own: after
    a linear scheme, the sum of squares over particles is the variance, exactly."""
    return np.eye(1, steps + 1).T, np.eye(steps, steps + 1, 1)[:, :, None]


# The audit's rows are the tests of score, orders, marginals, likelihood and guidance.


def row_name(row):
    parts = (row.func, *row.args) if hasattr(row, "func") else (row,)
    return "-".join(getattr(part, "__name__", str(part)) for part in parts)


@pytest.mark.parametrize("row", reference_audit.AUDIT, ids=row_name)
def test_audit(row):
    claim, expected, measured, tolerance = row()
    assert abs(measured - expected) <= tolerance, f"{claim}: expected {expected}, measured {measured}"


# Schedule and grids


@pytest.mark.parametrize("schedule", [VP, ref.VPSchedule(0.1, 30.0), ref.VPSchedule(2.0, 2.0)])
def test_schedule(schedule):
    nodes, weights = np.polynomial.legendre.leggauss(8)
    for t in (1e-6, 0.01, 0.3, 1.0):
        integral = (weights * schedule.beta(t / 2 * (nodes + 1))).sum() * t / 2
        assert schedule.B(t) == pytest.approx(integral, rel=1e-13)
        alpha, sigma = schedule.alpha_sigma(t)
        assert alpha == pytest.approx(np.exp(-integral / 2), rel=1e-13)
        assert sigma**2 + alpha**2 == pytest.approx(1, abs=1e-15)
        assert schedule.log_snr(t) == pytest.approx(2 * np.log(alpha / sigma), rel=1e-9)
        assert schedule.t_of_log_snr(schedule.log_snr(t)) == pytest.approx(t, rel=1e-9)
    assert schedule.alpha_sigma(0.0) == (1.0, 0.0)
    assert schedule.log_snr(0.0) == np.inf
    tiny = 1e-14  # sigma^2 = B - B^2/2 + ...; taken from 1 - alpha^2 it would have one digit left
    assert schedule.alpha_sigma(tiny)[1] == pytest.approx(np.sqrt(schedule.beta_min * tiny), rel=1e-12)


@pytest.mark.parametrize("betas", [(0.1, np.nan), (np.nan, 20), (5, 1), (-1, 20), (0, 20), (0.1, np.inf)])
def test_bad_betas(betas):
    with pytest.raises(ValueError, match="beta"):
        ref.VPSchedule(*betas)


@pytest.mark.parametrize("kind, scale", [("uniform", lambda t: t), ("quadratic", np.sqrt), ("logsnr", VP.log_snr)])
def test_grids(kind, scale):
    times = ref.time_grid(40, 0.9, 0.02, kind)
    assert times.shape == (41,) and times[0] == 0.9 and times[-1] == 0.02
    assert (np.diff(times) < 0).all()
    assert np.ptp(np.diff(scale(times))) < 1e-9
    to_zero = ref.time_grid(40, kind=kind)
    assert to_zero.shape == (41,) and to_zero[0] == 1 and to_zero[-1] == 0
    assert (np.diff(to_zero) < 0).all() and np.ptp(np.diff(scale(to_zero[:-1]))) < 1e-9
    assert ref.time_grid(1, kind=kind).tolist() == [1, 0]


@pytest.mark.parametrize(
    "args",
    [(0,), (-3,), (2.5,), (9, 1.0, 1.0), (9, 0.5, 0.6), (9, 1.0, -0.1), (9, 1.5), (9, np.nan), (9, 1, 0, "cubic")],
)
def test_bad_grids(args):
    with pytest.raises(ValueError):
        ref.time_grid(*args)


# The closed form


@pytest.mark.parametrize("D", [1, 2, 16])
def test_one_gaussian_is_known_by_hand(D):
    gmm = random_mixture(D, 1)
    rng, t = np.random.default_rng(1), 0.2
    alpha, sigma = VP.alpha_sigma(t)
    C = alpha**2 * gmm.covs[0] + sigma**2 * np.eye(D)
    x = 3 * rng.standard_normal((50, D))
    d = x - alpha * gmm.means[0]
    solved = np.linalg.solve(C, d.T).T
    log_p = -0.5 * (d * solved).sum(1) - 0.5 * np.linalg.slogdet(2 * np.pi * C)[1]
    assert gmm.log_prob(x, t) == pytest.approx(log_p, rel=1e-12)
    assert gmm.score(x, t) == pytest.approx(-solved, rel=1e-10, abs=1e-12)
    assert gmm.eps(x, t) == pytest.approx(sigma * solved, rel=1e-10, abs=1e-12)
    mean = gmm.means[0] + alpha * d @ np.linalg.solve(C, gmm.covs[0])
    assert gmm.posterior_mean(x, t) == pytest.approx(mean, rel=1e-10, abs=1e-12)
    assert gmm.score_and_divergence(x, t)[1] == pytest.approx(-np.trace(np.linalg.inv(C)), rel=1e-10)


@pytest.mark.parametrize("D", [1, 2, 16])
def test_faces_agree(D):
    gmm = random_mixture(D, 6)
    x = 3 * np.random.default_rng(1).standard_normal((600, D))  # more than one piece
    for t in (0.0, 1e-3, 0.3, 1.0):
        alpha, sigma = VP.alpha_sigma(t)
        score = gmm.score(x, t)
        assert gmm.posterior_mean(x, t) == pytest.approx((x + sigma**2 * score) / alpha, rel=1e-9, abs=1e-9)  # Tweedie
        assert gmm.eps(x, t) == pytest.approx(-sigma * score)
        assert gmm.score_and_divergence(x, t)[0] == pytest.approx(score, rel=1e-9, abs=1e-9)
        assert gmm.marginal(t).log_prob(x) == pytest.approx(gmm.log_prob(x, t), rel=1e-11)
        alone = gmm.score(x[300:310], t)
        assert alone == pytest.approx(score[300:310], rel=1e-12)  # a point does not see its neighbours


def test_divergence_is_the_derivative_of_the_score():
    gmm, t, h = random_mixture(3, 5), 0.1, 1e-5
    x = 2 * np.random.default_rng(1).standard_normal((100, 3))
    trace = sum((gmm.score(x + h * e, t) - gmm.score(x - h * e, t))[:, i] for i, e in enumerate(np.eye(3))) / (2 * h)
    assert gmm.score_and_divergence(x, t)[1] == pytest.approx(trace, rel=1e-6, abs=1e-6)


def test_density_integrates_to_one_and_posterior_mean_by_quadrature():
    gmm, t = random_mixture(1, 4), 0.15
    grid = np.linspace(-15, 15, 6001)
    h = grid[1] - grid[0]
    assert np.exp(gmm.log_prob(grid[:, None], t)).sum() * h == pytest.approx(1, abs=1e-10)
    alpha, sigma = VP.alpha_sigma(t)
    for x in (-1.0, 0.3, 2.5):
        joint = np.exp(gmm.log_prob(grid[:, None]) - (x - alpha * grid) ** 2 / (2 * sigma**2))
        assert gmm.posterior_mean([[x]], t).item() == pytest.approx((joint * grid).sum() / joint.sum(), abs=1e-9)


def test_far_off_the_support_and_at_the_ends_of_time():
    for schedule in (VP, Straight()):
        gmm = ref.mixture("S", schedule)
        x = np.concatenate([gmm.means, 1e3 * np.eye(2), [[1e8, -1e8]]])
        for t in (0.0, 1e-300, 0.5, 1.0):
            for values in (gmm.log_prob(x, t), gmm.score(x, t), gmm.posterior_mean(x, t), gmm.eps(x, t)):
                assert np.isfinite(values).all()
        assert gmm.posterior_mean(x, 0.0) == pytest.approx(x, rel=1e-12)
        assert np.all(gmm.eps(x, 0.0) == 0)
    assert gmm.posterior_mean(x[:3], 1.0) == pytest.approx(np.zeros((3, 2)), abs=1e-12)  # alpha = 0: x_t says nothing
    assert gmm.eps(x, 1.0) == pytest.approx(x)


def test_widely_separated_modes_keep_their_digits():
    near, far = [[1e4, 0.0]], [[-1e4, 0.0]]
    pair = ref.GaussianMixture([0.5, 0.5], near + far, [0.01 * np.eye(2)] * 2)
    one = ref.GaussianMixture([1.0], near, [0.01 * np.eye(2)])
    x = one.sample(300, np.random.default_rng(0))
    assert pair.log_prob(x) == pytest.approx(one.log_prob(x) - np.log(2), abs=1e-9)
    assert pair.score(x, 0.0) == pytest.approx(-(x - near) / 0.01, abs=1e-7)
    assert pair.posterior_mean(x, 1e-3) == pytest.approx(one.posterior_mean(x, 1e-3), rel=1e-12)


def test_a_far_point_in_the_batch_changes_nothing():
    """Near points alone take the quick, expanded square; with a far one among them, the careful route."""
    gmm = ref.mixture("S")
    gmm = ref.GaussianMixture([*gmm.weights, 0.0], [*gmm.means, [0, 0]], [*gmm.covs, np.diag([0.02, 0.3])])
    x = gmm.sample(300, np.random.default_rng(0))
    crowd = np.concatenate([x, [[1e3, 0.0]]])
    for t in (0.0, 0.02, 0.5):
        assert gmm.log_prob(x, t) == pytest.approx(gmm.log_prob(crowd, t)[:300], abs=1e-10)
        assert gmm.score(x, t) == pytest.approx(gmm.score(crowd, t)[:300], abs=1e-9)


def test_equal_components_and_a_weight_of_zero():
    one = random_mixture(2, 1)
    x = np.random.default_rng(1).standard_normal((50, 2))
    stray = ref.GaussianMixture([0.25, 0.75, 0], [*one.means] * 2 + [[9, 9]], [*one.covs] * 2 + [np.eye(2)])
    for t in (0.0, 0.4):
        assert stray.log_prob(x, t) == pytest.approx(one.log_prob(x, t), rel=1e-12)
        assert stray.score(x, t) == pytest.approx(one.score(x, t), rel=1e-12)
    assert np.abs(stray.sample(500, np.random.default_rng(0)) - 9).min() > 0.5
    assert np.abs(stray.posterior_sample(x, 1.0, np.random.default_rng(0)) - 9).min() > 0.5


def test_sample_has_the_moments_of_the_mixture():
    gmm, n = random_mixture(3, 4), 100_000
    x = gmm.sample(n, np.random.default_rng(0))
    mean = gmm.weights @ gmm.means
    second = np.einsum("k,kij->ij", gmm.weights, gmm.covs + gmm.means[:, :, None] * gmm.means[:, None, :])
    spread = np.sqrt(np.diag(second))
    assert np.abs(x.mean(0) - mean).max() < 5 * spread.max() / np.sqrt(n)
    assert np.abs(x.T @ x / n - second).max() < 10 * spread.max() ** 2 / np.sqrt(n)  # kurtosis of a mixture: a few


@pytest.mark.parametrize("schedule", [VP, Straight()])
def test_posterior_sample(schedule):
    """One exact jump from p_t lands on p_0, at any t; and around one x the draws have the posterior's mean."""
    gmm, rng, n = ref.mixture("two", schedule), np.random.default_rng(0), 4000
    for t in (0.1, 0.6, 1.0):
        jumped = gmm.posterior_sample(gmm.marginal(t).sample(n, rng), t, rng)
        assert abs(ref.mmd2_to_mixture(jumped, gmm)) < 4 * np.sqrt(2) / n  # the kernel is at most 1
    x = np.tile([[0.2, 1.5]], (20_000, 1))
    draws = gmm.posterior_sample(x, 0.6, rng)
    mean = gmm.posterior_mean(x[:1], 0.6)[0]
    assert np.abs(draws.mean(0) - mean).max() < 5 * draws.std() / np.sqrt(len(x))
    assert gmm.posterior_sample(x[:5], 0.0, rng) == pytest.approx(x[:5])


def test_posterior_sample_of_one_gaussian_has_its_covariance():
    gmm, t, n = random_mixture(3, 1), 0.3, 50_000
    alpha, sigma = VP.alpha_sigma(t)
    S, x = gmm.covs[0], np.tile([[1.0, -1.0, 0.5]], (n, 1))
    exact = S - alpha**2 * S @ np.linalg.solve(alpha**2 * S + sigma**2 * np.eye(3), S)
    draws = gmm.posterior_sample(x, t, np.random.default_rng(0))
    assert np.abs(np.cov(draws.T) - exact).max() < 5 * np.sqrt(2 / n) * exact.max()
    assert np.abs(draws.mean(0) - gmm.posterior_mean(x[:1], t)).max() < 5 * np.sqrt(exact.max() / n)


def test_conditional_and_guided():
    gmm = ref.mixture("two")
    right = gmm.given([0])
    assert right.weights.tolist() == [1] and right.means.tolist() == [[3, 3]]
    x = np.random.default_rng(0).standard_normal((20, 2))
    assert ref.guided_score(gmm, right, x, 0.3, 0) == pytest.approx(gmm.score(x, 0.3))
    assert ref.guided_score(gmm, right, x, 0.3, 1) == pytest.approx(right.score(x, 0.3))
    middle = 1.5 * right.eps(x, 0.3) - 0.5 * gmm.eps(x, 0.3)
    assert ref.guided_eps(gmm, right, x, 0.3, 1.5) == pytest.approx(middle)


def test_named_mixtures():
    for name, K, width in (("S", 48, 4.0), ("circle", 24, 4.0), ("two", 2, 6.0)):
        gmm = ref.mixture(name)
        assert gmm.means.shape == (K, 2)
        assert np.ptp(gmm.means[:, 0]) == pytest.approx(width, rel=1e-3)
        std = 0.5 if name == "two" else 0.12
        assert gmm.covs == pytest.approx(np.tile(std**2 * np.eye(2), (K, 1, 1)))
    s = ref.mixture("S").means  # half a turn maps the letter onto itself; the upper bowl opens to the right
    assert s[::-1] == pytest.approx(-s, abs=1e-9)
    assert s[0, 0] > 1 and s[0, 1] > 1 and s[12, 0] < 0
    assert np.ptp(np.linalg.norm(np.diff(s, axis=0), axis=1)) < 0.01


I2 = np.eye(2)


@pytest.mark.parametrize(
    "weights, means, covs, word",
    [
        ([0.5, 0.4], np.zeros((2, 2)), [I2, I2], "sum to 1"),
        ([1.5, -0.5], np.zeros((2, 2)), [I2, I2], "negative"),
        ([0.5, np.nan], np.zeros((2, 2)), [I2, I2], "weights"),
        ([0.5, 0.5], [[0, np.inf], [0, 0]], [I2, I2], "finite"),
        ([0.5, 0.5], np.zeros((2, 2)), [I2, [[1, 0.5], [0, 1]]], "component 1"),
        ([0.5, 0.5], np.zeros((2, 2)), [I2, [[1, 1e-6], [0, 1]]], "component 1"),
        ([0.5, 0.5], np.zeros((2, 2)), [I2, [[1, 2], [2, 1]]], "component 1"),
        ([0.5, 0.5], np.zeros((2, 2)), [[[0, 0], [0, 0]], I2], "component 0"),
        ([0.5, 0.5], np.zeros((2, 2)), [I2, [[np.nan, 0], [0, 1]]], "component 1"),
        ([1.0], np.zeros((2, 2)), [I2, I2], r"weights \[K\]"),
        ([0.5, 0.5], np.zeros((2, 3)), [I2, I2], r"means \[K, D\]"),
        ([0.5, 0.5], np.zeros(2), [I2, I2], r"covs \[K, D, D\]"),
        ([], np.zeros((0, 2)), np.zeros((0, 2, 2)), r"weights \[K\]"),
    ],
)
def test_bad_mixtures(weights, means, covs, word):
    with pytest.raises(ValueError, match=word):
        ref.GaussianMixture(weights, means, covs)


def test_bad_arguments():
    gmm = ref.mixture("two")
    for x in (np.zeros(2), np.zeros((4, 3)), np.zeros((2, 2, 2))):
        with pytest.raises(ValueError, match="points must be"):
            gmm.score(x, 0.5)
    with pytest.raises(ValueError, match="shape must be"):
        ref.mixture("Z")
    with pytest.raises(ValueError, match="two points"):
        ref.mmd2_unbiased(np.zeros((1, 2)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="two points"):
        ref.mmd2_to_mixture(np.zeros((1, 2)), gmm)
    with pytest.raises(ValueError, match="one shape"):
        ref.sliced_wasserstein(np.zeros((3, 2)), np.zeros((4, 2)), 5, np.random.default_rng(0))
    with pytest.raises(ValueError):  # one noise too few
        ref.last(ref.euler_maruyama(gmm.score, np.zeros((3, 2)), ref.time_grid(5), VP, np.zeros((4, 3, 2))))


# Integrators, where the exact trajectory is known: the flow of one Gaussian stretches each of its axes


@pytest.mark.parametrize("D", [1, 2, 16])
@pytest.mark.parametrize(
    "solver, steps, tolerance",
    [(ref.euler, 800, 2e-2), (ref.heun, 400, 1e-3), (ref.rk4, 400, 1e-7), (ref.dpmpp_2m, 400, 1e-3)],
)
def test_flow_of_one_gaussian(D, solver, steps, tolerance):
    gmm = random_mixture(D, 1)
    x = np.random.default_rng(2).standard_normal((20, D))
    values, Q = np.linalg.eigh(gmm.covs[0])

    def exact(t):
        (a1, s1), (a, s) = VP.alpha_sigma(1.0), VP.alpha_sigma(t)
        stretch = np.sqrt((a**2 * values + s**2) / (a1**2 * values + s1**2))
        return a * gmm.means[0] + ((x - a1 * gmm.means[0]) @ Q * stretch) @ Q.T

    t_end, kind = (0.01, "logsnr") if solver is ref.dpmpp_2m else (0.0, "quadratic")
    trajectory = list(solver(gmm.score, x, ref.time_grid(steps, t_end=t_end, kind=kind), VP))
    assert len(trajectory) == steps + 1 and trajectory[0][0] == 1 and trajectory[-1][0] == t_end
    assert np.array_equal(trajectory[0][1], x)
    for t, y in trajectory[:: steps // 4]:
        assert np.abs(y - exact(t)).max() < tolerance * np.abs(exact(t)).max()


def test_rk4_runs_forwards_as_well():
    gmm, times = ref.mixture("S"), ref.time_grid(400)
    x = gmm.sample(50, np.random.default_rng(0))
    back = ref.last(ref.rk4(gmm.score, ref.last(ref.rk4(gmm.score, x, times[::-1], VP)), times, VP))
    assert np.median(np.abs(back - x)) < 1e-7


def test_a_predicted_x0_that_stands_still_makes_dpm_solver_exact():
    gmm = ref.GaussianMixture([1.0], [[1.0, -2.0]], [1e-20 * np.eye(2)])
    x = np.random.default_rng(0).standard_normal((5, 2))
    for steps in (1, 3):
        end = ref.last(ref.dpmpp_2m(gmm.score, x, ref.time_grid(steps), VP))
        assert end == pytest.approx(np.tile([[1, -2]], (5, 1)))


def test_noise_level_at_the_end_of_euler_maruyama():
    """Data in one point: what is left at t_end should be noise of standard deviation sigma(t_end)."""
    schedule = ref.VPSchedule(0.1, 30.0)
    point = ref.GaussianMixture([1.0], [[0.0]], [[[1e-12]]], schedule)
    start, noise = sources(300)
    for kind, low, high in (("uniform", 1.3, 1.4), ("quadratic", 1.0, 1.05), ("logsnr", 1.0, 1.05)):
        times = ref.time_grid(300, 1.0, 0.005, kind, schedule)
        end = ref.last(ref.euler_maruyama(point.score, start, times, schedule, noise))
        assert low < np.sqrt((end**2).sum()) / schedule.alpha_sigma(0.005)[1] < high


def test_forward_sde_is_exact_at_any_step():
    for steps in (1, 7):
        start, noise = sources(steps)
        for t, x in ref.forward_sde(start, ref.time_grid(steps, 0.8)[::-1], VP, noise):
            alpha, sigma = VP.alpha_sigma(t)
            assert x[0, 0] == pytest.approx(alpha)
            assert (x[1:] ** 2).sum() == pytest.approx(sigma**2)


def test_blow_up_names_the_step():
    with pytest.raises(FloatingPointError, match="step 2 of 5"):
        for _ in ref.euler(lambda x, t: x * (1 if t > 0.9 else np.nan), np.ones((3, 2)), ref.time_grid(5), VP):
            pass
    wild = ref.VPSchedule(0.1, 1e6)
    trajectory = ref.euler_maruyama(ref.mixture("S", wild).score, I2, ref.time_grid(10), wild, np.zeros((10, 2, 2)))
    with pytest.raises(FloatingPointError, match="more steps"):
        ref.last(trajectory)


@pytest.mark.parametrize("D", [1, 16])
def test_likelihood_in_other_dimensions(D):
    gmm = random_mixture(D, 4, spread=1.0)
    x = gmm.sample(20, np.random.default_rng(0))
    assert ref.log_likelihood(gmm, x, 300) == pytest.approx(gmm.log_prob(x), abs=1e-5)


# Distances, by brute force


def test_distances_of_exact_samples_are_their_floors():
    gmm = ref.mixture("S")
    said = ref.distances(gmm.sample(2000, np.random.default_rng(5)), gmm, seed=0)
    assert said["n"] == 2000 and abs(said["mmd2"]) < 2e-3 and abs(said["mmd2_floor"]) < 2e-3
    assert abs(said["log_density"] - said["log_density_floor"]) < 0.1  # entropy, to three of its standard errors
    assert 0.5 < said["sliced_wasserstein"] / said["sliced_wasserstein_floor"] < 2


def test_mmd_by_brute_force():
    rng = np.random.default_rng(0)
    x, y, sigma = rng.standard_normal((600, 2)), rng.standard_normal((300, 2)) + 0.5, 0.7  # more than one piece

    def kernel(a, b):
        return np.exp(-((a[:, None] - b) ** 2).sum(-1) / (2 * sigma**2))

    xx, yy = kernel(x, x), kernel(y, y)
    off = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    assert ref.mmd2_unbiased(x, y, sigma) == pytest.approx(sum(off) - 2 * kernel(x, y).mean(), rel=1e-10)


@pytest.mark.parametrize("D", [1, 2, 3])
def test_mmd_to_a_mixture_is_the_limit_of_mmd_to_its_samples(D):
    gmm, rng = random_mixture(D, 3), np.random.default_rng(0)
    x = rng.standard_normal((50, D))
    y = gmm.sample(5000, rng)
    by_samples = ref.mmd2_unbiased(x, y, 0.8)
    assert ref.mmd2_to_mixture(x, gmm, 0.8) == pytest.approx(by_samples, abs=4 / np.sqrt(len(y)) * np.sqrt(by_samples))


def test_mmd_is_unbiased():
    gmm, rng, n = ref.mixture("two"), np.random.default_rng(0), 100
    values = np.array([ref.mmd2_to_mixture(gmm.sample(n, rng), gmm) for _ in range(200)])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(200)
    assert values.min() < 0 < values.max()


def test_sliced_wasserstein():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 2))
    assert ref.sliced_wasserstein(x, rng.permutation(x), 20, rng) == pytest.approx(0, abs=1e-12)
    # a shift by d moves every projection by u.d, whose mean square over directions is |d|^2 / D
    shifted = ref.sliced_wasserstein(x, x + [3.0, 4.0], 5000, rng)
    assert shifted == pytest.approx(5 / np.sqrt(2), rel=0.05)
    line = rng.standard_normal((400, 1))
    assert ref.sliced_wasserstein(line, 2 * line, 3, rng) == pytest.approx(np.sqrt((line**2).mean()))


# The command line


def run(out, *flags):
    return ref.main([*map(str, flags), "--out", str(out)])


SMALL = ("--steps", 30, "--n-particles", 300, "--vis-every", 10)


def test_the_command_of_the_readme(tmp_path):
    """The seed's own spelling, in a process of its own, with fewer steps; then make_gif on the folder it leaves."""
    flags = ["--shape", "S", "--sampler", "sde", "--steps=60", "--n_particles=400", "--seed=0", "--vis_every=20"]
    script = Path(ref.__file__)
    done = subprocess.run([sys.executable, script, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    out = tmp_path / "outputs/reference_gmm_sde/S_sde_seed0"
    assert str(out.relative_to(tmp_path)) in done.stdout
    frames = [f"frame_{i:04d}.png" for i in range(4)]
    others = ["config.json", "final.npy", "initial.npy", "metrics.json", "mixture.npz", "reverse_diffusion.gif"]
    assert sorted(p.name for p in out.iterdir()) == sorted(frames + others)
    assert np.load(out / "initial.npy").shape == np.load(out / "final.npy").shape == (400, 2)
    with np.load(out / "mixture.npz") as z:
        assert {k: z[k].shape for k in z} == {"weights": (48,), "means": (48, 2), "covs": (48, 2, 2)}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["n"] == 400 and metrics["mmd2"] < 0.02
    floors = {k: v for k, v in metrics.items() if k.endswith("_floor")}
    assert len(floors) == 3 and all(v != metrics[k.removesuffix("_floor")] for k, v in floors.items())
    assert json.loads((out / "config.json").read_text())["n_particles"] == 400
    with Image.open(out / "reverse_diffusion.gif") as gif:
        assert gif.n_frames == 4 and gif.info["loop"] == 0
        gif.seek(3)
        assert gif.info["duration"] >= 1000  # the last frame is held
    make_gif.main(["--frames", str(out), "--output", str(tmp_path / "again.gif"), "--duration", "0.08"])


def test_frames_show_cloud_contours_and_time(tmp_path):
    gmm = ref.mixture("S")
    clouds = np.zeros((0, 2)), np.tile([[0.0, 3.5]], (500, 1))
    empty, full = (next(ref.draw([(0.0, x)], gmm, "label")) for x in clouds)
    assert full.shape == (480, 480, 3) and full.dtype == np.uint8
    changed = np.argwhere((empty != full).any(-1))  # a point at (0, 3.5) lands on row 30, column 240
    assert np.abs(changed.mean(0) - [30, 240]).max() < 1.5
    lines = np.argwhere(empty[..., 0] > empty[..., 2].astype(int) + 60)  # orange: only along the letter
    x, y = (lines[:, 1] - 240) / 60, (240 - lines[:, 0]) / 60
    gap = np.sqrt(((np.stack([x, y], 1)[:, None] - gmm.means) ** 2).sum(-1)).min(1)
    assert len(lines) > 500 and gap.max() < 0.5
    later = next(ref.draw([(0.5, np.zeros((0, 2)))], gmm, "label"))
    assert (later[450:] != empty[450:]).any()  # the clock


def test_a_long_run_keeps_the_movie_short_and_cleans_up(tmp_path, monkeypatch):
    monkeypatch.setattr(ref, "draw", lambda shots, *_: (np.full((8, 8, 3), i, np.uint8) for i, _ in enumerate(shots)))
    run(tmp_path, "--steps", 45, "--n-particles", 50, "--vis-every", 1)
    assert len(list(tmp_path.glob("frame_*.png"))) == 46
    with Image.open(tmp_path / "reverse_diffusion.gif") as gif:
        assert gif.n_frames == 41
    run(tmp_path, "--steps", 35, "--n-particles", 50, "--vis-every", 10)
    assert len(list(tmp_path.glob("frame_*.png"))) == 5  # 0, 10, 20, 30 and the end
    run(tmp_path, *SMALL, "--no-frames", "--no-metrics")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"config.json", "initial.npy", "final.npy", "mixture.npz"}


@pytest.mark.parametrize(
    "flags", [("--sampler", "ode"), ("--grid", "logsnr", "--shape", "circle"), ("--total-time", 0.5), ()]
)
def test_seed_decides_everything(tmp_path, flags):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run(tmp_path / name, *SMALL, *flags, "--no-frames", "--seed", seed) == 0
    a, b, c = ((tmp_path / n / "final.npy").read_bytes() for n in "abc")
    assert a == b != c
    assert (tmp_path / "a/metrics.json").read_bytes() == (tmp_path / "b/metrics.json").read_bytes()


def test_both_samplers_reach_the_letter_and_total_time_counts(tmp_path):
    worst = {}
    for name, flags in {"sde": (), "ode": ("--sampler", "ode"), "short": ("--total-time", 0.02)}.items():
        run(tmp_path / name, "--steps", 150, "--n-particles", 1000, "--no-frames", *flags)
        worst[name] = json.loads((tmp_path / name / "metrics.json").read_text())["mmd2"]
    assert max(worst["sde"], worst["ode"]) < 4 * np.sqrt(2) / 1000  # four deviations of the exact sampler, at most
    assert worst["short"] > 0.01  # too short a diffusion does not forget the data, so N(0, I) is a wrong start


@pytest.mark.parametrize("sampler", ["sde", "ode"])
def test_forward_dissolves_the_data(tmp_path, sampler):
    run(tmp_path, *SMALL, "--forward", "--sampler", sampler)
    start, end = np.load(tmp_path / "initial.npy"), np.load(tmp_path / "final.npy")
    gmm = ref.mixture("S")
    assert gmm.log_prob(start).mean() > -3 > gmm.log_prob(end).mean()
    assert end.std() == pytest.approx(1, abs=0.15)
    assert json.loads((tmp_path / "metrics.json").read_text())["mmd2"] < 4 * np.sqrt(2) / 300  # to p_1, not to p_0
    assert (tmp_path / "reverse_diffusion.gif").exists() and len(list(tmp_path.glob("frame_*.png"))) == 4


def test_config_comes_back_as_defaults(tmp_path):
    run(tmp_path / "a", *SMALL, "--no-frames", "--seed", 5, "--shape", "circle")
    config = tmp_path / "a" / "config.json"
    run(tmp_path / "b", "--config", config, "--seed", 6)
    again = json.loads((tmp_path / "b/config.json").read_text())
    assert again["shape"] == "circle" and again["steps"] == 30 and again["no_frames"] and again["seed"] == 6
    run(tmp_path / "c", "--config", config)
    assert np.array_equal(np.load(tmp_path / "a/final.npy"), np.load(tmp_path / "c/final.npy"))


@pytest.mark.parametrize(
    "flags, word",
    [
        (("--shape", "Q"), "--shape"),
        (("--sampler", "magic"), "--sampler"),
        (("--grid", "cubic"), "--grid"),
        (("--steps", 0), "--steps"),
        (("--steps", "many"), "--steps"),
        (("--n_particles", -5), "--n-particles"),
        (("--n-particles", 1), "--n-particles"),
        (("--vis-every", 0), "--vis-every"),
        (("--seed", -1), "--seed"),
        (("--beta-min", "nan"), "beta_min"),
        (("--beta-max", "nan"), "beta_max"),
        (("--beta-min", 30), "beta_min"),
        (("--beta-max", "nan", "--audit"), "beta_max"),
        (("--total-time", 0), "--total-time"),
        (("--total-time", "inf"), "--total-time"),
        (("--beta-max", 1e6, "--steps", 10), "step 2 of 10"),
        (("--steps", 10**30), "--steps"),
        (("--frobnicate",), "--frobnicate"),
        (("--config", "nowhere.json"), "nowhere.json"),
    ],
)
def test_bad_command_lines(tmp_path, mistake, flags, word):
    out = tmp_path / "out"
    assert word in mistake(ref.main, "--n-particles", 20, *flags, "--out", out)
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("text", ["not json", "[1, 2]", '{"steps": "few"}', '{"shape": "Q"}', '{"colour": 3}'])
def test_bad_config(tmp_path, mistake, text):
    (tmp_path / "c.json").write_text(text)
    mistake(ref.main, "--config", tmp_path / "c.json", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path, mistake):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        line = mistake(ref.main, *SMALL, "--out", out)
        assert "cannot write" in line and str(out) in line
    assert (tmp_path / "file").read_text() == "in the way"


def test_audit_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reference_audit, "AUDIT", [lambda: ("a true claim", 1, 1.05, 0.1)])
    monkeypatch.setattr(reference_audit, "plot_work_precision", lambda path: None)
    assert run(tmp_path, "--audit") == 0
    false = reference_audit.AUDIT + [lambda: ("a false one", 1, float("nan"), 0.1)]
    monkeypatch.setattr(reference_audit, "AUDIT", false)
    assert run(tmp_path, "--audit") == 1
    printed = capsys.readouterr().out
    assert printed.count("pass") == 2 and printed.count("FAIL") == 1
    assert [row["pass"] for row in json.loads((tmp_path / "audit.json").read_text())] == [True, False]


def test_work_precision_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_audit, "flow_error", lambda solver, steps, **_: steps**-2.0)
    monkeypatch.setattr(reference_audit, "strong_errors", lambda *_: ((25, 50), (0.1, 0.05)))
    reference_audit.plot_work_precision(tmp_path / "audit.png")
    with Image.open(tmp_path / "audit.png") as picture:
        assert picture.size == (840, 552)
