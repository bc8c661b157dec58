"""Networks to be measured, opened from their checkpoints."""

from functools import partial

from common import runs
from common.devices import pick_device, pick_precision


def opened(script, path):
    """The network of a checkpoint of a script (a module), and the Run that samples from it.

    Raises ValueError where the checkpoint is none of this script.
    """
    run = runs.start(script.Config, ["--ckpt", str(path)])
    run.device = pick_device(run.config.device)
    run.config.precision = pick_precision(run.config.precision, run.device)
    make = partial(script.build, run.trained)
    net = runs.seeded(make, run.trained.seed).to(run.device)
    return runs.load_net(net, run), run


def only_known_crystals(trained, path):
    """Raise ValueError for crystals that have no closed form, or not all of the four types."""
    if (trained.mode, trained.n_types) != ("rot-only", 4):
        raise ValueError(f"{path}: no closed form but for rot-only crystals of all four types")
