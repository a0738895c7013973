"""Mending a cache: what is bad is taken from a sound copy, or let go; what is sound stays.

    repair_cache(open_cache("lvu.zarr"), mirrors=[open_cache("/mnt/copy/lvu.zarr")])

Every byte is read (`verify` in full). For each entry that is not as its record says, the first of
these that is possible:

    its metadata alone is bad    written anew, when it has the recorded checksum then
    its record alone is bad      put back from the catalog or from where it was moved to, when all
                                 its objects are sound
    a mirror has the same values copied from there, each byte checked on the way
    a pooled copy alone is bad   dropped, the other arrays stay
    none of these                the record goes and a failure says why, so that `extract` makes the
                                 entry again

Each step is one rename, so a process killed at any moment leaves a cache that is better than before
and the same command goes on. Knows no videos: see `reencode` for extracting again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .backing import LocalBacking
from .cache import Cache, spec_bytes
from .catalog import CATALOG
from .copying import copy_objects, place_entry
from .diff import differing_values
from .errors import CacheFormatError, DamagedEntryError, EntryNotFoundError, Vis4merError
from .failures import FailureRecord
from .files import StorageError, canonical_json, seal, storage_errors, write_atomic
from .keys import KEY_PATTERN, entry_key, fan
from .layout import group_metadata
from .lost import id_of_attempts, is_sealed, known_records, lost_metadata, stray_record
from .pooling import without_copies
from .records import RECORDS, EntryRecord, SourceRecord, record_path, stored_arrays
from .replacement import rearranging, replace_attempt
from .spec import require_same, require_writable
from .verify import Problem, VerifyReport, entry_problems, verify_cache
from .writer import is_committed

Deed = Literal[
    "mended", "restored", "copied", "dropped copies", "dropped", "rebuilt", "removed", "left"
]


@dataclass(frozen=True, kw_only=True)
class RepairStep:
    """One thing that was bad, what was done about it and why. id: None for what is no entry's.

    mended: metadata written anew. restored: a record put back. copied: from a mirror. dropped
    copies: pooled ones. dropped: the entry, to be extracted again from `source` (None where that is
    not known any more). rebuilt: the catalog, or a group. removed: a file that says nothing. left:
    nothing could be done, and nothing was.
    """

    id: str | None
    deed: Deed
    reason: str
    source: SourceRecord | None = None


@dataclass(frozen=True, kw_only=True)
class RepairReport:
    """What a repair found and did, or would do. num_entries: whose records could be read."""

    num_entries: int
    steps: tuple[RepairStep, ...]
    dry_run: bool

    @property
    def dropped(self) -> tuple[RepairStep, ...]:
        """The entries that are to be extracted again."""
        return tuple(step for step in self.steps if step.deed == "dropped")

    @property
    def exit_code(self) -> int:
        """0 when the cache is whole now, 3 when something is lost or was left as it is."""
        return 3 if any(step.deed in ("dropped", "left") for step in self.steps) else 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}


def repair_cache(
    cache: Cache,
    *,
    mirrors: Sequence[Cache] = (),
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RepairReport:
    """Find what is bad and mend it, as the module says. dry_run: only say what would be done.

    mirrors: caches of the same fingerprint that may hold sound copies; the first that has one is
    used. progress(done, total) is called after each entry that is checked.

    Raises FingerprintError for a mirror of other settings, CacheFormatError for a cache of a newer
    version, StorageError when it cannot be written, Vis4merError while another process rearranges
    it.
    """
    require_writable(cache.spec, cache.spec, name=str(cache.path))
    for mirror in mirrors:
        require_same(cache.spec, mirror.spec, name=mirror.name)
    with contextlib.nullcontext() if dry_run else rearranging(cache.path):
        cache.refresh()
        report = verify_cache(cache, "full", progress=progress)
        run = _Repair(cache, mirrors, dry_run=dry_run)
        if not report.ok:
            run.mend_all(report)
    return RepairReport(num_entries=report.num_entries, steps=tuple(run.steps), dry_run=dry_run)


@dataclass
class _Repair:
    """One repair under way. known: records that the cache once had, by key."""

    cache: Cache
    mirrors: Sequence[Cache]
    dry_run: bool
    steps: list[RepairStep] = field(default_factory=list)
    known: dict[str, list[EntryRecord]] = field(default_factory=dict)

    def mend_all(self, report: VerifyReport) -> None:
        """Mend what a full check has found; the catalog comes last."""
        self.known = known_records(self.cache)
        of_entries: dict[str, list[Problem]] = {}
        for problem in report.problems:
            if problem.id is not None:
                of_entries.setdefault(problem.id, []).append(problem)
            elif problem.path != CATALOG:
                self._mend_file(Path(problem.path or "."), problem.reason)
        self.cache.refresh()
        for entry_id, problems in of_entries.items():
            self._mend_entry(entry_id, problems)
        for problem in report.problems:
            if problem.path == CATALOG and problem.id is None:
                self._say(None, "rebuilt", f"the catalog, from the records: {problem.reason}")
        if not self.dry_run and any(step.deed != "left" for step in self.steps):
            self.cache.write_catalog()

    # What is no entry's --------------------------------------------------------------------------

    def _mend_file(self, path: Path, reason: str) -> None:
        """path: relative to the cache."""
        room = path.parts[0] if path.parts else ""
        if room == RECORDS:
            self._mend_record(self.cache.path / path, reason)
        elif room == "tasks":
            self._mend_table(path, reason)
        elif path == Path("zarr.json") and self._write(path, spec_bytes(self.cache.spec)):
            self._say(None, "rebuilt", f"the cache's own group: {reason}")
        elif room == "videos" and self._write(path, canonical_json(group_metadata({}))):
            self._say(None, "rebuilt", f"the group {path}: {reason}")
        elif room == "failures" and self._remove(path):
            self._say(None, "removed", f"{path}, which told of a failure: {reason}")
        else:
            self._say(None, "left", reason)

    def _mend_table(self, path: Path, reason: str) -> None:
        """A task table from a mirror, or none; `label` writes it again."""
        reference = "/".join(path.with_suffix("").parts[1:])
        for mirror in self.mirrors:
            with contextlib.suppress(Vis4merError):
                table = mirror.task(reference)
                if not self.dry_run:
                    self.cache.save_task(table)
                self._say(None, "copied", f"task {reference} from {mirror.name}: {reason}")
                return
        if is_sealed(self.cache.path / path) or not self._remove(path):
            self._say(None, "left", f"{reason}; `vis4mer label` makes it again")
            return
        self._say(None, "removed", f"task {reference}; `vis4mer label` makes it again: {reason}")

    def _mend_record(self, path: Path, reason: str) -> None:
        """A file that is not the record of its name: put that one in its place, or let it go."""
        key, place = path.stem, path.relative_to(self.cache.path)
        if not KEY_PATTERN.fullmatch(key) or fan(key) != path.parent.name or path.is_dir():
            self._say(None, "left", f"{reason}; no record of this cache has such a name")
            return
        stray = stray_record(self.cache, path)
        if stray is not None and not record_path(self.cache.path, stray.key).exists():
            self._restore(stray, reason)
        known = self.known.get(key, [])
        if any(self._restore(record, reason) for record in known):
            return
        if self._copy_lost(key, known[0] if known else None, reason):
            return
        if stray is None and is_sealed(path):
            self._say(
                None,
                "left",
                f"{reason}; its checksum is right, so a newer version may have written it (delete "
                "the file to have its video extracted again)",
            )
            return
        lost = known[0] if known else None
        lost_id = lost.id if lost else id_of_attempts(self.cache, key)
        if lost_id is not None:
            self._record_failure(lost_id, lost.source if lost else None, reason)
        self._remove(place)
        self._say(lost_id, "dropped", reason, source=lost.source if lost else None)

    def _restore(self, record: EntryRecord, reason: str) -> bool:
        """Put a record back if everything that it lists is sound."""
        if any(entry_problems(self.cache.backing, record, "full")):
            return False
        place = record_path(self.cache.path, record.key).relative_to(self.cache.path)
        if not self._write(place, seal(record.to_json())):
            return False
        self._say(record.id, "restored", f"its record; all that it lists is sound: {reason}")
        return True

    def _copy_lost(self, key: str, lost: EntryRecord | None, reason: str) -> bool:
        """An entry without a record, from a mirror; lost: what that record said, if it is known."""
        for mirror in self.mirrors:
            with contextlib.suppress(CacheFormatError, EntryNotFoundError):
                entry_id = next((i for i in mirror.ids() if entry_key(i) == key), None)
                theirs = mirror.record(entry_id) if entry_id is not None else None
                if theirs is None or (lost is not None and not _holds(theirs, lost)):
                    continue
                new = replace(theirs, pack=None)
                if self._copy(mirror, theirs, new, over=None, reason=reason):
                    return True
        return False

    # Entries ------------------------------------------------------------------------------------

    def _mend_entry(self, entry_id: str, problems: Sequence[Problem]) -> None:
        try:
            record = self.cache.record(entry_id)
        except (EntryNotFoundError, CacheFormatError):
            self._say(entry_id, "left", "it was removed or replaced meanwhile; check again")
            return
        reason = problems[0].reason
        rest = self._mend_metadata(record, problems)
        if not rest:
            self._say(entry_id, "mended", f"its metadata, written anew: {reason}")
        elif not (self._copy_values(record, reason) or self._drop_copies(record, rest, reason)):
            self._drop(record, reason)

    def _mend_metadata(self, record: EntryRecord, problems: Sequence[Problem]) -> list[Problem]:
        """Write metadata whose recorded bytes can be told without it; what is bad then."""
        known = {
            problem.path: data
            for problem in problems
            if problem.path is not None
            and (data := lost_metadata(self.cache, record, problem.path)) is not None
        }
        written = {
            p for p, data in known.items() if self._write(Path(record.folder, p or ""), data)
        }
        if self.dry_run or not written:
            return [problem for problem in problems if problem.path not in written]
        return list(entry_problems(self.cache.backing, record, "full"))

    def _copy_values(self, record: EntryRecord, reason: str) -> bool:
        """The same values, from the first mirror that has them all."""
        for mirror in self.mirrors:
            with contextlib.suppress(CacheFormatError, EntryNotFoundError):
                theirs = mirror.record(record.id)
                if not _holds(theirs, record):
                    continue
                objects = {
                    path: stored
                    for path, stored in theirs.objects.items()
                    if path == "zarr.json" or path.partition("/")[0] in record.arrays
                }
                arrays = {name: theirs.arrays[name] for name in record.arrays}
                new = replace(record, arrays=arrays, objects=objects, pack=None)
                if self._copy(mirror, theirs, new, over=record, reason=reason):
                    return True
        return False

    def _copy(
        self,
        mirror: Cache,
        theirs: EntryRecord,
        new: EntryRecord,
        *,
        over: EntryRecord | None,
        reason: str,
    ) -> bool:
        """Make `new` of the objects of a mirror's record. False when they are not sound either."""

        def write(folder: Path) -> EntryRecord:
            copy_objects(mirror, theirs, folder, paths=new.objects)
            here = replace(new, attempt=folder.name.rpartition(".")[2])
            # The mirror's word for its bytes is not enough: they must have our digests.
            for problem in entry_problems(LocalBacking(self.cache.path), here, "full"):
                raise DamagedEntryError(problem.reason)
            return new

        def write_all(folder: Path) -> None:
            write(folder)

        try:
            if self.dry_run:
                if any(entry_problems(mirror.backing, theirs, "full")):
                    return False
            elif over is not None:
                replace_attempt(self.cache, over, kept=(), write=write)
            else:
                place_entry(self.cache, new, write=write_all, over_damage=True)
        except StorageError:
            raise
        except Vis4merError:
            return False
        self._say(new.id, "copied", f"from {mirror.name}: {reason}")
        return True

    def _drop_copies(self, record: EntryRecord, problems: Sequence[Problem], reason: str) -> bool:
        """Let pooled copies go where nothing else is bad; `pool` makes them again."""
        copies = _bad_copies(self.cache, record, problems)
        if not copies:
            return False
        try:
            if not self.dry_run:
                without_copies(self.cache, record, copies)
        except StorageError:
            raise
        except Vis4merError:
            return False
        self._say(record.id, "dropped copies", f"{', '.join(copies)}: {reason}")
        return True

    def _drop(self, record: EntryRecord, reason: str) -> None:
        """Let an entry go, so that it is extracted again; its bytes go with the next `gc`."""
        if not is_committed(record_path(self.cache.path, record.key), record.attempt):
            self._say(record.id, "left", "it was removed or replaced meanwhile; check again")
            return
        self._record_failure(record.id, record.source, reason)
        if not self.dry_run:
            self.cache.remove(record.id)
        self._say(record.id, "dropped", reason, source=record.source)

    # --------------------------------------------------------------------------------------------

    def _record_failure(self, entry_id: str, source: SourceRecord | None, reason: str) -> None:
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

    def _write(self, path: Path, data: bytes) -> bool:
        """Replace a file of the cache; False where a directory stands in its place."""
        if (self.cache.path / path).is_dir():
            return False
        if not self.dry_run:
            write_atomic(self.cache.path / path, data)
        return True

    def _remove(self, path: Path) -> bool:
        """Remove a file of the cache; False where a directory stands in its place."""
        file = self.cache.path / path
        if file.is_dir() and not file.is_symlink():
            return False
        if not self.dry_run:
            with storage_errors(file):
                file.unlink(missing_ok=True)
        return True

    def _say(
        self, entry_id: str | None, deed: Deed, reason: str, *, source: SourceRecord | None = None
    ) -> None:
        self.steps.append(RepairStep(id=entry_id, deed=deed, reason=reason, source=source))


def _holds(theirs: EntryRecord, ours: EntryRecord) -> bool:
    """Does a record promise every value of another one?"""
    return not differing_values(ours, theirs) and set(ours.arrays) <= set(theirs.arrays)


def _bad_copies(cache: Cache, record: EntryRecord, problems: Sequence[Problem]) -> tuple[str, ...]:
    """The pooled copies at fault; none when anything else is, for then the entry is not whole."""
    added = [array for array in record.token_arrays if array not in cache.spec.arrays]
    array_of = {name: array for array in added for name in stored_arrays(cache.spec, array)}
    bad = {array_of.get((problem.path or "").partition("/")[0]) for problem in problems}
    if None in bad or bad >= set(record.token_arrays):
        return ()
    return tuple(array for array in added if array in bad)
