"""Whose steps a pass was busy with, so that its time can be told of each of its runs, and how long
it waited for what they read.

Knows steps by the number of their run, and nothing of what they do.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from ..data.ahead import Stopwatch


class StepClock:
    """Times of the steps of several runs, taken in turns on one device.

    On a GPU its own clock is used, and read at the end: the host only hands steps over, and has to
    wait in those of whoever comes when the queue is full.
    """

    def __init__(self, device: torch.device, num_runs: int) -> None:
        self._device = device
        self._seconds = [0.0] * num_runs
        self._marks: list[tuple[int, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def step(self, run: int) -> Iterator[None]:
        """Around a step of a run."""
        if self._device.type == "cuda":
            began, ended = _mark(), _mark()
            began.record(torch.cuda.current_stream(self._device))
            yield
            ended.record(torch.cuda.current_stream(self._device))
            self._marks.append((run, began, ended))
        else:
            start = time.perf_counter()
            yield
            self._seconds[run] += time.perf_counter() - start

    def shares(self) -> list[float]:
        """By run, its part of the time of all steps so far; equal parts where there was none."""
        if self._marks:
            torch.cuda.synchronize(self._device)
        for run, began, ended in self._marks:
            self._seconds[run] += began.elapsed_time(ended) / 1e3
        self._marks = []
        total = sum(self._seconds)
        if total == 0:
            return [1 / len(self._seconds)] * len(self._seconds)
        return [seconds / total for seconds in self._seconds]


class Stalls:
    """How much of the time since it was made was spent waiting for what is read."""

    def __init__(self) -> None:
        self.waiting = Stopwatch()
        self._start = time.perf_counter()

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.waiting.seconds / max(time.perf_counter() - self._start, 1e-9)


def _mark() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
