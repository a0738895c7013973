"""What a cache is read from: files under its directory, or a copy of those that lie elsewhere.

    with backing.open(record, "patch/c/0/0/0") as object:
        object.fill([memoryview(buffer)], offset=0)

The one place that knows where the bytes of an object lie. Nothing here takes a lock or writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Protocol

from .catalog import Snapshot, load_snapshot
from .errors import DamagedEntryError
from .layout import crc32c
from .records import EntryRecord

_BLOCK_BYTES = 8 << 20


class Backing(Protocol):
    """What `Cache` asks of the place that it is read from. Any number of threads may ask."""

    def snapshot(self) -> Snapshot:
        """All records of this moment."""
        ...

    def require(self, record: EntryRecord, path: str) -> None:
        """DamagedEntryError unless an object of the record is there and of the recorded size."""
        ...

    def open(self, record: EntryRecord, path: str) -> ObjectFile:
        """An object of the record; DamagedEntryError as `require`."""
        ...

    def zarr_folder(self, record: EntryRecord) -> Path:
        """A directory that any Zarr reader reads the entry from, whatever codecs it has."""
        ...


class ObjectFile:
    """One object, open for reading: `size` bytes of a file from `start` on. A context manager.

    name: of the object and its video, for errors.
    """

    def __init__(self, path: Path, *, start: int, size: int, name: str) -> None:
        self.name = name
        self.size = size
        self._start = start
        with damage(name):
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def __enter__(self) -> ObjectFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def fill(self, parts: list[memoryview], offset: int) -> None:
        """Read from `offset` until every part is full; one call may give less than was asked."""
        while parts:
            with damage(self.name):
                got = os.preadv(self._fd, parts, self._start + offset)
            if got == 0:
                raise DamagedEntryError(f"{self.name}: the file ends within its frames")
            offset += got
            parts = _unfilled(parts, got)

    def blocks(self) -> Iterator[memoryview]:
        """All bytes in order, a few megabytes at a time; each is good until the next."""
        buffer = memoryview(bytearray(min(self.size, _BLOCK_BYTES)))
        for offset in range(0, self.size, _BLOCK_BYTES):
            block = buffer[: min(_BLOCK_BYTES, self.size - offset)]
            self.fill([block], offset)
            yield block

    def read(self) -> bytes:
        """All bytes; for small objects."""
        return b"".join(bytes(block) for block in self.blocks())

    def require_crc32c(self, expected: int) -> None:
        """Raise DamagedEntryError unless the bytes have this crc32c."""
        found = 0
        for block in self.blocks():
            found = crc32c(bytes(block), found)
        if found != expected:
            raise DamagedEntryError(
                f"{self.name}: its bytes have the crc32c {found:08x}, but the record says "
                f"{expected:08x}"
            )


class LocalBacking:
    """A cache's own directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def snapshot(self) -> Snapshot:
        return load_snapshot(self._root)

    def require(self, record: EntryRecord, path: str) -> None:
        require_file(self._path(record, path), record.objects[path].size, record.id)

    def open(self, record: EntryRecord, path: str) -> ObjectFile:
        self.require(record, path)
        file = self._path(record, path)
        size = record.objects[path].size
        return ObjectFile(file, start=0, size=size, name=shown(file, record.id))

    def zarr_folder(self, record: EntryRecord) -> Path:
        return self._root / record.folder

    def _path(self, record: EntryRecord, path: str) -> Path:
        return self._root / record.folder / path


def require_file(path: Path, expected_size: int, entry_id: str) -> None:
    """Raise DamagedEntryError unless `path` is a plain file of `expected_size` bytes."""
    name = shown(path, entry_id)
    with damage(name):
        stat = os.lstat(path)
    if not S_ISREG(stat.st_mode):
        raise DamagedEntryError(f"{name}: not a plain file")
    if stat.st_size != expected_size:
        raise DamagedEntryError(
            f"{name}: {stat.st_size} bytes, but the record says {expected_size}; the file is torn"
        )


def shown(path: Path, entry_id: str) -> str:
    """An object as errors name it."""
    return f"{path} (video {entry_id!r})"


@contextlib.contextmanager
def damage(name: str) -> Iterator[None]:
    """Turn an operating system's refusal into an error that names the file and the video."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DamagedEntryError):
            raise
        raise DamagedEntryError(
            f"{name}: cannot be read ({error.strerror}); "
            "`vis4mer cache verify` lists what is damaged"
        ) from error


def _unfilled(parts: list[memoryview], num_bytes: int) -> list[memoryview]:
    """What is left of `parts` when their first bytes have been filled."""
    for i, part in enumerate(parts):
        if num_bytes < part.nbytes:
            return [part[num_bytes:], *parts[i + 1 :]]
        num_bytes -= part.nbytes
    return []
