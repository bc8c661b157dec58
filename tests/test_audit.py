"""The claims that need no checkpoint, the command with small networks, the tables it writes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import audit
import data
import dddm
import latent_prior
import vp_sde
import vp_sde_2d
from audits import dddm as few_steps
from audits import latents, pairs, parts, samplers, score, score_of_crystals
from common import checkpoints, cli, results, runs
from common.claims import Claim

import numpy as np
import pytest
import torch

ROOT = Path(audit.__file__).parent


def name_of(check):
    return "-".join(map(str, (check.func.__name__, *check.args)))


@pytest.mark.parametrize("check", samplers.CLAIMS + few_steps.CLAIMS, ids=name_of)
def test_claim(check):
    claim = check()
    assert claim.holds, claim


def save(path, script, config, net, **more):
    """A checkpoint as a training writes it, of a network that has learned nothing."""
    about = dict(script=script, predicts=config.predicts, config=runs.settings_of(config))
    about |= dict(contents={}, step=7, seconds=65.0)
    checkpoints.save_checkpoint(path, about | dict(ema=net.state_dict()) | more)
    return path


@pytest.fixture
def points(tmp_path):
    config = vp_sde_2d.Config()
    return save(tmp_path / "S.pt", "vp_sde_2d", config, vp_sde_2d.build(config))


@pytest.fixture
def crystals(tmp_path):
    config = vp_sde.Config(img_size=32)
    return save(tmp_path / "crystals.pt", "vp_sde", config, vp_sde.build(config))


@pytest.fixture
def nothing_ships(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "nowhere")


@pytest.fixture
def two_claims(monkeypatch):
    """One true claim and a report, in the place of those about the samplers."""
    checks = [lambda: Claim("a true claim", 1, 1.05, 0.1, n=1200), lambda: Claim("|a| report", 0, 3, note="of old")]
    monkeypatch.setattr(samplers, "CLAIMS", checks)
    return checks


# ------------------------------------------------------------------------------------------------ the command


def test_networks_that_have_learned_nothing_fail_and_leave_a_table_and_pictures(
    points, crystals, tmp_path, capsys, monkeypatch
):
    for module, name, value in (
        (pairs, "POINTS", 64),
        (score, "POINTS", 64),
        (score, "SEEDS", 2),
        (score, "STEPS", 4),
        (score_of_crystals, "CALLS", {"sde": (2, 3), "ode": (3,), "dpmpp": (2,)}),
        (score_of_crystals, "CHECKS", score_of_crystals.CHECKS[3:5]),
    ):
        monkeypatch.setattr(module, name, value)
    out = tmp_path / "out"
    assert audit.main(["--ckpt", str(points), str(crystals), "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL" in printed and "report" in printed and str(out) in printed

    rows = json.loads((out / "claims.json").read_text())
    verdicts = {row["claim"]: row["pass"] for row in rows}
    assert verdicts["S: relative score error, t in [0.05, 1], worst bin"] is False
    assert all(row["tolerance"] is None for row in rows if row["pass"] is None)
    assert {row["about"] for row in rows} == {str(points), str(crystals)}
    assert {row["command"] for row in rows} == {f"python audit.py --ckpt {path}" for path in (points, crystals)}

    # Each of several runs has a folder for its pictures.
    pictures = {path.name: path.parent.name for path in out.glob("*/*")}
    assert pictures.keys() == {"S_clouds.gif", "crystals_error.png"} and len({*pictures.values()}) == 2


def test_quick_needs_no_checkpoint_and_a_false_claim_fails(tmp_path, monkeypatch, nothing_ships, two_claims):
    words = ["--quick", "--only", "samplers", "--out", str(tmp_path)]
    assert audit.main(words) == 0
    monkeypatch.setattr(samplers, "CLAIMS", [*two_claims, lambda: Claim("a false one", 1, float("nan"), 0.1)])
    assert audit.main(words) == 1


def test_another_command_has_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual = Path("outputs", "audit")
    folders = {
        "": usual,
        "--write": usual,
        "--quick": usual / "quick",
        "--only dddm": usual / "only-dddm",
        "--out x": Path("x"),
    }
    for words, folder in folders.items():
        assert Path(cli.parse(audit.Config, words.split()).out) == folder
    assert cli.parse(audit.Config, ["--ckpt", "a", "b"]).ckpt == ["a", "b"]


def test_the_reference_is_measured_without_torch():
    code = "import sys, audit; from audits import parts; config = audit.cli.parse(audit.Config, {}); {}"
    code = code.format(["--only", "reference"], "assert list(parts.chosen(config)) and 'torch' not in sys.modules")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("subject", parts.SUBJECTS)
def test_every_network_of_a_subject_ships(subject):
    module = parts.importlib.import_module(f"audits.{subject}")
    for name in getattr(module, "NETWORKS", ()):
        if name == "vp_sde_full.pt" and not (checkpoints.SHIPPED / name).exists():
            pytest.skip(f"{name} is yet to be trained")
        assert (checkpoints.SHIPPED / name).exists()


CASES = {
    "missing": ("--ckpt {tmp}/gone.pt", "gone.pt"),
    "text": ("--ckpt {tmp}/text.pt", "text.pt"),
    "mode simple": ("--ckpt {tmp}/simple.pt", "rot-only"),
    "silent": ("--ckpt {tmp}/silent.pt", "beta_max"),
    "another script": ("--ckpt {tmp}/dddm.pt", "dddm.py"),
    "none ship": ("--only score", "--ckpt"),
    "a file in the way": ("--quick --only samplers --out {tmp}/text.pt", "text.pt"),
    "a flag without effect": ("--quick --ckpt {tmp}/crystals.pt", "--quick"),
    "both": ("--quick --full", "--full"),
    "a damaged page": ("--quick --only samplers --write", "RESULTS.md"),
    "unknown": ("--frobnicate", "--frobnicate"),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_one_line_before_any_work(crystals, tmp_path, mistake, monkeypatch, nothing_ships, case):
    monkeypatch.setattr(audit, "measure", None)
    monkeypatch.setattr(audit, "RESULTS", tmp_path / "RESULTS.md")
    (tmp_path / "RESULTS.md").write_text("<!-- audit: samplers/formulas -->\nwithout an end\n")
    (tmp_path / "text.pt").write_text("no checkpoint")
    config = vp_sde.Config(mode="simple")
    save(tmp_path / "simple.pt", "vp_sde", config, vp_sde.build(config))
    found = torch.load(crystals, weights_only=True)
    del found["config"]["beta_max"]
    torch.save(found, tmp_path / "silent.pt")
    config = dddm.Config()
    save(tmp_path / "dddm.pt", "dddm", config, dddm.build(config))

    words, name = CASES[case]
    out = tmp_path / "out"
    assert name in mistake(audit.main, "--out", out, *words.format(tmp=tmp_path).split())
    assert not out.exists() and (tmp_path / "text.pt").read_text() == "no checkpoint"


# ------------------------------------------------------------------------------------------------ what is measured


def test_a_network_that_is_the_closed_form_has_no_error_and_the_least_loss(points, monkeypatch):
    monkeypatch.setattr(pairs, "POINTS", 1024)
    pair = pairs.load(points)
    perfect = pairs.Pair("S", pair.net, pair.run, pair.exact, pair.exact, pair.gmm)
    assert score.worst_score(perfect).measured < 1e-10
    loss = pairs.in_bin(perfect, "loss", 0)
    assert loss.measured == pytest.approx(loss.expected, rel=1e-5) and 0.1 < loss.expected < 1


def test_learned_and_exact_clouds_start_from_the_same_noise(points, monkeypatch):
    monkeypatch.setattr(score, "POINTS", 16)
    pair = pairs.load(points)
    (_, learned), *_ = score.cloud(pair, "learned", 0)
    (_, exact), *_ = score.cloud(pair, "exact", 0)
    assert (learned == exact).all()


def test_the_shipped_prior_is_measured_with_its_vae():
    pair = latents.load(checkpoints.SHIPPED / "latent_prior.pt")
    assert pair.name == "VAE" and pair.uncond
    x, condition = latents.decoded(pair, "diffusion", steps=10, n=8)
    assert x.shape == (8, 1, 64, 64) and condition.kind.tolist() == [0, 1, 2, 3] * 2
    assert latents.reconstruction(pair).holds


def test_a_prior_of_another_vae_is_refused(tmp_path):
    shipped = torch.load(checkpoints.SHIPPED / "latent_prior.pt", weights_only=True)
    shipped["config"]["vae"] = str(checkpoints.SHIPPED / "vae_cond.pt")
    path = tmp_path / "prior.pt"
    torch.save(shipped, path)
    with pytest.raises(ValueError, match="vae_cond.pt does not hold what"):
        latents.load(path)
    assert latent_prior.Config.script == torch.load(path, weights_only=True)["script"]


def test_default_tiles_have_every_type_and_the_noise_of_the_main_job():
    kind = data.default_conditions(36).rows(list(samplers.TILES)).kind
    assert kind.bincount().tolist() == [3] * 4
    model = samplers.ExactModel(vp_sde.VP(), 32)
    few = samplers.drawn_crystals(model, "sde", 4, (1, 5), img_size=32)
    more = samplers.drawn_crystals(model, "sde", 4, (0, 1, 2, 5), img_size=32)
    assert few == pytest.approx(more[[1, 3]], abs=1e-6)


def test_the_error_of_the_main_job_is_held_against_none_at_all(monkeypatch):
    found = {("sde", 1.5): 0.02, ("dpmpp", 1.5): 0.024, ("dpmpp", 1): 0.01}
    errors = lambda pair, which, sampler, calls, tiles, seed, w: np.full(36, found[sampler, w])  # noqa: E731
    monkeypatch.setattr(score_of_crystals, "crystal_errors", errors)
    tiles = score_of_crystals.default_tiles(None, "max", 0.03)
    ten = score_of_crystals.ten_calls(None)
    assert (tiles.expected, tiles.measured, tiles.tolerance) == pytest.approx((0, 0.02, 0.03))
    assert (ten.expected, ten.measured, ten.tolerance) == pytest.approx((0, 0.024, 0.025))
    assert score_of_crystals.ten_calls_unguided(None).measured == pytest.approx(0.01)


# ------------------------------------------------------------------------------------------------ RESULTS.md


@pytest.fixture
def page(tmp_path, monkeypatch):
    path = tmp_path / "RESULTS.md"
    monkeypatch.setattr(audit, "RESULTS", path)
    return path


WRITE = ["--quick", "--only", "samplers", "--write"]


def test_tables_are_written_between_marks_and_prose_stays(page, tmp_path, two_claims):
    page.write_text("# Results\n\nSix bugs worth knowing: \\1.\n", encoding="utf-8")
    audit.main([*WRITE, "--out", str(tmp_path)])
    text = page.read_text(encoding="utf-8")
    assert "Six bugs worth knowing" in text and "## The samplers" in text
    row = "| a true claim | 1 | ± 0.1 | 1.05 | 1,200 | `python audit.py --quick --only samplers` |"
    assert row in text and r"| \|a\| report | 0 |  | 3 (of old) |" in text

    page.write_text(text.replace("# Results", "# My results") + "\nAt the end.\n", encoding="utf-8")
    two_claims[0] = lambda: Claim("another claim", 0, 5, 1)
    audit.main([*WRITE, "--out", str(tmp_path)])
    new = page.read_text(encoding="utf-8")
    assert new.startswith("# My results\n\nSix bugs") and new.endswith("\nAt the end.\n")
    assert "a true claim" not in new and "5 **fails**" in new and new.count("## The samplers") == 1


def test_a_table_that_is_not_measured_keeps_its_last_rows_and_date(page, tmp_path, two_claims):
    headings = parts.SUBJECTS
    results.update(page, headings, {"samplers/gone.pt": ["of long ago"], "score/vp_sde.pt": ["of last year"]})
    audit.main([*WRITE, "--out", str(tmp_path)])
    text = page.read_text(encoding="utf-8")
    assert "of long ago" in text and "of last year" in text

    # A new table stands in its own section.
    places = [text.index(word) for word in ("## The samplers", "of long ago", "a true claim", "## Learned scores")]
    assert places == sorted(places)


def test_only_all_claims_together_come_with_the_list_of_checkpoints(page, tmp_path, two_claims, monkeypatch):
    monkeypatch.setattr(results, "networks_table", lambda: ["| all.pt |"])
    audit.main([*WRITE, "--out", str(tmp_path)])
    assert "all.pt" not in page.read_text(encoding="utf-8")
    monkeypatch.setattr(audit, "chosen", lambda config: [parts.Part("samplers", "formulas", [], "python audit.py")])
    audit.main(["--write", "--out", str(tmp_path)])
    assert "all.pt" in page.read_text(encoding="utf-8")


def test_the_checkpoints_say_how_they_were_trained(points, crystals, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    found = torch.load(crystals, weights_only=True)
    torch.save(found | {"seconds": None}, crystals)
    found = torch.load(points, weights_only=True)
    torch.save(found | {"machine": "x86_64, cpu, 2 threads", "seconds": 7260.0}, points)
    lines = results.networks_table()
    assert lines[2].startswith("| S.pt | `vp_sde_2d.py` | 7 | 2 h 01 min | x86_64, cpu, 2 threads |")
    assert lines[3].startswith("| crystals.pt | `vp_sde.py` | 7 | not written down | not written down |")
    assert [results.duration(s) for s in (9.0, 65.0)] == ["9 s", "1 min"]


def test_every_command_of_a_table_parses():
    config = cli.parse(audit.Config, ["--quick"])
    commands = {part.command for part in parts.chosen(config)}
    assert len(commands) == 4  # reference, samplers, atoms, dddm
    for command in commands:
        cli.parse(audit.Config, command.removeprefix("python audit.py").split())
