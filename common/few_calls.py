"""Two networks that draw the same images by 1, 2, 4, ... calls: what a loss is worth, in numbers.

    python dddm_dit.py --data mnist --against RUN       RUN: one trained with --beta 2 --lam 0, say
"""

import data
from common import runs
from common.contact_sheet import Row, draw_sheet
from common.image_job import MEANING

CALLS = (1, 2, 4, 8, 16, 32)
IN_PICTURE = (1, 4, 16)
SHOWN = 10  # images in a row of the picture


def pair(net, run, build):
    """Both networks, by the settings that set them apart: {name: (network, its Run)}.

    Raises ValueError where they draw different images.
    """
    other, of = runs.opened(run.config.against, build, run)
    for key in ("data", "img_size"):
        mine, its = getattr(run.trained, key), getattr(of.trained, key)
        if mine != its:
            raise ValueError(f"no fair comparison: {run.source} draws {mine}, {of.source} {its}")

    names = [f"beta {a.trained.beta:g}, lam {a.trained.lam:g}" for a in (run, of)]
    if names[0] == names[1]:
        names = [str(run.source), str(of.source)]
    return {names[0]: (net, run), names[1]: (other, of)}


def report(drawn, images, run):
    """few_calls.png, the numbers {name: {calls: ...}} and a table of them.

    drawn: {name: {calls: x}}; images: where real ones are, of common/image_job.py.
    """
    config = run.config
    condition = images.conditions(config)
    seed = config.seed + 1
    numbers = {}
    for name, of_calls in drawn.items():
        numbers[name] = {n: images.evaluate(x, condition, seed) for n, x in of_calls.items()}
    floor = images.floor(config.n, seed)
    draw_picture(run.out / "few_calls.png", drawn, images.real(SHOWN, seed), config)

    lines = []
    for key in next(iter(numbers.values()))[CALLS[0]]:
        lines.append(f"{MEANING[key]} (n = {config.n}), by the number of calls")
        lines.append(" " * 24 + "".join(f"{n:>9}" for n in CALLS))
        for name, found in numbers.items():
            lines.append(f"{name:24}" + "".join(f"{found[n][key]:9.3g}" for n in CALLS))
        if key in floor:
            lines.append(f"{'real against real':24}{floor[key]:9.3g}")
    return {"n": config.n, "floor": floor, **numbers}, "\n".join(lines)


def draw_picture(path, drawn, real, config):
    """A row of images for each network and some numbers of calls, from the same noise."""
    rows = []
    for name, of_calls in drawn.items():
        heading = name
        for n in IN_PICTURE:
            calls = f"{n} call{'s' * (n > 1)}"
            rows.append(Row(calls, data.unit(of_calls[n][:SHOWN]), heading=heading))
            heading = ""
    if len(real):
        rows.append(Row("real", data.unit(real), heading=config.data))
    about = f"both networks from the same noise, --churn {config.churn:g}"
    draw_sheet(path, "By few network calls", about, rows)
