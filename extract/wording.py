"""Other libraries' errors in one line, as parts of messages for a person."""

from __future__ import annotations

_MAX_CHARACTERS = 200


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut when very long; its type when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:_MAX_CHARACTERS] if lines else type(error).__name__
