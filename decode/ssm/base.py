"""The face that every state-space layer shows, and what their parameters are made of.

Parameters become per-channel vectors, vectors become a discrete `System`. How a system is convolved
with a sequence is `kernel.py`'s affair, what surrounds it the mixer's.

Letters: H channels, N state size, n = N/2 conjugate pairs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .kernel import kernel
from .system import System


class Ssm(nn.Module, ABC):
    """H single-input single-output systems with N states each, in continuous time.

    Complex parameters are stored as real pairs in a last dimension of two, which optimizers,
    gradient scalers and safetensors all understand.
    """

    B: nn.Parameter  # H n 2
    D: nn.Parameter  # H

    @property
    def state_shape(self) -> tuple[int, int]:
        """(H, N): channels, and states of each."""
        return self.B.shape[0], 2 * self.B.shape[1]

    @abstractmethod
    def vectors(self) -> tuple[Tensor, ...]:
        """The discretised system as tensors whose first dimension is the channel."""

    @staticmethod
    @abstractmethod
    def system(*vectors: Tensor) -> System:
        """The discrete system of any slice of channels, from the same slice of `vectors`."""

    @abstractmethod
    def dynamics(self) -> list[nn.Parameter]:
        """What sets the state's motion: these learn slowly (lr ≤ 1e-3) and never decay."""

    @torch.no_grad()
    def horizon_tokens(self, length: int, *, energy: float = 0.99) -> Tensor:
        """Tokens that hold `energy` of the energy of each channel's kernel: int64 (H,).

        length: how much of the kernel is looked at, usually the sequence length.
        """
        system = self.system(*self.vectors())
        K = kernel(system, length).double()  # H L
        K[:, 0] -= system.D  # the skip connection is no memory
        held = torch.cumsum(K.square(), dim=1)  # H L
        return (held < energy * held[:, -1:]).sum(dim=1) + 1  # H


def init_log_dt(num_channels: int, dt_min: float, dt_max: float) -> Tensor:
    """log dt, uniform between log dt_min and log dt_max: (H,)."""
    low, high = math.log(dt_min), math.log(dt_max)
    return torch.rand(num_channels) * (high - low) + low


def as_pairs(x: Tensor) -> Tensor:
    """Complex (…) → float32 real pairs (…, 2)."""
    return torch.view_as_real(x.to(torch.complex64)).clone()


def as_complex(pairs: Tensor) -> Tensor:
    """Real pairs (…, 2) → complex (…)."""
    return torch.view_as_complex(pairs)
