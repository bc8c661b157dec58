"""A training of crystals as it goes: what it would draw by now, and a film of that."""

import dataclasses
import zipfile

import data
from common import metrics, pictures
from common.crystal_job import conditions
from common.files import write_npz

import numpy as np

FILMED = [8, 9, 10, 11, 24, 25, 26, 27]  # of the default crystals: each type at two angles
FRAMES = 40  # at most, of the film, besides the last


class TrainingSamples:
    """For on_save of a Trainer: the 36 default crystals, of the averaged weights, from one noise.

    training_samples.png shows them all; training.gif how eight of them came to be.  Its frames are
    kept in training_frames.npz, so that a resumed training goes on with its film.

    draw(net, run) is the script's own.  settings: of the sampling.
    """

    def __init__(self, draw, **settings):
        usual = dict(n=36, sample_batch=36, kind=None, theta=None)
        usual |= dict(spacing=data.SPACING, vacancy=0.0, jitter=0.0)
        self.settings = usual | settings
        self.draw = draw
        self.frames = None  # {step: uint8 [8, H, H]}

    def __call__(self, trainer):
        config = dataclasses.replace(trainer.config, **self.settings)
        run = dataclasses.replace(trainer.run, config=config)
        x = data.unit(self.draw(trainer.ema, run).x)
        condition = conditions(config)
        captions = metrics.captions(condition.kind, condition.cont[:, 1])
        path = run.out / "training_samples.png"
        pictures.captioned_grid(path, x[:, 0], captions, f"after {trainer.done:,} steps")

        self.add_frame(trainer, data.to_u8(x[FILMED, 0]))
        kind = condition.kind[FILMED].reshape(2, 4)
        names = [data.KINDS[k] for k in kind[0]] if kind[0].equal(kind[1]) else [""] * 4
        pictures.training_film(run.out / "training.gif", self.frames, names)

    def add_frame(self, trainer, x_u8):
        """Which frames there are is decided by the step alone, not by where a run was stopped."""
        path = trainer.run.out / "training_frames.npz"
        if self.frames is None:
            self.frames = kept_frames(path, trainer.first)
        stride = trainer.config.save_every
        while trainer.done // stride > FRAMES:
            stride *= 2
        kept = {step: x for step, x in self.frames.items() if step % stride == 0}
        self.frames = kept | {trainer.done: x_u8.numpy()}
        x_u8 = np.stack([*self.frames.values()])
        write_npz(path, step=np.array([*self.frames]), x_u8=x_u8)


def kept_frames(path, step):
    """The frames of a training film up to a step: {step: uint8 [8, H, H]}, rising."""
    try:
        with np.load(path) as file:
            frames = zip(file["step"].tolist(), file["x_u8"], strict=True)
            return {at: x for at, x in frames if at <= step}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}  # there are none, or none that can be read
