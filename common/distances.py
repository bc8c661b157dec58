"""Distances between clouds of points, float64 [N, D]: MMD^2 and sliced Wasserstein.

MMD^2 has the kernel k(x, y) = exp(-|x - y|^2 / (2 sigma^2)) and is unbiased: for two samples of the
same law it is 0 on average, and therefore often negative.

A mixture is passed in as an object, a GaussianMixture of reference_gmm_sde.py.
"""

import numpy as np

# ------------------------------------------------------------------------------------ MMD^2


def kernel_sum(x, y, sigma, size=256):
    """Sum of k(x_i, y_j) over all pairs, in pieces of `size` points, so that memory stays flat."""
    x = x / (np.sqrt(2) * sigma)
    y = y / (np.sqrt(2) * sigma)
    y_square = (y**2).sum(axis=1)

    total = 0.0
    for start in range(0, len(x), size):
        piece = x[start : start + size]
        k = piece @ (2 * y.T)  # -|x - y|^2, expanded: [n, M]
        k -= (piece**2).sum(axis=1)[:, None]
        k -= y_square
        total += np.exp(k, out=k).sum()
    return total


def mean_within(x, sigma):
    """Mean of k(x_i, x_j) over the pairs of different points."""
    n = len(x)
    return (kernel_sum(x, x, sigma) - n) / (n * (n - 1))  # k(x, x) = 1


def check_sizes(sigma, *sizes):
    if min(sizes) < 2 or not sigma > 0:
        counted = " and ".join(map(str, sizes))
        raise ValueError(f"MMD needs two points or more and sigma > 0, not {counted} and {sigma}")


def mmd2_unbiased(x, y, sigma=1.0):
    """MMD^2 between two samples, [N, D] and [M, D].  Raises ValueError for less than two points."""
    n = len(x)
    m = len(y)
    check_sizes(sigma, n, m)
    within = mean_within(x, sigma) + mean_within(y, sigma)
    return within - 2 * kernel_sum(x, y, sigma) / (n * m)


def mmd2_to_mixture(x, mixture, sigma=1.0):
    """MMD^2 between a sample [N, D] and a whole mixture, without drawing from the mixture.

    But for a factor the kernel is a Gaussian density.  So E k(x, y) is the density at x of the
    mixture widened by sigma^2, and E k(y, y') the density at 0 of all differences, widened alike.
    Raises ValueError for less than two points.
    """
    check_sizes(sigma, len(x))
    Mixture = type(mixture)
    weights, means, covs = mixture.weights, mixture.means, mixture.covs
    K, D = means.shape
    widened = covs + sigma**2 * np.eye(D)

    cross = Mixture(weights, means, widened).log_prob(x)
    differences = Mixture(
        np.outer(weights, weights).ravel(),
        (means[:, None] - means).reshape(K * K, D),
        (covs[:, None] + widened).reshape(K * K, D, D),
    )
    among = differences.log_prob(np.zeros((1, D)))[0]

    log_factor = 0.5 * D * np.log(2 * np.pi * sigma**2)
    own = mean_within(x, sigma)
    return own - 2 * np.exp(cross + log_factor).mean() + np.exp(among + log_factor)


# ---------------------------------------------------------------------- sliced Wasserstein


def sliced_wasserstein(x, y, n_projections, rng):
    """Sliced 2-Wasserstein distance of two samples [N, D] of one size, in units of x.

    The root of the mean square, over random directions and matched ranks.  Raises ValueError for
    samples of different sizes.
    """
    if np.shape(x) != np.shape(y):
        shapes = f"{np.shape(x)} and {np.shape(y)}"
        raise ValueError(f"sliced Wasserstein needs samples of one shape, not {shapes}")
    directions = rng.standard_normal((x.shape[1], n_projections))
    directions /= np.linalg.norm(directions, axis=0)

    gap = np.sort(x @ directions, axis=0) - np.sort(y @ directions, axis=0)
    return float(np.sqrt((gap**2).mean()))


# -------------------------------------------------------------------------------- a report


def from_mixture(x, mixture, seed):
    """How far a cloud [N, D] is from a mixture, as the dict of a metrics.json.

    Each floor is the same figure for as many exact draws.  MMD^2 needs two points: of one there is
    none.
    """
    n = len(x)
    rng = np.random.default_rng([seed, 1])
    exact = mixture.sample(n, rng)
    fresh = mixture.sample(n, rng)

    report = {"n": n}
    if n > 1:
        report["mmd2"] = mmd2_to_mixture(x, mixture)
        report["mmd2_floor"] = mmd2_to_mixture(fresh, mixture)
    report["sliced_wasserstein"] = sliced_wasserstein(x, exact, 100, rng)
    report["sliced_wasserstein_floor"] = sliced_wasserstein(fresh, exact, 100, rng)
    report["log_density"] = mixture.log_prob(x).mean()
    report["log_density_floor"] = mixture.log_prob(fresh).mean()
    return report


def report_lines(report):
    """The same to be printed: a line a distance, the floor beside it."""
    names = [name for name in report if f"{name}_floor" in report]
    return "\n".join(
        f"{name:20}{report[name]:10.5f}   exact samples{report[name + '_floor']:10.5f}"
        for name in names
    )
