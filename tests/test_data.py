"""Crystals against a sum over atoms written the slow way; labels and conditions against what they should be."""

import math

import data
from data import ASPECT, MODES, THETA_MAX, crystal_batch, crystal_labels, render, to_u8

import numpy as np
import pytest
import torch

A, SIXTY = 10.0, np.exp(1j * np.pi / 3)
LATTICE = [  # second lattice vector over the first, and the atoms of a cell, as complex numbers x + i y
    lambda aspect: (1j, [0]),
    lambda aspect: (1j * aspect, [0]),
    lambda aspect: (SIXTY, [0]),
    lambda aspect: (SIXTY, [0, np.exp(1j * np.pi / 6) / np.sqrt(3)]),
]


def literal(kind, theta, aspect=1.0, a=A, size=64, offset=0.0):
    """One crystal as a sum over atoms, one at a time, each a full two-dimensional Gaussian."""
    row, column = np.mgrid[:size, :size]
    second, cell = LATTICE[kind](aspect)
    s = max(0.6, 0.12 * a)
    image = np.zeros((size, size))
    reach = int(2 * size / a) + 4
    for i in range(-2 * reach, 2 * reach + 1):
        for j in range(-2 * reach, 2 * reach + 1):
            for atom in cell:
                at = a * (i + j * second + atom) * np.exp(1j * theta) + offset
                if abs(at) < size:
                    x, y = size / 2 + at.real, size / 2 + at.imag
                    image += np.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * s**2))
    return image / image.max()


def image(kind, theta, *args, **more):
    return render([kind], theta, *args, **more)[0, 0].numpy()


# -------------------------------------------------------------------------------------------------------- the renderer


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("theta, aspect, size", [(0.0, 1.0, 64), (0.4, 0.75, 64), (1.0, 1.35, 64), (0.7, 1.2, 33)])
def test_render_is_the_literal_sum(kind, theta, aspect, size):
    x = image(kind, theta, aspect, img_size=size)
    np.testing.assert_allclose(x, literal(kind, theta, aspect, size=size), atol=1e-6)


@pytest.mark.parametrize("kind, a", [(0, 6.0), (1, 14.0), (2, 8.5), (3, 6.0), (3, 12.0)])
def test_any_spacing_is_the_literal_sum(kind, a):
    np.testing.assert_allclose(image(kind, 0.3, 1.1, spacing=a), literal(kind, 0.3, 1.1, a), atol=1e-6)


def test_the_table_of_atoms_holds_those_within_reach_and_no_others():
    radius = 7.3
    for kind, per_area in enumerate((1, 1 / ASPECT[0], 2 / math.sqrt(3), 4 / math.sqrt(3))):
        x, y = data.sites(kind, radius).T
        reach = torch.hypot(x, y * (ASPECT[0] if kind == 1 else 1))
        assert reach.max() <= radius and len(x) == pytest.approx(math.pi * radius**2 * per_area, rel=0.1)


@pytest.mark.parametrize("spacing, width", [(4.0, 0.6), (10.0, 1.2)])
def test_atoms_are_an_eighth_of_the_spacing_wide_and_never_narrower_than_the_pixels_allow(spacing, width):
    centre, spacing = torch.tensor([[8.0]], dtype=torch.float64), torch.tensor([spacing], dtype=torch.float64)
    x = torch.arange(16, dtype=torch.float64) - 8
    torch.testing.assert_close(data.profiles(centre, spacing, 16)[0, 0], (-(x**2) / (2 * width**2)).exp())


def test_positive_angles_turn_from_x_towards_y():
    """The atom one spacing to the right of the centre moves down the rows, by a sin(theta)."""
    theta = 0.2
    x = image(0, theta)[30:39, 38:46]
    row = (x.sum(1) * np.arange(30, 39)).sum() / x.sum()
    assert row == pytest.approx(32 + A * math.sin(theta), abs=0.01)


def test_displaced_atoms_are_a_displaced_lattice():
    labels = crystal_labels(0, 1, mode="full")
    everywhere = torch.ones_like(labels["keep"]), torch.tensor([0.3, -0.7]).expand(labels["shift"].shape)
    for kind in range(4):
        shifted = image(kind, 0.5, 0.9, 9.0, *everywhere)
        np.testing.assert_allclose(shifted, literal(kind, 0.5, 0.9, 9.0, offset=0.3 - 0.7j), atol=1e-6)


def test_atoms_that_are_not_there():
    """With one atom left, the image is one Gaussian, wherever the lattice has it."""
    keep = crystal_labels(0, 1, mode="full")["keep"]
    sites = data.sites(2, data.visible_radius(64, any_spacing=True))
    keep[:] = False
    keep[0, (sites - torch.tensor([1.0, 0.0])).norm(dim=1).argmin()] = True
    row, column = np.mgrid[:64, :64]
    one = np.exp(-((column - 32 - 8 * np.cos(0.3)) ** 2 + (row - 32 - 8 * np.sin(0.3)) ** 2) / (2 * 0.96**2))
    np.testing.assert_allclose(image(2, 0.3, 1.0, 8.0, keep), one / one.max(), atol=1e-6)


def test_symmetries():
    """What is the same crystal, and what is not: images are compared, since an angle alone does not tell."""
    turned = [np.abs(image(k, 0.0) - image(k, THETA_MAX)).max() for k in range(4)]
    assert turned[2] < 1e-9  # a triangular lattice has six-fold symmetry about an atom,
    assert min(turned[0], turned[1], turned[3]) > 0.5  # a honeycomb only three-fold: its two atoms change places
    assert np.abs(image(3, 0.1) - image(3, 0.1 + 2 * math.pi / 3)).max() < 1e-9
    assert np.abs(image(0, 0.1) - image(0, 0.1 + math.pi / 2)).max() < 1e-9
    assert np.abs(image(0, 0.3) - image(1, 0.3, 1.0)).max() < 1e-9


def test_a_mixed_batch_is_its_members():
    labels = crystal_labels(0, 20)
    together = render(**labels)
    for i in range(20):
        one = render(**{name: column[i : i + 1] for name, column in labels.items()})
        torch.testing.assert_close(together[i : i + 1], one, rtol=0, atol=1e-12)
    assert together.dtype == torch.float64 and together.shape == (20, 1, 64, 64)
    assert together.amax((1, 2, 3)).eq(1).all() and together.min() >= 0


def test_render_refuses_lattices_that_would_not_fill_the_image():
    with pytest.raises(ValueError, match="aspect"):
        render([1], 0.0, 0.5)
    with pytest.raises(ValueError, match="spacing"):
        render([0], 0.0, spacing=3.0)


def test_rounding_to_8_bits():
    assert to_u8(torch.tensor([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.1])).tolist() == [0, 0, 0, 1, 255, 255]


# -------------------------------------------------------------------------------------------------------- the data set


@pytest.mark.parametrize("mode", MODES)
def test_image_i_is_the_same_alone_and_in_any_batch(mode):
    whole = crystal_batch(0, 150, 3, mode, img_size=32)
    for start, count in ((0, 1), (63, 2), (64, 70), (149, 1)):
        for a, b in zip(crystal_batch(start, count, 3, mode, img_size=32), whole, strict=True):
            assert torch.equal(a, b[start : start + count])
    assert whole[0].shape == (150, 1, 32, 32) and whole[2].shape == (150, 4)
    assert [part.dtype for part in whole] == [torch.uint8, torch.int64, torch.float32]


def test_uniforms_may_be_entered_anywhere():
    table = data.uniforms(0, 50, 11, seed=5)
    assert np.array_equal(data.uniforms(17, 3, 11, seed=5), table[17:20])
    assert len(np.unique(table)) == table.size and table.min() >= 0 and table.max() < 1


def test_seeds_and_streams_are_different_crystals():
    theta = torch.stack([crystal_labels(0, 100, seed, stream=stream)["theta"] for seed in (0, 1) for stream in (0, 1)])
    assert len(theta.unique()) == theta.numel()


@pytest.mark.parametrize("mode", MODES)
def test_y_cont_holds_the_labels_that_the_mode_varies(mode):
    labels = crystal_labels(0, 20, 1, mode, img_size=16)
    _, y_cat, y_cont = crystal_batch(0, 20, 1, mode, img_size=16)
    assert torch.equal(y_cat, labels["kind"])
    for i, name in enumerate(("spacing", "theta", "vacancy", "jitter")):
        varied = labels[name] if name == "theta" or mode == "full" else torch.zeros(20, dtype=torch.float64)
        torch.testing.assert_close(y_cont[:, i].double(), varied, rtol=0, atol=1e-6)
    assert (mode == "simple") == bool((labels["theta"] == 0).all())


@pytest.mark.parametrize("mode", ("rot-only", "full"))
def test_labels_are_uniform_in_their_ranges(mode):
    n = 20_000
    labels = crystal_labels(0, n, 1, mode, img_size=16)
    assert torch.bincount(labels["kind"], minlength=4).div(n).sub(0.25).abs().max() < 0.015
    ranges = dict(theta=(0, math.pi / 3), aspect=(0.75, 1.35))
    if mode == "full":
        ranges |= dict(spacing=(6, 14), vacancy=(0, 0.25), jitter=(0, 0.6))
    for name, (low, high) in ranges.items():
        share = torch.histc((labels[name] - low) / (high - low), 10, 0, 1) / n
        assert low <= labels[name].min() and labels[name].max() <= high, name
        assert (share - 0.1).abs().max() < 0.0106, name  # each tenth gets a tenth, to five deviations


def test_type_and_aspect_of_a_crystal_are_the_same_in_all_modes_and_sizes():
    for name in ("kind", "theta", "aspect"):
        assert torch.equal(crystal_labels(0, 9)[name], crystal_labels(0, 9, mode="full", img_size=33)[name])


def test_vacancies_and_jitter_are_what_the_labels_say():
    labels = crystal_labels(0, 200, mode="full", img_size=64)
    atoms = labels["keep"].shape[1]
    missing = 1 - labels["keep"].double().mean(1)
    deviation = (labels["vacancy"] * (1 - labels["vacancy"]) / atoms).sqrt() + 1e-3
    assert ((missing - labels["vacancy"]) / deviation).abs().max() < 4.5
    std = labels["shift"].std((1, 2))
    assert (std / labels["jitter"] - 1).abs().max() < 4.5 / math.sqrt(4 * atoms)
    z = labels["shift"] / labels["jitter"][:, None, None]
    assert z.mean((0, 1)).abs().max() < 0.02 and abs(z.pow(4).mean() - 3) < 0.1  # Gaussian, along x and along y
    assert abs((z[..., 0] * z[..., 1]).mean()) < 0.01
    assert z[labels["keep"]].mean(0).abs().max() < 0.02  # an atom that is missing says nothing about those that stay


def test_the_stream_of_crystals_is_what_it_was():
    """Numbers of the first release: a checkpoint's training set and its held-out crystals can be made again."""
    got = crystal_labels(0, 3, seed=0)
    assert got["kind"].tolist() == [0, 1, 1]
    theta, aspect = (torch.tensor(v, dtype=torch.float64) for v in (
        [0.25294972713398, 0.20425648516001, 0.17820805445583], [0.81685551330896, 1.17702594463915, 1.31991119348734]))
    torch.testing.assert_close(got["theta"], theta, rtol=0, atol=1e-12)
    torch.testing.assert_close(got["aspect"], aspect, rtol=0, atol=1e-12)


def test_the_stream_of_mode_full_is_what_it_was():
    """Each label takes the column of random numbers that it took in the first release."""
    got = crystal_labels(7, 1, seed=3, mode="full")
    for name, value in dict(spacing=6.469963, vacancy=0.012481, jitter=0.543317).items():
        assert abs(got[name].item() - value) < 1e-6
    assert (got["shift"][0, 0] - torch.tensor([-0.2538114, 0.5242332])).abs().max() < 1e-6


def test_fewer_types_and_unknown_modes():
    assert crystal_labels(0, 500, n_types=2)["kind"].unique().tolist() == [0, 1]
    with pytest.raises(ValueError, match="rot-only, simple, full"):
        crystal_labels(0, 1, mode="odd")
    for n_types in (0, 5):
        with pytest.raises(ValueError, match="1 to 4"):
            crystal_labels(0, 1, n_types=n_types)


# ---------------------------------------------------------------------------------------------------------- conditions


def test_default_conditions_and_those_of_one_crystal():
    i = torch.arange(40)
    for mode, spacing in ("rot-only", 0.0), ("full", 10.0), ("simple", 0.0):
        kind, cont, known = data.default_conditions(40, mode=mode)
        assert torch.equal(kind, i % 4) and known.dtype == torch.bool and known.all()
        turned = (i % 36) * THETA_MAX / 35 * (mode != "simple")
        expected = torch.stack([torch.full((40,), spacing), turned, torch.zeros(40), torch.zeros(40)], 1)
        torch.testing.assert_close(cont, expected, rtol=1e-6, atol=0)
    kind, cont, _ = data.default_conditions(3, kind=2, theta=0.5)
    assert kind.tolist() == [2, 2, 2] and cont.tolist() == [[0, 0.5, 0, 0]] * 3
    assert data.default_conditions(5, n_types=2).kind.tolist() == [0, 1, 0, 1, 0]


def test_features_of_a_condition():
    """One-hot type, labels of order one, sines and cosines of the angle from the fundamental on, 'unconditional'."""
    cont = torch.tensor([[10.0, 0.3, 0.25, 0.5], [6.0, 1.0, 0.0, 0.0]])
    condition = data.known_condition(torch.tensor([2, 0]), cont)
    k = range(1, 9)
    expected = [
        [0, 0, 1, 0, 1, 0.3, 1, 0.5, *(math.sin(0.3 * i) for i in k), *(math.cos(0.3 * i) for i in k), 0],
        [1, 0, 0, 0, 0.6, 1, 0, 0, *(math.sin(i) for i in k), *(math.cos(i) for i in k), 0],
    ]
    torch.testing.assert_close(condition.features(), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    dropped = condition.dropped().features()
    assert torch.equal(dropped, torch.tensor([[0.0] * 24 + [1.0]] * 2))


def test_the_spacing_of_a_condition_is_10_where_it_is_not_said():
    condition = data.default_conditions(3, mode="full", spacing=torch.tensor([6.0, 10.0, 14.0]))
    assert condition.spacing().tolist() == [6, 10, 14]
    assert condition.dropped().spacing().tolist() == [10] * 3
    assert data.default_conditions(2).spacing().tolist() == [10, 10]


def test_conditions_can_be_cut_joined_and_moved():
    condition = data.default_conditions(10)
    assert condition.rows(slice(1, 4)).kind.tolist() == [1, 2, 3]
    assert torch.equal(condition.rows(torch.tensor([7, 0])).cont, condition.cont[[7, 0]])
    both = data.concat(condition.dropped(), condition)
    assert both.known.tolist() == [False] * 10 + [True] * 10 and torch.equal(both.kind[:10], both.kind[10:])
    assert all(part.device.type == "meta" for part in condition.to("meta"))
