"""The command of the main job: what its flags do, where its files go, and what it refuses."""

import json
import os
import signal

import data
import vp_sde
from common import metrics, pictures, runs
from common.checkpoints import load_checkpoint, ship
from conftest import arrays, same, state
from conftest import run as run_main
from small import small_unet
from vp_sde import UNet

import numpy as np
import pytest
import torch
from PIL import Image

SAMPLES = {"config.json", "metrics.json", "reverse_diffusion.gif", "samples.npz", "samples.png"}
TINY = ["--train", "--img-size=16", "--batch-size=2", "--train-steps=6", "--save-every=6", "--steps=3", "--n=5"]


def run(*words):
    return run_main(*words, main=vp_sde.main)


def sampled(out, *words):
    """The arrays that a command draws."""
    assert run(*words, "--out", out) == 0
    return arrays(out)


def read(path):
    """A JSON file, in which NaN is no number."""

    def refuse(word):
        raise AssertionError(f"{path} holds {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


def folder(*words):
    """Where the results of a command would go."""
    return runs.start(vp_sde.Config, words).folder


@pytest.fixture(autouse=True)
def a_small_network(monkeypatch):
    monkeypatch.setattr(vp_sde, "UNet", small_unet)


@pytest.fixture
def numbers_only(monkeypatch, no_pictures):
    """Neither pictures nor an evaluation, where only weights and samples are of interest."""
    monkeypatch.setattr(pictures, "captioned_grid", lambda *args: None)
    monkeypatch.setattr(pictures, "crystal_film", lambda *args: None)
    monkeypatch.setattr(vp_sde, "TrainingSamples", lambda *args, **settings: lambda trainer: None)
    monkeypatch.setattr(vp_sde, "score_errors", lambda *args, **settings: {"bins": {}})


@pytest.fixture
def samples_only(monkeypatch, numbers_only):
    """Not even numbers."""
    monkeypatch.setattr(metrics, "crystal_report", lambda *args, **settings: ({}, None, None))
    monkeypatch.setattr(metrics, "describe", lambda numbers: "")
    monkeypatch.setattr(pictures, "crystal_page", lambda *args: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny training that was never stopped.  Not to be written into."""
    out = tmp_path_factory.mktemp("runs") / "never_stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vp_sde, "UNet", small_unet)
        assert run(*TINY, "--out", out) == 0
    return out


# ------------------------------------------------------------------------------------------------- training


def test_a_training_leaves_its_checkpoint_its_curves_and_samples(trained):
    training = {"last.pt", "log.jsonl", "loss.png", "training_samples.png", "training.gif", "training_frames.npz"}
    assert {path.name for path in trained.iterdir()} == SAMPLES | training
    assert arrays(trained)["x"].shape == (5, 1, 16, 16)


def test_stopped_and_resumed_equals_never_stopped(trained, tmp_path, samples_only, monkeypatch, capsys):
    plain_loss = vp_sde.x0_loss
    calls = []

    def x0_loss(*args):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return plain_loss(*args)

    monkeypatch.setattr(vp_sde, "x0_loss", x0_loss)
    assert run(*TINY, "--out", tmp_path) == 130
    assert "stopped at step 2" in capsys.readouterr().err and state(tmp_path)["step"] == 2
    assert run("--resume", "--out", tmp_path) == 0
    assert same(state(tmp_path), state(trained))
    assert same(arrays(tmp_path), arrays(trained))


def test_a_network_that_returns_something_else_is_no_network_of_this_script(trained, tmp_path, mistake):
    other = load_checkpoint(trained) | {"predicts": "v"}
    torch.save(other, tmp_path / "last.pt")
    for words in (["--ckpt", tmp_path / "last.pt"], ["--resume", "--out", tmp_path]):
        assert "returns v, not x0: train anew" in mistake(vp_sde.main, *words)
    del other["predicts"]
    torch.save(other, tmp_path / "last.pt")
    assert "another kind of answer, not x0" in mistake(vp_sde.main, "--ckpt", tmp_path / "last.pt")


def test_use_ema_0_samples_with_the_weights_of_the_last_step(trained, tmp_path, samples_only):
    after = sampled(tmp_path / "a", *TINY, "--use-ema", 0)
    later = sampled(tmp_path / "b", "--ckpt", trained, "--steps", 3, "--n", 5, "--use-ema", 0)
    assert same(after, later) and not same(after, arrays(trained))


@pytest.mark.parametrize("mode, cfg, compared", [("full", 1, True), ("full", 0, False), ("simple", 1, True)])
def test_other_modes_train_and_sample(tmp_path, numbers_only, mode, cfg, compared):
    assert run(*TINY, "--mode", mode, "--cfg", cfg, "--out", tmp_path) == 0
    assert ("crystal_error_mean" in read(tmp_path / "metrics.json")) == compared
    if mode == "simple":
        assert not arrays(tmp_path)["theta"].any()  # simple crystals are not turned


def test_epochs_are_passes_over_the_file(tmp_path, samples_only):
    data.build(8, tmp_path / "built.pt", n_types=1, img_size=16)
    words = [word for word in TINY if "--train-steps" not in word]
    words += ["--n-types", 1, "--data-path", tmp_path / "built.pt", "--epochs", 1]
    assert run(*words, "--out", tmp_path / "out") == 0
    assert state(tmp_path / "out")["step"] == 4  # 8 crystals, 2 a step


# ------------------------------------------------------------------------------------------------- sampling


FLAGS = [
    "--seed 1", "--steps 5", "--grid uniform", "--grid quadratic", "--t-end 0.1", "--sampler ode", "--sampler dpmpp",
    "--kind 2", "--theta 0.5", "--use-ema 0", "--cfg 0", "--cfg 1",
]  # fmt: skip


def test_the_same_command_gives_the_same_bits_and_every_flag_has_an_effect(trained, tmp_path, samples_only):
    usual = ["--ckpt", trained, "--steps", 4, "--n", 4]
    first = sampled(tmp_path, *usual)
    assert first["x"].shape == (4, 1, 16, 16) and first["x"].dtype == np.float32
    assert first["kind"].dtype == np.int64 and first["theta"].dtype == np.float32
    assert first["x"].min() >= 0 and first["x"].max() <= 1

    assert same(first, sampled(tmp_path, *usual))
    for words in FLAGS:
        assert not np.array_equal(first["x"], sampled(tmp_path, *usual, *words.split())["x"]), words
    few = sampled(tmp_path, *usual, "--n", 3, "--sample-batch", 1)
    np.testing.assert_allclose(few["x"], first["x"][:3], atol=1e-3)
    assert np.array_equal(few["kind"], first["kind"][:3])


@pytest.mark.parametrize("words", ["", "--cfg 0", "--oracle --img-size 16"])
def test_a_single_crystal(trained, tmp_path, numbers_only, words):
    network = [] if "--oracle" in words else ["--ckpt", trained]
    drawn = sampled(tmp_path, *network, "--n", 1, "--steps", 2, *words.split())
    assert drawn["x"].shape == (1, 1, 16, 16) and read(tmp_path / "metrics.json")["n"] == 1


def test_without_a_condition_the_nearest_crystal_of_any_kind_is_reported(trained, tmp_path, numbers_only):
    sampled(tmp_path, "--ckpt", trained, "--steps", 2, "--n", 2, "--cfg", 0)
    assert read(tmp_path / "metrics.json")["condition"] == "none"


def test_the_checkpoint_that_ships_needs_ten_calls(tmp_path, numbers_only, mistake, monkeypatch):
    monkeypatch.setattr(vp_sde, "UNet", UNet)  # the whole of it
    assert run("--sampler", "dpmpp", "--steps", 10, "--n", 12, "--out", tmp_path) == 0
    assert read(tmp_path / "metrics.json")["crystal_error_mean"] < 0.016
    assert "averaged weights only" in mistake(vp_sde.main, "--use-ema", 0, "--out", tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_seed_is_the_same_crystal_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(vp_sde, "UNet", UNet)
    few = ["--sampler", "dpmpp", "--steps", 10, "--n", 4, "--precision", "float32"]
    on = [sampled(tmp_path / device, *few, "--device", device)["x"] for device in ("cpu", "cuda")]
    assert np.abs(on[0] - on[1]).max() < 0.02


def test_flags_of_mode_full_reach_the_network(tmp_path, samples_only):
    out = tmp_path / "full"
    assert run(*TINY, "--mode", "full", "--out", out) == 0
    usual = ["--ckpt", out, "--steps", 4, "--n", 4]
    first = sampled(tmp_path / "a", *usual)
    for words in ("--spacing 8", "--vacancy 0.2", "--jitter 0.5"):
        assert not np.array_equal(first["x"], sampled(tmp_path / "b", *usual, *words.split())["x"]), words


def test_mode_full_has_a_checkpoint_of_its_own(tmp_path, mistake, monkeypatch):
    monkeypatch.setattr(runs, "SHIPPED", tmp_path)
    line = mistake(vp_sde.main, "--mode", "full", "--vacancy", 0.1, "--out", tmp_path / "out")
    assert "vp_sde_full.pt" in line and "make one with --train" in line and not os.listdir(tmp_path)


# ---------------------------------------------------------------------------------------- files and folders


def test_the_files_of_a_command_and_its_film(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--oracle", "--kind", 0, "--steps", 40, "--img-size", 32) == 0
    out = tmp_path / "outputs/vp_sde/img_size-32_kind-0_oracle_steps-40"
    assert {path.name for path in out.iterdir()} == SAMPLES
    said = capsys.readouterr().out
    assert all(word in said for word in ("device cpu", "crystal error", "n = 36", "8 bits", *SAMPLES))

    numbers = read(out / "metrics.json")
    assert numbers["n"] == 36 and numbers["crystal_error_mean"] < 1e-4
    again = read(out / "config.json")
    assert again["steps"] == 40 and again["cfg"] == 1 and "network" not in again

    with Image.open(out / "reverse_diffusion.gif") as movie:
        delays = []
        for i in range(movie.n_frames):
            movie.seek(i)
            delays.append(movie.info["duration"])
        assert movie.info["loop"] == 0 and movie.size == (2 * 6 * 34, 2 * 6 * 34 + 24)
    assert 20 <= len(delays) <= 40 and delays[-1] == 1500
    assert len(set(delays[:-1])) == 1 and 2500 < sum(delays[:-1]) < 4000  # a film of some three seconds


def test_samples_say_how_their_network_was_trained(trained, tmp_path, samples_only):
    sampled(tmp_path, "--ckpt", trained, "--steps", 2, "--n", 2)
    config = read(tmp_path / "config.json")
    network = config["network"]
    assert network["file"] == str(trained / "last.pt") and network["step"] == 6
    assert network["config"]["batch_size"] == config["batch_size"] == 2
    assert network["config"]["steps"] == 3 and config["steps"] == 2  # drawn after the training, and now
    assert network["seconds"] > 0 and "cpu" in network["machine"]


def test_without_out_samples_go_below_their_run(trained, tmp_path, samples_only, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    for ckpt in (trained, trained / "last.pt"):
        assert folder("--ckpt", str(ckpt), "--cfg", "0") == trained / "cfg-0"
    assert run("--ckpt", trained, "--steps", 2, "--n", 2) == 0
    assert (trained / "n-2_steps-2" / "samples.npz").is_file() and not os.listdir(tmp_path)
    assert before == {path.name: path.read_bytes() for path in trained.iterdir() if path.is_file()}


FOLDERS = {
    "": "default",
    "--steps 300 --cfg 1.5": "default",
    "--cfg 0": "cfg-0",
    "--sampler dpmpp --steps 10": "sampler-dpmpp_steps-10",
    "--steps 10 --sampler dpmpp --device cpu": "sampler-dpmpp_steps-10",
    "--oracle": "oracle",
    "--seed 3 --kind honeycomb": "kind-3_seed-3",
    "--train": "train",
    "--train --lr 0.1 --mode full --save-every 9": "train_lr-0.1_mode-full",
}


@pytest.mark.parametrize("words, name", FOLDERS.items())
def test_a_folder_is_named_after_its_settings(words, name):
    assert str(folder(*words.split())) == f"outputs/vp_sde/{name}"


def test_two_commands_never_share_a_folder(trained, tmp_path):
    ship(trained / "last.pt", tmp_path / "mine.pt")
    ship(trained / "last.pt", tmp_path / "other.pt")
    commands = [
        "", "--cfg 0", "--cfg 1", "--seed 1", "--steps 10", "--grid uniform", "--t-end 0.1", "--sampler ode",
        "--sampler dpmpp", "--kind 0", "--kind 1", "--theta 0", "--theta 30deg", "--theta 0.5", "--n 4",
        "--oracle", "--oracle --img-size 32", "--oracle --n-types 2", "--oracle --beta-max 20", "--precision bf16",
        "--precision float32", "--train", "--train --cfg 0", "--train --lr 1e-4", "--train --use-ema 0",
        f"--ckpt {tmp_path}/mine.pt", f"--ckpt {tmp_path}/other.pt", f"--ckpt {tmp_path}/mine.pt --cfg 0",
        f"--ckpt {trained}", f"--ckpt {trained} --seed 1",
    ]  # fmt: skip
    folders = [folder(*words.split()) for words in commands]
    assert len(set(folders)) == len(commands)


def test_sampling_again_replaces_its_own_files_only(trained, tmp_path, samples_only):
    sampled(tmp_path, "--ckpt", trained, "--steps", 2, "--n", 2)
    names = set(os.listdir(tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    os.link(tmp_path / "samples.npz", tmp_path / "linked.npz")  # what is moved into place leaves the old file alone
    old = (tmp_path / "samples.npz").read_bytes()
    sampled(tmp_path, "--ckpt", trained, "--steps", 2, "--n", 3)
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "linked.npz").read_bytes() == old
    assert (tmp_path / "samples.npz").read_bytes() != old
    assert set(os.listdir(tmp_path)) == names | {"notes.txt", "linked.npz"}


def test_a_config_repeats_its_run(trained, tmp_path, samples_only):
    first = sampled(tmp_path / "a", "--ckpt", trained, "--steps", 2, "--n", 3, "--cfg", 0.5, "--seed", 7)
    config = tmp_path / "a" / "config.json"
    assert same(first, sampled(tmp_path / "b", "--config", config, "--ckpt", trained))
    assert same(arrays(trained), sampled(tmp_path / "c", "--train", "--config", trained / "config.json"))


# ------------------------------------------------------------------------------------------------- mistakes

WITHOUT_EFFECT = [
    ("--oracle --precision bf16", "--precision has no effect: --oracle has no network"),
    ("--oracle --use-ema 0", "--use-ema has no effect"),
    ("--cfg 0 --kind 1", "--kind has no effect: --cfg 0 has no condition"),
    ("--cfg 0 --theta 0.3", "--theta has no effect"),
    ("--train --mode full --cfg 0 --spacing 8", "--spacing has no effect: --cfg 0 has no condition"),
    ("--train --mode full --cfg 0 --vacancy 0.1", "--vacancy has no effect: --cfg 0"),
    ("--train --mode full --cfg 0 --jitter 0.1", "--jitter has no effect: --cfg 0"),
    ("--oracle --spacing 8", "--spacing has no effect: crystals of mode rot-only do not vary it"),
    ("--train --vacancy 0.1", "--vacancy has no effect: crystals of mode rot-only"),
    ("--train --mode simple --jitter 0.1", "--jitter has no effect: crystals of mode simple"),
    ("--steps 1 --grid uniform", "--grid has no effect: the only call is at t = 1"),
    ("--steps 1 --t-end 0.1", "--t-end has no effect"),
    ("--lr 0.1", "--lr is a setting of the training: add --train"),
    ("--data-path x.pt", "--data-path is a setting of the training"),
    ("--epochs 2", "--epochs is a setting of the training"),
    ("--oracle --p-uncond 0.5", "--p-uncond is a setting of the training"),
    ("--train --epochs 2 --train-steps 5", "say the same thing"),
]
CONTRADICTIONS = [
    ("--img-size 32", "--img-size 32 contradicts"),
    ("--mode simple", "--mode simple contradicts"),
    ("--oracle --cfg 2", "--oracle needs --cfg 1"),
    ("--oracle --mode full", "--oracle needs --cfg 1, --mode rot-only"),
    ("--oracle --train", "no training"),
    ("--oracle --n-types 2 --kind 3", "--kind 3: the model knows types 0 to 1 only"),
    ("--oracle --beta-min 50", "--beta-max 30.0 is below --beta-min 50"),
    ("--train --mode simple --theta 0.2", "--theta: crystals of mode simple are not turned"),
    ("--data S", "unrecognized arguments: --data S"),
]
OUT_OF_RANGE = [
    "--n 0", "--sample-batch 0", "--cfg -1", "--cfg nan", "--t-end 0", "--t-end 1", "--steps 0", "--steps 2.5",
    "--grid cosine", "--sampler rk45", "--img-size 40", "--img-size 8", "--n-types 5", "--beta-min 0", "--beta-min nan",
    "--beta-max 1e9", "--p-uncond 2", "--kind 4", "--kind cubic", "--theta 1.05", "--theta 61deg", "--mode cubic",
    "--spacing 5.9", "--spacing 14.1", "--vacancy 0.26", "--vacancy -0.1", "--jitter 0.61", "--jitter nan",
]  # fmt: skip
MISTAKES = WITHOUT_EFFECT + CONTRADICTIONS + [(words, words.split()[0]) for words in OUT_OF_RANGE]


@pytest.mark.parametrize("words, complaint", MISTAKES)
def test_what_cannot_be_is_refused_in_one_line_and_writes_nothing(tmp_path, mistake, words, complaint):
    line = mistake(vp_sde.main, *words.split(), "--out", tmp_path / "out")
    assert complaint in line and not os.listdir(tmp_path)


def test_crystals_of_another_mode_are_refused(tmp_path, mistake):
    data.build(6, tmp_path / "full.pt", mode="full", img_size=16)
    out = tmp_path / "out"
    line = mistake(vp_sde.main, *TINY, "--data-path", tmp_path / "full.pt", "--out", out)
    assert "full.pt holds crystals of --mode full, not of rot-only" in line
    assert not out.exists()


def test_a_training_keeps_its_folder_and_its_settings(trained, mistake):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert "holds a trained run" in mistake(vp_sde.main, "--oracle", "--out", trained)
    assert "continue it with --resume" in mistake(vp_sde.main, "--train", "--out", trained)
    assert "--lr 0.5 contradicts" in mistake(vp_sde.main, "--resume", "--out", trained, "--lr", 0.5)
    assert "starts from fresh weights" in mistake(vp_sde.main, "--train", "--ckpt", trained)
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def test_a_longer_run_goes_on_from_a_finished_one(trained, tmp_path, samples_only):
    for name in ("last.pt", "log.jsonl"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    assert run("--resume", "--out", tmp_path, "--train-steps", 8, "--save-every", 5) == 0
    checkpoint = load_checkpoint(tmp_path, "vp_sde")
    stored = checkpoint["config"]
    assert checkpoint["step"] == 8
    assert (stored["train_steps"], stored["save_every"], stored["batch_size"], stored["img_size"]) == (8, 5, 2, 16)
