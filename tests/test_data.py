"""The crystals against a sum over atoms written the slow way, the data set against itself, the files against damage."""

import functools
import gzip
import hashlib
import http.server
import io
import math
import os
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
from data import ASPECT, MODES, THETA_MAX, build, crystal_batch, crystal_labels, load_built, render, to_u8

ROOT = Path(__file__).resolve().parent.parent
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


# --------------------------------------------------------------------------------------------------------- the renderer


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


def test_atom_widths():
    assert [data.atom_width(a) for a in (4.0, 10.0)] == pytest.approx([0.6, 1.2])
    assert data.atom_width(torch.tensor([4.0, 10.0])).tolist() == pytest.approx([0.6, 1.2])


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


# --------------------------------------------------------------------------------------------------------- the data set


@pytest.mark.parametrize("mode", MODES)
def test_image_i_is_the_same_however_it_is_asked_for(mode, tmp_path):
    n = 150
    whole = crystal_batch(0, n, 3, mode, img_size=32)
    for start, count in ((0, 1), (63, 2), (64, 70), (149, 1)):
        for a, b in zip(crystal_batch(start, count, 3, mode, img_size=32), whole, strict=True):
            assert torch.equal(a, b[start : start + count])
    build(n, tmp_path / "x.pt", 3, mode, img_size=32)
    build(70, tmp_path / "fewer.pt", 3, mode, img_size=32, chunk=9)
    built, fewer = load_built(tmp_path / "x.pt"), load_built(tmp_path / "fewer.pt")
    kept = dict(x_u8=torch.uint8, y_cat=torch.int64, y_cont=torch.float32)
    for (key, dtype), b in zip(kept.items(), whole, strict=True):
        assert torch.equal(built[key], b) and torch.equal(fewer[key], b[:70]) and b.dtype == dtype
    assert whole[0].shape == (n, 1, 32, 32) and whole[2].shape == (n, 4)


def test_uniforms_may_be_entered_anywhere():
    table = data.uniforms(0, 50, 11, seed=5)
    assert np.array_equal(data.uniforms(17, 3, 11, seed=5), table[17:20])
    assert len(np.unique(table)) == table.size and table.min() >= 0 and table.max() < 1


def test_seeds_and_streams_are_different_crystals():
    theta = torch.stack([crystal_labels(0, 100, seed, stream=stream)["theta"] for seed in (0, 1) for stream in (0, 1)])
    assert len(theta.unique()) == theta.numel()


def test_labels_of_each_mode():
    n = 20_000
    for mode in MODES:
        labels = crystal_labels(0, 20, 1, mode, img_size=16)
        _, y_cat, y_cont = crystal_batch(0, 20, 1, mode, img_size=16)
        assert torch.equal(y_cat, labels["kind"])
        a, theta, vacancy, jitter = y_cont.double().T
        torch.testing.assert_close(theta, labels["theta"], rtol=0, atol=1e-6)
        if mode == "full":
            for column, name in ((a, "spacing"), (vacancy, "vacancy"), (jitter, "jitter")):
                torch.testing.assert_close(column, labels[name], rtol=0, atol=1e-6)
        else:
            assert (y_cont[:, [0, 2, 3]] == 0).all()
        labels = crystal_labels(0, n, 1, mode, img_size=16)
        if mode == "simple":
            assert (labels["theta"] == 0).all()
            continue
        assert torch.bincount(labels["kind"], minlength=4).div(n).sub(0.25).abs().max() < 0.015
        ranges = dict(theta=(0, math.pi / 3), aspect=(0.75, 1.35))
        ranges |= dict(spacing=(6, 14), vacancy=(0, 0.25), jitter=(0, 0.6)) if mode == "full" else {}
        for name, (low, high) in ranges.items():  # uniform: each tenth of the range gets a tenth, to 5 deviations
            share = torch.histc((labels[name] - low) / (high - low), 10, 0, 1) / n
            assert low <= labels[name].min() and labels[name].max() <= high, name
            assert (share - 0.1).abs().max() < 0.0106, name
    names = ("kind", "theta", "aspect")
    assert all(torch.equal(crystal_labels(0, 9)[k], crystal_labels(0, 9, mode="full", img_size=33)[k]) for k in names)


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


def test_fewer_types_and_unknown_modes():
    assert crystal_labels(0, 500, n_types=2)["kind"].unique().tolist() == [0, 1]
    with pytest.raises(ValueError, match="rot-only, simple, full"):
        crystal_labels(0, 1, mode="odd")
    for n_types in (0, 5):
        with pytest.raises(ValueError, match="1 to 4"):
            crystal_labels(0, 1, n_types=n_types)


# ------------------------------------------------------------------------------------------------------------ the files


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def good():
    x_u8, y_cat, y_cont = crystal_batch(0, 3, img_size=16)
    return dict(x_u8=x_u8, y_cat=y_cat, y_cont=y_cont)


@pytest.mark.parametrize("change, says", [
    (dict(x_u8=None), "x_u8"), (dict(y_cat=None), "y_cat"), (dict(y_cont=None), "y_cont"),
    (dict(x_u8=torch.zeros(3, 1, 16, 16)), "x_u8"), (dict(x_u8=torch.zeros(3, 16, 16, dtype=torch.uint8)), "x_u8"),
    (dict(x_u8=torch.zeros(3, 1, 16, 15, dtype=torch.uint8)), r"\[N, 1, H, H\]"),
    (dict(x_u8=torch.zeros(3, 3, 16, 16, dtype=torch.uint8)), r"\[N, 1, H, H\]"),
    (dict(y_cat=torch.zeros(2, dtype=torch.int64)), "y_cat"), (dict(y_cat=torch.tensor([0, 1, 4])), "0 to 3"),
    (dict(y_cat=torch.tensor([0, 1, -1])), "0 to 3"), (dict(y_cont=torch.zeros(3, 3)), "y_cont"),
    (dict(y_cont=torch.full((3, 4), math.nan)), "finite"),
    (dict(x_u8=torch.zeros(0, 1, 16, 16, dtype=torch.uint8)), "x_u8"),
])
def test_a_file_of_something_else(change, says, tmp_path):
    path = tmp_path / "x.pt"
    torch.save({k: v for k, v in (good() | change).items() if v is not None}, path)
    with pytest.raises(ValueError, match=says) as error:
        load_built(path)
    assert str(path) in str(error.value)


def test_damaged_files(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    with pytest.raises(FileNotFoundError, match="--build"):
        load_built(path)
    path.write_text("not a data file")
    with pytest.raises(ValueError, match="damaged"):
        load_built(path)
    torch.save(good(), path)
    assert torch.equal(load_built(path)["x_u8"], good()["x_u8"])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="damaged"):
        load_built(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="x_u8"):
        load_built(path)
    monkeypatch.setenv("BOMB", str(tmp_path / "ran"))
    torch.save(dict(good(), y_cat=Bomb()), path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_built(path)
    assert not (tmp_path / "ran").exists()


def test_a_build_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    build(5, path, img_size=16)
    before, threads = path.read_bytes(), torch.get_num_threads()
    with pytest.raises(ValueError, match="1 to 4"):
        build(5, path, n_types=9, img_size=16)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.pt"]
    assert torch.get_num_threads() == threads


# ---------------------------------------------------------------------------------------------------------- real images


def idx(array, magic=None):
    """An array of uint8 in the idx format."""
    return struct.pack(f">{1 + array.ndim}I", magic or 2048 + array.ndim, *array.shape) + array.tobytes()


def digits(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)


def write_mnist(folder, n=7, part="t10k"):
    raw, (x, y) = Path(folder, "MNIST", "raw"), digits(n)
    raw.mkdir(parents=True, exist_ok=True)
    (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x)))
    (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(y))
    return raw, x, y


@pytest.fixture
def offline(monkeypatch):
    """Mirrors that refuse the connection at once."""
    for name in ("MNIST_MIRRORS", "CIFAR_MIRRORS"):
        monkeypatch.setattr(data, name, ("http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/"))


def test_mnist_plain_and_gzipped(tmp_path):
    raw, x, y = write_mnist(tmp_path)
    x_u8, labels = data.load_mnist(tmp_path, train=False)
    assert x_u8.dtype == torch.uint8 and labels.dtype == torch.int64 and x_u8.shape == (7, 1, 28, 28)
    assert np.array_equal(x_u8[:, 0].numpy(), x) and labels.tolist() == y.tolist()
    write_mnist(tmp_path, 5, "train")
    assert len(data.load_mnist(str(tmp_path), train=True)[0]) == 5


def test_mnist_damaged_files_are_named_and_not_used(tmp_path):
    raw, x, y = write_mnist(tmp_path)
    images, labels = raw / "t10k-images-idx3-ubyte.gz", raw / "t10k-labels-idx1-ubyte"
    whole, packed = idx(x), images.read_bytes()
    flipped = packed[:100] + bytes([packed[100] ^ 1]) + packed[101:]
    for content, says in ((packed[:-20], "cut short"), (flipped, "damaged"), (b"no gzip", "damaged"),
                          (gzip.compress(whole[:-1]), "promises"), (gzip.compress(whole + b"x"), "promises"),
                          (gzip.compress(whole[:9]), "cut short"),
                          (gzip.compress(idx(x, 2049)), "magic number is 2049"),
                          (gzip.compress(idx(x[:0])), "promises"), (gzip.compress(idx(x[:, 1:])), "27 x 28 pixels"),
                          (gzip.compress(idx(x[:3])), "3 images, but 7 labels")):
        images.write_bytes(content)
        with pytest.raises(ValueError, match=says) as error:
            data.load_mnist(tmp_path, train=False)
        assert "t10k" in str(error.value) and str(raw) in str(error.value) and "\n" not in str(error.value)
    images.write_bytes(packed)
    labels.write_bytes(idx(y + 10))
    with pytest.raises(ValueError, match="labels should be 0 to 9"):
        data.load_mnist(tmp_path, train=False)


def test_a_file_of_the_published_length_must_be_the_published_one(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setitem(data.MNIST_SIZES, "t10k", 7)
    with pytest.raises(ValueError, match="images-idx3-ubyte.gz is not the published file"):
        data.load_mnist(tmp_path, train=False)
    for name, content in zip(("images-idx3", "labels-idx1"), digits(7), strict=True):
        sha = hashlib.sha256(idx(content)).hexdigest()  # of the content: how it was compressed does not matter
        monkeypatch.setitem(data.MNIST_FILES, f"t10k-{name}-ubyte", ("", sha))
    assert len(data.load_mnist(tmp_path, train=False)[0]) == 7


def test_offline_the_sentence_names_file_folder_and_addresses(tmp_path, offline):
    for load, name in ((data.load_mnist, "train-images-idx3-ubyte.gz"), (data.load_cifar10, "cifar-10-binary.tar.gz")):
        with pytest.raises(OSError, match="no download") as error:
            load(tmp_path / "d", train=True)
        sentence = str(error.value)
        assert all(word in sentence for word in (name, str(tmp_path / "d"), "127.0.0.1:9/a/", "127.0.0.1:9/b/"))
        assert "\n" not in sentence
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]  # and no half of a file


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_in_the_place_of_a_download_is_refused(tmp_path):
    os.mkfifo(tmp_path / data.CIFAR_ARCHIVE)
    with pytest.raises(ValueError, match="in the way"):
        data.load_cifar10(tmp_path, train=True)


def test_download_tries_the_mirrors_and_keeps_only_the_right_content(tmp_path, monkeypatch):
    served, (x, y) = tmp_path / "www", digits(7)
    for mirror in ("wrong", "right"):
        (served / mirror).mkdir(parents=True)
    for name, content in (("images-idx3", idx(x)), ("labels-idx1", idx(y))):
        packed = gzip.compress(content)
        (served / "right" / f"t10k-{name}-ubyte.gz").write_bytes(packed)
        (served / "wrong" / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(content + b"?"))
        shas = tuple(hashlib.sha256(c).hexdigest() for c in (packed, content))
        monkeypatch.setitem(data.MNIST_FILES, f"t10k-{name}-ubyte", shas)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """Not on the terminal of the tests."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=served))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(data, "MNIST_MIRRORS", (f"{base}/missing/", f"{base}/wrong/"))
        with pytest.raises(OSError, match="HTTPError, wrong content"):
            data.load_mnist(tmp_path, train=False)
        assert not list(tmp_path.glob("MNIST/raw/*"))
        monkeypatch.setattr(data, "MNIST_MIRRORS", (f"{base}/missing/", f"{base}/wrong/", f"{base}/right/"))
        x_u8, labels = data.load_mnist(tmp_path, train=False)
    finally:
        server.shutdown()
        server.server_close()
    assert np.array_equal(x_u8[:, 0].numpy(), x) and labels.tolist() == y.tolist()
    assert len(data.load_mnist(tmp_path, train=False)[0]) == 7  # and now without a server


def cifar_archive(path, names=None, extra=(), n=3):
    """A small archive in the published form; extra: (TarInfo, bytes) that come first."""
    rng, batches = np.random.default_rng(0), {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name in names or sum(data.CIFAR_BATCHES.values(), []):
            records = rng.integers(0, 256, (n, 3073), dtype=np.uint8)
            records[:, 0] %= 10
            batches[name] = records
        members = [(tarfile.TarInfo(f"cifar-10-batches-bin/{k}"), v.tobytes()) for k, v in batches.items()]
        for info, content in [*extra, *members]:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return batches


def test_cifar_is_unpacked_and_read(tmp_path):
    batches = cifar_archive(tmp_path / "cifar-10-binary.tar.gz", extra=[(tarfile.TarInfo("readme.html"), b"hello")])
    x_u8, labels = data.load_cifar10(tmp_path, train=True)
    assert x_u8.shape == (15, 3, 32, 32) and x_u8.dtype == torch.uint8 and labels.dtype == torch.int64
    second = batches["data_batch_2.bin"][1]  # image 4: label, then red, green, blue, each row by row
    assert labels[4] == second[0] and x_u8[4, 2, 5, 7] == second[1 + 2 * 1024 + 5 * 32 + 7]
    assert data.load_cifar10(tmp_path, train=False)[1].tolist() == batches["test_batch.bin"][:, 0].tolist()
    assert not (tmp_path / "readme.html").exists()  # only what is asked for
    (tmp_path / "cifar-10-binary.tar.gz").unlink()
    assert len(data.load_cifar10(tmp_path, train=True)[0]) == 15  # unpacked once and for all
    for content, says in ((batches["test_batch.bin"].tobytes()[:-1], "cut short"), (b"", "cut short"),
                          (bytes([11]) + bytes(3072), "labels should be 0 to 9")):
        (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(content)
        with pytest.raises(ValueError, match=says):
            data.load_cifar10(tmp_path, train=False)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_5.bin").write_bytes(bytes(3073))
    with pytest.raises(ValueError, match="data_batch_5.bin holds 1 images, but the first batch 3"):
        data.load_cifar10(tmp_path, train=True)


def test_no_path_in_an_archive_can_leave_the_folder(tmp_path):
    def link(name, target):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, target
        return info

    for i, bad in enumerate((tarfile.TarInfo("../evil.bin"), tarfile.TarInfo("cifar-10-batches-bin/../../evil.bin"),
                             link("cifar-10-batches-bin/data_batch_9.bin", "../../evil.bin"),
                             link("evil", str(tmp_path / "evil.bin")))):
        folder = tmp_path / str(i) / "inside"
        cifar_archive(folder / "cifar-10-binary.tar.gz", extra=[(bad, b"")])
        with pytest.raises(ValueError, match="not to be trusted") as error:
            data.load_cifar10(folder, train=True)
        assert "\n" not in str(error.value) and "cifar-10-binary.tar.gz" in str(error.value)
        assert [p.name for p in folder.iterdir()] == ["cifar-10-binary.tar.gz"]
    assert not list(tmp_path.rglob("evil*"))


def test_damaged_archives(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    cifar_archive(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-30], b"no archive", whole[:200] + b"????" + whole[204:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or cut short") as error:
            data.load_cifar10(tmp_path, train=True)
        assert str(path) in str(error.value) and not (tmp_path / "cifar-10-batches-bin").exists()
    cifar_archive(path, names=["data_batch_1.bin"])
    with pytest.raises(ValueError, match="holds no cifar-10-batches-bin/data_batch_2.bin"):
        data.load_cifar10(tmp_path, train=True)


# ----------------------------------------------------------------------------------------------------- the command line


def test_build_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "new" / "x.pt"
    data.main(["--build", "70", "--out", str(out), "--img-size", "16", "--seed", "4"])
    assert str(out) in capsys.readouterr().out
    assert torch.equal(load_built(out)["x_u8"], crystal_batch(0, 70, 4, img_size=16)[0])
    other = tmp_path / "y.pt"  # the seed's spellings
    data.main(["--n_samples=70", "--out", str(other), "--img_size=16", "--seed=4", "--rot-only", "--n_types=4"])
    assert torch.equal(load_built(other)["x_u8"], load_built(out)["x_u8"])
    data.main(["--n-samples=9", "--out", str(other), "--mode=full", "--n-types=2", "--img-size=16", "--force"])
    full = crystal_batch(0, 9, 0, "full", 2, 16)
    assert all(torch.equal(a, b) for a, b in zip(load_built(other).values(), full, strict=True))


def test_preview_in_its_default_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data.main([])
    data.main(["--n-types", "1", "--seed", "1"])  # its own file may be replaced
    path = Path("outputs/data/preview.png")
    assert str(path) in capsys.readouterr().out
    with Image.open(path) as png:
        assert png.format == "PNG" and min(png.size) > 400 and np.asarray(png.convert("L")).std() > 20


@pytest.mark.parametrize("argv, says", [
    (["--bogus"], "--bogus"),
    (["--build", "0", "--out", "x.pt"], "--build"), (["--build", "-3", "--out", "x.pt"], "--build"),
    (["--build", "many", "--out", "x.pt"], "--build"), (["--build", "5"], "--out"), (["--mode", "odd"], "--mode"),
    (["--n-types", "0"], "--n-types"), (["--n-types", "5"], "--n-types"), (["--img-size", "4"], "--img-size"),
    (["--img-size", "nan"], "--img-size"), (["--seed", "-1"], "--seed"), (["--seed", str(2**64)], "--seed"),
    (["--out", "x.pt"], "PNG"), (["--build", "5", "--out", "."], "folder"), (["--out", "mine.png"], "--force"),
    (["--build", "5", "--out", "mine.png"], "--force"), (["--out", "mine.png/x.png"], "mine.png/x.png"),
    (["--build", "5", "--out", "mine.png/x.pt"], "mine.png/x.pt"),
])
def test_bad_input_is_one_line_and_nothing_is_written(argv, says, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.png").write_text("precious")
    assert says in mistake(data.main, *argv)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.png"] and (tmp_path / "mine.png").read_text() == "precious"


def test_as_a_process(tmp_path):
    run = [sys.executable, str(ROOT / "data.py"), "--build", "3", "--img-size", "16", "--out", "x.pt"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "x.pt" in done.stdout and done.stderr == ""
    assert len(load_built(tmp_path / "x.pt")["x_u8"]) == 3


# ----------------------------------------------------------------------------------------------------------- conditions


def test_conditions_asked_for_by_default_and_one_crystal():
    i = torch.arange(40)
    for mode, spacing in ("rot-only", 0.0), ("full", 10.0), ("simple", 0.0):
        kind, cont, known = data.asked_for(40, mode=mode)
        assert torch.equal(kind, i % 4) and known.dtype == torch.bool and known.all()
        turned = (i % 36) * THETA_MAX / 35 * (mode != "simple")
        expected = torch.stack([torch.full((40,), spacing), turned, torch.zeros(40), torch.zeros(40)], 1)
        torch.testing.assert_close(cont, expected, rtol=1e-6, atol=0)
    kind, cont, _ = data.asked_for(3, kind=2, theta=0.5)
    assert kind.tolist() == [2, 2, 2] and cont.tolist() == [[0, 0.5, 0, 0]] * 3
    assert data.asked_for(5, n_types=2).kind.tolist() == [0, 1, 0, 1, 0]


def test_features_of_a_condition():
    """One-hot type, labels of order one, sines and cosines of the angle from the fundamental on, and 'not told'."""
    told = data.told(torch.tensor([2, 0]), torch.tensor([[10.0, 0.3, 0.25, 0.5], [6.0, 1.0, 0.0, 0.0]]))
    k = range(1, 9)
    expected = [[0, 0, 1, 0, 1, 0.3, 1, 0.5, *(math.sin(0.3 * i) for i in k), *(math.cos(0.3 * i) for i in k), 0],
                [1, 0, 0, 0, 0.6, 1, 0, 0, *(math.sin(i) for i in k), *(math.cos(i) for i in k), 0]]
    torch.testing.assert_close(told.features(), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    untold = told.dropped().features()
    assert torch.equal(untold, torch.tensor([[0.0] * 24 + [1.0]] * 2))
    assert told.map(lambda v: v[1:]).kind.tolist() == [0]
