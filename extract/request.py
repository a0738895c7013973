"""One request for stage 1, from what a person names to a filled cache.

    extract_videos(["videos.csv"], cache="my.zarr", backbone="vit_small_patch16_224.augreg_in21k")
    extract_videos(dataset="lvu", annotations="lvu_1.0", videos="videos", protocol="official")

Finds the videos, loads the backbone, opens the cache, writes the task tables and runs the pipeline.
Which videos are meant is said in `finding`, what a run does in `pipeline`, what a backbone is in
`backbones`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.cache import Cache, create_cache, find_cache
from ..store.errors import UsageError
from ..store.spec import CacheSpec, ComputeDtype, StoredDtype, require_writable
from ..store.tasks import Split
from .annotations.finding import find_request
from .annotations.labelling import save_tables
from .annotations.presets import find_preset
from .planning.dry_run import ExtractPlan, plan_extraction
from .protocols import ProtocolName, protocol_named, sampling_of
from .readers import get_reader
from .readers.base import Reader
from .stages.progress import ExtractSummary

if TYPE_CHECKING:
    from .backbones.loading import Backbone
    from .stages.pipeline import OnProgress

DEFAULT_BACKBONE = "vit_large_patch16_224.augreg_in21k"  # the encoder of the ViS4mer paper
OnNote = Callable[[str], None]


def extract_videos(
    inputs: Sequence[str] = (),
    *,
    cache: str | Path | None = None,
    dataset: str | Path | None = None,
    annotations: str | Path | None = None,
    videos: str | Path | None = None,
    tasks: Collection[str] = (),
    split: Split | None = None,
    ids: Collection[str] = (),
    protocol: ProtocolName = "clean",
    backbone: str | None = None,
    weights: str = "hub",
    fps: float | None = None,
    segments: int | None = None,
    stored_dtype: StoredDtype = "float16",
    grids: Sequence[int] = (),
    full_grid: bool = True,
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
    on_note: OnNote | None = None,
) -> ExtractSummary:
    """Extract videos into the cache at `cache`, which is made or continued.

    inputs, dataset, annotations, videos, tasks, split, ids: see `finding.find_request`. cache: may
    be left out for a dataset known by name, then `NAME.zarr`. protocol: see `protocols`. backbone,
    weights, device, compute_dtype: see `load_backbone`; each known dataset has its own default
    backbone. fps: frames a second of video, default 1; segments: so many equal parts of each video
    instead, the default of Breakfast and COIN (64) unless fps is given. grids: sides of pooled
    copies to keep, e.g. (7,); full_grid: whether to keep the patches themselves. on_note: told what
    a user must know before the work begins. The rest: see `pipeline.fill_cache`, whose summary is
    returned, with the notes and the ids of a known dataset that have no file.

    Raises UsageError for a request that cannot be understood, FingerprintError when the cache was
    made with other settings, StorageError when it cannot be written.
    """
    from .stages.pipeline import fill_cache

    making = _making(
        dataset,
        cache=cache,
        protocol=protocol,
        backbone=backbone,
        fps=fps,
        segments=segments,
        stored_dtype=stored_dtype,
        grids=grids,
        full_grid=full_grid,
        reader=reader,
    )
    request = find_request(
        inputs,
        dataset=dataset,
        annotations=annotations,
        videos=videos,
        tasks=tasks,
        split=split,
        ids=ids,
        sampling=sampling_of(protocol, fps=fps, segments=making.segments),
    )
    _tell(on_note, request.notes)
    existing = find_cache(making.cache)
    if existing is not None and weights == "hub":  # before gigabytes are fetched for nothing
        _require_settings(existing, making.planned_spec())
    loaded = making.load(weights=weights, device=device, compute_dtype=compute_dtype)
    opened = create_cache(making.cache, making.spec(loaded))
    changes = [change.describe() for change in save_tables(opened, request.tables)]
    notes = [*request.notes, *(change for change in changes if change is not None)]
    _tell(on_note, notes[len(request.notes) :])
    summary = fill_cache(
        request.videos,
        opened,
        loaded,
        making.reader,
        batch_size=batch_size,
        workers=workers,
        limit=limit,
        overwrite=overwrite,
        retry_failed=retry_failed,
        stop=stop,
        progress=progress,
    )
    return replace(summary, missing=request.missing, notes=tuple(notes))


def plan_videos(
    inputs: Sequence[str] = (),
    *,
    cache: str | Path | None = None,
    dataset: str | Path | None = None,
    annotations: str | Path | None = None,
    videos: str | Path | None = None,
    tasks: Collection[str] = (),
    split: Split | None = None,
    ids: Collection[str] = (),
    protocol: ProtocolName = "clean",
    backbone: str | None = None,
    fps: float | None = None,
    segments: int | None = None,
    stored_dtype: StoredDtype = "float16",
    grids: Sequence[int] = (),
    full_grid: bool = True,
    reader: str = "pyav",
    device: str = "auto",
    compute_dtype: ComputeDtype | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    probe: bool = False,
) -> ExtractPlan:
    """What `extract_videos` would do with the same arguments, and what it takes. Writes nothing.

    probe: try the backbone and a few videos too, to say how long it will take (see `probe`).

    Raises what `extract_videos` would, FingerprintError for other settings than the cache's among
    them. Only the weights and the precision of the backbone are not compared: they are not loaded.
    A known dataset need not have any video there yet.
    """
    making = _making(
        dataset,
        cache=cache,
        protocol=protocol,
        backbone=backbone,
        fps=fps,
        segments=segments,
        stored_dtype=stored_dtype,
        grids=grids,
        full_grid=full_grid,
        reader=reader,
    )
    request = find_request(
        inputs,
        dataset=dataset,
        annotations=annotations,
        videos=videos,
        tasks=tasks,
        split=split,
        ids=ids,
        sampling=sampling_of(protocol, fps=fps, segments=making.segments),
        require_files=False,
    )
    on = device if probe else "cpu"
    shaped = making.load(weights="random:0", device=on, compute_dtype=compute_dtype)
    spec = making.spec(shaped)
    existing = find_cache(making.cache)
    if existing is not None:
        _require_settings(existing, spec)
    plan = plan_extraction(
        request.videos,
        spec=spec,
        cache=existing,
        cache_path=making.cache,
        reader=making.reader,
        limit=limit,
        overwrite=overwrite,
        retry_failed=retry_failed,
        missing=request.missing,
        durations=request.durations,
        tables=request.tables,
    )
    plan = replace(plan, notes=request.notes)
    if not probe or not plan.present.frames + plan.absent.frames:
        return plan
    from .planning.probe import probe_rates

    planned = set(plan.to_extract)
    rates = probe_rates(
        shaped,
        [video for video in request.videos if video.id in planned],
        making.reader,
        sampling=spec.sampling,
        batch_size=batch_size,
        workers=workers,
    )
    return replace(plan, probe=rates)


def _tell(on_note: OnNote | None, notes: Sequence[str]) -> None:
    if on_note is not None:
        for note in notes:
            on_note(note)


@dataclass(frozen=True, kw_only=True)
class _Making:
    """What cache is to be made and how, the dataset's own defaults filled in."""

    cache: Path
    protocol: ProtocolName
    backbone: str
    fps: float | None
    segments: int | None
    stored_dtype: StoredDtype
    grids: tuple[int, ...]
    full_grid: bool
    reader: Reader

    def load(
        self, *, weights: str, device: str, compute_dtype: ComputeDtype | None = None
    ) -> Backbone:
        """The backbone with the protocol's preprocessing."""
        from .backbones.loading import load_backbone

        loaded = load_backbone(
            self.backbone, weights=weights, device=device, compute_dtype=compute_dtype
        )
        return protocol_named(self.protocol).apply(loaded)

    def spec(self, loaded: Backbone) -> CacheSpec:
        from .backbones.loading import cache_spec

        sampling = sampling_of(
            self.protocol,
            fps=self.fps,
            segments=self.segments,
            clip_frames=loaded.clip_frames,
        )
        return cache_spec(
            loaded,
            sampling=sampling,
            reader=self.reader.name,
            stored_dtype=self.stored_dtype,
            grids=self.grids,
            full_grid=self.full_grid,
        )

    def planned_spec(self) -> CacheSpec:
        """The shapes that the backbone would give: random weights have them too."""
        return self.spec(self.load(weights="random:0", device="cpu"))


def _making(
    dataset: str | Path | None,
    *,
    cache: str | Path | None,
    protocol: ProtocolName,
    backbone: str | None,
    fps: float | None,
    segments: int | None,
    stored_dtype: StoredDtype,
    grids: Sequence[int],
    full_grid: bool,
    reader: str,
) -> _Making:
    """Fill in what was left out. UsageError for a cache without a name."""
    preset = find_preset(dataset) if dataset is not None else None
    if cache is None:
        if preset is None:
            raise UsageError(
                "--cache is missing: give the feature cache to make or to continue, such as "
                "--cache my.zarr"
            )
        cache = f"{preset.name}.zarr"
    own_segments = preset.segments if preset is not None and fps is None else None
    own_backbone = preset.backbone if preset is not None else None
    return _Making(
        cache=Path(cache),
        protocol=protocol,
        backbone=backbone or own_backbone or DEFAULT_BACKBONE,
        fps=fps,
        segments=segments if segments is not None else own_segments,
        stored_dtype=stored_dtype,
        grids=tuple(grids),
        full_grid=full_grid,
        reader=get_reader(reader),
    )


def _require_settings(existing: Cache, planned: CacheSpec) -> None:
    """Refuse other settings than the cache's, as far as they show without weights."""
    stored = existing.spec
    comparable = replace(
        planned, weights_sha256=stored.weights_sha256, compute_dtype=stored.compute_dtype
    )
    require_writable(stored, comparable, name=str(existing.path))
