"""Frames of one video as tensors: decoded and pooled on the device, padded into a batch.

    entry ──read_clip, on a thread──> StoredClip ──on_device──> Clip ──collate──> TokenBatch

Knows which frames it is given, not why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .batch import TokenBatch
from .buffers import to_device
from .plan import WindowPlan
from .stored_clips import StoredClip, positions_among


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Consecutive kept frames of one video: patch (t, h, w, D), or (t, k, 1, D) of selected ones,
    prefix (t, p, D), either None."""

    patch: Tensor | None
    prefix: Tensor | None
    pts_seconds: Tensor  # float64 (t,)

    @property
    def num_frames(self) -> int:
        return len(self.pts_seconds)

    def select(self, positions: slice | Tensor) -> Clip:
        """Some of the frames; a slice shares memory."""
        return Clip(
            patch=None if self.patch is None else self.patch[positions],
            prefix=None if self.prefix is None else self.prefix[positions],
            pts_seconds=self.pts_seconds[positions],
        )

    def take(self, held: Sequence[int], frames: Sequence[int]) -> Clip:
        """Of a clip of the frames `held`, ascending, those in `frames`; they are among them.

        Frames that lie one after another share memory with the clip, others are copied.
        """
        return self.select(positions_among(held, frames, self.pts_seconds.device))

    def shuffled(self, key: str) -> Clip:
        """The frames' tokens in an order drawn from `key`, at the times that were there.

        The clock stays: what is taken away is the order of what was seen, and a decoder that reads
        the times still gets a window like any other, with times that rise.
        """
        order = to_device(shuffled_order(key, self.num_frames), self.pts_seconds.device)  # t
        return Clip(
            patch=None if self.patch is None else self.patch[order],
            prefix=None if self.prefix is None else self.prefix[order],
            pts_seconds=self.pts_seconds,
        )

    def join(self, later: Clip) -> Clip:
        return Clip(
            patch=_joined(self.patch, later.patch),
            prefix=_joined(self.prefix, later.prefix),
            pts_seconds=torch.cat([self.pts_seconds, later.pts_seconds]),
        )


def on_device(
    host: StoredClip, plan: WindowPlan, device: torch.device, *, key: str, frames: Sequence[int]
) -> Clip:
    """Move a clip to the device; decode it, pool it to the view's grid and select from it there.

    frames: their numbers in the video. key: of a random selection; see `TokenView.places`.
    """
    patch = None
    if host.patch is not None and plan.view.grid is not None:
        patch = pool_to_grid(host.patch.to(device).decoded(), plan.view.grid)
        if (places := plan.view.places(key, frames)) is not None:
            patch = select_patches(patch, to_device(torch.from_numpy(places), device))
    return Clip(
        patch=patch,
        prefix=None if host.prefix is None else host.prefix.to(device).decoded(),
        pts_seconds=host.pts_seconds.to(device, non_blocking=True),
    )


def pool_to_grid(patch: Tensor, grid: tuple[int, int]) -> Tensor:
    """Adaptive average of (t, H, W, D) to (t, h, w, D), in float32; unchanged when already so."""
    if (patch.shape[1], patch.shape[2]) == grid:
        return patch
    channels = patch.permute(0, 3, 1, 2).float()  # t D H W
    pooled = nn.functional.adaptive_avg_pool2d(channels, grid)  # t D h w
    return pooled.permute(0, 2, 3, 1)  # t h w D


def select_patches(patch: Tensor, places: Tensor) -> Tensor:
    """Some patches of every frame: (t, h, w, D) and places int64 (t, k) to (t, k, 1, D)."""
    frames = torch.arange(len(places), device=places.device)[:, None]  # t 1
    return patch.flatten(1, 2)[frames, places].unsqueeze(2)  # t k 1 D


def shuffled_order(key: str, num_frames: int) -> Tensor:
    """A permutation of so many frames, a function of `key` alone: int64 (t,), on the host.

    Sorted by a hash, which no version of a library changes.
    """

    def rank(frame: int) -> bytes:
        text = f"{key}\0{frame}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, person=b"shuffle").digest()

    return torch.tensor(sorted(range(num_frames), key=rank), dtype=torch.int64)


def collate(
    clips: Sequence[Clip],
    dtype: torch.dtype,
    *,
    padded_frames: int | None = None,
    least_frames: int = 0,
    shuffled_by: Sequence[str] | None = None,
) -> TokenBatch:
    """One batch of clips, padded with zeros after the valid frames to the longest of them.

    padded_frames: fill every clip up to so many frames with zeros that count as real ones, as the
    released ViS4mer code does. least_frames: pad to so many where no clip has as many: those of a
    batch of which these are a part. shuffled_by: by clip, the key by which its own frames, never
    the padding, are shuffled; see `Clip.shuffled`.
    """
    if shuffled_by is not None:
        clips = [clip.shuffled(key) for clip, key in zip(clips, shuffled_by, strict=True)]
    lengths = tuple(clip.num_frames for clip in clips)
    if padded_frames is not None:
        lengths = (padded_frames,) * len(clips)
    longest = max(*lengths, least_frames)
    device = clips[0].pts_seconds.device
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]  # B T
    return TokenBatch(
        patch=_padded([clip.patch for clip in clips], longest, dtype),
        prefix=_padded([clip.prefix for clip in clips], longest, dtype),
        mask=to_device(mask, device),
        pts_seconds=_padded_tensor([clip.pts_seconds for clip in clips], longest, torch.float64),
        lengths=lengths,
    )


def _joined(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])


def _padded(parts: Sequence[Tensor | None], length: int, dtype: torch.dtype) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return _padded_tensor(tensors, length, dtype) if tensors else None


def _padded_tensor(parts: Sequence[Tensor], length: int, dtype: torch.dtype) -> Tensor:
    """(B, T, …) of `dtype`: part i copied (and cast) to its first frames, zeros after them."""
    first = parts[0]
    batch = torch.zeros((len(parts), length, *first.shape[1:]), dtype=dtype, device=first.device)
    for i, part in enumerate(parts):
        batch[i, : len(part)] = part
    return batch  # B T …
