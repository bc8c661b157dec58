"""Turn frames into an animated GIF that plays at the right speed, holds its last frame and loops for ever.

    python make_gif.py --frames outputs/reference_gmm_sde/S_sde_seed0 --output S.gif --duration 0.08

reads `frame_0000.png, frame_0001.png, ...` in numeric order and writes S.gif, a second or so for 40 frames.
Two properties of the format decide how this is written. Delays are stored in hundredths of a second, so none can be
shorter. Equal neighbouring frames are merged into one, so a pause is made by a long delay, not by repeating a frame.
Left out: palettes. A frame with more than 256 colours is reduced to 256 by Pillow.
"""

import argparse
import math
import os
import re
from pathlib import Path

import imageio.v3 as iio
import numpy as np


def save_gif(frames, path, duration=0.08, hold=1.5):
    """Write `frames` to `path` as a looping GIF and return the path.

    frames: sequence of uint8 arrays, all [H, W, 3] or all [H, W] (grey), all of one size.
    duration, hold: seconds that a frame, and the last frame, stay, from 0.01 to 60 (a GIF counts in hundredths).
    Raises ValueError for anything else, OSError if it cannot be written. An old file gives way only to a whole new one.
    """
    path, frames = Path(path), [np.asarray(frame) for frame in frames]
    if path.suffix.lower() != ".gif":
        raise ValueError(f"the output must be named something.gif, not {path.name!r}")
    if not frames:
        raise ValueError("a GIF needs at least one frame")
    for name, seconds in (("duration", duration), ("hold", hold)):
        if not (math.isfinite(seconds) and 0.01 <= seconds <= 60):
            raise ValueError(f"{name} must lie between 0.01 and 60 seconds, not {seconds}")
    shape = frames[0].shape
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3) or 0 in shape:
        raise ValueError(f"frames must be [H, W, 3] or [H, W], not {list(shape)}")
    for i, frame in enumerate(frames):
        if frame.shape != shape or frame.dtype != np.uint8:
            raise ValueError(f"frame {i} is {frame.dtype} {list(frame.shape)}, but expected uint8 {list(shape)}")
    if len(shape) == 2:  # 256 greys fit the palette, so this loses nothing
        frames = [np.repeat(frame[..., None], 3, axis=2) for frame in frames]

    delays = [round(100 * duration) * 10] * (len(frames) - 1) + [round(100 * hold) * 10]  # in milliseconds
    delays = delays if len(frames) > 1 else delays[0]  # Pillow takes no list for a single frame
    gif = iio.imwrite("<bytes>", np.stack(frames), extension=".gif", duration=delays, loop=0)
    return write_whole(path, gif)


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
            frames.append(iio.imread(path, plugin="pillow", mode="RGB"))
        except Exception as error:  # damaged files raise whatever the decoder feels like
            raise ValueError(f"{path} is not a readable PNG") from error
    return frames


def main(argv=None):
    parser = argparse.ArgumentParser(description="Stitch frame_0000.png, frame_0001.png, ... into a looping GIF.")
    parser.add_argument("--frames", required=True, metavar="DIR", help="folder that holds frame_*.png")
    parser.add_argument("--output", required=True, metavar="FILE.gif", help="GIF to write (replaced if it exists)")
    parser.add_argument("--duration", type=float, default=0.08, help="seconds per frame (default: %(default)s)")
    parser.add_argument("--hold", type=float, default=1.5, help="seconds on the last frame (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        frames = read_frames(args.frames)
        path = save_gif(frames, args.output, args.duration, args.hold)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{len(frames)} frames -> {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
