"""What `extract` and `label` show."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ..console import (
    Progress,
    human_seconds,
    print_json,
    print_line,
    print_table,
    share,
)
from ..store.wording import counted, some_of
from ..store.workers import BEAT_SECONDS

if TYPE_CHECKING:
    from ..extract.annotations.labelling import LabelResult, TableChange
    from ..extract.stages.profile import ExtractProfile
    from ..extract.stages.progress import ExtractProgress, ExtractSummary, HeldVideos

_MIN_EFFICIENCY = 0.5  # below it stages waited for one another in turn, as in a short run


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


def print_extraction(summary: ExtractSummary, *, cache: str, as_json: bool) -> None:
    """What a run of extraction did, which videos failed and what held it up. cache: its path."""
    if as_json:
        print_json({**asdict(summary), "bottleneck": summary.bottleneck})
        return
    _print_exceptions(summary)
    _print_counts(summary)
    if summary.bottleneck is not None:
        busy = ", ".join(f"{stage} {part:.0%}" for stage, part in summary.busy_share.items())
        print_line(
            f"{summary.frames} frames in {human_seconds(summary.seconds)}, "
            f"{summary.frames_per_second:.1f} frames/s; busy: {busy}; "
            f"bottleneck: {summary.bottleneck}"
        )
    if summary.profile is not None:
        print_profile(summary.profile)
    _print_what_to_do(summary, cache)


def _print_exceptions(summary: ExtractSummary) -> None:
    """Videos of which there is something to tell."""
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
        print_line(
            f"{counted(len(summary.changed), 'file')} changed and left as before (--overwrite): "
            f"{some_of(summary.changed)}"
        )
    for held in summary.held:
        print_line(_describe_held(held))


def _num_held(summary: ExtractSummary) -> int:
    return sum(len(held.ids) for held in summary.held)


def _print_counts(summary: ExtractSummary) -> None:
    """How many of each kind, and the labels that speak of more than their videos hold."""
    num_held = _num_held(summary)
    print_line(
        f"{counted(summary.extracted, 'video')} extracted, "
        f"{summary.already_there} were there already, "
        f"{len(summary.failures)} failed"
        + (f", {num_held} in other workers' hands" if num_held else "")
        + (f", {summary.left} left to do" if summary.left else "")
        + (f", {len(summary.missing):,} of the dataset have no file" if summary.missing else "")
    )
    if summary.beyond:
        shown = some_of([label.describe() for label in summary.beyond], most=3)
        print_line(f"{counted(len(summary.beyond), 'label')} beyond the end of the video: {shown}")


def _print_what_to_do(summary: ExtractSummary, cache: str) -> None:
    """Where not everything asked for is done: how it will be."""
    if summary.interrupted:
        print_line("stopped early; the same command goes on")
    elif _num_held(summary):
        print_line(
            f"others are still at work: `vis4mer cache status {cache}` shows them; should one "
            f"stop, the same command does the rest (of a lost machine, after `vis4mer cache gc "
            f"{cache} --grace-hours 0.2`)"
        )
    if summary.left and not summary.interrupted:
        print_line(
            f"left to do is what --limit leaves, or another worker let go of just then (`vis4mer "
            f"cache status {cache}`); the same command goes on"
        )


def print_profile(profile: ExtractProfile) -> None:
    """How each stage spent its time, and which of them set the pace."""
    print_table(
        ["stage", "threads", "busy", "worked", "on a core", "waited", "frames/s alone"],
        [
            (
                each.stage,
                each.threads,
                f"{each.busy_share:.0%}",
                human_seconds(each.busy_seconds),
                human_seconds(each.cpu_seconds),
                human_seconds(each.waited_seconds),
                f"{each.frames_per_second:.1f}" if each.frames_per_second else "-",
            )
            for each in profile.stages
        ],
    )
    for stage in profile.stages:
        steps = [each for each in profile.steps if each.stage == stage.stage and not each.waits]
        largest = sorted(steps, key=lambda each: each.seconds, reverse=True)
        times = ", ".join(f"{each.step} {human_seconds(each.seconds)}" for each in largest)
        if times:
            print_line(f"{stage.stage}: {times}")
    if profile.limit is not None and profile.efficiency is not None:
        pace = f"at {profile.efficiency:.0%} of the speed that it has alone"
        if profile.efficiency < _MIN_EFFICIENCY:
            print_line(f"no stage was busy throughout: {profile.limit} came nearest, {pace}")
        else:
            print_line(f"{profile.limit} sets the pace: the run went {pace}")
    print_line(f"every step is in {profile.path}, which ui.perfetto.dev shows")


def _describe_held(held: HeldVideos) -> str:
    """Who is at which videos, and since when there has been no sign of it."""
    name = "an unknown worker" if held.host is None else f"{held.host} pid {held.pid}"
    silent = ""
    if held.silent_seconds > 2 * BEAT_SECONDS:
        silent = f", no sign of it for {human_seconds(held.silent_seconds)} as seen from here"
    return f"held by {name} ({counted(len(held.ids), 'video')}{silent}): {some_of(held.ids)}"


def print_labels(cache: str, result: LabelResult, *, as_json: bool) -> None:
    """`label`: the tasks, what a refresh changed, and the videos that the cache does not hold."""
    if as_json:
        tables = [_label_json(change) for change in result.tables]
        print_json({"tables": tables, "notes": list(result.notes)})
        return
    for note in result.notes:
        print_line(f"note: {note}")
    for change in result.tables:
        table = change.table
        has = "now has" if change.is_new else "has"
        print_line(
            f"{cache} {has} task {table.reference}: {counted(len(table.rows), 'row')}, "
            f"{table.describe_labels()}"
        )
        if not change.is_new:
            print_line(change.describe() or f"labels of {table.reference} did not change")
        if change.missing:
            missing = counted(len(change.missing), "video")
            print_line(f"not in the cache: {missing}: {some_of(change.missing)}")


def _label_json(change: TableChange) -> dict[str, object]:
    table = change.table
    return {
        "task": table.reference,
        "kind": table.kind,
        "classes": list(table.classes),
        "rows": len(table.rows),
        "is_new": change.is_new,
        "added": list(change.added),
        "removed": list(change.removed),
        "changed": list(change.changed),
        "missing": list(change.missing),
    }
