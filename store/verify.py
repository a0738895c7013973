"""Checking a cache against its records.

quick: every object is there, is a plain file and has the recorded size. full: also every byte, by
crc32c of each object and SHA-256 of each array's values; anything missing or torn is reported with
its video, and reading goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .cache import Cache
from .errors import CacheFormatError, DamagedEntryError
from .files import read_sealed
from .layout import MAX_SHARD_FRAMES, NUMPY_DTYPES, crc32c
from .reader import check_object, read_frames
from .records import EntryRecord

VerifyMode = Literal["quick", "full"]
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as its record says. `id` is None for what belongs to no entry."""

    id: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    mode: VerifyMode
    num_entries: int
    num_bytes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_cache(
    cache: Cache, mode: VerifyMode = "quick", *, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Check every entry and task table. progress(done, total) is called after each entry."""
    problems = list(_table_problems(cache))
    ids, unreadable = _readable_ids(cache)
    problems += unreadable
    num_bytes = 0
    for done, entry_id in enumerate(ids, start=1):
        try:
            record = cache.record(entry_id)
            num_bytes += record.num_bytes
            problems += _entry_problems(cache.path, record, mode)
        except CacheFormatError as error:
            problems.append(Problem(id=entry_id, reason=str(error)))
        if progress is not None:
            progress(done, len(ids))
    return VerifyReport(
        mode=mode, num_entries=len(ids), num_bytes=num_bytes, problems=tuple(problems)
    )


def _readable_ids(cache: Cache) -> tuple[list[str], list[Problem]]:
    """Ids from the record files themselves, not from the catalog, which only repeats them."""
    ids: list[str] = []
    problems: list[Problem] = []
    for path in sorted((cache.path / "records").glob("*/*.json")):
        try:
            record = EntryRecord.from_json(read_sealed(path), spec=cache.spec, name=str(path))
        except (CacheFormatError, OSError) as error:
            problems.append(Problem(id=None, reason=str(error)))
            continue
        if path.stem != record.key:
            reason = f"{path}: is the record of video {record.id!r}, under another's name"
            problems.append(Problem(id=record.id, reason=reason))
            continue
        ids.append(record.id)
    return ids, problems


def _table_problems(cache: Cache) -> Iterator[Problem]:
    for reference in cache.tasks():
        try:
            cache.task(reference)
        except (CacheFormatError, OSError, ValueError) as error:
            yield Problem(id=None, reason=str(error))


def _entry_problems(root: Path, record: EntryRecord, mode: VerifyMode) -> Iterator[Problem]:
    folder = root / record.folder
    sound = True
    for path, stored in record.objects.items():
        try:
            check_object(folder / path, stored.size, record.id)
            if mode == "full" and (found := _crc32c_of(folder / path)) != stored.crc32c:
                raise DamagedEntryError(
                    f"{folder / path} (video {record.id!r}): crc32c {found:08x}, "
                    f"but the record says {stored.crc32c:08x}"
                )
        except OSError as error:
            sound = False
            yield Problem(id=record.id, reason=str(error))
    if mode == "full" and sound:
        yield from _value_problems(root, record)


def _value_problems(root: Path, record: EntryRecord) -> Iterator[Problem]:
    """Read every array as a user would and compare the SHA-256 of its values."""
    for array, layout in record.arrays.items():
        digest = hashlib.sha256()
        try:
            for start in range(0, layout.shape[0], MAX_SHARD_FRAMES):
                frames = np.arange(start, min(start + MAX_SHARD_FRAMES, layout.shape[0]))
                shape = (len(frames), *layout.shape[1:])
                values = np.empty(shape, dtype=NUMPY_DTYPES[layout.dtype])
                read_frames(root, record, array, frames, values)
                digest.update(values.data)
        except OSError as error:
            yield Problem(id=record.id, reason=str(error))
            continue
        if digest.hexdigest() != layout.sha256:
            reason = f"array {array} of video {record.id!r}: values are not those recorded"
            yield Problem(id=record.id, reason=reason)


def _crc32c_of(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum = crc32c(block, checksum)
    return checksum
