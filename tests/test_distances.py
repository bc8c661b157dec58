"""common/distances.py, by brute force and by what is known of its averages."""

import reference_gmm_sde as ref
from common import distances

import numpy as np
import pytest


def random_mixture(D):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((3, D, D))
    covs = 0.3 * A @ A.transpose(0, 2, 1) + 0.05 * np.eye(D)
    return ref.GaussianMixture(rng.dirichlet(np.ones(3)), 2 * rng.standard_normal((3, D)), covs)


def test_mmd_by_brute_force():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 2))  # more than one piece
    y = rng.standard_normal((300, 2)) + 0.5
    sigma = 0.7

    def kernel(a, b):
        return np.exp(-((a[:, None] - b) ** 2).sum(-1) / (2 * sigma**2))

    off_diagonal = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    literal = sum(off_diagonal) - 2 * kernel(x, y).mean()
    assert distances.mmd2_unbiased(x, y, sigma) == pytest.approx(literal, rel=1e-10)
    assert distances.kernel_sum(x, y, sigma) == pytest.approx(kernel(x, y).sum(), rel=1e-10)


@pytest.mark.parametrize("D", [1, 2, 3])
def test_mmd_to_a_mixture_is_the_limit_of_mmd_to_its_samples(D):
    gmm = random_mixture(D)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, D))
    y = gmm.sample(5000, rng)
    by_samples = distances.mmd2_unbiased(x, y, 0.8)
    scatter = 4 / np.sqrt(len(y)) * np.sqrt(by_samples)
    assert distances.mmd2_to_mixture(x, gmm, 0.8) == pytest.approx(by_samples, abs=scatter)


def test_mmd_is_unbiased():
    gmm = ref.mixture("two")
    rng = np.random.default_rng(0)
    values = np.array([distances.mmd2_to_mixture(gmm.sample(100, rng), gmm) for _ in range(200)])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(200)
    assert values.min() < 0 < values.max()


def test_sliced_wasserstein():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 2))
    assert distances.sliced_wasserstein(x, rng.permutation(x), 20, rng) == pytest.approx(0, abs=1e-12)
    # a shift by d moves every projection by u.d, whose mean square over directions is |d|^2 / D
    shifted = distances.sliced_wasserstein(x, x + [3.0, 4.0], 5000, rng)
    assert shifted == pytest.approx(5 / np.sqrt(2), rel=0.05)
    line = rng.standard_normal((400, 1))
    assert distances.sliced_wasserstein(line, 2 * line, 3, rng) == pytest.approx(np.sqrt((line**2).mean()))


def test_exact_samples_score_their_floors():
    gmm = ref.mixture("S")
    report = distances.from_mixture(gmm.sample(2000, np.random.default_rng(5)), gmm, seed=0)
    assert report["n"] == 2000
    assert abs(report["mmd2"]) < 2e-3 and abs(report["mmd2_floor"]) < 2e-3
    assert abs(report["log_density"] - report["log_density_floor"]) < 0.1  # entropy, to three standard errors
    assert 0.5 < report["sliced_wasserstein"] / report["sliced_wasserstein_floor"] < 2


def test_of_one_point_there_is_a_report_without_mmd_and_without_nan():
    gmm = ref.mixture("S")
    report = distances.from_mixture(gmm.sample(1, np.random.default_rng(5)), gmm, seed=0)
    assert "mmd2" not in report and "mmd2_floor" not in report
    assert np.isfinite(list(report.values())).all()
    assert len(distances.report_lines(report).splitlines()) == 2


def test_sizes_that_cannot_be_compared_are_refused():
    gmm = ref.mixture("two")
    with pytest.raises(ValueError, match="two points"):
        distances.mmd2_unbiased(np.zeros((1, 2)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match="sigma > 0"):
        distances.mmd2_unbiased(np.zeros((5, 2)), np.zeros((5, 2)), 0)
    with pytest.raises(ValueError, match="two points"):
        distances.mmd2_to_mixture(np.zeros((1, 2)), gmm)
    with pytest.raises(ValueError, match="one shape"):
        distances.sliced_wasserstein(np.zeros((3, 2)), np.zeros((4, 2)), 5, np.random.default_rng(0))
