"""Claims about mode full, its figures and its report, with a network that draws true crystals."""

import json
from pathlib import Path

import audit
import data
import gallery
import vp_sde
from audits import atoms
from common import checkpoints, pictures, runs
from common.atom_laws import fresh_crystals
from common.crystal_job import conditions, report_crystals
from common.sampling import Drawn
from small import run_of, small_unet

import numpy as np
import pytest
from PIL import Image, ImageSequence


@pytest.fixture
def full(tmp_path, monkeypatch):
    """A checkpoint of mode full, of a small network that has learned nothing."""
    monkeypatch.setattr(vp_sde, "UNet", small_unet)
    return saved(tmp_path / "full.pt", vp_sde.Config(mode="full", img_size=32))


def saved(path, config):
    about = dict(script="vp_sde", predicts="x0", config=runs.settings_of(config), contents={}, step=1, seconds=1.0)
    checkpoints.save_checkpoint(path, about | {"ema": vp_sde.build(config).state_dict()})
    return path


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(atoms, "IMAGES", {"vacancy": 48, "jitter": 8, "law": 12})
    monkeypatch.setattr(atoms, "CALLS", 2)


@pytest.fixture
def perfect(monkeypatch, few):
    """True crystals in the place of those that the network draws."""

    def drawn(net, run, condition, *args, **settings):
        return fresh_crystals(condition, run.trained.img_size, seed=1)

    monkeypatch.setattr(atoms, "drawn", drawn)


# ------------------------------------------------------------------------------------------------ the claims


@pytest.mark.parametrize("check", atoms.CLAIMS, ids=lambda check: check.__name__)
def test_claim(check):
    claim = check()
    assert claim.holds, claim


def test_true_crystals_hold_every_claim(full, perfect):
    checks, draw = atoms.about(full)
    claims = [check() for check in checks]
    assert draw is None and all(np.isfinite(claim.measured) for claim in claims)
    required = [claim for claim in claims if claim.tolerance is not None]
    assert len(required) == 9 and all(claim.holds for claim in required if "asked 0.05" not in claim.claim)
    assert all("fresh true crystals" in claim.note for claim in required)


def test_a_network_that_has_learned_nothing_fails(full, few, tmp_path, monkeypatch):
    monkeypatch.setattr(atoms, "CHECKS", atoms.CHECKS[2:4] + atoms.CHECKS[-1:])
    monkeypatch.setattr(atoms, "AT_LENGTH", [])
    assert audit.main(["--ckpt", str(full), "--out", str(tmp_path / "out")]) == 1
    rows = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert {row["subject"] for row in rows} == {"atoms"} and [row["pass"] for row in rows] == [False, False, None]


def test_where_the_checkpoint_is_absent_its_claims_are_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "nowhere")
    monkeypatch.setattr(atoms, "CLAIMS", atoms.CLAIMS[:1])
    assert audit.main(["--only", "atoms", "--out", str(tmp_path / "out")]) == 0
    assert "vp_sde_full.pt: its claims are left out" in capsys.readouterr().out


def test_a_checkpoint_of_another_mode_is_refused(tmp_path, monkeypatch, mistake):
    monkeypatch.setattr(vp_sde, "UNet", small_unet)
    other = saved(tmp_path / "rot_only.pt", vp_sde.Config(img_size=32))
    line = mistake(gallery.main, "melting", "--ckpt", other, "--out", tmp_path / "out")
    assert "whose crystals have all atoms" in line
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ the figures


def test_the_figure_and_the_film(full, perfect, tmp_path, monkeypatch):
    monkeypatch.setattr(atoms, "VACANCIES", (0.0, 0.2))
    monkeypatch.setattr(atoms, "JITTERS", (0.0, 0.4))
    gallery.asked_and_found(tmp_path, full)
    with Image.open(tmp_path / "atoms.png") as page:
        assert page.size == (900, 420)
    gallery.melting(tmp_path, full, frames=4)
    with Image.open(tmp_path / "melting.gif") as movie:
        assert movie.size == (4 * (6 * 32 + 6), 6 * 32 + 6 + 2 * 24) and movie.n_frames == 4


def test_a_film_has_one_noise(full, few, tmp_path):
    """A network that returns 0 draws nothing whatever the condition: the frames differ below alone."""
    gallery.melting(tmp_path, full, frames=3)
    with Image.open(tmp_path / "melting.gif") as movie:
        frames = [np.asarray(frame.convert("RGB"))[:-24] for frame in ImageSequence.Iterator(movie)]
    assert len(frames) == 3 and all(np.array_equal(frames[0], frame) for frame in frames)


def test_without_the_checkpoint_a_figure_is_a_mistake_of_one_line(tmp_path, monkeypatch, mistake):
    monkeypatch.setattr(gallery, "SHIPPED", tmp_path)
    for name in gallery.OF_FULL:
        assert "there is no checkpoint" in mistake(gallery.main, name, "--out", tmp_path / "out")


# ------------------------------------------------------------------------------------------------ the report


def report(tmp_path, monkeypatch, **settings):
    """What is reported of fresh true crystals under the conditions of these flags."""
    monkeypatch.setattr(pictures, "captioned_grid", lambda path, *args: Path(path).touch())
    config = vp_sde.Config(mode="full", img_size=32, n=8, **settings)
    x = 2 * fresh_crystals(conditions(config), 32) - 1
    return report_crystals(Drawn(x, [(1.0, x, x), (0.0, x, x)], 1.0), run_of(config, tmp_path))


def test_where_atoms_are_missing_they_are_counted_and_no_crystal_error_is_told(tmp_path, monkeypatch):
    for settings, key in ((dict(vacancy=0.2), "missing"), (dict(jitter=0.4), "displacement")):
        numbers, words = report(tmp_path, monkeypatch, **settings)
        assert not any("crystal_error" in name for name in numbers) and "crystal error" not in words
        assert numbers[key] == pytest.approx(numbers[f"{key}_true"], abs=1e-4) and "asked" in words
        json.dumps(numbers, allow_nan=False)
        assert (tmp_path / "samples.png").exists()


def test_a_perfect_crystal_of_any_spacing_has_its_error(tmp_path, monkeypatch):
    for spacing in (6.0, 13.0):
        numbers, words = report(tmp_path, monkeypatch, spacing=spacing)
        assert numbers["crystal_error_mean"] < 0.002 and "crystal error" in words
        assert "missing" not in numbers


def test_conditions_are_those_of_the_flags():
    config = vp_sde.Config(mode="full", n=5, spacing=8.0, vacancy=0.1, jitter=0.5, theta=0.2)
    expected = np.tile([8.0, 0.2, 0.1, 0.5], (5, 1))
    np.testing.assert_allclose(conditions(config).cont, expected, rtol=1e-6)
    assert conditions(vp_sde.Config(n=3)).cont[:, [0, 2, 3]].eq(0).all()
    assert data.default_conditions(3, mode="full").cont[:, 0].eq(10).all()
