"""Toy crystals, rendered: the data whose truth is known.

A crystal is a lattice of isotropic Gaussian atoms, laid out around the image centre, turned by an angle and divided by
its maximum.  With atoms at (a_x, a_y) and width s,

    image[y, x] = sum_atoms exp(-(x - a_x)^2 / 2 s^2) exp(-(y - a_y)^2 / 2 s^2)  /  max,

and because each Gaussian is a product of a column and a row, a whole image is one small matrix product.

    python data.py                                   a preview, outputs/data/preview.png (3 s)
    python data.py --build 50000 --out crystals.pt   a data set in one file (about 10 s, 205 MB)

Image i of a seed is the same bits however it is asked for: its random numbers are a fixed stretch of one counter-based
stream, and it is rendered in float64 before it is rounded to 8 bits.

Real images as well: `load_mnist` and `load_cifar10` read the published files, and download those that are missing.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.13.0", "numpy>=2.2,<3", "matplotlib>=3.10,<4", "tqdm>=4.66,<5", "pooch>=1.8,<2"]
# ///

import argparse
import gzip
import hashlib
import math
import os
import struct
import sys
import tarfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

KINDS = ("square", "rectangular", "triangular", "honeycomb")
MODES = ("rot-only", "simple", "full")
THETA_MAX = math.pi / 3  # the range of angles, radians
SPACING = 10.0  # lattice constant a of the modes that do not vary it, pixels
ASPECT = (0.75, 1.35)  # rectangular: b = aspect * a, and no condition tells the aspect
FULL_SPACING, FULL_VACANCY, FULL_JITTER = (6.0, 14.0), (0.0, 0.25), (0.0, 0.6)  # a in px, share removed, std in px
CUTOFF = 6.0  # an atom further than this many widths from the image adds less than 2e-8 to any pixel


# ------------------------------------------------------------------------------------------------------------ rendering


@lru_cache(maxsize=64)
def sites(kind: int, radius: float) -> torch.Tensor:
    """Atoms of an unrotated lattice of spacing 1 that can lie within `radius` of its origin: float64 [A, 2], x and y.

    The second coordinate of a rectangular lattice (kind 1) is still to be multiplied by its aspect; the table reaches
    far enough for the smallest one.
    """
    v2 = (0.5, math.sqrt(3) / 2) if kind in (2, 3) else (0.0, 1.0)
    basis = [(0.0, 0.0), (0.5, math.sqrt(3) / 6)] if kind == 3 else [(0.0, 0.0)]
    squeeze = ASPECT[0] if kind == 1 else 1.0
    reach = math.ceil(2 * radius / squeeze) + 1
    j, i = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1), indexing="ij")
    xy = np.stack([i + j * v2[0], j * v2[1]], -1).reshape(-1, 1, 2) + np.array(basis)  # (cells, atoms in a cell, 2)
    xy = xy.reshape(-1, 2)
    return torch.from_numpy(xy[np.hypot(xy[:, 0], xy[:, 1] * squeeze) <= radius])


def visible_radius(img_size: int, any_spacing: bool) -> float:
    """Radius, in units of the smallest spacing there is, beyond which no atom can be seen in the image."""
    a, a_max, wander = (*FULL_SPACING, 5 * FULL_JITTER[1]) if any_spacing else (SPACING, SPACING, 0.0)
    return (img_size / math.sqrt(2) + 1 + CUTOFF * atom_width(a_max) + wander) / a


def atom_width(spacing):
    """Standard deviation of an atom in pixels, max(0.6, 0.12 a); floats or tensors."""
    return spacing.mul(0.12).clamp_min(0.6) if torch.is_tensor(spacing) else max(0.6, 0.12 * spacing)


def render(kind, theta, aspect=1.0, spacing=SPACING, keep=None, shift=None, img_size=64, device="cpu"):
    """Crystals as float64 images [N, 1, H, W] in [0, 1], each with maximum 1.

    kind: int [N]; theta: radians [N]; aspect (kind 1 only) and spacing (pixels): numbers or [N]; keep: bool [N, A], the
    atoms that are there; shift: [N, A, 2], their displacement in pixels, both in the order of `sites`.  Pixel i has its
    centre at coordinate i, y points down as in any image, and the lattice is turned about (W/2, H/2) from x towards y.
    Float64 throughout, so that rounding to 8 bits gives the same image on any device and in any batch (Apple's MPS has
    no float64: there it is rendered on the CPU).  Quickest in batches of about 64, which fit the processor's cache.
    Raises ValueError for an aspect or spacing below the range of the data, whose lattice would not fill the image.
    """
    target, device = torch.device(device), torch.device("cpu" if str(device).startswith("mps") else device)

    def column(v):
        return torch.as_tensor(v, dtype=torch.float64, device=device).expand(len(kind))

    kind = torch.as_tensor(kind, device=device)
    theta, aspect, spacing = column(theta), column(aspect), column(spacing)
    if (aspect < ASPECT[0] - 1e-3).any() or (spacing < FULL_SPACING[0]).any():
        raise ValueError(f"the aspect must be at least {ASPECT[0]} and the spacing at least {FULL_SPACING[0]} px")
    image = torch.zeros(len(kind), img_size, img_size, dtype=torch.float64, device=device)
    radius = visible_radius(img_size, any_spacing=keep is not None or bool((spacing != SPACING).any()))
    pixel = torch.arange(img_size, dtype=torch.float64, device=device)
    for k in range(len(KINDS)):  # one batch a lattice type: their atoms differ in number
        (n,) = torch.where(kind == k)
        if len(n) == 0:
            continue
        unit = sites(k, radius).to(device)  # (A, 2)
        u = unit[:, 0] * spacing[n, None]
        v = unit[:, 1] * spacing[n, None] * (aspect[n, None] if k == 1 else 1.0)
        cos, sin = torch.cos(theta[n, None]), torch.sin(theta[n, None])
        x, y = img_size / 2 + cos * u - sin * v, img_size / 2 + sin * u + cos * v  # atom centres: (n, A)
        if shift is not None:
            x, y = x + shift[n, : len(unit), 0].to(x), y + shift[n, : len(unit), 1].to(x)
        s = math.sqrt(2) * atom_width(spacing[n, None, None])
        # The exponent stops at -100, which is nothing to the image; left to underflow, it makes the product 10x slower.
        row = ((pixel - y[..., None]) / s).square_().neg_().clamp_min_(-100).exp_()  # (n, A, H)
        col = ((pixel - x[..., None]) / s).square_().neg_().clamp_min_(-100).exp_()  # (n, A, W)
        if keep is not None:
            row = row * keep[n, : len(unit), None].to(row)
        image[n] = row.transpose(1, 2) @ col
    image = image / image.amax((1, 2), keepdim=True)
    return image[:, None].to(target, torch.float64 if target.type != "mps" else torch.float32)


# --------------------------------------------------------------------------------------------------------- the data set


def uniforms(start: int, n: int, width: int, seed: int, stream: int = 0) -> np.ndarray:
    """Rows start .. start + n of an endless table of uniform numbers [n, width] in [0, 1): row i is always the same.

    Philox is counter-based, so the stream of (seed, stream) can be entered anywhere; a counter holds four numbers.
    """
    width4 = -(-width // 4) * 4
    bits = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).advance(start * width4 // 4)
    return np.random.Generator(bits).random((n, width4))[:, :width]


def crystal_labels(start: int, n: int, seed: int = 0, mode: str = "rot-only", n_types: int = 4, img_size: int = 64,
                   stream: int = 0) -> dict:
    """Everything that decides crystals start .. start + n of a seed: the keyword arguments of `render`.

    stream 0 is training data, 1 held-out data.  Raises ValueError for an unknown mode or number of types.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if not 1 <= n_types <= len(KINDS):
        raise ValueError(f"the number of lattice types must be 1 to {len(KINDS)}, not {n_types}")
    radius = visible_radius(img_size, any_spacing=True)
    atoms = max(len(sites(k, radius)) for k in range(len(KINDS))) if mode == "full" else 0
    u = uniforms(start, n, 8, seed, stream)  # so crystal i has the same type and aspect in all modes and sizes

    def spread(column, low, high):
        return torch.from_numpy(low + (high - low) * u[:, column])

    labels = dict(kind=torch.from_numpy((u[:, 0] * n_types).astype(np.int64)), theta=spread(1, 0.0, THETA_MAX),
                  aspect=spread(2, *ASPECT))
    if mode == "simple":
        labels["theta"] = torch.zeros(n, dtype=torch.float64)
    if mode == "full":
        vacancy, jitter = spread(4, *FULL_VACANCY), spread(5, *FULL_JITTER)
        per_atom = torch.from_numpy(uniforms(start, n, 3 * atoms, seed, stream + 2**32).reshape(n, atoms, 3))
        labels |= dict(spacing=spread(3, *FULL_SPACING), keep=per_atom[..., 0] >= vacancy[:, None],
                       shift=torch.special.ndtri(per_atom[..., 1:].clamp_min(1e-300)) * jitter[:, None, None],
                       vacancy=vacancy, jitter=jitter)
    return labels


def crystal_batch(start: int, n: int, seed: int = 0, mode: str = "rot-only", n_types: int = 4, img_size: int = 64,
                  device="cpu", stream: int = 0):
    """Crystals start .. start + n of a seed, on the fly: x_u8 uint8 [n,1,H,W], y_cat int64 [n], y_cont float32 [n,4].

    y_cont is [a, theta, vacancy, jitter] in mode full and [0, theta, 0, 0] otherwise.
    """
    labels = crystal_labels(start, n, seed, mode, n_types, img_size, stream)
    vacancy, jitter = labels.pop("vacancy", torch.zeros(n)), labels.pop("jitter", torch.zeros(n))
    x_u8 = to_u8(render(**labels, img_size=img_size, device=device))
    y_cont = torch.stack([labels.get("spacing", torch.zeros(n)), labels["theta"], vacancy, jitter], 1)
    return x_u8, labels["kind"].to(device), y_cont.to(device, torch.float32)


class Condition(NamedTuple):
    """What each of N crystals is asked to be."""

    kind: torch.Tensor  # lattice type: int64 [N]
    cont: torch.Tensor  # [a, theta, vacancy, jitter], zeros where the mode does not vary it: float32 [N, 4]
    known: torch.Tensor  # False: the network is told nothing (dropout, the unconditional half of guidance): bool [N]

    def map(self, f):
        return Condition(*map(f, self))

    def dropped(self):
        return self._replace(known=torch.zeros_like(self.known))

    def features(self):
        """Type one-hot, the labels, the angle's first harmonics, and whether any of it is known: float32 [N, 25]."""
        keep, theta = self.known.float()[:, None], self.cont[:, 1]
        harmonics = theta[:, None] * torch.arange(1, 9, device=theta.device)
        scaled = self.cont * self.cont.new_tensor([0.1, 1, 4, 1])
        told = torch.cat([F.one_hot(self.kind, 4), scaled, harmonics.sin(), harmonics.cos()], 1)
        return torch.cat([told * keep, 1 - keep], 1)


def told(kind, cont) -> Condition:
    """The Condition of crystals whose labels are known."""
    return Condition(kind, cont, torch.ones(len(kind), dtype=torch.bool, device=kind.device))


def asked_for(n, kind=None, theta=None, mode="rot-only", n_types=4) -> Condition:
    """The default conditions: crystal i of type i mod n_types, angle (i mod 36)/35 pi/3.  kind and theta ask for one.

    In mode full: of spacing 10 px, with no vacancies and no jitter.  In mode simple no crystal is turned.
    """
    i, cont = torch.arange(n), torch.zeros(n, 4)
    cont[:, 0] = SPACING * (mode == "full")
    if mode != "simple":
        cont[:, 1] = (i % 36) / 35 * THETA_MAX if theta is None else theta
    return told(i % n_types if kind is None else torch.full((n,), kind), cont)


def to_u8(x: torch.Tensor) -> torch.Tensor:
    """[0, 1] to 0 .. 255, rounded to nearest."""
    return (x * 255).round().clamp(0, 255).to(torch.uint8)


def unit(x: torch.Tensor) -> torch.Tensor:
    """The [-1, 1] of a diffusion model to [0, 1], clipped, float32."""
    return ((x.float() + 1) / 2).clamp(0, 1)


def write_whole(path, save):
    """Let save(file) write beside `path` and move the result into place: nobody ever finds half a file there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            save(file)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def build(n: int, path, seed=0, mode="rot-only", n_types=4, img_size=64, chunk=64):
    """Render n crystals into one file: a dict of x_u8 uint8 [N,1,H,W], y_cat int64 [N], y_cont float32 [N,4].

    A file that is already there is replaced.  Raises ValueError as `crystal_labels` does, OSError if it cannot write.
    """

    def save(file):
        x_u8 = torch.empty(n, 1, img_size, img_size, dtype=torch.uint8)
        y_cat, y_cont = torch.empty(n, dtype=torch.int64), torch.empty(n, 4)

        def fill(i):
            rows = slice(i, min(i + chunk, n))
            x_u8[rows], y_cat[rows], y_cont[rows] = crystal_batch(i, rows.stop - i, seed, mode, n_types, img_size)
            return rows.stop - i

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the batches are small: two workers with one thread each beat one with two
        try:
            progress = tqdm(total=n, unit="img", delay=1, leave=False, disable=None)
            with ThreadPoolExecutor(threads) as pool, progress as bar:
                for m in pool.map(fill, range(0, n, chunk)):
                    bar.update(m)
        finally:
            torch.set_num_threads(threads)
        torch.save(dict(x_u8=x_u8, y_cat=y_cat, y_cont=y_cont), file)

    write_whole(path, save)


def load_built(path) -> dict:
    """A file made by `build`, checked.  Raises FileNotFoundError or ValueError with a sentence that names the fault."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no data file {path}; make one with: python data.py --build 50000 --out {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged or no data file; make one: python data.py --build 50000 --out FILE.pt")
    try:
        d = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged pickle raises; weights_only never runs code
        raise ValueError(f"{path} cannot be read as a data file ({type(error).__name__})") from None
    n = len(d["x_u8"]) if isinstance(d, dict) and torch.is_tensor(d.get("x_u8")) and d["x_u8"].ndim == 4 else 0
    wanted = dict(x_u8=(torch.uint8, 4), y_cat=(torch.int64, 1), y_cont=(torch.float32, 2))
    for key, (dtype, ndim) in wanted.items():
        t = d.get(key) if isinstance(d, dict) else None
        if not torch.is_tensor(t) or t.dtype != dtype or t.ndim != ndim or len(t) != n or n == 0:
            raise ValueError(f"{path}: '{key}' should be {str(dtype)[6:]} with {ndim} axes and N rows, N alike")
    if d["x_u8"].shape[1] != 1 or d["x_u8"].shape[2] != d["x_u8"].shape[3] or d["y_cont"].shape[1] != 4:
        raise ValueError(f"{path}: x_u8 should be [N, 1, H, H] and y_cont [N, 4]")
    in_range = (d["y_cat"] >= 0).all() and (d["y_cat"] < len(KINDS)).all()
    if not (in_range and d["y_cont"].isfinite().all()):
        raise ValueError(f"{path}: y_cat should be 0 to {len(KINDS) - 1} and y_cont finite")
    return d


# ---------------------------------------------------------------------------------------------------------- real images

MNIST_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
MNIST_FILES = {  # SHA-256 of the published .gz, and of what is in it
    "train-images-idx3-ubyte": ("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": ("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": ("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                               "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": ("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                               "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
MNIST_SIZES = {"train": 60_000, "t10k": 10_000}
CIFAR_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR_BATCHES = {True: [f"data_batch_{i}.bin" for i in range(1, 6)], False: ["test_batch.bin"]}
AGAIN = "delete it, and it will be downloaded again"


def download(path, mirrors, sha256):
    """Fetch path.name from the first mirror that has it, with a progress bar; kept only if the SHA-256 is right.

    Raises OSError with one sentence that names the file, the folder it belongs in and the addresses.
    """
    import pooch  # here, because it is needed once in the life of a data folder

    pooch.get_logger().setLevel("WARNING")
    if path.exists() and not path.is_file():  # of a pipe nobody writes into, a reader waits for ever
        raise ValueError(f"{path} is in the way of the download: it is no file")
    addresses, failed = [mirror + path.name for mirror in mirrors], []
    for address in addresses:
        get = pooch.HTTPDownloader(progressbar=True, timeout=30)
        try:
            pooch.retrieve(address, f"sha256:{sha256}", fname=path.name, path=path.parent, downloader=get)
            return
        except (OSError, ValueError) as error:  # no network, not there, or not the file that was published
            failed.append("wrong content" if isinstance(error, ValueError) else type(error).__name__)
    raise OSError(f"no file {path.name} in {path.parent}, and no download ({', '.join(failed)}): put it there, "
                  f"from {' or '.join(addresses)}")


def read_idx(raw, name, axes):
    """An idx file, plain or .gz, as uint8 with so many axes; downloaded if it is not there.

    A file that has as many items as the published one must have its content (compressed again is fine); one of another
    length is somebody's own, and only its form is checked.  Raises ValueError that names a damaged file.
    """
    path = raw / name if (raw / name).is_file() else raw / f"{name}.gz"
    if not path.is_file():
        download(path, MNIST_MIRRORS, MNIST_FILES[name][0])
    try:
        content = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise ValueError(f"{path} is damaged or cut short: {AGAIN}") from None
    if len(content) < 4 + 4 * axes:
        raise ValueError(f"{path} is cut short: {AGAIN}")
    magic, *shape = struct.unpack(f">{1 + axes}I", content[: 4 + 4 * axes])
    if magic != 2048 + axes:  # 8 for bytes in the third byte, the number of axes in the fourth
        what = "images" if axes == 3 else "labels"
        raise ValueError(f"{path} is no idx file of {what}: its magic number is {magic}, not {2048 + axes}")
    if len(content) != 4 + 4 * axes + math.prod(shape) or shape[0] == 0:
        raise ValueError(f"{path} is damaged: {len(content)} bytes, where its header promises {shape}; {AGAIN}")
    published = shape[0] == MNIST_SIZES[name.partition("-")[0]]
    if published and hashlib.sha256(content).hexdigest() != MNIST_FILES[name][1]:
        raise ValueError(f"{path} is not the published file, or damaged (its SHA-256 differs): {AGAIN}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * axes).view(shape)


def load_mnist(folder, train: bool):
    """MNIST in torchvision's layout, FOLDER/MNIST/raw: x_u8 uint8 [N, 1, 28, 28] and labels int64 [N].

    Raises ValueError for a damaged file, OSError where one is missing and cannot be downloaded.
    """
    raw, part = Path(folder, "MNIST", "raw"), "train" if train else "t10k"
    x_u8 = read_idx(raw, f"{part}-images-idx3-ubyte", 3)
    labels = read_idx(raw, f"{part}-labels-idx1-ubyte", 1).long()
    if x_u8.shape[1:] != (28, 28):
        raise ValueError(f"{raw}: the {part} images are {x_u8.shape[1]} x {x_u8.shape[2]} pixels, not 28 x 28")
    return _paired(x_u8[:, None], labels, f"{raw} ({part})")


def load_cifar10(folder, train: bool):
    """CIFAR-10 from its binary version, FOLDER/cifar-10-batches-bin: x_u8 uint8 [N, 3, 32, 32] and labels int64 [N].

    Unpacked from FOLDER/cifar-10-binary.tar.gz, downloaded, where it is not there.  Raises as `load_mnist` does.
    """
    batches, archive = Path(folder, "cifar-10-batches-bin"), Path(folder, CIFAR_ARCHIVE)
    if not all((batches / name).is_file() for name in CIFAR_BATCHES[train]):
        if not archive.is_file():
            download(archive, CIFAR_MIRRORS, CIFAR_SHA256)
        unpack(archive, batches)
    x_u8, labels = [], []
    for name in CIFAR_BATCHES[train]:
        content = (batches / name).read_bytes()
        if len(content) % 3073 or not content:  # a label, then 32 x 32 red, green and blue
            raise ValueError(f"{batches / name} is cut short: {len(content)} bytes are no whole number of images")
        records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, 3073)
        x_u8.append(records[:, 1:].reshape(-1, 3, 32, 32))
        labels.append(records[:, 0].long())
        if len(labels[-1]) != len(labels[0]):
            raise ValueError(f"{batches / name} holds {len(labels[-1])} images, but the first batch {len(labels[0])}")
    return _paired(torch.cat(x_u8), torch.cat(labels), batches)


def _paired(x_u8, labels, where):
    if len(x_u8) != len(labels):
        raise ValueError(f"{where}: {len(x_u8)} images, but {len(labels)} labels")
    if labels.max() > 9:
        raise ValueError(f"{where}: labels should be 0 to 9, not {labels.max()}")
    return x_u8, labels


def unpack(archive, batches):
    """Write the six batches of the CIFAR archive, and nothing else of it, into the folder `batches`.

    Nothing is written if a member's path leaves the folder, or if anything in the archive is damaged.
    """
    wanted = [f"{batches.name}/{name}" for names in CIFAR_BATCHES.values() for name in names]
    try:
        with gzip.open(archive) as whole:
            while whole.read(2**20):
                pass  # to the very end, where the checksum is: tarfile stops short of it
        with tarfile.open(archive, "r:gz") as tar:
            members = tar.getmembers()
            for member in members:
                tarfile.data_filter(member, str(batches.parent))  # raises for a path, or a link, that leads outside
            found = {m.name.removeprefix("./"): m for m in members if m.isreg()}
            content = {name: tar.extractfile(found[name]).read() for name in wanted if name in found}
    except tarfile.FilterError as error:
        raise ValueError(f"{archive} is not to be trusted: {error}; nothing was unpacked") from None
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error):
        raise ValueError(f"{archive} is damaged or cut short: {AGAIN}") from None
    if missing := [name for name in wanted if name not in content]:
        raise ValueError(f"{archive} holds no {missing[0]}: {AGAIN}")
    for name, data in content.items():
        write_whole(batches.parent / name, lambda file, data=data: file.write(data))


# ---------------------------------------------------------------------------------------------------------- the preview


def preview(path, n_types=4, img_size=64, seed=0):
    """Draw a PNG of what there is: every type at seven angles, the aspects of rectangular lattices, and mode full."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, because nothing else in this file draws
    from matplotlib.figure import Figure

    m = 7  # columns
    theta, aspect = (torch.linspace(*ends, m, dtype=torch.float64) for ends in ((0, THETA_MAX), ASPECT))
    degrees, none = [f"{math.degrees(t):.0f}°" for t in theta], [""] * m
    rows = []  # (heading of a block or nothing, name of the row, images, their captions)
    for k in range(n_types):
        images = render([k] * m, theta, aspect=1.25, img_size=img_size)
        rows.append(("" if k else "Types and angles: what a model is told", KINDS[k], images, none if k else degrees))
    if n_types > 1:
        rows.append(("Aspect b / a of rectangular lattices: what no model is told", KINDS[1],
                     render([1] * m, 0.0, aspect, img_size=img_size), [f"{b:.2f}" for b in aspect]))
    x_u8, y_cat, y_cont = crystal_batch(0, m, seed, "full", n_types, img_size)
    rows.append((f"Mode full: spacing, share of atoms missing and jitter vary as well (seed {seed})", "random draws",
                 x_u8 / 255, [f"{a:.0f} px, {100 * v:.0f} %, {j:.1f} px" for a, _, v, j in y_cont.tolist()]))

    side, gap, left = 1.28, 0.1, 1.25  # inches; at 100 dots an inch a 64-pixel image is drawn at exactly twice its size
    tops = [0.85]  # of each row, inches from the top of the figure
    for heading, *_ in rows:
        tops.append(tops[-1] + (0.62 if heading else 0.0) + side + gap)
    width, height = left + m * (side + gap) + 0.15, tops[-1] + 0.12
    fig = Figure(figsize=(width, height), dpi=100, facecolor="#10131a")
    FigureCanvasAgg(fig)
    fig.text(left / width, 1 - 0.42 / height, "Toy crystals", color="white", fontsize=20, weight="bold")
    about = f"lattices of Gaussian atoms, turned about the image centre, {img_size} x {img_size} pixels"
    fig.text(left / width, 1 - 0.66 / height, about, color="#b8c2d2", fontsize=10)
    for (heading, name, images, captions), bottom in zip(rows, tops[1:], strict=True):
        y = bottom - gap  # of the lower edge of the images
        if heading:
            fig.text(left / width, 1 - (y - side - 0.36) / height, heading, color="#ffb77a", fontsize=11)
        fig.text((left - 0.12) / width, 1 - (y - side / 2) / height, name, color="white", ha="right", va="center")
        for i in range(m):
            ax = fig.add_axes(((left + i * (side + gap)) / width, 1 - y / height, side / width, side / height))
            ax.imshow(images[i, 0].numpy(), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
            ax.set_axis_off()
            ax.set_title(captions[i], fontsize=8.5, color="#b8c2d2", pad=4)
    write_whole(path, lambda file: fig.savefig(file, format="png", facecolor=fig.get_facecolor()))


# --------------------------------------------------------------------------------------------------------- command line


def main(argv=None):
    parser = argparse.ArgumentParser(prog="data.py", allow_abbrev=False,
                                     description="Draw a preview of the toy crystals, or build a data set of them.")
    add = parser.add_argument
    add("--build", "--n-samples", "--n_samples", type=int, metavar="N", help="render N crystals into --out FILE.pt")
    add("--out", metavar="FILE", help="the file to write; the preview goes to outputs/data/preview.png by default")
    add("--force", action="store_true", help="replace the file given by --out if there is one")
    add("--mode", choices=MODES, default="rot-only",
        help="what varies in a data set; the preview shows two modes (default %(default)s)")
    add("--rot-only", "--rot_only", action="store_const", const="rot-only", dest="mode", default=argparse.SUPPRESS,
        help="the same as --mode rot-only")
    add("--n-types", "--n_types", type=int, default=4,
        help=f"use the first so many of {', '.join(KINDS)} (default %(default)s)")
    add("--img-size", "--img_size", type=int, default=64,
        help="height and width in pixels: the more, the more atoms (default %(default)s)")
    add("--seed", type=int, default=0, help="decides every random number (default %(default)s)")
    args = parser.parse_args(argv)
    limits = dict(build=(1, 10**7), n_types=(1, len(KINDS)), img_size=(8, 1024), seed=(0, 2**63 - 1))
    for name, (low, high) in limits.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name.replace('_', '-')} must lie between {low} and {high}, not at {value}")
    if args.build and not args.out:
        parser.error("--build needs a file to write: --out FILE.pt")
    out = Path(args.out or "outputs/data/preview.png")
    if not args.build and out.suffix.lower() != ".png":
        parser.error(f"the preview is a PNG: --out should end in .png, not be {out} (a data set needs --build N)")
    if out.is_dir() or (args.out and out.exists() and not args.force):
        what = "is a folder; name a file in it" if out.is_dir() else "exists; name another, or replace it with --force"
        parser.error(f"--out {out} {what}")
    try:
        if args.build:
            build(args.build, out, args.seed, args.mode, args.n_types, args.img_size)
        else:
            preview(out, args.n_types, args.img_size, args.seed)
    except OSError as error:
        parser.error(f"cannot write {out}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:  # torch calls a lack of memory and a full disk the latter
        parser.error(f"cannot make {out}: {str(error).splitlines()[0]}")
    print(f"{args.build:,} crystals ({args.mode}, seed {args.seed}) in {out}" if args.build else f"preview in {out}")


if __name__ == "__main__":
    sys.exit(main())
