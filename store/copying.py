"""Whole entries from one cache to another of the same fingerprint, as new attempts there.

    place_entry(target, record, write=lambda folder: copy_objects(source, record, folder))

Every byte that is copied is compared with its record on the way. The record comes last, so a
process killed at any moment leaves an attempt that `gc` removes, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from .backing import LocalBacking
from .cache import Cache
from .commits import read_committed, record_bytes
from .directory import ensure_groups
from .files import (
    create_exclusive,
    is_shared_as,
    make_directory,
    new_file,
    storage_errors,
)
from .packs import checked_blocks
from .records import EntryRecord, record_path, stored_arrays
from .standing import replace_damaged
from .writer import is_committed, sync_directories


def place_entry(
    cache: Cache,
    record: EntryRecord,
    *,
    write: Callable[[Path], None],
    over_damage: bool = False,
) -> EntryRecord:
    """Make an entry whose objects `write` puts into the folder it is given: the record that stands.

    over_damage: replace a record that cannot be read; otherwise, and when it can be read by then,
    one that is there stands.
    """
    attempt = secrets.token_hex(6)
    new = replace(record, attempt=attempt, pack=None)
    path, folder = record_path(cache.path, new.key), cache.path / new.folder
    data = record_bytes(cache.path, new, cache.spec)
    try:
        with storage_errors(folder):
            ensure_groups(cache.path, new.key)
            make_directory(folder, durable=False)
            write(folder)
            sync_directories(folder)
        if over_damage:
            new = replace_damaged(cache, new)
        elif not create_exclusive(path, data):
            return read_committed(cache.path, new.key, cache.spec)
        cache.clear_failure(new.id)
    finally:
        if not is_committed(path, attempt):
            shutil.rmtree(folder, ignore_errors=True)
    return new


def copy_objects(
    source: Cache,
    record: EntryRecord,
    folder: Path,
    *,
    paths: Collection[str] | None = None,
    link: bool = False,
) -> None:
    """Objects of an entry (all, or these) as files below `folder`, flushed to the disk.

    link: give files a second name instead, which reads nothing, where the file system allows it and
    the group that `folder` is shared with may use them. DamagedEntryError when one is missing, lies
    behind a link or, unless it was linked, is not as recorded.
    """
    linkable = link and record.pack is None and isinstance(source.backing, LocalBacking)
    for path in record.objects if paths is None else paths:
        target = folder / path
        make_directory(target.parent, durable=False)
        if linkable and _linked(source, record, path, target):
            continue
        with new_file(target) as file:
            for block in checked_blocks(source.backing, record, path):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())


def _linked(source: Cache, record: EntryRecord, path: str, target: Path) -> bool:
    """Whether the file has a second name now: other disks, and other people's files, refuse."""
    source.backing.require(record, path)
    file = source.path / record.folder / path
    with contextlib.suppress(OSError):
        if is_shared_as(file, target.parent):
            os.link(file, target, follow_symlinks=False)
            return True
    return False


def objects_of(cache: Cache, record: EntryRecord, arrays: Collection[str]) -> list[str]:
    """The objects of some token arrays, with those of the scales beside them."""
    names = {name for array in arrays for name in stored_arrays(cache.spec, array)}
    return [path for path in record.objects if path.partition("/")[0] in names]
