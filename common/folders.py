"""Output folders: checked before the work, not left behind empty, never shared by two settings."""

import contextlib
import re
from pathlib import Path

from common import cli
from common.files import no_empty_folders, read_json, write_whole


@contextlib.contextmanager
def output_folder(path):
    """Make a folder for the block, and yield it as a Path.

    Raises ValueError, before the block, where nothing can be written into it.  If the block fails
    before anything is written, no empty folder stays.
    """
    path = Path(path)
    with no_empty_folders(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_whole(path / ".writable", b"").unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"cannot write into the folder {path} ({error.strerror}): name another with --out"
            ) from None
        yield path


def refuse_other_results(path, settings, results):
    """Raise ValueError if a folder holds results, unless they are those of the same settings.

    settings: the dict that config.json holds.  results: a regular expression for the names of the
    files that would be written.  So nothing is ever replaced by the results of other settings, or
    left among them.
    """
    held = sorted(file.name for file in Path(path).iterdir() if re.fullmatch(results, file.name))
    if not held:
        return

    try:
        known = read_json(Path(path, "config.json"), "config")
    except ValueError:
        known = None

    if known != settings:
        raise ValueError(
            f"{cli.quoted(path)} holds a {held[0]} that is not of these settings: "
            "name another folder with --out"
        )
