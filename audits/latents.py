"""Claims about vae.py and latent_prior.py: reconstructions, and three priors of one VAE.

    python audit.py --only latents
    python audit.py --ckpt outputs/mine     the same claims about a prior of your own, and its VAE

Crystals are drawn with z from N(0, I), from the mixture of posteriors (MoP) and from the diffusion
prior (by DDIM), under the same conditions.
"""

from dataclasses import dataclass
from functools import cache, partial

import data
import latent_prior
import vae
from audits.networks import only_known_crystals, opened
from common.claims import Claim
from common.crystal_job import TrainingCrystals
from common.metrics import aspect_w1
from common.nearest_crystal import RECTANGULAR, crystal_error
from common.runs import Run

import numpy as np
from torch import nn

NETWORKS = ("latent_prior.pt", "latent_prior_cond.pt")


@dataclass(frozen=True, eq=False)
class Pair:
    """A prior and the VAE that it was trained on."""

    name: str  # of the VAE
    prior: nn.Module
    run: Run
    vae: nn.Module
    of_vae: Run

    @property
    def uncond(self):
        return self.of_vae.trained.uncond


@cache
def load(path):
    """The Pair of a checkpoint.  Raises ValueError where its crystals have no closed form."""
    prior, run = opened(latent_prior, path)
    net, of_vae = latent_prior.load_vae(run)
    only_known_crystals(of_vae.trained, path)
    name = "VAE" if of_vae.trained.uncond else "conditional VAE"
    return Pair(name, prior, run, net, of_vae)


# ------------------------------------------------------------------------------ the samples


@cache
def decoded(pair, prior, steps=50, n=36, kind=None, seed=0, cfg=1.5):
    """Images [n, 1, 64, 64] under a prior (normal, mop or diffusion), and their conditions."""
    condition = data.default_conditions(n, kind)
    if prior != "diffusion":
        of_vae = pair.of_vae.with_settings(n=n, kind=kind, seed=seed)
        return vae.draw(pair.vae, of_vae, prior, condition), condition
    run = pair.run.with_settings(n=n, kind=kind, seed=seed, steps=steps, eta=0.0, cfg=cfg)
    z = latent_prior.draw(pair.prior, run, condition).x
    return vae.decode(pair.vae, pair.of_vae, z, condition).clamp(0, 1), condition


@cache
def prior_error(pair, prior, steps=50):
    """Mean crystal error of the 36 default tiles, seeds 0, 1, 2."""
    means = []
    for seed in range(3):
        x, condition = decoded(pair, prior, steps, seed=seed)
        error = crystal_error(x, condition.kind, condition.cont[:, 1]).error
        means.append(error.mean().item())
    return np.mean(means)


# ------------------------------------------------------------------------------ the claims


def reconstruction(pair):
    crystals = TrainingCrystals(pair.of_vae, signed=False)
    held_out = crystals.batch(0, 512, held_out=True)
    numbers, _ = vae.evaluate(pair.vae, pair.of_vae, *held_out)
    claim = f"{pair.name}: RMSE of 512 held-out reconstructions"
    return Claim(claim, 0, numbers["reconstruction_rmse"], 0.010, n=512)


def mixture_of_posteriors(pair):
    limit = 0.015 if pair.uncond else None
    claim = f"{pair.name}, MoP: crystal error, 36 tiles, 3 seeds"
    return Claim(claim, 0, prior_error(pair, "mop"), limit, n=108)


def diffusion(pair):
    """Required: at most 0.02; 0.012 where the VAE has no condition and z is all there is."""
    limit = 0.012 if pair.uncond else 0.02
    claim = f"{pair.name}, diffusion prior: the same"
    return Claim(claim, 0, prior_error(pair, "diffusion"), limit, n=108)


def normal(pair):
    claim = f"{pair.name}, N(0, I): the same (expected: MoP's)"
    return Claim(claim, prior_error(pair, "mop"), prior_error(pair, "normal"), n=108)


def nearest_of_any(pair, prior):
    x, _ = decoded(pair, prior)
    error = crystal_error(x).error.mean().item()
    return Claim(f"{pair.name}, {prior}: to the nearest of any crystal", 0, error, n=36)


def few_against_many(pair):
    """Required: 20 steps at most a tenth worse than 400.  To be better is no fault."""
    ratio = prior_error(pair, "diffusion", 20) / prior_error(pair, "diffusion", 400)
    claim = f"{pair.name}, diffusion prior: 20 steps over 400, where worse"
    return Claim(claim, 1, max(ratio, 1), 0.1, n=108, note=f"the ratio is {ratio:.3f}")


def variety(pair, prior="diffusion"):
    x, condition = decoded(pair, prior, n=512, kind=RECTANGULAR, cfg=1.0)
    fit = crystal_error(x, condition.kind, condition.cont[:, 1])
    claim = f"{pair.name}, diffusion prior: aspect W1, 512 rectangular, CFG 1"
    limit = 0.03
    if prior != "diffusion":
        claim = f"{pair.name}, {prior}: aspect W1, 512 rectangular"
        limit = None
    return Claim(claim, 0, aspect_w1(fit.aspect), limit, n=512)


CHECKS = [
    reconstruction,
    mixture_of_posteriors,
    diffusion,
    normal,
    *(partial(nearest_of_any, prior=prior) for prior in ("normal", "mop", "diffusion")),
    few_against_many,
    variety,
]
AT_LENGTH = [partial(variety, prior=prior) for prior in ("mop", "normal")]


def about(path):
    """The checks of a checkpoint; there is no picture."""
    pair = load(path)
    return [partial(check, pair) for check in CHECKS], None


def at_length(path):
    """Checks that only --full makes."""
    pair = load(path)
    return [partial(check, pair) for check in AT_LENGTH]
