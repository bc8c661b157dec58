"""Sharp digits from a bottleneck of 12 numbers: a beta-VAE, alone and with an adversary.

    simple      loss = |x - x_hat|^2 + beta KL(q(z | x) || N(0, I)),  x_hat = decoder(mu + s eps)
    composite   loss + p d(x, x_hat) + a w log(1 + exp(-D(y))), the last for the decoder alone

d(x, y) sums |f(x)/|f(x)| - f(y)/|f(y)||^2 over the layers of a classifier with features f, means
over places.  D minimises log(1 + exp(-D(x))) + log(1 + exp(D(y))), a logit for every patch of an
image; y are reconstructions and samples decoder(z), z ~ N(0, I).  w = min(cap, |g_rec| / |g_adv|),
norms of the gradients at the last layer of the decoder.

    python vae_gan.py --compare

draws 10,000 samples from each scheme with the checkpoints that ship, in about a minute, and writes
compare.png, samples_simple.npz, samples_composite.npz and metrics.json to outputs/vae_gan/compare/.

    python vae_gan.py --scheme simple --z-dim 2         two latents, and the map of them: map.png
    python vae_gan.py --train --out outputs/mine        train (downloads MNIST), then sample
    python vae_gan.py --train --cond                    encoder and decoder are given the digit
    python vae_gan.py --train --data fashion            clothes instead of digits
    python vae_gan.py --compare --ckpt SIMPLE --against COMPOSITE       two runs of your own

A squared error asks for the mean of all digits that z leaves possible, a blur.  The adversary asks
for a digit that could be real, and because it sees samples of the prior, everywhere in latent
space.  Nothing of it reaches the encoder: what z means is a matter of reconstruction and KL.

VAE-GAN: Larsen et al. 2016 (arXiv 1512.09300).  PatchGAN: Isola et al. 2017 (1611.07004).
LPIPS: Zhang et al. 2018 (1801.03924).  Adaptive weight: Esser et al. 2021 (2012.09841).
Spectral norm: Miyato et al. 2018 (1802.05957).
"""

import time
from dataclasses import dataclass
from functools import partial

from common import cli, digit_job, options, runs
from common.blocks import channels_last
from common.classifier import CLASSIFIERS, load_classifier, make_classifier, perceptual_network
from common.cli import flag
from common.datasets import load
from common.devices import alone, autocast, average_over_processes, dealt_rows, started_by_torchrun
from common.loop import Trainer, learning_rate, set_learning_rate
from common.sampling import in_batches
from common.seeds import generator, noise_of
from vae import kl_nats, loss_of, reparameterise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

N_TEST = 512  # test digits that are reconstructed while training
PART = 250  # images that are worked on at a time
GAIN = 40  # of the logits of D
RAMP = 500  # steps over which the adversary's weight rises, once it has started


@dataclass(kw_only=True)
class Config(options.Training):
    script = "vae_gan"
    unsaid = {"data": "mnist"}

    data: str = flag.model("mnist", "digits, or clothes: Fashion-MNIST", choices=tuple(CLASSIFIERS))
    scheme: str = flag.model("composite", "simple: no d, no D", choices=("simple", "composite"))
    z_dim: int = flag.model(12, "latents", low=1, high=1024)
    beta: float = flag.model(3.0, "weight of the KL; pixel variance is beta / 2", above=0, high=1e6)
    cond: bool = flag.model(False, "encoder and decoder are given the digit")
    train_steps: int = flag.training(36_000, "optimizer steps", low=1)
    batch_size: int = flag.training(64, "digits a step", low=1)
    beta_warmup: int = flag.training(500, "steps over which beta rises from 0", low=0)
    free_bits: float = flag.training(0.0, "nats a latent may hold at a fixed price", low=0)
    perceptual: float = flag.training(10.0, "weight p of d; 0 switches it off", low=0)
    adversarial: float = flag.training(1.0, "weight a; 0 switches it off", low=0)
    adversarial_cap: float = flag.training(100.0, "the largest adaptive weight w", above=0)
    critic_start: int = flag.training(500, "steps before the adversary starts", low=0)
    critic_lr: float = flag.training(2e-3, "learning rate of D", above=0)

    n: int = flag.sampling(10_000, "samples of the prior", low=1, also="--n-samples")
    label: int | None = flag.sampling(None, "one digit (default: 0 to 9 in turn)", low=0, high=9)
    compare: bool = flag.sampling(False, "both schemes side by side: the table and the picture")
    against: str | None = flag.sampling(None, "--compare: composite; --ckpt simple", parse=cli.path)
    classifier: str | None = flag.sampling(None, "file of a held-out classifier", parse=cli.path)
    make_classifier: bool = flag.sampling(False, "train such a classifier: classifier.pt")
    data_dir: str = flag.run("data", "folder that holds the images, or will", parse=cli.path)

    @property
    def shipped(self):
        if self.compare or self.make_classifier:
            return None
        if not self.ckpt and (self.cond or self.data != "mnist"):
            what = "--cond" if self.cond else f"--data {self.data}"
            raise ValueError(f"no {what} network ships: train one with --train, or name its --ckpt")
        is_map = self.scheme == "simple" and self.z_dim == 2
        return "vae_gan_map.pt" if is_map else f"vae_gan_{self.scheme}.pt"

    def settle(self, typed):
        if self.make_classifier:
            others = {*cli.names(Config, "model", "sampling")} - {"data", "make_classifier"}
            why = "--make-classifier trains that classifier and nothing else"
            self.refuse(typed, "train", "ckpt", *sorted(others), because=why)
            return

        if self.compare:
            of_one = ("train", "data", "scheme", "z_dim", "beta", "cond", "label")
            self.refuse(typed, *of_one, because="--compare takes two networks that are trained")
        else:
            self.refuse(typed, "against", because="it is the second run of --compare")

        if not self.cond:
            self.refuse(typed, "label", because="the network is not conditional (--cond)")
            self.label = None

        adversary = ("adversarial_cap", "critic_start", "critic_lr")
        if self.scheme == "simple":
            terms = ("perceptual", "adversarial", *adversary)
            self.refuse(typed, *terms, because="--scheme simple has no such term")
        if self.adversarial == 0:
            self.refuse(typed, *adversary, because="--adversarial 0 switches the adversary off")
        if self.train and self.free_bits and started_by_torchrun():
            raise ValueError("--free-bits is about the KL of whole batches: train in one process")
        if not self.compare:  # that there is a classifier, before the work
            load_classifier(self.classifier, self.data)

    def epoch(self):
        return len(load(self.data, self.data_dir, train=True)[0])


# ------------------------------------------------------------------------------ the networks


def with_digit(h, digit, cond):
    """Features [N, F], and in a conditional network the digit [N] beside them, as 10 numbers."""
    return torch.cat([h, F.one_hot(digit, 10).to(h.dtype)], 1) if cond else h


class Encoder(nn.Module):
    """mu and log s^2 of q(z | x) for images [N, 1, 28, 28]: convolutions on 4 x 4 cells."""

    def __init__(self, z_dim, cond, width=64):
        super().__init__()
        self.z_dim = z_dim
        self.cond = cond
        self.conv1 = nn.Conv2d(16, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        flat = 49 * width + 10 * cond
        self.head = nn.Sequential(nn.Linear(flat, 256), nn.SiLU(), nn.Linear(256, 2 * z_dim))

    def forward(self, x, digit):
        h = F.silu(self.conv1(channels_last(F.pixel_unshuffle(x, 4))))  # (N, width, 7, 7)
        h = F.silu(self.conv2(h))
        mu, log_var = self.head(with_digit(h.flatten(1), digit, self.cond)).float().chunk(2, 1)
        return mu, log_var.clamp(-14, 6)  # (N, z_dim) each


class Decoder(nn.Module):
    """x_hat of p(x | z), [N, 1, 28, 28] in (0, 1): the mirror of the encoder."""

    def __init__(self, z_dim, cond, width=64):
        super().__init__()
        self.cond = cond
        self.width = width
        flat = z_dim + 10 * cond
        self.head = nn.Sequential(nn.Linear(flat, 256), nn.SiLU(), nn.Linear(256, 49 * width))
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 16, 3, padding=1)

    def forward(self, z, digit):
        h = F.silu(self.head(with_digit(z, digit, self.cond))).view(-1, self.width, 7, 7)
        h = F.silu(self.conv1(channels_last(h)))
        h = h + F.silu(self.conv2(h))
        return F.pixel_shuffle(self.out(h), 4).float().sigmoid()


class VAE(nn.Module):
    """Encoder and decoder, 1.7 M parameters."""

    def __init__(self, z_dim=12, cond=False):
        super().__init__()
        self.encode = Encoder(z_dim, cond)
        self.decode = Decoder(z_dim, cond)


class Critic(nn.Module):
    """D: logits [N, 1, 7, 7], each of a patch of 28 x 28 pixels, 4 pixels apart.

    The patches overlap, and the one in the middle is the image: samples are to be whole digits.
    Spectral norms keep the gain of every layer at 1 at most, so that D stays smooth where it is
    sure.  GAIN lets it be sure at all: without it all logits lie near 0, and a hopeless sample
    pulls no harder than a good one.
    """

    def __init__(self, width=64):
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(16, width, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.conv3 = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.out = spectral_norm(nn.Conv2d(width, 1, 1))

    def forward(self, x):
        h = channels_last(F.pixel_unshuffle(x, 4))
        for layer in (self.conv1, self.conv2, self.conv3):
            h = F.leaky_relu(layer(h), 0.2)
        return GAIN * self.out(h).float()


def build(config):
    """The VAE: of either scheme, for the same seed, the same fresh weights."""
    return VAE(config.z_dim, config.cond)


# ------------------------------------------------------------------------------ the loss


def perceptual(classifier, x, y):
    """d(x, y): LPIPS in the features of our own classifier."""
    total = 0
    for a, b in zip(classifier.features(x), classifier.features(y), strict=True):
        a = F.normalize(a.float(), dim=1)  # unit vectors over the channels
        b = F.normalize(b.float(), dim=1)
        total = total + (a - b).square().sum(1).mean()
    return total


def critic_loss(real, fake):
    """What D minimises, given its logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def adversarial_loss(fake):
    """What the decoder minimises, given the logits of what it made."""
    return F.softplus(-fake).mean()


def adaptive_weight(g_rec, g_adv, cap):
    """w: the adversary pulls as hard at the last layer as the reconstruction does."""
    return (g_rec.norm() / g_adv.norm().clamp_min(1e-12)).clamp_max(cap)


def pull(decoder, fake, strength, cap):
    """Add strength w g_adv to the gradients of the decoder, and of nothing else; returns w."""
    names, parameters = zip(*decoder.named_parameters(), strict=True)
    g_adv = torch.autograd.grad(adversarial_loss(fake), parameters, retain_graph=True)
    average_over_processes(g_adv)

    g_last = g_adv[names.index("out.weight")]
    w = adaptive_weight(decoder.out.weight.grad, g_last, cap)
    for p, g in zip(parameters, g_adv, strict=True):
        p.grad.add_(g, alpha=strength * w.item())
    return w


# ------------------------------------------------------------------------------ the training


def train(net, run):
    """Train until --train-steps; returns the network to sample with."""
    config = run.config
    n = config.batch_size
    x_u8, labels = load(config.data, config.data_dir, train=True)
    run.check_content("data_dir", {"x_u8": x_u8, "labels": labels})
    test_u8, test_labels = load(config.data, config.data_dir, train=False)
    test = test_u8[:N_TEST].float() / 255

    # The critic belongs to the scheme composite; so does a classifier, for its features.
    how = dict(betas=(0.5, 0.99), weight_decay=0.0)
    critic = runs.seeded(Critic, config.seed + 1).to(run.device)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), config.critic_lr, fused=True, **how)
    composite = config.scheme == "composite"
    extra = dict(critic=critic, critic_optimizer=critic_optimizer) if composite else {}
    trainer = Trainer(net, run, report_every=250, extra=extra, curves=digit_job.CURVES, **how)
    start = config.critic_start if composite and config.adversarial else config.train_steps
    classifier = None
    if composite and config.perceptual:  # of seed and data alone: a resumed run has the same one
        classifier = perceptual_network(x_u8, labels, run)

    own = dealt_rows()  # so that each process has its share of the first half
    for step in trainer.steps():
        rows = torch.randint(len(x_u8), (n,), generator=generator(config.seed, step, 1))[own]
        x = (x_u8[rows].float() / 255).to(run.device)  # (n, 1, 28, 28)
        digit = labels[rows].to(run.device)

        g = generator(config.seed, step, 0)
        eps = torch.randn(n, config.z_dim, generator=g)[own].to(run.device)
        z_prior = torch.randn(n, config.z_dim, generator=g)[own].to(run.device)

        with trainer.autocast():
            mu, log_var = net.encode(x, digit)
            x_hat = net.decode(reparameterise(mu, log_var, eps), digit)
            d = perceptual(classifier, x, x_hat) if classifier else x.new_zeros(())

        beta = config.beta * min(1, (step + 1) / max(1, config.beta_warmup))
        loss, terms = loss_of(x, x_hat, mu, log_var, beta, config.free_bits)
        loss = loss + config.perceptual * d

        trainer.optimizer.zero_grad()
        loss.backward(retain_graph=step >= start)
        average_over_processes([p.grad for p in net.parameters()])

        # The adversary pulls at the decoder, and then it learns.
        if step >= start:
            with trainer.autocast():
                fake = critic(torch.cat([x_hat[: len(x) // 2], net.decode(z_prior, digit)]))
                real = critic(x)
            ramp = min(1, (step + 1 - start) / RAMP)
            w = pull(net.decode, fake, config.adversarial * ramp, config.adversarial_cap)

            critic_optimizer.zero_grad()
            critic_loss(real, fake).backward(inputs=list(critic.parameters()))
            average_over_processes([p.grad for p in critic.parameters()])
            lr = learning_rate(step, config.train_steps, config.critic_lr)
            set_learning_rate(critic_optimizer, lr)
            critic_optimizer.step()
            means = dict(d_real=real.sigmoid().mean(), d_fake=fake.sigmoid().mean())
            terms |= dict(adversarial_weight=w, **means)

        # Clipped apart, so that the adversary cannot reach the encoder through a common norm.
        halves = (net.encode, net.decode)
        norm = sum(nn.utils.clip_grad_norm_(half.parameters(), 50.0) for half in halves)
        trainer.apply(norm, loss=loss, perceptual=d, **terms)

        if trainer.report_due:
            with alone():
                x_hat, _ = reconstruct(trainer.ema, test, test_labels[:N_TEST], run)
            trainer.report(beta=beta, held_out_mse=(x_hat - test).square().mean().item())
    return trainer.trained()


# ------------------------------------------------------------------------------ the sampling


@torch.no_grad()
def encode(net, x, digit, run):
    """mu and log s^2 of a batch, beside each other on the CPU: [N, 2 z_dim]."""
    with autocast(run.device, run.config.precision):
        return torch.cat(net.encode(x.to(run.device), digit.to(run.device)), 1).cpu()


@torch.no_grad()
def decode(net, z, digit, run):
    """Images [N, 1, 28, 28] of a batch, on the CPU.  digit: [N], or [1] for all of them."""
    digit = digit.to(run.device).expand(len(z))
    with autocast(run.device, run.config.precision):
        return net.decode(z.to(run.device), digit).cpu()


def draw(net, digit, run):
    """A sample for each condition; the noise of sample i depends on (seed, i) alone."""

    def decoded(rows):
        generators = [generator(run.config.seed, 1, i) for i in range(rows.start, rows.stop)]
        return decode(net, noise_of(generators, (net.encode.z_dim,)), digit[rows], run)

    return in_batches(len(digit), PART, decoded)


def reconstruct(net, x, digit, run):
    """From the posterior means: x_hat, and the KL of each latent in nats [N, z_dim]."""
    both = in_batches(len(x), PART, lambda rows: encode(net, x[rows], digit[rows], run), "encoding")
    mu, log_var = both.chunk(2, 1)
    x_hat = in_batches(len(x), PART, lambda rows: decode(net, mu[rows], digit[rows], run))
    return x_hat, kl_nats(mu, log_var)


def drawn_from(net, run):
    """A digit_job.Drawn: samples, and reconstructions of test digits."""
    start = time.perf_counter()
    digit = digit_job.conditions(run.config)
    x = draw(net, digit, run)
    x_hat, kl = reconstruct(net, *digit_job.test_digits(run.config), run)
    known = digit if net.encode.cond else None
    return digit_job.Drawn(x, known, x_hat, kl, time.perf_counter() - start, run)


def sample(net, run):
    """{scheme: Drawn} of the network, or with --compare of two; None with --make-classifier."""
    if run.config.make_classifier:
        return None
    if run.config.compare:
        pair = digit_job.opened_pair(build, run)
        return {scheme: drawn_from(*network) for scheme, network in pair.items()}
    return {run.config.scheme: drawn_from(net, run)}


def report(drawn, net, run):
    """Samples, pictures and numbers; or classifier.pt, and what that says of real digits."""
    config = run.config
    if config.make_classifier:
        return make_classifier(run)
    if not config.compare:
        decoded = partial(decode, net, digit=digit_job.conditions(config)[:1], run=run)
        digit_job.draw_map(run.out / "map.png", drawn[config.scheme].kl.mean(0), decoded)
    return digit_job.report_digits(drawn, run)


def main(argv=None):
    runs.main(Config, build, train, sample, report, argv)


if __name__ == "__main__":
    main()
