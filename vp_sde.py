"""Crystals out of noise: a score model of the variance-preserving SDE, run backwards.

    x_t = alpha_t x_0 + sigma_t eps         alpha_t = exp(-B(t)/2), sigma_t^2 = 1 - exp(-B(t))
    dx  = [-beta x/2 - beta score] dt + sqrt(beta) dW,   beta = B'(t), score = -eps / sigma_t
    eps = (x_t - alpha_t x0_hat) / sigma_t  from x0_hat, the answer of the network
    eps = eps_u + w (eps_c - eps_u)         guidance: w = 0 unconditional, w = 1 conditional

    python vp_sde.py --steps 300 --cfg 1.5

samples 36 crystals with the checkpoint that ships, in half a minute on two CPU cores, and writes
samples.png, reverse_diffusion.gif, samples.npz and metrics.json to outputs/vp_sde/default/.

    python vp_sde.py --sampler dpmpp --steps 10     the same conditions with 10 network calls
    python vp_sde.py --oracle                       the exact denoiser instead of the network
    python vp_sde.py --cfg 0                        no condition: the network invents the crystal
    python vp_sde.py --train --mode full            with vacancies and jitter that can be asked for
    python vp_sde.py --train --out outputs/mine     train from scratch, then sample
    torchrun --standalone --nproc_per_node=2 -- vp_sde.py --train     by two processes

VP-SDE: Song et al. 2021 (arXiv 2011.13456).  x_0-prediction: Li and He 2025 (2511.13720).
DPM-Solver++(2M): Lu et al. 2022 (2211.01095).  Guidance: Ho and Salimans 2022 (2207.12598).
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import data
from common import runs
from common.blocks import Block, channels_last, expand_like, turned_coordinates, waves, zeroed
from common.cli import flag
from common.crystal_job import TrainingCrystals, conditions, report_crystals
from common.devices import autocast
from common.evaluation import score_errors
from common.exact_denoiser import ExactModel
from common.loop import Trainer
from common.options import FullCrystals
from common.sampling import sample_images
from common.seeds import generator
from common.times import time_grid
from common.training_film import TrainingSamples

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(kw_only=True)
class Config(FullCrystals):
    script = "vp_sde"
    predicts = "x0"  # what its networks return

    beta_min: float = flag.model(0.1, "noise rate at t = 0", above=0, high=1000)
    beta_max: float = flag.model(30.0, "noise rate at t = 1", above=0, high=1000)
    p_uncond: float = flag.training(0.1, "share of the training without a condition", low=0, high=1)
    train_steps: int = flag.training(24_000, "optimizer steps", low=1)
    lr: float = flag.training(2e-3, "learning rate after the warm-up", above=0)

    sampler: str = flag.sampling(
        "sde", "reverse SDE; ode: Heun; dpmpp: DPM-Solver++", choices=("sde", "ode", "dpmpp")
    )
    steps: int = flag.sampling(300, "network calls per sample; ode: 2 STEPS - 1", low=1)
    grid: str = flag.sampling("logsnr", "step spacing", choices=("uniform", "quadratic", "logsnr"))
    cfg: float = flag.sampling(1.5, "guidance weight w; 1 with --oracle", low=0)
    t_end: float = flag.sampling(0.005, "time of the last call, for x_0", above=0, below=1)
    n: int = flag.sampling(36, "samples", low=1, also="--n-samples")
    sample_batch: int = flag.sampling(36, "images drawn at a time", low=1)
    oracle: bool = flag.sampling(False, "the exact denoiser of rot-only crystals, no network")

    def settle(self, typed):
        super().settle(typed)
        if self.beta_max < self.beta_min:
            raise ValueError(f"--beta-max {self.beta_max} is below --beta-min {self.beta_min}")
        if self.oracle:
            self.refuse(typed, "use_ema", "precision", because="--oracle has no network")
            self.cfg = self.cfg if "cfg" in typed else 1.0
            if self.cfg != 1 or self.mode != "rot-only" or self.train or self.ckpt:
                raise ValueError("--oracle needs --cfg 1, --mode rot-only, no training, no --ckpt")
        if self.cfg == 0:
            asked = ("kind", "theta", "spacing", "vacancy", "jitter")
            self.refuse(typed, *asked, because="--cfg 0 has no condition")
        if self.steps == 1:
            self.refuse(typed, "sampler", "grid", "t_end", because="the only call is at t = 1")


# ------------------------------------------------------------------------------ the schedule


@dataclass(frozen=True)
class VP:
    """The VP schedule with a linear beta(t).  Only B is defined: replace it, and the rest follows.

    Methods take tensors t in [0, 1]; `at` takes a number.
    """

    beta_min: float = 0.1
    beta_max: float = 30.0

    def B(self, t):
        """The integral of beta from 0 to t."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def beta(self, t):
        """The noise rate B'(t), by automatic differentiation."""
        with torch.enable_grad():
            t = t.detach().requires_grad_()
            return torch.autograd.grad(self.B(t).sum(), t)[0]

    def alpha_sigma(self, t):
        B = self.B(t)
        return torch.exp(-B / 2), torch.sqrt(-torch.expm1(-B))  # expm1 keeps the digits near t = 0

    def log_snr(self, t):
        """log(alpha^2 / sigma^2), which falls from infinity at t = 0."""
        return -self.B(t) - torch.log(-torch.expm1(-self.B(t)))

    def at(self, t):
        """beta, alpha and sigma at one time, as Python floats computed in float64."""
        t = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = self.alpha_sigma(t)
        return float(self.beta(t)), float(alpha), float(sigma)


# ------------------------------------------------------------------------------ the network


class UNet(nn.Module):
    """x0_hat(x_t, t, condition) for images [N, 1, H, W], H a multiple of 16; 2.7 M parameters.

    It works on cells of 4 x 4 pixels, which makes it cheap enough for a laptop.  A lattice is laid
    out around the image centre, so the network must know where a cell is: each gets its coordinates
    and sines of them, turned by the angle of the condition and in units of its spacing.  That
    spares it from learning products of position, angle and spacing; lattice and atoms it has to
    learn.
    """

    def __init__(self, schedule, widths=(64, 128, 192), d_emb=256):
        super().__init__()
        self.schedule = schedule
        a, b, c = widths
        d_time, d_condition, d_pixels, d_position = 64, data.FEATURES, 16, 26

        self.embed = nn.Sequential(
            nn.Linear(d_time + d_condition, d_emb), nn.SiLU(), nn.Linear(d_emb, d_emb), nn.SiLU()
        )
        self.stem = nn.Conv2d(d_pixels + d_position, a, 3, padding=1)
        self.down1 = nn.Conv2d(a, b, 2, stride=2)
        self.enc = Block(b, d_emb)
        self.down2 = nn.Conv2d(b, c, 2, stride=2)
        self.mid1 = Block(c, d_emb)
        self.mid2 = Block(c, d_emb)
        self.up2 = nn.Conv2d(c, 4 * b, 1)
        self.dec2 = Block(b, d_emb)
        self.up1 = nn.Conv2d(b, 4 * a, 1)
        self.dec1 = Block(a, d_emb)
        self.norm = nn.GroupNorm(4, a)
        self.out = zeroed(nn.Conv2d(a, d_pixels, 3, padding=1))

    def embedding(self, t, condition):
        """Time, as sines of its log-SNR, and the condition: [N, d_emb]."""
        t = t.double().clamp_min(1e-9) if t.device.type != "mps" else t  # MPS has no float64
        log_snr = self.schedule.log_snr(t).float().clamp(-20, 20)
        return self.embed(torch.cat([waves(log_snr / 2, 0.1, 20, 32), condition.features()], 1))

    def position(self, cells, condition):
        """Turned coordinates of the cells, unit 3.2 spacings, and sines: [N, 26, cells, cells]."""
        theta = condition.cont[:, 1] * condition.known
        unit = 3.2 * condition.spacing()  # 32 px in the modes that do not vary it
        uv = turned_coordinates(theta, cells, size=4, unit=unit)  # (N, 2, cells, cells)
        sines = waves(uv, math.pi / 2, 8 * math.pi, 6)  # wavelengths from 12.8 to 0.8 spacings
        return torch.cat([uv, sines.permute(0, 1, 4, 2, 3).flatten(1, 2)], 1)

    def forward(self, x, t, condition):
        with torch.autocast(x.device.type, enabled=False):  # positions and angles need all digits
            emb = self.embedding(t, condition)
            position = self.position(x.shape[-1] // 4, condition)

        h1 = self.stem(channels_last(torch.cat([F.pixel_unshuffle(x, 4), position], 1)))
        h2 = self.enc(self.down1(h1), emb)  # (N, b, H/8, H/8)
        h = self.mid2(self.mid1(self.down2(h2), emb), emb)  # (N, c, H/16, H/16)

        h = self.dec2(h2 + channels_last(F.pixel_shuffle(self.up2(h), 2)), emb)
        h = self.dec1(h1 + channels_last(F.pixel_shuffle(self.up1(h), 2)), emb)
        h = F.silu(self.norm(h))
        with torch.autocast(x.device.type, enabled=False):  # so do the pixels
            return F.pixel_shuffle(self.out(h.float()), 4)


def build(config):
    return UNet(VP(config.beta_min, config.beta_max))


class Learned:
    """eps(x, t, condition) = (x - alpha x0_hat) / sigma of a network that returns x0_hat.

    Samplers and guidance speak of eps.  The way there and back costs a rounding over alpha: a few
    1e-4 at t = 1.
    """

    def __init__(self, net, run):
        self.net = net
        self.schedule = net.schedule
        self.device = run.device
        self.precision = run.config.precision

    def output(self, x, t, *condition):
        """The answer of the network, on the device of x."""
        times = torch.full((len(x),), t, device=self.device)
        condition = [c.to(self.device) for c in condition]  # one, or for points none
        with autocast(self.device, self.precision):
            return self.net(x.to(self.device), times, *condition).to(x.device)

    def eps(self, x, t, *condition):
        _, alpha, sigma = self.schedule.at(t)
        return (x - alpha * self.output(x, t, *condition)) / sigma


def guided_eps(model, condition, w, x, t):
    """eps(x, t) under classifier-free guidance.  w = 1 and w = 0 need one of its halves only."""
    if w == 1:
        return model.eps(x, t, condition)
    if w == 0:
        return model.eps(x, t, condition.dropped())

    # Both halves in one call of twice the batch.
    both = data.concat(condition.dropped(), condition)
    eps_u, eps_c = model.eps(torch.cat([x, x]), t, both).chunk(2)
    return eps_u + w * (eps_c - eps_u)


# ------------------------------------------------------------------------------ the training


def x0_loss(net, schedule, x0, t, eps, condition):
    """Mean square of (x0_hat - x_0) / sigma, with sigma held above 0.2.

    Crystals are simple and noise is not, so x_0 is the easier thing to say.  Divided by sigma, its
    error is that of v = alpha eps - sigma x_0: no noise level is trivial.  Below 0.2 the quotient
    would ask for the last digits of pixels that are nearly known.
    """
    alpha, sigma = (expand_like(a, x0) for a in schedule.alpha_sigma(t))
    x_t = alpha * x0 + sigma * eps
    error = net(x_t, t, condition) - x0
    return (error / sigma.clamp_min(0.2)).square().mean()


def train(net, run):
    """Train until --train-steps (AdamW, EMA: common/loop.py); return the network to sample with."""
    config = run.config
    n = config.batch_size
    crystals = TrainingCrystals(run, signed=True)
    exact = ExactModel(net.schedule, config.img_size) if config.mode != "full" else None
    held_out = crystals.batch(0, 64, held_out=True)

    ten_calls = dict(sampler="dpmpp", steps=10, grid="logsnr", t_end=0.005, cfg=1.0)
    trainer = Trainer(net, run, on_save=[TrainingSamples(sample, **ten_calls)])
    for step in trainer.steps():
        x0, condition = crystals.batch(step, n)  # x0 in [-1, 1]: (n, 1, H, H)

        # Each process draws the whole batch and keeps its rows: several take the step of one.
        g = generator(config.seed, step, 0)
        t = (torch.arange(n) + torch.rand(n, generator=g)) / n  # stratified: one in each n-th
        eps = torch.randn(x0.shape, generator=g)
        known = torch.rand(n, generator=g) >= config.p_uncond  # the rest is unconditional
        condition = condition._replace(known=known).rows(trainer.rows).to(run.device)
        x0, t, eps = (a[trainer.rows].to(run.device) for a in (x0, t, eps))

        with trainer.autocast():
            loss = x0_loss(trainer.module, net.schedule, x0, t, eps, condition)
        trainer.update(loss)
        if trainer.report_due:
            learned = Learned(trainer.ema, run)
            trainer.report(**score_errors(learned, exact, *held_out, seed=config.seed))
    return trainer.trained()


# ------------------------------------------------------------------------------ the samplers
# Each takes eps(x, t), a start x at times[0], decreasing times, the schedule; the SDE also noise.
# It yields (t, x, x0_hat) at every time, and last (0, x_0, x_0): the prediction from times[-1].


def x0_of(x, eps, alpha, sigma):
    """x = alpha x_0 + sigma eps, solved for x_0."""
    return (x - sigma * eps) / alpha


def reverse_sde(eps, x, times, schedule, noise):
    """Reverse SDE by Euler-Maruyama.  noise: an iterator over standard normals shaped like x."""
    for t, s in pairwise(times):
        beta, alpha, sigma = schedule.at(t)
        e = eps(x, t)
        yield t, x, x0_of(x, e, alpha, sigma)

        # One step from t to s: dt = s - t is negative, so the drift changes its sign.
        score = -e / sigma
        drift = beta / 2 * x + beta * score
        x = x + drift * (t - s) + math.sqrt(beta * (t - s)) * next(noise)
    yield from last_prediction(eps, x, times[-1], schedule)


def probability_flow(eps, x, times, schedule, noise=None):
    """Probability-flow ODE, dx/dt = -beta/2 (x + score), by Heun: the mean of two slopes."""

    def slope(x, t):
        beta, alpha, sigma = schedule.at(t)
        e = eps(x, t)
        return -beta / 2 * (x - e / sigma), x0_of(x, e, alpha, sigma)

    for t, s in pairwise(times):
        d1, x0_hat = slope(x, t)
        yield t, x, x0_hat

        # Euler to s, the slope there, then the step again with the mean of both.
        d2, _ = slope(x + (s - t) * d1, s)
        x = x + (s - t) * (d1 + d2) / 2
    yield from last_prediction(eps, x, times[-1], schedule)


def dpmpp_2m(eps, x, times, schedule, noise=None):
    """Probability-flow ODE by DPM-Solver++(2M).  Exactly, with lambda = log(alpha / sigma):

        x_s = sigma_s / sigma_t x_t + sigma_s int e^lambda x0_hat(lambda) dlambda,

    from lambda_t to lambda_s.  x0_hat is replaced by a constant D, extrapolated from the last two
    calls to mid-step.
    """
    x0_before = h_before = None
    for t, s in pairwise(times):
        _, alpha, sigma = schedule.at(t)
        _, alpha_s, sigma_s = schedule.at(s)
        x0_hat = x0_of(x, eps(x, t), alpha, sigma)
        yield t, x, x0_hat

        h = math.log(alpha_s / sigma_s) - math.log(alpha / sigma)
        D = x0_hat
        if x0_before is not None:  # the first step knows one call only
            D = x0_hat + h / (2 * h_before) * (x0_hat - x0_before)

        x = sigma_s / sigma * x - alpha_s * math.expm1(-h) * D
        x0_before = x0_hat
        h_before = h
    yield from last_prediction(eps, x, times[-1], schedule)


def last_prediction(eps, x, t, schedule):
    _, alpha, sigma = schedule.at(t)
    x0_hat = x0_of(x, eps(x, t), alpha, sigma)
    yield t, x, x0_hat
    yield 0.0, x0_hat, x0_hat


SAMPLERS = {"sde": reverse_sde, "ode": probability_flow, "dpmpp": dpmpp_2m}


# ------------------------------------------------------------------------------ the sampling


def sample(net, run):
    """--n crystals in [-1, 1] by --sampler, and their film."""
    config = run.config
    if config.oracle:
        model = ExactModel(VP(config.beta_min, config.beta_max), config.img_size)
    else:
        model = Learned(net, run)
    condition = conditions(config)
    times = time_grid(model.schedule, config.steps, config.t_end, config.grid)

    def trajectory(rows, noise):
        eps = partial(guided_eps, model, condition.rows(rows), config.cfg)
        return SAMPLERS[config.sampler](eps, next(noise), times, model.schedule, noise)

    shape = (1, config.img_size, config.img_size)
    return sample_images(trajectory, shape, config, times, model.schedule)


def report(drawn, net, run):
    """samples.png, reverse_diffusion.gif, samples.npz, and the numbers."""
    return report_crystals(drawn, run, conditional=run.config.cfg > 0)


def main(argv=None):
    runs.main(Config, build, train, sample, report, argv)


if __name__ == "__main__":
    main()
