"""Whether an input is answered as it should be: how the script ends, what it says, and where it writes.

A fork works until it dies or hangs; then another goes on behind the input that did it, so one crash hides no other.
Where Python opens, moves or removes a file is learned from its audit events.
"""

import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from itertools import pairwise
from pathlib import Path

import torch
from fuzz_inputs import case
from fuzz_world import World, call, stamp

LIMIT = 60  # seconds that one input may take: none needs more than a few
MEMORY = 6 * 2**30  # bytes that one input may ask for
SHARE = 200  # inputs that a fork works on; then a fresh one, which has forgotten everything
WRITES = {  # audit events, and how many of their arguments are paths
    "os.mkdir": 1,
    "os.rename": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.chmod": 1,
}
RESULT = r"\w+\.(pt|png|gif|npz|npy|json|jsonl|html)"
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
touched = []  # paths
watching = [False]


class Hang(BaseException):
    """Not an Exception, so that nobody takes it for a mistake in a file."""


def watch(event, args):
    """An audit hook: remember what is opened to be written, moved or removed."""
    if not watching[0]:
        return
    paths = args[: WRITES.get(event, 0)]
    if event == "open" and args[2] is not None and args[2] & TO_WRITE:
        paths = args[:1]
    touched.extend(os.path.abspath(os.fsdecode(path)) for path in paths if isinstance(path, (str, bytes)))


def lay_out(folder, files):
    """Fill an empty working folder; fuzz_inputs.py says how files are described."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, what in sorted(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if what is None:
            path.unlink(missing_ok=True)
            os.mkfifo(path)
        elif what == ():
            path.unlink()
        elif isinstance(what, str):
            path.symlink_to(what)
        elif isinstance(what, bytes):
            path.write_bytes(what)
        elif what == Path():
            path.mkdir(exist_ok=True)
        else:
            shutil.copytree(what, path, dirs_exist_ok=True)


def stray(folder, argv):
    """Where something was written, moved or removed, outside the working folder and every path that the user named."""
    words = [word.partition("=")[2] or word for word in argv if word and "\0" not in word]
    named = {os.path.abspath(word) for word in words} - {os.sep}
    named |= {os.path.dirname(path) for path in named if path.endswith("/last.pt")}  # its run: samples lie below
    temporary = tempfile.gettempdir()
    fine = {str(folder), os.path.realpath(temporary), temporary, "/dev/null"} | named
    beside = {os.path.dirname(path) for path in named if path != str(folder)}  # where files are written aside

    def allowed(path):
        if any(path == place or path.startswith(place + os.sep) for place in fine):
            return True
        if any(place.startswith(path + os.sep) for place in named):  # a folder on the way there
            return True
        return os.path.dirname(path) in beside and os.path.basename(path).startswith(".")

    return [path for path in touched if not allowed(path)]


def lost(world, folder, given):
    """Files that were there before and are gone or changed, though nobody named their place with --out.

    Below that place a script may replace what has the name of a result, and nothing else.
    """
    named = []
    for word, after in pairwise([*given.argv, ""]):
        if word.startswith("--out"):
            place = word.partition("=")[2] or after
            named += [os.path.abspath(place)] if place and "\0" not in place else []

    def may_change(path):
        result = re.fullmatch(RESULT, path.name)
        return result and any(str(path) == place or str(path).startswith(place + os.sep) for place in named)

    before = {folder / name: what for name, what in given.files.items() if isinstance(what, bytes)}
    before |= {world.inputs / path.relative_to(world.kept): path for path in world.kept.rglob("*") if path.is_file()}
    gone = []
    for path, what in before.items():
        if isinstance(what, Path):
            if path.is_file() and stamp(path) == stamp(what):
                continue
            what = what.read_bytes()
        if not (path.is_file() and path.read_bytes() == what) and not may_change(path):
            gone.append(str(path))
    return gone


def visible(text):
    """The lines that a terminal shows: a bar that returns to the beginning of its line is gone."""
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    return [line for line in lines if line.strip()]


def fault_in(status, out, err):
    """What is wrong with an answer; None if nothing is."""
    if status not in (0, 2):
        return f"status {status}: {err[-500:]}"
    if "Traceback" in out + err:
        return f"a traceback: {err}"
    lines = visible(err)
    if status == 2 and (len(lines) != 1 or not re.match(r"[\w.]+: error: ", lines[0])):
        return f"status 2 should come with one line, not {len(lines)}: {err}"
    if status == 2 and visible(out)[2:]:
        return f"status 2, after all that: {out}"
    return None


def answer(world, seed, i, show=False):
    """How input i is answered: a dict, whose "wrong" is None if it is answered as it should be."""
    given = case(world, seed, i)
    kind, name, argv, files, environment = given
    folder = world.folder / "case"
    lay_out(folder, files)
    os.chdir(folder)
    variables = os.environ.copy()
    os.environ.update(environment)
    threads = torch.get_num_threads()
    status = None
    out = err = ""
    touched.clear()
    try:
        signal.alarm(LIMIT)
        watching[0] = True
        try:
            status, out, err = call(name, argv)
        finally:
            watching[0] = False
            signal.alarm(0)
        wrong = fault_in(status, out, err)
    except Hang:
        wrong = f"hangs: {LIMIT} s"
    except BaseException:
        wrong = traceback.format_exc()

    if wrong is None and torch.get_num_threads() != threads:
        wrong = "leaves another number of threads"
    torch.set_num_threads(threads)
    away = stray(folder, argv)
    if away:
        wrong = f"writes to {away[:3]}"
    gone = lost(world, folder, given)
    if gone:
        wrong = f"loses {gone[:3]}"
    os.chdir(world.folder)
    os.environ.clear()
    os.environ.update(variables)
    world.restore()
    if show:
        print(kind, name, argv, environment, *files, status, out, err, sep="\n")
    last = (visible(err) or [""])[-1]
    return dict(i=i, kind=kind, script=name, argv=argv, status=status, wrong=wrong, last=last)


def work(world, seed, numbers, pipe):
    """In a fork: one input after the other, each reported when it is begun and when it is done."""

    def stop(*_):
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.addaudithook(watch)
    with os.fdopen(pipe, "w") as report:
        for i in numbers:
            print(json.dumps(dict(i=i)), file=report, flush=True)
            start = time.perf_counter()
            found = answer(world, seed, i)
            found["seconds"] = round(time.perf_counter() - start, 2)
            print(json.dumps(found), file=report, flush=True)


def forked(world, seed, numbers):
    """A fork at work: its process id, and the file that it reports into."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, os.fdopen(read)
    status = 1
    try:
        os.close(read)
        work(world, seed, numbers, write)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def fuzz(world, seed, numbers):
    """Yield the answer to each input, whatever happens to the process that works on them."""
    numbers = list(numbers)
    while numbers:
        child, lines = forked(world, seed, numbers[:SHARE])
        done = set()
        with lines:
            for line in lines:
                found = json.loads(line)
                at = found["i"]
                if len(found) > 1:
                    done.add(at)
                    yield found

        _, status = os.waitpid(child, 0)
        if status:  # it died of input `at`
            world.restore()
            kind, name, argv, *_ = case(world, seed, at)
            wrong = f"kills the process: {status}"
            yield dict(i=at, kind=kind, script=name, argv=argv, status=None, wrong=wrong, last="", seconds=0)
            done.add(at)
        numbers = [i for i in numbers if i not in done]


def prepare():
    """A World, in a folder of its own: one thread, every temporary file in one place, and no network."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz")).resolve()
    (folder / "tmp").mkdir()
    tempfile.tempdir = str(folder / "tmp")
    os.environ["MPLCONFIGDIR"] = tempfile.tempdir
    for scheme in ("http", "https"):
        os.environ[f"{scheme}_proxy"] = "http://127.0.0.1:9"  # nothing listens there, and it says so at once
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    return World(folder)
