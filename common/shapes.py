"""Shapes in the plane: where the components of a mixture stand."""

import numpy as np


def ring(n, radius):
    """n points [n, 2] at equal distances on a circle around 0."""
    angle = 2 * np.pi * np.arange(n) / n
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def letter_s(n):
    """n points [n, 2] at equal distances along a letter S, 4 wide, around 0."""
    angle = np.linspace(np.radians(25), np.radians(270), 2000)
    upper = np.stack([2 * np.cos(angle), 1.35 + 1.35 * np.sin(angle)], axis=1)
    line = np.concatenate([upper, -upper[-2::-1]])  # half a turn makes the lower bowl
    length = np.append(0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
    at = np.linspace(0, length[-1], n)
    return np.stack([np.interp(at, length, line[:, i]) for i in (0, 1)], axis=1)


def named(name):
    """Where the components of a mixture stand, [K, 2], and their standard deviation.

    S: along a letter.  circle: on a ring.  two: two blobs.  Raises ValueError for other names.
    """
    if name == "S":
        return letter_s(48), 0.12
    if name == "circle":
        return ring(24, radius=2), 0.12
    if name == "two":
        return np.array([[3.0, 3.0], [-3.0, 3.0]]), 0.5
    raise ValueError(f"the shape must be S, circle or two, not {name!r}")
