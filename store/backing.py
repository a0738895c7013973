"""What a cache is read from: files under its directory, or a copy of those that lie elsewhere.

    with backing.open(record, "patch/c/0/0/0") as object:
        object.fill([memoryview(buffer)], offset=0)

The one place that knows where the bytes of an object lie: in a file of its own, or within a pack.
Nothing here takes a lock or writes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from stat import S_ISREG
from typing import Protocol

from .catalog import Snapshot, load_snapshot
from .errors import SEE_VERIFY, CacheFormatError, DamagedEntryError
from .failures import FAILURES, FailureRecord
from .files import JSON, linked, read_sealed_in
from .layout import crc32c
from .records import EntryRecord, record_path
from .tasks import TASKS, table_path

_BLOCK_BYTES = 8 << 20


class Backing(Protocol):
    """What `Cache` asks of the place that it is read from. Any number of threads may ask.

    name: of the cache, for people: its path, or its address without anything secret.
    readers: threads that are worth while at least, so that one does not wait for the other.
    """

    name: str
    readers: int

    def snapshot(self) -> Snapshot:
        """All records of this moment."""
        ...

    def late_record(self, key: str) -> JSON:
        """The content of a record that the snapshot lacks; FileNotFoundError when there is none."""
        ...

    def tasks(self) -> list[str]:
        """References of the task tables, sorted."""
        ...

    def table(self, reference: str) -> JSON:
        """The content of a task table; FileNotFoundError when there is none."""
        ...

    def failures(self) -> list[FailureRecord]:
        """What went wrong so far, in any order, without what cannot be read."""
        ...

    def prepare(self, record: EntryRecord, paths: Sequence[str]) -> None:
        """These objects are about to be read: what is far away is fetched, several at a time."""
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
    """One object, open for reading: `size` bytes of an open file from `start` on. A context manager
    that closes the file.

    name: of the object and its video, for errors.
    """

    def __init__(self, fd: int, *, start: int, size: int, name: str) -> None:
        self.name = name
        self.size = size
        self._start = start
        self._fd = fd

    @classmethod
    def at(cls, path: Path, *, start: int, size: int, name: str) -> ObjectFile:
        """The object in the file at `path`."""
        with damage(name):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return cls(fd, start=start, size=size, name=name)

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
            found = crc32c(block, found)
        if found != expected:
            raise DamagedEntryError(
                f"{self.name}: its bytes have the crc32c {found:08x}, but the record says "
                f"{expected:08x}"
            )


class LocalBacking:
    """A cache's own directory. A packed object is read from its place within the pack, by the same
    calls as a file of its own.

    The directory may be a link; none within it is followed, for it may be somebody else's.
    """

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self.readers = 1
        self._root = root
        self._unlinked: set[Path] = set()  # folders of objects that were seen to be no links

    def snapshot(self) -> Snapshot:
        return load_snapshot(self._root)

    def late_record(self, key: str) -> JSON:
        return read_sealed_in(self._root, record_path(self._root, key))

    def tasks(self) -> list[str]:
        found = (self._root / TASKS).glob("*/*.json")
        return sorted(f"{path.parent.name}/{path.stem}" for path in found)

    def table(self, reference: str) -> JSON:
        return read_sealed_in(self._root, self._root / table_path(reference))

    def failures(self) -> list[FailureRecord]:
        records: list[FailureRecord] = []
        for path in (self._root / FAILURES).glob("*/*.json"):
            # The video has just succeeded; or it is damaged, which stops nothing.
            with contextlib.suppress(FileNotFoundError, CacheFormatError):
                content = read_sealed_in(self._root, path)
                records.append(FailureRecord.from_json(content, name=str(path)))
        return records

    def prepare(self, record: EntryRecord, paths: Sequence[str]) -> None:
        pass

    def require(self, record: EntryRecord, path: str) -> None:
        if record.pack is None:
            require_file(self._path(record, path), record.objects[path].size, record.id)
        else:
            end = record.pack.offsets[path] + record.objects[path].size
            pack, name = self._root / record.pack.path, _packed(self._root, record, path)
            self._require_unlinked(pack, name)
            _require_room(pack, end, name)

    def open(self, record: EntryRecord, path: str) -> ObjectFile:
        self.require(record, path)
        size = record.objects[path].size
        if record.pack is not None:
            name = _packed(self._root, record, path)
            start = record.pack.offsets[path]
            return ObjectFile.at(self._root / record.pack.path, start=start, size=size, name=name)
        file = self._path(record, path)
        return ObjectFile.at(file, start=0, size=size, name=shown(file, record.id))

    def zarr_folder(self, record: EntryRecord) -> Path:
        if record.pack is not None:
            raise DamagedEntryError(
                f"{self._root / record.pack.path} (video {record.id!r}): holds an array of other "
                "codecs than ours, which is never packed; extract the video again"
            )
        return self._root / record.folder

    def _path(self, record: EntryRecord, path: str) -> Path:
        """The file of a loose object; DamagedEntryError when a link stands among its folders."""
        file = self._root / record.folder / path
        self._require_unlinked(file, shown(file, record.id))
        return file

    def _require_unlinked(self, file: Path, name: str) -> None:
        """DamagedEntryError when a link stands among the folders of a file; each is asked once."""
        asked: list[Path] = []
        folder = file.parent
        while folder != self._root and folder not in self._unlinked:
            if folder.is_symlink():
                raise DamagedEntryError(f"{name}: {linked(folder)}")
            asked.append(folder)
            folder = folder.parent
        self._unlinked.update(asked)


def _packed(root: Path, record: EntryRecord, path: str) -> str:
    """A packed object as errors name it."""
    pack = record.pack.path if record.pack else ""
    return f"{root / pack}: {path} (video {record.id!r})"


def _require_room(pack: Path, end: int, name: str) -> None:
    """Raise DamagedEntryError unless `pack` is a plain file of at least `end` bytes."""
    with damage(name):
        stat = os.lstat(pack)
    if not S_ISREG(stat.st_mode):
        raise DamagedEntryError(f"{name}: the pack is not a plain file")
    if stat.st_size < end:
        raise DamagedEntryError(
            f"{name}: ends at byte {end}, but the pack has {stat.st_size}; the file is torn"
        )


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
            f"{name}: cannot be read ({error.strerror}); {SEE_VERIFY}"
        ) from error


def _unfilled(parts: list[memoryview], num_bytes: int) -> list[memoryview]:
    """What is left of `parts` when their first bytes have been filled."""
    for i, part in enumerate(parts):
        if num_bytes < part.nbytes:
            return [part[num_bytes:], *parts[i + 1 :]]
        num_bytes -= part.nbytes
    return []
