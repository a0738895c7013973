"""An entry's objects rearranged while others read it: a new attempt, then one rename of its record.

    record ──> attempt A                becomes                record ──> attempt B

No value changes. A process killed at any moment leaves the entry as it was, and something that no
record names, which `gc` removes; whoever holds the old record reads attempt A until then. What an
extraction commits meanwhile stands. Pooling, packing and unpacking do so, one of them at a time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from .backing import require_file
from .cache import Cache, ensure_groups
from .errors import Vis4merError
from .files import (
    held_alone,
    make_directory,
    new_file,
    read_sealed,
    replacing,
    seal,
    storage_errors,
    unseal,
)
from .packs import checked_blocks, rest_pack
from .records import EntryRecord, record_path
from .writer import is_committed, sync_directories

LOCK = "pool.lock"  # in the cache; named after what first needed it


@contextlib.contextmanager
def rearranging(root: Path) -> Iterator[None]:
    """Only one process at a time rearranges a cache; Vis4merError while another does.

    Of two at once, one would undo what the other committed.
    """
    busy = (
        f"{root}: another `vis4mer cache pool`, `pack`, `unpack`, `merge`, `pull`, `repair` or "
        "`gc` is at work in it; wait for it"
    )
    with held_alone(root / LOCK, otherwise=busy):
        yield


def current_record(cache: Cache, entry_id: str) -> EntryRecord:
    """The record that stands now, whatever others have committed since the cache was opened."""
    record = cache.record(entry_id)
    if not is_committed(record_path(cache.path, record.key), record.attempt):
        cache.refresh()
        record = cache.record(entry_id)
    return record


def replace_attempt(
    cache: Cache,
    old: EntryRecord,
    *,
    kept: Collection[str],
    write: Callable[[Path], EntryRecord],
) -> EntryRecord:
    """Make a new attempt of the `kept` objects and what `write` adds to its folder; commit it.

    Kept files are linked; packed ones are copied out and their checksums compared. The record that
    stands afterwards; Vis4merError when somebody else replaced or removed the old one meanwhile.
    """
    attempt = secrets.token_hex(6)
    record = record_path(cache.path, old.key)
    folder = cache.path / replace(old, attempt=attempt).folder
    try:
        with storage_errors(folder):
            ensure_groups(cache.path, old.key)
            make_directory(folder, durable=False)
            take = _link if old.pack is None else _copy
            for path in kept:
                make_directory((folder / path).parent, durable=False)
                take(cache, old, path, folder / path)
            new = replace(write(folder), attempt=attempt, pack=None)
            sync_directories(folder)
        commit_over(cache, old, new)
    finally:
        if not is_committed(record, attempt):
            shutil.rmtree(folder, ignore_errors=True)
    return new


def _link(cache: Cache, record: EntryRecord, path: str, target: Path) -> None:
    """The same file under a second name; DamagedEntryError when it is not as recorded."""
    source = cache.path / record.folder / path
    require_file(source, record.objects[path].size, record.id)
    os.link(source, target)


def _copy(cache: Cache, record: EntryRecord, path: str, target: Path) -> None:
    """An object out of its pack; DamagedEntryError when it is not as recorded."""
    with new_file(target) as file:
        for block in checked_blocks(cache.backing, record, path):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def commit_over(cache: Cache, old: EntryRecord, new: EntryRecord) -> None:
    """Replace the record. Somebody else's commit of this entry in the meantime stands."""
    path = record_path(cache.path, old.key)
    data = seal(new.to_json())
    EntryRecord.from_json(unseal(data, name=str(path)), spec=cache.spec, name=str(path))
    with replacing(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # slow, and so before the look
        if not _stands(path, old):
            raise Vis4merError(
                f"video {old.id!r} in {cache.path} was replaced or removed meanwhile; run the "
                "same command again"
            )
        rest_pack(cache.path, old)


def _stands(path: Path, record: EntryRecord) -> bool:
    try:
        return bool(read_sealed(path).get("attempt") == record.attempt)
    except FileNotFoundError:
        return False
