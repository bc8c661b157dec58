"""Frames of a film, read from a folder."""

import io
import re
from itertools import pairwise
from pathlib import Path

from common.files import read_regular

import numpy as np


def read_frames(folder):
    """The images frame_<number>.png of a folder in numeric order: a list of uint8 [H, W, 3].

    Raises ValueError if there are none, if a number is missing or double, or if a file is no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found = []
    for path in folder.iterdir():
        match = re.fullmatch(r"frame_([0-9]+)\.png", path.name)
        if match:
            found.append((int(match[1]), path))
    if not found:
        raise ValueError(f"no frame_<number>.png in {folder}")

    found.sort()
    for (a, _), (b, path) in pairwise(found):
        if a == b:
            raise ValueError(f"frame {b} is there twice")
        if a + 1 < b:  # a movie with a hole jumps, and nobody would know why
            raise ValueError(f"frame {a + 1} is missing before {path.name}")
    return [read_png(path) for _, path in found]


def read_png(path):
    """A PNG as uint8 [H, W, 3]: 16 bits are cut to the upper 8, transparency is laid on white.

    Raises ValueError if it is no PNG, or one of which part would be lost.
    """
    from PIL import Image

    content = read_regular(path, "frame")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            deep = "16" in str(image.tile[0].args)  # bits, grey or colour
            image.load()
    except Exception as error:  # damaged files raise whatever the decoder feels like
        raise ValueError(f"{path} is not a readable PNG") from error
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"{path} is an animation, not one frame")
    if deep and "transparency" in image.info:
        raise ValueError(f"{path} has one transparent colour of 16 bits: give it an alpha channel")

    if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would clip; colour it has cut
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))
