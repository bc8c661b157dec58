"""What every script that draws crystals does with them: data, conditions, files and numbers."""

import dataclasses

import data
from common import metrics, pictures
from common.atom_laws import ROWS, atom_report, describe_atoms, fresh_crystals
from common.atoms import crystals_of_atoms
from common.datasets import crystal_source, training_crystals
from common.files import write_npz
from common.options import FULL

import torch

COLUMNS = ("x_u8", "y_cat", "y_cont")  # of a file of crystals
EPOCH = 50_000  # crystals in a pass over those that are rendered on the fly


class TrainingCrystals:
    """The crystals of a training: of --data-path, whose content is checked, or rendered on the fly.

    signed: images in [-1, 1], as diffusion models want them, instead of [0, 1].
    """

    def __init__(self, run, signed):
        self.config = dataclasses.replace(run.config, seed=run.trained.seed)
        self.signed = signed
        self.source = crystal_source(run.config)
        if self.source:
            run.check_content("data_path", {key: self.source[key] for key in COLUMNS})

    def batch(self, step, n, held_out=False):
        """Images [n, 1, H, H] and Condition of a step: a function of (seed, step)."""
        x_u8, condition = training_crystals(self.config, self.source, step, n, held_out)
        return self.scaled(x_u8), condition

    def scaled(self, x_u8):
        x = x_u8.float()
        return x / 127.5 - 1 if self.signed else x / 255

    def labels(self):
        """Type and angle [N] of the whole training set."""
        if self.source:
            return self.source["y_cat"], self.source["y_cont"][:, 1]
        config = self.config
        mode = "simple" if config.mode == "simple" else "rot-only"  # full has the same, and atoms
        labels = data.crystal_labels(0, EPOCH, config.seed, mode, config.n_types, config.img_size)
        return labels["kind"], labels["theta"]

    def held_out_labels(self, n):
        """All that decides the first n held-out crystals, as data.crystal_labels says it."""
        config = self.config
        settings = (config.seed, config.mode, config.n_types, config.img_size)
        return data.crystal_labels(0, n, *settings, stream=1)

    def nearest(self, condition):
        """The training examples nearest to the conditions: rows, int64 [N]."""
        return nearest_examples(*self.labels(), condition)

    def examples(self, rows):
        """Images and Condition of some of the training set: a slice, or indices."""
        config = self.config
        settings = (config.seed, config.mode, config.n_types, config.img_size)
        if self.source:
            x_u8, kind, cont = (self.source[key][rows] for key in COLUMNS)
        elif isinstance(rows, slice):
            x_u8, kind, cont = data.crystal_batch(rows.start, rows.stop - rows.start, *settings)
        else:
            singles = [data.crystal_batch(i, 1, *settings) for i in rows.tolist()]
            x_u8, kind, cont = (torch.cat(parts) for parts in zip(*singles, strict=True))
        return self.scaled(x_u8), data.known_condition(kind, cont)


def nearest_examples(kind, theta, condition):
    """For each condition the example of its type and the nearest angle: rows, int64 [N].

    kind, theta: of the examples.  The m-th repeat of a condition gets the m-th nearest, so that it
    may have another aspect.  Angles lie on a line, not on a circle: 0 and pi/3 are the two ends of
    the range, and (but for the triangular lattice) two images.  Raises ValueError where there is no
    example of a type.
    """
    n = len(condition.kind)
    wanted = zip(condition.kind.tolist(), condition.cont[:, 1].tolist(), strict=True)
    waiting = {}  # for each condition: its examples, nearest first
    rows = []
    for k, t in wanted:
        if (k, t) not in waiting:
            (same,) = torch.where(kind == k)
            if len(same) == 0:
                raise ValueError(f"the training data hold no {data.KINDS[k]} crystal to start from")
            nearest = same[(theta[same] - t).abs().argsort()].tolist()
            waiting[k, t] = iter(nearest * (1 + n // len(nearest)))
        rows.append(next(waiting[k, t]))
    return torch.tensor(rows)


def conditions(config):
    """The default conditions, or what the flags ask for, for --n crystals."""
    asked = {key: getattr(config, key) for key in FULL if hasattr(config, key)}
    settings = (config.kind, config.theta, config.mode, config.n_types)
    return data.default_conditions(config.n, *settings, **asked)


def report_crystals(drawn, run, conditional=True, film="reverse_diffusion.gif", duration=None):
    """Write samples.npz, the film and samples.png; return the numbers and what to print of them.

    drawn: a sampling.Drawn of crystals in [-1, 1].  conditional: whether they had the conditions,
    so that each is compared with the nearest crystal of its own, and not of any.  film: a name;
    duration: of a frame, seconds, if not the usual.
    """
    config = run.config
    out = run.out
    x = data.unit(drawn.x)
    condition = conditions(config)
    kind = condition.kind
    theta = condition.cont[:, 1]
    asked = dict(kind=kind, theta=theta) if conditional else {}
    write_npz(out / "samples.npz", x=x, **asked)
    pictures.crystal_film(out / film, drawn.film, duration)

    per_image = 1000 * drawn.seconds / config.n
    numbers = {"n": config.n, "seconds": drawn.seconds, "ms_per_image": per_image}
    page = out / "samples.png"
    if config.mode == "full" and not conditional:  # no closed form knows the nearest crystal
        pictures.captioned_grid(page, x[:36, 0], [""] * len(x[:36]), "samples, mode full")
        return numbers, ""
    if any_defects(condition):
        return report_atoms(x, condition, page, numbers, config.seed)

    known = (kind, theta) if conditional else ()
    spacing = float(condition.cont[0, 0]) or data.SPACING  # 0 where the mode does not vary it
    crystals, fit, truth = metrics.crystal_report(x, *known, seed=config.seed, spacing=spacing)
    pictures.crystal_page(page, x, fit, truth)
    return numbers | crystals, metrics.describe(crystals)


def any_defects(condition):
    """Whether vacancies or jitter are asked for, so that no crystal is the only right one."""
    return bool((condition.cont[:, 2:] > 0).any())


def report_atoms(x, condition, page, numbers, seed):
    """The page and the numbers where the crystals have defects: which atoms are there, and where.

    Each stands beside a crystal of the atoms that were found in it.
    """
    found = atom_report(x, condition)
    truth = atom_report(fresh_crystals(condition, x.shape[-1], seed), condition)
    few = condition.rows(slice(0, 36))
    captions = metrics.captions(few.kind, few.cont[:, 1])
    title = "left: sample    right: the atoms that were found in it"
    pairs = x[:36, 0], crystals_of_atoms(x[:36], few)[:, 0]
    pictures.captioned_grid(page, pairs, captions, title)
    numbers |= found | {f"{key}_true": truth[key] for key in ROWS if key in truth}
    return numbers, describe_atoms(found, truth)
