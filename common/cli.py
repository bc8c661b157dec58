"""A command line is a dataclass: one line a flag, with its type, default, range and help.

    @dataclass(kw_only=True)
    class Config(options.Training):
        script = "vp_sde"
        steps: int = flag.sampling(300, "network calls per sample", low=1)

    config = cli.parse(Config, argv)              # python vp_sde.py --steps 10

Every flag belongs to one of four groups.  model: the network, whose checkpoint knows the value;
training: how it is trained; sampling: what is done with it; run: where, and on what machine.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import math
import operator
import os
import re
import shlex
import sys
from functools import partial
from typing import get_args

from common.files import read_json
from common.progress import clear_bars

GROUPS = {
    "model": "model and data (a checkpoint knows its own)",
    "training": "training",
    "sampling": "sampling",
    "run": "run",
}
SIDES = {
    "low": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "high": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}
LARGEST = 1e9  # of any number without an upper limit of its own

# ------------------------------------------------------------------------------ the flags


def any_flag(group, default, help, *, choices=None, parse=None, also=None, many=None, **limits):
    """A field of a config.

    limits: low and high (included), above and below (excluded).  parse: an argparse type of its
    own.  also: a second spelling, such as "--n-samples".  many: a list; "flag" takes one word or
    more behind the flag, "words" those that stand in front of all flags.
    """
    assert group in GROUPS and limits.keys() <= SIDES.keys()
    about = dict(help=help, group=group, choices=choices, parse=parse, also=also, many=many)
    return dataclasses.field(default=default, metadata=about | {"limits": limits})


class flag:
    """A field of a config, by its group: flag.sampling(300, "network calls a sample", low=1)."""

    model = partial(any_flag, "model")
    training = partial(any_flag, "training")
    sampling = partial(any_flag, "sampling")
    run = partial(any_flag, "run")


def names(Config, *groups):
    """The names of the flags in these groups, all if none is given."""
    fields = dataclasses.fields(Config)
    return [field.name for field in fields if not groups or field.metadata["group"] in groups]


def defaults(Config):
    return {field.name: field.default for field in dataclasses.fields(Config)}


def spelt(name):
    """A field as the flag that people type."""
    return "--" + name.replace("_", "-")


def number(kind, **limits):
    """An argparse type: a finite number within its limits."""
    limits = limits if limits.keys() & {"high", "below"} else limits | {"high": LARGEST}

    def read(text):
        try:
            value = kind(text)
        except ValueError:
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not a {whole}number") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be finite, not {text}")
        for side, end in limits.items():
            holds, words = SIDES[side]
            if not holds(value, end):
                raise argparse.ArgumentTypeError(f"must be {words} {end:.10g}, not {text}")
        return value

    return read


def path(text):
    """An argparse type: a path, in which ~ is the home folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("is not the name of a file or folder")
    return os.path.expanduser(text)


def angle(text):
    """An argparse type: an angle in [0, pi/3], in radians or with the unit deg: 0.3, 30deg."""
    digits, degrees = (text[:-3], True) if text.endswith("deg") else (text, False)
    value = number(float, low=0)(digits)
    value = math.radians(value) if degrees else value
    if value > math.pi / 3 + 1e-12:
        raise argparse.ArgumentTypeError(
            f"must lie in [0, 1.0471] radians, or [0deg, 60deg], not at {text}"
        )
    return min(value, math.pi / 3)


# ------------------------------------------------------------------------------ the parser


class Parser(argparse.ArgumentParser):
    """A mistake is a ValueError with one sentence; --step is a typo, not --steps."""

    def __init__(self, script, doc):
        super().__init__(
            prog=f"{script}.py",
            description=doc,
            usage="%(prog)s [flags]",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,  # what is not typed does not appear
        )

    def error(self, message):
        raise ValueError(message)


def make_parser(Config):
    parser = Parser(Config.script, sys.modules[Config.__module__].__doc__)
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    for field in dataclasses.fields(Config):
        about = field.metadata
        if about["many"] == "words":
            group = groups[about["group"]]
            group.add_argument(field.name, nargs="*", metavar=field.name, help=about["help"])
            continue
        kind = (get_args(field.type) or [field.type])[0]  # int of int | None
        spellings = [spelt(field.name)] + ([about["also"]] if about["also"] else [])
        add = partial(groups[about["group"]].add_argument, *spellings, dest=field.name)
        if kind is bool:
            add(action="store_true", help=about["help"])
            continue
        default = "" if field.default is None else f" (default {field.default})"
        add(
            type=about["parse"] or (kind if kind is str else number(kind, **about["limits"])),
            choices=about["choices"],
            nargs="+" if about["many"] else None,
            metavar=None if about["choices"] else "PATH" if about["parse"] is path else "X",
            help=about["help"].replace("%", "%%") + default,
        )
    return parser


def dashed(word):
    """--train_steps=5 to --train-steps=5; values keep their underscores."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def typed(Config, argv=None):
    """The flags on a command line, and no others: {name: value}.  Raises ValueError."""
    words = [dashed(str(word)) for word in (sys.argv[1:] if argv is None else argv)]
    return vars(make_parser(Config).parse_args(words))


def checked(Config, settings, source):
    """Stored settings, read again as if they were typed, so that types and ranges are checked.

    Keys that are no flags, and values that say nothing (None, False), are left out.  Raises
    ValueError, which names the source.
    """
    known = {key: settings[key] for key in names(Config) if key in settings}
    said = {key: value for key, value in known.items() if value is not None and value is not False}
    words = [spelt(key) + ("" if value is True else f"={value}") for key, value in said.items()]
    try:
        return typed(Config, words)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def read_config(Config, path):
    """The settings of a --config file.  Raises ValueError for an unknown key."""
    settings = read_json(path, "config")
    settings.pop("network", None)  # a config.json also says how its network was trained
    unknown = sorted(settings.keys() - set(names(Config)))
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}")
    return checked(Config, settings, path)


def parse(Config, argv=None):
    """A config from a command line alone, for scripts that have no network."""
    words = typed(Config, argv)
    stored = read_config(Config, words["config"]) if words.get("config") else {}
    for key in ("out", "config"):
        stored.pop(key, None)
    config = Config(**(stored | words))
    config.settle(words.keys())
    return config


# ------------------------------------------------------------------------------ names of folders


def folder_name(config, ignored):
    """Every setting that is not its default, in a name: sampler-dpmpp_steps-10, or default."""
    usual = defaults(type(config))
    parts = []
    for key in sorted(usual.keys() - set(ignored)):
        value = getattr(config, key)
        if value == usual[key] or value is None:
            continue
        shown = str(value)
        if isinstance(value, float) and float(f"{value:.6g}") == value:
            shown = f"{value:.6g}"
        shown = shown.replace("_", "\0")  # a path may look like two settings; so it gets a hash
        parts.append(key if value is True else f"{key}-{shown}")
    return safe_name("_".join(parts) or "default")


def safe_name(text):
    """A text as the name of a file.  Where it has to change, a hash keeps it apart from others."""
    name = re.sub(r"[^\w.+=-]+", "-", text)
    if name == text and len(name) <= 100:
        return name
    return f"{name[:80]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def quoted(path):
    """A path as it can be pasted into a shell."""
    return shlex.quote(str(path))


# ------------------------------------------------------------------------------ the program


class Patient:
    """stdout or stderr, except that work goes on when nobody can read it any more."""

    def __init__(self, stream):
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text):
        try:
            return self.stream.write(text)
        except (OSError, ValueError):
            self.give_up()
            return len(text)

    def flush(self):
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self.give_up()

    def give_up(self):
        """From now on all goes nowhere, what Python still holds back included."""
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name):
        return getattr(self.stream, name)


def nowhere():
    """A stream for what nobody will read.  It takes the place of the one that is closed, so that no
    other file gets its number, and with it what libraries in C have to say."""
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


@contextlib.contextmanager
def patient_streams():
    """A closed pipe, a closed terminal, or letters that it cannot spell stop no work."""
    kept = sys.stdout, sys.stderr
    opened = [stream or nowhere() for stream in kept]  # None where it is closed
    sys.stdout, sys.stderr = map(Patient, opened)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = kept


@contextlib.contextmanager
def program(script):
    """A mistake of the user, raised as ValueError or OSError, ends in one line and status 2.

    So do a computation that diverged and a lack of memory.  Ctrl-C ends in status 130.
    """
    with patient_streams():
        try:
            yield
            return
        except (ValueError, OSError, ArithmeticError) as error:
            sentence = " ".join(str(error).split())
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise  # a bug keeps its traceback; torch calls a lack of memory RuntimeError
            sentence = "not enough memory: ask for fewer samples, smaller batches or images"
        except KeyboardInterrupt as stop:
            words = str(stop) or "stopped; every file that is there is whole"
            clear_bars()
            print(f"\n{script}.py: {words}", file=sys.stderr)
            raise SystemExit(130) from None
        clear_bars()
        print(f"{script}.py: error: {sentence}", file=sys.stderr)
        raise SystemExit(2)
