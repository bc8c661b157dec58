"""The tests tested: change one token of the code, and see whether a test notices.

    python tests/slow/mutants.py --n 150 --seed 3 --json mutants.json    hours of one core; goes on where it stopped
    python tests/slow/mutants.py --only vp_sde common/cli --n 20
    python tests/slow/mutants.py --list                                  how many there are to draw from

A mutant is a copy of the repository in which one token is another: + for -, * for /, a constant plus one or halved,
< for <=, and for or, min for max, sin for cos, alpha for sigma and so on.  Every line of code inside a function has the
same chance to be drawn.  Left out: networks (another architecture is no mistake), figures, messages, signatures, and
the one-line settings at the top of a script.

A test is asked if its file imports the mutated one, directly or through others.  First come the tests that call the
mutated function, until one fails: then the mutant is killed.  If none does, the others of the same files are asked, and
those that start processes, whose calls cannot be seen from here, but no more than take --budget seconds.  Each run is a
fork of a process that has imported torch already.
"""

import argparse
import ast
import cProfile
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import cache
from itertools import islice
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
sys.path.append(str(Path(__file__).resolve().parents[1]))  # where walk.py lies

import walk

import mutations
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.relative_to(ROOT).as_posix(): path for folder in ("", "common", "audits", "tests")
         for path in sorted((ROOT / folder).glob("*.py"))}  # fmt: skip
PRODUCT = [name for name in FILES if not name.startswith("tests/") and not name.endswith("__init__.py")]
TESTS = [name for name in FILES if name.startswith("tests/test_") and name != "tests/test_project.py"]  # of texts
LIMIT = 300  # seconds on top of ten times the usual ones, for a machine that is busy

# ------------------------------------------------------------------------------------------------ who imports what


def text_of(name):
    return FILES[name].read_text(encoding="utf-8")


@cache
def imported(name):
    """The files of ours that a file imports, inside functions as well."""
    known = {path.removeprefix("tests/").removesuffix(".py").replace("/", "."): path for path in FILES}
    found = set()
    for node in ast.walk(ast.parse(text_of(name))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {known[module] for module in found & known.keys()}


@cache
def reached(name):
    return walk.reached(name, imported)


def starts_processes(test):
    return re.search(r"subprocess|os\.fork", text_of(test))


# ------------------------------------------------------------------------------------------------ one run of tests


class Watch:
    """A pytest plugin: which tests to run, in which order; and who failed, how long each took, and what it called."""

    def __init__(self, order=None, copy=None):
        self.order = order
        self.copy = copy  # of which calls are noted, if it is given
        self.times = {}
        self.calls = defaultdict(set)  # {test: functions, "file:outermost name"}
        self.failed = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        if self.order is not None:
            place = {test: i for i, test in enumerate(self.order)}
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        if not self.copy:
            return (yield)
        profile = cProfile.Profile(builtins=False)
        start = time.process_time()
        profile.enable()
        try:
            return (yield)
        finally:
            profile.disable()
            self.times[item.nodeid] = time.process_time() - start  # which a busy machine does not stretch
            codes = {entry.code for entry in profile.getstats()}
            self.calls[item.nodeid] = set(map(self.function, codes)) - {None}

    def function(self, code):
        """"common/files.py:write_json" of a function, or of what is inside it; None if it is none of ours."""
        name = os.path.relpath(code.co_filename, self.copy)
        return f"{name}:{code.co_qualname.partition('.<locals>')[0]}" if name in FILES else None

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.append("the import")


def run_tests(copy, files, watch, first=True, limit=1800):
    """In a fork, run tests of the copy: {status: of pytest, or "timeout", or "died"; failed; times; calls}."""
    start = time.perf_counter()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        try:
            os.setsid()  # so that its own children can be ended with it
            os.chdir(copy)
            here = [path for path in sys.path if not Path(path or ".").resolve().is_relative_to(ROOT)]
            sys.path[:] = [str(copy), *here]
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            words = ["-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", *files]
            status = int(pytest.main(words + ["-x"] * first, plugins=[watch]))
            calls = {test: sorted(called) for test, called in watch.calls.items()}
            with os.fdopen(write, "w") as report:
                json.dump(dict(status=status, failed=watch.failed, times=watch.times, calls=calls), report)
        finally:
            os._exit(0)

    os.close(write)
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
    signal.alarm(int(limit))
    with os.fdopen(read) as report:
        text = report.read()
    os.waitpid(child, 0)
    signal.alarm(0)
    if text:
        return json.loads(text)
    late = time.perf_counter() - start >= int(limit)
    return dict(status="timeout" if late else "died", failed=[], times={}, calls={})


class Suite:
    """The tests as they are when nothing is wrong: what each takes, and which functions it calls."""

    def __init__(self, copy, budget, kept):
        self.copy = copy
        self.budget = budget
        self.times = {}
        self.calls = {}
        start = time.perf_counter()
        for name in TESTS:  # each in a process of its own, so that no cache hides a call
            found = self.known(name, kept)
            out = {test for test, took in found["times"].items() if took > budget} | set(found["failed"])
            self.times |= {test: took for test, took in found["times"].items() if test not in out}
            self.calls |= {test: set(called) for test, called in found["calls"].items() if test not in out}
            if out or not found["times"]:
                print(f"{name}: left out {sorted(out) or 'all'}", flush=True)
        total = sum(self.times.values())
        print(f"{len(self.times)} tests of {total:.0f} s, in {time.perf_counter() - start:.0f} s", flush=True)

    def known(self, name, kept):
        """What a file of tests does, measured, or as it is in the folder of what was measured before."""
        if not kept:
            return run_tests(self.copy, [name], Watch(copy=self.copy), first=False)
        path = kept / f"{Path(name).stem}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(self.known(name, None)))
        return json.loads(path.read_text())

    def ordered(self, tests, name):
        """File by file, as fixtures want it: first those that import the mutated file, then the quick ones."""
        seconds = defaultdict(float)
        for test in tests:
            seconds[file_of(test)] += self.times[test]
        nearest = {file: name not in imported(file) for file in seconds}
        return sorted(tests, key=lambda t: (nearest[file_of(t)], seconds[file_of(t)], file_of(t), self.times[t]))

    def against(self, name, function):
        """Who kills the mutant that lies in the copy: a test, "timeout" or "died"; None if nobody does."""
        near = [test for test in self.times if name in reached(file_of(test))]
        callers = {test for test in near if f"{name}:{function}" in self.calls.get(test, ())}
        files = set(map(file_of, callers))
        others = {test for test in near if file_of(test) in files or starts_processes(file_of(test))} - callers

        budget = self.budget
        for tests in (self.ordered(callers, name), self.ordered(others, name)):
            asked = []
            for test in tests:
                if self.times[test] <= budget:
                    asked.append(test)
                    budget -= self.times[test]
            if not asked:
                continue
            limit = LIMIT + 10 * sum(self.times[test] for test in asked)
            found = run_tests(self.copy, sorted(set(map(file_of, asked))), Watch(order=asked), limit=limit)
            if found["status"] != 0:
                return found["failed"][0] if found["failed"] else str(found["status"])
        return None


def file_of(test):
    return test.partition("::")[0]


def copy_tree(folder):
    """The tracked files, and untracked ones that git does not ignore; assets by a link."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n"):
        if name and not name.startswith("assets/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "assets").symlink_to(ROOT / "assets")


# ------------------------------------------------------------------------------------------------ all of them


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--n", type=int, default=150, help="mutants (default %(default)s)")
    add("--seed", type=int, default=0)
    add("--only", nargs="+", metavar="NAME", help="vp_sde, common/cli ... (default: all)")
    add("--json", metavar="FILE", help="where results are kept, in FILE.tests/ what tests do; it goes on from there")
    add("--list", action="store_true", help="only count them")
    add("--budget", type=float, default=60, help="seconds of tests run against one mutant (default %(default)s)")
    return parser.parse_args()


def draw(pools, n, seed):
    """n mutants (file, mutant): lines of code, each with the same chance, and of each line one mutant."""
    lines = defaultdict(list)
    for name, mutants in pools.items():
        for mutant in mutants:
            lines[name, mutant.line].append(mutant)
    rng = random.Random(seed)
    order = rng.sample(sorted(lines), len(lines))
    chosen = [(name, rng.choice(lines[name, line])) for name, line in order]
    valid = (pick for pick in chosen if mutations.is_python(mutations.change(text_of(pick[0]), pick[1])))
    return list(islice(valid, n))


def summary(results):
    print(f"\n{'file':32}{'mutants':>8}{'killed':>8}{'share':>8}")
    for name in [*sorted({r["file"] for r in results}), "all"]:
        ours = [r["by"] is not None for r in results if name in (r["file"], "all")]
        if ours:
            print(f"{name:32}{len(ours):8}{sum(ours):8}{100 * sum(ours) / len(ours):7.0f}%")
    for r in results:
        if r["by"] is None:
            print(f"survivor: {r['file']}:{r['line']}: {r['was']} -> {r['new']}: {r['source']}")


def main():
    args = parsed()
    wanted = {f"{name}.py" for name in args.only or []} or set(PRODUCT)
    pools = {name: mutations.of(text_of(name)) for name in PRODUCT if name in wanted}
    if args.list:
        for name, mutants in pools.items():
            print(f"{name:32}{len({m.line for m in mutants}):6} lines{len(mutants):6} mutants")
        return

    kept = Path(args.json) if args.json else None
    results = json.loads(kept.read_text()) if kept and kept.exists() else []
    done = {(r["file"], r["line"], r["column"], r["new"]) for r in results}
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        copy = Path(folder).resolve()
        copy_tree(copy)
        suite = Suite(copy, args.budget, kept and Path(f"{kept}.tests"))
        for name, m in draw(pools, args.n, args.seed):
            if (name, m.line, m.column, m.new) in done:
                continue
            text = text_of(name)
            (copy / name).write_text(mutations.change(text, m), encoding="utf-8")
            start = time.perf_counter()
            try:
                by = suite.against(name, m.function)
            finally:
                (copy / name).write_text(text, encoding="utf-8")
            seconds = round(time.perf_counter() - start, 1)
            source = text.splitlines()[m.line - 1].strip()
            results.append(dict(file=name, **m._asdict(), source=source, by=by, seconds=seconds))
            if kept:
                kept.write_text(json.dumps(results, indent=1) + "\n")
            how = f"killed by {by}" if by else "SURVIVES"
            print(f"{name}:{m.line}: {m.was} -> {m.new}: {source}\n    {how}, {seconds:.0f} s", flush=True)
    summary(results)


if __name__ == "__main__":
    main()
