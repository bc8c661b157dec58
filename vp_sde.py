"""Crystals out of noise: a score model of the variance-preserving SDE, trained on toy crystals and run backwards.

    x_t = alpha_t x_0 + sigma_t eps,          alpha_t = exp(-B(t)/2),  sigma_t^2 = 1 - exp(-B(t)),  beta(t) = B'(t)
    dx  = [-beta x/2 - beta score(x, t)] dt + sqrt(beta) dW,  run from t = 1 to 0,  with  score = -eps_theta / sigma_t
    eps = eps_u + w (eps_c - eps_u)           classifier-free guidance: w = 0 unconditional, w = 1 plain conditional

    python vp_sde.py --steps 300 --cfg 1.5

draws 36 crystals from the checkpoint that ships and writes samples.png, reverse_diffusion.gif, samples.npz and
metrics.json to outputs/vp_sde/crystals_sde_seed0/.  Other lessons:

    python vp_sde.py --sampler dpmpp --steps 10       the same conditions by 10 network calls
    python vp_sde.py --oracle                         the same sampler with the exact denoiser: all error is its own
    python vp_sde.py --cfg 0                          no condition: the network has to invent type, angle and aspect
    python vp_sde.py --train --out outputs/mine       train from nothing, then sample
    torchrun --standalone --nproc_per_node=2 vp_sde.py --train        the same steps, by two processes
    python vp_sde.py --data S                         the same loop and samplers on 2-D points: a learned letter S

VP-SDE: Song et al. 2021 (arXiv 2011.13456).  v-prediction: Salimans and Ho 2022 (2202.00512).  DPM-Solver++(2M): Lu et
al. 2022 (2211.01095).  Guidance: Ho and Salimans 2022 (2207.12598).  Left out: likelihoods (see reference_gmm_sde.py).
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy>=2.2,<3", "matplotlib>=3.10,<4", "imageio>=2.37,<3", "pillow>=11",
#                 "tqdm>=4.66,<5", "pooch>=1.8,<2"]
# ///

import argparse
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import data
import metrics
import pictures
import reference_gmm_sde as reference
import training
from make_gif import save_gif

MODEL_FLAGS = ("data", "mode", "img_size", "n_types", "beta_min", "beta_max")  # the checkpoint knows these

# --------------------------------------------------------------------------------------------------------- the schedule


@dataclass(frozen=True)
class VP:
    """The VP schedule with a linear beta(t).  Only B is defined, the rest is derived.  t: a tensor in [0, 1]."""

    beta_min: float = 0.1
    beta_max: float = 30.0

    def B(self, t):  # integral of beta from 0 to t
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def beta(self, t):
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def alpha_sigma(self, t):
        """alpha_t and sigma_t, the kernel x_t = alpha x_0 + sigma eps.  sqrt(1 - alpha^2) would lose digits near 0."""
        return torch.exp(-self.B(t) / 2), torch.sqrt(-torch.expm1(-self.B(t)))

    def log_snr(self, t):
        """log(alpha^2 / sigma^2)."""
        return -self.B(t) - torch.log(-torch.expm1(-self.B(t)))

    def at(self, t: float):
        """beta, alpha and sigma of one time as Python numbers, computed in float64: what a step is made of."""
        t = torch.tensor(t, dtype=torch.float64)
        return float(self.beta(t)), *(float(v) for v in self.alpha_sigma(t))


def like(v, x):
    """[N] to [N, 1, 1, ...], so that one number a sample multiplies points, latents or images alike."""
    return v.reshape(-1, *[1] * (x.ndim - 1))


# ---------------------------------------------------------------------------------------------------------- the network


def waves(v, low, high, n):
    """sin and cos of v at n frequencies spaced geometrically from low to high: [..., 2 n]."""
    angle = v[..., None] * torch.logspace(math.log10(low), math.log10(high), n, device=v.device)
    return torch.cat([angle.sin(), angle.cos()], -1)


class Block(nn.Module):
    """Two 3x3 convolutions around a FiLM: the embedding of time and condition scales and shifts every channel."""

    def __init__(self, width, d_emb):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, width), nn.GroupNorm(4, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(d_emb, 2 * width)
        nn.init.zeros_(self.conv2.weight)  # a new block is the identity
        nn.init.zeros_(self.conv2.bias)

    def forward(self, h, emb):
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, 1)
        r = self.conv1(F.silu(self.norm1(h)))
        return h + self.conv2(F.silu(torch.addcmul(shift, self.norm2(r), 1 + scale)))  # FiLM: norm (1 + scale) + shift


class UNet(nn.Module):
    """v_theta(x_t, t, c) for images [N, 1, H, W], H a multiple of 16; 2.7 M parameters, three resolutions.

    It works on 4 x 4 cells of pixels, which makes it cheap enough for a laptop.  It has to know where it is, because
    the lattice is laid out around the image centre: zero padding would tell only the border, so every cell gets its
    coordinates and a few sines of them, *turned by the angle that is asked for* (unturned without a condition).  The
    turn spares the network from learning products of position and angle to a hundredth of a pixel; spacing, lattice
    and atoms it learns.
    """

    def __init__(self, schedule, widths=(64, 128, 192), d_emb=256):
        super().__init__()
        self.schedule = schedule
        a, b, c = widths
        time, told, pixels, coordinates, sines = 64, 25, 16, 2, 24  # told: what condition.features() gives
        self.embed = nn.Sequential(nn.Linear(time + told, d_emb), nn.SiLU(), nn.Linear(d_emb, d_emb), nn.SiLU())
        self.stem = nn.Conv2d(pixels + coordinates + sines, a, 3, padding=1)
        self.down1, self.enc = nn.Conv2d(a, b, 2, stride=2), Block(b, d_emb)
        self.down2, self.mid1, self.mid2 = nn.Conv2d(b, c, 2, stride=2), Block(c, d_emb), Block(c, d_emb)
        self.up2, self.dec2 = nn.Conv2d(c, 4 * b, 1), Block(b, d_emb)
        self.up1, self.dec1 = nn.Conv2d(b, 4 * a, 1), Block(a, d_emb)
        self.norm, self.out = nn.GroupNorm(4, a), nn.Conv2d(a, 16, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def embedding(self, t, condition):
        """Time as sines of its log-SNR, type and angle as features: [N, d_emb]."""
        fine = t.double().clamp_min(1e-9) if t.device.type != "mps" else t  # which has no float64
        log_snr = self.schedule.log_snr(fine)
        time = waves(log_snr.float().clamp(-20, 20) / 2, 0.1, 20, 32)
        return self.embed(torch.cat([time, condition.features()], 1))

    def position(self, cells, condition):
        """Cell centres relative to the image centre, in units of 32 px, and their sines (wavelengths 128 to 8 px).

        [N, 26, cells, cells].  A cell is 4 px, and pixel i has its centre at i: the first cell's lies at 1.5.
        """
        theta = condition.cont[:, 1] * condition.known
        centre = (4 * torch.arange(cells, device=theta.device) + 1.5 - 2 * cells) / 32
        y, x = centre[:, None], centre[None, :]
        cos, sin = theta.cos()[:, None, None], theta.sin()[:, None, None]
        uv = torch.stack([cos * x + sin * y, cos * y - sin * x], 1)  # (N, 2, cells, cells)
        return torch.cat([uv, waves(uv, math.pi / 2, 8 * math.pi, 6).permute(0, 1, 4, 2, 3).flatten(1, 2)], 1)

    def forward(self, x, t, condition):
        with torch.autocast(x.device.type, enabled=False):  # positions and angles deserve all their digits
            emb, position = self.embedding(t, condition), self.position(x.shape[-1] // 4, condition)
        # channels_last throughout: the processor's matrix units want it, and pixel_shuffle forgets it
        h1 = self.stem(torch.cat([F.pixel_unshuffle(x, 4), position], 1).contiguous(memory_format=torch.channels_last))
        h2 = self.enc(self.down1(h1), emb)
        h = self.mid2(self.mid1(self.down2(h2), emb), emb)
        h = self.dec2(h2 + F.pixel_shuffle(self.up2(h), 2).contiguous(memory_format=torch.channels_last), emb)
        h = self.dec1(h1 + F.pixel_shuffle(self.up1(h), 2).contiguous(memory_format=torch.channels_last), emb)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), 4).float()


class MLP(nn.Module):
    """v_theta(x_t, t) for points [N, 2]: the same job without pixels."""

    def __init__(self, schedule, width=256):
        super().__init__()
        self.schedule = schedule
        sizes = [2 + 32 + 32, width, width, width]
        layers = [m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x, t, condition):
        time = waves(self.schedule.log_snr(t.clamp_min(1e-6)).clamp(-20, 20) / 2, 0.1, 5, 16)
        return self.layers(torch.cat([x, waves(x, 0.5, 8, 8).flatten(1), time], 1)).float()


def build(config):
    """The network a config describes, with fresh weights that depend on its seed alone."""
    schedule = VP(config["beta_min"], config["beta_max"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        net = UNet(schedule) if config["data"] == "crystals" else MLP(schedule)
    return net.to(memory_format=torch.channels_last)


def eps_of(net, device, precision):
    """The network's public face, eps(x, t, condition): v = alpha eps - sigma x_0 inside, so eps = sigma x + alpha v."""

    def eps(x, t, condition):
        _, alpha, sigma = net.schedule.at(t)
        with training.autocast(device, precision):
            v = net(x.to(device), torch.full((len(x),), t, device=device), condition.map(lambda c: c.to(device)))
        return sigma * x + alpha * v.to(x.device)

    return eps


def exact_eps(config):
    """The same face on the closed form, a mixture's or a crystal's; None where there is none (mode full)."""
    schedule = VP(config["beta_min"], config["beta_max"])
    if config["data"] != "crystals":
        mixture = load_source(config)
        return lambda x, t, condition: torch.from_numpy(mixture.eps(x.double().numpy(), t)).to(x)
    if config["mode"] == "full":
        return None
    denoiser = metrics.ExactDenoiser(config["img_size"])
    return lambda x, t, condition: denoiser.eps(x, *schedule.at(t)[1:], condition.kind, condition.cont[:, 1])


def guided(eps, condition, w):
    """eps(x, t) under classifier-free guidance.  At w = 1 or 0 one half counts nothing and is not computed."""
    if w == 1:
        return lambda x, t: eps(x, t, condition)
    if w == 0:
        return lambda x, t: eps(x, t, condition.dropped())
    both = data.Condition(*map(torch.cat, zip(condition.dropped(), condition, strict=True)))

    def eps_w(x, t):
        eps_u, eps_c = eps(torch.cat([x, x]), t, both).chunk(2)
        return eps_u + w * (eps_c - eps_u)

    return eps_w


# --------------------------------------------------------------------------------------------------------- the samplers
# Each takes eps(x, t), a start x at times[0] and decreasing times, and yields (t, x, x0_hat).  The last thing it yields
# is (0, x0_hat, x0_hat): the prediction of x_0 from times[-1].  Steps t -> s are made of Python numbers in float64.


def x0_of(x, eps, alpha, sigma):
    """The kernel x = alpha x_0 + sigma eps, solved for x_0."""
    return (x - sigma * eps) / alpha


def reverse_sde(eps, x, times, schedule, noise):
    """Reverse SDE by Euler-Maruyama: time runs backwards, so dt = s - t is negative and the drift changes sign.

    noise: an iterable of one standard normal, shaped like x, a step.
    """
    noise = iter(noise)
    for t, s in pairwise(times):
        beta, alpha, sigma = schedule.at(t)
        e = eps(x, t)
        yield t, x, x0_of(x, e, alpha, sigma)
        score = -e / sigma
        x = x + (beta / 2 * x + beta * score) * (t - s) + math.sqrt(beta * (t - s)) * next(noise)
    yield from x0_prediction(eps, x, times[-1], schedule)


def probability_flow(eps, x, times, schedule, noise=None):
    """Probability-flow ODE, dx/dt = -beta/2 (x + score), by Heun: the mean of the slopes at both ends."""

    def slope(x, t):
        beta, alpha, sigma = schedule.at(t)
        e = eps(x, t)
        return -beta / 2 * (x - e / sigma), x0_of(x, e, alpha, sigma)

    for t, s in pairwise(times):
        d1, x0_hat = slope(x, t)
        yield t, x, x0_hat
        d2, _ = slope(x + (s - t) * d1, s)
        x = x + (s - t) * (d1 + d2) / 2
    yield from x0_prediction(eps, x, times[-1], schedule)


def dpmpp_2m(eps, x, times, schedule, noise=None):
    """Probability-flow ODE by DPM-Solver++(2M).  With lambda = log(alpha / sigma) the flow is, exactly,

        x_s = sigma_s / sigma_t x_t + sigma_s * integral of e^lambda x0_hat(lambda) dlambda from lambda_t to lambda_s,

    in which x0_hat is replaced by a constant D: extrapolated linearly from the last two calls to the middle of the
    step.  (The first step has one call only, and takes that.)
    """
    x0_before = h_before = None
    for t, s in pairwise(times):
        (_, alpha, sigma), (_, alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
        x0_hat = x0_of(x, eps(x, t), alpha, sigma)
        yield t, x, x0_hat
        h = math.log(alpha_s / sigma_s) - math.log(alpha / sigma)
        D = x0_hat if x0_before is None else x0_hat + h / (2 * h_before) * (x0_hat - x0_before)
        x = sigma_s / sigma * x - alpha_s * math.expm1(-h) * D
        x0_before, h_before = x0_hat, h
    yield from x0_prediction(eps, x, times[-1], schedule)


def x0_prediction(eps, x, t, schedule):
    _, alpha, sigma = schedule.at(t)
    x0_hat = x0_of(x, eps(x, t), alpha, sigma)
    yield t, x, x0_hat
    yield 0.0, x0_hat, x0_hat


SAMPLERS = {"sde": reverse_sde, "ode": probability_flow, "dpmpp": dpmpp_2m}


def time_grid(steps, t_end, kind, schedule):
    """Times at which a sampler calls the network `steps` times (Heun: 2 steps - 1), the last at t_end, for x_0.

    kind: uniform in t; quadratic, denser near the data; or logsnr, equal steps of log(alpha^2 / sigma^2).
    """
    vp = reference.VPSchedule(schedule.beta_min, schedule.beta_max)
    return reference.time_grid(steps - 1, 1.0, t_end, kind, vp).tolist() if steps > 1 else [1.0]


# --------------------------------------------------------------------------------------------------------- the training


def load_source(config):
    """Where training data come from: a mixture, a built file, or None for crystals rendered on the fly."""
    if config["data"] != "crystals":
        return reference.mixture(config["data"], reference.VPSchedule(config["beta_min"], config["beta_max"]))
    return data.load_built(config["data_path"]) if config["data_path"] else None


def training_batch(config, step, source, n, held_out=False):
    """x_0 in [-1, 1] (or points) and condition of training step `step`, a function of (seed, step)."""
    if config["data"] != "crystals":
        x = source.sample(n, np.random.default_rng([config["seed"], step, held_out]))
        return torch.from_numpy(x).float(), data.asked_for(n, kind=0, theta=0.0)
    x_u8, condition = training.crystal_batch(config, step, source, n, held_out)
    return x_u8.float() / 127.5 - 1, condition


def loss_of(net, schedule, x0, condition, t, eps):
    """Mean square of v - v_theta, v = alpha eps - sigma x_0: the error of eps over alpha^2, or of x_0 over sigma^2.

    v is eps near the data and -x_0 near the noise, so the target never becomes trivial: to predict eps near the noise
    would be to copy x_t.
    """
    alpha, sigma = (like(a, x0) for a in schedule.alpha_sigma(t))
    v = alpha * eps - sigma * x0
    return (net(alpha * x0 + sigma * eps, t, condition) - v).square().mean()


def update_ema(ema, net, decay, step):
    """ema <- d ema + (1 - d) net for parameters, d rising to `decay`; buffers are copied: their mean means nothing."""
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in net.parameters()], 1 - d)
    for kept, new in zip(ema.buffers(), net.buffers(), strict=True):
        kept.copy_(new)


def gradient_of(net, schedule, optimizer, config, step, source, device, rows):
    """Leave the clipped gradient of training step `step` in net; returns the loss and the norm before clipping.

    rows: this process's share of the batch.  Sets the learning rate of the step as well.
    """
    n = config["batch_size"]
    x0, condition = training_batch(config, step, source, n)
    g = training.generator(config["seed"], step, 0)
    t = (torch.arange(n) + torch.rand(n, generator=g)) / n  # one in each n-th of [0, 1]: a less noisy gradient
    eps = torch.randn(x0.shape, generator=g)
    condition = condition._replace(known=torch.rand(n, generator=g) >= config["p_uncond"])  # the rest learn w = 0
    x0, t, eps = (v[rows].to(device) for v in (x0, t, eps))
    condition = condition.map(lambda c: c[rows].to(device))
    for group in optimizer.param_groups:
        group["lr"] = training.learning_rate(step, config["train_steps"], config["lr"])
    with training.autocast(device, config["precision"]):
        loss = loss_of(net, schedule, x0, condition, t, eps)
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    return loss.item(), norm.item()


@torch.no_grad()
def score_error(eps_theta, exact, x0, condition, schedule, seed, bins=8):
    """E|eps_theta - eps*|^2 / D, the error of the score times sigma, at the middle of each of `bins` stretches of t.

    exact is the closed form eps*, so the best possible value is 0.  In mode full there is none: eps itself takes its
    place, and what is reported is the loss of an eps-predictor.  For crystals of types 0, 2, 3 the two are the same,
    because the condition leaves one image and eps* = eps; for rectangular ones, whose aspect nobody tells, the loss of
    network and closed form are reported as well.
    """
    rect, report = condition.kind == 1, {"bins": {}, "loss_rectangular": {}, "best_rectangular": {}}
    eps = torch.randn(x0.shape, generator=training.generator(seed, 2**40))
    for i in range(bins):
        t = (i + 0.5) / bins
        _, alpha, sigma = schedule.at(t)
        x = alpha * x0 + sigma * eps
        got, best = eps_theta(x, t, condition), exact(x, t, condition) if exact else eps
        report["bins"][f"{t:.2f}"] = float((got - best).square().mean())
        if rect.any():
            report["loss_rectangular"][f"{t:.2f}"] = float((got - eps)[rect].square().mean())
            report["best_rectangular"][f"{t:.2f}"] = float((best - eps)[rect].square().mean())
    return report


def train(config, out, device, checkpoint=None):
    """Train until config["train_steps"], or until Ctrl-C; writes last.pt, log.jsonl and loss.png."""
    net, source = build(config).to(device), load_source(config)
    ema, main = training.start_ema(net), training.rank() == 0
    optimizer = torch.optim.AdamW(net.parameters(), lr=config["lr"], betas=(0.9, 0.99), weight_decay=0.01)
    start = training.restore(checkpoint, net, ema, optimizer, out)
    log, total, clock = training.Log(out / "log.jsonl", start) if main else None, 0.0, training.stopwatch()
    rows, wrapped = training.my_share(config["batch_size"]), training.share_gradients(net)
    every, since = min(500, config["save_every"]), start
    exam = training_batch(config, 0, source, 64 if config["data"] == "crystals" else 4096, held_out=True)
    exact = exact_eps(config)

    with training.finish_the_step() as stop:
        for step in (bar := training.steps(start, config["train_steps"])):
            loss, norm = gradient_of(wrapped, net.schedule, optimizer, config, step, source, device, rows)
            training.check_finite(loss + norm, step + 1, out)
            optimizer.step()
            update_ema(ema, net, config["ema_decay"], step)
            loss, done, stopped = training.mean_over_processes(loss), step + 1, training.anywhere(stop)
            total, last = total + loss, done == config["train_steps"]
            if main and (done % every == 0 or last):
                eps_theta, mean = eps_of(ema, device, config["precision"]), total / (done - since)
                report = score_error(eps_theta, exact, *exam, net.schedule, config["seed"])
                log.add(step=done, loss=mean, seconds=round(clock(), 1), **report)
                bar.set_postfix(loss=f"{mean:.4f}", score_error=f"{np.mean(list(report['bins'].values())):.5f}")
                total, since = 0.0, done
            if main and (done % config["save_every"] == 0 or last or stopped):
                training.save_run(out, "vp_sde", config, done, net, ema, optimizer)
                pictures.loss_curve(out / "loss.png", log.lines)
                if config["data"] == "crystals":
                    training_samples(eps_of(ema, device, config["precision"]), config, net.schedule, out, done)
            if stopped:
                training.leave(done, config["train_steps"], out)
    return ema


# --------------------------------------------------------------------------------------------------------- the sampling


def moments(times, schedule, n=32):
    """The steps of a film: the first, n evenly spread in log-SNR from -5 on (before, all is noise), the last x_0."""
    log_snr = schedule.log_snr(torch.tensor(times, dtype=torch.float64))
    wanted = torch.linspace(max(float(log_snr[0]), -5.0), float(log_snr[-1]), n, dtype=torch.float64)
    return {0, len(times), *(log_snr - wanted[:, None]).abs().argmin(1).tolist()}


def endless_noise(seed, keys, shape):
    """Standard normals [N, *shape], one after the other: an image has a generator of its own, points share one."""
    if len(shape) > 1:
        generators = [training.generator(seed, key, 2) for key in keys]  # 0 and 1 are the training's
        while True:
            yield training.noise_of(generators, shape)
    g = training.generator(seed, 0, 2)
    while True:
        yield torch.randn(len(keys), *shape, generator=g)


@torch.no_grad()
def draw(eps, condition, shape, args, schedule, keys=None):
    """Samples [N, *shape] in batches, so that memory grows by the results only, and the film of the first batch.

    The noise of image i is drawn from (seed, keys[i]), keys[i] = i unless given.  The film is a list of (t, x, x0_hat)
    of at most 34 moments and at most 36 images.  Raises FloatingPointError.
    """
    n, times = len(condition.kind), time_grid(args.steps, args.t_end, args.grid, schedule)
    keys = list(range(n)) if keys is None else keys
    out, film, shown = torch.empty(n, *shape), [], moments(times, schedule)
    calls = math.ceil(n / args.sample_batch) * args.steps
    with tqdm(total=calls, desc="sampling", unit="step", dynamic_ncols=True, leave=False, disable=None) as bar:
        for start in range(0, n, args.sample_batch):
            rows = slice(start, start + args.sample_batch)
            noise = endless_noise(args.seed, keys[rows], shape)  # first the start, then the steps
            eps_w = guided(eps, data.Condition(*(c[rows] for c in condition)), args.cfg)
            for i, (t, x, x0_hat) in enumerate(SAMPLERS[args.sampler](eps_w, next(noise), times, schedule, noise)):
                if not bool(x.isfinite().all()):
                    what = f"the state blew up before t = {t:.4g}"
                    raise FloatingPointError(f"{what}: take more --steps, or another --grid")
                if start == 0 and i in shown:
                    few = slice(36 if x.ndim > 2 else None)
                    film.append((t, x[few].clone(), x0_hat[few].clone()))  # a view would keep the whole batch
                bar.update(t > 0)
            out[rows] = x
    return out, film


def training_samples(eps, config, schedule, out, step):
    """training_samples.png: how far it has come, by ten calls of DPM-Solver++(2M) with the averaged weights."""
    how = argparse.Namespace(sampler="dpmpp", steps=10, grid="logsnr", t_end=0.005, cfg=1.0, seed=config["seed"],
                             sample_batch=36)
    condition = data.asked_for(36, mode=config["mode"], n_types=config["n_types"])
    x, _ = draw(eps, condition, (1, config["img_size"], config["img_size"]), how, schedule)
    captions = [metrics.caption(*case) for case in zip(condition.kind, condition.cont[:, 1], strict=True)]
    pictures.captioned_grid(out / "training_samples.png", data.unit(x)[:, 0].numpy(), captions, f"after {step} steps")


def sample_crystals(eps, config, args, out, schedule):
    """The main job: samples.png, reverse_diffusion.gif, samples.npz, and the numbers.

    In mode full it asks for whole crystals of 10 px, which are known; without a condition nothing is known there.
    """
    condition = data.asked_for(args.n, args.kind, args.theta, config["mode"], config["n_types"])
    clock, size = training.stopwatch(), config["img_size"]
    x, film = draw(eps, condition, (1, size, size), args, schedule)
    seconds, x, kind, theta = clock(), data.unit(x), condition.kind, condition.cont[:, 1]
    training.save_npz(out / "samples.npz", x=x.numpy(), kind=kind.numpy(), theta=theta.numpy())
    frames = [pictures.grid_image(data.unit(x_t)[:, 0].numpy(), 6) for _, x_t, _ in film]
    save_gif(frames, out / "reverse_diffusion.gif")
    if config["mode"] == "full" and args.cfg == 0:  # no closed form for what is missing and what is displaced
        pictures.captioned_grid(out / "samples.png", x[:36, 0], [""] * len(x[:36]), "samples, mode full")
        result = {}
    else:
        result, fit, truth = metrics.crystal_report(x, *((kind, theta) if args.cfg else ()), seed=args.seed)
        found = zip(fit.kind[:36], fit.theta[:36], fit.aspect[:36], strict=True)
        captions = [metrics.caption(*crystal) for crystal in found]
        tiles = x[:36, 0].numpy(), truth[:36, 0].numpy()
        pictures.captioned_grid(out / "samples.png", tiles, captions, "left: sample    right: nearest true crystal")
    return {"n": args.n, "seconds": seconds, "ms_per_image": 1000 * seconds / args.n} | result


def sample_points(eps, config, args, out, schedule):
    """The 2-D job: a cloud of points, its GIF over the closed-form density, and its distance to exact samples."""
    gmm, clock = load_source(config), training.stopwatch()
    x, film = draw(eps, data.asked_for(args.n), (2,), args, schedule)
    seconds = clock()
    training.save_npz(out / "samples.npz", x=x.numpy())
    snapshots = [(t, x_t.double().numpy()) for t, x_t, _ in film]
    images = list(reference.draw(snapshots, gmm, f"learned score, {args.sampler}"))
    save_gif(images, out / "reverse_diffusion.gif")
    training.write_whole(out / "samples.png", pictures.png(images[-1]))
    result = reference.distances(x.double().numpy(), gmm, args.seed)
    for name in ("mmd2", "sliced_wasserstein", "log_density"):
        print(f"{name:20}{result[name]:10.5f}   exact samples{result[name + '_floor']:10.5f}   (n = {args.n})")
    return result | {"seconds": seconds}


# ----------------------------------------------------------------------------------------------------- the command line


def make_parser():
    parser = training.new_parser("vp_sde.py", __doc__)
    add = parser.add_argument_group("model and data (a checkpoint knows its own)").add_argument
    add("--data", choices=("crystals", "S", "circle"), default="crystals",
        help="images, or a 2-D mixture (default %(default)s)")
    rate = training.number(float, 0, 1000, open_low=True)
    add("--beta-min", type=rate, default=0.1, help="noise rate at t = 0 (default %(default)s)")
    add("--beta-max", type=rate, help="noise rate at t = 1 (default 30 for images, 20 for points)")
    add("--p-uncond", type=training.number(float, 0, 1), default=0.1,
        help="share of training without condition (default %(default)s)")
    add = parser.add_argument_group("sampling").add_argument
    add("--sampler", choices=tuple(SAMPLERS), default="sde",
        help="sde: reverse SDE, Euler-Maruyama; ode: flow, Heun; dpmpp: DPM-Solver++(2M) (default %(default)s)")
    add("--steps", type=training.count, default=300,
        help="network calls per sample; ode makes 2 steps - 1 (default %(default)s)")
    add("--grid", choices=("uniform", "quadratic", "logsnr"), default="logsnr",
        help="spacing of the times (default %(default)s)")
    add("--cfg", type=training.number(float, 0), default=None,
        help="guidance w in eps_u + w (eps_c - eps_u): 0 unconditional, 1 plain conditional, continuous (default 1.5)")
    add("--t-end", type=training.number(float, 0, 1, True, True), default=None,
        help="time of the last network call, which predicts x_0 (default 0.005 for images, 0.001 for points)")
    add("--n", "--n-samples", type=training.count, default=None, help="samples (default 36 images, 4096 points)")
    add("--sample-batch", type=training.count, default=36, help="images drawn at a time (default %(default)s)")
    add("--oracle", action="store_true", help="the exact denoiser of rot-only crystals in place of the network")
    training.crystal_flags(parser)
    training.shared_flags(parser, train_steps=16000, batch_size=32, lr=2e-3)
    return parser


def settle(args, given, checkpoint):
    """Fill in what depends on the data, and refuse what does not go together."""
    if checkpoint:
        training.take_model_flags(args, given, checkpoint, MODEL_FLAGS)
    points = args.data != "crystals"
    args.beta_max = (20.0 if points else 30.0) if args.beta_max is None else args.beta_max
    args.t_end = (0.001 if points else 0.005) if args.t_end is None else args.t_end
    args.n = (4096 if points else 36) if args.n is None else args.n
    if points:
        args.sample_batch = args.n  # a cloud is one batch
        if not args.resume:
            args.train_steps = args.train_steps if "train_steps" in given else 4000
            args.batch_size = args.batch_size if "batch_size" in given else 1024
    if args.beta_max < args.beta_min:
        raise ValueError(f"--beta-max {args.beta_max} is below --beta-min {args.beta_min}")
    neutral = dict(cfg=1, kind=None, theta=None, oracle=False, mode="rot-only", data_path=None)
    if points and any(key in given and getattr(args, key) != value for key, value in neutral.items()):
        raise ValueError("--cfg, --kind, --theta, --oracle, --mode and --data-path are for crystals, not for points")
    args.cfg = (1.0 if points or args.oracle else 1.5) if args.cfg is None else args.cfg
    if args.oracle and (args.cfg != 1 or args.mode != "rot-only" or args.train or args.ckpt):
        raise ValueError("--oracle is the exact *conditional* denoiser: --cfg 1, --mode rot-only, and no training")
    training.settle_crystals(args, given)


def main(argv=None):
    parser = make_parser()
    with training.one_line_errors(parser):
        args, given = training.parse(parser, argv)
        shipped, checkpoint = "vp_sde.pt" if args.data == "crystals" else f"vp_sde_{args.data}.pt", None
        if not args.oracle:
            checkpoint = training.open_checkpoint(args, given, "vp_sde", shipped)
        settle(args, given, checkpoint)
        device = training.pick_device(args.device)
        args.precision = training.pick_precision(args.precision, device)
        config, schedule = vars(args), VP(args.beta_min, args.beta_max)
        net = training.load_net(build(config), checkpoint, args, device) if checkpoint and not args.train else None
        out = training.run_folder(args, "vp_sde", f"{args.data}_{args.sampler}_seed{args.seed}", args.ckpt)
        if main := training.rank() == 0:
            exact = f"; exact denoiser, CFG {args.cfg:g}" if args.oracle else ""
            print(f"device {device}, {args.precision}{exact}; output in {out}")
        if args.train:
            if main:
                training.save_json(out / "config.json", config)
            with training.process_group(device):
                net = train(config, out, device, checkpoint)
        if not main:
            return
        eps = exact_eps(config) if args.oracle else eps_of(net, device, args.precision)
        job = sample_crystals if args.data == "crystals" else sample_points
        training.close_run(out, config, job(eps, config, args, out, schedule))


if __name__ == "__main__":
    main()
