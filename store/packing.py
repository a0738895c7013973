"""The entries of a cache moved into packs, and out of them: `vis4mer cache pack`, `unpack`.

    pack_cache(open_cache("lvu.zarr"), size_bytes=200e6)    # a few files instead of ten a video

No value changes, and reading is as direct as before. A pack is written beside its name, flushed and
renamed; then the record of each entry in it is replaced by one rename:

    record ──> attempt A: ten files          becomes          record ──> packs/<name>: ten ranges

A process killed at any moment leaves every entry as it was or packed, and the same command goes on.
The files of attempt A go with `gc`, which lets those who read by the old record finish.
"""

from __future__ import annotations

import math
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .cache import Cache
from .errors import (
    CacheFormatError,
    DamagedEntryError,
    EntryNotFoundError,
    UsageError,
    Vis4merError,
    exit_code_of,
)
from .files import StorageError, replacing
from .packs import (
    DEFAULT_PACK_BYTES,
    PackUse,
    UnsoundEntryError,
    is_packable,
    lay_out,
    pack_uses,
    plan_packs,
    write_pack,
)
from .records import PACKS, EntryRecord
from .replacement import OnEntry, commit_over, current_record, let_go, rearranging, replace_attempt
from .spec import require_writable
from .wording import first_line, human_bytes

_MOST_DEAD = 0.25  # of a pack's bytes, until it is written anew


@dataclass(frozen=True, kw_only=True)
class PackFailure:
    """A video that could not be packed or unpacked, and why; it is as it was. id: `a record` of a
    damaged one, which does not say whose it is."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PackSummary:
    """What a run of `pack_cache` or `unpack_cache` did.

    changed: videos whose objects were moved. unchanged: that lay as asked already. kept_loose: that
    hold arrays of other codecs than ours, which are never packed. left: not looked at, because of a
    stop. num_packs, num_bytes: written. freed: what they lay in before was removed at once.
    """

    direction: Literal["pack", "unpack"]
    changed: tuple[str, ...]
    unchanged: int
    kept_loose: tuple[str, ...]
    failures: tuple[PackFailure, ...]
    left: int
    num_packs: int
    num_bytes: int
    freed: bool
    seconds: float

    @property
    def interrupted(self) -> bool:
        return self.left > 0

    @property
    def exit_code(self) -> int:
        """0 when every video is as asked, 3 when some failed, 1 when all did or it was stopped."""
        done = bool(self.changed or self.unchanged or self.kept_loose)
        return exit_code_of(failed=self.failures, done=done, interrupted=self.interrupted)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interrupted": self.interrupted, "exit_code": self.exit_code}


def pack_cache(
    cache: Cache,
    *,
    size_bytes: float = DEFAULT_PACK_BYTES,
    ids: Sequence[str] | None = None,
    free_at_once: bool = False,
    stop: threading.Event | None = None,
    progress: OnEntry | None = None,
) -> PackSummary:
    """Move the objects of entries into packs of about `size_bytes`. Again: goes on.

    Packs that are less than half full, or a quarter of which no record names any more, are written
    anew together. An entry larger than `size_bytes` has a pack to itself. free_at_once: remove what
    the new packs replace, so that room for one pack is enough; whoever reads the cache meanwhile
    may meet missing files. An entry that is damaged, or replaced meanwhile, is a failure of its
    own.

    Raises EntryNotFoundError for an id that is not there, StorageError when the file system
    refuses, Vis4merError when it has not enough room or another process rearranges the cache.
    """
    if not (math.isfinite(size_bytes) and size_bytes >= 1):
        raise UsageError(f"size of a pack {size_bytes} bytes, expected such as 200e6")
    run = _Run(cache, "pack", free_at_once, stop, progress)
    with rearranging(cache.path):
        chosen, uses = run.choose(ids)
        wanted = [record for record in chosen if _wants_packing(record, uses, size_bytes)]
        run.unchanged = len(chosen) - len(wanted)
        groups = plan_packs(wanted, size_bytes)
        sizes = [sum(record.num_bytes for record in group) for group in groups]
        _require_room(cache.path, max(sizes, default=0) if free_at_once else sum(sizes))
        run.each(groups, lambda group: run.pack(group, uses))
        run.finish()
    return run.summary()


def unpack_cache(
    cache: Cache,
    *,
    ids: Sequence[str] | None = None,
    free_at_once: bool = False,
    stop: threading.Event | None = None,
    progress: OnEntry | None = None,
) -> PackSummary:
    """Give every object of packed entries a file of its own again, as plain Zarr readers need it.

    free_at_once: remove packs that no record names at the end; else `gc` does. Raises as
    `pack_cache`.
    """
    run = _Run(cache, "unpack", free_at_once, stop, progress)
    with rearranging(cache.path):
        chosen, _ = run.choose(ids)
        wanted = [record for record in chosen if record.pack is not None]
        run.unchanged = len(chosen) - len(wanted)
        _require_room(cache.path, sum(record.num_bytes for record in wanted))
        run.each([[record] for record in wanted], run.unpack)
        run.finish()
    return run.summary()


def _wants_packing(record: EntryRecord, uses: dict[str, PackUse], size_bytes: float) -> bool:
    if record.pack is None:
        return True
    use = uses[record.pack.name]
    return 2 * use.live_bytes < size_bytes or use.dead_bytes > _MOST_DEAD * use.num_bytes


def _require_room(root: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(root).free
    if num_bytes > free:
        raise Vis4merError(
            f"{root}: needs {human_bytes(num_bytes)} of room, but {human_bytes(free)} are free; "
            "free some, name fewer videos, or let what is replaced go at once (--free-at-once)"
        )


@dataclass
class _Run:
    """One run, and the tally of what it did."""

    cache: Cache
    direction: Literal["pack", "unpack"]
    free_at_once: bool
    stop: threading.Event | None
    progress: OnEntry | None
    unchanged: int = 0
    changed: list[str] = field(default_factory=list)
    kept_loose: list[str] = field(default_factory=list)
    failures: list[PackFailure] = field(default_factory=list)
    left: int = 0
    num_packs: int = 0
    num_bytes: int = 0
    emptied: set[str] = field(default_factory=set)  # packs that an entry was moved out of
    started: float = field(default_factory=time.monotonic)

    def choose(self, ids: Sequence[str] | None) -> tuple[list[EntryRecord], dict[str, PackUse]]:
        """The entries asked for as they are now, by id, and what all entries use of packs."""
        require_writable(self.cache.spec, self.cache.spec, name=str(self.cache.path))
        self.cache.refresh()
        records, damaged = self._records()
        uses = pack_uses(self.cache.path, records.values())
        if ids is not None:
            return [self.cache.record(entry_id) for entry_id in sorted(set(ids))], uses
        self.failures += damaged
        return list(records.values()), uses

    def _records(self) -> tuple[dict[str, EntryRecord], list[PackFailure]]:
        """All records as they are now, by id, and those that cannot be read."""
        ids, nameless = self.cache.readable_ids()
        damaged = [PackFailure(id="a record", reason=reason) for reason in nameless]
        records: dict[str, EntryRecord] = {}
        for entry_id in ids:
            try:
                records[entry_id] = self.cache.record(entry_id)
            except CacheFormatError as error:
                damaged.append(PackFailure(id=entry_id, reason=first_line(error)))
        return records, damaged

    def each(
        self, groups: Sequence[list[EntryRecord]], work: Callable[[list[EntryRecord]], None]
    ) -> None:
        """`work` on every group until somebody wants a stop."""
        done, total = 0, sum(map(len, groups))
        for group in groups:
            if self.stop is not None and self.stop.is_set():
                self.left = total - done
                break
            if self.progress is not None:
                self.progress(done, total, group[0].id)
            work(group)
            done += len(group)

    def pack(self, group: list[EntryRecord], uses: dict[str, PackUse]) -> None:
        """Write one pack of a group of entries and let their records name it."""
        group, packed = self._written(self._packable(group), uses)
        for old, new in zip(group, packed, strict=True):
            if old.pack == new.pack:
                self.unchanged += 1
                continue
            committed = self._commit(old, replace(new, attempt=secrets.token_hex(6)))
            if committed and self.free_at_once and old.pack is None:
                let_go(self.cache.path / old.folder)

    def unpack(self, group: list[EntryRecord]) -> None:
        """Copy the objects of entries out of their packs."""
        for listed in group:
            try:
                old = current_record(self.cache, listed.id)
                replace_attempt(self.cache, old, kept=old.objects, write=_as_it_was(old))
            except StorageError:  # the cache refuses, for every video
                raise
            except Vis4merError as error:
                self._fail(listed.id, error)
            else:
                self._count(old)
                self.num_bytes += old.num_bytes

    def finish(self) -> None:
        """Catalog; with free_at_once also the packs that nothing is left of."""
        if self.changed:
            self.cache.write_catalog()
        if self.free_at_once and self.emptied:
            records, damaged = self._records()
            if damaged:  # who knows which packs they name
                return
            named = pack_uses(self.cache.path, records.values())
            for name in self.emptied - named.keys():
                let_go(self.cache.path / PACKS / name)

    def summary(self) -> PackSummary:
        return PackSummary(
            direction=self.direction,
            changed=tuple(self.changed),
            unchanged=self.unchanged,
            kept_loose=tuple(self.kept_loose),
            failures=tuple(self.failures),
            left=self.left,
            num_packs=self.num_packs,
            num_bytes=self.num_bytes,
            freed=self.free_at_once,
            seconds=time.monotonic() - self.started,
        )

    def _packable(self, group: Iterable[EntryRecord]) -> list[EntryRecord]:
        """Those of a group that stand now and may be packed."""
        found: list[EntryRecord] = []
        for listed in group:
            try:
                record = current_record(self.cache, listed.id)
                if is_packable(self.cache.backing, record):
                    found.append(record)
                else:
                    self.kept_loose.append(record.id)
            except (DamagedEntryError, EntryNotFoundError) as error:
                self._fail(listed.id, error)
        return found

    def _written(
        self, group: list[EntryRecord], uses: dict[str, PackUse]
    ) -> tuple[list[EntryRecord], list[EntryRecord]]:
        """The entries of a group that are sound, and their records once the pack is there."""
        while group:
            packed = lay_out(group)
            pack = packed[0].pack
            if pack is None or _lies_so(group, packed, uses):
                return group, packed
            try:
                with replacing(self.cache.path / pack.path) as file:
                    write_pack(self.cache.backing, group, file)
                    self.num_bytes += file.tell()
            except UnsoundEntryError as error:
                self._fail(error.entry_id, error)
                group = [record for record in group if record.id != error.entry_id]
            else:
                self.num_packs += 1
                return group, packed
        return [], []

    def _commit(self, old: EntryRecord, new: EntryRecord) -> bool:
        try:
            commit_over(self.cache, old, new)
        except StorageError:
            raise
        except Vis4merError as error:
            self._fail(old.id, error)
            return False
        self._count(old)
        return True

    def _count(self, old: EntryRecord) -> None:
        self.changed.append(old.id)
        if old.pack is not None:
            self.emptied.add(old.pack.name)

    def _fail(self, entry_id: str, error: Vis4merError) -> None:
        self.failures.append(PackFailure(id=entry_id, reason=first_line(error)))


def _as_it_was(record: EntryRecord) -> Callable[[Path], EntryRecord]:
    return lambda _: record


def _lies_so(
    group: Sequence[EntryRecord], packed: Sequence[EntryRecord], uses: dict[str, PackUse]
) -> bool:
    """Is the pack there already, with nothing else in it?"""
    same = all(old.pack == new.pack for old, new in zip(group, packed, strict=True))
    return same and all(
        record.pack is not None
        and record.pack.name in uses
        and uses[record.pack.name].num_bytes == uses[record.pack.name].live_bytes
        for record in group
    )
