"""What every script that draws crystals does with them: training data, conditions, files and numbers."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import data
import vp_sde
from common import crystal_job, pictures
from common.crystal_job import TrainingCrystals, report_crystals
from common.sampling import Drawn
from common.training_film import TrainingSamples
from conftest import arrays, same
from small import run_of

import numpy as np
import pytest
import torch

SIZE = 16


def config(**settings):
    return vp_sde.Config(**(dict(img_size=SIZE, n=5) | settings))


@pytest.fixture
def built(tmp_path):
    """A file of twelve crystals of seed 9."""
    path = tmp_path / "built.pt"
    data.build(12, path, seed=9, img_size=SIZE)
    return str(path)


@pytest.fixture
def drawn():
    """Five true crystals, as a sampler returns them."""
    condition = data.default_conditions(5)
    x = 2 * data.render(condition.kind, condition.cont[:, 1], img_size=SIZE).float() - 1
    return Drawn(x, [(1.0, torch.randn(x.shape), x), (0.0, x, x)], seconds=2.0)


# -------------------------------------------------------------------------------------------- training data


@pytest.mark.parametrize("from_file", [False, True])
def test_the_batch_of_a_step_is_a_function_of_seed_and_step(from_file, built):
    path = built if from_file else None

    def batch(seed, step, **more):
        run = run_of(config(seed=seed, data_path=path))
        x, condition = TrainingCrystals(run, signed=True).batch(step, 6, **more)
        return [x, *condition]

    usual = batch(0, 3)
    assert same(usual, batch(0, 3))
    for other in (batch(1, 3), batch(0, 4), batch(0, 3, held_out=True)):
        assert not torch.equal(other[0], usual[0])


def test_a_batch_holds_crystals_of_their_conditions_in_either_range():
    run = run_of(config())
    x, condition = TrainingCrystals(run, signed=True).batch(2, 16)
    unsigned, _ = TrainingCrystals(run, signed=False).batch(2, 16)
    assert x.shape == (16, 1, SIZE, SIZE) and x.min() < -0.9 and unsigned.min() >= 0
    assert ((x + 1) / 2 - unsigned).abs().max() < 1e-6 and condition.known.all()

    truth = data.render(condition.kind, condition.cont[:, 1].double(), img_size=SIZE)
    point = condition.kind != 1  # those whose aspect is not left open
    assert (unsigned - truth)[point].abs().max() < 0.003


def test_a_built_file_gives_its_own_rows(built):
    file = data.load_built(built)
    crystals = TrainingCrystals(run_of(config(data_path=built)), signed=True)
    x, condition = crystals.batch(0, 30)
    for image, kind, cont in zip(x, condition.kind, condition.cont, strict=True):
        x_u8 = ((image + 1) * 127.5).round().to(torch.uint8)
        (row,) = torch.where((file["x_u8"] == x_u8).flatten(1).all(1))
        assert file["y_cat"][row] == kind and torch.equal(file["y_cont"][row][0], cont)

    held_out, _ = crystals.batch(0, 4, held_out=True)
    rendered, _ = TrainingCrystals(run_of(config()), signed=True).batch(0, 4, held_out=True)
    assert torch.equal(held_out, rendered)


@pytest.mark.parametrize("held", [dict(mode="full"), dict(mode="simple"), dict(n_types=2), dict(img_size=32)])
def test_a_file_of_other_crystals_is_refused(held, tmp_path):
    path = tmp_path / "other.pt"
    data.build(120, path, **(dict(img_size=SIZE) | held))
    with pytest.raises(ValueError, match="other.pt holds crystals of --"):
        TrainingCrystals(run_of(config(data_path=str(path))), signed=True)


def test_a_training_goes_on_with_the_same_file_and_no_other(built, tmp_path):
    run = run_of(config(data_path=built))
    TrainingCrystals(run, signed=True)
    later = replace(run, checkpoint={"contents": run.contents})
    TrainingCrystals(later, signed=True)

    data.build(12, built, seed=10, img_size=SIZE)
    with pytest.raises(ValueError, match="--data-path .*built.pt does not hold what"):
        TrainingCrystals(later, signed=True)


# ---------------------------------------------------------------------------------------------- the results


def test_conditions_are_the_default_ones_or_those_of_one_crystal():
    assert same(list(crystal_job.conditions(config())), list(data.default_conditions(5)))
    kind, cont, _ = crystal_job.conditions(config(kind=2, theta=0.5))
    assert kind.tolist() == [2] * 5 and cont[:, 1].tolist() == [0.5] * 5
    assert crystal_job.conditions(config(n_types=2)).kind.tolist() == [0, 1, 0, 1, 0]


def test_true_crystals_have_no_error_and_all_files(drawn, tmp_path):
    numbers, words = report_crystals(drawn, run_of(config(), tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"samples.npz", "reverse_diffusion.gif", "samples.png"}
    assert numbers["n"] == 5 and numbers["seconds"] == 2 and numbers["ms_per_image"] == 400
    assert numbers["crystal_error_mean"] < 1e-4 and "n = 5" in words

    kept = arrays(tmp_path)
    assert torch.equal(torch.from_numpy(kept["x"]), data.unit(drawn.x))
    assert kept["kind"].tolist() == [0, 1, 2, 3, 0]
    assert kept["theta"].tolist() == pytest.approx([i / 35 * math.pi / 3 for i in range(5)], abs=1e-6)


def test_a_condition_that_nobody_asked_for_is_not_kept(drawn, tmp_path, no_page):
    report_crystals(drawn, run_of(config(cfg=0.0), tmp_path), conditional=False)
    assert [*arrays(tmp_path)] == ["x"]


@pytest.fixture
def no_page(monkeypatch):
    monkeypatch.setattr(pictures, "captioned_grid", lambda *args: None)


@pytest.mark.parametrize("conditional", [True, False])
def test_a_single_crystal_has_finite_numbers(drawn, tmp_path, no_page, conditional):
    one = Drawn(drawn.x[:1], [(t, x[:1], x0[:1]) for t, x, x0 in drawn.film], 1.0)
    numbers, _ = report_crystals(one, run_of(config(n=1), tmp_path), conditional)
    text = json.dumps(numbers, allow_nan=False)  # raises for NaN
    assert '"n": 1' in text


def test_unconditional_crystals_are_compared_with_the_nearest_of_any(drawn, tmp_path, no_page):
    shifted = replace(drawn, x=drawn.x.roll(1, 0))  # true crystals, under the wrong conditions
    run = run_of(config(), tmp_path)
    assert report_crystals(shifted, run, conditional=False)[0]["crystal_error_mean"] < 1e-3
    assert report_crystals(shifted, run, conditional=True)[0]["crystal_error_mean"] > 0.05


def test_unconditional_crystals_of_mode_full_have_no_closed_form(drawn, tmp_path, no_page):
    numbers, words = report_crystals(drawn, run_of(config(mode="full"), tmp_path), conditional=False)
    assert numbers == {"n": 5, "seconds": 2.0, "ms_per_image": 400.0} and words == ""


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """saved(samples, step, first): what a Trainer does after a save; the trainer is returned."""
    settings = config(n=2, kind=1, theta=0.2, steps=300, save_every=10)

    def saved(samples, step, first=0):
        trainer = SimpleNamespace(config=settings, run=run_of(settings, tmp_path), done=step, first=first, ema=step)
        samples(trainer)
        return trainer

    return saved


def faded(net, run):
    """A sampler: crystals that are the brighter, the longer the training was."""
    assert run.config.steps == 10
    condition = crystal_job.conditions(run.config)
    x = data.render(condition.kind, condition.cont[:, 1], img_size=SIZE)
    return SimpleNamespace(x=2 * min(1, net / 1000) * x - 1)


def test_samples_of_a_training_are_the_default_crystals_whatever_was_typed(tmp_path, monkeypatch, saved):
    pages = []
    monkeypatch.setattr(pictures, "captioned_grid", lambda *page: pages.append(page))
    trainer = saved(TrainingSamples(faded, steps=10), 1000)
    [(path, tiles, captions, title)] = pages
    assert path == tmp_path / "training_samples.png" and tiles.shape == (36, SIZE, SIZE)
    assert captions[2].startswith("triangular") and title == "after 1,000 steps"
    assert trainer.config.steps == 300 and trainer.config.n == 2


def film(folder):
    """Steps and frames of a training film, and its bytes."""
    with np.load(folder / "training_frames.npz") as file:
        return file["step"].tolist(), file["x_u8"], (folder / "training.gif").read_bytes()


def test_the_film_of_a_training_that_was_stopped_is_that_of_one_that_was_not(tmp_path, no_page, saved):
    def follow(*parts):
        """Saves at these steps; every part after the first is a run that was resumed."""
        shutil.rmtree(tmp_path, ignore_errors=True)
        first = 0
        for steps in parts:
            samples = TrainingSamples(faded, steps=10)
            for step in steps:
                saved(samples, step, first)
            first = step
        return film(tmp_path)

    steps, x_u8, gif = follow([10, 20, 30])
    assert steps == [10, 20, 30] and x_u8.shape == (3, 8, SIZE, SIZE) and x_u8.dtype == np.uint8
    assert (np.diff(x_u8.mean((1, 2, 3))) > 0).all()
    for parts in ([10, 20, 23], [23, 30]), ([7], [10, 20], [20, 30]):
        again = follow(*parts)
        assert again[0] == steps and (again[1] == x_u8).all() and again[2] == gif, parts


def test_the_film_of_another_training_or_of_steps_to_be_repeated_is_left_out(tmp_path, no_page, saved):
    saved(TrainingSamples(faded, steps=10), 10)
    saved(TrainingSamples(faded, steps=10), 20, first=10)
    saved(TrainingSamples(faded, steps=10), 10, first=10)  # from a copy of an older checkpoint
    assert film(tmp_path)[0] == [10]
    saved(TrainingSamples(faded, steps=10), 30, first=0)
    assert film(tmp_path)[0] == [30]
    (tmp_path / "training_frames.npz").write_bytes(b"PK\3\4 damaged")
    saved(TrainingSamples(faded, steps=10), 40, first=30)
    assert film(tmp_path)[0] == [40]


def test_a_film_of_many_saves_keeps_every_second_frame_or_fewer(tmp_path, no_page, saved, monkeypatch):
    monkeypatch.setattr(pictures, "training_film", lambda *args: (tmp_path / "training.gif").write_bytes(b""))
    samples = TrainingSamples(faded, steps=10)
    for step in range(10, 1300, 10):
        saved(samples, step)
        assert len(samples.frames) <= 41
    assert film(tmp_path)[0] == [*range(40, 1281, 40), 1290]
