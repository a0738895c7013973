"""Garbage: what killed, beaten and overwritten writers left behind.

An attempt or a pack that no record names is garbage, and so is a temporary file, once it has rested
for a grace period: a writer may still be filling it, a reader may still be reading what was
overwritten. When it is not clear what a record names, everything of its video is kept, and every
pack.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

from .cache import Cache
from .catalog import load_snapshot
from .claims import clear_lapsed
from .errors import CacheFormatError
from .files import is_temporary, read_sealed, storage_errors, unseal
from .keys import ATTEMPT_PATTERN, KEY_PATTERN, fan
from .packs import pack_uses
from .records import PACK_PATTERN, PACKS, EntryRecord, record_path
from .replacement import rearranging
from .workers import CLAIMS, LAPSE_SECONDS

DEFAULT_GRACE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class GarbageReport:
    """What was removed, or would be. `paths` are relative to the cache; an attempt is one path and
    as many files as it holds. num_bytes: that become free; a file that has another name outside the
    garbage, as in attempts that `pooling` made, stays on the disk. dead_bytes: that no record names
    in packs that others are kept in; `vis4mer cache pack` writes such packs anew. num_claims: of
    workers that are gone, or have given no sign for as long."""

    num_files: int
    num_bytes: int
    paths: tuple[str, ...]
    dead_bytes: int
    num_claims: int = 0


@dataclass(frozen=True, kw_only=True)
class _Garbage:
    """An attempt's directory, or one temporary file. files: the status of each file."""

    path: Path
    files: tuple[os.stat_result, ...]
    changed_seconds: float


def collect_garbage(
    cache: Cache, *, grace_seconds: float = DEFAULT_GRACE_SECONDS, dry_run: bool = False
) -> GarbageReport:
    """Remove unreferenced attempts and leftover temporary files older than the grace period, and
    the claims of workers that are gone or have rested for so long (ten minutes at least).

    The age of an attempt counts from the newest change inside it, or from the record that replaced
    it. dry_run: only report. StorageError when the file system refuses, Vis4merError while somebody
    packs: a pack is named by records only when it is whole.
    """
    latest = time.time() - grace_seconds
    removed: list[_Garbage] = []
    with _undisturbed(cache.path, dry_run=dry_run):
        packs, dead_bytes = _packs(cache)
        for garbage in [*_attempts(cache.path), *_temporary_files(cache.path), *packs]:
            if garbage.changed_seconds > latest or _is_named(
                cache.path, garbage.path, latest=latest
            ):
                continue
            if not dry_run:
                _remove(garbage.path)
            removed.append(garbage)
    lapsed = clear_lapsed(
        cache.path, latest=min(latest, time.time() - LAPSE_SECONDS), dry_run=dry_run
    )
    paths = [*(garbage.path for garbage in removed), *lapsed]
    return GarbageReport(
        num_files=sum(len(garbage.files) for garbage in removed) + len(lapsed),
        num_bytes=_freed(file for garbage in removed for file in garbage.files)
        + sum(lapsed.values()),
        paths=tuple(path.relative_to(cache.path).as_posix() for path in paths),
        dead_bytes=dead_bytes,
        num_claims=sum(path.parent.name == CLAIMS for path in lapsed),
    )


def _undisturbed(root: Path, *, dry_run: bool) -> contextlib.AbstractContextManager[None]:
    """Nobody packs meanwhile. A cache without packs needs no lock, and a dry run writes none."""
    return contextlib.nullcontext() if dry_run or not (root / PACKS).is_dir() else rearranging(root)


def _packs(cache: Cache) -> tuple[list[_Garbage], int]:
    """The packs that no record names, and the bytes of the others that none names; no pack while it
    is unclear what some record names."""
    folder = cache.path / PACKS
    if not folder.is_dir() or folder.is_symlink():
        return [], 0
    found = {
        path.name: _Garbage(path=path, files=(stat,), changed_seconds=stat.st_mtime)
        for path in sorted(folder.iterdir())
        if PACK_PATTERN.fullmatch(path.name) and S_ISREG((stat := path.lstat()).st_mode)
    }
    records = _records(cache)  # after the listing: a commit in between is seen
    if records is None:
        return [], 0
    uses = pack_uses(cache.path, records)
    unnamed = [garbage for name, garbage in found.items() if name not in uses]
    return unnamed, sum(use.dead_bytes for use in uses.values())


def _records(cache: Cache) -> list[EntryRecord] | None:
    """Every record of this moment; None when one cannot be read."""
    snapshot = load_snapshot(cache.path)
    if snapshot.damaged:
        return None
    try:
        return [
            EntryRecord.from_json(unseal(row.text, name=key), spec=cache.spec, name=key)
            for key, row in snapshot.rows.items()
        ]
    except CacheFormatError:
        return None


def _attempts(root: Path) -> Iterator[_Garbage]:
    """Every attempt under `videos/`, named by a record or not."""
    for folder in _folders(root / "videos"):
        for path in _folders(folder):
            key, _, attempt = path.name.rpartition(".")
            named_well = KEY_PATTERN.fullmatch(key) and ATTEMPT_PATTERN.fullmatch(attempt)
            if named_well and fan(key) == folder.name:
                with contextlib.suppress(FileNotFoundError):  # its writer removed it just now
                    yield _measured(path)


def _temporary_files(root: Path) -> Iterator[_Garbage]:
    """Temporary files anywhere but inside attempts, which go as a whole."""
    rooms = _folders(root)
    for folder in (root, *rooms, *(inner for room in rooms for inner in _folders(room))):
        for path in sorted(folder.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # renamed to its final name just now
                if is_temporary(path.name) and S_ISREG((stat := path.lstat()).st_mode):
                    yield _Garbage(path=path, files=(stat,), changed_seconds=stat.st_mtime)


def _folders(parent: Path) -> list[Path]:
    """The directories in `parent`, in order; a link is never followed."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.is_symlink())


def _measured(attempt: Path) -> _Garbage:
    found: list[os.stat_result] = []
    changed = attempt.stat().st_mtime
    for folder, names, files in os.walk(attempt):
        for name in (*names, *files):
            stat = (Path(folder) / name).lstat()
            changed = max(changed, stat.st_mtime)
            if name in files:
                found.append(stat)
    return _Garbage(path=attempt, files=tuple(found), changed_seconds=changed)


def _freed(files: Iterable[os.stat_result]) -> int:
    """The bytes of files all of whose names are among these."""
    names = Counter((file.st_dev, file.st_ino, file.st_nlink, file.st_size) for file in files)
    return sum(size for (_, _, links, size), count in names.items() if count >= links)


def _is_named(root: Path, path: Path, *, latest: float) -> bool:
    """Does a record name these files, or did one replace it after `latest`?

    The record is read after the attempt was listed, right before removal: a commit in between is
    seen.
    """
    key, _, attempt = path.name.rpartition(".")
    if not path.is_dir():
        return False
    record = record_path(root, key)
    try:
        content = read_sealed(record)
        loose = content.get("attempt") == attempt and "pack" not in content
        return loose or record.stat().st_mtime > latest
    except FileNotFoundError:
        return False
    except (CacheFormatError, OSError):
        return True


def _remove(path: Path) -> None:
    with storage_errors(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
