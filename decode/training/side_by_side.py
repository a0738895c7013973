"""One pass over the cache: runs that train side by side, epoch by epoch, and are judged together.

    while runs are behind      the fewest epochs first: a pass that was interrupted catches up
        train                  the batches of all of them, from shared reads; lanes run after run
        validate               each on its own videos, every timeline read once for a token view
        commit                 each into its own directory
    judge                      both checkpoints of each, every timeline read once for a token view

They share the reads and nothing else (with lanes those of the judging alone); a run by itself is a
pass of one, whose reads are streamed.
Runs of several token views train on the same reads, and are judged view after view: a timeline that
served views at once would hold windows of all of them on the device.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...store.cache import Cache
from ...store.errors import Vis4merError
from ...store.tasks import Split, TaskKind
from ..data.ahead import Stopwatch
from ..data.loader import LabelledBatch
from ..data.plan import WindowPlan
from ..data.preload import Held
from ..data.sharing import SharedEpoch
from ..judging.judge import Candidate, Verdict, judge_all
from ..runs.results import TrainResult, Weights
from ..runs.run import Run
from ..runs.runlog import EpochMetrics
from .begin import begin_run
from .clock import Stalls, StepClock
from .handing import handed_result
from .holding import hold
from .job import Job
from .progress import OnProgress, Phase, TrainProgress
from .ranks import Ranks
from .split_judging import judge_split
from .trainee import Checkpointed, FinalJudgement, Trainee, restore_best


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one run of a pass: a result, or why there is none."""

    run: Path
    task: str
    seed: int
    result: TrainResult | None
    error: Vis4merError | None

    def require(self) -> TrainResult:
        """The result; otherwise raises what kept it from being."""
        if self.result is None:
            raise self.error or Vis4merError(f"{self.run}: there is no result")
        return self.result

    def to_json(self) -> dict[str, Any]:
        return {
            "run": str(self.run),
            "task": self.task,
            "seed": self.seed,
            "result": None if self.result is None else self.result.to_json(),
            "error": None if self.error is None else str(self.error),
        }


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What the models of one run said of a split. seconds: the run's share of the judging."""

    verdicts: tuple[Verdict, ...]
    seconds: float


class Pass:
    """Runs that train side by side. `_trainees` are those that are not finished yet.

    ranks: the processes that all do this together. The first alone touches the directories.
    """

    def __init__(
        self,
        cache: Cache,
        jobs: Sequence[Job],
        folders: Sequence[Path],
        progress: OnProgress,
        *,
        ranks: Ranks | None = None,
    ) -> None:
        self._cache = cache
        self._jobs = jobs
        self._ranks = ranks
        if ranks is None or ranks.leads:
            self._directories = _begin(jobs, folders)
        else:
            pairs = zip(jobs, folders, strict=True)
            self._directories = [Run(path=folder, about=job.about) for job, folder in pairs]
        self._progress = progress
        self._trainees: list[Trainee] = []
        self._results: dict[Path, TrainResult] = {}
        self._held: Held | None = None
        self._held_seconds: dict[Trainee, float] = {}  # by run, its share of the time to read that

    def run(self) -> tuple[Outcome, ...]:
        """Epochs from wherever the directories are, then the final evaluation."""
        compute = self._jobs[0].compute
        for directory in self._directories:
            finished = handed_result(directory.results, self._ranks, run=directory.path)
            if finished is not None:
                if self._ranks is None or self._ranks.leads:
                    restore_best(directory)
                note = f"{directory.path} is finished; nothing was done"
                self._tell("evaluate", self._jobs[0].config.epochs, note=note)
                self._results[directory.path] = finished
        with compute.own_randomness():
            for job, directory in zip(self._jobs, self._directories, strict=True):
                if directory.path not in self._results:
                    self._join(Trainee(self._cache, job, directory, ranks=self._ranks))
            self._hold()
            try:
                while behind := self._behind():
                    self._epoch(behind)
            finally:
                for trainee in self._trainees:
                    trainee.loader.close()
            self._finish()
        errors = {trainee.directory.path: trainee.error for trainee in self._trainees}
        return tuple(
            Outcome(
                run=directory.path,
                task=job.config.task,
                seed=job.config.seed,
                result=self._results.get(directory.path),
                error=errors.get(directory.path),
            )
            for job, directory in zip(self._jobs, self._directories, strict=True)
        )

    def _join(self, trainee: Trainee) -> None:
        self._trainees.append(trainee)
        for note in trainee.job.notes:
            self._note(trainee, note, phase="train", epoch=trainee.learner.epoch + 1)

    def _hold(self) -> None:
        """Read into memory what is to be held there. Its bytes, and the seconds that they took, are
        split between the runs and count in the next epoch of each."""
        began = time.monotonic()
        going = [trainee for trainee in self._trainees if not trainee.finished]
        jobs = [trainee.job for trainee in going]
        self._held = hold(self._cache, jobs, on_note=lambda note: self._note(going[0], note))
        if self._held is None:
            return
        seconds = (time.monotonic() - began) / len(going)
        share, rest = divmod(self._held.num_bytes, len(going))
        for place, trainee in enumerate(going):
            trainee.loader.hold(self._held)
            trainee.loader.bytes_read += share + (place < rest)
            self._held_seconds[trainee] = seconds

    def _behind(self) -> list[Trainee]:
        """The runs with the fewest epochs: all of them, unless the pass was interrupted."""
        going = [t for t in self._trainees if t.error is None and not t.finished]
        first = min((t.learner.epoch for t in going), default=0)
        return [t for t in going if t.learner.epoch == first]

    def _epoch(self, trainees: Sequence[Trainee]) -> None:
        """One pass over the training videos, the validation, and the commit of both."""
        began = time.monotonic()
        number = trainees[0].learner.epoch + 1
        total = sum(t.loader.num_steps(number - 1) for t in trainees)
        clock = StepClock(trainees[0].job.compute.device, len(trainees))
        stalls = Stalls()
        for done, (i, batch) in enumerate(self._batches(trainees, number - 1, stalls.waiting)):
            self._tell("train", number, done=done, total=total, stall_share=stalls.share)
            with clock.step(i):
                trainees[i].step(batch)
            if all(trainee.error for trainee in trainees):
                break  # nobody is left to read for
        for trainee in trainees:
            trainee.end_steps()
        shares, stall_share = clock.shares(), stalls.share
        seconds = time.monotonic() - began
        judged = self._judge_epoch([t for t in trainees if t.error is None], number)
        for trainee, share in zip(trainees, shares, strict=True):
            if (said := judged.get(trainee)) is None:
                continue
            judging = sum(one.seconds for one in said.values())
            finished = trainee.commit(
                {split: one.verdicts[0] for split, one in said.items()},
                seconds=self._held_seconds.pop(trainee, 0.0) + share * seconds + judging,
                judged_seconds=judging,
                stall_share=stall_share,
            )
            if finished:
                kind, run = trainee.job.table.kind, trainee.directory.path
                self._tell("validate", number, finished=finished, kind=kind, run=run)

    def _batches(
        self, trainees: Sequence[Trainee], epoch: int, waiting: Stopwatch
    ) -> Iterator[tuple[int, LabelledBatch]]:
        """(which run, its next batch): streamed to a run by itself, of shared reads to several.
        waiting: runs while a batch waits for what is read.

        With lanes several are streamed too, one after another: each meets whole videos in an order
        of its own, so that there is no part of them which all could use before the next is read.
        And in several processes, each of which has a part of every batch: of these parts no two
        runs have much in common.
        """
        job = trainees[0].job
        if len(trainees) == 1 or job.config.lanes or self._ranks is not None:
            return _streamed(trainees, epoch, waiting)
        return iter(
            SharedEpoch(
                self._cache,
                [trainee.loader for trainee in trainees],
                epoch=epoch,
                workers=job.config.workers,
                pin=job.compute.device.type == "cuda",
                held=self._held,
                waiting=waiting,
            )
        )

    def _judge_epoch(
        self, trainees: Sequence[Trainee], number: int
    ) -> Mapping[Trainee, dict[Split, _Said]]:
        """Validation of every run, and the test split of those that ask for it."""
        found: dict[Trainee, dict[Split, _Said]] = {trainee: {} for trainee in trainees}
        splits: tuple[Split, ...] = ("val", "test")
        for split in splits:
            asked = {
                trainee: candidate
                for trainee in trainees
                if split == "val" or trainee.job.config.test_each_epoch
                if (candidate := trainee.candidate(split)) is not None
            }
            for trainee, said in self._judge(asked, "validate", number).items():
                found[trainee][split] = said
        return found

    def _finish(self) -> None:
        """Judge both checkpoints of every run at the final stride, and write the results."""
        weights = {t: t.final_weights() for t in self._trainees if t.error is None}
        judgements: dict[Trainee, list[FinalJudgement]] = {trainee: [] for trainee in weights}
        splits: tuple[Split, ...] = ("val", "test")
        for split in splits:
            for trainee, judgement in self._judge_final(split, weights):
                judgements[trainee].append(judgement)
        for trainee, checkpoints in weights.items():
            if not trainee.accept(judgements[trainee]):
                continue
            finish = partial(
                trainee.finish,
                checkpoints,
                judgements[trainee],
                on_note=partial(self._note, trainee),
            )
            path = trainee.directory.path
            if (result := handed_result(finish, self._ranks, run=path)) is not None:
                self._results[path] = result

    def _judge_final(
        self, split: Split, weights: Mapping[Trainee, Mapping[Weights, Checkpointed]]
    ) -> Iterator[tuple[Trainee, FinalJudgement]]:
        asked = {
            trainee: candidate
            for trainee, checkpoints in weights.items()
            if (candidate := trainee.final_candidate(split, checkpoints)) is not None
        }
        for trainee, said in self._judge(asked, "evaluate", self._jobs[0].config.epochs).items():
            by_model = dict(zip(map(id, asked[trainee].models), said.verdicts, strict=True))
            by_weights = {name: by_model[id(w.model)] for name, w in weights[trainee].items()}
            yield trainee, FinalJudgement(split=split, verdicts=by_weights, seconds=said.seconds)

    def _judge(
        self, asked: Mapping[Trainee, Candidate], phase: Phase, epoch: int
    ) -> dict[Trainee, _Said]:
        """View after view."""
        views: defaultdict[WindowPlan, list[Trainee]] = defaultdict(list)
        for trainee in asked:
            views[trainee.job.plan].append(trainee)
        found: dict[Trainee, _Said] = {}
        for plan, trainees in views.items():
            began = time.monotonic()
            verdicts = self._judge_view(plan, {t: asked[t] for t in trainees}, phase, epoch)
            seconds = (time.monotonic() - began) / len(trainees)
            for trainee, said in zip(trainees, verdicts, strict=True):
                found[trainee] = _Said(verdicts=said, seconds=seconds)
        return found

    def _judge_view(
        self, plan: WindowPlan, asked: Mapping[Trainee, Candidate], phase: Phase, epoch: int
    ) -> list[tuple[Verdict, ...]]:
        job = self._jobs[0]
        stride = job.config.final_stride_seconds
        if phase == "validate":
            stride = job.config.validation_stride_seconds
        judge = judge_all
        if self._ranks is not None:
            num_outputs = [trainee.job.table.num_outputs for trainee in asked]
            judge = partial(judge_split, ranks=self._ranks, num_outputs=num_outputs)
        return judge(
            list(asked.values()),
            self._cache,
            plan,
            job.compute,
            stride_seconds=stride,
            workers=job.config.workers,
            on_video=lambda done, total: self._tell(phase, epoch, done=done, total=total),
            held=self._held,
        )

    def _note(
        self, trainee: Trainee, note: str, *, phase: Phase = "evaluate", epoch: int | None = None
    ) -> None:
        at = trainee.learner.epoch if epoch is None else epoch
        self._tell(phase, at, note=note, run=trainee.directory.path)

    def _tell(
        self,
        phase: Phase,
        epoch: int,
        *,
        done: int = 0,
        total: int = 0,
        stall_share: float | None = None,
        finished: EpochMetrics | None = None,
        kind: TaskKind = "classification",
        note: str | None = None,
        run: Path | None = None,
    ) -> None:
        self._progress(
            TrainProgress(
                phase=phase,
                epoch=epoch,
                epochs=self._jobs[0].config.epochs,
                done=done,
                total=total,
                stall_share=stall_share,
                finished=finished,
                kind=kind,
                note=note,
                run=run,
                runs=len(self._jobs),
            )
        )


def _streamed(
    trainees: Sequence[Trainee], epoch: int, waiting: Stopwatch
) -> Iterator[tuple[int, LabelledBatch]]:
    """Run after run, each its own reads, until it has diverged. Of a run by itself those of the
    next epoch begin before this one is judged."""
    [first, *others] = trainees
    goes_on = not others and epoch + 1 < first.job.config.epochs
    for i, trainee in enumerate(trainees):
        then = epoch + 1 if goes_on else None
        for batch in trainee.loader.epoch(epoch, then=then, waiting=waiting):
            yield i, batch
            if trainee.error is not None:
                break


def _begin(jobs: Sequence[Job], folders: Sequence[Path]) -> list[Run]:
    """Every run's directory; those that are there are compared before another is made."""
    pairs = list(zip(folders, jobs, strict=True))
    begun = {folder: (folder / "config.json").exists() for folder in folders}
    runs = {
        folder: begin_run(folder, job.about)
        for folder, job in sorted(pairs, key=lambda pair: not begun[pair[0]])
    }
    return [runs[folder] for folder in folders]
