"""From window outputs to a video's prediction, and from predictions to figures.

Classification sums the softmax over a video's windows and takes the argmax, the lowest class index
among equals; regression takes the mean prediction. A figure is over videos, k of N, and stands
beside the floor that a model must beat: the share of the most frequent class among the judged
videos, or the squared error of always predicting zero. Plain float64 NumPy; knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..store import fields as f
from ..store.errors import CacheFormatError
from ..store.tasks import Split, TaskKind

Array = NDArray[np.float64]
Outputs = tuple[float, ...]
_TINY = 1e-12  # a probability of zero costs 27.6 nats, not infinity


def softmax(logits: Array) -> Array:
    """Row-wise softmax of float64 (W, n_out)."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))  # W n_out
    return shifted / shifted.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return]  # W n_out


def window_outputs(outputs: Array, kind: TaskKind) -> Array:
    """What is averaged over windows: probabilities, or the predicted values themselves."""
    return softmax(outputs) if kind == "classification" else outputs


def video_output(windows: Array) -> Outputs:
    """A video's output from the `window_outputs` (W, n_out) of its W >= 1 windows: their mean."""
    return tuple(map(float, windows.mean(axis=0)))


@dataclass(frozen=True, kw_only=True)
class VideoPrediction:
    """One judged row. `output`: mean softmax over its windows, or (mean value,)."""

    id: str
    label: float
    output: Outputs
    num_windows: int

    @property
    def predicted_class(self) -> int:
        """Argmax of the mean (and so of the summed) softmax; the lowest index among equals."""
        return int(np.argmax(self.output))

    @property
    def value(self) -> float:
        return self.output[0]


def predict_video(outputs: Array, *, id: str, label: float, kind: TaskKind) -> VideoPrediction:
    """Aggregate a video's window outputs, float64 (W, n_out), W >= 1."""
    output = video_output(window_outputs(outputs, kind))
    return VideoPrediction(id=id, label=label, output=output, num_windows=len(outputs))


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of a split could be used.

    missing: ids without an entry. empty: without a frame in their extent. short: with fewer frames
    than the decoder needs.
    """

    total: int
    missing: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    short: tuple[str, ...] = ()

    @property
    def present(self) -> int:
        return self.total - len(self.missing) - len(self.empty) - len(self.short)

    @property
    def complete(self) -> bool:
        return self.present == self.total

    def describe(self, split: str) -> str:
        """Such as `41/42 test videos, missing: a, b`."""
        text = f"{self.present}/{self.total} {split} videos"
        reasons = {
            "missing": self.missing,
            "without frames": self.empty,
            "too short for the decoder": self.short,
        }
        for reason, ids in reasons.items():
            if ids:
                more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
                text += f", {reason}: {', '.join(ids[:10])}{more}"
        return text

    def to_json(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "missing": list(self.missing),
            "empty": list(self.empty),
            "short": list(self.short),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> Coverage:
        return cls(
            total=f.integer(data, "total", name=name),
            missing=f.texts(data, "missing", name=name),
            empty=f.texts(data, "empty", name=name),
            short=f.texts(data, "short", name=name),
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
        return [int(n) for n in self.confusion.sum(axis=1)]

    @property
    def num_windows(self) -> int:
        return sum(p.num_windows for p in self.predictions)

    def describe(self) -> str:
        """One line, with k/N, the floor and the coverage."""
        covered = self.coverage.describe(self.split)
        if not self.total:
            return f"{self.task} {self.split}: nothing to judge ({covered})"
        if self.kind == "regression":
            return (
                f"{self.task} {self.split}: MSE {self.mse:.3f} over {self.total} "
                f"(predicting zero: {self.floor:.3f}; {covered})"
            )
        return (
            f"{self.task} {self.split}: {100 * self.accuracy:.1f} % ({self.correct}/{self.total}; "
            f"most frequent class: {100 * self.floor:.1f} %; {covered})"
        )

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
        data["predictions"] = [
            [p.id, p.label, list(p.output), p.num_windows] for p in self.predictions
        ]
        return data

    def _figures(self) -> dict[str, Any]:
        shared = {"floor": self.floor, "loss": self.loss}
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
        classes = f.texts(data, "classes", name=name)
        rows = f.sequence(data, "predictions", name=name)
        return cls(
            task=f.text(data, "task", name=name),
            kind=f.choice(data, "kind", get_args(TaskKind), name=name),
            classes=classes,
            split=f.choice(data, "split", get_args(Split), name=name),
            stride_seconds=f.number(data, "stride_seconds", name=name),
            predictions=tuple(_prediction(row, len(classes) or 1, name=name) for row in rows),
            coverage=Coverage.from_json(f.mapping(data, "coverage", name=name), name=name),
            seconds=f.number(data, "seconds", name=name),
            bytes_read=f.integer(data, "bytes_read", name=name),
        )


def _prediction(values: object, num_outputs: int, *, name: str) -> VideoPrediction:
    columns = ("id", "label", "output", "num_windows")
    row = dict(zip(columns, values, strict=False)) if isinstance(values, list) else {}
    output = f.numbers(row, "output", name=name)
    label = f.number(row, "label", name=name)
    if len(output) != num_outputs or (num_outputs > 1 and not 0 <= label < num_outputs):
        raise CacheFormatError(
            f"{name}: a prediction of {len(output)} outputs for label {label:g}, "
            f"expected {num_outputs} outputs and a label among them"
        )
    return VideoPrediction(
        id=f.text(row, "id", name=name),
        label=label,
        output=output,
        num_windows=f.integer(row, "num_windows", name=name, minimum=1),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
