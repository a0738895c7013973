"""From a video file to a prediction: both stages, joined by a cache as everywhere else.

`predict_videos` extracts into temporary caches with the run's own CacheSpec and decodes from them,
as training did. `stream_videos` reads frame by frame in constant memory. A run directory may be a
colleague's: what it names is used only if it is a backbone that timm or torchvision itself knows,
with that model's own weights or with seeded random ones; a plug-in or a weights file must be given
again by the caller.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..store.errors import UsageError
from ..store.spec import CacheSpec

if TYPE_CHECKING:
    from ..decode.judging.predict import EntryPrediction
    from ..decode.judging.stream import StreamPrediction, StreamPredictor
    from ..decode.runs.run import Run
    from ..extract.backbones.loading import Backbone
    from ..extract.readers.base import VideoStream
    from ..extract.sources import VideoSource
    from ..extract.stages.progress import DamagedVideo
    from ..store.cache import Cache
    from ..store.failures import FailureRecord

GROUP_VIDEOS = 16
"""So many videos' tokens are on the disk (in TMPDIR) at once, however many are predicted."""

OnPhase = Callable[[str], None]
OnPredicted = Callable[["Cache", "Sequence[EntryPrediction]"], None]


@dataclass(frozen=True, kw_only=True)
class VideoPredictions:
    """What became of some videos: each is either predicted or failed. All three are in the order in
    which the videos were found; damaged: those predicted although some frames are damaged."""

    predictions: tuple[EntryPrediction, ...]
    failures: tuple[FailureRecord, ...]
    damaged: tuple[DamagedVideo, ...]


@dataclass(frozen=True, kw_only=True)
class StreamedFrame:
    """One more frame of a video was read: what is predicted now."""

    video: VideoSource
    prediction: StreamPrediction


@dataclass(frozen=True, kw_only=True)
class StreamedVideo:
    """A video's end: how many frames were predicted, how many of its frames are damaged, and, where
    it could not be read (to its end), why."""

    video: VideoSource
    num_frames: int
    damaged_frames: int
    failure: str | None = None


def predict_videos(
    videos: Sequence[str | Path],
    run: Run | str | Path,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    stride_seconds: float | None = None,
    on_phase: OnPhase | None = None,
    on_predicted: OnPredicted | None = None,
) -> VideoPredictions:
    """Predict video files (paths, folders, globs) with a trained run.

    backbone, weights: needed only when the run's cache was made with a plug-in or with a weights
    file; they must make the same tokens, or FingerprintError says which field differs.
    stride_seconds: between the run's windows, whose predictions are averaged; default the run's
    own. on_phase: told in words what begins. on_predicted: given the predictions of some videos
    and the cache of their tokens, which is gone afterwards. A video that cannot be read is among
    the failures.
    Raises UsageError for a device that is not here or a video that does not exist, before anything
    is read.
    """
    from ..decode.device import Compute
    from ..decode.judging.walk import require_walks
    from ..extract.sources import resolve_sources

    tell = on_phase or (lambda _: None)
    opened = _opened(run)
    sources = resolve_sources([str(video) for video in videos])
    Compute.of(device=device)
    if opened.about.train.lanes and stride_seconds is not None:
        require_walks(opened.about.plan, stride_seconds=stride_seconds)
    opened.load_decoder()  # a run without weights is refused before its videos are read
    tell("loading the backbone")
    loaded = load_backbone_of(opened, backbone=backbone, weights=weights, device=device)
    predictions: list[EntryPrediction] = []
    failures: list[FailureRecord] = []
    damaged: list[DamagedVideo] = []
    for start in range(0, len(sources), GROUP_VIDEOS):
        group = sources[start : start + GROUP_VIDEOS]
        found = _predict_group(
            group,
            opened,
            loaded,
            device=device,
            stride_seconds=stride_seconds,
            tell=tell,
            on_predicted=on_predicted,
            where=f"videos {start + 1}–{start + len(group)} of {len(sources)}",
        )
        predictions += found.predictions
        failures += found.failures
        damaged += found.damaged
    return VideoPredictions(
        predictions=tuple(predictions), failures=tuple(failures), damaged=tuple(damaged)
    )


def _predict_group(
    sources: Sequence[VideoSource],
    run: Run,
    backbone: Backbone,
    *,
    device: str,
    stride_seconds: float | None,
    tell: OnPhase,
    on_predicted: OnPredicted | None,
    where: str,
) -> VideoPredictions:
    """Predict videos through a cache that is gone afterwards."""
    from ..decode.judging.predict import predict_entries
    from ..extract.readers import get_reader
    from ..extract.stages.pipeline import fill_cache
    from ..store.cache import create_cache

    place = {source.id: i for i, source in enumerate(sources)}
    with tempfile.TemporaryDirectory(prefix="vis4mer-predict-") as folder:
        cache = create_cache(Path(folder) / "videos.zarr", run.about.spec)
        tell(f"extracting {where}")
        summary = fill_cache(sources, cache, backbone, get_reader(cache.spec.reader))
        ids = [source.id for source in sources if source.id in cache]
        predictions: Sequence[EntryPrediction] = ()
        if ids:
            tell(f"decoding {where}")
            predictions = predict_entries(
                run, cache, ids, stride_seconds=stride_seconds, device=device
            )
            if on_predicted is not None:
                on_predicted(cache, predictions)
    return VideoPredictions(
        predictions=tuple(predictions),
        failures=tuple(sorted(summary.failures, key=lambda failure: place[failure.id])),
        damaged=tuple(sorted(summary.damaged, key=lambda video: place[video.id])),
    )


def stream_videos(
    videos: Sequence[str | Path],
    run: Run | str | Path,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
) -> Iterator[StreamedFrame | StreamedVideo]:
    """Predictions after every sampled frame of one video after another, in memory that does not
    grow: for each video its frames, then its end, which says whether it could be read.

    Arguments and errors as for `predict_videos`; UsageError also when the decoder is not causal,
    and when the run's frames are segments of a whole video.
    Everything is found, loaded and refused by the call itself, once for all videos.

        for event in stream_videos(["camera.mp4"], "runs/s4"):
            if isinstance(event, StreamedFrame):
                print(event.prediction)
    """
    from ..decode.judging.stream import StreamPredictor
    from ..extract.sources import resolve_sources

    opened = _opened(run)
    _require_streamable(opened)
    sources = resolve_sources([str(video) for video in videos])
    predictor = StreamPredictor(opened, device=device)
    loaded = load_backbone_of(opened, backbone=backbone, weights=weights, device=device)
    return _events(sources, opened.about.spec, loaded, predictor)


def stream_video(
    video: str | Path,
    run: Run | str | Path,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
) -> Iterator[StreamPrediction]:
    """The predictions of `stream_videos` for one file; VideoError where it cannot be read on."""
    events = stream_videos([video], run, backbone=backbone, weights=weights, device=device)

    def predictions() -> Iterator[StreamPrediction]:
        from ..extract.readers import VideoError

        for event in events:
            if isinstance(event, StreamedFrame):
                yield event.prediction
            elif event.failure is not None:
                raise VideoError(event.video.path, event.failure)

    return predictions()


def _require_streamable(run: Run) -> None:
    """UsageError for tokens of parts of a whole video, which a stream does not have."""
    sampling = run.about.spec.sampling
    if sampling.kind == "segments":
        raise UsageError(
            f"{run.path} was trained on {sampling.describe()} of each whole video, which must be "
            "at hand before its first frame: leave --stream out"
        )


def _events(
    sources: Sequence[VideoSource], spec: CacheSpec, backbone: Backbone, predictor: StreamPredictor
) -> Iterator[StreamedFrame | StreamedVideo]:
    from ..extract.readers import VideoError, get_reader
    from ..extract.sampling import moments_of

    reader = get_reader(spec.reader)
    for video in sources:
        predictor.reset(entry_id=video.id)
        num_frames = damaged_frames = 0
        failure = None
        try:
            with reader.open(video.path, moments=moments_of(spec.sampling)) as stream:
                for prediction in _predicted(stream, backbone, predictor):
                    num_frames += 1
                    damaged_frames = stream.damaged_frames
                    yield StreamedFrame(video=video, prediction=prediction)
                damaged_frames = stream.damaged_frames
        except VideoError as error:
            failure = error.reason
        yield StreamedVideo(
            video=video, num_frames=num_frames, damaged_frames=damaged_frames, failure=failure
        )


def _predicted(
    stream: VideoStream, backbone: Backbone, predictor: StreamPredictor
) -> Iterator[StreamPrediction]:
    """A prediction for every frame of an open video."""
    from ..extract.backbones.preprocess import resize_frames

    for batch in stream:
        tokens = backbone.encode(resize_frames(batch.frames, backbone.preprocess))
        patch = tokens.patch.float().cpu().numpy()  # T h·w D
        prefix = tokens.prefix.float().cpu().numpy()  # T p D
        for i, pts_seconds in enumerate(batch.pts_seconds):
            yield predictor.push(patch[i], prefix[i], pts_seconds=float(pts_seconds))


def load_backbone_of(
    run: Run, *, backbone: str | None = None, weights: str | None = None, device: str = "auto"
) -> Backbone:
    """The backbone whose tokens a run was trained on, checked against its CacheSpec.

    Raises UsageError when it has to be named again, FingerprintError when it is another one.
    """
    from ..extract.backbones.again import load_backbone_again

    _require_known(run, run.about.spec)
    return load_backbone_again(
        run.about.spec,
        has=f"{run.path} was trained on tokens",
        name=f"the cache of {run.path}",
        backbone=backbone,
        weights=weights,
        device=device,
    )


def _require_known(run: Run, spec: CacheSpec) -> None:
    """UsageError for tokens of which nobody can say how they were made."""
    if spec.preprocess is None or spec.weights == "unknown":
        raise UsageError(
            f"{run.path} was trained on imported tokens, of which it is not known how they were "
            "made from video; use evaluate on a cache of such tokens, or train on a cache that "
            "`vis4mer extract` made"
        )


def _opened(run: Run | str | Path) -> Run:
    from ..decode.runs.run import open_run

    return open_run(run) if isinstance(run, (str, Path)) else run
