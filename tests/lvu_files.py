"""Annotation files as LVU publishes them, tiny: nine tasks, three kinds of header, durations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CLASS_HEADER = "class_id class_name youtube_id imdb_id"
HEADERS = {
    "like_ratio": "like_count dislike_count youtube_id imdb_id",
    "view_count": "view_count youtube_id imdb_id",
}
TASKS = (
    "relationship",
    "way_speaking",
    "scene",
    "director",
    "genre",
    "writer",
    "year",
    "like_ratio",
    "view_count",
)
# task → split → lines. The movie tt3 of director stands in train and in test.
SMALL: Mapping[str, Mapping[str, list[str]]] = {
    "relationship": {
        "train": ["0 wife husband -e6lEsIUf3U tt1", "2 old friend __abc_defgh tt2"],
        "val": ["0 wife husband 01ClRWyf9I4 tt4"],
        "test": ["3 boy friend KAeAqaA0Llg tt1"],
    },
    "director": {"train": ["1 nm1 01ClRWyf9I4 tt3"], "val": [], "test": ["9 nm9 zzzzzzzzzzz tt3"]},
    "writer": {"train": [r"0 \N 01ClRWyf9I4 tt3"], "val": [], "test": ["9 nm9 zzzzzzzzzzz tt3"]},
    "like_ratio": {"train": ["3 1 01ClRWyf9I4 tt3"], "val": [], "test": ["0 8 zzzzzzzzzzz tt3"]},
    "view_count": {"train": ["100000 01ClRWyf9I4 tt3"], "val": [], "test": ["1 -e6lEsIUf3U tt1"]},
}
DURATIONS = {
    "-e6lEsIUf3U": "124",
    "__abc_defgh": "30.5",
    "01ClRWyf9I4": "258",
    "KAeAqaA0Llg": "123",
    "zzzzzzzzzzz": "60",
    "not_of_lvu_": "7",
}


def write_lvu(
    folder: Path,
    tasks: Mapping[str, Mapping[str, list[str]]] | None = None,
    durations: Mapping[str, str] | None = None,
    *,
    line_end: str = "\n",
    mark: str = "",
) -> Path:
    """Write the files below `folder` and return it. mark: what every file begins with."""
    tasks = SMALL if tasks is None else tasks
    durations = DURATIONS if durations is None else durations
    for task, splits in tasks.items():
        for split, lines in splits.items():
            header = HEADERS.get(task, CLASS_HEADER)
            _write(folder / task / f"{split}.csv", [header, *lines], line_end, mark)
    if durations:
        lines = [f"{video_id},{seconds}" for video_id, seconds in durations.items()]
        _write(folder / "lvu_durations.csv", ["videoid,duration", *lines], line_end, mark)
    return folder


def _write(path: Path, lines: list[str], line_end: str, mark: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((mark + line_end.join(lines) + line_end).encode())
