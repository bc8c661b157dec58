"""The numbers: how far an image is from a true crystal, a set of images from the true set; and the exact denoiser.

    error(x)      = min over the crystals R that x may be of  sqrt(mean over pixels (x - R)^2)       crystal_error
    W_1(F, G)     = integral over u in [0, 1] of |F^-1(u) - G^-1(u)|                                 mass_w1, aspect_w1
    d^2(P, Q)     = |m_P - m_Q|^2 + tr(C_P + C_Q - 2 (C_P^1/2 C_Q C_P^1/2)^1/2)                      frechet
    E[x_0 | x_t]  = sum_b w_b X(b),  w_b ~ exp(-|x_t - alpha X(b)|^2 / 2 sigma^2),  X = 2 R - 1      ExactDenoiser

A rot-only crystal is a known function R(type, theta, aspect) of its condition and, for rectangular lattices only, of an
aspect uniform in [0.75, 1.35] that no condition tells.  So types 0, 2, 3 have one true image per condition, and a
rectangular lattice has a curve of them, b -> R(b).  The nearest image and the posterior mean are both found on that
curve with exact renders.

For scale, on the 36 default conditions: a black image has crystal error 0.238 (0.243 as a root mean square over them),
a lattice shifted by a tenth of a pixel along one axis 0.014 (0.1 sqrt(pi/2 atoms per pixel)), rounding to 8 bits 0.001.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from data import ASPECT, KINDS, THETA_MAX, render, to_u8
from reference_gmm_sde import mmd2_unbiased

CHUNK = 64  # images worked on at a time: memory does not grow with N, and renders stay in the processor's cache


class CrystalFit(NamedTuple):
    """The nearest true crystal of each image: its distance, and which one it is (aspect 1 where the type has none)."""

    error: torch.Tensor  # RMSE over pixels, images in [0, 1]: float64 [N]
    kind: torch.Tensor  # index into KINDS: int64 [N]
    theta: torch.Tensor  # radians: float64 [N]
    aspect: torch.Tensor  # b / a: float64 [N]


# -------------------------------------------------------------------------------------------------------- crystal error


def crystal_error(x, kind=None, theta=None) -> CrystalFit:
    """Distance from each image to the nearest rot-only crystal: of its condition if there is one, else of any.

    x: float [N, 1, H, H] in [0, 1].  kind: int [N] and theta: radians [N] in [0, pi/3], both or neither.
    With them the nearest of types 0, 2, 3 is the one image; of type 1 the minimum over aspect, from a grid and then by
    Gauss-Newton steps until it no longer moves.  Without, the same over type, angle and aspect.  Where two crystals are
    the same image, either may be named: a triangular lattice at 0 and at pi/3.  A rectangular one of aspect 1 is called
    square.  Raises ValueError for anything else.
    """
    if not (torch.is_tensor(x) and x.is_floating_point() and x.ndim == 4 and x.shape[1:] == (1, *x.shape[2:3] * 2)):
        raise ValueError("x must be a float tensor [N, 1, H, H]")
    if not (x.isfinite().all() and ((x > -1e-3) & (x < 1.001)).all()):
        raise ValueError("x must lie in [0, 1]")
    if (kind is None) != (theta is None):
        raise ValueError("give kind and theta, or neither")
    if kind is None:
        return _chunked(_nearest_of_any, x)
    return _chunked(_nearest_of_condition, x, *_condition(kind, theta, x))


def _condition(kind, theta, x):
    kind = torch.as_tensor(kind, device=x.device).long()
    theta = torch.as_tensor(theta, dtype=torch.float64, device=x.device)
    if kind.shape != x.shape[:1] or theta.shape != x.shape[:1]:
        raise ValueError(f"kind and theta must be [{len(x)}], not {list(kind.shape)} and {list(theta.shape)}")
    if not ((kind >= 0) & (kind < len(KINDS))).all():
        raise ValueError(f"kind must be 0 to {len(KINDS) - 1}")
    if not ((theta > -1e-6) & (theta < THETA_MAX + 1e-6)).all():  # NaN fails, the rounding of float32 does not
        raise ValueError("theta must lie in [0, pi/3]")
    return kind, theta


def _chunked(nearest, *columns):
    parts = [nearest(*(c[i : i + CHUNK] for c in columns)) for i in range(0, len(columns[0]), CHUNK)]
    nothing = torch.empty(0)
    empty = CrystalFit(nothing, nothing.long(), nothing, nothing)
    return CrystalFit(*map(torch.cat, zip(*parts, strict=True))) if parts else empty


def _nearest_of_condition(x, kind, theta):
    x = x.double()
    p = torch.stack([theta, torch.ones_like(theta)], 1)
    (rect,) = torch.where(kind == 1)
    if len(rect):
        # An atom 45 px from the centre, as far as there is, lies within 0.6 px of its place at the nearest node, half
        # its width: the right node is the best one, and inside the basin of the right minimum.
        aspects = torch.linspace(*ASPECT, 31, dtype=torch.float64, device=x.device)
        curve = _curve(theta[rect], aspects, x.shape[-1])  # (n, 31, 1, H, H)
        best = (x[rect, None] - curve).square().sum((2, 3, 4)).argmin(1)
        p[rect, 1] = aspects[best]
        p[rect] = polish(x[rect], 1, p[rect], free=(1,))[0]
    error = (x - render(kind, p[:, 0], p[:, 1], img_size=x.shape[-1], device=x.device)).square().mean((1, 2, 3)).sqrt()
    return CrystalFit(error, kind, p[:, 0], p[:, 1])


def _curve(theta, aspects, img_size):
    """R(b): rectangular crystals at n angles, each at every aspect [m] or at its own [n, m]: [n, m, 1, H, H]."""
    n, m = len(theta), aspects.shape[-1]
    each = theta.repeat_interleave(m), aspects.expand(n, m).reshape(-1)
    parts = [render([1] * len(t), t, b, img_size=img_size, device=theta.device)
             for t, b in zip(*(e.split(CHUNK) for e in each), strict=True)]
    return torch.cat(parts).view(n, m, 1, img_size, img_size)


def polish(x, kind: int, p, free=(0, 1), tol=1e-7):
    """Move p = (theta, aspect) [n, 2] to the nearest minimum of |x - R(p)|^2 for crystals of one type.

    Gauss-Newton, one parameter beside the other: turning moves an atom across its radius, stretching moves it along one
    axis, and summed over the image the two are all but uncorrelated.  `free` are the columns that may move; they stay
    in their ranges.  A step that does not help is cut to a quarter.  Returns p and the squared distance [n].
    """
    low, high = torch.tensor([[0.0, ASPECT[0]], [THETA_MAX, ASPECT[1]]], dtype=torch.float64, device=x.device)
    p, size, delta = p.clone(), torch.ones_like(p[:, :1]), 1e-4

    def image(p):
        return render([kind] * len(p), p[:, 0], p[:, 1], img_size=x.shape[-1], device=x.device)

    r = x - image(p)  # residual: (n, 1, H, H)
    live = torch.arange(len(p), device=x.device)  # those that still move
    for _ in range(50):
        if len(live) == 0:
            break
        step = torch.zeros_like(p[live])
        for i in free:
            e = delta * torch.eye(2, dtype=p.dtype, device=p.device)[i]
            J = (image(p[live] + e) - image(p[live] - e)) / (2 * delta)  # dR/dp_i: (n, 1, H, H)
            step[:, i] = (J * r[live]).sum((1, 2, 3)) / J.square().sum((1, 2, 3))
        trial = (p[live] + size[live] * step).clamp(low, high)
        r_trial = x[live] - image(trial)
        better = r_trial.square().sum((1, 2, 3)) < r[live].square().sum((1, 2, 3))
        moving = (trial - p[live]).abs().amax(1) > tol
        size[live] = torch.where(better[:, None], 1.0, size[live] / 4)
        p[live[better]], r[live[better]] = trial[better], r_trial[better]
        live = live[moving]
    return p, r.square().sum((1, 2, 3))


@lru_cache(maxsize=2)
def _bank(img_size):
    """Crystals 0.02 apart in angle and in aspect, at half size: for each type (type, p [M, 2], images [M, h*h]).

    Between nodes no atom is further than 0.75 px from its place, and half of that on average: well inside the basin of
    Gauss-Newton, whose width is that of an atom (1.2 px), and closer than any other type or angle.
    """
    thetas = torch.linspace(0, THETA_MAX, 54, dtype=torch.float64)
    entries = []
    for k in range(len(KINDS)):
        aspects = torch.linspace(*ASPECT, 31, dtype=torch.float64) if k == 1 else torch.ones(1, dtype=torch.float64)
        p = torch.cartesian_prod(thetas, aspects)
        images = [_half(render([k] * len(q), q[:, 0], q[:, 1], img_size=img_size)) for q in p.split(CHUNK)]
        entries.append((k, p, torch.cat(images)))
    return entries


def _half(x):
    return torch.nn.functional.avg_pool2d(x, 2).flatten(1).float()


def _nearest_of_any(x):
    x, half = x.double(), _half(x)
    found = []
    for k, p, images in _bank(x.shape[-1]):
        p, images = p.to(x.device), images.to(x.device)
        distance = images.square().sum(1) - 2 * half @ images.T  # |half - image|^2, less a constant: (n, M)
        found.append(polish(x, k, p[distance.argmin(1)], free=(0, 1) if k == 1 else (0,), tol=1e-4))
    square = torch.stack([s for _, s in found], 1)  # |x - R|^2 of the best of each type: (n, 4)
    # A square lattice is also a rectangular one of aspect 1, whose free aspect always fits a little better: that does
    # not count as another type unless it wins by 1 % in error.
    kind = square.mul(torch.tensor([1.0, 1.02, 1.0, 1.0]).to(square)).argmin(1)
    square = square[torch.arange(len(x)), kind]
    p = torch.stack([p for p, _ in found], 1)[torch.arange(len(x)), kind]
    return CrystalFit((square / x[0].numel()).sqrt(), kind, p[:, 0], p[:, 1])


# --------------------------------------------------------------------------------------------------- the exact denoiser


class ExactDenoiser:
    """E[x_0 | x_t, type, theta] of rot-only crystals in [-1, 1] in closed form, for x_t = alpha x_0 + sigma eps.

    Types 0, 2, 3 are one point, X = 2 R - 1, whatever x_t.  For type 1, with b uniform in [0.75, 1.35],

        E[x_0 | x_t] = int X(b) exp(-|x_t - alpha X(b)|^2 / 2 sigma^2) db  /  int exp(...) db.

    As a function of b the weight is a peak of standard deviation s = sigma / (alpha |dX/db|), |dX/db| about 260 at 64
    pixels: at sigma 0.03 it is 1e-4 wide.  While s is at least WIDE, Gauss-Legendre nodes over the whole range resolve
    it, side peaks and all.  Below, one peak is left: Gauss-Newton finds its top, and nodes go to 8 s on either side.
    Against 1,500 nodes over the whole range, or 300 in the peak, the mean is good to 1e-5 at any noise level.

    Without a condition there is no such thing: the crystals form a thin surface, which no finite set of nodes resolves.
    Rectangular crystals at the nodes are kept for the last 64 angles asked for (2 MB each in float32 at 64 pixels).
    """

    NODES, LOCAL_NODES, WIDE = 128, 32, 0.008

    def __init__(self, img_size=64):
        self.img_size, self._kept = img_size, {}
        unit, weight = map(torch.from_numpy, np.polynomial.legendre.leggauss(self.NODES))
        self.aspects = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * (unit + 1) / 2  # (NODES,)
        self.log_weights = weight.log()

    def eps(self, x_t, alpha, sigma, kind, theta):
        """E[eps | x_t, type, theta] = (x_t - alpha E[x_0 | x_t, type, theta]) / sigma: [N, 1, H, H]."""
        alpha, sigma = self._noise(alpha, sigma, x_t)
        x0_hat = self.posterior_mean(x_t, alpha, sigma, kind, theta)
        return (x_t - alpha.view(-1, 1, 1, 1).to(x_t) * x0_hat) / sigma.view(-1, 1, 1, 1).to(x_t)

    def posterior_mean(self, x_t, alpha, sigma, kind, theta):
        """E[x_0 | x_t, type, theta]: [N, 1, H, H] in [-1, 1], of the dtype and device of x_t.

        x_t: [N, 1, H, H]; alpha >= 0, sigma > 0: numbers or [N]; kind: int [N]; theta: radians [N] in [0, pi/3].
        Raises ValueError for anything else.
        """
        if x_t.shape[1:] != (1, self.img_size, self.img_size):
            raise ValueError(f"x_t must be [N, 1, {self.img_size}, {self.img_size}], not {list(x_t.shape)}")
        alpha, sigma = self._noise(alpha, sigma, x_t)
        kind, theta = _condition(kind, theta, x_t)
        out = torch.empty_like(x_t)
        for n in torch.where(kind != 1)[0].split(CHUNK):
            out[n] = self._keep("point", self._points, x_t, kind[n], theta[n])
        for n in torch.where(kind == 1)[0].split(CHUNK // 4):
            out[n] = self._rectangular(x_t[n], alpha[n], sigma[n], theta[n]).to(x_t)
        return out

    def _noise(self, alpha, sigma, x_t):
        a, s = (torch.as_tensor(v, dtype=torch.float64, device=x_t.device).expand(len(x_t)) for v in (alpha, sigma))
        if not ((a >= 0).all() and (s > 0).all() and a.isfinite().all() and s.isfinite().all()):
            raise ValueError("alpha must not be negative, sigma must be positive, both finite")
        return a, s

    def _keep(self, name, make, x_t, *condition):
        """make(*condition) in the dtype of x_t, remembered: a sampler asks for the same conditions at every step."""
        key = (name, x_t.dtype, str(x_t.device), *(tuple(c.tolist()) for c in condition))
        if key not in self._kept:
            same = [k for k in self._kept if k[0] == name]
            if len(same) == 4:
                del self._kept[same[0]]  # the oldest
            self._kept[key] = make(*condition).to(x_t.dtype)
        return self._kept[key]

    def _points(self, kind, theta):
        return 2 * render(kind, theta, img_size=self.img_size, device=theta.device) - 1

    def _nodes(self, theta):
        return 2 * _curve(theta, self.aspects.to(theta), self.img_size).flatten(2) - 1

    def _rectangular(self, x_t, alpha, sigma, theta):
        X = self._keep("curve", self._nodes, x_t, theta)  # X(b) at the nodes: (n, NODES, H*H)
        b, log_gl = self.aspects.to(x_t.device), self.log_weights.to(x_t.device)
        mean, log_w = _weigh(X, x_t, alpha, sigma, log_gl)
        top = log_w.sub(log_gl).argmax(1).clamp(1, self.NODES - 2)  # the node next to the peak: (n,)
        row = torch.arange(len(X), device=X.device)
        slope = (X[row, top + 1] - X[row, top - 1]).norm(dim=1).double() / (b[top + 1] - b[top - 1])  # |dX/db|
        s = sigma / (alpha * slope)
        (sharp,) = torch.where(s < self.WIDE)
        if len(sharp):
            s, start = s[sharp], torch.stack([theta[sharp], b[top[sharp]]], 1)
            image = (x_t[sharp].double() / alpha[sharp].view(-1, 1, 1, 1) + 1) / 2  # x_0 + noise, in the units of R
            peak = polish(image, 1, start, free=(1,))[0][:, 1]
            low, high = (peak - 8 * s).clamp_min(ASPECT[0]), (peak + 8 * s).clamp_max(ASPECT[1])
            unit, weight = (torch.from_numpy(v).to(s) for v in np.polynomial.legendre.leggauss(self.LOCAL_NODES))
            nodes = low[:, None] + (high - low)[:, None] * (unit + 1) / 2  # (n, LOCAL_NODES)
            X = 2 * _curve(theta[sharp], nodes, self.img_size).flatten(2) - 1
            mean[sharp] = _weigh(X, x_t[sharp].double(), alpha[sharp], sigma[sharp], weight.log())[0].to(mean)
        return mean


def _weigh(X, x_t, alpha, sigma, log_weights):
    """Mean of X(b) [n, m, D] under weights w = exp(log_weights - |x_t - alpha X|^2 / 2 sigma^2) [n, 1, H, H]; log w."""
    gain = (alpha / sigma**2)[:, None]
    match = torch.einsum("nmd,nd->nm", X, x_t.flatten(1)).double()
    log_w = log_weights + gain * match - gain * alpha[:, None] / 2 * X.square().sum(2).double()  # |x_t|^2 cancels
    w = torch.softmax(log_w, 1).to(X)
    return torch.einsum("nm,nmd->nd", w, X).view_as(x_t), log_w


# ------------------------------------------------------------------------------------------------------- sets of images


def aspect_w1(aspect) -> float:
    """Exact Wasserstein-1 distance of aspects [n] from U[0.75, 1.35]: the area between the two quantile functions."""
    x = np.sort(np.asarray(aspect, dtype=np.float64).ravel())
    if len(x) == 0 or not np.isfinite(x).all():
        raise ValueError("need at least one aspect, all finite")
    low, width = ASPECT[0], ASPECT[1] - ASPECT[0]
    u = np.arange(len(x) + 1) / len(x)  # the sample's quantile is x[i] between u[i] and u[i + 1]
    first, last = low + width * u[:-1] - x, low + width * u[1:] - x  # the difference, linear in u, at both ends
    return float((last * abs(last) - first * abs(first)).sum() / (2 * width))


@lru_cache
def aspect_w1_band(n: int, level=0.95, draws=4000) -> float:
    """What aspect_w1 stays below in a share `level` of cases for n fresh draws of the true law (0.0155 at n = 512)."""
    rng = np.random.default_rng(0)
    return float(np.quantile([aspect_w1(rng.uniform(*ASPECT, n)) for _ in range(draws)], level))


def mass_w1(x, y) -> float:
    """Wasserstein-1 distance between the mean intensities of images x [N, 1, H, W] and those of y [M, 1, H, W]."""
    a, b = (np.sort(v.double().mean((1, 2, 3)).cpu().numpy()) for v in (x, y))
    if len(a) == 0 or len(b) == 0:
        raise ValueError("need at least one image on either side")
    both = np.sort(np.concatenate([a, b]))
    F, G = (np.searchsorted(v, both[:-1], side="right") / len(v) for v in (a, b))
    return float((abs(F - G) * np.diff(both)).sum())  # the area between the distribution functions is the same


def fft_radial_l2(x, y) -> float:
    """Root-mean-square difference of the radial power spectra of two sets of images [N, 1, H, H] in [0, 1]."""
    return float((_radial_power(x) - _radial_power(y)).square().mean().sqrt())


def _radial_power(x):
    """Mean over 8-bit images of |FFT|^2, averaged in rings of integer radius 0 .. H/2, over its sum: [H/2 + 1]."""
    H, power = x.shape[-1], 0
    if len(x) == 0 or x.ndim != 4 or x.shape[1:] != (1, H, H):
        raise ValueError("images must be [N, 1, H, H] with N at least 1")
    for part in x.split(CHUNK):
        power = power + torch.fft.fft2(to_u8(part).double()).abs().square().sum((0, 1))
    f = torch.fft.fftfreq(H, 1 / H, dtype=torch.float64, device=x.device)  # whole numbers, cycles per image
    radius = torch.hypot(f[:, None], f).floor().long().flatten()
    rings = radius <= H // 2
    total = torch.bincount(radius[rings], power.flatten()[rings], H // 2 + 1)
    mean = total / torch.bincount(radius[rings], minlength=H // 2 + 1)
    return mean / mean.sum()


def frechet(features, mean, cov) -> float:
    """Frechet distance of the Gaussians fitted to features [N, F] and to (mean [F], cov [F, F]), in float64:

        d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2)

    In the features of Inception it is called FID; name the network that the features are from.  Dowson, Landau 1982.
    """
    m_1, C_1 = feature_moments(features)
    m_2, C_2 = (np.asarray(v, dtype=np.float64) for v in (mean, cov))
    if m_2.shape != m_1.shape or C_2.shape != C_1.shape:
        raise ValueError(f"features of {len(m_1)} numbers cannot be compared with a mean of {m_2.shape}")
    values, U = np.linalg.eigh(C_1)
    root = (U * np.sqrt(values.clip(0))) @ U.T  # symmetric, so that the product below is, and has real eigenvalues
    cross = np.sqrt(np.linalg.eigvalsh(root @ C_2 @ root).clip(0)).sum()
    return float(((m_1 - m_2) ** 2).sum() + np.trace(C_1) + np.trace(C_2) - 2 * cross)


def feature_moments(features):
    """Mean [F] and unbiased covariance [F, F] of features [N, F], NumPy float64."""
    f = np.asarray(features, dtype=np.float64)
    if f.ndim != 2 or len(f) < 2 or not np.isfinite(f).all():
        raise ValueError("features must be [N, F], N at least 2, all finite")
    return f.mean(0), np.atleast_2d(np.cov(f, rowvar=False))


def gradient_energy(x) -> float:
    """Mean over images [N, C, H, W] of the sum of squared differences between neighbouring pixels: blur lowers it."""
    x = x.double()
    squares = [x.diff(dim=axis).square().sum((1, 2, 3)) for axis in (2, 3)]
    return float(sum(squares).mean())


def real_crystals(kind, theta, seed=0, img_size=64):
    """True crystals of given conditions with fresh aspects, rounded to 8 bits: float32 [N, 1, H, H] in [0, 1]."""
    aspect = torch.from_numpy(np.random.default_rng(seed).uniform(*ASPECT, len(kind)))
    pieces = zip(*(torch.as_tensor(c).split(CHUNK) for c in (kind, theta, aspect)), strict=True)
    return torch.cat([to_u8(render(k, t, b, img_size=img_size)).float() / 255 for k, t, b in pieces])


def floor(metric, kind, theta, seed=0, repeats=4, img_size=64) -> float:
    """metric(real, other real) at matched conditions, averaged over fresh pairs: what a perfect model would score.

    metric: mass_w1 or fft_radial_l2.  The conditions being the same on both sides, only the aspects differ.
    """
    pairs = [[real_crystals(kind, theta, [seed, i, side], img_size) for side in (0, 1)] for i in range(repeats)]
    return float(np.mean([metric(x, y) for x, y in pairs]))


def pixel_mmd2(x, y):
    """Unbiased MMD^2 of two sets of images, RBF of the width of a typical distance between real ones."""
    x, y = (v.flatten(1).double().numpy() for v in (x, y))
    width = float(np.sqrt(np.square(y[1:] - y[:-1]).sum(1).mean() / 2))
    return float(mmd2_unbiased(x, y, width))


def inception_fid(x, real, batch=100):
    """FID of images x against real ones, both [N, 3, H, W] in [0, 1]; needs torchmetrics[image] and its weights."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # optional; it fetches Inception

    judge = FrechetInceptionDistance(normalize=True)
    for images, is_real in ((real, True), (x, False)):
        for part in images.split(batch):
            judge.update(part, real=is_real)
    return float(judge.compute())


# ----------------------------------------------------------------------------------------------------------- the report


def caption(kind, theta, aspect=None) -> str:
    """A crystal in words that fit under a tile: "rectangular 12°, b/a 0.93"."""
    more = f", b/a {float(aspect):.2f}" if int(kind) == 1 and aspect is not None else ""
    return f"{KINDS[int(kind)]} {math.degrees(float(theta)):.0f}°{more}"


def crystal_report(x, kind=None, theta=None, seed=0):
    """Print the numbers of samples x [N, 1, H, H] in [0, 1], each beside its floor.  Returns (dict, CrystalFit, truth).

    With the conditions they were drawn under, crystal error is the distance to what was asked for; without, to the
    nearest crystal of any kind.  truth [N, 1, H, H]: those crystals.
    """
    asked, H = kind is not None, x.shape[-1]
    fit = crystal_error(x, kind, theta)
    pieces = zip(*(c.split(CHUNK) for c in fit[1:]), strict=True)
    truth = [render(k, t, b, img_size=H).float() for k, t, b in pieces]
    lowest = torch.cat([(to_u8(x) / 255 - x).square().mean((1, 2, 3)).sqrt() for x in truth]).mean()
    truth = torch.cat(truth)
    e = fit.error
    result = {"condition": "type and angle" if asked else "none", "crystal_error_mean": e.mean(),
              "crystal_error_worst": e.max(), "crystal_error_floor": lowest,
              "share_below_0.05": (e < 0.05).double().mean()}
    result |= {f"crystal_error_{KINDS[k]}": e[fit.kind == k].mean() for k in range(len(KINDS)) if (fit.kind == k).any()}
    to = "what was asked for" if asked else "the nearest of any kind"
    mean, worst = (f"{v:.4f}" if v > 1e-3 else f"{v:.1e}" for v in (e.mean(), e.max()))
    print(f"crystal error, to {to}: {mean} mean, {worst} worst; "
          f"{result['share_below_0.05']:.0%} below 0.05; n = {len(x)}\n  for scale: these crystals in 8 bits "
          f"{lowest:.4f}; the 36 of a default run, shifted by 0.1 px, 0.014; black images 0.238")
    if asked:
        real = real_crystals(kind, theta, seed, H)
        for metric in (mass_w1, fft_radial_l2):
            name = metric.__name__
            result[name], result[f"{name}_floor"] = metric(x, real), floor(metric, kind, theta, seed + 1, img_size=H)
            print(f"{name:14}{result[name]:.2e}   fresh real against real {result[f'{name}_floor']:.2e}")
    aspect = fit.aspect[fit.kind == 1]
    if asked and len(aspect) >= 100:
        n, w1, band = len(aspect), aspect_w1(aspect), aspect_w1_band(len(aspect))
        result |= {"n_rectangular": n, "aspect_w1": w1, "aspect_w1_band": band}
        print(f"variety: W1 of the recovered aspect from U[0.75, 1.35] {w1:.4f}; "
              f"95 % of {n} fresh draws stay below {band:.4f}")
    return {k: float(v) if torch.is_tensor(v) else v for k, v in result.items()}, fit, truth
