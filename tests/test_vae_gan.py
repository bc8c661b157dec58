"""The VAE of digits: its losses against hand calculations, who is updated by what, and its commands."""

import json
import math
import os
import signal
from types import SimpleNamespace

import vae_gan
from common import classifier, digit_job, loop
from common.checkpoints import load_checkpoint
from common.classifier import Classifier
from common.datasets import load
from common.runs import Run, seeded
from common.seeds import generator
from conftest import run as run_main
from conftest import same
from test_processes import close, together
from vae import reparameterise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

CPU = torch.device("cpu")
TINY = ["--train", "--train-steps", 4, "--batch-size", 8, "--n", 9, "--precision", "float32", "--device", "cpu"]
SCHEMES = {"simple": ["--scheme", "simple"], "composite": ["--critic-start", 1]}


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(*words):
    return run_main(*words, main=vae_gan.main)


@pytest.fixture(scope="module", autouse=True)
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "PERCEPTUAL_STEPS", 3)
        patch.setattr(vae_gan, "N_TEST", 8)
        patch.setattr(vae_gan, "RAMP", 2)
        patch.setattr(loop.pictures, "loss_curve", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def folder(mnist_folder, tmp_path_factory):
    """A folder with a tiny run of each scheme, and a conditional one."""
    folder = tmp_path_factory.mktemp("vae_gan")
    for scheme, words in SCHEMES.items():
        assert run(*TINY, "--data-dir", mnist_folder, *words, "--out", folder / scheme) == 0
    cond = ["--scheme", "simple", "--cond", "--label", 7]
    assert run(*TINY, "--data-dir", mnist_folder, *cond, "--out", folder / "cond") == 0
    return folder


@pytest.fixture
def trained(mnist_folder, tmp_path):
    """trained(**settings): the last checkpoint of a training of four steps."""

    def checkpoint_of(**settings):
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        usual = dict(train=True, train_steps=4, batch_size=8, precision="float32", data_dir=str(mnist_folder))
        config = vae_gan.Config(**(usual | settings))
        net = seeded(lambda: vae_gan.build(config), config.seed)
        vae_gan.train(net, Run(config, config, None, None, out, CPU, out))
        return load_checkpoint(out)

    return checkpoint_of


def part(weights, prefix):
    chosen = {key: value for key, value in weights.items() if key.startswith(prefix)}
    assert chosen
    return chosen


def critic():
    return seeded(vae_gan.Critic, 0)


# ------------------------------------------------------------ the critic


def test_the_critic_has_a_logit_for_every_overlapping_patch():
    x = torch.rand(2, 1, 28, 28, requires_grad=True)
    logits = critic()(x)
    assert logits.shape == (2, 1, 7, 7)
    for i, j in ((3, 3), (2, 4), (0, 5)):
        (g,) = torch.autograd.grad(logits[1, 0, i, j], x, retain_graph=True)
        rows, columns = (torch.where(g[1, 0].abs().sum(axis) > 0)[0].tolist() for axis in (1, 0))
        patch = [list(range(max(0, 4 * k - 12), min(28, 4 * k + 16))) for k in (i, j)]  # 28 pixels, cut at the border
        assert [rows, columns] == patch
        assert g[0].abs().sum() == 0  # an image says nothing about another


def test_the_layers_of_the_critic_have_spectral_norm_one():
    net = critic()
    for _ in range(30):  # power iterations
        net(torch.rand(1, 1, 28, 28))
    for layer in (net.conv1, net.conv2, net.conv3, net.out):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


# ------------------------------------------------------------ the perceptual distance


def blurred(x, times):
    for _ in range(times):
        x = F.avg_pool2d(x, 3, 1, 1)
    return x


def test_the_perceptual_distance_is_zero_on_equals_symmetric_and_grows_with_blur():
    net = seeded(lambda: Classifier(8), 0)
    x = (blurred(normals(6, 1, 28, 28), 6) > 0.05).float()  # blobs with sharp edges
    assert vae_gan.perceptual(net, x, x) == 0
    d = [vae_gan.perceptual(net, x, blurred(x, k)).item() for k in range(5)]
    assert all(a < b for a, b in zip(d, d[1:], strict=False)) and d[1] > 1e-3
    y = blurred(x, 2)
    assert vae_gan.perceptual(net, y, x).item() == pytest.approx(d[2], rel=1e-5)


def test_the_perceptual_distance_by_hand():
    """Two places, two channels: unit vectors, squared differences summed over channels, mean over places."""

    class Given:
        def features(self, maps):
            return maps

    a = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2)  # place 0: (3, 4), place 1: (0, 2)
    b = torch.tensor([[5.0, -7.0], [0.0, 0.0]]).view(1, 2, 1, 2)  # place 0: (5, 0), place 1: (-7, 0)
    by_hand = ((0.6 - 1) ** 2 + 0.8**2 + (0 + 1) ** 2 + 1**2) / 2
    assert vae_gan.perceptual(Given(), [a], [b]).item() == pytest.approx(by_hand, rel=1e-6)
    assert vae_gan.perceptual(Given(), [a, a], [b, 5 * b]).item() == pytest.approx(2 * by_hand, rel=1e-6)


def test_the_perceptual_gradient_reaches_the_decoder_and_not_the_classifier():
    net = vae_gan.VAE()
    classifier = seeded(lambda: Classifier(8), 0).requires_grad_(False)
    x_hat = net.decode(normals(2, 12), torch.tensor([0, 1]))
    vae_gan.perceptual(classifier, torch.rand(2, 1, 28, 28), x_hat).backward()
    assert all(p.grad.abs().sum() > 0 for p in net.decode.parameters())
    assert all(p.grad is None for p in classifier.parameters())


# ------------------------------------------------------------ the adversary's losses


def test_the_losses_of_the_game_by_hand():
    real = torch.tensor([[2.0], [-1.0]])
    fake = torch.tensor([[0.5], [3.0]])
    d = np.mean([math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))])
    d += np.mean([math.log(1 + math.exp(0.5)), math.log(1 + math.exp(3))])
    assert vae_gan.critic_loss(real, fake).item() == pytest.approx(d, rel=1e-6)
    g = np.mean([math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(-3))])
    assert vae_gan.adversarial_loss(fake).item() == pytest.approx(g, rel=1e-6)


def test_the_adaptive_weight_by_hand_and_its_cap():
    g_rec = torch.tensor([[3.0, 4.0]])
    g_adv = torch.tensor([[0.0, 2.0]])
    assert vae_gan.adaptive_weight(g_rec, g_adv, 100.0).item() == 2.5
    assert vae_gan.adaptive_weight(g_rec, g_adv, 1.5).item() == 1.5
    assert vae_gan.adaptive_weight(g_rec, 0 * g_adv, 7.0).item() == 7.0
    assert vae_gan.adaptive_weight(0 * g_rec, 0 * g_adv, 7.0).item() == 0.0


def test_the_pull_adds_the_weighted_gradient_of_the_adversary_to_the_decoder_alone():
    net = vae_gan.VAE()
    x = torch.rand(4, 1, 28, 28)
    digit = torch.arange(4)
    x_hat = net.decode(net.encode(x, digit)[0], digit)
    (x - x_hat).square().sum().backward(retain_graph=True)
    before = {name: p.grad.clone() for name, p in net.named_parameters()}

    fake = critic()(x_hat)
    names, parameters = zip(*net.decode.named_parameters(), strict=True)
    gradients = torch.autograd.grad(vae_gan.adversarial_loss(fake), parameters, retain_graph=True)
    g_adv = dict(zip(names, gradients, strict=True))
    w = vae_gan.pull(net.decode, fake, strength=0.3, cap=1e4)
    ratio = before["decode.out.weight"].norm() / g_adv["out.weight"].norm()
    torch.testing.assert_close(w, ratio)
    for name, p in net.named_parameters():
        half, _, rest = name.partition(".")
        added = 0.3 * w * g_adv[rest] if half == "decode" else 0
        torch.testing.assert_close(p.grad, before[name] + added)


# ------------------------------------------------------------ who is updated by what


def test_the_schemes_share_initial_weights():
    configs = [vae_gan.Config(scheme=scheme) for scheme in SCHEMES]
    a, b = (seeded(lambda config=config: vae_gan.build(config), 1).state_dict() for config in configs)
    assert same(a, b)


def test_the_adversary_updates_the_decoder_and_not_the_encoder(trained):
    """One step from the same weights, with and without it."""
    on, off = (trained(train_steps=1, critic_start=0, adversarial=a)["model"] for a in (0.5, 0.0))
    assert same(part(on, "encode."), part(off, "encode."))
    assert not same(part(on, "decode."), part(off, "decode."))


def test_the_critic_is_frozen_until_it_starts(trained):
    fresh = seeded(vae_gan.Critic, 0 + 1).state_dict()
    before = trained(critic_start=4)
    after = trained(critic_start=3)
    assert same(fresh, before["critic"]) and not same(fresh, after["critic"])
    assert same(part(before["model"], "encode."), part(after["model"], "encode."))


def test_without_both_terms_composite_is_simple(trained):
    plain = trained(perceptual=0.0, adversarial=0.0)["model"]
    assert same(plain, trained(scheme="simple")["model"])
    other = trained(perceptual=10.0, adversarial=0.0)["model"]
    assert not same(part(plain, "encode."), part(other, "encode."))
    assert not same(part(plain, "decode."), part(other, "decode."))


def test_the_critic_sees_reconstructions_samples_of_the_prior_and_a_batch_of_real_digits(
    trained, mnist_folder, monkeypatch
):
    seen = []
    forward = vae_gan.Critic.forward
    monkeypatch.setattr(vae_gan.Critic, "forward", lambda self, x: (seen.append(x.detach()), forward(self, x))[1])
    trained(train_steps=1, critic_start=0)
    fake, real = seen

    x_u8, labels = load("mnist", mnist_folder, train=True)
    rows = torch.randint(40, (8,), generator=generator(0, 0, 1))
    x = x_u8[rows].float() / 255
    digit = labels[rows]
    g = generator(0, 0, 0)
    eps, z_prior = (torch.randn(8, 12, generator=g) for _ in range(2))
    net = seeded(vae_gan.VAE, 0)
    with torch.no_grad():
        x_hat = net.decode(reparameterise(*net.encode(x, digit), eps), digit)
        torch.testing.assert_close(fake, torch.cat([x_hat[:4], net.decode(z_prior, digit)]))
    assert torch.equal(real, x)


# ------------------------------------------------------------ stopped, shared


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resumed_equals_never_stopped_bit_for_bit(scheme, folder, mnist_folder, tmp_path, monkeypatch):
    apply = loop.Trainer.apply

    def apply_and_stop(trainer, *args, **terms):
        apply(trainer, *args, **terms)
        if trainer.done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Trainer, "apply", apply_and_stop)
    words = [*TINY, "--data-dir", mnist_folder, *SCHEMES[scheme]]
    assert run(*words, "--out", tmp_path / "run") == 130
    assert load_checkpoint(tmp_path / "run")["step"] == 2
    assert run("--resume", "--out", tmp_path / "run") == 0

    whole, resumed = load_checkpoint(folder / scheme), load_checkpoint(tmp_path / "run")
    parts = {"model", "ema", "optimizer", "critic", "critic_optimizer"} & whole.keys()
    assert len(parts) == {"simple": 3, "composite": 5}[scheme]
    for name in parts - {"optimizer", "critic_optimizer"}:
        assert same(whole[name], resumed[name])
    for name in parts & {"optimizer", "critic_optimizer"}:
        assert same(whole[name]["state"], resumed[name]["state"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_two_processes_take_the_step_of_one_and_draw_its_samples(folder, mnist_folder, tmp_path):
    words = [*TINY, "--data-dir", mnist_folder, *SCHEMES["composite"], "--out", tmp_path / "two"]
    said, statuses = together(lambda: run(*words), tmp_path)
    assert statuses == [0, 0], said
    assert said[1] == ""
    one, two = load_checkpoint(folder / "composite"), load_checkpoint(tmp_path / "two")
    assert all(close(one[name], two[name]) for name in ("model", "ema", "critic"))
    a, b = (np.load(out / "samples_composite.npz")["x"] for out in (folder / "composite", tmp_path / "two"))
    assert np.abs(a - b).max() < 1e-5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_free_bits_are_refused_where_a_process_sees_half_a_batch(mnist_folder, tmp_path):
    words = [*TINY, "--data-dir", mnist_folder, "--scheme", "simple", "--free-bits", 1, "--out", tmp_path / "two"]
    said, statuses = together(lambda: run(*words), tmp_path)
    assert statuses == [2, 2] and "--free-bits" in said[0] and "one process" in said[0]


# ------------------------------------------------------------ samples


def test_sample_i_depends_on_seed_and_i():
    net = seeded(vae_gan.VAE, 0).eval()

    def draw(n, seed):
        config = vae_gan.Config(seed=seed, precision="float32")
        return vae_gan.draw(net, torch.zeros(n, dtype=torch.long), Run(config, config, None, None, None, CPU))

    many = draw(5, 3)
    torch.testing.assert_close(draw(2, 3), many[:2], atol=1e-5, rtol=0)
    assert not torch.allclose(draw(2, 4), many[:2], atol=1e-3)
    assert many.shape == (5, 1, 28, 28) and many.min() >= 0 and many.max() <= 1


def test_a_conditional_network_is_given_the_digit_and_another_one_does_not_look_at_it():
    z = normals(1, 12).expand(10, 12)
    cond, uncond = (seeded(lambda known=known: vae_gan.VAE(12, known), 0).decode(z, torch.arange(10))
                    for known in (True, False))
    assert (cond[1:] - cond[:1]).abs().amax((1, 2, 3)).min() > 1e-4
    torch.testing.assert_close(uncond, uncond[:1].expand_as(uncond))


def test_a_run_writes_what_it_says(folder):
    names = {path.name for path in (folder / "composite").iterdir()}
    results = {"config.json", "metrics.json", "samples.png", "samples_composite.npz", "map.png"}
    assert names == results | {"last.pt", "log.jsonl"}
    numbers = json.loads((folder / "composite" / "metrics.json").read_text())["composite"]
    assert numbers["n"] == 9 and numbers["n_reconstructed"] == 40 and math.isfinite(numbers["frechet"])
    with np.load(folder / "composite" / "samples_composite.npz") as file:
        assert set(file) == {"x"} and file["x"].shape == (9, 1, 28, 28) and file["x"].dtype == np.float32
    line = json.loads((folder / "composite" / "log.jsonl").read_text().splitlines()[-1])
    assert 0 < line["d_real"] < 1 and 0 < line["d_fake"] < 1 and line["adversarial_weight"] > 0
    assert "critic" in load_checkpoint(folder / "composite") and "critic" not in load_checkpoint(folder / "simple")


def test_the_files_of_a_conditional_network_hold_the_digits(folder, tmp_path):
    with np.load(folder / "cond" / "samples_simple.npz") as file:
        assert file["digit"].tolist() == [7] * 9
    assert run("--ckpt", folder / "cond", "--n", 12, "--out", tmp_path / "out") == 0
    with np.load(tmp_path / "out" / "samples_simple.npz") as file:
        assert file["digit"].tolist() == [*range(10), 0, 1]
    assert "share_correct" in json.loads((tmp_path / "out" / "metrics.json").read_text())["simple"]


def test_numbers_of_a_network_are_beside_those_of_the_digits_it_was_given():
    held_out = SimpleNamespace(measure=lambda x, digit: {"n_measured": len(x)}, real={})
    test = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    kl = torch.tensor([[1.0, 0.0, 0.2]]).repeat(5, 1) * torch.arange(5)[:, None]
    made = digit_job.Drawn(test, None, test / 2, kl, 1.5, None)
    found = digit_job.measured(made, test, held_out)
    assert found["kl_nats_of_each_latent"] == pytest.approx([2, 0, 0.4]) and found["kl_nats"] == pytest.approx(2.4)
    assert found["reconstruction_gradient_energy"] == pytest.approx(0.25)  # of squares
    assert found["reconstruction_mse"] == pytest.approx(test.square().mean().item() / 4)
    assert (found["n"], found["n_reconstructed"], found["n_measured"]) == (5, 5, 5)


def test_the_columns_of_the_table_stand_below_their_heads():
    """Also where a number has no ratio, or nothing real to stand beside."""
    real = {"accuracy": 0.99, "n_real": 100, "share_sure": 0.98, "frechet_floor": 4.9}
    scheme = {"n": 64, "real": real, "n_reconstructed": 32, "frechet": 12.5, "share_sure": 0.5, "kl_nats": 0.0}
    table = digit_job.describe({"simple": scheme, "composite": scheme}, "digits").splitlines()
    heads, frechet, sure, kl = table[:4]
    assert heads.split() == ["simple", "composite", "real", "ratio"]
    assert len(heads) == len(frechet) == len(sure) == 32 + 4 * 11 and len(kl) == 32 + 3 * 11
    assert frechet.split()[-3:] == ["12.5", "12.5", "1"] and sure.split()[-2:] == ["0.98", "1"]
