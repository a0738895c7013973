"""What `extract` and `label` show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..console import (
    Progress,
    counted,
    human_bytes,
    human_seconds,
    print_json,
    print_line,
    share,
)

if TYPE_CHECKING:
    from pathlib import Path

    from ..extract.plan import ExtractPlan
    from ..extract.progress import ExtractProgress, ExtractSummary
    from ..store.tasks import TaskTable


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
        f"{counted(len(plan.to_extract), 'video')} to extract: {plan.frames} frames, "
        f"{human_bytes(plan.num_bytes)} of {human_bytes(plan.free_bytes)} free"
    )
    print_line(
        f"{plan.already_there} are there already, {len(plan.changed)} changed, "
        f"{len(plan.unreadable)} cannot be read, {len(plan.known_failures)} failed before, "
        f"{plan.left} beyond --limit"
    )
    if plan.num_bytes > plan.free_bytes:
        print_line("this does not fit on the disk: choose another --cache, or --dtype int8")


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
        print_line(f"not in the cache: {counted(len(missing), 'video')}: {some}")
