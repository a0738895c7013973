"""Which frame answers which moment: index arithmetic on timestamps, and nothing else.

Every way of sampling is one even clock, first pts + offset + k · step for k = 0, 1, …, count - 1
(`EvenClock`), however the three are come by:

    Every    step 1 / fps until the video ends          |x---x---x---x---x-|
    Spread   so many, over the whole video              |x----x----x----x--|
    Slots    the middles of equal parts of a part       |      ( x | x | x )   |

The frame for a moment is the last one whose pts is not after it. Times are whole ticks of the
stream's time base and fractions of them, never floats, so that a frame that begins exactly at a
target is always its answer.

    ticks   0    400   1000      1900 2000        3000   end
    frames  |-a--|--b---|----c----|-d--|-----e-----|--f---)
    k       0           1              2           3
    frame   a           c              e           f

A variable rate needs no special case: `d` is shown between two targets and is never asked for.
Where the targets are denser than the frames, one frame answers several of them in a row:

    ticks   0              1000             2000   end
    frames  |------a--------|--------b-------|--c--)
    k       0    1     2    3     4    5     6   7
    frame   a    a     a    b     b    b     c   c

Nothing here opens a file or knows what a codec is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ..store.errors import UsageError
from ..store.spec import Sampling

MAX_DENOMINATOR = 1_000_000
"""A rate typed as 0.3333333 or 29.97002997 is taken as the fraction it stands for, and so is a
number of seconds."""


def exact_rate(fps: float) -> Fraction:
    """The rate as a fraction: 0.1 is 1/10 and not the binary number next to it.

    Raises ValueError when `fps` is not a positive, finite number.
    """
    if not math.isfinite(fps) or fps <= 0:
        raise ValueError(f"fps must be a positive number of frames a second, got {fps}")
    rate = Fraction(fps).limit_denominator(MAX_DENOMINATOR)
    return rate if rate > 0 else Fraction(fps)


@dataclass(frozen=True, kw_only=True)
class EvenClock:
    """`count` moments, `offset` + k · `step` seconds after the first frame."""

    offset: Fraction
    step: Fraction
    count: int

    def seconds(self) -> NDArray[np.float64]:
        """The moments, in seconds after the first frame: float64 (count,)."""
        k = np.arange(self.count, dtype=np.float64)
        return float(self.offset) + k * float(self.step.numerator) / float(self.step.denominator)


class OutsideError(ValueError):
    """The video ends before the part that is asked for begins."""


@dataclass(frozen=True, kw_only=True)
class Every:
    """One moment every 1 / fps seconds, from the first frame until the video ends."""

    fps: float

    def __post_init__(self) -> None:
        exact_rate(self.fps)

    def over(self, duration: Fraction, *, rounding: Fraction = Fraction(0)) -> EvenClock:
        """The moments of a video that lasts `duration` seconds.

        rounding: how much too long that may be; a target within it of the end is not one.
        """
        rate = exact_rate(self.fps)
        count = max(1, math.ceil((duration - rounding) * rate))
        return EvenClock(offset=Fraction(0), step=1 / rate, count=count)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """floor(seconds · fps) moments, one at least, evenly over the whole video.

    seconds: what the video is said to last, which need not be what it does; None: what it does.
    """

    fps: float
    seconds: float | None = None

    def __post_init__(self) -> None:
        exact_rate(self.fps)
        if self.seconds is not None:
            _exact_seconds(self.seconds)

    def over(self, duration: Fraction, *, rounding: Fraction = Fraction(0)) -> EvenClock:
        """As for `Every`; a duration too short by `rounding` still counts in full."""
        stated = duration + rounding if self.seconds is None else _exact_seconds(self.seconds)
        count = max(1, math.floor(stated * exact_rate(self.fps)))
        return EvenClock(offset=Fraction(0), step=duration / count, count=count)


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The middles of `count` equal parts of [start_seconds, end_seconds), cut at the video's end.

    The seconds count from the first frame; None is the video's own beginning or end.
    """

    count: int
    start_seconds: float | None = None
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        start = _exact_seconds(self.start_seconds or 0.0)
        if self.count < 1:
            raise ValueError(f"a video is cut into at least 1 part, got {self.count}")
        if self.end_seconds is not None and _exact_seconds(self.end_seconds) <= start:
            raise ValueError(f"a part from {start} to {self.end_seconds} seconds is empty")

    def over(self, duration: Fraction, *, rounding: Fraction = Fraction(0)) -> EvenClock:
        """As for `Every`. Raises OutsideError when the part begins where the video has ended."""
        start = _exact_seconds(self.start_seconds or 0.0)
        stop = duration
        if self.end_seconds is not None:
            stop = min(stop, _exact_seconds(self.end_seconds))
        if start >= stop - rounding:
            raise OutsideError(
                f"the part asked for begins at {float(start):g} seconds, and the video has ended "
                f"at {float(duration):g}; correct start_seconds, or get the whole video"
            )
        step = (stop - start) / self.count
        return EvenClock(offset=start + step / 2, step=step, count=self.count)


Moments = Every | Spread | Slots


def moments_of(
    sampling: Sampling, *, start_seconds: float | None = None, end_seconds: float | None = None
) -> Moments:
    """What a cache's sampling asks of a video, of which the part [start, end) is spoken of.

    Sampling by fps takes the whole file, whatever the part; that is cut out on reading the cache.
    UsageError where the sampling cannot speak of such a part.
    """
    if sampling.kind == "fps":
        return Every(fps=sampling.fps)
    if sampling.kind == "spread":
        if start_seconds:
            raise UsageError(
                f"frames spread over the whole file know no start at {start_seconds:g} seconds; "
                "use --protocol clean for videos that are cropped"
            )
        return Spread(fps=sampling.fps, seconds=end_seconds)
    return Slots(
        count=(sampling.segments or 1) * sampling.clip_frames,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
    )


def _exact_seconds(seconds: float) -> Fraction:
    """Seconds from the first frame as a fraction: 0.1 is 1/10."""
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"a time in a video is a number of seconds from 0, got {seconds}")
    return Fraction(seconds).limit_denominator(MAX_DENOMINATOR)


@dataclass(frozen=True, kw_only=True)
class TargetClock:
    """The moments that are asked for, on the clock of one stream.

    first: target 0, in ticks; ticks_per_target: the exact distance of two targets.
    """

    first: Fraction
    ticks_per_target: Fraction

    @classmethod
    def of(cls, clock: EvenClock, *, first: int, time_base: Fraction) -> TargetClock:
        """The targets of a stream whose ticks last `time_base` seconds and whose first frame is
        shown at tick `first`."""
        return cls(first=first + clock.offset / time_base, ticks_per_target=clock.step / time_base)

    def tick(self, k: int) -> int:
        """The last whole tick not after target k: a frame is due at k when its pts ≤ this."""
        return math.floor(self.first + k * self.ticks_per_target)

    def num_before(self, pts: int) -> int:
        """How many targets lie before `pts`, i.e. k in [0, n) with target k < pts."""
        return max(0, math.ceil((pts - self.first) / self.ticks_per_target))


def end_of_last(pts: Sequence[int] | NDArray[np.int64], *, last_duration: int | None) -> int:
    """When the last frame stops being shown, in ticks.

    `pts` is in ascending order. A last packet that states no duration is taken to last as long as
    the one before it, and a lone frame one tick.
    """
    last = int(pts[-1])
    if last_duration is not None and last_duration > 0:
        return last + last_duration
    return last + (last - int(pts[-2]) if len(pts) > 1 and last > int(pts[-2]) else 1)


def frames_for_targets(
    pts: NDArray[np.int64], *, clock: TargetClock, num_targets: int
) -> NDArray[np.int64]:
    """For every target the index into `pts` (ascending) of the frame shown then: int64 (targets,).

    A target before the first frame gets the first frame.
    """
    ticks = np.array([clock.tick(k) for k in range(num_targets)], dtype=np.int64)
    return np.maximum(np.searchsorted(pts, ticks, side="right") - 1, 0)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A run of packets, [start, stop) in decode order, that is decoded to get some frames of it.

    wanted: positions of the packets whose frames are asked for, in the order they are shown.
    """

    start: int
    stop: int
    wanted: tuple[int, ...]


def is_reachable(pts: NDArray[np.int64], is_keyframe: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which packets (decode order) follow a keyframe that is shown no later: bool (packets,).

    The others cannot be decoded from this file: what they refer to lies before its first keyframe.
    """
    keyframe_pts = np.where(is_keyframe, pts, np.iinfo(np.int64).max)
    return np.asarray(np.minimum.accumulate(keyframe_pts) <= pts)


def seek_point(position: int, pts: NDArray[np.int64], keyframes: NDArray[np.int64]) -> int:
    """The keyframe from which the packet at `position` decodes, or −1.

    It is the last keyframe, in decode order, that is neither decoded nor shown after the packet.
    With open groups of pictures that is not always the one just before it:

        decoded    I0  P4  B2 | I8  B6 | P12 B10      (the number is the time it is shown)
        position    0   1   2    3   4     5   6

    B6 is decoded after I8 but shown before it: it refers to P4 as well, so its seek point is I0.
    B10 is shown after I8 and decodes from there.
    """
    for candidate in reversed(keyframes[: np.searchsorted(keyframes, position, side="right")]):
        if pts[candidate] <= pts[position]:
            return int(candidate)
    return -1


def plan_segments(
    wanted: Sequence[int], *, pts: NDArray[np.int64], is_keyframe: NDArray[np.bool_]
) -> list[Segment]:
    """The shortest runs of packets from which all `wanted` packets can be shown.

    `wanted` holds packet positions (decode order) in the order they are shown, all reachable.
    Runs that overlap or touch become one, so that no packet is decoded twice and none is sought
    that comes next anyway.
    """
    keyframes = np.flatnonzero(is_keyframe)
    segments: list[Segment] = []
    for position in wanted:
        start, stop = seek_point(position, pts, keyframes), position + 1
        mine: tuple[int, ...] = (position,)
        if segments and start <= segments[-1].stop:
            last = segments.pop()
            start, stop = min(start, last.start), max(stop, last.stop)
            mine = (*last.wanted, position)
        segments.append(Segment(start=start, stop=stop, wanted=mine))
    return segments
