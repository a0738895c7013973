"""Reading once for several learners: the frames that any of them drew, a block of videos at a time.

    block 0   read ─────────┐ used by learner 1, 2, 3 …
    block 1        read ────┼──────────┐ used …
    block 2                 └ read ────┼─────────

Each video of a block is read once, on threads: the union of the frames of everybody's windows. A
window is a view of it. While one block is used the next is read. What a learner gets is what its
own loader would have read: its batches go on across the borders of blocks, so they depend on its
own config and data alone.

Learners may have token views of their own, as long as `WindowPlan.reads` is the same. The full grid
is read once for all views that are averaged from it, each on the device, out of the same bits as
alone; where a video holds a view's own grid, that is read for its learners and nobody else.

Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from ...store.cache import Cache
from ...store.records import token_cost
from ...store.spec import CacheSpec
from ...store.views import TokenView
from ...store.windows import Window
from .ahead import Stopwatch
from .buffers import fresh, pinned
from .loader import Draw, LabelledBatch, TrainLoader
from .plan import Sample, Source, WindowPlan, source_of
from .preload import Held, Reads
from .stored_clips import HostClip, StoredClip

SHARE_BYTES = 4 * 10**9
"""Host memory for the reads that runs of one pass share."""

_BLOCKS_HELD = 3  # in use, being read, and windows of the one before that wait for a full batch


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Frames of one video, ascending, that some learners need, and who they are.

    plan: of any of them, by which is read what all of them read.
    """

    source: Source
    plan: WindowPlan
    frames: list[int]
    users: list[int]


@dataclass(frozen=True, kw_only=True)
class _Video:
    """Frames of one video on the host."""

    frames: list[int]
    clip: StoredClip


@dataclass(kw_only=True)
class _Waiting:
    """What a learner has drawn and not yet been given."""

    draws: list[Draw] = field(default_factory=list)
    clips: list[StoredClip] = field(default_factory=list)

    def first(self, count: int) -> tuple[list[Draw], list[StoredClip]]:
        """Take the first `count` out."""
        taken = self.draws[:count], self.clips[:count]
        del self.draws[:count], self.clips[:count]
        return taken


class SharedEpoch:
    """One epoch of several learners: all their batches, every video of a block read once.

    held: videos in memory, from which windows are cut without a read. waiting: runs while a read
    is waited for.
    """

    def __init__(
        self,
        cache: Cache,
        loaders: Sequence[TrainLoader],
        *,
        epoch: int,
        workers: int,
        pin: bool,
        held: Held | None = None,
        waiting: Stopwatch | None = None,
    ) -> None:
        self._cache = cache
        self._reads = Reads(cache, held)
        self._waiting = waiting or Stopwatch()
        self._loaders = loaders
        self._workers = max(workers, cache.backing.readers)
        self._memory = pinned if pin else fresh
        by_learner = [loader.draws(epoch) for loader in loaders]
        self._blocks = list(zip(*by_learner, strict=True))  # block → learner → draws

    def __iter__(self) -> Iterator[tuple[int, LabelledBatch]]:
        """(learner, batch), each learner's in its own order. Their loaders count the bytes."""
        waiting = [_Waiting() for _ in self._loaders]
        for drawn, held in self._read_blocks():
            for i, loader in enumerate(self._loaders):
                mine = waiting[i]
                mine.draws += drawn[i]
                mine.clips += [self._window(held, draw, loader.plan) for draw in drawn[i]]
                while len(mine.draws) >= loader.batch_size:
                    yield i, loader.batch(*mine.first(loader.batch_size))
            held.clear()  # what waits for a full batch keeps its own part
        for i, loader in enumerate(self._loaders):
            if waiting[i].draws:
                yield i, loader.batch(*waiting[i].first(loader.batch_size))

    def _read_blocks(self) -> Iterator[tuple[Sequence[list[Draw]], dict[Source, _Video]]]:
        """Blocks in order with what was read of them, the next one always on its way."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="read") as pool:
            coming: list[tuple[_Span, Future[HostClip]]] = []
            try:
                coming = self._begin(pool, self._blocks[0])
                for number, drawn in enumerate(self._blocks):
                    reads = coming
                    after = self._blocks[number + 1 : number + 2]
                    coming = self._begin(pool, *after) if after else []
                    yield drawn, {s.source: self._received(s, read) for s, read in reads}
            finally:
                for _, read in coming:
                    read.cancel()

    def _begin(
        self, pool: ThreadPoolExecutor, drawn: Sequence[list[Draw]]
    ) -> list[tuple[_Span, Future[HostClip]]]:
        return [(span, pool.submit(self._read, span)) for span in self._spans(drawn)]

    def _spans(self, drawn: Sequence[Sequence[Draw]]) -> list[_Span]:
        """What is to be read, in the order in which the first learner to need it does."""
        frames: dict[Source, set[int]] = {}
        users: dict[Source, dict[int, None]] = {}
        for learner, draws in enumerate(drawn):
            plan = self._loaders[learner].plan
            for draw in draws:
                source = source_of(self._cache, draw.sample.id, plan)
                frames.setdefault(source, set()).update(plan.frames(draw.window))
                users.setdefault(source, {})[learner] = None
        return [
            _Span(
                source=source,
                plan=self._loaders[next(iter(users[source]))].plan,
                frames=sorted(needed),
                users=list(users[source]),
            )
            for source, needed in frames.items()
        ]

    def _read(self, span: _Span) -> HostClip:
        return self._reads.read(span.source[0], span.plan, span.frames, memory=self._memory)

    def _received(self, span: _Span, read: Future[HostClip]) -> _Video:
        """What was read, once it is there; its bytes are split between those who use it."""
        with self._waiting.running():
            host = read.result()
        share, rest = divmod(host.num_bytes, len(span.users))
        for place, learner in enumerate(span.users):
            self._loaders[learner].bytes_read += share + (place < rest)
        return _Video(frames=span.frames, clip=host.clip)

    def _window(self, held: dict[Source, _Video], draw: Draw, plan: WindowPlan) -> StoredClip:
        video = held[source_of(self._cache, draw.sample.id, plan)]
        return video.clip.take(video.frames, plan.frames(draw.window))


def blocks_within(num_bytes: int, *, share_bytes: int = SHARE_BYTES) -> int:
    """Into how many blocks an epoch must be dealt whose reads, in one block, hold `num_bytes`."""
    return max(1, -(-num_bytes // share_bytes))


def shared_bytes(
    spec: CacheSpec,
    samples: Iterable[Sequence[Sample]],
    plans: Sequence[WindowPlan],
    *,
    windows_per_video: int,
) -> int:
    """Host memory, in bytes, that the shared reads of an epoch hold if it is dealt into one block.

    samples, plans: by learner; `WindowPlan.reads` is the same for all. Counts as many windows of a
    video as its learners draw, at most all of it.
    """
    plan = plans[0]
    wanted: dict[str, list[Window]] = {}
    for of_one in samples:
        for sample in of_one:
            wanted.setdefault(sample.id, []).append(sample.extent)
    thinning = plan.shape.frames / plan.length
    num_frames = sum(
        min(_covered(extents), len(extents) * windows_per_video * plan.length) * thinning
        for extents in wanted.values()
    )
    return int(num_frames * _held_bytes(spec, {plan.view for plan in plans})) * _BLOCKS_HELD


def _covered(extents: Sequence[Window]) -> int:
    """Frames between the first and the last of some extents of one video."""
    return max(e.stop for e in extents) - min(e.start for e in extents)


def _held_bytes(spec: CacheSpec, views: Set[TokenView]) -> int:
    """Bytes of one frame on the host, as it is stored and read for all of some views.

    Several views may find grids of their own in some videos, beside the one that they share; a
    bound of that counts them all, so that it does not change with what is added to a cache.
    """
    arrays = {array for view in views for array in view.arrays_read(spec, spec.arrays)}
    tokens = sum(spec.tokens_per_frame(array) for array in arrays)
    if len(views) > 1:
        stored = {spec.array_grid(array) for array in arrays}
        own = {view.grid for view in views if view.grid is not None} - stored
        tokens += sum(height * width for height, width in own)
    return tokens * token_cost(spec)
