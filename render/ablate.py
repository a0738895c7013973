"""What `ablate` shows: its plan, what its devices do, and the settings with their figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import (
    Progress,
    human_bytes,
    human_seconds,
    print_error,
    print_json,
    print_line,
    print_note,
    print_table,
)
from ..store.wording import counted

if TYPE_CHECKING:
    from ..decode.ablate.passes import SweepProgress
    from ..decode.ablate.plan import PassPlan, SweepPlan
    from ..decode.ablate.rows import Setting, SweepRow
    from ..decode.ablate.running import SweepResult


class SweepDisplay:
    """A moving line for each device, and a line that stays for every run that has finished."""

    def __init__(self, show: Progress, *, total: int) -> None:
        self._show = show
        self._total = total
        self._done = 0
        self._texts: dict[str, str] = {}
        self._noted: set[str] = set()

    def tell(self, progress: SweepProgress) -> None:
        """What a device does; what lasts is told once, whoever says it."""
        if not progress.lasting:
            self._texts[progress.device] = progress.text
            self._show("\n".join(f"{device}: {text}" for device, text in self._texts.items()))
        elif progress.text not in self._noted:
            self._noted.add(progress.text)
            print_note(f"note: {progress.text}")

    def finished(self, row: SweepRow) -> None:
        """A run has its results."""
        self._done += 1
        print_note(f"{self._done}/{self._total}  {row.run}  {row.task} {_score(row)}")


def print_plan(plan: SweepPlan, *, devices: Sequence[str], as_json: bool) -> None:
    """`ablate --dry-run`: every run, the passes they share, and about how much is read."""
    if as_json:
        print_json({**plan.to_json(), "devices": list(devices)})
        return
    rows = [
        (
            run.point.name,
            run.job.config.task,
            run.job.config.tokens or "",
            run.job.plan.shape.num_tokens,
            "finished" if run.finished else f"{run.epochs}/{run.job.config.epochs} epochs",
        )
        for run in plan.runs
    ]
    print_table(("run", "task", "tokens", "in a window", "done"), rows)
    print_line()
    reads = [each.bytes_to_read() for each in plan.passes]
    for number, (each, num_bytes) in enumerate(zip(plan.passes, reads, strict=True), start=1):
        views = ", ".join(dict.fromkeys(str(run.job.plan.view) for run in each.runs))
        print_line(
            f"pass {number}: {counted(len(each.runs), 'run')} of {views}"
            f"{_together(each)}, about {human_bytes(num_bytes)} from {each.cache.name}"
        )
    passes = "1 pass" if len(reads) == 1 else f"{len(reads)} passes"
    left = sum(len(each.runs) for each in plan.passes)
    print_line(
        f"{counted(left, 'run')} to train in {passes} on {', '.join(devices)}, about "
        f"{human_bytes(sum(reads))} to read"
    )
    for name, error in plan.refused.items():
        print_line(f"cannot be run: {name}: {error}")


def _together(one: PassPlan) -> str:
    """What the runs of a pass have in common; with lanes each trains on reads of its own."""
    if len(one.runs) < 2:
        return ""
    return " judged together" if one.runs[0].job.config.lanes else " share their reads"


def print_sweep(
    result: SweepResult, written: Sequence[Path], notes: Sequence[str], *, as_json: bool
) -> None:
    """`ablate`: a line for each setting, then what failed and what was written.

    Runs of one pass share its time by that of their steps, and the judging of a token view in equal
    parts: `bench` tells decoders apart.
    """
    for note in (*result.notes, *notes):
        print_note(f"note: {note}")
    if as_json:
        print_json({**result.to_json(), "files": [str(path) for path in written]})
    else:
        _print_settings(result.settings)
        seconds = sum(row.seconds for row in result.rows)
        num_bytes = sum(row.bytes_read for row in result.rows)
        print_line(
            f"{counted(len(result.rows), 'run')}, {human_seconds(seconds)}, "
            f"{human_bytes(num_bytes)} read; everything is in {result.folder}"
        )
        for path in written:
            print_line(f"written: {path}")
    for name, reason in result.failed.items():
        print_error(f"{name}: {reason}")


def _print_settings(settings: Sequence[Setting]) -> None:
    from ..decode.ablate.rows import axes_of
    from ..decode.ablate.table import cell, headings

    axes = axes_of(settings)
    tasks = len({setting.first.task for setting in settings}) > 1 and "task" not in axes
    rows = [
        (
            *([setting.first.task] if tasks else []),
            *(cell(setting.value(name)) for name in axes),
            *_figures(setting),
            setting.first.num_tokens,
            setting.first.num_parameters,
            "–" if setting.memory_bytes is None else human_bytes(setting.memory_bytes),
            human_seconds(setting.seconds),
        )
        for setting in settings
    ]
    columns = (
        "split",
        "score",
        "floor",
        "seeds",
        "in a window",
        "parameters",
        "memory",
        "share of time",
    )
    if rows:
        print_table((*(["task"] if tasks else []), *headings(settings), *columns), rows)


def _figures(setting: Setting) -> tuple[str, str, str, str]:
    regression = setting.first.kind == "regression"
    factor, unit, digits = (1.0, "", 3) if regression else (100.0, " %", 1)
    figure = setting.figure
    spread = "" if figure.std is None else f" ± {factor * figure.std:.{digits}f}"
    score = f"{'MSE ' * regression}{factor * figure.mean:.{digits}f}{spread}{unit}"
    floor = f"{factor * setting.floor:.{digits}f}{unit}"
    return setting.first.split or "", score, floor, str(len(setting.rows))


def _score(row: SweepRow) -> str:
    if row.score is None:
        return "nothing was judged"
    if row.correct is None:
        return f"{row.split} MSE {row.score:.3f}"
    return f"{row.split} {100 * row.score:.1f} % ({row.correct}/{row.total})"
