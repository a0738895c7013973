"""The writing stage: tokens become entries, in one thread that owns every open entry.

An entry exists once its last frame is written and committed; whatever is unfinished when the stage
ends, for whatever reason, is removed. A disk that refuses ends the run; values that cannot be
stored end their video alone. Knows nothing of videos or backbones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import numpy as np

from ...store.cache import Cache
from ...store.errors import Vis4merError
from ...store.failures import FailureRecord
from ...store.quantise import FIRST_FRAMES_INT8
from ...store.wording import first_line
from ...store.writer import EntryWriter
from ..sources import VideoSource
from .buffers import OrderedBuffer
from .items import Dropped, End, Failed, Finished, TokenPart, VideoJob
from .progress import Tally
from .sharing import Sharing
from .steps import Step


@dataclass
class _OpenEntry:
    """An entry being written, and its first frames while they are held back (int8 only)."""

    writer: EntryWriter
    held: list[TokenPart] = field(default_factory=list)


class WritingStage:
    """`run` is the body of the writing thread."""

    def __init__(
        self,
        cache: Cache,
        *,
        overwrite: bool,
        provenance: Mapping[str, str],
        sharing: Sharing | None,
        tokens: OrderedBuffer[list[TokenPart | End]],
        tally: Tally,
    ) -> None:
        self._cache = cache
        self._overwrite = overwrite
        self._provenance = provenance
        self._sharing = sharing
        self._tokens = tokens
        self._tally = tally
        self._open: dict[VideoJob, _OpenEntry] = {}
        self._failed: set[VideoJob] = set()

    def run(self) -> None:
        """Write what comes, in order, until all has come."""
        try:
            while (items := self._next_items()) is not None:
                for item in items:
                    with self._step(item):
                        self._write(item)
                        if self._sharing is not None and not isinstance(item, TokenPart):
                            self._sharing.release(_video_of(item))
        finally:
            for job in tuple(self._open):
                self._close(job)

    def _next_items(self) -> list[TokenPart | End] | None:
        with self._tally.step("wait for tokens"):
            return self._tokens.get()

    def _step(self, item: TokenPart | End) -> Step:
        if isinstance(item, TokenPart):
            video_id, frames = item.job.video.id, len(item.pts_seconds)
            return self._tally.step("write", video_id, frames=frames)
        return self._tally.step("commit", _video_of(item).id)

    def _write(self, item: TokenPart | End) -> None:
        if isinstance(item, Failed):
            self._record(item)
        elif isinstance(item, Dropped):
            self._close(item.job)
        elif item.job.over.is_set():  # it failed in a later batch, or the run stops
            if isinstance(item, Finished):
                self._close(item.job)
        else:
            try:
                if isinstance(item, TokenPart):
                    self._append(item)
                else:
                    self._commit(item)
            except OSError:  # the disk refuses, for every video (StorageError is one)
                raise
            except (Vis4merError, ValueError) as error:  # values that cannot be stored
                self._record(item.job.fail("write", first_line(error)))

    def _append(self, part: TokenPart) -> None:
        job = part.job
        if job not in self._open:
            writer = self._cache.write_entry(
                job.video.id, source=job.source, overwrite=self._overwrite
            )
            writer.time_quantising(partial(self._tally.step, "quantise", job.video.id))
            self._open[job] = _OpenEntry(writer.__enter__())
        entry = self._open[job]
        if self._cache.spec.stored_dtype == "int8" and not entry.writer.num_frames:
            entry.held.append(part)
            if sum(len(held.pts_seconds) for held in entry.held) >= FIRST_FRAMES_INT8:
                _append_held(entry)
        else:
            _append_tokens(entry.writer, part)
        self._tally.add_frames(len(part.pts_seconds))

    def _commit(self, finished: Finished) -> None:
        job = finished.job
        entry = self._open.get(job)
        if entry is None:
            self._record(job.fail("decode", "no frame could be read"))
            return
        if entry.held:
            with self._tally.step("write", job.video.id):
                _append_held(entry)
        record = entry.writer.commit(
            duration_seconds=finished.duration_seconds,
            damaged_frames=finished.damaged_frames,
            provenance=self._provenance,
        )
        ours = record.attempt == entry.writer.attempt
        self._close(job)
        if ours:
            self._tally.add_extracted(job.video.id, damaged_frames=finished.damaged_frames)
        else:  # somebody was faster, and the first commit stands
            self._tally.add_already_there(job.video.id)

    def _close(self, job: VideoJob) -> None:
        """Let go of a job's entry; unless it was committed, nothing of it stays."""
        entry = self._open.pop(job, None)
        if entry is not None:
            entry.writer.__exit__(None, None, None)

    def _record(self, failed: Failed) -> None:
        if failed.job is not None:
            if failed.job in self._failed:  # another batch of the same video failed before
                return
            self._failed.add(failed.job)
            self._close(failed.job)
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
        self._tally.add_failure(record)


def _video_of(end: End) -> VideoSource:
    return end.video if isinstance(end, Failed) else end.job.video


def _append_tokens(writer: EntryWriter, part: TokenPart) -> None:
    writer.append({"patch": part.patch, "prefix": part.prefix}, part.pts_seconds.tolist())


def _append_held(entry: _OpenEntry) -> None:
    """Append the frames held back: exactly FIRST_FRAMES_INT8 of them first, then the others."""
    if not entry.held:
        return
    patch = np.concatenate([part.patch for part in entry.held])  # T h·w D
    prefix = np.concatenate([part.prefix for part in entry.held])  # T p D
    pts_seconds = np.concatenate([part.pts_seconds for part in entry.held])
    job = entry.held[0].job
    entry.held.clear()
    for chosen in (slice(0, FIRST_FRAMES_INT8), slice(FIRST_FRAMES_INT8, None)):
        if len(pts_seconds[chosen]):
            part = TokenPart(job, patch[chosen], prefix[chosen], pts_seconds[chosen])
            _append_tokens(entry.writer, part)
