"""Judging a decoder: every window of every video of a split, then figures over videos.

Each video's timeline is read once, whatever the stride; windows of different videos share a batch.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..store.cache import Cache
from ..store.errors import Vis4merError
from ..store.spec import require_same
from ..store.tasks import Split, TaskTable
from ..store.windows import Window
from .clips import collate
from .config import Precision, TrainConfig
from .device import Compute
from .loader import Timelines, WindowClip
from .metrics import EvaluationResult, predict_video
from .plan import SplitSamples, Stretch, WindowPlan, split_samples
from .runs import Run, Which
from .typed import refuse

OnVideo = Callable[[int, int], None]  # videos judged, videos in all


@dataclass(frozen=True, kw_only=True)
class JudgedWindow:
    """What a decoder says of one window: outputs float64 (n_out,), before any softmax."""

    window: Window
    outputs: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """windows[i] are those of stretch i, in order; never empty. bytes_read: of tokens."""

    windows: tuple[tuple[JudgedWindow, ...], ...]
    bytes_read: int

    def outputs(self, stretch: int) -> NDArray[np.float64]:
        """Those of all windows of a stretch: (W, n_out)."""
        return np.stack([window.outputs for window in self.windows[stretch]])


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How a run is judged: seconds between windows, windows in a batch, reading threads."""

    stride_seconds: float
    batch_size: int
    workers: int

    def __post_init__(self) -> None:
        if not 0 < self.stride_seconds < math.inf:
            raise refuse("stride_seconds", self.stride_seconds, "more than 0 seconds")
        for name in ("batch_size", "workers"):
            if getattr(self, name) < 1:
                raise refuse(name, getattr(self, name), "at least 1")

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        *,
        stride_seconds: float | None,
        batch_size: int | None,
        workers: int,
    ) -> Pace:
        """What was asked for; None is the run's own final stride or batch size."""
        return cls(
            stride_seconds=config.final_stride_seconds
            if stride_seconds is None
            else stride_seconds,
            batch_size=config.batch_size if batch_size is None else batch_size,
            workers=workers,
        )


def judge(
    model: nn.Module,
    cache: Cache,
    stretches: Sequence[Stretch],
    plan: WindowPlan,
    compute: Compute,
    *,
    stride_seconds: float,
    batch_size: int,
    workers: int,
    on_video: OnVideo | None = None,
) -> Judged:
    """Run `model` over all windows of some stretches. Vis4merError when an output is not finite."""
    timelines = Timelines(
        cache,
        stretches,
        plan,
        stride_seconds=stride_seconds,
        workers=workers,
        device=compute.device,
    )
    places: list[tuple[int, Window]] = []
    outputs: list[Tensor] = []  # stay on the device until all is done
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for clips in _batches(timelines, batch_size):
            with compute.autocast():
                outputs.append(model(collate([c.clip for c in clips], compute.dtype)))  # B n_out
            places += [(c.stretch, c.window) for c in clips]
            if on_video is not None:
                on_video(clips[-1].stretch, len(stretches))
    model.train(was_training)
    if on_video is not None:
        on_video(len(stretches), len(stretches))
    judged: defaultdict[int, list[JudgedWindow]] = defaultdict(list)
    values = _on_host(outputs)
    for (stretch, window), row in zip(places, values, strict=True):
        if not np.isfinite(row).all():
            raise Vis4merError(
                f"the decoder's output for video {stretches[stretch].id!r} is {row.tolist()}, "
                "expected finite numbers; training diverged, lower --set optimizer.lr"
            )
        judged[stretch].append(JudgedWindow(window=window, outputs=row))
    windows = tuple(tuple(judged[i]) for i in range(len(stretches)))
    return Judged(windows=windows, bytes_read=timelines.bytes_read)


def evaluate_split(
    model: nn.Module,
    cache: Cache,
    table: TaskTable,
    split: Split,
    plan: WindowPlan,
    compute: Compute,
    *,
    stride_seconds: float,
    batch_size: int,
    workers: int,
    chosen: SplitSamples | None = None,
    on_video: OnVideo | None = None,
) -> EvaluationResult:
    """Judge `model` on one split of a task; `chosen` when the split was already matched."""
    began = time.monotonic()
    chosen = chosen or split_samples(cache, table, split)
    judged = judge(
        model,
        cache,
        chosen.samples,
        plan,
        compute,
        stride_seconds=stride_seconds,
        batch_size=batch_size,
        workers=workers,
        on_video=on_video,
    )
    predictions = tuple(
        predict_video(judged.outputs(i), id=sample.id, label=sample.label, kind=table.kind)
        for i, sample in enumerate(chosen.samples)
    )
    return EvaluationResult(
        task=table.reference,
        kind=table.kind,
        classes=table.classes,
        split=split,
        stride_seconds=stride_seconds,
        predictions=predictions,
        coverage=chosen.coverage,
        seconds=time.monotonic() - began,
        bytes_read=judged.bytes_read,
    )


def evaluate_run(
    run: Run,
    cache: Cache,
    *,
    split: Split = "test",
    which: Which = "selected",
    stride_seconds: float | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    batch_size: int | None = None,
    workers: int = 4,
    strict: bool = False,
    on_video: OnVideo | None = None,
) -> EvaluationResult:
    """Judge a finished or unfinished run on a cache that holds its task.

    stride_seconds: between windows, default the run's own final stride. precision: default that of
    the run's training on a GPU, float32 on a CPU. strict: a video that cannot be judged is an
    error. Raises FingerprintError when the cache was made with other settings.
    """
    config = run.about.train
    compute = Compute.for_run(config, device=device, precision=precision)
    pace = Pace.of(config, stride_seconds=stride_seconds, batch_size=batch_size, workers=workers)
    require_same(cache.spec, run.about.spec, name=str(cache.path))
    table = cache.task(config.task)
    run.about.require_task(table)
    decoder = run.load_decoder(which)
    min_frames = run.about.plan.frames_for(decoder.min_frames)
    chosen = split_samples(cache, table, split, min_frames=min_frames)
    covered = chosen.coverage.describe(split)
    if not chosen.samples or (strict and not chosen.coverage.complete):
        raise Vis4merError(
            f"{config.task} in {cache.path} has {covered}; "
            + ("extract the missing videos" if chosen.coverage.missing else "choose another split")
            + (", or leave out --strict" if chosen.samples else "")
        )
    return evaluate_split(
        decoder.to(compute.device),
        cache,
        table,
        split,
        run.about.plan,
        compute,
        stride_seconds=pace.stride_seconds,
        batch_size=pace.batch_size,
        workers=pace.workers,
        chosen=chosen,
        on_video=on_video,
    )


def _batches(clips: Timelines, size: int) -> Iterator[list[WindowClip]]:
    remaining = iter(clips)
    while batch := list(islice(remaining, size)):
        yield batch


def _on_host(outputs: Sequence[Tensor]) -> NDArray[np.float64]:
    """All window outputs as float64 (W, n_out); one wait for the device."""
    if not outputs:
        return np.zeros((0, 0))
    return torch.cat(list(outputs)).double().cpu().numpy()
