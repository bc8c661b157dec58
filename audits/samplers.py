"""Claims about the samplers of vp_sde.py: their schedule, times, steps and guidance.

Every step is that of reference_gmm_sde.py, from the same start and with the same noise.  Nothing
here is learned: where a sampler needs a network, a closed form stands in its place.

    python audit.py --only samplers
"""

from functools import partial
from itertools import pairwise

import data
import reference_gmm_sde as reference
from common.claims import Claim
from common.exact_denoiser import ExactModel
from common.nearest_crystal import crystal_error
from common.seeds import generator, image_noise
from common.times import time_grid
from vp_sde import SAMPLERS, VP, guided_eps, reverse_sde

import numpy as np
import torch

OF_NUMPY = {"sde": reference.euler_maruyama, "ode": reference.heun, "dpmpp": reference.dpmpp_2m}
GRIDS = ("uniform", "quadratic", "logsnr")
TILES = (0, 1, 2, 3, 16, 17, 18, 19, 32, 33, 34, 35)  # every type at three of the default angles

# ---------------------------------------------------------------------- schedule and times


def schedules(beta_max):
    ours = VP(0.1, beta_max)
    reference_one = reference.VPSchedule(0.1, beta_max)
    t = np.concatenate([[1e-9, 1e-6, 1e-3], np.linspace(0.01, 1, 100)])
    u = torch.from_numpy(t)

    pairs = [(getattr(ours, f)(u), getattr(reference_one, f)(t)) for f in ("B", "beta", "log_snr")]
    pairs += zip(ours.alpha_sigma(u), reference_one.alpha_sigma(t), strict=True)
    gaps = [np.abs(a.numpy() / b - 1).max() for a, b in pairs]

    # beta, alpha and sigma where there is no noise.
    gaps.append(np.abs(np.subtract(ours.at(0.0), (0.1, 1, 0))).max())
    claim = f"schedule to beta {beta_max:g}: torch against NumPy, relative"
    return Claim(claim, 0, np.max(gaps), 1e-12)


def times(grid, beta_max):
    """Equal steps of log-SNR are found in two ways: by bisection, and by a formula."""
    ours = VP(0.1, beta_max)
    reference_one = reference.VPSchedule(0.1, beta_max)
    gaps = []
    for calls in (2, 10, 60, 300):
        for t_end in (0.001, 0.005):
            t = time_grid(ours, calls, t_end, grid)
            s = reference.time_grid(calls - 1, t_end=t_end, kind=grid, schedule=reference_one)
            gaps.append(np.abs(np.array(t) / s - 1).max())
    claim = f"{grid} grid to beta {beta_max:g}: torch against NumPy, relative"
    return Claim(claim, 0, np.max(gaps), 1e-12)


# ---------------------------------------------------------------------- samplers, guidance


class Mixture:
    """A mixture with the face of a network: eps(x, t) in closed form."""

    def __init__(self, gmm):
        self.gmm = gmm

    def eps(self, x, t):
        return torch.from_numpy(self.gmm.eps(x.numpy(), t))


def follows(sampler, grid, calls=60, t_end=0.001):
    """The worst difference in t, in x_t, and in x0_hat, for the reference a posterior mean."""
    gmm = reference.mixture("S")
    rng = np.random.default_rng(0)
    start = rng.standard_normal((200, 2))
    noise = rng.standard_normal((calls - 1, 200, 2))

    steps = reference.time_grid(calls - 1, t_end=t_end, kind=grid)
    with_noise = [noise] if sampler == "sde" else []
    expected = OF_NUMPY[sampler](gmm.score, start, steps, reference.VP, *with_noise)

    schedule = VP(0.1, 20.0)
    steps = time_grid(schedule, calls, t_end, grid)
    eps = Mixture(gmm).eps
    of_torch = iter(torch.from_numpy(noise))
    ours = SAMPLERS[sampler](eps, torch.from_numpy(start), steps, schedule, of_torch)

    *path, (end, x_0, _) = ours
    gaps = [abs(end)]  # the last thing a sampler yields is its prediction for t = 0
    for (t, x), (s, y, x0_hat) in zip(expected, path, strict=True):
        mean = gmm.posterior_mean(x, t)
        gaps.append(abs(t - s))
        gaps.append(np.abs(x - y.numpy()).max())
        gaps.append(np.abs(mean - x0_hat.numpy()).max())
    gaps.append(np.abs(mean - x_0.numpy()).max())
    claim = f"{sampler}, {grid} grid: torch against NumPy, every step"
    return Claim(claim, 0, np.max(gaps), 1e-10, n=200)


class HalfLetter:
    """The letter S where there is no condition, its upper half where there is one."""

    def __init__(self):
        self.whole = reference.mixture("S")
        self.half = self.whole.given(np.arange(24))

    def eps(self, x, t, condition):
        eps_u = Mixture(self.whole).eps(x, t)
        eps_c = Mixture(self.half).eps(x, t)
        return torch.where(condition.known[:, None], eps_c, eps_u)


def guidance(w):
    model = HalfLetter()
    x = np.random.default_rng(0).standard_normal((200, 2))
    condition = data.default_conditions(len(x))

    gaps = []
    for t in (0.02, 0.3):
        ours = guided_eps(model, condition, w, torch.from_numpy(x), t)
        expected = reference.guided_eps(model.whole, model.half, x, t, w)
        gaps.append(np.abs(ours.numpy() - expected).max())
    claim = f"guided eps, w = {w}: torch against NumPy"
    return Claim(claim, 0, max(gaps), 1e-10, n=len(x))


# -------------------------------------------------------------------- what is known exactly


def normals(n, g):
    """Standard normals [n], float64, without end."""
    while True:
        yield torch.randn(n, dtype=torch.float64, generator=g)


def noise_left(grid, calls=300, t_end=0.005, n=40_000):
    """Noise at the last call of the reverse SDE, in units of sigma(t_end), for one data point, 1.

    So it is for every pixel of a crystal of known type and angle.  The score is linear in x, so a
    step multiplies the variance by (1 + beta dt/2 - beta dt/sigma^2)^2 and adds beta dt: with what
    Euler-Maruyama ends is known exactly.
    """
    schedule = VP()
    steps = time_grid(schedule, calls, t_end, grid)
    variance = 1.0
    for t, s in pairwise(steps):
        beta, _, sigma = schedule.at(t)
        dt = t - s
        variance = variance * (1 + beta * dt * (0.5 - 1 / sigma**2)) ** 2 + beta * dt

    def eps(x, t):
        _, alpha, sigma = schedule.at(t)
        return (x - alpha) / sigma

    noise = normals(n, generator(0, 3))
    *_, (t, x, _), _ = reverse_sde(eps, next(noise), steps, schedule, noise)
    expected = variance**0.5 / schedule.at(t_end)[2]
    measured = float(x.std()) / schedule.at(t)[2]
    claim = f"sde, {calls} steps, {grid} grid: noise left / sigma(t_end)"
    return Claim(claim, expected, measured, 4 * expected / (2 * n) ** 0.5, n=n)


@torch.no_grad()
def drawn_crystals(model, sampler, calls, tiles=TILES, seed=0, w=1, img_size=64):
    """Crystal error [len(tiles)] of these default conditions, drawn with a model, network or not.

    On the log-SNR grid, t_end 0.005.  The same seed and tiles mean the same start and noise.
    """
    steps = calls
    if sampler == "ode":  # Heun calls twice a step, and once at the end
        steps = (calls + 1) // 2
    steps = time_grid(model.schedule, steps, 0.005, "logsnr")
    condition = data.default_conditions(36).rows(list(tiles))
    noise = image_noise(seed, tiles, (1, img_size, img_size))
    eps = partial(guided_eps, model, condition, w)
    *_, (_, x, _) = SAMPLERS[sampler](eps, next(noise), steps, model.schedule, noise)
    x = data.unit(x).double()
    return crystal_error(x, condition.kind, condition.cont[:, 1]).error.numpy()


def exact_crystals(sampler, calls=19):
    """Given its condition a crystal of type 0, 2 or 3 is one image: an exact x0_hat ends on it."""
    model = ExactModel(VP(), 64)
    tiles = tuple(i for i in TILES if i % 4 != 1)
    error = drawn_crystals(model, sampler, calls, tiles).max()
    claim = f"{sampler}, {calls} calls, exact denoiser: worst crystal of types 0, 2, 3"
    return Claim(claim, 0, error, 1e-5, n=len(tiles))


CLAIMS = [
    partial(schedules, 20),
    partial(schedules, 30),
    *(partial(times, grid, beta_max) for grid in GRIDS for beta_max in (20, 30)),
    *(partial(follows, sampler, grid) for sampler in SAMPLERS for grid in GRIDS),
    *(partial(guidance, w) for w in (0, 0.5, 1, 1.5)),
    *(partial(noise_left, grid) for grid in GRIDS),
    *(partial(exact_crystals, sampler) for sampler in SAMPLERS),
]
