"""Bring tokens that somebody made elsewhere into a cache: `vis4mer cache import`.

    import_tokens(["features/"], cache="old.zarr", layout="vis4mer")

Nothing is known of how they were made and the cache says so: weights `unknown`, no preprocessing,
reader `import`. Timestamps are assumed to be k / fps. Files that `vis4mer cache export` wrote say
more: their sampling, the layout of their tokens, their backbone's name and, but for .npy, their
timestamps are taken over, unless something else is asked for. Values are converted to the cache's
stored type and otherwise taken as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..cache import Cache, create_cache, find_cache
from ..errors import UsageError, Vis4merError
from ..remote.urls import refuse_address
from ..spec import CacheSpec, Sampling, StoredDtype
from .arrays import OnProgress, RefusedArrayError
from .exported import Exported, find_exported
from .formats import FORMATS
from .import_run import ImportRun, ImportSummary
from .layouts import TokenLayout
from .sources import ArraySource, NameBy, UnreadableSource, find_arrays

Layout = Literal["plain", "vis4mer"]
LAYOUTS: tuple[Layout, ...] = ("plain", "vis4mer")
VIS4MER_PREFIX, VIS4MER_GRID = 1, (14, 14)  # the released features: CLS first, then 14 × 14


def import_tokens(
    sources: Sequence[str | Path],
    *,
    cache: str | Path,
    layout: Layout = "plain",
    fps: float | None = None,
    prefix: int | None = None,
    grid: tuple[int, int] | None = None,
    stored_dtype: StoredDtype = "float16",
    backbone: str | None = None,
    name_by: NameBy = "auto",
    limit: int | None = None,
    overwrite: bool = False,
    stop: threading.Event | None = None,
    progress: OnProgress | None = None,
) -> ImportSummary:
    """Import files and folders of tokens into the cache at `cache`, which is made or continued.

    layout: `vis4mer` is `<id>.npy` of (T, 197, width), the CLS token first; `plain` is described in
    `layouts`, with prefix and grid for what cannot be guessed. All arrays of a cache have one
    layout: that of the first that can be read. fps: frames a second of video, by default what an
    export says, else 1; prefix, grid, backbone alike. limit: arrays attempted at most; those that
    are in the cache already do not count. An array that cannot be taken is a recorded failure, and
    tried again by the next run. progress: called with (done, total, id).

    Raises UsageError for a request that cannot be understood, Vis4merError when no array can be
    read, FingerprintError when the cache was made with other settings, StorageError when it cannot
    be written.
    """
    refuse_address(str(cache), what="an import fills")
    prefix, grid, only = _as_asked(layout, prefix, grid)
    found = find_arrays(sources, only=only, name_by=name_by, progress=progress)
    exported = find_exported({array.path for array in found.arrays})
    asked = {"fps": fps, "prefix": prefix, "grid": grid, "backbone": backbone}
    notes = _notes(exported, asked) if exported is not None else []
    if exported is not None and exported.is_laid_out(prefix, grid):
        prefix, grid = exported.prefix, exported.grid
    existing = find_cache(cache)
    chosen = _layout(found.arrays, existing, prefix=prefix, grid=grid)
    if chosen is None:
        reason = _first_reason(found.arrays, found.unreadable, prefix=prefix, grid=grid)
        raise Vis4merError(f"nothing can be imported: {reason}")
    spec = _spec(
        chosen,
        sampling=_sampling(fps, exported),
        stored_dtype=stored_dtype,
        backbone=backbone or (exported.backbone if exported else "unknown"),
    )
    run = ImportRun(
        create_cache(cache, spec),
        chosen,
        overwrite=overwrite,
        limit=limit,
        keep_times=exported is not None and exported.sampling == spec.sampling,
        stop=stop,
        progress=progress,
    )
    run.take(found.arrays, found.unreadable)
    return replace(run.summary(), notes=tuple(notes))


def _notes(exported: Exported, asked: Mapping[str, object]) -> list[str]:
    """What the export says, and where something else was asked for."""
    notes = [
        f"these files are of an export of a cache: {exported.describe()}; taken over where nothing "
        "else is asked for (the weights are recorded as unknown)"
    ]
    said = {
        "fps": exported.sampling.fps,
        "prefix": exported.prefix,
        "grid": exported.grid,
        "backbone": exported.backbone,
    }
    other = [name for name, value in asked.items() if value not in (None, said[name])]
    if asked["fps"] is not None and exported.sampling.kind != "fps" and "fps" not in other:
        other.insert(0, "fps")
    if other:
        notes.append(
            f"{' and '.join(f'--{name} {_written(asked[name])}' for name in other)}, as asked: the "
            f"export says {exported.describe()}"
        )
    return notes


def _written(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _sampling(fps: float | None, exported: Exported | None) -> Sampling:
    """What is asked for, else what the export says, else a frame a second."""
    if fps is None and exported is not None:
        return exported.sampling
    try:
        return Sampling(fps=1.0 if fps is None else fps)
    except ValueError as error:
        raise UsageError(f"--fps: {error}") from error


def _as_asked(
    layout: Layout, prefix: int | None, grid: tuple[int, int] | None
) -> tuple[int | None, tuple[int, int] | None, frozenset[str]]:
    """Prefix, grid and file extensions of a layout."""
    if layout == "plain":
        return prefix, grid, frozenset(FORMATS)
    if layout != "vis4mer":
        raise UsageError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    if prefix not in (None, VIS4MER_PREFIX) or grid not in (None, VIS4MER_GRID):
        raise UsageError(
            "--layout vis4mer has 1 prefix token and a grid of 14x14; leave --prefix and --grid "
            "out, or use --layout plain"
        )
    return VIS4MER_PREFIX, VIS4MER_GRID, frozenset({".npy"})


def _layout(
    arrays: Sequence[ArraySource],
    existing: Cache | None,
    *,
    prefix: int | None,
    grid: tuple[int, int] | None,
) -> TokenLayout | None:
    """The cache's layout, or that of the first array that has one; what is asked for wins."""
    if existing is not None:
        held = TokenLayout.of_spec(existing.spec)
        return TokenLayout(
            prefix=held.prefix if prefix is None else prefix,
            grid=held.grid if grid is None else grid,
            dim=held.dim,
        )
    for array in arrays:
        try:
            return array.layout(prefix=prefix, grid=grid)
        except RefusedArrayError:  # it is met again, and recorded, when its turn comes
            continue
    return None


def _first_reason(
    arrays: Sequence[ArraySource],
    unreadable: Sequence[UnreadableSource],
    *,
    prefix: int | None,
    grid: tuple[int, int] | None,
) -> str:
    """Why the first of what was named cannot be taken, and of how many that one is the first."""
    reason, found = "no array was found", len(arrays) + len(unreadable)
    if unreadable:
        reason = f"{unreadable[0].path}: {unreadable[0].reason}"
    elif arrays:
        try:
            arrays[0].layout(prefix=prefix, grid=grid)
        except RefusedArrayError as error:
            reason = f"{arrays[0].shown}: {error}"
    if found < 2:
        return reason
    return f"none of {found:,} files and arrays fits; the first, {reason}"


def _spec(
    layout: TokenLayout, *, sampling: Sampling, stored_dtype: StoredDtype, backbone: str
) -> CacheSpec:
    """A spec that says what is known, and that the rest is not."""
    try:
        return CacheSpec(
            backbone=backbone,
            weights="unknown",
            weights_sha256="unknown",
            layer="unknown",
            preprocess=None,
            sampling=sampling,
            reader="import",
            stored_dtype=stored_dtype,
            grid=layout.grid or (1, 1),
            num_prefix=layout.prefix,
            dim=layout.dim,
            arrays=layout.arrays,
        )
    except ValueError as error:
        raise UsageError(f"these tokens cannot be a cache: {error}") from error
