"""A picture of images in rows, with headings, names and captions."""

from typing import NamedTuple

from common.figures import house_style, new_figure, save_figure

SIDE = 1.28  # of an image, inches: at 100 dots an inch, twice as large as 64 pixels
GAP = 0.1  # between images
LEFT = 1.25  # room for the names


class Row(NamedTuple):
    """A row of a contact sheet."""

    name: str
    images: object  # [M, 1, H, W] in [0, 1]
    captions: list = ()  # above each image, or none
    heading: str = ""  # above the row


@house_style()
def draw_sheet(path, title, about, rows):
    """Write a PNG of rows of images, under a title and a line about it."""
    columns = max(len(row.images) for row in rows)
    tops = [0.85]  # of each row, inches from the top of the figure
    for row in rows:
        room = 0.62 if row.heading else 0.0
        tops.append(tops[-1] + room + SIDE + GAP)
    width = LEFT + columns * (SIDE + GAP) + 0.15
    height = tops[-1] + 0.12
    figure = new_figure(width, height, facecolor="#10131a")

    def text(x, y, words, **style):
        figure.text(x / width, 1 - y / height, words, **style)

    text(LEFT, 0.42, title, color="white", fontsize=20, weight="bold")
    text(LEFT, 0.66, about, color="#b8c2d2", fontsize=10)
    for row, next_top in zip(rows, tops[1:], strict=True):
        bottom = next_top - GAP
        text(LEFT, bottom - SIDE - 0.36, row.heading, color="#ffb77a", fontsize=11)
        text(LEFT - 0.12, bottom - SIDE / 2, row.name, color="white", ha="right", va="center")
        for i, image in enumerate(row.images):
            x = LEFT + i * (SIDE + GAP)
            place = (x / width, 1 - bottom / height, SIDE / width, SIDE / height)
            axes = figure.add_axes(place)
            axes.imshow(image[0].numpy(), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
            axes.set_axis_off()
            if row.captions:
                axes.set_title(row.captions[i], fontsize=8.5, color="#b8c2d2", pad=4)
    save_figure(path, figure)
