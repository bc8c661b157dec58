"""The score model in the plane, learned beside exact."""

import json

import reference_gmm_sde as reference
import vp_sde_2d
from common import pictures, runs
from common.blocks import expand_like
from common.distances import from_mixture
from common.evaluation import score_errors
from common.seeds import generator
from conftest import arrays, same, state
from conftest import run as run_main
from small import Cosine, run_of
from vp_sde import VP
from vp_sde_2d import LearnedV, v_loss

import numpy as np
import pytest
import torch

SAMPLES = {"config.json", "metrics.json", "reverse_diffusion.gif", "samples.npz", "samples.png"}
TINY = ["--train", "--train-steps=6", "--save-every=3", "--batch-size=32", "--n=9", "--steps=3"]


def run(*words):
    return run_main(*words, main=vp_sde_2d.main)


def config(**settings):
    return vp_sde_2d.Config(**settings)


def read(path):
    def refuse(word):
        raise AssertionError(f"{path} holds {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a tiny training that was never stopped.  Not to be written into."""
    out = tmp_path_factory.mktemp("runs") / "never_stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "loss_curve", lambda *args: None)
        patch.setattr(vp_sde_2d.clouds, "save_film", lambda *args: None)
        assert run(*TINY, "--out", out) == 0
    return out


@pytest.fixture
def numbers_only(monkeypatch, no_pictures):
    """Neither pictures nor an evaluation, where only weights and samples are of interest."""
    monkeypatch.setattr(vp_sde_2d.clouds, "save_film", lambda *args: None)
    monkeypatch.setattr(vp_sde_2d, "score_errors", lambda *args, **settings: {"bins": {}})


# ---------------------------------------------------------------------------------------------------- truth


def test_the_mixture_has_the_schedule_of_the_network():
    schedule = VP(0.1, 20.0)
    gmm = vp_sde_2d.mixture(config(), schedule)
    known = reference.mixture("S", reference.VPSchedule(0.1, 20.0))
    x = gmm.sample(50, np.random.default_rng(0))
    for t in (0.01, 0.5, 1.0):
        np.testing.assert_allclose(gmm.score(x, t), known.score(x, t), rtol=1e-9)
    eps = vp_sde_2d.Exact(gmm, schedule).eps(torch.from_numpy(x).float(), 0.5)
    assert eps.dtype == torch.float32
    np.testing.assert_allclose(eps, known.eps(x, 0.5), atol=1e-5)


def test_training_points_are_a_function_of_seed_and_step():
    gmm = reference.mixture("S")
    x = vp_sde_2d.training_points(gmm, 0, 3, 500)
    assert x.shape == (500, 2) and x.dtype == torch.float32
    assert torch.equal(x, vp_sde_2d.training_points(gmm, 0, 3, 500))
    others = [(1, 3, False), (0, 4, False), (0, 3, True)]
    for seed, step, held_out in others:
        assert not torch.equal(x, vp_sde_2d.training_points(gmm, seed, step, 500, held_out))
    assert from_mixture(x.double().numpy(), gmm, 0)["sliced_wasserstein"] < 0.5


@pytest.mark.parametrize("schedule", [VP(0.1, 20.0), Cosine()])
@pytest.mark.parametrize("sampler, steps", [("sde", 100), ("ode", 40), ("dpmpp", 20)])
def test_with_the_exact_score_every_sampler_fills_the_mixture(monkeypatch, schedule, sampler, steps):
    monkeypatch.setattr(vp_sde_2d, "VP", lambda *rates: schedule)
    settings = config(oracle=True, sampler=sampler, steps=steps, n=500)
    drawn = vp_sde_2d.sample(None, run_of(settings))
    numbers = from_mixture(drawn.x.double().numpy(), vp_sde_2d.mixture(settings, schedule), seed=0)
    assert numbers["sliced_wasserstein"] < 2 * numbers["sliced_wasserstein_floor"]
    assert abs(numbers["mmd2"]) < 0.005
    assert drawn.film[0][0] == 1.0 and drawn.film[-1][0] == 0.0
    assert np.array_equal(drawn.film[-1][1], drawn.x.double().numpy())


# -------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("shape", ["S", "circle"])
def test_the_network_that_ships_is_near_the_exact_score(shape):
    settings = config(shape=shape)
    run = runs.start(vp_sde_2d.Config, ["--shape", shape, "--device", "cpu"])
    net = runs.load_net(vp_sde_2d.build(settings), run)
    gmm = vp_sde_2d.mixture(settings, net.schedule)
    held_out = vp_sde_2d.training_points(gmm, 7, 0, 1000, held_out=True)
    errors = score_errors(LearnedV(net, run_of(settings)), vp_sde_2d.Exact(gmm, net.schedule), held_out, seed=7)
    assert errors["score_error"] < 0.001 and errors["bins"]["0.94"] < 1e-6


def test_eps_and_v_of_points_are_one_thing():
    x0, eps = torch.randn(2, 50, 2, dtype=torch.float64)
    _, alpha, sigma = VP().at(0.5)

    def net(x, times):
        return alpha * eps - sigma * x0

    net.schedule = VP()
    got = LearnedV(net, run_of(config())).eps(alpha * x0 + sigma * eps, 0.5)
    np.testing.assert_allclose(got, eps, atol=1e-12)
    assert v_loss(net, VP(), x0, torch.full((50,), 0.5), eps) < 1e-12
    assert v_loss(net, VP(), x0 + 1, torch.full((50,), 0.5), eps) > 1e-3


class Spy(torch.nn.Module):
    """A network that remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.schedule = VP(0.1, 20.0)
        self.w = torch.nn.Parameter(torch.ones(1))
        self.seen = []

    def forward(self, x, t):
        self.seen.append((x, t))
        return self.w * x


def test_a_step_takes_a_time_in_each_nth_and_its_own_points(tmp_path, numbers_only):
    n = 50
    spy = Spy()
    settings = config(train=True, train_steps=2, batch_size=n, seed=3)
    vp_sde_2d.train(spy, run_of(settings, tmp_path))
    gmm = vp_sde_2d.mixture(settings, spy.schedule)
    for step, (x, t) in enumerate(spy.seen):
        assert torch.equal((t * n).floor(), torch.arange(float(n)))
        g = generator(3, step, 0)  # the draws of seed 3, in every edition
        assert torch.equal(t, (torch.arange(n) + torch.rand(n, generator=g)) / n)
        eps = torch.randn(n, 2, generator=g)
        x0 = vp_sde_2d.training_points(gmm, 3, step, n)
        alpha, sigma = (expand_like(a, x) for a in spy.schedule.alpha_sigma(t))
        assert torch.equal(x, alpha * x0 + sigma * eps)


def test_a_little_training_halves_the_score_error(tmp_path, no_pictures):
    settings = config(train=True, train_steps=120, batch_size=128, ema_decay=0.9)
    net = runs.seeded(lambda: vp_sde_2d.build(settings), 0)
    vp_sde_2d.train(net, run_of(settings, tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 120 and lines[-1]["score_error"] < 0.2  # that of eps = 0 is nearly 1


# ------------------------------------------------------------------------------------------------- commands


def test_stopped_and_resumed_equals_never_stopped(trained, tmp_path, monkeypatch, numbers_only):
    plain_loss = vp_sde_2d.v_loss
    calls = []

    def v_loss(*args):
        calls.append(1)
        if len(calls) == 5:
            raise ValueError("the power is cut")
        return plain_loss(*args)

    monkeypatch.setattr(vp_sde_2d, "v_loss", v_loss)
    assert run(*TINY, "--out", tmp_path) == 2
    assert state(tmp_path)["step"] == 3
    monkeypatch.setattr(vp_sde_2d, "v_loss", plain_loss)
    assert run("--resume", "--out", tmp_path) == 0
    assert same(state(tmp_path), state(trained)) and same(arrays(tmp_path), arrays(trained))


def test_use_ema_0_samples_with_the_weights_of_the_last_step(trained, tmp_path, numbers_only):
    assert run(*TINY, "--use-ema", 0, "--out", tmp_path / "a") == 0
    assert run("--ckpt", trained, "--use-ema", 0, "--n", 9, "--steps", 3, "--out", tmp_path / "b") == 0
    assert same(arrays(tmp_path / "a"), arrays(tmp_path / "b"))
    assert not same(arrays(tmp_path / "a"), arrays(trained))


def test_the_files_of_a_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("--sampler", "dpmpp", "--steps", 5, "--n", 200) == 0
    out = tmp_path / "outputs/vp_sde_2d/n-200_sampler-dpmpp_steps-5"
    assert {path.name for path in out.iterdir()} == SAMPLES
    assert arrays(out)["x"].shape == (200, 2) and arrays(out)["x"].dtype == np.float32

    numbers = read(out / "metrics.json")
    assert numbers["n"] == 200 and numbers["seconds"] > 0
    assert numbers["sliced_wasserstein"] < 3 * numbers["sliced_wasserstein_floor"]
    said = capsys.readouterr().out
    for name in ("mmd2", "sliced_wasserstein", "log_density"):
        assert f"{name} " in said and f"{name}_floor" in numbers
    network = read(out / "config.json")["network"]
    assert network["file"].endswith("vp_sde_2d_S.pt") and network["step"] == network["config"]["train_steps"]


@pytest.mark.parametrize("words", [[], ["--oracle"], ["--shape", "circle"]])
def test_a_single_point(tmp_path, numbers_only, words):
    assert run(*words, "--n", 1, "--steps", 2, "--out", tmp_path) == 0
    assert arrays(tmp_path)["x"].shape == (1, 2) and "mmd2" not in read(tmp_path / "metrics.json")


def test_a_config_repeats_its_run_and_training_writes_below_it(trained, tmp_path, numbers_only, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("--train", "--config", trained / "config.json", "--out", "again") == 0
    assert same(arrays(tmp_path / "again"), arrays(trained))
    assert run("--ckpt", "again", "--n", 9, "--steps", 3) == 0
    assert same(arrays(tmp_path / "again" / "n-9_steps-3"), arrays(trained))


def test_two_commands_never_share_a_folder(trained):
    commands = [
        "", "--shape circle", "--oracle", "--oracle --shape circle", "--oracle --beta-max 10", "--seed 1", "--n 9",
        "--sampler ode", "--sampler dpmpp", "--steps 9", "--grid uniform", "--t-end 0.01", "--train", "--train --lr 1",
        "--train --shape circle", f"--ckpt {trained}", f"--ckpt {trained} --n 9", "--precision bf16",
    ]  # fmt: skip
    folders = [runs.start(vp_sde_2d.Config, words.split()).folder for words in commands]
    assert len(set(folders)) == len(commands)
    assert str(folders[0]) == "outputs/vp_sde_2d/default" and str(folders[1]) == "outputs/vp_sde_2d/shape-circle"


MISTAKES = [
    ("--oracle --precision bf16", "--precision has no effect: --oracle has no network"),
    ("--oracle --use-ema 0", "--use-ema has no effect"),
    ("--steps 1 --grid uniform", "--grid has no effect: the only call is at t = 1"),
    ("--steps 1 --t-end 0.1", "--t-end has no effect"),
    ("--batch-size 9", "--batch-size is a setting of the training"),
    ("--oracle --train", "--oracle has no network: leave --train"),
    ("--oracle --beta-min 30", "--beta-max 20.0 is below --beta-min 30"),
    ("--beta-max 10", "--beta-max 10.0 contradicts"),
    ("--shape moons", "--shape"),
    ("--cfg 2", "--cfg"),
    ("--kind 1", "--kind"),
    ("--n 0", "--n"),
]


@pytest.mark.parametrize("words, complaint", MISTAKES)
def test_what_cannot_be_is_refused_in_one_line_and_writes_nothing(tmp_path, mistake, words, complaint):
    assert complaint in mistake(vp_sde_2d.main, *words.split(), "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_shape_of_a_checkpoint_is_fixed(trained, tmp_path, mistake):
    line = mistake(vp_sde_2d.main, "--ckpt", trained, "--shape", "circle", "--out", tmp_path / "out")
    assert "--shape circle contradicts" in line
