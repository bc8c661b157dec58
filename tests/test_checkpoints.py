"""Checkpoints: they come back as they were, or are refused in one sentence that says what is wrong."""

import builtins
import copy
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import toy
from common import checkpoints, runs
from conftest import run

import pytest
import torch


def example(**more):
    weights = {"w": torch.arange(40.0), "n": torch.tensor(3)}
    about = dict(script="toy", config={"lr": 0.5}, contents={}, step=5, seconds=1.5, machine="a laptop")
    return about | dict(ema=weights, model=weights, optimizer={}, sums={}) | more


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved" / "last.pt"
    checkpoints.save_checkpoint(path, example())
    return path


def torch_bytes(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ there and back


def test_a_checkpoint_comes_back_from_its_file_or_its_folder(saved):
    for path in (saved, saved.parent, str(saved)):
        back = checkpoints.load_checkpoint(path, "toy")
        assert torch.equal(back["ema"]["w"], torch.arange(40.0))
        assert back["config"] == {"lr": 0.5} and back["edition"] == checkpoints.EDITION
    assert checkpoints.load_checkpoint(saved)["step"] == 5  # of any script
    assert os.listdir(saved.parent) == ["last.pt"]


def test_paths_that_no_terminal_can_spell_are_remembered(tmp_path):
    checkpoints.save_checkpoint(tmp_path / "a.pt", example(config={"data_path": "münze\udcff.pt"}))
    assert checkpoints.load_checkpoint(tmp_path / "a.pt")["config"] == {"data_path": "münze\udcff.pt"}


# ------------------------------------------------------------------------------------------------ what is refused


def test_a_checkpoint_cut_short_or_with_a_flipped_bit_is_refused(saved, tmp_path):
    whole = saved.read_bytes()
    hurt = tmp_path / "hurt.pt"
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        hurt.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut short"):
            checkpoints.load_checkpoint(hurt, "toy")

    place = whole.index(torch.arange(40.0).numpy().tobytes()) + 50  # in the weights, where torch would not notice
    hurt.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load_checkpoint(hurt, "toy")


class Bomb:
    def __reduce__(self):
        return exec, ("import builtins; builtins.exploded = True",)


def foreign_files():
    """Files that are no checkpoint, by name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("hello.txt", "hello")
    return {
        "empty": b"",
        "text": b"just some text\n",
        "pickle": pickle.dumps(Bomb()),
        "pickled checkpoint": pickle.dumps(example(model=Bomb())),
        "code": torch_bytes(example(edition=2, model=Bomb())),
        "archive": archive.getvalue(),
        "list": torch_bytes([1, 2]),
        "no dict for a config": torch_bytes(example(edition=2, config=[1])),
        "no weights": torch_bytes(example(edition=2, ema=None)),
        "a word for a step": torch_bytes(example(edition=2, step="5")),
        "a word for seconds": torch_bytes(example(edition=2, seconds="5")),
        "no script": torch_bytes(example(edition=2, script=None)),
        "config only": torch_bytes({"config": {}}),
    }


@pytest.mark.parametrize("name", foreign_files())
def test_files_that_are_no_checkpoint_are_refused_and_code_in_them_does_not_run(tmp_path, name):
    (tmp_path / "x.pt").write_bytes(foreign_files()[name])
    with pytest.raises(ValueError, match=r"x\.pt is damaged, cut short or no checkpoint of this project"):
        checkpoints.load_checkpoint(tmp_path / "x.pt", "toy")
    assert not hasattr(builtins, "exploded")


def test_missing_and_foreign_checkpoints(saved, tmp_path):
    with pytest.raises(ValueError, match="made by toy.py, not by other.py"):
        checkpoints.load_checkpoint(saved, "other")
    for path in (tmp_path / "no.pt", tmp_path / "no" / "no.pt", tmp_path):
        with pytest.raises(ValueError, match="there is no checkpoint .*--train.*--ckpt"):
            checkpoints.load_checkpoint(path, "toy")


def test_a_checkpoint_of_the_first_edition_ends_in_one_line_that_says_so(here, mistake):
    first = example()
    del first["contents"], first["seconds"], first["sums"]
    Path("run").mkdir()
    Path("run/last.pt").write_bytes(torch_bytes(first))
    for words in (["--ckpt", "run"], ["--resume", "--out", "run"]):
        assert "made by the first edition of this project" in mistake(toy.main, *words)


def test_what_cannot_be_read_is_not_called_damaged(saved, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ValueError, match="cannot read the checkpoint .*last.pt: Permission denied"):
        checkpoints.load_checkpoint(saved)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_what_is_no_file_is_no_checkpoint(here, mistake):
    os.mkfifo("pipe")  # to read it would be to wait for ever
    assert "is no file" in mistake(toy.main, "--ckpt", "pipe")


BAD_SETTINGS = {
    "--cfg: must be at least 0, not -1": {"cfg": -1},
    "is not a number": {"lr": [1]},
    "--seed: expected one argument": {"seed": True},
    "whole number": {"train_steps": 1.5},
    "--oracle": {"oracle": 1},
    "does not say its width": {"width": ...},
    "does not say its shape": {"shape": None},
    "does not say its seed": {"seed": ...},
}


@pytest.mark.parametrize("complaint", BAD_SETTINGS)
def test_the_config_of_a_checkpoint_is_checked_like_flags(here, mistake, complaint):
    """Nobody types these, but nobody should see a traceback for a file that another program wrote either."""
    known = {"cfg": 0.25, "theta": None, "lr": 1, "seed": 3, "width": 4, "shape": "ring", "of_a_later_version": [1]}
    net = toy.Net(4).state_dict()
    checkpoints.save_checkpoint(here / "a.pt", example(config=known, ema=net))
    trained = runs.start(toy.Config, ["--ckpt", "a.pt"]).trained
    assert (trained.cfg, trained.lr, trained.seed, trained.theta) == (0.25, 1.0, 3, None)
    assert type(trained.lr) is float  # as the parser would have it

    settings = known | BAD_SETTINGS[complaint]
    settings = {key: value for key, value in settings.items() if value is not ...}
    checkpoints.save_checkpoint(here / "a.pt", example(config=settings, ema=net))
    line = mistake(toy.main, "--ckpt", "a.pt")
    assert complaint in line and "a.pt" in line


def test_weights_of_another_network_are_refused():
    net = torch.nn.Linear(2, 3)
    for weights in ({}, {"weight": torch.ones(3, 2), "bias": torch.ones(4)}, {"weight": 1, "bias": 2}, {1: 2}):
        with pytest.raises(ValueError, match="the weights in x.pt do not fit"):
            checkpoints.load_weights(net, weights, "x.pt")
    half = {"weight": torch.full((3, 2), 0.5).half(), "bias": torch.ones(3).half()}
    loaded = checkpoints.load_weights(net, half, "x.pt")
    assert loaded.weight.dtype == torch.float32 and loaded.weight[0, 0] == 0.5


# ------------------------------------------------------------------------------------------------ to be resumed


def adam_state(steps, saved=None):
    """The state of an optimizer after these steps, continued from `saved`."""
    net = torch.nn.Linear(3, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(0.5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.01)
    if saved:
        checkpoints.load_optimizer(optimizer, saved, "last.pt")
    for _ in range(steps):
        net(torch.tensor([1.0, -2.0, 3.0])).square().sum().backward()
        optimizer.step()
    return optimizer.state_dict()


def test_the_state_of_an_optimizer_comes_back():
    fresh = adam_state(0)
    used = adam_state(2)
    assert fresh["state"] == {} and adam_state(0, fresh)["state"] == {}
    there_and_back = adam_state(0, used)
    for i, values in used["state"].items():
        assert all(torch.equal(value, there_and_back["state"][i][key]) for key, value in values.items())
    adam_state(1, copy.deepcopy(used) | {"param_groups": "not read: the script knows its own"})


def test_a_damaged_state_of_an_optimizer_is_refused():
    used = adam_state(2)
    bad = [[None], [{}], {"state": 3}, {"state": {0: 1}}, {"state": {0: {"step": torch.tensor(1.0)}}}]
    for key, value in (
        ("exp_avg", torch.zeros(3, 2)),
        ("exp_avg_sq", None),
        ("step", torch.zeros(1)),
        ("max", used),
    ):
        bad.append(copy.deepcopy(used))
        bad[-1]["state"][0][key] = value
    for saved in bad:
        with pytest.raises(ValueError, match="state of the optimizer in last.pt"):
            adam_state(1, saved)


DAMAGES = {
    "averaged weights only": {"optimizer": ...},
    "it cannot be resumed": {"sums": {"loss": 1.0}},
    "cannot be resumed": {"sums": {"loss": ["1"]}},
    "be resumed": {"sums": [1]},
    "resumed": {"seconds": None},
    "is damaged: it cannot": {"seconds": float("nan")},
    "damaged": {"seconds": -1.0},
    "is damaged": {"step": 0},
    "state of the optimizer": {"optimizer": {"state": 1}},
    "do not fit": {"model": {}},
    "cut short": {"seconds": ...},
}


@pytest.mark.parametrize("complaint", DAMAGES)
def test_a_run_that_is_damaged_is_not_resumed(here, toy_run, mistake, complaint):
    hurt = checkpoints.load_checkpoint(toy_run) | DAMAGES[complaint]
    hurt = {key: value for key, value in hurt.items() if value is not ...}  # ...: what is missing
    checkpoints.save_checkpoint(here / "run" / "last.pt", hurt)
    before = Path("run/last.pt").read_bytes()
    line = mistake(toy.main, "--resume", "--out", "run", "--train-steps", 13)
    assert complaint in line and "last.pt" in line
    assert Path("run/last.pt").read_bytes() == before


# ------------------------------------------------------------------------------------------------ the file that ships


def test_the_file_that_ships_holds_half_precision_averages_and_how_they_were_made(saved, tmp_path, capsys):
    checkpoints.ship_command([str(saved), str(tmp_path / "s.pt")])
    small = checkpoints.load_checkpoint(tmp_path / "s.pt", "toy")
    about = {"edition", "script", "config", "contents", "step", "seconds", "machine"}
    assert set(small) == about | {"ema"}
    assert small["ema"]["w"].dtype == torch.float16 and small["ema"]["n"].dtype == torch.int64
    assert "s.pt: 0.00 MB, step 5" in capsys.readouterr().out


def test_what_ships_does_not_say_what_folders_are_called_at_home(saved, tmp_path, capsys):
    config = {"out": "/home/somebody/run", "data_dir": "/home/somebody/data", "lr": 0.5}
    checkpoints.save_checkpoint(saved, example(config=config))
    checkpoints.ship(saved, tmp_path / "s.pt")
    assert "somebody" not in json.dumps(checkpoints.load_checkpoint(tmp_path / "s.pt")["config"])


def test_what_cannot_ship(saved, tmp_path, mistake):
    command = checkpoints.ship_command
    target = tmp_path / "t.pt"
    assert "no.pt" in mistake(command, tmp_path / "no.pt", target)
    assert "name a run and a file" in mistake(command, saved)
    assert "is a folder" in mistake(command, saved, tmp_path)
    checkpoints.save_checkpoint(saved, example(ema={"w": 3}))
    assert "damaged" in mistake(command, saved, target)
    assert not target.exists()


def test_what_ships_replaces_what_shipped_and_nothing_else(saved, tmp_path, mistake, capsys):
    target = tmp_path / "t.pt"
    for _ in range(2):
        checkpoints.ship(saved, target)
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    training = saved.read_bytes()
    assert "holds a training" in mistake(checkpoints.ship_command, target, saved)
    assert "no checkpoint" in mistake(checkpoints.ship_command, saved, notes)
    assert saved.read_bytes() == training and notes.read_text() == "mine"


def test_a_shipped_file_is_sampled_like_its_run(here, toy_run, capsys):
    checkpoints.ship(toy_run, runs.SHIPPED / "toy.pt")
    assert run("--out", "a") == 0
    assert runs.load_net(toy.Net(4), runs.start(toy.Config, [])).calls == 12  # whole numbers stay whole
