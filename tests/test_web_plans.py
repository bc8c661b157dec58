"""The page without a browser: its plans, its transcriptions, and its settings."""

import re
from types import SimpleNamespace
from urllib.parse import parse_qsl

import data
import reference_gmm_sde as reference
import vp_sde
import vp_sde_2d
from common.nearest_crystal import crystal_error
from common.times import time_grid
from small import CPU, lively_unet
from vp_sde import SAMPLERS, VP, Learned, guided_eps
from web import build, picture, plans
from web.networks import (
    Bank,
    Curve,
    ExactPoints,
    Guided,
    Mixture,
    Nearest,
    NearestOfAny,
    mixture_inputs,
)

import numpy as np
import pytest
import torch

CRYSTALS = plans.crystal_plans(VP())
POINTS = plans.point_plans(VP(0.1, 20.0))


class InFloat32:
    """A network of float32 between states of float64."""

    def __init__(self, net):
        self.net = net
        self.schedule = net.schedule

    def __call__(self, x, times, *condition):
        return self.net(x.float(), times, *condition).double()


def here():
    return SimpleNamespace(device=CPU, config=SimpleNamespace(precision="float32"))


def noise(shape, seed=1):
    g = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(shape, generator=g, dtype=torch.float64)


def assert_same_film(plan, own, replayed, tolerance=1e-5):
    """The replayed film is made of frames of the sampler's own, the first and the last included."""
    own = {t: (x, x0_hat) for t, x, x0_hat in own}
    replayed = list(replayed)
    assert len(replayed) == len(plan["film"])
    assert replayed[0][0] == 1 and replayed[-1][0] == 0
    for t, x, x0_hat in replayed:
        for a, b in zip((x, x0_hat), own[t], strict=True):
            assert (a - b).abs().max() < tolerance, t


@pytest.fixture(scope="module")
def crystal_net():
    net = lively_unet()
    net.out.weight.mul_(0.02)  # answers about as large as pictures
    net.out.bias.mul_(0.02)
    return InFloat32(net)


@pytest.mark.parametrize("name", CRYSTALS)
def test_a_plan_of_crystals_does_what_its_sampler_does(name, crystal_net):
    sampler, steps = name.split("-")
    times = time_grid(VP(), int(steps), vp_sde.Config().t_end, "logsnr")
    condition = data.default_conditions(1, 3, 0.3)
    start = next(noise((1, 1, 16, 16), 0))
    model = Learned(crystal_net, here())

    def ask(x, t):
        return model.output(x, t, condition)

    own = SAMPLERS[sampler](lambda x, t: model.eps(x, t, condition), start, times, VP(), noise(start.shape))
    replayed = plans.replay(CRYSTALS[name], start, ask, noise(start.shape))
    with torch.no_grad():
        assert_same_film(CRYSTALS[name], own, replayed)


@pytest.mark.parametrize("name", POINTS)
def test_a_plan_of_points_does_what_its_sampler_does(name):
    """With the exact eps in float64, so that nothing but the plan is compared."""
    sampler, steps = name.split("-")
    schedule = VP(0.1, 20.0)
    times = time_grid(schedule, int(steps), vp_sde_2d.Config().t_end, "logsnr")
    start = next(noise((100, 2), 0))
    gmm = reference.mixture("S")

    def eps(x, t):
        return torch.from_numpy(gmm.eps(x.numpy(), t))

    own = SAMPLERS[sampler](eps, start, times, schedule, noise(start.shape))
    replayed = plans.replay(POINTS[name], start, eps, noise(start.shape))
    assert_same_film(POINTS[name], own, replayed, tolerance=1e-6)


def test_a_plan_is_small_numbers_and_few():
    for plan in [*CRYSTALS.values(), *POINTS.values()]:
        assert max(abs(c) for row in plan["rows"] for c in row) < 200
        assert plan["columns"][0] == "s" and plan["columns"].count("a") == len(plan["calls"])
        assert 2 <= len(plan["film"]) <= 52


# ---------------------------------------------------------------------------------------------- transcriptions


@pytest.mark.parametrize("w", [0.0, 1.0, 1.5, 8.0])
def test_guidance_is_that_of_the_script(w, crystal_net):
    net = crystal_net.net
    x = next(noise((1, 1, 16, 16))).float()
    condition = data.default_conditions(1, 2, 0.7)
    t = 0.4
    got = Guided(net)(x, torch.tensor([t]), condition.kind, condition.cont[:, 1], torch.tensor([w]))
    eps = guided_eps(Learned(net, here()), condition, w, x, t)
    _, alpha, sigma = net.schedule.at(t)
    np.testing.assert_allclose((x - alpha * got) / sigma, eps, atol=1e-5)


@pytest.mark.parametrize("shape", ["S", "circle"])
@pytest.mark.parametrize("t", [0.001, 0.03, 0.3, 1.0])
def test_the_mixture_is_that_of_the_reference(shape, t):
    schedule = VP(0.1, 20.0)
    gmm = reference.mixture(shape)
    x = next(noise((200, 2))) * 3
    mixture = {key: torch.from_numpy(value) for key, value in mixture_inputs(gmm).items()}
    time = torch.tensor([t], dtype=torch.float64)

    ours = Mixture(schedule)
    np.testing.assert_allclose(ours.log_prob(x, time, *mixture.values()), gmm.log_prob(x.numpy(), t), rtol=1e-5)
    score = gmm.score(x.numpy(), t)
    scale = np.abs(score).max()
    np.testing.assert_allclose(ours.score(x, time, *mixture.values()), score, rtol=1e-5, atol=1e-6 * scale)
    eps, given = ExactPoints(schedule)(x, time, **mixture)
    np.testing.assert_allclose(eps, gmm.eps(x.numpy(), t), atol=1e-5 * np.abs(gmm.eps(x.numpy(), t)).max())
    np.testing.assert_allclose(given, score, rtol=1e-5, atol=1e-6 * scale)


def test_a_mixture_of_ellipses_is_refused():
    gmm = reference.GaussianMixture([1.0], [[0.0, 0.0]], [np.diag([1.0, 2.0])])
    with pytest.raises(ValueError, match="round"):
        mixture_inputs(gmm)


def worn_crystals():
    """Crystals with noise on them: x in [-1, 1], type, angle."""
    g = torch.Generator().manual_seed(3)
    for k in range(4):
        for theta, aspect, spread in [(0.2, 0.81, 0.05), (0.9, 1.3, 0.3)]:
            x = 2 * data.render([k], theta, aspect).float() - 1
            yield x + spread * torch.randn(x.shape, generator=g), k, theta


def test_the_nearest_crystal_is_that_of_the_metric():
    for x, k, theta in worn_crystals():
        angle = torch.tensor([theta], dtype=torch.float64)
        curve = [Curve(64)(angle)] if k == 1 else []
        truth, error, place, kind = Nearest(k, 64)(x, angle, *curve)
        fit = crystal_error(data.unit(x), [k], [theta])
        assert kind == k and abs(error - fit.error) < 1e-6
        assert abs(place[0, 1] - fit.aspect) < 1e-4
        assert (data.unit(truth) - data.render(fit.kind, fit.theta, fit.aspect)).abs().max() < 1e-3


def test_the_nearest_of_any_type_is_that_of_the_metric():
    banks = Bank(64)(torch.zeros(1, dtype=torch.float64))
    for x, _, _ in worn_crystals():
        _, error, place, kind = NearestOfAny(64)(x, *banks)
        fit = crystal_error(data.unit(x))
        assert kind == fit.kind and abs(error - fit.error) < 1e-5
        assert abs(place[0, 0] - fit.theta) < 1e-3 and abs(place[0, 1] - fit.aspect) < 1e-3


# ---------------------------------------------------------------------------------------------- the page


def test_the_starts_are_those_of_the_tiles():
    starts = build.tile_starts(64)
    config = vp_sde.Config()
    assert starts.shape == (config.n, 1, 64, 64)
    own = torch.randn((1, 64, 64), generator=vp_sde.generator(config.seed, 7, 2))
    assert np.abs(starts[7] * build.STEP - own.numpy()).max() < 2 * build.STEP


def test_the_template_has_a_place_for_everything():
    page = build.assembled({"numbers": "1abc"})
    assert '<script type="text/plain" id="numbers">1abc</script>' in page
    for mark in ("/* page.css */", "/* page.js */", "<!-- parts -->"):
        assert mark not in page
    assert page.count("</script>") == 3  # the numbers, the worker, the page


def fields(page):
    """The values that each choice of the page has, {name: set}; None for a number."""
    found = {}
    for kind, name, rest in re.findall(r'<input type="(\w+)" name="(\w+)"([^>]*)>', page):
        value = re.search(r'value="([^"]*)"', rest)[1]
        found.setdefault(name, set() if kind in ("radio", "checkbox") else None)
        if found[name] is not None:
            found[name].add(value)
    return found


def test_the_experiments_ask_for_what_there_is():
    page = build.assembled({})
    has = fields(page)
    assert has["kind"] == set(data.KINDS)
    assert has["dots"] == {str(steps) for steps in plans.POINT_STEPS} and has["shape"] == set(build.SHAPES)
    assert {int(steps) for steps in has["steps"]} == set().union(*plans.CRYSTALS.values())
    experiments = re.findall(r'data-set="([^"]*)"', page)
    assert len(experiments) == 7  # five, two of which have two buttons
    for text in experiments:
        values = dict(parse_qsl(text.replace("&amp;", "&")))
        assert f"{values['sampler']}-{values['steps']}" in CRYSTALS
        for name, value in values.items():
            assert has[name] is None or value in has[name]


def test_rings_hold_their_share():
    gmm = reference.mixture("circle")
    (path,) = build.rings(gmm, 4.0, [0.5])
    numbers = [int(n) for n in re.findall(r"-?\d+", path)]
    assert len(numbers) > 40 and path.startswith("M") and max(map(abs, numbers)) <= 400


def test_a_mistake_is_one_line(mistake, tmp_path, monkeypatch):
    assert "one file" in mistake(build.main, "--out", tmp_path / "page.txt")
    assert "python web/build.py" in mistake(picture.main, "--page", tmp_path / "nothing.html")
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    assert "requirements-web.txt" in mistake(build.main)
    monkeypatch.setattr(build, "find_spec", lambda name: True)
    monkeypatch.setattr(build, "RUNTIME", tmp_path / "nowhere")
    assert "npm ci" in mistake(build.main)
    monkeypatch.setattr(build, "RUNTIME", tmp_path)
    assert "no checkpoint" in mistake(build.main, "--ckpt", tmp_path / "nothing.pt")
    assert not list(tmp_path.iterdir())
