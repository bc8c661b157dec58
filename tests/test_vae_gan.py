"""Critic, perceptual distance and adaptive weight against hand calculations; who is updated by what; commands."""

import contextlib
import gzip
import json
import math
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import metrics
import training
import vae_gan

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
TINY = ["--train", "--train-steps", "4", "--batch-size", "6", "--n", "8", "--precision", "float32", "--device", "cpu",
        "--critic-start", "1"]


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", autouse=True)
def short_classifiers():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LOOK_STEPS", 3), ("JUDGE_STEPS", 3), ("EXAM", 8), ("RAMP", 2), ("N_JUDGED", 30)):
            patch.setattr(vae_gan, name, value)
        yield


@pytest.fixture(scope="module")
def folder(mnist_folder, tmp_path_factory):
    """A folder with data, a judge of them, and a tiny run of each scheme, made through the command line."""
    folder = tmp_path_factory.mktemp("vae_gan")
    shutil.copytree(mnist_folder / "MNIST", folder / "MNIST")
    vae_gan.main(["--make-judge", "--data-dir", str(folder), "--precision", "float32", "--out", str(folder / "judge")])
    for scheme in vae_gan.SCHEMES:
        vae_gan.main([*TINY, *of(folder), "--scheme", scheme, "--out", str(folder / scheme)])
    return folder


def of(folder):
    return ["--data-dir", str(folder), "--judge", str(folder / "judge" / "judge.pt")]


def config_of(*words):
    return vars(training.parse(vae_gan.make_parser(), ["--precision", "float32", *words])[0])


def trained(folder, out, *words):
    """train() with tiny settings; the checkpoint that it wrote."""
    out.mkdir(parents=True)
    config = config_of(*[*TINY, *of(folder), *map(str, words)])
    vae_gan.train(config, out, CPU)
    return training.load_checkpoint(out, "vae_gan")


# ------------------------------------------------------------------------------------------------ the critic's patches


def test_critic_has_a_logit_for_every_overlapping_patch():
    critic = vae_gan.seeded(vae_gan.Critic, 0)
    x = torch.rand(2, 1, 28, 28, requires_grad=True)
    logits = critic(x)
    assert logits.shape == (2, 1, 7, 7)
    for i, j in ((3, 3), (2, 4), (0, 5)):
        (g,) = torch.autograd.grad(logits[1, 0, i, j], x, retain_graph=True)
        rows, columns = (torch.where(g[1, 0].abs().sum(axis) > 0)[0].tolist() for axis in (1, 0))
        seen = [list(range(max(0, 4 * k - 12), min(28, 4 * k + 16))) for k in (i, j)]  # 28 pixels, cut at the border
        assert [rows, columns] == seen
        assert g[0].abs().sum() == 0  # an image says nothing about another


def test_critic_layers_have_spectral_norm_one():
    critic = vae_gan.seeded(vae_gan.Critic, 0)
    for _ in range(30):  # power iterations
        critic(torch.rand(1, 1, 28, 28))
    for layer in (critic.conv1, critic.conv2, critic.conv3, critic.out):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)


# --------------------------------------------------------------------------------------------- the perceptual distance


def blurred(x, times):
    for _ in range(times):
        x = F.avg_pool2d(x, 3, 1, 1)
    return x


def test_perceptual_distance_is_zero_on_equals_symmetric_and_grows_with_blur():
    net = vae_gan.seeded(lambda: vae_gan.Classifier(8), 0)
    x = (blurred(normals(6, 1, 28, 28), 6) > 0.05).float()  # blobs with sharp edges
    assert vae_gan.perceptual(net, x, x) == 0
    d = [vae_gan.perceptual(net, x, blurred(x, k)).item() for k in range(5)]
    assert all(a < b for a, b in zip(d, d[1:], strict=False)) and d[1] > 1e-3
    y = blurred(x, 2)
    assert vae_gan.perceptual(net, y, x).item() == pytest.approx(d[2], rel=1e-5)


def test_perceptual_distance_by_hand():
    """Two places, two channels: unit vectors, squared differences summed over channels, mean over places."""

    class Given:
        def features(self, maps):
            return maps

    a = torch.tensor([[3.0, 0.0], [4.0, 2.0]]).view(1, 2, 1, 2)  # place 0: (3, 4), place 1: (0, 2)
    b = torch.tensor([[5.0, -7.0], [0.0, 0.0]]).view(1, 2, 1, 2)  # place 0: (5, 0), place 1: (-7, 0)
    by_hand = ((0.6 - 1) ** 2 + 0.8**2 + (0 + 1) ** 2 + 1**2) / 2
    assert vae_gan.perceptual(Given(), [a], [b]).item() == pytest.approx(by_hand, rel=1e-6)
    assert vae_gan.perceptual(Given(), [a, a], [b, 5 * b]).item() == pytest.approx(2 * by_hand, rel=1e-6)


def test_perceptual_gradient_reaches_the_decoder_and_not_the_classifier():
    net = vae_gan.build(config_of())
    look = vae_gan.seeded(lambda: vae_gan.Classifier(8), 0).requires_grad_(False)
    vae_gan.perceptual(look, torch.rand(2, 1, 28, 28), net.decode(normals(2, net.encode.z_dim))).backward()
    assert all(p.grad.abs().sum() > 0 for p in net.decode.parameters())
    assert all(p.grad is None for p in look.parameters())


# ----------------------------------------------------------------------------------------------- the adversary's losses


def test_losses_of_the_game_by_hand():
    real, fake = torch.tensor([[2.0], [-1.0]]), torch.tensor([[0.5], [3.0]])
    d = np.mean([math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))])
    d += np.mean([math.log(1 + math.exp(0.5)), math.log(1 + math.exp(3))])
    assert vae_gan.critic_loss(real, fake).item() == pytest.approx(d, rel=1e-6)
    g = np.mean([math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(-3))])
    assert vae_gan.adversarial_loss(fake).item() == pytest.approx(g, rel=1e-6)


def test_adaptive_weight_by_hand_and_its_cap():
    g_rec, g_adv = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    assert vae_gan.adaptive_weight(g_rec, g_adv, 100.0).item() == 2.5
    assert vae_gan.adaptive_weight(g_rec, g_adv, 1.5).item() == 1.5
    assert vae_gan.adaptive_weight(g_rec, 0 * g_adv, 7.0).item() == 7.0
    assert vae_gan.adaptive_weight(0 * g_rec, 0 * g_adv, 7.0).item() == 0.0


def test_the_schemes_share_initial_weights_and_batches(folder):
    nets = [vae_gan.build(config_of("--scheme", scheme, "--seed", seed)).state_dict()
            for scheme, seed in (("simple", "1"), ("composite", "1"), ("composite", "2"))]
    assert all(torch.equal(nets[0][key], nets[1][key]) for key in nets[0])
    assert not torch.equal(nets[0]["encode.conv1.weight"], nets[2]["encode.conv1.weight"])
    x_u8 = torch.arange(40).view(-1, 1, 1, 1)
    a, b = (vae_gan.training_batch(config_of("--scheme", scheme), 3, x_u8, 6) for scheme in vae_gan.SCHEMES)
    assert torch.equal(a, b) and not torch.equal(a, vae_gan.training_batch(config_of(), 4, x_u8, 6))


def same(a, b, prefix=""):
    keys = [key for key in a if key.startswith(prefix)]
    assert keys
    return all(torch.equal(a[key], b[key]) for key in keys)


def test_the_adversary_updates_the_decoder_and_not_the_encoder(folder, tmp_path):
    """One step from the same weights, with and without it."""
    words = ["--train-steps", 1, "--critic-start", 0]
    on, off = (trained(folder, tmp_path / str(a), *words, "--adversarial", a)["model"] for a in (0.5, 0))
    assert same(on, off, "encode.") and not same(on, off, "decode.")


def test_the_critic_is_frozen_until_it_starts(folder, tmp_path):
    critic = vae_gan.seeded(vae_gan.Critic, 0 + 1).state_dict()
    before = trained(folder, tmp_path / "a", "--critic-start", 4)
    assert same(critic, before["critic"])
    assert "d_real" not in json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[-1])
    after = trained(folder, tmp_path / "b", "--critic-start", 3)
    assert not same(critic, after["critic"]) and same(before["model"], after["model"], "encode.")
    line = json.loads((tmp_path / "b" / "log.jsonl").read_text().splitlines()[-1])
    assert 0 < line["d_real"] < 1 and 0 < line["d_fake"] < 1 and line["adversarial_weight"] > 0


def test_a_batch_is_rows_of_the_digits_between_0_and_1():
    x_u8 = torch.arange(40, dtype=torch.uint8).mul(6).view(40, 1, 1, 1).expand(40, 1, 28, 28)
    x = vae_gan.training_batch(dict(seed=3), 5, x_u8, 16)
    rows = torch.randint(40, (16,), generator=training.generator(3, 5, 1))
    assert torch.equal(x, x_u8[rows].float() / 255)


def test_without_both_terms_composite_is_simple(folder, tmp_path):
    plain = trained(folder, tmp_path / "a", "--perceptual", 0, "--adversarial", 0)["model"]
    simple = training.load_checkpoint(folder / "simple", "vae_gan")["model"]
    assert same(plain, simple)
    other = trained(folder, tmp_path / "b", "--perceptual", 10, "--adversarial", 0)["model"]
    assert not same(plain, other, "encode.") and not same(plain, other, "decode.")


def test_the_adversary_sees_reconstructions_and_samples_of_the_prior(folder, tmp_path, monkeypatch):
    seen, forward = [], vae_gan.Critic.forward
    monkeypatch.setattr(vae_gan.Critic, "forward", lambda self, x: (seen.append(x.detach()), forward(self, x))[1])
    monkeypatch.setattr(vae_gan, "update_ema", lambda *args: None)
    trained(folder, tmp_path / "a", "--train-steps", 1, "--critic-start", 0)
    fake, real = seen
    net, config = vae_gan.build(config_of()), config_of()
    x = vae_gan.training_batch(config, 0, vae_gan.data.load_mnist(folder, train=True)[0], 6)
    g = training.generator(0, 0, 0)
    eps, z_prior = (torch.randn(6, config["z_dim"], generator=g) for _ in range(2))
    with torch.no_grad():
        x_hat = net.decode(vae_gan.reparameterise(*net.encode(x), eps))
        torch.testing.assert_close(fake, torch.cat([x_hat[:3], net.decode(z_prior)]))
    assert torch.equal(real, x)


# ------------------------------------------------------------------------------------------------------ judge, samples


def test_sample_i_depends_on_seed_and_i():
    net = vae_gan.build(config_of()).eval()
    few, many = (vae_gan.draw(net, n, 3, CPU, "float32") for n in (2, 5))
    torch.testing.assert_close(few, many[:2], atol=1e-5, rtol=0)
    assert not torch.allclose(few, vae_gan.draw(net, 2, 4, CPU, "float32"), atol=1e-3)
    assert many.shape == (5, 1, 28, 28) and many.min() >= 0 and many.max() <= 1


def test_the_judge_says_what_it_says_of_real_digits(folder):
    net, found = vae_gan.load_judge(folder / "judge" / "judge.pt")
    (test, labels), (train, _) = (vae_gan.data.load_mnist(folder, train=part) for part in (False, True))
    sure, features = vae_gan.judge_of(net, test[:30].float() / 255)
    assert metrics.frechet(features, found["mean"], found["cov"]) == pytest.approx(0, abs=1e-6)
    others = vae_gan.judge_of(net, train[:30].float() / 255)[1]
    assert metrics.frechet(others, found["mean"], found["cov"]) == pytest.approx(found["said"]["frechet_floor"])
    assert found["said"]["gradient_energy"] == pytest.approx(metrics.gradient_energy(test[:30].float() / 255))
    assert torch.equal(found["digits"], test[:32]) and torch.equal(found["labels"], labels[:32])
    look = vae_gan.train_classifier(train, labels, 1, vae_gan.LOOK_WIDTH, 1, CPU, "float32")
    assert look.conv1.weight.shape != net.conv1.weight.shape  # another width, and another seed: held out


# --------------------------------------------------------------------------------------------------- the command lines


def test_a_run_writes_what_it_says(folder):
    names = {p.name for p in (folder / "composite").iterdir()}
    assert names == {"config.json", "metrics.json", "last.pt", "log.jsonl", "loss.png", "samples.png",
                     "samples_composite.npz"}
    result = json.loads((folder / "composite" / "metrics.json").read_text())["composite"]
    assert result["n"] == 8 and result["n_reconstructed"] == 40 and math.isfinite(result["frechet"])
    x = np.load(folder / "composite" / "samples_composite.npz")["x"]
    assert x.shape == (8, 1, 28, 28) and x.dtype == np.float32
    assert "critic" in training.load_checkpoint(folder / "composite") and "critic" not in training.load_checkpoint(
        folder / "simple")


def test_compare_is_one_table_and_one_picture(folder, tmp_path, capsys):
    words = ["--compare", "--ckpt", folder / "simple", "--against", folder / "composite", "--n", 9, "--seed", 2]
    vae_gan.main([*map(str, words), *of(folder), "--out", str(tmp_path / "c")])
    out = capsys.readouterr().out
    assert "Frechet" in out and "simple" in out and "composite" in out and "ratio" in out
    result = json.loads((tmp_path / "c" / "metrics.json").read_text())
    assert result["simple"]["n"] == 9 and (tmp_path / "c" / "compare.png").stat().st_size > 5000
    nowhere = ["--data-dir", str(tmp_path / "nowhere"), "--judge", str(folder / "judge" / "judge.pt")]
    vae_gan.main([*map(str, words), *nowhere, "--out", str(tmp_path / "d")])  # no data: the 32 digits that ship
    assert json.loads((tmp_path / "d" / "metrics.json").read_text())["simple"]["n_reconstructed"] == 32


@pytest.mark.parametrize("scheme", vae_gan.SCHEMES)
def test_training_resumes_bit_for_bit(scheme, folder, tmp_path):
    def stop_after(step):
        @contextlib.contextmanager
        def stop():
            yield asked

        asked, check = [], training.check_finite

        def checked(value, done, out):
            check(value, done, out)
            asked.extend([1] * (done == step))

        return stop, checked

    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop, checked = stop_after(2)
        patch.setattr(training, "finish_the_step", stop)
        patch.setattr(training, "check_finite", checked)
        with pytest.raises(SystemExit) as status:
            vae_gan.main([*TINY, *of(folder), "--scheme", scheme, "--out", str(out)])
        assert status.value.code == 130
    assert training.load_checkpoint(out)["step"] == 2
    vae_gan.main(["--resume", "--out", str(out), "--data-dir", str(folder)])
    whole, resumed = training.load_checkpoint(folder / scheme), training.load_checkpoint(out)
    parts = ("model", "ema", "critic") if scheme == "composite" else ("model", "ema")
    assert all(same(whole[part], resumed[part]) for part in parts)
    for name in ("optimizer", "critic_optimizer")[: 1 + (scheme == "composite")]:
        for a, b in zip(whole[name]["state"].values(), resumed[name]["state"].values(), strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


def test_presets_are_taken_and_say_what_the_defaults_are(tmp_path):
    for scheme in vae_gan.SCHEMES:
        args, _ = training.parse(vae_gan.make_parser(), ["--config", str(ROOT / "configs" / f"mnist_{scheme}.json")])
        assert vars(args) | {"config": None} == config_of("--scheme", scheme) | {"precision": "auto"}


def test_bad_input_is_one_line(folder, tmp_path, mistake, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vae_gan.data, "MNIST_MIRRORS", ("http://127.0.0.1:9/",))
    simple, composite = folder / "simple", folder / "composite"
    line = mistake(vae_gan.main, *TINY, "--data-dir", tmp_path / "none")
    assert all(word in line for word in ("train-images-idx3-ubyte.gz", str(tmp_path / "none"), "http://127.0.0.1:9/"))
    assert "contradicts the checkpoint" in mistake(vae_gan.main, "--scheme", "simple", "--ckpt", composite, *of(folder))
    assert "contradicts" in mistake(vae_gan.main, "--z-dim", 3, "--ckpt", composite, *of(folder))
    assert "is of the scheme composite" in mistake(vae_gan.main, "--compare", "--ckpt", composite, "--against", simple)
    assert "--against" in mistake(vae_gan.main, "--against", simple, "--ckpt", composite)
    assert "--compare" in mistake(vae_gan.main, "--compare", "--train")
    assert "--make-judge" in mistake(vae_gan.main, "--make-judge", "--train")
    assert "holds no judge" in mistake(vae_gan.main, "--ckpt", composite, "--judge", simple, "--out", tmp_path / "o")
    found = training.load_checkpoint(folder / "judge" / "judge.pt")
    for hurt in {"said": {"accuracy": 1.0}}, {"mean": found["cov"]}, {"config": {"scheme": "judge"}}, {"digits": None}:
        training.save_checkpoint(tmp_path / "j.pt", found | hurt)
        judge, out = tmp_path / "j.pt", tmp_path / "o"
        assert "judge" in mistake(vae_gan.main, "--ckpt", composite, "--judge", judge, "--out", out)
    assert "--z-dim" in mistake(vae_gan.main, "--z-dim", 0) and "--n" in mistake(vae_gan.main, "--n", 1)
    assert "--scheme" in mistake(vae_gan.main, "--scheme", "other")
    (tmp_path / "a.json").write_text("{not json")
    (tmp_path / "b.json").write_text('{"z_dim": 8, "colour": 1}')
    assert "a.json" in mistake(vae_gan.main, "--config", "a.json")
    assert "'colour'" in mistake(vae_gan.main, "--config", "b.json")
    shutil.copytree(folder / "MNIST", tmp_path / "bad" / "MNIST")
    labels = tmp_path / "bad" / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    whole = gzip.decompress(labels.read_bytes())
    for content, says in ((struct.pack(">2I", 2051, 40) + whole[8:], "magic number is 2051"),
                          (struct.pack(">2I", 2049, 39) + whole[9:], "40 images, but 39 labels"),
                          (whole[:-1], "promises")):
        labels.write_bytes(gzip.compress(content))
        assert says in mistake(vae_gan.main, *TINY, "--data-dir", tmp_path / "bad", "--out", tmp_path / "out")


# --------------------------------------------------------------------------------------------------------- what ships


def test_what_ships_keeps_its_promise(tmp_path):
    """A thousand samples of each scheme: composite is nearer to real digits, as sharp, and nearer to its input."""
    words = ["--compare", "--n", "1000", "--data-dir", str(tmp_path), "--out", str(tmp_path / "c"), "--device", "cpu"]
    vae_gan.main(words)
    result = json.loads((tmp_path / "c" / "metrics.json").read_text())
    simple, composite = (result[scheme] for scheme in vae_gan.SCHEMES)
    assert composite["frechet"] < 0.4 * simple["frechet"]
    assert composite["share_sure"] > simple["share_sure"] + 0.1  # 10,000 samples say 0.17
    assert 0.9 < composite["gradient_energy"] < 1.1 and simple["gradient_energy"] < 0.5
    assert composite["reconstruction_mse"] < simple["reconstruction_mse"]
    for scheme in vae_gan.SCHEMES:
        path = training.SHIPPED / f"vae_gan_{scheme}.pt"
        assert path.stat().st_size < 6e6
        stored = training.load_checkpoint(path, "vae_gan")["config"]
        args, _ = training.parse(vae_gan.make_parser(), ["--config", str(ROOT / "configs" / f"mnist_{scheme}.json")])
        differ = {key for key in vars(args) if key in stored and stored[key] != getattr(args, key)}
        assert differ <= {"config", "train", "precision"}  # made by the preset's command
