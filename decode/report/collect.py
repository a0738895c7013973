"""Finding finished runs: what was trained, what came out, and what was left out and why.

A run directory is untrusted: nothing that it names is opened, links are not followed, and one that
does not check is left out with one line. Knows no tables; `rows` puts runs together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...store.errors import UsageError, Vis4merError
from ..judging.metrics import EvaluationResult
from ..runs.results import TrainResult
from ..runs.run import RunAbout, open_run
from ..runs.runlog import EpochMetrics


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One finished run with figures on a test split.

    path: where it was found. about: config, cache settings, classes, versions. result: the final
    evaluation. test: the selected weights on the test split. epochs: what was measured after each.
    """

    path: Path
    about: RunAbout
    result: TrainResult
    test: EvaluationResult
    epochs: tuple[EpochMetrics, ...]

    @property
    def task(self) -> str:
        return self.about.train.task

    @property
    def seed(self) -> int:
        return self.about.train.seed


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A directory that gives no figure, and why, in one line."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class FoundRuns:
    """runs: in the order of the paths asked for, by name below each."""

    runs: tuple[RunFacts, ...]
    left_out: tuple[LeftOut, ...]


def find_runs(paths: Sequence[Path]) -> FoundRuns:
    """All runs that are, or are anywhere below, the given directories; each once.

    A run begun and not finished, one without a test split and one that cannot be read are left out
    with the reason. UsageError for a path that is no directory.
    """
    runs: list[RunFacts] = []
    left_out: list[LeftOut] = []
    for folder in _run_folders(paths):
        try:
            found = _read(folder)
        except (Vis4merError, OSError) as error:
            found = LeftOut(path=folder, reason=str(error))
        if isinstance(found, LeftOut):
            left_out.append(found)
        else:
            runs.append(found)
    return FoundRuns(runs=tuple(runs), left_out=tuple(left_out))


def _run_folders(paths: Sequence[Path]) -> Iterator[Path]:
    """Folders that hold a config.json; nothing below a run is searched."""
    met: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            raise UsageError(
                f"{path}: no such directory; expected runs of `vis4mer train-decoder`, or a folder "
                "that holds some"
            )
        for folder, below, files in os.walk(path):
            below.sort()
            if "config.json" not in files:
                continue
            below.clear()
            if (real := Path(folder).resolve()) not in met:
                met.add(real)
                yield Path(folder)


_IMPORTED = (
    "imported weights, which no training judged; "
    "`vis4mer evaluate --run RUN --cache CACHE` shows their figures"
)


def _read(folder: Path) -> RunFacts | LeftOut:
    run = open_run(folder)
    result = run.results()
    epochs = tuple(run.epochs())
    if result is None and run.about.imported is not None:
        return LeftOut(path=folder, reason=_IMPORTED)
    if result is None:
        planned = run.about.train.epochs
        return LeftOut(path=folder, reason=f"not finished: {len(epochs)} of {planned} epochs")
    if result.test is None or not result.test.total:
        return LeftOut(path=folder, reason="no test video was judged")
    judged = [result.test, *(each.test for each in result.by_weights.values())]
    own = (run.about.train.task, run.about.kind, run.about.classes)
    if any(test and (test.task, test.kind, test.classes) != own for test in judged):
        return LeftOut(path=folder, reason="its results are not those of its config")
    return RunFacts(path=folder, about=run.about, result=result, test=result.test, epochs=epochs)
