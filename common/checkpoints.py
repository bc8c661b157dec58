"""Checkpoints: one plain dict each, loaded without running code that may be in the file.

    edition, script, predicts, config, contents                     what it is
    step, seconds, machine                                          how it was made
    ema                                                             the averaged weights
    model, optimizer, sums                                          what --resume continues from

To turn the last.pt of a run into the small file that ships, averaged weights in half precision:

    python -m common.runs outputs/vp_sde/train assets/checkpoints/vp_sde.pt
"""

import hashlib
import io
import math
import sys
from pathlib import Path

from common import cli
from common.files import read_regular, write_whole
from common.pickled import unpickled

import torch

EDITION = 2
ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "assets" / "checkpoints"
SECONDS = (float, type(None))  # None: nobody wrote down how long it took
KINDS = dict(script=str, config=dict, contents=dict, step=int, seconds=SECONDS, ema=dict)


def save_checkpoint(path, checkpoint):
    buffer = io.BytesIO()
    torch.save({"edition": EDITION} | checkpoint, buffer)
    write_whole(path, buffer.getvalue())


def checkpoint_file(path):
    """The file that a --ckpt means: itself, or the last.pt of a run folder."""
    path = Path(path)
    return path / "last.pt" if path.is_dir() else path


def lasting_path(path):
    """A path as a checkpoint remembers it: from the repository, or else absolute."""
    full = Path(path).absolute()
    return str(full.relative_to(ROOT) if full.is_relative_to(ROOT) else full)


def found_path(path):
    """A path that a checkpoint remembers, from whichever folder the script is started."""
    of_repository = ROOT / path
    found = of_repository.exists() and not Path(path).exists()
    return of_repository if found else Path(path)


def load_checkpoint(path, script=None, flag="--ckpt"):
    """The checkpoint in a file or run folder, made by `script`, or by any.  Raises ValueError."""
    path = checkpoint_file(path)
    if not path.exists():
        how = f"make one with --train, or name one with {flag}"
        raise ValueError(f"there is no checkpoint {path}: {how}")
    found = unpickled(io.BytesIO(read_regular(path, "checkpoint")))
    if "ema" in found and "edition" not in found:
        how = "train it again, or sample from it with that edition"
        raise ValueError(f"{path} was made by the first edition of this project: {how}")
    if not all(isinstance(found.get(key), kind) for key, kind in KINDS.items()):
        raise ValueError(f"{path} is damaged, cut short or no checkpoint of this project")
    if script and found["script"] != script:
        raise ValueError(f"{path} was made by {found['script']}.py, not by {script}.py")
    return found


def load_weights(module, weights, path):
    """Put weights of any precision into a module.  Raises ValueError where they do not fit."""
    try:
        module.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError):
        raise ValueError(
            f"the weights in {path} do not fit the network that its config describes"
        ) from None
    return module


def load_optimizer(optimizer, saved, path):
    """Put the averages of AdamW back; its settings stay those of the script."""
    settings = optimizer.state_dict()["param_groups"]
    try:
        optimizer.load_state_dict({"state": dict(saved["state"]), "param_groups": settings})
        whole = all(is_adam_state(p, state) for p, state in optimizer.state.items())
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError):
        whole = False
    if not whole:
        raise ValueError(f"the state of the optimizer in {path} is damaged, or of another network")


def is_adam_state(parameter, state):
    """Whether these are AdamW's averages of this parameter."""
    shapes = {"step": (), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    if state.keys() != shapes.keys():
        return not state
    return all(state[k].dtype == torch.float32 and state[k].shape == s for k, s in shapes.items())


def check_resumable(checkpoint, path):
    """Raise ValueError unless a training can continue from here."""
    if not {"model", "optimizer", "sums"} <= checkpoint.keys():
        raise ValueError(f"nothing to resume: {path} holds averaged weights only")
    sums = checkpoint["sums"]
    numbers = isinstance(sums, dict) and all(isinstance(v, list) for v in sums.values())
    numbers = numbers and all(isinstance(x, float) for values in sums.values() for x in values)
    seconds = checkpoint["seconds"]
    timed = isinstance(seconds, float) and 0 <= seconds < math.inf
    if not numbers or not timed or checkpoint["step"] < 1:
        raise ValueError(f"{path} is damaged: it cannot be resumed")


def content_hash(tensors):
    """A hash of named tensors, by which data or weights are known again wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def ship(source, target):
    """Write averaged weights in half precision, and how they were made, and nothing else."""
    checkpoint = load_checkpoint(source)
    kept = {key: checkpoint[key] for key in (*KINDS, "machine", "predicts") if key in checkpoint}
    if not all(map(torch.is_tensor, kept["ema"].values())):
        raise ValueError(f"{source} is damaged: not all of its weights are tensors")
    here = {"out": None, "data_dir": "data"}  # what folders were called where it was trained
    kept["config"] = {key: here.get(key, value) for key, value in kept["config"].items()}
    kept["ema"] = {
        name: weight.half() if weight.is_floating_point() else weight
        for name, weight in kept["ema"].items()
    }
    save_checkpoint(target, kept)
    size = Path(target).stat().st_size / 1e6
    print(f"{target}: {size:.2f} MB, step {kept['step']}")


def ship_command(argv=None):
    """python -m common.runs RUN FILE.pt"""
    words = sys.argv[1:] if argv is None else argv
    with cli.program("common.runs"):
        if len(words) != 2:
            raise ValueError("name a run and a file: python -m common.runs RUN FILE.pt")
        ship(*words)
