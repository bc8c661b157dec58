"""The page of web/build.py in a real browser, against Python: about two minutes on two free cores.

    pip install -r requirements-web.txt && (cd web && npm ci)      and Chromium, from the packages of the system
    python -m pytest -n 0 tests/slow/test_web.py

Skipped, with the reason, where one of these is missing.  WEB_CKPT names another checkpoint of crystals than the one
that ships, WEB_PAGE a page that was built from it before.
"""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import data
import vp_sde
import vp_sde_2d
from audits.networks import opened
from common.checkpoints import SHIPPED
from common.nearest_crystal import crystal_error
from common.times import time_grid
from small import CPU
from test_web_plans import InFloat32, here
from vp_sde import SAMPLERS, Learned, guided_eps
from web import build

import numpy as np
import pytest
import torch

browsers = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
CHROMIUM = next(filter(None, browsers), None)
CKPT = os.environ.get("WEB_CKPT") or SHIPPED / "vp_sde.pt"


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    for package in ("onnx", "onnxscript", "playwright"):
        pytest.importorskip(package, reason=f"no {package}: pip install -r requirements-web.txt")
    if not build.RUNTIME.is_dir():
        pytest.skip("no onnxruntime-web: run npm ci in web/")
    if not CHROMIUM:
        pytest.skip("no Chromium: apt install chromium, or the like")
    if os.environ.get("WEB_PAGE"):
        return Path(os.environ["WEB_PAGE"]).resolve().as_uri()
    path = tmp_path_factory.mktemp("web") / "index.html"
    build.main(["--ckpt", str(CKPT), "--out", str(path)])
    return path.as_uri()


@pytest.fixture(scope="session")
def browser(address):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Opened:
    """A page, and what it has said and asked for."""

    def __init__(self, browser, address, **settings):
        self.context = browser.new_context(offline=True, **settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.said = []
        self.asked = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = address

    def go(self, settings=""):
        self.page.goto("about:blank")
        self.page.goto(f"{self.address}#{settings}")
        self.grown()
        return self.page

    def grown(self):
        self.page.wait_for_function("document.body.dataset.grown == growth.turn && !growth.moving")


@pytest.fixture(scope="session")
def shown(browser, address):
    opened = Opened(browser, address)
    opened.go()
    yield opened
    opened.context.close()


@pytest.fixture(scope="session")
def net():
    return opened(vp_sde, CKPT)[0].to(CPU)


START = torch.from_numpy(build.tile_starts(64)[7:8]).double() * build.STEP
GROW = """async ([values, start]) => {
    const film = [];
    await crystal(values, Float64Array.from(start), film);
    const last = film.at(-1);
    return { x: Array.from(last.x), error: last.error[0] };
}"""
NORMALS = "([seed, stream, n]) => Array.from(normals(seed, stream, n))"


def page_noise(page, plan, seed, shape):
    """The normals that the page draws for the columns z of a plan."""
    for j, kind in enumerate(plan["columns"]):
        if kind == "z":
            z = page.evaluate(NORMALS, [seed, j, int(np.prod(shape))])
            yield torch.tensor(z, dtype=torch.float64).view(shape)


@pytest.mark.parametrize("w", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("kind", [1, 3])
@pytest.mark.parametrize("plan", ["dpmpp-10", "ode-10", "sde-20"])
def test_the_page_draws_what_python_draws(shown, net, plan, kind, w):
    sampler, steps = plan.split("-")
    theta = 0.3
    values = dict(kind=data.KINDS[kind], theta=np.degrees(theta), w=w, sampler=sampler, steps=steps, seed=7)
    got = shown.page.evaluate(GROW, [values, START.flatten().tolist()])

    times = time_grid(net.schedule, int(steps), 0.005, "logsnr")
    condition = data.default_conditions(1, kind, theta)
    model = Learned(InFloat32(net), here())
    noise = page_noise(shown.page, shown.page.evaluate(f"numbers.crystals['{plan}']"), 7, START.shape)
    with torch.no_grad():
        *_, (_, x, _) = SAMPLERS[sampler](
            lambda x, t: guided_eps(model, condition, w, x, t), START, times, net.schedule, noise
        )
    worst = np.abs(np.array(got["x"]) - x.flatten().numpy()).max()
    known = (condition.kind, condition.cont[:, 1]) if w else ()
    error = float(crystal_error(data.unit(x), *known).error)
    print(f"{plan}, {data.KINDS[kind]}, w = {w}: worst pixel {worst:.1e}, errors {got['error']:.5f} {error:.5f}")
    assert worst <= 1e-4
    assert abs(got["error"] - error) < 1e-4


@pytest.mark.parametrize("sampler", ["dpmpp", "ode"])
def test_tile_7_is_that_of_the_script(shown, sampler, tmp_path):
    words = ["--sampler", sampler, "--steps", "10", "--precision", "float32", "--n", "8", "--ckpt", str(CKPT)]
    vp_sde.main([*words, "--out", str(tmp_path / "out")])
    with np.load(tmp_path / "out" / "samples.npz") as samples:
        x, kind, theta = (torch.from_numpy(samples[name][7:8]) for name in ("x", "kind", "theta"))
    own = float(crystal_error(x, kind, theta).error)

    page = shown.go(f"sampler={sampler}&seed=7")
    page.click("#tile")
    shown.grown()
    assert page.evaluate("settings().kind") == data.KINDS[kind] and page.evaluate("+settings().theta") == 12
    assert abs(page.evaluate("growth.film.at(-1).error[0]") - own) < 0.001


def test_the_exact_denoiser_lands_on_the_crystal(shown):
    page = shown.go("kind=triangular&theta=33&sampler=sde&steps=10&by=exact")
    assert page.evaluate("growth.film.at(-1).error[0]") < 1e-3
    assert page.is_disabled("[name=w]")
    page.click("text=rectangular")
    shown.grown()
    assert page.is_disabled("[value=exact][name=by]") and page.evaluate("settings().by") == "network"


@pytest.mark.parametrize("score", ["learned", "exact"])
def test_points_go_where_python_sends_them(shown, score):
    page = shown.go(f"shape=S&dots=10&score={score}&points=3")
    page.locator("#flow").scroll_into_view_if_needed()
    page.wait_for_function("document.body.dataset.gathered == cloud.turn")
    net, _ = opened(vp_sde_2d, SHIPPED / "vp_sde_2d_S.pt")
    gmm = vp_sde_2d.mixture(SimpleNamespace(shape="S"), net.schedule)
    exact = vp_sde_2d.Exact(gmm, net.schedule)
    model = exact if score == "exact" else vp_sde_2d.LearnedV(InFloat32(net), here())
    start = torch.tensor(page.evaluate(NORMALS, [3, 0, 4000]), dtype=torch.float64).view(-1, 2)
    times = time_grid(net.schedule, 10, 0.001, "logsnr")
    for side, sampler in (("flow", "dpmpp"), ("sde", "sde")):
        noise = page_noise(page, page.evaluate(f"numbers.points['{sampler}-10']"), 3, start.shape)
        *_, (_, x, _) = SAMPLERS[sampler](model.eps, start, times, net.schedule, noise)
        got = np.array(page.evaluate(f"Array.from(cloud.film.at(-1).{side})")).reshape(-1, 2)
        away = np.abs(got - x.numpy()).max(1)
        print(f"{score} {side}: worst {away.max():.1e}, median {np.median(away):.1e}")
        assert np.quantile(away, 0.99) < 1e-4 and away.max() < 1e-2  # a few end where two ways part

    score_there = np.array(page.evaluate("Array.from(cloud.film[5].arrows)")).reshape(-1, 2)
    t = page.evaluate("cloud.film[5].t")
    places = torch.tensor(page.evaluate("numbers.arrows"), dtype=torch.float64)
    _, _, sigma = net.schedule.at(t)
    own = -model.eps(places, t).numpy() / sigma
    np.testing.assert_allclose(score_there, own, atol=1e-4 * np.abs(own).max())


CONTROLS = ["text=square", "text=Heun", "[name=steps][value='20'] + i", "text=the exact denoiser"]
CONTROLS.append("[data-another=seed]")


@pytest.mark.parametrize("control", CONTROLS)
def test_every_choice_changes_the_crystal_and_the_link(shown, control):
    page = shown.go("seed=3")
    before = page.evaluate("[location.hash, $('xt').toDataURL()]")
    page.click(control)
    shown.grown()
    after = page.evaluate("[location.hash, $('xt').toDataURL()]")
    assert after[0] != before[0] and after[1] != before[1]


@pytest.mark.parametrize("name", ["theta", "w"])
def test_every_slider_is_moved_by_the_keyboard(shown, name):
    page = shown.go("seed=3")
    before = page.evaluate("[location.hash, $('xt').toDataURL()]")
    page.focus(f"[name={name}]")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    shown.grown()
    after = page.evaluate("[location.hash, $('xt').toDataURL()]")
    assert after[0] != before[0] and after[1] != before[1]


def test_time_and_play_are_moved_by_the_keyboard(shown):
    page = shown.go("")
    assert page.inner_text("#crystal-clock").startswith("t = 0.000")
    page.focus("#crystal-time")
    page.keyboard.press("Home")
    assert page.inner_text("#crystal-clock") == "t = 1.000, 1 call"
    page.focus("#crystal-play")
    page.keyboard.press("Space")
    shown.grown()
    assert page.inner_text("#crystal-clock") == "t = 0.000, 10 calls"


def test_every_experiment_runs(shown):
    page = shown.go("")
    for button in page.query_selector_all("[data-set]"):
        button.click()
        shown.grown()
        assert page.evaluate("growth.film.at(-1).error[0]") < 0.5


def test_points_have_their_controls_and_their_paths(shown):
    page = shown.go("dots=5&score=exact")
    page.locator("#flow").scroll_into_view_if_needed()
    finished = "document.body.dataset.gathered == cloud.turn && !cloud.moving"
    page.wait_for_function(finished)
    controls = ("[value=circle] + i", "[value='10'][name=dots] + i", "[value=learned] + i")
    for control in (*controls, "[data-another=points]"):
        before = page.evaluate("[location.hash, $('flow').toDataURL()]")
        page.click(control)
        page.wait_for_function(finished)
        after = page.evaluate("[location.hash, $('flow').toDataURL()]")
        assert after[0] != before[0] and after[1] != before[1], control
    assert page.is_visible("#flow + svg .arrows")
    page.click("[name=arrows] + i")
    assert not page.is_visible("#flow + svg .arrows") and "arrows=0" in page.evaluate("location.hash")

    page.locator("#flow").scroll_into_view_if_needed()
    box = page.locator("#flow").bounding_box()
    x, y = page.evaluate("[cloud.film.at(-1).flow[40], cloud.film.at(-1).flow[41]]")
    unit = box["width"] / 2 / page.evaluate("numbers.half")
    page.mouse.move(box["x"] + box["width"] / 2 + unit * x, box["y"] + box["height"] / 2 - unit * y)
    for side in ("flow", "sde"):
        assert page.get_attribute(f"#{side} + svg .path", "d").count("L") == 10


def test_the_link_restores_the_settings_and_a_seed_the_picture(shown):
    settings = "kind=square&theta=41.5&w=3&sampler=sde&steps=20&seed=77&by=network"
    settings += "&shape=circle&score=exact&dots=5&points=9"
    page = shown.go(settings)
    found = page.evaluate("settings()")
    crystals = ("kind", "theta", "w", "sampler", "steps", "seed", "by")
    assert settings.startswith("&".join(f"{key}={found[key]}" for key in crystals))
    assert [found[key] for key in ("shape", "score", "dots", "points")] == ["circle", "exact", "5", "9"]
    before = page.evaluate("$('xt').toDataURL()")
    shown.go("")
    page = shown.go(settings)
    assert page.evaluate("$('xt').toDataURL()") == before


def test_a_link_of_nonsense_does_no_harm(shown):
    page = shown.go("kind=salt&theta=x&w=99&sampler=magic&steps=7&seed=-3&by=luck&dots=1&points=zz")
    assert page.inner_text("#trouble") == ""


def test_a_telephone_and_a_dark_screen(browser, address):
    for scheme in ("light", "dark"):
        small = Opened(browser, address, viewport={"width": 360, "height": 740}, color_scheme=scheme)
        page = small.go("")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, paper[4:-1].split(","))) < 150) == (scheme == "dark")
        small.context.close()


def test_without_simd_it_says_so(browser, address):
    old = Opened(browser, address)
    old.page.add_init_script("WebAssembly.validate = () => false")
    old.page.goto(address)
    old.page.wait_for_function("document.getElementById('trouble').textContent")
    assert "SIMD" in old.page.inner_text("#trouble")
    old.context.close()


def test_nothing_was_asked_for_and_nothing_complained(shown):
    """The last one: of all that the tests above did."""
    assert not [url for url in shown.asked if not url.startswith(("file:", "blob:", "about:"))]
    assert not shown.said
