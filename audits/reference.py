"""Claims about reference_gmm_sde.py: its formulas, integrators, likelihood and guidance.

    python audit.py --only reference

takes 20 seconds, and loads no torch.  Tolerances come from theory or from what the claim is worth,
never from what was measured.
"""

import math
from functools import cache, partial

from common import distances
from common.claims import Claim
from common.figures import house_style, new_figure, save_figure
from common.numerics import last
from reference_gmm_sde import (
    VP,
    GaussianMixture,
    dpmpp_2m,
    euler,
    euler_maruyama,
    guided_score,
    heun,
    log_likelihood,
    mixture,
    rk4,
    time_grid,
)

import numpy as np

# -------------------------------------------------------------------------------- the score


def score_by_differences():
    gmm = mixture("S")
    t = 0.02
    x = gmm.marginal(t).sample(500, np.random.default_rng(0))

    h = 1e-5  # a ten-thousandth of the width: the differences are good to 1e-8
    along = [gmm.log_prob(x + h * e, t) - gmm.log_prob(x - h * e, t) for e in np.eye(2)]
    slope = np.stack(along, axis=1) / (2 * h)

    score = gmm.score(x, t)
    worst = np.abs(slope - score).max() / np.abs(score).max()
    return Claim("score = gradient of log p_t, by differences", 0, worst, 1e-7, n=len(x))


def score_by_inverses():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((5, 3, 3))
    means = 3 * rng.standard_normal((5, 3))
    covs = A @ A.transpose(0, 2, 1) + 0.1 * np.eye(3)
    gmm = GaussianMixture(np.full(5, 0.2), means, covs)
    x = 4 * rng.standard_normal((200, 3))
    alpha, sigma = VP.alpha_sigma(0.1)

    # As in a textbook: an inverse and a determinant for each component.
    density = 0
    gradient = 0
    for mu, S in zip(gmm.means, gmm.covs, strict=True):
        C = alpha**2 * S + sigma**2 * np.eye(3)
        d = x - alpha * mu
        square = np.einsum("ni,ij,nj->n", d, np.linalg.inv(C), d)
        p = np.exp(-0.5 * square) / np.sqrt(np.linalg.det(2 * np.pi * C))
        density = density + p
        gradient = gradient - p[:, None] * (d @ np.linalg.inv(C))

    literal = gradient / density[:, None]
    worst = np.abs(gmm.score(x, 0.1) / literal - 1).max()
    return Claim("score = the textbook formula, relative", 0, worst, 1e-10, n=len(x))


# -------------------------------------------------------------------------- the integrators


@cache
def flow_endpoint(t_end):
    """The S, 200 starting points at t = 1, and where the exact flow takes them.

    By RK4 in so many steps that its errors are below 1e-11.
    """
    gmm = mixture("S")
    x = np.random.default_rng(0).standard_normal((200, 2))
    return gmm, x, last(rk4(gmm.score, x, time_grid(1500, t_end=t_end), VP))


def flow_error(solver, steps, grid="quadratic", t_end=0.0):
    """Median distance to where the exact flow ends."""
    gmm, x, exact = flow_endpoint(t_end)
    times = time_grid(steps, t_end=t_end, kind=grid)
    y = last(solver(gmm.score, x, times, VP))
    return np.median(np.linalg.norm(y - exact, axis=1))


@cache
def strong_errors(grid="quadratic", t_end=0.0, steps=(50, 100, 200, 400), finest=6400):
    """Median distance of Euler-Maruyama to its own limit along the same Brownian paths."""
    gmm = mixture("S")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 2))
    fine = time_grid(finest, t_end=t_end, kind=grid)
    dW = np.sqrt(-np.diff(fine))[:, None, None] * rng.standard_normal((finest, 100, 2))

    ends = []
    for n in (*steps, finest):
        times = fine[:: finest // n]
        summed = dW.reshape(n, -1, 100, 2).sum(axis=1)  # the path, in n steps
        z = summed / np.sqrt(-np.diff(times))[:, None, None]
        ends.append(last(euler_maruyama(gmm.score, x, times, VP, z)))
    *ends, limit = ends
    return steps, [np.median(np.linalg.norm(y - limit, axis=1)) for y in ends]


def order(solver, expected, tolerance, steps=(100, 200, 400), **where):
    errors = [flow_error(solver, n, **where) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    claim = f"order of {solver.__name__}, flow to t = {where.get('t_end', 0)}"
    return Claim(claim, expected, slope, tolerance)


def strong_order():
    slope = -np.polyfit(*np.log(strong_errors()), 1)[0]
    return Claim("strong order of euler_maruyama, reverse SDE", 1, slope, 0.2)


def rk4_at_50_steps():
    claim = "rk4, 50 steps: distance to the exact flow, median"
    return Claim(claim, 0, flow_error(rk4, 50), 1e-6, n=200)


def marginals(name, n=2000):
    """The cloud against the closed form p_t on the way: MMD^2 over a bound on its deviation.

    For n exact samples var = 2 E[h^2] / n^2 with h the doubly centred kernel, E[h^2] <= E[k^2].
    """
    gmm = mixture("S")
    rng = np.random.default_rng(0)
    steps = 400 if name == "SDE" else 100
    times = time_grid(steps)
    x = gmm.marginal(1.0).sample(n, rng)
    if name == "SDE":
        noise = (rng.standard_normal(x.shape) for _ in range(steps))
        run = euler_maruyama(gmm.score, x, times, VP, noise)
    else:
        run = rk4(gmm.score, x, times, VP)

    worst = 0
    for i, (t, x) in enumerate(run):
        if i and i % (steps // 5) == 0:
            squares = distances.kernel_sum(x, x, np.sqrt(0.5))  # k^2 is a kernel of that width
            deviation = np.sqrt(2 * squares) / n**2
            mmd2 = distances.mmd2_to_mixture(x, gmm.marginal(t))
            worst = max(worst, abs(mmd2) / deviation)
    claim = f"{name}: marginals at 5 times, worst MMD^2 / its deviation"
    return Claim(claim, 0, worst, 4, n=n)


# --------------------------------------------------------------------- likelihood, guidance


def likelihood():
    gmm = mixture("S")
    x = gmm.sample(1000, np.random.default_rng(0))
    worst = np.abs(log_likelihood(gmm, x) - gmm.log_prob(x)).max()
    claim = "log-likelihood by the flow, worst of 1,000 points (nats)"
    return Claim(claim, 0, worst, 1e-5, n=len(x))


def guided_from_wide_to_narrow(w):
    """The score that guides N(0, 2) to N(0, 1)."""
    wide = GaussianMixture([1.0], [[0.0]], [[[2.0]]])
    narrow = GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    return partial(guided_score, wide, narrow, w=w)


def guided_flow(w):
    start = np.ones((1, 1))  # N(0, 1) in one point; the flow multiplies, and is off by alpha_1^2
    end = last(rk4(guided_from_wide_to_narrow(w), start, time_grid(200), VP))
    claim = f"guided flow, w = {w}: final variance"
    return Claim(claim, 2 ** (1 - w), end.item() ** 2, 1e-4)


def guided_sde(w):
    """From N(0, 1).  The problem is linear, so no sampling is needed.

    One particle for each source of randomness, the start and the noise of each step: the squares
    of where they end add up to the variance.
    """

    def reached(steps):
        sources = np.eye(1, steps + 1).T
        noise = np.eye(steps, steps + 1, 1)[:, :, None]  # step i moves particle i + 1
        score = guided_from_wide_to_narrow(w)
        return (last(euler_maruyama(score, sources, time_grid(steps), VP, noise)) ** 2).sum()

    expected = 2 * math.log(2)
    if w != 0.5:
        expected = (2 - 2 ** (2 - 2 * w)) / (2 * w - 1)
    measured = 2 * reached(1000) - reached(500)  # without the first order; the rest is below 1e-3
    return Claim(f"guided SDE, w = {w}: final variance", expected, measured, 1e-3)


CLAIMS = [
    score_by_differences,
    score_by_inverses,
    partial(order, euler, 1, 0.2),
    partial(order, heun, 2, 0.2),
    partial(order, rk4, 4, 0.3),
    partial(order, dpmpp_2m, 2, 0.2, (200, 400, 800), grid="logsnr", t_end=0.01),
    strong_order,
    rk4_at_50_steps,
    partial(marginals, "SDE"),
    partial(marginals, "flow"),
    likelihood,
    partial(guided_flow, 1.5),
    partial(guided_sde, 1.5),
    partial(guided_sde, 0.5),
]

# ------------------------------------------------------------------------------ the picture

SOLVERS = {"Euler": euler, "Heun": heun, "RK4": rk4, "DPM-Solver++(2M)": dpmpp_2m}


@house_style()
def draw(folder):
    """work_precision.png: error at t = 0.01 against score evaluations, for every solver."""
    work = (24, 48, 100, 200, 400, 800)
    curves = {"Euler-Maruyama\n(its own path)": strong_errors("logsnr", 0.01, (25, 50, *work[2:]))}
    for label, solver in SOLVERS.items():
        cost = {heun: 2, rk4: 4}.get(solver, 1)  # of a step
        steps = [n // cost for n in work]
        curves[label] = work, [flow_error(solver, n, grid="logsnr", t_end=0.01) for n in steps]

    figure = new_figure(8.4, 5.5, layout="constrained")
    ax = figure.subplots()
    for label, (work, errors) in curves.items():
        (line,) = ax.loglog(work, errors, "o-", ms=4)
        look = dict(color=line.get_color(), textcoords="offset points", va="center")
        ax.annotate(label, (work[-1], errors[-1]), (10, 0), **look)  # outside of the axes
    ax.set(xlabel="score evaluations", ylabel="median distance to the exact end point")
    ax.set(xlim=(22, 850))
    ax.set_xticks(work, work)
    ax.minorticks_off()
    ax.set_title("What a score evaluation buys, on the letter S", loc="left")
    ax.grid()
    save_figure(folder / "work_precision.png", figure)
