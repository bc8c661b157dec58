"""The plumbing, put to uses that break it: bad flags, damaged files, full disks, impatient users; and the pictures."""

import argparse
import copy
import io
import json
import math
import os
import pickle
import resource
import signal
import zipfile
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import matplotlib
import numpy as np
import pytest
import torch

import pictures
import training


def parser():
    p = argparse.ArgumentParser(prog="toy.py")
    p.add_argument("--t-end", type=training.number(float, 0, 1, open_low=True, open_high=True), default=0.5)
    p.add_argument("--theta", type=training.number(float, 0, math.pi / 3))
    p.add_argument("--cfg", type=training.number(float, 0), default=1.5)
    p.add_argument("--oracle", action="store_true")
    training.shared_flags(p, train_steps=100, batch_size=8, lr=1e-3)
    return p


def toy(argv, run=lambda args, given: None):
    """The main of a script."""
    p = parser()
    with training.one_line_errors(p):
        run(*training.parse(p, argv))


# ---------------------------------------------------------------------------------------------------------------- flags


def test_given_flags_are_told_from_defaults():
    args, given = training.parse(parser(), ["--cfg", "1.5", "--train-steps=7"])
    assert given == {"cfg", "train_steps"}  # also one that was given its default
    assert (args.cfg, args.train_steps, args.lr) == (1.5, 7, 1e-3)


def test_underscores_are_dashes_in_names_but_not_in_values():
    args, given = training.parse(parser(), ["--train_steps", "7", "--batch_size=3", "--out=my_run", "--ckpt", "a_b"])
    assert (args.train_steps, args.batch_size, args.out, args.ckpt) == (7, 3, "my_run", "a_b")
    assert given == {"train_steps", "batch_size", "out", "ckpt"}


def test_flags_win_over_the_config_which_wins_over_defaults(tmp_path):
    file = tmp_path / "c.json"
    preset = {"cfg": 0.25, "lr": 0.5, "oracle": True, "theta": None, "out": "elsewhere", "seed": 0, "train": True}
    file.write_text(json.dumps(preset))
    args, given = training.parse(parser(), ["--config", str(file), "--lr", "0.125"])
    assert (args.cfg, args.lr, args.oracle, args.theta, args.batch_size) == (0.25, 0.125, True, None, 8)
    assert args.out is None and not args.train  # what a config never decides
    assert given == {"config", "lr", "cfg", "oracle"}


@pytest.mark.parametrize("text, complaint", [
    (None, "cannot read"), ("{", "cannot read"), ("[1]", "one JSON object"), ('{"stpes": 3}', "'stpes'"),
    ('{"cfg": -1}', "[0, inf)"), ('{"cfg": NaN}', "[0, inf)"), ('{"cfg": [1]}', "no number"),
    ('{"train_steps": 0}', "at 0"), ('{"oracle": 1}', "--oracle"), ("\xff", "cannot read"),
    ("[" * 10**5, "cannot read"), ('{"seed": 1' + "0" * 5000 + "}", "cannot read"),
    ('{"lr": true}', "'True' is no number")])
def test_bad_config(tmp_path, mistake, text, complaint):
    file = tmp_path / "c.json"
    if text:
        file.write_bytes(text.encode("latin1"))
    assert complaint in mistake(toy, "--config", file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_no_config_and_no_log(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # to read it would be to wait for ever
    with pytest.raises(ValueError, match="no such file"):
        training.read_config(tmp_path / "pipe")
    assert training.Log(tmp_path / "pipe", step=3).lines == []


@pytest.mark.parametrize("argv, complaint", [
    (("--t-end", "-1"), "(0, 1), not at -1"), (("--t-end", "0"), "(0, 1)"), (("--t-end", "1"), "(0, 1)"),
    (("--cfg", "-1"), "[0, inf), not at -1"), (("--cfg", "inf"), "[0, inf)"), (("--cfg=-inf",), "[0, inf)"),
    (("--cfg", "nan"), "[0, inf)"), (("--theta", "nan"), "[0, 1.047197551]"),
    (("--theta", "1.0472"), "[0, 1.047197551]"), (("--theta=-1e-9",), "[0, 1.047197551]"),
    (("--train-steps", "0"), "not at 0"), (("--train-steps", "1.5"), "whole number"),
    (("--train-steps", "9" * 400), "not at 999"), (("--seed", "-1"), "not at -1"), (("--lr", "0"), "(0, "),
    (("--lr", "x"), "no number"), (("--nonsense",), "--nonsense"), (("--cfg",), "expected one argument"), (("7",), "7"),
    (("--precision", "int8"), "int8")])
def test_bad_flag(mistake, argv, complaint):
    assert complaint in mistake(toy, *argv)


@pytest.mark.parametrize("error, words", [
    (OSError(28, "No space left on device"), "No space left"), (ZeroDivisionError("division"), "division"),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you"), "fewer samples"), (MemoryError(), "memory"),
    (ValueError("two\nlines"), "two lines")])
def test_errors_become_one_line(mistake, error, words):
    def fail(args, given):
        raise error

    assert words in mistake(partial(toy, run=fail))


def test_mistakes_of_the_programmer_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), training.one_line_errors(parser()):
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize("name", ["tpu", "", "cpu:x", "cuda:99", "mps:7"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(ValueError, match="--device"):
        training.pick_device(name)


def test_devices_and_precisions_that_are_there():
    assert training.pick_device("cpu").type == "cpu"
    assert training.pick_device("auto").type in ("cuda", "mps", "cpu")
    assert training.pick_precision("bf16", torch.device("cpu")) == "bf16"
    assert training.pick_precision("auto", torch.device("cpu")) in ("bf16", "float32")
    with training.autocast(torch.device("cpu"), "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with training.autocast(torch.device("cpu"), "float32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------------- seeds


def test_noise_depends_on_its_key_alone():
    def draw(keys):
        return training.noise_of([training.generator(5, k, 2) for k in keys], (3, 2))  # fewer than 16 numbers each

    assert torch.equal(draw([0, 1, 2, 3])[2:], draw([2, 3]))
    assert len({tuple(x.flatten().tolist()) for x in draw(range(50))}) == 50
    keys = [(0, 1), (1, 0), (1,), (0, 1, 1), (2**62, 3)]
    first = {float(torch.rand(1, generator=training.generator(*key))) for key in keys}
    assert len(first) == 4  # (1, 0) and (1,) are one key: zeros at the end do not count
    many = training.noise_of([training.generator(0, k, 2) for k in range(2000)], (16,))
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02
    assert np.corrcoef(many[:, :2].T.numpy())[0, 1] < 0.1


# ---------------------------------------------------------------------------------------------------- files and folders


def checkpoint(**more):
    weights = {"w": torch.arange(40.0), "n": torch.tensor(3)}
    return dict(script="toy", step=5, config={"lr": 0.5}, ema=weights, model=weights, optimizer={}) | more


@pytest.fixture
def saved(tmp_path):
    training.save_checkpoint(tmp_path / "last.pt", checkpoint())
    return tmp_path / "last.pt"


def test_a_checkpoint_comes_back_from_its_file_or_its_folder(saved):
    for path in (saved, saved.parent, str(saved)):
        back = training.load_checkpoint(path, "toy")
        assert torch.equal(back["ema"]["w"], torch.arange(40.0)) and back["config"] == {"lr": 0.5}
    assert training.load_checkpoint(saved)["step"] == 5  # of any script
    assert os.listdir(saved.parent) == ["last.pt"]


def test_a_checkpoint_cut_short_or_with_a_flipped_bit_is_refused(saved, tmp_path):
    whole, hurt = saved.read_bytes(), tmp_path / "hurt.pt"
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        hurt.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut short"):
            training.load_checkpoint(hurt, "toy")
    place = whole.index(torch.arange(40.0).numpy().tobytes()) + 50  # inside the weights, where torch would not notice
    hurt.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match="damaged"):
        training.load_checkpoint(hurt, "toy")


class Bomb:
    def __reduce__(self):
        return exec, ("import builtins; builtins.exploded = True",)


def test_files_that_are_no_checkpoint_are_refused_and_code_in_them_does_not_run(tmp_path):
    import builtins

    file, buffer = tmp_path / "x.pt", io.BytesIO()
    torch.save(checkpoint(model=Bomb()), buffer)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("hello.txt", "hello")
    bad = [b"", b"just some text\n", pickle.dumps(Bomb()), pickle.dumps(checkpoint(model=Bomb())), buffer.getvalue(),
           archive.getvalue()]
    for value in ([1, 2], checkpoint(config=[1]), checkpoint(ema=None), checkpoint(step="5"), {"config": {}}):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        bad.append(buffer.getvalue())
    for content in bad:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pt is damaged, cut short or no checkpoint"):
            training.load_checkpoint(file, "toy")
    assert not hasattr(builtins, "exploded")


@pytest.mark.parametrize("setting, complaint", [
    ({"cfg": -1}, "at -1"), ({"lr": None}, "'None' is no number"), ({"lr": [1]}, "no number"),
    ({"seed": True}, "'True'"), ({"train_steps": 1.5}, "whole number"), ({"oracle": 1}, "--oracle")])
def test_the_config_of_a_checkpoint_is_checked_like_flags(tmp_path, setting, complaint):
    """Nobody types these, but nobody should see a traceback for a file that another program wrote either."""
    known = {"cfg": 0.25, "theta": None, "lr": 1, "seed": 3, "oracle": False, "of_an_older_version": [1]}
    args, given = training.parse(parser(), ["--ckpt", str(tmp_path)])
    for config in (known, known | setting):
        training.save_checkpoint(tmp_path / "last.pt", checkpoint(config=config))
        if config == known:
            back = training.open_checkpoint(args, given, "toy", "toy.pt")["config"]
            assert back == known and type(back["lr"]) is float  # as the parser would have it
    with pytest.raises(ValueError) as stop:
        training.open_checkpoint(args, given, "toy", "toy.pt")
    assert complaint in str(stop.value) and str(tmp_path) in str(stop.value)
    with pytest.raises(SystemExit):  # the parser is as it was
        args.parser.parse_args(["--cfg", "-1"])


def test_missing_and_foreign_checkpoints(saved, tmp_path):
    with pytest.raises(ValueError, match="made by toy.py, not by other.py"):
        training.load_checkpoint(saved, "other")
    for path in (tmp_path / "no.pt", tmp_path / "no" / "no.pt"):
        with pytest.raises(ValueError, match="there is no checkpoint"):
            training.load_checkpoint(path, "toy")


def test_weights_of_another_network_are_refused():
    net = torch.nn.Linear(2, 3)
    for weights in ({}, {"weight": torch.ones(3, 2), "bias": torch.ones(4)}, {"weight": 1, "bias": 2}, {1: 2}):
        with pytest.raises(ValueError, match="do not fit"):
            training.load_weights(net, weights, "x.pt")
    half = {"weight": torch.full((3, 2), 0.5).half(), "bias": torch.ones(3).half()}
    assert training.load_weights(net, half, "x.pt").weight.dtype == torch.float32 and net.weight[0, 0] == 0.5


def test_what_can_be_resumed(saved, tmp_path):
    assert training.load_run(tmp_path, "toy")["step"] == 5
    with pytest.raises(ValueError, match="--out DIR"):
        training.load_run(None, "toy")
    with pytest.raises(ValueError, match="nothing to resume"):
        training.load_run(tmp_path / "no", "toy")
    training.ship(saved, tmp_path / "shipped" / "last.pt")
    with pytest.raises(ValueError, match="averaged weights only"):
        training.load_run(tmp_path / "shipped", "toy")


def test_the_file_that_ships_holds_half_precision_averages_and_no_more(saved, tmp_path, mistake):
    training.main([str(saved), str(tmp_path / "s.pt")])
    small = training.load_checkpoint(tmp_path / "s.pt", "toy")
    assert set(small) == {"script", "config", "step", "ema"}
    assert small["ema"]["w"].dtype == torch.float16 and small["ema"]["n"].dtype == torch.int64
    assert "no.pt" in mistake(training.main, tmp_path / "no.pt", tmp_path / "t.pt")
    assert not (tmp_path / "t.pt").exists()


def resumed(*argv):
    args, given = training.parse(parser(), ["--resume", "--out", "x", *argv])
    stored = vars(training.parse(parser(), ["--train", "--train-steps", "50", "--lr", "0.5", "--seed", "3"])[0])
    training.resume_settings(args, given, stored)
    return args


def test_weights_that_are_no_tensors_do_not_ship(saved, tmp_path, mistake):
    checkpoint = training.load_checkpoint(saved)
    training.save_checkpoint(tmp_path / "a.pt", checkpoint | {"ema": {"w": 3}})
    assert "damaged" in mistake(training.main, tmp_path / "a.pt", tmp_path / "b.pt")
    assert not (tmp_path / "b.pt").exists()


def test_a_resumed_run_takes_the_stored_settings():
    args = resumed()
    assert (args.train_steps, args.lr, args.seed, args.train, args.out) == (50, 0.5, 3, True, "x")
    args = resumed("--train-steps", "60", "--save-every", "7", "--device", "cpu", "--lr", "0.5")
    assert (args.train_steps, args.save_every, args.device) == (60, 7, "cpu")


@pytest.mark.parametrize("flag", ["--lr=0.25", "--seed=0", "--batch-size=4", "--train-steps=49", "--cfg=2", "--oracle"])
def test_a_resumed_run_cannot_become_another(flag):
    with pytest.raises(ValueError, match=flag.split("=")[0]):
        resumed(flag)


def namespace(**settings):
    return argparse.Namespace(**(dict(out=None, train=False, resume=False) | settings))


def test_a_lattice_has_a_number_and_a_name():
    for i, name in enumerate(("square", "rectangular", "triangular", "honeycomb")):
        assert training.lattice(name) == training.lattice(str(i)) == i
    for text in ("4", "-1", "cubic"):
        with pytest.raises(argparse.ArgumentTypeError):
            training.lattice(text)


def test_run_folder(tmp_path, monkeypatch, saved):
    monkeypatch.chdir(tmp_path)
    assert str(training.run_folder(namespace(), "toy", "a")) == os.path.join("outputs", "toy", "a")
    assert (tmp_path / "outputs" / "toy" / "a").is_dir()
    file = tmp_path / "file"
    file.write_text("precious")
    for out in (file, file / "sub"):
        with pytest.raises(ValueError, match="cannot write into"):
            training.run_folder(namespace(out=out), "toy", "a")
    assert file.read_text() == "precious"
    with pytest.raises(ValueError, match="by --resume"):
        training.run_folder(namespace(out=tmp_path, train=True), "toy", "a")
    assert training.run_folder(namespace(out=tmp_path, train=True, resume=True), "toy", "a") == tmp_path
    with pytest.raises(ValueError, match="another folder"):  # and samples, whoever made them, do not mix with a run
        training.run_folder(namespace(out=tmp_path), "toy", "a", tmp_path)
    new = Path("outputs", "toy")
    assert training.run_folder(namespace(train=True), "toy", "a") == new / "a_trained"
    for run in (None, file, tmp_path / "none.pt"):
        assert training.run_folder(namespace(), "toy", "a", run) == new / "a"
    for run in (tmp_path, saved, str(saved)):  # they go below it
        assert training.run_folder(namespace(), "toy", "outputs", run) == tmp_path / "outputs"
        assert training.run_folder(namespace(out=tmp_path / "outputs"), "toy", "a", run) == tmp_path / "outputs"
    assert sorted(os.listdir(tmp_path)) == ["file", "last.pt", "outputs"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot write into"):
        training.run_folder(namespace(out=tmp_path / "new"), "toy", "a")
    tmp_path.chmod(0o700)


def test_a_full_disk_leaves_the_old_file(saved, tmp_path, mistake):
    before, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(args, given):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # files can grow no further than this
        try:
            training.save_checkpoint(saved, checkpoint(model=torch.zeros(10_000)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert "large" in mistake(partial(toy, run=save))
    assert saved.read_bytes() == before and os.listdir(tmp_path) == ["last.pt"]


def test_json_and_arrays_come_back(tmp_path):
    training.save_json(tmp_path / "a.json", {"b": 1.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1.5}
    training.save_npz(tmp_path / "a.npz", x=np.arange(3), y=np.ones(2))
    with np.load(tmp_path / "a.npz") as back:
        assert back["x"].tolist() == [0, 1, 2] and back["y"].shape == (2,)


# --------------------------------------------------------------------------------------------------------- the training


def test_learning_rate_warms_up_stays_and_cools_down():
    rate = [training.learning_rate(k, 10_000, 2.0) for k in range(10_000)]
    assert rate[0] == 2.0 / 200 and rate[99] == 1.0 and rate[199] == rate[3000] == rate[5999] == 2.0
    assert rate[8000] == 1.0 and 0 < rate[-1] < 0.003
    longer = [training.learning_rate(k, 20_000, 2.0) for k in range(6000)]
    assert longer == rate[:6000]  # a longer run differs at its end only


def test_the_log_of_a_resumed_run_goes_on_where_the_checkpoint_is(tmp_path):
    log = training.Log(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.add(step=step, loss=float(step))
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    log = training.Log(tmp_path / "log.jsonl", step=2)
    log.add(step=3, loss=9.0)
    assert [line["loss"] for line in log.lines] == [1.0, 2.0, 9.0]
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == log.lines
    assert training.Log(tmp_path / "log.jsonl").lines == []  # a new run starts a new log


def test_signals_wait_for_the_step():
    old = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="complete and saved"), training.finish_the_step() as stop:
        assert not stop  # the loop looks at it after every step, so here the signals came after the last one
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == old


@pytest.mark.parametrize("done, words", [(7, "--resume --out run"), (9, "--ckpt run")])
def test_who_stops_a_training_is_told_how_to_go_on(done, words):
    with pytest.raises(KeyboardInterrupt, match=f"step {done} and saved; .*{words}"):
        training.leave(done, 9, "run")


def test_ctrl_c_ends_in_status_130(capsys):
    for message in ("stopped at step 7 and saved", ""):
        with pytest.raises(SystemExit) as stop, training.one_line_errors(parser()):
            raise KeyboardInterrupt(message) if message else KeyboardInterrupt
        assert stop.value.code == 130 and (message or "stopped") in capsys.readouterr().err


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(tmp_path, value):
    training.check_finite(1e30, 1, tmp_path)
    with pytest.raises(FloatingPointError, match="step 7: nothing was saved"):
        training.check_finite(value, 7, tmp_path)
    (tmp_path / "last.pt").touch()
    with pytest.raises(FloatingPointError, match="last good checkpoint is .*last.pt"):
        training.check_finite(value, 7, tmp_path)


def test_the_state_of_an_optimizer_comes_back_or_is_refused():
    def after(steps, saved=None):
        net = torch.nn.Linear(3, 2)
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(0.5)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.01)
        if saved:
            training.load_optimizer(optimizer, saved, "last.pt")
        for _ in range(steps):
            net(torch.tensor([1.0, -2.0, 3.0])).square().sum().backward()
            optimizer.step()
        return optimizer.state_dict()

    fresh, used, there_and_back = after(0), after(2), after(0, after(2))
    assert fresh["state"] == {} and after(0, fresh)["state"] == {}
    for i, state in used["state"].items():
        assert all(torch.equal(v, there_and_back["state"][i][key]) for key, v in state.items())
    wrong = copy.deepcopy(used) | {"param_groups": "not read: the script knows its own"}
    after(1, wrong)
    for key, value in ("exp_avg", torch.zeros(3, 2)), ("exp_avg_sq", None), ("step", torch.zeros(1)), ("max", used):
        wrong = copy.deepcopy(used)
        wrong["state"][0][key] = value
        with pytest.raises(ValueError, match="optimizer in last.pt"):
            after(1, wrong)
    for wrong in (None, {}, {"state": 3}, {"state": {0: 1}}, {"state": {0: {"step": torch.tensor(1.0)}}}):
        with pytest.raises(ValueError, match="optimizer in last.pt"):
            after(1, wrong or [wrong])


def test_the_average_starts_as_a_copy_that_needs_no_gradient():
    net = torch.nn.Linear(2, 2)
    ema = training.start_ema(net)
    net.weight.data.zero_()
    assert ema.weight.abs().sum() > 0 and not ema.weight.requires_grad and not ema.training


# --------------------------------------------------------------------------------------------------------- the pictures


def test_a_grid_shows_every_tile_with_white_between(tmp_path):
    left, right = np.zeros((7, 16, 16)), np.ones((7, 16, 16))
    left[:, 3, 5] = 1.0
    pictures.captioned_grid(tmp_path / "g.png", (left, right), [f"no {i}" for i in range(7)], "title", columns=4)
    image = iio.imread(tmp_path / "g.png")[..., :3].astype(int)
    magma = (matplotlib.colormaps["magma"]([0.0, 1.0])[:, :3] * 255).round().astype(int)
    black, yellow = (abs(image - colour).max(2) <= 1 for colour in magma)
    assert yellow.sum() == 7 * 64 * (16 * 16 + 1) and black.sum() >= 7 * 64 * (16 * 16 - 1)  # 8 x 8 dots a pixel
    row = image[np.flatnonzero(black.sum(1) > 100)[0]]
    gap = row[np.flatnonzero(abs(row - magma[1]).max(1) <= 1)[0] - 16 :][:16]
    assert (gap == 255).all()  # not the pale yellow of the colour map


def test_a_loss_curve_is_drawn_from_what_the_log_has(tmp_path):
    pictures.loss_curve(tmp_path / "l.png", [{"step": 1}])
    assert not (tmp_path / "l.png").exists()
    pictures.loss_curve(tmp_path / "l.png", [{"step": i, "loss": 1 / i, "bins": {"0.1": 1 / i}} for i in (1, 2)])
    assert iio.imread(tmp_path / "l.png").shape[:2] == (360, 1000)


def test_frames_put_tile_i_where_it_belongs():
    tiles = np.zeros((5, 4, 4))
    tiles[4] = 1.0
    image = pictures.grid_image(tiles, columns=3, zoom=2)
    assert image.shape == (24, 36, 3) and image.dtype == np.uint8
    bright = (image.astype(int).sum(2) > 600).nonzero()
    assert (bright[0].min(), bright[0].max(), bright[1].min(), bright[1].max()) == (14, 21, 14, 21)


def test_few_moments_of_many():
    assert pictures.evenly(range(301), 32) >= {0, 300} and len(pictures.evenly(range(301), 32)) == 32
    assert pictures.evenly(range(3), 32) == {0, 1, 2}
