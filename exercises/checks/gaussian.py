"""Data of which all is known: one Gaussian, N(MEAN, STD^2) in each coordinate, under VP noise.

The score is linear, and along the probability flow (x - alpha MEAN) / sqrt(v) does not change,
where v = alpha^2 STD^2 + sigma^2.  So where a sampler should end is a formula.
"""

from exercises.checks.measure import one_time, points

import numpy as np

MEAN = 1.3
STD = 0.6
BETA_MIN = 0.3
BETA_MAX = 12.0  # no lecture has these rates: whoever copies numbers from there is found out


def beta(t):
    return BETA_MIN + (BETA_MAX - BETA_MIN) * np.asarray(t)


def alpha_sigma(t):
    t = np.asarray(t, dtype=np.float64)
    B = BETA_MIN * t + (BETA_MAX - BETA_MIN) * t**2 / 2
    return np.exp(-B / 2), np.sqrt(-np.expm1(-B))


def mean_variance(t):
    alpha, sigma = alpha_sigma(t)
    return alpha * MEAN, alpha**2 * STD**2 + sigma**2


def score(x, t):
    mean, variance = mean_variance(one_time(t, "score(x, t)"))
    return (mean - points(x, "score(x, t)")) / variance


def eps(x, t):
    t = one_time(t, "eps(x, t)")
    mean, variance = mean_variance(t)
    return alpha_sigma(t)[1] * (points(x, "eps(x, t)") - mean) / variance


def flow(x, t, s):
    """Where the probability flow carries x from time t to time s."""
    mean_t, variance_t = mean_variance(t)
    mean_s, variance_s = mean_variance(s)
    return mean_s + np.sqrt(variance_s / variance_t) * (x - mean_t)


def grid(steps, end):
    """Decreasing times [steps + 1] from 1 to `end`, the shorter the later."""
    return np.linspace(1, np.sqrt(end), steps + 1) ** 2


def flow_error(sampler, steps, end=0.03):
    """How far sampler(x, times) ends from the flow, at worst over some points: a number."""
    x = np.array([[-1.7, 0.4], [0.9, -0.2], [2.1, 1.2]])
    times = grid(steps, end)
    return float(np.abs(sampler(x, times) - flow(x, 1.0, end)).max())
