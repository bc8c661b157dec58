"""A GIF is judged by what a decoder reads back from the file, not by what was meant to be written."""

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

import make_gif


def ramp(i, height=20, width=30):
    """A grey wedge, different for every i: fewer than 256 colours."""
    return np.tile(np.linspace(0, 200, width).astype(np.uint8) + np.uint8(i), (height, 1))


def decode(path):
    """Pixels [T, H, W, 3], delays in milliseconds, and the loop counter, as Pillow sees the file."""
    with Image.open(path) as gif:
        delays, pixels = [], []
        for i in range(gif.n_frames):
            gif.seek(i)
            delays.append(gif.info["duration"])
            pixels.append(np.asarray(gif.convert("RGB")))
        return np.stack(pixels), delays, gif.info.get("loop")


def write_frames(folder, numbers, **kwargs):
    folder.mkdir(exist_ok=True)
    for i in numbers:
        iio.imwrite(folder / f"frame_{i:04d}.png", ramp(i, **kwargs))
    return folder


@pytest.mark.parametrize("colour", [False, True])
def test_speed_hold_loop_and_pixels_survive(tmp_path, colour):
    frames = [ramp(i) for i in range(5)]
    if colour:
        frames = [np.stack([f, f[:, ::-1], f], axis=2)[:, :14] for f in frames]
    path = make_gif.save_gif(frames, tmp_path / "a.gif", duration=0.05, hold=2.0)
    pixels, delays, loop = decode(path)
    assert delays == [50, 50, 50, 50, 2000]
    assert loop == 0  # 0 means for ever
    expected = np.stack(frames) if colour else np.stack(frames)[..., None].repeat(3, axis=3)
    assert np.array_equal(pixels, expected)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gif"]  # nothing left lying about


def test_one_frame_and_equal_frames(tmp_path):
    assert len(decode(make_gif.save_gif([ramp(0)], tmp_path / "one.gif"))[0]) == 1
    still = make_gif.save_gif([ramp(0)] * 3, tmp_path / "still.gif", 0.1, 1.0)
    assert sum(decode(still)[1]) == 1200  # merged frames keep their total time


@pytest.mark.parametrize(
    "frames, kwargs, word",
    [
        ([], {}, "at least one"),
        ([ramp(0), ramp(1, width=31)], {}, "frame 1"),
        ([ramp(0).astype(float)], {}, "uint8"),
        ([np.zeros((4, 4, 4), np.uint8)], {}, r"\[H, W, 3\]"),
        ([np.zeros((0, 4), np.uint8)], {}, r"\[H, W\]"),
        ([ramp(0)], {"duration": 0.0}, "duration"),
        ([ramp(0)], {"duration": -1.0}, "duration"),
        ([ramp(0)], {"duration": float("nan")}, "duration"),
        ([ramp(0)], {"duration": float("inf")}, "duration"),
        ([ramp(0)], {"hold": 700.0}, "hold"),
    ],
)
def test_bad_frames_and_times(tmp_path, frames, kwargs, word):
    with pytest.raises(ValueError, match=word):
        make_gif.save_gif(frames, tmp_path / "a.gif", **kwargs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["writing", "moving"])
def test_a_failure_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch, moment):
    path = make_gif.save_gif([ramp(0)], tmp_path / "a.gif")
    before = path.read_bytes()

    def half(self, data):
        with open(self, "wb") as file:
            file.write(data[:10])
        raise OSError("disk full")

    def refuse(*_):
        raise OSError("disk full")

    if moment == "writing":
        monkeypatch.setattr(Path, "write_bytes", half)
    else:
        monkeypatch.setattr(make_gif.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        make_gif.save_gif([ramp(1)], path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_page_holds_every_pixel_and_needs_no_network(tmp_path):
    """Odd sizes too, which matplotlib's writer would cut: it takes a page for a video."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 21, 13, 3), dtype=np.uint8)
    for frames in (noise, noise[..., 0]):
        text = make_gif.save_html(frames, tmp_path / "a.html", duration=0.03, title="<&>").read_text(encoding="utf-8")
        pictures = re.findall(r'frames\[\d+] = "data:image/png;base64,([^"]*)"', text)
        pixels = [iio.imread(base64.b64decode(p.replace("\\\n", "")), plugin="pillow", mode="RGB") for p in pictures]
        expected = frames if frames.ndim == 4 else frames[..., None].repeat(3, axis=3)
        assert np.array_equal(pixels, expected)
        assert "http" not in text and "<link" not in text and "<title>&lt;&amp;&gt;</title>" in text
        (milliseconds,) = re.findall(r"slider_id, (\d+),", text)
        assert milliseconds == "30"
        buttons = set(re.findall(r'class="fa fa-([a-z-]+)', text))  # none of them is blank
        assert {"play", "pause"} <= buttons == set(re.findall(r'\.fa-([a-z-]+)::before', text))
        assert 'type="range"' in text
    again = make_gif.save_html(frames, tmp_path / "b.html", duration=0.03, title="<&>")
    assert again.read_text(encoding="utf-8") == text


def test_page_from_the_command_line_in_its_default_place(tmp_path, capsys, mistake):
    folder = write_frames(tmp_path / "frames", range(3))
    make_gif.main(["--frames", str(folder), "--html"])
    make_gif.main(["--frames", str(folder)])
    assert "<title>frames</title>" in (folder / "animation.html").read_text(encoding="utf-8")
    assert len(decode(folder / "animation.gif")[0]) == 3
    assert capsys.readouterr().out.count("3 frames -> ") == 2
    line = mistake(make_gif.main, "--frames", folder, "--html", "--output", tmp_path / "a.gif")
    assert ".html" in line and not (tmp_path / "a.gif").exists()


def test_command_line_in_numeric_order(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(9, 12):  # without zero padding the alphabet would put 9 last
        iio.imwrite(folder / f"frame_{i}.png", ramp(i))
    (folder / "frame_final.png").write_text("not numbered, so not ours")
    args = ["--frames", folder, "--output", tmp_path / "a.gif", "--duration", "0.08"]
    script = Path(make_gif.__file__)
    run = subprocess.run([sys.executable, script, *map(str, args)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    pixels, delays, _ = decode(tmp_path / "a.gif")
    assert delays == [80, 80, 1500]
    assert np.array_equal(pixels[..., 0], [ramp(9), ramp(10), ramp(11)])


COMPLAINTS = {
    "absent": "no folder", "empty": "no frame_", "gap": "frame 2 is missing", "twice": "twice", "sizes": "frame 3",
    "damaged": "frame_0001.png", "time": "duration", "nan": "duration", "name": ".gif", "unwritable": "a.gif",
    "pipe": "frame_0001.png",
}  # fmt: skip


@pytest.mark.parametrize("case", COMPLAINTS)
def test_bad_command_lines(tmp_path, mistake, case):
    folder, output = write_frames(tmp_path / "frames", range(4)), tmp_path / "a.gif"
    if case == "absent":
        folder = tmp_path / "nowhere"
    elif case == "empty":
        folder = tmp_path / "empty"
        folder.mkdir()
    elif case == "gap":
        (folder / "frame_0002.png").unlink()
    elif case == "twice":
        iio.imwrite(folder / "frame_01.png", ramp(1))
    elif case == "sizes":
        write_frames(folder, [3], width=40)
    elif case == "damaged":
        (folder / "frame_0001.png").write_bytes(b"\x89PNG but not really")
    elif case == "pipe":
        (folder / "frame_0001.png").unlink()
        os.mkfifo(folder / "frame_0001.png")
    elif case == "name":
        output = tmp_path / "a.mp4"
    elif case == "unwritable":
        output = tmp_path / "frames" / "frame_0000.png" / "a.gif"
    duration = {"time": "-0.1", "nan": "nan"}.get(case, "0.08")
    page = output.with_suffix(".html" if output.suffix == ".gif" else output.suffix)
    for path, *kind in ((output,), (page, "--html")):
        line = mistake(make_gif.main, "--frames", folder, "--output", path, "--duration", duration, *kind)
        complaint = COMPLAINTS[case].replace(".gif", ".html") if kind else COMPLAINTS[case]
        assert complaint in line and not path.exists()
