"""What passes between the stages of a run: parts of videos, and how each video ended.

Everything of one video passes in order: its parts, then exactly one end that counts. Knows neither
how frames are read nor how entries are written.

Letters: T clips of one video, F frames a clip (an image backbone: T frames, F = 1), p prefix
tokens, h × w patch grid, D width.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...store.failures import Stage
from ...store.records import SourceRecord
from ..sources import VideoSource

Floats = NDArray[np.float16] | NDArray[np.float32]


@dataclass(eq=False)
class VideoJob:
    """One video on its way through the stages.

    over: set, by any stage, when it cannot become an entry any more: it failed, or the run stops.
    read: set when its last frame has been passed on.
    """

    video: VideoSource
    source: SourceRecord
    over: threading.Event = field(default_factory=threading.Event)
    read: threading.Event = field(default_factory=threading.Event)

    def fail(self, stage: Stage, reason: str) -> Failed:
        """Set `over`; the item that tells the writing stage why."""
        self.over.set()
        return Failed(self.video, stage, reason, self.source.size, self.source.mtime_ns, job=self)


@dataclass(frozen=True)
class FramePart:
    """Consecutive whole clips of one video: pixels uint8 (T·F, 3, H, W), and when each clip's first
    frame begins: pts_seconds (T,)."""

    job: VideoJob
    pixels: Tensor
    pts_seconds: NDArray[np.float64]


@dataclass(frozen=True)
class TokenPart:
    """Tokens of consecutive frames (clips) of one video: patch (T, h·w, D), prefix (T, p, D)."""

    job: VideoJob
    patch: Floats
    prefix: Floats
    pts_seconds: NDArray[np.float64]


@dataclass(frozen=True)
class Finished:
    """The video's last frame is behind: commit it."""

    job: VideoJob
    duration_seconds: float
    damaged_frames: int


@dataclass(frozen=True)
class Failed:
    """The video cannot become an entry: record why. size, mtime_ns: 0 when not even looked at."""

    video: VideoSource
    stage: Stage
    reason: str
    size: int = 0
    mtime_ns: int = 0
    job: VideoJob | None = None


@dataclass(frozen=True)
class Dropped:
    """The run stops before the video is complete: leave nothing of it."""

    job: VideoJob


End = Finished | Failed | Dropped
