"""What is to be done with each video before any frame is decoded: extract it, or leave it and why.

A video counts as done by its file, never by its name alone: equal size and modification time mean
the same file, otherwise its content's SHA-256 decides. Knows nothing of frames or backbones.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...store.cache import Cache
from ...store.errors import EntryNotFoundError
from ...store.failures import FailureRecord
from ...store.records import SourceRecord
from ..sources import VideoSource

_HASH_BLOCK_BYTES = 1 << 20


class SourceError(Exception):
    """The file itself cannot be looked at; the message is the reason, without the file's name."""


@dataclass(frozen=True, kw_only=True)
class FileState:
    """What a look at a file tells without reading it."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do with a video: `extract` it, or leave it because it is `done` (this very file is
    in the cache), `changed` (another file is; `overwrite` replaces it), `known-failure` or `held`
    (another worker is at it).

    file: as it was looked at. failure: there for `known-failure`.
    """

    action: Literal["extract", "done", "changed", "known-failure", "held"]
    file: FileState
    failure: FailureRecord | None = None


def decide(
    video: VideoSource,
    cache: Cache,
    *,
    known_failures: Mapping[str, FailureRecord],
    overwrite: bool,
) -> Decision:
    """Look at one video's file. SourceError when that is not possible.

    Reads it only where its content decides: when an entry's file has this size and another time.
    known_failures: by id, those that are not to be tried again while their file is unchanged.
    """
    file = look_at(video.path)
    if not overwrite:
        try:
            entry = cache.record(video.id).source
        except EntryNotFoundError:
            entry = None
        if entry is not None:
            same = file.size == entry.size and (
                file.mtime_ns == entry.mtime_ns or hash_file(video.path) == entry.sha256
            )
            return Decision(action="done" if same else "changed", file=file)
    failure = known_failures.get(video.id)
    if failure and file == FileState(size=failure.source_size, mtime_ns=failure.source_mtime_ns):
        return Decision(action="known-failure", file=file, failure=failure)
    return Decision(action="extract", file=file)


def source_record(video: VideoSource, file: FileState) -> SourceRecord:
    """What an entry says of its file, which is read for its SHA-256."""
    return SourceRecord(
        name=video.name, size=file.size, mtime_ns=file.mtime_ns, sha256=hash_file(video.path)
    )


def failures_to_keep(cache: Cache) -> dict[str, FailureRecord]:
    """The failures that trying again cannot mend while the file stays the same, by id.

    Those of the backbone and of writing have their cause elsewhere and are always tried again; so
    are files that could not even be looked at (size 0 in the record).
    """
    return {
        failure.id: failure
        for failure in cache.failures()
        if failure.stage in ("open", "decode") and failure.source_size
    }


def largest_first(videos: Sequence[VideoSource]) -> list[VideoSource]:
    """The order in which to read: a large file begun last would be read by one thread while the
    others have nothing left. Files of one size, or that cannot be looked at, keep their order."""

    def size(video: VideoSource) -> int:
        try:
            return look_at(video.path).size
        except SourceError:
            return 0

    return sorted(videos, key=size, reverse=True)


def look_at(path: Path) -> FileState:
    """The state of a regular file. SourceError when it is none, or cannot be looked at."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise SourceError("there is no such file") from error
    except OSError as error:
        raise SourceError(f"cannot be looked at: {error.strerror}") from error
    except ValueError as error:  # a NUL in its name
        raise SourceError(f"cannot be looked at: {error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise SourceError("is a directory, expected a video file")
    if not stat.S_ISREG(status.st_mode):
        raise SourceError("is no regular file, expected a video file")
    return FileState(size=status.st_size, mtime_ns=status.st_mtime_ns)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content. SourceError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_HASH_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}") from error
    return digest.hexdigest()
