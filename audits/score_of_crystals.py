"""Claims about the network of vp_sde.py: its crystals, its error by t, the calls it takes."""

from functools import cache, partial

import data
import vp_sde
from audits.pairs import in_bin
from audits.samplers import TILES, drawn_crystals
from common.claims import Claim
from common.figures import BLUE, GREEN, GREY, ORANGE, house_style, new_figure, save_figure
from common.metrics import aspect_w1
from common.nearest_crystal import RECTANGULAR, crystal_error

import numpy as np

CALLS = {  # of the network, a sample
    "sde": (5, 10, 20, 50, 100, 300),
    "ode": (5, 9, 19, 49),
    "dpmpp": (5, 10, 20, 50),
}
SAME = 0.02  # a rectangular crystal whose aspect is so near to 1 is square as well


@cache
def crystal_errors(pair, which, sampler, calls, tiles=TILES, seed=0, w=1):
    """Crystal error [len(tiles)] of samples under the learned or the exact eps."""
    model = getattr(pair, which)
    return drawn_crystals(model, sampler, calls, tiles, seed, w, pair.run.trained.img_size)


def main_job(pair, sampler, calls, w=1.5):
    """Crystal errors [3, 36] of the 36 default tiles, seeds 0, 1, 2."""
    tiles = tuple(range(36))
    draws = [crystal_errors(pair, "learned", sampler, calls, tiles, s, w) for s in range(3)]
    return np.stack(draws)


def default_tiles(pair, statistic, limit):
    error = getattr(main_job(pair, "sde", 300), statistic)()
    claim = f"crystals: 36 default tiles, 3 seeds, CFG 1.5, sde, 300 calls, {statistic}"
    return Claim(claim, 0, error, limit, n=108)


def ten_calls(pair):
    """Required: at most a quarter more than with 300, or 0.003 more."""
    few = main_job(pair, "dpmpp", 10).mean()
    many = main_job(pair, "sde", 300).mean()
    claim = "crystals: the same tiles, dpmpp, 10 calls, mean"
    return Claim(claim, 0, few, many + max(many / 4, 0.003), n=108)


def ten_calls_unguided(pair):
    """CFG 1 instead of 1.5, chosen on seeds 10 to 12: half the work and nearer to the truth."""
    error = main_job(pair, "dpmpp", 10, w=1).mean()
    claim = "crystals: the same tiles, dpmpp, 10 calls, CFG 1, mean"
    return Claim(claim, 0, error, 0.0085, n=108)


def error_by_calls(pair, sampler, calls):
    network = crystal_errors(pair, "learned", sampler, calls).mean()
    oracle = crystal_errors(pair, "exact", sampler, calls).mean()
    claim = f"crystals: mean error (exact denoiser's), {sampler}, {calls} calls"
    return Claim(claim, oracle, network, n=len(TILES))


def variety(pair, sampler, calls):
    """How far the aspects of 512 rectangular crystals are from the law of the data."""
    settings = dict(n=512, kind=RECTANGULAR, sampler=sampler, steps=calls, cfg=1.0)
    run = pair.run.with_settings(**settings)
    condition = data.default_conditions(512, RECTANGULAR)
    x = data.unit(vp_sde.sample(pair.net, run).x).double()
    fit = crystal_error(x, condition.kind, condition.cont[:, 1])
    claim = f"crystals: aspect W1, 512 rectangular, CFG 1, {sampler}, {calls} calls"
    return Claim(claim, 0, aspect_w1(fit.aspect), n=512)


@cache
def unconditional(pair, sampler="sde", calls=300):
    """The nearest crystals of 256 samples without a condition; by default as the script draws."""
    settings = dict(n=256, kind=None, theta=None, sampler=sampler, steps=calls, cfg=0.0)
    run = pair.run.with_settings(**settings)
    return crystal_error(data.unit(vp_sde.sample(pair.net, run).x).double())


def become_crystals(pair, sampler, calls, tolerance=None):
    close = (unconditional(pair, sampler, calls).error < 0.05).double().mean().item()
    claim = f"crystals: of 256 without a condition, {sampler}, {calls} calls, within 0.05 of one"
    return Claim(claim, 1, close, tolerance, n=256)


def types_found(fit):
    """Their types.  A free aspect fits a square crystal best at 0.99, say: it counts as square."""
    square = (fit.kind == RECTANGULAR) & ((fit.aspect - 1).abs() < SAME)
    return fit.kind.where(~square, data.KINDS.index("square"))


def share_of_type(pair, kind):
    """Among those of the SDE that became crystals; the data have a quarter of each type.

    Some of the rectangular quarter have an aspect within SAME of 1, and count as square.
    """
    fit = unconditional(pair)
    kinds = types_found(fit)[fit.error < 0.05]
    moved = 0.25 * 2 * SAME / (data.ASPECT[1] - data.ASPECT[0])
    expected = 0.25 + {"square": moved, "rectangular": -moved}.get(data.KINDS[kind], 0)
    claim = f"crystals: share of the {data.KINDS[kind]} ones among those"
    return Claim(claim, expected, (kinds == kind).double().mean().item(), n=len(kinds))


def invented_aspects(pair):
    """Beside the law of all aspects, though those within SAME of 1 count as square and are out."""
    fit = unconditional(pair)
    aspect = fit.aspect[(fit.error < 0.05) & (types_found(fit) == RECTANGULAR)]
    claim = "crystals: aspect W1 of the rectangular ones among those"
    return Claim(claim, 0, aspect_w1(aspect), n=len(aspect))


KIND = np.arange(36) % 4
ONE_IMAGE = dict(group=" types 0, 2, 3", samples=KIND != RECTANGULAR)  # given the condition
A_CURVE = dict(group=" rectangular", samples=KIND == RECTANGULAR)
CHECKS = [
    partial(default_tiles, statistic="mean", limit=0.0065),
    partial(default_tiles, statistic="max", limit=0.018),
    ten_calls,
    ten_calls_unguided,
    *(partial(in_bin, what="score error", i=i, **ONE_IMAGE) for i in range(6)),
    *(partial(in_bin, what="score error", i=i, **A_CURVE) for i in range(6)),
    *(partial(in_bin, what="loss", i=i, **A_CURVE) for i in range(6)),  # else the least is 0
    *(
        partial(error_by_calls, sampler=sampler, calls=n)
        for sampler, counts in CALLS.items()
        for n in counts
    ),
    partial(variety, sampler="dpmpp", calls=10),
]
AT_LENGTH = [
    partial(variety, sampler="sde", calls=300),
    partial(become_crystals, sampler="sde", calls=300, tolerance=0.04),
    partial(become_crystals, sampler="dpmpp", calls=50),
    *(partial(share_of_type, kind=kind) for kind in range(4)),
    invented_aspects,
]

# ------------------------------------------------------------------------------ the picture

LINES = {  # in the picture: a colour, a mark, a name
    "sde": (BLUE, "o", "reverse SDE, Euler-Maruyama"),
    "ode": (ORANGE, "s", "probability flow, Heun"),
    "dpmpp": (GREEN, "^", "DPM-Solver++(2M)"),
}
NETWORK = "with the network; after too few steps x is noisier than t says, and the network trusts t"
SCALE = {"a black image": 0.238, "shifted by 0.1 px": 0.014, "rounded to 8 bits": 0.001}


@house_style()
def draw(pair, folder):
    """crystals_error.png: error against calls, of the network and of the exact denoiser."""
    figure = new_figure(8, 6.4, layout="constrained")
    top, low = figure.subplots(2, 1, height_ratios=(3, 1))
    draw_errors(top, pair, "learned", "-", NETWORK, (6e-4, 1.2))
    draw_errors(low, pair, "exact", "--", "with the exact denoiser", (1e-9, 1e-5))

    grey = dict(fontsize=8, color=GREY)
    for words, level in SCALE.items():
        top.axhline(level, color="0.5", lw=0.8, ls=":", zorder=0)
        top.annotate(words, (340, level), (0, 3), textcoords="offset points", ha="right", **grey)
    low.text(340, 1e-6, "float32 rounding, at any number of steps", ha="right", **grey)

    low.set_xlabel("network calls per sample")
    figure.legend(*top.get_legend_handles_labels(), ncols=3, loc="outside lower center")
    title = "Same samplers, same noise: what is wrong with a crystal is the network's doing"
    figure.suptitle(title, weight="bold")
    save_figure(folder / "crystals_error.png", figure)


def draw_errors(ax, pair, which, line, title, limits):
    for sampler, (colour, mark, name) in LINES.items():
        calls = CALLS[sampler]
        errors = [crystal_errors(pair, which, sampler, n).mean() for n in calls]
        ax.loglog(calls, errors, line + mark, color=colour, ms=6, alpha=0.85, label=name)
    ax.set(xlim=(4.5, 350), ylim=limits, ylabel="crystal error")
    ax.set_title(title, loc="left", fontsize=11)
    ax.grid()
    ax.minorticks_off()
    ticks = CALLS["sde"]
    ax.set_xticks(ticks, [str(n) for n in ticks])
