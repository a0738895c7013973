"""Errors that are meant to be read by a person.

Every message is one line: the cause, the value that was met, what was expected, and what to do.
The command line prints it as it is and exits with `exit_code`. Classes of their own exist only
where a caller branches on them; each also inherits the built-in that fits.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass

SEE_VERIFY = "`vis4mer cache verify` lists what is damaged"


class Vis4merError(Exception):
    """Something went wrong that a person can act on."""

    exit_code = 1


class UsageError(Vis4merError, ValueError):
    """The request itself is wrong: an option, a file name, a table."""

    exit_code = 2


class CacheFormatError(Vis4merError, ValueError):
    """A directory is no cache, is of a newer format, or holds JSON that does not check."""


class DamagedEntryError(Vis4merError, OSError):
    """Stored bytes are missing, torn or fail their checksum."""


class EntryNotFoundError(Vis4merError, KeyError):
    """The cache has no committed entry for this id."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


def exit_code_of(*, failed: Sized, done: bool, interrupted: bool) -> int:
    """Of a run over many things that fail each for itself: 0 when none has, 3 when some have and
    others are done, 1 when all have or the run was stopped."""
    if interrupted:
        return 1
    if not failed:
        return 0
    return 3 if done else 1


@dataclass(frozen=True)
class FieldDifference:
    """One field in which two specs differ; `stored` and `wanted` are printable."""

    field: str
    stored: str
    wanted: str


class FingerprintError(Vis4merError, ValueError):
    """A cache was made with other settings than those asked for."""

    def __init__(self, message: str, differences: tuple[FieldDifference, ...]) -> None:
        super().__init__(message)
        self.differences = differences
