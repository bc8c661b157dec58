"""Pictures of points: what is where, that nothing stands under words, and that they look the same for everybody."""

import reference_gmm_sde as ref
from common import clouds

import matplotlib
import numpy as np
import pytest
from PIL import Image

BAND = clouds.BAND  # pixels above and below the points, for words
SCALE = 240 / clouds.NOISE  # pixels a unit, of a film of the letter


def frame(x, t=0.0, shape="S"):
    return next(clouds.cloud_frames([(t, np.asarray(x, dtype=float))], ref.mixture(shape), "label"))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, as they are saved."""
    saved = []
    monkeypatch.setattr(clouds, "save_figure", lambda path, figure: saved.append(figure))
    return saved


def test_a_frame_shows_cloud_contours_and_time():
    empty = frame(np.zeros((0, 2)))
    full = frame([[0.0, 3.2]] * 500)
    assert full.shape == (480 + 2 * BAND, 480, 3) and full.dtype == np.uint8
    changed = np.argwhere((empty != full).any(-1))  # a point at (0, 3.2) is almost at the top, in column 240
    assert np.abs(changed.mean(0) - [BAND + 240 - 3.2 * SCALE, 240]).max() < 2

    lines = np.argwhere(empty[..., 0] > empty[..., 2].astype(int) + 60)  # orange: only along the letter
    x = (lines[:, 1] - 240) / SCALE
    y = (240 + BAND - lines[:, 0]) / SCALE
    gap = np.linalg.norm(np.stack([x, y], 1)[:, None] - ref.mixture("S").means, axis=-1).min(1)
    assert len(lines) > 500 and gap.max() < 0.5

    later = frame(np.zeros((0, 2)), t=0.5)
    assert (later[-BAND:] != empty[-BAND:]).any()  # the clock
    assert np.array_equal(later[:BAND], empty[:BAND])  # the label


@pytest.mark.parametrize("shape", ["S", "two"])
def test_no_point_stands_under_the_words_of_a_frame(shape):
    everywhere = np.random.default_rng(0).uniform(-6, 6, (20_000, 2))
    empty = frame(np.zeros((0, 2)), shape=shape)
    full = frame(everywhere, shape=shape)
    for band in (slice(0, BAND - 2), slice(2 - BAND, None)):  # the edge of a point may reach over the border
        assert np.array_equal(empty[band], full[band])
        assert (empty[band] < 128).any()  # there are words
    assert (empty[BAND - 2 : BAND] == 255).all() and (empty[-BAND : 2 - BAND] == 255).all()  # and none at the border
    assert (full[BAND:-BAND] != empty[BAND:-BAND]).mean() > 0.2


def test_the_view_follows_the_points_so_that_no_half_of_a_film_is_empty():
    for t in (1.0, 0.3, 0.0):
        gmm = ref.mixture("two")
        x = gmm.marginal(t).sample(2000, np.random.default_rng(0))
        image = frame(x, t, "two")[BAND:-BAND]
        dark = (image < 200).any(2)
        upper, lower = dark[: len(dark) // 2], dark[len(dark) // 2 :]
        assert len(image) < 340 and min(upper.sum(), lower.sum()) > 0.3 * dark.sum()


def test_frames_of_two_films_may_be_taken_in_turn():
    """Each is drawn in a style of its own, which must not leak into what is drawn between two frames."""
    before = dict(matplotlib.rcParams)
    shots = [(1.0, np.zeros((5, 2))), (0.5, np.ones((5, 2)))]
    films = [clouds.cloud_frames(shots, ref.mixture(name), name) for name in ("S", "two")]
    pairs = list(zip(*films, strict=True))
    alone = list(clouds.cloud_frames(shots, ref.mixture("S"), "S"))
    assert all(np.array_equal(a, b) for (a, _), b in zip(pairs, alone, strict=True))
    assert dict(matplotlib.rcParams) == before


def test_a_matplotlibrc_of_the_user_changes_nothing(tmp_path):
    def draw(path):
        clouds.cloud_row(path, {"cloud": np.zeros((9, 2))}, ref.mixture("circle"))
        return path.read_bytes(), frame(np.zeros((9, 2)))

    row, image = draw(tmp_path / "a.png")
    odd = {"savefig.bbox": "tight", "font.size": 30, "lines.linewidth": 9, "savefig.dpi": 50, "axes.facecolor": "k"}
    with matplotlib.rc_context(odd):
        other_row, other_image = draw(tmp_path / "b.png")
    assert row == other_row and np.array_equal(image, other_image)


def test_a_film_is_every_frame_and_a_gif_of_at_most_41(tmp_path, monkeypatch):
    def bare(snapshots, *_):
        return (np.full((8, 8, 3), 3 * i, np.uint8) for i, _ in enumerate(snapshots))

    monkeypatch.setattr(clouds, "cloud_frames", bare)
    path = clouds.write_film(tmp_path, [(0.0, None)] * 46, None, "label")
    assert len(list(tmp_path.glob("frame_*.png"))) == 46
    with Image.open(path) as gif:
        assert path.name == "reverse_diffusion.gif" and gif.n_frames == 41 and gif.info["loop"] == 0
        gif.seek(40)
        assert gif.info["duration"] >= 1000  # the last frame is held
        assert np.asarray(gif.convert("RGB")).mean() == pytest.approx(3 * 45, abs=2)  # and it is the last


def test_a_row_of_clouds_has_a_panel_each_and_the_two_contours(tmp_path, figures):
    gmm = ref.mixture("two")
    x = gmm.sample(3000, np.random.default_rng(0))
    clouds.cloud_row(tmp_path / "x.png", {"one": x, "two": x + 1}, gmm)
    axes = figures[0].axes
    assert [ax.get_title() for ax in axes] == ["one", "two"]
    assert len(axes[0].lines[0].get_xdata()) == 2000  # more would only blacken the picture

    axis = np.linspace(-6, 6, 201)
    density, levels = clouds.density_on(gmm, axis, axis + 3)
    inside = [np.mean(np.exp(gmm.log_prob(x)) > level) for level in levels]
    assert inside == pytest.approx([0.95, 0.5], abs=0.03)
    assert density.shape == (201, 201)


def test_every_second_posterior_is_drawn_learned_above_exact(tmp_path, figures):
    x = np.random.default_rng(0).standard_normal((50, 2))
    found = [(0.1 * i, np.array([i, 0.0]), x + 1, x, 0.5, 0.25) for i in range(10)]
    clouds.posterior_pairs(tmp_path / "x.png", found)
    titles = [ax.get_title() for ax in figures[0].axes]
    assert titles[:5] == [f"learned, t = {0.1 * i:.2f}, std 0.500" for i in (1, 3, 5, 7, 9)]
    assert titles[5:] == [f"exact, t = {0.1 * i:.2f}, std 0.250" for i in (1, 3, 5, 7, 9)]
    above = figures[0].axes[0]
    assert above.lines[0].get_xdata() == pytest.approx(x[:, 0] + 1)
    assert above.lines[1].get_xdata() == pytest.approx([1])  # the cross at x_t


def test_error_by_steps_has_hollow_points_and_no_words_over_its_curves(tmp_path, figures):
    table = {"learned": [0.5, -1e-4, 1e-9], "exact": [1e-4, 2e-4, -3e-5]}
    clouds.error_by_steps(tmp_path / "x.png", (1, 4, 16), table, floor=1.7e-4)
    figure = figures[0]
    figure.canvas.draw()
    ax = figure.axes[0]
    curve, hollow = ax.lines[:2]
    assert curve.get_ydata() == pytest.approx([0.5, 1e-4, 3e-6])
    assert hollow.get_xdata().tolist() == [4] and hollow.get_markerfacecolor() == "white"

    frame = ax.get_window_extent()
    legend = figure.legends[0].get_window_extent()
    note = ax._left_title.get_window_extent()
    assert not frame.overlaps(legend) and not frame.overlaps(note) and not ax.texts and ax.get_legend() is None
    assert figure.bbox.contains(legend.x0, legend.y0) and figure.bbox.contains(legend.x1, legend.y1)
