"""Many runs under one folder: where each of them is, and what they say together.

    RUN/lvu-relationship/seed0      RUN/lvu-relationship/seed1      RUN/lvu-scene/seed0 …

Each is an ordinary run directory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...store.errors import UsageError
from ...store.keys import task_path
from ...store.tasks import Split, TaskKind
from ...store.wording import counted
from ..config import TrainConfig
from ..judging.statistics import SeedStatistics
from ..runs.results import TrainResult, Weights
from .side_by_side import Outcome

MOST_SEEDS = 1000


def parse_seeds(text: str) -> tuple[int, ...]:
    """`5` as 0 … 4, and `0,3,7` as these three. UsageError for anything else."""
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[0-9]{1,19}\s*", part) for part in parts):
        raise UsageError(f"--seeds {text:.40}: expected a number such as 5, or seeds such as 0,3,7")
    numbers = [int(part) for part in parts]
    if len(numbers) == 1:
        if not 1 <= numbers[0] <= MOST_SEEDS:
            raise UsageError(
                f"--seeds {text}: a number of runs, expected 1 to {MOST_SEEDS}; "
                f"one seed is --seed {text}"
            )
        return tuple(range(numbers[0]))
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"--seeds {text}: a seed stands there twice")
    return tuple(numbers)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What is asked to be trained: configs with their directories; several: in folders of their
    own below one, rather than one run that is the folder itself."""

    jobs: tuple[tuple[TrainConfig, Path], ...]
    several: bool


def plan_training(
    folder: Path,
    resolved: Callable[[Path | None], TrainConfig],
    *,
    tasks: Sequence[str] = (),
    seeds: str | None = None,
    resume: bool = False,
) -> RunPlan:
    """The runs that some tasks and seeds make in `folder`, or those begun there to go on with.

    resolved: the config, given the directory of a run to go on with. tasks: none is the config's
    own. seeds: as `parse_seeds` reads them, None for the config's own.
    """
    numbers = None if seeds is None else parse_seeds(seeds)
    if resume:
        return _begun(folder, resolved, several_asked=len(tasks) > 1 or seeds is not None)
    if len(tasks) < 2 and seeds is None:
        return RunPlan(jobs=((resolved(None), folder),), several=False)
    if (folder / "config.json").exists():
        raise UsageError(
            f"--run {folder} is a run by itself; several runs need a folder of their own"
        )
    config = resolved(None)
    jobs = tuple(
        (replace(config, task=task, seed=seed), folder / _task_folder(task) / f"seed{seed}")
        for task in (tasks or [config.task])
        for seed in ((config.seed,) if numbers is None else numbers)
    )
    return RunPlan(jobs=jobs, several=True)


def _begun(
    folder: Path, resolved: Callable[[Path | None], TrainConfig], *, several_asked: bool
) -> RunPlan:
    if (folder / "config.json").exists() and not several_asked:
        return RunPlan(jobs=((resolved(folder), folder),), several=False)
    locked = sorted(path.parent for path in folder.glob("*/seed*/run.lock"))
    # All runs of a pass are locked before the first begins: a kill leaves some without a config.
    planned = [run for run in locked if not (run / "config.json").exists()]
    if planned and not several_asked:
        raise UsageError(
            f"--resume: {folder} holds {counted(len(planned), 'run')} planned and never begun "
            f"(first {planned[0].relative_to(folder)}); give the first command again, without "
            "--resume"
        )
    begun = sorted(path.parent for path in folder.glob("*/seed*/config.json"))
    if not begun:
        raise UsageError(f"--resume: {folder} holds no run; leave --resume out to begin one")
    if several_asked:
        raise UsageError("--resume goes on with every run below --run; leave tasks and seeds out")
    return RunPlan(jobs=tuple((resolved(run), run) for run in begun), several=True)


def _task_folder(task: str) -> str:
    return "-".join(task_path(task))


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """One task under one choice of weights, over its runs: test, or validation where there is no
    test split.

    figure: accuracy or squared error. correct, totals: k and N by run; correct is None for
    regression. listed: the videos of the split, readable or not. unseen: over the judged videos
    whose group was not trained on, of which there are num_unseen; None for none. floor, listed and
    num_unseen are the first run's, and the same for all, since all are judged on one cache.
    """

    task: str
    kind: TaskKind
    split: Split
    weights: Weights
    seeds: tuple[int, ...]
    figure: SeedStatistics
    correct: tuple[int, ...] | None
    totals: tuple[int, ...]
    listed: int
    num_unseen: int
    unseen: SeedStatistics | None
    floor: float

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "figure": self.figure.to_json(),
            "unseen": self.unseen and self.unseen.to_json(),
        }


def over_seeds(outcomes: Sequence[Outcome]) -> list[OverSeeds]:
    """By task in the order of `outcomes`, `best` before `last`; runs without a result are left
    out, and so are splits that nothing could be judged of."""
    found = []
    for task in dict.fromkeys(outcome.task for outcome in outcomes):
        done = [(o.seed, o.result) for o in outcomes if o.task == task and o.result is not None]
        choices: tuple[Weights, ...] = ("best", "last")
        for weights in choices:
            judged = [(seed, result) for seed, result in done if weights in result.by_weights]
            if (row := _over_seeds(task, weights, judged)) is not None:
                found.append(row)
    return found


def _over_seeds(
    task: str, weights: Weights, runs: Sequence[tuple[int, TrainResult]]
) -> OverSeeds | None:
    judged = [(seed, result.by_weights[weights]) for seed, result in runs]
    results = [(seed, one.test or one.val) for seed, one in judged]
    usable = [(seed, result) for seed, result in results if result is not None and result.total]
    if not usable:
        return None
    judgements = [result for _, result in usable]
    regression = judgements[0].kind == "regression"
    first, unseen = judgements[0], [result.unseen for result in judgements]
    return OverSeeds(
        task=task,
        kind=first.kind,
        split=first.split,
        weights=weights,
        seeds=tuple(seed for seed, _ in usable),
        figure=SeedStatistics.of([result.figure for result in judgements]),
        correct=None if regression else tuple(result.correct for result in judgements),
        totals=tuple(result.total for result in judgements),
        listed=first.coverage.total,
        num_unseen=unseen[0].total,
        unseen=SeedStatistics.of([result.figure for result in unseen]) if unseen[0].total else None,
        floor=first.floor,
    )
