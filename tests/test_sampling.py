"""Sampling in batches: sample i is the same in any of them, and the film shows what it should; and where it runs."""

import contextlib
import math
from itertools import islice

import toy
from common import devices, sampling, seeds
from conftest import same

import pytest
import torch


def config(**settings):
    return toy.Config(**(dict(n=8, sample_batch=3, seed=5) | settings))


def walk(steps=4, seen=None):
    """A trajectory that adds its noise up, from 1 to 0 in so many calls."""

    def trajectory(rows, noise):
        if seen is not None:
            seen.append(rows)
        x = next(noise)
        for i in range(steps):
            yield 1 - i / steps, x, x / 2
            x = x + next(noise)
        yield 0.0, x, x

    return trajectory


def points_walk(noise):
    yield from walk()(None, noise)


TIMES = [1.0, 0.75, 0.5, 0.25]


# ------------------------------------------------------------------------------------------------ seeds


def test_noise_depends_on_its_key_alone():
    def draw(keys):
        return seeds.noise_of([seeds.generator(5, key, 2) for key in keys], (3, 2))  # fewer than 16 numbers each

    assert same(draw([0, 1, 2, 3])[2:], draw([2, 3]))
    assert len({tuple(x.flatten().tolist()) for x in draw(range(50))}) == 50
    keys = [(0, 1), (1, 0), (1,), (0, 1, 1), (2**62, 3)]
    first = {float(torch.rand(1, generator=seeds.generator(*key))) for key in keys}
    assert len(first) == 4  # (1, 0) and (1,) are one key: zeros at the end do not count


def test_noise_is_standard_normal_and_different_for_every_key():
    many = seeds.noise_of([seeds.generator(0, key, 2) for key in range(2000)], (16,))
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02
    assert torch.corrcoef(many[:, :2].T)[0, 1].abs() < 0.1


def test_noise_goes_on_without_end_and_without_repeating():
    for noise in (seeds.image_noise(0, [3, 4], (2,)), seeds.point_noise(0, 2)):
        drawn = torch.stack(list(islice(noise, 50)))
        assert drawn.shape == (50, 2, 2) and len(drawn.flatten().unique()) == 200
    image = next(seeds.image_noise(7, [3], (2,)))
    assert same(image, seeds.noise_of([seeds.generator(7, 3, 2)], (2,)))
    points = seeds.point_noise(7, 4, dim=3)
    assert same(next(points), torch.randn(4, 3, generator=seeds.generator(7, 0, 2)))


# ------------------------------------------------------------------------------------------------ batches


def test_slices_cover_everything_once_and_come_back_in_order():
    for n, size in ((1, 1), (7, 3), (6, 3), (5, 100)):
        x = torch.arange(n)
        assert same(sampling.in_batches(n, size, x.__getitem__), x)
    seen = []
    sampling.in_batches(7, 3, lambda rows: seen.append(rows) or torch.zeros(1))
    assert seen == [slice(0, 3), slice(3, 6), slice(6, 7)]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_a_network_of_no_use_returns_is_no_sample(number):
    x = torch.tensor([1.0, 2.0, number])
    assert same(sampling.in_batches(2, 1, x.__getitem__), x[:2])
    with pytest.raises(FloatingPointError, match="not finite"):
        sampling.in_batches(3, 1, x.__getitem__)


def test_sample_i_depends_on_neither_batch_nor_number():
    def draw(**settings):
        return sampling.sample_images(walk(), (1, 2, 2), config(**settings), TIMES).x

    first = draw()
    assert first.shape == (8, 1, 2, 2)
    for settings in (dict(n=3), dict(n=1), dict(sample_batch=1), dict(sample_batch=100), dict(n=5, sample_batch=2)):
        x = draw(**settings)
        assert same(x, first[: len(x)]), settings
    assert not (draw(seed=6) == first).any()


def test_the_noise_of_an_image_can_be_keyed_otherwise():
    first = sampling.sample_images(walk(), (2,), config(), TIMES).x
    keys = [7, 0, 3, 3]
    assert same(sampling.sample_images(walk(), (2,), config(n=4), TIMES, keys=keys).x, first[keys])


def test_points_share_one_stream():
    drawn = sampling.sample_points(points_walk, config(n=5), TIMES)
    noise = seeds.point_noise(5, 5)
    assert same(drawn.x, sum(islice(noise, 5)))
    assert [t for t, _ in drawn.film] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert drawn.film[-1][1].dtype.name == "float64" and drawn.film[-1][1].shape == (5, 2)


# ------------------------------------------------------------------------------------------------ the film


def test_the_film_shows_the_first_36_and_both_ends():
    seen = []
    many = config(n=80, sample_batch=50)
    drawn = sampling.sample_images(walk(100, seen), (2,), many, [1 - i / 100 for i in range(100)])
    assert len(seen) == 2 and len(drawn.film) == 33 and drawn.seconds > 0
    moments = [t for t, _, _ in drawn.film]
    assert moments == sorted(moments, reverse=True) and (moments[0], moments[-1]) == (1.0, 0.0)
    assert all(len(x) == len(x0_hat) == 36 for _, x, x0_hat in drawn.film)
    t, x, x0_hat = drawn.film[-1]
    assert same(x, drawn.x[:36]) and same(x0_hat, x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_state_that_diverges_ends_in_advice(bad):
    def trajectory(rows, noise):
        x = next(noise)
        yield 1.0, x, x
        yield 0.5, bad * x, x

    for draw in (
        lambda: sampling.sample_images(trajectory, (2,), config(), [1.0, 0.5]),
        lambda: sampling.sample_points(lambda noise: trajectory(None, noise), config(), [1.0, 0.5]),
    ):
        with pytest.raises(FloatingPointError, match="diverged before t = 0.5: take more --steps"):
            draw()


# ------------------------------------------------------------------------------------------------ where it runs


@pytest.mark.parametrize("name", ["tpu", "", "cpu:x", "cuda:99", "mps:7"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(ValueError, match="--device"):
        devices.pick_device(name)


def test_devices_and_precisions_that_are_there():
    cpu = torch.device("cpu")
    assert devices.pick_device("cpu") == cpu and devices.pick_device("auto").type in ("cuda", "mps", "cpu")
    assert devices.pick_precision("bf16", cpu) == "bf16"
    assert devices.pick_precision("auto", cpu) in ("bf16", "float32")
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        with devices.autocast(cpu, precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


LEFT_OVER = {"RANK": "1"}, {"LOCAL_RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "1"}, {"RANK": "", "WORLD_SIZE": ""}


@pytest.mark.parametrize("left_over", LEFT_OVER)
def test_what_a_launcher_left_in_the_environment_does_not_make_several_processes(monkeypatch, left_over):
    for key, value in left_over.items():
        monkeypatch.setenv(key, value)
    assert devices.rank() == 0 and devices.processes() == 1 and devices.own_rows(5) == slice(0, 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []
    monkeypatch.setattr(torch, "zeros", lambda n, device: asked.append(device) or torch.ones(n))
    devices.pick_device("cuda")
    assert asked == ["cuda"]


def test_what_the_environment_says_is_named_where_it_makes_no_sense(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE=two, which is no number"):
        devices.rank()


def test_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(devices, "processes", lambda: 3)
    monkeypatch.setattr(devices, "rank", lambda: 2)
    assert devices.own_rows(12) == slice(8, 12)
    with pytest.raises(ValueError, match="--batch-size 16 cannot be shared by 3 processes"):
        devices.own_rows(16)


def test_one_process_needs_no_group():
    with devices.process_group(torch.device("cpu")):
        assert devices.processes() == 1 and devices.mean_over_processes(3.0) == 3.0 and devices.gathered(3) == [3]
    with contextlib.suppress(KeyError), devices.process_group(torch.device("cpu")):
        raise KeyError  # the group is left whatever happens
