"""Exercises 8 and 9, what a VAE needs of its posterior, and the energy score."""

from itertools import product

from exercises.checks.measure import Mistake, compare, finite, numbers, pair

import numpy as np

# ------------------------------------------------------------------------------ KL and draw


def kl_by_quadrature(mu, log_var):
    """int q log(q / p) of each latent, by summing over a fine grid: [N, D]."""
    s = np.exp(log_var / 2)
    u = np.linspace(-12, 12, 4001)
    z = mu[..., None] + s[..., None] * u
    log_q = -0.5 * u**2 - np.log(s)[..., None]
    density = np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)
    return (density * (log_q + 0.5 * z**2)).sum(-1) * (u[1] - u[0])


def check_draw(draw, mu, log_var):
    """draw(noise): the z of the learner."""
    hint = "z = mu + s noise, where s is the standard deviation"
    ends = "without noise, z"
    compare(ends, finite(draw(0 * mu), "z", hint), mu, [(0 * mu, "mu has no effect")], hint)

    s = np.exp(log_var / 2)
    suspects = [
        (s**2, "this is the variance: the standard deviation is exp(log_var / 2)"),
        (log_var, "log_var itself is the factor: the standard deviation is exp(log_var / 2)"),
        (log_var / 2, "the exponential is missing: exp(log_var / 2)"),
        (np.sqrt(np.abs(log_var)), "log_var is a logarithm: s is exp(log_var / 2)"),
        (np.sqrt(s), "is it exp(log_var / 4)?  s is exp(log_var / 2)"),
        (1 / s, "the sign of log_var is wrong"),
        (np.ones_like(s), "s has no effect"),
        (np.zeros_like(s), "the noise has no effect: every draw is mu"),
    ]
    found = finite(draw(np.ones_like(mu)), "z", hint) - mu
    compare("the factor of the noise", found, s, suspects, hint)


def check_kl(kl, each, mu, log_var):
    total = each.sum(1)
    N, D = each.shape
    per_datum = "one number a datum is asked, summed over its latents"
    wrong_shapes = [
        (each.sum(), "summed over the batch as well"),
        (total.mean(), "averaged over the batch"),
        (each.mean(), "averaged over everything"),
        (each.sum(0), "summed over the batch, not over the latents"),
        (each.mean(0), "averaged over the batch, and not summed over the latents"),
        (each, "not summed over the latents"),
    ]
    if np.shape(kl) != (N,):
        for value, why in wrong_shapes:
            if np.shape(kl) == np.shape(value) and np.allclose(kl, value, rtol=1e-3):
                raise Mistake(f"the KL is {why}: {per_datum}")
    kl = numbers(kl, (N,), "the KL")

    variance = np.exp(log_var)
    hint = "(mu^2 + s^2 - 1 - log(s^2)) / 2, summed over the latents"
    reverse = ((1 + mu**2) / variance - 1 + log_var) / 2
    std = (mu**2 + np.exp(log_var / 2) - 1 - log_var) / 2
    suspects = [
        (total / D, "it is averaged over the latents, but the KL of independent latents adds up"),
        (total / N, "it is divided by the size of the batch: one KL a datum is asked"),
        (-total, "the sign is wrong: a KL is never negative"),
        (2 * total, "is the factor 1/2 missing?"),
        (total + D / 2, "the -1 is missing: it must be 0 where mu = 0 and s = 1"),
        (total + log_var.sum(1), "the sign of log(s^2) is wrong"),
        (total - (mu**2).sum(1) / 2, "mu^2 is missing"),
        ((each + (mu - mu**2) / 2).sum(1), "mu is not squared"),
        (total + log_var.sum(1) / 4, "log(s^2) is log_var, and not half of it"),
        (std.sum(1), "exp(log_var / 2) is s, and here stands s^2"),
        (reverse.sum(1), "this is KL(N(0, I) || q), the other way round"),
        (total / np.log(2), "this is in bits: nats are asked"),
    ]
    compare("the KL in nats", finite(kl, "the KL", hint), total, suspects, hint)


def draw_and_kl(answer):
    mu = np.array([[0.4, -1.3, 2.1, 0.2], [1.1, 0.3, -0.6, 0.9], [-0.7, 1.6, 0.1, -2.2]])
    log_var = np.array([[-1.2, 0.5, -2.6, 0.8], [0.3, -0.9, 1.1, -3.0], [-0.4, 0.7, -1.9, 0.6]])

    def draw(noise):
        z, _ = pair(answer(mu, log_var, noise), "z and the KL")
        return numbers(z, mu.shape, "z")

    check_draw(draw, mu, log_var)
    each = kl_by_quadrature(mu, log_var)
    _, kl = answer(mu, log_var, np.zeros_like(mu))
    _, again = answer(mu, log_var, np.ones_like(mu))
    if np.shape(kl) == np.shape(again) == (len(mu),) and not np.allclose(kl, again):
        change = f"from {kl[0]:.3f} to {again[0]:.3f}"
        raise Mistake(f"the KL changes {change} with the noise: it is a mean over all draws")
    check_kl(kl, each, mu, log_var)
    return f"KL {np.ravel(kl)[0]:.4f} nats, by quadrature {each.sum(1)[0]:.4f}"


# ------------------------------------------------------------------------------ energy score


def check_confinement(score):
    """Particles that all lie in one place have no distances among themselves."""
    x_0 = np.array([[110.0, -40.0, 25.0], [0.0, 70.0, -20.0]])
    away = np.array([[30.0, -160.0, 45.0], [-90.0, 35.0, 60.0]])
    m = 3
    found = score(x_0, np.repeat((x_0 + away)[:, None], m, axis=1))
    true = np.sqrt((away**2).sum(1))
    suspects = [
        (m * true, "it is summed over the particles, and should be averaged"),
        (true**2, "it is squared: the root is missing"),
        (np.abs(away).sum(1), "coordinates are added up: |.| is the Euclidean length"),
        (true / np.sqrt(3), "it is divided by the root of D"),
        (0 * true, "the distances to x_0 have no effect"),
        (-true, "the sign is wrong: the lower the better"),
    ]
    hint = "1/m sum_j |x_j - x_0|, with all particles in one place"
    compare("the distance to x_0", found, true, suspects, hint)


def check_interaction(score):
    """What the distances among m particles take off."""
    m = 5
    x_0 = np.array([[20.0, -130.0]])
    particles = 100 * np.array([[[1.1, 0.3], [-0.8, 1.9], [0.2, -1.6], [2.3, 0.9], [-1.7, -0.4]]])
    to_data = np.sqrt(((particles - x_0[:, None]) ** 2).sum(2)).mean()
    between = np.sqrt(((particles[:, :, None] - particles[:, None]) ** 2).sum(3)).sum()
    true = between / (2 * m * (m - 1))

    biased = "it is divided by m^2, but there are m (m - 1) pairs of different particles"
    suspects = [
        (true * (m - 1) / m, biased),
        (2 * true * (m - 1) / m, "m^2 stands for m (m - 1), and the 1/2 is missing"),
        (2 * true, "is the factor 1/2 missing?"),
        (true / 2, "each pair is counted once: then there are m (m - 1) / 2 of them"),
        (-true, "the sign is wrong: distances among the particles are taken off"),
        (0.0, "the distances among the particles have no effect"),
        (true * (m - 1), "is it divided by m, and not by m (m - 1)?"),
        (between / 2, "it is not divided by m (m - 1)"),
        (between, "it is summed, and should be averaged over pairs"),
    ]
    found = to_data - score(x_0, particles)[0]
    hint = "1 / (2 m (m - 1)) sum over all pairs with j != k"
    compare("what the distances among 5 particles take off", found, true, suspects, hint)


def expectation(score, m):
    """The mean score of m particles, each at -100 or 100 with equal chance, at x_0 = 40."""
    draws = 100 * np.array(list(product((-1.0, 1.0), repeat=m)))
    return score(np.full((len(draws), 1), 40.0), draws[:, :, None]).mean()


def energy_score(answer):
    def score(x_0, particles):
        found = answer(x_0, particles)
        if np.shape(found) == () and found is not None:
            raise Mistake("it returns one number: one score for each datum is asked, [N]")
        found = numbers(found, (len(x_0),), "the score")
        return finite(found, "the score", "a distance is the root of a sum of squares")

    check_confinement(score)
    check_interaction(score)

    # E|x - x_0| - E|x - x'|/2 = 100 - 50, with any number of particles.
    means = np.array([expectation(score, m) for m in (2, 3, 6)])
    hint = "its mean must not depend on how many particles there are"
    compare("the mean score of 2, 3 or 6 random particles", means, np.full(3, 50.0), [], hint)
    return f"mean score {means[0]:.3f} with 2 particles, {means[2]:.3f} with 6, exact 50"
