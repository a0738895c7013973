"""Checking a cache against its records.

quick: every object is there, is a plain file and has the recorded size. full: also every byte, by
crc32c of each object and SHA-256 of each array's values; anything missing or torn is reported with
its video, and reading goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .backing import Backing
from .cache import Cache
from .errors import CacheFormatError
from .files import read_sealed
from .layout import MAX_SHARD_FRAMES
from .reader import read_frames
from .records import RECORDS, EntryRecord, record_path

VerifyMode = Literal["quick", "full"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as its record says. `id` is None for what belongs to no entry."""

    id: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was checked and what was found. num_bytes: of the entries whose records can be read."""

    mode: VerifyMode
    num_entries: int
    num_bytes: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify_cache(
    cache: Cache, mode: VerifyMode = "quick", *, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Check every entry and task table. progress(done, total) is called after each entry.

    The records themselves are read, not the catalog, which only repeats them.
    """
    paths = sorted((cache.path / RECORDS).glob("*/*.json"))
    problems = [*_group_problems(cache.path, paths), *_table_problems(cache)]
    num_entries = num_bytes = 0
    for done, path in enumerate(paths, start=1):
        try:
            record = _read_record(path, cache)
            num_entries += 1
            num_bytes += record.num_bytes
            problems += _entry_problems(cache.backing, record, mode)
        except FileNotFoundError:  # removed a moment ago
            pass
        except (CacheFormatError, OSError) as error:
            problems.append(Problem(id=None, reason=str(error)))
        if progress is not None:
            progress(done, len(paths))
    return VerifyReport(
        mode=mode, num_entries=num_entries, num_bytes=num_bytes, problems=tuple(problems)
    )


def _read_record(path: Path, cache: Cache) -> EntryRecord:
    record = EntryRecord.from_json(read_sealed(path), spec=cache.spec, name=str(path))
    if path != record_path(cache.path, record.key):
        raise CacheFormatError(
            f"{path}: is the record of video {record.id!r}, under another's name"
        )
    return record


def _group_problems(root: Path, records: list[Path]) -> Iterator[Problem]:
    """A plain Zarr reader finds no entry below a folder that is no group."""
    fans = sorted({path.parent.name for path in records})
    for folder in ("videos", *(f"videos/{name}" for name in fans)) if fans else ():
        group = root / folder / "zarr.json"
        if not group.is_file():
            reason = f"{group}: missing, so that plain Zarr readers see no entry below it"
            yield Problem(id=None, reason=reason)


def _table_problems(cache: Cache) -> Iterator[Problem]:
    for reference in cache.tasks():
        try:
            cache.task(reference)
        except (CacheFormatError, OSError, ValueError) as error:
            yield Problem(id=None, reason=str(error))


def _entry_problems(backing: Backing, record: EntryRecord, mode: VerifyMode) -> Iterator[Problem]:
    sound = True
    for path, stored in record.objects.items():
        try:
            backing.require(record, path)
            if mode == "full":
                with backing.open(record, path) as opened:
                    opened.require_crc32c(stored.crc32c)
        except OSError as error:
            sound = False
            yield Problem(id=record.id, reason=str(error))
    if mode == "full" and sound:
        yield from _value_problems(backing, record)


def _value_problems(backing: Backing, record: EntryRecord) -> Iterator[Problem]:
    """Read every array as a user would and compare the SHA-256 of its values."""
    for array, layout in record.arrays.items():
        digest = hashlib.sha256()
        try:
            for start in range(0, layout.shape[0], MAX_SHARD_FRAMES):
                frames = np.arange(start, min(start + MAX_SHARD_FRAMES, layout.shape[0]))
                digest.update(read_frames(backing, record, array, frames).data)
        except OSError as error:
            yield Problem(id=record.id, reason=str(error))
            continue
        if digest.hexdigest() != layout.sha256:
            reason = f"array {array} of video {record.id!r}: values are not those recorded"
            yield Problem(id=record.id, reason=reason)
