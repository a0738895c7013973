"""What is known by name, and what of it is set up here: `vis4mer datasets`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...store.errors import UsageError
from .base import Annotations
from .fetch import VIDEOS_ARE_AT
from .presets import CONFIG_FILE, PRESETS, Preset, preset_paths, variable


@dataclass(frozen=True, kw_only=True)
class PresetStatus:
    """One preset. settings: what names its paths. annotations, videos: those paths, None when
    nobody said. num_videos, num_rows, tasks: of annotations that could be read; problem: why they
    could not."""

    name: str
    title: str
    layout: str
    settings: tuple[str, ...]
    videos_are_at: str
    annotations: Path | None = None
    videos: Path | None = None
    num_videos: int | None = None
    num_rows: int | None = None
    tasks: tuple[str, ...] = ()
    problem: str | None = None


def describe_presets(folder: Path | None = None) -> list[PresetStatus]:
    """Every preset. folder: where `vis4mer.toml` is looked for (default: the working directory)."""
    return [_describe(preset, folder) for preset in PRESETS.values()]


def _describe(preset: Preset, folder: Path | None) -> PresetStatus:
    annotations = videos = read = problem = None
    try:
        paths = preset_paths(preset, folder=folder)
        annotations, videos = paths.annotations, paths.videos
        read = preset.read(annotations) if annotations is not None else None
    except UsageError as error:
        problem = str(error)
    return PresetStatus(
        name=preset.name,
        title=preset.title,
        layout=preset.layout,
        settings=(
            variable(preset.name, "annotations"),
            variable(preset.name, "videos"),
            f"{CONFIG_FILE}: [{preset.name}] annotations, videos",
        ),
        videos_are_at=VIDEOS_ARE_AT[preset.name],
        annotations=annotations,
        videos=videos,
        num_videos=len(read.ids) if read is not None else None,
        num_rows=_count_rows(read) if read is not None else None,
        tasks=tuple(table.task for table in read.tables) if read is not None else (),
        problem=problem,
    )


def _count_rows(read: Annotations) -> int:
    return sum(len(table.rows) for table in read.tables)
