"""How long videos are and how many frames of tokens they will give, mostly without opening them.

Opening a video reads its whole file once, for its packets tell how long it is: for ten thousand
videos that is hours. So what an annotation says is believed, and only some files are opened to
learn how much longer files are than annotated (LVU's annotation leaves the outro out). A video that
no annotation speaks of is opened. Decodes nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from ...store.spec import Sampling
from ...store.tasks import MAX_SECONDS
from ..readers.base import Reader
from ..sampling import moments_of
from ..sources import VideoSource

OPENED_OF_ANNOTATED = 32
"""So many of the videos with an annotated length are opened, or all when there are fewer."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """A video's seconds, and its frames of tokens."""

    seconds: float
    frames: int


class Lengths:
    """Lengths of videos, looked at one after the other.

    durations: id → annotated seconds. num_annotated: how many videos to come have one, so that
    those that are opened are spread over all of them.
    """

    def __init__(
        self,
        sampling: Sampling,
        reader: Reader,
        *,
        durations: Mapping[str, float],
        num_annotated: int,
    ) -> None:
        self._sampling = sampling
        self._reader = reader
        self._durations = durations
        self._open_every = -(-num_annotated // OPENED_OF_ANNOTATED) or 1
        self._num_annotated = 0
        self._added: list[float] = []
        self._measured: dict[str, Length] = {}
        self._believed: dict[str, VideoSource] = {}

    @property
    def num_opened(self) -> int:
        return len(self._measured)

    @property
    def added_seconds(self) -> float | None:
        """By how much the annotated files that were opened are longer than annotated, in the
        median, which a few broken downloads do not move; None when none was opened, or where
        sampling goes by the annotation."""
        return statistics.median(self._added) if self._added else None

    def look(self, video: VideoSource) -> None:
        """Take a video's length. Raises VideoError when its file is opened and cannot be read."""
        stated = self._durations.get(video.id)
        if stated is not None:
            number, self._num_annotated = self._num_annotated, self._num_annotated + 1
            if self._sampling.kind != "fps" or number % self._open_every:
                self._believed[video.id] = video
                return
        length = self._open(video)
        self._measured[video.id] = length
        if stated is not None:
            self._added.append(length.seconds - stated)

    def found(self) -> dict[str, Length]:
        """The lengths of all videos looked at, by id."""
        believed = {
            video.id: self._believe(video.id, video.start_seconds, video.end_seconds)
            for video in self._believed.values()
        }
        return {**self._measured, **{k: v for k, v in believed.items() if v is not None}}

    def of_missing(self, ids: Iterable[str]) -> dict[str, Length]:
        """The lengths of videos without a file, as far as the annotation says."""
        found = {video_id: self._believe(video_id, None, None) for video_id in ids}
        return {video_id: length for video_id, length in found.items() if length is not None}

    def _open(self, video: VideoSource) -> Length:
        moments = moments_of(
            self._sampling, start_seconds=video.start_seconds, end_seconds=video.end_seconds
        )
        with self._reader.open(video.path, moments=moments) as stream:
            info = stream.info
        targets = info.num_targets or moments.over(Fraction(info.duration_seconds)).count
        return Length(
            seconds=info.duration_seconds, frames=max(1, targets // self._sampling.clip_frames)
        )

    def _believe(self, video_id: str, start: float | None, end: float | None) -> Length | None:
        stated = self._durations.get(video_id)
        if stated is None:
            return None
        seconds = min(max(0.0, stated + (self.added_seconds or 0.0)), MAX_SECONDS)
        if self._sampling.kind == "spread" and end is None:
            end = min(stated, MAX_SECONDS)
        if self._sampling.kind == "segments":  # of any part there are equally many
            start = end = None
        moments = moments_of(self._sampling, start_seconds=start, end_seconds=end)
        targets = moments.over(Fraction(seconds) or Fraction(1)).count
        return Length(seconds=seconds, frames=max(1, targets // self._sampling.clip_frames))
