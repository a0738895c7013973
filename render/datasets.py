"""What `datasets` shows."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..console import print_json, print_line, print_table
from ..store.wording import counted, some_of

if TYPE_CHECKING:
    from pathlib import Path

    from ..extract.annotations.audit import Audit, LengthAudit, LengthDifference, TaskAudit
    from ..extract.annotations.base import Annotations
    from ..extract.annotations.fetch import Fetched
    from ..extract.annotations.overview import PresetStatus

_COLUMNS = 118
_FEW_CLASSES = 10
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
                f"  holds        {counted(preset.num_videos, 'video')}, "
                f"{counted(preset.num_rows or 0, 'row')}, "
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
        f"{read.dataset}: {counted(len(read.ids), 'video')}, {counted(rows, 'row')} in "
        f"{counted(len(read.tables), 'task')}; its videos are not downloaded, they are at "
        f"{VIDEOS_ARE_AT[read.dataset]}"
    )


def print_audit(audit: Audit, *, missing: Path | None, as_json: bool) -> None:
    """`datasets check`: what is there, each split, what leaks, what is of another length."""
    from ..extract.annotations.check import ON_YOUTUBE

    if as_json:
        print_json(_audit_json(audit))
        return
    _print_splits(audit)
    print_line()
    _print_tasks(audit)
    print_line()
    for task in audit.tasks:
        for line in _class_lines(task):
            print_line(line)
    _print_lengths(audit.lengths)
    _print_beyond(audit)
    _print_notes(audit.notes)
    if audit.split_changes:
        print_line(
            f"{counted(len(audit.split_changes), 'video')} in different splits of different "
            "tasks: tasks may share reads, never a trained decoder"
        )
    for line in _summary(audit):
        print_line(line)
    if missing is not None:
        print_line(f"{missing} lists {counted(len(audit.lost), 'video')} that cannot be used")
    elif audit.lost:
        addresses = ", with addresses" if audit.dataset in ON_YOUTUBE else ""
        print_line(f"--missing FILE.csv lists what cannot be used{addresses}")


def _print_splits(audit: Audit) -> None:
    columns = ["task", "split", "videos"]
    if audit.looked:
        columns += ["present", "missing"]
    if audit.opened:
        columns.append("undecodable")
    if audit.window_seconds is not None:
        columns.append(f"< {audit.window_seconds:g} s")
    rows = []
    for task in audit.tasks:
        for split in task.splits:
            cells: list[object] = [task.task, split.split, split.videos]
            if audit.looked:
                cells += [split.present, split.missing]
            if audit.opened:
                cells.append(split.undecodable)
            if audit.window_seconds is not None:
                cells.append(split.short)
            rows.append(cells)
    print_table(columns, rows)


def _print_tasks(audit: Audit) -> None:
    rows = [
        (task.task, task.labels, _floor(task), _leak(task), len(task.in_two_splits))
        for task in audit.tasks
    ]
    print_table(("task", "labels", "floor", "test leaks", "in two splits"), rows)
    print_line("floor: always the most frequent test class, or always zero")
    print_line(
        "test leaks: test videos that training has seen, or of a group (LVU: a movie) that it has"
    )


def _class_lines(task: TaskAudit) -> Iterator[str]:
    """Rows of each class where they are few, else how many; what no decoder can learn or show."""
    if not task.classes:
        return
    splits = [split.split for split in task.splits]
    counts = list(zip(*(split.class_counts for split in task.splits), strict=True))
    if len(task.classes) <= _FEW_CLASSES:
        named = (
            f"{name} {'/'.join(map(str, of))}"
            for name, of in zip(task.classes, counts, strict=True)
        )
        text = f"rows in {'/'.join(splits)}: {', '.join(named)}"
    else:
        rows = [sum(of) for of in counts]
        text = f"{task.labels}, {min(rows)} to {max(rows)} rows each"
    for what, names in (("training", task.untrained), ("test", task.untested)):
        if names:
            text += f"; {len(names)} without {what} rows: {some_of(names, most=3)}"
    yield from textwrap.wrap(
        f"{task.task}: {text}",
        _COLUMNS,
        subsequent_indent="  ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def _floor(task: TaskAudit) -> str:
    if task.floor is None:
        return "no test rows"
    return f"{100 * task.floor:.1f} %" if task.classes else f"MSE {task.floor:.3f}"


def _leak(task: TaskAudit) -> str:
    tested = next((split.videos for split in task.splits if split.split == "test"), 0)
    return f"{len(task.leaking)}/{tested}"


def _print_lengths(lengths: LengthAudit) -> None:
    if not lengths.compared:
        return
    print_line(
        f"{counted(lengths.compared, 'file')} against the annotated length: {lengths.same} equal, "
        f"{lengths.with_outro} with an outro of {outro_length()}, "
        f"{len(lengths.too_long)} longer still, {len(lengths.too_short)} too short; "
        f"{lengths.mean_difference:+.1f} s on average"
    )
    for line in _differences("too short", lengths.too_short):
        print_line(line)
    for line in _differences("much longer", lengths.too_long):
        print_line(line)


def outro_length() -> str:
    """How long an outro that the annotation leaves out may be."""
    from ..extract.annotations.audit import OUTRO_SECONDS

    return "{:g} to {:g} s".format(*OUTRO_SECONDS)


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


def _print_beyond(audit: Audit) -> None:
    if not audit.beyond:
        return
    print_line(f"{counted(len(audit.beyond), 'label')} beyond the end of the file:")
    for label in audit.beyond[:_SHOWN]:
        print_line(f"  {label.describe()}")
    if len(audit.beyond) > _SHOWN:
        print_line(f"  and {len(audit.beyond) - _SHOWN} more (--json lists all)")


def _summary(audit: Audit) -> Iterator[str]:
    hours = f", {audit.seconds / 3600:.1f} h annotated" if audit.seconds else ""
    named = f"{audit.dataset}: {counted(audit.videos, 'video')}{hours}"
    if not audit.looked:
        yield f"{named}; no folder of videos was given, so no file was looked for"
        return
    causes = Counter(lost.cause for lost in audit.lost)
    undecodable = [lost for lost in audit.lost if lost.cause == "undecodable"]
    for lost in undecodable[:_SHOWN]:
        yield f"undecodable: {lost.id}: {lost.problem}"
    label = f", {causes['label']} with labels after its end only" if causes["label"] else ""
    if audit.opened:
        found = f"{causes['undecodable']} undecodable{label} ({audit.opened} opened)"
        yield f"{named}; {audit.usable} usable, {causes['missing']} missing, {found}"
    else:
        found = "no file was opened, so whether they can be decoded is not known"
        yield f"{named}; {audit.usable} present, {causes['missing']} missing; {found}"


def _audit_json(audit: Audit) -> dict[str, Any]:
    """Everything, with the differences in figures."""
    content = asdict(audit)
    for name in ("too_short", "too_long"):
        content["lengths"][name] = [
            {**asdict(each), "difference": each.difference} for each in getattr(audit.lengths, name)
        ]
    content["beyond"] = [{**asdict(label), "unusable": label.unusable} for label in audit.beyond]
    return content


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """Paths as text, for JSON."""
    return {
        key: str(value) if hasattr(value, "__fspath__") else value for key, value in content.items()
    }
