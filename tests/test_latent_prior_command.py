"""The latent prior's training and its command: which VAE it stands on, what is written, what is refused."""

import json
import os
import shutil
from functools import partial

import data
import latent_prior as lp
import vae
from common import cli, latents, loop, metrics, pictures, runs
from common.checkpoints import ROOT, found_path, load_checkpoint, ship
from common.crystal_job import TrainingCrystals
from conftest import arrays, same, state
from conftest import run as run_main
from small import run_of
from test_processes import close, together

import numpy as np
import pytest
import torch

VAE = ["--train", "--train-steps", "2", "--batch-size", "4", "--img-size", "16", "--z-dim", "8", "--uncond", "--n", "1"]
TRAIN = ["--train", "--train-steps", "6", "--batch-size", "16", "--n-latents", "60", "--width", "32"]
TRAIN += ["--T", "40", "--save-every", "2", "--lr", "0.1"]
DRAW = ["--steps", "8", "--n", "4"]
TINY = [*TRAIN, *DRAW]
SAMPLES = {"comparison.png", "config.json", "metrics.json", "reverse_diffusion.gif", "samples.npz", "samples.png"}


def run(*words):
    return run_main(*words, main=lp.main)


def vae_run(folder, *words):
    """A small VAE that has seen eight crystals, in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "loss_curve", lambda *args: None)
        patch.setattr(vae, "report", lambda *args: ({}, ""))
        assert run_main(*VAE, *words, "--out", folder, main=vae.main) == 0
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_held_out_crystals():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "EVALUATED", 4)
        patch.setattr(lp, "HELD_OUT", 6)
        yield


@pytest.fixture(scope="module")
def of_vae(tmp_path_factory):
    """The folder of a small VAE.  Not to be written into."""
    return vae_run(tmp_path_factory.mktemp("vae") / "run")


@pytest.fixture(scope="module")
def trained(of_vae, tmp_path_factory):
    """The folder of a tiny prior, trained through the real command line.  Not to be written into."""
    folder = tmp_path_factory.mktemp("prior") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "loss_curve", lambda *args: None)
        assert run(*TINY, "--vae", of_vae, "--out", folder) == 0
    return folder


@pytest.fixture
def numbers_only(monkeypatch, no_pictures):
    """No films, pages and reports, where only weights and samples are of interest."""
    monkeypatch.setattr(lp, "image_film", lambda *args: None)
    monkeypatch.setattr(latents, "compare_priors", lambda *args: ({}, ""))


def read(path):
    """A JSON file, in which NaN is no number."""

    def refuse(word):
        raise AssertionError(f"{path} holds {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


def prior_on(folder):
    """A Run of a prior on this VAE, as load_vae wants it."""
    return run_of(lp.Config(vae=str(folder)))


# ---------------------------------------------------------------------------------------------------- the latents


def test_encoded_latents_are_those_of_the_training_crystals(of_vae, monkeypatch):
    monkeypatch.setattr(latents, "ENCODED", 8)
    net, run = lp.load_vae(prior_on(of_vae))
    mu, log_var, condition = latents.encode_training_set(net, run, 30)
    x, told = TrainingCrystals(run, signed=False).batch(0, 30)
    expected = net.encode(x, told)
    torch.testing.assert_close(mu, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(log_var, expected[1], atol=1e-5, rtol=1e-4)
    assert same(list(condition), list(told))


def test_the_crystals_of_a_file_are_encoded_as_those_rendered_on_the_fly(of_vae, tmp_path, monkeypatch):
    data.build(20, tmp_path / "built.pt", img_size=16)
    net, run = lp.load_vae(prior_on(of_vae))
    on_the_fly = latents.encode_training_set(net, run, 20)
    path = str(tmp_path / "built.pt")
    config = vae.Config(img_size=16, z_dim=8, uncond=True, data_path=path)
    from_file = latents.encode_training_set(net, run_of(config), 7)  # all that are in it
    assert same(list(on_the_fly[:2]), list(from_file[:2])) and same(list(on_the_fly[2]), list(from_file[2]))


def test_a_vae_is_known_by_its_weights_in_half_precision(of_vae, trained, tmp_path):
    """Which is the hash that the first edition called its fingerprint."""
    prior = prior_on(of_vae)
    lp.load_vae(prior)
    ship(of_vae, tmp_path / "small.pt")
    copy = prior_on(tmp_path / "small.pt")
    lp.load_vae(copy)
    assert prior.contents == copy.contents == load_checkpoint(trained)["contents"]
    shipped = prior_on(ROOT / "assets/checkpoints/vae_uncond.pt")
    lp.load_vae(shipped)
    assert shipped.contents["vae"].startswith("5743369b8b3e478c")


# --------------------------------------------------------------------------------------------------- the training

KNOBS = [
    dict(beta_start=1e-2),
    dict(beta_end=0.2),
    dict(T=50),
    dict(t_emb_dim=32),
    dict(z_target="sample"),
    dict(p_uncond=0.9),
    dict(n_latents=30),
    dict(seed=1),
    dict(lr=1e-2),
]


def test_every_knob_of_the_training_changes_the_weights(of_vae, tmp_path, no_pictures):
    def weights(**settings):
        usual = dict(train_steps=2, batch_size=16, n_latents=60, width=32, T=40, steps=8, lr=0.1, vae=str(of_vae))
        config = lp.Config(**(usual | settings))
        config.settle(())
        net = runs.seeded(partial(lp.build, config), config.seed)
        lp.train(net, run_of(config, tmp_path))
        return load_checkpoint(tmp_path)["model"]

    plain = weights()
    assert same(plain, weights(n=5, steps=3, eta=0.5))
    for knob in KNOBS:
        assert not same(plain, weights(**knob)), knob


def test_the_latents_are_standardised_by_mean_and_spread(of_vae, trained):
    net, run = lp.load_vae(prior_on(of_vae))
    mu, *_ = latents.encode_training_set(net, run, 60)
    weights = load_checkpoint(trained)["ema"]
    torch.testing.assert_close(weights["mean"], mu.mean(0))
    torch.testing.assert_close(weights["std"], mu.std(0))


def test_a_stopped_training_resumes_bit_for_bit(here, of_vae, trained, monkeypatch, numbers_only):
    usual = loop.Trainer.apply

    def interrupted(trainer, *args, **terms):
        usual(trainer, *args, **terms)
        if trainer.done == 3:
            os.kill(os.getpid(), 2)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "apply", interrupted)
        assert run(*TINY, "--vae", of_vae, "--out", "half") == 130
    assert load_checkpoint("half")["step"] == 3
    assert run("--resume", "--out", "half") == 0
    assert same(state("half"), state(trained))
    assert same(arrays(here / "half"), arrays(trained))
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (trained, here / "half")]
    bins = [json.loads(lines[-1])["bins"] for lines in logs]
    assert bins[0] == bins[1] and len(bins[0]) == 8


def test_two_processes_take_the_step_of_one_and_share_the_samples(here, of_vae, trained, numbers_only):
    said, statuses = together(lambda: run(*TINY, "--vae", of_vae, "--sample-batch", 2, "--out", "two"), here)
    assert statuses == [0, 0], said
    one = state(trained)
    two = state("two")
    assert close(one["model"], two["model"], 1e-4) and close(one["ema"], two["ema"], 1e-4)  # at a rate of 0.1
    assert run("--ckpt", "two", *DRAW, "--sample-batch", 2, "--out", "one") == 0
    assert same(arrays(here / "one"), arrays(here / "two"))


def test_an_epoch_is_one_pass_over_the_data_there_is(here, numbers_only, mistake):
    data.build(40, "built.pt", seed=3, img_size=16)
    vae_run(here / "vae", "--data-path", "built.pt")
    words = [word for word in TINY if word not in ("--train-steps", "6", "--n-latents", "60")]
    assert run(*words, "--vae", "vae", "--epochs", 2, "--out", "run") == 0
    assert load_checkpoint("run")["step"] == 5  # of 16 latents each, 80 in all

    assert "--n-latents has no effect" in mistake(lp.main, *TINY, "--vae", "vae", "--out", "x")
    shutil.move("built.pt", "moved.pt")
    assert "built.pt" in mistake(lp.main, "--ckpt", "run", *DRAW, "--out", "x")
    assert run("--ckpt", "run", *DRAW, "--data-path", "moved.pt", "--out", "again") == 0
    assert same(arrays(here / "again"), arrays(here / "run"))
    data.build(40, "other.pt", seed=4, img_size=16)
    assert "--data-path other.pt" in mistake(lp.main, "--ckpt", "run", *DRAW, "--data-path", "other.pt", "--out", "x")


def test_an_epoch_of_rendered_crystals_is_that_of_the_encoded_ones(of_vae):
    words = ["--train", "--vae", str(of_vae), "--n-latents", "200", "--batch-size", "50", "--epochs", "3"]
    assert runs.start(lp.Config, words).config.train_steps == 12


# --------------------------------------------------------------------------------------------------- the command


def test_a_run_writes_what_it_says(trained):
    assert {path.name for path in trained.iterdir()} == SAMPLES | {"last.pt", "log.jsonl"}
    numbers = read(trained / "metrics.json")
    for prior in ("normal", "mop", "diffusion"):
        wanted = {"crystal_error_mean", "mass_w1", "mass_w1_floor", "fft_radial_l2", "error_nearest_of_any"}
        assert wanted <= numbers[prior].keys()
    samples = arrays(trained)
    x, kind, theta = (torch.from_numpy(samples[key]) for key in ("x", "kind", "theta"))
    error = metrics.crystal_error(x, kind, theta).error.mean().item()
    assert numbers["diffusion"]["crystal_error_mean"] == pytest.approx(error, abs=1e-6)
    assert samples["z"].shape == (4, 8) and samples["x"].min() >= 0 and samples["x"].max() <= 1


def test_sampling_again_is_the_same_to_the_bit_and_other_samplers_are_not(here, trained, numbers_only):
    def drawn(*words):
        assert run("--ckpt", trained, *DRAW, *words, "--out", "x") == 0
        return arrays(here / "x")["z"]

    first = arrays(trained)["z"]
    assert np.array_equal(drawn(), first)
    for words in (["--eta", 1], ["--cfg", 2], ["--cfg", 0], ["--seed", 1], ["--steps", 7], ["--use-ema", 0]):
        assert not np.array_equal(drawn(*words), first), words


def test_use_ema_0_samples_with_the_weights_of_the_last_step(here, of_vae, trained, numbers_only):
    """Right after the training as well as later, from its checkpoint."""
    assert run(*TINY, "--vae", of_vae, "--use-ema", 0, "--out", "raw") == 0
    assert run("--ckpt", trained, *DRAW, "--use-ema", 0, "--out", "later") == 0
    assert same(arrays(here / "raw"), arrays(here / "later")) and same(state("raw"), state(trained))


@pytest.mark.parametrize("more", [[], ["--cfg", 0]])
def test_a_single_sample_has_finite_numbers(here, trained, monkeypatch, more, capsys):
    monkeypatch.setattr(pictures, "captioned_grid", lambda *args, **more: None)
    assert run("--ckpt", trained, "--steps", 1, "--n", 1, *more, "--out", "x") == 0
    numbers = read(here / "x" / "metrics.json")
    assert numbers["n"] == 1 and ("mass_w1" in numbers["diffusion"]) is (more == [])
    table = capsys.readouterr().out.split("crystal error ")[-1]
    assert "nan" not in table and "true crystals" in table


def test_the_vae_may_lie_elsewhere_but_not_be_another(here, of_vae, trained, numbers_only, mistake):
    shutil.copytree(of_vae, "copy")
    assert run("--ckpt", trained, *DRAW, "--vae", "copy", "--out", "x") == 0
    assert same(arrays(here / "x"), arrays(trained))

    shutil.copytree(trained, "run")
    assert run("--resume", "--out", "run", "--vae", "copy", "--train-steps", 7) == 0
    vae_run(here / "other", "--seed", "1")
    for words in (["--ckpt", trained, *DRAW, "--out", "y"], ["--resume", "--out", "run", "--train-steps", 8]):
        assert "--vae other does not hold what" in mistake(lp.main, *words, "--vae", "other")
    assert load_checkpoint("run")["step"] == 7 and not (here / "y").exists()


def test_paths_are_found_from_any_folder(here, of_vae, numbers_only, monkeypatch):
    shutil.copytree(of_vae, "vae")
    assert run(*TINY, "--vae", "vae", "--out", "run") == 0
    (here / "below").mkdir()
    monkeypatch.chdir("below")
    assert run("--ckpt", "../run", *DRAW, "--out", "x") == 0
    assert same(arrays(here / "below" / "x"), arrays(here / "run"))
    shipped = runs.start(lp.Config, ["--train"]).config
    assert found_path(shipped.vae).is_file() and runs.settings_of(shipped)["vae"] == "assets/checkpoints/vae_uncond.pt"


def test_bad_input_is_one_line(here, of_vae, trained, mistake):
    def said(*words):
        return mistake(lp.main, "--ckpt", trained, *words, "--out", "x")

    def refused(*words):
        return mistake(lp.main, *TINY, "--vae", of_vae, *words, "--out", "x")

    for flag in ("--eta", "--beta-end", "--cfg", "--lr"):
        assert flag in said(flag, "nan")
    assert "at most 1" in said("--eta", 1.5) and "at least 0" in said("--eta", -0.1)
    assert "T is 40" in said("--steps", 41)
    assert "--eta has no effect" in said("--steps", 1, "--eta", 0.5)
    assert "contradicts" in said("--T", 50, *DRAW) and "contradicts" in said("--z-dim", 32, *DRAW)
    assert "add --train" in said(*DRAW, "--p-uncond", 0.5) and "add --train" in said(*DRAW, "--n-latents", 50)
    assert "--vae" in said(*DRAW, "--vae", "none.pt") and "no checkpoint none.pt" in said(*DRAW, "--vae", "none.pt")
    assert "--data-path has no effect" in said(*DRAW, "--data-path", "a.pt")  # the VAE rendered its own
    assert "at least 2" in refused("--n-latents", 1)
    assert "even" in refused("--t-emb-dim", 7) and "below --beta-start" in refused("--beta-end", 1e-5)
    assert "--z-dim 9 contradicts" in refused("--z-dim", 9)
    assert "made by latent_prior.py" in refused("--vae", trained)
    assert "resume" in mistake(lp.main, *TINY, "--vae", of_vae, "--out", trained)
    assert not (here / "x").exists()


def test_a_vae_of_one_crystal_has_no_spread_to_learn(here, mistake):
    data.build(1, "one.pt", img_size=16)
    kind = int(data.load_built("one.pt")["y_cat"][0])
    vae_run(here / "vae", "--data-path", "one.pt", "--kind", kind)
    words = [word for word in TINY if word not in ("--n-latents", "60")]
    assert "one crystal" in mistake(lp.main, *words, "--vae", "vae", "--kind", kind, "--out", "x")
    assert not (here / "x").exists()


@pytest.mark.parametrize("name", ["latent_prior", "latent_prior_cond"])
def test_what_ships_draws_crystals(name, tmp_path):
    path = ROOT / "assets" / "checkpoints" / f"{name}.pt"
    assert run("--ckpt", path, "--n", 12, "--steps", 20, "--out", tmp_path / "run") == 0
    numbers = read(tmp_path / "run" / "metrics.json")
    assert numbers["diffusion"]["crystal_error_mean"] < 0.03 and numbers["mop"]["crystal_error_mean"] < 0.03
    assert path.stat().st_size < 12e6


def test_a_chain_may_be_walked_in_all_its_steps(mistake):
    assert cli.parse(lp.Config, ["--T", "40", "--steps", "40"]).steps == 40
    assert "more than the chain has" in mistake(lp.main, "--train", "--T", 40, "--steps", 41)
