"""Exercises 5 and 6, DDIM and DPM-Solver++(2M).

One step is linear in x and in the prediction, so two calls measure its factors.  If the data are
one point both solvers end on it exactly, with any number of steps.
"""

from exercises.checks import gaussian
from exercises.checks.gaussian import alpha_sigma
from exercises.checks.measure import Mistake, compare, finite, gap, numbers, one_time, order, points

import numpy as np


def end_of(answer, eps, x, times):
    """x [N, D] at the last time."""
    found = answer(eps, x, np.asarray(times, dtype=float), alpha_sigma)
    found = numbers(found, np.shape(x), "x at the last time")
    return finite(found, "x at the last time", "is something divided by a sigma of 0?")


def timed(value):
    """The eps(x, t) of a network that predicts value(t) everywhere."""

    def eps(x, t):
        return np.full(points(x, "eps(x, t)").shape, value(one_time(t, "eps(x, t)")))

    return eps


def toward(target):
    """The eps(x, t) of a network whose x0_hat is target(t), wherever x may be."""

    def eps(x, t):
        t = one_time(t, "eps(x, t)")
        alpha, sigma = alpha_sigma(t)
        return (points(x, "eps(x, t)") - alpha * target(t)) / np.maximum(sigma, 1e-12)

    return eps


def flow_order(answer, expected):
    """The order measured on Gaussian data, and the error after 40 steps."""

    def sampler(x, times):
        return end_of(answer, gaussian.eps, x, times)

    errors = [gaussian.flow_error(sampler, steps) for steps in (20, 40)]
    shown = order(*errors)
    if abs(shown - expected) > 0.4 or errors[1] > 0.1:
        wrong = f"order {shown:.1f} where {expected} is expected, off by {errors[1]:.2g}"
        why = "does each step start where the last one ended, with a call of its own?"
        raise Mistake(f"{wrong} after 40 steps: {why}")
    return f"order {shown:.1f}, off by {errors[1]:.0e} after 40 steps"


# ------------------------------------------------------------------------------ DDIM


def ddim_factors(alpha, sigma, alpha_s, sigma_s, sign=-1):
    """The factors of x and eps in a step with these numbers."""
    return np.array([alpha_s / alpha, sigma_s + sign * alpha_s * sigma / alpha])


def ddim_suspects(t, s):
    a, b = map(float, alpha_sigma(t))
    c, d = map(float, alpha_sigma(s))
    roots = np.sqrt(a), np.sqrt(1 - a), np.sqrt(c), np.sqrt(1 - c)
    return [
        (ddim_factors(a, b, c, b), "sigma_t stands where sigma_s belongs: the noise must get less"),
        (ddim_factors(a, b, 1, d), "x0_hat is not scaled by alpha_s"),
        (ddim_factors(a, b, a, d), "alpha_t stands where alpha_s belongs"),
        (ddim_factors(1, b, c, d), "x0_hat is not divided by alpha_t"),
        ((1 / a, -b / a), "this is x0_hat: the step to s is missing"),
        ((c / a, -c * b / a), "no noise is put back: + sigma_s eps"),
        (ddim_factors(a, b, c, d, sign=1), "the sign is wrong: x0_hat = (x - sigma eps) / alpha"),
        (ddim_factors(a, b, c, -d), "the sign is wrong: + sigma_s eps"),
        ((c / a, c * b**2 / a - b * d), "eps is taken for a score: score = -eps / sigma"),
        (ddim_factors(*roots), "alpha_t is not alpha-bar, but its root already"),
        (ddim_factors(c, d, a, b), "t and s are exchanged: times[i + 1] is s, the end of a step"),
        ((1.0, 0.0), "nothing moves: does it return the x it was given?"),
    ]


def ddim(answer):
    t, s = 0.7, 0.3
    a, b = map(float, alpha_sigma(t))
    one = np.ones((1, 1))
    by_x = end_of(answer, timed(lambda at: 0.0), one, (t, s))[0, 0]
    by_eps = end_of(answer, timed(lambda at: 1.0), 0 * one, (t, s))[0, 0]
    true = ddim_factors(a, b, *map(float, alpha_sigma(s)))
    hint = "x_s = alpha_s x0_hat + sigma_s eps, with x0_hat = (x_t - sigma_t eps) / alpha_t"
    names = [f"from t = 0.7 to 0.3 the factor of {part}" for part in ("x", "eps")]
    compare(names, (by_x, by_eps), true, ddim_suspects(t, s), hint)

    # An eps that is 1 at t and 0 at s tells when it is asked.
    asked = end_of(answer, timed(lambda at: 1.0 * (at > 0.5)), 0 * one, (t, s))[0, 0]
    late = "eps is evaluated at s, but x is still at t"
    compare("with an eps that is 1 at t and 0 at s, x", asked, true[1], [(0.0, late)], hint)

    off = exact_for_a_point(answer, (1.0, 0.6, 0.25, 0.0))
    return f"exact for one point to {off:.0e}; {flow_order(answer, 1)}"


def exact_for_a_point(answer, times):
    """The error at the last time, where the data are one point."""
    point = 1.7
    start = np.array([[0.4, -1.1], [2.0, 0.3]])
    found = end_of(answer, toward(lambda t: point), start, times)
    first, last = alpha_sigma(times[0]), alpha_sigma(times[-1])
    true = last[0] * point + last[1] * (start - first[0] * point) / first[1]
    hint = "does every step start where the last one ended, and is the last one taken?"
    what = f"where the data are one point, x at t = {times[-1]}"
    compare(what, found, true, [], hint)
    return gap(found, true)


# ------------------------------------------------------------------------------ DPM-Solver++


def log_ratio(t):
    alpha, sigma = map(float, alpha_sigma(t))
    return np.log(alpha / sigma)


def check_first_step(answer):
    """The factors of x and of x0_hat, when no step was before."""
    t, s = 0.7, 0.45
    a, b = map(float, alpha_sigma(t))
    c, d = map(float, alpha_sigma(s))
    h = log_ratio(s) - log_ratio(t)
    start = np.ones((1, 1))
    by_x = end_of(answer, toward(lambda t: 0.0), start, (t, s))[0, 0]
    by_x0 = end_of(answer, toward(lambda t: 1.0), 0 * start, (t, s))[0, 0]

    suspects = [
        (d / b, -c * np.exp(-h), "the -1 is missing: exp(-h) - 1, which is expm1(-h)"),
        (d / b, -c * np.expm1(h), "the sign of h is wrong: lambda = log(alpha / sigma) grows"),
        (d / b, c * np.expm1(h), "the sign of h is wrong: it is exp(-h) - 1"),
        (d / b, c * np.expm1(-h), "the sign is wrong: it is - alpha_s (exp(-h) - 1) D"),
        (d / b, -c * np.expm1(-2 * h), "h is twice too large: lambda is half the log-SNR"),
        (d / b, -a * np.expm1(-h), "alpha_t stands where alpha_s belongs"),
        (d / b, -d * np.expm1(-h), "sigma_s stands in front of (exp(-h) - 1): here it is alpha_s"),
        (d / b, c * h, "h stands for 1 - exp(-h): the exponential is integrated exactly"),
        (b / d, -c * np.expm1(-h), "the ratio is upside down: sigma_s / sigma_t"),
        (c / a, -c * np.expm1(-h), "alpha_s / alpha_t stands where sigma_s / sigma_t belongs"),
    ]
    suspects = [((x, x0), why) for x, x0, why in suspects]
    names = [f"in a first step the factor of {part}" for part in ("x", "x0_hat")]
    hint = "x_s = sigma_s / sigma_t x_t - alpha_s (exp(-h) - 1) x0_hat"
    compare(names, (by_x, by_x0), (d / b, -c * np.expm1(-h)), suspects, hint)


def extrapolation(answer, times, targets):
    """D of the last step, where the calls gave these x0_hat, one after the other."""

    def target(t):
        return targets[np.argmin(np.abs(np.subtract(times[:-1], t)))]

    eps = toward(target)
    zero = np.zeros((1, 1))
    before = end_of(answer, eps, zero, times[:-1])[0, 0]
    x = end_of(answer, eps, zero, times)[0, 0]

    _, sigma = alpha_sigma(times[-2])
    alpha_s, sigma_s = alpha_sigma(times[-1])
    h = log_ratio(times[-1]) - log_ratio(times[-2])
    return float((x - sigma_s / sigma * before) / -(alpha_s * np.expm1(-h)))


def check_extrapolation(answer):
    """How far D reaches beyond x0_hat, and from which call, with steps of unequal length."""
    times = (0.9, 0.7, 0.6, 0.3)
    h1, h2, h3 = np.diff([log_ratio(t) for t in times])
    r = h2 / (2 * h1)
    suspects = [
        (0.0, "the call before has no effect, so it is of first order"),
        (h1 / (2 * h2), "the ratio is upside down: h / (2 h_before)"),
        (h2 / h1, "the 2 is missing: D is half a step ahead, h / (2 h_before)"),
        (0.5, "the steps are not equally long: h / (2 h_before)"),
        (-r, "the sign is wrong: + h / (2 h_before) (x0_hat - x0_before)"),
    ]
    hint = "D = x0_hat + h / (2 h_before) (x0_hat - x0_before)"
    found = extrapolation(answer, times[:3], (0.0, 1.0)) - 1
    what = "in the second step, where x0_hat grew by 1, D - x0_hat"
    compare(what, found, r, suspects, hint, 1e-3)

    # In the third step what lies two calls back must have no effect any more.
    r = h3 / (2 * h2)
    stale = [
        (h3 / (2 * h1), "h_before is still that of the first step"),
        (1 / (4 * r), "the ratio is upside down: h / (2 h_before)"),
    ]
    found = extrapolation(answer, times, (0.0, 0.0, 1.0)) - 1
    compare("in the third step, where x0_hat grew by 1, D - x0_hat", found, r, stale, hint, 1e-3)
    found = extrapolation(answer, times, (1.0, 0.0, 0.0))
    if abs(found) > 1e-3:
        why = "are x0_hat extrapolated, and not eps?"
        if abs(found + r) < 1e-3:
            why = "x0_before is still that of the first step"
        what = "in the third step, where the last two x0_hat are 0, D"
        raise Mistake(f"{what} is {found:.3g}: {why}")


def dpmpp_2m(answer):
    check_first_step(answer)
    check_extrapolation(answer)
    off = exact_for_a_point(answer, (1.0, 0.6, 0.25, 0.03))
    return f"exact for one point to {off:.0e}; {flow_order(answer, 2)}"
