"""Decoders in alternation: each in a process of its own, one at work at a time.

    round 0   a b c       A busy moment slows all of them, and as each has every place in turn,
    round 1   b c a       none always finds what another has just warmed. First come the turns of
    round 2   c a b       the forward pass, then those of the training step.
    round 3   c b a …

What cannot fit is not begun: memory that attention will need at the least is known before. What
does not fit nonetheless ends its own process and no other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, TypeVar

from ...store.errors import UsageError
from ...store.views import TokenView
from ..data.batch import TokenShape
from ..device import Compute
from .memory import Peak
from .records import BenchRequest, BenchResult, BenchRow, Cost, Status
from .subjects import BenchSubject, view_shape
from .worker import (
    BenchFailedError,
    BenchMemoryError,
    ChildWorker,
    Turn,
    Work,
    Worker,
)

T = TypeVar("T")
Start = Callable[[Mapping[str, Any]], Worker]
Report = Callable[[str], None]

WORKS: tuple[Work, ...] = ("forward", "train")
WORDS: Mapping[Work, str] = {"forward": "forward pass", "train": "training step"}


def run_bench(
    request: BenchRequest, *, start: Start = ChildWorker.start, report: Report | None = None
) -> BenchResult:
    """Measure every decoder at every token view. report: told what is being done.

    UsageError for a device that is not here. What a decoder refuses, fails at or has no memory for
    is said in its row.
    """
    compute = Compute.of(device=request.device, precision=request.precision)
    rows: list[BenchRow] = []
    machine: Mapping[str, Any] = {}
    for view in request.views:
        with ExitStack() as stack:
            entrants = [_Entrant(subject, view, request, compute) for subject in request.subjects]
            for entrant in entrants:
                stack.callback(entrant.close)
                entrant.begin(start)
                machine = machine or entrant.machine
            _measure(entrants, request, report or (lambda _: None))
            rows += [entrant.row() for entrant in entrants]
    return BenchResult(
        request=request,
        device=str(compute.device),
        precision=compute.precision,
        machine=machine,
        rows=tuple(rows),
    )


def turn_order(count: int, round_number: int) -> list[int]:
    """In which order `count` decoders have their turns: each place once in `count` rounds, then the
    same backwards, so that none always follows the same other.

    >>> [turn_order(2, r) for r in range(4)]
    [[0, 1], [1, 0], [1, 0], [0, 1]]
    """
    if count == 0:
        return []
    first = round_number % count
    order = [*range(first, count), *range(first)]
    return order[::-1] if round_number // count % 2 else order


class _Entrant:
    """One decoder at one view, as far as it has come. `status`: why it stopped, or measured."""

    def __init__(
        self, subject: BenchSubject, view: TokenView, request: BenchRequest, compute: Compute
    ) -> None:
        self.subject = subject
        self.status: Status = "measured"
        self.machine: Mapping[str, Any] = {}
        self._view = view
        self._shape: TokenShape = view_shape(view, dim=request.dim)
        self._request = request
        self._compute = compute
        self._reason = ""
        self._worker: Worker | None = None
        self._num_parameters: int | None = None
        self._limit: int | None = None
        self._turns: list[Turn] = []
        self._costs: dict[Work, Cost] = {}

    @property
    def running(self) -> bool:
        return self._worker is not None

    def begin(self, start: Start) -> None:
        question = {
            "decoder": {"name": self.subject.name, **self.subject.options},
            "shape": asdict(self._shape),
            "batch_size": self._request.batch_size,
            "device": str(self._compute.device),
            "precision": self._compute.precision,
        }
        worker = self._attempt(lambda: start(question), "being built")
        if worker is not None:
            self._worker = worker
            self._num_parameters = worker.about.num_parameters
            self.machine = worker.about.machine

    def set_limit(self) -> None:
        if (worker := self._worker) is not None:
            self._limit = self._attempt(
                lambda: worker.limit(self._request.max_bytes), "setting a limit"
            )

    def admit(self, work: Work) -> None:
        """Skip what will need more than the limit, before anything is lost to it."""
        if self._worker is None:
            return
        least, limit = self._worker.about.least_bytes[work], self._limit
        if limit is not None and least > limit:
            asked = "are free" if self._request.max_bytes is None else "is --max-memory"
            reason = (
                f"the {WORDS[work]} needs at least {least / 1e9:.1f} GB and {limit / 1e9:.1f} GB "
                f"{asked}"
            )
            self._stop("skipped", reason)

    def turn(self, work: Work, *, timed: bool) -> None:
        if (worker := self._worker) is None:
            return
        turn = self._attempt(lambda: worker.turn(work), f"the {WORDS[work]}")
        if turn is not None and timed:
            self._turns.append(turn)

    def finish(self, work: Work) -> None:
        """The medians of the turns so far, and the peak since the last work."""
        turns, self._turns = self._turns, []
        if (worker := self._worker) is None or not turns:
            return
        peak = self._attempt(worker.peak, "reading its peak")
        if peak is not None:
            self._costs[work] = _cost(turns, peak, batch_size=self._request.batch_size)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def row(self) -> BenchRow:
        return BenchRow(
            subject=self.subject,
            view=self._view,
            num_tokens=self._shape.num_tokens,
            status=self.status,
            reason=self._reason,
            num_parameters=self._num_parameters,
            forward=self._costs.get("forward"),
            train=self._costs.get("train"),
        )

    def _attempt(self, function: Callable[[], T], what: str) -> T | None:
        """What the worker says; None once it has ended, for a reason that the row will have."""
        try:
            return function()
        except BenchMemoryError as error:
            self._stop("out of memory", f"{what}: {error}")
        except BenchFailedError as error:
            self._stop("failed", f"{what}: {error}")
        except UsageError as error:
            self._stop("skipped", str(error))
        return None

    def _stop(self, status: Status, reason: str) -> None:
        self.status, self._reason = status, reason
        self.close()


def _measure(entrants: Sequence[_Entrant], request: BenchRequest, report: Report) -> None:
    for entrant in entrants:  # once all are built: what is free is what they leave
        entrant.set_limit()
    for work in WORKS:
        for entrant in entrants:
            entrant.admit(work)
        entered = [entrant for entrant in entrants if entrant.running]
        rounds = request.warm_up + request.repeats
        for number in range(rounds):
            for i in turn_order(len(entered), number):
                entrant = entered[i]
                report(
                    f"{entrant.row().view} {WORDS[work]}, round {number + 1}/{rounds}: "
                    f"{entrant.subject.label}"
                )
                entrant.turn(work, timed=number >= request.warm_up)
        for entrant in entered:
            entrant.finish(work)


def _cost(turns: Sequence[Turn], peak: Peak, *, batch_size: int) -> Cost:
    seconds = statistics.median(turn.seconds for turn in turns)
    return Cost(
        seconds=seconds,
        cpu_seconds=statistics.median(turn.cpu_seconds for turn in turns),
        samples_per_second=batch_size / seconds,
        peak_bytes=peak.bytes,
        reserved_bytes=peak.reserved,
    )
