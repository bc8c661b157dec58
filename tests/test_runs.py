"""A run: which settings it takes from where, which folder it writes into, and what it refuses."""

import json
import os
import shutil
from pathlib import Path

import toy
from common import checkpoints, runs
from conftest import arrays, run, same, state

import pytest
import torch


@pytest.fixture
def shipped(here, toy_run):
    """The toy's training as the checkpoint that ships."""
    checkpoints.ship(toy_run, runs.SHIPPED / "toy.pt")
    return runs.SHIPPED / "toy.pt"


@pytest.fixture
def copy(here, toy_run):
    """A copy of the toy's training, to be written into."""
    return Path(shutil.copytree(toy_run, here / "copy"))


def start(*words):
    return runs.start(toy.Config, [str(word) for word in words])


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ folders


def test_a_run_folder_is_named_after_its_settings(here, shipped, toy_run):
    outputs = Path("outputs", "toy")
    folders = {
        "": outputs / "default",
        "--device cpu": outputs / "default",
        "--steps 10": outputs / "steps-10",
        "--cfg 0": outputs / "cfg-0",
        "--oracle": outputs / "oracle",
        "--oracle --shape dot": outputs / "oracle_shape-dot",
        "--shape ring --seed 1 --use-ema 1": outputs / "seed-1",
        "--train": outputs / "train",
        "--train --device cpu --save-every 2": outputs / "train",
        "--train --lr 0.1 --n 3": outputs / "train_lr-0.1_n-3",
        f"--ckpt {toy_run}": toy_run / "default",
        f"--ckpt {toy_run}/last.pt --n 2": toy_run / "n-2",
        f"--ckpt {toy_run} --width 4": toy_run / "default",
    }
    for words, folder in folders.items():
        assert start(*words.split()).folder == folder, words


def test_samples_of_any_other_checkpoint_carry_its_name(here, shipped):
    for name in ("one.pt", "two.pt", "tw o.pt"):
        shutil.copy(shipped, here / name)
    folders = [start("--ckpt", name).folder for name in ("one.pt", "two.pt", "tw o.pt", "./one.pt")]
    assert folders[0] == Path("outputs", "toy", "one.pt", "default")
    assert len(set(folders)) == 4 and all(" " not in str(folder) for folder in folders)


def test_what_is_written_is_said_and_lies_where_it_is_said(here, shipped, capsys):
    assert run("--steps", 2) == 0
    folder = here / "outputs" / "toy" / "steps-2"
    assert sorted(os.listdir(folder)) == ["config.json", "metrics.json", "samples.npz"]
    first, words, last = capsys.readouterr().out.splitlines()
    assert first == "device cpu, float32; output in outputs/toy/steps-2" or "bf16" in first
    assert words.startswith("their mean is")
    assert last == "outputs/toy/steps-2 now holds config.json, metrics.json, samples.npz"


def test_sampling_again_replaces_its_own_files_only_and_each_as_a_whole(here, shipped):
    assert run("--out", "mine") == 0
    (here / "mine" / "notes.txt").write_text("precious")
    os.link("mine/samples.npz", "mine/linked.npz")  # a file moved into place leaves the old one as it was
    before = Path("mine/linked.npz").read_bytes()
    assert run("--out", "mine", "--n", 2) == 0
    assert Path("mine/notes.txt").read_text() == "precious"
    assert Path("mine/linked.npz").read_bytes() == before != Path("mine/samples.npz").read_bytes()


def test_a_folder_with_a_trained_run_takes_no_other_results(here, copy, mistake):
    before = contents(copy)
    for words in (["--train", "--seed", "1"], ["--oracle"], ["--ckpt", copy]):
        line = mistake(toy.main, *words, "--out", copy)
        assert "holds a trained run" in line and "another folder with --out" in line
    assert "--resume" in mistake(toy.main, "--train", "--out", copy)
    assert contents(copy) == before and sorted(os.listdir(copy)) == sorted(path.name for path in before)


def test_a_folder_that_cannot_be_written_is_found_out_before_the_work(here, mistake):
    Path("file").write_text("precious")
    for out in ("file", "file/below"):
        assert "cannot write into the folder" in mistake(toy.main, "--oracle", "--out", out)
    assert Path("file").read_text() == "precious"


def test_a_failure_leaves_no_empty_folder(here, mistake, monkeypatch):
    def fail(*args):
        raise ValueError("something")

    monkeypatch.setattr(toy, "sample_images", fail)
    assert "something" in mistake(toy.main, "--oracle", "--out", "a/b/c")
    assert os.listdir(here) == []


# ------------------------------------------------------------------------------------------------ settings


def test_a_checkpoint_knows_network_and_training_and_the_call_the_rest(here, toy_run):
    found = start("--ckpt", toy_run, "--n", 2, "--seed", 5)
    assert (found.config.n, found.config.seed, found.config.width, found.config.train_steps) == (2, 5, 4, 12)
    assert (found.trained.seed, found.trained.n) == (0, 6)
    assert found.source == toy_run / "last.pt" and found.checkpoint["step"] == 12


def test_a_model_flag_must_agree_with_the_checkpoint(here, toy_run, shipped, mistake):
    for words in (["--ckpt", toy_run], []):
        line = mistake(toy.main, *words, "--width", 8)
        assert "--width 8 contradicts" in line and "which has 4" in line
    assert start("--ckpt", toy_run, "--width", 4).config.width == 4


def test_a_typed_training_flag_without_a_training_is_refused(here, shipped, mistake):
    for words in (["--lr", 0.5], ["--train-steps", 12], ["--epochs", 1], ["--data-path", "x"]):
        for more in ([], ["--oracle"]):
            line = mistake(toy.main, *words, *more)
            assert f"{words[0]} is a setting of the training: add --train" in line


def test_a_training_flag_in_a_config_is_passed_over_when_sampling(here, shipped):
    Path("c.json").write_text(json.dumps({"lr": 0.125, "train_steps": 99, "n": 2}))
    for more in ([], ["--oracle"]):
        assert run("--config", "c.json", *more, "--out", "x") == 0
        assert len(arrays(here / "x")["x"]) == 2
    found = start("--config", "c.json")
    assert (found.config.lr, found.config.train_steps, found.folder.name) == (0.5, 12, "n-2")


def test_a_flag_without_effect_is_refused(here, mistake):
    words = ["--cfg", "0", "--steps", "3", "--oracle"]
    assert "--steps has no effect: --cfg 0 stands still" in mistake(toy.main, *words)
    assert not os.listdir(here)


def test_epochs_are_another_way_to_say_train_steps(here, mistake):
    torch.save(torch.rand(40, 2), "points.pt")
    usual = ["--train", "--data-path", "points.pt", "--batch-size", 8]
    Path("steps.json").write_text(json.dumps({"train_steps": 99}))
    Path("epochs.json").write_text(json.dumps({"epochs": 99}))
    for words, expected in (
        (["--epochs", 3], 15),
        (["--config", "steps.json"], 99),
        (["--config", "steps.json", "--epochs", 2], 10),  # what is typed wins
        (["--config", "epochs.json"], 495),
        (["--config", "epochs.json", "--train-steps", 7], 7),
    ):
        assert start(*usual, *words).config.train_steps == expected, words
    assert "--epochs and --train-steps" in mistake(toy.main, *usual, "--epochs", 2, "--train-steps", 7)
    assert start("--train", "--epochs", 1).config.train_steps == 12_500  # of 50,000 without a file


@pytest.mark.parametrize("use_ema, name", [(1, "ema"), (0, "model")])
def test_use_ema_chooses_the_weights_after_a_training_and_of_a_checkpoint(here, use_ema, name):
    assert run("--train", "--use-ema", use_ema, "--out", "a") == 0
    assert run("--ckpt", "a", "--use-ema", use_ema, "--out", "b") == 0
    assert run("--ckpt", "a", "--use-ema", 1 - use_ema, "--out", "c") == 0
    a, b, c = (arrays(here / folder) for folder in "abc")
    assert same(a, b) and not same(a, c)

    net = toy.Net(4)
    net.load_state_dict(checkpoints.load_checkpoint("a")[name])
    found = start("--ckpt", "a", "--use-ema", use_ema)
    assert same(runs.load_net(toy.Net(4), found).state_dict(), net.state_dict())


def test_a_shipped_checkpoint_has_averaged_weights_only(here, shipped, mistake):
    assert "averaged weights only" in mistake(toy.main, "--use-ema", 0)


def test_training_starts_from_fresh_weights(here, toy_run, mistake):
    assert "leave --ckpt out" in mistake(toy.main, "--train", "--ckpt", toy_run)
    build = runs.seeded(lambda: toy.Net(4), 0)
    assert same(build.state_dict(), runs.seeded(lambda: toy.Net(4), 0).state_dict())
    assert not same(build.state_dict(), runs.seeded(lambda: toy.Net(4), 1).state_dict())


def test_missing_checkpoints(here, mistake):
    for words in ([], ["--ckpt", "no.pt"], ["--ckpt", here]):
        line = mistake(toy.main, *words)
        assert "there is no checkpoint" in line and "--train" in line
    assert not os.listdir(here)


def test_a_network_that_ships_is_found_by_its_name(here, shipped):
    cpu = torch.device("cpu")
    net = runs.shipped_net(toy.Config, toy.build, "toy.pt", cpu)
    halves = {name: w.half() if w.is_floating_point() else w for name, w in net.state_dict().items()}
    assert same(halves, checkpoints.load_checkpoint(shipped)["ema"])
    assert not any(p.requires_grad for p in net.parameters())
    assert runs.shipped_net(toy.Config, toy.build, "no.pt", cpu) is None


def test_another_network_is_opened_as_it_was_trained(here, shipped, toy_run):
    found = start("--seed", 5, "--n", 2)
    found.device = torch.device("cpu")
    net, other = runs.opened(toy_run, toy.build, found)
    assert same(net.state_dict(), checkpoints.load_checkpoint(toy_run)["ema"])
    assert (other.config.seed, other.trained.seed, other.source) == (5, 0, toy_run / "last.pt")
    assert found.source == shipped


def test_the_settings_of_a_sampling_can_be_others_for_once(here, shipped):
    found = start("--seed", 5)
    assert (found.with_settings(n=9).config.n, found.with_settings(n=9).config.seed, found.config.n) == (9, 5, 6)


# ------------------------------------------------------------------------------------------------ the config.json


def test_the_config_of_samples_says_how_their_network_was_trained(here, shipped, toy_run):
    assert run("--n", 2, "--seed", 3, "--out", "a") == 0
    config = json.loads(Path("a/config.json").read_text())
    assert (config["n"], config["seed"], config["train"]) == (2, 3, False)
    network = config["network"]
    assert (network["step"], network["config"]["seed"], network["config"]["lr"]) == (12, 0, 0.5)
    assert network["file"] == str(shipped) and network["seconds"] >= 0


def test_a_config_repeats_its_run(here, toy_run):
    assert run("--ckpt", toy_run, "--cfg", 0.5, "--seed", 7, "--out", "a") == 0
    assert run("--ckpt", toy_run, "--config", "a/config.json", "--out", "b") == 0
    assert same(arrays(here / "a"), arrays(here / "b"))

    assert run("--train", "--seed", 7, "--width", 5, "--n", 3, "--out", "c") == 0
    assert run("--train", "--config", "c/config.json", "--out", "d") == 0
    assert same(arrays(here / "c"), arrays(here / "d")) and same(state("c"), state("d"))


def test_the_same_command_gives_the_same_bits_and_every_flag_has_an_effect(here, toy_run):
    usual = ["--ckpt", toy_run, "--out", "x"]
    assert run(*usual) == 0
    first = arrays(here / "x")
    assert run(*usual) == 0 and same(arrays(here / "x"), first)
    for words in ("--seed 1", "--steps 4", "--cfg 1", "--n 5", "--use-ema 0"):
        assert run(*usual, *words.split()) == 0
        assert not same(arrays(here / "x"), first), words


# ------------------------------------------------------------------------------------------------ resumed


def test_a_resumed_run_takes_the_stored_settings(here, toy_run):
    found = start("--resume", "--out", toy_run).config
    assert (found.train_steps, found.lr, found.seed, found.train, found.out) == (12, 0.5, 0, True, str(toy_run))
    words = ["--train-steps", 60, "--save-every", 7, "--device", "cpu", "--lr", 0.5, "--width", 4]
    found = start("--resume", "--out", toy_run, *words).config
    assert (found.train_steps, found.save_every, found.device) == (60, 7, "cpu")
    assert start("--resume", "--out", toy_run, "--epochs", 2).config.train_steps == 25_000


@pytest.mark.parametrize("flag", ["--lr=0.25", "--seed=1", "--batch-size=8", "--cfg=2", "--oracle", "--width=5"])
def test_a_resumed_run_cannot_become_another(toy_run, mistake, flag):
    line = mistake(toy.main, "--resume", "--out", toy_run, flag)
    assert f"{flag.split('=')[0]} " in line and "contradicts" in line


def test_what_cannot_be_resumed(here, toy_run, shipped, mistake):
    assert "--resume needs --out DIR" in mistake(toy.main, "--resume")
    assert "nothing to resume: there is no" in mistake(toy.main, "--resume", "--out", "no")
    assert "is less than the 12" in mistake(toy.main, "--resume", "--out", toy_run, "--train-steps", 11)
    assert "leave --config and --ckpt out" in mistake(toy.main, "--resume", "--out", toy_run, "--ckpt", toy_run)
    Path("half").mkdir()
    shutil.copy(shipped, "half/last.pt")
    assert "averaged weights only" in mistake(toy.main, "--resume", "--out", "half")
    assert not Path("no").exists() and os.listdir("half") == ["last.pt"]


def test_a_longer_run_stays_longer(here, copy):
    for more in (["--train-steps", 14, "--save-every", 5], []):
        assert run("--resume", "--out", copy, *more) == 0
        stored = checkpoints.load_checkpoint(copy)
        assert (stored["step"], stored["config"]["train_steps"], stored["config"]["save_every"]) == (14, 14, 5)
        assert json.loads((copy / "config.json").read_text())["train_steps"] == 14


# ------------------------------------------------------------------------------------------------ data that move


@pytest.fixture
def learned(here):
    """A training on points of a file, named by a relative path, and what it came to."""
    Path("a").mkdir()
    torch.save(torch.rand(40, 2, generator=torch.Generator().manual_seed(0)), "a/points.pt")
    assert run("--train", "--data-path", "a/points.pt", "--out", "run") == 0
    return here / "run"


def test_a_run_goes_on_from_any_folder(learned, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert run("--resume", "--out", learned, "--train-steps", 13) == 0
    assert run("--ckpt", learned, "--n", 2) == 0
    assert os.listdir(elsewhere) == [] and (learned / "n-2").is_dir()


def test_data_may_move_and_the_typed_path_wins(learned, mistake):
    shutil.move("a", "b")
    assert "points.pt" in mistake(toy.main, "--resume", "--out", "run", "--train-steps", 13)
    moved = Path("b/points.pt").absolute()
    assert run("--resume", "--out", "run", "--train-steps", 13, "--data-path", "b/points.pt") == 0
    assert checkpoints.load_checkpoint("run")["config"]["data_path"] == str(moved)
    assert run("--resume", "--out", "run", "--train-steps", 14) == 0  # remembered


def test_other_data_in_their_place_are_noticed(learned, mistake):
    before = contents(learned)
    torch.save(torch.rand(40, 2), "b.pt")
    line = mistake(toy.main, "--resume", "--out", "run", "--train-steps", 13, "--data-path", "b.pt")
    assert "--data-path b.pt does not hold what" in line and "was trained on" in line
    shutil.copy("b.pt", "a/points.pt")
    assert "does not hold what" in mistake(toy.main, "--resume", "--out", "run", "--train-steps", 13)
    same_run = contents(learned)
    for name in ("last.pt", "log.jsonl", "samples.npz"):
        assert same_run[learned / name] == before[learned / name]


def test_a_file_is_not_slipped_into_a_run_that_had_none(here, copy, mistake):
    torch.save(torch.rand(40, 2), "b.pt")
    line = mistake(toy.main, "--resume", "--out", "copy", "--train-steps", 13, "--data-path", "b.pt")
    assert "--data-path b.pt does not hold what" in line


def test_paths_of_the_repository_are_remembered_from_it():
    assert checkpoints.lasting_path(checkpoints.ROOT / "data" / "x.pt") == "data/x.pt"
    assert os.path.isabs(checkpoints.lasting_path("/elsewhere/x.pt"))
    assert checkpoints.found_path("requirements.txt").is_file()


def test_the_same_content_has_the_same_hash_wherever_it_lies():
    x = torch.arange(6.0).reshape(2, 3)
    first = checkpoints.content_hash({"x": x, "y": x[0]})
    assert first == checkpoints.content_hash({"y": x[0].clone(), "x": x.T.contiguous().T})
    assert first != checkpoints.content_hash({"x": x + 1, "y": x[0]}) != checkpoints.content_hash({"x": x})
