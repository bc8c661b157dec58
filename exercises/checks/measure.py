"""How a check reads an answer, compares it, and finds the mistake that explains a wrong one."""

import inspect
import math

import numpy as np


class Mistake(Exception):
    """What is wrong with an answer: one sentence, with what was measured."""


# ------------------------------------------------------------------------------ reading


def numbers(answer, shape, what):
    """An answer as float64 of this shape.  Raises Mistake where it is none, or not finite."""
    if answer is None:
        raise Mistake(f"{what} is None: is there a return?")
    if inspect.isgenerator(answer):
        raise Mistake("it yields, as the lectures do: here return the last x, and no other")

    try:
        answer = np.asarray(answer, dtype=np.float64)
    except (TypeError, ValueError):
        kind = type(answer).__name__
        raise Mistake(f"{what} should be numbers of shape {list(shape)}, not a {kind}") from None
    if answer.shape != shape:
        found = list(answer.shape)
        many = ": return the last one alone" if answer.shape[1:] == shape else ""
        raise Mistake(f"{what} has shape {found} where {list(shape)} is expected{many}")
    return answer


def finite(answer, what, hint):
    """The same answer.  Raises Mistake, with the hint, where a number of it is NaN or infinite."""
    bad = answer[~np.isfinite(answer)]
    if bad.size:
        raise Mistake(f"{what} is {bad.flat[0]}: {hint}")
    return answer


def pair(answer, what):
    """The two parts of an answer.  Raises Mistake where there are not two."""
    if answer is None:
        raise Mistake(f"it returns None where {what} are expected: is there a return?")
    try:
        first, second = answer
    except (TypeError, ValueError):
        raise Mistake(f"it should return a pair: {what}") from None
    return first, second


def one_time(t, name):
    """A time that the learner's code asks for, as a float.  Raises Mistake for an array."""
    if np.size(t) != 1:
        raise Mistake(f"{name} is asked for t of shape {list(np.shape(t))}: its t is one number")
    return float(np.reshape(t, ()))


def points(x, name):
    """Points [N, D] that the learner's code hands over.  Raises Mistake for other shapes."""
    if np.ndim(x) != 2:
        raise Mistake(f"{name} is asked at x of shape {list(np.shape(x))}: its x is [N, D]")
    return np.asarray(x, dtype=np.float64)


# ------------------------------------------------------------------------------ comparing


def gap(a, b):
    """The largest difference, in units of the largest |b|; infinite where a is not finite."""
    a = np.asarray(a, dtype=np.float64)
    scale = max(np.abs(b).max(), 1e-300)
    difference = np.abs(a - b).max() / scale
    return float(difference) if np.isfinite(difference) else math.inf


def compare(what, measured, expected, suspects, hint, tolerance=1e-4):
    """Raise Mistake unless `measured` is `expected`, up to the tolerance, relative to the largest.

    what: the name of the number, or of each of them.  suspects: pairs (value, sentence).  The first
    value that was measured instead says why; where none was, the hint stands in.  The number shown
    is the one that is furthest off.
    """
    if gap(measured, expected) <= tolerance:
        return

    why = next((why for value, why in suspects if gap(measured, value) <= tolerance), hint)
    off = np.abs(np.subtract(measured, expected))
    worst = np.argmax(np.where(np.isfinite(off), off, np.inf))
    found = np.ravel(measured)[worst]
    wanted = np.ravel(expected)[worst]
    name = what if isinstance(what, str) else what[worst]
    raise Mistake(f"{name} is {found:.4g} where {wanted:.4g} is expected: {why}")


def order(coarse, fine):
    """The order that two errors show, the second with half the step."""
    return math.log2(max(coarse, 1e-300) / max(fine, 1e-300))
