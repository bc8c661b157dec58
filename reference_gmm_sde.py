"""The judge: a Gaussian mixture diffuses in closed form, so every sampler can be compared with the truth.

    x_t = alpha_t x_0 + sigma_t eps                                 the kernel; alpha_t = exp(-B(t)/2)
    p_t = sum_k w_k N(alpha_t mu_k, alpha_t^2 S_k + sigma_t^2 I)    so a mixture stays a mixture
    dx  = [-beta x/2 - beta score(x, t)] dt + sqrt(beta) dW         and is drawn by running time backwards
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

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
        for k, S_k in enumerate(S):
            symmetric = np.isfinite(S_k).all() and np.allclose(S_k, S_k.T, rtol=1e-9, atol=1e-12 * np.abs(S_k).max())
            if not symmetric or np.linalg.eigvalsh(S_k)[0] <= 0:
                raise ValueError(f"the covariance of component {k} is not symmetric positive definite")
        self.weights, self.means, self.covs, self.schedule = w / w.sum(), mu, S, schedule
        self.eigenvalues, self.axes = np.linalg.eigh(S)  # [K, D] and [K, D, D]; axis j of component k is axes[k, :, j]

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

    def _pieces(self, x, t, size=1024):
        """For pieces of at most `size` points (they stay in the processor's cache), yield

        rows, r = p(component | x_t): [K, n], log p_t(x): [n], squared whitened distances along each axis: [D, K, n].
        """
        x = np.asarray(x, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"points must be [N, {self.dim}], not {list(x.shape)}")
        alpha, sigma = self.schedule.alpha_sigma(t)
        v = alpha**2 * self.eigenvalues + sigma**2  # variances along the axes at time t: [K, D]
        W = self.axes / np.sqrt(v)[:, None, :]
        shift = -alpha * np.einsum("kij,ki->kj", W, self.means)
        # whitening x - alpha mu_k is affine in x: one matrix product for all components. Expanding the square instead
        # is a little faster, but loses digits like (|x| / std)^2 when components lie far apart.
        W = np.concatenate([W, shift[:, None, :]], axis=1).transpose(2, 0, 1)  # [D, K, D + 1]
        with np.errstate(divide="ignore"):  # the logarithm of a weight of zero
            log_w = np.log(self.weights) - 0.5 * np.log(2 * np.pi * v).sum(axis=1)
        for start in range(0, len(x), size):
            rows = slice(start, start + size)
            x1 = np.concatenate([x[rows].T, np.ones((1, len(x[rows])))])
            z = (W.reshape(-1, self.dim + 1) @ x1).reshape(self.dim, len(v), -1)
            r = np.einsum("dkn,dkn->kn", z, z)
            r *= -0.5
            r += log_w[:, None]
            top = r.max(axis=0)  # logsumexp: the largest term becomes exp(0)
            r -= top
            np.exp(r, out=r)
            total = r.sum(axis=0)
            r /= total
            yield rows, r, top + np.log(total), z

    def _average(self, x, t, constant, matrix):
        """sum_k p(k | x_t) (constant_k + matrix_k x): [N, D]. Every conditional mean of a mixture has this form."""
        table = np.concatenate([constant, matrix.reshape(len(matrix), -1)], axis=1).T  # [D + D^2, K]
        out = np.empty(np.shape(x))
        for rows, r, _, _ in self._pieces(x, t):
            c, M = np.split(table @ r, [self.dim])
            out[rows] = c.T + np.einsum("ijn,nj->ni", M.reshape(self.dim, self.dim, -1), x[rows])
        return out

    def log_prob(self, x, t=0.0):
        """log p_t(x) in nats: [N]."""
        return np.concatenate([log_p for _, _, log_p, _ in self._pieces(x, t)] or [np.empty(0)])

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
        score, divergence = self.score(x, t), np.empty(len(x))
        for rows, r, _, z in self._pieces(x, t):
            norms = np.einsum("dkn,dkn,kd->kn", z, z, precision)  # |gradient of log N_k|^2
            divergence[rows] = (r * (norms - precision.sum(axis=1)[:, None])).sum(axis=0)
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
            k[rows] = (np.cumsum(r, axis=0) < rng.random(r.shape[1])).sum(axis=0).clip(max=len(r) - 1)
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
        means = letter_s(48)
    else:
        raise ValueError(f"the shape must be S, circle or two, not {name!r}")
    return GaussianMixture(np.full(len(means), 1 / len(means)), means, [0.12**2 * np.eye(2)] * len(means), schedule)


def letter_s(n):
    """n points equally spaced along a letter S, 4 wide and centred on the origin: [n, 2]."""
    angle = np.linspace(np.radians(25), np.radians(270), 2000)  # the upper bowl, from its open end to the middle
    upper = np.stack([2 * np.cos(angle), 1.35 + 1.35 * np.sin(angle)], axis=1)
    line = np.concatenate([upper, -upper[-2::-1]])  # half a turn makes the lower bowl
    length = np.append(0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
    at = np.linspace(0, length[-1], n)
    return np.stack([np.interp(at, length, line[:, 0]), np.interp(at, length, line[:, 1])], axis=1)


def guide(u, c, w):
    """Classifier-free guidance on scores or on eps: w = 0 gives u (unconditional), w = 1 gives c (conditional)."""
    return u + w * (c - u)


def guided_score(unconditional, conditional, x, t, w):
    """Closed-form guided score of two mixtures: [N, D]. The guided eps is -sigma times it."""
    return guide(unconditional.score(x, t), conditional.score(x, t), w)


def guided_eps(unconditional, conditional, x, t, w):
    """Closed-form guided eps of two mixtures: [N, D]."""
    return guide(unconditional.eps(x, t), conditional.eps(x, t), w)


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
        h, mid = s - t, (s + t) / 2
        d1 = flow_velocity(score, x, t, schedule)
        d2 = flow_velocity(score, x + h / 2 * d1, mid, schedule)
        d3 = flow_velocity(score, x + h / 2 * d2, mid, schedule)
        d4 = flow_velocity(score, x + h * d3, s, schedule)
        x = x + h * (d1 + 2 * d2 + 2 * d3 + d4) / 6
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


def log_likelihood(gmm, x, steps=200):
    """log p_0 of points x [N, D] in nats, [N], by the instantaneous change of variables (Chen et al. 2018).

    The probability flow carries x to t = 1, where p_1 is known in closed form; on the way d log p / dt = -div(dx/dt).
    RK4 on the quadratic grid. It is a test of the flow: log_prob(x, 0) says the same without integrating.
    """

    def slopes(y, t):
        score, divergence = gmm.score_and_divergence(y, t)
        half = -0.5 * gmm.schedule.beta(t)
        return half * (y + score), half * (gmm.dim + divergence)

    gain = np.zeros(len(x))
    for t, s in pairwise(time_grid(steps)[::-1]):
        h, mid = s - t, (s + t) / 2
        d1, g1 = slopes(x, t)
        d2, g2 = slopes(x + h / 2 * d1, mid)
        d3, g3 = slopes(x + h / 2 * d2, mid)
        d4, g4 = slopes(x + h * d3, s)
        x = x + h * (d1 + 2 * d2 + 2 * d3 + d4) / 6
        gain += h * (g1 + 2 * g2 + 2 * g3 + g4) / 6
    return gmm.log_prob(x, 1.0) + gain


# ------------------------------------------------------------------------------------------------------------ distances


def _kernel_sum(x, y, sigma, size=512):
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
