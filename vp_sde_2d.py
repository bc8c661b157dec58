"""A letter S out of noise: a score model in the plane, learned beside exact.  The second lecture.

    x_t = alpha_t x_0 + sigma_t eps         loss = |v_theta - v|^2,  v = alpha_t eps - sigma_t x_0
    eps = alpha_t v + sigma_t x_t           score = -eps / sigma_t

The data are a mixture of Gaussians, so the score at every t is known (reference_gmm_sde.py).  The
schedule and the samplers are those of vp_sde.py, a hundred lines to read beside these: they do not
care what x is.

    python vp_sde_2d.py --shape S

samples 4,096 points with the checkpoint that ships, in five seconds, and writes samples.png,
reverse_diffusion.gif, samples.npz and metrics.json to outputs/vp_sde_2d/default/.

    python vp_sde_2d.py --oracle                    the same sampler with the exact score
    python vp_sde_2d.py --sampler dpmpp --steps 10  ten network calls
    python vp_sde_2d.py --train --out outputs/mine  train from scratch in a minute, then sample

v-prediction: Salimans and Ho 2022 (arXiv 2202.00512).
"""

from dataclasses import dataclass
from itertools import pairwise

import reference_gmm_sde as reference
from common import clouds, distances, options, runs
from common.blocks import expand_like, waves
from common.cli import flag
from common.evaluation import score_errors
from common.files import write_npz
from common.loop import Trainer
from common.sampling import sample_points
from common.seeds import generator
from common.times import time_grid
from vp_sde import SAMPLERS, VP, Learned

import numpy as np
import torch
from torch import nn


@dataclass(kw_only=True)
class Config(options.Training):
    script = "vp_sde_2d"

    shape: str = flag.model("S", "the data, a mixture", choices=("S", "circle"))
    beta_min: float = flag.model(0.1, "noise rate at t = 0", above=0, high=1000)
    beta_max: float = flag.model(20.0, "noise rate at t = 1", above=0, high=1000)
    train_steps: int = flag.training(4000, "optimizer steps", low=1)
    batch_size: int = flag.training(1024, "points a step", low=1)
    lr: float = flag.training(2e-3, "learning rate after the warm-up", above=0)

    sampler: str = flag.sampling(
        "sde", "reverse SDE; ode: Heun; dpmpp: DPM-Solver++", choices=("sde", "ode", "dpmpp")
    )
    steps: int = flag.sampling(300, "network calls per sample; ode: 2 STEPS - 1", low=1)
    grid: str = flag.sampling("logsnr", "step spacing", choices=("uniform", "quadratic", "logsnr"))
    t_end: float = flag.sampling(0.001, "time of the last call, for x_0", above=0, below=1)
    n: int = flag.sampling(4096, "samples", low=1, also="--n-samples")
    oracle: bool = flag.sampling(False, "the exact score, no network")

    @property
    def shipped(self):
        return None if self.oracle else f"vp_sde_2d_{self.shape}.pt"

    def settle(self, typed):
        if self.beta_max < self.beta_min:
            raise ValueError(f"--beta-max {self.beta_max} is below --beta-min {self.beta_min}")
        if self.oracle:
            self.refuse(typed, "use_ema", "precision", because="--oracle has no network")
            if self.train or self.ckpt:
                raise ValueError("--oracle has no network: leave --train and --ckpt out")
        if self.steps == 1:
            self.refuse(typed, "sampler", "grid", "t_end", because="the only call is at t = 1")


# ------------------------------------------------------------------------------ the network


class PointMLP(nn.Module):
    """v_theta(x_t, t) for points [N, 2]: three hidden layers on sines of x and of log-SNR."""

    def __init__(self, schedule, width=256):
        super().__init__()
        self.schedule = schedule
        layers = []
        for d_in, d_out in pairwise([2 + 32 + 32, width, width, width]):
            layers += [nn.Linear(d_in, d_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x, t):
        log_snr = self.schedule.log_snr(t.clamp_min(1e-6)).clamp(-20, 20)
        features = [x, waves(x, 0.5, 8, 8).flatten(1), waves(log_snr / 2, 0.1, 5, 16)]
        return self.layers(torch.cat(features, 1)).float()


def build(config):
    return PointMLP(VP(config.beta_min, config.beta_max))


class LearnedV(Learned):
    """eps(x, t) = sigma x + alpha v of a network for v = alpha eps - sigma x_0."""

    def eps(self, x, t, *condition):
        _, alpha, sigma = self.schedule.at(t)
        return sigma * x + alpha * self.output(x, t, *condition)


# ------------------------------------------------------------------------------ the truth


class NumpySchedule:
    """A schedule of torch as the mixture takes it: t is a number."""

    def __init__(self, schedule):
        self.schedule = schedule

    def alpha_sigma(self, t):
        _, alpha, sigma = self.schedule.at(float(t))
        return alpha, sigma


def mixture(config, schedule):
    """The data, and their p_t under this schedule."""
    return reference.mixture(config.shape, NumpySchedule(schedule))


class Exact:
    """eps(x, t) in closed form."""

    def __init__(self, gmm, schedule):
        self.gmm = gmm
        self.schedule = schedule

    def eps(self, x, t):
        return torch.from_numpy(self.gmm.eps(x.double().numpy(), t)).to(x)


# ------------------------------------------------------------------------------ the training


def training_points(gmm, seed, step, n, held_out=False):
    """x_0 [n, 2] of a training step: a function of (seed, step)."""
    rng = np.random.default_rng([seed, step, held_out])
    return torch.from_numpy(gmm.sample(n, rng)).float()


def v_loss(net, schedule, x0, t, eps):
    """Mean square of v_theta - v, where v = alpha eps - sigma x_0.

    v is eps near the data and -x_0 near the noise, so the target never becomes trivial: to predict
    eps near the noise would be to copy x_t.
    """
    alpha, sigma = (expand_like(a, x0) for a in schedule.alpha_sigma(t))
    x_t = alpha * x0 + sigma * eps
    v = alpha * eps - sigma * x0
    return (net(x_t, t) - v).square().mean()


def train(net, run):
    """Train until --train-steps (AdamW, EMA: common/loop.py); return the network to sample with."""
    config = run.config
    n = config.batch_size
    gmm = mixture(config, net.schedule)
    exact = Exact(gmm, net.schedule)
    held_out = training_points(gmm, config.seed, 0, 4096, held_out=True)

    trainer = Trainer(net, run)
    for step in trainer.steps():
        x0 = training_points(gmm, config.seed, step, n)
        g = generator(config.seed, step, 0)
        t = (torch.arange(n) + torch.rand(n, generator=g)) / n  # stratified: one in each n-th
        eps = torch.randn(x0.shape, generator=g)
        x0, t, eps = (a[trainer.rows].to(run.device) for a in (x0, t, eps))

        with trainer.autocast():
            loss = v_loss(trainer.module, net.schedule, x0, t, eps)
        trainer.update(loss)
        if trainer.report_due:
            learned = LearnedV(trainer.ema, run)
            trainer.report(**score_errors(learned, exact, held_out, seed=config.seed))
    return trainer.trained()


# ------------------------------------------------------------------------------ the sampling


def sample(net, run):
    """--n points by --sampler, and their film."""
    config = run.config
    if config.oracle:
        schedule = VP(config.beta_min, config.beta_max)
        model = Exact(mixture(config, schedule), schedule)
    else:
        model = LearnedV(net, run)
    times = time_grid(model.schedule, config.steps, config.t_end, config.grid)

    def trajectory(noise):
        return SAMPLERS[config.sampler](model.eps, next(noise), times, model.schedule, noise)

    return sample_points(trajectory, config, times, model.schedule)


def report(drawn, net, run):
    """The cloud, its film over the closed-form density, and its distance to exact samples."""
    config = run.config
    schedule = net.schedule if net else VP(config.beta_min, config.beta_max)
    gmm = mixture(config, schedule)
    x = drawn.x.double().numpy()
    write_npz(run.out / "samples.npz", x=drawn.x)
    title = f"{'exact' if config.oracle else 'learned'} score, {config.sampler}"
    clouds.save_film(run.out, drawn.film, gmm, title)

    numbers = distances.from_mixture(x, gmm, config.seed)
    return numbers | {"seconds": drawn.seconds}, distances.report_lines(numbers)


def main(argv=None):
    runs.main(Config, build, train, sample, report, argv)


if __name__ == "__main__":
    main()
