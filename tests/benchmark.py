"""What things cost, each measured in turn with what it is compared with, and told as a ratio.

    python tests/benchmark.py                            all of it: some ten minutes on two quiet cores
    python tests/benchmark.py start busy --repeats 5     these parts only
    python tests/benchmark.py main --against DIR         the main job beside that of an earlier checkout

    start    `python vp_sde.py --help` over `python -c "import torch"`
    main     the main job: 36 crystals, 300 steps, guidance
    busy     the ten-call job alone, and with two busy programs beside it, by how OpenMP's threads wait
    growth   time and memory of the ten-call job, as the number of samples doubles

Not a test: nothing here passes or fails.  Every figure is the median of --repeats processes, from start to last file;
memory is the peak of what stayed resident.  Close other programs first.
"""

import argparse
import contextlib
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HELP = ["vp_sde.py", "--help"]
IMPORT = ["-c", "import torch"]
MAIN = ["vp_sde.py", "--steps", "300", "--cfg", "1.5"]
TEN_CALLS = ["vp_sde.py", "--sampler", "dpmpp", "--steps", "10"]
WAITS = {  # how OpenMP's threads wait for work: rounds to spin before they sleep
    "torch's default": {"GOMP_SPINCOUNT": "300000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "PASSIVE (ours)": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def run(words, folder=ROOT, environment=None):
    """Seconds and peak memory (GB) of `python words`, as a process of its own in a checkout."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, *words]
        if words[0].endswith(".py") and "--help" not in words:
            command += ["--out", out]
        start = time.perf_counter()
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        child = subprocess.Popen(command, cwd=folder, env=os.environ | (environment or {}), **quiet)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)} in {folder} ended with status {child.returncode}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def medians(repeats, *jobs):
    """(seconds, GB) of each job, a list of arguments of `run`.  They take turns, so that all meet the same weather."""
    found = [[] for _ in jobs]
    for _ in range(repeats):
        for results, job in zip(found, jobs, strict=True):
            results.append(run(*job))
    return [tuple(map(statistics.median, zip(*results, strict=True))) for results in found]


@contextlib.contextmanager
def busy_programs(n):
    """So many programs that do nothing but work."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def start(repeats, against):
    run(HELP)  # once, so that all files are in memory
    (ours, _), (torch, _) = medians(repeats, [HELP], [IMPORT])
    print(f"start    --help {ours:.2f} s, import torch {torch:.2f} s: ratio {ours / torch:.2f}")


def main_job(repeats, against):
    jobs = [[MAIN]] + ([[MAIN, against]] if against else [])
    (seconds, memory), *before = medians(repeats, *jobs)
    print(f"main     {seconds:.1f} s, {memory:.2f} GB: {' '.join(MAIN)}")
    for old, old_memory in before:
        print(f"         {old:.1f} s, {old_memory:.2f} GB in {against}: ratio {seconds / old:.2f}")


def busy(repeats, against):
    jobs = [[TEN_CALLS, ROOT, wait] for wait in WAITS.values()]
    print(f"busy     {'seconds of ' + ' '.join(TEN_CALLS):52}{'alone':>8}{'beside 2':>10}")
    alone = medians(repeats, *jobs)
    with busy_programs(2):
        beside = medians(repeats, *jobs)
    for name, (quiet, _), (slow, _) in zip(WAITS, alone, beside, strict=True):
        print(f"         {name:52}{quiet:8.1f}{slow:10.1f}")


def growth(repeats, against):
    """The exponent is p of seconds ~ n^p from one line to the next, without what a job of one sample takes."""
    sizes = 36, 72, 144, 288
    (idle, _), *found = medians(repeats, *([[*TEN_CALLS, "--n", str(n)]] for n in (1, *sizes)))
    print(f"growth   {'samples':>8}{'seconds':>9}{'GB':>7}{'exponent':>10}    (one sample: {idle:.1f} s)")
    before = None
    for n, (seconds, memory) in zip(sizes, found, strict=True):
        work = max(seconds - idle, 1e-3)
        exponent = math.log2(work / before) if before else math.nan
        print(f"         {n:8}{seconds:9.1f}{memory:7.2f}{exponent:10.2f}")
        before = work


PARTS = {"start": start, "main": main_job, "busy": busy, "growth": growth}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--against", metavar="DIR", type=Path, help="a checkout of an earlier edition")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind (default %(default)s)")
    args = parser.parse_args()
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: one of {', '.join(PARTS)}")

    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, medians of {args.repeats}\n")
    for name in args.parts or PARTS:
        PARTS[name](args.repeats, args.against)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
