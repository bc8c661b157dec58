"""Exercise 1, alpha and sigma from beta."""

from exercises.checks.measure import compare, finite, gap, numbers, pair

import numpy as np

NEAR = 1e-14  # a time so near to 0 that 1 - alpha^2 is all rounding


def read(answer, shape):
    alpha, sigma = pair(answer, "alpha and sigma")
    alpha = numbers(alpha, shape, "alpha")
    return alpha, numbers(sigma, shape, "sigma")


def alpha_sigma(answer):
    t = np.array([0.0, 0.02, 0.17, 0.44, 0.8, 1.0])
    for low, high in ((0.1, 20.0), (0.6, 4.0)):
        alpha, sigma = read(answer(t, low, high), t.shape)
        beta = low + (high - low) * t
        B = low * t + (high - low) * t**2 / 2
        check_alpha(alpha, beta, B, t)
        check_sigma(sigma, B)
    off = gap(alpha**2 + sigma**2, np.ones_like(t))

    # Near the data, where a difference of two numbers near 1 would have no digits left.
    early = np.array([NEAR, 1e-12, 1e-9])
    B = 0.1 * early + 19.9 * early**2 / 2
    true = np.sqrt(B * (1 - B / 2))  # 1 - exp(-B), as a series
    _, sigma = read(answer(early, 0.1, 20.0), early.shape)
    lost = "1 - alpha^2 loses its digits near t = 0, where -expm1(-B) keeps them"
    relative = sigma / true
    names = [f"at t = {t:.0e} sigma, over its true value," for t in early]
    compare(names, relative, np.ones(3), [], lost)
    digits = f"sigma right to {gap(relative, np.ones(3)):.0e} near t = 0"
    return f"alpha^2 + sigma^2 = 1 to {off:.0e}, {digits}"


def check_alpha(alpha, beta, B, t):
    suspects = [
        (np.exp(-B), "is it exp(-B)?  alpha^2 is exp(-B), so the exponent of alpha is -B/2"),
        (np.exp(B / 2), "the signal fades with time: the exponent is negative"),
        (np.exp(-beta / 2), "beta(t) stands where its integral B(t) belongs: alpha_0 must be 1"),
        (np.exp(-beta * t / 2), "B is not t beta(t): the integral of beta has t^2 / 2"),
        (np.sqrt(-np.expm1(-B)), "this is sigma: alpha comes first"),
    ]
    hint = "alpha^2 is exp(-B(t)), and B(t) the integral of beta from 0 to t"
    compare("alpha", finite(alpha, "alpha", hint), np.exp(-B / 2), suspects, hint)


def check_sigma(sigma, B):
    alpha = np.exp(-B / 2)
    suspects = [
        (-np.expm1(-B), "this is the variance: sigma is its root"),
        (1 - alpha, "is it 1 - alpha?  alpha^2 + sigma^2 = 1: variances add up, not roots"),
        (np.sqrt(1 - alpha), "is it sqrt(1 - alpha)?  sigma^2 is 1 - exp(-B)"),
    ]
    hint = "alpha^2 + sigma^2 = 1"
    compare("sigma", finite(sigma, "sigma", hint), np.sqrt(-np.expm1(-B)), suspects, hint)
