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
makes the task a regression. Knows nothing of what a video holds.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TextIO

from ...store.errors import UsageError
from ...store.keys import slug_name
from ...store.tasks import Split, TaskKind, TaskRow, TaskTable
from ..sources import VIDEO_EXTENSIONS, VideoSource, video_source

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_NUMBER_PATTERN = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_WHOLE_PATTERN = re.compile(r"[+-]?[0-9]{1,300}")  # no longer than a finite float
_OPTIONAL = ("start_seconds", "end_seconds", "group")


@dataclass(frozen=True, kw_only=True)
class LabelledVideos:
    """A CSV as it was understood: the task, and its videos, each once, in the CSV's order."""

    table: TaskTable
    videos: tuple[VideoSource, ...]


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One row of the file; `where` names file and line for errors."""

    where: str
    values: Mapping[str, str]


def read_table(
    path: str | Path, *, videos: str | Path | None = None, kind: TaskKind | None = None
) -> LabelledVideos:
    """Read a CSV of labels.

    videos: the folder that paths and ids are below (default: the CSV's own). kind: classification
    or regression, where the labels themselves would be taken for the other.

    The task is `STEM/label`, STEM being the slug of the file's name. An id without extension is
    found by its stem. A video named in several rows must have other extents or splits in each.
    Raises UsageError with file and line for anything that is not as described.
    """
    csv_path = Path(path)
    folder = Path(videos) if videos is not None else csv_path.parent
    lines = _read_lines(csv_path)
    column = "path" if "path" in lines[0].values else "id"
    by_stem = _stems(folder) if column == "id" else {}
    sources = [_source(line, column, folder, by_stem) for line in lines]
    labels = [_required(line, "label") for line in lines]
    chosen = kind or _kind_of(labels)
    classes = _classes(labels) if chosen == "classification" else ()
    rows = [
        _row(line, source.id, label=_label(line, classes))
        for line, source in zip(lines, sources, strict=True)
    ]
    _refuse_duplicates(lines, rows)
    table = TaskTable(
        dataset=slug_name(csv_path.stem),
        task="label",
        kind=chosen,
        classes=classes,
        rows=tuple(rows),
    )
    return LabelledVideos(table=table, videos=_each_once(lines, sources))


def _read_lines(path: Path) -> list[_Line]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parse(file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); expected a CSV in UTF-8") from error
    except csv.Error as error:
        raise UsageError(f"{path}: not a CSV ({error})") from error


def _parse(file: TextIO, path: Path) -> list[_Line]:
    reader = csv.reader(file, strict=True)
    header = [name.strip().lower() for name in next(reader, [])]
    _check_header(header, path)
    lines = []
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise UsageError(
                f"{where}: {len(cells)} values, expected {len(header)} ({','.join(header)}); "
                'a value that holds a comma stands in "quotes"'
            )
        values = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        lines.append(_Line(where=where, values=values))
    if not lines:
        raise UsageError(f"{path}: no rows below the header, expected one a video")
    return lines


def _check_header(header: Sequence[str], path: Path) -> None:
    where = f"{path}, line 1"
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


def _required(line: _Line, column: str) -> str:
    if not line.values[column]:
        raise UsageError(f"{line.where}: column {column!r} is empty")
    return line.values[column]


def _source(
    line: _Line, column: str, folder: Path, by_stem: Mapping[str, Sequence[Path]]
) -> VideoSource:
    """The video of a row. Whether a `path` exists is found out when it is read."""
    name = _required(line, column)
    path = folder / name
    if column == "id" and not path.is_file():
        matches = by_stem.get(name) or by_stem.get(PurePosixPath(name).name, ())
        if len(matches) > 1:
            raise UsageError(
                f"{line.where}: id {name!r} could be {matches[0]} or {matches[1]}; "
                "write it with its folder and extension"
            )
        path = matches[0] if matches else path
        return video_source(path, name)
    relative = path.relative_to(folder) if path.is_relative_to(folder) else path
    return video_source(path, relative.as_posix() if column == "path" else name)


def _stems(folder: Path) -> dict[str, list[Path]]:
    """Videos below a folder by what an id may call them: the path or the name, no extension."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix.lower() in VIDEO_EXTENSIONS and path.is_file():
            without = path.relative_to(folder).with_suffix("").as_posix()
            for name in {without, path.stem, path.name}:
                found.setdefault(name, []).append(path)
    return found


def _number(text: str) -> float | None:
    """The number that a text is, as people write numbers; None for any other text.

    Python's own spelling (1_1, nan, inf, digits of other scripts) makes a label no number.
    """
    if not _NUMBER_PATTERN.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _is_whole(text: str) -> bool:
    return _WHOLE_PATTERN.fullmatch(text) is not None


def _kind_of(labels: Iterable[str]) -> Literal["classification", "regression"]:
    labels = list(labels)
    numbers = all(_number(label) is not None for label in labels)
    decimal = not all(_is_whole(label) for label in labels)
    return "regression" if numbers and decimal else "classification"


def _classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Class names in order: of their values when all are whole numbers, else of the alphabet."""
    names = set(labels)
    if all(_is_whole(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _label(line: _Line, classes: tuple[str, ...]) -> float:
    """The index of the class, or the value."""
    text = line.values["label"]
    if classes:
        return float(classes.index(text))
    value = _number(text)
    if value is None:
        raise UsageError(f"{line.where}: label {text!r}, expected a number for a regression task")
    return value


def _row(line: _Line, video_id: str, *, label: float) -> TaskRow:
    split = _SPLITS.get(_required(line, "split").lower())
    if split is None:
        raise UsageError(
            f"{line.where}: unknown split {line.values['split']!r}, expected one of: "
            f"{', '.join(_SPLITS)}"
        )
    start, end = (_seconds(line, column) for column in ("start_seconds", "end_seconds"))
    try:
        return TaskRow(
            id=video_id,
            split=split,
            label=label,
            start_seconds=start,
            end_seconds=end,
            group=line.values.get("group") or None,
        )
    except UsageError as error:
        raise UsageError(f"{line.where}: {error}") from error


def _seconds(line: _Line, column: str) -> float | None:
    text = line.values.get(column, "")
    if not text:
        return None
    value = _number(text)
    if value is None or value < 0:
        raise UsageError(f"{line.where}: {column} {text!r}, expected seconds from 0, or nothing")
    return value


def _refuse_duplicates(lines: Sequence[_Line], rows: Sequence[TaskRow]) -> None:
    first: dict[tuple[object, ...], str] = {}
    for line, row in zip(lines, rows, strict=True):
        key = (row.id, row.split, row.start_seconds, row.end_seconds)
        earlier = first.setdefault(key, line.where)
        if earlier != line.where:
            raise UsageError(
                f"{line.where}: video {row.id!r} with this split and extent already stands in "
                f"line {earlier.rpartition(' ')[2]}"
            )


def _each_once(lines: Sequence[_Line], sources: Sequence[VideoSource]) -> tuple[VideoSource, ...]:
    by_id: dict[str, VideoSource] = {}
    for line, source in zip(lines, sources, strict=True):
        other = by_id.setdefault(source.id, source)
        if other.path != source.path:
            raise UsageError(
                f"{line.where}: {source.id!r} stands for {other.path} and for {source.path}"
            )
    return tuple(by_id.values())
