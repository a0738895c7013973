"""Where training is, for whoever shows it; knows nothing of how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...store.tasks import TaskKind
from ..runs.runlog import EpochMetrics

Phase = Literal["train", "validate", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Where training is, for whoever shows it.

    epoch: the one in hand, from 1. done, total: steps of the epoch over all runs while training,
    videos while judging. stall_share: of the time of the epoch's steps so far, how much was spent
    waiting for what is read; None while judging. finished: set once when `run`, whose task is of
    this `kind`, has committed an epoch. note: something to tell once, of `run`. runs: how many
    train in this pass.
    """

    phase: Phase
    epoch: int
    epochs: int
    done: int = 0
    total: int = 0
    stall_share: float | None = None
    finished: EpochMetrics | None = None
    kind: TaskKind = "classification"
    note: str | None = None
    run: Path | None = None
    runs: int = 1


OnProgress = Callable[[TrainProgress], None]
