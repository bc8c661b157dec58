"""Toy crystals, rendered: the data whose truth is known.

A crystal is a lattice of isotropic Gaussian atoms, laid out around the image centre, turned by an
angle and divided by its maximum.  With atoms at (a_x, a_y) and width s,

    image[y, x] = sum_atoms exp(-(x - a_x)^2 / 2 s^2) exp(-(y - a_y)^2 / 2 s^2)  /  max,

and because each Gaussian is a product of a column and a row, a whole image is one matrix product.

    python data.py                                   a preview, outputs/data/preview.png (3 s)
    python data.py --build 50000 --out crystals.pt   a data set in one file (about 10 s, 205 MB)

Image i of a seed has the same bits however it is obtained, alone, in a batch or from a file: its
random numbers are a fixed stretch of one counter-based stream, and it is rendered in float64
before it is rounded to 8 bits.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from common import cli
from common.cli import flag
from common.contact_sheet import Row, draw_sheet
from common.crystal_file import load_crystals, save_crystals

import numpy as np
import torch
import torch.nn.functional as F

KINDS = ("square", "rectangular", "triangular", "honeycomb")
MODES = ("rot-only", "simple", "full")
THETA_MAX = math.pi / 3  # angles go from 0 to this, radians
SPACING = 10.0  # lattice constant a of the modes that do not vary it, pixels
ASPECT = (0.75, 1.35)  # rectangular: b = aspect * a, and the aspect is in no condition
FULL_SPACING = (6.0, 14.0)  # in mode full: a, pixels
FULL_VACANCY = (0.0, 0.25)  # share of the atoms that is missing
FULL_JITTER = (0.0, 0.6)  # standard deviation of their displacements, pixels
FEATURES = 25  # numbers in which a network is told a Condition

# ------------------------------------------------------------------------------ rendering


@lru_cache(maxsize=64)
def sites(kind: int, radius: float) -> torch.Tensor:
    """Atoms of an unrotated lattice of spacing 1, out to `radius`: x and y, float64 [A, 2].

    The y of a rectangular lattice (kind 1) is still to be multiplied by its aspect; the table
    reaches far enough for the smallest one.
    """
    v2 = (0.5, math.sqrt(3) / 2) if kind in (2, 3) else (0.0, 1.0)
    basis = [(0.0, 0.0), (0.5, math.sqrt(3) / 6)] if kind == 3 else [(0.0, 0.0)]
    squeeze = ASPECT[0] if kind == 1 else 1.0

    # All the cells that could reach the circle, then the atoms that do.
    reach = math.ceil(2 * radius / squeeze) + 1
    j, i = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    cells = np.stack([i + j * v2[0], j * v2[1]], -1).reshape(-1, 1, 2)
    xy = (cells + np.array(basis)).reshape(-1, 2)
    return torch.from_numpy(xy[np.hypot(xy[:, 0], xy[:, 1] * squeeze) <= radius])


def visible_radius(img_size, any_spacing):
    """How far from the centre an atom can still be seen, in units of the smallest spacing."""
    smallest, largest = FULL_SPACING if any_spacing else (SPACING, SPACING)
    wander = 5 * FULL_JITTER[1] if any_spacing else 0.0
    reach = 6 * (0.12 * largest)  # six widths from the image, an atom adds 2e-8 to a pixel
    return (img_size / math.sqrt(2) + 1 + reach + wander) / smallest


def profiles(centre, spacing, img_size):
    """The Gaussians of atoms, max(0.6, 0.12 a) pixels wide, along an axis: [n, A, img_size]."""
    pixel = torch.arange(img_size, dtype=torch.float64, device=centre.device)
    s = math.sqrt(2) * spacing.mul(0.12).clamp_min(0.6)[:, None, None]

    # exp(-100) is nothing to the image; what underflows makes the product ten times slower.
    return ((pixel - centre[..., None]) / s).square_().neg_().clamp_min_(-100).exp_()


def places(k, theta, aspect, spacing, radius, img_size):
    """Where the sites of n lattices of type k lie on the image: x and y, pixels [n, A].

    theta, aspect, spacing: float64 [n]; the sites are those of `sites(k, radius)`.
    """
    lattice = sites(k, radius).to(theta.device)  # [A, 2]
    u = lattice[:, 0] * spacing[:, None]  # [n, A]
    v = lattice[:, 1] * spacing[:, None] * (aspect[:, None] if k == 1 else 1.0)
    cos = torch.cos(theta[:, None])
    sin = torch.sin(theta[:, None])
    return img_size / 2 + cos * u - sin * v, img_size / 2 + sin * u + cos * v


def render(
    kind, theta, aspect=1.0, spacing=SPACING, keep=None, shift=None, img_size=64, device="cpu"
):
    """Crystals as float64 images [N, 1, H, W] in [0, 1], each with maximum 1.

    kind: int [N]; theta: radians [N]; aspect (kind 1 only) and spacing (pixels): numbers or [N];
    keep: bool [N, A], the atoms that are there; shift: [N, A, 2], their displacements in pixels,
    both in the order of `sites`.  Pixel i has its centre at coordinate i, y points down, and the
    lattice is turned about (W/2, H/2) from x towards y.  Raises ValueError for an aspect or spacing
    below the range of the data, whose lattice would not fill the image.

    All is float64, so that rounded to 8 bits an image is the same on any device and in any batch.
    Apple's MPS has no float64: for it the CPU renders, and the result is float32.
    """
    target = torch.device(device)
    device = torch.device("cpu") if target.type == "mps" else target
    kind = torch.as_tensor(kind, device=device)

    def column(v):
        return torch.as_tensor(v, dtype=torch.float64, device=device).expand(len(kind))

    theta = column(theta)
    aspect = column(aspect)
    spacing = column(spacing)
    if (aspect < ASPECT[0] - 1e-3).any():
        raise ValueError(f"the aspect must be at least {ASPECT[0]}")
    if (spacing < FULL_SPACING[0]).any():
        raise ValueError(f"the spacing must be at least {FULL_SPACING[0]} px")
    radius = visible_radius(img_size, keep is not None or bool((spacing != SPACING).any()))

    # One batch a lattice type: their atoms differ in number.
    image = torch.zeros(len(kind), img_size, img_size, dtype=torch.float64, device=device)
    for k in range(len(KINDS)):
        (n,) = torch.where(kind == k)
        if len(n) == 0:
            continue
        # Place the atoms, displace them, and lay them on the image.
        x, y = places(k, theta[n], aspect[n], spacing[n], radius, img_size)
        atoms = x.shape[1]
        if shift is not None:
            x = x + shift[n, :atoms, 0].to(x)
            y = y + shift[n, :atoms, 1].to(x)
        rows = profiles(y, spacing[n], img_size)  # [n, A, H]
        columns = profiles(x, spacing[n], img_size)  # [n, A, W]
        if keep is not None:
            rows = rows * keep[n, :atoms, None].to(rows)
        image[n] = rows.transpose(1, 2) @ columns

    image = image / image.amax((1, 2), keepdim=True)
    return image[:, None].to(target, torch.float32 if target.type == "mps" else torch.float64)


# ------------------------------------------------------------------------------ the data set


def uniforms(start, n, width, seed, stream=0):
    """Rows start .. start + n of an endless table of uniforms in [0, 1): [n, width].

    Row i is always the same: Philox is counter-based, so its stream can be entered anywhere.
    """
    width4 = -(-width // 4) * 4  # a counter holds four numbers
    philox = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
    philox.advance(start * width4 // 4)
    return np.random.Generator(philox).random((n, width4))[:, :width]


def crystal_labels(start, n, seed=0, mode="rot-only", n_types=4, img_size=64, stream=0) -> dict:
    """All that decides crystals start .. start + n of a seed: the keyword arguments of `render`.

    In mode full also the vacancy and jitter that keep and shift were drawn with.  stream 0 is
    training data, 1 held-out data.  Raises ValueError for an unknown mode or number of types.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if not 1 <= n_types <= len(KINDS):
        raise ValueError(f"the number of lattice types must be 1 to {len(KINDS)}, not {n_types}")

    # Crystal i has the same type and aspect in all modes and sizes.
    u = uniforms(start, n, 8, seed, stream)

    def spread(column, low, high):
        return torch.from_numpy(low + (high - low) * u[:, column])

    labels = {
        "kind": torch.from_numpy((u[:, 0] * n_types).astype(np.int64)),
        "theta": spread(1, 0.0, THETA_MAX),
        "aspect": spread(2, *ASPECT),
    }
    if mode == "simple":
        labels["theta"] = torch.zeros(n, dtype=torch.float64)
    if mode != "full":
        return labels

    labels["spacing"] = spread(3, *FULL_SPACING)
    labels["vacancy"] = spread(4, *FULL_VACANCY)
    labels["jitter"] = spread(5, *FULL_JITTER)
    settings = labels["vacancy"], labels["jitter"], img_size
    labels["keep"], labels["shift"] = defects(*settings, start, seed, stream)
    return labels


def defects(vacancy, jitter, img_size=64, start=0, seed=0, stream=0):
    """Which atoms are there, bool [n, A], and their displacements, pixels [n, A, 2].

    vacancy, jitter: float64 [n].  Each atom is missing with probability `vacancy`, and displaced
    along x and along y by a normal number of standard deviation `jitter`, all independent.
    """
    radius = visible_radius(img_size, any_spacing=True)
    atoms = max(len(sites(k, radius)) for k in range(len(KINDS)))
    n = len(vacancy)
    v = torch.from_numpy(uniforms(start, n, 3 * atoms, seed, stream + 2**32)).view(n, atoms, 3)
    keep = v[..., 0] >= vacancy[:, None]
    normal = torch.special.ndtri(v[..., 1:].clamp_min(1e-300))
    return keep, normal * jitter[:, None, None]


def crystal_batch(start, n, seed=0, mode="rot-only", n_types=4, img_size=64, stream=0):
    """Crystals start .. start + n of a seed: x_u8 uint8 [n, 1, H, W], y_cat, y_cont.

    y_cat is the type, int64 [n]; y_cont, float32 [n, 4], is [a, theta, vacancy, jitter] in mode
    full and [0, theta, 0, 0] otherwise.
    """
    labels = crystal_labels(start, n, seed, mode, n_types, img_size, stream)
    vacancy = labels.pop("vacancy", torch.zeros(n))
    jitter = labels.pop("jitter", torch.zeros(n))
    x_u8 = to_u8(render(**labels, img_size=img_size))
    y_cont = [labels.get("spacing", torch.zeros(n)), labels["theta"], vacancy, jitter]
    return x_u8, labels["kind"], torch.stack(y_cont, 1).float()


def to_u8(x):
    """[0, 1] to 0 .. 255, rounded to nearest."""
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


def unit(x):
    """The [-1, 1] of a diffusion model to [0, 1], clipped, float32."""
    return ((x.float() + 1) / 2).clamp(0, 1)


# ------------------------------------------------------------------------------ the condition


class Condition(NamedTuple):
    """What each of N crystals is to be."""

    kind: torch.Tensor  # lattice type: int64 [N]
    cont: torch.Tensor  # [a, theta, vacancy, jitter], 0 where the mode does not vary it: [N, 4]
    known: torch.Tensor  # False: unconditional, the network sees none of it: bool [N]

    def rows(self, rows):
        """The conditions of some crystals: a slice, or indices."""
        return Condition(*(part[rows] for part in self))

    def to(self, device):
        return Condition(*(part.to(device) for part in self))

    def dropped(self):
        """The same crystals, unconditional."""
        return self._replace(known=torch.zeros_like(self.known))

    def spacing(self):
        """The lattice constant, pixels: 10 where it is unconditional, or the mode has no other."""
        a = self.cont[:, 0]
        return a.where(self.known & (a > 0), a.new_tensor(SPACING))

    def features(self):
        """One-hot type, labels of order one, harmonics of theta, "unconditional": [N, FEATURES]."""
        known = self.known.float()[:, None]
        angles = self.cont[:, 1:2] * torch.arange(1, 9, device=self.cont.device)  # [N, 8]
        scaled = self.cont * self.cont.new_tensor([0.1, 1, 4, 1])
        labels = torch.cat([F.one_hot(self.kind, 4), scaled, angles.sin(), angles.cos()], 1)
        return torch.cat([labels * known, 1 - known], 1)


def concat(a: Condition, b: Condition) -> Condition:
    """Two batches in one, say both halves of guidance."""
    return Condition(*(torch.cat(parts) for parts in zip(a, b, strict=True)))


def known_condition(kind, cont) -> Condition:
    """The Condition of crystals whose labels are known."""
    return Condition(kind, cont, torch.ones(len(kind), dtype=torch.bool, device=kind.device))


def default_conditions(
    n, kind=None, theta=None, mode="rot-only", n_types=4, spacing=SPACING, vacancy=0.0, jitter=0.0
) -> Condition:
    """Crystal i has type i mod n_types and angle (i mod 36)/35 pi/3, unless kind or theta is given.

    spacing, vacancy, jitter: of mode full, numbers or [n].  In mode simple no crystal is turned.
    """
    i = torch.arange(n)
    cont = torch.zeros(n, 4)
    if mode == "full":
        cont[:, 0] = spacing
        cont[:, 2] = vacancy
        cont[:, 3] = jitter
    if mode != "simple":
        cont[:, 1] = (i % 36) / 35 * THETA_MAX if theta is None else theta
    return known_condition(i % n_types if kind is None else torch.full((n,), kind), cont)


# ------------------------------------------------------------------------------ files


def build(n, path, seed=0, mode="rot-only", n_types=4, img_size=64, chunk=64):
    """Render n crystals into one file, which also holds their mode, n_types, img_size and seed.

    x_u8, y_cat and y_cont are those of `crystal_batch`.  A file that is already there is replaced.
    Raises ValueError as `crystal_labels` does, OSError if it cannot write.
    """
    about = dict(seed=seed, mode=mode, n_types=n_types, img_size=img_size)
    save_crystals(path, n, partial(crystal_batch, **about), chunk, about)


def load_built(path, mode=None, n_types=None, img_size=None) -> dict:
    """A file made by `build`, as a dict.

    Raises FileNotFoundError or ValueError, which name the fault: a damaged file, or one that holds
    other crystals than these (None: any).
    """
    return load_crystals(path, len(KINDS), mode=mode, n_types=n_types, img_size=img_size)


def preview(path, n_types=4, img_size=64, seed=0, m=7):
    """Draw a PNG of what there is: types and angles, the aspect, and mode full, m of each."""
    theta = torch.linspace(0, THETA_MAX, m, dtype=torch.float64)
    aspect = torch.linspace(*ASPECT, m, dtype=torch.float64)

    rows = []
    for k in range(n_types):
        rows.append(Row(KINDS[k], render([k] * m, theta, aspect=1.25, img_size=img_size)))
    degrees = [f"{math.degrees(angle):.0f}°" for angle in theta]
    rows[0] = rows[0]._replace(captions=degrees, heading="Types and angles: what a condition says")

    if n_types > 1:
        images = render([1] * m, 0.0, aspect, img_size=img_size)
        heading = "Aspect b / a of rectangular lattices: what no condition says"
        rows.append(Row(KINDS[1], images, [f"{b:.2f}" for b in aspect], heading))

    x_u8, _, y_cont = crystal_batch(0, m, seed, "full", n_types, img_size)
    captions = [f"{a:.0f} px, {100 * v:.0f} %, {j:.1f} px" for a, _, v, j in y_cont.tolist()]
    heading = f"Mode full: spacing, share of atoms missing and jitter vary as well (seed {seed})"
    rows.append(Row("random draws", x_u8 / 255, captions, heading))

    size = f"{img_size} x {img_size} pixels"
    about = f"lattices of Gaussian atoms, turned about the image centre, {size}"
    draw_sheet(path, "Toy crystals", about, rows)


# ------------------------------------------------------------------------------ the command line


@dataclass(kw_only=True)
class Config:
    script = "data"

    build: int | None = flag.run(
        None, "render this many crystals into --out FILE.pt", low=1, high=10**7, also="--n-samples"
    )
    out: str | None = flag.run(
        None, "file to write (default: outputs/data/preview.png, a preview)", parse=cli.path
    )
    force: bool = flag.run(False, "replace the file given by --out if there is one")
    mode: str = flag.run("rot-only", "what varies in a data set", choices=MODES)
    rot_only: bool = flag.run(False, "the same as --mode rot-only")
    n_types: int = flag.run(4, f"types: so many of {', '.join(KINDS)}", low=1, high=4)
    img_size: int = flag.run(64, "pixels: the more, the more atoms", low=8, high=1024)
    seed: int = flag.run(0, "decides every random number", low=0, below=2**63)

    def settle(self, typed):
        if self.rot_only and self.mode != "rot-only":
            raise ValueError(f"--rot-only contradicts --mode {self.mode}: leave one out")
        if self.build and not self.out:
            raise ValueError("--build needs a file to write: --out FILE.pt")
        self.out = Path(self.out or "outputs/data/preview.png")
        if not self.build:
            if self.rot_only or "mode" in typed:
                raise ValueError("--mode has no effect: a preview shows what there is; add --build")
            if self.out.suffix.lower() != ".png":
                raise ValueError(f"--out {self.out}: a preview is a PNG (a data set needs --build)")
        if self.out.is_dir():
            raise ValueError(f"--out {self.out} is a folder: name a file in it")
        if "out" in typed and self.out.exists() and not self.force:
            raise ValueError(f"--out {self.out} exists: name another, or replace it with --force")


def main(argv=None):
    with cli.program(Config.script):
        config = cli.parse(Config, argv)
        settings = dict(seed=config.seed, n_types=config.n_types, img_size=config.img_size)
        what = "preview"
        try:
            if config.build:
                build(config.build, config.out, mode=config.mode, **settings)
                what = f"{config.build:,} crystals ({config.mode}, seed {config.seed})"
            else:
                preview(config.out, **settings)
        except OSError as error:
            raise OSError(f"cannot write {config.out}: {error.strerror or error}") from None
        print(f"{what} in {config.out}")


if __name__ == "__main__":
    main()
