"""The reference: a Gaussian mixture diffuses in closed form, so every sampler has a known truth.

    x_t = alpha_t x_0 + sigma_t eps,   alpha_t = exp(-B(t)/2)       t = 0 is data, t = 1 is noise
    p_t = sum_k w_k N(alpha_t mu_k, alpha_t^2 S_k + sigma_t^2 I)    a mixture stays a mixture
    dx  = [-beta x/2 - beta score(x, t)] dt + sqrt(beta) dW         from t = 1 to 0 it makes data

    python reference_gmm_sde.py

takes 5 to 10 seconds on one core: 4,000 points of noise condense into a letter S.  The film, its
frames, the points and metrics.json are in outputs/reference_gmm_sde/default/.  Each distance to
exact samples has a floor beside it, the distance of exact samples among themselves.

    python reference_gmm_sde.py --sampler ode --steps 10    the probability flow, in 40 scores
    python reference_gmm_sde.py --forward                   the letter dissolves into noise

`python audit.py --only reference` checks every formula and integrator of this file.  Left out:
anything learned.  The torch scripts bring samplers of their own, to be compared with these.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from common import cli, numerics, shapes, simulation
from common.cli import flag

import numpy as np

# ------------------------------------------------------------------------------ the schedule


@dataclass(frozen=True)
class VPSchedule:
    """Variance-preserving noise (Song et al. 2021).  B(t) is defined, the rest follows from it.

    The noise rates, per unit of time, are 0 < beta_min <= beta_max; raises ValueError for others.
    The methods take numbers or arrays, t in [0, 1].
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        if not 0 < self.beta_min <= self.beta_max < np.inf:  # NaN fails every comparison
            rates = f"{self.beta_min} and {self.beta_max}"
            raise ValueError(f"need 0 < beta_min <= beta_max < inf, not {rates}")

    def B(self, t):
        return self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2

    def beta(self, t):
        return self.beta_min + (self.beta_max - self.beta_min) * t  # dB/dt

    def alpha_sigma(self, t):
        B = self.B(t)
        return np.exp(-B / 2), np.sqrt(-np.expm1(-B))  # not sqrt(1 - alpha^2): digits near t = 0

    def log_snr(self, t):
        """log(alpha^2 / sigma^2), rightly infinite at t = 0."""
        with np.errstate(divide="ignore"):
            return -self.B(t) - np.log(-np.expm1(-self.B(t)))

    def t_of_log_snr(self, log_snr):
        B = np.logaddexp(0, -log_snr)  # since alpha^2 = sigmoid(log_snr)
        slope = self.beta_max - self.beta_min
        return 2 * B / (self.beta_min + np.sqrt(self.beta_min**2 + 2 * slope * B))


VP = VPSchedule()  # the default of everything in the plane
GRIDS = ("uniform", "quadratic", "logsnr")


def time_grid(steps, t_start=1.0, t_end=0.0, kind="quadratic", schedule=VP):
    """Decreasing times [steps + 1] from t_start to t_end, both hit exactly.

    kind: uniform in t, quadratic (uniform in sqrt t), or logsnr (uniform in log(alpha^2/sigma^2)).
    The log-SNR of t = 0 is infinite: there the logsnr grid goes to t_start/1000, then jumps to 0.
    Raises ValueError unless 0 <= t_end < t_start <= 1 and steps is a whole number above 0.
    """
    if steps != int(steps) or steps < 1:
        raise ValueError(f"the number of steps must be a whole number of at least 1, not {steps}")
    if not 0 <= t_end < t_start <= 1:
        raise ValueError(f"need 0 <= t_end < t_start <= 1, not {t_end} and {t_start}")

    if kind == "uniform":
        times = np.linspace(t_start, t_end, steps + 1)
    elif kind == "quadratic":
        times = np.linspace(np.sqrt(t_start), np.sqrt(t_end), steps + 1) ** 2
    elif kind == "logsnr" and t_end > 0:
        scale = np.linspace(schedule.log_snr(t_start), schedule.log_snr(t_end), steps + 1)
        times = schedule.t_of_log_snr(scale)
    elif kind == "logsnr":
        scale = np.linspace(schedule.log_snr(t_start), schedule.log_snr(t_start / 1000), steps)
        times = np.append(schedule.t_of_log_snr(scale), 0.0)
    else:
        raise ValueError(f"the grid must be one of {', '.join(GRIDS)}, not {kind!r}")

    times[0] = t_start
    times[-1] = t_end
    return times


# ------------------------------------------------------------------------------- the mixture


class GaussianMixture:
    """p(x_0) = sum_k w_k N(mu_k, S_k), and all there is to know about x_t.

    weights [K] (sum 1), means [K, D], covs [K, D, D] (symmetric positive definite), float64;
    schedule: anything with alpha_sigma(t).  Raises ValueError for others.  Points x are [N, D],
    t is one number in [0, 1]; t = 0 and points far off the support are fine.
    Noise adds to the eigenvalues of a covariance and leaves its axes alone: one eigh is enough.
    """

    def __init__(self, weights, means, covs, schedule=VP):
        self.weights, self.means, self.covs = numerics.checked_mixture(weights, means, covs)
        self.eigenvalues, self.axes = numerics.diagonalised(self.covs)
        self.schedule = schedule
        self.dim = self.means.shape[1]

    def marginal(self, t):
        """The mixture p_t, as data of its own."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        covs = alpha**2 * self.covs + sigma**2 * np.eye(self.dim)
        return GaussianMixture(self.weights, alpha * self.means, covs, self.schedule)

    def given(self, members):
        """p(x_0 | its component is one of `members`): with a class a component, conditional."""
        w = self.weights[members]
        means = self.means[members]
        return GaussianMixture(w / w.sum(), means, self.covs[members], self.schedule)

    def _levels(self, t):
        """alpha, sigma, and the variances along the axes at time t: [K, D]."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return alpha, sigma, alpha**2 * self.eigenvalues + sigma**2

    def _components(self, x, t):
        """Yield (rows, p, total, log p_t) of pieces of the points: p(k | x) = p / total, [K, n]."""
        alpha, _, v = self._levels(t)
        return numerics.component_pieces(x, self.weights, alpha, self.means, self.axes, v)

    def log_prob(self, x, t=0.0):
        """log p_t(x) in nats: [N]."""
        pieces = [log_p for _, _, _, log_p in self._components(x, t)]
        return np.concatenate([*pieces, np.empty(0)])

    def score(self, x, t):
        """Gradient of log p_t at x, sum_k p(k | x) C_k^-1 (alpha mu_k - x) at time t: [N, D]."""
        alpha, _, v = self._levels(t)
        precision = np.einsum("kij,kj,klj->kil", self.axes, 1 / v, self.axes)  # [K, D, D]
        pull = np.einsum("kij,kj->ki", precision, alpha * self.means)
        return numerics.component_average(x, self._components(x, t), pull, -precision)

    def eps(self, x, t):
        """E[eps | x_t = x] = -sigma score, what a perfect network would predict: [N, D]."""
        return -self.schedule.alpha_sigma(t)[1] * self.score(x, t)

    def posterior_mean(self, x, t):
        """E[x_0 | x_t = x]: [N, D].  Without dividing by alpha, which may be 0 at t = 1."""
        alpha, _, v = self._levels(t)
        gains = alpha * self.eigenvalues / v
        gain = np.einsum("kij,kj,klj->kil", self.axes, gains, self.axes)  # [K, D, D]
        rest = self.means - np.einsum("kij,kj->ki", gain, alpha * self.means)
        return numerics.component_average(x, self._components(x, t), rest, gain)

    def score_and_divergence(self, x, t):
        """The score s [N, D]; its divergence, sum_k p(k | x) (|g_k|^2 - tr C_k^-1) - |s|^2: [N]."""
        alpha, _, v = self._levels(t)
        P = np.einsum("kij,kj,klj->ikl", self.axes, 1 / v, self.axes)  # precisions [D, K, D]
        pull = np.einsum("ikl,kl->ik", P, alpha * self.means)[:, :, None]
        trace = (1 / v).sum(axis=1)[:, None]

        score = np.empty(np.shape(x))
        divergence = np.empty(len(x))
        for rows, p, total, _ in self._components(x, t):
            g = pull - P @ x[rows].T  # gradient of log N_k at each point: [D, K, n]
            p /= total
            score[rows] = np.einsum("kn,dkn->nd", p, g)
            divergence[rows] = (p * (np.einsum("dkn,dkn->kn", g, g) - trace)).sum(axis=0)

        return score, divergence - (score**2).sum(axis=1)

    def sample(self, n, rng):
        """n exact draws of x_0: [n, D].  rng: a NumPy Generator."""
        k = rng.choice(len(self.weights), size=n, p=self.weights)
        z = rng.standard_normal((n, self.dim)) * np.sqrt(self.eigenvalues[k])
        return self.means[k] + np.einsum("nij,nj->ni", self.axes[k], z)

    def posterior_sample(self, x, t, rng):
        """One exact draw of x_0 from p(x_0 | x_t = x) for each point: [N, D]."""
        alpha, sigma, v = self._levels(t)

        # First the component, by its share of p_t(x).
        k = np.empty(len(x), dtype=int)
        for rows, p, _, _ in self._components(x, t):
            summed = np.cumsum(p, axis=0)
            k[rows] = (summed <= rng.random(p.shape[1]) * summed[-1]).sum(axis=0)

        # Then a Gaussian, along the axes of that component.
        axes = self.axes[k]
        values = self.eigenvalues[k]
        residual = np.einsum("nij,ni->nj", axes, x - alpha * self.means[k])
        noise = sigma * np.sqrt(values / v[k]) * rng.standard_normal(np.shape(x))
        z = alpha * values / v[k] * residual + noise
        return self.means[k] + np.einsum("nij,nj->ni", axes, z)


def mixture(name, schedule=VP):
    """By name: "S" (48 components), "circle" (a ring of 24), "two" (blobs at (-3, 3), (3, 3))."""
    means, std = shapes.named(name)
    K = len(means)
    return GaussianMixture(np.full(K, 1 / K), means, [std**2 * np.eye(2)] * K, schedule)


def guided_score(unconditional, conditional, x, t, w):
    """Classifier-free guidance of two mixtures: w = 0 unconditional, w = 1 conditional: [N, D]."""
    s_u = unconditional.score(x, t)
    s_c = conditional.score(x, t)
    return s_u + w * (s_c - s_u)


def guided_eps(unconditional, conditional, x, t, w):
    """The same as a noise prediction, eps_u + w (eps_c - eps_u): [N, D]."""
    sigma = unconditional.schedule.alpha_sigma(t)[1]
    return -sigma * guided_score(unconditional, conditional, x, t, w)


# --------------------------------------------------------------------------- the integrators
# All take score(x, t) [N, D], a start x [N, D] at times[0] and a time grid, and yield (t, x) from
# the start on.  Not eps = -sigma score: at t = 0 the score is finite where eps / sigma is 0/0.


def flow_velocity(score, x, t, schedule):
    """dx/dt of the probability flow: the marginals of the SDE, without noise (Song et al. 2021)."""
    return -0.5 * schedule.beta(t) * (x + score(x, t))


def rk4_step(f, x, t, s):
    """x at time s of dx/dt = f(x, t), by the classical fourth-order Runge-Kutta step."""
    h = s - t
    mid = (s + t) / 2

    d1 = f(x, t)
    d2 = f(x + h / 2 * d1, mid)
    d3 = f(x + h / 2 * d2, mid)
    d4 = f(x + h * d3, s)
    return x + h * (d1 + 2 * d2 + 2 * d3 + d4) / 6


def euler_maruyama(score, x, times, schedule, noise):
    """Reverse SDE.  noise: a standard normal [N, D] per step, as an array or any iterable."""
    yield times[0], x

    for (t, s), z in zip(pairwise(times), noise, strict=True):
        beta = schedule.beta(t)
        drift = 0.5 * beta * x + beta * score(x, t)
        x = x + drift * (t - s) + np.sqrt(beta * (t - s)) * z
        yield s, x


def euler(score, x, times, schedule):
    """Probability flow, first order: one slope."""
    yield times[0], x

    for t, s in pairwise(times):
        x = x + (s - t) * flow_velocity(score, x, t, schedule)
        yield s, x


def heun(score, x, times, schedule):
    """Probability flow, second order: the mean of the slopes at both ends."""
    yield times[0], x

    for t, s in pairwise(times):
        d1 = flow_velocity(score, x, t, schedule)
        d2 = flow_velocity(score, x + (s - t) * d1, s, schedule)
        x = x + (s - t) * (d1 + d2) / 2
        yield s, x


def rk4(score, x, times, schedule):
    """Probability flow, fourth order, in either direction, with beta taken at every stage."""
    velocity = partial(flow_velocity, score, schedule=schedule)
    yield times[0], x

    for t, s in pairwise(times):
        x = rk4_step(velocity, x, t, s)
        yield s, x


def dpmpp_2m(score, x, times, schedule):
    """Probability flow, second order, one score a step: DPM-Solver++(2M) (Lu et al. 2022).

    With lambda = log(alpha / sigma) the flow is linear but for x0_hat, which is extrapolated from
    the step before.  The first step, and one to t = 0 (lambda infinite), is first order.
    """
    yield times[0], x
    x0_before = h_before = None

    for i, (t, s) in enumerate(pairwise(times)):
        alpha_t, sigma_t = schedule.alpha_sigma(t)
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2

        x0_hat = D = (x + sigma_t**2 * score(x, t)) / alpha_t
        if i > 0 and s > 0:
            D = x0_hat + h / (2 * h_before) * (x0_hat - x0_before)
        x = sigma_s / sigma_t * x - alpha_s * np.expm1(-h) * D

        x0_before = x0_hat
        h_before = h
        yield s, x


def forward_sde(x, times, schedule, noise):
    """Data dissolving, by the exact transition of the forward SDE.  times increase."""
    yield times[0], x

    for (s, t), z in zip(pairwise(times), noise, strict=True):
        dB = schedule.B(t) - schedule.B(s)
        x = np.exp(-dB / 2) * x + np.sqrt(-np.expm1(-dB)) * z
        yield t, x


# ---------------------------------------------------------------------------- the likelihood


def log_likelihood(gmm, x, steps=600):
    """log p_0 of points x [N, D] in nats, [N], by the change of variables (Chen et al. 2018).

    The probability flow carries x to t = 1, where p_1 is known in closed form, and
    log p_0(x_0) = log p_1(x_1) + int div(dx/dt) dt; the integral rides along as one more
    coordinate.  RK4, quadratic grid.
    """

    def velocity(y, t):
        score, divergence = gmm.score_and_divergence(y[:, :-1], t)
        change = [y[:, :-1] + score, gmm.dim + divergence[:, None]]
        return -0.5 * gmm.schedule.beta(t) * np.concatenate(change, axis=1)

    y = np.concatenate([x, np.zeros((len(x), 1))], axis=1)
    for s, t in pairwise(time_grid(steps)[::-1]):
        y = rk4_step(velocity, y, s, t)
    return gmm.log_prob(y[:, :-1], 1.0) + y[:, -1]


# ----------------------------------------------------------------------------- the simulator


@dataclass(kw_only=True)
class Config(simulation.Files):
    script = "reference_gmm_sde"

    shape: str = flag.sampling("S", "the data", choices=("S", "circle", "two"))
    sampler: str = flag.sampling("sde", "ode: RK4 on the probability flow", choices=("sde", "ode"))
    steps: int = flag.sampling(1000, "integration steps", low=1, high=10**8)
    n_particles: int = flag.sampling(4000, "points", low=1, high=10**8)
    grid: str = flag.sampling("quadratic", "spacing of the steps", choices=GRIDS)
    beta_min: float = flag.sampling(0.1, "noise rate at t = 0", above=0)
    beta_max: float = flag.sampling(20.0, "noise rate at t = 1", above=0)
    total_time: float = flag.sampling(1.0, "multiplies both rates; t stays in [0, 1]", above=0)
    forward: bool = flag.sampling(False, "dissolve the data into noise instead")

    def settle(self, typed):
        super().settle(typed)
        beta_max = self.beta_max * self.total_time
        self.schedule = VPSchedule(self.beta_min * self.total_time, beta_max)


def simulate(config, gmm):
    """The trajectory that the settings ask for, as an integrator yields it."""
    rng = np.random.default_rng(config.seed)
    size = (config.n_particles, 2)

    times = time_grid(config.steps, kind=config.grid, schedule=gmm.schedule)
    if config.forward:
        times = times[::-1]
        start = gmm.sample(config.n_particles, rng)
    else:
        start = rng.standard_normal(size)

    noise = (rng.standard_normal(size) for _ in range(config.steps))
    if config.sampler == "ode":
        return rk4(gmm.score, start, times, gmm.schedule)
    if config.forward:
        return forward_sde(start, times, gmm.schedule, noise)
    return euler_maruyama(gmm.score, start, times, gmm.schedule, noise)


def main(argv=None):
    with cli.program(Config.script):
        config = cli.parse(Config, argv)
        gmm = mixture(config.shape, config.schedule)
        simulation.write(config, simulate(config, gmm), gmm)


if __name__ == "__main__":
    main()
