"""Hostile inputs: what is thrown at the scripts.  Input i is a function of (seed, i).

Command lines of random and of mutated valid words; checkpoints, data sets, configs, archives and frames with flipped
bytes, or well-formed but with a hostile value at a random place.
"""

import contextlib
import gzip
import io
import json
import math
import random
import struct
import tarfile
from pathlib import Path

from common import cli
from common.checkpoints import SHIPPED

import torch
from fuzz_world import MORE, RUNS  # first: it says where our own modules are
from PIL import Image

KINDS = {  # of inputs, and how many there are of each
    "argv": 11,
    "checkpoint": 3,
    "resume": 2,
    "data set": 1,
    "config": 2,
    "frames": 1,
    "idx": 1,
    "archive": 1,
}
NUMBERS = ["0", "-1", "-0.0", "1", "2", "3", "0.5", "1.5", "1e-300", "1e308", "1e999", "nan", "inf", "-inf", "", " "]
NUMBERS += [" 2", "2 ", "1_0", "0x10", "1e3", "٣", "two", "1,5", "1/2", "--1", "9" * 30, "9" * 5000, "1e-400"]
NUMBERS += ["True", "None", "30deg", "61deg", "deg", "nandeg", "honeycomb"]
JUNK = ["", "-", "--", "---", "-x", "--nope", "--nope=1", "=", "--=1", "@in/file", "x", "-1", "--help=1", "--train=yes"]
JUNK += ["--seed=0=0", "\udc80", "\0", "💎", "%s", "%(prog)s", "{}", "../..", "-h1"]
JUNK += ["--n\u00a05", "a b", "\n", "\t--n"]
WILD = [None, True, False, 0, -1, 1, 2, 7, 3.5, -0.5, 1e-9, 10**6, 10**12, 10**30, 1e308, math.nan, math.inf]
WILD += ["", "x", "0", "16", "crystals", "S", "rot-only", "full", "\udcff", [], [1], {}, {"a": 1}]
NO_SURROGATE = [value for value in WILD if value != "\udcff"]  # which JSON cannot hold
ODD_JSON = [b"[" * 10**5, b'{"seed":' * 10**5, b"", b"null", b"[]", b"\xef\xbb\xbf{}", b"\xff\xfe{", b'"x"', b"{}"]
ODD_JSON += [b"NaN", b'{"seed": 1' + b"0" * 5000 + b"}", b'{"seed": 1, "seed": -1}']
DEVICES = ["cpu", "auto", "cuda", "cuda:9", "cuda:x", "mps", "meta", "cpu:1", "cpu:x", "xpu", "", "CPU", "gpu"]

# -------------------------------------------------------------------------------------------------- spoilt files


def scramble(rng, blob):
    """Bytes with a few of them flipped, lost, doubled, zeroed, or from somewhere else."""
    blob = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2, 8))):
        i, j = sorted(rng.randrange(len(blob) + 1) for _ in range(2))
        j = min(j, i + rng.choice((1, 16, 1000, 10**9)))
        what = rng.randrange(6)
        if what == 0 and i < len(blob):
            blob[i] ^= 1 << rng.randrange(8)
        elif what == 1:
            del blob[i:j]
        elif what == 2:
            blob[i:i] = blob[i:j]
        elif what == 3:
            blob[i:j] = bytes(j - i)
        elif what == 4:
            blob[i:i] = rng.randbytes(rng.randrange(40))
        else:
            del blob[rng.randrange(len(blob) + 1) :]
    return bytes(blob)


def wild_tensor(rng, t):
    """A tensor that is not quite the one that was."""
    what = rng.randrange(9)
    if what == 0:
        return torch.zeros(())
    if what == 1:
        return t[:0] if t.ndim else t[None]
    if what == 2:
        return t[None]
    if what == 3:
        return t.flatten()[: rng.randrange(1, 5)].clone()
    if what == 4:
        return t.to(rng.choice((torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8, torch.complex64)))
    if what == 5:
        return torch.full_like(t, rng.choice((0, 1, 100)))
    if what == 6:
        return torch.full_like(t, rng.choice((math.nan, math.inf, 1e30))) if t.is_floating_point() else t - 1000
    if what == 7:
        return -t if t.dtype != torch.bool else ~t
    return t.expand(2, *t.shape)


def spoil(rng, tree, wild=WILD):
    """Change one place of nested dicts and lists, in place: another value, none, or one too many."""
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if not (isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.85):
            break
        node = node[key]

    what = rng.random()
    if what < 0.12:
        del node[key]
    elif what < 0.2 and isinstance(node, dict):
        node[rng.choice(("new", "", "config", "out" if wild is NO_SURROGATE else 0))] = node[key]
    elif torch.is_tensor(node[key]) and what < 0.8:
        node[key] = wild_tensor(rng, node[key])
    else:
        node[key] = rng.choice(wild)


def spoilt_checkpoint(rng, path):
    """The bytes of a torch file, flipped or with a wild value in it."""
    if rng.random() < 0.2:
        return scramble(rng, path.read_bytes())
    tree = torch.load(path, weights_only=True)
    for _ in range(rng.choice((1, 1, 1, 2))):
        in_config = "config" in tree and rng.random() < 0.5  # which is small beside the weights
        part = tree["config"] if in_config else tree
        spoil(rng, part if isinstance(part, dict) and part else tree)
    buffer = io.BytesIO()
    torch.save(rng.choice([tree] * 7 + [[tree], None, 3]), buffer)
    return buffer.getvalue()


def spoilt_json(rng, text):
    """The bytes of a config, likewise."""
    if rng.random() < 0.3:
        return scramble(rng, text.encode())
    if rng.random() < 0.1:
        return rng.choice(ODD_JSON)
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        spoil(rng, tree, NO_SURROGATE)
    return json.dumps(tree).encode()


def spoilt_png(rng):
    """A small picture of any kind that may hide behind .png."""
    mode = rng.choice(("RGB", "L", "1", "P", "RGBA", "I;16", "LA"))
    size = rng.choice((1, 5, 8)), rng.choice((1, 5, 8))
    kind = rng.choice(("png", "png", "png", "gif", "tiff"))
    more = dict(save_all=True, append_images=[Image.new(mode, size, 1)]) if rng.random() < 0.3 else {}
    buffer = io.BytesIO()
    with contextlib.suppress(OSError):  # not every mode can be written as every kind
        Image.new(mode, size, rng.randrange(2)).save(buffer, kind, **more)
    return buffer.getvalue()


def spoilt_archive(rng, blob):
    """The bytes of a .tar.gz, hurt, or with members that should not be there, or not be like that."""
    what = rng.random()
    if what < 0.3:
        return scramble(rng, blob)
    raw = gzip.decompress(blob)
    if what < 0.5:
        return gzip.compress(scramble(rng, raw), 1)

    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(raw)) as old, tarfile.open(fileobj=buffer, mode="w:gz") as new:
        members = old.getmembers()
        strange = rng.choice(members)
        for member in members:
            content = old.extractfile(member).read()
            fault = rng.choice(("label", "label", "type", "name", "size", "lost")) if member is strange else ""
            if fault == "lost":
                continue
            if fault == "type":
                member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))
                member.linkname = rng.choice(("../../x", "/etc/passwd", "test_batch.bin"))
            elif fault == "name":
                names = "../../x.bin", "/x.bin", f"./{member.name}", "cifar-10-batches-bin", "", "a" * 300
                member.name = rng.choice(names)
            elif fault == "size":
                content = scramble(rng, content)
            elif fault == "label":
                content = bytes([rng.choice((10, 255))]) + content[1:]
            member.size = len(content) if member.isreg() else 0
            new.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


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
# these words, {name: bytes, a folder to copy, Path() for an empty one, () for nothing, None for a pipe}.


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
        words = [word for word in words if "=" not in word]
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


MAKERS = dict(zip(KINDS, (command_line, checkpoint, resumed, data_set, config, frames, mnist, archive), strict=True))


def case(world, seed, i):
    """Input i: its kind, the script, its words, and the files to lay out."""
    rng = random.Random(f"{seed} {i}")
    kind = rng.choices(list(KINDS), KINDS.values())[0]
    name, words, files = MAKERS[kind](rng, world, rng.choice(list(RUNS)))
    files = {"in/file": b"not a folder", "in": Path()} | files
    if rng.random() < 0.05:
        files[rng.choice([key for key in files if isinstance(files[key], bytes)])] = None

    # At the end, where they win, the words that keep it small, and of most the output folder unusable.
    if kind not in ("resume", "idx"):
        trains = "--train" in words or "--resume" in words
        words = [*words, *world.small(name, trains)]
        if trains and kind == "argv" and not any("simple" in word or "of_file" in word for word in words):
            words += MORE.get(name, [])
    slow = name in ("audit", "gallery")  # they may load what they are given, but not go on
    if world.has(name, "out") and kind not in ("resume", "idx", "archive") and (slow or rng.random() < 0.8):
        words = [*words, "--out", "in/file"]
    return kind, name, words, files
