"""Wrong samplers, as one writes them, and the words by which each must be recognised."""

from itertools import pairwise

from exercise_mistakes import mistake

import numpy as np

# --------------------------------------------------------------------------------------------- 3. the reverse SDE


def drift(beta, x, score):
    return beta / 2 * x + beta * score


def sde(words, drift=drift, noise=lambda beta, dt: np.sqrt(beta * dt), late=None, which=lambda i: i):
    @mistake("reverse_sde", words)
    def reverse_sde(score, x, times, beta, z):
        for i, (t, s) in enumerate(pairwise(times)):
            b = beta(s if late == "beta" else t)
            push = drift(b, x, score(x, s if late == "score" else t))
            x = x + push * (t - s) + noise(b, t - s) * z[which(i)]
        return x


sde("not scaled by sqrt(dt)", noise=lambda beta, dt: np.sqrt(beta))
sde("scaled by dt", noise=lambda beta, dt: np.sqrt(beta) * dt)
sde("is the factor sqrt(beta) missing", noise=lambda beta, dt: np.sqrt(dt))
sde("beta stands where sqrt(beta)", noise=lambda beta, dt: beta * np.sqrt(dt))
sde("no noise enters", noise=lambda beta, dt: 0)
sde("a root taken of s - t", noise=lambda beta, dt: np.sqrt(-beta * dt))
sde("the sign of time is wrong", drift=lambda beta, x, score: -drift(beta, x, score))
sde("the sign of x is wrong", drift=lambda beta, x, score: -beta / 2 * x + beta * score)
sde("the sign of the score is wrong", drift=lambda beta, x, score: beta / 2 * x - beta * score)
sde("the drift of the probability flow", drift=lambda beta, x, score: beta / 2 * (x + score))
sde("x has the factor beta/2", drift=lambda beta, x, score: beta * (x + score))
sde("the term beta/2 x is missing", drift=lambda beta, x, score: beta * score)
sde("score is evaluated at the end", late="score")
sde("beta is evaluated at the end", late="beta")
sde("does every step take fresh noise", which=lambda i: 0)


@mistake("reverse_sde", "is the last step taken")
def stops_early(score, x, times, beta, noise):
    steps = list(pairwise(times))
    for (t, s), z in zip(steps[: max(1, len(steps) - 1)], noise, strict=False):
        x = x + drift(beta(t), x, score(x, t)) * (t - s) + np.sqrt(beta(t) * (t - s)) * z
    return x


@mistake("reverse_sde", "is the noise that is given used")
def noise_of_its_own(score, x, times, beta, noise):
    rng = np.random.default_rng(0)
    for t, s in pairwise(times):
        push = drift(beta(t), x, score(x, t)) * (t - s)
        x = x + push + np.sqrt(beta(t) * (t - s)) * rng.standard_normal(x.shape)
    return x


# --------------------------------------------------------------------------------------------- 4. Heun


def slope(beta, x, score):
    return -beta / 2 * (x + score)


def two_slopes(
    words, slope=slope, old=(), place=lambda x, h, d1: x + h * d1, mean=lambda d1, d2: (d1 + d2) / 2, sign=1
):
    @mistake("heun", words)
    def heun(score, x, times, beta):
        for t, s in pairwise(times):
            h = sign * (s - t)
            d1 = slope(beta(t), x, score(x, t))
            x2 = place(x, h, d1)
            d2 = slope(beta(t if "beta" in old else s), x2, score(x2, t if "score" in old else s))
            x = x + h * mean(d1, d2)
        return x


two_slopes("are beta and the score evaluated at the new time", old=("beta", "score"))
two_slopes("is beta of the second slope evaluated at the new time", old=("beta",))
two_slopes("is the score of the second slope evaluated at the new time", old=("score",))
two_slopes("taken at x + (s - t) d1", place=lambda x, h, d1: x)
two_slopes("taken at x + (s - t) d1", place=lambda x, h, d1: x - h * d1)
two_slopes("the sign of time is wrong", sign=-1)
two_slopes("twice too much", mean=lambda d1, d2: d1 + d2)
two_slopes("twice too much", slope=lambda beta, x, score: -beta * (x + score))
two_slopes("the drift of the reverse SDE", slope=lambda beta, x, score: -beta / 2 * x - beta * score)
two_slopes("the sign of the score is wrong", slope=lambda beta, x, score: -beta / 2 * (x - score))


@mistake("heun", "That is Euler")
def one_slope(score, x, times, beta):
    for t, s in pairwise(times):
        x = x + (s - t) * slope(beta(t), x, score(x, t))
    return x


@mistake("heun", "is it the midpoint rule")
def midpoint(score, x, times, beta):
    for t, s in pairwise(times):
        m = (s + t) / 2
        half = x + (m - t) * slope(beta(t), x, score(x, t))
        x = x + (s - t) * slope(beta(m), half, score(half, m))
    return x


def four_slopes(words, old):
    @mistake("heun", words)
    def rk4(score, x, times, beta):
        def f(x, t, now):
            return slope(beta(t if old else now), x, score(x, t if old else now))

        for t, s in pairwise(times):
            h, m = s - t, (s + t) / 2
            d1 = f(x, t, t)
            d2 = f(x + h / 2 * d1, t, m)
            d3 = f(x + h / 2 * d2, t, m)
            d4 = f(x + h * d3, t, s)
            x = x + h * (d1 + 2 * d2 + 2 * d3 + d4) / 6
        return x


four_slopes("Heun has two slopes a step, not more", old=False)
four_slopes("are beta and the score evaluated at the new time", old=True)

# --------------------------------------------------------------------------------------------- 5. DDIM


def implicit(words, step, late=False, keep=lambda a: a):
    @mistake("ddim", words)
    def ddim(eps, x, times, alpha_sigma):
        for t, s in pairwise(times):
            a, b = map(keep, alpha_sigma(t))
            c, d = map(keep, alpha_sigma(s))
            x = step(x, eps(x, s if late else t), a, b, c, d)
        return x


def ddim_step(x, e, a, b, c, d):
    return c * (x - b * e) / a + d * e


def divided_by_sigma(x, e, a, b, c, d):
    return ddim_step(x, e, a, b, c, d) * (d / d)


def roots_of_alpha(x, e, a, b, c, d):
    return ddim_step(x, e, np.sqrt(a), np.sqrt(1 - a), np.sqrt(c), np.sqrt(1 - c))


implicit("sigma_t stands where sigma_s belongs", lambda x, e, a, b, c, d: c * (x - b * e) / a + b * e)
implicit("x0_hat is not scaled by alpha_s", lambda x, e, a, b, c, d: (x - b * e) / a + d * e)
implicit("is not divided by alpha_t", lambda x, e, a, b, c, d: c * (x - b * e) + d * e)
implicit("alpha_t stands where alpha_s belongs", lambda x, e, a, b, c, d: a * (x - b * e) / a + d * e)
implicit("this is x0_hat", lambda x, e, a, b, c, d: (x - b * e) / a)
implicit("no noise is put back", lambda x, e, a, b, c, d: c * (x - b * e) / a)
implicit("the sign is wrong: x0_hat", lambda x, e, a, b, c, d: c * (x + b * e) / a + d * e)
implicit("eps is taken for a score", lambda x, e, a, b, c, d: c * (x + b**2 * e) / a - d * b * e)
implicit("alpha-bar", roots_of_alpha)
implicit("t and s are exchanged", lambda x, e, a, b, c, d: ddim_step(x, e, c, d, a, b))
implicit("eps is evaluated at s", ddim_step, late=True)
implicit("divided by a sigma of 0", divided_by_sigma)


@mistake("ddim", "with a call of its own")
def one_call_for_all(eps, x, times, alpha_sigma):
    e = eps(x, times[0])
    for t, s in pairwise(times):
        x = ddim_step(x, e, *alpha_sigma(t), *alpha_sigma(s))
    return x


# --------------------------------------------------------------------------------------------- 6. DPM-Solver++


def multistep(
    words,
    weight=lambda a, b, c, d, h: -c * np.expm1(-h),
    share=lambda h, before: h / (2 * before),
    shrink=lambda a, b, c, d: d / b,
    stale=(),
):
    @mistake("dpmpp_2m", words)
    def dpmpp_2m(eps, x, times, alpha_sigma):
        x0_before = h_before = None
        for t, s in pairwise(times):
            a, b = alpha_sigma(t)
            c, d = alpha_sigma(s)
            h = np.log(c / d) - np.log(a / b)
            x0_hat = (x - b * eps(x, t)) / a
            first = x0_before is None
            D = x0_hat if first else x0_hat + share(h, h_before) * (x0_hat - x0_before)
            x = shrink(a, b, c, d) * x + weight(a, b, c, d, h) * D
            x0_before = x0_before if "x0" in stale and not first else x0_hat
            h_before = h_before if "h" in stale and not first else h
        return x


multistep("the -1 is missing", weight=lambda a, b, c, d, h: -c * np.exp(-h))
multistep("the sign of h is wrong", weight=lambda a, b, c, d, h: -c * np.expm1(h))
multistep("the sign is wrong: it is - alpha_s", weight=lambda a, b, c, d, h: c * np.expm1(-h))
multistep("h is twice too large", weight=lambda a, b, c, d, h: -c * np.expm1(-2 * h))
multistep("alpha_t stands where alpha_s belongs", weight=lambda a, b, c, d, h: -a * np.expm1(-h))
multistep("sigma_s stands in front", weight=lambda a, b, c, d, h: -d * np.expm1(-h))
multistep("h stands for 1 - exp(-h)", weight=lambda a, b, c, d, h: c * h)
multistep("the ratio is upside down: sigma_s / sigma_t", shrink=lambda a, b, c, d: b / d)
multistep("alpha_s / alpha_t stands where", shrink=lambda a, b, c, d: c / a)
multistep("the call before has no effect", share=lambda h, before: 0)
multistep("the ratio is upside down: h / (2 h_before)", share=lambda h, before: before / (2 * h))
multistep("the 2 is missing", share=lambda h, before: h / before)
multistep("the steps are not equally long", share=lambda h, before: 0.5)
multistep("the sign is wrong: + h", share=lambda h, before: -h / (2 * before))
multistep("h_before is still that of the first step", stale=("h",))
multistep("x0_before is still that of the first step", stale=("x0",))
