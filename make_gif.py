"""Turn frames into an animated GIF that plays at the right speed, holds its last frame and loops for ever.

    python make_gif.py --frames outputs/reference_gmm_sde/S_sde_seed0 --output S.gif --duration 0.08
    python make_gif.py --frames outputs/reference_gmm_sde/S_sde_seed0 --output S.html --html

The first reads `frame_0000.png, frame_0001.png, ...` in numeric order and writes S.gif, a second or so for 40 frames.
The second writes one page for a browser, with play, pause and a slider over the frames, in all their colours.
Two properties of the GIF decide how this is written. Delays are stored in hundredths of a second, so none can be
shorter. Equal neighbouring frames are merged into one, so a pause is made by a long delay, not by repeating a frame.
Left out: palettes. A frame with more than 256 colours is reduced to 256 by Pillow.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2.2,<3", "matplotlib>=3.10,<4", "imageio>=2.37,<3", "pillow>=11"]
# ///

import argparse
import html
import math
import os
import re
import tempfile
from fractions import Fraction
from pathlib import Path

import imageio.v3 as iio
import numpy as np


def save_gif(frames, path, duration=0.08, hold=1.5):
    """Write `frames` to `path` as a looping GIF and return the path.

    frames: sequence of uint8 arrays, all [H, W, 3] or all [H, W] (grey), all of one size.
    duration, hold: seconds that a frame, and the last frame, stay, from 0.01 to 60 (a GIF counts in hundredths).
    Raises ValueError for anything else, OSError if it cannot be written. An old file gives way only to a whole new one.
    """
    path, frames = Path(path), checked(frames, path, ".gif", duration=duration, hold=hold)
    delays = [round(100 * duration) * 10] * (len(frames) - 1) + [round(100 * hold) * 10]  # in milliseconds
    delays = delays if len(frames) > 1 else delays[0]  # Pillow takes no list for a single frame
    gif = iio.imwrite("<bytes>", np.stack(frames), extension=".gif", duration=delays, loop=0)
    return write_whole(path, gif)


def checked(frames, path, suffix, **times):
    """The frames as uint8 [H, W, 3]. Raises ValueError for what cannot be animated, or not under that name."""
    frames = [np.asarray(frame) for frame in frames]
    if Path(path).suffix.lower() != suffix:
        raise ValueError(f"the output must be named something{suffix}, not {Path(path).name!r}")
    if not frames:
        raise ValueError("an animation needs at least one frame")
    for name, seconds in times.items():
        if not (math.isfinite(seconds) and 0.01 <= seconds <= 60):
            raise ValueError(f"{name} must lie between 0.01 and 60 seconds, not {seconds}")
    shape = frames[0].shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3) or 0 in shape:
        raise ValueError(f"frames must be [H, W, 3] or [H, W], not {list(shape)}")
    for i, frame in enumerate(frames):
        if frame.shape != shape or frame.dtype != np.uint8:
            raise ValueError(f"frame {i} is {frame.dtype} {list(frame.shape)}, but expected uint8 {list(shape)}")
    # 256 greys fit the palette of a GIF, so this loses nothing
    return [np.repeat(frame[..., None], 3, axis=2) if frame.ndim == 2 else frame for frame in frames]


GLYPHS = {"minus": "\u2212", "plus": "+", "pause": "||", "play": "\u25b6", "step-forward": "\u203a",
          "step-backward": "\u2039", "fast-forward": "\u00bb", "fast-backward": "\u00ab"}  # fmt: skip


def save_html(frames, path, duration=0.08, title="frames"):
    """Write `frames`, as for save_gif, to one page with play, pause and a slider, and return its path.

    The player is matplotlib's. Its buttons wear letters of a font that it fetches from the network; here they wear
    plain characters instead, so that the page holds all it needs. Played once, it rests on its last frame.
    """
    from matplotlib.animation import HTMLWriter  # here, because a GIF does not need matplotlib
    from matplotlib.figure import Figure

    frames = checked(frames, path, ".html", duration=duration)
    figure = Figure(figsize=frames[0].shape[1::-1], dpi=1)  # a page of pixels
    image = figure.figimage(frames[0])
    speed = Fraction(1000, round(1000 * duration))  # whole milliseconds survive the division that follows
    # the default codec, of videos, would cut odd widths and heights to even ones
    writer = HTMLWriter(speed, codec="none", embed_frames=True, default_mode="once", embed_limit=math.inf)
    with tempfile.TemporaryDirectory() as folder:
        with writer.saving(figure, Path(folder, "page.html"), dpi=1):
            for frame in frames:
                image.set_data(frame)
                writer.grab_frame()
        page = Path(folder, "page.html").read_text()
    page = re.sub(r"<link[^>]*>", "", page)
    page = page.replace(re.search(r"_anim_img(\w{32})", page)[1], "1")  # was random: the same frames, the same file
    style = "".join(f'.fa-{name}::before {{ content: "{glyph}" }}\n' for name, glyph in GLYPHS.items())
    style += ".fa { font-style: normal } .fa-flip-horizontal { display: inline-block; transform: scaleX(-1) }"
    head = f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>\n{style}\n</style>\n'
    return write_whole(path, (head + page).encode())


def write_whole(path, data):
    """Write bytes to `path` so that it appears whole or not at all, and return it. Raises OSError."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")  # same folder, so that the move is a rename
    try:
        aside.write_bytes(data)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def read_frames(folder):
    """The images `frame_<number>.png` of a folder in numeric order, as a list of uint8 [H, W, 3].

    Raises ValueError if there are none, if a number is missing or double, or if a file is no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := re.fullmatch(r"frame_(\d+)\.png", p.name))]
    if not found:
        raise ValueError(f"no frame_<number>.png in {folder}")
    found.sort()
    for (a, _), (b, path) in zip(found, found[1:], strict=False):
        if b != a + 1:  # a movie with a hole jumps, and nobody would know why
            raise ValueError(f"frame {b} is there twice" if a == b else f"frame {a + 1} is missing before {path.name}")
    frames = []
    for _, path in found:
        try:
            if not path.is_file():  # of a pipe nobody writes into, a reader waits for ever
                raise OSError("no file")
            frames.append(iio.imread(path, plugin="pillow", mode="RGB"))
        except Exception as error:  # damaged files raise whatever the decoder feels like
            raise ValueError(f"{path} is not a readable PNG") from error
    return frames


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="make_gif.py", description="Stitch frame_0000.png, frame_0001.png, ... into a looping GIF.",
        allow_abbrev=False)
    add = parser.add_argument
    add("--frames", required=True, metavar="DIR", help="folder that holds frame_*.png")
    add("--output", metavar="FILE", help="file to write, replaced if it exists (default: DIR/animation.gif or .html)")
    add("--html", action="store_true", help="one page for a browser, with play, pause and a slider, instead of a GIF")
    add("--duration", type=float, default=0.08, help="seconds per frame (default: %(default)s)")
    add("--hold", type=float, default=1.5, help="seconds on the last frame of a GIF (default: %(default)s)")
    args = parser.parse_args(argv)
    path = args.output or Path(args.frames, "animation.html" if args.html else "animation.gif")
    try:
        frames = read_frames(args.frames)
        if args.html:
            path = save_html(frames, path, args.duration, title=Path(args.frames).resolve().name)
        else:
            path = save_gif(frames, path, args.duration, args.hold)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{len(frames)} frames -> {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
