"""The trial: what the torch scripts do, put beside what the closed forms say they should do.

    samplers   every step in torch is the step of reference_gmm_sde.py, from one start and with the same injected noise
    score      sigma^2 E|s_theta - s*|^2 / D  =  E|eps_theta - eps*|^2 / D         error of a network, by bins of t
    loss       E|eps_theta - eps|^2  =  E|eps_theta - eps*|^2  +  E|eps* - eps|^2      best possible: the second term

    python audit.py

judges the samplers and every checkpoint that ships but those of digits, in about three minutes on two cores.  It prints
one table, writes it with its pictures to outputs/audit/, and ends with exit status 1 if a claim fails.  A row without a
tolerance only reports: under "expected" stands the best that could be had.

    python audit.py --quick                only the rows that need no checkpoint, in seconds; pytest runs them too
    python audit.py --ckpt outputs/mine    other runs of vp_sde.py or latent_prior.py: each knows its own data

Left out: the judge's own formulas, which `python reference_gmm_sde.py --audit` puts on trial.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy>=2.2,<3", "matplotlib>=3.10,<4", "imageio>=2.37,<3", "pillow>=11",
#                 "tqdm>=4.66,<5", "pooch>=1.8,<2"]
# ///

import argparse
import sys
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch

import data
import dddm
import latent_prior
import metrics
import pictures
import reference_gmm_sde as reference
import training
import vae
import vp_sde
from make_gif import save_gif

# ----------------------------------------------------------------------------------------------- rows without a network
# Each row returns (claim, expected, measured, tolerance) and passes if |measured - expected| <= tolerance. Tolerances
# come from theory or from what was asked for, never from what came out. None marks a report.

NUMPY = {"sde": reference.euler_maruyama, "ode": reference.heun, "dpmpp": reference.dpmpp_2m}


def schedules(beta_max):
    ours, theirs = vp_sde.VP(0.1, beta_max), reference.VPSchedule(0.1, beta_max)
    t = np.concatenate([[1e-9, 1e-6, 1e-3], np.linspace(0.01, 1, 100)])
    u = torch.from_numpy(t)
    pairs = [(ours.B(u), theirs.B(t)), (ours.beta(u), theirs.beta(t)), (ours.log_snr(u), theirs.log_snr(t))]
    pairs += zip(ours.alpha_sigma(u), theirs.alpha_sigma(t), strict=True)
    gaps = [np.abs(a.numpy() / b - 1).max() for a, b in pairs]
    gaps.append(np.abs(np.subtract(ours.at(0.0), (0.1, 1, 0))).max())  # beta, alpha and sigma where there is no noise
    return f"schedule to beta {beta_max:g}: torch against NumPy, relative", 0, np.max(gaps), 1e-12


def follows(sampler, grid, steps=60, t_end=0.001):
    """The worst difference in t, in x_t, and in x0_hat, which the judge computes as a posterior mean."""
    gmm, rng, schedule = reference.mixture("S"), np.random.default_rng(0), vp_sde.VP(0.1, 20.0)
    start, noise = rng.standard_normal((200, 2)), rng.standard_normal((steps - 1, 200, 2))
    times = reference.time_grid(steps - 1, t_end=t_end, kind=grid)
    theirs = NUMPY[sampler](gmm.score, start, times, reference.VP, *[noise] * (sampler == "sde"))

    def eps(x, t):
        return torch.from_numpy(gmm.eps(x.numpy(), t))

    times = vp_sde.time_grid(steps, t_end, grid, schedule)
    ours = vp_sde.SAMPLERS[sampler](eps, torch.from_numpy(start), times, schedule, torch.from_numpy(noise))
    *path, (end, x_0, _) = ours
    gaps = [abs(end)]  # the last thing a sampler yields is its prediction for t = 0
    for (t, x), (s, y, x0_hat) in zip(theirs, path, strict=True):
        mean = gmm.posterior_mean(x, t)
        gaps += [abs(t - s), np.abs(x - y.numpy()).max(), np.abs(mean - x0_hat.numpy()).max()]
    gaps.append(np.abs(mean - x_0.numpy()).max())
    return f"{sampler}, {grid} grid: torch against NumPy, every step", 0, np.max(gaps), 1e-10


def guidance(w):
    """From the whole letter towards its upper half."""
    whole, x = reference.mixture("S"), np.random.default_rng(0).standard_normal((200, 2))
    half, condition = whole.given(np.arange(24)), data.asked_for(len(x))

    def eps(x, t, condition):
        e_u, e_c = (torch.from_numpy(gmm.eps(x.numpy(), t)) for gmm in (whole, half))
        return torch.where(condition.known[:, None], e_c, e_u)

    ours = [vp_sde.guided(eps, condition, w)(torch.from_numpy(x), t).numpy() for t in (0.02, 0.3)]
    theirs = [reference.guided_eps(whole, half, x, t, w) for t in (0.02, 0.3)]
    return f"guided eps, w = {w}: torch against NumPy", 0, np.abs(np.subtract(ours, theirs)).max(), 1e-10


def noise_left(grid, steps=300, t_end=0.005, n=40_000):
    """Noise at the last network call of the reverse SDE, in units of sigma(t_end), if the data are one point (at 1).

    So it is for every pixel of a crystal of known type and angle. The score is linear in x, hence a step multiplies the
    variance by (1 + beta dt/2 - beta dt/sigma^2)^2 and adds beta dt: what Euler-Maruyama ends with is known exactly.
    """
    schedule, g, v = vp_sde.VP(), training.generator(0, 3), 1.0
    for t, s in pairwise(times := vp_sde.time_grid(steps, t_end, grid, schedule)):
        beta, _, sigma = schedule.at(t)
        v = v * (1 + beta * (t - s) * (0.5 - 1 / sigma**2)) ** 2 + beta * (t - s)
    noise = iter(lambda: torch.randn(n, dtype=torch.float64, generator=g), None)  # endless

    def eps(x, t):
        _, alpha, sigma = schedule.at(t)
        return (x - alpha) / sigma

    *_, (t, x, _), _ = vp_sde.reverse_sde(eps, next(noise), times, schedule, noise)
    measured, expected = float(x.std()) / schedule.at(t)[2], v**0.5 / schedule.at(t_end)[2]
    return f"sde, 300 steps, {grid} grid: noise left / sigma(t_end)", expected, measured, 4 * expected / (2 * n) ** 0.5


def exact_crystals(sampler, calls=19):
    """Given its condition a crystal of type 0, 2 or 3 is one point: who ends with the exact x0_hat ends on it."""
    config = dict(data="crystals", mode="rot-only", img_size=64, beta_min=0.1, beta_max=30.0)
    model = Model("crystals", config, None, vp_sde.exact_eps(config), vp_sde.VP())
    error = crystal_errors(model, "exact", sampler, calls, tuple(i for i in TILES if i % 4 != 1)).max()
    return f"{sampler}, {calls} calls, exact denoiser: worst crystal of types 0, 2, 3", 0, error, 1e-5


def any_number_of_steps(steps, churn, n=4096, seeds=5):
    """Draws of the exact p(x_0 | x_t) in the place of dddm.py's network: no step is too long, no churn is wrong."""
    gmm, rng = dddm.load_source({"data": "mixture"}), np.random.default_rng(0)
    clouds = (dddm.cloud(dddm.exact_drawer(gmm, rng), n, steps, churn, seed) for seed in range(seeds))
    each = [reference.mmd2_to_mixture(x, gmm) for x in clouds]
    claim = f"exact posterior draws, {steps} steps, churn {churn:g}: MMD^2, mean of {seeds} seeds"
    scatter = min(np.std(each, ddof=1), 5e-4)  # exact samples of 4,096 scatter by 1.7e-4: more would hide a bias
    return claim, 0, np.mean(each), 4 * scatter / seeds**0.5


QUICK = [
    *(partial(schedules, beta_max) for beta_max in (20, 30)),
    *(partial(follows, sampler, grid) for sampler in NUMPY for grid in ("quadratic", "logsnr")),
    *(partial(guidance, w) for w in (0, 0.5, 1, 1.5)),
    *(partial(noise_left, grid) for grid in ("uniform", "quadratic", "logsnr")),
    *(partial(exact_crystals, sampler) for sampler in NUMPY),
    *(partial(any_number_of_steps, steps, churn) for steps, churn in ((1, 1), (4, 0), (4, 1), (16, 0.5))),
]

# ---------------------------------------------------------------------------------------- a network and its closed form


@dataclass(frozen=True, eq=False)
class Model:
    name: str  # of the data: crystals, S or circle
    config: dict
    learned: object  # eps(x, t, condition) of the network, and
    exact: object  # of the closed form
    schedule: vp_sde.VP


def load_score(path, checkpoint, device):
    """A checkpoint of vp_sde.py. Raises ValueError where there is no closed form for it."""
    config = checkpoint["config"]
    if missing := {*vp_sde.MODEL_FLAGS, "seed"} - set(config):
        raise ValueError(f"{path} does not say its {min(missing)}: it is damaged, or of another version")
    if config["data"] == "crystals" and (config["mode"], config["n_types"]) != ("rot-only", 4):
        raise ValueError(f"{path}: only crystals of mode rot-only and all four types can be judged")
    net = training.load_weights(vp_sde.build(config), checkpoint["ema"], path).to(device).eval()
    learned = torch.no_grad()(vp_sde.eps_of(net, device, training.pick_precision("auto", device)))
    return Model(config["data"], config, learned, vp_sde.exact_eps(config), net.schedule)


def journey(model, which, sampler, steps, condition, keys, shape, t_end, seed, cfg=1):
    """A trajectory under the learned or the exact eps; the same seed and keys mean the same start and noise."""
    times, noise = vp_sde.time_grid(steps, t_end, "logsnr", model.schedule), vp_sde.endless_noise(seed, keys, shape)
    eps = vp_sde.guided(getattr(model, which), condition, cfg)
    return times, vp_sde.SAMPLERS[sampler](eps, next(noise), times, model.schedule, noise)


EDGES = {"points": (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0), "crystals": (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)}  # of bins
GROUPS = {"points": {"": slice(None)},  # which samples are averaged over
          "crystals": {" types 0, 2, 3": np.arange(36) % 4 != 1, " rectangular": np.arange(36) % 4 == 1}}
POINTS, SEEDS, STEPS = 4096, 5, 100  # with the exact score, 100 steps of the SDE cost 2e-5 in MMD^2


def family(model):
    if isinstance(model, Pair):
        return "priors"
    return "crystals" if model.name == "crystals" else "points"


@cache
def errors_in_time(model, per_bin=4):
    """Score error, loss and best possible loss of every fresh sample, by bin of t: [bins, 3, N]."""
    g, rng, bins = training.generator(0, 4), np.random.default_rng(0), []
    if model.name == "crystals":
        condition, size = data.asked_for(36), model.config["img_size"]
        x0 = 2 * data.render(condition.kind, condition.cont[:, 1], rng.uniform(*data.ASPECT, 36), img_size=size) - 1
    else:
        condition, x0 = data.asked_for(POINTS), torch.from_numpy(vp_sde.load_source(model.config).sample(POINTS, rng))
    for low, high in pairwise(EDGES[family(model)]):
        total = 0
        for t in (low + (high - low) * (np.arange(per_bin) + 0.5) / per_bin).tolist():
            _, alpha, sigma = model.schedule.at(t)
            eps = torch.randn(x0.shape, dtype=x0.dtype, generator=g)
            x = alpha * x0 + sigma * eps
            got, best = model.learned(x.float(), t, condition), model.exact(x, t, condition)
            total += torch.stack([d.square().flatten(1).mean(1) for d in (got - best, got - eps, best - eps)])
        bins.append(total / per_bin)
    return torch.stack(bins).numpy()


def in_bin(model, what, i, group=""):
    edges, which = EDGES[family(model)], GROUPS[family(model)][group]
    score, loss, best = errors_in_time(model)[i][:, which].mean(1)
    claim = f"{model.name}{group}: {what}, t in [{edges[i]:g}, {edges[i + 1]:g}]"
    return (claim, 0, score, None) if what == "score error" else (claim, best, loss, None)


# ---------------------------------------------------------------------------------------------------- rows about points


@cache
def cloud(model, which, seed):
    """The way [(t, x [POINTS, 2])] of the reverse SDE in a few moments, the last of which are the samples."""
    times, run = journey(model, which, "sde", STEPS, data.asked_for(POINTS), range(POINTS), (2,), 0.001, seed)
    shown = vp_sde.moments(times, model.schedule)
    return [(t, x.double().numpy()) for i, (t, x, _) in enumerate(run) if i in shown]


@cache
def distances(model, which):
    """MMD^2, sliced Wasserstein and their floors, means over seeds; and the standard error of the mean of MMD^2."""
    target = vp_sde.load_source(model.config)
    each = [reference.distances(cloud(model, which, seed)[-1][1], target, seed) for seed in range(SEEDS)]
    error = np.std([d["mmd2"] for d in each], ddof=1) / SEEDS**0.5
    return {key: np.mean([d[key] for d in each]) for key in each[0]} | {"error of mmd2": error}


def worst_score(model):
    measured = errors_in_time(model)[:, 0].mean(1).max()
    return f"{model.name}: relative score error, t in [0.05, 1], worst bin", 0, measured, 0.02


def mmd2(model):
    """Unbiased and against the whole mixture: the floor, its expectation for exact samples, is 0."""
    claim = f"{model.name}: MMD^2 beyond the floor, n = {POINTS}, mean of {SEEDS} seeds"
    return claim, 0, distances(model, "learned")["mmd2"], 1e-3


def beside(model, name, best):
    """The learned score's distance, and that of the exact score under the same noise or of exact samples."""
    learned = distances(model, "learned")
    expected = distances(model, "exact")[name] if best == "exact score" else learned[f"{name}_floor"]
    return f"{model.name}: {name} (of {best})", expected, learned[name], None


def scatter(model):
    return f"{model.name}: standard error of that mean", 0, distances(model, "learned")["error of mmd2"], None


ABOUT_POINTS = [
    worst_score,
    mmd2,
    scatter,
    *(partial(beside, name="mmd2", best=best) for best in ("exact samples", "exact score")),
    *(partial(beside, name="sliced_wasserstein", best=best) for best in ("exact samples", "exact score")),
    *(partial(in_bin, what=what, i=i) for what in ("score error", "loss") for i in range(6)),
]

# -------------------------------------------------------------------------------------------------- rows about crystals

TILES = (0, 1, 2, 3, 16, 17, 18, 19, 32, 33, 34, 35)  # of the 36 default conditions: every type at three angles
CALLS = {"sde": (5, 10, 20, 50, 100, 300), "ode": (5, 9, 19, 49), "dpmpp": (5, 10, 20, 50)}  # of the network, a sample


@cache
def crystal_errors(model, which, sampler, calls, tiles=TILES, seed=0, cfg=1):
    """Crystal error [len(tiles)] of samples of these default conditions, log-SNR grid, t_end 0.005."""
    shape, condition = (1, *[model.config["img_size"]] * 2), data.asked_for(36).map(lambda c: c[list(tiles)])
    steps = (calls + 1) // 2 if sampler == "ode" else calls  # Heun calls twice a step, and once at the end
    *_, (_, x, _) = journey(model, which, sampler, steps, condition, tiles, shape, 0.005, seed, cfg)[1]
    return metrics.crystal_error(data.unit(x).double(), condition.kind, condition.cont[:, 1]).error.numpy()


def main_job(model, sampler, calls):
    """Crystal errors [3, 36] of the 36 default conditions at CFG 1.5, seeds 0, 1, 2."""
    tiles = tuple(range(36))
    return np.stack([crystal_errors(model, "learned", sampler, calls, tiles, seed, 1.5) for seed in range(3)])


def default_tiles(model, statistic, limit):
    error = getattr(main_job(model, "sde", 300), statistic)()
    return f"crystals: 36 default tiles, 3 seeds, CFG 1.5, sde, 300 calls, {statistic}", 0, error, limit


def ten_calls(model):
    """Asked for: at most a quarter more than with 300, or 0.003 more. To be better is no fault."""
    few, many = (main_job(model, *run).mean() for run in (("dpmpp", 10), ("sde", 300)))
    return "crystals: mean error of dpmpp, 10 calls, beyond that mean", 0, max(few - many, 0), max(many / 4, 0.003)


def error_by_calls(model, sampler, calls):
    network, oracle = (crystal_errors(model, which, sampler, calls).mean() for which in ("learned", "exact"))
    return f"crystals: mean error (exact denoiser's), {sampler}, {calls} calls", oracle, network, None


ABOUT_CRYSTALS = [
    partial(default_tiles, statistic="mean", limit=0.015),
    partial(default_tiles, statistic="max", limit=0.06),
    ten_calls,
    *(partial(in_bin, what="score error", i=i, group=group) for group in GROUPS["crystals"] for i in range(6)),
    *(partial(in_bin, what="loss", i=i, group=" rectangular") for i in range(6)),  # for the others the best loss is 0
    *(partial(error_by_calls, sampler=sampler, calls=n) for sampler, counts in CALLS.items() for n in counts),
]

# -------------------------------------------------------------------------------------- rows about a VAE and its priors


@dataclass(frozen=True, eq=False)
class Pair:
    name: str
    vae: vae.VAE
    vae_config: dict
    prior: latent_prior.Prior
    config: dict
    device: torch.device


def load_pair(path, checkpoint, device):
    """A checkpoint of latent_prior.py and the VAE it was trained on, whose crystals have a closed form."""
    config, precision = checkpoint["config"], training.pick_precision("auto", device)
    if missing := {*latent_prior.MODEL_FLAGS, "z_dim", "vae", "vae_fingerprint"} - set(config):
        raise ValueError(f"{path} does not say its {min(missing)}: it is damaged, or of another version")
    net, vae_config, found = latent_prior.load_vae(config["vae"], device)
    if found != config["vae_fingerprint"]:
        raise ValueError(f"{path} was trained on another VAE than the one in {config['vae']}")
    if (vae_config["mode"], vae_config["n_types"]) != ("rot-only", 4):
        raise ValueError(f"{path}: only crystals of mode rot-only and all four types can be judged")
    prior = training.load_weights(latent_prior.build(config), checkpoint["ema"], path).to(device).eval()
    name = "VAE" if vae_config["uncond"] else "conditional VAE"
    return Pair(name, net, vae_config | {"precision": precision}, prior, config, device)


@cache
def decoded(pair, prior, steps=50, n=36, kind=None, seed=0, cfg=1.5):
    """Images [n, 1, 64, 64] under a prior, normal, mop or diffusion (by DDIM), and what was asked for."""
    asked = data.asked_for(n, kind)
    if prior != "diffusion":
        return vae.draw(pair.vae, prior, asked, pair.vae_config, seed, pair.device), asked
    precision = pair.vae_config["precision"]
    how = argparse.Namespace(steps=steps, eta=0.0, cfg=cfg, seed=seed, precision=precision)
    z, _ = latent_prior.draw(pair.prior, asked, how, pair.device)
    return vae.decode(pair.vae, z, asked, pair.device, precision), asked


@cache
def prior_error(pair, prior, steps=50):
    """Mean crystal error of the 36 default tiles, seeds 0, 1, 2."""
    draws = [decoded(pair, prior, steps, seed=seed) for seed in range(3)]
    return np.mean([metrics.crystal_error(x, c.kind, c.cont[:, 1]).error.mean().item() for x, c in draws])


def reconstruction(pair):
    config = pair.vae_config
    report, _ = vae.exam_report(pair.vae, *vae.training_batch(config, 0, None, 512, held_out=True), config)
    return f"{pair.name}: RMSE of 512 held-out reconstructions", 0, report["reconstruction_rmse"], 0.010


def posteriors(pair):
    limit = 0.015 if pair.vae_config["uncond"] else None
    return f"{pair.name}, MoP: crystal error, 36 tiles, 3 seeds", 0, prior_error(pair, "mop"), limit


def diffusion(pair):
    """Asked for: at most 0.02; where the VAE is told nothing, and z is all there is, also at most 0.005 above MoP."""
    limit = min(0.02, prior_error(pair, "mop") + 0.005) if pair.vae_config["uncond"] else 0.02
    return f"{pair.name}, diffusion prior: the same", 0, prior_error(pair, "diffusion"), limit


def normal(pair):
    claim = f"{pair.name}, N(0, I): the same (expected: MoP's)"
    return claim, prior_error(pair, "mop"), prior_error(pair, "normal"), None


def nearest_of_any(pair, prior):
    error = metrics.crystal_error(decoded(pair, prior)[0]).error.mean().item()
    return f"{pair.name}, {prior}: to the nearest of any crystal", 0, error, None


def few_against_many(pair):
    """Asked for: 20 steps at most a tenth worse than 400. To be better is no fault."""
    ratio = prior_error(pair, "diffusion", 20) / prior_error(pair, "diffusion", 400)
    return f"{pair.name}, diffusion prior: 20 DDIM steps over 400, where worse ({ratio:.3f})", 1, max(ratio, 1), 0.1


def aspects(pair):
    x, asked = decoded(pair, "diffusion", n=512, kind=1, cfg=1.0)
    measured = metrics.aspect_w1(metrics.crystal_error(x, asked.kind, asked.cont[:, 1]).aspect)
    return f"{pair.name}, diffusion prior: aspect W1, 512 rectangular, CFG 1", 0, float(measured), 0.03


ABOUT_PRIORS = [reconstruction, posteriors, diffusion, normal,
                *(partial(nearest_of_any, prior=prior) for prior in ("normal", "mop", "diffusion")),
                few_against_many, aspects]

# ----------------------------------------------------------------------------------- rows about the networks of dddm.py


@cache
def drawn_by(name):
    """What dddm.py needs to draw with a checkpoint: network, its config, device, precision."""
    device = training.pick_device("auto")
    return *dddm.shipped(name, device), device, training.pick_precision("auto", device)


@cache
def few_steps(name, steps, churn, n=4096, seeds=5):
    """MMD^2 to the mixture of `steps` calls, mean of `seeds` seeds."""
    net, config, device, precision = drawn_by(name)
    each = [dddm.cloud(dddm.points_drawer(net, config, n, seed, precision, device), n, steps, churn, seed)
            for seed in range(seeds)]
    return np.mean([reference.mmd2_to_mixture(x, dddm.load_source(config)) for x in each])


def energy_score(name, steps, tolerance):
    return f"dddm, {name}: MMD^2 at {steps} steps, mean of 5 seeds", 0, few_steps(name, steps, 1), tolerance


def ordinary_diffusion(steps, tolerance):
    """To be at least ten times worse; at the better of its two churns."""
    ordinary = min(few_steps("mixture_mean", steps, churn) for churn in (0, 1))
    claim = f"dddm, mixture: MMD^2 at {steps} steps, as a share of ordinary diffusion's {ordinary:.1e}"
    return claim, 0, max(0, few_steps("mixture", steps, 1)) / ordinary, tolerance


def spread(tolerance):
    net, config, device, precision = drawn_by("mixture")
    found = dddm.posteriors(net, config, dddm.load_source(config), device, precision)
    worst = max(abs(std / true - 1) for *_, std, true in found)
    return "dddm, mixture: relative error of posterior std, worst of ten", 0, worst, tolerance


@cache
def crystals_in(steps, n=36, kind=None):
    net, config, device, precision = drawn_by("crystals")
    args = argparse.Namespace(seed=0, steps=steps, churn=0.25, precision=precision, sample_batch=36)
    condition = dddm.asked_for(config, n, kind)
    x, _ = dddm.draw(net, condition, config, args, device, dddm.shape_of(config))
    return metrics.crystal_error(data.unit(x).double(), *condition)


def few_step_crystals(steps, tolerance):
    error = crystals_in(steps).error.mean()
    return f"dddm, crystals: mean error of the 36 default tiles, {steps} steps", 0, float(error), tolerance


def variety(tolerance):
    aspect = crystals_in(8, 512, 1).aspect
    claim = "dddm, crystals: aspect W1, 512 rectangular, 8 steps"
    return claim, 0, metrics.aspect_w1(aspect), tolerance


def about_dddm():
    """The rows of the checkpoints of dddm.py that ship."""
    rows = {
        "mixture": [partial(energy_score, "mixture", steps, 2e-3 if steps == 4 else None) for steps in (1, 2, 4, 8, 32)]
        + [partial(spread, 0.15)],
        "mixture_mean": [partial(ordinary_diffusion, steps, 0.1 if steps == 4 else None) for steps in (4, 16)],
        **{name: [partial(energy_score, name, 4, 2e-3)] for name in ("S", "circle")},
        "crystals": [*(partial(few_step_crystals, steps, 0.06 if steps == 8 else None) for steps in (1, 2, 4, 8, 16)),
                     partial(variety, 0.04)],
    }
    return [row for name in rows if (training.SHIPPED / f"dddm_{name}.pt").exists() for row in rows[name]]


# ------------------------------------------------------------------------------------------------------------- pictures


def plot_calls(model, path):
    """Crystal error against network calls: above with the network, below with the exact denoiser in its place."""
    figure, (top, low) = pictures.plt.subplots(2, 1, figsize=(8, 6.4), height_ratios=(3, 1), layout="constrained")
    names = {"sde": "reverse SDE, Euler-Maruyama", "ode": "probability flow, Heun", "dpmpp": "DPM-Solver++(2M)"}
    for colour, mark, (sampler, calls) in zip(("#1f4e79", "#e08214", "#2a9d6f"), "os^", CALLS.items(), strict=True):
        for ax, which, line in ((top, "learned", "-"), (low, "exact", "--")):
            errors = [crystal_errors(model, which, sampler, n).mean() for n in calls]
            ax.loglog(calls, errors, line + mark, color=colour, ms=6, alpha=0.85, label=names[sampler])
    for level, words in ((0.238, "a black image"), (0.014, "shifted by 0.1 px"), (0.001, "rounded to 8 bits")):
        top.axhline(level, color="0.5", lw=0.8, ls=":", zorder=0)
        top.annotate(words, (340, level), (0, 3), textcoords="offset points", ha="right", fontsize=8, color="0.4")
    words = "too few steps: the state is noisier than t says,\nand the network believes t"
    top.text(11, 0.13, words, fontsize=8, color="0.4")
    low.text(340, 1e-6, "float32 rounding, at any number of steps", ha="right", fontsize=8, color="0.4")
    for ax, title, *ylim in ((top, "with the network", 6e-4, 1.2), (low, "with the exact denoiser", 1e-9, 1e-5)):
        ax.set(xlim=(4.5, 350), ylim=ylim, ylabel="crystal error")
        ax.set_title(title, loc="left", fontsize=11)
        ax.grid(alpha=0.3, lw=0.5)
        ax.spines[["top", "right"]].set_visible(False)
        ax.minorticks_off()
        ax.set_xticks((5, 10, 20, 50, 100, 300), ("5", "10", "20", "50", "100", "300"))
    low.set_xlabel("network calls per sample")
    top.legend(frameon=False, fontsize=9, loc="upper center")
    figure.suptitle("Same samplers, same noise: what is wrong with a crystal is the network's doing", weight="bold")
    pictures.save_figure(path, figure)


def side_by_side(model, path):
    """Both clouds of seed 0 growing out of the same noise."""
    gmm, names = vp_sde.load_source(model.config), ("learned", "exact")
    films = [reference.draw([(t, x[:2000]) for t, x in cloud(model, n, 0)], gmm, f"{n} score") for n in names]
    save_gif([np.concatenate(pair, 1) for pair in zip(*films, strict=True)], path)


# ---------------------------------------------------------------------------------------------------------- the verdict

LOADERS = {"vp_sde": (load_score, vp_sde), "latent_prior": (load_pair, latent_prior)}


def load(path):
    """What a checkpoint can be judged by.  Raises ValueError where there is no closed form for it."""
    made_by = training.load_checkpoint(path)["script"]
    if made_by not in LOADERS:
        raise ValueError(f"{path} was made by {made_by}.py, whose checkpoints are not judged here")
    loader, script = LOADERS[made_by]
    checkpoint = training.load_checkpoint(path, made_by, script.make_parser())
    return loader(path, checkpoint, training.pick_device("auto"))


def judge(rows, table):
    """Print rows and append them to the table."""
    for row in rows:
        claim, expected, measured, tolerance = row()
        passed = None if tolerance is None else bool(abs(measured - expected) <= tolerance)
        verdict = f"{'':11}  report" if passed is None else f"{tolerance:11.2g}  {'pass' if passed else 'FAIL'}"
        print(f"{claim:66}{expected:10.4g}{measured:12.4g}{verdict}", flush=True)
        numbers = dict(expected=float(expected), measured=float(measured), tolerance=tolerance and float(tolerance))
        table.append({"claim": claim, **numbers, "pass": passed})


def main(argv=None):
    parser = training.new_parser("audit.py", __doc__)
    add = parser.add_argument
    add("--ckpt", nargs="+", metavar="PATH", help="checkpoints or run folders (default: all that ship)")
    add("--quick", action="store_true", help="only the rows that need no checkpoint")
    add("--out", default="outputs/audit", metavar="DIR", help="output folder (default %(default)s)")
    args = parser.parse_args(argv)
    with training.one_line_errors(parser):
        if args.quick and args.ckpt:
            raise ValueError("--quick judges no checkpoint: leave --ckpt out")
        shipped = [path for script in LOADERS for path in sorted(training.SHIPPED.glob(f"{script}*.pt"))]
        paths = [] if args.quick else args.ckpt or shipped
        if not (paths or args.quick):
            raise ValueError(f"there is no checkpoint in {training.SHIPPED}: name one with --ckpt, or ask for --quick")
        models, table = [load(path) for path in paths], []
        out = training.make_folder(args.out)
        print(f"{'claim':66}{'expected':>10}{'measured':>12}{'tolerance':>11}")
        judge(QUICK, table)
        for model in models:
            rows = {"points": ABOUT_POINTS, "crystals": ABOUT_CRYSTALS, "priors": ABOUT_PRIORS}[family(model)]
            judge([partial(row, model) for row in rows], table)
            if family(model) == "crystals":
                plot_calls(model, out / "crystals_error.png")
            elif family(model) == "points":
                side_by_side(model, out / f"{model.name}_clouds.gif")
        if not (args.quick or args.ckpt):
            judge(about_dddm(), table)
        training.save_json(out / "audit.json", table)
        print(f"{sum(row['pass'] is False for row in table)} claims fail; files in {out}")
    return int(any(row["pass"] is False for row in table))


if __name__ == "__main__":
    sys.exit(main())
