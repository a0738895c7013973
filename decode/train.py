"""The training loop: a cache and a config in, a run directory out.

    config = TrainConfig(task="lvu/genre", epochs=50)
    result = train_decoder(open_cache("lvu.zarr"), config, Path("runs/genre"))

Each epoch draws one window of every video, judges the validation split and commits everything that
the next epoch depends on in one file. Killed at any moment, the same call goes on after the last
finished epoch and, with the same device and thread count, ends with the very same weights.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ..store.cache import Cache
from ..store.errors import Vis4merError
from ..store.files import canonical_json
from ..store.tasks import SPLITS, Split, TaskTable
from .begin import begin_run, require_own_directory
from .checkpoints import load_model, read_checkpoint, write_checkpoint
from .config import DecoderConfig, TrainConfig
from .curves import draw_curve
from .decoders import build_decoder, decoder_options
from .device import Compute
from .evaluate import evaluate_split
from .horizon import kernel_horizon_seconds
from .learner import Best, Learner, best_of, weights_only
from .loader import TrainLoader
from .metrics import EvaluationResult
from .plan import SplitSamples, WindowPlan, split_samples
from .runlog import EpochMetrics
from .runs import (
    Run,
    RunAbout,
    TrainResult,
    lock_run,
    versions,
    write_results,
)


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Where a training run is, for whoever shows it.

    epoch: the one in hand, from 1. done, total: steps of the epoch while training, videos while
    judging. finished: set once when an epoch has been committed. note: something to tell once.
    """

    phase: Literal["train", "validate", "evaluate"]
    epoch: int
    epochs: int
    done: int = 0
    total: int = 0
    finished: EpochMetrics | None = None
    note: str | None = None


OnProgress = Callable[[TrainProgress], None]


def train_decoder(
    cache: Cache,
    config: TrainConfig,
    run: Path,
    *,
    progress: OnProgress | None = None,
) -> TrainResult:
    """Train one decoder and judge it; everything goes into directory `run`.

    A directory that holds this run unfinished goes on with it; a finished one is returned as it is.
    Raises UsageError for a config that the cache cannot serve and for a directory of something
    else, be it another run, DivergedError (the last good checkpoint is kept) when the loss is no
    longer finite.
    """
    job = _Job(cache, config, progress or (lambda _: None))
    require_own_directory(run)
    with lock_run(run):
        directory = begin_run(run, job.about)
        if (finished := directory.results()) is not None:
            _restore_best(directory)
            job.tell("evaluate", config.epochs, note=f"{run} is finished; nothing was done")
            return finished
        with job.compute.own_randomness():
            return job.run(directory)


class _Job:
    """What stays the same over a run."""

    def __init__(self, cache: Cache, config: TrainConfig, progress: OnProgress) -> None:
        self.cache = cache
        self.table = cache.task(config.task)
        self.plan = WindowPlan.of(
            cache.spec, tokens=config.tokens, window_seconds=config.window_seconds
        )
        self.compute = Compute.of(device=config.device, precision=config.precision)
        self.config = replace(
            config,
            tokens=str(self.plan.view),
            decoder=_resolved(config.decoder),
            precision=self.compute.precision,
        )
        min_frames = self.plan.frames_for(self._decoder_min_frames())
        self.splits = {
            split: split_samples(cache, self.table, split, min_frames=min_frames)
            for split in SPLITS
        }
        self.notes = _notes(self.table, self.splits, config)
        self.about = RunAbout(
            train=self.config,
            spec=cache.spec,
            kind=self.table.kind,
            classes=self.table.classes,
            num_videos={split: len(chosen.samples) for split, chosen in self.splits.items()},
            data_sha256=_data_digest(self.splits),
            versions=versions(),
        )
        self._progress = progress

    def _decoder_min_frames(self) -> int:
        """UsageError, before anything is written, for a decoder that cannot be built."""
        with torch.random.fork_rng([]):  # initial values are drawn, and never used
            decoder = build_decoder(
                self.config.decoder.name,
                shape=self.plan.shape,
                num_outputs=self.table.num_outputs,
                options=self.config.decoder.options,
            )
        return decoder.min_frames

    def tell(
        self,
        phase: Literal["train", "validate", "evaluate"],
        epoch: int,
        *,
        done: int = 0,
        total: int = 0,
        finished: EpochMetrics | None = None,
        note: str | None = None,
    ) -> None:
        self._progress(
            TrainProgress(
                phase=phase,
                epoch=epoch,
                epochs=self.config.epochs,
                done=done,
                total=total,
                finished=finished,
                note=note,
            )
        )

    def run(self, directory: Run) -> TrainResult:
        """Epochs from wherever the directory is, then the final evaluation."""
        config = self.config
        loader = TrainLoader(
            self.cache,
            self.splits["train"].samples,
            self.plan,
            kind=self.table.kind,
            batch_size=config.batch_size,
            windows_per_video=config.windows_per_video,
            seed=config.seed,
            workers=config.workers,
            device=self.compute.device,
            dtype=self.compute.dtype,
        )
        learner = Learner(
            config,
            shape=self.plan.shape,
            kind=self.table.kind,
            num_outputs=self.table.num_outputs,
            steps_per_epoch=loader.steps_per_epoch,
            compute=self.compute,
        )
        for note in self.notes:
            self.tell("train", learner.epoch + 1, note=note)
        _restore(learner, directory)
        while learner.epoch < config.epochs:
            self._epoch(learner, loader, directory)
        result = self._judge_selected(learner, directory)
        write_results(result)
        self._draw_curve(learner, directory)
        return result

    def _draw_curve(self, learner: Learner, directory: Run) -> None:
        """The picture is an extra: whatever keeps it from being drawn, the run is finished."""
        try:
            draw_curve(
                directory.epochs(),
                directory.path / "curve.png",
                kind=self.table.kind,
                best_epoch=None if learner.best is None else learner.best.epoch,
            )
        except Exception as error:
            note = f"curve.png was not drawn ({type(error).__name__}: {error})"
            self.tell("evaluate", learner.epoch, note=note)

    def _epoch(self, learner: Learner, loader: TrainLoader, directory: Run) -> None:
        """One pass over the training videos, the validation, and the commit of both."""
        began, bytes_before = time.monotonic(), loader.bytes_read
        number, total = learner.epoch + 1, loader.steps_per_epoch
        for done, batch in enumerate(loader.epoch(learner.epoch)):
            self.tell("train", number, done=done, total=total)
            lr = learner.lr
            learner.step(batch)
        train_loss = learner.end_steps()
        validation = self._judge(
            learner.model, "val", "validate", number, self.config.validation_stride_seconds
        )
        learner.end_epoch(train_loss, validation)
        finished = EpochMetrics(
            epoch=number,
            steps=learner.steps,
            lr=lr,
            train_loss=train_loss,
            val_score=None if validation is None else abs(validation.score),
            val_loss=None if validation is None else validation.loss,
            seconds=time.monotonic() - began,
            bytes_read=loader.bytes_read
            - bytes_before
            + (0 if validation is None else validation.bytes_read),
        )
        directory.metrics.append(finished)
        write_checkpoint(directory.last, learner.checkpoint())
        _export_best(learner.best, directory, epoch=learner.epoch)
        self.tell("validate", number, finished=finished)

    def _judge(
        self,
        model: nn.Module,
        split: Split,
        phase: Literal["validate", "evaluate"],
        epoch: int,
        stride_seconds: float,
    ) -> EvaluationResult | None:
        """None for a split of which nothing can be read."""
        chosen = self.splits[split]
        if not chosen.samples:
            return None
        return evaluate_split(
            model,
            self.cache,
            self.table,
            split,
            self.plan,
            self.compute,
            stride_seconds=stride_seconds,
            batch_size=self.config.batch_size,
            workers=self.config.workers,
            chosen=chosen,
            on_video=lambda done, total: self.tell(phase, epoch, done=done, total=total),
        )

    def _judge_selected(self, learner: Learner, directory: Run) -> TrainResult:
        selected, epoch = self.about.selects, learner.epoch
        if selected == "best" and learner.best is not None:
            load_model(learner.model, learner.best.weights, name=str(directory.best))
            epoch = learner.best.epoch
        model, stride = learner.model, self.config.final_stride_seconds
        val = self._judge(model, "val", "evaluate", epoch, stride)
        test = self._judge(model, "test", "evaluate", epoch, stride)
        epochs = directory.epochs()
        judged = [result for result in (val, test) if result is not None]
        return TrainResult(
            run=directory.path,
            selected=selected,
            epoch=epoch,
            val=val,
            test=test,
            num_parameters=sum(p.numel() for p in model.parameters()),
            horizon_seconds=kernel_horizon_seconds(model, self.plan),
            seconds=sum(e.seconds for e in epochs) + sum(r.seconds for r in judged),
            bytes_read=sum(e.bytes_read for e in epochs) + sum(r.bytes_read for r in judged),
            notes=self.notes,
        )


def _restore(learner: Learner, directory: Run) -> None:
    """Take up the last checkpoint where there is one, and bring the other files in line with it."""
    if directory.last.exists():
        learner.restore(read_checkpoint(directory.last), name=str(directory.last))
        _export_best(learner.best, directory, epoch=learner.epoch)
    directory.metrics.truncate(learner.epoch)


def _export_best(best: Best | None, directory: Run, *, epoch: int) -> None:
    """`best.safetensors` follows from the checkpoint of `epoch`, which holds the best weights."""
    if best is None:
        return
    newest = best.epoch == epoch or not directory.best.exists()
    if newest or read_checkpoint(directory.best).about.get("epoch") != best.epoch:
        about = {"epoch": best.epoch, "score": best.score, "loss": best.loss}
        write_checkpoint(directory.best, weights_only(best.weights, about))


def _restore_best(directory: Run) -> None:
    """Bring back a finished run's `best.safetensors` where it is gone and can be had."""
    if directory.last.exists() and not directory.best.exists():
        best = best_of(read_checkpoint(directory.last), name=str(directory.last))
        _export_best(best, directory, epoch=0)


def _resolved(decoder: DecoderConfig) -> DecoderConfig:
    """With the defaults of today written out, so that a run does not change with a default."""
    options = decoder_options(decoder.name, decoder.options)
    return DecoderConfig(name=decoder.name, options=options.to_json())


def _notes(
    table: TaskTable, splits: dict[Split, SplitSamples], config: TrainConfig
) -> tuple[str, ...]:
    """What a reader of the figures must know; Vis4merError when there is nothing to learn from."""
    train = splits["train"].samples
    if not train:
        coverage = splits["train"].coverage
        raise Vis4merError(
            f"{table.reference}: no video to train on, the cache covers "
            f"{coverage.describe('train')}; "
            + ("use a smaller decoder.depth" if coverage.short else "extract them first")
        )
    notes = [
        f"the cache covers {chosen.coverage.describe(split)}"
        for split, chosen in splits.items()
        if not chosen.coverage.complete
    ]
    seen = {int(sample.label) for sample in train}
    unseen = [name for i, name in enumerate(table.classes) if i not in seen]
    if unseen:
        notes.append(f"never seen in training: class {', '.join(unseen)}")
    if not splits["val"].samples and config.select == "best-val":
        notes.append("there is no validation split, so the last epoch is selected")
    if not splits["test"].samples:
        notes.append("there is no test split to judge")
    return tuple(notes)


def _data_digest(splits: dict[Split, SplitSamples]) -> str:
    rows = [
        [split, s.id, s.label, s.extent.start, s.extent.stop]
        for split, chosen in splits.items()
        for s in chosen.samples
    ]
    return hashlib.sha256(canonical_json(rows)).hexdigest()
