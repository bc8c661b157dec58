"""Published images: the files as they are, damaged, missing or forged.  Crystals to learn: of a file, or rendered."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import struct
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import data
from common import datasets
from common.datasets import CIFAR_ARCHIVE, DATASETS, load, present

import numpy as np
import pytest
import torch

PARTS = ("images", "labels")


def idx(array, magic=None):
    """An array of uint8 in the idx format."""
    return struct.pack(f">{1 + array.ndim}I", magic or 2048 + array.ndim, *array.shape) + array.tobytes()


def digits(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)


def write_mnist(folder, n=7, part="t10k"):
    """Random digits, images gzipped and labels plain; returns the folder they lie in, and them."""
    raw = Path(folder, "MNIST", "raw")
    x, y = digits(n)
    raw.mkdir(parents=True, exist_ok=True)
    (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(x)))
    (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(y))
    return raw, x, y


@pytest.fixture
def change(monkeypatch):
    """change("mnist", mirrors=...): another line of the table, for one test."""
    return lambda name, **new: monkeypatch.setitem(DATASETS, name, DATASETS[name]._replace(**new))


@pytest.fixture
def offline(change):
    """Mirrors that refuse the connection at once."""
    for name in DATASETS:
        change(name, mirrors=("http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/"))


# ----------------------------------------------------------------------------------------------------------- MNIST


def test_mnist_plain_and_gzipped(tmp_path):
    raw, x, y = write_mnist(tmp_path)
    x_u8, labels = load("mnist", tmp_path, train=False)
    assert x_u8.dtype == torch.uint8 and labels.dtype == torch.int64 and x_u8.shape == (7, 1, 28, 28)
    assert np.array_equal(x_u8[:, 0].numpy(), x) and labels.tolist() == y.tolist()
    write_mnist(tmp_path, 5, "train")
    assert len(load("mnist", str(tmp_path), train=True)[0]) == 5


def packed(content):
    """Without the time of day, which would be part of the names of tests."""
    return gzip.compress(content, mtime=0)


X, Y = digits(7)
WHOLE = packed(idx(X))


@pytest.mark.parametrize("content, says", [
    (WHOLE[:-20], "cut short"), (WHOLE[:100] + bytes([WHOLE[100] ^ 1]) + WHOLE[101:], "damaged"),
    (b"no gzip", "damaged"), (packed(idx(X)[:-1]), "promises"), (packed(idx(X) + b"x"), "promises"),
    (packed(idx(X)[:9]), "cut short"), (packed(idx(X, 2049)), "magic number is 2049"),
    (packed(idx(X[:0])), "promises"), (packed(idx(X[:, 1:])), "27 x 28 pixels"),
    (packed(idx(X[:3])), "3 images, but 7 labels"),
])  # fmt: skip
def test_damaged_files_are_named_and_not_used(content, says, tmp_path):
    raw, *_ = write_mnist(tmp_path)
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        load("mnist", tmp_path, train=False)
    assert "t10k" in str(error.value) and str(raw) in str(error.value) and "\n" not in str(error.value)


def test_labels_out_of_range(tmp_path):
    raw, _, y = write_mnist(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(y + 10))
    with pytest.raises(ValueError, match="labels should be 0 to 9"):
        load("mnist", tmp_path, train=False)


def test_unreadable_is_not_called_damaged(tmp_path, monkeypatch):
    write_mnist(tmp_path)

    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", forbidden)  # root may read anything
    with pytest.raises(ValueError, match=r"cannot read .*t10k-images.*: Permission denied"):
        load("mnist", tmp_path, train=False)


def test_a_file_of_the_published_length_must_be_the_published_one(tmp_path, change):
    write_mnist(tmp_path)
    change("mnist", n_test=7)
    with pytest.raises(ValueError, match="images-idx3-ubyte.gz is not the published file"):
        load("mnist", tmp_path, train=False)
    hashes = [hashlib.sha256(idx(part)).hexdigest() for part in (X, Y)]  # however it was compressed
    change("mnist", content={f"t10k-{what}": sha for what, sha in zip(PARTS, hashes, strict=True)})
    assert len(load("mnist", tmp_path, train=False)[0]) == 7


def test_the_table_has_room_for_other_images_in_the_format_of_mnist(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "clothes", DATASETS["mnist"]._replace(folder="Clothes/raw", classes=12))
    raw, x, y = write_mnist(tmp_path)
    raw.parent.rename(tmp_path / "Clothes")
    (tmp_path / "Clothes" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(idx(y + 2))
    assert np.array_equal(load("clothes", tmp_path, train=False)[0][:, 0].numpy(), x)


# ------------------------------------------------------------------------------------------------------- downloads


@pytest.mark.parametrize("name, file", [("mnist", "train-images-idx3-ubyte.gz"), ("cifar10", CIFAR_ARCHIVE)])
def test_offline_the_sentence_names_file_folder_and_addresses_and_no_folder_stays(name, file, tmp_path, offline):
    with pytest.raises(OSError, match="no download") as error:
        load(name, tmp_path / "d", train=True)
    for word in (file, str(tmp_path / "d"), "127.0.0.1:9/a/", "127.0.0.1:9/b/"):
        assert word in str(error.value)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_failed_download_keeps_the_folders_that_were_there(tmp_path, offline):
    raw, *_ = write_mnist(tmp_path)
    with pytest.raises(OSError, match="no download"):
        load("mnist", tmp_path, train=True)
    assert len(list(raw.iterdir())) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="no download"):
        load("mnist", tmp_path / "empty", train=True)
    assert (tmp_path / "empty").is_dir() and not list((tmp_path / "empty").iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_in_the_place_of_a_download_is_refused(tmp_path):
    os.mkfifo(tmp_path / CIFAR_ARCHIVE)
    with pytest.raises(ValueError, match="in the way"):
        load("cifar10", tmp_path, train=True)


@pytest.fixture
def server(tmp_path):
    """Serves the folder www: its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            """Not on the terminal of the tests."""

    (tmp_path / "www").mkdir()
    handler = functools.partial(Quiet, directory=tmp_path / "www")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_download_tries_the_mirrors_and_keeps_only_the_right_content(tmp_path, change, server):
    downloads = {}
    for what, axes, part in (("images", 3, X), ("labels", 1, Y)):
        for mirror, content in (("wrong", idx(part) + b"?"), ("right", idx(part))):
            folder = tmp_path / "www" / mirror
            folder.mkdir(exist_ok=True)
            packed = gzip.compress(content, mtime=0)
            (folder / f"t10k-{what}-idx{axes}-ubyte.gz").write_bytes(packed)
        downloads[f"t10k-{what}"] = hashlib.sha256(packed).hexdigest()

    mirrors = tuple(f"{server}/{mirror}/" for mirror in ("missing", "wrong", "right"))
    change("mnist", downloads=downloads, mirrors=mirrors[:2])
    with pytest.raises(OSError, match="HTTPError, wrong content"):
        load("mnist", tmp_path, train=False)
    assert not (tmp_path / "MNIST").exists()
    change("mnist", mirrors=mirrors)
    x_u8, labels = load("mnist", tmp_path, train=False)
    assert np.array_equal(x_u8[:, 0].numpy(), X) and labels.tolist() == Y.tolist()
    change("mnist", mirrors=())
    assert len(load("mnist", tmp_path, train=False)[0]) == 7  # they are kept


def test_a_folder_is_not_taken_for_the_data_in_it(tmp_path):
    for name in DATASETS:
        assert not present(name, tmp_path)
        Path(tmp_path, DATASETS[name].folder).mkdir(parents=True)
        assert not present(name, tmp_path)
    raw, *_ = write_mnist(tmp_path)
    assert present("mnist", tmp_path) and not present("mnist", tmp_path, train=True)
    (raw / "t10k-labels-idx1-ubyte").unlink()
    assert not present("mnist", tmp_path)


# -------------------------------------------------------------------------------------------------------- CIFAR-10


def cifar_archive(path, names=None, extra=(), n=3):
    """A small archive in the published form; extra: TarInfo of members that come first."""
    rng = np.random.default_rng(0)
    batches = {}
    for name in names or sum(datasets.CIFAR_BATCHES.values(), []):
        batches[name] = rng.integers(0, 256, (n, 3073), dtype=np.uint8)
        batches[name][:, 0] %= 10

    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for info in extra:
            tar.addfile(info)
        for name, records in batches.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = records.nbytes
            tar.addfile(info, io.BytesIO(records.tobytes()))
    return batches


def test_cifar_is_unpacked_once_and_read(tmp_path):
    archive = tmp_path / CIFAR_ARCHIVE
    batches = cifar_archive(archive, extra=[tarfile.TarInfo("readme.html")])
    assert present("cifar10", tmp_path)
    x_u8, labels = load("cifar10", tmp_path, train=True)
    assert x_u8.shape == (15, 3, 32, 32) and x_u8.dtype == torch.uint8 and labels.dtype == torch.int64
    second = batches["data_batch_2.bin"][1]  # image 4: label, then red, green, blue, each row by row
    assert labels[4] == second[0] and x_u8[4, 2, 5, 7] == second[1 + 2 * 1024 + 5 * 32 + 7]
    assert load("cifar10", tmp_path, train=False)[1].tolist() == batches["test_batch.bin"][:, 0].tolist()
    assert not (tmp_path / "readme.html").exists()  # only what is needed
    archive.unlink()
    assert present("cifar10", tmp_path) and len(load("cifar10", tmp_path, train=True)[0]) == 15


@pytest.mark.parametrize("name, content, says", [
    ("test_batch", bytes(3072), "cut short"), ("test_batch", b"", "cut short"),
    ("test_batch", bytes([11]) + bytes(3072), "labels should be 0 to 9"),
    ("data_batch_5", bytes(3073), "data_batch_5.bin holds 1 images, but the first batch 3"),
])  # fmt: skip
def test_damaged_batches_are_named(name, content, says, tmp_path):
    cifar_archive(tmp_path / CIFAR_ARCHIVE)
    load("cifar10", tmp_path, train=True)
    (tmp_path / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        load("cifar10", tmp_path, train=name.startswith("data"))


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize("forged", [
    tarfile.TarInfo("../evil.bin"), tarfile.TarInfo("cifar-10-batches-bin/../../evil.bin"),
    link("cifar-10-batches-bin/data_batch_9.bin", "../../evil.bin"), link("evil", "/evil.bin"),
    link("cifar-10-batches-bin", ".."),
])  # fmt: skip
def test_no_path_in_an_archive_can_leave_the_folder(forged, tmp_path):
    folder = tmp_path / "inside"
    cifar_archive(folder / CIFAR_ARCHIVE, extra=[forged])
    with pytest.raises(ValueError, match="not to be trusted") as error:
        load("cifar10", folder, train=True)
    assert "\n" not in str(error.value) and CIFAR_ARCHIVE in str(error.value)
    assert [path.name for path in folder.iterdir()] == [CIFAR_ARCHIVE] and len(list(tmp_path.iterdir())) == 1


def test_nothing_is_unpacked_of_a_damaged_archive(tmp_path):
    path = tmp_path / CIFAR_ARCHIVE
    cifar_archive(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-30], b"no archive", whole[:200] + b"????" + whole[204:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or cut short") as error:
            load("cifar10", tmp_path, train=True)
        assert str(path) in str(error.value) and not (tmp_path / "cifar-10-batches-bin").exists()
    cifar_archive(path, names=["data_batch_1.bin"])
    with pytest.raises(ValueError, match="holds no cifar-10-batches-bin/data_batch_2.bin"):
        load("cifar10", tmp_path, train=True)


# -------------------------------------------------------------------------------------------------------- crystals


def config(path=None, **settings):
    return SimpleNamespace(data_path=path, seed=9, mode="rot-only", n_types=4, img_size=16, **settings)


def equal(got, x_u8, kind, cont):
    x, condition = got
    return torch.equal(x, x_u8) and torch.equal(condition.kind, kind) and torch.equal(condition.cont, cont)


def test_crystals_are_rendered_where_there_is_no_file():
    source = datasets.crystal_source(config())
    got = datasets.training_crystals(config(), source, 3, 5)
    assert source is None and equal(got, *data.crystal_batch(15, 5, 9, img_size=16)) and got[1].known.all()
    held_out = datasets.training_crystals(config(), source, 0, 5, held_out=True)
    assert equal(held_out, *data.crystal_batch(0, 5, 9, img_size=16, stream=1))


def test_a_file_is_learned_from_by_rows_and_held_out_crystals_are_rendered(tmp_path):
    data.build(8, tmp_path / "x.pt", seed=1, img_size=16)
    source = datasets.crystal_source(config(tmp_path / "x.pt"))
    x, condition = datasets.training_crystals(config(), source, 0, 30)
    for image, kind, cont in zip(x, condition.kind, condition.cont, strict=True):
        row = (source["x_u8"] == image).flatten(1).all(1).nonzero()[0, 0]
        assert source["y_cat"][row] == kind and torch.equal(source["y_cont"][row], cont)
    again, other = (datasets.training_crystals(config(), source, step, 30)[0] for step in (0, 1))
    assert torch.equal(again, x) and not torch.equal(other, x)
    held_out = datasets.training_crystals(config(), source, 0, 5, held_out=True)
    assert equal(held_out, *data.crystal_batch(0, 5, 9, img_size=16, stream=1))


def test_a_file_of_other_crystals_than_the_config_says_is_refused(tmp_path):
    data.build(8, tmp_path / "x.pt", mode="full", img_size=16)
    with pytest.raises(ValueError, match="holds crystals of --mode full, not of rot-only"):
        datasets.crystal_source(config(tmp_path / "x.pt"))
