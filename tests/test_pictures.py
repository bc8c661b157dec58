"""What pictures show, pixel by pixel, and that they look the same for everybody."""

import os
import subprocess
import sys
from pathlib import Path

import make_gif
from common import metrics, pictures
from data import THETA_MAX, render, unit

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

BLACK = np.array([0, 0, 4])  # the ends of magma
YELLOW = np.array([252, 253, 191])


def read(path):
    return iio.imread(path)[..., :3].astype(int)


def covered(image, colour):
    """Where an image has a colour: bool [H, W]."""
    return abs(image - colour).max(2) <= 1


@pytest.fixture(scope="module")
def reported():
    """A report of seven crystals: the samples, what was found, and the nearest true ones."""
    kind = torch.arange(7) % 4
    theta = torch.arange(7) / 6 * THETA_MAX
    x = render(kind, theta, 1.1).float()
    _, fit, truth = metrics.crystal_report(x, kind, theta)
    return x, fit, truth


# ------------------------------------------------------------------------------ pages


def test_a_grid_shows_every_tile_with_white_between(tmp_path):
    left = np.zeros((7, 16, 16))
    left[:, 3, 5] = 1.0
    right = np.ones((7, 16, 16))
    captions = [f"no {i}" for i in range(7)]
    pictures.captioned_grid(tmp_path / "g.png", (left, right), captions, "title", columns=4)

    image = read(tmp_path / "g.png")
    black = covered(image, BLACK)
    yellow = covered(image, YELLOW)
    assert yellow.sum() == 7 * 64 * (16 * 16 + 1)  # 8 x 8 dots a pixel
    assert black.sum() >= 7 * 64 * (16 * 16 - 1)
    row = image[np.flatnonzero(black.sum(1) > 100)[0]]
    start = np.flatnonzero(covered(row[None], YELLOW)[0])[0]
    assert (row[start - 16 : start] == 255).all()  # not the pale yellow of the colour map


@pytest.mark.parametrize("n, rows, columns", [(1, 1, 1), (2, 1, 2), (5, 1, 5), (6, 1, 6), (7, 2, 4), (13, 3, 5)])
def test_a_page_is_as_wide_as_its_tiles(tmp_path, n, rows, columns):
    pictures.captioned_grid(tmp_path / "g.png", np.zeros((n, 64, 64)), ["x"] * n)
    image = read(tmp_path / "g.png")
    height = rows * (128 + 18)
    width = columns * (128 + 8)
    assert abs(np.subtract(image.shape[:2], (height, width))).max() <= 1
    share = covered(image, BLACK).sum() / image[..., 0].size
    assert share > 0.78 * n / (rows * columns)


def test_a_long_title_stays_on_a_narrow_page(tmp_path):
    """It is broken into lines: no letter touches the margin."""
    title = "left to right: N(0, I), MoP, diffusion prior, and the nearest true crystal"
    pictures.captioned_grid(tmp_path / "g.png", np.zeros((1, 64, 64)), ["x"], title)
    image = read(tmp_path / "g.png")
    top = np.flatnonzero(covered(image, BLACK).sum(1) > 100)[0]
    head = image[:top]
    assert (head[20:60] < 100).any()  # there is a second line
    assert (head[:, [0, -1]] == 255).all()


def test_colour_tiles_keep_their_colours(tmp_path):
    tiles = np.zeros((2, 32, 32, 3))
    tiles[..., 0] = 1.0
    pictures.captioned_grid(tmp_path / "g.png", (tiles, tiles), ["a", "b"])
    image = read(tmp_path / "g.png")
    assert covered(image, np.array([255, 0, 0])).sum() == 4 * 128 * 128


def test_a_crystal_page_has_samples_beside_true_crystals(tmp_path, reported):
    x, fit, truth = reported
    pictures.crystal_page(tmp_path / "page.png", x, fit, truth, "what")
    captions = [f"{words}; error 0.000" for words in metrics.captions(fit.kind, fit.theta, fit.aspect)]
    title = "what | nearest true crystal"
    pictures.captioned_grid(tmp_path / "by_hand.png", (x[:, 0], truth[:, 0]), captions, title)
    assert (tmp_path / "page.png").read_bytes() == (tmp_path / "by_hand.png").read_bytes()


def test_a_visible_difference_stands_beside_the_crystals_and_says_its_sign(tmp_path, reported):
    x, fit, truth = (reported[0].clone(), *reported[1:])
    x[0] = x[0] + 0.5
    x[1] = x[1] - 0.5
    error = fit.error.clone()
    error[:2] = 0.5
    pictures.crystal_page(tmp_path / "page.png", x, fit._replace(error=error), truth)
    image = read(tmp_path / "page.png")
    assert abs(image.shape[1] - 4 * (3 * 128 + 8 + 8)) <= 1  # three tiles a sample
    red, _, blue = (image[60:150, 270:390, i].mean() for i in range(3))
    assert red > blue + 60  # too bright
    red, _, blue = (image[60:150, 670:790, i].mean() for i in range(3))
    assert blue > red + 60
    assert (image[60:150, 1070:1190] > 240).all()  # no difference


def test_a_crystal_page_of_one_and_of_many(tmp_path, reported):
    one = [column[:1] for column in reported[1]]
    pictures.crystal_page(tmp_path / "one.png", reported[0][:1], type(reported[1])(*one), reported[2][:1])
    assert read(tmp_path / "one.png").shape[1] <= 2 * 130 + 8

    many = [column.repeat(6) for column in reported[1]]
    x = reported[0].repeat(6, 1, 1, 1)
    pictures.crystal_page(tmp_path / "many.png", x, type(reported[1])(*many), x)
    assert read(tmp_path / "many.png").shape[0] == 30 + 6 * (128 + 18)  # 36 of the 42


# ------------------------------------------------------------------------------ films


def test_grid_image_puts_tile_i_where_it_belongs():
    tiles = np.zeros((5, 4, 4))
    tiles[4] = 1.0
    image = pictures.grid_image(tiles, columns=3, zoom=2)
    assert image.shape == (24, 36, 3)
    assert image.dtype == np.uint8
    rows, columns = (image.astype(int).sum(2) > 600).nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (14, 21, 14, 21)


def test_grid_image_has_32_colours_whose_ends_are_those_of_magma():
    ramp = np.linspace(-0.1, 1.1, 64 * 64).reshape(1, 64, 64)
    colours = np.unique(pictures.grid_image(ramp, 1).reshape(-1, 3), axis=0)
    assert len(colours) == 32
    assert {tuple(BLACK), tuple(YELLOW)} <= set(map(tuple, colours.tolist()))


def test_a_film_shows_the_images_of_a_sampler(tmp_path):
    g = torch.Generator().manual_seed(0)
    film = [(t, 2 * torch.rand(7, 1, 16, 16, generator=g) - 1, None) for t in (1.0, 0.5, 0.0)]
    pictures.crystal_film(tmp_path / "film.gif", film, duration=0.3)
    frames = [pictures.grid_image(unit(x)[:, 0].numpy(), 4, zoom=6) for _, x, _ in film]
    with Image.open(tmp_path / "film.gif") as gif:
        shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
        assert gif.info["duration"] >= 300
    assert len(shown) == 3
    for frame, image in zip(frames, shown, strict=True):
        assert np.array_equal(image[: len(frame)], frame)
    words = [image[len(frames[0]) :] for image in shown]  # the time, below
    assert words[0].shape == (24, 4 * 108, 3) and (words[0] != words[1]).any() and (words[0] < 100).any()


@pytest.mark.parametrize("n, shape", [(1, (405, 405)), (4, (105, 420)), (36, (396, 396)), (40, (396, 396))])
def test_a_film_is_as_wide_as_its_images_and_shows_at_most_36(tmp_path, n, shape):
    side = 64 if n >= 36 else 13
    pictures.image_film(tmp_path / "film.gif", [torch.zeros(n, 1, side, side)], ["words"])
    height, width = iio.imread(tmp_path / "film.gif").shape[1:3]
    assert (height - 24, width) == shape


def test_names_stand_above_the_columns(tmp_path):
    frames = [torch.zeros(4, 1, 64, 64), torch.ones(4, 1, 64, 64)]
    pictures.image_film(tmp_path / "a.gif", frames, ["x", "y"], list("abcd"), smooth=3)
    image = iio.imread(tmp_path / "a.gif")[0]
    assert image.shape == (24 + 198 + 24, 4 * 198, 3)  # 192 dots, a margin of two and one of the grid
    for i in range(4):
        assert (image[:24, 198 * i + 89 : 198 * i + 109] < 100).any()


def test_a_film_of_few_frames_takes_its_time():
    assert make_gif.pace(41) == pytest.approx(0.08, abs=0.001) and make_gif.pace(400) == 0.08
    assert make_gif.pace(11) == pytest.approx(0.3) and make_gif.pace(2) == 0.5


def test_a_png_holds_its_pixels():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(iio.imread(pictures.png(image)), image)


# ------------------------------------------------------------------------------ curves


def test_a_loss_curve_is_drawn_from_what_the_log_has(tmp_path):
    path = tmp_path / "l.png"
    pictures.loss_curve(path, [{"step": 1}])
    assert not path.exists()
    lines = [{"step": i, "loss": 1 / i, "bins": {"0.1": 1 / i}} for i in (1, 2)]
    pictures.loss_curve(path, lines)
    assert read(path).shape[:2] == (360, 1000)
    pictures.loss_curve(path, lines, ("loss", "loss"), ("nothing", "missing", "bins.0.9"))
    assert read(path).shape[:2] == (360, 500)


def test_the_curves_of_times_say_so_beside_the_axes(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "save_figure", lambda path, figure: figures.append(figure))
    lines = [{"step": i, "loss": 1 / i, "bins": {"0.06": 1 / i, "0.94": 2 / i}} for i in (1, 2)]
    pictures.loss_curve(tmp_path / "l.png", lines)
    [figure] = figures
    figure.canvas.draw()
    loss, bins = figure.axes
    assert loss.get_ylabel().startswith("training loss") and bins.get_ylabel().startswith("held-out")
    assert loss.get_xlabel() == bins.get_xlabel() == "step" and loss.get_legend() is None
    assert [text.get_text() for text in bins.get_legend().get_texts()] == ["t = 0.06", "t = 0.94"]
    assert bins.get_legend().get_window_extent().x0 > bins.get_window_extent().x1


def test_keys_name_numbers_dicts_and_numbers_in_dicts():
    lines = [{"step": 1, "loss": 3.0, "bins": {"0.1": 4.0, "0.2": 5.0}}, {"step": 2, "loss": 6.0}]
    curves = pictures.curves_of(lines, ["loss", "bins.0.2"])
    assert curves == {"loss": [(1, 3.0), (2, 6.0)], "0.2": [(1, 5.0)]}
    assert pictures.curves_of(lines, ["bins"]) == {"0.1": [(1, 4.0)], "0.2": [(1, 5.0)]}


# ------------------------------------------------------------------------------ the environment


def draw_everything(folder):
    tiles = np.linspace(0, 1, 2 * 32 * 32).reshape(2, 32, 32)
    folder = Path(folder)
    pictures.captioned_grid(folder / "page.png", tiles, ["a", "b°"], "title")
    pictures.loss_curve(folder / "loss.png", [{"step": i, "loss": 1 / i} for i in (1, 2, 3)])
    pictures.image_film(folder / "film.gif", [torch.from_numpy(tiles[:, None])], ["t = 0"])
    make_gif.save_html([pictures.grid_image(tiles, 2)], folder / "film.html")


def test_the_environment_does_not_decide_what_a_picture_looks_like(tmp_path):
    """A notebook's backend, which is not installed here, and a user's own style."""
    here = tmp_path / "here"
    there = tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    draw_everything(here)

    rc = tmp_path / "matplotlibrc"
    rc.write_text("savefig.bbox: tight\nfont.size: 20\naxes.facecolor: red\nanimation.frame_format: svg\n")
    root = Path(pictures.__file__).parents[1]
    path = os.pathsep.join(map(str, (root, root / "tests")))
    backend = "module://matplotlib_inline.backend_inline"
    environment = os.environ | dict(MPLBACKEND=backend, MATPLOTLIBRC=str(rc), PYTHONPATH=path)
    program = "import sys, test_pictures; test_pictures.draw_everything(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, there], env=environment, check=True)
    for file in here.iterdir():
        assert (there / file.name).read_bytes() == file.read_bytes(), file.name


def test_images_are_enlarged_to_192_pixels_or_more():
    assert [pictures.large(torch.zeros(1, side, side)) for side in (16, 64, 65, 100, 192, 256)] == [12, 3, 3, 2, 1, 1]
