"""A run: the settings it starts from, the folder it writes into, and the `main` of every script.

    def main(argv=None):
        runs.main(Config, build, train, sample, report, argv)

build(config) is the network, train(net, run) trains it and returns the one to sample with, and
sample(net, run) draws: these run in every process that torchrun started.  report(samples, net, run)
runs in one: it writes pictures and returns the numbers, and what to print of them.

    python -m common.runs RUN FILE.pt           turn the last.pt of a run into the file that ships
"""

import contextlib
import dataclasses
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from common import cli
from common.checkpoints import (
    SHIPPED,
    check_resumable,
    checkpoint_file,
    content_hash,
    found_path,
    lasting_path,
    load_checkpoint,
    load_weights,
    ship_command,
)
from common.devices import pick_device, pick_precision, process_group, rank
from common.files import write_json
from common.folders import output_folder

import torch

THIS_CALL = {"train", "resume", "out", "config", "ckpt"}  # never taken from stored settings
ABOUT_THE_MACHINE = THIS_CALL | {"device", "save_every"}  # no part of the name of a folder
PATHS = {"data_path", "data_dir", "vae", "classifier"}  # what they hold counts, not their names
MAY_DIFFER = PATHS | {"train_steps", "epochs", "save_every", "device"}  # when a run is resumed


@dataclass
class Run:
    """One call of a script."""

    config: object  # its Config: what was typed, above what is stored, above the defaults
    trained: object  # the Config that the network was trained with
    checkpoint: dict | None  # that it samples from or continues
    source: Path | None  # where the checkpoint lies
    folder: Path  # of the results, without --out: named after the settings
    device: torch.device = None
    out: Path = None
    contents: dict = field(default_factory=dict)  # hashes of the data and networks it stands on

    def with_settings(self, **settings):
        """The same run, but for these settings of the sampling."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **settings))

    def check_content(self, name, tensors):
        """Data and networks may move, but not change: raise ValueError for other content.

        name: of the flag that says where they lie.  tensors: {name: tensor}, what was found there.
        """
        found = content_hash(tensors)
        known = self.checkpoint["contents"].get(name, found) if self.checkpoint else found
        if found != known or getattr(self.trained, name, found) is None:
            flag = f"{cli.spelt(name)} {getattr(self.config, name)}"
            raise ValueError(f"{flag} does not hold what {self.source} was trained on")
        self.contents[name] = found


# ------------------------------------------------------------------------------ the settings


def start(Config, argv=None):
    """The Run of a command line.  Flags win over --config FILE, which wins over the defaults.

    What a checkpoint knows is fixed: a flag that contradicts it raises ValueError, and so does a
    flag that would have no effect.
    """
    typed = cli.typed(Config, argv)
    if "epochs" in typed and "train_steps" in typed:
        raise ValueError("--epochs and --train-steps say the same thing: leave one out")
    if typed.get("resume"):
        return resumed(Config, typed)

    preset = cli.read_config(Config, typed["config"]) if "config" in typed else {}
    preset = {key: value for key, value in preset.items() if key not in THIS_CALL}
    if "train_steps" in typed:
        preset.pop("epochs", None)
    config = Config(**(preset | typed))
    if config.train:
        if config.ckpt:
            how = "leave --ckpt out, or continue with --resume --out DIR"
            raise ValueError(f"--train starts from fresh weights: {how}")
        name = cli.folder_name(config, ABOUT_THE_MACHINE)
        folder = outputs(config) / ("train" if name == "default" else f"train_{name}")
        config.settle(typed.keys())
        config.settle_epochs()
        return Run(config, config, None, None, folder)
    return sampled(Config, config, preset, typed)


def sampled(Config, config, preset, typed):
    """The Run of a command that trains nothing."""
    for key in cli.names(Config, "training"):
        if key in typed:
            raise ValueError(f"{cli.spelt(key)} is a setting of the training: add --train")
    ignored = ABOUT_THE_MACHINE | set(cli.names(Config, "training"))
    if config.shipped is None:
        folder = outputs(config) / cli.folder_name(config, ignored - {"ckpt"})
        config.settle(typed.keys())
        return Run(config, config, None, None, folder)

    path = checkpoint_file(config.ckpt or SHIPPED / config.shipped)
    checkpoint = load_checkpoint(path, Config.script)
    trained = stored_config(Config, checkpoint, path)
    said = {key: value for key, value in (preset | typed).items() if key not in THIS_CALL}
    for key in cli.names(Config, "model"):
        check_agrees(said, key, trained, path, "train another with --train")

    parent = outputs(config)
    if config.ckpt:  # samples of a run lie below it, others below the name of the checkpoint
        parent = path.parent if path.name == "last.pt" else parent / cli.safe_name(config.ckpt)
        ignored |= set(cli.names(Config, "model"))
    folder = parent / cli.folder_name(config, ignored)

    # Network and training are what the checkpoint says; so are paths, if no other is given.
    known = cli.names(Config, "model", "training")
    known += [key for key in PATHS & set(cli.names(Config)) if key not in preset | typed]
    config = Config(**(preset | typed | {key: getattr(trained, key) for key in known}))
    config.settle(typed.keys())
    return Run(config, trained, checkpoint, path, folder)


def resumed(Config, typed):
    """The Run that continues another, with the settings of that one."""
    if "out" not in typed:
        raise ValueError("--resume needs --out DIR, the folder of the run to continue")
    if "config" in typed or "ckpt" in typed:
        raise ValueError("--resume takes all from --out DIR: leave --config and --ckpt out")
    path = Path(typed["out"], "last.pt")
    if not path.is_file():
        raise ValueError(f"nothing to resume: there is no {path}")
    checkpoint = load_checkpoint(path, Config.script)
    check_resumable(checkpoint, path)

    trained = stored_config(Config, checkpoint, path)
    for key in typed.keys() - MAY_DIFFER - THIS_CALL:
        check_agrees(typed, key, trained, path, "leave it out, and sample afterwards with --ckpt")
    changes = typed | {"train": True}
    if "train_steps" in typed:
        changes["epochs"] = None
    config = dataclasses.replace(trained, **changes)
    config.settle(typed.keys())
    config.settle_epochs()
    if config.train_steps < trained.train_steps:
        asked = f"--train-steps {config.train_steps}"
        raise ValueError(f"{asked} is less than the {trained.train_steps} of the run")
    return Run(config, trained, checkpoint, path, path.parent)


def stored_config(Config, checkpoint, path):
    """The Config that a checkpoint was trained with.  Raises ValueError where it is damaged."""
    if checkpoint.get("predicts") != Config.predicts:
        kind = checkpoint.get("predicts") or "another kind of answer"
        raise ValueError(f"the network in {path} returns {kind}, not {Config.predicts}: train anew")
    stored = Config.unsaid | checkpoint["config"]
    for key in cli.names(Config, "model") + ["seed"]:
        if stored.get(key) is None:
            raise ValueError(f"{path} does not say its {key}: it is damaged, or of another version")
    settings = cli.checked(Config, stored, path)
    for key in PATHS & settings.keys():
        settings[key] = str(found_path(settings[key]))
    return Config(**{key: value for key, value in settings.items() if key not in THIS_CALL})


def check_agrees(said, key, trained, path, advice):
    """Raise ValueError where a flag contradicts the checkpoint."""
    value = getattr(trained, key)
    if said.get(key, value) != value:
        flag = f"{cli.spelt(key)} {said[key]}"
        raise ValueError(f"{flag} contradicts {path}, which has {value}: {advice}")


def settings_of(config):
    """A Config as a dict that says the same on any day and from any folder."""
    settings = dataclasses.asdict(config)
    for key in PATHS & settings.keys():
        if settings[key]:
            settings[key] = lasting_path(settings[key])
    return settings


# ------------------------------------------------------------------------------ the folder


def outputs(config):
    return Path("outputs", config.script)


@contextlib.contextmanager
def run_folder(run):
    """Make the output folder before any work is done, and yield it.

    A folder with a last.pt belongs to its training.  Raises ValueError where it cannot be written;
    where the work fails before anything is written, no empty folder stays.
    """
    out = Path(run.config.out or run.folder)
    if rank() > 0:
        yield out
        return
    if (out / "last.pt").exists() and not run.config.resume:
        how = "continue it with --resume, or " if run.config.train else ""
        raise ValueError(f"{out} holds a trained run: {how}name another folder with --out")
    with output_folder(out):
        yield out


def config_json(run):
    """What config.json holds: the settings of this call, and how its network was trained."""
    settings = settings_of(run.config)
    if run.checkpoint and not run.config.train:
        told = {key: run.checkpoint.get(key) for key in ("step", "seconds", "machine", "config")}
        settings["network"] = {"file": str(run.source)} | told
    return settings


# ------------------------------------------------------------------------------ the main


def seeded(make, seed):
    """make(), a module whose fresh weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().to(memory_format=torch.channels_last)


def load_net(net, run):
    """Put the weights of the run's checkpoint into a network, ready to sample from."""
    weights = "ema" if run.config.use_ema else "model"
    if weights not in run.checkpoint:
        raise ValueError(f"{run.source} holds averaged weights only: leave --use-ema at 1")
    return load_weights(net, run.checkpoint[weights], run.source).eval().requires_grad_(False)


def shipped_net(Config, build, name, device):
    """The network of a checkpoint that ships, ready to sample from; None where there is none."""
    path = SHIPPED / name
    if not path.exists():
        return None
    checkpoint = load_checkpoint(path, Config.script)
    net = build(stored_config(Config, checkpoint, path)).to(device)
    return load_weights(net, checkpoint["ema"], path).eval().requires_grad_(False)


def opened(path, build, run):
    """The network in another checkpoint of the same script, and the Run that samples from it."""
    path = checkpoint_file(path)
    checkpoint = load_checkpoint(path, run.config.script)
    trained = stored_config(type(run.config), checkpoint, path)
    run = dataclasses.replace(run, trained=trained, checkpoint=checkpoint, source=path)
    net = seeded(partial(build, trained), trained.seed).to(run.device)
    return load_net(net, run), run


def main(Config, build, train, sample, report, argv=None):
    """The skeleton of every script; the top of this file says what the functions do."""
    with cli.program(Config.script):
        run = start(Config, argv)
        run.device = pick_device(run.config.device)
        net = None
        if run.config.train or run.checkpoint:
            net = seeded(partial(build, run.trained), run.trained.seed).to(run.device)
            if not run.config.train:
                load_net(net, run)

        with run_folder(run) as run.out:
            run.config.precision = pick_precision(run.config.precision, run.device)
            with process_group(run.device):
                if rank() == 0:
                    print(f"device {run.device}, {run.config.precision}; output in {run.out}")
                if run.config.train:
                    net = train(net, run)
                samples = sample(net, run)

            if rank() == 0:  # alone, after the others have left
                numbers, words = report(samples, net, run)
                finish(run, numbers, words)


def finish(run, numbers, words):
    """The last files of a run, and then, when nothing can be lost any more, what to print."""
    write_json(run.out / "metrics.json", numbers)
    write_json(run.out / "config.json", config_json(run))
    if words:
        print(words)
    names = sorted(path.name for path in run.out.iterdir() if not path.name.startswith("."))
    print(f"{run.out} now holds {', '.join(names)}")


if __name__ == "__main__":
    ship_command()
