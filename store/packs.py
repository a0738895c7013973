"""Packs: the objects of many entries in one file, for places that count files.

    records = plan_packs(loose, 200_000_000)[0]
    packed = write_pack(cache.backing, records, file)

A pack is nothing but bytes: the objects of each entry one right after another, each array's
metadata and then its shards in order. Where each begins is in the entry's record alone:

    entry a: zarr.json | patch/zarr.json | patch/c/0/0/0 | … | entry b: zarr.json | …

Its name follows from what it holds, so that the same work done again gives the same file. Knows
neither directories nor the replacing of records (see `packing`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from .backing import Backing
from .errors import DamagedEntryError
from .files import canonical_json
from .layout import crc32c
from .reader import is_plain
from .records import EntryRecord, PackRecord

DEFAULT_PACK_BYTES = 200_000_000


def plan_packs(records: Iterable[EntryRecord], size_bytes: float) -> list[list[EntryRecord]]:
    """Groups of entries, each for one pack of at most `size_bytes`, or one entry that is larger.

    Entries keep their order; at most one group is smaller than half of that.
    """
    groups = _joined([[record] for record in records], size_bytes)
    small = [group for group in groups if 2 * _num_bytes(group) < size_bytes]
    large = [group for group in groups if 2 * _num_bytes(group) >= size_bytes]
    return [*large, *_joined(small, size_bytes)]


def lay_out(records: Sequence[EntryRecord]) -> list[EntryRecord]:
    """The records as they are once one pack holds all their objects; no byte is read.

    Attempts stay as they are.
    """
    digest, offset = hashlib.sha256(), 0
    offsets: list[dict[str, int]] = []
    for record in records:
        offsets.append({})
        for path in sorted(record.objects, key=_place):
            offsets[-1][path] = offset
            offset += record.objects[path].size
        objects = [[path, o.size, o.crc32c] for path, o in sorted(record.objects.items())]
        values = [[name, array.sha256] for name, array in sorted(record.arrays.items())]
        digest.update(canonical_json([record.id, objects, values]))
    name = f"{digest.hexdigest()[:32]}.pack"
    return [
        replace(record, pack=PackRecord(name=name, offsets=starts))
        for record, starts in zip(records, offsets, strict=True)
    ]


def write_pack(
    backing: Backing, records: Sequence[EntryRecord], file: BinaryIO
) -> list[EntryRecord]:
    """Write the objects of `records` to `file`, a few megabytes at a time: `lay_out` of them.

    UnsoundEntryError when an object is missing or not as its record says; what was written is then
    of no use.
    """
    for record in records:
        for path in sorted(record.objects, key=_place):
            try:
                for block in checked_blocks(backing, record, path):
                    file.write(block)
            except DamagedEntryError as error:
                raise UnsoundEntryError(str(error), entry_id=record.id) from error
    return lay_out(records)


class UnsoundEntryError(DamagedEntryError):
    """An object of this entry is not as its record says, so the entry is not packed."""

    def __init__(self, message: str, *, entry_id: str) -> None:
        super().__init__(message)
        self.entry_id = entry_id


def checked_blocks(backing: Backing, record: EntryRecord, path: str) -> Iterator[memoryview]:
    """The bytes of an object, each block good until the next; DamagedEntryError, at the end, unless
    the crc32c is the one recorded."""
    found = 0
    with backing.open(record, path) as opened:
        for block in opened.blocks():
            found = crc32c(block, found)
            yield block
        if found != record.objects[path].crc32c:
            raise DamagedEntryError(
                f"{opened.name}: its bytes are not those recorded; "
                "`vis4mer cache verify --full` lists what is damaged"
            )


def is_packable(backing: Backing, record: EntryRecord) -> bool:
    """Is every array laid out as ours are? DamagedEntryError unless every object is there.

    What other tools wrote with other codecs is read through zarr, which needs files of their own.
    """
    for path in record.objects:
        backing.require(record, path)
    return all(is_plain(backing, record, array) for array in record.arrays)


@dataclass(frozen=True, kw_only=True)
class PackUse:
    """One pack: its bytes on the disk, those that records name, and of how many entries."""

    num_bytes: int
    live_bytes: int
    num_entries: int

    @property
    def dead_bytes(self) -> int:
        return max(0, self.num_bytes - self.live_bytes)


def pack_uses(root: Path, records: Iterable[EntryRecord]) -> dict[str, PackUse]:
    """How much of each pack that `records` name they still use; of all records of a cache.

    A pack that is missing has 0 bytes.
    """
    uses: dict[str, PackUse] = {}
    for record in records:
        if record.pack is not None:
            use = uses.get(record.pack.name) or _unused(root / record.pack.path)
            uses[record.pack.name] = replace(
                use,
                live_bytes=use.live_bytes + record.num_bytes,
                num_entries=use.num_entries + 1,
            )
    return uses


def _unused(pack: Path) -> PackUse:
    try:
        num_bytes = pack.lstat().st_size
    except FileNotFoundError:
        num_bytes = 0
    return PackUse(num_bytes=num_bytes, live_bytes=0, num_entries=0)


def rest_objects(root: Path, record: EntryRecord) -> None:
    """Mark a record's attempt or pack when the record is about to go: `gc` keeps it for its grace
    period from then on, for whoever reads by the old record."""
    place = record.folder if record.pack is None else record.pack.path
    with contextlib.suppress(OSError):  # not there, or another's
        os.utime(root / place, follow_symlinks=False)


def _joined(groups: Iterable[list[EntryRecord]], size_bytes: float) -> list[list[EntryRecord]]:
    """Neighbouring groups joined while they fit."""
    joined: list[list[EntryRecord]] = []
    room = 0.0
    for group in groups:
        needed = _num_bytes(group)
        if joined and needed <= room:
            joined[-1] += group
            room -= needed
        else:
            joined.append(list(group))
            room = size_bytes - needed
    return joined


def _num_bytes(group: Iterable[EntryRecord]) -> int:
    return sum(record.num_bytes for record in group)


def _place(path: str) -> tuple[str, int, str]:
    """Where an object stands in its entry: by array, metadata first, then shards in order."""
    array, slash, rest = path.partition("/")
    if not slash:
        return "", -1, path
    number = rest.split("/")[1] if rest.startswith("c/") else "-1"
    return array, int(number), path
