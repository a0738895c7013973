"""What one pretraining run is before its first step: a config resolved against a cache, its videos.

Reads records and labels, never tokens, and writes nothing: whatever cannot be pretrained is refused
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...store.cache import Cache
from ...store.errors import UsageError
from ...store.spec import CacheSpec
from ..data.plan import WindowPlan
from ..decoders import Decoder
from ..device import Compute
from ..runs.run import versions
from ..training.job import resolved_decoder, trial_decoder
from .clip_pairs import Video, clip_frames, videos_digest
from .config import PretrainConfig
from .encoder import PretrainAbout


@dataclass(frozen=True, kw_only=True)
class PretrainJob:
    """What stays the same over a run. config: with view, decoder options and precision written
    out."""

    config: PretrainConfig
    spec: CacheSpec
    plan: WindowPlan
    compute: Compute
    videos: Sequence[Video]

    @property
    def about(self) -> PretrainAbout:
        return PretrainAbout(
            pretrain=self.config,
            spec=self.spec,
            num_videos=len(self.videos),
            data_sha256=videos_digest(self.videos),
            versions=versions(),
        )

    def on(self, device: torch.device) -> PretrainJob:
        """The same run on another device."""
        return replace(self, compute=replace(self.compute, device=device))


def prepare_pretraining(
    cache: Cache, config: PretrainConfig, *, split: bool = False
) -> PretrainJob:
    """UsageError or Vis4merError, before anything is written, for what the cache cannot serve.

    split: whether several processes are to learn from each batch.
    """
    plan = _plan(cache, config)
    compute = Compute.of(device=config.device, precision=config.precision)
    resolved = replace(
        config,
        tokens=str(plan.view),
        decoder=resolved_decoder(config.decoder),
        precision=compute.precision,
    )
    decoder = _trainable(resolved, plan)
    if split:
        decoder.require_shareable()
    return PretrainJob(
        config=resolved,
        spec=cache.spec,
        plan=plan,
        compute=compute,
        videos=_videos(cache, resolved, min_frames=decoder.min_frames),
    )


def _plan(cache: Cache, config: PretrainConfig) -> WindowPlan:
    """A window is the frames of a clip, whatever lies between them."""
    seconds = config.frames / cache.spec.sampling.fps
    return WindowPlan.of(cache.spec, tokens=config.tokens, window_seconds=seconds)


def _trainable(config: PretrainConfig, plan: WindowPlan) -> Decoder:
    """The decoder; UsageError when it cannot be built, trained or taken over."""
    decoder = trial_decoder(config.decoder, shape=plan.shape, num_outputs=config.width)
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
