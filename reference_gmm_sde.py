"""The judge: a Gaussian mixture diffuses in closed form, so every sampler can be compared with the truth.

    x_t = alpha_t x_0 + sigma_t eps,   alpha_t = exp(-B(t)/2)       the VP kernel, t = 0 data, t = 1 noise
    p_t = sum_k w_k N(alpha_t mu_k, alpha_t^2 S_k + sigma_t^2 I)    hence a mixture stays a mixture, its score is known,
    dx  = [-beta x/2 - beta score(x, t)] dt + sqrt(beta) dW         and this, run from t = 1 to 0, turns noise into data

    python reference_gmm_sde.py --shape S --sampler sde --steps 1000 --n_particles 4000 --seed 0 --vis_every 25

takes 5 to 10 seconds on one core and writes to outputs/reference_gmm_sde/S_sde_seed0/: the frames and their GIF
(4,000 points of noise condense into a letter S), initial.npy and final.npy, mixture.npz, config.json, and metrics.json
with distances to exact samples beside their floors, which is what exact samples score among themselves.

    python reference_gmm_sde.py --audit

takes 20 seconds and puts every formula and integrator of this file on trial (the rows are in reference_audit.py).
Left out: anything learned. The torch scripts are judged by what is here, so they bring their own samplers.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2.2,<3", "matplotlib>=3.10,<4", "imageio>=2.37,<3", "pillow>=11", "tqdm>=4.66,<5"]
# ///

import argparse
import io
import json
import math
import sys
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from tqdm import tqdm

from make_gif import save_gif, write_whole

# --------------------------------------------------------------------------------------------------------- the schedule


@dataclass(frozen=True)
class VPSchedule:
    """Variance-preserving noise (Song et al. 2021) on t in [0, 1]. Only B(t) is defined, the rest follows from it.

    Noise rates 0 < beta_min <= beta_max per unit of time. Raises ValueError outside. Methods take numbers or arrays.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        if not 0 < self.beta_min <= self.beta_max < np.inf:  # NaN fails every comparison
            raise ValueError(f"need 0 < beta_min <= beta_max < inf, not {self.beta_min} and {self.beta_max}")

    def B(self, t):
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def beta(self, t):
        return self.beta_min + (self.beta_max - self.beta_min) * t  # dB/dt

    def alpha_sigma(self, t):
        B = self.B(t)
        return np.exp(-B / 2), np.sqrt(-np.expm1(-B))  # sqrt(1 - alpha^2) would lose all digits near t = 0

    def log_snr(self, t):
        """log(alpha^2 / sigma^2), rightly infinite at t = 0."""
        with np.errstate(divide="ignore"):
            return -self.B(t) - np.log(-np.expm1(-self.B(t)))

    def t_of_log_snr(self, log_snr):
        B = np.logaddexp(0, -log_snr)  # since alpha^2 = sigmoid(log_snr)
        return 2 * B / (self.beta_min + np.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * B))


VP = VPSchedule()  # the default of all 2-D tasks


def time_grid(steps, t_start=1.0, t_end=0.0, kind="quadratic", schedule=VP):
    """Decreasing times [steps + 1] from t_start to t_end, both hit exactly. Needs 0 <= t_end < t_start <= 1.

    kind: uniform in t, quadratic (uniform in sqrt t), or logsnr (uniform in log(alpha^2/sigma^2), where the picture
    changes evenly). The log-SNR of t = 0 is infinite: there the logsnr grid runs to t_start/1000, then jumps to 0.
    """
    if steps != int(steps) or steps < 1:
        raise ValueError(f"the number of steps must be a whole number of at least 1, not {steps}")
    if not 0 <= t_end < t_start <= 1:
        raise ValueError(f"need 0 <= t_end < t_start <= 1, not t_end = {t_end} and t_start = {t_start}")
    if kind == "uniform":
        times = np.linspace(t_start, t_end, steps + 1)
    elif kind == "quadratic":
        times = np.linspace(np.sqrt(t_start), np.sqrt(t_end), steps + 1) ** 2
    elif kind == "logsnr":
        near_end = t_end if t_end > 0 else t_start / 1000
        ends = schedule.log_snr(t_start), schedule.log_snr(near_end)
        times = schedule.t_of_log_snr(np.linspace(*ends, steps + (t_end > 0)))
        times = times if t_end > 0 else np.append(times, 0.0)
    else:
        raise ValueError(f"the grid must be uniform, quadratic or logsnr, not {kind!r}")
    times[0], times[-1] = t_start, t_end
    return times


# ---------------------------------------------------------------------------------------------------------- the mixture


class GaussianMixture:
    """p(x_0) = sum_k w_k N(mu_k, S_k), and everything there is to know about x_t = alpha_t x_0 + sigma_t eps.

    weights [K] (not negative, sum 1), means [K, D], covs [K, D, D] (symmetric positive definite); float64 inside.
    schedule: anything with `alpha_sigma(t)`. Raises ValueError for anything else. Points x are [N, D], t is one number
    in [0, 1]; nothing is clipped, t = 0 and points far off the support are fine.
    Noise adds to the eigenvalues of a covariance and leaves its axes alone, so each is diagonalised once, here.
    """

    def __init__(self, weights, means, covs, schedule=VP):
        w, mu, S = (np.asarray(a, dtype=np.float64) for a in (weights, means, covs))
        if mu.ndim != 2 or 0 in mu.shape or w.shape != mu.shape[:1] or S.shape != (*mu.shape, mu.shape[1]):
            raise ValueError(f"need weights [K], means [K, D], covs [K, D, D], not {w.shape}, {mu.shape}, {S.shape}")
        if not (np.isfinite(mu).all() and (w >= 0).all() and abs(w.sum() - 1) < 1e-6):
            raise ValueError("the means must be finite, the weights must not be negative and must sum to 1")
        skew = np.abs(S - S.transpose(0, 2, 1)).max(axis=(1, 2))
        sound = np.isfinite(S).all(axis=(1, 2)) & (skew <= 1e-9 * np.abs(S).max(axis=(1, 2)))
        values, axes = np.linalg.eigh(np.where(sound[:, None, None], S, -np.eye(mu.shape[1])))  # the others fail below
        if (values <= 0).any():
            k = np.flatnonzero((values <= 0).any(axis=1))[0]
            raise ValueError(f"the covariance of component {k} is not symmetric positive definite")
        self.weights, self.means, self.covs, self.schedule = w / w.sum(), mu, S, schedule
        self.eigenvalues, self.axes = values, axes  # [K, D] and [K, D, D]: axis j of component k is axes[k, :, j]

    @property
    def dim(self):
        return self.means.shape[1]

    def marginal(self, t):
        """The mixture p_t as data of its own."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        covs = alpha**2 * self.covs + sigma**2 * np.eye(self.dim)
        return GaussianMixture(self.weights, alpha * self.means, covs, self.schedule)

    def given(self, members):
        """p(x_0 | its component is one of `members`): with one class per component, the class-conditional mixture."""
        w = self.weights[members]
        return GaussianMixture(w / w.sum(), self.means[members], self.covs[members], self.schedule)

    def _pieces(self, x, t, size=256):
        """For pieces of at most `size` points (they stay in the processor's cache), yield

        rows, p(component, x_t) over its largest value: [K, n], the sum of that: [n], and log p_t(x): [n].
        """
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"points must be [N, {self.dim}], not {list(x.shape)}")
        alpha, sigma = self.schedule.alpha_sigma(t)
        v = alpha**2 * self.eigenvalues + sigma**2  # variances along the axes at time t: [K, D]
        with np.errstate(divide="ignore"):  # the logarithm of a weight of zero
            log_w = np.log(self.weights) - 0.5 * np.log(2 * np.pi * v).sum(axis=1)
        # Whitening x - alpha mu_k is linear in x1 = [x, 1], so -log p(k, x) = |W_k x1|^2 - log_w is a quadratic form.
        x1 = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        W = self.axes / np.sqrt(2 * v)[:, None, :]
        W = np.concatenate([W, -alpha * np.einsum("kij,ki->kj", W, self.means)[:, None, :]], axis=1)  # [K, D + 1, D]
        # Expanded, it is one small matrix product, but loses digits like (|x| / std)^2. Four of 16 may go.
        reach = np.abs(x).max(initial=0) + alpha * np.abs(self.means).max()
        expand = self.dim * reach**2 < 1e4 * v.min()
        i, j = np.triu_indices(self.dim + 1)
        M = np.einsum("kad,kbd->kab", W, W)
        M[:, -1, -1] -= log_w
        M = -np.where(i == j, 1, 2) * M[:, i, j]
        W = W.transpose(2, 0, 1).reshape(-1, self.dim + 1)
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            y = x1[rows].T
            if expand:
                r = M @ (y[i] * y[j])
            else:
                z = (W @ y).reshape(self.dim, len(v), -1)
                r = log_w[:, None] - np.einsum("dkn,dkn->kn", z, z)
            top = r.max(axis=0)  # logsumexp: the largest term becomes exp(0)
            r -= top
            np.exp(r, out=r)
            total = r.sum(axis=0)
            yield rows, r, total, top + np.log(total)

    def _average(self, x, t, constant, matrix):
        """sum_k p(k | x_t) (constant_k + matrix_k x): [N, D]. Every conditional mean of a mixture has this form."""
        table = np.concatenate([constant, matrix.reshape(len(matrix), -1)], axis=1).T  # [D + D^2, K]
        out = np.empty(np.shape(x))
        for rows, r, total, _ in self._pieces(x, t):
            mean = table @ r / total
            out[rows] = mean[: self.dim].T
            out[rows] += np.einsum("ijn,nj->ni", mean[self.dim :].reshape(self.dim, self.dim, -1), x[rows])
        return out

    def log_prob(self, x, t=0.0):
        """log p_t(x) in nats: [N]."""
        return np.concatenate([log_p for _, _, _, log_p in self._pieces(x, t)] or [np.empty(0)])

    def score(self, x, t):
        """Gradient of log p_t at x: [N, D]."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        P = np.einsum("kij,kj,klj->kil", self.axes, 1 / (alpha**2 * self.eigenvalues + sigma**2), self.axes)
        return self._average(x, t, np.einsum("kij,kj->ki", P, alpha * self.means), -P)

    def eps(self, x, t):
        """E[eps | x_t = x] = -sigma score, what a perfect noise-prediction network returns: [N, D]."""
        return -self.schedule.alpha_sigma(t)[1] * self.score(x, t)

    def posterior_mean(self, x, t):
        """E[x_0 | x_t = x]: [N, D]. Written without dividing by alpha, which may be 0 at t = 1."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        gain = alpha * self.eigenvalues / (alpha**2 * self.eigenvalues + sigma**2)
        G = np.einsum("kij,kj,klj->kil", self.axes, gain, self.axes)
        return self._average(x, t, self.means - np.einsum("kij,kj->ki", G, alpha * self.means), G)

    def score_and_divergence(self, x, t):
        """The score [N, D] and its divergence, the trace of the Hessian of log p_t: [N]."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        precision = 1 / (alpha**2 * self.eigenvalues + sigma**2)  # [K, D]
        P = np.einsum("kij,kj,klj->ikl", self.axes, precision, self.axes)  # [D, K, D]
        shift = np.einsum("ikl,kl->ik", P, alpha * self.means)[:, :, None]
        score, divergence = np.empty(np.shape(x)), np.empty(len(x))
        for rows, r, total, _ in self._pieces(x, t):
            g = shift - P @ x[rows].T  # gradient of log N_k at each point: [D, K, n]
            r /= total
            score[rows] = np.einsum("kn,dkn->nd", r, g)
            divergence[rows] = (r * (np.einsum("dkn,dkn->kn", g, g) - precision.sum(axis=1)[:, None])).sum(axis=0)
        return score, divergence - (score**2).sum(axis=1)

    def sample(self, n, rng):
        """n exact draws of x_0: [n, D]. rng: a NumPy Generator."""
        k = rng.choice(len(self.weights), size=n, p=self.weights)
        z = rng.standard_normal((n, self.dim)) * np.sqrt(self.eigenvalues[k])
        return self.means[k] + np.einsum("nij,nj->ni", self.axes[k], z)

    def posterior_sample(self, x, t, rng):
        """One exact draw of x_0 from p(x_0 | x_t = x) for each point: [N, D]."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        k = np.empty(len(x), dtype=int)
        for rows, r, _, _ in self._pieces(x, t):
            summed = np.cumsum(r, axis=0)
            k[rows] = (summed <= rng.random(r.shape[1]) * summed[-1]).sum(axis=0)
        axes, values = self.axes[k], self.eigenvalues[k]
        v = alpha**2 * values + sigma**2
        residual = np.einsum("nij,ni->nj", axes, x - alpha * self.means[k])
        z = alpha * values / v * residual + sigma * np.sqrt(values / v) * rng.standard_normal(np.shape(x))
        return self.means[k] + np.einsum("nij,nj->ni", axes, z)


def mixture(name, schedule=VP):
    """A mixture by name: "S" (48 components), "circle" (a ring of 24), "two" (two blobs at (-3, 3) and (3, 3))."""
    if name == "two":
        return GaussianMixture([0.5, 0.5], [[3, 3], [-3, 3]], [0.25 * np.eye(2)] * 2, schedule)
    if name == "circle":
        angle = 2 * np.pi * np.arange(24) / 24
        means = 2 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    elif name == "S":
        angle = np.linspace(np.radians(25), np.radians(270), 2000)  # the upper bowl, from its open end to the middle
        upper = np.stack([2 * np.cos(angle), 1.35 + 1.35 * np.sin(angle)], axis=1)
        line = np.concatenate([upper, -upper[-2::-1]])  # half a turn makes the lower bowl
        length = np.append(0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
        at = np.linspace(0, length[-1], 48)
        means = np.stack([np.interp(at, length, line[:, i]) for i in (0, 1)], axis=1)
    else:
        raise ValueError(f"the shape must be S, circle or two, not {name!r}")
    return GaussianMixture(np.full(len(means), 1 / len(means)), means, [0.12**2 * np.eye(2)] * len(means), schedule)


def guided_score(unconditional, conditional, x, t, w):
    """Classifier-free guidance between two mixtures: w = 0 unconditional, w = 1 plain conditional. [N, D]."""
    s_u, s_c = unconditional.score(x, t), conditional.score(x, t)
    return s_u + w * (s_c - s_u)


def guided_eps(unconditional, conditional, x, t, w):
    """The same as a noise prediction, eps_u + w (eps_c - eps_u): [N, D]."""
    return -unconditional.schedule.alpha_sigma(t)[1] * guided_score(unconditional, conditional, x, t, w)


# ---------------------------------------------------------------------------------------------------------- integrators
# All take score(x, t) -> [N, D], a start x [N, D] at times[0] and a time grid, and yield (t, x) from the start on. They
# take the score, not eps = -sigma score, because at t = 0 the score is finite where eps / sigma is 0/0. Each raises
# FloatingPointError, naming the step, once the state has blown up.


def _sane(x, i, times):
    if not np.abs(x).max(initial=0) < 1e8:  # also catches NaN
        where = f"step {i + 1} of {len(times) - 1}, from t = {times[i]:.4g} to {times[i + 1]:.4g}"
        raise FloatingPointError(f"the state blew up in {where}: take more steps, or another grid")
    return x


def flow_velocity(score, x, t, schedule):
    """dx/dt of the probability flow, which has the marginals of the SDE without its noise (Song et al. 2021)."""
    return -0.5 * schedule.beta(t) * (x + score(x, t))


def rk4_step(f, x, t, s):
    """x at time s of dx/dt = f(x, t), by the classical fourth-order Runge-Kutta step."""
    h, mid = s - t, (s + t) / 2
    d1 = f(x, t)
    d2 = f(x + h / 2 * d1, mid)
    d3 = f(x + h / 2 * d2, mid)
    d4 = f(x + h * d3, s)
    return x + h * (d1 + 2 * d2 + 2 * d3 + d4) / 6


def euler_maruyama(score, x, times, schedule, noise):
    """Reverse SDE. noise: a standard normal [N, D] per step, as an array [steps, N, D] or any iterable."""
    yield times[0], x
    for i, ((t, s), z) in enumerate(zip(pairwise(times), noise, strict=True)):
        beta = schedule.beta(t)
        x = x + (0.5 * beta * x + beta * score(x, t)) * (t - s) + np.sqrt(beta * (t - s)) * z
        yield s, _sane(x, i, times)


def euler(score, x, times, schedule):
    """Probability flow, first order: one slope."""
    yield times[0], x
    for i, (t, s) in enumerate(pairwise(times)):
        x = x + (s - t) * flow_velocity(score, x, t, schedule)
        yield s, _sane(x, i, times)


def heun(score, x, times, schedule):
    """Probability flow, second order: the mean of the slopes at both ends."""
    yield times[0], x
    for i, (t, s) in enumerate(pairwise(times)):
        d1 = flow_velocity(score, x, t, schedule)
        d2 = flow_velocity(score, x + (s - t) * d1, s, schedule)
        x = x + (s - t) * (d1 + d2) / 2
        yield s, _sane(x, i, times)


def rk4(score, x, times, schedule):
    """Probability flow, fourth order, forwards or backwards in time. The schedule is evaluated at every stage."""
    yield times[0], x
    for i, (t, s) in enumerate(pairwise(times)):
        x = rk4_step(lambda y, r: flow_velocity(score, y, r, schedule), x, t, s)
        yield s, _sane(x, i, times)


def dpmpp_2m(score, x, times, schedule):
    """Probability flow, second order with one score per step: DPM-Solver++(2M), data prediction (Lu et al. 2022).

    With lambda = log(alpha / sigma) the flow is linear but for x0_hat, which is extrapolated from the step before. The
    first step, and one to t = 0 (where lambda is infinite), is first order.
    """
    yield times[0], x
    x0_before = h_before = None
    for i, (t, s) in enumerate(pairwise(times)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
        x0_hat = (x + sigma_t**2 * score(x, t)) / alpha_t
        D = x0_hat if i == 0 or s == 0 else x0_hat + h / (2 * h_before) * (x0_hat - x0_before)
        x = sigma_s / sigma_t * x - alpha_s * np.expm1(-h) * D
        x0_before, h_before = x0_hat, h
        yield s, _sane(x, i, times)


def forward_sde(x, times, schedule, noise):
    """Data dissolving: the exact transition of the forward SDE for any step. times increase; noise as above."""
    yield times[0], x
    for (s, t), z in zip(pairwise(times), noise, strict=True):
        dB = schedule.B(t) - schedule.B(s)
        x = np.exp(-dB / 2) * x + np.sqrt(-np.expm1(-dB)) * z
        yield t, x


def last(trajectory):
    """The final x of an integrator."""
    for _, x in trajectory:  # noqa: B007
        pass
    return x


def log_likelihood(gmm, x, steps=600):
    """log p_0 of points x [N, D] in nats, [N], by the instantaneous change of variables (Chen et al. 2018).

    The probability flow carries x to t = 1, where p_1 is known in closed form; on the way d log p / dt = -div(dx/dt),
    which rides along as one more coordinate. RK4, quadratic grid. log_prob(x, 0) says the same without integrating.
    """

    def velocity(y, t):
        score, divergence = gmm.score_and_divergence(y[:, :-1], t)
        change = np.concatenate([y[:, :-1] + score, gmm.dim + divergence[:, None]], axis=1)
        return -0.5 * gmm.schedule.beta(t) * change

    y = np.concatenate([x, np.zeros((len(x), 1))], axis=1)
    for s, t in pairwise(time_grid(steps)[::-1]):
        y = rk4_step(velocity, y, s, t)
    return gmm.log_prob(y[:, :-1], 1.0) + y[:, -1]


# ------------------------------------------------------------------------------------------------------------ distances


def _kernel_sum(x, y, sigma, size=256):
    """Sum of exp(-|x_i - y_j|^2 / (2 sigma^2)) over all pairs, in pieces, so that memory stays flat."""
    x, y = x / (np.sqrt(2) * sigma), y / (np.sqrt(2) * sigma)
    y_norm, total = (y**2).sum(axis=1), 0.0
    for start in range(0, len(x), size):
        piece = x[start : start + size]
        k = piece @ (2 * y.T)
        k -= (piece**2).sum(axis=1)[:, None]
        k -= y_norm
        total += np.exp(k, out=k).sum()
    return total


def mmd2_unbiased(x, y, sigma=1.0):
    """Unbiased squared MMD between samples [N, D] and [M, D], kernel exp(-|x - y|^2 / (2 sigma^2)); may be negative."""
    n, m = len(x), len(y)
    if min(n, m) < 2 or not sigma > 0:
        raise ValueError(f"MMD needs two points on either side and sigma > 0, not {n}, {m} and {sigma}")
    within = (_kernel_sum(x, x, sigma) - n) / (n * (n - 1)) + (_kernel_sum(y, y, sigma) - m) / (m * (m - 1))
    return within - 2 * _kernel_sum(x, y, sigma) / (n * m)


def mmd2_to_mixture(x, gmm, sigma=1.0):
    """Unbiased squared MMD between a sample [N, D] and a whole mixture (its p_0), without drawing from the mixture.

    The kernel is a Gaussian density but for its factor, so E k(x, y) is the density at x of the mixture widened by
    sigma^2, and E k(y, y') the density at 0 of the widened mixture of all differences.
    """
    n, D, K = len(x), gmm.dim, len(gmm.weights)
    if n < 2 or not sigma > 0:
        raise ValueError(f"MMD needs two points and sigma > 0, not {n} and {sigma}")
    widened = gmm.covs + sigma**2 * np.eye(D)
    cross = GaussianMixture(gmm.weights, gmm.means, widened).log_prob(x)
    differences = GaussianMixture(
        np.outer(gmm.weights, gmm.weights).ravel(),
        (gmm.means[:, None] - gmm.means).reshape(K * K, D),
        (gmm.covs[:, None] + widened).reshape(K * K, D, D),
    ).log_prob(np.zeros((1, D)))
    log_factor = 0.5 * D * np.log(2 * np.pi * sigma**2)
    own = (_kernel_sum(x, x, sigma) - n) / (n * (n - 1))
    return own - 2 * np.exp(cross + log_factor).mean() + np.exp(differences[0] + log_factor)


def sliced_wasserstein(x, y, n_projections, rng):
    """Sliced 2-Wasserstein distance of two samples [N, D] of one size, in units of x: root mean square over random
    directions and matched ranks."""
    if np.shape(x) != np.shape(y):
        raise ValueError(f"sliced Wasserstein needs samples of one shape, not {np.shape(x)} and {np.shape(y)}")
    u = rng.standard_normal((x.shape[1], n_projections))
    u /= np.linalg.norm(u, axis=0)
    gap = np.sort(x @ u, axis=0) - np.sort(y @ u, axis=0)
    return float(np.sqrt((gap**2).mean()))


# ------------------------------------------------------------------------------------------------------------ simulator


def draw(snapshots, gmm, label):
    """One image, uint8 [480, 480, 3], per snapshot (t, x [N, 2]): the cloud, and the contours of p_t it should fill."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    half = max(4, np.abs(gmm.means).max() + 4 * np.sqrt(gmm.eigenvalues.max()))  # noise and data both fit
    axis = np.linspace(-half, half, 121)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    canvas = FigureCanvasAgg(Figure(figsize=(4.8, 4.8), dpi=100))
    ax = canvas.figure.add_axes((0, 0, 1, 1), xlim=(-half, half), ylim=(-half, half))
    ax.axis("off")
    (points,) = ax.plot([], [], "o", ms=2.2, mew=0, alpha=0.45, color="#1f4e79", zorder=3)
    write = partial(ax.text, 0.04, transform=ax.transAxes, fontsize=11, color="0.25", family="monospace")
    write(y=0.94, s=label)
    clock = write(y=0.04, s="")
    for t, x in snapshots:
        density = np.exp(gmm.log_prob(grid, t))
        ranked = np.sort(density)[::-1]
        levels = ranked[np.searchsorted(np.cumsum(ranked) / ranked.sum(), [0.95, 0.5])]  # enclose 95 % and 50 % of p_t
        lines = ax.contour(axis, axis, density.reshape(121, 121), levels, colors="#e08214", linewidths=[1.0, 1.5])
        points.set_data(*x.T)
        clock.set_text(f"t = {t:.3f}   noise = {gmm.schedule.alpha_sigma(t)[1]:.3f}")
        canvas.draw()
        yield np.array(canvas.buffer_rgba())[..., :3]
        lines.remove()


def write_json(path, value):
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def write_arrays(path, *unnamed, **named):
    """One array as .npy, or several with names as .npz."""
    buffer = io.BytesIO()
    np.savez(buffer, **named) if named else np.save(buffer, *unnamed)
    write_whole(path, buffer.getvalue())


def distances(x, target, seed):
    """How far a cloud [N, 2] is from a mixture. Each floor is the same figure for as many exact draws."""
    rng = np.random.default_rng([seed, 1])
    exact, fresh = target.sample(len(x), rng), target.sample(len(x), rng)
    return {
        "n": len(x),
        "mmd2": mmd2_to_mixture(x, target),
        "mmd2_floor": mmd2_to_mixture(fresh, target),
        "sliced_wasserstein": sliced_wasserstein(x, exact, 100, rng),
        "sliced_wasserstein_floor": sliced_wasserstein(fresh, exact, 100, rng),
        "log_density": target.log_prob(x).mean(),
        "log_density_floor": target.log_prob(fresh).mean(),
    }


def simulate(args, out):
    """Run the simulator and write its files into the folder `out`: nothing at all if the integration fails."""
    schedule = VPSchedule(args.beta_min * args.total_time, args.beta_max * args.total_time)
    gmm, times = mixture(args.shape, schedule), time_grid(args.steps, kind=args.grid, schedule=schedule)
    rng, shape = np.random.default_rng(args.seed), (args.n_particles, 2)
    start = gmm.sample(args.n_particles, rng) if args.forward else rng.standard_normal(shape)
    noise = (rng.standard_normal(shape) for _ in range(args.steps))
    times = times[::-1] if args.forward else times
    if args.sampler == "ode":
        trajectory = rk4(gmm.score, start, times, schedule)
    elif args.forward:
        trajectory = forward_sde(start, times, schedule, noise)
    else:
        trajectory = euler_maruyama(gmm.score, start, times, schedule, noise)
    snapshots, bar = [], {"leave": False, "disable": None}  # no bar where nobody watches
    with np.errstate(all="ignore"):  # the integrator reports a blow-up once, and better
        for i, (t, x) in enumerate(tqdm(trajectory, "steps", args.steps + 1, **bar)):
            if not args.no_frames and (i % args.vis_every == 0 or i == args.steps):
                snapshots.append((t, x[:10_000]))  # more points would only blacken the picture

    write_json(out / "config.json", vars(args))
    write_arrays(out / "initial.npy", start)
    write_arrays(out / "final.npy", x)
    write_arrays(out / "mixture.npz", weights=gmm.weights, means=gmm.means, covs=gmm.covs)
    for old in [*out.glob("frame_*.png"), *out.glob("reverse_diffusion.gif"), *out.glob("metrics.json")]:
        old.unlink()  # they belong to an earlier run
    if snapshots:
        label = ("forward" if args.forward else "reverse") + (" SDE" if args.sampler == "sde" else " probability flow")
        shown, movie = np.linspace(0, len(snapshots) - 1, min(len(snapshots), 41)).round(), []
        for i, image in enumerate(tqdm(draw(snapshots, gmm, label), "frames", len(snapshots), **bar)):
            write_whole(out / f"frame_{i:04d}.png", iio.imwrite("<bytes>", image, extension=".png"))
            movie += [image] if i in shown else []
        save_gif(movie, out / "reverse_diffusion.gif")
    if not args.no_metrics:
        metrics = distances(x[:10_000], gmm.marginal(times[-1]), args.seed)
        write_json(out / "metrics.json", metrics)
        for name in ("mmd2", "sliced_wasserstein", "log_density"):
            print(f"{name:20}{metrics[name]:10.5f}   exact samples{metrics[name + '_floor']:10.5f}")


# --------------------------------------------------------------------------------------------------------- command line


def parse_args(argv):
    parser = argparse.ArgumentParser(prog="reference_gmm_sde.py", allow_abbrev=False,
                                     description="Simulate diffusion with the exact score of a mixture of Gaussians.")
    add = parser.add_argument
    add("--shape", choices=("S", "circle", "two"), default="S", help="the data (default %(default)s)")
    add("--sampler", choices=("sde", "ode"), default="sde",
        help="Euler-Maruyama, or RK4 on the probability flow (default %(default)s)")
    add("--steps", type=int, default=1000, help="integration steps (default %(default)s)")
    add("--n-particles", "--n_particles", type=int, default=4000, help="points, at least 2 (default %(default)s)")
    add("--grid", choices=("uniform", "quadratic", "logsnr"), default="quadratic",
        help="spacing of the steps (default %(default)s)")
    add("--beta-min", "--beta_min", type=float, default=0.1, help="noise rate at t = 0 (default %(default)s)")
    add("--beta-max", "--beta_max", type=float, default=20.0, help="noise rate at t = 1 (default %(default)s)")
    add("--total-time", "--total_time", type=float, default=1.0,
        help="multiplies both rates; t stays in [0, 1] (default %(default)s)")
    add("--seed", type=int, default=0, help="decides every random number (default %(default)s)")
    add("--vis-every", "--vis_every", type=int, default=25,
        help="steps from one frame to the next (default %(default)s)")
    add("--forward", action="store_true", help="dissolve the data into noise instead; the same files")
    add("--no-frames", "--no_frames", action="store_true", help="no pictures and no GIF")
    add("--no-metrics", "--no_metrics", action="store_true", help="no distances to exact samples")
    add("--out", "--out-dir", metavar="DIR", help="output folder (default: outputs/reference_gmm_sde/WHAT_IT_IS)")
    add("--config", metavar="FILE", help="a config.json of an earlier run, as defaults")
    add("--audit", action="store_true", help="check every claim of this file instead; exit status 1 if one fails")
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(argv)
    if args.config:  # its settings go in front of the flags, so that flags win
        if not Path(args.config).is_file():  # of a pipe nobody writes into, a reader waits for ever
            parser.error(f"--config {args.config}: there is no such file")
        try:
            settings = dict(json.loads(Path(args.config).read_text()), config=None)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            parser.error(f"--config {args.config} is not a readable config.json: {error}")
        flags = [(f"--{k.replace('_', '-')}", v) for k, v in settings.items() if v is not None and v is not False]
        args = parser.parse_args([flag if v is True else f"{flag}={v}" for flag, v in flags] + argv)
    for name, least in (("steps", 1), ("n_particles", 2), ("vis_every", 1), ("seed", 0)):
        if not least <= getattr(args, name) <= 10**8:
            parser.error(f"--{name.replace('_', '-')} must lie between {least} and 10^8, not at {getattr(args, name)}")
    if not 0 < args.total_time < math.inf:
        parser.error(f"--total-time must be positive and finite, not {args.total_time}")
    return parser, args


def main(argv=None):
    parser, args = parse_args(argv)
    name = "audit" if args.audit else f"{args.shape}_{args.sampler}{'_forward' * args.forward}_seed{args.seed}"
    out = Path(args.out or f"outputs/reference_gmm_sde/{name}")
    try:
        VPSchedule(args.beta_min, args.beta_max)
        out.mkdir(parents=True, exist_ok=True)
        if args.audit:
            from reference_audit import audit  # the trial of this file, kept out of its way

            failures = audit(out)
        else:
            failures = simulate(args, out)
    except OSError as error:
        parser.exit(2, f"{parser.prog}: error: cannot write to {out}: {error.strerror or error}\n")
    except (ValueError, ArithmeticError, MemoryError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    print(f"files in {out}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
