"""A claim is a sentence with a number that can be measured; an audit is a table of them."""

import math
from collections.abc import Callable
from typing import NamedTuple

HEAD = f"{'claim':66}{'expected':>10}{'measured':>12}{'tolerance':>11}  verdict"


class Claim(NamedTuple):
    """What is said, what follows from theory or was required, and what was found.

    It holds if |measured - expected| <= tolerance.  A claim without a tolerance only reports:
    under `expected` stands the best that could be had.
    """

    claim: str
    expected: float
    measured: float
    tolerance: float | None = None
    n: int | None = None  # how many samples it took
    note: str = ""  # what else a reader of the table has to know

    @property
    def holds(self):
        """True, False (NaN included), or None for a report."""
        if self.tolerance is None:
            return None
        return bool(abs(self.measured - self.expected) <= self.tolerance)

    @property
    def verdict(self):
        return {True: "pass", False: "FAIL", None: "report"}[self.holds]

    def __str__(self):
        """A row of the table."""
        tolerance = "" if self.tolerance is None else f"{self.tolerance:.2g}"
        numbers = f"{self.expected:10.4g}{self.measured:12.4g}{tolerance:>11}"
        note = f"  ({self.note})" if self.note else ""
        return f"{self.claim:66}{numbers}  {self.verdict}{note}"

    def as_dict(self):
        """For a JSON file, in which there is no NaN."""
        row = {
            "claim": self.claim,
            "expected": finite(self.expected),
            "measured": finite(self.measured),
            "tolerance": finite(self.tolerance),
            "pass": self.holds,
        }
        more = {"n": self.n, "note": self.note}
        return row | {key: value for key, value in more.items() if value}


class Part(NamedTuple):
    """Claims that belong together: about formulas, or about one network."""

    subject: str
    name: str
    checks: list[Callable[[], Claim]]
    command: str  # what measures them
    draw: Callable | None = None  # draw(folder) writes the pictures that belong to them

    @property
    def key(self):
        return f"{self.subject}/{self.name}"

    def about(self):
        """For a row of a JSON file."""
        return {"subject": self.subject, "about": self.name, "command": self.command}


def finite(number):
    """A plain float, or None for what is none."""
    return float(number) if number is not None and math.isfinite(number) else None


def measure(checks):
    """Call functions that return a Claim each, print it as it comes, and return the list."""
    claims = []
    for check in checks:
        claim = check()
        print(claim, flush=True)
        claims.append(claim)
    return claims


def failures(claims):
    return [claim for claim in claims if claim.holds is False]
