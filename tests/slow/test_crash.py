"""Power cuts and full disks: runs are killed at random moments, starved of room, and started twice at once.

    python -m pytest -n 0 tests/slow/test_crash.py      several minutes of one core

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
import traceback

import test_processes
from common.checkpoints import load_checkpoint

import matplotlib.pyplot  # noqa: F401  before the forks, like what an optimizer imports when it is made
import numpy as np
import pytest
import torch
from PIL import Image

TINY = ["--batch-size=2", "--save-every=2", "--n=2", "--precision=float32"]
TRAININGS = {  # tiny, and without an end
    "points": ("vp_sde_2d", ["--steps=2", "--n=8", "--save-every=3", "--batch-size=8"]),
    "crystals": ("vp_sde", [*TINY, "--img-size=16", "--steps=2"]),
    "vae": ("vae", [*TINY, "--img-size=16"]),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for script, _ in TRAININGS.values():
        importlib.import_module(script)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    yield
    torch.set_num_threads(threads)


def start(script, argv, log, room=None):
    """A process that runs the script; its words go to log, a file or pipe.  room: bytes that a file may have."""
    child = os.fork()
    if child:
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


def ended(child):
    return os.waitpid(child, os.WNOHANG) != (0, 0)


def kill(child):
    os.kill(child, signal.SIGKILL)
    return status_of(child)


def half_written(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def seconds_to_a_checkpoint(script, fresh, out, log):
    """How long a training takes to its first checkpoint, here and today."""
    began = time.perf_counter()
    child = start(script, [*fresh, "--out", out], log)
    while not (out / "last.pt").exists():
        assert time.perf_counter() < began + 300 and not ended(child), log.read_text()
        time.sleep(0.01)
    usual = time.perf_counter() - began
    kill(child)
    whole(out)
    return usual


@pytest.mark.parametrize("which", TRAININGS)
def test_kill_9_while_training(which, tmp_path):
    """Ten trainings of each kind, each of the last eight going on from where the one before was killed."""
    script, argv = TRAININGS[which]
    rng = random.Random(which)
    out = tmp_path / "run"
    log = tmp_path / "log"
    reached = 0
    fresh = ["--train", "--train-steps=1000000", *argv]
    usual = seconds_to_a_checkpoint(script, fresh, tmp_path / "measured", log)
    for i in range(10):
        flags = ["--resume"] if (out / "last.pt").exists() else fresh
        child = start(script, [*flags, "--out", out], log)
        time.sleep(rng.uniform(0, usual if i < 2 else 2 * usual))
        assert kill(child) == -signal.SIGKILL, log.read_text()  # not ended by itself
        if out.exists():
            whole(out)
        if (out / "last.pt").exists():
            step = load_checkpoint(out, script)["step"]
            assert step >= reached
            reached = step
    assert reached > 0


@pytest.mark.parametrize("which", ["crystals", "points"])
def test_kill_9_while_sampling(which, tmp_path):
    """Ten times: every file is the old one, or the new one, to the bit."""
    script, argv = TRAININGS[which]
    out = tmp_path / "run"
    log = tmp_path / "log"
    assert run(script, ["--train", "--train-steps=1", *argv, "--out", tmp_path / "net"], log) == 0, log.read_text()
    sample = ["--ckpt", tmp_path / "net", "--n=4", "--steps=40"]
    contents = {}
    began = time.perf_counter()
    for seed in (1, 0):
        assert run(script, [*sample, "--seed", seed, "--out", out], log) == 0, log.read_text()
        for name in whole(out):
            contents.setdefault(name, set()).add((out / name).read_bytes())
    usual = (time.perf_counter() - began) / 2

    rng = random.Random(which)
    for _ in range(10):
        child = start(script, [*sample, "--seed", 1, "--out", out], log)
        time.sleep(rng.uniform(0, 1.1 * usual))
        if not ended(child):
            kill(child)
        assert whole(out) == sorted(contents)
        for name in contents.keys() - {"metrics.json"}:  # which says how many seconds it took
            assert (out / name).read_bytes() in contents[name], name
        assert run(script, [*sample, "--seed", 0, "--out", out], log) == 0  # back to the start


@pytest.mark.parametrize("room", [0, 100, 1000, 5000, 20_000, 60_000, 10**6])
def test_no_room_for_a_file(room, tmp_path):
    """Training and sampling, where no file may be larger than that: one line and the old files, or success."""
    script, argv = TRAININGS["crystals"]
    out = tmp_path / "run"
    log = tmp_path / "log"
    assert run(script, ["--train", "--train-steps=1", *argv, "--out", out], log) == 0, log.read_text()
    old = {name: (out / name).read_bytes() for name in whole(out)}
    samples = tmp_path / "samples"
    sample = ["--ckpt", out, "--n=2", "--steps=3", "--out", samples]
    assert run(script, sample, log) == 0, log.read_text()

    for folder, flags in ((samples, [*sample, "--seed=5"]), (out, ["--resume", "--train-steps=4", "--out", out])):
        names = whole(folder)
        status = run(script, flags, log, room=room)
        said = log.read_text()
        assert status in (0, 2) and "Traceback" not in said, said
        assert (status == 2) == (": error: " in said.strip().splitlines()[-1])
        assert whole(folder) == names
        assert not half_written(folder)  # it had the time to tidy up
    if room == 0:
        kept = old.keys() - {"log.jsonl"}
        assert status == 2 and all((out / name).read_bytes() == old[name] for name in kept)


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
        assert not half_written(disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("which", TRAININGS)
def test_two_runs_at_once_under_one_name(which, tmp_path):
    """Who is last wins; nobody is shown a traceback, and every file is of one of them."""
    script, argv = TRAININGS[which]
    for i in range(3):
        out = tmp_path / f"run{i}"
        logs = [tmp_path / "a", tmp_path / "b"]
        both = [start(script, ["--train", "--train-steps=6", *argv, "--out", out], log) for log in logs]
        statuses = [status_of(child) for child in both]
        said = "".join(log.read_text() for log in logs)
        assert 0 in statuses and set(statuses) <= {0, 2} and "Traceback" not in said, said
        whole(out)
        assert load_checkpoint(out, script)["step"] == 6
        assert not half_written(out)


@pytest.mark.parametrize("moment", range(200))
def test_processes_that_stop_together_end(here, toy_run, monkeypatch, moment):
    """Seven of 400 hung for ever when a group was taken apart as soon as its last word was said."""
    test_processes.test_when_one_of_them_is_asked_to_stop_all_leave_at_the_same_step(here, toy_run, monkeypatch)
