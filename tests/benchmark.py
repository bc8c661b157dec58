"""What things cost, each measured in turn with what it is compared with, and told as a ratio.

    python tests/benchmark.py                            all of it: some ten minutes on two quiet cores
    python tests/benchmark.py start busy --repeats 5     these parts only
    python tests/benchmark.py main --against DIR         the main job beside that of an earlier checkout

    start    `python vp_sde.py --help` over `python -c "import torch"`
    main     the main job: 36 crystals, 300 steps, guidance
    busy     the ten-call job alone, and with two busy programs beside it, by how OpenMP's threads wait
    growth   time and memory of the ten-call job, as the number of samples doubles

Not a test: nothing here passes or fails.  Every figure is the median of --repeats processes, from start to last file:
seconds by the clock, seconds of the processor (which other programs stretch less), and the peak of resident memory.
Close other programs first.
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
from typing import NamedTuple

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


class Cost(NamedTuple):
    wall: float  # seconds
    processor: float  # seconds
    memory: float  # GB

    def __str__(self):
        return f"{self.wall:.2f} s ({self.processor:.2f} s of the processor, {self.memory:.2f} GB)"

    def over(self, other):
        return f"ratio {self.wall / other.wall:.2f} ({self.processor / other.processor:.2f} of the processor)"


def run(words, folder=ROOT, environment=None):
    """The Cost of `python words`, as a process of its own in a checkout."""
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
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e9)


def medians(repeats, *jobs):
    """The median Cost of each job, arguments of `run`.  They take turns, so that all meet the same weather."""
    found = [[] for _ in jobs]
    for _ in range(repeats):
        for results, job in zip(found, jobs, strict=True):
            results.append(run(*job))
    return [Cost(*map(statistics.median, zip(*results, strict=True))) for results in found]


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
    ours, torch = medians(repeats, [HELP], [IMPORT])
    print(f"start    {ours}: {' '.join(HELP)}\n         {torch}: {' '.join(IMPORT)}\n         {ours.over(torch)}")


def main_job(repeats, against):
    jobs = [[MAIN]] + ([[MAIN, against]] if against else [])
    ours, *before = medians(repeats, *jobs)
    print(f"main     {ours}: {' '.join(MAIN)}")
    for old in before:
        print(f"         {old}: in {against}\n         {ours.over(old)}")


def busy(repeats, against):
    jobs = [[TEN_CALLS, ROOT, wait] for wait in WAITS.values()]
    print(f"busy     {'seconds of ' + ' '.join(TEN_CALLS):52}{'alone':>8}{'beside 2':>10}")
    alone = medians(repeats, *jobs)
    with busy_programs(2):
        beside = medians(repeats, *jobs)
    for name, quiet, slow in zip(WAITS, alone, beside, strict=True):
        print(f"         {name:52}{quiet.wall:8.1f}{slow.wall:10.1f}")


def growth(repeats, against):
    """The exponent is p of seconds ~ n^p from one line to the next, without what a job of one sample takes."""
    sizes = 36, 72, 144, 288
    idle, *found = medians(repeats, *([[*TEN_CALLS, "--n", str(n)]] for n in (1, *sizes)))
    print(f"growth   {'samples':>8}{'seconds':>9}{'GB':>7}{'exponent':>10}    one sample: {idle}")
    before = math.nan
    for n, cost in zip(sizes, found, strict=True):
        work = max(cost.wall - idle.wall, 1e-3)
        print(f"         {n:8}{cost.wall:9.1f}{cost.memory:7.2f}{math.log2(work / before):10.2f}")
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
