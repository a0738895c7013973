"""What a decoder receives: a batch of windows as token tensors with a mask of real frames.

Letters: B windows, T frames, h × w patch grid, p prefix tokens (CLS, registers), D width,
S = p + h·w tokens a frame, L = T·S. Padding frames follow the valid ones; `mask` says which.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenShape:
    """The shape of one window, known before any data is read; a decoder is built from it."""

    frames: int
    grid: tuple[int, int] | None
    num_prefix: int
    dim: int

    def __post_init__(self) -> None:
        if self.frames < 1 or self.dim < 1 or self.tokens_per_frame < 1:
            raise ValueError(f"a window needs frames, tokens and width, got {self}")

    @property
    def tokens_per_frame(self) -> int:
        patches = self.grid[0] * self.grid[1] if self.grid else 0
        return self.num_prefix + patches

    @property
    def num_tokens(self) -> int:
        return self.frames * self.tokens_per_frame


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """A batch of windows.

    patch: float (B, T, h, w, D), or None when the view has no patches.
    prefix: float (B, T, p, D), or None when the view has no prefix tokens.
    mask: bool (B, T), True where a frame is real; real frames come first.
    pts_seconds: float64 (B, T), presentation times; padding repeats zero.
    lengths: real frames of each window, on the host, so that nobody waits for the device to learn
        what was known before. Left out, they are read from the mask, which is such a wait.
    """

    patch: Tensor | None
    prefix: Tensor | None
    mask: Tensor
    pts_seconds: Tensor
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.patch is None and self.prefix is None:
            raise ValueError("a token batch needs patch tokens, prefix tokens or both")
        if self.mask.dtype != torch.bool or self.mask.dim() != 2:
            raise ValueError(f"mask must be bool (B, T), got {self.mask.dtype} {self.mask.shape}")
        for name, tokens, dims in (("patch", self.patch, 5), ("prefix", self.prefix, 4)):
            if tokens is not None and (tokens.dim() != dims or tokens.shape[:2] != self.mask.shape):
                raise ValueError(
                    f"{name} has shape {tuple(tokens.shape)}, expected {dims} dimensions "
                    f"that begin with (B, T) = {tuple(self.mask.shape)}"
                )
        if not self.lengths:
            object.__setattr__(self, "lengths", _lengths(self.mask))
        num_windows, num_frames = self.mask.shape
        if len(self.lengths) != num_windows or not all(0 <= n <= num_frames for n in self.lengths):
            raise ValueError(
                f"lengths are {self.lengths}, expected {num_windows} of 0 to {num_frames} frames"
            )

    @property
    def padded(self) -> bool:
        """Whether any frame is padding."""
        return self.min_frames < self.mask.shape[1]

    @property
    def min_frames(self) -> int:
        """Real frames of the shortest window."""
        return min(self.lengths) if self.lengths else self.mask.shape[1]

    @property
    def shape(self) -> TokenShape:
        tokens = self.prefix if self.patch is None else self.patch
        assert tokens is not None  # as __post_init__ has checked
        grid = None if self.patch is None else (self.patch.shape[2], self.patch.shape[3])
        num_prefix = 0 if self.prefix is None else self.prefix.shape[2]
        return TokenShape(
            frames=self.mask.shape[1], grid=grid, num_prefix=num_prefix, dim=tokens.shape[-1]
        )

    def sequence(self, dtype: torch.dtype | None = None) -> Tensor:
        """All tokens, frame-major, prefix first, then the patches in raster order: (B, L, D).

        dtype: of the result; None keeps that of the tokens.
        """
        parts = []
        if self.prefix is not None:
            parts.append(self.prefix)  # B T p D
        if self.patch is not None:
            parts.append(self.patch.flatten(2, 3))  # B T h·w D
        if dtype is not None:  # before joining: autocast on a CPU refuses to join float16
            parts = [part.to(dtype) for part in parts]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return joined.flatten(1, 2)  # B L D

    def token_mask(self) -> Tensor:
        """The frame mask repeated for every token of `sequence`: bool (B, L)."""
        return self.mask.repeat_interleave(self.shape.tokens_per_frame, dim=1)  # B L

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TokenBatch:
        """The same batch on `device`; token tensors are cast to `dtype` when one is given."""

        def move(tokens: Tensor | None) -> Tensor | None:
            return None if tokens is None else tokens.to(device, dtype, non_blocking=True)

        return TokenBatch(
            patch=move(self.patch),
            prefix=move(self.prefix),
            mask=self.mask.to(device, non_blocking=True),
            pts_seconds=self.pts_seconds.to(device, non_blocking=True),
            lengths=self.lengths,
        )


def _lengths(mask: Tensor) -> tuple[int, ...]:
    """Real frames of each window of a mask (B, T); ValueError unless they come first."""
    host = mask.cpu()  # B T
    lengths = host.sum(dim=1)  # B
    if not torch.equal(host, torch.arange(host.shape[1])[None] < lengths[:, None]):
        raise ValueError("mask has a real frame after padding; real frames come first")
    return tuple(lengths.tolist())
