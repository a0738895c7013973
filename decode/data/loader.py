"""Which windows are read in which order to learn from: random ones, or those of whole videos.

What is read is a pure function of the task table, the seed and the epoch, never of the timing of
threads. Knows no model and no loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ...store.cache import Cache
from ...store.tasks import TaskKind
from ...store.windows import Window, random_window
from ..rows import Rows, Share
from .ahead import ReadAhead, Stopwatch
from .batch import TokenBatch
from .buffers import BufferPool, Memory, pinned, to_device
from .clips import collate, on_device
from .handover import Handover
from .lanes import LaneRows, LaneStep, lane_rows, lane_steps, num_lane_steps
from .plan import Sample, WindowPlan
from .preload import Held, Reads
from .stored_clips import HostClip, StoredClip


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One training window. key: of its random numbers, a function of seed, epoch and sample."""

    sample: Sample
    window: Window
    key: str


@dataclass(frozen=True, kw_only=True)
class Carried:
    """How the rows of a batch go on from those of the batch before.

    rows: int64 (B,), each row's place in the batch before; None where all stay in their places.
    starts: bool (B,), True where another video begins, of which nothing is remembered; None where
    none does.
    """

    rows: Tensor | None
    starts: Tensor | None


@dataclass(frozen=True, kw_only=True)
class LabelledBatch:
    """tokens with labels (B,): int64 classes, or float32 values.

    carried: None where no row goes on from a batch before, as always without lanes.
    part: which rows of a larger batch these are; None where they are all.
    """

    tokens: TokenBatch
    labels: Tensor
    carried: Carried | None = None
    part: Rows | None = None


def epoch_draws(
    samples: Sequence[Sample], plan: WindowPlan, *, seed: int, epoch: int, windows_per_video: int
) -> list[Draw]:
    """The windows of an epoch in their order: a function of seed, epoch and the samples alone.

    Sorting by a hash, rather than by a generator's stream, keeps the order the same across versions
    of NumPy and torch.
    """
    draws = []
    for sample in samples:
        for k in range(windows_per_video):
            name = f"{sample.id}\0{sample.extent.start}\0{k}"
            window = random_window(
                sample.extent, length=plan.length, seed=seed, epoch=epoch, draw=name
            )
            key = f"{seed}\0{epoch}\0{name}"
            rank = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), person=b"order").digest()
            draws.append((rank, Draw(sample=sample, window=window, key=key)))
    return [draw for _, draw in sorted(draws, key=lambda pair: pair[0])]


def in_blocks(draws: Sequence[Draw], *, epoch: int, blocks: int) -> list[list[Draw]]:
    """The draws of an epoch dealt into blocks, in each of which their order stays.

    A video's block is a function of the epoch and its id alone, never of seed, task or who else
    learns: learners that go through the blocks side by side meet the same videos.
    """
    dealt: list[list[Draw]] = [[] for _ in range(blocks)]
    for draw in draws:
        dealt[_block_of(draw.sample.id, epoch=epoch, blocks=blocks)].append(draw)
    return dealt


def _block_of(entry_id: str, *, epoch: int, blocks: int) -> int:
    text = f"{epoch}\0{entry_id}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(text, digest_size=8, person=b"block").digest()
    return int.from_bytes(digest, "little") % blocks


@dataclass(frozen=True, kw_only=True)
class _Step:
    """What a batch is made of. rows: of the lanes, where there are lanes. part: where others have
    the rest of the batch."""

    draws: Sequence[Draw]
    rows: LaneRows | None = None
    part: Rows | None = None


class _Epoch:
    """The steps of an epoch, made when they are first asked for."""

    def __init__(self, number: int, make: Callable[[], list[_Step]]) -> None:
        self.number = number
        self._make = make

    @cached_property
    def steps(self) -> list[_Step]:
        return self._make()

    def draws(self) -> Iterator[Draw]:
        for step in self.steps:
            yield from step.draws


class TrainLoader:
    """Batches of windows for one learner. `bytes_read` counts from the start.

    Random windows, or with `lanes` every window of every video once: `batch_size` lanes walk whole
    videos in order, and one that has come to its end is missing from the batches that follow.

    `epoch` reads them itself, ahead on threads; `draws` and `batch` serve whoever reads random
    windows for several learners. Both ways give the same batches.

    share: of every batch, where several processes learn from it together: `epoch` reads the rows
    of this part alone, of lanes the same ones throughout.

    Windows are read into buffers that are used again and again: there are never more of them than
    windows on their way, `depth`, and those stay for as long as the loader does.
    """

    def __init__(
        self,
        cache: Cache,
        samples: Sequence[Sample],
        plan: WindowPlan,
        *,
        kind: TaskKind,
        batch_size: int,
        windows_per_video: int,
        seed: int,
        workers: int,
        device: torch.device,
        dtype: torch.dtype,
        blocks: int = 1,
        shuffle_frames: bool = False,
        lanes: bool = False,
        share: Share = Share(),  # noqa: B008 - frozen
    ) -> None:
        self.bytes_read = 0
        self.batch_size = batch_size
        self.depth = batch_size + max(workers, cache.backing.readers)
        self.memory: Memory = pinned if device.type == "cuda" else BufferPool()
        self._reads = Reads(cache)
        self._samples = samples
        self._plan = plan
        self._label_dtype = torch.int64 if kind == "classification" else torch.float32
        self._windows_per_video = windows_per_video
        self._seed = seed
        self._workers = max(workers, cache.backing.readers)
        self._device = device
        self._dtype = dtype
        self._blocks = blocks
        self._shuffle_frames = shuffle_frames
        self._lanes = lanes
        self._share = share
        self._handover = Handover(device)
        self._ahead: ReadAhead[Draw, HostClip] | None = None
        self._coming: _Epoch | None = None  # the reads of its first windows may have begun

    def hold(self, held: Held) -> None:
        """Cut windows from what is in memory, from the next epoch on."""
        self.close()
        self._reads = Reads(self._reads.cache, held)

    @property
    def plan(self) -> WindowPlan:
        """Of its windows."""
        return self._plan

    def num_steps(self, epoch: int) -> int:
        """Batches of an epoch; with lanes it depends on which of them the long videos meet."""
        if self._lanes:
            return num_lane_steps(
                self._samples,
                length=self._plan.length,
                lanes=self.batch_size,
                seed=self._seed,
                epoch=epoch,
            )
        return -(-len(self._samples) * self._windows_per_video // self.batch_size)

    def draws(self, epoch: int) -> list[list[Draw]]:
        """The windows of an epoch in their order, by block."""
        draws = epoch_draws(
            self._samples,
            self._plan,
            seed=self._seed,
            epoch=epoch,
            windows_per_video=self._windows_per_video,
        )
        return in_blocks(draws, epoch=epoch, blocks=self._blocks)

    def epoch(
        self, epoch: int, *, then: int | None = None, waiting: Stopwatch | None = None
    ) -> Iterator[LabelledBatch]:
        """All batches of an epoch, across the borders of blocks; the last ones may be smaller.

        then: the epoch after it, whose first windows are read as soon as there is room: while the
        last batches are computed, and whatever follows. `close` drops them where it does not come.
        waiting: runs while a batch waits for what is read.
        """
        steps, reads = self._begin(epoch)
        watch, going_on = waiting or Stopwatch(), False
        try:
            if then is not None:
                self._coming = self._epoch(then)
                reads.add(self._coming.draws())
            for step in steps:
                batch = self._handover.made(partial(self._read_batch, step, reads, watch))
                reads.fill()
                yield batch
            going_on = then is not None
        finally:
            if not going_on:
                self.close()

    def close(self) -> None:
        """End what is read ahead of an epoch to come."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = self._coming = None

    def batch(
        self,
        draws: Sequence[Draw],
        clips: Sequence[StoredClip],
        *,
        rows: LaneRows | None = None,
        part: Rows | None = None,
    ) -> LabelledBatch:
        """The batch of some draws and their frames, as they lie on the host, on the device."""
        labels = torch.tensor([draw.sample.label for draw in draws], dtype=self._label_dtype)
        moved = [
            on_device(
                clip,
                self._plan,
                self._device,
                key=draw.key,
                frames=self._plan.frames(draw.window),
            )
            for draw, clip in zip(draws, clips, strict=True)
        ]
        tokens = collate(
            moved,
            self._dtype,
            padded_frames=self._plan.padded_frames,
            least_frames=0 if part is None else part.frames,
            shuffled_by=[draw.key for draw in draws] if self._shuffle_frames else None,
        )
        return LabelledBatch(
            tokens=tokens,
            labels=to_device(labels, self._device),
            carried=None if rows is None else _carried(rows, self._device),
            part=part,
        )

    def _begin(self, epoch: int) -> tuple[list[_Step], ReadAhead[Draw, HostClip]]:
        """The steps of an epoch and their reads, of which the first may have begun."""
        begun, reads = self._coming, self._ahead
        if begun is None or begun.number != epoch or reads is None:
            self.close()
            begun = self._epoch(epoch)
            threads = self._reads.threads(self._samples, self._plan, workers=self._workers)
            reads = self._ahead = ReadAhead(self._read, workers=threads, depth=self.depth)
            reads.add(begun.draws())
        return begun.steps, reads

    def _epoch(self, number: int) -> _Epoch:
        make = self._lane_steps if self._lanes else self._random_steps
        return _Epoch(number, partial(make, number))

    def _read_batch(
        self, step: _Step, reads: ReadAhead[Draw, HostClip], waiting: Stopwatch
    ) -> LabelledBatch:
        """The batch of a step; its buffers are free again once it is made."""
        with waiting.running():
            hosts = reads.take(len(step.draws))
        self.bytes_read += sum(host.num_bytes for host in hosts)
        return self.batch(step.draws, [h.clip for h in hosts], rows=step.rows, part=step.part)

    def _random_steps(self, epoch: int) -> list[_Step]:
        draws = [draw for block in self.draws(epoch) for draw in block]
        firsts = range(0, len(draws), self.batch_size)
        return [self._step(draws[first : first + self.batch_size]) for first in firsts]

    def _step(self, draws: Sequence[Draw]) -> _Step:
        """What is here of a step of `draws`."""
        if self._share.count == 1:
            return _Step(draws=draws)
        part = self._part(draws, self._share.of(len(draws)))
        return _Step(draws=draws[part.taken], part=part)

    def _part(self, draws: Sequence[Draw], own: range) -> Rows:
        """Of a batch of `draws`, the rows `own`."""
        frames = max(len(self._plan.frames(draw.window)) for draw in draws)
        return Rows.of(own, total=len(draws), frames=frames)

    def _lane_steps(self, epoch: int) -> list[_Step]:
        steps = lane_steps(
            self._samples,
            length=self._plan.length,
            lanes=self.batch_size,
            seed=self._seed,
            epoch=epoch,
        )
        if self._share.count > 1:
            return list(self._lane_parts(steps, epoch))
        return [_Step(draws=self._lane_draws(rows, epoch), rows=rows) for rows in lane_rows(steps)]

    def _lane_parts(self, steps: Sequence[LaneStep], epoch: int) -> Iterator[_Step]:
        """What is here of steps: of all of them the same lanes, so that a memory stays here."""
        own = self._share.of(self.batch_size)
        of_own = lane_rows([step[own.start : own.stop] for step in steps])
        for step, everyone, rows in zip(steps, lane_rows(steps), of_own, strict=True):
            draws = self._lane_draws(everyone, epoch)
            first = sum(one is not None for one in step[: own.start])
            part = self._part(draws, range(first, first + len(rows.windows)))
            if not rows.windows:  # the lanes have come to their end, and nothing goes on
                rows = LaneRows(windows=(replace(everyone.windows[0], starts=True),), before=None)
            yield _Step(draws=draws[part.taken], rows=rows, part=part)

    def _lane_draws(self, rows: LaneRows, epoch: int) -> list[Draw]:
        draws = []
        for one in rows.windows:
            sample = self._samples[one.stretch]
            name = f"{sample.id}\0{sample.extent.start}\0{one.window.start}"
            key = f"{self._seed}\0{epoch}\0{name}"
            draws.append(Draw(sample=sample, window=one.window, key=key))
        return draws

    def _read(self, draw: Draw) -> HostClip:
        frames = self._plan.frames(draw.window)
        return self._reads.read(draw.sample.id, self._plan, frames, memory=self.memory)


def _carried(rows: LaneRows, device: torch.device) -> Carried | None:
    if all(rows.starts):
        return None
    return Carried(
        rows=None if rows.before is None else to_device(torch.tensor(rows.before), device),
        starts=to_device(torch.tensor(rows.starts), device) if any(rows.starts) else None,
    )
