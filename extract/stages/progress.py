"""What a run of extraction says about itself: snapshots while it runs, a summary at its end.

Plain records and the counters behind them; knows neither videos nor how a person is shown them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...store.errors import UsageError
from ...store.failures import FailureRecord
from ...store.workers import Sign
from ..annotations.ends import LabelBeyond
from .feeding import Receipt
from .profile import ExtractProfile, profile_of
from .steps import STAGES, StageName, Step, StepName, Steps


@dataclass(frozen=True, kw_only=True)
class ExtractProgress:
    """A snapshot. num_videos is the whole request; extracted + skipped + failed are done with.

    busy_share: of each stage's threads, the part of the time so far in which they worked instead
    of waiting for another stage, 0–1. reading: ids of the videos being read now.
    """

    num_videos: int
    extracted: int
    skipped: int
    failed: int
    frames: int
    seconds: float
    busy_share: Mapping[StageName, float]
    reading: tuple[str, ...]

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class DamagedVideo:
    """A video that was kept although some of its frames are damaged."""

    id: str
    damaged_frames: int


@dataclass(frozen=True, kw_only=True)
class HeldVideos:
    """Videos that another worker on the same cache was at when the run ended.

    host, pid: of that worker as it says itself; None where it does not. silent_seconds: for how
    long this run has seen no sign of it.
    """

    host: str | None
    pid: int | None
    ids: tuple[str, ...]
    silent_seconds: float


@dataclass(frozen=True, kw_only=True)
class ExtractSummary:
    """What a run did. Every video asked for is counted in exactly one of: extracted,
    already_there, changed, failures, known_failures, held, left.

    extracted: by this run. already_there: before it, or by another worker meanwhile. changed: ids
    whose file is no longer the one in the cache; the cache keeps the old entry until `overwrite`.
    failures: of this run. known_failures: of an earlier run or of another worker, whose file has
    not changed since, not tried again. held: what others were at when this run had nothing else to
    do. busy_seconds: thread-seconds of work a stage, threads: its threads. interrupted: stopped
    before its end. left: not finished, because of `limit`, of a stop, or because another worker let
    go of it just then; those that were not even looked at may be in the cache already.

    Beside these: missing, ids of a known dataset that have no file; beyond, labels that speak of
    more than their videos hold; notes, what a user must know of the request, one line each;
    profile, where the time went, for a run that was told to keep it.
    """

    num_videos: int
    extracted: int
    already_there: int
    changed: tuple[str, ...]
    failures: tuple[FailureRecord, ...]
    known_failures: tuple[FailureRecord, ...]
    damaged: tuple[DamagedVideo, ...]
    left: int
    frames: int
    seconds: float
    busy_seconds: Mapping[StageName, float]
    threads: Mapping[StageName, int]
    interrupted: bool
    held: tuple[HeldVideos, ...] = ()
    missing: tuple[str, ...] = ()
    beyond: tuple[LabelBeyond, ...] = ()
    notes: tuple[str, ...] = ()
    profile: ExtractProfile | None = None

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def busy_share(self) -> dict[StageName, float]:
        return busy_share(self.busy_seconds, self.threads, self.seconds)

    @property
    def bottleneck(self) -> StageName | None:
        """The stage that the others waited for; None when no frame was extracted."""
        shares = self.busy_share
        if not self.frames:
            return None
        return max(STAGES, key=shares.__getitem__)

    @property
    def exit_code(self) -> int:
        """0 when every video asked for is in the cache, in another worker's hands or left out by
        `limit`, 3 when some failed, now or before, and 1 when the run was stopped."""
        if self.interrupted:
            return 1
        return 3 if self.failures or self.known_failures else 0


def require_counts(**counts: int | None) -> None:
    """UsageError for a number of things to do at once that is given and below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name.replace('_', ' ')} is {value}, expected at least 1")


def busy_share(
    busy_seconds: Mapping[StageName, float], threads: Mapping[StageName, int], seconds: float
) -> dict[StageName, float]:
    """Busy thread-seconds as a part of all thread-seconds, 0–1."""
    if seconds <= 0:
        return dict.fromkeys(STAGES, 0.0)
    return {s: min(1.0, busy_seconds[s] / (threads[s] * seconds)) for s in STAGES}


class Tally:
    """Counts what happens in a run; safe from several threads. on_end: told of every video that has
    ended."""

    def __init__(
        self,
        *,
        num_videos: int,
        threads: Mapping[StageName, int],
        steps: Steps | None = None,
        on_end: Callable[[Receipt], None] | None = None,
    ) -> None:
        self.steps = steps or Steps()
        self._on_end = on_end
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._num_videos = num_videos
        self._threads = dict(threads)
        self._reading: dict[int, str] = {}
        self._extracted = self._already_there = self._frames = 0
        self._changed: list[str] = []
        self._failures: list[FailureRecord] = []
        self._known_failures: list[FailureRecord] = []
        self._damaged: list[DamagedVideo] = []
        self._held: dict[str, list[tuple[str, Sign]]] = {}

    def step(self, name: StepName, *videos: str, frames: int = 0) -> Step:
        """What this thread does next; see `Steps`."""
        return self.steps.step(name, *videos, frames=frames)

    @contextlib.contextmanager
    def reading(self, video_id: str) -> Iterator[None]:
        worker = threading.get_ident()
        with self._lock:
            self._reading[worker] = video_id
        try:
            yield
        finally:
            with self._lock:
                del self._reading[worker]

    def add_frames(self, count: int) -> None:
        with self._lock:
            self._frames += count

    def add_extracted(self, video_id: str, *, damaged_frames: int) -> None:
        self.add(Receipt(id=video_id, outcome="extracted", damaged_frames=damaged_frames))

    def add_already_there(self, video_id: str) -> None:
        self.add(Receipt(id=video_id, outcome="already there"))

    def add_changed(self, video_id: str) -> None:
        self.add(Receipt(id=video_id, outcome="changed"))

    def add_failure(self, failure: FailureRecord) -> None:
        self.add(Receipt(id=failure.id, outcome="failed", failure=failure))

    def add_known_failure(self, failure: FailureRecord) -> None:
        self.add(Receipt(id=failure.id, outcome="known failure", failure=failure))

    def add_held(self, video_id: str, sign: Sign) -> None:
        self.add(Receipt(id=video_id, outcome="held", holder=sign))

    def add(self, receipt: Receipt) -> None:
        """A video has ended, in this run or in another that this one is the sum of."""
        with self._lock:
            self._count(receipt)
        if self._on_end is not None:
            self._on_end(receipt)

    def _count(self, receipt: Receipt) -> None:
        if receipt.damaged_frames:
            damaged = DamagedVideo(id=receipt.id, damaged_frames=receipt.damaged_frames)
            self._damaged.append(damaged)
        if receipt.outcome == "extracted":
            self._extracted += 1
        elif receipt.outcome == "already there":
            self._already_there += 1
        elif receipt.outcome == "changed":
            self._changed.append(receipt.id)
        elif receipt.failure is not None:
            known = receipt.outcome == "known failure"
            (self._known_failures if known else self._failures).append(receipt.failure)
        elif receipt.holder is not None:
            held = self._held.setdefault(receipt.holder.token, [])
            held.append((receipt.id, receipt.holder))

    def progress(self) -> ExtractProgress:
        busy = self.steps.busy_seconds()
        with self._lock:
            seconds = time.monotonic() - self._started
            return ExtractProgress(
                num_videos=self._num_videos,
                extracted=self._extracted,
                skipped=self._already_there + len(self._changed) + len(self._known_failures),
                failed=len(self._failures),
                frames=self._frames,
                seconds=seconds,
                busy_share=busy_share(busy, self._threads, seconds),
                reading=tuple(sorted(self._reading.values())),
            )

    def summary(self, *, interrupted: bool, profile: Path | None = None) -> ExtractSummary:
        """What the run did, when it has ended. profile: the file that its steps were written to."""
        with self._lock:
            seconds = time.monotonic() - self._started
            done = (
                self._extracted
                + self._already_there
                + len(self._changed)
                + len(self._failures)
                + len(self._known_failures)
                + sum(map(len, self._held.values()))
            )
            return ExtractSummary(
                num_videos=self._num_videos,
                extracted=self._extracted,
                already_there=self._already_there,
                changed=tuple(sorted(self._changed)),
                failures=tuple(sorted(self._failures, key=lambda failure: failure.id)),
                known_failures=tuple(sorted(self._known_failures, key=lambda failure: failure.id)),
                damaged=tuple(sorted(self._damaged, key=lambda video: video.id)),
                left=self._num_videos - done,
                frames=self._frames,
                seconds=seconds,
                busy_seconds=self.steps.busy_seconds(),
                threads=self._threads,
                interrupted=interrupted,
                held=tuple(map(_held_by_one, self._held.values())),
                profile=self._profile(profile, seconds) if profile is not None else None,
            )

    def _profile(self, path: Path, seconds: float) -> ExtractProfile:
        return profile_of(
            self.steps.times(),
            path=path,
            threads=self._threads,
            frames=self._frames,
            seconds=seconds,
        )


def _held_by_one(held: Sequence[tuple[str, Sign]]) -> HeldVideos:
    """What one worker holds, and what was last seen of it."""
    sign = held[-1][1]
    return HeldVideos(
        host=sign.worker.host if sign.worker else None,
        pid=sign.worker.pid if sign.worker else None,
        ids=tuple(sorted(video_id for video_id, _ in held)),
        silent_seconds=sign.silent_seconds,
    )
