"""Every figure that the README shows, each made by one command from the checkpoints that ship.

    python gallery.py hero       reverse_diffusion.gif, samples.png   36 crystals growing out of noise: the main job
    python gallery.py sweep      theta_sweep.gif    four lattices, each from one noise, while the angle asked for turns
    python gallery.py strip      strip.png          a crystal dissolves; the way back, and x_0 as predicted there
    python gallery.py letter     letter.gif         points that follow a learned score into a letter S
    python gallery.py latent     vae_traversal.png  one latent of the conditional VAE at a time
    python gallery.py priors     priors.png, latent_diffusion.gif     three priors of one VAE, on the same conditions
    python gallery.py dddm       dddm_*.png         few steps of distributional diffusion
    python gallery.py digits     vae_gan.png, mnist_map.png           two schemes side by side; a plane of digits
    python gallery.py preview    crystals.png       the data
    python gallery.py audit      crystals_error.png, S_clouds.gif, audit.png     from the trials, which take minutes
    python gallery.py all        all of them

replace those in assets/, or go to --out DIR, in half a minute or so each on two cores.  Every GIF is below 4 MB.  Left
out: the numbers, which the scripts that are called here print, and keep when they are run by themselves.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy>=2.2,<3", "matplotlib>=3.10,<4", "imageio>=2.37,<3", "pillow>=11",
#                 "tqdm>=4.66,<5", "pooch>=1.8,<2"]
# ///

import argparse
import sys
import tempfile
from pathlib import Path

import torch

import audit
import data
import dddm
import latent_prior
import metrics
import pictures
import reference_gmm_sde as reference
import training
import vae
import vae_gan
import vp_sde
from make_gif import save_gif, write_whole

# ----------------------------------------------------------------------------------- figures that a script makes anyway


def keep(main, argv, out, **files):
    """Run a script's main in a folder that vanishes afterwards, and keep some of its files: name there = name here."""
    with tempfile.TemporaryDirectory() as folder:
        main([*argv, "--out", folder])
        for there, here in files.items():
            (found,) = Path(folder).glob(f"{there}.*g*")  # a GIF or a PNG
            write_whole(out / f"{here}{found.suffix}", found.read_bytes())


def hero(args, out):
    argv = ["--steps", "300", "--cfg", "1.5", "--ckpt", args.ckpt]
    keep(vp_sde.main, argv, out, reverse_diffusion="reverse_diffusion", samples="samples")


def letter(args, out):
    keep(vp_sde.main, ["--data", "S"], out, reverse_diffusion="letter")


def latent(args, out):
    keep(vae.main, [], out, traversal="vae_traversal")


def priors(args, out):
    keep(latent_prior.main, [], out, comparison="priors", reverse_diffusion="latent_diffusion")


def distributional(args, out):
    keep(dddm.main, [], out, comparison="dddm_steps", samples="dddm_clouds", posterior="dddm_posterior")


def digits(args, out):
    keep(vae_gan.main, ["--compare"], out, compare="vae_gan")
    keep(vae.main, ["--data", "mnist"], out, traversal="mnist_map")


def preview(args, out):
    data.main(["--force", "--out", str(out / "crystals.png")])


def trial(args, out):
    ckpt = ["--ckpt", args.ckpt, str(training.SHIPPED / "vp_sde_S.pt")]
    keep(audit.main, ckpt, out, crystals_error="crystals_error", S_clouds="S_clouds")
    keep(reference.main, ["--audit"], out, audit="audit")


# --------------------------------------------------------------------------------------------------- figures of its own


def settings(**given):
    """What vp_sde.draw wants to know."""
    return argparse.Namespace(**dict(grid="logsnr", t_end=0.005, cfg=1.5, seed=0, sample_batch=36) | given)


def sweep(args, out, frames=36):
    """One noise a lattice type: what changes from frame to frame is the angle alone."""
    model = audit.load(args.ckpt)
    kind, turn = torch.arange(4 * frames) % 4, torch.arange(4 * frames) // 4
    condition = data.asked_for(4 * frames)._replace(kind=kind)
    condition.cont[:, 1] = turn / (frames - 1) * data.THETA_MAX
    shape = (1, *[model.config["img_size"]] * 2)
    sampling = settings(sampler="dpmpp", steps=10)
    x, _ = vp_sde.draw(model.learned, condition, shape, sampling, model.schedule, keys=kind.tolist())
    rows = data.unit(x)[:, 0].numpy().reshape(frames, 4, *shape[1:])
    save_gif([pictures.grid_image(row, 4, zoom=3) for row in rows], out / "theta_sweep.gif", duration=0.1, hold=1.0)


def strip(args, out, kind=1, theta=0.3, aspect=1.2, columns=9):
    """One column a time: what was dissolved to t stands above what came back to t.  No condition tells the aspect."""
    model = audit.load(args.ckpt)
    condition, size = data.asked_for(1, kind, theta), model.config["img_size"]
    sampling = settings(sampler="sde", steps=300, cfg=1.0)
    _, film = vp_sde.draw(model.learned, condition, (1, size, size), sampling, model.schedule)
    film = [film[i] for i in sorted(pictures.evenly(film, columns))][::-1]  # t rises from left to right
    truth = 2 * data.render(condition.kind, condition.cont[:, 1], aspect, img_size=size) - 1
    eps = torch.randn(truth.shape, generator=training.generator(0, 6), dtype=truth.dtype)
    levels = [model.schedule.at(t)[1:] for t, _, _ in film]
    forward = [alpha * truth + sigma * eps for alpha, sigma in levels]
    tiles = torch.cat([*forward, *(x for _, x, _ in film), *(x0_hat for _, _, x0_hat in film)])
    captions = [f"{name}, t = {t:.3f}" for name in ("forward", "back", "x0 hat") for t, _, _ in film]
    title = (f"{metrics.caption(kind, theta)}.  Top: a true crystal dissolves, rightwards.  Middle: back from noise, "
             "leftwards, to a crystal of its own choice.  Bottom: x_0 as predicted there.")
    pictures.captioned_grid(out / "strip.png", data.unit(tiles)[:, 0].numpy(), captions, title, columns)


FIGURES = {"hero": hero, "sweep": sweep, "strip": strip, "letter": letter, "latent": latent, "priors": priors,
           "dddm": distributional, "digits": digits, "preview": preview, "audit": trial}


def main(argv=None):
    parser = training.new_parser("gallery.py", __doc__)
    add = parser.add_argument
    add("figure", choices=[*FIGURES, "all"], help="which one")
    add("--out", default=str(Path(__file__).parent / "assets"), metavar="DIR", help="where to (default: assets)")
    add("--ckpt", default=str(training.SHIPPED / "vp_sde.pt"), metavar="PATH", help="crystals (default: what ships)")
    args = parser.parse_args(argv)
    with training.one_line_errors(parser):
        out = training.make_folder(args.out)
        for figure in FIGURES if args.figure == "all" else [args.figure]:
            FIGURES[figure](args, out)
            print(f"{figure} in {out}")


if __name__ == "__main__":
    sys.exit(main())
