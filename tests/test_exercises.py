"""The course: what is right passes, however it is written, and what is wrong is caught and named."""

import ast
import inspect
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import exercise_mistakes_samplers  # noqa: F401 - enters its functions into the list
import exercise_solutions
from conftest import visible
from exercise_mistakes import MISTAKES
from exercises import check

import numpy as np
import pytest

FOLDER = Path(check.__file__).parent
EXERCISES = FOLDER / "exercises.py"
SOLUTIONS = {name: getattr(exercise_solutions, name) for name in check.CHECKS}


def outcome(name, function):
    return check.outcome(name, SimpleNamespace(**{name: function}))


def ran(capsys, *words):
    """The exit status and what is printed."""
    status = check.main([str(word) for word in words])
    return status, capsys.readouterr().out


# --------------------------------------------------------------------------------------------- right answers


@pytest.mark.parametrize("name", check.CHECKS)
def test_what_the_lectures_do_passes(name):
    found = outcome(name, SOLUTIONS[name])
    assert found.kind == "passes", found.text
    assert re.search(r"\d", found.text), "it says what was measured"


def rounded(value):
    """Arrays in single precision, alone or in a pair."""
    if isinstance(value, tuple):
        return tuple(map(rounded, value))
    if callable(value):
        return lambda *args: rounded(value(*args))
    return np.asarray(value, dtype=np.float32) if np.ndim(value) else value


@pytest.mark.parametrize("name", check.CHECKS)
def test_single_precision_passes(name):
    found = outcome(name, lambda *args: rounded(SOLUTIONS[name](*map(rounded, args))))
    assert found.kind == "passes", found.text


def heun_of_indices(score, x, times, beta):
    """All of beta at once, changing x in place, and returning lists."""
    b = beta(times) / 2
    for i, h in enumerate(np.diff(times)):
        k1 = -h * b[i] * (x + score(x, times[i]))
        k2 = -h * b[i + 1] * (x + k1 + score(x + k1, times[i + 1]))
        x += 0.5 * k1 + 0.5 * k2
    return x.tolist()


def dpmpp_of_the_paper(eps, x, times, alpha_sigma):
    """With r = h_before / h, and the two predictions weighted."""
    alpha, sigma = alpha_sigma(times)
    lam = np.log(alpha) - np.log(sigma)
    before = None
    for i in range(len(times) - 1):
        h = lam[i + 1] - lam[i]
        x0 = D = (x - sigma[i] * eps(x, times[i])) / alpha[i]
        if i:
            r = (lam[i] - lam[i - 1]) / h
            D = (1 + 1 / (2 * r)) * x0 - before / (2 * r)
        before = x0
        x = sigma[i + 1] / sigma[i] * x + alpha[i + 1] * (1 - np.exp(-h)) * D
    return x


def ddim_without_x0(eps, x, times, alpha_sigma):
    for t, s in pairwise(times):
        (a, b), (c, d) = alpha_sigma(t), alpha_sigma(s)
        x = c / a * x + (d - c * b / a) * eps(x, t)
    return x


def guided_with_half_a_call(eps, x, t, condition, w):
    if w in (0, 1):
        return eps(x, t, condition if w else None)
    return (1 - w) * eps(x, t, None) + w * eps(x, t, condition)


def energy_in_loops(x_0, particles):
    scores = []
    for x, p in zip(x_0, particles, strict=True):
        pairs = [np.linalg.norm(p[j] - p[k]) for j in range(len(p)) for k in range(j)]
        scores.append(np.mean([np.linalg.norm(q - x) for q in p]) - np.mean(pairs) / 2)
    return scores


OTHERS = {
    "heun": heun_of_indices,
    "dpmpp_2m": dpmpp_of_the_paper,
    "ddim": ddim_without_x0,
    "guided_eps": guided_with_half_a_call,
    "energy_score": energy_in_loops,
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_way_to_write_it_passes(name):
    found = outcome(name, OTHERS[name])
    assert found.kind == "passes", found.text


# --------------------------------------------------------------------------------------------- wrong answers


IDS = [f"{name}: {words}" for name, words, _ in MISTAKES]


@pytest.mark.parametrize(("name", "words", "function"), MISTAKES, ids=IDS)
def test_a_classic_mistake_is_caught_and_named(name, words, function):
    found = outcome(name, function)
    assert found.kind == "mistake"
    assert words in found.text

    # And not taken for another one.
    others = {other for exercise, other, _ in MISTAKES if exercise == name} - {words}
    assert not [other for other in others if other in found.text and other not in words]


def test_there_are_mistakes_enough():
    assert {name for name, _, _ in MISTAKES} == set(check.CHECKS)
    distinct = {(name, words) for name, words, _ in MISTAKES}
    assert len(distinct) >= 100
    assert min(sum(name == exercise for name, _ in distinct) for exercise in check.CHECKS) >= 6


def scaled(value, factor):
    if isinstance(value, tuple):
        return (value[0], np.asarray(value[1]) * factor)
    return np.asarray(value) * factor


@pytest.mark.parametrize("name", check.CHECKS)
def test_what_is_a_hundredth_off_fails_with_a_number_and_a_hint(name):
    found = outcome(name, lambda *args: scaled(SOLUTIONS[name](*args), 1.01))
    assert found.kind == "mistake"
    assert re.search(r"\d.*: [(\w]", found.text)


RETURNS = {
    "nothing": lambda right: None,
    "a word": lambda right: "right",
    "NaN": lambda right: scaled(right, np.nan),
    "another shape": lambda right: scaled(right, 1)[..., None] if not isinstance(right, tuple) else right[0],
    "a generator": lambda right: (x for x in [right]),
    "zeros": lambda right: scaled(right, 0),
}


@pytest.mark.parametrize("what", RETURNS)
@pytest.mark.parametrize("name", check.CHECKS)
def test_what_is_no_answer_is_none(name, what):
    found = outcome(name, lambda *args: RETURNS[what](SOLUTIONS[name](*args)))
    assert found.kind == "mistake"
    assert "Error" not in found.text, "a sentence, not an exception of the check"


def test_a_time_that_is_an_array_is_pointed_out():
    def times_as_array(eps, x, times, alpha_sigma):
        return SOLUTIONS["ddim"](lambda x, t: eps(x, np.full(len(x) + 1, t)), x, times, alpha_sigma)

    assert "its t is one number" in outcome("ddim", times_as_array).text


# --------------------------------------------------------------------------------------------- the file to fill in


def test_every_exercise_has_its_place_its_equation_and_a_hint():
    tree = ast.parse(EXERCISES.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions] == list(check.CHECKS)
    for i, node in enumerate(functions, start=1):
        text = ast.get_docstring(node)
        assert text.startswith(f"{i}. ") and "\n\nHint: " in text and "\n\n    " in text and "[N" in text
        assert [arg.arg for arg in node.args.args] == list(inspect.signature(SOLUTIONS[node.name]).parameters)
        assert ast.unparse(node.body[1:]) == "raise NotImplementedError"


def test_the_page_for_teachers_has_a_row_for_each():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \d+ \| `(\w+)`", page, re.MULTILINE) == list(check.CHECKS)
    for path, name in re.findall(r"`(\w+(?:/\w+)?\.py)`: `(\w+)`", page):
        assert re.search(
            rf"^ *(?:def|class) {name}\b", (FOLDER.parent / path).read_text(encoding="utf-8"), re.MULTILINE
        )


def test_the_empty_exercises_are_not_written_yet(capsys):
    status, out = ran(capsys)
    rows = visible(out)
    assert status == 1
    assert [re.split(r"  +", row)[-1] for row in rows[:-1]] == ["not written yet"] * 10
    assert [row.split()[1] for row in rows[:-1]] == list(check.CHECKS)
    assert rows[-1] == "0 of 10 pass"


# --------------------------------------------------------------------------------------------- the command


@pytest.fixture
def hand_in(tmp_path):
    """hand_in(text): a file of a learner, to be checked with --file."""

    def write(text, name="anna.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_all_right_is_status_0(hand_in, capsys):
    path = hand_in("from exercise_solutions import *\n")
    status, out = ran(capsys, "--file", path)
    assert status == 0
    assert out.count("\u2713") == 10 and out.endswith("10 of 10 pass\n")
    assert ran(capsys, "heun", "--file", path)[0] == 0


def test_one_that_is_wrong_is_status_1(hand_in, capsys):
    path = hand_in("from exercise_solutions import *\ndef ddim(eps, x, times, alpha_sigma):\n    return x\n")
    status, out = ran(capsys, "--file", path)
    assert status == 1
    assert out.count("\u2713") == 9 and "nothing moves" in " ".join(out.split())
    assert ran(capsys, "ddim", "--file", path)[0] == 1
    assert ran(capsys, "heun", "ddim", "--file", path)[0] == 1
    assert ran(capsys, "heun", "--file", path)[0] == 0  # only what is asked for counts


def test_unknown_names_and_missing_files_are_one_line(mistake, tmp_path):
    assert "no exercise is called 'hoin': take one of alpha_sigma, " in mistake(check.main, "hoin")
    assert "none.py" in mistake(check.main, "--file", tmp_path / "none.py")


HEADS = "def heun(score, x, times, beta):\n    y = x\n"
CRASHES = {
    "an unknown name": (HEADS + "    return z\n", "NameError: name 'z' is not defined", "line 3 of anna.py: return z"),
    "in what it calls": (
        HEADS + "    return score(y)\n",
        "missing 1 required positional argument",
        "line 3 of anna.py",
    ),
    "an error in NumPy": (
        HEADS + "    return y @ y.swap()\n",
        "AttributeError",
        "line 3 of anna.py: return y @ y.swap()",
    ),
    "it leaves": (HEADS + "    raise SystemExit(0)\n", "SystemExit", "line 3 of anna.py"),
    "it calls itself": (HEADS + "    return heun(score, y, times, beta)\n", "RecursionError", "line 3 of anna.py"),
    "syntax": (HEADS + "    return x +\n", "invalid syntax", "line 3 of anna.py: return x +"),
    "indentation": (HEADS + "  return x\n", "unindent", "line 3 of anna.py: return x"),
    "at the top": ("import numpi\n" + HEADS, "No module named 'numpi'", "line 1 of anna.py: import numpi"),
    "other arguments": ("def heun(score, x, times):\n    return x\n", "takes 3 positional arguments but 4", ""),
    "no function": ("def hein(score, x, times, beta):\n    return x\n", "there is no function heun in anna.py", ""),
}


@pytest.mark.parametrize("what", CRASHES)
def test_what_crashes_is_told_with_its_line_and_without_a_traceback(what, hand_in, capsys):
    text, *said = CRASHES[what]
    status, out = ran(capsys, "heun", "--file", hand_in(text))
    assert status == 1
    assert all(words in out for words in said)
    assert len(visible(out)) <= 3 and "Traceback" not in out and "<locals>" not in out


def test_it_runs_from_any_folder_and_on_a_terminal_of_few_letters(tmp_path):
    command = [sys.executable, FOLDER / "check.py", "heun"]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr == ""
    assert re.fullmatch(r"\. heun +not written yet\n", done.stdout)
    assert not list(tmp_path.iterdir())
