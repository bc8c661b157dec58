"""The tests tested: change one token of the mathematics, and see whether the tests of that file notice.

    python tests/slow/mutants.py --n 160 --json mutants.json      an hour or two of one core; goes on where it stopped
    python tests/slow/mutants.py --only metrics --n 20
    python tests/slow/mutants.py --list                           how many there are to draw from

A mutant is a copy of the repository in which one token of a schedule, kernel, sampler, loss, closed form or metric is
another: + for -, * for /, a constant plus one or halved, < for <=, min for max, sin for cos, alpha for sigma and so on.
Drawn with a seed, evenly over files, then over lines.  It is run against tests/test_FILE.py alone, quick tests first,
until the first failure: then it is killed.  Each run is a fork of a process that has imported torch already.
Left out: networks (another architecture is no mistake), plotting, files, command lines, and zip(strict=True).
"""

import argparse
import ast
import contextlib
import io
import json
import keyword
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tokenize
from fnmatch import fnmatch
from itertools import zip_longest
from pathlib import Path

import imageio.v3  # noqa: F401
import matplotlib
import numpy as np  # noqa: F401
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot  # noqa: E402, F401

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("data", "metrics", "reference_gmm_sde", "vp_sde", "vae", "latent_prior", "dddm", "vae_gan")
NO_MATHEMATICS = {  # what these do is files, pictures, words or plumbing; a star stands for any end
    "main", "make_parser", "parse_args", "settle*", "take_*", "load*", "build", "sample", "sample_*", "train",
    "training_samples", "simulate", "write_*", "save_*", "draw", "preview", "traversal", "loss_curve", "caption",
    "told", "crystal_report", "cached_latents", "fingerprint", "channels_last", "unit", "download", "read_idx",
    "_paired", "table", "unpack", "inception_fid", "prior_grid", "digit_map", "image_grid", "real_images", "Digit*",
    "attention", "cloud", "compare*", "opened", "report", "panels", "make_judge", "train_classifier",
    "_sane"}  # fmt: skip
SWAPS = {"+": "-", "-": "+", "*": "/", "/": "*", "**": "*", "//": "*", "%": "*", "@": "*", "<": "<=", "<=": "<",
         ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+=": "-=", "-=": "+=", "*=": "/=", "/=": "*="}
NAMES = {"min": "max", "max": "min", "sin": "cos", "cos": "sin", "alpha": "sigma", "sigma": "alpha", "exp": "expm1",
         "expm1": "exp", "mean": "sum", "sum": "mean", "argmin": "argmax", "argmax": "argmin", "and": "or", "or": "and",
         "True": "False", "False": "True", "beta_min": "beta_max", "beta_max": "beta_min", "sqrt": "square",
         "square": "sqrt", "log": "log1p", "log1p": "log", "alpha_s": "sigma_s", "sigma_s": "alpha_s",
         "alpha_t": "sigma_t", "sigma_t": "alpha_t", "clamp_min": "clamp_max", "clamp_max": "clamp_min",
         "eps_u": "eps_c", "eps_c": "eps_u", "x0_hat": "x",
         "ceil": "floor", "floor": "ceil", "minimum": "maximum", "maximum": "minimum",
         "ones": "zeros", "zeros": "ones", "logsumexp": "amax", "inf": "pi", "not": "", "abs": "square", "rho": "eta"}


def mathematics(tree):
    """Line ranges of the functions and classes of a script that compute: [(first, last)]."""
    ranges = []
    for node in tree.body:
        name = getattr(node, "name", "")
        plumbing = any(fnmatch(name, pattern) for pattern in NO_MATHEMATICS)
        network = isinstance(node, ast.ClassDef) and any("Module" in ast.unparse(base) for base in node.bases)
        if name and not plumbing and not network:
            ranges.append((node.lineno, node.end_lineno))
    return ranges


def out_of_bounds(tree):
    """Lines of signatures, messages, decorators and docstrings, whose tokens say nothing about the mathematics."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)):
            lines |= set(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.If) and isinstance(node.body[0], ast.Raise):  # what is refused: the fuzz's affair
            lines |= set(range(node.lineno, node.body[0].end_lineno + 1))
        elif isinstance(node, ast.FunctionDef):
            lines |= set(range(node.lineno - len(node.decorator_list), node.body[0].lineno))
    return lines


def other(token, before):
    """What to write instead of a token, given the one before it; None to leave it alone."""
    if token.type == tokenize.NUMBER:
        if "." in token.string or "e" in token.string:
            value = float(token.string)
            return repr(value / 2) if value else "1.0"
        return str(int(token.string, 0) + 1)
    if token.type == tokenize.NAME:
        return NAMES.get(token.string)
    if token.type == tokenize.OP and token.string in SWAPS:
        ends = before.string in (")", "]") or before.type in (tokenize.NAME, tokenize.NUMBER)
        binary = ends and not keyword.iskeyword(before.string)
        return SWAPS[token.string] if binary else "+" if token.string == "-" else None  # stars of arguments stay
    return None


def mutants_of(name):
    """Every single-token mutant of a script: [(line, column, what was, what is)]."""
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    tree, found = ast.parse(text), []
    ranges, skip, lines = mathematics(tree), out_of_bounds(tree), text.splitlines()
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type != tokenize.COMMENT]
    for before, token in zip(tokens, tokens[1:], strict=False):
        line, column = token.start
        if line in skip or not any(a <= line <= b for a, b in ranges):
            continue
        if lines[line - 1].endswith("strict=", 0, column):  # the lengths that zip checks: a habit, not mathematics
            continue
        new = other(token, before)
        if new is None or new == token.string:
            continue
        with contextlib.suppress(SyntaxError):
            ast.parse(change(text, line, column, token.string, new))
            found.append((line, column, token.string, new))
    return found


def change(text, line, column, was, new):
    lines = text.splitlines(keepends=True)
    row = lines[line - 1]
    lines[line - 1] = row[:column] + new + row[column + len(was) :]
    return "".join(lines)


def draw(names, n, seed):
    """n mutants, as many of each file, and within a file of as many lines as there are."""
    pools = []
    for name in names:
        rng, lines = random.Random(f"{seed} {name}"), {}  # another file changes nothing about this one's
        for mutant in mutants_of(name):
            lines.setdefault(mutant[0], []).append((name, *mutant))
        for several in lines.values():
            rng.shuffle(several)
        layers = [[m for m in layer if m] for layer in zip_longest(*lines.values())]  # one of every line, another, ...
        for layer in layers:
            rng.shuffle(layer)
        pools.append([mutant for layer in layers for mutant in layer])
    chosen = set([m for turn in zip_longest(*pools) for m in turn if m][:n])
    return [mutant for pool in pools for mutant in pool if mutant in chosen]


# ----------------------------------------------------------------------------------------------------------- one mutant


class Order:
    """A pytest plugin: quick tests first, by what they took when nothing was wrong; and who failed, and times."""

    def __init__(self, known=None, skip=()):
        self.known, self.skip, self.times, self.failed = known or {}, set(skip), {}, []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((i for i in items if i.nodeid not in self.skip), key=lambda i: self.known.get(i.nodeid, 0))

    def pytest_runtest_logreport(self, report):
        self.times[report.nodeid] = self.times.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.append("the import")


def in_a_fork(copy, name, known, skip, first, limit):
    """Run the tests of a script in the copy: (exit status or 'timeout', tests that failed, their times, seconds)."""
    start, (read, write) = time.perf_counter(), os.pipe()
    if not (child := os.fork()):
        os.close(read)
        try:
            os.setsid()  # so that its own children can be ended with it
            os.chdir(copy)
            sys.path[:] = [str(copy), *(p for p in sys.path if not Path(p or ".").resolve().is_relative_to(ROOT))]
            sys.dont_write_bytecode = True
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            order = Order(known, skip)
            argv = ["-q", "--tb=no", "-p", "no:cacheprovider", "-o", "addopts=", f"tests/test_{name}.py"]
            status = int(pytest.main(argv + ["-x"] * first, plugins=[order]))
            with os.fdopen(write, "w") as report:
                json.dump(dict(status=status, failed=order.failed, times=order.times), report)
        finally:
            os._exit(0)
    os.close(write)
    timer = signal.signal(signal.SIGALRM, lambda *_: os.killpg(child, signal.SIGKILL))
    signal.alarm(int(limit))
    with os.fdopen(read) as report:
        text = report.read()
    os.waitpid(child, 0)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, timer)
    seconds = time.perf_counter() - start
    if not text:
        return ("timeout" if seconds >= int(limit) else "died"), [], {}, seconds
    said = json.loads(text)
    return said["status"], said["failed"], said["times"], seconds


def copy_tree(folder):
    """The tracked files, and untracked ones that git does not ignore; assets by a link."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n"):
        if name and not name.startswith("assets/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "assets").symlink_to(ROOT / "assets")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n", type=int, default=160, help="mutants (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=MODULES, help="scripts (default: all that are there)")
    parser.add_argument("--json", metavar="FILE", help="where results are kept; what is there is not made again")
    parser.add_argument("--list", action="store_true", help="only count them")
    parser.add_argument("--slowest", type=float, default=30, help="leave out tests slower than this, seconds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = [n for n in args.only or MODULES if (ROOT / f"{n}.py").exists() and (ROOT / f"tests/test_{n}.py").exists()]
    if args.list:
        for name in names:
            print(f"{name:20}{len(mutants_of(name)):6}")
        return
    kept = Path(args.json) if args.json else None
    results = json.loads(kept.read_text()) if kept and kept.exists() else []
    done, known = {(r["script"], r["line"], r["column"], r["new"]) for r in results}, {}
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        copy = Path(folder).resolve()
        copy_tree(copy)
        for name, line, column, was, new in draw(names, args.n, args.seed):
            if (name, line, column, new) in done:
                continue
            if name not in known:
                _, failed, times, seconds = in_a_fork(copy, name, None, (), False, 1800)
                skip = {*failed, *(test for test, took in times.items() if took > args.slowest)}
                known[name] = times, skip, seconds
                print(f"{name}: {len(times)} tests, {seconds:.0f} s as it is; left out: {sorted(skip)}", flush=True)
            times, skip, usual = known[name]
            path, text = copy / f"{name}.py", (ROOT / f"{name}.py").read_text(encoding="utf-8")
            path.write_text(change(text, line, column, was, new), encoding="utf-8")
            try:
                status, failed, _, seconds = in_a_fork(copy, name, times, skip, True, 60 + 4 * usual)
            finally:
                path.write_text(text, encoding="utf-8")
            killed = status != 0
            source = text.splitlines()[line - 1].strip()
            results.append(dict(script=name, line=line, column=column, was=was, new=new, source=source, killed=killed,
                                by=failed[0].rpartition("::")[2] if failed else str(status), seconds=round(seconds, 1)))
            if kept:
                kept.write_text(json.dumps(results, indent=1) + "\n")
            how = f"killed by {results[-1]['by']}" if killed else "SURVIVES"
            print(f"{name}:{line}:{column}  {was} -> {new}  {how}  {seconds:.0f} s   {source}", flush=True)
    print(f"\n{'script':20}{'mutants':>8}{'killed':>8}{'share':>8}")
    for name in [*names, "all"]:
        ours = [r["killed"] for r in results if name in (r["script"], "all")]
        if ours:
            print(f"{name:20}{len(ours):8}{sum(ours):8}{100 * sum(ours) / len(ours):7.0f}%")
    for r in results:
        if not r["killed"]:
            print(f"survivor: {r['script']}.py:{r['line']}: {r['was']} -> {r['new']}: {r['source']}")


if __name__ == "__main__":
    main()
