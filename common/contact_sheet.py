"""A picture of images in rows, with headings, names and captions."""

import textwrap
from typing import NamedTuple

from common.figures import GREY, house_style, new_figure, save_figure

SIDE = 1.28  # of an image, inches: at 100 dots an inch, twice as large as 64 pixels
GAP = 0.1  # between images
LEFT = 1.25  # room for the names
CAPTION = 0.2  # and for captions
HEADING = 0.62  # room above a row for its heading and captions


class Row(NamedTuple):
    """A row of a contact sheet."""

    name: str
    images: object  # [M, 1 or 3, H, W] in [0, 1]
    captions: list = ()  # above each image, or none
    heading: str = ""  # above the row


@house_style()
def draw_sheet(path, title, about, rows):
    """Write a PNG of rows of images, under a title and a few words about it."""
    columns = max(len(row.images) for row in rows)
    width = LEFT + columns * (SIDE + GAP) + 0.15
    lines = textwrap.wrap(about, int(13 * (width - LEFT)))
    tops = [0.55 + 0.18 * len(lines)]  # of each row, inches from the top of the figure
    for row in rows:
        room = HEADING if row.heading else CAPTION if row.captions else 0.0
        tops.append(tops[-1] + room + SIDE + GAP)
    height = tops[-1] + 0.12
    figure = new_figure(width, height)

    def text(x, y, words, **style):
        figure.text(x / width, 1 - y / height, words, **style)

    text(LEFT, 0.36, title, fontsize=15, weight="bold")
    text(LEFT, 0.46, "\n".join(lines), fontsize=10, color=GREY, va="top", linespacing=1.25)
    for row, next_top in zip(rows, tops[1:], strict=True):
        bottom = next_top - GAP
        text(LEFT, bottom - SIDE - 0.32, row.heading, fontsize=11)
        text(LEFT - 0.12, bottom - SIDE / 2, row.name, ha="right", va="center")
        for i, image in enumerate(row.images):
            x = LEFT + i * (SIDE + GAP)
            place = (x / width, 1 - bottom / height, SIDE / width, SIDE / height)
            axes = figure.add_axes(place)
            pixels = image.movedim(0, 2).squeeze(2).numpy()
            axes.imshow(pixels, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
            if row.captions:
                axes.set_title(row.captions[i], fontsize=8.5, color=GREY, pad=4)
    save_figure(path, figure)
