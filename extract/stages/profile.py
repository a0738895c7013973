"""Where the time of a run went: every step of every thread in a file, and their sums.

    with recorded(Path("steps.json")) as trace:
        steps = Steps(trace)
        …
    profile_of(steps.times(), …).limit

The file is in Chrome's trace event format, which https://ui.perfetto.dev and chrome://tracing show,
one row a thread. Steps go to the disk as they end, so memory does not grow with the run. Knows
nothing of what is done in a step.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...store.errors import UsageError
from ...store.files import StorageError, replacing
from .steps import STAGE_OF, STAGES, WAITS, StageName, Step, StepTimes

SHORTEST_WAIT_NS = 20_000  # a shorter one is no waiting, and is only counted
MAX_NAMED_VIDEOS = 32  # of one batch, in the file


@dataclass(frozen=True, kw_only=True)
class StageProfile:
    """One stage: thread-seconds of its threads, in which they worked and waited for another stage.

    cpu_seconds: of the work, those with a core: where cores are shared, or a device does the work,
    they are fewer. frames_per_second: what its threads would do if they never waited, None when it
    did nothing.
    """

    stage: StageName
    threads: int
    busy_share: float
    busy_seconds: float
    cpu_seconds: float
    waited_seconds: float
    frames_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class ExtractProfile:
    """The sums of a profile. path: its file. limit: the stage that set the pace, None when no frame
    was extracted. efficiency: the pace of the run as a part of that stage's alone."""

    path: str
    limit: StageName | None
    efficiency: float | None
    stages: tuple[StageProfile, ...]
    steps: tuple[StepTimes, ...]


def profile_of(
    times: Sequence[StepTimes],
    *,
    path: Path,
    threads: Mapping[StageName, int],
    frames: int,
    seconds: float,
) -> ExtractProfile:
    """What the steps of a run come to. frames, seconds: those of the whole run."""
    stages = tuple(
        _stage_profile(
            stage,
            [each for each in times if each.stage == stage],
            threads=threads[stage],
            frames=frames,
            seconds=seconds,
        )
        for stage in STAGES
    )
    alone: dict[StageName, float] = {
        each.stage: each.frames_per_second for each in stages if each.frames_per_second
    }
    slowest = sorted(alone, key=lambda stage: alone[stage])[:1]
    limit = slowest[0] if slowest else None
    return ExtractProfile(
        path=str(path),
        limit=limit,
        efficiency=frames / seconds / alone[limit] if limit is not None else None,
        stages=stages,
        steps=tuple(times),
    )


def _stage_profile(
    stage: StageName, times: Sequence[StepTimes], *, threads: int, frames: int, seconds: float
) -> StageProfile:
    busy = sum(each.seconds for each in times if not each.waits)
    return StageProfile(
        stage=stage,
        threads=threads,
        busy_share=min(1.0, busy / (threads * seconds)) if seconds > 0 else 0.0,
        busy_seconds=busy,
        cpu_seconds=sum(each.cpu_seconds for each in times if not each.waits),
        waited_seconds=sum(each.seconds for each in times if each.waits),
        frames_per_second=frames * threads / busy if frames and busy else None,
    )


def require_profile_path(path: Path) -> None:
    """UsageError for a place where no profile can be put, before any work is done."""
    if path.is_dir():
        raise UsageError(f"--profile {path} is a directory, expected the name of a .json file")
    if path.suffix != ".json":
        raise UsageError(f"--profile {path}: expected a name that ends with .json")
    if not path.parent.is_dir():
        raise UsageError(f"--profile {path}: there is no directory {path.parent}; make it first")


@contextlib.contextmanager
def recorded(path: Path) -> Iterator[TraceFile]:
    """A trace that appears under `path` at the end, also when the block ends with an error.

    StorageError when the file cannot be written; that is raised at the end too, for it must not
    spoil the work that is being recorded, and not when that ended with an error of its own.
    """
    failure: BaseException | None = None
    try:
        with replacing(path) as file:
            trace = TraceFile(file)
            try:
                yield trace
            except BaseException as error:  # raised again when the file is whole
                failure = error
            trace.finish()
    except OSError as error:
        if failure is None:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    if failure is not None:
        raise failure


class TraceFile:
    """A `StepSink` that writes one event for each piece of a step."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._began_ns = time.monotonic_ns()
        self._rows: dict[str, int] = {}  # by the thread's name: a number is used again
        self._error: OSError | None = None
        process = {"name": "process_name", "ph": "M", "pid": os.getpid()}
        first = {**process, "args": {"name": "vis4mer extract"}}
        self._write(b'{"displayTimeUnit": "ms", "traceEvents": [\n' + _line(first))

    def add(self, step: Step, *, began_ns: int, ended_ns: int, frames: int) -> None:
        """Write what the calling thread has done; OSError only at `finish`."""
        waits = step.name in WAITS
        if waits and ended_ns - began_ns < SHORTEST_WAIT_NS:
            return
        about: dict[str, object] = {"frames": frames} if frames else {}
        if len(step.videos) == 1:
            about["video"] = step.videos[0]
        elif step.videos:
            about["videos"] = step.videos[:MAX_NAMED_VIDEOS]
        event = {
            "name": step.name,
            "cat": "wait" if waits else STAGE_OF[step.name],
            "ph": "X",
            "pid": os.getpid(),
            "ts": (began_ns - self._began_ns) / 1000,  # microseconds, as `dur`
            "dur": (ended_ns - began_ns) / 1000,
            "args": about,
        }
        thread = threading.current_thread()
        with self._lock:
            row = self._rows.get(thread.name) or self._add_row(thread.name)
            self._write(b",\n" + _line({**event, "tid": row}))

    def finish(self) -> None:
        """Close the list of events. OSError when any of them could not be written."""
        with self._lock:
            self._write(b"\n]}\n")
            if self._error is not None:
                raise self._error

    def _add_row(self, thread: str) -> int:
        """A row with the thread's name, in the order in which rows begin."""
        row = self._rows[thread] = len(self._rows) + 1
        about = {"ph": "M", "pid": os.getpid(), "tid": row}
        named = {"name": "thread_name", **about, "args": {"name": thread}}
        self._write(b",\n" + _line(named))
        return row

    def _write(self, data: bytes) -> None:
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error


def _line(event: Mapping[str, object]) -> bytes:
    return json.dumps(event).encode()
