"""Sharp digits from a bottleneck of 12 numbers: a beta-VAE, and the same one with a perceptual and an adversarial loss.

    simple    : loss = |x - x_hat|^2 + beta KL(q(z | x) || N(0, I)),          x_hat = decoder(z),   z = mu + s eps
    composite : loss + p d(x, x_hat) + a w log(1 + exp(-D(y)))         (the last term for the decoder alone)
    perceptual: d(x, y) = sum over layers, mean over places of |f(x)/|f(x)| - f(y)/|f(y)||^2, f a classifier's features
    adversary : D minimises log(1 + exp(-D(x))) + log(1 + exp(D(y))), a logit for every patch of an image,
                y = reconstructions and samples decoder(z), z ~ N(0, I)
    weight    : w = min(cap, |g_rec| / |g_adv|), norms of the gradients at the last layer of the decoder

    python vae_gan.py --compare

draws 10,000 samples from each scheme with the checkpoints that ship, and writes compare.png, samples_simple.npz and
samples_composite.npz, metrics.json and config.json to outputs/vae_gan/mnist_compare_seed0/, in about a minute.

Other lessons:

    python vae_gan.py --train --config configs/mnist_composite.json           train (downloads MNIST), then sample
    python vae_gan.py --train --scheme simple                                 the same network without the adversary
    python vae_gan.py --train --scheme composite --perceptual 0               what the perceptual loss was good for
    python vae_gan.py --compare --ckpt RUN1 --against RUN2                    two runs of your own, side by side

A squared error asks for the mean of all digits that z leaves possible, and a mean of sharp digits is a blurred one.
The adversary asks for one that could be real, and because it sees samples of the prior it asks this everywhere in
latent space, not only where the encoder puts data.  Nothing of it reaches the encoder: what z means stays a matter of
reconstruction and KL.
VAE-GAN: Larsen et al. 2016 (arXiv 1512.09300).  PatchGAN: Isola et al. 2017 (1611.07004).  LPIPS: Zhang et al. 2018
(1801.03924).  Adaptive weight: Esser et al. 2021 (2012.09841).  Spectral norm: Miyato et al. 2018 (1802.05957).
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy>=2.2,<3", "matplotlib>=3.10,<4", "imageio>=2.37,<3", "pillow>=11",
#                 "tqdm>=4.66,<5", "pooch>=1.8,<2"]
# ///

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import data
import metrics
import pictures
import training
from vae import ACTIVE, channels_last, kl_nats, loss_of, reparameterise, update_ema

MODEL_FLAGS = ("scheme", "z_dim", "beta")  # the checkpoint knows these
SCHEMES = ("simple", "composite")
EXAM, PART = 512, 250  # test digits while training; images that are worked on at a time
GAIN = 40  # of the logits of D
RAMP = 500  # steps over which the adversary's weight rises, once it has started
LOOK_WIDTH, LOOK_STEPS = 16, 500  # the perceptual network
JUDGE_WIDTH, JUDGE_STEPS, N_JUDGED = 24, 1500, 10_000  # the held-out classifier, and the real digits it is shown
CURVES = (("squared error per pixel: in training, of test digits", "mse_per_pixel", "held_out_mse"),
          ("what D calls real: 0.5 where it cannot tell", "d_real", "d_fake"),
          ("adaptive weight w of the adversary", "adversarial_weight"))
SURE = 0.9  # a sample that the judge calls a digit with more than this probability counts as one

# ---------------------------------------------------------------------------------------------------------- the network


class Encoder(nn.Module):
    """mu and log s^2 of q(z | x) for images [N, 1, 28, 28]: convolutions on 4 x 4 cells, then all places."""

    def __init__(self, z_dim, width=64):
        super().__init__()
        self.z_dim = z_dim
        self.conv1, self.conv2 = nn.Conv2d(16, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Sequential(nn.Linear(49 * width, 256), nn.SiLU(), nn.Linear(256, 2 * z_dim))

    def forward(self, x):
        h = F.silu(self.conv1(channels_last(F.pixel_unshuffle(x, 4))))
        h = F.silu(self.conv2(h))
        mu, log_var = self.head(h.flatten(1)).float().chunk(2, 1)
        return mu, log_var.clamp(-14, 6)  # (N, z_dim) each


class Decoder(nn.Module):
    """x_hat of p(x | z), [N, 1, 28, 28] in (0, 1): the mirror of the encoder."""

    def __init__(self, z_dim, width=64):
        super().__init__()
        self.width = width
        self.head = nn.Sequential(nn.Linear(z_dim, 256), nn.SiLU(), nn.Linear(256, 49 * width))
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 16, 3, padding=1)

    def forward(self, z):
        h = channels_last(F.silu(self.head(z)).view(-1, self.width, 7, 7))
        h = F.silu(self.conv1(h))
        h = h + F.silu(self.conv2(h))
        return F.pixel_shuffle(self.out(h), 4).float().sigmoid()


class VAE(nn.Module):
    """Encoder and decoder, 1.7 M parameters."""

    def __init__(self, z_dim=12):
        super().__init__()
        self.encode, self.decode = Encoder(z_dim), Decoder(z_dim)


class Critic(nn.Module):
    """D of a PatchGAN: logits [N, 1, 7, 7], each of a patch of 28 x 28 pixels, 4 pixels apart: overlapping.

    Large patches, because prior samples are to be whole digits; the one in the middle is the image.  Spectral norms
    keep every layer's gain at 1 at most, so that D stays smooth where it is sure; the factor at the end lets it be sure
    at all: without it all logits lie near 0, and a hopeless sample pulls no harder than a good one.
    """

    def __init__(self, width=64):
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(16, width, 3, padding=1))
        self.conv2 = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.conv3 = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        self.out = spectral_norm(nn.Conv2d(width, 1, 1))

    def forward(self, x):
        h = channels_last(F.pixel_unshuffle(x, 4))
        for layer in (self.conv1, self.conv2, self.conv3):
            h = F.leaky_relu(layer(h), 0.2)
        return GAIN * self.out(h).float()


class Classifier(nn.Module):
    """Digits from images: logits [N, 10], and the features on the way: the perceptual network and the judge."""

    def __init__(self, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(4, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.head, self.out = nn.Linear(98 * width, 64), nn.Linear(64, 10)

    def features(self, x):
        """After each layer: [N, width, 14, 14], [N, 2 width, 7, 7], [N, 2 width, 7, 7]."""
        maps = [F.leaky_relu(self.conv1(channels_last(F.pixel_unshuffle(x, 2))), 0.1)]
        maps.append(F.leaky_relu(self.conv2(maps[-1]), 0.1))
        return [*maps, F.leaky_relu(self.conv3(maps[-1]), 0.1)]

    def forward(self, x):
        last = F.leaky_relu(self.head(self.features(x)[-1].flatten(1)), 0.1).float()  # (N, 64)
        return self.out(last), last


def seeded(make, seed):
    """make(), with fresh weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(memory_format=torch.channels_last)


def build(config):
    """The VAE a config describes: of either scheme, the same fresh weights for the same seed."""
    return seeded(lambda: VAE(config["z_dim"]), config["seed"])


# ------------------------------------------------------------------------------------------------------------- the loss


def perceptual(classifier, x, y):
    """LPIPS in our own features: unit vectors over channels, squared differences summed over them, mean over places."""
    pairs = zip(classifier.features(x), classifier.features(y), strict=True)
    units = ((F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)) for a, b in pairs)
    return sum((a - b).square().sum(1).mean() for a, b in units)


def critic_loss(real, fake):
    """What D minimises, given its logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def adversarial_loss(fake):
    """What the decoder minimises, given the logits of what it made."""
    return F.softplus(-fake).mean()


def adaptive_weight(g_rec, g_adv, cap):
    """w = min(cap, |g_rec| / |g_adv|): the adversary pulls as hard at the last layer as the reconstruction does."""
    return (g_rec.norm() / g_adv.norm().clamp_min(1e-12)).clamp_max(cap)


# --------------------------------------------------------------------------------------------------------- the training


def train_classifier(x_u8, labels, seed, width, steps, device, precision, n=128):
    """A classifier of the labels, in evaluation mode and without gradients of its own."""
    net = seeded(lambda: Classifier(width), seed).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01, fused=True)
    for step in range(steps):
        rows = torch.randint(len(x_u8), (n,), generator=training.generator(seed, step, 3))
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate(step, steps, 3e-3, warmup=50)
        with training.autocast(device, precision):
            logits, _ = net(x_u8[rows].to(device).float() / 255)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels[rows].to(device)).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def training_batch(config, step, x_u8, n):
    """x in [0, 1] of training step `step`, a function of (seed, step)."""
    return x_u8[torch.randint(len(x_u8), (n,), generator=training.generator(config["seed"], step, 1))].float() / 255


@torch.no_grad()
def reconstruct(net, x, device, precision):
    """From the posterior means: x_hat [N, 1, 28, 28], and the KL of each latent in nats [N, z_dim]."""
    x_hat, kl = [], []
    for part in x.split(PART):
        with training.autocast(device, precision):
            mu, log_var = net.encode(part.to(device))
            x_hat.append(net.decode(mu).cpu())
        kl.append(kl_nats(mu, log_var).cpu())
    return torch.cat(x_hat), torch.cat(kl)


def train(config, out, device, checkpoint=None):
    """Train until config["train_steps"], or until Ctrl-C; writes last.pt, log.jsonl and loss.png."""
    precision, seed = config["precision"], config["seed"]
    x_u8, labels = data.load_mnist(config["data_dir"], train=True)
    exam = data.load_mnist(config["data_dir"], train=False)[0][:EXAM].float() / 255
    net, composite = build(config).to(device), config["scheme"] == "composite"
    ema, critic = training.start_ema(net), seeded(Critic, seed + 1).to(device)
    optimizer, critic_optimizer = (
        torch.optim.AdamW(module.parameters(), lr=config["lr"], betas=(0.5, 0.99), weight_decay=0.0, fused=True)
        for module in (net, critic))
    start = training.restore(checkpoint, net, ema, optimizer, out)
    if checkpoint and composite:
        training.load_weights(critic, checkpoint["critic"], out / "last.pt")
        training.load_optimizer(critic_optimizer, checkpoint["critic_optimizer"], out / "last.pt")
    look = None
    if composite and config["perceptual"]:  # depends on seed and data alone, so a resumed run has the same one
        look = train_classifier(x_u8, labels, seed + 1, LOOK_WIDTH, LOOK_STEPS, device, precision)
    decoder = list(net.decode.parameters())
    last = next(i for i, p in enumerate(decoder) if p is net.decode.out.weight)
    log, sums, clock = training.Log(out / "log.jsonl", start), {}, training.stopwatch()
    every = min(250, config["save_every"])

    with training.finish_the_step() as stop:
        for step in (bar := training.steps(start, config["train_steps"])):
            x = training_batch(config, step, x_u8, n := config["batch_size"]).to(device)
            g = training.generator(seed, step, 0)
            eps, z_prior = (torch.randn(n, config["z_dim"], generator=g).to(device) for _ in range(2))

            for one, lr in ((optimizer, config["lr"]), (critic_optimizer, config["critic_lr"])):
                for group in one.param_groups:
                    group["lr"] = training.learning_rate(step, config["train_steps"], lr)
            beta = config["beta"] * min(1, (step + 1) / max(1, config["beta_warmup"]))
            adversary = composite and config["adversarial"] > 0 and step >= config["critic_start"]
            with training.autocast(device, precision):
                mu, log_var = net.encode(x)
                x_hat = net.decode(reparameterise(mu, log_var, eps))
                d = perceptual(look, x, x_hat) if look else x.new_zeros(())
            loss, terms = loss_of(x, x_hat, mu, log_var, beta, config["free_bits"])
            loss = loss + config["perceptual"] * d
            optimizer.zero_grad()
            loss.backward(retain_graph=adversary)
            if adversary:
                with training.autocast(device, precision):
                    fake = critic(torch.cat([x_hat[: n // 2], net.decode(z_prior)]))
                    real = critic(x)
                g_adv = torch.autograd.grad(adversarial_loss(fake), decoder, retain_graph=True)  # not by the encoder
                w = adaptive_weight(decoder[last].grad, g_adv[last], config["adversarial_cap"])
                ramp = min(1, (step + 1 - config["critic_start"]) / RAMP)
                torch._foreach_add_([p.grad for p in decoder], g_adv, alpha=config["adversarial"] * ramp * w.item())
                critic_optimizer.zero_grad()
                critic_loss(real, fake).backward(inputs=list(critic.parameters()))
                critic_optimizer.step()
                terms |= {"adversarial_weight": w, "d_real": real.sigmoid().mean(), "d_fake": fake.sigmoid().mean()}
            # clipped apart, so that the adversary cannot reach the encoder by way of a common norm
            norm = sum(nn.utils.clip_grad_norm_(part.parameters(), 50.0) for part in (net.encode, net.decode))
            training.check_finite(loss.item() + norm.item(), step + 1, out)
            optimizer.step()
            update_ema(ema, net, config["ema_decay"], step)

            for key, value in {"loss": loss, "perceptual": d, **terms}.items():
                sums.setdefault(key, []).append(value.item())
            done = step + 1
            if done % every == 0 or done == config["train_steps"]:
                mean = {key: sum(values) / len(values) for key, values in sums.items()}
                held_out = (reconstruct(ema, exam, device, precision)[0] - exam).square().mean().item()
                log.add(step=done, beta=beta, **mean, held_out_mse=held_out, seconds=round(clock(), 1))
                told = {key: f"{mean[key]:.2f}" for key in ("d_real", "d_fake") if key in mean}
                bar.set_postfix(loss=f"{mean['loss']:.2f}", held_out_mse=f"{held_out:.4f}", **told)
                sums = {}
            if done % config["save_every"] == 0 or done == config["train_steps"] or stop:
                more = dict(critic=critic.state_dict(), critic_optimizer=critic_optimizer.state_dict())
                training.save_run(out, "vae_gan", config, done, net, ema, optimizer, **(more if composite else {}))
                pictures.loss_curve(out / "loss.png", log.lines, *CURVES)
            if stop:
                training.leave(done, config["train_steps"], out)
    return ema


# ----------------------------------------------------------------------------------------------------------- the judge


@torch.no_grad()
def judge_of(net, x):
    """The held-out classifier's probability of its best digit [N], and its features [N, 64]; float32 throughout."""
    parts = [net(part) for part in x.split(PART)]
    logits, features = map(torch.cat, zip(*parts, strict=True))
    return logits.softmax(1).amax(1), features


def make_judge(args, out, device):
    """Train the held-out classifier, and write it with what it says of real digits into judge.pt."""
    train_set, test_set = (data.load_mnist(args.data_dir, train=part) for part in (True, False))
    net = train_classifier(*train_set, args.seed + 1000, JUDGE_WIDTH, JUDGE_STEPS, device, args.precision).cpu()
    net = net.half().float()  # as it ships
    x, x_train = (images[:N_JUDGED].float() / 255 for images, _ in (test_set, train_set))
    (sure, features), (_, others) = judge_of(net, x), judge_of(net, x_train)
    right = torch.cat([net(part)[0].argmax(1) for part in x.split(PART)]) == test_set[1][:N_JUDGED]
    mean, cov = (torch.from_numpy(v) for v in metrics.feature_moments(features))
    said = {"accuracy": right.double().mean().item(), "n_real": len(x),
            "share_sure": (sure > SURE).double().mean().item(), "frechet_floor": metrics.frechet(others, mean, cov),
            "gradient_energy": metrics.gradient_energy(x)}
    weights = {key: value.half() for key, value in net.state_dict().items()}
    config = {"scheme": "judge", "width": JUDGE_WIDTH, "seed": args.seed + 1000}
    digits, labels = (part[:32].clone() for part in test_set)
    training.save_checkpoint(out / "judge.pt", dict(script="vae_gan", config=config, step=JUDGE_STEPS, ema=weights,
                                                    mean=mean, cov=cov, said=said, digits=digits, labels=labels))
    return said


def load_judge(path):
    """The held-out classifier, and the file's other entries.  Raises ValueError for another kind of checkpoint."""
    checkpoint = training.load_checkpoint(path, "vae_gan")
    if checkpoint["config"].get("scheme") != "judge":
        raise ValueError(f"{path} holds no judge; make one with --make-judge")
    says = "accuracy", "n_real", "share_sure", "frechet_floor", "gradient_energy"
    try:
        shapes = [tuple(checkpoint[key].shape) for key in ("mean", "cov", "digits", "labels")]
        n = len(checkpoint["labels"])
        whole = shapes == [(64,), (64, 64), (n, 1, 28, 28), (n,)]
        whole = whole and all(type(checkpoint["said"][key]) in (int, float) for key in says)
        net = Classifier(checkpoint["config"]["width"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError):
        whole = False
    if not whole:
        raise ValueError(f"the judge in {path} is damaged; make one with --make-judge")
    return training.load_weights(net, checkpoint["ema"], path).eval().requires_grad_(False), checkpoint


# --------------------------------------------------------------------------------------------------------- the sampling


@torch.no_grad()
def draw(net, n, seed, device, precision):
    """Samples [n, 1, 28, 28] of the prior.  The noise of sample i depends on (seed, i) only."""
    out = []
    for rows in torch.arange(n).split(PART):
        z = training.noise_of([training.generator(seed, 1, i) for i in rows.tolist()], (net.encode.z_dim,), device)
        with training.autocast(device, precision):
            out.append(net.decode(z).cpu())
    return torch.cat(out)


def report(net, judge, real, args, device):
    """The numbers of one network, its samples [n, 1, 28, 28], the 32 test digits that ship, reconstructed as well."""
    digits, here = real["digits"].float() / 255, Path(args.data_dir, "MNIST", "raw").is_dir()
    x = draw(net, args.n, args.seed, device, args.precision)
    sure, features = judge_of(judge, x)
    tests = data.load_mnist(args.data_dir, train=False)[0].float() / 255 if here else digits
    x_hat, kl = reconstruct(net, tests, device, args.precision)
    said = real["said"]
    return {"n": args.n, "frechet": metrics.frechet(features, real["mean"], real["cov"]),
            "share_sure": (sure > SURE).double().mean().item(),
            "gradient_energy": metrics.gradient_energy(x) / said["gradient_energy"],
            "reconstruction_mse": (x_hat - tests).square().mean().item(), "n_reconstructed": len(tests),
            "reconstruction_gradient_energy": metrics.gradient_energy(x_hat) / metrics.gradient_energy(tests),
            "kl_nats": kl.sum(1).mean().item(), "active_latents": int((kl.mean(0) > ACTIVE).sum()),
            "real": said}, x, digits, reconstruct(net, digits, device, args.precision)[0]


def table(results):
    """Print the numbers of one scheme, or of both with their ratio, beside those of real digits."""
    names, of = list(results), next(iter(results.values()))
    said = of["real"]
    rows = {"frechet": ("Frechet distance of samples", said["frechet_floor"]),
            "gradient_energy": ("their gradient energy / real", 1),
            "share_sure": (f"share of them with p > {SURE}", said["share_sure"]),
            "reconstruction_mse": ("reconstruction MSE per pixel", 0),
            "reconstruction_gradient_energy": ("gradient energy / real", 1), "kl_nats": ("KL, nats", "")}
    heads = [*names, "real", *["ratio"][: len(names) - 1]]
    print(f"{'':30}" + "".join(f"{head:>11}" for head in heads))
    for key, (label, real) in rows.items():
        values = [results[name][key] for name in names]
        ratio = [values[1] / values[0]] if len(values) > 1 and values[0] else []
        print(f"{label:30}" + "".join(f"{v:11.4g}" if v != "" else " " * 11 for v in [*values, real, *ratio]))
    print(f"{of['n']:,} samples; Frechet distance in the features of a classifier held out of training (accuracy "
          f"{said['accuracy']:.1%}), to {said['n_real']:,} test digits;\nits floor is that of training digits; "
          f"reconstructions of {of['n_reconstructed']:,} test digits")


def panels(path, columns):
    """A PNG: blocks of 8 x 4 digits side by side.  columns: a heading and images [32, 1, 28, 28] each."""
    figure, axes = pictures.plt.subplots(1, len(columns), figsize=(2.7 * len(columns), 5.6), layout="constrained")
    for ax, (heading, x) in zip(axes, columns.items(), strict=True):
        ax.imshow(pictures.grid_image(x[:32, 0].clamp(0, 1).numpy(), 4, 2))
        ax.set_title(heading, fontsize=11)
        ax.set_axis_off()
    pictures.save_figure(path, figure)


def sample(nets, judge, args, out, device):
    """Numbers, pictures and samples of one network, or of both schemes.  nets: by scheme; judge: of `load_judge`."""
    clock, results, columns = training.stopwatch(), {}, {}
    for scheme, net in nets.items():
        results[scheme], x, digits, x_hat = report(net, *judge, args, device)
        columns |= {"test digits": digits, f"{scheme}: reconstructions": x_hat, f"{scheme}: z from N(0, I)": x}
        training.save_npz(out / f"samples_{scheme}.npz", x=x.numpy())
    table(results)
    panels(out / ("compare.png" if len(nets) > 1 else "samples.png"), columns)
    return results | {"seconds": clock()}


# ----------------------------------------------------------------------------------------------------- the command line


def make_parser():
    parser = training.new_parser("vae_gan.py", __doc__)
    add = parser.add_argument_group("model and data (a checkpoint knows its own)").add_argument
    add("--scheme", choices=SCHEMES, default="composite",
        help="simple: the VAE alone; composite: with perceptual loss and adversary (default %(default)s)")
    add("--data-dir", metavar="DIR", default="data",
        help="folder that holds MNIST/raw, or that it is downloaded to (default %(default)s)")
    add("--z-dim", type=training.number(int, 1, 1024), default=12, help="latents (default %(default)s)")
    add("--beta", type=training.number(float, 0, 1e6, open_low=True), default=3.0,
        help="weight of the KL beside the squared error of an image; pixel variance is beta / 2 (default %(default)s)")
    add("--beta-warmup", type=training.number(int, 0, 10**9), default=500, metavar="STEPS",
        help="beta rises from 0 over so many steps (default %(default)s)")
    add("--free-bits", type=training.number(float, 0, 1e6), default=0.0,
        help="nats a latent may hold before its KL costs more: sum_j max(KL_j, this) (default %(default)s)")
    add = parser.add_argument_group("composite scheme").add_argument
    add("--perceptual", type=training.number(float, 0, 1e6), default=10.0,
        help="weight p of the perceptual distance; 0 switches it off (default %(default)s)")
    add("--adversarial", type=training.number(float, 0, 1e6), default=1.0,
        help="weight a of the adversary, beside the adaptive one; 0 switches it off (default %(default)s)")
    add("--adversarial-cap", type=training.positive, default=100.0, help="cap of w (default %(default)s)")
    add("--critic-start", type=training.number(int, 0, 10**9), default=500, metavar="STEPS",
        help=f"the adversary is frozen for so many steps, then its weight rises for {RAMP} (default %(default)s)")
    add("--critic-lr", type=training.positive, default=2e-3, help="learning rate of D (default %(default)s)")
    add = parser.add_argument_group("sampling").add_argument
    add("--n", "--n-samples", type=training.number(int, 2, 10**7), default=10_000,
        help="samples of the prior (default %(default)s)")
    add("--compare", action="store_true", help="both schemes side by side: the table and the picture")
    add("--against", metavar="PATH", help="with --compare: run or checkpoint of composite, --ckpt being that of simple")
    add("--judge", metavar="FILE",
        help="the held-out classifier and what it says of real digits (default: the one that ships)")
    add("--make-judge", action="store_true", help="train such a classifier, and write judge.pt")
    training.shared_flags(parser, train_steps=5000, batch_size=64, lr=1e-3)
    return parser


def opened(args, given):
    """The checkpoints to sample from, by scheme: one, or with --compare two.  Empty for a training from nothing."""
    if not args.compare:
        if args.against:
            raise ValueError("--against is the second run of --compare: add that")
        checkpoint = training.open_checkpoint(args, given, "vae_gan", f"vae_gan_{args.scheme}.pt")
        if checkpoint:
            training.take_model_flags(args, given, checkpoint, MODEL_FLAGS)
        return {args.scheme: checkpoint} if checkpoint else {}
    if args.train or args.resume:
        raise ValueError("--compare samples from two trained networks: leave --train and --resume out")
    found = {}
    for scheme, path in zip(SCHEMES, (args.ckpt, args.against), strict=True):
        path = path or training.SHIPPED / f"vae_gan_{scheme}.pt"
        found[scheme] = training.load_checkpoint(path, "vae_gan", args.parser)
        if found[scheme]["config"].get("scheme") != scheme:
            raise ValueError(f"{path} is of the scheme {found[scheme]['config'].get('scheme')}, not {scheme}")
    if any(not {"z_dim", "seed"} <= set(checkpoint["config"]) for checkpoint in found.values()):
        raise ValueError("one of the two does not say its z_dim or its seed: it is damaged, or of another version")
    z_dims = [checkpoint["config"]["z_dim"] for checkpoint in found.values()]
    if z_dims[0] != z_dims[1]:
        raise ValueError(f"the two networks have {z_dims[0]} and {z_dims[1]} latents: no fair comparison")
    return found


def main(argv=None):
    parser = make_parser()
    with training.one_line_errors(parser):
        args, given = training.parse(parser, argv)
        if args.make_judge and (args.train or args.resume or args.compare or args.ckpt):
            raise ValueError("--make-judge trains the judge and nothing else")
        checkpoints = {} if args.make_judge else opened(args, given)
        judge = None if args.make_judge else load_judge(args.judge or training.SHIPPED / "mnist_judge.pt")
        if args.train and not args.resume and args.epochs:
            training.settle_epochs(args, given, len(data.load_mnist(args.data_dir, train=True)[0]))
        device = training.pick_device(args.device)
        args.precision = training.pick_precision(args.precision, device)
        config = vars(args)
        nets = {}
        if not args.train:
            nets = {k: training.load_net(build(c["config"]), c, args, device) for k, c in checkpoints.items()}
        what = "judge" if args.make_judge else "compare" if args.compare else args.scheme
        run = None if args.compare or args.make_judge else args.ckpt
        out = training.run_folder(args, "vae_gan", f"mnist_{what}_seed{args.seed}", run)
        print(f"device {device}, {args.precision}; output in {out}")
        if args.train:
            training.save_json(out / "config.json", config)
            nets = {args.scheme: train(config, out, device, checkpoints.get(args.scheme))}
        result = make_judge(args, out, device) if args.make_judge else sample(nets, judge, args, out, device)
        training.close_run(out, config, result)


if __name__ == "__main__":
    main()
