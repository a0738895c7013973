"""The training curve as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ...store.files import write_atomic
from ...store.tasks import TaskKind
from ..runs.runlog import EpochMetrics


def draw_curve(
    epochs: Sequence[EpochMetrics], path: Path, *, kind: TaskKind, best_epoch: int | None = None
) -> None:
    """Write a PNG: losses above, the validation score below, the best epoch marked."""
    # Figure without pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    numbers = [e.epoch for e in epochs]
    above.plot(numbers, [e.train_loss for e in epochs], label="training")
    judged = [e for e in epochs if e.val_loss is not None]
    judged_numbers = [e.epoch for e in judged]
    if judged:
        above.plot(judged_numbers, [e.val_loss for e in judged], label="validation")
    above.set_ylabel("loss")
    above.legend()
    factor, name = (100, "accuracy, %") if kind == "classification" else (1, "squared error")
    if judged:
        below.plot(judged_numbers, [factor * (e.val_score or 0.0) for e in judged], color="C1")
    if best_epoch is not None:
        below.axvline(best_epoch, color="0.6", linestyle="--", label=f"best epoch: {best_epoch}")
        below.legend()
    below.set_ylabel(f"validation {name}")
    below.set_xlabel("epoch")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    buffer = io.BytesIO()
    canvas.print_png(buffer)  # type: ignore[no-untyped-call]
    write_atomic(path, buffer.getvalue())
