"""The values of one video in two caches, frame by frame: how far they are from one another.

Knows how to measure, not which distance is too much. Letters: t frames, S tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..store.cache import Cache
from ..store.quantise import decoded_dtype
from ..store.spec import CacheSpec

TIMES_TOLERANCE_SECONDS = 2e-6  # times are stored to the microsecond
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ReencodedVideo:
    """One video that was extracted again, compared with what the cache holds.

    num_frames: stored frames. new_frames: of the extraction now. times_equal: whether they are of
    the same moments. equal_frames: whose values are the same to the last bit. worst: the largest
    relative L2 distance of a frame, |new - stored| / |stored| over all its tokens, of the array and
    the frame named; None where the frames are not as many.
    """

    id: str
    num_frames: int
    new_frames: int
    times_equal: bool
    equal_frames: int
    worst: float | None
    worst_array: str | None
    worst_frame: int | None

    def within(self, tolerance: float) -> bool:
        return self.times_equal and self.worst is not None and self.worst <= tolerance


def compare_entries(stored: Cache, new: Cache, entry_id: str) -> ReencodedVideo:
    """The values of one video in two caches of one spec, frame by frame."""
    old, made = stored.record(entry_id), new.record(entry_id)
    times_equal = len(old.pts_seconds) == len(made.pts_seconds) and bool(
        np.allclose(old.pts_seconds, made.pts_seconds, rtol=0, atol=TIMES_TOLERANCE_SECONDS)
    )
    found = ReencodedVideo(
        id=entry_id,
        num_frames=old.num_frames,
        new_frames=made.num_frames,
        times_equal=times_equal,
        equal_frames=0,
        worst=None,
        worst_array=None,
        worst_frame=None,
    )
    arrays = [array for array in old.token_arrays if array in made.arrays]
    if old.num_frames != made.num_frames or not arrays:
        return found
    equal = np.ones(old.num_frames, dtype=bool)  # T
    worst, where = -1.0, (arrays[0], 0)
    for array in arrays:
        for frames in _blocks(stored.spec, array, old.num_frames):
            a = stored.read(entry_id, array, frames).astype(np.float32)  # t S D
            b = new.read(entry_id, array, frames).astype(np.float32)
            equal[frames.start : frames.stop] &= (a == b).all(axis=(1, 2))
            distances = _relative_distance(a, b)  # t
            if distances.max() > worst:
                worst = float(distances.max())
                where = (array, frames.start + int(distances.argmax()))
    return replace(
        found,
        equal_frames=int(equal.sum()),
        worst=worst,
        worst_array=where[0],
        worst_frame=where[1],
    )


def _relative_distance(
    stored: np.ndarray[Any, np.dtype[np.float32]], new: np.ndarray[Any, np.dtype[np.float32]]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """|new - stored| / |stored| of each frame: (t, S, D) twice to (t,). Zeros are far from all, and
    what is no number is as far as can be (and no infinity, which JSON has not)."""
    farthest = float(np.finfo(np.float64).max)
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.sqrt(np.square(stored, dtype=np.float64).sum(axis=(1, 2)))
        distance = np.sqrt(np.square(new - stored, dtype=np.float64).sum(axis=(1, 2)))
        relative = distance / np.maximum(size, np.finfo(np.float64).tiny)
    return np.where(distance == 0, 0.0, np.nan_to_num(relative, nan=farthest, posinf=farthest))


def _blocks(spec: CacheSpec, array: str, num_frames: int) -> Iterator[range]:
    """All frames, as many at a time as fit into memory."""
    item = np.dtype(decoded_dtype(spec.stored_dtype)).itemsize
    frame_bytes = max(item, 4) * math.prod((spec.tokens_per_frame(array), spec.dim))
    step = max(1, _BLOCK_BYTES // frame_bytes)
    return (range(i, min(i + step, num_frames)) for i in range(0, num_frames, step))
