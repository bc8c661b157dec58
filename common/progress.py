"""The one progress bar: on a terminal only, and gone when the work is done."""


def progress(items, what, total=None):
    """The items, while a bar counts them on stderr.  what: one word before the bar."""
    from tqdm import tqdm

    return tqdm(items, what, total, leave=False, disable=None)
