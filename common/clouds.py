"""Pictures of points in the plane, over the mixture that they should fill.

A mixture is passed in as an object, a GaussianMixture of reference_gmm_sde.py.
"""

from common.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    house_style,
    new_figure,
    page_of_pixels,
    pixels,
    save_figure,
)
from common.files import write_whole
from common.progress import progress
from make_gif import pace, save_gif

import numpy as np

NOISE = 3.3  # standard deviations of the noise at t = 1 that a film shows
BAND = 24  # pixels above and below the points, for words


def density_on(mixture, x_axis, y_axis, t=0.0):
    """p_t on a grid [len(y_axis), len(x_axis)], and the two levels whose contours hold 95 and 50 %.

    The levels are such that what lies above has that share of the probability on the grid.
    """
    grid = np.stack(np.meshgrid(x_axis, y_axis), axis=-1)
    density = np.exp(mixture.log_prob(grid.reshape(-1, 2), t))
    ranked = np.sort(density)[::-1]
    share = np.cumsum(ranked) / ranked.sum()
    levels = ranked[np.searchsorted(share, [0.95, 0.5])]
    return density.reshape(len(y_axis), len(x_axis)), levels


# -------------------------------------------------------------------------------- the film


def cloud_frames(snapshots, mixture, label):
    """Yield one image, uint8 [H, W, 3], per snapshot (t, x [N, 2]).

    It shows the cloud and the contours of p_t that it should fill; above them the label, below the
    time and the standard deviation of the noise.  The longer side of the plane has 480 pixels.  The
    view moves along with the middle of p_t, so that no half of it is ever empty; where it does
    move, a small cross marks the origin.
    """
    reach = 4 * np.sqrt(mixture.eigenvalues.max())
    ends = np.stack([mixture.means.min(0) - reach, mixture.means.max(0) + reach])
    middle = ends.mean(0)
    half = np.maximum(ends[1] - middle, NOISE)  # noise and data both fit, and no more
    x_axis, y_axis = (np.linspace(-h, h, 121) for h in half)
    width, height = (480 * half / half.max()).round().astype(int)
    page = height + 2 * BAND

    with house_style():
        figure = page_of_pixels(width, page)
        place = (0, BAND / page, 1, height / page)
        ax = figure.add_axes(place)
        ax.axis("off")
        if np.abs(middle).max() > 0.1:
            ax.plot(0, 0, "+", color="0.7", ms=7, zorder=0)
        look = dict(ms=2.2, mew=0, alpha=0.45, color=BLUE, zorder=3)
        (points,) = ax.plot([], [], "o", **look)
        words = dict(fontsize=11, family="monospace", va="center")
        figure.text(0.04, 1 - BAND / 2 / page, label, **words)
        clock = figure.text(0.04, BAND / 2 / page, "", **words)

    for t, x in snapshots:
        alpha, noise = mixture.schedule.alpha_sigma(t)
        x_0, y_0 = alpha * middle
        density, levels = density_on(mixture, x_0 + x_axis, y_0 + y_axis, t)
        with house_style():
            look = dict(colors=ORANGE, linewidths=[1.0, 1.5])
            lines = ax.contour(x_0 + x_axis, y_0 + y_axis, density, levels, **look)
            ax.set(xlim=x_0 + x_axis[[0, -1]], ylim=y_0 + y_axis[[0, -1]])
            points.set_data(*x.T)
            clock.set_text(f"t = {t:.3f}   noise = {noise:.3f}")
            image = pixels(figure)
            lines.remove()
        yield image


def write_film(folder, snapshots, mixture, label, most=41):
    """Write the frames of the snapshots as frame_0000.png ..., and at most `most` of them as a GIF.

    Returns the path of the GIF, reverse_diffusion.gif.
    """
    import imageio.v3 as iio

    shown = np.linspace(0, len(snapshots) - 1, min(len(snapshots), most)).round()
    movie = []

    frames = cloud_frames(snapshots, mixture, label)
    for i, image in enumerate(progress(frames, "frames", len(snapshots))):
        png = iio.imwrite("<bytes>", image, extension=".png")
        write_whole(folder / f"frame_{i:04d}.png", png)
        if i in shown:
            movie.append(image)
    return save_gif(movie, folder / "reverse_diffusion.gif", pace(len(movie)))


def save_film(folder, snapshots, mixture, label):
    """Write the snapshots as a GIF, reverse_diffusion.gif, and the last of them as samples.png."""
    import imageio.v3 as iio

    frames = cloud_frames(snapshots, mixture, label)
    images = list(progress(frames, "frames", len(snapshots)))
    save_gif(images, folder / "reverse_diffusion.gif", pace(len(images)))
    write_whole(folder / "samples.png", iio.imwrite("<bytes>", images[-1], extension=".png"))


# ------------------------------------------------------------------------- single pictures


@house_style()
def cloud_row(path, columns, mixture):
    """Clouds {title: [n, 2]} in one row, over the contours that hold 50 and 95 % of the truth."""
    reach = 4 * np.sqrt(mixture.eigenvalues.max())
    low = mixture.means.min(0) - reach
    high = mixture.means.max(0) + reach
    x_axis = np.linspace(low[0], high[0], 161)
    y_axis = np.linspace(low[1], high[1], 161)
    density, levels = density_on(mixture, x_axis, y_axis)

    height = 2.8 * (high[1] - low[1]) / (high[0] - low[0]) + 0.6
    figure = new_figure(2.8 * len(columns), height, layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for ax, (title, x) in zip(axes, columns.items(), strict=True):
        ax.plot(*x[:2000].T, "o", ms=1.6, mew=0, alpha=0.5, color=BLUE)
        ax.contour(x_axis, y_axis, density, levels, colors=ORANGE, linewidths=1)
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        ax.set(xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set(visible=True, color="0.8")
        ax.set_title(title, fontsize=9)

    words = "rings: they hold 50 and 95 % of the true points"
    figure.supxlabel(words, fontsize=9, color=ORANGE)
    save_figure(path, figure)


@house_style()
def posterior_pairs(path, found):
    """Posteriors p(x_0 | x_t): learned draws above, exact draws below, a cross at x_t.

    found: (t, x_t [2], learned [n, 2], exact [n, 2], their two standard deviations), of which
    every second one gets a column.
    """
    shown = found[1::2]
    draws = np.concatenate([np.vstack(pair) for _, _, *pair, _, _ in shown])
    crosses = np.stack([x_t for _, x_t, *_ in shown])
    low, high = np.quantile(draws, [0.0005, 0.9995], axis=0)
    low = np.minimum(low, crosses.min(0)) - 0.4
    high = np.maximum(high, crosses.max(0)) + 0.4

    height = 2.5 * (high[1] - low[1]) / (high[0] - low[0]) + 0.3
    figure = new_figure(2.6 * len(shown), 2 * height + 0.35, layout="constrained")
    axes = figure.subplots(2, len(shown), sharex=True, sharey=True, squeeze=False)
    for (above, below), (t, x_t, learned, exact, std, true_std) in zip(axes.T, shown, strict=True):
        draw_posterior(above, learned, x_t, BLUE, f"learned, t = {t:.2f}, std {std:.3f}")
        draw_posterior(below, exact, x_t, GREEN, f"exact, t = {t:.2f}, std {true_std:.3f}")

    axes[0, 0].set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
    figure.suptitle("Draws of $x_0$ given one $x_t$ (the cross)", fontsize=11)
    save_figure(path, figure)


def draw_posterior(ax, x, x_t, colour, title):
    ax.plot(*x[:1000].T, "o", ms=1.8, mew=0, alpha=0.5, color=colour)
    ax.plot(*x_t, "x", color=RED, ms=8)
    ax.set_title(title, fontsize=9)
    ax.set_aspect("equal")
    ax.spines[:].set(visible=True, color="0.8")


@house_style()
def error_by_steps(path, steps, table, floor):
    """|MMD^2| against the number of steps.  table: {name: values}.

    Below `floor` exact samples scatter as much.  An unbiased estimate of nearly nothing is often
    negative: those points are hollow.  What is smaller than 3e-6 is drawn there.
    """
    least = 3e-6
    figure = new_figure(7, 4.8, layout="constrained")
    ax = figure.subplots()
    ax.axhspan(least, floor, color="0.92")
    looks = ((BLUE, "-o"), (GREEN, "--^"), (ORANGE, "-s"), (RED, "--v"))
    for (name, values), (colour, line) in zip(table.items(), looks, strict=False):
        heights = np.maximum(np.abs(values), least)
        negative = np.asarray(values) < 0
        ax.loglog(steps, heights, line, color=colour, ms=6, label=name)
        hollow = dict(color=colour, ms=6, mfc="white")
        ax.loglog(np.asarray(steps)[negative], heights[negative], line[-1], **hollow)

    ax.set(xlabel="steps, each one call of the network", ylim=(least, 2))
    ax.set(ylabel="|MMD$^2$| to the true mixture")
    ax.set_xticks(steps, steps)
    ax.minorticks_off()
    ax.grid()

    words = "grey: exact samples scatter as much; hollow: negative"
    ax.set_title(words, loc="left", fontsize=8, color=GREY)
    figure.legend(ncols=2, loc="outside lower center")
    save_figure(path, figure)
