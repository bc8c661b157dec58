"""Which claims a command line of audit.py asks for, in Parts that belong together."""

import importlib
from pathlib import Path

from common import cli
from common.claims import Part

SUBJECTS = {  # and their headings in RESULTS.md
    "reference": "The reference",
    "samplers": "The samplers",
    "score": "Learned scores",
    "atoms": "Mode full: which atoms are there, and where",
    "latents": "VAE and latent prior",
    "dddm": "Distributional diffusion",
}
OWN_RUNS = {"vp_sde": "score", "vp_sde_2d": "score", "latent_prior": "latents"}  # by script

# ------------------------------------------------------------------------------ one subject


def about_formulas(subject):
    module = importlib.import_module(f"audits.{subject}")
    if hasattr(module, "CLAIMS"):
        command = f"python audit.py --quick --only {subject}"
        yield Part(subject, "formulas", module.CLAIMS, command, getattr(module, "draw", None))


def about_network(subject, path, name, command, full):
    module = importlib.import_module(f"audits.{subject}")
    checks, draw = module.about(path)
    yield Part(subject, name, checks, command, draw)
    more = []
    if full and hasattr(module, "at_length"):
        more = module.at_length(path)
    if more:
        yield Part(subject, f"{name}/full", more, f"{command} --full")


def about_shipped(subject, full):
    """Of every checkpoint that ships; where one is missing, it is said."""
    module = importlib.import_module(f"audits.{subject}")
    if not hasattr(module, "NETWORKS"):
        return
    from common.checkpoints import SHIPPED  # it loads torch

    command = f"python audit.py --only {subject}"
    for name in module.NETWORKS:
        if (SHIPPED / name).exists():
            yield from about_network(subject, SHIPPED / name, name, command, full)
        else:
            print(f"there is no {SHIPPED / name}: its claims are left out")


def about_run(path, full):
    """Of a run of one's own.  Raises ValueError where there is no closed form for it."""
    from common.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path)
    script = checkpoint["script"]
    if script not in OWN_RUNS:
        raise ValueError(f"{path} was made by {script}.py, of which no run is measured here")
    subject = OWN_RUNS[script]
    if subject == "score" and checkpoint["config"].get("mode") == "full":
        subject = "atoms"
    command = f"python audit.py --ckpt {cli.quoted(path)}"
    yield from about_network(subject, Path(path), path, command, full)


# ------------------------------------------------------------------------------ the choice


def chosen(config):
    """Yield the Parts that a command line asks for."""
    if config.ckpt:
        for path in config.ckpt:
            yield from about_run(path, config.full)
        return
    subjects = [config.only] if config.only else SUBJECTS
    for subject in subjects:
        yield from about_formulas(subject)
        if not config.quick:
            yield from about_shipped(subject, config.full)
