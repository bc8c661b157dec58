"""Pictures of images: pages of captioned tiles, films, and the curves of a training.

An image is grey, [H, W] in [0, 1], and shown in the colours of magma; or it is [H, W, 3].
"""

import textwrap
from functools import lru_cache

from common import metrics
from common.figures import house_style, new_figure, save_figure
from common.metrics import TILES
from data import unit
from make_gif import save_gif

import numpy as np

# ------------------------------------------------------------------------------ pages of tiles


@house_style()
def captioned_grid(path, tiles, captions, title="", columns=6):
    """A PNG of tiles [N, H, W] or [N, H, W, 3], a caption above each and a title above all.

    tiles may be a tuple of several such sets, of which the i-th tiles stand side by side.
    """
    sets = tiles if isinstance(tiles, tuple) else (tiles,)
    tiles = coloured(side_by_side(sets))  # (n, h, w, 3)
    n, h, w = tiles.shape[:3]
    columns = min(columns, n)
    rows = -(-n // columns)

    # The lay-out, in pixels: a caption takes a line, a line of the title a little less.
    gap = 8
    line = 18
    width = columns * (w + gap)
    headings = textwrap.wrap(title, max(1, width // 7))
    head = 13 + 17 * len(headings) if headings else 0
    height = head + rows * (h + line)

    # One page of pixels with text on it: an axes for every tile would take three times as long.
    page = np.ones((height, width, 3))
    figure = new_figure(width / 100, height / 100)
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x = i % columns * (w + gap) + gap // 2
        y = i // columns * (h + line) + line + head
        page[y : y + h, x : x + w] = tile
        where = (x + w / 2) / width, 1 - (y - 4) / height
        figure.text(*where, caption, fontsize=7, ha="center", va="baseline")
    figure.figimage(page)
    figure.text(0.5, 1 - 8 / height, "\n".join(headings), fontsize=10, ha="center", va="top")
    save_figure(path, figure)


def side_by_side(sets):
    """Sets of tiles as one set of wide tiles, zoomed to about 128 pixels of height.

    Between two tiles there are two columns of NaN.
    """
    sets = [np.asarray(tiles, dtype=float) for tiles in sets]
    n, h, _, *rest = sets[0].shape
    between = np.full((n, h, 2, *rest), np.nan)
    pieces = [sets[0]]
    for tiles in sets[1:]:
        pieces += [between, tiles]
    zoom = max(1, round(128 / h))
    return np.concatenate(pieces, 2).repeat(zoom, 1).repeat(zoom, 2)


def coloured(tiles):
    """Tiles [N, H, W], or [N, H, W, 3] already, as colours [N, H, W, 3]; NaN is white."""
    import matplotlib

    if tiles.ndim == 3:
        magma = matplotlib.colormaps["magma"].with_extremes(bad="white")
        tiles = magma(tiles)[..., :3]
    return np.nan_to_num(tiles, nan=1.0)


def crystal_page(path, x, fit, truth, title="left: sample    right: nearest true crystal"):
    """A page of samples x [N, 1, H, H] in [0, 1], each beside the nearest true crystal.

    fit, truth: of metrics.crystal_report.  It shows the first 36.
    """
    captions = metrics.captions(fit.kind, fit.theta, fit.aspect)
    pairs = x[:TILES, 0], truth[:TILES, 0]
    captioned_grid(path, pairs, captions, title)


# ------------------------------------------------------------------------------ films


@lru_cache
def film_colours(n=32):
    """A few colours of magma, uint8 [n, 3]: with more of them a GIF is larger."""
    with house_style():
        import matplotlib

        magma = matplotlib.colormaps["magma"](np.arange(n) / (n - 1))
    return (magma[:, :3] * 255).round().astype(np.uint8)


def grid_image(tiles, columns, zoom=1):
    """Tiles [N, H, W] in [0, 1] as one picture of 32 colours, uint8 [height, width, 3]."""
    tiles = np.pad(tiles, ((0, -len(tiles) % columns), (1, 1), (1, 1)))
    n, h, w = tiles.shape
    rows = n // columns
    picture = tiles.reshape(rows, columns, h, w).swapaxes(1, 2).reshape(rows * h, columns * w)

    colours = film_colours()
    level = (picture.clip(0, 1) * (len(colours) - 1)).round().astype(int)
    return colours[level].repeat(zoom, 0).repeat(zoom, 1)


def image_film(path, frames, duration=0.08):
    """A GIF of frames [N, 1, H, H] in [0, 1], of which it shows the first 36 images."""
    pictures = []
    for x in frames:
        tiles = np.asarray(x[:TILES, 0])
        pictures.append(grid_image(tiles, min(6, len(tiles))))
    save_gif(pictures, path, duration)


def crystal_film(path, film, duration=0.08):
    """A GIF of the film [(t, x, ...), ...] of a sampler, x in [-1, 1]."""
    image_film(path, [unit(x) for _, x, *_ in film], duration)


def png(image) -> bytes:
    """An image, uint8 [H, W, 3], as the bytes of a PNG."""
    import imageio.v3 as iio

    return iio.imwrite("<bytes>", image, extension=".png")


# ------------------------------------------------------------------------------ curves

# A panel: what its vertical axis measures, and the keys of the log that it shows.
LOSS = ("training loss, mean since the last point", "loss")
BINS = ("held-out score error, by time t (best possible: 0)", "bins")


@house_style()
def loss_curve(path, lines, *panels):
    """A PNG of what a log says, by step: a panel for each (label, key, key, ...).

    lines: the dicts of log.jsonl.  Panels of which they say nothing are left out.
    """
    import matplotlib

    shown = [(label, curves_of(lines, keys)) for label, *keys in panels or (LOSS, BINS)]
    shown = [(label, curves) for label, curves in shown if curves]
    if not shown:
        return

    figure = new_figure(5 * len(shown), 3.6, layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, (label, curves) in zip(axes, shown, strict=True):
        for i, (name, points) in enumerate(curves.items()):
            colour = matplotlib.colormaps["viridis"](i / len(curves))
            ax.plot(*zip(*points, strict=True), ".-", ms=4, color=colour, label=name)

        heights = [value for points in curves.values() for _, value in points]
        scale = "log" if max(heights) > 5 * min(heights) > 0 else "linear"
        ax.set(xlabel="step", ylabel=textwrap.fill(label, 40), yscale=scale)
        if len(curves) > 1:
            ax.legend(fontsize=7, ncols=2)
    save_figure(path, figure)


def curves_of(lines, keys):
    """{name: [(step, value), ...]} of the lines of a log.

    Key "bins" means all numbers of the dict of that name, "bins.0.1" one of them.
    """
    curves = {}
    for line in lines:
        for key in keys:
            outer, _, inner = key.partition(".")
            value = line.get(outer, {})
            values = value if isinstance(value, dict) else {outer: value}
            for name in [inner] if inner else values:
                if name in values:
                    curves.setdefault(name, []).append((line["step"], values[name]))
    return curves
