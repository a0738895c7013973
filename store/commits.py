"""The commit of an entry: its record, put in its place whole, and read back from there.

Works on the record's file alone; what a `Cache` object has read before is no matter here, nor
whether the record has changed since (see `standing`).
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from .errors import CacheFormatError
from .files import create_exclusive, read_sealed, seal, unseal, write_atomic
from .packs import rest_objects
from .records import EntryRecord, record_path
from .spec import CacheSpec


def record_bytes(root: Path, record: EntryRecord, spec: CacheSpec) -> bytes:
    """A record as it is written. What could not be read back is never committed."""
    data, name = seal(record.to_json()), str(record_path(root, record.key))
    EntryRecord.from_json(unseal(data, name=name), spec=spec, name=name)
    return data


def read_committed(root: Path, key: str, spec: CacheSpec) -> EntryRecord:
    """The record on the disk. FileNotFoundError when there is none, CacheFormatError for one that
    does not check."""
    path = record_path(root, key)
    return EntryRecord.from_json(read_sealed(path), spec=spec, name=str(path))


def put_record(root: Path, key: str, data: bytes, spec: CacheSpec, *, overwrite: bool) -> bool:
    """Make an entry exist by the bytes of its record; False when one stands there already.

    overwrite: whatever stands there is replaced.
    """
    path = record_path(root, key)
    if not overwrite:
        return create_exclusive(path, data)
    with contextlib.suppress(OSError, CacheFormatError):  # none, or it names nothing to be told
        rest_objects(root, read_committed(root, key, spec))
    write_atomic(path, data)
    return True
