"""What `cache status` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..console import human_seconds, print_json, print_line
from ..store.wording import counted, some_of

if TYPE_CHECKING:
    from ..store.status import CacheStatus, WorkerStatus


def print_status(status: CacheStatus, *, as_json: bool) -> None:
    """`cache status`: one look."""
    if as_json:
        print_json(status.to_json())
        return
    print_line(
        f"{status.path}: {counted(status.num_videos, 'video')} done (by their records, "
        f"unread), {status.num_failures} failed"
        + (f" (`vis4mer cache ls {status.path} --failures`)" if status.num_failures else "")
    )
    for worker in status.workers:
        print_line(_describe(worker, watched_seconds=status.watched_seconds))
    if status.damaged_claims:
        claims = counted(len(status.damaged_claims), "damaged claim")
        print_line(
            f"{claims} in claims/, of no known worker: {some_of(status.damaged_claims)}; the next "
            "`vis4mer extract` takes the videos after ten minutes"
        )
    if not status.workers:
        print_line("nobody is at work in it")
    elif not status.watched_seconds:
        print_line("one look cannot tell who has fallen silent; --watch 30 goes on looking")


def _describe(worker: WorkerStatus, *, watched_seconds: float) -> str:
    """Who, since when by its own clock, what it does, and what was seen of it."""
    if worker.host is None:
        name = f"worker {worker.token} (its file is missing or damaged)"
    else:
        name = f"{worker.host} pid {worker.pid} (since {worker.started} by its clock)"
    work = "holds no video"
    if worker.videos:
        work = f"{counted(len(worker.videos), 'video')}: {some_of(worker.videos)}"
    elif worker.chores:
        work = f"writes {some_of(worker.chores)}"
    return f"{name}: {work}{_sign(worker, watched_seconds)}"


def _sign(worker: WorkerStatus, watched_seconds: float) -> str:
    freed = "; the next `vis4mer extract` takes up its videos" if worker.videos else ""
    if worker.state == "gone":
        return f"; GONE: its process has ended{freed}"
    if worker.state == "silent":
        since = human_seconds(worker.silent_seconds)
        return f"; SILENT: no sign for {since} (seen by this process)"
    if not watched_seconds:
        return f"; {counted(worker.beat, 'sign')} of life so far" if worker.beat else ""
    return f"; last sign {human_seconds(worker.silent_seconds)} ago (seen by this process)"
