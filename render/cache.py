"""What the `cache` commands show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..console import (
    human_bytes,
    human_seconds,
    print_json,
    print_line,
    print_note,
    print_table,
)
from ..store.errors import SEE_VERIFY
from ..store.wording import counted, some_of

if TYPE_CHECKING:
    from ..store.convert.exporting import ExportSummary
    from ..store.convert.import_run import ImportSummary
    from ..store.failures import FailureRecord
    from ..store.gc import GarbageReport
    from ..store.packing import PackSummary
    from ..store.pooling import PoolSummary
    from ..store.records import EntryRecord
    from ..store.summary import CacheSummary


def print_summary(summary: CacheSummary, *, as_json: bool) -> None:
    """`cache info`."""
    if as_json:
        print_json(summary.to_json())
        return
    for name, value in summary.lines(human_bytes=human_bytes):
        print_line(f"{name:<14} {value}")


def print_entries(
    entries: Sequence[EntryRecord], unreadable: Sequence[str], *, to_mend: str, as_json: bool
) -> None:
    """`cache ls`. unreadable: what is wrong with the records that are no entries therefore."""
    columns = ("id", "num_frames", "duration_seconds", "damaged_frames", "num_bytes")
    if as_json:
        listed = [
            {
                **{c: getattr(e, c) for c in columns},
                "arrays": list(e.token_arrays),
                "pack": e.pack.name if e.pack else None,
            }
            for e in entries
        ]
        print_json({"entries": listed, "unreadable": list(unreadable)})
        return
    for reason in unreadable:
        print_note(f"damaged: {reason.removesuffix(f'; {SEE_VERIFY}')}")
    if unreadable:
        print_note(f"to mend {'it' if len(unreadable) == 1 else 'them'}: {to_mend}")
    rows = [
        (
            e.id,
            e.num_frames,
            e.duration_seconds,
            e.damaged_frames,
            human_bytes(e.num_bytes),
            ", ".join(e.token_arrays) + (" (packed)" if e.pack else ""),
        )
        for e in entries
    ]
    print_table(("video", "frames", "seconds", "damaged", "size", "arrays"), rows)


def print_failures(failures: Sequence[FailureRecord], *, as_json: bool) -> None:
    """`cache ls --failures`."""
    if as_json:
        print_json({"failures": [failure.to_json() for failure in failures]})
        return
    rows = [(failure.id, failure.stage, failure.reason) for failure in failures]
    print_table(("video", "stage", "reason"), rows)


def print_import(summary: ImportSummary, *, as_json: bool) -> None:
    """`cache import`."""
    if as_json:
        print_json(summary.to_json())
        return
    for note in summary.notes:
        print_line(f"note: {note}")
    for failure in summary.failures:
        print_line(f"failed: {failure.id}: {failure.reason}")
    if summary.changed:
        changed = counted(len(summary.changed), "file")
        print_line(
            f"{changed} changed and left as before (--overwrite): {some_of(summary.changed)}"
        )
    print_line(
        f"{counted(len(summary.imported), 'video')} imported, {summary.already_there} were there "
        f"already, {len(summary.failures)} failed"
        + (f", {summary.left} left to do" if summary.left else "")
    )
    print_line(
        f"{counted(summary.frames, 'frame')} of {summary.layout}, stored as "
        f"{summary.stored_dtype}, in {human_seconds(summary.seconds)}; {_times(summary)}, and how "
        "the tokens were made is recorded as unknown"
    )
    if summary.interrupted:
        print_line("stopped early; the same command goes on")


def _times(summary: ImportSummary) -> str:
    """When frames are taken to be; that of nothing, when nothing was imported."""
    assumed = f"frame k is taken to be at k / {summary.fps:g} s"
    if summary.assumed_times == len(summary.imported):
        return assumed
    some = counted(summary.assumed_times, "video")
    return "times as exported" + (f" (of {some}, {assumed})" if summary.assumed_times else "")


def print_export(summary: ExportSummary, *, as_json: bool) -> None:
    """`cache export`."""
    if as_json:
        print_json(summary.to_json())
        return
    for failure in summary.failures:
        print_line(f"failed: {failure.id}: {failure.reason}")
    if summary.missing:
        print_line(
            f"{len(summary.missing)} that the task names are not in the cache: "
            f"{some_of(summary.missing)}"
        )
    print_line(
        f"{counted(len(summary.exported), 'video')} exported to {summary.folder}, "
        f"{human_bytes(summary.num_bytes)} in {human_seconds(summary.seconds)}; "
        f"{summary.already_there} were there already, {len(summary.failures)} failed"
        + (f", {summary.left} left to do" if summary.left else "")
    )
    converted = f" (the cache holds {summary.stored_dtype})"
    print_line(
        f"values are {summary.dtype}{converted if summary.dtype != summary.stored_dtype else ''}; "
        "index.csv says which file is which video"
    )
    if summary.interrupted:
        print_line("stopped early; the same command goes on")


def print_pooling(summary: PoolSummary, *, as_json: bool) -> None:
    """`cache pool`."""
    if as_json:
        print_json(summary.to_json())
        return
    for failure in summary.failures:
        print_line(f"failed: {failure.id}: {failure.reason}")
    print_line(
        f"{', '.join(summary.arrays)} {'dropped from' if summary.dropped else 'added to'} "
        f"{counted(len(summary.changed), 'video')}, {human_bytes(summary.num_bytes)} in "
        f"{human_seconds(summary.seconds)}; {summary.unchanged} were so already, "
        f"{len(summary.failures)} failed" + (f", {summary.left} left to do" if summary.left else "")
    )
    if summary.dropped and summary.changed:
        print_line("`vis4mer cache gc` frees their space")
    if summary.interrupted:
        print_line("stopped early; the same command goes on")


def print_packing(summary: PackSummary, *, as_json: bool) -> None:
    """`cache pack` and `cache unpack`."""
    if as_json:
        print_json(summary.to_json())
        return
    for failure in summary.failures:
        print_line(f"failed: {failure.id}: {failure.reason}")
    if summary.kept_loose:
        print_line(
            f"{counted(len(summary.kept_loose), 'video')} of other codecs than ours stay loose: "
            f"{some_of(summary.kept_loose)}"
        )
    packed = summary.direction == "pack"
    moved = f"put into {counted(summary.num_packs, 'pack')}" if packed else "taken out of packs"
    print_line(
        f"{counted(len(summary.changed), 'video')} {moved}, {human_bytes(summary.num_bytes)} in "
        f"{human_seconds(summary.seconds)}; {summary.unchanged} were so already, "
        f"{len(summary.failures)} failed" + (f", {summary.left} left to do" if summary.left else "")
    )
    if summary.changed and not summary.freed:
        print_line("`vis4mer cache gc` frees what they took before, from tomorrow on")
    if summary.interrupted:
        print_line("stopped early; the same command goes on")


def print_garbage(report: GarbageReport, *, dry_run: bool, as_json: bool) -> None:
    """`cache gc`."""
    if as_json:
        print_json(asdict(report))
        return
    verb = "would free" if dry_run else "freed"
    young = (
        ""
        if report.num_files
        else " (what is younger than --grace-hours stays, and what vis4mer did not make)"
    )
    print_line(
        f"{verb} {human_bytes(report.num_bytes)} in {counted(report.num_files, 'file')}{young}"
    )
    if report.kept:
        print_line(
            f"{counted(len(report.kept), 'path')} kept for now, since somebody has a file open "
            f"there: {some_of(report.kept)}"
        )
    if report.num_claims:
        print_line(
            f"{'would remove' if dry_run else 'removed'} {counted(report.num_claims, 'claim')} of "
            "workers that are gone; the same `vis4mer extract` takes up their videos"
        )
    if report.dead_bytes:
        print_line(
            f"{human_bytes(report.dead_bytes)} lie unused in packs that hold other videos too; "
            "`vis4mer cache pack` writes such packs anew"
        )
