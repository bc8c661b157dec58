"""Exercise 2, the score of a mixture."""

from exercises.checks.measure import Mistake, compare, finite, gap, numbers
from reference_gmm_sde import GaussianMixture

import numpy as np

WEIGHTS = np.array([0.15, 0.6, 0.25])
MEANS = np.array([[2.0, 0.5], [-1.0, 1.5], [0.3, -2.0]])
STDS = np.array([0.35, 0.9, 0.6])
D = 2


class Still:
    """A schedule that stands still: the same alpha and sigma at every t."""

    def __init__(self, alpha, sigma):
        self.pair = alpha, sigma

    def alpha_sigma(self, t):
        return self.pair


def exact(x, alpha, sigma, stds=STDS):
    covs = stds[:, None, None] ** 2 * np.eye(D)
    return GaussianMixture(WEIGHTS, MEANS, covs, Still(alpha, sigma)).score(x, 0.5)


def average(x, alpha, v, weights=WEIGHTS, normal=1.0, known=None, power=1.0, whole=None):
    """The score with one thing wrong.

    So much of the normaliser of each density, known shares, another power of v, or instead of the
    shares the densities themselves, times a factor `whole`.
    """
    pull = alpha * MEANS - x[:, None]  # [N, K, D]
    log_p = np.log(weights) - normal * D / 2 * np.log(v) - (pull**2).sum(2) / (2 * v)
    shares = np.exp(log_p - log_p.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    if known is not None:
        shares = np.broadcast_to(known, shares.shape)
    if whole is not None:
        shares = whole * np.exp(log_p)
    return np.einsum("nk,nkd->nd", shares, pull / v[:, None] ** power)


def suspects(x, alpha, sigma):
    true = exact(x, alpha, sigma)
    v = alpha**2 * STDS**2 + sigma**2
    data = alpha**2 * STDS**2
    noise = np.full(3, sigma**2)
    even = np.full(3, 1 / 3)
    still = STDS**2 + sigma**2
    gradient = "this is the gradient of p, and that of log p is asked: divide by p"
    no_factor = "the shares need the factor 1 / v_k^(D/2) of each density, since the v_k differ"
    return [
        (-true, "the sign is wrong: the score points to where the density is higher"),
        (-sigma * true, "this is eps, -sigma times the score"),
        (average(x, alpha, data), "the noise is missing in v_k = alpha^2 s_k^2 + sigma^2"),
        (average(x, alpha, noise), "the data are not points: v_k = alpha^2 s_k^2 + sigma^2"),
        (average(x, alpha, still), "the data shrink too: v_k = alpha^2 s_k^2 + sigma^2"),
        (average(x, 1.0, v), "the means are not scaled: at time t they are alpha mu_k"),
        (average(x, alpha, v, even), "the weights w_k have no effect on the shares"),
        (average(x, alpha, v, known=WEIGHTS), "r_k is w_k, but it should be the share at x"),
        (average(x, alpha, v, normal=0.0), no_factor),
        (average(x, alpha, v, normal=1 / D), no_factor),
        (average(x, alpha, v, whole=1.0), gradient),
        (average(x, alpha, v, whole=(2 * np.pi) ** (-D / 2)), gradient),
        (average(x, alpha, v, power=0.5), "it is divided by the standard deviation, not by v_k"),
    ]


def mixture_score(answer):
    rng = np.random.default_rng(5)
    x = 1.5 * rng.standard_normal((7, D))
    hint = "sum_k r_k (alpha mu_k - x) / v_k, where the r_k of a point sum to 1"
    off = 0.0
    for alpha, sigma in ((0.8, 0.6), (0.35, 0.9)):
        found = numbers(answer(x, alpha, sigma, WEIGHTS, MEANS, STDS), x.shape, "the score")
        true = exact(x, alpha, sigma)
        finite(found, "the score", hint)
        compare("the score", found, true, suspects(x, alpha, sigma), hint)
        off = max(off, gap(found, true))

    # Where every density underflows.
    far = np.array([[300.0, -200.0], [-400.0, 100.0]])
    found = answer(far, 0.99, 0.05, WEIGHTS, MEANS, STDS)
    found = numbers(found, far.shape, "the score far away")
    true = exact(far, 0.99, 0.05)
    cure = "all densities are 0 there.  Take off the largest logarithm of each point before exp"
    finite(found, "the score at x = (300, -200)", cure)
    if gap(found, true) > 1e-4:
        number = f"{np.linalg.norm(found[0]):.4g} where {np.linalg.norm(true[0]):.4g} is expected"
        raise Mistake(f"the length of the score at x = (300, -200) is {number}: {cure}")
    return f"right to {off:.0e}, and still right 300 away from the data"
