"""Stage 1 as a whole: videos in, committed cache entries out, three stages at once.

    reading   a pool of threads, one video each     file → resized frames
    backbone  one thread a CPU core, or two a GPU   frames of several videos → tokens
    writing   one thread                            tokens → entries, failures

Two bounded buffers join them, so memory depends on the batch size and on nothing else: not on how
long a video is, nor on how many there are. One video's trouble ends that video alone and is
recorded; a refusing disk ends the run. Whatever happens, every thread leaves and no half-written
entry stays. Knows nothing of how a person is told about it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ...store.cache import Cache
from ...store.spec import require_same
from ..backbones.loading import Backbone, cache_spec
from ..planning.plan import failures_to_keep, largest_first
from ..readers.base import Reader
from ..sampling import moments_of
from ..sources import VideoSource
from .buffers import AbortedError, OrderedBuffer, WeightedBuffer
from .cores import usable_cores
from .encoding import BackboneStage
from .items import End, FramePart, TokenPart
from .makers import provenance
from .progress import ExtractProgress, ExtractSummary, StageName, Tally, require_counts
from .reading import ReadingStage
from .sharing import Sharing, shared_work
from .stopping import StopSignal
from .writing import WritingStage

PROGRESS_SECONDS = 0.2
CPU_BATCH_SIZE = 8  # CPU time a frame is the same from 8 to 32; small batches share cores evenly
GPU_BATCH_SIZE = 32
GPU_BATCH_CLIPS = 4  # of a clip backbone; on a CPU one clip fills a batch

OnProgress = Callable[[ExtractProgress], None]
Frames = WeightedBuffer[FramePart | End]
Encoded = OrderedBuffer[list[TokenPart | End]]


def fill_cache(
    sources: Sequence[VideoSource],
    cache: Cache,
    backbone: Backbone,
    reader: Reader,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    backbone_threads: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    claiming: bool = False,
    stop: threading.Event | None = None,
    progress: OnProgress | None = None,
) -> ExtractSummary:
    """Extract videos into a cache opened for writing (`create_cache`).

    A video whose very file is in the cache already is left (see `plan.decide`); one whose file
    changed is reported and left until `overwrite`. A video that could not be read in an earlier
    run is left while its file is unchanged, unless `retry_failed`.

    batch_size: frames that go through the backbone together (default 8 on a CPU, 32 elsewhere).
    A clip backbone takes whole clips, as many as fit and one at least (default 1 on a CPU, 4
    elsewhere).
    workers: videos read at once, one thread each (default: the CPU cores).
    backbone_threads: threads that run the backbone (default: the CPU cores; two on a GPU, so that
    one prepares while the other's batch runs).
    limit: how many videos to attempt at most, in the order given. Those that are left as they are
    (in the cache already, changed, known to fail) do not count; those that fail do. The run ends
    with the last attempt: what comes after it in the order is not looked at.
    claiming: other processes fill the same cache: claim each video before it is read, and leave
    what others hold to them (see `sharing`).
    stop: when set, videos that are completely read are finished, others dropped, and the summary
    says `interrupted`. progress: called some times a second, from the calling thread.

    Raises StorageError when the cache cannot be written, FingerprintError when the backbone or the
    reader is not what the cache was made with, UsageError for a part of a video that the cache's
    sampling cannot speak of. No entry is ever left half-written, not even then.
    """
    _require_spec(cache, backbone, reader)
    for video in sources:
        moments_of(
            cache.spec.sampling, start_seconds=video.start_seconds, end_seconds=video.end_seconds
        )
    require_counts(batch_size=batch_size, workers=workers, backbone_threads=backbone_threads)
    on_cpu = backbone.device.type == "cpu"
    batch_size = _whole_clips(batch_size, backbone.clip_frames, on_cpu=on_cpu)
    threads: dict[StageName, int] = {
        "reading": min(workers or usable_cores(), max(1, len(sources))),
        "backbone": backbone_threads or (usable_cores() if on_cpu else 2),
        "writing": 1,
    }
    tally = Tally(num_videos=len(sources), threads=threads)
    filling = _Filling(
        cache=cache,
        backbone=backbone,
        reader=reader,
        batch_size=batch_size,
        threads=threads,
        overwrite=overwrite,
        frames=WeightedBuffer(2 * batch_size * threads["backbone"]),
        tokens=OrderedBuffer(2 * threads["backbone"]),
        stop=StopSignal(stop),
        tally=tally,
    )
    with (
        shared_work(cache, overwrite=overwrite, tally=tally)
        if claiming
        else contextlib.nullcontext()
    ) as sharing:
        reading = filling.reading(sources, limit=limit, retry_failed=retry_failed, sharing=sharing)
        filling.run(reading, sharing, progress)
        if sharing is not None:
            sharing.count_held()
    if tally.progress().extracted:
        cache.write_catalog()
    return tally.summary(interrupted=filling.stop.took_effect)


@dataclass(frozen=True, kw_only=True)
class _Filling:
    """What the three stages of one run have in common. threads: of each stage."""

    cache: Cache
    backbone: Backbone
    reader: Reader
    batch_size: int
    threads: dict[StageName, int]
    overwrite: bool
    frames: Frames
    tokens: Encoded
    stop: StopSignal
    tally: Tally

    def reading(
        self,
        sources: Sequence[VideoSource],
        *,
        limit: int | None,
        retry_failed: bool,
        sharing: Sharing | None,
    ) -> ReadingStage:
        if limit is None:
            sources = sharing.order(sources) if sharing else largest_first(sources)
        return ReadingStage(
            sources,
            self.cache,
            self.reader,
            preprocess=self.backbone.preprocess,
            clip_frames=self.backbone.clip_frames,
            part_frames=self.batch_size,
            limit=limit,
            overwrite=self.overwrite,
            known_failures={} if retry_failed else failures_to_keep(self.cache),
            sharing=sharing,
            frames=self.frames,
            stop=self.stop,
            tally=self.tally,
        )

    def run(
        self, reading: ReadingStage, sharing: Sharing | None, progress: OnProgress | None
    ) -> None:
        """All three stages until the last thread has left."""
        running, writing = self._running(), self._writing(sharing)
        crew = _Crew(self.frames, self.tokens)
        with _one_core_a_thread(self.backbone.device.type == "cpu"):
            crew.start("reading", reading.run, self.threads["reading"], then=self.frames.close)
            crew.start("backbone", running.run, self.threads["backbone"], then=self.tokens.close)
            crew.start("writing", writing.run, self.threads["writing"])
            crew.finish(lambda: progress(self.tally.progress()) if progress else None)

    def _running(self) -> BackboneStage:
        return BackboneStage(
            self.backbone,
            batch_size=self.batch_size,
            stored_dtype=self.cache.spec.stored_dtype,
            frames=self.frames,
            tokens=self.tokens,
            stop=self.stop,
            tally=self.tally,
        )

    def _writing(self, sharing: Sharing | None) -> WritingStage:
        return WritingStage(
            self.cache,
            overwrite=self.overwrite,
            provenance=provenance(self.backbone, self.reader),
            sharing=sharing,
            tokens=self.tokens,
            tally=self.tally,
        )


class _Crew:
    """The threads of a run. The first error that any of them meets makes all of them leave."""

    def __init__(self, *buffers: Frames | Encoded) -> None:
        self._buffers = buffers
        self._stages: list[tuple[list[threading.Thread], Callable[[], None]]] = []
        self._error: BaseException | None = None
        self._failing = threading.Lock()

    def start(
        self,
        stage: StageName,
        body: Callable[[], None],
        count: int,
        *,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Start `count` threads of a stage; `then` is called when the last has left."""

        def guarded() -> None:
            try:
                body()
            except AbortedError:
                pass  # somebody else's error is already being reported
            except BaseException as error:  # `finish` raises it when all have left
                self._abort(error)

        threads = [
            threading.Thread(target=guarded, name=f"{stage}-{i}", daemon=True) for i in range(count)
        ]
        for thread in threads:
            thread.start()
        self._stages.append((threads, then))

    def finish(self, on_wait: Callable[[], None]) -> None:
        """Wait for all stages in turn, calling `on_wait` meanwhile; raises what went wrong."""
        try:
            for threads, then in self._stages:
                for thread in threads:
                    while thread.is_alive():
                        thread.join(PROGRESS_SECONDS)
                        on_wait()
                then()
            on_wait()
        except BaseException as error:  # Ctrl-C in the calling thread, or its own progress callback
            self._abort(error)
        finally:
            for threads, _ in self._stages:
                for thread in threads:
                    thread.join()
        if self._error is not None:
            raise self._error

    def _abort(self, error: BaseException) -> None:
        with self._failing:
            self._error = self._error or error
        for buffer in self._buffers:
            buffer.abort()


def _whole_clips(batch_size: int | None, clip_frames: int, *, on_cpu: bool) -> int:
    """Frames in a batch: a multiple of `clip_frames`, at least one clip."""
    if batch_size is None and clip_frames == 1:
        return CPU_BATCH_SIZE if on_cpu else GPU_BATCH_SIZE
    if batch_size is None:
        return clip_frames * (1 if on_cpu else GPU_BATCH_CLIPS)
    return clip_frames * max(1, batch_size // clip_frames)


def _require_spec(cache: Cache, backbone: Backbone, reader: Reader) -> None:
    """FingerprintError when this backbone and reader would not make the cache's numbers."""
    spec = cache.spec
    sides = [int(name.removeprefix("grid")) for name in spec.arrays if name.startswith("grid")]
    wanted = cache_spec(
        backbone,
        sampling=spec.sampling,
        reader=reader.name,
        stored_dtype=spec.stored_dtype,
        grids=sides,
    )
    require_same(spec, wanted, name=str(cache.path))


@contextlib.contextmanager
def _one_core_a_thread(on_cpu: bool) -> Iterator[None]:
    """On a CPU every backbone thread keeps to one core: it need not wait for one that reads."""
    before = torch.get_num_threads()
    if on_cpu:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
