"""Frames one by one → `FrameBatch` records of bounded size.

It knows no file and no decoder. Letters: T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .base import MAX_BATCH_BYTES, MAX_BATCH_FRAMES, FrameBatch


@dataclass(frozen=True, kw_only=True)
class ShownFrame:
    """One upright picture, uint8 (H, W, 3), and how many targets in a row it answers."""

    picture: NDArray[np.uint8]
    pts_seconds: float
    num_targets: int


def batch_frames(shown: Iterable[ShownFrame], *, num_targets: int) -> Iterator[FrameBatch]:
    """Copy every picture into the batch it belongs to, once per target it answers.

    A batch ends when it is full (`MAX_BATCH_BYTES`, `MAX_BATCH_FRAMES`), when `num_targets` are
    answered, or when the pictures change size.
    """
    frames: NDArray[np.uint8] | None = None
    pts_seconds: list[float] = []
    index = 0
    for frame in shown:
        for _ in range(frame.num_targets):
            if frames is not None and frames.shape[1:] != frame.picture.shape:
                yield _finish(frames, pts_seconds, index)
                index, frames = index + len(pts_seconds), None
            if frames is None:
                pts_seconds = []
                slots = min(_frames_per_batch(frame.picture.nbytes), num_targets - index)
                frames = np.empty((slots, *frame.picture.shape), dtype=np.uint8)  # T H W 3
            frames[len(pts_seconds)] = frame.picture
            pts_seconds.append(frame.pts_seconds)
            if len(pts_seconds) == len(frames):
                yield _finish(frames, pts_seconds, index)
                index, frames = index + len(pts_seconds), None
    if frames is not None:
        yield _finish(frames, pts_seconds, index)


def _frames_per_batch(bytes_per_frame: int) -> int:
    return max(1, min(MAX_BATCH_FRAMES, MAX_BATCH_BYTES // bytes_per_frame))


def _finish(frames: NDArray[np.uint8], pts_seconds: list[float], index: int) -> FrameBatch:
    filled = len(pts_seconds)
    return FrameBatch(
        frames=frames[:filled], pts_seconds=np.array(pts_seconds, dtype=np.float64), index=index
    )
