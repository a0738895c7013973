"""From the records of runs to what the page shows of them: curves, confusions, what is missing.

Each function turns records into one frozen figure with texts and charts ready to print; how they
are laid out is the template's matter. Several runs in one figure are the seeds of one setting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from markupsafe import Markup

from ...store.tasks import TaskKind
from ..judging.coverage import Coverage
from ..judging.metrics import EvaluationResult
from ..runs.runlog import EpochMetrics
from . import charts

MAX_MATRIX_CLASSES = 24  # beyond that a matrix is a wall: the page lists what is mistaken for what
MAX_MISTAKES = 20
MAX_IDS = 50


@dataclass(frozen=True, kw_only=True)
class SeedCurve:
    """What was measured after each epoch of one seed."""

    name: str
    epochs: Sequence[EpochMetrics]

    def best(self, kind: TaskKind) -> EpochMetrics | None:
        """Highest validation accuracy (lowest squared error), the lower loss among equals."""
        sign = 1 if kind == "classification" else -1
        judged = [
            (sign * e.val_score, -e.val_loss, e)
            for e in self.epochs
            if e.val_score is not None and e.val_loss is not None
        ]
        return max(judged, key=lambda each: each[:2])[2] if judged else None


@dataclass(frozen=True, kw_only=True)
class CurveFigure:
    """Small charts side by side, with the best epochs in words."""

    charts: tuple[Markup, ...]
    has_validation: bool
    best: str


def curve_figure(curves: Sequence[SeedCurve], kind: TaskKind) -> CurveFigure | None:
    """Losses of all seeds, and their validation score; None where nothing was logged."""
    curves = [curve for curve in curves if curve.epochs]
    if not curves:
        return None
    factor, score = (100, "accuracy, %") if kind == "classification" else (1, "squared error")
    losses: list[charts.Line] = []
    scores: list[charts.Line] = []
    best_epochs: list[str] = []
    for curve in curves:
        train = tuple((e.epoch, e.train_loss) for e in curve.epochs)
        losses.append(charts.Line(name=f"{curve.name}, training", points=train, style="train"))
        best = curve.best(kind)
        if best is None:
            continue
        loss = [(e.epoch, e.val_loss) for e in curve.epochs if e.val_loss is not None]
        ring = (best.epoch, best.val_loss or 0.0)
        losses.append(_line(f"{curve.name}, validation", loss, ring))
        judged = [(e.epoch, factor * e.val_score) for e in curve.epochs if e.val_score is not None]
        scores.append(_line(curve.name, judged, (best.epoch, factor * (best.val_score or 0.0))))
        best_epochs.append(f"{curve.name}: {best.epoch} of {curve.epochs[-1].epoch}")
    many = f"{len(curves)} seeds" if len(curves) > 1 else "one seed"
    drawn = [_chart(losses, "loss", f"Training and validation loss by epoch, {many}.")]
    if scores:
        described = f"Validation {score} by epoch, {many}."
        drawn.append(_chart(scores, f"validation {score}", described))
    return CurveFigure(
        charts=tuple(drawn), has_validation=bool(scores), best=", ".join(best_epochs)
    )


def _line(name: str, points: Sequence[tuple[float, float]], ring: charts.Point) -> charts.Line:
    return charts.Line(name=name, points=tuple(points), style="val", marked=ring)


def _chart(lines: Sequence[charts.Line], y_label: str, describe: str) -> Markup:
    return charts.line_chart(lines, x_label="epoch", y_label=y_label, describe=describe)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Videos of one class that were called another: how many, and their share of the class."""

    count: int
    share: float
    right: bool

    @property
    def percent(self) -> int:
        return round(100 * self.share)


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class: `cells` by what its videos were called; accuracy None where none was judged."""

    name: str
    cells: tuple[Cell, ...]
    correct: int
    total: int

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.total if self.total else None


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """`count` videos of one class were called another; `total`: all of that class."""

    label: str
    called: str
    count: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """What was mistaken for what, summed over seeds.

    rows: all classes with the cells of a matrix; or, for many classes, those that have videos,
    without cells. mistakes: the most frequent ones.
    """

    num_seeds: int
    num_classes: int
    rows: tuple[ClassRow, ...]
    with_matrix: bool
    mistakes: tuple[Mistake, ...]


def confusion(results: Sequence[EvaluationResult]) -> Confusion | None:
    """The confusion of results of one task, or None where no video was judged."""
    results = [result for result in results if result.total]
    if not results or results[0].kind != "classification":
        return None
    classes = results[0].classes
    # Counted pair by pair: a file may claim so many classes that a matrix would not fit anywhere.
    pairs = Counter((int(p.label), p.predicted_class) for r in results for p in r.predictions)
    totals = Counter(int(p.label) for r in results for p in r.predictions)
    small = len(classes) <= MAX_MATRIX_CLASSES
    rows = []
    for i in range(len(classes)) if small else sorted(totals):
        cells = tuple(
            Cell(count=pairs[i, j], share=pairs[i, j] / max(1, totals[i]), right=i == j)
            for j in range(len(classes) if small else 0)
        )
        row = ClassRow(name=classes[i], cells=cells, correct=pairs[i, i], total=totals[i])
        rows.append(row)
    mistakes = sorted((-n, i, j) for (i, j), n in pairs.items() if i != j)[:MAX_MISTAKES]
    return Confusion(
        num_seeds=len(results),
        num_classes=len(classes),
        rows=tuple(rows),
        with_matrix=small,
        mistakes=tuple(
            Mistake(label=classes[i], called=classes[j], count=-n, total=totals[i])
            for n, i, j in mistakes
        ),
    )


@dataclass(frozen=True, kw_only=True)
class ScatterFigure:
    """Predicted against true values of one seed, with how much of the variance is explained."""

    chart: Markup
    seed: str
    r_squared: float | None


def scatter_figure(result: EvaluationResult, seed: str) -> ScatterFigure | None:
    """For a regression; None where no video was judged."""
    if not result.total:
        return None
    labels = np.array([p.label for p in result.predictions])
    spread = float(((labels - labels.mean()) ** 2).sum())
    chart = charts.scatter_chart(
        [(p.label, p.value, p.id) for p in result.predictions],
        x_label="true value",
        y_label="predicted value",
        describe=f"Predicted against true values of {result.total} {result.split} videos.",
    )
    explained = 1 - result.mse * result.total / spread if spread > 0 else None
    return ScatterFigure(chart=chart, seed=seed, r_squared=explained)


@dataclass(frozen=True, kw_only=True)
class IdList:
    """Ids that could not be judged, for one reason: the first ones, and how many more."""

    reason: str
    total: int
    ids: tuple[str, ...]

    @property
    def more(self) -> int:
        return self.total - len(self.ids)


def lacking(coverage: Coverage) -> tuple[IdList, ...]:
    """What a split lacks, by reason."""
    reasons = {
        "not in the cache": coverage.missing,
        "without a frame in their extent": coverage.empty,
        "too short for the decoder": coverage.short,
    }
    return tuple(
        IdList(reason=reason, total=len(ids), ids=ids[:MAX_IDS])
        for reason, ids in reasons.items()
        if ids
    )


def ranges(numbers: Sequence[int]) -> str:
    """Whole numbers in short.

    >>> ranges([0, 1, 2, 3, 7])
    '0–3, 7'
    """
    parts = []
    for _, group in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}")
    return ", ".join(parts)
