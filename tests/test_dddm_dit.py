"""Images by a DiT: the network, the sampler, three data sets, and what is refused, here and by dddm.py."""

import importlib.util
import json
from pathlib import Path

import data
import dddm
import dddm_dit
from common import datasets, image_job, runs
from conftest import arrays, run, state
from small import CPU, run_of
from test_dddm import lively
from test_processes import close, together

import numpy as np
import pytest
import torch

ROOT = Path(dddm_dit.__file__).parent
TINY = ["--width", 16, "--depth", 2, "--shared", 1, "--heads", 2, "--batch-size", 4, "--n", 4, "--device", "cpu"]
TRAIN = ["--train", "--train-steps", 3, *TINY]
SMALL = ["--img-size", 16, "--patch", 4]  # crystals


def config_of(name="crystals", **more):
    usual = dict(data=name, patch=4, width=16, depth=2, heads=2, shared=1, xi_dim=3, m=3, batch_size=4, n=6)
    if name == "crystals":
        usual["img_size"] = 16
    config = dddm_dit.Config(**(usual | more))
    config.settle(set())
    return config


def dit_run(*words):
    return run(*words, main=dddm_dit.main)


def condition_of(n, kind=0, theta=0.0):
    return data.default_conditions(n, kind, theta)


# ---------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("name", ["crystals", "cifar10"])
def test_patches_are_in_reading_order_and_go_back(name):
    net = dddm_dit.build(config_of(name))
    x = torch.randn(2, image_job.CHANNELS[name], 4 * net.cells, 4 * net.cells)
    assert torch.equal(net.image(net.tokens(x)), x)
    upper_left, second = net.tokens(x)[0, :2].reshape(2, x.shape[1], -1)
    assert torch.equal(upper_left, x[0, :, :4, :4].flatten(1))
    assert torch.equal(second, x[0, :, :4, 4:8].flatten(1))


def test_the_network_depends_on_all_that_it_is_given():
    net = lively(config_of(), dddm_dit)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 16, 16, generator=g)
    xi = torch.randn(2, 3, 3, generator=g)
    t = torch.full((2,), 0.6)

    def out(x=x, t=t, kind=1, theta=0.2, xi=xi):
        return net(x, t, condition_of(len(x), kind, theta), xi)

    here = out()
    assert here.shape == (2, 3, 1, 16, 16)
    changed = [out(t=t + 0.1), out(kind=0), out(theta=0.3), out(xi=xi + 0.1)]
    assert all((there - here).abs().amax() > 1e-4 for there in changed)
    assert (here[:, 0] - here[:, 1]).abs().amax() > 1e-4  # particles differ

    # It is equivariant to the order of the particles and of the images, and to nothing else.
    for move in (lambda v: v.roll(4, -1), lambda v: v.flip(-1), lambda v: v.transpose(-1, -2)):
        assert (out(x=move(x)) - move(here)).abs().amax() > 1e-3
    assert torch.allclose(out(xi=xi[:, [1, 0, 2]])[:, [1, 0, 2]], here, atol=1e-5)
    assert torch.allclose(out(x=x[:1], t=t[:1], xi=xi[:1]), here[:1], atol=1e-5)


def test_particles_share_the_trunk_and_t_zero_returns_the_data():
    net = lively(config_of(), dddm_dit)
    x = torch.randn(2, 1, 16, 16)
    xi = torch.randn(2, 3, 3)
    xhat = net(x, torch.zeros(2), condition_of(2), xi)
    assert torch.allclose(xhat, x[:, None].expand_as(xhat), atol=1e-5)
    t = torch.full((2,), 0.7)
    single = [net(x, t, condition_of(2), xi[:, j : j + 1]) for j in range(3)]
    assert torch.allclose(net(x, t, condition_of(2), xi), torch.cat(single, 1), atol=1e-5)


def test_attention_is_that_of_torch():
    q, k, v = torch.randn(3, 2, 4, 9, 8, dtype=torch.float64)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(dddm_dit.attention(q, k, v), theirs, atol=1e-12)


# ---------------------------------------------------------------------------------------------------- the sampler


def test_a_sample_depends_on_its_own_noise_only():
    """Bridge and xi of image i come from its own generator, whatever batch it is drawn in."""
    net = lively(config_of(), dddm_dit)
    run = run_of(config_of(steps=2, churn=0.7, seed=3))
    condition = data.default_conditions(6)
    whole = dddm_dit.draw(net, run.with_settings(sample_batch=4), condition)
    other = dddm_dit.draw(net, run.with_settings(sample_batch=5), condition)
    assert torch.allclose(whole.x, other.x, atol=1e-4) and whole.x.std() > 0.1
    assert [t for t, *_ in whole.film] == [1.0, 0.5, 0.0]
    fewer = dddm_dit.draw(net, run.with_settings(n=2), condition.rows(slice(2)))
    assert torch.allclose(whole.x[:2], fewer.x, atol=1e-4)


def test_eight_steps_of_what_ships():
    run = runs.start(dddm_dit.Config, ["--n", "12", "--device", "cpu"])
    run.device = CPU
    drawn, images = dddm_dit.sample(runs.load_net(dddm_dit.build(run.trained), run), run)
    condition = images.conditions(run.config)
    assert images.evaluate(drawn.x, condition, 0)["crystal_error"] < 0.03


# ------------------------------------------------------------------------------------------------------- crystals


def test_crystals(here):
    assert dit_run(*TRAIN, "--steps", 2, "--out", "run") == 0
    files = {"config.json", "last.pt", "log.jsonl", "metrics.json", "samples.npz", "samples.png"}
    assert {p.name for p in Path("run").iterdir()} == files | {"sampling.gif", "training_samples.png"}
    found = arrays(Path("run"))
    assert found["x"].shape == (4, 1, 64, 64) and found["x"].min() >= 0 and found["x"].max() <= 1
    assert found["kind"].tolist() == [0, 1, 2, 3] and found["theta"].dtype == np.float32
    assert json.loads(Path("run/metrics.json").read_text())["crystal_error_mean"] > 0.2
    assert 0 < json.loads(Path("run/log.jsonl").read_text())["crystal_error"] < 1  # a mean: the sum of 36 is above

    words = ["--kind", "triangular", "--theta", "30deg", "--n", 1, "--steps", 1]
    assert dit_run("--ckpt", "run", *words, "--out", "other") == 0
    found = arrays(Path("other"))
    assert found["kind"].tolist() == [2] and found["theta"].tolist() == pytest.approx([np.pi / 6])
    assert "NaN" not in Path("other/metrics.json").read_text()


def test_two_processes_take_the_step_of_one_and_share_the_samples(here):
    flags = [*TRAIN, *SMALL, "--batch-size", 8, "--sample-batch", 2, "--steps", 2, "--precision", "float32"]
    said, statuses = together(lambda: dit_run(*flags, "--out", "two"), here)
    assert statuses == [0, 0], said
    assert said[1] == "" and said[0].count("output in") == 1
    assert dit_run(*flags, "--out", "one") == 0
    assert close(state("one")["model"], state("two")["model"])
    assert np.abs(arrays(Path("one"))["x"] - arrays(Path("two"))["x"]).max() < 1e-4
    assert {p.name for p in Path("one").iterdir()} == {p.name for p in Path("two").iterdir()}


# ---------------------------------------------------------------------------------------------------- real images


@pytest.fixture
def published(monkeypatch):
    """Small random sets in the place of the published ones."""
    g = torch.Generator().manual_seed(0)
    sets = {}
    for name, about in datasets.DATASETS.items():
        shape = (40, about.channels, about.size, about.size)
        sets[name] = torch.randint(256, shape, generator=g, dtype=torch.uint8), torch.arange(40) % 10
    monkeypatch.setattr(image_job, "load", lambda name, folder, train: sets[name])
    monkeypatch.setattr(image_job, "present", lambda *where, **part: True)
    return sets


@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10"])
def test_real_images(here, published, name):
    assert dit_run("--data", name, *TRAIN, "--eval-every", 1, "--m", 2, "--steps", 2, "--out", "run") == 0
    found = arrays(Path("run"))
    assert found["x"].shape == (4, *published[name][0].shape[1:]) and found["kind"].tolist() == [0, 1, 2, 3]
    lines = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    numbers = json.loads(Path("run/metrics.json").read_text())
    assert len(lines) == 3
    for which in (lines[-1], numbers):
        assert "mmd2_pixels" in which and ("frechet" in which) == (name != "cifar10")
    assert "mmd2_pixels_floor" in numbers

    assert dit_run("--data", name, "--ckpt", "run", "--n", 1, "--kind", 7, "--out", "one") == 0
    assert arrays(Path("one"))["kind"].tolist() == [7]
    one = json.loads(Path("one/metrics.json").read_text())
    assert one.keys() - {"share_correct"} == {"n", "seconds", "ms_per_image"}


def test_without_real_digits_a_classifier_still_measures(here, published, monkeypatch):
    assert dit_run("--data", "mnist", *TRAIN, "--steps", 1, "--out", "run") == 0
    monkeypatch.setattr(image_job, "present", lambda *where, **part: False)
    monkeypatch.delattr(image_job, "load")
    assert dit_run("--data", "mnist", "--ckpt", "run", "--n", 3, "--out", "some") == 0
    numbers = json.loads(Path("some/metrics.json").read_text())
    assert numbers.keys() == {"n", "seconds", "ms_per_image", "frechet", "share_correct"}


@pytest.mark.parametrize("name", ["mnist", "cifar10", "crystals"])
def test_two_networks_by_few_calls(here, published, name, capsys, mistake):
    """The table says what each network alone would say, by as many calls."""
    words = ["--data", name, *TRAIN, *(SMALL if name == "crystals" else [])]
    assert dit_run(*words, "--out", "one") == dit_run(*words, "--beta", 2, "--lam", 0, "--out", "two") == 0
    pair = ["--data", name, "--ckpt", "one", "--n", 6]
    capsys.readouterr()
    assert dit_run(*pair, "--against", "two", "--out", "both") == 0
    said = capsys.readouterr().out
    assert "beta 1, lam 1, churn 0 " in said and "beta 2, lam 0, churn 1 " in said
    assert Path("both/few_calls.png").stat().st_size > 5000

    assert dit_run(*pair, "--steps", 4, "--churn", 0, "--out", "alone") == 0
    alone, both = (json.loads(Path(f"{out}/metrics.json").read_text()) for out in ("alone", "both"))
    alone["crystal_error"] = alone.get("crystal_error_mean")
    for key, value in both["beta 1, lam 1, churn 0"]["4"].items():
        assert value == pytest.approx(alone[key], abs=1e-6)
    for key, value in both["floor"].items():
        assert value == pytest.approx(alone[f"{key}_floor"])

    assert "--steps has no effect" in mistake(dddm_dit.main, *pair, "--against", "two", "--steps", 4)
    assert "is the same network as" in mistake(dddm_dit.main, *pair, "--against", "one/last.pt")
    assert "--n 2 or more" in mistake(dddm_dit.main, *pair[:-1], 1, "--against", "two")


def test_networks_of_different_images_are_not_compared(here, published, mistake):
    for name in ("mnist", "fashion"):
        assert dit_run("--data", name, *TRAIN, "--steps", 1, "--out", name) == 0
    line = mistake(dddm_dit.main, "--data", "mnist", "--ckpt", "mnist", "--against", "fashion", "--out", "both")
    assert "no fair comparison: mnist/last.pt draws mnist, fashion/last.pt fashion" in line
    assert not Path("both").exists()


def test_an_image_keeps_its_label(published):
    images = image_job.Published(run_of(config_of("mnist")))
    x, condition = images.batch(0, 5)
    x_u8 = published["mnist"][0].float()
    rows = [int(((one + 1) * 127.5 - x_u8).abs().flatten(1).sum(1).argmin()) for one in x]
    assert [row % 10 for row in rows] == condition.kind.tolist()
    torch.testing.assert_close((x + 1) * 127.5, x_u8[rows], atol=1e-4, rtol=0)  # 0 .. 255


def test_an_epoch_is_a_pass_over_the_images_that_are_there(published, monkeypatch):
    words = ["--train", "--data", "mnist", "--epochs", "3", "--batch-size", "4"]
    assert runs.start(dddm_dit.Config, words).config.train_steps == 30
    monkeypatch.setattr(image_job, "present", lambda *where, **part: False)  # they will be downloaded
    assert runs.start(dddm_dit.Config, words).config.train_steps == 45_000


def test_other_images_than_those_of_the_training_are_refused(here, published, mistake):
    assert dit_run("--data", "mnist", *TRAIN, "--steps", 1, "--out", "run") == 0
    published["mnist"][0][0, 0, 0, 0] ^= 1
    for words in (["--data", "mnist", "--ckpt", "run"], ["--resume", "--out", "run", "--train-steps", 4]):
        assert "--data-dir" in mistake(dddm_dit.main, *words)


def test_images_that_cannot_be_had(here, mistake, monkeypatch):
    address = "http://127.0.0.1:9/"  # nobody listens there
    mnist = datasets.MNIST._replace(mirrors=(address,))
    monkeypatch.setitem(datasets.DATASETS, "mnist", mnist)
    line = mistake(dddm_dit.main, "--train", "--data", "mnist", "--data-dir", "nowhere", "--out", "out")
    assert all(word in line for word in ("train-images-idx3-ubyte", "nowhere", address))
    assert list(here.iterdir()) == []


def test_the_digits_that_ship_are_read_as_what_was_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no MNIST is
    assert dit_run("--data", "mnist", "--n", 100, "--sample-batch", 100, "--out", "digits") == 0
    numbers = json.loads(Path("digits/metrics.json").read_text())
    assert numbers["share_correct"] > 0.8 and "mmd2_pixels" not in numbers


# ------------------------------------------------------------------------------------------------------- mistakes


@pytest.fixture
def bad(here, mistake):
    """bad(*flags): the one line of complaint of dddm_dit.py, or of another main; nothing is written."""

    def line_of(*flags, main=dddm_dit.main):
        line = mistake(main, *flags, "--out", "out")
        assert not Path("out").exists()
        return line

    return line_of


@pytest.mark.parametrize("script", [dddm, dddm_dit])
@pytest.mark.parametrize("flags, words", [
    (["--m", 1], "--lam 0"), (["--beta", 0], "above 0"), (["--beta", 2.1], "at most 2"), (["--beta", "nan"], "finite"),
    (["--lam", -0.1], "at least 0"), (["--lam", 1.1], "at most 1"), (["--churn", 2], "at most 1"),
    (["--steps", 0], "--steps"), (["--particles", 0], "--particles"), (["--w-bias", 1], "--weight none"),
    (["--clip", 0], "--clip"), (["--data", "moons"], "moons"), (["--n", 0], "--n"), (["--shared", 9], "--depth")])
def test_settings_that_cannot_be(bad, script, flags, words):
    assert words in bad("--train", *flags, main=script.main)


@pytest.mark.parametrize("flags, words", [
    (["--width", 100, "--heads", 3], "not divisible by --heads 3"), (["--patch", 7], "--patch 7"),
    (["--img-size", 60], "--patch 8"), (["--kind", 4], "0 to 3, or one of square"), (["--kind", "hexagon"], "square"),
    (["--data", "mnist", "--kind", "honeycomb"], "the classes of mnist are 0 to 9"), (["--theta", 2], "--theta"),
    (["--data-dir", "x"], "--data-dir has no effect"),
    (["--data", "mnist", "--theta", 0.1], "--theta has no effect"), (["--fid"], "cifar10"),
    (["--data", "mnist", "--img-size", 32], "--img-size has no effect"), (["--data", "cifar10", "--kind", 10], "9")])
def test_images_that_cannot_be(bad, flags, words):
    assert words in bad("--train", *flags)


def test_a_single_step_has_no_churn(bad):
    shipped = ROOT / "assets" / "checkpoints" / "dddm_dit_crystals.pt"
    assert "--churn has no effect" in bad("--ckpt", shipped, "--steps", 1, "--churn", 0.5)


@pytest.mark.parametrize("script", [dddm, dddm_dit])
def test_settings_of_the_training_are_refused_without_one(bad, script):
    assert "add --train" in bad("--m", 4, main=script.main)


@pytest.mark.parametrize("name", ["fashion", "cifar10"])
def test_no_network_of_real_images_ships(bad, name):
    assert f"dddm_dit_{name}.pt" in bad("--data", name) and "--train" in bad("--data", name)


def test_a_missing_package_is_named(bad, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'torchmetrics[image]'" in bad("--train", "--data", "cifar10", "--fid")


def test_a_checkpoint_knows_its_network(bad):
    shipped = ROOT / "assets" / "checkpoints"
    assert "contradicts" in bad("--ckpt", shipped / "dddm_dit_crystals.pt", "--width", 32)
    assert "dddm_dit.py" in bad("--ckpt", shipped / "dddm_mixture.pt")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("dddm_*.json")), ids=lambda path: path.name)
def test_presets_are_read_by_the_script_that_they_are_named_after(path):
    script = dddm_dit if path.name.startswith("dddm_dit") else dddm
    config = runs.start(script.Config, ["--config", str(path), "--train"]).config
    preset = json.loads(path.read_text())
    assert {key: getattr(config, key) for key in preset} == preset
