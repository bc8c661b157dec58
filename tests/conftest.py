"""What several tests need: made-up digits, a small script, and what a user's mistake is to look like."""

import gzip
import os
import re
import signal
import struct

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of tests: before NumPy and torch are imported

import toy
from common import pictures, runs
from common.checkpoints import load_checkpoint

import numpy as np
import pytest
import torch
import torch.nn.functional as F


@pytest.fixture(scope="session", autouse=True)
def in_the_foreground():
    """Ctrl-C is heard.  A shell lets what it starts in the background ignore it, and then our programs do so too."""
    kinds = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ignored = [kind for kind in kinds if signal.getsignal(kind) == signal.SIG_IGN]
    for kind in ignored:
        signal.signal(kind, signal.default_int_handler)
    yield
    for kind in ignored:
        signal.signal(kind, signal.SIG_IGN)


@pytest.fixture(scope="session", autouse=True)
def float32_unless_said():
    """--precision auto is float32, as on a processor that does not multiply bf16: numbers to 1e-5 on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict)
        yield


@pytest.fixture(scope="session")
def mnist_folder(tmp_path_factory):
    """A folder of MNIST and Fashion-MNIST, 40 images of each part, that are blobs with random labels."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("MNIST", "FashionMNIST")):
        write_blobs(folder / name / "raw", seed)
    return folder


def write_blobs(raw, seed):
    """Smooth blobs and random labels, both parts gzipped, in torchvision's layout."""
    rng = np.random.default_rng(seed)
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        noise = torch.from_numpy(rng.random((40, 1, 28, 28), dtype=np.float32))
        x = (F.avg_pool2d(noise, 5, 1, 2)[:, 0] * 900 - 380).clamp(0, 255).byte().numpy()
        y = rng.integers(0, 10, 40, dtype=np.uint8)
        for name, magic, a in (("images-idx3", 2051, x), ("labels-idx1", 2049, y)):
            content = struct.pack(f">{1 + a.ndim}I", magic, *a.shape) + a.tobytes()
            (raw / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))


def visible(text):
    """The lines that a terminal shows: a bar that returns to the beginning of its line is gone."""
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line.strip()]


@pytest.fixture
def mistake(capsys):
    """mistake(main, *words): the one line that a user's mistake is answered with; the exit status is 2."""

    def line_of(main, *words):
        capsys.readouterr()  # what came before
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        (line,) = visible(capsys.readouterr().err)
        assert stop.value.code == 2 and re.match(r"[\w.]+: error: ", line)
        return line

    return line_of


def same(a, b):
    """Bit for bit, through dicts and lists of tensors and arrays."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if torch.is_tensor(a):
        return torch.equal(a, b)
    return np.array_equal(a, b)


def run(*words, main=toy.main):
    """The exit status of a command line, in this process."""
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code
    return 0


def state(folder):
    """What a training is made of, as its last checkpoint has it."""
    checkpoint = load_checkpoint(folder)
    return {key: checkpoint[key] for key in ("step", "model", "ema", "optimizer", "sums")}


def arrays(folder):
    """The arrays of a samples.npz."""
    with np.load(folder / "samples.npz") as file:
        return {name: file[name] for name in file}


@pytest.fixture
def no_pictures(monkeypatch):
    """Training without its loss.png, where only the weights are of interest."""
    monkeypatch.setattr(pictures, "loss_curve", lambda *args: None)


@pytest.fixture
def here(tmp_path, monkeypatch, no_pictures):
    """A folder of one's own to work in, into whose shipped/ checkpoints ship."""
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "shipped")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory):
    """The folder of a training of the toy that was never stopped.  Not to be written into."""
    folder = tmp_path_factory.mktemp("toy") / "never_stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "loss_curve", lambda *args: None)
        assert run("--train", "--out", folder) == 0
    return folder
