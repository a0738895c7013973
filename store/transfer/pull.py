"""`vis4mer cache pull`: a cache from a place, whole or in part, into a directory here.

    pull_cache("s3://bucket/lvu.zarr", "lvu.zarr", Selection(arrays=("grid7", "prefix")))

Objects first, each checked against its record while it arrives; then the record; task tables after
the entries; the catalog last. Stopped or killed at any moment, what is here is a smaller cache and
never a wrong one, and the same command goes on. Entries are written loose, whether or not they lie
in packs there, so that any Zarr reader opens them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cache import Cache, create_cache, find_cache, open_cache
from ..catalog import load_snapshot
from ..commits import put_record, read_committed, record_bytes
from ..directory import ensure_groups, spec_bytes
from ..errors import (
    CacheFormatError,
    DamagedEntryError,
    EntryNotFoundError,
    UsageError,
    Vis4merError,
)
from ..files import (
    storage_errors,
    write_atomic,
)
from ..records import EntryRecord, record_path
from ..remote.local import LocalPlace
from ..remote.place import MissingObjectError, Place, TornObjectError, open_place
from ..remote.urls import refuse_address
from ..replacement import commit_over, rearranging
from ..spec import joined_spec, require_same, require_writable
from ..wording import first_line, human_bytes
from ..writer import sync_directories
from .arriving import checked_file, is_sound, located, remove_unfinished_in, runs_of
from .contents import Contents, read_contents
from .plan import EntryCopy, holds_values, plan_copy
from .running import (
    OnTransfer,
    Tally,
    TransferFailure,
    TransferSummary,
    at_once,
    is_failure_of_one,
)
from .selection import Selection, lacks_some, narrowed

JOBS = 8
_MARGIN_BYTES = 64 << 20  # left free beside what is pulled


def pull_cache(
    source: str | Place,
    target: str | Path,
    selection: Selection | None = None,
    *,
    jobs: int = JOBS,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    progress: OnTransfer | None = None,
) -> TransferSummary:
    """Copy what `target` lacks of the cache at `source`.

    Raises UsageError when no cache is there or the selection names what it lacks, FingerprintError
    when another cache stands at `target`, RemoteError when the place fails, StorageError when the
    disk here does, Vis4merError while another process rearranges the cache here. A damaged entry is
    a failure of its own.
    """
    refuse_address(str(target), what="a pull ends in")
    place = open_place(source) if isinstance(source, str) else source
    pull = _Pull(read_contents(place), Path(target), selection or Selection())
    return pull.run(jobs=jobs, dry_run=dry_run, stop=stop, progress=progress)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """present: how many entries are here already. without: ids that lack some of what was asked.
    failures: records there that do not check."""

    copies: tuple[EntryCopy, ...]
    present: int
    without: tuple[str, ...]
    failures: tuple[TransferFailure, ...]

    @property
    def num_bytes(self) -> int:
        return sum(copy.num_bytes for copy in self.copies)


class _Pull:
    def __init__(self, contents: Contents, root: Path, selection: Selection) -> None:
        self._contents = contents
        self._place = contents.place
        self._root = root
        self._selection = selection
        self._spec = selection.spec(contents.spec)
        self._failures = [TransferFailure(id=None, reason=reason) for reason in contents.damaged]
        if (
            isinstance(self._place, LocalPlace)
            and root.exists()
            and root.samefile(self._place.root)
        ):
            raise UsageError(f"{root} is the place itself; name another folder")
        self._cache = find_cache(root)
        require_writable(contents.spec, contents.spec, name=self._place.url)
        if self._cache is not None:
            require_same(self._cache.spec, contents.spec, name=str(root), other=self._place.url)

    def run(
        self,
        *,
        jobs: int,
        dry_run: bool,
        stop: threading.Event | None,
        progress: OnTransfer | None,
    ) -> TransferSummary:
        began = time.monotonic()
        chosen, name = self._selection, self._place.url
        references = chosen.tables(self._contents.tasks, name=name)
        table = None if chosen.task is None else self._contents.table(chosen.task)
        keys = {row.id: key for key, row in self._contents.rows.items()}
        ids, lacking = chosen.chosen(list(keys), table, name=name)
        wanted = [keys[entry_id] for entry_id in ids]
        copied: list[str] = []
        written: list[str] = []
        moved_bytes = 0
        with contextlib.ExitStack() as alone:
            plan = self._plan(wanted) if dry_run else self._begin(wanted, alone)
            self._failures += plan.failures
            if not dry_run:
                cache = self._target_cache()
                tally = Tally(
                    num_videos=len(plan.copies), num_bytes=plan.num_bytes, progress=progress
                )
                copied = self._copy(plan.copies, cache, tally, jobs=jobs, stop=stop)
                written = self._copy_tables(cache, references)
                cache.write_catalog()
                moved_bytes = tally.moved_bytes
        return self._summary(
            plan,
            began=began,
            dry_run=dry_run,
            lacking=lacking,
            copied=copied,
            written=written,
            moved_bytes=moved_bytes,
        )

    def _summary(
        self,
        plan: _Plan,
        *,
        began: float,
        dry_run: bool,
        lacking: Sequence[str],
        copied: Sequence[str],
        written: Sequence[str],
        moved_bytes: int,
    ) -> TransferSummary:
        copies, done = plan.copies, set(copied)
        failed = {failure.id for failure in self._failures}
        return TransferSummary(
            source=self._place.url,
            target=str(self._root),
            dry_run=dry_run,
            copied=tuple(copy.record.id for copy in copies) if dry_run else tuple(sorted(copied)),
            present=plan.present,
            replaced=tuple(c.record.id for c in copies if c.replaces and c.record.id in done),
            lacking=tuple(lacking),
            without_arrays=plan.without,
            failures=tuple(self._failures),
            tasks=tuple(written),
            num_packs=0,
            num_bytes=plan.num_bytes if dry_run else moved_bytes,
            left=0 if dry_run else sum(c.record.id not in done | failed for c in copies),
            seconds=time.monotonic() - began,
        )

    def _begin(self, wanted: Sequence[str], alone: contextlib.ExitStack) -> _Plan:
        """What to copy into the cache here, which nobody else rearranges from the look at what
        stands in it until `alone` ends. Without enough room nothing is made."""
        plan = None
        if self._cache is None:
            plan = self._plan(wanted)
            self._require_room(plan.num_bytes)
            create_cache(self._root, joined_spec(None, self._spec, self._contents.spec))
        alone.enter_context(rearranging(self._root))
        self._cache = open_cache(self._root)
        here = str(self._root)
        require_same(self._cache.spec, self._contents.spec, name=here, other=self._place.url)
        if plan is None or load_snapshot(self._root).rows:
            plan = self._plan(wanted)
            self._require_room(plan.num_bytes)
        return plan

    def _plan(self, keys: Sequence[str]) -> _Plan:
        copies, without, failures, present = [], [], [], 0
        for key in keys:
            try:
                source = self._contents.record(key)
            except CacheFormatError as error:
                entry_id = self._contents.rows[key].id
                failures.append(TransferFailure(id=entry_id, reason=first_line(error)))
                continue
            if lacks_some(source, self._selection, self._contents.spec):
                without.append(source.id)
            wanted = narrowed(source, self._selection.arrays, self._contents.spec)
            if wanted is None:
                continue
            copy = plan_copy(source, wanted, self._standing(source.id))
            if copy is None:
                present += 1
            else:
                copies.append(copy)
        return _Plan(
            copies=tuple(copies), present=present, without=tuple(without), failures=tuple(failures)
        )

    def _standing(self, entry_id: str) -> EntryRecord | None:
        """The entry's record here; None where there is none that checks."""
        if self._cache is None:
            return None
        try:
            return self._cache.record(entry_id)
        except (EntryNotFoundError, CacheFormatError):
            return None

    def _require_room(self, num_bytes: int) -> None:
        folder = self._root.absolute()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if num_bytes + _MARGIN_BYTES > free:
            raise Vis4merError(
                f"{self._root}: the pull needs {human_bytes(num_bytes + _MARGIN_BYTES)}, and "
                f"{human_bytes(free)} are free there; free some space, or pull a part (--task, "
                "--split, --ids, --views)"
            )

    def _target_cache(self) -> Cache:
        """The cache here, whose spec names the arrays that it holds after this."""
        stored = open_cache(self._root).spec
        require_writable(stored, stored, name=str(self._root))
        spec = joined_spec(stored, self._spec, self._contents.spec)
        if spec != stored:
            write_atomic(self._root / "zarr.json", spec_bytes(spec))
        return create_cache(self._root, spec)

    def _copy(
        self,
        copies: Sequence[EntryCopy],
        cache: Cache,
        tally: Tally,
        *,
        jobs: int,
        stop: threading.Event | None,
    ) -> list[str]:
        copied = []
        with contextlib.closing(
            at_once(lambda copy: self._copy_entry(copy, cache, tally), copies, jobs=jobs, stop=stop)
        ) as ended:
            for copy, error in ended:
                if error is None:
                    copied.append(copy.record.id)
                elif is_failure_of_one(error):
                    reason = first_line(error)
                    self._failures.append(TransferFailure(id=copy.record.id, reason=reason))
                else:
                    raise error
        return copied

    def _copy_entry(self, copy: EntryCopy, cache: Cache, tally: Tally) -> None:
        try:
            self._copy_objects(copy, tally)
        except (DamagedEntryError, MissingObjectError, TornObjectError) as error:
            copy = self._again(copy, error)
            self._copy_objects(copy, tally)
        self._commit(copy, cache)
        tally.moved(0, videos=1)

    def _again(self, copy: EntryCopy, error: Exception) -> EntryCopy:
        """The same entry by the record that stands there now: the catalog may be older."""
        try:
            source = self._contents.fresh_record(copy.record.key)
        except MissingObjectError:
            source = copy.source
        if source == copy.source:
            raise DamagedEntryError(
                f"video {copy.record.id!r} at {self._place.url}: {first_line(error)}"
            ) from error
        wanted = narrowed(source, self._selection.arrays, self._contents.spec)
        again = None if wanted is None else plan_copy(source, wanted, copy.standing)
        if again is None:
            raise DamagedEntryError(
                f"video {copy.record.id!r} at {self._place.url}: changed meanwhile; pull again"
            ) from error
        return again

    def _commit(self, copy: EntryCopy, cache: Cache) -> None:
        """Make the entry exist here. What an extraction has committed meanwhile stands."""
        if copy.standing is not None:
            commit_over(cache, copy.standing, copy.record)
        else:
            self._commit_new(copy.record, cache)
        cache.clear_failure(copy.record.id)

    def _commit_new(self, record: EntryRecord, cache: Cache) -> None:
        data = record_bytes(self._root, record, cache.spec)
        if put_record(self._root, record.key, data, cache.spec, overwrite=False):
            return
        try:
            stands = read_committed(self._root, record.key, cache.spec)
        except CacheFormatError:  # damaged, as it was before
            write_atomic(record_path(self._root, record.key), data)
            return
        if not holds_values(stands, record):
            raise Vis4merError(
                f"video {record.id!r} in {self._root} was made by another process meanwhile; run "
                "the same command again to replace it"
            )

    def _copy_objects(self, copy: EntryCopy, tally: Tally) -> None:
        folder = self._root / copy.record.folder
        objects = copy.record.objects
        ensure_groups(self._root, copy.record.key)
        with storage_errors(folder):
            if folder.is_dir():
                os.utime(folder)  # `gc` counts from here, where no lock keeps it away
            remove_unfinished_in(folder)
        lacking = [path for path in copy.paths if not is_sound(folder / path, objects[path])]
        found = set(copy.paths).difference(lacking)
        tally.moved(sum(objects[path].size for path in found), found=True)
        for run in runs_of(copy.source, lacking):
            if len(run) == 1:
                self._fetch(copy, run[0], folder)
            else:
                self._fetch_together(copy, run, folder)
            tally.moved(sum(objects[path].size for path in run))
        with storage_errors(folder):
            sync_directories(folder)

    def _fetch(self, copy: EntryCopy, path: str, folder: Path) -> None:
        stored = copy.record.objects[path]
        key, start = located(copy.source, path)
        with checked_file(folder / path, stored, key=key, entry_id=copy.record.id) as file:
            self._place.fetch(key, file, start=start, length=stored.size)

    def _fetch_together(self, copy: EntryCopy, run: Sequence[str], folder: Path) -> None:
        """Small objects that lie one after another in a pack, by one request."""
        places = [located(copy.source, path) for path in run]
        sizes = [copy.record.objects[path].size for path in run]
        (key, first), last = places[0], places[-1][1] + sizes[-1]
        data = memoryview(self._place.read(key, start=first, length=last - first))
        for path, (_, start), size in zip(run, places, sizes, strict=True):
            stored = copy.record.objects[path]
            with checked_file(folder / path, stored, key=key, entry_id=copy.record.id) as file:
                file.write(data[start - first : start - first + size])

    def _copy_tables(self, cache: Cache, references: Sequence[str]) -> list[str]:
        """Tables that are not here, or differ."""
        written = []
        for reference in references:
            try:
                table = self._contents.table(reference)
            except (CacheFormatError, MissingObjectError) as error:
                self._failures.append(TransferFailure(id=None, reason=first_line(error)))
                continue
            try:
                same = cache.task(reference) == table
            except (UsageError, CacheFormatError):  # not here, or damaged
                same = False
            if not same:
                cache.save_task(table)
                written.append(reference)
        return written
