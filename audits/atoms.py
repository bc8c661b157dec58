"""Claims about mode full, where something is generated: which atoms are missing, and where each is.

    python audit.py --only atoms
    python audit.py --ckpt outputs/mine     the same claims about a run of mode full of your own

Atoms are found by least squares (common/atoms.py), which is tried on true crystals first.  Then
those of a network are counted and measured: their law is known (common/atom_laws.py).
"""

from functools import cache, partial

import data
import vp_sde
from audits.networks import opened
from common.atom_laws import ROWS, atom_report, fresh_crystals, type_share
from common.atoms import find_atoms
from common.claims import Claim
from common.figures import house_style, new_figure, save_figure
from common.nearest_crystal import RECTANGULAR
from common.sampling import sample_images
from common.times import time_grid

import torch

NETWORKS = ("vp_sde_full.pt",)
CALLS = 20  # of DPM-Solver++, a sample; without guidance, which would bend the law
SEED = 0
IMAGES = {"vacancy": 288, "jitter": 72, "law": 144}  # small shares scatter the most
VACANCIES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
JITTERS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
REQUIRED = 0.15  # of what was asked

ALL = tuple(range(len(data.KINDS)))
FIXED = tuple(k for k in ALL if k != RECTANGULAR)  # rectangular ones invent an aspect

# ------------------------------------------------------------------------- the finder itself


@cache
def tried_on_truth(n=96, img_size=64):
    """Atoms found in true crystals in 8 bits, and the labels that they were made from."""
    labels = data.crystal_labels(0, n, SEED, "full", img_size=img_size, stream=1)
    known = {key: labels[key] for key in labels if key not in ("vacancy", "jitter")}
    x = data.to_u8(data.render(**known, img_size=img_size)) / 255
    return find_atoms(x, labels["kind"], labels["theta"], labels["spacing"]), labels


def finder_vacancies():
    atoms, labels = tried_on_truth()
    wrong = (atoms.present != labels["keep"]) & atoms.inside
    claim = "true crystals: share of sites misjudged, empty or not"
    return Claim(claim, 0, float(wrong.sum() / atoms.inside.sum()), 1e-3, n=int(atoms.inside.sum()))


def finder_places():
    """Where the atoms are; how far from their sites depends on the aspect, which is found too."""
    atoms, labels = tried_on_truth()
    found = places_of(atoms.aspect, atoms.shift, labels)
    truth = places_of(labels["aspect"], labels["shift"], labels)
    here = atoms.inside & atoms.present & labels["keep"]
    off = (found - truth)[here].square().sum(1).mean().sqrt()
    claim = "true crystals: error of the atoms' places, px, RMS"
    return Claim(claim, 0, float(off), 0.02, n=int(here.sum()))


def places_of(aspect, shift, labels, img_size=64):
    """Where atoms are on the image: pixels [N, A, 2], in the order of data.sites."""
    where = shift.clone()
    radius = data.visible_radius(img_size, any_spacing=True)
    for k in range(len(data.KINDS)):
        (n,) = torch.where(labels["kind"] == k)
        lattice = (labels["theta"][n], aspect[n], labels["spacing"][n])
        site = torch.stack(data.places(k, *lattice, radius, img_size), -1)
        where[n, : site.shape[1]] += site
    return where


CLAIMS = [finder_vacancies, finder_places]

# ------------------------------------------------------------------------------ the network


@cache
def load(path):
    """The network of a checkpoint of mode full and its Run.  Raises ValueError for any other."""
    net, run = opened(vp_sde, path)
    if run.trained.mode != "full":
        raise ValueError(f"{path} is of mode {run.trained.mode}, whose crystals have all atoms")
    return net, run


def drawn(net, run, condition, keys=None):
    """Crystals in [0, 1] of these conditions, float32 [N, 1, H, H], by DPM-Solver++.

    keys [N]: crystals of one key have the same noise; by default none have.
    """
    model = vp_sde.Learned(net, run)
    times = time_grid(net.schedule, CALLS, 0.005, "logsnr")

    def trajectory(rows, noise):
        eps = partial(vp_sde.guided_eps, model, condition.rows(rows), 1)
        return vp_sde.dpmpp_2m(eps, next(noise), times, net.schedule)

    size = run.trained.img_size
    config = run.with_settings(n=len(condition.kind)).config
    return data.unit(sample_images(trajectory, (1, size, size), config, times, keys=keys).x)


def conditions_of(what, value, n_types=4):
    """The default conditions with this vacancy or jitter; or those of held-out data, by the law."""
    n = IMAGES[what]
    if what != "law":
        return data.default_conditions(n, mode="full", n_types=n_types, **{what: value})
    labels = data.crystal_labels(0, n, SEED, "full", n_types, stream=1)
    cont = [labels[key] for key in ("spacing", "theta", "vacancy", "jitter")]
    return data.known_condition(labels["kind"], torch.stack(cont, 1).float())


@cache
def images(path, what, value=None):
    """Conditions, the network's crystals under them, and as many fresh true ones."""
    net, run = load(path)
    condition = conditions_of(what, value, run.trained.n_types)
    truth = fresh_crystals(condition, run.trained.img_size, SEED)
    return condition, drawn(net, run, condition), truth


@cache
def measured(path, what, value=None, kinds=ALL):
    """The atom_report of the network's crystals of these types, and of the true ones."""
    condition, *both = images(path, what, value)
    rows = torch.isin(condition.kind, torch.tensor(kinds))
    condition = condition.rows(rows)
    reports = [atom_report(x[rows], condition) for x in both]
    if what == "law":
        for report, x in zip(reports, both, strict=True):
            report["type_share"] = type_share(x[rows], condition)
    return reports


def as_asked(path, what, value, kinds=ALL):
    """Required: within 15 % of what was asked; where nothing is asked it only reports."""
    model, true = measured(path, what, value, kinds)
    key, unit = {"vacancy": ("missing", ""), "jitter": ("displacement", " px")}[what]
    which = "" if kinds == ALL else ", without rectangular ones"
    claim = f"mode full: {key}, asked {value:g}{unit}{which}"
    note = f"fresh true crystals {true[key]:.4g}"
    tolerance = REQUIRED * value if value else None
    return Claim(claim, value, model[key], tolerance, n=model["images"], note=note)


def of_the_law(path, key):
    """Beside as many fresh true crystals of the same conditions, whose number scatters as well."""
    model, true = measured(path, "law")
    claim = f"mode full, random conditions: {ROWS[key][0]}"
    return Claim(claim, true[key], model[key], n=IMAGES["law"])


CHECKS = [
    *(partial(as_asked, what="vacancy", value=v) for v in (0.0, 0.05, 0.15, 0.25)),
    *(partial(as_asked, what="jitter", value=j) for j in (0.0, 0.2, 0.4, 0.6)),
    *(partial(as_asked, what="jitter", value=j, kinds=FIXED) for j in (0.0, 0.2, 0.4, 0.6)),
    *(partial(of_the_law, key=key) for key in ROWS if key != "missing"),
]
AT_LENGTH = [
    *(partial(as_asked, what="vacancy", value=v) for v in (0.1, 0.2)),
    *(partial(as_asked, what="jitter", value=j) for j in (0.1, 0.3, 0.5)),
]


def about(path):
    """The checks of a checkpoint of mode full; gallery.py draws its pictures."""
    load(path)
    return [partial(check, path) for check in CHECKS], None


def at_length(path):
    """The values between, which take a minute or two more."""
    return [partial(check, path) for check in AT_LENGTH]


# ------------------------------------------------------------------------------ the picture


@house_style()
def draw_asked_and_found(path, folder):
    """atoms.png: asked vacancy against found, asked jitter against found, model and truth."""
    figure = new_figure(9, 4.2, layout="constrained")
    left, right = figure.subplots(1, 2)
    panel(left, path, "vacancy", VACANCIES, "missing", "share of the atoms missing")
    panel(right, path, "jitter", JITTERS, "displacement", "displacement along an axis, px")
    figure.suptitle("Which atoms are there, and where: what was asked and found", weight="bold")
    save_figure(folder / "atoms.png", figure)


def panel(ax, path, what, values, key, label):
    model, true = zip(*(measured(path, what, value) for value in values), strict=True)
    ax.plot(values, values, color="0.6", lw=1, label="as asked")
    ax.plot(values, [r[key] for r in true], "s", ms=8, mfc="none", label="fresh true crystals")
    ax.plot(values, [r[key] for r in model], "o", ms=5, label="the network")
    if what == "jitter":
        fixed = [measured(path, what, value, FIXED)[0][key] for value in values]
        ax.plot(values, fixed, "^", ms=5, label="without its rectangular ones")
    ax.set(xlabel=f"{what} asked", ylabel=f"{label}, found")
    ax.legend(frameon=False, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
