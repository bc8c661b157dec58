"""The closed form of reference_gmm_sde.py: by hand-made cases (one Gaussian, one dimension) and by brute force."""

import reference_gmm_sde as ref
from common.distances import mmd2_to_mixture

import numpy as np
import pytest

VP = ref.VP
I2 = np.eye(2)


class Straight:
    """Another kernel: alpha = 1 - t, sigma = t, both ends included."""

    def alpha_sigma(self, t):
        return 1.0 - t, t


def random_mixture(D, K, seed=0, schedule=VP, spread=2.0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((K, D, D))
    covs = 0.3 * A @ A.transpose(0, 2, 1) + 0.05 * np.eye(D)
    return ref.GaussianMixture(rng.dirichlet(np.ones(K)), spread * rng.standard_normal((K, D)), covs, schedule)


# ------------------------------------------------------------------------------------------------ schedule and grids


@pytest.mark.parametrize("schedule", [VP, ref.VPSchedule(0.1, 30.0), ref.VPSchedule(2.0, 2.0)])
def test_all_of_a_schedule_follows_from_beta(schedule):
    nodes, weights = np.polynomial.legendre.leggauss(8)
    for t in (1e-6, 0.01, 0.3, 1.0):
        integral = (weights * schedule.beta(t / 2 * (nodes + 1))).sum() * t / 2
        assert schedule.B(t) == pytest.approx(integral, rel=1e-13)
        alpha, sigma = schedule.alpha_sigma(t)
        assert alpha == pytest.approx(np.exp(-integral / 2), rel=1e-13)
        assert sigma**2 + alpha**2 == pytest.approx(1, abs=1e-15)
        assert schedule.log_snr(t) == pytest.approx(2 * np.log(alpha / sigma), rel=1e-9)
        assert schedule.t_of_log_snr(schedule.log_snr(t)) == pytest.approx(t, rel=1e-9)


def test_a_schedule_keeps_its_digits_at_and_near_t_0():
    assert VP.alpha_sigma(0.0) == (1.0, 0.0)
    assert VP.log_snr(0.0) == np.inf
    tiny = 1e-14  # sigma^2 = B - B^2/2 + ...; taken from 1 - alpha^2 it would have one digit left
    assert VP.alpha_sigma(tiny)[1] == pytest.approx(np.sqrt(VP.beta_min * tiny), rel=1e-12)


@pytest.mark.parametrize("betas", [(0.1, np.nan), (np.nan, 20), (5, 1), (-1, 20), (0, 20), (0.1, np.inf)])
def test_rates_that_cannot_be_are_refused(betas):
    with pytest.raises(ValueError, match="beta"):
        ref.VPSchedule(*betas)


@pytest.mark.parametrize("kind, scale", [("uniform", lambda t: t), ("quadratic", np.sqrt), ("logsnr", VP.log_snr)])
def test_a_grid_is_even_on_its_scale_and_hits_both_ends(kind, scale):
    times = ref.time_grid(40, 0.9, 0.02, kind)
    assert times.shape == (41,) and times[0] == 0.9 and times[-1] == 0.02
    assert (np.diff(times) < 0).all()
    assert np.ptp(np.diff(scale(times))) < 1e-9

    to_zero = ref.time_grid(40, kind=kind)
    assert to_zero.shape == (41,) and to_zero[0] == 1 and to_zero[-1] == 0
    assert (np.diff(to_zero) < 0).all() and np.ptp(np.diff(scale(to_zero[:-1]))) < 1e-9
    assert ref.time_grid(1, kind=kind).tolist() == [1, 0]


BAD_GRIDS = [
    (0,),
    (-3,),
    (2.5,),
    (9, 1.0, 1.0),
    (9, 0.5, 0.6),
    (9, 1.0, -0.1),
    (9, 1.5),
    (9, np.nan),
    (9, 1, 0, "cubic"),
]


@pytest.mark.parametrize("args", BAD_GRIDS)
def test_grids_that_cannot_be_are_refused(args):
    with pytest.raises(ValueError):
        ref.time_grid(*args)


# -------------------------------------------------------------------------------------------------- the closed form


@pytest.mark.parametrize("D", [1, 2, 16])
def test_one_gaussian_is_known_by_hand(D):
    gmm = random_mixture(D, 1)
    t = 0.2
    alpha, sigma = VP.alpha_sigma(t)
    C = alpha**2 * gmm.covs[0] + sigma**2 * np.eye(D)
    x = 3 * np.random.default_rng(1).standard_normal((50, D))
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
def test_score_eps_posterior_mean_and_marginal_agree(D):
    gmm = random_mixture(D, 6)
    x = 3 * np.random.default_rng(1).standard_normal((600, D))  # more than one piece
    for t in (0.0, 1e-3, 0.3, 1.0):
        alpha, sigma = VP.alpha_sigma(t)
        score = gmm.score(x, t)
        tweedie = (x + sigma**2 * score) / alpha
        assert gmm.posterior_mean(x, t) == pytest.approx(tweedie, rel=1e-9, abs=1e-9)
        assert gmm.eps(x, t) == pytest.approx(-sigma * score)
        assert gmm.score_and_divergence(x, t)[0] == pytest.approx(score, rel=1e-9, abs=1e-9)
        assert gmm.marginal(t).log_prob(x) == pytest.approx(gmm.log_prob(x, t), rel=1e-11)
        alone = gmm.score(x[300:310], t)
        assert alone == pytest.approx(score[300:310], rel=1e-12)  # a point does not see its neighbours


def test_divergence_is_the_derivative_of_the_score():
    gmm = random_mixture(3, 5)
    t = 0.1
    h = 1e-5
    x = 2 * np.random.default_rng(1).standard_normal((100, 3))
    slopes = [(gmm.score(x + h * e, t) - gmm.score(x - h * e, t))[:, i] / (2 * h) for i, e in enumerate(np.eye(3))]
    assert gmm.score_and_divergence(x, t)[1] == pytest.approx(sum(slopes), rel=1e-6, abs=1e-6)


def test_density_integrates_to_one_and_posterior_mean_by_quadrature():
    gmm = random_mixture(1, 4)
    t = 0.15
    grid = np.linspace(-15, 15, 6001)
    assert np.exp(gmm.log_prob(grid[:, None], t)).sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-10)

    alpha, sigma = VP.alpha_sigma(t)
    for x in (-1.0, 0.3, 2.5):
        joint = np.exp(gmm.log_prob(grid[:, None]) - (x - alpha * grid) ** 2 / (2 * sigma**2))
        mean = (joint * grid).sum() / joint.sum()
        assert gmm.posterior_mean([[x]], t).item() == pytest.approx(mean, abs=1e-9)


def test_everything_is_finite_far_off_the_support_and_at_the_ends_of_time():
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
    pair = ref.GaussianMixture([0.5, 0.5], near + far, [0.01 * I2] * 2)
    one = ref.GaussianMixture([1.0], near, [0.01 * I2])
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


def test_no_points_and_no_rows_are_points_too():
    gmm = ref.mixture("two")
    none = np.zeros((0, 2))
    assert gmm.log_prob(none, 0.3).shape == (0,)
    assert gmm.score(none, 0.3).shape == gmm.posterior_mean(none, 0.3).shape == (0, 2)


def test_equal_components_and_a_weight_of_zero():
    one = random_mixture(2, 1)
    x = np.random.default_rng(1).standard_normal((50, 2))
    stray = ref.GaussianMixture([0.25, 0.75, 0], [*one.means] * 2 + [[9, 9]], [*one.covs] * 2 + [I2])
    for t in (0.0, 0.4):
        assert stray.log_prob(x, t) == pytest.approx(one.log_prob(x, t), rel=1e-12)
        assert stray.score(x, t) == pytest.approx(one.score(x, t), rel=1e-12)
    assert np.abs(stray.sample(500, np.random.default_rng(0)) - 9).min() > 0.5
    assert np.abs(stray.posterior_sample(x, 1.0, np.random.default_rng(0)) - 9).min() > 0.5


# ------------------------------------------------------------------------------------------------------------ draws


def test_sample_has_the_moments_of_the_mixture():
    gmm = random_mixture(3, 4)
    n = 100_000
    x = gmm.sample(n, np.random.default_rng(0))
    mean = gmm.weights @ gmm.means
    second = np.einsum("k,kij->ij", gmm.weights, gmm.covs + gmm.means[:, :, None] * gmm.means[:, None, :])
    spread = np.sqrt(np.diag(second)).max()
    assert np.abs(x.mean(0) - mean).max() < 5 * spread / np.sqrt(n)
    assert np.abs(x.T @ x / n - second).max() < 10 * spread**2 / np.sqrt(n)  # kurtosis of a mixture: a few


@pytest.mark.parametrize("schedule", [VP, Straight()])
def test_one_exact_jump_from_p_t_lands_on_p_0(schedule):
    gmm = ref.mixture("two", schedule)
    rng = np.random.default_rng(0)
    n = 4000
    for t in (0.1, 0.6, 1.0):
        jumped = gmm.posterior_sample(gmm.marginal(t).sample(n, rng), t, rng)
        assert abs(mmd2_to_mixture(jumped, gmm)) < 4 * np.sqrt(2) / n  # the kernel is at most 1

    x = np.tile([[0.2, 1.5]], (20_000, 1))
    draws = gmm.posterior_sample(x, 0.6, rng)
    mean = gmm.posterior_mean(x[:1], 0.6)[0]
    assert np.abs(draws.mean(0) - mean).max() < 5 * draws.std() / np.sqrt(len(x))
    assert gmm.posterior_sample(x[:5], 0.0, rng) == pytest.approx(x[:5])


def test_posterior_sample_of_one_gaussian_has_its_covariance():
    gmm = random_mixture(3, 1)
    t = 0.3
    n = 50_000
    alpha, sigma = VP.alpha_sigma(t)
    S = gmm.covs[0]
    exact = S - alpha**2 * S @ np.linalg.solve(alpha**2 * S + sigma**2 * np.eye(3), S)
    x = np.tile([[1.0, -1.0, 0.5]], (n, 1))
    draws = gmm.posterior_sample(x, t, np.random.default_rng(0))
    assert np.abs(np.cov(draws.T) - exact).max() < 5 * np.sqrt(2 / n) * exact.max()
    assert np.abs(draws.mean(0) - gmm.posterior_mean(x[:1], t)).max() < 5 * np.sqrt(exact.max() / n)


# ----------------------------------------------------------------------------- conditional, guided, named, refused


def test_conditional_and_guided():
    gmm = ref.mixture("two")
    right = gmm.given([0])
    assert right.weights.tolist() == [1] and right.means.tolist() == [[3, 3]]
    x = np.random.default_rng(0).standard_normal((20, 2))
    assert ref.guided_score(gmm, right, x, 0.3, 0) == pytest.approx(gmm.score(x, 0.3))
    assert ref.guided_score(gmm, right, x, 0.3, 1) == pytest.approx(right.score(x, 0.3))
    beyond = 1.5 * right.eps(x, 0.3) - 0.5 * gmm.eps(x, 0.3)
    assert ref.guided_eps(gmm, right, x, 0.3, 1.5) == pytest.approx(beyond)


@pytest.mark.parametrize("name, K, width, std", [("S", 48, 4.0, 0.12), ("circle", 24, 4.0, 0.12), ("two", 2, 6.0, 0.5)])
def test_named_mixtures(name, K, width, std):
    gmm = ref.mixture(name)
    assert gmm.means.shape == (K, 2)
    assert np.ptp(gmm.means[:, 0]) == pytest.approx(width, rel=1e-3)
    assert gmm.covs == pytest.approx(np.tile(std**2 * I2, (K, 1, 1)))


def test_the_letter_s_is_evenly_drawn_and_the_right_way_round():
    s = ref.mixture("S").means
    assert s[::-1] == pytest.approx(-s, abs=1e-9)  # half a turn maps it onto itself
    assert s[0, 0] > 1 and s[0, 1] > 1 and s[12, 0] < 0  # the upper bowl opens to the right
    assert np.ptp(np.linalg.norm(np.diff(s, axis=0), axis=1)) < 0.01


BAD_MIXTURES = [
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
]


@pytest.mark.parametrize("weights, means, covs, word", BAD_MIXTURES)
def test_mixtures_that_cannot_be_are_refused(weights, means, covs, word):
    with pytest.raises(ValueError, match=word):
        ref.GaussianMixture(weights, means, covs)


@pytest.mark.parametrize("shape", [(2,), (4, 3), (2, 2, 2)])
def test_points_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="points must be"):
        ref.mixture("two").score(np.zeros(shape), 0.5)


def test_a_name_that_is_no_mixture_is_refused():
    with pytest.raises(ValueError, match="shape must be"):
        ref.mixture("Z")
