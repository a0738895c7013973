"""Runs that differ in their seed alone become one row; means are over seeds, never over anything
else.

Two runs share a row when they agree in the whole resolved config but for the task, the seed and
where and how fast they were computed, and in the settings of the cache. They share a cell of it
when they also judged the same task on the same videos. Knows how no table looks.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...store.fields import flatten
from ...store.tasks import TaskKind
from ..judging.coverage import Coverage
from ..judging.metrics import EvaluationResult, VideoPrediction
from ..judging.statistics import Interval, SeedStatistics, bootstrap_interval
from ..runs.results import Weights
from ..training.departures import OF_A_RUN
from ..training.protocols import extraction_note
from .collect import LeftOut, RunFacts
from .labels import protocol_text, row_labels

VideoKey = tuple[str, float, int]  # id, label, and how many rows of both came before


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """The figure over the test videos whose group has no training row.

    num_videos: how many of the judged ones these are; figure, interval and floor are None for 0.
    """

    num_videos: int
    correct: tuple[int, ...]
    figure: SeedStatistics | None
    interval: Interval | None
    floor: float | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row's figure on one task, over seeds: accuracy (0 to 1), or mean squared error.

    runs: by seed, at least one. figure: of the weights that the config selects. best, last: of the
    best validation epoch and of the last one; None where not all runs judged them. interval: 95 %
    bootstrap over videos of what each counts in the mean over seeds. unseen: None where no test
    video's group was trained on. best_test: of the epoch that was best on the test split, no
    result and shown under that name alone; None where not all runs looked for it.
    """

    task: str
    runs: tuple[RunFacts, ...]
    figure: SeedStatistics
    best: SeedStatistics | None
    last: SeedStatistics | None
    best_test: SeedStatistics | None
    interval: Interval | None
    unseen: Unseen | None

    @property
    def kind(self) -> TaskKind:
        return self._any.kind

    @property
    def coverage(self) -> Coverage:
        """The same for all runs of a cell."""
        return self._any.coverage

    @property
    def total(self) -> int:
        """N: the judged videos."""
        return self._any.total

    @property
    def floor(self) -> float:
        """Share of the most frequent class, or the squared error of predicting zero."""
        return self._any.floor

    @property
    def correct(self) -> tuple[int, ...]:
        """k of each run, by seed; empty for regression."""
        return tuple(r.test.correct for r in self.runs) if self.kind == "classification" else ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def notes(self) -> tuple[str, ...]:
        """What any of its runs wants known, each once."""
        return tuple(dict.fromkeys(note for run in self.runs for note in run.result.notes))

    @property
    def per_video(self) -> dict[VideoKey, float]:
        """What each video counts, mean over seeds."""
        means = _mean_per_video([run.test for run in self.runs])
        keys = [key for key, _ in _keyed(self._any)]
        return dict(zip(keys, means, strict=True))

    @property
    def _any(self) -> EvaluationResult:
        return self.runs[0].test

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "kind": self.kind,
            "seeds": list(self.seeds),
            "figure": self.figure.to_json(),
            "correct": list(self.correct),
            "total": self.total,
            "interval": None if self.interval is None else self.interval.to_json(),
            "floor": self.floor,
            "unseen": None if self.unseen is None else _unseen_json(self.unseen),
            "best": None if self.best is None else self.best.to_json(),
            "last": None if self.last is None else self.last.to_json(),
            "best_test_epoch_chosen_on_the_test_split": self.best_test and self.best_test.to_json(),
            "coverage": self.coverage.to_json(),
            "notes": list(self.notes),
            "runs": [str(run.path) for run in self.runs],
        }


@dataclass(frozen=True, kw_only=True)
class Row:
    """One decoder with all its settings, on one cache.

    label: the decoder, its tokens, and what tells it from the other rows. settings: the resolved
    config by dotted names, without task and seed. extraction: where the cache was not made under
    the protocol, in a line; None where it was. cells: by task.
    """

    label: str
    settings: Mapping[str, Any]
    fingerprint: str
    extraction: str | None
    cells: Mapping[str, Cell]

    @property
    def protocol(self) -> str:
        """Its name, and the settings that are not its own."""
        return protocol_text(self.settings)

    def to_json(self) -> dict[str, Any]:
        return {
            "row": self.label,
            "protocol": self.protocol,
            "cache": self.fingerprint,
            "extraction": self.extraction,
            "settings": dict(self.settings),
            "cells": [cell.to_json() for cell in self.cells.values()],
        }


def group_runs(runs: Sequence[RunFacts]) -> tuple[tuple[Row, ...], tuple[LeftOut, ...]]:
    """Rows in the order in which their first run was found, and runs that are there twice."""
    alike: defaultdict[str, list[RunFacts]] = defaultdict(list)
    for run in runs:
        alike[_key([settings_of(run), run.about.spec.fingerprint])].append(run)
    left_out: list[LeftOut] = []
    parts = [part for same in alike.values() for part in _parts(same, left_out)]
    settings = [settings_of(next(iter(part.values()))[0]) for part in parts]
    rows = []
    for part, own, label in zip(parts, settings, row_labels(settings), strict=True):
        cells = {task: _cell(task, same) for task, same in part.items()}
        spec = next(iter(part.values()))[0].about.spec
        rows.append(
            Row(
                label=label,
                settings=own,
                fingerprint=spec.fingerprint,
                extraction=extraction_note(own["protocol"], spec),
                cells=cells,
            )
        )
    return tuple(rows), tuple(left_out)


def settings_of(run: RunFacts) -> dict[str, Any]:
    """All that a row's runs share of their config, by dotted names."""
    flat = flatten(run.about.train.to_json())
    return {name: value for name, value in flat.items() if name not in OF_A_RUN}


def _parts(runs: Sequence[RunFacts], left_out: list[LeftOut]) -> list[dict[str, list[RunFacts]]]:
    """Runs of equal settings by task; those that judged other videos make a further part each.

    The first part holds, of every task, what covers most videos.
    """
    tasks: defaultdict[str, defaultdict[str, dict[int, RunFacts]]]
    tasks = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        first = tasks[run.task][_data_of(run)].setdefault(run.seed, run)
        if first is not run:
            reason = f"the same settings, seed and videos as {first.path}"
            left_out.append(LeftOut(path=run.path, reason=reason))
    parts: list[dict[str, list[RunFacts]]] = []
    for task, by_data in tasks.items():
        groups = [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in by_data.values()]
        groups.sort(key=lambda group: (-group[0].test.total, -len(group)))
        for i, group in enumerate(groups):
            if i == len(parts):
                parts.append({})
            parts[i][task] = group
    return parts


def _data_of(run: RunFacts) -> str:
    """What was learned from and judged: runs that differ here are not averaged."""
    judged = [[*key, p.seen_in_training] for key, p in _keyed(run.test)]
    data = [run.about.data_sha256, run.about.classes, run.test.coverage.to_json()]
    return _key([*data, run.test.stride_seconds, judged])


def _key(value: object) -> str:
    """Equal for equal JSON; in ASCII, since text from a run need not be writable as UTF-8."""
    return json.dumps(value, sort_keys=True)


def _cell(task: str, runs: Sequence[RunFacts]) -> Cell:
    tests = [run.test for run in runs]
    return Cell(
        task=task,
        runs=tuple(runs),
        figure=SeedStatistics.of([test.figure for test in tests]),
        best=_of_weights(runs, "best"),
        last=_of_weights(runs, "last"),
        best_test=_best_test(runs),
        interval=bootstrap_interval(_mean_per_video(tests)),
        unseen=_unseen([test.unseen for test in tests]) if tests[0].num_seen else None,
    )


def _of_weights(runs: Sequence[RunFacts], which: Weights) -> SeedStatistics | None:
    judged = [run.result.by_weights.get(which) for run in runs]
    tests = [each.test for each in judged if each is not None and each.test is not None]
    complete = len(tests) == len(runs)
    return SeedStatistics.of([test.figure for test in tests]) if complete else None


def _best_test(runs: Sequence[RunFacts]) -> SeedStatistics | None:
    found = [run.result.best_test_epoch for run in runs]
    scores = [each.score for each in found if each is not None]
    return SeedStatistics.of(scores) if len(scores) == len(runs) else None


def _unseen(tests: Sequence[EvaluationResult]) -> Unseen:
    num_videos = tests[0].total
    return Unseen(
        num_videos=num_videos,
        correct=tuple(test.correct for test in tests if test.kind == "classification"),
        figure=SeedStatistics.of([test.figure for test in tests]) if num_videos else None,
        interval=bootstrap_interval(_mean_per_video(tests)),
        floor=tests[0].floor if num_videos else None,
    )


def _unseen_json(unseen: Unseen) -> dict[str, Any]:
    return {
        "total": unseen.num_videos,
        "correct": list(unseen.correct),
        "figure": None if unseen.figure is None else unseen.figure.to_json(),
        "interval": None if unseen.interval is None else unseen.interval.to_json(),
        "floor": unseen.floor,
    }


def _mean_per_video(tests: Sequence[EvaluationResult]) -> list[float]:
    """What each video counts, mean over seeds; all `tests` judged the same videos."""
    return [float(x) for x in np.mean([test.per_video for test in tests], axis=0)]


def _keyed(test: EvaluationResult) -> list[tuple[VideoKey, VideoPrediction]]:
    """A key for each judged row; rows of one video with one label are told apart by their order."""
    before: Counter[tuple[str, float]] = Counter()
    keyed = []
    for p in test.predictions:
        keyed.append(((p.id, p.label, before[p.id, p.label]), p))
        before[p.id, p.label] += 1
    return keyed
