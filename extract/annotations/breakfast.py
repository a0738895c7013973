"""Breakfast's ten activities, from train.csv and test.csv or from the videos' own folders.

    file_name,duration,action,class_id
    P03-cam01-P03_cereals,56,cereals,0

Without these files the folders say it: `P03/cam01/P03_cereals.avi` is person P03's cereals, persons
P03 to P46 are for training and P47 to P54 for testing, and of the stereo camera only channel 0
counts. The group is the person. Kuehne, Arslan and Serre, "The Language of Actions", CVPR 2014.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ...store.errors import UsageError
from ...store.tasks import Split, TaskRow, TaskTable
from ..sources import walk_videos
from .base import (
    Annotations,
    PlacedRow,
    class_index,
    note_of,
    placed_row,
    settle_rows,
)
from .index import breakfast_id
from .lines import CsvLine, number, read_csv, require_columns

ACTIVITIES = (
    "cereals",
    "coffee",
    "tea",
    "pancake",
    "friedegg",
    "scrambledegg",
    "sandwich",
    "juice",
    "milk",
    "salat",
)
KNOWN_UNUSABLE = ("P28-cam01-P28_cereals", "P28-cam02-P28_cereals", "P27-stereo-P27_milk_ch0")
COLUMNS = ("file_name", "duration", "action", "class_id")
TRAIN_PERSONS, TEST_PERSONS = range(3, 47), range(47, 55)
_ID_PATTERN = re.compile(
    r"P(?P<person>[0-9]{2})-(?P<camera>[a-z0-9]+)-P(?P=person)_(?P<activity>[a-z]+)(?P<channel>_ch[0-9])?"
)


def read_breakfast(folder: str | Path) -> Annotations:
    """Read train.csv and test.csv, or the folders of videos where neither is there.

    Raises UsageError, with file and line, for what is not as described.
    """
    root = Path(folder)
    paths: dict[Split, Path] = {"train": root / "train.csv", "test": root / "test.csv"}
    if any(path.is_file() for path in paths.values()):
        return _from_files(paths)
    return _from_folders(root)


def _from_files(paths: Mapping[Split, Path]) -> Annotations:
    notes: list[str] = []
    placed: list[PlacedRow] = []
    durations: dict[str, float] = {}
    for split, path in paths.items():
        if not path.is_file():
            notes.append(f"split {split} is left out: there is no file {path}")
            continue
        for line in read_csv(path, check_header=_check_header):
            each = _row(line, split)
            placed.append(each)
            if (seconds := _seconds(line)) > 0:
                durations[each.row.id] = seconds
    rows, found = settle_rows(placed, task="activity")
    lacking = [row.id for row in rows if row.id not in durations]
    return Annotations(
        dataset="breakfast",
        tables=(_table(rows),),
        durations=durations,
        notes=(
            *notes,
            *found,
            *note_of("video of a duration of 0 or less", lacking),
            *_unusable(rows),
        ),
    )


def _check_header(header: Sequence[str], where: str) -> None:
    require_columns(header, where, columns=COLUMNS)


def _row(line: CsvLine, split: Split) -> PlacedRow:
    """A row, its activity and its class number saying the same."""
    video_id, action = line.values["file_name"], line.values["action"]
    index = class_index(line.values["class_id"], len(ACTIVITIES), where=line.where)
    if action != ACTIVITIES[index]:
        raise UsageError(
            f"{line.where}: class {index} with action {action!r}, expected {ACTIVITIES[index]}"
        )
    match = _ID_PATTERN.fullmatch(video_id)
    person = f"P{match['person']}" if match else None
    return placed_row(line.where, video_id=video_id, split=split, label=index, group=person)


def _seconds(line: CsvLine) -> float:
    text = line.values["duration"]
    seconds = number(text)
    if seconds is None:
        raise UsageError(f"{line.where}: duration {text!r}, expected seconds")
    return seconds


def _from_folders(root: Path) -> Annotations:
    """Labels out of names: every video below `root` that is called as Breakfast calls its own."""
    found: dict[str, TaskRow] = {}
    others: list[str] = []
    for path in sorted(walk_videos(root)) if root.is_dir() else ():
        relative = PurePosixPath(path.relative_to(root).as_posix())
        row = _row_of(breakfast_id(relative) or relative.stem)
        if row is not None:
            found.setdefault(row.id, row)
        elif not relative.stem.endswith("_ch1"):
            others.append(str(relative))
    if not found:
        raise UsageError(
            f"{root} holds no Breakfast annotations; expected train.csv and test.csv with the "
            f"columns {','.join(COLUMNS)}, or videos such as P03/cam01/P03_cereals.avi"
        )
    rows = tuple(found[video_id] for video_id in sorted(found))
    notes = note_of("video of no known person or activity left out", others)
    notes.append(f"labels and splits are taken from the names of the videos below {root}")
    return Annotations(
        dataset="breakfast",
        tables=(_table(rows),),
        durations={},
        notes=(*notes, *_unusable(rows)),
    )


def _row_of(video_id: str) -> TaskRow | None:
    """What an id says by itself; None for another dataset's, and for stereo's channel 1."""
    match = _ID_PATTERN.fullmatch(video_id)
    if match is None or match["activity"] not in ACTIVITIES:
        return None
    if match["channel"] not in ((None, "_ch0") if match["camera"] == "stereo" else (None,)):
        return None
    number = int(match["person"])
    if number not in TRAIN_PERSONS and number not in TEST_PERSONS:
        return None
    return TaskRow(
        id=video_id,
        split="train" if number in TRAIN_PERSONS else "test",
        label=ACTIVITIES.index(match["activity"]),
        group=f"P{match['person']}",
    )


def _table(rows: tuple[TaskRow, ...]) -> TaskTable:
    return TaskTable(
        dataset="breakfast",
        task="activity",
        kind="classification",
        classes=ACTIVITIES,
        rows=rows,
    )


def _unusable(rows: Iterable[TaskRow]) -> list[str]:
    named = {row.id for row in rows}
    return note_of(
        "video known to be unusable",
        [video_id for video_id in KNOWN_UNUSABLE if video_id in named],
    )
