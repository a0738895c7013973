"""`metrics.jsonl`: what was measured after each epoch, one JSON object a line.

Lines are appended and flushed before the epoch's checkpoint, so a line may speak of an epoch that a
crash undid: `truncate` drops those. A line torn by a crash is the last one and is not read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...store import fields as f
from ...store.errors import CacheFormatError
from ...store.files import canonical_json, parse_json, read_json_bytes, storage_errors, write_atomic

OF_THE_CLOCK = ("seconds", "bytes_per_second", "stall_share")
"""Fields in which epochs of runs that became the same may differ."""


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One epoch, counted from 1; `steps` since the start, `lr` that of the epoch's last step.

    val_score: accuracy, or squared error for regression (lower is better). val_loss: see
    EvaluationResult. Both None without a validation split. test_score: like val_score, with
    `test_each_epoch`. bytes_read: the run's share of reads made for several; what is preloaded
    counts in the epoch after it, like the seconds that it took. bytes_per_second: of bytes_read,
    over `seconds`. stall_share: of the time of the epoch's steps, how much was spent waiting
    for what is read. Neither is known of epochs of long ago.
    """

    epoch: int
    steps: int
    lr: float
    train_loss: float
    val_score: float | None
    val_loss: float | None
    test_score: float | None = None
    seconds: float
    bytes_read: int
    bytes_per_second: float | None = None
    stall_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> EpochMetrics:
        return cls(
            epoch=f.integer(data, "epoch", name=name, minimum=1),
            steps=f.integer(data, "steps", name=name),
            lr=f.number(data, "lr", name=name),
            train_loss=f.number(data, "train_loss", name=name),
            val_score=f.optional_number(data, "val_score", name=name),
            val_loss=f.optional_number(data, "val_loss", name=name),
            test_score=f.optional_number(data, "test_score", name=name),
            seconds=f.number(data, "seconds", name=name),
            bytes_read=f.integer(data, "bytes_read", name=name),
            bytes_per_second=f.optional_number(data, "bytes_per_second", name=name),
            stall_share=f.optional_number(data, "stall_share", name=name),
        )


@dataclass(frozen=True)
class MetricsLog:
    """The file at `path`; it need not exist yet."""

    path: Path

    def read(self) -> list[EpochMetrics]:
        """All whole lines."""
        try:
            data = read_json_bytes(self.path)
        except FileNotFoundError:
            return []
        lines = data.split(b"\n")[:-1]  # what follows the last newline is torn
        epochs = []
        for number, line in enumerate(lines, start=1):
            name = f"{self.path} line {number}"
            epochs.append(EpochMetrics.from_json(parse_json(line, name=name), name=name))
        return epochs

    def append(self, epoch: EpochMetrics) -> None:
        with storage_errors(self.path), self.path.open("ab") as file:
            file.write(canonical_json(epoch.to_json()) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate(self, num_epochs: int) -> list[EpochMetrics]:
        """Keep the first `num_epochs` epochs and return them; CacheFormatError if some are gone."""
        kept = self.read()[:num_epochs]
        if [epoch.epoch for epoch in kept] != list(range(1, num_epochs + 1)):
            raise CacheFormatError(
                f"{self.path}: lacks lines of the {num_epochs} epochs that the checkpoint has seen"
            )
        write_atomic(self.path, b"".join(canonical_json(e.to_json()) + b"\n" for e in kept))
        return kept
