"""What `vis4mer cache push` and `pull` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import console
from ..store.wording import counted, some_of

if TYPE_CHECKING:
    from ..store.transfer.running import TransferProgress, TransferSummary


def progress_line(progress: TransferProgress) -> str:
    """`12/80  1.2 GB of 9.0 GB, 210.0 MB/s, 38 s left`."""
    left = progress.seconds_left
    parts = [
        f"{console.human_bytes(progress.done_bytes)} of {console.human_bytes(progress.num_bytes)}",
        f"{console.human_bytes(progress.bytes_per_second)}/s",
        *([] if left is None else [f"{console.human_seconds(left)} left"]),
    ]
    return f"{console.share(progress.videos, progress.num_videos)}  {', '.join(parts)}"


def print_transfer(summary: TransferSummary, *, as_json: bool) -> None:
    """What travelled, what was there already, and what could not be moved."""
    if as_json:
        console.print_json(summary.to_json())
        return
    verb = "would travel" if summary.dry_run else "copied"
    packs = f" in {counted(summary.num_packs, 'pack')}" if summary.num_packs else ""
    rate = summary.num_bytes / summary.seconds if summary.seconds else 0.0
    speed = (
        ""
        if summary.dry_run
        else f" in {console.human_seconds(summary.seconds)}, " + (f"{console.human_bytes(rate)}/s")
    )
    console.print_line(
        f"{counted(len(summary.copied), 'video')} {verb}{packs} "
        f"({console.human_bytes(summary.num_bytes)}{speed}); {summary.present:,} there already"
    )
    console.print_line(f"{summary.source} → {summary.target}")
    if summary.tasks:
        console.print_line(f"task tables: {', '.join(summary.tasks)}")
    _list("replaced, other values stood there", summary.replaced)
    _list("of the task's videos have no entry at the source", summary.lacking)
    _list("lack some of these arrays (`vis4mer cache pool` makes gridN)", summary.without_arrays)
    for failure in summary.failures:
        console.print_note(f"failed: {failure.reason}")
    if summary.left:
        console.print_note(
            f"stopped: {counted(summary.left, 'video')} left; the same command goes on"
        )


def _list(what: str, ids: tuple[str, ...]) -> None:
    if ids:
        console.print_note(f"{len(ids):,} {what}: {some_of(ids)}")
