"""What scripts do with the latents of a VAE of crystals: encode a data set, measure, and draw.

    R^2 = 1 - |z - A w|^2 / |z - mean z|^2,   w by least squares on features A of one factor

One factor at a time: one-hot types, a polynomial of degree 6 in the angle, and of rectangular
crystals one of degree 3 in the aspect.  A latent that were a factor, disentangled, would have 1 in
one place and 0 in the others.
"""

import dataclasses
from typing import NamedTuple

import data
from common import metrics, pictures
from common.checkpoints import checkpoint_file, load_checkpoint, load_weights
from common.crystal_job import TrainingCrystals
from common.devices import autocast
from common.runs import Run, stored_config
from common.sampling import in_batches

import torch
import torch.nn.functional as F

ACTIVE = 0.05  # nats: a latent with more tells the decoder something
RECTANGULAR = 1
ENCODED = 250  # crystals of a training set that are encoded at a time

# ------------------------------------------------------------------------------ a VAE to stand on


def run_of_vae(vae, config, device=None):
    """A Run of the VAE that --vae names, with the sampling flags of this config.

    vae: the script, vae.py.  Raises ValueError where the file is no VAE.
    """
    source = checkpoint_file(config.vae)
    checkpoint = load_checkpoint(source, vae.Config.script, flag="--vae")
    trained = stored_config(vae.Config, checkpoint, source)
    keys = ("n", "kind", "theta", "seed", "precision")
    here = {key: getattr(config, key) for key in keys}
    here["data_path"] = config.data_path or trained.data_path
    there = dataclasses.replace(trained, **here)
    return Run(there, trained, checkpoint, source, folder=None, device=device)


def load_vae(vae, run):
    """The VAE of --vae, frozen, and a Run of it.

    Its weights are rounded as in a file that ships, so that a run and its shipped copy are the same
    VAE.  Raises ValueError where the network of this run was trained on another one.
    """
    of_vae = run_of_vae(vae, run.config, run.device)
    net = vae.build(of_vae.trained)
    load_weights(net, of_vae.checkpoint["ema"], of_vae.source).half()
    run.check_content("vae", net.state_dict())
    return net.float().to(run.device).eval().requires_grad_(False), of_vae


class Latents(NamedTuple):
    """Posteriors of crystals."""

    mu: torch.Tensor  # [N, z_dim]
    log_var: torch.Tensor  # [N, z_dim]
    condition: data.Condition


@torch.no_grad()
def encode_training_set(net, run, n):
    """The Latents of the first n training crystals of a VAE, or of all that are in its file."""
    crystals = TrainingCrystals(run, signed=False)
    z_dim = run.trained.z_dim

    def posteriors(rows):
        x, condition = crystals.examples(rows)
        with autocast(run.device, run.config.precision):
            mu, log_var = net.encode(x.to(run.device), condition.to(run.device))
        columns = [mu.cpu(), log_var.cpu(), condition.cont, condition.kind[:, None]]
        return torch.cat(columns, 1)

    if crystals.source:
        n = len(crystals.source["x_u8"])
    if n < 2:
        raise ValueError("the VAE was trained on one crystal: a prior needs two latents or more")
    table = in_batches(n, ENCODED, posteriors, "encoding")
    mu, log_var, cont, kind = table.split([z_dim, z_dim, 4, 1], 1)
    return Latents(mu, log_var, data.known_condition(kind[:, 0].long(), cont))


# ------------------------------------------------------------------------------ what a latent knows


def r_squared(z, features):
    """Share of the variance of each latent [N, J] that features [N, F] of a factor explain: [J]."""
    A = torch.cat([torch.ones(len(z), 1), features.reshape(len(z), -1)], 1).double()
    z = z.double() - z.double().mean(0)
    residual = z - A @ torch.linalg.lstsq(A, z, driver="gelsd").solution
    total = z.square().sum(0)
    share = 1 - residual.square().sum(0) / total.clamp_min(1e-12)
    return torch.where(total > 1e-12, share, 0.0)  # 0 for a latent that never moves


def latent_table(mu, kl, labels):
    """What each latent knows: its KL in nats, and R^2 by factor; the most active latent first.

    mu [N, J]: posterior means of crystals; kl [J]: nats; labels: of data.crystal_labels.  A dict of
    lists: latent (its number), kl_nats, type, angle, and aspect where a crystal has one.
    """
    kind = labels["kind"]
    angle = labels["theta"] / data.THETA_MAX * 2 - 1  # in [-1, 1]
    powers = torch.arange(1, 7)
    columns = {
        "kl_nats": kl,
        "type": r_squared(mu, F.one_hot(kind, 4)[:, 1:]),
        "angle": r_squared(mu, angle[:, None] ** powers),
    }

    rectangular = kind == RECTANGULAR
    if rectangular.any():
        aspect = labels["aspect"][rectangular] - sum(data.ASPECT) / 2
        columns["aspect"] = r_squared(mu[rectangular], aspect[:, None] ** powers[:3])

    order = kl.argsort(descending=True)
    table = {name: column[order].tolist() for name, column in columns.items()}
    return table | {"latent": order.tolist()}


def describe_table(table) -> str:
    """The active latents, or the first eight, in lines."""
    factors = [name for name in table if name not in ("kl_nats", "latent")]
    active = sum(kl > ACTIVE for kl in table["kl_nats"])
    lines = ["latent   KL/nats" + "".join(f"  R2 {name:8}" for name in factors)]
    for i, j in enumerate(table["latent"][: max(8, active)]):
        shares = "".join(f"{table[name][i]:13.2f}" for name in factors)
        lines.append(f"{j:6}{table['kl_nats'][i]:10.2f}{shares}")
    return "\n".join(lines)


def traversal(base, mu, latents, columns=9):
    """Copies of a code [J] with one latent moved: [len(latents) * columns, J], a row for each.

    It moves across the middle 98 % of its values in mu [N, J].
    """
    quantiles = torch.linspace(0.01, 0.99, columns)
    z = base.repeat(len(latents), columns, 1)  # (rows, columns, J)
    for row, j in zip(z, latents, strict=True):
        row[:, j] = mu[:, j].quantile(quantiles)
    return z.flatten(0, 1)


# ------------------------------------------------------------------------------ the pages


def traversal_page(path, mu, latents, crystals, decode, columns=9):
    """A PNG of one held-out crystal whose latents are moved, one a row.

    mu [N, J]: of the first held-out crystals.  decode(z, condition): images.  It is a rectangular
    crystal, because those have an aspect; the latents move as far as they do among its type where
    the decoder knows the type, else as far as they do at all.
    """
    kind = crystals.held_out_labels(len(mu))["kind"]
    first = int((kind == min(RECTANGULAR, crystals.config.n_types - 1)).nonzero()[0])
    seen = mu if crystals.config.uncond else mu[kind == kind[first]]
    z = traversal(mu[first], seen, latents, columns)
    _, condition = crystals.batch(first, 1, held_out=True)
    tiles = decode(z, condition.rows([0] * len(z)))

    moved = [j for j in latents for _ in range(columns)]
    captions = [f"z{j} = {z[i, j]:.2f}" for i, j in enumerate(moved)]
    title = "one latent moved a row, the others kept: the most active first"
    pictures.captioned_grid(path, tiles[:, 0], captions, title, columns)


def reconstruction_page(path, x, recon, condition):
    """A PNG of held-out images [N, 1, H, H] beside their reconstructions: the first 36."""
    captions = metrics.captions(condition.kind, condition.cont[:, 1])
    title = "left: held out    right: reconstruction"
    pictures.captioned_grid(path, (x[:36, 0], recon[:36, 0]), captions, title)


def held_out_numbers(elbo, kl, error):
    """elbo [N] and kl [N, J] in nats, error [N, 1, H, H] of reconstructions: a dict of numbers."""
    square = error.square()
    numbers = {
        "reconstruction_rmse": square.mean().sqrt(),
        "reconstruction_worst": square.mean((1, 2, 3)).sqrt().max(),
        "elbo_nats": elbo.mean(),
        "kl_nats": kl.sum(1).mean(),
        "active_latents": (kl.mean(0) > ACTIVE).sum(),
    }
    numbers = {name: float(value) for name, value in numbers.items()}
    return {"n_held_out": len(error)} | numbers


def describe_held_out(r) -> str:
    return (
        f"reconstruction RMSE {r['reconstruction_rmse']:.4f}, worst "
        f"{r['reconstruction_worst']:.4f}; bound {r['elbo_nats']:.0f} nats, KL "
        f"{r['kl_nats']:.1f} nats in {r['active_latents']:.0f} latents; n = {r['n_held_out']}"
    )


def prior_pages(out, images, names, condition, config, unconditional=()):
    """For each prior a PNG of its samples beside true crystals: numbers by prior, and words.

    images: {prior: [N, 1, H, H]}; names: {prior: words}.  unconditional: priors whose samples have
    no condition, and are compared with any crystal.  In mode full, where no closed form knows what
    is missing and what is displaced, the samples stand alone, and nothing is measured.
    """
    labels = condition.kind, condition.cont[:, 1]
    numbers = {}
    words = []
    for prior, name in names.items():
        x = images[prior]
        page = out / f"samples_{prior}.png"
        if config.mode == "full":
            captions = metrics.captions(*labels)
            pictures.captioned_grid(page, x[:36, 0], captions, f"samples, {name}")
            continue
        known = () if prior in unconditional else labels
        numbers[prior], fit, truth = metrics.crystal_report(x, *known, seed=config.seed)
        pictures.crystal_page(page, x, fit, truth, f"sample, {name}")
        words.append(f"{name}:\n{metrics.describe(numbers[prior])}")
    return numbers, words


def compare_priors(out, images, names, condition, config, unconditional=()):
    """Priors of one VAE on the same conditions: numbers by prior, and words.

    The arguments are those of prior_pages.  Draws samples.png of the last prior and comparison.png
    of all of them; in mode full only the former, for there is no truth.
    """
    *_, last = names
    labels = condition.kind, condition.cont[:, 1]
    page = out / "samples.png"
    if config.mode == "full":
        captions = metrics.captions(*labels)
        pictures.captioned_grid(page, images[last][:36, 0], captions, f"samples, {names[last]}")
        return {}, ""

    numbers = {}
    words = []
    for prior, name in names.items():
        x = images[prior]
        known = () if prior in unconditional else labels
        numbers[prior], fit, truth = metrics.crystal_report(x, *known, seed=config.seed)
        nearest = metrics.crystal_error(x[:36]) if known else fit  # a slow search: the first 36
        numbers[prior]["error_nearest_of_any"] = float(nearest.error[:36].mean())
        words.append(f"{name}:\n{metrics.describe(numbers[prior])}")

    pictures.crystal_page(page, images[last], fit, truth, f"sample of the {names[last]}")
    sets = [images[prior][:12, 0] for prior in names]
    captions = metrics.captions(fit.kind, fit.theta, fit.aspect)[:12]
    title = f"left to right: {', '.join(names.values())}, and the true crystal nearest to the last"
    page = out / "comparison.png"
    pictures.captioned_grid(page, (*sets, truth[:12, 0]), captions, title, columns=3)
    return numbers, "\n".join([*words, comparison_table(numbers, names)])


def comparison_table(numbers, names) -> str:
    """A line for each prior, and one for true crystals: the floors."""
    columns = {
        "crystal_error_mean": "of condition",
        "error_nearest_of_any": "of any (36)",
        "mass_w1": "mass_w1",
        "fft_radial_l2": "fft_radial_l2",
    }
    mop = numbers["mop"]
    errors = ("crystal_error_mean", "error_nearest_of_any")
    floors = dict.fromkeys(errors, mop["crystal_error_floor"])
    floors |= {key: mop[f"{key}_floor"] for key in ("mass_w1", "fft_radial_l2")}

    head = "".join(f"{title:>14}" for title in columns.values())
    lines = [f"{'crystal error':16}{head}      (n = {mop['n']})"]
    rows = {names[prior]: numbers[prior] for prior in names} | {"true crystals": floors}
    for name, row in rows.items():
        cells = [f"{row[key]:14.5f}" if key in row else f"{'-':>14}" for key in columns]
        lines.append(f"{name:16}{''.join(cells)}")
    return "\n".join(lines)
