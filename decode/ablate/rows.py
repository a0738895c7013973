"""What a sweep has found: a row for every finished run, and settings with means over their seeds.

A row follows from its run directory alone, and from what its setting was measured to take in
memory; nothing that it says is lost with `results.jsonl`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...store.fields import flatten
from ...store.tasks import Split, TaskKind
from ..judging.statistics import SeedStatistics
from ..runs.run import Run
from .sweep import CACHE, SEED, Point, Settings

Number = int | float


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One finished run.

    settings: what it has of the axes, without the seed; values as the run resolved them. score:
    accuracy (0 to 1) or mean squared error of the selected weights on `split`, the test split, or
    validation where there is no other; None, as all of its kind, where nothing was judged. correct:
    None for regression. num_tokens: of a full window. seconds, bytes_read: the run's share of its
    pass. memory_bytes: the peak of a training step, see `memory`; None while it is not measured.
    """

    run: str
    settings: Settings
    task: str
    seed: int
    kind: TaskKind
    split: Split | None
    score: float | None
    correct: int | None
    total: int
    floor: float | None
    epoch: int
    decoder: str
    tokens: str
    num_tokens: int
    window_seconds: float
    num_parameters: int
    seconds: float
    bytes_read: int
    memory_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def row_of(point: Point, run: Run, *, memory_bytes: int | None) -> SweepRow | None:
    """The row of a run directory; None while it is not finished."""
    result = run.results()
    if result is None:
        return None
    train, plan = run.about.train, run.about.plan
    judged = next((r for r in (result.test, result.val) if r is not None and r.total), None)
    classified = judged is not None and judged.kind == "classification"
    return SweepRow(
        run=point.name,
        settings=_resolved(point.settings, train.to_json()),
        task=train.task,
        seed=train.seed,
        kind=run.about.kind,
        split=None if judged is None else judged.split,
        score=None if judged is None else judged.figure,
        correct=judged.correct if judged is not None and classified else None,
        total=0 if judged is None else judged.total,
        floor=None if judged is None else judged.floor,
        epoch=result.epoch,
        decoder=train.decoder.name,
        tokens=str(plan.view),
        num_tokens=plan.shape.num_tokens,
        window_seconds=train.window_seconds,
        num_parameters=result.num_parameters,
        seconds=result.seconds,
        bytes_read=result.bytes_read,
        memory_bytes=memory_bytes,
    )


def _resolved(settings: Settings, config: Mapping[str, Any]) -> Settings:
    """Typed as the run has them: `1` of a command line and 1 of a file are one value."""
    flat = flatten(config)
    return {
        name: value if name == CACHE or flat.get(name) is None else flat[name]
        for name, value in settings.items()
        if name != SEED
    }


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs that differ in their seed alone; `rows` by seed, at least one, all judged."""

    rows: tuple[SweepRow, ...]

    @property
    def first(self) -> SweepRow:
        return self.rows[0]

    @property
    def figure(self) -> SeedStatistics:
        return SeedStatistics.of([row.score for row in self.rows if row.score is not None])

    @property
    def floor(self) -> float:
        """The same for all rows, which are judged on the same videos."""
        return self.first.floor or 0.0

    @property
    def memory_bytes(self) -> int | None:
        return self.first.memory_bytes

    @property
    def seconds(self) -> float:
        """Of one run, in the mean."""
        return sum(row.seconds for row in self.rows) / len(self.rows)

    @property
    def bytes_read(self) -> float:
        """Of one run, in the mean."""
        return sum(row.bytes_read for row in self.rows) / len(self.rows)

    def value(self, axis: str) -> str | Number | bool | None:
        """What the setting has on an axis; None where that is not one of its own."""
        return self.first.settings.get(axis)

    def to_json(self) -> dict[str, Any]:
        first = self.first
        return {
            "settings": dict(first.settings),
            "task": first.task,
            "split": first.split,
            "metric": metric_name(first.kind),
            "figure": self.figure.to_json(),
            "floor": self.floor,
            "seeds": [row.seed for row in self.rows],
            "num_tokens": first.num_tokens,
            "num_parameters": first.num_parameters,
            "memory_bytes": self.memory_bytes,
            "seconds": self.seconds,
            "bytes_read": self.bytes_read,
            "runs": [row.run for row in self.rows],
        }


def metric_name(kind: TaskKind) -> str:
    return "accuracy" if kind == "classification" else "mse"


def over_seeds(rows: Sequence[SweepRow]) -> tuple[Setting, ...]:
    """Settings in the order of their first rows; rows of which nothing was judged are left out."""
    alike: defaultdict[tuple[object, ...], list[SweepRow]] = defaultdict(list)
    for row in rows:
        if row.score is not None:
            alike[row.task, row.split, *row.settings.items()].append(row)
    return tuple(
        Setting(rows=tuple(sorted(same, key=lambda row: row.seed))) for same in alike.values()
    )


def axes_of(settings: Sequence[Setting]) -> tuple[str, ...]:
    """The names that any of the settings has, each once."""
    return tuple(dict.fromkeys(name for s in settings for name in s.first.settings))
