"""State-space mixing: GELU(k * u + D ⊙ u), channel dropout, and a linear layer.

S4(u) = Linear(Dropout(GELU(k * u + D ⊙ u))), as in S4 (arXiv 2111.00396) and ViS4mer
(arXiv 2204.01692). Shared by every state-space layer; which system makes the kernel is the
subclass's choice. Padding follows the real tokens and the convolution is causal, so no mask is
needed.

Letters: B batch, L tokens, S tokens of one stream step, D width = channels H, N state size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..ssm.base import Ssm
from ..ssm.channels import by_channels
from ..ssm.choice import convolve
from ..ssm.kernel import (
    BLOCK,
    BlockOperators,
    block_inputs,
    block_length,
    block_operators,
    block_step,
    fft_convolution,
    inputs_length,
    kernel,
)
from ..typed import refuse
from .base import ChannelDropout, ChannelMixer, MixerOptions, PoolChannels

Convolution = Literal["blocks", "plain", "fused", "fft"]

CHUNK_BYTES = {"cpu": 12 * 2**20, "cuda": 512 * 2**20}
"""How large one copy of the channels in hand may be. On a CPU it should stay in cache."""
MAX_CHUNK_CHANNELS = {"cpu": 64, "cuda": 1024}
ONE_BLOCK_CHANNELS = {"cpu": 256, "cuda": 1024}
"""The same where one block holds a window: without operators to hand states on, calls cost most."""
LINE_CHANNELS = 32
"""A cache line of bfloat16: slices that begin within one read it twice."""


def channels_at_once(x: Tensor) -> int:
    """How many channels of x (B, L, D) to convolve in one go, on the device where it lies."""
    if x.is_meta:  # without values there is nothing to hold
        return x.shape[2]
    device = x.device.type
    channel = x.element_size() * x.shape[0] * x.shape[1]  # bytes
    size = CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // channel
    most = ONE_BLOCK_CHANNELS if x.shape[1] <= BLOCK else MAX_CHUNK_CHANNELS
    size = min(size, most.get(device, most["cuda"]))
    return max(1, size - size % LINE_CHANNELS if size > LINE_CHANNELS else size)


@dataclass(frozen=True, kw_only=True)
class SsmOptions(MixerOptions):
    """Options that all state-space mixers share.

    state_size: N, real and imaginary parts of N/2 conjugate pairs.
    dt_min, dt_max: the range of the initial step sizes, in tokens⁻¹; a channel remembers about
    1/dt tokens.
    convolution: "plain" passes a state between blocks by matrix products, "fused" does so in one
        GPU kernel where that can be (a GPU with Triton, and blocks and states that fit on the chip)
        and is plain elsewhere; "blocks" is the quicker of the two, tried once on each GPU; "fft"
        goes by the kernel's transform. The same numbers but for rounding.
    """

    state_size: int = 64
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    convolution: Convolution = "blocks"

    def __post_init__(self) -> None:
        if self.state_size < 2 or self.state_size % 2:
            raise refuse("state_size", self.state_size, "an even number, at least 2")
        if not self.dt_min > 0:
            raise refuse("dt_min", self.dt_min, "more than 0")
        if not self.dt_max >= self.dt_min:
            raise refuse("dt_max", self.dt_max, f"at least dt_min, {self.dt_min}")


@dataclass(frozen=True)
class SsmStreamState:
    """State after the tokens so far, x (H, B, N), and the operators of each block length used."""

    x: Tensor
    operators: Mapping[int, BlockOperators]


class SsmMixer(ChannelMixer):
    """The layer around any `Ssm`.

    keep_operators: what a step makes of the parameters, whatever the batch, is kept for the way
    back: some 100 KB a channel, in place of making it twice.
    """

    def __init__(self, ssm: Ssm, *, width: int, dropout: float, convolution: Convolution) -> None:
        nn.Module.__init__(self)
        self.ssm = ssm
        self.dropout = ChannelDropout(dropout)
        self.output = nn.Linear(width, width)
        self.convolution: Convolution = convolution
        self.keep_operators = True

    def core(self, x: Tensor, mask: Tensor | None) -> Tensor:  # noqa: ARG002 - causal: see above
        return self.pooled_core(x, _all_of)

    def pooled_core(self, x: Tensor, pool: PoolChannels) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            vectors = self.ssm.vectors()
        scale = self.dropout.scale(x)  # B 1 D, or None where nothing is dropped
        shape, dropped = x.shape[:2], scale is not None

        def mixed(u: Tensor, *prepared: Tensor) -> Tensor:
            """Pool(Dropout(GELU(k * u + D u))), averages first: (h, B, P) → (h, B, M)."""
            y = pool(self._activated(u, *prepared[dropped:]), shape[1])
            return y * prepared[0][:, :, None] if dropped else y

        return by_channels(
            mixed,
            x,
            *(vectors if scale is None else (scale[:, 0].T, *vectors)),
            size=channels_at_once(x),
            prepare=partial(self._prepared, shape=shape, dropped=dropped),
            keep=self.keep_operators,
            padded=self._padded(shape),
        )

    def _padded(self, shape: torch.Size) -> int:
        if self.convolution == "fft":
            return shape[1]
        return inputs_length(shape[1], block_length(shape))

    def _prepared(self, *given: Tensor, shape: torch.Size, dropped: bool) -> tuple[Tensor, ...]:
        """The kernel or the block operators of a slice of channels, after their dropout scales."""
        scales, vectors = given[:dropped], given[dropped:]
        system = self.ssm.system(*vectors)
        if self.convolution == "fft":
            return *scales, kernel(system, shape[1])
        return *scales, *block_inputs(system, length=shape[1], block=block_length(shape))

    def _activated(self, u: Tensor, *prepared: Tensor) -> Tensor:
        """GELU(k * u + D u) for a slice of h channels: (h, B, P) → (h, B, P)."""
        if self.convolution == "fft":
            (K,) = prepared  # h L
            return gelu(fft_convolution(K, u.to(K.dtype)))
        return gelu(convolve(u, *prepared, way=self.convolution))

    def dynamics(self) -> list[nn.Parameter]:
        return self.ssm.dynamics()

    def start_stream(self, batch_size: int, device: torch.device) -> SsmStreamState:
        H, N = self.ssm.state_shape
        x = torch.zeros(H, batch_size, N, device=device, dtype=self.ssm.D.dtype)  # H B N
        return SsmStreamState(x=x, operators={})

    @torch.no_grad()
    def stream_core(self, x: Tensor, state: SsmStreamState) -> tuple[Tensor, SsmStreamState]:
        """GELU(k * u + D u) of the next S tokens, whole blocks at a time. Evaluation only."""
        operators = dict(state.operators)
        now = state.x  # H B N
        with torch.autocast(x.device.type, enabled=False):
            outputs = []
            for u in torch.split(x.permute(2, 0, 1).to(now.dtype), BLOCK, dim=2):  # H B m
                m = u.shape[2]
                if m not in operators:
                    system = self.ssm.system(*self.ssm.vectors())
                    operators[m] = block_operators(system, m)
                y, now = block_step(operators[m], u, now)  # H B m, H B N
                outputs.append(y)
            y = gelu(torch.cat(outputs, dim=2)).permute(1, 2, 0)  # B S D
        return y.to(x.dtype), SsmStreamState(x=now, operators=operators)


def _all_of(y: Tensor, num_tokens: int) -> Tensor:
    """No pooling."""
    return y[..., :num_tokens]
