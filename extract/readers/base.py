"""What every reader offers: one open video that yields frames at exact times.

A `Reader` opens a file, a `VideoStream` yields `FrameBatch` records in target order, and a
`VideoError` says in one line why a file cannot be read. Nothing here knows how a file is decoded,
what a frame is used for, or that a cache exists.

Letters: T frames, H height, W width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ...store.errors import Vis4merError
from ..sampling import EvenClock, Moments, OutsideError

MAX_PIXELS = 8192 * 4320
"""The largest frame read unless a caller says otherwise: one 8K frame in RGB takes 106 MB."""

MAX_BATCH_BYTES = 16 * 2**20
"""A batch holds as many frames as fit in this, and at least one."""

MAX_BATCH_FRAMES = 64
"""A batch of very small frames stops here, so that a consumer never waits long for the first."""

MAX_DAMAGED_FRACTION = 0.25
"""A video with more damaged frames than this part of its frames is a failure, not a result."""

ReadMethod = Literal["seek", "sequential"]


class VideoError(Vis4merError, ValueError):
    """A file that cannot be read as video; `reason` is one line that does not name the file."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class FrameBatch:
    """Consecutive targets and the frames shown at their times (see `sampling`).

    frames: uint8 (T, H, W, 3), RGB, upright (the file's rotation is already applied).
    pts_seconds: float64 (T,), when the frame that is shown began, on the file's own clock.
    index: k of the first frame; frame i answers target k + i.
    """

    frames: NDArray[np.uint8]
    pts_seconds: NDArray[np.float64]
    index: int

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(
                f"frames must be uint8 (T, H, W, 3) with T ≥ 1, got {self.frames.dtype} {shape}"
            )
        if self.pts_seconds.dtype != np.float64 or self.pts_seconds.shape != shape[:1]:
            raise ValueError(
                f"pts_seconds must be float64 ({shape[0]},), "
                f"got {self.pts_seconds.dtype} {self.pts_seconds.shape}"
            )
        if not np.isfinite(self.pts_seconds).all():
            raise ValueError(f"pts_seconds must be finite, got {self.pts_seconds}")
        if self.index < 0:
            raise ValueError(f"index counts targets from 0, got {self.index}")

    @property
    def num_frames(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What is known about a video before any of its frames is decoded.

    duration_seconds: from the first frame shown to the end of the last, by the packets' own
        timestamps wherever the reader sees them.
    first_pts_seconds: when the first frame is shown, from which targets are counted.
    num_targets: how many targets an iteration yields; None when only reading can tell.
    width, height: of the coded picture in pixels, before the file's rotation is applied; the
        shape of a batch is what counts, and an unusual file may change it midway.
    codec, container: as FFmpeg names them.
    """

    duration_seconds: float
    first_pts_seconds: float
    num_targets: int | None
    width: int
    height: int
    codec: str
    container: str

    def __post_init__(self) -> None:
        if self.num_targets is not None and self.num_targets < 1:
            raise ValueError(f"a video has at least one target, got {self.num_targets}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a picture has a size, got {self.width}×{self.height}")


class VideoStream(Protocol):
    """One open video. It is a context manager, and it is iterated once.

    Every target k = 0, 1, … comes exactly once and in order. A batch is small (`MAX_BATCH_BYTES`,
    at least one frame), and the stream holds no other batch while its consumer has one. Iterating
    raises VideoError when the file turns out to be damaged beyond `MAX_DAMAGED_FRACTION`.

    damaged_frames: how many damaged frames were met; final when the iteration has ended.
    method: how the frames were found; "seek" may become "sequential" while iterating.
    """

    @property
    def info(self) -> VideoInfo: ...

    @property
    def damaged_frames(self) -> int: ...

    @property
    def method(self) -> ReadMethod: ...

    def __iter__(self) -> Iterator[FrameBatch]: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def close(self) -> None: ...


class OpenVideo(ABC):
    """What streams here have in common: `info`, and that leaving the `with` block closes them."""

    _info: VideoInfo

    @property
    def info(self) -> VideoInfo:
        return self._info

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None: ...


class Reader(Protocol):
    """A way to read video files; its name is part of what made a cache's numbers."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def open(self, path: Path, *, moments: Moments, max_pixels: int = MAX_PIXELS) -> VideoStream:
        """Open one file for reading the frames shown at `moments`.

        Raises VideoError when the file cannot be read, or ends before the first of them.
        """
        ...


def clock_over(
    path: Path, moments: Moments, duration: Fraction, *, rounding: Fraction = Fraction(0)
) -> EvenClock:
    """`Moments.over`, where a part that lies outside is the file's fault: a VideoError."""
    try:
        return moments.over(duration, rounding=rounding)
    except OutsideError as error:
        raise VideoError(path, str(error)) from error
