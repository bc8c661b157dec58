"""A script as small as can be, for the tests of what all scripts share: it learns to draw points.

    python toy.py --train --out outputs/toy
"""

from dataclasses import dataclass

from common import cli, loop, pictures, runs
from common.cli import flag
from common.files import write_npz
from common.options import OneCrystal, Training
from common.sampling import sample_images
from common.seeds import generator

import torch
from torch import nn


@dataclass(kw_only=True)
class Config(OneCrystal, Training):
    script = "toy"

    width: int = flag.model(4, "hidden units", low=1, high=64)
    shape: str = flag.model("ring", "the data", choices=("ring", "dot"))
    train_steps: int = flag.training(12, "optimizer steps", low=1)
    batch_size: int = flag.training(4, "points a step", low=1)
    lr: float = flag.training(0.5, "learning rate after the warm-up", above=0)
    save_every: int = flag.training(4, "steps from checkpoint to checkpoint", low=1)
    data_path: str | None = flag.training(None, "file of points", parse=cli.path)

    steps: int = flag.sampling(3, "network calls", low=1)
    cfg: float = flag.sampling(1.5, "length of a step", low=0)
    t_end: float = flag.sampling(0.5, "not used", above=0, below=1)
    n: int = flag.sampling(6, "samples", low=1, also="--n-samples")
    sample_batch: int = flag.sampling(3, "points drawn at a time", low=1)
    oracle: bool = flag.sampling(False, "no network")

    def settle(self, typed):
        if self.cfg == 0:
            self.refuse(typed, "steps", because="--cfg 0 stands still")

    def epoch(self):
        return len(torch.load(self.data_path)) if self.data_path else 50_000


class Net(nn.Module):
    """Points [N, 2] to points [N, 2]; with a buffer, which counts the calls of a training."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 2))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return self.layers(x)


def build(config):
    return Net(config.width)


def batch(config, points, step):
    """Points [N, 2] of a step: rows of a file, or drawn, on a circle or at one place."""
    g = generator(config.seed, step, 0)
    if points is not None:
        return points[torch.randint(len(points), (config.batch_size,), generator=g)]
    x = torch.randn(config.batch_size, 2, generator=g)
    return nn.functional.normalize(x) if config.shape == "ring" else 0.1 * x + 1


def train(net, run):
    config = run.config
    points = torch.load(config.data_path) if config.data_path else None
    if config.data_path:
        run.check_content("data_path", {"points": points})

    trainer = loop.Trainer(net, run, report_every=3)
    for step in trainer.steps():
        x0 = batch(config, points, step)[trainer.rows].to(run.device)
        loss = (trainer.module(0.5 * x0) - x0).square().mean()
        trainer.update(loss, size=x0.abs().max())
        if trainer.report_due:
            trainer.report(error=1 / trainer.done)
    return trainer.trained()


def sample(net, run):
    config = run.config
    times = [1 - i / config.steps for i in range(config.steps)]

    def trajectory(rows, noise):
        x = next(noise)
        for t in times:
            yield t, x, x
            x = x + config.cfg / config.steps * (net(x) if net else -x)
        yield 0.0, x, x

    return sample_images(trajectory, (2,), config, times)


def report(drawn, net, run):
    write_npz(run.out / "samples.npz", x=drawn.x)
    mean = float(drawn.x.mean())
    return {"mean": mean}, f"their mean is {mean:.3f}"


def main(argv=None):
    runs.main(Config, build, train, sample, report, argv)


if __name__ == "__main__":
    pictures.loss_curve = lambda *args: None  # to load Matplotlib would take longer than all else
    main()
