"""Labels of one's own: one CSV becomes a task table and the videos it speaks of.

Columns, comma-separated with a header line: `path` or `id`, `label` (text or a number), `split`,
and optionally `start_seconds`, `end_seconds` (half-open, from the first frame) and `group` (what
must not be shared between splits). A byte-order mark and CRLF are fine; other columns are left
alone.

    path,label,split
    clips/a.mp4,left,train
    clips/b.mp4,right,test

Paths are relative to the CSV, or to a folder given beside it. An `id` is a path below that folder,
with or without its extension. Text and whole numbers are classes; one decimal number among numbers
makes the task a regression, and one among text is refused. Knows nothing of what a video holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ...store.errors import UsageError
from ...store.keys import slug_name
from ...store.tasks import TaskKind, TaskTable
from ...store.wording import counted
from ..sources import VideoSource, video_source
from .base import SPLIT_NAMES, Annotations, PlacedRow, placed_row, settle_rows
from .index import VideoIndex
from .lines import CsvLine, number, read_csv

_WHOLE_PATTERN = re.compile(r"[+-]?[0-9]{1,300}")  # no longer than a finite float
_CONTROL_PATTERN = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_OPTIONAL = ("start_seconds", "end_seconds", "group")


@dataclass(frozen=True, kw_only=True)
class LabelledVideos:
    """A CSV as it was understood: the task, its videos, each once, in the CSV's order, and what a
    user must be told of it."""

    table: TaskTable
    videos: tuple[VideoSource, ...]
    notes: tuple[str, ...] = ()

    @property
    def annotations(self) -> Annotations:
        """The labels alone, in the form that all datasets have."""
        return Annotations(
            dataset=self.table.dataset, tables=(self.table,), durations={}, notes=self.notes
        )


def read_table(
    path: str | Path, *, videos: str | Path | None = None, kind: TaskKind | None = None
) -> LabelledVideos:
    """Read a CSV of labels.

    videos: the folder that paths and ids are below (default: the CSV's own). kind: classification
    or regression, where the labels themselves would be taken for the other.

    The task is `STEM/label`, STEM being the slug of the file's name. An id without extension is
    found as `VideoIndex` finds it. A video named in several rows must have other extents or splits
    in each; a row that repeats another is dropped with a note. Raises UsageError with file and line
    for anything that is not as described.
    """
    csv_path = Path(path)
    folder = Path(videos) if videos is not None else csv_path.parent
    lines = read_csv(csv_path, check_header=_check_header)
    if "path" in lines[0].values:
        sources = [_source_of_path(line, folder) for line in lines]
    else:
        index = VideoIndex(folder) if folder.is_dir() else None
        sources = [_source_of_id(line, folder, index) for line in lines]
    labels = [_required(line, "label") for line in lines]
    chosen = kind or _kind_of(lines)
    if chosen == "classification":
        _require_one_spelling(lines)
    classes = _classes(labels) if chosen == "classification" else ()
    index_of = {name: float(i) for i, name in enumerate(classes)}
    placed = [
        _row(line, source.id, label=_label(line, index_of))
        for line, source in zip(lines, sources, strict=True)
    ]
    rows, notes = settle_rows(placed, task="label")
    table = TaskTable(
        dataset=slug_name(csv_path.stem),
        task="label",
        kind=chosen,
        classes=classes,
        rows=rows,
    )
    return LabelledVideos(table=table, videos=_each_once(lines, sources), notes=tuple(notes))


def _check_header(header: Sequence[str], where: str) -> None:
    expected = "expected the columns path (or id), label, split and optionally " + ", ".join(
        _OPTIONAL
    )
    doubled = sorted({name for name in header if name and header.count(name) > 1})
    if doubled:
        raise UsageError(f"{where}: column {doubled[0]!r} stands there twice; {expected}")
    missing = [name for name in ("label", "split") if name not in header]
    if "path" not in header and "id" not in header:
        missing.insert(0, "path")
    if missing:
        found = ",".join(header) or "nothing"
        raise UsageError(
            f"{where}: column {missing[0]!r} is missing (found {found}); {expected}, "
            "comma-separated"
        )


def _required(line: CsvLine, column: str) -> str:
    if not line.values[column]:
        raise UsageError(f"{line.where}: column {column!r} is empty")
    return line.values[column]


def _file_name(line: CsvLine, column: str) -> str:
    """The value of `path` or `id`, which names a file: with a NUL the system takes it for none."""
    name = _required(line, column)
    if _CONTROL_PATTERN.search(name):
        raise UsageError(
            f"{line.where}: {column} {name!r} holds a control character, expected the name of a "
            "video"
        )
    return name


def is_file(path: Path) -> bool:
    """Whether a file is there; no where the system takes no such name, as one of 256 bytes."""
    try:
        return path.is_file()
    except OSError:
        return False


def _source_of_path(line: CsvLine, folder: Path) -> VideoSource:
    """The video of a row by its path. Whether it exists is found out when it is read."""
    path = folder / _file_name(line, "path")
    relative = path.relative_to(folder) if path.is_relative_to(folder) else path
    return video_source(path, relative.as_posix())


def _source_of_id(line: CsvLine, folder: Path, index: VideoIndex | None) -> VideoSource:
    """The video of a row by its id: the path below the folder, or what the index finds."""
    name = _file_name(line, "id")
    path = folder / name
    if index is None or is_file(path):
        return video_source(path, name)
    matches = index.candidates(name) or index.candidates(PurePosixPath(name).name)
    if len(matches) > 1:
        raise UsageError(
            f"{line.where}: id {name!r} could be {matches[0]} or {matches[1]}; "
            "write it with its folder and extension"
        )
    return video_source(matches[0] if matches else path, name)


def _is_whole(text: str) -> bool:
    return _WHOLE_PATTERN.fullmatch(text) is not None


def _kind_of(lines: Sequence[CsvLine]) -> Literal["classification", "regression"]:
    """What the labels are. UsageError where they look like numbers and one of them is none: a
    slip of the pen must not make classes of a regression."""
    labels = [line.values["label"] for line in lines]
    others = [line for line in lines if number(line.values["label"]) is None]
    decimal = any(not _is_whole(label) and number(label) is not None for label in labels)
    if not others:
        return "regression" if decimal else "classification"
    endless = [line for line in others if _is_endless(line.values["label"])]
    if decimal or (endless and len(others) < len(lines)) or len(endless) == len(lines):
        wrong = (endless or others)[0]
        raise UsageError(
            f"{wrong.where}: label {wrong.values['label']!r} is no finite number, and "
            f"{len(lines) - len(others)} of {counted(len(lines), 'label')} are; write text for "
            "all classes, or mend the line"
        )
    return "classification"


def _is_endless(text: str) -> bool:
    """Does it read as a number, and is not a finite one: nan, inf, 1e999?"""
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return False


def _classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Class names in order: of their values when all are whole numbers, else of the alphabet."""
    names = set(labels)
    if all(_is_whole(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _require_one_spelling(lines: Sequence[CsvLine]) -> None:
    """UsageError where all labels are whole numbers and one is written in two ways: `1`, `01`."""
    if not all(_is_whole(line.values["label"]) for line in lines):
        return
    spelled: dict[int, str] = {}
    for line in lines:
        label = line.values["label"]
        other = spelled.setdefault(int(label), label)
        if other != label:
            raise UsageError(
                f"{line.where}: labels {other!r} and {label!r} are one number written in two "
                "ways; write one"
            )


def _label(line: CsvLine, index_of: Mapping[str, float]) -> float:
    """The index of the class, or the value."""
    text = line.values["label"]
    if index_of:
        return index_of[text]
    value = number(text)
    if value is None:
        raise UsageError(f"{line.where}: label {text!r}, expected a number for a regression task")
    return value


def _row(line: CsvLine, video_id: str, *, label: float) -> PlacedRow:
    split = SPLIT_NAMES.get(_required(line, "split").lower())
    if split is None:
        raise UsageError(
            f"{line.where}: unknown split {line.values['split']!r}, expected one of: "
            f"{', '.join(SPLIT_NAMES)}"
        )
    start, end = (_seconds(line, column) for column in ("start_seconds", "end_seconds"))
    return placed_row(
        line.where,
        video_id=video_id,
        split=split,
        label=label,
        start_seconds=start,
        end_seconds=end,
        group=line.values.get("group") or None,
    )


def _seconds(line: CsvLine, column: str) -> float | None:
    text = line.values.get(column, "")
    if not text:
        return None
    value = number(text)
    if value is None or value < 0:
        raise UsageError(f"{line.where}: {column} {text!r}, expected seconds from 0, or nothing")
    return value


def _each_once(lines: Sequence[CsvLine], sources: Sequence[VideoSource]) -> tuple[VideoSource, ...]:
    by_id: dict[str, VideoSource] = {}
    for line, source in zip(lines, sources, strict=True):
        other = by_id.setdefault(source.id, source)
        if other.path != source.path:
            raise UsageError(
                f"{line.where}: {source.id!r} stands for {other.path} and for {source.path}"
            )
    return tuple(by_id.values())
