"""Files of crystals: what data.py --build writes, and read with suspicion."""

from multiprocessing.pool import ThreadPool  # of the two in the library, it survives Ctrl-C
from pathlib import Path

from common.cli import quoted, spelt
from common.files import whole_file
from common.pickled import unpickled
from common.progress import progress

import torch

FORM = {  # name: type and number of axes
    "x_u8": (torch.uint8, 4),
    "y_cat": (torch.int64, 1),
    "y_cont": (torch.float32, 2),
}


def save_crystals(path, n, batch, chunk, about):
    """Write n crystals into a file: a dict of x_u8, y_cat and y_cont, and of all in `about`.

    batch(start, m) renders m of them; it is called for `chunk` at a time.
    """
    size = about["img_size"]
    x_u8 = torch.empty(n, 1, size, size, dtype=torch.uint8)
    y_cat = torch.empty(n, dtype=torch.int64)
    y_cont = torch.empty(n, 4)

    def fill(start):
        rows = slice(start, min(start + chunk, n))
        x_u8[rows], y_cat[rows], y_cont[rows] = batch(start, rows.stop - start)

    # The batches are small: two workers of one thread each beat one worker of two.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPool(threads)
    starts = range(0, n, chunk)
    try:
        with whole_file(path) as file:
            for _ in progress(pool.imap(fill, starts), "rendering", len(starts)):
                pass
            torch.save({"x_u8": x_u8, "y_cat": y_cat, "y_cont": y_cont, **about}, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch hides a full disk in another error
            raise error.__context__ from None
        raise
    finally:
        pool.terminate()
        pool.join()
        torch.set_num_threads(threads)


def load_crystals(path, n_kinds, **wanted) -> dict:
    """The dict in a file of crystals, checked.

    wanted: mode, n_types and img_size that they should have; None for any.  Raises
    FileNotFoundError or ValueError with a sentence that names the fault.
    """
    crystals = read_torch(path)
    check_form(crystals, n_kinds, path)
    held = contents(crystals, n_kinds, wanted["n_types"], path)

    for key, value in wanted.items():
        if value is not None and value != held[key]:
            flag = f"{spelt(key)} {held[key]}"
            how = f"say {flag}, or build another file"
            raise ValueError(f"{path} holds crystals of {flag}, not of {value}: {how}")
    return crystals | held


def read_torch(path) -> dict:
    """The dict that torch saved in a file; code that may be in it is never run."""
    path = Path(path)
    if not path.is_file():
        how = f"make one with: python data.py --build 50000 --out {quoted(path)}"
        raise FileNotFoundError(f"there is no data file {path}; {how}")

    try:
        with open(path, "rb") as file:
            content = unpickled(file)
    except OSError as error:
        raise ValueError(f"cannot read the data file {path}: {error.strerror}") from None
    if not content:
        how = "make another: python data.py --build 50000 --out FILE.pt"
        raise ValueError(f"{path} is damaged, or no file of crystals; {how}")
    return content


def check_form(crystals, n_kinds, path):
    """Raise ValueError where names, types, shapes or ranges are not those of crystals."""
    x_u8 = crystals.get("x_u8")
    n = len(x_u8) if torch.is_tensor(x_u8) and x_u8.ndim else 0
    for key, (dtype, ndim) in FORM.items():
        t = crystals.get(key)
        good = torch.is_tensor(t) and (t.dtype, t.ndim) == (dtype, ndim)
        if not (good and len(t) == n > 0):
            form = f"{str(dtype)[6:]} with {ndim} axes and N rows, N alike"
            raise ValueError(f"{path}: '{key}' should be {form}")

    _, channels, height, width = x_u8.shape
    if channels != 1 or height != width or crystals["y_cont"].shape[1] != 4:
        raise ValueError(f"{path}: x_u8 should be [N, 1, H, H] and y_cont [N, 4]")

    kind = crystals["y_cat"]
    if kind.min() < 0 or kind.max() >= n_kinds or not crystals["y_cont"].isfinite().all():
        raise ValueError(f"{path}: y_cat should be 0 to {n_kinds - 1} and y_cont finite")


def contents(crystals, n_kinds, n_types, path) -> dict:
    """mode, n_types and img_size of crystals: what the file says, which must fit what it shows.

    A file of the first edition does not say them.  Few crystals need not be of all types: below a
    hundred, it is believed to be of the n_types that are wanted.  Raises ValueError.
    """
    spacing, theta = crystals["y_cont"].T[:2]
    mode = "rot-only" if theta.any() else "simple"
    if spacing.any():
        mode = "full"

    seen = int(crystals["y_cat"].max()) + 1
    guess = max(seen, n_types or 0) if len(theta) < 100 else seen
    shown = {"mode": mode, "n_types": guess, "img_size": crystals["x_u8"].shape[-1]}

    said = {key: crystals.get(key, value) for key, value in shown.items()}
    if type(said["n_types"]) is int and seen <= said["n_types"] <= n_kinds:
        shown["n_types"] = said["n_types"]
    for key, value in shown.items():
        if type(said[key]) is not type(value) or said[key] != value:
            raise ValueError(f"{path} is damaged: its '{key}' does not fit its crystals")
    return shown
