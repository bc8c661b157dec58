"""The files of a simulated cloud: arrays, frames and their GIF, distances."""

import dataclasses
import math
from pathlib import Path

from common import cli, distances
from common.cli import flag
from common.clouds import write_film
from common.files import whole_file, write_json, write_npz
from common.folders import output_folder, refuse_other_results
from common.numerics import watched
from common.progress import progress

import numpy as np

PLACE = ("out", "config")  # flags that say where, not what
RESULTS = r"(initial|final)\.npy|mixture\.npz|\w+\.json|reverse_diffusion\.gif|frame_\d+\.png"
SHOWN = 10_000  # points, in a frame and in the distances


@dataclasses.dataclass(kw_only=True)
class Files:
    """The flags that decide what is written and where, and the seed."""

    vis_every: int | None = flag.run(
        None, "steps from frame to frame (default: some 40 frames in all)", low=1
    )
    no_frames: bool = flag.run(False, "no pictures and no GIF")
    no_metrics: bool = flag.run(False, "no distances to exact samples")
    seed: int = flag.run(0, "decides every random number", low=0, below=2**63)
    out: str | None = flag.run(
        None, "output folder (default: a name below outputs/)", parse=cli.path, also="--out-dir"
    )
    config: str | None = flag.run(
        None, "JSON file of defaults, such as a run's config.json", parse=cli.path
    )

    def settle(self, typed):
        """Raise ValueError for a flag that was typed and has no effect."""
        if not self.no_frames:
            return
        if "vis_every" in typed:
            raise ValueError("--vis-every has no effect with --no-frames: leave one of them out")
        self.vis_every = None


def write(config, trajectory, mixture):
    """Follow a trajectory to its end, write all that is to be known of it, and say how it went.

    Nothing is written if the integration fails.  Raises ValueError, before any work, where the
    folder cannot be written into, or holds results of other settings.
    """
    settings = dataclasses.asdict(config)
    for name in PLACE:
        del settings[name]

    usual = Path("outputs", config.script, cli.folder_name(config, PLACE))

    with output_folder(config.out or usual) as out:
        refuse_other_results(out, settings, RESULTS)
        start, snapshots, t, x = follow(config, trajectory)

        write_json(out / "config.json", settings)  # first: it says whose files the others are
        write_npy(out / "initial.npy", start)
        write_npy(out / "final.npy", x)
        write_npz(
            out / "mixture.npz", weights=mixture.weights, means=mixture.means, covs=mixture.covs
        )
        if snapshots:
            direction = "forward" if config.forward else "reverse"
            kind = "SDE" if config.sampler == "sde" else "probability flow"
            write_film(out, snapshots, mixture, f"{direction} {kind}")

        report = {}
        if not config.no_metrics:
            report = distances.from_mixture(x[:SHOWN], mixture.marginal(t), config.seed)
            write_json(out / "metrics.json", report)

    if report:
        print(distances.report_lines(report))
    print(f"files in {out}")


def follow(config, trajectory):
    """The start of a trajectory, snapshots (t, x) for a film, and its last t and x."""
    every = config.vis_every or math.ceil(config.steps / 40)
    snapshots = []

    states = progress(watched(trajectory, config.steps), "steps", config.steps + 1)
    with np.errstate(all="ignore"):  # a blow-up is reported once, and better
        for i, (t, x) in enumerate(states):
            if i == 0:
                start = x
            if not config.no_frames and (i % every == 0 or i == config.steps):
                snapshots.append((t, x[:SHOWN].copy()))  # a view would keep all of x alive
    return start, snapshots, t, x


def write_npy(path, array):
    with whole_file(path) as file:
        np.save(file, array)
