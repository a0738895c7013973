"""Which of a frame's patch tokens a view keeps: the part after `@` in a view.

    @random0.5    half of every frame's patches, drawn anew for every frame
    @stride2      every second patch of every frame, beginning with the first

Every frame keeps the same number, in raster order, so that a window stays frames of equal size: the
frame mask, streams and decoders need to know nothing of it. Where the step divides h·w, as 2, 4, 7
and 14 divide 196, `stride` is every step-th token of the whole flattened window.

Index arithmetic alone: a frame is read whole, for it is the smallest piece that a cache holds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError

_PATTERN = re.compile(r"random(?P<share>[01](?:\.\d{1,6})?)|stride(?P<step>\d{1,6})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class TokenSelection:
    """share: of a frame's patches, drawn at random, in (0, 1]. step: between the patches kept, at
    least 1. Exactly one of the two."""

    share: float | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.step is None):
            raise ValueError("a selection has either a share or a step")
        if self.share is not None and not 0 < self.share <= 1:
            raise UsageError(f"@{self}: expected a share of more than 0 and at most 1")
        if self.step is not None and self.step < 1:
            raise UsageError(f"@{self}: expected a step of at least 1")

    @classmethod
    def parse(cls, text: str) -> TokenSelection:
        """Read the word after `@`; UsageError shows the forms."""
        match = _PATTERN.fullmatch(text)
        if not match:
            raise UsageError(f"@{text:.80}: expected @random0.5 (a share) or @stride2 (a step)")
        if match["share"]:
            return cls(share=float(match["share"]))
        return cls(step=int(match["step"]))

    def __str__(self) -> str:
        if self.step is not None:
            return f"stride{self.step}"
        return "random" + np.format_float_positional(self.share or 0.0, trim="-")

    def count(self, num_tokens: int) -> int:
        """Of a frame's `num_tokens` patches, how many are kept; at least one."""
        if self.step is not None:
            return -(-num_tokens // self.step)
        return max(1, round((self.share or 0.0) * num_tokens))

    def places(self, key: str, frames: Sequence[int], num_tokens: int) -> NDArray[np.int64]:
        """Which patches of each frame are kept: (t, k), ascending in every row.

        A random draw is a function of `key` and the frame's number in its video alone: ranks come
        from a hash, which no version of a library changes, so that threads, resumption and windows
        that overlap cannot change it.
        """
        if self.step is not None:
            return np.tile(np.arange(0, num_tokens, self.step), (len(frames), 1))  # t k
        ranks = np.stack([_ranks(key, frame, num_tokens) for frame in frames])  # t n
        kept = np.argsort(ranks, axis=1, kind="stable")[:, : self.count(num_tokens)]  # t k
        return np.sort(kept, axis=1).astype(np.int64)


def _ranks(key: str, frame: int, num_tokens: int) -> NDArray[np.uint64]:
    text = f"tokens\0{key}\0{frame}".encode("utf-8", "surrogatepass")
    return np.frombuffer(hashlib.shake_256(text).digest(8 * num_tokens), dtype="<u8")  # n
