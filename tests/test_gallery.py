"""The figures of the README: their commands parse, the scripts write their files, and the sweep keeps its noise."""

import importlib
from pathlib import Path

import gallery
import vp_sde
from common import checkpoints, cli, runs

import pytest
from PIL import Image

ROOT = Path(gallery.__file__).parent


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
    for figure in gallery.WRITTEN.values():
        made |= {*figure.files.values()}
    assert {path.name for path in (ROOT / "assets").iterdir() if path.is_file()} <= made


@pytest.fixture
def fresh(tmp_path):
    """A network that returns v = 0 whatever the angle."""
    config = vp_sde.Config(img_size=32)
    about = dict(script="vp_sde", config=runs.settings_of(config), contents={}, step=1, seconds=1.0)
    checkpoints.save_checkpoint(tmp_path / "fresh.pt", about | {"ema": vp_sde.build(config).state_dict()})
    return tmp_path / "fresh.pt"


def test_the_sweep_has_one_noise_for_all_angles(fresh, tmp_path):
    """With v = 0 all frames are then equal, and a GIF merges those."""
    gallery.sweep(tmp_path, fresh, frames=6)
    with Image.open(tmp_path / "theta_sweep.gif") as movie:
        assert movie.size == (4 * 34 * 3, 34 * 3) and movie.n_frames == 1


def test_mistakes_are_one_line(tmp_path, mistake):
    assert "gone.pt" in mistake(gallery.main, "sweep", "--ckpt", tmp_path / "gone.pt", "--out", tmp_path / "out")
    assert "no effect" in mistake(gallery.main, "letter", "--ckpt", tmp_path / "gone.pt")
    assert "'lettre'" in mistake(gallery.main, "lettre")
    assert not (tmp_path / "out").exists()
