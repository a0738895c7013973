"""The folder of a sweep.

    sweep.json      sealed: every point with its settings, config and cache; whose folder it is
    NAME/           a run directory for each point
    results.jsonl   one line for every finished run
    memory.json     sealed: what settings were measured to take
    table.csv, figures/, report/    what was made of them

`results.jsonl` is appended to as runs finish. It says nothing that the run directories do not, and
is written anew from them whenever the sweep goes on: a line that a crash has torn is not missed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...store import fields as f
from ...store.cache import Cache
from ...store.errors import CacheFormatError, UsageError
from ...store.files import (
    canonical_json,
    is_temporary,
    read_sealed,
    seal,
    storage_errors,
    write_atomic,
)
from ..config import TrainConfig, config_differences
from .rows import SweepRow
from .sweep import Point

SWEEP_FORMAT = 1


def require_own_sweep(folder: Path, points: Sequence[Point], caches: Mapping[str, Cache]) -> None:
    """UsageError, and nothing is written, unless `folder` is new, empty or of this very sweep."""
    if (folder / "sweep.json").exists():
        _require_same(folder, _about(points, caches))
    elif folder.is_dir():
        strange = sorted(
            path.name
            for path in folder.iterdir()
            if path.name != "run.lock" and not is_temporary(path.name)
        )
        if strange:
            raise UsageError(
                f"--run {folder} exists and is no sweep (it holds {strange[0]}); choose a new or "
                "empty directory"
            )


def claim(folder: Path, points: Sequence[Point], caches: Mapping[str, Cache]) -> None:
    """Make the folder that of the sweep, after `require_own_sweep`, under its lock."""
    path = folder / "sweep.json"
    if not path.exists():
        write_atomic(path, seal(_about(points, caches)))


def _about(points: Sequence[Point], caches: Mapping[str, Cache]) -> dict[str, Any]:
    return {
        "sweep_format": SWEEP_FORMAT,
        "points": {
            point.name: {
                "cache": caches[point.cache].spec.fingerprint,
                "settings": dict(point.settings),
                "config": point.config.to_json(),
            }
            for point in points
        },
    }


def _require_same(folder: Path, asked: Mapping[str, Any]) -> None:
    path = folder / "sweep.json"
    stored = read_sealed(path)
    if (number := f.integer(stored, "sweep_format", name=str(path))) > SWEEP_FORMAT:
        raise CacheFormatError(
            f"{path}: sweep format {number} is newer than this version reads (format "
            f"{SWEEP_FORMAT}); upgrade vis4mer"
        )
    points = f.mapping(stored, "points", name=str(path))
    difference = _difference(points, asked["points"], name=str(path))
    if difference is not None:
        raise UsageError(
            f"--run {folder} holds another sweep ({difference}); choose another --run, or the "
            "command that it was begun with"
        )


def _difference(stored: Mapping[str, Any], asked: Mapping[str, Any], *, name: str) -> str | None:
    """The first thing that is not the same, in words."""
    for point in stored:
        if point not in asked:
            return f"it has {point}, which is not asked"
    for point, about in asked.items():
        if point not in stored:
            return f"it has no {point}"
        own = f.mapping(stored, point, name=name)
        if f.text(own, "cache", name=name) != about["cache"]:
            return f"{point}: it learns from a cache of other settings"
        config = TrainConfig.from_json(f.mapping(own, "config", name=name))
        differences = config_differences(config, TrainConfig.from_json(about["config"]))
        if differences:
            first = differences[0]
            return f"{point}: {first.field} is {first.stored}, asked {first.wanted}"
    return None


def write_rows(folder: Path, rows: Iterable[SweepRow]) -> None:
    """results.jsonl, whole."""
    write_atomic(folder / "results.jsonl", b"".join(map(_line, rows)))


def append_row(folder: Path, row: SweepRow) -> None:
    """One more line, on the disk when this returns."""
    path = folder / "results.jsonl"
    with storage_errors(path), path.open("ab") as file:
        file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())


def _line(row: SweepRow) -> bytes:
    return canonical_json(row.to_json()) + b"\n"
