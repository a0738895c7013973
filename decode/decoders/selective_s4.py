"""Selective S4: ViS4mer on the tokens that a momentum S4 layer finds worth keeping.

Wang et al., "Selective Structured State-Spaces for Long-Form Video Understanding" (CVPR 2023,
arXiv 2303.14526). There it is called S5; this is not the S5 of Smith et al. One mask, before the
first block:

    x_S = S_m(x),   S_m ← m S_m + (1 - m) S         S: LayerNorm and S4 of the first block
    p(keep | x_S), p(drop | x_S)                    a mask generator; see `selection`
    K = round(keep_ratio · L) tokens                the best in evaluation, Gumbel-top-K in training
    x ← x ⊙ mask   or   x ← x[kept]                 the paper's `mask`, or `gather`

In training the kept tokens are multiplied by straight-through weights (1 going forward, the
gradient of a Gumbel-softmax going back): the ratio holds exactly and the generator learns in both
modes. Multiplying keeps the length; only `gather` saves time and memory in the blocks.

Letters: B batch, T frames, h × w grid, p prefix tokens, L tokens, S tokens a frame, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

import torch
from torch import Tensor

from ...store.errors import UsageError
from ..data.batch import TokenBatch, TokenShape
from ..mixers import MIXERS, mixer_class
from ..mixers.ssm import SsmMixer
from ..selection import (
    Guide,
    MaskGenerator,
    gather_tokens,
    gumbel_difference,
    kept_count,
    straight_through,
    top_tokens,
)
from ..skeleton import Pool, Tokens, build_pool
from ..typed import refuse
from .about import OptionAbout
from .vis4mer import Vis4mer, Vis4merOptions

Selection = Literal["mask", "gather"]


@dataclass(frozen=True, kw_only=True)
class SelectiveS4Options(Vis4merOptions):
    """Options of the skeleton with a state-space mixer, and of the selection.

    selection: "mask" sets dropped tokens to zero, as the paper does; "gather" leaves them out, and
        pools consecutive pairs of the kept ones where whole grids would be pooled.
    keep_ratio: K / L. With 1 every token is kept, grids stay whole and this is plain ViS4mer.
    temperature: ρ of the Gumbel-softmax.
    momentum: m of the guide. Neither value is confirmed; 0.99 is an average over about 100 steps,
        short against the thousand or two of a run on LVU.
    warmup_steps: training steps over which the share of dropped tokens rises linearly from 0. Not
        confirmed either, and off; evaluation keeps `keep_ratio` at all times.
    """

    selection: Selection = "mask"
    keep_ratio: float = 0.5
    temperature: float = 1.0
    momentum: float = 0.99
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selection not in ("mask", "gather"):
            raise refuse("selection", self.selection, "one of mask, gather")
        if not 0 < self.keep_ratio <= 1:
            raise refuse("keep_ratio", self.keep_ratio, "more than 0 and at most 1")
        if not self.temperature > 0:
            raise refuse("temperature", self.temperature, "more than 0")
        if not 0 <= self.momentum < 1:
            raise refuse("momentum", self.momentum, "at least 0 and less than 1")
        if self.warmup_steps < 0:
            raise refuse("warmup_steps", self.warmup_steps, "at least 0")
        if self.mixer not in (mixers := _state_space_mixers()):
            raise refuse("mixer", self.mixer, f"one of {', '.join(mixers)}")

    @classmethod
    def about(cls) -> tuple[OptionAbout, ...]:
        """As of ViS4mer, without what only other mixers have."""
        mixers = _state_space_mixers()
        return tuple(
            replace(option, kind=f"one of {', '.join(mixers)}")
            if option.name == "mixer"
            else option
            for option in super().about()
            if not option.mixers or set(option.mixers) & set(mixers)
        )

    @property
    def gathers(self) -> bool:
        """Whether tokens are left out."""
        return self.selection == "gather" and self.keep_ratio < 1


def _state_space_mixers() -> tuple[str, ...]:
    return tuple(name for name in MIXERS if issubclass(mixer_class(name), SsmMixer))


class SelectiveS4(Vis4mer):
    """ViS4mer on the tokens that a momentum S4 layer and a mask generator keep."""

    Options = SelectiveS4Options
    name = "selective_s4"
    fresh = ("head.", "generator.", "guide.", "steps")

    options: SelectiveS4Options
    steps: Tensor  # int64 (), training steps so far

    def __init__(self, *, shape: TokenShape, num_outputs: int, options: SelectiveS4Options) -> None:
        super().__init__(shape=shape, num_outputs=num_outputs, options=options)
        self._check_num_tokens(self._lengths()[0])
        self.guide = Guide(self._blocks[0], momentum=options.momentum)
        self.generator = MaskGenerator(shape.dim)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _build_pool(self) -> Pool:
        if not self.options.gathers:
            return super()._build_pool()
        official = self.options.variant == "official"
        return build_pool(pooling=self.options.pooling, grid=False, drop_tail=official)

    def _full_window(self) -> Tokens:
        tokens = super()._full_window()
        if not self.options.gathers:
            return tokens
        num_kept = kept_count(tokens.x.shape[1], self.options.keep_ratio)
        return Tokens(x=tokens.x[:, :num_kept], mask=None, grid=None)

    def forward(self, batch: TokenBatch) -> Tensor:
        tokens = self._tokens(batch)
        counts = self._counts(tokens, batch)
        lengths = counts if self.options.gathers else self._num_real(tokens, batch)
        self._check_num_tokens(min(lengths))
        kept, weights = self._choose(tokens, counts)  # both B L
        if not self.options.gathers:
            return self._decoded(tokens.like(tokens.x * weights[..., None].to(tokens.x.dtype)))
        chosen = gather_tokens(tokens.x, kept, counts)  # B K D
        of_kept = gather_tokens(weights[..., None].to(tokens.x.dtype), kept, counts)  # B K 1
        return self._decoded(chosen.like(chosen.x * of_kept.x))

    def _choose(self, tokens: Tokens, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Which tokens are kept, and what they are multiplied by: bool and float32 (B, L)."""
        scores = self.generator(self.guide(tokens), tokens.mask)  # B L
        if not self.training:
            kept = top_tokens(scores, tokens.mask, counts)  # B L
            return kept, kept.float()
        scores = scores + gumbel_difference(scores)  # B L
        kept = top_tokens(scores.detach(), tokens.mask, counts)  # B L
        return kept, straight_through(kept, scores, temperature=self.options.temperature)

    def _num_real(self, tokens: Tokens, batch: TokenBatch) -> list[int]:
        """By window."""
        per_frame = tokens.x.shape[1] // batch.mask.shape[1]
        return [per_frame * frames for frames in batch.lengths]

    def _counts(self, tokens: Tokens, batch: TokenBatch) -> list[int]:
        """K by window."""
        ratio = self._keep_ratio()
        return [kept_count(length, ratio) for length in self._num_real(tokens, batch)]

    def _keep_ratio(self) -> float:
        """Of the step to come; with a warm-up, finding out waits for the device."""
        options = self.options
        if not self.training or not options.warmup_steps:
            return options.keep_ratio
        risen = min(1.0, int(self.steps) / options.warmup_steps)
        return 1 - (1 - options.keep_ratio) * risen

    def after_step(self) -> None:
        self.guide.follow(self._blocks[0])
        self.steps += 1

    def initialise(self, encoder: Mapping[str, Tensor], *, name: str) -> None:
        """Take over the blocks, of plain ViS4mer too; the guide begins as the first of them."""
        super().initialise(encoder, name=name)
        self.guide.restart(self._blocks[0])

    @torch.no_grad()
    def kept_patches(self, batch: TokenBatch) -> Tensor:
        """Which patches evaluation keeps, to draw over frames: bool (B, T, h, w).

        Raises UsageError for a view without patches.
        """
        if batch.patch is None:
            raise UsageError(
                "kept tokens can be drawn over frames only where tokens are patches, and this view "
                "has none; train on a grid such as --tokens 60x7x7"
            )
        tokens = self._tokens(batch)
        scores = self.generator(self.guide(tokens), tokens.mask)  # B L
        counts = [
            kept_count(length, self.options.keep_ratio) for length in self._num_real(tokens, batch)
        ]
        kept = top_tokens(scores, tokens.mask, counts)  # B L
        B, T, h, w = batch.patch.shape[:4]
        return kept.view(B, T, -1)[:, :, -h * w :].reshape(B, T, h, w)  # prefix tokens come first

    @property
    def min_frames(self) -> int:
        if not self.options.gathers:
            return super().min_frames
        per_frame, ratio = self.shape.tokens_per_frame, self.options.keep_ratio
        return next(n for n in count(1) if kept_count(n * per_frame, ratio) >= self.min_tokens)

    @property
    def streamable(self) -> bool:
        return False

    def _not_causal(self) -> UsageError:
        return UsageError(
            f"decoder {self.name!r} cannot be streamed: which tokens of a window are kept depends "
            "on all of them; decode whole windows instead"
        )
