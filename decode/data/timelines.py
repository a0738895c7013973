"""All windows of some videos, to be judged: each timeline is read once, and in pieces.

Knows no model and no label.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...store.cache import Cache
from ...store.windows import Window, evaluation_windows, window_length
from .ahead import read_ahead
from .buffers import BufferPool, Memory, pinned
from .clips import Clip, on_device
from .plan import Stretch, WindowPlan
from .preload import Held, Reads
from .stored_clips import HostClip

PIECE_FRAMES = 256  # of a timeline read at once: a shard, 100 MB of 14 × 14 × 1024


def window_key(entry_id: str, window: Window) -> str:
    """Of the random numbers of a window that is judged: the same by whomever, and whenever."""
    return f"{entry_id}\0{window.start}\0{window.stop}"


@dataclass(frozen=True, kw_only=True)
class WindowClip:
    """A window to judge: `stretch` is the index of what it was cut from, `id` the entry's."""

    stretch: int
    id: str
    window: Window
    clip: Clip

    @property
    def key(self) -> str:
        return window_key(self.id, self.window)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Some frames of one timeline; frames that no window needs are never read."""

    stretch: int
    frames: list[int]


def judged_windows(stretch: Stretch, plan: WindowPlan, *, stride_seconds: float) -> list[Window]:
    """Those that evaluation looks at, in order."""
    stride = window_length(stride_seconds, fps=plan.fps)
    return evaluation_windows(stretch.extent, length=plan.length, stride=stride)


class Timelines:
    """All windows of some stretches at a stride, each timeline read once and in pieces.

    A piece is read whole, on threads; a window is given out as soon as its last frame is there, and
    frames before the next window are dropped, so that an hour-long video never lies in memory.

    held: videos in memory, of which nothing is read.
    """

    def __init__(
        self,
        cache: Cache,
        stretches: Sequence[Stretch],
        plan: WindowPlan,
        *,
        stride_seconds: float,
        workers: int,
        device: torch.device,
        piece_frames: int = PIECE_FRAMES,
        held: Held | None = None,
    ) -> None:
        self.bytes_by_stretch = [0] * len(stretches)
        self._reads = Reads(cache, held)
        self._memory: Memory = pinned if device.type == "cuda" else BufferPool()
        self._stretches = stretches
        self._plan = plan
        self._stride_seconds = stride_seconds
        self._workers = workers
        self._device = device
        self._piece_frames = piece_frames

    @property
    def bytes_read(self) -> int:
        return sum(self.bytes_by_stretch)

    def windows(self, stretch: int) -> list[Window]:
        return judged_windows(
            self._stretches[stretch], self._plan, stride_seconds=self._stride_seconds
        )

    def __iter__(self) -> Iterator[WindowClip]:
        pieces = (piece for i in range(len(self._stretches)) for piece in self._pieces(i))
        workers = self._reads.threads(self._stretches, self._plan, workers=self._workers)
        depth = workers + 1
        waiting: deque[Window] = deque()
        held = _Held()
        for piece, host in read_ahead(self._read, pieces, workers=workers, depth=depth):
            self.bytes_by_stretch[piece.stretch] += host.num_bytes
            if not waiting:
                waiting.extend(self.windows(piece.stretch))
                held = _Held()
            clip = on_device(
                host.clip,
                self._plan,
                self._device,
                key=self._stretches[piece.stretch].id,
                frames=piece.frames,
            )
            held = held.extended(piece.frames, clip, keep_from=waiting[0].start)
            while waiting and (frames := self._plan.frames(waiting[0]))[-1] <= held.frames[-1]:
                window = waiting.popleft()
                yield WindowClip(
                    stretch=piece.stretch,
                    id=self._stretches[piece.stretch].id,
                    window=window,
                    clip=held.take(frames),
                )

    def _pieces(self, stretch: int) -> Iterator[_Piece]:
        needed = sorted({f for window in self.windows(stretch) for f in self._plan.frames(window)})
        for first in range(0, len(needed), self._piece_frames):
            yield _Piece(stretch=stretch, frames=needed[first : first + self._piece_frames])

    def _read(self, piece: _Piece) -> tuple[_Piece, HostClip]:
        entry_id = self._stretches[piece.stretch].id
        return piece, self._reads.read(entry_id, self._plan, piece.frames, memory=self._memory)


@dataclass(frozen=True)
class _Held:
    """The part of a timeline that windows to come may still need."""

    frames: tuple[int, ...] = ()
    clip: Clip | None = None

    def extended(self, frames: Sequence[int], clip: Clip, *, keep_from: int) -> _Held:
        dropped = int(np.searchsorted(self.frames, keep_from))
        if self.clip is None or dropped == len(self.frames):
            return _Held(tuple(frames), clip)
        kept = self.clip.select(slice(dropped, None))
        return _Held((*self.frames[dropped:], *frames), kept.join(clip))

    def take(self, frames: Sequence[int]) -> Clip:
        if self.clip is None:
            raise ValueError("nothing is held")
        return self.clip.take(self.frames, frames)
