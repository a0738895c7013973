"""What a person asked to extract, as it was found: videos, their files, the tables that name them.

    find_request([], dataset="lvu", annotations="lvu_1.0", videos="videos", tasks=["relationship"])

Videos are named by files, folders and globs, by a CSV of labels, or by a dataset that is known by
name (see `annotations.presets`). A video is asked for once however many tasks name it; where
sampling depends on a row's extent, each part of a video is an entry of its own. Opens no video.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...store.errors import UsageError
from ...store.spec import Sampling
from ...store.tasks import Split, TaskRow, TaskTable, extent_id
from ...store.wording import counted
from ..sampling import moments_of
from ..sources import VideoSource, resolve_sources, video_source
from .base import Annotations, note_of
from .index import VideoIndex
from .presets import PRESETS, Preset, find_preset, preset_paths, require_path
from .table import read_table

FIXED_RATE = Sampling()
FindFile = Callable[[str], Path | None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The videos asked for and the task tables that came with them.

    videos: those with a file, each once, in the order of the tables. tables: whole tables of the
    tasks asked for, rows under the ids that the cache will have. missing: ids, as in the tables, of
    videos of a known dataset that have no file. durations: id, as in the tables → seconds that the
    annotation says the file lasts (without its outro), where it does. notes: what a user must know,
    one line each.
    """

    videos: tuple[VideoSource, ...]
    tables: tuple[TaskTable, ...] = ()
    missing: tuple[str, ...] = ()
    durations: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_request(
    inputs: Sequence[str] = (),
    *,
    dataset: str | Path | None = None,
    annotations: str | Path | None = None,
    videos: str | Path | None = None,
    tasks: Collection[str] = (),
    split: Split | None = None,
    ids: Collection[str] = (),
    sampling: Sampling = FIXED_RATE,
    require_files: bool = True,
) -> Request:
    """What to extract: files, folders and globs (`inputs`), or a dataset.

    dataset: lvu, breakfast, coin, or a CSV of labels (which may also be the only input).
    annotations, videos: where a known dataset's files are, by default as `preset_paths` says; for a
    CSV, `videos` is the folder that its paths and ids are below, by default its own.
    tasks: those of the dataset to take, by default all. split, ids: only these videos of them; the
    tables stay whole. require_files: refuse a known dataset of whose videos none is there.

    Raises UsageError when nothing is named, when both kinds are, or when what is named is unknown.
    """
    if dataset is None and len(inputs) == 1 and inputs[0].lower().endswith(".csv"):
        dataset, inputs = inputs[0], ()
    if dataset is None:
        _refuse_alone(annotations=annotations, videos=videos, task=tasks, split=split)
        if not inputs:
            raise UsageError(
                "no videos named: give files, a folder, a glob, or --dataset "
                f"{'|'.join(PRESETS)}|FILE.csv"
            )
        return Request(videos=_only(resolve_sources(inputs), ids))
    if inputs:
        raise UsageError(
            f"--dataset {dataset} already names the videos; leave out {inputs[0]!r}, or extract it "
            "in a run of its own"
        )
    part = _Part(split=split, ids=frozenset(ids), sampling=sampling)
    preset = find_preset(dataset)
    if preset is None:
        return _of_csv(_csv_path(dataset, annotations), videos, tasks, part)
    paths = preset_paths(preset, annotations=annotations, videos=videos)
    read = preset.read(require_path(preset, paths, "annotations")).with_tasks(tasks)
    if require_files or paths.videos is not None:
        folder = require_path(preset, paths, "videos")
        return _of_preset(preset, read, VideoIndex(folder), part, require_files=require_files)
    return _request(read, part, lambda _: None)


def read_annotations(
    dataset: str | Path,
    *,
    annotations: str | Path | None = None,
    videos: str | Path | None = None,
    tasks: Collection[str] = (),
) -> Annotations:
    """A dataset's labels alone; the arguments are those of `find_request`."""
    preset = find_preset(dataset)
    if preset is None:
        labelled = read_table(_csv_path(dataset, annotations), videos=videos)
        return labelled.annotations.with_tasks(tasks)
    paths = preset_paths(preset, annotations=annotations, videos=videos)
    return preset.read(require_path(preset, paths, "annotations")).with_tasks(tasks)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Which of a dataset's videos, and what an entry of them is."""

    split: Split | None
    ids: frozenset[str]
    sampling: Sampling

    def rows(self, read: Annotations) -> dict[str, TaskRow]:
        """The rows to extract by the id of their entry, the first of each."""
        unknown = sorted(self.ids.difference(read.ids))
        if unknown:
            raise UsageError(
                f"--ids: {unknown[0]!r} is no video of {_named(read)}; ids are written as in its "
                "annotations"
            )
        chosen: dict[str, TaskRow] = {}
        for row in (row for table in read.tables for row in table.rows):
            if self.split in (None, row.split) and (not self.ids or row.id in self.ids):
                chosen.setdefault(self.entry_id(row), row)
        if not chosen:
            part = f" of split {self.split}" if self.split else ""
            part += " among those of --ids" if self.ids else ""
            raise UsageError(f"{_named(read)} names no video{part}; nothing to extract")
        return chosen

    def entry_id(self, row: TaskRow) -> str:
        """What the cache calls the entry that a row speaks of."""
        if not self.sampling.needs_extent:
            return row.id
        return extent_id(row.id, row.start_seconds, row.end_seconds)

    def require_extent(self, row: TaskRow) -> None:
        """UsageError for a row whose part of the video this sampling cannot speak of."""
        try:
            moments_of(self.sampling, start_seconds=row.start_seconds, end_seconds=row.end_seconds)
        except UsageError as error:
            raise UsageError(f"video {row.id!r}: {error}") from error

    def source(self, entry_id: str, row: TaskRow, path: Path) -> VideoSource:
        """The video of a row, cut to its extent where sampling depends on it."""
        source = video_source(path, entry_id)
        if not self.sampling.needs_extent:
            return source
        return replace(source, start_seconds=row.start_seconds, end_seconds=row.end_seconds)


def _request(read: Annotations, part: _Part, find: FindFile) -> Request:
    rows = part.rows(read)
    for row in rows.values():
        part.require_extent(row)
    paths = {entry_id: find(row.id) for entry_id, row in rows.items()}
    durations = {
        entry_id: read.durations[row.id]
        for entry_id, row in rows.items()
        if row.id in read.durations
    }
    return Request(
        videos=tuple(
            part.source(entry_id, rows[entry_id], path)
            for entry_id, path in paths.items()
            if path is not None
        ),
        tables=tuple(table.as_sampled(part.sampling) for table in read.tables),
        missing=tuple(entry_id for entry_id, path in paths.items() if path is None),
        durations=durations,
        notes=read.notes,
    )


def _of_preset(
    preset: Preset, read: Annotations, index: VideoIndex, part: _Part, *, require_files: bool
) -> Request:
    """A known dataset's request: the files that are there, a note on those that are not."""
    found = _request(read, part, index.find)
    wanted = len(found.videos) + len(found.missing)
    if not found.videos and require_files:
        raise UsageError(
            f"none of {counted(wanted, 'video')} of {_named(read)} has a file below "
            f"{index.folder} ({counted(index.num_files, 'video')} there); expected names such as "
            f"{found.missing[0]}.mp4 "
            f"(`vis4mer datasets check {preset.name} --missing FILE.csv` lists what is missing)"
        )
    several = [row.id for row in part.rows(read).values() if len(index.candidates(row.id)) > 1]
    notes = note_of("id with several files, of which the largest is taken", several)
    if found.missing:
        notes.append(
            f"{len(found.missing):,} of {counted(wanted, 'video')} without a file below "
            f"{index.folder} "
            f"(`vis4mer datasets check {preset.name} --missing FILE.csv` lists them)"
        )
    return replace(found, notes=(*found.notes, *notes))


def _of_csv(path: Path, videos: str | Path | None, tasks: Collection[str], part: _Part) -> Request:
    """A CSV's request: every video that it names, there or not."""
    labelled = read_table(path, videos=videos)
    files = {video.id: video.path for video in labelled.videos}
    return _request(labelled.annotations.with_tasks(tasks), part, files.__getitem__)


def _csv_path(dataset: str | Path, annotations: str | Path | None) -> Path:
    if not str(dataset).lower().endswith(".csv"):
        raise UsageError(
            f"--dataset {dataset}: expected {', '.join(PRESETS)}, or a CSV file with the columns "
            "path,label,split"
        )
    if annotations is not None:
        raise UsageError(
            f"--annotations {annotations} goes with --dataset {'|'.join(PRESETS)}; {dataset} holds "
            "the labels itself"
        )
    return Path(dataset)


def _refuse_alone(**given: object) -> None:
    """UsageError for an option that says something of a dataset, where none is named."""
    for name, value in given.items():
        if value:
            said = ",".join(value) if isinstance(value, (list, tuple)) else value
            raise UsageError(f"--{name} {said} goes with --dataset, which is missing")


def _only(videos: Sequence[VideoSource], ids: Collection[str]) -> tuple[VideoSource, ...]:
    """The videos of these ids, or all when none is named."""
    unknown = sorted(set(ids).difference(video.id for video in videos))
    if unknown:
        raise UsageError(
            f"--ids: {unknown[0]!r} is not among {counted(len(videos), 'video')} found, such as "
            f"{videos[0].id!r}"
        )
    return tuple(video for video in videos if not ids or video.id in set(ids))


def _named(read: Annotations) -> str:
    """The dataset, or its task when there is only one."""
    return read.tables[0].reference if len(read.tables) == 1 else read.dataset
