"""The figures of the README: their commands parse, the scripts write their files, and the sweep keeps its noise."""

import importlib
from itertools import pairwise
from pathlib import Path

import data
import gallery
import vp_sde
from common import checkpoints, cli, runs

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

ROOT = Path(gallery.__file__).parent
TILED = (4 * (6 * 32 + 6), 6 * 32 + 6 + 2 * 24)  # four crystals of 32 pixels, six times as large


@pytest.mark.parametrize("name", gallery.WRITTEN)
def test_a_command_parses_and_its_script_writes_the_files(name):
    figure = gallery.WRITTEN[name]
    script = importlib.import_module(figure.script)
    cli.typed(script.Config, [*figure.words.split(), "--out", "folder"])
    sources = [ROOT / f"{figure.script}.py", *ROOT.glob("common/*.py"), *ROOT.glob("audits/*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for file in figure.files:
        assert f'"{file}"' in text, file


def test_every_figure_is_listed_and_drawn_in_one_way(capsys):
    gallery.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(gallery.FIGURES)
    assert gallery.FIGURES.keys() == gallery.WRITTEN.keys() | gallery.OWN.keys()
    assert not gallery.WRITTEN.keys() & gallery.OWN.keys()


def test_every_figure_of_the_readme_has_a_command():
    made = {"crystals.png", "theta_sweep.gif", "strip.png", "crystals_error.png", "S_clouds.gif"}
    made |= {"dddm_dit.png", "reverse_diffusion.gif", "one_step.png", "guidance.png", "solvers.png"}
    made |= {"training.gif", "web.png", "few_calls.png"}  # of a training, the page, two networks
    made |= {"atoms.png", "melting.gif"}
    for figure in gallery.WRITTEN.values():
        made |= {*figure.files.values()}
    assert {path.name for path in (ROOT / "assets").iterdir() if path.is_file()} <= made


@pytest.fixture
def fresh(tmp_path):
    """A network that returns x_0 = 0 whatever the angle."""
    config = vp_sde.Config(img_size=32)
    about = dict(script="vp_sde", predicts="x0", config=runs.settings_of(config), contents={}, step=1, seconds=1.0)
    checkpoints.save_checkpoint(tmp_path / "fresh.pt", about | {"ema": vp_sde.build(config).state_dict()})
    return tmp_path / "fresh.pt"


def test_the_sweep_has_one_noise_for_all_angles(fresh, tmp_path):
    """With x_0 = 0 all frames are then equal, but for the angle below."""
    gallery.sweep(tmp_path, fresh, frames=3)
    with Image.open(tmp_path / "theta_sweep.gif") as movie:
        assert movie.size == TILED and movie.n_frames == 3
        frames = [np.asarray(frame.convert("RGB"))[:-24] for frame in ImageSequence.Iterator(movie)]
    assert all(np.array_equal(frames[0], frame) for frame in frames)


def test_the_hero_is_four_large_tiles_that_change_in_every_frame(fresh, tmp_path):
    gallery.hero(tmp_path, fresh, steps=60)
    with Image.open(tmp_path / "reverse_diffusion.gif") as movie:
        assert movie.size == TILED and 20 <= movie.n_frames <= 40
        frames = [np.asarray(frame.convert("L")).astype(int)[24:-24] for frame in ImageSequence.Iterator(movie)]
    changes = [abs(b - a).mean() for a, b in pairwise(frames[:-1])]
    assert min(changes) > 1  # grey level of 255, on average


@pytest.fixture
def sheet(monkeypatch):
    """sheet(name, ...): the rows that a picture would have."""
    drawn = []
    monkeypatch.setattr(gallery, "draw_sheet", lambda path, title, about, rows: drawn.extend(rows))

    def rows(draw, *args, **settings):
        draw(Path("nowhere"), *args, **settings)
        for row in drawn:
            assert len(row.captions) in (0, len(row.images))
        return drawn

    return rows


def test_one_step_shows_the_prediction_beside_the_mean(fresh, sheet):
    network, mean = sheet(gallery.one_step, fresh, theta=0.3)
    assert network.images.shape == mean.images.shape == (4, 1, 32, 32)
    truth = data.render(torch.arange(4), torch.full((4,), 0.3), 1.2, img_size=32)
    gap = (mean.images - truth).abs().amax((1, 2, 3))
    assert (gap[[0, 2, 3]] < 1e-3).all() and gap[1] > 0.3


def test_guidance_has_a_column_a_weight_and_no_condition_at_0(fresh, sheet):
    rows = sheet(gallery.guidance, fresh, weights=(0, 1, 8), steps=5)
    assert [row.name for row in rows] == list(data.KINDS)
    for row in rows:
        assert [words.partition(",")[0] for words in row.captions] == ["w = 0", "w = 1", "w = 8"]
        assert torch.equal(row.images[0], rows[0].images[0])


def test_the_calls_of_a_solver_are_those_that_were_made(fresh, sheet, monkeypatch):
    calls = []
    plain = vp_sde.guided_eps
    monkeypatch.setattr(vp_sde, "guided_eps", lambda *args: calls.append(1) or plain(*args))
    rows = sheet(gallery.solvers, fresh, calls=(1, 2, 3, 10))
    said = [int(words.split()[0]) for row in rows for words in row.captions]
    assert said == [1, 2, 3, 10, 1, 1, 3, 9, 1, 2, 3, 10] and sum(said) == len(calls)


def test_the_strip_pairs_times_there_and_back(fresh, sheet):
    forward, back, predicted = sheet(gallery.strip, fresh)
    assert forward.images.shape == back.images.shape == predicted.images.shape == (9, 1, 32, 32)
    assert (forward.captions[0], forward.captions[-1]) == ("t = 0.000", "t = 1.000")
    assert torch.equal(back.images[0], predicted.images[0])


def test_mistakes_are_one_line(tmp_path, mistake):
    assert "gone.pt" in mistake(gallery.main, "sweep", "--ckpt", tmp_path / "gone.pt", "--out", tmp_path / "out")
    assert "no effect" in mistake(gallery.main, "letter", "--ckpt", tmp_path / "gone.pt")
    assert "'lettre'" in mistake(gallery.main, "lettre")
    assert not (tmp_path / "out").exists()
