"""Files that appear whole or not at all: written aside, then moved into place."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def no_empty_folders(folder):
    """Remove what the block makes of the path to a folder and leaves empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # it is not empty: as it should be
                path.rmdir()


@contextlib.contextmanager
def whole_file(path):
    """Yield an open binary file whose content appears at `path` when the block ends well.

    Makes the folder.  Raises OSError; the old file, if there is one, is then still there.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # the same folder: moving is renaming
    with no_empty_folders(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                yield file
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def write_whole(path, content: bytes):
    """Write bytes as `whole_file` does; returns the path."""
    with whole_file(path) as file:
        file.write(content)
    return Path(path)


def write_json(path, value):
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def write_npz(path, **arrays):
    """Named arrays, NumPy's or torch's, as a compressed .npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: np.asarray(array) for name, array in arrays.items()})
    write_whole(path, buffer.getvalue())


def read_regular(path, what):
    """The bytes of a file.  Raises ValueError, which calls it `what`, where it cannot be read."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no {what} {path}")
    if not path.is_file():  # of a pipe that nobody writes into, a reader would wait for ever
        raise ValueError(f"{path} is no file, so no {what}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the {what} {path}: {error.strerror}") from None


def read_json(path, what):
    """A JSON object, as a dict.  Raises ValueError, which calls it `what`, for anything else."""
    content = read_regular(path, what)
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {what} {path} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"the {what} {path} should be one JSON object")
    return value
