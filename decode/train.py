"""Training: a cache and configs in, run directories out.

    config = TrainConfig(task="lvu/genre", epochs=50)
    result = train_decoder(open_cache("lvu.zarr"), config, Path("runs/genre"))

Each epoch draws `windows_per_video` windows of every video, or with lanes takes all of them in
order, judges the validation split and commits everything that the next epoch depends on in one
file. Killed at any moment, the same call goes on after the last finished epoch and, with the same
device and thread count, ends with the very same weights.

Several runs, of other tasks, seeds or decoders, can train in one pass over the cache. They share
the reads (with lanes: those of the judging) and nothing else: each ends with the weights that it
would have had alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..store.cache import Cache
from ..store.errors import UsageError
from .config import TrainConfig
from .data.sharing import SHARE_BYTES
from .pretraining.encoder import PretrainedEncoder
from .runs.results import TrainResult
from .runs.run import lock_run
from .training.begin import require_own_directory
from .training.blocks import pass_blocks
from .training.holding import require_room
from .training.job import Job, prepare_job
from .training.progress import OnProgress
from .training.ranks import Ranks
from .training.side_by_side import Outcome, Pass

# What runs of one pass have in common, beside `WindowPlan.reads`: how the reads are made.
SHARED = (
    "window_seconds",
    "padding",
    "lanes",
    "epochs",
    "blocks",
    "device",
    "precision",
    "validation_stride_seconds",
    "final_stride_seconds",
    "workers",
    "preload",
)


def train_decoder(
    cache: Cache,
    config: TrainConfig,
    run: Path,
    *,
    init: PretrainedEncoder | None = None,
    progress: OnProgress | None = None,
    ranks: Ranks | None = None,
) -> TrainResult:
    """Train one decoder and judge it; everything goes into directory `run`.

    init: a pretrained encoder (`pretrained.read_encoder`) to begin with, of the decoder's shape.
    ranks: the processes that do this together (`ranks.joined_ranks`); all of them call this.

    A directory that holds this run unfinished goes on with it; a finished one is returned as it is.
    Raises UsageError for a config that the cache cannot serve and for a directory of something
    else, be it another run, DivergedError (the last good checkpoint is kept) when the loss is no
    longer finite.
    """
    (outcome,) = train_decoders(
        cache, [(config, run)], several=False, init=init, progress=progress, ranks=ranks
    )
    return outcome.require()


def train_decoders(
    cache: Cache,
    jobs: Sequence[tuple[TrainConfig, Path]],
    *,
    share_bytes: int = SHARE_BYTES,
    several: bool = True,
    init: PretrainedEncoder | None = None,
    progress: OnProgress | None = None,
    ranks: Ranks | None = None,
    processes: int = 1,
) -> tuple[Outcome, ...]:
    """Train independent decoders in one pass over the cache, each into its own directory.

    share_bytes: host memory for what is read for several of them; decides `blocks` where neither a
    config nor a run begun says it. several: more may join them later, so that even one run is dealt
    into blocks that leave room. init, ranks: as in `train_decoder`, for all of them. processes:
    that train other passes here at the same time, this one counted; they share its memory.

    Every config says the same of the fields in `SHARED`, and has a token view that can be cut from
    the same reads: another grid or selection, not other frames. Finished runs are returned as they
    are, and those that are behind catch up first. A run that diverges ends alone: its outcome has
    the error. Raises as `train_decoder` does before anything is trained, and UsageError where runs
    begun hold blocks too large for `share_bytes`.
    """
    split = ranks is not None
    prepared = [prepare_job(cache, config, init=init, split=split) for config, _ in jobs]
    folders = [run for _, run in jobs]
    _require_distinct(folders)
    _require_alike(prepared, folders, names=("lanes",))  # which decides how blocks are dealt
    if ranks is not None:
        prepared = _in_ranks(prepared, ranks)

    def chosen_blocks() -> int:
        for folder in folders:
            require_own_directory(folder)
        return pass_blocks(
            cache,
            prepared,
            folders,
            share_bytes=share_bytes,
            several=several or len(jobs) > 1,
        )

    blocks = chosen_blocks() if ranks is None else ranks.number_of_first(chosen_blocks)
    prepared = [job if job.config.blocks else job.with_blocks(blocks) for job in prepared]
    _require_alike(prepared, folders)
    pairs = zip(prepared, folders, strict=True)
    require_room(
        cache,
        [job for job, folder in pairs if not (folder / "results.json").exists()],
        num_processes=processes if ranks is None else ranks.share.count,
    )
    with contextlib.ExitStack() as held:
        if ranks is None or ranks.leads:
            for folder in folders:
                held.enter_context(lock_run(folder))
        return Pass(cache, prepared, folders, progress or (lambda _: None), ranks=ranks).run()


def _in_ranks(jobs: Sequence[Job], ranks: Ranks) -> list[Job]:
    """The same runs on the device of this process; UsageError unless all processes mean them."""
    device = ranks.agreed_device([job.about.to_json() for job in jobs], jobs[0].compute.device)
    return [replace(job, compute=replace(job.compute, device=device)) for job in jobs]


def _require_distinct(folders: Sequence[Path]) -> None:
    if not folders:
        raise UsageError("a pass needs at least one run")
    resolved = [folder.resolve() for folder in folders]
    for i, folder in enumerate(resolved):
        if folder in resolved[:i]:
            raise UsageError(f"--run {folders[i]}: two runs of a pass cannot share a directory")


def _require_alike(
    jobs: Sequence[Job], folders: Sequence[Path], *, names: Sequence[str] = SHARED
) -> None:
    first = jobs[0]
    for job, folder in zip(jobs[1:], folders[1:], strict=True):
        same_reads = first.plan.reads(first.spec) == job.plan.reads(job.spec)
        for name in names if same_reads else ("tokens", *names):
            one, other = getattr(first.config, name), getattr(job.config, name)
            if one != other:
                raise UsageError(
                    f"{name} is {one} in {folders[0]} and {other} in {folder}, but runs of one "
                    "pass share their reads; train them apart, or make it the same"
                )
