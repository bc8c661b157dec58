"""What things cost: medians of repeated measurements, each beside the command or call it measures.

    python tests/benchmark.py                    all of it, about three minutes on two cores
    python tests/benchmark.py --ckpt outputs/mine --repeats 5 --threads 2
    python tests/benchmark.py --growth     instead: growth with samples, steps and image size; one process and two

Not a test: nothing here passes or fails.  Close other programs first, and compare only figures of one machine.
Jobs are real processes, from start to last file; their memory is the peak of what stayed resident (getrusage).
"""

import argparse
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def median(call, repeats):
    """Median wall time of call(), after one call to warm up: seconds."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def line(what, value, unit, how):
    print(f"{what:44}{value:10.4g} {unit:9} {how}", flush=True)


def job(arguments, repeats, launcher=(str(ROOT / "vp_sde.py"),)):
    """Median wall time (s) and highest peak memory (GB) of `python vp_sde.py ...` as a process of its own.

    launcher: the script, or what starts another.  The memory is that of the largest of several processes.
    """
    program = ("import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=2);"
               "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)")
    times, peaks = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, *launcher, *arguments, "--out", out]
            start = time.perf_counter()
            # A middleman, because getrusage knows the largest of all children that one process ever had.
            done = subprocess.run([sys.executable, "-c", program, *command], cwd=ROOT, text=True, capture_output=True)
            times.append(time.perf_counter() - start)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with status {done.returncode}")
        peaks.append(int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024) / 1e9)
    return statistics.median(times), max(peaks)


def growth(repeats, steps=10):
    """Time and memory of the main job, one thing varied at a time from 36 samples, 10 steps, 64 pixels.

    With fresh weights, which cost what trained ones cost and exist for every image size.  The last column is the
    exponent p of cost ~ size^p from one line to the next, without what a job with nothing to draw takes.
    """
    import vp_sde

    import training

    with tempfile.TemporaryDirectory() as folder:
        for size in (16, 32, 64, 128, 256):
            args, _ = training.parse(vp_sde.make_parser(), ["--img-size", str(size), "--beta-max", "30"])
            net = vp_sde.build(vars(args))
            parts = dict(script="vp_sde", config=vars(args), step=0, ema=net.state_dict())
            training.save_checkpoint(Path(folder, f"{size}.pt"), parts)

        def cost(n=36, steps=steps, size=64):
            flags = ["--n", n, "--steps", steps, "--ckpt", Path(folder, f"{size}.pt"), "--cfg", 1.5]
            return job([str(flag) for flag in flags], repeats)

        idle, _ = cost(1, 1, 16)
        print(f"a job with next to nothing to draw: {idle:.1f} s\n\n{'':8}{'':>8}{'s':>10}{'GB':>8}{'exponent':>10}")
        for what, values in ("n", (36, 72, 144, 288)), ("steps", (10, 30, 100, 300)), ("size", (32, 64, 128, 256)):
            before = None
            for value in values:
                wall, peak = cost(**{what: value})
                work = max(wall - idle, 1e-3)
                slope = math.log(work / before[1]) / math.log(value / before[0]) if before else math.nan
                print(f"{what:8}{value:8}{wall:10.1f}{peak:8.2f}{slope:10.2f}", flush=True)
                before = value, work
    together(repeats)


def together(repeats, steps=(5, 65)):
    """Training in one process and in two that share its batch, started by torchrun, on the cores of this machine.

    From the difference of a long and a short training, so that imports and the samples at the end do not count.
    """
    print(f"\n{'processes':12}{'threads each':>14}{'ms/step':>10}{'GB each':>9}   dddm.py --train --data crystals")
    for n in (1, 2):
        threads = max(1, (os.cpu_count() or 1) // n)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n), str(ROOT / "dddm.py")]
        flags = ["--train", "--data", "crystals", "--n-samples", "2"]  # torchrun would take --n for its own
        os.environ["OMP_NUM_THREADS"] = str(threads)
        walls, peaks = zip(*(job([*flags, "--train-steps", str(k)], repeats, launcher) for k in steps), strict=True)
        speed = 1000 * (walls[1] - walls[0]) / (steps[1] - steps[0])
        print(f"{n:9}{threads:17}{speed:10.0f}{max(peaks):9.2f}", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--ckpt", metavar="PATH", help="checkpoint of the jobs and of the network (default: the one that ships)")
    add("--repeats", type=int, default=3, help="measurements of each figure (default %(default)s)")
    add("--steps", type=int, default=300, help="steps of the main job (default %(default)s)")
    add("--growth", action="store_true", help="instead: cost against number of samples, steps and image size")
    add("--threads", type=int, help="threads of torch (default: one a core)")
    args = parser.parse_args(argv)
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # for the jobs, and for torch, which is not imported yet
    if args.growth:
        return growth(args.repeats)

    import data
    import dddm
    import vp_sde

    import metrics
    import pictures
    import torch
    import training

    ckpt = Path(args.ckpt).resolve() if args.ckpt else ROOT / "assets" / "checkpoints" / "vp_sde.pt"
    checkpoint = training.load_checkpoint(ckpt, "vp_sde")
    device = torch.device("cpu")
    precision = training.pick_precision("auto", device)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}, {platform.machine()}, "
          f"medians of {args.repeats}\n")

    # ------------------------------------------------------------------------------------------------------------ parts
    net = training.load_weights(vp_sde.build(checkpoint["config"]), checkpoint["ema"], ckpt).eval()
    eps, size = vp_sde.eps_of(net, device, precision), checkpoint["config"]["img_size"]
    condition, x = data.asked_for(72), torch.randn(72, 1, size, size)
    with torch.no_grad():
        network = median(lambda: eps(x, 0.5, condition), 5 * args.repeats)
    line("network, per image and forward, batch 72", 1000 * network / 72, "ms", "vp_sde.eps_of(net)(x, t, condition)")
    seeds = iter(range(10**6))
    render = median(lambda: [data.crystal_batch(64 * i, 64, next(seeds)) for i in range(8)], args.repeats)
    line("renderer, 64 x 64, rot-only, batches of 64", 512 / render, "images/s", "data.crystal_batch(start, 64, seed)")
    stream = vp_sde.endless_noise(0, range(36), (1, size, size))
    noise = median(lambda: next(stream), 5 * args.repeats)
    line("noise of 36 images", 1000 * noise, "ms", "vp_sde.endless_noise")
    kind, theta = condition.kind[:36], condition.cont[:36, 1]
    truth = metrics.real_crystals(kind, theta, img_size=size)
    with open(os.devnull, "w") as nowhere:
        stdout, sys.stdout = sys.stdout, nowhere
        try:
            report = median(lambda: metrics.crystal_report(truth, kind, theta), args.repeats)
        finally:
            sys.stdout = stdout
    line("the numbers of 36 images", report, "s", "metrics.crystal_report(x, kind, theta)")
    with tempfile.TemporaryDirectory() as out:
        tiles = truth[:, 0].numpy()
        captions = ["a caption"] * 36
        grid = median(lambda: pictures.captioned_grid(Path(out, "g.png"), (tiles, tiles), captions), args.repeats)
        line("samples.png", grid, "s", "pictures.captioned_grid")
        frames = [x[i : i + 36, 0].clamp(0, 1).numpy() for i in range(34)]
        gif = Path(out, "g.gif")
        film = median(lambda: vp_sde.save_gif([pictures.grid_image(f, 6) for f in frames], gif), args.repeats)
        line("reverse_diffusion.gif, 34 frames", film, "s", "pictures.grid_image, make_gif.save_gif")
    for shared in ("4", "0"):  # of six blocks: those before xi enters, one pass for both particles
        args, given = training.parse(dddm.make_parser(), ["--data", "crystals", "--shared", shared])
        dddm.settle(args, given, None)
        args.precision, config = precision, vars(args)
        net = dddm.build(config)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.0)
        rows = slice(0, args.batch_size)
        step = median(partial(dddm.gradient_of, net, optimizer, config, 0, None, device, rows), args.repeats)
        line(f"dddm.py, gradients of a step, --shared {shared}", 1000 * step, "ms", "dddm.gradient_of, crystals, m = 2")
    imported = [sys.executable, "-c", "import vp_sde"]
    imports = median(lambda: subprocess.run(imported, cwd=ROOT, check=True), args.repeats)
    line("imports", imports, "s", 'python -c "import vp_sde"')

    # ------------------------------------------------------------------------------------------------------- whole jobs
    print()
    ckpt_flag = ["--ckpt", str(ckpt)] if args.ckpt else []
    for flags in (["--steps", str(args.steps), "--cfg", "1.5"], ["--sampler", "dpmpp", "--steps", "10"]):
        how = " ".join(["python vp_sde.py", *flags])
        wall, peak = job(flags + ckpt_flag, args.repeats)
        line("whole job, wall", wall, "s", how)
        line("whole job, peak memory", peak, "GB", how)
        calls = int(flags[flags.index("--steps") + 1])
        print(f"    of which, from the parts above: imports {imports:.1f} s, network {network * calls:.1f} s, "
              f"noise {noise * (calls if 'dpmpp' not in flags else 1):.1f} s, numbers {report:.1f} s, "
              f"pictures {grid + film:.1f} s")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    line("\nthis benchmark itself, peak memory", own, "GB", "python tests/benchmark.py")


if __name__ == "__main__":
    main()
