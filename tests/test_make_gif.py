"""A GIF is what a decoder reads back from the file, not what was meant to be written."""

import base64
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import make_gif
from common import files
from common.frames import read_frames, read_png

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image


def ramp(i, height=20, width=30):
    """A grey wedge, different for every i: fewer than 256 colours."""
    return np.tile(np.linspace(0, 200, width).astype(np.uint8) + np.uint8(i), (height, 1))


def decode(path):
    """Pixels [T, H, W, 3], delays in milliseconds, and the loop counter, as Pillow sees the file."""
    delays = []
    pixels = []
    with Image.open(path) as gif:
        for i in range(gif.n_frames):
            gif.seek(i)
            delays.append(gif.info["duration"])
            pixels.append(np.asarray(gif.convert("RGB")))
        return np.stack(pixels), delays, gif.info.get("loop")


def write_frames(folder, numbers, **size):
    folder.mkdir(exist_ok=True)
    for i in numbers:
        iio.imwrite(folder / f"frame_{i:04d}.png", ramp(i, **size))
    return folder


@pytest.fixture
def frames(tmp_path):
    """A folder of four frames."""
    return write_frames(tmp_path / "frames", range(4))


# ------------------------------------------------------------------------------ GIFs


@pytest.mark.parametrize("colour", [False, True])
def test_speed_hold_loop_and_pixels_survive(tmp_path, colour):
    grey = [ramp(i) for i in range(5)]
    pictures = [np.stack([f, f[:, ::-1], f], axis=2)[:, :14] for f in grey] if colour else grey
    path = make_gif.save_gif(pictures, tmp_path / "a.gif", duration=0.05, hold=2.0)

    pixels, delays, loop = decode(path)
    assert delays == [50, 50, 50, 50, 2000]
    assert loop == 0  # 0 means for ever
    expected = np.stack(pictures) if colour else np.stack(grey)[..., None].repeat(3, axis=3)
    assert np.array_equal(pixels, expected)
    assert os.listdir(tmp_path) == ["a.gif"]  # nothing left lying about


def test_one_frame_is_a_gif(tmp_path):
    assert len(decode(make_gif.save_gif([ramp(0)], tmp_path / "one.gif"))[0]) == 1


def test_merged_frames_keep_their_total_time(tmp_path):
    still = make_gif.save_gif([ramp(0)] * 3, tmp_path / "still.gif", 0.1, 1.0)
    assert sum(decode(still)[1]) == 1200


def test_equal_frames_for_longer_than_a_gif_can_count_are_refused(tmp_path, mistake):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(12):
        iio.imwrite(folder / f"frame_{i}.png", ramp(0))
    line = mistake(make_gif.main, "--frames", folder, "--duration", 60)
    assert "655 seconds" in line
    assert not (folder / "animation.gif").exists()
    make_gif.save_gif([ramp(i) for i in range(12)], tmp_path / "a.gif", duration=60)  # different ones are fine


@pytest.mark.parametrize("frames, times, word", [
    ([], {}, "at least one"),
    ([ramp(0), ramp(1, width=31)], {}, "frame 1"),
    ([ramp(0).astype(float)], {}, "uint8"),
    ([np.zeros((4, 4, 4), np.uint8)], {}, r"\[H, W, 3\]"),
    ([np.zeros((2, 4, 4, 3), np.uint8)], {}, r"\[H, W, 3\]"),
    ([np.zeros(4, np.uint8)], {}, r"\[H, W\]"),
    ([np.zeros((0, 4), np.uint8)], {}, r"\[H, W\]"),
    ([np.zeros((1, 65_536), np.uint8)], {}, "65535"),
    ([ramp(0)], {"duration": 0.0}, "duration"),
    ([ramp(0)], {"duration": -1.0}, "duration"),
    ([ramp(0)], {"duration": float("nan")}, "duration"),
    ([ramp(0)], {"duration": float("inf")}, "duration"),
    ([ramp(0)], {"hold": 700.0}, "hold"),
])
def test_frames_and_times_that_are_refused(tmp_path, frames, times, word):
    with pytest.raises(ValueError, match=word):
        make_gif.save_gif(frames, tmp_path / "a.gif", **times)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    path = make_gif.save_gif([ramp(0)], tmp_path / "a.gif")
    before = path.read_bytes()

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        make_gif.save_gif([ramp(1)], path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.gif"]


# ------------------------------------------------------------------------------ pages

NOISE = np.random.default_rng(0).integers(0, 256, (3, 21, 13, 3), dtype=np.uint8)  # of odd sizes


def save_page(path, frames=NOISE):
    make_gif.save_html(frames, path, duration=0.03, title="<&>")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("frames", [NOISE, NOISE[..., 0]])
def test_a_page_holds_every_pixel(tmp_path, frames):
    """Odd sizes too, which matplotlib's writer would cut: it takes a page for a video."""
    text = save_page(tmp_path / "a.html", frames)
    pictures = re.findall(r'frames\[\d+] = "data:image/png;base64,([^"]*)"', text)
    files = [base64.b64decode(picture.replace("\\\n", "")) for picture in pictures]
    pixels = [iio.imread(file, plugin="pillow", mode="RGB") for file in files]
    expected = frames if frames.ndim == 4 else frames[..., None].repeat(3, axis=3)
    assert np.array_equal(pixels, expected)


def test_a_page_needs_no_network_and_has_a_slider_and_buttons(tmp_path):
    text = save_page(tmp_path / "a.html")
    assert "http" not in text and "<link" not in text
    assert "<title>&lt;&amp;&gt;</title>" in text
    assert re.findall(r"slider_id, (\d+),", text) == ["30"]  # milliseconds
    assert 'type="range"' in text
    buttons = set(re.findall(r'class="fa fa-([a-z-]+)', text))
    assert {"play", "pause"} <= buttons
    assert buttons == set(re.findall(r"\.fa-([a-z-]+)::before", text))  # none of them is blank


def test_the_same_frames_are_the_same_page(tmp_path):
    assert save_page(tmp_path / "a.html") == save_page(tmp_path / "b.html")


# ------------------------------------------------------------------------------ frames


def png(pixels, depth, colour, transparent=None):
    """A PNG file of pixels [H, W, C], written by hand, because Pillow writes no colour of 16 bits."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    kind = ">u2" if depth == 16 else "u1"
    lines = b"".join(b"\0" + line.astype(kind).tobytes() for line in pixels)
    content = chunk(b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, colour, 0, 0, 0))
    if transparent is not None:
        content += chunk(b"tRNS", np.asarray(transparent, ">u2").tobytes())
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.fixture
def read(tmp_path):
    """read(content): a PNG file as read_png sees it."""

    def read_content(content):
        path = tmp_path / "frame_0.png"
        path.write_bytes(content)
        return read_png(path)

    return read_content


@pytest.mark.parametrize("size", [20, 16])
def test_frames_of_16_bits_are_scaled_to_8(read, size):
    """The upper byte, in grey and in colour."""
    deep = np.random.default_rng(0).integers(0, 65536, (size, size, 3))
    assert np.array_equal(read(png(deep, 16, 2)), deep >> 8)
    grey = read(png(deep[..., :1], 16, 0))
    assert np.array_equal(grey, (deep[..., :1] >> 8).repeat(3, axis=2))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour, channels", [(6, 3), (4, 1)])
def test_transparent_frames_are_laid_on_white(read, depth, colour, channels):
    top = 2**depth - 1
    pixels = np.zeros((2, 3, channels + 1), int)
    pixels[0, :, -1] = top  # black, below it nothing
    pixels[1, 2, -1] = top // 2
    found = read(png(pixels, depth, colour))
    assert (found[0] == 0).all()
    assert (found[1, :2] == 255).all()
    assert (abs(found[1, 2].astype(int) - 128) <= 1).all()


def test_one_transparent_colour_is_white_or_refused(read):
    pixels = np.array([[[10, 20, 30], [1, 2, 3]]])
    assert read(png(pixels, 8, 2, transparent=[1, 2, 3])).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    for colour, transparent in ((2, [1, 2, 3]), (0, [1])):
        with pytest.raises(ValueError, match="16 bits"):
            read(png(pixels[..., : len(transparent)], 16, colour, transparent))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_grey_and_palettes_are_colours(tmp_path, mode):
    black = Image.new("RGB", (4, 3))
    black.putpixel((1, 2), (255, 255, 255))
    black.convert(mode).save(tmp_path / "frame_0.png")
    found = read_png(tmp_path / "frame_0.png")
    assert np.array_equal(found, np.asarray(black))


def test_an_animation_is_not_a_frame(tmp_path):
    first, second = Image.new("L", (4, 4)), Image.new("L", (4, 4), 255)
    first.save(tmp_path / "frame_0.png", save_all=True, append_images=[second])
    with pytest.raises(ValueError, match="animation"):
        read_frames(tmp_path)


def test_another_format_under_the_name_of_a_png_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "frame_0.png", format="JPEG")
    with pytest.raises(ValueError, match="not a readable PNG"):
        read_frames(tmp_path)


def test_frames_come_in_numeric_order(tmp_path):
    for i in range(9, 12):  # without zero padding the alphabet would put 9 last
        iio.imwrite(tmp_path / f"frame_{i}.png", ramp(i))
    (tmp_path / "frame_final.png").write_text("not numbered, so not ours")
    assert np.array_equal(np.stack(read_frames(tmp_path))[..., 0], [ramp(9), ramp(10), ramp(11)])


# ------------------------------------------------------------------------------ the command line


def test_the_command_in_a_process_of_its_own(tmp_path, frames):
    words = ["--frames", frames, "--output", tmp_path / "a.gif", "--duration", "0.05", "--hold", "1"]
    run = subprocess.run([sys.executable, Path(make_gif.__file__), *words], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("4 frames -> ")
    pixels, delays, _ = decode(tmp_path / "a.gif")
    assert delays == [50, 50, 50, 1000]
    assert np.array_equal(pixels[..., 0], [ramp(i) for i in range(4)])


def test_the_default_place_is_the_folder_of_the_frames(frames, capsys):
    make_gif.main(["--frames", str(frames), "--html"])
    make_gif.main(["--frames", str(frames)])
    assert "<title>frames</title>" in (frames / "animation.html").read_text(encoding="utf-8")
    assert decode(frames / "animation.gif")[1] == [80, 80, 80, 1500]
    assert capsys.readouterr().out.count("4 frames -> ") == 2


def test_the_hold_of_a_page_and_no_frames_at_all_are_refused(frames, mistake):
    assert "--hold is for a GIF" in mistake(make_gif.main, "--frames", frames, "--html", "--hold", 1.5)
    assert "--frames DIR" in mistake(make_gif.main)
    assert not list(frames.glob("animation*"))


SPOIL = {
    "gap": lambda folder: (folder / "frame_0002.png").unlink(),
    "twice": lambda folder: iio.imwrite(folder / "frame_01.png", ramp(1)),
    "sizes": lambda folder: write_frames(folder, [3], width=40),
    "damaged": lambda folder: (folder / "frame_0001.png").write_bytes(b"\x89PNG but not really"),
    "empty": lambda folder: [file.unlink() for file in folder.iterdir()],
}
COMPLAINTS = {
    "gap": "frame 2 is missing",
    "twice": "frame 1 is there twice",
    "sizes": "frame 3",
    "damaged": "frame_0001.png is not a readable PNG",
    "empty": "no frame_",
}


@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize("case", SPOIL)
def test_folders_that_are_refused(frames, tmp_path, mistake, case, page):
    SPOIL[case](frames)
    output = tmp_path / ("a.html" if page else "a.gif")
    line = mistake(make_gif.main, "--frames", frames, "--output", output, *["--html"] * page)
    assert COMPLAINTS[case] in line
    assert not output.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_no_frame(frames, mistake):
    (frames / "frame_0001.png").unlink()
    os.mkfifo(frames / "frame_0001.png")  # to read it would be to wait for ever
    assert "frame_0001.png" in mistake(make_gif.main, "--frames", frames)


@pytest.mark.parametrize("words, complaint", [
    (["--frames", "nowhere"], "no folder nowhere"),
    (["--duration", "-0.1"], "at least 0.01"),
    (["--duration", "nan"], "finite"),
    (["--hold", "61"], "at most 60"),
    (["--output", "a.mp4"], ".gif"),
    (["--output", "a.gif", "--html"], ".html"),
    (["--output", "frames/frame_0000.png/a.gif"], "frame_0000.png"),
])
def test_words_that_are_refused(frames, monkeypatch, mistake, words, complaint):
    monkeypatch.chdir(frames.parent)
    before = sorted(frames.parent.rglob("*"))
    assert complaint in mistake(make_gif.main, "--frames", "frames", *words)
    assert sorted(frames.parent.rglob("*")) == before
