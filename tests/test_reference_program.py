"""The command line of reference_gmm_sde.py: what it writes, what it refuses, and what it leaves alone."""

import json
import subprocess
import sys
from pathlib import Path

import make_gif
import reference_gmm_sde as ref
from common import cli, simulation

import numpy as np
import pytest
from PIL import Image

SMALL = ("--steps", 30, "--n-particles", 300, "--vis-every", 10)
TINY = ("--steps", 5, "--n-particles", 20, "--no-frames")
ARRAYS = {"config.json", "initial.npy", "final.npy", "mixture.npz"}


def run(out, *flags):
    return ref.main([*map(str, flags), "--out", str(out)])


def names(folder):
    return {path.name for path in folder.iterdir()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


# --------------------------------------------------------------------------------------------------- what is written


def test_the_command_of_the_readme_in_a_process_of_its_own(tmp_path):
    """In the spelling of the source, with fewer steps; then make_gif on the folder it leaves."""
    flags = ["--shape", "S", "--sampler", "sde", "--steps=60", "--n_particles=400", "--seed=0", "--vis_every=20"]
    done = subprocess.run([sys.executable, ref.__file__, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    out = tmp_path / "outputs/reference_gmm_sde/n_particles-400_steps-60_vis_every-20"
    assert str(out.relative_to(tmp_path)) in done.stdout

    frames = {f"frame_{i:04d}.png" for i in range(4)}
    assert names(out) == ARRAYS | frames | {"metrics.json", "reverse_diffusion.gif"}
    assert np.load(out / "initial.npy").shape == np.load(out / "final.npy").shape == (400, 2)
    with np.load(out / "mixture.npz") as z:
        assert {k: z[k].shape for k in z} == {"weights": (48,), "means": (48, 2), "covs": (48, 2, 2)}
    assert metrics(out)["n"] == 400 and metrics(out)["mmd2"] < 0.02
    assert json.loads((out / "config.json").read_text())["n_particles"] == 400
    with Image.open(out / "reverse_diffusion.gif") as gif:
        assert gif.n_frames == 4
    make_gif.main(["--frames", str(out), "--output", str(tmp_path / "again.gif"), "--duration", "0.08"])


def test_neither_torch_nor_matplotlib_is_loaded_to_start_with():
    code = """if True:
        import sys
        import reference_gmm_sde, audits.reference, common.clouds
        assert not {"torch", "matplotlib", "imageio", "tqdm"} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", code], cwd=Path(ref.__file__).parent, check=True)


@pytest.mark.parametrize("flags", [(), ("--sampler", "ode"), ("--grid", "logsnr", "--shape", "circle")])
def test_the_seed_decides_everything(tmp_path, flags):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tmp_path / name, *TINY, *flags, "--seed", seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a["final.npy"] == b["final.npy"] != c["final.npy"]
    assert a["metrics.json"] == b["metrics.json"]


def test_both_samplers_reach_the_letter_and_total_time_counts(tmp_path):
    worst = {}
    for name, flags in {"sde": (), "ode": ("--sampler", "ode"), "short": ("--total-time", 0.02)}.items():
        run(tmp_path / name, "--steps", 150, "--n-particles", 1000, "--no-frames", *flags)
        worst[name] = metrics(tmp_path / name)["mmd2"]
    assert max(worst["sde"], worst["ode"]) < 4 * np.sqrt(2) / 1000  # four deviations of the exact sampler, at most
    assert worst["short"] > 0.01  # too short a diffusion does not forget the data, so N(0, I) is a wrong start


@pytest.mark.parametrize("sampler", ["sde", "ode"])
def test_forward_dissolves_the_data(tmp_path, sampler):
    run(tmp_path, *SMALL, "--forward", "--sampler", sampler)
    start, end = np.load(tmp_path / "initial.npy"), np.load(tmp_path / "final.npy")
    gmm = ref.mixture("S")
    assert gmm.log_prob(start).mean() > -3 > gmm.log_prob(end).mean()
    assert end.std() == pytest.approx(1, abs=0.15)
    assert metrics(tmp_path)["mmd2"] < 4 * np.sqrt(2) / 300  # to p_1, not to p_0
    assert (tmp_path / "reverse_diffusion.gif").exists() and len(list(tmp_path.glob("frame_*.png"))) == 4


def test_without_frames_and_metrics_only_arrays_are_left(tmp_path):
    run(tmp_path, *TINY, "--no-metrics")
    assert names(tmp_path) == ARRAYS


def test_one_point_is_a_cloud(tmp_path):
    run(tmp_path, *TINY, "--n-particles", 1)
    assert np.load(tmp_path / "final.npy").shape == (1, 2)
    assert "mmd2" not in metrics(tmp_path) and np.isfinite(list(metrics(tmp_path).values())).all()


def test_numbers_are_printed_after_the_files_are_written(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr("builtins.print", lambda *words, **_: found.append(names(tmp_path)))
    run(tmp_path, *TINY)
    assert all(files == ARRAYS | {"metrics.json"} for files in found) and len(found) >= 2


def test_a_pipe_that_nobody_reads_costs_nothing(tmp_path):
    command = [sys.executable, ref.__file__, *map(str, TINY), "--out", str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0
    assert names(tmp_path / "x") == ARRAYS | {"metrics.json"}


# ---------------------------------------------------------------------------------------------------------- the film


def shown(*flags):
    """The steps that a film shows."""
    config = cli.parse(ref.Config, [str(flag) for flag in flags])
    states = ((step, np.full((1, 2), step)) for step in range(config.steps + 1))
    return [t for t, _ in simulation.follow(config, states)[1]]


def test_a_film_has_some_forty_frames_whatever_the_steps():
    assert shown("--steps", 10) == list(range(11))  # every step
    assert shown("--steps", 40) == list(range(41))
    assert shown("--steps", 1000) == list(range(0, 1001, 25))
    assert shown("--steps", 1) == [0, 1]
    for steps in (41, 79, 99, 333):
        assert 20 < len(shown("--steps", steps)) <= 42 and shown("--steps", steps)[-1] == steps
    assert shown("--steps", 30, "--vis-every", 25) == [0, 25, 30]


def test_a_snapshot_does_not_keep_the_whole_cloud_alive():
    config = cli.parse(ref.Config, ["--steps", "3", "--n-particles", "50000"])
    start, snapshots, t, x = simulation.follow(config, ((i / 3, np.zeros((50_000, 2))) for i in range(4)))
    assert len(snapshots) == 4 and len(start) == len(x) == 50_000 and t == 1
    for _, points in snapshots:
        assert points.base is None and len(points) == 10_000


# ------------------------------------------------------------------------------------------------- folders, configs


def test_a_folder_is_named_after_what_differs_from_the_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    defaults = cli.parse(ref.Config, [])
    assert cli.folder_name(defaults, simulation.PLACE) == "default"
    ref.main([*map(str, TINY), "--sampler", "ode"])
    ref.main([*map(str, TINY), "--seed", "3"])
    made = {"n_particles-20_no_frames_sampler-ode_steps-5", "n_particles-20_no_frames_seed-3_steps-5"}
    assert names(tmp_path / "outputs/reference_gmm_sde") == made


def test_a_config_gives_defaults_but_never_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("a", *TINY, "--shape", "circle", "--seed", 5)
    before = contents(tmp_path / "a")
    ref.main(["--config", "a/config.json", "--seed", "6"])
    assert contents(tmp_path / "a") == before

    (folder,) = (tmp_path / "outputs/reference_gmm_sde").iterdir()
    again = json.loads((folder / "config.json").read_text())
    assert again["shape"] == "circle" and again["steps"] == 5 and again["no_frames"] and again["seed"] == 6
    run("c", "--config", "a/config.json")
    assert contents(tmp_path / "c") == before


def test_the_same_command_replaces_its_own_files(tmp_path):
    run(tmp_path, *SMALL)
    before = contents(tmp_path)
    (tmp_path / "final.npy").write_bytes(b"half of it")
    (tmp_path / "frame_0003.png").unlink()
    run(tmp_path, *SMALL)
    assert contents(tmp_path) == before


def test_results_of_other_settings_are_left_alone(tmp_path, mistake):
    out = tmp_path / "a run"
    run(out, *SMALL)
    before = contents(out)
    line = mistake(ref.main, *SMALL, "--seed", 1, "--out", out)
    assert f"'{out}'" in line and "--out" in line  # quoted, as a shell needs it
    mistake(ref.main, "--steps", 5, "--n-particles", 20, "--no-metrics", "--out", out)
    assert contents(out) == before


def test_what_this_program_did_not_make_is_left_alone(tmp_path, mistake):
    mine = tmp_path / "frame_0000.png"
    mine.write_text("a holiday")
    assert mine.name in mistake(ref.main, *SMALL, "--out", tmp_path)
    assert names(tmp_path) == {mine.name} and mine.read_text() == "a holiday"

    notes = mine.rename(tmp_path / "frame_notes.txt")  # no name of ours: no reason to refuse
    run(tmp_path, *TINY)
    assert names(tmp_path) == ARRAYS | {"metrics.json", notes.name}


@pytest.mark.parametrize("flags, word", [(("--beta-max", 1e6, "--steps", 10), "step 2 of 10"), (("--steps", 0), "")])
def test_a_run_that_fails_leaves_no_empty_folder(tmp_path, mistake, flags, word):
    assert word in mistake(ref.main, "--n-particles", 20, *flags, "--out", tmp_path / "new/below")
    assert not (tmp_path / "new").exists()


def test_ctrl_c_ends_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def stopped(*_):
        yield 1.0, np.zeros((3, 2))
        raise KeyboardInterrupt

    monkeypatch.setattr(ref, "simulate", stopped)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "new", *TINY)
    assert stop.value.code == 130
    assert len(capsys.readouterr().err.strip().splitlines()) == 1 and not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path, mistake, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(simulation, "follow", None)  # no work is done
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        line = mistake(ref.main, *SMALL, "--out", out)
        assert "cannot write" in line and str(out) in line
    assert (tmp_path / "file").read_text() == "in the way"


# --------------------------------------------------------------------------------------------------- what is refused

MISTAKES = [
    (("--shape", "Q"), "--shape"),
    (("--sampler", "magic"), "--sampler"),
    (("--grid", "cubic"), "--grid"),
    (("--steps", 0), "--steps"),
    (("--steps", "many"), "--steps"),
    (("--steps", 10**30), "--steps"),
    (("--n_particles", -5), "--n-particles"),
    (("--n-particles", 0), "--n-particles"),
    (("--vis-every", 0), "--vis-every"),
    (("--seed", -1), "--seed"),
    (("--beta-min", "nan"), "--beta-min"),
    (("--beta-max", "nan"), "--beta-max"),
    (("--beta-min", 30), "beta_min"),
    (("--total-time", 0), "--total-time"),
    (("--total-time", "inf"), "--total-time"),
    (("--vis-every", 5, "--no-frames"), "--vis-every"),
    (("--frobnicate",), "--frobnicate"),
    (("--audit",), "--audit"),
    (("--config", "nowhere.json"), "nowhere.json"),
]


@pytest.mark.parametrize("flags, word", MISTAKES)
def test_mistakes_are_answered_in_one_line(tmp_path, mistake, flags, word):
    assert word in mistake(ref.main, "--n-particles", 20, *flags, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_config_holds_and_has_no_effect_is_passed_over(tmp_path):
    run(tmp_path / "a", "--steps", 5, "--n-particles", 20, "--vis-every", 2)
    run(tmp_path / "b", "--config", tmp_path / "a/config.json", "--no-frames")
    assert json.loads((tmp_path / "b/config.json").read_text())["vis_every"] is None


@pytest.mark.parametrize("text", ["not json", "[1, 2]", '{"steps": "few"}', '{"shape": "Q"}', '{"colour": 3}'])
def test_configs_that_are_none_are_refused(tmp_path, mistake, text):
    (tmp_path / "c.json").write_text(text)
    assert "c.json" in mistake(ref.main, "--config", tmp_path / "c.json", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
