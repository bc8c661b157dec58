"""The classifier of digits or clothes: what it says of real ones, what it measures, and the file that it lies in."""

import copy
import json
import math

import vae_gan
from common import classifier, metrics
from common.checkpoints import SHIPPED, load_checkpoint, save_checkpoint
from common.classifier import Classifier, classify, load_classifier, train_classifier
from common.datasets import load
from common.runs import seeded
from conftest import run

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(mnist_folder, tmp_path_factory):
    """The folder of a classifier that three steps have made."""
    out = tmp_path_factory.mktemp("made") / "classifier"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "STEPS", 3)
        patch.setattr(classifier, "N_REAL", 30)
        words = ["--make-classifier", "--data-dir", mnist_folder, "--precision", "float32", "--out", out]
        assert run(*words, main=vae_gan.main) == 0
    return out


def digits(folder, train, n=30):
    """The first of the made-up digits: x in [0, 1] and labels."""
    x_u8, labels = load("mnist", folder, train)
    return x_u8[:n].float() / 255, labels[:n]


# ------------------------------------------------------------------------------------------------ the network


def test_the_features_are_those_of_three_layers_and_the_logits_a_linear_function_of_the_last():
    net = seeded(lambda: Classifier(8), 0)
    x = torch.rand(3, 1, 28, 28)
    assert [tuple(f.shape) for f in net.features(x)] == [(3, 8, 14, 14), (3, 16, 7, 7), (3, 16, 7, 7)]
    logits, last = net(x)
    torch.testing.assert_close(logits, last @ net.out.weight.T + net.out.bias)


def test_to_classify_in_parts_is_to_classify_at_once(monkeypatch):
    net = seeded(lambda: Classifier(8), 0)
    x = torch.rand(7, 1, 28, 28)
    whole = classify(net, x)
    monkeypatch.setattr(classifier, "PART", 3)
    for a, b in zip(whole, classify(net, x), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(whole[0].sum(1), torch.ones(7))


def test_it_learns_the_labels(mnist_folder):
    x_u8, labels = load("mnist", mnist_folder, train=True)
    net = train_classifier(x_u8, labels, 0, 8, 60, CPU, "float32")
    probabilities, _ = classify(net, x_u8.float() / 255)
    assert (probabilities.argmax(1) == labels).double().mean() > 0.6  # by heart; by chance 0.1
    assert not net.training and not any(p.requires_grad for p in net.parameters())


# ------------------------------------------------------------------------------------------------ the held-out one


def test_it_says_what_it_says_of_real_digits(made, mnist_folder):
    held_out = load_classifier(made / "classifier.pt")
    test, labels = digits(mnist_folder, train=False)
    train, _ = digits(mnist_folder, train=True)
    probabilities, features = classify(held_out.net, test)

    assert metrics.frechet(features, held_out.mean, held_out.cov) == pytest.approx(0, abs=1e-6)
    _, others = classify(held_out.net, train)
    floor = metrics.frechet(others, held_out.mean, held_out.cov)
    assert held_out.real["frechet_floor"] == pytest.approx(floor)
    assert held_out.real["gradient_energy"] == pytest.approx(metrics.gradient_energy(test))
    right = (probabilities.argmax(1) == labels).double().mean().item()
    assert held_out.real["accuracy"] == right and held_out.real["n_real"] == 30
    assert held_out.real == json.loads((made / "metrics.json").read_text())

    first, _ = load("mnist", mnist_folder, train=False)
    assert torch.equal(held_out.digits, first[:32]) and torch.equal(held_out.labels[:30], labels)


def test_what_it_measures_by_hand(made, mnist_folder):
    held_out = load_classifier(made / "classifier.pt")
    x, labels = digits(mnist_folder, train=True)
    probabilities, features = classify(held_out.net, x)
    numbers = held_out.measure(x, labels)
    assert numbers["frechet"] == metrics.frechet(features, held_out.mean, held_out.cov)
    assert numbers["share_sure"] == sum(p > 0.9 for p in probabilities.amax(1).tolist()) / 30
    assert numbers["share_correct"] == sum(map(int.__eq__, probabilities.argmax(1).tolist(), labels.tolist())) / 30
    energy = metrics.gradient_energy(x) / held_out.real["gradient_energy"]
    assert numbers["gradient_energy"] == pytest.approx(energy)


def test_of_a_single_digit_it_measures_what_one_has(made, mnist_folder):
    x, _ = digits(mnist_folder, train=True, n=1)
    numbers = load_classifier(made / "classifier.pt").measure(x)
    assert numbers.keys() == {"share_sure", "gradient_energy"}
    assert all(math.isfinite(value) for value in numbers.values())


def test_one_of_clothes_is_trained_on_clothes(mnist_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(classifier, "STEPS", 1)
    words = ["--make-classifier", "--data", "fashion", "--data-dir", mnist_folder, "--out", tmp_path / "made"]
    assert run(*words, main=vae_gan.main) == 0
    assert "test clothes" in capsys.readouterr().out
    clothes, _ = load("fashion", mnist_folder, train=False)
    held_out = load_classifier(tmp_path / "made" / "classifier.pt", of="fashion")
    assert torch.equal(held_out.digits, clothes[:32])


def test_it_is_held_out_of_every_training(made):
    """Another width, and another seed than any network that a training makes of the same seed."""
    config = load_checkpoint(made / "classifier.pt")["config"]
    assert config["width"] != classifier.PERCEPTUAL_WIDTH and config["seed"] == 1000


def test_it_lies_in_its_file_as_it_was_measured(made, mnist_folder):
    """In half precision: so the numbers are those of the file, not of the network that was rounded to it."""
    stored = load_checkpoint(made / "classifier.pt")["ema"]
    assert all(weight.dtype == torch.float16 for weight in stored.values())
    held_out = load_classifier(made / "classifier.pt")
    test, _ = digits(mnist_folder, train=False)
    assert held_out.measure(test)["share_sure"] == held_out.real["share_sure"]


@pytest.mark.parametrize("of, name, accuracy", [("mnist", "digit", 0.985), ("fashion", "fashion", 0.9)])
def test_those_that_ship_know_their_images(of, name, accuracy):
    held_out = load_classifier(of=of)
    assert held_out.real["accuracy"] > accuracy and held_out.real["n_real"] == 10_000
    probabilities, _ = classify(held_out.net, held_out.digits.float() / 255)
    assert (probabilities.argmax(1) == held_out.labels).double().mean() > 0.9
    assert (SHIPPED / f"{name}_classifier.pt").stat().st_size < 5e5


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize("hurt", ["real", "mean", "width", "digits", "weights", "labels"])
def test_a_damaged_one_is_called_that(made, tmp_path, hurt):
    found = copy.deepcopy(load_checkpoint(made / "classifier.pt"))
    if hurt == "real":
        del found["real"]["frechet_floor"]
    if hurt == "mean":
        found["mean"] = found["cov"]
    if hurt == "width":
        found["config"] = {}
    if hurt == "digits":
        found["digits"] = None
    if hurt == "labels":
        del found["labels"]
    if hurt == "weights":
        found["ema"]["out.weight"] = torch.zeros(3)
    save_checkpoint(tmp_path / "hurt.pt", found)
    with pytest.raises(ValueError, match="damaged|do not fit") as error:
        load_classifier(tmp_path / "hurt.pt")
    assert "hurt.pt" in str(error.value)


def test_another_checkpoint_is_no_classifier_and_none_is_none(tmp_path):
    with pytest.raises(ValueError, match="holds no classifier of digits: make one with vae_gan.py --make-classifier"):
        load_classifier(SHIPPED / "vae_gan_simple.pt")
    with pytest.raises(ValueError, match="digit_classifier.pt holds no classifier of clothes: .* --data fashion"):
        load_classifier(SHIPPED / "digit_classifier.pt", of="fashion")
    with pytest.raises(ValueError, match="there is no classifier .*nowhere.pt: make one"):
        load_classifier(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("words", [["--train"], ["--ckpt", "x.pt"], ["--n", 3], ["--scheme", "simple"], ["--compare"]])
def test_to_make_one_is_all_that_such_a_command_does(words, mistake):
    line = mistake(vae_gan.main, "--make-classifier", *words)
    assert f"{words[0]} has no effect: --make-classifier trains that classifier and nothing else" in line
