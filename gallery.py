"""Every figure of the README, each made by one command from the checkpoints that ship.

    python gallery.py            which there are
    python gallery.py hero       the first of them, into assets/
    python gallery.py all        all of them

Half a minute or so each on two cores.  Half of them are files that a script writes anyway.
"""

import importlib
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import data
import dddm_dit
import vp_sde
from audits import atoms, pairs, score, score_of_crystals
from audits.networks import opened
from common import cli
from common.checkpoints import SHIPPED
from common.cli import flag
from common.contact_sheet import Row, draw_sheet
from common.files import write_whole
from common.folders import output_folder
from common.metrics import caption
from common.nearest_crystal import crystal_error
from common.pictures import crystal_film, image_film, large
from common.seeds import generator, image_noise
from common.times import film_steps, time_grid

import torch


class Written(NamedTuple):
    """Files that a script writes, and what they are called in assets/."""

    script: str
    words: str  # of its command line
    files: dict

    def draw(self, out, *more):
        """Run the script in a folder that vanishes afterwards, and keep the files."""
        main = importlib.import_module(self.script).main
        with tempfile.TemporaryDirectory() as folder:
            main([*self.words.split(), *more, "--out", folder])
            for there, here in self.files.items():
                write_whole(out / here, Path(folder, there).read_bytes())


PRIORS = {"comparison.png": "priors.png", "reverse_diffusion.gif": "latent_diffusion.gif"}
DDDM = {
    "comparison.png": "dddm_steps.png",
    "samples.png": "dddm_clouds.png",
    "posterior.png": "dddm_posterior.png",
}
WORK = "work_precision.png"
WRITTEN = {
    "samples": Written("vp_sde", "--steps 300 --cfg 1.5", {"samples.png": "samples.png"}),
    "letter": Written("vp_sde_2d", "--shape S", {"reverse_diffusion.gif": "letter.gif"}),
    "latent": Written("vae", "", {"traversal.png": "vae_traversal.png"}),
    "priors": Written("latent_prior", "", PRIORS),
    "dddm": Written("dddm", "", DDDM),
    "digits": Written("vae_gan", "--compare", {"compare.png": "vae_gan.png"}),
    "map": Written("vae_gan", "--scheme simple --z-dim 2", {"map.png": "mnist_map.png"}),
    "work-precision": Written("audit", "--only reference", {WORK: WORK}),
}
SOLVERS = {"sde": "reverse SDE", "ode": "flow, Heun", "dpmpp": "DPM-Solver++"}


def preview(out, ckpt):
    data.main(["--force", "--out", str(out / "crystals.png")])


# ----------------------------------------------------------------------------- one trajectory


@torch.no_grad()
def states(model, condition, sampler="sde", steps=300, w=1.5, keys=None, size=64):
    """Yield (t, x, x0_hat) of a sampler, on the grid of equal log-SNR.

    Crystal i starts from noise keys[i]; by default all start from the same.
    """
    keys = keys or [0] * len(condition.kind)
    noise = image_noise(0, keys, (1, size, size))
    eps = partial(vp_sde.guided_eps, model, condition, w)
    times = time_grid(model.schedule, steps, 0.005, "logsnr")

    yield from vp_sde.SAMPLERS[sampler](eps, next(noise), times, model.schedule, noise)


def last(trajectory):
    """The samples at its end, in [0, 1]: float64 [N, 1, H, H]."""
    *_, (_, x, _) = trajectory
    return data.unit(x).double()


def opened_crystals(ckpt):
    """The network of a checkpoint as a model, and how many pixels its crystals have."""
    net, run = opened(vp_sde, ckpt)
    return vp_sde.Learned(net, run), run.trained.img_size


def each_type(theta):
    """A condition of each type at one angle, or each at its own."""
    cont = torch.zeros(4, 4)
    cont[:, 1] = torch.as_tensor(theta)
    return data.known_condition(torch.arange(4), cont)


# ---------------------------------------------------------------------------- moving pictures


def hero(out, ckpt, steps=300):
    """A crystal of each type grows out of noise.  Every frame brings the same step in log-SNR."""
    model, size = opened_crystals(ckpt)
    condition = each_type([0.15, 0.45, 0.75, 1.0])
    film = list(states(model, condition, steps=steps, keys=[0, 1, 2, 3], size=size))

    times = [t for t, _, _ in film[:-1]]
    shown = film_steps(model.schedule, times, n=38, low=-2.5, high=5.0)
    film = [film[i] for i in sorted(shown)]

    look = dict(names=data.KINDS, smooth=large(film[0][1]))
    crystal_film(out / "reverse_diffusion.gif", film, duration=0.1, hold=2.0, **look)


def sweep(out, ckpt, frames=36):
    """A lattice of each type, while the angle of its condition turns; each type has one noise."""
    model, size = opened_crystals(ckpt)
    film = []
    for theta in torch.linspace(0, data.THETA_MAX, frames):
        x = last(states(model, each_type(theta), "dpmpp", 10, keys=[0, 1, 2, 3], size=size))
        film.append(x)

    words = [f"{60 * i / (frames - 1):.0f}°" for i in range(frames)]
    look = dict(names=data.KINDS, smooth=large(film[0]))
    image_film(out / "theta_sweep.gif", film, words, duration=0.1, hold=1.0, **look)


def melting(out, ckpt, frames=36):
    """A lattice of each type, while vacancies and jitter rise; each type has one noise."""
    net, run = atoms.load(ckpt)
    film, words = [], []
    for share in torch.linspace(0, 1, frames).tolist():
        defects = dict(vacancy=share * data.FULL_VACANCY[1], jitter=share * data.FULL_JITTER[1])
        condition = data.default_conditions(4, theta=0.3, mode="full", **defects)
        film.append(atoms.drawn(net, run, condition, keys=[0, 1, 2, 3]).double())
        words.append(f"missing {defects['vacancy']:.0%}, jitter {defects['jitter']:.2f} px")

    look = dict(names=data.KINDS, smooth=large(film[0]))
    image_film(out / "melting.gif", film, words, duration=0.1, hold=1.0, **look)


# ----------------------------------------------------------------------------- still pictures


def strip(out, ckpt, kind=1, theta=0.3, aspect=1.2, columns=9):
    """A column a time: what was dissolved to t stands above what came back to t.

    No condition says the aspect, so the crystal that comes back has one of its own.
    """
    model, size = opened_crystals(ckpt)
    condition = each_type(theta).rows([kind])
    film = list(states(model, condition, w=1, size=size))

    times = [t for t, _, _ in film[:-1]]
    shown = film_steps(model.schedule, times, n=columns - 2, low=-4.0, high=4.0)
    film = [film[i] for i in sorted(shown)][::-1]  # t rises from left to right

    # The forward process, to the same times.
    truth = 2 * data.render([kind], theta, aspect, img_size=size) - 1
    eps = torch.randn(truth.shape, generator=generator(0, 6), dtype=truth.dtype)
    forward = []
    for t, _, _ in film:
        _, alpha, sigma = model.schedule.at(t)
        forward.append(alpha * truth + sigma * eps)

    there = data.unit(torch.cat(forward))
    back = data.unit(torch.cat([x for _, x, _ in film]))
    predicted = data.unit(torch.cat([x0_hat for _, _, x0_hat in film]))
    rows = [
        Row("forward", there, [f"t = {t:.3f}" for t, _, _ in film]),
        Row("back", back),
        Row("prediction", predicted),
    ]

    about = (
        f"{caption(kind, theta)}.  Forward: a true crystal dissolves, to the right.  Back: from "
        "noise, to the left, to a crystal of its own choice.  Prediction: x_0 as seen from there."
    )
    draw_sheet(out / "strip.png", "There and back", about, rows)


def one_step(out, ckpt, theta=0.3):
    """From pure noise a network can only predict the mean of all that the condition allows."""
    pair = pairs.load(ckpt)
    size = pair.run.trained.img_size
    learned, exact = (
        last(states(model, each_type(theta), steps=1, w=1, size=size))
        for model in (pair.learned, pair.exact)
    )

    rows = [Row("network", learned, data.KINDS), Row("exact mean", exact)]
    about = (
        "Type and angle leave one crystal of three types, which is its own mean.  A rectangular "
        "one may have any aspect: the mean is stripes, and no crystal at all."
    )
    draw_sheet(out / "one_step.png", "One step: a prediction is a mean", about, rows)


def guidance(out, ckpt, theta=0.3, weights=(0, 1, 1.5, 3, 8), steps=100):
    """One noise under more and more guidance."""
    model, size = opened_crystals(ckpt)
    condition = each_type(theta)
    images, captions = [], []
    for w in weights:
        x = last(states(model, condition, steps=steps, w=w, size=size))
        known = (condition.kind, condition.cont[:, 1]) if w else ()  # w = 0 is told nothing
        errors = crystal_error(x, *known).error.tolist()
        images.append(x)
        captions.append([f"w = {w}, error {error:.3f}" for error in errors])

    rows = []
    for k, name in enumerate(data.KINDS):
        row = torch.stack([x[k] for x in images])
        rows.append(Row(name, row, [words[k] for words in captions]))

    about = (
        "w = 0 is told nothing, so all rows agree; w = 1 is what was learned; more pushes away "
        f"from w = 0, too far in the end.  {steps} steps of the reverse SDE; the error is to the "
        "nearest crystal that the condition allows."
    )
    draw_sheet(out / "guidance.png", "Guidance: one noise, five weights", about, rows)


def solvers(out, ckpt, kind=1, theta=0.3, calls=(1, 2, 3, 5, 10, 50)):
    """One noise, three samplers, more and more calls of the network."""
    model, size = opened_crystals(ckpt)
    condition = each_type(theta).rows([kind])
    rows = []
    for sampler, name in SOLVERS.items():
        images, captions = [], []
        for n in calls:
            steps = (n + 1) // 2 if sampler == "ode" else n  # Heun calls twice a step, but the last
            made = 2 * steps - 1 if sampler == "ode" else steps

            x = last(states(model, condition, sampler, steps, 1, size=size))
            error = float(crystal_error(x, [kind], [theta]).error)
            captions.append(f"{made} call{'s' * (made > 1)}, error {error:.3f}")
            images.append(x[0])
        rows.append(Row(name, torch.stack(images), captions))

    about = f"{caption(kind, theta)}, w = 1.  The error is to the nearest crystal of any aspect."
    draw_sheet(out / "solvers.png", "Solvers: one noise, more and more calls", about, rows)


def few_calls(out, ckpt, theta=0.3, calls=(1, 2, 4, 8)):
    """Distributional diffusion draws x_0 instead of its mean: a crystal of each type, by calls."""
    net, run = opened(dddm_dit, SHIPPED / "dddm_dit_crystals.pt")
    condition = each_type(theta)
    rows = []
    for n in calls:
        x = dddm_dit.draw(net, run.with_settings(n=4, steps=n), condition).x
        x = data.unit(x).double()
        errors = crystal_error(x, condition.kind, condition.cont[:, 1]).error.tolist()
        captions = [f"error {error:.3f}" for error in errors]
        rows.append(Row(f"{n} call{'s' * (n > 1)}", x, captions))

    about = "A call draws one of the images that the noisy one may come from, and not their mean."
    draw_sheet(out / "dddm_dit.png", "Few calls: draws instead of means", about, rows)


def audit(out, ckpt):
    """What audit.py draws of learned networks, without its claims."""
    score_of_crystals.draw(pairs.load(ckpt), out)
    score.draw_points(pairs.load(SHIPPED / "vp_sde_2d_S.pt"), out)


def asked_and_found(out, ckpt):
    """Vacancies and jitter that were asked for, and those of the atoms that were found."""
    atoms.draw_asked_and_found(ckpt, out)


# ------------------------------------------------------------------------------ the command

FIGURES = {  # and what they show
    "hero": "a crystal of each type grows out of noise",
    "one-step": "what a network predicts from pure noise: a mean",
    "guidance": "one noise under five weights of guidance",
    "solvers": "one noise, three samplers, 1 to 50 network calls",
    "strip": "a crystal dissolves; the way back, and x_0 as predicted there",
    "sweep": "four lattices while the angle of the condition turns",
    "samples": "36 crystals of the main job beside the nearest true ones",
    "letter": "points that follow a learned score into a letter S",
    "latent": "one latent of the conditional VAE at a time",
    "priors": "three priors of one VAE, under the same conditions",
    "dddm": "few steps of distributional diffusion",
    "few-calls": "the same on crystals, by a transformer",
    "digits": "digits of a VAE, without and with an adversary",
    "map": "a plane of digits",
    "preview": "the data",
    "audit": "learned scores beside exact ones: error by calls, clouds",
    "atoms": "mode full: vacancies and jitter, asked and found",
    "melting": "mode full: one noise, while vacancies and jitter rise",
    "work-precision": "what a score evaluation buys, of each integrator",
}
OWN = {
    "hero": hero,
    "one-step": one_step,
    "guidance": guidance,
    "solvers": solvers,
    "strip": strip,
    "sweep": sweep,
    "few-calls": few_calls,
    "preview": preview,
    "audit": audit,
    "atoms": asked_and_found,
    "melting": melting,
}
OF_FULL = {"atoms", "melting"}  # of the checkpoint of mode full
OF_CRYSTALS = {*OWN, "samples"} - {"preview", "few-calls"}  # these take another --ckpt


@dataclass(kw_only=True)
class Config:
    script = "gallery"

    figures: list | None = flag.run(None, "one or more of these, or all", many="words")
    out: str | None = flag.run(None, "output folder (default: assets/)", parse=cli.path)
    ckpt: str | None = flag.run(None, "of crystals (default: what ships)", parse=cli.path)

    def settle(self, typed):
        self.out = self.out or Path(__file__).parent / "assets"
        self.figures = self.figures or []
        for name in self.figures:
            if name not in (*FIGURES, "all"):
                raise ValueError(f"there is no figure {name!r}: one of {', '.join(FIGURES)}, all")
        if "all" in self.figures:
            there = self.ckpt or (SHIPPED / "vp_sde_full.pt").exists()
            self.figures = [name for name in FIGURES if there or name not in OF_FULL]
        if self.ckpt and not OF_CRYSTALS & {*self.figures}:
            raise ValueError("--ckpt has no effect: it is for figures of crystals")


def draw(name, out, ckpt):
    if name in OWN:
        OWN[name](out, ckpt)
        return
    words = ["--ckpt", str(ckpt)] if name in OF_CRYSTALS else []
    WRITTEN[name].draw(out, *words)


def main(argv=None):
    with cli.program(Config.script):
        config = cli.parse(Config, argv)
        if not config.figures:
            print("\n".join(f"{name:16}{what}" for name, what in FIGURES.items()))
            return

        with output_folder(config.out) as out:
            for name in config.figures:
                shipped = "vp_sde_full.pt" if name in OF_FULL else "vp_sde.pt"
                draw(name, out, config.ckpt or SHIPPED / shipped)
                print(f"{name} in {out}")


if __name__ == "__main__":
    main()
