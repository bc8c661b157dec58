"""Hostile inputs: what is thrown at the scripts.  Input i is a function of (seed, i).

Command lines of random and of mutated valid words; checkpoints, data sets, configs, archives and frames that were
spoilt (fuzz_spoilt.py); folders that hold something already; environments.
"""

import gzip
import random
import struct
from pathlib import Path
from typing import NamedTuple

from common import cli
from common.checkpoints import SHIPPED

from fuzz_spoilt import scramble, spoilt_archive, spoilt_checkpoint, spoilt_json, spoilt_png
from fuzz_world import MORE, RUNS

KINDS = {  # of inputs, and how many there are of each
    "argv": 11,
    "checkpoint": 3,
    "resume": 2,
    "data set": 1,
    "config": 2,
    "frames": 1,
    "idx": 1,
    "archive": 1,
    "folder": 2,
    "environment": 1,
}
NUMBERS = ["0", "-1", "-0.0", "1", "2", "3", "0.5", "1.5", "1e-300", "1e308", "1e999", "nan", "inf", "-inf", "", " "]
NUMBERS += [" 2", "2 ", "1_0", "0x10", "1e3", "٣", "two", "1,5", "1/2", "--1", "9" * 30, "9" * 5000, "1e-400"]
NUMBERS += ["True", "None", "30deg", "61deg", "deg", "nandeg", "honeycomb"]
JUNK = ["", "-", "--", "---", "-x", "--nope", "--nope=1", "=", "--=1", "@in/file", "x", "-1", "--help=1", "--train=yes"]
JUNK += ["--seed=0=0", "\udc80", "\0", "💎", "%s", "%(prog)s", "{}", "../..", "-h1"]
JUNK += ["--n\u00a05", "a b", "\n", "\t--n"]
VARIABLES = {  # that mean something to us, to argparse, tqdm or torch; two real processes would wait for each other
    "RANK": ["0", "1", "7", "-1", "x", ""],
    "WORLD_SIZE": ["0", "1", "2", "-1", "x", "1.5", ""],
    "LOCAL_RANK": ["0", "1", "x", ""],
    "COLUMNS": ["0", "1", "2", "20", "-5", "x", "9" * 30],
    "LINES": ["0", "x"],
    "HOME": ["", "/nowhere", "/dev/null", "\udcff"],
    "MPLBACKEND": ["", "x", "module://nope", "QtAgg"],
    "OMP_NUM_THREADS": ["0", "x"],
    "TERM": ["", "dumb"],
}
SOMEBODYS = ["notes.txt", "thesis/chapter.tex", ".secret", "table.csv", "frames.zip"]  # files that no script makes
OURS = ["samples.npz", "samples.png", "config.json", "metrics.json", "log.jsonl", "loss.png", "last.pt", "final.npy"]
DEVICES = ["cpu", "auto", "cuda", "cuda:9", "cuda:x", "mps", "meta", "cpu:1", "cpu:x", "xpu", "", "CPU", "gpu"]

# -------------------------------------------------------------------------------------------------- command lines


def value_for(rng, world, field):
    """Something to say to a flag: often what it wants, in kind."""
    about = field.metadata
    if about["choices"]:
        words = [str(choice) for choice in about["choices"]]
        return rng.choice([*words, "", "X", words[0][:-1], "1"])
    if field.name == "device":
        return rng.choice(DEVICES)
    if about["parse"] is cli.path or "str" in str(field.type):
        return rng.choice([*world.paths, rng.choice(NUMBERS), rng.choice(JUNK)])
    return rng.choice(NUMBERS)


def soup(rng, world, name):
    """Flags of the script in any spelling, with values or without."""
    fields = world.fields(name) if name in world.configs else []
    words = []
    for _ in range(rng.randrange(5)):
        if not fields or rng.random() < 0.15:
            words.append(rng.choice((rng.choice(JUNK), rng.choice(world.paths))))
            continue
        field = rng.choice(fields)
        if field.metadata["many"] == "words":
            words.append(rng.choice(("all", "hero", "audit", "latent", "x")))
            continue
        flag = rng.choice((cli.spelt(field.name), field.metadata["also"] or cli.spelt(field.name)))
        under = "--" + flag[2:].replace("-", "_")
        flag = rng.choice((flag, flag, flag, flag, under, flag[: rng.randrange(3, 9)]))
        value = value_for(rng, world, field)
        wants = (field.type is not bool) != (rng.random() < 0.1)
        if not wants:
            words.append(flag)
        elif rng.random() < 0.4:
            words.append(f"{flag}={value}")
        else:
            words += [flag, value]
    return words


def mutated(rng, words, world):
    """A command line with a word lost, doubled, moved or misspelt."""
    words = list(words)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        i = rng.randrange(len(words)) if words else 0
        what = rng.randrange(6)
        if what == 0:
            del words[i : i + 1]
        elif what == 1:
            words[i:i] = words[i : i + 2]
        elif what == 2:
            rng.shuffle(words)
        elif what == 3 and words:
            words[i] = rng.choice((*NUMBERS, *JUNK, *world.paths))
        elif what == 4 and words and words[i]:
            k = rng.randrange(len(words[i]))
            words[i] = words[i][:k] + rng.choice("-_=aA1. \0é") + words[i][k + rng.randrange(2) :]
        else:
            words.insert(i, rng.choice(JUNK))
    return words


# -------------------------------------------------------------------------------------------------- the inputs
# Each kind returns (script, words, files): what to lay out below the working folder before the script is called with
# these words, {name: bytes, a folder to copy, Path() for an empty one, () for nothing, None for a pipe, text: a link}.


def command_line(rng, world, label):
    name = rng.choice([*world.configs, "common.runs"])
    runs = [key for key in RUNS if RUNS[key][0] == name] or [name]
    if rng.random() < 0.6:
        words = soup(rng, world, name)
        tiny = name != runs[0] and rng.random() < 0.5  # instead of the one that ships
        return name, [*words, "--ckpt", str(world.inputs / rng.choice(runs))] if tiny else words, {}
    train = world.has(name, "train") and rng.random() < 0.4
    return name, mutated(rng, world.valid(rng.choice(runs), train), world), {}


def checkpoint(rng, world, label):
    flags = {"latent_prior": ["--vae"], "vae_gan": ["--against", "--classifier"]}
    name = RUNS[label][0]
    flag = rng.choice(["--ckpt", "--ckpt", *flags.get(name, [])])
    made_by = rng.choice((label, label, label, label, rng.choice(list(RUNS))))
    path = {"--vae": world.inputs / "vae", "--classifier": SHIPPED / "digit_classifier.pt"}.get(flag)
    path = path or world.inputs / made_by
    files = {"in/x.pt": spoilt_checkpoint(rng, path / "last.pt" if path.is_dir() else path)}

    end = rng.random()
    if end < 0.1:
        return "common.runs", ["in/x.pt", "out/x.pt"], files
    if end < 0.2:
        return "audit", ["--ckpt", "in/x.pt"], files
    words = [*world.valid(label, train=flag == "--vae" and rng.random() < 0.3), flag, "in/x.pt"]
    if flag == "--against" or (name == "vae_gan" and end < 0.3):
        words = ["--compare", "--data-dir", str(world.real), "--ckpt", str(world.inputs / "simple"), flag, "in/x.pt"]
    words += ["--use-ema", "0"] if rng.random() < 0.2 else []
    return name, words, files


def resumed(rng, world, label):
    run = world.inputs / label
    files = {"run": run, "run/last.pt": spoilt_checkpoint(rng, run / "last.pt")}
    if rng.random() < 0.3:
        files["run/log.jsonl"] = scramble(rng, (run / "log.jsonl").read_bytes())
    return RUNS[label][0], ["--resume", "--out", "run", "--train-steps", "3"], files


def data_set(rng, world, label):
    label = rng.choice(("crystals", "vae", "vae_of_file", "prior_of_file"))
    train = label in ("crystals", "vae") or rng.random() < 0.3
    files = {"in/x.pt": spoilt_checkpoint(rng, world.data_set)}
    return RUNS[label][0], [*world.valid(label, train), "--data-path", "in/x.pt"], files


def config(rng, world, label):
    label = rng.choice((label, "frames"))
    files = {"in/x.json": spoilt_json(rng, (world.inputs / label / "config.json").read_text())}
    if label == "frames":
        return "reference_gmm_sde", [*world.valid("reference_gmm_sde"), "--config", "in/x.json"], files
    words = world.valid(label, train=rng.random() < 0.5)
    if rng.random() < 0.5:  # what the config says is not typed as well
        words = [word for word in words if "=" not in word or "n-latents" in word]  # the default would take long
    return RUNS[label][0], [*words, "--config", "in/x.json"], files


def frames(rng, world, label):
    pictures = [path.read_bytes() for path in sorted(world.frames.glob("frame_*.png"))]
    files = {}
    for j in range(rng.randrange(5)):
        blob = rng.choice((spoilt_png(rng), *pictures))
        number = rng.choice((f"{j:04}", f"{j:04}", str(j), "1", "٣", "9" * 200))
        files[f"in/frame_{number}.png"] = rng.choice((blob, blob, blob, scramble(rng, blob), b"", Path(), None))
    where = rng.choice(("in", "in", "in", str(world.frames)))
    outputs = ["out.gif"], ["out.html", "--html"], ["in/file/out.gif"], ["in"], soup(rng, world, "make_gif")
    output = rng.choice(outputs)
    return "make_gif", ["--frames", where, "--output", *output], files


def mnist(rng, world, label):
    label = rng.choice(("tokens", "simple", "map", "composite", "of_label"))
    path = rng.choice(sorted((world.real / "MNIST/raw").iterdir()))
    there = f"d/MNIST/raw/{path.name}"
    blob = scramble(rng, path.read_bytes())
    header = struct.pack(">I", rng.choice((0, 1, 12, 60_000, 2**31, 2**32 - 1)))
    blob = rng.choice((blob, blob[:4] + header + blob[8:], b"", blob[:8], gzip.compress(blob)))
    files = {"d": world.real, there: blob}
    if rng.random() < 0.4:
        small = gzip.compress(blob)
        files |= {there: (), f"{there}.gz": rng.choice((small, blob, scramble(rng, small)))}

    words = world.valid(label, train=True)
    if rng.random() < 0.3:
        words = [*world.valid(label, train=True, but=["train_steps"]), "--epochs", "1"]
    return RUNS[label][0], [*words, "--data-dir", "d"], files


def archive(rng, world, label):
    archive = world.real / "cifar-10-binary.tar.gz"
    files = {"d": world.real, "d/cifar-10-binary.tar.gz": spoilt_archive(rng, archive.read_bytes())}
    return "dddm_dit", [*world.valid("tokens", train=True), "--data", "cifar10", "--data-dir", "d"], files


def folder(rng, world, label):
    """Where the results would go there is something already."""
    label = rng.choice((label, "reference_gmm_sde"))
    name = RUNS[label][0] if label in RUNS else label
    train = world.has(name, "train") and rng.random() < 0.5
    words = world.valid(label, train)
    where = rng.choice(("out", "out", "outputs", f"outputs/{name}", f"outputs/{name}/train", f"outputs/{name}/default"))
    if where == "out":
        words += ["--out", "out", *rng.choice(([], [], ["--resume"]))]
    what = rng.choice((b"", None, "/nowhere/x", where.rpartition("/")[2], *[Path()] * 6))
    if what != Path():
        return name, words, {where: what}

    files = {where: what} | {f"{where}/{file}": b"mine" for file in rng.sample(SOMEBODYS, rng.randrange(1, 4))}
    for file in rng.sample(OURS, rng.randrange(4)):
        blob = b"[" if file.endswith(("n", "l")) else (world.inputs / "vae/last.pt").read_bytes()
        files[f"{where}/{file}"] = rng.choice((blob, blob, b"", Path(), None, "/nowhere/x", file))
    return name, words, files


def environment(rng, world, label):
    name = RUNS[label][0]
    chosen = rng.sample(list(VARIABLES), rng.randrange(1, 4))
    words = rng.choice((["--help"], world.valid(label), world.valid(label, train=True)))
    return name, words, {}, {key: rng.choice(VARIABLES[key]) for key in chosen}


makers = command_line, checkpoint, resumed, data_set, config, frames, mnist, archive, folder, environment
MAKERS = dict(zip(KINDS, makers, strict=True))


class Input(NamedTuple):
    kind: str
    script: str
    argv: list
    files: dict
    environment: dict


def case(world, seed, i):
    """Input i."""
    rng = random.Random(f"{seed} {i}")
    kind = rng.choices(list(KINDS), KINDS.values())[0]
    name, words, files, *more = MAKERS[kind](rng, world, rng.choice(list(RUNS)))
    files = {"in/file": b"not a folder", "in": Path()} | files
    if rng.random() < 0.05:
        files[rng.choice([key for key in files if isinstance(files[key], bytes)])] = None

    # At the end, where they win, the words that keep it small, and of most the output folder unusable.
    if kind not in ("resume", "idx", "folder", "environment"):
        trains = "--train" in words or "--resume" in words
        words = [*words, *world.small(name, trains)]
        if trains and kind == "argv" and not any("simple" in word or "of_file" in word for word in words):
            words += MORE.get(name, [])
    slow = name in ("audit", "gallery")  # they may load what they are given, but not go on
    if world.has(name, "out") and kind not in ("resume", "idx", "archive", "folder") and (slow or rng.random() < 0.8):
        words = [*words, "--out", "in/file"]
    return Input(kind, name, words, files, *more or [{}])
