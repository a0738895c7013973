"""One request for stage 1, from what a person names to a filled cache.

    extract_videos(["videos.csv"], cache="my.zarr", backbone="vit_small_patch16_224.augreg_in21k")

Finds the videos, loads the backbone, opens the cache, writes the task tables and runs the pipeline.
What a run does lies in `pipeline`, what a backbone is in `backbones`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.cache import Cache, create_cache, find_cache, open_cache
from ..store.errors import UsageError
from ..store.spec import CacheSpec, ComputeDtype, StoredDtype, require_writable
from ..store.tasks import TaskTable
from .annotations.table import read_table
from .plan import ExtractPlan, plan_extraction
from .progress import ExtractSummary
from .readers import get_reader
from .readers.base import Reader
from .sources import VideoSource, resolve_sources

if TYPE_CHECKING:
    from .pipeline import OnProgress

DEFAULT_BACKBONE = "vit_large_patch16_224.augreg_in21k"  # the encoder of the ViS4mer paper


@dataclass(frozen=True, kw_only=True)
class Request:
    """The videos asked for, and the task table that came with them."""

    videos: tuple[VideoSource, ...]
    table: TaskTable | None


def find_request(
    inputs: Sequence[str], *, dataset: str | Path | None = None, videos: str | Path | None = None
) -> Request:
    """What to extract: a CSV of labels (`dataset`, or the only input), or files, folders and globs.

    videos: the folder that the CSV's paths and ids are below, default its own. Raises UsageError
    when nothing is named, or both kinds are.
    """
    if dataset is None and len(inputs) == 1 and inputs[0].lower().endswith(".csv"):
        dataset, inputs = inputs[0], ()
    if dataset is None:
        if videos is not None:
            raise UsageError(f"--videos {videos} goes with --dataset FILE.csv, which is missing")
        if not inputs:
            raise UsageError(
                "no videos named: give files, a folder, a glob, or --dataset FILE.csv with labels"
            )
        return Request(videos=tuple(resolve_sources(inputs)), table=None)
    if inputs:
        raise UsageError(
            f"--dataset {dataset} already names the videos; leave out {inputs[0]!r}, or extract it "
            "in a run of its own"
        )
    if not str(dataset).lower().endswith(".csv"):
        raise UsageError(
            f"--dataset {dataset}: expected a CSV file with the columns path,label,split"
        )
    labelled = read_table(dataset, videos=videos)
    return Request(videos=labelled.videos, table=labelled.table)


def extract_videos(
    inputs: Sequence[str],
    *,
    cache: str | Path,
    dataset: str | Path | None = None,
    videos: str | Path | None = None,
    backbone: str = DEFAULT_BACKBONE,
    weights: str = "hub",
    fps: float = 1.0,
    stored_dtype: StoredDtype = "float16",
    grids: Sequence[int] = (),
    reader: str = "pyav",
    device: str = "auto",
    compute_dtype: ComputeDtype | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    stop: threading.Event | None = None,
    progress: OnProgress | None = None,
) -> ExtractSummary:
    """Extract videos into the cache at `cache`, which is made or continued.

    inputs, dataset, videos: see `find_request`. backbone, weights, device, compute_dtype: see
    `load_backbone`. fps: frames a second of video. grids: sides of pooled copies to keep, e.g.
    (7,). The rest: see `pipeline.fill_cache`, whose summary is returned.

    Raises UsageError for a request that cannot be understood, FingerprintError when the cache was
    made with other settings, StorageError when it cannot be written.
    """
    from .backbones import cache_spec, load_backbone
    from .pipeline import fill_cache

    request = find_request(inputs, dataset=dataset, videos=videos)
    chosen_reader = get_reader(reader)
    existing = find_cache(cache)
    if existing is not None and weights == "hub":  # before gigabytes are fetched for nothing
        planned = _planned_spec(
            backbone, fps=fps, reader=chosen_reader, stored_dtype=stored_dtype, grids=grids
        )
        _require_settings(existing, planned)
    loaded = load_backbone(backbone, weights=weights, device=device, compute_dtype=compute_dtype)
    spec = cache_spec(
        loaded, fps=fps, reader=chosen_reader.name, stored_dtype=stored_dtype, grids=grids
    )
    opened = create_cache(cache, spec)
    if request.table is not None:
        opened.save_task(request.table)
    return fill_cache(
        request.videos,
        opened,
        loaded,
        chosen_reader,
        batch_size=batch_size,
        workers=workers,
        limit=limit,
        overwrite=overwrite,
        retry_failed=retry_failed,
        stop=stop,
        progress=progress,
    )


def plan_videos(
    inputs: Sequence[str],
    *,
    cache: str | Path,
    dataset: str | Path | None = None,
    videos: str | Path | None = None,
    backbone: str = DEFAULT_BACKBONE,
    fps: float = 1.0,
    stored_dtype: StoredDtype = "float16",
    grids: Sequence[int] = (),
    reader: str = "pyav",
    limit: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> ExtractPlan:
    """What `extract_videos` would do with the same arguments. Writes nothing.

    Raises what `extract_videos` would, FingerprintError for other settings than the cache's among
    them. Only the weights and the precision of the backbone are not compared: they are not loaded.
    """
    request = find_request(inputs, dataset=dataset, videos=videos)
    chosen_reader = get_reader(reader)
    spec = _planned_spec(
        backbone, fps=fps, reader=chosen_reader, stored_dtype=stored_dtype, grids=grids
    )
    existing = find_cache(cache)
    if existing is not None:
        _require_settings(existing, spec)
    return plan_extraction(
        request.videos,
        spec=spec,
        cache=existing,
        cache_path=Path(cache),
        reader=chosen_reader,
        limit=limit,
        overwrite=overwrite,
        retry_failed=retry_failed,
    )


def label_cache(
    cache: str | Path, dataset: str | Path, *, videos: str | Path | None = None
) -> tuple[TaskTable, list[str]]:
    """Add the task table of a CSV to a cache, or refresh it, without touching a video.

    Returns the table and the ids that it names and the cache does not hold. Raises UsageError when
    the cache holds none of them: the two then call their videos by different names.
    """
    opened = open_cache(cache)
    table = read_table(dataset, videos=videos).table
    held, named = set(opened.ids()), {row.id for row in table.rows}
    if held and not held & named:
        raise UsageError(
            f"{dataset} names no video of {cache}: it says {min(named)!r}, the cache "
            f"{min(held)!r}; "
            "write the names as `vis4mer cache ls` shows them, or give --videos, the folder that "
            "was extracted"
        )
    opened.save_task(table)
    return table, sorted(named - held)


def _require_settings(existing: Cache, planned: CacheSpec) -> None:
    """Refuse other settings than the cache's, as far as they show without weights."""
    stored = existing.spec
    comparable = replace(
        planned, weights_sha256=stored.weights_sha256, compute_dtype=stored.compute_dtype
    )
    require_writable(stored, comparable, name=str(existing.path))


def _planned_spec(
    backbone: str, *, fps: float, reader: Reader, stored_dtype: StoredDtype, grids: Sequence[int]
) -> CacheSpec:
    """The shapes that the backbone would give: random weights have them too."""
    from .backbones import cache_spec, load_backbone

    shaped = load_backbone(backbone, weights="random:0", device="cpu")
    return cache_spec(shaped, fps=fps, reader=reader.name, stored_dtype=stored_dtype, grids=grids)
