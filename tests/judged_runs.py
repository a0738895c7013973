"""Finished run directories whose test videos are right or wrong as a text of 1 and 0 says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caches import make_spec
from vis4mer.decode.config import load_config
from vis4mer.decode.judging.coverage import Coverage
from vis4mer.decode.judging.metrics import EvaluationResult, VideoPrediction
from vis4mer.decode.runs.results import BestTestEpoch, JudgedWeights, TrainResult
from vis4mer.decode.runs.run import ImportedWeights, RunAbout, versions, write_about, write_results

CLASSES = ("calm", "wild")


def right_and_wrong(right: str, seen: str) -> list[VideoPrediction]:
    """Video vi has class i mod 2, and its own class's probability is 0.9 where right[i] is 1."""
    predictions = []
    for i, was_right in enumerate(right):
        label = i % 2
        sure = 0.9 if was_right == "1" else 0.1
        output = (sure, 1 - sure) if label == 0 else (1 - sure, sure)
        predictions.append(
            VideoPrediction(
                id=f"v{i}",
                label=label,
                output=output,
                num_windows=1,
                seen_in_training=seen[i : i + 1] == "1",
            )
        )
    return predictions


def off_by(errors: Sequence[float]) -> list[VideoPrediction]:
    """Regression: video vi has label i and is predicted i + errors[i]."""
    return [
        VideoPrediction(id=f"v{i}", label=float(i), output=(i + error,), num_windows=1)
        for i, error in enumerate(errors)
    ]


def write_run(
    folder: Path,
    *,
    right: str = "",
    errors: Sequence[float] = (),
    task: str = "lvu/relationship",
    seed: int = 0,
    seen: str = "",
    last: str | None = None,
    best_test: float | None = None,
    missing: Sequence[str] = (),
    classes: Sequence[str] = CLASSES,
    dim: int = 16,
    notes: Sequence[str] = (),
    finished: bool = True,
    imported: bool = False,
    data: str = "data",
    **flags: object,
) -> Path:
    """A run as training leaves it; flags: of `load_config`, `__` for a dot.

    right: of the best validation epoch's weights, and of the last ones unless `last` says more.
    """
    kind = "classification" if right else "regression"
    names = tuple(classes) if right else ()

    def judge(predictions: list[VideoPrediction]) -> EvaluationResult:
        return EvaluationResult(
            task=task,
            kind=kind,
            classes=names,
            split="test",
            stride_seconds=1.0,
            predictions=tuple(predictions),
            coverage=Coverage(total=len(predictions) + len(missing), missing=tuple(missing)),
            seconds=0.5,
            bytes_read=1000,
        )

    given = {"decoder.name": "mean", "tokens": "4x2x2", "window_seconds": 4, "epochs": 2}
    given |= {name.replace("__", "."): value for name, value in flags.items()}
    about = RunAbout(
        train=load_config(flags={**given, "task": task, "seed": seed, "device": "cpu"}),
        spec=make_spec(dim=dim),
        kind=kind,
        classes=names,
        num_videos={"train": 8, "val": 4, "test": len(right) or len(errors)},
        data_sha256=data,
        versions=versions(),
        imported=ImportedWeights(file="scene.pth", sha256="0" * 64) if imported else None,
    )
    folder.mkdir(parents=True)
    write_about(folder, about)
    if not finished:
        return folder
    best = judge(right_and_wrong(right, seen) if right else off_by(errors))
    final = best if last is None else judge(right_and_wrong(last, seen))
    write_results(
        TrainResult(
            run=folder,
            selected="best",
            by_weights={
                "best": JudgedWeights(epoch=1, val=None, test=best),
                "last": JudgedWeights(epoch=2, val=None, test=final),
            },
            best_test_epoch=best_test and BestTestEpoch(epoch=1, score=best_test),
            num_parameters=10,
            horizon_seconds=(),
            seconds=1.0,
            bytes_read=10,
            notes=tuple(notes),
        )
    )
    return folder
