"""Several caches of one fingerprint into one: `vis4mer cache merge`.

    merge_caches("all.zarr", [open_cache("mine.zarr"), open_cache("yours.zarr")])

Sources are only read. A video that the target lacks is taken over; one that it holds with the same
values stays, and gets the arrays that only the source has; one that it holds with other values is a
conflict, which is told and left unless `prefer` decides. Records come last and task tables after
them, so that a merge killed at any moment has made a smaller cache, and the same call goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .cache import Cache, create_cache, find_cache
from .copying import copy_objects, objects_of, place_entry
from .diff import describe_key, diff_tables, differing_values, row_key
from .errors import CacheFormatError, EntryNotFoundError, UsageError, Vis4merError
from .files import StorageError
from .records import EntryRecord
from .remote.urls import refuse_address
from .replacement import OnEntry, current_record, rearranging, replace_attempt
from .spec import CacheSpec, joined_spec, require_same, require_writable
from .tasks import TaskTable
from .wording import counted, first_line, some_of

Prefer = Literal["source", "target"]


@dataclass(frozen=True, kw_only=True)
class MergeConflict:
    """A video or a task table that both hold, differently, and in what, or that cannot be read.
    `source`: the cache whose values were left out, or that could not be read."""

    name: str
    source: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MergeSummary:
    """What a merge did, or would do. added: videos that the target lacked. extended: that got more
    arrays. replaced: whose values were other ones. same: that were there already, so often.
    conflicts: left as they were; failures: what could not be read, and in which cache."""

    target: Path
    added: tuple[str, ...]
    extended: tuple[str, ...]
    replaced: tuple[str, ...]
    same: int
    tasks: tuple[str, ...]
    conflicts: tuple[MergeConflict, ...]
    failures: tuple[MergeConflict, ...]
    left: int
    num_bytes: int
    seconds: float
    dry_run: bool

    @property
    def interrupted(self) -> bool:
        return self.left > 0

    @property
    def exit_code(self) -> int:
        """0 when all is merged, 3 when conflicts or failures were left, 1 when it was stopped."""
        if self.interrupted:
            return 1
        return 3 if self.conflicts or self.failures else 0

    def to_json(self) -> dict[str, Any]:
        data = {**asdict(self), "target": str(self.target)}
        return {**data, "interrupted": self.interrupted, "exit_code": self.exit_code}


def merge_caches(
    target: str | Path,
    sources: Sequence[Cache],
    *,
    prefer: Prefer | None = None,
    link: bool = True,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    progress: OnEntry | None = None,
) -> MergeSummary:
    """Merge `sources` into the cache at `target`, which is made when it is not there.

    prefer: whose values stand where both hold other ones; of several sources the last. link: give
    files of the same file system a second name instead of copying them; nothing is read then, and
    `verify --full` of the sources is the check. dry_run: only say what would be done.

    Raises FingerprintError for caches of other settings, UsageError for a source that is the target
    or that holds arrays which the target cannot have, StorageError when the target cannot be
    written, Vis4merError while another process rearranges it.
    """
    _require_sources(target, sources)
    refuse_address(str(target), what="a merge fills")
    root, started = Path(target), time.monotonic()
    existing = find_cache(root)
    spec = _merged_spec(existing, sources)
    for source in sources:
        _require_fitting(spec, source, root)
    run = _Run(prefer=prefer, link=link, dry_run=dry_run, stop=stop, progress=progress)
    if dry_run:
        run.take_all(existing, sources)
    else:
        cache = create_cache(root, spec) if existing is None else existing
        with rearranging(cache.path):
            try:
                run.take_all(cache, sources)
            finally:
                if run.changed:
                    cache.write_catalog()
    return run.summary(root, seconds=time.monotonic() - started)


@dataclass
class _Run:
    """One merge: what was asked, and what was done so far. `records`: what the target would hold,
    where nothing is written."""

    prefer: Prefer | None
    link: bool
    dry_run: bool
    stop: threading.Event | None
    progress: OnEntry | None
    added: list[str] = field(default_factory=list)
    extended: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    tasks: dict[str, TaskTable] = field(default_factory=dict)
    conflicts: list[MergeConflict] = field(default_factory=list)
    failures: list[MergeConflict] = field(default_factory=list)
    records: dict[str, EntryRecord] = field(default_factory=dict)
    same: int = 0
    left: int = 0
    num_bytes: int = 0

    @property
    def changed(self) -> bool:
        return bool(self.added or self.extended or self.replaced or self.tasks)

    def take_all(self, target: Cache | None, sources: Sequence[Cache]) -> None:
        """Entries of all sources first, then their labels."""
        wanted = [(source, entry_id) for source in sources for entry_id in self._ids(source)]
        for number, (source, entry_id) in enumerate(wanted):
            if self.stop is not None and self.stop.is_set():
                self.left = len(wanted) - number
                return
            if self.progress is not None:
                self.progress(number, len(wanted), entry_id)
            try:
                self._take(target, source, entry_id)
            except StorageError:  # the target refuses, for every video
                raise
            except Vis4merError as error:
                self._fail(entry_id, source, error)
        for source in sources:
            for reference in source.tasks():
                try:
                    self._take_table(target, source, reference)
                except StorageError:
                    raise
                except Vis4merError as error:
                    self._fail(f"task {reference}", source, error)

    def _ids(self, source: Cache) -> list[str]:
        """A record that does not say whose it is is a failure of its own."""
        ids, damaged = source.readable_ids()
        self.failures += [_told("a record", source, reason) for reason in damaged]
        return ids

    def _fail(self, name: str, source: Cache, error: Vis4merError) -> None:
        at_fault = error.target if isinstance(error, _TargetError) else source
        self.failures.append(_told(name, at_fault, first_line(error)))

    def _take(self, target: Cache | None, source: Cache, entry_id: str) -> None:
        theirs = source.record(entry_id)
        ours = self._standing(target, entry_id)
        if ours is None:
            self._add(target, source, theirs)
            return
        differing = differing_values(ours, theirs) or _other_file(ours, theirs)
        if differing:
            self._settle(target, source, ours, theirs, differing)
            return
        more = [array for array in theirs.token_arrays if array not in ours.token_arrays]
        if more:
            self._extend(target, source, ours, theirs, more)
        else:
            self.same += 1

    def _standing(self, target: Cache | None, entry_id: str) -> EntryRecord | None:
        if entry_id in self.records or target is None:
            return self.records.get(entry_id)
        try:
            return current_record(target, entry_id)
        except EntryNotFoundError:
            return None
        except CacheFormatError as error:
            raise _TargetError(target, error) from error

    def _add(self, target: Cache | None, source: Cache, theirs: EntryRecord) -> None:
        new = theirs
        if target is not None and not self.dry_run:

            def write(folder: Path) -> None:
                copy_objects(source, theirs, folder, link=self.link)

            new = place_entry(target, theirs, write=write)
        self._done(self.added, new, theirs.num_bytes)

    def _extend(
        self,
        target: Cache | None,
        source: Cache,
        ours: EntryRecord,
        theirs: EntryRecord,
        more: Sequence[str],
    ) -> None:
        """Our objects and, of theirs, those of the arrays that we lack."""
        paths = objects_of(source, theirs, more)
        names = {path.partition("/")[0] for path in paths}
        new = replace(
            ours,
            arrays={**ours.arrays, **{name: theirs.arrays[name] for name in names}},
            objects={**ours.objects, **{path: theirs.objects[path] for path in paths}},
        )

        def write(folder: Path) -> EntryRecord:
            copy_objects(source, theirs, folder, paths=paths, link=self.link)
            return new

        if target is not None and not self.dry_run:
            new = replace_attempt(target, ours, kept=ours.objects, write=write)
        self._done(self.extended, new, sum(theirs.objects[path].size for path in paths))

    def _settle(
        self,
        target: Cache | None,
        source: Cache,
        ours: EntryRecord,
        theirs: EntryRecord,
        differing: Sequence[str],
    ) -> None:
        """Values that are not the same: theirs are taken only where they are preferred."""
        if self.prefer is None:
            reason = f"other values: {', '.join(differing)}"
            self.conflicts.append(_told(ours.id, source, reason))
        if self.prefer != "source":
            self.same += self.prefer == "target"
            return

        def write(folder: Path) -> EntryRecord:
            copy_objects(source, theirs, folder, link=self.link)
            return theirs

        new = theirs
        if target is not None and not self.dry_run:
            new = replace_attempt(target, ours, kept=(), write=write)
        self._done(self.replaced, new, theirs.num_bytes)

    def _done(self, where: list[str], new: EntryRecord, num_bytes: int) -> None:
        where.append(new.id)
        self.records[new.id] = new
        self.num_bytes += num_bytes

    def _take_table(self, target: Cache | None, source: Cache, reference: str) -> None:
        theirs = _read_table(source, reference)
        ours = self.tasks.get(reference)
        if ours is None and target is not None and reference in target.tasks():
            try:
                ours = _read_table(target, reference)
            except CacheFormatError as error:
                raise _TargetError(target, error) from error
        merged, reasons = merge_tables(ours, theirs, prefer=self.prefer)
        self.conflicts += [_told(f"task {reference}", source, reason) for reason in reasons]
        if merged == ours:
            return
        self.tasks[reference] = merged
        if target is not None and not self.dry_run:
            target.save_task(merged)

    def summary(self, target: Path, *, seconds: float) -> MergeSummary:
        return MergeSummary(
            target=target,
            added=tuple(self.added),
            extended=tuple(self.extended),
            replaced=tuple(self.replaced),
            same=self.same,
            tasks=tuple(self.tasks),
            conflicts=tuple(self.conflicts),
            failures=tuple(self.failures),
            left=self.left,
            num_bytes=self.num_bytes,
            seconds=seconds,
            dry_run=self.dry_run,
        )


def merge_tables(
    ours: TaskTable | None, theirs: TaskTable, *, prefer: Prefer | None
) -> tuple[TaskTable, tuple[str, ...]]:
    """The rows of both, ours first, and what could not be united, in words.

    Tables of other classes are never mixed: a label is a number that they give a meaning. Of rows
    that speak of the same part of a video and say something else, ours stand unless theirs are
    preferred.
    """
    if ours is None:
        return theirs, ()
    if (ours.kind, ours.classes) != (theirs.kind, theirs.classes):
        told = () if prefer else diff_tables(ours, theirs)[:2]
        return (theirs if prefer == "source" else ours), told
    known = {row_key(row) for row in ours.rows}
    new = set(theirs.rows) - set(ours.rows)
    other = {row_key(row) for row in new} & known
    if prefer == "source":
        kept = [row for row in ours.rows if row_key(row) not in other]
        said = [row for row in theirs.rows if row in new or row_key(row) in other]
        return replace(ours, rows=(*kept, *said)) if new else ours, ()
    more = [row for row in theirs.rows if row in new and row_key(row) not in other]
    merged = replace(ours, rows=(*ours.rows, *more))
    reasons: tuple[str, ...] = ()
    if other and prefer is None:
        names = sorted(map(describe_key, other))
        reasons = (f"{counted(len(names), 'row')} with another label: {some_of(names)}",)
    return merged, reasons


class _TargetError(Vis4merError):
    """What the target itself holds of something cannot be read."""

    def __init__(self, target: Cache, error: CacheFormatError) -> None:
        super().__init__(str(error))
        self.target = target


def _read_table(cache: Cache, reference: str) -> TaskTable:
    """CacheFormatError also for a file that the disk does not give."""
    try:
        return cache.task(reference)
    except OSError as error:
        if isinstance(error, Vis4merError):
            raise
        raise CacheFormatError(
            f"{cache.name}: task {reference} cannot be read ({error.strerror})"
        ) from error


def _told(name: str, source: Cache, reason: str) -> MergeConflict:
    return MergeConflict(name=name, source=source.name, reason=reason)


def _other_file(ours: EntryRecord, theirs: EntryRecord) -> tuple[str, ...]:
    """Entries without an array in common are of one video only if their files were the same."""
    shared = set(ours.arrays) & set(theirs.arrays)
    return () if shared or ours.source.sha256 == theirs.source.sha256 else ("source file",)


def _require_sources(target: str | Path, sources: Sequence[Cache]) -> None:
    if not sources:
        raise UsageError("no cache to merge is given; name at least one after the target")
    for source in sources:
        if not source.is_remote and Path(target).exists() and source.path.samefile(target):
            raise UsageError(f"{source.name} is the target itself; name another cache as source")


def _merged_spec(existing: Cache | None, sources: Sequence[Cache]) -> CacheSpec:
    """The target's own, or that of all sources together."""
    if existing is not None:
        require_writable(existing.spec, existing.spec, name=str(existing.path))
        return existing.spec
    spec = sources[0].spec
    for source in sources[1:]:
        require_same(source.spec, spec, name=source.name, other=sources[0].name)
        spec = joined_spec(spec, source.spec, source.spec)
    return spec


def _require_fitting(spec: CacheSpec, source: Cache, target: Path) -> None:
    """UsageError for arrays that no entry of the target may have; copies of grids it always may."""
    require_same(spec, source.spec, name=str(target), other=source.name)
    require_writable(source.spec, source.spec, name=source.name)
    more = [a for a in source.spec.arrays if a in ("patch", "prefix") and a not in spec.arrays]
    if more:
        raise UsageError(
            f"{source.name} holds {', '.join(more)}, which {target} does not keep (it keeps "
            f"{', '.join(spec.arrays)}); merge both into a new cache instead"
        )
