"""Exercise 10, MMD^2 without bias."""

from itertools import combinations

from common.distances import mmd2_unbiased
from exercises.checks.measure import Mistake, compare, finite, numbers

import numpy as np


def square_distances(x, y):
    return ((x[:, None] - y[None]) ** 2).sum(2)


def mean_off_diagonal(k):
    n = len(k)
    return (k.sum() - np.trace(k)) / (n * (n - 1))


def combined(x, y, kernel, within=mean_off_diagonal, factor=-2):
    """MMD^2 with one thing wrong: another kernel, another mean within a sample, another factor."""
    own = within(kernel(square_distances(x, x))) + within(kernel(square_distances(y, y)))
    return own + factor * kernel(square_distances(x, y)).mean()


def suspects(x, y, width):
    def kernel(square):
        return np.exp(-square / (2 * width**2))

    def kept(k):
        return k.sum() / (len(k) * (len(k) - 1))

    def too_large(k):
        return (k.sum() - np.trace(k)) / len(k) ** 2

    def no_half(square):
        return np.exp(-square / width**2)

    def not_squared(square):
        return np.exp(-np.sqrt(square) / (2 * width**2))

    def width_not_squared(square):
        return np.exp(-square / (2 * width))

    def width_above(square):
        return np.exp(-square * width**2 / 2)

    true = combined(x, y, kernel)
    biased = "it is biased: the pairs of a point with itself count, and the mean is over n^2"
    return [
        (combined(x, y, kernel, np.mean), biased),
        (combined(x, y, kernel, kept), "the sum keeps k(x_i, x_i) = 1, which n (n - 1) leaves out"),
        (combined(x, y, kernel, too_large), "n (n - 1) pairs are summed, but divided by n^2"),
        (combined(x, y, kernel, factor=-1), "the mean between x and y counts twice"),
        (combined(x, y, kernel, factor=2), "the mean between x and y is taken off"),
        (-true, "the sign is wrong: it is positive for samples that differ"),
        (np.sqrt(np.abs(true)), "this is MMD, its root"),
        (combined(x, y, no_half), "the 2 in the kernel is missing: 2 width^2"),
        (combined(x, y, not_squared), "the distance in the kernel is not squared"),
        (combined(x, y, width_not_squared), "the width in the kernel is not squared"),
        (combined(x, y, width_above), "it is multiplied by width^2, and should be divided"),
    ]


def mmd2(answer):
    def measured(x, y, width):
        found = numbers(answer(x, y, width), (), "MMD^2")
        return float(finite(found, "MMD^2", "the kernel lies between 0 and 1"))

    rng = np.random.default_rng(3)
    hint = "two means over different pairs within the samples, minus twice the mean between them"
    for n, m, width in ((5, 8, 1.4), (6, 6, 0.7)):
        x = rng.standard_normal((n, 2))
        y = 1.5 + rng.standard_normal((m, 2))
        true = mmd2_unbiased(x, y, width)
        what = f"MMD^2 of {n} and {m} points"
        compare(what, measured(x, y, width), true, suspects(x, y, width), hint)

    # Split one set in all ways: both parts are of one law, so the mean must be 0.
    pool = rng.standard_normal((7, 2))
    found = []
    for rows in combinations(range(7), 3):
        rest = [i for i in range(7) if i not in rows]
        found.append(measured(pool[list(rows)], pool[rest], 1.0))
    mean = float(np.mean(found))
    if abs(mean) > 1e-5:
        cut = "are negative values cut off?  " if min(found) >= 0 else ""
        why = f"{cut}MMD^2 of two samples of one law is 0 on average"
        raise Mistake(f"the mean over all 35 splits of one sample is {mean:.4f}, not 0: {why}")
    return f"mean over all splits of one sample {mean + 0:.0e}, single ones from {min(found):.2f}"
