"""COIN's 180 tasks, from `COIN.json`.

    {"database": {youtube_id: {"duration", "class", "start", "end", "subset", "recipe_type", ...}}}

The label is `recipe_type`, and each video is cropped to [start, end) seconds. Its subsets are
training and testing, which some copies call validation. The steps inside a video (`annotation`) are
not read. Tang et al., "COIN: A Large-scale Dataset for Comprehensive Instructional Video Analysis",
CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...store import fields as f
from ...store.errors import CacheFormatError, UsageError
from ...store.files import parse_json, read_json_bytes
from ...store.tasks import Split, TaskRow, TaskTable
from .base import Annotations, note_of, placed_row

NUM_CLASSES = 180
FILE = "COIN.json"
MAX_BYTES = 256 << 20
KNOWN_UNUSABLE = ("AfiVmAjfTNs", "cjwtcDKTQM8")
_SUBSETS: Mapping[str, Split] = {"training": "train", "testing": "test", "validation": "test"}


def read_coin(path: str | Path) -> Annotations:
    """Read COIN.json, or the one in a folder. Raises UsageError for what is not as described."""
    file = Path(path)
    if file.is_dir():
        file = file / FILE
    database = _read_database(file)
    rows: list[TaskRow] = []
    names: dict[int, str] = {}
    durations: dict[str, float] = {}
    without_crop: list[str] = []
    beyond: list[str] = []
    other_names: list[str] = []
    for video_id, video in database.items():
        where = f"{file}, video {video_id!r}"
        index, name, duration, row = _video(video_id, video, where)
        rows.append(row)
        if duration is not None and duration > 0:
            durations[video_id] = duration
        if row.end_seconds is None:
            without_crop.append(video_id)
        elif duration is not None and 0 < duration < row.end_seconds:
            beyond.append(video_id)
        if names.setdefault(index, name) != name:
            other_names.append(video_id)
    classes, same_names = _class_names(names)
    table = TaskTable(
        dataset="coin",
        task="task",
        kind="classification",
        classes=classes,
        rows=tuple(rows),
    )
    notes = [
        *note_of("video without a crop that ends after it starts, taken whole", without_crop),
        *note_of("video of a crop that ends after the video, cut at its end", beyond),
        *same_names,
        *note_of("video of a class that others give another name", other_names),
        *note_of(
            "video known to be unusable",
            [video_id for video_id in KNOWN_UNUSABLE if video_id in database],
        ),
    ]
    return Annotations(dataset="coin", tables=(table,), durations=durations, notes=tuple(notes))


def _class_names(names: Mapping[int, str]) -> tuple[tuple[str, ...], list[str]]:
    """A name for every class number, the same ones told apart, and notes on them."""
    numbers: dict[str, list[int]] = {}
    for index in range(NUM_CLASSES):
        numbers.setdefault(names.get(index) or str(index), []).append(index)
    called = {
        index: name if index == same[0] else f"{name} ({index})"
        for name, same in numbers.items()
        for index in same
    }
    notes = [
        f"classes {' and '.join(map(str, same))} are both called {name!r}; those after the first "
        "are told apart by their number"
        for name, same in numbers.items()
        if len(same) > 1
    ]
    return tuple(called[index] for index in range(NUM_CLASSES)), notes


def _read_database(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(
            read_json_bytes(file, max_bytes=MAX_BYTES, follow_links=True),
            name=str(file),
            unique=True,
        )
        database = f.mapping(content, "database", name=str(file))
    except FileNotFoundError as error:
        raise UsageError(
            f"{file} is not there; expected COIN's annotations, the file {FILE} or its folder"
        ) from error
    except (OSError, CacheFormatError) as error:
        raise UsageError(f"{error}; expected COIN's annotations, {FILE}") from error
    if not database:
        raise UsageError(f"{file}: the database names no video")
    return database


def _video(video_id: str, video: object, where: str) -> tuple[int, str, float | None, TaskRow]:
    """Class number and name, duration and row of one video."""
    if not isinstance(video, dict):
        raise UsageError(f"{where}: expected an object with recipe_type, subset, start and end")
    try:
        index = f.integer(video, "recipe_type", name=where)
        name = f.text(video, "class", name=where) if "class" in video else ""
        subset = f.choice(video, "subset", tuple(_SUBSETS), name=where)
        duration, start, end = (
            f.optional_number(video, key, name=where) for key in ("duration", "start", "end")
        )
    except CacheFormatError as error:
        raise UsageError(str(error)) from error
    if index >= NUM_CLASSES:
        raise UsageError(
            f"{where}: recipe_type {index}, expected a number from 0 to {NUM_CLASSES - 1}"
        )
    start, end = _crop(start, end)
    placed = placed_row(
        where.rpartition(", ")[0],  # its own error names the video
        video_id=video_id,
        split=_SUBSETS[subset],
        label=index,
        start_seconds=start,
        end_seconds=end,
    )
    return index, name, duration, placed.row


def _crop(start: float | None, end: float | None) -> tuple[float | None, float | None]:
    """[start, end); the whole video where that is no stretch of time."""
    if end is None or not 0 <= (start or 0.0) < end:
        return None, None
    return start, end
