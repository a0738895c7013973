"""From a video file to a prediction: the one place where both stages meet outside the demo.

`predict_videos` extracts into a temporary cache with the run's own CacheSpec and decodes from it,
as training did. `stream_video` reads frame by frame in constant memory. A run directory may be a
colleague's: what it names is used only if it is a backbone that timm itself knows; a plug-in or a
weights file must be given again by the caller.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .store.errors import UsageError
from .store.spec import CacheSpec, require_same

if TYPE_CHECKING:
    from .decode.predict import EntryPrediction, StreamPrediction
    from .decode.runs import Run
    from .extract.backbones import Backbone
    from .store.failures import FailureRecord

OnPhase = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class VideoPredictions:
    """What became of some videos: each is either predicted or failed, in the order found."""

    predictions: tuple[EntryPrediction, ...]
    failures: tuple[FailureRecord, ...]


def predict_videos(
    videos: Sequence[str | Path],
    run: Run,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    stride_seconds: float | None = None,
    on_phase: OnPhase | None = None,
) -> VideoPredictions:
    """Predict video files (paths, folders, globs) with a trained run (`decode.runs.open_run`).

    backbone, weights: needed only when the run's cache was made with a plug-in or with a weights
    file; they must make the same tokens, or FingerprintError says which field differs.
    stride_seconds: between the 60 s windows whose predictions are averaged, default the run's own.
    on_phase: told in words what begins. A video that cannot be read is among the failures.
    """
    from .decode.predict import predict_entries
    from .extract.pipeline import fill_cache
    from .extract.readers import get_reader
    from .extract.sources import resolve_sources
    from .store.cache import create_cache

    tell = on_phase or (lambda _: None)
    sources = resolve_sources([str(video) for video in videos])
    tell("loading the backbone")
    loaded = load_backbone_of(run, backbone=backbone, weights=weights, device=device)
    with tempfile.TemporaryDirectory(prefix="vis4mer-predict-") as folder:
        cache = create_cache(Path(folder) / "videos.zarr", run.about.spec)
        tell(f"extracting {len(sources)} videos")
        summary = fill_cache(sources, cache, loaded, get_reader(cache.spec.reader))
        tell("decoding")
        predictions = predict_entries(
            run,
            cache,
            [source.id for source in sources if source.id in cache],
            stride_seconds=stride_seconds,
            device=device,
        )
    return VideoPredictions(predictions=tuple(predictions), failures=summary.failures)


def stream_video(
    video: str | Path,
    run: Run,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
) -> Iterator[StreamPrediction]:
    """Predictions after every sampled frame of one video, in memory that does not grow.

    Arguments and errors as for `predict_videos`; UsageError when the decoder is not causal.
    """
    from .decode.predict import StreamPredictor
    from .extract.preprocess import resize_frames
    from .extract.readers import get_reader

    predictor = StreamPredictor(run, device=device)
    loaded = load_backbone_of(run, backbone=backbone, weights=weights, device=device)
    spec = run.about.spec
    with get_reader(spec.reader).open(Path(video), fps=spec.sampling.fps) as stream:
        for batch in stream:
            tokens = loaded.encode(resize_frames(batch.frames, spec.preprocess))
            patch, prefix = tokens.patch.float().cpu().numpy(), tokens.prefix.float().cpu().numpy()
            for i, pts_seconds in enumerate(batch.pts_seconds):
                yield predictor.push(patch[i], prefix[i], pts_seconds=float(pts_seconds))


def load_backbone_of(
    run: Run, *, backbone: str | None = None, weights: str | None = None, device: str = "auto"
) -> Backbone:
    """The backbone whose tokens a run was trained on, checked against its CacheSpec.

    Raises UsageError when it has to be named again, FingerprintError when it is another one.
    """
    from .extract.backbones import cache_spec, load_backbone

    spec = run.about.spec
    _require_named(run, spec, backbone=backbone, weights=weights)
    loaded = load_backbone(
        backbone or spec.backbone,
        weights=weights or spec.weights,
        device=device,
        compute_dtype=spec.compute_dtype,
    )
    made = cache_spec(
        loaded, fps=spec.sampling.fps, reader=spec.reader, stored_dtype=spec.stored_dtype
    )
    require_same(spec, replace(made, arrays=spec.arrays), name=f"the cache of {run.path}")
    return loaded


def _require_named(run: Run, spec: CacheSpec, *, backbone: str | None, weights: str | None) -> None:
    if ":" in spec.backbone and backbone is None:
        raise UsageError(
            f"{run.path} was trained on tokens of {spec.backbone!r}, a plug-in or hub address "
            f"outside timm's own list; if you trust it, add --backbone {spec.backbone}"
        )
    if spec.weights == "file" and weights is None:
        raise UsageError(
            f"{run.path} was trained on tokens of {spec.backbone} with weights from a file "
            f"(sha256 {spec.weights_sha256[:12]}…); add --weights FILE"
        )
