"""Crystals through a bottleneck of 32 numbers: a (conditional) beta-VAE, and what its latent is asked to be.

    loss  = |x - x_hat|^2 + beta KL(q(z | x, c) || N(0, I)),     x_hat = decoder(z, c),   z = mu + s eps
    ELBO  = -loss / beta - (D / 2) log(pi beta) nats:      Gaussian pixels of variance beta / 2, as the loss implies
    MoP   : z ~ q(z | x_i, c_i), x_i the training crystal of the type asked for and the nearest angle

    python vae.py

draws 36 crystals from each of two priors, N(0, I) and the mixture of posteriors (MoP), with the conditional checkpoint
that ships, and writes reconstructions.png, samples_normal.png, samples_mop.png, traversal.png, samples.npz and
metrics.json to outputs/vae/crystals_cond_seed0/.  Other lessons:

    python vae.py --uncond                            the VAE that is told nothing: z has to hold type, angle and aspect
    python vae.py --train --uncond --out outputs/me   train from nothing, then sample
    python vae.py --train --beta 1 --out outputs/b1   a latent closer to N(0, I), crystals further from true ones
    python vae.py --data mnist                        digits from 2 numbers: the map of them, traversal.png
    python vae.py --train --data mnist --z-dim 10     more numbers, told the digit (downloads MNIST to --data-dir)

beta is the weight of the KL in the loss; half of it is the variance of a pixel.  Given its condition a crystal of type
0, 2 or 3 leaves nothing for z to say, so at its optimum a conditional VAE ignores z there.  It is the unconditional VAE
whose prior has to know crystals: latent_prior.py learns that prior.
VAE: Kingma and Welling 2014 (arXiv 1312.6114).  Free bits: Kingma et al. 2016 (1606.04934).
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy>=2.2,<3", "matplotlib>=3.10,<4", "imageio>=2.37,<3", "pillow>=11",
#                 "tqdm>=4.66,<5", "pooch>=1.8,<2"]
# ///

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import data
import metrics
import pictures
import training

MODEL_FLAGS = ("mode", "img_size", "n_types", "uncond", "z_dim", "beta")  # the checkpoint knows these
DIGITS = {"z_dim": 2, "beta": 0.2}  # the defaults that differ with --data mnist
CURVES = (("training, z drawn: squared error per pixel", "mse_per_pixel"), ("KL, nats an image", "kl_nats"),
          ("held out, averaged weights, mean z: RMSE per pixel", "held_out.reconstruction_rmse"))
ACTIVE = 0.05  # nats: a latent with more tells the decoder something
EXAM, HELD_OUT, PROBED = 256, 512, 2048  # held-out images: while training, for the report, for what a latent knows

# ---------------------------------------------------------------------------------------------------------- the network


def channels_last(h):
    """The processor's matrix units want it, and pixel_shuffle forgets it."""
    return h.contiguous(memory_format=torch.channels_last)


class Block(nn.Module):
    """Two 3x3 convolutions around a FiLM: the embedding scales and shifts every channel."""

    def __init__(self, width, d_emb):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(width // 16, width), nn.GroupNorm(width // 16, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(d_emb, 2 * width)
        nn.init.zeros_(self.conv2.weight)  # a new block is the identity
        nn.init.zeros_(self.conv2.bias)

    def forward(self, h, emb):
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, 1)
        r = self.conv1(F.silu(self.norm1(h)))
        return h + self.conv2(F.silu(torch.addcmul(shift, self.norm2(r), 1 + scale)))


class Encoder(nn.Module):
    """mu and log s^2 of q(z | x, c) for images [N, 1, H, H]: convolutions on 4 x 4 cells, then all places."""

    def __init__(self, img_size, z_dim, widths=(32, 64), d_emb=64):
        super().__init__()
        a, b = widths
        self.embed = nn.Sequential(nn.Linear(25, d_emb), nn.SiLU())
        self.stem = nn.Conv2d(16, a, 3, padding=1)
        self.enc1, self.down1 = Block(a, d_emb), nn.Conv2d(a, b, 2, stride=2)
        self.enc2, self.down2 = Block(b, d_emb), nn.Conv2d(b, b, 2, stride=2)
        flat = b * (img_size // 16) ** 2 + d_emb
        self.head = nn.Sequential(nn.Linear(flat, 512), nn.SiLU(), nn.Linear(512, 2 * z_dim))

    def forward(self, x, condition):
        emb = self.embed(condition.features())
        h = self.stem(channels_last(F.pixel_unshuffle(x, 4)))
        h = self.down2(self.enc2(self.down1(self.enc1(h, emb)), emb))
        mu, log_var = self.head(torch.cat([F.silu(h).flatten(1), emb], 1)).float().chunk(2, 1)
        return mu, log_var.clamp(-14, 6)  # (N, z_dim) each


class Decoder(nn.Module):
    """x_hat of p(x | z, c), [N, 1, H, H]: plane waves on 4 x 4 cells of pixels, and convolutions on top.

    A crystal is a sum of plane waves around the image centre.  z and c choose a few linear maps of the coordinates
    (which ones is learned: turns, stretches, shears), and in mapped coordinates the waves are 16, 8, 4, 2 and 1 lattice
    constants long: the longest find the right angle from afar, the shortest say where in the lattice a cell lies.
    """

    def __init__(self, img_size, z_dim, maps=4, width=64, d_emb=256):
        super().__init__()
        self.cells = img_size // 4
        self.embed = nn.Sequential(nn.Linear(z_dim + 25, d_emb), nn.SiLU(), nn.Linear(d_emb, d_emb), nn.SiLU())
        self.maps = nn.Linear(d_emb, 4 * maps)
        self.stem = nn.Conv2d(2 * maps * 11 + 2, width, 1)
        self.blocks = nn.ModuleList(Block(width, d_emb) for _ in range(2))
        self.norm, self.out = nn.GroupNorm(width // 16, width), nn.Conv2d(width, 16, 3, padding=1)
        turn = torch.arange(maps) * math.pi / 3 / maps
        nn.init.normal_(self.maps.weight, std=0.02)
        with torch.no_grad():
            self.maps.bias.copy_(torch.stack([turn.cos(), turn.sin(), -turn.sin(), turn.cos()], 1).flatten())

    def forward(self, z, condition):
        emb = self.embed(torch.cat([z, condition.features()], 1))
        with torch.autocast(z.device.type, enabled=False):  # positions deserve all their digits
            waves = self.waves(emb.float())
        h = self.stem(channels_last(waves))
        for block in self.blocks:
            h = block(h, emb)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), 4).float()

    def waves(self, emb):
        """Cell centres r in units of 32 px, mapped coordinates A r, and their waves: [N, 22 maps + 2, ...]."""
        A, n = self.maps(emb).view(len(emb), -1, 2), self.cells
        centre = (4 * torch.arange(n, device=emb.device) + 1.5 - 2 * n) / 32
        r = torch.stack([centre.expand(n, n), centre[:, None].expand(n, n)]).flatten(1)  # x and y: (2, n n)
        uv = A @ r  # (N, 2 maps, n n)
        waves_per_unit = 32 / data.SPACING * 2.0 ** torch.arange(-4, 1, device=emb.device)
        phase = 2 * math.pi * uv[:, :, None] * waves_per_unit[:, None]
        waves = torch.cat([uv, phase.sin().flatten(1, 2), phase.cos().flatten(1, 2), r.expand(len(emb), -1, -1)], 1)
        return waves.unflatten(2, (n, n))


class Mlp(nn.Module):
    """Digits: 784-512-256-128-z, or its mirror, beside the digit that is asked for (11 numbers: 10, and not known)."""

    def __init__(self, *widths):
        super().__init__()
        widths = (widths[0] + 11, *widths[1:])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, h, condition):
        known = condition.known.float()[:, None]
        h = torch.cat([h.flatten(1), F.one_hot(condition.kind, 10) * known, 1 - known], 1)
        for layer in self.layers[:-1]:
            h = F.silu(layer(h))
        return self.layers[-1](h).float()


class DigitEncoder(Mlp):
    """mu and log s^2 of q(z | x, c) for images [N, 1, 28, 28]."""

    def __init__(self, z_dim):
        super().__init__(784, 512, 256, 128, 2 * z_dim)

    def forward(self, x, condition):
        mu, log_var = super().forward(x, condition).chunk(2, 1)
        return mu, log_var.clamp(-14, 6)


class DigitDecoder(Mlp):
    """x_hat of p(x | z, c), [N, 1, 28, 28]."""

    def __init__(self, z_dim):
        super().__init__(z_dim, 128, 256, 512, 784)

    def forward(self, z, condition):
        return super().forward(z, condition).view(-1, 1, 28, 28).sigmoid()


class VAE(nn.Module):
    """Encoder and decoder, 1 M parameters.  Without conditions (--uncond) both see none."""

    def __init__(self, encoder, decoder, uncond=False):
        super().__init__()
        self.encoder, self.decoder, self.uncond = encoder, decoder, uncond

    def encode(self, x, condition):
        return self.encoder(x, condition.dropped() if self.uncond else condition)

    def decode(self, z, condition):
        return self.decoder(z, condition.dropped() if self.uncond else condition)


def is_digits(config):
    return config.get("data") == "mnist"  # a checkpoint older than the digits does not say


def build(config):
    """The network a config describes, with fresh weights that depend on its seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        if is_digits(config):
            net = VAE(DigitEncoder(config["z_dim"]), DigitDecoder(config["z_dim"]), config["uncond"])
        else:
            size = config["img_size"], config["z_dim"]
            net = VAE(Encoder(*size), Decoder(*size), config["uncond"])
    return net.to(memory_format=torch.channels_last)


def reparameterise(mu, log_var, eps):
    """z = mu + s eps, a draw of q through which gradients reach mu and s."""
    return mu + (log_var / 2).exp() * eps


# ------------------------------------------------------------------------------------------------------------- the loss


def kl_nats(mu, log_var):
    """KL(N(mu, s^2) || N(0, 1)) of each latent of each image, in nats: [N, z_dim]."""
    return (mu.square() + log_var.exp() - 1 - log_var) / 2


def loss_of(x, x_hat, mu, log_var, beta, free_bits=0.0):
    """|x - x_hat|^2 + beta sum_j max(KL_j, free_bits), KL_j the mean over the batch; and its terms in stated units."""
    square = (x - x_hat).square().flatten(1).sum(1).mean()  # summed over pixels, mean over images
    kl = kl_nats(mu, log_var).mean(0)  # nats per latent: (z_dim,)
    loss = square + beta * kl.clamp_min(free_bits).sum()
    lifted = (free_bits - kl).relu().sum()
    return loss, {"mse_per_pixel": square / x[0].numel(), "kl_nats": kl.sum(), "free_bits_added_nats": lifted}


def elbo_nats(x, x_hat, mu, log_var, beta):
    """Evidence lower bound of each image, one draw of z each, for Gaussian pixels of variance beta / 2: [N]."""
    square, D = (x - x_hat).square().flatten(1).sum(1), x[0].numel()
    return -square / beta - D / 2 * math.log(math.pi * beta) - kl_nats(mu, log_var).sum(1)


# --------------------------------------------------------------------------------------------------------- the training


def load_source(config):
    """Where training data come from: the digits, a built file, or None for crystals rendered on the fly."""
    if is_digits(config):
        x_u8, labels = data.load_mnist(config["data_dir"], train=True)
        return {"x_u8": x_u8, "y_cat": labels, "y_cont": torch.zeros(len(labels), 4)}
    return data.load_built(config["data_path"]) if config.get("data_path") else None


def training_batch(config, step, source, n, held_out=False):
    """x in [0, 1] and condition of training step `step`, a function of (seed, step)."""
    x_u8, condition = training.crystal_batch(config, step, source, n, held_out)
    return x_u8.float() / 255, condition


def held_out_batch(config, n, digits=None):
    """x in [0, 1] and condition of the first n held-out images; of digits: test digits, or (x_u8, labels) given."""
    if not is_digits(config):
        return training_batch(config, 0, None, n, held_out=True)
    x_u8, labels = digits or data.load_mnist(config["data_dir"], train=False)
    return x_u8[:n].float() / 255, digits_asked(labels[:n])


def digits_asked(labels):
    return data.told(labels, torch.zeros(len(labels), 4))


def update_ema(ema, net, decay, step):
    """ema <- d ema + (1 - d) net, d rising to `decay`."""
    d = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(ema.parameters()), [p.detach() for p in net.parameters()], 1 - d)


@torch.no_grad()
def exam_report(net, x, condition, config, seed=0):
    """Held-out numbers of a network: dict of floats, and the reconstructions [N, 1, H, H] from the posterior means.

    One draw of z an image, noise from (seed, image), for the evidence bound; the mean of z for the reconstruction.
    """
    parts, recon, device = [], [], next(net.parameters()).device
    for rows in torch.arange(len(x)).split(64):
        x_, c = x[rows].to(device), condition.map(lambda v, rows=rows: v[rows].to(device))
        with training.autocast(device, config["precision"]):
            mu, log_var = net.encode(x_, c)
            eps = training.noise_of([training.generator(seed, 2, i) for i in rows.tolist()], mu.shape[1:], device)
            x_hat, x_mean = net.decode(reparameterise(mu, log_var, eps), c), net.decode(mu, c).clamp(0, 1)
        parts.append((elbo_nats(x_, x_hat, mu, log_var, config["beta"]), kl_nats(mu, log_var), x_mean - x_))
        recon.append(x_mean.cpu())
    elbo, kl, error = map(torch.cat, zip(*parts, strict=True))
    each = error.square().mean((1, 2, 3)).sqrt()
    report = {"n_held_out": len(x), "reconstruction_rmse": error.square().mean().sqrt(),
              "reconstruction_worst": each.max(), "elbo_nats": elbo.mean(), "kl_nats": kl.sum(1).mean(),
              "active_latents": (kl.mean(0) > ACTIVE).sum()}
    return {k: float(v) for k, v in report.items()}, torch.cat(recon)


def train(config, out, device, checkpoint=None):
    """Train until config["train_steps"], or until Ctrl-C; writes last.pt, log.jsonl and loss.png."""
    net, source = build(config).to(device), load_source(config)
    ema = training.start_ema(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config["lr"], betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    start = training.restore(checkpoint, net, ema, optimizer, out)
    log, sums, clock = training.Log(out / "log.jsonl", start), {}, training.stopwatch()
    every, since = min(250, config["save_every"]), start
    exam = held_out_batch(config, EXAM)

    with training.finish_the_step() as stop:
        for step in (bar := training.steps(start, config["train_steps"])):
            x, condition = training_batch(config, step, source, n := config["batch_size"])
            g = training.generator(config["seed"], step, 0)
            eps = torch.randn(n, config["z_dim"], generator=g)
            condition = condition._replace(known=torch.rand(n, generator=g) >= config["cond_drop"])
            x, eps, condition = x.to(device), eps.to(device), condition.map(lambda c: c.to(device))

            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate(step, config["train_steps"], config["lr"])
            beta = config["beta"] * min(1, (step + 1) / max(1, config["beta_warmup"]))
            with training.autocast(device, config["precision"]):
                mu, log_var = net.encode(x, condition)
                x_hat = net.decode(reparameterise(mu, log_var, eps), condition)
            loss, terms = loss_of(x, x_hat, mu, log_var, beta, config["free_bits"])
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            training.check_finite(loss.item() + norm.item(), step + 1, out)
            optimizer.step()
            update_ema(ema, net, config["ema_decay"], step)

            for key, value in {"loss": loss, **terms}.items():
                sums[key] = sums.get(key, 0.0) + value.item()
            done = step + 1
            if done % every == 0 or done == config["train_steps"]:
                mean = {key: value / (done - since) for key, value in sums.items()}
                report, _ = exam_report(ema, *exam, config)
                log.add(step=done, beta=beta, **mean, seconds=round(clock(), 1), held_out=report)
                bar.set_postfix(loss=f"{mean['loss']:.3f}", held_out_rmse=f"{report['reconstruction_rmse']:.4f}")
                sums, since = {}, done
            if done % config["save_every"] == 0 or done == config["train_steps"] or stop:
                training.save_run(out, "vae", config, done, net, ema, optimizer)
                pictures.loss_curve(out / "loss.png", log.lines, *CURVES)
            if stop:
                training.leave(done, config["train_steps"], out)
    return ema


# --------------------------------------------------------------------------------------------------------- the sampling


def training_labels(config, source):
    """Type and angle [N] of the training set, and rows -> (x, condition), which renders those rows only."""
    if source is not None:
        kind, theta = source["y_cat"], source["y_cont"][:, 1]

        def fetch(rows):
            return source["x_u8"][rows], source["y_cat"][rows], source["y_cont"][rows]
    else:
        of = config["seed"], config["mode"], config["n_types"], config["img_size"]
        labels = data.crystal_labels(0, training.TRAINING_SET, *of)
        kind, theta = labels["kind"], labels["theta"]

        def fetch(rows):
            return map(torch.cat, zip(*(data.crystal_batch(i, 1, *of) for i in rows.tolist()), strict=True))

    def crystals(rows):
        x_u8, kind, cont = fetch(rows)
        return x_u8.float() / 255, data.told(kind, cont)

    return kind, theta, crystals


def nearest_examples(kind, theta, asked):
    """Row of the training example of the same type and the nearest angle, for each condition asked: int64 [N].

    The m-th repeat of a condition gets the m-th nearest, so that it may have another aspect.  Angles lie on a line, not
    on a circle: 0 and pi/3 are the two ends of the range, and (but for the triangular lattice) two images.
    """
    rows, met = torch.empty(len(asked.kind), dtype=torch.long), {}
    for i, (k, t) in enumerate(zip(asked.kind.tolist(), asked.cont[:, 1].tolist(), strict=True)):
        if (k, t) not in met:
            (same,) = torch.where(kind == k)
            if len(same) == 0:
                raise ValueError(f"the training data hold no {data.KINDS[k]} crystal to take a posterior of")
            met[k, t] = iter(same[(theta[same] - t).abs().argsort()].tolist() * (1 + len(rows) // len(same)))
        rows[i] = next(met[k, t])
    return rows


@torch.no_grad()
def decode(net, z, condition, device, precision, batch=64):
    """Images [N, 1, H, H] in [0, 1] of latents [N, z_dim], in batches."""
    out = []
    for rows in torch.arange(len(z)).split(batch):
        with training.autocast(device, precision):
            asked = condition.map(lambda c, rows=rows: c[rows].to(device))
            out.append(net.decode(z[rows].to(device), asked).clamp(0, 1).cpu())
    return torch.cat(out)


@torch.no_grad()
def draw(net, prior, asked, config, seed, device, source=None):
    """Samples [N, 1, H, H] under a prior, "normal" or "mop".  The noise of sample i depends on (seed, i) only."""
    noise = training.noise_of([training.generator(seed, 1, i) for i in range(len(asked.kind))], (config["z_dim"],))
    if prior == "mop":
        kind, theta, crystals = training_labels(config, source)
        rows, z = nearest_examples(kind, theta, asked), []
        for part, eps in zip(rows.split(64), noise.split(64), strict=True):
            x, condition = crystals(part)
            with training.autocast(device, config["precision"]):
                mu, log_var = net.encode(x.to(device), condition.map(lambda c: c.to(device)))
            z.append(reparameterise(mu.cpu(), log_var.cpu(), eps))
        noise = torch.cat(z)
    return decode(net, noise, asked, device, config["precision"])


def r_squared(z, factor):
    """Share of the variance of each latent [N, J] that least squares on features [N, F] of one factor explains."""
    A = torch.cat([torch.ones(len(z), 1), factor.reshape(len(z), -1)], 1).double()
    z = z.double() - z.double().mean(0)
    residual = z - A @ torch.linalg.lstsq(A, z, driver="gelsd").solution
    return 1 - residual.square().sum(0) / z.square().sum(0).clamp_min(1e-12)


@torch.no_grad()
def latent_report(net, config, device, n):
    """What each latent knows: its KL in nats, and R^2 against type, against angle, and (rectangular crystals) aspect.

    One factor at a time: one-hot types; a polynomial of degree 6 in the angle; one of degree 3 in the aspect.  A latent
    that were a factor, disentangled, would have 1 in one place and 0 in the others.
    """
    of = config["mode"], config["n_types"], config["img_size"]
    labels, mu, kl = data.crystal_labels(0, n, config["seed"], *of, stream=1), [], []
    for i in range(0, n, 64):
        x_u8, kind, cont = data.crystal_batch(i, min(64, n - i), config["seed"], *of, stream=1)
        c = data.told(kind, cont).map(lambda v: v.to(device))
        with training.autocast(device, config["precision"]):
            m, v = net.encode(x_u8.to(device).float() / 255, c)
        mu.append(m.cpu())
        kl.append(kl_nats(m, v).cpu())
    mu, kl, rect = torch.cat(mu), torch.cat(kl).mean(0), labels["kind"] == 1
    powers = torch.arange(1, 7)
    angle = (labels["theta"] / data.THETA_MAX * 2 - 1)[:, None] ** powers
    rows = [F.one_hot(labels["kind"], 4)[:, 1:], angle]
    table = {"kl_nats": kl, "type": r_squared(mu, rows[0]), "angle": r_squared(mu, rows[1])}
    if rect.any():
        table["aspect"] = r_squared(mu[rect], (labels["aspect"][rect, None] - 1.05) ** powers[:3])
    order = kl.argsort(descending=True)
    return {k: v[order].tolist() for k, v in table.items()} | {"latent": order.tolist()}, mu


def traversal(net, mu, report, config, device, path, rows=6, columns=9):
    """A PNG: one held-out crystal, rectangular because those have an aspect; each row moves one latent.

    Across the middle 98 % of its values, among crystals of that type where the decoder is told the type.
    """
    latents, of = report["latent"][:rows], (config["seed"], config["mode"], config["n_types"], config["img_size"])
    kind = data.crystal_labels(0, len(mu), *of, stream=1)["kind"]
    first = int((kind == min(1, config["n_types"] - 1)).nonzero()[0])
    seen = mu if config["uncond"] else mu[kind == kind[first]]
    condition = data.told(*data.crystal_batch(first, 1, *of, stream=1)[1:])
    base, quantile = mu[first], torch.linspace(0.01, 0.99, columns)
    z = base.repeat(len(latents) * columns, 1)
    for i, j in enumerate(latents):
        z[i * columns : (i + 1) * columns, j] = seen[:, j].quantile(quantile)
    same = condition.map(lambda c: c.expand(len(z), *c.shape[1:]))
    tiles = decode(net, z, same, device, config["precision"])
    captions = [f"z{j} = {z[i * columns + k, j]:.2f}" for i, j in enumerate(latents) for k in range(columns)]
    title = "one latent moved a row, the others kept: the most active first"
    pictures.captioned_grid(path, tiles[:, 0], captions, title, columns)


def prior_grid(order, z_dim, columns):
    """Latents at evenly spaced quantiles u of N(0, 1): equal steps are equal shares of what the prior draws.

    Two latents: the plane they span, z_0 to the right and z_1 upwards, [columns^2, 2].  Else one row a latent, in the
    order given, the others 0: [rows columns, z_dim].  And the values along a row, [columns].
    """
    values = torch.special.ndtri((torch.arange(columns) + 0.5) / columns)
    if z_dim == 2:
        return torch.stack([values.repeat(columns), values.flip(0).repeat_interleave(columns)], 1), values
    z = torch.zeros(len(order), columns, z_dim)
    for row, j in zip(z, order, strict=True):
        row[:, j] = values
    return z.flatten(0, 1), values


def digit_map(net, kl, condition, config, device, path, rows=10):
    """A PNG of what the latents of digits mean: `prior_grid`, decoded.  kl: nats in each latent [z_dim]."""
    order, plane = kl.argsort(descending=True).tolist()[:rows], config["z_dim"] == 2
    z, values = prior_grid(order, config["z_dim"], columns := 20 if plane else 12)
    same = condition.map(lambda c: c[:1].expand(len(z), *c.shape[1:]))
    image = pictures.grid_image(decode(net, z, same, device, config["precision"])[:, 0].numpy(), columns)
    height, width = image.shape[:2]
    figure, ax = pictures.plt.subplots(figsize=(9, 9 * height / width + 0.4), layout="constrained")
    ax.imshow(image, extent=(0, columns, 0, height / width * columns))
    ticks = torch.arange(columns) + 0.5
    ax.set_xticks(ticks, [f"{v:.1f}" for v in values], fontsize=7)
    if plane:
        ax.set_yticks(ticks, [f"{v:.1f}" for v in values], fontsize=7)
        ax.set(xlabel="$z_0$, at evenly spaced quantiles of N(0, 1)", ylabel="$z_1$, likewise")
    else:
        ax.set_yticks(len(order) - 0.5 - torch.arange(len(order)), [f"$z_{{{j}}}$  {kl[j]:.1f} nats" for j in order])
        ax.set(xlabel="value of the latent, at evenly spaced quantiles of N(0, 1); the others are 0")
    pictures.save_figure(path, figure)


def sample(net, config, args, out, device):
    """Reconstructions, samples, the traversal, samples.npz, and the numbers."""
    clock, of = training.stopwatch(), config | {"precision": args.precision, "data_dir": args.data_dir}
    here = args.train or Path(args.data_dir, "MNIST").is_dir()
    held_out = held_out_batch(of, HELD_OUT, None if here or not is_digits(of) else digits_that_ship())
    result = {}
    result["held_out"], recon = exam_report(net, *held_out, of)
    r = result["held_out"]
    print(f"reconstruction RMSE {r['reconstruction_rmse']:.4f}, worst {r['reconstruction_worst']:.4f}; "
          f"bound {r['elbo_nats']:.0f} nats, KL {r['kl_nats']:.1f} nats in {r['active_latents']:.0f} latents; "
          f"n = {r['n_held_out']:.0f}")
    kinds, angles = held_out[1].kind[:36].tolist(), held_out[1].cont[:36, 1]
    names = map(str, kinds) if is_digits(of) else map(metrics.caption, kinds, angles)
    tiles = held_out[0][:36, 0].numpy(), recon[:36, 0].numpy()
    pictures.captioned_grid(out / "reconstructions.png", tiles, list(names), "left: held out    right: reconstruction")
    more = sample_digits(net, of, args, out, device, held_out) if is_digits(of) else sample_crystals(
        net, of, args, out, device)
    return result | more | {"n": args.n, "seconds": clock()}


def digits_that_ship():
    """32 test digits uint8 [32, 1, 28, 28] and their labels: enough to see reconstructions without a download."""
    found = training.load_checkpoint(training.SHIPPED / "mnist_judge.pt", "vae_gan")
    return found["digits"], found["labels"]


@torch.no_grad()
def sample_digits(net, config, args, out, device, held_out):
    """Samples from N(0, I), each told its digit where the model is; and the map of the latents."""
    i = torch.arange(args.n)
    asked = digits_asked(i % 10 if args.digit is None else torch.full_like(i, args.digit))
    x = draw(net, "normal", asked, config, args.seed, device)
    captions = [""] * 36 if config["uncond"] else [str(k) for k in asked.kind[:36].tolist()]
    pictures.captioned_grid(out / "samples.png", x[:36, 0].numpy(), captions[: args.n], "samples, z from N(0, I)")
    training.save_npz(out / "samples.npz", x=x.numpy(), kind=asked.kind.numpy())
    digits, told = held_out
    with training.autocast(device, config["precision"]):
        mu, log_var = net.encode(digits.to(device), told.map(lambda c: c.to(device)))
    kl = kl_nats(mu, log_var).mean(0).cpu()
    digit_map(net, kl, asked, config, device, out / "traversal.png")
    return {"latents": {"kl_nats": kl.tolist()}}


def sample_crystals(net, config, args, out, device):
    """Samples under both priors, each beside the nearest true crystal; and what each latent knows."""
    result = {}
    asked = data.asked_for(args.n, args.kind, args.theta, config["mode"], config["n_types"])
    source = load_source(config)
    arrays = {"kind": asked.kind.numpy(), "theta": asked.cont[:, 1].numpy()}
    for prior, name in (("normal", "N(0, I)"), ("mop", "MoP")):
        x = arrays[f"x_{prior}"] = draw(net, prior, asked, config, args.seed, device, source)
        arrays[f"x_{prior}"] = x.numpy()
        tiles, title = x[:36, 0].numpy(), f"samples, z from {name}"
        captions = [metrics.caption(*case) for case in zip(asked.kind[:36], asked.cont[:36, 1], strict=True)]
        if config["mode"] != "full":  # no closed form for what is missing and what is displaced
            print(f"z from {name}:")
            told = (asked.kind, asked.cont[:, 1]) if prior == "mop" or not config["uncond"] else ()
            result[prior], fit, truth = metrics.crystal_report(x, *told, seed=args.seed)
            captions = [metrics.caption(*case) for case in zip(*(c[:36] for c in fit[1:]), strict=True)]
            tiles, title = (tiles, truth[:36, 0].numpy()), f"left: {title}    right: nearest true crystal"
        pictures.captioned_grid(out / f"samples_{prior}.png", tiles, captions, title)
    training.save_npz(out / "samples.npz", x=arrays["x_mop"], **arrays)

    result["latents"], mu = latent_report(net, config, device, PROBED)
    traversal(net, mu, result["latents"], config, device, out / "traversal.png")
    table = result["latents"]
    print("latent   KL/nats" + "".join(f"  R2 {key:8}" for key in table if key not in ("kl_nats", "latent")))
    active = sum(kl > ACTIVE for kl in table["kl_nats"])
    for i, j in enumerate(table["latent"][: max(8, active)]):
        values = [table[key][i] for key in table if key not in ("kl_nats", "latent")]
        print(f"{j:6}{table['kl_nats'][i]:10.2f}" + "".join(f"{v:13.2f}" for v in values))
    return result


# ----------------------------------------------------------------------------------------------------- the command line


def make_parser():
    parser = training.new_parser("vae.py", __doc__)
    add = parser.add_argument_group("model and data (a checkpoint knows its own)").add_argument
    add("--data", choices=("crystals", "mnist"), default="crystals", help="what is learned (default %(default)s)")
    add("--data-dir", metavar="DIR", default="data",
        help="folder that holds MNIST/raw, or that it is downloaded to (default %(default)s)")
    add("--uncond", action="store_true", help="encoder and decoder see no condition")
    add("--z-dim", type=training.number(int, 1, 1024), default=32, help="latents (default %(default)s; digits: 2)")
    add("--beta", type=training.number(float, 0, 1e6, open_low=True), default=0.05, help="weight of the KL beside the "
        "squared error of an image; pixel variance is beta / 2 (default %(default)s; digits: 0.2)")
    add("--beta-warmup", type=training.number(int, 0, 10**9), default=1000, metavar="STEPS",
        help="beta rises from 0 over so many steps (default %(default)s)")
    add("--free-bits", type=training.number(float, 0, 1e6), default=0.0,
        help="nats a latent may hold before its KL costs more: sum_j max(KL_j, this) (default %(default)s)")
    add("--cond-drop", type=training.number(float, 0, 1), default=0.0,
        help="share of training without condition (default %(default)s)")
    add = parser.add_argument_group("sampling").add_argument
    add("--n", "--n-samples", type=training.count, default=36, help="samples of each prior (default %(default)s)")
    add("--digit", type=training.number(int, 0, 9), help="ask for one digit (default: 0 to 9 in turn)")
    training.crystal_flags(parser)
    training.shared_flags(parser, train_steps=8000, batch_size=32, lr=2e-3)
    return parser


def main(argv=None):
    parser = make_parser()
    with training.one_line_errors(parser):
        args, given = training.parse(parser, argv)
        which, digits = "uncond" if args.uncond else "cond", args.data == "mnist"
        if digits:
            parser.set_defaults(**DIGITS)
            args, given = training.parse(parser, argv)
        checkpoint = training.open_checkpoint(args, given, "vae", "vae_mnist.pt" if digits else f"vae_{which}.pt")
        if checkpoint:
            checkpoint["config"].setdefault("data", "crystals")  # older than the digits
            training.take_model_flags(args, given, checkpoint, (*MODEL_FLAGS, "data"))
        which, digits = "uncond" if args.uncond else "cond", args.data == "mnist"  # as the checkpoint says
        if digits and args.train and args.epochs:
            training.settle_epochs(args, given, len(load_source(vars(args))["x_u8"]))
        elif not digits:
            training.settle_crystals(args, given)
        device = training.pick_device(args.device)
        args.precision = training.pick_precision(args.precision, device)
        config = vars(args)
        # MoP takes its examples from the training set, which the seed of the training decides, not that of the sampling
        trained = config if args.train else checkpoint["config"]
        net = None if args.train else training.load_net(build(trained), checkpoint, args, device)
        out = training.run_folder(args, "vae", f"{args.data}_{which}_seed{args.seed}", args.ckpt)
        print(f"device {device}, {args.precision}; output in {out}")
        if args.train:
            training.save_json(out / "config.json", config)
            net = train(config, out, device, checkpoint)
        training.close_run(out, config, sample(net, trained, args, out, device))


if __name__ == "__main__":
    main()
