"""Plumbing that holds no equation, written once: flags, device, seeds, run folders, checkpoints, logs, progress.

A checkpoint is one plain dict

    script, config, step, model, ema, optimizer          (a shipped one: script, config, step, ema in half precision)

and is all that is needed to go on: the draws of training step k depend on (seed, k) alone, so there is no random state to
keep.  To turn the `last.pt` of a run into the small file that ships:

    python training.py outputs/vp_sde/crystals_sde_seed0/last.pt assets/checkpoints/vp_sde.pt
"""

import argparse
import contextlib
import copy
import io
import json
import math
import os
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from make_gif import write_whole

# -------------------------------------------------------------------------------------------------------------------- flags


def number(kind=float, low=-math.inf, high=math.inf, open_low=False, open_high=False):
    """An argparse type: a finite number in [low, high], the ends left out where they are open."""
    ends = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None
        below = value <= low if open_low else value < low
        above = value >= high if open_high else value > high
        if not math.isfinite(value) or below or above:
            raise argparse.ArgumentTypeError(f"{text} is not in {ends}")
        return value

    return parse


def count(text):
    """An argparse type: a whole number of at least 1."""
    return number(int, 1, 10**9)(text)


def positive(text):
    """An argparse type: a finite number above 0."""
    return number(float, 0, 1e9, open_low=True)(text)


def shared_flags(parser, train_steps, batch_size, lr):
    """The flags that every training script has, with this script's defaults."""
    add = parser.add_argument_group("run, training and device").add_argument
    add("--train", action="store_true", help="train first, then sample from what was trained")
    add("--resume", action="store_true", help="go on with the training in --out DIR, with the settings stored there")
    add("--out", metavar="DIR", help="output folder (default: outputs/SCRIPT/DATA_SAMPLER_seedSEED)")
    add("--config", metavar="FILE", help="JSON with defaults, for instance the config.json of a run; flags win over it")
    add("--ckpt", metavar="PATH", help="checkpoint file or run folder (default: the one that ships)")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="decides every random number (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or mps; auto takes the fastest (default %(default)s)")
    add("--precision", choices=("auto", "bf16", "float32"), default="auto",
        help="of the matrix products; auto asks the processor (default %(default)s)")
    add("--train-steps", type=count, default=train_steps, help="optimizer steps (default %(default)s)")
    add("--batch-size", type=count, default=batch_size, help="images a step (default %(default)s)")
    add("--lr", type=positive, default=lr, help="learning rate after the warm-up (default %(default)s)")
    add("--save-every", type=count, default=1000, metavar="STEPS", help="checkpoint interval (default %(default)s)")


def parse(parser, argv):
    """Parse the command line and say which flags were given.  Returns (args, names of given flags).

    Every dashed flag may be spelt with underscores.  A --config file gives defaults; an unknown key in it is a mistake.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = ["--" + a[2:].partition("=")[0].replace("_", "-") + "".join(a[2:].partition("=")[1:])
            if a.startswith("--") else a for a in argv]
    defaults = vars(parser.parse_args([]))
    unset = object()  # argparse leaves an attribute alone that is there already, so what is still unset was not given
    found = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, unset))))
    given = {k: v for k, v in found.items() if v is not unset}
    if given.get("config"):
        preset = read_config(given["config"])
        if unknown := sorted(set(preset) - set(defaults)):
            parser.error(f"{given['config']}: unknown key {unknown[0]!r}")
        words = []
        for key, value in preset.items():  # through the parser, so that ranges are checked here as well
            if value is not None and value != defaults[key] and key not in ("config", "out", "train", "resume"):
                words += ["--" + key.replace("_", "-")] + ([] if value is True else [str(value)])
        stored = vars(parser.parse_args(words, argparse.Namespace(**dict.fromkeys(defaults, unset))))
        given = {k: v for k, v in stored.items() if v is not unset} | given
    return argparse.Namespace(**(defaults | given)), set(given)


def read_config(path) -> dict:
    try:
        preset = json.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read the config {path}: {error}") from None
    if not isinstance(preset, dict):
        raise ValueError(f"the config {path} should be one JSON object, such as a run's config.json")
    return preset


@contextlib.contextmanager
def one_line_errors(parser):
    """A user's mistake, raised as ValueError or OSError with a sentence for the user, ends in that sentence and status 2."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"\n{parser.prog}: stopped\n")


# --------------------------------------------------------------------------------------------------------- device and seeds


def pick_device(name: str) -> torch.device:
    """auto takes CUDA, then MPS, then CPU.  Raises ValueError for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, ok in there.items() if ok))
    if name.split(":")[0] not in there:
        raise ValueError(f"--device must be auto, cpu, cuda or mps, not {name!r}")
    if not there[name.split(":")[0]]:
        raise ValueError(f"--device {name}: this machine, or this build of torch, has no {name}; try --device auto")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """bf16 where the processor multiplies it natively, else float32.  Asks what it can do, never how fast it was today."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    return "bf16" if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16") else "float32"


def autocast(device: torch.device, precision: str):
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on the key alone, for instance (seed, training step)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def noise_of(generators, shape, device="cpu"):
    """Standard normal [N, *shape], row i from generators[i]: it does not depend on the batch that i was drawn in.

    Drawn on the CPU wherever it is used, so that a seed means the same picture on every device.
    """
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)


# ------------------------------------------------------------------------------------------------------- files and folders


def run_folder(args, script: str, name: str) -> Path:
    """Create the folder of a run before any work is done.  Raises ValueError where it would harm an earlier training."""
    out = Path(args.out or Path("outputs", script, name))
    if args.resume and not (out / "last.pt").is_file():
        raise ValueError(f"nothing to resume: there is no {out / 'last.pt'}")
    if args.train and not args.resume and (out / "last.pt").exists():
        raise ValueError(f"{out} holds a trained run; add --resume to go on with it, or name another folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / ".writable", b"")
        (out / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"cannot write into the output folder {out}: {error.strerror}") from None
    return out


def save_json(path, value):
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def save_npz(path, **arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def save_checkpoint(path, checkpoint: dict):
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_whole(path, buffer.getvalue())


def load_checkpoint(path, script: str) -> dict:
    """A checkpoint of this script, from a file or a run folder.  Raises ValueError with a sentence; never runs code in it."""
    path = Path(path)
    path = path / "last.pt" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; make one with --train, or name one with --ckpt")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not a zip archive")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        made_by = checkpoint["script"]
        assert isinstance(checkpoint["config"], dict) and isinstance(checkpoint["ema"], dict)
    except Exception as error:  # a damaged file raises whatever its first bad byte leads to
        what = type(error).__name__
        raise ValueError(f"{path} is damaged, cut short or no checkpoint of this project ({what})") from None
    if made_by != script:
        raise ValueError(f"{path} was made by {made_by}.py, not by {script}.py")
    return checkpoint


def load_weights(module, weights: dict, path):
    """Put weights of any precision into a module.  Raises ValueError when they belong to another network."""
    try:
        module.load_state_dict(weights)
    except RuntimeError:
        raise ValueError(f"the weights in {path} do not fit the network that its config describes") from None
    return module


def resume_settings(args, given, stored: dict, may_differ=("train_steps", "save_every", "device")):
    """The settings a resumed run goes on with.  Raises ValueError for a flag that contradicts what it was started with."""
    for key in sorted(given & set(stored) - {"out", "resume", "train", "config", *may_differ}):
        if getattr(args, key) != stored[key]:
            flag = "--" + key.replace("_", "-")
            raise ValueError(f"{flag} {getattr(args, key)} contradicts the run, which was started with {stored[key]}")
    for key in set(stored) & set(vars(args)) - {"out", "resume", "train"} - (given & set(may_differ)):
        setattr(args, key, stored[key])
    if args.train_steps < stored["train_steps"]:
        raise ValueError(f"--train-steps {args.train_steps} is less than the {stored['train_steps']} of the run")
    args.train = True


# ------------------------------------------------------------------------------------------------------------- the training


def learning_rate(step, total, peak, warmup=200, cooldown=0.4):
    """Warm up, stay, cool down linearly over the last 40 %: only the end depends on the total."""
    return peak * min(1.0, (step + 1) / warmup, max((total - step) / (cooldown * total), 1e-3))


def start_ema(net):
    ema = copy.deepcopy(net).eval()
    return ema.requires_grad_(False)


class Log:
    """Lines of log.jsonl.  On a resumed run, lines past the checkpoint are dropped: they are about to be written again."""

    def __init__(self, path, step=0):
        self.path = Path(path)
        if not step:
            self.lines = []
        else:
            lines = self.path.read_text().splitlines() if self.path.exists() else []
            self.lines = [line for line in map(json.loads, lines) if line["step"] <= step]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def add(self, **line):
        self.lines.append(line)
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def finish_the_step():
    """Ctrl-C (or a polite kill) during training: the flag yielded is set, and the loop saves before it stops."""
    stop = []
    try:
        old = {s: signal.signal(s, lambda *_: stop.append(1)) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where Python delivers signals: nothing to arrange
        old = {}
    try:
        yield stop
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


def steps(start, total, unit="step"):
    """A progress bar over training steps start .. total."""
    return tqdm(range(start, total), desc="training", initial=start, total=total, unit=unit, dynamic_ncols=True)


def check_finite(loss, step, out):
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at step {step}: training stopped, the last good checkpoint is in {out};"
                                 " try a lower --lr")


def stopwatch():
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


def ship(source, target):
    """Write the EMA weights of a checkpoint in half precision, with the config and nothing else."""
    ckpt = torch.load(source, map_location="cpu", weights_only=True)
    ema = {k: v.half() if v.is_floating_point() else v for k, v in ckpt["ema"].items()}
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, {"script": ckpt["script"], "config": ckpt["config"], "step": ckpt["step"], "ema": ema})
    print(f"{target}: {os.path.getsize(target) / 1e6:.2f} MB, step {ckpt['step']}")


if __name__ == "__main__":
    ship(*sys.argv[1:])
