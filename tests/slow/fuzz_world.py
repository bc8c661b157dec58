"""What a script is given when all is well: a folder with one small valid input of every kind."""

import ast
import contextlib
import dataclasses
import importlib
import io
import shutil
import struct
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from common import checkpoints, cli  # noqa: E402

import numpy as np  # noqa: E402

SMALL = {  # flags that keep any run small
    "train_steps": "2",
    "batch_size": "2",
    "save_every": "2",
    "n": "2",
    "steps": "2",
    "n_particles": "4",
    "sample_batch": "2",
}
MORE = {  # for a training of these scripts: its perceptual network, and its latents, take long to make
    "vae_gan": ["--perceptual", "0", "--critic-start", "0"],
    "latent_prior": ["--n-latents", "4"],
}
SLOW = {"fid", "wandb", "make_classifier"}  # flags that start something else, which takes long
TRANSFORMER = "--width=16 --heads=2 --depth=1 --shared=0"
RUNS = {  # what is trained to have checkpoints of: script, its flags, and those of the training alone
    "points": ("vp_sde_2d", "", ""),
    "crystals": ("vp_sde", "--img-size=16 --precision=float32", ""),
    "vae": ("vae", "--img-size=16 --z-dim=4", ""),
    "vae_of_file": ("vae", "--img-size=16 --z-dim=4 --uncond", "--data-path={inputs}/crystals.pt"),
    "prior": ("latent_prior", "--width=8 --T=4 --vae={inputs}/vae", "--n-latents=4"),
    "prior_of_file": ("latent_prior", "--width=8 --T=4 --vae={inputs}/vae_of_file", ""),
    "mixture": ("dddm", "--width=8 --depth=2", ""),
    "patches": ("dddm_dit", f"{TRANSFORMER} --img-size=16", ""),
    "tokens": ("dddm_dit", f"{TRANSFORMER} --data=mnist --data-dir={{real}}", ""),
    "simple": ("vae_gan", "--scheme=simple --data-dir={real}", ""),
    "map": ("vae_gan", "--scheme=simple --z-dim=2 --data-dir={real}", ""),
    "composite": ("vae_gan", "--data-dir={real}", "--perceptual=0 --critic-start=0"),
    "of_label": ("vae_gan", "--cond --data-dir={real}", "--perceptual=0 --critic-start=0"),
}


def scripts():
    """Names of the files that have a command line."""
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("*.py"))}
    return [name for name, tree in trees.items() if "main" in [getattr(node, "name", "") for node in tree.body]]


def call(name, argv):
    """Exit status of a script in this process, and what it wrote to stdout and stderr.  Any other end is raised."""
    shipping = name == "common.runs"
    main = checkpoints.ship_command if shipping else importlib.import_module(name).main
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            status = main(list(argv)) or 0
        except SystemExit as stop:
            status = stop.code or 0
    for stream in streams:
        stream.flush()
    return status, *(stream.buffer.getvalue().decode("utf-8", "replace") for stream in streams)


def idx(array):
    """The bytes of an idx file."""
    return struct.pack(f">{1 + array.ndim}I", 2048 + array.ndim, *array.shape) + array.tobytes()


def write_real_images(folder):
    """A little MNIST and a little CIFAR-10 of noise."""
    rng = np.random.default_rng(0)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 12), ("t10k", 6)):
        images = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))

    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin", "readme.html"]
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = 2 * 3073
            tar.addfile(member, io.BytesIO(rng.integers(0, 10, member.size).astype(np.uint8).tobytes()))


class World:
    """A folder of valid inputs, and what can be asked of each script."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.inputs = self.folder / "inputs"
        self.kept = self.folder / "kept"  # a copy of them
        self.real = self.inputs / "real"
        write_real_images(self.real)
        self.configs = {name: importlib.import_module(name).Config for name in scripts()}

        unknown = {name for name in self.configs if self.has(name, "train")} - {name for name, *_ in RUNS.values()}
        if unknown:
            raise RuntimeError(f"what should a tiny training of {unknown} be? Say it in RUNS")
        self.data_set = self.inputs / "crystals.pt"
        self.make("data", ["--build", "6", "--img-size", "16", "--out", self.data_set])
        for label, (name, *_) in RUNS.items():
            self.make(name, [*self.valid(label, train=True), "--out", self.inputs / label])
        self.frames = self.inputs / "frames"
        self.make("reference_gmm_sde", [*self.valid("reference_gmm_sde"), "--out", self.frames])
        shutil.copytree(self.inputs, self.kept)

        self.paths = ["", ".", "..", "in", "in/none.pt", "/nowhere/x", "/proc/self/mem", "in/file/below", "a" * 300]
        self.paths += ["\0", "/dev/null", "/dev/full", "\udcff.pt", "größe", "--", "in/file"]
        self.paths += [str(self.data_set), str(self.frames)]
        for label in RUNS:
            self.paths += [f"{self.inputs / label}/{file}" for file in ("", "last.pt", "config.json")]

    def make(self, name, argv):
        status, _, err = call(name, [str(word) for word in argv])
        if status:
            raise RuntimeError(f"{name} {argv} should work, but: {err}")

    def fields(self, name):
        """The flags of a script that may be tried: dataclasses.Field."""
        return [field for field in dataclasses.fields(self.configs[name]) if field.name not in SLOW]

    def has(self, name, key):
        return name in self.configs and key in cli.names(self.configs[name])

    def small(self, name, train, but=()):
        """Words that keep a run small; train: also those of a training, but for some."""
        if name not in self.configs:
            return []
        keys = set(cli.names(self.configs[name]))
        keys -= set(but) if train else set(cli.names(self.configs[name], "training"))
        words = []
        for key, value in SMALL.items():
            if key in keys:
                words += [cli.spelt(key), value]
        return words

    def valid(self, label, train=False, but=()):
        """A small command line of a run (or of a script) that works; of a run it samples, unless train."""
        name, flags, of_training = RUNS.get(label, (label, "", ""))
        told = [word.format(inputs=self.inputs, real=self.real) for word in flags.split()]
        words = self.small(name, train, but) + told
        if train:
            return ["--train", *words, *of_training.format(inputs=self.inputs).split()]
        return words + (["--ckpt", str(self.inputs / label)] if label in RUNS else [])

    def restore(self):
        """Undo what a command did to the inputs: it may have been told to write there."""
        for path in sorted(self.inputs.rglob("*"), reverse=True):  # what is in a folder before the folder
            kept = self.kept / path.relative_to(self.inputs)
            if kept.exists() and kept.is_dir() == path.is_dir():
                continue
            remove = path.rmdir if path.is_dir() else path.unlink
            remove()
        for kept in sorted(self.kept.rglob("*")):
            path = self.inputs / kept.relative_to(self.kept)
            if kept.is_dir():
                path.mkdir(exist_ok=True)
            elif not path.exists() or stamp(path) != stamp(kept):
                shutil.copy2(kept, path)


def stamp(path):
    return path.stat().st_size, path.stat().st_mtime_ns
