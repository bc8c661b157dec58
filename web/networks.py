"""What the page asks, as torch modules that can be exported: networks, exact scores, crystals.

Everything is the project's own but for two transcriptions, which tests hold to what they copy: the
guidance of vp_sde.py, whose `if w == 1` no export can follow, and the mixture of
reference_gmm_sde.py, which is NumPy.
"""

import data
from common.nearest_crystal import (
    RECTANGULAR,
    bank,
    halve,
    rectangular_curve,
    render_one_kind,
    rmse,
)

import numpy as np
import torch
from torch import nn

# ------------------------------------------------------------------------------ crystals


class Guided(nn.Module):
    """x0_hat_u + w (x0_hat_c - x0_hat_u) of one crystal, both halves in one batch.

    Guidance adds and scales, and eps is linear in x0_hat: so this is the x0_hat that belongs to
    eps_u + w (eps_c - eps_u).
    """

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t, kind, theta, w):
        zero = torch.zeros_like(theta)
        cont = torch.stack([zero, theta, zero, zero], 1)
        known = torch.ones_like(kind, dtype=torch.bool)
        condition = data.Condition(kind, cont, known)

        both = data.concat(condition.dropped(), condition)
        answers = self.net(torch.cat([x, x]), torch.cat([t, t]), both)
        x0_u = answers[:1]
        x0_c = answers[1:]
        return x0_u + w[:, None, None, None] * (x0_c - x0_u)


class Curve(nn.Module):
    """Rectangular crystals of an angle, at 31 aspects, for Nearest to start from."""

    def __init__(self, img_size):
        super().__init__()
        self.img_size = img_size

    def forward(self, theta):
        return rectangular_curve(theta, coarse_aspects(), self.img_size)[0].flatten(1)  # (31, HH)


def coarse_aspects():
    return torch.linspace(*data.ASPECT, 31, dtype=torch.float64)  # as crystal_error has them


class Nearest(nn.Module):
    """Of the crystals that a condition allows the one nearest to x [1, 1, H, H].

    forward returns it, in [-1, 1], the crystal error, (theta, aspect) and the type.  The curve is
    for rectangular crystals, whose aspect is to be found.
    """

    def __init__(self, kind, img_size):
        super().__init__()
        self.kind = kind
        self.img_size = img_size

    def forward(self, x, theta, curve=None):
        image = data.unit(x).double()
        p = torch.stack([theta, torch.ones_like(theta)], 1)  # (1, 2)
        if curve is not None:
            best = (image.flatten(1) - curve).square().sum(1, keepdim=True).argmin(0)
            p = torch.stack([theta, coarse_aspects()[best]], 1)
            p = settled(image, self.kind, p, (1,), self.img_size)

        truth = render_one_kind(self.kind, p, self.img_size)
        return (2 * truth - 1).float(), rmse(image, truth), p, torch.tensor([self.kind])


class NearestOfAny(nn.Module):
    """The same without a condition: the nearest crystal of any type, angle and aspect.

    banks: the images of Bank, of which the nearest is where the search in a type starts.
    """

    def __init__(self, img_size):
        super().__init__()
        self.img_size = img_size

    def forward(self, x, *banks):
        image = data.unit(x).double()
        halved = halve(image.float())  # runtimes average in float32 only
        candidates = []
        errors = []
        places = []
        for k, images in enumerate(banks):
            p = bank(self.img_size)[k][1]
            distance = images.square().sum(1) - 2 * halved @ images.T
            free = (0, 1) if k == RECTANGULAR else (0,)
            p = settled(image, k, p[distance.argmin(1)], free, self.img_size)
            truth = render_one_kind(k, p, self.img_size)
            candidates.append(truth)
            errors.append(rmse(image, truth))
            places.append(p)

        # As nearest_of_any: a free aspect does not make another type, unless it wins by 1 %.
        errors = torch.stack(errors, 1)  # (1, 4)
        kind = errors.mul(torch.tensor([1.0, 1.01, 1.0, 1.0]).to(errors)).argmin(1)
        truth = torch.cat(candidates)[kind]
        return (2 * truth - 1).float(), errors[0, kind], torch.cat(places)[kind], kind


class Bank(nn.Module):
    """The crystals that NearestOfAny starts from, at half size, a tensor a type."""

    def __init__(self, img_size):
        super().__init__()
        self.img_size = img_size

    def forward(self, zero):
        banks = []
        for k, p, _ in bank(self.img_size):
            parts = [render_one_kind(k, part + zero, self.img_size).float() for part in p.split(64)]
            banks.append(torch.cat([halve(part) for part in parts]))
        return tuple(banks)


def settled(x, kind, p, free, img_size, steps=6, delta=1e-4):
    """`polish` of nearest_crystal.py in so many steps, whatever x is: what can be exported."""
    ends = [[0.0, data.ASPECT[0]], [data.THETA_MAX, data.ASPECT[1]]]
    low, high = torch.tensor(ends, dtype=torch.float64)
    size = torch.ones_like(p[:, :1])
    residual = x - render_one_kind(kind, p, img_size)
    for _ in range(steps):
        # A step of Gauss-Newton, each column of p by itself.
        step = torch.zeros_like(p)
        for column in free:
            e = delta * torch.eye(2, dtype=torch.float64)[column]
            ahead = render_one_kind(kind, p + e, img_size)
            behind = render_one_kind(kind, p - e, img_size)
            slope = (ahead - behind) / (2 * delta)  # dR/dp: (1, 1, H, H)
            change = (slope * residual).sum() / slope.square().sum()
            step = step + change * e / delta

        # It is taken where it helps; where it does not, the next one is a quarter of it.
        trial = torch.minimum(torch.maximum(p + size * step, low), high)
        trial_residual = x - render_one_kind(kind, trial, img_size)
        better = trial_residual.square().sum() < residual.square().sum()
        size = torch.where(better, torch.ones_like(size), size / 4)
        p = torch.where(better, trial, p)
        residual = torch.where(better, trial_residual, residual)
    return p


# ------------------------------------------------------------------------------ points


class LearnedPoints(nn.Module):
    """eps and score of points [N, 2] at a time t [1], float64, by a network for v."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, t):
        alpha, sigma = self.net.schedule.alpha_sigma(t)
        eps = sigma * x + alpha * self.net(x, t.float().expand(x.shape[0]))
        return eps.float(), (-eps / sigma).float()


class Mixture(nn.Module):
    """p_t of a mixture of round Gaussians of one size: reference_gmm_sde.py in torch, float64.

    The mixture comes in as means [K, 2], log_weights [K] and variance [1]; t is [1].
    """

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def components(self, x, t, means, log_weights, variance):
        """The way from x to each component [N, K, 2], its variance, log w_k N(x; ...) [N, K]."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        v = alpha**2 * variance + sigma**2
        away = alpha * means - x.double()[:, None]
        log_p = log_weights - away.square().sum(2) / (2 * v) - torch.log(2 * torch.pi * v)
        return away, v, log_p

    def log_prob(self, x, t, *mixture):
        return self.components(x, t, *mixture)[2].logsumexp(1)

    def score(self, x, t, *mixture):
        away, v, log_p = self.components(x, t, *mixture)
        log_p = log_p - log_p.amax(1, keepdim=True)  # so that float32 is enough from here on
        return (log_p.float().softmax(1)[:, :, None] * away.float()).sum(1) / v


class ExactPoints(Mixture):
    """eps and score of points in closed form: the face of LearnedPoints."""

    def forward(self, x, t, means, log_weights, variance):
        score = self.score(x, t, means, log_weights, variance)
        _, sigma = self.schedule.alpha_sigma(t)
        return (-sigma * score).float(), score.float()


def mixture_inputs(gmm):
    """A mixture of reference_gmm_sde.py as the modules above take it: {name: array}."""
    variance = gmm.eigenvalues.max()
    if gmm.eigenvalues.min() < variance * (1 - 1e-9):
        raise ValueError("the page draws mixtures of round components of one size only")
    log_weights = np.log(gmm.weights)
    return dict(means=gmm.means, log_weights=log_weights, variance=np.array([variance]))
