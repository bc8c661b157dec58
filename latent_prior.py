"""A prior for the latents of a VAE: DDPM in 32 dimensions, conditional on type and angle.

    z_t  = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps,   abar_t = prod_{i <= t} (1 - beta_i),  t = 1..T
    loss = |eps - eps_theta(z_t, t, c)|^2 / abar_t,   z_0 the standardised latent of a crystal
    DDIM: z_s = sqrt(abar_s) z0_hat + sqrt(1 - abar_s - q) eps_hat + sqrt(q) noise,
          q = eta^2 (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s)
    With eta = 1 over every t it is DDPM's own sampler.

    python latent_prior.py --steps 50

draws 36 crystals with the checkpoint that ships and compares three priors of one VAE on the same
conditions: N(0, I), the mixture of posteriors (MoP), and this one.  It writes samples.png,
comparison.png, reverse_diffusion.gif, samples.npz and metrics.json to outputs/latent_prior/default/
(20 seconds on two CPU cores).

    python latent_prior.py --eta 1 --steps 1000       DDPM ancestral sampling, every step
    python latent_prior.py --kind 1 --n 512 --cfg 1   rectangular: is the law of the aspect right?
    python latent_prior.py --cfg 0                    no condition: the prior invents the crystal
    python latent_prior.py --train --out outputs/me   train from scratch, on the VAE that ships
    python latent_prior.py --ckpt assets/checkpoints/latent_prior_cond.pt   of the conditional VAE

The default VAE is the unconditional one, so that the prior itself has to know type, angle and
aspect.  A conditional VAE leaves z little to say, and this prior little to learn.  beta is a noise
rate here, not the weight of a KL.

DDPM: Ho et al. 2020 (arXiv 2006.11239).  DDIM: Song et al. 2021 (2010.02502).
Latent diffusion: Rombach et al. 2022 (2112.10752).  v inside: Salimans and Ho 2022 (2202.00512).
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import data
import vae
from common import latents, options, runs
from common.blocks import expand_like, waves, zeroed
from common.checkpoints import found_path
from common.cli import flag, path
from common.crystal_job import TrainingCrystals, conditions
from common.files import write_npz
from common.loop import Trainer
from common.pictures import LOSS, image_film
from common.sampling import Drawn, sample_images
from common.seeds import generator
from vp_sde import guided_eps
from vp_sde_2d import LearnedV

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

NAMES = {"normal": "N(0, I)", "mop": "MoP", "diffusion": "diffusion prior"}
run_of_vae = partial(latents.run_of_vae, vae)  # the VAE that a config names
load_vae = partial(latents.load_vae, vae)
UNINFORMATIVE = 1e-4  # below this abar nothing of z_0 is left to see: few steps spend none there
HELD_OUT = 256  # crystals that the log of a training is about
CURVES = (LOSS, ("held-out loss by t / T; above 0 at its best: no aspect is known", "bins"))


@dataclass(kw_only=True)
class Config(options.OneCrystal, options.Training):
    script = "latent_prior"

    z_dim: int | None = flag.model(None, "latents: must be those of the VAE", low=1)
    T: int = flag.model(1000, "steps of the chain", low=2, high=10**5)
    beta_start: float = flag.model(1e-4, "noise rate of step 1", above=0, below=1)
    beta_end: float = flag.model(0.05, "noise rate of step T", above=0, below=1)
    width: int = flag.model(512, "of the residual MLP", low=1, high=16384)
    t_emb_dim: int = flag.model(64, "sines of the log-SNR, an even number", low=2, high=4096)
    z_target: str = flag.model("mu", "posterior means, or draws", choices=("mu", "sample"))
    n_latents: int = flag.training(200_000, "crystals that are encoded", low=2)
    p_uncond: float = flag.training(0.1, "share of the training without a condition", low=0, high=1)
    train_steps: int = flag.training(32_000, "optimizer steps", low=1)
    batch_size: int = flag.training(256, "latents a step", low=1)

    vae: str = flag.run(
        "assets/checkpoints/vae_uncond.pt",
        "checkpoint or run folder of the VAE whose latents these are",
        parse=path,
        also="--vae-ckpt",
    )
    data_path: str | None = flag.run(None, "file that the VAE learned from, if moved", parse=path)
    steps: int = flag.sampling(50, "network calls per sample, at most T", low=1)
    eta: float = flag.sampling(0.0, "0: deterministic DDIM; 1: ancestral, as DDPM", low=0, high=1)
    cfg: float = flag.sampling(1.5, "guidance weight w", low=0)
    n: int = flag.sampling(36, "samples of each prior", low=1, also="--n-samples")
    sample_batch: int = flag.sampling(4096, "latents drawn at a time", low=1)

    def settle(self, typed):
        if self.steps > self.T:
            raise ValueError(f"--steps {self.steps} is more than the chain has: T is {self.T}")
        if self.steps == 1:
            self.refuse(typed, "eta", because="the only step ends at z_0, without noise")
        if self.beta_end < self.beta_start:
            raise ValueError(f"--beta-end {self.beta_end} is below --beta-start {self.beta_start}")
        if self.t_emb_dim % 2:
            raise ValueError(f"--t-emb-dim must be even, not {self.t_emb_dim}")

        # What the VAE decides.
        self.vae = str(found_path(self.vae))
        trained = run_of_vae(self).trained
        if self.z_dim not in (None, trained.z_dim):
            raise ValueError(f"--z-dim {self.z_dim} contradicts {self.vae}: it has {trained.z_dim}")
        self.z_dim = trained.z_dim
        self.check_crystal(trained.n_types, trained.mode)
        if trained.data_path:
            self.refuse(typed, "n_latents", because="all of the file of the VAE is encoded")
        else:
            self.refuse(typed, "data_path", because="the VAE learned from rendered crystals")

    def epoch(self):
        of_vae = run_of_vae(self).config
        return of_vae.epoch() if of_vae.data_path else self.n_latents


# ------------------------------------------------------------------------------ the schedule


class DDPM:
    """The chain of T steps with linear beta; t = 0 is the data, abar_0 = 1.

    Computed in float64.  Methods take tensors of steps, int64; `at` takes a number.
    """

    def __init__(self, T=1000, beta_start=1e-4, beta_end=0.05):
        self.T = T
        self.beta = np.concatenate([[0.0], np.linspace(beta_start, beta_end, T)])  # [T + 1]
        self.log_abar = np.cumsum(np.log1p(-self.beta))

        # For all t, as float32 tensors: alpha = sqrt(abar) and sigma = sqrt(1 - abar).
        noise = -np.expm1(self.log_abar)  # 1 - abar; expm1 keeps the digits near t = 0
        self.alpha = torch.from_numpy(np.exp(self.log_abar / 2)).float()
        self.sigma = torch.from_numpy(np.sqrt(noise)).float()
        log_snr = self.log_abar - np.log(np.maximum(noise, 1e-12))
        self.log_snrs = torch.from_numpy(log_snr).float()

    def alpha_sigma(self, t):
        return self.alpha.to(t.device)[t], self.sigma.to(t.device)[t]

    def log_snr(self, t):
        return self.log_snrs.to(t.device)[t]

    def at(self, t):
        """beta, alpha and sigma of one step, as Python floats."""
        sigma = math.sqrt(-math.expm1(self.log_abar[t]))
        return float(self.beta[t]), math.exp(self.log_abar[t] / 2), sigma

    def indices(self, steps):
        """The t of a sampler with so many network calls, decreasing.

        All of T .. 1, or evenly spread in log-SNR where abar is at least 1e-4.  Two fifths of the
        chain are pure noise (abar_T = 1e-11): few steps start where z_0 begins to show.  To start
        there from N(0, I) ignores that z_t still contains a hundredth of z_0.
        """
        if steps >= self.T:
            return list(range(self.T, 0, -1))
        seen = np.flatnonzero(np.exp(self.log_abar) >= UNINFORMATIVE)[1:]  # t = 1 .. the last
        log_snr = self.log_abar[seen] - np.log(-np.expm1(self.log_abar[seen]))
        wanted = log_snr[-1:] if steps == 1 else np.linspace(log_snr[-1], log_snr[0], steps)
        chosen = {int(seen[np.abs(log_snr - w).argmin()]) for w in wanted}

        # At high SNR the t lie so far apart that several wishes meet: the first t that are free.
        free = (t for t in range(1, self.T + 1) if t not in chosen)
        spare = [next(free) for _ in range(steps - len(chosen))]
        return sorted([*chosen, *spare], reverse=True)


# ------------------------------------------------------------------------------ the network


class Residual(nn.Module):
    """h + W silu(FiLM(norm(h))): time and condition scale and shift every number."""

    def __init__(self, width, d_emb):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = nn.Linear(d_emb, 2 * width)
        self.linear = zeroed(nn.Linear(width, width))  # a new block is the identity

    def forward(self, h, emb):
        scale, shift = self.film(emb).chunk(2, 1)
        return h + self.linear(F.silu(torch.addcmul(shift, self.norm(h), 1 + scale)))


class Prior(nn.Module):
    """v_theta(z_t, t, condition) for standardised latents [N, z_dim]: a residual MLP.

    v = alpha eps - sigma z_0, so that eps = sigma z_t + alpha v.  With v the error in z_0 stays
    bounded even where z_t is all noise, which is where a sampler of few steps begins.  mean and
    std, by which latents are standardised, travel with the weights.
    """

    def __init__(self, schedule, z_dim, width=512, t_emb_dim=64, blocks=3, d_emb=192):
        super().__init__()
        self.schedule = schedule
        self.t_emb_dim = t_emb_dim
        d_told = t_emb_dim + data.FEATURES
        self.embed = nn.Sequential(
            nn.Linear(d_told, d_emb), nn.SiLU(), nn.Linear(d_emb, d_emb), nn.SiLU()
        )
        self.stem = nn.Linear(z_dim, width)
        self.blocks = nn.ModuleList(Residual(width, d_emb) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.out = zeroed(nn.Linear(width, z_dim))
        self.register_buffer("mean", torch.zeros(z_dim))
        self.register_buffer("std", torch.ones(z_dim))

    def standardise(self, z):
        return (z - self.mean) / self.std

    def restore(self, z):
        """What standardise took away, for latents on any device."""
        return z * self.std.to(z) + self.mean.to(z)

    def forward(self, z, t, condition):
        """z: [N, z_dim]; t: int64 [N] in 1 .. T."""
        time = waves(self.schedule.log_snr(t) / 2, 0.1, 10, self.t_emb_dim // 2)
        emb = self.embed(torch.cat([time, condition.features()], 1))
        h = self.stem(z)
        for block in self.blocks:
            h = block(h, emb)
        return self.out(F.silu(self.norm(h))).float()


def build(config):
    schedule = DDPM(config.T, config.beta_start, config.beta_end)
    return Prior(schedule, config.z_dim, config.width, config.t_emb_dim)


# ------------------------------------------------------------------------------ the training


def latent_batch(config, encoded, step):
    """z_0 [n, z_dim], not yet standardised, and Condition of a step: a function of (seed, step)."""
    g = generator(config.seed, step, 1)
    rows = torch.randint(len(encoded.mu), (config.batch_size,), generator=g)
    z = encoded.mu[rows]
    if config.z_target == "sample":
        eps = torch.randn(z.shape, generator=g)
        z = vae.reparameterise(z, encoded.log_var[rows], eps)
    return z, encoded.condition.rows(rows)


def loss_of(net, schedule, z0, condition, t, eps):
    """|eps - eps_theta|^2 / abar_t of each latent, which is |v - v_theta|^2: [N].

    z0 is standardised.  The minimiser is that of the DDPM objective at every t.  Unweighted, a
    wrong type at abar = 1e-3 would cost a thousandth of what it costs near the data, and be learned
    last: yet that is where few steps choose the type.
    """
    alpha, sigma = (expand_like(a, z0) for a in schedule.alpha_sigma(t))
    z_t = alpha * z0 + sigma * eps
    v = alpha * eps - sigma * z0
    return (net(z_t, t, condition) - v).square().mean(1)


@torch.no_grad()
def loss_by_time(net, z0, condition, seed, bins=8):
    """The loss of held-out latents in the middle of each of `bins` ranges of t, for the log."""
    eps = torch.randn(z0.shape, generator=generator(seed, 2**40)).to(z0)
    losses = {}
    for i in range(bins):
        share = (i + 0.5) / bins
        t = torch.full((len(z0),), 1 + int(share * net.schedule.T), device=z0.device)
        losses[f"{share:.2f}"] = float(loss_of(net, net.schedule, z0, condition, t, eps).mean())
    return losses


def train(net, run):
    """Train until --train-steps; returns the network to sample with."""
    config = run.config
    n = config.batch_size
    vae_net, of_vae = load_vae(run)
    crystals = TrainingCrystals(of_vae, signed=False)
    crystals.nearest(conditions(of_vae.config))  # a type without examples is refused now

    # Encode the training set, which takes a minute, and some crystals that are not in it.
    encoded = latents.encode_training_set(vae_net, of_vae, config.n_latents)
    spread = encoded.log_var.exp().mean(0) if config.z_target == "sample" else 0.0
    net.mean.copy_(encoded.mu.mean(0))
    net.std.copy_((encoded.mu.var(0) + spread).sqrt().clamp_min(1e-4))
    x, condition = crystals.batch(0, HELD_OUT, held_out=True)
    mu, _ = vae.encode(vae_net, of_vae, x, condition)
    held_out = net.standardise(mu.to(run.device)), condition.to(run.device)

    trainer = Trainer(net, run, report_every=250, curves=CURVES)
    for step in trainer.steps():
        z0, condition = latent_batch(config, encoded, step)

        # Each process draws the whole batch and keeps its rows: several take the step of one.
        g = generator(config.seed, step, 0)
        u = (torch.arange(n) + torch.rand(n, generator=g)) / n  # stratified: one in each n-th
        t = 1 + (u * config.T).long().clamp_max(config.T - 1)  # uniform on 1 .. T
        eps = torch.randn(z0.shape, generator=g)
        known = torch.rand(n, generator=g) >= config.p_uncond  # the rest is unconditional
        condition = condition._replace(known=known).rows(trainer.rows).to(run.device)
        z0, t, eps = (a[trainer.rows].to(run.device) for a in (z0, t, eps))

        with trainer.autocast():
            z0 = net.standardise(z0)
            loss = loss_of(trainer.module, net.schedule, z0, condition, t, eps).mean()
        trainer.update(loss)
        if trainer.report_due:
            with trainer.autocast():
                trainer.report(bins=loss_by_time(trainer.ema, *held_out, config.seed))
    return trainer.trained()


# ------------------------------------------------------------------------------ the sampler


def ddim(eps, z, indices, schedule, eta=0.0, noise=None):
    """DDIM from z at indices[0] down to z_0; yields (t, z, z0_hat), at last (0, z_0, z_0).

    eps: eps(z, t).  indices: decreasing steps of the chain.  eta = 0 is deterministic; eta = 1 over
    every index is the DDPM ancestral sampler with the posterior variance.  noise: an iterator over
    standard normals shaped like z, for eta > 0.
    """
    for t, s in pairwise([*indices, 0]):
        _, alpha, sigma = schedule.at(t)
        _, alpha_s, sigma_s = schedule.at(s)
        e = eps(z, t)
        z0_hat = (z - sigma * e) / alpha
        yield t, z, z0_hat

        # To s: what of the noise stays, and what is drawn anew.
        between = -math.expm1(schedule.log_abar[t] - schedule.log_abar[s])  # 1 - abar_t / abar_s
        q = (eta * sigma_s / sigma) ** 2 * between
        z = alpha_s * z0_hat + math.sqrt(max(sigma_s**2 - q, 0.0)) * e
        if q > 0:
            z = z + math.sqrt(q) * next(noise)
    yield 0, z, z


# ------------------------------------------------------------------------------ the sampling


def draw(net, run, condition):
    """--n latents by DDIM and their film, on the scale of the VAE: a Drawn."""
    config = run.config
    model = LearnedV(net, run)
    indices = net.schedule.indices(config.steps)

    def trajectory(rows, noise):
        eps = partial(guided_eps, model, condition.rows(rows), config.cfg)
        return ddim(eps, next(noise), indices, net.schedule, config.eta, noise)

    drawn = sample_images(trajectory, net.mean.shape, config, indices)
    film = [(t, net.restore(z)) for t, z, _ in drawn.film]
    return Drawn(net.restore(drawn.x), film, drawn.seconds)


def sample(net, run):
    """--n latents of the diffusion prior, and crystals [n, 1, H, H] in [0, 1] of all three."""
    vae_net, of_vae = load_vae(run)
    condition = conditions(of_vae.config)
    start = time.perf_counter()
    drawn = draw(net, run, condition)
    decoded = vae.decode(vae_net, of_vae, drawn.x, condition).clamp(0, 1)
    drawn.seconds = time.perf_counter() - start

    images = {prior: vae.draw(vae_net, of_vae, prior, condition) for prior in vae.PRIORS}
    return drawn, images | {"diffusion": decoded}


def report(samples, net, run):
    """The film, the priors side by side, samples.npz, the numbers and the words."""
    drawn, images = samples
    config = run.config
    vae_net, of_vae = load_vae(run)
    condition = conditions(of_vae.config)
    labels = {"kind": condition.kind, "theta": condition.cont[:, 1]}
    write_npz(run.out / "samples.npz", x=images["diffusion"], z=drawn.x, **labels)
    shown = condition.rows(slice(36))
    frames = [vae.decode(vae_net, of_vae, z, shown) for _, z in drawn.film]
    times = [f"t = {t}" for t, _ in drawn.film]
    image_film(run.out / "reverse_diffusion.gif", frames, times)

    unconditional = ["diffusion"] if config.cfg == 0 else []
    measured, words = latents.compare_priors(
        run.out, images, NAMES, condition, of_vae.config, unconditional
    )
    per_image = 1000 * drawn.seconds / config.n
    return {"n": config.n, "seconds": drawn.seconds, "ms_per_image": per_image} | measured, words


def main(argv=None):
    runs.main(Config, build, train, sample, report, argv)


if __name__ == "__main__":
    main()
