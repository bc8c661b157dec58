"""Every figure of the README, each made by one command from the checkpoints that ship.

    python gallery.py            which there are
    python gallery.py hero       the first of them, into assets/
    python gallery.py all        all of them

Half a minute or so each on two cores.  Most are files that a script writes anyway.
"""

import importlib
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import data
import vp_sde
from audits import pairs, score, score_of_crystals
from audits.networks import opened
from common import cli
from common.checkpoints import SHIPPED
from common.cli import flag
from common.files import write_whole
from common.folders import output_folder
from common.metrics import caption
from common.pictures import captioned_grid, grid_image
from common.sampling import sample_images
from common.seeds import generator
from common.times import evenly, time_grid
from make_gif import save_gif

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


HERO = {"reverse_diffusion.gif": "reverse_diffusion.gif", "samples.png": "samples.png"}
PRIORS = {"comparison.png": "priors.png", "reverse_diffusion.gif": "latent_diffusion.gif"}
DDDM = {
    "comparison.png": "dddm_steps.png",
    "samples.png": "dddm_clouds.png",
    "posterior.png": "dddm_posterior.png",
}
WRITTEN = {
    "hero": Written("vp_sde", "--steps 300 --cfg 1.5", HERO),
    "letter": Written("vp_sde_2d", "--shape S", {"reverse_diffusion.gif": "letter.gif"}),
    "latent": Written("vae", "", {"traversal.png": "vae_traversal.png"}),
    "priors": Written("latent_prior", "", PRIORS),
    "dddm": Written("dddm", "", DDDM),
    "digits": Written("vae_gan", "--compare", {"compare.png": "vae_gan.png"}),
    "map": Written("vae_gan", "--scheme simple --z-dim 2", {"map.png": "mnist_map.png"}),
    "solvers": Written("audit", "--only reference", {"work_precision.png": "audit.png"}),
}


def preview(out, ckpt):
    data.main(["--force", "--out", str(out / "crystals.png")])


# ------------------------------------------------------------------------- figures of its own


def sweep(out, ckpt, frames=36):
    """A lattice of each type, while the angle of its condition turns; each type has one noise."""
    net, run = opened(vp_sde, ckpt)
    n = 4 * frames
    kind = torch.arange(n) % 4
    turn = torch.arange(n) // 4
    condition = data.default_conditions(n)._replace(kind=kind)
    condition.cont[:, 1] = turn / (frames - 1) * data.THETA_MAX

    model = vp_sde.Learned(net, run)
    times = time_grid(net.schedule, 10, 0.005, "logsnr")

    def trajectory(rows, noise):
        eps = partial(vp_sde.guided_eps, model, condition.rows(rows), 1.5)
        return vp_sde.dpmpp_2m(eps, next(noise), times, net.schedule)

    size = run.trained.img_size
    config = run.with_settings(n=n).config
    drawn = sample_images(trajectory, (1, size, size), config, times, keys=kind.tolist())
    rows = data.unit(drawn.x)[:, 0].numpy().reshape(frames, 4, size, size)
    pictures = [grid_image(row, 4, zoom=3) for row in rows]
    save_gif(pictures, out / "theta_sweep.gif", duration=0.1, hold=1.0)


def strip(out, ckpt, kind=1, theta=0.3, aspect=1.2, columns=9):
    """A column a time: what was dissolved to t stands above what came back to t.

    No condition says the aspect, so the crystal that comes back has one of its own.
    """
    net, run = opened(vp_sde, ckpt)
    run = run.with_settings(n=1, kind=kind, theta=theta, steps=300, cfg=1.0)
    film = vp_sde.sample(net, run).film
    film = [film[i] for i in sorted(evenly(len(film), columns))]
    film = film[::-1]  # t rises from left to right

    truth = 2 * data.render([kind], theta, aspect, img_size=run.trained.img_size) - 1
    eps = torch.randn(truth.shape, generator=generator(0, 6), dtype=truth.dtype)
    forward = []
    for t, _, _ in film:
        _, alpha, sigma = net.schedule.at(t)
        forward.append(alpha * truth + sigma * eps)

    back = [x for _, x, _ in film]
    predicted = [x0_hat for _, _, x0_hat in film]
    tiles = data.unit(torch.cat([*forward, *back, *predicted]))[:, 0].numpy()
    captions = [f"{row}, t = {t:.3f}" for row in ("forward", "back", "x0 hat") for t, _, _ in film]
    title = (
        f"{caption(kind, theta)}.  Top: a true crystal dissolves, rightwards.  Middle: back from "
        "noise, leftwards, to a crystal of its own choice.  Bottom: x_0 as predicted there."
    )
    captioned_grid(out / "strip.png", tiles, captions, title, columns)


def audit(out, ckpt):
    """What audit.py draws of learned networks, without its claims."""
    score_of_crystals.draw(pairs.load(ckpt), out)
    score.draw_points(pairs.load(SHIPPED / "vp_sde_2d_S.pt"), out)


# ------------------------------------------------------------------------------ the command

FIGURES = {  # and what they show
    "hero": "36 crystals growing out of noise: the main job",
    "sweep": "four lattices while the angle of the condition turns",
    "strip": "a crystal dissolves; the way back, and x_0 as predicted there",
    "letter": "points that follow a learned score into a letter S",
    "latent": "one latent of the conditional VAE at a time",
    "priors": "three priors of one VAE, under the same conditions",
    "dddm": "few steps of distributional diffusion",
    "digits": "digits of a VAE, without and with an adversary",
    "map": "a plane of digits",
    "preview": "the data",
    "audit": "learned scores beside exact ones: error by calls, clouds",
    "solvers": "what a score evaluation buys, of each integrator",
}
OWN = {"sweep": sweep, "strip": strip, "preview": preview, "audit": audit}
OF_CRYSTALS = {"hero", "sweep", "strip", "audit"}  # these take another --ckpt


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
            self.figures = list(FIGURES)
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
            print("\n".join(f"{name:9}{what}" for name, what in FIGURES.items()))
            return

        with output_folder(config.out) as out:
            for name in config.figures:
                draw(name, out, config.ckpt or SHIPPED / "vp_sde.pt")
                print(f"{name} in {out}")


if __name__ == "__main__":
    main()
