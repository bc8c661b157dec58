"""Published images, and where the crystals that a network learns come from.

    x_u8, labels = load("mnist", "data", train=True)      uint8 [N, C, H, W], int64 [N]

Files that are missing are downloaded once, and kept only if their SHA-256 is right.  Nothing else
in this project needs the network.
"""

import gzip
import hashlib
import math
import struct
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple

import data
from common.files import no_empty_folders, read_regular, write_whole
from common.seeds import generator

import torch
from tqdm import tqdm

# ------------------------------------------------------------------------------ the table


class ImageSet(NamedTuple):
    """What there is to know about published images."""

    form: str  # of the files: idx or cifar
    channels: int
    size: int  # height and width, pixels
    classes: int
    n_train: int
    n_test: int
    noun: str  # what they show
    folder: str  # of the files, below the data folder
    mirrors: tuple  # addresses of the folders that hold the downloads
    downloads: dict  # SHA-256 of each download
    content: dict = {}  # SHA-256 of what is in it, however it was compressed


MNIST = ImageSet(
    form="idx",
    channels=1,
    size=28,
    classes=10,
    n_train=60_000,
    n_test=10_000,
    noun="digits",
    folder="MNIST/raw",  # where torchvision looks as well
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    downloads={
        "train-images": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    content={
        "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)
FASHION = MNIST._replace(  # ten kinds of clothes, in the format and the numbers of MNIST
    noun="clothes",
    folder="FashionMNIST/raw",
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    downloads={
        "train-images": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    content={
        "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)
CIFAR10 = ImageSet(
    form="cifar",
    channels=3,
    size=32,
    classes=10,
    n_train=50_000,
    n_test=10_000,
    noun="images",
    folder="cifar-10-batches-bin",
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    downloads={
        "archive": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    },
)
DATASETS = {"mnist": MNIST, "fashion": FASHION, "cifar10": CIFAR10}
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR_BATCHES = {
    True: [f"data_batch_{i}.bin" for i in range(1, 6)],
    False: ["test_batch.bin"],
}
AGAIN = "delete it, and it will be downloaded again"


def load(name, folder, train):
    """Images and labels of a data set: x_u8 uint8 [N, C, H, W] and labels int64 [N].

    name: a key of DATASETS.  folder: where data sets lie, or go.  train: the training images, or
    else the test images.  Raises ValueError for a damaged file, OSError where one is missing and
    cannot be downloaded.
    """
    about = DATASETS[name]
    read = load_idx if about.form == "idx" else load_cifar
    x_u8, labels, where = read(about, Path(folder), train)

    height, width = x_u8.shape[2:]
    size = f"{about.size} x {about.size}"
    if (height, width) != (about.size, about.size):
        raise ValueError(f"{where}: the images are {height} x {width} pixels, not {size}")
    if len(x_u8) != len(labels):
        raise ValueError(f"{where}: {len(x_u8)} images, but {len(labels)} labels")
    if labels.max() >= about.classes:
        allowed = f"0 to {about.classes - 1}"
        raise ValueError(f"{where}: labels should be {allowed}, not {labels.max()}")
    return x_u8, labels


def present(name, folder, train=False):
    """Whether the test images (or the training images) lie in a folder: the files themselves."""
    about = DATASETS[name]
    if about.form == "cifar":
        batches = [Path(folder, about.folder, batch) for batch in CIFAR_BATCHES[train]]
        return Path(folder, CIFAR_ARCHIVE).is_file() or all(path.is_file() for path in batches)
    pair = [idx_path(about, Path(folder), train, what) for what in ("images", "labels")]
    return all(path.is_file() for path in pair)


# ------------------------------------------------------------------------------ downloads


def download(path, mirrors, sha256):
    """Fetch path.name from the first mirror that has it.

    Raises OSError with one sentence that names the file, the folder and the addresses; then no
    folder stays that was not there.
    """
    if path.exists() and not path.is_file():  # of a pipe, a reader would wait for ever
        raise ValueError(f"{path} is in the way of the download: it is no file")

    addresses = [mirror + path.name for mirror in mirrors]
    failed = []
    with no_empty_folders(path.parent):
        for address in addresses:
            try:
                fetch(address, path, sha256)
                return
            except OSError as error:  # no network, or not there
                failed.append(type(error).__name__)
            except ValueError:
                failed.append("wrong content")

    raise OSError(
        f"no file {path.name} in {path.parent}, and no download ({', '.join(failed)}): "
        f"put it there, from {' or '.join(addresses)}"
    )


def fetch(address, path, sha256):
    """Download one file, with a progress bar.  Raises ValueError where the SHA-256 is not right."""
    import pooch  # here, because it is needed once in the life of a data folder

    pooch.get_logger().setLevel("WARNING")
    with tqdm(total=1, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        get = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=30)
        pooch.retrieve(address, f"sha256:{sha256}", path.name, path.parent, downloader=get)


# ------------------------------------------------------------------------------ MNIST and its kind


def load_idx(about, folder, train):
    """Images, labels and the place to name in an error, from two idx files, plain or gzipped."""
    images = read_idx(about, folder, train, "images")
    labels = read_idx(about, folder, train, "labels")
    where = idx_path(about, folder, train, "images").parent
    return images[:, None], labels.long(), f"{where} ({part_of(train)})"


def part_of(train):
    return "train" if train else "t10k"


def idx_path(about, folder, train, what):
    """The file of images or labels: plain if it is there, or else gzipped."""
    axes = {"images": 3, "labels": 1}[what]
    plain = folder / about.folder / f"{part_of(train)}-{what}-idx{axes}-ubyte"
    return plain if plain.is_file() else plain.with_name(f"{plain.name}.gz")


def read_idx(about, folder, train, what):
    """The array in a file of images [N, H, W] or labels [N], uint8; downloaded if it is not there.

    A file with as many items as the published one must have its content; one of another length is
    somebody's own, and only its form is checked.  Raises ValueError, which names a damaged file.
    """
    path = idx_path(about, folder, train, what)
    key = f"{part_of(train)}-{what}"
    if not path.is_file():
        download(path, about.mirrors, about.downloads[key])

    content = read_regular(path, "data file")
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error):
            raise ValueError(f"{path} is damaged or cut short: {AGAIN}") from None

    # The header: 0, 0, 8 for bytes, the number of axes; then the length of each axis.
    axes = 3 if what == "images" else 1
    header = 4 + 4 * axes
    if len(content) < header:
        raise ValueError(f"{path} is cut short: {AGAIN}")
    magic, *shape = struct.unpack(f">{1 + axes}I", content[:header])
    if magic != 2048 + axes:
        number = f"its magic number is {magic}, not {2048 + axes}"
        raise ValueError(f"{path} is no idx file of {what}: {number}")
    if len(content) != header + math.prod(shape) or shape[0] == 0:
        promise = f"{len(content)} bytes, where its header promises {shape}"
        raise ValueError(f"{path} is damaged: {promise}; {AGAIN}")

    published = shape[0] == (about.n_train if train else about.n_test)
    if published and hashlib.sha256(content).hexdigest() != about.content[key]:
        differs = "is not the published file, or damaged (its SHA-256 differs)"
        raise ValueError(f"{path} {differs}: {AGAIN}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)


# ------------------------------------------------------------------------------ CIFAR-10


def load_cifar(about, folder, train):
    """Images, labels and the place to name in an error, from the binary version.

    Unpacked from its archive, downloaded, where the batches are not there.
    """
    batches = folder / about.folder
    if not all((batches / name).is_file() for name in CIFAR_BATCHES[train]):
        archive = folder / CIFAR_ARCHIVE
        if not archive.is_file():
            download(archive, about.mirrors, about.downloads["archive"])
        unpack(archive, batches)

    parts = []
    for name in CIFAR_BATCHES[train]:
        content = read_regular(batches / name, "data file")
        if len(content) % 3073 or not content:  # a label, then 32 x 32 red, green and blue
            what = f"{len(content)} bytes are no whole number of images"
            raise ValueError(f"{batches / name} is cut short: {what}")
        part = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, 3073)

        parts.append(part)
        if len(part) != len(parts[0]):
            what = f"holds {len(part)} images, but the first batch {len(parts[0])}"
            raise ValueError(f"{batches / name} {what}")

    records = torch.cat(parts)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long(), batches


def unpack(archive, batches):
    """Write the six batches of the CIFAR archive, and nothing else of it, into a folder.

    Nothing is written if the path of a member leaves the folder, or if anything in the archive is
    damaged.  (pooch.Untar promises neither: below Python 3.12 it filters no paths, it writes what
    comes before the damage, and it takes half a file of an earlier try for a whole one.)
    """
    wanted = [f"{batches.name}/{name}" for names in CIFAR_BATCHES.values() for name in names]
    try:
        with gzip.open(archive) as whole:
            while whole.read(2**20):
                pass  # to the very end, where the checksum is: tarfile stops short of it
        with tarfile.open(archive, "r:gz") as tar:
            content = read_members(tar, wanted, batches.parent)
    except tarfile.FilterError as error:
        why = f"{archive} is not to be trusted: {error}"
        raise ValueError(f"{why}; nothing was unpacked") from None
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error):
        raise ValueError(f"{archive} is damaged or cut short: {AGAIN}") from None
    except OSError as error:
        raise ValueError(f"cannot read the archive {archive}: {error.strerror}") from None

    for name in wanted:
        if name not in content:
            raise ValueError(f"{archive} holds no {name}: {AGAIN}")
    for name in wanted:
        write_whole(batches.parent / name, content[name])


def read_members(tar, wanted, folder):
    """The content of some files of an archive: {name: bytes}.

    Raises FilterError if any path or link in the archive would lead out of the folder.
    """
    content = {}
    for member in tar.getmembers():
        tarfile.data_filter(member, str(folder))
        name = member.name.removeprefix("./")
        if member.isreg() and name in wanted:
            content[name] = tar.extractfile(member).read()
    return content


# ------------------------------------------------------------------------------ crystals


def crystal_source(config):
    """The file of crystals that --data-path names, as a dict; None where crystals are rendered.

    Raises ValueError for a file that holds other crystals than the config says.
    """
    if config.data_path is None:
        return None
    return data.load_built(config.data_path, config.mode, config.n_types, config.img_size)


def training_crystals(config, source, step, n, held_out=False):
    """Crystals of training step `step`, from (seed, step): uint8 [n, 1, H, W], their Condition.

    source: what `crystal_source` found.  Rows of a file are drawn; without one, or held out,
    crystals are rendered.
    """
    if source is None or held_out:
        settings = (config.seed, config.mode, config.n_types, config.img_size)
        stream = int(held_out)
        x_u8, kind, cont = data.crystal_batch(step * n, n, *settings, stream=stream)
        return x_u8, data.known_condition(kind, cont)

    rows = torch.randint(len(source["x_u8"]), (n,), generator=generator(config.seed, step, 1))
    condition = data.known_condition(source["y_cat"][rows], source["y_cont"][rows])
    return source["x_u8"][rows], condition
