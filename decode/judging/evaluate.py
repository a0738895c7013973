"""Judging a decoder on a split of its task: every window of every video, then figures over videos.

Each video's timeline is read once, whatever the stride; windows of different videos share a batch.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from torch import nn

from ...store.cache import Cache
from ...store.errors import Vis4merError
from ...store.spec import require_same
from ...store.tasks import Split, TaskTable
from ..config import Precision, TrainConfig
from ..data.hold_out import hold_out
from ..data.plan import SplitSamples, WindowPlan, group_of, split_samples
from ..device import Compute
from ..runs.run import Run, Which
from ..typed import refuse
from .judge import Judged, OnVideo, judge
from .metrics import EvaluationResult, predict_video


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
    shuffle_frames: bool = False,
    carries_memory: bool = False,
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
        shuffle_frames=shuffle_frames,
        carries_memory=carries_memory,
        on_video=on_video,
    )
    seconds = time.monotonic() - began
    return result_of(judged, table, split, chosen, stride_seconds=stride_seconds, seconds=seconds)


def result_of(
    judged: Judged,
    table: TaskTable,
    split: Split,
    chosen: SplitSamples,
    *,
    stride_seconds: float,
    seconds: float,
) -> EvaluationResult:
    """The figures of a split whose `chosen` samples were judged, in their order."""
    trained = {group_of(row) for row in table.split("train")}
    predictions = tuple(
        predict_video(
            judged.outputs(i),
            id=sample.id,
            label=sample.label,
            kind=table.kind,
            seen_in_training=sample.group in trained,
        )
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
        seconds=seconds,
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
    require_same(cache.spec, run.about.spec, name=cache.name)
    table = hold_out(cache.task(config.task), config.hold_out)
    run.about.require_task(table)
    decoder = run.load_decoder(which)
    min_frames = run.about.plan.shortest_extent(decoder.min_frames)
    chosen = split_samples(cache, table, split, min_frames=min_frames)
    covered = chosen.coverage.describe(split)
    if not chosen.samples or (strict and not chosen.coverage.complete):
        raise Vis4merError(
            f"{config.task} in {cache.name} has {covered}; "
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
        shuffle_frames=config.shuffle_frames,
        carries_memory=config.lanes,
        chosen=chosen,
        on_video=on_video,
    )
