"""What two caches do not have in common: settings, entries, values, times, labels.

    diff_caches(open_cache("a.zarr"), open_cache("b.zarr")).equal

Entries are compared by what their records say of the values (SHA-256 of each array), so that no
token is read: two caches that are compared after `verify --full` hold what they say. How an entry
came about, and how it lies on the disk, makes no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .cache import Cache
from .errors import FieldDifference
from .records import EntryRecord
from .spec import NOT_IDENTITY, CacheSpec, diff_specs
from .tasks import TaskRow, TaskTable
from .wording import counted, some_of

RowKey = tuple[str, float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class EntryDifference:
    """One video that both hold differently.

    values: what differs in both: `times`, `duration`, or Zarr arrays by name. only_a, only_b: token
    arrays that only one of them has.
    """

    id: str
    values: tuple[str, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskDifference:
    """One task table that is not the same in both, and in what."""

    reference: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CacheDiff:
    """Everything in which two caches differ; num_same: videos that both hold alike."""

    spec: tuple[FieldDifference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    entries: tuple[EntryDifference, ...]
    tasks: tuple[TaskDifference, ...]
    num_same: int

    @property
    def equal(self) -> bool:
        return not (self.spec or self.only_a or self.only_b or self.entries or self.tasks)

    def to_json(self) -> dict[str, Any]:
        return {"equal": self.equal, **asdict(self)}


def diff_caches(a: Cache, b: Cache) -> CacheDiff:
    """Compare two caches. CacheFormatError when a record or a table of one does not check."""
    in_a, in_b = (
        {record.id: record for record in cache.records(otherwise="it cannot be compared")}
        for cache in (a, b)
    )
    both = sorted(in_a.keys() & in_b.keys())
    differing = [found for i in both if (found := diff_entries(in_a[i], in_b[i]))]
    return CacheDiff(
        spec=_diff_all_fields(a.spec, b.spec),
        only_a=tuple(sorted(in_a.keys() - in_b.keys())),
        only_b=tuple(sorted(in_b.keys() - in_a.keys())),
        entries=tuple(differing),
        tasks=tuple(_diff_tasks(a, b)),
        num_same=len(both) - len(differing),
    )


def diff_entries(a: EntryRecord, b: EntryRecord) -> EntryDifference | None:
    """In what two records of one video differ; None when they hold the same."""
    values = differing_values(a, b)
    only_a = tuple(array for array in a.token_arrays if array not in b.token_arrays)
    only_b = tuple(array for array in b.token_arrays if array not in a.token_arrays)
    if not (values or only_a or only_b):
        return None
    return EntryDifference(id=a.id, values=values, only_a=only_a, only_b=only_b)


def differing_values(a: EntryRecord, b: EntryRecord) -> tuple[str, ...]:
    """`times`, `duration`, and the arrays that both have and that hold other values."""
    times = () if a.pts_seconds == b.pts_seconds else ("times",)
    duration = () if a.duration_seconds == b.duration_seconds else ("duration",)
    arrays = sorted(set(a.arrays) & set(b.arrays))
    return (*times, *duration, *(name for name in arrays if _values(a, name) != _values(b, name)))


def diff_tables(a: TaskTable, b: TaskTable) -> tuple[str, ...]:
    """In what two tables of one task differ, in words. The order of rows makes no difference."""
    reasons = []
    if (a.kind, a.classes) != (b.kind, b.classes):
        reasons.append(f"labels: {a.describe_labels()} and {b.describe_labels()}")
        if len(a.classes) == len(b.classes):
            i = next((i for i, n in enumerate(a.classes) if n != b.classes[i]), 0)
            if a.classes:
                reasons.append(f"class {i} is {a.classes[i]!r} and {b.classes[i]!r}")
    rows_a, rows_b = set(a.rows), set(b.rows)
    keys_a, keys_b = {row_key(row) for row in a.rows}, {row_key(row) for row in b.rows}
    changed = {row_key(row) for row in rows_a ^ rows_b} & keys_a & keys_b
    reasons += _rows("other label, split or group", changed)
    reasons += _rows("only in A", keys_a - keys_b)
    reasons += _rows("only in B", keys_b - keys_a)
    if not reasons and Counter(a.rows) != Counter(b.rows):
        reasons.append("rows are repeated in one of them")
    return tuple(reasons)


def row_key(row: TaskRow) -> RowKey:
    """What a row speaks of: a video, or a part of one."""
    return row.id, row.start_seconds, row.end_seconds


def describe_key(key: RowKey) -> str:
    """`clip.mp4`, or `clip.mp4 from 2 s to 9.5 s`."""
    entry_id, start, end = key
    since = "" if start is None else f" from {start:g} s"
    return entry_id + since + ("" if end is None else f" to {end:g} s")


def _rows(what: str, keys: Iterable[RowKey]) -> list[str]:
    names = sorted(describe_key(key) for key in keys)
    return [f"{counted(len(names), 'row')} {what}: {some_of(names)}"] if names else []


def _values(record: EntryRecord, name: str) -> tuple[object, ...]:
    array = record.arrays[name]
    return array.shape, array.dtype, array.sha256


def _diff_tasks(a: Cache, b: Cache) -> Iterable[TaskDifference]:
    in_a, in_b = a.tasks(), b.tasks()
    for reference in sorted({*in_a, *in_b}):
        reasons: Sequence[str]
        if reference not in in_a or reference not in in_b:
            reasons = (f"only in {'A' if reference in in_a else 'B'}",)
        else:
            reasons = diff_tables(a.task(reference), b.task(reference))
        if reasons:
            yield TaskDifference(reference=reference, reasons=tuple(reasons))


def _diff_all_fields(a: CacheSpec, b: CacheSpec) -> tuple[FieldDifference, ...]:
    """Those that change values first, then those that only describe."""
    others = [
        FieldDifference(name, _shown(getattr(a, name)), _shown(getattr(b, name)))
        for name in (*NOT_IDENTITY, "unknown_fields")
        if getattr(a, name) != getattr(b, name)
    ]
    return (*diff_specs(a, b), *others)


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
