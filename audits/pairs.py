"""A network of vp_sde.py or vp_sde_2d.py beside its closed form, and its errors by bins of t.

    score error  sigma^2 E|s_theta - s*|^2 / D  =  E|eps_theta - eps*|^2 / D
    loss         E|eps_theta - eps|^2  =  E|eps_theta - eps*|^2  +  E|eps* - eps|^2

The second term of the loss is the least that a network can have; of the score error it is 0.
"""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import data
import vp_sde
import vp_sde_2d
from audits.networks import only_known_crystals, opened
from common.checkpoints import load_checkpoint
from common.claims import Claim
from common.exact_denoiser import ExactModel
from common.runs import Run
from common.seeds import generator
from reference_gmm_sde import GaussianMixture

import numpy as np
import torch

POINTS = 4096
POINT_BINS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # edges in t
CRYSTAL_BINS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, eq=False)
class Pair:
    """A network and its closed form, both with eps(x, t, *condition)."""

    name: str
    net: torch.nn.Module
    run: Run
    learned: object
    exact: object
    gmm: GaussianMixture | None = None  # of points; crystals have none

    @property
    def schedule(self):
        return self.net.schedule

    @property
    def edges(self):
        """Of the bins of t."""
        return POINT_BINS if self.gmm else CRYSTAL_BINS


@cache
def load(path):
    """The Pair of a checkpoint.  Raises ValueError where there is no closed form for it."""
    if load_checkpoint(path)["script"] == "vp_sde":
        net, run = opened(vp_sde, path)
        only_known_crystals(run.trained, path)
        exact = ExactModel(net.schedule, run.trained.img_size)
        return Pair("crystals", net, run, vp_sde.Learned(net, run), exact)

    net, run = opened(vp_sde_2d, path)
    gmm = vp_sde_2d.mixture(run.trained, net.schedule)
    exact = vp_sde_2d.Exact(gmm, net.schedule)
    return Pair(run.trained.shape, net, run, vp_sde_2d.LearnedV(net, run), exact, gmm)


# ------------------------------------------------------------------------------ by bins of t


def fresh_data(pair):
    """Data that no training has seen, float64 [N, ...], and their condition, if they have one."""
    rng = np.random.default_rng(0)
    if pair.gmm:
        return torch.from_numpy(pair.gmm.sample(POINTS, rng)), ()
    condition = data.default_conditions(36)
    aspect = rng.uniform(*data.ASPECT, 36)
    size = pair.run.trained.img_size
    x = data.render(condition.kind, condition.cont[:, 1], aspect, img_size=size)
    return 2 * x - 1, (condition,)


@cache
@torch.no_grad()
def errors_in_time(pair, per_bin=4):
    """Score error, loss and least possible loss of every fresh sample: [bins, 3, N]."""
    x0, condition = fresh_data(pair)
    g = generator(0, 4)
    bins = []
    for low, high in pairwise(pair.edges):
        total = 0
        middles = low + (high - low) * (np.arange(per_bin) + 0.5) / per_bin
        for t in middles.tolist():
            _, alpha, sigma = pair.schedule.at(t)
            eps = torch.randn(x0.shape, dtype=x0.dtype, generator=g)
            x = alpha * x0 + sigma * eps
            learned = pair.learned.eps(x.float(), t, *condition)
            best = pair.exact.eps(x, t, *condition)
            gaps = (learned - best, learned - eps, best - eps)
            total = total + torch.stack([gap.square().flatten(1).mean(1) for gap in gaps])
        bins.append(total / per_bin)
    return torch.stack(bins).numpy()


def in_bin(pair, what, i, group="", samples=slice(None)):
    """The score error or the loss in bin i, mean over a group of the samples."""
    low, high = pair.edges[i : i + 2]
    of_group = errors_in_time(pair)[i][:, samples]
    score, loss, least = of_group.mean(1)
    claim = f"{pair.name}{group}: {what}, t in [{low:g}, {high:g}]"
    if what == "score error":
        return Claim(claim, 0, score, n=of_group.shape[1])
    return Claim(claim, least, loss, n=of_group.shape[1])
