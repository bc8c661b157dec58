"""Matplotlib, imported only where something is drawn, and looking the same for everybody."""

import contextlib
import io
import os

from common.files import write_whole


@contextlib.contextmanager
def house_style():
    """Matplotlib with its own defaults, whatever MPLBACKEND or a matplotlibrc say.

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
        yield


def new_figure(width, height, **settings):
    """An empty figure of so many inches, at 100 dots an inch, which needs no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, **settings)
    FigureCanvasAgg(figure)
    return figure


def save_figure(path, figure):
    """Write a figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    write_whole(path, buffer.getvalue())
