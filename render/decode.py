"""What training, evaluation and the catalogue of decoders show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..console import (
    Progress,
    counted,
    human_bytes,
    human_seconds,
    print_json,
    print_line,
    print_note,
    print_table,
    share,
)

if TYPE_CHECKING:
    from ..decode.decoders.about import DecoderAbout
    from ..decode.metrics import EvaluationResult
    from ..decode.runs import TrainResult
    from ..decode.train import TrainProgress


def show_training(show: Progress, progress: TrainProgress) -> None:
    """A moving line within an epoch, and a line that stays for every epoch done."""
    if progress.note is not None:
        print_note(f"note: {progress.note}")
    where = f"epoch {progress.epoch}/{progress.epochs}"
    if (epoch := progress.finished) is not None:
        validation = "" if epoch.val_score is None else f"  val score {epoch.val_score:.4f}"
        print_note(
            f"{where}  loss {epoch.train_loss:.4f}{validation}  lr {epoch.lr:.2e}  "
            f"{human_seconds(epoch.seconds)}"
        )
    elif progress.total:
        words = {"train": "training", "validate": "validating", "evaluate": "judging"}
        show(f"{where} {words[progress.phase]} {share(progress.done, progress.total)}")


def print_training(result: TrainResult, *, as_json: bool) -> None:
    """`train-decoder`, once it is finished."""
    if as_json:
        print_json(result.to_json())
        return
    for judged in (result.val, result.test):
        if judged is not None:
            print_line(judged.describe())
    if result.horizon_seconds:
        horizons = ", ".join(f"{seconds:.3g}" for seconds in result.horizon_seconds)
        print_line(f"the kernels reach back (99 % of the energy, median, by layer): {horizons} s")
    print_line(
        f"{result.num_parameters:,} parameters, {result.selected} weights of epoch {result.epoch}, "
        f"{human_seconds(result.seconds)}, {human_bytes(result.bytes_read)} read; "
        f"everything is in {result.run}"
    )


def print_evaluation(result: EvaluationResult, *, as_json: bool) -> None:
    """`evaluate`."""
    if as_json:
        print_json(result.to_json())
        return
    print_line(result.describe())
    if result.classes:
        rows = [
            (name, f"{int(row[i])}/{int(row.sum())}", *map(int, row))
            for i, (name, row) in enumerate(zip(result.classes, result.confusion, strict=True))
        ]
        print_table(("class", "right", *result.classes), rows, title="taken for:")
    print_line(
        f"{counted(result.num_windows, 'window')} every {result.stride_seconds:g} s, "
        f"{human_bytes(result.bytes_read)} read in {human_seconds(result.seconds)}"
    )


def print_decoders(described: Sequence[DecoderAbout], *, as_json: bool) -> None:
    """`decoders`."""
    if as_json:
        print_json({"decoders": [about.to_json() for about in described]})
        return
    for about in described:
        print_line(f"{about.name}: {about.summary}")
        for option in about.options:
            print_line(f"  {option.name:<16} {option.describe()}")
