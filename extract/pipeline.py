"""Stage 1 as a whole: videos in, committed cache entries out, three stages at once.

    reading   a pool of threads, one video each     file → resized frames
    backbone  one thread a CPU core, or two a GPU   frames of several videos → tokens
    writing   one thread                            tokens → entries, failures

Two bounded buffers join them, so memory depends on the batch size and on nothing else: not on how
long a video is, nor on how many there are. One video's trouble ends that video alone and is
recorded; a refusing disk ends the run. Whatever happens, every thread leaves and no half-written
entry stays. Knows nothing of how a person is told about it.

Letters: B frames of several videos, T frames of one, p prefix tokens, h × w patch grid, D width.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import __version__
from ..store.cache import Cache
from ..store.errors import CacheFormatError, UsageError, Vis4merError
from ..store.failures import FailureRecord, Stage
from ..store.files import StorageError
from ..store.records import SourceRecord
from ..store.spec import require_same
from ..store.writer import EntryWriter
from .backbones import Backbone, Tokens, cache_spec
from .buffers import AbortedError, OrderedBuffer, WeightedBuffer
from .plan import SourceError, decide, failures_to_keep, look_at
from .preprocess import resize_frames
from .progress import ExtractProgress, ExtractSummary, StageName, Tally
from .readers.base import FrameBatch, Reader, VideoError, VideoStream
from .sources import VideoSource

PROGRESS_SECONDS = 0.2
CPU_BATCH_SIZE = 8  # CPU time a frame is the same from 8 to 32; small batches share cores evenly
GPU_BATCH_SIZE = 32
_FIRST_FRAMES_INT8 = 16  # int8 fixes its channel scale by an entry's first frames: always as many

OnProgress = Callable[[ExtractProgress], None]


@dataclass(eq=False)
class VideoJob:
    """One video on its way through the stages.

    over: set, by any stage, when it cannot become an entry any more: it failed, or the run stops.
    read: set when its last frame has been passed on. entry, held, failed: the writing thread's.
    """

    video: VideoSource
    source: SourceRecord
    over: threading.Event = field(default_factory=threading.Event)
    read: threading.Event = field(default_factory=threading.Event)
    entry: EntryWriter | None = None
    held: list[TokenPart] = field(default_factory=list)
    failed: bool = False


@dataclass(frozen=True)
class FramePart:
    """Consecutive frames of one video: pixels uint8 (T, 3, h, w), pts_seconds (T,)."""

    job: VideoJob
    pixels: Tensor
    pts_seconds: NDArray[np.float64]


@dataclass(frozen=True)
class TokenPart:
    """Tokens of consecutive frames of one video: patch (T, h·w, D), prefix (T, p, D)."""

    job: VideoJob
    patch: NDArray[np.float16] | NDArray[np.float32]
    prefix: NDArray[np.float16] | NDArray[np.float32]
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


Event = Finished | Failed | Dropped


def extract_videos(
    sources: Sequence[VideoSource],
    cache: Cache,
    backbone: Backbone,
    reader: Reader,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    encoders: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    stop: threading.Event | None = None,
    progress: OnProgress | None = None,
) -> ExtractSummary:
    """Extract videos into a cache opened for writing (`create_cache`).

    A video whose very file is in the cache already is left (see `plan.decide`); one whose file
    changed is reported and left until `overwrite`. A video that could not be read in an earlier
    run is left while its file is unchanged, unless `retry_failed`.

    batch_size: frames that go through the backbone together (default 8 on a CPU, 32 elsewhere).
    workers: videos read at once, one thread each; encoders: threads that run the backbone
    (defaults: the CPU cores; two on a GPU, so that one prepares while the other's batch runs).
    limit: how many videos to extract at most; those already there do not count.
    stop: when set, videos that are completely read are finished, others dropped, and the summary
    says `interrupted`. progress: called some times a second, from the calling thread.

    Raises StorageError when the cache cannot be written, FingerprintError when the backbone or the
    reader is not what the cache was made with. No entry is ever left half-written, not even then.
    """
    _require_spec(cache, backbone, reader)
    for name, value in (("batch size", batch_size), ("workers", workers), ("encoders", encoders)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}, expected at least 1")
    on_cpu = backbone.device.type == "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    run = _Run(
        sources=sources,
        cache=cache,
        backbone=backbone,
        reader=reader,
        batch_size=batch_size or (CPU_BATCH_SIZE if on_cpu else GPU_BATCH_SIZE),
        workers=workers or cores or 1,
        encoders=encoders or ((cores or 1) if on_cpu else 2),
        limit=limit,
        overwrite=overwrite,
        known_failures={} if retry_failed else failures_to_keep(cache),
        stop=stop or threading.Event(),
    )
    with _one_thread_an_encoder(on_cpu):
        run.execute(progress or (lambda _: None))
    if run.tally.progress().extracted:
        cache.write_catalog()
    return run.tally.summary(interrupted=run.stopped_early)


class _Run:
    """The state of one call of `extract_videos`; its methods are the bodies of the threads."""

    def __init__(
        self,
        *,
        sources: Sequence[VideoSource],
        cache: Cache,
        backbone: Backbone,
        reader: Reader,
        batch_size: int,
        workers: int,
        encoders: int,
        limit: int | None,
        overwrite: bool,
        known_failures: Mapping[str, FailureRecord],
        stop: threading.Event,
    ) -> None:
        self._cache = cache
        self._backbone = backbone
        self._reader = reader
        self._batch_size = batch_size
        self._overwrite = overwrite
        self._known_failures = known_failures
        self._stop = stop
        self._sources = iter(sources)
        self._left_to_extract = limit
        self._choosing = threading.Lock()
        self._assembling = threading.Lock()
        self._rest: FramePart | None = None
        self._numbers = itertools.count()
        self._frames: WeightedBuffer[FramePart | Event] = WeightedBuffer(2 * batch_size * encoders)
        self._tokens: OrderedBuffer[list[TokenPart | Event]] = OrderedBuffer(2 * encoders)
        self._error: BaseException | None = None
        self._provenance = provenance(backbone, reader)
        self._workers = min(workers, max(1, len(sources)))
        self._encoders = encoders
        self.stopped_early = False
        self.tally = Tally(
            num_videos=len(sources),
            threads={"reading": self._workers, "backbone": encoders, "writing": 1},
        )

    def execute(self, progress: OnProgress) -> None:
        """Run all stages to their end; raises what ended them early."""
        readers = self._start("reading", self._read, self._workers)
        encoders = self._start("backbone", self._encode, self._encoders)
        writer = self._start("writing", self._write, 1)
        try:
            self._wait(readers, progress)
            self._frames.close()
            self._wait(encoders, progress)
            self._tokens.close()
            self._wait(writer, progress)
            progress(self.tally.progress())
        except BaseException as error:  # Ctrl-C in the calling thread, or its own progress callback
            self._abort(error)
        finally:
            for thread in (*readers, *encoders, *writer):
                thread.join()
        if self._error is not None:
            raise self._error

    def _wait(self, threads: Sequence[threading.Thread], progress: OnProgress) -> None:
        for thread in threads:
            while thread.is_alive():
                thread.join(PROGRESS_SECONDS)
                progress(self.tally.progress())

    def _start(
        self, name: StageName, body: Callable[[], None], count: int
    ) -> list[threading.Thread]:
        def guarded() -> None:
            try:
                body()
            except AbortedError:
                pass  # somebody else's error is already being reported
            except BaseException as error:  # the calling thread raises it when all have left
                self._abort(error)

        threads = [
            threading.Thread(target=guarded, name=f"{name}-{i}", daemon=True) for i in range(count)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _abort(self, error: BaseException) -> None:
        with self._choosing:
            self._error = self._error or error
        self._frames.abort()
        self._tokens.abort()

    # Reading ---------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take one video after the other until none is left."""
        while (video := self._next_video()) is not None:
            with self.tally.reading(video.id):
                self._read_video(video)

    def _next_video(self) -> VideoSource | None:
        with self._choosing:
            if self._error is not None or self._left_to_extract == 0:
                return None
            video = next(self._sources, None)
            if video is not None and self._stop.is_set():
                self.stopped_early = True
                return None
            return video

    def _read_video(self, video: VideoSource) -> None:
        try:
            with self.tally.busy("reading"):
                job = self._choose(video)
        except SourceError as error:
            self._frames.put(Failed(video, "open", str(error)), weight=0)
            return
        except CacheFormatError as error:  # this video's own record is damaged
            self._frames.put(Failed(video, "write", _first_line(error)), weight=0)
            return
        if job is None:
            return
        stage: Stage = "open"
        try:
            with self.tally.busy("reading"):
                stream = self._reader.open(video.path, fps=self._cache.spec.sampling.fps)
            stage = "decode"
            with stream:
                self._frames.put(self._read_frames(job, stream), weight=0)
        except VideoError as error:
            self._fail(job, stage, error.reason)
        except (AbortedError, StorageError):
            raise
        except MemoryError:
            self._fail(job, stage, "its frames do not fit in memory")
        except Exception as error:  # a fault of the reader is this video's failure, not the run's
            self._fail(job, stage, f"{type(error).__name__}: {_first_line(error)}")

    def _choose(self, video: VideoSource) -> VideoJob | None:
        """The job of a video that is to be extracted; None, and counted, when it is to be left."""
        decision = decide(
            video, self._cache, known_failures=self._known_failures, overwrite=self._overwrite
        )
        if decision.action == "done":
            self.tally.add_already_there()
        elif decision.action == "changed":
            self.tally.add_changed(video.id)
        elif decision.failure is not None:
            self.tally.add_known_failure(decision.failure)
        elif decision.source is not None:
            with self._choosing:
                if self._left_to_extract == 0:  # another thread took the last one meanwhile
                    return None
                if self._left_to_extract is not None:
                    self._left_to_extract -= 1
            return VideoJob(video, decision.source)
        return None

    def _read_frames(self, job: VideoJob, stream: VideoStream) -> Event:
        """Pass on all frames of an open video; how it ended."""
        batches = iter(stream)
        while True:
            with self.tally.busy("reading"):
                batch = next(batches, None)
            if batch is None:
                break
            for part in self._resized(job, batch):
                if self._stop.is_set():
                    self.stopped_early = True
                    job.over.set()
                if job.over.is_set():
                    return Dropped(job)
                self._frames.put(part, weight=len(part.pixels))
        if look_at(job.video.path) != (job.source.size, job.source.mtime_ns):
            return self._failed(job, "decode", "the file changed while it was being read")
        job.read.set()
        return Finished(job, stream.info.duration_seconds, stream.damaged_frames)

    def _resized(self, job: VideoJob, batch: FrameBatch) -> Iterator[FramePart]:
        """The frames at the backbone's size, at most a batch at a time."""
        for start in range(0, batch.num_frames, self._batch_size):
            chosen = slice(start, start + self._batch_size)
            with self.tally.busy("reading"):
                pixels = resize_frames(batch.frames[chosen], self._backbone.preprocess)  # T 3 h w
            yield FramePart(job, pixels, batch.pts_seconds[chosen])

    def _fail(self, job: VideoJob, stage: Stage, reason: str) -> None:
        self._frames.put(self._failed(job, stage, reason), weight=0)

    def _failed(self, job: VideoJob, stage: Stage, reason: str) -> Failed:
        """Mark a job as over, and the event that says why."""
        job.over.set()
        source = job.source
        return Failed(job.video, stage, reason, source.size, source.mtime_ns, job)

    # Backbone --------------------------------------------------------------------------------

    def _encode(self) -> None:
        """Take batch after batch, in the order of reading, until reading has ended."""
        while (batch := self._next_batch()) is not None:
            number, items = batch
            with self.tally.busy("backbone"):
                encoded = self._encode_items(items)
            self._tokens.put(number, encoded)

    def _next_batch(self) -> tuple[int, list[FramePart | Event]] | None:
        """A full batch, or at the end what is left, with the events that fall in between."""
        with self._assembling:
            items: list[FramePart | Event] = []
            room = self._batch_size
            while room:
                item = self._rest or self._frames.get()
                self._rest = None
                if item is None:
                    break
                if isinstance(item, FramePart):
                    item, self._rest = _split(item, room)
                    room -= len(item.pixels)
                items.append(item)
            return (next(self._numbers), items) if items else None

    def _encode_items(self, items: Sequence[FramePart | Event]) -> list[TokenPart | Event]:
        """Replace frames by tokens. When the batch fails, each video's part is tried alone, so that
        only the video that is at fault fails."""
        wanted = [i for i in items if not (isinstance(i, FramePart) and self._is_over(i.job))]
        parts = [item for item in wanted if isinstance(item, FramePart)]
        encoded: dict[int, TokenPart | Event]
        try:
            tokens = self._encode_parts(parts)
            encoded = {id(part): done for part, done in zip(parts, tokens, strict=True)}
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise Vis4merError(
                f"not enough memory on {self._backbone.device} for {self._batch_size} frames at "
                "once; use a smaller --batch-size"
            ) from error
        except Exception:
            encoded = {id(part): self._encode_alone(part) for part in parts}
        return [encoded[id(item)] if isinstance(item, FramePart) else item for item in wanted]

    def _is_over(self, job: VideoJob) -> bool:
        """Whether a job's frames need no tokens. A stop ends every job that is not wholly read."""
        if self._stop.is_set() and not job.read.is_set():
            self.stopped_early = True
            job.over.set()
        return job.over.is_set()

    def _encode_alone(self, part: FramePart) -> TokenPart | Event:
        try:
            return self._encode_parts([part])[0]
        except Exception as error:
            reason = f"the backbone failed: {type(error).__name__}: {_first_line(error)}"
            return self._failed(part.job, "encode", reason)

    def _encode_parts(self, parts: Sequence[FramePart]) -> list[TokenPart]:
        """One pass of the backbone over parts of several videos, then apart again.

        The batch always has its full size, at the very end of a run by repeating its last frame:
        some backbones' last bits depend on the number of frames, and must not depend on when a run
        was interrupted.
        """
        if not parts:
            return []
        count = sum(len(part.pixels) for part in parts)
        padding = parts[-1].pixels[-1:].expand(self._batch_size - count, -1, -1, -1)
        pixels = torch.cat([*(part.pixels for part in parts), padding])  # B 3 h w
        patch, prefix = self._to_host(self._backbone.encode(pixels), count)
        encoded, start = [], 0
        for part in parts:
            chosen = slice(start, start + len(part.pixels))
            encoded.append(TokenPart(part.job, patch[chosen], prefix[chosen], part.pts_seconds))
            start = chosen.stop
        return encoded

    def _to_host(self, tokens: Tokens, count: int) -> list[NDArray[np.float16]]:
        """The first `count` frames' patch and prefix tokens as arrays, in the type to be stored
        where that loses nothing, else float32 for the writer to judge."""
        arrays = []
        for values in (tokens.patch[:count], tokens.prefix[:count]):
            if self._cache.spec.stored_dtype == "float16":
                host = values.to(torch.float16).cpu()
                if not torch.isfinite(host).all():
                    host = values.float().cpu()
            else:
                host = values.float().cpu()
            arrays.append(host.numpy())
        return arrays

    # Writing ---------------------------------------------------------------------------------

    def _write(self) -> None:
        """Write what comes, in order; whatever is unfinished at the end is removed."""
        open_jobs: set[VideoJob] = set()
        try:
            while (items := self._tokens.get()) is not None:
                with self.tally.busy("writing"):
                    for item in items:
                        self._write_item(item, open_jobs)
        finally:
            for job in tuple(open_jobs):
                _discard(job, open_jobs)

    def _write_item(self, item: TokenPart | Event, open_jobs: set[VideoJob]) -> None:
        if isinstance(item, Dropped):
            _discard(item.job, open_jobs)
        elif isinstance(item, Failed):
            self._record_failure(item, open_jobs)
        elif item.job.over.is_set():
            if isinstance(item, Finished):
                _discard(item.job, open_jobs)
        else:
            try:
                if isinstance(item, TokenPart):
                    self._append(item, open_jobs)
                else:
                    self._commit(item, open_jobs)
            except OSError:  # StorageError among them: the disk refuses, for every video
                raise
            except (Vis4merError, ValueError) as error:  # values that cannot be stored
                failed = self._failed(item.job, "write", _first_line(error))
                self._record_failure(failed, open_jobs)

    def _append(self, part: TokenPart, open_jobs: set[VideoJob]) -> None:
        job = part.job
        if job.entry is None:
            job.entry = self._cache.write_entry(
                job.video.id, source=job.source, overwrite=self._overwrite
            ).__enter__()
            open_jobs.add(job)
        if self._cache.spec.stored_dtype == "int8" and job.entry.num_frames == 0:
            job.held.append(part)
            if sum(len(held.pts_seconds) for held in job.held) >= _FIRST_FRAMES_INT8:
                _append_held(job)
        else:
            _append_tokens(job.entry, part)
        self.tally.add_frames(len(part.pts_seconds))

    def _commit(self, finished: Finished, open_jobs: set[VideoJob]) -> None:
        job = finished.job
        if job.entry is None:
            failed = self._failed(job, "decode", "no frame could be read")
            self._record_failure(failed, open_jobs)
            return
        _append_held(job)
        job.entry.commit(
            duration_seconds=finished.duration_seconds,
            damaged_frames=finished.damaged_frames,
            provenance=self._provenance,
        )
        _discard(job, open_jobs)
        self.tally.add_extracted(job.video.id, damaged_frames=finished.damaged_frames)

    def _record_failure(self, failed: Failed, open_jobs: set[VideoJob]) -> None:
        if failed.job is not None:
            if failed.job.failed:  # another batch of the same video failed before
                return
            failed.job.failed = True
            _discard(failed.job, open_jobs)
        record = FailureRecord(
            id=failed.video.id,
            stage=failed.stage,
            reason=failed.reason,
            source_name=failed.video.name,
            source_size=failed.size,
            source_mtime_ns=failed.mtime_ns,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._cache.record_failure(record)
        self.tally.add_failure(record)


def provenance(backbone: Backbone, reader: Reader) -> dict[str, str]:
    """What made an entry, beyond what changes its numbers."""
    device = backbone.device
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "vis4mer": __version__,
        "reader": f"{reader.name} {reader.version}",
        "torch": torch.__version__,
        "timm": importlib.metadata.version("timm"),
        "device": f"{device.type} {named or platform.machine()}",
        "compute_dtype": backbone.compute_dtype,
        "host": platform.node(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _require_spec(cache: Cache, backbone: Backbone, reader: Reader) -> None:
    """FingerprintError when this backbone and reader would not make the cache's numbers."""
    spec = cache.spec
    sides = [int(name.removeprefix("grid")) for name in spec.arrays if name.startswith("grid")]
    wanted = cache_spec(
        backbone,
        fps=spec.sampling.fps,
        reader=reader.name,
        stored_dtype=spec.stored_dtype,
        grids=sides,
    )
    require_same(spec, wanted, name=str(cache.path))


@contextlib.contextmanager
def _one_thread_an_encoder(on_cpu: bool) -> Iterator[None]:
    """On a CPU every encoder keeps to one core, where it need not wait for a core that reads."""
    before = torch.get_num_threads()
    if on_cpu:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _split(part: FramePart, room: int) -> tuple[FramePart, FramePart | None]:
    """A part's first `room` frames, and what is left of it."""
    if len(part.pixels) <= room:
        return part, None
    first = FramePart(part.job, part.pixels[:room], part.pts_seconds[:room])
    return first, FramePart(part.job, part.pixels[room:], part.pts_seconds[room:])


def _append_tokens(entry: EntryWriter, part: TokenPart) -> None:
    entry.append({"patch": part.patch, "prefix": part.prefix}, part.pts_seconds.tolist())


def _append_held(job: VideoJob) -> None:
    """Append the held frames, the first ones by themselves (see `_FIRST_FRAMES_INT8`)."""
    if not job.held or job.entry is None:
        return
    whole = TokenPart(
        job,
        np.concatenate([part.patch for part in job.held]),
        np.concatenate([part.prefix for part in job.held]),
        np.concatenate([part.pts_seconds for part in job.held]),
    )
    job.held.clear()
    for chosen in (slice(0, _FIRST_FRAMES_INT8), slice(_FIRST_FRAMES_INT8, None)):
        if len(whole.pts_seconds[chosen]):
            _append_tokens(
                job.entry,
                TokenPart(
                    job, whole.patch[chosen], whole.prefix[chosen], whole.pts_seconds[chosen]
                ),
            )


def _discard(job: VideoJob, open_jobs: set[VideoJob]) -> None:
    """Close a job's entry; what was not committed is removed."""
    open_jobs.discard(job)
    job.held.clear()
    if job.entry is not None:
        job.entry.__exit__(None, None, None)
        job.entry = None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
