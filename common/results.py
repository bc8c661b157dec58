"""RESULTS.md: tables that audit.py writes, each between two marks of its own.

    <!-- audit: score/vp_sde.pt -->
    ...
    <!-- end of audit -->

All else in the file is prose and stays as it is.  So does a table that is not measured this time,
with its date.
"""

import datetime
import os
import platform
import re
from pathlib import Path

from common.files import write_whole

END = "<!-- end of audit -->"
BLOCK = re.compile(r"<!-- audit: (\S+) -->.*?" + re.escape(END), re.DOTALL)
UNKNOWN = "not written down"

# ------------------------------------------------------------------------------ the file


def read(path):
    """The text of the file, or of a new one.  Raises ValueError where a mark is damaged."""
    path = Path(path)
    if not path.exists():
        return "# Results\n"
    text = path.read_text(encoding="utf-8")
    begun = text.count("<!-- audit: ")
    whole = [m for m in BLOCK.finditer(text) if m.group().count("<!-- audit: ") == 1]
    if not begun == text.count(END) == len(whole):
        raise ValueError(f"{path}: a mark of the audit stands without its other half")
    return text


def update(path, headings, tables):
    """Put tables {section/name: lines} into a file, each in its old place.

    New ones come after those of the same section; a new section gets its heading from
    {section: heading}.
    """
    text = read(path)
    for key, lines in tables.items():
        block = "\n".join([f"<!-- audit: {key} -->", *lines, END])
        section = key.partition("/")[0]
        text = placed(text, key, section, headings[section], block)
    write_whole(path, text.encode())


def placed(text, key, section, heading, block):
    """The text with a block in it."""
    found = {match.group(1): match.span() for match in BLOCK.finditer(text)}
    if key in found:
        start, end = found[key]
        return text[:start] + block + text[end:]

    neighbours = [span for other, span in found.items() if other.startswith(f"{section}/")]
    if neighbours:
        _, end = neighbours[-1]
        return f"{text[:end]}\n\n{block}{text[end:]}"
    return f"{text.rstrip()}\n\n## {heading}\n\n{block}\n"


# ------------------------------------------------------------------------------ the tables


def table(columns, rows):
    """Lines of Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines]


def claims_table(name, claims, command):
    """Lines of a date and a table."""
    rows = []
    for claim in claims:
        allowed = "" if claim.tolerance is None else f"± {claim.tolerance:.2g}"
        measured = f"{claim.measured:.4g}"
        if claim.note:
            measured += f" ({claim.note})"
        if claim.holds is False:
            measured += " **fails**"
        n = f"{claim.n:,}" if claim.n else ""
        row = (claim.claim, f"{claim.expected:.4g}", allowed, measured, n, f"`{command}`")
        rows.append(row)

    today = datetime.date.today().isoformat()
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    columns = ("claim", "expected", "allowed", "measured", "n", "command")
    return [f"**{name}**, measured on {today}, {machine}:", "", *table(columns, rows)]


def networks_table():
    """How the checkpoints that ship were trained, as they say themselves."""
    from common.checkpoints import SHIPPED, load_checkpoint
    from common.classifier import CLASSIFIERS

    rows = []
    for path in sorted(SHIPPED.glob("*.pt")):
        made = load_checkpoint(path)
        machine = made.get("machine") or UNKNOWN
        size = f"{path.stat().st_size / 1e6:.1f}"
        seconds = duration(made["seconds"])
        command = f"{made['script']}.py"
        if made["script"] in CLASSIFIERS.values():  # a classifier, which is no script of its own
            command = "vae_gan.py --make-classifier"
        row = (path.name, f"`{command}`", f"{made['step']:,}", seconds, machine, size)
        rows.append(row)
    columns = ("checkpoint", "script", "steps", "training time", "machine", "MB")
    return table(columns, rows)


def duration(seconds):
    if seconds is None:
        return UNKNOWN
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min"
