"""Claims about networks, with the truth in the place of what they draw: each holds, and is the row of RESULTS.md."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import audit
import data
import dddm
import dddm_dit
import gallery
import reference_gmm_sde as reference
import vp_sde
from audits import dddm as few_steps
from audits import latents, pairs, samplers, score, score_of_crystals
from common import distances, posteriors
from common.checkpoints import SHIPPED
from common.nearest_crystal import RECTANGULAR, crystal_error

import numpy as np
import pytest
import torch

ROW = r"\| (.+?) \| (.*?) \| (?:± (.+?))? ?\| (.+?) \| ([\d,]*) ?\| `.+` \|"


@pytest.fixture(scope="module")
def rows():
    """{claim: (allowed, n)} of RESULTS.md, as it writes them."""
    page = audit.RESULTS.read_text(encoding="utf-8")
    found = {row[1]: (row[3] or "", row[5]) for row in re.finditer(ROW, page)}
    assert len(found) > 150
    return found


def assert_holds(claim, rows):
    """It does, and its allowance and number of samples are those of the page."""
    assert claim.holds is not False and np.isfinite(claim.measured), claim
    allowed = "" if claim.tolerance is None else f"{claim.tolerance:.2g}"
    assert rows[claim.claim] == (allowed, f"{claim.n:,}"), claim


def true_crystals(condition, img_size=32):
    """One image of each condition, [n, 1, H, H] in [0, 1]; the aspects of n are evenly spread.

    Half the size of the networks' own: to find the nearest crystal takes a quarter of the time.
    """
    aspect = torch.linspace(*data.ASPECT, len(condition.kind), dtype=torch.float64)
    return data.render(condition.kind, condition.cont[:, 1].double(), aspect, img_size=img_size)


# ------------------------------------------------------------------------------------------------ priors


@pytest.mark.parametrize("name", latents.NETWORKS)
def test_claims_about_priors(monkeypatch, rows, name):
    def decoded(pair, prior, steps=50, n=36, kind=None, seed=0, cfg=1.5):
        asked.append((prior, steps, n, kind, seed, cfg))
        condition = data.default_conditions(n, kind)
        return true_crystals(condition), condition

    asked = []
    monkeypatch.setattr(latents, "decoded", decoded)
    pair = replace(latents.load(SHIPPED / name))  # another one, of which no cache knows anything
    claims = [check(pair) for check in latents.CHECKS]
    for claim in claims:
        assert_holds(claim, rows)
        assert claim.measured < 0.01 or "over 400" in claim.claim and claim.measured == 1
    assert ("diffusion", 50, 512, RECTANGULAR, 0, 1.0) in asked  # of the variety
    assert {seed for prior, _, n, _, seed, _ in asked if prior == "mop" and n == 36} == {0, 1, 2}


def test_a_prior_may_be_better_by_few_steps_but_not_worse(monkeypatch):
    pair = SimpleNamespace(name="VAE", uncond=True)
    for few, ratio, holds in ((0.01, 1, True), (0.021, 1.05, True), (0.03, 1.5, False)):
        error = {20: few, 400: 0.02}
        monkeypatch.setattr(latents, "prior_error", lambda pair, prior, steps, error=error: error[steps])
        claim = latents.few_against_many(pair)
        assert claim.measured == pytest.approx(ratio) and claim.holds is holds


# ------------------------------------------------------------------------------------------------ few steps


def exactly(net, run, n, seed):
    """Draws of the exact posterior, where dddm.learned has those of the network."""
    return partial(posteriors.exact_draw, dddm.mixture(run.trained), np.random.default_rng(seed))


def test_claims_about_few_steps(monkeypatch, rows):
    monkeypatch.setattr(dddm, "learned", exactly)
    for cached in (few_steps.few_steps, few_steps.posterior_draws):
        monkeypatch.setattr(few_steps, cached.__name__, cached.__wrapped__)
    for name in ("dddm_mixture.pt", "dddm_S.pt", "dddm_circle.pt"):
        for check in few_steps.CHECKS[name]:
            claim = check()
            assert_holds(claim, rows)
            assert claim.measured < 0.1 if "std" in claim.claim else claim.measured < 2e-3


def drawn(net, run, condition):
    """True crystals, where dddm_dit.draw has those of the network."""
    assert run.config.n == len(condition.kind)
    return SimpleNamespace(x=2 * true_crystals(condition) - 1)


def test_claims_about_crystals_by_few_steps(monkeypatch, rows):
    monkeypatch.setattr(dddm_dit, "draw", drawn)
    monkeypatch.setattr(few_steps, "crystals", few_steps.crystals.__wrapped__)
    for check in few_steps.CHECKS["dddm_dit_crystals.pt"]:
        claim = check()
        assert_holds(claim, rows)
        assert claim.measured < 1e-3


def test_claims_about_digits_by_few_steps(monkeypatch, rows):
    monkeypatch.setattr(few_steps, "digits", lambda steps: {"frechet": 8.0, "share_correct": 0.99})
    for check in few_steps.CHECKS["dddm_dit_mnist.pt"]:
        assert_holds(check(), rows)


def test_the_figure_of_few_calls(monkeypatch):
    sheets = []
    monkeypatch.setattr(gallery, "draw_sheet", lambda path, title, about, rows: sheets.append((path, rows)))
    monkeypatch.setattr(dddm_dit, "draw", drawn)
    gallery.few_calls(Path("x"), None)
    ((path, rows),) = sheets
    assert path == Path("x/dddm_dit.png") and [row.name for row in rows] == ["1 call", "2 calls", "4 calls", "8 calls"]
    for row in rows:
        assert row.captions == ["error 0.000"] * 4 and row.images.shape == (4, 1, 32, 32)


# ------------------------------------------------------------------------------------------------ crystals of the score


@pytest.fixture
def pair(monkeypatch):
    """The network that ships; what it samples are true crystals, and what it does by few calls has no error."""

    def sample(net, run):
        asked = run.config
        assert asked.cfg in (0, 1) and asked.n in (256, 512)
        return SimpleNamespace(x=2 * true_crystals(data.default_conditions(asked.n, asked.kind)) - 1)

    monkeypatch.setattr(vp_sde, "sample", sample)
    monkeypatch.setattr(score_of_crystals, "unconditional", score_of_crystals.unconditional.__wrapped__)
    errors = lambda pair, which, sampler, calls, tiles=samplers.TILES, seed=0, w=1: np.zeros(len(tiles))  # noqa: E731
    monkeypatch.setattr(score_of_crystals, "crystal_errors", errors)
    return pairs.load(SHIPPED / "vp_sde.pt")


def test_claims_about_crystals_of_the_score(pair, rows):
    named = ("default_tiles", "ten_calls_unguided", "error_by_calls", "variety")
    checks = [check for check in score_of_crystals.CHECKS if getattr(check, "func", check).__name__ in named]
    assert len(checks) == 3 + 14 + 1
    for check in checks:
        claim = check(pair)
        assert_holds(claim, rows)
        assert claim.measured < 1e-3


def test_claims_about_crystals_without_a_condition(pair, monkeypatch):
    """Few rectangular ones have an aspect that makes them square."""
    fit = score_of_crystals.unconditional(pair)
    monkeypatch.setattr(score_of_crystals, "unconditional", lambda pair, *sampler: fit)
    claims = [check(pair) for check in score_of_crystals.AT_LENGTH[1:]]
    shares = [claim.measured for claim in claims if "share" in claim.claim]
    told = [claim.expected for claim in claims if "share" in claim.claim]
    near_one = 0.04 / (data.ASPECT[1] - data.ASPECT[0])  # 0.98 to 1.02
    assert told == pytest.approx([0.25 + near_one / 4, 0.25 - near_one / 4, 0.25, 0.25])
    assert shares == pytest.approx(told, abs=0.01)
    assert sum(shares) == pytest.approx(1) and [claim.measured for claim in claims[:2]] == [1, 1]
    assert [claim.tolerance for claim in claims[:2]] == [0.04, None]
    assert claims[-1].measured < 0.02 and claims[-1].n == pytest.approx(256 * shares[1])


def test_claims_about_the_samplers_leave_rectangular_crystals_out(rows, monkeypatch):
    tiles = []
    monkeypatch.setattr(samplers, "drawn_crystals", lambda model, sampler, calls, t: tiles.extend(t) or np.zeros(9))
    claim = samplers.exact_crystals("dpmpp")
    assert_holds(claim, rows)
    assert len(tiles) == claim.n == 9 and RECTANGULAR not in data.default_conditions(36).rows(tiles).kind


def test_fresh_crystals_are_those_of_the_conditions_beside_them():
    """They are the truth against which a score is measured: aspects differ, all else is as it is told."""
    pair = SimpleNamespace(gmm=None, run=SimpleNamespace(trained=SimpleNamespace(img_size=32)))
    x, (condition,) = pairs.fresh_data(pair)
    fit = crystal_error(data.unit(x), condition.kind, condition.cont[:, 1])
    assert fit.error.max() < 1e-5 and x.min() >= -1 and x.max() == 1
    aspect = fit.aspect[condition.kind == RECTANGULAR]
    assert aspect.min() > data.ASPECT[0] and aspect.max() < data.ASPECT[1] and aspect.std() > 0.1


def test_a_claim_about_exact_draws_allows_four_standard_errors(rows):
    assert_holds(few_steps.any_number_of_steps(1, 1), rows)


# ------------------------------------------------------------------------------------------------ points


class Points:
    """What a claim about points asks of a pair."""

    name = "S"
    gmm = reference.mixture("S")


def test_claims_about_points_are_means_over_the_seeds(monkeypatch):
    """Exact samples for the exact score, the same moved by a little for the learned one."""

    def cloud(pair, which, seed):
        x = pair.gmm.sample(256, np.random.default_rng(seed))
        return [(1.0, np.zeros_like(x)), (0.0, x + moved[which])]

    moved = {"exact": 0.0, "learned": 0.5}
    monkeypatch.setattr(score, "cloud", cloud)
    each = {
        which: [distances.from_mixture(cloud(Points, which, seed)[-1][1], Points.gmm, seed) for seed in range(5)]
        for which in moved
    }
    pair = Points()
    mmd2 = [report["mmd2"] for report in each["learned"]]
    assert score.mmd2(pair).measured == pytest.approx(np.mean(mmd2))
    assert score.scatter_of_mmd2(pair).measured == pytest.approx(np.std(mmd2, ddof=1) / 5**0.5)
    for name in ("mmd2", "sliced_wasserstein"):
        for best, which, key in (("exact samples", "learned", f"{name}_floor"), ("exact score", "exact", name)):
            claim = score.beside(pair, name, best)
            assert claim.measured == pytest.approx(np.mean([report[name] for report in each["learned"]]))
            assert claim.expected == pytest.approx(np.mean([report[key] for report in each[which]]))
