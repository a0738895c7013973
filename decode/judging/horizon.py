"""How far back a trained decoder's kernels reach, in seconds of video."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HasHorizon(Protocol):
    """A decoder with convolution kernels."""

    def horizons(self) -> tuple[float, ...]:
        """By layer: the share of a full window that holds 99 % of a median kernel's energy."""
        ...


def kernel_horizon_seconds(model: nn.Module, *, window_seconds: float) -> tuple[float, ...]:
    """The horizon of each layer in seconds, of windows that span `window_seconds`; empty for
    decoders without kernels."""
    if not isinstance(model, HasHorizon):
        return ()
    return tuple(share * window_seconds for share in model.horizons())
