"""Exact posteriors p(x_0 | x_t) of a mixture in the plane, for a learned one to be compared with.

A mixture is passed in as an object, a GaussianMixture of reference_gmm_sde.py.  denoise(x, t)
returns x_0 [N, 2] for points x [N, 2] at one time t, torch float32.
"""

from common import clouds, distances

import numpy as np
import torch

STEPS = (1, 2, 4, 8, 16, 32, 64)  # of the comparison


def exact_draw(mixture, rng, x, t):
    """A draw of x_0 from the exact p(x_0 | x_t) for each point."""
    return torch.from_numpy(mixture.posterior_sample(x.double().numpy(), t, rng)).float()


def exact_mean(mixture, x, t):
    """Ordinary diffusion at its best: the exact E[x_0 | x_t]."""
    return torch.from_numpy(mixture.posterior_mean(x.double().numpy(), t)).float()


def posterior_std(mixture, x, t):
    """Root of the mean variance of p(x_0 | x_t) at points x [N, D], exact, [N]:

        Cov = (sigma/alpha)^2 (I + sigma^2 Hess log p_t)
    """
    alpha, sigma = mixture.schedule.alpha_sigma(t)
    _, divergence = mixture.score_and_divergence(x, t)
    return sigma / alpha * np.sqrt(1 + sigma**2 * divergence / mixture.dim)


FAR = 4.0  # standard deviations: of exact draws in the plane, 3 in 10,000 are so far away


def share_between(mixture, x):
    """The share of points x [N, D] that belong to no component: FAR from every one of them.

    A posterior of several modes has nothing between them; a mean of its modes would lie there.
    """
    gap = np.einsum("nkd,kde->nke", x[:, None] - mixture.means, mixture.axes)  # [N, K, D]
    away = np.sqrt((gap**2 / mixture.eigenvalues).sum(2))
    return float((away > FAR).all(1).mean())


def posterior_pairs(learned, mixture, seed=0, n=4096):
    """Learned and exact draws of x_0 at ten pairs (t, x_t), x_t a draw of p_t.

    learned(n): a fresh denoise of n points.  Returns a list of (t, x_t [2], learned [n, 2],
    exact [n, 2], their two standard deviations).
    """
    rng = np.random.default_rng([seed, 7])
    found = []
    for t in (np.arange(10) + 0.5) / 10:
        alpha, sigma = mixture.schedule.alpha_sigma(t)
        x_t = alpha * mixture.sample(1, rng) + sigma * rng.standard_normal((1, 2))
        many = torch.from_numpy(x_t).float().expand(n, 2)
        drawn = learned(n)(many, t).double().numpy()
        exact = mixture.posterior_sample(many.double().numpy(), t, rng)
        std = np.sqrt(drawn.var(0).mean())
        exact_std = float(posterior_std(mixture, x_t, t)[0])
        found.append((float(t), x_t[0], drawn, exact, std, exact_std))
    return found


def compare_posteriors(path, learned, mixture):
    """Draw those pairs; the relative errors of the learned standard deviations, also in words."""
    pairs = posterior_pairs(learned, mixture)
    clouds.posterior_pairs(path, pairs)
    off = [abs(std / exact_std - 1) for *_, std, exact_std in pairs]
    words = f"worst {max(off):.1%}, mean {np.mean(off):.1%}"
    return off, f"std of the learned posterior against the exact one, ten x_t: {words}"


# ------------------------------------------------------------------------------ by steps


def mmd2_by_steps(rivals, mixture, draw):
    """MMD^2 of several samplers to the mixture, {name: [a number for each of STEPS]}.

    rivals: {name: (denoise, churns)}, of which the best churn counts.  draw(denoise, k, churn):
    points [n, 2] made in k steps.
    """
    table = {}
    for name, (denoise, churns) in rivals.items():
        table[name] = []
        for k in STEPS:
            found = [draw(denoise, k, churn) for churn in churns]
            table[name].append(min(distances.mmd2_to_mixture(x, mixture) for x in found))
    return table


def table_lines(table):
    """The same to be printed, a line a sampler."""
    lines = ["MMD^2 (RBF, sigma 1) to the mixture; ordinary diffusion at its better churn"]
    lines.append(f"{'steps':34}" + "".join(f"{k:>10}" for k in STEPS))
    for name, values in table.items():
        lines.append(f"{name:34}" + "".join(f"{value:10.1e}" for value in values))
    return "\n".join(lines)


def draw_comparison(folder, table, rivals, mixture, n, rng, draw):
    """comparison.png: the table; samples.png: clouds of few steps beside n exact samples."""
    scatter = 1.7e-4 * 4096 / n  # standard deviation of the MMD^2 of exact samples, measured
    clouds.error_by_steps(folder / "comparison.png", STEPS, table, scatter)

    mine, churns = rivals["this network"]
    other = next(denoise for name, (denoise, _) in rivals.items() if name.startswith("ordinary"))
    columns = {
        "this network, 1 step": draw(mine, 1, *churns),
        "this network, 4 steps": draw(mine, 4, *churns),
        "ordinary, 4 steps": draw(other, 4, 1),
        "ordinary, 16 steps": draw(other, 16, 1),
        "exact samples": mixture.sample(n, rng),
    }
    clouds.cloud_row(folder / "samples.png", columns, mixture)
