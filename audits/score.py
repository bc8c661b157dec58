"""Claims about the networks of vp_sde.py and vp_sde_2d.py: the score beside its closed form.

    python audit.py --only score
    python audit.py --ckpt outputs/mine     the same claims about a run of your own

This file has those about points in the plane; score_of_crystals.py has the others.
"""

from functools import cache, partial

from audits import score_of_crystals
from audits.pairs import POINTS, errors_in_time, in_bin, load
from common import clouds, distances
from common.claims import Claim
from common.seeds import point_noise
from common.times import film_steps, time_grid
from make_gif import save_gif
from vp_sde import reverse_sde

import numpy as np
import torch

NETWORKS = ("vp_sde_2d_S.pt", "vp_sde_2d_circle.pt", "vp_sde.pt")
SEEDS = 5
STEPS = 100  # with the exact score, so many of the SDE cost 2e-5 in MMD^2

# ------------------------------------------------------------------------------ the distances


@cache
@torch.no_grad()
def cloud(pair, which, seed):
    """Moments (t, x [POINTS, 2]) of the reverse SDE, of which the last are the samples.

    which: learned or exact.  The same seed means the same start and noise for both.
    """
    model = getattr(pair, which)
    times = time_grid(pair.schedule, STEPS, 0.001, "logsnr")
    shown = film_steps(pair.schedule, times)
    noise = point_noise(seed, POINTS)
    run = reverse_sde(model.eps, next(noise), times, pair.schedule, noise)
    return [(t, x.double().numpy()) for i, (t, x, _) in enumerate(run) if i in shown]


@cache
def cloud_distances(pair, which):
    """distances.from_mixture, means over the seeds; and the standard error of that of MMD^2."""
    each = []
    for seed in range(SEEDS):
        _, x = cloud(pair, which, seed)[-1]
        each.append(distances.from_mixture(x, pair.gmm, seed))
    means = {}
    for key in each[0]:
        means[key] = np.mean([report[key] for report in each])
    scatter = np.std([report["mmd2"] for report in each], ddof=1)
    return means | {"error of mmd2": scatter / SEEDS**0.5}


def worst_score(pair):
    worst = errors_in_time(pair)[:, 0].mean(1).max()
    claim = f"{pair.name}: relative score error, t in [0.05, 1], worst bin"
    return Claim(claim, 0, worst, 0.02, n=POINTS)


def mmd2(pair):
    """Unbiased and against the whole mixture: the floor, its mean for exact samples, is 0."""
    claim = f"{pair.name}: MMD^2 beyond the floor, n = {POINTS}, mean of {SEEDS} seeds"
    return Claim(claim, 0, cloud_distances(pair, "learned")["mmd2"], 1e-3, n=POINTS)


def scatter_of_mmd2(pair):
    error = cloud_distances(pair, "learned")["error of mmd2"]
    return Claim(f"{pair.name}: standard error of that mean", 0, error, n=POINTS)


def beside(pair, name, best):
    """The distance of the learned score's samples, and of the exact score's, or of exact ones."""
    learned = cloud_distances(pair, "learned")
    expected = learned[f"{name}_floor"]
    if best == "exact score":  # the same sampler, with the same noise
        expected = cloud_distances(pair, "exact")[name]
    return Claim(f"{pair.name}: {name} (of {best})", expected, learned[name], n=POINTS)


ABOUT_POINTS = [
    worst_score,
    mmd2,
    scatter_of_mmd2,
    *(
        partial(beside, name=name, best=best)
        for name in ("mmd2", "sliced_wasserstein")
        for best in ("exact samples", "exact score")
    ),
    *(partial(in_bin, what=what, i=i) for what in ("score error", "loss") for i in range(6)),
]


# ------------------------------------------------------------------------------ the picture


def draw_points(pair, folder):
    """NAME_clouds.gif: both clouds of seed 0 growing out of the same noise."""
    films = []
    for which in ("learned", "exact"):
        snapshots = [(t, x[:2000]) for t, x in cloud(pair, which, 0)]
        films.append(clouds.cloud_frames(snapshots, pair.gmm, f"{which} score"))
    frames = [np.concatenate(frames, 1) for frames in zip(*films, strict=True)]
    save_gif(frames, folder / f"{pair.name}_clouds.gif")


# ------------------------------------------------------------------------------ the networks


def about(path):
    """The checks of a checkpoint, and what draws its picture."""
    pair = load(path)
    checks = ABOUT_POINTS
    draw = draw_points
    if not pair.gmm:
        checks = score_of_crystals.CHECKS
        draw = score_of_crystals.draw
    return [partial(check, pair) for check in checks], partial(draw, pair)


def at_length(path):
    """The checks that take minutes."""
    pair = load(path)
    return [] if pair.gmm else [partial(check, pair) for check in score_of_crystals.AT_LENGTH]
