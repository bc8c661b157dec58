"""Time grids and the moments of a film, for any schedule."""

from itertools import pairwise

import reference_gmm_sde as reference
from common.times import evenly, film_steps, t_of_log_snr, time_grid
from small import Cosine
from vp_sde import VP

import numpy as np
import pytest
import torch

GRIDS = ("uniform", "quadratic", "logsnr")
SCHEDULES = [VP(), VP(0.5, 7.0), Cosine()]


def log_snr(schedule, times):
    return schedule.log_snr(torch.tensor(times, dtype=torch.float64))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_takes_equal_steps_from_one_to_t_end(schedule, grid):
    times = time_grid(schedule, 21, 0.005, grid)
    assert len(times) == 21 and (times[0], times[-1]) == (1.0, 0.005)  # the last network call is at t_end
    assert all(t > s for t, s in pairwise(times))

    t = torch.tensor(times, dtype=torch.float64)
    even = {"uniform": t, "quadratic": t.sqrt(), "logsnr": schedule.log_snr(t)}
    steps = even[grid].diff()
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_only_call_is_at_the_start_and_two_calls_are_at_both_ends(grid):
    assert time_grid(VP(), 1, 0.005, grid) == [1.0]
    assert time_grid(VP(), 2, 0.005, grid) == [1.0, 0.005]


@pytest.mark.parametrize("grid", GRIDS)
def test_the_linear_schedule_has_the_grid_of_the_reference(grid):
    closed_form = reference.time_grid(20, 1.0, 0.005, grid, reference.VPSchedule(0.1, 30.0))
    np.testing.assert_allclose(time_grid(VP(0.1, 30.0), 21, 0.005, grid), closed_form, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_time_of_a_log_snr_is_found_to_the_last_digits(schedule):
    t = np.linspace(0.01, 1, 50)
    found = t_of_log_snr(schedule, log_snr(schedule, t).numpy())
    np.testing.assert_allclose(found, t, rtol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_film_is_even_in_log_snr_from_where_something_is_to_be_seen(schedule):
    times = time_grid(schedule, 3000, 0.005, "uniform")
    shown = sorted(film_steps(schedule, times))
    assert shown[0] == 0 and shown[-1] == len(times) and len(shown) <= 34
    assert shown[-2] == len(times) - 1

    moments = log_snr(schedule, times)[shown[:-1]]
    visible = moments[moments > -5.05]  # before, all is noise
    assert len(visible) >= len(shown) - 2
    assert visible[0] == pytest.approx(max(-5, float(moments[0])), abs=0.05)
    assert np.abs(np.diff(visible) / np.diff(visible).mean() - 1).max() < 0.5


def test_a_film_that_starts_late_begins_at_its_first_step():
    times = [t for t in time_grid(VP(), 3000, 0.005, "uniform") if t < 0.5]
    assert sorted(film_steps(VP(), times))[1] > 1


def test_a_film_of_few_steps_shows_them_all():
    for steps in (1, 2, 10, 33):
        times = time_grid(VP(), steps, 0.005, "logsnr")
        assert film_steps(VP(), times) == {*range(steps + 1)}
    times = time_grid(VP(), 34, 0.005, "logsnr")
    assert len(film_steps(VP(), times)) < 34


def test_evenly_keeps_both_ends():
    assert evenly(301, 32) >= {0, 300} and len(evenly(301, 32)) == 32
    assert evenly(3, 32) == {0, 1, 2} and evenly(1, 32) == {0}
