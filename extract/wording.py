"""Other libraries' errors in one line, as parts of messages for a person."""

from __future__ import annotations

_MAX_CHARACTERS = 200


def describe_error(error: BaseException) -> str:
    """An error's type and the first line of its message."""
    line = first_line(error)
    name = type(error).__name__
    return name if line == name else f"{name}: {line}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut when very long; its type when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:_MAX_CHARACTERS] if lines else type(error).__name__
