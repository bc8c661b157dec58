"""Exercise 4, the probability flow by Heun."""

from exercises.checks import gaussian
from exercises.checks.measure import Mistake, compare, finite, numbers, one_time, order

import numpy as np


def step(answer, x=0.0, score=0.0, beta=gaussian.beta, t=0.6, s=0.599):
    """Where a step from t to s ends, and how often the score was asked."""
    calls = []

    def asked(_, at):
        at = one_time(at, "score(x, t)")
        calls.append(at)
        value = score(at) if callable(score) else score
        return np.full((1, 1), value)

    found = answer(asked, np.array([[x]]), np.array([t, s]), beta)
    what = f"x after a step from t = {t} to {s}"
    hint = "x_s = x_t + (s - t) (d1 + d2) / 2"
    return finite(numbers(found, (1, 1), what), what, hint)[0, 0], len(calls)


def check_slope(answer):
    """The factors of x and of the score in a short step."""
    beta = float(gaussian.beta(0.6))
    by_x = (step(answer, x=1.0)[0] - 1) / -0.001
    by_score = step(answer, score=1.0)[0] / -0.001

    half = np.array([-beta / 2, -beta / 2])
    twice = "twice too much: half of beta, and the mean of the slopes goes to the old x"
    suspects = [
        (-half, "the sign of time is wrong: the step is s - t, which is negative, and so is f"),
        (2 * half, twice),
        (half * (1, 2), "this is the drift of the reverse SDE: the flow has half the score"),
        (half * (1, -1), "the sign of the score is wrong: f = -beta/2 (x + score)"),
        (half * (1, 0), "the score has no effect"),
        (half * (0, 1), "the term -beta/2 x is missing"),
        (half / 2, "half too little: is the mean taken twice, or one slope left out?"),
        ((-0.5, -0.5), "is the factor beta missing from the slope?"),
        ((0.0, 0.0), "nothing moves: does it return the x it was given?"),
    ]
    names = ("the factor of x in dx/dt", "the factor of the score in dx/dt")
    hint = "dx/dt = -beta/2 (x + score)"
    compare(names, (by_x, by_score), half, suspects, hint, 0.03)


def share_at_end(answer, name):
    """The weight of the slope at s, measured by a score or a beta that is 0 before it."""

    def ends(t):
        return 1.0 * (np.asarray(t) < 0.41)

    def one(t):
        return np.ones_like(t)

    score, beta = (ends, one) if name == "score" else (1.0, ends)
    end, calls = step(answer, score=score, beta=beta, t=0.6, s=0.4)
    return end / (0.2 / 2), calls  # the slope is -1/2, the step -0.2


def explanation(answer):
    """Why the order is not 2."""
    by_score, calls = share_at_end(answer, "score")
    by_beta, _ = share_at_end(answer, "beta")
    if calls < 2:
        return "there is one slope a step.  That is Euler; Heun takes the mean of two"

    old_beta = abs(by_beta) < 0.01
    old_score = abs(by_score) < 0.01
    if old_beta and old_score:
        return "are beta and the score evaluated at the new time?"
    if old_beta or old_score:
        name = "beta" if old_beta else "the score"
        return f"is {name} of the second slope evaluated at the new time?"
    return "is the second slope taken at x + (s - t) d1, and does each step start where one ended?"


def heun(answer):
    check_slope(answer)

    def sampler(x, times):
        found = answer(gaussian.score, x, times, gaussian.beta)
        found = numbers(found, x.shape, "the end of all steps")
        return finite(found, "the end of all steps", "each step starts where the last one ended")

    errors = [gaussian.flow_error(sampler, steps) for steps in (20, 40)]
    shown = order(*errors)
    if shown > 2.6:
        raise Mistake(
            f"order {shown:.1f} where 2 is expected: Heun has two slopes a step, not more"
        )
    if shown < 1.6:
        raise Mistake(f"order {shown:.1f} where 2 is expected: {explanation(answer)}")
    if errors[1] > 0.03:
        raise Mistake(f"off by {errors[1]:.3f} after 40 steps, although the order is {shown:.1f}")

    share = share_at_end(answer, "score")[0]
    if abs(share - 0.5) > 0.01:
        where = f"but the slope at s has the weight {share:.2f} where 0.50 is expected"
        raise Mistake(f"order {shown:.1f}, {where}: is it the midpoint rule, or a step of Euler?")
    return f"order {shown:.1f}, off by {errors[1]:.0e} after 40 steps"
