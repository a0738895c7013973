"""Windows: stretches of time given to a decoder, as pure index arithmetic on an entry.

Frame k of an entry stands for the time k / fps after its first frame. An extent or a window
[start, end) in seconds holds the frames k with start <= k / fps < end:

    seconds   0     1     2     3     4     5
    frames    0     1     2     3     4     5      fps = 1, num_frames = 6
    [1, 4)          ^-----------------)            -> range(1, 4)
    [1.5, 4)              ^-----------)            -> range(2, 4)
    [3, 9)                      ^-----------) end  -> range(3, 6), cut at the entry's end

Knows neither files nor tensors. Everything is half-open.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from .tasks import TaskRow

_EPSILON_FRAMES = 1e-6  # 0.1 s at 10 fps is frame 1, whatever the float says


@dataclass(frozen=True, kw_only=True)
class Window:
    """[start, stop) in frames of an entry; never empty."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a window needs 0 <= start < stop, got [{self.start}, {self.stop})")

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


def first_frame_at(seconds: float, *, fps: float) -> int:
    """The smallest k with k / fps >= seconds."""
    return max(0, math.ceil(seconds * fps - _EPSILON_FRAMES))


def frames_of_extent(row: TaskRow, *, num_frames: int, fps: float) -> Window | None:
    """The frames a task row speaks of; None when the entry has none of them."""
    start = first_frame_at(row.start_seconds or 0.0, fps=fps)
    stop = num_frames
    if row.end_seconds is not None:
        stop = min(stop, first_frame_at(row.end_seconds, fps=fps))
    return Window(start=start, stop=stop) if start < stop else None


def window_length(window_seconds: float, *, fps: float) -> int:
    """Frames in a window; at least one."""
    return max(1, round(window_seconds * fps))


def evaluation_windows(extent: Window, *, length: int, stride: int) -> list[Window]:
    """Starts 0, stride, 2·stride … while the whole window fits; a shorter extent is one window.

    With a stride of a whole window a tail shorter than a window is left out, as the benchmarks do
    (60 s windows: starts 0 … duration - 60).
    """
    if length < 1 or stride < 1:
        raise ValueError(f"length and stride must be at least 1 frame, got {length}, {stride}")
    last = max(extent.start, extent.stop - length)
    starts = range(extent.start, last + 1, stride)
    return [Window(start=s, stop=min(s + length, extent.stop)) for s in starts]


def random_window(extent: Window, *, length: int, seed: int, epoch: int, draw: str) -> Window:
    """One uniform window; a function of seed, epoch and `draw` (the video's id) alone, so that
    the order of reading, threads and resumption cannot change what is learned from."""
    choices = max(1, extent.num_frames - length + 1)
    text = f"{seed}\0{epoch}\0{draw}".encode()
    value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    start = extent.start + value % choices  # the bias of the modulus is below 1e-15
    return Window(start=start, stop=min(start + length, extent.stop))


def spread_frames(window: Window, *, length: int, frames: int) -> list[int]:
    """The frames of `window` that a view of `frames` per `length` keeps: an even stride.

    A view of 30 frames over a 60-frame window keeps every second one; a window cut short by its
    extent keeps the same stride, and so fewer.
    """
    if not 1 <= frames <= length:
        raise ValueError(f"a window of {length} frames cannot give {frames}")
    offsets = (k * length // frames for k in range(frames))
    return [window.start + offset for offset in offsets if window.start + offset < window.stop]
