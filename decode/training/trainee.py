"""One run while it trains: its learner, its loader and its directory, an epoch at a time.

Whoever drives it, alone or among others, brings the batches and the judgements; what it becomes and
what it writes depend on these alone. A run that diverges keeps its error and takes no more steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from ...store.cache import Cache
from ...store.errors import UsageError, Vis4merError
from ...store.tasks import Split
from ..data.loader import LabelledBatch, TrainLoader
from ..data.plan import window_seconds
from ..judging.evaluate import result_of
from ..judging.horizon import kernel_horizon_seconds
from ..judging.judge import Candidate, Judged, NotFiniteError, Verdict
from ..judging.metrics import EvaluationResult, window_outputs
from ..rows import Share
from ..runs.checkpoints import load_model, read_checkpoint, write_checkpoint
from ..runs.results import BestTestEpoch, JudgedWeights, TrainResult, Weights
from ..runs.run import Run, write_results
from ..runs.runlog import EpochMetrics
from ..runs.timelines import VideoTimeline, write_timelines
from .curves import draw_curve
from .handing import handed_out
from .job import Job
from .learner import Best, DivergedError, Learner, best_of, weights_only
from .ranks import Ranks

OnNote = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Checkpointed:
    """Weights of a run that has done its epochs."""

    epoch: int
    model: nn.Module


@dataclass(frozen=True, kw_only=True)
class FinalJudgement:
    """What the checkpoints of a run, by name, said of one split; seconds: the run's share."""

    split: Split
    verdicts: Mapping[Weights, Verdict]
    seconds: float


class Trainee:
    """A run that goes on from wherever its directory is."""

    def __init__(
        self, cache: Cache, job: Job, directory: Run, *, ranks: Ranks | None = None
    ) -> None:
        config, compute = job.config, job.compute
        self.job = job
        self.directory = directory
        self.error: Vis4merError | None = None
        self.loader = TrainLoader(
            cache,
            job.splits["train"].samples,
            job.plan,
            kind=job.table.kind,
            batch_size=config.batch_size,
            windows_per_video=config.windows_per_video,
            seed=config.seed,
            workers=config.workers,
            device=compute.device,
            dtype=compute.dtype,
            blocks=config.blocks or 1,
            shuffle_frames=config.shuffle_frames,
            lanes=config.lanes,
            share=Share() if ranks is None else ranks.share,
        )
        num_steps = sum(map(self.loader.num_steps, range(config.epochs)))
        self.learner = Learner(
            config,
            shape=job.plan.shape,
            kind=job.table.kind,
            num_outputs=job.table.num_outputs,
            steps_per_epoch=num_steps / config.epochs,
            compute=compute,
            ranks=ranks,
        )
        self._cache = cache
        self._ranks = ranks
        self._lr = self._train_loss = 0.0
        self._bytes_before = 0
        if self._writes:
            self._restore()
        if ranks is not None:
            self.learner.restore(
                handed_out(self.learner.checkpoint(), ranks), name="the state of process 0"
            )

    @property
    def _writes(self) -> bool:
        """Whether the directory is this process's to read and to write."""
        return self._ranks is None or self._ranks.leads

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.learner.epoch >= self.job.config.epochs

    # Epochs --------------------------------------------------------------------------------------

    def step(self, batch: LabelledBatch) -> None:
        """One step, unless the run has diverged."""
        if self.error is None:
            self._lr = self.learner.lr
            self._try(lambda: self.learner.step(batch))

    def end_steps(self) -> None:
        """After the last batch of an epoch."""
        if self.error is None:
            self._try(self._end_steps)

    def candidate(self, split: Split) -> Candidate | None:
        """What is judged after an epoch; None for a split of which nothing can be read."""
        return self._candidate(split, [self.learner.model])

    def commit(
        self,
        verdicts: Mapping[Split, Verdict],
        *,
        seconds: float,
        judged_seconds: float,
        stall_share: float,
    ) -> EpochMetrics | None:
        """End the epoch and write everything that the next one depends on; None for a run that has
        diverged. seconds: the run's share of the epoch's, judged_seconds: of its judging.
        stall_share: see `EpochMetrics`."""
        judged = {}
        for split, verdict in verdicts.items():
            if isinstance(verdict, NotFiniteError):
                self.error = verdict
            else:
                stride = self.job.config.validation_stride_seconds
                judged[split] = self._result(verdict, split, stride, judged_seconds)
        if self.error is not None:
            return None
        validation, test = judged.get("val"), judged.get("test")
        self.learner.end_epoch(self._train_loss, validation)
        bytes_read = self._bytes_since() + sum(r.bytes_read for r in judged.values())
        metrics = EpochMetrics(
            epoch=self.learner.epoch,
            steps=self.learner.steps,
            lr=self._lr,
            train_loss=self._train_loss,
            val_score=None if validation is None else abs(validation.score),
            val_loss=None if validation is None else validation.loss,
            test_score=None if test is None else abs(test.score),
            seconds=seconds,
            bytes_read=bytes_read,
            bytes_per_second=bytes_read / max(seconds, 1e-9),
            stall_share=stall_share,
        )
        if self._writes:
            self.directory.metrics.append(metrics)
            write_checkpoint(self.directory.last, self.learner.checkpoint())
            _export_best(self.learner.best, self.directory, epoch=self.learner.epoch)
        return metrics

    def _end_steps(self) -> None:
        self._train_loss = self.learner.end_steps()

    def _try(self, learn: Callable[[], None]) -> None:
        try:
            learn()
        except DivergedError as error:
            self.error = error

    def _bytes_since(self) -> int:
        """Read for training since the last call, by all processes."""
        read = self.loader.bytes_read - self._bytes_before
        self._bytes_before = self.loader.bytes_read
        return read if self._ranks is None else self._ranks.sum_count(read)

    def _restore(self) -> None:
        """Take up the last checkpoint where there is one; bring the other files in line with it."""
        directory = self.directory
        if directory.last.exists():
            self.learner.restore(read_checkpoint(directory.last), name=str(directory.last))
            _export_best(self.learner.best, directory, epoch=self.learner.epoch)
        elif self.job.config.init is not None:
            self._begin_with_encoder()
        directory.metrics.truncate(self.learner.epoch)

    def _begin_with_encoder(self) -> None:
        """Only one given now will do: a path in a config might be anybody's."""
        init = self.job.init
        if init is None:
            raise UsageError(
                f"{self.directory.path} begins with a pretrained encoder and has no checkpoint "
                "yet; give --init RUN again"
            )
        self.learner.model.initialise(init.tensors, name=init.name)

    # The end -------------------------------------------------------------------------------------

    def final_weights(self) -> dict[Weights, Checkpointed]:
        """`last`, and `best` where there is one; the same record where both are one epoch."""
        last = Checkpointed(epoch=self.learner.epoch, model=self.learner.model)
        best = self.learner.best
        if best is None:
            return {"last": last}
        if best.epoch == last.epoch:
            return {"best": last, "last": last}
        model = self.job.about.build_decoder().to(self.job.compute.device)
        load_model(model, best.weights, name=str(self.directory.best))
        return {"best": Checkpointed(epoch=best.epoch, model=model), "last": last}

    def final_candidate(
        self, split: Split, weights: Mapping[Weights, Checkpointed]
    ) -> Candidate | None:
        """The distinct models among `weights`, in their order."""
        models = {id(one.model): one.model for one in weights.values()}
        return self._candidate(split, list(models.values()))

    def accept(self, judgements: list[FinalJudgement]) -> bool:
        """Whether all outputs are finite; otherwise the run has diverged."""
        for judgement in judgements:
            for verdict in judgement.verdicts.values():
                if isinstance(verdict, NotFiniteError):
                    self.error = verdict
                    return False
        return True

    def finish(
        self,
        weights: Mapping[Weights, Checkpointed],
        judgements: list[FinalJudgement],
        *,
        on_note: OnNote,
    ) -> TrainResult:
        """Write the results, from all splits that were judged and accepted."""
        selected = self.job.about.selects
        results = self._results(judgements)
        by_weights = {
            name: JudgedWeights(
                epoch=one.epoch,
                val=results.get((name, "val")),
                test=results.get((name, "test")),
            )
            for name, one in weights.items()
        }
        epochs = self.directory.epochs()
        model = weights[selected].model
        once = [results["last", judgement.split] for judgement in judgements]
        result = TrainResult(
            run=self.directory.path,
            selected=selected,
            by_weights=by_weights,
            best_test_epoch=self._best_test_epoch(epochs),
            num_parameters=sum(p.numel() for p in model.parameters()),
            horizon_seconds=kernel_horizon_seconds(model, window_seconds=self.job.window_seconds),
            seconds=sum(e.seconds for e in epochs) + sum(r.seconds for r in once),
            bytes_read=sum(e.bytes_read for e in epochs) + sum(r.bytes_read for r in once),
            notes=self.job.notes,
        )
        self._write_timelines(judgements, selected)
        write_results(result)
        self._draw_curve(epochs, on_note)
        return result

    def _results(
        self, judgements: list[FinalJudgement]
    ) -> dict[tuple[Weights, Split], EvaluationResult]:
        stride = self.job.config.final_stride_seconds
        return {
            (name, judgement.split): self._result(
                verdict, judgement.split, stride, judgement.seconds
            )
            for judgement in judgements
            for name, verdict in judgement.verdicts.items()
            if isinstance(verdict, Judged)
        }

    def _best_test_epoch(self, epochs: list[EpochMetrics]) -> BestTestEpoch | None:
        sign = 1 if self.job.table.kind == "classification" else -1
        judged = [(e.test_score, e.epoch) for e in epochs if e.test_score is not None]
        if not judged:
            return None
        score, epoch = max(judged, key=lambda pair: (sign * pair[0], -pair[1]))
        return BestTestEpoch(epoch=epoch, score=score)

    def _write_timelines(self, judgements: list[FinalJudgement], selected: Weights) -> None:
        """Of the test split, or of validation where there is no other."""
        if not judgements:
            return
        by_split = {judgement.split: judgement for judgement in judgements}
        judgement = by_split.get("test", judgements[0])
        judged = judgement.verdicts[selected]
        if isinstance(judged, Judged):
            write_timelines(self.directory.timelines, self._timelines(judged, judgement.split))

    def _timelines(self, judged: Judged, split: Split) -> list[VideoTimeline]:
        lines = []
        for i, sample in enumerate(self.job.splits[split].samples):
            record = self._cache.record(sample.id)
            seconds = np.array(
                [
                    window_seconds(record, said.window, self.job.plan.sampling)
                    for said in judged.windows[i]
                ]
            )  # W 2
            outputs = window_outputs(judged.outputs(i), self.job.table.kind)  # W n_out
            lines.append(
                VideoTimeline(
                    id=sample.id,
                    label=sample.label,
                    start_seconds=record.pts_seconds[0] + seconds[:, 0],
                    end_seconds=record.pts_seconds[0] + seconds[:, 1],
                    outputs=outputs.astype(np.float32),
                )
            )
        return lines

    def _draw_curve(self, epochs: list[EpochMetrics], on_note: OnNote) -> None:
        """The picture is an extra: whatever keeps it from being drawn, the run is finished."""
        best = self.learner.best
        try:
            draw_curve(
                epochs,
                self.directory.path / "curve.png",
                kind=self.job.table.kind,
                best_epoch=None if best is None else best.epoch,
            )
        except Exception as error:
            on_note(f"curve.png was not drawn ({type(error).__name__}: {error})")

    # ---------------------------------------------------------------------------------------------

    def _candidate(self, split: Split, models: list[nn.Module]) -> Candidate | None:
        samples = self.job.splits[split].samples
        if not samples:
            return None
        return Candidate(
            models=models,
            stretches=samples,
            batch_size=self.job.config.batch_size,
            shuffle_frames=self.job.config.shuffle_frames,
            carries_memory=self.job.config.lanes,
        )

    def _result(
        self, judged: Judged, split: Split, stride_seconds: float, seconds: float
    ) -> EvaluationResult:
        return result_of(
            judged,
            self.job.table,
            split,
            self.job.splits[split],
            stride_seconds=stride_seconds,
            seconds=seconds,
        )


def restore_best(directory: Run) -> None:
    """Bring back a finished run's `best.safetensors` where it is gone and can be had."""
    if directory.last.exists() and not directory.best.exists():
        best = best_of(read_checkpoint(directory.last), name=str(directory.last))
        _export_best(best, directory, epoch=0)


def _export_best(best: Best | None, directory: Run, *, epoch: int) -> None:
    """`best.safetensors` follows from the checkpoint of `epoch`, which holds the best weights."""
    if best is None:
        return
    newest = best.epoch == epoch or not directory.best.exists()
    if newest or read_checkpoint(directory.best).about.get("epoch") != best.epoch:
        about = {"epoch": best.epoch, "score": best.score, "loss": best.loss}
        write_checkpoint(directory.best, weights_only(best.weights, about))
