"""A sweep from its plan to its rows: trains what is not finished, then measures what it takes.

Killed at any moment, the same call goes on: finished runs are kept, begun ones continue after their
last epoch. A run that fails is named with the reason and tried again by the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...store.cache import Cache
from ...store.errors import Vis4merError
from ..runs.run import lock_run, open_run
from .devices import run_passes
from .directory import append_row, claim, write_rows
from .memory import Measure, MemoryBook, Request, memory_request, training_step_bytes
from .passes import OnText, PassDone, SweepProgress
from .plan import SweepPlan, spread
from .rows import Setting, SweepRow, over_seeds, row_of
from .sweep import Point

OnRow = Callable[[SweepRow], None]


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep has come to.

    rows: of finished runs, in the order of the points. failed: by name, why a run has no row.
    notes: what else should be known.
    """

    folder: Path
    rows: tuple[SweepRow, ...]
    failed: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Rows over seeds."""
        return over_seeds(self.rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "run": str(self.folder),
            "settings": [setting.to_json() for setting in self.settings],
            "runs": [row.to_json() for row in self.rows],
            "failed": dict(self.failed),
            "notes": list(self.notes),
        }


def run_sweep(
    plan: SweepPlan,
    points: Sequence[Point],
    caches: Mapping[str, Cache],
    folder: Path,
    *,
    devices: Sequence[str],
    memory: bool = True,
    measure: Measure = training_step_bytes,
    on_row: OnRow | None = None,
    on_text: OnText | None = None,
) -> SweepResult:
    """Train a sweep in `folder`, of which `directory.require_own_sweep` has been asked.

    devices: names for torch; a pass is trained on each at a time. memory: measure every setting's
    training step, on the first device. on_row: a run has finished. Vis4merError when another
    process is at work there.
    """
    tell = on_text or (lambda _: None)
    with lock_run(folder):
        claim(folder, points, caches)
        rows = _Rows(folder, points, device=devices[0], on_row=on_row or (lambda _: None))
        run_passes(
            spread(plan.passes, len(devices)), devices=devices, on_done=rows.done, on_text=tell
        )
        notes = rows.measure(measure, tell, device=devices[0]) if memory else []
        rows.write()
    refused = {name: str(error) for name, error in plan.refused.items()}
    return SweepResult(
        folder=folder,
        rows=tuple(rows.found.values()),
        failed={**refused, **rows.failed},
        notes=tuple(notes),
    )


class _Rows:
    """The rows of a sweep, and what has failed, by the names of the points."""

    def __init__(
        self, folder: Path, points: Sequence[Point], *, device: str, on_row: OnRow
    ) -> None:
        self.found: dict[str, SweepRow] = {}
        self.failed: dict[str, str] = {}
        self._folder = folder
        self._points = {point.name: point for point in points}
        self._device = device
        self._on_row = on_row
        self._book = MemoryBook(folder)
        for name in self._points:
            self._read(name)
        self.write()

    def done(self, done: PassDone) -> None:
        """Some runs have ended."""
        for run in done.runs:
            if run in done.failed:
                self.failed[run.name] = done.failed[run]
            elif (row := self._read(run.name)) is not None:
                append_row(self._folder, row)
                self._on_row(row)

    def measure(self, measure: Measure, tell: OnText, *, device: str) -> list[str]:
        """The memory of every finished run's setting; why some have none."""
        torch.cuda.empty_cache()  # the processes that measure need the room

        def on_measure(done: int, total: int) -> None:
            tell(SweepProgress(device=device, text=f"measuring memory {done}/{total}"))

        requests = [self._request(name) for name in self.found]
        notes = self._book.measure(requests, measure=measure, on_measure=on_measure)
        for name in list(self.found):
            self._read(name)
        return notes

    def write(self) -> None:
        """results.jsonl, in the order of the points."""
        self.found = {name: self.found[name] for name in self._points if name in self.found}
        write_rows(self._folder, self.found.values())

    def _request(self, name: str) -> Request:
        return memory_request(open_run(self._folder / name).about, device=self._device)

    def _read(self, name: str) -> SweepRow | None:
        """The row of a run directory, where there is a finished one that can be read."""
        folder = self._folder / name
        if not (folder / "results.json").exists():
            return None
        try:
            memory = self._book.bytes_of(self._request(name))
            row = row_of(self._points[name], open_run(folder), memory_bytes=memory)
        except Vis4merError as error:
            self.failed[name] = str(error)
            return None
        if row is not None:
            self.found[name] = row
        return row
