"""Random numbers that depend on a key, not on the order in which they are drawn."""

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


def image_noise(seed, keys, shape):
    """Normals [N, *shape] without end; those of image i depend on (seed, keys[i]) alone."""
    generators = [generator(seed, key, 2) for key in keys]  # 0 and 1 belong to the training
    while True:
        yield noise_of(generators, shape)


def point_noise(seed, n, dim=2):
    """Normals [n, dim] without end: a cloud of points has one generator."""
    g = generator(seed, 0, 2)
    while True:
        yield torch.randn(n, dim, generator=g)
