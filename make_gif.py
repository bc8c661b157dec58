"""Turn frames into an animated GIF that plays at the right speed, holds its last frame and loops.

    python make_gif.py --frames outputs/reference_gmm_sde/default --output S.gif --duration 0.08
    python make_gif.py --frames outputs/reference_gmm_sde/default --output S.html --html

The first reads frame_0000.png, frame_0001.png, ... in numeric order and writes S.gif, in a second
or so for 40 frames.  The second writes one page for a browser, with play, pause and a slider over
the frames, in all their colours.

Two properties of the GIF decide how this is written.  Delays are stored in hundredths of a second,
so none can be shorter.  Equal neighbouring frames are merged into one, so a pause is made by a long
delay, not by repeating a frame.  Left out: palettes.  A frame with more than 256 colours is reduced
to 256 by Pillow.
"""

import html
import math
import re
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from common import cli
from common.cli import flag
from common.figures import house_style
from common.files import write_whole
from common.frames import read_frames

import numpy as np


@dataclass(kw_only=True)
class Config:
    script = "make_gif"

    frames: str | None = flag.run(
        None, "folder that holds frame_0000.png, frame_0001.png, ...", parse=cli.path
    )
    output: str | None = flag.run(
        None, "file to write (default: animation.gif or .html in that folder)", parse=cli.path
    )
    html: bool = flag.run(False, "one page with play, pause and a slider, instead of a GIF")
    duration: float = flag.run(0.08, "seconds per frame", low=0.01, high=60)
    hold: float = flag.run(1.5, "seconds on the last frame of a GIF", low=0.01, high=60)

    def settle(self, typed):
        """Fill in what depends on other flags; raise ValueError for flags that make no sense."""
        if self.frames is None:
            raise ValueError("give --frames DIR, the folder that holds frame_0000.png and so on")
        if self.html and "hold" in typed:
            raise ValueError("--hold is for a GIF: a page rests on its last frame")
        if self.output is None:
            self.output = Path(self.frames, "animation.html" if self.html else "animation.gif")


# ------------------------------------------------------------------------------ writing


def pace(n) -> float:
    """Seconds a frame that make n frames a film of about 3.3 s: few are not over in a blink."""
    return min(max(3.3 / n, 0.08), 0.5)


def save_gif(frames, path, duration=0.08, hold=1.5):
    """Write frames to path as a GIF that loops for ever, and return the path.

    frames: uint8 arrays, all [H, W, 3] or all [H, W] (grey), all of one size.  duration, hold:
    seconds that a frame, and the last frame, stays, from 0.01 to 60.  Raises ValueError for
    anything else, OSError if it cannot be written: the old file is then still there.
    """
    import imageio.v3 as iio

    frames = checked(frames, path, ".gif", duration=duration, hold=hold)
    delays = [round(100 * duration) * 10] * (len(frames) - 1)  # milliseconds
    delays.append(round(100 * hold) * 10)
    if len(frames) == 1:
        delays = delays[0]  # Pillow takes no list for a single frame

    try:
        gif = iio.imwrite("<bytes>", np.stack(frames), extension=".gif", duration=delays, loop=0)
    except OverflowError:  # their delays are added up, in 16 bits
        raise ValueError(
            "equal neighbouring frames become one frame, which a GIF shows for 655 seconds at "
            "most: take a shorter duration, or fewer frames"
        ) from None
    return write_whole(path, gif)


def checked(frames, path, suffix, **times):
    """The frames as uint8 [H, W, 3].

    Raises ValueError for what cannot be animated, or not under that name.
    """
    frames = [np.asarray(frame) for frame in frames]
    if Path(path).suffix.lower() != suffix:
        raise ValueError(f"the output must be named something{suffix}, not {Path(path).name!r}")
    if not frames:
        raise ValueError("an animation needs at least one frame")
    for name, seconds in times.items():
        if not (math.isfinite(seconds) and 0.01 <= seconds <= 60):
            raise ValueError(f"{name} must lie between 0.01 and 60 seconds, not {seconds}")

    shape = frames[0].shape
    if not (len(shape) == 2 or shape[2:] == (3,)) or 0 in shape:
        raise ValueError(f"frames must be [H, W, 3] or [H, W], not {list(shape)}")
    if max(shape) > 65535:
        raise ValueError(f"frames may have 65535 pixels a side, not {list(shape)}")
    for i, frame in enumerate(frames):
        if frame.shape != shape or frame.dtype != np.uint8:
            found = f"{frame.dtype} {list(frame.shape)}"
            raise ValueError(f"frame {i} is {found}, but expected uint8 {list(shape)}")

    if len(shape) == 2:  # 256 greys fit the palette of a GIF, so this loses nothing
        frames = [np.repeat(frame[..., None], 3, axis=2) for frame in frames]
    return frames


GLYPHS = {
    "minus": "\u2212", "plus": "+", "pause": "||", "play": "\u25b6",
    "step-forward": "\u203a", "step-backward": "\u2039",
    "fast-forward": "\u00bb", "fast-backward": "\u00ab",
}  # fmt: skip


@house_style()
def save_html(frames, path, duration=0.08, title="frames"):
    """Write frames, as for save_gif, to one page with play, pause and a slider; returns its path.

    The player is matplotlib's.  Its buttons wear letters of a font that it fetches from the
    network; here they wear plain characters instead, so that the page holds all that it needs.
    Played once, it rests on its last frame.
    """
    from matplotlib.animation import HTMLWriter
    from matplotlib.figure import Figure

    frames = checked(frames, path, ".html", duration=duration)
    figure = Figure(figsize=frames[0].shape[1::-1], dpi=1)  # a page of pixels
    image = figure.figimage(frames[0])
    speed = Fraction(1000, round(1000 * duration))  # milliseconds survive the division that follows

    # codec: that of videos, the default, would cut odd widths and heights to even ones.
    settings = dict(embed_frames=True, default_mode="once", embed_limit=math.inf)
    writer = HTMLWriter(speed, codec="none", **settings)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "page.html")
        with writer.saving(figure, file, dpi=1):
            for frame in frames:
                image.set_data(frame)
                writer.grab_frame()
        page = file.read_text(encoding="utf-8")

    # Same frames, same file: the name of the player was random.
    page = re.sub(r"<link[^>]*>", "", page)
    page = page.replace(re.search(r"_anim_img(\w{32})", page)[1], "1")
    rules = [f'.fa-{name}::before {{ content: "{glyph}" }}' for name, glyph in GLYPHS.items()]
    rules.append(".fa { font-style: normal }")
    rules.append(".fa-flip-horizontal { display: inline-block; transform: scaleX(-1) }")
    style = "\n".join(rules)
    head = '<!doctype html>\n<meta charset="utf-8">\n'
    head += f"<title>{html.escape(title)}</title>\n<style>\n{style}\n</style>\n"
    return write_whole(path, (head + page).encode())


# ------------------------------------------------------------------------------ the command


def main(argv=None):
    with cli.program(Config.script):
        config = cli.parse(Config, argv)
        frames = read_frames(config.frames)
        if config.html:
            title = Path(config.frames).resolve().name
            path = save_html(frames, config.output, config.duration, title)
        else:
            path = save_gif(frames, config.output, config.duration, config.hold)
        print(f"{len(frames)} frames -> {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
