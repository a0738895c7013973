"""The points of a sweep against their caches: which train in one pass, and what that will read.

    points ──prepare_job──> jobs ──alike in what a pass shares──> passes
                    └─ those that the caches cannot serve, and why

Reads records, labels and run directories, never tokens, and writes nothing. The blocks of a pass
are chosen for all points that are alike, finished or not, so that a run becomes the same whoever it
trains beside, on however many devices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...store.cache import Cache
from ...store.errors import UsageError, Vis4merError
from ...store.files import canonical_json
from ...store.records import frame_cost
from ...store.tasks import Split
from ...store.windows import evaluation_windows, window_length
from ..config import TrainConfig
from ..data.lanes import consecutive_windows
from ..data.loader import epoch_draws, in_blocks
from ..data.plan import Source, Stretch, source_of
from ..data.sharing import SHARE_BYTES
from ..runs.run import open_run
from ..train import SHARED
from ..training.blocks import pass_blocks
from ..training.holding import held_splits, to_hold
from ..training.job import Job, prepare_job
from .sweep import Point


class DataChangedError(UsageError):
    """A run of the sweep has learned from other videos or labels than the cache has now."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A point that its cache can serve. epochs: done so far; finished: judged too."""

    point: Point
    job: Job
    run: Path
    epochs: int
    finished: bool

    @property
    def config(self) -> TrainConfig:
        """As asked, with the blocks of its pass."""
        return replace(self.point.config, blocks=self.job.config.blocks)

    @property
    def epochs_left(self) -> int:
        return max(0, self.job.config.epochs - self.epochs)


@dataclass(frozen=True, kw_only=True)
class PassPlan:
    """Runs of one cache, none of them finished, that share their reads; with lanes only those of
    the judging."""

    cache: Cache
    runs: tuple[Prepared, ...]

    def bytes_to_read(self) -> int:
        """Token bytes, about: each further epoch as many as the first one."""
        return _bytes_to_read(self.cache, self.runs)


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """runs: those that can be, finished or not, in the order of the points. refused: by point,
    why its cache cannot serve it."""

    runs: tuple[Prepared, ...]
    passes: tuple[PassPlan, ...]
    refused: Mapping[str, Vis4merError]

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": [
                {
                    "run": str(run.run),
                    **run.point.settings,
                    "task": run.job.config.task,
                    "tokens": run.job.config.tokens,
                    "num_tokens": run.job.plan.shape.num_tokens,
                    "epochs_left": run.epochs_left,
                    "finished": run.finished,
                }
                for run in self.runs
            ],
            "passes": [
                {
                    "cache": each.cache.name,
                    "runs": [run.point.name for run in each.runs],
                    "bytes_to_read": each.bytes_to_read(),
                }
                for each in self.passes
            ],
            "refused": {name: str(error) for name, error in self.refused.items()},
        }


def plan_sweep(
    points: Sequence[Point],
    caches: Mapping[str, Cache],
    folder: Path,
    *,
    share_bytes: int = SHARE_BYTES,
) -> SweepPlan:
    """What is to be done in `folder`. Raises what refuses every point, where none can be run, and
    UsageError where the data of a finished run has changed since."""
    found: list[Prepared] = []
    refused: dict[str, Vis4merError] = {}
    for point in points:
        try:
            found.append(_prepared(point, caches[point.cache], folder / point.name))
        except DataChangedError:
            raise
        except Vis4merError as error:
            refused[point.name] = error
    if not found:
        raise next(iter(refused.values()))
    alike: defaultdict[bytes, list[int]] = defaultdict(list)
    for i, run in enumerate(found):
        alike[_shared(run)].append(i)
    passes = []
    for indices in alike.values():
        cache = caches[found[indices[0]].point.cache]
        blocks = pass_blocks(
            cache,
            [found[i].job for i in indices],
            [found[i].run for i in indices],
            share_bytes=share_bytes,
        )
        for i in indices:
            found[i] = replace(found[i], job=found[i].job.with_blocks(blocks))
        if left := tuple(found[i] for i in indices if not found[i].finished):
            passes.append(PassPlan(cache=cache, runs=left))
    return SweepPlan(runs=tuple(found), passes=tuple(passes), refused=refused)


def spread(passes: Sequence[PassPlan], num_devices: int) -> tuple[PassPlan, ...]:
    """As many passes as devices where there are runs enough: the largest are divided in two."""
    parts = list(passes)
    while len(parts) < num_devices:
        largest = max(range(len(parts)), key=lambda i: len(parts[i].runs), default=None)
        if largest is None or len(runs := parts[largest].runs) < 2:
            break
        middle = (len(runs) + 1) // 2
        halves = (runs[:middle], runs[middle:])
        parts[largest : largest + 1] = [replace(parts[largest], runs=half) for half in halves]
    return tuple(parts)


def _prepared(point: Point, cache: Cache, run: Path) -> Prepared:
    job = prepare_job(cache, point.config)
    if not (run / "config.json").exists():
        return Prepared(point=point, job=job, run=run, epochs=0, finished=False)
    begun = open_run(run)
    if begun.about.data_sha256 != job.about.data_sha256:
        raise DataChangedError(
            f"--run {run}: the videos or labels of {point.config.task} changed since it was begun; "
            "choose another --run for the whole sweep"
        )
    finished = begun.results() is not None
    return Prepared(point=point, job=job, run=run, epochs=len(begun.epochs()), finished=finished)


def _shared(run: Prepared) -> bytes:
    config = run.job.config
    reads = run.job.plan.reads(run.job.spec)
    return canonical_json([run.point.cache, reads, *(getattr(config, name) for name in SHARED)])


# Bytes ------------------------------------------------------------------------------------------


def _bytes_to_read(cache: Cache, runs: Sequence[Prepared]) -> int:
    config = runs[0].job.config
    epochs = max(run.epochs_left for run in runs)
    going = [run.job for run in runs if run.epochs_left]
    held = held_splits(config) if going else ()
    preloaded = to_hold(cache, going).items()
    total = _cost(cache, ((source, each.frames.num_frames) for source, each in preloaded))
    each_epoch: tuple[Split, ...] = ("val",)
    if any(run.job.config.test_each_epoch for run in runs):
        each_epoch = ("val", "test")
    if not held:
        total += epochs * _cost(cache, _training_reads(cache, runs))
    for split in each_epoch:
        if split not in held:
            reads = _timeline_reads(cache, runs, split, config.validation_stride_seconds)
            total += epochs * _cost(cache, reads)
    splits: tuple[Split, ...] = ("val", "test")
    for split in splits:
        if split not in held:
            reads = _timeline_reads(cache, runs, split, config.final_stride_seconds)
            total += _cost(cache, reads)
    return total


def _training_reads(cache: Cache, runs: Sequence[Prepared]) -> Iterator[tuple[Source, int]]:
    """What is read, and how many frames of it, in the first epoch: a run by itself reads every
    window, several read the frames of a block's windows once."""
    read: defaultdict[tuple[Source, int], set[int]] = defaultdict(set)
    for run in runs:
        config, plan = run.job.config, run.job.plan
        if config.lanes:
            yield from _whole_videos(cache, run)
            continue
        draws = epoch_draws(
            run.job.splits["train"].samples,
            plan,
            seed=config.seed,
            epoch=0,
            windows_per_video=config.windows_per_video,
        )
        for place, block in enumerate(in_blocks(draws, epoch=0, blocks=config.blocks or 1)):
            for draw in block:
                frames = plan.frames(draw.window)
                source = source_of(cache, draw.sample.id, plan)
                if len(runs) == 1:
                    yield source, len(frames)
                else:
                    read[source, place].update(frames)
    yield from ((source, len(frames)) for (source, _), frames in read.items())


def _whole_videos(cache: Cache, run: Prepared) -> Iterator[tuple[Source, int]]:
    """The same of an epoch in lanes."""
    plan = run.job.plan
    for sample in run.job.splits["train"].samples:
        windows = consecutive_windows(sample.extent, length=plan.length)
        frames = sum(len(plan.frames(window)) for window in windows)
        yield source_of(cache, sample.id, plan), frames


def _timeline_reads(
    cache: Cache, runs: Sequence[Prepared], split: Split, stride_seconds: float
) -> Iterator[tuple[Source, int]]:
    """The same to judge a split: of each view every stretch once, whoever is judged on it."""
    met = {
        (run.job.plan, *_place(sample)): sample
        for run in runs
        for sample in run.job.splits[split].samples
    }
    for (plan, entry_id, _, _), stretch in met.items():
        stride = window_length(stride_seconds, fps=plan.fps)
        windows = evaluation_windows(stretch.extent, length=plan.length, stride=stride)
        frames = {frame for window in windows for frame in plan.frames(window)}
        yield source_of(cache, entry_id, plan), len(frames)


def _place(stretch: Stretch) -> tuple[str, int, int]:
    return stretch.id, stretch.extent.start, stretch.extent.stop


def _cost(cache: Cache, reads: Iterable[tuple[Source, int]]) -> int:
    return sum(
        frames * frame_cost(cache.spec, array) for (_, arrays), frames in reads for array in arrays
    )
