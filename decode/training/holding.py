"""`preload`: the tokens of a pass's training and validation videos, held in memory while it trains.

Whether they fit is said before anything is written, from records alone. The videos that are judged
only at the end are read from the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...store.cache import Cache
from ...store.errors import UsageError
from ...store.tasks import Split
from ...store.wording import counted, human_bytes
from ..bench.memory import free_bytes
from ..config import TrainConfig
from ..data.plan import Source
from ..data.preload import Held, Wanted, held_bytes, wanted_frames
from .job import Job

# Of what is free: the rest is for the decoder, its batches and reads on their way.
_MOST = 0.8


def require_room(cache: Cache, jobs: Sequence[Job], *, num_processes: int = 1) -> None:
    """UsageError where `preload` asks for more memory than there is, or for a GPU without one.

    num_processes: that train at the same time, each with such tokens in memory.
    """
    if not jobs or jobs[0].config.preload == "off":
        return
    place, device = jobs[0].config.preload, jobs[0].compute.device
    if place == "gpu" and device.type != "cuda":
        raise UsageError(f"preload is gpu and the device is {device}; use --preload ram or off")
    wanted = to_hold(cache, jobs)
    needed = held_bytes(cache, wanted) * (1 if place == "gpu" else num_processes)
    free = torch.cuda.mem_get_info(device)[0] if place == "gpu" else free_bytes()
    if free is not None and needed > _MOST * free:
        raise UsageError(
            f"preload is {place}: the tokens of {len(wanted)} videos are {needed:,} bytes, and "
            f"{free:,} are free, of which at most {100 * _MOST:.0f} % are taken; use a view that "
            "reads less, or --preload off"
        )


def hold(cache: Cache, jobs: Sequence[Job], *, on_note: Callable[[str], None]) -> Held | None:
    """What some runs train and validate on, read into memory; None where they do not ask for it."""
    if not jobs or jobs[0].config.preload == "off":
        return None
    config, device = jobs[0].config, jobs[0].compute.device
    wanted = to_hold(cache, jobs)
    read = human_bytes(held_bytes(cache, wanted))
    on_note(f"preload: {read} of {counted(len(wanted), 'video')} are read into memory first")
    return Held(
        cache,
        wanted,
        workers=config.workers,
        device=device if config.preload == "gpu" else torch.device("cpu"),
        to=device,
    )


def to_hold(cache: Cache, jobs: Sequence[Job]) -> dict[Source, Wanted]:
    """What `preload` holds for some runs that train together."""
    return wanted_frames(
        cache,
        [
            (job.splits[split].samples, job.plan)
            for job in jobs
            for split in held_splits(job.config)
        ],
    )


def held_splits(config: TrainConfig) -> tuple[Split, ...]:
    """Whose videos `preload` holds: those that are read again and again."""
    if config.preload == "off":
        return ()
    return ("train", "val", "test") if config.test_each_epoch else ("train", "val")
