"""What is to be done for a worker that has died: letting go of its claims, and the record of what
it may have died of. Knows nothing of how it is known to be dead.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

from ...store.claims import list_claims, withdraw
from ...store.errors import CacheFormatError
from ...store.failures import FailureRecord
from ...store.workers import Worker, read_worker
from ..planning.plan import FileState, SourceError, look_at
from ..sources import VideoSource
from .dealing import MAX_DEATHS


def failure_of(video: VideoSource) -> FailureRecord:
    """Of a video that so many workers have died with."""
    try:
        file = look_at(video.path)
    except SourceError:
        file = FileState(size=0, mtime_ns=0)
    return FailureRecord(
        id=video.id,
        stage="encode",
        reason=f"{MAX_DEATHS} workers died with it in hand",
        source_name=video.name,
        source_size=file.size,
        source_mtime_ns=file.mtime_ns,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def let_go(root: Path, dead: Worker) -> int:
    """Remove the claims of a process that has died on any machine, as Ray knows at once and others
    only after a long silence; how many. One that is alive after all loses time: the first commit
    of a video stands."""
    process = (dead.host, dead.pid, dead.machine, dead.process_start)
    removed = 0
    for claim in list_claims(root):
        with contextlib.suppress(CacheFormatError, OSError):
            worker = read_worker(root, claim.worker)
            if worker is not None and process == (
                worker.host,
                worker.pid,
                worker.machine,
                worker.process_start,
            ):
                removed += withdraw(claim)
    return removed
