"""The loss against closed forms, the evidence bound against exact evidence, priors against labels, commands."""

import contextlib
import json
import math
import statistics

import numpy as np
import pytest
import torch

import data
import training
import vae

NORMAL = torch.distributions.Normal
PRIOR_GRID = vae.prior_grid
TINY = ["--train", "--train-steps", "4", "--batch-size", "4", "--n", "4", "--precision", "float32", "--device", "cpu"]


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditions(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    cont = torch.zeros(n, 4)
    cont[:, 1] = torch.rand(n, generator=g) * data.THETA_MAX
    return data.Condition(torch.randint(4, (n,), generator=g), cont, torch.ones(n, dtype=torch.bool))


def config_of(*words):
    return vars(training.parse(vae.make_parser(), ["--precision", "float32", *words])[0])


@pytest.fixture(scope="module", autouse=True)
def few_held_out_crystals():
    with pytest.MonkeyPatch.context() as patch:
        for name, n in (("EXAM", 4), ("HELD_OUT", 16), ("PROBED", 64)):
            patch.setattr(vae, name, n)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tiny training through the real command line: its folder."""
    out = tmp_path_factory.mktemp("vae") / "run"
    vae.main([*TINY, "--uncond", "--out", str(out)])
    return out


# ------------------------------------------------------------------------------------------------------------- the loss


def test_kl_is_the_closed_form_and_the_monte_carlo_mean():
    mu, log_var = torch.tensor([[0.7, -1.2, 0.0]]).double(), torch.tensor([[-1.0, 0.4, 0.0]]).double()
    exact = torch.distributions.kl_divergence(NORMAL(mu, (log_var / 2).exp()), NORMAL(0.0, 1.0))
    torch.testing.assert_close(vae.kl_nats(mu, log_var), exact)
    z = vae.reparameterise(mu, log_var, normals(200_000, 3).double())
    estimate = NORMAL(mu, (log_var / 2).exp()).log_prob(z) - NORMAL(0.0, 1.0).log_prob(z)
    error = estimate.std(0) / math.sqrt(len(z))
    assert ((estimate.mean(0) - vae.kl_nats(mu, log_var)[0]).abs() < 4 * error + 1e-12).all()


def test_gradients_reach_mu_and_s_through_the_draw():
    """E z^3 = mu^3 + 3 mu s^2 for z = mu + s eps: its derivatives are 3 mu^2 + 3 s^2, and 3 mu s^2 by log s^2."""
    mu, log_var = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.8, -0.5))
    eps = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)  # quantiles: no scatter
    vae.reparameterise(mu, log_var, eps).pow(3).mean().backward()
    s2 = math.exp(-0.5)
    assert mu.grad.item() == pytest.approx(3 * 0.8**2 + 3 * s2, rel=1e-4)
    assert log_var.grad.item() == pytest.approx(3 * 0.8 * s2, rel=1e-4)


def test_loss_is_its_definition():
    x, x_hat = normals(5, 1, 4, 4), normals(5, 1, 4, 4, seed=1)
    mu, log_var = normals(5, 3, seed=2), normals(5, 3, seed=3)
    square = np.mean([((a - b) ** 2).sum() for a, b in zip(x.numpy(), x_hat.numpy(), strict=True)])
    kl = []
    for j in range(3):
        pairs = zip(mu[:, j].tolist(), log_var[:, j].tolist(), strict=True)
        kl.append(np.mean([(m**2 + math.exp(v) - 1 - v) / 2 for m, v in pairs]))
    tau = sorted(kl)[1] + 0.01  # between: two latents are lifted to it, one is not
    loss, terms = vae.loss_of(x, x_hat, mu, log_var, 0.3, tau)
    assert loss.item() == pytest.approx(square + 0.3 * sum(max(k, tau) for k in kl), rel=1e-5)
    assert terms["mse_per_pixel"].item() == pytest.approx(square / 16, rel=1e-5)
    assert terms["kl_nats"].item() == pytest.approx(sum(kl), rel=1e-5)
    assert terms["free_bits_added_nats"].item() == pytest.approx(sum(max(tau - k, 0) for k in kl), rel=1e-4)


def test_free_bits_stop_the_pull_of_the_kl():
    x = torch.zeros(4, 1, 4, 4)
    for tau, pulled in ((0.0, True), (10.0, False)):
        mu, log_var = torch.full((4, 2), 0.3, requires_grad=True), torch.zeros(4, 2)
        vae.loss_of(x, x, mu, log_var, 1.0, tau)[0].backward()
        assert bool(mu.grad.abs().sum() > 0) is pulled


# ------------------------------------------------------------------------------------ the evidence bound, exactly known


def linear_model(beta=0.5, D=16, J=3):
    """x = W z + noise of variance beta / 2, z ~ N(0, I): data, log p(x), and the posterior, in closed form."""
    W, x = normals(D, J).double(), normals(40, D, seed=1).double()
    cov = W @ W.T + beta / 2 * torch.eye(D).double()
    evidence = torch.distributions.MultivariateNormal(torch.zeros(D).double(), cov).log_prob(x)
    S = torch.linalg.inv(torch.eye(J).double() + W.T @ W * 2 / beta)
    return W, x, evidence, x @ W @ S * 2 / beta, S


def bound(W, x, mu, log_var, beta, draws, seed):
    eps = normals(draws, *mu.shape, seed=seed).double()
    z = vae.reparameterise(mu, log_var, eps)
    x_all, mu_all, v_all = (v.expand(draws, *v.shape).flatten(0, 1) for v in (x, mu, log_var))
    terms = vae.elbo_nats(x_all.view(-1, 1, 4, 4), (z @ W.T).view(-1, 1, 4, 4), mu_all, v_all, beta)
    return terms.view(draws, -1), z


def test_the_bound_lies_below_the_exact_evidence_and_importance_weights_close_the_gap():
    """A diagonal q is not the posterior of a general linear model: the bound lies below by the KL between them."""
    beta = 0.5
    W, x, evidence, mean, S = linear_model(beta)
    log_var = S.diagonal().log().expand_as(mean)  # the right variances without the correlations
    terms, z = bound(W, x, mean, log_var, beta, 4000, 2)
    D_inv = torch.linalg.inv(S)
    gap = (torch.logdet(S) - log_var[0].sum() + (D_inv.diagonal() * log_var[0].exp()).sum() - 3) / 2  # the KL
    assert gap > 0.01
    assert (evidence - terms.mean(0)).numpy() == pytest.approx(np.full(40, gap.item()), abs=0.25)
    assert (evidence - terms.mean(0)).mean().item() == pytest.approx(gap.item(), abs=0.02)
    # weights log p(x, z) / q(z): the KL of elbo_nats in its exact form replaced by the one of the draw
    kl_drawn = (NORMAL(mean, (log_var / 2).exp()).log_prob(z) - NORMAL(0.0, 1.0).log_prob(z)).sum(2)
    weights = terms + vae.kl_nats(mean, log_var).sum(1) - kl_drawn
    iwae = weights.logsumexp(0) - math.log(len(weights))
    assert (iwae - evidence).abs().mean() < gap / 5


def test_the_bound_is_tight_where_q_is_the_posterior():
    beta = 0.2
    W, x, *_ = linear_model(beta)
    W = torch.linalg.qr(W)[0] * torch.tensor([2.0, 1.0, 0.5]).double()  # orthogonal columns: the posterior is diagonal
    cov = W @ W.T + beta / 2 * torch.eye(16).double()
    evidence = torch.distributions.MultivariateNormal(torch.zeros(16).double(), cov).log_prob(x)
    S = 1 / (1 + W.square().sum(0) * 2 / beta)
    mean = x @ W * S * 2 / beta
    terms, _ = bound(W, x, mean, S.log().expand_as(mean), beta, 4000, 3)
    assert (terms.mean(0) - evidence).abs().mean() < 0.05
    worse, _ = bound(W, x, mean, S.log().expand_as(mean) + 1.0, beta, 4000, 3)
    assert (worse.mean(0) < evidence - 0.1).all()


def test_the_loss_is_the_bound():
    """loss = -beta (ELBO + D/2 log(pi beta)): minimising one is maximising the other."""
    x, x_hat, beta = normals(6, 1, 4, 4), normals(6, 1, 4, 4, seed=1), 0.3
    mu, log_var = normals(6, 3), normals(6, 3, seed=4)
    elbo = vae.elbo_nats(x, x_hat, mu, log_var, beta).mean()
    expected = -beta * (elbo + 8 * math.log(math.pi * beta))
    torch.testing.assert_close(vae.loss_of(x, x_hat, mu, log_var, beta)[0], expected)


# ---------------------------------------------------------------------------------------------------------- the network


def test_the_unconditional_model_sees_no_condition_and_the_conditional_one_does():
    x, c, other = torch.rand(3, 1, 64, 64), conditions(3), conditions(3, seed=5)
    for uncond in (True, False):
        net = vae.build(config_of(*["--uncond"] * uncond))
        for name, argument in (("encode", x), ("decode", normals(3, 32))):
            a, b = (getattr(net, name)(argument, given) for given in (c, other))
            a, b = (a[0], b[0]) if name == "encode" else (a, b)
            assert torch.equal(a, b) is uncond
            gone = getattr(net, name)(argument, other.dropped())
            assert torch.equal(getattr(net, name)(argument, c.dropped())[0], gone[0])


def test_waves_are_sines_of_mapped_coordinates():
    decoder, emb = vae.Decoder(64, 32), normals(2, 256)
    A = decoder.maps(emb).view(2, -1, 2, 2)
    got = decoder.waves(emb)
    row, column, k, n = 3, 11, 2, 1
    r = torch.tensor([4 * column + 1.5 - 32, 4 * row + 1.5 - 32]) / 32
    uv = A[n, k] @ r
    torch.testing.assert_close(got[n, 2 * k : 2 * k + 2, row, column], uv)
    waves = got[n, 2 * A.shape[1] : -2, row, column]
    for frequency in 32 / 10 * 2 * math.pi * 2.0 ** torch.arange(-4, 1):
        assert (waves - (frequency * uv[0]).sin()).abs().min() < 1e-4
        assert (waves - (frequency * uv[1]).cos()).abs().min() < 1e-4
    torch.testing.assert_close(got[n, -2:, row, column], r)


def test_build_depends_on_the_seed_alone():
    torch.manual_seed(3)
    a = vae.build(config_of("--seed", "1"))
    torch.manual_seed(4)
    b, c = vae.build(config_of("--seed", "1")), vae.build(config_of("--seed", "2"))
    a, b, c = (net.encoder.stem.weight for net in (a, b, c))
    assert torch.equal(a, b) and not torch.equal(a, c)


# ----------------------------------------------------------------------------------------------------------- the priors


def test_mop_takes_the_same_type_and_the_nearest_angle():
    kind, theta = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0.10, 1.04, 0.02, 0.50, 0.60]).double()
    cont = torch.tensor([[0, 0.0, 0, 0], [0, 1.0, 0, 0], *[[0, 0.54, 0, 0]] * 3])
    asked = data.Condition(torch.tensor([0, 0, 1, 1, 1]), cont, torch.ones(5, dtype=torch.bool))
    # 0.0 is far from 1.04, the other end of the range: no wrap.  Repeats take the second and the third nearest.
    assert vae.nearest_examples(kind, theta, asked).tolist() == [0, 1, 3, 4, 2]
    with pytest.raises(ValueError, match="no triangular"):
        vae.nearest_examples(kind, theta, asked._replace(kind=torch.full((5,), 2)))


def test_angles_do_not_wrap_because_the_ends_of_the_range_are_two_images():
    for kind, same in ((0, False), (2, True), (3, False)):
        a, b = data.render([kind] * 2, [0.0, data.THETA_MAX])
        assert bool((a - b).abs().max() < 1e-9) is same


def test_mop_on_an_identity_vae_returns_the_training_crystals():
    """With an encoder and decoder that copy 4 x 4 pixels, MoP returns corners of the crystals it chose."""
    class Copy(torch.nn.Module):
        def encode(self, x, condition):
            return x[:, 0, :4, :4].flatten(1), torch.full((len(x), 16), -40.0)

        def decode(self, z, condition):
            return z.view(-1, 1, 4, 4)

    config, asked = config_of() | {"z_dim": 16}, data.asked_for(8)
    x = vae.draw(Copy(), "mop", asked, config, 0, torch.device("cpu"))
    labels = data.crystal_labels(0, training.TRAINING_SET)
    for i in range(8):
        (same,) = torch.where(labels["kind"] == asked.kind[i])
        row = same[(labels["theta"][same] - asked.cont[i, 1]).abs().argmin()]
        true = data.crystal_batch(int(row), 1)[0][0, :, :4, :4] / 255
        torch.testing.assert_close(x[i], true, atol=1e-6, rtol=0)


def test_the_numbers_of_held_out_crystals_are_what_they_are_called():
    config = config_of("--img-size", "16")
    net, (x, condition) = vae.build(config).eval(), vae.training_batch(config, 0, None, 70, held_out=True)  # two parts
    assert x.min() == 0 and x.max() == 1  # every crystal is divided by its maximum
    with torch.no_grad():
        for p in net.parameters():  # away from the beginning, where no latent is active and no pixel too bright
            p.add_(0.1 * normals(*p.shape))
        report, recon = vae.exam_report(net, x, condition, config)
        mu, log_var = net.encode(x, condition)
        expected = net.decode(mu, condition).clamp(0, 1)
        kl = vae.kl_nats(mu, log_var)
    torch.testing.assert_close(recon, expected, atol=1e-4, rtol=0)
    each = (expected - x).square().mean((1, 2, 3))
    assert report["reconstruction_rmse"] == pytest.approx(each.mean().sqrt().item(), rel=1e-4)
    assert report["reconstruction_worst"] == pytest.approx(each.max().sqrt().item(), rel=1e-4)
    assert report["kl_nats"] == pytest.approx(kl.sum(1).mean().item(), rel=1e-4) and report["n_held_out"] == 70
    assert report["active_latents"] == (kl.mean(0) > 0.05).sum().item()


def test_the_report_on_latents_is_of_n_held_out_crystals_the_most_active_first():
    config = config_of("--img-size", "16", "--uncond")
    net = vae.build(config).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * normals(*p.shape))
        report, mu = vae.latent_report(net, config, torch.device("cpu"), 70)  # two parts
        x_u8, kind, cont = data.crystal_batch(0, 70, config["seed"], "rot-only", 4, 16, stream=1)
        expected, log_var = net.encode(x_u8.float() / 255, data.told(kind, cont))
    torch.testing.assert_close(mu, expected, atol=1e-4, rtol=1e-4)
    kl = vae.kl_nats(expected, log_var).mean(0)[report["latent"]]
    assert report["kl_nats"] == pytest.approx(kl.tolist(), rel=1e-3) == sorted(report["kl_nats"], reverse=True)
    r2 = vae.r_squared(expected, torch.nn.functional.one_hot(kind, 4).float())[report["latent"]]
    assert report["type"] == pytest.approx(r2.tolist(), abs=1e-3)


def test_the_average_of_the_weights_is_an_exponential_one():
    ema, net = (torch.nn.Linear(1, 1).requires_grad_(False) for _ in range(2))
    torch.nn.init.zeros_(ema.weight), torch.nn.init.ones_(net.weight)
    vae.update_ema(ema, net, 0.75, step=10**6)
    assert ema.weight.item() == pytest.approx(0.25)
    vae.update_ema(ema, net, 0.999, step=0)  # early on it forgets faster: d = 1/10
    assert ema.weight.item() == pytest.approx(0.1 * 0.25 + 0.9)


def test_mop_draws_its_examples_from_a_file_where_there_is_one(tmp_path):
    data.build(60, tmp_path / "d.pt", seed=4)
    config = config_of("--data-path", str(tmp_path / "d.pt"))
    kind, theta, crystals = vae.training_labels(config, vae.load_source(config))
    x, condition = crystals(torch.tensor([7, 3]))
    expected = data.crystal_batch(0, 60, 4)
    assert torch.equal(x, expected[0][[7, 3]].float() / 255) and torch.equal(kind, expected[1])
    assert torch.equal(condition.cont, expected[2][[7, 3]]) and torch.equal(theta, expected[2][:, 1])


def test_noise_of_a_sample_depends_on_seed_and_index_only():
    class Show(torch.nn.Module):
        def decode(self, z, condition):
            return z.view(-1, 1, 4, 8) / 20 + 0.5

    def shown(n, seed):
        return vae.draw(Show(), "normal", data.asked_for(n), config_of(), seed, torch.device("cpu"))

    assert torch.equal(shown(70, 3)[:5], shown(5, 3)) and not torch.equal(shown(5, 3), shown(5, 4))
    z = (shown(400, 0) - 0.5) * 20
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.03


def test_r_squared_tells_what_a_latent_knows():
    labels = data.crystal_labels(0, 2000)
    kind, theta = labels["kind"], labels["theta"]
    noisy = theta + 0.1 * normals(2000, seed=1)
    z = torch.stack([theta * 3 - 1, (kind == 2).double(), normals(2000).double(), noisy], 1)
    angle = vae.r_squared(z, theta[:, None])
    types = vae.r_squared(z, torch.nn.functional.one_hot(kind, 4)[:, 1:])
    share = theta.var() / z[:, 3].var()
    assert angle.tolist() == pytest.approx([1, 0, 0, share.item()], abs=0.02)
    assert types.tolist() == pytest.approx([0, 1, 0, 0], abs=0.02)


# --------------------------------------------------------------------------------------------------------- the training


def test_every_knob_of_the_loss_reaches_the_training(tmp_path):
    """Two steps each: a changed knob changes the logged loss or the weights; the same knobs give the same bits."""
    def weights(*words):
        config = config_of("--train-steps", "2", "--batch-size", "4", *words)
        (out := tmp_path / "-".join(w.strip("-") for w in words)).mkdir()
        return torch.cat([p.flatten() for p in vae.train(config, out, torch.device("cpu")).parameters()])

    plain = weights("--beta-warmup", "0")
    assert torch.equal(plain, weights("--beta-warmup", "0", "--n", "5"))
    for knob in (["--beta", "3"], ["--beta-warmup", "50"], ["--free-bits", "9"], ["--cond-drop", "1"], ["--seed", "1"],
                 ["--lr", "1e-2"], ["--ema-decay", "0"]):
        assert not torch.equal(plain, weights("--beta-warmup", "0", *knob)), knob


def test_training_resumes_bit_for_bit(tmp_path, monkeypatch):
    whole, half = tmp_path / "whole", tmp_path / "half"
    common = ["--batch-size", "4", "--n", "4", "--precision", "float32", "--device", "cpu", "--save-every", "2"]
    vae.main(["--train", "--train-steps", "6", "--out", str(whole), *common])
    parser_config = config_of("--train", "--train-steps", "6", *common)
    half.mkdir()
    asked = []

    class Stop(list):
        def __bool__(self):  # an interrupt that comes during the third step or so
            asked.append(1)
            return len(asked) > 4

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "finish_the_step", lambda: contextlib.nullcontext(Stop()))
        vae.train(parser_config, half, torch.device("cpu"))
    stopped = training.load_checkpoint(half)["step"]
    assert 0 < stopped < 6
    vae.main(["--resume", "--out", str(half)])
    a, b = training.load_checkpoint(whole), training.load_checkpoint(half)
    for part in ("model", "ema"):
        assert all(torch.equal(a[part][key], b[part][key]) for key in a[part])
    logs = [(out / "log.jsonl").read_text().splitlines() for out in (whole, half)]
    lines = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert lines[0] == lines[1] and len(lines[0]) == 3


# -------------------------------------------------------------------------------------------------------------- digits


@pytest.fixture(scope="module")
def digit_run(mnist_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "run"
    vae.main([*TINY, "--data", "mnist", "--uncond", "--data-dir", str(mnist_folder), "--out", str(out)])
    return out


def test_digits_have_their_own_network_and_defaults(digit_run, mnist_folder):
    config = json.loads((digit_run / "config.json").read_text())
    assert (config["data"], config["z_dim"], config["beta"]) == ("mnist", 2, 0.2)
    weights = training.load_checkpoint(digit_run)["model"]
    widths = [weights[f"encoder.layers.{i}.weight"].shape[1] for i in range(4)]
    assert widths == [784 + 11, 512, 256, 128] and weights["decoder.layers.3.weight"].shape == (784, 512)
    names = {p.name for p in digit_run.iterdir()}
    assert {"reconstructions.png", "samples.png", "traversal.png", "samples.npz", "metrics.json"} <= names
    assert np.load(digit_run / "samples.npz")["x"].shape == (4, 1, 28, 28)
    assert json.loads((digit_run / "metrics.json").read_text())["held_out"]["n_held_out"] == 16


def test_a_config_with_a_default_of_crystals_keeps_it(digit_run, mnist_folder, tmp_path):
    """z_dim 32 is the default of crystals; in a config of digits it was chosen."""
    (tmp_path / "c.json").write_text(json.dumps({"data": "mnist", "z_dim": 32, "uncond": False}))
    words = ["--config", str(tmp_path / "c.json"), "--data-dir", str(mnist_folder), "--out", str(tmp_path / "r")]
    vae.main([*TINY, *words, "--digit", "7"])
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert (config["z_dim"], config["beta"]) == (32, 0.2)
    assert np.load(tmp_path / "r" / "samples.npz")["kind"].tolist() == [7] * 4
    assert len(json.loads((tmp_path / "r" / "metrics.json").read_text())["latents"]["kl_nats"]) == 32


def test_digits_are_told_to_the_conditional_model_only():
    x, kinds = torch.rand(3, 1, 28, 28), torch.tensor([0, 4, 9])
    for uncond in (True, False):
        net = vae.build(config_of("--data", "mnist", "--z-dim", "2", *["--uncond"] * uncond))
        for f, argument in ((lambda *a, net=net: net.encode(*a)[0], x), (net.decode, normals(3, 2))):
            a, b = (f(argument, vae.digits_asked(k)) for k in (kinds, kinds.flip(0)))
            assert torch.equal(a[:1], b[:1]) is uncond and torch.equal(a[1], b[1])
            assert torch.equal(*(f(argument, vae.digits_asked(k).dropped()) for k in (kinds, kinds.flip(0))))


def test_the_traversal_is_a_grid_over_the_inverse_cdf_and_stands_upright():
    quantile = [statistics.NormalDist().inv_cdf((i + 0.5) / 5) for i in range(5)]
    z, values = vae.prior_grid([1, 0], 2, 5)
    assert values.tolist() == pytest.approx(quantile, abs=1e-6)
    z = z.view(5, 5, 2)  # row of the picture, from above; column; latent
    for row in range(5):
        assert z[row, :, 0].tolist() == pytest.approx(quantile, abs=1e-6)  # z_0 to the right
        assert z[row, :, 1].tolist() == pytest.approx([quantile[4 - row]] * 5, abs=1e-6)  # z_1 upwards
    z, _ = vae.prior_grid([3, 0], 4, 5)  # more than two: one row a latent, in the order given
    z = z.view(2, 5, 4)
    assert z[0, :, 3].tolist() == z[1, :, 0].tolist() == pytest.approx(quantile, abs=1e-6)
    assert z[0, :, :3].abs().sum() == z[1, :, 1:].abs().sum() == 0


def test_the_map_shows_the_most_active_latent_first(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(vae, "prior_grid", lambda order, *of: (asked.append(order), PRIOR_GRID(order, *of))[1])
    config, kl = config_of("--data", "mnist", "--z-dim", "3"), torch.tensor([0.1, 2.0, 0.5])
    vae.digit_map(vae.build(config), kl, vae.digits_asked(torch.tensor([3])), config, torch.device("cpu"),
                  tmp_path / "t.png")
    assert asked == [[1, 2, 0]] and (tmp_path / "t.png").stat().st_size > 3000


def test_bad_input_about_digits_is_one_line(digit_run, run, mnist_folder, tmp_path, mistake, monkeypatch):
    monkeypatch.setattr(data, "MNIST_MIRRORS", ("http://127.0.0.1:9/",))
    line = mistake(vae.main, *TINY, "--data", "mnist", "--data-dir", tmp_path / "none", "--out", tmp_path / "x")
    assert "train-images-idx3-ubyte.gz" in line and "http://127.0.0.1:9/" in line and str(tmp_path / "none") in line
    assert "contradicts" in mistake(vae.main, "--data", "mnist", "--ckpt", run, "--out", tmp_path / "x")
    assert "contradicts" in mistake(vae.main, "--data", "crystals", "--ckpt", digit_run, "--out", tmp_path / "x")
    assert "--z-dim" in mistake(vae.main, "--data", "mnist", "--z-dim", "0")
    assert "--digit" in mistake(vae.main, "--data", "mnist", "--digit", "10")
    assert "--data" in mistake(vae.main, "--data", "letters")


# ---------------------------------------------------------------------------------------------------- the command lines


def test_a_run_writes_what_it_says(run):
    names = {"config.json", "last.pt", "log.jsonl", "loss.png", "metrics.json", "reconstructions.png", "samples.npz",
             "samples_mop.png", "samples_normal.png", "traversal.png"}
    assert {p.name for p in run.iterdir()} == names
    numbers = json.loads((run / "metrics.json").read_text())
    assert {"held_out", "normal", "mop", "latents", "n", "seconds"} <= set(numbers)
    assert len(numbers["latents"]["type"]) == len(numbers["latents"]["aspect"]) == 32
    samples = np.load(run / "samples.npz")
    assert samples["x"].shape == (4, 1, 64, 64) and samples["kind"].tolist() == [0, 1, 2, 3]


def test_sampling_from_a_run_again_and_from_what_ships_of_it(run, tmp_path, capsys):
    training.ship(run, tmp_path / "small.pt")
    for name, path in (("a", run), ("b", tmp_path / "small.pt")):
        vae.main(["--ckpt", str(path), "--out", str(tmp_path / name), *TINY[5:]])
    a, b, c = (np.load(folder / "samples.npz")["x"] for folder in (run, tmp_path / "a", tmp_path / "b"))
    assert np.array_equal(a, b) and np.abs(a - c).max() < 5e-3
    assert "device cpu" in capsys.readouterr().out


def test_bad_input_is_one_line(run, tmp_path, mistake):
    assert "0" in mistake(vae.main, "--free-bits", "-1")
    for flag in ("--beta", "--free-bits", "--lr", "--theta", "--cond-drop", "--ema-decay"):
        mistake(vae.main, flag, "nan")
    assert "contradicts" in mistake(vae.main, "--ckpt", run, "--z-dim", "16", "--out", tmp_path / "x")
    assert "no checkpoint" in mistake(vae.main, "--ckpt", tmp_path / "nothing.pt")
    assert "resume" in mistake(vae.main, *TINY, "--out", run)  # it holds a trained run
    assert "contradicts" in mistake(vae.main, "--resume", "--out", run, "--beta", "2")
    assert "multiple of 16" in mistake(vae.main, *TINY, "--img-size", "50")
    assert "no data file" in mistake(vae.main, *TINY, "--data-path", tmp_path / "none.pt")
    (tmp_path / "cut.pt").write_bytes((run / "last.pt").read_bytes()[:5000])
    assert "damaged" in mistake(vae.main, "--ckpt", tmp_path / "cut.pt")
    assert not (tmp_path / "x").exists()
