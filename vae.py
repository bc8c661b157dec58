"""Crystals through a bottleneck of 32 numbers: a beta-VAE, conditional or not, and two priors.

    loss = |x - x_hat|^2 + beta KL(q(z | x, c) || N(0, I)),   x_hat = decoder(z, c),  z = mu + s eps
    ELBO = -loss / beta - (D / 2) log(pi beta) nats: the loss is that of Gaussian pixels of variance
           beta / 2
    MoP  : z ~ q(z | x_i, c_i), the mixture of posteriors; x_i is the training crystal of the same
           type and the nearest angle

    python vae.py

draws 36 crystals from each of two priors, N(0, I) and MoP, with the conditional checkpoint that
ships, and writes reconstructions.png, samples_normal.png, samples_mop.png, traversal.png,
samples.npz and metrics.json to outputs/vae/default/ (15 seconds on two CPU cores).

    python vae.py --uncond                            no condition: z holds type, angle and aspect
    python vae.py --train --uncond --out outputs/me   train from scratch, then sample
    python vae.py --train --beta 1 --out outputs/b1   a latent closer to N(0, I), worse crystals
    torchrun --standalone --nproc_per_node=2 -- vae.py --train      the same, by two processes

beta is the weight of the KL in the loss.  Given its condition, a crystal of type 0, 2 or 3 is one
image, and there is nothing left for z to say: at its optimum a conditional VAE ignores z there.  It
is the unconditional VAE whose prior has to know crystals, and latent_prior.py learns that prior.

VAE: Kingma and Welling 2014 (arXiv 1312.6114).  Free bits: Kingma et al. 2016 (1606.04934).
"""

import math
import time
from dataclasses import dataclass
from functools import partial

import data
from common import latents, runs
from common.blocks import Block, channels_last
from common.cli import flag, path
from common.crystal_job import TrainingCrystals, conditions
from common.devices import alone, autocast, processes
from common.files import write_npz
from common.loop import Trainer
from common.options import Crystals
from common.sampling import in_batches
from common.seeds import generator, noise_of

import torch
import torch.nn.functional as F
from torch import nn

PRIORS = {"normal": "z from N(0, I)", "mop": "z from MoP"}
BATCH = 64  # images that go through the network at a time
EVALUATED = 256  # held-out crystals that the log of a training is about
HELD_OUT = 512  # those that metrics.json is about
PROBED = 2048  # those that tell what a latent knows
CURVES = (
    ("training, z drawn: squared error per pixel", "mse_per_pixel"),
    ("KL, nats an image", "kl_nats"),
    ("held out, averaged weights, mean z: RMSE per pixel", "held_out.reconstruction_rmse"),
)


@dataclass(kw_only=True)
class Config(Crystals):
    script = "vae"

    uncond: bool = flag.model(False, "encoder and decoder see no condition")
    z_dim: int = flag.model(32, "latents", low=1, high=1024)
    beta: float = flag.model(0.05, "weight of the KL; pixel variance is beta / 2", above=0)
    beta_warmup: int = flag.training(1000, "steps over which beta rises from 0", low=0)
    free_bits: float = flag.training(0.0, "nats of a latent that cost nothing more", low=0)
    cond_drop: float = flag.training(0.0, "share of training without condition", low=0, high=1)
    train_steps: int = flag.training(8000, "optimizer steps", low=1)
    lr: float = flag.training(2e-3, "learning rate after the warm-up", above=0)

    data_path: str | None = flag.run(
        None, "file of data.py --build: the training set (default: rendered)", parse=path
    )
    n: int = flag.sampling(36, "samples of each prior", low=1, also="--n-samples")

    @property
    def shipped(self):
        return "vae_uncond.pt" if self.uncond else "vae_cond.pt"

    def settle(self, typed):
        super().settle(typed)
        if self.uncond:
            self.refuse(typed, "cond_drop", because="--uncond has no condition")


# ------------------------------------------------------------------------------ the network


class Encoder(nn.Module):
    """mu and log s^2 of q(z | x, c), [N, z_dim] each, for images [N, 1, H, H].

    Convolutions on cells of 4 x 4 pixels, then a layer that sees all places.
    """

    def __init__(self, img_size, z_dim, widths=(32, 64), d_emb=64):
        super().__init__()
        a, b = widths
        flat = b * (img_size // 16) ** 2 + d_emb
        self.embed = nn.Sequential(nn.Linear(data.FEATURES, d_emb), nn.SiLU())
        self.stem = nn.Conv2d(16, a, 3, padding=1)
        self.enc1 = Block(a, d_emb, groups=2)
        self.down1 = nn.Conv2d(a, b, 2, stride=2)
        self.enc2 = Block(b, d_emb)
        self.down2 = nn.Conv2d(b, b, 2, stride=2)
        self.head = nn.Sequential(nn.Linear(flat, 512), nn.SiLU(), nn.Linear(512, 2 * z_dim))

    def forward(self, x, condition):
        emb = self.embed(condition.features())
        h = self.stem(channels_last(F.pixel_unshuffle(x, 4)))  # (N, a, H/4, H/4)
        h = self.down1(self.enc1(h, emb))  # (N, b, H/8, H/8)
        h = self.down2(self.enc2(h, emb))  # (N, b, H/16, H/16)
        mu, log_var = self.head(torch.cat([F.silu(h).flatten(1), emb], 1)).float().chunk(2, 1)
        return mu, log_var.clamp(-14, 6)


class Decoder(nn.Module):
    """x_hat of p(x | z, c), [N, 1, H, H]: plane waves on cells of 4 x 4 pixels, then convolutions.

    A crystal is a sum of plane waves around the image centre.  z and c choose a few linear maps A
    of the coordinates (turns, stretches, shears: which is learned).  In mapped coordinates the
    waves are 16, 8, 4, 2 and 1 lattice constants long: the longest find the angle from afar, the
    shortest say where in the lattice a cell lies.
    """

    def __init__(self, img_size, z_dim, maps=4, width=64, d_emb=256):
        super().__init__()
        self.cells = img_size // 4
        self.embed = nn.Sequential(
            nn.Linear(z_dim + data.FEATURES, d_emb), nn.SiLU(), nn.Linear(d_emb, d_emb), nn.SiLU()
        )
        self.maps = nn.Linear(d_emb, 4 * maps)
        self.stem = nn.Conv2d(2 * maps * 11 + 2, width, 1)
        self.blocks = nn.ModuleList(Block(width, d_emb) for _ in range(2))
        self.norm = nn.GroupNorm(4, width)
        self.out = nn.Conv2d(width, 16, 3, padding=1)

        # At first the maps are turns, by angles spread over the range of the data.
        turn = torch.arange(maps) * math.pi / 3 / maps
        rotations = torch.stack([turn.cos(), turn.sin(), -turn.sin(), turn.cos()], 1)
        nn.init.normal_(self.maps.weight, std=0.02)
        with torch.no_grad():
            self.maps.bias.copy_(rotations.flatten())

    def forward(self, z, condition):
        emb = self.embed(torch.cat([z, condition.features()], 1))
        with torch.autocast(z.device.type, enabled=False):  # positions need all their digits
            waves = self.waves(emb.float())
        h = self.stem(channels_last(waves))  # (N, width, H/4, H/4)
        for block in self.blocks:
            h = block(h, emb)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), 4).float()

    def waves(self, emb):
        """Mapped coordinates A r, their waves, and r itself: [N, 22 maps + 2, cells, cells].

        r: the centres of the cells, from the image centre, in units of 32 pixels.
        """
        n = self.cells
        A = self.maps(emb).view(len(emb), -1, 2)  # (N, 2 maps, 2)
        centre = (4 * torch.arange(n, device=emb.device) + 1.5 - 2 * n) / 32
        r = torch.stack([centre.expand(n, n), centre[:, None].expand(n, n)]).flatten(1)  # (2, n n)
        uv = A @ r  # (N, 2 maps, n n)

        waves_per_unit = 32 / data.SPACING * 2.0 ** torch.arange(-4, 1, device=emb.device)
        phase = (2 * math.pi * uv[:, :, None] * waves_per_unit[:, None]).flatten(1, 2)
        waves = torch.cat([uv, phase.sin(), phase.cos(), r.expand(len(emb), -1, -1)], 1)
        return waves.unflatten(2, (n, n))


class VAE(nn.Module):
    """Encoder and decoder, 1 M parameters.  An unconditional one keeps the condition from both."""

    def __init__(self, encoder, decoder, uncond=False):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.uncond = uncond

    def forward(self, x, condition, eps):
        """What the loss needs: x_hat for one draw of z, mu and log s^2."""
        mu, log_var = self.encode(x, condition)
        return self.decode(reparameterise(mu, log_var, eps), condition), mu, log_var

    def encode(self, x, condition):
        return self.encoder(x, condition.dropped() if self.uncond else condition)

    def decode(self, z, condition):
        return self.decoder(z, condition.dropped() if self.uncond else condition)


def build(config):
    encoder = Encoder(config.img_size, config.z_dim)
    return VAE(encoder, Decoder(config.img_size, config.z_dim), config.uncond)


def reparameterise(mu, log_var, eps):
    """z = mu + s eps, a draw of q through which gradients reach mu and s."""
    return mu + (log_var / 2).exp() * eps


# ------------------------------------------------------------------------------ the loss


def kl_nats(mu, log_var):
    """KL(N(mu, s^2) || N(0, 1)) of each latent of each image, in nats: [N, z_dim]."""
    return (mu.square() + log_var.exp() - 1 - log_var) / 2


def loss_of(x, x_hat, mu, log_var, beta, free_bits=0.0):
    """|x - x_hat|^2 + beta sum_j max(KL_j, free_bits), with KL_j the mean over the batch.

    The square is summed over pixels and averaged over images.  Also the terms, by name.
    """
    square = (x - x_hat).square().flatten(1).sum(1).mean()
    kl = kl_nats(mu, log_var).mean(0)  # (z_dim,)
    loss = square + beta * kl.clamp_min(free_bits).sum()
    terms = {
        "mse_per_pixel": square / x[0].numel(),
        "kl_nats": kl.sum(),
        "free_bits_added_nats": (free_bits - kl).relu().sum(),
    }
    return loss, terms


def elbo_nats(x, x_hat, mu, log_var, beta):
    """Evidence lower bound of each image [N], one draw of z each: pixels of variance beta / 2."""
    square = (x - x_hat).square().flatten(1).sum(1)
    D = x[0].numel()
    return -square / beta - D / 2 * math.log(math.pi * beta) - kl_nats(mu, log_var).sum(1)


# ------------------------------------------------------------------------------ the training


def train(net, run):
    """Train until --train-steps; returns the network to sample with."""
    config = run.config
    n = config.batch_size
    if config.free_bits and processes() > 1:  # its KL is that of the whole batch
        raise ValueError("--free-bits works in one process only: leave torchrun out")
    crystals = TrainingCrystals(run, signed=False)
    crystals.nearest(conditions(config))  # a type without examples for MoP is refused now
    held_out = crystals.batch(0, EVALUATED, held_out=True)

    trainer = Trainer(net, run, report_every=250, curves=CURVES)
    for step in trainer.steps():
        x, condition = crystals.batch(step, n)  # x in [0, 1]: (n, 1, H, H)

        # Each process draws the whole batch and keeps its rows: several take the step of one.
        g = generator(config.seed, step, 0)
        eps = torch.randn(n, config.z_dim, generator=g)
        known = torch.rand(n, generator=g) >= config.cond_drop  # the rest is unconditional
        condition = condition._replace(known=known).rows(trainer.rows).to(run.device)
        x, eps = (v[trainer.rows].to(run.device) for v in (x, eps))

        beta = config.beta * min(1, (step + 1) / max(1, config.beta_warmup))
        with trainer.autocast():
            x_hat, mu, log_var = trainer.module(x, condition, eps)
        loss, terms = loss_of(x, x_hat, mu, log_var, beta, config.free_bits)
        trainer.update(loss, clip=10.0, **terms)
        if trainer.report_due:
            with alone():
                numbers, _ = evaluate(trainer.ema, run, *held_out)
            trainer.report(beta=beta, held_out=numbers)
    return trainer.trained()


def evaluate(net, run, x, condition):
    """Numbers of held-out images x [N, 1, H, H] in [0, 1], and their reconstructions.

    The evidence bound takes one draw of z an image, with noise from (0, image); a reconstruction
    is decoded from the mean of z.
    """
    mu, log_var = encode(net, run, x, condition)
    eps = noise_of([generator(0, 2, i) for i in range(len(x))], mu.shape[1:])
    x_hat = decode(net, run, reparameterise(mu, log_var, eps), condition)
    recon = decode(net, run, mu, condition).clamp(0, 1)

    elbo = elbo_nats(x, x_hat, mu, log_var, run.trained.beta)  # (N,)
    kl = kl_nats(mu, log_var)  # (N, z_dim)
    return latents.held_out_numbers(elbo, kl, recon - x), recon


@torch.no_grad()
def encode(net, run, x, condition):
    """mu and log s^2, [N, z_dim] each, of images in [0, 1]; all on the CPU."""

    def posteriors(rows):
        with autocast(run.device, run.config.precision):
            mu, log_var = net.encode(x[rows].to(run.device), condition.rows(rows).to(run.device))
        return torch.cat([mu, log_var], 1).cpu()

    return in_batches(len(x), BATCH, posteriors, "encoding").chunk(2, 1)


@torch.no_grad()
def decode(net, run, z, condition):
    """x_hat [N, 1, H, H], not clipped, of latents [N, z_dim]; all on the CPU."""

    def images(rows):
        with autocast(run.device, run.config.precision):
            x_hat = net.decode(z[rows].to(run.device), condition.rows(rows).to(run.device))
        return x_hat.cpu()

    return in_batches(len(z), BATCH, images)


# ------------------------------------------------------------------------------ the priors


def draw(net, run, prior, condition):
    """Images [N, 1, H, H] in [0, 1] under a prior, "normal" or "mop".

    The noise of image i depends on (seed, i) alone.
    """
    config = run.config
    noise = [generator(config.seed, 1, i) for i in range(len(condition.kind))]
    z = noise_of(noise, (config.z_dim,))  # from N(0, I)
    if prior == "mop":
        crystals = TrainingCrystals(run, signed=False)
        examples = crystals.examples(crystals.nearest(condition))
        z = reparameterise(*encode(net, run, *examples), eps=z)
    return decode(net, run, z, condition).clamp(0, 1)


# ------------------------------------------------------------------------------ the sampling


def sample(net, run):
    """--n crystals from each prior: images {prior: [n, 1, H, H]}, and the seconds it took."""
    start = time.perf_counter()
    condition = conditions(run.config)
    images = {prior: draw(net, run, prior, condition) for prior in PRIORS}
    return images, time.perf_counter() - start


def report(samples, net, run):
    """Pictures of reconstructions, samples and latents, samples.npz, the numbers and the words."""
    config = run.config
    out = run.out
    images, seconds = samples
    condition = conditions(config)
    crystals = TrainingCrystals(run, signed=False)
    arrays = {f"x_{prior}": x for prior, x in images.items()}
    arrays |= {"kind": condition.kind, "theta": condition.cont[:, 1]}
    write_npz(out / "samples.npz", x=images["mop"], **arrays)

    # Held-out crystals there and back.
    x, of_x = crystals.batch(0, HELD_OUT, held_out=True)
    held_out, recon = evaluate(net, run, x, of_x)
    latents.reconstruction_page(out / "reconstructions.png", x, recon, of_x)

    # Samples beside true crystals.
    unconditional = ["normal"] if config.uncond else []
    numbers, words = latents.prior_pages(out, images, PRIORS, condition, config, unconditional)

    # What each latent knows of held-out crystals, and what happens when it moves.
    batches = (crystals.batch(i, BATCH, held_out=True) for i in range(PROBED // BATCH))
    parts = [encode(net, run, *batch) for batch in batches]
    mu, log_var = (torch.cat(part) for part in zip(*parts, strict=True))  # (PROBED, z_dim) each
    kl = kl_nats(mu, log_var).mean(0)
    table = latents.latent_table(mu, kl, crystals.held_out_labels(PROBED))
    decoded = partial(decode, net, run)
    latents.traversal_page(out / "traversal.png", mu, table["latent"][:6], crystals, decoded)

    numbers |= {"held_out": held_out, "latents": table, "n": config.n, "seconds": seconds}
    words = [latents.describe_held_out(held_out), *words, latents.describe_table(table)]
    return numbers, "\n".join(words)


def main(argv=None):
    runs.main(Config, build, train, sample, report, argv)


if __name__ == "__main__":
    main()
