"""Every claim about the reference holds, and a table of claims says what it should."""

import json
from functools import partial

from audits import reference
from common import claims
from common.claims import Claim

import pytest
from PIL import Image

# ------------------------------------------------------------------------- the claims: score, orders, likelihood, ...


def name_of(check):
    parts = (check.func, *check.args) if hasattr(check, "func") else (check,)
    return "-".join(getattr(part, "__name__", str(part)) for part in parts)


@pytest.mark.parametrize("check", reference.CLAIMS, ids=name_of)
def test_claim(check):
    claim = check()
    assert claim.holds, claim


def test_the_picture_of_the_solvers(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "flow_error", lambda solver, steps, **_: steps**-2.0)
    monkeypatch.setattr(reference, "strong_errors", lambda *_: ((25, 50), (0.1, 0.05)))
    saved = []
    save_figure = reference.save_figure
    monkeypatch.setattr(reference, "save_figure", lambda *args: saved.append(args[1]) or save_figure(*args))
    reference.draw(tmp_path)
    with Image.open(tmp_path / "work_precision.png") as picture:
        assert picture.size == (840, 550)

    ax = saved[0].axes[0]
    frame = ax.get_window_extent()
    assert len(ax.lines) == len(ax.texts) == 5
    for label, line in list(zip(ax.texts, ax.lines, strict=True))[1:]:  # the first curve ends elsewhere in this test
        assert not frame.overlaps(label.get_window_extent()) and label.get_color() == line.get_color()


# ------------------------------------------------------------------------------------------------- the table of them


def test_a_claim_holds_within_its_tolerance_and_a_report_does_neither():
    assert Claim("x", 1, 1.05, 0.1).holds is True
    assert Claim("x", 1, 0.85, 0.1).holds is False
    assert Claim("x", 1, float("nan"), 0.1).holds is False
    assert Claim("x", 1, 7).holds is None
    assert [Claim("x", 1, m, t).verdict for m, t in ((1, 0), (2, 0), (2, None))] == ["pass", "FAIL", "report"]


def test_rows_are_printed_as_they_come_below_their_heads(capsys):
    rows = [Claim("a true one", 1, 1.05, 0.1), Claim("a report", 0, 3), Claim("a false one", 0, 1, 0)]
    found = claims.measure(partial(next, iter([row])) for row in rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(claim) for claim in found] and claims.failures(found) == [found[2]]
    for word in ("expected", "measured", "tolerance"):
        end = claims.HEAD.index(word) + len(word)
        assert all(line[end : end + 1] == " " for line in lines)
        assert lines[0][end - 1] != " "
    assert [line.split()[-1] for line in lines] == ["pass", "report", "FAIL"]
    assert all(line.rindex(" ") + 1 == claims.HEAD.index("verdict") for line in lines)


def test_a_claim_as_json_has_no_nan_and_says_only_what_is_known():
    row = Claim("x", 1, float("nan"), 0.1, n=5).as_dict()
    assert row == {"claim": "x", "expected": 1.0, "measured": None, "tolerance": 0.1, "pass": False, "n": 5}
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert Claim("x", 0, 2).as_dict()["pass"] is None
