"""The reading stage: each thread takes one video after the other and passes its frames on, resized.

Full-resolution frames never leave this stage. What is wrong with a file ends that video alone.
Knows nothing of backbones beyond the preprocessing they ask for.

Letters: T frames of one video, F frames of a clip, H × W pixels as the backbone takes them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...store.cache import Cache
from ...store.errors import CacheFormatError
from ...store.failures import FailureRecord, Stage
from ...store.spec import Preprocess
from ...store.wording import describe_error, first_line
from ..backbones.preprocess import resize_frames
from ..planning.plan import FileState, SourceError, decide, look_at, source_record
from ..readers.base import FrameBatch, Reader, VideoError, VideoStream
from ..sampling import moments_of
from ..sources import VideoSource
from .buffers import AbortedError, WeightedBuffer
from .items import Dropped, End, Failed, Finished, FramePart, VideoJob
from .progress import Tally
from .sharing import Sharing
from .stopping import StopSignal


@dataclass(frozen=True)
class _Attempt:
    """A video that is to be extracted, and its file as it was looked at."""

    video: VideoSource
    file: FileState


class ReadingStage:
    """`run` is the body of every reading thread; they share the list of videos.

    clip_frames: F, what the backbone sees at once. part_frames: the most frames that are passed on
    at once, whole clips. limit: how many videos to attempt at most, in their order, None for all.
    """

    def __init__(
        self,
        sources: Iterable[VideoSource],
        cache: Cache,
        reader: Reader,
        *,
        preprocess: Preprocess,
        clip_frames: int,
        part_frames: int,
        limit: int | None,
        overwrite: bool,
        known_failures: Mapping[str, FailureRecord],
        sharing: Sharing | None,
        frames: WeightedBuffer[FramePart | End],
        stop: StopSignal,
        tally: Tally,
    ) -> None:
        self._sources = iter(sources)
        self._cache = cache
        self._reader = reader
        self._preprocess = preprocess
        self._clip_frames = clip_frames
        self._part_frames = part_frames
        self._attempts_left = limit
        self._overwrite = overwrite
        self._known_failures = known_failures
        self._sharing = sharing
        self._frames = frames
        self._stop = stop
        self._tally = tally
        self._taking = threading.Lock()
        # With a limit, whether a video counts must be known before the next one is taken.
        self._in_order: contextlib.AbstractContextManager[object] = (
            contextlib.nullcontext() if limit is None else threading.Lock()
        )

    def run(self) -> None:
        """Take one video after the other until none is left."""
        while (attempt := self._next_attempt()) is not None:
            with self._tally.reading(attempt.video.id):
                end = attempt if isinstance(attempt, Failed) else self._read_video(attempt)
                with self._tally.step("wait for room", attempt.video.id):
                    self._frames.put(end, weight=0)

    def _next_attempt(self) -> _Attempt | Failed | None:
        """The next video to extract, or that cannot be; those to be left are counted on the way.
        None when all are taken, when the limit is reached or when the run ends."""
        with self._in_order:
            while (video := self._next_video()) is not None:
                with self._tally.reading(video.id), self._tally.step("claim", video.id):
                    attempt = self._decide(video)
                if attempt is not None:
                    if self._attempts_left is not None:
                        self._attempts_left -= 1
                    return attempt
            return None

    def _next_video(self) -> VideoSource | None:
        with self._taking:
            if self._frames.aborted or self._attempts_left == 0:
                return None
            video = next(self._sources, None)
            if video is None and self._sharing is not None:
                video = self._sharing.next_deferred()
            if video is not None and self._stop.requested:
                self._stop.leave_undone()
                return None
            return video

    def _decide(self, video: VideoSource) -> _Attempt | Failed | None:
        """None, and counted, when the video is to be left as it is, or left to another worker."""
        try:
            decision = decide(
                video, self._cache, known_failures=self._known_failures, overwrite=self._overwrite
            )
            if decision.action == "extract" and self._sharing is not None:
                decision = self._sharing.take(video, decision)
        except SourceError as error:
            return Failed(video, "open", str(error))
        except CacheFormatError as error:  # what the cache says of this video is damaged
            return Failed(video, "write", first_line(error))
        if decision.action == "held":
            pass  # it comes back at the end
        elif decision.action == "done":
            self._tally.add_already_there(video.id)
        elif decision.action == "changed":
            self._tally.add_changed(video.id)
        elif decision.failure is not None:
            self._tally.add_known_failure(decision.failure)
        else:
            return _Attempt(video, decision.file)
        return None

    def _read_video(self, attempt: _Attempt) -> End:
        try:
            with self._tally.step("hash", attempt.video.id):
                source = source_record(attempt.video, attempt.file)
        except SourceError as error:
            return Failed(attempt.video, "open", str(error))
        return self._read_job(VideoJob(attempt.video, source))

    def _read_job(self, job: VideoJob) -> End:
        """Open one video and pass its frames on; how it ended."""
        stage: Stage = "open"
        try:
            with self._tally.step("open", job.video.id):
                moments = moments_of(
                    self._cache.spec.sampling,
                    start_seconds=job.video.start_seconds,
                    end_seconds=job.video.end_seconds,
                )
                stream = self._reader.open(job.video.path, moments=moments)
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
            return job.fail(stage, describe_error(error))

    def _read_frames(self, job: VideoJob, stream: VideoStream) -> End:
        batches = iter(stream)
        clips = _WholeClips(job, self._clip_frames)
        while True:
            with self._tally.step("decode", job.video.id) as step:
                batch = next(batches, None)
                step.frames = batch.num_frames if batch is not None else 0
            if batch is None:
                break
            for part in self._resized(job.video.id, batch, clips):
                if self._stop.requested:
                    self._stop.leave_undone()
                    job.over.set()
                if job.over.is_set():
                    return Dropped(job)
                with self._tally.step("wait for room", job.video.id):
                    self._frames.put(part, weight=len(part.pixels))
            del batch  # before the next one is decoded
        try:
            file = look_at(job.video.path)
        except SourceError as error:
            return job.fail("decode", f"the file changed while it was being read: {error}")
        if file != FileState(size=job.source.size, mtime_ns=job.source.mtime_ns):
            return job.fail("decode", "the file changed while it was being read")
        if clips.num_waiting:
            return job.fail("decode", "it ended in the middle of a clip")
        job.read.set()
        return Finished(job, stream.info.duration_seconds, stream.damaged_frames)

    def _resized(self, video_id: str, batch: FrameBatch, clips: _WholeClips) -> Iterator[FramePart]:
        """The frames at the backbone's size, at most `part_frames` at a time."""
        start = 0
        while start < batch.num_frames:
            chosen = slice(start, start + self._part_frames - clips.num_waiting)
            start = chosen.stop
            with self._tally.step("resize", video_id) as step:
                pixels = resize_frames(batch.frames[chosen], self._preprocess)  # T 3 H W
                part = clips.add(pixels, batch.pts_seconds[chosen])
                step.frames = len(pixels)
            if part is not None:
                yield part


class _WholeClips:
    """One video's frames on their way into clips: what is no whole clip waits for more frames."""

    def __init__(self, job: VideoJob, clip_frames: int) -> None:
        self._job = job
        self._clip_frames = clip_frames
        self._frames: list[NDArray[np.uint8]] = []  # each T H W 3
        self._pts: list[NDArray[np.float64]] = []

    @property
    def num_waiting(self) -> int:
        """Frames of a clip that is not complete."""
        return sum(map(len, self._pts))

    def add(self, pixels: Tensor, pts_seconds: NDArray[np.float64]) -> FramePart | None:
        """The clips that frames (T, 3, H, W) at pts_seconds (T,) complete; None when none is."""
        if self._clip_frames == 1:
            return FramePart(self._job, pixels, pts_seconds)
        # numpy makes the copies: torch would start a pool of threads for them.
        self._frames.append(pixels.permute(0, 2, 3, 1).numpy())
        self._pts.append(pts_seconds)
        whole = self.num_waiting // self._clip_frames * self._clip_frames
        if not whole:
            return None
        frames, pts_seconds = np.concatenate(self._frames), np.concatenate(self._pts)
        self._frames, self._pts = [frames[whole:].copy()], [pts_seconds[whole:]]
        clips = torch.from_numpy(frames[:whole]).permute(0, 3, 1, 2)  # T·F 3 H W
        return FramePart(self._job, clips, pts_seconds[: whole : self._clip_frames])
