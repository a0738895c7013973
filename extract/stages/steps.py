"""What every thread of a run is at, step by step: working for its stage, or waiting for another.

    with steps.step("decode", video.id) as step:
        step.frames = decode(…)

A thread is at one step at a time: a step begun inside another interrupts it, so the steps of a
thread never overlap and their seconds can be added. Counts by step; what else is to be done with
each finished step, a `StepSink` knows. Knows neither videos nor files.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Literal, Protocol, Self

StageName = Literal["reading", "backbone", "writing"]
STAGES: tuple[StageName, ...] = ("reading", "backbone", "writing")

StepName = Literal[
    "claim",
    "hash",
    "open",
    "decode",
    "resize",
    "wait for room",
    "wait for frames",
    "assemble",
    "backbone",
    "copy to host",
    "wait for turn",
    "wait for tokens",
    "write",
    "quantise",
    "commit",
]
STAGE_OF: Mapping[StepName, StageName] = MappingProxyType(
    {
        "claim": "reading",  # is the video to be extracted, and by this run?
        "hash": "reading",
        "open": "reading",
        "decode": "reading",
        "resize": "reading",
        "wait for room": "reading",
        "wait for frames": "backbone",
        "assemble": "backbone",
        "backbone": "backbone",
        "copy to host": "backbone",
        "wait for turn": "backbone",  # tokens leave in the order of their batches
        "wait for tokens": "writing",
        "write": "writing",
        "quantise": "writing",
        "commit": "writing",
    }
)
WAITS: frozenset[StepName] = frozenset(
    ("wait for room", "wait for frames", "wait for turn", "wait for tokens")
)


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """All of one step: thread-seconds in `times` pieces, and the frames that were dealt with.

    cpu_seconds: those in which the thread had a core; a device, or threads of a library, may work
    without it.
    """

    step: StepName
    stage: StageName
    waits: bool
    seconds: float
    cpu_seconds: float
    times: int
    frames: int


class StepSink(Protocol):
    """Told of every piece of a step when it has ended. May be called from several threads at once,
    and raises nothing: it is called in the middle of a video's work."""

    def add(self, step: Step, *, began_ns: int, ended_ns: int, frames: int) -> None: ...


class Step:
    """A step under way; a context manager. frames: may be set while it lasts."""

    __slots__ = ("_outer", "_steps", "began_cpu_ns", "began_ns", "frames", "name", "videos")

    def __init__(self, steps: Steps, name: StepName, videos: tuple[str, ...], frames: int) -> None:
        self._steps = steps
        self._outer: Step | None = None
        self.name = name
        self.videos = videos
        self.frames = frames
        self.began_ns = self.began_cpu_ns = 0

    def __enter__(self) -> Self:
        self._outer = self._steps.begin(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What an error ended has dealt with no frame.
        self._steps.end(self, self._outer, frames=0 if kind else self.frames)


class Steps:
    """The steps of all threads of a run. Times are of the monotonic clock."""

    def __init__(self, sink: StepSink | None = None) -> None:
        self._sink = sink
        self._lock = threading.Lock()
        self._current: dict[int, Step] = {}
        self._nanoseconds: Counter[StepName] = Counter()
        self._cpu_nanoseconds: Counter[StepName] = Counter()
        self._times: Counter[StepName] = Counter()
        self._frames: Counter[StepName] = Counter()

    @property
    def recorded(self) -> bool:
        """Is every single step kept by somebody?"""
        return self._sink is not None

    def step(self, name: StepName, *videos: str, frames: int = 0) -> Step:
        """What this thread does next, for which videos, with how many frames of them."""
        return Step(self, name, videos, frames)

    def begin(self, step: Step) -> Step | None:
        """The step that this one interrupts, if any."""
        thread, now, cpu = threading.get_ident(), time.monotonic_ns(), time.thread_time_ns()
        with self._lock:
            outer = self._current.get(thread)
            if outer is not None:
                self._count(outer, now, cpu, frames=0)
            step.began_ns, step.began_cpu_ns = now, cpu
            self._current[thread] = step
        if outer is not None:
            self._tell(outer, now, frames=0)
        return outer

    def end(self, step: Step, outer: Step | None, *, frames: int) -> None:
        """The step is over, and `outer` goes on."""
        thread, now, cpu = threading.get_ident(), time.monotonic_ns(), time.thread_time_ns()
        with self._lock:
            self._count(step, now, cpu, frames=frames)
            if outer is None:
                del self._current[thread]
            else:
                outer.began_ns, outer.began_cpu_ns = now, cpu
                self._current[thread] = outer
        self._tell(step, now, frames=frames)

    def busy_seconds(self) -> dict[StageName, float]:
        """Thread-seconds of work for each stage until now, the steps under way counted in."""
        with self._lock:
            now, nanoseconds = time.monotonic_ns(), self._nanoseconds.copy()
            for step in self._current.values():
                nanoseconds[step.name] += now - step.began_ns
        busy = dict.fromkeys(STAGES, 0.0)
        for name, taken in nanoseconds.items():
            if name not in WAITS:
                busy[STAGE_OF[name]] += taken / 1e9
        return busy

    def times(self) -> tuple[StepTimes, ...]:
        """Every step that there was, in the order in which a frame meets them."""
        with self._lock:
            return tuple(
                StepTimes(
                    step=name,
                    stage=stage,
                    waits=name in WAITS,
                    seconds=self._nanoseconds[name] / 1e9,
                    cpu_seconds=self._cpu_nanoseconds[name] / 1e9,
                    times=self._times[name],
                    frames=self._frames[name],
                )
                for name, stage in STAGE_OF.items()
                if self._times[name]
            )

    def _count(self, step: Step, now: int, cpu: int, *, frames: int) -> None:
        self._nanoseconds[step.name] += now - step.began_ns
        self._cpu_nanoseconds[step.name] += cpu - step.began_cpu_ns
        self._times[step.name] += 1
        self._frames[step.name] += frames

    def _tell(self, step: Step, now: int, *, frames: int) -> None:
        if self._sink is not None:
            self._sink.add(step, began_ns=step.began_ns, ended_ns=now, frames=frames)
