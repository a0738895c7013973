"""Which part of a cache is moved: videos by id, task or split, and of each the arrays asked for.

Knows no place and no bytes: records in, narrower records out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import UsageError
from ..records import EntryRecord, stored_arrays
from ..spec import CacheSpec
from ..tasks import Split, TaskTable
from ..wording import some_of


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A part of a cache; None is all. ids: of videos. task: only videos it names, of `split` alone
    where one is given. arrays: of `patch`, `prefix`, `gridN`."""

    ids: tuple[str, ...] | None = None
    task: str | None = None
    split: Split | None = None
    arrays: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.split is not None and self.task is None:
            raise UsageError(f"--split {self.split} says nothing without --task DATASET/TASK")
        if self.arrays is not None and not self.arrays:
            raise UsageError("--views names nothing; expected some of patch, prefix, gridN")

    def tables(self, present: Sequence[str], *, name: str) -> list[str]:
        """Of the task tables of the cache `name`, those to move. UsageError for an unknown one."""
        if self.task is None:
            return sorted(present)
        if self.task not in present:
            listed = ", ".join(sorted(present)) or "none"
            raise UsageError(f"{name} has no task {self.task!r}; it has {listed}")
        return [self.task]

    def chosen(
        self, ids: Sequence[str], table: TaskTable | None, *, name: str
    ) -> tuple[list[str], list[str]]:
        """(ids to move, ids asked for that the cache `name` lacks), each sorted.

        table: that of `task`. UsageError where an id of `ids` is nowhere.
        """
        present = set(ids)
        wanted = present
        if self.ids is not None:
            if unknown := sorted(set(self.ids) - present):
                listed = some_of(unknown)
                raise UsageError(f"{name} has no video {listed}; `vis4mer cache ls` lists them")
            wanted = set(self.ids)
        if table is None:
            return sorted(wanted), []
        rows = table.rows if self.split is None else table.split(self.split)
        named = {row.id for row in rows}
        lacking = sorted(named - present) if self.ids is None else []
        return sorted(wanted & named), lacking

    def spec(self, spec: CacheSpec) -> CacheSpec:
        """The spec of what is moved. UsageError for an array that this backbone cannot have."""
        if self.arrays is None:
            return spec
        try:
            return replace(spec, arrays=self.arrays)
        except ValueError as error:
            raise UsageError(f"--views {','.join(self.arrays)}: {error}") from error


def narrowed(
    record: EntryRecord, arrays: Sequence[str] | None, spec: CacheSpec
) -> EntryRecord | None:
    """The record with only these token arrays and their scales; None when it holds none of them."""
    if arrays is None or set(record.token_arrays) <= set(arrays):
        return record
    kept = [array for array in record.token_arrays if array in arrays]
    if not kept:
        return None
    names = {stored for array in kept for stored in stored_arrays(spec, array)}
    return replace(
        record,
        arrays={name: layout for name, layout in record.arrays.items() if name in names},
        objects={
            path: stored
            for path, stored in record.objects.items()
            if "/" not in path or path.partition("/")[0] in names
        },
    )


def lacks_some(record: EntryRecord, selection: Selection, spec: CacheSpec) -> bool:
    """Does an entry lack arrays that were asked for? (No entry has what its backbone does not.)"""
    if selection.arrays is None:
        return False
    return not set(selection.spec(spec).arrays) <= set(record.token_arrays)
