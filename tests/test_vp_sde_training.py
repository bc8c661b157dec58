"""The training of the main job: the draws of a step, what it learns, and what decides its weights."""

import json
from functools import partial

import data
import vp_sde
from common import loop, runs
from common.blocks import expand_like
from common.checkpoints import load_checkpoint
from common.crystal_job import TrainingCrystals
from common.evaluation import score_errors
from common.exact_denoiser import ExactModel
from common.seeds import generator
from conftest import same
from small import run_of, small_unet
from vp_sde import VP, Learned

import pytest
import torch


@pytest.fixture(autouse=True)
def a_small_network(monkeypatch, no_pictures):
    monkeypatch.setattr(vp_sde, "UNet", small_unet)


@pytest.fixture
def no_samples(monkeypatch):
    """Training without its training_samples.png."""
    monkeypatch.setattr(vp_sde, "TrainingSamples", lambda *args, **settings: lambda trainer: None)


@pytest.fixture
def weights_only(monkeypatch, no_samples):
    """Training without its evaluation either."""
    monkeypatch.setattr(vp_sde, "score_errors", lambda *args, **settings: {"bins": {}})


def config(**settings):
    """A tiny training on squares."""
    tiny = dict(train=True, img_size=16, batch_size=2, train_steps=2, n_types=1)
    return vp_sde.Config(**(tiny | settings))


def trained(folder, settings):
    """The network after a training."""
    run = run_of(settings, folder)
    net = runs.seeded(partial(vp_sde.build, settings), settings.seed)
    return vp_sde.train(net, run)


class Spy(torch.nn.Module):
    """A network that remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.schedule = VP()
        self.w = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, t, condition):
        self.seen = x, t, condition
        return self.w * x


def shown(folder, settings):
    """What a network is shown in the last step of a training."""
    spy = Spy()
    vp_sde.train(spy, run_of(settings, folder))
    return spy.seen


def test_a_step_takes_a_time_in_each_nth_and_drops_some_conditions(tmp_path, weights_only):
    n = 400
    settings = config(batch_size=n, p_uncond=0.25, train_steps=1)
    x, t, condition = shown(tmp_path, settings)
    assert torch.equal((t * n).floor(), torch.arange(float(n)))
    assert (~condition.known).float().mean() == pytest.approx(0.25, abs=0.07)

    g = generator(0, 0, 0)  # the draws of step 0 of seed 0, in every edition
    assert torch.equal(t, (torch.arange(n) + torch.rand(n, generator=g)) / n)
    eps = torch.randn(x.shape, generator=g)
    x0, told = TrainingCrystals(run_of(settings), signed=True).batch(0, n)
    alpha, sigma = (expand_like(a, x) for a in VP().alpha_sigma(t))
    assert torch.equal(x, alpha * x0 + sigma * eps)
    assert torch.equal(condition.kind, told.kind) and torch.equal(condition.cont, told.cont)


def test_a_process_works_on_its_rows_of_the_batch(tmp_path, weights_only, monkeypatch):
    settings = config(batch_size=8, train_steps=2)
    whole = shown(tmp_path, settings)
    monkeypatch.setattr(loop, "own_rows", lambda n: slice(4, 8))
    x, t, condition = shown(tmp_path, settings)
    assert torch.equal(x, whole[0][4:]) and torch.equal(t, whole[1][4:])
    assert same(list(condition), list(whole[2].rows(slice(4, 8))))


def test_a_little_training_learns_what_no_network_without_the_condition_can(tmp_path, no_samples):
    """At t = 0.94 x_0 is invisible.  Without the angle the best guess is the mean, whose error is the variance."""
    settings = config(train_steps=180, batch_size=8, lr=2e-2, ema_decay=0.9)
    net = trained(tmp_path, settings)
    crystals = TrainingCrystals(run_of(settings), signed=True)
    variance = crystals.batch(10**6, 400)[0].var(0).mean()
    _, alpha, sigma = VP().at(0.9375)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert line["bins"]["0.94"] * (sigma / alpha) ** 2 < 0.5 * variance

    x0, condition = crystals.batch(0, 32, held_out=True)
    x_1 = torch.randn(x0.shape, generator=generator(1))
    learned = Learned(net, run_of(settings))
    truth = ExactModel(VP(), 16).eps(x_1, 0.9375, condition)
    wrong = condition._replace(cont=condition.cont.roll(7, 0))

    def error(condition):
        return (learned.eps(x_1, 0.9375, condition) - truth).square().mean()

    assert error(wrong) > 2 * error(condition)  # it sees the angle
    assert error(condition.dropped()) > 0.5 * variance * (alpha / sigma) ** 2  # and cannot guess it


def test_the_log_has_the_score_error_of_the_averaged_weights_on_held_out_crystals(tmp_path, no_samples):
    settings = config(train_steps=4, save_every=2, seed=5)
    ema = trained(tmp_path, settings)
    first, last = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["step"], last["step"]) == (2, 4) and len(first["bins"]) == 8

    held_out = TrainingCrystals(run_of(settings), signed=True).batch(0, 64, held_out=True)
    report = score_errors(Learned(ema, run_of(settings)), ExactModel(VP(), 16), *held_out, seed=5)
    assert last["bins"] == report["bins"] and last["score_error"] == report["score_error"]


def test_samples_of_a_training_are_ten_calls_with_the_condition_at_every_save(tmp_path, monkeypatch):
    seen = []

    def samples(draw, **settings):
        assert draw is vp_sde.sample
        return lambda trainer: seen.append((trainer.done, settings))

    monkeypatch.setattr(vp_sde, "TrainingSamples", samples)
    trained(tmp_path, config(train_steps=4, save_every=2))
    ten_calls = dict(sampler="dpmpp", steps=10, grid="logsnr", t_end=0.005, cfg=1.0)
    assert seen == [(2, ten_calls), (4, ten_calls)]


KNOBS = [
    dict(seed=1),
    dict(lr=1e-3),
    dict(batch_size=3),
    dict(train_steps=4),
    dict(beta_min=0.5),
    dict(beta_max=20.0),
    dict(p_uncond=0.9),
    dict(mode="simple"),
    dict(mode="full"),
    dict(n_types=4),
    dict(img_size=32),
    dict(precision="bf16"),
]


def test_every_knob_of_the_training_changes_the_weights(tmp_path, weights_only):
    def weights(**settings):
        ema = trained(tmp_path, config(**settings)).state_dict()
        return load_checkpoint(tmp_path)["model"], ema

    model, ema = weights()
    assert same((model, ema), weights())
    for knob in KNOBS:
        assert not same(model, weights(**knob)[0]), knob

    other_decay = weights(ema_decay=0.01)
    assert same(model, other_decay[0]) and not same(ema, other_decay[1])
    assert same(weights(use_ema=0)[1], model)  # what it samples with

    data.build(8, tmp_path / "built.pt", seed=9, n_types=1, img_size=16)
    assert not same(model, weights(data_path=str(tmp_path / "built.pt"))[0])
