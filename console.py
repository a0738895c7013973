"""What the command line shows: one error line, tables, progress that suits where it is printed.

On a terminal progress is a live display; anywhere else it is a plain line now and then, so that a
cluster's log stays readable. Everything that comes from a cache or a file name is escaped, because
square brackets are markup to Rich.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from .store.errors import UsageError

if TYPE_CHECKING:
    from .decode.predict import StreamPrediction
    from .decode.train import TrainProgress
    from .demo import DemoResult
    from .extract.plan import ExtractPlan
    from .extract.progress import ExtractProgress, ExtractSummary

PLAIN_LINE_SECONDS = 10.0

PLAIN_WIDTH = 400  # a table in a file or a pipe keeps one row a line

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """The one line of a failure, on standard error."""
    err.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}")


def print_note(message: str) -> None:
    """A line for people, on standard error, so that `--json` output stays clean."""
    err.print(escape(message))


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_line(message: str = "") -> None:
    out.print(escape(message))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
) -> None:
    """A table; columns whose values are all numbers are aligned to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(f"{v:.3g}" if isinstance(v, float) else str(v)) for v in row))
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as plain:
        out.print(table)
    for line in plain.get().splitlines():
        print_line(line.rstrip())  # in a file nobody needs the padding


def human_bytes(count: float) -> str:
    """1536 → "1.5 kB", decimal units as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 20 s, 5 h 12 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """A live line that is redrawn on a terminal, and printed every ten seconds elsewhere.

    Call it with the text of the moment, which may have several lines. A context manager.
    """

    def __init__(self) -> None:
        self._live = Live(console=err, refresh_per_second=8) if err.is_terminal else None
        self._next = time.monotonic() + PLAIN_LINE_SECONDS

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update("")
            self._live.stop()

    def __call__(self, text: str) -> None:
        """Show `text` until the next call."""
        if self._live is not None:
            self._live.update(escape(text))
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_LINE_SECONDS
            print_note(text)


def bar(done: int, total: int, *, width: int = 24) -> str:
    """A bar of `width` characters, in plain text."""
    filled = width * done // max(1, total)
    return "━" * filled + "─" * (width - filled)


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets (a scheduler's preemption): finish what is in hand and leave."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def parse_sides(text: str) -> tuple[int, ...]:
    """`7,4` as (7, 4). UsageError for anything else."""
    try:
        return tuple(int(side) for side in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(f"--grids {text}: expected whole numbers such as 7 or 7,4") from error


def show_extraction(show: Progress, progress: ExtractProgress) -> None:
    """Videos, rate, how busy each stage is, what is being read."""
    done = progress.extracted + progress.skipped + progress.failed
    shares = "  ".join(f"{stage} {share:.0%}" for stage, share in progress.busy_share.items())
    reading = ", ".join(progress.reading[:4])
    show(
        f"{bar(done, progress.num_videos)} {done}/{progress.num_videos} videos  "
        f"{progress.failed} failed  {progress.frames} frames, {progress.frames_per_second:.1f}/s\n"
        f"busy: {shares}" + (f"\nreading: {reading}" if reading else "")
    )


def print_extraction(summary: ExtractSummary, *, as_json: bool) -> None:
    """What a run of extraction did, which videos failed and what held it up."""
    if as_json:
        print_json({**asdict(summary), "bottleneck": summary.bottleneck})
        return
    for damaged in summary.damaged:
        print_line(f"kept with {damaged.damaged_frames} damaged frames: {damaged.id}")
    for failure in summary.failures:
        print_line(f"failed: {failure.id}: {failure.reason}")
    if summary.known_failures:
        print_line(
            f"{len(summary.known_failures)} failed in an earlier run and did not change "
            "(--retry-failed tries them again)"
        )
    if summary.changed:
        shown = ", ".join(summary.changed[:5])
        print_line(f"{len(summary.changed)} files changed and were left (--overwrite): {shown}")
    print_line(
        f"{summary.extracted} videos extracted, {summary.already_there} were there already, "
        f"{len(summary.failures)} failed" + (f", {summary.left} left to do" if summary.left else "")
    )
    if summary.bottleneck is not None:
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in summary.busy_share.items())
        print_line(
            f"{summary.frames} frames in {human_seconds(summary.seconds)}, "
            f"{summary.frames_per_second:.1f} frames/s; busy: {shares}; "
            f"bottleneck: {summary.bottleneck}"
        )
    if summary.interrupted:
        print_line("stopped early; the same command goes on")


def print_plan(plan: ExtractPlan, *, as_json: bool) -> None:
    """What `extract --dry-run` found."""
    if as_json:
        print_json(asdict(plan))
        return
    for entry_id, reason in plan.unreadable.items():
        print_line(f"cannot be read: {entry_id}: {reason}")
    print_line(
        f"{len(plan.to_extract)} videos to extract: {plan.frames} frames, "
        f"{human_bytes(plan.num_bytes)} of {human_bytes(plan.free_bytes)} free"
    )
    print_line(
        f"{plan.already_there} are there already, {len(plan.changed)} changed, "
        f"{len(plan.unreadable)} cannot be read, {len(plan.known_failures)} failed before, "
        f"{plan.left} beyond --limit"
    )
    if plan.num_bytes > plan.free_bytes:
        print_line("this does not fit on the disk: choose another --cache, or --dtype int8")


def print_demo(result: DemoResult, *, as_json: bool) -> None:
    """Both accuracies side by side, and what to try next."""
    if as_json:
        print_json(result.to_json())
        return
    rows = [
        (score.decoder, what, f"{score.correct}/{score.total}", f"{score.accuracy:.1%}")
        for score, what in ((result.s4, "S4, sees order"), (result.floor, "mean of all tokens"))
    ]
    print_line()
    print_table(("decoder", "", "test", "accuracy"), rows)
    print_line()
    print_line(f"cache:  {result.cache}   (vis4mer cache info {result.cache})")
    print_line(f"run:    {result.s4.run}   training curve: {result.s4.curve}")
    print_line(f"predict: vis4mer predict {result.prediction.video} --run {result.s4.run}")
    print_line(f"all in {human_seconds(sum(result.seconds.values()))}")


def show_training(show: Progress, progress: TrainProgress) -> None:
    """A moving line within an epoch, and a line that stays for every epoch done."""
    if progress.note is not None:
        print_note(f"note: {progress.note}")
    where = f"epoch {progress.epoch}/{progress.epochs}"
    if (epoch := progress.finished) is not None:
        validation = "" if epoch.val_score is None else f"  val {epoch.val_score:.4f}"
        print_note(
            f"{where}  loss {epoch.train_loss:.4f}{validation}  lr {epoch.lr:.2e}  "
            f"{human_seconds(epoch.seconds)}"
        )
    elif progress.total:
        words = {"train": "training", "validate": "validating", "evaluate": "judging"}
        shown = bar(progress.done, progress.total)
        show(f"{where} {words[progress.phase]} {shown} {progress.done}/{progress.total}")


def prediction_lines(output: Sequence[float], classes: Sequence[str], *, top: int) -> list[str]:
    """The most probable classes in words, or the predicted value."""
    from .decode.predict import top_classes

    if not classes:
        return [f"{output[0]:.4f}"]
    best = top_classes(tuple(output), classes, count=top)
    return [f"{100 * choice.probability:5.1f} %  {choice.name}" for choice in best]


def print_stream(
    video: str,
    frames: Iterable[StreamPrediction],
    *,
    classes: Sequence[str],
    top: int,
    as_json: bool,
) -> None:
    """One line for every frame of a stream; JSON lines with `as_json`."""
    for frame in frames:
        if as_json:
            sys.stdout.write(json.dumps({"video": video, **asdict(frame)}) + "\n")
            sys.stdout.flush()
            continue
        shown = "too few tokens so far"
        if frame.output is not None:
            shown = "  ".join(prediction_lines(frame.output, classes, top=top))
        print_line(f"{video}  {frame.pts_seconds:9.2f} s  {shown}")
        if frame.complete:
            print_line(f"{video}  window of {frame.window_frames} frames complete; starting again")
