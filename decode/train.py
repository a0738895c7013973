"""The training loop: a cache and configs in, run directories out.

    config = TrainConfig(task="lvu/genre", epochs=50)
    result = train_decoder(open_cache("lvu.zarr"), config, Path("runs/genre"))

Each epoch draws one window of every video, judges the validation split and commits everything that
the next epoch depends on in one file. Killed at any moment, the same call goes on after the last
finished epoch and, with the same device and thread count, ends with the very same weights.

Several runs, of other tasks, seeds or decoders, can train in one pass over the cache. They share
the reads and nothing else: each ends with the weights that it would have had alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from ..store.cache import Cache
from ..store.errors import UsageError
from .config import TrainConfig
from .data.sharing import SHARE_BYTES, choose_blocks
from .pretraining.encoder import PretrainedEncoder
from .runs.results import TrainResult
from .runs.run import lock_run, open_run
from .training.begin import require_own_directory
from .training.job import Job, prepare_job
from .training.progress import OnProgress
from .training.side_by_side import Outcome, Pass

# What runs of one pass have in common: the reads, and how they are made.
SHARED = (
    "tokens",
    "window_seconds",
    "padding",
    "epochs",
    "blocks",
    "device",
    "precision",
    "validation_stride_seconds",
    "final_stride_seconds",
    "workers",
)


def train_decoder(
    cache: Cache,
    config: TrainConfig,
    run: Path,
    *,
    init: PretrainedEncoder | None = None,
    progress: OnProgress | None = None,
) -> TrainResult:
    """Train one decoder and judge it; everything goes into directory `run`.

    init: a pretrained encoder (`pretrained.read_encoder`) to begin with, of the decoder's shape.

    A directory that holds this run unfinished goes on with it; a finished one is returned as it is.
    Raises UsageError for a config that the cache cannot serve and for a directory of something
    else, be it another run, DivergedError (the last good checkpoint is kept) when the loss is no
    longer finite.
    """
    (outcome,) = train_decoders(cache, [(config, run)], init=init, progress=progress)
    return outcome.require()


def train_decoders(
    cache: Cache,
    jobs: Sequence[tuple[TrainConfig, Path]],
    *,
    share_bytes: int = SHARE_BYTES,
    init: PretrainedEncoder | None = None,
    progress: OnProgress | None = None,
) -> tuple[Outcome, ...]:
    """Train independent decoders in one pass over the cache, each into its own directory.

    share_bytes: host memory for what is read for several of them; decides `blocks` where no config
    says it. init: as in `train_decoder`, for all of them. Every config says the same of the fields
    in `SHARED`. Finished runs are returned as they are, and those that are behind catch up first. A
    run that diverges ends alone: its outcome has the error. Raises as `train_decoder` does before
    anything is trained.
    """
    prepared = [prepare_job(cache, config, init=init) for config, _ in jobs]
    folders = [run for _, run in jobs]
    _require_distinct(folders)
    for folder in folders:
        require_own_directory(folder)
    blocks = _blocks(cache, prepared, folders, share_bytes)
    prepared = [job if job.config.blocks else job.with_blocks(blocks) for job in prepared]
    _require_alike(prepared, folders)
    with contextlib.ExitStack() as held:
        for folder in folders:
            held.enter_context(lock_run(folder))
        return Pass(cache, prepared, folders, progress or (lambda _: None)).run()


def _blocks(cache: Cache, jobs: Sequence[Job], folders: Sequence[Path], share_bytes: int) -> int:
    """The blocks of a pass where its configs leave them open: those of a run that goes on, one for
    a run by itself, or as many as the memory asks for."""
    given = {job.config.blocks for job in jobs} - {None}
    begun = [open_run(f).about.train.blocks for f in folders if (f / "config.json").exists()]
    for known in (*given, *begun):
        if known is not None:
            return known
    if len(jobs) == 1:
        return 1
    return choose_blocks(
        cache,
        [job.splits["train"].samples for job in jobs],
        jobs[0].plan,
        windows_per_video=max(job.config.windows_per_video for job in jobs),
        share_bytes=share_bytes,
    )


def _require_distinct(folders: Sequence[Path]) -> None:
    if not folders:
        raise UsageError("a pass needs at least one run")
    resolved = [folder.resolve() for folder in folders]
    for i, folder in enumerate(resolved):
        if folder in resolved[:i]:
            raise UsageError(f"--run {folders[i]}: two runs of a pass cannot share a directory")


def _require_alike(jobs: Sequence[Job], folders: Sequence[Path]) -> None:
    first = jobs[0].config
    for job, folder in zip(jobs[1:], folders[1:], strict=True):
        for name in SHARED:
            one, other = getattr(first, name), getattr(job.config, name)
            if one != other:
                raise UsageError(
                    f"{name} is {one} in {folders[0]} and {other} in {folder}, but runs of one "
                    "pass share their reads; train them apart, or make it the same"
                )
