"""The trial's rows that need no checkpoint, its whole command once, what it refuses; and a figure of the gallery."""

import json

import pytest
import torch
from PIL import Image

import audit
import gallery
import training
import vp_sde


def row_name(row):
    return "-".join(map(str, (row.func.__name__, *row.args)))


@pytest.mark.parametrize("row", audit.QUICK, ids=row_name)
def test_row(row):
    claim, expected, measured, tolerance = row()
    assert abs(measured - expected) <= tolerance, f"{claim}: expected {expected}, measured {measured}"


@pytest.fixture
def checkpoints(tmp_path):
    """Untrained networks of each kind of data, as files."""
    paths = []
    for name, beta_max in (("S", 20.0), ("crystals", 30.0)):
        config = dict(data=name, mode="rot-only", img_size=32, n_types=4, beta_min=0.1, beta_max=beta_max, seed=0)
        ema = vp_sde.build(config).state_dict()
        paths.append(tmp_path / f"{name}.pt")
        torch.save(dict(script="vp_sde", config=config, step=0, ema=ema), paths[-1])
        training.load_checkpoint(paths[-1], "vp_sde")
    return paths


def test_the_command(checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit, "QUICK", [lambda: ("a true claim", 1, 1.05, 0.1)])
    calls = {"sde": (2, 3), "ode": (3,), "dpmpp": (2,)}
    for name, value in dict(POINTS=64, SEEDS=2, STEPS=4, CALLS=calls).items():
        monkeypatch.setattr(audit, name, value)
    rows = [*audit.ABOUT_CRYSTALS[3:5], audit.partial(audit.error_by_calls, sampler="sde", calls=3)]
    monkeypatch.setattr(audit, "ABOUT_CRYSTALS", rows)
    out = tmp_path / "out"
    assert audit.main(["--ckpt", *map(str, checkpoints), "--out", str(out)]) == 1  # untrained networks fail
    printed = capsys.readouterr().out
    assert "FAIL" in printed and "pass" in printed and "report" in printed and str(out) in printed
    table = json.loads((out / "audit.json").read_text())
    verdicts = {row["claim"]: row["pass"] for row in table}
    assert verdicts["a true claim"] is True
    assert verdicts["S: relative score error, t in [0.05, 1], worst bin"] is False
    assert all(row["tolerance"] is None for row in table if row["pass"] is None)
    assert {p.name for p in out.iterdir()} == {"audit.json", "S_clouds.gif", "crystals_error.png"}


def test_quick_needs_no_checkpoint_and_a_false_claim_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SHIPPED", tmp_path / "nowhere")
    monkeypatch.setattr(audit, "QUICK", [lambda: ("a true claim", 1, 1.05, 0.1)])
    assert audit.main(["--quick", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(audit, "QUICK", [*audit.QUICK, lambda: ("a false one", 1, float("nan"), 0.1)])
    assert audit.main(["--quick", "--out", str(tmp_path)]) == 1


def test_the_shipped_prior_is_judged_with_its_vae():
    pair = audit.load(training.SHIPPED / "latent_prior.pt")
    assert audit.family(pair) == "priors"
    x, asked = audit.decoded(pair, "diffusion", steps=10, n=8)
    assert x.shape == (8, 1, 64, 64) and asked.kind.tolist() == [0, 1, 2, 3] * 2
    _, _, measured, limit = audit.reconstruction(pair)
    assert measured < limit


def test_a_network_that_is_the_closed_form_passes(monkeypatch):
    """The rows about points measure nothing but the network: the exact score has no error and the best loss."""
    config = dict(data="S", beta_min=0.1, beta_max=20.0, img_size=64)
    exact = vp_sde.exact_eps(config)
    monkeypatch.setattr(audit, "POINTS", 1024)
    perfect = audit.Model("S", config, exact, exact, vp_sde.VP(0.1, 20.0))
    assert audit.worst_score(perfect)[2] < 1e-10
    _, best, loss, _ = audit.in_bin(perfect, "loss", 0)
    assert loss == pytest.approx(best, rel=1e-5) and 0.1 < best < 1


@pytest.mark.parametrize("case", ["missing", "text", "mode full", "silent", "none ship", "a file in the way", "flag"])
def test_mistakes_are_one_line(checkpoints, tmp_path, mistake, monkeypatch, case):
    monkeypatch.setattr(training, "SHIPPED", tmp_path / "nowhere")
    monkeypatch.setattr(audit, "QUICK", [])
    out, text = tmp_path / "out", tmp_path / "text.pt"
    text.write_text("no checkpoint")
    full = torch.load(checkpoints[1], weights_only=True)
    full["config"]["mode"] = "full"
    torch.save(full, tmp_path / "full.pt")
    torch.save(full | {"config": {"data": "S"}}, tmp_path / "silent.pt")
    flags, word = {
        "missing": (["--ckpt", tmp_path / "gone.pt"], "gone.pt"),
        "text": (["--ckpt", text], "text.pt"),
        "mode full": (["--ckpt", tmp_path / "full.pt"], "rot-only"),
        "silent": (["--ckpt", tmp_path / "silent.pt"], "beta_max"),
        "none ship": ([], "--ckpt"),
        "a file in the way": (["--quick", "--out", text], "text.pt"),
        "flag": (["--frobnicate"], "--frobnicate"),
    }[case]
    assert word in mistake(audit.main, "--out", out, *flags)
    assert not out.exists() and text.read_text() == "no checkpoint"


def test_a_figure_of_the_gallery(checkpoints, tmp_path, mistake):
    """A fresh network returns v = 0 whatever the angle.  With one noise for all angles all frames are then equal, and a
    GIF merges those."""
    gallery.main(["sweep", "--ckpt", str(checkpoints[1]), "--out", str(tmp_path)])
    with Image.open(tmp_path / "theta_sweep.gif") as movie:
        assert movie.size == (4 * 34 * 3, 34 * 3) and movie.n_frames == 1
    assert "gone.pt" in mistake(gallery.main, "sweep", "--ckpt", tmp_path / "gone.pt", "--out", tmp_path)
