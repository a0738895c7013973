"""Work on a few channels at a time, and again on the way back, so that memory stays bounded.

A function of independent channels is run over slices of them; only its inputs are kept, and the
backward pass runs each slice once more to get its gradients. What would be gigabytes of saved
intermediates becomes the intermediates of one slice.

Letters: B batch, L sequence, H channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ChannelFunction = Callable[..., Tensor]
"""(u (h, B, L), *vectors each (h, …)) → (h, B, L), for any slice of h channels."""


def by_channels(function: ChannelFunction, u: Tensor, *vectors: Tensor, size: int) -> Tensor:
    """`function(u, *vectors)`, at most `size` channels at a time: u (B, L, H) → (B, L, H).

    `function` sees channels first, in the dtype of the vectors; the result has the dtype of `u`.
    It must be deterministic and must treat channels independently. Autocast is off inside.
    """
    result: Tensor = _ByChannels.apply(function, size, u, *vectors)  # type: ignore[no-untyped-call]
    return result


class _ByChannels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: ChannelFunction, size: int, u: Tensor, *vectors: Tensor
    ) -> Tensor:
        ctx.function, ctx.size = function, size
        ctx.save_for_backward(u, *vectors)
        y = torch.empty_like(u, memory_format=torch.contiguous_format)  # B L H
        with torch.autocast(u.device.type, enabled=False):
            for part in _slices(u.shape[2], size):
                some = [v[part] for v in vectors]
                y[..., part] = function(_channels_first(u, part, some[0]), *some).permute(1, 2, 0)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, *vectors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        grad_u = torch.empty_like(u) if wanted[0] else None  # B L H
        grads = [
            torch.empty_like(v) if w else None for v, w in zip(vectors, wanted[1:], strict=True)
        ]
        for part in _slices(u.shape[2], ctx.size):
            some = [v[part] for v in vectors]
            inputs = [_channels_first(u, part, some[0]), *some]
            inputs = [t.detach().requires_grad_(w) for t, w in zip(inputs, wanted, strict=True)]
            with torch.enable_grad(), torch.autocast(u.device.type, enabled=False):
                y = ctx.function(*inputs)
            asked = [t for t in inputs if t.requires_grad]
            # A window of one token never uses the step to the next: its gradient is zero.
            grads_part = torch.autograd.grad(
                y, asked, _channels_first(grad_y, part, y), materialize_grads=True
            )
            found = iter(grads_part)
            if grad_u is not None:
                grad_u[..., part] = next(found).permute(1, 2, 0)
            for grad in grads:
                if grad is not None:
                    grad[part] = next(found)
        return None, None, grad_u, *grads


def _channels_first(x: Tensor, part: slice, like: Tensor) -> Tensor:
    """x (B, L, H) → (h, B, L), contiguous, in the dtype of `like`."""
    return x[..., part].permute(2, 0, 1).to(like.dtype).contiguous()


def _slices(num_channels: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, num_channels)) for at in range(0, num_channels, size)]
