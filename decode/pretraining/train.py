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

import torch

from ...store.cache import Cache
from ...store.errors import UsageError
from ...store.spec import require_same
from ..config import DecoderConfig
from ..data.plan import WindowPlan
from ..decoders import Decoder, build_decoder, decoder_options
from ..device import Compute
from ..rows import Share
from ..runs.checkpoints import read_checkpoint, write_checkpoint
from ..runs.run import lock_run, versions
from ..runs.runlog import EpochMetrics
from ..training.begin import require_own_directory
from ..training.handing import handed_epochs, handed_out
from ..training.progress import OnProgress, TrainProgress
from ..training.ranks import Ranks
from .clip_pairs import PairLoader, Video, clip_frames, videos_digest
from .config import PretrainConfig, pretrain_differences
from .encoder import PretrainAbout, PretrainRun, open_pretrain_run, write_pretrain_about
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
    plan = _plan(cache, config)
    compute = Compute.of(device=config.device, precision=config.precision)
    options = decoder_options(config.decoder.name, config.decoder.options)
    config = replace(
        config,
        tokens=str(plan.view),
        decoder=DecoderConfig(name=config.decoder.name, options=options.to_json()),
        precision=compute.precision,
    )
    decoder = _trainable(config, plan)
    if ranks is not None:
        decoder.require_shareable()
    videos = _videos(cache, config, min_frames=decoder.min_frames)
    about = PretrainAbout(
        pretrain=config,
        spec=cache.spec,
        num_videos=len(videos),
        data_sha256=videos_digest(videos),
        versions=versions(),
    )
    if ranks is not None:
        compute = replace(compute, device=ranks.agreed_device(about.to_json(), compute.device))
    with contextlib.ExitStack() as held:
        if ranks is None or ranks.leads:
            require_own_directory(run)
            held.enter_context(lock_run(run))
            directory = _begin(run, about)
        else:
            directory = PretrainRun(path=run, about=about)
        loader = PairLoader(
            cache,
            videos,
            plan,
            long_stride=config.long_stride,
            short_stride=config.short_stride,
            batch_size=config.batch_size,
            seed=config.seed,
            workers=config.workers,
            device=compute.device,
            dtype=compute.dtype,
            share=Share() if ranks is None else ranks.share,
        )
        with compute.own_randomness():
            learner = Lsmcl(
                config,
                shape=plan.shape,
                steps_per_epoch=loader.steps_per_epoch,
                compute=compute,
                ranks=ranks,
            )
            epochs = _learn(config, learner, loader, directory, progress or (lambda _: None), ranks)
    return PretrainResult(
        run=run,
        epochs=len(epochs),
        steps=epochs[-1].steps,
        num_videos=len(videos),
        loss=epochs[-1].train_loss,
        seconds=sum(epoch.seconds for epoch in epochs),
        bytes_read=sum(epoch.bytes_read for epoch in epochs),
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


def _plan(cache: Cache, config: PretrainConfig) -> WindowPlan:
    """A window is the frames of a clip, whatever lies between them."""
    seconds = config.frames / cache.spec.sampling.fps
    return WindowPlan.of(cache.spec, tokens=config.tokens, window_seconds=seconds)


def _trainable(config: PretrainConfig, plan: WindowPlan) -> Decoder:
    """The decoder; UsageError when it cannot be built, trained or taken over."""
    with torch.random.fork_rng([]):  # initial values are drawn, and never used
        decoder = build_decoder(
            config.decoder.name,
            shape=plan.shape,
            num_outputs=config.width,
            options=config.decoder.options,
        )
    decoder.require_trainable()
    decoder.initialise(decoder.state_dict(), name=f"decoder {decoder.name}")
    return decoder


def _videos(cache: Cache, config: PretrainConfig, *, min_frames: int) -> list[Video]:
    """Those to learn from, by id. A video that is judged anywhere in `task` is left out."""
    ids = set(cache.ids())
    if config.task is not None:
        rows = cache.task(config.task).rows
        ids &= {r.id for r in rows if r.split == "train"} - {
            r.id for r in rows if r.split != "train"
        }
    lengths = {entry_id: cache.record(entry_id).num_frames for entry_id in sorted(ids)}
    chosen = [
        (entry_id, length)
        for entry_id, length in lengths.items()
        if clip_frames(length, stride=config.long_stride, frames=config.frames) >= min_frames
    ]
    if len(chosen) < 2:
        raise UsageError(
            f"pretraining tells videos apart and needs at least 2, found {len(chosen)} of which a "
            f"clip has {min_frames} frames at stride {config.long_stride}; extract more, or use a "
            "smaller --set long_stride"
        )
    return [
        Video(id=entry_id, num_frames=length, number=number)
        for number, (entry_id, length) in enumerate(chosen)
    ]


def _begin(folder: Path, about: PretrainAbout) -> PretrainRun:
    """The directory to learn in; UsageError, with what to do, when it cannot be this one."""
    if not (folder / "config.json").exists():
        return write_pretrain_about(folder, about)
    stored = open_pretrain_run(folder)
    differences = pretrain_differences(stored.about.pretrain, about.pretrain)
    if differences:
        listed = "; ".join(f"{d.field}: run {d.stored}, asked {d.wanted}" for d in differences)
        raise UsageError(
            f"--run {folder} holds a pretraining run of another config ({listed}); choose another "
            "--run, or the run's own config"
        )
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
