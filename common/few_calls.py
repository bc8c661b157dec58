"""Two networks that draw the same images by 1, 2, 4, ... calls: what a loss is worth, in numbers.

    python dddm_dit.py --data mnist --against RUN       RUN: one trained with --beta 2 --lam 0, say

Each is drawn with all noise fresh (churn 1, as DDPM) and with none (churn 0, as DDIM), since a
network of the one loss may suit the one, and a network of the other the other.
"""

import data
from common import runs
from common.contact_sheet import Row, draw_sheet
from common.image_job import MEANING

CALLS = (1, 2, 4, 8, 16, 32)
IN_PICTURE = 4  # calls
SHOWN = 10  # images in a row of the picture


def rivals(net, run, build):
    """Both networks and churns, by what sets them apart: {name: (network, its Run)}.

    Raises ValueError for one network twice, and for two that draw different images.
    """
    other, of = runs.opened(run.config.against, build, run)
    if of.source.samefile(run.source):
        raise ValueError(f"--against {run.config.against} is the same network as {run.source}")
    for key in ("data", "img_size"):
        mine, its = getattr(run.trained, key), getattr(of.trained, key)
        if mine != its:
            raise ValueError(f"no fair comparison: {run.source} draws {mine}, {of.source} {its}")

    names = [f"beta {one.trained.beta:g}, lam {one.trained.lam:g}" for one in (run, of)]
    if names[0] == names[1]:
        names = [str(run.source), str(of.source)]
    found = {}
    for name, one, its_run in zip(names, (net, other), (run, of), strict=True):
        for churn in (1.0, 0.0):
            found[f"{name}, churn {churn:g}"] = one, its_run.with_settings(churn=churn)
    return found


def report(drawn, images, run):
    """few_calls.png, the numbers {name: {calls: ...}} and a table of them.

    drawn: {name: {calls: x}}; images: their source, of common/image_job.py.
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
    width = max(map(len, numbers)) + 2
    first = next(iter(numbers.values()))
    for key in first[CALLS[0]]:
        lines.append(f"{MEANING[key]} (n = {config.n}), by the number of calls")
        lines.append(" " * width + "".join(f"{n:>9}" for n in CALLS))
        for name, found in numbers.items():
            lines.append(f"{name:{width}}" + "".join(f"{found[n][key]:9.3g}" for n in CALLS))
        if key in floor:
            lines.append(f"{'real against real':{width}}{floor[key]:9.3g}")
    return {"n": config.n, "floor": floor, **numbers}, "\n".join(lines)


def draw_picture(path, drawn, real, config):
    """A row of images for each network and churn, from the same start, after a few calls."""
    rows = []
    for name, of_calls in drawn.items():
        network, _, churn = name.rpartition(", ")
        rows.append(Row(churn, data.unit(of_calls[IN_PICTURE][:SHOWN]), heading=network))
    if len(real):
        rows.append(Row("real", data.unit(real), heading=config.data))
    draw_sheet(path, f"By {IN_PICTURE} network calls", "from the same start", rows)
