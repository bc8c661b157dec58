"""The numbers: how far a set of images is from the true set.

    W_1(F, G)  = integral over u in [0, 1] of |F^-1(u) - G^-1(u)|             mass_w1, aspect_w1
    d^2(P, Q)  = |m_P - m_Q|^2 + tr(C_P + C_Q - 2 (C_P^1/2 C_Q C_P^1/2)^1/2)  frechet

Every number stands beside its floor: the same number for real images against other real ones.
crystal_error, the distance of one image, is in nearest_crystal.py.
"""

import math
from functools import lru_cache

from common.distances import mmd2_unbiased
from common.nearest_crystal import CHUNK, RECTANGULAR, crystal_error, rmse
from data import ASPECT, KINDS, SPACING, render, to_u8

import numpy as np
import torch

TILES = 36  # images that a picture shows

# ------------------------------------------------------------------------------ sets of images


def aspect_w1(aspect) -> float:
    """Exact Wasserstein-1 distance of aspects [n] from U[0.75, 1.35]."""
    x = np.sort(np.asarray(aspect, dtype=np.float64).ravel())
    if len(x) == 0 or not np.isfinite(x).all():
        raise ValueError("need at least one aspect, all finite")

    # The area between the two quantile functions.  Between u[i] and u[i + 1] that of the sample is
    # x[i], and the difference is linear in u: so its values at both ends tell the area.
    low = ASPECT[0]
    width = ASPECT[1] - ASPECT[0]
    u = np.arange(len(x) + 1) / len(x)
    first = low + width * u[:-1] - x
    last = low + width * u[1:] - x
    return float((last * abs(last) - first * abs(first)).sum() / (2 * width))


@lru_cache
def aspect_w1_band(n: int, level=0.95, draws=4000) -> float:
    """What aspect_w1 of n draws of the true law stays below in a share `level` of cases."""
    rng = np.random.default_rng(0)
    return float(np.quantile([aspect_w1(rng.uniform(*ASPECT, n)) for _ in range(draws)], level))


def mass_w1(x, y) -> float:
    """Wasserstein-1 distance between the mean intensities of two sets of images [N, 1, H, W]."""
    a, b = (np.sort(images.double().mean((1, 2, 3)).cpu().numpy()) for images in (x, y))
    if len(a) == 0 or len(b) == 0:
        raise ValueError("need at least one image on either side")

    # The area between the distribution functions is that between the quantile functions.
    both = np.sort(np.concatenate([a, b]))
    F_a, F_b = (np.searchsorted(v, both[:-1], side="right") / len(v) for v in (a, b))
    return float((abs(F_a - F_b) * np.diff(both)).sum())


def fft_radial_l2(x, y) -> float:
    """Root-mean-square difference of the radial power spectra of images [N, 1, H, H] in [0, 1]."""
    return float((radial_power(x) - radial_power(y)).square().mean().sqrt())


def radial_power(x):
    """Mean of |FFT|^2 over 8-bit images, in rings of integer radius, over its sum: [H/2 + 1]."""
    H = x.shape[-1]
    if len(x) == 0 or x.ndim != 4 or x.shape[1:] != (1, H, H):
        raise ValueError("images must be [N, 1, H, H] with N at least 1")

    power = 0
    for part in x.split(CHUNK):
        power = power + torch.fft.fft2(to_u8(part).double()).abs().square().sum((0, 1))  # (H, H)

    f = torch.fft.fftfreq(H, 1 / H, dtype=torch.float64, device=x.device)  # cycles per image
    radius = torch.hypot(f[:, None], f).floor().long().flatten()
    inside = radius <= H // 2

    total = torch.bincount(radius[inside], power.flatten()[inside], H // 2 + 1)
    mean = total / torch.bincount(radius[inside], minlength=H // 2 + 1)
    return mean / mean.sum()


def gradient_energy(x) -> float:
    """Summed squared differences of neighbouring pixels, mean over images [N, C, H, W].

    Blur lowers it.
    """
    x = x.double()
    squares = [x.diff(dim=axis).square().sum((1, 2, 3)) for axis in (2, 3)]
    return float(sum(squares).mean())


def pixel_mmd2(x, y) -> float:
    """Unbiased MMD^2 of images x [N, C, H, W] and real ones y [M, C, H, W], N and M at least 2.

    The kernel is a Gaussian as wide as a typical distance between two real images.
    """
    x, y = (images.flatten(1).double().numpy() for images in (x, y))
    if len(x) < 2 or len(y) < 2:
        raise ValueError("MMD needs two images on either side")

    width = float(np.sqrt(np.square(y[1:] - y[:-1]).sum(1).mean() / 2))
    return float(mmd2_unbiased(x, y, width))


# ------------------------------------------------------------------------------ Frechet distance


def frechet(features, mean, cov) -> float:
    """Frechet distance of the Gaussians fitted to features [N, F] and to (mean [F], cov [F, F]):

        d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^1/2 C_2 C_1^1/2)^1/2)        (float64)

    In the features of Inception it is called FID; name the network that the features are from.
    Dowson and Landau 1982.
    """
    m_1, C_1 = feature_moments(features)
    m_2, C_2 = (np.asarray(moment, dtype=np.float64) for moment in (mean, cov))
    if m_2.shape != m_1.shape or C_2.shape != C_1.shape:
        raise ValueError(f"features of {len(m_1)} numbers cannot be compared with {m_2.shape}")

    # A symmetric root makes the product symmetric, so that its eigenvalues are real.
    values, U = np.linalg.eigh(C_1)
    root = (U * np.sqrt(values.clip(0))) @ U.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ C_2 @ root).clip(0)).sum()
    return float(((m_1 - m_2) ** 2).sum() + np.trace(C_1) + np.trace(C_2) - 2 * cross)


def feature_moments(features):
    """Mean [F] and unbiased covariance [F, F] of features [N, F], NumPy float64."""
    f = np.asarray(features, dtype=np.float64)
    if f.ndim != 2 or len(f) < 2 or not np.isfinite(f).all():
        raise ValueError("features must be [N, F], N at least 2, all finite")
    return f.mean(0), np.atleast_2d(np.cov(f, rowvar=False))


def inception_fid(x, real, batch=100) -> float:
    """FID of images x against real ones, both [N, 3, H, W] in [0, 1].

    Needs the optional package torchmetrics[image], which fetches the weights of Inception.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    fid = FrechetInceptionDistance(normalize=True)
    for images, is_real in ((real, True), (x, False)):
        for part in images.split(batch):
            fid.update(part, real=is_real)

    return float(fid.compute())


# ------------------------------------------------------------------------------ the report


def real_crystals(kind, theta, seed=0, img_size=64, spacing=SPACING):
    """True crystals with fresh aspects, rounded to 8 bits: float32 [N, 1, H, H] in [0, 1]."""
    aspect = torch.from_numpy(np.random.default_rng(seed).uniform(*ASPECT, len(kind)))
    columns = (torch.as_tensor(column).split(CHUNK) for column in (kind, theta, aspect))

    parts = []
    for k, t, b in zip(*columns, strict=True):
        parts.append(to_u8(render(k, t, b, spacing, img_size=img_size)).float() / 255)
    return torch.cat(parts)


def floor(metric, kind, theta, seed=0, repeats=4, img_size=64, spacing=SPACING) -> float:
    """metric(real, other real) at matched conditions: what a perfect model would score.

    metric: mass_w1 or fft_radial_l2, averaged over fresh pairs, in which only the aspects differ.
    """
    values = []
    for i in range(repeats):
        x = real_crystals(kind, theta, [seed, i, 0], img_size, spacing)
        y = real_crystals(kind, theta, [seed, i, 1], img_size, spacing)
        values.append(metric(x, y))
    return float(np.mean(values))


def crystal_report(x, kind=None, theta=None, seed=0, spacing=SPACING):
    """Numbers of samples x [N, 1, H, H] in [0, 1], each with its floor: (numbers, fit, truth).

    With the conditions they were drawn under, crystal error is the distance to the crystal of the
    condition; without, to the nearest of any kind.  truth [N, 1, H, H]: those crystals.  numbers
    has no entry for what cannot be measured.
    """
    img_size = x.shape[-1]
    fit = crystal_error(x, kind, theta, spacing)

    columns = (column.split(CHUNK) for column in fit[1:])
    parts = [render(*c, spacing, img_size=img_size) for c in zip(*columns, strict=True)]
    truth = torch.cat([part.float() for part in parts])
    rounding = [rmse(to_u8(part) / 255, part) for part in truth.split(CHUNK)]

    numbers = {
        "n": len(x),
        "condition": "none" if kind is None else "type and angle",
        "crystal_error_mean": float(fit.error.mean()),
        "crystal_error_worst": float(fit.error.max()),
        "crystal_error_floor": float(torch.cat(rounding).mean()),
        "share_below_0.05": float((fit.error < 0.05).double().mean()),
    }
    for k, name in enumerate(KINDS):
        if (fit.kind == k).any():
            numbers[f"crystal_error_{name}"] = float(fit.error[fit.kind == k].mean())
    if kind is None:
        return numbers, fit, truth

    # Against real crystals of the same conditions.
    real = real_crystals(kind, theta, seed, img_size, spacing)
    for metric in (mass_w1, fft_radial_l2):
        name = metric.__name__
        numbers[name] = metric(x, real)
        numbers[f"{name}_floor"] = floor(metric, kind, theta, seed + 1, 4, img_size, spacing)

    # The law of the aspect, where there are enough to tell it.
    aspect = fit.aspect[fit.kind == RECTANGULAR]
    if len(aspect) >= 100:
        numbers["n_rectangular"] = len(aspect)
        numbers["aspect_w1"] = aspect_w1(aspect)
        numbers["aspect_w1_band"] = aspect_w1_band(len(aspect))
    return numbers, fit, truth


def describe(numbers) -> str:
    """The numbers of crystal_report in a few lines, each beside its floor."""
    mean, worst = (numbers[f"crystal_error_{which}"] for which in ("mean", "worst"))
    mean, worst = (f"{error:.4f}" if error > 1e-3 else f"{error:.1e}" for error in (mean, worst))

    share = numbers["share_below_0.05"]
    to = "the nearest of any type" if numbers["condition"] == "none" else "that of the condition"
    lines = [
        f"crystal error, to {to}: {mean} mean, {worst} worst; {share:.0%} below 0.05; "
        f"n = {numbers['n']}",
        f"  for scale: these crystals in 8 bits {numbers['crystal_error_floor']:.4f}; "
        "the 36 of a default run, shifted by 0.1 px, 0.014; black images 0.238",
    ]

    for name in ("mass_w1", "fft_radial_l2"):
        if name in numbers:
            lowest = numbers[f"{name}_floor"]
            lines.append(f"{name:14}{numbers[name]:.2e}   fresh real against real {lowest:.2e}")
    if "aspect_w1" in numbers:
        lines.append(
            f"variety: W1 of the recovered aspect from U[0.75, 1.35] {numbers['aspect_w1']:.4f}; "
            f"95 % of {numbers['n_rectangular']} fresh draws stay below "
            f"{numbers['aspect_w1_band']:.4f}"
        )
    return "\n".join(lines)


def caption(kind, theta, aspect=None) -> str:
    """A crystal in words that fit under a tile: "rectangular 12°, b/a 0.93"."""
    words = f"{KINDS[int(kind)]} {math.degrees(float(theta)):.0f}°"
    if int(kind) == RECTANGULAR and aspect is not None:
        words += f", b/a {float(aspect):.2f}"
    return words


def captions(kind, theta, aspect=None) -> list[str]:
    """A caption for each of at most 36 crystals."""
    columns = (kind, theta) if aspect is None else (kind, theta, aspect)
    return [caption(*crystal) for crystal in zip(*(c[:TILES] for c in columns), strict=True)]
