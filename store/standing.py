"""The record that stands in a cache at this very moment, whatever was read of it before.

An extraction commits without any lock, and a check of every byte takes hours: whoever replaces or
removes what it has found looks here again, right before the deed. What is committed between that
look and the rename or removal after it, one system call later, is lost as if it had come first.
"""

from __future__ import annotations

from .cache import Cache
from .commits import read_committed, record_bytes
from .errors import CacheFormatError
from .files import replacing, storage_errors
from .packs import rest_objects
from .records import EntryRecord, record_path
from .verify import read_record


def stands(cache: Cache, record: EntryRecord) -> bool:
    """Is this the record on the disk, in every field? An attempt may have got more arrays."""
    try:
        found = read_committed(cache.path, record.key, cache.spec)
    except (FileNotFoundError, CacheFormatError):
        return False
    return found == record


def standing_record(cache: Cache, key: str) -> EntryRecord | None:
    """The record on the disk; None where there is none, CacheFormatError for a damaged one."""
    try:
        return read_record(record_path(cache.path, key), cache)
    except FileNotFoundError:
        return None


class _StandsError(Exception):
    """A sound record stands where a damaged one did."""

    def __init__(self, record: EntryRecord) -> None:
        super().__init__(record.id)
        self.record = record


def replace_damaged(cache: Cache, new: EntryRecord) -> EntryRecord:
    """Put a record where none, or a damaged one, stands: the record that stands afterwards, which
    is another one when somebody has made the entry anew meanwhile."""

    def look() -> None:
        try:
            found = standing_record(cache, new.key)
        except CacheFormatError:
            return
        if found is not None:
            raise _StandsError(found)

    path = record_path(cache.path, new.key)
    try:
        with replacing(path, look=look) as file:
            file.write(record_bytes(cache.path, new, cache.spec))
    except _StandsError as other:
        return other.record
    return new


def remove_standing(cache: Cache, record: EntryRecord) -> bool:
    """Remove an entry if this is its record; False when somebody has replaced or removed it."""
    with storage_errors(cache.path):
        rest_objects(cache.path, record)
        if not stands(cache, record):
            return False
        record_path(cache.path, record.key).unlink(missing_ok=True)
    cache.refresh()
    return True
