"""Contrast between clips: InfoNCE with negatives of the batch and of a queue, and random masks.

LSMCL (Wang et al., CVPR 2023, arXiv 2303.14526), after MoCo (arXiv 1911.05722). Knows neither
encoders nor where clips come from.

Letters: B clips, T frames, h × w grid, p prefix tokens, S = p + h·w tokens a frame, Q keys in the
queue, d width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...store import fields as f
from ...store.errors import CacheFormatError
from ..data.batch import TokenBatch
from ..rows import drawn_by_row
from ..runs.checkpoints import Checkpoint
from ..selection import kept_count, top_tokens

NOBODY = -1  # the video of a place in the queue that nothing was put into


class KeyQueue:
    """The latest `length` keys and whose they are; the oldest go first.

    keys: float32 (Q, d).   videos: int64 (Q,), NOBODY where nothing stands yet.
    """

    def __init__(self, length: int, width: int, *, device: torch.device) -> None:
        self.keys = torch.zeros(length, width, device=device)  # Q d
        self.videos = torch.full((length,), NOBODY, device=device)  # Q
        self.next = 0

    def push(self, keys: Tensor, videos: Tensor) -> None:
        """Replace the oldest by keys (B, d) of videos (B,)."""
        length = len(self.keys)
        if not length:
            return
        keys, videos = keys[-length:], videos[-length:]
        places = (torch.arange(len(keys), device=keys.device) + self.next) % length  # B
        self.keys[places], self.videos[places] = keys, videos
        self.next = (self.next + len(keys)) % length

    def tensors(self) -> Mapping[str, Tensor]:
        return {"keys": self.keys, "videos": self.videos}

    def load(self, checkpoint: Checkpoint, *, name: str) -> None:
        """Put back what `tensors` and `next` gave; CacheFormatError when it is of another queue."""
        stored = checkpoint.part("queue.")
        for key, own in self.tensors().items():
            found = stored.get(key)
            if found is None or (found.shape, found.dtype) != (own.shape, own.dtype):
                raise CacheFormatError(f"{name}: queue.{key} is not that of this run's queue")
            own.copy_(found)
        self.next = f.integer(checkpoint.about, "queue_next", name=name)
        if self.next >= max(1, len(self.keys)):
            raise CacheFormatError(
                f"{name}: queue_next is {self.next}, expected less than {len(self.keys)}"
            )


def info_nce(
    q: Tensor, k: Tensor, *, videos: Tensor, queue: KeyQueue, temperature: float, first: int = 0
) -> Tensor:
    """-log exp(q·k₊/ρ) / Σ exp(q·k/ρ), the mean over queries: ().

    q, k: queries and keys of unit length (B, d), float32; row i of both is of video videos[i]
    (int64 (B,)), k[i] its positive. Negatives are the other rows of k and what the queue holds of
    other videos: an earlier key of the same video is neither. Where q are only some of the queries,
    of rows `first` and on, the mean is over these; k and videos are always all.
    """
    places = torch.arange(first, first + len(q), device=q.device)  # B
    videos = videos[first : first + len(q)]
    in_batch = q @ k.T / temperature  # B B
    in_queue = q @ queue.keys.T / temperature  # B Q
    other = (queue.videos[None] != videos[:, None]) & (queue.videos[None] != NOBODY)  # B Q
    logits = torch.cat([in_batch, in_queue.masked_fill(~other, -torch.inf)], dim=1)  # B B+Q
    return cross_entropy(logits, places)


def mask_tokens(batch: TokenBatch, ratio: float) -> TokenBatch:
    """The batch with a random share `ratio` of each clip's real tokens set to zero.

    Exactly so many of each clip, at least one kept, drawn from torch's global generator.
    """
    B, T = batch.mask.shape
    S = batch.shape.tokens_per_frame
    counts = [kept_count(S * frames, 1 - ratio) for frames in batch.lengths]
    lottery = drawn_by_row(lambda rows: torch.rand(rows, T * S, device=batch.mask.device), B)  # B L
    kept = top_tokens(lottery, batch.token_mask(), counts).view(B, T, S, 1)
    p = batch.shape.num_prefix
    patch, prefix = batch.patch, batch.prefix
    if patch is not None:
        patch = torch.where(kept[:, :, p:].view(*patch.shape[:4], 1), patch, 0)  # B T h w D
    if prefix is not None:
        prefix = torch.where(kept[:, :, :p], prefix, 0)  # B T p D
    return replace(batch, patch=patch, prefix=prefix)
