"""How a training with evaluations is followed: loss.png, and Weights & Biases with --wandb."""

import importlib.util
from dataclasses import dataclass

from common import options, pictures
from common.cli import flag
from common.devices import rank
from common.runs import settings_of

NUMBERS = ("mmd2", "crystal_error", "mmd2_pixels", "frechet")  # that an evaluation may yield
CURVES = (pictures.LOSS, *((name, name) for name in NUMBERS))  # of loss.png, if they are there
ABOUT_TRAINING = ("step", "loss", "seconds")  # what a line of the log says besides an evaluation


def need_package(flag, package, *modules):
    """Raise ValueError where an optional package is missing.  modules: what it installs."""
    if not all(map(importlib.util.find_spec, modules)):
        raise ValueError(f"{flag} needs a package that is not installed: pip install '{package}'")


@dataclass(kw_only=True)
class BoardFlags(options.Training):
    """The flags of a script whose training can be followed there."""

    wandb: bool = flag.training(False, "log to Weights & Biases as well; needs wandb")
    wandb_project: str = flag.training("dddm", "project there")
    wandb_name: str | None = flag.training(None, "name of the run there")

    def settle(self, typed):
        super().settle(typed)
        if not self.wandb:
            self.refuse(typed, "wandb_project", "wandb_name", because="add --wandb")
        elif self.train:
            need_package("--wandb", "wandb", "wandb")


class Board:
    """A training, followed on Weights & Biases; without --wandb nothing happens.

    WANDB_MODE=offline needs no account.
    """

    def __init__(self, config):
        self.online = None
        self.losses = []  # of this epoch
        if config.wandb and rank() == 0:
            import wandb

            self.epoch = max(1, config.epoch() // config.batch_size)  # in steps
            names = dict(project=config.wandb_project, name=config.wandb_name)
            self.online = wandb.init(**names, config=settings_of(config))

    def follow(self, trainer):
        """To be called after every step: the loss of an epoch, and what the log says."""
        if not self.online:
            return
        step = trainer.done
        self.losses.append(trainer.loss)
        if step % self.epoch == 0:
            mean = sum(self.losses) / len(self.losses)
            self.online.log({"epoch/loss": mean, "epoch/number": step // self.epoch}, step=step)
            self.losses = []

        line = trainer.log[-1] if trainer.log else {}
        if line.get("step") == step:
            numbers = {f"eval/{k}": v for k, v in line.items() if k not in ABOUT_TRAINING}
            self.online.log({"train/loss": line["loss"]} | numbers, step=step)

    def pictures(self, trainer):
        """For on_save of a Trainer: every PNG of the run."""
        if not self.online:
            return
        import wandb

        paths = sorted(trainer.run.out.glob("*.png"))
        images = {f"plots/{path.stem}": wandb.Image(str(path)) for path in paths}
        self.online.log(images, step=trainer.done)
