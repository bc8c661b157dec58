"""The samplers against closed forms and a second implementation, the latents against stale files, the command lines."""

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import latent_prior as lp
import metrics
import training
import vae

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
TINY = ["--train-steps", "4", "--batch-size", "16", "--n-latents", "60", "--width", "32", "--T", "40", "--steps", "8",
        "--n", "4", "--precision", "float32", "--device", "cpu", "--save-every", "2",
        "--lr", "0.1"]  # so high that four steps of a warm-up leave a trace


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def config_of(*words):
    config = vars(training.parse(lp.make_parser(), ["--precision", "float32", "--width", "32", *words])[0])
    return config | {"z_dim": 8}


def conditions(n, known=True):
    cont = torch.zeros(n, 4)
    cont[:, 1] = torch.linspace(0, 1, n)
    return data.Condition(torch.arange(n) % 4, cont, torch.full((n,), known))


@pytest.fixture(scope="module", autouse=True)
def few_held_out_crystals():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "EXAM", 4)
        yield


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory):
    """A small VAE that has seen eight crystals: its folder."""
    out = tmp_path_factory.mktemp("vae") / "run"
    out.mkdir()
    words = ["--uncond", "--z-dim", "8", "--train-steps", "2", "--batch-size", "4", "--precision", "float32"]
    vae.train(vars(training.parse(vae.make_parser(), words)[0]), out, CPU)
    return out


@pytest.fixture(scope="module")
def run(vae_run, tmp_path_factory):
    """A tiny prior trained through the real command line: its folder."""
    out = tmp_path_factory.mktemp("prior") / "run"
    lp.main(["--train", "--vae", str(vae_run), "--out", str(out), *TINY])
    return out


def gaussian_eps(schedule, mean, cov):
    """eps(z, t) in closed form for z_0 ~ N(mean, cov): eps = sigma (abar cov + (1 - abar) I)^-1 (z_t - alpha mean)."""
    def eps(z, t):
        alpha, sigma = schedule.alpha_sigma(t)
        S = alpha**2 * cov + sigma**2 * torch.eye(len(mean)).double()
        return sigma * torch.linalg.solve(S, (z - alpha * mean).T).T

    return eps


MEAN = torch.tensor([0.5, -1.0, 2.0]).double()
FACTOR = torch.tensor([[1.0, 0, 0], [0.6, 0.5, 0], [-0.3, 0.2, 0.1]]).double()
COV = FACTOR @ FACTOR.T


# --------------------------------------------------------------------------------------------------------- the schedule


def test_the_chain_is_a_product_of_one_minus_beta():
    schedule = lp.DDPM(1000, 1e-4, 0.05)
    abar = 1.0
    for t, beta in enumerate(np.linspace(1e-4, 0.05, 1000), 1):
        abar *= 1 - beta
        alpha, sigma = schedule.alpha_sigma(t)
        assert alpha**2 == pytest.approx(abar, rel=1e-10) and sigma**2 == pytest.approx(1 - abar, rel=1e-9)
    assert schedule.alpha_sigma(0) == (1.0, 0.0) and abar == pytest.approx(9e-12, rel=0.1)
    alpha, sigma, log_snr = schedule.tables("cpu")
    assert alpha[500].item() == pytest.approx(schedule.alpha_sigma(500)[0], rel=1e-6)
    assert log_snr[500].item() == pytest.approx(2 * math.log(alpha[500] / sigma[500]), abs=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50, 400, 700, 999, 1000])
def test_indices_are_as_many_as_asked_and_even_in_log_snr(steps):
    schedule = lp.DDPM()
    indices = schedule.indices(steps)
    assert len(indices) == steps and indices == sorted(set(indices), reverse=True)
    assert indices[-1] >= 1 and indices[0] <= 1000
    if 1 < steps <= 20:
        assert schedule.alpha_sigma(indices[0])[0] ** 2 == pytest.approx(1e-4, rel=0.1) and indices[-1] == 1
        log_snr = np.array([2 * math.log(a / s) for a, s in map(schedule.alpha_sigma, indices)])
        assert np.abs(log_snr - np.linspace(log_snr[0], log_snr[-1], steps)).max() < 0.6  # of 18.4


# ---------------------------------------------------------------------------------------------------------- the sampler


def test_ddim_with_eta_one_is_ddpm():
    """Against the ancestral sampler as Ho et al. write it, with the posterior variance."""
    schedule = lp.DDPM(60, 1e-3, 0.2)
    eps, z = gaussian_eps(schedule, MEAN, COV), normals(50, 3)
    noise = [normals(50, 3, seed=k) for k in range(1, 61)]
    *_, (_, got, _) = lp.ddim(eps, z, schedule.indices(60), schedule, 1.0, noise)
    beta = np.concatenate([[0.0], np.linspace(1e-3, 0.2, 60)])
    abar = np.cumprod(1 - beta)
    for t, n in zip(range(60, 0, -1), noise, strict=True):
        z = (z - beta[t] / math.sqrt(1 - abar[t]) * eps(z, t)) / math.sqrt(1 - beta[t])
        z = z + math.sqrt(beta[t] * (1 - abar[t - 1]) / (1 - abar[t])) * n
    torch.testing.assert_close(got, z, atol=1e-9, rtol=0)


def test_noise_grows_linearly_with_eta():
    """The std of a step is eta sqrt((1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s))."""
    schedule, z, one = lp.DDPM(40, 1e-3, 0.2), normals(5, 3), torch.ones(5, 3).double()
    eps, (a, b) = gaussian_eps(schedule, MEAN, COV), (schedule.alpha_sigma(t) for t in (30, 20))
    for eta in (0.3, 0.7, 1.0):
        ends = [list(lp.ddim(eps, z, [30, 20], schedule, eta, [n, one]))[1][1] for n in (0 * one, one)]
        expected = eta * math.sqrt((b[1] / a[1]) ** 2 * (1 - (a[0] / b[0]) ** 2))
        torch.testing.assert_close(ends[1] - ends[0], expected * one)


@pytest.mark.parametrize("eta, steps, tolerance", [(0.0, 400, 0.04), (0.5, 400, 0.04), (1.0, 1000, 0.04)])
def test_exact_eps_of_a_gaussian_latent_recovers_mean_and_covariance(eta, steps, tolerance):
    schedule, n = lp.DDPM(), 20_000
    g = torch.Generator().manual_seed(5)
    noise = (torch.randn(n, 3, generator=g, dtype=torch.float64) for _ in range(1000))
    eps, start = gaussian_eps(schedule, MEAN, COV), normals(n, 3, seed=9)
    *_, (t, z, _) = lp.ddim(eps, start, schedule.indices(steps), schedule, eta, noise)
    assert t == 0
    assert (z.mean(0) - MEAN).abs().max() < 0.03 + tolerance / 10
    assert (torch.cov(z.T) - COV).abs().max() < tolerance


def test_more_steps_are_closer_and_the_error_is_of_first_order():
    """DDIM against the exact flow of a Gaussian, z_0 = mean + (cov / S_T)^1/2 (z_T - alpha mean): slope one."""
    schedule, z, errors = lp.DDPM(20_000, 1e-4 / 20, 0.05 / 20), normals(100, 1), []
    mean, var = torch.tensor([0.3]).double(), torch.tensor([[0.25]]).double()
    for steps in (25, 50, 100, 200):
        indices = schedule.indices(steps)
        alpha, sigma = schedule.alpha_sigma(indices[0])
        exact = mean + (0.25 / (alpha**2 * 0.25 + sigma**2)) ** 0.5 * (z - alpha * mean)
        *_, (_, got, _) = lp.ddim(gaussian_eps(schedule, mean, var), z, indices, schedule)
        errors.append((got - exact).abs().mean().item())
    slope = np.polyfit(np.log([25, 50, 100, 200]), np.log(errors), 1)[0]
    assert -1.3 < slope < -0.8


def ddim_encode(eps, z, indices, schedule):
    """DDIM with eta = 0 backwards: from z_0 up through increasing indices.  The inverse as steps become many."""
    s = 0
    for t in indices:
        (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
        e = eps(z, max(s, 1))
        z, s = alpha * (z - sigma_s * e) / alpha_s + sigma * e, t
    return z


def test_eta_zero_inverts():
    """Encode to noise and come back: exact as the steps become many."""
    z0, errors = MEAN + normals(40, 3, seed=2) @ FACTOR.T, []
    for T in (500, 2000):
        schedule = lp.DDPM(T, 0.1 / T, 20 / T)
        eps = gaussian_eps(schedule, MEAN, COV)
        noise = ddim_encode(eps, z0, range(1, T + 1), schedule)
        *_, (_, back, _) = lp.ddim(eps, noise, schedule.indices(T), schedule)
        errors.append((back - z0).abs().max().item())
    assert errors[1] < 0.05 and errors[1] < 0.4 * errors[0]
    assert noise.mean(0).abs().max() < 0.5 and 0.6 < noise.std() < 1.4


def test_the_loss_is_zero_where_v_is_right():
    net, g = lp.build(config_of()), torch.Generator().manual_seed(0)
    z0, eps = torch.randn(2, 3, len(net.mean), generator=g)
    t = torch.tensor([1, 300, 900])
    alpha, sigma = net.alpha[t, None], net.sigma[t, None]
    for off in (0.0, 2.0):
        net.v = lambda z, t, c, off=off: alpha * eps - sigma * z0 + off + (z - alpha * z0 - sigma * eps)
        torch.testing.assert_close(lp.loss_of(net, z0, conditions(3), t, eps), torch.full((3,), off**2))


def test_the_times_of_few_steps_are_even_in_log_snr():
    schedule = lp.DDPM(1000, 1e-4, 0.05)
    log_snr = schedule.log_abar - np.log(-np.expm1(schedule.log_abar.clip(max=-1e-12)))
    informative = [t for t in range(1, 1001) if np.exp(schedule.log_abar[t]) >= 1e-4]
    for steps in (2, 10, 20):
        t = schedule.indices(steps)
        assert len(t) == steps and t[0] == informative[-1] and t[-1] == 1
        spacing = np.diff(log_snr[t])
        assert np.abs(spacing - spacing.mean()).max() < 0.7 * spacing.mean()  # log-SNR jumps between the first few t
    assert schedule.indices(1) == [informative[-1]]
    many = schedule.indices(400)
    assert len(many) == 400 and set(range(1, 51)) <= set(many)


def test_guidance_is_the_linear_combination_at_every_w():
    def eps(z, t, condition):
        return z * 0 + torch.where(condition.known, 3.0, 1.0)[:, None]

    z, c = torch.zeros(4, 2), conditions(4)
    for w in (0.0, 0.5, 1.0, 2.0):
        assert lp.guided(eps, c, w)(z, 1).unique().tolist() == [1 + w * 2]


def test_noise_of_a_sample_depends_on_seed_and_index_only():
    net = lp.build(config_of()).eval()
    args = training.parse(lp.make_parser(), ["--steps", "5", "--eta", "0.7", "--precision", "float32"])[0]
    many, film = lp.draw(net, conditions(7), args, CPU)
    few, _ = lp.draw(net, conditions(7).map(lambda c: c[2:5]), args, CPU, keys=[2, 3, 4])
    torch.testing.assert_close(many[2:5], few, atol=1e-5, rtol=0)
    assert [t for t, _ in film] == [*net.schedule.indices(5), 0]
    torch.testing.assert_close(film[-1][1], many)


# ---------------------------------------------------------------------------------------------------------- the network


def test_standardisation_there_and_back():
    net, z = lp.build(config_of()), normals(500, 8).float() * 3 + 7
    net.mean.copy_(z.mean(0))
    net.std.copy_(z.std(0))
    torch.testing.assert_close(net.restore(net.standardise(z)), z, atol=1e-5, rtol=0)
    assert net.standardise(z).mean(0).abs().max() < 1e-5 and (net.standardise(z).std(0) - 1).abs().max() < 1e-5
    again = lp.build(config_of())
    again.load_state_dict(net.state_dict())  # the statistics travel with the weights
    assert torch.equal(again.mean, net.mean) and torch.equal(again.std, net.std)


def test_a_fresh_network_predicts_v_zero_and_the_loss_is_that_of_its_eps():
    net, z0, eps = lp.build(config_of()), normals(6, 8).float(), normals(6, 8, seed=1).float()
    t = torch.tensor([1, 10, 100, 300, 700, 1000])
    z_t = net.alpha[t, None] * z0 + net.sigma[t, None] * eps
    torch.testing.assert_close(net(z_t, t, conditions(6)), net.sigma[t, None] * z_t)
    expected = ((net.sigma[t, None] * z_t - eps) / net.alpha[t, None]).square().mean(1)
    got = lp.loss_of(net, z0, conditions(6), t, eps)
    torch.testing.assert_close(got[:4], expected[:4], rtol=1e-3, atol=0)
    torch.testing.assert_close(got[4:], z0[4:].square().mean(1), rtol=1e-2, atol=0)  # alpha is nothing there: v is -z_0


def test_the_network_sees_time_and_condition_unless_dropped():
    net = lp.build(config_of())
    torch.nn.init.normal_(net.out.weight)
    for block in net.blocks:
        torch.nn.init.normal_(block.linear.weight, std=0.1)
    z, t, other = torch.ones(2, 8), torch.tensor([300, 300]), torch.tensor([300, 400])
    same = conditions(2)._replace(kind=torch.zeros(2, dtype=torch.long), cont=torch.zeros(2, 4))
    turned = torch.tensor([[0.0] * 4, [0, 0.3, 0, 0]])
    for changed in (same._replace(kind=torch.tensor([0, 1])), same._replace(cont=turned)):
        a, b = net(z, t, changed)
        assert not torch.allclose(a, b, atol=1e-4)
        a, b = net(z, t, changed.dropped())
        assert torch.allclose(a, b, atol=1e-6)
    a, b = net(z, other, same) - net.sigma[other, None] * z
    assert not torch.allclose(a, b, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- the latents


def test_encoded_latents_are_those_of_the_training_crystals(vae_run):
    net, config, _ = lp.load_vae(vae_run, CPU)
    latents = lp.encode_all(net, config, 30, CPU, "float32", batch=8)
    x, condition = vae.training_batch(config, 0, None, 30)
    mu, log_var = net.encode(x, condition)
    torch.testing.assert_close(latents["mu"], mu, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(latents["log_var"], log_var, atol=1e-5, rtol=1e-4)
    assert torch.equal(latents["kind"], condition.kind) and torch.equal(latents["cont"], condition.cont)


def test_the_crystals_of_a_file_are_encoded_as_those_rendered_on_the_fly(vae_run, tmp_path):
    net, config, _ = lp.load_vae(vae_run, CPU)
    data.main(["--build", "20", "--out", str(tmp_path / "built.pt")])
    config = config | {"data_path": str(tmp_path / "built.pt")}
    from_file = lp.encode_all(net, config, 7, CPU, "float32", batch=8)  # all that are in it
    on_the_fly = lp.encode_all(net, config | {"data_path": None}, 20, CPU, "float32", batch=8)
    assert all(torch.equal(from_file[key], on_the_fly[key]) for key in ("mu", "log_var", "kind", "cont"))


def test_the_draws_of_a_training_step_are_what_they_were():
    """A run that was started with an older version goes on with the same batches."""
    latents = {"mu": torch.arange(1000.0)[:, None], "log_var": torch.zeros(1000, 1),
               "kind": torch.zeros(1000, dtype=torch.long), "cont": torch.zeros(1000, 4)}
    z, _ = lp.training_batch(config_of(), 5, latents, 6)
    rows = torch.randint(1000, (6,), generator=training.generator(0, 5, 1))
    assert torch.equal(z[:, 0], rows.float())


def test_z_target_is_the_mean_or_a_draw():
    n = 40
    latents = {"mu": torch.arange(n).float()[:, None].repeat(1, 8), "log_var": torch.full((n, 8), math.log(0.04)),
               "kind": torch.arange(n) % 4, "cont": torch.zeros(n, 4)}
    mean, condition = lp.training_batch(config_of(), 3, latents, 4000)
    drawn, _ = lp.training_batch(config_of("--z-target", "sample"), 3, latents, 4000)
    assert torch.equal(mean[:, 0] % 4, condition.kind.float())
    assert (drawn - mean).std().item() == pytest.approx(0.2, rel=0.03) and abs((drawn - mean).mean()) < 0.01


def test_a_fingerprint_is_of_the_weights_and_survives_half_precision(vae_run, tmp_path):
    training.ship(vae_run, tmp_path / "small.pt")
    net, _, found = lp.load_vae(vae_run, CPU)
    assert lp.load_vae(tmp_path / "small.pt", CPU)[2] == found
    with torch.no_grad():
        net.decoder.out.bias[0] += 0.01
    assert lp.fingerprint(net) != found


def test_a_stale_or_damaged_cache_is_made_again_with_a_message(tmp_path, capsys):
    path, made = tmp_path / "latents.pt", []

    def make():
        made.append(1)
        return {"mu": torch.full((2, 3), float(len(made)))}

    first = lp.cached_latents(path, make, {"vae": "a", "n": 2})
    again = lp.cached_latents(path, make, {"vae": "a", "n": 2})
    assert len(made) == 1 and torch.equal(first["mu"], again["mu"]) and capsys.readouterr().out == ""
    other = lp.cached_latents(path, make, {"vae": "b", "n": 2})
    assert len(made) == 2 and other["mu"][0, 0] == 2 and "another VAE" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:200])
    lp.cached_latents(path, make, {"vae": "b", "n": 2})
    assert len(made) == 3 and "damaged" in capsys.readouterr().out
    assert lp.cached_latents(path, make, {"vae": "b", "n": 2})["mu"][0, 0] == 3 and len(made) == 3


# ---------------------------------------------------------------------------------------------------- the command lines


def test_a_run_writes_what_it_says(run):
    names = {"comparison.png", "config.json", "last.pt", "latents.pt", "log.jsonl", "loss.png", "metrics.json",
             "reverse_diffusion.gif", "samples.npz", "samples.png"}
    assert {p.name for p in run.iterdir()} == names
    numbers = json.loads((run / "metrics.json").read_text())
    for prior in ("normal", "mop", "diffusion"):
        wanted = {"crystal_error_mean", "mass_w1", "mass_w1_floor", "fft_radial_l2", "fft_radial_l2_floor"}
        assert wanted <= set(numbers[prior])
    samples = np.load(run / "samples.npz")
    error = metrics.crystal_error(torch.from_numpy(samples["x"]), samples["kind"], samples["theta"]).error.mean().item()
    assert numbers["diffusion"]["crystal_error_mean"] == pytest.approx(error, abs=1e-6) and samples["z"].shape == (4, 8)
    mu, weights = torch.load(run / "latents.pt")["latents"]["mu"], training.load_checkpoint(run)["ema"]
    torch.testing.assert_close(weights["mean"], mu.mean(0))
    torch.testing.assert_close(weights["std"], mu.std(0))
    assert len(json.loads((run / "log.jsonl").read_text().splitlines()[-1])["bins"]) == 8


def test_sampling_again_is_the_same_to_the_bit_and_other_samplers_are_not(run, vae_run, tmp_path, monkeypatch):
    draws = {}

    def latents_only(net, vae_net, vae_config, args, out, device):  # no pictures, no numbers
        training.save_npz(out / "samples.npz", z=lp.draw(net, data.asked_for(args.n), args, device)[0].numpy())
        return {}

    monkeypatch.setattr(lp, "sample", latents_only)
    for name, more in (("same", ()), ("eta", ("--eta", "1")), ("cfg", ("--cfg", "2")), ("seed", ("--seed", "1"))):
        lp.main(["--ckpt", str(run), "--out", str(tmp_path / name), "--steps", "8", "--n", "4", "--device", "cpu",
                 "--precision", "float32", *more])
        draws[name] = np.load(tmp_path / name / "samples.npz")["z"]
    assert np.array_equal(draws.pop("same"), np.load(run / "samples.npz")["z"])
    assert all(not np.array_equal(z, np.load(run / "samples.npz")["z"]) for z in draws.values())


def test_resume_is_bit_for_bit(run, vae_run, tmp_path, monkeypatch):
    words = ["--train", "--vae", str(vae_run), "--out", str(tmp_path / "half"), *TINY]
    args, _ = training.parse(lp.make_parser(), words)
    net, vae_config, found = lp.load_vae(vae_run, CPU)
    args.z_dim, args.vae_fingerprint = 8, found
    (tmp_path / "half").mkdir()
    latents = lp.encode_all(net, vae_config, 60, CPU, "float32")
    asked = []

    class Stop(list):
        def __bool__(self):
            return len(asked) >= 2 or asked.append(1) is not None

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "finish_the_step", lambda: contextlib.nullcontext(Stop()))
        lp.train(vars(args), tmp_path / "half", CPU, latents)
    stopped = training.load_checkpoint(tmp_path / "half")["step"]
    assert 0 < stopped < 4
    lp.main(["--resume", "--out", str(tmp_path / "half")])
    a, b = training.load_checkpoint(run), training.load_checkpoint(tmp_path / "half")
    for part in ("model", "ema"):
        assert a[part].keys() == b[part].keys() and all(torch.equal(a[part][key], b[part][key]) for key in a[part])


def test_bad_input_is_one_line(run, vae_run, tmp_path, mistake):
    ask = ["--ckpt", run, "--out", tmp_path / "x"]
    for flag in ("--eta", "--beta-end", "--cfg", "--lr"):
        mistake(lp.main, *ask, flag, "nan")
    assert "0, 1" in mistake(lp.main, *ask, "--eta", "1.5") and "0, 1" in mistake(lp.main, *ask, "--eta", "-0.1")
    assert "T is 40" in mistake(lp.main, *ask, "--steps", "41")
    assert "contradicts" in mistake(lp.main, *ask, "--T", "50", "--steps", "8")
    assert "contradicts" in mistake(lp.main, *ask, "--steps", "8", "--z-dim", "32")
    words = ["--uncond", "--z-dim", "8", "--train-steps", "1", "--batch-size", "4", "--precision", "float32"]
    (other := tmp_path / "other").mkdir()
    vae.train(vars(training.parse(vae.make_parser(), [*words, "--seed", "1"])[0]), other, CPU)
    assert "another VAE" in mistake(lp.main, *ask, "--steps", "8", "--vae", other)
    assert "no checkpoint" in mistake(lp.main, *ask, "--steps", "8", "--vae", tmp_path / "none.pt")
    assert "made by" in mistake(lp.main, "--train", "--vae", run, "--out", tmp_path / "x", *TINY)
    assert "resume" in mistake(lp.main, "--train", "--vae", vae_run, "--out", run, *TINY)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["latent_prior", "latent_prior_cond"])
def test_what_ships_draws_crystals(name, tmp_path):
    path = ROOT / "assets" / "checkpoints" / f"{name}.pt"
    if not path.exists():
        pytest.skip(f"{path.name} does not ship")
    lp.main(["--ckpt", str(path), "--n", "12", "--steps", "20", "--device", "cpu", "--out", str(tmp_path / "run")])
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["diffusion"]["crystal_error_mean"] < 0.03 and numbers["mop"]["crystal_error_mean"] < 0.03
    assert path.stat().st_size < 12e6
