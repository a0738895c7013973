"""Finished run directories with chosen figures, written at once and without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from caches import make_spec
from vis4mer.decode.config import load_config
from vis4mer.decode.judging.coverage import Coverage
from vis4mer.decode.judging.metrics import EvaluationResult, VideoPrediction
from vis4mer.decode.runs.results import JudgedWeights, TrainResult
from vis4mer.decode.runs.run import RunAbout, versions, write_about, write_results
from vis4mer.decode.runs.runlog import EpochMetrics
from vis4mer.decode.runs.timelines import VideoTimeline, write_timelines


def make_timeline(video_id: str, label: float, outputs, *, window=4.0, stride=1.0):
    """One row of `outputs` (W, n_out) a window, one window every `stride` seconds."""
    starts = stride * np.arange(len(outputs), dtype=np.float64)
    return VideoTimeline(
        id=video_id,
        label=label,
        start_seconds=starts,
        end_seconds=starts + window,
        outputs=np.asarray(outputs, np.float32),
    )


def judged(task, kind, classes, timelines, *, split="test", missing=()):
    """What `timelines` come to over videos."""
    predictions = tuple(
        VideoPrediction(
            id=line.id,
            label=line.label,
            output=tuple(map(float, line.outputs.mean(axis=0))),
            num_windows=len(line.outputs),
        )
        for line in timelines
    )
    return EvaluationResult(
        task=task,
        kind=kind,
        classes=tuple(classes),
        split=split,
        stride_seconds=1.0,
        predictions=predictions,
        coverage=Coverage(total=len(predictions) + len(missing), missing=tuple(missing)),
        seconds=0.5,
        bytes_read=1000,
    )


def write_run(
    folder: Path,
    *,
    timelines: Sequence[VideoTimeline],
    task: str = "toy/label",
    kind: str = "classification",
    classes: Sequence[str] = ("calm", "wild"),
    epochs: Sequence[tuple[float, float | None, float | None]] = ((0.7, 0.8, 0.5),),
    missing: Sequence[str] = (),
    notes: Sequence[str] = (),
    keep_timelines: bool = True,
    **flags: object,
) -> Path:
    """A run as training leaves it. epochs: (train loss, validation loss, validation score)."""
    names = tuple(classes) if kind == "classification" else ()
    train = load_config(
        flags={"task": task, "decoder.name": "mean", "tokens": "4x2x2", "window_seconds": 4}
        | {"epochs": len(epochs), "device": "cpu"}
        | {name.replace("__", "."): value for name, value in flags.items()}
    )
    folder.mkdir(parents=True)
    about = RunAbout(
        train=train,
        spec=make_spec(),
        kind=kind,
        classes=names,
        num_videos={"train": 8, "val": 4, "test": len(timelines)},
        data_sha256="ab" * 32,
        versions=versions(),
    )
    run = write_about(folder, about)
    for number, (train_loss, val_loss, val_score) in enumerate(epochs, start=1):
        run.metrics.append(
            EpochMetrics.from_json(
                {
                    "epoch": number,
                    "steps": 2 * number,
                    "lr": 1e-3,
                    "train_loss": train_loss,
                    "val_loss": val_loss,
                    "val_score": val_score,
                    "test_score": None,
                    "seconds": 1.0,
                    "bytes_read": 10,
                },
                name="metrics",
            )
        )
    test = judged(task, kind, names, timelines, missing=missing)
    last = JudgedWeights(epoch=len(epochs), val=None, test=test)
    write_results(
        TrainResult(
            run=folder,
            selected="last",
            by_weights={"last": last},
            best_test_epoch=None,
            num_parameters=1234,
            horizon_seconds=(),
            seconds=2.0,
            bytes_read=2_000_000,
            notes=tuple(notes),
        )
    )
    if keep_timelines:
        write_timelines(folder / "timelines.safetensors", timelines)
    return folder
