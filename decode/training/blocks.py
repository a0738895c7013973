"""Into how many blocks a pass deals its epochs, so that what its runs share fits into memory.

Blocks decide the order of a run's videos and stay with it: runs that join a pass later take those
of the runs begun there, and are refused where these were dealt too coarsely for all of them. Knows
labels and lengths, and reads no token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ...store.cache import Cache
from ...store.errors import UsageError
from ..data.sharing import blocks_within, shared_bytes
from ..runs.run import open_run
from .job import Job


def pass_blocks(
    cache: Cache,
    jobs: Sequence[Job],
    folders: Sequence[Path],
    *,
    share_bytes: int,
    several: bool = True,
) -> int:
    """What a config or a run begun in `folders` says; else as many as `share_bytes` asks for, or
    one for a run that is and stays by itself: not `several`. One with lanes, which share no reads.

    UsageError where runs that are to read together would hold more than that at once.
    """
    if jobs[0].config.lanes:
        return 1
    known = _known(jobs, folders)
    if known is None and not several:
        return 1
    if known is None:
        return blocks_within(_shared_bytes(cache, jobs), share_bytes=share_bytes)
    pairs = zip(jobs, folders, strict=True)
    reading = [job for job, folder in pairs if not (folder / "results.json").exists()]
    if len(reading) > 1:  # a run by itself streams its windows, however they are dealt
        _require_memory(_shared_bytes(cache, reading), len(reading), known, share_bytes=share_bytes)
    return known


def _known(jobs: Sequence[Job], folders: Sequence[Path]) -> int | None:
    given = {job.config.blocks for job in jobs} - {None}
    begun = (open_run(f).about.train.blocks for f in folders if (f / "config.json").exists())
    return next((blocks for blocks in (*given, *begun) if blocks is not None), None)


def _require_memory(num_bytes: int, num_runs: int, blocks: int, *, share_bytes: int) -> None:
    needed = blocks_within(num_bytes, share_bytes=share_bytes)
    if needed > blocks:
        enough = math.ceil(num_bytes / blocks / 1e8) / 10  # GB, a tenth rounded up
        raise UsageError(
            f"blocks is {blocks} (a run keeps those that it was begun with), but these {num_runs} "
            f"runs need {needed} to share their reads in {share_bytes / 1e9:g} GB; train them in "
            f"another --run (`train-decoder`, and not a sweep, can be given more memory instead: "
            f"--share-memory {enough:g})"
        )


def _shared_bytes(cache: Cache, jobs: Sequence[Job]) -> int:
    return shared_bytes(
        cache.spec,
        [job.splits["train"].samples for job in jobs],
        [job.plan for job in jobs],
        windows_per_video=max(job.config.windows_per_video for job in jobs),
    )
