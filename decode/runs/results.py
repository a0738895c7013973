"""What a finished run found: `results.json`, with both checkpoints judged.

Read as untrusted data: figures are computed again from the predictions. Knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ...store import fields as f
from ...store.errors import CacheFormatError
from ..judging.metrics import EvaluationResult

RUN_FORMAT = 1
Weights = Literal["best", "last"]


@dataclass(frozen=True, kw_only=True)
class JudgedWeights:
    """One checkpoint on validation and test; `epoch` is when it was made, counted from 1."""

    epoch: int
    val: EvaluationResult | None
    test: EvaluationResult | None

    def to_json(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "val": None if self.val is None else self.val.to_json(),
            "test": None if self.test is None else self.test.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> JudgedWeights:
        return cls(
            epoch=f.integer(data, "epoch", name=name),
            val=_evaluation(data, "val", name),
            test=_evaluation(data, "test", name),
        )


@dataclass(frozen=True, kw_only=True)
class BestTestEpoch:
    """The epoch of the best test score, with `test_each_epoch`. It was chosen on the test split: a
    number to compare with papers that do so, never a result.

    score: accuracy, or squared error, at the stride of validation.
    """

    epoch: int
    score: float

    def describe(self, *, regression: bool) -> str:
        figure = f"MSE {self.score:.3f}" if regression else f"{100 * self.score:.1f} %"
        return f"best test epoch, chosen on the test split: {figure} (epoch {self.epoch})"

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> BestTestEpoch:
        return cls(
            epoch=f.integer(data, "epoch", name=name, minimum=1),
            score=f.number(data, "score", name=name),
        )


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished run found; `results.json`.

    selected: which weights the run answers with. by_weights: always `last`, and `best` where there
    is a validation split; one judgement for both where they are the same epoch. epoch, val, test:
    of the selected. horizon_seconds: time that holds 99 % of a median kernel's energy, by layer;
    empty for decoders without kernels. bytes_read: the run's share of reads made for several.
    notes: what a reader of the figures must know.
    """

    run: Path
    selected: Weights
    by_weights: Mapping[Weights, JudgedWeights]
    best_test_epoch: BestTestEpoch | None
    num_parameters: int
    horizon_seconds: tuple[float, ...]
    seconds: float
    bytes_read: int
    notes: tuple[str, ...]

    @property
    def epoch(self) -> int:
        return self.by_weights[self.selected].epoch

    @property
    def val(self) -> EvaluationResult | None:
        return self.by_weights[self.selected].val

    @property
    def test(self) -> EvaluationResult | None:
        return self.by_weights[self.selected].test

    def to_json(self) -> dict[str, Any]:
        return {
            "run_format": RUN_FORMAT,
            "selected": self.selected,
            "by_weights": {name: judged.to_json() for name, judged in self.by_weights.items()},
            "best_test_epoch": self.best_test_epoch and asdict(self.best_test_epoch),
            "num_parameters": self.num_parameters,
            "horizon_seconds": list(self.horizon_seconds),
            "seconds": self.seconds,
            "bytes_read": self.bytes_read,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, run: Path, name: str) -> TrainResult:
        """Read an untrusted result; CacheFormatError names the file and the field."""
        selected: Weights = f.choice(data, "selected", get_args(Weights), name=name)
        judged = f.mapping(data, "by_weights", name=name)
        known: tuple[Weights, ...] = get_args(Weights)
        by_weights = {
            weights: JudgedWeights.from_json(f.mapping(judged, weights, name=name), name=name)
            for weights in known
            if weights in judged
        }
        if selected not in by_weights:
            raise CacheFormatError(f"{name}: selected {selected}, which by_weights does not have")
        best_test = data.get("best_test_epoch")
        if best_test is not None:
            best_test = BestTestEpoch.from_json(
                f.mapping(data, "best_test_epoch", name=name), name=name
            )
        return cls(
            run=run,
            selected=selected,
            by_weights=by_weights,
            best_test_epoch=best_test,
            num_parameters=f.integer(data, "num_parameters", name=name),
            horizon_seconds=f.numbers(data, "horizon_seconds", name=name),
            seconds=f.number(data, "seconds", name=name),
            bytes_read=f.integer(data, "bytes_read", name=name),
            notes=f.texts(data, "notes", name=name),
        )


def _evaluation(data: Mapping[str, Any], field: str, name: str) -> EvaluationResult | None:
    if data.get(field) is None:
        return None
    return EvaluationResult.from_json(f.mapping(data, field, name=name), name=f"{name}: {field}")
