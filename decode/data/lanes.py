"""Whole videos side by side: which window each lane of a batch reads at each step.

    lane 0   A[0:60)  A[60:120)  A[120:150)  D[0:60)   …
    lane 1   B[0:60)  C[0:60)    C[60:120)   C[120:…   …
                      ^ starts: another video, of which nothing is remembered

A decoder whose memory is carried from window to window must meet a video's windows in order. An
epoch deals the videos, in an order of its own, to the lanes: each to the lane that is free first.
Index arithmetic alone, a pure function of its arguments: knows no cache, no tokens and no decoder.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...store.windows import Window
from .plan import Stretch


@dataclass(frozen=True, kw_only=True)
class LaneWindow:
    """One window of one lane. stretch: the index of what it was cut from.

    starts: whether it is that stretch's first.
    """

    stretch: int
    window: Window
    starts: bool


LaneStep = tuple[LaneWindow | None, ...]
"""By lane; None where a lane has come to its end."""


@dataclass(frozen=True, kw_only=True)
class LaneRows:
    """A step as the rows of a batch, from which lanes that have come to their end are left out.

    before: each row's place among the rows of the step before; None in the first step, and where
    these are the same lanes.
    """

    windows: tuple[LaneWindow, ...]
    before: tuple[int, ...] | None

    @property
    def starts(self) -> tuple[bool, ...]:
        """By row, whether a stretch begins there."""
        return tuple(one.starts for one in self.windows)


def consecutive_windows(extent: Window, *, length: int) -> list[Window]:
    """All of an extent in windows of `length` frames, each once; the last may be shorter."""
    if length < 1:
        raise ValueError(f"a window needs at least 1 frame, got {length}")
    starts = range(extent.start, extent.stop, length)
    return [Window(start=s, stop=min(s + length, extent.stop)) for s in starts]


def lane_steps(
    stretches: Sequence[Stretch], *, length: int, lanes: int, seed: int, epoch: int
) -> list[LaneStep]:
    """The steps of an epoch: every window of every stretch exactly once, in order, in one lane.

    length: frames of a window.   lanes: windows of a step; those that end early stay None, so that
    a lane's row never moves. The order of the stretches is a function of seed, epoch and the
    stretches themselves.
    """
    walks: list[list[LaneWindow]] = [[] for _ in range(lanes)]
    for i, lane in _dealt(stretches, length=length, lanes=lanes, seed=seed, epoch=epoch):
        windows = consecutive_windows(stretches[i].extent, length=length)
        walks[lane] += [
            LaneWindow(stretch=i, window=window, starts=k == 0) for k, window in enumerate(windows)
        ]
    num_steps = max(map(len, walks))
    return [
        tuple(walk[step] if step < len(walk) else None for walk in walks)
        for step in range(num_steps)
    ]


def num_lane_steps(
    stretches: Sequence[Stretch], *, length: int, lanes: int, seed: int, epoch: int
) -> int:
    """How many `lane_steps` there are, without making them."""
    num_windows = [0] * lanes
    for i, lane in _dealt(stretches, length=length, lanes=lanes, seed=seed, epoch=epoch):
        num_windows[lane] += _num_windows(stretches[i], length)
    return max(num_windows)


def lane_rows(steps: Sequence[LaneStep]) -> Iterator[LaneRows]:
    """Steps of an epoch, in order, as batches."""
    present: list[int] | None = None
    for step in steps:
        lanes = [lane for lane, one in enumerate(step) if one is not None]
        before = None
        if present is not None and present != lanes:
            before = tuple(map(present.index, lanes))
        present = lanes
        yield LaneRows(windows=tuple(one for one in step if one is not None), before=before)


def _dealt(
    stretches: Sequence[Stretch], *, length: int, lanes: int, seed: int, epoch: int
) -> Iterator[tuple[int, int]]:
    """(stretch, its lane), each lane's stretches in order."""
    if lanes < 1:
        raise ValueError(f"an epoch needs at least 1 lane, got {lanes}")
    free = [(0, lane) for lane in range(lanes)]  # (windows so far, lane): a heap
    for i in _order(stretches, seed=seed, epoch=epoch):
        num_windows, lane = free[0]
        heapq.heapreplace(free, (num_windows + _num_windows(stretches[i], length), lane))
        yield i, lane


def _num_windows(stretch: Stretch, length: int) -> int:
    return -(-stretch.extent.num_frames // length)


def _order(stretches: Sequence[Stretch], *, seed: int, epoch: int) -> list[int]:
    """Sorted by a hash, which no version of a library changes."""

    def rank(i: int) -> bytes:
        extent = stretches[i].extent
        text = f"{seed}\0{epoch}\0{stretches[i].id}\0{extent.start}\0{extent.stop}"
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), person=b"lanes").digest()

    return sorted(range(len(stretches)), key=rank)
