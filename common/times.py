"""The times at which a sampler calls the network, for any schedule.

A schedule has log_snr(t) = log(alpha^2 / sigma^2) of tensors t, which falls from t = 0 to t = 1.
"""

import math

import numpy as np
import torch


def time_grid(schedule, steps, t_end, grid):
    """Decreasing times from 1 to t_end, one for each network call: a list of floats.

    grid: uniform in t; quadratic, uniform in sqrt(t); logsnr, in equal steps of the log-SNR, in
    which the picture changes evenly.
    """
    if steps == 1:
        return [1.0]

    if grid == "uniform":
        times = np.linspace(1, t_end, steps)
    elif grid == "quadratic":
        times = np.linspace(1, math.sqrt(t_end), steps) ** 2
    else:
        ends = schedule.log_snr(torch.tensor([1.0, t_end], dtype=torch.float64))
        times = t_of_log_snr(schedule, np.linspace(*ends.tolist(), steps))

    times[0] = 1.0  # exactly, not up to rounding
    times[-1] = t_end
    return times.tolist()


def t_of_log_snr(schedule, log_snr):
    """The times with these log-SNRs, by bisection: 60 halvings exhaust a float64."""
    log_snr = torch.from_numpy(log_snr)
    low = torch.zeros_like(log_snr)
    high = torch.ones_like(log_snr)
    for _ in range(60):
        middle = (low + high) / 2
        too_early = schedule.log_snr(middle) > log_snr
        low = torch.where(too_early, middle, low)
        high = torch.where(too_early, high, middle)
    return high.numpy()


def film_steps(schedule, times, n=32, low=-5.0, high=math.inf):
    """Which steps a film shows: the first, n evenly spread in log-SNR, and the last x_0.

    From a log-SNR of `low` on, for before all is noise, to `high`.  Of few steps it shows all.
    """
    if len(times) <= n + 1:
        return set(range(len(times) + 1))
    log_snr = schedule.log_snr(torch.tensor(times, dtype=torch.float64))
    ends = max(float(log_snr[0]), low), min(float(log_snr[-1]), high)
    wanted = torch.linspace(*ends, n, dtype=torch.float64)
    nearest = (log_snr - wanted[:, None]).abs().argmin(1)
    return {0, len(times), *nearest.tolist()}


def evenly(steps, n):
    """At most n of `steps` steps, evenly spread, both ends included: a set of indices."""
    return set(np.linspace(0, steps - 1, min(n, steps)).round().astype(int).tolist())
