"""Garbage: what killed, beaten and overwritten writers left behind.

An attempt that no record names is garbage, and so is a temporary file, once it has rested for a
grace period: a writer may still be filling it, a reader may still be reading what was overwritten.
When it is not clear what a record names, everything of its video is kept.
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
from .errors import CacheFormatError
from .files import is_temporary, read_sealed, storage_errors
from .keys import ATTEMPT_PATTERN, KEY_PATTERN, fan
from .records import record_path

DEFAULT_GRACE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class GarbageReport:
    """What was removed, or would be. `paths` are relative to the cache; an attempt is one path and
    as many files as it holds. num_bytes: that become free; a file that has another name outside the
    garbage, as in attempts that `pooling` made, stays on the disk."""

    num_files: int
    num_bytes: int
    paths: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Garbage:
    """An attempt's directory, or one temporary file. files: the status of each file."""

    path: Path
    files: tuple[os.stat_result, ...]
    changed_seconds: float


def collect_garbage(
    cache: Cache, *, grace_seconds: float = DEFAULT_GRACE_SECONDS, dry_run: bool = False
) -> GarbageReport:
    """Remove unreferenced attempts and leftover temporary files older than the grace period.

    The age of an attempt counts from the newest change inside it, or from the record that replaced
    it. dry_run: only report. StorageError when the file system refuses.
    """
    latest = time.time() - grace_seconds
    found = [*_attempts(cache.path), *_temporary_files(cache.path)]
    removed: list[_Garbage] = []
    for garbage in found:
        if garbage.changed_seconds > latest or _is_named(cache.path, garbage.path, latest=latest):
            continue
        if not dry_run:
            _remove(garbage.path)
        removed.append(garbage)
    return GarbageReport(
        num_files=sum(len(garbage.files) for garbage in removed),
        num_bytes=_freed(file for garbage in removed for file in garbage.files),
        paths=tuple(garbage.path.relative_to(cache.path).as_posix() for garbage in removed),
    )


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
    """Does a record name this attempt, or did one replace it after `latest`?

    The record is read after the attempt was listed, right before removal: a commit in between is
    seen.
    """
    key, _, attempt = path.name.rpartition(".")
    if not path.is_dir():
        return False
    record = record_path(root, key)
    try:
        return bool(
            read_sealed(record).get("attempt") == attempt or record.stat().st_mtime > latest
        )
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
