"""LVU's nine tasks: `lvu_1.0/<task>/{train,val,test}.csv` and `lvu_durations.csv`.

The files are separated by spaces and read from the end of the line, since a class name may hold
anything:

    class_id class_name youtube_id imdb_id          0 husband wife -e6lEsIUf3U tt0161100
    like_count dislike_count youtube_id imdb_id     100061 3801 29VjYkPPY2s tt0451279
    view_count youtube_id imdb_id                   100124 gFKba_Esjt0 tt0138524

Regression labels are the benchmark's, centred by its constants. A row's end is the duration, which
leaves the outro out; its group is the movie. Wu and Krähenbühl, "Towards Long-Form Video
Understanding", CVPR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...store.errors import UsageError
from ...store.tasks import SPLITS, Split, TaskTable
from .base import (
    Annotations,
    PlacedRow,
    class_index,
    note_of,
    placed_row,
    settle_rows,
)
from .lines import Line, number, read_csv, read_lines, require_columns

# Outputs of each task: director 2 and 3 and three writers never occur, and keep their outputs.
NUM_CLASSES: Mapping[str, int] = {
    "relationship": 4,
    "way_speaking": 5,
    "scene": 6,
    "director": 10,
    "genre": 4,
    "writer": 10,
    "year": 9,
}
LIKE_RATIO_MEAN = 9.138220535629456
LOG_VIEWS_MEAN = 11.76425435683139
DURATIONS_FILE = "lvu_durations.csv"
MAX_COUNT = 1e15  # of views: more than there are

_Header = Literal["class", "likes", "views"]
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "class": ("class_id", "class_name", "youtube_id", "imdb_id"),
    "likes": ("like_count", "dislike_count", "youtube_id", "imdb_id"),
    "views": ("view_count", "youtube_id", "imdb_id"),
}
TASKS: Mapping[str, _Header] = {
    **dict.fromkeys(NUM_CLASSES, "class"),
    "like_ratio": "likes",
    "view_count": "views",
}


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """A line taken apart: what stands before the two ids at its end."""

    where: str
    values: tuple[str, ...]
    video_id: str
    movie: str


def read_lvu(folder: str | Path) -> Annotations:
    """Read LVU's annotations from `lvu_1.0`, or from the folder that holds it.

    Raises UsageError, with file and line, for what is not as described, and when no task is there.
    """
    root = _root(Path(folder))
    present = [task for task in TASKS if (root / task).is_dir()]
    notes = [
        f"task {task} is left out: there is no folder {root / task}"
        for task in TASKS
        if task not in present
    ]
    durations, found = _read_durations(root)
    notes += found
    tables = []
    for task in present:
        table, found = _read_task(root / task, durations)
        tables.append(table)
        notes += found
    named = {row.id for table in tables for row in table.rows}
    return Annotations(
        dataset="lvu",
        tables=tuple(tables),
        durations={video_id: durations[video_id] for video_id in durations if video_id in named},
        notes=tuple(notes),
    )


def _root(folder: Path) -> Path:
    """The folder of the task folders."""
    for root in (folder, folder / "lvu_1.0"):
        if any((root / task).is_dir() for task in TASKS):
            return root
    raise UsageError(
        f"{folder} holds no LVU annotations; expected the folder lvu_1.0, with "
        f"relationship/train.csv, val.csv, test.csv and so on, and {DURATIONS_FILE}"
    )


def _read_durations(root: Path) -> tuple[dict[str, float], list[str]]:
    """Seconds by id, only those above 0, and notes."""
    paths = [root / DURATIONS_FILE, root.parent / DURATIONS_FILE]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}, [f"there is no {paths[0]}: videos are taken whole, their outros too"]
    durations: dict[str, float] = {}
    without: list[str] = []
    for line in read_csv(path, check_header=_check_durations_header):
        video_id, text = line.values["videoid"], line.values["duration"]
        seconds = number(text)
        if seconds is None:
            raise UsageError(f"{line.where}: duration {text!r}, expected seconds")
        if durations.setdefault(video_id, seconds) != seconds:
            raise UsageError(
                f"{line.where}: video {video_id!r} lasts {seconds:g} s here and "
                f"{durations[video_id]:g} s above; keep the line that is right"
            )
        if seconds <= 0:
            without.append(video_id)
    notes = note_of("video of a duration of 0 or less, taken whole", without)
    return {video_id: s for video_id, s in durations.items() if s > 0}, notes


def _check_durations_header(header: Sequence[str], where: str) -> None:
    require_columns(header, where, columns=("videoid", "duration"))


def _read_task(folder: Path, durations: Mapping[str, float]) -> tuple[TaskTable, list[str]]:
    """One task's table and notes."""
    task = folder.name
    placed: list[PlacedRow] = []
    names: dict[int, str] = {}
    notes: list[str] = []
    unlabelled: list[str] = []
    for split in SPLITS:
        path = folder / f"{split}.csv"
        if not path.is_file():
            notes.append(f"split {split} of {task} is left out: there is no file {path}")
            continue
        for cells in _read_cells(path, TASKS[task]):
            label = _label(cells, task)
            if label is None:
                unlabelled.append(cells.video_id)
                continue
            if task in NUM_CLASSES:
                notes += _learn_name(names, int(label), cells, task)
            placed.append(_placed(cells, split, label, durations))
    notes += note_of(f"row of {task} without views or likes left out, having no label", unlabelled)
    rows, found = settle_rows(placed, task=task)
    lacking = dict.fromkeys(row.id for row in rows if row.id not in durations)
    if durations:
        found += note_of(f"video of {task} without a duration, taken whole", list(lacking))
    table = TaskTable(
        dataset="lvu",
        task=task,
        kind="classification" if task in NUM_CLASSES else "regression",
        classes=tuple(names.get(i) or str(i) for i in range(NUM_CLASSES.get(task, 0))),
        rows=rows,
    )
    return table, notes + found


def _read_cells(path: Path, kind: _Header) -> list[_Cells]:
    lines = read_lines(path)
    expected = _HEADERS[kind]
    if not lines or tuple(lines[0].text.lower().split()) != expected:
        found = lines[0].text if lines else "nothing"
        raise UsageError(
            f"{path}, line 1: found {found[:80]!r}, expected the header {' '.join(expected)}"
        )
    return [_take_apart(line, kind) for line in lines[1:]]


def _take_apart(line: Line, kind: _Header) -> _Cells:
    """From the end: the movie, the video, and then the name or the counts."""
    words = line.text.split()
    head = words[:-2]
    if kind == "class" and head:
        head = [head[0], " ".join(head[1:])]
    if len(head) != len(_HEADERS[kind]) - 2:
        raise UsageError(
            f"{line.where}: {line.text[:80]!r}, expected {' '.join(_HEADERS[kind])} and spaces "
            "between them"
        )
    return _Cells(where=line.where, values=tuple(head), video_id=words[-2], movie=words[-1])


def _label(cells: _Cells, task: str) -> float | None:
    """The class, or the benchmark's regression target; None where that is not defined."""
    if task in NUM_CLASSES:
        return float(class_index(cells.values[0], NUM_CLASSES[task], where=cells.where))
    counts = [_count(text, cells.where) for text in cells.values]
    if sum(counts) == 0:
        return None
    if task == "view_count":
        return math.log(counts[0]) - LOG_VIEWS_MEAN
    likes, dislikes = counts
    return 10 * likes / (likes + dislikes) - LIKE_RATIO_MEAN


def _count(text: str, where: str) -> float:
    value = number(text)
    if value is None or not 0 <= value <= MAX_COUNT:
        raise UsageError(f"{where}: count {text!r}, expected a number from 0")
    return value


def _learn_name(names: dict[int, str], index: int, cells: _Cells, task: str) -> list[str]:
    """Keep the first name of a class; a note when a line gives it another."""
    name = cells.values[1]
    known = names.setdefault(index, name)
    if known == name:
        return []
    return [f"class {index} of {task} is called {known!r}, and {name!r} in {cells.where}"]


def _placed(cells: _Cells, split: Split, label: float, durations: Mapping[str, float]) -> PlacedRow:
    return placed_row(
        cells.where,
        video_id=cells.video_id,
        split=split,
        label=label,
        end_seconds=durations.get(cells.video_id),
        group=cells.movie,
    )
