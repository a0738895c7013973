"""What the parsers of annotations have in common: the record they give, and how rows are settled.

A parser turns somebody's files into task tables whose rows carry ids as that dataset calls its
videos. What a user must be told of the files (a row left out, an id in two splits) is a note, a
line for people; what cannot be understood is a UsageError with file and line. Knows nothing of
video files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...store.errors import UsageError
from ...store.tasks import Split, TaskRow, TaskTable, in_several_splits
from ...store.wording import counted, some_of

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """A dataset's labels as they were understood.

    tables: one a task; ids as the dataset calls its videos, extents in seconds. durations: id →
    seconds that the annotation says a video lasts, where it says so. notes: what a user must know
    of these files, one line each.
    """

    dataset: str
    tables: tuple[TaskTable, ...]
    durations: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The videos that any task names, each once, in the order of the tables."""
        return tuple(dict.fromkeys(row.id for table in self.tables for row in table.rows))

    def with_tasks(self, tasks: Collection[str]) -> Annotations:
        """Only these tasks (`relationship` or `lvu/relationship`); all of them when none is named.

        Raises UsageError for a task that the dataset does not have, listing those it has.
        """
        known = {name: table for table in self.tables for name in (table.task, table.reference)}
        unknown = [name for name in tasks if name not in known]
        if unknown:
            raise UsageError(
                f"--task {unknown[0]}: {self.dataset} has no such task, expected one of: "
                f"{', '.join(table.task for table in self.tables)}"
            )
        chosen = {known[name].task for name in tasks} or {table.task for table in self.tables}
        return replace(self, tables=tuple(t for t in self.tables if t.task in chosen))


@dataclass(frozen=True, kw_only=True)
class PlacedRow:
    """A row and where it stands, `FILE, line N`, for errors and notes."""

    where: str
    row: TaskRow


def placed_row(
    where: str,
    *,
    video_id: str,
    split: Split,
    label: float,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    group: str | None = None,
) -> PlacedRow:
    """A row of a table; what the table would refuse is refused with its place."""
    try:
        row = TaskRow(
            id=video_id,
            split=split,
            label=label,
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            group=group,
        )
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return PlacedRow(where=where, row=row)


def class_index(text: str, num_outputs: int, *, where: str) -> int:
    """A class number from 0 to num_outputs - 1, in plain digits; UsageError names the place."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < num_outputs):
        raise UsageError(f"{where}: class {text!r}, expected a number from 0 to {num_outputs - 1}")
    return int(text)


def settle_rows(placed: Iterable[PlacedRow], *, task: str) -> tuple[tuple[TaskRow, ...], list[str]]:
    """The rows, each once, and notes on what was met.

    A row that repeats an earlier one (video, split, extent and label) is dropped. Raises UsageError
    when it has another label: nobody can know which is right. A video in two splits is kept.
    """
    first: dict[tuple[object, ...], PlacedRow] = {}
    repeated: list[str] = []
    for each in placed:
        row = each.row
        key = (row.id, row.split, row.start_seconds, row.end_seconds)
        earlier = first.setdefault(key, each)
        if earlier is each:
            continue
        if earlier.row.label != row.label:
            raise UsageError(
                f"{each.where}: video {row.id!r} with this split and extent already stands in "
                f"{_line_of(earlier.where)} with another label; keep the line that is right"
            )
        repeated.append(f"{row.id} of {row.split} ({_line_of(each.where)})")
    rows = tuple(each.row for each in first.values())
    notes = []
    if repeated:
        notes.append(
            f"{counted(len(repeated), 'row')} of {task} dropped as repeated: "
            f"{some_of(repeated, most=3)}"
        )
    if doubled := in_several_splits(rows):
        notes.append(
            f"{counted(len(doubled), 'video')} of {task} in more than one split, kept in each "
            f"although it leaks: {some_of(doubled, most=3)}"
        )
    return rows, notes


def note_of(what: str, ids: Sequence[str]) -> list[str]:
    """No note when there are no ids, else one: how many, what, and a few of them.

    The first word of `what` is what is counted: `row of genre` becomes `3 rows of genre`.
    """
    noun, space, rest = what.partition(" ")
    return [f"{counted(len(ids), noun)}{space}{rest}: {some_of(ids, most=3)}"] if ids else []


def _line_of(where: str) -> str:
    """`line 3` of `FILE, line 3`."""
    return where.rpartition(", ")[2]
