"""Processes of their own: several that share the work, terminals and pipes that go away, and what an import brings."""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

from common import checkpoints, devices, loop, sampling
from conftest import arrays, run, same, state
from test_sampling import TIMES, config, points_walk

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked: to load torch takes seconds")

# ------------------------------------------------------------------------------------------------ several processes


def forked(work, environment, redirect):
    """A child that calls work(), and ends with the status that it returns."""
    child = os.fork()
    if child:
        return child
    status = 70
    signal.alarm(120)  # a child that hangs is killed, and its test is red
    try:
        os.environ.update(environment)
        redirect()
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def into(path):
    """stdout and stderr to a file, as after > path 2>&1."""

    def redirect():
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115

    return redirect


def together(work, folder, n=2):
    """Call work() in n processes as torchrun would; return what they said, and their statuses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(n)}
    logs = [folder / f"said_{rank}.txt" for rank in range(n)]
    children = [forked(work, address | {"RANK": str(rank)}, into(logs[rank])) for rank in range(n)]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [log.read_text() for log in logs], statuses


def close(a, b, tolerance=1e-5):
    """Whether dicts and lists of tensors differ by no more than this."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b if isinstance(a, str) else bool((torch.as_tensor(a) - torch.as_tensor(b)).abs().max() <= tolerance)


def test_two_processes_take_the_step_of_one_and_one_of_them_talks(here, toy_run):
    said, statuses = together(lambda: run("--train", "--out", "two"), here)
    assert statuses == [0, 0], said
    assert said[1] == "" and said[0].count("output in two") == said[0].count("now holds") == 1
    one = state(toy_run)
    two = state("two")
    assert one["step"] == two["step"] == 12
    assert close(one["model"], two["model"]) and close(one["ema"], two["ema"])
    for k, moments in one["optimizer"]["state"].items():
        assert close(moments, two["optimizer"]["state"][k])
    logs = [[json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()] for out in (toy_run, "two")]
    for a, b in zip(*logs, strict=True):
        assert a["step"] == b["step"] and a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_samples_shared_by_processes_are_those_of_one(here, toy_run):
    for words in (["--n", 7, "--sample-batch", 2], ["--n-samples", 1]):  # four batches of the same; nothing to share
        said, statuses = together(lambda: run("--ckpt", toy_run, *words, "--out", "two"), here)  # noqa: B023
        assert statuses == [0, 0], said
        assert run("--ckpt", toy_run, *words, "--out", "one") == 0
        assert same(arrays(here / "one"), arrays(here / "two"))
        assert sorted(os.listdir("one")) == sorted(os.listdir("two"))


def by_hand():
    """What the processes tell one another, saved by each."""
    with devices.process_group(torch.device("cpu")):
        rank = devices.rank()
        found = dict(
            processes=devices.processes(),
            rows=[devices.own_rows(12).start, devices.own_rows(12).stop],
            mean=devices.mean_over_processes(float(rank)),
            gathered=devices.gathered(rank),
            points=sampling.sample_points(points_walk, config(n=5), TIMES).x,
            film=sampling.sample_points(points_walk, config(n=5), TIMES).film[-1][1],
        )
        gradients = [torch.full((2,), float(rank)), torch.full((1, 3), 2.0 * rank)]
        devices.average_over_processes(gradients)
        with devices.alone():
            found["alone"] = sampling.in_batches(3, 1, lambda rows: torch.ones(1)) if rank == 0 else torch.ones(3)
    torch.save(found | {"gradients": gradients}, f"{rank}.pt")
    return 0


def test_processes_know_one_another_and_share_a_cloud(here):
    said, statuses = together(by_hand, here)
    assert statuses == [0, 0], said
    first, second = (torch.load(f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert first["processes"] == 2 and first["gathered"] == second["gathered"] == [0, 1]
    assert first["rows"] == [0, 6] and second["rows"] == [6, 12]
    assert first["mean"] == second["mean"] == 0.5
    for found in (first, second):
        assert found["gradients"][0].tolist() == [0.5, 0.5] and found["gradients"][1].tolist() == [[1.0, 1.0, 1.0]]
        assert found["alone"].tolist() == [1, 1, 1]
        alone = sampling.sample_points(points_walk, config(n=5), TIMES)
        assert same(found["points"], alone.x) and same(found["film"], alone.film[-1][1])


def test_when_one_of_them_is_asked_to_stop_all_leave_at_the_same_step(here, toy_run, monkeypatch):
    plain = loop.learning_rate

    def rate(step, *args):
        if step == 4 and devices.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(step, *args)

    monkeypatch.setattr(loop, "learning_rate", rate)
    said, statuses = together(lambda: run("--train", "--out", "two"), here)
    assert statuses == [130, 130] and "stopped at step 5, saved" in said[0]
    assert checkpoints.load_checkpoint("two")["step"] == 5


def test_a_batch_that_processes_cannot_share(here):
    said, statuses = together(lambda: run("--train", "--batch-size", 3, "--out", "two"), here)
    assert statuses == [2, 2] and "--batch-size 3 cannot be shared by 2 processes" in said[0]
    assert not Path("two").exists()


def test_a_rank_without_a_world_is_one_process_and_it_saves(here, toy_run, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert run("--train", "--out", "x") == 0
    assert same(state("x"), state(toy_run)) and "output in x" in capsys.readouterr().out


def test_torchrun_starts_a_script_and_passes_its_flags_on(here, toy_run):
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--", ROOT / "tests" / "toy.py"]
    words += ["--ckpt", toy_run, "--n-samples", 7, "--sample-batch", 2, "--precision", "float32", "--out", "two"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *map(str, words)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("output in two") == done.stdout.count("now holds") == 1
    assert run("--ckpt", toy_run, "--n", 7, "--sample-batch", 2, "--out", "one") == 0
    assert same(arrays(here / "one"), arrays(here / "two"))


# ------------------------------------------------------------------------------------------------ terminals and pipes


def closed():
    """As after >&- 2>&-: Python has no streams then."""
    os.close(1)
    os.close(2)
    sys.stdout = sys.stderr = None


def nobody_reads():
    """As before | true: a pipe whose other end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


@pytest.mark.parametrize("redirect", [closed, nobody_reads])
def test_a_training_lives_on_without_its_terminal(here, toy_run, redirect):
    child = forked(lambda: run("--train", "--out", "x"), {}, redirect)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert same(state("x"), state(toy_run)) and same(arrays(here / "x"), arrays(toy_run))
    assert sorted(os.listdir("x")) == ["config.json", "last.pt", "log.jsonl", "metrics.json", "samples.npz"]


def test_a_closed_terminal_saves_the_training(here, toy_run, monkeypatch):
    """SIGHUP, and from then on nobody who could read a word."""
    plain = loop.learning_rate

    def rate(step, *args):
        if step == 4 and not Path("hung up").exists():
            Path("hung up").touch()
            nobody_reads()
            os.kill(os.getpid(), signal.SIGHUP)
        return plain(step, *args)

    monkeypatch.setattr(loop, "learning_rate", rate)
    child = forked(lambda: run("--train", "--out", "x"), {}, into(here / "said.txt"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert checkpoints.load_checkpoint("x")["step"] == 5
    assert run("--resume", "--out", "x") == 0 and same(state("x"), state(toy_run))


def test_what_cannot_be_shown_is_replaced_and_the_work_is_kept(here, toy_run):
    """A whole program, to its end: a pipe nobody reads, no stderr, a folder that no terminal can spell, LC_ALL=C."""
    out = os.fsdecode(b"m\xfcnze \xc3\xa4")
    Path("münze.json").write_bytes('\ufeff{"data_path": "münze.pt", "n": 2}'.encode())
    words = [sys.executable, ROOT / "tests" / "toy.py", "--ckpt", toy_run, "--config", "münze.json", "--out", out]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    pipe = 'set -o pipefail; "$@" 2>&- | head -c 0; exit ${PIPESTATUS[0]}'
    done = subprocess.run(["bash", "-c", pipe, "bash", *map(str, words)], env=environment)
    assert done.returncode == 0
    assert sorted(os.listdir(out)) == ["config.json", "metrics.json", "samples.npz"]
    assert len(arrays(Path(out))["x"]) == 2


# ------------------------------------------------------------------------------------------------ what an import brings

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
TORCH_FREE = ["reference_gmm_sde"]
DRAWING = {"matplotlib", "imageio", "pooch", "PIL"}  # loaded when something is drawn, and no sooner

PROBE = """
import contextlib, importlib, io, json, os, sys

policies, found = [], {}
sys.addaudithook(lambda event, args: event == "import" and args[0] == "torch"
                 and policies.append(os.environ.get("OMP_WAIT_POLICY")))

for name in sys.argv[1:]:
    said, before = {}, set(sys.modules)
    try:
        script = importlib.import_module(name)
        for words in ("--help", "--nonsense"):
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                try:
                    script.main([words])
                except SystemExit as stop:
                    said[words] = [stop.code, out.getvalue(), err.getvalue()]
    except Exception as error:
        said["error"] = repr(error)
    found[name] = said | {"loaded": sorted(set(sys.modules) - before)}
print(json.dumps({"scripts": found, "policy": policies[0]}))
"""


@pytest.fixture(scope="module")
def probed():
    """What every script says to --help and to a mistake, and which modules are loaded then: all in one process."""
    order = sorted(SCRIPTS, key=lambda name: (name not in TORCH_FREE, name))
    unset = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = unset | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "module://nonsense", "LC_ALL": "C"}
    words = [sys.executable, "-c", PROBE, *order]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_a_mistake_are_answered_at_once_and_in_any_environment(probed, name):
    """MPLBACKEND names a backend that does not exist, as in a notebook's terminal."""
    said = probed["scripts"][name]
    assert "error" not in said
    status, text, errors = said["--help"]
    assert status == 0 and f"{name}.py" in text and errors == ""
    status, text, errors = said["--nonsense"]
    assert status == 2 and text == "" and errors.startswith(f"{name}.py: error: ") and errors.count("\n") == 1
    assert not DRAWING & set(said["loaded"])


@pytest.mark.parametrize("name", TORCH_FREE)
def test_the_reference_loads_no_torch(probed, name):
    assert "torch" not in probed["scripts"][name]["loaded"]


def test_it_is_decided_how_threads_wait_before_torch_is_loaded(probed):
    assert probed["policy"] == "PASSIVE"


