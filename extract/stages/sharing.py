"""Filling one cache together with other workers: which videos are this run's.

A video is claimed before it is read. What another worker holds is put aside and looked at once more
when all others are done, for that worker may have failed or died; nobody ever waits. What another
worker has ended while this run went is not done again. Knows nothing of frames.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ...store.cache import Cache
from ...store.catalog import CATALOG, is_catalog_behind, list_keys
from ...store.claims import Claims
from ...store.errors import CacheFormatError, EntryNotFoundError
from ...store.files import StorageError
from ...store.keys import entry_key
from ..planning.plan import Decision, SourceError, decide, largest_first, look_at
from ..sources import VideoSource
from .progress import Tally


@contextlib.contextmanager
def shared_work(
    cache: Cache, *, overwrite: bool, attempts: Mapping[str, str] | None = None, tally: Tally
) -> Iterator[Sharing]:
    """A run's part of the common work; whatever happens, nothing stays claimed afterwards."""
    with Claims(cache.path) as claims:
        yield Sharing(cache, claims, overwrite=overwrite, attempts=attempts, tally=tally)


def leave_catalog(cache: Cache) -> None:
    """For one who has led others' work: bring the catalog up to date when none of them has. It can
    be made at any time, so a cache that must not be written to is no error."""
    with contextlib.suppress(StorageError), Claims(cache.path) as claims:
        if _is_last_to_work(cache, claims):
            cache.write_catalog()


class Sharing:
    """One run's part of the common work. Safe from several threads.

    overwrite: also what was in the cache when the run began is to be extracted again, but nothing
    that another worker has committed since. attempts: with overwrite, which entries these are, by
    id, where several begin at different times; None for those that are there now.
    """

    def __init__(
        self,
        cache: Cache,
        claims: Claims,
        *,
        overwrite: bool,
        attempts: Mapping[str, str] | None = None,
        tally: Tally,
    ) -> None:
        self._cache = cache
        self._claims = claims
        self._overwrite = overwrite
        self._attempts = attempts if overwrite else None
        self._tally = tally
        self._failures = {failure.id: failure for failure in cache.failures()}
        self._deferred: deque[VideoSource] = deque()
        self._met: set[str] = set()  # what has been put aside once
        self._held: dict[str, VideoSource] = {}  # what others had when it was last looked at
        self._lock = threading.Lock()
        with contextlib.suppress(CacheFormatError):  # met again at the video it is about
            cache.ids()  # what is there now, before the others go on

    def order(self, videos: Sequence[VideoSource], *, shuffled: bool = False) -> list[VideoSource]:
        """Largest first. While others are at work, or `shuffled`, in an order of this worker's own
        among files of about the same size, so that few of its steps lead to what another holds."""
        largest = largest_first(videos)
        if not (shuffled or self._claims.others_at_work()):
            return largest
        return sorted(largest, key=lambda video: (-_magnitude(video), self._shuffled(video.id)))

    def help_with(self, videos: Sequence[VideoSource]) -> Iterator[VideoSource]:
        """Of others' shares what is not there when it is asked for, in this worker's own order; at
        the end what was there already when this was called.

        Two listings tell: a look at each video would be, with a thousand workers, a thousand looks
        at each. What has come between them is passed by, for whoever brought it has just read the
        file. What is older may be damaged, or of a file that has changed: each is looked at.
        """
        return self._help_with(videos, self._keys(videos))

    def _help_with(self, videos: Sequence[VideoSource], before: set[str]) -> Iterator[VideoSource]:
        there = self._keys(videos)
        left, old = [], []
        for video in videos:
            key = entry_key(video.id)
            if key in before:
                old.append(video)
            elif key in there:
                self._tally.add_already_there(video.id)
            else:
                left.append(video)
        yield from self.order(left, shuffled=True)
        yield from old

    def _keys(self, videos: Sequence[VideoSource]) -> set[str]:
        """Of all entries that are there, as far as they are not to be made again."""
        return list_keys(self._cache.path) if videos and not self._overwrite else set()

    def take(self, video: VideoSource, decision: Decision) -> Decision:
        """Claim a video that `decision` says to extract; what is to be done with it then.

        SourceError, CacheFormatError as `decide`.
        """
        if self._claims.take(video.id) is not None:
            with self._lock:
                if video.id not in self._met:
                    self._met.add(video.id)
                    self._deferred.append(video)
                self._held[video.id] = video
            return replace(decision, action="held")
        try:
            now = self._look_again(video) or decision
        except (SourceError, CacheFormatError):
            self._claims.release(video.id)
            raise
        if now.action != "extract":
            self._claims.release(video.id)
        return now

    def next_deferred(self) -> VideoSource | None:
        """A video that was another worker's when it was looked at first."""
        with self._lock:
            if not self._deferred:
                return None
            video = self._deferred.popleft()
            del self._held[video.id]
            return video

    def release(self, video: VideoSource) -> None:
        """This run is done with a video: others see what came of it."""
        self._claims.release(video.id)

    def count_held(self) -> None:
        """At the end of the run, tell the tally what became of the videos that others held."""
        for video in self._held.values():
            decision = self._ended(video)
            sign = self._claims.holder(video.id)
            if decision is None and sign is not None and not sign.lapsed:
                self._tally.add_held(video.id, sign)
            elif decision is not None and decision.failure is not None:
                self._tally.add_known_failure(decision.failure)
            elif decision is not None and decision.action == "changed":
                self._tally.add_changed(video.id)
            elif decision is not None:
                self._tally.add_already_there(video.id)

    def is_last_to_work(self) -> bool:
        """Is nobody left who would bring the catalog up to date? A thousand workers that all do
        would read each record a thousand times. While this one does, it holds a claim of its own.
        """
        return _is_last_to_work(self._cache, self._claims)

    def _ended(self, video: VideoSource) -> Decision | None:
        with contextlib.suppress(SourceError, CacheFormatError):
            return self._look_again(video)
        return None

    def _look_again(self, video: VideoSource) -> Decision | None:
        """What another worker has made of a video since this run began; None for nothing."""
        file = look_at(video.path)
        committed = self._cache.look_again(video.id)
        if self._overwrite and (committed or self._is_replaced(video.id)):
            return Decision(action="done", file=file)
        if committed:
            return decide(video, self._cache, known_failures={}, overwrite=False)
        failure = self._cache.failure(video.id)
        if failure is not None and failure != self._failures.get(video.id):
            return Decision(action="known-failure", file=file, failure=failure)
        return None

    def _is_replaced(self, video_id: str) -> bool:
        """Was its entry made by one that began before this run, and with the same task?"""
        if self._attempts is None:
            return False
        with contextlib.suppress(EntryNotFoundError, CacheFormatError):
            return self._cache.record(video_id).attempt != self._attempts.get(video_id)
        return False

    def _shuffled(self, video_id: str) -> bytes:
        return hashlib.sha256(f"{self._claims.token} {video_id}".encode()).digest()


def _is_last_to_work(cache: Cache, claims: Claims) -> bool:
    return (
        not claims.others_at_work() and is_catalog_behind(cache.path) and claims.take_chore(CATALOG)
    )


def _magnitude(video: VideoSource) -> int:
    """The power of two that a file's size has reached; 0 for one that cannot be looked at."""
    try:
        return look_at(video.path).size.bit_length()
    except SourceError:
        return 0
