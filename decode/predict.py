"""What a trained decoder makes of videos without labels: whole entries of a cache, or a stream.

Reads tokens, never video files: whoever has the backbone brings the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..store import quantise
from ..store.cache import Cache, ViewTokens
from ..store.spec import CacheSpec, require_same
from ..store.tasks import TaskKind
from ..store.views import TokenView, pool_grid
from ..store.windows import Window
from .batch import TokenBatch
from .clips import collate, host_clip, on_device
from .config import Precision
from .decoders import Decoder
from .device import Compute
from .evaluate import OnVideo, judge
from .metrics import window_outputs
from .plan import Stretch
from .runs import Run, Which

Outputs = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    """One class with its probability."""

    name: str
    probability: float


def top_classes(
    output: Outputs, classes: Sequence[str], *, count: int = 5
) -> list[ClassProbability]:
    """The most probable classes, best first, the lower index first among equals."""
    order = np.argsort(-np.asarray(output), kind="stable")[:count]
    return [ClassProbability(name=classes[i], probability=output[i]) for i in order]


@dataclass(frozen=True, kw_only=True)
class WindowPrediction:
    """One window, [start, end) in seconds after the entry's first frame.

    output: class probabilities, or (value,).
    """

    start_seconds: float
    end_seconds: float
    output: Outputs


@dataclass(frozen=True, kw_only=True)
class EntryPrediction:
    """One video: `output` is the mean over its windows of probabilities, or (mean value,)."""

    id: str
    kind: TaskKind
    classes: tuple[str, ...]
    output: Outputs
    windows: tuple[WindowPrediction, ...]

    def top(self, *, count: int = 5) -> list[ClassProbability]:
        """The most probable classes; empty for regression."""
        return top_classes(self.output, self.classes, count=count) if self.classes else []

    @property
    def value(self) -> float:
        """The predicted value of a regression."""
        return self.output[0]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def predict_entries(
    run: Run,
    cache: Cache,
    ids: Sequence[str] | None = None,
    *,
    which: Which = "selected",
    stride_seconds: float | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    workers: int = 4,
    on_video: OnVideo | None = None,
) -> list[EntryPrediction]:
    """Predict whole entries of a cache, default all of them, in the order asked for.

    stride_seconds: between windows, default the run's own final stride. Raises FingerprintError
    when the cache was made with other settings than the run's, EntryNotFoundError for an id that it
    does not hold.
    """
    about = run.about
    require_same(cache.spec, about.spec, name=str(cache.path))
    stretches = [
        Stretch(id=i, extent=Window(start=0, stop=cache.record(i).num_frames))
        for i in (cache.ids() if ids is None else ids)
    ]
    compute = Compute.of(device=device, precision=precision)
    judged = judge(
        run.load_decoder(which).to(compute.device),
        cache,
        stretches,
        about.plan,
        compute,
        stride_seconds=stride_seconds or about.train.final_stride_seconds,
        batch_size=batch_size or about.train.batch_size,
        workers=workers,
        on_video=on_video,
    )
    predictions = []
    for stretch, windows in zip(stretches, judged.windows, strict=True):
        outputs = window_outputs(np.stack([w.outputs for w in windows]), about.kind)  # W n_out
        predictions.append(
            EntryPrediction(
                id=stretch.id,
                kind=about.kind,
                classes=about.classes,
                output=tuple(map(float, outputs.mean(axis=0))),
                windows=tuple(
                    WindowPrediction(
                        start_seconds=judged_window.window.start / about.plan.fps,
                        end_seconds=judged_window.window.stop / about.plan.fps,
                        output=tuple(map(float, row)),
                    )
                    for judged_window, row in zip(windows, outputs, strict=True)
                ),
            )
        )
    return predictions


# Streams --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StreamPrediction:
    """What is predicted after a frame.

    frame: its index since the stream began. window_frames: frames of the running window so far,
    this one included. complete: the window is full and the next frame begins another.
    output: of the running window so far, as in WindowPrediction; None while there are too few
    tokens for this decoder to say anything.
    """

    frame: int
    pts_seconds: float
    window_frames: int
    complete: bool
    output: Outputs | None


class StreamPredictor:
    """Feed frames one at a time; memory does not grow with the stream.

    The running prediction starts again every window. At each reset it equals, to rounding, what
    `predict_entries` says of that window. Raises UsageError, naming the decoder, when it is not
    causal.

        stream = StreamPredictor(run)
        for patch, prefix, pts_seconds in frames_from_the_backbone:
            print(stream.push(patch, prefix, pts_seconds=pts_seconds))
    """

    def __init__(
        self,
        run: Run,
        *,
        which: Which = "selected",
        device: str = "auto",
        precision: Precision = "auto",
    ) -> None:
        self.about = run.about
        self._compute = Compute.of(device=device, precision=precision)
        self._decoder: Decoder = run.load_decoder(which).to(self._compute.device)
        self._plan = run.about.plan
        self._kept = frozenset(self._plan.frames(Window(start=0, stop=self._plan.length)))
        self._state = self._fresh_state()
        self._frame = 0
        self._output: Outputs | None = None

    def push(
        self,
        patch: NDArray[np.floating] | None,
        prefix: NDArray[np.floating] | None,
        *,
        pts_seconds: float,
    ) -> StreamPrediction:
        """The prediction after one more frame, with the backbone's tokens for it.

        patch: (h·w, D) of the full grid. prefix: (p, D). Either may be None when the run's view
        does not use it.
        """
        place = self._frame % self._plan.length
        if place == 0:
            self._state, self._output = self._fresh_state(), None
        if place in self._kept:
            self._step(patch, prefix, pts_seconds)
        self._frame += 1
        return StreamPrediction(
            frame=self._frame - 1,
            pts_seconds=pts_seconds,
            window_frames=place + 1,
            complete=place + 1 == self._plan.length,
            output=self._output,
        )

    def _step(
        self,
        patch: NDArray[np.floating] | None,
        prefix: NDArray[np.floating] | None,
        pts_seconds: float,
    ) -> None:
        tokens = tokens_as_stored(
            self.about.spec,
            self._plan.view,
            None if patch is None else patch[None],
            None if prefix is None else prefix[None],
        )
        with torch.inference_mode(), self._compute.autocast():
            outputs, self._state = self._decoder.stream_step(
                self._batch(tokens, pts_seconds), self._state
            )
        row = outputs.double().cpu().numpy()  # 1 n_out
        output = window_outputs(row, self.about.kind)[0]
        self._output = tuple(map(float, output)) if np.isfinite(output).all() else None

    def _batch(self, tokens: ViewTokens, pts_seconds: float) -> TokenBatch:
        host = host_clip(tokens, np.array([pts_seconds]))
        return collate([on_device(host, self._plan, self._compute.device)], self._compute.dtype)

    def _fresh_state(self) -> Any:
        return self._decoder.start_stream(1, self._compute.device)


def tokens_as_stored(
    spec: CacheSpec,
    view: TokenView,
    patch: NDArray[np.floating] | None,
    prefix: NDArray[np.floating] | None,
) -> ViewTokens:
    """What a cache of `spec` would give back for a view of these tokens.

    patch: (T, h·w, D) of the full grid. prefix: (T, p, D). Rounded to the stored type, so that a
    stream and a cache agree; not for int8, whose scales depend on the whole video.
    """
    view.require(spec)
    chosen_patch = chosen_prefix = None
    if view.cls:
        if prefix is None:
            raise ValueError(f"token view {view} needs the prefix tokens")
        chosen_prefix = _rounded(prefix[:, :1], spec)  # T 1 D
    if view.grid is not None:
        if patch is None:
            raise ValueError(f"token view {view} needs the patch tokens")
        grid = spec.array_grid(view.stored_array(spec, spec.arrays)) or spec.grid
        pooled = patch if grid == spec.grid else pool_grid(patch, spec.grid, grid)  # T h·w D
        chosen_patch = _rounded(pooled, spec).reshape(len(patch), *grid, spec.dim)  # T h w D
    return ViewTokens(patch=chosen_patch, prefix=chosen_prefix, num_bytes=0)


def _rounded(tokens: NDArray[np.floating], spec: CacheSpec) -> NDArray[np.float32]:
    if spec.stored_dtype == "float16":
        tokens = quantise.encode_float16(tokens)
    elif spec.stored_dtype == "bfloat16":
        tokens = quantise.decode_bfloat16(quantise.encode_bfloat16(tokens.astype(np.float32)))
    return tokens.astype(np.float32)
