"""One worker of a cluster: it holds the backbone, is given videos, and gives receipts.

    begin      load the backbone, open the cache      → Begun
    exchange   more videos in, what became of others  → Report, some times a second

The pipeline runs beside these calls in threads of its own, from the files to the cache: its reading
threads are the CPU's part, in the same process as the backbone. Knows nothing of Ray, nor of other
workers; it is an ordinary class, of which somebody makes an actor.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...store.errors import UsageError, Vis4merError
from ...store.files import look_anew
from ...store.wording import describe_error
from ...store.workers import Worker
from ..request import ExtractRequest, Workplace, open_workplace
from ..sources import VideoSource
from ..stages.feeding import Feed, Receipt
from ..stages.progress import ExtractProgress
from ..stages.steps import STAGES, StageName

WAIT_SECONDS = 0.5  # for a receipt, before a report says that there is none
_NO_TOKEN = "0" * 16


@dataclass(frozen=True, kw_only=True)
class Post:
    """What a worker is to do, with paths that are the same on every machine.

    asked: with the device of this worker; what it says of videos does not count. mark: a file
    beside the cache, and folders: of the videos, which it must see. cores: CPU cores that are its
    own.
    """

    asked: ExtractRequest
    mark: Path
    folders: tuple[Path, ...]
    cores: int = 1


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """An error that a worker met, as it passes between machines."""

    message: str
    is_usage: bool = False

    def error(self) -> Vis4merError:
        return UsageError(self.message) if self.is_usage else Vis4merError(self.message)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What a worker says of itself when it has begun. trouble: why it cannot work."""

    process: Worker
    threads: Mapping[StageName, int]
    notes: tuple[str, ...] = ()
    trouble: Trouble | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of videos since the last report, and how far the worker is since it began.

    num_waiting: videos that it was given and has not looked at. idle: it has nothing more to do.
    trouble: what ended its work.
    """

    receipts: tuple[Receipt, ...]
    num_waiting: int
    idle: bool
    frames: int
    seconds: float
    busy_seconds: Mapping[StageName, float]
    reading: tuple[str, ...]
    trouble: Trouble | None = None


class Actor:
    """A worker. Its methods are called one at a time."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._stop = threading.Event()
        self._place: Workplace | None = None
        self._fill: _Fill | None = None
        self._past: list[_Fill] = []

    def begin(self) -> Begun:
        """Load the backbone and open the cache; what kept it from that is told, not raised."""
        process = Worker.here(_NO_TOKEN)
        try:
            _require_sight(self._post)
            self._place = open_workplace(self._post.asked)
        except Exception as error:
            return Begun(process=process, threads=self._threads, trouble=_trouble(error))
        return Begun(process=process, threads=self._threads, notes=self._place.notes)

    def exchange(
        self,
        videos: Sequence[VideoSource] = (),
        *,
        close: bool = False,
        stop: bool = False,
        wait_seconds: float = WAIT_SECONDS,
    ) -> Report:
        """Take more videos, and report as soon as one has ended.

        close: bring all that was begun to its end, as a batch of frames otherwise waits to be full.
        Afterwards it may be given videos again. stop: finish what is completely read, and begin
        nothing more.
        """
        if self._fill is None and videos and self._place is not None:
            self._fill = _Fill(self._post, self._place, self._threads, self._stop)
        if self._fill is None:
            return self._report(())
        if stop:
            self._stop.set()
            self._fill.feed.abort()
        self._fill.feed.put(videos)
        if close:
            self._fill.feed.close()
        receipts = self._fill.feed.receipts(wait_seconds=wait_seconds)
        if self._fill.has_ended:
            receipts += self._fill.feed.receipts()
            self._past.append(self._fill)
            self._fill = None
        return self._report(receipts)

    @property
    def _threads(self) -> dict[StageName, int]:
        on_cpu = self._place is None or self._place.backbone.device.type == "cpu"
        return {
            "reading": self._post.asked.workers or self._post.cores,
            "backbone": self._post.cores if on_cpu else 2,
            "writing": 1,
        }

    def _report(self, receipts: tuple[Receipt, ...]) -> Report:
        fill = self._fill
        fills = [*self._past, *([] if fill is None else [fill])]
        return Report(
            receipts=receipts,
            num_waiting=0 if fill is None else fill.feed.num_waiting,
            idle=fill is None,
            frames=sum(each.frames for each in fills),
            seconds=sum(each.seconds for each in fills),
            busy_seconds={s: sum(each.busy_seconds(s) for each in fills) for s in STAGES},
            reading=() if fill is None else fill.reading,
            trouble=next((each.trouble for each in fills if each.trouble is not None), None),
        )


class _Fill:
    """One run of the pipeline, in a thread, from its first video until its feed is closed."""

    def __init__(
        self,
        post: Post,
        place: Workplace,
        threads: Mapping[StageName, int],
        stop: threading.Event,
    ) -> None:
        self.feed = Feed()
        self.trouble: Trouble | None = None
        self._post = post
        self._place = place
        self._threads = threads
        self._stop = stop
        self._progress: ExtractProgress | None = None
        self._thread = threading.Thread(target=self._run, name="fill", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Is everything told that there will be to tell?"""
        if self.feed.ended:
            self._thread.join()
        return self.feed.ended

    @property
    def frames(self) -> int:
        return self._progress.frames if self._progress else 0

    @property
    def seconds(self) -> float:
        return self._progress.seconds if self._progress else 0.0

    @property
    def reading(self) -> tuple[str, ...]:
        return self._progress.reading if self._progress else ()

    def busy_seconds(self, stage: StageName) -> float:
        """Thread-seconds of work."""
        if self._progress is None:
            return 0.0
        return self._progress.busy_share[stage] * self._threads[stage] * self._progress.seconds

    def _run(self) -> None:
        asked = self._post.asked
        try:  # whatever goes wrong, the feed ends, or somebody would wait for ever
            from ..stages.pipeline import fill_cache

            fill_cache(
                (),
                self._place.cache,
                self._place.backbone,
                self._place.reader,
                batch_size=asked.batch_size,
                workers=self._threads["reading"],
                backbone_threads=self._threads["backbone"],
                overwrite=asked.overwrite,
                retry_failed=asked.retry_failed,
                claiming=True,
                feed=self.feed,
                stop=self._stop,
                progress=self._note_progress,
            )
        except Exception as error:
            self.trouble = _trouble(error)
        finally:
            self.feed.end()

    def _note_progress(self, progress: ExtractProgress) -> None:
        self._progress = progress


def _require_sight(post: Post) -> None:
    """Vis4merError when this machine has other files at these paths than the one that asks."""
    look_anew(post.mark.parent)
    if not post.mark.is_file():
        raise _unseen(post.mark.parent, "the cache is")
    for folder in post.folders:
        if not folder.is_dir():
            raise _unseen(folder, "videos are")


def _unseen(folder: Path, what: str) -> Vis4merError:
    return Vis4merError(
        f"does not see {folder}, where {what}: mount it at the same path on every node"
    )


def _trouble(error: Exception) -> Trouble:
    """An error, with the machine that met it."""
    known = isinstance(error, Vis4merError)
    message = str(error) if known else describe_error(error)
    return Trouble(
        message=f"node {platform.node()}: {message}", is_usage=isinstance(error, UsageError)
    )
