"""Videos that arrive while a run goes, and a receipt for each of what became of it.

For a run that is one of many under one hand, which gives each of them a few videos at a time and
hears at once what is done. Both are small: frames and tokens never pass here. Knows nothing of who
gives and who hears.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ...store.failures import FailureRecord
from ...store.workers import Sign
from ..sources import VideoSource

Outcome = Literal["extracted", "already there", "changed", "failed", "known failure", "held"]


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of one video, as `ExtractSummary` counts it.

    failure: of a video that failed, now or before. holder: of one that another worker had when the
    run ended.
    """

    id: str
    outcome: Outcome
    damaged_frames: int = 0
    failure: FailureRecord | None = None
    holder: Sign | None = None


class Feed:
    """The videos of a run, in the order in which they are put; reading threads wait for the next.

    Several threads may take from it at the same time. It ends when it is closed and empty, or at
    once when the run is torn down.
    """

    def __init__(self) -> None:
        self._videos: deque[VideoSource] = deque()
        self._receipts: list[Receipt] = []
        self._closed = False
        self._ended = False
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[VideoSource]:
        return self

    def __next__(self) -> VideoSource:
        with self._changed:
            self._changed.wait_for(lambda: self._videos or self._closed)
            if not self._videos:
                raise StopIteration
            return self._videos.popleft()

    @property
    def num_waiting(self) -> int:
        """Videos that nobody has taken yet."""
        return len(self._videos)

    @property
    def ended(self) -> bool:
        """Is the run over?"""
        return self._ended

    def put(self, videos: Sequence[VideoSource]) -> None:
        with self._changed:
            self._videos.extend(videos)
            self._changed.notify_all()

    def close(self) -> None:
        """No more videos will be put: what was begun is brought to its end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Close, and forget the videos that nobody has taken."""
        with self._changed:
            self._videos.clear()
        self.close()

    def tell(self, receipt: Receipt) -> None:
        """A video has ended."""
        with self._changed:
            self._receipts.append(receipt)
            self._changed.notify_all()

    def end(self) -> None:
        """The run is over: no more receipts will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def receipts(self, *, wait_seconds: float = 0.0) -> tuple[Receipt, ...]:
        """The receipts since the last call. Waits so long for the first one, or for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._receipts or self._ended, wait_seconds)
            receipts, self._receipts = tuple(self._receipts), []
            return receipts
