"""Where images come from, crystals and published ones alike, and how samples of them are measured.

    images = source(run)                        Crystals or Published, by --data
    x, condition = images.batch(step, n)        x [n, C, H, H] in [-1, 1], a data.Condition
"""

import data
from common import crystal_job, metrics, pictures
from common.classifier import CLASSIFIERS, load_classifier
from common.datasets import DATASETS, load, present
from common.files import write_npz
from common.nearest_crystal import crystal_error
from common.seeds import generator

import torch

CHANNELS = {"crystals": 1} | {name: about.channels for name, about in DATASETS.items()}
CLASSES = {"crystals": len(data.KINDS)} | {name: about.classes for name, about in DATASETS.items()}


class Crystals:
    """Rendered on the fly, conditioned on type and angle, and compared with the truth."""

    evaluated = 36  # samples in an evaluation of a training

    def __init__(self, run):
        self.batch = crystal_job.TrainingCrystals(run, signed=True).batch

    def conditions(self, config):
        return crystal_job.conditions(config)

    def captions(self, condition):
        return metrics.captions(condition.kind, condition.cont[:, 1])

    def evaluate(self, x, condition, seed):
        """Numbers of samples, for a line of the log."""
        fit = crystal_error(data.unit(x).double(), condition.kind, condition.cont[:, 1])
        return {"crystal_error": float(fit.error.mean())}

    def floor(self, n, seed):
        """True crystals have no error."""
        return {}

    def real(self, n, seed):
        """n fresh true crystals: [n, 1, H, H] in [-1, 1]."""
        return self.batch(0, n, held_out=True)[0]

    def report(self, drawn, run):
        """Write files and pictures; return the numbers and what to print of them."""
        return crystal_job.report_crystals(drawn, run, film="sampling.gif", duration=0.3)


class Published:
    """Read from --data-dir, conditioned on the class, and compared with real images.

    Digits and clothes are measured by a held-out classifier, even where the data set is not there.
    """

    def __init__(self, run):
        config = run.config
        self.n_classes = CLASSES[config.data]
        self.seed = run.trained.seed
        self.held_out = load_classifier(of=config.data) if config.data in CLASSIFIERS else None
        self.evaluated = 256 if self.held_out else 36
        self.x_u8 = None
        needed = config.train or not self.held_out
        if needed or present(config.data, config.data_dir, train=True):
            self.x_u8, self.labels = load(config.data, config.data_dir, train=True)
            run.check_content("data_dir", {"x_u8": self.x_u8, "labels": self.labels})

    def batch(self, step, n):
        rows = torch.randint(len(self.labels), (n,), generator=generator(self.seed, step, 1))
        return signed(self.x_u8[rows]), of_class(self.labels[rows])

    def conditions(self, config):
        """Image i is of class i modulo their number, or of --kind."""
        if config.kind is not None:
            return of_class(torch.full((config.n,), config.kind))
        return of_class(torch.arange(config.n) % self.n_classes)

    def captions(self, condition):
        return [f"class {k}" for k in condition.kind[: metrics.TILES].tolist()]

    def real(self, n, seed):
        """n of the images, all there are, or none: [n, C, H, H] in [-1, 1]."""
        if self.x_u8 is None:
            return torch.empty(0)
        rows = torch.randperm(len(self.x_u8), generator=generator(seed, 5))[:n]
        return signed(self.x_u8[rows])

    def measured(self, x, real, kind=None):
        """Numbers of samples beside real images; what cannot be measured is left out.

        kind: the classes that were asked for, int64 [N].
        """
        found = {}
        if min(len(x), len(real)) > 1:
            found["mmd2_pixels"] = metrics.pixel_mmd2(x, real)
        if self.held_out and len(x):
            found |= self.held_out.measure(data.unit(x), kind)
        return {name: value for name, value in found.items() if name in MEANING}

    def evaluate(self, x, condition, seed):
        """Numbers of samples, for a line of the log."""
        return self.measured(x, self.real(len(x), seed), condition.kind)

    def floor(self, n, seed):
        """The same of up to n real images beside as many others; nothing where none are there."""
        real = self.real(2 * n, seed)
        half = -(-len(real) // 2)
        return self.measured(real[half:], real[:half])

    def report(self, drawn, run):
        config = run.config
        x = drawn.x
        condition = self.conditions(config)
        theta = condition.cont[:, 1]  # zeros
        write_npz(run.out / "samples.npz", x=data.unit(x), kind=condition.kind, theta=theta)
        title = f"{config.data}, {config.steps} steps"
        image_grid(run.out / "samples.png", x, self.captions(condition), title)

        # Each distance beside its floor, that of real images from other real ones.
        found = self.evaluate(x, condition, config.seed + 1)
        floor = self.floor(config.n, config.seed + 1)
        per_image = 1000 * drawn.seconds / config.n
        numbers = {"n": config.n, "seconds": drawn.seconds, "ms_per_image": per_image}
        lines = []
        for name, value in found.items():
            numbers[name] = value
            line = f"{MEANING[name]} {value:.3g}"
            if name in floor:
                numbers[f"{name}_floor"] = floor[name]
                line += f"   real against real {floor[name]:.3g}"
            lines.append(f"{line}   (n = {config.n})")

        if config.fid:
            everything = signed(self.x_u8)
            numbers["fid"] = metrics.inception_fid(data.unit(x), data.unit(everything))
            lines.append(f"FID {numbers['fid']:.2f} (n = {config.n})")
        return numbers, "\n".join(lines)


MEANING = {
    "crystal_error": "crystal error",
    "mmd2_pixels": "MMD^2 of pixels",
    "frechet": "Frechet distance to 10,000 test images in a classifier's features",
    "share_correct": "share that the classifier takes for what was asked",
}


def source(run):
    """Where the images of --data come from."""
    return Crystals(run) if run.config.data == "crystals" else Published(run)


def image_grid(path, x, captions, title):
    """A PNG of the first 36 of images [N, C, H, H] in [-1, 1]."""
    tiles = data.unit(x[: metrics.TILES]).movedim(1, 3).squeeze(3)
    pictures.captioned_grid(path, tiles.numpy(), captions, title)


def signed(x_u8):
    return x_u8.float() / 127.5 - 1


def class_of(text, name):
    """The class that --kind names, of --data name: a number, or of crystals a type.

    Raises ValueError for what is none.
    """
    if name == "crystals" and text in data.KINDS:
        return data.KINDS.index(text)
    known = [str(k) for k in range(CLASSES[name])]
    if text not in known:
        types = f", or one of {', '.join(data.KINDS)}" if name == "crystals" else ""
        raise ValueError(f"--kind {text}: the classes of {name} are 0 to {known[-1]}{types}")
    return int(text)


def of_class(kind):
    return data.known_condition(kind, torch.zeros(len(kind), 4))


def epoch(config):
    """How many training images there are; where they are still to be downloaded, will be."""
    about = DATASETS[config.data]
    if not present(config.data, config.data_dir, train=True):
        return about.n_train
    return len(load(config.data, config.data_dir, train=True)[1])
