"""Random numbers that depend on a key, not on the order in which they are drawn."""

from functools import partial

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on the key alone, say (seed, step, 1).

    Zeros at the end of a key do not count.
    """
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def noise_of(generators, shape):
    """Standard normal [N, *shape], row i from generators[i].

    Drawn on the CPU wherever it is used, so that a seed means the same picture on every device.
    """
    return torch.stack([torch.randn(shape, generator=g) for g in generators])


class Noise:
    """Standard normals without end: next(noise) is [N, *shape], noise.draw(other) [N, *other]."""

    def __init__(self, draw, shape):
        self.draw = draw
        self.shape = shape

    def __iter__(self):
        return self

    def __next__(self):
        return self.draw(self.shape)


def image_noise(seed, keys, shape):
    """Normals [N, *shape] without end; those of image i depend on (seed, keys[i]) alone."""
    generators = [generator(seed, key, 2) for key in keys]  # 0 and 1 belong to the training
    return Noise(partial(noise_of, generators), shape)


def point_noise(seed, n, dim=2, rows=slice(None), stream=None):
    """Normals [n, dim] without end: a cloud of points has one generator.

    rows: those that are wanted of the whole cloud.  stream: 1, 2, ... for further clouds.
    """
    key = (seed, 0, 2) if stream is None else (seed, stream, 0, 2)
    g = generator(*key)

    def draw(shape):
        return torch.randn(n, *shape, generator=g)[rows]

    return Noise(draw, (dim,))
