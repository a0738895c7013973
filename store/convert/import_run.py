"""One run of an import: which arrays are there already, which are written, which fail and why.

Memory holds a block of frames, whatever a file holds. Knows nothing of what was asked for in which
words.
"""

from __future__ import annotations

import hashlib
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ..cache import Cache
from ..errors import EntryNotFoundError, Vis4merError, exit_code_of
from ..failures import FailureRecord, Stage
from ..quantise import FIRST_FRAMES_INT8
from ..records import SourceRecord
from ..wording import first_line
from .arrays import (
    FrameTimes,
    OnProgress,
    RefusedArrayError,
    TokenArray,
    block_bounds,
    require_floats,
)
from .formats import open_arrays
from .layouts import TokenLayout
from .sources import ArraySource, UnreadableSource

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What a run of `import_tokens` did; every array named is in exactly one of the first five.

    changed: ids whose file differs from the one in the cache, left as they are. left: not looked
    at, because of `limit` or of a stop. frames: imported. assumed_times: videos of which no file
    says when their frames are, so that frame k is taken to be at k / fps. notes: what a user must
    know, one line each.
    """

    imported: tuple[str, ...]
    already_there: int
    changed: tuple[str, ...]
    failures: tuple[FailureRecord, ...]
    left: int
    frames: int
    seconds: float
    interrupted: bool
    layout: str
    stored_dtype: str
    fps: float
    assumed_times: int
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 when every array named is in the cache, 3 when some failed, 1 when all did or the run
        was stopped."""
        done = bool(self.imported or self.already_there or self.changed)
        return exit_code_of(failed=self.failures, done=done, interrupted=self.interrupted)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}


class _StoppedError(Exception):
    """Somebody wishes the run to end; the entry in hand is dropped."""


@dataclass
class _Tally:
    attempted: int = 0
    imported: list[str] = field(default_factory=list)
    already_there: int = 0
    changed: list[str] = field(default_factory=list)
    failures: list[FailureRecord] = field(default_factory=list)
    left: int = 0
    frames: int = 0
    assumed_times: int = 0
    interrupted: bool = False


class ImportRun:
    """One run: file after file, array after array."""

    def __init__(
        self,
        cache: Cache,
        layout: TokenLayout,
        *,
        overwrite: bool,
        limit: int | None,
        keep_times: bool,
        stop: threading.Event | None,
        progress: OnProgress | None,
    ) -> None:
        """keep_times: the times that a file states of its frames, instead of assumed ones."""
        self._cache = cache
        self._keep_times = keep_times
        self._layout = layout
        self._overwrite = overwrite
        self._limit = limit
        self._stop = stop or threading.Event()
        self._progress = progress
        self._tally = _Tally()
        self._hashes: dict[Path, str] = {}
        self._started = time.monotonic()
        self._time = datetime.now(UTC).isoformat(timespec="seconds")

    def take(self, arrays: Sequence[ArraySource], unreadable: Sequence[UnreadableSource]) -> None:
        """Import what is not there yet; the catalog is brought up to date at the end."""
        for failed in unreadable:
            self._fail(failed.id, failed.path, str(failed.path), "open", failed.reason)
        done = 0
        for path, group in groupby(arrays, key=lambda array: array.path):
            of_file = list(group)
            wanted = [array for array in of_file if self._is_wanted(array)]
            self._take_file(path, wanted, done=done, total=len(arrays))
            done += len(of_file)
        if self._tally.imported:
            self._cache.write_catalog()

    def summary(self) -> ImportSummary:
        tally, spec = self._tally, self._cache.spec
        return ImportSummary(
            imported=tuple(tally.imported),
            already_there=tally.already_there,
            changed=tuple(tally.changed),
            failures=tuple(tally.failures),
            left=tally.left,
            frames=tally.frames,
            seconds=time.monotonic() - self._started,
            interrupted=tally.interrupted,
            layout=self._layout.describe(),
            stored_dtype=spec.stored_dtype,
            fps=spec.sampling.fps,
            assumed_times=tally.assumed_times,
        )

    def _is_wanted(self, array: ArraySource) -> bool:
        """Is it not in the cache yet? Equal size and time mean the same file, else its SHA-256."""
        if self._overwrite:
            return True
        try:
            entry = self._cache.record(array.id).source
        except EntryNotFoundError:
            return True
        try:
            file = array.path.stat()
            same = file.st_size == entry.size and (
                file.st_mtime_ns == entry.mtime_ns or self._hash(array.path) == entry.sha256
            )
        except OSError as error:
            self._fail(array.id, array.path, array.shown, "open", first_line(error))
            return False
        if same:
            self._tally.already_there += 1
        else:
            self._tally.changed.append(array.id)
        return False

    def _take_file(
        self, path: Path, wanted: Sequence[ArraySource], *, done: int, total: int
    ) -> None:
        if not wanted:
            return
        try:
            with open_arrays(path) as held:
                by_name = {array.name: array for array in held}
                for i, array in enumerate(wanted):
                    if self._progress is not None:
                        self._progress(done + i, total, array.id)
                    self._take_one(array, by_name.get(array.name))
        except RefusedArrayError as error:  # it could be opened a moment ago
            for array in wanted:
                self._fail(array.id, path, array.shown, "open", str(error))

    def _take_one(self, array: ArraySource, held: TokenArray | None) -> None:
        tally = self._tally
        if self._stop.is_set() or tally.attempted == self._limit:
            tally.interrupted = self._stop.is_set()
            tally.left += 1
            return
        tally.attempted += 1
        stage: Stage = "open"
        try:
            if held is None or held.shape != array.shape:
                raise RefusedArrayError("the file has just changed; run the same command again")
            require_floats(held.dtype)
            self._layout.require(held.shape)
            stage = "decode"
            self._write(array, held)
        except _StoppedError:
            tally.interrupted = True
            tally.left += 1
        except OSError:  # the cache refuses, for every video: what the source does is refused
            raise
        except (RefusedArrayError, Vis4merError) as error:
            stage = stage if isinstance(error, RefusedArrayError) else "write"
            self._fail(array.id, array.path, array.shown, stage, first_line(error))
        else:
            tally.imported.append(array.id)
            tally.frames += array.shape[0]

    def _write(self, array: ArraySource, held: TokenArray) -> None:
        """The entry, block by block. RefusedArrayError, or Vis4merError for unstorable values."""
        num_frames = array.shape[0]
        times, said = self._times(held, num_frames)
        first = FIRST_FRAMES_INT8 if self._cache.spec.stored_dtype == "int8" else None
        frame_bytes = 8 * self._layout.num_tokens * self._layout.dim
        bounds = list(
            block_bounds(num_frames, frames=max(1, _BLOCK_BYTES // frame_bytes), first=first)
        )
        source = self._source(array)
        with self._cache.write_entry(array.id, source=source, overwrite=self._overwrite) as writer:
            for (start, stop), block in zip(bounds, _read(held, bounds), strict=True):
                if self._stop.is_set():
                    raise _StoppedError
                writer.append(self._layout.split(block), times.pts_seconds[start:stop])
            writer.commit(
                duration_seconds=times.duration_seconds,
                provenance={**self._provenance(array), "timestamps": said},
            )

    def _times(self, held: TokenArray, num_frames: int) -> tuple[FrameTimes, str]:
        """When the frames are, and how that is known."""
        if self._keep_times and held.times and len(held.times.pts_seconds) == num_frames:
            return held.times, "of the file"
        fps = self._cache.spec.sampling.fps
        assumed = FrameTimes(
            pts_seconds=tuple(frame / fps for frame in range(num_frames)),
            duration_seconds=num_frames / fps,
        )
        self._tally.assumed_times += 1
        return assumed, f"assumed, frame / {fps:g}"

    def _source(self, array: ArraySource) -> SourceRecord:
        try:
            file = array.path.stat()
            sha256 = self._hash(array.path)
        except OSError as error:
            raise RefusedArrayError(f"cannot be read: {error.strerror}") from error
        return SourceRecord(
            name=array.shown, size=file.st_size, mtime_ns=file.st_mtime_ns, sha256=sha256
        )

    def _hash(self, path: Path) -> str:
        """SHA-256 of a file, read once for all its arrays."""
        if path not in self._hashes:
            with path.open("rb") as file:
                self._hashes = {path: hashlib.file_digest(file, "sha256").hexdigest()}
        return self._hashes[path]

    def _provenance(self, array: ArraySource) -> dict[str, str]:
        return {
            "vis4mer": __version__,
            "imported from": f"{array.format}, {array.dtype}",
            "host": platform.node(),
            "time": self._time,
        }

    def _fail(self, entry_id: str, path: Path, name: str, stage: Stage, reason: str) -> None:
        try:
            file = path.stat()
            size, mtime_ns = file.st_size, file.st_mtime_ns
        except OSError:
            size = mtime_ns = 0
        failure = FailureRecord(
            id=entry_id,
            stage=stage,
            reason=f"{name}: {reason}",
            source_name=name,
            source_size=size,
            source_mtime_ns=mtime_ns,
            time=self._time,
        )
        self._cache.record_failure(failure)
        self._tally.failures.append(failure)


def _read(array: TokenArray, bounds: Sequence[tuple[int, int]]) -> Iterator[NDArray[Any]]:
    """Blocks of an array, finite and complete; RefusedArrayError says what is wrong with it."""
    frame = 0
    try:
        blocks = iter(array.blocks(bounds))
        for start, stop in bounds:
            frame = start
            block = next(blocks)
            if block.shape != (stop - start, *array.shape[1:]):
                raise RefusedArrayError(f"ends after frame {start}; cut off?")
            _require_finite(block, start)
            yield block
    except (GeneratorExit, RefusedArrayError):
        raise
    except Exception as error:  # every library has its own kinds for a damaged file
        raise RefusedArrayError(
            f"cannot be read from frame {frame} on ({type(error).__name__}: {first_line(error)})"
        ) from error


def _require_finite(block: NDArray[Any], start: int) -> None:
    finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)  # t
    if not finite.all():
        raise RefusedArrayError(
            f"frame {start + int(np.argmin(finite))} holds a value that is not a finite number"
        )
