"""Files of crystals and the command line of data.py: whole, checked, and never in the place of another."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import data
from common import crystal_file
from data import MODES, build, crystal_batch, load_built

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("x_u8", "y_cat", "y_cont")


def same(built, batch):
    return all(torch.equal(built[key], part) for key, part in zip(COLUMNS, batch, strict=True))


# -------------------------------------------------------------------------------------------------------- building


@pytest.mark.parametrize("mode", MODES)
def test_a_built_file_holds_the_crystals_of_its_seed(mode, tmp_path):
    build(150, tmp_path / "x.pt", 3, mode, img_size=32)
    build(70, tmp_path / "fewer.pt", 3, mode, img_size=32, chunk=9)
    assert same(load_built(tmp_path / "x.pt"), crystal_batch(0, 150, 3, mode, img_size=32))
    assert same(load_built(tmp_path / "fewer.pt"), crystal_batch(0, 70, 3, mode, img_size=32))


def test_a_built_file_says_what_it_holds(tmp_path):
    build(5, tmp_path / "x.pt", 3, "full", n_types=2, img_size=16)
    about = {key: value for key, value in load_built(tmp_path / "x.pt").items() if key not in COLUMNS}
    assert about == {"seed": 3, "mode": "full", "n_types": 2, "img_size": 16}


def test_a_build_that_fails_leaves_the_old_file_alone_and_no_folder(tmp_path):
    path = tmp_path / "x.pt"
    build(5, path, img_size=16)
    before, threads = path.read_bytes(), torch.get_num_threads()
    for out in path, tmp_path / "new" / "y.pt":
        with pytest.raises(ValueError, match="1 to 4"):
            build(5, out, n_types=9, img_size=16)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.pt"]
    assert torch.get_num_threads() == threads


# ------------------------------------------------------------------------------------------- other crystals than said


ASKED = dict(mode="rot-only", n_types=4, img_size=16)


@pytest.mark.parametrize("held", [dict(mode="full"), dict(mode="simple"), dict(n_types=2), dict(img_size=32)])
@pytest.mark.parametrize("edition", (1, 2))
def test_a_file_of_other_crystals_is_refused(held, edition, tmp_path):
    path = tmp_path / "x.pt"
    build(100, path, **ASKED | held)
    if edition == 1:  # which does not say what it holds
        torch.save({key: load_built(path)[key] for key in COLUMNS}, path)
    assert len(load_built(path)["x_u8"]) == 100 and len(load_built(path, **ASKED | held)["x_u8"]) == 100
    ((key, value),) = held.items()
    with pytest.raises(ValueError, match=f"holds crystals of --{key.replace('_', '-')} {value}, not of") as error:
        load_built(path, **ASKED)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_few_crystals_of_the_first_edition_need_not_be_of_all_types(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(good(), path)  # types 0 and 1
    assert load_built(path, n_types=4)["n_types"] == 4 and load_built(path)["n_types"] == 2
    with pytest.raises(ValueError, match="--n-types 2, not of 1"):
        load_built(path, n_types=1)


@pytest.mark.parametrize("lie", [
    dict(mode="full"), dict(mode=3), dict(mode=torch.zeros(2)), dict(n_types=1), dict(n_types=5), dict(n_types="4"),
    dict(n_types=True), dict(img_size=32), dict(img_size=16.0),
])  # fmt: skip
def test_a_file_that_says_anything_else_than_it_shows_is_damaged(lie, tmp_path):
    path = tmp_path / "x.pt"
    torch.save(good() | lie, path)
    with pytest.raises(ValueError, match=f"damaged: its '{next(iter(lie))}' does not fit"):
        load_built(path)


# ----------------------------------------------------------------------------------------------------- damaged files


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def good():
    return dict(zip(COLUMNS, crystal_batch(0, 3, img_size=16), strict=True))


@pytest.mark.parametrize("change, says", [
    (dict(x_u8=None), "x_u8"), (dict(y_cat=None), "y_cat"), (dict(y_cont=None), "y_cont"),
    (dict(x_u8=torch.tensor(3, dtype=torch.uint8)), "x_u8"), (dict(x_u8=[1, 2, 3]), "x_u8"),
    (dict(x_u8=torch.zeros(3, 1, 16, 16)), "x_u8"), (dict(x_u8=torch.zeros(3, 16, 16, dtype=torch.uint8)), "x_u8"),
    (dict(x_u8=torch.zeros(3, 1, 16, 15, dtype=torch.uint8)), r"\[N, 1, H, H\]"),
    (dict(x_u8=torch.zeros(3, 3, 16, 16, dtype=torch.uint8)), r"\[N, 1, H, H\]"),
    (dict(y_cat=torch.zeros(2, dtype=torch.int64)), "y_cat"), (dict(y_cat=torch.tensor([0, 1, 4])), "0 to 3"),
    (dict(y_cat=torch.tensor([0, 1, -1])), "0 to 3"), (dict(y_cont=torch.zeros(3, 3)), "y_cont"),
    (dict(y_cont=torch.full((3, 4), math.nan)), "finite"),
    (dict(x_u8=torch.zeros(0, 1, 16, 16, dtype=torch.uint8)), "x_u8"),
])  # fmt: skip
def test_a_file_of_something_else(change, says, tmp_path):
    path = tmp_path / "x.pt"
    torch.save({key: value for key, value in (good() | change).items() if value is not None}, path)
    with pytest.raises(ValueError, match=says) as error:
        load_built(path)
    assert str(path) in str(error.value)


def test_a_missing_file_comes_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--build 50000 --out '.*/my file.pt'"):
        load_built(tmp_path / "my file.pt")


def test_damage_is_noticed_down_to_one_flipped_bit(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(good(), path)
    whole = path.read_bytes()
    at = whole.index(good()["x_u8"].numpy().tobytes()[:64]) + 40
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for content in (b"", b"not a data file", whole[:-500], flipped):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            load_built(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no file of crystals"):
        load_built(path)


def test_no_code_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "ran"))
    torch.save(dict(good(), y_cat=Bomb()), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="damaged"):
        load_built(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_unreadable_is_not_called_damaged(tmp_path, monkeypatch):
    torch.save(good(), tmp_path / "x.pt")

    def forbidden(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(crystal_file, "open", forbidden, raising=False)  # root may read anything
    with pytest.raises(ValueError, match=r"cannot read .*x\.pt: Permission denied"):
        load_built(tmp_path / "x.pt")


# -------------------------------------------------------------------------------------------------- the command line


def test_build_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "new" / "x.pt"
    data.main(["--build", "70", "--out", str(out), "--img-size", "16", "--seed", "4"])
    assert str(out) in capsys.readouterr().out
    assert same(load_built(out), crystal_batch(0, 70, 4, img_size=16))


def test_other_spellings_and_force(tmp_path):
    out = tmp_path / "x.pt"
    data.main(["--n_samples=70", f"--out={out}", "--img_size=16", "--seed=4", "--rot-only", "--n_types=4"])
    assert same(load_built(out), crystal_batch(0, 70, 4, img_size=16))
    data.main(["--n-samples=9", f"--out={out}", "--mode=full", "--n-types=2", "--img-size=16", "--force"])
    assert same(load_built(out), crystal_batch(0, 9, 0, "full", 2, 16))


def test_preview_in_its_default_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data.main([])
    data.main(["--n-types", "1", "--seed", "1"])  # its own file may be replaced
    path = Path("outputs/data/preview.png")
    assert str(path) in capsys.readouterr().out
    with Image.open(path) as png:
        assert png.format == "PNG" and min(png.size) > 400 and np.asarray(png.convert("L")).std() > 20


def test_the_preview_looks_the_same_whatever_matplotlibrc_says(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.chdir(tmp_path)
    usual, other = tmp_path / "usual.png", tmp_path / "other.png"
    data.main(["--out", str(usual), "--img-size", "16"])
    with matplotlib.rc_context({"savefig.bbox": "tight", "savefig.dpi": 50, "font.size": 20, "image.origin": "lower"}):
        data.main(["--out", str(other), "--img-size", "16"])
    assert other.read_bytes() == usual.read_bytes()


@pytest.mark.parametrize("argv, says", [
    (["--bogus"], "--bogus"),
    (["--build", "0", "--out", "x.pt"], "--build"), (["--build", "-3", "--out", "x.pt"], "--build"),
    (["--build", "many", "--out", "x.pt"], "--build"), (["--build", "5"], "--out"), (["--mode", "odd"], "--mode"),
    (["--build", "5", "--out", "x.pt", "--mode", "full", "--rot-only"], "--rot-only contradicts --mode full"),
    (["--mode", "full"], "--mode has no effect"), (["--rot-only"], "--mode has no effect"),
    (["--n-types", "0"], "--n-types"), (["--n-types", "5"], "--n-types"), (["--img-size", "4"], "--img-size"),
    (["--img-size", "nan"], "--img-size"), (["--seed", "-1"], "--seed"), (["--seed", str(2**64)], "--seed"),
    (["--out", "x.pt"], "PNG"), (["--build", "5", "--out", "."], "folder"), (["--out", "mine.png"], "--force"),
    (["--build", "5", "--out", "mine.png"], "--force"), (["--out", "mine.png/x.png"], "mine.png/x.png"),
    (["--build", "5", "--out", "mine.png/x.pt"], "mine.png/x.pt"),
])  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(argv, says, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.png").write_text("precious")
    assert says in mistake(data.main, *argv)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.png"] and (tmp_path / "mine.png").read_text() == "precious"


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, mistake):
    resource = pytest.importorskip("resource")
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, hard))
    try:
        line = mistake(data.main, "--build", 200, "--img-size", 16, "--out", "new/x.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line == "data.py: error: cannot write new/x.pt: File too large"
    assert not list(tmp_path.iterdir())


def test_as_a_process(tmp_path):
    run = [sys.executable, str(ROOT / "data.py"), "--build", "3", "--img-size", "16", "--out", "x.pt"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "x.pt" in done.stdout and done.stderr == ""
    assert len(load_built(tmp_path / "x.pt")["x_u8"]) == 3


def test_ctrl_c_ends_a_long_build_at_once_in_one_line_without_a_trace(tmp_path):
    command = [sys.executable, str(ROOT / "data.py"), "--build", "1000000", "--img-size", "16", "--out", "new/x.pt"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "new").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, words = process.communicate(timeout=60)
    assert time.monotonic() - start < 30 and process.returncode == 130
    assert words.strip() == "data.py: stopped; every file that is there is whole"
    assert not list(tmp_path.iterdir())
