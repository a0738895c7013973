"""Which videos go to which worker, and what becomes of those whose worker has died.

A ledger without a clock: every video is waiting, in one worker's hand, or has ended. Knows neither
Ray nor files.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Hashable, Sequence

from ..sources import VideoSource
from ..stages.feeding import Receipt

MOST_AT_ONCE = 64  # videos that wait at a worker: some seconds of work, even of the shortest
MAX_DEATHS = 3  # of workers with a video in hand, with the last of whom it was alone


class Dealer:
    """The videos of a run, dealt in their order. limit: how many to attempt at most.

    What has seen all but one of the deaths after which it is given up is dealt alone: the one that
    kills workers must not take those with it that lay beside it.
    """

    def __init__(self, videos: Sequence[VideoSource], *, limit: int | None = None) -> None:
        self._waiting = deque(videos)
        self._in_hand: dict[Hashable, dict[str, VideoSource]] = {}
        self._deaths: Counter[str] = Counter()
        self._attempts_left = limit

    @property
    def num_to_deal(self) -> int:
        """Videos that may be given out now. With a limit, those in hand count as attempts until
        they turn out not to be."""
        if self._attempts_left is None:
            return len(self._waiting)
        return min(len(self._waiting), max(0, self._attempts_left - self.num_in_hand))

    @property
    def num_in_hand(self) -> int:
        return sum(map(len, self._in_hand.values()))

    def hand(self, worker: Hashable) -> tuple[str, ...]:
        """The ids that a worker has been given and has not ended."""
        return tuple(self._in_hand.get(worker, ()))

    def deal(
        self, worker: Hashable, *, num_waiting: int, threads: int, workers: int
    ) -> list[VideoSource]:
        """The next videos for a worker that still has `num_waiting` to begin with, and `threads`
        that begin them; one of `workers`. Fewer towards the end, so that nobody is left with many
        when the others have none; none to one that must first end what it has (`keeps_apart`)."""
        if self.keeps_apart(worker):
            count = 0 if self.hand(worker) else min(1, self.num_to_deal)
            return self._hand_out(worker, [self._waiting.popleft() for _ in range(count)])
        fair = self.num_to_deal // (4 * max(1, workers))
        wanted = max(threads, min(fair, MOST_AT_ONCE)) - num_waiting
        count = max(0, min(wanted, self.num_to_deal))
        videos: list[VideoSource] = []
        while len(videos) < count and not self._is_suspect(self._waiting[0].id):
            videos.append(self._waiting.popleft())
        return self._hand_out(worker, videos)

    def keeps_apart(self, worker: Hashable) -> bool:
        """Is what the worker has, or what comes next, to be in a hand alone? Then nothing is added
        to its hand, and what it has begun must be brought to its end."""
        first = [video.id for video in itertools.islice(self._waiting, 1)]
        return any(map(self._is_suspect, (*self.hand(worker), *first)))

    def end(self, worker: Hashable, receipt: Receipt) -> bool:
        """A worker is done with a video. Was it in its hand?"""
        if self._in_hand.get(worker, {}).pop(receipt.id, None) is None:
            return False
        if self._attempts_left is not None and receipt.outcome in ("extracted", "failed"):
            self._attempts_left -= 1
        return True

    def take_back(self, worker: Hashable) -> list[VideoSource]:
        """What a worker has left undone, to be dealt first."""
        videos = list(self._in_hand.pop(worker, {}).values())
        self._waiting.extendleft(reversed(videos))
        return videos

    def bury(self, worker: Hashable) -> list[VideoSource]:
        """A worker has died: the videos to give up, one at most, which has seen too many die and
        was alone in the hand of the last. The others are dealt again."""
        hand = self.take_back(worker)
        self._deaths.update(video.id for video in hand)
        if len(hand) != 1 or self._deaths[hand[0].id] < MAX_DEATHS:
            return []
        self._waiting.popleft()
        if self._attempts_left is not None:
            self._attempts_left -= 1
        return hand

    def _hand_out(self, worker: Hashable, videos: list[VideoSource]) -> list[VideoSource]:
        self._in_hand.setdefault(worker, {}).update({video.id: video for video in videos})
        return videos

    def _is_suspect(self, video_id: str) -> bool:
        return self._deaths[video_id] >= MAX_DEATHS - 1
