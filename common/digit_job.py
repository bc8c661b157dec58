"""What is done with the digits, or clothes, that a VAE has drawn: files, pictures and numbers."""

from typing import NamedTuple

from common import cli, metrics, runs
from common.checkpoints import SHIPPED
from common.classifier import SURE, load_classifier
from common.datasets import DATASETS, load, present
from common.figures import house_style, new_figure, save_figure
from common.files import write_npz
from common.latents import ACTIVE
from common.pictures import grid_image
from common.sampling import in_batches

import torch

SHOWN = 32  # images in a block of a picture: 8 rows of 4
CURVES = (  # of loss.png
    ("squared error per pixel: in training, of test digits", "mse_per_pixel", "held_out_mse"),
    ("what D calls real: 0.5 where it cannot tell", "d_real", "d_fake"),
    ("adaptive weight w of the adversary", "adversarial_weight"),
)


class Drawn(NamedTuple):
    """What a network has drawn, and what became of test images in it."""

    x: torch.Tensor  # samples: [n, 1, 28, 28] in [0, 1]
    digit: torch.Tensor | None  # their conditions [n], where the network has one
    x_hat: torch.Tensor  # reconstructions, from the posterior means
    kl: torch.Tensor  # nats in each latent of each test image: [N, z_dim]
    seconds: float
    run: runs.Run  # whose network it is


def conditions(config):
    """The digit that each sample is to be: --label, or 0 to 9 in turn."""
    if config.label is not None:
        return torch.full((config.n,), config.label)
    return torch.arange(config.n) % 10


def test_digits(config):
    """Test images x [N, 1, 28, 28] in [0, 1] and their labels [N].

    All 10,000 of them, or where the data set is not there, the 32 in the file of the classifier.
    """
    if present(config.data, config.data_dir):
        x_u8, labels = load(config.data, config.data_dir, train=False)
    else:
        held_out = load_classifier(config.classifier, config.data)
        x_u8 = held_out.digits
        labels = held_out.labels
    return x_u8.float() / 255, labels


def report_digits(drawn, run):
    """Write samples and the picture of {scheme: Drawn}, one or two; numbers and words."""
    test, _ = test_digits(run.config)
    held_out = load_classifier(run.config.classifier, run.config.data)
    noun = DATASETS[run.config.data].noun
    numbers = {}
    columns = {}
    for scheme, made in drawn.items():
        numbers[scheme] = measured(made, test, held_out)
        if run.config.compare:  # of a single network config.json says it
            numbers[scheme]["network"] = runs.config_json(made.run)["network"]
        columns[f"test {noun}"] = test
        columns[f"{scheme}: reconstructions"] = made.x_hat
        columns[f"{scheme}: z from N(0, I)"] = made.x

        arrays = {"x": made.x} if made.digit is None else {"x": made.x, "digit": made.digit}
        write_npz(run.out / f"samples_{scheme}.npz", **arrays)
    draw_blocks(run.out / ("compare.png" if len(drawn) > 1 else "samples.png"), columns)

    seconds = sum(made.seconds for made in drawn.values())
    return numbers | {"seconds": seconds}, describe(numbers, noun)


def measured(made, test, held_out):
    """The numbers of one network."""
    numbers = {"n": len(made.x), "seconds": made.seconds}
    numbers |= held_out.measure(made.x, made.digit)
    sharpness = metrics.gradient_energy(made.x_hat) / metrics.gradient_energy(test)
    return numbers | {
        "reconstruction_mse": (made.x_hat - test).square().mean().item(),
        "n_reconstructed": len(test),
        "reconstruction_gradient_energy": sharpness,
        "kl_nats": made.kl.sum(1).mean().item(),
        "active_latents": int((made.kl.mean(0) > ACTIVE).sum()),
        "kl_nats_of_each_latent": made.kl.mean(0).tolist(),
        "real": held_out.real,
    }


# ------------------------------------------------------------------------------ two networks


def opened_pair(build, run):
    """The two networks of --compare: {scheme: (network, its Run)}.

    Sets data of run.config to what both draw, and data_dir to where it lay, if it lies there still
    and not in --data-dir.  Raises ValueError for two that are no pair.
    """
    named = {"simple": run.config.ckpt, "composite": run.config.against}
    pair = {}
    for scheme, path in named.items():
        net, of = runs.opened(path or SHIPPED / f"vae_gan_{scheme}.pt", build, run)
        if of.trained.scheme != scheme:
            raise ValueError(f"{of.source} is of scheme {of.trained.scheme}, not {scheme}")
        pair[scheme] = net, of

    for key in ("data", "z_dim", "cond"):
        values = [getattr(of.trained, key) for _, of in pair.values()]
        if values[0] != values[1]:
            differ = f"{cli.spelt(key)} is {values[0]} and {values[1]}"
            raise ValueError(f"no fair comparison of these two networks: {differ}")
    config = run.config
    config.data = of.trained.data
    if not present(config.data, config.data_dir) and present(config.data, of.trained.data_dir):
        config.data_dir = of.trained.data_dir
    load_classifier(config.classifier, config.data)  # that there is one, before the work
    return pair


# ------------------------------------------------------------------------------ the table


def describe(numbers, noun) -> str:
    """The numbers of one scheme, or of two and their ratio, beside those of real images."""
    first = next(iter(numbers.values()))
    real = first["real"]
    floor = real["frechet_floor"] if first["n"] == real["n_real"] else None  # it depends on n
    rows = [
        ("Frechet distance of samples", "frechet", floor),
        ("their gradient energy / real", "gradient_energy", 1.0),
        (f"share of them with p > {SURE}", "share_sure", real["share_sure"]),
        ("share that are what was asked", "share_correct", real["accuracy"]),
        ("reconstruction MSE per pixel", "reconstruction_mse", 0.0),
        ("gradient energy / real", "reconstruction_gradient_energy", 1.0),
        ("KL, nats", "kl_nats", None),
    ]
    heads = [*numbers, "real"]
    if len(numbers) == 2:
        heads.append("ratio")
    lines = [" " * 32 + "".join(f"{head:>11}" for head in heads)]
    for label, key, of_real in rows:
        values = [scheme[key] for scheme in numbers.values() if key in scheme]
        if not values:  # with one sample, or without conditions
            continue
        ratio = [values[1] / values[0]] if len(values) > 1 and values[0] else []
        lines.append(f"{label:32}" + "".join(map(cell, [*values, of_real, *ratio])))

    return "\n".join([*lines, *footnote(first, real, noun)])


def cell(value):
    return " " * 11 if value is None else f"{value:11.4g}"


def footnote(first, real, noun):
    lines = []
    if "frechet" in first:
        lines.append(
            "Frechet distance: in the features of a classifier held out of training (accuracy "
            f"{real['accuracy']:.1%}),\nto {real['n_real']:,} test {noun}; that of as many "
            f"training {noun} is {real['frechet_floor']:.3g}."
        )
    lines.append(
        f"Drawn: {first['n']:,} samples; reconstructed: {first['n_reconstructed']:,} test {noun}."
    )
    return lines


# ------------------------------------------------------------------------------ pictures


@house_style()
def draw_blocks(path, columns):
    """A PNG of blocks of 8 x 4 images side by side.  columns: {heading: x [N, 1, 28, 28]}."""
    figure = new_figure(2.7 * len(columns), 5.6, layout="constrained")
    axes = figure.subplots(1, len(columns))
    for ax, (heading, x) in zip(axes, columns.items(), strict=True):
        ax.imshow(grid_image(x[:SHOWN, 0].clamp(0, 1).numpy(), columns=4, zoom=2))
        ax.set_title(heading, fontsize=11)
        ax.set_axis_off()
    save_figure(path, figure)


def latent_grid(kl, columns):
    """Latents at evenly spaced quantiles of N(0, 1): equal steps are equal shares of the prior.

    kl: nats in each latent [J].  Two latents span a plane, z_0 to the right and z_1 upwards; else
    the ten with the most nats have a row each, in which the others are 0.  Returns z [rows columns,
    J], the values along a row [columns], and the latents that have a row.
    """
    J = len(kl)
    values = torch.special.ndtri((torch.arange(columns) + 0.5) / columns)
    if J == 2:
        across = values.repeat(columns)
        up = values.flip(0).repeat_interleave(columns)
        return torch.stack([across, up], 1), values, []

    moved = kl.argsort(descending=True).tolist()[:10]
    z = torch.zeros(len(moved), columns, J)
    for row, j in zip(z, moved, strict=True):
        row[:, j] = values
    return z.flatten(0, 1), values, moved


@house_style()
def draw_map(path, kl, decode):
    """A PNG of what the latents mean: a `latent_grid`, which decode(z) turns into images."""
    columns = 20 if len(kl) == 2 else 12
    z, values, moved = latent_grid(kl, columns)
    rows = len(z) // columns
    figure = new_figure(9, 9 * rows / columns + 0.4, layout="constrained")
    ax = figure.subplots()
    x = in_batches(len(z), len(z), lambda rows: decode(z[rows]))
    ax.imshow(grid_image(x[:, 0].numpy(), columns), extent=(0, columns, 0, rows))

    ax.set_xticks(torch.arange(columns) + 0.5, [f"{v:.1f}" for v in values], fontsize=7)
    heights = torch.arange(rows) + 0.5
    if moved:
        names = [f"$z_{{{j}}}$  {kl[j]:.1f} nats" for j in moved]
        ax.set_yticks(rows - heights, names)
        ax.set_xlabel("the latent, at evenly spaced quantiles of N(0, 1); the others are 0")
    else:
        ax.set_yticks(heights, [f"{v:.1f}" for v in values], fontsize=7)
        ax.set_xlabel("$z_0$, at evenly spaced quantiles of N(0, 1)")
        ax.set_ylabel("$z_1$, likewise")
    save_figure(path, figure)
