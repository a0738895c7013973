"""One request for stage 1, from what a person names to a filled cache.

    extract_videos(ExtractRequest(inputs=["videos.csv"], cache="my.zarr", fps=2))
    plan_videos(ExtractRequest(dataset="lvu", annotations="lvu_1.0", protocol="official"))

Finds the videos, loads the backbone, opens the cache, writes the task tables and runs the pipeline.
Which videos are meant is said in `finding`, what a run does in `pipeline`, what a backbone is in
`backbones`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.cache import Cache, create_cache, find_cache
from ..store.errors import UsageError
from ..store.remote.urls import refuse_address
from ..store.spec import CacheSpec, ComputeDtype, ProtocolName, StoredDtype, require_writable
from ..store.tasks import Split
from .annotations.ends import LabelBeyond, labels_beyond, parts_beyond
from .annotations.finding import Request, find_request
from .annotations.labelling import save_tables
from .annotations.presets import Preset, find_preset
from .planning.dry_run import ExtractPlan, plan_extraction
from .planning.share import Share
from .protocols import protocol_named, sampling_of
from .readers import get_reader
from .readers.base import Reader
from .stages.profile import require_profile_path
from .stages.progress import ExtractSummary, require_counts

if TYPE_CHECKING:
    from .backbones.loading import Backbone
    from .stages.filling import OnProgress

DEFAULT_BACKBONE = "vit_large_patch16_224.augreg_in21k"  # the encoder of the ViS4mer paper
OnNote = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExtractRequest:
    """What to extract, with what, and into which cache.

    inputs, dataset, annotations, videos, tasks, split, ids: see `finding.find_request`. cache: the
    feature cache to make or to continue; may be left out for a dataset known by name, then
    `NAME.zarr`. protocol: see `protocols`. backbone, weights, device, compute_dtype: see
    `load_backbone`; each known dataset has its own default backbone. fps: frames a second of video,
    default 1; segments: so many equal parts of each video instead, the default of Breakfast and
    COIN (64) unless fps is given. stored_dtype: of the tokens in the cache. grids: sides of pooled
    copies to keep, e.g. (7,); full_grid: whether to keep the patches themselves. reader: what reads
    the files. batch_size, workers, limit, overwrite, retry_failed, profile: see
    `pipeline.fill_cache`. compiled: whether to try `torch.compile` on the backbone.
    """

    inputs: Sequence[str] = ()
    cache: str | Path | None = None
    dataset: str | Path | None = None
    annotations: str | Path | None = None
    videos: str | Path | None = None
    tasks: Collection[str] = ()
    split: Split | None = None
    ids: Collection[str] = ()
    protocol: ProtocolName = "clean"
    backbone: str | None = None
    weights: str = "hub"
    fps: float | None = None
    segments: int | None = None
    stored_dtype: StoredDtype = "float16"
    grids: Sequence[int] = ()
    full_grid: bool = True
    reader: str = "pyav"
    device: str = "auto"
    compute_dtype: ComputeDtype | None = None
    batch_size: int | None = None
    workers: int | None = None
    limit: int | None = None
    overwrite: bool = False
    retry_failed: bool = False
    share: Share | None = None
    compiled: bool = False
    profile: str | Path | None = None

    def __post_init__(self) -> None:
        if self.cache is not None:  # before anything is said or fetched
            refuse_address(str(self.cache), what="an extraction fills")
        require_counts(batch_size=self.batch_size, workers=self.workers)
        if self.profile is not None:
            require_profile_path(Path(self.profile))

    @property
    def preset(self) -> Preset | None:
        """The dataset that is known by name, if it is one."""
        return find_preset(self.dataset) if self.dataset is not None else None

    @property
    def cache_path(self) -> Path:
        """UsageError where nobody named a cache and the dataset gives it no name."""
        if self.cache is not None:
            return Path(self.cache)
        if self.preset is None:
            raise UsageError(
                "--cache is missing: give the feature cache to make or to continue, such as "
                "--cache my.zarr"
            )
        return Path(f"{self.preset.name}.zarr")

    @property
    def backbone_name(self) -> str:
        """As asked for, else the dataset's own, else the paper's."""
        own = self.preset.backbone if self.preset is not None else None
        return self.backbone or own or DEFAULT_BACKBONE

    @property
    def num_segments(self) -> int | None:
        """Parts of each video, None for frames at a rate."""
        if self.segments is not None or self.preset is None or self.fps is not None:
            return self.segments
        return self.preset.segments


def extract_videos(
    asked: ExtractRequest,
    *,
    stop: threading.Event | None = None,
    progress: OnProgress | None = None,
    on_note: OnNote | None = None,
    attempts: Mapping[str, str] | None = None,
) -> ExtractSummary:
    """Extract videos into a cache, which is made or continued.

    stop, progress, attempts: see `pipeline.fill_cache`, whose summary is returned, with the notes
    and the ids of a known dataset that have no file. on_note: told what a user must know before the
    work begins.

    Raises UsageError for a request that cannot be understood, FingerprintError when the cache was
    made with other settings, StorageError when it cannot be written.
    """
    from .stages.pipeline import fill_cache

    request = find_videos(asked)
    _tell(on_note, request.notes)
    require_same_settings(asked)
    place = open_workplace(asked)
    notes = [*save_labels(request, place.cache), *place.notes]
    _tell(on_note, notes)
    summary = fill_cache(
        request.videos,
        place.cache,
        place.backbone,
        place.reader,
        batch_size=asked.batch_size,
        workers=asked.workers,
        limit=asked.limit,
        overwrite=asked.overwrite,
        retry_failed=asked.retry_failed,
        claiming=True,
        attempts=attempts,
        share=asked.share,
        stop=stop,
        progress=progress,
        profile=Path(asked.profile) if asked.profile is not None else None,
    )
    return with_request(summary, request, place.cache, notes)


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What a process needs to fill a cache. notes: what a user must know of it."""

    cache: Cache
    backbone: Backbone
    reader: Reader
    notes: tuple[str, ...] = ()


def require_same_settings(asked: ExtractRequest) -> None:
    """FingerprintError when the cache is there and was made with other settings, as far as these
    show before gigabytes are fetched for nothing."""
    reader, existing = get_reader(asked.reader), find_cache(asked.cache_path)
    if asked.weights == "hub" and not _is_plugin(asked):  # which only its own weights tell
        planned = _spec(asked, _shape(asked), reader)
        if existing is not None:
            _require_settings(existing, planned)


def open_workplace(asked: ExtractRequest) -> Workplace:
    """Load the backbone, and make or open the cache for its tokens; raises as `extract_videos`."""
    reader = get_reader(asked.reader)
    notes: tuple[str, ...] = ()
    loaded = _load(asked, weights=asked.weights, device=asked.device)
    cache = create_cache(asked.cache_path, _spec(asked, loaded, reader))
    if asked.compiled:
        from .backbones.compiling import compile_backbone
        from .stages.pipeline import batch_frames

        frames = batch_frames(loaded, asked.batch_size)
        loaded, note = compile_backbone(loaded, batch_frames=frames)
        notes = (note or "the backbone is compiled: tokens are the plain ones up to rounding",)
    return Workplace(cache=cache, backbone=loaded, reader=reader, notes=notes)


def save_labels(request: Request, cache: Cache) -> list[str]:
    """Write the task tables; what changed in those that were there."""
    changes = [change.describe() for change in save_tables(cache, request.tables)]
    return [change for change in changes if change is not None]


def with_request(
    summary: ExtractSummary, request: Request, cache: Cache, notes: Sequence[str]
) -> ExtractSummary:
    """A summary with what is to be said of the request; notes: beside the request's own."""
    beyond = _labels_beyond(request, cache)
    told = (*request.notes, *notes)
    return replace(summary, missing=request.missing, beyond=beyond, notes=told)


def plan_videos(asked: ExtractRequest, *, probe: bool = False) -> ExtractPlan:
    """What `extract_videos` would do with the same request, and what it takes. Writes nothing.

    probe: try the backbone and a few videos too, to say how long it will take (see `probe`).

    Raises what `extract_videos` would, FingerprintError for other settings than the cache's among
    them. Only the weights and the precision of the backbone are not compared: they are not loaded,
    but for a plug-in's, which alone knows its shape. A known dataset need not have any video there
    yet.
    """
    path, reader = asked.cache_path, get_reader(asked.reader)
    request = _in_share(find_videos(asked, require_files=False), asked.share)
    backbone = _trial(asked) if probe else _shape(asked)
    spec = _spec(asked, backbone, reader)
    existing = find_cache(path)
    if existing is not None:
        _require_settings(existing, spec)
        spec = replace(spec, arrays=existing.spec.arrays)
    plan = plan_extraction(
        request.videos,
        spec=spec,
        cache=existing,
        cache_path=path,
        reader=reader,
        limit=asked.limit,
        overwrite=asked.overwrite,
        retry_failed=asked.retry_failed,
        missing=request.missing,
        durations=request.durations,
        tables=request.tables,
    )
    plan = replace(plan, notes=request.notes)
    if not probe or not plan.present.frames + plan.absent.frames:
        return plan
    return _probed(plan, asked, request, backbone, reader, spec)


def _in_share(request: Request, share: Share | None) -> Request:
    """What a run with this share would do, in its order; what it lacks a file for, too."""
    if share is None:
        return request
    own, others = share.split(request.videos)
    missing = tuple(each for each in request.missing if share.helps or share.has(each))
    return replace(request, videos=(*own, *others), missing=missing)


def _probed(
    plan: ExtractPlan,
    asked: ExtractRequest,
    request: Request,
    backbone: Backbone,
    reader: Reader,
    spec: CacheSpec,
) -> ExtractPlan:
    """The plan with rates that were tried out."""
    from .planning.probe import probe_rates

    planned = set(plan.to_extract)
    rates = probe_rates(
        backbone,
        [video for video in request.videos if video.id in planned],
        reader,
        sampling=spec.sampling,
        batch_size=asked.batch_size,
        workers=asked.workers,
    )
    return replace(plan, probe=rates)


def _tell(on_note: OnNote | None, notes: Sequence[str]) -> None:
    if on_note is not None:
        for note in notes:
            on_note(note)


def _labels_beyond(request: Request, cache: Cache) -> tuple[LabelBeyond, ...]:
    """The labels that speak of more than the videos hold, of those asked for and in the cache."""
    if not request.tables:
        return ()
    videos = [video for video in request.videos if video.id in cache]
    seconds = {video.id: cache.record(video.id).duration_seconds for video in videos}
    if not cache.spec.sampling.needs_extent:
        return labels_beyond(request.tables, seconds)
    return parts_beyond((v.id, v.start_seconds, v.end_seconds, seconds[v.id]) for v in videos)


def find_videos(asked: ExtractRequest, *, require_files: bool = True) -> Request:
    """The videos and labels that are asked for; see `finding.find_request`."""
    request = find_request(
        asked.inputs,
        dataset=asked.dataset,
        annotations=asked.annotations,
        videos=asked.videos,
        tasks=asked.tasks,
        split=asked.split,
        ids=asked.ids,
        sampling=sampling_of(asked.protocol, fps=asked.fps, segments=asked.num_segments),
        require_files=require_files,
    )
    if not request.tables:
        return request
    labels = "; ".join(f"{table.reference} {table.describe_labels()}" for table in request.tables)
    return replace(request, notes=(*request.notes, f"labels: {labels}"))


def _load(asked: ExtractRequest, *, weights: str, device: str) -> Backbone:
    """The backbone with the protocol's preprocessing."""
    from .backbones.loading import load_backbone

    loaded = load_backbone(
        asked.backbone_name, weights=weights, device=device, compute_dtype=asked.compute_dtype
    )
    return protocol_named(asked.protocol).apply(loaded)


def _trial(asked: ExtractRequest) -> Backbone:
    """A backbone to try: random weights take as long, and a plug-in may know none but its own."""
    weights = asked.weights if _is_plugin(asked) else "random:0"
    return _load(asked, weights=weights, device=asked.device)


def _shape(asked: ExtractRequest) -> Backbone:
    """What a spec says of the backbone, without its numbers; a plug-in must be loaded for that."""
    from .backbones.loading import shape_of_backbone

    if _is_plugin(asked):
        return _load(asked, weights=asked.weights, device="cpu")
    shape = shape_of_backbone(asked.backbone_name, compute_dtype=asked.compute_dtype)
    return protocol_named(asked.protocol).apply(shape)


def _is_plugin(asked: ExtractRequest) -> bool:
    from .backbones.plugins import is_plugin

    return is_plugin(asked.backbone_name)


def _spec(asked: ExtractRequest, loaded: Backbone, reader: Reader) -> CacheSpec:
    from .backbones.loading import cache_spec

    sampling = sampling_of(
        asked.protocol,
        fps=asked.fps,
        segments=asked.num_segments,
        clip_frames=loaded.clip_frames,
    )
    return cache_spec(
        loaded,
        sampling=sampling,
        reader=reader.name,
        stored_dtype=asked.stored_dtype,
        grids=asked.grids,
        full_grid=asked.full_grid,
    )


def _require_settings(existing: Cache, planned: CacheSpec) -> None:
    """Refuse other settings than the cache's, as far as they show without weights."""
    stored = existing.spec
    comparable = replace(
        planned, weights_sha256=stored.weights_sha256, compute_dtype=stored.compute_dtype
    )
    require_writable(stored, comparable, name=str(existing.path))
