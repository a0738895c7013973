"""The tokens of many videos in memory, as they are stored: windows are cut from them, not read.

For a cache that fits into the memory of the host or of the GPU. What a decoder is given is the same
to the last bit, and what is not held is read from the cache as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...store.cache import Cache
from ...store.records import frame_cost
from ...store.windows import Window
from .ahead import read_ahead
from .buffers import BufferPool, Memory, to_device
from .plan import Source, Stretch, WindowPlan, source_of
from .stored_clips import HostClip, Stored, StoredClip, as_range, read_clip

PIECE_FRAMES = 256  # read at once, on their way into memory


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Frames of one video that are to be held, and a plan that reads them."""

    plan: WindowPlan
    frames: Window


@dataclass(frozen=True, kw_only=True)
class _Piece:
    source: Source
    wanted: Wanted
    frames: range


def wanted_frames(
    cache: Cache, users: Iterable[tuple[Sequence[Stretch], WindowPlan]]
) -> dict[Source, Wanted]:
    """Of every video that somebody uses, the frames from its first extent to its last."""
    found: dict[Source, Wanted] = {}
    for stretches, plan in users:
        for one in stretches:
            source, frames = source_of(cache, one.id, plan), one.extent
            if (known := found.get(source)) is not None:
                frames = Window(
                    start=min(frames.start, known.frames.start),
                    stop=max(frames.stop, known.frames.stop),
                )
            found[source] = Wanted(plan=plan, frames=frames)
    return found


def held_bytes(cache: Cache, wanted: Mapping[Source, Wanted]) -> int:
    """Memory that `Held` takes for them, but for a scale of each video; reads records alone."""
    return sum(
        one.frames.num_frames * (8 + sum(frame_cost(cache.spec, array) for array in arrays))
        for (_, arrays), one in wanted.items()
    )


class Held:
    """Frames of videos in memory. num_bytes: of tokens that were read for it.

    device: where they lie. to: where they are computed with; where that is a GPU and they lie on
    the host, whoever reads gets a copy in page-locked memory.
    """

    def __init__(
        self,
        cache: Cache,
        wanted: Mapping[Source, Wanted],
        *,
        workers: int,
        device: torch.device,
        to: torch.device,
    ) -> None:
        self.num_bytes = 0
        self._cache = cache
        self._wanted = wanted
        self._clips: dict[Source, StoredClip] = {}
        self._copied = device != to
        memory = BufferPool()
        for piece, host in read_ahead(
            lambda piece: (piece, _read(cache, piece, memory)),
            _pieces(wanted),
            workers=workers,
            depth=workers + 1,
        ):
            self._put(piece, host, device)

    @property
    def is_copied(self) -> bool:
        """Whether reading costs a copy, which threads can make ahead."""
        return self._copied

    def holds(self, stretch: Stretch, plan: WindowPlan) -> bool:
        """Whether all of a stretch is here."""
        wanted = self._wanted.get(source_of(self._cache, stretch.id, plan))
        return (
            wanted is not None
            and wanted.frames.start <= stretch.extent.start
            and stretch.extent.stop <= wanted.frames.stop
        )

    def find(self, entry_id: str, plan: WindowPlan, frames: Sequence[int]) -> HostClip | None:
        """Frames, ascending, as `read_clip` gives them, for no bytes; None unless all are here."""
        extent = Window(start=frames[0], stop=frames[-1] + 1)
        if not self.holds(Stretch(id=entry_id, extent=extent), plan):
            return None
        source = source_of(self._cache, entry_id, plan)
        first = self._wanted[source].frames.start
        held = self._clips[source]
        clip = held.select(_places(frames, first, held.pts_seconds.device))
        return HostClip(clip=clip.pinned() if self._copied else clip, num_bytes=0)

    def _put(self, piece: _Piece, host: HostClip, device: torch.device) -> None:
        total = piece.wanted.frames.num_frames
        first = piece.frames.start - piece.wanted.frames.start
        if first == 0:
            self._clips[piece.source] = _room_for(host.clip, total, device)
        place = self._clips[piece.source].select(slice(first, first + len(piece.frames)))
        _copy(place, host.clip)
        self.num_bytes += host.num_bytes


@dataclass(frozen=True)
class Reads:
    """Where clips come from: from memory where they are held, else from the cache."""

    cache: Cache
    held: Held | None = None

    def read(
        self, entry_id: str, plan: WindowPlan, frames: Sequence[int], *, memory: Memory
    ) -> HostClip:
        """Frames of an entry, ascending; any number of threads may. memory: for what is read."""
        found = None if self.held is None else self.held.find(entry_id, plan, frames)
        if found is not None:
            return found
        return read_clip(self.cache, entry_id, plan, frames, memory=memory)

    def threads(self, stretches: Iterable[Stretch], plan: WindowPlan, *, workers: int) -> int:
        """How many are of use: none where all that will be read already lies where it is wanted."""
        held = self.held
        if held is None or held.is_copied:
            return workers
        return 0 if all(held.holds(stretch, plan) for stretch in stretches) else workers


def _pieces(wanted: Mapping[Source, Wanted]) -> Iterator[_Piece]:
    for source, one in wanted.items():
        for first in range(one.frames.start, one.frames.stop, PIECE_FRAMES):
            frames = range(first, min(first + PIECE_FRAMES, one.frames.stop))
            yield _Piece(source=source, wanted=one, frames=frames)


def _read(cache: Cache, piece: _Piece, memory: Memory) -> HostClip:
    return read_clip(cache, piece.source[0], piece.wanted.plan, piece.frames, memory=memory)


def _places(frames: Sequence[int], first: int, device: torch.device) -> slice | torch.Tensor:
    """Where frames are among those from `first` on; a slice, which shares memory, where it can."""
    evenly = as_range(frames)
    if isinstance(evenly, range):
        return slice(evenly.start - first, evenly.stop - first, evenly.step)
    return to_device(torch.tensor(frames) - first, device)


def _room_for(clip: StoredClip, num_frames: int, device: torch.device) -> StoredClip:
    """Memory for `num_frames` frames like those of a clip, and its channel scales."""

    def room(like: torch.Tensor) -> torch.Tensor:
        return torch.empty((num_frames, *like.shape[1:]), dtype=like.dtype, device=device)

    def stored(like: Stored | None) -> Stored | None:
        if like is None:
            return None
        return Stored(
            values=room(like.values),
            scale=None if like.scale is None else room(like.scale),
            channel=None if like.channel is None else like.channel.to(device),
        )

    return StoredClip(
        patch=stored(clip.patch), prefix=stored(clip.prefix), pts_seconds=room(clip.pts_seconds)
    )


def _copy(place: StoredClip, clip: StoredClip) -> None:
    for into, part in ((place.patch, clip.patch), (place.prefix, clip.prefix)):
        if into is not None and part is not None:
            into.values.copy_(part.values)
            if into.scale is not None and part.scale is not None:
                into.scale.copy_(part.scale)
    place.pts_seconds.copy_(clip.pts_seconds)
