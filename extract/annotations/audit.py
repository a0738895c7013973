"""What a person should know of a dataset before a long run: pure figures, nothing is opened here.

From the annotations alone: sizes of splits and classes, the floor that a result has to beat, and
what leaks from training to test. With what was found of the files (see `check`): what is missing,
undecodable, too short, or of another length than the annotation says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...store.tasks import SPLITS, Split, TaskKind, TaskRow, TaskTable, in_several_splits
from .base import Annotations
from .ends import LabelBeyond, labels_beyond

Cause = Literal["missing", "undecodable", "label"]

SHORTER_SECONDS = 2.0
"""A file that lacks more than this of what the annotation speaks of is not the whole video."""

OUTRO_SECONDS = (5.0, 60.0)
"""A file longer by this much has an outro that the annotation leaves out, which is usual for LVU;
one longer still is perhaps another video."""


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """What was found of a video. path: None when it has no file. duration_seconds: None when the
    file was not opened. failure: why its first frame could not be decoded."""

    path: Path | None
    duration_seconds: float | None = None
    failure: str | None = None

    @property
    def usable(self) -> bool:
        return self.path is not None and self.failure is None


@dataclass(frozen=True, kw_only=True)
class SplitAudit:
    """One split of one task, counted in videos; class_counts in rows, none for a regression.

    present: with a file, which can be decoded where it was opened. short: at least one row speaks
    of less than a window, as far as durations are known; None where no window was given. The
    figures of files are None when no files were looked at.
    """

    split: Split
    videos: int
    present: int | None
    missing: int | None
    undecodable: int | None
    short: int | None
    class_counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TaskAudit:
    """One task. labels: what they are, such as `3 classes`. floor: the share of the most frequent
    class among its test rows, or the MSE of predicting zero there; None without test rows.

    untrained, untested: classes without a training or test row. in_two_splits: videos. leaking:
    test videos that training has seen themselves, or others of their group.
    """

    task: str
    kind: TaskKind
    labels: str
    classes: tuple[str, ...]
    splits: tuple[SplitAudit, ...]
    floor: float | None
    untrained: tuple[str, ...]
    untested: tuple[str, ...]
    in_two_splits: tuple[str, ...]
    leaking: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LengthDifference:
    """A file against its annotation, in seconds; `difference` is positive for a longer file."""

    id: str
    annotated_seconds: float
    file_seconds: float

    @property
    def difference(self) -> float:
        return self.file_seconds - self.annotated_seconds


@dataclass(frozen=True, kw_only=True)
class LengthAudit:
    """Files that were opened and whose length the annotation states.

    too_short, too_long: see SHORTER_SECONDS and OUTRO_SECONDS, the largest difference first.
    """

    compared: int
    same: int
    with_outro: int
    mean_difference: float | None
    too_short: tuple[LengthDifference, ...]
    too_long: tuple[LengthDifference, ...]


@dataclass(frozen=True, kw_only=True)
class LostVideo:
    """A video that cannot be used, and where it is wanted. cause: in a word. problem: `missing`,
    why its file is undecodable, or that all its labels start after its end."""

    id: str
    tasks: tuple[str, ...]
    splits: tuple[Split, ...]
    cause: Cause
    problem: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """A dataset as it was found. seconds: annotated, of the videos whose length is stated.

    looked: whether files were looked for; opened: how many were. split_changes: videos whose split
    differs between tasks. beyond: labels that their file does not hold, but for whole videos, whose
    lengths are compared already. lost: what is missing or undecodable, or has no label that speaks
    of anything in it, in the order of the annotations.
    """

    dataset: str
    videos: int
    seconds: float
    window_seconds: float | None
    looked: bool
    opened: int
    usable: int
    tasks: tuple[TaskAudit, ...]
    lengths: LengthAudit
    split_changes: tuple[str, ...]
    beyond: tuple[LabelBeyond, ...]
    lost: tuple[LostVideo, ...]
    notes: tuple[str, ...]


def audit_annotations(
    annotations: Annotations,
    files: Mapping[str, FoundFile] | None,
    *,
    window_seconds: float | None = 60.0,
) -> Audit:
    """All figures. files: id → what was found of every video; None when nobody looked."""
    ids = annotations.ids
    lengths = _file_seconds(files or {})
    beyond = labels_beyond(annotations.tables, lengths)
    lost = tuple(_lost(annotations, files or {}, beyond))
    return Audit(
        dataset=annotations.dataset,
        videos=len(ids),
        seconds=sum(annotations.durations.get(video_id, 0.0) for video_id in ids),
        window_seconds=window_seconds,
        looked=files is not None,
        opened=sum(f.duration_seconds is not None or bool(f.failure) for f in _values(files)),
        usable=len(files) - len(lost) if files is not None else 0,
        tasks=tuple(
            _task_audit(table, files, _Extents(annotations.durations, lengths), window_seconds)
            for table in annotations.tables
        ),
        lengths=_length_audit(_compared(annotations, lengths)),
        split_changes=tuple(_split_changes(annotations.tables)),
        beyond=tuple(each for each in beyond if not _is_whole(each, annotations.durations)),
        lost=lost,
        notes=annotations.notes,
    )


@dataclass(frozen=True)
class _Extents:
    """How much of a video a row speaks of: the file's own length wins over the annotated one."""

    annotated: Mapping[str, float]
    in_file: Mapping[str, float]

    def seconds(self, row: TaskRow) -> float | None:
        """None where neither the row, the annotation nor a file says where it ends."""
        known = [self.in_file.get(row.id, self.annotated.get(row.id)), row.end_seconds]
        ends = [end for end in known if end is not None]
        return min(ends) - (row.start_seconds or 0.0) if ends else None


def _values(files: Mapping[str, FoundFile] | None) -> Iterable[FoundFile]:
    return files.values() if files is not None else ()


def _file_seconds(files: Mapping[str, FoundFile]) -> dict[str, float]:
    return {
        video_id: found.duration_seconds
        for video_id, found in files.items()
        if found.duration_seconds is not None
    }


def _task_audit(
    table: TaskTable,
    files: Mapping[str, FoundFile] | None,
    extents: _Extents,
    window_seconds: float | None,
) -> TaskAudit:
    splits = [
        _split_audit(table, split, files, extents, window_seconds)
        for split in SPLITS
        if table.split(split)
    ]
    counts = {each.split: each.class_counts for each in splits}
    return TaskAudit(
        task=table.task,
        kind=table.kind,
        labels=table.describe_labels(),
        classes=table.classes,
        splits=tuple(splits),
        floor=_floor(table),
        untrained=_without_rows(table, counts.get("train")),
        untested=_without_rows(table, counts.get("test")),
        in_two_splits=in_several_splits(table.rows),
        leaking=table.leaking(),
    )


def _split_audit(
    table: TaskTable,
    split: Split,
    files: Mapping[str, FoundFile] | None,
    extents: _Extents,
    window_seconds: float | None,
) -> SplitAudit:
    rows = table.split(split)
    ids = {row.id for row in rows}
    short = {
        row.id
        for row in rows
        if (seconds := extents.seconds(row)) is not None and seconds < (window_seconds or 0.0)
    }
    found = [files[video_id] for video_id in ids] if files is not None else None
    missing = None if found is None else sum(f.path is None for f in found)
    labels = Counter(int(row.label) for row in rows) if table.classes else Counter()
    return SplitAudit(
        split=split,
        videos=len(ids),
        present=None if found is None else sum(f.usable for f in found),
        missing=missing,
        undecodable=None if found is None else sum(f.failure is not None for f in found),
        short=None if window_seconds is None else len(short),
        class_counts=tuple(labels[index] for index in range(len(table.classes))),
    )


def _floor(table: TaskTable) -> float | None:
    labels = [row.label for row in table.split("test")]
    if not labels:
        return None
    if table.classes:
        return max(Counter(labels).values()) / len(labels)
    return sum(label**2 for label in labels) / len(labels)


def _without_rows(table: TaskTable, counts: tuple[int, ...] | None) -> tuple[str, ...]:
    """Classes that a split lacks; none are named where there is no such split."""
    if counts is None:
        return ()
    return tuple(name for name, count in zip(table.classes, counts, strict=True) if not count)


def _split_changes(tables: Iterable[TaskTable]) -> Iterator[str]:
    """Videos that one task has in other splits than another task."""
    splits: dict[str, dict[str, set[Split]]] = {}
    for table in tables:
        for row in table.rows:
            splits.setdefault(row.id, {}).setdefault(table.task, set()).add(row.split)
    for video_id, of_task in splits.items():
        if len(set(map(frozenset, of_task.values()))) > 1:
            yield video_id


def _compared(annotations: Annotations, in_file: Mapping[str, float]) -> list[LengthDifference]:
    return [
        LengthDifference(id=video_id, annotated_seconds=stated, file_seconds=in_file[video_id])
        for video_id in annotations.ids
        if video_id in in_file and (stated := annotations.durations.get(video_id)) is not None
    ]


def _length_audit(compared: list[LengthDifference]) -> LengthAudit:
    least, most = OUTRO_SECONDS
    by_size = sorted(compared, key=lambda each: -abs(each.difference))
    differences = [each.difference for each in compared]
    return LengthAudit(
        compared=len(compared),
        same=sum(-SHORTER_SECONDS <= difference < least for difference in differences),
        with_outro=sum(least <= difference <= most for difference in differences),
        mean_difference=sum(differences) / len(differences) if differences else None,
        too_short=tuple(each for each in by_size if each.difference < -SHORTER_SECONDS),
        too_long=tuple(each for each in by_size if each.difference > most),
    )


def _is_whole(label: LabelBeyond, durations: Mapping[str, float]) -> bool:
    """Does the label speak of the whole video, as long as it is annotated to be?"""
    return not label.start_seconds and label.end_seconds == durations.get(label.id)


def _lost(
    annotations: Annotations, files: Mapping[str, FoundFile], beyond: Iterable[LabelBeyond]
) -> Iterator[LostVideo]:
    wanted: dict[str, list[tuple[str, TaskRow]]] = {}
    for table in annotations.tables:
        for row in table.rows:
            wanted.setdefault(row.id, []).append((table.task, row))
    empty = {(each.id, each.start_seconds): each for each in beyond if each.unusable}
    for video_id, places in wanted.items():
        found = files.get(video_id)
        if found is None:
            continue
        cause: Cause = "undecodable" if found.failure else "missing"
        problem = found.failure or (None if found.path is not None else "missing")
        unusable = [empty.get((video_id, row.start_seconds or 0.0)) for _, row in places]
        if problem is None and unusable[0] is not None and all(unusable):
            cause, problem = "label", unusable[0].describe().removeprefix(f"{video_id}: ")
        if problem is not None:
            yield LostVideo(
                id=video_id,
                tasks=tuple(dict.fromkeys(task for task, _ in places)),
                splits=tuple(dict.fromkeys(row.split for _, row in places)),
                cause=cause,
                problem=problem,
            )
