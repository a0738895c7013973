"""Objects of an entry as they arrive from a place: which to ask for together, and whether they are
what their record says. Knows no cache: files below the folder of one attempt."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..errors import DamagedEntryError
from ..files import is_temporary, replacing
from ..layout import crc32c
from ..records import EntryRecord, StoredObject

_SMALL_BYTES = 1 << 20  # smaller objects that lie together in a pack are fetched together
_BLOCK_BYTES = 4 << 20


def remove_unfinished_in(folder: Path) -> None:
    """What a killed pull was writing into an attempt; nobody else pulls now."""
    for path in folder.rglob(".*"):
        if is_temporary(path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def is_sound(path: Path, stored: StoredObject) -> bool:
    """Is an object here already, left by a pull that was cut off, with the recorded bytes?"""
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except OSError:
        return False
    with file:
        if os.fstat(file.fileno()).st_size != stored.size:
            return False
        found = 0
        with contextlib.suppress(OSError):  # a directory
            while block := file.read(_BLOCK_BYTES):
                found = crc32c(block, found)
    return found == stored.crc32c


def located(source: EntryRecord, path: str) -> tuple[str, int]:
    """(key, first byte) of an object at the place."""
    if source.pack is None:
        return f"{source.folder}/{path}", 0
    return source.pack.path, source.pack.offsets[path]


def runs_of(source: EntryRecord, paths: Sequence[str]) -> Iterator[list[str]]:
    """The objects to fetch, in groups that one request may fetch."""
    if source.pack is None:
        yield from ([path] for path in paths)
        return
    offsets = source.pack.offsets
    run: list[str] = []
    end = run_bytes = 0
    for path in sorted(paths, key=offsets.__getitem__):
        size = source.objects[path].size
        joins = run and offsets[path] - end in range(64) and run_bytes + size <= _SMALL_BYTES
        if run and not joins:
            yield run
            run, run_bytes = [], 0
        run.append(path)
        run_bytes += size
        end = offsets[path] + size
    if run:
        yield run


class Summing(RawIOBase):
    """A file that is written to, and the size and crc32c of what was."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        super().__init__()
        self._write = write
        self.size = self.crc32c = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(data)
        self.size += len(data)
        self.crc32c = crc32c(data, self.crc32c)
        return len(data)


@contextlib.contextmanager
def checked_file(
    path: Path, stored: StoredObject, *, key: str, entry_id: str
) -> Iterator[BinaryIO]:
    """A file to write an object into, which gets its name only if it is what its record says. The
    name is made durable with the attempt's others."""
    with replacing(path, durable=False) as file:
        summing = Summing(file.write)
        yield cast(BinaryIO, summing)
        if (summing.size, summing.crc32c) != (stored.size, stored.crc32c):
            raise DamagedEntryError(
                f"{key} (video {entry_id!r}): {summing.size} bytes with the crc32c "
                f"{summing.crc32c:08x} came, but the record says {stored.size} and "
                f"{stored.crc32c:08x}"
            )
