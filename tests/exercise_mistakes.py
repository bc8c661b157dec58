"""Wrong answers to the exercises that are not samplers, and the words by which each must be recognised."""

import numpy as np

MISTAKES = []  # (exercise, words of the sentence, function)


def mistake(exercise, words):
    """Enter a function into the list."""

    def enter(function):
        MISTAKES.append((exercise, words, function))
        return function

    return enter


# --------------------------------------------------------------------------------------------- 1. the schedule


def schedule(words, alpha=lambda B, beta, t: np.exp(-B / 2), sigma=lambda B, alpha: np.sqrt(-np.expm1(-B))):
    @mistake("alpha_sigma", words)
    def alpha_sigma(t, beta_min, beta_max):
        beta = beta_min + (beta_max - beta_min) * t
        B = beta_min * t + (beta_max - beta_min) * t**2 / 2
        a = alpha(B, beta, t)
        return a, sigma(B, a)


schedule("loses its digits", sigma=lambda B, alpha: np.sqrt(1 - alpha**2))
schedule("this is the variance", sigma=lambda B, alpha: 1 - alpha**2)
schedule("variances add up, not roots", sigma=lambda B, alpha: 1 - alpha)
schedule("sqrt(1 - alpha)?", sigma=lambda B, alpha: np.sqrt(1 - alpha))
schedule("is it exp(-B)?", alpha=lambda B, beta, t: np.exp(-B))
schedule("the exponent is negative", alpha=lambda B, beta, t: np.exp(B / 2))
schedule("where its integral B(t) belongs", alpha=lambda B, beta, t: np.exp(-beta / 2))
schedule("the integral of beta has t^2 / 2", alpha=lambda B, beta, t: np.exp(-beta * t / 2))


@mistake("alpha_sigma", "alpha comes first")
def exchanged(t, beta_min, beta_max):
    B = beta_min * t + (beta_max - beta_min) * t**2 / 2
    return np.sqrt(-np.expm1(-B)), np.exp(-B / 2)


# --------------------------------------------------------------------------------------------- 2. the mixture


def mixture(words, v=None, mean=None, log_p=None, r=None, result=None, stable=True):
    @mistake("mixture_score", words)
    def mixture_score(x, alpha, sigma, weights, means, stds):
        variance = (v or (lambda a, s, sigma: a**2 * s**2 + sigma**2))(alpha, stds, sigma)
        centre = mean(alpha, means) if mean else alpha * means
        square = ((x[:, None] - centre) ** 2).sum(2)
        logs = np.log(weights) - np.log(variance) - square / (2 * variance)  # D = 2
        if log_p:
            logs = log_p(weights, variance, square)
        p = np.exp(logs - logs.max(1, keepdims=True) if stable else logs)
        share = r(p, weights) if r else p / p.sum(1, keepdims=True)
        pull = (centre - x[:, None]) / variance[:, None]
        score = (share[:, :, None] * pull).sum(1)
        return result(score, sigma, variance, share, pull) if result else score


mixture("Take off the largest logarithm", stable=False)
mixture("Take off the largest logarithm", stable=False, r=lambda p, w: p / (p.sum(1, keepdims=True) + 1e-12))
mixture("the sign is wrong", result=lambda score, *_: -score)
mixture("this is eps", result=lambda score, sigma, *_: -sigma * score)
mixture("the means are not scaled", mean=lambda alpha, means: means)
mixture("the data are not points", v=lambda alpha, s, sigma: sigma**2 + 0 * s)
mixture("the noise is missing", v=lambda alpha, s, sigma: alpha**2 * s**2)
mixture("the data shrink too", v=lambda alpha, s, sigma: s**2 + sigma**2)
mixture("the weights w_k have no effect", log_p=lambda w, v, square: -np.log(v) - square / (2 * v))
mixture("1 / v_k^(D/2)", log_p=lambda w, v, square: np.log(w) - square / (2 * v))
mixture("1 / v_k^(D/2)", log_p=lambda w, v, square: np.log(w) - np.log(v) / 2 - square / (2 * v))
mixture("this is the gradient of p", stable=False, r=lambda p, w: p)
mixture("r_k is w_k", r=lambda p, w: np.broadcast_to(w, p.shape))
mixture(
    "divided by the standard deviation",
    result=lambda score, sigma, v, share, pull: (share[:, :, None] * pull * np.sqrt(v)[:, None]).sum(1),
)

# --------------------------------------------------------------------------------------------- 7. guidance


def guidance(words, combine):
    @mistake("guided_eps", words)
    def guided_eps(eps, x, t, condition, w):
        return combine(eps(x, t, None), eps(x, t, condition), w)


guidance("w + 1 stands for w", lambda u, c, w: c + w * (c - u))
guidance("exchanged", lambda u, c, w: c + w * (u - c))
guidance("the sign is wrong", lambda u, c, w: u + w * (u - c))
guidance("eps_u is missing in front", lambda u, c, w: w * (c - u))
guidance("the difference is missing", lambda u, c, w: u + w * c)
guidance("w - 1 stands for w", lambda u, c, w: u + (w - 1) * (c - u))


@mistake("guided_eps", "never asked with None")
def without_the_unconditional(eps, x, t, condition, w):
    return w * eps(x, t, condition)


# --------------------------------------------------------------------------------------------- 8. KL and draw


def posterior(words, s=None, kl=None):
    @mistake("draw_and_kl", words)
    def draw_and_kl(mu, log_var, noise):
        each = (mu**2 + np.exp(log_var) - 1 - log_var) / 2
        std = s(log_var) if s else np.exp(log_var / 2)
        return mu + std * noise, kl(each, mu, log_var) if kl else each.sum(1)


posterior("this is the variance", s=np.exp)
posterior("log_var itself is the factor", s=lambda log_var: log_var)
posterior("every draw is mu", s=lambda log_var: 0)
posterior("s has no effect", s=lambda log_var: 1)
posterior("it is averaged over the latents", kl=lambda each, mu, log_var: each.mean(1))
posterior("averaged over everything", kl=lambda each, mu, log_var: each.mean())
posterior("averaged over the batch", kl=lambda each, mu, log_var: each.sum(1).mean())
posterior("summed over the batch as well", kl=lambda each, mu, log_var: each.sum())
posterior("not summed over the latents", kl=lambda each, mu, log_var: each)
posterior("the sign is wrong", kl=lambda each, mu, log_var: -each.sum(1))
posterior("is the factor 1/2 missing", kl=lambda each, mu, log_var: 2 * each.sum(1))
posterior("the -1 is missing", kl=lambda each, mu, log_var: (each + 0.5).sum(1))
posterior("mu is not squared", kl=lambda each, mu, log_var: (each + (mu - mu**2) / 2).sum(1))
posterior("exp(log_var / 2) is s", kl=lambda each, mu, log_var: (mu**2 + np.exp(log_var / 2) - 1 - log_var).sum(1) / 2)
posterior("the other way round", kl=lambda each, mu, log_var: ((1 + mu**2) / np.exp(log_var) - 1 + log_var).sum(1) / 2)


@mistake("draw_and_kl", "with the noise: it is a mean over all draws")
def one_draw(mu, log_var, noise):
    z = mu + np.exp(log_var / 2) * noise
    return z, ((z**2 - noise**2 - log_var) / 2).sum(1)


# --------------------------------------------------------------------------------------------- 9. energy score


def energy(words, combine=lambda to_data, pairs, m: to_data.mean(1) - pairs / (2 * m * (m - 1)), power=1.0):
    @mistake("energy_score", words)
    def energy_score(x_0, particles):
        m = particles.shape[1]
        to_data = ((particles - x_0[:, None]) ** 2).sum(2) ** (power / 2)
        pairs = np.sqrt(((particles[:, :, None] - particles[:, None]) ** 2).sum(3)).sum((1, 2))
        return combine(to_data, pairs, m)


energy("it is divided by m^2", lambda to_data, pairs, m: to_data.mean(1) - pairs / (2 * m**2))
energy("m^2 stands for m (m - 1), and the 1/2 is missing", lambda to_data, pairs, m: to_data.mean(1) - pairs / m**2)
energy("is the factor 1/2 missing", lambda to_data, pairs, m: to_data.mean(1) - pairs / (m * (m - 1)))
energy("each pair is counted once", lambda to_data, pairs, m: to_data.mean(1) - pairs / (4 * m * (m - 1)))
energy("the sign is wrong", lambda to_data, pairs, m: to_data.mean(1) + pairs / (2 * m * (m - 1)))
energy("the distances among the particles have no effect", lambda to_data, pairs, m: to_data.mean(1))
energy("summed over the particles", lambda to_data, pairs, m: to_data.sum(1) - pairs / (2 * m * (m - 1)))
energy("the root is missing", power=2.0)
energy("one score for each datum", lambda to_data, pairs, m: (to_data.mean(1) - pairs / (2 * m * (m - 1))).mean())


@mistake("energy_score", "coordinates are added up")
def city_blocks(x_0, particles):
    m = particles.shape[1]
    pairs = np.abs(particles[:, :, None] - particles[:, None]).sum((1, 2, 3))
    return np.abs(particles - x_0[:, None]).sum(2).mean(1) - pairs / (2 * m * (m - 1))


# --------------------------------------------------------------------------------------------- 10. MMD


def off_diagonal(k):
    return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))


def discrepancy(words, within=off_diagonal, exponent=lambda d2, s: d2 / (2 * s**2), factor=2, result=lambda m: m):
    @mistake("mmd2", words)
    def mmd2(x, y, width):
        def k(a, b):
            return np.exp(-exponent(((a[:, None] - b) ** 2).sum(2), width))

        return result(within(k(x, x)) + within(k(y, y)) - factor * k(x, y).mean())


discrepancy("it is biased", within=np.mean)
discrepancy("the sum keeps k(x_i, x_i)", within=lambda k: k.sum() / (len(k) * (len(k) - 1)))
discrepancy("divided by n^2", within=lambda k: (k.sum() - np.trace(k)) / len(k) ** 2)
discrepancy("counts twice", factor=1)
discrepancy("is taken off", factor=-2)
discrepancy("the 2 in the kernel is missing", exponent=lambda d2, s: d2 / s**2)
discrepancy("the distance in the kernel is not squared", exponent=lambda d2, s: np.sqrt(d2) / (2 * s**2))
discrepancy("the width in the kernel is not squared", exponent=lambda d2, s: d2 / (2 * s))
discrepancy("this is MMD, its root", result=lambda m: np.sqrt(np.abs(m)))
discrepancy("negative values cut off", result=lambda m: max(m, 0))
