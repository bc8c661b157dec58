"""The VAE's training and its command: what decides the weights, what is written, what is refused."""

import json
import os
import shutil
from functools import partial

import data
import vae
from common import latents, loop, metrics, pictures, runs
from common.checkpoints import load_checkpoint, ship
from common.crystal_job import TrainingCrystals
from common.seeds import generator
from conftest import arrays, same, state
from conftest import run as run_main
from small import run_of
from test_processes import close, together

import numpy as np
import pytest
import torch

TINY = ["--train", "--train-steps", "6", "--save-every", "2", "--batch-size", "4"]
TINY += ["--img-size", "16", "--z-dim", "8", "--n", "5"]
PICTURES = {"reconstructions.png", "samples_mop.png", "samples_normal.png", "traversal.png"}
SAMPLES = PICTURES | {"config.json", "metrics.json", "samples.npz"}


def run(*words):
    return run_main(*words, main=vae.main)


@pytest.fixture(scope="module", autouse=True)
def few_held_out_crystals():
    with pytest.MonkeyPatch.context() as patch:
        for name, n in (("EVALUATED", 4), ("HELD_OUT", 16), ("PROBED", 64)):
            patch.setattr(vae, name, n)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny training through the real command line: its folder.  Not to be written into."""
    folder = tmp_path_factory.mktemp("vae") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "loss_curve", lambda *args: None)
        assert run(*TINY, "--out", folder) == 0
    return folder


@pytest.fixture
def numbers_only(monkeypatch, no_pictures):
    """No pages and no report on crystals, where only weights and samples are of interest."""
    monkeypatch.setattr(pictures, "captioned_grid", lambda *args: None)
    monkeypatch.setattr(latents, "prior_pages", lambda *args: ({}, []))


def read(path):
    """A JSON file, in which NaN is no number."""

    def refuse(word):
        raise AssertionError(f"{path} holds {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


# -------------------------------------------------------------------------------------------------- the training


class Spy(torch.nn.Module):
    """A VAE that remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, condition, eps):
        self.seen = x, condition, eps
        return self.w * x, self.w * eps, 0 * eps


def shown(folder, monkeypatch, **settings):
    """What a network is shown in the last step of a training, and its config."""
    monkeypatch.setattr(vae, "evaluate", lambda *args: ({}, None))
    config = vae.Config(**(dict(img_size=16, z_dim=3, batch_size=8, train_steps=2) | settings))
    spy = Spy()
    vae.train(spy, run_of(config, folder))
    return spy.seen, config


def test_a_step_draws_noise_and_drops_some_conditions(tmp_path, monkeypatch, no_pictures):
    (x, condition, eps), config = shown(tmp_path, monkeypatch, batch_size=400, cond_drop=0.25)
    assert (~condition.known).float().mean() == pytest.approx(0.25, abs=0.07)
    g = generator(0, 1, 0)  # the draws of step 1 of seed 0, in every edition
    assert torch.equal(eps, torch.randn(400, 3, generator=g))
    assert torch.equal(condition.known, torch.rand(400, generator=g) >= 0.25)
    x0, told = TrainingCrystals(run_of(config), signed=False).batch(1, 400)
    assert torch.equal(x, x0) and torch.equal(condition.cont, told.cont) and x.min() >= 0 and x.max() == 1


def test_a_process_works_on_its_rows_of_the_batch(tmp_path, monkeypatch, no_pictures):
    whole, _ = shown(tmp_path, monkeypatch)
    monkeypatch.setattr(loop, "own_rows", lambda n: slice(4, 8))
    (x, condition, eps), _ = shown(tmp_path, monkeypatch)
    assert torch.equal(x, whole[0][4:]) and torch.equal(eps, whole[2][4:])
    assert same(list(condition), list(whole[1].rows(slice(4, 8))))


KNOBS = [
    dict(beta=3.0),
    dict(beta_warmup=50),
    dict(free_bits=9.0),
    dict(cond_drop=1.0),
    dict(uncond=True),
    dict(seed=1),
    dict(lr=1e-2),
    dict(mode="full"),
    dict(n_types=2),
]


def test_every_knob_of_the_training_changes_the_weights(tmp_path, no_pictures):
    def weights(**settings):
        usual = dict(img_size=16, train_steps=2, batch_size=4, beta_warmup=0)
        config = vae.Config(**(usual | settings))
        net = runs.seeded(partial(vae.build, config), config.seed)
        ema = vae.train(net, run_of(config, tmp_path)).state_dict()
        return load_checkpoint(tmp_path)["model"], ema

    model, ema = weights()
    assert same((model, ema), weights(n=5))
    for knob in KNOBS:
        assert not same(model, weights(**knob)[0]), knob
    other_decay = weights(ema_decay=0.01)
    assert same(model, other_decay[0]) and not same(ema, other_decay[1])


def test_the_log_has_the_terms_of_the_loss_and_held_out_numbers(trained):
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert line["beta"] == pytest.approx(0.05 * line["step"] / 1000)  # warming up
        assert {"mse_per_pixel", "kl_nats", "free_bits_added_nats"} <= line.keys()
        assert line["held_out"]["n_held_out"] == 4 and line["held_out"]["reconstruction_rmse"] > 0


def test_a_stopped_training_resumes_bit_for_bit(here, trained, monkeypatch, numbers_only):
    usual = loop.Trainer.apply

    def interrupted(trainer, *args, **terms):
        usual(trainer, *args, **terms)
        if trainer.done == 3:
            os.kill(os.getpid(), 2)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "apply", interrupted)
        assert run(*TINY, "--out", "half") == 130
    assert load_checkpoint("half")["step"] == 3
    assert run("--resume", "--out", "half") == 0
    assert same(state("half"), state(trained))
    logs = [(folder / "log.jsonl").read_text().splitlines() for folder in (trained, here / "half")]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_two_processes_take_the_step_of_one_and_share_the_samples(here, trained, numbers_only):
    said, statuses = together(lambda: run(*TINY, "--n", 70, "--out", "two"), here)
    assert statuses == [0, 0], said
    one = state(trained)
    two = state("two")
    assert close(one["model"], two["model"]) and close(one["ema"], two["ema"])

    # Two batches, of which each process decodes one.
    assert run("--ckpt", "two", "--n", 70, "--out", "one") == 0
    assert same(arrays(here / "one"), arrays(here / "two"))


def test_free_bits_are_of_the_whole_batch_and_need_one_process(here, numbers_only):
    said, statuses = together(lambda: run(*TINY, "--free-bits", 1, "--out", "two"), here)
    assert statuses == [2, 2] and "--free-bits works in one process" in said[0]
    assert not (here / "two").exists()


# --------------------------------------------------------------------------------------------------- the command


def test_a_run_writes_what_it_says(trained):
    assert {path.name for path in trained.iterdir()} == SAMPLES | {"last.pt", "log.jsonl"}
    numbers = read(trained / "metrics.json")
    assert {"held_out", "normal", "mop", "latents", "n", "seconds"} == numbers.keys()
    assert len(numbers["latents"]["type"]) == len(numbers["latents"]["aspect"]) == 8
    samples = arrays(trained)
    assert samples["x"].shape == (5, 1, 16, 16) and samples["kind"].tolist() == [0, 1, 2, 3, 0]
    assert np.array_equal(samples["x"], samples["x_mop"]) and samples["x"].min() >= 0 and samples["x"].max() <= 1
    x, kind, theta = (torch.from_numpy(samples[key]) for key in ("x_normal", "kind", "theta"))
    error = metrics.crystal_error(x, kind, theta).error
    assert numbers["normal"]["crystal_error_mean"] == pytest.approx(float(error.mean()), abs=1e-6)


def test_sampling_from_a_run_again_and_from_what_ships_of_it(here, trained, numbers_only, capsys):
    ship(trained, here / "small.pt")
    assert run("--ckpt", trained, "--n", 5, "--out", "again") == 0
    assert run("--ckpt", "small.pt", "--n", 5, "--out", "small") == 0
    a, b, c = (arrays(folder)["x"] for folder in (trained, here / "again", here / "small"))
    assert np.array_equal(a, b) and 0 < np.abs(a - c).max() < 5e-3
    assert "device cpu" in capsys.readouterr().out


def test_use_ema_0_samples_with_the_weights_of_the_last_step(here, trained, numbers_only):
    """Right after the training as well as later, from its checkpoint."""
    assert run(*TINY, "--use-ema", 0, "--out", "raw") == 0
    assert run("--ckpt", trained, "--n", 5, "--use-ema", 0, "--out", "later") == 0
    assert same(state("raw"), state(trained))
    assert same(arrays(here / "raw"), arrays(here / "later"))
    assert not np.array_equal(arrays(here / "raw")["x"], arrays(trained)["x"])


@pytest.mark.parametrize("more", [[], ["--mode", "full"], ["--n-types", 1, "--mode", "simple"]])
def test_a_single_sample_has_finite_numbers(here, monkeypatch, more):
    monkeypatch.setattr(pictures, "captioned_grid", lambda *args: None)
    assert run(*TINY, *more, "--n", 1, "--out", "x") == 0
    numbers = read(here / "x" / "metrics.json")
    assert numbers["n"] == 1 and ("mop" in numbers) is ("full" not in more)


def test_mop_takes_the_file_of_the_training_wherever_it_lies(here, numbers_only, mistake):
    data.build(12, "a.pt", seed=4, img_size=16)
    assert run(*TINY, "--data-path", "a.pt", "--epochs", 2, "--out", "run", *[]) == 2  # two words for one thing
    words = [word for word in TINY if word not in ("--train-steps", "6")]
    assert run(*words, "--data-path", "a.pt", "--epochs", 2, "--out", "run") == 0
    assert load_checkpoint("run")["step"] == 6  # two passes over twelve crystals, four a step

    shutil.move("a.pt", "b.pt")
    assert "a.pt" in mistake(vae.main, "--ckpt", "run", "--n", 5, "--out", "x")
    assert run("--ckpt", "run", "--n", 5, "--data-path", "b.pt", "--out", "moved") == 0
    assert same(arrays(here / "run"), arrays(here / "moved"))
    assert run("--resume", "--out", "run", "--data-path", "b.pt", "--epochs", 3) == 0
    assert load_checkpoint("run")["step"] == 9

    data.build(12, "c.pt", seed=5, img_size=16)
    for words in (["--ckpt", "run", "--out", "x"], ["--resume", "--out", "run"]):
        assert "--data-path c.pt does not hold what" in mistake(vae.main, *words, "--data-path", "c.pt")


def test_a_file_is_refused_where_the_training_rendered_its_own(here, trained, mistake):
    data.build(12, "a.pt", seed=4, img_size=16)
    assert "--data-path a.pt" in mistake(vae.main, "--ckpt", trained, "--data-path", "a.pt", "--out", "x")


def test_what_mop_cannot_do_is_said_before_the_training(here, mistake):
    data.build(2, "two.pt", img_size=16)
    assert "hold no" in mistake(vae.main, *TINY, "--data-path", "two.pt", "--out", "x")
    assert not (here / "x").exists()


def test_bad_input_is_one_line(here, trained, mistake):
    def said(*words):
        return mistake(vae.main, *words, "--out", "x")

    assert "0" in said("--free-bits", -1)
    for flag in ("--beta", "--free-bits", "--lr", "--theta", "--cond-drop", "--ema-decay"):
        assert flag in said(flag, "nan")
    for words in (["--beta-warmup", 3], ["--free-bits", 1], ["--cond-drop", 0.5], ["--lr", 0.1]):
        assert "add --train" in said("--ckpt", trained, *words)
    assert "contradicts" in said("--ckpt", trained, "--z-dim", 16)
    assert "contradicts" in said("--ckpt", trained, "--uncond")
    assert "no condition" in said(*TINY, "--uncond", "--cond-drop", 0.5)
    assert "no checkpoint" in said("--ckpt", "nothing.pt")
    assert "multiple of 16" in said(*TINY, "--img-size", 50)
    assert "no data file" in said(*TINY, "--data-path", "none.pt")
    assert "resume" in mistake(vae.main, *TINY, "--out", trained)  # it holds a trained run
    assert "contradicts" in mistake(vae.main, "--resume", "--out", trained, "--beta", 2)
    (here / "cut.pt").write_bytes((trained / "last.pt").read_bytes()[:5000])
    assert "damaged" in said("--ckpt", "cut.pt")
    assert not (here / "x").exists()


def test_which_checkpoint_ships_follows_the_condition():
    assert (vae.Config().shipped, vae.Config(uncond=True).shipped) == ("vae_cond.pt", "vae_uncond.pt")
