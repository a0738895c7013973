"""Look at the files of a dataset, and audit it: `vis4mer datasets check`.

Opening a file reads all of it once (its packets tell how long it is); its first frame is decoded.
Files are opened side by side, and what is found is not kept: the next check looks again.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from ...store.errors import UsageError
from ...store.files import write_atomic
from ...store.wording import describe_error, inert_cell
from ..readers.base import Reader, VideoError
from ..sampling import Spread
from ..stages.cores import usable_cores
from .audit import Audit, FoundFile, LostVideo, audit_annotations
from .base import Annotations
from .index import VideoIndex
from .presets import PRESETS, find_preset, preset_paths, require_path
from .table import is_file, read_table

_FIRST_FRAME = Spread(fps=1.0, seconds=1.0)  # one moment, at the very beginning
WINDOW_SECONDS = 60.0
OnFile = Callable[[int, int], None]  # files done, files in all
_WATCH_PAGE = "https://www.youtube.com/watch?v="
_YOUTUBE_ID = re.compile(r"[\w-]{11}", re.ASCII)
ON_YOUTUBE = ("lvu", "coin")  # whose ids are YouTube's


def check_dataset(
    dataset: str | Path,
    *,
    annotations: str | Path | None = None,
    videos: str | Path | None = None,
    reader: Reader | None,
    window_seconds: float | None = None,
    workers: int | None = None,
    on_file: OnFile | None = None,
) -> Audit:
    """Audit a preset or a CSV of labels.

    annotations, videos: as for extraction; without a folder of videos a preset's annotations are
    judged alone. reader: opens every file there is; None only looks whether they are there.
    window_seconds: what is shorter is counted, by default a minute, and nothing for a preset that
    is sampled in segments, however long its videos are. workers: files opened at once. on_file:
    called after each.

    Raises UsageError for annotations that cannot be understood.
    """
    preset = find_preset(dataset)
    if window_seconds is None and (preset is None or preset.segments is None):
        window_seconds = WINDOW_SECONDS
    if window_seconds is not None and not 0 < window_seconds < math.inf:
        raise UsageError(f"--window {window_seconds:g}: expected seconds above 0")
    read, paths = _read(dataset, annotations=annotations, videos=videos)
    if paths is None:
        return audit_annotations(read, None, window_seconds=window_seconds)
    files = {video_id: FoundFile(path=path) for video_id, path in paths.items()}
    if reader is not None:
        present = {video_id: path for video_id, path in paths.items() if path is not None}
        files |= open_files(present, reader, workers=workers, on_file=on_file)
    return audit_annotations(read, files, window_seconds=window_seconds)


def open_files(
    paths: Mapping[str, Path],
    reader: Reader,
    *,
    workers: int | None = None,
    on_file: OnFile | None = None,
) -> dict[str, FoundFile]:
    """Open every file and decode its first frame; what was found, by id."""
    found: dict[str, FoundFile] = {}
    with ThreadPoolExecutor(workers or 2 * usable_cores(), thread_name_prefix="check") as pool:
        pending = {pool.submit(open_file, path, reader): id_ for id_, path in paths.items()}
        try:
            for done, future in enumerate(as_completed(pending), start=1):
                found[pending[future]] = future.result()
                if on_file is not None:
                    on_file(done, len(pending))
        except BaseException:  # Ctrl-C, or the caller's own: begin no more of them
            pool.shutdown(cancel_futures=True)
            raise
    return found


def open_file(path: Path, reader: Reader) -> FoundFile:
    """One file: how long it is, or why its first frame cannot be had."""
    try:
        with reader.open(path, moments=_FIRST_FRAME) as stream:
            if next(iter(stream), None) is None:
                return FoundFile(path=path, failure="no frame could be read")
            return FoundFile(path=path, duration_seconds=stream.info.duration_seconds)
    except VideoError as error:
        return FoundFile(path=path, failure=error.reason)
    except Exception as error:  # a fault of the reader is this file's finding, as in extraction
        return FoundFile(path=path, failure=describe_error(error))


def write_missing(path: str | Path, audit: Audit) -> None:
    """A CSV of the videos that cannot be used: id,tasks,splits,url,problem, one line each.

    Programs look videos up by the id, so it stands as it is, even where it begins like a formula
    (YouTube's may: -e6lEsIUf3U); every other cell is one that no spreadsheet computes. url: only of
    what can be YouTube's. UsageError when nobody looked for files.
    """
    if not audit.looked:
        raise UsageError(
            f"--missing {path}: no file was looked for; give --videos, the folder with the videos"
        )
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "tasks", "splits", "url", "problem"))
    for lost in audit.lost:
        writer.writerow(_missing_row(audit.dataset, lost))
    write_atomic(Path(path), text.getvalue().encode())


def _missing_row(dataset: str, lost: LostVideo) -> Sequence[str]:
    known = dataset in ON_YOUTUBE and _YOUTUBE_ID.fullmatch(lost.id)
    url = f"{_WATCH_PAGE}{lost.id}" if known else ""
    tasks, splits = " ".join(lost.tasks), " ".join(lost.splits)
    return (lost.id, *map(inert_cell, (tasks, splits, url, lost.problem)))


def _read(
    dataset: str | Path, *, annotations: str | Path | None, videos: str | Path | None
) -> tuple[Annotations, dict[str, Path | None] | None]:
    """The annotations, and the file of every id, None for none; no dict when nobody can look."""
    preset = find_preset(dataset)
    if preset is None:
        return _read_csv(dataset, annotations=annotations, videos=videos)
    paths = preset_paths(preset, annotations=annotations, videos=videos)
    read = preset.read(require_path(preset, paths, "annotations"))
    if paths.videos is None:
        return read, None
    index = VideoIndex(paths.videos)
    return read, {video_id: index.find(video_id) for video_id in read.ids}


def _read_csv(
    dataset: str | Path, *, annotations: str | Path | None, videos: str | Path | None
) -> tuple[Annotations, dict[str, Path | None]]:
    if annotations is not None:
        raise UsageError(f"--annotations goes with a preset; {dataset} is one file of labels")
    if not str(dataset).lower().endswith(".csv"):
        raise UsageError(
            f"dataset {str(dataset)!r}: expected {', '.join(PRESETS)}, or a CSV of labels"
        )
    labelled = read_table(dataset, videos=videos)
    paths = {video.id: video.path if is_file(video.path) else None for video in labelled.videos}
    return labelled.annotations, paths
