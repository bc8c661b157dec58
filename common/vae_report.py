"""What a report on a VAE of crystals says: pages, and what its latents hold, a table of R^2.

    R^2 = 1 - |z - A w|^2 / |z - mean z|^2,   w by least squares on features A of one factor

One factor at a time: one-hot types, a polynomial of degree 6 in the angle, and of rectangular
crystals one of degree 3 in the aspect.  A latent that were a factor, disentangled, would have 1 in
one place and 0 in the others.
"""

import data
from common import metrics, pictures

import torch
import torch.nn.functional as F

ACTIVE = 0.05  # nats: a latent with more tells the decoder something
RECTANGULAR = 1

# ------------------------------------------------------------------------------ the table


def r_squared(z, features):
    """Share of the variance of each latent [N, J] that features [N, F] of a factor explain: [J]."""
    A = torch.cat([torch.ones(len(z), 1), features.reshape(len(z), -1)], 1).double()
    z = z.double() - z.double().mean(0)
    residual = z - A @ torch.linalg.lstsq(A, z, driver="gelsd").solution
    return 1 - residual.square().sum(0) / z.square().sum(0).clamp_min(1e-12)


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


# ------------------------------------------------------------------------------ the pages


def reconstruction_page(path, x, recon, condition):
    """A PNG of held-out images [N, 1, H, H] beside their reconstructions: the first 36."""
    captions = metrics.captions(condition.kind, condition.cont[:, 1])
    title = "left: held out    right: reconstruction"
    pictures.captioned_grid(path, (x[:36, 0], recon[:36, 0]), captions, title)


def describe_held_out(r) -> str:
    return (
        f"reconstruction RMSE {r['reconstruction_rmse']:.4f}, worst "
        f"{r['reconstruction_worst']:.4f}; bound {r['elbo_nats']:.0f} nats, KL "
        f"{r['kl_nats']:.1f} nats in {r['active_latents']:.0f} latents; n = {r['n_held_out']}"
    )


def prior_page(path, x, condition, config, name, conditional):
    """A PNG of samples [N, 1, H, H] of a prior beside true crystals; numbers, and words.

    conditional: whether a sample is compared with the crystal of its condition, and not of any.  In
    mode full, where there is no closed form, the samples stand alone and nothing is measured.
    """
    kind = condition.kind
    theta = condition.cont[:, 1]
    if config.mode == "full":
        captions = metrics.captions(kind, theta)
        pictures.captioned_grid(path, x[:36, 0], captions, f"samples, {name}")
        return {}, ""
    known = (kind, theta) if conditional else ()
    numbers, fit, truth = metrics.crystal_report(x, *known, seed=config.seed)
    title = f"left: samples, {name}    right: nearest true crystal"
    pictures.crystal_page(path, x, fit, truth, title)
    return numbers, f"{name}:\n{metrics.describe(numbers)}"


def compare_priors(path, images, names, condition, unconditional, seed):
    """Priors of one VAE on the same conditions: numbers by prior, words, and a PNG of 12 crystals.

    images, names: {prior: images [N, 1, H, H]} and {prior: words}, the same priors in the same
    order.  unconditional: priors whose samples have no condition, to be compared with any crystal.
    Also fit and truth, as of metrics.crystal_report, for the last prior.
    """
    kind = condition.kind
    theta = condition.cont[:, 1]
    numbers = {}
    words = []
    for prior, name in names.items():
        x = images[prior]
        known = () if prior in unconditional else (kind, theta)
        numbers[prior], fit, truth = metrics.crystal_report(x, *known, seed=seed)
        nearest = metrics.crystal_error(x[:36]) if known else fit  # a slow search: the first 36
        numbers[prior]["error_nearest_of_any"] = float(nearest.error[:36].mean())
        words.append(f"{name}:\n{metrics.describe(numbers[prior])}")

    sets = [images[prior][:12, 0] for prior in names]
    captions = metrics.captions(fit.kind, fit.theta, fit.aspect)[:12]
    title = f"left to right: {', '.join(names.values())}, and the true crystal nearest to the last"
    pictures.captioned_grid(path, (*sets, truth[:12, 0]), captions, title, columns=3)
    words.append(comparison_table(numbers, names))
    return numbers, "\n".join(words), fit, truth


def comparison_table(numbers, names) -> str:
    """A line for each prior, and one for true crystals: the floors."""
    columns = {
        "crystal_error_mean": "of condition",
        "error_nearest_of_any": "of any (36)",
        "mass_w1": "mass_w1",
        "fft_radial_l2": "fft_radial_l2",
    }
    known = next(row for row in numbers.values() if "mass_w1" in row)
    floor = known["crystal_error_floor"]
    true = {"crystal_error_mean": floor, "error_nearest_of_any": floor}
    true |= {key: known[f"{key}_floor"] for key in ("mass_w1", "fft_radial_l2")}

    head = "".join(f"{title:>14}" for title in columns.values())
    lines = [f"{'crystal error':16}{head}      (n = {known['n']})"]
    rows = {names[prior]: numbers[prior] for prior in names} | {"true crystals": true}
    for name, row in rows.items():
        cells = [f"{row[key]:14.5f}" if key in row else f"{'-':>14}" for key in columns]
        lines.append(f"{name:16}{''.join(cells)}")
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


def traversal_page(path, z, tiles, latents):
    """A PNG of decoded tiles [N, 1, H, H] of a traversal z."""
    columns = len(z) // len(latents)
    moved = [j for j in latents for _ in range(columns)]
    captions = [f"z{j} = {z[i, j]:.2f}" for i, j in enumerate(moved)]
    title = "one latent moved a row, the others kept: the most active first"
    pictures.captioned_grid(path, tiles[:, 0], captions, title, columns)
