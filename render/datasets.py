"""What `datasets` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..console import counted, print_json, print_line, print_table

if TYPE_CHECKING:
    from pathlib import Path

    from ..extract.annotations.audit import Audit, LengthAudit, LengthDifference, TaskAudit
    from ..extract.annotations.base import Annotations
    from ..extract.annotations.fetch import Fetched
    from ..extract.annotations.overview import PresetStatus

_SHOWN = 5  # of a list of ids; --json has them all


def print_presets(presets: Sequence[PresetStatus], *, as_json: bool) -> None:
    """`datasets`: each preset, where its files are, what it needs."""
    if as_json:
        print_json({"datasets": [_plain(asdict(preset)) for preset in presets]})
        return
    for preset in presets:
        print_line(f"{preset.name}: {preset.title}")
        print_line(f"  annotations  {preset.annotations or f'not set: {preset.layout}'}")
        print_line(f"  videos       {preset.videos or f'not set: from {preset.videos_are_at}'}")
        print_line(f"  set by       {', '.join(preset.settings)}, or --annotations and --videos")
        if preset.problem is not None:
            print_line(f"  problem      {preset.problem}")
        if preset.num_videos is not None:
            print_line(
                f"  holds        {preset.num_videos:,} videos, {preset.num_rows:,} rows, "
                f"{counted(len(preset.tasks), 'task')}: {', '.join(preset.tasks)}"
            )
    print_line("`vis4mer datasets fetch NAME --to DIR` downloads annotation files, never videos")


def print_fetched(fetched: Fetched, read: Annotations, *, as_json: bool) -> None:
    """`datasets fetch`: files, what they say, and where the videos are to be had."""
    from ..extract.annotations.fetch import VIDEOS_ARE_AT

    rows = sum(len(table.rows) for table in read.tables)
    if as_json:
        about = {"dataset": read.dataset, "videos": len(read.ids), "rows": rows}
        print_json({**about, **_plain(asdict(fetched)), "notes": list(read.notes)})
        return
    print_line(
        f"{fetched.folder}: {counted(len(fetched.written), 'file')} fetched, "
        f"{len(fetched.kept)} were there already"
    )
    _print_notes(read.notes)
    print_line(
        f"{read.dataset}: {len(read.ids):,} videos, {rows:,} rows in "
        f"{counted(len(read.tables), 'task')}; its videos are not downloaded, they are at "
        f"{VIDEOS_ARE_AT[read.dataset]}"
    )


def print_audit(audit: Audit, *, missing: Path | None, as_json: bool) -> None:
    """`datasets check`: what is there, each split, what leaks, what is of another length."""
    if as_json:
        print_json(_audit_json(audit))
        return
    _print_splits(audit)
    print_line()
    _print_tasks(audit)
    print_line()
    _print_lengths(audit.lengths)
    _print_notes(audit.notes)
    if audit.split_changes:
        print_line(
            f"{counted(len(audit.split_changes), 'video')} in different splits of different "
            "tasks: tasks may share reads, never a trained decoder"
        )
    print_line(_summary(audit))
    if missing is not None:
        print_line(f"{missing} lists {counted(len(audit.lost), 'video')} that cannot be used")
    elif audit.lost:
        print_line("--missing FILE.csv lists what cannot be used, with addresses")


def _print_splits(audit: Audit) -> None:
    looked = ("present", "missing", "broken") if audit.looked else ()
    short = f"< {audit.window_seconds:g} s"
    rows = []
    for task in audit.tasks:
        for split in task.splits:
            found = (split.present, split.missing, split.undecodable) if audit.looked else ()
            classes = " ".join(map(str, split.class_counts)) or "regression"
            rows.append((task.task, split.split, split.videos, *found, split.short, classes))
    print_table(("task", "split", "videos", *looked, short, "rows of each class"), rows)


def _print_tasks(audit: Audit) -> None:
    rows = [
        (
            task.task,
            _floor(task),
            _leak(task),
            len(task.in_two_splits),
            ", ".join(task.untrained),
            ", ".join(task.untested),
        )
        for task in audit.tasks
    ]
    print_table(
        ("task", "floor", "test leaks", "in two splits", "no train class", "no test class"), rows
    )
    print_line(
        "floor: always the most frequent test class, or always zero; test leaks: test videos of "
        "a group (LVU: a movie) that training has seen"
    )


def _floor(task: TaskAudit) -> str:
    if task.floor is None:
        return "no test rows"
    return f"{100 * task.floor:.1f} %" if task.classes else f"MSE {task.floor:.3f}"


def _leak(task: TaskAudit) -> str:
    tested = next((split.videos for split in task.splits if split.split == "test"), 0)
    return "no groups" if task.leaking is None else f"{len(task.leaking)}/{tested}"


def _print_lengths(lengths: LengthAudit) -> None:
    if not lengths.compared:
        return
    print_line(
        f"{counted(lengths.compared, 'file')} against the annotated length: {lengths.same} equal, "
        f"{lengths.with_outro} with an outro of 5 to 60 s, {len(lengths.too_long)} longer still, "
        f"{len(lengths.too_short)} too short; {lengths.mean_difference:+.1f} s on average"
    )
    for line in _differences("too short", lengths.too_short):
        print_line(line)
    for line in _differences("much longer", lengths.too_long):
        print_line(line)


def _differences(what: str, found: Sequence[LengthDifference]) -> Iterator[str]:
    for each in found[:_SHOWN]:
        yield (
            f"  {what}: {each.id} lasts {each.file_seconds:.1f} s, annotated "
            f"{each.annotated_seconds:g} s ({each.difference:+.1f} s)"
        )
    if len(found) > _SHOWN:
        yield f"  {what}: {len(found) - _SHOWN} more (--json lists all)"


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print_line(f"note: {note}")


def _summary(audit: Audit) -> str:
    hours = f", {audit.seconds / 3600:.1f} h annotated" if audit.seconds else ""
    named = f"{audit.dataset}: {counted(audit.videos, 'video')}{hours}"
    if not audit.looked:
        return f"{named}; no folder of videos was given, so no file was looked for"
    broken = [lost for lost in audit.lost if lost.problem != "missing"]
    for lost in broken[:_SHOWN]:
        print_line(f"cannot be decoded: {lost.id}: {lost.problem}")
    opened = f"{audit.opened} opened" if audit.opened else "none opened"
    return (
        f"{named}; {audit.usable} usable, {len(audit.lost) - len(broken)} missing, "
        f"{len(broken)} cannot be decoded ({opened})"
    )


def _audit_json(audit: Audit) -> dict[str, Any]:
    """Everything, with the differences in figures."""
    content = asdict(audit)
    for name in ("too_short", "too_long"):
        content["lengths"][name] = [
            {**asdict(each), "difference": each.difference} for each in getattr(audit.lengths, name)
        ]
    return content


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """Paths as text, for JSON."""
    return {
        key: str(value) if hasattr(value, "__fspath__") else value for key, value in content.items()
    }
