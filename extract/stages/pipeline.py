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
import itertools
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...store.cache import Cache
from ...store.errors import UsageError
from ...store.spec import require_same
from ..backbones.loading import Backbone, cache_spec
from ..planning.plan import largest_first
from ..planning.share import Share
from ..readers.base import Reader
from ..sampling import moments_of
from ..sources import VideoSource
from .cores import usable_cores
from .feeding import Feed
from .filling import Filling, OnProgress
from .profile import recorded
from .progress import ExtractSummary, Tally, require_counts
from .sharing import Sharing, shared_work
from .steps import StageName, Steps
from .stopping import StopSignal

CPU_BATCH_SIZE = 8  # CPU time a frame is the same from 8 to 32; small batches share cores evenly
GPU_BATCH_SIZE = 32
GPU_BATCH_CLIPS = 4  # of a clip backbone; on a CPU one clip fills a batch


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
    attempts: Mapping[str, str] | None = None,
    share: Share | None = None,
    feed: Feed | None = None,
    stop: threading.Event | None = None,
    progress: OnProgress | None = None,
    profile: Path | None = None,
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
    what others hold to them (see `sharing`). attempts: with overwrite beside it, the entries that
    are to be replaced, by id, where these others may have replaced some before this run begins.
    share: which videos this run begins with, and whether it goes on with the others.
    feed: more videos, that arrive while the run goes, and receipts for what becomes of all of them;
    the run ends only once it is closed, also after `stop`. `limit` must not stand beside it.
    stop: when set, videos that are completely read are finished, others dropped, and the summary
    says `interrupted`. progress: called some times a second, from the calling thread.
    profile: a file to make that shows what every thread did when (see `profile`).

    Raises StorageError when the cache or the profile cannot be written, FingerprintError when the
    backbone or the reader is not what the cache was made with, UsageError for a part of a video
    that the cache's sampling cannot speak of, and for a limit beside a feed. No entry is ever left
    half-written, not even then.
    """
    _require_spec(cache, backbone, reader)
    require_counts(batch_size=batch_size, workers=workers, backbone_threads=backbone_threads)
    if feed is not None and limit is not None:
        raise UsageError(f"limit is {limit} beside a feed: whoever feeds it counts the attempts")
    sources = _asked_for(sources, share, cache)
    threads = _threads_of(
        backbone, reading=workers, running=backbone_threads, videos=_most_at_once(sources, feed)
    )
    with recorded(profile) if profile is not None else contextlib.nullcontext() as trace:
        told = feed.tell if feed is not None else None
        tally = Tally(num_videos=len(sources), threads=threads, steps=Steps(trace), on_end=told)
        filling = Filling(
            cache=cache,
            backbone=backbone,
            reader=reader,
            batch_size=batch_frames(backbone, batch_size),
            threads=threads,
            limit=limit,
            overwrite=overwrite,
            retry_failed=retry_failed,
            stop=StopSignal(stop),
            tally=tally,
            feed=feed,
        )
        with (
            shared_work(cache, overwrite=overwrite, attempts=attempts, tally=tally)
            if claiming
            else contextlib.nullcontext()
        ) as sharing:
            ordered = _in_order(sources, share, sharing, sort=limit is None)
            filling.run(ordered, sharing, progress)
            filling.end(sharing)
    return tally.summary(interrupted=filling.stop.took_effect, profile=profile)


def _asked_for(
    sources: Sequence[VideoSource], share: Share | None, cache: Cache
) -> Sequence[VideoSource]:
    """The videos that this run has to do with. UsageError for a part of one of which the cache's
    sampling cannot speak."""
    if share is not None and not share.helps:
        sources, _ = share.split(sources)
    for video in sources:
        moments_of(
            cache.spec.sampling, start_seconds=video.start_seconds, end_seconds=video.end_seconds
        )
    return sources


def _threads_of(
    backbone: Backbone, *, reading: int | None, running: int | None, videos: int
) -> dict[StageName, int]:
    """Of each stage. reading, running: as asked for. videos: to read at once, at most."""
    on_cpu = backbone.device.type == "cpu"
    return {
        "reading": min(reading or usable_cores(), videos),
        "backbone": running or (usable_cores() if on_cpu else 2),
        "writing": 1,
    }


def _most_at_once(sources: Sequence[VideoSource], feed: Feed | None) -> int:
    """How many videos there can be to read at the same time."""
    return max(1, len(sources)) if feed is None else sys.maxsize


def _in_order(
    sources: Sequence[VideoSource], share: Share | None, sharing: Sharing | None, *, sort: bool
) -> Iterable[VideoSource]:
    """The videos as they are to be read: a worker's share, then what it helps with. sort: for
    speed, instead of the order given."""
    own, others = share.split(sources) if share is not None else (list(sources), [])
    if not sort:
        return own + others
    if sharing is None:
        return largest_first(own) + largest_first(others)
    return itertools.chain(sharing.order(own), sharing.help_with(others))


def batch_frames(backbone: Backbone, batch_size: int | None = None) -> int:
    """Frames in every batch of a run: whole clips, one at least. batch_size: see `fill_cache`."""
    clip_frames, on_cpu = backbone.clip_frames, backbone.device.type == "cpu"
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
