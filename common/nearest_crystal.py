"""How far an image is from a true crystal, and which one that is.

    error(x) = min over the crystals R that x may be of  sqrt(mean over pixels (x - R)^2)

A rot-only crystal is a known function R(type, theta, aspect).  Types 0, 2 and 3 have one true
image per condition.  The aspect of a rectangular lattice (type 1), uniform in [0.75, 1.35], is part
of no condition: there the true images are a curve b -> R(b), and the nearest one is found on it.

For scale, on the 36 default conditions: a black image has crystal error 0.238, a lattice shifted
by a tenth of a pixel along one axis 0.014, rounding to 8 bits 0.001.
"""

from functools import lru_cache, partial
from typing import NamedTuple

from data import ASPECT, KINDS, SPACING, THETA_MAX, render

import torch
import torch.nn.functional as F

CHUNK = 64  # images worked on at a time: little memory, and renders stay in the processor's cache
RECTANGULAR = KINDS.index("rectangular")


class CrystalFit(NamedTuple):
    """The nearest true crystal of each image."""

    error: torch.Tensor  # RMSE over the pixels of images in [0, 1]: float64 [N]
    kind: torch.Tensor  # index into KINDS: int64 [N]
    theta: torch.Tensor  # radians: float64 [N]
    aspect: torch.Tensor  # b / a, 1 where the type has none: float64 [N]


# ------------------------------------------------------------------------------ crystal error


def crystal_error(x, kind=None, theta=None, spacing=SPACING) -> CrystalFit:
    """Distance from each image to the nearest rot-only crystal: of its condition, or of any.

    x: float [N, 1, H, H] in [0, 1].  kind: int [N] and theta: radians [N] in [0, pi/3], the
    condition, both or neither.  spacing: pixels, of all conditions.  A condition of type 0, 2, 3
    allows one crystal only; for type 1 it is the minimum over aspect, from a grid and then by
    Gauss-Newton until it no longer moves.
    Without a condition, it is the minimum over type, angle and aspect.

    Where two crystals are the same image, either may be named: a triangular lattice at 0 and at
    pi/3.  A rectangular one of aspect 1 is called square.  Raises ValueError for anything else.
    """
    is_float = torch.is_tensor(x) and x.is_floating_point()
    if not (is_float and x.ndim == 4 and x.shape[1:] == (1, x.shape[2], x.shape[2])):
        raise ValueError("x must be a float tensor [N, 1, H, H]")
    if not (x.isfinite().all() and ((x > -1e-3) & (x < 1.001)).all()):
        raise ValueError("x must lie in [0, 1]")
    if (kind is None) != (theta is None):
        raise ValueError("give kind and theta, or neither")

    if kind is None:
        return in_chunks(nearest_of_any, x)
    nearest = partial(nearest_of_condition, spacing=spacing)
    return in_chunks(nearest, x, *checked_condition(kind, theta, x))


def checked_condition(kind, theta, x):
    """kind int64 [N] and theta float64 [N], on the device of x [N, ...].  Raises ValueError."""
    kind = torch.as_tensor(kind, device=x.device).long()
    theta = torch.as_tensor(theta, dtype=torch.float64, device=x.device)
    if kind.shape != x.shape[:1] or theta.shape != x.shape[:1]:
        shapes = f"{list(kind.shape)} and {list(theta.shape)}"
        raise ValueError(f"kind and theta must be [{len(x)}], not {shapes}")
    if not ((kind >= 0) & (kind < len(KINDS))).all():
        raise ValueError(f"kind must be 0 to {len(KINDS) - 1}")
    if not ((theta > -1e-6) & (theta < THETA_MAX + 1e-6)).all():  # allows the rounding of float32
        raise ValueError("theta must lie in [0, pi/3]")
    return kind, theta


def in_chunks(nearest, *columns):
    """The CrystalFit of nearest(*columns), computed CHUNK images at a time."""
    parts = []
    for start in range(0, len(columns[0]), CHUNK):
        parts.append(nearest(*(column[start : start + CHUNK] for column in columns)))
    if parts:
        return CrystalFit(*map(torch.cat, zip(*parts, strict=True)))
    nothing = torch.empty(0)
    return CrystalFit(nothing, nothing.long(), nothing, nothing)


def rmse(x, y):
    """Root-mean-square difference of images [N, 1, H, H], over their pixels: [N]."""
    return (x - y).square().mean((1, 2, 3)).sqrt()


# ------------------------------------------------------------------- the nearest, given a condition


def nearest_of_condition(x, kind, theta, spacing):
    x = x.double()
    p = torch.stack([theta, torch.ones_like(theta)], 1)  # angle and aspect: (n, 2)

    (rect,) = torch.where(kind == RECTANGULAR)
    if len(rect):
        # An atom 45 px from the centre, as far as there is, lies within 0.6 px of its place at the
        # nearest node, half its width: so the best node is in the basin of the right minimum.
        aspects = torch.linspace(*ASPECT, 31, dtype=torch.float64, device=x.device)
        curve = rectangular_curve(theta[rect], aspects, x.shape[-1], spacing)  # (n, 31, 1, H, H)
        best = (x[rect, None] - curve).square().sum((2, 3, 4)).argmin(1)
        p[rect, 1] = aspects[best]
        p[rect], _ = polish(x[rect], RECTANGULAR, p[rect], free=(1,), spacing=spacing)

    truth = render(kind, p[:, 0], p[:, 1], spacing, img_size=x.shape[-1], device=x.device)
    return CrystalFit(rmse(x, truth), kind, p[:, 0], p[:, 1])


def rectangular_curve(theta, aspects, img_size, spacing=SPACING):
    """R(b) at n angles, each at every aspect [m] or at its own [n, m]: [n, m, 1, H, H]."""
    n = len(theta)
    m = aspects.shape[-1]
    thetas = theta.repeat_interleave(m).split(CHUNK)
    aspects = aspects.expand(n, m).reshape(-1).split(CHUNK)

    parts = []
    for t, b in zip(thetas, aspects, strict=True):
        kind = [RECTANGULAR] * len(t)
        parts.append(render(kind, t, b, spacing, img_size=img_size, device=theta.device))
    return torch.cat(parts).view(n, m, 1, img_size, img_size)


def polish(x, kind: int, p, free=(0, 1), tol=1e-7, spacing=SPACING):
    """Move p = (theta, aspect) [n, 2] to the nearest minimum of |x - R(p)|^2, crystals of one type.

    Gauss-Newton steps, cut to a quarter where one does not help.  free: the columns of p that may
    move, within their ranges.  Returns p and the squared distance [n].
    """
    ends = [[0.0, ASPECT[0]], [THETA_MAX, ASPECT[1]]]
    low, high = torch.tensor(ends, dtype=torch.float64, device=x.device)
    p = p.clone()
    size = torch.ones_like(p[:, :1])  # of the next step, as a share of a full one: (n, 1)
    residual = x - render_one_kind(kind, p, x.shape[-1], spacing)  # (n, 1, H, H)
    live = torch.arange(len(p), device=x.device)  # rows that still move

    for _ in range(50):
        if len(live) == 0:
            break

        step = gauss_newton_step(kind, p[live], residual[live], free, spacing)
        trial = (p[live] + size[live] * step).clamp(low, high)
        trial_residual = x[live] - render_one_kind(kind, trial, x.shape[-1], spacing)

        # Where the step helps it is taken, and the next may be a full one again.
        before = residual[live].square().sum((1, 2, 3))
        better = trial_residual.square().sum((1, 2, 3)) < before
        moving = (trial - p[live]).abs().amax(1) > tol
        size[live] = torch.where(better[:, None], 1.0, size[live] / 4)
        p[live[better]] = trial[better]
        residual[live[better]] = trial_residual[better]
        live = live[moving]

    return p, residual.square().sum((1, 2, 3))


def gauss_newton_step(kind, p, residual, free, spacing, delta=1e-4):
    """The step [n, 2] to where the residual would vanish if R were linear, each column by itself.

    Turning moves an atom across its radius, stretching along one axis: summed over the image, the
    two are all but uncorrelated.
    """
    step = torch.zeros_like(p)
    for column in free:
        e = delta * torch.eye(2, dtype=p.dtype, device=p.device)[column]
        ahead = render_one_kind(kind, p + e, residual.shape[-1], spacing)
        behind = render_one_kind(kind, p - e, residual.shape[-1], spacing)
        slope = (ahead - behind) / (2 * delta)  # dR/dp: (n, 1, H, H)
        step[:, column] = (slope * residual).sum((1, 2, 3)) / slope.square().sum((1, 2, 3))
    return step


def render_one_kind(kind, p, img_size, spacing=SPACING):
    return render([kind] * len(p), p[:, 0], p[:, 1], spacing, img_size=img_size, device=p.device)


# ------------------------------------------------------------------------------ the nearest of any


def nearest_of_any(x):
    x = x.double()
    halved = halve(x)

    # The best of each type: the nearest entry of the bank, then Gauss-Newton.
    found = []
    for k, p, images in bank(x.shape[-1]):
        p = p.to(x.device)
        images = images.to(x.device)
        distance = images.square().sum(1) - 2 * halved @ images.T  # less a constant: (n, M)
        free = (0, 1) if k == RECTANGULAR else (0,)
        found.append(polish(x, k, p[distance.argmin(1)], free, tol=1e-4))
    p = torch.stack([p for p, _ in found], 1)  # (n, 4, 2)
    square = torch.stack([s for _, s in found], 1)  # |x - R|^2: (n, 4)

    # A square lattice is also a rectangular one of aspect 1, whose free aspect always fits a little
    # better: that does not count as another type unless it wins by 1 % in error.
    kind = square.mul(torch.tensor([1.0, 1.02, 1.0, 1.0]).to(square)).argmin(1)
    row = torch.arange(len(x))
    p = p[row, kind]
    error = (square[row, kind] / x[0].numel()).sqrt()
    return CrystalFit(error, kind, p[:, 0], p[:, 1])


@lru_cache(maxsize=2)
def bank(img_size):
    """Crystals 0.02 apart in angle and in aspect, at half size: (type, p [M, 2], images [M, h*h]).

    Between two of them no atom is further than 0.75 px from its place, and half of that on average:
    well inside the basin of Gauss-Newton, whose width is that of an atom (1.2 px), and closer than
    any other type or angle.
    """
    thetas = torch.linspace(0, THETA_MAX, 54, dtype=torch.float64)
    entries = []
    for k in range(len(KINDS)):
        aspects = torch.ones(1, dtype=torch.float64)
        if k == RECTANGULAR:
            aspects = torch.linspace(*ASPECT, 31, dtype=torch.float64)
        p = torch.cartesian_prod(thetas, aspects)
        images = [halve(render_one_kind(k, part, img_size)) for part in p.split(CHUNK)]
        entries.append((k, p, torch.cat(images)))
    return entries


def halve(x):
    return F.avg_pool2d(x, 2).flatten(1).float()
