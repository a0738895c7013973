"""What every deed of a repair needs: its steps, its mirrors, and writing that a dry run leaves out.

Knows nothing of what is bad: see `entries` and `files`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ..backing import LocalBacking
from ..cache import Cache
from ..copying import copy_objects, place_entry
from ..diff import differing_values
from ..errors import DamagedEntryError, UsageError, Vis4merError
from ..failures import FailureRecord
from ..files import StorageError, storage_errors, write_atomic
from ..records import EntryRecord, SourceRecord
from ..remote.place import RemoteError, TornObjectError
from ..replacement import replace_attempt
from ..verify import entry_problems, is_refusal

Deed = Literal[
    "mended", "restored", "copied", "dropped copies", "dropped", "rebuilt", "removed", "left"
]


@dataclass(frozen=True, kw_only=True)
class RepairStep:
    """One thing that was bad, what was done about it and why. id: None for what is no entry's.

    mended: metadata written anew. restored: a record put back. copied: from a mirror. dropped
    copies: pooled ones. dropped: the entry, to be extracted again from `source` (None where that is
    not known any more). rebuilt: the catalog, or a group. removed: a file that says nothing. left:
    nothing could be done, and nothing was. copies: pooled ones that the video has no more, and that
    no extraction makes.
    """

    id: str | None
    deed: Deed
    reason: str
    source: SourceRecord | None = None
    copies: tuple[str, ...] = ()


@dataclass
class Mending:
    """One repair under way."""

    cache: Cache
    mirrors: Sequence[Cache]
    dry_run: bool
    steps: list[RepairStep] = field(default_factory=list)

    def say(
        self,
        entry_id: str | None,
        deed: Deed,
        reason: str,
        *,
        source: SourceRecord | None = None,
        copies: tuple[str, ...] = (),
    ) -> None:
        self.steps.append(
            RepairStep(id=entry_id, deed=deed, reason=reason, source=source, copies=copies)
        )

    def copies_of(self, record: EntryRecord | None) -> tuple[str, ...]:
        """The pooled copies that were added to an entry, where they can be made again; of one that
        no record tells of any more, those that every other entry has."""
        if "patch" not in self.cache.spec.arrays:  # of which copies are made
            return ()
        if record is not None:
            return tuple(a for a in record.token_arrays if a not in self.cache.spec.arrays)
        return self._copies_of_all

    @functools.cached_property
    def _copies_of_all(self) -> tuple[str, ...]:
        records, _ = self.cache.readable_records()
        held = [set(self.copies_of(record)) for record in records]
        return tuple(sorted(set.intersection(*held))) if held else ()

    def write(self, path: Path, data: bytes) -> bool:
        """Replace a file of the cache; False where a directory stands in its place."""
        if (self.cache.path / path).is_dir():
            return False
        if not self.dry_run:
            write_atomic(self.cache.path / path, data)
        return True

    def remove(self, path: Path) -> bool:
        """Remove a file of the cache; False where a directory stands in its place."""
        file = self.cache.path / path
        if file.is_dir() and not file.is_symlink():
            return False
        if not self.dry_run:
            with storage_errors(file):
                file.unlink(missing_ok=True)
        return True

    def record_failure(self, entry_id: str, source: SourceRecord | None, reason: str) -> None:
        """Say why an entry is gone; `extract` tries what failed in writing again."""
        if self.dry_run:
            return
        self.cache.record_failure(
            FailureRecord(
                id=entry_id,
                stage="write",
                reason=f"damaged in the cache and dropped by `vis4mer cache repair`: {reason}",
                source_name=source.name if source else entry_id,
                source_size=source.size if source else 0,
                source_mtime_ns=source.mtime_ns if source else 0,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
            )
        )

    def copy(
        self,
        mirror: Cache,
        theirs: EntryRecord,
        new: EntryRecord,
        *,
        over: EntryRecord | None,
        reason: str,
    ) -> bool:
        """Make `new` of the objects of a mirror's record, over this record or a damaged one. False
        when they are not sound either; an error when they cannot be read."""
        try:
            if self.dry_run:
                _require_sound(mirror, theirs)
            elif over is not None:
                replace_attempt(
                    self.cache, over, kept=(), write=lambda to: self._taken(mirror, theirs, new, to)
                )
            else:
                place_entry(
                    self.cache,
                    new,
                    write=lambda to: self._take(mirror, theirs, new, to),
                    over_damage=True,
                )
        except Vis4merError as error:
            raise_refusal(error)
            return False
        self.say(new.id, "copied", f"from {mirror.name}: {reason}")
        return True

    def _taken(
        self, mirror: Cache, theirs: EntryRecord, new: EntryRecord, folder: Path
    ) -> EntryRecord:
        self._take(mirror, theirs, new, folder)
        return new

    def _take(self, mirror: Cache, theirs: EntryRecord, new: EntryRecord, folder: Path) -> None:
        """The mirror's word for its bytes is not enough: they must have our digests."""
        copy_objects(mirror, theirs, folder, paths=new.objects)
        here = replace(new, attempt=folder.name.rpartition(".")[2])
        for problem in entry_problems(LocalBacking(self.cache.path), here, "full"):
            raise DamagedEntryError(problem.reason)


def _require_sound(mirror: Cache, record: EntryRecord) -> None:
    for problem in entry_problems(mirror.backing, record, "full"):
        raise (
            DamagedEntryError(problem.reason) if problem.is_damage else Vis4merError(problem.reason)
        )


def raise_refusal(error: Vis4merError) -> None:
    """Raise what stands for no damage: a disk that refuses, a place or file that cannot be read, a
    mirror that cannot be used so. Nothing may be let go because of it."""
    passing = isinstance(error, RemoteError) and not isinstance(error, TornObjectError)
    if passing or isinstance(error, StorageError | UsageError) or is_refusal(error):
        raise error


def holds(theirs: EntryRecord, ours: EntryRecord) -> bool:
    """Does a record promise every value of another one?"""
    return not differing_values(ours, theirs) and set(ours.arrays) <= set(theirs.arrays)
