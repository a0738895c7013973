"""What the results of commands look like: one function a result, for people or as JSON.

Knows the records that the rooms return and how `console` prints; parses and computes nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from .console import (
    Progress,
    human_bytes,
    human_seconds,
    print_error,
    print_json,
    print_line,
    print_note,
    print_table,
    share,
)

if TYPE_CHECKING:
    from pathlib import Path

    from .decode.decoders.about import DecoderAbout
    from .decode.metrics import EvaluationResult
    from .decode.runs import TrainResult
    from .decode.train import TrainProgress
    from .demo import DemoResult
    from .doctor import Check
    from .extract.plan import ExtractPlan
    from .extract.progress import ExtractProgress, ExtractSummary
    from .predict import StreamedFrame, StreamedVideo, VideoPredictions
    from .store.failures import FailureRecord
    from .store.gc import GarbageReport
    from .store.records import EntryRecord
    from .store.summary import CacheSummary
    from .store.tasks import TaskTable
    from .store.verify import VerifyReport


def show_extraction(show: Progress, progress: ExtractProgress) -> None:
    """Videos, rate, how busy each stage is, what is being read."""
    done = progress.extracted + progress.skipped + progress.failed
    busy = "  ".join(f"{stage} {part:.0%}" for stage, part in progress.busy_share.items())
    reading = ", ".join(progress.reading[:4])
    show(
        f"{share(done, progress.num_videos)} videos  "
        f"{progress.failed} failed  {progress.frames} frames, {progress.frames_per_second:.1f}/s\n"
        f"busy: {busy}" + (f"\nreading: {reading}" if reading else "")
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
        busy = ", ".join(f"{stage} {part:.0%}" for stage, part in summary.busy_share.items())
        print_line(
            f"{summary.frames} frames in {human_seconds(summary.seconds)}, "
            f"{summary.frames_per_second:.1f} frames/s; busy: {busy}; "
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
        f"{_count(len(plan.to_extract), 'video')} to extract: {plan.frames} frames, "
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
        validation = "" if epoch.val_score is None else f"  val score {epoch.val_score:.4f}"
        print_note(
            f"{where}  loss {epoch.train_loss:.4f}{validation}  lr {epoch.lr:.2e}  "
            f"{human_seconds(epoch.seconds)}"
        )
    elif progress.total:
        words = {"train": "training", "validate": "validating", "evaluate": "judging"}
        show(f"{where} {words[progress.phase]} {share(progress.done, progress.total)}")


def prediction_lines(output: Sequence[float], classes: Sequence[str], *, top: int) -> list[str]:
    """The most probable classes in words, or the predicted value."""
    from .decode.predict import top_classes

    if not classes:
        return [f"{output[0]:.4f}"]
    best = top_classes(tuple(output), classes, count=top)
    return [f"{100 * choice.probability:5.1f} %  {choice.name}" for choice in best]


def print_stream(
    events: Iterable[StreamedFrame | StreamedVideo],
    *,
    classes: Sequence[str],
    top: int,
    as_json: bool,
) -> tuple[int, int]:
    """`predict --stream`: a line a frame, of JSON with `as_json`. Videos done, videos failed."""
    from .predict import StreamedFrame

    num_done = num_failed = 0
    for event in events:
        if isinstance(event, StreamedFrame):
            _print_frame(event, classes=classes, top=top, as_json=as_json)
        elif event.failure is not None:
            num_failed += 1
            print_error(f"{event.video.name}: {event.failure}")
        else:
            num_done += 1
    return num_done, num_failed


def _print_frame(frame: StreamedFrame, *, classes: Sequence[str], top: int, as_json: bool) -> None:
    video, prediction = frame.video.id, frame.prediction
    if as_json:
        sys.stdout.write(json.dumps({"video": video, **asdict(prediction)}) + "\n")
        sys.stdout.flush()
        return
    words = "too few tokens so far"
    if prediction.output is not None:
        words = "  ".join(prediction_lines(prediction.output, classes, top=top))
    end = f"  (window of {prediction.window_frames} frames complete)" if prediction.complete else ""
    print_line(f"{video}  {prediction.pts_seconds:9.2f} s  {words}{end}")


# Caches -----------------------------------------------------------------------------------------


def print_summary(summary: CacheSummary, *, as_json: bool) -> None:
    """`cache info`."""
    if as_json:
        print_json(summary.to_json())
        return
    for name, value in summary.lines(human_bytes=human_bytes):
        print_line(f"{name:<14} {value}")


def print_entries(entries: Sequence[EntryRecord], *, as_json: bool) -> None:
    """`cache ls`."""
    columns = ("id", "num_frames", "duration_seconds", "damaged_frames", "num_bytes")
    if as_json:
        print_json({"entries": [{c: getattr(e, c) for c in columns} for e in entries]})
        return
    rows = [
        (e.id, e.num_frames, e.duration_seconds, e.damaged_frames, human_bytes(e.num_bytes))
        for e in entries
    ]
    print_table(("video", "frames", "seconds", "damaged", "size"), rows)


def print_failures(failures: Sequence[FailureRecord], *, as_json: bool) -> None:
    """`cache ls --failures`."""
    if as_json:
        print_json({"failures": [failure.to_json() for failure in failures]})
        return
    rows = [(failure.id, failure.stage, failure.reason) for failure in failures]
    print_table(("video", "stage", "reason"), rows)


def print_verification(report: VerifyReport, *, as_json: bool) -> None:
    """`cache verify`."""
    if as_json:
        print_json(report.to_json())
        return
    for problem in report.problems:
        print_line(f"damaged: {problem.reason}")
    found = "no problems" if report.ok else _count(len(report.problems), "problem")
    print_line(
        f"{report.mode} check of {report.num_entries} videos, {human_bytes(report.num_bytes)}: "
        + found
        + ("; flipped bytes show only with --full" if report.mode == "quick" else "")
    )
    if not report.ok:
        print_line(
            "to mend it: `vis4mer cache rm CACHE ID…` for the videos named above, then the same "
            "`vis4mer extract` again"
        )


def print_garbage(report: GarbageReport, *, dry_run: bool, as_json: bool) -> None:
    """`cache gc`."""
    if as_json:
        print_json(asdict(report))
        return
    verb = "would free" if dry_run else "freed"
    young = "" if report.num_files else " (what is younger than --grace-hours is kept)"
    print_line(f"{verb} {human_bytes(report.num_bytes)} in {report.num_files} files{young}")


def print_labels(cache: Path, table: TaskTable, missing: Sequence[str], *, as_json: bool) -> None:
    """`label`: the task, and the videos it names that the cache does not hold."""
    if as_json:
        about = {"task": table.reference, "kind": table.kind, "classes": list(table.classes)}
        print_json({**about, "rows": len(table.rows), "missing": list(missing)})
        return
    outputs = f"{len(table.classes)} classes" if table.classes else "regression"
    print_line(f"{cache} now has task {table.reference}: {len(table.rows)} rows, {outputs}")
    if missing:
        some = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        print_line(f"not in the cache: {_count(len(missing), 'video')}: {some}")


# Decoders ---------------------------------------------------------------------------------------


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
        f"{_count(result.num_windows, 'window')} every {result.stride_seconds:g} s, "
        f"{human_bytes(result.bytes_read)} read in {human_seconds(result.seconds)}"
    )


def print_predictions(found: VideoPredictions, *, top: int, as_json: bool) -> None:
    """`predict`: every video's classes; what failed, on standard error."""
    if as_json:
        print_json(
            {
                "predictions": [done.to_json() for done in found.predictions],
                "failures": [failure.to_json() for failure in found.failures],
            }
        )
    else:
        for done in found.predictions:
            print_line(f"{done.id}  ({_count(len(done.windows), 'window')})")
            for line in prediction_lines(done.output, done.classes, top=top):
                print_line(f"  {line}")
    for video in found.damaged:
        print_note(f"note: {video.id} has {_count(video.damaged_frames, 'damaged frame')}")
    for failure in found.failures:
        print_error(f"{failure.source_name}: {failure.reason}")


def print_decoders(described: Sequence[DecoderAbout], *, as_json: bool) -> None:
    """`decoders`."""
    if as_json:
        print_json({"decoders": [about.to_json() for about in described]})
        return
    for about in described:
        print_line(f"{about.name}: {about.summary}")
        for option in about.options:
            print_line(f"  {option.name:<16} {option.describe()}")


def print_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    """`doctor`."""
    if as_json:
        print_json({"checks": [asdict(check) for check in checks]})
        return
    marks = {True: "ok", False: "WRONG", None: "-"}
    rows = [(marks[c.ok], c.name, c.value, c.hint) for c in checks]
    print_table(("", "what", "found", "what to do"), rows)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
