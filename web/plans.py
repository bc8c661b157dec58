"""Samplers as tables of numbers, read off by running them: so the page needs no formula.

A sampler is linear in its start, in the answers of the network and in its noise:

    x = c_0 start + c_1 answer_1 + c_2 answer_2 + ... + d_1 z_1 + d_2 z_2 + ...

Its own generator of vp_sde.py, run on unit vectors instead of images, says what c and d are: the
start is the first unit vector, and whatever comes in later, an answer or a draw of noise, is the
next one.  A plan is what was read off:

    columns   what the unit vectors stand for, in the order in which they came: s start, a answer,
              z noise
    rows      states as combinations of the columns that had come by then
    calls     of the network, (t, row): when, and where it is asked
    film      (t, row of x_t, row of x0_hat), what the generator yields
"""

from types import SimpleNamespace

from common.times import film_steps, time_grid
from vp_sde import SAMPLERS, Learned

import torch

# What the page offers.  For crystals an answer of the network is x0_hat, for points it is eps.
CRYSTALS = {"dpmpp": (1, 2, 3, 5, 10, 20, 50), "ode": (5, 10, 20), "sde": (10, 20, 50, 100)}
POINT_STEPS = (5, 10, 20, 40)  # of the flow by dpmpp, and of the sde
CRYSTALS_END = 0.005  # the time of the last call: the default of vp_sde.py
POINTS_END = 0.001  # and of vp_sde_2d.py
LONG = 40  # a film of more steps than that shows some of them

# As much of a Run as Learned needs.
RUN = SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(precision="float32"))


class Units:
    """Unit vectors, one after the other, and what each stands for."""

    def __init__(self, schedule, size):
        self.schedule = schedule
        self.size = size
        self.columns = ""

    def new(self, kind):
        vector = torch.zeros(1, self.size, dtype=torch.float64)
        vector[0, len(self.columns)] = 1.0
        self.columns += kind
        return vector

    def __call__(self, x, times):
        """As the network that Learned asks for x0_hat."""
        return self.new("a")

    def eps(self, x, t):
        """As a model that is asked for eps."""
        return self.new("a")

    def noise(self):
        while True:
            yield self.new("z")


class Rows:
    """Different rows, each kept once."""

    def __init__(self):
        self.places = {}

    def place(self, x):
        values = [round_off(c) for c in x[0].tolist()]
        while values and values[-1] == 0:
            values.pop()
        return self.places.setdefault(tuple(values), len(self.places))


def round_off(c):
    """Ten digits, and none of what rounding leaves where two large numbers cancel."""
    return float(f"{c:.10g}") if abs(c) > 1e-11 else 0.0


def read_off(sampler, schedule, times, answers="x0"):
    """The plan of a sampler of vp_sde.py over these times.  answers: of the network, x0 or eps."""
    units = Units(schedule, 3 * len(times) + 3)  # the start; at most 3 a step
    model = Learned(units, RUN) if answers == "x0" else units
    rows = Rows()
    calls = []
    film = []

    def eps(x, t):
        calls.append((t, rows.place(x)))
        return model.eps(x, t)

    steps = SAMPLERS[sampler](eps, units.new("s"), times, schedule, units.noise())
    shown = film_steps(schedule, times) if len(times) > LONG else range(len(times) + 1)
    for i, (t, x, x0_hat) in enumerate(steps):
        if i in shown:
            film.append((t, rows.place(x), rows.place(x0_hat)))

    return dict(columns=units.columns, rows=[*rows.places], calls=calls, film=film)


def crystal_plans(schedule):
    """{"dpmpp-10": plan, ...} of all that the page offers for crystals."""
    plans = {}
    for sampler, choices in CRYSTALS.items():
        for steps in choices:
            times = time_grid(schedule, steps, CRYSTALS_END, "logsnr")
            plans[f"{sampler}-{steps}"] = read_off(sampler, schedule, times)
    return plans


def point_plans(schedule):
    """The same for points, whose answers are eps: of the network or in closed form."""
    plans = {}
    for sampler in ("dpmpp", "sde"):
        for steps in POINT_STEPS:
            times = time_grid(schedule, steps, POINTS_END, "logsnr")
            plans[f"{sampler}-{steps}"] = read_off(sampler, schedule, times, "eps")
    return plans


def replay(plan, start, ask, noise=None):
    """What the page does with a plan: yield (t, x, x0_hat), its film.

    ask(x, t) answers as the network does; noise: normals for the columns z, in their order.
    """
    known = []

    def combined(row):
        return sum(c * v for c, v in zip(plan["rows"][row], known, strict=False) if c)

    calls = iter(plan["calls"])
    film = list(plan["film"])
    for kind in plan["columns"]:
        if kind == "s":
            known.append(start)
        elif kind == "z":
            known.append(next(noise))
        else:
            t, row = next(calls)
            known.append(ask(combined(row), t))

        while film and max(len(plan["rows"][row]) for row in film[0][1:]) <= len(known):
            t, x, x0_hat = film.pop(0)
            yield t, combined(x), combined(x0_hat)
