"""Plumbing that holds no equation, written once: flags, device, seeds, run folders, checkpoints, logs, progress.

A checkpoint is one plain dict

    script, config, step, model, ema, optimizer          (a shipped one: script, config, step, ema in half precision)

and is all that is needed to go on: the draws of training step k depend on (seed, k) alone, so there is no random state
to keep.  To turn the `last.pt` of a run into the small file that ships:

    python training.py outputs/vp_sde/crystals_sde_seed0_trained assets/checkpoints/vp_sde.pt
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy>=2.2,<3", "matplotlib>=3.10,<4", "imageio>=2.37,<3", "pillow>=11",
#                 "tqdm>=4.66,<5", "pooch>=1.8,<2"]
# ///

import argparse
import contextlib
import copy
import importlib.util
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
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import data
from make_gif import write_whole

TRAINING_SET = 50_000  # crystals in an epoch, when they are rendered on the fly

# ---------------------------------------------------------------------------------------------------------------- flags


def new_parser(script, doc):
    """A parser for a script with that docstring.  Abbreviated flags are mistakes: --step is a typo, not --steps."""
    return argparse.ArgumentParser(prog=script, description=doc.split("\n\n")[0], allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def number(kind=float, low=-math.inf, high=math.inf, open_low=False, open_high=False, unit=""):
    """An argparse type: a finite number in [low, high], the ends left out where they are open."""
    open_low, open_high = open_low or low == -math.inf, open_high or high == math.inf
    ends = f"{'(' if open_low else '['}{low:.10g}, {high:.10g}{')' if open_high else ']'}"

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None
        inside = (low < value if open_low else low <= value) and (value < high if open_high else value <= high)
        if not inside:  # NaN fails every comparison
            raise argparse.ArgumentTypeError(f"must lie in {ends}{unit}, not at {text}")
        return value

    return parse


count, positive = number(int, 1, 10**9), number(float, 0, 1e9, open_low=True)  # types of many flags
angle = number(float, 0, data.THETA_MAX, unit=" radians (60 degrees)")


def lattice(text):
    """An argparse type: a lattice type, by its number or its name."""
    if text not in (*data.KINDS, *map(str, range(len(data.KINDS)))):
        raise argparse.ArgumentTypeError(f"must be 0 to 3, or one of {', '.join(data.KINDS)}, not {text!r}")
    return data.KINDS.index(text) if text in data.KINDS else int(text)


def side(text):
    """An argparse type: the side of an image, in pixels."""
    if number(int, 16, 1024)(text) % 16:
        raise argparse.ArgumentTypeError(f"must be a multiple of 16, not {text}")
    return int(text)


def shared_flags(parser, train_steps, batch_size, lr):
    """The flags that every training script has, with this script's defaults."""
    parser.usage = "%(prog)s [flags]    (--help explains them)"
    add = parser.add_argument_group("run, training and device").add_argument
    add("--train", action="store_true", help="train first, then sample from what was trained")
    add("--resume", action="store_true", help="go on with the training in --out DIR, with the settings stored there")
    add("--out", metavar="DIR", help="output folder (default: one below outputs/, or below the run that --ckpt names)")
    add("--config", metavar="FILE", help="JSON with defaults, for instance the config.json of a run; flags win over it")
    add("--ckpt", metavar="PATH", help="checkpoint file or run folder (default: the one that ships)")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="decides every random number (default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or mps; auto takes the fastest (default %(default)s)")
    add("--precision", choices=("auto", "bf16", "float32"), default="auto",
        help="of the matrix products; auto asks the processor (default %(default)s)")
    add("--train-steps", type=count, default=train_steps, help=f"optimizer steps (default {train_steps or 'by data'})")
    add("--batch-size", type=count, default=batch_size, help=f"samples a step (default {batch_size or 'by data'})")
    add("--lr", type=positive, default=lr, help=f"learning rate after the warm-up (default {lr or 'by data'})")
    add("--epochs", type=count,
        help="instead of --train-steps: passes over the data (of crystals rendered on the fly: 50,000)")
    add("--save-every", type=count, default=1000, metavar="STEPS", help="checkpoint interval (default %(default)s)")
    add("--ema-decay", type=number(float, 0, 1, open_high=True), default=0.999,
        help="of the averaged weights (default %(default)s)")
    add("--use-ema", type=number(int, 0, 1), default=1,
        help="1: sample with averaged weights; 0: with those of the last step (default %(default)s)")


def crystal_flags(parser):
    """The flags that say which crystals a model learns, and which are asked of it."""
    add = parser.add_argument_group("crystals (a checkpoint knows its own)").add_argument
    add("--data-path", metavar="FILE", help="train on a file made by data.py --build, instead of rendering on the fly")
    add("--mode", choices=data.MODES, default="rot-only",
        help="what varies from crystal to crystal (default %(default)s)")
    add("--n-types", type=number(int, 1, 4), default=4, help="lattice types in the data (default %(default)s)")
    add("--img-size", type=side, default=64, help="pixels, a multiple of 16 (default %(default)s)")
    asking_flags(add)


def asking_flags(add):
    """The flags that ask a model for one crystal."""
    names = ", ".join(f"{i} {name}" for i, name in enumerate(data.KINDS))
    add("--kind", type=lattice, help=f"ask for one lattice type, by number or name: {names} (default: all in turn)")
    add("--theta", type=angle, help="ask for one angle, radians in [0, 1.0471] (default: from 0 to 60 degrees)")


class Settings(argparse.Namespace):
    """Parsed flags, and the parser that knows their types and ranges.  vars() of it is the config."""

    __slots__ = ("parser",)  # so it is not among vars()


def given_in(words, parser):
    """The flags that stand in words, and their values: dict."""
    defaults, unset = vars(parser.parse_args([])), object()
    # argparse leaves an attribute alone that is there already: what stays unset was not given
    found = vars(parser.parse_args(words, argparse.Namespace(**dict.fromkeys(defaults, unset))))
    return {key: value for key, value in found.items() if value is not unset}


def parse(parser, argv):
    """Parse the command line and say which flags were given.  Returns (args, names of given flags).

    Every dashed flag may be spelt with underscores.  A --config file gives defaults; an unknown key in it is a mistake.
    """
    defaults, words = vars(parser.parse_args([])), []
    for word in sys.argv[1:] if argv is None else argv:
        flag, *value = word.split("=", 1)
        words.append("=".join([flag.replace("_", "-"), *value]) if flag.startswith("--") else word)
    given = given_in(words, parser)
    if given.get("config"):
        preset = read_config(given["config"])
        if unknown := sorted(set(preset) - set(defaults)):
            raise ValueError(f"{given['config']}: unknown key {unknown[0]!r}")
        kept = {key: value for key, value in preset.items() if key not in ("config", "out", "train", "resume")}
        given = from_file(parser, kept, given["config"]) | given
    args = Settings(**(defaults | given))
    args.parser = parser
    return args, set(given)


def from_file(parser, settings: dict, path) -> dict:
    """The settings of a file that are not the defaults, read as if they were flags: types and ranges are checked.

    Keys that are no flags are passed over.  Raises ValueError.
    """

    def complain(message):
        raise ValueError(f"{path}: {message}")

    defaults, words = vars(parser.parse_args([])), []
    for key, value in settings.items():
        if key in defaults and not (type(value) is type(defaults[key]) and value == defaults[key]):
            switch = value is True and defaults[key] is False
            words.append("--" + key.replace("_", "-") + ("" if switch else f"={value}"))
    parser.error = complain  # argparse would end the program; what a file says wrongly is the caller's to tell
    try:
        return given_in(words, parser)
    finally:
        del parser.error


def settle_crystals(args, given):
    """Refuse crystal flags that do not go together, and turn --epochs into --train-steps."""
    if args.kind is not None and args.kind >= args.n_types:
        raise ValueError(f"--kind {args.kind}: the model knows types 0 to {args.n_types - 1} only")
    if args.mode == "simple" and args.theta:
        raise ValueError("--theta: crystals of mode simple are not turned")
    rows = TRAINING_SET
    if args.data_path and args.train:
        rows, _, size, _ = data.load_built(args.data_path)["x_u8"].shape
        if size != args.img_size:
            raise ValueError(f"{args.data_path} holds images of {size} pixels: say --img-size {size}")
    settle_epochs(args, given, rows)


def settle_epochs(args, given, rows):
    if args.epochs and "train_steps" not in given and not args.resume:
        args.train_steps = max(1, args.epochs * rows // args.batch_size)


def read_config(path) -> dict:
    if not Path(path).is_file():  # of a pipe nobody writes into, a reader waits for ever
        raise ValueError(f"cannot read the config {path}: there is no such file")
    try:
        preset = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:  # ten thousand brackets are too deep for the decoder
        raise ValueError(f"cannot read the config {path}: {error}") from None
    if not isinstance(preset, dict):
        raise ValueError(f"the config {path} should be one JSON object, such as a run's config.json")
    return preset


@contextlib.contextmanager
def one_line_errors(parser):
    """A user's mistake, raised as ValueError or OSError with a sentence, ends in that sentence and status 2.

    So do a computation that blew up and a lack of memory or disk.  Ctrl-C ends in status 130.
    """
    try:
        yield
        return
    except (ValueError, OSError, ArithmeticError) as error:
        sentence = " ".join(str(error).split())
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):  # torch calls a lack of memory that
            raise
        sentence = "not enough memory: ask for fewer samples, smaller batches or smaller images"
    except KeyboardInterrupt as stop:
        parser.exit(130, f"\n{parser.prog}: {str(stop) or 'stopped; every file that is there is whole'}\n")
    parser.exit(2, f"{parser.prog}: error: {sentence}\n")


# ----------------------------------------------------------------------------------------------------- device and seeds


def pick_device(name: str) -> torch.device:
    """auto takes CUDA, then MPS, then CPU.  Raises ValueError for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = name.partition(":")[0]  # cuda:1 is the second of several
    if name == "auto":
        name = kind = next(kind for kind, ok in there.items() if ok)
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # under torchrun, a device a process
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if kind not in there:
        raise ValueError(f"--device must be auto, cpu, cuda or mps, not {name!r}")
    if there[kind]:
        with contextlib.suppress(RuntimeError):
            return torch.zeros(1, device=name).device
    raise ValueError(f"--device {name}: this machine, or this build of torch, has no {name}; try --device auto")


def pick_precision(name: str, device: torch.device) -> str:
    """bf16 where the processor multiplies it natively, else float32: asks what it can do, not how fast it was today."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    return "bf16" if device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16") else "float32"


def autocast(device: torch.device, precision: str):
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on the key alone, say (seed, training step, 1).  Zeros at its end do not count."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def noise_of(generators, shape, device="cpu"):
    """Standard normal [N, *shape], row i from generators[i]: it does not depend on the batch that i was drawn in.

    Drawn on the CPU wherever it is used, so that a seed means the same picture on every device.
    """
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)


# ---------------------------------------------------------------------------------------------------- files and folders

SHIPPED = Path(__file__).parent / "assets" / "checkpoints"


def run_folder(args, script: str, name: str, run=None) -> Path:
    """Create the folder of a run before any work is done: --out, or one named after what it is.

    run: the checkpoint file or run folder that is sampled from, if the user named one: samples of a run go below it.  A
    folder with a last.pt belongs to its training: anything but --resume raises ValueError, as does one that cannot be
    made.
    """
    source = Path(run) if run else None
    source = source.parent if source and source.name == "last.pt" else source
    of_a_run = source is not None and not args.train and (source / "last.pt").is_file()
    usual = source / name if of_a_run else Path("outputs", script, name + "_trained" * args.train)
    out = Path(args.out or usual)
    if (out / "last.pt").exists() and not args.resume:
        how = "go on with it by --resume, or " if args.train else ""
        raise ValueError(f"{out} holds a trained run: {how}name another folder with --out")
    return make_folder(out)


def make_folder(out) -> Path:
    """Create a folder, and make sure that files can be written there.  Raises ValueError."""
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / f".writable{rank()}", b"")
        (out / f".writable{rank()}").unlink(missing_ok=True)  # another run of that name may have been faster
    except OSError as error:
        raise ValueError(f"cannot write into the folder {out} ({error.strerror}): name another with --out") from None
    return out


def close_run(out, config, result):
    """The last files of a run: metrics.json, and the config, so that a sampling that fails leaves the old one."""
    save_json(out / "metrics.json", result)
    save_json(out / "config.json", config)
    print(f"{out} now holds " + ", ".join(sorted(p.name for p in out.iterdir())))


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


def read_whole(path):
    """The dict that torch saved in a file; None where the file is damaged, or holds anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            whole = archive.testzip() is None  # every checksum: torch itself would load a flipped bit
        found = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except Exception:  # a damaged file raises whatever its first bad byte leads to
        return None
    return found if isinstance(found, dict) else None


def load_checkpoint(path, script=None, parser=None) -> dict:
    """The checkpoint in a file or run folder, made by `script` (None: by any); its parser, if given, checks the config.

    Raises ValueError with a sentence for anything else, and never runs code that may be in the file.
    """
    path = Path(path)
    path = path / "last.pt" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; make one with --train, or name one with --ckpt")
    checkpoint, kinds = read_whole(path) or {}, dict(script=str, step=int, config=dict, ema=dict)
    whole = all(isinstance(checkpoint.get(key), kind) for key, kind in kinds.items())
    if not whole:
        raise ValueError(f"{path} is damaged, cut short or no checkpoint of this project")
    made_by, config = checkpoint["script"], checkpoint["config"]
    if made_by != (script or made_by):
        raise ValueError(f"{path} was made by {made_by}.py, not by {script}.py")
    if parser:
        config |= from_file(parser, config, path)
    return checkpoint


def open_checkpoint(args, given, script: str, shipped: str):
    """What this command starts from: the run that --resume goes on with, None for --train, else --ckpt or what ships.

    Gives args the settings of a resumed run.  Raises ValueError as the loaders do.
    """
    if args.resume:
        checkpoint = load_run(args.out, script, args.parser)
        resume_settings(args, given, checkpoint["config"])
        return checkpoint
    if args.train:
        if args.ckpt:
            raise ValueError("--train starts from nothing: leave --ckpt out, or go on with --resume --out DIR")
        return None
    return load_checkpoint(args.ckpt or SHIPPED / shipped, script, args.parser)


def take_model_flags(args, given, checkpoint, keys):
    """The model is what its checkpoint says.  Raises ValueError for a flag that contradicts it."""
    config = checkpoint["config"]
    if missing := [key for key in (*keys, "seed") if key not in config]:
        raise ValueError(f"the checkpoint does not say its {missing[0]}: it is damaged, or of another version")
    for key in keys:
        if key in given and getattr(args, key) != config[key]:
            flag = f"--{key.replace('_', '-')} {getattr(args, key)}"
            raise ValueError(f"{flag} contradicts the checkpoint, which has {config[key]}: train another with --train")
        setattr(args, key, config[key])


def load_net(net, checkpoint, args, device):
    """The network of a checkpoint, with averaged weights or those of the last step, ready to draw from."""
    path, weights = args.ckpt or "the checkpoint that ships", "ema" if args.use_ema else "model"
    if weights not in checkpoint:
        raise ValueError(f"{path} ships only averaged weights: leave --use-ema at 1")
    return load_weights(net, checkpoint[weights], path).to(device).eval()


def load_run(out, script: str, parser=None) -> dict:
    """The checkpoint that --resume goes on from.  Raises ValueError where there is none."""
    if not out:
        raise ValueError("--resume needs --out DIR, the folder of the run to go on with")
    path = Path(out, "last.pt")
    if not path.is_file():
        raise ValueError(f"nothing to resume: there is no {path}")
    checkpoint = load_checkpoint(path, script, parser)
    if not {"model", "optimizer"} <= set(checkpoint):
        raise ValueError(f"nothing to resume: {path} ships averaged weights only, without the state of the training")
    return checkpoint


def load_weights(module, weights: dict, path):
    """Put weights of any precision into a module.  Raises ValueError when they belong to another network."""
    try:
        module.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError):
        raise ValueError(f"the weights in {path} do not fit the network that its config describes") from None
    return module


def resume_settings(args, given, stored: dict, may_differ=("train_steps", "save_every", "device", "data_dir")):
    """Give args the settings of the run that goes on.  Raises ValueError for a flag that contradicts them."""
    for key in sorted(set(stored) & set(vars(args)) - {"out", "resume", "train", "config"}):
        value = getattr(args, key)
        if key not in given:
            setattr(args, key, stored[key])
        elif key not in may_differ and value != stored[key]:
            flag = "--" + key.replace("_", "-")
            raise ValueError(f"{flag} {value} contradicts the run, which was started with {stored[key]}: leave it out "
                             "(and sample as you like afterwards, with --ckpt)")
    if args.train_steps < stored.get("train_steps", 0):
        raise ValueError(f"--train-steps {args.train_steps} is less than the {stored['train_steps']} of the run")
    args.train = True


# ---------------------------------------------------------------------------------------------------- several processes
# torchrun starts a script several times and tells each copy its rank.  Every draw of a training step is keyed by its
# place in the whole batch and a process works on its own slice, so that several take the same step as one.


def rank() -> int:
    """Of this process; 0 is the one that logs, saves, samples and prints."""
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group(device):
    """Joins the processes that torchrun started; without torchrun does nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # what nccl works on
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def my_share(n) -> slice:
    """The rows of a batch of n that this process works on.  ValueError where they cannot all have as many."""
    if n % processes():
        raise ValueError(f"--batch-size {n} cannot be shared by {processes()} processes")
    share = n // processes()
    return slice(rank() * share, (rank() + 1) * share) if processes() > 1 else slice(0, n)


def share_gradients(net):
    """The network as the loss is to call it: after backward() every process holds the mean of all gradients."""
    return DistributedDataParallel(net) if processes() > 1 else net


def mean_over_processes(value: float) -> float:
    if processes() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return total.item() / processes()


def anywhere(flag) -> bool:
    """Whether it is set in any process: if one alone left the loop, the others would wait for it for ever."""
    return mean_over_processes(float(bool(flag))) > 0


# --------------------------------------------------------------------------------------------------------- the training


def learning_rate(step, total, peak, warmup=200, cooldown=0.4):
    """Warm up, stay, cool down linearly over the last 40 %: only the end depends on the total."""
    return peak * min(1.0, (step + 1) / warmup, max((total - step) / (cooldown * total), 1e-3))


def crystal_batch(config, step, source, n, held_out=False):
    """Crystals of training step `step`, a function of (seed, step): x_u8 uint8 [n, 1, H, W] and their Condition.

    source: a built file, from which rows are drawn; None, or held out: they are rendered on the fly.
    """
    seed = config["seed"]
    if source is not None and not held_out:
        rows = torch.randint(len(source["x_u8"]), (n,), generator=generator(seed, step, 1))
        x_u8, kind, cont = (source[key][rows] for key in ("x_u8", "y_cat", "y_cont"))
    else:
        x_u8, kind, cont = data.crystal_batch(step * n, n, seed, config["mode"], config["n_types"], config["img_size"],
                                              stream=int(held_out))
    return x_u8, data.told(kind, cont)


def start_ema(net):
    ema = copy.deepcopy(net).eval()
    return ema.requires_grad_(False)


def restore(checkpoint, net, ema, optimizer, out) -> int:
    """Put a run's checkpoint back (None: nothing) and return the step it had reached."""
    if checkpoint is None:
        return 0
    load_weights(net, checkpoint["model"], out / "last.pt")
    load_weights(ema, checkpoint["ema"], out / "last.pt")
    load_optimizer(optimizer, checkpoint["optimizer"], out / "last.pt")
    return checkpoint["step"]


def load_optimizer(optimizer, saved, path):
    """Put the averages of AdamW back; its settings are those of the script.  Raises ValueError if they do not fit."""
    try:
        settings = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": dict(saved["state"]), "param_groups": settings})
        whole = all(set(state) <= {"step", "exp_avg", "exp_avg_sq"} and len(state) in (0, 3)
                    and all(v.dtype == torch.float32 and v.shape == (p.shape if key != "step" else ())
                            for key, v in state.items()) for p, state in optimizer.state.items())
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError):
        whole = False
    if not whole:
        raise ValueError(f"the state of the optimizer in {path} is damaged, or of another network")


def save_run(out, script, config, step, net, ema, optimizer, **more):
    parts = dict(model=net.state_dict(), ema=ema.state_dict(), optimizer=optimizer.state_dict(), **more)
    save_checkpoint(out / "last.pt", dict(script=script, config=config, step=step, **parts))


class Log:
    """Lines of log.jsonl.  Of a resumed run, lines past the checkpoint are dropped: they will be written again."""

    def __init__(self, path, step=0):
        self.path, self.lines = Path(path), []
        if step and self.path.is_file():
            for text in self.path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # half a line, where the run was killed
                    self.lines.append(json.loads(text))
        self.lines = [line for line in self.lines if line["step"] <= step]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())

    def add(self, **line):
        self.lines.append(line)
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")


class Board:
    """Weights & Biases, for those who asked for it (--wandb); WANDB_MODE=offline needs no account."""

    def __init__(self, args, wanted=True):
        self.run = None
        if args.get("wandb") and wanted:
            import wandb  # optional: nothing else needs it

            self.run = wandb.init(project=args["wandb_project"], name=args["wandb_name"], config=args)

    def add(self, step, numbers, pictures=()):
        """numbers: {name: value}; pictures: {name: path of a PNG}."""
        if self.run:
            import wandb

            self.run.log(numbers | {k: wandb.Image(str(v)) for k, v in dict(pictures).items()}, step=step)


def need_package(flag, package):
    """Raises ValueError where an optional package is missing."""
    names = {"torchmetrics[image]": ("torchmetrics", "torch_fidelity")}.get(package, (package,))
    if not all(map(importlib.util.find_spec, names)):
        raise ValueError(f"{flag} needs a package that is not installed: pip install '{package}'")


@contextlib.contextmanager
def finish_the_step():
    """Ctrl-C, or a polite kill: the list yielded is no longer empty, and the loop saves before it stops.

    More of them, say from a user who sees it saving, change nothing.  One that comes too late for the loop, while the
    last step is being saved, raises KeyboardInterrupt at the end.
    """
    stop = []
    old = {s: signal.signal(s, lambda *_: stop.append(1)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
    if stop:
        raise KeyboardInterrupt("the training is complete and saved; sample from it with --ckpt")


def leave(done, total, out):
    """Ends a loop that was asked to stop and has saved: raises KeyboardInterrupt, which says what to do next."""
    how = f"go on with --resume --out {out}" if done < total else f"that was the last: sample with --ckpt {out}"
    raise KeyboardInterrupt(f"stopped at step {done} and saved; {how}")


def steps(start, total, unit="step"):
    """A progress bar over training steps start .. total; in a log file, a line now and then."""
    pause = 0.1 if sys.stderr.isatty() else 30
    return tqdm(range(start, total), desc="training", initial=start, total=total, unit=unit, dynamic_ncols=True,
                mininterval=pause, maxinterval=10 * pause, disable=rank() > 0)


def check_finite(value, step, out):
    """Called before the optimizer's step.  value: the loss, or better the loss plus the norm of its gradient."""
    if not math.isfinite(value):
        last = Path(out, "last.pt")
        kept = f"the last good checkpoint is {last}" if last.exists() else "nothing was saved yet"
        raise FloatingPointError(f"the loss or its gradient is {value} at step {step}: {kept}; try a lower --lr")


def stopwatch():
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


def ship(source, target):
    """Write the EMA weights of a checkpoint in half precision, with the config and nothing else."""
    kept = {key: value for key, value in load_checkpoint(source).items() if key in ("script", "config", "step", "ema")}
    if not all(map(torch.is_tensor, kept["ema"].values())):
        raise ValueError(f"{source} is damaged: not all of its weights are tensors")
    here = {"out": None, "data_dir": "data"}  # what the folders were called on this machine
    kept["config"] |= {key: value for key, value in here.items() if key in kept["config"]}
    kept["ema"] = {k: v.half() if v.is_floating_point() else v for k, v in kept["ema"].items()}
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, kept)
    print(f"{target}: {Path(target).stat().st_size / 1e6:.2f} MB, step {kept['step']}")


def main(argv=None):
    parser = new_parser("training.py", "Turn the last.pt of a run into the file that ships.")
    parser.add_argument("source", help="checkpoint file or run folder")
    parser.add_argument("target", help="file to write")
    args = parser.parse_args(argv)
    with one_line_errors(parser):
        ship(args.source, args.target)


if __name__ == "__main__":
    main()
