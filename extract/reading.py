"""The reading stage: each thread takes one video after the other and passes its frames on, resized.

Full-resolution frames never leave this stage. What is wrong with a file ends that video alone.
Knows nothing of backbones beyond the preprocessing they ask for.

Letters: T frames of one video, H × W pixels as the backbone takes them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

from ..store.cache import Cache
from ..store.errors import CacheFormatError
from ..store.failures import FailureRecord, Stage
from ..store.spec import Preprocess
from .buffers import AbortedError, WeightedBuffer
from .items import Dropped, End, Failed, Finished, FramePart, StopSignal, VideoJob
from .plan import SourceError, decide, look_at
from .preprocess import resize_frames
from .progress import Tally
from .readers.base import FrameBatch, Reader, VideoError, VideoStream
from .sources import VideoSource
from .wording import first_line


class ReadingStage:
    """`run` is the body of every reading thread; they share the list of videos.

    part_frames: the most frames that are passed on at once. limit: how many videos to extract at
    most, None for all.
    """

    def __init__(
        self,
        sources: Sequence[VideoSource],
        cache: Cache,
        reader: Reader,
        *,
        preprocess: Preprocess,
        part_frames: int,
        limit: int | None,
        overwrite: bool,
        known_failures: Mapping[str, FailureRecord],
        frames: WeightedBuffer[FramePart | End],
        stop: StopSignal,
        tally: Tally,
    ) -> None:
        self._sources = iter(sources)
        self._cache = cache
        self._reader = reader
        self._preprocess = preprocess
        self._part_frames = part_frames
        self._left_to_extract = limit
        self._overwrite = overwrite
        self._known_failures = known_failures
        self._frames = frames
        self._stop = stop
        self._tally = tally
        self._choosing = threading.Lock()

    def run(self) -> None:
        """Take one video after the other until none is left."""
        while (video := self._next_video()) is not None:
            with self._tally.reading(video.id):
                self._read_video(video)

    def _next_video(self) -> VideoSource | None:
        with self._choosing:
            if self._frames.aborted or self._left_to_extract == 0:
                return None
            video = next(self._sources, None)
            if video is not None and self._stop.requested:
                self._stop.leave_undone()
                return None
            return video

    def _read_video(self, video: VideoSource) -> None:
        try:
            with self._tally.busy("reading"):
                job = self._choose(video)
        except SourceError as error:
            self._frames.put(Failed(video, "open", str(error)), weight=0)
        except CacheFormatError as error:  # what the cache says of this video is damaged
            self._frames.put(Failed(video, "write", first_line(error)), weight=0)
        else:
            if job is not None:
                self._frames.put(self._read_job(job), weight=0)

    def _choose(self, video: VideoSource) -> VideoJob | None:
        """The job of a video that is to be extracted; None, and counted, when it is to be left."""
        decision = decide(
            video, self._cache, known_failures=self._known_failures, overwrite=self._overwrite
        )
        if decision.action == "done":
            self._tally.add_already_there()
        elif decision.action == "changed":
            self._tally.add_changed(video.id)
        elif decision.failure is not None:
            self._tally.add_known_failure(decision.failure)
        elif decision.source is not None and self._within_limit():
            return VideoJob(video, decision.source)
        return None

    def _within_limit(self) -> bool:
        with self._choosing:
            if self._left_to_extract == 0:  # another thread took the last one meanwhile
                return False
            if self._left_to_extract is not None:
                self._left_to_extract -= 1
            return True

    def _read_job(self, job: VideoJob) -> End:
        """Open one video and pass its frames on; how it ended."""
        stage: Stage = "open"
        try:
            with self._tally.busy("reading"):
                stream = self._reader.open(job.video.path, fps=self._cache.spec.sampling.fps)
            stage = "decode"
            with stream:
                return self._read_frames(job, stream)
        except VideoError as error:
            return job.fail(stage, error.reason)
        except AbortedError:
            raise
        except MemoryError:
            return job.fail(stage, "its frames do not fit in memory")
        except Exception as error:  # a fault of the reader is this video's failure, not the run's
            return job.fail(stage, f"{type(error).__name__}: {first_line(error)}")

    def _read_frames(self, job: VideoJob, stream: VideoStream) -> End:
        batches = iter(stream)
        while True:
            with self._tally.busy("reading"):
                batch = next(batches, None)
            if batch is None:
                break
            for part in self._resized(job, batch):
                if self._stop.requested:
                    self._stop.leave_undone()
                    job.over.set()
                if job.over.is_set():
                    return Dropped(job)
                self._frames.put(part, weight=len(part.pixels))
        if look_at(job.video.path) != (job.source.size, job.source.mtime_ns):
            return job.fail("decode", "the file changed while it was being read")
        job.read.set()
        return Finished(job, stream.info.duration_seconds, stream.damaged_frames)

    def _resized(self, job: VideoJob, batch: FrameBatch) -> Iterator[FramePart]:
        """The frames at the backbone's size, at most `part_frames` at a time."""
        for start in range(0, batch.num_frames, self._part_frames):
            chosen = slice(start, start + self._part_frames)
            with self._tally.busy("reading"):
                pixels = resize_frames(batch.frames[chosen], self._preprocess)  # T 3 H W
            yield FramePart(job, pixels, batch.pts_seconds[chosen])
