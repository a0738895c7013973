"""One vector a frame: what decoders that look at frames as wholes make of a batch of tokens.

Knows nothing of what a decoder does with them. All are in float32 at least, whatever the tokens
are in, and zero where a frame is padding. Letters: B batch, T frames, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...store.errors import UsageError
from ..data.batch import TokenBatch, TokenShape


def cls_tokens(batch: TokenBatch) -> Tensor:
    """Each frame's CLS token, the first of its prefix: (B, T, D)."""
    if batch.prefix is None:
        raise ValueError("these windows have no CLS token")  # as `require_cls` says of the view
    return _real(batch.prefix[:, :, 0], batch)


def patch_means(batch: TokenBatch) -> Tensor:
    """The mean of each frame's patches: (B, T, D)."""
    if batch.patch is None:
        raise ValueError("these windows have no patches")  # as `require_patches` says of the view
    return _real(batch.patch.mean(dim=(2, 3), dtype=_at_least_float32(batch.patch)), batch)


def frame_means(batch: TokenBatch) -> Tensor:
    """The mean of all of each frame's tokens, prefix and patches alike: (B, T, D)."""
    parts = []
    if batch.prefix is not None:
        parts.append(batch.prefix.sum(dim=2, dtype=_at_least_float32(batch.prefix)))  # B T D
    if batch.patch is not None:
        parts.append(batch.patch.sum(dim=(2, 3), dtype=_at_least_float32(batch.patch)))  # B T D
    total = parts[0] if len(parts) == 1 else parts[0] + parts[1]  # B T D
    return _real(total / batch.shape.tokens_per_frame, batch)


def require_cls(shape: TokenShape, *, decoder: str, instead: str = "") -> None:
    """UsageError unless the view has a CLS token. instead: what else would help."""
    if shape.num_prefix == 0:
        raise UsageError(
            f"decoder {decoder!r} needs each frame's CLS token and this view has none; use "
            f"--tokens {shape.frames}xcls, or add +cls to a grid{instead}"
        )


def require_patches(shape: TokenShape, *, decoder: str, instead: str = "") -> None:
    """UsageError unless the view has patches. instead: what else would help."""
    if shape.grid is None:
        raise UsageError(
            f"decoder {decoder!r} needs patches here and this view has none; use a view with a "
            f"grid, such as --tokens {shape.frames}x7x7{instead}"
        )


def require_real_frames(batch: TokenBatch, *, decoder: str) -> None:
    """UsageError if a window is all padding: nothing can be said of it."""
    if batch.min_frames < 1:
        raise UsageError(
            f"decoder {decoder!r} needs at least 1 real frame in a window, got 0; leave such "
            "windows out"
        )


def _at_least_float32(tokens: Tensor) -> torch.dtype:
    return torch.promote_types(tokens.dtype, torch.float32)


def _real(frames: Tensor, batch: TokenBatch) -> Tensor:
    """Padding frames, which may hold anything, as zeros."""
    frames = frames.to(_at_least_float32(frames))  # B T D
    return torch.where(batch.mask[..., None], frames, 0) if batch.padded else frames
