"""Matplotlib, imported only where something is drawn, and looking the same for everybody.

One style for all figures: dark ink on white, and five colours that the colour-blind can tell apart.
"""

import contextlib
import io
import os

from common.files import write_whole

import numpy as np

BLUE = "#1f4e79"
ORANGE = "#e08214"
GREEN = "#2a9d6f"
RED = "#b2182b"
PURPLE = "#7b5ea7"
GREY = "0.4"  # of remarks

STYLE = {
    "axes.edgecolor": "0.4",
    "axes.labelcolor": "0.15",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.color": "0.15",
    "xtick.color": "0.3",
    "ytick.color": "0.3",
}


@contextlib.contextmanager
def house_style():
    """Matplotlib in our STYLE, whatever MPLBACKEND or a matplotlibrc say.

    For a with statement, or as a decorator of a function that draws.
    """
    backend = os.environ.pop("MPLBACKEND", None)  # one that is not installed fails on import
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        colours = (BLUE, ORANGE, GREEN, RED, PURPLE)
        matplotlib.rcParams.update(STYLE, **{"axes.prop_cycle": matplotlib.cycler(color=colours)})
        yield


def new_figure(width, height, **settings):
    """An empty figure, width x height inches, at 100 dots an inch, which needs no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, **settings)
    FigureCanvasAgg(figure)
    return figure


def page_of_pixels(width, height):
    """An empty figure of so many pixels."""
    return new_figure((width + 0.01) / 100, (height + 0.01) / 100)  # or rounding would cost one


def pixels(figure):
    """A figure as it looks now: uint8 [H, W, 3]."""
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]


def save_figure(path, figure):
    """Write a figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    write_whole(path, buffer.getvalue())
