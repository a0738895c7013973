"""A long and a short clip of the same video, with the same number of frames, from cached tokens.

    frames of the video   0 1 2 3 4 5 6 7 8 9
    long, stride 3          |     |     |         3 frames
    short, stride 1                 | | |         3 frames

Both begin anywhere, by themselves. A video too short for all frames of the long clip gives two
clips of as many frames as its long one has. What is drawn is a function of seed, epoch and the
video alone. Knows no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from ...store.cache import Cache
from ...store.files import canonical_json
from ...store.windows import Window, random_window
from ..data.ahead import read_ahead
from ..data.batch import TokenBatch
from ..data.buffers import memory_for, to_device
from ..data.clips import collate, on_device
from ..data.plan import WindowPlan
from ..data.stored_clips import HostClip, StoredClip, read_clip
from ..rows import Rows, Share


@dataclass(frozen=True, kw_only=True)
class Video:
    """One that clips are cut from; number: its place among them, the same in every epoch."""

    id: str
    num_frames: int
    number: int


@dataclass(frozen=True, kw_only=True)
class ClipPair:
    """Frames of both clips, ascending and equally many."""

    video: Video
    long: list[int]
    short: list[int]


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Row i of both is of the video numbered videos[i] (int64 (B,)).

    part: where the clips are some rows of a larger batch, which; videos are those of all of it.
    """

    long: TokenBatch
    short: TokenBatch
    videos: Tensor
    part: Rows | None = None


def videos_digest(videos: Sequence[Video]) -> str:
    """SHA-256 of their ids and lengths."""
    rows = [[video.id, video.num_frames] for video in videos]
    return hashlib.sha256(canonical_json(rows)).hexdigest()


def clip_frames(num_frames: int, *, stride: int, frames: int) -> int:
    """How many of `frames` a clip of this stride has in a video of so many frames."""
    return min(frames, (num_frames - 1) // stride + 1)


def draw_pair(
    video: Video, *, frames: int, long_stride: int, short_stride: int, seed: int, epoch: int
) -> ClipPair:
    """The pair of one epoch."""
    num_frames = clip_frames(video.num_frames, stride=long_stride, frames=frames)
    extent = Window(start=0, stop=video.num_frames)

    def clip(name: str, stride: int) -> list[int]:
        window = random_window(
            extent,
            length=(num_frames - 1) * stride + 1,
            seed=seed,
            epoch=epoch,
            draw=f"{video.id}\0{name}",
        )
        return list(range(window.start, window.stop, stride))

    return ClipPair(video=video, long=clip("long", long_stride), short=clip("short", short_stride))


class PairLoader:
    """Batches of pairs, or the part `share` of each; `bytes_read` counts from the start."""

    def __init__(
        self,
        cache: Cache,
        videos: Sequence[Video],
        plan: WindowPlan,
        *,
        long_stride: int,
        short_stride: int,
        batch_size: int,
        seed: int,
        workers: int,
        device: torch.device,
        dtype: torch.dtype,
        share: Share = Share(),  # noqa: B008 - frozen
    ) -> None:
        self.bytes_read = 0
        self._cache = cache
        self._videos = videos
        self._plan = plan
        self._strides = {"long_stride": long_stride, "short_stride": short_stride}
        self._batch_size = batch_size
        self._seed = seed
        self._workers = max(workers, cache.backing.readers)
        self._device = device
        self._dtype = dtype
        self._share = share

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._videos) // self._batch_size)

    def pairs(self, epoch: int) -> list[ClipPair]:
        """All of an epoch, in its order."""

        def rank(video: Video) -> bytes:
            text = f"{self._seed}\0{epoch}\0{video.id}".encode("utf-8", "surrogatepass")
            return hashlib.blake2b(text, person=b"pairs").digest()

        return [
            draw_pair(
                video,
                frames=self._plan.shape.frames,
                seed=self._seed,
                epoch=epoch,
                **self._strides,
            )
            for video in sorted(self._videos, key=rank)
        ]

    def epoch(self, epoch: int) -> Iterator[PairBatch]:
        """All batches of an epoch; the last one may be smaller."""
        pairs = self.pairs(epoch)
        steps = [
            pairs[first : first + self._batch_size]
            for first in range(0, len(pairs), self._batch_size)
        ]
        parts = [self._part(drawn) for drawn in steps]
        own = [
            drawn if part is None else drawn[part.taken]
            for drawn, part in zip(steps, parts, strict=True)
        ]
        depth = self._batch_size + self._workers
        reads = read_ahead(self._read, chain(*own), workers=self._workers, depth=depth)
        for drawn, here, part in zip(steps, own, parts, strict=True):
            hosts = [next(reads) for _ in here]
            self.bytes_read += sum(host.num_bytes for host in hosts)
            batch = self._batch(
                here,
                [host.clip for host in hosts],
                epoch=epoch,
                least_frames=0 if part is None else part.frames,
            )
            videos = to_device(torch.tensor([p.video.number for p in drawn]), self._device)
            yield PairBatch(long=batch[0], short=batch[1], videos=videos, part=part)

    def _part(self, pairs: Sequence[ClipPair]) -> Rows | None:
        """What is here of a step; None where all of it is."""
        if self._share.count == 1:
            return None
        frames = max(len(clip) for pair in pairs for clip in (pair.long, pair.short))
        return Rows.of(self._share.of(len(pairs)), total=len(pairs), frames=frames)

    def _read(self, pair: ClipPair) -> HostClip:
        """The frames of either clip, each once."""
        memory = memory_for(self._device)
        return read_clip(self._cache, pair.video.id, self._plan, _union(pair), memory=memory)

    def _batch(
        self,
        pairs: Sequence[ClipPair],
        hosts: Sequence[StoredClip],
        *,
        epoch: int,
        least_frames: int,
    ) -> tuple[TokenBatch, TokenBatch]:
        """The long clips and the short ones."""
        clips = [
            on_device(
                host,
                self._plan,
                self._device,
                key=f"{self._seed}\0{epoch}\0{pair.video.id}",
                frames=_union(pair),
            )
            for pair, host in zip(pairs, hosts, strict=True)
        ]
        both = list(zip(pairs, clips, strict=True))
        long = [clip.take(_union(pair), pair.long) for pair, clip in both]
        short = [clip.take(_union(pair), pair.short) for pair, clip in both]
        return (
            collate(long, self._dtype, least_frames=least_frames),
            collate(short, self._dtype, least_frames=least_frames),
        )


def _union(pair: ClipPair) -> list[int]:
    return sorted({*pair.long, *pair.short})
