"""A prior for the VAE's latent: DDPM in 32 dimensions, asked for a type and an angle, decoded by the VAE.

    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps,      abar_t = product of (1 - beta_i) over i <= t,   t = 1 .. T
    loss = |eps - eps_theta(z_t, t, c)|^2 / abar_t,     z_0 the standardised latent of a training crystal
    DDIM: z_s = sqrt(abar_s) z0_hat + sqrt(1 - abar_s - v) eps_hat + sqrt(v) noise
          v = eta^2 (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s);   eta = 1 over all t is DDPM's own sampler

    python latent_prior.py --steps 50

draws 36 crystals from the checkpoint that ships and compares three priors of one VAE on the same conditions: N(0, I),
the mixture of posteriors (MoP), and this one.  It writes samples.png, comparison.png, reverse_diffusion.gif,
samples.npz and metrics.json to outputs/latent_prior/uncond_ddim_seed0/.  Other lessons:

    python latent_prior.py --eta 1 --steps 1000       DDPM ancestral sampling, every step of the chain
    python latent_prior.py --kind 1 --n 512 --cfg 1   512 rectangular crystals: is the law of the aspect right?
    python latent_prior.py --cfg 0                    no condition: the prior has to invent type, angle and aspect
    python latent_prior.py --train --out outputs/me   train from nothing, on the VAE that ships or --vae PATH
    python latent_prior.py --ckpt assets/checkpoints/latent_prior_cond.pt    on the VAE that is told the condition

The default VAE is the unconditional one, so that the prior itself has to know type, angle and aspect.  A conditional
VAE leaves z little to say, and this prior little to learn.  beta is a noise rate here, not the weight of a KL.
DDPM: Ho et al. 2020 (arXiv 2006.11239).  DDIM: Song et al. 2021 (2010.02502).  Latent diffusion: Rombach et al. 2022
(2112.10752).  v inside: Salimans and Ho 2022 (2202.00512).
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy>=2.2,<3", "matplotlib>=3.10,<4", "imageio>=2.37,<3", "pillow>=11",
#                 "tqdm>=4.66,<5", "pooch>=1.8,<2"]
# ///

import hashlib
import math
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import data
import metrics
import pictures
import training
import vae
from make_gif import save_gif

MODEL_FLAGS = ("T", "beta_start", "beta_end", "width", "t_emb_dim", "z_target")  # the checkpoint knows these
BINS = "by t / T; above 0 at its best: no aspect is told", "bins"
UNINFORMATIVE = 1e-4  # below this abar a few-step sampler spends no step: nothing of z_0 is left to see

# --------------------------------------------------------------------------------------------------------- the schedule


class DDPM:
    """The chain of T steps with linear beta; t = 0 is the data, abar_0 = 1.  float64 throughout."""

    def __init__(self, T=1000, beta_start=1e-4, beta_end=0.05):
        self.T = T
        self.beta = np.concatenate([[0.0], np.linspace(beta_start, beta_end, T)])  # beta[t], t = 1 .. T
        self.log_abar = np.cumsum(np.log1p(-self.beta))

    def alpha_sigma(self, t):
        """sqrt(abar_t) and sqrt(1 - abar_t) as Python numbers; sqrt(1 - alpha^2) would lose digits near t = 0."""
        return math.exp(self.log_abar[t] / 2), math.sqrt(-math.expm1(self.log_abar[t]))

    def tables(self, device):
        """The same for all t as float32 tensors [T + 1], and the log-SNR, which the network is told as its time."""
        alpha, sigma = np.exp(self.log_abar / 2), np.sqrt(-np.expm1(self.log_abar))
        log_snr = self.log_abar - np.log(np.maximum(-np.expm1(self.log_abar), 1e-12))
        return tuple(torch.from_numpy(v).float().to(device) for v in (alpha, sigma, log_snr))

    def indices(self, steps):
        """Decreasing t of a sampler with so many network calls: all of T .. 1, or even in log-SNR above abar = 1e-4.

        Two fifths of the chain are pure noise (abar_T = 1e-11): a sampler with few steps starts where z_0 begins to
        show.  To start there from N(0, I) misses a mean of a hundredth of z_0.
        """
        if steps >= self.T:
            return list(range(self.T, 0, -1))
        seen = np.flatnonzero(np.exp(self.log_abar) >= UNINFORMATIVE)[1:]  # t = 1 .. the last informative
        log_snr = self.log_abar[seen] - np.log(-np.expm1(self.log_abar[seen]))
        want = np.linspace(log_snr[-1], log_snr[0], steps) if steps > 1 else log_snr[-1:]
        chosen = {int(seen[np.abs(log_snr - w).argmin()]) for w in want}
        spare = iter(sorted(set(range(1, self.T + 1)) - chosen))  # few indices lie at high SNR: the rest goes there
        while len(chosen) < steps:
            chosen.add(next(spare))
        return sorted(chosen, reverse=True)


# ---------------------------------------------------------------------------------------------------------- the network


class Residual(nn.Module):
    """h + W silu(FiLM(norm(h))): one layer whose scale and shift come from time and condition."""

    def __init__(self, width, d_emb):
        super().__init__()
        self.norm, self.film, self.linear = nn.LayerNorm(width), nn.Linear(d_emb, 2 * width), nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)  # a new block is the identity
        nn.init.zeros_(self.linear.bias)

    def forward(self, h, emb):
        scale, shift = self.film(emb).chunk(2, 1)
        return h + self.linear(F.silu(torch.addcmul(shift, self.norm(h), 1 + scale)))


class Prior(nn.Module):
    """eps_theta(z_t, t, c) for standardised latents [N, z_dim]: a residual MLP.

    It predicts v = alpha eps - sigma z_0 inside and returns eps = sigma z_t + alpha v, whose error in z_0 stays bounded
    where z_t is all noise: few-step sampling begins there.  mean and std, the standardisation, travel with the weights.
    """

    def __init__(self, schedule, z_dim, width=1024, t_emb_dim=64, blocks=3):
        super().__init__()
        self.schedule, self.t_emb_dim = schedule, t_emb_dim
        self.embed = nn.Sequential(nn.Linear(t_emb_dim + 25, 192), nn.SiLU(), nn.Linear(192, 192), nn.SiLU())
        self.stem = nn.Linear(z_dim, width)
        self.blocks = nn.ModuleList(Residual(width, 192) for _ in range(blocks))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, z_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("mean", torch.zeros(z_dim))
        self.register_buffer("std", torch.ones(z_dim))
        for name, table in zip(("alpha", "sigma", "log_snr"), schedule.tables("cpu"), strict=True):
            self.register_buffer(name, table, persistent=False)

    def standardise(self, z):
        return (z - self.mean) / self.std

    def restore(self, z):
        return z * self.std + self.mean

    def forward(self, z, t, condition):
        """eps_theta.  z: [N, z_dim]; t: int64 [N] in 1 .. T."""
        return self.sigma[t, None] * z + self.alpha[t, None] * self.v(z, t, condition)

    def v(self, z, t, condition):
        angle = self.log_snr[t, None] / 2 * torch.logspace(-1, 1, self.t_emb_dim // 2, device=z.device)
        emb = self.embed(torch.cat([angle.sin(), angle.cos(), condition.features()], 1))
        h = self.stem(z)
        for block in self.blocks:
            h = block(h, emb)
        return self.out(F.silu(self.norm(h))).float()


def build(config):
    """The network a config describes, with fresh weights that depend on its seed alone."""
    schedule = DDPM(config["T"], config["beta_start"], config["beta_end"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        return Prior(schedule, config["z_dim"], config["width"], config["t_emb_dim"])


def eps_of(net, device, precision):
    """The network's public face, eps(z, t, condition), t one step of the chain."""

    def eps(z, t, condition):
        with training.autocast(device, precision):
            e = net(z.to(device), torch.full((len(z),), t, device=device), condition.map(lambda c: c.to(device)))
        return e.to(z.device)

    return eps


def guided(eps, condition, w):
    """eps(z, t) under classifier-free guidance, eps_u + w (eps_c - eps_u).  At w = 1 or 0 one half is not computed."""
    if w == 1:
        return lambda z, t: eps(z, t, condition)
    if w == 0:
        return lambda z, t: eps(z, t, condition.dropped())
    both = data.Condition(*map(torch.cat, zip(condition.dropped(), condition, strict=True)))

    def eps_w(z, t):
        eps_u, eps_c = eps(torch.cat([z, z]), t, both).chunk(2)
        return eps_u + w * (eps_c - eps_u)

    return eps_w


# ---------------------------------------------------------------------------------------------------------- the sampler


def ddim(eps, z, indices, schedule, eta=0.0, noise=None):
    """DDIM from z at indices[0] down to z_0; yields (t, z, z0_hat), at last (0, z_0, z_0).

    eps: eps(z, t).  indices: decreasing steps of the chain.  eta = 0 is deterministic; eta = 1 over every index is the
    DDPM ancestral sampler with the posterior variance.  noise: an iterable of standard normals shaped like z (eta > 0).
    """
    noise = iter(noise) if eta else None
    for t, s in pairwise([*indices, 0]):
        (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        e = eps(z, t)
        z0_hat = (z - sigma * e) / alpha
        yield t, z, z0_hat
        between = -math.expm1(schedule.log_abar[t] - schedule.log_abar[s])  # 1 - abar_t / abar_s
        v = (eta * sigma_s / sigma) ** 2 * between
        z = alpha_s * z0_hat + math.sqrt(max(sigma_s**2 - v, 0.0)) * e
        if v > 0:
            z = z + math.sqrt(v) * next(noise)
    yield 0, z, z


# ---------------------------------------------------------------------------------------------------------- the latents


def fingerprint(net):
    """Which VAE this is: a hash of its weights in half precision, so that a run and its shipped copy are one VAE."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_vae(path, device):
    """The VAE of a checkpoint, its config and its fingerprint.  Its weights are rounded as in a shipped file."""
    path = Path(path) if Path(path).exists() else Path(__file__).parent / path
    checkpoint = training.load_checkpoint(path, "vae", vae.make_parser())
    if missing := [key for key in (*vae.MODEL_FLAGS, "data_path") if key not in checkpoint["config"]]:
        raise ValueError(f"{path} does not say its {missing[0]}: it is damaged, or of another version")
    if vae.is_digits(checkpoint["config"]):
        raise ValueError(f"{path} is a VAE of digits: this prior is one of crystals")
    net = training.load_weights(vae.build(checkpoint["config"]), checkpoint["ema"], path).half().float().eval()
    return net.to(device).requires_grad_(False), checkpoint["config"], fingerprint(net)


@torch.no_grad()
def encode_all(net, vae_config, n, device, precision, batch=250):
    """Posteriors of the first n training crystals of the VAE: dict of mu, log_var [n, z_dim], kind [n], cont [n, 4]."""
    source, parts = vae.load_source(vae_config), []
    n = n if source is None else len(source["x_u8"])
    of = vae_config["seed"], vae_config["mode"], vae_config["n_types"], vae_config["img_size"]
    for i in tqdm(range(0, n, batch), desc="encoding", unit="batch", dynamic_ncols=True):
        m = min(batch, n - i)
        if source is None:
            x_u8, kind, cont = data.crystal_batch(i, m, *of)
        else:
            x_u8, kind, cont = (source[key][i : i + m] for key in ("x_u8", "y_cat", "y_cont"))
        condition = data.told(kind, cont)
        with training.autocast(device, precision):
            mu, log_var = net.encode(x_u8.to(device).float() / 255, condition.map(lambda c: c.to(device)))
        parts.append((mu.cpu(), log_var.cpu(), kind, cont))
    return dict(zip(("mu", "log_var", "kind", "cont"), map(torch.cat, zip(*parts, strict=True)), strict=True))


def cached_latents(path, make, label):
    """The latents in a file, if they are those that `label` describes (VAE, data); else made, and written there.

    A stale, damaged or foreign file is replaced with a message; it is never used.
    """
    if Path(path).is_file():
        cache = training.read_whole(path) or {}
        if cache.get("label") == label:
            return cache["latents"]
        why = "belongs to another VAE or to other data" if "latents" in cache else "is damaged or no latent cache"
        print(f"{path} {why}: encoding again")
    latents = make()
    training.save_checkpoint(path, {"label": label, "latents": latents})
    return latents


# --------------------------------------------------------------------------------------------------------- the training


def training_batch(config, step, latents, n):
    """Latents z_0 [n, z_dim], not yet standardised, and condition of training step `step`, from (seed, step)."""
    g = training.generator(config["seed"], step, 1)
    rows = torch.randint(len(latents["mu"]), (n,), generator=g)
    z = latents["mu"][rows]
    if config["z_target"] == "sample":
        z = vae.reparameterise(z, latents["log_var"][rows], torch.randn(z.shape, generator=g))
    return z, data.told(latents["kind"][rows], latents["cont"][rows])


def loss_of(net, z0, condition, t, eps):
    """|eps - eps_theta|^2 / abar_t per latent, which is |v - v_theta|^2, for standardised z_0: [N].

    The minimiser is that of the DDPM objective at every t.  Unweighted, a wrong type at abar = 1e-3 would cost a
    thousandth of what it costs near the data, and be learned last: but that is where few-step sampling decides it.
    """
    alpha, sigma = net.alpha[t, None], net.sigma[t, None]
    return (net.v(alpha * z0 + sigma * eps, t, condition) - (alpha * eps - sigma * z0)).square().mean(1)


def train(config, out, device, latents, checkpoint=None):
    """Train until config["train_steps"], or until Ctrl-C; writes last.pt, log.jsonl and loss.png."""
    net, T = build(config).to(device), config["T"]
    spread = latents["log_var"].exp().mean(0) if config["z_target"] == "sample" else 0.0
    net.mean.copy_(latents["mu"].mean(0))
    net.std.copy_((latents["mu"].var(0) + spread).sqrt().clamp_min(1e-4))
    ema = training.start_ema(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=config["lr"], betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    start = training.restore(checkpoint, net, ema, optimizer, out)
    log, clock, edges = training.Log(out / "log.jsonl", start), training.stopwatch(), 8
    every, since, total, bins = min(250, config["save_every"]), start, 0.0, torch.zeros(2, edges)

    with training.finish_the_step() as stop:
        for step in (bar := training.steps(start, config["train_steps"])):
            z0, condition = training_batch(config, step, latents, n := config["batch_size"])
            g = training.generator(config["seed"], step, 0)
            t = (torch.arange(n) + torch.rand(n, generator=g)) / n  # one in each n-th: a less noisy gradient
            t = 1 + (t * T).long().clamp_max(T - 1)  # uniform on 1 .. T
            eps = torch.randn(z0.shape, generator=g)
            condition = condition._replace(known=torch.rand(n, generator=g) >= config["p_uncond"])
            z0, t, eps, condition = z0.to(device), t.to(device), eps.to(device), condition.map(lambda c: c.to(device))

            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate(step, config["train_steps"], config["lr"])
            with training.autocast(device, config["precision"]):
                each = loss_of(net, net.standardise(z0), condition, t, eps)
            loss = each.mean()
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            training.check_finite(loss.item() + norm.item(), step + 1, out)
            optimizer.step()
            vae.update_ema(ema, net, config["ema_decay"], step)

            total, done, where = total + loss.item(), step + 1, ((t.cpu() - 1) * edges // T)
            counts = torch.bincount(where, minlength=edges)
            bins += torch.stack([torch.bincount(where, each.detach().cpu(), edges), counts])
            if done % every == 0 or done == config["train_steps"]:
                means = (bins[0] / bins[1].clamp_min(1)).tolist()
                log.add(step=done, loss=total / (done - since), seconds=round(clock(), 1),
                        bins={f"{(i + 0.5) / edges:.2f}": v for i, v in enumerate(means)})
                bar.set_postfix(loss=f"{total / (done - since):.5f}")
                total, since, bins = 0.0, done, torch.zeros(2, edges)
            if done % config["save_every"] == 0 or done == config["train_steps"] or stop:
                training.save_run(out, "latent_prior", config, done, net, ema, optimizer)
                pictures.loss_curve(out / "loss.png", log.lines, pictures.LOSS, BINS)
            if stop:
                training.leave(done, config["train_steps"], out)
    return ema


# --------------------------------------------------------------------------------------------------------- the sampling


@torch.no_grad()
def draw(net, condition, args, device, keys=None):
    """Latents [N, z_dim] for N conditions, and a film of the first 36: at most 32 moments (t, z), restored.

    The noise of sample i is drawn from (seed, keys[i]), keys[i] = i unless given.  Raises FloatingPointError.
    """
    n, indices, film = len(condition.kind), net.schedule.indices(args.steps), []
    shown, keys = pictures.evenly(range(len(indices) + 1), 32), keys or range(n)
    generators = [training.generator(args.seed, key) for key in keys]
    noise = (training.noise_of(generators, net.mean.shape) for _ in count())  # again and again
    eps = guided(eps_of(net, device, args.precision), condition, args.cfg)
    moments = ddim(eps, next(noise), indices, net.schedule, args.eta, noise)
    with tqdm(total=len(indices), desc="sampling", unit="step", dynamic_ncols=True) as bar:
        for i, (t, z, _) in enumerate(moments):
            if not bool(z.isfinite().all()):
                raise FloatingPointError(f"the state blew up before t = {t}: take more --steps, or a smaller --cfg")
            if i in shown:
                film.append((t, net.restore(z[:36].to(device)).cpu()))
            bar.update(t > 0)
    return net.restore(z.to(device)).cpu(), film


def sample(net, vae_net, vae_config, args, out, device):
    """The decoded grid, the film, three priors compared on the same conditions, samples.npz, and the numbers."""
    clock, of = training.stopwatch(), vae_config | {"precision": args.precision}
    asked = data.asked_for(args.n, args.kind, args.theta, vae_config["mode"], vae_config["n_types"])
    source = vae.load_source(vae_config)
    seconds = training.stopwatch()
    z, film = draw(net, asked, args, device)
    x = {"diffusion": vae.decode(vae_net, z, asked, device, args.precision)}
    seconds = seconds()
    for prior in ("mop", "normal"):
        x[prior] = vae.draw(vae_net, prior, asked, of, args.seed, device, source)
    kind, theta = asked.kind, asked.cont[:, 1]
    few = asked.map(lambda c: c[:36])
    frames = [vae.decode(vae_net, z_t, few, device, args.precision)[:, 0].numpy() for _, z_t in film]
    save_gif([pictures.grid_image(tiles, 6) for tiles in frames], out / "reverse_diffusion.gif")
    arrays = dict(x=x["diffusion"], z=z, kind=kind, theta=theta)
    training.save_npz(out / "samples.npz", **{key: value.numpy() for key, value in arrays.items()})
    result = {"n": args.n, "seconds_drawing": seconds, "ms_per_image": 1000 * seconds / args.n}
    captions = [metrics.caption(*case) for case in zip(kind[:36], theta[:36], strict=True)]
    if vae_config["mode"] == "full":  # no closed form for what is missing and what is displaced
        pictures.captioned_grid(out / "samples.png", x["diffusion"][:36, 0], captions, "samples, mode full")
        return result | {"seconds": clock()}
    names, rows = {"normal": "N(0, I)", "mop": "MoP", "diffusion": "diffusion prior"}, []
    for prior, name in names.items():
        print(f"{name}:")
        told = () if prior == "diffusion" and args.cfg == 0 else (kind, theta)
        result[prior], fit, truth = metrics.crystal_report(x[prior], *told, seed=args.seed)
        nearest = metrics.crystal_error(x[prior][:36]) if told else fit  # a slow search, so of the first 36 only
        result[prior]["error_nearest_of_any"] = float(nearest.error[:36].mean())
        rows.append(f"{name:16}" + "".join(f"{result[prior].get(key, math.nan):14.5f}" for key in COLUMNS))
    print(f"{'crystal error':16}" + "".join(f"{title:>14}" for title in COLUMNS.values()) + f"      (n = {args.n})")
    floors = [result["mop"][f"{key}_floor"] for key in ("crystal_error", "crystal_error", "mass_w1", "fft_radial_l2")]
    print("\n".join([*rows, f"{'true crystals':16}" + "".join(f"{v:14.5f}" for v in floors)]))
    captions = [metrics.caption(*case) for case in zip(fit.kind[:36], fit.theta[:36], fit.aspect[:36], strict=True)]
    tiles = {prior: images[:36, 0].numpy() for prior, images in x.items()}
    pictures.captioned_grid(out / "samples.png", (tiles["diffusion"], truth[:36, 0]), captions,
                            "left: sample of the diffusion prior    right: nearest true crystal")
    sets = *(tiles[prior][:12] for prior in names), truth[:12, 0]
    pictures.captioned_grid(out / "comparison.png", sets, captions[:12],
                            "left to right: N(0, I), MoP, diffusion prior, and the true crystal nearest to the last", 3)
    return result | {"seconds": clock()}


COLUMNS = {"crystal_error_mean": "to the asked", "error_nearest_of_any": "to any (36)", "mass_w1": "mass_w1",
           "fft_radial_l2": "fft_radial_l2"}

# ----------------------------------------------------------------------------------------------------- the command line


def make_parser():
    parser = training.new_parser("latent_prior.py", __doc__)
    add = parser.add_argument_group("model and data (a checkpoint knows its own)").add_argument
    add("--vae", "--vae-ckpt", metavar="PATH", default="assets/checkpoints/vae_uncond.pt",
        help="checkpoint or run folder of the VAE whose latents these are (default %(default)s)")
    add("--vae-fingerprint", metavar="HASH", help="of the VAE's weights: refuse any other")
    add("--z-dim", type=training.count, help="latents; the VAE knows its own, and another number is refused")
    add("--T", type=training.number(int, 2, 10**5), default=1000, help="steps of the chain (default %(default)s)")
    add("--beta-start", type=training.number(float, 0, 1, True, True), default=1e-4,
        help="noise rate of step 1 (default %(default)s)")
    add("--beta-end", type=training.number(float, 0, 1, True, True), default=0.05,
        help="noise rate of step T (default %(default)s)")
    add("--width", type=training.number(int, 1, 16384), default=1024, help="of the residual MLP (default %(default)s)")
    add("--t-emb-dim", type=training.number(int, 2, 4096), default=64,
        help="sines of log-SNR, an even number (default %(default)s)")
    add("--z-target", choices=("mu", "sample"), default="mu",
        help="learn posterior means, or posterior draws (default %(default)s)")
    add("--latent-cache", metavar="FILE",
        help="where the encoded latents are kept (default: latents.pt in the output folder)")
    add("--n-latents", type=training.count, default=20_000,
        help="crystals encoded where the VAE rendered its own (default %(default)s)")
    add("--p-uncond", type=training.number(float, 0, 1), default=0.1,
        help="share of training without condition (default %(default)s)")
    add = parser.add_argument_group("sampling").add_argument
    add("--steps", type=training.count, default=50, help="network calls per sample, at most T (default %(default)s)")
    add("--eta", type=training.number(float, 0, 1), default=0.0,
        help="0: deterministic DDIM; 1: ancestral, as DDPM (default %(default)s)")
    add("--cfg", type=training.number(float, 0), default=1.5,
        help="guidance w in eps_u + w (eps_c - eps_u): 0 unconditional, 1 plain conditional (default %(default)s)")
    add("--n", "--n-samples", type=training.count, default=36, help="samples of each prior (default %(default)s)")
    training.asking_flags(add)
    training.shared_flags(parser, train_steps=6000, batch_size=256, lr=1e-3)
    return parser


def settle(args, given, checkpoint):
    """Refuse what does not go together.  Says nothing about the VAE, which is not loaded yet."""
    if checkpoint:
        training.take_model_flags(args, given, checkpoint, (*MODEL_FLAGS, "z_dim", "vae_fingerprint"))
        args.vae = args.vae if "vae" in given else checkpoint["config"].get("vae", args.vae)
    if args.steps > args.T:
        raise ValueError(f"--steps {args.steps} is more than the chain has: T is {args.T}")
    if args.beta_end < args.beta_start:
        raise ValueError(f"--beta-end {args.beta_end} is below --beta-start {args.beta_start}")
    if args.t_emb_dim % 2:
        raise ValueError(f"--t-emb-dim must be even, not {args.t_emb_dim}")


def settle_vae(args, vae_config, found, own):
    """The same about the VAE: it must be the one this prior was trained on, and know what is asked."""
    if args.z_dim not in (None, vae_config["z_dim"]):
        raise ValueError(f"--z-dim {args.z_dim} contradicts the VAE in {args.vae}, which has {vae_config['z_dim']}")
    if args.vae_fingerprint not in (None, found):
        raise ValueError(f"this prior was trained on another VAE than {args.vae}: name its own{own} with "
                         "--vae, or with --ckpt a prior that was trained on this one")
    args.z_dim, args.vae_fingerprint = vae_config["z_dim"], found
    if args.kind is not None and args.kind >= vae_config["n_types"]:
        raise ValueError(f"--kind {args.kind} is not among the {vae_config['n_types']} types of the VAE")
    if args.theta and vae_config["mode"] == "simple":
        raise ValueError("--theta: crystals of mode simple are not turned")


def main(argv=None):
    parser = make_parser()
    with training.one_line_errors(parser):
        args, given = training.parse(parser, argv)
        checkpoint = training.open_checkpoint(args, given, "latent_prior", "latent_prior.pt")
        settle(args, given, checkpoint)
        device = training.pick_device(args.device)
        args.precision = training.pick_precision(args.precision, device)
        vae_net, vae_config, found = load_vae(args.vae, device)
        settle_vae(args, vae_config, found, f", {checkpoint['config'].get('vae')}," if checkpoint else "")
        training.settle_epochs(args, given, args.n_latents)
        config = vars(args)
        net = None if args.train else training.load_net(build(config), checkpoint, args, device)
        which = "uncond" if vae_config["uncond"] else "cond"
        out = training.run_folder(args, "latent_prior", f"{which}_ddim_seed{args.seed}", args.ckpt)
        print(f"device {device}, {args.precision}; output in {out}")
        if args.train:
            training.save_json(out / "config.json", config)
            source = vae.load_source(vae_config)
            content = b"".join(v.numpy().tobytes() for v in source.values()) if source else b"rendered on the fly"
            label = dict(vae=found, data=hashlib.sha256(content).hexdigest(), n=args.n_latents, seed=vae_config["seed"],
                         precision=args.precision)
            cache = args.latent_cache or out / "latents.pt"
            latents = cached_latents(
                cache, lambda: encode_all(vae_net, vae_config, args.n_latents, device, args.precision), label)
            net = train(config, out, device, latents, checkpoint)
        training.close_run(out, config, sample(net, vae_net, vae_config, args, out, device))


if __name__ == "__main__":
    main()
