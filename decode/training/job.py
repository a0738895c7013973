"""What one training run is before its first step: a config resolved against a cache, and its rows.

Reads records and labels, never tokens, and writes nothing: whatever cannot be trained is refused
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ...store.cache import Cache
from ...store.errors import UsageError
from ...store.spec import CacheSpec
from ...store.tasks import SPLITS, Split, TaskTable
from ..config import DecoderConfig, TrainConfig
from ..data.batch import TokenShape
from ..data.hold_out import hold_out
from ..data.plan import SplitSamples, WindowPlan, data_digest, split_samples, typical_window_seconds
from ..decoders import Decoder, build_decoder, decoder_options
from ..device import Compute
from ..judging.walk import require_walks
from ..pretraining.encoder import PretrainedEncoder
from ..runs.run import RunAbout, versions
from .notes import run_notes


@dataclass(frozen=True, kw_only=True)
class Job:
    """What stays the same over a run.

    config: with view, decoder options and precision written out. window_seconds: what a full
    window spans in time.
    init: the encoder that a run which has no checkpoint yet begins with.
    """

    config: TrainConfig
    spec: CacheSpec
    table: TaskTable
    plan: WindowPlan
    compute: Compute
    splits: Mapping[Split, SplitSamples]
    window_seconds: float
    notes: tuple[str, ...]
    init: PretrainedEncoder | None = None

    @property
    def about(self) -> RunAbout:
        return RunAbout(
            train=self.config,
            spec=self.spec,
            kind=self.table.kind,
            classes=self.table.classes,
            num_videos={split: len(chosen.samples) for split, chosen in self.splits.items()},
            data_sha256=data_digest(self.splits),
            versions=versions(),
        )

    def with_blocks(self, blocks: int) -> Job:
        """The same run in a pass of so many blocks."""
        return replace(self, config=replace(self.config, blocks=blocks))


def prepare_job(
    cache: Cache,
    config: TrainConfig,
    *,
    init: PretrainedEncoder | None = None,
    split: bool = False,
) -> Job:
    """UsageError or Vis4merError, before anything is written, for what the cache cannot serve.

    init: of an explicit request; a config that names an encoder goes on without, once begun.
    split: whether several processes are to learn from each batch.
    """
    if init is not None:
        init.require_tokens_of(cache.spec)
    table = hold_out(cache.task(config.task), config.hold_out)
    plan = WindowPlan.of(
        cache.spec,
        tokens=config.tokens,
        window_seconds=config.window_seconds,
        padding=config.padding,
    )
    compute = Compute.of(device=config.device, precision=config.precision)
    if config.lanes:
        _require_windows_in_order(config, plan)
    resolved = replace(
        config,
        tokens=str(plan.view),
        decoder=resolved_decoder(config.decoder),
        precision=compute.precision,
        init=config.init if init is None else init.sha256,
    )
    decoder = _trainable(resolved, plan, table, init)
    if split:
        decoder.require_shareable()
    min_frames = plan.shortest_extent(decoder.min_frames)
    splits = {split: split_samples(cache, table, split, min_frames=min_frames) for split in SPLITS}
    notes = run_notes(cache, table, splits, resolved, plan)
    train = splits["train"].samples
    return Job(
        config=resolved,
        spec=cache.spec,
        table=table,
        plan=plan,
        compute=compute,
        splits=splits,
        window_seconds=typical_window_seconds(plan, (cache.record(s.id) for s in train)),
        notes=notes,
        init=init,
    )


def _trainable(
    config: TrainConfig, plan: WindowPlan, table: TaskTable, init: PretrainedEncoder | None
) -> Decoder:
    """The decoder; an error when it cannot be built or trained, or cannot begin with `init`."""
    decoder = trial_decoder(config.decoder, shape=plan.shape, num_outputs=table.num_outputs)
    if config.lanes:
        decoder.start_memory()
    if init is not None:
        decoder.initialise(init.tensors, name=init.name)
    return decoder


def _require_windows_in_order(config: TrainConfig, plan: WindowPlan) -> None:
    """UsageError where the memory of lanes has nothing to go on from."""
    if plan.sampling.kind == "segments":
        raise UsageError(
            "lanes carry a memory from window to window, but in this cache of segments a video is "
            "one window; leave lanes out"
        )
    for name in ("validation_stride_seconds", "final_stride_seconds"):
        require_walks(plan, stride_seconds=getattr(config, name), name=name)


def resolved_decoder(decoder: DecoderConfig) -> DecoderConfig:
    """With the defaults of today written out, so that a run does not change with a default."""
    options = decoder_options(decoder.name, decoder.options)
    return DecoderConfig(name=decoder.name, options=options.to_json())


def trial_decoder(decoder: DecoderConfig, *, shape: TokenShape, num_outputs: int) -> Decoder:
    """One to ask what it can do; an error when it cannot be built or trained."""
    with torch.random.fork_rng([]):  # initial values are drawn, and never used
        built = build_decoder(
            decoder.name, shape=shape, num_outputs=num_outputs, options=decoder.options
        )
    built.require_trainable()
    return built
