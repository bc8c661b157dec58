"""What a perfect network would say of rot-only crystals: E[x_0 | x_t, condition] in closed form.

    x_t = alpha x_0 + sigma eps,   x_0 = X = 2 R - 1 for a crystal R(type, theta, aspect) in [0, 1]

Given type and angle, a crystal of type 0, 2, 3 is one point, and E[x_0 | x_t] = X whatever x_t.
A rectangular one (type 1) has an aspect b, uniform in [0.75, 1.35], that the condition leaves open:

    E[x_0 | x_t] = int X(b) w(b) db / int w(b) db,   w(b) = exp(-|x_t - alpha X(b)|^2 / 2 sigma^2)

As a function of b the weight w is a peak of standard deviation s = sigma / (alpha |dX/db|), where
|dX/db| is about 260 at 64 pixels: at sigma 0.03 it is 1e-4 wide.  While s is at least WIDE,
Gauss-Legendre nodes over the whole range resolve it, side peaks and all.  Below, one peak is left:
Gauss-Newton finds its top, and the nodes are laid 8 s to either side of it.  Against 1,500 nodes
over the whole range, or 300 in the peak, the mean is good to 1e-5 at any noise level.

Without a condition there is no such thing: the crystals form a thin surface, which no finite set of
nodes resolves.
"""

from common.nearest_crystal import (
    CHUNK,
    RECTANGULAR,
    checked_condition,
    polish,
    rectangular_curve,
)
from data import ASPECT, render

import numpy as np
import torch

NODES = 128  # over the whole range of aspects
PEAK_NODES = 32  # in a peak
WIDE = 0.008  # narrowest peak, as a standard deviation in b, that the whole range resolves
REMEMBERED = 4  # batches of conditions whose crystals are kept


class ExactDenoiser:
    """eps(x_t, alpha, sigma, kind, theta), and the posterior mean that it follows from.

    The crystals of the last conditions are kept, for a sampler comes with the same ones at every
    step: for 64 rectangular ones, 2 MB each in float32 at 64 pixels.
    """

    def __init__(self, img_size=64):
        self.img_size = img_size
        unit, weights = legendre(NODES)
        self.aspects = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * unit  # (NODES,)
        self.log_weights = weights.log()
        self.kept = {}

    def eps(self, x_t, alpha, sigma, kind, theta):
        """E[eps | x_t, type, theta] = (x_t - alpha E[x_0 | x_t, type, theta]) / sigma."""
        alpha, sigma = checked_noise(alpha, sigma, x_t)
        x0_hat = self.posterior_mean(x_t, alpha, sigma, kind, theta)

        alpha, sigma = (level.view(-1, 1, 1, 1).to(x_t) for level in (alpha, sigma))
        return (x_t - alpha * x0_hat) / sigma

    def posterior_mean(self, x_t, alpha, sigma, kind, theta):
        """E[x_0 | x_t, type, theta]: [N, 1, H, H] in [-1, 1], of the dtype and device of x_t.

        x_t: [N, 1, H, H]; alpha >= 0, sigma > 0: numbers or [N]; kind: int [N]; theta: radians [N]
        in [0, pi/3].  Raises ValueError for anything else.
        """
        expected = (1, self.img_size, self.img_size)
        if x_t.shape[1:] != expected:
            shape = f"[N, 1, {self.img_size}, {self.img_size}]"
            raise ValueError(f"x_t must be {shape}, not {list(x_t.shape)}")

        alpha, sigma = checked_noise(alpha, sigma, x_t)
        kind, theta = checked_condition(kind, theta, x_t)

        mean = torch.empty_like(x_t)
        (points,) = torch.where(kind != RECTANGULAR)
        for rows in points.split(CHUNK):
            mean[rows] = self.remember("point", self.points, x_t, kind[rows], theta[rows])

        (rect,) = torch.where(kind == RECTANGULAR)
        for rows in rect.split(CHUNK // 4):
            found = self.rectangular(x_t[rows], alpha[rows], sigma[rows], theta[rows])
            mean[rows] = found.to(x_t)

        return mean

    def points(self, kind, theta):
        return 2 * render(kind, theta, img_size=self.img_size, device=theta.device) - 1

    def curve(self, theta):
        """X(b) at the nodes of the whole range: [n, NODES, H*H]."""
        R = rectangular_curve(theta, self.aspects.to(theta), self.img_size)
        return 2 * R.flatten(2) - 1

    def remember(self, name, make, x_t, *condition):
        """make(*condition) in the dtype of x_t, or what it gave for the same condition before."""
        key = (name, x_t.dtype, str(x_t.device), *(tuple(c.tolist()) for c in condition))
        if key not in self.kept:
            same = [other for other in self.kept if other[0] == name]
            if len(same) == REMEMBERED:
                del self.kept[same[0]]  # the oldest
            self.kept[key] = make(*condition).to(x_t.dtype)
        return self.kept[key]

    def rectangular(self, x_t, alpha, sigma, theta):
        """The posterior mean of rectangular crystals: [n, 1, H, H]."""
        # The quadrature over the whole range of aspects.
        X = self.remember("curve", self.curve, x_t, theta)  # (n, NODES, H*H)
        b = self.aspects.to(x_t.device)
        log_weights = self.log_weights.to(x_t.device)
        mean, log_w = weighted_mean(X, x_t, alpha, sigma, log_weights)

        # How wide the peak is, from the slope of the curve at the node next to its top.
        top = log_w.sub(log_weights).argmax(1).clamp(1, NODES - 2)  # (n,)
        row = torch.arange(len(X), device=X.device)
        rise = (X[row, top + 1] - X[row, top - 1]).norm(dim=1).double()
        slope = rise / (b[top + 1] - b[top - 1])  # |dX/db|
        width = sigma / (alpha * slope)

        # Where it falls between the nodes, it gets nodes of its own.
        (sharp,) = torch.where(width < WIDE)
        if len(sharp):
            of = x_t[sharp].double(), alpha[sharp], sigma[sharp], theta[sharp]
            mean[sharp] = mean_in_peak(*of, b[top[sharp]], width[sharp]).to(mean)
        return mean


def mean_in_peak(x_t, alpha, sigma, theta, start, width):
    """The posterior mean where the weight is one narrow peak near the aspect `start` [n]."""
    # Its top: the aspect whose crystal is nearest to x_0 + noise, in the units of R.
    image = (x_t / alpha.view(-1, 1, 1, 1) + 1) / 2  # (n, 1, H, H)
    p, _ = polish(image, RECTANGULAR, torch.stack([theta, start], 1), free=(1,))
    peak = p[:, 1]

    # Nodes from 8 standard deviations below it to 8 above, within the range of aspects.
    low = (peak - 8 * width).clamp_min(ASPECT[0])
    high = (peak + 8 * width).clamp_max(ASPECT[1])
    unit, weights = (v.to(width) for v in legendre(PEAK_NODES))
    nodes = low[:, None] + (high - low)[:, None] * unit  # (n, PEAK_NODES)

    X = 2 * rectangular_curve(theta, nodes, x_t.shape[-1]).flatten(2) - 1
    mean, _ = weighted_mean(X, x_t, alpha, sigma, weights.log())
    return mean


def weighted_mean(X, x_t, alpha, sigma, log_weights):
    """Mean of X(b) [n, m, D] under w = exp(log_weights - |x_t - alpha X|^2 / 2 sigma^2).

    Returns it as an image [n, 1, H, H], and log w [n, m], up to a constant: |x_t|^2 cancels.
    """
    # The square, multiplied out.
    gain = (alpha / sigma**2)[:, None]
    match = torch.einsum("nmd,nd->nm", X, x_t.flatten(1)).double()
    square = X.square().sum(2).double()
    log_w = log_weights + gain * match - gain * alpha[:, None] / 2 * square

    w = torch.softmax(log_w, 1).to(X)
    return torch.einsum("nm,nmd->nd", w, X).view_as(x_t), log_w


def legendre(n):
    """Nodes and weights of Gauss and Legendre; the nodes moved to [0, 1]: float64 [n]."""
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(n))
    return (nodes + 1) / 2, weights


def checked_noise(alpha, sigma, x_t):
    """alpha and sigma, float64 [N], on the device of x_t.  Raises ValueError."""
    levels = (torch.as_tensor(v, dtype=torch.float64, device=x_t.device) for v in (alpha, sigma))
    alpha, sigma = (level.expand(len(x_t)) for level in levels)

    positive = (alpha >= 0).all() and (sigma > 0).all()
    if not (positive and alpha.isfinite().all() and sigma.isfinite().all()):
        raise ValueError("alpha must not be negative, sigma must be positive, both finite")
    return alpha, sigma


class ExactModel:
    """eps(x, t, condition) in closed form: what a perfect network would say of rot-only crystals.

    schedule: has at(t), which returns beta, alpha and sigma.
    """

    def __init__(self, schedule, img_size):
        self.schedule = schedule
        self.denoiser = ExactDenoiser(img_size)

    def eps(self, x, t, condition):
        _, alpha, sigma = self.schedule.at(t)
        return self.denoiser.eps(x, alpha, sigma, condition.kind, condition.cont[:, 1])
