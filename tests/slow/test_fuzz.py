"""Hostile inputs: whatever is thrown at a script ends in status 0 or in one line and status 2, and writes where it may.

    python tests/slow/test_fuzz.py --n 10000       inputs 0 .. 9,999 of seed 0, two hours of one core; failures in full
    python tests/slow/test_fuzz.py --only 4711     one of them again, with what it printed
    python -m pytest tests/slow/test_fuzz.py       a few hundred of them

Every script with a main is fuzzed through main(argv), in this process, as it is: command lines of random and of
mutated valid tokens; checkpoints, data sets, configs and frames with flipped bytes, or well-formed but with a hostile
value at a random place.  Input i is a function of (seed, i).  A fork works until it dies or hangs; then another goes on
behind the input that did it, so one crash hides no other.  Where Python opens, moves or removes a file is learned from
its audit events.  Flags at the end of command lines keep sizes tiny, and of most the output folder unusable: what is
under test is how input is read, not what is computed.
"""

import argparse
import ast
import contextlib
import gzip
import importlib
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import training  # noqa: E402

LIMIT = 60  # seconds that one input may take: none needs more than a few
MEMORY = 6 * 2**30  # bytes that one input may ask for


class Hang(BaseException):
    """Not an Exception, so that nobody takes it for a mistake in a file."""


def scripts():
    """Names of the files that have a command line."""
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("*.py"))}
    return [name for name, tree in trees.items() if "main" in [getattr(node, "name", "") for node in tree.body]]


def call(name, argv):
    """Exit status of a script in this process, and what it wrote to stdout and stderr.  Any other end is raised."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            status = importlib.import_module(name).main(list(argv)) or 0
        except SystemExit as stop:
            status = stop.code or 0
    for stream in streams:
        stream.flush()
    return status, *(stream.buffer.getvalue().decode("utf-8", "replace") for stream in streams)


def parser_of(name):
    """The parser that a script builds, caught when it is asked for help."""
    caught, usual = [], argparse.ArgumentParser.print_help
    argparse.ArgumentParser.print_help = lambda parser, file=None: caught.append(parser)
    try:
        call(name, ["--help"])
    finally:
        argparse.ArgumentParser.print_help = usual
    return caught[0]


# --------------------------------------------------------------------------------------------------------- valid inputs

SMALL = {"--train-steps": "2", "--batch-size": "2", "--save-every": "1", "--n": "2", "--steps": "2",
         "--n-particles": "4", "--n-latents": "4", "--vis-every": "1", "--sample-batch": "2", "--perceptual": "0",
         "--critic-start": "0"}  # of any run; the perceptual network takes long to train
SLOW = {"--audit", "--make-judge", "--fid", "--wandb"}  # flags that start something else, which takes long
RUNS = {  # what is trained to have checkpoints of: script and flags
    "points": ("vp_sde", ["--data=S"]),
    "crystals": ("vp_sde", ["--img-size=16", "--precision=float32"]),
    "vae": ("vae", ["--img-size=16", "--z-dim=4"]),
    "digits": ("vae", ["--data=mnist", "--z-dim=3"]),
    "latent_prior": ("latent_prior", ["--width=8", "--T=4"]),
    "mixture": ("dddm", ["--width=8", "--depth=2"]),
    "patches": ("dddm", ["--data=crystals", "--img-size=16", "--width=16", "--heads=2", "--depth=1", "--shared=0"]),
    "tokens": ("dddm", ["--data=mnist", "--width=16", "--heads=2", "--depth=1", "--shared=0"]),
    "simple": ("vae_gan", ["--scheme=simple"]),
    "composite": ("vae_gan", []),
}


def idx(array):
    """The bytes of an idx file."""
    return struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape) + array.tobytes()


class World:
    """A folder with one small valid input of every kind, and what can be asked of each script."""

    def __init__(self, folder):
        self.folder, self.inputs = Path(folder), Path(folder, "inputs")
        self.real = self.inputs / "real"
        (self.real / "MNIST" / "raw").mkdir(parents=True)
        rng = np.random.default_rng(0)
        for part, n in ("train", 12), ("t10k", 6):
            for name, array in ("images-idx3", rng.integers(0, 256, (n, 28, 28))), ("labels-idx1", np.arange(n) % 10):
                (self.real / f"MNIST/raw/{part}-{name}-ubyte").write_bytes(idx(array.astype(np.uint8)))
        with tarfile.open(self.real / "cifar-10-binary.tar.gz", "w:gz") as tar:
            for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "readme.html"):
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                member.size = 2 * 3073
                tar.addfile(member, io.BytesIO(rng.integers(0, 10, member.size).astype(np.uint8).tobytes()))
        self.parsers = {name: parser_of(name) for name in scripts()}
        self.flags = {name: [a for a in p._actions if a.option_strings and not SLOW & set(a.option_strings)]
                      for name, p in self.parsers.items()}
        self.has = {name: {s for a in p._actions for s in a.option_strings} for name, p in self.parsers.items()}
        unknown = {name for name in self.has if "--train" in self.has[name]} - {script for script, _ in RUNS.values()}
        if unknown:
            raise RuntimeError(f"what should a tiny training of {unknown} be? Say it in RUNS")
        for label, (name, _) in RUNS.items():
            self.made(name, [*self.valid(label, train=True), "--out", str(self.inputs / label)])
        self.data_set = self.inputs / "crystals.pt"
        self.made("data", ["--build", "6", "--img-size", "16", "--out", str(self.data_set)])
        self.frames = self.inputs / "frames"
        self.made("reference_gmm_sde", [*self.valid("reference_gmm_sde"), "--out", str(self.frames)])
        self.paths = ["", ".", "..", "in", "in/none.pt", "/nowhere/x", "/proc/self/mem", "in/file/below", "a" * 300,
                      "\0", "/dev/null", "/dev/full", "\udcff.pt", "größe", "--", "in/file"]
        self.paths += [str(self.data_set), str(self.frames), *(str(self.inputs / label / file) for label in RUNS
                                                               for file in ("", "last.pt", "config.json"))]

    def made(self, name, argv):
        status, _, err = call(name, argv)
        if status:
            raise RuntimeError(f"{name} {argv} should work, but: {err}")

    def valid(self, label, train=False):
        """A small command line of a run (or of a script) that works but for its --out."""
        name, flags = RUNS.get(label, (label, []))
        argv = [word for flag, value in SMALL.items() if flag in self.has[name] for word in (flag, value)]
        argv += ["--data-dir", str(self.real)] if "--data-dir" in self.has[name] else []
        argv += ["--vae", str(self.inputs / "vae")] if "--vae" in self.has[name] else []
        if train:
            return ["--train", *argv, *flags]
        return argv + (["--ckpt", str(self.inputs / label)] if label in RUNS else [])


# ------------------------------------------------------------------------------------------------------- hostile inputs

NUMBERS = ["0", "-1", "-0.0", "1", "2", "3", "0.5", "1.5", "1e-300", "1e308", "1e999", "nan", "inf", "-inf", "", " ",
           " 2", "2 ", "1_0", "0x10", "1e3", "٣", "two", "1,5", "1/2", "--1", "9" * 30, "9" * 5000, "1e-400",
           "True", "None"]
JUNK = ["", "-", "--", "---", "-x", "--nope", "--nope=1", "=", "--=1", "@in/file", "x", "-1", "--help=1", "--train=yes",
        "--seed=0=0", "\udc80", "\0", "💎", "%s", "%(prog)s", "{}", "../..", "-h1", "--n\u00a05", "a b", "\n", "\t--n"]
WILD = [None, True, False, 0, -1, 1, 2, 7, 3.5, -0.5, 1e-9, 10**6, 10**12, 10**30, 1e308, math.nan, math.inf, "", "x",
        "0", "16", "crystals", "S", "rot-only", "full", "\udcff", [], [1], {}, {"a": 1}]


ODD_JSON = [b"[" * 10**5, b'{"seed":' * 10**5, b"", b"null", b"[]", b"\xef\xbb\xbf{}", b"\xff\xfe{",
            b'{"seed": 1' + b"0" * 5000 + b"}", b'{"seed": 1, "seed": -1}', b'"x"', b"{}", b"NaN"]
DEVICES = ["cpu", "auto", "cuda", "cuda:9", "cuda:x", "mps", "meta", "cpu:1", "cpu:x", "xpu", "", "CPU", "gpu"]


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
        if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.85:
            node = node[key]
            continue
        what = rng.random()
        if what < 0.12:
            del node[key]
        elif what < 0.2 and isinstance(node, dict):
            node[rng.choice(("new", "", "config", 0) if wild is WILD else ("new", "", "out", "config"))] = node[key]
        elif torch.is_tensor(node[key]) and what < 0.8:
            node[key] = wild_tensor(rng, node[key])
        else:
            node[key] = rng.choice(wild)
        return


def spoilt_checkpoint(rng, path):
    """The bytes of a torch file, flipped or with a wild value in it; config and step are small beside weights."""
    if rng.random() < 0.2:
        return scramble(rng, path.read_bytes())
    tree = torch.load(path, weights_only=True)
    for _ in range(rng.choice((1, 1, 1, 2))):
        part = tree["config"] if "config" in tree and rng.random() < 0.5 else tree
        spoil(rng, part if isinstance(part, dict) and part else tree)
    buffer = io.BytesIO()
    torch.save(rng.choice((tree, tree, tree, tree, tree, tree, tree, [tree], None, 3)), buffer)
    return buffer.getvalue()


def spoilt_json(rng, text):
    """The text of a config, as the above."""
    if rng.random() < 0.3:
        return scramble(rng, text.encode())
    if rng.random() < 0.1:
        return rng.choice(ODD_JSON)
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        spoil(rng, tree, [v for v in WILD if v not in ("\udcff",)])
    return json.dumps(tree).encode()


def png(rng, mode):
    """A small picture of any kind that may hide behind .png."""
    size, buffer = (rng.choice((1, 5, 8)), rng.choice((1, 5, 8))), io.BytesIO()
    from PIL import Image

    picture = Image.new(mode, size, rng.randrange(2))
    kind = rng.choice(("png", "png", "png", "gif", "tiff"))
    with contextlib.suppress(OSError):  # not every mode can be written as every kind
        more = [Image.new(mode, size, 1)] if rng.random() < 0.3 else []
        picture.save(buffer, kind, **(dict(save_all=True, append_images=more) if more else {}))
    return buffer.getvalue()


def value_for(rng, world, action):
    """Something to say to a flag: often what it wants, in kind."""
    if action.choices:
        return rng.choice([*map(str, action.choices), "", "X", str(next(iter(action.choices)))[:-1], "1"])
    if action.type or isinstance(action.default, (int, float)):
        return rng.choice(NUMBERS)
    if "--device" in action.option_strings:
        return rng.choice(DEVICES)
    return rng.choice([*world.paths, rng.choice(NUMBERS), rng.choice(JUNK)])


def soup(rng, world, name):
    """Flags of the script in any spelling, with values or without."""
    words = []
    for _ in range(rng.randrange(5)):
        if not world.flags[name] or rng.random() < 0.15:
            words.append(rng.choice((rng.choice(JUNK), rng.choice(world.paths))))
            continue
        action = rng.choice(world.flags[name])
        flag = rng.choice(action.option_strings)
        under = flag.replace("-", "_").replace("__", "--", 1)
        flag = rng.choice((flag, flag, flag, flag, under, flag[: rng.randrange(3, 9)]))
        value = value_for(rng, world, action)
        wants = action.nargs != 0
        if rng.random() < 0.1:
            wants = not wants
        words += ([f"{flag}={value}"] if rng.random() < 0.4 else [flag, value]) if wants else [flag]
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


KINDS = {"argv": 11, "checkpoint": 3, "resume": 2, "data set": 1, "config": 2, "frames": 1, "idx": 1, "archive": 1}


def archive(rng, blob):
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
            if member is strange:
                kind = rng.choice(("", "", "type", "name", "size", "lost"))
                if kind == "lost":
                    continue
                if kind == "type":
                    member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))
                    member.linkname = rng.choice(("../../x", "/etc/passwd", "test_batch.bin"))
                elif kind == "name":
                    names = "../../x.bin", "/x.bin", f"./{member.name}", "cifar-10-batches-bin", "", "a" * 300
                    member.name = rng.choice(names)
                elif kind == "size":
                    content = scramble(rng, content)
                else:
                    content = bytes([rng.choice((10, 255))]) + content[1:]
                member.size = len(content) if member.isreg() else 0
            new.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def case(world, seed, i):
    """Input i: (kind, script, argv, files to lay out below the working folder: name -> bytes, folder or None: FIFO)."""
    rng = random.Random(f"{seed} {i}")
    files = {"in/file": b"not a folder", "in": Path()}
    kind, label, real = rng.choices(list(KINDS), KINDS.values())[0], rng.choice(list(RUNS)), False
    if kind == "argv":
        label = name = rng.choice(list(world.has))
        if rng.random() < 0.6:
            argv = soup(rng, world, name)
        else:
            train = "--train" in world.has[name] and rng.random() < 0.4
            label = rng.choice([key for key in RUNS if RUNS[key][0] == name] or [name])
            argv = mutated(rng, world.valid(label, train), world)
    elif kind == "checkpoint":
        name, made_by = RUNS[label][0], rng.choice((label, label, label, label, rng.choice(list(RUNS))))
        flag = rng.choice([f for f in ("--ckpt", "--ckpt", "--vae", "--against", "--judge") if f in world.has[name]])
        made_by = world.inputs / {"--vae": "vae"}.get(flag, made_by) / "last.pt"
        files["in/x.pt"] = spoilt_checkpoint(rng, training.SHIPPED / "mnist_judge.pt" if flag == "--judge" else made_by)
        argv = [*world.valid(label, train=flag == "--vae" and rng.random() < 0.3), flag, "in/x.pt"]
        argv += ["--compare"] if flag == "--against" or (name == "vae_gan" and rng.random() < 0.1) else []
        argv += ["--use-ema", "0"] if rng.random() < 0.2 else []
        if rng.random() < 0.1:
            name, argv = "training", ["in/x.pt", "out/x.pt"]
        elif rng.random() < 0.1:
            name, argv = "audit", ["--ckpt", "in/x.pt"]
    elif kind == "resume":
        name, files["run"] = RUNS[label][0], world.inputs / label
        files["run/last.pt"] = spoilt_checkpoint(rng, world.inputs / label / "last.pt")
        argv = ["--resume", "--out", "run", "--train-steps", "3"]
        if rng.random() < 0.3:
            files["run/log.jsonl"] = scramble(rng, (world.inputs / label / "log.jsonl").read_bytes())
    elif kind == "data set":
        label = rng.choice([key for key in RUNS if "--data-path" in world.has[RUNS[key][0]]])
        name, files["in/x.pt"] = RUNS[label][0], spoilt_checkpoint(rng, world.data_set)
        argv = [*world.valid(label, train=True), "--data-path", "in/x.pt"]
    elif kind == "config":
        name, label = rng.choice(((RUNS[label][0], label), ("reference_gmm_sde", "frames")))
        files["in/x.json"] = spoilt_json(rng, (world.inputs / label / "config.json").read_text())
        argv = [*world.valid(label if label in RUNS else name, train=label in RUNS and rng.random() < 0.5)]
        argv += ["--config", "in/x.json"]
    elif kind == "idx":
        label, real, files["d"] = rng.choice(("digits", "tokens", "simple", "composite")), True, world.real
        name, part = RUNS[label][0], rng.choice(sorted(path.name for path in (world.real / "MNIST/raw").iterdir()))
        blob = scramble(rng, (world.real / "MNIST/raw" / part).read_bytes())
        header = struct.pack(">I", rng.choice((0, 1, 12, 60_000, 2**31, 2**32 - 1)))
        blob = rng.choice((blob, blob[:4] + header + blob[8:], b"", blob[:8], gzip.compress(blob)))
        if rng.random() < 0.4:
            small = gzip.compress(blob)
            files[f"d/MNIST/raw/{part}.gz"] = rng.choice((small, blob, scramble(rng, small)))
            files[f"d/MNIST/raw/{part}"] = ()
        else:
            files[f"d/MNIST/raw/{part}"] = blob
        argv = [*world.valid(label, train=True), "--data-dir", "d"]
        argv += ["--epochs", "1"] if rng.random() < 0.3 else []
    elif kind == "archive":
        name, real, files["d"] = "dddm", True, world.real
        files["d/cifar-10-binary.tar.gz"] = archive(rng, (world.real / "cifar-10-binary.tar.gz").read_bytes())
        argv = [*world.valid("tokens", train=True), "--data", "cifar10", "--data-dir", "d"]
    else:
        name = "make_gif"
        for j in range(rng.randrange(5)):
            blob = rng.choice((png(rng, rng.choice(("RGB", "L", "1", "P", "RGBA", "I;16", "LA"))), *pictures(world)))
            files[f"in/frame_{rng.choice((f'{j:04}', f'{j:04}', str(j), '1', '٣', '9' * 200))}.png"] = rng.choice(
                (blob, blob, blob, scramble(rng, blob), b"", Path(), None))
        argv = ["--frames", rng.choice(("in", "in", "in", str(world.frames))), "--output"]
        argv += rng.choice((["out.gif"], ["out.html", "--html"], ["in/file/out.gif"], ["in"], soup(rng, world, name)))
    if rng.random() < 0.05:
        files[rng.choice([f for f in files if isinstance(files[f], bytes)])] = None
    small = [flag for flag in SMALL if flag in world.has[name] and kind != "resume"]
    argv += [word for flag in small for word in (flag, SMALL[flag])]
    slow = name in ("audit", "gallery")  # they may load what they are given, but not go on
    if "--out" in world.has[name] and kind != "resume" and not real and (slow or rng.random() < 0.8):
        argv += ["--out", "in/file"]
    return kind, name, argv, files


def pictures(world):
    return [path.read_bytes() for path in sorted(world.frames.glob("frame_*.png"))]


# ---------------------------------------------------------------------------------------------------------- the verdict

WRITES = {"os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
          "os.chmod": 1}  # audit events, and how many of their arguments are paths
touched, watching = [], [False]


def watch(event, args):
    if not watching[0]:
        return
    if event == "open":
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if isinstance(args[0], (str, bytes)) and args[2] is not None and args[2] & writes:
            touched.append(os.path.abspath(os.fsdecode(args[0])))
    elif event in WRITES:
        touched.extend(os.path.abspath(os.fsdecode(a)) for a in args[: WRITES[event]] if isinstance(a, (str, bytes)))


def lay_out(folder, files):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, what in sorted(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            if path.is_file():
                path.unlink()
            if not path.exists():
                os.mkfifo(path)
        elif what == ():
            path.unlink()
        elif isinstance(what, bytes):
            path.write_bytes(what)
        elif what == Path():
            path.mkdir(exist_ok=True)
        else:
            shutil.copytree(what, path, dirs_exist_ok=True)


def stray(world, folder, argv):
    """Where something was written, moved or removed, outside the working folder and every path that the user named."""
    named = [os.path.abspath(w.partition("=")[2] or w) for w in argv if w and "\0" not in w]
    if "--config" in " ".join(argv) and (folder / "in/x.json").is_file():
        with contextlib.suppress(Exception):  # the judge's config may say where to
            named.append(os.path.abspath(str(json.loads((folder / "in/x.json").read_text()).get("out"))))
    fine = [str(folder), os.path.realpath(tempfile.gettempdir()), tempfile.gettempdir(), "/dev/null"]
    near = {os.path.dirname(p) for p in named if os.path.basename(p) and p != str(folder)}

    def allowed(path):
        under = any(path == f or path.startswith(f + os.sep) for f in fine + [n for n in named if n != os.sep])
        return under or (os.path.dirname(path) in near and os.path.basename(path).startswith("."))

    return [path for path in touched if not allowed(path)]


def judge(world, seed, i, show=False):
    """None if input i is answered as it should be, else what went wrong."""
    kind, name, argv, files = case(world, seed, i)
    folder = world.folder / "case"
    lay_out(folder, files)
    os.chdir(folder)
    threads, wrong, status, out, err = torch.get_num_threads(), None, None, "", ""
    touched.clear()
    try:
        signal.alarm(LIMIT)
        watching[0] = True
        try:
            status, out, err = call(name, argv)
        finally:
            watching[0] = False
            signal.alarm(0)
    except Hang:
        wrong = f"hangs: {LIMIT} s"
    except BaseException:
        wrong = traceback.format_exc()
    lines = err.strip().splitlines() or [""]
    if any(len(f"{word}.".splitlines()) > 1 for word in argv):  # argparse repeats a line break that the user typed
        lines = [line for line in lines if ": error: " in line] or lines
    last = lines[-1]
    if wrong is None and status not in (0, 2):
        wrong = f"status {status}: {last}"
    if wrong is None and status == 2 and ": error: " not in last:
        wrong = f"status 2, but the last line is {last!r}"
    if wrong is None and "Traceback" in out + err:
        wrong = "a traceback: " + err
    if wrong is None and torch.get_num_threads() != threads:
        wrong = "leaves another number of threads"
        torch.set_num_threads(threads)
    if away := stray(world, folder, argv):
        wrong = f"writes to {away[:3]}"
    if show:
        print(kind, name, argv, files.keys(), status, out, err, sep="\n")
    os.chdir(world.folder)
    return dict(i=i, kind=kind, script=name, argv=argv, status=status, wrong=wrong, last=last)


def work(world, seed, numbers, pipe):
    """In a fork: judge one input after the other and report each."""
    def stop(*_):
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.addaudithook(watch)
    with os.fdopen(pipe, "w") as report:
        for i in numbers:
            report.write(json.dumps(dict(i=i)) + "\n")
            report.flush()
            start = time.perf_counter()
            verdict = judge(world, seed, i)
            report.write(json.dumps(verdict | dict(seconds=round(time.perf_counter() - start, 2))) + "\n")
            report.flush()


def fuzz(world, seed, numbers):
    """Yield a verdict for each input, whatever happens to the process that works on them."""
    numbers = list(numbers)
    while numbers:
        read, write = os.pipe()
        if not (child := os.fork()):
            os.close(read)
            code = 1
            try:
                work(world, seed, numbers[:200], write)  # then a fresh one, which has forgotten everything
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(write)
        at, done = None, set()
        with os.fdopen(read) as report:
            for line in report:
                verdict = json.loads(line)
                at = verdict["i"]
                if len(verdict) > 1:
                    done.add(at)
                    yield verdict
        _, status = os.waitpid(child, 0)
        if status:  # it died of input `at`
            kind, name, argv, _ = case(world, seed, at)
            wrong = f"kills the process: {status}"
            yield dict(i=at, kind=kind, script=name, argv=argv, status=None, wrong=wrong, last="")
            done.add(at)
        numbers = [i for i in numbers if i not in done]


def prepare():
    """Small and alone: one thread, no pictures of a display, every temporary file in one place."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz")).resolve()
    (folder / "tmp").mkdir()
    os.environ["MPLCONFIGDIR"] = tempfile.tempdir = str(folder / "tmp")
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    for scheme in ("http", "https"):
        os.environ[f"{scheme}_proxy"] = "http://127.0.0.1:9"  # nothing listens there: no network, and at once
    return World(folder)


@pytest.fixture(scope="module")
def world():
    here, where = os.getcwd(), tempfile.tempdir
    world = prepare()
    yield world
    os.chdir(here)
    tempfile.tempdir = where
    shutil.rmtree(world.folder)


def test_hostile_inputs(world):
    verdicts = list(fuzz(world, 1, range(300)))
    assert not [v for v in verdicts if v["wrong"]]
    assert {v["status"] for v in verdicts} == {0, 2} and {v["script"] for v in verdicts} == set(world.has)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="these inputs, in this process")
    parser.add_argument("--json", metavar="FILE", help="every verdict, one a line")
    args = parser.parse_args()
    keep = open(args.json, "a") if args.json else io.StringIO()  # noqa: SIM115
    world = prepare()
    if args.only:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        sys.addaudithook(watch)
        for i in args.only:
            verdict = judge(world, args.seed, i, show=True)
            print(verdict["wrong"])
    else:
        count, wrong, statuses = 0, 0, {}
        for verdict in fuzz(world, args.seed, range(args.start, args.start + args.n)):
            count, wrong = count + 1, wrong + bool(verdict["wrong"])
            key = f"{verdict['kind']} {verdict['status']}"
            statuses[key] = statuses.get(key, 0) + 1
            keep.write(json.dumps(verdict) + "\n")
            keep.flush()
            if verdict["wrong"]:
                print(f"{verdict['i']}: {verdict['script']} {verdict['argv']}\n{verdict['wrong']}\n", flush=True)
            if count % 500 == 0:
                print(f"{count} inputs, {wrong} answered badly", flush=True)
        print(f"{count} inputs, {wrong} answered badly; by kind and status: {dict(sorted(statuses.items()))}")
    shutil.rmtree(world.folder)


if __name__ == "__main__":
    main()
