"""Distributional diffusion: a network that draws x_0 from p(x_0 | x_t), where ordinary diffusion returns its mean.

    x_t = alpha_t x_0 + sigma_t eps,   alpha_t = 1 - t,  sigma_t = t                                        the path
    xhat_j = f(x_t, t, xi_j),          xi_j ~ N(0, I), j = 1 .. m                                  m particles a datum
    L = w(t) [ mean_j |x_0 - xhat_j|^beta - lam / (2 m (m-1)) sum_{j != j'} |xhat_j - xhat_j'|^beta ]      the score
    x_s = alpha_s xhat + sigma_s (rho eps_hat + sqrt(1 - rho^2) z),   eps_hat = (x_t - alpha_t xhat) / sigma_t
    rho = e^2 (alpha_t sigma_s) / (alpha_s sigma_t) + 1 - e^2                            the bridge, from t to s < t

With lam = 1 and beta < 2 the loss L, a generalised energy score, is least only if the particles are draws from the
posterior; then every x_s is a draw from its true law *however long the step*, for any churn e in [0, 1].  With
--beta 2 --lam 0 the same code is ordinary diffusion (e = 0: DDIM, e = 1: DDPM), which is right for short steps only.

    python dddm.py                              two Gaussians in the plane: MMD^2 against the number of steps, figures
    python dddm.py --data crystals --steps 8    36 toy crystals in 8 network calls, by a small DiT
    python dddm.py --train --out outputs/mine   train in minutes, then sample; with --beta 2 --lam 0 the ordinary one
    torchrun --standalone --nproc_per_node=2 dddm.py --train --data crystals

De Bortoli et al. 2025 (arXiv 2502.02483).  Energy score: Gneiting and Raftery 2007.  DiT: Peebles and Xie 2023
(2212.09748).  Scaling of the network's input and output: Karras et al. 2022 (2206.00364).  Left out: guidance.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy>=2.2,<3", "matplotlib>=3.10,<4", "imageio>=2.37,<3", "pillow>=11",
#                 "tqdm>=4.66,<5", "pooch>=1.8,<2"]
# ///

import argparse
import math
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import data
import metrics
import pictures
import reference_gmm_sde as reference
import training
import vae_gan
from make_gif import save_gif

MODEL_FLAGS = ("data", "img_size", "patch", "width", "depth", "heads", "shared", "xi_dim")  # the checkpoint knows them
POINTS = {"mixture": "two", "S": "S", "circle": "circle"}  # our names of the closed-form mixtures, and the judge's
SIZES = {"crystals": (1, 64), "mnist": (1, 28), "cifar10": (3, 32)}  # channels, pixels

# ---------------------------------------------------------------------------------------------------- path and bridge


class Linear:
    """alpha_t = 1 - t, sigma_t = t: for numbers, arrays or tensors."""

    @staticmethod
    def alpha_sigma(t):
        return 1 - t, t


alpha_sigma = Linear.alpha_sigma


def like(v, x):
    """[N] to [N, 1, 1, ...], so that one number a sample multiplies points or images alike."""
    return v.reshape(-1, *[1] * (x.ndim - 1))


def bridge(x_t, x_0, t, s, churn, z):
    """A draw from p(x_s | x_0, x_t), 0 <= s < t <= 1.  z: standard normal, shaped like x_t.

    eps_hat is the noise that is in x_t; x_s keeps a share rho of it and takes the rest fresh, so that its noise is
    again standard: alpha_s x_0 + sigma_s N(0, I) for any churn.  Churn 1 is the DDPM posterior, churn 0 is DDIM, and
    s = 0 returns x_0.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
    eps_hat = (x_t - alpha_t * x_0) / sigma_t
    rho = churn**2 * (alpha_t * sigma_s) / (alpha_s * sigma_t) + 1 - churn**2
    return alpha_s * x_0 + sigma_s * (rho * eps_hat + math.sqrt(1 - rho**2) * z)


# ------------------------------------------------------------------------------------------------------------ the loss


def power(difference, beta):
    """|difference|^beta over all axes from the third on: [N, m, ...] to [N, m].

    Where two points meet the root has no gradient: squares are kept above 1e-6, where the gradient is 0.
    """
    square = difference.flatten(2).square().sum(2)
    return square if beta == 2 else square.clamp_min(1e-6) ** (beta / 2)


def energy_score(x_0, xhat, beta, lam):
    """The generalised energy score of each datum: x_0 [N, ...] and its particles xhat [N, m, ...] to [N].

    A pair is counted once: sum_{j != j'} / (2 m (m-1)) is half the mean over pairs.
    """
    confinement = power(xhat - x_0[:, None], beta).mean(1)
    if lam == 0:
        return confinement
    j, k = torch.triu_indices(xhat.shape[1], xhat.shape[1], 1, device=xhat.device)
    return confinement - lam / 2 * power(xhat[:, j] - xhat[:, k], beta).mean(1)


def weight(t, kind, bias):
    """w(t) [N]: sigmoid(log(alpha^2 / sigma^2) - bias), or 1.  The sigmoid is nearly 0 where sampling starts."""
    return torch.sigmoid(2 * torch.log((1 - t) / t) - bias) if kind == "sigmoid" else torch.ones_like(t)


# --------------------------------------------------------------------------------------------------------- the networks
# Both take x_t [N, ...], t [N], a condition (kind [N], theta [N]) and xi [N, m, d], and return m particles [N, m, ...].
# What does not depend on xi is computed once for all m.


def waves(v, low, high, n):
    """sin and cos of v at n frequencies spaced geometrically from low to high: [..., 2 n]."""
    angle = v[..., None] * torch.logspace(math.log10(low), math.log10(high), n, device=v.device)
    return torch.cat([angle.sin(), angle.cos()], -1)


def time_waves(t):
    """Sines of half the log-SNR: [N, 32].  Those of bare t would hardly vary near 0."""
    return waves(torch.log((1 - t).clamp_min(1e-4) / t.clamp_min(1e-4)), 0.1, 5, 16)


def scaled(x_t, t, rms):
    """Scalings under which input and target of a network are of order 1 at every t: c_in x_t, and xhat(output F).

    rms: root-mean-square of the data, so that x_t has variance alpha^2 rms^2 + sigma^2.  xhat = c_skip x_t + c_out F,
    where c_skip x_t is the best linear guess at x_0 and c_out the size of what is left: near t = 0 the network only
    corrects x_t, at t = 1 all is its own.
    """
    alpha, sigma = (like(a, x_t) for a in alpha_sigma(t))
    total = alpha**2 * rms**2 + sigma**2
    c_skip, c_out = alpha * rms**2 / total, sigma * rms / total.sqrt()
    return x_t / total.sqrt(), lambda out: (c_skip * x_t)[:, None] + c_out[:, None] * out.float()


class MLP(nn.Module):
    """Points [N, 2]: `shared` layers see x_t and t, the others also xi."""

    def __init__(self, width, depth, shared, xi_dim, rms):
        super().__init__()
        self.rms = rms
        self.first = nn.Linear(2 + 24 + 32, width)
        self.trunk = nn.ModuleList(nn.Linear(width, width) for _ in range(shared))
        self.join = nn.Linear(xi_dim, width)
        self.late = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - shared))
        self.out = nn.Linear(width, 2)

    def forward(self, x_t, t, condition, xi):
        x, xhat = scaled(x_t, t, self.rms)
        h = self.first(torch.cat([x, waves(x, 1, 16, 6).flatten(1), time_waves(t)], 1))
        for layer in self.trunk:
            h = h + layer(F.silu(h))
        h = h[:, None] + self.join(xi)
        for layer in self.late:
            h = h + layer(F.silu(h))
        return xhat(self.out(F.silu(h)))


def attention(q, k, v):
    """softmax(q k^T / sqrt d) v.  Written out where a processor's fused kernel takes six times as long (bf16)."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v)
    return (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(3).to(v.dtype) @ v


class Block(nn.Module):
    """Attention and an MLP, each between a norm that the condition scales and shifts and a gate that starts at 0."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.film = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.film.weight)  # a new block is the identity
        nn.init.zeros_(self.film.bias)

    def forward(self, h, emb):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.film(emb)[:, None].chunk(6, 2)
        a = torch.addcmul(shift1, F.layer_norm(h, h.shape[-1:]), 1 + scale1)
        q, k, v = self.qkv(a).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (N, heads, tokens, d)
        a = attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + gate1 * self.proj(a)
        a = torch.addcmul(shift2, F.layer_norm(h, h.shape[-1:]), 1 + scale2)
        return h + gate2 * self.down(F.silu(self.up(a)))


class DiT(nn.Module):
    """Images [N, C, H, H] as tokens of patch x patch pixels.  The first `shared` blocks do not see xi.

    A token knows where it is by its coordinates and a few sines of them, *turned by the angle that is asked for*
    (crystals), as in vp_sde.py: it spares the network products of position and angle to a hundredth of a pixel.
    """

    def __init__(self, channels, img_size, kinds, patch, width, depth, heads, shared, xi_dim, rms=1.0):
        super().__init__()
        self.patch, self.kinds, self.shared, self.rms, self.cells = patch, kinds, shared, rms, img_size // patch
        self.embed = nn.Sequential(nn.Linear(32 + kinds + 16, width), nn.SiLU(), nn.Linear(width, width))
        self.join = nn.Sequential(nn.Linear(9 * xi_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = nn.Linear(channels * patch**2 + 26, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.film, self.out = nn.Linear(width, 2 * width), nn.Linear(width, channels * patch**2)
        self.skip = nn.Linear(width, 1)
        for layer in (self.out, self.skip):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def tokens(self, x):
        """[N, C, H, H] to [N, tokens, C patch^2], and `image` back: patches in reading order."""
        return F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)

    def image(self, tokens):
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (self.cells, self.cells)), self.patch)

    def position(self, theta):
        """Centres of the patches from the image centre, in half images, and their sines: [N, tokens, 26].

        Wavelengths from two images down to 8 px, which is less than a lattice spacing.
        """
        half = self.patch * self.cells / 2
        centre = (self.patch * (torch.arange(self.cells, device=theta.device) + 0.5) - 0.5 - half) / half
        y, x = (v.flatten() for v in torch.meshgrid(centre, centre, indexing="ij"))
        cos, sin = theta.cos()[:, None], theta.sin()[:, None]
        uv = torch.stack([cos * x + sin * y, cos * y - sin * x], 2)  # (N, tokens, 2)
        return torch.cat([uv, waves(uv, math.pi / 2, half / 4 * math.pi, 6).flatten(2)], 2)

    def forward(self, x_t, t, condition, xi):
        (kind, theta), m = condition, xi.shape[1]
        with torch.autocast(x_t.device.type, enabled=False):  # positions and angles deserve all their digits
            x, xhat = scaled(x_t, t, self.rms)
            harmonics = theta[:, None] * torch.arange(1, 9, device=t.device)
            told = torch.cat([F.one_hot(kind, self.kinds), harmonics.sin(), harmonics.cos(), time_waves(t)], 1)
            emb, position = self.embed(told), self.position(theta)
            late = emb[:, None] + self.join(torch.cat([xi, waves(xi, 0.5, 4, 4).flatten(2)], 2))  # (N, m, width)
            emb, late = F.silu(emb), F.silu(late.flatten(0, 1))
        h = self.stem(torch.cat([self.tokens(x), position], 2)).float()
        for block in self.blocks[: self.shared]:
            h = block(h, emb)
        h = h.repeat_interleave(m, 0)  # from here on every particle goes its own way
        for block in self.blocks[self.shared :]:
            h = block(h, late)
        shift, scale = self.film(late)[:, None].chunk(2, 2)
        out = self.out(torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale))
        # F has to cancel part of the noise in c_skip x_t, pixel by pixel, and a token of few numbers cannot carry that:
        # so x_t is added here, times one number that the network chooses.
        through = self.skip(late).view(-1, m, 1, 1, 1) * x[:, None]
        return xhat(through + self.image(out).unflatten(0, (-1, m)))


def build(config):
    """The network a config describes, with fresh weights that depend on its seed alone."""
    c = {key: config[key] for key in ("width", "depth", "shared", "xi_dim")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        if config["data"] in POINTS:
            gmm = load_source(config)
            spread = float(np.sqrt((gmm.weights @ (gmm.means**2 + gmm.eigenvalues)).mean()))
            return MLP(**c, rms=spread)
        kinds = 4 if config["data"] == "crystals" else 10
        return DiT(SIZES[config["data"]][0], config["img_size"], kinds, config["patch"], heads=config["heads"], **c)


# --------------------------------------------------------------------------------------------------------- the sampling
# `denoise(x, t)` returns one draw of x_0 for each x_t: of the network, or of the exact posterior of a mixture.


def sample(denoise, x, steps, churn, normal):
    """Yield (t, x_t, draw of x_0) from t = 1 on, one denoise a step, and last (0, x_0, x_0).  normal(shape): noise."""
    times = [1 - k / steps for k in range(steps)] + [0.0]
    for t, s in pairwise(times):
        x_0 = denoise(x, t)
        yield t, x, x_0
        x = bridge(x, x_0, t, s, churn, normal(x.shape[1:]))
    yield 0.0, x, x


def noise(seed, keys, shape):
    """normal(shape) -> [N, *shape], again and again: an image has a generator of its own, points share one.

    seed: a number, or a list of them where one seed has several streams.
    """
    seed = seed if isinstance(seed, list) else [seed]
    if len(shape) > 1:
        return partial(training.noise_of, [training.generator(*seed, key, 2) for key in keys])  # 0, 1: the training's
    g = training.generator(*seed, 0, 2)
    return lambda shape: torch.randn(len(keys), *shape, generator=g)


def drawer(net, condition, normal, device, precision, xi_dim):
    """The network as denoise(x, t): one fresh xi a call."""

    @torch.no_grad()
    def denoise(x, t):
        xi, times = normal((1, xi_dim)), torch.full((len(x),), t)
        with training.autocast(device, precision):
            x_0 = net(x.to(device), times.to(device), [c.to(device) for c in condition], xi.to(device))
        return x_0[:, 0].to(x.device)

    return denoise


def exact_drawer(gmm, rng):
    """A draw of x_0 from the exact p(x_0 | x_t) of a mixture."""
    return lambda x, t: torch.from_numpy(gmm.posterior_sample(x.double().numpy(), t, rng)).float()


def mean_of(gmm):
    """Ordinary diffusion at its best: the exact E[x_0 | x_t]."""
    return lambda x, t: torch.from_numpy(gmm.posterior_mean(x.double().numpy(), t)).float()


def asked_for(config, n, kind=None, theta=None):
    """Default conditions (kind [N], theta [N]): those of vp_sde.py for crystals, class i mod 10 for real images."""
    if config["data"] == "crystals":
        condition = data.asked_for(n, kind, theta)
        return condition.kind, condition.cont[:, 1]
    return torch.arange(n) % 10 if kind is None else torch.full((n,), kind), torch.zeros(n)


def draw(net, condition, config, args, device, shape, keys=None):
    """Samples [N, *shape] in batches, noise by (seed, key of the sample), and the film of the first 36."""
    n, out, film, shown = len(condition[0]), [], [], pictures.evenly(range(args.steps + 1), 33)
    batch = n if len(shape) == 1 else args.sample_batch
    keys = list(range(n)) if keys is None else keys
    for start in range(0, n, batch):
        rows = slice(start, start + batch)
        normal = noise(args.seed, keys[rows], shape)
        told = [c[rows] for c in condition]
        denoise = drawer(net, told, normal, device, args.precision, config["xi_dim"])
        for i, (t, x, _) in enumerate(sample(denoise, normal(shape), args.steps, args.churn, normal)):
            if not bool(x.isfinite().all()):
                raise FloatingPointError(f"the state blew up before t = {t:.4g}: the network is not a trained one")
            if start == 0 and i in shown:
                film.append((t, x[: 36 if len(shape) > 1 else None]))
        out.append(x)
    return torch.cat(out), film


# --------------------------------------------------------------------------------------------------------- the training


def shape_of(config):
    return (2,) if config["data"] in POINTS else (SIZES[config["data"]][0], *[config["img_size"]] * 2)


def load_source(config):
    """A mixture with this path; None for crystals, which are rendered on the fly; (x_u8, label) of real images."""
    if config["data"] in POINTS:
        return reference.mixture(POINTS[config["data"]], Linear)
    if config["data"] == "crystals":
        return None
    load = data.load_mnist if config["data"] == "mnist" else data.load_cifar10
    return load(config["data_dir"], train=True)


def training_batch(config, step, source, rows):
    """Rows `rows` (a slice) of the batch of step `step`: x_0, points or in [-1, 1], and condition; by (seed, step)."""
    seed, n = config["seed"], config["batch_size"]
    if config["data"] in POINTS:
        x = torch.from_numpy(source.sample(n, np.random.default_rng([seed, step]))).float()[rows]
        return x, (torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x)))
    if config["data"] == "crystals":
        first, many = step * n + rows.start, rows.stop - rows.start
        x_u8, kind, cont = data.crystal_batch(first, many, seed, img_size=config["img_size"])
        return x_u8.float() / 127.5 - 1, (kind, cont[:, 1])
    index = torch.randint(len(source[0]), (n,), generator=training.generator(seed, step, 1))[rows]
    return source[0][index].float() / 127.5 - 1, (source[1][index], torch.zeros(len(index)))


def loss_of(net, x_0, condition, t, eps, xi, config):
    """The weighted energy score; distances are of the root-mean-square kind, so that sizes of images compare."""
    alpha, sigma = (like(a, x_0) for a in alpha_sigma(t))
    xhat = net(alpha * x_0 + sigma * eps, t, condition, xi)
    score = energy_score(x_0, xhat, config["beta"], config["lam"]) / x_0[0].numel() ** (config["beta"] / 2)
    return (weight(t, config["weight"], config["w_bias"]) * score).mean()


def update_ema(ema, net, decay, step):
    """ema <- d ema + (1 - d) net, d rising to `decay`."""
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in net.parameters()], 1 - d)


def gradient_of(net, optimizer, config, step, source, device, rows):
    """Leave the clipped gradient of training step `step` in net; returns the loss and the norm before clipping.

    rows: this process's share of the batch.  Sets the learning rate of the step as well.
    """
    n, shape = config["batch_size"], (config["m"], config["xi_dim"])
    g = training.generator(config["seed"], step, 0)
    x_0, condition = training_batch(config, step, source, rows)
    t = ((torch.arange(n) + torch.rand(n, generator=g)) / n)[rows]  # one in each n-th of [0, 1]: a less noisy gradient
    eps = torch.randn(n, *x_0.shape[1:], generator=g)[rows]
    xi = torch.randn(n, *shape, generator=g)[rows]
    x_0, t, eps, xi = (v.to(device) for v in (x_0, t, eps, xi))
    for group in optimizer.param_groups:
        group["lr"] = training.learning_rate(step, config["train_steps"], config["lr"])
    with training.autocast(device, config["precision"]):
        loss = loss_of(net, x_0, [c.to(device) for c in condition], t, eps, xi, config)
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), config["clip"])
    return loss.item(), norm.item()


@torch.no_grad()
def exam(ema, config, source, device, out, step):
    """How far it has come, by few steps of the averaged weights: MMD^2 of points, crystal error, MMD^2 of pixels."""
    how = argparse.Namespace(steps=4 if config["data"] in POINTS else 8, churn=config["churn"], seed=config["seed"],
                             sample_batch=36, precision=config["precision"])
    n = {"crystals": 36, "mnist": 256, "cifar10": 36}.get(config["data"], 2048)
    condition, shape = asked_for(config, n), shape_of(config)
    x, _ = draw(ema, condition, config, how, device, shape)
    if config["data"] in POINTS:
        return {"mmd2": reference.mmd2_to_mixture(x.double().numpy(), source)}
    image_grid(out / "training_samples.png", x, condition, config, f"after {step} steps")
    if config["data"] == "crystals":
        return {"crystal_error": float(metrics.crystal_error(data.unit(x).double(), *condition).error.mean())}
    mmd2 = metrics.pixel_mmd2(x, real_images(source, n, config["seed"]))
    return {"mmd2_pixels": mmd2} | ({"frechet": digit_frechet(x)} if config["data"] == "mnist" else {})


def train(config, out, device, checkpoint=None):
    """Train until config["train_steps"], or until Ctrl-C; writes last.pt, log.jsonl, loss.png."""
    net, source = build(config).to(device), load_source(config)
    ema, main = training.start_ema(net), training.rank() == 0
    optimizer = torch.optim.AdamW(net.parameters(), lr=config["lr"], betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    start = training.restore(checkpoint, net, ema, optimizer, out)
    rows, wrapped = training.my_share(config["batch_size"]), training.share_gradients(net)
    log, clock = training.Log(out / "log.jsonl", start) if main else None, training.stopwatch()
    board, total, since, every, in_epoch = training.Board(config, main), 0.0, start, config["eval_every"], []
    epoch = max(1, TRAINING_SET.get(config["data"], 50_000) // config["batch_size"])

    with training.finish_the_step() as stop:
        for step in (bar := training.steps(start, config["train_steps"])):
            loss, norm = gradient_of(wrapped, optimizer, config, step, source, device, rows)
            training.check_finite(loss + norm, step + 1, out)
            optimizer.step()
            update_ema(ema, net, config["ema_decay"], step)
            loss, done, stopped = training.mean_over_processes(loss), step + 1, training.anywhere(stop)
            total, last = total + loss, done == config["train_steps"]
            in_epoch.append(loss)
            if done % epoch == 0:
                board.add(done, {"epoch/loss": np.mean(in_epoch), "epoch/number": done // epoch})
                in_epoch = []
            if main and (done % every == 0 or last):
                numbers = exam(ema, config, source, device, out, done)
                log.add(step=done, loss=total / (done - since), seconds=round(clock(), 1), **numbers)
                bar.set_postfix(loss=f"{total / (done - since):.4f}", **{k: f"{v:.4f}" for k, v in numbers.items()})
                board.add(done, {"train/loss": total / (done - since)} | {f"eval/{k}": v for k, v in numbers.items()})
                total, since = 0.0, done
            if main and (done % config["save_every"] == 0 or last or stopped):
                training.save_run(out, "dddm", config, done, net, ema, optimizer)
                exams = [(key, key) for key in (log.lines or [{}])[-1] if key not in ("step", "loss", "seconds")]
                pictures.loss_curve(out / "loss.png", log.lines, pictures.LOSS, *exams)
                board.add(done, {}, {f"plots/{p.stem}": p for p in sorted(out.glob("*.png"))})
            if stopped:
                training.leave(done, config["train_steps"], out)
    return ema


# ------------------------------------------------------------------------------------------- the job in the plane

STEPS = (1, 2, 4, 8, 16, 32, 64)  # of the comparison


def cloud(denoise, n, steps, churn, seed):
    """n points [n, 2], float64; the same seed means the same start and bridge noise whatever denoises."""
    normal = noise([seed, 1], range(n), (2,))
    *_, (_, x, _) = sample(denoise, normal((2,)), steps, churn, normal)
    return x.double().numpy()


def compare(rows, gmm, n, seed):
    """MMD^2 to the mixture of rows {name: (denoise, churns)} at every number of steps, each at its best churn."""
    return {name: [min(reference.mmd2_to_mixture(cloud(denoise, n, k, e, seed), gmm) for e in churns) for k in STEPS]
            for name, (denoise, churns) in rows.items()}


def points_drawer(net, config, n, seed, precision, device):
    condition = torch.zeros(n, dtype=torch.long), torch.zeros(n)
    return drawer(net, condition, noise([seed, 2], range(n), (2,)), device, precision, config["xi_dim"])


def posterior_std(gmm, x, t):
    """Root of the mean variance of p(x_0 | x_t) at points x [N, D], exact: Cov = (sigma/alpha)^2 (I + sigma^2 Hess)."""
    alpha, sigma = gmm.schedule.alpha_sigma(t)
    _, divergence = gmm.score_and_divergence(x, t)
    return sigma / alpha * np.sqrt(1 + sigma**2 * divergence / gmm.dim)


def posteriors(net, config, gmm, device, precision, seed=0, draws=4096):
    """Ten pairs (t, x_t), x_t a draw of p_t; draws [draws, 2] of the learned and the exact posterior, their stds."""
    rng, out = np.random.default_rng([seed, 7]), []
    for t in (np.arange(10) + 0.5) / 10:
        x_t = (1 - t) * gmm.sample(1, rng) + t * rng.standard_normal((1, 2))
        many = torch.from_numpy(x_t).float().expand(draws, 2)
        learned = points_drawer(net, config, draws, seed, precision, device)(many, t).double().numpy()
        exact = gmm.posterior_sample(many.double().numpy(), t, rng)
        stds = np.sqrt(learned.var(0).mean()), float(posterior_std(gmm, x_t, t)[0])
        out.append((float(t), x_t[0], learned, exact, *stds))
    return out


def shipped(name, device):
    """A network that ships, ready to draw from, and its config."""
    path = training.SHIPPED / f"dddm_{name}.pt"
    checkpoint = training.load_checkpoint(path, "dddm", make_parser())
    net = training.load_weights(build(checkpoint["config"]), checkpoint["ema"], path)
    return net.to(device).eval(), checkpoint["config"]


def compare_steps(mine, learned_mean, gmm, args, rng, out):
    """Print, draw and return MMD^2 by number of steps: this network, exact draws, ordinary diffusion.

    learned_mean: ordinary diffusion trained alike, as denoise(x, t), or None.
    """
    rows = {"this network": (mine, (args.churn,)), "exact posterior draws": (exact_drawer(gmm, rng), (args.churn,))}
    if learned_mean:
        rows["ordinary diffusion, trained alike"] = learned_mean, (0, 1)
    rows["ordinary diffusion, exact mean"] = mean_of(gmm), (0, 1)
    table = compare(rows, gmm, args.n, args.seed)
    print(f"MMD^2 (RBF, sigma 1) to the mixture, n = {args.n}; ordinary diffusion at the better of churn 0 and 1")
    print(f"{'steps':34}" + "".join(f"{k:>10}" for k in STEPS))
    for name, values in table.items():
        print(f"{name:34}" + "".join(f"{v:10.1e}" for v in values))
    scatter = 1.7e-4 * 4096 / args.n  # standard deviation of the MMD^2 of exact samples, measured
    pictures.error_by_steps(out / "comparison.png", STEPS, table, scatter)
    clouds = {f"this network, {k} step{'s' * (k > 1)}": cloud(mine, args.n, k, args.churn, args.seed) for k in (1, 4)}
    clouds |= {f"ordinary, {k} steps": cloud(learned_mean or mean_of(gmm), args.n, k, 1, args.seed) for k in (4, 16)}
    pictures.clouds(out / "samples.png", clouds | {"exact samples": gmm.sample(args.n, rng)}, gmm)
    return table


def sample_points(net, config, args, out, device):
    """The 2-D job: a cloud and its film, the comparison, learned posteriors beside exact ones, and the numbers."""
    gmm, clock = load_source(config), training.stopwatch()
    condition = torch.zeros(args.n, dtype=torch.long), torch.zeros(args.n)
    x, _ = draw(net, condition, config, args, device, (2,))
    seconds = clock()
    training.save_npz(out / "samples.npz", x=x.numpy())
    slow = argparse.Namespace(**vars(args) | {"steps": 32})  # for the eye: the few steps of the job make no film
    film = [(t, y.double().numpy()) for t, y in draw(net, condition, config, slow, device, (2,))[1]]
    save_gif(list(reference.draw(film, gmm, "learned posterior, 32 steps")), out / "sampling.gif", duration=0.1)

    more = args.n, args.seed, args.precision, device
    learned_mean = None
    if (training.SHIPPED / f"dddm_{args.data}_mean.pt").exists():  # trained alike, with --beta 2 --lam 0
        learned_mean = points_drawer(*shipped(f"{args.data}_mean", device), *more)
    rng = np.random.default_rng([args.seed, 3])
    table = compare_steps(points_drawer(net, config, *more), learned_mean, gmm, args, rng, out)
    found = posteriors(net, config, gmm, device, args.precision)
    pictures.posteriors(out / "posterior.png", found)
    off = [abs(std / true - 1) for *_, std, true in found]
    print(f"std of the learned posterior against the exact one, ten x_t: worst {max(off):.1%}, mean {np.mean(off):.1%}")
    result = reference.distances(x.double().numpy(), gmm, args.seed)
    for name in ("mmd2", "sliced_wasserstein", "log_density"):
        print(f"{name:20}{result[name]:10.5f}   exact samples{result[name + '_floor']:10.5f}   "
              f"(n = {args.n}, {args.steps} steps)")
    return result | {"seconds": seconds, "posterior_std_off": off, "steps": STEPS, "comparison": table}


# ------------------------------------------------------------------------------------------------------ the job: images


def image_grid(path, x, condition, config, title):
    kind, theta = (c[:36] for c in condition)
    if config["data"] == "crystals":
        captions = [metrics.caption(*case) for case in zip(kind, theta, strict=True)]
    else:
        captions = [f"class {k}" for k in kind.tolist()]
    pictures.captioned_grid(path, data.unit(x[:36]).movedim(1, 3).squeeze(3).numpy(), captions, title)


def real_images(source, n, seed):
    rows = torch.randperm(len(source[0]), generator=training.generator(seed, 5))[:n]
    return source[0][rows].float() / 127.5 - 1


def sample_images(net, config, args, out, device):
    condition, clock = asked_for(config, args.n, args.kind, args.theta), training.stopwatch()
    x, film = draw(net, condition, config, args, device, shape_of(config))
    seconds, (kind, theta) = clock(), condition
    result = {"n": args.n, "seconds": seconds, "ms_per_image": 1000 * seconds / args.n}
    training.save_npz(out / "samples.npz", x=data.unit(x).numpy(), kind=kind.numpy(), theta=theta.numpy())
    if config["data"] == "crystals":
        frames = [pictures.grid_image(data.unit(y)[:, 0].numpy(), 6) for _, y in film]
        save_gif(frames, out / "sampling.gif", duration=0.3)
        numbers, fit, truth = metrics.crystal_report(data.unit(x), kind, theta, seed=args.seed)
        captions = [metrics.caption(*c) for c in zip(fit.kind[:36], fit.theta[:36], fit.aspect[:36], strict=True)]
        tiles = data.unit(x)[:36, 0].numpy(), truth[:36, 0].numpy()
        pictures.captioned_grid(out / "samples.png", tiles, captions, "left: sample    right: nearest true crystal")
        return result | numbers
    image_grid(out / "samples.png", x, condition, config, f"{config['data']}, {args.steps} steps")
    source = load_source(config)
    real, other = real_images(source, 2 * args.n, args.seed + 1).chunk(2)
    result |= {"mmd2_pixels": metrics.pixel_mmd2(x, real), "mmd2_pixels_floor": metrics.pixel_mmd2(other, real)}
    found, floor = result["mmd2_pixels"], result["mmd2_pixels_floor"]
    print(f"MMD^2 of pixels {found:.2e}; real against real {floor:.2e} (n = {args.n})")
    if args.data == "mnist":
        result |= {"frechet": digit_frechet(x), "frechet_floor": digit_frechet(other)}
        print(f"Frechet distance in a classifier's features {result['frechet']:.2f}; real against real "
              f"{result['frechet_floor']:.2f} (n = {args.n}, against 10,000 test digits)")
    if args.fid:
        result["fid"] = metrics.inception_fid(data.unit(x), data.unit(real_images(source, len(source[0]), 0)))
        print(f"FID {result['fid']:.2f} (n = {args.n})")
    return result


def digit_frechet(x):
    """Frechet distance of digits [N, 1, 28, 28] in the features of the judge of vae_gan.py.  It is not FID."""
    judge, real = vae_gan.load_judge(training.SHIPPED / "mnist_judge.pt")
    _, features = vae_gan.judge_of(judge, data.unit(x))
    return metrics.frechet(features, real["mean"], real["cov"])


# ----------------------------------------------------------------------------------------------------- the command line

TRAINING_SET = {"mnist": 60_000}  # images in an epoch, where not 50,000
DEFAULTS = {  # what depends on the data; anything given on the command line wins
    "points": dict(width=128, depth=4, heads=1, patch=1, shared=1, xi_dim=4, m=8, steps=4, n=4096, img_size=1,
                   batch_size=512, train_steps=4000, lr=2e-3, churn=1.0),
    "crystals": dict(width=192, depth=6, heads=3, patch=8, shared=4, xi_dim=2, m=2, steps=8, n=36, img_size=64,
                     batch_size=32, train_steps=5400, lr=1.5e-3, churn=0.25),
    "mnist": dict(width=128, depth=6, heads=2, patch=4, shared=3, xi_dim=16, m=4, steps=8, n=1000, img_size=28,
                  batch_size=64, train_steps=10000, lr=1e-3, churn=1.0),
    "cifar10": dict(width=384, depth=8, heads=6, patch=4, shared=4, xi_dim=64, m=8, steps=20, n=36, img_size=32,
                    batch_size=256, train_steps=78000, lr=1e-4, churn=1.0),
}


def make_parser():
    parser = training.new_parser("dddm.py", __doc__)
    add = parser.add_argument_group("data and network (a checkpoint knows its own; defaults: by data)").add_argument
    add("--data", choices=(*POINTS, *SIZES), default="mixture", help="2-D points or images (default %(default)s)")
    add("--data-dir", default="data", metavar="DIR", help="where MNIST and CIFAR-10 lie or go (default %(default)s)")
    add("--img-size", type=training.number(int, 1, 1024), help="side of crystals, a multiple of --patch (default 64)")
    words = dict(patch="side of a token of an image, pixels", width="features of a layer or token",
                 depth="number of layers (points) or transformer blocks (images)",
                 shared="so many of them come before xi: one pass for all particles",
                 heads="heads of the attention, a divisor of --width", xi_dim="random numbers that pick a draw of x_0")
    for flag, meaning in words.items():
        usual = ", ".join(f"{kind} {values[flag]}" for kind, values in DEFAULTS.items())
        add(f"--{flag.replace('_', '-')}", type=training.number(int, int(flag != "shared"), 4096),
            help=f"{meaning} (default: {usual})")
    add = parser.add_argument_group("loss").add_argument
    add("--m", type=training.number(int, 1, 1024), help="particles a datum (default 8; crystals 2, mnist 4)")
    add("--beta", type=training.number(float, 0, 2, open_low=True), default=1.0,
        help="exponent of the energy score, in (0, 2] (default %(default)s)")
    add("--lam", type=training.number(float, 0, 1), default=1.0, help="weight of the interaction (default %(default)s)")
    add("--weight", choices=("none", "sigmoid"), default="none",
        help="w(t): 1, or sigmoid(log(alpha^2/sigma^2) - bias) (default %(default)s)")
    add("--w-bias", type=training.number(float, -100, 100), default=0.0, help="that bias (default %(default)s)")
    add("--clip", type=training.positive, default=1.0, help="largest norm of the gradient (default %(default)s)")
    add("--eval-every", type=training.count, default=500, metavar="STEPS", help="exam and log (default %(default)s)")
    add = parser.add_argument_group("sampling").add_argument
    add("--steps", type=training.count, help="network calls a sample (default 4 points, 8 images, 20 cifar10)")
    add("--churn", type=training.number(float, 0, 1),
        help="share of fresh noise in a step: 0 none, as DDIM; 1 as DDPM (default 1; crystals 0.25)")
    add("--n", "--n-samples", type=training.number(int, 2, 10**7),
        help="samples (default 36; digits 1000; points 4096)")
    add("--sample-batch", type=training.count, default=36, help="images drawn at a time (default %(default)s)")
    add("--kind", type=lambda text: training.lattice(text) if text in data.KINDS else training.number(int, 0, 9)(text),
        help="ask for one lattice type (0 to 3, or its name) or one class (0 to 9)")
    add("--theta", type=training.angle, help="crystals: ask for one angle, radians in [0, 1.0471]")
    add("--fid", action="store_true", help="cifar10: Inception FID; needs torchmetrics[image]")
    add("--wandb", action="store_true", help="log to Weights & Biases as well; needs wandb")
    add("--wandb-project", default="dddm", metavar="NAME", help="(default %(default)s)")
    add("--wandb-name", metavar="NAME", help="name of the run there")
    training.shared_flags(parser, train_steps=None, batch_size=None, lr=None)  # None: by data, see DEFAULTS
    return parser


def settle(args, given, checkpoint):
    """Fill in what depends on the data, and refuse what does not go together."""
    if checkpoint:
        training.take_model_flags(args, given, checkpoint, MODEL_FLAGS)
    points = args.data in POINTS
    kind = "points" if points else args.data
    for key, value in DEFAULTS[kind].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.m < 2 and args.lam > 0:
        raise ValueError(f"--m {args.m}: the interaction needs pairs; take --m 2 or more, or --lam 0")
    if args.width % args.heads:
        raise ValueError(f"--width {args.width} is not divisible by --heads {args.heads}")
    if args.img_size % args.patch:
        raise ValueError(f"images of {args.img_size} pixels do not divide into patches of --patch {args.patch}")
    if args.shared > args.depth:
        raise ValueError(f"--shared {args.shared} is more than --depth {args.depth}")
    if args.data != "crystals" and (args.img_size != DEFAULTS[kind]["img_size"] or args.theta is not None):
        raise ValueError("--img-size and --theta are for crystals")
    if points and args.kind is not None or args.data == "crystals" and (args.kind or 0) > 3:
        raise ValueError(f"--kind {args.kind}: crystals are of type 0 to 3, points of no type")
    if args.fid and args.data != "cifar10":
        raise ValueError("--fid is for --data cifar10: Inception has never seen anything like the others")
    for flag, package in (("fid", "torchmetrics[image]"), ("wandb", "wandb")):
        if getattr(args, flag):
            training.need_package(f"--{flag}", package)
    training.settle_epochs(args, given, TRAINING_SET.get(args.data, 50_000))


def main(argv=None):
    parser = make_parser()
    with training.one_line_errors(parser):
        args, given = training.parse(parser, argv)
        checkpoint = training.open_checkpoint(args, given, "dddm", f"dddm_{args.data}.pt")
        settle(args, given, checkpoint)
        device = training.pick_device(args.device)
        args.precision = training.pick_precision(args.precision, device)
        config = vars(args)
        net = training.load_net(build(config), checkpoint, args, device) if checkpoint and not args.train else None
        out = training.run_folder(args, "dddm", f"{args.data}_{args.steps}steps_seed{args.seed}", args.ckpt)
        if main := training.rank() == 0:
            print(f"device {device}, {args.precision}; output in {out}")
        if args.train:
            if main:
                training.save_json(out / "config.json", config)
            with training.process_group(device):
                net = train(config, out, device, checkpoint)
        if not main:
            return
        job = sample_points if args.data in POINTS else sample_images
        training.close_run(out, config, job(net, config, args, out, device))


if __name__ == "__main__":
    main()
