"""Drawing many samples in batches that fit into memory, shared by the processes of torchrun."""

import math
import time
from dataclasses import dataclass

from common.devices import gathered, processes, rank
from common.seeds import image_noise, point_noise
from common.times import evenly, film_steps

import numpy as np
import torch
from tqdm import tqdm


@dataclass
class Drawn:
    """What a sampler has made."""

    x: torch.Tensor  # samples: [N, ...]
    film: list  # at some moments: (t, x_t, x0_hat) of the first 36 images, (t, x_t) of all points
    seconds: float


def batch_bar(total, what, unit):
    """The bar of what takes more than a second.  It leaves nothing behind."""
    hidden = None if rank() == 0 and what else True  # None: where nobody watches
    settings = dict(dynamic_ncols=True, delay=1, leave=False, disable=hidden)
    return tqdm(total=total, desc=what, unit=unit, **settings)


def in_batches(n, size, f, what="decoding"):
    """f(rows) for slices of at most `size` rows, and the results as one tensor [n, ...].

    Several processes share the slices, and all of them get the whole result.  Raises
    FloatingPointError for one that is not finite.
    """
    slices = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    own = slices[rank() :: processes()] if processes() > 1 else slices
    results = []
    with batch_bar(len(own), what, "batch") as bar:
        for rows in own:
            results.append(f(rows))
            bar.update()

    found = merged(results)
    if not found.isfinite().all():
        raise FloatingPointError("what the network returns is not finite: train another")
    return found


def merged(results):
    """The batches of all processes, which were dealt out in turn, in their order."""
    hands = gathered(results)
    count = sum(map(len, hands))
    return torch.cat([hands[i % len(hands)][i // len(hands)] for i in range(count)])


@torch.no_grad()
def sample_images(trajectory, shape, config, times, schedule=None, keys=None):
    """Run a sampler on --n images, --sample-batch at a time: a Drawn.

    trajectory(rows, noise) is a generator of (t, x, x0_hat), the last with t = 0: a sampler on
    these rows of the conditions.  noise: normals [len(rows), *shape] without end, which for image i
    depend on (seed, keys[i]) alone, by default (seed, i).  times: of its steps; the film
    shows some of them, evenly spread in the log-SNR of a schedule, or else in number.  Raises
    FloatingPointError for a state that diverges.
    """
    n = config.n
    calls = len(times)
    shown = film_steps(schedule, times) if schedule else evenly(calls + 1, 33)
    keys = list(range(n)) if keys is None else list(keys)
    film = []
    start = time.perf_counter()
    batches = math.ceil(n / config.sample_batch / processes())
    with batch_bar(batches * calls, "sampling", "step") as bar:

        def draw(rows):
            noise = image_noise(config.seed, keys[rows], shape)
            for i, (t, x, x0_hat) in enumerate(trajectory(rows, noise)):
                check_finite(t, x)
                if rows.start == 0 and i in shown:
                    film.append((t, x[:36].clone(), x0_hat[:36].clone()))
                bar.update(t > 0)
            return x

        x = in_batches(n, config.sample_batch, draw, what=None)
    return Drawn(x, film, time.perf_counter() - start)


@torch.no_grad()
def sample_points(trajectory, config, times, schedule=None):
    """Run a sampler on --n points in the plane: a Drawn, whose film has all of them, in float64.

    trajectory(noise) as for sample_images; every process draws the noise of the whole cloud, which
    has one stream, and works on its own rows.
    """
    n = config.n
    own = np.array_split(np.arange(n), processes())[rank() if processes() > 1 else 0]
    noise = point_noise(config.seed, n, rows=own)
    shown = film_steps(schedule, times) if schedule else evenly(len(times) + 1, 33)
    film = []
    start = time.perf_counter()
    with batch_bar(len(times), "sampling", "step") as bar:
        for i, (t, x, _) in enumerate(trajectory(noise)):
            check_finite(t, x)
            if i in shown:
                film.append((t, x.double()))
            bar.update(t > 0)

    # The clouds of all processes, one after the other.
    hands = gathered([x, *(points for _, points in film)])
    x, *clouds = (torch.cat(parts) for parts in zip(*hands, strict=True))
    film = [(t, cloud.numpy()) for (t, _), cloud in zip(film, clouds, strict=True)]
    return Drawn(x, film, time.perf_counter() - start)


def check_finite(t, x):
    if not x.isfinite().all():
        where = f"the state diverged before t = {t:.4g}"
        raise FloatingPointError(f"{where}: take more --steps, or settings nearer to the defaults")
