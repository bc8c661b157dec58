"""Files that were valid once: bytes flipped, or well-formed but with a hostile value at a random place."""

import contextlib
import gzip
import io
import json
import math
import tarfile

import torch
from PIL import Image

WILD = [None, True, False, 0, -1, 1, 2, 7, 3.5, -0.5, 1e-9, 10**6, 10**12, 10**30, 1e308, math.nan, math.inf]
WILD += ["", "x", "0", "16", "crystals", "S", "rot-only", "full", "\udcff", [], [1], {}, {"a": 1}]
NO_SURROGATE = [value for value in WILD if value != "\udcff"]  # which JSON cannot hold
ODD_JSON = [b"[" * 10**5, b'{"seed":' * 10**5, b"", b"null", b"[]", b"\xef\xbb\xbf{}", b"\xff\xfe{", b'"x"', b"{}"]
ODD_JSON += [b"NaN", b'{"seed": 1' + b"0" * 5000 + b"}", b'{"seed": 1, "seed": -1}']


def scramble(rng, blob):
    """Bytes with a few of them flipped, lost, doubled, zeroed, or from somewhere else."""
    blob = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2, 8))):
        i, j = sorted(rng.randrange(len(blob) + 1) for _ in range(2))
        j = min(j, i + rng.choice((1, 16, 1000, 10**9)))
        what = rng.randrange(6)
        if what == 0 and i < len(blob):
            blob[i] ^= 1 << rng.randrange(8)
        elif what == 1:
            del blob[i:j]
        elif what == 2:
            blob[i:i] = blob[i:j]
        elif what == 3:
            blob[i:j] = bytes(j - i)
        elif what == 4:
            blob[i:i] = rng.randbytes(rng.randrange(40))
        else:
            del blob[rng.randrange(len(blob) + 1) :]
    return bytes(blob)


def wild_tensor(rng, t):
    """A tensor that is not quite the one that was."""
    what = rng.randrange(9)
    if what == 0:
        return torch.zeros(())
    if what == 1:
        return t[:0] if t.ndim else t[None]
    if what == 2:
        return t[None]
    if what == 3:
        return t.flatten()[: rng.randrange(1, 5)].clone()
    if what == 4:
        return t.to(rng.choice((torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8, torch.complex64)))
    if what == 5:
        return torch.full_like(t, rng.choice((0, 1, 100)))
    if what == 6:
        return torch.full_like(t, rng.choice((math.nan, math.inf, 1e30))) if t.is_floating_point() else t - 1000
    if what == 7:
        return -t if t.dtype != torch.bool else ~t
    return t.expand(2, *t.shape)


def spoil(rng, tree, wild=WILD):
    """Change one place of nested dicts and lists, in place: another value, none, or one too many."""
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = rng.choice(keys)
        if not (isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.85):
            break
        node = node[key]

    what = rng.random()
    if what < 0.12:
        del node[key]
    elif what < 0.2 and isinstance(node, dict):
        node[rng.choice(("new", "", "config", "out" if wild is NO_SURROGATE else 0))] = node[key]
    elif torch.is_tensor(node[key]) and what < 0.8:
        node[key] = wild_tensor(rng, node[key])
    else:
        node[key] = rng.choice(wild)


def spoilt_checkpoint(rng, path):
    """The bytes of a torch file, flipped or with a wild value in it."""
    if rng.random() < 0.2:
        return scramble(rng, path.read_bytes())
    tree = torch.load(path, weights_only=True)
    for _ in range(rng.choice((1, 1, 1, 2))):
        in_config = "config" in tree and rng.random() < 0.5  # which is small beside the weights
        part = tree["config"] if in_config else tree
        spoil(rng, part if isinstance(part, dict) and part else tree)
    buffer = io.BytesIO()
    torch.save(rng.choice([tree] * 7 + [[tree], None, 3]), buffer)
    return buffer.getvalue()


def spoilt_json(rng, text):
    """The bytes of a config, likewise."""
    if rng.random() < 0.3:
        return scramble(rng, text.encode())
    if rng.random() < 0.1:
        return rng.choice(ODD_JSON)
    tree = json.loads(text)
    for _ in range(rng.choice((1, 1, 2))):
        spoil(rng, tree, NO_SURROGATE)
    return json.dumps(tree).encode()


def spoilt_png(rng):
    """A small picture of any kind that may hide behind .png."""
    mode = rng.choice(("RGB", "L", "1", "P", "RGBA", "I;16", "LA"))
    size = rng.choice((1, 5, 8)), rng.choice((1, 5, 8))
    kind = rng.choice(("png", "png", "png", "gif", "tiff"))
    more = dict(save_all=True, append_images=[Image.new(mode, size, 1)]) if rng.random() < 0.3 else {}
    buffer = io.BytesIO()
    with contextlib.suppress(OSError):  # not every mode can be written as every kind
        Image.new(mode, size, rng.randrange(2)).save(buffer, kind, **more)
    return buffer.getvalue()


def spoilt_archive(rng, blob):
    """The bytes of a .tar.gz, hurt, or with members that should not be there, or not be like that."""
    what = rng.random()
    if what < 0.3:
        return scramble(rng, blob)
    raw = gzip.decompress(blob)
    if what < 0.5:
        return gzip.compress(scramble(rng, raw), 1)

    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(raw)) as old, tarfile.open(fileobj=buffer, mode="w:gz") as new:
        members = old.getmembers()
        strange = rng.choice(members)
        for member in members:
            content = old.extractfile(member).read()
            fault = rng.choice(("label", "label", "type", "name", "size", "lost")) if member is strange else ""
            if fault == "lost":
                continue
            if fault == "type":
                member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE))
                member.linkname = rng.choice(("../../x", "/etc/passwd", "test_batch.bin"))
            elif fault == "name":
                names = "../../x.bin", "/x.bin", f"./{member.name}", "cifar-10-batches-bin", "", "a" * 300
                member.name = rng.choice(names)
            elif fault == "size":
                content = scramble(rng, content)
            elif fault == "label":
                content = bytes([rng.choice((10, 255))]) + content[1:]
            member.size = len(content) if member.isreg() else 0
            new.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
