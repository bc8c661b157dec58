"""The flags that several scripts share, and what they have to do with one another."""

import data
from common import cli, options

import pytest


def crystals(**settings):
    return options.Crystals(**settings)


def test_a_lattice_has_a_number_and_a_name():
    for i, name in enumerate(("square", "rectangular", "triangular", "honeycomb")):
        assert options.lattice(name) == options.lattice(str(i)) == i
    for text in ("4", "-1", "cubic", "", "01"):
        with pytest.raises(cli.argparse.ArgumentTypeError, match="0 to 3"):
            options.lattice(text)


def test_the_side_of_an_image_is_a_multiple_of_16():
    assert options.side("64") == 64
    for text in ("40", "8", "1040", "x", "16.0"):
        with pytest.raises(cli.argparse.ArgumentTypeError):
            options.side(text)


def test_one_crystal_must_be_one_that_the_model_knows():
    crystals(kind=3, theta=0.5).settle({"kind", "theta"})
    crystals(kind=0, theta=0.0, mode="simple", n_types=1).settle({"theta"})
    with pytest.raises(ValueError, match="--kind 2: the model knows types 0 to 1 only"):
        crystals(kind=2, n_types=2).settle({"kind"})
    with pytest.raises(ValueError, match="--theta: .* are not turned"):
        crystals(theta=0.5, mode="simple").settle({"theta"})


def test_what_mode_full_varies_is_refused_in_other_modes():
    config = options.FullCrystals(mode="full", spacing=8.0)
    config.settle({"spacing", "mode"})
    for key in options.FULL:
        with pytest.raises(ValueError, match=f"--{key} has no effect: crystals of mode rot-only do not vary it"):
            options.FullCrystals().settle({key})


def test_an_epoch_is_one_pass_over_the_data_there_is(tmp_path):
    data.build(24, tmp_path / "built.pt", n_types=1, img_size=16)
    for settings, steps in (
        (dict(epochs=2, batch_size=8, data_path=str(tmp_path / "built.pt")), 6),
        (dict(epochs=1, batch_size=1), 50_000),  # of 50,000 that are rendered on the fly
        (dict(epochs=1, batch_size=99, data_path=str(tmp_path / "built.pt")), 1),
        (dict(train_steps=7), 7),
    ):
        config = crystals(**settings)
        config.settle_epochs()
        assert config.train_steps == steps


def test_only_a_typed_flag_is_refused_for_having_no_effect():
    config = crystals()
    config.refuse({"seed"}, "kind", "theta", because="there is no condition")
    with pytest.raises(ValueError, match="--theta has no effect: there is no condition"):
        config.refuse({"seed", "theta"}, "kind", "theta", because="there is no condition")


def test_a_script_ships_a_checkpoint_of_its_own_name():
    class Config(options.Training):
        script = "some_script"

    assert Config().shipped == "some_script.pt"
    Config.oracle = True
    assert Config().shipped is None

    class Full(options.FullCrystals):
        script = "some_script"

    assert Full().shipped == "some_script.pt" and Full(mode="full").shipped == "some_script_full.pt"
