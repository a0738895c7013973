"""A directory of bounded size for copies of what lies far away: the least recently used go first.

    shelf = Shelf(folder, limit_bytes=100 * 10**9)
    fd = shelf.open(name, size)                  # a descriptor, or None when it is not there
    fd = shelf.add(name, write)                  # write(file) puts the bytes there

Several processes share it without a word to each other: a file is written beside and renamed, and
whoever reads one holds it open, so that nothing is lost when another removes it. The whole of it
may be deleted at any moment. What is in it is not believed: who opens a file checks its bytes.
Knows neither places nor caches.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

from ..errors import UsageError
from ..files import StorageError, is_temporary, storage_errors
from ..wording import bytes_said

FOLDER_VARIABLE, SIZE_VARIABLE = "VIS4MER_CACHE_DIR", "VIS4MER_CACHE_SIZE"
_MOST_BYTES = 100 * 10**9  # unless SIZE_VARIABLE says otherwise
_KEPT = 0.9  # of the limit, when something has to go: room for what comes next
_UNSEEN = 0.05  # of the limit that this process adds before it looks what others did
_UNFINISHED_SECONDS = 3600.0  # without a change: the writer of a file has ended
_NAME = re.compile(r"[0-9a-f]{8,128}")
_TRIES, _PAUSE_SECONDS = 50, 0.002  # to make a file in a folder that somebody deletes


@dataclass(frozen=True, kw_only=True)
class ShelfUse:
    """How much of a shelf is used, in bytes."""

    folder: Path
    num_bytes: int
    limit_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """One file of the shelf. used_ns: when it was last opened."""

    path: str
    size: int
    used_ns: int


def default_shelf() -> Shelf:
    """The shelf of this user: $VIS4MER_CACHE_DIR, or ~/.cache/vis4mer; of $VIS4MER_CACHE_SIZE
    (such as 200GB), or 100 GB, at most half of what is free. UsageError for a size that is none, or
    where there is no home.
    """
    given = os.environ.get(FOLDER_VARIABLE)
    try:
        folder = Path(given) if given else Path.home() / ".cache" / "vis4mer"
    except RuntimeError as error:  # such as a container's user whom nobody knows
        raise UsageError(
            f"this user has no home directory; set {FOLDER_VARIABLE} to one for copies of remote "
            "objects"
        ) from error
    size = os.environ.get(SIZE_VARIABLE)
    return Shelf(folder, limit_bytes=_parse_size(size) if size else None)


def _parse_size(text: str) -> int:
    size = bytes_said(text)
    if size is None:
        raise UsageError(f"{SIZE_VARIABLE}={text[:40]!r}: expected a size such as 200GB")
    return size


class Shelf:
    """Files by name (8 to 128 hex digits) below `folder`, which is made when it is needed.

    limit_bytes: None for 100 GB, at most half of what is free. What is being written comes on top.
    Any number of threads may use it.
    """

    def __init__(self, folder: Path, *, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self._files = folder / "objects"
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._used_bytes: int | None = None  # when last counted
        self._added_bytes = 0  # since then

    @property
    def limit_bytes(self) -> int:
        if self._limit_bytes is None:
            used = sum(kept.size for kept in self._scan())
            self._limit_bytes = min(_MOST_BYTES, (_free_bytes(self.folder) + used) // 2)
        return self._limit_bytes

    def use(self) -> ShelfUse:
        """Counted now, files of other processes among it."""
        num_bytes = sum(kept.size for kept in self._scan())
        return ShelfUse(folder=self.folder, num_bytes=num_bytes, limit_bytes=self.limit_bytes)

    def has(self, name: str, size: int) -> bool:
        """Whether a file of this size was there a moment ago."""
        try:
            return self._path(name).lstat().st_size == size
        except OSError:
            return False

    def open(self, name: str, size: int) -> int | None:
        """A descriptor of a file, which then counts as used; None unless it is there and of this
        size."""
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # not there, or nothing that may be read: fetched anew
            return None
        stat = os.fstat(fd)
        if not S_ISREG(stat.st_mode) or stat.st_size != size:
            os.close(fd)
            return None
        with contextlib.suppress(OSError):  # another user's: it keeps its time
            os.utime(fd)
        return fd

    def add(self, name: str, write: Callable[[BinaryIO], None]) -> int:
        """A descriptor of a new file with what `write` puts into it, in place of what was there.

        Nothing is left when `write` raises. Still good when the file is removed at once. Raises
        StorageError when the disk refuses.
        """
        path = self._path(name)
        with self._errors(), self._beside(path) as file:
            write(file)
            file.flush()
            size = file.seek(0, os.SEEK_END)
            fd = os.dup(file.fileno())
            try:
                with contextlib.suppress(FileNotFoundError):  # all was deleted meanwhile
                    Path(file.name).replace(path)
                self._make_room(size)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a file on a shelf")
        return self._files / name[:2] / name[2:]

    @contextlib.contextmanager
    def _beside(self, path: Path) -> Iterator[BinaryIO]:
        """A new file beside `path` to write and read, which is gone at the end if still there."""
        beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        for tried in range(1, _TRIES + 1):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = beside.open("x+b")
                break
            except (FileNotFoundError, FileExistsError):  # somebody deletes all at this moment
                if tried == _TRIES:
                    raise
                time.sleep(_PAUSE_SECONDS)
        try:
            with file:
                yield file
        finally:
            beside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with storage_errors(self.folder):
                yield
        except StorageError as error:
            raise StorageError(
                f"{error}; ${FOLDER_VARIABLE} and ${SIZE_VARIABLE} say where copies of remote "
                "objects go, and how much of them"
            ) from error

    def _make_room(self, added_bytes: int) -> None:
        """Remove what was used least recently, if there is too much with what has just come."""
        with self._lock:
            self._added_bytes += added_bytes
            unseen = self._added_bytes > _UNSEEN * self.limit_bytes
            used = self._used_bytes
            if used is None or unseen or used + self._added_bytes > self.limit_bytes:
                self._used_bytes = self._remove_oldest()
                self._added_bytes = 0

    def _remove_oldest(self) -> int:
        """Bytes that are left."""
        files = list(self._scan())
        used = sum(kept.size for kept in files)
        if used <= self.limit_bytes:
            return used
        newest_last = sorted(files, key=lambda kept: kept.used_ns)
        for kept in newest_last[:-1]:
            with contextlib.suppress(OSError):  # removed already, or another user's
                Path(kept.path).unlink()
                used -= kept.size
            if used <= _KEPT * self.limit_bytes:
                break
        return used

    def _scan(self) -> Iterator[_Kept]:
        """All files; what a killed process left unfinished is removed."""
        for folder in _entries(self._files):
            for entry in _entries(folder.path):
                try:
                    stat = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if not S_ISREG(stat.st_mode):
                    continue
                if is_temporary(entry.name):
                    _remove_unfinished(entry.path, stat)
                else:
                    yield _Kept(path=entry.path, size=stat.st_size, used_ns=stat.st_mtime_ns)


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What lies in a folder; nothing when it is none, or has just been deleted."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _remove_unfinished(path: str, stat: os.stat_result) -> None:
    if time.time() - stat.st_mtime > _UNFINISHED_SECONDS:
        with contextlib.suppress(OSError):
            Path(path).unlink()


def _free_bytes(folder: Path) -> int:
    """Of the disk that a folder lies on, or will."""
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
