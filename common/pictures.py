"""Pictures of images: pages of captioned tiles, films, and the curves of a training.

An image is grey, [H, W] in [0, 1], and shown in the colours of magma; or it is [H, W, 3].
"""

import textwrap
from functools import lru_cache

from common import metrics
from common.figures import (
    BLUE,
    house_style,
    new_figure,
    page_of_pixels,
    pixels,
    save_figure,
)
from common.metrics import TILES
from data import unit
from make_gif import pace, save_gif

import numpy as np
import torch
import torch.nn.functional as F

# ------------------------------------------------------------------------------ pages of tiles


@house_style()
def captioned_grid(path, tiles, captions, title="", columns=6):
    """A PNG of tiles [N, H, W] or [N, H, W, 3], a caption above each and a title above all.

    tiles may be a tuple of several such sets, of which the i-th tiles stand side by side.  columns:
    at most.
    """
    sets = tiles if isinstance(tiles, tuple) else (tiles,)
    tiles = side_by_side([coloured(np.asarray(part, dtype=float)) for part in sets])
    n, h, w = tiles.shape[:3]
    columns = even_columns(n, columns)
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
    figure = page_of_pixels(width, height)
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x = i % columns * (w + gap) + gap // 2
        y = i // columns * (h + line) + line + head
        page[y : y + h, x : x + w] = tile
        where = (x + w / 2) / width, 1 - (y - 4) / height
        figure.text(*where, caption, fontsize=7, ha="center", va="baseline")
    figure.figimage(page)
    figure.text(0.5, 1 - 8 / height, "\n".join(headings), fontsize=10, ha="center", va="top")
    save_figure(path, figure)


def even_columns(n, most=6):
    """Columns for n tiles, so that rows are evenly full: 7 in 2 rows are 4 and 3, not 6 and 1."""
    rows = -(-n // most)
    return -(-n // rows)


def side_by_side(sets):
    """Sets of tiles [N, H, W, 3] as one set of wide tiles, zoomed to about 128 pixels of height.

    Between two tiles there are two white columns.
    """
    n, h = sets[0].shape[:2]
    between = np.ones((n, h, 2, 3))
    pieces = [sets[0]]
    for tiles in sets[1:]:
        pieces += [between, tiles]
    zoom = max(1, round(128 / h))
    return np.concatenate(pieces, 2).repeat(zoom, 1).repeat(zoom, 2)


def coloured(tiles):
    """Tiles [N, H, W], or [N, H, W, 3] already, as colours [N, H, W, 3]."""
    import matplotlib

    return matplotlib.colormaps["magma"](tiles)[..., :3] if tiles.ndim == 3 else tiles


VISIBLE = 0.02  # crystal error from which on one sees what is wrong
MOST = 0.5  # difference in the strongest colour


def crystal_page(path, x, fit, truth, name="sample"):
    """A page of samples x [N, 1, H, H] in [0, 1], each beside the nearest true crystal.

    Where the difference of any is visible, it stands beside them.  fit, truth: of
    metrics.crystal_report.  It shows the first 36.  name: what the samples are.
    """
    x, truth, error = x[:TILES, 0], truth[:TILES, 0], fit.error[:TILES]
    names = metrics.captions(fit.kind, fit.theta, fit.aspect)
    captions = [f"{words}; error {e:.3f}" for words, e in zip(names, error.tolist(), strict=True)]
    sets = [x, truth]
    title = f"{name} | nearest true crystal"
    if error.max() > VISIBLE:
        sets.append(difference(np.asarray(x - truth)))
        title += " | difference (blue: too dark, red: too bright)"
    captioned_grid(path, tuple(sets), captions, title)


@house_style()
def difference(gap):
    """Signed differences [N, H, W] as colours [N, H, W, 3]: 0 is white, a lack blue, excess red."""
    import matplotlib

    return matplotlib.colormaps["RdBu_r"](0.5 + gap / MOST / 2)[..., :3]


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


def image_film(path, frames, words, names=(), smooth=None, duration=None, hold=1.5):
    """A GIF of frames [N, 1, H, H] in [0, 1], of which it shows the first 36 images.

    words: for each frame, below it.  names: of the columns, above them; without names there are at
    most six.  smooth: enlarge this many times, by cubic interpolation; else pixels become squares,
    such that the film is about 400 dots wide.
    """
    pictures = []
    for x, below in zip(frames, words, strict=True):
        tiles = np.asarray(x[:TILES, 0])
        across = len(names) or even_columns(len(tiles))
        if smooth:
            picture = grid_image(enlarged(tiles, smooth), across)
        else:
            picture = grid_image(tiles, across, max(1, round(400 / across / (tiles.shape[2] + 2))))
        bands = [picture, line_of_words(picture.shape[1], [below])]
        if names:
            bands.insert(0, line_of_words(picture.shape[1], names))
        pictures.append(np.concatenate(bands))
    save_gif(pictures, path, duration or pace(len(pictures)), hold)


def enlarged(tiles, zoom):
    """Tiles [N, H, W] so many times as large, by cubic interpolation, with a black margin."""
    x = torch.as_tensor(tiles)[:, None]
    x = F.interpolate(x, scale_factor=zoom, mode="bicubic")
    return F.pad(x, (2, 2, 2, 2))[:, 0].numpy()


@house_style()
def line_of_words(width, words):
    """Words in the middles of as many equal parts of a white line: uint8 [24, width, 3]."""
    figure = page_of_pixels(width, 24)
    for i, word in enumerate(words):
        middle = (i + 0.5) / len(words)
        figure.text(middle, 0.5, word, fontsize=10, ha="center", va="center_baseline")
    return pixels(figure)


def crystal_film(path, film, duration=None, **look):
    """A GIF of the film [(t, x, ...), ...] of a sampler, x in [-1, 1].  look: of image_film."""
    frames = [unit(x) for _, x, *_ in film]
    times = [f"t = {t:.3f}" for t, *_ in film]
    image_film(path, frames, times, duration=duration, **look)


def training_film(path, frames, names):
    """A GIF of frames {step: uint8 [8, H, H]} of a training, in four columns with these names."""
    words = [f"after {step:,} steps" for step in frames]
    x = [tiles[:, None] / 255 for tiles in frames.values()]
    duration = max(pace(len(x)), 0.2)
    image_film(path, x, words, names, large(x[0]), duration, hold=2.5)


def large(x):
    """By how much images have to be enlarged to have 192 pixels a side or more."""
    return -(-192 // x.shape[-1])


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
            colour = matplotlib.colormaps["viridis"](i / len(curves)) if len(curves) > 1 else BLUE
            called = f"t = {name}" if name[0].isdigit() else name
            ax.plot(*zip(*points, strict=True), ".-", ms=4, color=colour, label=called)

        heights = [value for points in curves.values() for _, value in points]
        scale = "log" if max(heights) > 5 * min(heights) > 0 else "linear"
        ax.set(xlabel="step", ylabel=textwrap.fill(label, 40), yscale=scale)
        ax.grid()
        if len(curves) > 1:
            ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))  # beside the curves
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
