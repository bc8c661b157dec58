"""Hostile inputs: whatever is thrown at a script ends in status 0 or in one line and status 2, and writes where it may.

    python tests/slow/test_fuzz.py --n 10000       inputs 0 .. 9,999 of seed 0, two hours of one core; failures in full
    python tests/slow/test_fuzz.py --only 4711     one of them again, with what it printed
    python -m pytest -n 0 tests/slow/test_fuzz.py  a few hundred of them

Every script is called through main(argv), in this process, as it is.  fuzz_world.py makes valid inputs, fuzz_inputs.py
hostile ones of them, and fuzz_watch.py sees how they are answered.  What is under test is how input is read, not what
is computed: so sizes are tiny, and of most command lines the output folder is unusable.
"""

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # our own modules, when it runs as a script
from fuzz_watch import answer, fuzz, prepare, watch  # noqa: E402


@pytest.fixture(scope="module")
def world():
    here = os.getcwd()
    where = tempfile.tempdir
    kept = os.environ.copy()
    world = prepare()
    yield world
    os.chdir(here)
    tempfile.tempdir = where
    os.environ.clear()
    os.environ.update(kept)
    shutil.rmtree(world.folder)


def test_hostile_inputs(world):
    answers = list(fuzz(world, 1, range(300)))
    assert not [found for found in answers if found["wrong"]]
    assert {found["status"] for found in answers} == {0, 2}
    assert {found["script"] for found in answers} == {*world.configs, "common.runs"}


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="these inputs, in this process")
    parser.add_argument("--json", metavar="FILE", help="every answer, one a line")
    return parser.parse_args()


def many(world, args, keep):
    """Inputs args.start .. args.start + args.n: print what is answered badly, and a summary."""
    kinds = Counter()
    count = wrong = 0
    for found in fuzz(world, args.seed, range(args.start, args.start + args.n)):
        print(json.dumps(found), file=keep, flush=True)
        kinds[f"{found['kind']} {found['status']}"] += 1
        count += 1
        if found["wrong"]:
            wrong += 1
            print(f"{found['i']}: {found['script']} {found['argv']}\n{found['wrong']}\n", flush=True)
        if count % 500 == 0:
            print(f"{count} inputs, {wrong} answered badly", flush=True)
    print(f"{count} inputs, {wrong} answered badly; by kind and status: {dict(sorted(kinds.items()))}")


def main():
    args = parsed()
    world = prepare()
    try:
        if args.only:
            sys.addaudithook(watch)
            for i in args.only:
                print(answer(world, args.seed, i, show=True)["wrong"])
            return
        with open(args.json, "a") if args.json else io.StringIO() as keep:
            many(world, args, keep)
    finally:
        shutil.rmtree(world.folder)


if __name__ == "__main__":
    main()
