"""Which atoms of a lattice are there, and where: found in an image by least squares.

    I(p) = sum over atoms of h_i g(p - r_i - d_i),   g(p) = exp(-|p|^2 / 2 s^2)

The sites r_i are those of the lattice that was asked for, g is the renderer's own atom; unknown are
the height h_i of each atom and its displacement d_i.  An image is scaled to maximum 1, so what its
atoms have in common is not the height 1: it is found as well.  An atom of less than half of it is
missing.

All atoms of an image are fitted to one residual, so that those that overlap are told apart.  Each
takes its own Gauss-Newton step, again and again: atoms overlap with near neighbours only, so this
converges.  A pull to the site, tau^2 |d|^2 / 0.6^2 beside the squared residual, keeps what is
missing from wandering off; it is strong at first, so that no atom takes the site of another.
"""

from typing import NamedTuple

from common.nearest_crystal import CHUNK, RECTANGULAR, checked_condition, rectangular_curve, rmse
from data import ASPECT, FULL_JITTER, KINDS, places, profiles, render, sites, visible_radius

import torch

FREE = 16  # rounds in which every atom has a height of its own
COMMON = 10  # rounds that follow, in which those that are there have one height
TAU = (0.5, 0.05)  # of the pull: in the first round, and what it falls to
MARGIN = 3.0  # pixels from the edge to the sites that count: five times 0.6 px, the most jitter
RELAX = 0.9  # of a step: neighbours step as well


class Atoms(NamedTuple):
    """What was found in N images, at A sites each, in the order of data.sites."""

    inside: torch.Tensor  # the sites that count, MARGIN inside the image: bool [N, A]
    present: torch.Tensor  # is there an atom?  False where none could be seen: bool [N, A]
    shift: torch.Tensor  # its displacement, pixels, 0 where there is none: float64 [N, A, 2]
    height: torch.Tensor  # at each site over that of all atoms, 0 or 1 in truth: float64 [N, A]
    aspect: torch.Tensor  # of the lattice; 1 where the type has none: float64 [N]
    error: torch.Tensor  # RMSE between the image and a crystal of these atoms: float64 [N]


def find_atoms(x, kind, theta, spacing) -> Atoms:
    """The atoms of crystals x, float [N, 1, H, H] in [0, 1], at the sites that were asked for.

    kind: int [N]; theta: radians [N] in [0, pi/3]; spacing: pixels, a number or [N].  The aspect of
    rectangular lattices is fitted first.  Raises ValueError for another type or angle.
    """
    kind, theta = checked_condition(kind, theta, x)
    spacing = torch.as_tensor(spacing, dtype=torch.float64, device=x.device).expand(len(x))
    radius = visible_radius(x.shape[-1], any_spacing=True)
    most = max(len(sites(k, radius)) for k in range(len(KINDS)))

    nothing = theta.new_zeros(len(x), most)
    nowhere = torch.zeros_like(nothing, dtype=torch.bool)
    shift = theta.new_zeros(len(x), most, 2)
    one = torch.ones_like(theta)
    found = Atoms(nowhere, nowhere.clone(), shift, nothing, one, torch.zeros_like(theta))

    # Few at a time, of one type and like spacings: they show about the same number of sites.
    for k in range(len(KINDS)):
        (rows,) = torch.where(kind == k)
        for part in rows[spacing[rows].argsort()].split(CHUNK // 4):
            if len(part):
                fit_lattices(found, x, part, k, theta[part], spacing[part])
    return found


def fit_lattices(found, x, part, k, theta, spacing):
    """Fill in `found` for the images `part`, whose lattices are of type k."""
    image = x[part, 0].double()
    H = image.shape[-1]
    radius = visible_radius(H, any_spacing=True)
    aspect = torch.ones_like(theta)
    if k == RECTANGULAR:
        aspect = rough_aspect(x[part].double(), theta, spacing)

    # The sites that can be seen in any of these images.
    x_site, y_site = places(k, theta, aspect, spacing, radius, H)  # [n, A]
    reach = 3 * atom_width(spacing).max() + FULL_JITTER[1]
    seen = within(x_site, -reach, H) & within(y_site, -reach, H)
    (some,) = torch.where(seen.any(0))
    site = torch.stack([x_site, y_site], -1)[:, some]  # [n, a, 2]
    present, d, height = fit_atoms(image, site, seen[:, some], spacing)

    # The aspect that puts the atoms nearest to their sites; they stay where they are.
    if k == RECTANGULAR:
        counted = present & within(site, MARGIN, H).all(-1)
        lattice = sites(k, radius).to(site.device)[some]
        aspect = fine_aspect(site + d - H / 2, counted, lattice[:, 1], theta, spacing, aspect)
        x_site, y_site = places(k, theta, aspect, spacing, radius, H)
        moved = torch.stack([x_site, y_site], -1)[:, some]
        d = d + site - moved
        site = moved

    at = part[:, None], some
    found.inside[at] = within(site, MARGIN, H).all(-1)
    found.present[at] = present
    found.shift[at] = d * present[..., None]
    found.height[at] = height
    found.aspect[part] = aspect

    crystal = render(
        [k] * len(part), theta, aspect, spacing, found.present[part], found.shift[part], H, x.device
    )
    found.error[part] = rmse(x[part].double(), crystal.nan_to_num(0.0)).to(found.error)  # no atoms


def crystals_of_atoms(x, condition):
    """What the renderer makes of the atoms found in images x: float64 [N, 1, H, H] in [0, 1].

    condition: a data.Condition of mode full.
    """
    spacing, theta = condition.cont.double()[:, :2].unbind(1)
    atoms = find_atoms(x, condition.kind, theta, spacing)
    where = (condition.kind, theta, atoms.aspect, spacing, atoms.present, atoms.shift)
    return render(*where, img_size=x.shape[-1]).nan_to_num(0.0)  # where there is no atom at all


def atom_width(spacing):
    """Standard deviation of an atom, as the renderer has it, pixels."""
    return (0.12 * spacing).clamp_min(0.6)


def within(v, margin, H):
    """Whether coordinates lie so far inside the image, whose pixels are 0 to H - 1."""
    return (v > margin) & (v < H - 1 - margin)


# ------------------------------------------------------------------------------ the fit


def fit_atoms(image, site, seen, spacing):
    """Present: bool [n, a], displacements [n, a, 2] and relative heights [n, a] of the atoms.

    image: [n, H, H]; site: pixels [n, a, 2]; seen: bool [n, a], the sites that may have an atom.
    """
    d = torch.zeros_like(site)
    height = torch.zeros_like(site[..., 0])
    present = seen
    level = None
    for i in range(FREE + COMMON):
        if i == FREE:
            level = typical_height(height)  # [n, 1]
            present = height > level / 2
        if i >= FREE:
            height = level * present

        # What the atoms leave of the image, seen through the shape and the slopes of each.
        x, y = (site + d).unbind(-1)
        columns, columns_slope = shape(x, spacing, image.shape[-1])  # [n, a, H]
        rows, rows_slope = shape(y, spacing, image.shape[-1])
        drawn = (rows * height[..., None]).mT @ columns
        residual = image - drawn
        across = rows @ residual
        g = (across * columns).sum(-1)  # <g, residual>
        g_x = (across * columns_slope).sum(-1)
        g_y = ((rows_slope @ residual) * columns).sum(-1)

        # Heights: one by one, and from there the height of all.
        norm = squares(rows) * squares(columns)
        single = (height + RELAX * g / (norm + 0.01)).clamp(0, 2) * seen
        if i < FREE:
            height = single
        else:
            match = (drawn * residual).sum((1, 2)) / drawn.square().sum((1, 2)).clamp_min(1e-9)
            level = level * (1 + match[:, None])
            present = single > level / 2
            height = level * present

        # Displacements: a Gauss-Newton step along x and one along y.
        pull = max(TAU[0] * 0.7**i, TAU[1]) ** 2 / FULL_JITTER[1] ** 2
        curve_x = squares(rows) * squares(columns_slope) * height.square() + pull
        curve_y = squares(rows_slope) * squares(columns) * height.square() + pull
        step_x = (height * g_x - pull * d[..., 0]) / curve_x
        step_y = (height * g_y - pull * d[..., 1]) / curve_y
        step = RELAX * torch.stack([step_x, step_y], -1).clamp(-0.8, 0.8)
        d = (d + step).clamp(-5 * FULL_JITTER[1], 5 * FULL_JITTER[1])
    return present, d, single / level


def shape(centre, spacing, img_size):
    """The Gaussian of each atom along an axis, and its slope in the centre: [n, a, img_size]."""
    g = profiles(centre, spacing, img_size)
    pixel = torch.arange(img_size, dtype=g.dtype, device=g.device)
    return g, (pixel - centre[..., None]) / atom_width(spacing)[:, None, None].square() * g


def squares(profile):
    return profile.square().sum(-1)


def typical_height(height):
    """The median of those above half of the largest ones: [n, 1]."""
    large = height.quantile(0.9, dim=1, keepdim=True)
    strong = torch.where(height > large / 2, height, torch.nan)
    return strong.nanmedian(1, keepdim=True).values.nan_to_num(1.0).clamp_min(0.05)


# ------------------------------------------------------------------------------ the aspect


def rough_aspect(x, theta, spacing, nodes=31):
    """Of a grid of aspects the one whose perfect lattice is most like the image: [n].

    At the nearest node no atom is off by more than a tenth of the smallest spacing.
    """
    aspects = torch.linspace(*ASPECT, nodes, dtype=torch.float64, device=x.device)
    best = []
    for image, t, a in zip(x, theta, spacing, strict=True):
        R = rectangular_curve(t[None], aspects, x.shape[-1], a)[0]  # [nodes, 1, H, H]
        best.append(aspects[likeness(image, R).argmax()])
    return torch.stack(best)


def likeness(image, R):
    """<I, R>^2 / |I|^2 |R|^2, the share of an image that c R explains: [m] for R [m, 1, H, H]."""
    match = (image * R).sum((1, 2, 3)).square()
    return match / (image.square().sum() * R.square().sum((1, 2, 3))).clamp_min(1e-12)


def fine_aspect(r, counted, v, theta, spacing, aspect):
    """Least squares: b from atoms at r [n, a, 2] around the centre, v [a] of their sites at b = 1.

    counted: bool [n, a], the atoms that tell it.  Where there are none it stays.
    """
    along = torch.cos(theta)[:, None] * r[..., 1] - torch.sin(theta)[:, None] * r[..., 0]
    v = v * spacing[:, None] * counted
    lever = v.square().sum(1)
    b = (along * v).sum(1) / lever.clamp_min(1e-9)
    return torch.where(lever > 0, b, aspect).clamp(*ASPECT)
