"""Power cuts and full disks: runs are killed at random moments, starved of room, and started twice at once.

    python -m pytest tests/slow/test_crash.py      several minutes of one core

Whatever happens, a file that has its final name is whole (half-written ones are hidden, `.name.PID`), the last
checkpoint loads and goes on, and what the folder held before is still there or replaced by what was to come.
Every run is a fork that calls main(argv) of a script, because importing torch takes longer than most of what follows.
"""

import importlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import training  # noqa: E402

TINY = ["--batch-size=2", "--save-every=2", "--n=2", "--precision=float32"]
TRAININGS = {  # tiny, and without an end
    "points": ("vp_sde", ["--data=S", "--steps=2", "--n=8", "--save-every=3", "--batch-size=8"]),
    "crystals": ("vp_sde", [*TINY, "--img-size=16", "--steps=2"]),
    "vae": ("vae", [*TINY, "--img-size=16"]),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in {script for script, _ in TRAININGS.values()}:
        importlib.import_module(name)  # before the forks, as is what an optimizer imports when it is made
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    yield
    torch.set_num_threads(threads)


def start(script, argv, log, room=None):
    """A process that runs the script; its words go to log, a file or pipe.  room: bytes that a file may have."""
    if child := os.fork():
        return child
    status = 70
    try:
        words = log if isinstance(log, int) else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(words, 1)
        os.dup2(words, 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        try:
            status = importlib.import_module(script).main([str(a) for a in argv]) or 0
        except SystemExit as stop:
            status = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(script, argv, log, room=None):
    """The exit status; the words go through a pipe, which no room for files can stop."""
    with open(log, "wb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as cat:
        status = status_of(start(script, argv, cat.stdin.fileno(), room))
    return status


def whole(folder):
    """Read every file of a run folder to its end; return its names."""
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    for path in (folder / name for name in names):
        if path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            *lines, last = path.read_text().split("\n")
            assert all(isinstance(json.loads(line)["step"], int) for line in lines), last
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                assert all(arrays[key].size for key in arrays)
        else:
            with Image.open(path) as image:
                for i in range(getattr(image, "n_frames", 1)):
                    image.seek(i)
                    image.load()
    return names


@pytest.mark.parametrize("which", TRAININGS)
def test_kill_9_while_training(which, tmp_path):
    """Ten trainings of each kind, each of the last eight going on from where the one before was killed."""
    script, argv = TRAININGS[which]
    rng, out, log, reached = random.Random(which), tmp_path / "run", tmp_path / "log", 0
    fresh, began = ["--train", "--train-steps=1000000", *argv], time.perf_counter()
    child = start(script, [*fresh, "--out", tmp_path / "measured"], log)
    while not (tmp_path / "measured" / "last.pt").exists():  # how long the way to a checkpoint is, here and today
        assert time.perf_counter() < began + 300 and os.waitpid(child, os.WNOHANG) == (0, 0), log.read_text()
        time.sleep(0.01)
    usual = time.perf_counter() - began
    os.kill(child, signal.SIGKILL)
    status_of(child)
    whole(tmp_path / "measured")
    for i in range(10):
        child = start(script, [*(["--resume"] if (out / "last.pt").exists() else fresh), "--out", out], log)
        time.sleep(rng.uniform(0, usual if i < 2 else 2 * usual))
        assert os.waitpid(child, os.WNOHANG) == (0, 0), log.read_text()  # not ended by itself
        os.kill(child, signal.SIGKILL)
        assert status_of(child) == -signal.SIGKILL
        if out.exists():
            whole(out)
        if (out / "last.pt").exists():
            step = training.load_run(out, script)["step"]
            assert step >= reached
            reached = step
    assert reached > 0


@pytest.mark.parametrize("which", ["crystals", "points"])
def test_kill_9_while_sampling(which, tmp_path):
    """Ten times: every file is the old one, or the new one, to the bit."""
    script, argv = TRAININGS[which]
    out, log = tmp_path / "run", tmp_path / "log"
    assert run(script, ["--train", "--train-steps=1", *argv, "--out", tmp_path / "net"], log) == 0
    sample = ["--ckpt", tmp_path / "net", "--n=4", "--steps=40"]
    contents, began = {}, time.perf_counter()
    for seed in (1, 0):
        assert run(script, [*sample, "--seed", seed, "--out", out], log) == 0, log.read_text()
        for name in whole(out):
            contents.setdefault(name, set()).add((out / name).read_bytes())
    usual, rng = (time.perf_counter() - began) / 2, random.Random(which)
    for _ in range(10):
        child = start(script, [*sample, "--seed", 1, "--out", out], log)
        time.sleep(rng.uniform(0, 1.1 * usual))
        if os.waitpid(child, os.WNOHANG) == (0, 0):
            os.kill(child, signal.SIGKILL)
            status_of(child)
        names = whole(out)
        assert names == sorted(contents)
        for name in set(names) - {"metrics.json"}:  # which says how many seconds it took
            assert (out / name).read_bytes() in contents[name], name
        assert run(script, [*sample, "--seed", 0, "--out", out], log) == 0  # back to the start


@pytest.mark.parametrize("room", [0, 100, 1000, 5000, 20_000, 60_000, 10**6])
def test_no_room_for_a_file(room, tmp_path):
    """Training and sampling, where no file may be larger than that: one line and the old files, or success."""
    script, argv = TRAININGS["crystals"]
    out, log = tmp_path / "run", tmp_path / "log"
    assert run(script, ["--train", "--train-steps=1", *argv, "--out", out], log) == 0
    old = {name: (out / name).read_bytes() for name in whole(out)}
    samples = tmp_path / "samples"
    assert run(script, ["--ckpt", out, "--n=2", "--steps=3", "--out", samples], log) == 0
    drawn = whole(samples)
    for folder, names, flags in ((samples, drawn, ["--ckpt", out, "--n=2", "--steps=3", "--seed=5"]),
                                 (out, sorted(old), ["--resume", "--train-steps=4"])):
        status, said = run(script, [*flags, "--out", folder], log, room=room), log.read_text()
        assert status in (0, 2) and "Traceback" not in said, said
        assert (status == 2) == (": error: " in said.strip().splitlines()[-1])
        assert whole(folder) == names
        assert not [p for p in folder.iterdir() if p.name.startswith(".")]  # it had the time to tidy up
    if room == 0:
        log_file = {"log.jsonl"}
        assert status == 2 and all((out / n).read_bytes() == b for n, b in old.items() if n not in log_file)


def test_a_disk_that_is_full(tmp_path):
    """The same on a real file system of 300 kB, where it can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk, and not in every container")
    try:
        script, argv = TRAININGS["points"]
        status = run(script, ["--train", "--train-steps=50", *argv, "--out", disk / "run"], tmp_path / "log")
        said = (tmp_path / "log").read_text()
        assert status == 2 and "No space left" in said.splitlines()[-1] and "Traceback" not in said
        whole(disk / "run")
        assert not [p for p in (disk / "run").iterdir() if p.name.startswith(".")]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("which", TRAININGS)
def test_two_runs_at_once_under_one_name(which, tmp_path):
    """Who is last wins; nobody is shown a traceback, and every file is of one of them."""
    script, argv = TRAININGS[which]
    for i in range(3):
        out, logs = tmp_path / f"run{i}", [tmp_path / "a", tmp_path / "b"]
        both = [start(script, ["--train", "--train-steps=6", *argv, "--out", out], log) for log in logs]
        statuses = [status_of(child) for child in both]
        said = "".join(log.read_text() for log in logs)
        assert 0 in statuses and set(statuses) <= {0, 2} and "Traceback" not in said, said
        whole(out)
        assert training.load_run(out, script)["step"] == 6
        assert not [p for p in out.iterdir() if p.name.startswith(".")]
