"""Doing many independent pieces of a transfer at once, and counting what has been moved.

One piece that cannot be moved is a failure of its own; a place that fails ends the whole, with what
is done standing. Knows neither entries nor places.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from ..errors import UsageError, Vis4merError, exit_code_of
from ..files import StorageError
from ..remote.place import MissingObjectError, RemoteError, TornObjectError

Piece = TypeVar("Piece")


@dataclass(frozen=True, kw_only=True)
class TransferProgress:
    """How far a transfer is. seconds: since it began."""

    videos: int
    num_videos: int
    done_bytes: int
    num_bytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        return self.done_bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before there is one."""
        rate = self.bytes_per_second
        return (self.num_bytes - self.done_bytes) / rate if rate else None


OnTransfer = Callable[[TransferProgress], None]


@dataclass(frozen=True, kw_only=True)
class TransferFailure:
    """A video or task table that could not be moved, and why. id is None for what is no video."""

    id: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class TransferSummary:
    """What a push or pull did.

    copied: videos. present: those whose values were there already. replaced: copied over other
    values that stood there. lacking: rows of the chosen task without an entry at the source.
    without_arrays: videos that lack some of the arrays asked for, and are copied without them, or
    all, and are not. tasks: tables written. num_bytes: sent or fetched. left: videos not begun
    because of a stop.
    """

    source: str
    target: str
    dry_run: bool
    copied: tuple[str, ...]
    present: int
    replaced: tuple[str, ...]
    lacking: tuple[str, ...]
    without_arrays: tuple[str, ...]
    failures: tuple[TransferFailure, ...]
    tasks: tuple[str, ...]
    num_packs: int
    num_bytes: int
    left: int
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 when all that was asked is there, 3 when some failed, 1 when all did or on a stop."""
        done = bool(self.copied or self.present)
        return exit_code_of(failed=self.failures, done=done, interrupted=self.left > 0)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}


@dataclass
class Tally:
    """Counts that threads add to. found_bytes: of `done_bytes`, what an earlier transfer that was
    cut off had left at the target."""

    num_videos: int
    num_bytes: int
    progress: OnTransfer | None = None
    videos: int = 0
    done_bytes: int = 0
    found_bytes: int = 0
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def moved_bytes(self) -> int:
        return self.done_bytes - self.found_bytes

    def moved(self, num_bytes: int, *, videos: int = 0, found: bool = False) -> None:
        """Bytes that are at their target now, and videos that are whole with them. found: the bytes
        were there."""
        with self._lock:
            self.done_bytes += num_bytes
            self.found_bytes += num_bytes if found else 0
            self.videos += videos
            if self.progress is not None:
                self.progress(self.now())

    def now(self) -> TransferProgress:
        return TransferProgress(
            videos=self.videos,
            num_videos=self.num_videos,
            done_bytes=self.done_bytes,
            num_bytes=self.num_bytes,
            seconds=time.monotonic() - self.began,
        )


def is_failure_of_one(error: BaseException) -> bool:
    """Is this about one video alone, so that the others go on? What the place or the disk refuses
    would be refused for every video."""
    if isinstance(error, (TornObjectError, MissingObjectError)):
        return True
    of_all = (RemoteError, StorageError, UsageError)
    return isinstance(error, Vis4merError) and not isinstance(error, of_all)


def at_once(
    do: Callable[[Piece], None],
    pieces: Iterable[Piece],
    *,
    jobs: int,
    stop: threading.Event | None,
) -> Generator[tuple[Piece, BaseException | None], None, None]:
    """Do every piece, `jobs` at a time, and give each back with what it raised, as they end.

    Pieces are taken as threads become free. After a stop no more are begun. When the caller leaves
    early (by `contextlib.closing`), those in hand are waited for.
    """
    waiting = iter(pieces)
    running: dict[Future[None], Piece] = {}
    with ThreadPoolExecutor(jobs, thread_name_prefix="transfer") as threads:
        while True:
            while len(running) < jobs and not (stop is not None and stop.is_set()):
                try:
                    piece = next(waiting)
                except StopIteration:
                    break
                running[threads.submit(do, piece)] = piece
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.exception()
