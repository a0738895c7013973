"""Words for lines that people read: others' text made visible, counts, lists that stay short.

Knows nothing of where a line goes: what a terminal, a table or a page needs escaped besides is said
where it is printed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MAX_CHARACTERS = 500  # a line of our own, with a long path, is shorter
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
# What a spreadsheet computes when a cell begins with it, after spaces and quotes too.
_FORMULA = re.compile(r"""[\s"']*[=+\-@＝＋－＠]""")


def visible(text: str, *, keep: str = "") -> str:
    """Control characters, line ends, changes of direction, signs without width and lone
    surrogates as \\xNN or \\uNNNN.

    keep: characters that are left as they are.
    """
    return _CONTROL.sub(lambda match: match[0] if match[0] in keep else _spelled(match[0]), text)


def _spelled(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def bytes_said(text: str) -> int | None:
    """`200MB` as 200,000,000, in decimal units as disks are sold; None for what is no size."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([kMGT]?)B?", text, re.ASCII)
    if match is None:
        return None
    return round(float(match[1]) * 1000.0 ** " kMGT".index(match[2] or " "))


def human_bytes(count: float) -> str:
    """1536 → "1.5 kB", decimal units as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 20 s, 5 h 12 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut when very long; its type when it has none."""
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else type(error).__name__
    return line if len(line) <= _MAX_CHARACTERS else f"{line[:_MAX_CHARACTERS]}…"


def describe_error(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    line = first_line(error)
    name = type(error).__name__
    return name if line == name else f"{name}: {line}"


def counted(count: int, noun: str) -> str:
    """`1 video`, `1,234 videos`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def some_of(names: Sequence[str], *, most: int = 5) -> str:
    """`a, b, c and 4 more`: the first names, and how many are left out."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def some_names(names: Sequence[str]) -> str:
    """`some_of` names that somebody else chose: made printable, and each cut when long."""
    return some_of([repr(name)[1:-1][:40] for name in names])


def inert_cell(text: str) -> str:
    """A cell of a CSV that no spreadsheet computes, nor one that takes a semicolon for the end of a
    cell: control characters spelled out, what begins like a formula behind an apostrophe."""
    return ";".join(map(_inert, visible(text).split(";")))


def _inert(text: str) -> str:
    try:
        float(text)
    except ValueError:
        return f"'{text}" if _FORMULA.match(text) else text
    return text
