"""A training followed on Weights & Biases: by a stand-in for the package, which is optional."""

import importlib.machinery
import importlib.util
import sys
import types

import dddm
from conftest import run

import pytest


@pytest.fixture
def logged(monkeypatch):
    """What wandb is told: how a run was begun, then (step, values)."""
    found = []

    def init(**how):
        found.append(how)
        return types.SimpleNamespace(log=lambda values, step: found.append((step, values)))

    package = types.ModuleType("wandb")
    package.init = init
    package.Image = str
    package.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", package)
    return found


@pytest.fixture
def train(here, monkeypatch):
    """Four steps of eight points, of which three are an epoch, and no report."""
    monkeypatch.setattr(dddm, "report", lambda *more: ({}, ""))
    monkeypatch.setattr(dddm.Config, "epoch", lambda config: 24)
    flags = ["--train", "--train-steps", 4, "--batch-size", 8, "--eval-every", 2, "--width", 16, "--n", 8]
    return lambda *more: run(*flags, *more, main=dddm.main)


def test_it_gets_numbers_and_pictures_under_their_names(logged, train, here):
    (here / "out").mkdir()
    (here / "out" / "loss.png").write_bytes(b"")
    names = ["--wandb-project", "toy", "--wandb-name", "first"]
    assert train("--wandb", *names, "--out", "out") == 0
    how, *lines = logged
    assert (how["project"], how["name"], how["config"]["m"]) == ("toy", "first", 8)

    steps = {}
    for step, values in lines:
        for name in values:
            steps.setdefault(name, []).append(step)
    assert steps["train/loss"] == steps["eval/mmd2"] == [2, 4]
    assert steps["epoch/loss"] == steps["epoch/number"] == [3] and steps["plots/loss"] == [4]


def test_without_the_flag_it_hears_nothing(logged, train):
    assert train() == 0 and logged == []


def test_a_missing_package_is_named_before_any_work(here, mistake, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = mistake(dddm.main, "--train", "--wandb")
    assert "--wandb" in line and "pip install 'wandb'" in line and not list(here.iterdir())


def test_names_without_the_flag_have_no_effect(here, mistake):
    assert "add --wandb" in mistake(dddm.main, "--train", "--wandb-name", "x")
    assert "add --train" in mistake(dddm.main, "--wandb")
