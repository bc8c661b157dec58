"""The error of a score while it trains: 0 for the truth, and right for what is known to be off."""

from types import SimpleNamespace

import data
from common.evaluation import score_errors
from common.exact_denoiser import ExactModel
from common.seeds import generator
from small import Cosine
from vp_sde import VP

import pytest
import torch

SIZE = 16


@pytest.fixture
def held_out():
    """Crystals in [-1, 1], of all types, and their conditions."""
    x_u8, kind, cont = data.crystal_batch(0, 16, img_size=SIZE, stream=1)
    return x_u8.float() / 127.5 - 1, data.known_condition(kind, cont)


def model(eps, schedule=None):
    return SimpleNamespace(eps=eps, schedule=schedule or VP())


def test_the_truth_has_no_error_and_an_offset_its_square(held_out):
    exact = ExactModel(VP(), SIZE)
    report = score_errors(exact, exact, *held_out, seed=0, bins=3)
    assert report == {"score_error": 0, "bins": {"0.17": 0, "0.50": 0, "0.83": 0}}

    off = model(lambda *args: exact.eps(*args) + 0.1)
    report = score_errors(off, exact, *held_out, seed=0, bins=3)
    assert list(report["bins"].values()) == pytest.approx([0.01] * 3, rel=1e-3)
    assert report["score_error"] == pytest.approx(0.01, rel=1e-3)


def test_the_error_is_taken_at_noisy_data_of_the_schedule_of_the_network(held_out):
    x0, condition = held_out
    seen = []

    def eps(x, t, condition):
        seen.append((x, t))
        return x

    score_errors(model(eps, Cosine()), ExactModel(Cosine(), SIZE), x0, condition, seed=3, bins=2)
    noise = torch.randn(x0.shape, generator=generator(3, 2**40))
    for (x, t), middle in zip(seen, (0.25, 0.75), strict=True):
        _, alpha, sigma = Cosine().at(middle)
        assert t == middle and torch.equal(x, alpha * x0 + sigma * noise)


def test_without_a_closed_form_it_is_the_loss_of_a_network_that_predicts_eps(held_out):
    report = score_errors(model(lambda x, t, condition: 0 * x), None, *held_out, seed=0, bins=2)
    noise = torch.randn(held_out[0].shape, generator=generator(0, 2**40))
    assert report["bins"]["0.25"] == pytest.approx(float(noise.square().mean()))


def test_only_crystals_of_unknown_aspect_have_a_best_loss_above_zero(held_out):
    x0, condition = held_out
    exact = ExactModel(VP(), SIZE)
    rectangular = condition.kind == 1
    assert 0 < rectangular.sum() < 16

    losses = []
    for rows in (rectangular, ~rectangular):
        report = score_errors(exact, None, x0[rows], condition.rows(rows), seed=0, bins=3)
        losses.append(report["bins"]["0.50"])
    assert losses[0] > 10 * losses[1]  # which is the rounding to 8 bits


def test_points_have_no_condition():
    report = score_errors(model(lambda x, t: x), model(lambda x, t: x + 1), torch.randn(9, 2), seed=0)
    assert len(report["bins"]) == 8 and report["score_error"] == pytest.approx(1)
