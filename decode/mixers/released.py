"""The S4 mixer of the code released for ViS4mer, for weights that were trained with it.

The same layer as `ssm.py`, S4(u) = Linear(Dropout(GELU(k * u + D ⊙ u))), with the kernel k of
`ReleasedDplr`. Evaluation only, and whole windows only: the kernel's taps are no recurrence's.

Letters: B batch, L tokens, D width = channels H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ...store.errors import UsageError
from ..ssm.channels import by_channels
from ..ssm.kernel import fft_convolution
from ..ssm.released import ReleasedDplr
from ..typed import refuse
from .base import ChannelDropout, Mixer, MixerOptions
from .ssm import channels_at_once


@dataclass(frozen=True, kw_only=True)
class ReleasedS4Options(MixerOptions):
    """state_size: N, real and imaginary parts of N/2 conjugate pairs."""

    state_size: int = 64

    def __post_init__(self) -> None:
        if self.state_size < 2 or self.state_size % 2:
            raise refuse("state_size", self.state_size, "an even number, at least 2")


class ReleasedS4Mixer(Mixer):
    """S4 as released with ViS4mer; `vis4mer import-weights` fills it, training cannot."""

    Options = ReleasedS4Options

    def __init__(
        self, width: int, *, length: int, dropout: float, options: ReleasedS4Options
    ) -> None:
        nn.Module.__init__(self)
        if length < 2:
            raise UsageError("mixer s4-released needs windows of at least 2 tokens in every block")
        self.ssm = ReleasedDplr(width, state_size=options.state_size, length=length)
        self.dropout = ChannelDropout(dropout)
        self.output = nn.Linear(width, width)
        self.length = length

    def core(self, x: Tensor, mask: Tensor | None) -> Tensor:  # noqa: ARG002 - causal, as in ssm.py
        device, length = x.device.type, x.shape[1]
        if length > self.length:
            raise UsageError(
                f"weights imported for {self.length} tokens got {length}; use shorter windows"
            )
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            K = self.ssm.kernel()[:, :length]  # H L
        y = by_channels(_activated, x, K, self.ssm.D, size=channels_at_once(x))  # B L D
        dropped: Tensor = self.dropout(y)
        return dropped


def _activated(u: Tensor, K: Tensor, D: Tensor) -> Tensor:
    """GELU(k * u + D u) of h channels: u (h, B, L), K (h, L), D (h,) → (h, B, L)."""
    u = u.to(K.dtype)
    return gelu(fft_convolution(K, u) + D[:, None, None] * u)
