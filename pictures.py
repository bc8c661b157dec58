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
    """A PNG of tiles [N, H, W] in [0, 1], each with its caption; `rows` may be a tuple of such arrays, side by side."""
    sets = [np.asarray(tiles, dtype=float) for tiles in (rows if isinstance(rows, tuple) else (rows,))]
    between = np.full((*sets[0].shape[:2], 2), np.nan)  # NaN is white
    tiles = np.concatenate([piece for tiles in sets for piece in (between, tiles)][1:], 2)  # (N, H, sets (W + 2) - 2)
    colours, zoom = matplotlib.colormaps["magma"].with_extremes(bad="white"), max(1, round(128 / tiles.shape[1]))
    tiles = colours(tiles.repeat(zoom, 1).repeat(zoom, 2))[..., :3]
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


def loss_curve(path, lines):
    """A PNG of the training loss and, where the log has them, of the held-out loss in bins of t."""
    lines = [line for line in lines if "loss" in line]
    if not lines:
        return
    places = dict(left=0.07, right=0.98, bottom=0.14, top=0.91, wspace=0.16)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), gridspec_kw=places)
    x = [line["step"] for line in lines]
    left.semilogy(x, [line["loss"] for line in lines], color="tab:blue")
    left.set(xlabel="step", ylabel="training loss", title="training loss, mean since the last point")
    bins = lines[-1].get("bins", {})
    for i, name in enumerate(bins):
        right.semilogy(x, [line["bins"][name] for line in lines], color=plt.cm.viridis(i / len(bins)), label=name)
    right.set(xlabel="step", title="held-out score error, by time t (best possible: 0)")
    if bins:
        right.legend(fontsize=7, ncols=2)
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


def unit(x):
    """[-1, 1] to [0, 1], clipped, one channel: float32 [N, H, W]."""
    return ((x[:, 0] + 1) / 2).clamp(0, 1).numpy()
