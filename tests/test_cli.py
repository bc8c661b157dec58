"""A dataclass as a command line: flags, ranges, config files, names of folders, mistakes and streams."""

import argparse
import dataclasses
import io
import json
import math
import os
import runpy
import sys

import toy
from common import cli, runs

import pytest

# ------------------------------------------------------------------------------------------------ flags


def test_flags_that_were_typed_are_told_from_defaults():
    assert cli.typed(toy.Config, ["--cfg", "1.5", "--train-steps=7", "--oracle"]) == {
        "cfg": 1.5,  # its default, but typed
        "train_steps": 7,
        "oracle": True,
    }
    assert cli.typed(toy.Config, []) == {}


def test_without_words_of_its_own_a_script_takes_those_of_the_program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["toy.py", "--n", "7"])
    assert cli.typed(toy.Config) == {"n": 7}


def test_underscores_are_dashes_in_names_but_not_in_values():
    words = ["--train_steps", "7", "--batch_size=3", "--out=my_run", "--ckpt", "a_b"]
    expected = dict(train_steps=7, batch_size=3, out="my_run", ckpt="a_b")
    assert cli.typed(toy.Config, words) == expected


def test_a_second_spelling_is_the_same_flag():
    """torchrun takes --n for one of its own."""
    assert cli.typed(toy.Config, ["--n-samples", "9"]) == cli.typed(toy.Config, ["--n=9"]) == {"n": 9}


def test_help_shows_every_flag_with_its_default_in_its_group(capsys):
    with pytest.raises(SystemExit) as stop:
        toy.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and toy.__doc__.splitlines()[0] in text
    for field in dataclasses.fields(toy.Config):
        assert cli.spelt(field.name) in text
    assert "optimizer steps (default 12)" in text
    groups = [text.index(f"\n{title}:\n") for title in cli.GROUPS.values()]
    assert groups == sorted(groups)
    assert groups[1] < text.index("  --lr ") < groups[2] < text.index("  --use-ema ") < groups[3]


BAD_FLAGS = {
    "--t-end -1": "--t-end: must be above 0, not -1",
    "--t-end 0": "must be above 0",
    "--t-end 1": "must be below 1",
    "--cfg -1": "must be at least 0, not -1",
    "--cfg inf": "must be finite",
    "--cfg=-inf": "must be finite",
    "--cfg nan": "must be finite, not nan",
    "--cfg 1e10": "must be at most 1000000000",
    "--theta nan": "must be finite",
    "--theta 1.0472": "must lie in [0, 1.0471] radians",
    "--theta=-1e-9": "must be at least 0",
    "--theta 61deg": "[0deg, 60deg]",
    "--theta deg": "'' is not a number",
    "--kind 4": "must be 0 to 3, or one of square",
    "--kind -1": "must be 0 to 3",
    "--kind cubic": "honeycomb",
    "--train-steps 0": "must be at least 1, not 0",
    "--train-steps 1.5": "'1.5' is not a whole number",
    f"--train-steps {'9' * 5000}": "not a whole number",
    f"--train-steps {'9' * 40}": "must be at most 1000000000",
    "--seed -1": "must be at least 0",
    f"--seed {2**63}": "must be below",
    "--lr 0": "must be above 0",
    "--lr x": "'x' is not a number",
    "--ema-decay 1": "must be below 1",
    "--use-ema 2": "must be at most 1",
    "--nonsense": "unrecognized arguments: --nonsense",
    "--train-step 3": "unrecognized arguments: --train-step",  # no abbreviations
    "--cfg": "expected one argument",
    "--oracle=1": "--oracle",
    "extra": "extra",
    "--precision int8": "int8",
    "--shape square": "square",
}


@pytest.mark.parametrize("words", BAD_FLAGS, ids=lambda words: words[:30])
def test_a_bad_flag_is_named_in_one_line(here, mistake, words):
    assert BAD_FLAGS[words] in mistake(toy.main, *words.split())
    assert not os.listdir(here)


def test_an_empty_path_is_no_path(mistake):
    for words in (["--out="], ["--ckpt", "a\0b"]):
        assert "is not the name of a file" in mistake(toy.main, *words)


def test_angles_and_lattices_as_people_write_them():
    assert cli.angle("0.3") == 0.3
    assert cli.angle("30deg") == pytest.approx(math.pi / 6)
    assert cli.angle("60deg") == math.pi / 3
    lattice = cli.typed(toy.Config, ["--kind", "honeycomb"])
    assert lattice == cli.typed(toy.Config, ["--kind", "3"]) == {"kind": 3}


def test_a_tilde_is_the_home_folder_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for words in (["--out=~/x"], ["--out", "~/x"]):
        assert cli.typed(toy.Config, words) == {"out": "/home/somebody/x"}


# ------------------------------------------------------------------------------------------------ config files


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_flags_win_over_the_config_which_wins_over_defaults(here):
    preset = {"cfg": 0.25, "lr": 0.75, "oracle": True, "theta": None, "use_ema": 0}
    words = ["--config", written(here / "c.json", preset), "--seed", 7, "--n", 2]
    config = runs.start(toy.Config, words).config
    assert (config.cfg, config.lr, config.oracle, config.use_ema) == (0.25, 0.75, True, 0)
    assert (config.seed, config.n, config.theta, config.steps) == (7, 2, None, 3)
    words += ["--cfg", "0.5"]
    assert runs.start(toy.Config, words).config.cfg == 0.5


def test_a_config_never_says_where_results_go_or_what_is_to_be_done(here):
    preset = {"out": "elsewhere", "train": True, "resume": True, "ckpt": "a.pt", "config": "b.json", "oracle": True}
    run = runs.start(toy.Config, ["--config", written(here / "c.json", preset)])
    config = run.config
    assert (config.out, config.train, config.resume, config.ckpt) == (None, False, False, None)
    assert str(run.folder) == os.path.join("outputs", "toy", "oracle")


BAD_CONFIGS = {
    "cut": (b"{", "is no JSON"),
    "list": (b"[1]", "one JSON object"),
    "unknown": ({"stpes": 3}, "unknown key 'stpes'"),
    "range": ({"cfg": -1}, "--cfg: must be at least 0"),
    "nan": (b'{"cfg": NaN}', "must be finite"),
    "type": ({"cfg": [1]}, "is not a number"),
    "zero": ({"train_steps": 0}, "must be at least 1"),
    "switch": ({"oracle": 1}, "--oracle"),
    "true": ({"lr": True}, "--lr: expected one argument"),
    "bytes": (b"\xff", "is no JSON"),
    "deep": (b"[" * 10**5, "is no JSON"),
    "digits": (b'{"seed": 1' + b"0" * 5000 + b"}", "is no JSON"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_config_is_named_in_one_line(here, mistake, case):
    content, complaint = BAD_CONFIGS[case]
    line = mistake(toy.main, "--config", written(here / "c.json", content))
    assert complaint in line and "c.json" in line
    assert os.listdir(here) == ["c.json"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_what_is_no_file_is_no_config(here, mistake):
    os.mkfifo("pipe")  # to read it would be to wait for ever
    assert "is no file" in mistake(toy.main, "--config", "pipe")
    assert "is no file" in mistake(toy.main, "--config", here)
    assert "there is no config" in mistake(toy.main, "--config", "missing.json")


def test_a_config_may_have_a_byte_order_mark_and_is_utf8_everywhere(here):
    content = '\ufeff{"data_path": "münze.pt", "oracle": true}'.encode()
    written(here / "c.json", content)  # test_processes.py reads one with LC_ALL=C
    assert cli.read_config(toy.Config, "c.json") == {"data_path": "münze.pt", "oracle": True}


# ------------------------------------------------------------------------------------------------ names of folders


def name_of(*words):
    return cli.folder_name(toy.Config(**cli.typed(toy.Config, words)), {"out", "device"})


def test_a_folder_is_named_after_what_differs_from_the_defaults():
    assert name_of() == "default"
    assert name_of("--steps", "3", "--cfg=1.5") == "default"
    assert name_of("--steps", "10", "--cfg", "0") == "cfg-0_steps-10"
    assert name_of("--oracle", "--device", "cpu", "--out", "x") == "oracle"
    assert name_of("--use-ema", "0", "--theta", "0.25") == "theta-0.25_use_ema-0"


def test_two_settings_never_share_a_folder():
    calls = [
        ["--data-path", "a/b.pt"],
        ["--data-path", "a-b.pt"],
        ["--data-path", "a b.pt"],
        ["--data-path", "a_n-7.pt"],
        ["--data-path", "a", "--n", "7"],
        ["--data-path", "x" * 120],
        ["--data-path", "x" * 121],
        ["--theta", "30deg"],
        ["--theta", "0.523599"],
        ["--theta", "0.5235988"],
        ["--cfg", "1.4999999999"],
        ["--cfg", "1.5"],
        ["--seed", "1"],
        ["--n", "1"],
        ["--oracle"],
    ]
    found = [name_of(*words) for words in calls]
    assert len(set(found)) == len(calls), found
    for name in found:
        assert len(name) <= 100 and "/" not in name and " " not in name


def test_a_name_that_has_to_change_is_kept_apart_by_a_hash():
    assert cli.safe_name("steps-10_cfg-0.5") == "steps-10_cfg-0.5"
    changed = [cli.safe_name(text) for text in ("a/b", "a b", "a?b", "../a-b", "y" * 101, "y" * 102)]
    assert len(set(changed)) == len(changed) and max(map(len, changed)) <= 100
    assert cli.safe_name("a/b") == changed[0]  # the same on any day


# ------------------------------------------------------------------------------------------------ mistakes


def failing(error):
    def main(argv):
        with cli.program("toy"):
            raise error

    return main


@pytest.mark.parametrize("error, words", [
    (OSError(28, "No space left on device"), "No space left"),
    (ZeroDivisionError("division"), "division"),
    (FloatingPointError("it diverged"), "it diverged"),
    (RuntimeError("DefaultCPUAllocator: not enough memory: you"), "ask for fewer samples"),
    (MemoryError(), "not enough memory"),
    (ValueError("two\nlines"), "toy.py: error: two lines"),
])  # fmt: skip
def test_errors_become_one_line(mistake, error, words):
    assert words in mistake(failing(error))


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), TypeError("a bug"), KeyError("a bug")])
def test_mistakes_of_the_programmer_keep_their_traceback(error):
    with pytest.raises(type(error)):
        failing(error)([])


def test_ctrl_c_ends_in_status_130(capsys):
    for stop, words in ((KeyboardInterrupt("stopped at step 7"), "stopped at step 7"), (KeyboardInterrupt(), "whole")):
        with pytest.raises(SystemExit) as end:
            failing(stop)([])
        assert end.value.code == 130
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("toy.py: ") and words in line


def test_advice_can_be_pasted_into_a_shell():
    assert cli.quoted("a b") == "'a b'" and cli.quoted("it's") == """'it'"'"'s'""" and cli.quoted("a/b.pt") == "a/b.pt"


# ------------------------------------------------------------------------------------------------ streams


class Closed(io.StringIO):
    """A stream whose other end has gone."""

    def write(self, text=""):
        raise BrokenPipeError(32, "Broken pipe")

    flush = write


@pytest.mark.parametrize("stream", [None, Closed()], ids=["closed", "broken pipe"])
def test_work_goes_on_when_nobody_can_read_it(monkeypatch, stream):
    """Real pipes and terminals are in test_processes.py."""
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "stderr", stream)
        with cli.program("toy"):
            print("hello")
            print("hello", file=sys.stderr, flush=True)
            done.append(1)
        assert done and sys.stdout is stream and sys.stderr is stream


def test_letters_that_a_terminal_cannot_spell_are_replaced(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", narrow)
        with cli.program("toy"):
            print("output in münze\udcff")
    assert narrow.buffer.getvalue() == b"output in m\\xfcnze\\udcff\n"


# ------------------------------------------------------------------------------------------------ threads that wait


@pytest.mark.parametrize("typed, expected", [
    ({}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ({"GOMP_SPINCOUNT": "1000"}, {"GOMP_SPINCOUNT": "1000"}),
])  # fmt: skip
def test_waiting_threads_sleep_unless_the_user_has_decided(monkeypatch, typed, expected):
    """That it is decided before torch is loaded, test_processes.py and test_project.py say."""
    environment = dict(typed)
    monkeypatch.setattr(os, "environ", environment)
    runpy.run_path(os.path.join(os.path.dirname(cli.__file__), "__init__.py"))
    assert environment == expected


# ------------------------------------------------------------------------------------------------ without a network


def test_a_script_without_a_network_has_the_same_command_line(here, mistake):
    config = cli.parse(toy.Config, ["--config", str(written(here / "c.json", {"n": 2, "out": "x"})), "--seed", "3"])
    assert (config.n, config.seed, config.out) == (2, 3, None)
    with pytest.raises(ValueError, match="--steps has no effect"):
        cli.parse(toy.Config, ["--cfg", "0", "--steps", "3"])


def test_flags_know_their_groups():
    assert cli.names(toy.Config, "model") == ["width", "shape"]
    assert {"lr", "epochs", "data_path"} <= set(cli.names(toy.Config, "training"))
    assert set(cli.names(toy.Config)) == set(cli.defaults(toy.Config))
    with pytest.raises(AssertionError):
        cli.flag.sampling(1, "a limit that does not exist", lowest=1)


def test_a_range_has_both_kinds_of_ends():
    read = cli.number(float, above=0, high=2)
    assert read("2") == 2.0
    for text in ("0", "2.1"):
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)
