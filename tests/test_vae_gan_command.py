"""The command lines of vae_gan.py: what they take, what they refuse, where results go, and what ships."""

import gzip
import json
import shutil
import struct
from dataclasses import replace

import vae_gan
from common import classifier, cli, digit_job, loop
from common.checkpoints import ROOT, SHIPPED, load_checkpoint
from common.classifier import load_classifier
from common.datasets import DATASETS
from conftest import run as run_main

import numpy as np
import pytest
import torch

TINY = ["--train", "--train-steps", 2, "--batch-size", 4, "--n", 4, "--precision", "float32", "--device", "cpu"]
SCHEMES = {"simple": ["--scheme", "simple"], "composite": ["--critic-start", 1]}


def run(*words):
    return run_main(*words, main=vae_gan.main)


def numbers(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "PERCEPTUAL_STEPS", 2)
        patch.setattr(vae_gan, "N_TEST", 8)
        patch.setattr(loop.pictures, "loss_curve", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def folder(mnist_folder, tmp_path_factory):
    """A folder with a tiny run of each scheme.  Not to be written into."""
    folder = tmp_path_factory.mktemp("runs")
    for scheme, words in SCHEMES.items():
        assert run(*TINY, "--data-dir", mnist_folder, *words, "--out", folder / scheme) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def offline(monkeypatch):
    mnist = DATASETS["mnist"]._replace(mirrors=("http://127.0.0.1:9/",))
    monkeypatch.setitem(DATASETS, "mnist", mnist)


# ------------------------------------------------------------ two networks


def test_compare_is_one_table_and_one_picture(folder, mnist_folder, here, capsys):
    pair = ["--ckpt", folder / "simple", "--against", folder / "composite", "--n", 5, "--seed", 2]
    assert run("--compare", *pair, "--data-dir", mnist_folder, "--out", "c") == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("Frechet", "simple", "composite", "real", "ratio"))
    names = {path.name for path in (here / "c").iterdir()}
    assert names == {"compare.png", "samples_simple.npz", "samples_composite.npz", "metrics.json", "config.json"}
    found = numbers(here / "c")
    assert found["simple"]["n"] == 5 and found["simple"]["n_reconstructed"] == 40
    assert found["composite"]["network"]["file"] == str(folder / "composite" / "last.pt")
    assert found["composite"]["network"]["config"]["critic_start"] == 1


def test_compare_draws_what_each_network_alone_draws(folder, here):
    pair = ["--ckpt", folder / "simple", "--against", folder / "composite"]
    assert run("--compare", *pair, "--n", 3, "--precision", "float32", "--out", "c") == 0
    for scheme in SCHEMES:
        assert run("--ckpt", folder / scheme, "--n", 3, "--precision", "float32", "--out", scheme) == 0
        a, b = (np.load(f"{out}/samples_{scheme}.npz")["x"] for out in ("c", scheme))
        assert np.array_equal(a, b)


def test_each_pair_has_a_folder_of_its_own(folder, here):
    """Where nobody names one."""
    pair = ["--ckpt", folder / "simple", "--against", folder / "composite"]
    assert run("--compare", "--n", 2) == run("--compare", "--n", 2, *pair) == run("--compare", "--n", 2, *pair[:2]) == 0
    folders = [path.name for path in (here / "outputs" / "vae_gan").iterdir()]
    assert len(folders) == 3 and "compare_n-2" in folders


def test_compare_refuses_two_networks_that_are_no_pair(folder, here, mistake):
    simple, composite = folder / "simple", folder / "composite"
    line = mistake(vae_gan.main, "--compare", "--ckpt", composite, "--against", simple)
    assert f"{composite / 'last.pt'} is of scheme composite, not simple" in line
    assert run(*TINY[:-4], "--data-dir", DATA(folder), "--scheme", "simple", "--z-dim", 3, "--out", "three") == 0
    assert "--z-dim is 3 and 12" in mistake(vae_gan.main, "--compare", "--ckpt", "three", "--against", composite)
    assert not (here / "outputs").exists()


def test_two_networks_of_clothes_are_compared_with_clothes_and_not_with_digits(folder, mnist_folder, here, mistake):
    for scheme, words in SCHEMES.items():
        clothes = ["--data", "fashion", "--data-dir", mnist_folder, *words]
        assert run(*TINY, *clothes, "--out", f"clothes_{scheme}") == 0
    pair = ["--ckpt", "clothes_simple", "--against", "clothes_composite"]
    assert run("--compare", *pair, "--n", 3, "--out", "c") == 0
    found = numbers(here / "c")["simple"]
    assert found["real"] == load_classifier(of="fashion").real
    assert found["n_reconstructed"] == 40  # where they were trained, since ./data holds none
    line = mistake(vae_gan.main, "--compare", "--ckpt", "clothes_simple", "--against", folder / "composite")
    assert "--data is fashion and mnist" in line

    # A network knows what it was trained on.
    assert run("--ckpt", "clothes_simple", "--n", 2, "--out", "one") == 0
    assert numbers(here / "one")["simple"]["real"] == load_classifier(of="fashion").real
    assert "--data mnist contradicts" in mistake(vae_gan.main, "--ckpt", "clothes_simple", "--data", "mnist")
    assert "no --data fashion network ships" in mistake(vae_gan.main, "--data", "fashion")


def DATA(folder):
    return load_checkpoint(folder / "simple")["config"]["data_dir"]


# ------------------------------------------------------------ a setting without effect


@pytest.mark.parametrize(
    "words, flag",
    [
        ("--compare --beta 2", "--beta"),
        ("--compare --scheme simple", "--scheme"),
        ("--compare --z-dim 12", "--z-dim"),
        ("--compare --data fashion", "--data"),
        ("--compare --train", "--train"),
        ("--compare --label 3", "--label"),
        ("--against x.pt", "--against"),
        ("--label 3", "--label"),
        ("--train --label 3", "--label"),
        ("--train --scheme simple --perceptual 3", "--perceptual"),
        ("--train --scheme simple --critic-lr 3", "--critic-lr"),
        ("--train --adversarial 0 --critic-start 3", "--critic-start"),
    ],
)
def test_a_flag_without_effect_is_refused(words, flag, here, mistake):
    assert f"{flag} has no effect: " in mistake(vae_gan.main, *words.split())
    assert not list(here.iterdir())


def test_a_setting_of_the_training_is_refused_where_nothing_is_trained(here, mistake):
    for words in (["--critic-lr", 1], ["--compare", "--lr", 0.1], ["--make-classifier", "--lr", 0.1]):
        assert "is a setting of the training" in mistake(vae_gan.main, *words)


def test_what_a_config_holds_is_passed_over(folder, here):
    (here / "a.json").write_text(json.dumps({"label": 3, "perceptual": 1.0, "scheme": "simple", "n": 2}))
    assert run("--config", "a.json", "--out", "a") == 0
    assert json.loads((here / "a" / "config.json").read_text())["label"] is None


# ------------------------------------------------------------ which network


def test_the_flags_choose_what_ships():
    shipped = {
        "vae_gan_composite.pt": dict(),
        "vae_gan_simple.pt": dict(scheme="simple"),
        "vae_gan_map.pt": dict(scheme="simple", z_dim=2),
        None: dict(compare=True),
    }
    for name, settings in shipped.items():
        assert vae_gan.Config(**settings).shipped == name
        assert name is None or (SHIPPED / name).is_file()
    assert vae_gan.Config(make_classifier=True).shipped is None


def test_a_flag_that_contradicts_a_network_is_refused(folder, here, mistake):
    composite = folder / "composite"
    assert "contradicts" in mistake(vae_gan.main, "--scheme", "simple", "--ckpt", composite)
    assert "contradicts" in mistake(vae_gan.main, "--z-dim", 3, "--ckpt", composite)
    assert "--z-dim 5 contradicts" in mistake(vae_gan.main, "--scheme", "simple", "--z-dim", 5)
    line = mistake(vae_gan.main, "--cond")
    assert "no --cond network ships: train one with --train" in line


# ------------------------------------------------------------ data


def test_a_folder_without_the_files_in_it_is_no_data(folder, here, offline, mistake):
    """A failed download leaves nothing behind, and what is left behind by others is not taken for MNIST."""
    line = mistake(vae_gan.main, *TINY, "--data-dir", "none", "--out", "run")
    assert all(word in line for word in ("train-images-idx3-ubyte.gz", "none", "http://127.0.0.1:9/"))
    assert not (here / "none").exists()
    (here / "none" / "MNIST" / "raw").mkdir(parents=True)
    assert run("--n", 2, "--data-dir", "none", "--out", "samples") == 0
    assert numbers(here / "samples")["composite"]["n_reconstructed"] == 32


def test_data_may_move_but_not_change(folder, mnist_folder, here, mistake):
    shutil.copytree(folder / "simple", "run")
    shutil.copytree(mnist_folder, "moved")
    assert run("--resume", "--out", "run", "--train-steps", 3, "--data-dir", "moved") == 0

    images = here / "moved" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(images.read_bytes()))
    content[-400] ^= 1
    images.write_bytes(gzip.compress(content))
    line = mistake(vae_gan.main, "--resume", "--out", "run", "--train-steps", 4, "--data-dir", "moved")
    assert "--data-dir moved does not hold what" in line


def test_an_epoch_is_a_pass_over_the_digits_there_are(mnist_folder, here):
    words = ["--train", "--scheme", "simple", "--epochs", 2, "--batch-size", 16, "--n", 2, "--data-dir", mnist_folder]
    assert run(*words, "--out", "run") == 0
    assert load_checkpoint("run")["step"] == 5  # 2 times 40 digits in batches of 16


def test_held_out_digits_are_those_of_the_test_part(mnist_folder, here, monkeypatch):
    load = vae_gan.load
    asked = []
    monkeypatch.setattr(vae_gan, "load", lambda *where, train: asked.append(train) or load(*where, train=train))
    assert run(*TINY, "--data-dir", mnist_folder, "--scheme", "simple", "--out", "run") == 0
    assert asked == [True, False]


def test_damaged_data_are_one_line(mnist_folder, here, mistake):
    shutil.copytree(mnist_folder, "bad")
    labels = here / "bad" / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    whole = gzip.decompress(labels.read_bytes())
    hurt = {
        "magic number is 2051": struct.pack(">2I", 2051, 40) + whole[8:],
        "40 images, but 39 labels": struct.pack(">2I", 2049, 39) + whole[9:],
        "promises": whole[:-1],
    }
    for says, content in hurt.items():
        labels.write_bytes(gzip.compress(content))
        assert says in mistake(vae_gan.main, *TINY, "--data-dir", "bad", "--out", "out")


# ------------------------------------------------------------ mistakes and edges


def test_a_wrong_classifier_is_refused_before_the_work(folder, mnist_folder, here, mistake):
    line = mistake(vae_gan.main, *TINY, "--data-dir", mnist_folder, "--classifier", folder / "simple" / "last.pt")
    assert "holds no classifier" in line and not list(here.iterdir())


def test_numbers_out_of_range_and_strange_configs_are_one_line(here, mistake):
    assert "--z-dim" in mistake(vae_gan.main, "--z-dim", 0)
    assert "--label" in mistake(vae_gan.main, "--label", 10)
    assert "--scheme" in mistake(vae_gan.main, "--scheme", "other")
    (here / "a.json").write_text("{not json")
    (here / "b.json").write_text('{"z_dim": 8, "colour": 1}')
    assert "a.json" in mistake(vae_gan.main, "--config", "a.json")
    assert "'colour'" in mistake(vae_gan.main, "--config", "b.json")


def test_a_single_sample_has_the_numbers_of_one(here):
    assert run("--n", 1, "--out", "one") == run("--compare", "--n", 1, "--out", "two") == 0
    for folder in ("one", "two"):
        text = (here / folder / "metrics.json").read_text()
        assert "frechet\"" not in text and "NaN" not in text and "share_sure" in text


# ------------------------------------------------------------ the map


def test_two_latents_span_a_plane_of_quantiles():
    z, values, rows = digit_job.latent_grid(torch.ones(2), 4)
    shares = torch.special.ndtr(values)
    torch.testing.assert_close(shares, torch.tensor([0.125, 0.375, 0.625, 0.875]))
    assert rows == [] and z.shape == (16, 2)
    assert torch.equal(z[:4, 0], values) and torch.equal(z[:4, 1], values[-1].expand(4))  # the first row is on top


def test_more_latents_have_a_row_each_the_most_active_first():
    z, values, rows = digit_job.latent_grid(torch.tensor([0.1, 3.0, 0.2]), 5)
    assert rows == [1, 2, 0] and z.shape == (15, 3)
    assert torch.equal(z[:5, 1], values) and z[:5, [0, 2]].abs().sum() == 0


def test_the_map_that_ships_shows_digits(here):
    """Of its 400 places most are a digit for the classifier, and every digit has its place."""
    assert run("--scheme", "simple", "--z-dim", 2, "--n", 400, "--out", "map") == 0
    assert (here / "map" / "map.png").stat().st_size > 50_000
    x = torch.from_numpy(np.load("map/samples_simple.npz")["x"])
    probabilities, _ = classifier.classify(load_classifier().net, x)
    shares = probabilities.argmax(1).bincount(minlength=10) / 400
    assert shares.min() > 0.01
    assert numbers(here / "map")["simple"]["share_sure"] > 0.4


# ------------------------------------------------------------ what ships


def test_presets_say_what_the_defaults_are():
    for scheme in SCHEMES:
        path = ROOT / "configs" / f"vae_gan_{scheme}.json"
        assert replace(cli.parse(vae_gan.Config, ["--config", str(path)]), config=None) == vae_gan.Config(scheme=scheme)


@pytest.mark.parametrize("name", ["simple", "composite", "map"])
def test_what_ships_was_made_by_its_preset(name):
    path = SHIPPED / f"vae_gan_{name}.pt"
    assert path.stat().st_size < 6e6
    stored = load_checkpoint(path, "vae_gan")["config"]
    preset = json.loads((ROOT / "configs" / f"vae_gan_{name}.json").read_text())
    assert {key: stored[key] for key in preset} == preset


def test_what_ships_keeps_its_promise(here):
    """A thousand samples of each scheme: composite is nearer to real digits, as sharp, and nearer to its input."""
    assert run("--compare", "--n", 1000, "--device", "cpu") == 0
    found = numbers(here / "outputs" / "vae_gan" / "compare_n-1000")
    simple, composite = found["simple"], found["composite"]
    assert composite["frechet"] < 0.4 * simple["frechet"]
    assert composite["share_sure"] > simple["share_sure"] + 0.07  # 10,000 samples say 0.093
    assert 0.9 < composite["gradient_energy"] < 1.1 and simple["gradient_energy"] < 0.5
    assert composite["reconstruction_mse"] < simple["reconstruction_mse"]
