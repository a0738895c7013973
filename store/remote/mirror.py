"""A cache at a place, read through copies of whole objects on a shelf here.

    cache = open_remote("s3://bucket/caches/lvu")
    cache.read("clip.mp4", "patch", frames=range(0, 60))     # fetches a shard, keeps it

An object is on the shelf under a digest of where it came from and what its record says of it, and
only once its bytes have the recorded crc32c; what a process finds there is checked once before it
is believed. Whatever goes missing there is fetched again. Nothing is ever written to the place.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from ..backing import ObjectFile
from ..cache import Cache
from ..catalog import Snapshot
from ..errors import CacheFormatError, DamagedEntryError, UsageError
from ..failures import FailureRecord
from ..files import JSON, canonical_json, unseal
from ..layout import array_metadata, crc32c
from ..records import ArrayRecord, EntryRecord
from ..transfer.contents import Contents, read_bounded, read_contents, table_key
from .place import MissingObjectError, Place, RemoteError, TornObjectError, open_place
from .shelf import Shelf, default_shelf

READERS = 16  # clips that are read at once, at least: each mostly waits for an answer
_FETCHERS = 16  # objects of clips that are on their way at once
_FAILURES = "failures"


def open_remote(url: str, *, shelf: Shelf | None = None) -> Cache:
    """The cache at an address, for reading. UsageError when none is there."""
    return cache_at(open_place(url), shelf=shelf, address=url)


def cache_at(place: Place, *, shelf: Shelf | None = None, address: str | None = None) -> Cache:
    """The cache at a place. address: which worker processes open again; default the place's."""
    contents = read_contents(place)
    backing = MirrorBacking(contents, shelf or default_shelf())
    return Cache(address or place.url, contents.spec, backing=backing)


def mirror_of(cache: Cache) -> MirrorBacking:
    """What a remote cache is read from."""
    if not isinstance(cache.backing, MirrorBacking):
        raise ValueError(f"{cache.name} is not remote")
    return cache.backing


class MirrorBacking:
    """What a cache at a place is read from; see `Backing`.

    fresh: for a check of the place itself, with a shelf of its own: nothing is taken as known that
    has not been read there.
    """

    def __init__(self, contents: Contents, shelf: Shelf, *, fresh: bool = False) -> None:
        self.name = contents.place.url
        self.readers = READERS
        self.place = contents.place
        self._contents = contents
        self._given = False  # whether a snapshot was taken of them
        self.shelf = shelf
        self._fresh = fresh
        self._process = os.getpid()
        self._tables: dict[str, JSON] = {}
        self._believed: dict[str, tuple[int, int]] = {}  # name → device and inode of sound bytes
        self._turns: dict[str, _Turn] = {}
        self._lock = threading.Lock()
        self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch")

    def snapshot(self) -> Snapshot:
        with self._lock:
            if self._given:
                self._contents = read_contents(self.place)
                self._tables.clear()
            self._given = True
            contents = self._contents
        return Snapshot(rows=dict(contents.rows), damaged=list(contents.damaged))

    def late_record(self, key: str) -> JSON:
        """The snapshot is all there is: asking for each missing one would take a request each."""
        raise FileNotFoundError(key)

    def tasks(self) -> list[str]:
        return sorted(self._contents.tasks)

    def table(self, reference: str) -> JSON:
        with self._lock:
            known = self._tables.get(reference)
        if known is None:
            key = table_key(reference)
            known = unseal(read_bounded(self.place, key), name=f"{self.name}/{key}")
            self._tables[reference] = known
        return known

    def failures(self) -> list[FailureRecord]:
        if not self.place.can_list:
            return []
        found: list[FailureRecord] = []
        for placed in self.place.list(_FAILURES):
            name = f"{self.name}/{placed.key}"
            # The video has just succeeded; or it is damaged, which stops nothing.
            with contextlib.suppress(MissingObjectError, CacheFormatError):
                content = unseal(read_bounded(self.place, placed.key), name=name)
                found.append(FailureRecord.from_json(content, name=name))
        return found

    def prepare(self, record: EntryRecord, paths: Sequence[str]) -> None:
        lacking = [path for path in paths if not self._has(record, path)]
        if len(lacking) > 1:
            self._require_own_process()
            coming = [self._fetchers.submit(self._bring, record, path) for path in lacking]
            try:
                for each in coming:
                    each.result()
            finally:
                for each in coming:  # of no use to anybody once one has failed
                    each.cancel()

    def require(self, record: EntryRecord, path: str) -> None:
        """What was sound a moment ago will be fetched again if it is gone from the shelf."""
        if self._name(record, path) not in self._believed:
            self._bring(record, path)

    def open(self, record: EntryRecord, path: str) -> ObjectFile:
        if not self._fresh and (data := _known_metadata(record, path)) is not None:
            return _Known(data, name=self.shown(record, path))
        name, size = self._name(record, path), record.objects[path].size
        shown = self.shown(record, path)
        fd = self.shelf.open(name, size)
        if fd is not None and self._believed.get(name) == _identity(fd):
            return ObjectFile(fd, start=0, size=size, name=shown)
        with self._turn(name):
            if fd is None:  # maybe fetched by another thread while this one waited
                fd = self.shelf.open(name, size)
            if fd is None or not _is_sound(fd, record, path):
                fd = self._fetch(record, path, name=name)
            self._believed[name] = _identity(fd)
        return ObjectFile(fd, start=0, size=size, name=shown)

    def zarr_folder(self, record: EntryRecord) -> Path:
        raise UsageError(
            f"{self.located(record, '')[0]} (video {record.id!r}): holds an array of other codecs "
            f"than ours, which is read from a directory alone; `vis4mer cache pull {self.name} DIR`"
        )

    # -----------------------------------------------------------------------------------------

    def _has(self, record: EntryRecord, path: str) -> bool:
        return self.shelf.has(self._name(record, path), record.objects[path].size)

    def _bring(self, record: EntryRecord, path: str) -> None:
        with self.open(record, path):
            pass

    def _fetch(self, record: EntryRecord, path: str, *, name: str) -> int:
        """Fetch an object onto the shelf: a descriptor of it."""
        self._require_own_process()
        stored = record.objects[path]
        if stored.size > self.shelf.limit_bytes:
            raise UsageError(
                f"{self.shown(record, path)}: {stored.size} bytes, but copies of remote objects "
                f"may take {self.shelf.limit_bytes}; set VIS4MER_CACHE_SIZE, or pull the cache"
            )
        key, start = self.located(record, path)

        def write(file: BinaryIO) -> None:
            self.place.fetch(key, file, start=start, length=stored.size)
            file.flush()
            found = ObjectFile(file.fileno(), start=0, size=stored.size, name=shown)
            found.require_crc32c(stored.crc32c)

        shown = self.shown(record, path)
        try:
            with contextlib.suppress(DamagedEntryError):  # once more: it may be the connection's
                return self.shelf.add(name, write)
            return self.shelf.add(name, write)
        except (DamagedEntryError, MissingObjectError, TornObjectError) as error:
            raise DamagedEntryError(self._why(record, path, error)) from error

    def _why(self, record: EntryRecord, path: str, error: Exception) -> str:
        """What is wrong with an object; that its record is an old one shows only now."""
        shown = self.shown(record, path)
        with contextlib.suppress(MissingObjectError, CacheFormatError, RemoteError):
            if self._contents.fresh_record(record.key) != record:
                return (
                    f"{shown}: the video was replaced there since its list was made; run the "
                    "command again, or let catalog.json be written anew there"
                )
        if isinstance(error, MissingObjectError):
            return f"{shown}: not there, but its record lists it"
        if isinstance(error, TornObjectError):
            return f"{shown}: has fewer bytes than its record says; the object is torn"
        return str(error)

    def located(self, record: EntryRecord, path: str) -> tuple[str, int]:
        """(key, first byte) of an object at the place."""
        if record.pack is None:
            return f"{record.folder}/{path}", 0
        return record.pack.path, record.pack.offsets[path] if path else 0

    def shown(self, record: EntryRecord, path: str) -> str:
        """An object as errors name it."""
        key, _ = self.located(record, path)
        within = "" if record.pack is None else f" ({path})"
        return f"{self.name}/{key}{within} (video {record.id!r})"

    def _name(self, record: EntryRecord, path: str) -> str:
        """Of an object on the shelf: other bytes have another name."""
        stored = record.objects[path]
        about = [self.name, record.folder, path, stored.size, stored.crc32c]
        return hashlib.blake2b(canonical_json(about), digest_size=20).hexdigest()

    @contextlib.contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """One thread of this process at a time fetches an object."""
        with self._lock:
            turn = self._turns.setdefault(name, _Turn())
            turn.waiting += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.waiting -= 1
                if not turn.waiting:
                    del self._turns[name]

    def _require_own_process(self) -> None:
        """Neither threads nor connections come along with a fork."""
        if os.getpid() != self._process:
            raise UsageError(
                f"{self.name} was opened in another process, from which this one was forked; open "
                "it here, or give DataLoader multiprocessing_context='spawn'"
            )


class _Turn:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting = 0


class _Known(ObjectFile):
    """An object whose bytes follow from its record."""

    def __init__(self, data: bytes, *, name: str) -> None:
        super().__init__(-1, start=0, size=len(data), name=name)
        self._data = data

    def __exit__(self, *_: object) -> None:
        pass

    def fill(self, parts: list[memoryview], offset: int) -> None:
        for part in parts:
            part[:] = self._data[offset : offset + part.nbytes]
            offset += part.nbytes


def _known_metadata(record: EntryRecord, path: str) -> bytes | None:
    """The metadata of an array where its record says that it is what we write: most small objects
    of a cache, each of which would take a request."""
    array, _, rest = path.partition("/")
    if rest != "zarr.json":
        return None
    if array not in record.arrays:
        return None
    data, checksum = _plain_metadata(_layout(record.arrays[array]))
    stored = record.objects[path]
    return data if (len(data), checksum) == (stored.size, stored.crc32c) else None


def _layout(array: ArrayRecord) -> tuple[tuple[int, ...], str, int]:
    return array.shape, array.dtype, array.frames_per_shard


@lru_cache(maxsize=1024)
def _plain_metadata(layout: tuple[tuple[int, ...], str, int]) -> tuple[bytes, int]:
    """(`zarr.json` as the writer writes it, its crc32c)."""
    shape, dtype, frames_per_shard = layout
    data = canonical_json(
        array_metadata(shape, dtype=dtype, frames_per_shard=frames_per_shard, attributes={})
    )
    return data, crc32c(data)


def _identity(fd: int) -> tuple[int, int]:
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino


def _is_sound(fd: int, record: EntryRecord, path: str) -> bool:
    """Whether bytes from the shelf are those recorded; closes the descriptor if not."""
    stored = record.objects[path]
    try:
        ObjectFile(fd, start=0, size=stored.size, name=path).require_crc32c(stored.crc32c)
    except DamagedEntryError:
        os.close(fd)
        return False
    return True
