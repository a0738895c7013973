"""The three stages of one run and the two buffers that join them; see `pipeline`.

    reading ──frames──▶ backbone ──tokens──▶ writing

What is to be done is decided by then: which videos, in which order, with how many threads. Knows
how the stages are given what they share, how they are started and what is left to do after them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from ...store.cache import Cache
from ...store.files import StorageError
from ..backbones.loading import Backbone
from ..planning.plan import failures_to_keep
from ..readers.base import Reader
from ..sources import VideoSource
from .buffers import OrderedBuffer, WeightedBuffer
from .encoding import BackboneStage
from .feeding import Feed
from .items import End, FramePart, TokenPart
from .makers import provenance
from .progress import ExtractProgress, Tally
from .reading import ReadingStage
from .sharing import Sharing
from .steps import StageName
from .stopping import StopSignal
from .threads import StageThreads
from .writing import WritingStage

OnProgress = Callable[[ExtractProgress], None]
Frames = WeightedBuffer[FramePart | End]
Encoded = OrderedBuffer[list[TokenPart | End]]


@dataclass(frozen=True, kw_only=True)
class Filling:
    """What the three stages of one run have in common; the words are those of `fill_cache`.

    batch_size: frames in every batch. threads: of each stage.
    """

    cache: Cache
    backbone: Backbone
    reader: Reader
    batch_size: int
    threads: Mapping[StageName, int]
    limit: int | None
    overwrite: bool
    retry_failed: bool
    stop: StopSignal
    tally: Tally
    feed: Feed | None

    @cached_property
    def frames(self) -> Frames:
        """Room for two batches of every thread that runs the backbone."""
        return WeightedBuffer(2 * self.batch_size * self.threads["backbone"])

    @cached_property
    def tokens(self) -> Encoded:
        """Room for two batches of every thread that runs the backbone."""
        return OrderedBuffer(2 * self.threads["backbone"])

    def run(
        self,
        sources: Iterable[VideoSource],
        sharing: Sharing | None,
        progress: OnProgress | None,
    ) -> None:
        """All three stages until the last thread has left; raises what went wrong in any."""
        reading = self._reading(sources, sharing)
        running, writing = self._running(), self._writing(sharing)
        crew = StageThreads(self.frames, self.tokens, *([] if self.feed is None else [self.feed]))
        with _one_core_a_thread(self.backbone.device.type == "cpu"):
            crew.start("reading", reading.run, self.threads["reading"], then=self.frames.close)
            crew.start("backbone", running.run, self.threads["backbone"], then=self.tokens.close)
            crew.start("writing", writing.run, self.threads["writing"])
            crew.finish(lambda: progress(self.tally.progress()) if progress else None)

    def end(self, sharing: Sharing | None) -> None:
        """Count what others still hold, and write the catalog where that is this run's to do. It is
        derived: a run that has nothing to add to a cache may do without the right to write there.
        """
        if sharing is not None:
            sharing.count_held()
        has_extracted = self.tally.progress().extracted > 0
        try:
            if has_extracted if sharing is None else sharing.is_last_to_work():
                self.cache.write_catalog()
        except StorageError:
            if has_extracted:
                raise

    def _reading(self, sources: Iterable[VideoSource], sharing: Sharing | None) -> ReadingStage:
        return ReadingStage(
            sources if self.feed is None else itertools.chain(sources, self.feed),
            self.cache,
            self.reader,
            preprocess=self.backbone.preprocess,
            clip_frames=self.backbone.clip_frames,
            part_frames=self.batch_size,
            limit=self.limit,
            overwrite=self.overwrite,
            known_failures={} if self.retry_failed else failures_to_keep(self.cache),
            sharing=sharing,
            frames=self.frames,
            stop=self.stop,
            tally=self.tally,
        )

    def _running(self) -> BackboneStage:
        return BackboneStage(
            self.backbone,
            batch_size=self.batch_size,
            stored_dtype=self.cache.spec.stored_dtype,
            frames=self.frames,
            tokens=self.tokens,
            stop=self.stop,
            tally=self.tally,
        )

    def _writing(self, sharing: Sharing | None) -> WritingStage:
        return WritingStage(
            self.cache,
            overwrite=self.overwrite,
            provenance=provenance(self.backbone, self.reader),
            sharing=sharing,
            tokens=self.tokens,
            tally=self.tally,
        )


@contextlib.contextmanager
def _one_core_a_thread(on_cpu: bool) -> Iterator[None]:
    """On a CPU every backbone thread keeps to one core: it need not wait for one that reads."""
    before = torch.get_num_threads()
    if on_cpu:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
