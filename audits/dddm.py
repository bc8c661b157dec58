"""Claims about dddm.py and dddm_dit.py: few steps, and how wide the learned posteriors are.

    python audit.py --only dddm

With exact draws from p(x_0 | x_t) in the place of the network, no step is too long.  With the
network, few steps are to be enough, and ordinary diffusion, trained alike, is to need more.
"""

from functools import cache, partial

import data
import dddm
import dddm_dit
from audits.networks import opened
from common import image_job, posteriors
from common.checkpoints import SHIPPED
from common.claims import Claim
from common.classifier import load_classifier
from common.distances import mmd2_to_mixture
from common.metrics import aspect_w1
from common.nearest_crystal import RECTANGULAR, crystal_error

import numpy as np
import torch

POINTS = 4096
SEEDS = 5

# --------------------------------------------------------------------- the exact posterior


def any_number_of_steps(steps, churn):
    """Draws of the exact p(x_0 | x_t) in the place of the network: no churn is wrong either."""
    gmm = dddm.mixture(dddm.Config())
    denoise = partial(posteriors.exact_draw, gmm, np.random.default_rng(0))
    clouds = [dddm.cloud(POINTS, seed, denoise, steps, churn) for seed in range(SEEDS)]
    each = [mmd2_to_mixture(x, gmm) for x in clouds]

    # Exact samples of 4,096 scatter by 1.7e-4: to allow more would hide a bias.
    scatter = min(np.std(each, ddof=1), 5e-4)
    claim = f"exact posterior draws, {steps} steps, churn {churn:g}: MMD^2, mean of {SEEDS} seeds"
    return Claim(claim, 0, np.mean(each), 4 * scatter / SEEDS**0.5, n=POINTS)


CLAIMS = [
    partial(any_number_of_steps, 1, 1),
    partial(any_number_of_steps, 4, 0),
    partial(any_number_of_steps, 4, 1),
    partial(any_number_of_steps, 16, 0.5),
]

# ------------------------------------------------------------------------------ points


@cache
def network(name):
    """A network that ships, dddm_NAME.pt, and its Run."""
    return opened(dddm, SHIPPED / f"dddm_{name}.pt")


@cache
def few_steps(name, steps, churn):
    """MMD^2 to the mixture, mean of the seeds."""
    net, run = network(name)
    gmm = dddm.mixture(run.trained)
    each = []
    for seed in range(SEEDS):
        denoise = dddm.learned(net, run, POINTS, seed)
        x = dddm.cloud(POINTS, seed, denoise, steps, churn)
        each.append(mmd2_to_mixture(x, gmm))
    return np.mean(each)


def energy_score(name, steps, tolerance=None):
    measured = few_steps(name, steps, 1)
    claim = f"dddm, {name}: MMD^2 at {steps} steps, mean of {SEEDS} seeds"
    return Claim(claim, 0, measured, tolerance, n=POINTS)


def ordinary_diffusion(steps, tolerance=None):
    """It is to be at least ten times worse; at the better of its two churns."""
    ordinary = min(few_steps("mixture_mean", steps, churn) for churn in (0, 1))
    share = max(0, few_steps("mixture", steps, 1)) / ordinary
    claim = f"dddm, mixture: MMD^2 at {steps} steps, share of ordinary diffusion's"
    return Claim(claim, 0, share, tolerance, n=POINTS, note=f"which is {ordinary:.1e}")


@cache
def posterior_draws():
    """Learned and exact draws of x_0 at ten pairs (t, x_t)."""
    net, run = network("mixture")
    fresh = partial(dddm.learned, net, run, seed=0)
    return posteriors.posterior_pairs(fresh, dddm.mixture(run.trained))


def spread():
    off = [abs(std / exact_std - 1) for *_, std, exact_std in posterior_draws()]
    claim = "dddm, mixture: relative error of posterior std, worst of ten"
    return Claim(claim, 0, max(off), 0.15, n=POINTS)


def between_modes(t):
    """Where the posterior has two modes and nothing between them."""
    gmm = dddm.mixture(network("mixture")[1].trained)
    learned, exact = next((x, y) for at, _, x, y, *_ in posterior_draws() if abs(at - t) < 0.01)
    found, truth = (posteriors.share_between(gmm, x) for x in (learned, exact))
    claim = f"dddm, mixture: share of posterior draws between the modes, t = {t:g}"
    return Claim(claim, truth, found, None, n=POINTS)


# ------------------------------------------------------------------------------ crystals


@cache
def crystals(steps, n=36, kind=None):
    """The crystal_error of default conditions."""
    net, run = opened(dddm_dit, SHIPPED / "dddm_dit_crystals.pt")
    condition = data.default_conditions(n, kind)
    run = run.with_settings(n=n, steps=steps, churn=0.25)
    x = dddm_dit.draw(net, run, condition).x
    return crystal_error(data.unit(x).double(), condition.kind, condition.cont[:, 1])


def few_step_crystals(steps, tolerance=None):
    error = crystals(steps).error.mean()
    claim = f"dddm, crystals: mean error of the 36 default tiles, {steps} steps"
    return Claim(claim, 0, float(error), tolerance, n=36)


def variety():
    w1 = aspect_w1(crystals(8, 512, RECTANGULAR).aspect)
    return Claim("dddm, crystals: aspect W1, 512 rectangular, 8 steps", 0, w1, 0.04, n=512)


# ------------------------------------------------------------------------------ digits


@cache
def digits(steps):
    """What the held-out classifier says of a thousand digits, 0 to 9 in turn."""
    net, run = opened(dddm_dit, SHIPPED / "dddm_dit_mnist.pt")
    condition = image_job.of_class(torch.arange(1000) % 10)
    run = run.with_settings(n=1000, steps=steps, churn=1.0, sample_batch=250)
    x = dddm_dit.draw(net, run, condition).x
    return load_classifier().measure(data.unit(x), condition.kind)


def few_step_digits(steps, tolerance=None):
    note = f"10,000 real ones {load_classifier().real['frechet_floor']:.1f}"
    claim = f"dddm, digits: Frechet distance, {steps} steps"
    return Claim(claim, 0, digits(steps)["frechet"], tolerance, n=1000, note=note)


def digits_asked_for(steps, tolerance=None):
    claim = f"dddm, digits: share that is read as the digit asked for, {steps} steps"
    return Claim(claim, 1, digits(steps)["share_correct"], tolerance, n=1000)


# ------------------------------------------------------------------------------ the networks

CHECKS = {
    "dddm_mixture.pt": [
        partial(energy_score, "mixture", 1),
        partial(energy_score, "mixture", 2),
        partial(energy_score, "mixture", 4, tolerance=2e-3),
        partial(energy_score, "mixture", 8),
        partial(energy_score, "mixture", 32),
        spread,
        partial(between_modes, 0.75),
        partial(between_modes, 0.95),
    ],
    "dddm_mixture_mean.pt": [
        partial(ordinary_diffusion, 4, tolerance=0.1),
        partial(ordinary_diffusion, 16),
    ],
    "dddm_S.pt": [partial(energy_score, "S", 4, tolerance=2e-3)],
    "dddm_circle.pt": [partial(energy_score, "circle", 4, tolerance=2e-3)],
    "dddm_dit_crystals.pt": [
        partial(few_step_crystals, 1),
        partial(few_step_crystals, 2),
        partial(few_step_crystals, 4),
        partial(few_step_crystals, 8, tolerance=0.06),
        partial(few_step_crystals, 16),
        variety,
    ],
    "dddm_dit_mnist.pt": [
        partial(few_step_digits, 1),
        partial(few_step_digits, 4),
        partial(few_step_digits, 8, tolerance=60),
        partial(digits_asked_for, 8, tolerance=0.1),
    ],
}
NETWORKS = tuple(CHECKS)


def about(path):
    """The checks of a checkpoint that ships; there is no picture."""
    return CHECKS[path.name], None
