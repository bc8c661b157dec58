"""Pictures: captioned grids, frames for a GIF, loss curves.  No model in here; files are moved into place whole."""

import io

import matplotlib

matplotlib.use("Agg")  # before pyplot: no window, so it runs on a server as well
import matplotlib.pyplot as plt
import numpy as np

from make_gif import write_whole


def png(image) -> bytes:
    """An image, uint8 [H, W, 3], as the bytes of a PNG."""
    buffer = io.BytesIO()
    plt.imsave(buffer, image, format="png")
    return buffer.getvalue()


def save_figure(path, figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    write_whole(path, buffer.getvalue())


def captioned_grid(path, rows, captions, title="", columns=6):
    """A PNG of tiles [N, H, W], or [N, H, W, 3], in [0, 1], each with its caption.

    `rows` may be a tuple of such arrays, side by side.
    """
    sets = [np.asarray(tiles, dtype=float) for tiles in (rows if isinstance(rows, tuple) else (rows,))]
    between = np.full((*sets[0].shape[:2], 2, *sets[0].shape[3:]), np.nan)
    tiles = np.concatenate([piece for tiles in sets for piece in (between, tiles)][1:], 2)  # (N, H, sets (W + 2) - 2)
    zoom = max(1, round(128 / tiles.shape[1]))
    tiles = tiles.repeat(zoom, 1).repeat(zoom, 2)
    if tiles.ndim == 3:
        tiles = matplotlib.colormaps["magma"].with_extremes(bad="white")(tiles)[..., :3]
    tiles = np.nan_to_num(tiles, nan=1.0)  # what is between is white
    # One page of pixels with text on it: an axes for every tile takes three times as long.
    (n, h, w), gap, line, head = tiles.shape[:3], 8, 18, 30 if title else 0
    width, height = columns * (w + gap), head + -(-n // columns) * (h + line)
    page, figure = np.ones((height, width, 3)), plt.figure(figsize=(width / 100, height / 100), dpi=100)
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x, y = i % columns * (w + gap) + gap // 2, head + i // columns * (h + line) + line
        page[y : y + h, x : x + w] = tile
        figure.text((x + w / 2) / width, 1 - (y - 4) / height, caption, fontsize=7, ha="center", va="baseline")
    figure.figimage(page)
    figure.text(0.5, 1 - 8 / height, title, fontsize=10, ha="center", va="top")
    save_figure(path, figure)


LOSS = "training loss, mean since the last point", "loss"
BINS = "held-out score error, by time t (best possible: 0)", "bins"


def curves_of(lines, keys):
    """{name: [(step, value), ...]} of the lines of a log.  Key "bins" means all of that dict, "bins.0.1" one of it."""
    curves = {}
    for line in lines:
        for outer, _, inner in (key.partition(".") for key in keys if key.partition(".")[0] in line):
            values = line[outer] if isinstance(line[outer], dict) else {outer: line[outer]}
            for name in [inner] if inner else values:
                curves.setdefault(name, []).append((line["step"], values[name]))
    return curves


def loss_curve(path, lines, *panels):
    """A PNG of what a log says, by step: a panel for each (title, key, key ...) of which it says anything."""
    panels = [(title, curves) for title, *keys in panels or (LOSS, BINS) if (curves := curves_of(lines, keys))]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.6), layout="constrained", squeeze=False)
    for ax, (title, curves) in zip(axes[0], panels, strict=True):
        for i, (name, points) in enumerate(curves.items()):
            ax.plot(*zip(*points, strict=True), ".-", ms=4, color=plt.cm.viridis(i / len(curves)), label=name)
        heights = [value for points in curves.values() for _, value in points]
        ax.set(xlabel="step", title=title, yscale="log" if max(heights) > 5 * min(heights) > 0 else "linear")
        if len(curves) > 1:
            ax.legend(fontsize=7, ncols=2)
    save_figure(path, figure)


def grid_image(tiles, columns, zoom=1):
    """Tiles [N, H, W] in [0, 1] as one picture, uint8 [rows H', columns W', 3], in 32 colours to keep GIFs small."""
    tiles = np.pad(tiles, ((0, -len(tiles) % columns), (1, 1), (1, 1)))
    n, h, w = tiles.shape
    picture = tiles.reshape(n // columns, columns, h, w).swapaxes(1, 2).reshape(n // columns * h, columns * w)
    colours = (matplotlib.colormaps["magma"](np.arange(32) / 31)[:, :3] * 255).round().astype(np.uint8)
    return colours[(picture.clip(0, 1) * 31).round().astype(int)].repeat(zoom, 0).repeat(zoom, 1)


def evenly(times, n):
    """Indices of at most n of the times, spread evenly over them, ends included."""
    return set(np.linspace(0, len(times) - 1, min(n, len(times))).round().astype(int).tolist())


def error_by_steps(path, steps, table, floor):
    """A PNG of |MMD^2| against number of steps, rows {name: values}; below `floor` exact samples scatter as well.

    An unbiased estimate of nearly nothing is often negative: those points are hollow.  What is smaller than 3e-6 is
    drawn there.
    """
    figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
    ax.axhspan(3e-6, floor, color="0.92")
    ax.text(1, 3.5e-6, "grey: exact samples scatter as much; hollow: negative", fontsize=8, color="0.4")
    looks = ("#1f4e79", "-o"), ("#2a9d6f", "--^"), ("#e08214", "-s"), ("#b2182b", "--v")
    for (name, values), (colour, line) in zip(table.items(), looks, strict=False):
        heights, negative = np.maximum(np.abs(values), 3e-6), np.asarray(values) < 0
        ax.loglog(steps, heights, line, color=colour, ms=6, label=name)
        ax.loglog(np.asarray(steps)[negative], heights[negative], line[-1], color=colour, ms=6, mfc="white")
    ax.set(xlabel="steps, each one call of the network", ylabel="|MMD$^2$| to the true mixture", ylim=(3e-6, 2))
    ax.set_xticks(steps, steps)
    ax.minorticks_off()
    ax.grid(alpha=0.3, lw=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9)
    save_figure(path, figure)


def clouds(path, columns, gmm):
    """Clouds {title: [n, 2]} in one row, over the contours that hold 50 and 95 % of the true points."""
    reach = 4 * np.sqrt(gmm.eigenvalues.max())
    low, high = gmm.means.min(0) - reach, gmm.means.max(0) + reach
    x_axis, y_axis = (np.linspace(*ends, 161) for ends in zip(low, high, strict=True))
    density = np.exp(gmm.log_prob(np.stack(np.meshgrid(x_axis, y_axis), -1).reshape(-1, 2)))
    ranked = np.sort(density)[::-1]
    levels = ranked[np.searchsorted(np.cumsum(ranked) / ranked.sum(), [0.95, 0.5])]
    size = 2.8 * len(columns), 2.8 * (high[1] - low[1]) / (high[0] - low[0]) + 0.6
    figure, axes = plt.subplots(1, len(columns), figsize=size, layout="constrained")
    for ax, (title, x) in zip(axes, columns.items(), strict=True):
        ax.plot(*x[:2000].T, "o", ms=1.6, mew=0, alpha=0.5, color="#1f4e79")
        ax.contour(x_axis, y_axis, density.reshape(161, 161), levels, colors="#e08214", linewidths=1)
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[], aspect="equal")
        ax.set_title(title, fontsize=9)
    figure.supxlabel("rings: they hold 50 and 95 % of the true points", fontsize=8, color="#e08214")
    save_figure(path, figure)


def posteriors(path, found):
    """Five of the ten posteriors: learned draws above, exact draws below, x_t marked."""
    figure, axes = plt.subplots(2, 5, figsize=(13, 3.7), layout="constrained", sharex=True, sharey=True)
    for column, (t, x_t, learned, exact, std, true) in zip(axes.T, found[1::2], strict=True):
        for ax, x, name, s in zip(column, (learned, exact), ("learned", "exact"), (std, true), strict=True):
            ax.plot(*x[:1000].T, "o", ms=1.8, mew=0, alpha=0.5, color="#1f4e79" if name == "learned" else "#2a9d6f")
            ax.plot(*x_t, "x", color="#b2182b", ms=8)
            ax.set_title(f"{name}, t = {t:.2f}, std {s:.3f}", fontsize=9)
            ax.set_aspect("equal")
    figure.suptitle("Draws of x_0 given one x_t (the cross)", fontsize=11)
    save_figure(path, figure)
