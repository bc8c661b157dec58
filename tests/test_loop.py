"""The training loop: its schedule, its averages, its log; stopped, killed and resumed without losing a bit."""

import copy
import json
import math
import os
import resource
import shutil
import signal
from pathlib import Path

import toy
from common import checkpoints, loop, pictures, runs
from conftest import arrays, run, same, state

import pytest
import torch

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def lines(folder):
    """The lines of a log, but for the seconds, which are another matter on every day."""
    found = [json.loads(text) for text in Path(folder, "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def seconds(folder):
    return [json.loads(text)["seconds"] for text in Path(folder, "log.jsonl").read_text().splitlines()]


@pytest.fixture
def at_step(monkeypatch):
    """at_step(k, f): f() is called in the middle of training step k, when it comes for the first time."""

    def register(k, f):
        plain = loop.learning_rate
        todo = [f]

        def rate(step, *args):
            if step == k and todo:
                todo.pop()()
            return plain(step, *args)

        monkeypatch.setattr(loop, "learning_rate", rate)

    return register


@pytest.fixture
def trainer(here):
    """trainer(**settings): a Trainer of a small network, in a run of its own."""

    def make(net=None, checkpoint=None, parts=None, **settings):
        config = toy.Config(**(dict(train_steps=6, precision="float32") | settings))
        run = runs.Run(config, config, checkpoint, here / "last.pt", here, torch.device("cpu"), here)
        torch.manual_seed(0)
        return loop.Trainer(net or torch.nn.Linear(2, 1), run, report_every=2, **(parts or {}))

    return make


# ------------------------------------------------------------------------------------------------ the step


def test_learning_rate_warms_up_stays_and_cools_down():
    rate = [loop.learning_rate(k, 10_000, 2.0) for k in range(10_000)]
    assert rate[0] == 2.0 / 200 and rate[99] == 1.0
    assert rate[199] == rate[3000] == rate[5999] == 2.0
    assert rate[8000] == 1.0 and 0 < rate[-1] < 0.003
    longer = [loop.learning_rate(k, 20_000, 2.0) for k in range(6000)]
    assert longer == rate[:6000]  # a longer run differs at its end only


def test_the_average_starts_as_a_copy_and_follows_slower_and_slower(trainer):
    t = trainer(toy.Net(4), ema_decay=0.3)
    assert same(t.ema.state_dict(), t.net.state_dict())
    assert not any(p.requires_grad for p in t.ema.parameters()) and not t.ema.training

    for step, d in ((0, 0.1), (1, 2 / 11), (20, 0.3)):
        before = copy.deepcopy(t.ema)
        torch.nn.init.normal_(t.net.layers[0].weight)
        t.net.calls += 1
        loop.update_ema(t.ema, t.net, 0.3, step)
        expected = d * before.layers[0].weight + (1 - d) * t.net.layers[0].weight
        torch.testing.assert_close(t.ema.layers[0].weight, expected.detach())
        assert t.ema.calls == t.net.calls == before.calls + 1  # buffers are copied


def test_a_step_is_adamw_with_clipped_gradients_at_the_rate_of_the_schedule(trainer):
    t = trainer(lr=0.5)
    net = copy.deepcopy(t.net)
    adam = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    x = torch.tensor([[30.0, -20.0]])
    for step in t.steps():
        t.update(t.net(x).square().mean(), clip=0.25)
        loop.set_learning_rate(adam, loop.learning_rate(step, 6, 0.5))
        adam.zero_grad()
        net(x).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.25)
        adam.step()
    for p, q in zip(t.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)


def test_the_log_has_the_means_since_its_last_line(trainer):
    t = trainer()
    for step in t.steps():
        t.update((0 * t.net(torch.ones(1, 2))).sum() + step, twice=2.0 * step, tensor=torch.tensor(1.0))
        if t.report_due:
            t.report(error=0.5, bins={"0.1": 1.0})
    found = lines(t.run.out)
    assert [line["step"] for line in found] == [2, 4, 6]
    assert [line["loss"] for line in found] == [0.5, 2.5, 4.5] and [line["twice"] for line in found] == [1, 5, 9]
    assert all(line["tensor"] == 1 and line["error"] == 0.5 and line["bins"] == {"0.1": 1.0} for line in found)


# ------------------------------------------------------------------------------------------------ what is saved


def test_it_is_saved_every_so_often_and_at_the_end_and_drawn_each_time(trainer, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "loss_curve", lambda path, log, *panels: drawn.append((path.name, len(log), panels)))
    saved = []
    parts = dict(curves=(("height", "loss"),), on_save=[lambda t: saved.append(t.done)])
    t = trainer(save_every=4, train_steps=6, parts=parts)
    for step in t.steps():
        t.update(t.net(torch.ones(1, 2)).square().sum())
        if t.report_due:
            t.report()
        if step == 4:
            assert checkpoints.load_checkpoint(t.run.out)["step"] == 4
    assert saved == [4, 6] and checkpoints.load_checkpoint(t.run.out)["step"] == 6
    assert drawn == [("loss.png", 2, (("height", "loss"),)), ("loss.png", 3, (("height", "loss"),))]


def test_where_a_run_goes_on_it_is_drawn_again(trainer):
    """It may have been killed after the checkpoint, before its pictures."""
    drawn = []
    parts = dict(on_save=[lambda t: drawn.append(t.done)])
    for _ in (first := trainer(train_steps=2, parts=parts)).steps():
        first.update(first.net(torch.ones(1, 2)).square().sum())
    assert drawn == [2]
    later = trainer(train_steps=3, checkpoint=checkpoints.load_checkpoint(first.run.out), parts=parts)
    for _ in later.steps():
        later.update(later.net(torch.ones(1, 2)).square().sum())
    assert drawn == [2, 2, 3]


def test_further_networks_and_optimizers_are_saved_and_restored_by_name(trainer):
    def parts():
        torch.manual_seed(1)
        critic = torch.nn.Linear(2, 1)
        return dict(critic=critic, critic_optimizer=torch.optim.AdamW(critic.parameters(), lr=0.1))

    first = parts()
    t = trainer(parts=dict(extra=first))
    for _ in t.steps():
        first["critic"](torch.ones(1, 2)).sum().backward()
        first["critic_optimizer"].step()
        t.update(t.net(torch.ones(1, 2)).square().sum())
    saved = checkpoints.load_checkpoint(t.run.out)

    second = parts()
    assert not same(first["critic"].state_dict(), second["critic"].state_dict())
    trainer(checkpoint=saved, parts=dict(extra=second))
    for name, part in first.items():
        assert same(part.state_dict(), second[name].state_dict())
    del saved["critic"]
    with pytest.raises(ValueError, match="last.pt holds no critic"):
        trainer(checkpoint=saved, parts=dict(extra=parts()))


def test_what_is_sampled_after_a_training_needs_no_gradients(trainer):
    for use_ema in (0, 1):
        t = trainer(toy.Net(4), use_ema=use_ema)
        assert t.trained() is (t.ema if use_ema else t.net)
        assert not any(p.requires_grad for p in t.trained().parameters()) and not t.trained().training


# ------------------------------------------------------------------------------------------------ stopped


@pytest.mark.parametrize("stop", STOPS)
def test_who_asks_to_stop_waits_for_the_step_and_resumed_equals_never_stopped(here, toy_run, at_step, capsys, stop):
    def impatient():
        for number in (stop, *STOPS):
            os.kill(os.getpid(), number)

    at_step(4, impatient)
    assert run("--train", "--out", "my run") == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "toy.py: stopped at step 5, saved; continue with --resume --out 'my run'"
    assert state("my run")["step"] == 5 and lines("my run") == lines(toy_run)[:1]
    assert len(state("my run")["sums"]["loss"]) == 2  # of the two steps after the first line

    spent = checkpoints.load_checkpoint("my run")["seconds"]
    assert run("--resume", "--out", "my run") == 0
    assert same(state("my run"), state(toy_run)) and lines("my run") == lines(toy_run)
    assert same(arrays(here / "my run"), arrays(toy_run))
    assert checkpoints.load_checkpoint("my run")["seconds"] > spent > 0


def test_a_training_that_is_complete_says_so_to_who_stopped_it(here, at_step, capsys):
    at_step(11, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert run("--train", "--out", "my run") == 130
    assert "the training is complete; sample with --ckpt 'my run'" in capsys.readouterr().err
    assert state("my run")["step"] == 12


def test_requests_to_stop_are_collected_and_handlers_put_back():
    before = [signal.getsignal(kind) for kind in STOPS]
    with loop.signals_wait() as caught:
        assert not caught
        for number in STOPS:
            os.kill(os.getpid(), number)
        assert len(caught) == len(STOPS)
    assert [signal.getsignal(kind) for kind in STOPS] == before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
def test_a_signal_that_is_ignored_stays_ignored():
    """nohup python ... is to live on when the terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with loop.signals_wait() as caught:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not caught
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_killed_training_goes_on_from_its_last_checkpoint(here, toy_run, at_step):
    class Killed(BaseException):
        """As good as kill -9: nothing catches it."""

    def kill():
        raise Killed

    at_step(10, kill)
    with pytest.raises(Killed):
        run("--train", "--out", "x")
    with open("x/log.jsonl", "a") as file:
        file.write('{"step": 10, "lo')  # killed in the middle of a line
    assert state("x")["step"] == 8 and len(lines_that_are_whole("x")) == 3
    assert run("--resume", "--out", "x") == 0
    assert same(state("x"), state(toy_run)) and lines("x") == lines(toy_run)


def lines_that_are_whole(folder):
    return [text for text in Path(folder, "log.jsonl").read_text().splitlines() if text.endswith("}")]


def test_the_seconds_of_the_log_go_on_where_they_stopped(here, toy_run):
    shutil.copytree(toy_run, "x")
    hurried = checkpoints.load_checkpoint("x") | {"seconds": 1000.0}
    checkpoints.save_checkpoint("x/last.pt", hurried)
    assert run("--resume", "--out", "x", "--train-steps", 15) == 0
    assert seconds("x")[:4] == seconds(toy_run) and 1000 <= seconds("x")[4] < 1100
    assert 1000 < checkpoints.load_checkpoint("x")["seconds"] < 1100


def test_a_new_training_starts_a_new_log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert loop.read_log(path, 2) == [{"step": 1}, {"step": 2}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert loop.read_log(path, 0) == [] and path.read_text() == ""
    assert loop.read_log(tmp_path / "no.jsonl", 2) == []


@pytest.mark.parametrize("content", ["[1]\n", "{}\n", '{"step": "2"}\n', "\n", "7\n", "\x00\n"])
def test_strange_lines_of_a_log_are_dropped(tmp_path, content):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n' + content)
    assert loop.read_log(path, 2) == [{"step": 1}]


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_last_checkpoint(here, mistake, monkeypatch, value):
    plain = toy.batch

    def bad(config, points, step):
        return plain(config, points, step) * (value if step == failing else 1)

    monkeypatch.setattr(toy, "batch", bad)
    failing = 2
    line = mistake(toy.main, "--train", "--out", "x")
    assert "not finite at step 3: nothing is saved; try a lower --lr" in line
    failing = 6
    line = mistake(toy.main, "--train", "--out", "x")
    assert "not finite at step 7: the last good checkpoint is x/last.pt" in line
    good = checkpoints.load_checkpoint("x")
    assert good["step"] == 4 and all(bool(w.isfinite().all()) for w in good["model"].values())


def test_a_gradient_that_is_not_finite_changes_no_weight(trainer):
    t = trainer()
    before = copy.deepcopy(t.net.state_dict())
    with pytest.raises(FloatingPointError, match="not finite"):
        for _ in t.steps():
            t.net.weight.grad = torch.full_like(t.net.weight, math.inf)
            t.apply(torch.tensor(math.inf), loss=1.0)
    assert same(t.net.state_dict(), before)


def test_a_full_disk_leaves_the_old_checkpoint(here, mistake, at_step):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = []

    def fill():
        kept.append(Path("x/last.pt").read_bytes())
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # files can grow no further than this

    at_step(7, fill)
    try:
        line = mistake(toy.main, "--train", "--out", "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "large" in line and Path("x/last.pt").read_bytes() == kept[0]
    assert sorted(os.listdir("x")) == ["config.json", "last.pt", "log.jsonl"]
    assert run("--resume", "--out", "x") == 0
