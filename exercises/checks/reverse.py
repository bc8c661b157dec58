"""Exercise 3, the reverse SDE by Euler-Maruyama.

A step is linear in x, in the score and in the noise, so three calls measure its three factors.  On
Gaussian data the whole way is linear as well: the factors of the start and of the noise of every
step give mean and variance of the end exactly, and nothing has to be drawn.
"""

from exercises.checks import gaussian
from exercises.checks.measure import Mistake, compare, finite, numbers, one_time, order

import numpy as np


def step(answer, x=0.0, score=0.0, noise=0.0, t=0.6, s=0.599, beta=gaussian.beta):
    """Where a step from t to s ends, if the score is this number, or this function of the time."""

    def asked(_, at):
        at = one_time(at, "score(x, t)")
        value = score(at) if callable(score) else score
        return np.full((1, 1), value)

    times = np.array([t, s])
    found = answer(asked, np.array([[x]]), times, beta, np.full((1, 1, 1), noise))
    what = f"x after a step from t = {t} to {s}"
    root = "is a root taken of s - t, which is negative?  The step has the length t - s"
    return finite(numbers(found, (1, 1), what), what, root)[0, 0]


def check_step(answer):
    """The factors of a short step.  Whether beta is taken at t or s makes no difference to them."""
    beta = float(gaussian.beta(0.6))
    dt = 0.001
    moved = step(answer)
    if abs(moved) > 1e-9:
        why = "is the noise that is given used, and no other?"
        raise Mistake(f"x = 0 with score 0 and noise 0 moves to {moved:.3g}, not to 0: {why}")

    root = np.sqrt(dt)
    suspects = [
        (np.sqrt(beta), "it is not scaled by sqrt(dt)"),
        (np.sqrt(beta) * dt, "it is scaled by dt, but variances add up: sqrt(dt)"),
        (root, "is the factor sqrt(beta) missing?"),
        (beta * root, "beta stands where sqrt(beta) belongs"),
        (0.0, "no noise enters: this is no SDE"),
    ]
    found = abs(step(answer, noise=1.0))
    hint = "the noise of a step is sqrt(beta (t - s)) z"
    what = "the noise of a step of 0.001"
    compare(what, found, np.sqrt(beta) * root, suspects, hint, 0.03)

    by_x = (step(answer, x=1.0) - 1) / dt
    by_score = step(answer, score=1.0) / dt
    backwards = "the sign of time is wrong: dx/dt has to be multiplied by s - t, which is negative"
    suspects = [
        ((-beta / 2, -beta), backwards),
        ((-beta / 2, beta), "the sign of x is wrong: on the way back x grows by beta/2 x (t - s)"),
        ((beta / 2, -beta), "the sign of the score is wrong: it pulls towards the data"),
        ((beta / 2, beta / 2), "this is the drift of the probability flow: the SDE has beta score"),
        ((beta, beta), "x has the factor beta/2, half of that of the score"),
        ((beta / 2, 0.0), "the score has no effect"),
        ((0.0, beta), "the term beta/2 x is missing"),
        ((0.5, 1.0), "is the factor beta missing from the drift?"),
    ]
    names = ("what x adds per unit of time", "what the score adds per unit of time")
    hint = "x changes by (beta/2 x + beta score) (t - s)"
    compare(names, (by_x, by_score), (beta / 2, beta), suspects, hint, 0.03)


def check_time(answer):
    """A long step, with a score and then a beta that are 1 at its beginning and 0 at its end."""
    what = "with {} that is 1 at t and 0 at s, the push of the score"
    late = "{} is evaluated at the end of the step: Euler-Maruyama does it at t, where x is"

    def begins(t):
        return 1.0 * (np.asarray(t) > 0.59)

    def one(t):
        return np.ones_like(t)

    for name in ("score", "beta"):
        score, beta = (begins, one) if name == "score" else (1.0, begins)
        found = step(answer, score=score, t=0.6, s=0.5, beta=beta) / 0.1
        suspects = [(0.0, late.format(name))]
        hint = f"is {name} evaluated at t, where the step begins?"
        compare(what.format(f"a {name}"), found, 1.0, suspects, hint, 1e-3)


def responses(answer, steps, end):
    """The factors of the start and of the noise of each step at the end, [1 + steps], and the rest.

    The rest is where everything ends if the start and all noise are 0.
    """
    start = np.zeros((steps + 2, 1))
    start[0] = 1.0
    noise = np.zeros((steps, steps + 2, 1))
    noise[np.arange(steps), 1 + np.arange(steps)] = 1.0

    times = gaussian.grid(steps, end)
    found = answer(gaussian.score, start, times, gaussian.beta, noise)
    found = numbers(found, start.shape, "the end of all steps")[:, 0]
    finite(found, "the end of all steps", "each step should start where the one before ended")
    return found[:-1] - found[-1], found[-1]


def check_every_step(factors):
    """Each step has a noise of its own."""
    silent = np.flatnonzero(np.abs(factors[1:]) < 1e-12)
    last = len(factors) - 2
    if len(silent) == 1 and silent[0] == last:
        raise Mistake("the noise of the last step has no effect: is the last step taken?")
    if len(silent):
        heard = f"the noise of {last + 1 - len(silent)} of {last + 1} steps has an effect"
        why = "does every step take fresh noise, noise[i], and start where the last one ended?"
        raise Mistake(f"{heard}: {why}")


def reverse_sde(answer):
    check_step(answer)
    check_time(answer)

    end = 0.04
    start_mean, start_variance = gaussian.mean_variance(1.0)
    mean, variance = gaussian.mean_variance(end)
    errors = []
    for steps in (60, 120):
        factors, rest = responses(answer, steps, end)
        check_every_step(factors)
        found = factors[0] ** 2 * start_variance + (factors[1:] ** 2).sum()
        errors.append(abs(found / variance - 1))
        found_mean = factors[0] * start_mean + rest

    shown = order(*errors)
    ends = f"variance {found:.4f} after 120 steps where {variance:.4f} is exact"
    if not 0.7 < shown < 1.5 or errors[1] > 0.2:
        why = "does each step start where the last one ended, with its own t and s?"
        raise Mistake(f"{ends}, order {shown:.1f} where 1 is expected: {why}")
    if abs(found_mean - mean) > 0.1:
        raise Mistake(f"the mean ends at {found_mean:.3f} where {mean:.3f} is expected")
    return f"{ends}, order {shown:.1f}"
