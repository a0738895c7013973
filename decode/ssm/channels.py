"""Work on a few channels at a time, and again on the way back, so that memory stays bounded.

A function of independent channels is run over slices of them; only its inputs are kept, and the
backward pass runs each slice once more to get its gradients. What would be gigabytes of saved
intermediates becomes the intermediates of one slice. What does not grow with the sequence may be
prepared apart from the rest, and kept.

Letters: B batch, L sequence, H channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ChannelFunction = Callable[..., Tensor]
"""(u (h, B, L), *prepared) → (h, B, L), for any slice of h channels."""

Preparation = Callable[..., tuple[Tensor, ...]]
"""(*vectors each (h, …)) → prepared, each (h, …), for any slice of h channels."""


def as_they_are(*vectors: Tensor) -> tuple[Tensor, ...]:
    """No preparation."""
    return vectors


def by_channels(
    function: ChannelFunction,
    u: Tensor,
    *vectors: Tensor,
    size: int,
    prepare: Preparation = as_they_are,
    keep: bool = False,
) -> Tensor:
    """`function(u, *prepare(*vectors))`, at most `size` channels at a time: u, result (B, L, H).

    `function` sees channels first, contiguous, in the dtype of `u`, which the result has too,
    whatever it returns. Both must be deterministic and treat channels independently. Autocast is
    off inside. keep: what `prepare` made is kept for the way back, with what its gradient needs,
    instead of made again.
    """
    keep = keep and torch.is_grad_enabled()
    result: Tensor = _ByChannels.apply(  # type: ignore[no-untyped-call]
        function, prepare, keep, size, u, *vectors
    )
    return result


class _ByChannels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: ChannelFunction,
        prepare: Preparation,
        keep: bool,
        size: int,
        u: Tensor,
        *vectors: Tensor,
    ) -> Tensor:
        ctx.function, ctx.prepare, ctx.size = function, prepare, size
        ctx.kept = {}  # by slice
        ctx.save_for_backward(u, *vectors)
        y = torch.empty_like(u, memory_format=torch.contiguous_format)  # B L H
        with torch.autocast(u.device.type, enabled=False):
            for at, part in enumerate(_slices(u.shape[2], size)):
                some = _leaves([v[part] for v in vectors], ctx.needs_input_grad[5:])
                with torch.set_grad_enabled(keep):
                    prepared = prepare(*some)
                if keep:
                    ctx.kept[at] = some, prepared
                found = function(_channels_first(u, part), *(p.detach() for p in prepared))
                y[..., part] = found.permute(1, 2, 0)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        u, *vectors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[4:]
        grad_u = torch.empty_like(u) if wanted[0] else None  # B L H
        grads = [
            torch.empty_like(v) if w else None for v, w in zip(vectors, wanted[1:], strict=True)
        ]
        for at, part in enumerate(_slices(u.shape[2], ctx.size)):
            with torch.enable_grad(), torch.autocast(u.device.type, enabled=False):
                if at in ctx.kept:
                    some, prepared = ctx.kept.pop(at)
                else:
                    some = _leaves([v[part] for v in vectors], wanted[1:])
                    prepared = ctx.prepare(*some)
                inputs = [_channels_first(u, part), *prepared]
                inputs = _leaves(inputs, [wanted[0], *(p.requires_grad for p in prepared)])
                y = ctx.function(*inputs)
            of_u, *of_prepared = _gradients(
                [y], inputs, [_channels_first(grad_y, part).to(y.dtype)]
            )
            if grad_u is not None:
                grad_u[..., part] = of_u.permute(1, 2, 0)
            found = _gradients(prepared, some, of_prepared)
            for grad, of_vector in zip(grads, found, strict=True):
                if grad is not None:
                    grad[part] = of_vector
        return None, None, None, None, grad_u, *grads


def _leaves(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    return [t.detach().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], of_outputs: Sequence[Tensor]
) -> list[Tensor]:
    """The gradients of all inputs; those that take none get an empty tensor.

    An input that no output depends on gets zeros: a window of one token never uses the step to the
    next.
    """
    used = [(y, g) for y, g in zip(outputs, of_outputs, strict=True) if y.requires_grad]
    asked = [x for x in inputs if x.requires_grad]
    if not used or not asked:
        return [torch.empty(0)] * len(inputs)
    ys, gs = zip(*used, strict=True)
    found = iter(torch.autograd.grad(ys, asked, gs, materialize_grads=True))
    return [next(found) if x.requires_grad else torch.empty(0) for x in inputs]


def _channels_first(x: Tensor, part: slice) -> Tensor:
    """x (B, L, H) → (h, B, L), contiguous.

    In two copies, of which the second transposes a matrix, which torch does by tiles: one copy
    alone would go to another row of memory for each number.
    """
    B, L, _ = x.shape
    rows = x[..., part].contiguous().view(B * L, -1)  # B·L h
    return rows.T.contiguous().view(-1, B, L)


def _slices(num_channels: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, num_channels)) for at in range(0, num_channels, size)]
