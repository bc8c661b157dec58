"""Where the work is done: device, precision, and the processes that torchrun starts."""

import contextlib
import os
import time

import torch
import torch.distributed as dist


def pick_device(name):
    """auto takes CUDA, then MPS, then the CPU.  Raises ValueError for one that is not there."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    kind = name.partition(":")[0]  # cuda:1 is the second of several
    if name == "auto":
        kind = next(kind for kind, ok in there.items() if ok)
        name = kind
    if name == "cuda" and started_by_torchrun():  # a device a process
        name = f"cuda:{told('LOCAL_RANK', 0)}"
    if kind not in there:
        raise ValueError(f"--device must be auto, cpu, cuda or mps, not {name!r}")
    if there[kind]:
        with contextlib.suppress(RuntimeError):
            return torch.zeros(1, device=name).device
    raise ValueError(f"--device {name}: this machine or build of torch has none; try auto")


def pick_precision(name, device):
    """bf16 where the processor multiplies it natively, else float32.

    It asks what the processor can do, not how fast it was today: so a seed keeps its meaning.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float32"
    native = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16")
    return "bf16" if native else "float32"


def autocast(device, precision):
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


# ------------------------------------------------------------------------ several processes
# torchrun starts a script several times and tells each copy its rank.  Every draw is keyed by its
# place in the whole batch and a process works on its own rows, so several do the work of one.


def told(name, usual):
    """A number that torchrun puts into the environment.  Raises ValueError for anything else."""
    text = os.environ.get(name) or usual
    try:
        return int(text)
    except ValueError:
        what = f"the environment has {name}={text}, which is no number"
        raise ValueError(f"{what}: unset it") from None


def started_by_torchrun():
    """Whether there are other processes.  RANK alone, left over from elsewhere, says nothing."""
    return told("WORLD_SIZE", 1) > 1


def rank():
    """The number of this process; 0 is the one that logs, saves and prints."""
    return told("RANK", 0) if started_by_torchrun() else 0


def processes():
    """How many share the work of the moment."""
    return dist.get_world_size() if dist.is_initialized() and not working_alone else 1


working_alone = False


@contextlib.contextmanager
def alone():
    """For what one process does while the others wait for it, such as samples of a training."""
    global working_alone
    before = working_alone
    working_alone = True
    try:
        yield
    finally:
        working_alone = before


@contextlib.contextmanager
def process_group(device):
    """Join the processes that torchrun started; without torchrun do nothing."""
    if started_by_torchrun():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # what nccl works on
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        if dist.is_initialized():
            # A thread of gloo's takes Python's lock to drop the tensors of its last work; whoever
            # takes the group apart may hold that lock, and waits for the thread.  Let it be first.
            time.sleep(0.1)
            dist.destroy_process_group()


def own_rows(n):
    """The rows of a batch of n that this process works on."""
    if n % processes():
        raise ValueError(f"--batch-size {n} cannot be shared by {processes()} processes")
    share = n // processes()
    first = rank() * share if processes() > 1 else 0
    return slice(first, first + share)


def dealt_rows():
    """The rows of this process if those of a batch are dealt out in turn: a share of each half."""
    return slice(rank(), None, processes()) if processes() > 1 else slice(None)


def mean_over_processes(value):
    if processes() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.item() / processes()


def average_over_processes(tensors):
    """Put the mean over all processes into each tensor, such as gradients made by hand."""
    if processes() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    means = (flat / processes()).split([tensor.numel() for tensor in tensors])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.copy_(mean.view_as(tensor))


def gathered(value):
    """The values of all processes, in order of rank.  Anything that can be pickled."""
    if processes() == 1:
        return [value]
    values = [None] * processes()
    dist.all_gather_object(values, value)
    return values
