"""What every script that draws crystals does with them: files, pictures and numbers."""

import dataclasses

import data
from common import metrics, pictures
from common.datasets import crystal_source, training_crystals
from common.files import write_npz

COLUMNS = ("x_u8", "y_cat", "y_cont")  # of a file of crystals


class TrainingCrystals:
    """The crystals of a training: of --data-path, whose content is checked, or rendered on the fly.

    signed: images in [-1, 1], as diffusion models want them, instead of [0, 1].
    """

    def __init__(self, run, signed):
        self.config = run.config
        self.signed = signed
        self.source = crystal_source(run.config)
        if self.source:
            run.check_content("data_path", {key: self.source[key] for key in COLUMNS})

    def batch(self, step, n, held_out=False):
        """Images [n, 1, H, H] and Condition of a step: a function of (seed, step)."""
        x_u8, condition = training_crystals(self.config, self.source, step, n, held_out)
        x = x_u8.float()
        return x / 127.5 - 1 if self.signed else x / 255, condition


def conditions(config):
    """The default conditions, or those of --kind and --theta, for --n crystals."""
    return data.default_conditions(
        config.n, config.kind, config.theta, config.mode, config.n_types
    )


def report_crystals(drawn, run, conditional=True):
    """Write samples.npz, the film and samples.png; return the numbers and what to print of them.

    drawn: a sampling.Drawn of crystals in [-1, 1].  conditional: whether they had the conditions,
    so that each is compared with the nearest crystal of its own, and not of any.
    """
    config = run.config
    out = run.out
    x = data.unit(drawn.x)
    condition = conditions(config)
    kind = condition.kind
    theta = condition.cont[:, 1]
    write_npz(out / "samples.npz", x=x, kind=kind, theta=theta)
    pictures.crystal_film(out / "reverse_diffusion.gif", drawn.film)

    per_image = 1000 * drawn.seconds / config.n
    numbers = {"n": config.n, "seconds": drawn.seconds, "ms_per_image": per_image}
    page = out / "samples.png"
    if config.mode == "full" and not conditional:  # no closed form knows the nearest crystal
        pictures.captioned_grid(page, x[:36, 0], [""] * len(x[:36]), "samples, mode full")
        return numbers, ""

    known = (kind, theta) if conditional else ()
    crystals, fit, truth = metrics.crystal_report(x, *known, seed=config.seed)
    pictures.crystal_page(page, x, fit, truth)
    return numbers | crystals, metrics.describe(crystals)


def training_grid(trainer, draw, **settings):
    """Draw the 36 default crystals with the averaged weights into training_samples.png.

    draw(net, run) is the script's own.  settings: of the sampling.
    """
    usual = dict(n=36, sample_batch=36, kind=None, theta=None)
    config = dataclasses.replace(trainer.config, **usual, **settings)
    run = dataclasses.replace(trainer.run, config=config)
    x = data.unit(draw(trainer.ema, run).x)
    condition = conditions(config)
    captions = metrics.captions(condition.kind, condition.cont[:, 1])
    path = trainer.run.out / "training_samples.png"
    pictures.captioned_grid(path, x[:, 0], captions, f"after {trainer.done} steps")
