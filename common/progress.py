"""A progress bar: on a terminal only, and gone when the work is done."""

import sys


def progress(items, what, total=None):
    """The items, while a bar counts them on stderr.  what: one word before the bar."""
    from tqdm import tqdm

    return tqdm(items, what, total, leave=False, disable=None)


def clear_bars():
    """Take every bar off the terminal, so that what is said next has a line of its own."""
    if "tqdm" in sys.modules:
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()
