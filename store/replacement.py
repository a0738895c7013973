"""An entry's objects rearranged while others read it: a new attempt, then one rename of its record.

    record ──> attempt A                becomes                record ──> attempt B

No value changes. A process killed at any moment leaves the entry as it was, and something that no
record names, which `gc` removes; whoever holds the old record reads attempt A until then. What an
extraction commits meanwhile stands (see `standing`). Pooling, packing and unpacking do so, one of
them at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from .cache import Cache
from .commits import record_bytes
from .copying import copy_objects
from .directory import ensure_groups
from .errors import Vis4merError
from .files import (
    held_alone,
    make_directory,
    replacing,
    storage_errors,
)
from .packs import rest_objects
from .records import EntryRecord, record_path
from .standing import stands
from .writer import is_committed, sync_directories

LOCK = "pool.lock"  # in the cache; named after what first needed it
OnEntry = Callable[[int, int, str], None]  # entries done, of how many, the next one's id
_TRIES = 100  # at a folder that another process is removing too


@contextlib.contextmanager
def rearranging(root: Path, *, shared: bool = False) -> Iterator[None]:
    """Only one process at a time rearranges a cache; Vis4merError while another does.

    Of two at once, one would undo what the other committed. shared: of a push, which only adds, and
    may do so beside another.
    """
    busy = (
        f"{root}: another `vis4mer cache pool`, `pack`, `unpack`, `merge`, `pull`, `push`, "
        "`repair`, `rm` or `gc` is at work in it; wait for it"
    )
    with held_alone(root / LOCK, otherwise=busy, shared=shared):
        yield


def current_record(cache: Cache, entry_id: str) -> EntryRecord:
    """The record that stands now, whatever others have committed since the cache was opened."""
    record = cache.record(entry_id)
    if not stands(cache, record):
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

    Kept files are linked where they can be; others, and packed ones, are copied and their checksums
    compared. The record that stands afterwards; Vis4merError when somebody else replaced or removed
    the old one meanwhile.
    """
    attempt = secrets.token_hex(6)
    record = record_path(cache.path, old.key)
    folder = cache.path / replace(old, attempt=attempt).folder
    try:
        with storage_errors(folder):
            ensure_groups(cache.path, old.key)
            make_directory(folder, durable=False)
            copy_objects(cache, old, folder, paths=kept, link=True)
            new = replace(write(folder), attempt=attempt, pack=None)
            sync_directories(folder)
        commit_over(cache, old, new)
    finally:
        if not is_committed(record, attempt):
            shutil.rmtree(folder, ignore_errors=True)
    return new


def commit_over(cache: Cache, old: EntryRecord, new: EntryRecord) -> None:
    """Replace the record. Somebody else's commit of this entry in the meantime stands."""

    def look() -> None:
        rest_objects(cache.path, old)
        if not stands(cache, old):
            raise Vis4merError(
                f"video {old.id!r} in {cache.path} was replaced or removed meanwhile; run the "
                "same command again"
            )

    data = record_bytes(cache.path, new, cache.spec)
    with replacing(record_path(cache.path, old.key), look=look) as file:
        file.write(data)


def remove_entries(cache: Cache, ids: Iterable[str]) -> int:
    """Make entries cease to exist, or none when one of them is not there: how many.

    Raises EntryNotFoundError for an id that is not there, Vis4merError while another process
    rearranges the cache.
    """
    with rearranging(cache.path):
        cache.refresh()
        wanted = [cache.record(entry_id).id for entry_id in dict.fromkeys(ids)]
        for entry_id in wanted:
            cache.remove(entry_id)
        cache.write_catalog()
    return len(wanted)


def let_go(path: Path) -> bool:
    """Remove a file, or a folder with all that is in it. False when some of it stays for now: a
    file server keeps what somebody has open."""
    with storage_errors(path):
        for _ in range(_TRIES):
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:  # another process is removing the same
                continue
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                    raise
                return False
            return True
    return not os.path.lexists(path)
