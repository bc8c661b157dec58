"""A classifier of digits or clothes: a perceptual loss looks with it, and samples are measured.

    python vae_gan.py --make-classifier     trains the one for measuring, and writes classifier.pt
    python vae_gan.py --make-classifier --data fashion          the one of clothes

Those that ship were held out: no network was trained with them.  Their files also hold what they
say of real images, with which samples are compared, and 32 test images, so that reconstructions
can be seen before a data set is downloaded.
"""

from pathlib import Path
from typing import NamedTuple

from common.blocks import channels_last
from common.checkpoints import SHIPPED, load_checkpoint, load_weights, save_checkpoint
from common.datasets import DATASETS, load
from common.devices import autocast
from common.loop import learning_rate, set_learning_rate
from common.metrics import feature_moments, frechet, gradient_energy
from common.runs import seeded
from common.seeds import generator

import torch
import torch.nn.functional as F
from torch import nn

CLASSIFIERS = {  # the name of the file that ships, and of the script in it
    "mnist": "digit_classifier",
    "fashion": "fashion_classifier",
}
WIDTH = 24  # of the held-out classifier
STEPS = 1500
PERCEPTUAL_WIDTH = 16
PERCEPTUAL_STEPS = 500
N_REAL = 10_000  # real images that it is shown
SURE = 0.9  # an image is surely of a class that gets more than this probability
PART = 250  # images at a time
LEARNING_RATE = 3e-3
KNOWN = ("accuracy", "n_real", "share_sure", "frechet_floor", "gradient_energy")

# ------------------------------------------------------------------------------ the network


class Classifier(nn.Module):
    """Logits [N, 10] of images [N, 1, 28, 28] in [0, 1], and features of two kinds on the way."""

    def __init__(self, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(4, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.head = nn.Linear(98 * width, 64)
        self.out = nn.Linear(64, 10)

    def features(self, x):
        """After each layer: [N, width, 14, 14], [N, 2 width, 7, 7], [N, 2 width, 7, 7]."""
        cells = channels_last(F.pixel_unshuffle(x, 2))
        h1 = F.leaky_relu(self.conv1(cells), 0.1)
        h2 = F.leaky_relu(self.conv2(h1), 0.1)
        h3 = F.leaky_relu(self.conv3(h2), 0.1)
        return [h1, h2, h3]

    def forward(self, x):
        """The logits, and the features that they are a linear function of: [N, 10], [N, 64]."""
        h3 = self.features(x)[-1]
        last = F.leaky_relu(self.head(h3.flatten(1)), 0.1).float()
        return self.out(last), last


def train_classifier(x_u8, labels, seed, width, steps, device, precision, n=128):
    """A classifier of these images, ready to use: it has no gradients of its own.

    x_u8: uint8 [N, 1, 28, 28].  The rows of a step depend on (seed, step).
    """
    net = seeded(lambda: Classifier(width), seed).to(device)
    settings = dict(lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    optimizer = torch.optim.AdamW(net.parameters(), **settings)
    for step in range(steps):
        rows = torch.randint(len(x_u8), (n,), generator=generator(seed, step, 3))
        x = x_u8[rows].to(device).float() / 255
        set_learning_rate(optimizer, learning_rate(step, steps, LEARNING_RATE, warmup=50))

        with autocast(device, precision):
            logits, _ = net(x)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels[rows].to(device)).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def perceptual_network(x_u8, labels, run):
    """The classifier whose features a perceptual loss compares, trained on the same images."""
    config = run.config
    size = (PERCEPTUAL_WIDTH, PERCEPTUAL_STEPS)
    return train_classifier(x_u8, labels, config.seed + 1, *size, run.device, config.precision)


@torch.no_grad()
def classify(net, x):
    """Probabilities [N, 10] and features [N, 64] of images on the CPU, in float32 throughout."""
    parts = [net(part) for part in x.split(PART)]
    logits, features = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return logits.softmax(1), features


# ------------------------------------------------------------------------------ the held-out one


class HeldOut(NamedTuple):
    """The held-out classifier, and what it says of real images."""

    net: Classifier
    real: dict  # numbers of real images, under the names in KNOWN
    mean: torch.Tensor  # of the features of test images: [64]
    cov: torch.Tensor  # [64, 64]
    digits: torch.Tensor  # test images: uint8 [32, 1, 28, 28]
    labels: torch.Tensor  # int64 [32]

    def measure(self, x, digit=None):
        """Numbers of images x [N, 1, 28, 28] in [0, 1]; those that need two have no entry if N = 1.

        digit: the classes that were asked for, int64 [N], if any were.
        """
        probabilities, features = classify(self.net, x)
        best, found = probabilities.max(1)
        numbers = {
            "share_sure": (best > SURE).double().mean().item(),
            "gradient_energy": gradient_energy(x) / self.real["gradient_energy"],
        }
        if len(x) > 1:
            numbers["frechet"] = frechet(features, self.mean, self.cov)
        if digit is not None:
            numbers["share_correct"] = (found == digit).double().mean().item()
        return numbers


def make_classifier(run):
    """Train the held-out classifier, and write it, with what it says of real images.

    Returns those numbers, and what to print.  A seed of its own keeps it apart from every
    perceptual network.
    """
    config = run.config
    x_u8, labels = load(config.data, config.data_dir, train=True)
    test_u8, test_labels = load(config.data, config.data_dir, train=False)
    settings = dict(seed=config.seed + 1000, width=WIDTH)
    how = dict(steps=STEPS, device=run.device, precision=config.precision)
    net = train_classifier(x_u8, labels, **settings, **how).cpu()
    net = net.half().float()  # as it ships

    # What it says of test images, and of training images compared with them: the floor.
    x = test_u8[:N_REAL].float() / 255
    probabilities, features = classify(net, x)
    _, others = classify(net, x_u8[:N_REAL].float() / 255)
    mean, cov = (torch.from_numpy(moment) for moment in feature_moments(features))
    right = probabilities.argmax(1) == test_labels[:N_REAL]
    real = {
        "accuracy": right.double().mean().item(),
        "n_real": len(x),
        "share_sure": (probabilities.amax(1) > SURE).double().mean().item(),
        "frechet_floor": frechet(others, mean, cov),
        "gradient_energy": gradient_energy(x),
    }

    checkpoint = dict(script=CLASSIFIERS[config.data], config=settings, contents={})
    checkpoint |= dict(step=STEPS, seconds=None, real=real, mean=mean, cov=cov)
    checkpoint |= dict(digits=test_u8[:32].clone(), labels=test_labels[:32].clone())
    checkpoint["ema"] = {key: weight.half() for key, weight in net.state_dict().items()}
    save_checkpoint(run.out / "classifier.pt", checkpoint)
    noun = DATASETS[config.data].noun
    return real, f"accuracy {real['accuracy']:.1%} on {real['n_real']:,} test {noun}"


def load_classifier(path=None, of="mnist"):
    """The HeldOut in a file, by default the one that ships.  Raises ValueError for any other.

    of: the data set whose classes it is to know.
    """
    path = Path(path or SHIPPED / f"{CLASSIFIERS[of]}.pt")
    how = f"make one with vae_gan.py --make-classifier --data {of}"
    if not path.is_file():
        raise ValueError(f"there is no classifier {path}: {how}")
    found = load_checkpoint(path)
    if found["script"] != CLASSIFIERS[of]:
        raise ValueError(f"{path} holds no classifier of {DATASETS[of].noun}: {how}")

    try:
        net = Classifier(found["config"]["width"])
        held_out = HeldOut(net, *(found[key] for key in HeldOut._fields[1:]))
        whole = is_whole(held_out)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError):
        whole = False  # whatever the first wrong entry leads to
    if not whole:
        raise ValueError(f"the classifier in {path} is damaged: {how}")
    load_weights(held_out.net, found["ema"], path).eval().requires_grad_(False)
    return held_out


def is_whole(held_out):
    """Whether all that belongs to a held-out classifier is there, in the right shape."""
    n = len(held_out.labels)
    shapes = dict(mean=(64,), cov=(64, 64), digits=(n, 1, 28, 28), labels=(n,))
    shaped = all(tuple(getattr(held_out, key).shape) == shape for key, shape in shapes.items())
    return shaped and all(type(held_out.real[key]) in (int, float) for key in KNOWN)
