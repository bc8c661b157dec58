"""The flags that several scripts share, and what they have to do with one another."""

from dataclasses import dataclass

import data
from common import cli
from common.cli import flag


@dataclass(kw_only=True)
class Training:
    """The flags of every script that trains a network."""

    train: bool = flag.run(False, "train first, then sample from what was trained")
    resume: bool = flag.run(False, "continue the training in --out DIR, with its settings")
    out: str | None = flag.run(
        None, "output folder (default: a name below outputs/)", parse=cli.path
    )
    config: str | None = flag.run(
        None, "JSON file of defaults, such as a run's config.json", parse=cli.path
    )
    ckpt: str | None = flag.run(
        None, "checkpoint file or run folder (default: the one that ships)", parse=cli.path
    )
    seed: int = flag.run(0, "decides every random number", low=0, below=2**63)
    device: str = flag.run("auto", "auto, cpu, cuda or mps; auto takes the fastest")
    precision: str = flag.run(
        "auto", "of the matrix products", choices=("auto", "bf16", "float32")
    )

    train_steps: int = flag.training(1000, "optimizer steps", low=1)
    epochs: int | None = flag.training(None, "passes over the data, for --train-steps", low=1)
    batch_size: int = flag.training(32, "samples a step", low=1)
    lr: float = flag.training(1e-3, "learning rate after the warm-up", above=0)
    save_every: int = flag.training(1000, "steps from checkpoint to checkpoint", low=1)
    ema_decay: float = flag.training(0.999, "of the averaged weights", low=0, below=1)
    use_ema: int = flag.sampling(1, "1: averaged weights; 0: those of the last step", low=0, high=1)

    predicts = None  # what the networks return, where others of their shapes do not
    unsaid = {}  # settings that older checkpoints do not name, and what they were

    @property
    def shipped(self):
        """The checkpoint that ships for these settings; None where no network is needed."""
        return None if getattr(self, "oracle", False) else f"{self.script}.pt"

    def settle(self, typed):
        """Fill in what depends on other flags; raise ValueError for flags that exclude each other.

        typed: the names of the flags on the command line.
        """

    def refuse(self, typed, *keys, because):
        """Raise ValueError if one of these flags, which would have no effect, was typed."""
        for key in keys:
            if key in typed:
                raise ValueError(f"{cli.spelt(key)} has no effect: {because}")

    def epoch(self):
        """How many samples a pass over the data has."""
        return 50_000  # of crystals that are rendered on the fly

    def settle_epochs(self):
        """--epochs is another way to say --train-steps."""
        if self.epochs:
            self.train_steps = max(1, self.epochs * self.epoch() // self.batch_size)


def lattice(text):
    """An argparse type: a lattice type, by its number or its name."""
    if text in data.KINDS:
        return data.KINDS.index(text)
    if text in map(str, range(len(data.KINDS))):
        return int(text)
    raise cli.argparse.ArgumentTypeError(f"must be 0 to 3, or one of {', '.join(data.KINDS)}")


def side(text):
    """An argparse type: the side of an image in pixels."""
    size = cli.number(int, low=16, high=1024)(text)
    if size % 16:
        raise cli.argparse.ArgumentTypeError(f"must be a multiple of 16, not {text}")
    return size


@dataclass(kw_only=True)
class OneCrystal:
    """Flags that ask for one crystal instead of the default conditions."""

    kind: int | None = flag.sampling(
        None, f"one lattice type, 0 to 3 or {', '.join(data.KINDS)}", parse=lattice
    )
    theta: float | None = flag.sampling(
        None, "one angle from 0 to 60 degrees: 0.3 (radians), 30deg", parse=cli.angle
    )

    def check_crystal(self, n_types, mode):
        if self.kind is not None and self.kind >= n_types:
            raise ValueError(f"--kind {self.kind}: the model knows types 0 to {n_types - 1} only")
        if mode == "simple" and self.theta:
            raise ValueError("--theta: crystals of mode simple are not turned")


@dataclass(kw_only=True)
class Crystals(OneCrystal, Training):
    """The flags of every script that learns crystals."""

    mode: str = flag.model("rot-only", "what varies in the data", choices=data.MODES)
    n_types: int = flag.model(4, "lattice types in the data", low=1, high=4)
    img_size: int = flag.model(64, "pixels, a multiple of 16", parse=side)
    data_path: str | None = flag.training(
        None, "file of data.py --build to learn from (default: rendered on the fly)", parse=cli.path
    )

    def settle(self, typed):
        self.check_crystal(self.n_types, self.mode)

    def epoch(self):
        return len(data.load_built(self.data_path)["x_u8"]) if self.data_path else 50_000


FULL = ("spacing", "vacancy", "jitter")  # what mode full varies besides


@dataclass(kw_only=True)
class FullCrystals(Crystals):
    """The same, and the flags that ask for crystals of mode full, which has its own checkpoint."""

    spacing: float = flag.sampling(
        data.SPACING,
        "mode full: lattice constant, px",
        low=data.FULL_SPACING[0],
        high=data.FULL_SPACING[1],
    )
    vacancy: float = flag.sampling(
        0.0,
        "mode full: share of the atoms that is missing",
        low=data.FULL_VACANCY[0],
        high=data.FULL_VACANCY[1],
    )
    jitter: float = flag.sampling(
        0.0,
        "mode full: standard deviation of their displacements, px",
        low=data.FULL_JITTER[0],
        high=data.FULL_JITTER[1],
    )

    @property
    def shipped(self):
        name = super().shipped
        return f"{self.script}_full.pt" if name and self.mode == "full" else name

    def settle(self, typed):
        super().settle(typed)
        if self.mode != "full":
            self.refuse(typed, *FULL, because=f"crystals of mode {self.mode} do not vary it")
