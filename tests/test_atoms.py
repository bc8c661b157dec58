"""Atoms are found in true crystals, and the numbers of their law see what departs from it."""

import math

import data
from audits.atoms import places_of
from common import atom_laws
from common.atom_laws import atom_report, describe_atoms, fresh_crystals, type_share
from common.atoms import crystals_of_atoms, find_atoms

import numpy as np
import pytest
import torch

SIZE = 64


def crystals(n, kind=None, start=0, **changes):
    """True crystals of mode full in 8 bits, and their labels."""
    labels = data.crystal_labels(start, n, 5, "full", img_size=SIZE, stream=1)
    if kind is not None:
        labels["kind"][:] = kind
    labels |= changes
    known = {key: labels[key] for key in labels if key not in ("vacancy", "jitter")}
    return data.to_u8(data.render(**known, img_size=SIZE)) / 255, labels


def asked(labels):
    return labels["kind"], labels["theta"], labels["spacing"]


def off(atoms, labels):
    """How far found atoms are from their true places, pixels [n]."""
    here = atoms.inside & atoms.present & labels["keep"]
    found = places_of(atoms.aspect, atoms.shift, labels)
    return (found - places_of(labels["aspect"], labels["shift"], labels))[here].norm(dim=1)


# ------------------------------------------------------------------------------------------------ the finder


@pytest.mark.parametrize("kind", range(4))
def test_every_vacancy_and_every_displacement_of_true_crystals(kind):
    x, labels = crystals(16, kind)
    atoms = find_atoms(x, *asked(labels))
    assert torch.equal(atoms.present & atoms.inside, labels["keep"] & atoms.inside)
    assert off(atoms, labels).square().mean().sqrt() < 0.02
    assert atoms.error.max() < 0.02 and atoms.inside.sum(1).min() >= 10

    # Heights are 0 and 1; where an atom is missing nothing is displaced.
    gap = (atoms.height - labels["keep"].double()).abs()[atoms.inside]
    assert gap.max() < 0.2 and not atoms.shift[~atoms.present].any()


def test_the_densest_and_most_disordered_crystals():
    """Honeycombs of 6 px: neighbours are 3.5 px apart, give or take 0.85, and may coincide."""
    x, labels = crystals(16, 3, spacing=torch.full((16,), 6.0).double())
    labels["shift"] *= (0.6 / labels["jitter"])[:, None, None]
    known = {key: labels[key] for key in ("kind", "theta", "aspect", "spacing", "keep", "shift")}
    x = data.to_u8(data.render(**known)) / 255
    atoms = find_atoms(x, *asked(labels))
    wrong = (atoms.present != labels["keep"]) & atoms.inside
    assert wrong.sum() / atoms.inside.sum() < 0.005
    assert off(atoms, labels).square().mean().sqrt() < 0.02


def test_atoms_that_overlap_are_told_apart():
    """Two neighbours of 6 px, moved to 1.6 px from one another: 2.2 widths, one blob."""
    labels = data.crystal_labels(0, 1, 5, "full", stream=1)
    labels |= dict(kind=torch.tensor([0]), theta=torch.zeros(1).double(), spacing=torch.tensor([6.0]).double())
    lattice = data.sites(0, data.visible_radius(SIZE, True))
    shift = torch.zeros_like(labels["shift"])
    for x, move in ((0.0, 2.2), (1.0, -2.2)):
        (i,) = torch.where((lattice == torch.tensor([x, 0.0])).all(1))
        shift[0, i, 0] = move
    image = data.render(*asked(labels)[:2], 1.0, 6.0, torch.ones_like(labels["keep"]), shift)
    assert image.median() < 0.9  # the two add up, so that all others are lower than 1
    atoms = find_atoms(image, *asked(labels))
    assert (atoms.present & atoms.inside).sum() == atoms.inside.sum()
    assert (atoms.shift - shift)[atoms.inside].abs().max() < 0.05


def test_the_scale_of_an_image_does_not_count():
    x, labels = crystals(4)
    one, other = (find_atoms(images, *asked(labels)) for images in (x, 0.6 * x))
    assert torch.equal(one.present & one.inside, other.present & other.inside)
    assert (one.shift - other.shift)[one.inside & one.present].abs().max() < 0.02


def test_noise_hides_no_vacancy():
    x, labels = crystals(12)
    noisy = (x + 0.05 * torch.randn(x.shape, generator=torch.manual_seed(0))).clamp(0, 1)
    atoms = find_atoms(noisy, *asked(labels))
    assert torch.equal(atoms.present & atoms.inside, labels["keep"] & atoms.inside)
    assert off(atoms, labels).square().mean().sqrt() < 0.08 and atoms.error.mean() == pytest.approx(0.04, abs=0.01)


def test_the_aspect_of_a_perfect_lattice_is_found_and_then_nothing_is_displaced():
    aspect = torch.linspace(*data.ASPECT, 7, dtype=torch.float64)
    x = data.render([1] * 7, 0.4, aspect, 9.0)
    atoms = find_atoms(x, torch.ones(7).long(), torch.full((7,), 0.4), 9.0)
    assert (atoms.aspect - aspect).abs().max() < 2e-4 and atoms.shift[atoms.inside].abs().max() < 0.02


def test_an_image_alone_is_as_in_a_batch():
    x, labels = crystals(12)
    together = find_atoms(x, *asked(labels))
    for i in (0, 5, 11):
        alone = find_atoms(x[i : i + 1], *(column[i : i + 1] for column in asked(labels)))
        assert torch.equal(alone.inside[0], together.inside[i])
        for a, b in zip(alone[2:], together[2:], strict=True):
            a, b = (a[0][alone.inside[0]], b[i][alone.inside[0]]) if a.ndim > 1 else (a[0], b[i])
            torch.testing.assert_close(a, b, rtol=0, atol=2e-3)


def test_something_between_an_atom_and_none_is_seen():
    x, labels = crystals(4, 0, keep=torch.ones(4, 10**4, dtype=torch.bool), shift=torch.zeros(4, 10**4, 2))
    y, _ = crystals(4, 0, keep=torch.rand(4, 10**4, generator=torch.manual_seed(0)) > 0.5, shift=labels["shift"])
    atoms = find_atoms((x + y) / 2, *asked(labels))
    between = (atoms.height > 0.25) & (atoms.height < 0.75)
    assert 0.3 < between[atoms.inside].double().mean() < 0.7


def test_empty_images_and_no_images():
    nothing = find_atoms(torch.zeros(2, 1, 32, 32), torch.tensor([0, 1]), torch.zeros(2), 10.0)
    assert all(column.isfinite().all() for column in nothing) and not nothing.present.any()
    assert len(find_atoms(torch.zeros(0, 1, 32, 32), torch.zeros(0).long(), torch.zeros(0), 10.0).error) == 0
    with pytest.raises(ValueError, match="kind must be 0 to 3"):
        find_atoms(torch.zeros(1, 1, 32, 32), [4], [0.0], 10.0)


def test_a_crystal_of_the_atoms_is_the_crystal():
    condition = data.default_conditions(8, mode="full", vacancy=0.2, jitter=0.4)
    x = fresh_crystals(condition)
    assert (crystals_of_atoms(x, condition) - x).square().mean().sqrt() < 0.01


# ------------------------------------------------------------------------------------------------ the law


def of_square(keep=None, shift=None, n=24, spacing=7.0, vacancy=0.2, jitter=0.4, **condition):
    """The report of square crystals whose defects are these and not those that were asked for."""
    asked = data.default_conditions(n, 0, 0.3, "full", spacing=spacing, vacancy=vacancy, jitter=jitter)
    usual = data.defects(asked.cont[:, 2].double(), asked.cont[:, 3].double())
    defects = [b if a is None else a for a, b in zip((keep, shift), usual, strict=True)]
    real = dict(theta=0.3, spacing=spacing) | condition
    x = data.render(asked.kind, real["theta"], 1.0, real["spacing"], *defects)
    return atom_report(x, asked)


def test_true_crystals_follow_the_law():
    found = of_square()
    assert found["missing"] == pytest.approx(0.2, abs=0.04) and found["missing_asked"] == pytest.approx(0.2, abs=1e-6)
    assert found["displacement"] == pytest.approx(0.4, rel=0.06)
    assert 0.4 < found["counts_chi2"] < 2.2 and found["counts_ks"] < 0.33
    assert found["anisotropy"] < 0.12 and found["between"] < 0.002 and found["error"] < 0.01
    assert abs(found["neighbours_shift"]) < 0.08 and abs(found["neighbours_missing"]) < 0.08
    assert found["spacing_error"] < 0.01 and found["angle_error"] < 0.5


def test_vacancies_that_are_not_independent_are_seen():
    lattice = data.sites(0, data.visible_radius(SIZE, True))
    sites = len(lattice)
    keep = torch.ones(24, 710, dtype=torch.bool)
    keep[:, :sites] = ((lattice[:, 0] + 40) % 10 >= 2)[None]  # whole columns, two of ten
    found = of_square(keep)
    assert found["neighbours_missing"] > 0.3


def test_displacements_that_are_not_independent_or_not_isotropic_are_seen():
    normal = torch.randn(24, 710, 2, generator=torch.manual_seed(0), dtype=torch.float64)
    together = 0.4 * normal[:, :1].expand(-1, 710, -1)
    assert of_square(shift=together)["neighbours_shift"] > 0.95
    along = normal * torch.tensor([0.5, 0.05])
    assert of_square(shift=along)["anisotropy"] > 0.9


def test_another_lattice_than_was_asked_is_seen():
    none = dict(vacancy=0.0, jitter=0.0)
    assert of_square(theta=0.31, **none)["angle_error"] == pytest.approx(math.degrees(0.01), rel=0.05)
    assert of_square(spacing=8.0, **none)["spacing_error"] < 1e-3
    asked = data.default_conditions(4, 0, 0.3, "full", spacing=8.0)
    found = atom_report(data.render([0] * 4, 0.3, 1.0, 8.08), asked)
    assert found["spacing_error"] == pytest.approx(0.01, rel=0.05)
    assert not {"counts_chi2", "counts_ks", "neighbours_missing"} & found.keys()  # no vacancy was asked for


def test_types_are_recognised():
    condition = data.default_conditions(8, mode="full", vacancy=0.25, jitter=0.6)
    x = fresh_crystals(condition)
    assert type_share(x, condition) == 1
    wrong = condition._replace(kind=(condition.kind + 2) % 4)
    assert type_share(x, wrong) == 0


def test_counts_against_their_binomial_law():
    rng = np.random.default_rng(0)
    M = torch.from_numpy(rng.integers(30, 80, 2000))
    v = torch.from_numpy(rng.uniform(0.02, 0.25, 2000))
    k = torch.from_numpy(rng.binomial(M.numpy(), v.numpy()))
    assert atom_laws.counts_ks(k, M, v) < 1.63 / 2000**0.5  # 99 % of samples of the law
    assert atom_laws.counts_chi2(k, M, v) == pytest.approx(1, abs=0.15)
    assert atom_laws.counts_ks(k, M, 1.3 * v) > 0.15
    always = (M * v).round().long()
    assert atom_laws.counts_chi2(always, M, v) < 0.1 and atom_laws.counts_ks(always, M, v) > 0.1


def test_neighbours_of_each_type():
    for k, count in ((0, 4), (1, 4), (2, 6), (3, 3)):
        a, b = atom_laws.neighbour_pairs(k, SIZE)
        assert (a < b).all()
        centre = data.sites(k, data.visible_radius(SIZE, True)).norm(dim=1).argmin()
        assert ((a == centre) | (b == centre)).sum() == count


def test_numbers_in_words():
    condition = data.default_conditions(4, mode="full", vacancy=0.1)
    found = atom_report(fresh_crystals(condition), condition)
    words = describe_atoms(found, found)
    assert "share of atoms missing" in words and "asked 0.1" in words and "sites of 4 crystals" in words
