"""What several networks are built from."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def expand_like(v, x):
    """[N] to [N, 1, 1, ...]: one number per sample, ready to multiply x."""
    return v.reshape(-1, *[1] * (x.ndim - 1))


def waves(v, low, high, n):
    """sin and cos of v at n frequencies, spaced geometrically from low to high: [..., 2 n]."""
    frequencies = torch.logspace(math.log10(low), math.log10(high), n, device=v.device)
    angle = v[..., None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], -1)


def channels_last(h):
    """The memory layout that CPU matrix units prefer, and that pixel_shuffle undoes."""
    return h.contiguous(memory_format=torch.channels_last)


def zeroed(layer):
    """The layer, with weight and bias 0: what ends in it adds nothing at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Two 3x3 convolutions with FiLM between: the embedding scales and shifts every channel."""

    def __init__(self, width, d_emb, groups=4):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width)
        self.norm2 = nn.GroupNorm(groups, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(d_emb, 2 * width)
        zeroed(self.conv2)  # a new block is the identity

    def forward(self, h, emb):
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, 1)
        r = self.norm2(self.conv1(F.silu(self.norm1(h))))
        return h + self.conv2(F.silu(torch.addcmul(shift, r, 1 + scale)))  # shift + r (1 + scale)


def turned_coordinates(theta, cells, size, unit):
    """Centres of a grid of cells, from the image centre, turned by theta [N]: [N, 2, cells, cells].

    A cell is `size` pixels wide; lengths come in units of `unit` pixels, a number or [N].  Pixel i
    has its centre at coordinate i, so a cell of pixels 0 to 3 has its centre at 1.5.
    """
    first = (size - 1) / 2
    centre = size * torch.arange(cells, device=theta.device) + first - size * cells / 2
    y = centre[:, None]
    x = centre[None, :]
    cos = (theta.cos() / unit)[:, None, None]
    sin = (theta.sin() / unit)[:, None, None]
    return torch.stack([cos * x + sin * y, cos * y - sin * x], 1)
