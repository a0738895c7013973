"""Pretraining: a cache and a config in, a directory with an encoder out; see `lsmcl`.

    result = pretrain(open_cache("lvu.zarr"), PretrainConfig(tokens="60x7x7"), Path("runs/pre"))
    train_decoder(cache, config, Path("runs/genre"), init=read_encoder(Path("runs/pre")))

Killed at any moment, the same call goes on after the last finished epoch and, with the same device
and thread count, ends with the very same weights.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...store.cache import Cache
from ...store.errors import UsageError
from ...store.spec import require_same
from ..rows import Share
from ..runs.checkpoints import read_checkpoint, write_checkpoint
from ..runs.run import lock_run
from ..runs.runlog import EpochMetrics
from ..training.begin import require_no_difference, require_own_directory
from ..training.handing import handed_epochs, handed_out
from ..training.progress import OnProgress, TrainProgress
from ..training.ranks import Ranks
from .clip_pairs import PairLoader
from .config import PretrainConfig, pretrain_differences
from .encoder import PretrainAbout, PretrainRun, open_pretrain_run, write_pretrain_about
from .job import PretrainJob, prepare_pretraining
from .lsmcl import Lsmcl


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """loss: the mean of the last epoch; that of a guess is log of the number of candidates."""

    run: Path
    epochs: int
    steps: int
    num_videos: int
    loss: float
    seconds: float
    bytes_read: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "run": str(self.run)}


def pretrain(
    cache: Cache,
    config: PretrainConfig,
    run: Path,
    *,
    progress: OnProgress | None = None,
    ranks: Ranks | None = None,
) -> PretrainResult:
    """Pretrain one encoder; everything goes into directory `run`.

    ranks: the processes that do this together (`ranks.joined_ranks`); all of them call this.

    A directory that holds this run unfinished goes on with it; a finished one is left as it is.
    Raises UsageError for a config that the cache cannot serve and for a directory of something
    else, DivergedError (the last good checkpoint is kept) when the loss is no longer finite.
    """
    job = prepare_pretraining(cache, config, split=ranks is not None)
    if ranks is not None:
        job = job.on(ranks.agreed_device(job.about.to_json(), job.compute.device))
    with _directory(run, job.about, ranks) as directory, job.compute.own_randomness():
        loader = _loader(cache, job, ranks)
        learner = Lsmcl(
            job.config,
            shape=job.plan.shape,
            steps_per_epoch=loader.steps_per_epoch,
            compute=job.compute,
            ranks=ranks,
        )
        epochs = _learn(job.config, learner, loader, directory, progress or (lambda _: None), ranks)
    return PretrainResult(
        run=run,
        epochs=len(epochs),
        steps=epochs[-1].steps,
        num_videos=len(job.videos),
        loss=epochs[-1].train_loss,
        seconds=sum(epoch.seconds for epoch in epochs),
        bytes_read=sum(epoch.bytes_read for epoch in epochs),
    )


@contextlib.contextmanager
def _directory(run: Path, about: PretrainAbout, ranks: Ranks | None) -> Iterator[PretrainRun]:
    """The directory to learn in, locked by the process that leads; the others only name it."""
    if ranks is not None and not ranks.leads:
        yield PretrainRun(path=run, about=about)
        return
    require_own_directory(run)
    with lock_run(run):
        yield _begin(run, about)


def _loader(cache: Cache, job: PretrainJob, ranks: Ranks | None) -> PairLoader:
    return PairLoader(
        cache,
        job.videos,
        job.plan,
        long_stride=job.config.long_stride,
        short_stride=job.config.short_stride,
        batch_size=job.config.batch_size,
        seed=job.config.seed,
        workers=job.config.workers,
        device=job.compute.device,
        dtype=job.compute.dtype,
        share=Share() if ranks is None else ranks.share,
    )


def _learn(
    config: PretrainConfig,
    learner: Lsmcl,
    loader: PairLoader,
    directory: PretrainRun,
    progress: OnProgress,
    ranks: Ranks | None,
) -> list[EpochMetrics]:
    """All epochs from wherever the directory is."""
    epochs: list[EpochMetrics] = []
    if ranks is None or ranks.leads:
        if directory.last.exists():
            learner.restore(read_checkpoint(directory.last), name=str(directory.last))
        epochs = directory.metrics.truncate(learner.epoch)
    if ranks is not None:
        state = handed_out(learner.checkpoint(), ranks)
        learner.restore(state, name="the state of process 0")
        epochs = handed_epochs(epochs, ranks)
    while learner.epoch < config.epochs:
        for where in _epoch(learner, loader, directory, ranks):
            progress(replace(where, epochs=config.epochs))
            if where.finished is not None:
                epochs.append(where.finished)
    return epochs


def _epoch(
    learner: Lsmcl, loader: PairLoader, directory: PretrainRun, ranks: Ranks | None
) -> Iterator[TrainProgress]:
    """One epoch and its commit; says where it is as it goes."""
    began, read_before = time.monotonic(), loader.bytes_read
    number, total = learner.epoch + 1, loader.steps_per_epoch
    lr = learner.lr
    for done, batch in enumerate(loader.epoch(learner.epoch)):
        yield TrainProgress(phase="train", epoch=number, epochs=number, done=done, total=total)
        lr = learner.lr
        learner.step(batch)
    loss = learner.end_epoch()
    num_bytes = loader.bytes_read - read_before
    metrics = EpochMetrics(
        epoch=learner.epoch,
        steps=learner.steps,
        lr=lr,
        train_loss=loss,
        val_score=None,
        val_loss=None,
        seconds=time.monotonic() - began,
        bytes_read=num_bytes if ranks is None else ranks.sum_count(num_bytes),
    )
    if ranks is None or ranks.leads:
        directory.metrics.append(metrics)
        write_checkpoint(directory.last, learner.checkpoint())
    yield TrainProgress(phase="train", epoch=number, epochs=number, finished=metrics)


def _begin(folder: Path, about: PretrainAbout) -> PretrainRun:
    """The directory to learn in; UsageError, with what to do, when it cannot be this one."""
    if not (folder / "config.json").exists():
        return write_pretrain_about(folder, about)
    stored = open_pretrain_run(folder)
    differences = pretrain_differences(stored.about.pretrain, about.pretrain)
    require_no_difference(differences, folder, kind="pretraining run")
    require_same(about.spec, stored.about.spec, name="the cache")
    if stored.about.data_sha256 != about.data_sha256:
        raise UsageError(
            f"--run {folder}: the videos changed since it was begun ({stored.about.num_videos}, "
            f"now {about.num_videos}); choose another --run"
        )
    if not stored.last.exists() and len(stored.metrics.read()) > 1:
        raise UsageError(
            f"--run {folder} has lost its {stored.last.name}, without which it would begin again; "
            "put that file back or choose another --run"
        )
    return stored
