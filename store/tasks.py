"""Task tables: what the labels are, and which part of each video they speak of.

A table travels inside the cache as `tasks/<dataset>/<task>.json`. Crops (COIN's start to end) and
trimmed outros are extents of its rows, half-open seconds from the entry's first frame, applied on
reading: six tasks may name one entry.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from . import fields as f
from .errors import CacheFormatError, UsageError
from .keys import check_id, task_path
from .spec import Sampling

TASKS = "tasks"  # a folder of a cache
Split = Literal["train", "val", "test"]
TaskKind = Literal["classification", "regression"]
SPLITS: tuple[Split, ...] = get_args(Split)
_EXTENT = re.compile(r"(?<=.)@[0-9]+-[0-9]*\Z", re.DOTALL)
MAX_SECONDS = 1e9  # thirty years: a later moment is a mistake or an attack


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One labelled video: `label` is a class index, or a value for regression.

    The extent is [start_seconds, end_seconds) from the first frame; None means the video's own
    beginning or end. `group` names what must not be shared between splits (LVU: the movie).
    """

    id: str
    split: Split
    label: float
    start_seconds: float | None = None
    end_seconds: float | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.label):
            raise UsageError(f"video {self.id!r}: label {self.label}, expected a finite number")
        start = self.start_seconds or 0.0
        end = MAX_SECONDS if self.end_seconds is None else self.end_seconds
        if not 0 <= start < end <= MAX_SECONDS:
            raise UsageError(
                f"video {self.id!r}: extent {self.start_seconds} to {self.end_seconds} seconds, "
                f"expected 0 <= start < end <= {MAX_SECONDS:g}"
            )


@dataclass(frozen=True, kw_only=True)
class TaskTable:
    """All rows of one task, e.g. `lvu/relationship`. `classes` is empty for regression."""

    dataset: str
    task: str
    kind: TaskKind
    classes: tuple[str, ...] = ()
    rows: tuple[TaskRow, ...]

    def __post_init__(self) -> None:
        task_path(self.reference)
        if (self.kind == "classification") != bool(self.classes):
            raise UsageError(
                f"task {self.reference}: a classification task, and no other, has classes"
            )
        for row in self.rows:
            check_id(row.id)
            if self.classes and not (
                row.label == int(row.label) and 0 <= row.label < self.num_outputs
            ):
                raise UsageError(
                    f"task {self.reference}: video {row.id!r} has class {row.label:g}, "
                    f"expected 0 to {self.num_outputs - 1}"
                )

    @property
    def reference(self) -> str:
        return f"{self.dataset}/{self.task}"

    @property
    def num_outputs(self) -> int:
        return len(self.classes) or 1

    def describe_labels(self) -> str:
        """`3 classes`, or `a regression, values 1 to 2`."""
        if self.classes:
            return "1 class" if len(self.classes) == 1 else f"{len(self.classes)} classes"
        values = [row.label for row in self.rows]
        return f"a regression, values {min(values):g} to {max(values):g}" if values else "no rows"

    def split(self, split: Split) -> tuple[TaskRow, ...]:
        return tuple(row for row in self.rows if row.split == split)

    def leaking(self) -> tuple[str, ...]:
        """Test videos of which training has seen something: the video itself, or its group."""
        train = self.split("train")
        seen = {row.id for row in train}
        groups = {row.group for row in train} - {None}
        rows = self.split("test")
        return tuple(dict.fromkeys(r.id for r in rows if r.id in seen or r.group in groups))

    def as_sampled(self, sampling: Sampling) -> TaskTable:
        """The table for a cache of this sampling: where a row's extent decides what is sampled, it
        is part of the entry's id (`extent_id`) and no more to be cut out on reading. A row without
        a group keeps its video as one, so that crops of a video are still of one video."""
        if not sampling.needs_extent:
            return self
        rows = tuple(
            replace(
                row,
                id=extent_id(row.id, row.start_seconds, row.end_seconds),
                start_seconds=None,
                end_seconds=None,
                group=row.id if row.group is None else row.group,
            )
            for row in self.rows
        )
        return replace(self, rows=rows)

    def to_json(self) -> dict[str, Any]:
        rows = [
            [r.id, r.split, r.label, r.start_seconds, r.end_seconds, r.group] for r in self.rows
        ]
        return {
            "dataset": self.dataset,
            "task": self.task,
            "kind": self.kind,
            "classes": list(self.classes),
            "columns": ["id", "split", "label", "start_seconds", "end_seconds", "group"],
            "rows": rows,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> TaskTable:
        """Read an untrusted table; CacheFormatError names the file and the row."""
        try:
            return cls(
                dataset=f.text(data, "dataset", name=name),
                task=f.text(data, "task", name=name),
                kind=f.choice(data, "kind", get_args(TaskKind), name=name),
                classes=f.texts(data, "classes", name=name),
                rows=tuple(
                    _row(row, f"{name}: row {i}")
                    for i, row in enumerate(f.sequence(data, "rows", name=name))
                ),
            )
        except UsageError as error:
            raise CacheFormatError(f"{name}: {error}") from error


def table_path(reference: str) -> str:
    """Where the table of `lvu/relationship` lies below a cache: `tasks/lvu/relationship.json`.
    UsageError for what is no reference."""
    dataset, task = task_path(reference)
    return f"{TASKS}/{dataset}/{task}.json"


def extent_id(entry_id: str, start_seconds: float | None, end_seconds: float | None) -> str:
    """`ID@startms-endms` for a part of a video, in whole milliseconds; the id where it is whole.

    An end that is not given stays empty: `ID@2500-`.
    """
    if start_seconds is None and end_seconds is None:
        return entry_id
    end = "" if end_seconds is None else str(round(end_seconds * 1000))
    return f"{entry_id}@{round((start_seconds or 0.0) * 1000)}-{end}"


def video_of(entry_id: str, sampling: Sampling) -> str:
    """The video that an entry is, or is a part of: what `extent_id` was given."""
    return without_extent(entry_id) if sampling.needs_extent else entry_id


def without_extent(entry_id: str) -> str:
    """`ID` of `ID@startms-endms`, and any other id as it is. Of a cache whose sampling is not
    known: an id of its own may end so too."""
    return _EXTENT.sub("", entry_id)


def extent_of(entry_id: str) -> tuple[float | None, float | None]:
    """(start_seconds, end_seconds) of `ID@startms-endms`, to the millisecond; None where there is
    none. UsageError for a time that no video has."""
    match = _EXTENT.search(entry_id)
    if match is None:
        return None, None
    start, _, end = match[0][1:].partition("-")
    if max(len(start), len(end)) > len(str(int(MAX_SECONDS) * 1000)):
        raise UsageError(f"video {entry_id!r}: no video lasts so long")
    return int(start) / 1000, int(end) / 1000 if end else None


def in_several_splits(
    rows: Iterable[TaskRow], *, sampling: Sampling | None = None
) -> tuple[str, ...]:
    """Videos that more than one split names, in the order of the rows.

    sampling: of the cache whose ids the rows carry, where those may be of parts of videos.
    """
    splits: dict[str, set[Split]] = {}
    for row in rows:
        video = row.id if sampling is None else video_of(row.id, sampling)
        splits.setdefault(video, set()).add(row.split)
    return tuple(video for video, found in splits.items() if len(found) > 1)


def _row(values: object, name: str) -> TaskRow:
    columns = ("id", "split", "label", "start_seconds", "end_seconds", "group")
    if not isinstance(values, list) or len(values) != len(columns):
        raise CacheFormatError(f"{name}: expected a list of {len(columns)} values")
    data = dict(zip(columns, values, strict=True))
    return TaskRow(
        id=f.text(data, "id", name=name),
        split=f.choice(data, "split", SPLITS, name=name),
        label=f.number(data, "label", name=name),
        start_seconds=f.optional_number(data, "start_seconds", name=name),
        end_seconds=f.optional_number(data, "end_seconds", name=name),
        group=None if data["group"] is None else f.text(data, "group", name=name),
    )
