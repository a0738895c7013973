"""From window outputs to a video's prediction, and from predictions to figures.

Classification sums the softmax over a video's windows and takes the argmax, the lowest class index
among equals; regression takes the mean prediction. A figure is over videos, k of N, and stands
beside the floor that a model must beat: the share of the most frequent class among the judged
videos, or the squared error of always predicting zero. Plain float64 NumPy; knows no model.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ...store import fields as f
from ...store.errors import CacheFormatError
from ...store.tasks import Split, TaskKind
from .coverage import Coverage
from .statistics import Interval, bootstrap_interval

Array = NDArray[np.float64]
Outputs = tuple[float, ...]
# What a group of a dataset is to its readers; elsewhere a group is a group.
GROUPS = {"lvu": "movies", "breakfast": "persons"}
MAX_VALUE = 3.5e38  # of a prediction that is read: float32 holds no more, and squares stay finite
_TINY = 1e-12  # a probability of zero costs 27.6 nats, not infinity


def softmax(logits: Array) -> Array:
    """Row-wise softmax of float64 (W, n_out)."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))  # W n_out
    return shifted / shifted.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]  # W n_out


def window_outputs(outputs: Array, kind: TaskKind) -> Array:
    """What is averaged over windows: probabilities, or the predicted values themselves."""
    return softmax(outputs) if kind == "classification" else outputs


def video_output(windows: Array) -> Outputs:
    """A video's output from the `window_outputs` (W, n_out) of its W >= 1 windows: their mean.

    Summed exactly, so that whether two classes tie does not hang on the order of the windows.
    """
    return tuple(math.fsum(column) / len(windows) for column in windows.T.tolist())


@dataclass(frozen=True, kw_only=True)
class VideoPrediction:
    """One judged row. `output`: mean softmax over its windows, or (mean value,).

    seen_in_training: its group (LVU: the movie), or itself where it has none, has training rows.
    """

    id: str
    label: float
    output: Outputs
    num_windows: int
    seen_in_training: bool = False

    @property
    def predicted_class(self) -> int:
        """Argmax of the mean (and so of the summed) softmax; the lowest index among equals."""
        return int(np.argmax(self.output))

    @property
    def value(self) -> float:
        return self.output[0]


def predict_video(
    outputs: Array, *, id: str, label: float, kind: TaskKind, seen_in_training: bool = False
) -> VideoPrediction:
    """Aggregate a video's window outputs, float64 (W, n_out), W >= 1."""
    return VideoPrediction(
        id=id,
        label=label,
        output=video_output(window_outputs(outputs, kind)),
        num_windows=len(outputs),
        seen_in_training=seen_in_training,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """One decoder judged on one split of one task.

    loss: mean over videos of -log(mean softmax of the label), or the mean squared error.
    """

    task: str
    kind: TaskKind
    classes: tuple[str, ...]
    split: Split
    stride_seconds: float
    predictions: tuple[VideoPrediction, ...]
    coverage: Coverage
    seconds: float
    bytes_read: int

    @property
    def total(self) -> int:
        """N: the judged videos."""
        return len(self.predictions)

    @property
    def correct(self) -> int:
        """k: videos whose predicted class is their label."""
        return sum(p.predicted_class == p.label for p in self.predictions)

    @cached_property
    def per_video(self) -> Array:
        """What each video counts, float64 (N,): right 1 or wrong 0, or its squared error."""
        if self.kind == "regression":
            counts = [(p.value - p.label) ** 2 for p in self.predictions]
        else:
            counts = [float(p.predicted_class == p.label) for p in self.predictions]
        return np.array(counts, dtype=np.float64)

    @property
    def figure(self) -> float:
        """The accuracy, or the mean squared error: the mean of `per_video`."""
        return self.accuracy if self.kind == "classification" else self.mse

    @cached_property
    def interval(self) -> Interval | None:
        """95 % bootstrap interval of the figure over videos; None where it would say nothing."""
        return bootstrap_interval(self.per_video)

    @property
    def num_seen(self) -> int:
        """Judged videos whose group is among the training videos."""
        return sum(p.seen_in_training for p in self.predictions)

    @property
    def unseen(self) -> EvaluationResult:
        """The same figures over the judged videos whose group has no training row.

        The coverage stays that of the split.
        """
        kept = tuple(p for p in self.predictions if not p.seen_in_training)
        return replace(self, predictions=kept)

    @property
    def accuracy(self) -> float:
        return self.correct / self.total if self.total else float("nan")

    @property
    def mse(self) -> float:
        return _mean([(p.value - p.label) ** 2 for p in self.predictions])

    @property
    def loss(self) -> float:
        if self.kind == "regression":
            return self.mse
        chosen = [p.output[int(p.label)] for p in self.predictions]
        return _mean([-float(np.log(max(_TINY, probability))) for probability in chosen])

    @property
    def score(self) -> float:
        """Higher is better: accuracy, or the negative squared error."""
        return self.accuracy if self.kind == "classification" else -self.mse

    @property
    def floor(self) -> float:
        """Share of the most frequent class, or the squared error of predicting zero."""
        if self.kind == "regression":
            return _mean([p.label**2 for p in self.predictions])
        return max(self.class_totals, default=0) / self.total if self.total else float("nan")

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Videos of class i that were called j: int64 (C, C)."""
        counts = np.zeros((len(self.classes), len(self.classes)), np.int64)
        for p in self.predictions:
            counts[int(p.label), p.predicted_class] += 1
        return counts

    @property
    def class_totals(self) -> list[int]:
        labels = np.array([int(p.label) for p in self.predictions], dtype=np.int64)  # N
        return [int(n) for n in np.bincount(labels, minlength=len(self.classes))]

    @property
    def num_windows(self) -> int:
        return sum(p.num_windows for p in self.predictions)

    def describe(self) -> str:
        """One line, with k/N, the interval, the floor and the coverage."""
        covered = self.coverage.describe(self.split)
        if not self.total:
            return f"{self.task} {self.split}: nothing to judge ({covered})"
        return f"{self.task} {self.split}: {self._in_words()}; {covered}"

    def describe_unseen(self) -> str | None:
        """The figures on unseen groups, in one line; None where all judged groups are unseen."""
        if not self.num_seen:
            return None
        unseen = self.unseen
        groups = GROUPS.get(self.task.partition("/")[0], "groups")
        if not unseen.total:
            return f"no judged video is of {groups} unseen in training"
        return f"{unseen.total}/{self.total} on {groups} unseen in training: {unseen._in_words()}"

    def _in_words(self) -> str:
        """Such as `75.0 % (6/8), 95 % interval 37.5 to 100.0, most frequent class 75.0 %`."""
        if self.kind == "regression":
            figure, floor = f"MSE {self.mse:.3f} over {self.total}", "predicting zero {:.3f}"
        else:
            figure = f"{100 * self.accuracy:.1f} % ({self.correct}/{self.total})"
            floor = "most frequent class {:.1f} %"
        factor, digits = (1, 3) if self.kind == "regression" else (100, 1)
        interval = ""
        if self.interval is not None:
            low, high = (f"{factor * end:.{digits}f}" for end in self.interval.to_json())
            interval = f"95 % interval {low} to {high}, "
        return f"{figure}, {interval}{floor.format(factor * self.floor)}"

    def to_json(self) -> dict[str, Any]:
        """Everything, derived figures included for people and other programs."""
        data: dict[str, Any] = {
            "task": self.task,
            "kind": self.kind,
            "classes": list(self.classes),
            "split": self.split,
            "stride_seconds": self.stride_seconds,
            "coverage": self.coverage.to_json(),
            "total": self.total,
            "num_windows": self.num_windows,
            "seconds": self.seconds,
            "bytes_read": self.bytes_read,
        }
        if self.total:
            data |= self._figures()
        if self.num_seen:
            unseen = self.unseen
            data["unseen"] = {"total": unseen.total} | (unseen._figures() if unseen.total else {})
        data["predictions"] = [
            [p.id, p.label, list(p.output), p.num_windows, p.seen_in_training]
            for p in self.predictions
        ]
        return data

    def _figures(self) -> dict[str, Any]:
        interval = None if self.interval is None else self.interval.to_json()
        shared = {"interval": interval, "floor": self.floor, "loss": self.loss}
        if self.kind == "regression":
            return {"mse": self.mse, **shared}
        confusion = self.confusion
        per_class = [
            {"class": name, "correct": int(confusion[i, i]), "total": int(confusion[i].sum())}
            for i, name in enumerate(self.classes)
        ]
        return {
            "accuracy": self.accuracy,
            "correct": self.correct,
            **shared,
            "per_class": per_class,
            "confusion": confusion.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> EvaluationResult:
        """Read an untrusted result; the figures are computed again from the predictions."""
        kind, classes = read_kind(data, name=name)
        rows = f.sequence(data, "predictions", name=name)
        return cls(
            task=f.text(data, "task", name=name),
            kind=kind,
            classes=classes,
            split=f.choice(data, "split", get_args(Split), name=name),
            stride_seconds=f.number(data, "stride_seconds", name=name),
            predictions=tuple(_prediction(row, len(classes), name=name) for row in rows),
            coverage=Coverage.from_json(f.mapping(data, "coverage", name=name), name=name),
            seconds=f.number(data, "seconds", name=name),
            bytes_read=f.integer(data, "bytes_read", name=name),
        )


def read_kind(data: Mapping[str, Any], *, name: str) -> tuple[TaskKind, tuple[str, ...]]:
    """`kind` and `classes` of untrusted JSON: a classification has classes, a regression none."""
    kind: TaskKind = f.choice(data, "kind", get_args(TaskKind), name=name)
    classes = f.texts(data, "classes", name=name)
    if (kind == "classification") != bool(classes):
        raise CacheFormatError(
            f"{name}: a {kind} with {len(classes)} classes, expected classes of a classification "
            "and none of a regression"
        )
    return kind, classes


def _prediction(values: object, num_classes: int, *, name: str) -> VideoPrediction:
    """num_classes: 0 for a regression."""
    columns = ("id", "label", "output", "num_windows", "seen_in_training")
    row = dict(zip(columns, values, strict=False)) if isinstance(values, list) else {}
    output = f.numbers(row, "output", name=name)
    label = f.number(row, "label", name=name)
    if num_classes:
        _require_class(label, output, num_classes, name=name)
    elif len(output) != 1 or max(abs(output[0]), abs(label)) > MAX_VALUE:
        raise CacheFormatError(
            f"{name}: a prediction {reprlib.repr(output)} for value {label:g}, expected one number "
            f"and neither beyond {MAX_VALUE:g}"
        )
    return VideoPrediction(
        id=f.text(row, "id", name=name),
        label=label,
        output=output,
        num_windows=f.integer(row, "num_windows", name=name, minimum=1),
        seen_in_training=f.choice(row, "seen_in_training", (True, False), name=name),
    )


def _require_class(label: float, output: Outputs, num_classes: int, *, name: str) -> None:
    if len(output) != num_classes or label not in range(num_classes):
        raise CacheFormatError(
            f"{name}: a prediction of {len(output)} outputs for label {label:g}, "
            f"expected {num_classes} outputs and the number of a class"
        )
    if min(output) < 0 or max(output) > 1 + _TINY:
        raise CacheFormatError(
            f"{name}: a prediction {reprlib.repr(output)}, expected probabilities from 0 to 1"
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
