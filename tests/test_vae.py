"""The VAE of crystals: loss and evidence bound against closed forms, the network, what latents know, the priors."""

import math
from dataclasses import replace

import data
import vae
from common import latents, runs
from common.crystal_job import TrainingCrystals, nearest_examples
from data import Condition
from small import run_of

import numpy as np
import pytest
import torch
import torch.nn.functional as F

NORMAL = torch.distributions.Normal


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_conditions(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    cont = torch.zeros(n, 4)
    cont[:, 1] = torch.rand(n, generator=g) * data.THETA_MAX
    return Condition(torch.randint(4, (n,), generator=g), cont, torch.ones(n, dtype=torch.bool))


def small(**settings):
    """A config of the smallest images."""
    return vae.Config(**(dict(img_size=16) | settings))


def lively(config):
    """A network whose latents are active and whose pixels are too bright: a fresh one has neither."""
    net = runs.seeded(lambda: vae.build(config), config.seed).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * normals(*p.shape))
    return net.requires_grad_(False)


# ------------------------------------------------------------------------------------------------------- the loss


def test_kl_is_the_closed_form_and_the_monte_carlo_mean():
    mu = torch.tensor([[0.7, -1.2, 0.0]]).double()
    log_var = torch.tensor([[-1.0, 0.4, 0.0]]).double()
    exact = torch.distributions.kl_divergence(NORMAL(mu, (log_var / 2).exp()), NORMAL(0.0, 1.0))
    torch.testing.assert_close(vae.kl_nats(mu, log_var), exact)
    z = vae.reparameterise(mu, log_var, normals(200_000, 3).double())
    estimate = NORMAL(mu, (log_var / 2).exp()).log_prob(z) - NORMAL(0.0, 1.0).log_prob(z)
    error = estimate.std(0) / math.sqrt(len(z))
    assert ((estimate.mean(0) - vae.kl_nats(mu, log_var)[0]).abs() < 4 * error + 1e-12).all()


def test_gradients_reach_mu_and_s_through_the_draw():
    """E z^3 = mu^3 + 3 mu s^2 for z = mu + s eps: its derivatives are 3 mu^2 + 3 s^2, and 3 mu s^2 by log s^2."""
    mu = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    log_var = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    eps = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)  # quantiles: no scatter
    vae.reparameterise(mu, log_var, eps).pow(3).mean().backward()
    s2 = math.exp(-0.5)
    assert mu.grad.item() == pytest.approx(3 * 0.8**2 + 3 * s2, rel=1e-4)
    assert log_var.grad.item() == pytest.approx(3 * 0.8 * s2, rel=1e-4)


def test_loss_is_its_definition():
    x = normals(5, 1, 4, 4)
    x_hat = normals(5, 1, 4, 4, seed=1)
    mu = normals(5, 3, seed=2)
    log_var = normals(5, 3, seed=3)
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


@pytest.mark.parametrize("tau, pulled", [(0.0, True), (10.0, False)])
def test_free_bits_stop_the_pull_of_the_kl(tau, pulled):
    x = torch.zeros(4, 1, 4, 4)
    mu = torch.full((4, 2), 0.3, requires_grad=True)
    vae.loss_of(x, x, mu, torch.zeros(4, 2), 1.0, tau)[0].backward()
    assert bool(mu.grad.abs().sum() > 0) is pulled


# ---------------------------------------------------------------------------- the evidence bound, exactly known


def linear_model(W, beta):
    """x = W z + noise of variance beta / 2, z ~ N(0, I): data, log p(x), and the posterior, in closed form."""
    D, J = W.shape
    x = normals(40, D, seed=1).double()
    cov = W @ W.T + beta / 2 * torch.eye(D).double()
    evidence = torch.distributions.MultivariateNormal(torch.zeros(D).double(), cov).log_prob(x)
    S = torch.linalg.inv(torch.eye(J).double() + W.T @ W * 2 / beta)
    return x, evidence, x @ W @ S * 2 / beta, S


def bound(W, x, mu, log_var, beta, draws, seed):
    eps = normals(draws, *mu.shape, seed=seed).double()
    z = vae.reparameterise(mu, log_var, eps)
    x_all, mu_all, v_all = (v.expand(draws, *v.shape).flatten(0, 1) for v in (x, mu, log_var))
    terms = vae.elbo_nats(x_all.view(-1, 1, 4, 4), (z @ W.T).view(-1, 1, 4, 4), mu_all, v_all, beta)
    return terms.view(draws, -1), z


def test_the_bound_lies_below_the_exact_evidence_and_importance_weights_close_the_gap():
    """A diagonal q is not the posterior of a general linear model: the bound lies below by the KL between them."""
    beta = 0.5
    W = normals(16, 3).double()
    x, evidence, mean, S = linear_model(W, beta)
    log_var = S.diagonal().log().expand_as(mean)  # the right variances without the correlations
    terms, z = bound(W, x, mean, log_var, beta, 4000, 2)
    inverse = torch.linalg.inv(S)
    gap = (torch.logdet(S) - log_var[0].sum() + (inverse.diagonal() * log_var[0].exp()).sum() - 3) / 2  # the KL
    assert gap > 0.01
    assert (evidence - terms.mean(0)).numpy() == pytest.approx(np.full(40, gap.item()), abs=0.25)
    assert (evidence - terms.mean(0)).mean().item() == pytest.approx(gap.item(), abs=0.02)

    # Weights log p(x, z) / q(z): the KL of elbo_nats in its exact form replaced by the one of the draw.
    kl_drawn = (NORMAL(mean, (log_var / 2).exp()).log_prob(z) - NORMAL(0.0, 1.0).log_prob(z)).sum(2)
    weights = terms + vae.kl_nats(mean, log_var).sum(1) - kl_drawn
    iwae = weights.logsumexp(0) - math.log(len(weights))
    assert (iwae - evidence).abs().mean() < gap / 5


def test_the_bound_is_tight_where_q_is_the_posterior():
    beta = 0.2
    orthogonal = torch.linalg.qr(normals(16, 3).double())[0]
    W = orthogonal * torch.tensor([2.0, 1.0, 0.5]).double()  # so that the posterior is diagonal
    x, evidence, mean, S = linear_model(W, beta)
    log_var = S.diagonal().log().expand_as(mean)
    terms, _ = bound(W, x, mean, log_var, beta, 4000, 3)
    assert (terms.mean(0) - evidence).abs().mean() < 0.05
    worse, _ = bound(W, x, mean, log_var + 1.0, beta, 4000, 3)
    assert (worse.mean(0) < evidence - 0.1).all()


def test_the_loss_is_the_bound():
    """loss = -beta (ELBO + D/2 log(pi beta)): minimising one is maximising the other."""
    beta = 0.3
    x = normals(6, 1, 4, 4)
    x_hat = normals(6, 1, 4, 4, seed=1)
    mu = normals(6, 3)
    log_var = normals(6, 3, seed=4)
    elbo = vae.elbo_nats(x, x_hat, mu, log_var, beta).mean()
    expected = -beta * (elbo + 8 * math.log(math.pi * beta))
    torch.testing.assert_close(vae.loss_of(x, x_hat, mu, log_var, beta)[0], expected)


# --------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("uncond", [True, False])
def test_the_unconditional_model_sees_no_condition_and_the_conditional_one_does(uncond):
    x = torch.rand(3, 1, 16, 16)
    z = normals(3, 32)
    one = some_conditions(3)
    other = some_conditions(3, seed=5)
    net = vae.build(small(uncond=uncond))
    for part in (lambda c: net.encode(x, c)[0], lambda c: net.decode(z, c)):
        assert torch.equal(part(one), part(other)) is uncond
        assert torch.equal(part(one.dropped()), part(other.dropped()))


def test_what_the_loss_needs_is_one_call_of_the_network():
    """So that DistributedDataParallel can stand in for it."""
    net = lively(small())
    x = torch.rand(3, 1, 16, 16)
    eps = normals(3, 32)
    condition = some_conditions(3)
    x_hat, mu, log_var = net(x, condition, eps)
    expected = net.encode(x, condition)
    assert torch.equal(mu, expected[0]) and torch.equal(log_var, expected[1])
    assert torch.equal(x_hat, net.decode(mu + (log_var / 2).exp() * eps, condition))


def test_waves_are_sines_of_mapped_coordinates():
    decoder = vae.Decoder(64, 32)
    emb = normals(2, 256)
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


# ---------------------------------------------------------------------------------------------------- the priors


def test_mop_takes_the_same_type_and_the_nearest_angle():
    """0.0 is far from 1.04, the other end of the range: no wrap.  Repeats take the second and the third nearest."""
    kind = torch.tensor([0, 0, 1, 1, 1])
    theta = torch.tensor([0.10, 1.04, 0.02, 0.50, 0.60]).double()
    cont = torch.zeros(5, 4)
    cont[:, 1] = torch.tensor([0.0, 1.0, 0.54, 0.54, 0.54])
    condition = Condition(torch.tensor([0, 0, 1, 1, 1]), cont, torch.ones(5, dtype=torch.bool))
    assert nearest_examples(kind, theta, condition).tolist() == [0, 1, 3, 4, 2]
    with pytest.raises(ValueError, match="no triangular"):
        nearest_examples(kind, theta, condition._replace(kind=torch.full((5,), 2)))


def test_there_are_examples_for_more_samples_than_the_data_have():
    condition = data.default_conditions(7, kind=0, theta=0.5)
    rows = nearest_examples(torch.tensor([0, 0]), torch.tensor([0.1, 0.4]), condition)
    assert rows.tolist() == [1, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("kind, alike", [(0, False), (2, True), (3, False)])
def test_angles_do_not_wrap_because_the_ends_of_the_range_are_two_images(kind, alike):
    a, b = data.render([kind] * 2, [0.0, data.THETA_MAX])
    assert bool((a - b).abs().max() < 1e-9) is alike


class Copy(torch.nn.Module):
    """A VAE whose latents are the first 4 x 4 pixels."""

    def encode(self, x, condition):
        return x[:, 0, :4, :4].flatten(1), torch.full((len(x), 16), -40.0)

    def decode(self, z, condition):
        return z.view(-1, 1, 4, 4)


@pytest.mark.parametrize("mode", data.MODES)
def test_mop_on_a_copying_vae_returns_the_training_crystals(mode):
    """Those of the seed of the training, not of the sampling."""
    trained = vae.Config(z_dim=16, seed=3, mode=mode)
    run = replace(run_of(trained), config=replace(trained, seed=8))
    condition = data.default_conditions(8, mode=mode)
    x = vae.draw(Copy(), run, "mop", condition)
    of_data = dict(seed=3, mode="rot-only" if mode == "full" else mode)
    labels = data.crystal_labels(0, 50_000, **of_data)
    for i in range(8):
        (same,) = torch.where(labels["kind"] == condition.kind[i])
        order = (labels["theta"][same] - condition.cont[i, 1]).abs().argsort()
        row = same[order[i // 4 if mode == "simple" else 0]]  # unturned crystals are repeats of four
        true = data.crystal_batch(int(row), 1, 3, mode)[0][0, :, :4, :4] / 255
        torch.testing.assert_close(x[i], true, atol=1e-6, rtol=0)


def test_mop_draws_its_examples_from_a_file_where_there_is_one(tmp_path):
    data.build(60, tmp_path / "d.pt", seed=4)
    crystals = TrainingCrystals(run_of(vae.Config(data_path=str(tmp_path / "d.pt"))), signed=False)
    kind, theta = crystals.labels()
    x_u8, kinds, cont = data.crystal_batch(0, 60, 4)
    assert torch.equal(kind, kinds) and torch.equal(theta, cont[:, 1])
    for rows in (torch.tensor([7, 3]), slice(5, 9)):
        x, condition = crystals.examples(rows)
        assert torch.equal(x, x_u8[rows].float() / 255) and torch.equal(condition.cont, cont[rows])


def test_examples_are_the_same_crystals_one_by_one_and_in_a_row():
    crystals = TrainingCrystals(run_of(small(seed=2)), signed=False)
    x, condition = crystals.examples(slice(3, 6))
    singles, of_singles = crystals.examples(torch.tensor([3, 4, 5]))
    assert torch.equal(x, singles) and torch.equal(condition.cont, of_singles.cont)
    assert torch.equal(x, data.crystal_batch(3, 3, 2, img_size=16)[0] / 255)


class Show(torch.nn.Module):
    """A decoder that shows its latents."""

    def decode(self, z, condition):
        return z.view(-1, 1, 4, 8) / 20 + 0.5


def test_noise_of_a_sample_depends_on_seed_and_index_only():
    def shown(n, seed):
        return vae.draw(Show(), run_of(vae.Config(seed=seed)), "normal", data.default_conditions(n))

    assert torch.equal(shown(70, 3)[:5], shown(5, 3)) and not torch.equal(shown(5, 3), shown(5, 4))
    z = (shown(400, 0) - 0.5) * 20
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.03


# ----------------------------------------------------------------------------------------- numbers about a network


def test_the_numbers_of_held_out_crystals_are_what_they_are_called():
    config = small()
    run = run_of(config)
    net = lively(config)
    x, condition = TrainingCrystals(run, signed=False).batch(0, 70, held_out=True)  # two batches
    assert x.min() == 0 and x.max() == 1  # every crystal is divided by its maximum
    numbers, recon = vae.evaluate(net, run, x, condition)
    mu, log_var = net.encode(x, condition)
    expected = net.decode(mu, condition).clamp(0, 1)
    kl = vae.kl_nats(mu, log_var)
    torch.testing.assert_close(recon, expected, atol=1e-4, rtol=0)
    each = (expected - x).square().mean((1, 2, 3))
    assert numbers["reconstruction_rmse"] == pytest.approx(each.mean().sqrt().item(), rel=1e-4)
    assert numbers["reconstruction_worst"] == pytest.approx(each.max().sqrt().item(), rel=1e-4)
    assert numbers["kl_nats"] == pytest.approx(kl.sum(1).mean().item(), rel=1e-4)
    assert numbers["active_latents"] == (kl.mean(0) > 0.05).sum().item() and numbers["n_held_out"] == 70


def test_r_squared_tells_what_a_latent_knows():
    labels = data.crystal_labels(0, 2000)
    kind = labels["kind"]
    theta = labels["theta"]
    noisy = theta + 0.1 * normals(2000, seed=1)
    z = torch.stack([theta * 3 - 1, (kind == 2).double(), normals(2000).double(), noisy], 1)
    angle = latents.r_squared(z, theta[:, None])
    types = latents.r_squared(z, F.one_hot(kind, 4)[:, 1:])
    share = theta.var() / z[:, 3].var()
    assert angle.tolist() == pytest.approx([1, 0, 0, share.item()], abs=0.02)
    assert types.tolist() == pytest.approx([0, 1, 0, 0], abs=0.02)


def test_the_table_of_latents_has_the_most_active_first_and_each_factor_in_its_place():
    labels = data.crystal_labels(0, 3000, stream=1)
    mu = torch.stack([labels["theta"], labels["aspect"], (labels["kind"] == 3).double(), normals(3000).double()], 1)
    table = latents.latent_table(mu.float(), torch.tensor([1.0, 3.0, 2.0, 0.01]), labels)
    assert table["latent"] == [1, 2, 0, 3] and table["kl_nats"] == pytest.approx([3, 2, 1, 0.01])
    assert table["aspect"] == pytest.approx([1, 0, 0, 0], abs=0.02)
    assert table["type"] == pytest.approx([0, 1, 0, 0], abs=0.02)
    assert table["angle"] == pytest.approx([0, 0, 1, 0], abs=0.02)
    words = latents.describe_table(table).splitlines()
    assert words[0].split() == ["latent", "KL/nats", "R2", "type", "R2", "angle", "R2", "aspect"]
    assert words[1].split() == ["1", "3.00", "0.00", "0.00", "1.00"]


@pytest.mark.parametrize("n_types, factors", [(1, {"type", "angle"}), (2, {"type", "angle", "aspect"})])
def test_without_rectangular_crystals_there_is_no_aspect_and_nothing_is_nan(n_types, factors):
    labels = data.crystal_labels(0, 64, n_types=n_types, stream=1)
    table = latents.latent_table(normals(64, 3), torch.ones(3), labels)
    assert table.keys() == factors | {"latent", "kl_nats"}
    assert np.isfinite(np.concatenate([table[name] for name in table])).all()


def test_a_traversal_moves_one_latent_a_row_across_its_values():
    mu = torch.linspace(0, 1, 101)[:, None] * torch.tensor([1.0, 10.0, 100.0])
    base = torch.tensor([7.0, 8.0, 9.0])
    z = latents.traversal(base, mu, [2, 0], columns=3).view(2, 3, 3)
    assert z[0, :, 2].tolist() == pytest.approx([1, 50, 99], rel=1e-4)
    assert z[1, :, 0].tolist() == pytest.approx([0.01, 0.5, 0.99], rel=1e-4)
    assert (z[0, :, :2] == base[:2]).all() and (z[1, :, 1:] == base[1:]).all()
