"""Task tables into a cache, new or refreshed, without touching a video; and what they changed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...store.cache import Cache, open_cache
from ...store.errors import CacheFormatError, UsageError
from ...store.tasks import TaskTable
from ...store.wording import counted
from .base import Annotations
from .finding import read_annotations
from .index import NameIndex


@dataclass(frozen=True, kw_only=True)
class TableChange:
    """One table that a cache now holds.

    is_new: it was not there before. added, removed, changed: ids whose rows came, went, or now say
    something else (label, split, extent or group) than in the table that was there before; all
    empty when `is_new`. missing: ids that it names and the cache does not hold. was_damaged: the
    cache had a table of this name that could not be read; it counts as none.
    """

    table: TaskTable
    is_new: bool
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    was_damaged: bool = False

    def describe(self) -> str | None:
        """What a refresh changed, in one line; None where nothing did."""
        if self.was_damaged:
            return f"{self.table.reference}: the table in the cache was damaged and is replaced"
        counts = {"added": self.added, "removed": self.removed, "changed": self.changed}
        said = ", ".join(
            f"{counted(len(ids), 'video')} {how}" for how, ids in counts.items() if ids
        )
        return f"labels of {self.table.reference} in the cache: {said}" if said else None


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """What `label_cache` did: a change for each table, and what a user must know."""

    tables: tuple[TableChange, ...]
    notes: tuple[str, ...]


def label_cache(
    cache: str | Path,
    dataset: str | Path,
    *,
    annotations: str | Path | None = None,
    videos: str | Path | None = None,
    tasks: Collection[str] = (),
) -> LabelResult:
    """Add a dataset's task tables to a cache, or refresh them, without touching a video.

    The arguments are those of `find_request`. Where the cache calls its videos by file names
    (`x/ID.mp4`), a row's id is matched with them as `VideoIndex` matches files. Raises UsageError
    when the cache holds none of the videos: the two then call them by different names.
    """
    opened = open_cache(cache)
    root = opened.path  # which refuses an address, also where nothing would change
    read = read_annotations(dataset, annotations=annotations, videos=videos, tasks=tasks)
    held, _ = opened.readable_ids()
    tables = [table.as_sampled(opened.spec.sampling) for table in _as_called(read, held).tables]
    named = {row.id for table in tables for row in table.rows}
    if not named:
        raise UsageError(f"{dataset} names no video in {', '.join(t.task for t in tables)}")
    if held and not named.intersection(held):
        raise UsageError(
            f"{dataset} names no video of {root}: it says {min(named)!r}, the cache "
            f"{min(held)!r}; write the names as `vis4mer cache ls` shows them, or give --videos, "
            "the folder that was extracted"
        )
    changes = save_tables(opened, tables)
    damaged = [change.describe() for change in changes if change.was_damaged]
    return LabelResult(tables=changes, notes=(*read.notes, *filter(None, damaged)))


def save_tables(cache: Cache, tables: Sequence[TaskTable]) -> tuple[TableChange, ...]:
    """Write the tables that are new or say something else than the cache's."""
    present, held = set(cache.tasks()), set(cache.readable_ids()[0])
    changes = []
    for table in tables:
        before, was_damaged = None, False
        try:
            before = cache.task(table.reference) if table.reference in present else None
        except CacheFormatError:  # what stands there is replaced, and the note says so
            was_damaged = True
        if table != before:
            cache.save_task(table)
        changes.append(replace(_change(table, before, held), was_damaged=was_damaged))
    return tuple(changes)


def _change(table: TaskTable, before: TaskTable | None, held: Collection[str]) -> TableChange:
    now, then = _said(table), _said(before or table)
    return TableChange(
        table=table,
        is_new=before is None,
        added=tuple(sorted(now.keys() - then.keys())),
        removed=tuple(sorted(then.keys() - now.keys())),
        changed=tuple(sorted(i for i in now.keys() & then.keys() if now[i] != then[i])),
        missing=tuple(sorted(now.keys() - held)),
    )


def _said(table: TaskTable) -> dict[str, set[tuple[object, ...]]]:
    """What a table says of each video; classes by name, since their numbers may move."""
    found: dict[str, set[tuple[object, ...]]] = {}
    for row in table.rows:
        label = table.classes[int(row.label)] if table.classes else row.label
        said = (row.split, label, row.start_seconds, row.end_seconds, row.group)
        found.setdefault(row.id, set()).add(said)
    return found


def _as_called(read: Annotations, held: Sequence[str]) -> Annotations:
    """The labels with ids as the cache has them, where its names hold an id and no other does."""
    index, exact = NameIndex(held), set(held)
    called: dict[str, str] = {}
    for video_id in read.ids:
        candidates = index.candidates(video_id)
        if video_id not in exact and len(candidates) == 1:
            called[video_id] = candidates[0]
    tables = tuple(
        replace(table, rows=tuple(replace(r, id=called.get(r.id, r.id)) for r in table.rows))
        for table in read.tables
    )
    return replace(read, tables=tables)
