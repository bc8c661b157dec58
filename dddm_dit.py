"""Distributional diffusion of images: crystals, digits, clothes, photos by a few network calls.

    xhat_j = f(x_t, t, condition, xi_j)         draws from p(x_0 | x_t, condition), j = 1 .. m
    tokens = linear(patches of x_t, their places)
    shift, scale, gate = film(t, condition, xi_j)       steer the blocks of a transformer, a DiT;
                                                        the first --shared of them do not see xi_j

Path, bridge, loss and sampler are those of dddm.py, to be read first: they do not care what x is.

    python dddm_dit.py

draws 36 crystals with the checkpoint that ships, in 8 network calls and about ten seconds on two
CPU cores, and writes samples.png, sampling.gif, samples.npz and metrics.json to
outputs/dddm_dit/default/.

    python dddm_dit.py --kind honeycomb --theta 20deg       36 times the same crystal
    python dddm_dit.py --train --out outputs/mine           train from scratch, then sample
    python dddm_dit.py --data mnist                         digits
    python dddm_dit.py --data mnist --against RUN           a table of two networks by few calls
    python dddm_dit.py --train --data fashion               clothes, from scratch
    python dddm_dit.py --train --config configs/dddm_dit_cifar10.json       for a GPU
    torchrun --standalone --nproc_per_node=2 -- dddm_dit.py --train --particles 4

De Bortoli et al. 2025 (arXiv 2502.02483).  DiT: Peebles and Xie 2023 (2212.09748).
Left out: guidance.
"""

import math
from dataclasses import dataclass
from functools import partial

import data
import dddm
from common import cli, few_calls, runs
from common.blocks import turned_coordinates, waves, zeroed
from common.board import need_package
from common.cli import flag
from common.datasets import DATASETS
from common.image_job import CHANNELS, CLASSES, class_of, epoch, image_grid, source
from common.sampling import sample_images

import torch
import torch.nn.functional as F
from torch import nn

USUAL = {  # what depends on the data, unless it is typed
    "crystals": dict(
        img_size=64, patch=8, width=192, depth=6, heads=3, shared=4, xi_dim=2,
        m=2, batch_size=32, train_steps=10_800, lr=1.5e-3, steps=8, churn=0.25, n=36,
    ),
    "mnist": dict(
        img_size=28, patch=7, width=128, depth=6, heads=2, shared=4, xi_dim=16,
        m=4, batch_size=64, train_steps=12_000, lr=1.5e-3, steps=8, churn=1.0, n=1000,
    ),
    "cifar10": dict(
        img_size=32, patch=4, width=384, depth=8, heads=6, shared=4, xi_dim=64,
        m=8, batch_size=256, train_steps=78_000, lr=1e-4, steps=20, churn=1.0, n=36,
    ),
}  # fmt: skip
USUAL["fashion"] = USUAL["mnist"]


def usual(group, name, help, **more):
    """A flag whose default is looked up in USUAL."""
    values = ", ".join(f"{kind} {row[name]}" for kind, row in USUAL.items())
    return group(None, f"{help} (default: {values})", **more)


@dataclass(kw_only=True)
class Config(dddm.Config):
    script = "dddm_dit"
    mode = "rot-only"  # of crystals; these three are no flags here
    n_types = len(data.KINDS)
    data_path = None

    data: str = flag.model("crystals", "the images", choices=tuple(USUAL))
    img_size: int | None = usual(flag.model, "img_size", "side, in pixels", low=1, high=1024)
    patch: int | None = usual(flag.model, "patch", "side of a token, in pixels", low=1, high=1024)
    width: int | None = usual(flag.model, "width", "features of a token", low=1, high=4096)
    depth: int | None = usual(flag.model, "depth", "transformer blocks", low=1, high=4096)
    heads: int | None = usual(flag.model, "heads", "of the attention", low=1, high=4096)
    shared: int | None = usual(flag.model, "shared", "blocks before xi enters", low=0)
    xi_dim: int | None = usual(flag.model, "xi_dim", "random numbers a draw", low=1, high=4096)

    m: int | None = usual(
        flag.training, "m", "particles an image", low=1, high=1024, also="--particles"
    )
    train_steps: int | None = usual(flag.training, "train_steps", "optimizer steps", low=1)
    batch_size: int | None = usual(flag.training, "batch_size", "images a step", low=1)
    lr: float | None = usual(flag.training, "lr", "learning rate after the warm-up", above=0)

    steps: int | None = usual(flag.sampling, "steps", "network calls a sample", low=1)
    churn: float | None = usual(
        flag.sampling, "churn", "e, the fresh noise: 0 none, 1 as DDPM", low=0, high=1
    )
    n: int | None = usual(flag.sampling, "n", "samples", low=1, also="--n-samples")
    sample_batch: int = flag.sampling(36, "images drawn at a time", low=1)
    kind: str | None = flag.sampling(
        None, "one class, 0 to 9; of crystals a lattice type, 0 to 3 or its name"
    )
    theta: float | None = flag.sampling(
        None, "one angle of crystals, from 0 to 60 degrees: 0.3 (radians), 30deg", parse=cli.angle
    )
    against: str | None = flag.sampling(
        None, "a second network: both by 1, 2, 4, ... calls, and a table", parse=cli.path
    )
    fid: bool = flag.sampling(False, "Inception FID of cifar10; needs torchmetrics[image]")
    data_dir: str = flag.run("data", "folder that holds real images, or will", parse=cli.path)

    def settle(self, typed):
        for key, value in USUAL[self.data].items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        super().settle(typed)

        if self.data in DATASETS:
            self.refuse(typed, "img_size", "theta", because="it is for crystals")
        else:
            self.refuse(typed, "data_dir", because="crystals are rendered, not read")
        if self.width % self.heads:
            raise ValueError(f"--width {self.width} is not divisible by --heads {self.heads}")
        if self.img_size % self.patch:
            size = f"images of {self.img_size} pixels"
            raise ValueError(f"{size} do not divide into patches of --patch {self.patch}")
        if self.kind is not None:
            self.kind = class_of(str(self.kind), self.data)
        if self.steps == 1 and not self.train:
            self.refuse(typed, "churn", because="a single step ends at the data, without noise")
        if self.against:
            why = "--against has numbers of calls, churns and measures of its own"
            self.refuse(typed, "train", "steps", "churn", "fid", because=why)
            if self.n < 2:
                raise ValueError("--against compares distances: they need --n 2 or more")
        if self.fid and (self.data != "cifar10" or self.n < 2):
            raise ValueError("--fid is for two or more images of --data cifar10")
        if self.fid:
            need_package("--fid", "torchmetrics[image]", "torchmetrics", "torch_fidelity")

    def epoch(self):
        return epoch(self) if self.data in DATASETS else super().epoch()


# ------------------------------------------------------------------------------ the network


def attention(q, k, v):
    """softmax(q k^T / sqrt d) v of [N, heads, tokens, d].

    Written out on a CPU, whose fused kernel takes six times as long in bf16.
    """
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v)
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    return scores.softmax(3).to(v.dtype) @ v


def modulated(h, shift, scale):
    """shift + norm(h) (1 + scale)"""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)


class Block(nn.Module):
    """Attention and an MLP on tokens h [N, tokens, width].

    Before each a norm, which the embedding scales and shifts; after each a gate that starts at 0.
    """

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.film = zeroed(nn.Linear(width, 6 * width))  # a new block is the identity

    def forward(self, h, emb):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.film(emb)[:, None].chunk(6, 2)
        qkv = self.qkv(modulated(h, shift1, scale1)).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (N, heads, tokens, d)
        a = attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + gate1 * self.proj(a)

        a = self.up(modulated(h, shift2, scale2))
        return h + gate2 * self.down(F.silu(a))


class DiT(nn.Module):
    """f(x_t, t, condition, xi): m particles [N, m, C, H, H] of images x_t [N, C, H, H].

    A token is patch x patch pixels.  The first `shared` blocks do not see xi [N, m, xi_dim], and
    run once for all particles.  A token knows where it is by its coordinates and a few sines of
    them, turned by the angle of the condition, as in vp_sde.py: that spares the network from
    learning products of position and angle to a hundredth of a pixel.
    """

    def __init__(self, channels, classes, config, rms=1.0):
        super().__init__()
        width = config.width
        self.patch = config.patch
        self.cells = config.img_size // config.patch
        self.classes = classes
        self.shared = config.shared
        self.xi_dim = config.xi_dim
        self.rms = rms
        pixels = channels * self.patch**2

        self.embed = mlp(32 + classes + 16, width)
        self.join = mlp(9 * self.xi_dim, width)
        self.stem = nn.Linear(pixels + 26, width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.film = nn.Linear(width, 2 * width)
        self.out = zeroed(nn.Linear(width, pixels))
        self.skip = zeroed(nn.Linear(width, 1))

    def tokens(self, x):
        """[N, C, H, H] to [N, tokens, C patch^2], patches in reading order."""
        return F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)

    def image(self, tokens):
        """The way back."""
        cells = tokens.transpose(1, 2).unflatten(2, (self.cells, self.cells))
        return F.pixel_shuffle(cells, self.patch)

    def position(self, theta):
        """Turned coordinates of the patches in units of half an image, and sines: [N, tokens, 26].

        Wavelengths from two images down to 8 px, which is less than a lattice spacing.
        """
        half = self.patch * self.cells / 2
        uv = turned_coordinates(theta, self.cells, self.patch, unit=half)
        uv = uv.flatten(2).transpose(1, 2).contiguous()  # (N, tokens, 2)
        sines = waves(uv, math.pi / 2, half / 4 * math.pi, 6)
        return torch.cat([uv, sines.flatten(2)], 2)

    def embedding(self, t, condition, xi):
        """Of time and condition [N, width], and with xi as well [N m, width]."""
        theta = condition.cont[:, 1]
        harmonics = theta[:, None] * torch.arange(1, 9, device=t.device)
        label = F.one_hot(condition.kind, self.classes)
        features = [label, harmonics.sin(), harmonics.cos(), dddm.time_waves(t)]
        emb = self.embed(torch.cat(features, 1))
        late = emb[:, None] + self.join(torch.cat([xi, waves(xi, 0.5, 4, 4).flatten(2)], 2))
        return F.silu(emb), F.silu(late.flatten(0, 1))

    def forward(self, x_t, t, condition, xi):
        m = xi.shape[1]
        with torch.autocast(x_t.device.type, enabled=False):  # positions and angles need all digits
            size, c_skip, c_out = dddm.scalings(x_t, t, self.rms)
            x = x_t / size
            emb, late = self.embedding(t, condition, xi)
            position = self.position(condition.cont[:, 1])

        h = self.stem(torch.cat([self.tokens(x), position], 2)).float()
        for block in self.blocks[: self.shared]:
            h = block(h, emb)
        h = h.repeat_interleave(m, 0)  # from here on every particle goes its own way
        for block in self.blocks[self.shared :]:
            h = block(h, late)
        shift, scale = self.film(late)[:, None].chunk(2, 2)
        out = self.image(self.out(modulated(h, shift, scale))).unflatten(0, (-1, m))

        # What is predicted has to cancel part of the noise in c_skip x_t, pixel by pixel.  A token
        # of few numbers cannot carry that: so x is added, times a number that the network chooses.
        through = self.skip(late).view(-1, m, 1, 1, 1) * x[:, None]
        return (c_skip * x_t)[:, None] + c_out[:, None] * (through + out).float()


def mlp(d_in, width):
    return nn.Sequential(nn.Linear(d_in, width), nn.SiLU(), nn.Linear(width, width))


def build(config):
    return DiT(CHANNELS[config.data], CLASSES[config.data], config)


# ------------------------------------------------------------------------------ the training


def train(net, run):
    images = source(run)
    n = run.config.batch_size
    quick = run.with_settings(n=images.evaluated, steps=8, sample_batch=36, kind=None, theta=None)

    def batch(step):
        return images.batch(step, n)

    def evaluate(ema, step):
        condition = images.conditions(quick.config)
        x = draw(ema, quick, condition).x
        captions = images.captions(condition)
        image_grid(run.out / "training_samples.png", x, captions, f"after {step} steps")
        return images.evaluate(x, condition, run.config.seed)

    return dddm.fit(net, run, batch, evaluate)


# ------------------------------------------------------------------------------ the sampling


def draw(net, run, condition):
    """--n images in [-1, 1] under these conditions, and the film of the first 36."""
    config = run.config

    def trajectory(rows, noise):
        denoise = partial(dddm.learned_draw, net, run, noise, condition=[condition.rows(rows)])
        return dddm.sampler(denoise, next(noise), config.steps, config.churn, noise)

    shape = (CHANNELS[config.data], config.img_size, config.img_size)
    return sample_images(trajectory, shape, config, range(config.steps))


def sample(net, run):
    """The images, and their source, which says before any work that data are missing.

    With --against a dict of images, {name of the network and churn: {calls: x}}.
    """
    images = source(run)
    condition = images.conditions(run.config)
    if not run.config.against:
        return draw(net, run, condition), images

    drawn = {}
    for name, (one, its_run) in few_calls.rivals(net, run, build).items():
        drawn[name] = {}
        for n in few_calls.CALLS:
            drawn[name][n] = draw(one, its_run.with_settings(steps=n), condition).x
    return drawn, images


def report(samples, net, run):
    """samples.png, samples.npz, and the numbers; of crystals a film as well."""
    drawn, images = samples
    if run.config.against:
        return few_calls.report(drawn, images, run)
    return images.report(drawn, run)


def main(argv=None):
    runs.main(Config, build, train, sample, report, argv)


if __name__ == "__main__":
    main()
