"""What the `cache` commands show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..console import (
    counted,
    human_bytes,
    print_json,
    print_line,
    print_table,
)

if TYPE_CHECKING:
    from ..store.failures import FailureRecord
    from ..store.gc import GarbageReport
    from ..store.records import EntryRecord
    from ..store.summary import CacheSummary
    from ..store.verify import VerifyReport


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
    found = "no problems" if report.ok else counted(len(report.problems), "problem")
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
