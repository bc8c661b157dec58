"""One page that draws crystals and points in a browser, by the networks and samplers of vp_sde.py.

    pip install -r requirements-web.txt && (cd web && npm ci)
    python web/build.py

writes outputs/web/index.html, 13 MB, in under a minute.  It needs nothing else: no server and no
network connection.  To publish it, put that one file on any host.

    python web/build.py --ckpt outputs/mine         with a network of your own

Inside are the networks (ONNX), a runtime for them (onnxruntime-web) and tables of numbers, read off
the samplers (plans.py): of diffusion there is no formula in the JavaScript.
"""

import base64
import gzip
import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import data
import vp_sde
import vp_sde_2d
from audits.networks import opened
from common import cli, clouds
from common.checkpoints import SHIPPED
from common.cli import flag
from common.figures import house_style, new_figure
from common.files import read_regular, write_whole
from common.progress import progress
from common.seeds import image_noise
from web import export, plans
from web.networks import mixture_inputs

import numpy as np

HERE = Path(__file__).resolve().parent
RUNTIME = HERE / "node_modules" / "onnxruntime-web" / "dist"
SHAPES = ("S", "circle")
TILES = 36  # whose starts are stored: those of a default run of vp_sde.py
STEP = 2**-12  # to which they are rounded


@dataclass(kw_only=True)
class Config:
    script = "build"

    out: str = flag.run("outputs/web/index.html", "file to write", parse=cli.path)
    ckpt: str | None = flag.run(
        None, "of crystals, a file or run folder (default: the one that ships)", parse=cli.path
    )

    def settle(self, typed):
        if Path(self.out).suffix != ".html":
            raise ValueError(f"--out {self.out}: the page is one file, named something.html")
        for package in ("onnx", "onnxscript"):
            if find_spec(package) is None:
                how = "pip install -r requirements-web.txt"
                raise ValueError(f"the package {package} is missing: {how}")
        if not RUNTIME.is_dir():
            raise ValueError(f"there is no {RUNTIME}: run npm ci in {HERE}")


# ------------------------------------------------------------------------------ the parts


def tile_starts(img_size):
    """The noise that the 36 tiles of `python vp_sde.py` start from, rounded to 16 bits."""
    start = next(image_noise(0, range(TILES), (1, img_size, img_size)))
    return (start / STEP).round().clamp(-(2**15), 2**15 - 1).numpy().astype("<i2")


@house_style()
def magma():
    """The colours of the project's pictures of crystals: 256 of red, green, blue, opaque."""
    import matplotlib

    return matplotlib.colormaps["magma"](np.arange(256), bytes=True).tolist()


def half_side(gmm):
    """Half the side of the square of the plane that the page shows: noise and data fit."""
    return float(max(4, np.abs(gmm.means).max() + 4 * np.sqrt(gmm.eigenvalues.max())))


def arrow_places(half, n=15):
    """Where arrows stand, on a grid: [n * n, 2]."""
    at = np.linspace(-half, half, 2 * n + 1)[1::2]
    return np.stack(np.meshgrid(at, at), -1).reshape(-1, 2).round(3).tolist()


@house_style()
def rings(gmm, half, times):
    """For each time the contours that hold half and 95 % of p_t, as an SVG path, in hundredths."""
    axis = np.linspace(-half, half, 97)
    ax = new_figure(1, 1).subplots()
    paths = []
    for t in times:
        density, levels = clouds.density_on(gmm, axis, axis, t)
        segments = ax.contour(axis, axis, density, levels).allsegs
        ax.clear()
        lines = [(100 * line).round().astype(int) for level in segments for line in level]
        path = ""
        for line in lines:
            moves = " ".join(map(str, np.diff(line, axis=0).ravel()))
            path += f"M{line[0, 0]} {line[0, 1]}l{moves}"
        paths.append(path)
    return paths


def numbers(net, schedule):
    """All that is not a network."""
    mixtures = {name: vp_sde_2d.mixture(SimpleNamespace(shape=name), schedule) for name in SHAPES}
    point_plans = plans.point_plans(schedule)
    half = max(map(half_side, mixtures.values()))
    drawn = {}
    for name, gmm in mixtures.items():
        for steps in plans.POINT_STEPS:
            times = [t for t, _, _ in point_plans[f"sde-{steps}"]["film"]]
            drawn[f"{name}-{steps}"] = rings(gmm, half, times)

    inputs = {
        name: {key: value.tolist() for key, value in mixture_inputs(gmm).items()}
        for name, gmm in mixtures.items()
    }
    return dict(
        kinds=data.KINDS,
        crystals=plans.crystal_plans(net.schedule),
        points=point_plans,
        mixtures=inputs,
        half=half,
        arrows=arrow_places(half),
        rings=drawn,
        magma=magma(),
        step=STEP,
    )


# ------------------------------------------------------------------------------ the page


def packed(content: bytes, planes=False):
    """Bytes as text: gzip, then base64, after a digit.

    planes: all even bytes, then all odd ones, which packs numbers in half precision better; then
    the digit is 2.
    """
    digit = "1"
    if planes:
        content = content[0::2] + content[1::2]
        digit = "2"
    return digit + base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def runtime():
    """The runtime: its JavaScript, which brings no address to ask, and its WebAssembly."""
    script = read_regular(RUNTIME / "ort.wasm.bundle.min.mjs", "runtime").decode()
    script = script.partition("//# sourceMappingURL")[0]
    wasm = read_regular(RUNTIME / "ort-wasm-simd-threaded.wasm", "runtime")
    return script.encode(), wasm


def assembled(parts):
    """The template with style, scripts and parts {name: text} in it."""
    page, style, script, worker = (
        (HERE / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "page.js", "worker.js")
    )
    blocks = [
        f'<script type="text/plain" id="{name}">{text}</script>' for name, text in parts.items()
    ]
    blocks.append(f'<script type="text/plain" id="worker">\n{worker}</script>')
    for mark, text in (
        ("/* page.css */", style),
        ("<!-- parts -->", "\n".join(blocks)),
        ("/* page.js */", script),
    ):
        page = page.replace(mark, text)
    return page


def build(config):
    """The page as text."""
    net, run = opened(vp_sde, config.ckpt or SHIPPED / "vp_sde.pt")
    trained = run.trained
    if (trained.mode, trained.n_types) != ("rot-only", len(data.KINDS)):
        raise ValueError(f"{run.source}: the page is made for rot-only crystals of all four types")
    if trained.img_size != 64:
        raise ValueError(f"{run.source}: the page shows 64 pixels, not {trained.img_size}")
    points = {name: opened(vp_sde_2d, SHIPPED / f"vp_sde_2d_{name}.pt")[0] for name in SHAPES}
    schedule = points["S"].schedule

    jobs = export.jobs(net, points, trained.img_size)
    parts = {}
    for name, make, planes in progress(jobs, "exporting", len(jobs)):
        parts[name] = packed(make(), planes)
    script, wasm = runtime()
    parts["ort"] = packed(script)
    parts["wasm"] = packed(wasm)
    parts["starts"] = packed(tile_starts(trained.img_size).tobytes(), planes=True)
    text = json.dumps(numbers(net, schedule), separators=(",", ":"))
    parts["numbers"] = packed(text.encode())
    return assembled(parts)


def main(argv=None):
    with cli.program(Config.script):
        config = cli.parse(Config, argv)
        page = build(config).encode()
        write_whole(config.out, page)
        print(f"{config.out}: {len(page) / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    main()
