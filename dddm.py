"""Distributional diffusion: the network draws x_0 from p(x_0 | x_t), where others give its mean.

    x_t = alpha_t x_0 + sigma_t eps,   alpha_t = 1 - t,  sigma_t = t                    the path
    xhat_j = f(x_t, t, xi_j),   xi_j ~ N(0, I),   j = 1 .. m              m particles of a datum
    L = w(t) [mean_j |x_0 - xhat_j|^beta - lam/(2 m (m-1)) sum_{j != j'} |xhat_j - xhat_j'|^beta]
    x_s = alpha_s xhat + sigma_s (rho eps_hat + sqrt(1 - rho^2) z)       the bridge from t to s < t
    eps_hat = (x_t - alpha_t xhat) / sigma_t,  rho = e^2 alpha_t sigma_s/(alpha_s sigma_t) + 1 - e^2

With lam = 1 and beta < 2 this loss, an energy score, is least only if the particles are draws from
the posterior.  Then x_s is a draw from its true law, *however long the step*, for any churn e.
With --beta 2 --lam 0 the same code is ordinary diffusion (e = 0: DDIM, e = 1: DDPM), whose network
returns the mean of the posterior: right for short steps only.

    python dddm.py

samples two Gaussians in the plane in 4 steps, and compares numbers of steps from 1 to 64: with
exact draws from the posterior, and with ordinary diffusion.  In a minute it writes comparison.png,
posterior.png, samples.png, sampling.gif, samples.npz and metrics.json to outputs/dddm/default/.

    python dddm.py --data S                         the letter S
    python dddm.py --train --out outputs/mine       train in a minute or two, then sample
    python dddm.py --train --beta 2 --lam 0         ordinary diffusion, trained alike
    torchrun --standalone --nproc_per_node=2 -- dddm.py --train --particles 4

De Bortoli et al. 2025 (arXiv 2502.02483).  Energy score: Gneiting and Raftery 2007.  Scaling of
input and output: Karras et al. 2022 (2206.00364).  dddm_dit.py does the same for images.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import reference_gmm_sde as reference
from common import clouds, distances, posteriors, runs
from common.blocks import expand_like, waves
from common.board import CURVES, Board, BoardFlags
from common.cli import flag
from common.devices import alone, autocast
from common.files import write_npz
from common.loop import Trainer
from common.sampling import sample_points
from common.seeds import generator, point_noise
from make_gif import save_gif

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

MIXTURES = {"mixture": "two", "S": "S", "circle": "circle"}  # --data, and as the reference says


@dataclass(kw_only=True)
class Config(BoardFlags):
    script = "dddm"

    data: str = flag.model("mixture", "the data; mixture: two Gaussians", choices=tuple(MIXTURES))
    width: int = flag.model(128, "features of a layer", low=1, high=4096)
    depth: int = flag.model(4, "number of layers", low=1, high=4096)
    shared: int = flag.model(1, "layers before xi enters: one pass for all particles", low=0)
    xi_dim: int = flag.model(4, "random numbers that pick a draw of x_0", low=1, high=4096)

    m: int = flag.training(8, "particles a datum", low=1, high=1024, also="--particles")
    beta: float = flag.training(1.0, "exponent of the energy score", above=0, high=2)
    lam: float = flag.training(1.0, "weight of the interaction", low=0, high=1)
    weight: str = flag.training(
        "none", "w(t): 1, or sigmoid(log(alpha^2/sigma^2) - bias)", choices=("none", "sigmoid")
    )
    w_bias: float = flag.training(0.0, "that bias", low=-100, high=100)
    clip: float = flag.training(1.0, "largest norm of the gradient", above=0)
    eval_every: int = flag.training(500, "steps from evaluation to evaluation", low=1)
    train_steps: int = flag.training(4000, "optimizer steps", low=1)
    batch_size: int = flag.training(512, "points a step", low=1)
    lr: float = flag.training(2e-3, "learning rate after the warm-up", above=0)

    steps: int = flag.sampling(4, "network calls per sample", low=1)
    churn: float = flag.sampling(1.0, "e, the fresh noise: 0 none, 1 as DDPM", low=0, high=1)
    n: int = flag.sampling(4096, "samples", low=1, also="--n-samples")

    @property
    def shipped(self):
        return f"{self.script}_{self.data}.pt"

    def settle(self, typed):
        super().settle(typed)
        if self.m < 2 and self.lam > 0:
            raise ValueError("--m 1: the interaction needs pairs; take --m 2 or more, or --lam 0")
        if self.shared > self.depth:
            raise ValueError(f"--shared {self.shared} is more than --depth {self.depth}")
        if self.weight == "none":
            self.refuse(typed, "w_bias", because="--weight none has no bias")


# ------------------------------------------------------------------------------ path and bridge


class Linear:
    """The path, for numbers, arrays or tensors t; all else follows from it."""

    @staticmethod
    def alpha_sigma(t):
        return 1 - t, t


alpha_sigma = Linear.alpha_sigma


def bridge(x_t, x_0, t, s, churn, z):
    """A draw from p(x_s | x_0, x_t), 0 <= s < t <= 1.  z: standard normal, shaped like x_t.

    eps_hat is the noise in x_t.  x_s keeps a share rho of it and takes the rest fresh, so that its
    noise is standard again: x_s = alpha_s x_0 + sigma_s N(0, I) for any churn.  Churn 1 is the DDPM
    posterior, churn 0 is DDIM, and s = 0 returns x_0.
    """
    alpha_t, sigma_t = alpha_sigma(t)
    alpha_s, sigma_s = alpha_sigma(s)
    eps_hat = (x_t - alpha_t * x_0) / sigma_t
    rho = churn**2 * (alpha_t * sigma_s) / (alpha_s * sigma_t) + 1 - churn**2
    return alpha_s * x_0 + sigma_s * (rho * eps_hat + math.sqrt(1 - rho**2) * z)


# ------------------------------------------------------------------------------ the loss


def power(difference, beta):
    """|difference|^beta over all axes from the third on: [N, m, ...] to [N, m].

    Where two points meet the root has no gradient: below 1e-6 a square counts as 1e-6, which has 0.
    """
    square = difference.flatten(2).square().sum(2)
    return square if beta == 2 else square.clamp_min(1e-6) ** (beta / 2)


def energy_score(x_0, xhat, beta, lam):
    """The generalised energy score of each datum: x_0 [N, ...], particles xhat [N, m, ...] to [N].

    A pair is counted once: sum_{j != j'} / (2 m (m-1)) is half the mean over pairs.
    """
    confinement = power(xhat - x_0[:, None], beta).mean(1)
    if lam == 0:
        return confinement
    m = xhat.shape[1]
    j, k = torch.triu_indices(m, m, 1, device=xhat.device)
    interaction = power(xhat[:, j] - xhat[:, k], beta).mean(1)
    return confinement - lam / 2 * interaction


def weight(t, kind, bias):
    """w(t) [N]: 1, or sigmoid(log(alpha^2/sigma^2) - bias), nearly 0 where sampling starts."""
    if kind == "none":
        return torch.ones_like(t)
    alpha, sigma = alpha_sigma(t)
    return torch.sigmoid(2 * torch.log(alpha / sigma) - bias)


def loss_of(net, x_0, t, eps, xi, config, *condition):
    """The weighted energy score.

    Distances are of the root-mean-square kind, so that sizes of images compare.
    """
    alpha, sigma = (expand_like(a, x_0) for a in alpha_sigma(t))
    xhat = net(alpha * x_0 + sigma * eps, t, *condition, xi)  # (n, m, ...)
    size = x_0[0].numel() ** (config.beta / 2)
    score = energy_score(x_0, xhat, config.beta, config.lam) / size
    return (weight(t, config.weight, config.w_bias) * score).mean()


# ------------------------------------------------------------------------------ the network


def time_waves(t):
    """Sines of half the log-SNR: [N, 32].  Those of bare t would hardly vary near 0."""
    alpha, sigma = (a.clamp_min(1e-4) for a in alpha_sigma(t))
    return waves(torch.log(alpha / sigma), 0.1, 5, 16)


def scalings(x_t, t, rms):
    """size, c_skip and c_out [N, 1, ...], with which a network F(x_t / size) has an easy task:

        xhat = c_skip x_t + c_out F

    rms: root-mean-square of the data, so that x_t has variance alpha^2 rms^2 + sigma^2 = size^2.
    c_skip x_t is the best linear guess at x_0, c_out the size of what is left.  So F is of order 1
    at every t: near t = 0 it only corrects x_t, at t = 1 all is its own.
    """
    alpha, sigma = (expand_like(a, x_t) for a in alpha_sigma(t))
    variance = alpha**2 * rms**2 + sigma**2
    size = variance.sqrt()
    return size, alpha * rms**2 / variance, sigma * rms / size


class PointMLP(nn.Module):
    """f(x_t, t, xi): m particles [N, m, 2] of points x_t [N, 2], t [N] and xi [N, m, xi_dim].

    `shared` layers see x_t and t alone, once for all particles; the others also xi.
    """

    def __init__(self, width, depth, shared, xi_dim, rms):
        super().__init__()
        self.rms = rms
        self.xi_dim = xi_dim
        self.first = nn.Linear(2 + 24 + 32, width)
        self.trunk = nn.ModuleList(nn.Linear(width, width) for _ in range(shared))
        self.join = nn.Linear(xi_dim, width)
        self.late = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - shared))
        self.out = nn.Linear(width, 2)

    def forward(self, x_t, t, xi):
        size, c_skip, c_out = scalings(x_t, t, self.rms)
        x = x_t / size
        h = self.first(torch.cat([x, waves(x, 1, 16, 6).flatten(1), time_waves(t)], 1))
        for layer in self.trunk:
            h = h + layer(F.silu(h))

        h = h[:, None] + self.join(xi)  # (N, m, width)
        for layer in self.late:
            h = h + layer(F.silu(h))
        out = self.out(F.silu(h)).float()
        return (c_skip * x_t)[:, None] + c_out[:, None] * out


def mixture(config):
    """The data, and in closed form all that is to be known of their p_t on this path."""
    return reference.mixture(MIXTURES[config.data], Linear)


def build(config):
    gmm = mixture(config)
    square = gmm.weights @ (gmm.means**2 + gmm.eigenvalues)  # E[x^2], along each axis
    rms = float(np.sqrt(square.mean()))
    return PointMLP(config.width, config.depth, config.shared, config.xi_dim, rms)


# ------------------------------------------------------------------------------ the training


def fit(net, run, batch, evaluate):
    """Train until --train-steps; returns the network to sample with.

    batch(step): x_0 [n, ...], and its Condition if there is one, as a tuple.  evaluate(net, step):
    numbers for the log.
    """
    config = run.config
    n = config.batch_size
    board = Board(config)
    shown = dict(curves=CURVES, on_save=[board.pictures])
    trainer = Trainer(net, run, report_every=config.eval_every, **shown)
    for step in trainer.steps():
        x_0, *condition = batch(step)

        # Each process draws the whole batch and keeps its rows: several take the step of one.
        g = generator(config.seed, step, 0)
        t = (torch.arange(n) + torch.rand(n, generator=g)) / n  # stratified: one in each n-th
        eps = torch.randn(x_0.shape, generator=g)
        xi = torch.randn(n, config.m, config.xi_dim, generator=g)
        x_0, t, eps, xi = (v[trainer.rows].to(run.device) for v in (x_0, t, eps, xi))
        condition = [c.rows(trainer.rows).to(run.device) for c in condition]

        with trainer.autocast():
            loss = loss_of(trainer.module, x_0, t, eps, xi, config, *condition)
        trainer.update(loss, clip=config.clip)
        if trainer.report_due:
            with alone():
                numbers = evaluate(trainer.ema, trainer.done)
            trainer.report(**numbers)
        board.follow(trainer)
    return trainer.trained()


def train(net, run):
    config = run.config
    gmm = mixture(config)

    def batch(step):
        rng = np.random.default_rng([config.seed, step])
        return (torch.from_numpy(gmm.sample(config.batch_size, rng)).float(),)

    def evaluate(ema, step):
        drawn = sample(ema, run.with_settings(n=2048, steps=4))
        return {"mmd2": distances.mmd2_to_mixture(drawn.x.double().numpy(), gmm)}

    return fit(net, run, batch, evaluate)


# ------------------------------------------------------------------------------ the sampling
# `denoise(x, t)` returns one draw of x_0 for each x_t: of the network, or of the exact posterior.


def sampler(denoise, x, steps, churn, noise):
    """Yield (t, x_t, draw of x_0) from t = 1 on, one call a step, and last (0, x_0, x_0).

    noise: an iterator over standard normals shaped like x.
    """
    times = [1 - k / steps for k in range(steps)] + [0.0]
    for t, s in pairwise(times):
        x_0 = denoise(x, t)
        yield t, x, x_0
        x = bridge(x, x_0, t, s, churn, next(noise))
    yield 0.0, x, x


@torch.no_grad()
def learned_draw(net, run, noise, x, t, condition=()):
    """The network as denoise(x, t).  noise: a seeds.Noise, from which it takes one xi a call."""
    xi = noise.draw((1, net.xi_dim))
    times = torch.full((len(x),), t)
    inputs = (v.to(run.device) for v in (x, times, *condition, xi))
    with autocast(run.device, run.config.precision):
        x_0 = net(*inputs)  # (N, 1, ...)
    return x_0[:, 0].to(x.device)


def sample(net, run):
    """--n points in --steps steps, and their film."""
    config = run.config

    def trajectory(noise):
        denoise = partial(learned_draw, net, run, noise)
        return sampler(denoise, next(noise), config.steps, config.churn, noise)

    return sample_points(trajectory, config, range(config.steps))


# ------------------------------------------------------------------------------ the comparison


def learned(net, run, n, seed):
    """The network as denoise(x, t) of n points, with a stream of xi of its own."""
    return partial(learned_draw, net, run, point_noise(seed, n, stream=2))


def cloud(n, seed, denoise, steps, churn):
    """n points [n, 2], float64.  A seed means the same start and bridge noise for any denoise."""
    noise = point_noise(seed, n, stream=1)
    *_, (_, x, _) = sampler(denoise, next(noise), steps, churn, noise)
    return x.double().numpy()


def compare(net, run, gmm):
    """MMD^2 by number of steps: a table {name: numbers}, and two pictures.

    Of this network, of exact draws from the posterior, and of ordinary diffusion: of a network that
    was trained alike, if one ships, and of the exact mean.
    """
    n, seed, churn = run.config.n, run.config.seed, run.config.churn
    rng = np.random.default_rng([seed, 3])
    rivals = {
        "this network": (learned(net, run, n, seed), [churn]),
        "exact posterior draws": (partial(posteriors.exact_draw, gmm, rng), [churn]),
    }
    other = runs.shipped_net(Config, build, f"dddm_{run.config.data}_mean.pt", run.device)
    if other:
        denoise = learned(other, run, n, seed)
        rivals["ordinary diffusion, trained alike"] = denoise, [0, 1]
    rivals["ordinary diffusion, exact mean"] = partial(posteriors.exact_mean, gmm), [0, 1]

    draw = partial(cloud, n, seed)
    table = posteriors.mmd2_by_steps(rivals, gmm, draw)
    posteriors.draw_comparison(run.out, table, rivals, gmm, n, rng, draw)
    return table


# ------------------------------------------------------------------------------ the report


def report(drawn, net, run):
    """The samples and a film, the comparison, learned posteriors beside exact ones, the numbers."""
    config = run.config
    gmm = mixture(config)
    write_npz(run.out / "samples.npz", x=drawn.x)

    slow = sample(net, run.with_settings(steps=32))  # for the eye: few steps make no film
    frames = clouds.cloud_frames(slow.film, gmm, "learned posterior, 32 steps")
    save_gif(list(frames), run.out / "sampling.gif", duration=0.1)

    numbers = distances.from_mixture(drawn.x.double().numpy(), gmm, config.seed)
    words = [f"n = {config.n}, {config.steps} steps", distances.report_lines(numbers)]

    fresh = partial(learned, net, run, seed=0)
    off, line = posteriors.compare_posteriors(run.out / "posterior.png", fresh, gmm)
    words.append(line)
    numbers |= {"seconds": drawn.seconds, "posterior_std_off": off}

    if config.n > 1:  # MMD^2 needs two
        table = compare(net, run, gmm)
        words.append(posteriors.table_lines(table))
        numbers |= {"steps": posteriors.STEPS, "comparison": table}
    return numbers, "\n".join(words)


def main(argv=None):
    runs.main(Config, build, train, sample, report, argv)


if __name__ == "__main__":
    main()
