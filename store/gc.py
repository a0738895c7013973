"""Garbage: what killed, beaten and overwritten writers left behind.

An attempt or a pack that no record names is garbage, and so is a temporary file and, within an
attempt, an object that its record does not list, once it has rested for a grace period: a writer
may still be filling it, a reader may still be reading what was overwritten. When it is not clear
what a record names, everything of its video is kept, and every pack.

Ages are told by the clock that dates the files, of a file server maybe: it may be hours away from
this machine's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from stat import S_ISREG

from .cache import Cache
from .catalog import is_catalog_behind, load_snapshot
from .claims import clear_lapsed
from .errors import CacheFormatError
from .files import is_temporary, new_file, read_sealed, storage_errors, unseal
from .keys import ATTEMPT_PATTERN, KEY_PATTERN, fan
from .packs import pack_uses
from .records import OBJECT_PATTERN, PACK_PATTERN, PACKS, EntryRecord, record_path
from .replacement import let_go, rearranging
from .workers import CLAIMS, LAPSE_SECONDS

DEFAULT_GRACE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class GarbageReport:
    """What was removed, or would be. `paths` are relative to the cache; an attempt is one path and
    as many files as it holds. num_bytes: that become free; a file that has another name outside the
    garbage, as in attempts that `pooling` made, stays on the disk. dead_bytes: that no record names
    in packs that others are kept in; `vis4mer cache pack` writes such packs anew. num_claims: of
    workers that are gone, or have given no sign for as long. kept: paths of which something stays
    for now, because somebody has it open on a file server; the next run takes it up."""

    num_files: int
    num_bytes: int
    paths: tuple[str, ...]
    dead_bytes: int
    num_claims: int = 0
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Garbage:
    """An attempt's directory, or one temporary file. files: the status of each file."""

    path: Path
    files: tuple[os.stat_result, ...]
    changed_seconds: float


def collect_garbage(
    cache: Cache, *, grace_seconds: float = DEFAULT_GRACE_SECONDS, dry_run: bool = False
) -> GarbageReport:
    """Remove unreferenced attempts and leftover files older than the grace period, and the claims
    of workers that are gone or have rested for so long (ten minutes at least). Brings the catalog
    up to date.

    The age of an attempt counts from the newest change inside it, or from when its record was
    replaced or removed. dry_run: only report, by this machine's clock, for nothing is written.
    StorageError when the file system refuses, Vis4merError while another process rearranges the
    cache, which may be about to name what it has found there.
    """
    removed: list[_Garbage] = []
    kept: list[Path] = []
    with contextlib.nullcontext() if dry_run else rearranging(cache.path):
        now = time.time() if dry_run else _clock_of(cache.path)
        latest = now - grace_seconds
        packs, dead_bytes = _packs(cache)
        # Each is measured right before it goes.
        for garbage in chain(packs, _attempts(cache, latest), _temporary_files(cache.path)):
            if garbage.changed_seconds > latest:
                continue
            if dry_run or let_go(garbage.path):
                removed.append(garbage)
            else:
                kept.append(garbage.path)
    lapsed = clear_lapsed(cache.path, latest=min(latest, now - LAPSE_SECONDS), dry_run=dry_run)
    if not dry_run and is_catalog_behind(cache.path):  # whoever was to write it is gone, maybe
        cache.write_catalog()
    return GarbageReport(
        num_files=sum(len(garbage.files) for garbage in removed) + len(lapsed),
        num_bytes=_freed(file for garbage in removed for file in garbage.files)
        + sum(lapsed.values()),
        paths=_names(cache.path, [*(garbage.path for garbage in removed), *lapsed]),
        dead_bytes=dead_bytes,
        num_claims=sum(path.parent.name == CLAIMS for path in lapsed),
        kept=_names(cache.path, kept),
    )


def _names(root: Path, paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(path.relative_to(root).as_posix() for path in paths)


def _clock_of(root: Path) -> float:
    """Now, as the file system that the cache lies on tells it."""
    path = root / f".gc.{secrets.token_hex(6)}.tmp"
    with storage_errors(path):
        try:
            with new_file(path) as file:
                file.write(b"now")
                file.flush()
                os.fsync(file.fileno())
                return os.fstat(file.fileno()).st_mtime
        finally:
            path.unlink(missing_ok=True)


def _packs(cache: Cache) -> tuple[list[_Garbage], int]:
    """The packs that no record names, and the bytes of the others that none names; no pack while it
    is unclear what some record names."""
    folder = cache.path / PACKS
    if not folder.is_dir() or folder.is_symlink():
        return [], 0
    found: dict[str, _Garbage] = {}
    for path in _inside(folder):
        with contextlib.suppress(FileNotFoundError):
            if PACK_PATTERN.fullmatch(path.name) and S_ISREG((stat := path.lstat()).st_mode):
                found[path.name] = _file(path, stat)
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


def _attempts(cache: Cache, latest: float) -> Iterator[_Garbage]:
    """What of `videos/` no record names: whole attempts, and single files of those that stand."""
    for folder in _folders(cache.path / "videos"):
        for path in _folders(folder):
            key, _, attempt = path.name.rpartition(".")
            named_well = KEY_PATTERN.fullmatch(key) and ATTEMPT_PATTERN.fullmatch(attempt)
            if named_well and fan(key) == folder.name:
                with contextlib.suppress(FileNotFoundError):  # its writer removed it just now
                    yield from _of_attempt(cache, path, latest=latest)


def _of_attempt(cache: Cache, attempt: Path, *, latest: float) -> Iterator[_Garbage]:
    """The record is read after the attempt was measured, right before removal: a commit in between
    is seen. Nothing goes while it is unclear what it says, or was replaced after `latest`."""
    key, _, name = attempt.name.rpartition(".")
    measured, path = _measured(attempt), record_path(cache.path, key)
    try:
        content = read_sealed(path)
        if path.stat().st_mtime > latest:
            return
        if content.get("attempt") != name or "pack" in content:
            yield measured
            return
        record = EntryRecord.from_json(content, spec=cache.spec, name=str(path))
    except FileNotFoundError:
        yield measured
        return
    except (CacheFormatError, OSError):
        return
    yield from _unlisted(attempt, record)


def _unlisted(attempt: Path, record: EntryRecord) -> Iterator[_Garbage]:
    """What killed pulls have left in an attempt that stands: temporary files, and objects that they
    did not come to commit."""
    for folder, _, files in os.walk(attempt):
        for path in (Path(folder, name) for name in sorted(files)):
            below = path.relative_to(attempt).as_posix()
            is_object = OBJECT_PATTERN.fullmatch(below) is not None
            if below not in record.objects and (is_object or is_temporary(path.name)):
                with contextlib.suppress(FileNotFoundError):
                    if S_ISREG((stat := path.lstat()).st_mode):
                        yield _file(path, stat)


def _temporary_files(root: Path) -> Iterator[_Garbage]:
    """Temporary files anywhere but inside attempts."""
    rooms = _folders(root)
    for folder in (root, *rooms, *(inner for room in rooms for inner in _folders(room))):
        for path in _inside(folder):
            with contextlib.suppress(FileNotFoundError):  # renamed to its final name just now
                if is_temporary(path.name) and S_ISREG((stat := path.lstat()).st_mode):
                    yield _file(path, stat)


def _file(path: Path, stat: os.stat_result) -> _Garbage:
    return _Garbage(path=path, files=(stat,), changed_seconds=stat.st_mtime)


def _inside(folder: Path) -> list[Path]:
    """What a folder holds, in order; nothing when it was removed just now."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def _folders(parent: Path) -> list[Path]:
    """The directories in `parent`, in order; a link is never followed."""
    if not parent.is_dir():
        return []
    return [path for path in _inside(parent) if path.is_dir() and not path.is_symlink()]


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
