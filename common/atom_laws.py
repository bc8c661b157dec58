"""The law of crystals of mode full, and how far the atoms of some images are from it.

Of the sites of a lattice a share v is empty, and atoms are displaced along x and y by normal
numbers of standard deviation j: each independent of all others.  So the number k of empty ones
among M sites is binomial, and every correlation between neighbours is 0:

    counts_chi2       mean of (k - M v)^2 / (M v (1 - v)):  1
    counts_ks         distance of the distribution of F(k) from the uniform one
    anisotropy        of the covariance C of d:  |lambda_1 - lambda_2| / (lambda_1 + lambda_2)

All numbers scatter with the number of sites: they stand beside those of fresh true crystals.
"""

import math
from functools import lru_cache

from common.atoms import find_atoms, likeness
from common.nearest_crystal import CHUNK, RECTANGULAR, rectangular_curve
from data import ASPECT, KINDS, defects, render, sites, to_u8, visible_radius

import numpy as np
import torch

# ------------------------------------------------------------------------------ the truth


def fresh_crystals(condition, img_size=64, seed=0):
    """True crystals under conditions of mode full, in 8 bits: float32 [N, 1, H, H] in [0, 1]."""
    rng = np.random.default_rng(seed)
    aspect = torch.from_numpy(rng.uniform(*ASPECT, len(condition.kind)))
    spacing, theta, vacancy, jitter = condition.cont.double().unbind(1)

    images = []
    for start in range(0, len(aspect), CHUNK):
        rows = slice(start, start + CHUNK)
        keep, shift = defects(vacancy[rows], jitter[rows], img_size, start, seed, stream=1)
        lattice = (condition.kind[rows], theta[rows], aspect[rows], spacing[rows])
        images.append(to_u8(render(*lattice, keep, shift, img_size)).float() / 255)
    return torch.cat(images)


# ------------------------------------------------------------------------------ the numbers


def atom_report(x, condition) -> dict:
    """Numbers of images x [N, 1, H, H] in [0, 1] under conditions of mode full.

    missing, displacement (pixels, along an axis) and, with _asked, what they should be; counts_chi2
    and counts_ks, where vacancies were asked for; anisotropy, neighbours_shift and
    neighbours_missing, correlations; spacing_error (relative) and angle_error (degrees), RMS, of
    the lattice through the atoms; between: the share of sites with something between an atom and
    none; error: mean RMSE between an image and a crystal of its atoms.  No entry for what cannot
    be measured.
    """
    spacing, theta, vacancy, jitter = condition.cont.double().unbind(1)
    atoms = find_atoms(x, condition.kind, theta, spacing)
    here = atoms.inside & atoms.present
    missing = atoms.inside & ~atoms.present
    M = atoms.inside.sum(1)
    count = here.sum(1)
    atoms_here = count.sum().clamp_min(1)
    square = atoms.shift[here].square().sum() / (2 * atoms_here)
    height = atoms.height[atoms.inside]
    numbers = {
        "images": len(x),
        "sites": int(M.sum()),
        "missing": float(missing.sum() / M.sum()),
        "missing_asked": float((M * vacancy).sum() / M.sum()),
        "displacement": float(square.sqrt()),
        "displacement_asked": float(((count * jitter.square()).sum() / atoms_here).sqrt()),
        "anisotropy": anisotropy(atoms.shift[here]),
        "between": float(((height > 0.25) & (height < 0.75)).double().mean()),
        "error": float(atoms.error.mean()),
    }

    some = vacancy > 0
    if some.any():
        of_counts = missing.sum(1)[some], M[some], vacancy[some]
        numbers["counts_chi2"] = counts_chi2(*of_counts)
        numbers["counts_ks"] = counts_ks(*of_counts)
    numbers |= neighbours(atoms, missing, here, condition.kind, vacancy, x.shape[-1])
    return numbers | lattice_errors(atoms, here, condition.kind, theta, spacing, x.shape[-1])


def anisotropy(d):
    """0 if displacements d [n, 2] scatter alike in all directions, 1 if along a line."""
    xx, yy = d.square().sum(0)
    xy = d.prod(1).sum()
    return float(torch.hypot(xx - yy, 2 * xy) / (xx + yy).clamp_min(1e-12))


def counts_chi2(k, M, v):
    """Mean square of the counts k [N], less their means, over their binomial variance."""
    return float(((k - M * v).square() / (M * v * (1 - v))).mean())


def counts_ks(k, M, v):
    """Kolmogorov-Smirnov distance of counts k [N] from their binomial laws of M sites, share v.

    F(k - 1) + U P(k), with U uniform, would be uniform: the jumps of F are filled at random.
    """
    i = torch.arange(int(M.max()) + 1, dtype=torch.float64)
    n = M[:, None].double()
    p = v[:, None]
    rest = (n - i).clamp_min(0)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(i + 1) - torch.lgamma(rest + 1)
    P = torch.exp(log_choose + i * p.log() + rest * (1 - p).log()) * (i <= n)  # [N, M + 1]

    U = torch.from_numpy(np.random.default_rng(0).random(len(k)))
    u = (P * (i < k[:, None])).sum(1) + U * P.gather(1, k[:, None])[:, 0]
    u = u.sort().values
    steps = torch.arange(len(u) + 1, dtype=torch.float64) / len(u)
    return float(torch.maximum(steps[1:] - u, u - steps[:-1]).max())


@lru_cache
def neighbour_pairs(k, img_size):
    """Sites of a lattice of type k that are nearest neighbours: two columns of indices, int64."""
    lattice = sites(k, visible_radius(img_size, any_spacing=True))
    distance = torch.cdist(lattice, lattice)
    nearest = distance[distance > 1e-6].min()
    return torch.where(torch.triu(distance < 1.01 * nearest, diagonal=1))


def neighbours(atoms, missing, here, kind, vacancy, img_size):
    """Correlation between neighbours: of their displacements, and of being missing."""
    shift = total = empty = expected = 0.0
    for k in range(len(KINDS)):
        (rows,) = torch.where(kind == k)
        a, b = neighbour_pairs(k, img_size)

        both = here[rows][:, a] & here[rows][:, b]
        d, e = atoms.shift[rows][:, a][both], atoms.shift[rows][:, b][both]
        shift += float((d * e).sum())
        total += float((d.square() + e.square()).sum() / 2)

        both = atoms.inside[rows][:, a] & atoms.inside[rows][:, b]
        v = vacancy[rows, None]
        m = missing[rows].double() - v
        empty += float((m[:, a] * m[:, b])[both].sum())
        expected += float((both * v * (1 - v)).sum())

    found = {}
    if total:
        found["neighbours_shift"] = shift / total
    if expected:
        found["neighbours_missing"] = empty / expected
    return found


def lattice_errors(atoms, here, kind, theta, spacing, img_size):
    """How far the lattice through the atoms is from what was asked: spacing and angle.

    Positions in the plane as complex numbers: a site is at a e^(i theta) q, and least squares give
    a e^(i theta) = sum of r conj(q) / sum |q|^2 for atoms at r.
    """
    spacing_errors = []
    angle_errors = []
    for k in range(len(KINDS)):
        (rows,) = torch.where(kind == k)
        u, v = sites(k, visible_radius(img_size, any_spacing=True)).unbind(1)
        stretch = atoms.aspect[rows, None]  # 1 but for rectangular lattices
        q = torch.complex(u.expand(len(rows), -1), v * stretch)
        there = here[rows][:, : len(u)].double()
        d = torch.view_as_complex(atoms.shift[rows][:, : len(u)].contiguous())

        asked = torch.polar(spacing[rows], theta[rows])
        lever = (q.abs().square() * there).sum(1).clamp_min(1e-9)
        ratio = 1 + (d * q.conj() * there).sum(1) / lever / asked
        spacing_errors.append(ratio.abs() - 1)
        angle_errors.append(ratio.angle())

    def rms(parts):
        return float(torch.cat(parts).square().mean().sqrt())

    return {
        "spacing_error": rms(spacing_errors),
        "angle_error": math.degrees(rms(angle_errors)),
    }


def type_share(x, condition, nodes=31):
    """The share of images x that are most like a perfect lattice of the type asked for.

    At the spacing and angle of their conditions, and, if rectangular, at the best aspect; an aspect
    next to 1 is square as well, so that a lead of 2 % does not count.
    """
    aspects = torch.linspace(*ASPECT, nodes, dtype=torch.float64)
    others = torch.tensor([k for k in range(len(KINDS)) if k != RECTANGULAR])
    right = []
    for image, k, cont in zip(x.double(), condition.kind, condition.cont.double(), strict=True):
        spacing, theta = cont[:2]
        curve = rectangular_curve(theta[None], aspects, x.shape[-1], spacing)[0]
        alike = torch.zeros(len(KINDS), dtype=torch.float64)
        alike[RECTANGULAR] = likeness(image, curve).max()
        perfect = render(others, theta, 1.0, spacing, img_size=x.shape[-1])
        alike[others] = likeness(image, perfect)
        right.append(alike[k] > 0.98 * alike.max())
    return float(torch.stack(right).double().mean())


# ------------------------------------------------------------------------------ in words

ROWS = {  # in words, and how it is written
    "missing": ("share of atoms missing", "{:.4f}"),
    "displacement": ("displacement along an axis, px", "{:.4f}"),
    "counts_chi2": ("missing per image, chi^2 / n", "{:.2f}"),
    "counts_ks": ("missing per image, KS distance", "{:.3f}"),
    "anisotropy": ("anisotropy of displacements", "{:.3f}"),
    "neighbours_shift": ("correlation of neighbours' displacements", "{:+.3f}"),
    "neighbours_missing": ("correlation of neighbours' vacancies", "{:+.3f}"),
    "spacing_error": ("spacing, relative error", "{:.4f}"),
    "angle_error": ("angle, error in degrees", "{:.3f}"),
    "between": ("share of sites neither empty nor an atom", "{:.4f}"),
    "error": ("RMSE to a crystal of these atoms", "{:.4f}"),
    "type_share": ("share whose type is recovered", "{:.3f}"),
}


def describe_atoms(numbers, true) -> str:
    """Lines of what was found, what the same number of fresh true crystals have, and was asked."""
    lines = [f"atoms at {numbers['sites']} sites of {numbers['images']} crystals:"]
    for key, (words, form) in ROWS.items():
        if key in numbers and key in true:
            line = f"  {words:42}{form.format(numbers[key]):>8}   true {form.format(true[key]):>8}"
            asked = numbers.get(f"{key}_asked")
            lines.append(line + (f"   asked {asked:.4g}" if asked is not None else ""))
    return "\n".join(lines)
