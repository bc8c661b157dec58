"""Measures your exercises against closed forms, and says what is wrong with them.

    python exercises/check.py                         all ten
    python exercises/check.py heun ddim               these two
    python exercises/check.py --file anna.py          those that somebody handed in

takes a second or two, from any folder.  Nothing compares code: a sampler is measured by its order
of convergence, a loss by its mean, so any way to write it is right that does the right thing.  Exit
status 0: all that was asked passes.
"""

import re
import sys
import textwrap
import traceback
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to run from any folder

from common import cli
from common.cli import flag
from exercises.checks.distance import mmd2
from exercises.checks.flow import heun
from exercises.checks.guidance import guided_eps
from exercises.checks.losses import draw_and_kl, energy_score
from exercises.checks.measure import Mistake
from exercises.checks.mixture import mixture_score
from exercises.checks.reverse import reverse_sde
from exercises.checks.schedule import alpha_sigma
from exercises.checks.solvers import ddim, dpmpp_2m

import numpy as np

EXERCISES = Path(__file__).with_name("exercises.py")
CHECKS = {
    "alpha_sigma": alpha_sigma,
    "mixture_score": mixture_score,
    "reverse_sde": reverse_sde,
    "heun": heun,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "guided_eps": guided_eps,
    "draw_and_kl": draw_and_kl,
    "energy_score": energy_score,
    "mmd2": mmd2,
}
MARKS = {"passes": "\u2713", "mistake": "\u2717", "not written": "\u00b7"}
PLAIN = {"passes": "+", "mistake": "x", "not written": "."}  # where the terminal has no others


@dataclass(kw_only=True)
class Config:
    script = "check"

    exercises: list | None = flag.run(None, "some of these, by name", many="words")
    file: str | None = flag.run(
        None,
        "the file that holds the answers (default: exercises.py beside this one)",
        parse=cli.path,
    )

    def settle(self, typed):
        for name in self.exercises or []:
            if name not in CHECKS:
                raise ValueError(f"no exercise is called {name!r}: take one of {', '.join(CHECKS)}")


# ------------------------------------------------------------------------------ one exercise


class Outcome(NamedTuple):
    """passes, mistake or not written, and what there is to say about it."""

    kind: str
    text: str


def careful(function):
    """The function, unable to change the arrays of a check, and without NumPy's warnings."""

    def call(*args):
        args = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*args)

    return call


def crashed(error, path):
    """An exception of the learner's code, with the line that raised it."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    text = re.sub(r"[\w.]+\.<locals>\.", "", " ".join(text.split()))  # eps, as the learner knows it
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if not frames:
        return Outcome("mistake", text)
    return Outcome("mistake", f"{text}\nline {frames[-1].lineno} of {path.name}: {frames[-1].line}")


def outcome(name, answers, path=EXERCISES):
    """What the check of this name finds.  answers: a module, or whatever has the functions."""
    function = getattr(answers, name, None)
    if not callable(function):
        return Outcome("mistake", f"there is no function {name} in {path.name}")

    try:
        return Outcome("passes", CHECKS[name](careful(function)))
    except NotImplementedError:
        return Outcome("not written", "not written yet")
    except Mistake as mistake:
        return Outcome("mistake", str(mistake))
    except (Exception, SystemExit) as error:
        return crashed(error, path)


# ------------------------------------------------------------------------------ the command


def load(path):
    """The answers as a module, or the Outcome that says why there is none.

    Not imported: so no stale bytecode is in the way, and a file may have any name.
    """
    source = path.read_bytes()
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        line = (error.text or "").strip()
        return Outcome("mistake", f"{error.msg}\nline {error.lineno} of {path.name}: {line}")
    except (Exception, SystemExit) as error:
        return crashed(error, path)
    return module


def row(name, found):
    """A line of the report, or two."""
    marks = MARKS
    try:
        "".join(marks.values()).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        marks = PLAIN

    indented = dict(width=100, subsequent_indent=18 * " ")
    first, *more = found.text.split("\n")
    lines = [textwrap.fill(f"{marks[found.kind]} {name:15} {first}", **indented)]
    lines += [textwrap.fill(line, initial_indent=18 * " ", **indented) for line in more]
    return "\n".join(lines)


def main(argv=None):
    """Returns the exit status: 1 unless all that was asked passes."""
    with cli.program(Config.script):
        config = cli.parse(Config, argv)
        path = Path(config.file or EXERCISES).resolve()
        names = config.exercises or list(CHECKS)

        answers = load(path)
        if isinstance(answers, Outcome):
            print(row("the file", answers))
            return 1

        passed = 0
        for name in names:
            found = outcome(name, answers, path)
            passed += found.kind == "passes"
            print(row(name, found))

        if len(names) > 1:
            print(f"\n{passed} of {len(names)} pass")
    return int(passed < len(names))


if __name__ == "__main__":
    sys.exit(main())
